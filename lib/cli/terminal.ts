/** What people see: text on standard output and error, colours where somebody looks, tables. */

type Writer = { writeSync(bytes: Uint8Array): number };

/**
 * What {@linkcode painter} writes for an escape character. Nobody outside of this process knows it, so what comes from files, links and
 * containers can style nothing.
 */
const ESCAPE = `\0${crypto.randomUUID()}`;

/** Clears a terminal and goes to its first line. */
export const CLEAR = `${ESCAPE}[H${ESCAPE}[2J`;

/** Control characters, C1's and those that turn the direction of writing included; not the ends of lines and tabs of our own. */
// deno-lint-ignore no-control-regex
const CONTROL = /[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

function escaped(text: string): string {
  return text.replace(CONTROL, escapeOf);
}

/** `\u001b`: what it is in JSON too, so that JSON stays JSON and says the same. */
function escapeOf(character: string): string {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
}

/** Text that came from elsewhere as part of one line: nothing in it ends that line. */
export function oneLine(text: string): string {
  return text.replace(/[\n\t\u2028\u2029]/g, escapeOf);
}

/** Writes text. Control characters that are not ours are escaped. A reader that went away ends nothing: the work counts. */
export function say(text: string, stream: Writer = Deno.stdout): void {
  let bytes = new TextEncoder().encode(text.split(ESCAPE).map(escaped).join("\x1b"));
  try {
    while (bytes.length > 0) bytes = bytes.subarray(stream.writeSync(bytes));
  } catch (error) {
    if (!(error instanceof Deno.errors.BrokenPipe)) throw error;
  }
}

/** The same on standard error. */
export function complain(text: string): void {
  say(text, Deno.stderr);
}

const CODES = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33, blue: 34, magenta: 35, cyan: 36 } as const;
/** How a piece of text looks. */
export type Style = keyof typeof CODES;
/** Puts a style on a piece of text, or leaves it as it is. */
export type Paint = (style: Style, text: string) => string;

/** Colours for a stream: only on a terminal that can show them, and never with NO_COLOR. */
export function painter(stream: { isTerminal(): boolean } = Deno.stdout): Paint {
  const coloured = stream.isTerminal() && !Deno.env.get("NO_COLOR") && Deno.env.get("TERM") !== "dumb";
  return coloured
    ? (style, text) => text === "" ? "" : `${ESCAPE}[${CODES[style]}m${text}${ESCAPE}[0m`
    : (_, text) => text;
}

const STYLES = new RegExp(`${ESCAPE}\\[\\d+m`, "g");

/** Columns that a text takes on a terminal. */
export function widthOf(text: string): number {
  return [...escaped(text.replace(STYLES, ""))].length;
}

/** Pads to a width, seen as a terminal shows it. */
export function pad(text: string, width: number): string {
  return text + " ".repeat(Math.max(0, width - widthOf(text)));
}

/** Rows in columns, two blanks between them; no blanks at the ends of lines. */
export function columns(given: readonly (readonly string[])[], indent = ""): string {
  const rows = given.map((row) => row.map(oneLine));
  const widths: number[] = [];
  for (const row of rows) row.forEach((cell, i) => widths[i] = Math.max(widths[i] ?? 0, widthOf(cell)));
  return rows.map((row) => indent + row.map((cell, i) => pad(cell, widths[i] ?? 0)).join("  ").trimEnd() + "\n").join(
    "",
  );
}

/** Breaks text into lines of at most `width` columns. */
export function wrapped(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    if (line !== "" && widthOf(line) + 1 + widthOf(word) > width) {
      lines.push(line);
      line = word;
    } else line = line === "" ? word : `${line} ${word}`;
  }
  return line === "" ? lines : [...lines, line];
}

/** A duration since `then` as people say it: `3 min`, `2 d`. */
export function ageOf(then: Date, now = new Date()): string {
  const seconds = Math.max(0, Math.round((now.getTime() - then.getTime()) / 1000));
  for (const [unit, size] of [["d", 86_400], ["h", 3_600], ["min", 60]] as const) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${seconds} s`;
}

/** JSON for scripts: two blanks of indentation, a newline at the end. */
export function jsonText(value: unknown): string {
  return `${JSON.stringify(value, undefined, 2)}\n`;
}
