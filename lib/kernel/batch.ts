/**
 * Lines for `ip`, `bridge` and `tc`. Here a line is literal words with single blanks between them; what the tools read
 * is quoted in one place, so no caller has to know their syntax, and no name can be read as anything else.
 */
import type { Output, Run } from "./run.ts";

/** Stands for a blank inside a word: no blank may be in a link's name, but in an alias or a path. */
const INNER_BLANK = "\x1f";

/**
 * A text as one word of a line, for texts that may hold blanks. Names of links need no such call.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(wordsOf(`link set dev eth0 alias ${oneWord("of pod 7")}`).at(-1), "of pod 7");
 * ```
 */
export function oneWord(text: string): string {
  return text.replaceAll(" ", INNER_BLANK);
}

/** The literal words of a line; a blank at its end stands in front of an empty one. */
export function wordsOf(line: string): string[] {
  return line.split(" ").map((word) => word.replaceAll(INNER_BLANK, " "));
}

/**
 * The line as `-batch` reads it, or undefined where that language cannot say it (iproute2 6.1: `#` begins a comment
 * even in quotes; a quote counts at the start of a word only, and ends at the next one like it; a backslash at the end
 * joins lines).
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(batchLine("link set dev 'a up"), `link set dev "'a" up`);
 * assertEquals(batchLine("link set dev a#b up"), undefined);
 * ```
 */
export function batchLine(line: string): string | undefined {
  if (/[#\n\0]/.test(line)) return undefined; // a NUL is not for a process either, whose error tells
  // The usual case needs no look at each word.
  if (!/['"\\\p{Cc}]| $| {2}/u.test(line)) return line;
  const words = wordsOf(line).map((word) => {
    if (/^[^\s'"]\S*$/.test(word) && !word.endsWith("\\")) return word;
    const quote = word.includes('"') ? "'" : '"';
    return word.includes(quote) ? undefined : `${quote}${word}${quote}`;
  });
  return words.includes(undefined) ? undefined : words.join(" ");
}

/**
 * Arguments and input of the one process that executes these lines of `tool`, options included; undefined when the
 * lines have to be given to a process each, see {@linkcode aloneArgv}.
 */
export function batchOf(
  tool: readonly string[],
  lines: readonly string[],
): { argv: string[]; input: string[] } | undefined {
  const read = lines.map(batchLine);
  return read.includes(undefined)
    ? undefined
    : { argv: [...tool, "-batch", "-"], input: [read.map((line) => `${line}\n`).join("")] };
}

/** The command that executes one line by itself. */
export function aloneArgv(tool: readonly string[], line: string): string[] {
  return [...tool, ...wordsOf(line)];
}

/**
 * Runs lines whose answers are read together. They stop at the first that fails, unless `tool` has the option `-force`;
 * the status is the last failure's.
 */
export async function runLines(run: Run, tool: readonly string[], lines: readonly string[]): Promise<Output> {
  const batch = batchOf(tool, lines);
  if (batch) return await run(batch);
  let all: Output = { code: 0, signal: null, stdout: "", stderr: "" };
  for (const [index, line] of lines.entries()) {
    const { code, signal, stdout, stderr } = await run({ argv: aloneArgv(tool, line) });
    const told = code === 0 ? stderr : `${stderr}Command failed -:${index + 1}\n`;
    all = { code: code || all.code, signal, stdout: all.stdout + stdout, stderr: all.stderr + told };
    if (code !== 0 && !tool.includes("-force")) break;
  }
  return all;
}

/** The lists that `ip -j` prints for questions of one batch, in order, without the `{}` for what a filter dropped. */
export function answersOf<T = Record<string, unknown>>(stdout: string): T[][] {
  return stdout.split("\n").filter((line) => line.startsWith("[")).map((line) =>
    (JSON.parse(line) as T[]).filter((one) => Object.keys(one as object).length > 0)
  );
}
