/**
 * podman on its CNI backend with cnibox as its plugins: networks as podman writes them, published ports, and what
 * removal leaves.
 */
import { assert, assertEquals, assertMatch, assertNotEquals, assertStringIncludes } from "@std/assert";
import { assertPings, assertSameState, hostLocalLeftovers, type Json, snapshot } from "./support/mod.ts";
import { must } from "./support/operator.ts";
import {
  checkAttachment,
  fetchPage,
  firstContainer,
  foldFile,
  Podman,
  refuses,
  runtimeTest,
} from "./support/runtimes.ts";

const needs = ["tool:podman", "tool:conmon"] as const;

const PAGE = "hello from a container";

runtimeTest("podman's networks are taken as podman writes them; ports are published; removal leaves nothing", [
  ...needs,
], async ({ node, cgroup }) => {
  const podman = new Podman(node, cgroup);
  await podman.configure();
  const before = await snapshot(node);
  await podman.run("network", "create", "one");
  await podman.run(
    ...["network", "create", "--subnet", "10.77.0.0/24", "--gateway", "10.77.0.9", "--ip-range", "10.77.0.128/25"],
    ...["--ipv6", "--subnet", "fd00:77::/64", "--opt", "mtu=1400", "two"],
  );
  // What this version of podman writes is what the page in docs/runtimes/podman.md speaks of.
  const written: Json = JSON.parse(await node.read("/etc/cni/net.d/one.conflist") ?? "");
  assertEquals(written.cniVersion, "0.4.0");
  assertEquals(written.plugins.map((plugin: Json) => plugin.type), ["bridge", "portmap", "firewall", "tuning"]);
  await podman.run("network", "create", "--label", "team=shop", "--opt", "mtu=1400", "labelled");
  for (const name of ["one", "two", "labelled"]) await must(node, ["validate", `/etc/cni/net.d/${name}.conflist`]);
  await podman.run("network", "rm", "labelled");

  await podman.serve("web", "--network", "one", "--publish", "127.0.0.1:9090:80");
  assertEquals(await fetchPage(node, "http://127.0.0.1:9090/"), PAGE);
  await podman.serve(
    "both",
    "--network",
    "one:ip=10.89.0.50,mac=02:00:5e:00:00:50",
    "--network",
    "two",
    "-p",
    "9091:80",
  );
  for (const url of ["http://127.0.0.1:9091/", "http://10.89.0.50/", "http://[fd00:77::2]/"]) {
    assertEquals(await fetchPage(node, url), PAGE);
  }
  const networks: Json = JSON.parse(
    await podman.run("inspect", "--format", "{{json .NetworkSettings.Networks}}", "both"),
  );
  assertEquals([networks.one.IPAddress, networks.one.MacAddress], ["10.89.0.50", "02:00:5e:00:00:50"]);
  assertEquals([networks.two.IPAddress, networks.two.Gateway], ["10.77.0.129", "10.77.0.9"]);
  assertEquals([networks.two.GlobalIPv6Address, networks.two.IPv6Gateway], ["fd00:77::2", "fd00:77::1"]);
  const web = await podman.namespace("web");
  await assertPings(web, "10.89.0.50");
  assertEquals(await fetchPage(web, "http://10.89.0.50/"), PAGE);
  // Which network gets which name is podman's choice, and not always the same.
  const links = await (await podman.namespace("both")).ipJson("addr", "show");
  const second = links.find(({ addr_info }) => addr_info.some(({ local }: Json) => local === "10.77.0.129"));
  assertEquals(second?.mtu, 1400);

  // podman's names are in the cache.
  const shown = await must(node, ["show", "one", "--json"]);
  assertEquals(shown.json.networks[0].attachments.map(({ pod, state }: Json) => [pod, state]), [
    ["both", "ok"],
    ["web", "ok"],
  ]);
  assertEquals((await must(node, ["show", "web", "--json"])).json.attachments[0].pod, "web");
  await must(node, ["check", "one", "--id", "web"]);

  // Networks of a running container; the same container started again.
  await podman.run("network", "connect", "two", "web");
  await assertPings(web, "10.77.0.129");
  await podman.run("network", "disconnect", "two", "web");
  assertEquals((await web.ipJson("link")).map(({ ifname }) => ifname), ["lo", "eth0"]);
  await podman.run("restart", "--time", "0", "web");
  assertEquals(await fetchPage(node, "http://127.0.0.1:9090/"), PAGE);

  // A port that is taken: the reason is in podman's own error, and nothing stays.
  const held = await snapshot(node);
  const refused = await podman.exec(
    ...["run", "--name", "late", "--cgroup-parent", `/${cgroup}`, "--network", "two", "-p", "127.0.0.1:9090:80"],
    ...["--rootfs", "/var/rootfs", "/bin/busybox", "true"],
  );
  assertNotEquals(refused.code, 0);
  assertStringIncludes(refused.stderr, "9090");
  await podman.run("rm", "--force", "--time", "0", "late");
  assertSameState(held, await snapshot(node), { allow: [hostLocalLeftovers] });

  await podman.run("rm", "--force", "--time", "0", "web", "both");
  assert(await refuses(node, "http://127.0.0.1:9090/"));
  assertEquals(await node.list("/var/lib/cni/results"), []);
  await podman.run("network", "rm", "one", "two");
  assertSameState(before, await snapshot(node), { allow: firstContainer });
});

