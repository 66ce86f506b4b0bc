/** The runtime's side of a command: how plugins are found, watched, limited and interrupted. */
import type { MemberCall, Runtime } from "../cni/chain.ts";
import { commandEntry, rounded } from "../cni/log.ts";
import type { Interruption } from "../cni/skel.ts";
import type { RunHooks } from "../kernel/run.ts";
import type { Explainer } from "../kernel/plan.ts";
import { type CommandCall, usageError } from "./command.ts";
import { type Folders, timeoutMs } from "./setup.ts";
import { complain } from "./terminal.ts";

/** A runtime, and what its plugins were seen to do; disposing of it ends timers and the trace's file. */
export interface Watched extends Disposable {
  readonly runtime: Runtime;
  /** Every call of a plugin so far. */
  readonly calls: MemberCall[];
}

/** What commands may want of it. */
export interface WatchOptions {
  readonly explain?: Explainer;
  /** Signals ask the plugins to stop and to undo what they did. */
  readonly interruptible?: boolean;
}

/**
 * From here on, the usual signals ask the plugins to stop and to undo what they did, instead of ending this process.
 */
export function interruptedBySignals(): Interruption {
  const interruption: Interruption = { requested: "", undoing: false };
  for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const) {
    Deno.addSignalListener(signal, () => interruption.requested = signal);
  }
  return interruption;
}

/** Makes the runtime of a call. */
export function watchedRuntime(call: CommandCall, folders: Folders, options: WatchOptions = {}): Watched {
  const { explain, interruptible = false } = options;
  const limitMs = timeoutMs(call);
  const interruption: Interruption = interruptible ? interruptedBySignals() : { requested: "", undoing: false };
  const timer = limitMs === undefined ? undefined : setTimeout(() => {
    interruption.requested ||= `the time limit of ${limitMs / 1000} s`;
  }, limitMs);
  const trace = traceOf(call);
  const calls: MemberCall[] = [];
  let plugin = "";
  const hooks: RunHooks = {
    after: (command, output, ms) =>
      trace?.write({ time: new Date().toISOString(), plugin, ...commandEntry(command, output, ms) }),
  };
  const runtime: Runtime = {
    path: folders.path,
    cache: folders.cache,
    registry: call.invocation.load,
    builtin: !folders.pathGiven || explain !== undefined,
    env: Deno.env.toObject(),
    limitMs,
    interruption,
    ...(trace && { hooks }),
    explain,
    warn: (type, text) => complain(`${type}: ${text}\n`),
    stderr: complain,
    before: (_, type) => plugin = type,
    after: (done) => {
      calls.push(done);
      const { verb, type, file, inProcess, ms, error } = done;
      trace?.write({
        time: new Date().toISOString(),
        plugin: type,
        command: verb,
        ...(inProcess ? { inProcess } : { argv: [file] }),
        ms: rounded(ms),
        status: error ? 1 : 0,
        ...(error && { error: { code: error.code, msg: error.msg, details: error.details } }),
      });
    },
  };
  return {
    runtime,
    calls,
    [Symbol.dispose]: () => {
      clearTimeout(timer);
      trace?.close();
    },
  };
}

interface Trace {
  write(entry: Readonly<Record<string, unknown>>): void;
  close(): void;
}

/** Where `--trace` writes: standard error, or the file of `--trace-file`. */
function traceOf(call: CommandCall): Trace | undefined {
  const file = call.value("trace-file");
  if (file === undefined) {
    if (!call.is("trace")) return undefined;
    return { write: (entry) => complain(`${JSON.stringify(entry)}\n`), close: () => {} };
  }
  let handle: Deno.FsFile;
  try {
    handle = Deno.openSync(file, { append: true, create: true, mode: 0o600 });
  } catch (error) {
    throw usageError(`--trace-file ${file}: ${(error as Error).message}`);
  }
  const encoder = new TextEncoder();
  return {
    write: (entry) => void handle.writeSync(encoder.encode(`${JSON.stringify(entry)}\n`)),
    close: () => handle.close(),
  };
}
