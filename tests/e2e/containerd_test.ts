/**
 * containerd with cnibox as its plugins: its own client, its runtime interface as the kubelet uses it, and kills
 * between ADD and DEL.
 */
import { assert, assertEquals, assertMatch, assertRejects, assertStringIncludes } from "@std/assert";
import {
  assertPings,
  assertSameState,
  Attachment,
  hostLocalLeftovers,
  type Json,
  Namespace,
  type Node,
  snapshot,
} from "./support/mod.ts";
import { eventually } from "./support/traffic.ts";
import { configure, must } from "./support/operator.ts";
import {
  checkAttachment,
  CriError,
  fetchPage,
  firstContainer,
  foldFile,
  importWebImage,
  podNetwork,
  refuses,
  ROOTFS,
  runtimeTest,
  startContainerd,
} from "./support/runtimes.ts";

const needs = ["tool:containerd", "tool:ctr"] as const;

const PAGE = "hello from a container";

const net = podNetwork;

const second: Json = {
  cniVersion: "1.0.0",
  name: "second",
  plugins: [{ type: "bridge", bridge: "cni1", ipam: { type: "host-local", ranges: [[{ subnet: "10.99.0.0/24" }]] } }],
};

runtimeTest("containerd's ctr run --cni attaches a container and leaves nothing, also when ctr is killed", [
  ...needs,
], async ({ node, cgroup }) => {
  await configure(node, net);
  const { ctr } = await startContainerd(node, cgroup);
  const before = await snapshot(node);
  const show =
    "ip -o addr show eth0; ip route; ip -6 route; ping -c 1 -W 5 10.88.0.1 >/dev/null && echo gateway answers";
  const said = await ctr("run", "--rm", "--cni", "--rootfs", ROOTFS, "one", "/bin/sh", "-c", show);
  assertMatch(said, /inet 10\.88\.0\.2\/16 /);
  assertMatch(said, /inet6 fd00:88::2\/64 /);
  assertMatch(said, /^default via 10\.88\.0\.1 dev eth0/m);
  assertMatch(said, /^default via fd00:88::1 dev eth0/m);
  assertStringIncludes(said, "gateway answers");
  const warm = await snapshot(node);
  assertSameState(before, warm, { allow: firstContainer });
  assertEquals(await node.list("/var/lib/cni/results"), []);

  // ctr is the network's client: killed, it never comes to its DEL, and no later ctr does it for it.
  const client = node.spawn([
    ...["sh", "-c", 'echo $$ >/run/ctr.pid; exec ctr "$@"', "sh", "--namespace", cgroup],
    ...["run", "--cni", "--rootfs", ROOTFS, "two", "/bin/sh", "-c", "echo is up; exec sleep 1000"],
  ]);
  await client.until(/is up/);
  await node.sh("kill -9 $(cat /run/ctr.pid)");
  await client.ended();
  await ctr("task", "delete", "--force", "two");
  await ctr("container", "delete", "two");
  assertEquals(await node.list("/var/lib/cni/results"), [`net-${cgroup}-two-eth0`]);
  assert((await node.list("/var/lib/cni/networks/net")).includes("10.88.0.3"));
  await must(node, ["del", "net", "--id", `${cgroup}-two`]);
  assertSameState(warm, await snapshot(node), { allow: [hostLocalLeftovers] });
});

