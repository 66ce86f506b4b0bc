import { assertEquals, assertThrows } from "@std/assert";
import { CniError } from "../../lib/cni/error.ts";
import {
  candidates,
  describe,
  isGateway,
  type RangeConf,
  rangeOf,
  type RangeSet,
  rangeSets,
  size,
} from "../../lib/ipam/range.ts";
import { formatAddress, formatPrefix, parseAddress, parsePrefix } from "../../lib/net/cidr.ts";

const modern = { version: "1.0.0", atLeast030: true, warn: (note: string) => void note };

function set(...ranges: RangeConf[]): RangeSet {
  return rangeSets([ranges], modern)[0]!;
}

/** Addresses in the order in which they are tried, at most so many. */
function order(set: RangeSet, cursor?: string, limit = 100): string[] {
  const addresses: string[] = [];
  for (const { address } of candidates(set, cursor === undefined ? undefined : parseAddress(cursor))) {
    if (addresses.push(formatAddress(address)) === limit) break;
  }
  return addresses;
}

function refusal(
  sets: readonly (readonly RangeConf[])[],
  options: Partial<Parameters<typeof rangeSets>[1]> = {},
): string {
  const error = assertThrows(() => rangeSets(sets, { ...modern, ...options }), CniError);
  assertEquals(error.code, 7, error.msg);
  return error.msg;
}

Deno.test("a range has the reference's defaults", () => {
  const table: [RangeConf, string, string, string][] = [
    [{ subnet: "10.0.0.0/24" }, "10.0.0.1", "10.0.0.254", "10.0.0.1"],
    [{ subnet: "10.0.0.0/30" }, "10.0.0.1", "10.0.0.2", "10.0.0.1"],
    [{ subnet: "0.0.0.0/0" }, "0.0.0.1", "255.255.255.254", "0.0.0.1"],
    [{ subnet: "255.255.255.0/24" }, "255.255.255.1", "255.255.255.254", "255.255.255.1"],
    [{ subnet: "fd00::/126" }, "fd00::1", "fd00::3", "fd00::1"],
    [{ subnet: "FD00:0:0:1::/64" }, "fd00:0:0:1::1", "fd00::1:ffff:ffff:ffff:ffff", "fd00:0:0:1::1"],
    [{ subnet: "10.0.0.0/24", rangeStart: "10.0.0.0" }, "10.0.0.0", "10.0.0.254", "10.0.0.1"],
    [{ subnet: "10.0.0.0/24", rangeEnd: "10.0.0.255" }, "10.0.0.1", "10.0.0.255", "10.0.0.1"],
    [{ subnet: "10.0.0.0/24", rangeStart: "10.0.0.5", rangeEnd: "10.0.0.5" }, "10.0.0.5", "10.0.0.5", "10.0.0.1"],
    [{ subnet: "10.0.0.0/24", rangeStart: "::ffff:10.0.0.9" }, "10.0.0.9", "10.0.0.254", "10.0.0.1"],
    [{ subnet: "10.0.0.0/24", gateway: "192.0.2.1" }, "10.0.0.1", "10.0.0.254", "192.0.2.1"],
  ];
  for (const [conf, start, end, gateway] of table) {
    const [range] = set(conf);
    const text = JSON.stringify(conf);
    assertEquals(formatAddress(range.start), start, text);
    assertEquals(formatAddress(range.end), end, text);
    assertEquals(formatAddress(range.gateway), gateway, text);
  }
  assertEquals(formatPrefix(set({ subnet: "FD00::/64" })[0].subnet), "fd00::/64");
});

