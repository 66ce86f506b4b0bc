/** The operator's log: one JSON object a line in the file that CNIBOX_LOG names. Loaded only when asked for. */
import { openRegular } from "../kernel/regular_file.ts";
import type { Command, Output, RunHooks } from "../kernel/run.ts";
import type { CniError } from "./error.ts";
import type { JsonObject } from "./types.ts";

/** A log larger than this, in bytes, is moved to FILE.1 before the next line. */
const MAX_LOG = 16 * 1024 * 1024;

/** What one call writes. */
export interface Record {
  /** Passes the configuration through, remembering it. */
  stdin(bytes: Uint8Array): Uint8Array;
  readonly hooks: RunHooks;
  /** Writes the line. A log that cannot be written never fails a call. */
  end(result: unknown, error?: CniError): void;
}

/** Starts the record of one call. */
export function open(env: Readonly<{ [name: string]: string }>, plugin: string): Record {
  const started = performance.now();
  const file = env["CNIBOX_LOG"] ?? "";
  const commands: unknown[] = [];
  let config: unknown;
  return {
    stdin(bytes) {
      const text = new TextDecoder().decode(bytes);
      try {
        config = JSON.parse(text);
      } catch {
        config = text;
      }
      return bytes;
    },
    hooks: {
      after: (command, output, ms) => commands.push(commandEntry(command, output, ms)),
    },
    end(result, error) {
      const line = JSON.stringify({
        time: new Date().toISOString(),
        plugin,
        command: env["CNI_COMMAND"],
        containerId: env["CNI_CONTAINERID"],
        ifName: env["CNI_IFNAME"],
        netns: env["CNI_NETNS"],
        args: env["CNI_ARGS"],
        traceparent: env["TRACEPARENT"],
        config,
        result,
        ...(error && { error: { code: error.code, msg: error.msg, details: error.details } }),
        ms: rounded(performance.now() - started),
        commands,
      });
      try {
        append(file, `${line}\n`);
      } catch {
        // The call counts, not its log.
      }
    },
  };
}

/** One command as the log and `--trace` have it. */
export function commandEntry({ argv, input }: Command, output: Output, ms: number): JsonObject {
  const { code, signal, stdout, stderr } = output;
  const text = input?.join("");
  return {
    argv,
    ...(text && { input: text }),
    ms: rounded(ms),
    status: code,
    ...(signal && { signal }),
    stdout,
    stderr,
  };
}

function append(path: string, line: string): void {
  try {
    if (Deno.lstatSync(path).size > MAX_LOG) Deno.renameSync(path, `${path}.1`);
  } catch {
    // Not there yet.
  }
  const file = openRegular(path, { append: true, create: 0o600, links: true });
  try {
    file.writeSync(new TextEncoder().encode(line));
  } finally {
    file.close();
  }
}

/** Milliseconds to the hundredth. */
export function rounded(ms: number): number {
  return Math.round(ms * 100) / 100;
}
