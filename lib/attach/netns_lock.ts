/** One plugin at a time in a namespace: the lock that the reference's sbr takes too, flock(2) on the namespace's file. */
import { CniError, code } from "../cni/error.ts";
import { holderOf, lockWithin } from "../kernel/flock.ts";

/** Longest wait in milliseconds: well below the time after which runtimes give a call up. */
const LIMIT_MS = 20_000;

/** The lock while it is held. Closing it twice is harmless. */
export interface NetnsLock {
  close(): void;
}

/** Takes the namespace for this process alone. Throws code 11 when it is not to be had in time. */
export async function lockNetns(netns: string): Promise<NetnsLock> {
  // Never made: an empty file in place of a namespace that is gone would be taken for one later.
  let file: Deno.FsFile | undefined = Deno.openSync(netns, { read: true });
  if (!await lockWithin(file, LIMIT_MS)) {
    throw new CniError(
      code.tryAgain,
      `could not lock ${netns} within ${LIMIT_MS / 1000} s`,
      holderOf(Deno.statSync(netns).ino ?? 0),
    );
  }
  return {
    close: () => {
      file?.close();
      file = undefined;
    },
  };
}
