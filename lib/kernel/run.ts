/**
 * A `Run` is a value that says where a command runs: on the host, or inside a network namespace. Nothing here changes
 * the namespace of this process.
 */
import { type Command, CommandError, type Output, startProcess } from "./process.ts";
import { failureText } from "./tool_words.ts";

export {
  collectScratch,
  type Command,
  CommandError,
  type Output,
  toolEnv,
  toolLimit,
  within,
  xtablesWait,
} from "./process.ts";
export { SCRATCH } from "./scratch.ts";
export { forgetTools, missingTool, toolPath } from "./tool_path.ts";
export { failureText, isAbsent, isOverdue, says } from "./tool_words.ts";

/** Starts one command and waits for its end. Never throws for an exit status; throws {@linkcode CommandError} when it
 * could not be started at all or did not end in time. */
export type Run = (command: Command) => Promise<Output>;

/** Called around every child: before it starts (may throw, to stop work after SIGTERM) and when it ended. */
export interface RunHooks {
  before?(command: Command): void;
  after?(command: Command, output: Output, ms: number): void;
}

/** A `Run` in this process's own namespaces. */
export function systemRun(hooks: RunHooks = {}): Run {
  return async (command) => {
    hooks.before?.(command);
    const started = performance.now();
    const output = legible(command, await startProcess(command));
    hooks.after?.(command, output, performance.now() - started);
    if (output.code === -1 && output.signal === null) throw new CommandError(command, output, output.stderr);
    return output;
  };
}

/** Tools that print JSON by iproute2's writer, and the shell that becomes one of them. */
const IPROUTE2 = ["ip", "bridge", "tc", "sh"];
/**
 * What that writer (iproute2 6.1) does not escape and JSON does not allow. It escapes \b, \t, \n, \f and \r, quotes and
 * backslashes.
 */
// deno-lint-ignore no-control-regex
const RAW_CONTROL = /[\0-\x07\x0b\x0e-\x1f]/g;

/**
 * What `ip`, `bridge` and `tc` printed, as JSON can have it: whoever owns a namespace may give a link a name or an
 * alias with any control character, and one such link must not make the whole answer unreadable.
 */
function legible({ argv }: Command, output: Output): Output {
  const tool = argv[argv[0] === "nsenter" ? 3 : 0] ?? "";
  if (!IPROUTE2.includes(tool) || output.stdout.search(RAW_CONTROL) < 0) return output;
  const escape = (raw: string) => `\\u${raw.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return { ...output, stdout: output.stdout.replace(RAW_CONTROL, escape) };
}

/**
 * The same `Run` inside the network namespace at `netns` (any path: a name's file, `/proc/PID/ns/net`, a bind mount).
 */
export function inNetns(run: Run, netns: string): Run {
  return (command) => run({ ...command, argv: ["nsenter", `--net=${netns}`, "--", ...command.argv] });
}

/**
 * The same `Run`, for those who read its answers: a tool that was asked for JSON (`-j`) and printed something else has
 * failed. So nobody behind it has to doubt that lines are JSON, entries are objects, and names are text.
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
