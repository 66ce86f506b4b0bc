/**
 * Addresses and prefixes of both families: parse, print, compare, count.
 *
 * What is accepted is what Go's `net` package accepts, since that decides what the reference plugins take for an
 * address.
 *
 * @module
 */

/** Number of the address family, as it is spelled in results and rules. */
export type Family = 4 | 6;

/** One address. IPv4-mapped IPv6 (`::ffff:10.0.0.1`) is IPv4, as everywhere in CNI. */
export interface Address {
  readonly family: Family;
  /** The address as an unsigned integer, first byte most significant. */
  readonly value: bigint;
}

/** An address and the length of its prefix in bits. Host bits are kept: `10.1.2.3/8` is that. */
export interface Prefix {
  readonly address: Address;
  readonly length: number;
}

/** Bits in an address of that family. */
export function familyBits(family: Family): number {
  return family === 4 ? 32 : 128;
}

/**
 * The address written in `text`, or undefined. No leading zeros in IPv4, no zone, IPv4-mapped becomes IPv4 (Go
 * `net.ParseIP`).
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(parseAddress("10.0.0.1"), { family: 4, value: 0x0a000001n });
 * assertEquals(parseAddress("::ffff:10.0.0.1"), { family: 4, value: 0x0a000001n });
 * assertEquals(parseAddress("010.0.0.1"), undefined);
 * assertEquals(parseAddress("fe80::1%eth0"), undefined);
 * ```
 */
export function parseAddress(text: string): Address | undefined {
  if (text.includes(":")) return parseIpv6(text);
  const value = parseIpv4(text);
  return value === undefined ? undefined : { family: 4, value: BigInt(value) };
}

/**
 * The address and prefix length written in `text`, or undefined (Go `net.ParseCIDR`). An IPv4-mapped address becomes
 * IPv4 and its length counts from bit 96: `::ffff:10.0.0.2/120` is `10.0.0.2/24`.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(parsePrefix("10.1.2.3/8"), { address: { family: 4, value: 0x0a010203n }, length: 8 });
 * assertEquals(parsePrefix("10.1.2.3"), undefined);
 * ```
 */
export function parsePrefix(text: string): Prefix | undefined {
  const slash = text.indexOf("/");
  if (slash < 0) return undefined;
  const written = text.slice(slash + 1);
  const address = parseAddress(text.slice(0, slash));
  if (address === undefined || !/^[0-9]+$/.test(written)) return undefined;
  const long = slash > 0 && text.lastIndexOf(":", slash) >= 0;
  const length = Number(written);
  if (length > (long ? 128 : 32)) return undefined;
  return { address, length: long && address.family === 4 ? Math.max(0, length - 96) : length };
}

/**
 * The one way to print an address: dotted decimal, or RFC 5952.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(formatAddress(parseAddress("2001:DB8:0:0:1:0:0:1")!), "2001:db8::1:0:0:1");
 * ```
 */
export function formatAddress({ family, value }: Address): string {
  return family === 4 ? formatIpv4(Number(value)) : formatIpv6(value);
}

/** `address/length`, host bits kept. */
export function formatPrefix({ address, length }: Prefix): string {
  return `${formatAddress(address)}/${length}`;
}

/** `text` printed the one way that its address is printed; undefined when it is not a valid address. */
export function canonicalAddress(text: string): string | undefined {
  const address = parseAddress(text);
  return address === undefined ? undefined : formatAddress(address);
}

/** The prefix that holds this address alone: /32 or /128. */
export function hostPrefix(address: Address): Prefix {
  return { address, length: familyBits(address.family) };
}

/** First address of the prefix: all host bits zero. */
export function networkAddress({ address, length }: Prefix): Address {
  const host = hostMask(address.family, length);
  return { family: address.family, value: address.value & ~host };
}

/** Last address of the prefix, all host bits one; in IPv4, the broadcast address. */
export function lastAddress({ address, length }: Prefix): Address {
  return { family: address.family, value: address.value | hostMask(address.family, length) };
}

/** The prefix without host bits: what a route to it is written as. */
export function networkPrefix(prefix: Prefix): Prefix {
  return { address: networkAddress(prefix), length: prefix.length };
}

/** Whether the prefix has host bits set, so that it names an address in a network rather than the network. */
export function hasHostBits({ address, length }: Prefix): boolean {
  return (address.value & hostMask(address.family, length)) !== 0n;
}

/** Whether the address lies in the prefix; never for another family. */
export function prefixContains(prefix: Prefix, address: Address): boolean {
  const rest = BigInt(familyBits(prefix.address.family) - prefix.length);
  return prefix.address.family === address.family && prefix.address.value >> rest === address.value >> rest;
}

