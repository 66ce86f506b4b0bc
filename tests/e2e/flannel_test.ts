/** flannel with real delegates: ours and the reference's bridge, state on disk, and what is left after DEL. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import type { Namespace, Node } from "./support/node.ts";
import { Attachment, binDir, call, type Json, PluginFailed } from "./support/plugins.ts";
import { nodeTest } from "./support/test.ts";
import type { Need } from "./support/needs.ts";

const needs: Need[] = ["bridge", "veth"];
const STATE = "/var/lib/cni/flannel";
const SUBNET = "/run/flannel/subnet.env";
const FOUR = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n";
const BOTH = `${FOUR}FLANNEL_IPV6_NETWORK=fd01::/48\nFLANNEL_IPV6_SUBNET=fd01:0:0:17::1/64\n`;

const conf = (more: Json = {}) => ({ cniVersion: "1.0.0", name: "cbr0", type: "flannel", ...more });

function request(pod: Namespace, more: Json = {}) {
  return { type: "flannel", netns: pod, stdin: conf(more) };
}

async function leases(node: Node, network = "cbr0"): Promise<string[]> {
  return (await node.list(`/var/lib/cni/networks/${network}`)).filter((name) => /^[0-9a-f]+[.:]/.test(name));
}

nodeTest(
  "flannel attaches with both families, and the cluster's networks lead to the gateway",
  { needs },
  async ({ node }) => {
    await node.write(SUBNET, BOTH);
    const [a, b] = [await node.container(), await node.container()];
    const results: Json[] = [];
    for (const pod of [a, b]) results.push(await call(node, { command: "ADD", ...request(pod) }));
    const [first, second] = results;
    assertEquals(first.cniVersion, "1.0.0");
    assertEquals(first.ips.map((ip: Json) => ip.gateway), ["10.1.17.1", "fd01:0:0:17::1"]);
    assertEquals(first.routes, [{ dst: "10.1.0.0/16" }, { dst: "fd01::/48" }]);
    const [link] = await a.ipJson("link", "show", "dev", "eth0");
    assertEquals(link.mtu, 1400);
    const [{ gateway }] = await a.ipJson("route", "show", "10.1.0.0/16");
    assertEquals(gateway, "10.1.17.1");
    await a.run("ping", "-c", "1", "-W", "2", "10.1.17.1");
    await a.run("ping", "-c", "1", "-W", "2", second.ips[0].address.split("/")[0]);
    await a.run("ping", "-c", "1", "-W", "3", second.ips[1].address.split("/")[0]);
    for (const [at, pod] of [a, b].entries()) {
      await call(node, { command: "CHECK", ...request(pod, { prevResult: results[at] }) });
      await call(node, { command: "DEL", ...request(pod, { prevResult: results[at] }) });
      await call(node, { command: "DEL", ...request(pod) });
      assertEquals(await pod.ipJson("link", "show", "type", "veth"), []);
    }
    assertEquals([await leases(node), await node.list(STATE)], [[], []]);
  },
);

nodeTest(
  "flannel as kubernetes has it: portmap after it, ports from the runtime",
  { needs: [...needs, "iptables"] },
  async ({ node }) => {
    await node.write(SUBNET, FOUR);
    const pod = await node.container();
    const list = {
      cniVersion: "0.3.1",
      name: "cbr0",
      plugins: [
        { type: "flannel", delegate: { hairpinMode: true, isDefaultGateway: true } },
        { type: "portmap", capabilities: { portMappings: true } },
      ],
    };
    const portMappings = [{ hostPort: 8080, containerPort: 80, protocol: "tcp" }];
    const attachment = new Attachment(node, list, pod, { capabilities: { portMappings } });
    const result = await attachment.add();
    assertEquals(result.cniVersion, "0.3.1");
    assert(result.routes.some((route: Json) => route.dst === "0.0.0.0/0"));
    await attachment.del();
    assertEquals([await leases(node), await node.list(STATE)], [[], []]);
  },
);

nodeTest("flannel with the reference's plugins as delegates: same state, either deletes", {
  needs: [...needs, "reference"],
}, async ({ node }) => {
  await node.write(SUBNET, FOUR);
  const pod = await node.container();
  const theirs = { ...request(pod), path: binDir.ref };
  await call(node, { command: "ADD", ...theirs });
  const text = await node.read(`${STATE}/${pod.name}`);
  assertEquals(text, await node.read(`${STATE}/${pod.name}@eth0@cbr0`));
  assertEquals(
    text,
    '{"cniVersion":"1.0.0","ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}],' +
      '"type":"host-local"},"isGateway":true,"mtu":1400,"name":"cbr0","type":"bridge"}',
  );
  assertEquals((await leases(node)).length, 1);
  await call(node, { command: "DEL", ...request(pod) });
  assertEquals([await leases(node), await node.list(STATE)], [[], []]);

  // As the reference leaves it: its file alone, its delegate's link and lease.
  await call(node, { type: "bridge", command: "ADD", by: "ref", netns: pod, stdin: text });
  await node.write(`${STATE}/${pod.name}`, text!, 0o600);
  await call(node, { command: "DEL", ...request(pod) });
  assertEquals([await leases(node), await node.list(STATE), await pod.ipJson("link", "show", "type", "veth")], [
    [],
    [],
    [],
  ]);
});

nodeTest("flannel ADD that fails leaves nothing, with a delegate of ours or of others", {
  needs: [...needs, "reference"],
}, async ({ node }) => {
  await node.write(SUBNET, FOUR);
  await node.ip("link add cni0 type bridge", "addr add 10.9.0.1/24 dev cni0");
  for (const path of [binDir.cnibox, binDir.ref]) {
    const pod = await node.container();
    for (let time = 0; time < 2; time++) {
      const failed = await assertRejects(() => call(node, { command: "ADD", ...request(pod), path }), PluginFailed);
      assert(
        failed.error.msg.includes('"cni0" already has an IP address different from 10.1.17.1/24'),
        failed.error.msg,
      );
      assertEquals([await leases(node), await node.list(STATE), await pod.ipJson("link", "show", "type", "veth")], [
        [],
        [],
        [],
      ]);
    }
  }
  const pod = await node.container();
  const none = await assertRejects(
    () => call(node, { command: "ADD", ...request(pod, { delegate: { type: "nosuch" } }) }),
    PluginFailed,
  );
  assertEquals(none.error.msg, 'failed to delegate add: failed to find plugin "nosuch" in path [/opt/cni/bin]');
  await node.run("rm", SUBNET);
  const lost = await assertRejects(() => call(node, { command: "ADD", ...request(pod) }), PluginFailed);
  assertEquals(
    lost.error.msg,
    `failed to load flannel 'subnet.env' file: open ${SUBNET}: no such file or directory. Check the flannel pod log for this node.`,
  );
  assertEquals(await node.list(STATE), []);
});

nodeTest("flannel DEL uses what ADD kept, and what can be known when that is lost", { needs }, async ({ node }) => {
  await node.write(SUBNET, FOUR);
  const damage: [what: string, script: string][] = [
    ["another subnet", `sed -i s/10.1/10.2/ ${SUBNET}`],
    ["no subnet file", `rm ${SUBNET}`],
    ["no namespace", "ip netns del $1"],
    ["a broken state", `for f in ${STATE}/*; do echo '{"name":' >"$f"; done`],
    ["no state", `rm ${STATE}/*`],
  ];
  for (const [what, script] of damage) {
    await node.write(SUBNET, FOUR);
    const pod = await node.container();
    await call(node, { command: "ADD", ...request(pod) });
    assertEquals((await leases(node)).length, 1, what);
    await node.sh(script, pod.name);
    await call(node, { command: "DEL", ...request(pod) });
    assertEquals([await leases(node), await node.list(STATE)], [[], []], what);
  }
});

nodeTest("flannel keeps two interfaces of one container apart", { needs }, async ({ node }) => {
  await node.write(SUBNET, FOUR);
  const pod = await node.container();
  const one = (bridge: string, name: string, ifName: string) => ({
    ...request(pod, { name, delegate: { bridge } }),
    ifName,
  });
  await call(node, { command: "ADD", ...one("br1", "net1", "eth0") });
  await node.write(SUBNET, FOUR.replace("10.1.17.1", "10.1.18.1"));
  await call(node, { command: "ADD", ...one("br2", "net2", "eth1") });
  await call(node, { command: "DEL", ...one("br1", "net1", "eth0") });
  assertEquals((await pod.ipJson("link", "show", "type", "veth")).map((link) => link.ifname), ["eth1"]);
  assertEquals([await leases(node, "net1"), (await leases(node, "net2")).length], [[], 1]);
  await call(node, { command: "DEL", ...one("br2", "net2", "eth1") });
  assertEquals([await leases(node, "net2"), await node.list(STATE)], [[], []]);
});

nodeTest(
  "flannel GC collects leases and state of lost containers, and STATUS tells whether ADD can work",
  { needs },
  async ({ node }) => {
    const network = (command: "GC" | "STATUS", more: Json = {}) =>
      call(node, { type: "flannel", command, stdin: conf({ cniVersion: "1.1.0", ...more }) });
    const failed = await assertRejects(() => network("STATUS"), PluginFailed);
    assertEquals(failed.error.code, 50);
    await node.write(SUBNET, FOUR);
    await network("STATUS");
    const [lost, kept] = [await node.container(), await node.container()];
    for (const pod of [lost, kept]) await call(node, { command: "ADD", ...request(pod) });
    await node.removeContainer(lost);
    await network("GC", { "cni.dev/valid-attachments": [{ containerID: kept.name, ifname: "eth0" }] });
    assertEquals((await leases(node)).length, 1);
    assertEquals(await node.list(STATE), [kept.name, `${kept.name}@eth0@cbr0`]);
    await call(node, { command: "DEL", ...request(kept) });
  },
);
