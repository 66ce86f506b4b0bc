import { assertEquals, assertRejects } from "@std/assert";
import { plugin } from "../../plugins/bandwidth/mod.ts";
import { CniError } from "../../lib/cni/error.ts";
import { linkShow } from "../../lib/kernel/ip.ts";
import type { JsonObject } from "../../lib/cni/types.ts";
import { fakeCall, fakeNetworkCall } from "../fakes/call.ts";
import { recordedRun } from "../fakes/run.ts";

const NETNS = "/proc/self/ns/net";
const IFB = "bwpe4c76feec97a";
const MARK = "d23676b4f2d9fe04-90d9ba7f83f7691a, net: mynet, if: eth0, id: ctr-0001";
const limits = { ingressRate: 10_000_000, ingressBurst: 2_000_000, egressRate: 5_000_000, egressBurst: 1_000_000 };
const prevResult = { interfaces: [{ name: "cni0" }, { name: "veth0" }, { name: "eth0", sandbox: NETNS }] };
const inside = {
  ifindex: 2,
  ifname: "eth0",
  link_index: 7,
  link_netnsid: 0,
  flags: ["UP"],
  mtu: 1500,
  linkinfo: { info_kind: "veth" },
};
const outside = {
  ifindex: 7,
  ifname: "veth0",
  link_index: 2,
  flags: ["UP"],
  mtu: 1400,
  qdisc: "noqueue",
  linkinfo: { info_kind: "veth" },
};
const bridge = { ifindex: 3, ifname: "cni0", flags: ["UP"], mtu: 1500, linkinfo: { info_kind: "bridge" } };
const ifb = { ifindex: 9, ifname: IFB, flags: ["UP"], mtu: 1400, linkinfo: { info_kind: "ifb" }, ifalias: MARK };

const pod = (link: unknown) =>
  `$ nsenter --net=${NETNS} -- ip -j -d -batch -
< ${linkShow("eth0")}
${link ? `> ${JSON.stringify([link])}` : '! Device "eth0" does not exist.'}`;
const host = (...links: unknown[]) =>
  `$ ip -j -d -force -batch -
< ${linkShow(IFB)}
< ${linkShow("cni0")}
< ${linkShow("veth0")}
${links.map((link) => `> ${JSON.stringify([link])}`).join("\n")}
! Device "${IFB}" does not exist.`;
const made = `$ ip -j -d -batch -
< link add name ${IFB} mtu 1400 txqueuelen 0 address 32:1a:fa:a5:0d:5a up type ifb
< link set dev ${IFB} alias "${MARK}"`;
const shaped = `$ tc -batch -
< qdisc add dev veth0 root handle 1: tbf rate 1250000bps burst 250000b limit 281250b
< qdisc add dev veth0 handle ffff: ingress
< filter add dev veth0 parent ffff: protocol all prio 1 u32 match u32 0 0 flowid 1:1 action mirred egress redirect dev ${IFB}
< qdisc add dev ${IFB} root handle 1: tbf rate 625000bps burst 125000b limit 140625b`;

function callWith(config: JsonObject, transcript: string, verb: "ADD" | "DEL" | "CHECK" = "ADD") {
  const run = recordedRun(transcript);
  const call = fakeCall({ name: "mynet", prevResult, ...config }, {
    verb,
    netns: NETNS,
    containerId: "ctr-0001",
    host: run,
  });
  return { call, run };
}

Deno.test("bandwidth ADD limits both directions with four processes", async () => {
  const { call, run } = callWith(limits, [pod(inside), host(bridge, outside), made, shaped].join("\n"));
  const { interfaces } = await plugin.add(call);
  assertEquals(interfaces, [...prevResult.interfaces, { name: IFB, mac: "32:1a:fa:a5:0d:5a" }]);
  assertEquals(run.unused(), []);
  assertEquals(call.undos.length, 3);
});

Deno.test("bandwidth ADD limits what goes to the container without a device", async () => {
  const transcript = [pod(inside), host(bridge, outside), shaped.split("\n").slice(0, 2).join("\n")].join("\n");
  const { call, run } = callWith({ ingressRate: 10_000_000, ingressBurst: 2_000_000 }, transcript);
  assertEquals((await plugin.add(call)).interfaces, prevResult.interfaces);
  assertEquals(run.unused(), []);
});

for (const none of [{}, { ingressRate: 0 }, { runtimeConfig: { bandwidth: null } }]) {
  Deno.test(`bandwidth ADD starts nothing for ${JSON.stringify(none)}`, async () => {
    const { call } = callWith(none, "");
    assertEquals((await plugin.add(call)).interfaces, prevResult.interfaces);
  });
}

Deno.test("bandwidth ADD makes its own device anew", async () => {
  const again = made.replace("< link add", `< link del dev ${IFB}\n< link add`);
  const { call, run } = callWith(limits, [pod(inside), host(ifb, bridge, outside), again, shaped].join("\n"));
  await plugin.add(call);
  assertEquals(run.unused(), []);
});

