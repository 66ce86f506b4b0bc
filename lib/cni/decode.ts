/**
 * Configuration as one table of keys. A table decodes and checks what came in (with the reference's reading rules: keys
 * in any case, `null` is absent, no type is ever coerced), and the same table makes the JSON Schema, the `validate`
 * command and the documentation.
 */
import { internal } from "./error.ts";
import type { JsonObject } from "./types.ts";

/** JSON Schema (2020-12), the parts that are used. */
export type Schema = { readonly [key: string]: unknown };

/** Thrown while decoding: where, and what belongs there. */
export class FieldError extends Error {
  override readonly name = "FieldError";
  /** `path` is dotted: `ipam.ranges.0.0.subnet`; `msg` is the reference's text, `advice` says what to do. */
  constructor(readonly path: string, readonly msg: string, readonly advice: string) {
    super(msg);
  }
}

/** How one key is read. `T` is the type of the checked value; an absent key or `null` gives `absent`. */
export interface Key<T> {
  readonly read: (value: unknown, path: string) => T;
  readonly absent: T;
  readonly about: string;
  readonly schema: Schema;
  /** Read, but told to nobody: not a key that anybody should write. */
  readonly hidden?: boolean;
  /** The tables of objects below this key, for the unknown-key check of `validate`. */
  readonly below?: { readonly keys: Keys } | { readonly items: Key<unknown> };
}

/** A table of keys; the key's exact spelling is the documented one. */
export type Keys = { readonly [name: string]: Key<unknown> };
/** What a table decodes to. */
export type Fields<K extends Keys> = { -readonly [N in keyof K]: K[N] extends Key<infer T> ? T : never };

/**
 * A number that Go takes for no integer (`1500.0`, `15e2`), or that is too large to be told from its neighbours: as
 * written.
 */
export class NumberText {
  constructor(readonly text: string) {}
  toJSON(): number {
    return Number(this.text);
  }
}

/** What a value is, in the words of Go's decoder, for a complaint about a place of type `goType`. */
export function goKind(value: unknown, goType: string): string {
  const kind = kindOf(value);
  if (kind !== "number" || !/^u?int/.test(goType)) return kind;
  return `number ${value instanceof NumberText ? value.text : value}`;
}

/** Name of a value's type in the reference's messages about JSON. */
export function kindOf(value: unknown): string {
  if (Array.isArray(value)) return "array";
  if (value instanceof NumberText) return "number";
  if (typeof value === "boolean") return "bool";
  return typeof value;
}

/** The reference decoder's complaint, and what to write instead. */
function wrongType(value: unknown, path: string, goType: string, wanted: string): FieldError {
  const shown = value instanceof NumberText ? value.text : JSON.stringify(value)?.slice(0, 60) ?? String(value);
  return new FieldError(
    path,
    `json: cannot unmarshal ${goKind(value, goType)} into Go struct field NetConf.${path} of type ${goType}`,
    `"${path}" is ${shown}: write ${wanted}`,
  );
}

/** A string; only one of `bytes` may hold a NUL. */
export function text(
  absent: string,
  about: string,
  options: { oneOf?: readonly string[]; bytes?: boolean } = {},
): Key<string> {
  return {
    absent,
    about,
    schema: {
      type: "string",
      ...(options.oneOf && { enum: options.oneOf }),
      ...(absent !== "" && { default: absent }),
    },
    read: (value, path) => {
      if (typeof value !== "string") throw wrongType(value, path, "string", "a string in double quotes");
      if (value.includes("\0") && !options.bytes) {
        throw new FieldError(path, `"${path}" holds a NUL byte`, "no name, path or address has one");
      }
      return value;
    },
  };
}

/** A string, or undefined when absent: for keys where `""` and absent differ. */
export function maybeText(about: string, options: { oneOf?: readonly string[] } = {}): Key<string | undefined> {
  const inner = text("", about, options);
  return { ...inner, absent: undefined };
}

