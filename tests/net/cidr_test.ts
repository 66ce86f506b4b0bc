import { assertEquals } from "@std/assert";
import ipaddr from "ipaddr.js";
import {
  canonicalAddress,
  compareAddresses,
  formatAddress,
  formatPrefix,
  hasHostBits,
  hostPrefix,
  lastAddress,
  networkAddress,
  networkPrefix,
  nextAddress,
  parseAddress,
  parsePrefix,
  prefixContains,
  prefixesOverlap,
  sameAddress,
} from "../../lib/net/cidr.ts";

Deno.test("addresses are printed as dotted decimal or as RFC 5952 says", () => {
  const table: [string, string][] = [
    ["0.0.0.0", "0.0.0.0"],
    ["10.22.0.2", "10.22.0.2"],
    ["255.255.255.255", "255.255.255.255"],
    ["::", "::"],
    ["::1", "::1"],
    ["1::", "1::"],
    ["2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"],
    ["2001:DB8:0:0:0:0:2:1", "2001:db8::2:1"],
    ["2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"],
    ["2001:0db8:0000:0000:0001:0000:0000:0000", "2001:db8:0:0:1::"],
    ["1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"],
    ["::2:3:4:5:6:7:8", "0:2:3:4:5:6:7:8"],
    ["0:0:1::", "0:0:1::"],
    ["fd00:0022::0002", "fd00:22::2"],
    ["::100:0", "::100:0"],
    ["::10.0.0.1", "::a00:1"],
    ["64:ff9b::192.0.2.33", "64:ff9b::c000:221"],
    ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"],
    ["::ffff:10.0.0.1", "10.0.0.1"],
    ["::FFFF:a00:1", "10.0.0.1"],
    ["0:0:0:0:0:ffff:255.255.255.255", "255.255.255.255"],
  ];
  for (const [text, printed] of table) assertEquals(canonicalAddress(text), printed, text);
});

Deno.test("an address is refused as Go refuses it", () => {
  const table = [
    "",
    " ",
    "10.0.0",
    "10.0.0.0.1",
    "10.0.0.256",
    "10.0.0.1000",
    "010.0.0.1",
    "10.0.0.00",
    "10.0.0.-1",
    "10.0.0.+1",
    "10.0.0.1 ",
    " 10.0.0.1",
    "10.0.0.",
    "10..0.1",
    "0x0a.0.0.1",
    "1e1.0.0.1",
    "10.0.0.1/24",
    "a.b.c.d",
    "١٠.0.0.1",
    ":",
    ":::",
    "::1::",
    "1::2::3",
    ":1::2",
    "1::2:",
    "1:2:3:4:5:6:7",
    "1:2:3:4:5:6:7:8:9",
    "1:2:3:4::5:6:7:8",
    "1:2:3:4:5:6:7:8::",
    "12345::",
    "g::",
    "fe80::1%eth0",
    "[::1]",
    "::10.0.0.01",
    "::10.0.0",
    "10.0.0.1::",
    "::10.0.0.1:1",
    "::1.2.3.4::",
    "1:2:3:4:5:6:7:10.0.0.1",
    "::0x1",
    "1.2.3.4:5::",
  ];
  for (const text of table) assertEquals(parseAddress(text), undefined, text);
});

Deno.test("prefixes keep their host bits and print what they say", () => {
  const table: [string, string | undefined][] = [
    ["10.1.2.3/8", "10.1.2.3/8"],
    ["0.0.0.0/0", "0.0.0.0/0"],
    ["10.0.0.0/024", "10.0.0.0/24"],
    ["FD00::5/64", "fd00::5/64"],
    ["::/0", "::/0"],
    ["::ffff:10.0.0.2/120", "10.0.0.2/24"],
    ["::ffff:10.0.0.2/90", "10.0.0.2/0"],
    ["10.0.0.0", undefined],
    ["10.0.0.0/", undefined],
    ["/24", undefined],
    ["", undefined],
    ["10.0.0.0/33", undefined],
    ["10.0.0.0/-1", undefined],
    ["10.0.0.0/+8", undefined],
    ["10.0.0.0/8/8", undefined],
    ["10.0.0.0/8 ", undefined],
    ["10.0.0.0/2:4", undefined],
    ["010.0.0.0/24", undefined],
    ["::/129", undefined],
    ["fe80::1%eth0/64", undefined],
    ["10.0.0.0/255.0.0.0", undefined],
    ["10.0.0.0/99999999999999999999", undefined],
  ];
  for (const [text, printed] of table) {
    const prefix = parsePrefix(text);
    assertEquals(prefix && formatPrefix(prefix), printed, text);
  }
});

