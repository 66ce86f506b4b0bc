/** argv[0] of this process, which says which plugin is meant. */

/** Constant text for /bin/sh: the command line of its parent, whose number is asked of the same /proc. */
const OF_PARENT = 'read -r _ _ _ parent _ </proc/self/stat && exec cat "/proc/$parent/cmdline"';

/**
 * The name that this process was called by, as its caller wrote it. From /proc, because the runtime's own node:process has to be
 * loaded for it, which takes half a millisecond, and since 2.9 twelve. Newer runtimes keep /proc from us (proc.ts): a child looks.
 */
export async function calledAs(): Promise<string> {
  try {
    const [name = ""] = ownCommandLine().split("\0");
    if (name !== "") return name;
  } catch {
    // No /proc, or not that of our own PID namespace.
  }
  return (await import("node:process")).argv0;
}

function ownCommandLine(): string {
  try {
    return Deno.readTextFileSync("/proc/self/cmdline");
  } catch (error) {
    if (!(error instanceof Deno.errors.NotCapable)) throw error;
    const { stdout } = new Deno.Command("/bin/sh", {
      args: ["-c", OF_PARENT],
      clearEnv: true,
      env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" },
      stdin: "null",
      stderr: "null",
    }).outputSync();
    return new TextDecoder().decode(stdout);
  }
}
