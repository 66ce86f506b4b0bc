/** vlan on a real kernel: tags on the wire, IDs that are taken, masters that go, and the common promises. */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { linkPluginTests } from "./support/link_plugin.ts";
import { failure, fixed, single } from "./support/main_plugin.ts";
import {
  assertNoPing,
  assertPings,
  assertSameState,
  Attachment,
  call,
  type Json,
  type Need,
  nodeTest,
  type PluginCall,
  runPlugin,
  snapshot,
} from "./support/mod.ts";

const needs: Need[] = ["vlan", "veth"];

linkPluginTests({
  type: "vlan",
  needs,
  keys: { master: "uplink", vlanId: 100 },
  prepare: (node) => node.outside(),
  children: [2, 4],
  taken: /^failed to rename vlan to "taken": file exists$/,
  withoutIpam: /^failed to execute IPAM delegate: no plugin name provided/,
  // Announcements, which the reference leaves out for this plugin.
  better: [/conf\/eth0\/(arp|ndisc)_notify/],
});

const net = (more: Json = {}): Json => ({
  cniVersion: "1.1.0",
  name: "net1",
  type: "vlan",
  master: "uplink",
  vlanId: 100,
  ...more,
});
const asked = (
  command: string,
  netns: PluginCall["netns"],
  more: Json,
  rest: Partial<PluginCall> = {},
): PluginCall => ({
  type: "vlan",
  command,
  netns: netns ?? null,
  stdin: net(more),
  ...rest,
});

nodeTest("vlan frames carry their tag on the master, and reach the same VLAN only", {
  needs: [...needs, "tool:tcpdump"],
}, async ({ node }) => {
  const outside = await node.outside();
  await outside.ip(
    "link add link eth0 name eth0.100 type vlan id 100",
    "addr add 10.100.0.1/24 dev eth0.100",
    "link set eth0.100 up",
  );
  const sniffer = node.spawn(["tcpdump", "-l", "-n", "-e", "-i", "uplink", "vlan"]);
  await sniffer.until(/listening on uplink/);
  const [a, b] = [await node.container("a"), await node.container("b")];
  const one = new Attachment(node, net({ ipam: fixed(["10.100.0.2/24 10.100.0.1"]) }), a);
  const { interfaces: [{ mac }] } = await one.add();
  await assertPings(a, "10.100.0.1");
  await sniffer.until(
    new RegExp(`${mac} > .*ethertype 802\\.1Q.*vlan 100,.*10\\.100\\.0\\.2 > 10\\.100\\.0\\.1: ICMP echo request`),
  );
  await sniffer.close();
  // The same subnet in another VLAN: nobody there.
  await new Attachment(node, net({ vlanId: 200, ipam: fixed(["10.100.0.3/24 10.100.0.1"]) }), b).add();
  await assertNoPing(b, "10.100.0.1");
  await assertNoPing(b, "10.100.0.2");
  const [link] = await a.ipJson("link", "show", "eth0");
  assertEquals([link.linkinfo.info_data.id, link.linkinfo.info_data.protocol], [100, "802.1Q"]);
  assertEquals(mac, (await node.ipJson("link", "show", "uplink"))[0].address);
  await one.check();
});

nodeTest("vlan announces its address: a neighbour of the VLAN forgets the old owner", { needs }, async ({ node }) => {
  const outside = await node.outside();
  await outside.ip(
    "link add link eth0 name eth0.100 type vlan id 100",
    "addr add 10.100.0.1/24 dev eth0.100",
    "link set eth0.100 up",
    "neigh add 10.100.0.2 lladdr 02:00:00:00:00:99 dev eth0.100 nud stale",
  );
  const { interfaces: [{ mac }] } = await new Attachment(
    node,
    net({ ipam: fixed(["10.100.0.2/24"]) }),
    await node.container("a"),
  ).add();
  assertEquals((await outside.ipJson("neigh", "show", "10.100.0.2"))[0].lladdr, mac);
});

