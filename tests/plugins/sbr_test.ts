import { assertEquals, assertRejects } from "@std/assert";
import { plugin } from "../../plugins/sbr/mod.ts";
import { sourcesOf, withTables } from "../../plugins/sbr/source_routes.ts";
import { CniError } from "../../lib/cni/error.ts";
import type { JsonObject, Result } from "../../lib/cni/types.ts";
import { fakeCall } from "../fakes/call.ts";
import { recordedRun } from "../fakes/run.ts";

const NETNS = "/proc/self/ns/net";
const prevResult = {
  interfaces: [{ name: "veth0" }, { name: "net1", sandbox: NETNS }],
  ips: [
    { address: "192.168.1.209/24", gateway: "192.168.1.1", interface: 1 },
    { address: "fd00::10/64", gateway: "fd00::1", interface: 1 },
  ],
};
const RULES4 = [{ priority: 0, src: "all", table: "255" }, { priority: 32766, src: "all", table: "254" }];
const LINK = {
  ifindex: 2,
  ifname: "net1",
  flags: ["UP"],
  addr_info: [{ family: "inet", local: "192.168.1.209", prefixlen: 24 }, {
    family: "inet6",
    local: "fd00::10",
    prefixlen: 64,
  }],
};
const connected4 = {
  type: "1",
  dst: "192.168.1.0/24",
  dev: "net1",
  table: "254",
  protocol: "2",
  scope: "253",
  prefsrc: "192.168.1.209",
  flags: [],
};
const further4 = {
  type: "1",
  dst: "192.168.2.0/24",
  gateway: "192.168.1.2",
  dev: "net1",
  table: "254",
  protocol: "3",
  scope: "0",
  flags: [],
};
const connected6 = {
  type: "1",
  dst: "fd00::/64",
  dev: "net1",
  table: "254",
  protocol: "2",
  scope: "0",
  metric: 256,
  flags: [],
  pref: "medium",
};
const router6 = {
  type: "1",
  dst: "default",
  gateway: "fe80::1",
  dev: "net1",
  table: "254",
  protocol: "3",
  scope: "0",
  metric: 1024,
  flags: [],
  pref: "medium",
};
const foreign4 = { type: "1", dst: "10.0.0.0/8", dev: "eth0", table: "254", protocol: "3", scope: "0", flags: [] };

interface State {
  readonly rules?: readonly unknown[];
  readonly rules6?: readonly unknown[];
  readonly routes?: readonly unknown[];
  readonly routes6?: readonly unknown[];
  readonly link?: unknown;
}

const enter = `$ nsenter --net=${NETNS} --`;

function asked(
  { rules = RULES4, rules6 = [], routes = [], routes6 = [], link = LINK }: State,
  withLink = true,
): string {
  return `${enter} ip -j -N -d -force -batch -
< rule show
< route show table all root 0.0.0.0/0
${withLink ? "< addr show dev net1\n" : ""}< route show table all root ::/0
> ${JSON.stringify(rules)}
> ${JSON.stringify(routes)}
${withLink && link ? `> ${JSON.stringify([link])}\n` : ""}> ${JSON.stringify(routes6)}
${enter} ip -6 -j -N rule show
> ${JSON.stringify(rules6)}`;
}

const batch4 = (...lines: string[]) => `${enter} ip -j -d -batch -\n${lines.map((line) => `< ${line}`).join("\n")}`;
const batch6 = (...lines: string[]) => `${enter} ip -6 -j -d -batch -\n${lines.map((line) => `< ${line}`).join("\n")}`;

function callWith(config: JsonObject, transcript: string, verb: "ADD" | "DEL" | "CHECK" = "ADD") {
  const run = recordedRun(transcript);
  return { call: fakeCall({ prevResult, ...config }, { verb, netns: NETNS, ifName: "net1", host: run }), run };
}

async function addWith(config: JsonObject, transcript: string) {
  const { call, run } = callWith(config, transcript);
  assertEquals((await plugin.add(call)).ips?.length, (config.prevResult as Result ?? prevResult).ips?.length);
  assertEquals(run.unused(), []);
  return call;
}

