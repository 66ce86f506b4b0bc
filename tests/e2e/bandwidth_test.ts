/** bandwidth on real veth pairs: measured rates, what is left behind, and life beside the reference. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import type { Namespace, Node } from "./support/node.ts";
import { Attachment, type By, call, type Json, PluginFailed } from "./support/plugins.ts";
import { childPrograms, type Trace, tracePlugin } from "./support/trace.ts";
import { interopTest, nodeTest } from "./support/test.ts";
import type { Need } from "./support/needs.ts";
import { inVm } from "./support/vm.ts";

const needs: Need[] = ["veth", "ifb", "tbf", "ingress"];
const MBIT = 1_000_000;
const limits = { ingressRate: 10 * MBIT, ingressBurst: 2 * MBIT, egressRate: 5 * MBIT, egressBurst: MBIT };

/** A container behind a veth pair made by hand: host 10.9.0.1 on veth0, container 10.9.0.2 on eth0. */
async function pair(node: Node, name = "ctr1"): Promise<{ pod: Namespace; prevResult: Json }> {
  const pod = await node.container(name);
  await node.ip(
    `link add veth0 mtu 1400 type veth peer name eth0 netns ${pod.netns}`,
    "addr add 10.9.0.1/24 dev veth0",
    "link set veth0 up",
  );
  await pod.ip("link set lo up", "addr add 10.9.0.2/24 dev eth0", "link set eth0 up");
  const prevResult = {
    cniVersion: "1.0.0",
    interfaces: [{ name: "veth0", mac: "02:00:00:00:00:01" }, { name: "eth0", sandbox: pod.netns }],
    ips: [{ address: "10.9.0.2/24", interface: 1 }],
  };
  return { pod, prevResult };
}

function request(pod: Namespace, prevResult: Json, more: Json = limits) {
  return { type: "bandwidth", netns: pod, stdin: { cniVersion: "1.0.0", name: "mynet", ...more, prevResult } };
}

/** Bits a second that a server in `to` received; `args` say how much is sent. */
async function iperf(from: Namespace, to: Namespace, ip: string, args: string[]): Promise<number> {
  const server = to.spawn(["iperf3", "-s", "-1", "--forceflush"]);
  await server.until(/Server listening/);
  const report = JSON.parse(await from.run("iperf3", "-J", "-c", ip, ...args));
  await server.ended();
  return report.end.sum_received.bits_per_second;
}

function assertWithin(what: string, measured: number, rate: number): void {
  const text = `${what}: ${(measured / MBIT).toFixed(2)} of ${rate / MBIT} Mbit/s`;
  assert(measured > rate * 0.75 && measured < rate * 1.25, text);
}

nodeTest(
  "bandwidth holds the rate in both directions, beside each other",
  { needs: [...needs, "tool:iperf3"] },
  async ({ node }) => {
    const { pod, prevResult } = await pair(node);
    const before = await iperf(node, pod, "10.9.0.2", ["-t", "1"]);
    assert(before > 200 * MBIT, `an unlimited pair does ${before / MBIT} Mbit/s`);
    const conf = { ingressRate: 24 * MBIT, ingressBurst: 400_000, egressRate: 12 * MBIT, egressBurst: 400_000 };
    await call(node, { command: "ADD", ...request(pod, prevResult, conf) });
    assertWithin("to the container", await iperf(node, pod, "10.9.0.2", ["-t", "3"]), 24 * MBIT);
    assertWithin("from the container", await iperf(pod, node, "10.9.0.1", ["-t", "3"]), 12 * MBIT);
    await call(node, { command: "CHECK", ...request(pod, prevResult, conf) });
    await call(node, { command: "DEL", ...request(pod, prevResult, conf) });
    const after = await iperf(pod, node, "10.9.0.1", ["-t", "1"]);
    assert(after > 200 * MBIT, `after DEL the pair does ${after / MBIT} Mbit/s`);
  },
);

