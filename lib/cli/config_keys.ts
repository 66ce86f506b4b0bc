/** Keys of a configuration against the plugins' own tables: spelling, place, type, range. */
import { FieldError, type Key, type Keys } from "../cni/decode.ts";
import { nearest } from "./command.ts";
import { Section, shown, type Source } from "./config_source.ts";
import { type Node, valueOf } from "./jsonc.ts";

/** Keys that a runtime or the protocol gives a meaning, whatever the plugin. */
const EVERYWHERE = ["type", "name", "cniVersion", "capabilities", "ipam", "dns", "args", "runtimeConfig", "prevResult"];

/** What is known about the surroundings of a section. */
export interface Surroundings {
  /** The section in words: `bridge`, `ipam`. */
  readonly of: string;
  /** Keys that would be right somewhere else: where, and which. */
  readonly elsewhere: readonly (readonly [where: string, keys: readonly string[]])[];
  /** Keys that are not looked at here. */
  readonly besides: readonly string[];
}

/** Checks a member of a list, or its `ipam` section, by a table. */
export function checkKeys(section: Section, keys: Keys, surroundings: Surroundings): void {
  const names = Object.keys(keys);
  const { besides } = surroundings;
  for (const property of section.properties) {
    const { key, value } = property;
    const name = names.find((one) => one === key) ?? names.find((one) => one.toLowerCase() === key.toLowerCase());
    if (name === undefined) {
      const known = [...besides, ...EVERYWHERE].find((one) => one.toLowerCase() === key.toLowerCase());
      if (known === undefined && !key.startsWith("cni.dev/")) {
        unknownKey(section, property.at, { key, names: names.filter((one) => !keys[one]?.hidden), surroundings });
      }
      continue;
    }
    if (name !== key) {
      section.source.add("note", "key-case", property, `"${key}" is read as "${name}"`, { hint: `write "${name}"` });
    }
    checkValue(section, value, { key: keys[name] as Key<unknown>, path: name });
  }
}

/** Warns of every key that is written twice in one object, wherever it is: runtimes hand on the last one alone. */
export function checkDuplicates(source: Source, node: Node): void {
  const seen = new Set<string>();
  for (const { key, at, value } of node.properties ?? []) {
    if (seen.has(key)) source.warn("duplicate-key", at, `"${key}" stands here a second time`, "the last one counts");
    seen.add(key);
    checkDuplicates(source, value);
  }
  for (const item of node.items ?? []) checkDuplicates(source, item);
}

function unknownKey(
  section: Section,
  at: number,
  { key, names, surroundings }: { key: string; names: readonly string[]; surroundings: Surroundings },
): void {
  const { of, elsewhere, besides } = surroundings;
  const there = elsewhere.find(([, others]) => others.some((one) => one.toLowerCase() === key.toLowerCase()));
  const near = nearest(key, [...names, ...besides]);
  const far = elsewhere.flatMap(([where, others]) => {
    const other = nearest(key, others);
    return other ? [`did you mean "${other}" ${where}?`] : [];
  });
  const hint = there
    ? `it belongs ${there[0]}`
    : near
    ? `did you mean "${near}"?`
    : far[0] ?? `${of} knows ${names.join(", ") || "no keys"}`;
  section.source.warn("unknown-key", at, `unknown key "${key}" for ${of}; ignored`, hint);
}

interface Checked {
  readonly key: Key<unknown>;
  readonly path: string;
}

/** Checks one value and what is below it; says where it is wrong. */
function checkValue(section: Section, node: Node, { key, path }: Checked): void {
  if (node.kind === "null") return;
  const before = section.source.findings.length;
  if (key.below && "keys" in key.below && node.kind === "object") {
    const inner = new Section(section.source, node);
    checkKeys(inner, key.below.keys, { of: `"${path}"`, elsewhere: [], besides: [] });
  } else if (key.below && "items" in key.below && node.items) {
    const { items } = key.below;
    node.items.forEach((item, index) => {
      if (item.kind === "null") {
        section.source.error("null", item, `"${path}.${index}" is null`, "remove it or give it a value");
      } else checkValue(section, item, { key: items, path: `${path}.${index}` });
    });
  }
  if (section.source.findings.slice(before).some(({ severity }) => severity === "error")) return;
  const value = valueOf(node);
  try {
    key.read(value, path);
  } catch (error) {
    const words = error instanceof FieldError ? error.advice : (error as Error).message;
    const at = error instanceof FieldError ? nodeBelow(node, path, error.path) : node;
    section.source.error(
      "value",
      at,
      words.includes(path.split(".").at(-1) ?? path) ? words : `"${path}" is ${shown(value)}: ${words}`,
    );
    return;
  }
  checkSchema(section, node, { key, path });
}

/** The node that a dotted path leads to, from one that is at `base`. */
function nodeBelow(node: Node, base: string, path: string): Node {
  if (!path.startsWith(`${base}.`)) return node;
  let at = node;
  for (const part of path.slice(base.length + 1).split(".")) {
    const next = at.items?.[Number(part)] ??
      at.properties?.findLast(({ key }) => key.toLowerCase() === part.toLowerCase())?.value;
    if (!next) return at;
    at = next;
  }
  return at;
}

/** What the table says about allowed words and numbers. */
function checkSchema(section: Section, node: Node, { key, path }: Checked): void {
  const { enum: words, minimum, maximum } = key.schema as { enum?: unknown[]; minimum?: number; maximum?: number };
  const { value } = node;
  if (Array.isArray(words) && typeof value === "string" && value !== "" && !words.includes(value)) {
    const near = nearest(value, words.map(String));
    section.source.error(
      "value",
      node,
      `"${path}" is "${value}", which is none of ${words.join(", ")}`,
      near && `did you mean "${near}"?`,
    );
  }
  if (typeof value !== "number") return;
  if (minimum !== undefined && value < minimum) {
    section.source.error("value", node, `"${path}" is ${value}: at least ${minimum}`);
  }
  if (maximum !== undefined && value > maximum) {
    section.source.error("value", node, `"${path}" is ${value}: at most ${maximum}`);
  }
}
