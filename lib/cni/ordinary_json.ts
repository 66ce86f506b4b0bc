/** Tells at small cost whether a text is one of the few for which exact_json.ts is needed. */

/** Does `JSON.parse` give of this text what Go's decoder would? `value` is what it gave. */
export function isOrdinary(json: string, value: unknown): boolean {
  const bare = json.replace(/"[^"\\]*(?:\\.[^"\\]*)*"/g, "");
  // One colon for every key that is written.
  return !/\d[.eE]|\d{16}/.test(bare) && bare.split(":").length - 1 === countKeys(value);
}

function countKeys(value: unknown): number {
  if (typeof value !== "object" || value === null) return 0;
  let count = Array.isArray(value) ? 0 : Object.keys(value).length;
  for (const one of Object.values(value)) count += countKeys(one);
  return count;
}
