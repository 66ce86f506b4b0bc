/**
 * The only place that starts a process. A `Run` is a value that says where a command runs: on the host, or inside a
 * network namespace. Nothing here changes the namespace of this process.
 */
import { CALL_VARIABLE, callName, collectScratch as collect, openScratch, type Scratch } from "./scratch.ts";
import { located, missingTool, searchMoreFolders, toolEnvPath, toolPath } from "./tool_path.ts";

export { SCRATCH } from "./scratch.ts";
export { forgetTools, missingTool, toolPath } from "./tool_path.ts";

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
   * Whether what the command is for has come about; asked again and again. Then the command counts as ended, with status 0 and without
   * output. For those whom the kernel keeps long after that.
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

/** Starts one command and waits for its end. Never throws for an exit status; throws {@linkcode CommandError} when it
 * could not be started at all or did not end in time. */
export type Run = (command: Command) => Promise<Output>;

/** Every child process has to be done after this many milliseconds: well below the runtimes' own limits (2 to 4 min). */
export const DEFAULT_LIMIT_MS = 30_000;

/** The limit in force, in milliseconds: CNIBOX_TOOL_TIMEOUT names another one in seconds. */
export function toolLimit(): number {
  const seconds = Number(Deno.env.get("CNIBOX_TOOL_TIMEOUT") || NaN);
  return seconds > 0 ? seconds * 1000 : DEFAULT_LIMIT_MS;
}

/**
 * How long iptables and its kin wait for their lock, in seconds: two thirds of a process's limit, so that the tool itself can
 * say what it waited for.
 */
export function xtablesWait(): number {
  return Math.max(1, Math.floor(toolLimit() / 1500));
}

/** Did this command not end in time? */
export function isOverdue(error: unknown): boolean {
  return error instanceof CommandError && error.output.code === -1 && OVERDUE.test(error.output.stderr);
}

const OVERDUE = / did not end within [0-9.]+ s$/;

/** A tool that failed: what was run, how it ended, and its own words. */
export class CommandError extends Error {
  override readonly name = "CommandError";
  constructor(readonly command: Command, readonly output: Output, message: string) {
    super(message);
  }
}

