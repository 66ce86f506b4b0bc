/**
 * Tools that outlived their call. A runtime that gave up on a call kills the plugin alone: its `iptables-restore` may
 * still wait for a lock, and write rules seconds after DEL had removed them. Read by DEL and GC only where a killed
 * call left its files.
 */
import { CALL_VARIABLE, isOver, leftovers } from "./scratch.ts";

/** A process that could not be ended, since the kernel is at work for it. */
export interface Orphan {
  readonly pid: number;
  /** Its command line. */
  readonly command: string;
}

/** Pause between two looks at what was killed, in milliseconds. */
const PAUSE_MS = 5;

/**
 * Ends every process that a call started which is over and was killed, and waits until they are gone, at most so many
 * milliseconds. Returns those that are still there.
 *
 * A process counts only if its environment names the call, and the call's own process is known to be gone.
 */
export async function endOrphans(limitMs: number): Promise<Orphan[]> {
  const deadline = performance.now() + limitMs;
  for (;;) {
    // Each time: a plugin that is ended here may have had tools of its own.
    const killed = leftovers();
    if (killed?.size === 0) return [];
    const orphans = processesOf((call) => killed ? killed.has(call) : isOver(call) === true);
    if (orphans.length === 0) {
      for (const path of [...killed?.values() ?? []].flat()) remove(path);
      return [];
    }
    if (performance.now() >= deadline) return orphans;
    for (const { pid } of orphans) kill(pid);
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
}

function processesOf(isWanted: (call: string) => boolean): Orphan[] {
  const found: Orphan[] = [];
  for (const { name } of processFolders()) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || pid === Deno.pid) continue;
    try {
      // Empty once a process has ended, also if nobody has asked how.
      const variables = Deno.readTextFileSync(`/proc/${pid}/environ`).split("\0");
      const call = variables.findLast((one) => one.startsWith(`${CALL_VARIABLE}=`))?.slice(CALL_VARIABLE.length + 1);
      if (call === undefined || !isWanted(call)) continue;
      const words = Deno.readTextFileSync(`/proc/${pid}/cmdline`).split("\0");
      found.push({ pid, command: words.join(" ").trim() });
    } catch {
      // It ended meanwhile, or is not ours to look at.
    }
  }
  return found;
}

function processFolders(): Iterable<Deno.DirEntry> {
  try {
    return [...Deno.readDirSync("/proc")];
  } catch {
    return [];
  }
}

function kill(pid: number): void {
  try {
    Deno.kill(pid, "SIGKILL");
  } catch {
    // It ended meanwhile.
  }
}

function remove(path: string): void {
  try {
    Deno.removeSync(path);
  } catch {
    // Another call was quicker.
  }
}
