/**
 * JSON that knows where everything stands. Comments and commas at the end of lists are read and reported: runtimes
 * refuse them. Errors say what is wrong and where, in lines and columns from 1.
 */
import { parse, type ParseOptions, type ValueNode } from "@humanwhocodes/momoa";

/** One key of an object and its value. */
export interface Property {
  readonly key: string;
  /** Offset of the key's opening quote. */
  readonly at: number;
  readonly value: Node;
}

/** A value and where it begins and ends. */
export interface Node {
  readonly kind: "object" | "array" | "string" | "number" | "boolean" | "null";
  readonly start: number;
  readonly end: number;
  /** Strings, numbers, booleans and null. */
  readonly value?: string | number | boolean | null;
  /** Objects, in the order of the text; keys may repeat. */
  readonly properties?: readonly Property[];
  /** Arrays. */
  readonly items?: readonly Node[];
}

/** Something that plain JSON does not have, but that was understood. */
export interface Extra {
  readonly what: "comment" | "trailing comma" | "byte order mark";
  readonly at: number;
}

/** A text that is not JSON, with or without comments. */
export class JsonError extends Error {
  override readonly name = "JsonError";
  constructor(message: string, readonly at: number, readonly advice = "") {
    super(message);
  }
}

/** Line and column (in characters) of an offset (in UTF-16 units), both from 1. */
export function positionOf(text: string, offset: number): { line: number; column: number } {
  const before = text.slice(0, offset);
  const line = before.split("\n").length;
  const column = [...before.slice(before.lastIndexOf("\n") + 1)].length + 1;
  return { line, column };
}

const MAX_DEPTH = 200;

const OPTIONS: ParseOptions = { mode: "jsonc", tokens: true, allowTrailingCommas: true };

/** Reads a text; throws a {@linkcode JsonError} at the first mistake. */
export function parseJsonc(text: string): { readonly root: Node; readonly extras: readonly Extra[] } {
  const marked = text.startsWith("\ufeff");
  const json = marked ? ` ${text.slice(1)}` : text;
  try {
    const { body, tokens = [] } = parse(json, OPTIONS);
    // The parser takes control characters.
    const flaw = tokens.find(({ type, loc }) =>
      type === "String" && flawOf(json.slice(loc.start.offset, loc.end.offset), 0)
    );
    if (flaw) throw mistakeIn(json);
    const extras = tokens.flatMap(({ type, loc }, index): Extra[] => {
      if (type === "LineComment" || type === "BlockComment") return [{ what: "comment", at: loc.start.offset }];
      if (type !== "Comma") return [];
      let next = index + 1;
      while (tokens[next]?.type.endsWith("Comment")) next++;
      // The closing brace or bracket.
      return /^R/.test(tokens[next]?.type ?? "") ? [{ what: "trailing comma", at: loc.start.offset }] : [];
    });
    return {
      root: nodeOf(body, 0),
      extras: [...(marked ? [{ what: "byte order mark" as const, at: 0 }] : []), ...extras],
    };
  } catch (error) {
    if (error instanceof JsonError) throw error;
    // So deep that no call can follow.
    if (error instanceof RangeError) throw new JsonError(`more than ${MAX_DEPTH} levels deep`, 0);
    throw mistakeIn(json);
  }
}

function nodeOf(value: ValueNode, depth: number): Node {
  const { start: { offset: start }, end: { offset: end } } = value.loc;
  if (depth > MAX_DEPTH) throw new JsonError(`more than ${MAX_DEPTH} levels deep`, start);
  switch (value.type) {
    case "Object": {
      const properties = value.members.map(({ name, value }) => ({
        key: name.type === "String" ? name.value : name.name,
        at: name.loc.start.offset,
        value: nodeOf(value, depth + 1),
      }));
      return { kind: "object", start, end, properties };
    }
    case "Array":
      return { kind: "array", start, end, items: value.elements.map(({ value }) => nodeOf(value, depth + 1)) };
    case "String":
      return { kind: "string", start, end, value: value.value };
    case "Number":
      return { kind: "number", start, end, value: value.value };
    case "Boolean":
      return { kind: "boolean", start, end, value: value.value };
    default:
      return { kind: "null", start, end, value: null };
  }
}

/** The plain value of a node; of a key that repeats, the last value counts. */
export function valueOf(node: Node): unknown {
  // `__proto__` stays a key like any other.
  if (node.properties) return Object.fromEntries(node.properties.map(({ key, value }) => [key, valueOf(value)]));
  return node.items ? node.items.map(valueOf) : node.value;
}

/** Blanks, comments, strings up to the end of their line, words, and single characters. */
const PARTS = /\s+|\/\/[^\n]*|\/\*[^]*?(?:\*\/|$)|"(?:[^"\\\n]|\\.)*"?|[\p{L}\p{N}_.+$-]+|[^]/gu;

/** Where the parser stops. Of a text that ends early it names the last part; with a NUL behind it, the end. */
function stopIn(text: string): number {
  try {
    parse(`${text}\0`, OPTIONS);
  } catch (error) {
    const { offset } = error as { offset?: number };
    if (offset !== undefined) return offset;
  }
  return text.length;
}