nodeTest(
  "bandwidth lets a burst through and then holds the rate",
  { needs: [...needs, "tool:iperf3"] },
  async ({ node }) => {
    const { pod, prevResult } = await pair(node);
    const conf = { ingressRate: 8 * MBIT, ingressBurst: 16 * MBIT, egressRate: 8 * MBIT, egressBurst: 16 * MBIT };
    await call(node, { command: "ADD", ...request(pod, prevResult, conf) });
    for (const [from, to, ip] of [[node, pod, "10.9.0.2"], [pod, node, "10.9.0.1"]] as const) {
      // 1 MB is half of the bucket, and a second's worth at the rate.
      const burst = await iperf(from, to, ip, ["-n", "1M"]);
      assert(burst > 24 * MBIT, `the burst to ${ip} went at ${burst / MBIT} Mbit/s`);
      const long = await iperf(from, to, ip, ["-t", "3", "-O", "3"]);
      assertWithin(`after the burst to ${ip}`, long, 8 * MBIT);
    }
  },
);

nodeTest(
  "bandwidth carries full packets, IPv6 and ARP with the bursts that runtimes send",
  { needs },
  async ({ node }) => {
    const { pod, prevResult } = await pair(node);
    await node.ip("addr add fd09::1/64 dev veth0 nodad");
    await pod.ip("addr add fd09::2/64 dev eth0 nodad");
    for (const burst of [4_294_967_295, 34_359_738_359]) {
      for (const rate of inVm ? [10 * MBIT] : [400_000, MBIT, 10 * MBIT, 1000 * MBIT]) {
        const conf = { ingressRate: rate, ingressBurst: burst, egressRate: rate, egressBurst: burst };
        await call(node, { command: "ADD", ...request(pod, prevResult, conf) });
        await node.ip("neigh flush dev veth0");
        for (const ip of ["10.9.0.2", "fd09::2"]) {
          const size = ip.includes(":") ? 1400 - 48 : 1400 - 28;
          await node.run("ping", "-c", "3", "-i", "0.01", "-W", "2", "-M", "do", "-s", String(size), ip);
        }
        await call(node, { command: "CHECK", ...request(pod, prevResult, conf) });
        await call(node, { command: "DEL", ...request(pod, prevResult, conf) });
      }
    }
  },
);

/** Numbers that the reference computes, by rate and burst in bit: ticks in hex, and the queue's limit in bytes. */
const rows: [rate: number, burst: number, ticks: string, limit: number][] = [
  [8, 8, "ee6b28", 1],
  [8000, 80, "2625a", 35],
  [5 * MBIT, MBIT, "2faf08", 140_625],
  [10 * MBIT, 8008, "30d4", 32_251],
  [1000 * MBIT, 1600, "f", 3_125_200],
  [33 * MBIT, 3_333_333, "181519", 519_791],
  [10 * MBIT, 4_294_967_295, "8fffffe7", 536_902_161],
  [1 * MBIT, 4_294_967_295, "9fffff83", 536_874_036],
  [400_000 * MBIT, 4_294_967_295, "28f55", 1_786_870_911],
];

nodeTest("bandwidth gives the kernel the reference's numbers, and its CHECK accepts them", {
  needs: [...needs, "reference"],
}, async ({ node }) => {
  const { pod, prevResult } = await pair(node);
  for (const [rate, burst, ticks, limit] of rows) {
    const conf = { ingressRate: rate, ingressBurst: burst };
    const numbers: Json[] = [];
    for (const by of ["ref", "cnibox"] as const) {
      await call(node, { command: "ADD", by, ...request(pod, prevResult, conf) });
      const shown = JSON.parse(await node.run("tc", "-raw", "-d", "-j", "qdisc", "show", "dev", "veth0"));
      const { rate: bytes, burst_raw, limit: size } = shown[0].options;
      numbers.push({ bytes, burst_raw, size });
      await call(node, { command: "CHECK", by: "ref", ...request(pod, prevResult, conf) });
      await call(node, { command: "CHECK", by: "cnibox", ...request(pod, prevResult, conf) });
      await call(node, { command: "DEL", by: "cnibox", ...request(pod, prevResult, conf) });
    }
    assertEquals(numbers[1], numbers[0], `${burst} bit at ${rate} bit/s`);
    assertEquals(numbers[1], { bytes: Math.floor(rate / 8), burst_raw: ticks, size: limit });
  }
});

