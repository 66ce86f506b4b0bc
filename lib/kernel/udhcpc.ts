/** BusyBox udhcpc, the DHCP client that dhcp's daemon starts. */
import type { Run } from "./run.ts";

/** The client that this machine has: BusyBox udhcpc, by either name; undefined when there is none. */
export async function findClient(host: Run): Promise<readonly string[] | undefined> {
  for (const client of [["busybox", "udhcpc"], ["udhcpc"]]) {
    try {
      const { stdout, stderr } = await host({ argv: [...client, "--help"] });
      if (/BusyBox/.test(stdout + stderr) && /Release IP on exit/.test(stdout + stderr)) return client;
    } catch {
      // Not installed, or it cannot be run.
    }
  }
  return undefined;
}
