import { assertEquals, assertRejects } from "@std/assert";
import { plugin } from "../../plugins/vrf/mod.ts";
import { planMove } from "../../plugins/vrf/move.ts";
import { CniError } from "../../lib/cni/error.ts";
import type { JsonObject } from "../../lib/cni/types.ts";
import type { Link } from "../../lib/kernel/ip.ts";
import type { KernelRoute } from "../../lib/kernel/routing.ts";
import { SETTLE_SCRIPT } from "../../lib/link/settling.ts";
import { fakeCall } from "../fakes/call.ts";
import { recordedRun } from "../fakes/run.ts";

const NETNS = "/proc/self/ns/net";
const enter = `$ nsenter --net=${NETNS} --`;
const prevResult = {
  interfaces: [{ name: "net1", sandbox: NETNS }],
  ips: [{ address: "10.0.0.2/24", interface: 0 }, { address: "fd00::2/64", interface: 0 }],
};
const LOCAL6 = { family: "inet6", local: "fe80::1", prefixlen: 64, scope: "253" };
const ADDRESSES = [
  { family: "inet", local: "10.0.0.2", prefixlen: 24, scope: "0" },
  { family: "inet6", local: "fd00::2", prefixlen: 64, scope: "0" },
  LOCAL6,
];
const LINK = {
  ifindex: 3,
  ifname: "net1",
  flags: ["UP", "LOWER_UP"],
  mtu: 1500,
  operstate: "UP",
  addr_info: ADDRESSES,
};
const vrf = (ifname: string, table: number) => ({
  ifindex: 9,
  ifname,
  flags: ["UP"],
  mtu: 65575,
  linkinfo: { info_kind: "vrf", info_data: { table } },
});
const bridge = { ifindex: 8, ifname: "br0", flags: ["UP"], linkinfo: { info_kind: "bridge" } };
const RULES = [{ priority: 0, src: "all", table: "255" }, { priority: 1000, src: "all", l3mdev: null }, {
  priority: 32766,
  src: "all",
  table: "254",
}];
const route4 = (dst: string, more: JsonObject = {}) => ({
  type: "1",
  dst,
  dev: "net1",
  table: "254",
  protocol: "3",
  scope: "0",
  flags: [],
  ...more,
});

interface State {
  readonly links?: readonly unknown[];
  readonly rules?: readonly unknown[];
  readonly routes?: readonly unknown[];
  readonly routes6?: readonly unknown[];
}

function listed({ links = [LINK], rules = RULES, routes = [], routes6 = [] }: State): string {
  return `${enter} ip -j -N -d -force -batch -
< rule show
< route show table all root 0.0.0.0/0
< addr show
< route show table all root ::/0
> ${JSON.stringify(rules)}
> ${JSON.stringify(routes)}
> ${JSON.stringify(links)}
> ${JSON.stringify(routes6)}
${enter} ip -6 -j -N rule show
> []`;
}

const batch = (...lines: string[]) => `${enter} ip -j -d -batch -\n${lines.map((line) => `< ${line}`).join("\n")}`;
const shown = (...links: unknown[]) => `${batch("addr show")}\n> ${JSON.stringify(links)}`;
const forced = (...lines: string[]) => `${enter} ip -force -batch -\n${lines.map((line) => `< ${line}`).join("\n")}`;

function callWith(config: JsonObject, transcript: string, verb: "ADD" | "DEL" | "CHECK" = "ADD") {
  const run = recordedRun(transcript);
  const call = fakeCall({ vrfname: "blue", prevResult, ...config }, { verb, netns: NETNS, ifName: "net1", host: run });
  return { call, run };
}

async function undone(call: { undos: (() => unknown)[] }): Promise<void> {
  for (const back of call.undos.reverse()) await back();
}

