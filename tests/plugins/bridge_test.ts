/** bridge without a kernel: in which order it asks for what, and what it takes back. */
import { assertEquals, assertRejects } from "@std/assert";
import type { DelegateVerb, Lease } from "../../lib/cni/plugin.ts";
import { CniError } from "../../lib/cni/error.ts";
import type { IPConfig } from "../../lib/cni/types.ts";
import type { Explainer } from "../../lib/kernel/plan.ts";
import { macFromIpv4 } from "../../lib/net/mac.ts";
import { vethName } from "../../lib/net/name.ts";
import { parseAddress } from "../../lib/net/cidr.ts";
import { plugin } from "../../plugins/bridge/mod.ts";
import { noted } from "../fakes/kernel.ts";

const CONF = { type: "bridge", bridge: "br9", ipam: { type: "host-local" } };
const VETH = vethName({ network: "net1", containerId: "ctr1", ifName: "eth0" });
const BRIDGE = { ifname: "br9", flags: ["UP"], mtu: 1500, address: "0a:00:00:00:00:01", addr_info: [] };
const SHOW_VETH = `addr show dev ${VETH}`;
/** What takes a link back: a look whose it is, then its end. */
const TAKE_BACK = [`host ip: ${SHOW_VETH}`, `host ip: link del dev ${VETH}`];
const IS_UP = `ip -j link show dev ${VETH}`;
const answers = (state = "UP") => ({
  "addr show dev br9": [{ ...BRIDGE, linkinfo: { info_kind: "bridge" } }],
  [SHOW_VETH]: [{ ifname: VETH, linkinfo: { info_kind: "veth" }, ifalias: "cni:net1:ctr1:eth0" }],
  [IS_UP]: [{ ifname: VETH, operstate: state }],
});
const mac = (ip: string) => macFromIpv4(parseAddress(ip)!.value);

/** An IPAM plugin whose early result is `early`, then answers; `reached` is called in between, and may refuse. */
function ipam(
  log: string[],
  { early, answer, reached = () => {} }: { early: IPConfig[]; answer: IPConfig[]; reached?: () => void },
) {
  const delegate = (_: string, verb: DelegateVerb) => {
    log.push(`host-local ${verb}`);
    return Promise.resolve({});
  };
  const begin = (): Promise<Lease> => {
    log.push("host-local ADD");
    const commit = async () => {
      await Promise.resolve();
      reached();
      log.push("lease is safe");
      return { ips: answer };
    };
    return Promise.resolve({ ips: early, commit });
  };
  return { delegate, begin };
}

/** Runs ADD on a noting kernel; `log` without what comes after the options of a line. */
function adding(early: IPConfig[], answer = early, options: { reached?: () => void; state?: string } = {}) {
  const { call, log } = noted(CONF, { answers: answers(options.state) });
  const own = ipam(log, { early, answer, ...(options.reached && { reached: options.reached }) });
  const short = () =>
    log.map((entry) =>
      entry.startsWith("host ip: addr show dev br9")
        ? `host: ${/ address (\S+) up netns/.exec(entry)?.[1]?.replace(/^/, "link ") ?? "a look at the bridge"}`
        : entry.startsWith("pod ip: ?")
        ? "pod: configured"
        : entry
    );
  return { call: { ...call, ...own }, log: short };
}

const two = [{ address: "10.9.0.2/24", gateway: "10.9.0.1" }];
const three = [{ address: "10.9.0.3/24", gateway: "10.9.0.1" }];

Deno.test("bridge makes the links while the lease is written", async () => {
  const { call, log } = adding(two);
  const result = await plugin.add(call);
  assertEquals(log(), [
    "host-local ADD",
    `host: link ${mac("10.9.0.2")}`,
    "lease is safe",
    "pod: configured",
    `host ${IS_UP}`,
  ]);
  assertEquals(result.interfaces?.[2]?.mac, mac("10.9.0.2"));
  assertEquals(result.ips, [{ ...two[0], interface: 2 }]);
});

Deno.test("bridge takes the links back before the addresses, whichever was done first", async () => {
  const { call, log } = adding(two);
  await plugin.add(call);
  const done = log().length;
  for (const undo of call.undos.reverse()) await undo();
  assertEquals(log().slice(done), [...TAKE_BACK, "host-local DEL"]);
});