runtimeTest("podman runs containers on a folded list, which is unfolded and folded again while they live", [
  ...needs,
], async ({ node, cgroup }) => {
  const podman = new Podman(node, cgroup);
  await podman.configure();
  const outside = await node.outside();
  const before = await snapshot(node);
  const url = (port: number) => `http://${outside.hostIPv4}:${port}/`;
  await podman.run("network", "create", "--ipv6", "one");
  const file = "/etc/cni/net.d/one.conflist";
  const list = JSON.parse(await node.read(file) ?? "");
  const chain = await foldFile(node, file);
  assertEquals(chain.plugins.map((plugin: Json) => plugin.type), ["chain"]);

  const one = await podman.serve("one", "--network", "one", "--publish", "9090:80");
  assertEquals(await fetchPage(outside, url(9090)), PAGE);
  await checkAttachment(node, chain, one);
  assertEquals(await foldFile(node, file, "unfold"), list);
  const two = await podman.serve("two", "--network", "one", "--publish", "9091:80");
  for (const id of [one, two]) await checkAttachment(node, list, id);
  await podman.run("rm", "--force", "--time", "0", "one");
  assert(await refuses(outside, url(9090)));
  assertEquals(await foldFile(node, file), chain);
  const three = await podman.serve("three", "--network", "one", "--publish", "9092:80");
  for (const id of [two, three]) await checkAttachment(node, chain, id);
  for (const port of [9091, 9092]) assertEquals(await fetchPage(outside, url(port)), PAGE);
  // Monitor and container die at once.
  const pids = await podman.run("inspect", "--format", "{{.State.ConmonPid}} {{.State.Pid}}", "three");
  await node.run("kill", "-9", ...pids.split(" "));
  await podman.run("rm", "--force", "--time", "0", "two", "three");
  assertEquals(await node.list("/var/lib/cni/results"), []);
  await podman.run("network", "rm", "one");
  assertSameState(before, await snapshot(node), { allow: [...firstContainer, /type=anycast/] });
});

runtimeTest("podman's macvlan and internal networks give addresses and nothing else", [...needs, "macvlan"], async (
  { node, cgroup },
) => {
  const podman = new Podman(node, cgroup);
  await podman.configure();
  const world = await node.outside();
  await podman.run(
    "network",
    "create",
    "--driver",
    "macvlan",
    "--opt",
    "parent=uplink",
    "--subnet",
    "192.0.2.0/24",
    "lan",
  );
  await podman.run("network", "create", "--internal", "--subnet", "10.78.0.0/24", "inner");
  const before = await snapshot(node);
  await podman.serve("web", "--network", "lan:ip=192.0.2.20", "--network", "inner");
  assertEquals(await fetchPage(world, "http://192.0.2.20/"), PAGE);
  const inside = await podman.namespace("web");
  const routes = await inside.run("ip", "route");
  assertMatch(routes, /^10\.78\.0\.0\/24 dev eth\d .*src 10\.78\.0\.2/m);
  assert(!/via 10\.78/.test(routes), routes);
  await podman.run("rm", "--force", "--time", "0", "web");
  assertSameState(before, await snapshot(node), { allow: firstContainer });
});

runtimeTest("a container of podman's whose processes were killed, or its namespace too, leaves nothing", [
  ...needs,
], async ({ node, cgroup }) => {
  const podman = new Podman(node, cgroup);
  await podman.configure();
  await podman.run("network", "create", "one");
  const before = await snapshot(node);
  /** Monitor and container at once, so that nobody is left who would clean up. */
  const kill = async (name: string) => {
    const pids = await podman.run("inspect", "--format", "{{.State.ConmonPid}} {{.State.Pid}}", name);
    await node.run("kill", "-9", ...pids.split(" "));
  };

  await podman.serve("web", "--network", "one", "--publish", "9090:80");
  assertEquals(await fetchPage(node, "http://127.0.0.1:9090/"), PAGE);
  await kill("web");
  await podman.run("rm", "--force", "--time", "0", "web");
  assertEquals(await node.list("/var/lib/cni/results"), []);
  const warm = await snapshot(node);
  assertSameState(before, warm, { allow: firstContainer });

  // As after a crash of the node. podman asks for no DEL when the namespace is gone: the operator does.
  const id = await podman.serve("web", "--network", "one", "--publish", "9090:80");
  const { netns = "" } = await podman.namespace("web");
  await kill("web");
  await node.sh('umount -l "$1"; rm "$1"', netns);
  await podman.run("rm", "--force", "--time", "0", "web");
  await must(node, ["del", "one", "--id", id]);
  assertEquals(await node.list("/var/lib/cni/results"), []);
  assertSameState(warm, await snapshot(node), { allow: [hostLocalLeftovers] });
});
