/** One child process: how it is started, what it is given, how long it may take. Only this folder starts any. */
import { CALL_VARIABLE, callName, collectScratch as collect, openScratch, type Scratch } from "./scratch.ts";
import { located, missingTool, searchMoreFolders, toolEnvPath, toolPath } from "./tool_path.ts";

/** One command: `argv[0]` is a tool's plain name; it is looked up in the trusted folders, see {@linkcode toolPath}. */
export interface Command {
  readonly argv: readonly string[];
  /** Text for standard input, in parts. */
  readonly input?: readonly string[];
  /** It only looks, though its name does not say so. */
  readonly question?: boolean;
  /** A part of a plan that has been shown as a whole: the explainer does not show it once more. */
  readonly planned?: boolean;
  /** Why it is run: a short clause for people, printed by `cnibox explain`. */
  readonly why?: string;
  /** Time limit in milliseconds; {@linkcode DEFAULT_LIMIT_MS} or CNIBOX_TOOL_TIMEOUT if absent. */
  readonly limitMs?: number;
  /**
   * Whether what the command is for has come about; asked again and again. Then the command counts as ended, with
   * status 0 and without output. For those whom the kernel keeps long after that.
   */
  readonly done?: () => boolean;
}

/** What a command left behind. `code` is −1 when it could not be started or was killed by our time limit. */
export interface Output {
  readonly code: number;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * Every child process has to be done after this many milliseconds: well below the runtimes' own limits (2 to 4 min).
 */
export const DEFAULT_LIMIT_MS = 30_000;

/** The limit in force, in milliseconds: CNIBOX_TOOL_TIMEOUT names another one in seconds. */
export function toolLimit(): number {
  const seconds = Number(Deno.env.get("CNIBOX_TOOL_TIMEOUT") || NaN);
  return seconds > 0 ? seconds * 1000 : DEFAULT_LIMIT_MS;
}

/**
 * How long iptables and its kin wait for their lock, in seconds: two thirds of a process's limit, so that the tool
 * itself can say what it waited for.
 */
export function xtablesWait(): number {
  return Math.max(1, Math.floor(toolLimit() / 1500));
}

/** A tool that failed: what was run, how it ended, and its own words. */
export class CommandError extends Error {
  override readonly name = "CommandError";
  constructor(readonly command: Command, readonly output: Output, message: string) {
    super(message);
  }
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();
/**
 * Tools get a small environment: English messages, a sane PATH (nsenter starts tools by name), whose they are, nothing
 * else.
 */
export const toolEnv = () => ({ PATH: toolEnvPath(), LC_ALL: "C", [CALL_VARIABLE]: callName() });

/** Starts one command and waits for its end; code −1 when it could not be started or did not end in time. */
export async function startProcess(command: Command): Promise<Output> {
  const [tool = "", ...args] = command.argv;
  const inner = tool === "nsenter" ? command.argv[3] ?? "" : "";
  const limitMs = command.limitMs ?? toolLimit();
  const failed = (stderr: string): Output => ({ code: -1, signal: null, stdout: "", stderr });
  const program = located(tool);
  if (inner !== "") args[2] = located(inner);
  if (program === "" || (inner !== "" && args[2] === "")) return failed(missingTool(inner || tool));
  const path = toolEnvPath();
  try {
    const ended = await startOnce([program, ...args], { ...command, limitMs });
    // A program that was not found has done nothing.
    if (ended?.code === NOT_FOUND && searchMoreFolders()) return await startProcess(command);
    if (ended?.code === NOT_FOUND && inner !== "" && isMissing(inner)) return failed(missingTool(inner));
    return ended ?? failed(`${tool} did not end within ${limitMs / 1000} s`);
  } catch (error) {
    if (isMissing(tool)) return failed(missingTool(tool));
    // Looking for it has led to another folder.
    if (toolEnvPath() !== path) return await startProcess(command);
    return failed(`cannot run ${tool}: ${(error as Error).message}`);
  }
}

/** Undefined when it did not end in time. */
async function startOnce(
  argv: readonly string[],
  { input, limitMs, done }: { limitMs: number } & Pick<Command, "input" | "done">,
): Promise<Output | undefined> {
  const [program = "", ...args] = argv;
  const text = input?.join("") ?? "";
  const scratch = openScratch(text);
  if (scratch) return await throughNumbers(program, args, { scratch, limitMs, done });
  return await throughPipes(program, args, { input, limitMs });
}

/** What nsenter and shells end with when there is no such program. */
const NOT_FOUND = 127;

function isMissing(tool: string): boolean {
  return !tool.startsWith("/") && toolPath(tool) === "";
}

/**
 * The number that the runtime knows an open file by. A child process takes it for a standard stream: it is what the
 * runtime's own node:child_process hands on, which would take a millisecond to load.
 */
function numberOf(file: Deno.FsFile): number {
  const symbol = Object.getOwnPropertySymbols(file).find(({ description }) => description === "Deno.internal.rid");
  const number = symbol === undefined ? undefined : Reflect.get(file, symbol);
  if (typeof number !== "number") throw new TypeError("an open file has no number");
  return number;
}

/** The command with these files as its standard streams. */
async function throughNumbers(
  program: string,
  args: string[],
  { scratch, limitMs, done }: { scratch: Scratch; limitMs: number } & Pick<Command, "done">,
): Promise<Output | undefined> {
  try {
    let child: Deno.ChildProcess;
    try {
      // The type of Deno.Command knows words only.
      const numbers = scratch.streams.map(numberOf);
      const [stderr = "null", stdout = "null", stdin = "null"] = numbers as unknown as "null"[];
      child = new Deno.Command(program, { args, clearEnv: true, env: toolEnv(), stdin, stdout, stderr }).spawn();
    } finally {
      for (const file of scratch.streams) file.close();
    }
    const status = await within(limitMs, endOf(child, done), () => kill(child));
    return status && { code: status.code, signal: status.signal, ...scratch.read() };
  } finally {
    scratch.remove();
  }
}

/** The child's end, or the moment when it is done, seen a fourth of the time later at most. */
async function endOf(child: Deno.ChildProcess, done: Command["done"]): Promise<Deno.CommandStatus> {
  if (!done) return await child.status;
  let ended: Deno.CommandStatus | undefined;
  child.status.then((status) => ended = status);
  const started = performance.now();
  while (!ended && !done()) {
    // On a busy node it can take long, and looking costs as much as the work itself.
    const pause = Math.max(1, (performance.now() - started) / 4);
    let timer: ReturnType<typeof setTimeout> | undefined;
    await Promise.race([child.status, new Promise((resolve) => timer = setTimeout(resolve, pause))]);
    clearTimeout(timer);
  }
  return ended ?? { success: true, code: 0, signal: null };
}

/** Removes files of commands that nobody waits for any more, see {@linkcode collect}. */
export function collectScratch(): number {
  return collect(toolLimit());
}

async function throughPipes(
  path: string,
  args: string[],
  { input, limitMs }: { input: Command["input"]; limitMs: number },
): Promise<Output | undefined> {
  const child = new Deno.Command(path, {
    args,
    clearEnv: true,
    env: toolEnv(),
    stdin: input ? "piped" : "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const work = Promise.all([child.output(), input && feed(child, input)]);
  const ended = await within(limitMs, work, () => kill(child));
  if (!ended) return undefined;
  const { code, signal, stdout, stderr } = ended[0];
  return { code, signal, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
}

/**
 * What `work` gives, or undefined after `limitMs` milliseconds, when `late` was called. Nothing is waited for after
 * that: a killed child's own children may keep its output open for ever.
 */
export async function within<T>(limitMs: number, work: Promise<T>, late: () => void): Promise<T | undefined> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const alarm = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), limitMs);
  });
  try {
    const first = await Promise.race([work.then((value) => ({ value })), alarm]);
    if (first) return first.value;
    late();
    work.catch(() => {});
    return undefined;
  } finally {
    clearTimeout(timer);
  }
}

/** Writes the input; a child that ends early closes the pipe, and its exit status tells the rest. */
async function feed(child: Deno.ChildProcess, input: readonly string[]): Promise<void> {
  const writer = child.stdin.getWriter();
  await writer.write(encoder.encode(input.join(""))).catch(() => {});
  await writer.close().catch(() => {});
}

function kill(child: Deno.ChildProcess): void {
  try {
    child.kill("SIGKILL");
  } catch {
    // It ended by itself meanwhile.
  }
}
