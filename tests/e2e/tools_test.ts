/** Whose tools are run, which of them outlive a call, and which namespace they enter. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  assertSameState,
  Attachment,
  hostLocalLeftovers,
  type Json,
  type Namespace,
  type Node,
  nodeTest,
  type PluginOutput,
  realTool,
  runPlugin,
  snapshot,
  standIn,
  withStandIns,
} from "./support/mod.ts";
import { eventually } from "./support/traffic.ts";

const bridge = (more: Json = {}): Json => ({
  cniVersion: "1.1.0",
  name: "net1",
  type: "bridge",
  bridge: "br1",
  isGateway: true,
  ipMasq: true,
  ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }]] },
  ...more,
});

// --------------------------------------------------------------------------------------------------------- whose tools

/**
 * ADD with a VLAN, the only thing for which iproute2's bridge is needed; this kernel may know nothing of VLANs on
 * bridges.
 */
async function addWithVlan(node: Node, path: string): Promise<PluginOutput> {
  await standIn(node, "ip", `sed "s/vlan_filtering 1//" | ${await realTool(node, "ip")} "$@"`);
  return await runPlugin(node, {
    type: "bridge",
    command: "ADD",
    netns: await node.container(),
    stdin: bridge({ ipMasq: false, vlan: 100 }),
    env: { PATH: path },
    wrap: withStandIns,
  });
}

/** A character device 0:0 hides a tool in an overlay. */
const hide = (node: Node, tool: string) => node.sh('mkdir -p /run/standin; mknod "/run/standin/$1" c 0 0', tool);

nodeTest("a tool in a folder that others can write to is never run", {
  needs: ["bridge", "veth"],
}, async ({ node }) => {
  // A folder as /tmp is, and one of root's own inside it.
  await node.sh("mkdir -p /opt/open/own; chmod 1777 /opt/open");
  for (const tool of ["ip", "bridge", "nsenter"]) {
    for (const folder of ["/opt/open", "/opt/open/own"]) {
      await node.write(`${folder}/${tool}`, "#!/bin/sh\n: >/run/planted\n", 0o755);
    }
  }
  await hide(node, "bridge");
  const output = await addWithVlan(node, "/opt/open:/opt/open/own:/usr/sbin:/usr/bin:/sbin:/bin");
  assertEquals(output.code, 1, output.stdout);
  assertStringIncludes(output.stdout, 'exec: \\"bridge\\": executable file not found in $PATH');
  assert(!(await node.list("/run")).includes("planted"));
});

nodeTest("a tool that the system's folders lack is found in a folder of PATH that only root can write to", {
  needs: ["bridge", "veth"],
}, async ({ node }) => {
  await hide(node, "bridge");
  await node.write("/opt/tools/bridge", "#!/bin/sh\n: >/run/called\n", 0o755);
  const output = await addWithVlan(node, "/opt/tools:/usr/sbin:/usr/bin:/sbin:/bin");
  assertEquals(output.code, 0, output.stdout);
  assert((await node.list("/run")).includes("called"));
});

