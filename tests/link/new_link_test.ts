/** A link made in the container: which commands, in which order, what is taken back, and what DEL leaves alone. */
import { settingsIn } from "../fakes/run.ts";
import { assertEquals, assertRejects } from "@std/assert";
import { checkKind, checkMac } from "../../lib/link/verify.ts";
import { attachLink, detachLink, type NewLink, passingName } from "../../lib/link/new_link.ts";
import { CniError } from "../../lib/cni/error.ts";
import type { ContainerCall } from "../../lib/cni/plugin.ts";
import type { Result } from "../../lib/cni/types.ts";
import { linkDel } from "../../lib/kernel/ip.ts";
import { SETTINGS_SCRIPT, step } from "../../lib/kernel/plan.ts";
import type { Run } from "../../lib/kernel/run.ts";
import { fakeCall } from "../fakes/call.ts";

const MAC = "02:00:00:00:00:01";
const T = passingName(fakeCall({}));
const shown = JSON.stringify([{ ifindex: 2, ifname: "eth0", address: MAC, flags: [], mtu: 1500, operstate: "UP" }]);

/** Runs nothing, notes everything: one line for each command; `fails` names the line of a batch that fails, and how. */
function notes(fails?: { line: RegExp; stderr: string }) {
  const log: string[] = [];
  const run: Run = (command) => {
    const [tool, ...lines] = [
      [
        ...command.argv.filter((_, at, all) => !all.slice(0, at + 1).includes(SETTINGS_SCRIPT)),
        ...settingsIn(command.argv),
      ]
        .join(" "),
      ...(command.input?.join("") ?? "").trim().split("\n"),
    ];
    log.push(
      [
        tool.replace("nsenter --net=/run/netns/pod --", "POD").replace("ip -j -d -batch -", "ip").replace(
          /sh -c(?= [?!~])/,
          "set",
        ),
        ...lines,
      ].join(" | "),
    );
    const at = lines.findIndex((line) => fails?.line.test(line));
    const stdout = lines.filter((line) => line.includes(" show ")).map(() => `${shown}\n`).join("");
    if (!fails || at < 0) return Promise.resolve({ code: 0, signal: null, stdout, stderr: "" });
    return Promise.resolve({
      code: 1,
      signal: null,
      stdout: "",
      stderr: `${fails.stderr}\nCommand failed -:${at + 1}\n`,
    });
  };
  return { run, log };
}

function callWith(fails?: Parameters<typeof notes>[0]) {
  const { run, log } = notes(fails);
  const call = fakeCall({}, { host: run, pod: (command) => run({ ...command, argv: ["POD", ...command.argv] }) });
  const undo = async () => {
    log.push("undo");
    for (const job of call.undos.reverse()) await job();
    return log;
  };
  return { call, log, undo };
}

const ipam = (log: string[], more: Partial<Result> = {}) => () => {
  log.push("IPAM");
  return Promise.resolve<Result>({ ips: [{ address: "10.1.0.2/24", gateway: "10.1.0.1" }], ...more });
};
const onHost = [
  step("host", "ip", `link add ${T} netns P`, { failing: "failed to create", undo: step("pod", "ip", linkDel(T)) }),
];
const inPod = [
  step("pod", "ip", `link add ${T}`, { failing: "failed to create", undo: step("pod", "ip", linkDel(T)) }),
];
const attach = (call: ContainerCall, link: Partial<NewLink>) =>
  attachLink(call, { noun: "macvlan", create: onHost, temp: T, ...link });
const name = `link set dev ${T} name eth0`;

Deno.test("a link's passing name depends on network, container and interface, and looks like the reference's", () => {
  const names = [
    fakeCall({}),
    fakeCall({ name: "net2" }),
    fakeCall({}, { ifName: "eth1" }),
    fakeCall({}, { containerId: "c" }),
  ].map(passingName);
  assertEquals(new Set(names).size, 4);
  assertEquals(names.every((one) => /^veth[0-9a-f]{8}$/.test(one)), true);
});

