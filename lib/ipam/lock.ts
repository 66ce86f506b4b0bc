/**
 * The lock of a lease folder: flock(2) on its file `lock`, which the reference takes too. It dies with its process, so a
 * killed one never leaves it behind; but a stopped one may keep it, so waiting has a limit.
 *
 * @module
 */
import { CniError, code } from "../cni/error.ts";
import { readKernelFile } from "../kernel/proc.ts";

/** What waiting for a lock needs. */
export interface LockOptions {
  /** Longest wait in milliseconds; {@linkcode LOCK_LIMIT_MS} if absent. */
  readonly limitMs?: number | undefined;
}

/** Longest wait for a lock: well below the time after which runtimes give a call up (2 minutes and more). */
export const LOCK_LIMIT_MS = 20_000;

/** A lock that is held; closing it gives it back. */
export interface Lock {
  close(): void;
}

/**
 * Takes the lock of `folder`, which has to exist; the file is made when it is missing.
 *
 * After a time-out the wait goes on in a thread of the runtime that nothing can end: the process has to end by `Deno.exit`.
 *
 * @throws {CniError} code 11 when the lock is not to be had in time: names file and holder
 * @throws {CniError} code 5 when the file is none: a link, a FIFO, a folder
 * @throws {Deno.errors.NotFound} when the folder is not there
 */
export async function lockFolder(folder: string, { limitMs = LOCK_LIMIT_MS }: LockOptions = {}): Promise<Lock> {
  const path = `${folder}/lock`;
  const deadline = performance.now() + limitMs;
  for (;;) {
    const file = openLock(path);
    if (!await lockWithin(file, deadline - performance.now())) {
      throw new CniError(
        code.tryAgain,
        `could not lock ${path} within ${limitMs / 1000} s`,
        holder(path),
      );
    }
    // Whoever removed the folder's files took the lock file along: then it is another one that counts now.
    if (isSame(file.statSync(), look(path))) return file;
    file.close();
  }
}

/** Opens the lock file, never through a link, and never anything else in its place: opening a FIFO could wait for ever. */
function openLock(path: string): Deno.FsFile {
  for (;;) {
    const found = look(path);
    if (found === undefined) {
      try {
        return Deno.openSync(path, { read: true, write: true, createNew: true, mode: 0o750 });
      } catch (error) {
        if (error instanceof Deno.errors.AlreadyExists) continue;
        throw error;
      }
    }
    if (!found.isFile) {
      throw new CniError(
        code.io,
        `lock file ${path} is not a regular file`,
        `it is ${kindOf(found)}: find out who put it there, then remove it`,
      );
    }
    const file = openEither(path);
    if (file === undefined) continue;
    if (isSame(file.statSync(), found)) return file;
    file.close();
  }
}

/** For writing if that is allowed, since some file systems lock only what is open for writing; undefined when it is gone. */
function openEither(path: string): Deno.FsFile | undefined {
  try {
    return Deno.openSync(path, { read: true, write: true });
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    return Deno.openSync(path, { read: true });
  }
}

function look(path: string): Deno.FileInfo | undefined {
  try {
    return Deno.lstatSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

function isSame(a: Deno.FileInfo, b: Deno.FileInfo | undefined): boolean {
  return b !== undefined && a.dev === b.dev && a.ino === b.ino;
}

function kindOf(info: Deno.FileInfo): string {
  if (info.isSymlink) return "a symbolic link";
  if (info.isDirectory) return "a folder";
  if (info.isFifo) return "a FIFO";
  return info.isSocket ? "a socket" : "a device";
}

/** Waits for the lock, at most so many milliseconds; a lock that comes later is given back at once. */
async function lockWithin(file: Deno.FsFile, limitMs: number): Promise<boolean> {
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

/** Who holds the lock, as the kernel says. */
function holder(path: string): string {
  const inode = look(path)?.ino ?? 0;
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
