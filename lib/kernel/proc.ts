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

/** Writes a setting in one piece; creates nothing. */
export function writeKernelFile(path: string, text: string): void {
  // No `create`, no `truncate`: these are not files.
  using file = Deno.openSync(path, { write: true });
  file.writeSync(new TextEncoder().encode(text));
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
