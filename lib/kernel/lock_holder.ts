/** Who has a lock that we wait for. Loaded when called: after a wait that took too long. */
import { readKernelFile } from "./proc.ts";

/** Who holds the lock on the file with this inode, which we wait for, as the kernel says: a clause for people. */
export function holderOf(inode: number): string {
  const pid = holderNow(inode);
  if (pid !== undefined) return `held by process ${pid}${commandOf(pid)}; if it hangs, end it: the lock goes with it`;
  return `find the holder in /proc/locks: inode ${inode}`;
}

/** What {@linkcode lockHolder} says of this process's own wait; undefined also where /proc does not tell. */
export function holderNow(inode?: number): number | undefined {
  try {
    return lockHolder(readKernelFile("/proc/locks"), { inode, waiting: Deno.pid });
  } catch {
    return undefined;
  }
}

function commandOf(pid: number): string {
  try {
    return ` (${readKernelFile(`/proc/${pid}/comm`).trim()})`;
  } catch {
    return "";
  }
}

/**
 * Process ID of the holder of a flock(2) lock, in the text of /proc/locks (proc_locks(5)): of the one that process
 * `waiting` waits for, since overlayfs and others show inodes there that stat(2) does not know; when it waits for none,
 * or several, of the one on that inode, if one is named. Undefined when there is none, or it lives in a PID namespace
 * that cannot be seen from here.
 */
export function lockHolder(
  locks: string,
  { inode, waiting }: { inode?: number | undefined; waiting: number },
): number | undefined {
  // 7: FLOCK  ADVISORY  WRITE 1234 fe:00:2146678 0 EOF
  // 7: -> FLOCK  ADVISORY  WRITE 1240 fe:00:2146678 0 EOF      one who waits; behind others, further to the right
  const lines = [...locks.matchAll(/^(\d+):( +->)? +FLOCK +\S+ +\S+ +(\d+) [0-9a-f]+:[0-9a-f]+:(\d+) /gm)]
    .map(([, id, arrow, pid, ino]) => ({ id, waits: arrow !== undefined, pid: Number(pid), ino: Number(ino) }));
  const ours = lines.filter(({ waits, pid }) => waits && pid === waiting);
  const holder = lines.find(({ waits, ino, id }) => !waits && (ours.length === 1 ? id === ours[0]?.id : ino === inode));
  return holder === undefined || holder.pid === 0 ? undefined : holder.pid;
}
