/**
 * Masters of container links: the default route's link, names that are missing, and what the kernel's refusals mean.
 */
import { wordsOf } from "../../lib/kernel/batch.ts";
import { apply } from "../../lib/kernel/plan.ts";
import type { Command, Run } from "../../lib/kernel/run.ts";
import { assertEquals, assertRejects } from "@std/assert";
import {
  checkMtu,
  defaultRouteLink,
  lookupMaster,
  type SubLink,
  subLinkFailure,
  subLinkSteps,
} from "../../lib/link/master.ts";
import type { ContainerCall } from "../../lib/cni/plugin.ts";
import { readFailure } from "../../lib/link/failure.ts";
import { CniError } from "../../lib/cni/error.ts";
import { step, StepError } from "../../lib/kernel/plan.ts";
import { CommandError, failureText } from "../../lib/kernel/run.ts";
import { fakeCall } from "../fakes/call.ts";
import { recordedRun } from "../fakes/run.ts";

const routes = (four: unknown[], six: unknown[] = []) =>
  recordedRun(`$ ip -j -batch -
< route show table all exact 0.0.0.0/0
< route show table all exact ::/0
> ${JSON.stringify(four)}
> ${JSON.stringify(six)}`);
const via = (dev: string, metric?: number) => ({ dst: "default", gateway: "10.0.0.1", dev, ...(metric && { metric }) });

const CHOICES: readonly (readonly [what: string, four: unknown[], six: unknown[], dev: string])[] = [
  ["one", [via("eth0")], [], "eth0"],
  ["IPv4 before IPv6", [via("eth0", 600)], [via("eth1")], "eth0"],
  ["IPv6 alone", [], [via("eth1", 1024)], "eth1"],
  ["lowest metric", [via("eth0", 200), via("eth1", 100)], [], "eth1"],
  ["no metric is the lowest", [via("eth0", 1), via("eth1")], [], "eth1"],
  ["another table does not count", [{ ...via("eth0"), table: "100" }, via("eth1", 9)], [], "eth1"],
  ["blackhole skipped", [{ type: "blackhole", dst: "default" }, via("eth1", 9)], [], "eth1"],
  [
    "first of several next hops",
    [{ dst: "default", nexthops: [{ gateway: "10.0.0.1" }, { dev: "eth2" }] }],
    [],
    "eth2",
  ],
];

for (const [what, four, six, dev] of CHOICES) {
  Deno.test(`master of the default route: ${what}`, async () => {
    assertEquals(await defaultRouteLink(routes(four, six)), dev);
  });
}

Deno.test("master of the default route: none", async () => {
  const error = await assertRejects(() => defaultRouteLink(routes([{ type: "blackhole", dst: "default" }])), CniError);
  assertEquals(error.msg, "no default route interface found");
});

const link = (ifname: string, more = {}) => ({
  ifindex: 2,
  ifname,
  flags: ["UP"],
  mtu: 1500,
  operstate: "UP",
  link_type: "ether",
  ...more,
});
const all = (...links: unknown[]) =>
  `$ ip -j -d link show\n> ${JSON.stringify([link("lo", { link_type: "loopback" }), ...links])}`;

Deno.test("a master is found by an alternative name, and not by an index", async () => {
  const show = (name: string) =>
    `$ ip -j -d link show dev ${name}\n> ${JSON.stringify([link("eth0", { altnames: ["enp3s0"] })])}`;
  assertEquals((await lookupMaster(recordedRun(show("enp3s0")), { name: "enp3s0", where: "" })).ifname, "eth0");
  const run = recordedRun(`${show("if2")}\n${all(link("eth0"))}`);
  const error = await assertRejects(() => lookupMaster(run, { name: "if2", where: "on the host" }), CniError);
  assertEquals(error.msg, 'failed to lookup master "if2": Link not found');
});

for (const name of ["", "a b", "a\nlink del eth0", "a/b", "x".repeat(128)]) {
  Deno.test(`a master called ${JSON.stringify(name.slice(0, 20))} never reaches a command line`, async () => {
    const host = recordedRun(all(link("eth0")));
    const sub: SubLink = { kind: "macvlan", master: name, place: "host", mtu: 0, options: "mode bridge" };
    const error = await assertRejects(() => subLinkSteps(fakeCall({}, { host }), sub, "veth00000001"), CniError);
    assertEquals(error.msg, `failed to lookup master "${name}": Link not found`);
  });
}

