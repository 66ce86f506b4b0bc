/** Running a plugin that is another program. Loaded when called: most calls run their plugins in this process. */
import { within } from "../kernel/run.ts";
import { CALL_VARIABLE, callName, openScratch } from "../kernel/scratch.ts";
import { isObject } from "./decode.ts";
import { CniError, code, goQuote, internal } from "./error.ts";
import type { DelegateAnswer, Verb } from "./plugin.ts";
import type { JsonObject } from "./types.ts";
import { parseResult } from "./version.ts";

/** How long a foreign plugin may take, in milliseconds: its own limits should come first. */
const FOREIGN_LIMIT_MS = 110_000;

/** What a foreign plugin is given. */
export interface ForeignCall {
  readonly verb: Verb | "VERSION";
  readonly env: Readonly<Record<string, string>>;
  readonly stdin: Uint8Array;
  /** Configuration's version, for answers that carry none. */
  readonly version: string;
  readonly limitMs?: number;
}

/** Runs a plugin that is another program, and reads its answer as the reference library does. */
export async function runForeign(
  file: string,
  call: ForeignCall,
): Promise<DelegateAnswer & { stdout: string; stderr: string }> {
  const decoder = new TextDecoder();
  const limit = call.limitMs ?? FOREIGN_LIMIT_MS;
  let output: Deno.CommandOutput | undefined;
  // Nobody reads them: they tell a later call, if this one is killed, that a plugin of its may still be at work.
  const mark = openScratch("");
  for (const stream of mark?.streams ?? []) stream.close();
  try {
    const child = await spawnPatiently(file, call);
    output = await within(
      limit,
      Promise.all([child.output(), feed(child, call.stdin)]).then(([output]) => output),
      () => child.kill("SIGKILL"),
    );
  } catch (error) {
    throw new CniError(code.unknown, `netplugin failed with no error message: ${startFailure(file, error)}`);
  } finally {
    mark?.remove();
  }
  if (!output) {
    throw new CniError(
      code.tryAgain,
      `plugin ${file} did not answer ${call.verb} within ${limit / 1000} s`,
      "it was killed; DEL of this container cleans up",
    );
  }
  const stdout = decoder.decode(output.stdout);
  const stderr = decoder.decode(output.stderr);
  if (!output.success) throw foreignError(output, stdout, stderr);
  if (call.verb !== "ADD") return { stdout, stderr };
  return { result: parseResult(readAnswer(stdout), call.version), stdout, stderr };
}

/** A plugin may end without reading what it was given. */
async function feed(child: Deno.ChildProcess, stdin: Uint8Array): Promise<void> {
  const writer = child.stdin.getWriter();
  await writer.write(stdin).catch(() => {});
  await writer.close().catch(() => {});
}

/** "Text file busy" passes by itself while somebody replaces the file: 5 further tries, a second apart. */
async function spawnPatiently(file: string, call: ForeignCall): Promise<Deno.ChildProcess> {
  for (let attempt = 0;; attempt++) {
    try {
      return new Deno.Command(file.startsWith("/") || file.includes("/") ? file : `./${file}`, {
        clearEnv: true,
        env: { ...call.env, CNI_COMMAND: call.verb, [CALL_VARIABLE]: callName() },
        stdin: "piped",
        stdout: "piped",
        stderr: "piped",
      }).spawn();
    } catch (error) {
      if (attempt >= 5 || !/text file busy|os error 26/i.test((error as Error).message)) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

function startFailure(file: string, error: unknown): string {
  const reason = error instanceof Deno.errors.PermissionDenied || error instanceof Deno.errors.NotCapable
    ? "permission denied"
    : /exec format|os error 8\b/i.test((error as Error).message)
    ? "exec format error"
    : error instanceof Deno.errors.NotFound
    ? "no such file or directory"
    : (error as Error).message;
  return `fork/exec ${file}: ${reason}`;
}

function foreignError(output: Deno.CommandOutput, stdout: string, stderr: string): CniError {
  const cause = output.signal ? `signal: ${signalWord(output.signal)}` : `exit status ${output.code}`;
  if (stdout === "") {
    if (stderr === "") return new CniError(code.unknown, `netplugin failed with no error message: ${cause}`);
    return new CniError(code.unknown, `netplugin failed: ${goQuote(stderr)}`, cause);
  }
  let reason: string;
  try {
    const answer = JSON.parse(stdout);
    if (!isObject(answer)) reason = "json: cannot unmarshal into Go value of type types.Error";
    else {
      const { code: number = 0, msg = "", details = "" } = answer;
      if (typeof number === "number" && typeof msg === "string" && typeof details === "string") {
        return new CniError(number, msg, details);
      }
      reason = "json: cannot unmarshal into Go struct field Error of another type";
    }
  } catch (error) {
    reason = (error as Error).message;
  }
  return new CniError(
    code.unknown,
    `netplugin failed but error parsing its diagnostic message ${goQuote(stdout)}: ${reason}`,
  );
}

function signalWord(signal: string): string {
  return ({
    SIGKILL: "killed",
    SIGTERM: "terminated",
    SIGSEGV: "segmentation fault",
    SIGINT: "interrupt",
    SIGABRT: "aborted",
  })[signal] ?? signal;
}

function readAnswer(stdout: string): JsonObject {
  if (stdout.trim() === "") {
    throw internal("failed to unmarshal raw result: unexpected end of JSON input");
  }
  let answer: unknown;
  try {
    answer = JSON.parse(stdout);
  } catch (error) {
    throw internal(`failed to unmarshal raw result: ${(error as Error).message}`);
  }
  if (answer === null) return {};
  if (!isObject(answer)) {
    throw internal(
      "failed to unmarshal raw result: json: cannot unmarshal array into Go value of type map[string]interface {}",
    );
  }
  return answer;
}