Deno.test("a prefix knows its first and last address and its network", () => {
  const table: [string, string, string, boolean][] = [
    ["10.1.2.3/24", "10.1.2.0", "10.1.2.255", true],
    ["10.1.2.0/24", "10.1.2.0", "10.1.2.255", false],
    ["10.1.2.3/32", "10.1.2.3", "10.1.2.3", false],
    ["1.2.3.4/0", "0.0.0.0", "255.255.255.255", true],
    ["255.255.255.255/31", "255.255.255.254", "255.255.255.255", true],
    ["fd00::5/64", "fd00::", "fd00::ffff:ffff:ffff:ffff", true],
    ["fd00::5/128", "fd00::5", "fd00::5", false],
    ["::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false],
  ];
  for (const [text, first, last, hostBits] of table) {
    const prefix = parsePrefix(text)!;
    assertEquals(formatAddress(networkAddress(prefix)), first, text);
    assertEquals(formatAddress(lastAddress(prefix)), last, text);
    assertEquals(hasHostBits(prefix), hostBits, text);
    assertEquals(formatPrefix(networkPrefix(prefix)), `${first}/${prefix.length}`, text);
  }
});

Deno.test("counting up stays in the family and does not wrap", () => {
  const table: [string, string | undefined][] = [
    ["10.0.0.255", "10.0.1.0"],
    ["0.0.0.0", "0.0.0.1"],
    ["255.255.255.255", undefined],
    ["::", "::1"],
    ["::ffff", "::1:0"],
    ["::100:0", "::100:1"],
    ["fd00::ffff:ffff:ffff:ffff", "fd00:0:0:1::"],
    ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", undefined],
  ];
  for (const [text, next] of table) {
    const after = nextAddress(parseAddress(text)!);
    assertEquals(after && formatAddress(after), next, text);
  }
});

Deno.test("a prefix contains the addresses of its family from first to last", () => {
  const table: [string, string, boolean][] = [
    ["10.0.0.0/24", "10.0.0.0", true],
    ["10.0.0.77/24", "10.0.0.255", true],
    ["10.0.0.0/24", "10.0.1.0", false],
    ["10.0.0.0/24", "9.255.255.255", false],
    ["0.0.0.0/0", "255.255.255.255", true],
    ["0.0.0.0/0", "::", false],
    ["::/0", "0.0.0.0", false],
    ["::/0", "ffff::", true],
    ["fd00::/126", "fd00::3", true],
    ["fd00::/126", "fd00::4", false],
    ["10.0.0.1/32", "10.0.0.1", true],
    ["10.0.0.1/32", "10.0.0.0", false],
  ];
  for (const [prefix, address, inside] of table) {
    assertEquals(prefixContains(parsePrefix(prefix)!, parseAddress(address)!), inside, `${address} in ${prefix}`);
  }
});

Deno.test("prefixes overlap when one lies in the other", () => {
  const table: [string, string, boolean][] = [
    ["10.0.0.0/8", "10.1.0.0/16", true],
    ["10.1.0.0/16", "10.0.0.0/8", true],
    ["10.0.0.0/24", "10.0.1.0/24", false],
    ["0.0.0.0/0", "::/0", false],
    ["::/0", "fd00::/8", true],
  ];
  for (const [a, b, overlap] of table) assertEquals(prefixesOverlap(parsePrefix(a)!, parsePrefix(b)!), overlap);
});

Deno.test("addresses are ordered by family, then by value", () => {
  const order = ["0.0.0.0", "10.0.0.9", "10.0.0.10", "255.255.255.255", "::", "::1", "fd00::"];
  for (const [i, a] of order.entries()) {
    for (const [j, b] of order.entries()) {
      assertEquals(compareAddresses(parseAddress(a)!, parseAddress(b)!), Math.sign(i - j) as -1 | 0 | 1, `${a} ${b}`);
      assertEquals(sameAddress(parseAddress(a)!, parseAddress(b)!), i === j, `${a} ${b}`);
    }
  }
});

Deno.test("a host prefix is as long as its family's addresses", () => {
  assertEquals(formatPrefix(hostPrefix(parseAddress("10.0.0.1")!)), "10.0.0.1/32");
  assertEquals(formatPrefix(hostPrefix(parseAddress("fd00::1")!)), "fd00::1/128");
});

/** Numbers from 0 to 1, the same in every run. */
function* pseudoRandom(seed: number): Generator<number, never> {
  for (;;) {
    seed = (seed * 1103515245 + 12345) % 0x8000_0000;
    yield seed / 0x8000_0000;
  }
}

Deno.test("addresses are read, printed and matched as ipaddr.js does it", () => {
  const random = pseudoRandom(7);
  const below = (limit: number) => Math.floor(random.next().value * limit);
  for (let count = 0; count < 3000; count++) {
    const family = below(2) === 0 ? 4 : 6;
    // Many zeros, for runs of every length at every place.
    const parts = Array.from({ length: family === 4 ? 4 : 8 }, () => below(3) * below(family === 4 ? 128 : 0x8000));
    const theirs = family === 4 ? new ipaddr.IPv4(parts) : new ipaddr.IPv6(parts);
    const text = "toRFC5952String" in theirs ? theirs.toRFC5952String() : theirs.toString();
    const ours = parseAddress(theirs.toNormalizedString())!;
    if (!text.startsWith("::ffff:")) assertEquals([ours.family, formatAddress(ours)], [family, text]);
    assertEquals(parseAddress(text), ours);
    const length = below(family === 4 ? 33 : 129);
    const other = below(2) === 0 ? parts.with(-1, below(200)) : parts.with(0, below(200));
    const stranger = family === 4 ? new ipaddr.IPv4(other) : new ipaddr.IPv6(other);
    const inside = stranger.match(theirs, length);
    const candidate = parseAddress(stranger.toNormalizedString())!;
    assertEquals(prefixContains({ address: ours, length }, candidate), inside, `${stranger} in ${text}/${length}`);
  }
});