async function adds(config: JsonObject, ...transcript: string[]): Promise<void> {
  const { call, run } = callWith(config, transcript.join("\n"));
  try {
    assertEquals((await plugin.add(call)).ips, prevResult.ips);
    assertEquals(run.unused(), []);
    assertEquals(call.warnings, []);
  } catch (error) {
    await Promise.resolve(call.undos[0]?.());
    throw error;
  }
}

Deno.test("vrf ADD makes the VRF and brings addresses and routes along in one process", () =>
  adds(
    {},
    listed({
      routes: [
        route4("default", { gateway: "10.0.0.1", metric: 50 }),
        route4("10.0.0.0/24", { protocol: "2", scope: "253", prefsrc: "10.0.0.2" }),
        route4("10.66.0.0/16", { scope: "253" }),
        route4("10.0.0.2", { type: "2", table: "255", protocol: "2" }),
        route4("10.9.0.0/16", { dev: "eth0" }),
      ],
      routes6: [{ ...route4("fd01::/64", { gateway: "fd00::1" }), metric: 1024, pref: "medium" }],
    }),
    batch(
      "link add name blue type vrf table 1",
      "link set dev blue up",
      "addr del fd00::2/64 dev net1",
      "link set dev net1 master blue",
      "addr add fd00::2/64 nodad dev net1",
      "route append 10.66.0.0/16 dev net1 proto 3 scope 253 table 1",
      "route append 0.0.0.0/0 via 10.0.0.1 dev net1 proto 3 scope 0 metric 50 table 1",
      "route append fd01::/64 via fd00::1 dev net1 proto 3 scope 0 metric 1024 pref medium table 1",
    ),
  ));

const noAddresses = { ...LINK, addr_info: [] };
const tables: readonly [promise: string, config: JsonObject, state: State, line: string][] = [
  [
    "takes the next table after other VRFs",
    {},
    { links: [noAddresses, vrf("red", 1), vrf("green", 3)] },
    "link add name blue type vrf table 2",
  ],
  ["passes tables over that rules or routes have", {}, {
    links: [noAddresses],
    rules: [...RULES, { priority: 9, src: "10.0.0.9", table: "1" }],
    routes: [route4("10.3.0.0/16", { dev: "eth0", table: "2" })],
  }, "link add name blue type vrf table 3"],
  [
    "takes the configured table, also one that another VRF has",
    { table: 7 },
    { links: [noAddresses, vrf("red", 7)] },
    "link add name blue type vrf table 7",
  ],
  [
    "takes the largest table",
    { table: 4294967295 },
    { links: [noAddresses] },
    "link add name blue type vrf table 4294967295",
  ],
];

for (const [promise, config, state, line] of tables) {
  Deno.test(`vrf ADD ${promise}`, () =>
    adds(config, listed(state), batch(line, "link set dev blue up", "link set dev net1 master blue")));
}

Deno.test("vrf ADD uses a VRF that is there, with its table", () =>
  adds(
    { VRFNAME: "red" },
    listed({ links: [noAddresses, vrf("red", 42)], routes: [route4("10.66.0.0/16")] }),
    batch("link set dev net1 master red", "route append 10.66.0.0/16 dev net1 proto 3 scope 0 table 42"),
  ));

Deno.test("vrf ADD again gives the interface what it lacks", () =>
  adds(
    {},
    listed({ links: [{ ...LINK, master: "blue", addr_info: [LOCAL6] }, vrf("blue", 1)] }),
    batch("addr add 10.0.0.2/24 dev net1 brd +", "addr add fd00::2/64 dev net1 nodad"),
  ));

