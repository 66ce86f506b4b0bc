/**
 * How iproute2 6.1 reads a line of a batch (getcmdline and makeargs in its lib/utils.c): for tests of what it is told.
 */

/** The words of one line, which holds no line feed. */
export function readByIproute2(line: string): string[] {
  const words: string[] = [];
  let rest = line.replace(/#.*/s, "").replace(/\\$/, "");
  for (rest = rest.trimStart(); rest !== ""; rest = rest.trimStart()) {
    const quote = /^["']/.exec(rest)?.[0];
    const end = quote ? rest.indexOf(quote, 1) : rest.search(/\s|$/);
    if (end < 0) throw new Error("Unterminated quoted string");
    words.push(rest.slice(quote ? 1 : 0, end));
    rest = rest.slice(quote ? end + 1 : end);
  }
  return words;
}

/** Every printable character of ASCII but the blank. */
export const PRINTABLE: readonly string[] = Array.from({ length: 94 }, (_, at) => String.fromCharCode(0x21 + at));