Deno.test("a mistake in a range is named in the reference's words", () => {
  const table: [RangeConf, string][] = [
    [{}, "IP <nil> not v4 nor v6"],
    [{ rangeStart: "10.0.0.1" }, "IP <nil> not v4 nor v6"],
    [{ subnet: "10.0.0.0/31" }, "Network 10.0.0.0/31 too small to allocate from"],
    [{ subnet: "10.0.0.0/32" }, "Network 10.0.0.0/32 too small to allocate from"],
    [{ subnet: "fd00::/127" }, "Network fd00::/127 too small to allocate from"],
    [{ subnet: "fd00::/128" }, "Network fd00::/128 too small to allocate from"],
    [{ subnet: "10.0.0.1/31" }, "Network 10.0.0.1/31 too small to allocate from"],
    [{ subnet: "::ffff:10.0.0.0/127" }, "Network 10.0.0.0/31 too small to allocate from"],
    [{ subnet: "::ffff:10.0.0.0/120" }, "IPNet IP and Mask version mismatch"],
    [
      { subnet: "192.0.2.7/24" },
      "Network has host bits set. For a subnet mask of length 24 the network address is 192.0.2.0",
    ],
    [
      { subnet: "fd00::5/64" },
      "Network has host bits set. For a subnet mask of length 64 the network address is fd00::",
    ],
    [{ subnet: "10.0.0.0/24", rangeStart: "10.0.1.1" }, "RangeStart 10.0.1.1 not in network 10.0.0.0/24"],
    [{ subnet: "10.0.0.0/24", rangeStart: "fd00::1" }, "RangeStart fd00::1 not in network 10.0.0.0/24"],
    [{ subnet: "10.0.0.0/24", rangeEnd: "10.0.1.1" }, "RangeEnd 10.0.1.1 not in network 10.0.0.0/24"],
    [
      { subnet: "10.0.0.0/24", rangeStart: "10.0.0.9", rangeEnd: "10.0.0.8" },
      "RangeStart 10.0.0.9 not in network 10.0.0.0/24",
    ],
    [{ subnet: "10.0.0.0/24", rangeEnd: "10.0.0.0" }, "RangeEnd 10.0.0.0 not in network 10.0.0.0/24"],
    // The reference accepts this one and then gives out addresses of the next network.
    [{ subnet: "10.0.0.0/24", rangeStart: "10.0.0.255" }, "RangeStart 10.0.0.255 not in network 10.0.0.0/24"],
    [{ subnet: "10.0.0.0/24", gateway: "fd00::1" }, "gateway fd00::1 is not in the address family of 10.0.0.0/24"],
  ];
  for (const [conf, msg] of table) assertEquals(refusal([[conf]]), `invalid range set 0: ${msg}`);
  assertEquals(
    refusal([[{ subnet: "10.0.0.0/24" }], [{ subnet: "10.1.0.0/31" }]]).slice(0, 20),
    "invalid range set 1:",
  );
});

Deno.test("a mistake in the sets is named in the reference's words", () => {
  const a = { subnet: "10.1.0.0/22" }, low = { subnet: "10.1.2.0/24" };
  const table: [RangeConf[][], string][] = [
    [[], "no IP ranges specified"],
    [[[]], "invalid range set 0: empty range set"],
    [[[a], []], "invalid range set 1: empty range set"],
    [[[a, { subnet: "fd00::/64" }]], "invalid range set 0: mixed address families"],
    [[[a, low]], "invalid range set 0: subnets 10.1.0.1-10.1.3.254 and 10.1.2.1-10.1.2.254 overlap"],
    [[[a, a]], "invalid range set 0: subnets 10.1.0.1-10.1.3.254 and 10.1.0.1-10.1.3.254 overlap"],
    [[[a], [low]], "range set 0 overlaps with 1"],
    [[[low], [{ subnet: "fd00::/64" }], [a]], "range set 0 overlaps with 2"],
    [
      [[{ subnet: "10.0.0.0/24", rangeEnd: "10.0.0.9" }], [{ subnet: "10.0.0.0/24", rangeStart: "10.0.0.9" }]],
      "range set 0 overlaps with 1",
    ],
  ];
  for (const [sets, msg] of table) assertEquals(refusal(sets), msg);
});

Deno.test("ranges with disjoint bounds and families do not overlap", () => {
  const halves = [
    [{ subnet: "10.0.0.0/24", rangeEnd: "10.0.0.9" }],
    [{ subnet: "10.0.0.0/24", rangeStart: "10.0.0.10" }],
    [{ subnet: "::/0" }],
  ];
  assertEquals(rangeSets(halves, modern).map(describe), [
    "10.0.0.1-10.0.0.9",
    "10.0.0.10-10.0.0.254",
    "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
  ]);
  assertEquals(describe(set(...halves.slice(0, 2).flat())), "10.0.0.1-10.0.0.9,10.0.0.10-10.0.0.254");
});