runtimeTest("containerd's CRI service runs pods on two networks with host ports, through its own death and theirs", [
  ...needs,
], async ({ node, cgroup }) => {
  await configure(node, net, "10-net.conflist");
  const first = await startContainerd(node, cgroup);
  await importWebImage(node);
  await configure(node, second, "20-second.conflist");
  const { cri } = first;
  const before = await snapshot(node);

  // Both networks' ADDs, and that of loopback, run side by side.
  const web = await cri.run({ name: "web", cgroup, hostPort: 9090 });
  assertEquals(await cri.networkTrouble(), "");
  const addresses = await cri.addresses(web);
  assert(addresses.includes("10.88.0.2") && addresses.includes("fd00:88::2"), `${addresses}`);
  assertEquals(await fetchPage(node, "http://127.0.0.1:9090/"), PAGE);
  assertEquals(await fetchPage(node, "http://10.88.0.2/"), PAGE);
  assertEquals(await fetchPage(node, "http://[fd00:88::2]/"), PAGE);
  assertEquals(await node.list("/var/lib/cni/results"), [
    `cni-loopback-${web}-lo`,
    `net-${web}-eth0`,
    `second-${web}-eth1`,
  ]);
  const one = await snapshot(node);

  // The same port again: the pod fails with the reason, and nothing of it stays.
  const refused = await assertRejects(() => cri.run({ name: "late", cgroup, hostPort: 9090 }), CriError);
  assertStringIncludes(refused.message, "9090");
  assertSameState(one, await snapshot(node), { allow: [hostLocalLeftovers] });
  assertEquals(await fetchPage(node, "http://127.0.0.1:9090/"), PAGE);

  // containerd is killed: what it had is served on, and found again.
  await first.kill();
  assertEquals(await fetchPage(node, "http://127.0.0.1:9090/"), PAGE);
  const { cri: again } = await startContainerd(node, cgroup);
  assertEquals(await again.addresses(web), addresses);
  const other = await again.run({ name: "other", cgroup, hostPort: 9091 });
  const sandbox = await sandboxOf(node, other);
  await assertPings(sandbox, "10.88.0.2");
  assertEquals(await fetchPage(sandbox, "http://10.88.0.2/"), PAGE);
  await again.remove(web);
  assert(await refuses(node, "http://127.0.0.1:9090/"));
  assertEquals(await fetchPage(node, "http://127.0.0.1:9091/"), PAGE);

  // The other pod's processes die and its namespace goes, so DEL is called without one.
  await node.sh(
    'kill -9 $(cat /sys/fs/cgroup/pids/"$1"/*/cgroup.procs /sys/fs/cgroup/"$1"/*/cgroup.procs 2>/dev/null)',
    cgroup,
  );
  await node.run("ip", "netns", "del", sandbox.name);
  // A removal asked for while it hears of the death would fail, and the kubelet ask again.
  await eventually("containerd knows of the death", async () => !await again.ready(other));
  await again.remove(other);
  assertEquals(await node.list("/var/lib/cni/results"), []);
  assertSameState(before, await snapshot(node), { allow: firstContainer });
});

runtimeTest("containerd runs pods on a folded list, which is unfolded and folded again while they live", [
  ...needs,
], async ({ node, cgroup }) => {
  const file = "/etc/cni/net.d/10-net.conflist";
  await configure(node, net);
  const list = JSON.parse(await node.read(file) ?? "");
  const chain = await foldFile(node, file);
  const { cri } = await startContainerd(node, cgroup);
  await importWebImage(node);
  const outside = await node.outside();
  const before = await snapshot(node);
  const url = (port: number) => `http://${outside.hostIPv4}:${port}/`;
  const swapped = async (how: "fold" | "unfold") => {
    await foldFile(node, file, how);
    await eventually("containerd has read the list", async () => {
      return (await cri.networks()).includes('"chain"') === (how === "fold");
    });
  };

  const one = await cri.run({ name: "one", cgroup, hostPort: 9090 });
  assertEquals(await cri.addresses(one), ["10.88.0.2", "fd00:88::2"]);
  assertEquals(await fetchPage(outside, url(9090)), PAGE);
  await checkAttachment(node, chain, one);
  // The same port again: the chain fails as a whole.
  const alone = await snapshot(node);
  const refused = await assertRejects(() => cri.run({ name: "late", cgroup, hostPort: 9090 }), CriError);
  assertStringIncludes(refused.message, "9090");
  assertSameState(alone, await snapshot(node), { allow: [hostLocalLeftovers] });

  await swapped("unfold");
  const two = await cri.run({ name: "two", cgroup, hostPort: 9091 });
  for (const port of [9090, 9091]) assertEquals(await fetchPage(outside, url(port)), PAGE);
  await checkAttachment(node, list, one);
  await cri.remove(one);
  assert(await refuses(outside, url(9090)));

  await swapped("fold");
  const three = await cri.run({ name: "three", cgroup, hostPort: 9092 });
  for (const id of [two, three]) await checkAttachment(node, chain, id);
  for (const port of [9091, 9092]) assertEquals(await fetchPage(outside, url(port)), PAGE);
  for (const id of [two, three]) await cri.remove(id);
  assertEquals(await node.list("/var/lib/cni/results"), []);
  assertSameState(before, await snapshot(node), { allow: [...firstContainer, /type=anycast/] });
});

