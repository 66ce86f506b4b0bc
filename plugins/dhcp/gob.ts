/**
 * Go's gob encoding (https://pkg.go.dev/encoding/gob), the part that remote calls of the dhcp daemon are made of:
 * structs, slices, strings, bytes, numbers. A stream describes its own types, so a reader goes by names, never by
 * position.
 *
 * @module
 */

/** A type as it is announced on the stream: a built-in one by name, a slice, or a struct with named fields in order. */
export type Schema =
  | "bool"
  | "int"
  | "uint"
  | "bytes"
  | "string"
  | { readonly slice: Schema }
  | { readonly struct: string; readonly fields: readonly (readonly [name: string, type: Schema])[] };

/** A value: numbers are integers up to 2^53, slices arrays, structs objects by field name; absent fields are zero. */
export type GobValue = boolean | number | string | Uint8Array | readonly GobValue[] | {
  readonly [name: string]: GobValue;
};

/** What arrived is not gob, or more than a call may hold. */
export class GobError extends Error {
  override readonly name = "GobError";
}

const BUILT_IN = { bool: 1, int: 2, uint: 3, bytes: 5, string: 6 } as const;
const FIRST_ID = 64;
/** Nothing in a call is nested deeper; keeps a hostile stream from exhausting the stack. */
const MAX_DEPTH = 32;

/** Writes one stream: every type is announced once, before its first value. */
export class GobWriter {
  readonly #ids = new Map<Schema, number>();

  /** The messages of one value: definitions that are new on this stream, then the value itself. */
  message(schema: Schema, value: GobValue): Uint8Array<ArrayBuffer> {
    const out: number[] = [];
    const id = this.#define(schema, out);
    const body: number[] = [];
    putInt(body, id);
    if (typeof schema === "string" || "slice" in schema) body.push(0);
    putValue(body, schema, value);
    putMessage(out, body);
    return Uint8Array.from(out);
  }

  #define(schema: Schema, out: number[]): number {
    if (typeof schema === "string") return BUILT_IN[schema];
    const known = this.#ids.get(schema);
    if (known !== undefined) return known;
    const id = FIRST_ID + this.#ids.size;
    this.#ids.set(schema, id);
    const body: number[] = [];
    putInt(body, -id);
    const inner: number[] = [];
    if ("slice" in schema) {
      const element = this.#define(schema.slice, inner);
      body.push(2, 1);
      putCommon(body, "", id);
      body.push(1);
      putInt(body, element);
    } else {
      const fields = schema.fields.map(([name, type]) => [name, this.#define(type, inner)] as const);
      body.push(3, 1);
      putCommon(body, schema.struct, id);
      if (fields.length > 0) {
        body.push(1);
        putUint(body, fields.length);
        for (const [name, type] of fields) {
          body.push(1);
          putText(body, name);
          body.push(1);
          putInt(body, type);
          body.push(0);
        }
      }
    }
    body.push(0, 0);
    putMessage(out, body);
    out.push(...inner);
    return id;
  }
}

function putMessage(out: number[], body: readonly number[]): void {
  putUint(out, body.length);
  for (const byte of body) out.push(byte);
}

function putCommon(out: number[], name: string, id: number): void {
  if (name !== "") {
    out.push(1);
    putText(out, name);
    out.push(1);
  } else out.push(2);
  putInt(out, id);
  out.push(0);
}

/** Below 128 one byte; else the number of bytes, negated, and the bytes, most significant first. */
function putUint(out: number[], value: number): void {
  if (value < 128) {
    out.push(value);
    return;
  }
  const bytes: number[] = [];
  for (let rest = value; rest > 0; rest = Math.floor(rest / 256)) bytes.unshift(rest % 256);
  out.push(256 - bytes.length, ...bytes);
}

function putInt(out: number[], value: number): void {
  // Beyond 2^31 the operators of JavaScript would cut.
  putUint(out, value < 0 ? (-value - 1) * 2 + 1 : value * 2);
}

function putText(out: number[], text: string): void {
  putBytes(out, new TextEncoder().encode(text));
}

function putBytes(out: number[], bytes: Uint8Array): void {
  putUint(out, bytes.length);
  for (const byte of bytes) out.push(byte);
}

function putValue(out: number[], schema: Schema, value: GobValue): void {
  switch (schema) {
    case "bool":
      return putUint(out, value === true ? 1 : 0);
    case "int":
      return putInt(out, value as number);
    case "uint":
      return putUint(out, value as number);
    case "string":
      return putText(out, value as string);
    case "bytes":
      return putBytes(out, value as Uint8Array);
  }
  if ("slice" in schema) {
    const items = value as readonly GobValue[];
    putUint(out, items.length);
    for (const item of items) putValue(out, schema.slice, item);
    return;
  }
  let last = -1;
  schema.fields.forEach(([name, type], index) => {
    const field = (value as { readonly [name: string]: GobValue | undefined })[name];
    if (field === undefined || isZero(type, field)) return;
    putUint(out, index - last);
    putValue(out, type, field);
    last = index;
  });
  out.push(0);
}

/** Zero values of fields are left out; structs never are, however empty. */
function isZero(schema: Schema, value: GobValue): boolean {
  if (typeof schema === "object" && "struct" in schema) return false;
  return value === false || value === 0 || value === "" ||
    ((Array.isArray(value) || value instanceof Uint8Array) && value.length === 0);
}

/** What a stream has announced about a type. */
type Definition =
  | { readonly kind: "slice"; readonly element: number }
  | { readonly kind: "array"; readonly element: number }
  | { readonly kind: "map"; readonly key: number; readonly element: number }
  | { readonly kind: "struct"; readonly name: string; readonly fields: readonly { name: string; type: number }[] };

/** Reads one stream, message by message. */
export class GobReader {
  readonly #types = new Map<number, Definition>();