nodeTest("bandwidth ADD that fails leaves nothing, and fails the same way again", { needs }, async ({ node }) => {
  const { pod, prevResult } = await pair(node);
  await node.run("tc", "qdisc", "add", "dev", "veth0", "clsact");
  const links = await node.run("ip", "-br", "link");
  for (let time = 0; time < 2; time++) {
    const failed = await assertRejects(() => call(node, { command: "ADD", ...request(pod, prevResult) }), PluginFailed);
    assertEquals([failed.error.code, failed.error.msg], [999, "create ingress qdisc: file exists"]);
    assertEquals(await node.run("ip", "-br", "link"), links);
    assertEquals((await qdiscs(node)).sort(), ["clsact ffff:", "noqueue 0:"]);
  }
});

nodeTest("bandwidth ADD again replaces its own, and what the reference left on the link", {
  needs: [...needs, "reference"],
}, async ({ node }) => {
  const { pod, prevResult } = await pair(node);
  await call(node, { command: "ADD", ...request(pod, prevResult) });
  await call(node, { command: "ADD", ...request(pod, prevResult, { ...limits, ingressRate: 20 * MBIT }) });
  await call(node, { command: "CHECK", ...request(pod, prevResult, { ...limits, ingressRate: 20 * MBIT }) });
  await call(node, { command: "DEL", by: "ref", ...request(pod, prevResult) });
  assertEquals(await qdiscs(node), ["tbf 1:", "ingress ffff:"]);
  await call(node, { command: "ADD", ...request(pod, prevResult) });
  await call(node, { command: "CHECK", ...request(pod, prevResult) });
  await call(node, { command: "DEL", ...request(pod, prevResult) });
  assertEquals(await qdiscs(node), ["noqueue 0:"]);
});

nodeTest("bandwidth CHECK notices every part that is gone", { needs }, async ({ node }) => {
  const { pod, prevResult } = await pair(node);
  const { interfaces } = await call(node, { command: "ADD", ...request(pod, prevResult) });
  const ifb = interfaces.at(-1).name;
  const damage: [command: string[], msg: string, repair: string[]][] = [
    [["ip", "link", "set", ifb, "down"], `ifb device ${ifb} is down`, ["ip", "link", "set", ifb, "up"]],
    [["tc", "filter", "del", "dev", "veth0", "ingress"], "Failed to find filter", []],
    [["tc", "qdisc", "del", "dev", "veth0", "root"], "Failed to find qdisc", []],
    [["ip", "link", "del", ifb], "get ifb device: Link not found", []],
  ];
  for (const [command, msg, repair] of damage) {
    await node.run(...command);
    const failed = await assertRejects(
      () => call(node, { command: "CHECK", ...request(pod, prevResult) }),
      PluginFailed,
    );
    assertEquals(failed.error.msg, msg);
    if (repair.length > 0) await node.run(...repair);
  }
});

nodeTest("bandwidth DEL works twice, and without namespace, prevResult and sense", { needs }, async ({ node }) => {
  const { pod, prevResult } = await pair(node);
  await call(node, { command: "ADD", ...request(pod, prevResult) });
  const bare = {
    type: "bandwidth",
    containerId: pod.name,
    stdin: { cniVersion: "1.0.0", name: "mynet", ingressRate: 5, prevResult: 7 },
  };
  await node.removeContainer(pod);
  for (let time = 0; time < 2; time++) {
    await call(node, { command: "DEL", ...bare });
    assertEquals(await node.ipJson("link", "show", "type", "ifb"), []);
  }
});

nodeTest("bandwidth GC removes devices of lost containers of its own network", { needs }, async ({ node }) => {
  const { pod, prevResult } = await pair(node);
  await call(node, { command: "ADD", ...request(pod, prevResult) });
  const gc = (name: string, valid: Json) =>
    call(node, {
      type: "bandwidth",
      command: "GC",
      stdin: { cniVersion: "1.1.0", name, "cni.dev/valid-attachments": valid },
    });
  const devices = async () => (await node.ipJson("link", "show", "type", "ifb")).length;
  await gc("mynet", [{ containerID: pod.name, ifname: "eth0" }]);
  await gc("other", []);
  assertEquals(await devices(), 1);
  await gc("mynet", [{ containerID: pod.name, ifname: "eth1" }]);
  assertEquals(await devices(), 0);
});