Deno.test("a link made on the host: addresses are asked for beside it, one batch does the rest", async () => {
  const { call, log } = callWith();
  const result = await attach(call, { addresses: ipam(log), early: true, options: { announce: true } });
  assertEquals(log.sort(), [
    "IPAM",
    `POD set ?net/ipv4/conf/${T}/arp_notify=1 | ${name} | addr add 10.1.0.2/24 brd + dev eth0 | link set dev eth0 up | addr show dev eth0`,
    `ip | link add ${T} netns P`,
  ]);
  assertEquals(result, {
    interfaces: [{ name: "eth0", mac: MAC, sandbox: "/run/netns/pod" }],
    ips: [{ address: "10.1.0.2/24", gateway: "10.1.0.1", interface: 0 }],
  });
});

Deno.test("a link made in the container without settings is one batch", async () => {
  const { call, log } = callWith();
  await attach(call, { create: inPod, addresses: ipam(log), early: true });
  assertEquals(log, [
    "IPAM",
    `POD ip | link add ${T} | ${name} | addr add 10.1.0.2/24 brd + dev eth0 | link set dev eth0 up | addr show dev eth0`,
  ]);
});

Deno.test("an IPAM plugin that may need the link finds it there", async () => {
  const { call, log } = callWith();
  await attach(call, { addresses: ipam(log), early: false, options: { announce: true } });
  assertEquals(log, [
    `ip | link add ${T} netns P`,
    `POD ip | ${name}`,
    "IPAM",
    "POD set ?net/ipv4/conf/eth0/arp_notify=1 | addr add 10.1.0.2/24 brd + dev eth0 | link set dev eth0 up | addr show dev eth0",
  ]);
});

Deno.test("without IPAM the link is named, joined and set up", async () => {
  const { call, log } = callWith();
  assertEquals(await attach(call, { join: [step("pod", "ip", "link set dev eth0 master br0")] }), {
    interfaces: [{ name: "eth0", mac: MAC, sandbox: "/run/netns/pod" }],
  });
  assertEquals(log, [
    `ip | link add ${T} netns P`,
    `POD ip | ${name} | link set dev eth0 master br0 | link set dev eth0 up | addr show dev eth0`,
  ]);
});

Deno.test("a failure takes back what was made, the last first, and no more than that", async () => {
  const cases: [RegExp, string, string[]][] = [
    [/^link add/, "failed to create: file exists", []],
    [/ name eth0$/, 'failed to rename macvlan to "eth0": file exists', [`POD ip | link del dev ${T}`]],
    [/^addr add/, 'failed to add IP addr 10.1.0.2/24 to "eth0": file exists', [
      "POD ip | link del dev eth0",
      `POD ip | link del dev ${T}`,
    ]],
  ];
  for (const [line, msg, back] of cases) {
    const { call, log, undo } = callWith({ line, stderr: "RTNETLINK answers: File exists" });
    await assertRejects(
      () => attach(call, { addresses: ipam(log), early: true, options: { announce: true } }),
      Error,
      msg,
    );
    assertEquals((await undo()).slice(log.indexOf("undo") + 1), back);
  }
});

Deno.test("IPAM that fails beside the kernel's work: both are waited for, the link is taken back", async () => {
  const { call, undo } = callWith();
  await assertRejects(
    () => attach(call, { addresses: () => Promise.reject(new CniError(11, "no lease")), early: true }),
    CniError,
    "no lease",
  );
  assertEquals((await undo()).at(-1), `POD ip | link del dev ${T}`);
});

const linkOf = (ifname: string, info_kind?: string) => ({ ifname, ...(info_kind && { linkinfo: { info_kind } }) });

