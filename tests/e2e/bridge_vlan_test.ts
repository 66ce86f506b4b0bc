/**
 * bridge with VLAN filtering, seen on the wire: access ports, trunks, the default VLAN, a vlan link, and the reference.
 */
import { assertEquals } from "@std/assert";
import { fixed } from "./support/main_plugin.ts";
import {
  assertNoPing,
  assertPings,
  assertSameState,
  Attachment,
  hostLocalLeftovers,
  interopTest,
  type Json,
  type Namespace,
  type Need,
  type Node,
  nodeTest,
  type Outside,
  snapshot,
} from "./support/mod.ts";

const needs: Need[] = ["bridge", "veth", "vlan_filtering"];
const wire: Need[] = [...needs, "vlan", "tool:tcpdump", "tool:arping"];

const net = (more: Json): Json => ({ cniVersion: "1.1.0", name: "net1", type: "bridge", bridge: "br1", ...more });

/**
 * A bridge whose uplink carries these VLANs tagged, and VLAN 1 untagged. Outside has 10.VLAN.0.1 in each, 10.1.0.1
 * untagged and 10.3.0.1 in VLAN 300.
 */
async function trunkedNode(node: Node, ...vlans: number[]): Promise<Outside> {
  const outside = await node.outside({ defaultRoutes: false });
  await node.ip("link add br1 type bridge vlan_filtering 1", "link set br1 up", "link set uplink master br1");
  await outside.ip("addr add 10.1.0.1/24 dev eth0");
  for (const vlan of vlans) {
    await node.run("bridge", "vlan", "add", "dev", "uplink", "vid", `${vlan}`);
    await tagged(outside, vlan, `10.${vlan === 300 ? 3 : vlan}.0.1/24`);
  }
  return outside;
}

/** A link in a VLAN of eth0, with an address. */
async function tagged(namespace: Namespace, vlan: number, address: string): Promise<void> {
  await namespace.ip(
    `link add link eth0 name eth0.${vlan} type vlan id ${vlan}`,
    `addr add ${address} dev eth0.${vlan}`,
    `link set eth0.${vlan} up`,
  );
}

/** Listens to what passes an interface, with link-layer headers. */
async function sniffer(at: Namespace, dev: string, ...filter: string[]) {
  const process = at.spawn(["tcpdump", "-l", "-n", "-e", "-i", dev, ...filter]);
  await process.until(/listening on/);
  return process;
}

nodeTest("bridge access VLAN: tagged on the wire, untagged in the container, apart from other VLANs", {
  needs: wire,
}, async ({ node }) => {
  const outside = await trunkedNode(node, 100, 200);
  const a = await node.container("a");
  const one = new Attachment(
    node,
    net({ vlan: 100, ipam: fixed(["10.100.0.2/24", "10.1.0.2/24", "10.200.0.2/24"]) }),
    a,
  );
  const { interfaces } = await one.add();
  const heard = await sniffer(outside, "eth0", "icmp or vlan");
  const inside = await sniffer(a, "eth0", "icmp");
  await assertPings(a, "10.100.0.1");
  const { mac } = interfaces.find(({ sandbox }: Json) => sandbox !== undefined);
  await heard.until(
    new RegExp(`${mac} > .*802\\.1Q.*vlan 100,.*10\\.100\\.0\\.2 > 10\\.100\\.0\\.1: ICMP echo request`),
  );
  await inside.until(/ethertype IPv4 .*10\.100\.0\.1 > 10\.100\.0\.2: ICMP echo reply/);
  await assertNoPing(a, "10.1.0.1");
  await assertNoPing(a, "10.200.0.1");
  await one.check();
  await one.del();
  assertEquals((await node.ipJson("link", "show", "master", "br1")).map((link) => link.ifname), ["uplink"]);
});

