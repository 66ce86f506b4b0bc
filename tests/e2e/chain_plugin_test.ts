/**
 * A list folded into one `chain`: the same on the node as the list, in the company of the reference, and when it fails.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { folded } from "../../lib/cli/fold.ts";
import {
  assertPings,
  assertSameState,
  Attachment,
  type By,
  hostLocalLeftovers,
  type Json,
  type Node,
  nodeTest,
  PluginFailed,
  request,
  runPlugin,
  serve,
  type Snapshot,
  snapshot,
  tracePlugin,
} from "./support/mod.ts";
import type { Need } from "./support/needs.ts";
import { settled } from "./support/main_plugin.ts";
import { cnibox, configure, must } from "./support/operator.ts";

const needs: Need[] = ["bridge", "veth", "iptables", "ip6tables", "ifb", "tbf", "ingress"];
const MBIT = 1_000_000;

const plugins = [
  {
    type: "bridge",
    bridge: "brc",
    isDefaultGateway: true,
    ipMasq: true,
    hairpinMode: true,
    ipam: { type: "host-local", ranges: [[{ subnet: "10.67.0.0/24" }], [{ subnet: "fd67::/64" }]] },
  },
  { type: "portmap", capabilities: { portMappings: true } },
  { type: "bandwidth", capabilities: { bandwidth: true } },
  { type: "firewall" },
  { type: "tuning", mtu: 1400, sysctl: { "net.core.somaxconn": "99" }, capabilities: { mac: true } },
  { type: "sbr" },
];
const list = { cniVersion: "1.1.0", name: "pods", plugins };
const fold = (network: Json) => JSON.parse(folded("test", JSON.stringify(network)));

const capabilities = {
  portMappings: [{ hostPort: 8080, containerPort: 80, protocol: "tcp" }],
  bandwidth: { ingressRate: 80 * MBIT, ingressBurst: 8 * MBIT, egressRate: 40 * MBIT, egressBurst: 8 * MBIT },
  mac: "02:00:00:00:67:01",
};

/** What stays of a network when its last container is gone, see chain_test.ts. */
const stays = {
  allow: [
    hostLocalLeftovers,
    /networks directory|\/run\/cni\/tuning directory/,
    /brc/,
    /ip_forward|forwarding|type=anycast/,
    /CNI-(HOSTPORT|FORWARD|ADMIN)|127\.0\.0\.0\/8 is for this host alone/,
  ],
};

/** The same list, with one address only: every ADD gets it. */
const fixed = {
  ...list,
  plugins: plugins.map((one) =>
    one.type !== "bridge" ? one : {
      ...one,
      ipam: {
        type: "host-local",
        ranges: [
          [{ subnet: "10.67.0.0/24", rangeStart: "10.67.0.7", rangeEnd: "10.67.0.7" }],
          [{ subnet: "fd67::/64", rangeStart: "fd67::7", rangeEnd: "fd67::7" }],
        ],
      },
    }
  ),
};

/** The container's link is another one each time: tuning's note of it has another number. */
function unnumbered(state: Snapshot): Snapshot {
  return { ...state, files: state.files.map((line) => line.replace(/\\"index\\": \d+/, "")) };
}

nodeTest(
  "chain leaves on the node what its members leave in a list, and answers the same",
  { needs },
  async ({ node }) => {
    const pod = await node.container();
    await pod.ip("link set lo up");
    const byList = new Attachment(node, fixed, pod, { capabilities });
    const byChain = new Attachment(node, fold(fixed), pod, { capabilities });
    // The bridge and shared chains stay: they are there before the first look.
    await byList.add();
    await byList.del();
    const clean = [await snapshot(node), await snapshot(pod)] as const;
    const result = await byList.add();
    const attached = [await snapshot(node), await snapshot(pod)] as const;
    await byList.del();

    assertEquals(await byChain.add(), result);
    assertSameState(unnumbered(attached[0]), unnumbered(await snapshot(node)));
    assertSameState(attached[1], await snapshot(pod));
    await byChain.check();
    await byChain.del();
    await byChain.del();
    assertSameState(clean[0], await snapshot(node));
    assertSameState(clean[1], await snapshot(pod));
  },
);

nodeTest("a list and its folded form take over each other's living containers", { needs }, async ({ node }) => {
  const pods = [await node.container(), await node.container()];
  const forms = [list, fold(list)];
  const clean = await snapshot(node);
  const attached = [];
  for (const [at, pod] of pods.entries()) {
    const runtime = { ...capabilities, portMappings: [{ ...capabilities.portMappings[0], hostPort: 8080 + at }] };
    const [mine, other] = [forms[at], forms[1 - at]].map((form) =>
      new Attachment(node, form, pod, { capabilities: runtime })
    );
    other!.result = await mine!.add();
    attached.push(other!);
  }
  for (const other of attached) await other.check();
  for (const other of attached) await other.del();
  assertSameState(clean, await snapshot(node), stays);
  for (const pod of pods) assertEquals(await pod.ipJson("link", "show", "type", "veth"), []);
});

