/** vrf in a kernel that has it: routes that stay apart, what comes along, and life beside the reference. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import type { Namespace, Node } from "./support/node.ts";
import { call, type Json, PluginFailed } from "./support/plugins.ts";
import { interopTest, nodeTest } from "./support/test.ts";
import { type Need, unmet } from "./support/needs.ts";

const needs: Need[] = ["vrf", "veth"];

function request(pod: Namespace, more: Json = {}, ifName = "net1") {
  const prevResult = {
    cniVersion: "1.1.0",
    interfaces: [{ name: ifName, sandbox: pod.netns }],
    ips: [{ address: "10.0.0.2/24", interface: 0 }, { address: "fd00::2/64", interface: 0 }],
  };
  return {
    type: "vrf",
    netns: pod,
    ifName,
    stdin: { cniVersion: "1.1.0", name: "mynet", vrfname: "blue", prevResult, ...more },
  };
}

/** A container with one interface, both families, and routes of every kind. The other end is a world of its own. */
async function container(node: Node, ...names: string[]): Promise<{ pod: Namespace; worlds: Namespace[] }> {
  const pod = await node.container("ctr1");
  await pod.ip("link set lo up");
  const worlds: Namespace[] = [];
  for (const name of names.length > 0 ? names : ["net1"]) {
    const world = await node.container(`world-${name}`);
    worlds.push(world);
    for (const one of [pod, world]) await one.sysctl("ipv6/conf/default/accept_dad", 0);
    await pod.ip(
      `link add ${name} type veth peer name eth0 netns ${world.netns}`,
      `addr add 10.0.0.2/24 brd + dev ${name}`,
      `addr add fd00::2/64 dev ${name} nodad`,
      `link set ${name} up`,
    );
    await world.ip(
      "link set lo up",
      "addr add 10.0.0.1/24 dev eth0",
      "addr add fd00::1/64 dev eth0 nodad",
      "link set eth0 up",
      `addr add 10.77.0.${worlds.length}/32 dev lo`,
      `addr add fd77::${worlds.length}/128 dev lo nodad`,
    );
  }
  return { pod, worlds };
}

async function routes(pod: Namespace, table: string | number, family = "-4"): Promise<string[]> {
  const { stdout } = await pod.exec(["ip", family, "route", "show", "table", String(table)]);
  return stdout.split("\n").map((line) => line.trim()).filter((line) =>
    line !== "" && !/^(local|broadcast|multicast) /.test(line)
  );
}

nodeTest("vrf keeps the routes of two interfaces apart that have the same address", { needs }, async ({ node }) => {
  const { pod } = await container(node, "net1", "net2");
  for (const [ifName, vrfname] of [["net1", "red"], ["net2", "blue"]] as const) {
    await pod.ip(
      `route add 10.77.0.0/16 via 10.0.0.1 dev ${ifName}`,
      `route append fd77::/64 via fd00::1 dev ${ifName}`,
    );
    await call(node, { command: "ADD", ...request(pod, { vrfname }, ifName) });
  }
  const answers = async (vrf: string, address: string) =>
    (await pod.exec(["ping", "-c", "1", "-W", "1", "-I", vrf, address])).code === 0;
  assertEquals([await answers("red", "10.77.0.1"), await answers("blue", "10.77.0.2")], [true, true]);
  assertEquals([await answers("red", "fd77::1"), await answers("blue", "fd77::2")], [true, true]);
  assertEquals([await answers("red", "10.77.0.2"), await answers("blue", "10.77.0.1")], [false, false]);
  const outside = await pod.exec(["ping", "-c", "1", "-W", "1", "10.77.0.1"]);
  assert(/unreachable/.test(outside.stdout + outside.stderr), `the main table still leads there: ${outside.stdout}`);
  assertEquals(await routes(pod, "main"), []);
});

