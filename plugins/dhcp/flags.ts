/**
 * Flags of `dhcp daemon`, read as Go's flag package reads them: one dash or two, `-x v` or `-x=v`, the first word
 * without a dash ends them.
 *
 * @module
 */
import { goQuote } from "../../lib/cni/error.ts";
import { DEFAULT_SOCKET } from "./rpc.ts";

/** What the daemon was told; durations in milliseconds. */
export interface DaemonFlags {
  readonly socketPath: string;
  /** Put in front of the socket's path and of every namespace's. */
  readonly hostPrefix: string;
  /** Absolute, or "". */
  readonly pidFile: string;
  readonly broadcast: boolean;
  readonly timeoutMs: number;
  readonly resendMaxMs: number;
  readonly resendTimeoutMs: number;
}

/** Flags that cannot be read (`status` 2), or a question about them (0); `text` is for standard error. */
export class FlagError extends Error {
  override readonly name = "FlagError";
  constructor(readonly status: 0 | 2, readonly text: string) {
    super(text);
  }
}

export const USAGE = `Usage of daemon:
  -broadcast
    \tbroadcast DHCP leases
  -hostprefix string
    \toptional prefix to host root
  -pidfile string
    \toptional path to write daemon PID to
  -resendmax duration
    \toptional dhcp client max resend delay between requests (default 1m2s)
  -resendtimeout duration
    \toptional dhcp client resend timeout, no more retries after this timeout (default 3m28s)
  -socketpath string
    \toptional dhcp server socketpath
  -timeout duration
    \toptional dhcp client timeout duration for each request (default 10s)
`;

/** @throws {FlagError} in the words of Go's flag package */
export function daemonFlags(args: readonly string[]): DaemonFlags {
  const texts: Record<string, string> = { socketpath: "", hostprefix: "", pidfile: "" };
  const durations: Record<string, number> = { timeout: 10_000, resendmax: 62_000, resendtimeout: 208_000 };
  let broadcast = false;
  for (let at = 0; at < args.length; at++) {
    const word = args[at] ?? "";
    if (!/^--?[^-=]/.test(word)) {
      if (word === "--" || word === "-" || !word.startsWith("-")) break;
      throw refused(`bad flag syntax: ${word}`);
    }
    const [, name = "", given] = /^--?([^=]*)(?:=([\s\S]*))?$/.exec(word) ?? [];
    if (name === "h" || name === "help") throw new FlagError(0, USAGE);
    if (name === "broadcast") {
      broadcast = given === undefined || boolean(name, given);
      continue;
    }
    if (!Object.hasOwn(texts, name) && !Object.hasOwn(durations, name)) {
      throw refused(`flag provided but not defined: -${name}`);
    }
    const value = given ?? args[++at];
    if (value === undefined) throw refused(`flag needs an argument: -${name}`);
    if (Object.hasOwn(texts, name)) texts[name] = value;
    else durations[name] = duration(name, value);
  }
  return {
    socketPath: texts["socketpath"] || DEFAULT_SOCKET,
    hostPrefix: texts["hostprefix"] ?? "",
    pidFile: texts["pidfile"] ?? "",
    broadcast,
    timeoutMs: durations["timeout"] ?? 0,
    resendMaxMs: durations["resendmax"] ?? 0,
    resendTimeoutMs: durations["resendtimeout"] ?? 0,
  };
}

function refused(text: string): FlagError {
  return new FlagError(2, `${text}\n${USAGE}`);
}

function boolean(name: string, value: string): boolean {
  if (["1", "t", "T", "true", "TRUE", "True"].includes(value)) return true;
  if (["0", "f", "F", "false", "FALSE", "False"].includes(value)) return false;
  throw refused(`invalid boolean value ${goQuote(value)} for -${name}: parse error`);
}

const UNITS: Readonly<Record<string, number>> = {
  ns: 1e-6,
  us: 1e-3,
  "µs": 1e-3,
  "μs": 1e-3,
  ms: 1,
  s: 1e3,
  m: 6e4,
  h: 36e5,
};

/** `1m30s`, `500ms`, `1.5h`; a number without unit only when it is 0. Negative ones are of no use here. */
function duration(name: string, value: string): number {
  const parts = [...value.matchAll(/(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)/g)];
  if (/^[+-]?0$/.test(value)) return 0;
  if (parts.length === 0 || parts.map(([part]) => part).join("") !== value.replace(/^\+/, "")) {
    throw refused(`invalid value ${goQuote(value)} for flag -${name}: parse error`);
  }
  return parts.reduce((sum, [, number, unit]) => sum + Number(number) * (UNITS[unit ?? ""] ?? 0), 0);
}