/** Whether two prefixes have an address in common; never for different families. */
export function prefixesOverlap(a: Prefix, b: Prefix): boolean {
  return a.length <= b.length ? prefixContains(a, b.address) : prefixContains(b, a.address);
}

/** The address after this one in its family; undefined after the last: nothing wraps. */
export function nextAddress({ family, value }: Address): Address | undefined {
  return value === hostMask(family, 0) ? undefined : { family, value: value + 1n };
}

/** Order of two addresses: -1, 0 or 1. IPv4 comes before IPv6. */
export function compareAddresses(a: Address, b: Address): -1 | 0 | 1 {
  if (a.family !== b.family) return a.family < b.family ? -1 : 1;
  return a.value < b.value ? -1 : a.value > b.value ? 1 : 0;
}

/** Whether both are the same address. */
export function sameAddress(a: Address, b: Address): boolean {
  return a.family === b.family && a.value === b.value;
}

/** Whether it is 0.0.0.0 or ::. */
export function isUnspecified({ value }: Address): boolean {
  return value === 0n;
}

/** Whether it is in 127.0.0.0/8, or ::1. */
export function isLoopback({ family, value }: Address): boolean {
  return family === 4 ? value >> 24n === 127n : value === 1n;
}

/** Whether it is in 169.254.0.0/16 or fe80::/10. */
export function isLinkLocal({ family, value }: Address): boolean {
  return family === 4 ? value >> 16n === 0xa9fen : value >> 118n === 0x3fan;
}

/** As many ones as the prefix leaves for hosts. */
function hostMask(family: Family, length: number): bigint {
  return (1n << BigInt(familyBits(family) - length)) - 1n;
}

/** Dotted decimal as a number; octets without leading zeros. */
function parseIpv4(text: string): number | undefined {
  const octets = text.split(".");
  if (octets.length !== 4) return undefined;
  let value = 0;
  for (const octet of octets) {
    const number = Number(octet);
    // Printed again it has to be the same text: no leading zero, no sign, no exponent, no blank.
    if (!(number >= 0 && number <= 255) || String(number) !== octet) return undefined;
    value = value * 256 + number;
  }
  return value;
}

function parseIpv6(text: string): Address | undefined {
  const halves = text.split("::");
  if (halves.length > 2) return undefined;
  const [front, back] = halves as [string, string | undefined];
  const head = parseGroups(front, back === undefined);
  const tail = back === undefined ? [] : parseGroups(back, true);
  if (head === undefined || tail === undefined) return undefined;
  const missing = 8 - head.length - tail.length;
  // "::" stands for at least one group.
  if (back === undefined ? missing !== 0 : missing < 1) return undefined;
  let value = 0n;
  for (const group of [...head, ...Array<number>(missing).fill(0), ...tail]) value = value << 16n | BigInt(group);
  return value >> 32n === 0xffffn ? { family: 4, value: value & 0xffff_ffffn } : { family: 6, value };
}

/** Groups of 16 bits; the last two may be written as an IPv4 address, at the end of the text only. */
function parseGroups(text: string, mayEndInIpv4: boolean): number[] | undefined {
  if (text === "") return [];
  const parts = text.split(":");
  const groups: number[] = [];
  for (const [i, part] of parts.entries()) {
    if (/^[0-9a-fA-F]{1,4}$/.test(part)) {
      groups.push(Number.parseInt(part, 16));
      continue;
    }
    const dotted = mayEndInIpv4 && i === parts.length - 1 ? parseIpv4(part) : undefined;
    if (dotted === undefined) return undefined;
    groups.push(Math.floor(dotted / 0x1_0000), dotted % 0x1_0000);
  }
  return groups;
}

function formatIpv4(value: number): string {
  return `${value >>> 24}.${value >>> 16 & 255}.${value >>> 8 & 255}.${value & 255}`;
}

/**
 * RFC 5952 section 4: lower case, no leading zeros, the longest run of two or more zero groups (the first on a tie) as
 * "::".
 */
function formatIpv6(value: bigint): string {
  const digits = value.toString(16).padStart(32, "0");
  const groups = Array.from({ length: 8 }, (_, i) => Number.parseInt(digits.slice(i * 4, i * 4 + 4), 16).toString(16));
  let start = 0, length = 1;
  for (let i = 0; i < 8; i++) {
    let end = i;
    while (groups[end] === "0") end++;
    if (end - i > length) start = i, length = end - i;
    i = Math.max(i, end - 1);
  }
  if (length < 2) return groups.join(":");
  return `${groups.slice(0, start).join(":")}::${groups.slice(start + length).join(":")}`;
}

/** Network of a CIDR, printed. */
export function networkOf(cidr: string): string {
  const prefix = parsePrefix(cidr);
  return prefix ? formatPrefix(networkPrefix(prefix)) : cidr;
}
