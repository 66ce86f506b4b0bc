/** Files below /proc and /sys. Errors are the runtime's own: `Deno.errors.NotFound`, or one in the system's words. */

/** Text of a file, as it is. */
export function readKernelFile(path: string): string {
  return Deno.readTextFileSync(path);
}

/** Whether there is such a file; undefined where that cannot be told. */
export function kernelFileExists(path: string): boolean | undefined {
  try {
    Deno.lstatSync(path);
    return true;
  } catch (error) {
    return error instanceof Deno.errors.NotFound ? false : undefined;
  }
}

/**
 * Whether this process's network namespace has a link of this name, as /proc tells, which always shows the namespace of
 * whoever reads it; undefined where it does not tell.
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
 * Folder of a link of this process's network namespace in sysfs; undefined unless it is proved to be that link's. A
 * /sys that was mounted in another namespace (as after `nsenter --net`) shows the links of that one: the link's index
 * there has to be the one that the kernel knows it by here, `ifindex`, or what /proc says.
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

/** Writes a setting in one piece; creates nothing. */
export function writeKernelFile(path: string, text: string): void {
  // No `create`, no `truncate`: these are not files.
  const file = Deno.openSync(path, { write: true });
  try {
    file.writeSync(new TextEncoder().encode(text));
  } finally {
    file.close();
  }
}

/** Device and inode of what a path leads to: the identity of a namespace. For any path, also outside /proc. */
export function fileIdentity(path: string): { dev: number; ino: number | null } {
  const { dev, ino } = Deno.statSync(path);
  return { dev, ino };
}

/** Names in a folder below /proc or /sys. */
export function listKernelFolder(path: string): string[] {
  return [...Deno.readDirSync(path)].map(({ name }) => name);
}

/**
 * Names of all links of this process's network namespace, without a child process; undefined when /proc does not tell.
 */
export function linkNames(): Set<string> | undefined {
  try {
    const lines = readKernelFile("/proc/self/net/dev").split("\n").slice(2);
    // A name cannot hold a colon.
    return new Set(lines.map((line) => line.slice(0, line.indexOf(":")).trim()).filter((name) => name !== ""));
  } catch {
    return undefined;
  }
}