/** Called around every child: before it starts (may throw, to stop work after SIGTERM) and when it ended. */
export interface RunHooks {
  before?(command: Command): void;
  after?(command: Command, output: Output, ms: number): void;
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();
/** Tools get a small environment: English messages, a sane PATH (nsenter starts tools by name), whose they are, nothing else. */
export const toolEnv = () => ({ PATH: toolEnvPath(), LC_ALL: "C", [CALL_VARIABLE]: callName() });

/** A `Run` in this process's own namespaces. */
export function systemRun(hooks: RunHooks = {}): Run {
  return async (command) => {
    hooks.before?.(command);
    const started = performance.now();
    const output = legible(command, await start(command));
    hooks.after?.(command, output, performance.now() - started);
    if (output.code === -1 && output.signal === null) throw new CommandError(command, output, output.stderr);
    return output;
  };
}

/** Tools that print JSON by iproute2's writer, and the shell that becomes one of them. */
const IPROUTE2 = ["ip", "bridge", "tc", "sh"];
/** What that writer (iproute2 6.1) does not escape and JSON does not allow. It escapes \b, \t, \n, \f and \r, quotes and backslashes. */
// deno-lint-ignore no-control-regex
const RAW_CONTROL = /[\0-\x07\x0b\x0e-\x1f]/g;

/**
 * What `ip`, `bridge` and `tc` printed, as JSON can have it: whoever owns a namespace may give a link a name or an alias with any control
 * character, and one such link must not make the whole answer unreadable.
 */
function legible({ argv }: Command, output: Output): Output {
  const tool = argv[argv[0] === "nsenter" ? 3 : 0] ?? "";
  if (!IPROUTE2.includes(tool) || output.stdout.search(RAW_CONTROL) < 0) return output;
  const escape = (raw: string) => `\\u${raw.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return { ...output, stdout: output.stdout.replace(RAW_CONTROL, escape) };
}

async function start(command: Command): Promise<Output> {
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
    if (ended?.code === NOT_FOUND && searchMoreFolders()) return await start(command);
    if (ended?.code === NOT_FOUND && inner !== "" && isMissing(inner)) return failed(missingTool(inner));
    return ended ?? failed(`${tool} did not end within ${limitMs / 1000} s`);
  } catch (error) {
    if (isMissing(tool)) return failed(missingTool(tool));
    // Looking for it has led to another folder.
    if (toolEnvPath() !== path) return await start(command);
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
 * The number that the runtime knows an open file by. A child process takes it for a standard stream: it is what the runtime's own
 * node:child_process hands on, which would take a millisecond to load.
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
 * What `work` gives, or undefined after `limitMs` milliseconds, when `late` was called. Nothing is waited for after that: a killed child's
 * own children may keep its output open for ever.
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

/** The same `Run` inside the network namespace at `netns` (any path: a name's file, `/proc/PID/ns/net`, a bind mount). */
export function inNetns(run: Run, netns: string): Run {
  return (command) => run({ ...command, argv: ["nsenter", `--net=${netns}`, "--", ...command.argv] });
}

/**
 * The same `Run`, for those who read its answers: a tool that was asked for JSON (`-j`) and printed something else has failed. So nobody
 * behind it has to doubt that lines are JSON, entries are objects, and names are text.
 */
export function readable(run: Run): Run {
  return async (command) => {
    const output = await run(command);
    if (output.code !== 0 || !command.argv.includes("-j")) return output;
    const isNft = command.argv[0] === "nft";
    try {
      for (const line of output.stdout.split("\n")) {
        // Between the answers of a batch a tool may say something else.
        if (/^[[{]/.test(line) || (line !== "" && !command.argv.includes("-batch"))) {
          checkAnswer(JSON.parse(line), isNft);
        }
      }
      if (isNft && output.stdout.trim() === "") throw new SyntaxError("nothing");
    } catch {
      const tool = command.argv[command.argv[0] === "nsenter" ? 3 : 0];
      throw new CommandError(
        command,
        output,
        `${tool} printed something unreadable: ${JSON.stringify(output.stdout.slice(0, 80))}`,
      );
    }
    return output;
  };
}

/** Throws unless it is a list of objects (`ip`, `tc`, `bridge`), or one object with such a list (`nft`). */
function checkAnswer(answer: unknown, isNft: boolean): void {
  const entries = isNft ? (answer as { nftables?: unknown }).nftables : answer;
  if (!Array.isArray(entries)) throw new SyntaxError("no list");
  for (const entry of entries) {
    if (typeof entry !== "object" || entry === null) throw new SyntaxError("no object");
    for (const key of ["ifname", "dst", "dev", "local"]) {
      if (key in entry && typeof entry[key] !== "string") throw new SyntaxError(key);
    }
  }
}

/** Runs a command that has to succeed and gives its standard output. */
export async function must(run: Run, command: Command): Promise<string> {
  const output = await run(command);
  if (output.code !== 0) throw new CommandError(command, output, failureText(output));
  return output.stdout;
}

/**
 * A tool's complaint in the words that the reference would use: iproute2's "RTNETLINK answers: File exists" becomes
 * "file exists", absent links "Link not found", and so do the kernel's own explanations; other tools' first telling line
 * is kept.
 */
export function failureText(output: Output): string {
  const lines = output.stderr.split("\n").map((line) => line.trim()).filter((line) =>
    line !== "" && !line.startsWith("Command failed") && !line.startsWith("# Warning")
  );
  for (const line of lines) {
    const answer = /^RTNETLINK answers: (.*)$/.exec(line)?.[1];
    if (answer) return answer.charAt(0).toLowerCase() + answer.slice(1);
    if (/^Cannot find device|Device ".*" does not exist/.test(line)) return "Link not found";
    const errno = EXTENDED.find(([pattern]) => pattern.test(line))?.[1];
    if (errno) return errno;
    const [, file, words] = /^tee: (\/proc\/sys\/.*): ([A-Z].*)$/.exec(line) ?? [];
    if (file && words) {
      const verb = /^(No such|Is a|Not a|Permission|Read-only)/.test(words) ? "open" : "write";
      return `${verb} ${file}: ${words.charAt(0).toLowerCase()}${words.slice(1)}`;
    }
  }
  const error = lines.find((line) => line.startsWith("Error: ")) ?? lines.find((line) => /error/i.test(line)) ??
    lines[0];
  if (error) return error.replace(/^Error: /, "");
  return output.signal ? `signal: ${output.signal}` : `exit status ${output.code}`;
}

/** What newer kernels say instead of an errno, and the errno's words, which the reference prints and people search for. */
const EXTENDED: readonly (readonly [RegExp, string])[] = [
  [/^Error: Exclusivity flag on/, "file exists"],
  [/^Error: Unable to use '.*' for the new interface name/, "file exists"],
  [/^Error: (8021q: )?VLAN device already exists|^Error: ipv[46]: address already assigned/i, "file exists"],
  [/^Error: Unknown device type/, "operation not supported"],
  [/^Error: Specified qdisc kind is unknown/, "no such file or directory"],
  [/^Error: Address already assigned to an ipvlan/, "address already in use"],
  [/^Error: mtu (less|greater) than device|^Error: Invalid prefix for given prefix length/, "invalid argument"],
  [/^Error: The interface netns is immutable/, "invalid argument"],
  [/^Error: Nexthop has invalid gateway/, "network is unreachable"],
  [/^Error: (ipv6: )?IPv6 is disabled on this device/, "permission denied"],
];

/** Does this failure say that the thing to be removed is not there? The only reader of tools' wording. */
export function isAbsent(error: unknown): boolean {
  if (!(error instanceof CommandError)) return false;
  return /Cannot find device|does not exist|No such (file or directory|process|device)|Link not found|Bad rule|No chain\/target\/match|not found|Cannot assign requested address|Invalid handle|handle of zero|Cannot find specified qdisc/
    .test(error.output.stderr);
}
