/**
 * JSON that knows where everything stands. Comments and commas at the end of lists are read and reported: runtimes
 * refuse them. Errors say what is wrong and where, in lines and columns from 1.
 */

/** A place in a text: offset from 0 in UTF-16 units, line and column (in characters) from 1. */
export interface Position {
  readonly offset: number;
  readonly line: number;
  readonly column: number;
}

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

/** Line and column of an offset. */
export function positionOf(text: string, offset: number): Position {
  const before = text.slice(0, offset);
  const line = before.split("\n").length;
  const column = [...before.slice(before.lastIndexOf("\n") + 1)].length + 1;
  return { offset, line, column };
}

/** Reads a text; throws a {@linkcode JsonError} at the first mistake. */
export function parseJsonc(text: string): { readonly root: Node; readonly extras: readonly Extra[] } {
  const reader = new Reader(text);
  const root = reader.document();
  return { root, extras: reader.extras };
}

/** The plain value of a node; of a key that repeats, the last value counts. */
export function valueOf(node: Node): unknown {
  if (node.properties) {
    const result: Record<string, unknown> = {};
    for (const { key, value } of node.properties) {
      // `__proto__` has to stay a key like any other.
      Object.defineProperty(result, key, {
        value: valueOf(value),
        enumerable: true,
        configurable: true,
        writable: true,
      });
    }
    return result;
  }
  return node.items ? node.items.map(valueOf) : node.value;
}

const MAX_DEPTH = 200;

class Reader {
  readonly extras: Extra[] = [];
  private at = 0;
  constructor(private readonly text: string) {}

  document(): Node {
    if (this.text.startsWith("\ufeff")) {
      this.extras.push({ what: "byte order mark", at: 0 });
      this.at = 1;
    }
    this.blanks();
    if (this.at >= this.text.length) throw new JsonError("the file is empty", 0, "write a configuration in braces");
    const root = this.value(0);
    this.blanks();
    if (this.at < this.text.length) {
      throw new JsonError(`${this.shown()} after the end of the configuration`, this.at, "one file holds one object");
    }
    return root;
  }

  /** Blanks and comments. */
  private blanks(): void {
    for (;;) {
      const rest = this.text.charAt(this.at);
      if (rest === " " || rest === "\t" || rest === "\n" || rest === "\r") this.at++;
      else if (rest === "/" && this.text[this.at + 1] === "/") {
        this.extras.push({ what: "comment", at: this.at });
        const end = this.text.indexOf("\n", this.at);
        this.at = end < 0 ? this.text.length : end;
      } else if (rest === "/" && this.text[this.at + 1] === "*") {
        this.extras.push({ what: "comment", at: this.at });
        const end = this.text.indexOf("*/", this.at + 2);
        if (end < 0) throw new JsonError("a comment that does not end", this.at, "close it with */");
        this.at = end + 2;
      } else return;
    }
  }

