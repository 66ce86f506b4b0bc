/** Duplicate address detection: waits for its end. Loaded when called, which is seldom. */
import { during, internal } from "../cni/error.ts";
import type { ContainerCall } from "../cni/plugin.ts";
import type { Address, Link } from "../kernel/ip.ts";
import { apply, step } from "../kernel/plan.ts";

/** Longest wait for duplicate address detection, in milliseconds, and how often to look. */
const SETTLE_MS = 5000;
const SETTLE_STEP_MS = 50;

/**
 * Constant text for /bin/sh in the container: waits until no IPv6 address of link $1 is tentative (flag 0x40), or one
 * has failed (0x08), and looks $2 times at most, every $3 seconds. Exit status 0: all are settled.
 */
export const SETTLE_SCRIPT = [
  "n=0; while :; do t=0",
  'while read -r a i l s f d; do [ "$d" = "$1" ] || continue',
  "[ $((0x$f & 0x08)) = 0 ] || exit 2; [ $((0x$f & 0x40)) = 0 ] || t=1; done </proc/net/if_inet6 || exit 1",
  '[ $t = 1 ] || exit 0; n=$((n + 1)); [ $n -lt "$2" ] || exit 3; sleep "$3"; done',
].join("\n");

/** Waits until no IPv6 address of the link is tentative any more; a duplicate is an error. One process. */
export async function settle(call: ContainerCall): Promise<void> {
  const { ifName } = call;
  const front = `failed to settle addresses for "${ifName}"`;
  const looks = [String(SETTLE_MS / SETTLE_STEP_MS), String(SETTLE_STEP_MS / 1000)];
  const waited = await during(front, call.pod({ argv: ["sh", "-c", SETTLE_SCRIPT, "sh", ifName, ...looks] }));
  if (waited.code === 0) return;
  const [shown] = await during(front, apply([[step("pod", "ip", `addr show dev ${ifName}`, { read: true })]], call));
  const link = shown?.[0] as Link | undefined;
  const six = (link?.addr_info ?? []).filter((one: Address) => one.family === "inet6");
  const failed = six.find((one) => one.dadfailed);
  if (failed) {
    throw internal(
      `${front}: link ${ifName} has address ${failed.local} in DADFAILED state`,
      `another host on this link uses ${failed.local}`,
    );
  }
  // A link without carrier cannot settle.
  if (link?.operstate !== "UP" || !six.some((one) => one.tentative)) return;
  throw internal(`${front}: link ${ifName} still has tentative addresses after ${SETTLE_MS / 1000} seconds`);
}
