/**
 * JSON as Go's decoder reads it, where `JSON.parse` reads it otherwise: a key that is written twice, and numbers whose
 * text matters. Most configurations have neither, as ordinary_json.ts sees at once; this reader is for the others.
 */
import { isObject, merged, NumberText } from "./decode.ts";
import type { JsonObject } from "./types.ts";

/** A configuration, and where in it a key is written twice in one object. */
export interface Exact {
  readonly value: unknown;
  readonly repeated: readonly (readonly string[])[];
}

/** Go keeps these as maps: values below are not merged, and every number in them is a float. */
const MAPS: readonly string[] = ["prevResult", "delegate"];

/**
 * Reads valid JSON. The values of a key that is there twice become one, as by {@linkcode merged}. An integer that is
 * written with a fraction or an exponent, or is too large for a number, is a {@linkcode NumberText}. Throws RangeError
 * for text that is nested too deeply.
 */
export function readExactly(json: string): Exact {
  const token = /[{}[\],:]|"[^"\\]*(?:\\.[^"\\]*)*"|[^\s{}[\],:"]+/g;
  const next = () => token.exec(json)?.[0] ?? "";
  const repeated: (readonly string[])[] = [];

  const read = (first: string, path: readonly string[]): unknown => {
    if (first === "{") return readObject(path);
    if (first === "[") return readList(path);
    const value = JSON.parse(first);
    const isExact = typeof value !== "number" || MAPS.includes(path[0] ?? "") ||
      (/^-?\d+$/.test(first) && Number.isSafeInteger(value));
    return isExact ? value : new NumberText(first);
  };
  const readList = (path: readonly string[]): unknown[] => {
    const items: unknown[] = [];
    for (let word = next(); word !== "]"; word = next()) {
      if (word !== ",") items.push(read(word, [...path, `${items.length}`]));
    }
    return items;
  };
  const readObject = (path: readonly string[]): JsonObject => {
    const members = new Map<string, unknown>();
    for (let word = next(); word !== "}"; word = next()) {
      if (word === ",") continue;
      const key = JSON.parse(word) as string;
      next();
      const value = read(next(), [...path, key]);
      const isTwice = members.has(key);
      const whole = isTwice ? join(members.get(key), value, [...path, key]) : value;
      if (isTwice) repeated.push([...path, key]);
      // The place of the last one counts where a key is there in several spellings.
      members.delete(key);
      members.set(key, whole);
    }
    return Object.fromEntries(members);
  };
  return { value: read(next(), []), repeated };
}

function join(earlier: unknown, later: unknown, path: readonly string[]): unknown {
  if (!MAPS.includes(path[0] ?? "")) return merged(earlier, later, path.at(-1));
  return path.length === 1 && isObject(earlier) && isObject(later) ? { ...earlier, ...later } : later;
}