Deno.test("one address per family before 0.3.0", () => {
  const old = { version: "0.2.0", atLeast030: false };
  const v4 = [{ subnet: "10.0.0.0/24" }], other = [{ subnet: "10.0.1.0/24" }], v6 = [{ subnet: "fd00::/64" }];
  const words = "does not support more than 1 address per family";
  assertEquals(refusal([v4, other], old), `CNI version 0.2.0 ${words}`);
  assertEquals(refusal([v4, other], { ...old, version: "" }), `CNI version  ${words}`);
  assertEquals(refusal([v6, v4, [{ subnet: "fd01::/64" }]], old), `CNI version 0.2.0 ${words}`);
  assertEquals(rangeSets([v4, v6], { ...modern, ...old }).length, 2);
  // Counted before overlaps are looked for.
  assertEquals(refusal([v4, v4], old), `CNI version 0.2.0 ${words}`);
});

Deno.test("a gateway outside its subnet is told, and taken", () => {
  const notes: string[] = [];
  rangeSets([[{ subnet: "10.0.0.0/24", gateway: "10.0.1.1" }]], { ...modern, warn: (note) => notes.push(note) });
  assertEquals(notes, ["gateway 10.0.1.1 is outside its subnet 10.0.0.0/24"]);
});

Deno.test("candidates go round once, gateways left out, the cursor's own address last", () => {
  const small = set({ subnet: "10.0.0.0/29" });
  assertEquals(order(small), [2, 3, 4, 5, 6].map((n) => `10.0.0.${n}`));
  assertEquals(order(small, "10.0.0.3"), [4, 5, 6, 2, 3].map((n) => `10.0.0.${n}`));
  assertEquals(order(small, "10.0.0.6"), [2, 3, 4, 5, 6].map((n) => `10.0.0.${n}`));
  assertEquals(order(small, "10.0.0.1"), [2, 3, 4, 5, 6].map((n) => `10.0.0.${n}`));
  assertEquals(order(small, "10.0.0.7"), order(small));
  assertEquals(order(small, "fd00::3"), order(small));
  assertEquals(order(set({ subnet: "10.0.0.0/30" })), ["10.0.0.2"]);
  assertEquals(order(set({ subnet: "fd00::/126" })), ["fd00::2", "fd00::3"]);
  const at = { subnet: "10.0.0.0/24", rangeStart: "10.0.0.5", rangeEnd: "10.0.0.5", gateway: "10.0.0.5" };
  assertEquals(order(set(at)), []);
});

Deno.test("candidates hop from range to range", () => {
  const two = set({ subnet: "10.0.0.0/30" }, { subnet: "10.0.1.0/29" });
  assertEquals(order(two), ["10.0.0.2", ...[2, 3, 4, 5, 6].map((n) => `10.0.1.${n}`)]);
  assertEquals(order(two, "10.0.0.2"), [...[2, 3, 4, 5, 6].map((n) => `10.0.1.${n}`), "10.0.0.2"]);
  assertEquals(order(two, "10.0.1.6"), ["10.0.0.2", ...[2, 3, 4, 5, 6].map((n) => `10.0.1.${n}`)]);
  assertEquals(order(two, "10.0.1.4"), ["10.0.1.5", "10.0.1.6", "10.0.0.2", "10.0.1.2", "10.0.1.3", "10.0.1.4"]);
});

Deno.test("gateways of sibling ranges are not given out", () => {
  const two = set(
    { subnet: "10.0.0.0/29", rangeEnd: "10.0.0.3", gateway: "10.0.0.6" },
    { subnet: "10.0.0.0/29", rangeStart: "10.0.0.4", gateway: "10.0.0.2" },
  );
  assertEquals(order(two), ["10.0.0.1", "10.0.0.3", "10.0.0.4", "10.0.0.5"]);
  assertEquals(size(two), 4n);
  assertEquals(isGateway(two, parseAddress("10.0.0.2")!), true);
});

