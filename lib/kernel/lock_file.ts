/** A file whose lock means that something is at work, see flock.ts. */
import { lockWithin } from "./flock.ts";
import { holderNow } from "./lock_holder.ts";
import { fileIdentity } from "./proc.ts";
import { openRegular } from "./regular_file.ts";

/**
 * Locks the file at a path, which is made where there is none, and gives up after so many milliseconds. Closing the
 * file lets others go on; whoever removes it does so while it is locked.
 */
export async function lockFile(path: string, limitMs: number): Promise<Deno.FsFile | undefined> {
  const limit = Date.now() + limitMs;
  while (true) {
    const file = openRegular(path, { write: true, create: 0o600 });
    if (!await lockWithin(file, limit - Date.now())) return undefined;
    // The holder before may have removed it: the next one to come makes another, and locks that.
    if (isAt(file, path)) return file;
    file.close();
  }
}

function isAt(file: Deno.FsFile, path: string): boolean {
  const { dev, ino } = file.statSync();
  try {
    const there = fileIdentity(path);
    return there.dev === dev && there.ino === ino;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** How long a free lock takes to be had: at most times, and on a busy machine; in milliseconds. */
const LOOKS_MS = [20, 1_000];

/**
 * Does somebody hold the lock? The kernel's list tells at once who does, unless that is in a PID namespace which cannot
 * be seen from here: then time does.
 */
export async function isLocked(path: string): Promise<boolean> {
  for (const limitMs of LOOKS_MS) {
    let file: Deno.FsFile;
    try {
      file = Deno.openSync(path);
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return false;
      throw error;
    }
    if (await lockWithin(file, limitMs)) {
      file.close();
      return false;
    }
    // Closed by whoever waited for it. An inode would not do: files of other file systems have the same number.
    if (holderNow() !== undefined) return true;
  }
  return true;
}
