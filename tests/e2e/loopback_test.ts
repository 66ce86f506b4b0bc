/** loopback against the kernel: lo up and down, the result in every version, and what must not be touched. */
import { assertEquals, assertMatch } from "@std/assert";
import {
  assertPings,
  assertSameState,
  Attachment,
  childPrograms,
  interopTest,
  type Namespace,
  nodeTest,
  type PluginCall,
  runPlugin,
  snapshot,
  temporaryFiles,
  tracePlugin,
} from "./support/mod.ts";

const conf = { cniVersion: "1.1.0", name: "lo", type: "loopback" };

const request = (
  command: PluginCall["command"],
  netns: PluginCall["netns"],
  more: Partial<PluginCall> = {},
): PluginCall => ({
  type: "loopback",
  command,
  containerId: "ctr1",
  netns: netns ?? null,
  stdin: conf,
  ...more,
});

async function isUp(container: Namespace): Promise<boolean> {
  return (await container.ipJson("link", "show", "lo"))[0].flags.includes("UP");
}

const modern = (sandbox: string) => ({
  interfaces: [{ name: "lo", mac: "00:00:00:00:00:00", sandbox }],
  ips: [{ interface: 0, address: "127.0.0.1/8" }, { interface: 0, address: "::1/128" }],
});

for (const cniVersion of ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]) {
  nodeTest(`loopback ADD brings lo up and answers in the layout of ${cniVersion}`, async ({ node }) => {
    const container = await node.container();
    const { code, json, stdout } = await runPlugin(node, request("ADD", container, { stdin: { ...conf, cniVersion } }));
    assertEquals(code, 0, stdout);
    const { interfaces, ips } = modern("/run/netns/ctr1");
    const expected = cniVersion < "0.3.0"
      ? { ip4: { ip: "127.0.0.1/8" }, ip6: { ip: "::1/128" }, dns: {} }
      : cniVersion < "1.0.0"
      ? { interfaces, ips: ips.map((ip, at) => ({ version: at === 0 ? "4" : "6", ...ip })), dns: {} }
      : { interfaces, ips };
    const { dns, ...rest } = json;
    assertEquals(cniVersion < "1.0.0" ? json : rest, { cniVersion, ...expected });
    if (cniVersion >= "1.0.0" && dns !== undefined) assertEquals(dns, {});
    assertEquals(await isUp(container), true);
    await assertPings(container, "127.0.0.1");
    await assertPings(container, "::1");
  });
}

nodeTest("loopback ADD and DEL may be repeated, and CHECK tells which of them was last", async ({ node }) => {
  const container = await node.container();
  const check = async () => (await runPlugin(node, request("CHECK", container))).json;
  for (const _ of [1, 2]) assertEquals((await runPlugin(node, request("ADD", container))).code, 0);
  assertEquals(await check(), undefined);
  for (const _ of [1, 2]) assertEquals((await runPlugin(node, request("DEL", container))).code, 0);
  assertMatch((await check()).msg, /loopback interface is down/);
  assertEquals((await runPlugin(node, request("ADD", container))).code, 0);
  assertEquals(await check(), undefined);
});

nodeTest("loopback changes nothing but the container's lo, and DEL leaves no trace", async ({ node }) => {
  const container = await node.container();
  const [host, pod] = [await snapshot(node), await snapshot(container)];
  const net = new Attachment(node, conf, container);
  await net.add();
  assertSameState(host, await snapshot(node));
  assertSameState(pod, await snapshot(container), {
    allow: [{ section: "links", line: /^name=lo / }, /127\.0\.0\.1|127\.0\.0\.0|127\.255\.255\.255|::1\b/],
  });
  await net.del();
  assertSameState(host, await snapshot(node));
  assertEquals(await isUp(container), false);
});

