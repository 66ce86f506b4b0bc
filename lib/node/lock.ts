/** Whether the agent of this node runs: it holds flock(2) on a file below /run. */
import { lockWithin } from "../kernel/flock.ts";

/** How long a free lock takes to be had on a busy machine, in milliseconds. */
const LOOK_MS = 1_000;

/** Does somebody hold the lock? Process IDs tell nothing: the holder may be in a container. */
export async function isHeld(path: string): Promise<boolean> {
  let file: Deno.FsFile;
  try {
    file = Deno.openSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
  // One that comes too late is closed by whoever waited for it.
  if (!await lockWithin(file, LOOK_MS)) return true;
  file.close();
  return false;
}