/** An integer; fractions, exponents, strings and numbers beyond 2^53 are refused. */
export function integer(absent: number, about: string, options: { min?: number; max?: number } = {}): Key<number> {
  const { min, max } = options;
  return {
    absent,
    about,
    schema: {
      type: "integer",
      ...(min !== undefined && { minimum: min }),
      ...(max !== undefined && { maximum: max }),
      default: absent,
    },
    read: (value, path) => {
      if (typeof value !== "number" || !Number.isInteger(value)) {
        const how = value instanceof NumberText ? "fraction or exponent" : "quotes";
        throw wrongType(value, path, "int", `a whole number without ${how}`);
      }
      return value;
    },
  };
}

/** An integer, or undefined when absent. */
export function maybeInteger(about: string, options: { min?: number; max?: number } = {}): Key<number | undefined> {
  const { default: _, ...schema } = integer(0, about, options).schema as { default: number };
  return { ...integer(0, about, options), absent: undefined, schema };
}

/** A number that fits into 32 bits without a sign, or undefined when absent. */
export function uint32(about: string): Key<number | undefined> {
  const inner = maybeInteger(about, { min: 0, max: 0xffff_ffff });
  return {
    ...inner,
    read: (value, path) => {
      if (typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= 0xffff_ffff) return value;
      throw wrongType(value, path, "uint32", "a whole number from 0 to 4294967295, without quotes");
    },
  };
}

/** `true` or `false`. */
export function flag(absent: boolean, about: string): Key<boolean> {
  return {
    absent,
    about,
    schema: { type: "boolean", default: absent },
    read: (value, path) => {
      if (typeof value !== "boolean") throw wrongType(value, path, "bool", "true or false without quotes");
      return value;
    },
  };
}

/** `true` or `false`, or undefined when absent. */
export function maybeFlag(about: string): Key<boolean | undefined> {
  return { ...flag(false, about), absent: undefined, schema: { type: "boolean" } };
}

/**
 * A list whose elements are all read by `items`; undefined when absent, since `[]` may mean something else. `null`
 * elements are refused.
 */
export function list<T>(items: Key<T>, about: string): Key<NonNullable<T>[] | undefined> {
  return {
    absent: undefined,
    about,
    schema: { type: "array", items: items.schema },
    below: { items: items as Key<unknown> },
    read: (value, path) => {
      if (!Array.isArray(value)) throw wrongType(value, path, "[]", "a list in square brackets");
      return value.map((item, index) => {
        if (item === null) {
          throw new FieldError(
            `${path}.${index}`,
            `${path}: element ${index} is null`,
            `"${path}.${index}" is null: remove it or give it a value`,
          );
        }
        return items.read(item, `${path}.${index}`) as NonNullable<T>;
      });
    },
  };
}

/** An object read by a table of its own; undefined when absent. */
export function object<K extends Keys>(keys: K, about: string): Key<Fields<K> | undefined> {
  return {
    absent: undefined,
    about,
    schema: schemaOf(keys),
    below: { keys },
    read: (value, path) => {
      if (!isObject(value)) throw wrongType(value, path, "struct", "an object in braces");
      return fields(keys, value, path);
    },
  };
}

/** An object from any key to strings, as `sysctl` of tuning. */
export function textMap(about: string): Key<Record<string, string> | undefined> {
  return {
    absent: undefined,
    about,
    schema: { type: "object", additionalProperties: { type: "string" } },
    read: (value, path) => {
      if (!isObject(value)) throw wrongType(value, path, "map[string]string", "an object in braces");
      const result: Record<string, string> = {};
      for (const [key, item] of Object.entries(value)) {
        if (item !== null && typeof item !== "string") {
          throw wrongType(item, `${path}.${key}`, "string", "a string in double quotes");
        }
        result[key] = item ?? "";
      }
      return result;
    },
  };
}

/** Any object, kept as it is: for what another plugin reads. */
export function anyObject(about: string): Key<JsonObject | undefined> {
  return {
    absent: undefined,
    about,
    schema: { type: "object" },
    read: (value, path) => {
      if (!isObject(value)) throw wrongType(value, path, "map[string]interface {}", "an object in braces");
      return value;
    },
  };
}

/** Any value, kept as it is. */
export function anything(about: string): Key<unknown> {
  return { absent: undefined, about, schema: {}, read: (value) => value };
}