for (const [whose, script] of [["iproute2's bridge", ": >/run/called"], ["no bridge", undefined]]) {
  nodeTest(`with the plugin folder first in PATH and ${whose} on the machine, cnibox is never taken for it`, {
    needs: ["bridge", "veth"],
  }, async ({ node }) => {
    if (script === undefined) await hide(node, "bridge");
    else await standIn(node, "bridge", script);
    const output = await addWithVlan(node, "/opt/cni/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    assertEquals(output.code, script === undefined ? 1 : 0, output.stdout);
    if (script !== undefined) assert((await node.list("/run")).includes("called"));
    else assertStringIncludes(output.stdout, 'exec: \\"bridge\\": executable file not found in $PATH');
  });
}

nodeTest("bridge called as iproute2's is called does not end with 0", async ({ node }) => {
  for (const args of [["-batch", "-"], ["-j", "vlan", "show"], ["link"], ["-V"]]) {
    const { code, stdout, stderr } = await node.exec(["/opt/cni/bin/bridge", ...args]);
    assert(code !== 0, args.join(" "));
    assertEquals(stdout, "");
    assertStringIncludes(stderr, "CNI bridge plugin");
  }
  assertEquals((await node.exec(["/opt/cni/bin/bridge"])).code, 0);
});

// --------------------------------------------------------------------------------------------------- tools that stay

interface Slow {
  readonly tool: string;
  readonly plugins: readonly Json[];
  readonly capabilities?: Record<string, unknown>;
  /** Which plugin of the list is killed. */
  readonly place?: number;
  readonly needs?: ("iptables" | "nf_tables" | "ifb" | "tool:conntrack")[];
  /** Prepares the node. */
  readonly prepare?: (node: Node) => Promise<unknown>;
}

const published = { portMappings: [{ hostPort: 8080, containerPort: 80, protocol: "udp" }] };

const slow: Record<string, Slow> = {
  "iptables-restore": {
    tool: "iptables-restore",
    plugins: [bridge({ ipMasqBackend: "iptables" })],
    needs: ["iptables"],
  },
  "nft": { tool: "nft", plugins: [bridge({ ipMasqBackend: "nftables" })], needs: ["nf_tables"] },
  "ip": { tool: "ip", plugins: [bridge()] },
  "tc": {
    tool: "tc",
    plugins: [bridge({ ipMasq: false }), {
      type: "bandwidth",
      ingressRate: 8_000_000,
      ingressBurst: 8_000_000,
    }],
    place: 1,
    needs: ["ifb"],
  },
  "conntrack": {
    tool: "conntrack",
    plugins: [bridge({ ipMasq: false }), {
      type: "portmap",
      backend: "nftables",
      capabilities: { portMappings: true },
    }],
    capabilities: published,
    place: 1,
    needs: ["nf_tables", "tool:conntrack"],
  },
  "iptables-restore of flannel's delegate": {
    tool: "iptables-restore",
    plugins: [{
      type: "flannel",
      cniVersion: "1.0.0",
      name: "net1",
      subnetFile: "/run/flannel/subnet.env",
      delegate: { bridge: "br1", isDefaultGateway: true, ipMasq: true, ipMasqBackend: "iptables" },
    }],
    needs: ["iptables"],
    prepare: (node) =>
      node.write(
        "/run/flannel/subnet.env",
        "FLANNEL_NETWORK=10.22.0.0/16\nFLANNEL_SUBNET=10.22.0.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
      ),
  },
};

async function isRunning(node: Node, tool: string): Promise<boolean> {
  return (await node.exec(["pgrep", "-f", `^/bin/sh /usr/sbin/${tool} `])).code === 0;
}

/** Starts an ADD with the configuration in /run/stdin; its process ID is in /run/plugin once it runs. */
function startInBackground(node: Node, { type, pod, path = "/opt/cni/bin" }: {
  type: string;
  pod: Namespace;
  path?: string;
}) {
  const script = `echo $$ >/run/plugin; exec "$0" </run/stdin`;
  const env = {
    PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
    CNI_COMMAND: "ADD",
    CNI_CONTAINERID: pod.name,
    CNI_NETNS: pod.netns!,
    CNI_IFNAME: "eth0",
    CNI_PATH: path,
  };
  return node.spawn([...withStandIns, "/bin/sh", "-c", script, `${path}/${type}`], { env });
}

for (const [name, { tool, plugins, capabilities, place = 0, needs = [], prepare }] of Object.entries(slow)) {
  nodeTest(`when ADD was killed alone, DEL ends ${name} that it left: nothing comes later`, {
    needs: ["bridge", "veth", ...needs],
  }, async ({ node }) => {
    await prepare?.(node);
    const pod = await node.container();
    const list = { cniVersion: "1.0.0", name: "net1", plugins };
    const net = new Attachment(node, list, pod, capabilities ? { capabilities } : {});
    // What all containers share is there before.
    await net.add();
    await net.del();
    const before = await snapshot(node);
    const real = await realTool(node, tool);
    // Slow the first time: it waits until it is told, then does its work, all of it.
    await standIn(
      node,
      tool,
      `if mkdir /run/slow; then until [ -e /run/go ]; do sleep 0.05; done; fi 2>/dev/null
exec ${real} "$@"`,
    );
    for (let round = 1; round <= 5; round++) {
      await node.sh("rm -rf /run/slow /run/go /run/plugin");
      let previous: Json;
      for (const plugin of plugins.slice(0, place)) {
        const request = { ...net.request(plugin, previous) };
        const output = await runPlugin(node, { type: plugin.type, command: "ADD", netns: pod, stdin: request });
        assertEquals(output.code, 0, output.stdout);
        previous = output.json;
      }
      const hit = plugins[place];
      await node.write("/run/stdin", JSON.stringify(net.request(hit, previous)));
      const call = startInBackground(node, { type: hit.type, pod });
      await eventually(`${tool} is at work`, async () => (await node.list("/run")).includes("slow"), 30_000);
      await node.sh("kill -9 $(cat /run/plugin)");
      await call.ended();
      assert(await isRunning(node, tool), `round ${round}: ${tool} ended by itself: nothing was tested`);
      await net.del();
      assert(!await isRunning(node, tool), `round ${round}: ${tool} goes on after DEL`);
      await node.sh(": >/run/go");
      assertSameState(before, await snapshot(node), { allow: [hostLocalLeftovers] });
      assertEquals(await node.list("/run/cnibox/io"), []);
    }
  });
}

nodeTest("GC ends what a killed ADD left, and so does DEL where the delegate is another program", {
  needs: ["bridge", "veth"],
}, async ({ node }) => {
  const pod = await node.container();
  const conf = bridge({ ipMasq: false, ipam: { type: "other-ipam" } });
  // Another program as IPAM plugin, which takes its time in a child of its own when it is asked for an address.
  await node.sh("mkdir -p /opt/other; ln -sf /opt/cni/bin/* /opt/other/");
  await node.write(
    "/opt/other/other-ipam",
    `#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exit 0
mkdir /run/slow; (until [ -e /run/go ]; do sleep 0.05; done; : >/run/came-later)
echo '{"cniVersion":"1.1.0","ips":[{"address":"10.22.0.9/24"}]}'
`,
    0o755,
  );
  await node.write("/run/stdin", JSON.stringify(conf));
  for (const command of ["DEL", "GC"] as const) {
    await node.sh("rm -rf /run/slow /run/go /run/plugin");
    const call = startInBackground(node, { type: "bridge", pod, path: "/opt/other" });
    await eventually("the delegate is at work", async () => (await node.list("/run")).includes("slow"), 30_000);
    await node.sh("kill -9 $(cat /run/plugin)");
    await call.ended();
    const { code, stdout } = await runPlugin(node, {
      type: "bridge",
      command,
      path: "/opt/other",
      netns: command === "GC" ? null : pod,
      ...(command === "GC" && { containerId: null, ifName: null }),
      stdin: { ...conf, ...(command === "GC" && { "cni.dev/valid-attachments": [] }) },
    });
    assertEquals(code, 0, stdout);
    assertEquals((await node.exec(["pgrep", "-f", "other-ipam"])).code, 1);
    await node.sh(": >/run/go");
    assert(!(await node.list("/run")).includes("came-later"));
  }
});

nodeTest("DEL and GC leave the tools of living calls alone", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  const [pod, other] = [await node.container("one"), await node.container("two")];
  const conf = bridge({ ipMasqBackend: "iptables" });
  const [net, second] = [new Attachment(node, conf, pod), new Attachment(node, conf, other)];
  await second.add();
  await standIn(
    node,
    "iptables-restore",
    `mkdir /run/slow; until [ -e /run/go ]; do sleep 0.05; done; exec ${await realTool(node, "iptables-restore")} "$@"`,
  );
  await node.write("/run/stdin", JSON.stringify(conf));
  const call = startInBackground(node, { type: "bridge", pod });
  await eventually("the tool is at work", async () => (await node.list("/run")).includes("slow"), 30_000);
  await second.del();
  const gc = await runPlugin(node, {
    type: "bridge",
    command: "GC",
    containerId: null,
    ifName: null,
    stdin: { ...conf, "cni.dev/valid-attachments": [{ containerID: "one", ifname: "eth0" }] },
  });
  assertEquals(gc.code, 0, gc.stdout);
  await node.sh(": >/run/go");
  assertEquals(await call.ended(), 0, call.stdout);
  net.result = JSON.parse(call.stdout);
  await net.check();
  await net.del();
});

