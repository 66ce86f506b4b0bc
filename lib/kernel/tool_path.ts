/**
 * Which file a tool's name stands for. Plugins run as root in other programs' environments, so PATH alone decides
 * nothing: the system's own folders come first, and another folder counts only if nobody but root can put a file there.
 */
import { exists } from "./regular_file.ts";

/** The system's own folders. A child's PATH is these alone, unless a tool is not there. */
const SYSTEM_FOLDERS: readonly string[] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/** Searched after PATH, since runtimes pass short ones. */
const LOCAL_FOLDERS: readonly string[] = ["/usr/local/sbin", "/usr/local/bin"];

const found = new Map<string, string>();
let folders = SYSTEM_FOLDERS;

/** PATH of child processes: the system's folders, and the other trusted ones once a tool was missing there. */
export function toolEnvPath(): string {
  return folders.join(":");
}

/**
 * Adds PATH's trusted folders to those that are searched, for tools that the system's folders lack. Looking at them
 * costs more than finding a tool, so it is not done before. Returns whether that made a difference.
 */
export function searchMoreFolders(): boolean {
  if (folders !== SYSTEM_FOLDERS) return false;
  const plugins = (Deno.env.get("CNI_PATH") ?? "").split(":");
  const others = [...(Deno.env.get("PATH") ?? "").split(":"), ...LOCAL_FOLDERS]
    .filter((dir) => !plugins.includes(dir) && isTrustedFolder(dir) && !hasPlugins(dir));
  folders = [...new Set([...SYSTEM_FOLDERS, ...others])];
  return folders.length > SYSTEM_FOLDERS.length;
}

/** Absolute path of a tool, or "" when it is nowhere. */
export function toolPath(name: string): string {
  const known = found.get(name);
  if (known !== undefined) return known;
  let result = search(name);
  if (result === "" && searchMoreFolders()) result = search(name);
  found.set(name, result);
  return result;
}

function search(name: string): string {
  const dir = folders.find((dir) => isTool(`${dir}/${name}`));
  return dir === undefined ? "" : `${dir}/${name}`;
}

/** Forgets where tools are: for programs that install a tool while they run, and for tests. */
export function forgetTools(): void {
  found.clear();
  folders = SYSTEM_FOLDERS;
}

/**
 * The word to start a tool with, or "" when it is nowhere. A tool whose name a plugin has as well is named by its path;
 * others are found on {@linkcode toolEnvPath} by whoever starts them, which costs nothing here.
 */
export function located(name: string): string {
  return PLUGINS_TOO.includes(name) ? toolPath(name) : name;
}

/** Tools whose name a plugin has as well. */
const PLUGINS_TOO: readonly string[] = ["bridge"];

function isTool(path: string): boolean {
  try {
    const info = Deno.statSync(path);
    return info.isFile && ((info.mode ?? 0) & 0o111) !== 0 && !isOwnExecutable(info);
  } catch {
    return false;
  }
}

let own: Deno.FileInfo | undefined;

/** Is this file our own executable? Always false under `deno run`. */
export function isOwnExecutable({ dev, ino }: Deno.FileInfo): boolean {
  if (!Deno.build.standalone) return false;
  try {
    own ??= Deno.statSync(Deno.execPath());
    return dev === own.dev && ino === own.ino;
  } catch {
    return false;
  }
}

/** A folder of plugins, ours or anybody's: its `bridge` is not iproute2's. */
function hasPlugins(dir: string): boolean {
  return exists(`${dir}/host-local`, { links: true }) || exists(`${dir}/loopback`, { links: true });
}

/**
 * Whether nobody but root (or ourselves) can put a file into a folder: neither there nor by way of any folder above it.
 */
export function isTrustedFolder(dir: string): boolean {
  if (!dir.startsWith("/")) return false;
  try {
    // A link on the way counts where it lies and where it leads to.
    return [...withParents(dir), ...withParents(Deno.realPathSync(dir))].every(isSafe);
  } catch {
    return false;
  }
}

function isSafe(folder: string): boolean {
  const { isDirectory, uid, mode } = Deno.statSync(folder);
  return isDirectory && (uid === 0 || uid === Deno.uid()) && mode !== null && (mode & 0o022) === 0;
}

function withParents(dir: string): string[] {
  const names = dir.split("/").filter((name) => name !== "");
  return ["/", ...names.map((_, index) => `/${names.slice(0, index + 1).join("/")}`)];
}

/** The words that Go programs print for a tool that is not there; people search for them. */
export function missingTool(name: string): string {
  return `exec: "${name}": executable file not found in $PATH`;
}