/** A key whose own reader does more than its type: `refine(text("", "…"), (value, path) => …)`. */
export function refine<T, U>(key: Key<T>, more: (value: T, path: string) => U, absent: U): Key<U> {
  return { ...key, absent, read: (value, path) => more(key.read(value, path), path) };
}

export function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof NumberText);
}

/**
 * What is left of a key's two values, as Go's decoder reads them one after the other into the same place: fields of
 * objects and elements of lists are merged, `null` empties a list and leaves everything else, else the later value
 * counts.
 */
export function merged(earlier: unknown, later: unknown, key = ""): unknown {
  if (later === null) return Array.isArray(earlier) ? null : earlier;
  if (Array.isArray(earlier) && Array.isArray(later)) {
    // A route is read by a function of its own, which starts with an empty one.
    if (isSameKey(key, "routes")) return later;
    return later.map((item, index) => index < earlier.length ? merged(earlier[index], item) : item);
  }
  if (!isObject(earlier) || !isObject(later)) return later;
  const whole = { ...earlier };
  for (const [name, value] of Object.entries(later)) {
    const both = Object.hasOwn(whole, name) ? merged(whole[name], value, name) : value;
    delete whole[name];
    whole[name] = both;
  }
  return whole;
}

/**
 * Reads `source` by the table `keys`. Exact spelling first, else in any case; several spellings are {@linkcode merged}.
 */
export function fields<K extends Keys>(keys: K, source: JsonObject, path = ""): Fields<K> {
  const result: Record<string, unknown> = {};
  const values: JsonObject = {};
  for (const name in keys) result[name] = keys[name]?.absent;
  for (const given in source) {
    const name = Object.hasOwn(keys, given) ? given : Object.keys(keys).find((name) => isSameKey(name, given));
    const key = name === undefined ? undefined : keys[name];
    if (name === undefined || key === undefined) continue;
    const isAgain = Object.hasOwn(values, name);
    const value = isAgain ? merged(values[name], source[given], name) : source[given];
    values[name] = value;
    if (value !== null) result[name] = key.read(value, path === "" ? name : `${path}.${name}`);
    else if (isAgain) result[name] = key.absent;
  }
  return result as Fields<K>;
}

/**
 * Reads a plugin's configuration; failures get the plugin's own words in front: `failed to load netconf`, or "" for
 * none.
 */
export function decode<K extends Keys>(keys: K, source: JsonObject, doing: string): Fields<K> {
  try {
    return fields(keys, source);
  } catch (error) {
    if (!(error instanceof FieldError)) throw error;
    throw internal(doing === "" ? error.msg : `${doing}: ${error.msg}`, error.advice);
  }
}

/** Reads what can be read, for DEL and GC: a key that does not fit counts as absent, and `warn` is told. */
export function decodeLeniently<K extends Keys>(keys: K, source: JsonObject, warn: (note: string) => void): Fields<K> {
  const usable: JsonObject = {};
  for (const given in source) {
    try {
      fields(keys, { [given]: source[given] });
      usable[given] = source[given];
    } catch (error) {
      warn(`ignoring "${given}": ${(error as Error).message}`);
    }
  }
  return fields(keys, usable);
}

/** Keys that differ in case alone, as Go folds it. Most differ in length, which costs nothing to see. */
function isSameKey(a: string, b: string): boolean {
  return a.length === b.length && (a === b || folded(a) === folded(b));
}

/** U+017F, the long s, is the one letter that Go takes for another and JavaScript does not. */
function folded(key: string): string {
  return key.toLowerCase().replaceAll("\u017f", "s");
}

/**
 * One value of an object under a key in any case, several spellings {@linkcode merged}: for keys that are read before a
 * table.
 */
export function lookup(source: JsonObject, name: string): unknown {
  let value: unknown;
  for (const given in source) {
    if (!isSameKey(given, name)) continue;
    value = value === undefined ? source[given] : merged(value, source[given], name);
  }
  return value;
}

/** JSON Schema of a table. */
export function schemaOf(keys: Keys): Schema {
  const properties: Record<string, Schema> = {};
  for (const name in keys) {
    if (!keys[name]?.hidden) properties[name] = { description: keys[name]?.about, ...keys[name]?.schema };
  }
  return { type: "object", properties };
}
