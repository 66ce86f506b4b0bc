/**
 * The whole life of a chain with rules (bridge with ipMasq, portmap, firewall) with each firewall tool that a node may
 * have.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { inVm } from "./support/vm.ts";
import {
  assertPings,
  assertSameState,
  Attachment,
  call,
  hostLocalLeftovers,
  type Json,
  type Need,
  type Node,
  nodeTest,
  PluginFailed,
  request,
  runPlugin,
  serve,
  snapshot,
} from "./support/mod.ts";

const needs: Need[] = ["bridge", "veth", "iptables", "ip6tables", "nf_tables", "tool:socat", "tool:iptables-legacy"];

/** What each kind of node has, as commands that hide the rest for this node. */
const hide = (tool: string) => `mount --bind /dev/null "$(readlink -f "$(command -v ${tool})")"`;
const variants = {
  "iptables-nft": "iptables --version | grep -q nf_tables",
  "iptables-legacy":
    'mount --bind /usr/sbin/xtables-legacy-multi "$(readlink -f "$(command -v iptables)")"; iptables --version | grep -q legacy',
  "nft alone": hide("iptables"),
};

const chain: Json = {
  cniVersion: "1.1.0",
  name: "net1",
  plugins: [
    {
      type: "bridge",
      bridge: "br1",
      isDefaultGateway: true,
      ipMasq: true,
      ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }]] },
    },
    { type: "portmap", capabilities: { portMappings: true } },
    { type: "firewall" },
  ],
};
const stays = { allow: [hostLocalLeftovers, /networks directory/, /br1/, /ip_forward|forwarding|route_localnet/] };

const attach = (node: Node, container: Awaited<ReturnType<Node["container"]>>, hostPort: number) =>
  new Attachment(node, chain, container, {
    capabilities: { portMappings: [{ hostPort, containerPort: 80, protocol: "tcp" }] },
  });

for (const [variant, script] of Object.entries(variants)) {
  nodeTest(`with ${variant} a chain of rules carries traffic, passes CHECK, and goes with DEL and GC`, {
    needs: variant === "iptables-legacy" ? [...needs, "iptables_legacy"] : needs,
  }, async ({ node }) => {
    const outside = await node.outside();
    await node.sh(script);
    const [a, b] = [await node.container("a"), await node.container("b")];
    const warmUp = attach(node, a, 8081);
    await warmUp.add();
    await warmUp.del();
    // A snapshot lists rules by the tools that are hidden.
    const seen = async () => {
      if (variant !== "nft alone") return await snapshot(node);
      await node.sh("umount /usr/sbin/xtables-nft-multi");
      const state = await snapshot(node);
      await node.sh(script);
      return state;
    };
    const before = await seen();

    const [first, second] = [attach(node, a, 8081), attach(node, b, 8082)];
    await first.add();
    await second.add();
    await first.check();
    const pod = await serve(a, 80, { name: "pod" });
    const world = await serve(outside, 80, { name: "world" });
    assertEquals((await request(outside, outside.hostIPv4, 8081))?.name, "pod");
    const reply = await request(a, outside.ipv4, 80);
    assertEquals([reply?.name, reply?.peer], ["world", outside.hostIPv4]);
    await Promise.all([pod.close(), world.close()]);

    // GC for the first alone: what the second left behind goes, and the first keeps all.
    const valid = [{ containerID: "a", ifname: "eth0" }];
    await node.removeContainer(b);
    for (const plugin of chain.plugins) {
      const stdin = { ...plugin, cniVersion: "1.1.0", name: "net1", "cni.dev/valid-attachments": valid };
      await call(node, { type: plugin.type, command: "GC", stdin });
    }
    await first.check();
    await first.del();
    assertSameState(before, await seen(), stays);
  });
}

nodeTest("without any firewall tool a chain of rules fails before it leaves anything, and one without rules works", {
  needs,
}, async ({ node }) => {
  await node.outside();
  await node.sh(`${hide("iptables")}; ${hide("nft")}`);
  const a = await node.container("a");
  const [bridge, portmap, firewall] = chain.plugins;
  const of = (plugin: Json, more: Json = {}) => ({ ...plugin, cniVersion: "1.1.0", name: "net1", ...more });
  for (const plugin of [bridge, portmap, firewall]) {
    const stdin = of(plugin, {
      runtimeConfig: { portMappings: [{ hostPort: 8081, containerPort: 80, protocol: "tcp" }] },
      ...(plugin === bridge ? {} : { prevResult: { cniVersion: "1.1.0", ips: [{ address: "10.22.0.2/24" }] } }),
    });
    const { code, json } = await runPlugin(node, { type: plugin.type, command: "ADD", netns: a, stdin });
    assertEquals(code, 1, plugin.type);
    assertMatch(`${json.msg} ${json.details}`, /iptables.*nft|nft.*iptables/s, plugin.type);
    await call(node, { type: plugin.type, command: "DEL", netns: a, stdin });
  }
  assertEquals((await a.ipJson("link")).map((link) => link.ifname), ["lo"]);
  const plain = new Attachment(node, of(bridge, { ipMasq: false }), a);
  await plain.add();
  await assertPings(a, "10.22.0.1");
  await plain.check();
  await plain.del();
  const failed = await attach(node, a, 8081).add().catch((error) => error);
  assert(failed instanceof PluginFailed);
});

/** Removes the older variant's tables from the kernel, and from this node what would load them again. */
const unload = `
loader=$(cat /proc/sys/kernel/modprobe)
for family in ip ip6; do
  for table in nat filter mangle raw security; do "$loader" -q -r "\${family}table_$table" || :; done
  "$loader" -q -r "\${family}_tables" || :
done
mount --bind /dev/null "$loader"`;

if (inVm) {
  nodeTest("with iptables-legacy and no module for its tables nft serves, and DEL and GC find nothing to remove", {
    needs,
  }, async ({ node }) => {
    await node.outside();
    await node.sh(`${unload}; ${variants["iptables-legacy"]}`);
    assertMatch((await node.exec(["iptables-save", "-t", "nat"])).stderr, /iptables who\?/);
    const rules = () => node.run("nft", "list", "ruleset");
    const a = await node.container("a");
    const one = attach(node, a, 8081);
    await one.add();
    await one.check();
    assertMatch(await rules(), /10\.22\.0\.2/);
    const gc = { "cni.dev/valid-attachments": [{ containerID: "a", ifname: "eth0" }] };
    for (const plugin of chain.plugins) {
      const stdin = { ...plugin, cniVersion: "1.1.0", name: "net1", ...gc };
      await call(node, { type: plugin.type, command: "GC", stdin });
    }
    await one.check();
    await one.del();
    assertEquals((await rules()).includes("10.22.0."), false);
    // Where nothing but iptables is wanted, ADD says what is missing.
    const stdin = { ...chain.plugins[0], cniVersion: "1.1.0", name: "net1", ipMasqBackend: "iptables" };
    const refused = await runPlugin(node, { type: "bridge", command: "ADD", netns: a, stdin });
    assertEquals(refused.code, 1, refused.stdout);
    assertMatch(refused.json.details, /load its modules/);
    await call(node, { type: "bridge", command: "DEL", netns: a, stdin });
  });
}
