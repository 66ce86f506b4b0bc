/**
 * Commands as data. A declaration says what a command is called, takes and does; help, completion and documentation are
 * made from it, and the arguments are read by it. The code of a command is loaded when it is run.
 */
// The runtime's own parser: it is strict, and unlike @std/cli's it never turns a name made of digits into a number.
import { parseArgs } from "node:util";
import type { ConfigError } from "../cni/member.ts";
import { distance } from "../net/similar.ts";
import { jsonDocument, say, wrapped } from "./terminal.ts";
import type { Invocation } from "./mod.ts";

/** One flag. Without `value` it is a switch. */
export interface Flag {
  readonly name: string;
  readonly short?: string;
  /** What stands for the value in help: `FILE`. */
  readonly value?: string;
  /** May be given several times. */
  readonly many?: boolean;
  readonly oneOf?: readonly string[];
  readonly about: string;
  /** What the value names, for completion. */
  readonly kind?: Kind;
}

/** What an argument names, for completion. */
export type Kind =
  | "network"
  | "netns"
  | "plugin"
  | "schema"
  | "container"
  | "pod"
  | "shown"
  | "file"
  | "folder"
  | "shell";

/** One positional argument. */
export interface Positional {
  readonly name: string;
  readonly about: string;
  readonly optional?: boolean;
  /** A flag that says the same: with it this argument may be left out. */
  readonly unless?: string;
  /** Takes all that follow. */
  readonly many?: boolean;
  readonly kind?: Kind;
  readonly oneOf?: readonly string[];
}

/** Groups in the order of the overview; each has a page in docs/commands/. */
export const GROUPS = {
  run: "Run networks",
  explain: "Explain and check configuration",
  show: "Look at a node",
  repair: "Repair a node",
  install: "Install",
} as const;
export type Group = keyof typeof GROUPS;

/** One command. */
export interface OperatorCommand {
  /** `add`, or two words: `ipam find`. */
  readonly name: string;
  readonly group: Group;
  /** One line, without a full stop. */
  readonly summary: string;
  /** Paragraphs of help. */
  readonly about?: readonly string[];
  readonly positional: readonly Positional[];
  readonly flags: readonly Flag[];
  /** Takes a command line of its own after `--`. */
  readonly rest?: Positional;
  readonly examples: readonly (readonly [why: string, line: string])[];
  /** Exit statuses besides those that all commands share. */
  readonly statuses?: readonly (readonly [status: number, meaning: string])[];
  /** Not in help and completion. */
  readonly hidden?: boolean;
  /** Loads the command's own file, and returns the exit status. */
  readonly run: (call: CommandCall) => Promise<number>;
}

/** What the function of a command gets. */
export interface CommandCall {
  readonly command: OperatorCommand;
  /** All arguments, for commands that take many. */
  readonly args: readonly string[];
  /** What came after `--`. */
  readonly rest: readonly string[];
  readonly invocation: Invocation;
  /** An argument by its name in the declaration. */
  arg(name: string): string | undefined;
  /** Is the switch on? */
  is(flag: string): boolean;
  /** Last value of a flag. */
  value(flag: string): string | undefined;
  /** All values of a flag. */
  values(flag: string): readonly string[];
}

/** Exit statuses; those of sysexits.h where it has one. */
export const status = {
  done: 0,
  failed: 1,
  usage: 64,
  badData: 65,
  unknown: 66,
  inTheWay: 73,
  tryAgain: 75,
  noRights: 77,
} as const;

/** Meanings of the exit statuses that every command has. */
export const STATUSES: readonly (readonly [number, string])[] = [
  [status.done, "done"],
  [status.failed, "it failed: a plugin, a tool or the system said no"],
  [status.usage, "wrong usage: an unknown flag, a missing argument"],
  [status.badData, "a configuration or a value that cannot be read"],
  [status.unknown, "no such network, namespace or container"],
  [status.tryAgain, "busy: try again later"],
  [status.noRights, "needs root"],
];

/** A failure with an exit status and lines that say what to do. */
export class CliError extends Error {
  override readonly name = "CliError";
  constructor(message: string, readonly status: number, readonly advice: readonly string[] = []) {
    super(message);
  }
}

/** Wrong usage of a command. */
export function usageError(message: string, ...advice: string[]): CliError {
  return new CliError(message, status.usage, advice);
}

/** What is wrong with a configuration, with its file. */
export const brokenText = ({ file, message }: ConfigError) =>
  file === "" || message.includes(file) ? message : `${file}: ${message}`;

/** Prints what a command found: a document for scripts where `--json` asks for it, else text for people. */
export function tell(call: CommandCall, document: Readonly<Record<string, unknown>>, text: () => string): void {
  say(call.is("json") ? jsonDocument(document) : text());
}

/** Every command has these. */
export const HELP: Flag = { name: "help", short: "h", about: "this text" };