const macvlan: SubLink = { kind: "macvlan", master: "eth0", place: "host", mtu: 0, options: "mode bridge" };

Deno.test("a link on a master: one line, everything in it", async () => {
  const text = async (sub: Partial<SubLink>, netns = "/run/netns/pod") =>
    (await subLinkSteps(fakeCall({}, { netns }), { ...macvlan, ...sub }, "veth00000001")).map((one) =>
      `${one.place} ${one.text}`
    );
  assertEquals(await text({}), [
    "host addr show dev eth0",
    "host link add link eth0 name veth00000001 netns /run/netns/pod type macvlan mode bridge",
  ]);
  assertEquals(
    (await text({ mtu: 1400, mac: "02:00:00:00:00:01" }, "pod"))[1],
    "host link add link eth0 name veth00000001 mtu 1400 address 02:00:00:00:00:01 netns ./pod type macvlan mode bridge",
  );
  assertEquals(
    (await text({}, "/run/a b"))[1],
    "host link add link eth0 name veth00000001 netns /run/a\x1fb type macvlan mode bridge",
  );
  assertEquals(await text({ place: "pod" }), [
    "pod addr show dev eth0",
    "pod link add link eth0 name veth00000001 type macvlan mode bridge",
  ]);
});

for (const [word, quoted] of [["a#b"], ["'a", `"'a"`], ["-x", "-x"], [`"'`]]) {
  Deno.test(`a master called ${word} is one word for ip`, async () => {
    const commands: Command[] = [];
    const run: Run = (command) => {
      commands.push(command);
      return Promise.resolve({ code: 0, signal: null, stdout: "[]\n", stderr: "" });
    };
    const call = fakeCall({}, { host: run });
    await apply([(await subLinkSteps(call, { ...macvlan, master: word! }, "veth00000001")).slice(0, 1)], call);
    assertEquals(
      commands.map(({ argv, input }) => [argv.slice(3), input]),
      [quoted ? [["-batch", "-"], [`addr show dev ${quoted}\n`]] : [["addr", "show", "dev", word], undefined]],
    );
  });
}

for (const netns of ["/run/a\nlink del eth0", "/run/a#b", "/run/a\\b", `/run/'"`, "/run/a b"]) {
  Deno.test(`a namespace at ${JSON.stringify(netns)} is one word`, async () => {
    const [, made] = await subLinkSteps(fakeCall({}, { netns }), macvlan, "veth00000001");
    assertEquals(wordsOf(made!.text).slice(0, 8), [..."link add link eth0 name veth00000001 netns".split(" "), netns]);
  });
}

/** The failure of a step, as `apply` throws it. */
function failed(text: string, failing: string, stderr: string, read = false): StepError {
  const output = { code: 1, signal: null, stdout: "", stderr };
  return new StepError(
    step("host", "ip", text, { failing, read }),
    new CommandError({ argv: ["ip"] }, output, failureText(output)),
  );
}

const read = (call: ContainerCall, sub: SubLink, error: StepError) =>
  readFailure(error, (failure) => subLinkFailure(call, sub, failure));