Deno.test("sbr ADD moves the routes of both families, links first, into tables of their own", async () => {
  const call = await addWith(
    {},
    [
      asked({ routes: [further4, connected4, foreign4], routes6: [router6, connected6] }),
      batch4(
        "route append 192.168.1.0/24 dev net1 proto 2 scope 253 src 192.168.1.209 table 100",
        "route append 192.168.2.0/24 via 192.168.1.2 dev net1 proto 3 scope 0 table 100",
        "route replace 0.0.0.0/0 via 192.168.1.1 dev net1 table 100",
        "rule add from 192.168.1.209 lookup 100",
        "route del 192.168.2.0/24 via 192.168.1.2 dev net1 proto 3 scope 0 table 254",
        "route del 192.168.1.0/24 dev net1 proto 2 scope 253 src 192.168.1.209 table 254",
      ),
      batch6(
        "route append fd00::/64 dev net1 proto 2 scope 0 metric 256 pref medium table 101",
        "route append ::/0 via fe80::1 dev net1 proto 3 scope 0 metric 1024 pref medium table 101",
        "route replace ::/0 via fd00::1 dev net1 table 101",
        "rule add from fd00::10 lookup 101",
        "route del ::/0 via fe80::1 dev net1 proto 3 scope 0 metric 1024 pref medium table 254",
        "route del fd00::/64 dev net1 proto 2 scope 0 metric 256 pref medium table 254",
      ),
    ].join("\n"),
  );
  assertEquals(call.warnings, []);
});

Deno.test("sbr ADD again changes nothing", async () => {
  const inTable = (route: JsonObject, table: string) => ({ ...route, table });
  await addWith(
    {},
    asked({
      rules: [...RULES4, { priority: 32765, src: "192.168.1.209", table: "100" }],
      rules6: [{ priority: 32765, src: "fd00::10", table: "101" }],
      routes: [inTable(connected4, "100"), { dst: "default", gateway: "192.168.1.1", dev: "net1", table: "100" }],
      routes6: [inTable(connected6, "101"), { dst: "default", gateway: "fd00::1", dev: "net1", table: "101" }],
    }),
  );
});

Deno.test("sbr ADD leaves alone what no address of the interface can use", async () => {
  // Its source was put on the link by hand; the multipath route leads by another interface too.
  const byHand = { ...connected4, dst: "10.7.0.0/24", prefsrc: "10.7.0.5" };
  const shared = {
    dst: "10.8.0.0/16",
    table: "254",
    protocol: "3",
    scope: "0",
    nexthops: [{ dev: "net1" }, { dev: "eth0" }],
  };
  const reject = { type: "7", dst: "10.9.0.0/16", dev: "net1", table: "254" };
  await addWith(
    { prevResult: { ips: [{ address: "192.168.1.209/24" }] } },
    [
      asked({ routes: [byHand, shared, reject] }),
      batch4("rule add from 192.168.1.209 lookup 100"),
    ].join("\n"),
  );
});

Deno.test("sbr ADD gives the second address of a subnet its own source", async () => {
  await addWith(
    { prevResult: { ips: [{ address: "192.168.1.209/24" }, { address: "192.168.1.210/24" }] } },
    [
      asked({ routes: [connected4] }),
      batch4(
        "route append 192.168.1.0/24 dev net1 proto 2 scope 253 src 192.168.1.209 table 100",
        "route append 192.168.1.0/24 dev net1 proto 2 scope 253 src 192.168.1.210 table 101",
        "rule add from 192.168.1.209 lookup 100",
        "rule add from 192.168.1.210 lookup 101",
        "route del 192.168.1.0/24 dev net1 proto 2 scope 253 src 192.168.1.209 table 254",
      ),
    ].join("\n"),
  );
});

Deno.test("sbr ADD with a table adds rules to it and looks at nothing else", async () => {
  await addWith(
    { table: 5000, gateways: ["nonsense"] },
    [
      asked({
        link: undefined,
        routes: [connected4],
        rules: [...RULES4, { priority: 3, src: "192.168.1.209", table: "5000" }],
      }),
      batch6("rule add from fd00::10 lookup 5000"),
    ].join("\n"),
  );
});

Deno.test("sbr ADD takes configured gateways instead of default routes that are there", async () => {
  await addWith(
    { gateways: ["fd00::7"], prevResult: { ips: [{ address: "fd00::10/64", gateway: "fd00::1" }] } },
    [
      asked({ routes6: [connected6, router6] }),
      batch6(
        "route append fd00::/64 dev net1 proto 2 scope 0 metric 256 pref medium table 100",
        "route replace ::/0 via fd00::7 dev net1 table 100",
        "rule add from fd00::10 lookup 100",
        "route del ::/0 via fe80::1 dev net1 proto 3 scope 0 metric 1024 pref medium table 254",
        "route del fd00::/64 dev net1 proto 2 scope 0 metric 256 pref medium table 254",
      ),
    ].join("\n"),
  );
});