function detachable(links: unknown[], config = {}) {
  const log: string[] = [];
  const pod: Run = ({ input = [] }) => {
    log.push(input.join("").trim());
    return Promise.resolve({ code: 0, signal: null, stdout: `${JSON.stringify(links)}\n`, stderr: "" });
  };
  return { call: fakeCall(config, { verb: "DEL", pod }), log };
}

Deno.test("DEL deletes the link and its passing name, if they are of the plugin's kind", async () => {
  const cases: [unknown[], string[], string[]][] = [
    [[linkOf("lo"), linkOf("eth0", "macvlan")], ["link del dev eth0"], []],
    [[linkOf("eth0", "veth")], [], ['the container\'s "eth0" is a veth link, not made by fake: left alone']],
    [[linkOf("eth0")], [], ['the container\'s "eth0" is a physical link, not made by fake: left alone']],
    [[linkOf(T, "macvlan"), linkOf("eth1", "macvlan")], [`link del dev ${T}`], []],
    [[], [], []],
  ];
  for (const [links, lines, warnings] of cases) {
    const { call, log } = detachable(links);
    await detachLink(call, ["macvlan"]);
    assertEquals([log, call.warnings], [["link show", ...lines], warnings]);
  }
});

Deno.test("DEL asks for no kind when prevResult says that ADD made the link", async () => {
  const prevResult = { cniVersion: "1.1.0", interfaces: [{ name: "eth0", sandbox: "/run/netns/pod" }] };
  const { call, log } = detachable([], { prevResult });
  await detachLink(call, ["macvlan"]);
  assertEquals(log, ["link del dev eth0"]);
  const other = detachable([], {
    prevResult: { ...prevResult, interfaces: [{ name: "eth0", sandbox: "/run/netns/other" }] },
  });
  await detachLink(other.call, ["macvlan"]);
  assertEquals(other.log, ["link show"]);
});

Deno.test("DEL enters no namespace that is gone", async () => {
  const { call, log } = detachable([]);
  await detachLink({ ...call, podAlive: false }, ["macvlan"]);
  assertEquals(log, []);
});

Deno.test("CHECK's words are each plugin's own, and a MAC may be written in any case", async () => {
  const iface = { name: "eth0", mac: "02:00:00:00:00:0A" };
  const link = {
    ifindex: 2,
    ifname: "eth0",
    address: "02:00:00:00:00:0a",
    flags: [],
    mtu: 1500,
    operstate: "UP",
    linkinfo: { info_kind: "vlan" },
  };
  const state = { link, routes: [] };
  const vlan = { noun: "vlan", kinds: ["vlan"], front: "vlan: " };
  const macvlan = { noun: "macvlan", kinds: ["macvlan"], lower: true };
  checkMac(iface, checkKind(iface, state, vlan), vlan);
  const wrong = (job: () => unknown) =>
    assertRejects(() => Promise.resolve().then(job), CniError).then((error: CniError) => error.msg);
  assertEquals(
    await wrong(() => checkKind(iface, { ...state, link: undefined }, vlan)),
    "vlan: Container Interface name in prevResult: eth0 not found",
  );
  assertEquals(
    await wrong(() => checkKind(iface, { ...state, link: undefined }, macvlan)),
    "container Interface name in prevResult: eth0 not found",
  );
  assertEquals(
    await wrong(() => checkKind(iface, state, macvlan)),
    "error: Container interface eth0 not of type macvlan",
  );
  assertEquals(
    await wrong(() => checkMac({ ...iface, mac: "02:00:00:00:00:0b" }, link, vlan)),
    "vlan: Interface eth0 Mac 02:00:00:00:00:0b doesn't match container Mac: 02:00:00:00:00:0a",
  );
  assertEquals(
    await wrong(() => checkMac({ ...iface, mac: "02:00:00:00:00:0b" }, link, macvlan)),
    "interface eth0 Mac 02:00:00:00:00:0b doesn't match container Mac: 02:00:00:00:00:0a",
  );
});
