/** Errors of the protocol: what a runtime gets on standard output when a call fails. */
import { type Command, CommandError, isOverdue } from "../kernel/run.ts";

/** Error codes of the CNI specification 1.1.0, and those of the reference library. */
export const code = {
  unknown: 0,
  incompatibleVersion: 1,
  unsupportedField: 2,
  unknownContainer: 3,
  environment: 4,
  io: 5,
  decode: 6,
  config: 7,
  netns: 8,
  tryAgain: 11,
  notAvailable: 50,
  limited: 51,
  internal: 999,
} as const;

/** An error with the three parts that go on the wire. `msg` keeps the reference's words; `details` say what to do. */
export class CniError extends Error {
  override readonly name = "CniError";
  constructor(readonly code: number, readonly msg: string, readonly details = "") {
    super(details === "" ? msg : `${msg}; ${details}`);
  }
}

/** An error of code 999: what goes wrong while a plugin works, and in the reference nearly every mistake of a user. */
export function internal(msg: string, details = ""): CniError {
  return new CniError(code.internal, msg, details);
}

/** An error of code 7: a configuration that cannot be meant. */
export function badConfig(msg: string, details = ""): CniError {
  return new CniError(code.config, msg, details);
}

/**
 * Any thrown value as an error of the protocol: plain errors get code 999, as in the reference; a tool that hangs code
 * 11.
 */
export function toCniError(error: unknown): CniError {
  if (error instanceof CniError) return error;
  if (error instanceof CommandError) {
    return new CniError(isOverdue(error) ? code.tryAgain : code.internal, error.message, commandDetails(error));
  }
  if (error instanceof Error) return internal(error.message);
  return internal(String(error));
}

/**
 * Puts what was being done in front of a failure: `during("failed to set \"eth0\" up", …)`. An error that already is
 * one of the protocol passes unchanged, as in the reference.
 */
export async function during<T>(doing: string, work: Promise<T> | (() => Promise<T> | T)): Promise<T> {
  try {
    return await (typeof work === "function" ? work() : work);
  } catch (error) {
    throw failing(doing, error);
  }
}

/** The error for a failure while `doing`; the wrapping half of {@linkcode during}. */
export function failing(doing: string, error: unknown): CniError {
  if (error instanceof CniError) return error;
  const plain = toCniError(error);
  return new CniError(plain.code, `${doing}: ${plain.msg}`, plain.details);
}

/** A command line without the text of a script: those are ours, and tell an operator nothing. */
function shownCommand({ argv }: Command): string {
  const at = argv.findIndex((word, index) => word === "-c" && /^(.*\/)?sh$/.test(argv[index - 1] ?? ""));
  return (at < 0 ? argv : argv.slice(0, at)).join(" ");
}

function commandDetails(error: CommandError): string {
  const { command, output } = error;
  if (isOverdue(error)) {
    return `${shownCommand(command)}: it was killed; CNIBOX_TOOL_TIMEOUT sets another limit, in seconds`;
  }
  const how = output.signal ? `killed by ${output.signal}` : output.code < 0 ? "not run" : `exit status ${output.code}`;
  const words = output.stderr.trim().split("\n").slice(0, 6).join("; ");
  return `${shownCommand(command)}: ${how}${words === "" ? "" : `: ${words}`}`;
}

/** STATUS of something that the next ADD needs: a failure gets code 50. */
export async function needed(work: () => Promise<unknown> | unknown): Promise<void> {
  try {
    await work();
  } catch (error) {
    const { msg, details } = toCniError(error);
    throw new CniError(code.notAvailable, msg, details);
  }
}

/**
 * Runs every group of jobs, one group after the other, the jobs of a group side by side; a failure stops nothing. At
 * the end the first failure is thrown, with the texts of the others in `details`: DEL and GC must clean up as much as
 * can be.
 */
export async function all(...groups: readonly (readonly (() => Promise<unknown> | unknown)[])[]): Promise<void> {
  const errors: CniError[] = [];
  for (const group of groups) {
    const ends = await Promise.allSettled(group.map(async (job) => await job()));
    for (const end of ends) if (end.status === "rejected") errors.push(toCniError(end.reason));
  }
  const [first, ...others] = errors;
  if (first === undefined) return;
  if (others.length === 0) throw first;
  const rest = others.map((other) => other.message).join("\n");
  throw new CniError(first.code, first.msg, first.details === "" ? rest : `${first.details}\n${rest}`);
}

/**
 * Groups for {@linkcode all}: these jobs side by side, but one after the other while a call is explained, since what is
 * printed then is read from top to bottom.
 */
export function groupsFor<T>(call: { readonly explain?: unknown }, jobs: readonly T[]): (readonly T[])[] {
  return isInTurn(call) ? jobs.map((job) => [job]) : [jobs];
}

/** Must work that could go side by side be done one after the other? */
export function isInTurn(call: { readonly explain?: unknown }): boolean {
  return call.explain !== undefined;
}

/**
 * Both answers, once both jobs have ended: whatever was done is known before it is undone. The first job starts first,
 * and its failure counts before the other's.
 */
export async function both<A, B>(
  call: { readonly explain?: unknown },
  first: () => Promise<A>,
  second: () => Promise<B>,
): Promise<[A, B]> {
  const ends: PromiseSettledResult<A | B>[] = [];
  for (const group of groupsFor<() => Promise<A | B>>(call, [first, second])) {
    ends.push(...await Promise.allSettled(group.map((job) => job())));
  }
  const answers = ends.map((end) => {
    if (end.status === "rejected") throw end.reason;
    return end.value;
  });
  return answers as [A, B];
}

/** A string in double quotes as Go's %q prints it; the reference's texts use it. */
export function goQuote(text: string): string {
  // JSON's escapes differ from Go's only for control characters.
  return JSON.stringify(text).replace(/\\(u00[0-9a-f]{2}|.)/g, (whole, rest: string) => {
    if (rest === "b" || rest === "f") return rest === "b" ? "\\b" : "\\f";
    return rest.startsWith("u00") ? `\\x${rest.slice(3)}` : whole;
  });
}