Deno.test("sbr ADD leaves hints in the main table, and only warns when they cannot be had", async () => {
  const call = await addWith(
    { addSourceHints: true, prevResult: { ips: [{ address: "192.168.1.209/24" }] } },
    [
      asked({ routes: [further4, connected4] }),
      batch4(
        "route append 192.168.1.0/24 dev net1 proto 2 scope 253 src 192.168.1.209 table 100",
        "route append 192.168.2.0/24 via 192.168.1.2 dev net1 proto 3 scope 0 table 100",
        "rule add from 192.168.1.209 lookup 100",
      ),
      `${enter} ip -force -batch -
< route append 192.168.1.0/24 dev net1 scope link src 192.168.1.209 table 254
< route del 192.168.2.0/24 via 192.168.1.2 dev net1 proto 3 scope 0 table 254
< route del 192.168.1.0/24 dev net1 proto 2 scope 253 src 192.168.1.209 table 254
! RTNETLINK answers: Invalid argument`,
    ].join("\n"),
  );
  assertEquals(call.warnings.length, 1);
});

Deno.test("sbr ADD does nothing when no address is on the interface", async () => {
  const call = await addWith({
    prevResult: { interfaces: [{ name: "eth0" }], ips: [{ address: "10.0.0.2/24", interface: 0 }] },
  }, "");
  assertEquals(call.warnings.length, 1);
});

const refusals: readonly [promise: string, config: JsonObject, msg: string][] = [
  ["demands a prevResult", { prevResult: null }, "This plugin must be called as chained plugin"],
  [
    "demands addresses",
    { prevResult: { interfaces: [{ name: "net1" }] } },
    "No IP addresses supplied on interface: net1",
  ],
  [
    "refuses a table in words",
    { table: "main" },
    "failed to parse network configuration: json: cannot unmarshal string into Go struct field NetConf.table of type int",
  ],
  ["refuses table 0", { table: 0 }, "table 0 is not a routing table"],
  ["refuses a table beyond 32 bits", { table: 4294967296 }, "table 4294967296 is not a routing table"],
  [
    "refuses three gateways",
    { gateways: ["10.0.0.1", "fd00::1", "x"] },
    "gateways list cannot contain more than 2 entries (one IPv4, one IPv6)",
  ],
  [
    "refuses a gateway that is not a valid address",
    { gateways: ["10.0.0.1", "x"] },
    "invalid static gateway IP address: x",
  ],
  [
    "refuses two gateways of one family",
    { gateways: ["10.0.0.1", "10.0.0.2"] },
    "gateways list contains multiple IPv4 addresses: 10.0.0.1 and 10.0.0.2",
  ],
];

for (const [promise, config, msg] of refusals) {
  Deno.test(`sbr ADD ${promise}`, async () => {
    const { call } = callWith(config, "");
    assertEquals((await assertRejects(() => plugin.add(call), CniError)).msg, msg);
  });
}

Deno.test("sbr ADD says that the interface is not there", async () => {
  const { call } = callWith({}, asked({ link: undefined }).replace(`> ${JSON.stringify([LINK])}\n`, ""));
  assertEquals(
    (await assertRejects(() => plugin.add(call), CniError)).msg,
    "Cannot find network interface net1: Link not found",
  );
  for (const back of call.undos) await back();
});

Deno.test("sbr DEL removes rules of addresses on the link and in prevResult, and what only they led to", async () => {
  const rules = [
    { priority: 1, src: "192.168.1.209", table: "100" },
    { priority: 2, src: "192.168.1.209", table: "254" },
    { priority: 3, src: "10.1.1.1", table: "102" },
    { priority: 4, src: "192.168.1.209", fwmark: "0x1", table: "100" },
    { priority: 5, src: "10.2.2.2", table: "103" },
  ];
  const { call, run } = callWith(
    { prevResult: { ips: [{ address: "10.1.1.1/24" }] } },
    [
      asked({
        rules,
        rules6: [{ priority: 6, src: "fd00::10", table: "101" }],
        routes: [{ ...connected4, table: "100" }, { ...connected4, table: "102" }, {
          ...connected4,
          dev: "eth0",
          table: "102",
        }],
        routes6: [{ ...connected6, table: "101" }],
      }),
      `${enter} ip -force -batch -
< rule del pref 1 from 192.168.1.209 lookup 100
< rule del pref 3 from 10.1.1.1 lookup 102
< route del 192.168.1.0/24 dev net1 proto 2 scope 253 src 192.168.1.209 table 102
${enter} ip -6 -force -batch -
< rule del pref 6 from fd00::10 lookup 101
< route del fd00::/64 dev net1 proto 2 scope 0 metric 256 pref medium table 101`,
    ].join("\n"),
    "DEL",
  );
  await plugin.del(call);
  assertEquals(run.unused(), []);
});

