/** CHECK of masquerading. Loaded when called. */
import { type CniError, internal } from "../cni/error.ts";
import { iptablesTool, ruleTarget } from "../kernel/iptables.ts";
import { nftList } from "../kernel/nft.ts";
import { formatAddress, prefixContains } from "../net/cidr.ts";
import { type Attachment, chainName, nftAttachmentHash } from "../net/name.ts";
import type { Host, Part } from "./backend.ts";
import { ownTable, sourceOf } from "./masquerade_iptables.ts";
import { type Masquerading, TABLE } from "./masquerade_nft.ts";

/** The error for the first rule that is missing in iptables; undefined when none is. */
export async function missingInIptables(
  call: Host,
  { owner, family, prefixes }: Part<Masquerading>,
): Promise<CniError | undefined> {
  const chain = chainName(owner);
  const table = await ownTable(call, family, chain);
  const content = table?.chains.get(chain);
  const tool = iptablesTool(family);
  if (table === undefined || content === undefined) {
    return incomplete(owner, `chain ${chain} not found in ${tool} table nat`);
  }
  if (!content.some((rule) => ruleTarget(rule.text) === "MASQUERADE")) {
    return incomplete(owner, `no rule that masquerades in chain ${chain} of ${tool} table nat`);
  }
  const sources = (table.chains.get("POSTROUTING") ?? []).filter((rule) => ruleTarget(rule.text) === chain)
    .flatMap((rule) => sourceOf(rule.text) ?? []);
  const lost = prefixes.find(({ address }) => !sources.some((source) => prefixContains(source, address)));
  return lost &&
    incomplete(owner, `no jump from ${formatAddress(lost.address)} to ${chain} in POSTROUTING of ${tool} table nat`);
}

/** The same in nftables. */
export async function missingInNft({ host }: Host, { owner, prefixes }: Masquerading): Promise<CniError | undefined> {
  const hash = nftAttachmentHash(owner);
  const listing = await nftList(host, `table ${TABLE}`);
  if (listing === undefined) return incomplete(owner, `nft table ${TABLE} not found`);
  const jumps = listing.rules.some(({ chain, expr }) =>
    chain === "postrouting" && JSON.stringify(expr).includes('"masq_checks"')
  );
  if (!jumps) {
    return incomplete(owner, `no rule in chain postrouting of nft table ${TABLE} leads to masq_checks`);
  }
  const rules = listing.rules.filter((rule) => rule.comment?.startsWith(hash)).map(({ expr }) => JSON.stringify(expr));
  const lost = prefixes.map(({ address }) => formatAddress(address)).find((ip) =>
    !rules.some((rule) => rule.includes(`"${ip}"`) && rule.includes('"masquerade"'))
  );
  return lost === undefined
    ? undefined
    : incomplete(owner, `no rule for ${lost} in chain masq_checks of nft table ${TABLE}`);
}

function incomplete({ network, containerId, ifName }: Attachment, missing: string): CniError {
  return internal(
    `masquerading of ${network} ${containerId} ${ifName} is incomplete: ${missing}`,
    "somebody removed rules of this container, for example by reloading a firewall",
  );
}