/** What is wrong with a text that the parser refuses: for people, by what stands there and what belongs there. */
function mistakeIn(text: string): JsonError {
  const offset = stopIn(text);
  const open: string[] = [];
  // The last three parts that are neither blanks nor comments.
  let [last, before, end] = ["", "", 0];
  for (const { 0: part, index } of text.matchAll(PARTS)) {
    const flawed = part.startsWith('"') ? flawOf(part, index) : undefined;
    if (flawed) return flawed;
    if (part.startsWith("/*") && !/..\*\/$/s.test(part)) {
      return new JsonError("a comment that does not end", index, "close it with */");
    }
    if (/^\s|^\/[/*]/.test(part)) continue;
    const container = open.at(-1) ?? "";
    if (index + part.length > offset) {
      return misplaced(part, index, { container, last, before, end });
    }
    if (part === "{" || part === "[") open.push(part);
    else if (part === "}" || part === "]") open.pop();
    [before, last, end] = [last, part, index + part.length];
  }
  return atTheEnd(text.length, { container: open.at(-1) ?? "", last, before });
}

/** Where a mistake is: in an object, a list or neither, after which parts, the last of which ends at `end`. */
interface Surroundings {
  readonly container: string;
  readonly last: string;
  readonly before: string;
}

const keyBelongs = ({ container, last }: Surroundings) => container === "{" && (last === "{" || last === ",");
const colonBelongs = ({ container, before, last }: Surroundings) =>
  container === "{" && (before === "{" || before === ",") && last !== "}";
const valueBelongs = ({ container, last }: Surroundings) =>
  last === "" || last === ":" || (container === "[" && (last === "[" || last === ","));

function atTheEnd(at: number, place: Surroundings): JsonError {
  if (place.last === "") return new JsonError("the file is empty", 0, "write a configuration in braces");
  if (valueBelongs(place)) {
    return new JsonError("the file ends in the middle of a value", at, "a brace or bracket is not closed");
  }
  return place.container === "["
    ? new JsonError("the file ends inside a list", at, "a closing ] is missing")
    : new JsonError("the file ends inside an object", at, "a closing brace } is missing");
}

function misplaced(part: string, at: number, place: Surroundings & { readonly end: number }): JsonError {
  const shown = part.startsWith('"') ? part : `"${part}"`;
  if (part === "," && (keyBelongs(place) || valueBelongs(place))) {
    return new JsonError("a comma too many", at, "remove it");
  }
  if (valueBelongs(place)) return notAValue(part, at);
  if (place.container === "") {
    return new JsonError(`${shown} after the end of the configuration`, at, "one file holds one object");
  }
  if (keyBelongs(place)) {
    if (part === "'") return new JsonError("a key in single quotes", at, 'write it as "key"');
    if (/^[\p{L}_$]/u.test(part)) return new JsonError(`the key ${part} without quotes`, at, `write "${part}"`);
    return new JsonError(`${shown} where a key belongs`, at, 'keys stand in double quotes: "key": value');
  }
  if (colonBelongs(place)) {
    return new JsonError(`${shown} after the key ${place.last}`, at, 'a colon belongs here: "key": value');
  }
  if (part === "}" || part === "]") {
    const closing = place.container === "{" ? "}" : "]";
    return new JsonError(`${shown} where "${closing}" belongs`, at, "braces and brackets do not match");
  }
  return new JsonError("a comma is missing", place.end, `${shown} follows without one`);
}

function notAValue(part: string, at: number): JsonError {
  if (part === "'") return new JsonError("a string in single quotes", at, 'strings stand in double quotes: "…"');
  if (/^(true|false|null)$/i.test(part)) {
    return new JsonError(`"${part}" is not a value`, at, `write ${part.toLowerCase()}`);
  }
  if (/^[+-]?[\d.]/.test(part)) {
    const advice = /^0\d/.test(part)
      ? "a number does not begin with 0"
      : /^\d+\.\d+\.\d+/.test(part)
      ? `addresses stand in double quotes: "${part}"`
      : "numbers are written like 1500 or 0.5";
    return new JsonError(`"${part}" is not a number`, at, advice);
  }
  if (/^\p{L}/u.test(part)) {
    return new JsonError(`"${part}" without quotes`, at, `strings stand in double quotes: "${part}"`);
  }
  return new JsonError(`"${part}" where a value belongs`, at, "a value is missing here");
}

/** What is wrong with a string, as far as its line goes. */
function flawOf(part: string, at: number): JsonError | undefined {
  // deno-lint-ignore no-control-regex
  const { 0: found, index } = /[\0-\x1f]|\\(?!["\\/bfnrt]|u[\da-fA-F]{4})./.exec(part.replaceAll("\\\\", "\\/")) ??
    { 0: "", index: 0 };
  if (found.startsWith("\\")) {
    return new JsonError(`"${found}" is not a valid escape in a string`, at + index, "write \\\\ for one \\");
  }
  if (found !== "") {
    const code = found.charCodeAt(0).toString(16).padStart(4, "0");
    return new JsonError(`a control character (U+${code}) in a string`, at + index, `write \\u${code}`);
  }
  if (/[^]"$/.test(part)) return undefined;
  return new JsonError("a string that does not end on its line", at, 'close it with "');
}
