/**
 * The lock of a lease folder: flock(2) on its file `lock`, which the reference takes too. It dies with its process, so
 * a killed one never leaves it behind; but a stopped one may keep it, so waiting has a limit.
 *
 * @module
 */
import { CniError, code } from "../cni/error.ts";
import { lockWithin } from "../kernel/flock.ts";
import { openRegular, UnusableFile } from "../kernel/regular_file.ts";

/** What waiting for a lock needs. */
export interface LockOptions {
  /** Longest wait in milliseconds; {@linkcode LOCK_LIMIT_MS} if absent. */
  readonly limitMs?: number | undefined;
  /** What can be done while the lock is asked for; called once, before anything is made. What it throws is thrown. */
  readonly meanwhile?: (() => void) | undefined;
}

/** Longest wait for a lock: well below the time after which runtimes give a call up (2 minutes and more). */
export const LOCK_LIMIT_MS = 20_000;

/** A lock that is held; closing it releases it. */
export interface Lock {
  close(): void;
}

/**
 * Takes the lock of `folder`, which has to exist; the file is made when it is missing.
 *
 * After a time-out the wait goes on in a thread of the runtime that nothing can end: the process has to end by
 * `Deno.exit`.
 *
 * @throws {CniError} code 11 when the lock is not to be had in time: names file and holder
 * @throws {CniError} code 5 when the file is none: a link, a FIFO, a folder
 * @throws {Deno.errors.NotFound} when the folder is not there
 */
export async function lockFolder(folder: string, options: LockOptions = {}): Promise<Lock> {
  const { limitMs = LOCK_LIMIT_MS } = options;
  const meanwhile = once(options.meanwhile);
  const path = `${folder}/lock`;
  const deadline = performance.now() + limitMs;
  for (;;) {
    const file = openLock(path, meanwhile);
    if (!await lockWithin(file, deadline - performance.now(), meanwhile)) {
      const { holderOf } = await import("../kernel/lock_holder.ts");
      throw new CniError(
        code.tryAgain,
        `could not lock ${path} within ${limitMs / 1000} s`,
        holderOf(look(path)?.ino ?? 0),
      );
    }
    // Whoever removed the folder's files took the lock file along: then it is another one that counts now.
    if (isSame(file.statSync(), look(path))) return file;
    file.close();
  }
}

/** `work`, that does nothing when it is called again. */
export function once(work = () => {}): () => void {
  let done = false;
  return () => {
    if (done) return;
    done = true;
    work();
  };
}

/** Opens the lock file, for writing if that is allowed, since some file systems lock only what is open for writing. */
function openLock(path: string, before: () => void): Deno.FsFile {
  if (look(path) === undefined) before();
  try {
    return openRegular(path, { write: true, create: 0o750 });
  } catch (error) {
    if (error instanceof UnusableFile) {
      throw new CniError(
        code.io,
        `lock file ${path} is not a regular file`,
        `it is ${error.what}: find out who put it there, then remove it`,
      );
    }
    if (error instanceof Deno.errors.NotFound || look(path) === undefined) throw error;
    return openRegular(path);
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
