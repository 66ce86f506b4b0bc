/** What `JSON.parse` cannot tell: a key that is written twice in one object, where the last one silently wins. */

/**
 * A key that occurs twice in the object below the top-level key `name` (in any case, as configurations are read);
 * undefined when there is none. `json` has to be valid JSON.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(duplicateKey('{"sysctl": {"a": "1", "a": "2"}}', "sysctl"), "a");
 * assertEquals(duplicateKey('{"a": 1, "a": 2, "sysctl": {"b": "b"}}', "sysctl"), undefined);
 * ```
 */
export function duplicateKey(json: string, name: string): string | undefined {
  let depth = 0;
  let before = "";
  let inside = false;
  let seen = new Set<string>();
  for (const [token] of json.matchAll(/"(?:[^"\\]|\\.)*"|[{}[\],:]/g)) {
    if (token.startsWith('"')) {
      const isKey = before === "{" || before === ",";
      if (isKey && depth === 1) inside = (JSON.parse(token) as string).toLowerCase() === name.toLowerCase();
      if (isKey && depth === 2 && inside) {
        const key = JSON.parse(token) as string;
        if (seen.has(key)) return key;
        seen.add(key);
      }
      before = "";
      continue;
    }
    if (token === "{" || token === "[") depth++;
    if (token === "}" || token === "]") depth--;
    if (token === "{" && depth === 2) seen = new Set();
    if (token === "[" && depth === 2) inside = false;
    before = token;
  }
  return undefined;
}
