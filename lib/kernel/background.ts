/**
 * Programs that stay: started once, they outlive the process that started them. Everything else is started by run.ts
 * and awaited.
 *
 * @module
 */
import { readKernelFile } from "./proc.ts";
import { exists, readRegularText } from "./regular_file.ts";
import { missingTool, toolPath } from "./run.ts";

/** What a program that stays is started with. */
export interface BackgroundOptions {
  readonly cwd: string;
  readonly env: Readonly<Record<string, string>>;
  /** File that its outputs are appended to. */
  readonly log: string;
  /** Namespace to run in: any path. */
  readonly netns: string;
}

/** A program that was started. */
export interface BackgroundProcess {
  readonly pid: number;
  /** Resolves when it ended, for whatever reason. */
  readonly ended: Promise<void>;
}

/**
 * Constant text, run by /bin/sh: appends outputs to the log ($1) and becomes the program. Descriptor 3 is closed: it
 * may be a socket that systemd handed to us. setsid: a signal from our terminal is not meant for it.
 */
const START = 'log=$1; shift; exec 3<&- </dev/null >>"$log" 2>&1; exec setsid nsenter "$@"';

/**
 * Starts a program in a network namespace and leaves it to itself.
 *
 * @throws when a tool is missing, in the words that Go programs have for it
 */
export function startBackground(argv: readonly string[], options: BackgroundOptions): BackgroundProcess {
  const [tool = "", ...args] = argv;
  for (const name of ["setsid", "nsenter", tool]) if (toolPath(name) === "") throw new Error(missingTool(name));
  const child = new Deno.Command("/bin/sh", {
    args: ["-c", START, "sh", options.log, `--net=${options.netns}`, "--", toolPath(tool), ...args],
    cwd: options.cwd,
    clearEnv: true,
    env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", LC_ALL: "C", ...options.env },
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  return { pid: child.pid, ended: child.status.then(() => {}) };
}

/** Command line of a process, its words ended by NUL bytes; "" when there is no such process. */
export function commandLine(pid: number): string {
  try {
    return readKernelFile(`/proc/${pid}/cmdline`);
  } catch {
    return "";
  }
}

/** Sends a signal; false when there is no such process. */
export function signal(pid: number, name: Deno.Signal): boolean {
  try {
    Deno.kill(pid, name);
    return true;
  } catch {
    return false;
  }
}

/** Constant text: becomes systemd's relay, which takes descriptor 3 only if it is addressed to its own process ID. */
const PROXY = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$1" "$2"';
const PROXY_PATHS = ["/usr/lib/systemd/systemd-socket-proxyd", "/lib/systemd/systemd-socket-proxyd"];

/**
 * Has systemd-socket-proxyd accept on descriptor 3, which this process inherited, and pass connections on to `target`.
 * The relay that an earlier process left is ended first; `pidFile` tells which. Returns what stops it.
 */
export function startSocketProxy(target: string, pidFile: string): () => void {
  const tool = PROXY_PATHS.find((path) => exists(path, { links: true }));
  if (tool === undefined) {
    throw new Error(
      "Error getting listener: this build cannot use systemd's socket, and systemd-socket-proxyd is missing: " +
        "disable cni-dhcp.socket and start cni-dhcp.service by itself",
    );
  }
  try {
    const old = Number(readRegularText(pidFile));
    if (commandLine(old).split("\0").includes(target)) signal(old, "SIGTERM");
  } catch {
    // There was none.
  }
  const child = new Deno.Command("/bin/sh", {
    args: ["-c", PROXY, "sh", tool, target],
    stdin: "null",
    stdout: "null",
    stderr: "inherit",
  }).spawn();
  Deno.writeTextFileSync(pidFile, String(child.pid), { mode: 0o600 });
  return () => void signal(child.pid, "SIGTERM");
}
