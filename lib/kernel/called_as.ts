/** argv[0] of this process, which says which plugin is meant. */
import { readKernelFile } from "./proc.ts";

/**
 * The name that this process was called by, as its caller wrote it. From /proc, because the runtime's own node:process
 * has to be loaded for it, which takes half a millisecond.
 */
export async function calledAs(): Promise<string> {
  try {
    const [name = ""] = readKernelFile("/proc/self/cmdline").split("\0");
    if (name !== "") return name;
  } catch {
    // No /proc, or not that of our own PID namespace.
  }
  return (await import("node:process")).argv0;
}
