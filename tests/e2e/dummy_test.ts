/** dummy on a real kernel: addresses that are there at once and lead nowhere, and the common promises. */
import { assertEquals, assertMatch } from "@std/assert";
import { linkPluginTests } from "./support/link_plugin.ts";
import { failure, fixed } from "./support/main_plugin.ts";
import { assertPings, Attachment, call, type Json, type Need, nodeTest, ping } from "./support/mod.ts";

const needs: Need[] = ["dummy"];
const ipam = fixed(["10.1.0.2/24 10.1.0.1", "fd01::2/64 fd01::1"], [{ dst: "0.0.0.0/0" }, { dst: "::/0" }]);
const net = (more: Json = {}): Json => ({ cniVersion: "1.1.0", name: "net1", type: "dummy", ipam, ...more });

linkPluginTests({
  type: "dummy",
  needs,
  keys: {},
  children: [1, 2],
  taken: /^failed to create dummy: file exists$/,
  withoutIpam: /^dummy interface requires an IPAM configuration$/,
  // The reference takes the configuration's dns for nothing at all.
  interop: { dns: undefined },
});

nodeTest(
  "dummy gives addresses that can be used at once, and swallows what is routed into it",
  { needs },
  async ({ node }) => {
    const pod = await node.container("a");
    const one = new Attachment(node, net(), pod);
    await one.add();
    await pod.ip("link set lo up");
    for (const address of ["10.1.0.2", "fd01::2"]) await assertPings(pod, address, { tries: 1 });
    assertEquals(await ping(pod, "10.1.0.77", { tries: 1 }), false);
    assertEquals(await pod.run("ip", "-6", "addr", "show", "dev", "eth0", "tentative"), "");
    const [link] = await pod.ipJson("link", "show", "eth0");
    assertEquals([link.linkinfo.info_kind, link.mtu, link.operstate], ["dummy", 1500, "UNKNOWN"]);
    await one.check();
  },
);

nodeTest("dummy takes /32, /31 and /128 addresses, and CHECK accepts them", { needs }, async ({ node }) => {
  const pod = await node.container("a");
  for (const address of ["10.1.0.2/32", "10.1.0.2/31", "fd01::2/128", "fd01::2/127"]) {
    const one = new Attachment(node, net({ ipam: fixed([address]) }), pod);
    await one.add();
    await one.check();
    await one.del();
  }
});

nodeTest("dummy has no quarrel with a link of the same name on the host", { needs }, async ({ node }) => {
  await node.ip("link add eth0 type dummy");
  const one = new Attachment(node, net(), await node.container("a"));
  await one.add();
  await one.del();
  assertEquals((await node.ipJson("link", "show", "eth0")).length, 1);
});

nodeTest("dummy without IPAM says so before anything else, and DEL still deletes", { needs }, async ({ node }) => {
  const pod = await node.container("a");
  const asked = (command: string, netns: string | typeof pod) =>
    failure(node, { type: "dummy", command, netns, containerId: "a", stdin: net({ ipam: undefined }) });
  for (const command of ["ADD", "CHECK"]) {
    assertEquals((await asked(command, "/run/netns/none")).msg, "dummy interface requires an IPAM configuration");
  }
  assertEquals(
    (await failure(node, { type: "dummy", command: "STATUS", stdin: net({ ipam: undefined }) })).msg,
    "no plugin name provided",
  );
  await new Attachment(node, net(), pod).add();
  assertEquals((await asked("DEL", pod)).msg, "no plugin name provided");
  assertEquals((await pod.ipJson("link")).length, 1);
  assertMatch(
    (await failure(node, { type: "dummy", command: "ADD", netns: pod, stdin: net({ ipam: "x" }) })).msg,
    /^failed to parse network config: json: cannot unmarshal string/,
  );
});

nodeTest(
  "dummy: what the IPAM plugin says about dns counts before the configuration's",
  { needs },
  async ({ node }) => {
    const pod = await node.container("a");
    const own = { nameservers: ["10.1.0.53"] }, other = { nameservers: ["10.1.0.54"] };
    for (const [dns, theirs, expected] of [[own, undefined, own], [own, other, other], [undefined, other, other]]) {
      const result = await call(node, {
        type: "dummy",
        command: "ADD",
        netns: pod,
        stdin: net({ dns, ipam: { ...ipam, dns: theirs } }),
      });
      assertEquals(result.dns, expected);
      await call(node, { type: "dummy", command: "DEL", netns: pod, stdin: net() });
    }
  },
);
