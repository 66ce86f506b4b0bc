/** ipvlan on a real kernel: switched and routed, chained, modes that belong to the master, and the common promises. */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { linkPluginTests } from "./support/link_plugin.ts";
import { failure, fixed, single } from "./support/main_plugin.ts";
import {
  assertNoPing,
  assertPings,
  assertSameState,
  Attachment,
  call,
  eventually,
  type Json,
  type Need,
  nodeTest,
  type PluginCall,
  runPlugin,
  snapshot,
} from "./support/mod.ts";

const needs: Need[] = ["ipvlan", "veth"];

linkPluginTests({
  type: "ipvlan",
  needs,
  keys: { master: "uplink" },
  prepare: (node) => node.outside(),
  children: [2, 4],
  taken: /^failed to rename ipvlan to "taken": file exists$/,
  withoutIpam: /^no plugin name provided$/,
});

const net = (more: Json = {}): Json => ({
  cniVersion: "1.1.0",
  name: "net1",
  type: "ipvlan",
  master: "uplink",
  ...more,
});
const asked = (
  command: string,
  netns: PluginCall["netns"],
  more: Json,
  rest: Partial<PluginCall> = {},
): PluginCall => ({
  type: "ipvlan",
  command,
  netns: netns ?? null,
  stdin: net(more),
  ...rest,
});

for (const mode of ["l2", "l3", "l3s", undefined]) {
  nodeTest(
    `ipvlan in mode ${mode ?? "(absent)"}: containers reach each other and the outside`,
    { needs },
    async ({ node }) => {
      const outside = await node.outside();
      // Routed: each container has a subnet that the outside finds behind the host.
      const routed = mode?.startsWith("l3");
      const subnets = routed ? ["10.71.0", "10.72.0"] : ["192.0.2", "192.0.2"];
      if (routed) await outside.ip(...subnets.map((subnet) => `route add ${subnet}.0/24 via ${outside.hostIPv4}`));
      const pods = [await node.container("a"), await node.container("b")];
      const addresses = subnets.map((subnet, at) => `${subnet}.${11 + at}`);
      for (const [at, pod] of pods.entries()) {
        const routes = routed ? [{ dst: "0.0.0.0/0", scope: 253 }] : [{ dst: "0.0.0.0/0", gw: outside.ipv4 }];
        const one = new Attachment(node, net({ mode, ipam: fixed([`${addresses[at]}/24`], routes) }), pod);
        const { interfaces: [{ mac }] } = await one.add();
        assertEquals(mac, (await node.ipJson("link", "show", "uplink"))[0].address);
        assertMatch(
          await pod.run("ip", "-d", "link", "show", "eth0"),
          new RegExp(`ipvlan +mode ${mode ?? "l2"} bridge`),
        );
        await one.check();
      }
      const [a, b] = pods;
      if (!a || !b) throw new Error("no pods");
      await assertPings(a, addresses[1] ?? "");
      await assertPings(b, addresses[0] ?? "");
      await assertPings(a, outside.ipv4);
      await assertPings(outside, addresses[1] ?? "");
    },
  );
}

nodeTest("ipvlan gives an address once on a master", { needs }, async ({ node }) => {
  await node.outside();
  const ipam = fixed(["192.0.2.11/24"]);
  await new Attachment(node, net({ ipam }), await node.container("a")).add();
  const b = await node.container("b");
  const error = await failure(node, asked("ADD", b, { ipam }));
  assertEquals(error.msg, 'failed to add IP addr 192.0.2.11/24 to "eth0": address already in use');
  assertMatch(error.details ?? "", /another ipvlan link of uplink has this address/);
  assertEquals((await b.ipJson("link")).length, 1);
});

nodeTest(
  "ipvlan tells when it changes the mode of other links of the master, and CHECK of those notices",
  { needs },
  async ({ node }) => {
    await node.outside();
    const a = await node.container("a");
    const first = new Attachment(node, net({ ipam: fixed(["192.0.2.11/24"]) }), a);
    await first.add();
    await node.ip("link add link uplink name seen type ipvlan mode l2");
    const { code, stderr } = await runPlugin(
      node,
      asked("ADD", await node.container("b"), { mode: "l3", ipam: fixed(["192.0.2.12/24"]) }),
    );
    assertEquals(code, 0);
    assertMatch(stderr, /mode l3 changes that of seen \(l2\): all ipvlan links of uplink have one mode/);
    const error = await failure(node, {
      type: "ipvlan",
      command: "CHECK",
      netns: a,
      stdin: first.request(net({ ipam: fixed(["192.0.2.11/24"]) }), first.result),
    });
    assertEquals(error.msg, "Container IPVlan mode l3 does not match expected value: l2");
  },
);

const previous = (
  interfaces: Json[],
  ips: Json[] = [{ address: "10.7.0.2/24", gateway: "10.7.0.1" }],
  cniVersion = "1.1.0",
): Json => ({
  prevResult: { cniVersion, interfaces, ips, routes: [{ dst: "10.9.0.0/16" }] },
  master: undefined,
});