nodeTest("loopback DEL succeeds when the namespace is gone, was never there, or is not named", async ({ node }) => {
  const container = await node.container();
  await runPlugin(node, request("ADD", container));
  await node.removeContainer(container);
  for (const netns of [container, "/run/netns/never", "", null]) {
    const { code, stdout } = await runPlugin(node, request("DEL", netns));
    assertEquals([code, stdout], [0, ""]);
  }
});

nodeTest("loopback takes a namespace by any path", async ({ node }) => {
  const container = await node.container();
  const pid = await node.processIn(container);
  await node.sh('touch "$2"; mount --bind "$1" "$2"', container.netns ?? "", "/run/other file");
  for (const netns of [`/proc/${pid}/ns/net`, "/run/other file"]) {
    const { code, json } = await runPlugin(node, request("ADD", netns));
    assertEquals([code, json.interfaces[0].sandbox], [0, netns]);
    assertEquals(await isUp(container), true);
    assertEquals((await runPlugin(node, request("DEL", netns))).code, 0);
    assertEquals(await isUp(container), false);
  }
});

nodeTest("loopback never touches the host's lo when given the host's namespace", async ({ node }) => {
  const before = await snapshot(node);
  for (const command of ["ADD", "DEL"] as const) {
    const { code, json } = await runPlugin(node, request(command, "/proc/1/ns/net"));
    assertEquals([code, json.code], [1, 8]);
    assertMatch(json.msg, /plugin's netns and netns from CNI_NETNS should not be the same/);
  }
  assertSameState(before, await snapshot(node));
});

nodeTest("loopback ADD leaves IPv6 out of its result where the container has none", async ({ node }) => {
  const container = await node.container();
  await container.sysctl("ipv6/conf/all/disable_ipv6", 1);
  const { json } = await runPlugin(node, request("ADD", container));
  assertEquals(json.ips, [{ interface: 0, address: "127.0.0.1/8" }]);
});

nodeTest("loopback ADD refuses a foreign address on lo and names it", async ({ node }) => {
  for (const address of ["10.9.9.9/32", "2001:db8::1/128"]) {
    const container = await node.container();
    await container.ip(`addr add ${address} dev lo`);
    const { code, json } = await runPlugin(node, request("ADD", container));
    assertEquals([code, json.msg], [
      1,
      `loopback interface found with non-loopback address "${address.split("/")[0]}"`,
    ]);
  }
});

nodeTest("loopback ADD hands a prevResult on unchanged", async ({ node }) => {
  const container = await node.container();
  const prevResult = {
    cniVersion: "1.1.0",
    interfaces: [{ name: "eth0", mac: "02:00:00:00:00:01", sandbox: "/run/netns/ctr1" }],
    ips: [{ interface: 0, address: "10.1.2.3/24", gateway: "10.1.2.1" }],
    dns: { nameservers: ["10.1.2.1"] },
  };
  const { json } = await runPlugin(node, request("ADD", container, { stdin: { ...conf, prevResult } }));
  assertEquals(json, prevResult);
  assertEquals(await isUp(container), true);
});

nodeTest("loopback ADD starts one child process and opens nothing in a temporary folder", {
  needs: ["tool:strace"],
}, async ({ node }) => {
  const trace = await tracePlugin(node, request("ADD", await node.container()));
  assertEquals(trace.output.code, 0, trace.output.stdout);
  assertEquals(temporaryFiles(trace), []);
  // nsenter replaces itself, in the end with ip: one process.
  assertEquals([childPrograms(trace)[0], childPrograms(trace).at(-1)], ["nsenter", "ip"]);
  assertEquals(new Set(trace.execs.slice(1).map(({ pid }) => pid)).size, 1);
});

interopTest("loopback", {}, async ({ adder, checker, deleter }, node) => {
  const container = await node.container();
  const net = new Attachment(node, { ...conf, cniVersion: "1.0.0" }, container);
  assertEquals((await net.add(adder)).interfaces, modern("/run/netns/ctr1").interfaces);
  await net.check(checker);
  await net.del(deleter);
  assertEquals(await isUp(container), false);
});
