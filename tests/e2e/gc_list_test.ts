/** GC's list of valid attachments: left out, null, and under its other name. */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { Attachment, call, type Json, nodeTest, pluginNames, runPlugin } from "./support/mod.ts";

const bridge = {
  type: "bridge",
  bridge: "br7",
  isGateway: true,
  ipMasq: true,
  ipam: { type: "host-local", ranges: [[{ subnet: "10.27.0.0/24" }]] },
};
const tuning = { type: "tuning", mtu: 1400 };
const portmap = { type: "portmap", capabilities: { portMappings: true } };

nodeTest("GC keeps what nobody spoke of, and takes the list under either name", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  const plugins = [bridge, tuning, portmap];
  let hostPort = 8080;
  const pods = [await node.container("a"), await node.container("b")];
  for (const pod of pods) {
    await new Attachment(node, { cniVersion: "1.1.0", name: "gc", plugins }, pod, {
      capabilities: { portMappings: [{ hostPort: hostPort++, containerPort: 80, protocol: "tcp" }] },
    }).add();
  }
  const state = async () => ({
    leases: (await node.list("/var/lib/cni/networks/gc")).filter((name) => name.startsWith("10.")),
    backups: await node.list("/run/cni/tuning"),
    rules: (await node.run("iptables-save", "-t", "nat")).split("\n").filter((line) => line.startsWith("-A")),
    links: (await node.ipJson("link", "show", "master", "br7")).length,
  });
  const collect = async (list: Json) => {
    const warnings: string[] = [];
    for (const one of plugins) {
      const stdin = { cniVersion: "1.1.0", name: "gc", ...one, ...list };
      const { code, stdout, stderr } = await runPlugin(node, { command: "GC", type: one.type, stdin });
      assertEquals(code, 0, stdout);
      warnings.push(...stderr.split("\n").filter((line) => line !== ""));
    }
    return warnings;
  };
  const before = await state();
  assertEquals(before.rules.filter((line) => /--dport 808[01]/.test(line) && /DNAT/.test(line)).length, 2);
  const warnings = await collect({});
  assertEquals(warnings.length, plugins.length, warnings.join("\n"));
  for (const one of warnings) assertStringIncludes(one, "nothing is removed");
  assertEquals(await state(), before);
  for (const list of [{}, false, "a", [null]]) {
    for (const key of ["cni.dev/valid-attachments", "cni.dev/attachments"]) {
      for (const one of plugins) {
        const stdin = { cniVersion: "1.1.0", name: "gc", ...one, [key]: list };
        assertEquals((await runPlugin(node, { command: "GC", type: one.type, stdin })).json.code, 6);
      }
    }
  }
  assertEquals(await state(), before);
  assertEquals(
    await collect({ "cni.dev/attachments": pods.map(({ name }) => ({ containerID: name, ifname: "eth0" })) }),
    [],
  );
  assertEquals(await state(), before);
  assertEquals(await collect({ "cni.dev/attachments": [{ containerID: "a", ifname: "eth0" }] }), []);
  const half = await state();
  assertEquals(half.rules.some((line) => /--dport 8081/.test(line)), false);
  assertEquals([half.leases, half.backups, half.links], [["10.27.0.2"], ["a_eth0.json"], 1]);
  assertEquals(await collect({ "cni.dev/valid-attachments": null }), []);
  const { rules, ...rest } = await state();
  assertEquals(rest, { leases: [], backups: [], links: 0 });
  assertEquals(rules.filter((line) => /id: /.test(line)), []);
});

nodeTest("GC of every plugin takes a left-out list for nothing said", async ({ node }) => {
  for (const type of pluginNames) {
    const members = type === "chain" ? { plugins: [{ type: "loopback" }] } : {};
    const stdin = { cniVersion: "1.1.0", name: "n", type, ...members };
    const output = await runPlugin(node, { command: "GC", type, stdin });
    assertEquals([output.code, output.stderr.match(/nothing is removed/g)?.length], [0, 1], `${type} ${output.stdout}`);
  }
  await call(node, {
    command: "GC",
    type: "loopback",
    stdin: { cniVersion: "1.1.0", name: "n", "cni.dev/attachments": null },
  });
});