for (const [adder, deleter] of [["ref", "cnibox"], ["cnibox", "ref"]] as [By, By][]) {
  nodeTest(`a folded list and the reference's plugins: ${adder} adds, ${deleter} deletes without a trace`, {
    needs: [...needs, "reference"],
  }, async ({ node }) => {
    const clean = await snapshot(node);
    const pod = await node.container();
    const form = (by: By) => new Attachment(node, by === "ref" ? list : fold(list), pod, { capabilities });
    const [one, other] = [form(adder), form(deleter)];
    other.result = await one.add(adder);
    if (deleter === "cnibox") await other.check();
    await other.del(deleter);
    assertSameState(clean, await snapshot(node), stays);
    assertEquals(await pod.ipJson("link", "show", "type", "veth"), []);
  });
}

/** A plugin folder where the reference is in charge of some types. */
async function mixedFolder(node: Node, foreign: readonly string[]): Promise<string> {
  const folder = "/opt/cni/mixed";
  await Deno.mkdir(node.path(folder));
  for (const { type } of [{ type: "chain" }, { type: "host-local" }, ...plugins]) {
    const target = foreign.includes(type) ? `/opt/cni/ref/${type}` : `/opt/cni/bin/${type}`;
    await Deno.symlink(target, `${node.path(folder)}/${type}`);
  }
  return folder;
}

for (const foreign of [["bridge"], ["host-local", "portmap", "tuning"], ["bandwidth", "firewall", "sbr"]]) {
  nodeTest(`chain runs the reference's ${foreign.join(", ")} among its own members, and leaves no trace`, {
    needs: [...needs, "reference"],
  }, async ({ node }) => {
    const path = await mixedFolder(node, foreign);
    const clean = await snapshot(node);
    const pod = await node.container();
    const attachment = new Attachment(node, fold(list), pod, { capabilities, env: { CNI_PATH: path } });
    const result = await attachment.add();
    assertEquals(result.ips.length, 2);
    assertEquals((await pod.ipJson("link", "show", "dev", "eth0"))[0].mtu, 1400);
    // Sbr has moved the routes that the reference's bridge looks for.
    if (!foreign.includes("bridge")) await attachment.check();
    await attachment.del();
    assertSameState(clean, await snapshot(node), stays);
    assertEquals(await pod.ipJson("link", "show", "type", "veth"), []);
  });
}

for (const foreign of [[], ["bridge", "portmap"]]) {
  const whose = foreign.length === 0 ? "ours" : "the reference's among them";
  nodeTest(`chain whose last member fails takes back what all the others did, ${whose}`, {
    needs: foreign.length === 0 ? needs : [...needs, "reference"],
  }, async ({ node }) => {
    const path = await mixedFolder(node, foreign);
    const pod = await node.container();
    await pod.ip("link set lo up");
    const warm = new Attachment(node, fold(fixed), pod, { capabilities, env: { CNI_PATH: path } });
    await warm.add();
    // The reference's bridge has no route to its own IPv6 address before the kernel has tried the address.
    await settled(node);
    await warm.del();
    const clean = [await snapshot(node), await snapshot(pod)] as const;
    // The kernel refuses it when it is written, and not before.
    const refused = { type: "tuning", sysctl: { "net.ipv4.conf.all.arp_filter": "none" } };
    const failing = { ...fixed, plugins: [...fixed.plugins, refused] };
    const attachment = new Attachment(node, fold(failing), pod, { capabilities, env: { CNI_PATH: path } });
    const { error } = await assertRejects(() => attachment.add(), PluginFailed);
    assert(error.details.startsWith("plugin 7 of 7 (tuning): "), JSON.stringify(error));
    assertSameState(clean[0], await snapshot(node));
    assertSameState(clean[1], await snapshot(pod));
  });
}

const MISTAKES: [mistake: Json, msg: RegExp][] = [
  [{ type: "tuning", mtu: "big" }, /mtu/],
  [{ type: "portmap", portConflict: "maybe" }, /portConflict/],
  [{ type: "firewall", ingressPolicy: "shut" }, /ingress policy/],
  [{ type: "bandwidth", ingressRate: 8 }, /burst/i],
  [{ type: "vrf", vrfname: "a/b" }, /a\/b/],
  [{ type: "sbr", gateways: ["x"] }, /gateway/],
  [{ type: "bridge", vlan: 5000 }, /VLAN/],
  [{ type: "bridge", bridge: "brd", ipam: { type: "host-local", ranges: [[{ subnet: "10.1.1.1/24" }]] } }, /10\.1\.1/],
  [{ type: "macvlan", mode: "fast" }, /fast/],
  [{ type: "vlan", vlanId: 7 }, /master/],
  [{ type: "chain", plugins: [{ type: "loopback" }] }, /plugins\.1 \(chain\)/],
  [{ type: "nothing-of-that-name" }, /nothing-of-that-name/],
];