for (const kept of [false, true]) {
  nodeTest(
    `bridge access VLAN: frames of the default VLAN ${kept ? "reach" : "do not reach"} the container when it is ${
      kept ? "kept" : "not kept"
    }`,
    { needs: wire },
    async ({ node }) => {
      const outside = await trunkedNode(node, 100);
      const a = await node.container("a");
      const conf = net({ vlan: 100, preserveDefaultVlan: kept, ipam: fixed(["10.100.0.2/24"]) });
      await new Attachment(node, conf, a).add();
      const inside = await sniffer(a, "eth0", "arp");
      // Asked untagged, then in the container's VLAN: when the second is there, the first has been or never comes.
      await outside.exec(["arping", "-c", "1", "-w", "1", "-I", "eth0", "10.1.0.77"]);
      await outside.exec(["arping", "-c", "1", "-w", "1", "-I", "eth0.100", "10.100.0.77"]);
      await inside.until(/who-has 10\.100\.0\.77/);
      assertEquals(/who-has 10\.1\.0\.77/.test(inside.stdout), kept);
      // What the container says is in its own VLAN, whatever else it hears.
      await assertPings(a, "10.100.0.1");
    },
  );
}

nodeTest("bridge trunk: its VLANs pass tagged, the native one untagged, and no other", {
  needs: wire,
}, async ({ node }) => {
  const outside = await trunkedNode(node, 100, 200, 202, 300);
  const a = await node.container("a");
  const trunk = { vlan: 300, vlanTrunk: [{ id: 100 }, { minID: 200, maxID: 201 }] };
  const one = new Attachment(node, net({ ...trunk, ipam: fixed(["10.3.0.2/24"]) }), a);
  await one.add();
  for (const vlan of [100, 200, 202]) await tagged(a, vlan, `10.${vlan}.0.2/24`);
  const heard = await sniffer(outside, "eth0", "vlan");
  await assertPings(a, "10.100.0.1");
  await assertPings(a, "10.200.0.1");
  await assertPings(a, "10.3.0.1");
  for (const [vlan, address] of [[100, "10\\.100\\.0\\.2"], [200, "10\\.200\\.0\\.2"], [300, "10\\.3\\.0\\.2"]]) {
    await heard.until(new RegExp(`vlan ${vlan},.*${address} > .*ICMP echo request`));
  }
  await assertNoPing(a, "10.202.0.1");
  await one.check();
});

nodeTest("vlan on a VLAN-aware bridge talks to the bridge's containers of that VLAN and to the wire, and to no other", {
  needs: wire,
}, async ({ node }) => {
  await trunkedNode(node, 100, 200);
  await node.run("bridge", "vlan", "add", "dev", "br1", "vid", "100", "self");
  const [a, b, c] = [await node.container("a"), await node.container("b"), await node.container("c")];
  const link = { cniVersion: "1.1.0", name: "net2", type: "vlan", master: "br1", vlanId: 100 };
  await new Attachment(node, net({ vlan: 100, ipam: fixed(["10.100.0.3/24"]) }), b).add();
  await new Attachment(node, net({ vlan: 200, ipam: fixed(["10.100.0.4/24"]) }), c).add();
  // Last, for the MAC of a VLAN link follows that of its bridge, which settles with the first container.
  const one = new Attachment(node, { ...link, ipam: fixed(["10.100.0.2/24"]) }, a);
  await one.add();
  await assertPings(a, "10.100.0.1");
  await assertPings(a, "10.100.0.3");
  await assertPings(b, "10.100.0.2");
  await assertNoPing(a, "10.100.0.4");
  await one.check();
  await one.del();
});

interopTest("bridge in a VLAN, with a trunk", { needs }, async ({ adder, checker, deleter }, node) => {
  const conf = net({
    cniVersion: "1.0.0",
    vlan: 100,
    vlanTrunk: [{ minID: 200, maxID: 202 }],
    isGateway: true,
    ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }]] },
  });
  const warmUp = new Attachment(node, conf, await node.container("w"));
  await warmUp.add(adder);
  await warmUp.del(deleter);
  const before = await snapshot(node);
  const a = await node.container("a");
  const one = new Attachment(node, conf, a);
  await one.add(adder);
  await one.check(checker);
  await assertPings(a, "10.22.0.1");
  await one.del(deleter);
  assertSameState(before, await snapshot(node), { allow: [hostLocalLeftovers] });
});
