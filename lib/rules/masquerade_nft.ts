/**
 * Masquerading of one attachment in nftables, in the reference's table `inet cni_plugins_masquerade`. A rule's comment
 * names its attachment. Rules that an earlier ADD of the same attachment left stay until DEL: listing all rules, which
 * finding them takes, costs more than the whole ADD.
 */
import { nftComment, nftList } from "../kernel/nft.ts";
import type { Applier } from "../kernel/plan.ts";
import { type Family, formatAddress, formatPrefix, networkPrefix, type Prefix } from "../net/cidr.ts";
import { type Attachment, nftAttachmentHash, nftRuleComment } from "../net/name.ts";
import { addToShared, type Host, type Listing, type RuleSet, settledNft } from "./backend.ts";

/** What is masqueraded: what these addresses send beyond their own subnets. */
export interface Masquerading {
  readonly owner: Attachment;
  readonly prefixes: readonly Prefix[];
}

export const MULTICAST: Record<Family, string> = { 4: "224.0.0.0/4", 6: "ff00::/8" };

/** Masquerading in nftables. */
export const masqueradeNft: RuleSet<Masquerading> = {
  text,
  add,
  remove,
  missing: async (call, want) => (await import("./masquerade_check.ts")).missingInNft(call, want),
  owned,
};

export const TABLE = "inet cni_plugins_masquerade";
const TABLE_COMMENT = "Masquerading for plugins from github.com/containernetworking/plugins";
const CHAIN_COMMENT = "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet";

/**
 * The table and its shared chains. Emptying a chain makes the next transaction wait, so this is not done every time.
 */
function setup(comments: boolean): string {
  const note = (text: string) => comments ? ` { comment "${text}" ; }` : "";
  return [
    `add table ${TABLE}${note(TABLE_COMMENT)}`,
    `add chain ${TABLE} masq_checks${note(CHAIN_COMMENT)}`,
    `add chain ${TABLE} postrouting { type nat hook postrouting priority 100 ; }`,
    `flush chain ${TABLE} postrouting`,
    `add rule ${TABLE} postrouting ip daddr ${MULTICAST[4]} return`,
    `add rule ${TABLE} postrouting ip6 daddr ${MULTICAST[6]} return`,
    `add rule ${TABLE} postrouting goto masq_checks`,
    "",
  ].join("\n");
}

function rulesText({ owner, prefixes }: Masquerading): string {
  const comment = nftComment(nftRuleComment(owner));
  return prefixes.map((prefix) => {
    const ip = prefix.address.family === 4 ? "ip" : "ip6";
    const subnet = formatPrefix(networkPrefix(prefix));
    return `add rule ${TABLE} masq_checks ${ip} saddr ${formatAddress(prefix.address)} ${ip} daddr != ${subnet} ` +
      `masquerade ${comment}\n`;
  }).join("");
}

function text(wanted: Masquerading): string {
  return setup(true) + rulesText(wanted);
}

async function add(call: Applier, wanted: Masquerading): Promise<undefined> {
  await addToShared(call, { rules: rulesText(wanted), chain: `${TABLE} postrouting`, isWhole, setup });
}

function isWhole(postrouting: string): boolean {
  return [/hook postrouting/, /224\.0\.0\.0\/4 return/, /ff00::\/8 return/, /goto masq_checks/].every((part) =>
    part.test(postrouting)
  );
}

async function remove(call: Host, { owner }: Masquerading): Promise<boolean> {
  const hash = nftAttachmentHash(owner);
  return await deleteMasqueradeNft(call, (comment) => comment.startsWith(hash));
}

/** Deletes the rules whose comments are chosen; false when there were none. */
export async function deleteMasqueradeNft({ host }: Host, chosen: (comment: string) => boolean): Promise<boolean> {
  return await settledNft({ host }, async (attempt) => {
    const listing = await nftList(host, `chain ${TABLE} masq_checks`);
    const rules = (listing?.rules ?? []).filter((rule) => chosen(rule.comment ?? ""));
    return {
      lines: rules.map(({ handle }) => `delete rule ${TABLE} masq_checks handle ${handle}`),
      result: rules.length > 0 || attempt > 0,
    };
  });
}

function owned({ nft }: Listing, { owner }: Masquerading): boolean {
  const hash = nftAttachmentHash(owner);
  return nft.rules.some(({ chain, comment }) => chain === "masq_checks" && comment?.startsWith(hash));
}