const made = "link add link eth0 name veth00000001 type macvlan";
const REFUSALS: readonly (readonly [
  what: string,
  sub: Partial<SubLink>,
  stderr: string,
  links: unknown[],
  msg: string,
  details: RegExp,
])[] = [
  [
    "a port of a bridge",
    {},
    "RTNETLINK answers: Device or resource busy",
    [link("eth0", { master: "br0", linkinfo: { info_slave_kind: "bridge" } })],
    "failed to create macvlan: device or resource busy",
    /^eth0 is a port of br0 \(bridge\), .*"master": "br0"$/,
  ],
  [
    "a master of ipvlan links",
    {},
    "RTNETLINK answers: Device or resource busy",
    [link("eth0"), link("ipv0", { link: "eth0", linkinfo: { info_kind: "ipvlan" } })],
    "failed to create macvlan: device or resource busy",
    /carries ipvlan ipv0/,
  ],
  [
    "a veth whose other end is here",
    {},
    "RTNETLINK answers: Device or resource busy",
    [link("eth0"), link("peer", { link: "eth0", linkinfo: { info_kind: "veth" } })],
    "failed to create macvlan: device or resource busy",
    /of another container/,
  ],
  [
    "busy with what is in a container",
    {},
    "RTNETLINK answers: Device or resource busy",
    [link("eth0")],
    "failed to create macvlan: device or resource busy",
    /of another container/,
  ],
  [
    "no Ethernet",
    {},
    "RTNETLINK answers: Invalid argument",
    [link("eth0", { link_type: "none" })],
    "failed to create macvlan: invalid argument",
    /^eth0 is none: the master has to be an Ethernet link$/,
  ],
  [
    "MTU beyond the master's",
    { mtu: 1501 },
    "RTNETLINK answers: Invalid argument",
    [link("eth0")],
    "invalid MTU 1501, must be [0, master MTU(1500)]",
    /eth0 has 1500/,
  ],
  [
    "MTU beyond any",
    { mtu: 70000, kind: "ipvlan" },
    "Error: mtu greater than device maximum.",
    [link("eth0", { mtu: 80000 })],
    "failed to create macvlan: invalid argument",
    /"mtu" is 70000/,
  ],
  [
    "kernel without it",
    { kind: "ipvlan" },
    "Error: Unknown device type.",
    [link("eth0")],
    "failed to create macvlan: operation not supported",
    /CONFIG_IPVLAN; try: modprobe ipvlan/,
  ],
  [
    "VLAN without it",
    { kind: "vlan" },
    "RTNETLINK answers: Operation not supported",
    [link("eth0")],
    "failed to create macvlan: operation not supported",
    /CONFIG_VLAN_8021Q; try: modprobe 8021q/,
  ],
  [
    "VLAN ID taken",
    { kind: "vlan" },
    "Error: 8021q: VLAN device already exists.",
    [link("eth0")],
    "failed to create macvlan: file exists",
    /vlanId can be used once/,
  ],
  [
    "passing name taken",
    {},
    "RTNETLINK answers: File exists",
    [link("eth0")],
    "failed to create macvlan: file exists",
    /ADD that did not end/,
  ],
];

for (const [what, sub, stderr, links, msg, details] of REFUSALS) {
  Deno.test(`a refused link is explained: ${what}`, async () => {
    const call = fakeCall({}, { host: recordedRun(all(...links)) });
    const error = await read(
      call,
      { ...macvlan, ...sub },
      failed(made, "failed to create macvlan", `${stderr}\nCommand failed -:2\n`),
    );
    if (!(error instanceof CniError)) throw error;
    assertEquals([error.msg, details.test(error.details) || error.details], [msg, true]);
  });
}

Deno.test("a refused link is explained: the master went", async () => {
  const call = fakeCall({}, { host: recordedRun(all(link("eth1"))) });
  const error = await read(
    call,
    macvlan,
    failed("link show dev eth0", "failed to lookup master", 'Device "eth0" does not exist.', true),
  );
  if (!(error instanceof CniError)) throw error;
  assertEquals([error.msg, error.details], [
    'failed to lookup master "eth0": Link not found',
    '"master" is "eth0", and there is no such link on the host; similar: eth1',
  ]);
});

Deno.test("what failed later is not explained as the master's fault", async () => {
  const error = failed("addr add 10.0.0.1/24 dev eth0", "failed to add IP addr", "RTNETLINK answers: File exists");
  assertEquals(await read(fakeCall({}), macvlan, error), error);
});

Deno.test("a negative MTU is refused with the master's", async () => {
  const host = recordedRun(`$ ip -j -d link show dev eth0\n> ${JSON.stringify([link("eth0", { mtu: 9000 })])}`);
  await assertRejects(
    () => checkMtu(fakeCall({}, { host }), { ...macvlan, mtu: -1 }),
    CniError,
    "invalid MTU -1, must be [0, master MTU(9000)]",
  );
  await checkMtu(fakeCall({}, { host }), macvlan);
});