nodeTest("vrf ADD brings everything along, at once, and DEL frees the interface", { needs }, async ({ node }) => {
  const { pod } = await container(node);
  await pod.ip(
    "addr add 10.0.0.3/24 brd + dev net1",
    "addr add fd00::3/64 dev net1 nodad noprefixroute",
    "addr add fd00::4/64 dev net1 nodad preferred_lft 0",
    "route add 10.66.0.0/16 dev net1 scope link",
    "route add default via 10.0.0.1 metric 50 mtu 1400",
    "route add 10.10.10.0/24 via 10.0.0.1 src 10.0.0.3",
    "route add 10.11.0.0/16 via 10.99.0.1 dev net1 onlink",
    "route add 10.12.0.0/16 nexthop via 10.0.0.1 dev net1 nexthop via 10.0.0.7 dev net1",
    "route add 10.13.0.0/16 via 10.0.0.1 table 77",
    "route add blackhole 10.14.0.0/16",
    "route add fd01::/64 via fd00::1 src fd00::2 metric 7",
    "route add fd02::/64 via fe80::1 dev net1",
  );
  await call(node, { command: "ADD", ...request(pod) });
  assertEquals(await routes(pod, 1), [
    "default via 10.0.0.1 dev net1 metric 50 mtu 1400",
    "10.0.0.0/24 dev net1 proto kernel scope link src 10.0.0.2",
    "10.10.10.0/24 via 10.0.0.1 dev net1 src 10.0.0.3",
    "10.11.0.0/16 via 10.99.0.1 dev net1 onlink",
    "10.12.0.0/16",
    "nexthop via 10.0.0.1 dev net1 weight 1",
    "nexthop via 10.0.0.7 dev net1 weight 1",
    "10.66.0.0/16 dev net1 scope link",
  ]);
  const six = await routes(pod, 1, "-6");
  for (
    const route of [
      "fd01::/64 via fd00::1 dev net1 src fd00::2 metric 7",
      "fd02::/64 via fe80::1 dev net1",
      "fd00::/64 dev net1",
    ]
  ) {
    assert(six.some((line) => line.startsWith(route)), `${route} in:\n${six.join("\n")}`);
  }
  assertEquals(await routes(pod, 77), ["10.13.0.0/16 via 10.0.0.1 dev net1"]);
  assertEquals(await routes(pod, "main"), ["blackhole 10.14.0.0/16"]);
  const [link] = await pod.ipJson("addr", "show", "dev", "net1");
  const global = link.addr_info.filter((one: Json) => one.family === "inet6" && one.scope === "global");
  assertEquals(global.map((one: Json) => one.local).sort(), ["fd00::2", "fd00::3", "fd00::4"]);
  assertEquals(global.filter((one: Json) => one.tentative), []);
  assertEquals(global.filter((one: Json) => one.noprefixroute).map((one: Json) => one.local), ["fd00::3"]);
  assertEquals(global.filter((one: Json) => one.deprecated).map((one: Json) => one.local), ["fd00::4"]);

  await call(node, { command: "CHECK", ...request(pod, { table: 1 }) });
  await call(node, { command: "ADD", ...request(pod) });
  await call(node, { command: "DEL", ...request(pod) });
  assertEquals(await pod.ipJson("link", "show", "type", "vrf"), []);
  assertEquals((await pod.ipJson("link", "show", "dev", "net1"))[0].master, undefined);
  await call(node, { command: "DEL", ...request(pod) });
});

nodeTest("vrf ADD that fails leaves everything as it was, and says the same again", { needs }, async ({ node }) => {
  const { pod } = await container(node);
  await pod.ip(
    "route add default via 10.0.0.1 metric 50",
    "route add fd01::/64 via fd00::1",
    "link add br0 type bridge",
  );
  const state = async () => [
    (await pod.ipJson("link", "show")).map((one) => [one.ifname, one.master]),
    (await routes(pod, "all")).sort(),
    (await routes(pod, "all", "-6")).sort(),
    (await pod.ipJson("addr", "show", "dev", "net1"))[0].addr_info.map((one: Json) => one.local).sort(),
  ];
  const before = await state();
  const refused: [more: Json, msg: RegExp][] = [
    [{ vrfname: "br0" }, /^cmdAdd failed: Netlink br0 is not a VRF$/],
    [
      { vrfname: "a234567890123456" },
      /^cmdAdd failed: could not add VRF a234567890123456: numerical result out of range$/,
    ],
  ];
  for (const [more, msg] of refused) {
    for (let time = 0; time < 2; time++) {
      const failed = await assertRejects(() => call(node, { command: "ADD", ...request(pod, more) }), PluginFailed);
      assert(msg.test(failed.error.msg), failed.error.msg);
      assertEquals(await state(), before);
    }
  }
  await pod.ip("link set net1 master br0");
  const failed = await assertRejects(() => call(node, { command: "ADD", ...request(pod) }), PluginFailed);
  assertEquals(failed.error.msg, "cmdAdd failed: interface net1 has already a master set: br0");
  await call(node, { command: "DEL", ...request(pod) });
  assertEquals((await pod.ipJson("link", "show", "dev", "net1"))[0].master, "br0");
  assertEquals(await pod.ipJson("link", "show", "type", "vrf"), []);
});

