/** Kernel settings below /proc/sys. Keys are written with slashes: interface names may hold dots. */
import { readKernelFile, writeKernelFile } from "./proc.ts";

/** Value of a setting of this process's own network namespace, or undefined when there is no such setting. */
export function readSysctl(key: string): string | undefined {
  try {
    return readKernelFile(`/proc/sys/${key}`).trim();
  } catch {
    return undefined;
  }
}

/** Writes a setting of this process's own network namespace. Throws what the system says. */
export function writeSysctl(key: string, value: string): void {
  writeKernelFile(`/proc/sys/${key}`, value);
}