runtimeTest("a container whose namespace is owned by its process is attached by /proc/PID/ns/net, the docker way", [
  ...needs,
], async ({ node, cgroup }) => {
  const { ctr } = await startContainerd(node, cgroup);
  const before = await snapshot(node);
  // No --cni: a namespace with lo alone, and no file below /run/netns.
  await ctr("run", "--detach", "--rootfs", ROOTFS, "bare", "/bin/busybox", "httpd", "-f", "-h", "/www");
  const pid = /^bare\s+(\d+)\s+RUNNING/m.exec(await ctr("task", "ls"))?.[1];
  assert(pid, "ctr tells no PID");
  const inside = new Namespace(node, "bare", `/proc/${pid}/ns/net`);
  const bare = await snapshot(inside);
  const attachment = new Attachment(node, net, inside, {
    containerId: "bare",
    capabilities: { portMappings: [{ hostPort: 9090, containerPort: 80, protocol: "tcp" }] },
  });
  const result = await attachment.add();
  assertEquals(result.interfaces[2].sandbox, `/proc/${pid}/ns/net`);
  await attachment.check();
  assertEquals(await fetchPage(node, "http://127.0.0.1:9090/"), PAGE);
  await attachment.del();
  assertSameState(bare, await snapshot(inside), { allow: ["sysctls"] });
  assertSameState(before, await snapshot(node), { allow: firstContainer });

  // Once more; now the process goes first, and its namespace with it.
  const warm = await snapshot(node);
  await attachment.add();
  await ctr("task", "delete", "--force", "bare");
  await attachment.del();
  await attachment.del("cnibox", { withoutNetns: true });
  assertSameState(warm, await snapshot(node), { allow: [hostLocalLeftovers] });
});

runtimeTest("containerd's containers get addresses that are unique in a cluster, and their blocks go with them", [
  ...needs,
  "tool:etcd",
  "tool:curl",
], async ({ node, cgroup }) => {
  node.spawn(["etcd", "--data-dir", "/run/etcd", "--log-level", "error"]);
  const url = "http://127.0.0.1:2379";
  await eventually(
    "etcd answers",
    async () => (await node.exec(["curl", "-s", "-f", `${url}/health`])).code === 0,
    60_000,
  );
  const [bridge] = net.plugins;
  const ipam = { type: "cluster", node: "one", ranges: [[{ subnet: "10.42.0.0/24" }], [{ subnet: "fd42::/64" }]] };
  const section = { ...ipam, blockSize: { 4: 30, 6: 124 }, store: { etcd: { endpoints: [url] } } };
  await configure(node, { ...net, plugins: [{ ...bridge, ipam: section }] });
  const { ctr, cri } = await startContainerd(node, cgroup);
  await importWebImage(node);

  const said = await ctr("run", "--rm", "--cni", "--rootfs", ROOTFS, "one", "/bin/sh", "-c", "ip -o addr show eth0");
  assertMatch(said, /inet 10\.42\.0\.\d+\/24 /);
  assertMatch(said, /inet6 fd42::\S+\/64 /);
  const pods: string[] = [];
  const addresses: string[] = [];
  for (const name of ["web", "other"]) {
    const pod = await cri.run({ name, cgroup });
    pods.push(pod);
    addresses.push(...await cri.addresses(pod));
  }
  assertEquals([addresses.length, new Set(addresses).size], [4, 4], addresses.join());
  for (const address of addresses) {
    assertEquals(await fetchPage(node, `http://${address.includes(":") ? `[${address}]` : address}/`), PAGE);
  }
  const { json } = await must(node, ["cluster", "find", addresses[0]!, "--json"]);
  assertEquals([json.found[0].node, json.found[0].containerId], ["one", pods[0]]);
  for (const pod of pods) await cri.remove(pod);
  await must(node, ["cluster", "trim"]);
  assertEquals((await must(node, ["cluster", "blocks", "--json"])).json.blocks, []);
  const left = await node.list("/var/lib/cni/networks/net");
  assertEquals(left.filter((name) => /^(10\.|fd42)/.test(name)), []);
});

/** The namespace of a pod, by the file that its result names. */
async function sandboxOf(node: Node, id: string): Promise<Namespace> {
  const cached = JSON.parse(await node.read(`/var/lib/cni/results/net-${id}-eth0`) ?? "{}");
  const path: string = cached.result.interfaces.find((link: Json) => link.name === "eth0").sandbox;
  const name = path.slice(path.lastIndexOf("/") + 1);
  return new Namespace(node, name, `/run/netns/${name}`); // /var/run, as containerd has it, is a link of the machine's own
}