Deno.test("vrf ADD waits for addresses that are still looked for duplicates of, then adds what names them", () => {
  const tentative = [{ ...ADDRESSES[1], tentative: true }];
  return adds(
    {},
    listed({
      links: [{ ...LINK, addr_info: tentative }, vrf("blue", 1)],
      routes6: [route4("fd01::/64", { gateway: "fd00::1", prefsrc: "fd00::2" })],
    }),
    batch("addr del fd00::2/64 dev net1", "link set dev net1 master blue", "addr add fd00::2/64 dev net1"),
    `${enter} sh -c ${SETTLE_SCRIPT.replaceAll("\n", " ")} sh net1 100 0.05`,
    batch("route append fd01::/64 via fd00::1 dev net1 proto 3 scope 0 src fd00::2 table 1"),
  );
});

const refusals: readonly [promise: string, config: JsonObject, transcript: string, msg: string][] = [
  ["demands a name", { vrfname: "" }, "", "configuration is expected to have a valid vrf name"],
  ["demands a prevResult", { prevResult: null }, "", "missing prevResult from earlier plugin"],
  [
    "refuses a negative table",
    { table: -1 },
    "",
    "failed to load netconf: json: cannot unmarshal number -1 into Go struct field VRFNetConf.table of type uint32",
  ],
  [
    "refuses a table beyond 32 bits",
    { table: 4294967296 },
    "",
    "failed to load netconf: json: cannot unmarshal number 4294967296 into Go struct field VRFNetConf.table of type uint32",
  ],
  [
    "refuses a table in words",
    { table: "5" },
    "",
    "failed to load netconf: json: cannot unmarshal string into Go struct field NetConf.table of type int",
  ],
  [
    "refuses a long name",
    { vrfname: "a234567890123456" },
    "",
    "cmdAdd failed: could not add VRF a234567890123456: numerical result out of range",
  ],
  ["refuses a name that is a path", { vrfname: "../x" }, "", "cmdAdd failed: could not add VRF ../x: invalid argument"],
  [
    "refuses a link of another kind",
    { vrfname: "br0" },
    listed({ links: [LINK, bridge] }),
    "cmdAdd failed: Netlink br0 is not a VRF",
  ],
  [
    "refuses another table of a VRF that is there",
    { table: 5 },
    listed({ links: [LINK, vrf("blue", 1)] }),
    "cmdAdd failed: VRF blue already exist with different routing table 1",
  ],
  [
    "says that the interface is not there, before it makes anything",
    {},
    listed({ links: [bridge] }),
    "cmdAdd failed: could not get link by name net1",
  ],
  [
    "takes the interface from no other master",
    {},
    listed({ links: [{ ...LINK, master: "br0" }, bridge] }),
    "cmdAdd failed: interface net1 has already a master set: br0",
  ],
];

for (const [promise, config, transcript, msg] of refusals) {
  Deno.test(`vrf ADD ${promise}`, async () => {
    const { call, run } = callWith(config, transcript);
    assertEquals((await assertRejects(() => plugin.add(call), CniError)).msg, msg);
    assertEquals(run.unused(), []);
    await undone(call);
  });
}

Deno.test("vrf ADD says that there is no namespace", async () => {
  const { call } = callWith({}, "");
  const error = await assertRejects(() => plugin.add({ ...call, netns: "/run/netns/gone", podAlive: false }), CniError);
  assertEquals(error.msg, 'cmdAdd failed: failed to Statfs "/run/netns/gone": no such file or directory');
});

Deno.test("vrf ADD that fails puts everything back and removes its VRF", async () => {
  const { call, run } = callWith(
    {},
    [
      listed({
        links: [{ ...LINK, addr_info: [ADDRESSES[1]] }],
        routes: [route4("10.66.0.0/16", { gateway: "10.0.0.1" })],
      }),
      batch(
        "link add name blue type vrf table 1",
        "link set dev blue up",
        "addr del fd00::2/64 dev net1",
        "link set dev net1 master blue",
        "addr add fd00::2/64 nodad dev net1",
        "route append 10.66.0.0/16 via 10.0.0.1 dev net1 proto 3 scope 0 table 1",
      ),
      "! RTNETLINK answers: Network is unreachable\n! Command failed -:6",
      forced(
        "link set dev net1 nomaster",
        "addr replace fd00::2/64 nodad dev net1",
        "route append 10.66.0.0/16 via 10.0.0.1 dev net1 proto 3 scope 0 table 254",
        "link del dev blue",
      ),
    ].join("\n"),
  );
  const error = await assertRejects(() => plugin.add(call), CniError);
  assertEquals(
    error.msg,
    "cmdAdd failed: could not add route '10.66.0.0/16 via 10.0.0.1 dev net1 proto 3 scope 0 table 1': network is unreachable",
  );
  await undone(call);
  assertEquals(run.unused(), []);
});