const failures: readonly [promise: string, config: JsonObject, transcript: string, msg: string][] = [
  ["demands a prevResult", { ...limits, prevResult: null }, "", "must be called as chained plugin"],
  ["demands a prevResult without limits too", { prevResult: null }, "", "must be called as chained plugin"],
  ["demands interfaces", { ...limits, prevResult: {} }, "", "no interfaces provided"],
  [
    "refuses null for an interface",
    { ...limits, prevResult: { interfaces: [null] } },
    "",
    "could not parse prevResult: interfaces.0 is null",
  ],
  [
    "says that the interface is not there",
    limits,
    [pod(undefined), host(bridge, outside)].join("\n"),
    'container interface eth0 has no veth peer: could not look up "eth0": Link not found',
  ],
  [
    "says that the interface is no veth",
    limits,
    [pod({ ...inside, linkinfo: { info_kind: "macvlan" } }), host(bridge, outside)].join("\n"),
    'container interface eth0 has no veth peer: interface "eth0" was not a veth interface',
  ],
  [
    "says that the other end is elsewhere",
    limits,
    [
      pod({ ...inside, link_index: 8 }),
      host(bridge, outside),
      "$ ip -j -d link show",
      `> ${JSON.stringify([bridge, outside])}`,
    ].join("\n"),
    "veth peer with index 8 is not in host ns",
  ],
  [
    "is not taken in by a link of the same number",
    limits,
    [
      pod(inside),
      host(bridge, { ...outside, link_index: 5 }),
      "$ ip -j -d link show",
      `> ${JSON.stringify([{ ...outside, link_index: 5 }])}`,
    ].join("\n"),
    "veth peer with index 7 is not in host ns",
  ],
  [
    "says that prevResult does not know the other end",
    limits,
    [pod(inside), host(bridge), "$ ip -j -d link show", `> ${JSON.stringify([bridge, outside])}`].join("\n"),
    "no veth peer of container interface found in host ns",
  ],
  [
    "leaves a device of that name alone",
    limits,
    [pod(inside), host({ ...ifb, linkinfo: { info_kind: "dummy" } }, bridge, outside)].join("\n"),
    "adding link: file exists",
  ],
  [
    "leaves another interface's device alone",
    limits,
    [pod(inside), host({ ...ifb, ifalias: MARK.replace("90d9", "0000") }, bridge, outside)].join("\n"),
    "adding link: file exists",
  ],
];

for (const [promise, config, transcript, msg] of failures) {
  Deno.test(`bandwidth ADD ${promise}`, async () => {
    const { call, run } = callWith(config, transcript);
    assertEquals((await assertRejects(() => plugin.add(call), CniError)).msg, msg);
    assertEquals(run.unused(), []);
  });
}

const ours = `[{"kind":"tbf","handle":"1:","root":true},{"kind":"ingress","handle":"ffff:"}]`;
const toIfb =
  `[{"kind":"u32"},{"kind":"u32","options":{"actions":[{"kind":"mirred","mirred_action":"redirect","to_dev":"*"}]}}]`;
const asked = `$ tc -raw -d -j -batch -
< qdisc show dev veth0
< filter show dev veth0 parent ffff:`;
const refusal = `${shaped}\n! Error: Exclusivity flag on, cannot modify.\n! Command failed -:1`;

Deno.test("bandwidth ADD replaces what an earlier one left on the link", async () => {
  const cleared = "$ tc -batch -\n< qdisc del dev veth0 ingress\n< qdisc del dev veth0 root";
  const transcript = [
    pod(inside),
    host(bridge, outside),
    made,
    refusal,
    asked,
    `> ${ours}`,
    `> ${toIfb}`,
    cleared,
    shaped,
  ];
  const { call, run } = callWith(limits, transcript.join("\n"));
  await plugin.add(call);
  assertEquals(run.unused(), []);
});

const foreign: readonly [promise: string, qdiscs: string, filters: string, msg: string][] = [
  ["another root qdisc", '[{"kind":"pfifo","handle":"8001:","root":true}]', "[]", "create qdisc: file exists"],
  ["a clsact qdisc", '[{"kind":"clsact","handle":"ffff:"}]', "[]", "create ingress qdisc: file exists"],
  [
    "another filter",
    '[{"kind":"ingress","handle":"ffff:"}]',
    toIfb.replace("*", "eth9"),
    "create ingress qdisc: file exists",
  ],
  ["nothing that explains it", '[{"kind":"noqueue","handle":"0:","root":true}]', "[]", "create qdisc: file exists"],
];

for (const [what, qdiscs, filters, msg] of foreign) {
  Deno.test(`bandwidth ADD fails for ${what}, and changes none of it`, async () => {
    const transcript = [pod(inside), host(bridge, outside), made, refusal, asked, `> ${qdiscs}`, `> ${filters}`];
    const { call, run } = callWith(limits, transcript.join("\n"));
    const error = await assertRejects(() => plugin.add(call)) as Error;
    assertEquals(error instanceof CniError ? error.msg : error.message, msg);
    assertEquals(run.unused(), []);
    assertEquals(call.undos.length, 1);
  });
}

