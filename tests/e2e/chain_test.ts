/** Six plugins in one list, driven as a runtime drives them: what each promises holds in the company of the others. */
import { assert, assertEquals } from "@std/assert";
import {
  assertPings,
  assertSameState,
  Attachment,
  hostLocalLeftovers,
  type Json,
  type Namespace,
  nodeTest,
  request,
  serve,
  type Snapshot,
  snapshot,
} from "./support/mod.ts";
import type { Need } from "./support/needs.ts";

const needs: Need[] = ["bridge", "veth", "iptables", "ip6tables", "ifb", "tbf", "ingress", "tool:socat"];
const MBIT = 1_000_000;

const six = {
  cniVersion: "1.1.0",
  name: "six",
  plugins: [
    {
      type: "bridge",
      bridge: "br6",
      isDefaultGateway: true,
      ipMasq: true,
      hairpinMode: true,
      ipam: { type: "host-local", ranges: [[{ subnet: "10.66.0.0/24" }], [{ subnet: "fd66::/64" }]] },
    },
    { type: "portmap", capabilities: { portMappings: true } },
    { type: "bandwidth", capabilities: { bandwidth: true } },
    { type: "firewall" },
    { type: "tuning", mtu: 1400, sysctl: { "net.core.somaxconn": "99" }, capabilities: { mac: true } },
    { type: "sbr" },
  ],
};

const capabilities = (at: number) => ({
  portMappings: [{ hostPort: 8080 + at, containerPort: 80, protocol: "tcp" }],
  bandwidth: { ingressRate: 80 * MBIT, ingressBurst: 8 * MBIT, egressRate: 40 * MBIT, egressBurst: 8 * MBIT },
  mac: `02:00:00:00:66:0${at}`,
});

/**
 * What stays of a network when its last container is gone: the bridge, forwarding, chains that hold nothing, the guard
 * of 127.0.0.0/8, which harms nobody, and an empty folder.
 */
const stays = {
  allow: [
    hostLocalLeftovers,
    /networks directory|\/run\/cni\/tuning directory/,
    /br6/,
    /ip_forward|forwarding|type=anycast/,
    /CNI-(HOSTPORT|FORWARD|ADMIN)|127\.0\.0\.0\/8 is for this host alone/,
  ],
};

nodeTest(
  "six plugins in a list attach, keep their promises and leave without a trace",
  { needs },
  async ({ node }) => {
    const outside = await node.outside();
    const clean = await snapshot(node);
    let settled = clean;
    for (const round of [1, 2]) {
      const attached: { pod: Namespace; attachment: Attachment; result: Json; before: Snapshot }[] = [];
      for (const at of [1, 2]) {
        const pod = await node.container();
        await pod.ip("link set lo up");
        const before = await snapshot(pod);
        const attachment = new Attachment(node, six, pod, { capabilities: capabilities(at) });
        const result = await attachment.add();
        await attachment.check();
        attached.push({ pod, attachment, result, before });
      }

      for (const [index, { pod, result }] of attached.entries()) {
        const at = index + 1;
        const ip = result.ips[0].address.split("/")[0];
        const [link] = await pod.ipJson("addr", "show", "dev", "eth0");
        assertEquals([link.address, link.mtu], [`02:00:00:00:66:0${at}`, 1400], "tuning");
        assertEquals(await pod.sysctl("core/somaxconn"), "99", "tuning");
        assertEquals(result.interfaces.find((one: Json) => one.sandbox).mac, `02:00:00:00:66:0${at}`, "tuning");
        assert((await pod.run("ip", "rule")).includes(`from ${ip} lookup 100`), "sbr");
        const ifb = result.interfaces.at(-1).name;
        assert(/tbf .*rate 40Mbit/.test(await node.run("tc", "qdisc", "show", "dev", ifb)), "bandwidth");
        const server = await serve(pod, 80);
        assertEquals((await request(outside, outside.hostIPv4, 8080 + at))?.name, pod.name, "portmap");
        await server.close();
        // What the firewall plugin lets through needs no open policy.
        for (const tables of ["iptables", "ip6tables"]) await node.run(tables, "-P", "FORWARD", "DROP");
        // With sbr a program says which address it sends from: the main table leads nowhere any more.
        const [from4, from6] = result.ips.map((one: Json) => one.address.split("/")[0]);
        await assertPings(pod, outside.ipv4, { from: from4 });
        await assertPings(pod, outside.ipv6, { from: from6 });
        for (const tables of ["iptables", "ip6tables"]) await node.run(tables, "-P", "FORWARD", "ACCEPT");
      }
      const [first, second] = attached;
      for (const [at, { address }] of second!.result.ips.entries()) {
        await assertPings(first!.pod, address.split("/")[0], { from: first!.result.ips[at].address.split("/")[0] });
      }

      for (const { pod, attachment, before } of attached) {
        await attachment.check();
        await attachment.del();
        await attachment.del();
        assertSameState(before, await snapshot(pod));
        assertEquals(await pod.sysctl("core/somaxconn"), "4096", "tuning");
      }
      const now = await snapshot(node);
      assertSameState(clean, now, stays);
      if (round === 2) assertSameState(settled, now, { allow: [hostLocalLeftovers] });
      settled = now;

      // A namespace that is gone when DEL comes leaves no more than that.
      const pod = await node.container();
      const attachment = new Attachment(node, six, pod, { capabilities: capabilities(3) });
      await attachment.add();
      await node.removeContainer(pod);
      await attachment.del("cnibox", { withoutNetns: true });
      assertSameState(settled, await snapshot(node), { allow: [hostLocalLeftovers] });
    }
  },
);

for (const [adder, deleter] of [["ref", "cnibox"], ["cnibox", "ref"]] as const) {
  nodeTest(`six plugins in a list: ${adder} adds, cnibox checks, ${deleter} deletes without a trace`, {
    needs: [...needs, "reference"],
  }, async ({ node }) => {
    const clean = await snapshot(node);
    const pod = await node.container();
    const attachment = new Attachment(node, six, pod, { capabilities: capabilities(1) });
    await attachment.add(adder);
    // The reference's bridge fails its CHECK as soon as sbr has moved the routes.
    await attachment.check("cnibox");
    await attachment.del(deleter);
    assertSameState(clean, await snapshot(node), stays);
    assertEquals(await pod.ipJson("link", "show", "type", "veth"), []);
  });
}
