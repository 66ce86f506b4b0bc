/**
 * flock(2) with a time limit. The lock dies with its process, so a killed one never leaves it behind; but a stopped one
 * may keep it. No child process inherits it.
 *
 * @module
 */

/**
 * Waits for the lock, at most so many milliseconds; a lock that comes later is released at once. `meanwhile` is done
 * while a thread of the runtime asks for it: that takes most of a millisecond also where nobody has the lock. What it
 * throws ends the wait.
 */
export async function lockWithin(file: Deno.FsFile, limitMs: number, meanwhile = () => {}): Promise<boolean> {
  // Asked first: the thread that waits is at work while the timer is made.
  const locked = file.lock(true).then(() => true as const);
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<false>((resolve) => {
    timer = setTimeout(() => resolve(false), Math.max(0, limitMs));
  });
  try {
    meanwhile();
    if (await Promise.race([locked, late])) return true;
  } catch (error) {
    // A file is not closed under a thread that asks for its lock.
    locked.then(() => file.close(), () => file.close());
    throw error;
  } finally {
    clearTimeout(timer);
  }
  locked.then(() => file.close(), () => file.close());
  return false;
}
