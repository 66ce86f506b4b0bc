/**
 * The test harness itself: a node is alone, ends without a trace, and sees what plugins do. Run with the reference
 * plugins.
 */
import { assert, assertEquals, assertMatch, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import {
  assertPings,
  assertSameState,
  Attachment,
  call,
  childPrograms,
  createNode,
  difference,
  FRESH_ROOT,
  hostLocalLeftovers,
  nodeTest,
  ping,
  PluginFailed,
  request,
  runPlugin,
  serve,
  snapshot,
  temporaryFiles,
  tracePlugin,
} from "./support/mod.ts";

const bridge = {
  cniVersion: "1.0.0",
  name: "net1",
  type: "bridge",
  bridge: "cni0",
  isGateway: true,
  ipMasq: true,
  ipam: {
    type: "host-local",
    ranges: [[{ subnet: "10.88.0.0/24" }], [{ subnet: "fd00:88::/64" }]],
    routes: [{ dst: "0.0.0.0/0" }, { dst: "::/0" }],
  },
};

// A reference call leaves the bridge, iptables its own chains in new tables, host-local its folder.
const left = ["links" as const, "routes" as const, "sysctls" as const, /^cni0 /, hostLocalLeftovers];

nodeTest("a node has only lo, no rules, no plugin files, and no forwarding", async ({ node }) => {
  const state = await snapshot(node);
  assertEquals(state.links.map((line) => line.split(" ")[0]), ["name=lo"]);
  assertEquals([...state.iptables, ...state.nft], []);
  assertEquals(state.files, ["/etc/cni/net.d directory"]);
  assertEquals(await node.sysctl("ipv4/ip_forward"), "0");
  assertSameState(state, await snapshot(node));
});

nodeTest("what happens in a node stays in it", async ({ node }) => {
  const mark = `mark${crypto.randomUUID().slice(0, 8)}`;
  await node.sh(
    'ip link add "$1" type bridge; ip netns add "$1"; for d in /var/lib/cni /etc/cni /opt/cni /run; do touch $d/$1; done',
    mark,
  );
  for (const path of ["/sys/class/net", "/run/netns", "/var/lib/cni", "/etc/cni", "/opt/cni", "/run"]) {
    await assertRejects(() => Deno.lstat(`${path}/${mark}`), Deno.errors.NotFound);
  }
  assertEquals((await node.list("/run/netns")).includes(mark), true);
  assertEquals((await node.list("/sys/class/net")).includes(mark), true);
});

nodeTest("what of the root file system is not the node's own cannot be written there", async ({ node }) => {
  // A node with a root of its own (test:fresh-root) has all of it, and below a chroot it cannot be done.
  if (FRESH_ROOT !== undefined || (await node.exec(["mountpoint", "-q", "/"])).code !== 0) return;
  for (const folder of ["/", "/srv", "/usr/bin"]) {
    const output = await node.exec(["touch", `${folder}/cnibox-${crypto.randomUUID()}`]);
    assertMatch(output.stderr, /Read-only file system/, folder);
  }
  await assertRejects(() => node.write("/srv/nets/file", ""), Error, "Read-only file system");
});

nodeTest("a node ends with all its processes, also when one of them ignores SIGTERM", async () => {
  const node = await createNode();
  const container = await node.container();
  const stubborn = container.spawn(["/bin/sh", "-c", "trap '' TERM; echo ready; sleep 1000; sleep 1000"]);
  await stubborn.until(/ready/);
  await node.processIn(container);
  await node.close();
  await assertRejects(() => Deno.stat(`/proc/${node.pid}`), Deno.errors.NotFound);
});

nodeTest("a node dies with the process that made it, even by SIGKILL", async () => {
  const url = new URL("./support/node.ts", import.meta.url);
  const script = `import { createNode } from ${JSON.stringify(url.href)};
    const node = await createNode(); console.log(node.pid); await new Promise(() => setInterval(() => {}, 1000));`;
  const parent = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", `data:application/typescript,${encodeURIComponent(script)}`],
    stdout: "piped",
  }).spawn();
  const reader = parent.stdout.getReader();
  const pid = Number(new TextDecoder().decode((await reader.read()).value));
  assert((await Deno.stat(`/proc/${pid}`)).isDirectory);
  parent.kill("SIGKILL");
  await parent.status;
  await reader.cancel();
  for (let tries = 100; tries > 0 && await exists(`/proc/${pid}`); tries--) {
    await new Promise((done) => setTimeout(done, 20));
  }
  assertEquals(await exists(`/proc/${pid}`), false);
});

nodeTest("a plugin gets its variables and nothing else of the caller's environment", async ({ node }) => {
  const container = await node.container("c1");
  const { stdout } = await runPlugin(node, {
    type: "bridge",
    exe: "/usr/bin/env",
    command: "ADD",
    netns: container,
    args: { IgnoreUnknown: "1", IP: "10.1.2.3" },
  });
  assertEquals(stdout.trim().split("\n").filter((line) => !line.startsWith("PATH=")).sort(), [
    "CNI_ARGS=IgnoreUnknown=1;IP=10.1.2.3",
    "CNI_COMMAND=ADD",
    "CNI_CONTAINERID=c1",
    "CNI_IFNAME=eth0",
    "CNI_NETNS=/run/netns/c1",
    "CNI_PATH=/opt/cni/bin",
  ]);
});