nodeTest("vlan takes IDs 0 to 4094, each once on a master", { needs }, async ({ node }) => {
  await node.outside();
  await node.ip("link add m0 type veth peer name m1", "link set m0 up", "link set m1 up");
  const pod = await node.container("a");
  for (const [given, actual] of [[0, 0], [1, 1], [4094, 4094], [undefined, 0]]) {
    const one = new Attachment(node, net({ vlanId: given, ipam: single }), pod);
    await one.add();
    assertEquals((await pod.ipJson("link", "show", "eth0"))[0].linkinfo.info_data.id, actual);
    await one.check();
    await one.del();
  }
  const { stderr } = await runPlugin(node, asked("ADD", pod, { vlanId: undefined, ipam: { type: "nope" } }));
  assertMatch(stderr, /"vlanId" is missing/);
  for (const vlanId of [4095, -1]) {
    const error = await failure(node, asked("ADD", pod, { vlanId, ipam: single }));
    assertEquals(error.msg, `invalid VLAN ID ${vlanId} (must be between 0 and 4095 inclusive)`);
  }
  const first = new Attachment(node, net({ ipam: single }), pod);
  await first.add();
  const b = await node.container("b");
  const error = await failure(node, asked("ADD", b, { ipam: single }));
  assertEquals(error.msg, "failed to create vlan: file exists");
  assertMatch(error.details ?? "", /already has a VLAN link with this vlanId/);
  await new Attachment(node, net({ master: "m0", ipam: single }), b).add();
});

nodeTest("vlan: the ID is free for the next try after every failed ADD", { needs }, async ({ node }) => {
  await node.outside();
  const pod = await node.container("a");
  await pod.ip("link add taken type veth peer name taken1");
  const before = await snapshot(pod);
  await failure(node, asked("ADD", pod, { ipam: single }, { ifName: "taken" }));
  await failure(node, asked("ADD", pod, { ipam: { type: "nope" } }));
  await failure(node, asked("ADD", pod, { ipam: fixed(["10.1.0.2/24"], [{ dst: "10.9.0.0/16", gw: "10.8.0.1" }]) }));
  assertSameState(before, await snapshot(pod));
  await new Attachment(node, net({ ipam: single }), pod).add();
});

nodeTest("vlan says what is wrong with master and MTU", { needs }, async ({ node }) => {
  await node.outside();
  await node.ip("link add low type veth peer name low1", "link set low mtu 1200");
  const pod = await node.container("a");
  const cases: [Json, string, RegExp][] = [
    [
      { master: undefined },
      '"master" field is required. It specifies the host interface name to create the VLAN for',
      /master/,
    ],
    [{ master: "uplnik" }, 'failed to lookup master "uplnik": Link not found', /on the host; similar: uplink/],
    [{ mtu: 1501 }, "invalid MTU 1501, must be [0, master MTU(1500)]", /./],
    [{ mtu: -100 }, "invalid MTU -100, must be [0, master MTU(1500)]", /./],
    [
      { vlanId: "100" },
      "failed to load netconf: json: cannot unmarshal string into Go struct field NetConf.vlanId of type int",
      /./,
    ],
    [
      { master: "low", ipam: fixed(["10.1.0.2/24"]) },
      'failed to set "eth0" UP: network is down',
      /the master is down: ip link set dev low up/,
    ],
  ];
  for (const [more, msg, details] of cases) {
    const error = await failure(node, asked("ADD", pod, { ipam: single, ...more }));
    assertEquals(error.msg, msg);
    assertMatch(error.details ?? "", details);
  }
  await node.ip("link set low up", "link set low1 up");
  for (const [mtu, actual] of [[0, 1200], [1100, 1100], [1200, 1200]]) {
    const one = new Attachment(node, net({ master: "low", mtu, ipam: single }), pod);
    await one.add();
    assertEquals((await pod.ipJson("link", "show", "eth0"))[0].mtu, actual);
    await one.check();
    await one.del();
  }
});