Deno.test("bridge takes the links back when no lease could be written after all", async () => {
  const full = () => {
    throw new CniError(5, "no space left on device");
  };
  const { call, log } = adding(two, two, { reached: full });
  const error = await assertRejects(() => plugin.add(call), CniError);
  assertEquals(error.msg, "no space left on device");
  for (const undo of call.undos.reverse()) await undo();
  assertEquals(log(), [
    "host-local ADD",
    `host: link ${mac("10.9.0.2")}`,
    ...TAKE_BACK,
  ]);
});

Deno.test("bridge makes the links anew when the answer became another one", async () => {
  const { call, log } = adding(two, three);
  const result = await plugin.add(call);
  assertEquals(log(), [
    "host-local ADD",
    `host: link ${mac("10.9.0.2")}`,
    "lease is safe",
    ...TAKE_BACK,
    `host: link ${mac("10.9.0.3")}`,
    "pod: configured",
    `host ${IS_UP}`,
  ]);
  assertEquals([result.interfaces?.[2]?.mac, result.ips?.[0]?.address], [mac("10.9.0.3"), "10.9.0.3/24"]);
});

Deno.test("bridge is explained by the steps that ADD takes", async () => {
  const { call, log } = adding(two);
  const plans: string[] = [];
  const explain: Explainer = {
    shadow: true,
    plan: (plan) => plans.push(...plan.flat().filter((one) => !one.read).map(({ text }) => text)),
    perform: () => undefined,
    instead: call.host,
  };
  await plugin.add({ ...call, explain, perform: explain.perform });
  const real = adding(two);
  await plugin.add(real.call);
  // Only the host's settings are written by a process there.
  assertEquals(log().filter((entry) => !entry.startsWith("host sh ")), real.log());
  assertEquals(plans.filter((text) => text.startsWith("link add")).length, 1);
});

Deno.test("bridge announces the address once more when the port did not forward yet", async () => {
  const { call, log } = adding(two, two, { state: "DOWN" });
  let asked = 0;
  const host: typeof call.host = async (command) => {
    const output = await call.host(command);
    // It comes up at the second look.
    return command.argv.join(" ") === IS_UP && asked++ > 0
      ? { ...output, stdout: output.stdout.replace("DOWN", "UP") }
      : output;
  };
  await plugin.add({ ...call, host });
  assertEquals(log().slice(3), [
    "pod: configured",
    `host ${IS_UP}`,
    `host ${IS_UP}`,
    `pod ip: link set dev eth0 address ${mac("10.9.0.2")}`,
  ]);
});

Deno.test("bridge with a VLAN moves the port into it, and puts the gateway onto a link of its own", async () => {
  const bridge = { ...BRIDGE, linkinfo: { info_kind: "bridge", info_data: { vlan_filtering: 1 } } };
  const gateway = { ifname: "br9.100", flags: ["UP"], mtu: 1500, address: "0a:00:00:00:00:64", addr_info: [] };
  const { call, log } = noted({ ...CONF, vlan: 100, isGateway: true }, {
    answers: {
      ...answers(),
      "addr show dev br9": [bridge],
      "addr show dev br9.100": [gateway],
      [`bridge -j vlan show dev ${VETH}`]: [{ ifname: VETH, vlans: [{ vlan: 1 }] }],
    },
  });
  const result = await plugin.add({ ...call, ...ipam([], { early: two, answer: two }) });
  assertEquals(log.filter((entry) => entry.startsWith("host bridge ")), [
    `host bridge -j vlan show dev ${VETH}`,
    `host bridge -batch -: vlan del dev ${VETH} vid 1 master; vlan add dev ${VETH} vid 100 pvid untagged master`,
  ]);
  assertEquals(log.slice(-2), [
    "host ip: addr show dev br9.100",
    `host ip: addr replace 10.9.0.1/24 brd + dev br9.100; link set dev br9.100 address ${gateway.address}`,
  ]);
  assertEquals(result.interfaces?.at(-1), { name: "br9.100", mac: gateway.address });
});
