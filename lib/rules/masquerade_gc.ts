/** GC of masquerading. */
import { all } from "../cni/error.ts";
import type { Call } from "../cni/plugin.ts";
import { attachmentsOf, type ValidAttachment } from "../cni/types.ts";
import { leadingTo, ruleComment, ruleTarget, type SavedTable, savedTable } from "../kernel/iptables.ts";
import type { Family } from "../net/cidr.ts";
import { chainName, nftNetworkHash, nftRuleComment, type Owner } from "../net/name.ts";
import { type Host, settledTable } from "./backend.ts";
import { deleteMasqueradeNft } from "./masquerade_nft.ts";
import { collectionJobs } from "./rule_upkeep.ts";

/**
 * Removes the rules of this network's attachments that are not among the valid ones. iptables names the container only,
 * so there an interface of a container counts as valid as long as any of it is.
 */
export async function collectMasquerade(call: Call, valid: readonly ValidAttachment[]): Promise<void> {
  const { network } = call;
  const containers = new Set(valid.map((one) => one.containerID));
  const keep = new Set(attachmentsOf(network, valid).map(nftRuleComment));
  const front = `${nftNetworkHash(network)}-`;
  await all(collectionJobs(call, {
    iptables: (family) => collect(call, family, (one) => one.network === network && !containers.has(one.containerId)),
    nftables: () => deleteMasqueradeNft(call, (comment) => comment.startsWith(front) && !keep.has(comment)),
  }));
}

/**
 * Whose rules a table holds, by their comments and the names of their chains, which say whether a comment tells the
 * truth.
 */
export function masqueradeOwners(table: SavedTable): Owner[] {
  const found = new Map<string, Owner>();
  for (const { chain, text } of [...table.chains.values()].flat()) {
    // The rules that lead to a chain come before its own, which need not be looked at then.
    if (found.has(chain) || !text.includes("id: ")) continue;
    const [, network, containerId] = /^name: "(.*?)" id: "(.*)"$/.exec(ruleComment(text) ?? "") ?? [];
    if (network === undefined || containerId === undefined) continue;
    const own = chainName({ network, containerId });
    if (chain === own || ruleTarget(text) === own) found.set(own, { network, containerId });
  }
  return [...found.values()];
}

/** Removes the rules of containers that `isStale` picks. */
async function collect(
  call: Host,
  family: Family,
  isStale: (owner: Owner) => boolean,
): Promise<void> {
  await settledTable(call, { family, table: "nat" }, async () => {
    const table = await savedTable(call.host, family, "nat");
    const chains = table ? masqueradeOwners(table).filter(isStale).map((owner) => chainName(owner)) : [];
    const lines = table === undefined ? [] : chains.flatMap((chain) => [
      ...leadingTo(table, chain).map((jump) => `-D ${jump}`),
      ...(table.chains.has(chain) ? [`-F ${chain}`, `-X ${chain}`] : []),
    ]);
    return { lines, result: undefined };
  });
}
