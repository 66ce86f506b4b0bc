/** What this process has open. */

/**
 * Waits until it has no file open below the folder. Who gave up a lock still waits for it, and closes the file once it
 * is free: that is the work of a thread, which no promise tells. What is open after ten seconds is a leak, which the
 * test runner reports.
 */
export async function untilClosed(folder: string): Promise<void> {
  for (let tries = 0; tries < 2_000 && openIn(folder) > 0; tries++) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** How many files are open below the folder. */
export function openIn(folder: string): number {
  return [...Deno.readDirSync("/proc/self/fd")].filter(({ name }) => {
    try {
      return Deno.readLinkSync(`/proc/self/fd/${name}`).startsWith(`${folder}/`);
    } catch (error) {
      // The list itself was read through one that is closed by now.
      if (error instanceof Deno.errors.NotFound) return false;
      throw error;
    }
  }).length;
}