Deno.test("sbr DEL with a table removes the rules to it, and no route", async () => {
  const rules = [{ priority: 1, src: "192.168.1.209", table: "5000" }, {
    priority: 2,
    src: "192.168.1.209",
    table: "100",
  }];
  const { call, run } = callWith(
    { table: 5000, prevResult: 7 },
    [
      asked({ rules, routes: [{ ...connected4, table: "5000" }] }),
      `${enter} ip -force -batch -\n< rule del pref 1 from 192.168.1.209 lookup 5000`,
    ].join("\n"),
    "DEL",
  );
  await plugin.del(call);
  assertEquals(run.unused(), []);
});

Deno.test("sbr DEL takes a rule that went meanwhile for removed, and reports one that stays", async () => {
  const rules = [{ priority: 1, src: "192.168.1.209", table: "100" }];
  const removal =
    `${enter} ip -force -batch -\n< rule del pref 1 from 192.168.1.209 lookup 100\n! RTNETLINK answers: No such file or directory`;
  const gone = callWith({}, [asked({ rules }), removal, asked({ rules: [] }, false)].join("\n"), "DEL");
  await plugin.del(gone.call);
  const stays = callWith({}, [asked({ rules }), removal, asked({ rules }, false)].join("\n"), "DEL");
  const error = await assertRejects(() => plugin.del(stays.call), CniError);
  assertEquals(error.msg, 'Failed to delete rule "from 192.168.1.209 lookup 100"');
});

Deno.test("sbr DEL needs no namespace", async () => {
  const { call } = callWith({}, "", "DEL");
  await plugin.del({ ...call, podAlive: false, netns: "/run/netns/gone" });
});

const checks: readonly [promise: string, config: JsonObject, state: State, msg?: string][] = [
  ["accepts what ADD made", {}, {
    rules: [{ priority: 1, src: "192.168.1.209", table: "100" }],
    rules6: [{ priority: 1, src: "fd00::10", table: "101" }],
    routes: [{ dst: "default", table: "100" }],
    routes6: [{ dst: "default", table: "101" }],
  }],
  ["accepts rules to the configured table", { table: 254 }, {
    rules: [{ priority: 1, src: "192.168.1.209", table: "254" }],
    rules6: [{ priority: 1, src: "fd00::10", table: "254" }],
  }],
  ["notices a missing rule", {}, {
    rules: [{ priority: 1, src: "192.168.1.209", table: "100" }],
    routes: [{ dst: "default", table: "100" }],
  }, "no rule leads from fd00::10 to a table of its own"],
  [
    "notices a rule to another table",
    { table: 5000 },
    { rules: [{ priority: 1, src: "192.168.1.209", table: "100" }] },
    "no rule leads from 192.168.1.209 to table 5000",
  ],
  ["notices a missing default route", {}, {
    rules: [{ priority: 1, src: "192.168.1.209", table: "100" }],
    routes: [{ dst: "default", table: "101" }],
  }, "table 100 of 192.168.1.209 has no default route"],
];

for (const [promise, config, state, msg] of checks) {
  Deno.test(`sbr CHECK ${promise}`, async () => {
    const { call } = callWith(config, asked(state, false), "CHECK");
    if (msg === undefined) return await plugin.check(call);
    assertEquals((await assertRejects(() => plugin.check(call), CniError)).msg, msg);
  });
}

Deno.test("sbr takes addresses whose interface is absent, right or nowhere, and no others", () => {
  const ips = [undefined, 0, 1, 2, -1].map((index, at) => ({
    address: `10.0.0.${at}/24`,
    ...(index !== undefined && { interface: index }),
  }));
  const sources = sourcesOf(fakeCall({}, { ifName: "net1" }), {
    interfaces: [{ name: "eth0" }, { name: "net1" }],
    ips,
  });
  assertEquals(sources.map(({ prefix }) => Number(prefix.address.value & 255n)), [0, 2, 3, 4]);
});

Deno.test("sbr chooses tables that no rule and no route has, and none with a meaning of its own", () => {
  const sources = sourcesOf(fakeCall({}), {
    ips: Array.from({ length: 160 }, (_, i) => ({ address: `10.0.0.${i}/24` })),
  });
  const rules = [100, 102].map((table) => ({ family: 4, priority: 1, src: "all", table: String(table) }) as const);
  const tables = withTables(sources, { rules, routes: [{ family: 6, dst: "default", table: "103" }], links: [] }).map((
    one,
  ) => one.table);
  assertEquals(tables.slice(0, 3), [101, 104, 105]);
  assertEquals(tables.filter((one) => one >= 253 && one <= 255), []);
  assertEquals(new Set(tables).size, 160);
});