nodeTest("a command past its limit fails, and takes its node with it", async ({ node }) => {
  await assertRejects(() => node.exec(["sleep", "100"], { timeout: 200 }), Error, "still running after 200 ms");
  assertEquals((await node.exec(["true"])).code !== 0, true);
});

nodeTest(
  "snapshot shows a link, an address, a route, a rule and a file that stay",
  { needs: ["nf_tables"] },
  async ({ node }) => {
    const before = await snapshot(node);
    await node.sh(`ip link add b0 type bridge; ip link set b0 up; ip addr add 10.7.0.1/24 dev b0
    ip rule add from 10.7.0.0/24 table 70; ip route add default dev b0 table 70
    iptables -t nat -N MINE; nft add table inet mine; mkdir /var/lib/cni/x; echo 1 >/var/lib/cni/x/y
    echo 1 >/proc/sys/net/ipv4/ip_forward`);
    const lines = difference(before, await snapshot(node));
    for (
      const wanted of [
        "+ links: name=b0",
        "+ addresses: b0 10.7.0.1/24",
        "+ routes: type=unicast dst=default dev=b0 table=70",
        "+ rules: priority=32765 src=10.7.0.0 srclen=24 table=70",
        "+ iptables: nat :MINE",
        '+ nft: table {"family":"inet","name":"mine"}',
        '+ files: /var/lib/cni/x/y file 644 "1\\n"',
        "+ sysctls: ipv4/ip_forward:1",
      ]
    ) assert(lines.some((line) => line.startsWith(wanted)), `${wanted} is not in\n${lines.join("\n")}`);
    const after = await snapshot(node);
    const error = assertThrows(() => assertSameState(before, after), Error, "- sysctls: ipv4/ip_forward:0");
    assertStringIncludes((error as Error).message, "+ sysctls: ipv4/ip_forward:1");
  },
);

nodeTest("an attachment reaches gateway, neighbour and the outside, and goes again", {
  needs: ["reference", "bridge", "iptables", "ip6tables"],
}, async ({ node }) => {
  const outside = await node.outside();
  const before = await snapshot(node);
  const [one, two] = [await node.container(), await node.container()];
  const attachments = [new Attachment(node, bridge, one), new Attachment(node, bridge, two)];
  for (const attachment of attachments) await attachment.add("ref");
  assertEquals(attachments[1]?.result.ips[0].address, "10.88.0.3/24");
  await assertPings(one, "10.88.0.1");
  await assertPings(one, "10.88.0.3");
  await assertPings(one, "fd00:88::3");
  await assertPings(one, outside.ipv6); // the reference's gateway address is tentative for its first second
  const server = await serve(outside, 8080);
  assertEquals((await request(one, outside.ipv4, 8080))?.peer, outside.hostIPv4);
  assertEquals((await request(one, outside.ipv6, 8080))?.peer, outside.hostIPv6);
  await server.close();
  assertEquals(await request(one, outside.ipv4, 8080), undefined);
  const datagrams = await serve(outside, 9090, { transport: "udp" });
  const reply = await request(one, outside.ipv4, 9090, { transport: "udp" });
  assertEquals([reply?.name, reply?.peer], ["outside", outside.hostIPv4]);
  await datagrams.close();
  for (const attachment of attachments) await attachment.check("ref");
  for (const attachment of attachments) await attachment.del("ref");
  assertEquals(await ping(one, "10.88.0.1", { tries: 1 }), false);
  assertSameState(before, await snapshot(node), { allow: left });
});

nodeTest("a failing plugin's error is told", { needs: ["reference"] }, async ({ node }) => {
  const container = await node.container();
  const failed = await assertRejects(
    () =>
      call(node, { type: "bridge", by: "ref", command: "ADD", netns: container, stdin: { ...bridge, name: "a/b" } }),
    PluginFailed,
    "invalid characters found in network name",
  );
  assertEquals(failed.error, { code: 7, msg: "invalid characters found in network name", details: "a/b" });
});

nodeTest("a trace names the programs that a plugin starts and the files that it opens", {
  needs: ["reference", "tool:strace", "iptables"],
}, async ({ node }) => {
  const container = await node.container();
  const trace = await tracePlugin(node, { type: "bridge", by: "ref", command: "ADD", netns: container, stdin: bridge });
  assertEquals(trace.output.code, 0, trace.output.stdout);
  assertEquals(trace.execs[0]?.path, "/opt/cni/ref/bridge");
  assertEquals(trace.execs[0]?.argv, ["/opt/cni/ref/bridge"]);
  assertEquals(childPrograms(trace)[0], "host-local");
  assert(childPrograms(trace).includes("iptables"));
  // Go starts one process more, to find out whether pidfds work.
  assert(trace.children >= trace.execs.length - 1);
  assert(trace.files.includes("/var/lib/cni/networks/net1/lock"));
  assertEquals(temporaryFiles(trace), []);
});

async function exists(path: string): Promise<boolean> {
  try {
    await Deno.stat(path);
    return true;
  } catch {
    return false;
  }
}
