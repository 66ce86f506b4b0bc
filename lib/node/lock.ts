/** Exactly one agent per node: flock(2) on a file below /run. */
import { lockWithin } from "../kernel/flock.ts";

/** How long a free lock takes to be had on a busy machine, in milliseconds. */
const LOOK_MS = 1_000;

/** Takes the lock, or gives up after so many milliseconds; disposing of it releases it. */
export async function takeLock(path: string, limitMs: number): Promise<Disposable | undefined> {
  const limit = Date.now() + limitMs;
  Deno.mkdirSync(path.slice(0, path.lastIndexOf("/")), { recursive: true, mode: 0o700 });
  while (true) {
    const file = Deno.openSync(path, { create: true, write: true, mode: 0o600 });
    if (!await lockWithin(file, limit - Date.now())) return undefined;
    // The holder before may have removed it: the next one to come makes another, and locks that.
    if (isAt(file, path)) return { [Symbol.dispose]: () => file.close() };
    file.close();
  }
}

function isAt(file: Deno.FsFile, path: string): boolean {
  const open = file.statSync();
  try {
    const there = Deno.statSync(path);
    return there.dev === open.dev && there.ino === open.ino;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

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
