/** What this process has open. */

/**
 * Waits until it has no file open below the folder. Who gave up a lock still waits for it, and closes the file once it
 * is free: that is the work of a thread, which no promise tells. What is open after ten seconds is a leak, which the
 * test runner reports.
 */
export async function untilClosed(folder: string): Promise<void> {
  for (let tries = 0; tries < 2_000 && isOpenIn(folder); tries++) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

function isOpenIn(folder: string): boolean {
  return [...Deno.readDirSync("/proc/self/fd")].some(({ name }) => {
    try {
      return Deno.readLinkSync(`/proc/self/fd/${name}`).startsWith(`${folder}/`);
    } catch (error) {
      // The list itself was read through one that is closed by now.
      if (error instanceof Deno.errors.NotFound) return false;
      throw error;
    }
  });
}
