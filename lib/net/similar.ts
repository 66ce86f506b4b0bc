/** Which of several names was meant? */

/**
 * The names that look like `wanted`, most alike first, three at most: another case, one inside of the other, or two
 * slips of the pen (Damerau–Levenshtein; one in names of up to four characters).
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(similarNames("eht0", ["lo", "eth0", "eth1", "cni0"]), ["eth0"]);
 * ```
 */
export function similarNames(wanted: string, names: readonly string[]): string[] {
  const most = wanted.length > 4 ? 2 : 1;
  return names.map((name) => ({ name, far: distance(wanted.toLowerCase(), name.toLowerCase()) }))
    .filter(({ name, far }) => far <= most || isInside(wanted, name))
    .sort((a, b) => a.far - b.far || (a.name < b.name ? -1 : 1))
    .slice(0, 3)
    .map(({ name }) => name);
}

/** Is one of the names in the other, and long enough to mean something? */
function isInside(a: string, b: string): boolean {
  const [short, long] = a.length < b.length ? [a, b] : [b, a];
  return short.length >= 3 && long.toLowerCase().includes(short.toLowerCase());
}

/** Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`. */
export function distance(a: string, b: string): number {
  let [before, last]: [number[], number[]] = [[], Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1;
      let least = Math.min(row[j - 1]! + 1, last[j]! + 1, last[j - 1]! + same);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) least = Math.min(least, before[j - 2]! + 1);
      row.push(least);
    }
    [before, last] = [last, row];
  }
  return last[b.length]!;
}