nodeTest("vlan DEL needs neither master nor a valid configuration", { needs }, async ({ node }) => {
  await node.ip("link add m0 type veth peer name m1", "link set m0 up", "link set m1 up");
  const pod = await node.container("a");
  const leases = async () => (await node.list("/var/lib/cni/networks/net1")).filter((name) => name.startsWith("10."));
  for (
    const more of [{ vlanId: 4095 }, { mtu: 9999 }, { master: undefined }, { linkInContainer: true }, { vlanId: "x" }]
  ) {
    await new Attachment(node, net({ master: "m0", ipam: single }), pod).add();
    await call(node, asked("DEL", pod, { ipam: single, ...more }));
    assertEquals([(await pod.ipJson("link")).length, await leases()], [1, []]);
  }
  const one = new Attachment(node, net({ master: "m0", ipam: single }), pod);
  await one.add();
  await node.ip("link del m0");
  await one.del();
  await one.del();
  assertEquals([(await pod.ipJson("link")).length, await leases()], [1, []]);
});

nodeTest("vlan on a master in the container", { needs }, async ({ node }) => {
  const pod = await node.container("a");
  await pod.ip(
    "link add inner type veth peer name innerx",
    "link set inner up",
    "link set innerx up",
    "link add other type veth peer name otherx",
  );
  const one = new Attachment(node, net({ master: "inner", linkInContainer: true, ipam: fixed(["10.1.0.2/24"]) }), pod);
  await one.add();
  assertEquals((await pod.ipJson("link", "show", "eth0"))[0].link, "inner");
  await one.check();
  const wrong = one.request(net({ master: "other", linkInContainer: true, ipam: fixed(["10.1.0.2/24"]) }), one.result);
  assertEquals(
    (await failure(node, { type: "vlan", command: "CHECK", netns: pod, stdin: wrong })).msg,
    "vlan: Interface eth0 hangs on inner, not on other",
  );
  await one.del();
  const error = await failure(node, asked("ADD", pod, { master: "iner", linkInContainer: true, ipam: single }));
  assertStringIncludes(error.details ?? "", "in the container (/run/netns/a); similar: inner");
});

nodeTest("vlan CHECK compares ID, MTU and MAC", { needs }, async ({ node }) => {
  await node.outside();
  const pod = await node.container("a");
  const ipam = fixed(["10.1.0.2/24"]);
  const one = new Attachment(node, net({ ipam, mtu: 1400 }), pod);
  await one.add();
  const check = async (more: Json) =>
    (await failure(node, {
      type: "vlan",
      command: "CHECK",
      netns: pod,
      stdin: one.request(net({ ipam, mtu: 1400, ...more }), one.result),
    })).msg;
  assertEquals(await check({ vlanId: 200 }), "Error: Tuning link eth0 configured promisc is 200, current value is 100");
  assertEquals(await check({ mtu: 1300 }), "Error: Tuning configured MTU of eth0 is 1300, current value is 1400");
  assertEquals(await check({ master: "gone" }), 'failed to lookup master "gone": Link not found');
  await pod.ip("link set eth0 address 02:00:00:00:00:99");
  assertMatch(await check({}), /^vlan: Interface eth0 Mac .* doesn't match container Mac: 02:00:00:00:00:99$/);
});

nodeTest("vlan: an IPAM plugin's error keeps its code behind the reference's words", { needs }, async ({ node }) => {
  await node.outside();
  const pod = await node.container("a");
  for (
    const [command, msg] of [
      ["ADD", /^failed to execute IPAM delegate: no plugin name provided/],
      ["CHECK", /^no plugin name provided$/],
      ["DEL", /^no plugin name provided$/],
      ["STATUS", /^no plugin name provided$/],
    ] as const
  ) {
    const prevResult = { cniVersion: "1.1.0", interfaces: [{ name: "eth0", sandbox: "/run/netns/a" }] };
    assertMatch((await failure(node, asked(command, pod, { prevResult }))).msg, msg);
  }
});