nodeTest("bandwidth works behind bridge, with limits from the runtime, in every version", {
  needs: [...needs, "bridge"],
}, async ({ node }) => {
  for (const cniVersion of ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]) {
    const pod = await node.container();
    const conf = {
      cniVersion,
      name: "mynet",
      plugins: [
        { type: "bridge", bridge: "br0", ipam: { type: "static", addresses: [{ address: "10.9.0.2/24" }] } },
        { type: "bandwidth", capabilities: { bandwidth: true } },
      ],
    };
    const bandwidth = { IngressRate: MBIT, IngressBurst: 4_294_967_295, EgressRate: MBIT, EgressBurst: 4_294_967_295 };
    const attachment = new Attachment(node, conf, pod, { capabilities: { bandwidth } });
    const { interfaces } = await attachment.add();
    const last = interfaces.at(-1);
    const [link] = await node.ipJson("link", "show", "dev", last.name);
    assertEquals(last, { name: link.ifname, mac: link.address });
    assertEquals(link.linkinfo.info_kind, "ifb");
    if (cniVersion >= "0.4.0") await attachment.check();
    await attachment.del();
    assertEquals(await node.ipJson("link", "show", "type", "ifb"), []);
    await node.removeContainer(pod);
  }
});

nodeTest("bandwidth starts no more programs than it must", { needs: [...needs, "tool:strace"] }, async ({ node }) => {
  const { pod, prevResult } = await pair(node);
  const programs = async (command: string, more: Json = limits) => {
    const trace = await tracePlugin(node, { command, ...request(pod, prevResult, more) });
    assertEquals(trace.output.code, 0, trace.output.stdout);
    return toolsOf(trace).sort();
  };
  assertEquals(await programs("ADD", {}), []);
  assertEquals(await programs("DEL", {}), []);
  assertEquals(await programs("ADD"), ["ip", "ip", "ip", "tc"]);
  assertEquals(await programs("CHECK"), ["ip", "ip", "tc"]);
  assertEquals(await programs("DEL"), ["ip", "ip", "ip", "tc"]);
});

nodeTest("bandwidth STATUS says that limits cannot work", { needs: ["root"] }, async ({ node }) => {
  const status = (more: Json) =>
    call(node, { type: "bandwidth", command: "STATUS", stdin: { cniVersion: "1.1.0", name: "mynet", ...more } });
  await status({ capabilities: { bandwidth: true } });
  await status(limits);
  await assertRejects(() => status({ egressRate: 5, egressBurst: 5 }), PluginFailed, "create qdisc: invalid argument");
});

interopTest(
  "bandwidth",
  { needs },
  async ({ adder, checker, deleter }: Record<"adder" | "checker" | "deleter", By>, node) => {
    const { pod, prevResult } = await pair(node);
    const result = await call(node, { command: "ADD", by: adder, ...request(pod, prevResult) });
    assertEquals(result.interfaces.length, 3);
    await call(node, { command: "CHECK", by: checker, ...request(pod, result) });
    await call(node, { command: "DEL", by: deleter, ...request(pod, result) });
    assertEquals(await node.ipJson("link", "show", "type", "ifb"), []);
    await call(node, { command: "DEL", by: deleter, ...request(pod, result) });
  },
);

/** Kind and handle of the qdiscs of veth0. */
async function qdiscs(node: Node): Promise<string[]> {
  const shown: Json[] = JSON.parse(await node.run("tc", "-j", "qdisc", "show", "dev", "veth0"));
  return shown.map(({ kind, handle }) => `${kind} ${handle}`);
}

/** What was started; nsenter and the shell become a tool, they are no processes of their own. */
function toolsOf(trace: Trace): string[] {
  return childPrograms(trace).filter((name) => name !== "nsenter" && name !== "sh");
}