nodeTest(
  "ipvlan chained: the one interface of prevResult is the master, its addresses and routes are taken",
  { needs },
  async ({ node }) => {
    await node.outside();
    const pod = await node.container("a");
    const result = await call(node, asked("ADD", pod, previous([{ name: "uplink" }])));
    assertEquals(result.ips, [{ address: "10.7.0.2/24", gateway: "10.7.0.1", interface: 0 }]);
    assertEquals(result.interfaces.map(({ name }: Json) => name), ["eth0"]);
    assertStringIncludes(await pod.run("ip", "route"), "10.9.0.0/16 via 10.7.0.1 dev eth0");
    const check = await runPlugin(node, asked("CHECK", pod, { master: undefined, prevResult: result }));
    assertEquals(check.stdout, "");
    // A runtime hands over the final result of the whole chain, or none that can be read.
    for (
      const prevResult of [
        { ...result, interfaces: [...result.interfaces, { name: "x" }] },
        { cniVersion: "0.3.1" },
        undefined,
      ]
    ) {
      await call(node, asked("DEL", pod, { master: undefined, prevResult }));
      assertEquals((await pod.ipJson("link")).length, 1);
      await call(node, asked("ADD", pod, previous([{ name: "uplink" }])));
    }
  },
);

nodeTest("ipvlan chained: what prevResult has to be, and what wins over it", { needs }, async ({ node }) => {
  await node.outside();
  const pod = await node.container("a");
  const two = [{ name: "uplink" }, { name: "x" }];
  const cases: [Json, RegExp][] = [
    [previous(two), /^chained master failure\. PrevResult lacks a single named interface$/],
    [previous([{ name: "" }]), /^chained master failure/],
    [previous([]), /^chained master failure/],
    [previous([{ name: "uplink" }], []), /^no plugin name provided$/],
    [previous([{ name: "gone" }]), /^failed to lookup master "gone": Link not found$/],
    [
      previous([{ name: "uplink" }], undefined, "0.3.1"),
      /could not parse prevResult: result type supports \[1\.0\.0 1\.1\.0\] but unmarshalled CNIVersion is "0\.3\.1"/,
    ],
  ];
  for (const [more, msg] of cases) assertMatch((await failure(node, asked("ADD", pod, more))).msg, msg);
  const ways: [Json, string][] = [
    [{ ...previous(two), master: "uplink" }, "10.7.0.2/24"],
    [{ ...previous([{ name: "uplink" }]), ipam: fixed(["192.0.2.11/24"]) }, "192.0.2.11/24"],
  ];
  for (const [more, address] of ways) {
    const result = await call(node, asked("ADD", pod, more));
    assertEquals(result.ips.map((ip: Json) => ip.address), [address]);
    await call(node, asked("DEL", pod, more));
  }
});

nodeTest("ipvlan on the default route's link; without one, ADD says so and DEL works", { needs }, async ({ node }) => {
  const pod = await node.container("a");
  assertEquals(
    (await failure(node, asked("ADD", pod, { master: undefined, ipam: single }))).msg,
    "no default route interface found",
  );
  await call(node, asked("DEL", pod, { master: undefined, ipam: single }));
  await node.outside();
  const one = new Attachment(node, net({ master: undefined, ipam: single }), pod);
  await one.add();
  await one.check();
  await node.ip("route del default");
  await one.check();
  await one.del();
});

nodeTest(
  "ipvlan on a master in the container, and its failures told",
  { needs: [...needs, "macvlan", "bridge"] },
  async ({ node }) => {
    const pod = await node.container("a");
    await pod.ip(
      "link add inner type veth peer name innerx",
      "link set inner up",
      "link set innerx up",
      "addr add 10.0.0.1/24 dev inner",
      "route add default via 10.0.0.9",
    );
    for (const master of ["inner", undefined]) {
      const one = new Attachment(node, net({ master, linkInContainer: true, ipam: fixed(["192.0.2.11/24"]) }), pod);
      await one.add();
      assertEquals((await pod.ipJson("link", "show", "eth0"))[0].link, "inner");
      await one.check();
      await one.del();
    }
    // The master lets go of its last ipvlan link in the background.
    await eventually(
      "inner is free for a macvlan",
      async () => (await pod.exec(["ip", "link", "add", "link", "inner", "name", "mv", "type", "macvlan"])).code === 0,
    );
    const busy = await failure(node, asked("ADD", pod, { master: "inner", linkInContainer: true, ipam: single }));
    assertEquals(busy.msg, "failed to create ipvlan: device or resource busy");
    assertMatch(busy.details ?? "", /inner already carries macvlan mv/);
    await node.ip("link add br0 type bridge", "link add port type veth peer name portx", "link set port master br0");
    const before = await snapshot(node);
    const cases: [Json, string, RegExp][] = [
      [{ master: "port" }, "failed to create ipvlan: device or resource busy", /port is a port of br0/],
      [{ master: "lo" }, "failed to create ipvlan: invalid argument", /lo is loopback/],
      [{ master: "port", mode: "L2" }, 'unknown ipvlan mode: "L2"', /l2, l3, l3s/],
      [{ master: "port", mtu: -1 }, "invalid MTU -1, must be [0, master MTU(1500)]", /./],
    ];
    for (const [more, msg, details] of cases) {
      const error = await failure(node, asked("ADD", pod, { ipam: fixed(["10.1.0.2/24"]), ...more }));
      assertEquals(error.msg, msg);
      assertMatch(error.details ?? "", details);
    }
    assertSameState(before, await snapshot(node));
  },
);

nodeTest("ipvlan does not connect container and master, by design", { needs }, async ({ node }) => {
  const outside = await node.outside();
  const pod = await node.container("a");
  await new Attachment(node, net({ ipam: fixed(["192.0.2.11/24"]) }), pod).add();
  await assertPings(pod, outside.ipv4);
  await assertNoPing(pod, outside.hostIPv4);
});