Deno.test("vrf ADD joins a VRF that somebody makes meanwhile", () =>
  adds(
    {},
    listed({ links: [noAddresses] }),
    `${
      batch("link add name blue type vrf table 1", "link set dev blue up", "link set dev net1 master blue")
    }\n! RTNETLINK answers: File exists\n! Command failed -:1`,
    shown(noAddresses, vrf("blue", 5)),
    listed({ links: [noAddresses, vrf("blue", 5)] }),
    batch("link set dev net1 master blue"),
  ));

const member = { ...LINK, master: "blue" };
const dels: readonly [promise: string, links: readonly unknown[], lines: readonly string[]][] = [
  ["frees the interface and removes the VRF with its last member", [member, vrf("blue", 1)], [
    "link set dev net1 nomaster",
    "link del dev blue",
  ]],
  ["keeps a VRF that has other members", [member, vrf("blue", 1), { ...member, ifname: "net2" }], [
    "link set dev net1 nomaster",
  ]],
  ["removes an empty VRF when the interface is gone", [vrf("blue", 1)], ["link del dev blue"]],
  ["frees the interface from no other master", [{ ...LINK, master: "br0" }, bridge, vrf("blue", 1)], [
    "link del dev blue",
  ]],
  ["leaves everything alone when the VRF is gone", [{ ...LINK, master: "br0" }, bridge], []],
];

for (const [promise, links, lines] of dels) {
  Deno.test(`vrf DEL ${promise}`, async () => {
    const transcript = [shown(...links), ...(lines.length > 0 ? [forced(...lines)] : [])].join("\n");
    const { call, run } = callWith({ prevResult: 5, table: "x" }, transcript, "DEL");
    await plugin.del(call);
    assertEquals(run.unused(), []);
  });
}

Deno.test("vrf DEL leaves a link of another kind alone, and needs neither namespace nor name", async () => {
  const { call } = callWith({ vrfname: "br0" }, shown(LINK, bridge), "DEL");
  await plugin.del(call);
  assertEquals(call.warnings.length, 1);
  await plugin.del(callWith({ vrfname: "" }, "", "DEL").call);
  await plugin.del({ ...callWith({}, "", "DEL").call, podAlive: false });
});

Deno.test("vrf DEL that loses a race has succeeded, and reports what stays", async () => {
  const removal = `${forced("link set dev net1 nomaster", "link del dev blue")}\n! Cannot find device "blue"`;
  await plugin.del(callWith({}, [shown(member, vrf("blue", 1)), removal, shown(LINK)].join("\n"), "DEL").call);
  const { call } = callWith(
    {},
    [shown(member, vrf("blue", 1)), removal, shown(member, vrf("blue", 1))].join("\n"),
    "DEL",
  );
  await assertRejects(() => plugin.del(call), CniError, "resetMaster: could reset master to net1");
});

