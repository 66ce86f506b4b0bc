/**
 * Masquerading of what this node's pods send to the world outside of the network of all nodes: one nftables table of
 * our own, or where nft is not usable one iptables chain of our own.
 *
 * @module
 */
import {
  leadingTo,
  quoteWord,
  restore,
  ruleComment,
  ruleTarget,
  type SavedTable,
  savedTable,
  transaction,
} from "../kernel/iptables.ts";
import { nft, nftList, nftUsable } from "../kernel/nft.ts";
import type { Run } from "../kernel/run.ts";
import { type Family, formatPrefix, type Prefix } from "../net/cidr.ts";
import { sha512 } from "../net/sha512.ts";

const TABLE = "inet cnibox_node";
const CHAIN = "CNIBOX-NODE";
const MULTICAST: Readonly<Record<Family, string>> = { 4: "224.0.0.0/4", 6: "ff00::/8" };

/** A node's subnet, and the network whose traffic keeps its addresses. */
export interface Share {
  readonly subnet: Prefix;
  readonly network: Prefix;
}

/** Which firewall the rules are in. */
export type Firewall = "nftables" | "iptables";

/** nftables where it works, iptables elsewhere. */
export async function firewallOf(run: Run): Promise<Firewall> {
  return await nftUsable(run) ? "nftables" : "iptables";
}

/** The table as one transaction that makes it what it should be, whatever was in it. */
export function nftText(shares: readonly Share[]): string {
  const lines = shares.flatMap(({ subnet, network }) => {
    const { family } = subnet.address;
    const ip = family === 4 ? "ip" : "ip6";
    const from = `${ip} saddr ${formatPrefix(subnet)}`;
    return [
      `${from} ${ip} daddr ${formatPrefix(network)} return`,
      `${from} ${ip} daddr != ${MULTICAST[family]} masquerade`,
    ];
  });
  return [
    `add table ${TABLE}`,
    `delete table ${TABLE}`,
    `add table ${TABLE}`,
    `add chain ${TABLE} postrouting { type nat hook postrouting priority 100 ; }`,
    ...lines.map((line) => `add rule ${TABLE} postrouting ${line} comment "${hashOf(shares)}"`),
    "",
  ].join("\n");
}

/** Stands for the whole of the rules: what bears another one is of another time. */
function hashOf(shares: readonly Share[]): string {
  const text = shares.map(({ subnet, network }) => `${formatPrefix(subnet)} ${formatPrefix(network)}`).join();
  return `cnibox node ${sha512(text).slice(0, 16)}`;
}

/** The chain of one family as one transaction. `jumps`: what leads there now. */
export function iptablesText({ subnet, network }: Share, jumps: readonly string[]): string {
  const { family } = subnet.address;
  const comment = `-m comment --comment ${quoteWord(hashOf([{ subnet, network }]))}`;
  return transaction("nat", [
    `:${CHAIN} - [0:0]`,
    ...jumps.map((jump) => `-D ${jump}`),
    `-A ${CHAIN} -d ${formatPrefix(network)} ${comment} -j RETURN`,
    `-A ${CHAIN} -d ${MULTICAST[family]} ${comment} -j RETURN`,
    `-A ${CHAIN} ${comment} -j MASQUERADE`,
    `-A POSTROUTING -s ${formatPrefix(subnet)} ${comment} -j ${CHAIN}`,
  ]);
}

/** Makes the rules what they should be, where they are not. Returns whether something was done. */
export async function keepMasquerade(run: Run, firewall: Firewall, shares: readonly Share[]): Promise<boolean> {
  if (shares.length === 0) return await dropMasquerade(run, firewall);
  if (firewall === "nftables") {
    const now = await nftList(run, `table ${TABLE}`);
    const right = (now?.rules ?? []).filter(({ comment }) => comment === hashOf(shares)).length;
    if (now && right === 2 * shares.length && now.rules.length === right && now.chains.length === 1) return false;
    await nft(run, nftText(shares));
    return true;
  }
  let isChanged = false;
  for (const share of shares) {
    const table = await savedTable(run, share.subnet.address.family, "nat");
    if (table === undefined) throw new Error("neither nftables nor iptables is usable here: set ipMasq to false");
    if (isWhole(table, share)) continue;
    await restore(run, share.subnet.address.family, iptablesText(share, leadingTo(table, CHAIN)));
    isChanged = true;
  }
  return isChanged;
}

function isWhole(table: SavedTable, share: Share): boolean {
  const hash = hashOf([share]);
  const chain = table.chains.get(CHAIN) ?? [];
  const jumps = (table.chains.get("POSTROUTING") ?? []).filter(({ text }) => ruleTarget(text) === CHAIN);
  return chain.length === 3 && jumps.length === 1 &&
    [...chain, ...jumps].every(({ text }) => ruleComment(text) === hash);
}

/** Removes the rules; that there are none is success. Returns whether there were some. */
export async function dropMasquerade(run: Run, firewall: Firewall): Promise<boolean> {
  if (firewall === "nftables") {
    if (await nftList(run, `table ${TABLE}`) === undefined) return false;
    await nft(run, `delete table ${TABLE}\n`);
    return true;
  }
  let isChanged = false;
  for (const family of [4, 6] as const) {
    const table = await savedTable(run, family, "nat");
    if (!table?.chains.has(CHAIN)) continue;
    await restore(
      run,
      family,
      transaction("nat", [...leadingTo(table, CHAIN).map((jump) => `-D ${jump}`), `-F ${CHAIN}`, `-X ${CHAIN}`]),
    );
    isChanged = true;
  }
  return isChanged;
}
