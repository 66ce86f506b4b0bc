/**
 * MAC spoof check of bridge: nft rules in `table bridge nat` that drop frames of a port whose source address is not the
 * container's. Names and comments are those of the reference, so that either can remove the other's.
 */
import type { Call, ContainerCall } from "../../lib/cni/plugin.ts";
import type { ValidAttachment } from "../../lib/cni/types.ts";
import { type Step, step } from "../../lib/kernel/plan.ts";
import { during } from "../../lib/cni/error.ts";
import { nftList } from "../../lib/kernel/nft.ts";
import { byNft, settledNft } from "../../lib/rules/backend.ts";

/** The whole rule set of one port in one transaction; a repeated one replaces itself. */
export async function spoofCheckSteps(call: ContainerCall, veth: string, mac: string): Promise<Step[]> {
  const ref = reference(call.containerId, call.ifName);
  const stale = await jumpsOf(call, ref);
  const chain = `cni-br-iface-${ref}`;
  const comment = `comment "macspoofchk-${ref}"`;
  const text = [
    "add table bridge nat",
    "add chain bridge nat PREROUTING { type filter hook prerouting priority -300 ; policy accept ; }",
    `add chain bridge nat ${chain}`,
    `add chain bridge nat ${chain}-mac`,
    `flush chain bridge nat ${chain}`,
    `flush chain bridge nat ${chain}-mac`,
    ...stale.map((handle) => `delete rule bridge nat PREROUTING handle ${handle}`),
    `add rule bridge nat PREROUTING iifname "${veth}" jump ${chain} ${comment}`,
    `add rule bridge nat ${chain} jump ${chain}-mac ${comment}`,
    `add rule bridge nat ${chain}-mac ether saddr ${mac} return ${comment}`,
    `add rule bridge nat ${chain}-mac drop ${comment}`,
  ].join("\n");
  call.undo(() => removeSpoofCheck(call));
  return [
    step("host", "nft", text, {
      failing: "failed to setup spoof-check",
      why: "drop frames that do not come from the container's own MAC",
    }),
  ];
}

function reference(containerId: string, ifName: string): string {
  return `${containerId}-${ifName}`;
}

const tableOf = ({ host }: Call) => nftList(host, "table bridge nat");

async function jumpsOf(call: Call, ref: string): Promise<number[]> {
  const listing = await during("failed to setup spoof-check", tableOf(call));
  return (listing?.rules ?? []).filter(({ chain, comment }) =>
    chain === "PREROUTING" && comment === `macspoofchk-${ref}`
  ).map(({ handle }) => handle);
}

/** Removes the rules of one attachment; what is not there counts as removed. */
export async function removeSpoofCheck(call: ContainerCall): Promise<void> {
  const own = reference(call.containerId, call.ifName);
  // Where nft works, a failure says that they are still there: the reference says nothing of that.
  await byNft(call, () => during("failed to teardown spoof-check", remove(call, (ref) => ref === own)));
}

/**
 * Removes the rules for which `isStale` says so, given the rule set's name and the link it watches. The names hold no
 * network: who is not listed as valid in one network may be in another, so a link that still exists speaks for its
 * rules.
 */
export async function collectSpoofChecks(call: Call, isStale: (ref: string, veth: string) => boolean): Promise<void> {
  await remove(call, isStale);
}

/** Rule set name of a valid attachment. */
export function spoofCheckRef({ containerID, ifname }: ValidAttachment): string {
  return reference(containerID, ifname);
}

async function remove(call: Call, concerns: (ref: string, veth: string) => boolean): Promise<void> {
  await settledNft(call, async () => {
    const { rules = [], chains = [] } = await tableOf(call) ?? {};
    const lines: string[] = [];
    // Asked once for each: a link may go while we look, and a chain cannot go before the rule that leads to it.
    const going = new Map<string, boolean>();
    for (const { chain, comment = "", handle, expr } of rules) {
      const ref = /^macspoofchk-(.*)$/.exec(comment)?.[1];
      if (chain !== "PREROUTING" || ref === undefined) continue;
      const goes = going.get(ref) ?? concerns(ref, watched(expr));
      going.set(ref, goes);
      if (goes) lines.push(`delete rule bridge nat PREROUTING handle ${handle}`);
    }
    const own = chains.map(({ name }) => name).filter((name) => {
      if (!name.startsWith("cni-br-iface-")) return false;
      const ref = name.slice("cni-br-iface-".length).replace(/-mac$/, "");
      const goes = going.get(ref) ?? concerns(ref, "");
      going.set(ref, goes);
      return goes;
    });
    // The outer chain jumps to the inner one: empty both, then delete.
    for (const name of own) lines.push(`flush chain bridge nat ${name}`);
    for (const name of own) lines.push(`delete chain bridge nat ${name}`);
    return { lines, result: undefined };
  });
}

/** The link that a jump rule watches; "" when it cannot be told. */
function watched(expr: readonly unknown[]): string {
  for (const part of expr as { match?: { right?: unknown } }[]) {
    if (typeof part.match?.right === "string") return part.match.right;
  }
  return "";
}
