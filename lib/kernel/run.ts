/**
 * The only place that starts a process. A `Run` is a value that says where a command runs: on the host, or inside a
 * network namespace. Nothing here changes the namespace of this process.
 */

/** One command: `argv[0]` is a tool's plain name; it is looked up in the trusted folders, see {@linkcode toolPath}. */
export interface Command {
  readonly argv: readonly string[];
  /** Text for standard input, in parts. */
  readonly input?: readonly string[];
  /** It only looks, though its name does not say so. */
  readonly question?: boolean;
  /** A part of a plan that has been shown as a whole: the explainer does not show it once more. */
  readonly planned?: boolean;
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
function toolLimit(): number {
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

/** Where tools usually live. Runtimes pass short PATHs, so these folders are always searched too. */
const SYSTEM_FOLDERS = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
const found = new Map<string, string>();
let folders: readonly string[] | undefined;

/** PATH's trusted folders, then the usual ones. */
function toolFolders(): readonly string[] {
  const path = (Deno.env.get("PATH") ?? "").split(":");
  folders ??= [
    ...new Set([...path.filter((dir) => SYSTEM_FOLDERS.includes(dir) || isTrustedFolder(dir)), ...SYSTEM_FOLDERS]),
  ];
  return folders;
}

/**
 * Absolute path of a tool, or "" when it is nowhere. PATH is searched first, as the reference does, but a folder that
 * is relative, or that anybody but its root owner may write to, is passed over: plugins run as root in other
 * programs' environments.
 */
export function toolPath(name: string): string {
  const known = found.get(name);
  if (known !== undefined) return known;
  const dir = toolFolders().find((dir) => isExecutable(`${dir}/${name}`));
  const result = dir === undefined ? "" : `${dir}/${name}`;
  found.set(name, result);
  return result;
}

/** Forgets where tools are: for programs that install a tool while they run, and for tests. */
export function forgetTools(): void {
  found.clear();
  folders = undefined;
}

function isExecutable(path: string): boolean {
  try {
    const info = Deno.statSync(path);
    return info.isFile && ((info.mode ?? 0) & 0o111) !== 0;
  } catch {
    return false;
  }
}

function isTrustedFolder(dir: string): boolean {
  if (!dir.startsWith("/")) return false;
  try {
    const info = Deno.statSync(dir);
    return info.uid === Deno.uid() || (info.uid === 0 && ((info.mode ?? 0) & 0o022) === 0);
  } catch {
    return false;
  }
}

/** The words that Go programs print for a tool that is not there; people search for them. */
export function missingTool(name: string): string {
  return `exec: "${name}": executable file not found in $PATH`;
}

/** Called around every child: before it starts (may throw, to stop work after SIGTERM) and when it ended. */
export interface RunHooks {
  before?(command: Command): void;
  after?(command: Command, output: Output, ms: number): void;
}

const encoder = new TextEncoder();
const decoder = new TextDecoder();
/** Tools get a small environment: English messages, a sane PATH (nsenter starts tools by name), nothing else. */
export const toolEnv = () => ({ PATH: toolFolders().join(":"), LC_ALL: "C" });

/** A `Run` in this process's own namespaces. */
export function systemRun(hooks: RunHooks = {}): Run {
  return async (command) => {
    hooks.before?.(command);
    const started = performance.now();
    const output = await start(command);
    hooks.after?.(command, output, performance.now() - started);
    if (output.code === -1 && output.signal === null) throw new CommandError(command, output, output.stderr);
    return output;
  };
}

async function start(command: Command): Promise<Output> {
  const [tool = "", ...args] = command.argv;
  const inner = tool === "nsenter" ? command.argv[3] ?? "" : "";
  const { input, limitMs = toolLimit(), done } = command;
  const failed = (stderr: string): Output => ({ code: -1, signal: null, stdout: "", stderr });
  try {
    const files = scratchFiles(input?.join("") ?? "");
    // The runtime finds the tool on the PATH of `toolEnv`, the same as `toolPath` would; a look of our own costs a third of a millisecond.
    const ended = files === undefined
      ? await throughPipes(tool, args, { input, limitMs })
      : await throughNumbers(tool, args, { files, input, limitMs, done });
    if (ended?.code === NOT_FOUND && inner !== "" && isMissing(inner)) return failed(missingTool(inner));
    return ended ?? failed(`${tool} did not end within ${limitMs / 1000} s`);
  } catch (error) {
    return failed(isMissing(tool) ? missingTool(tool) : `cannot run ${tool}: ${(error as Error).message}`);
  }
}

/** What nsenter and shells end with when there is no such program. */
const NOT_FOUND = 127;

function isMissing(tool: string): boolean {
  return !tool.startsWith("/") && toolPath(tool) === "";
}

/**
 * Where standard input and output of tools are kept while they run, for root only. The runtime's own pipes are streams, and making the
 * first of them costs more (5 ms) than starting a tool and reading two small files.
 */
export const SCRATCH = "/run/cnibox/io";
/** Several PID namespaces may share one /run: a process ID alone is no name. */
const scratchName = `${Deno.pid}-${Math.random().toString(36).slice(2, 10)}`;
let scratchCount = 0;

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

interface ScratchFiles {
  readonly in: string;
  readonly out: string;
  readonly err: string;
}

/** Files for one command; undefined where there can be none, for users other than root. */
function scratchFiles(input: string): ScratchFiles | undefined {
  if (Deno.uid() !== 0) return undefined;
  const base = `${SCRATCH}/${scratchName}-${scratchCount++}`;
  const files = { in: input === "" ? "/dev/null" : `${base}.in`, out: `${base}.out`, err: `${base}.err` };
  try {
    if (input !== "") writeScratch(files.in, input);
    return files;
  } catch {
    // A read-only /run: pipes do as well.
    return undefined;
  }
}

function writeScratch(path: string, text: string): void {
  try {
    Deno.writeTextFileSync(path, text, { mode: 0o600 });
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    Deno.mkdirSync(SCRATCH, { recursive: true, mode: 0o700 });
    Deno.writeTextFileSync(path, text, { mode: 0o600 });
  }
}

/** Standard streams for one command, the last first; input is absent where there is none. Undefined where files cannot be: a read-only /run. */
function openScratch(files: ScratchFiles): Deno.FsFile[] | undefined {
  const opened: Deno.FsFile[] = [];
  for (let again = false;; again = true) {
    try {
      for (const path of [files.err, files.out]) {
        opened.push(Deno.openSync(path, { write: true, createNew: true, mode: 0o600 }));
      }
      if (files.in !== "/dev/null") opened.push(Deno.openSync(files.in));
      return opened;
    } catch (error) {
      for (const file of opened.splice(0)) file.close();
      if (again || !(error instanceof Deno.errors.NotFound)) return undefined;
      Deno.mkdirSync(SCRATCH, { recursive: true, mode: 0o700 });
    }
  }
}

/** The command with the three files as its standard streams. */
async function throughNumbers(
  program: string,
  args: string[],
  { files, input, limitMs, done }: { files: ScratchFiles; limitMs: number } & Pick<Command, "input" | "done">,
): Promise<Output | undefined> {
  try {
    const opened = openScratch(files);
    if (!opened) return await throughPipes(program, args, { input, limitMs });
    let child: Deno.ChildProcess;
    try {
      // The type of Deno.Command knows words only.
      const [stderr = "null", stdout = "null", stdin = "null"] = opened.map(numberOf) as unknown as "null"[];
      child = new Deno.Command(program, { args, clearEnv: true, env: toolEnv(), stdin, stdout, stderr }).spawn();
    } finally {
      for (const file of opened) file.close();
    }
    const status = await within(limitMs, endOf(child, done), () => kill(child));
    if (!status) return undefined;
    const { code, signal } = status;
    return { code, signal, stdout: Deno.readTextFileSync(files.out), stderr: Deno.readTextFileSync(files.err) };
  } finally {
    removeAll(files);
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

function removeAll(files: ScratchFiles): void {
  for (const path of [files.in, files.out, files.err]) if (path !== "/dev/null") removeScratch(path);
}

/**
 * Removes the files of commands that nobody waits for any more: their process was killed. Only what is older than any command may
 * be. Returns how many there were.
 */
export function collectScratch(): number {
  const latest = Date.now() - 2 * Math.max(toolLimit(), 10 * 60_000);
  let count = 0;
  try {
    for (const { name } of Deno.readDirSync(SCRATCH)) {
      const path = `${SCRATCH}/${name}`;
      if ((Deno.lstatSync(path).mtime?.getTime() ?? latest) >= latest) continue;
      removeScratch(path);
      count++;
    }
  } catch {
    // No such folder, or another process is collecting.
  }
  return count;
}

function removeScratch(path: string): void {
  try {
    Deno.removeSync(path);
  } catch {
    // A file that was never made.
  }
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