Deno.test("gateways inside, at the ends, and outside of a range", () => {
  const within = (gateway: string) => set({ subnet: "10.0.0.0/29", gateway });
  assertEquals(order(within("10.0.0.4")), [1, 2, 3, 5, 6].map((n) => `10.0.0.${n}`));
  assertEquals(order(within("10.0.0.6")), [1, 2, 3, 4, 5].map((n) => `10.0.0.${n}`));
  assertEquals(order(within("10.0.0.1"), "10.0.0.6"), [2, 3, 4, 5, 6].map((n) => `10.0.0.${n}`));
  assertEquals(order(within("10.0.9.1")), [1, 2, 3, 4, 5, 6].map((n) => `10.0.0.${n}`));
});

Deno.test("ranges at the end of the address space do not overflow", () => {
  const top = set({ subnet: "255.255.255.0/24", rangeStart: "255.255.255.254", rangeEnd: "255.255.255.255" });
  assertEquals(order(top), ["255.255.255.254", "255.255.255.255"]);
  assertEquals(order(top, "255.255.255.255"), ["255.255.255.254", "255.255.255.255"]);
  const top6 = set({ subnet: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126" });
  assertEquals(order(top6, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe").length, 2);
});

Deno.test("large ranges are walked one by one, not listed", () => {
  const large = set({ subnet: "fd00::/64" });
  assertEquals(order(large, "fd00::ffff:ffff:ffff:fffe", 3), ["fd00::ffff:ffff:ffff:ffff", "fd00::2", "fd00::3"]);
  assertEquals(size(large), 2n ** 64n - 2n);
  assertEquals(order(set({ subnet: "0.0.0.0/0" }), "10.255.255.255", 1), ["11.0.0.0"]);
});

Deno.test("rangeOf finds the range between start and end", () => {
  const two = set({ subnet: "10.0.0.0/29" }, { subnet: "10.0.1.0/29" });
  assertEquals(rangeOf(two, parseAddress("10.0.1.3")!), two[1]);
  for (const text of ["10.0.0.0", "10.0.0.7", "10.0.2.1", "::a00:103"]) {
    assertEquals(rangeOf(two, parseAddress(text)!), undefined, text);
  }
});

/** A range with exclusions, as texts. */
function without(conf: RangeConf, ...excluded: string[]): RangeConf {
  return { ...conf, excluded: excluded.map((text) => parsePrefix(text)!) };
}

Deno.test("what is excluded is never a candidate, and does not count", () => {
  const conf = without({ subnet: "10.0.0.0/28" }, "10.0.0.4/30", "10.0.0.6/32", "10.0.0.9/32", "10.0.0.1/32");
  const one = set(conf);
  const texts = [...candidates(one)].map(({ address }) => formatAddress(address));
  assertEquals(texts, [
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.8",
    "10.0.0.10",
    "10.0.0.11",
    "10.0.0.12",
    "10.0.0.13",
    "10.0.0.14",
  ]);
  assertEquals(size(one), BigInt(texts.length));
  const round = [...candidates(one, parseAddress("10.0.0.8")!)].map(({ address }) => formatAddress(address));
  assertEquals(round.toSorted(), texts.toSorted());
  assertEquals([round[0], round.at(-1)], ["10.0.0.10", "10.0.0.8"]);
});

Deno.test("a large exclusion is stepped over, not through", () => {
  const one = set(without({ subnet: "fd00::/64", rangeStart: "fd00::10" }, "fd00::/65"));
  assertEquals(order(one, undefined, 1), ["fd00::8000:0:0:0"]);
  assertEquals(size(one), 1n << 63n);
});

Deno.test("exclusions outside of their range, and those that leave nothing, are refused", () => {
  const subnet = "10.0.0.0/29";
  assertEquals(
    refusal([[without({ subnet }, "10.0.1.0/30")]]),
    "invalid range set 0: exclude 10.0.1.0/30 not in network 10.0.0.0/29",
  );
  assertEquals(
    refusal([[without({ subnet }, "10.0.0.0/28")]]),
    "invalid range set 0: exclude leaves nothing of 10.0.0.0/29",
  );
  const shared = { ...modern, excluded: [parsePrefix("10.0.1.0/30")!] };
  assertEquals(refusal([[{ subnet }]], shared), "exclude 10.0.1.0/30 is in no range");
  const [checked] = rangeSets([[{ subnet }, { subnet: "10.0.1.0/29" }]], shared);
  assertEquals(checked && size(checked), 5n + 3n, "of the range that it lies in");
});