// ----------------------------------------------------------------------------------------------- a path that flips

nodeTest("a namespace path that leads elsewhere meanwhile does not move the work there", {
  needs: ["bridge", "veth"],
}, async ({ node }) => {
  // The host has an eth0 of its own.
  await node.ip(
    "link add eth0 type veth peer name far",
    "link set eth0 up",
    "link set far up",
    "addr add 192.0.2.1/24 dev eth0",
  );
  const pod = await node.container();
  await node.sh('touch /run/host; mount --bind /proc/1/ns/net /run/host; ln -sfn "$1" /run/path', pod.netns!);
  const hostEnd = async () =>
    JSON.stringify(await node.ipJson("-4", "addr", "show", "dev", "eth0"), (key, value) => key === "mtu" ? 0 : value);
  const before = await hostEnd();
  const conf = bridge({ ipMasq: false });
  /** The n-th start of a tool turns the path to the host and goes on. */
  const flip = async (n: number) => {
    await node.sh('rm -rf /run/n; mkdir /run/n; ln -sfn "$1" /run/path', pod.netns!);
    const script = `: >/run/n/$$; [ $(ls /run/n | wc -l) -lt ${n} ] || ln -sfn /run/host /run/path`;
    for (const tool of ["ip", "nsenter"]) {
      await standIn(node, tool, `${script}\nexec ${await realTool(node, tool)} "$@"`);
    }
  };
  const call = (command: "ADD" | "DEL"): Promise<PluginOutput> =>
    runPlugin(node, {
      type: "bridge",
      command,
      netns: "/run/path",
      containerId: pod.name,
      stdin: conf,
      env: { CNI_NETNS_OVERRIDE: "1" },
      wrap: withStandIns,
    });
  for (let n = 1; n <= 2; n++) {
    await flip(n);
    const added = await call("ADD");
    assertEquals(added.code, 0, added.stdout);
    assertEquals(added.json.interfaces.at(-1).sandbox, "/run/path");
    assertEquals(await node.sh("readlink /run/path"), "/run/host\n");
    assertEquals((await pod.ipJson("addr", "show", "dev", "eth0")).length, 1);
    assertEquals(await hostEnd(), before);
    await flip(n);
    const deleted = await call("DEL");
    assertEquals(deleted.code, 0, deleted.stdout);
    assertEquals((await pod.exec(["ip", "link", "show", "eth0"])).code, 1);
    assertEquals(await hostEnd(), before);
  }
});

nodeTest("logs and errors name the namespace by the path that was given, whatever is in it", {
  needs: ["bridge", "veth"],
}, async ({ node }) => {
  const pod = await node.container();
  const path = `/run/a '"#\\ path`;
  await node.sh('touch "$1"; mount --bind "$2" "$1"', path, pod.netns!);
  const call = (command: "ADD" | "DEL", more: Json = {}) =>
    runPlugin(node, {
      type: "bridge",
      command,
      netns: path,
      containerId: "ctr1",
      stdin: bridge({ ipMasq: false, ...more }),
      env: { CNIBOX_LOG: "/run/log" },
    });
  const added = await call("ADD");
  assertEquals([added.code, added.json?.interfaces?.at(-1)?.sandbox], [0, path], added.stdout);
  // There is an eth0 already.
  const again = await call("ADD", { ipam: { type: "static", addresses: [{ address: "10.22.0.99/24" }] } });
  assertEquals(again.code, 1);
  assert(!again.stdout.includes("/proc/"), again.stdout);
  assertEquals((await call("DEL")).code, 0);
  const log = await node.read("/run/log") ?? "";
  assert(!/\/proc\/\d+\/fd/.test(log), log);
  assertStringIncludes(log, JSON.stringify(`--net=${path}`));
});
