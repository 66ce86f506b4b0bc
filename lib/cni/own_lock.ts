/**
 * Locks that calls of this program take from each other. They are files that root alone can reach: nothing in a
 * container can hold one.
 */
import { lockWithin } from "../kernel/flock.ts";
import { CniError, code } from "./error.ts";

const FOLDER = "/run/cnibox/locks";
/** Longest wait in milliseconds: well below the time after which runtimes give a call up. */
const LIMIT_MS = 20_000;

/** A lock that is held; closing it twice is harmless. */
export interface Lock {
  close(): void;
}

/**
 * Takes the lock of this name, which is a plain word. Throws code 11 when another call has it too long. Where there can
 * be no such file, as on a read-only /run, that is said by `warn`, and the call goes on without.
 */
export async function ownLock(name: string, warn: (note: string) => void): Promise<Lock> {
  const path = `${FOLDER}/${name}`;
  let file: Deno.FsFile | undefined;
  try {
    Deno.mkdirSync(FOLDER, { recursive: true, mode: 0o700 });
    file = openLock(path);
  } catch (error) {
    warn(`no lock ${path}, going on without: ${(error as Error).message}`);
    return { close: () => {} };
  }
  const { ino } = file.statSync();
  if (!await lockWithin(file, LIMIT_MS)) {
    const { holderOf } = await import("../kernel/lock_holder.ts");
    throw new CniError(code.tryAgain, `could not lock ${path} within ${LIMIT_MS / 1000} s`, holderOf(ino ?? 0));
  }
  return {
    close: () => {
      file?.close();
      file = undefined;
    },
  };
}

/** Nothing but a regular file: opening a FIFO could wait for ever. The file stays, so that all lock the same one. */
function openLock(path: string): Deno.FsFile {
  try {
    if (!Deno.lstatSync(path).isFile) throw new Error("it is not a regular file");
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  return Deno.openSync(path, { read: true, write: true, create: true, mode: 0o600 });
}