nodeTest("chain finds a mistake in any member before anything is touched", { needs }, async ({ node, step }) => {
  const pod = await node.container();
  const clean = await snapshot(node);
  for (const [mistake, words] of MISTAKES) {
    await step(mistake.type, async () => {
      const { type } = mistake;
      const stdin = { cniVersion: "1.1.0", name: "pods", type: "chain", plugins: [plugins[0], mistake] };
      const { code, json } = await runPlugin(node, { type: "chain", command: "ADD", netns: pod, stdin });
      assertEquals(code, 1);
      assert(words.test(json.msg), JSON.stringify(json));
      assert(`${json.msg} ${json.details}`.includes(`(${type})`), JSON.stringify(json));
      assertSameState(clean, await snapshot(node));
    });
  }
});

nodeTest("chain publishes ports that are reached from outside, beside other entries of a list", {
  needs: [...needs, "tool:socat"],
}, async ({ node }) => {
  const outside = await node.outside();
  const clean = await snapshot(node);
  const pod = await node.container();
  const [bridge, portmap, ...rest] = plugins;
  const mixed = { ...list, plugins: [bridge, fold({ ...list, plugins: [portmap, rest[0]] }).plugins[0], rest[1]] };
  const attachment = new Attachment(node, mixed, pod, { capabilities });
  const result = await attachment.add();
  const server = await serve(pod, 80);
  assertEquals((await request(outside, outside.hostIPv4, 8080))?.name, pod.name);
  await server.close();
  await assertPings(pod, outside.ipv4);
  assertEquals(result.interfaces.length, 4);
  await attachment.check();
  await attachment.del();
  assertSameState(clean, await snapshot(node), stays);
});

nodeTest("chain GC collects what every member left of containers that are gone", { needs }, async ({ node }) => {
  const pods = [await node.container(), await node.container()];
  const [entry] = fold(list).plugins;
  const attached = pods.map((pod, at) =>
    new Attachment(node, fold(list), pod, {
      capabilities: { ...capabilities, portMappings: [{ hostPort: 8080 + at, containerPort: 80, protocol: "tcp" }] },
    })
  );
  await attached[0]!.add();
  const one = await snapshot(node);
  await attached[1]!.add();
  await node.removeContainer(pods[1]!);
  const valid = [{ containerID: pods[0]!.name, ifname: "eth0" }];
  const stdin = { ...entry, cniVersion: "1.1.0", name: "pods", "cni.dev/valid-attachments": valid };
  const { code, stdout } = await runPlugin(node, { type: "chain", command: "GC", stdin });
  assertEquals([code, stdout], [0, ""]);
  assertSameState(one, await snapshot(node), { allow: [hostLocalLeftovers] });
  assertEquals((await runPlugin(node, { type: "chain", command: "STATUS", stdin })).code, 0);
  await attached[0]!.check();
  await attached[0]!.del();
});

nodeTest("chain sets and removes the rules of all its members for one table in one process", {
  needs: [...needs, "tool:strace"],
}, async ({ node }) => {
  const pod = await node.container();
  const [entry] = fold({ ...list, plugins: plugins.slice(0, 2) }).plugins;
  const { capabilities: _, ...conf } = entry;
  const runtimeConfig = { portMappings: capabilities.portMappings };
  const warm = new Attachment(node, fold(list), pod, { capabilities });
  await warm.add();
  await warm.del();
  let prevResult: Json;
  for (const [command, tools] of [["ADD", 1], ["DEL", 1]] as const) {
    const stdin = { ...conf, cniVersion: "1.1.0", name: "pods", runtimeConfig, ...(prevResult && { prevResult }) };
    const { output, execs } = await tracePlugin(node, { type: "chain", command, netns: pod, stdin });
    assertEquals(output.code, 0, output.stdout);
    prevResult = output.json;
    for (const tool of ["iptables-restore", "ip6tables-restore"]) {
      assertEquals(execs.filter(({ argv }) => argv[0]?.endsWith(`/${tool}`)).length, tools, `${command} ${tool}`);
    }
  }
});

nodeTest("the operator's commands see the members of a folded list", { needs }, async ({ node }) => {
  const clean = await snapshot(node);
  const pod = await node.container("box");
  await configure(node, fold(list));
  const explained = (await must(node, ["explain", "add", "pods", "box", "-p", "8080:80"])).stdout;
  for (const words of ["brc", "CNI-HOSTPORT-DNAT", "CNI-FORWARD"]) assert(explained.includes(words), words);
  assertSameState(clean, await snapshot(node), { allow: [{ section: "files", line: /\/etc\/cni/ }] });

  await must(node, ["add", "pods", "box", "-p", "8080:80"]);
  const types = plugins.map(({ type }) => type);
  const [network] = (await must(node, ["show", "pods", "--json"])).json.networks;
  assertEquals([network.plugins, network.attachments.length], [types, 1]);
  await must(node, ["check", "pods", "box"]);
  await node.run("iptables", "-t", "nat", "-F");
  assertEquals((await cnibox(node, ["check", "pods", "box"])).code, 1);
  await must(node, ["restore", "--all"]);
  await must(node, ["check", "pods", "box"]);

  await node.removeContainer(pod);
  await must(node, ["gc", "pods", "--yes"]);
  const etc = { section: "files" as const, line: /\/etc\/cni|\/var\/lib\/cni\/results directory/ };
  assertSameState(clean, await snapshot(node), { allow: [...stays.allow, etc] });
});
