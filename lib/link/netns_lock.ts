/**
 * One call at a time in a namespace, or for an attachment: nothing in the container can keep a call waiting for ever.
 */
import { toCniError } from "../cni/error.ts";
import type { Lock } from "../cni/own_lock.ts";
import type { ContainerCall } from "../cni/plugin.ts";
import { lockWithin } from "../kernel/flock.ts";
import { fileIdentity } from "../kernel/proc.ts";
import { sha512 } from "../net/sha512.ts";

/**
 * So many locks there are of each kind, which keeps their files few: who shares one by chance waits for another call,
 * no longer.
 */
const LOCKS = 256;
/** Longest wait in milliseconds for a namespace's file: far more than a call of the reference takes. */
const FILE_LIMIT_MS = 2000;

/**
 * Takes the namespace for this process alone. The reference's sbr locks the namespace's file, so that one is asked for
 * too; but any process in the container can lock it as well, so it is waited for a short time only. Throws code 11 when
 * another call of ours is not done in time.
 */
export async function lockNetns(call: ContainerCall): Promise<Lock> {
  const { netns, warn } = call;
  const path = call.heldNetns || netns;
  const own = await call.lock(`netns-${inodeOf(path) % LOCKS}`);
  let file: Deno.FsFile | undefined;
  try {
    // Never made: an empty file in place of a namespace that is gone would be taken for one later.
    const opened = Deno.openSync(path, { read: true });
    if (await lockWithin(opened, FILE_LIMIT_MS)) file = opened;
    else {
      const { holderOf } = await import("../kernel/lock_holder.ts");
      const holder = holderOf(inodeOf(path));
      warn(`${netns} is locked, not by cnibox, for ${FILE_LIMIT_MS / 1000} s: going on (${holder})`);
    }
  } catch (error) {
    warn(`could not lock ${netns}: ${toCniError(error).msg}`);
  }
  return {
    close: () => {
      own.close();
      file?.close();
      file = undefined;
    },
  };
}

/** Inode of a namespace, which is its identity; 0 for one that has just gone. */
function inodeOf(netns: string): number {
  try {
    return fileIdentity(netns).ino ?? 0;
  } catch {
    return 0;
  }
}

/** Takes the attachment for this process alone: its other ADDs and DELs wait. */
export async function lockAttachment(call: ContainerCall): Promise<Lock> {
  const { network, containerId, ifName } = call;
  const number = Number.parseInt(sha512(`${network}:${containerId}:${ifName}`).slice(0, 8), 16) % LOCKS;
  return await call.lock(`attachment-${number}`);
}
