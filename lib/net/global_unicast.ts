/** Which addresses travel. Apart from cidr.ts, since it loads a library that an ADD has no time for. */
import ipaddr from "ipaddr.js";

/** Ranges whose addresses are no one host's over any distance, as ipaddr.js names them. */
const LOCAL = new Set(["unspecified", "loopback", "multicast", "linkLocal", "broadcast"]);

/**
 * Whether packets of one host go to one host with this address, over any distance (Go `IsGlobalUnicast`): private
 * addresses count, unspecified, loopback, multicast, link-local and the IPv4 broadcast address do not. False for what
 * is no address.
 */
export function isGlobalUnicast(text: string): boolean {
  return ipaddr.isValid(text) && !LOCAL.has(ipaddr.parse(text).range());
}
