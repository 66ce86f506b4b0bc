/**
 * Short, stable names from network, container and interface. Chain names, comments and hashes are the reference
 * plugins' own formulas, so that either implementation finds and deletes what the other made: they must match to the
 * byte.
 *
 * @module
 */
import { sha512 } from "./sha512.ts";

/** What an attachment is known by: network name, container ID, and the interface's name in the container. */
export interface Attachment {
  readonly network: string;
  readonly containerId: string;
  readonly ifName: string;
}

/** Are both the same attachment? */
export function sameAttachment(a: Attachment, b: Attachment): boolean {
  return a.network === b.network && a.containerId === b.containerId && a.ifName === b.ifName;
}

/** Network and container without the interface: what the iptables names of the reference depend on. */
export type Owner = Pick<Attachment, "network" | "containerId">;

/** Longest chain name that the reference makes, in characters; iptables itself takes 28. */
const CHAIN_LENGTH = 28;
/** An nft comment holds 128 bytes. */
const NFT_COMMENT_BYTES = 128;
/** The comment match of iptables holds 255 bytes and a zero. */
const IPTABLES_COMMENT_BYTES = 255;

/**
 * iptables chain of one container on one network: `CNI-`, the infix, and the hash of name and ID, 28 characters in
 * total. Network and ID are joined without a separator, and the interface takes no part, as in the reference.
 *
 * @param infix tells the chains of one plugin from those of another: `DN-` for portmap
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(chainName({ network: "net1", containerId: "ctr1" }), "CNI-85373d34c6846b6c53ee2e7f");
 * assertEquals(chainName({ network: "test", containerId: "1234" }, "PREFIX-"), "CNI-PREFIX-2bbe0c48b91a7d1b8");
 * ```
 */
export function chainName({ network, containerId }: Owner, infix = ""): string {
  const prefix = `CNI-${infix}`;
  if (prefix.length >= CHAIN_LENGTH) throw new RangeError(`chain name "${prefix}" leaves no room for a hash`);
  return (prefix + sha512(network + containerId)).slice(0, CHAIN_LENGTH);
}

/**
 * Comment on a container's masquerade rules in iptables. The double quotes are part of the text.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(iptablesComment({ network: "net1", containerId: "ctr1" }), 'name: "net1" id: "ctr1"');
 * ```
 */
export function iptablesComment({ network, containerId }: Owner): string {
  return `name: "${network}" id: "${containerId}"`;
}

/**
 * Comment on the rules that lead to a container's port mappings in iptables; one over 255 bytes ends in three dots at
 * byte 256.
 */
export function dnatComment(owner: Owner): string {
  const comment = `dnat ${iptablesComment(owner)}`;
  return utf8Length(comment) > IPTABLES_COMMENT_BYTES
    ? cutToBytes(comment, IPTABLES_COMMENT_BYTES - 2) + "..."
    : comment;
}

/**
 * Hash that the comments of all nft rules of one network begin with: 16 hexadecimal digits.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(nftNetworkHash("unit-test"), "6fd94d501e58f0aa");
 * ```
 */
export function nftNetworkHash(network: string): string {
  return sha512(network).slice(0, 16);
}

/**
 * What the comments of one attachment's nft rules begin with: 33 characters, never cut.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * const attachment = { network: "unit-test", containerId: "one", ifName: "eth0" };
 * assertEquals(nftAttachmentHash(attachment), "6fd94d501e58f0aa-287fc69eff0574a2");
 * ```
 */
export function nftAttachmentHash({ network, containerId, ifName }: Attachment): string {
  return `${nftNetworkHash(network)}-${sha512(`${ifName}:${containerId}`).slice(0, 16)}`;
}

/**
 * Comment on an attachment's nft rules: its hash and, as far as 128 bytes go, network, interface and container in plain
 * text.
 */
export function nftRuleComment(attachment: Attachment): string {
  const { network, containerId, ifName } = attachment;
  const plain = `net: ${network}, if: ${ifName}, id: ${containerId}`.replaceAll('"', "");
  return cutToBytes(`${nftAttachmentHash(attachment)}, ${plain}`, NFT_COMMENT_BYTES);
}

/**
 * Name of the host end of an attachment's veth pair: `veth` and 8 hexadecimal digits, the reference's pattern. Computed
 * where the reference draws it, so that DEL finds the link when the container's namespace is gone. 32 bits are not
 * enough to tell attachments apart: it is a place to look, and another `attempt` gives the next place when a link of
 * somebody else is there.
 */
export function vethName({ network, containerId, ifName }: Attachment, attempt = 0): string {
  // ":" occurs in none of the three, so no two attachments share a seed.
  return `veth${sha512(`${network}:${containerId}:${ifName}${attempt === 0 ? "" : `:${attempt}`}`).slice(0, 8)}`;
}

function utf8Length(text: string): number {
  return new TextEncoder().encode(text).length;
}

/** As many whole characters of `text` as fit into `limit` bytes. */
function cutToBytes(text: string, limit: number): string {
  const bytes = new TextEncoder().encode(text);
  if (bytes.length <= limit) return text;
  let end = limit;
  while ((bytes[end]! & 0xc0) === 0x80) end--;
  return new TextDecoder().decode(bytes.subarray(0, end));
}