const checks: readonly [promise: string, config: JsonObject, links: readonly unknown[], msg?: string][] = [
  ["accepts what ADD made", { table: 1 }, [member, vrf("blue", 1)]],
  ["notices that the VRF is gone", {}, [LINK], "Link not found"],
  ["notices another kind", {}, [LINK, { ...bridge, ifname: "blue" }], "Netlink blue is not a VRF"],
  [
    "notices another table",
    { table: 2 },
    [member, vrf("blue", 1)],
    "VRF blue already exist with different routing table 1",
  ],
  ["notices that the interface is out of it", {}, [LINK, vrf("blue", 1)], "failed to find net1 associated to vrf blue"],
  ["notices that the interface is gone", {}, [vrf("blue", 1)], "failed to find net1 associated to vrf blue"],
  [
    "notices a missing address",
    {},
    [{ ...member, addr_info: [ADDRESSES[0]] }, vrf("blue", 1)],
    "Failed to match addr fd00::2/64 on interface net1",
  ],
];

for (const [promise, config, links, msg] of checks) {
  Deno.test(`vrf CHECK ${promise}`, async () => {
    const { call, run } = callWith(config, shown(...links), "CHECK");
    if (msg === undefined) await plugin.check(call);
    else assertEquals((await assertRejects(() => plugin.check(call), CniError)).msg, msg);
    assertEquals(run.unused(), []);
  });
}

Deno.test("a move keeps what addresses are, and leaves those of the kernel to the kernel", () => {
  const addr_info = [
    { ...ADDRESSES[1], nodad: true, noprefixroute: true },
    { ...ADDRESSES[1], local: "fd00::3", deprecated: true },
    { ...ADDRESSES[1], local: "fd00::4", address: "fd00::5", prefixlen: 128 },
    {
      ...ADDRESSES[1],
      local: "fd00::6",
      dynamic: true,
      valid_life_time: 100,
      preferred_life_time: 0,
      deprecated: true,
    },
    { ...ADDRESSES[1], local: "fd00::7", dynamic: true, mngtmpaddr: true },
    { ...ADDRESSES[1], local: "fd00::8", dynamic: true, temporary: true },
    LOCAL6,
  ];
  const { before, addresses } = planMove({ ...LINK, addr_info } as unknown as Link, 1, {
    rules: [],
    routes: [],
    links: [],
  });
  assertEquals(before.slice(0, 3), [
    "addr del fd00::2/64 dev net1",
    "addr del fd00::3/64 dev net1",
    "addr del fd00::4/128 dev net1",
  ]);
  assertEquals(addresses, [
    "addr add fd00::2/64 nodad noprefixroute dev net1",
    "addr add fd00::3/64 nodad preferred_lft 0 dev net1",
    "addr add fd00::4 peer fd00::5/128 nodad dev net1",
    "addr add fd00::6/64 nodad valid_lft 100 preferred_lft 0 dev net1",
  ]);
});

Deno.test("a move takes routes of other tables along into these, and tells which cannot come", () => {
  const routes = [
    route4("10.1.0.0/16", { table: "77", prefsrc: "10.0.0.2" }),
    { ...route4("fd01::/64", { table: "77", prefsrc: "fd00::2" }), family: 6 },
    route4("10.2.0.0/16", {
      dev: undefined,
      nexthops: [{ gateway: "10.0.0.1", dev: "net1" }, { gateway: "10.0.0.3", dev: "net1" }],
    }),
    route4("10.3.0.0/16", { dev: undefined, nexthops: [{ dev: "net1" }, { dev: "eth0" }] }),
    route4("10.4.0.0/16", { type: "6", dev: undefined }),
  ].map((route) => ({ family: 4, ...route }) as KernelRoute);
  const move = planMove({ ...LINK, addr_info: [] } as unknown as Link, 1, { rules: [], routes, links: [] });
  assertEquals(move.routes, [
    "route append 10.1.0.0/16 dev net1 proto 3 scope 0 table 77",
    "route append fd01::/64 dev net1 proto 3 scope 0 src fd00::2 table 77",
    "route append 10.2.0.0/16 proto 3 scope 0 table 1 nexthop via 10.0.0.1 dev net1 nexthop via 10.0.0.3 dev net1",
  ]);
  assertEquals(move.left, ["10.3.0.0/16"]);
});
