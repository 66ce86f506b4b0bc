/** What lets calls down once in a node's life. The files beside this one are short forms of `deno task test:faults`. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { cnibox } from "../e2e/support/operator.ts";
import { eventually } from "../e2e/support/traffic.ts";
import {
  assertSameState,
  Attachment,
  binDir,
  hostLocalLeftovers,
  type Json,
  type Node,
  nodeTest,
  realTool,
  runPlugin,
  snapshot,
  standIn,
  withStandIns,
} from "../e2e/support/mod.ts";
import { setups } from "./faults.ts";

Deno.test("every plugin list is tried by a file of its own", async () => {
  const named: string[] = [];
  for await (const { name } of Deno.readDir(new URL(".", import.meta.url))) {
    const text = name.endsWith("_test.ts") ? await Deno.readTextFile(new URL(name, import.meta.url)) : "";
    named.push(...[...text.matchAll(/^tryShortly\("(.*)"\);$/gm)].map(([, setup]) => setup!));
  }
  assertEquals(named.sort(), setups.map(({ name }) => name).sort());
});

const conf = (more: Json = {}) => ({
  cniVersion: "1.1.0",
  name: "net1",
  type: "bridge",
  bridge: "br1",
  isGateway: true,
  ipMasq: true,
  ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }]] },
  ...more,
});

nodeTest("a tool that hangs is ended, named, and ADD is undone with code 11", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  const pod = await node.container();
  for (const tool of ["iptables-restore", "iptables", "iptables-save"]) await standIn(node, tool, "exec sleep 1000");
  const env = { CNIBOX_TOOL_TIMEOUT: "2" };
  const { code, json, stdout } = await runPlugin(node, {
    type: "bridge",
    command: "ADD",
    netns: pod,
    stdin: conf(),
    env,
    wrap: withStandIns,
  });
  assertEquals([code, json?.code], [1, 11], stdout);
  assertStringIncludes(json.msg, "iptables");
  assertStringIncludes(json.msg, "did not end within 2 s");
  assertStringIncludes(json.details, "CNIBOX_TOOL_TIMEOUT");
  assertEquals((await node.list("/var/lib/cni/networks/net1")).filter((name) => name.startsWith("10.")), []);
});

nodeTest("a held xtables lock ends ADD with code 11 and the process that holds it", {
  needs: ["bridge", "veth", "iptables", "tool:iptables-legacy-restore", "tool:flock"],
}, async ({ node }) => {
  const pod = await node.container();
  for (const tool of ["iptables", "iptables-restore", "iptables-save"]) {
    await standIn(node, tool, `exec ${tool.replace("iptables", "iptables-legacy")} "$@"`);
  }
  const holder = node.spawn(["flock", "--no-fork", "/run/xtables.lock", "/bin/sh", "-c", "echo held; exec sleep 600"]);
  await holder.until(/held/);
  const { code, json, stdout } = await runPlugin(node, {
    type: "bridge",
    command: "ADD",
    netns: pod,
    stdin: conf({ ipMasqBackend: "iptables" }),
    // The tool waits for two thirds of this.
    env: { CNIBOX_TOOL_TIMEOUT: "6" },
    wrap: withStandIns,
  });
  assertEquals([code, json?.code], [1, 11], stdout);
  assertStringIncludes(json.details, "/run/xtables.lock");
  assert(/held by process \d+ \((flock|sleep|sh)\)/.test(json.details), json.details);
  assertEquals((await node.list("/var/lib/cni/networks/net1")).filter((name) => name.startsWith("10.")), []);
  await holder.close();
});

nodeTest("leases from before a reboot are found by cnibox ipam check, and GC releases them", {
  needs: ["bridge", "veth"],
}, async ({ node }) => {
  // A reboot leaves what is on disk and nothing else: three leases, written before this kernel started.
  const folder = "/var/lib/cni/networks/net1";
  for (const host of [2, 3, 4]) await node.write(`${folder}/10.22.0.${host}`, `old${host}\r\neth0`, 0o600);
  await node.sh(`touch -d 2001-01-01 ${folder}/10.22.0.*`);
  await node.write("/etc/cni/net.d/10-net1.conf", JSON.stringify(conf()));
  const found = await cnibox(node, ["ipam", "check", "--json"], { plugins: "cnibox" });
  assertEquals(found.code, 1, found.stderr);
  for (const host of [2, 3, 4]) assertStringIncludes(found.stdout, `"10.22.0.${host}"`);

  const living = new Attachment(node, conf(), await node.container("living"));
  await living.add();
  const { code, stdout } = await runPlugin(node, {
    type: "bridge",
    command: "GC",
    containerId: null,
    ifName: null,
    stdin: conf({ "cni.dev/valid-attachments": [{ containerID: "living", ifname: "eth0" }] }),
  });
  assertEquals(code, 0, stdout);
  const left = (await node.list(folder)).filter((name) => name.startsWith("10."));
  assertEquals(left.length, 1);
  assertEquals(await node.read(`${folder}/${left[0]}`), "living\r\neth0");
  await living.check();
});

nodeTest("GC removes what killed calls left below /run/cnibox/io, and nothing younger", {
  needs: ["bridge", "veth"],
}, async ({ node }) => {
  const io = "/run/cnibox/io";
  await node.sh(
    `mkdir -p -m 700 ${io}; touch ${io}/1-new-0.out; touch -d 2001-01-01 ${io}/1-old-0.in ${io}/1-old-0.out`,
  );
  const { code, stdout } = await runPlugin(node, {
    type: "bridge",
    command: "GC",
    containerId: null,
    ifName: null,
    stdin: conf({ ipMasq: false, "cni.dev/valid-attachments": [] }),
  });
  assertEquals(code, 0, stdout);
  assertEquals(await node.list(io), ["1-new-0.out"]);
});

nodeTest("ADD on full disks fails cleanly or works, and DEL releases everything once there is room", {
  needs: ["bridge", "veth"],
}, async ({ node }) => {
  const pod = await node.container();
  const net = new Attachment(node, conf({ ipMasq: false }), pod);
  await net.add();
  await net.del();
  for (const folder of ["/var/lib/cni", "/run/cnibox"]) {
    await node.sh(
      `mount -t tmpfs -o size=64k full "$1"; mkdir -p "$1/io"; dd if=/dev/zero of="$1/fill" bs=4k count=100 2>/dev/null || true`,
      folder,
    );
    const { code, json, stdout } = await runPlugin(node, {
      type: "bridge",
      command: "ADD",
      netns: pod,
      stdin: conf({ ipMasq: false }),
      exe: `${binDir.cnibox}/bridge`,
    });
    if (code !== 0) assert(typeof json?.code === "number" && typeof json?.msg === "string", stdout);
    if (code !== 0) assertEquals(await pod.exec(["ip", "link", "show", "eth0"]).then((output) => output.code), 1);
    await net.del();
    assertEquals(await pod.exec(["ip", "link", "show", "eth0"]).then((output) => output.code), 1);
    await node.sh('rm "$1/fill"', folder);
    await net.add();
    await net.del();
    // DEL's `ip` outlives it for a moment, with its input below /run/cnibox.
    await eventually("nobody uses the disk", async () => (await node.exec(["umount", folder])).code === 0);
  }
});

nodeTest(
  "an ADD whose result cannot be handed over undoes everything",
  { needs: ["bridge", "veth", "iptables"] },
  async ({ node }) => {
    const pod = await node.container();
    const net = new Attachment(node, conf(), pod);
    await net.add();
    await net.del();
    const before = [await snapshot(node), await snapshot(pod)] as const;
    const { code, stderr } = await runPlugin(node, {
      type: "bridge",
      command: "ADD",
      netns: pod,
      stdin: conf(),
      wrap: ["/bin/sh", "-c", 'exec "$0" >/dev/full'],
    });
    assertEquals(code, 1);
    assertStringIncludes(stderr, "bridge: ");
    assert(!/at .*\.(js|ts):\d+/.test(stderr), stderr);
    assertSameState(before[0], await snapshot(node), { allow: [hostLocalLeftovers] });
    assertSameState(before[1], await snapshot(pod));
  },
);

/**
 * Sends SIGTERM to whoever starts the first tool, once that listens, gives it time to hear, and then does the tool's
 * work.
 */
