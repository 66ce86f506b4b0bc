/**
 * Files below /proc and /sys. Deno 2.6 and newer opens them only for a program that has every permission, and this one
 * is granted neither network nor FFI; then `cat`, `tee` and `stat` do what was asked, at the price of a process.
 * Errors are the same either way: `Deno.errors.NotFound`, `Deno.errors.PermissionDenied`, or one in the system's words.
 */
import { missingTool, toolPath } from "./run.ts";

/** Text of a file, as it is. */
export function readKernelFile(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotCapable)) throw error;
    return ask("cat", ["--", path]);
  }
}

/** Constant text for /bin/sh: the command line of its parent, whose number is asked of the same /proc. */
const OF_PARENT = 'read -r _ _ _ parent _ </proc/self/stat && exec cat "/proc/$parent/cmdline"';

/** Whether there is such a file; undefined where only a process could tell. */
export function kernelFileExists(path: string): boolean | undefined {
  try {
    Deno.lstatSync(path);
    return true;
  } catch (error) {
    return error instanceof Deno.errors.NotFound ? false : undefined;
  }
}

/**
 * Whether this process's network namespace has a link of this name, as /proc tells, which always shows the namespace of whoever reads it;
 * undefined where it does not tell.
 */
export function linkExists(name: string): boolean | undefined {
  // These two are no links, and the kernel makes no folder for a link that is called so.
  if (name === "all" || name === "default") return undefined;
  if (/^\.{0,2}$|\//.test(name)) return false;
  const folder = "/proc/sys/net/ipv4/conf";
  const found = kernelFileExists(`${folder}/${name}`);
  return found === false && kernelFileExists(`${folder}/all`) !== true ? undefined : found;
}

/**
 * Folder of a link of this process's network namespace in sysfs; undefined unless it is proved to be that link's. A /sys that was mounted
 * in another namespace (as after `nsenter --net`) shows the links of that one: the link's index there has to be the one that the
 * kernel knows it by here, `ifindex`, or what /proc says.
 */
export function linkFolder(name: string, ifindex = linkIndex(name)): string | undefined {
  const folder = `/sys/class/net/${name}`;
  try {
    return ifindex !== undefined && Number(readKernelFile(`${folder}/ifindex`)) === ifindex ? folder : undefined;
  } catch {
    return undefined;
  }
}

/** Index of a link of this process's network namespace, where its IPv6 counters tell. */
function linkIndex(name: string): number | undefined {
  try {
    const index = /^ifIndex\s+(\d+)$/m.exec(readKernelFile(`/proc/self/net/dev_snmp6/${name}`))?.[1];
    return index === undefined ? undefined : Number(index);
  } catch {
    return undefined;
  }
}

/** This process's own command line, each word ended by a NUL. Throws where /proc is not that of our own PID namespace. */
export function ownCommandLine(): string {
  try {
    return Deno.readTextFileSync("/proc/self/cmdline");
  } catch (error) {
    if (!(error instanceof Deno.errors.NotCapable)) throw error;
    return ask("sh", ["-c", OF_PARENT]);
  }
}

/** Writes a setting in one piece; creates nothing. */
export function writeKernelFile(path: string, text: string): void {
  try {
    // No `create`, no `truncate`: these are not files.
    using file = Deno.openSync(path, { write: true });
    file.writeSync(new TextEncoder().encode(text));
  } catch (error) {
    if (!(error instanceof Deno.errors.NotCapable)) throw error;
    ask("sh", ["-c", 'printf %s "$2" | tee -- "$1" >/dev/null', "sh", path, text]);
  }
}

/** Device and inode of what a path leads to: the identity of a namespace. For any path, also outside /proc. */
export function fileIdentity(path: string): { dev: number; ino: number | null } {
  try {
    const { dev, ino } = Deno.statSync(path);
    return { dev, ino };
  } catch (error) {
    if (!(error instanceof Deno.errors.NotCapable)) throw error;
    const [dev, ino] = ask("stat", ["-L", "-c", "%d %i", "--", path]).split(" ").map(Number);
    return { dev: dev ?? 0, ino: ino ?? null };
  }
}

/** Names in a folder below /proc or /sys. */
export function listKernelFolder(path: string): string[] {
  try {
    return [...Deno.readDirSync(path)].map(({ name }) => name);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotCapable)) throw error;
    return ask("ls", ["-A", "--", path]).split("\n").filter((name) => name !== "");
  }
}

/** Names of all links of this process's network namespace, without a child process; undefined when /proc does not tell. */
export function linkNames(): Set<string> | undefined {
  try {
    const lines = readKernelFile("/proc/self/net/dev").split("\n").slice(2);
    // A name cannot hold a colon.
    return new Set(lines.map((line) => line.slice(0, line.indexOf(":")).trim()).filter((name) => name !== ""));
  } catch {
    return undefined;
  }
}

/** What a symbolic link below /proc or /sys holds. */
export function readKernelLink(path: string): string {
  try {
    return Deno.readLinkSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotCapable)) throw error;
    // `readlink` says nothing about why, unless asked.
    return ask("readlink", ["-v", "--", path]).replace(/\n$/, "");
  }
}

function ask(tool: string, args: string[]): string {
  const command = toolPath(tool);
  if (command === "") throw new Error(missingTool(tool));
  const { success, stdout, stderr } = new Deno.Command(command, {
    args,
    clearEnv: true,
    env: { LC_ALL: "C", PATH: "/usr/sbin:/usr/bin:/sbin:/bin" },
    stdin: "null",
  }).outputSync();
  if (success) return new TextDecoder().decode(stdout);
  const words = new TextDecoder().decode(stderr).trim();
  if (words.endsWith("No such file or directory")) throw new Deno.errors.NotFound(words);
  if (words.endsWith("Not a directory")) throw new Deno.errors.NotADirectory(words);
  if (words.endsWith("Permission denied")) throw new Deno.errors.PermissionDenied(words);
  throw new Error(words.slice(words.lastIndexOf(": ") + 2));
}
