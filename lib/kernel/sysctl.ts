/** Kernel settings below /proc/sys. Keys are written with slashes: interface names may hold dots. */

/** Value of a setting of this process's own network namespace, or undefined when there is no such setting. */
export function readSysctl(key: string): string | undefined {
  try {
    return Deno.readTextFileSync(`/proc/sys/${key}`).trim();
  } catch {
    return undefined;
  }
}

/** Writes a setting of this process's own network namespace. Throws what the system says. */
export function writeSysctl(key: string, value: string): void {
  // No `create`, no `truncate`: these are not files.
  const file = Deno.openSync(`/proc/sys/${key}`, { write: true });
  try {
    file.writeSync(new TextEncoder().encode(value));
  } finally {
    file.close();
  }
}