const question = `$ tc -raw -d -j -batch -
< qdisc show dev veth0
< filter show dev veth0 parent ffff:
< qdisc show dev ${IFB}`;
const tbf = (rate: number, limit: number, ticks: string) =>
  `[{"kind":"tbf","handle":"1:","root":true,"options":{"rate":${rate},"burst_raw":"${ticks}","limit":${limit}}}]`;
const good = [tbf(1_250_000, 281_250, "2faf08"), toIfb.replace("*", IFB), tbf(625_000, 140_625, "2faf08")];
const noqueue = '[{"kind":"noqueue","handle":"0:","root":true}]';

const checks: readonly [promise: string, links: unknown[], shown: readonly string[], msg?: string][] = [
  ["accepts what ADD made", [ifb, bridge, outside], good],
  ["accepts what release 1.5.0 of the reference made", [ifb, bridge, outside], [
    '[{"kind":"htb","handle":"1:","root":true}]',
    good[1]!,
    good[2]!,
  ]],
  [
    "notices a missing limit to the container",
    [ifb, bridge, outside],
    [noqueue, good[1]!, good[2]!],
    "Failed to find qdisc",
  ],
  [
    "notices another rate",
    [ifb, bridge, outside],
    [tbf(1_250_001, 281_250, "2faf08"), good[1]!, good[2]!],
    "Rate doesn't match",
  ],
  [
    "notices another limit",
    [ifb, bridge, outside],
    [good[0]!, good[1]!, tbf(625_000, 140_626, "2faf08")],
    "Limit doesn't match",
  ],
  [
    "notices another bucket",
    [ifb, bridge, outside],
    [tbf(1_250_000, 281_250, "2faf09"), good[1]!, good[2]!],
    "Buffer doesn't match",
  ],
  ["notices a missing redirection", [ifb, bridge, outside], [good[0]!, "[]", good[2]!], "Failed to find filter"],
  [
    "notices a redirection to a device that is gone",
    [ifb, bridge, outside],
    [good[0]!, toIfb, good[2]!],
    "Failed to find filter",
  ],
  [
    "notices a missing limit from the container",
    [ifb, bridge, outside],
    [good[0]!, good[1]!, noqueue],
    "Failed to find qdisc",
  ],
  ["notices a device that is down", [{ ...ifb, flags: [] }, bridge, outside], good, `ifb device ${IFB} is down`],
  ["notices a device that is gone", [bridge, outside], [], "get ifb device: Link not found"],
];

for (const [promise, links, shown, msg] of checks) {
  Deno.test(`bandwidth CHECK ${promise}`, async () => {
    const answers = shown.length > 0 ? [question, ...shown.map((line) => `> ${line}`)] : [];
    const { call, run } = callWith(limits, [pod(inside), host(...links), ...answers].join("\n"), "CHECK");
    if (msg === undefined) await plugin.check(call);
    else assertEquals((await assertRejects(() => plugin.check(call), CniError)).msg, msg);
    assertEquals(run.unused(), []);
  });
}

Deno.test("bandwidth CHECK looks for the veth pair also without limits", async () => {
  const { call } = callWith({}, [pod(undefined), host(bridge, outside)].join("\n"), "CHECK");
  await assertRejects(() => plugin.check(call), CniError, "has no veth peer");
  await assertRejects(
    () => plugin.check(callWith({ prevResult: null }, "", "CHECK").call),
    CniError,
    "must be called as a chained plugin",
  );
});

Deno.test("bandwidth DEL has nothing to do without limits and without a device", async () => {
  const { call } = callWith({}, "", "DEL");
  await plugin.del(call);
});

Deno.test("bandwidth DEL succeeds with limits that make no sense, and without the namespace", async () => {
  for (const config of [{ ingressRate: 5 }, { ingressRate: "x", prevResult: 5 }]) {
    const { call } = callWith(config, "", "DEL");
    await plugin.del({ ...call, podAlive: false, netns: "" });
  }
});

Deno.test("bandwidth GC removes marked devices of this network that are not valid, and no other", async () => {
  const device = (ifname: string, ifalias?: string) => ({ ifname, ifalias, linkinfo: { info_kind: "ifb" } });
  const devices = [
    device(IFB, MARK),
    device("bwp000000000001", MARK.replace("90d9", "0000")),
    device("bwp000000000002", MARK.replace("d236", "0000")),
    device("bwp000000000003"),
    device("ifb0", MARK.replace("90d9", "0001")),
  ];
  const run = recordedRun(`$ ip -j -d link show type ifb
> ${JSON.stringify(devices)}
$ ip -force -batch -
< link del dev bwp000000000001
$ ip -j -d link show type ifb
> ${JSON.stringify(devices.filter((one) => one.ifname !== "bwp000000000001"))}`);
  const valid = [{ containerID: "ctr-0001", ifname: "eth0" }];
  await plugin.gc(fakeNetworkCall({ name: "mynet" }, { host: run, network: "mynet", valid }));
  assertEquals(run.unused(), []);
  await plugin.gc(fakeNetworkCall({ name: "mynet" }, { network: "mynet" }));
});
