/**
 * flock(2) with a time limit. The lock dies with its process, so a killed one never leaves it behind; but a stopped one may
 * keep it. No child process inherits it.
 *
 * @module
 */
import { readKernelFile } from "./proc.ts";

/** Waits for the lock, at most so many milliseconds; a lock that comes later is given back at once. */
export async function lockWithin(file: Deno.FsFile, limitMs: number): Promise<boolean> {
  // Newer runtimes can ask without waiting, which needs no thread.
  if ("tryLockSync" in file && (file as unknown as TryLock).tryLockSync(true)) return true;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<false>((resolve) => {
    timer = setTimeout(() => resolve(false), Math.max(0, limitMs));
  });
  const locked = file.lock(true).then(() => true as const);
  try {
    if (await Promise.race([locked, late])) return true;
  } catch (error) {
    file.close();
    throw error;
  } finally {
    clearTimeout(timer);
  }
  locked.then(() => file.close(), () => file.close());
  return false;
}

interface TryLock {
  tryLockSync(exclusive: boolean): boolean;
}

/** Who holds the lock on the file with this inode, as the kernel says: a clause for people. */
export function holderOf(inode: number): string {
  try {
    const pid = lockHolder(readKernelFile("/proc/locks"), inode);
    if (pid !== undefined) return `held by process ${pid}${commandOf(pid)}; if it hangs, end it: the lock goes with it`;
  } catch {
    // Not to be known from here.
  }
  return `find the holder in /proc/locks: inode ${inode}`;
}

function commandOf(pid: number): string {
  try {
    return ` (${readKernelFile(`/proc/${pid}/comm`).trim()})`;
  } catch {
    return "";
  }
}

/**
 * Process ID of the holder of the flock(2) lock on an inode, in the text of /proc/locks (proc_locks(5)); undefined when there is
 * none, or it lives in a PID namespace that cannot be seen from here. The device is not compared: file systems such as btrfs and
 * overlayfs show another one there than stat(2) does.
 */
export function lockHolder(locks: string, inode: number): number | undefined {
  for (const line of locks.split("\n")) {
    // 7: FLOCK  ADVISORY  WRITE 1234 fe:00:2146678 0 EOF        waiting ones have an arrow: 7: -> FLOCK …
    const [, pid, ino] = /^\d+: FLOCK\s+\S+\s+WRITE\s+(-?\d+) [0-9a-f]+:[0-9a-f]+:(\d+) /.exec(line) ?? [];
    if (Number(ino) === inode && Number(pid) > 0) return Number(pid);
  }
  return undefined;
}
