/** What people see: text on standard output and error, colours where somebody looks, tables. */

type Writer = { writeSync(bytes: Uint8Array): number };

/**
 * What {@linkcode painter} writes for an escape character. Nobody outside of this process knows it, so what comes from
 * files, links and containers can style nothing.
 */
const ESCAPE = `\0${crypto.randomUUID()}`;

/** Clears a terminal and goes to its first line. */
export const CLEAR = `${ESCAPE}[H${ESCAPE}[2J`;

/**
 * Control characters, C1's and those that turn the direction of writing included; not the ends of lines and tabs of our
 * own.
 */
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

/**
 * Writes text. Control characters that are not ours are escaped. A reader that went away ends nothing: the work counts.
 */
export function say(text: string, stream: Writer = Deno.stdout): void {
  if (lineShown) statusLine("");
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

/** Whether the last line of the terminal is one of {@linkcode statusLine}. */
let lineShown = false;

/** A line on the terminal behind standard error, in place of the one before; whatever is written next replaces it. */
export function statusLine(text: string): void {
  if (text === "" && !lineShown) return;
  lineShown = false;
  // A line that wraps could not be removed. Some terminals do not know their size.
  const columns = Deno.consoleSize().columns || 80;
  complain(`${ESCAPE}[G${ESCAPE}[K${shortened(oneLine(text), Math.max(NARROWEST, columns - 1))}`);
  lineShown = text !== "";
}

const variable = (name: string) => Deno.env.get(name) ?? "";

const CODES = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33, blue: 34, magenta: 35, cyan: 36 } as const;
/** How a piece of text looks. */
export type Style = keyof typeof CODES;
/** Puts a style on a piece of text, or leaves it as it is. */
export type Paint = (style: Style, text: string) => string;

/**
 * Colours for a stream: on a terminal that can show them, or where FORCE_COLOR or CLICOLOR_FORCE asks for them; never
 * with NO_COLOR.
 */
export function painter(stream: { isTerminal(): boolean } = Deno.stdout): Paint {
  const isForced = ["FORCE_COLOR", "CLICOLOR_FORCE"].some((name) => !["", "0", "false"].includes(variable(name)));
  const isCapable = stream.isTerminal() && variable("TERM") !== "dumb";
  return variable("NO_COLOR") === "" && (isForced || isCapable)
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

/** Columns of the terminal, or of $COLUMNS; undefined where neither says. */
export function terminalWidth(): number | undefined {
  const given = Number(variable("COLUMNS"));
  if (Number.isInteger(given) && given > 0) return given;
  try {
    return Deno.stdout.isTerminal() ? Deno.consoleSize().columns : undefined;
  } catch {
    return undefined;
  }
}

/** A column is never made narrower than this. */
const NARROWEST = 6;

/** How a table is shown. */
export interface TableOptions {
  /** Cells are cut to fit into this many columns; they are whole when it is undefined. */
  readonly width?: number | undefined;
  readonly indent?: string;
}

/** Rows below dim titles, cut to fit: the widest column gives first, and `…` stands for what is left out. */
export function table(
  titles: readonly string[],
  rows: readonly (readonly string[])[],
  { width, indent = "" }: TableOptions = {},
): string {
  const paint = painter();
  const all = [...(titles.length > 0 ? [titles.map((title) => paint("dim", title))] : []), ...rows].map((row) =>
    row.map(oneLine)
  );
  const widths: number[] = [];
  for (const row of all) row.forEach((cell, at) => widths[at] = Math.max(widths[at] ?? 0, widthOf(cell)));
  const gaps = indent.length + 2 * (widths.length - 1);
  const total = () => gaps + widths.reduce((sum, one) => sum + one, 0);
  while (width !== undefined && total() > width) {
    const widest = Math.max(...widths);
    if (widest <= NARROWEST) break;
    const next = Math.max(NARROWEST, ...widths.filter((one) => one < widest));
    const sharing = widths.filter((one) => one === widest).length;
    const cut = Math.min(widest - next || 1, Math.ceil((total() - width) / sharing));
    widths.forEach((one, at) => widths[at] = one === widest ? Math.max(NARROWEST, one - cut) : one);
  }
  return columns(all.map((row) => row.map((cell, at) => shortened(cell, widths[at] ?? 0))), indent);
}

const STYLED = new RegExp(`^(${ESCAPE}\\[\\d+m)([^]*)(${ESCAPE}\\[0m)$`);

function shortened(cell: string, width: number): string {
  if (widthOf(cell) <= width) return cell;
  const [, before = "", text = cell, after = ""] = STYLED.exec(cell) ?? [];
  return `${before}${[...escaped(text)].slice(0, width - 1).join("")}…${after}`;
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

/**
 * Version of the documents that commands print with `--json`: it grows when one changes so that its readers have to.
 */
const DOCUMENT_VERSION = 1;

/** A document for scripts: an object that says which version of its kind it is. */
export function jsonDocument(content: Readonly<Record<string, unknown>>): string {
  return jsonText({ version: DOCUMENT_VERSION, ...content });
}

/** Order of names for people: `pod2` before `pod10`. */
export function natural(a: string, b: string): number {
  return COLLATOR.compare(a, b);
}

const COLLATOR = new Intl.Collator("en", { numeric: true });
