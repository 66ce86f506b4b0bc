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
    ? (style, text) => text === "" ? "" : `${ESCAPE}[${CODES[style]}m${text}${RESET}`
    : (_, text) => text;
}

const STYLES = new RegExp(`${ESCAPE}\\[\\d+m`, "g");

/** Columns that a text takes on a terminal. */
export function widthOf(text: string): number {
  return [...escaped(text.replace(STYLES, ""))].length;
}

/** Rows in columns, two blanks between them; no blanks at the ends of lines. */
export function columns(given: readonly (readonly string[])[], indent = ""): string {
  const rows = given.map((row) => row.map(oneLine));
  const widths: number[] = [];
  for (const row of rows) row.forEach((cell, i) => widths[i] = Math.max(widths[i] ?? 0, widthOf(cell)));
  const padded = (cell: string, i: number) => cell + " ".repeat((widths[i] ?? 0) - widthOf(cell));
  return rows.map((row) => `${indent}${row.map(padded).join("  ").trimEnd()}\n`).join("");
}

/** Columns of the terminal, or of $COLUMNS; undefined where neither says. */
export function terminalWidth(): number | undefined {
  const given = Number(variable("COLUMNS"));
  if (Number.isInteger(given) && given > 0) return given;
  try {
    // A terminal that nobody told its size has 0 columns.
    return Deno.stdout.isTerminal() ? Deno.consoleSize().columns || undefined : undefined;
  } catch {
    return undefined;
  }
}

/** A column is never made narrower than this. */
const NARROWEST = 6;
/** What is cut to less than this tells nothing. */
const LEGIBLE = 12;
/** Nor do names, which are in the first column. */
const LEGIBLE_NAME = 24;

/** How a table is shown. */
export interface TableOptions {
  /** Cells are cut to fit into this many columns; they are whole when it is undefined. */
  readonly width?: number | undefined;
  readonly indent?: string;
  readonly headings?: boolean;
  /** Titles of the columns that are left out, the first one first, where the table gets too narrow to be read. */
  readonly dispensable?: readonly string[];
}

/** Rows below dim titles, cut to fit: the widest column gives first, and `…` stands for what is left out. */
export function table(
  titles: readonly string[],
  rows: readonly (readonly string[])[],
  { width, indent = "", headings = titles.length > 0, dispensable = [] }: TableOptions = {},
): string {
  const paint = painter();
  const all = [...(headings ? [titles.map((title) => paint("dim", title))] : []), ...rows].map((row) =>
    row.map(oneLine)
  );
  const whole: number[] = [];
  for (const row of all) row.forEach((cell, at) => whole[at] = Math.max(whole[at] ?? 0, widthOf(cell)));
  const widths = width === undefined ? whole : fitted(whole, width - indent.length);
  const [first, ...others] = dispensable;
  const isIllegible = (one: number, at: number) => (widths[at] ?? 0) < Math.min(one, at === 0 ? LEGIBLE_NAME : LEGIBLE);
  if (first !== undefined && whole.some(isIllegible)) {
    const left = <T>(row: readonly T[]) => row.filter((_, at) => titles[at] !== first);
    return table(left(titles), rows.map(left), { width, indent, headings, dispensable: others });
  }
  return columns(
    all.map((row) => row.map((cell, at) => shortened(cell, widths[at] ?? 0, { middle: at === 0 }))),
    indent,
  );
}

/** Widths of columns that fit side by side, two blanks between them. */
function fitted(whole: readonly number[], width: number): number[] {
  let widths = [...whole];
  const excess = () => 2 * (widths.length - 1) + widths.reduce((sum, one) => sum + one, 0) - width;
  while (excess() > 0) {
    const widest = Math.max(...widths);
    if (widest <= NARROWEST) break;
    const next = Math.max(NARROWEST, ...widths.filter((one) => one < widest));
    const sharing = widths.filter((one) => one === widest).length;
    const cut = Math.min(widest - next || 1, Math.ceil(excess() / sharing));
    widths = widths.map((one) => one === widest ? Math.max(NARROWEST, one - cut) : one);
  }
  return widths;
}

/** Text of several styles with `…` for what is left out: the end, or the middle of a pod's name, whose end tells it. */
function shortened(text: string, width: number, { middle = false } = {}): string {
  if (widthOf(text) <= width) return text;
  if (middle && text.includes("/") && !text.includes(ESCAPE)) {
    const characters = [...escaped(text)];
    const end = Math.floor(width / 2);
    return `${characters.slice(0, width - 1 - end).join("")}…${characters.slice(-end).join("")}`;
  }
  let shown = "";
  let style = "";
  let left = width - 1;
  for (const part of text.split(STYLE)) {
    if (part.startsWith(ESCAPE)) {
      style = part === RESET ? "" : part;
      shown += part;
      continue;
    }
    const characters = [...escaped(part)];
    shown += characters.slice(0, left).join("");
    if (characters.length > left) return `${shown}…${style === "" ? "" : RESET}`;
    left -= characters.length;
  }
  return shown;
}

/** `1 rule`, `2 rules` */
export const counted = (number: number, word: string) => `${number} ${word}${number === 1 ? "" : "s"}`;

const STYLE = new RegExp(`(${ESCAPE}\\[\\d+m)`);
const RESET = `${ESCAPE}[0m`;

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

/** Text behind `head`, broken into lines that fit; those after the first begin below the first word. */
export function hanging(head: string, text: string, width = terminalWidth()): string[] {
  if (width === undefined) return [`${head}${text}`];
  const words = text.trimStart();
  const before = head + " ".repeat(text.length - words.length);
  const indent = " ".repeat(widthOf(before));
  return wrapped(words, Math.max(LEGIBLE, width - indent.length)).map((line, at) =>
    `${at === 0 ? before : indent}${line}`
  );
}

/** A line of any length, cut to fit. */
export function cut(line: string, width = terminalWidth()): string {
  return width === undefined ? line : shortened(line, width);
}

/** Titles and what belongs to each, a line or several. */
export function sections(all: readonly (readonly [title: string, lines: readonly string[]])[], indent = ""): string {
  const paint = painter();
  const shown = all.filter(([, lines]) => lines.length > 0);
  const width = Math.max(0, ...shown.map(([title]) => title.length));
  const blank = " ".repeat(width);
  const rows = shown.flatMap(([title, lines]) =>
    lines.flatMap((line, at) => {
      const head = at === 0 ? paint("dim", title) + " ".repeat(width - title.length) : blank;
      return hanging(`${indent}${head}  `, oneLine(line));
    })
  );
  return rows.map((row) => `${row.trimEnd()}\n`).join("");
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

/** The same in one line, for documents that come one after the other. */
export function jsonLine(content: Readonly<Record<string, unknown>>): string {
  return `${JSON.stringify({ version: DOCUMENT_VERSION, ...content })}\n`;
}

/** Order of names for people: `pod2` before `pod10`. */
export function natural(a: string, b: string): number {
  return COLLATOR.compare(a, b);
}

const COLLATOR = new Intl.Collator("en", { numeric: true });
