/**
 * Hardware addresses, as text: lower case, colons between bytes.
 *
 * @module
 */
import { sha512 } from "./sha512.ts";

/** Lengths in bytes of the hardware addresses that can be written: EUI-48, EUI-64, InfiniBand. */
const LENGTHS = [6, 8, 20];

/**
 * A hardware address in any of the three usual spellings, in either case, printed in lower case with colons; undefined
 * when it is none. As in Go's `net.ParseMAC`, which decides what the reference accepts, 8 and 20 bytes are addresses
 * too.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(parseMac("0200.0000.000B"), "02:00:00:00:00:0b");
 * assertEquals(parseMac("02-00-00-00-00-0b"), "02:00:00:00:00:0b");
 * assertEquals(parseMac("2:0:0:0:0:b"), undefined);
 * ```
 */
export function parseMac(text: string): string | undefined {
  const spelled = /^[0-9a-f]{2}(?::[0-9a-f]{2})+$/i.test(text) || /^[0-9a-f]{2}(?:-[0-9a-f]{2})+$/i.test(text) ||
    /^[0-9a-f]{4}(?:\.[0-9a-f]{4})+$/i.test(text);
  if (!spelled) return undefined;
  const digits = text.replaceAll(/[:.-]/g, "").toLowerCase();
  return LENGTHS.includes(digits.length / 2) ? pairs(digits) : undefined;
}

/** Bytes in an address that {@linkcode parseMac} gave; an Ethernet link takes 6. */
export function macLength(mac: string): number {
  return (mac.length + 1) / 3;
}

/** Whether a link can have this address: the kernel refuses group addresses and the zero address. */
export function isUnicastMac(mac: string): boolean {
  return (Number.parseInt(mac.slice(0, 2), 16) & 1) === 0 && !/^[0:]*$/.test(mac);
}

/** The same unicast, locally administered address for the same seed, on every node and in every call. */
export function macFromSeed(seed: string): string {
  const digits = sha512(seed).slice(0, 12);
  const first = Number.parseInt(digits.slice(0, 2), 16) & 0xfc | 0x02;
  return pairs(first.toString(16).padStart(2, "0") + digits.slice(2));
}

/**
 * The address that names an IPv4 address: `0a:58` and its four bytes, as the container network plugins of old and OVN
 * do.
 *
 * @param value the IPv4 address as an integer
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(macFromIpv4(0x0a160002n), "0a:58:0a:16:00:02");
 * ```
 */
export function macFromIpv4(value: bigint): string {
  return pairs("0a58" + value.toString(16).padStart(8, "0"));
}

function pairs(digits: string): string {
  return digits.match(/../g)!.join(":");
}