  /** One message without its length. Returns the value in it; undefined when it announced a type. */
  message(bytes: Uint8Array): GobValue | undefined {
    const cursor = new Cursor(bytes);
    const id = cursor.int();
    if (id < 0) {
      this.#types.set(-id, readDefinition(cursor));
      return undefined;
    }
    const definition = this.#types.get(id);
    // A value that is no struct stands behind a field number of zero.
    if (definition?.kind !== "struct" && cursor.uint() !== 0) throw new GobError("gob: value without its mark");
    return this.#value(id, cursor, 0);
  }

  #value(id: number, cursor: Cursor, depth: number): GobValue {
    if (depth > MAX_DEPTH) throw new GobError("gob: nested too deeply");
    switch (id) {
      case BUILT_IN.bool:
        return cursor.uint() !== 0;
      case BUILT_IN.int:
        return cursor.int();
      case BUILT_IN.uint:
        return cursor.uint();
      case BUILT_IN.bytes:
        return cursor.bytes();
      case BUILT_IN.string:
        return new TextDecoder().decode(cursor.bytes());
    }
    const definition = this.#types.get(id);
    if (definition === undefined) throw new GobError(`gob: type ${id} was not announced`);
    if (definition.kind === "struct") {
      const value: Record<string, GobValue> = {};
      for (let at = -1;;) {
        const delta = cursor.uint();
        if (delta === 0) return value;
        at += delta;
        const field = definition.fields[at];
        if (field === undefined) throw new GobError(`gob: ${definition.name} has no field number ${at}`);
        value[field.name] = this.#value(field.type, cursor, depth + 1);
      }
    }
    const count = cursor.uint();
    // Every element takes a byte at least.
    if (count > cursor.left) throw new GobError(`gob: ${count} elements in ${cursor.left} bytes`);
    if (definition.kind === "map") {
      return Array.from({ length: count }, () => [
        this.#value(definition.key, cursor, depth + 1),
        this.#value(definition.element, cursor, depth + 1),
      ]);
    }
    return Array.from({ length: count }, () => this.#value(definition.element, cursor, depth + 1));
  }
}

/**
 * The union of definitions, of which one is set: array 1, slice 2, struct 3, map 4; others cannot come in these calls.
 */
function readDefinition(cursor: Cursor): Definition {
  const kind = cursor.uint();
  let definition: Definition;
  if (kind === 3) {
    let name = "";
    let fields: { name: string; type: number }[] = [];
    readFields(cursor, [
      () => name = readCommon(cursor),
      () => {
        const count = cursor.uint();
        if (count > cursor.left) throw new GobError(`gob: ${count} fields in ${cursor.left} bytes`);
        fields = Array.from({ length: count }, () => {
          const field = { name: "", type: 0 };
          readFields(cursor, [() => field.name = cursor.text(), () => field.type = cursor.int()]);
          return field;
        });
      },
    ]);
    definition = { kind: "struct", name, fields };
  } else if (kind === 1 || kind === 2) {
    let element = 0;
    readFields(cursor, [() => readCommon(cursor), () => element = cursor.int(), () => cursor.int()]);
    definition = { kind: kind === 1 ? "array" : "slice", element };
  } else if (kind === 4) {
    let key = 0;
    let element = 0;
    readFields(cursor, [() => readCommon(cursor), () => key = cursor.int(), () => element = cursor.int()]);
    definition = { kind: "map", key, element };
  } else throw new GobError(`gob: unknown kind of type ${kind}`);
  if (cursor.uint() !== 0) throw new GobError("gob: definition without an end");
  return definition;
}

function readCommon(cursor: Cursor): string {
  let name = "";
  readFields(cursor, [() => name = cursor.text(), () => cursor.int()]);
  return name;
}

/** Fields of a struct whose type is known to both sides, in order. */
function readFields(cursor: Cursor, fields: readonly (() => unknown)[]): void {
  for (let at = -1;;) {
    const delta = cursor.uint();
    if (delta === 0) return;
    at += delta;
    const field = fields[at];
    if (field === undefined) throw new GobError(`gob: definition has no field number ${at}`);
    field();
  }
}

class Cursor {
  #at = 0;
  constructor(readonly data: Uint8Array) {}

  get left(): number {
    return this.data.length - this.#at;
  }

  #byte(): number {
    const byte = this.data[this.#at++];
    if (byte === undefined) throw new GobError("gob: message ends too early");
    return byte;
  }

  uint(): number {
    const first = this.#byte();
    if (first < 128) return first;
    const length = 256 - first;
    if (length > 8) throw new GobError("gob: number of more than 64 bits");
    let value = 0;
    for (let i = 0; i < length; i++) value = value * 256 + this.#byte();
    return value;
  }

  int(): number {
    const value = this.uint();
    return value % 2 === 0 ? value / 2 : -(value - 1) / 2 - 1;
  }

  bytes(): Uint8Array {
    const length = this.uint();
    if (length > this.left) throw new GobError(`gob: ${length} bytes announced, ${this.left} there`);
    this.#at += length;
    return this.data.slice(this.#at - length, this.#at);
  }

  text(): string {
    return new TextDecoder().decode(this.bytes());
  }
}