nodeTest("vrf ADD that fails after the move brings the interface back with all it had", { needs }, async ({ node }) => {
  const { pod } = await container(node);
  await pod.ip(
    "route add default via 10.0.0.1 metric 50",
    "route add 10.66.0.0/16 dev net1 scope link",
    "route add fd01::/64 via fd00::1",
  );
  const state = async () => [
    (await pod.ipJson("link", "show")).map((one) => [one.ifname, one.master]),
    (await routes(pod, "all")).sort(),
    (await routes(pod, "main", "-6")).sort(),
    (await pod.ipJson("addr", "show", "dev", "net1"))[0].addr_info.map((one: Json) => one.local).sort(),
  ];
  const before = await state();
  // An address as from a router's announcement does not come along, and so the route that names it is refused.
  await pod.ip(
    "addr add fd00::9/64 dev net1 nodad mngtmpaddr valid_lft 1000 preferred_lft 1000",
    "route add fd09::/64 via fd00::1 src fd00::9",
  );
  const failed = await assertRejects(() => call(node, { command: "ADD", ...request(pod) }), PluginFailed);
  assert(
    /^cmdAdd failed: could not add route 'fd09::\/64 .*': invalid source address/i.test(failed.error.msg),
    failed.error.msg,
  );
  assertEquals(await state(), before);
});

nodeTest(
  "vrf DEL keeps a VRF with other members, and needs no interface and no namespace",
  { needs },
  async ({ node }) => {
    const { pod } = await container(node, "net1", "net2");
    await call(node, { command: "ADD", ...request(pod, { table: 500 }) });
    await call(node, { command: "ADD", ...request(pod, {}, "net2") });
    const table = async () =>
      (await pod.ipJson("link", "show", "type", "vrf")).map((one) => one.linkinfo.info_data.table);
    assertEquals(await table(), [500]);
    const other = await assertRejects(
      () => call(node, { command: "CHECK", ...request(pod, { table: 501 }) }),
      PluginFailed,
    );
    assertEquals(other.error.msg, "VRF blue already exist with different routing table 500");
    await call(node, { command: "DEL", ...request(pod) });
    assertEquals(await table(), [500]);
    await pod.ip("link del net2");
    await call(node, { command: "DEL", ...request(pod, {}, "net2") });
    assertEquals(await table(), []);
    await node.removeContainer(pod);
    await call(node, { command: "DEL", ...request(pod) });
  },
);

interopTest("vrf", { needs }, async ({ adder, checker, deleter }, node) => {
  const { pod } = await container(node);
  await pod.ip("route add default via 10.0.0.1 metric 50");
  await call(node, { command: "ADD", by: adder, ...request(pod) });
  assertEquals(await routes(pod, 1), [
    "default via 10.0.0.1 dev net1 metric 50",
    "10.0.0.0/24 dev net1 proto kernel scope link src 10.0.0.2",
  ]);
  await call(node, { command: "CHECK", by: checker, ...request(pod) });
  await call(node, { command: "DEL", by: deleter, ...request(pod) });
  assertEquals(await pod.ipJson("link", "show", "type", "vrf"), []);
});

if (unmet(["vrf"]).length > 0) {
  nodeTest("vrf says that the kernel has none, and leaves nothing", { needs: ["veth"] }, async ({ node }) => {
    const { pod } = await container(node);
    const before = await routes(pod, "all");
    const failed = await assertRejects(() => call(node, { command: "ADD", ...request(pod) }), PluginFailed);
    assertEquals(failed.error.msg, "cmdAdd failed: could not add VRF blue: operation not supported");
    assertEquals(await routes(pod, "all"), before);
    await call(node, { command: "DEL", ...request(pod) });
  });
}