/** Reads the arguments of a command by its declaration. Throws a {@linkcode CliError}. */
export function parseCall(command: OperatorCommand, args: readonly string[], invocation: Invocation): CommandCall {
  const at = command.rest ? args.indexOf("--") : -1;
  const own = at < 0 ? args : args.slice(0, at);
  const rest = at < 0 ? [] : args.slice(at + 1);
  const flags = [...command.flags, HELP];
  const { values, positionals, tokens } = strictly(command, flags, own);
  let named: Readonly<Record<string, string | undefined>> = {};
  if (values["help"] !== true) {
    checkValues(command, flags, tokens);
    named = assigned(command, positionals, (flag) => values[flag] !== undefined);
    if (command.rest && !command.rest.optional && rest.length === 0) {
      throw usageError(`${command.rest.name} is missing: it comes after --`, usageLine(command));
    }
  }
  const list = (name: string): readonly string[] => {
    const value = values[name];
    return Array.isArray(value) ? value.map(String) : typeof value === "string" ? [value] : [];
  };
  return {
    command,
    args: positionals,
    rest,
    invocation,
    arg: (name) => named[name],
    is: (name) => values[name] === true,
    value: (name) => list(name).at(-1),
    values: list,
  };
}

type Tokens = readonly { kind: string; name?: string; value?: string | undefined }[];

function strictly(command: OperatorCommand, flags: readonly Flag[], args: readonly string[]): {
  values: Record<string, unknown>;
  positionals: string[];
  tokens: Tokens;
} {
  const options: Record<string, { type: "string" | "boolean"; short?: string; multiple?: boolean }> = {};
  for (const { name, short, value, many } of flags) {
    options[name] = {
      type: value === undefined ? "boolean" : "string",
      ...(short && { short }),
      multiple: many ?? false,
    };
  }
  try {
    return parseArgs({ args: [...args], options, allowPositionals: true, tokens: true, strict: true }) as ReturnType<
      typeof strictly
    >;
  } catch (error) {
    const { code, message } = error as Error & { code?: string };
    if (code === "ERR_PARSE_ARGS_UNKNOWN_OPTION") {
      const given = /'(-[^']*)'/.exec(message)?.[1] ?? "";
      const near = nearest(given.replace(/^-+/, ""), flags.map(({ name }) => name));
      throw usageError(
        `unknown flag ${given}`,
        ...(near ? [`did you mean --${near}?`] : []),
        `cnibox ${command.name} --help lists the flags`,
      );
    }
    const flag = /'(?:-\w, )?--([\w-]+)/.exec(message)?.[1] ?? "";
    const declared = flags.find(({ name }) => name === flag);
    if (declared?.value) throw usageError(`--${flag} needs a value: --${flag} ${declared.value}`);
    throw usageError(declared ? `--${flag} takes no value` : message);
  }
}

function checkValues(command: OperatorCommand, flags: readonly Flag[], tokens: Tokens): void {
  for (const { name, oneOf, many } of flags) {
    const given = tokens.filter((token) => token.kind === "option" && token.name === name);
    if (given.length > 1 && !many && given.some(({ value }) => value !== undefined)) {
      throw usageError(`--${name} is given ${given.length} times`, usageLine(command));
    }
    const wrong = oneOf && given.find(({ value }) => !oneOf.includes(value ?? ""));
    if (wrong) throw usageError(`--${name} "${wrong.value}" is none of ${oneOf.join(", ")}`);
  }
}

/** Arguments by their names. */
function assigned(
  command: OperatorCommand,
  given: readonly string[],
  has: (flag: string) => boolean,
): Record<string, string | undefined> {
  let { positional } = command;
  // What a flag says already is left out, as long as there are too few words for all.
  for (const one of command.positional) {
    const spare = one.unless !== undefined && has(one.unless);
    const needed = positional.filter(({ optional }) => !optional).length;
    if (spare && given.length < needed) positional = positional.filter((other) => other !== one);
  }
  const missing = positional.filter(({ optional }, index) => !optional && given[index] === undefined);
  if (missing.length > 0) {
    const names = missing.map(({ name }) => name).join(" and ");
    const others = missing.flatMap(({ name, unless }) => unless ? [`--${unless} stands for ${name} too`] : []);
    throw usageError(`${names} ${missing.length === 1 ? "is" : "are"} missing`, usageLine(command), ...others);
  }
  if (given.length > positional.length && !positional.at(-1)?.many) {
    const extra = given.slice(positional.length).map((word) => `"${word}"`).join(" ");
    throw usageError(`too many arguments: ${extra}`, usageLine(command));
  }
  positional.forEach(({ name, oneOf }, index) => {
    const value = given[index];
    if (value === undefined || !oneOf || oneOf.includes(value)) return;
    throw usageError(`${name} "${value}" is none of ${oneOf.join(", ")}`, ...didYouMean(value, oneOf));
  });
  return Object.fromEntries(positional.map(({ name }, index) => [name, given[index]]));
}