  /** What stands here, for messages. */
  private shown(): string {
    if (this.at >= this.text.length) return "the end of the file";
    const rest = this.text.slice(this.at, this.at + 40);
    const quoted = /^"[^"\n]*"/.exec(rest)?.[0];
    if (quoted) return quoted;
    const word = /^[\w.+-]{2,20}/.exec(rest)?.[0];
    return `"${word ?? String.fromCodePoint(this.text.codePointAt(this.at) ?? 0)}"`;
  }

  private value(depth: number): Node {
    if (depth > MAX_DEPTH) throw new JsonError(`more than ${MAX_DEPTH} levels deep`, this.at);
    const start = this.at;
    const first = this.text[this.at];
    if (first === "{") return this.object(depth);
    if (first === "[") return this.array(depth);
    if (first === '"') return { kind: "string", start, value: this.string(), end: this.at };
    const word = /^[\p{L}\p{N}_.+-]+/u.exec(this.text.slice(this.at))?.[0] ?? "";
    if (word === "true" || word === "false" || word === "null") {
      this.at += word.length;
      const value = word === "null" ? null : word === "true";
      return { kind: value === null ? "null" : "boolean", start, value, end: this.at };
    }
    if (/^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/.test(word)) {
      this.at += word.length;
      return { kind: "number", start, value: Number(word), end: this.at };
    }
    throw this.notAValue(word);
  }

  private notAValue(word: string): JsonError {
    if (this.at >= this.text.length) {
      return new JsonError("the file ends in the middle of a value", this.at, "a brace or bracket is not closed");
    }
    if (this.text[this.at] === "'") {
      return new JsonError("a string in single quotes", this.at, 'strings stand in double quotes: "…"');
    }
    if (/^(true|false|null)$/i.test(word)) {
      return new JsonError(`"${word}" is no value`, this.at, `write ${word.toLowerCase()}`);
    }
    if (/^[+-]?[\d.]/.test(word)) {
      const advice = /^0\d/.test(word)
        ? "a number does not begin with 0"
        : /^\d+\.\d+\.\d+|\//.test(word)
        ? `addresses stand in double quotes: "${word}"`
        : "numbers are written like 1500 or 0.5";
      return new JsonError(`"${word}" is no number`, this.at, advice);
    }
    if (/^\p{L}/u.test(word)) {
      return new JsonError(`"${word}" without quotes`, this.at, `strings stand in double quotes: "${word}"`);
    }
    return new JsonError(`${this.shown()} where a value belongs`, this.at, "a value is missing here");
  }

  private string(): string {
    const start = this.at++;
    let result = "";
    for (;;) {
      const next = this.text[this.at];
      if (next === undefined || next === "\n") {
        throw new JsonError("a string that does not end on its line", start, 'close it with "');
      }
      if (next === '"') break;
      if (next < " ") {
        const code = next.charCodeAt(0).toString(16).padStart(4, "0");
        throw new JsonError(`a control character (U+${code}) in a string`, this.at, `write \\u${code}`);
      }
      result += next === "\\" ? this.escape() : next;
      if (next !== "\\") this.at++;
    }
    this.at++;
    return result;
  }

  private escape(): string {
    const letter = this.text[this.at + 1] ?? "";
    const plain = { '"': '"', "\\": "\\", "/": "/", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" }[letter];
    if (plain !== undefined) {
      this.at += 2;
      return plain;
    }
    const hex = /^\\u([0-9a-fA-F]{4})/.exec(this.text.slice(this.at, this.at + 6))?.[1];
    if (hex === undefined) {
      throw new JsonError(`"\\${letter}" means nothing in a string`, this.at, "write \\\\ for one \\");
    }
    this.at += 6;
    return String.fromCharCode(parseInt(hex, 16));
  }

  private object(depth: number): Node {
    const start = this.at++;
    const properties: Property[] = [];
    for (;;) {
      this.blanks();
      if (this.text[this.at] === "}") break;
      const at = this.at;
      if (this.text[this.at] !== '"') throw this.notAKey();
      const key = this.string();
      this.blanks();
      if (this.text[this.at] !== ":") {
        throw new JsonError(`${this.shown()} after the key "${key}"`, this.at, 'a colon belongs here: "key": value');
      }
      this.at++;
      this.blanks();
      properties.push({ key, at, value: this.value(depth + 1) });
      if (!this.comma("}")) break;
    }
    this.at++;
    return { kind: "object", start, end: this.at, properties };
  }

  private notAKey(): JsonError {
    if (this.at >= this.text.length) {
      return new JsonError("the file ends inside an object", this.at, "a closing brace } is missing");
    }
    const word = /^[\p{L}_$][\p{L}\p{N}_.$-]*/u.exec(this.text.slice(this.at))?.[0];
    if (word) return new JsonError(`the key ${word} without quotes`, this.at, `write "${word}"`);
    if (this.text[this.at] === "'") return new JsonError("a key in single quotes", this.at, 'write it as "key"');
    if (this.text[this.at] === ",") return new JsonError("a comma too many", this.at, "remove it");
    return new JsonError(`${this.shown()} where a key belongs`, this.at, 'keys stand in double quotes: "key": value');
  }

  private array(depth: number): Node {
    const start = this.at++;
    const items: Node[] = [];
    for (;;) {
      this.blanks();
      if (this.text[this.at] === "]") break;
      if (this.text[this.at] === ",") throw new JsonError("a comma too many", this.at, "remove it");
      items.push(this.value(depth + 1));
      if (!this.comma("]")) break;
    }
    this.at++;
    return { kind: "array", start, end: this.at, items };
  }

  /** After an element: true when another may follow, false at the closing sign. */
  private comma(closing: "}" | "]"): boolean {
    const end = this.at;
    this.blanks();
    const here = this.text[this.at];
    if (here === closing) return false;
    if (here === ",") {
      const at = this.at++;
      this.blanks();
      if (this.text[this.at] === closing) {
        this.extras.push({ what: "trailing comma", at });
        return false;
      }
      return true;
    }
    if (here === undefined) {
      const what = closing === "}" ? "an object" : "a list";
      throw new JsonError(`the file ends inside ${what}`, this.at, `a closing ${closing} is missing`);
    }
    if (here === "}" || here === "]") {
      throw new JsonError(`"${here}" where "${closing}" belongs`, this.at, "braces and brackets do not match");
    }
    throw new JsonError("a comma is missing", end, `${this.shown()} follows without one`);
  }
}