async function interruptsAtFirstTool(node: Node): Promise<string[]> {
  for (const tool of ["ip", "nft", "iptables", "iptables-restore", "iptables-save"]) {
    const real = await realTool(node, tool);
    if (real === undefined) continue;
    await standIn(
      node,
      tool,
      `if mkdir /run/hit 2>/dev/null; then
  until caught=0x$(sed -n 's/^SigCgt:[[:space:]]*//p' /proc/$PPID/status) && [ $((caught >> 14 & 1)) = 1 ]; do sleep 0.01; done
  kill -TERM $PPID; sleep 1
fi
exec ${real} "$@"`,
    );
  }
  return withStandIns;
}

const interrupted: [verb: "DEL" | "GC" | "CHECK" | "STATUS", type: string, details: string][] = [
  ["DEL", "portmap", "not everything was removed: call DEL again"],
  ["GC", "portmap", "not everything was removed: call GC again"],
  ["CHECK", "portmap", "nothing was changed: ask again"],
  // Its own tool first, then those of host-local: firewall's are all at work at once, and end as well as they began.
  ["STATUS", "bridge", "nothing was changed: ask again"],
];

for (const [verb, type, details] of interrupted) {
  nodeTest(`SIGTERM in the middle of ${verb} is answered with code 11, and the next call does the work`, {
    needs: ["bridge", "veth", "iptables", "nf_tables", "tool:conntrack"],
  }, async ({ node }) => {
    const { cniVersion, name, ...bridge } = conf();
    const portmap = { type: "portmap", capabilities: { portMappings: true } };
    const list = { cniVersion, name, plugins: [bridge, portmap] };
    // By UDP: what is known of its flows is forgotten once the rules are gone.
    const capabilities = { portMappings: [{ hostPort: 8080, containerPort: 80, protocol: "udp" }] };
    const net = new Attachment(node, list, await node.container("a"), { capabilities });
    // What all containers share is there before.
    await net.add();
    await net.del();
    const before = await snapshot(node);
    const previous = await net.add();
    const wrap = await interruptsAtFirstTool(node);
    const call = () =>
      runPlugin(node, {
        type,
        command: verb,
        netns: "/run/netns/a",
        containerId: "a",
        stdin: {
          ...net.request(type === "bridge" ? bridge : { ...portmap, type }, previous),
          ...(verb === "GC" && { "cni.dev/valid-attachments": [] }),
        },
        wrap,
      });
    const { code, json, stdout } = await call();
    assertEquals([code, json?.code, json?.msg], [1, 11, "interrupted by SIGTERM"], stdout);
    assertStringIncludes(json.details, details);
    const again = await call();
    assertEquals(again.code, 0, again.stdout);
    if (verb === "CHECK") await net.check();
    await net.del();
    assertSameState(before, await snapshot(node), { allow: [hostLocalLeftovers] });
  });
}