/** `usage: cnibox add [FLAGS] NETWORK NETNS` */
export function usageLine(command: OperatorCommand): string {
  const parts = command.positional.map(({ name, optional, many }) => {
    const shown = many ? `${name}…` : name;
    return optional ? `[${shown}]` : shown;
  });
  if (command.rest) parts.push(command.rest.optional ? `[-- ${command.rest.name}]` : `-- ${command.rest.name}`);
  return ["usage: cnibox", command.name, command.flags.length > 0 ? "[FLAGS]" : "", ...parts].filter((part) =>
    part !== ""
  )
    .join(" ");
}

/** A flag as help shows it: `-p, --publish PORT`. */
export function flagText({ name, short, value }: Flag): string {
  return `${short ? `-${short}, ` : ""}--${name}${value ? ` ${value}` : ""}`;
}

/** Columns of a help text where the terminal has room for them. */
export const HELP_WIDTH = 100;

/** The text of `--help`. */
export function helpText(command: OperatorCommand, width = HELP_WIDTH): string {
  const described = (rows: readonly (readonly [string, string])[]) => describedIn(width, rows);
  const head = wrapped(`cnibox ${command.name}: ${command.summary}`, width).join("\n");
  const parts = [`${head}\n`, `${usageLine(command)}\n`];
  const named = [...command.positional, ...(command.rest ? [command.rest] : [])];
  if (named.length > 0) parts.push(described(named.map(({ name, about }) => [name, about])));
  for (const paragraph of command.about ?? []) parts.push(`${wrapped(paragraph, width).join("\n")}\n`);
  parts.push(`flags:\n${described([...command.flags, HELP].map((flag) => [flagText(flag), flagAbout(flag)]))}`);
  const examples = command.examples.map(([why, line]) => `  # ${why}\n  ${line}\n`).join("");
  if (examples !== "") parts.push(`${command.examples.length === 1 ? "example" : "examples"}:\n${examples}`);
  const own = command.statuses ?? [];
  const shared = STATUSES.filter(([number]) => !own.some(([other]) => other === number));
  const statuses = [...own, ...shared].sort(([a], [b]) => a - b);
  parts.push(`exit status:\n${described(statuses.map(([number, meaning]) => [`${number}`, meaning]))}`);
  return parts.join("\n");
}

/** What a flag does, with the words it takes. */
export function flagAbout({ about, oneOf, many }: Flag): string {
  return `${about}${oneOf ? ` (${oneOf.join(", ")})` : ""}${many ? "; may be given several times" : ""}`;
}

function describedIn(columns: number, rows: readonly (readonly [string, string])[]): string {
  const width = Math.min(28, Math.max(...rows.map(([name]) => name.length)));
  return rows.map(([name, about]) => {
    const lines = wrapped(about, Math.max(20, columns - 4 - width));
    const [first = "", ...more] = lines;
    const head = name.length > width
      ? `  ${name}\n  ${" ".repeat(width)}  ${first}`
      : `  ${name.padEnd(width)}  ${first}`;
    return [head, ...more.map((line) => `  ${" ".repeat(width)}  ${line}`)].join("\n") + "\n";
  }).join("");
}

/** The word that somebody who typed `given` most likely meant; undefined when none is near. */
export function nearest(given: string, words: readonly string[]): string | undefined {
  const plain = (word: string) => word.toLowerCase().replace(/[-_]/g, "");
  const wanted = plain(given);
  // The same parts in another order: startRange for rangeStart.
  const parts = (word: string) => word.split(/[-_]|(?=[A-Z])/).map((part) => part.toLowerCase()).sort().join(" ");
  const turned = parts(given).includes(" ") ? words.find((word) => parts(word) === parts(given)) : undefined;
  if (turned !== undefined) return turned;
  let best: string | undefined;
  let least = Infinity;
  for (const word of words) {
    const far = distance(wanted, plain(word));
    if (far < least) [best, least] = [word, far];
  }
  if (best === undefined) return undefined;
  if (least <= Math.max(1, Math.floor(Math.max(wanted.length, plain(best).length) / 3))) return best;
  // Written out, or cut short: ipMasquerade for ipMasq, publ for publish.
  const long = words.filter((word) => plain(word).length >= 4 && wanted.startsWith(plain(word)));
  const short = words.filter((word) => wanted.length >= 3 && plain(word).startsWith(wanted));
  return long.sort((a, b) => b.length - a.length)[0] ?? short.sort((a, b) => a.length - b.length)[0];
}

/** Advice for somebody who typed a word that is not there: which one was meant, where one is near. */
export function didYouMean(given: string, words: readonly string[]): string[] {
  const near = nearest(given, words);
  return near ? [`did you mean ${near}?`] : [];
}
