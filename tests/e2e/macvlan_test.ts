/**
 * macvlan on a real kernel: who talks to whom in which mode, masters found and missing, MACs, and the common promises.
 */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { linkPluginTests } from "./support/link_plugin.ts";
import { failure, fixed, settled, single } from "./support/main_plugin.ts";
import {
  assertNoPing,
  assertPings,
  assertSameState,
  Attachment,
  call,
  type Json,
  type Need,
  nodeTest,
  runPlugin,
  snapshot,
} from "./support/mod.ts";

const needs: Need[] = ["macvlan", "veth"];

linkPluginTests({
  type: "macvlan",
  needs,
  keys: { master: "uplink" },
  prepare: (node) => node.outside(),
  children: [2, 4],
  taken: /^failed to rename macvlan to "taken": file exists$/,
});

const net = (more: Json = {}): Json => ({
  cniVersion: "1.1.0",
  name: "net1",
  type: "macvlan",
  master: "uplink",
  ...more,
});
const add = (
  netns: Parameters<typeof runPlugin>[1]["netns"],
  more: Json,
  rest: Partial<Parameters<typeof runPlugin>[1]> = {},
) => ({
  type: "macvlan",
  command: "ADD",
  netns: netns ?? null,
  stdin: net(more),
  ...rest,
});

for (const mode of ["bridge", "private", "vepa", undefined, ""]) {
  const talks = mode === "bridge" || !mode;
  nodeTest(
    `macvlan in mode ${mode === undefined ? "(absent)" : `"${mode}"`} ${
      talks ? "lets" : "does not let"
    } two containers talk, and both the outside`,
    { needs },
    async ({ node }) => {
      const outside = await node.outside();
      const [a, b] = [await node.container("a"), await node.container("b")];
      for (const [pod, last] of [[a, 11], [b, 12]] as const) {
        const ipam = fixed([`192.0.2.${last}/24 192.0.2.2`, `2001:db8:ffff::${last}/64 2001:db8:ffff::2`]);
        const one = new Attachment(node, net({ mode, ipam }), pod);
        await one.add();
        await one.check();
      }
      for (const pod of [a, b]) {
        await assertPings(pod, outside.ipv4);
        await assertPings(pod, outside.ipv6);
      }
      if (talks) {
        await assertPings(a, "192.0.2.12");
        await assertPings(a, "2001:db8:ffff::12");
      } else {
        await assertNoPing(a, "192.0.2.12");
        await assertNoPing(a, "2001:db8:ffff::12");
      }
      // By design: the master does not pass frames between its own stack and the links on it.
      await assertNoPing(node, "192.0.2.11");
    },
  );
}

nodeTest("macvlan announces its addresses: a neighbour learns the new MAC without asking", {
  needs: [...needs, "tool:tcpdump"],
}, async ({ node }) => {
  const outside = await node.outside();
  await settled(node, outside);
  const ipam = fixed(["192.0.2.11/24 192.0.2.2", "2001:db8:ffff::11/64 2001:db8:ffff::2"]);
  const first = new Attachment(node, net({ ipam }), await node.container("a"));
  await first.add();
  await assertPings(outside, "192.0.2.11");
  await first.del();
  const sniffer = outside.spawn(["tcpdump", "-l", "-n", "-e", "-i", "eth0", "arp or icmp6"]);
  await sniffer.until(/listening on eth0/);
  const { interfaces: [{ mac }] } = await new Attachment(node, net({ ipam }), await node.container("b")).add();
  await sniffer.until(new RegExp(`${mac} > ff:ff:ff:ff:ff:ff.*(Request who-has|Announcement|Reply) 192\\.0\\.2\\.11`));
  await sniffer.until(new RegExp(`${mac} > .*neighbor advertisement, tgt is 2001:db8:ffff::11`));
  const [entry] = await outside.ipJson("neigh", "show", "192.0.2.11");
  assertEquals(entry.lladdr, mac);
  await sniffer.close();
});

nodeTest(
  "macvlan on the link of the default route: IPv4 before IPv6, lowest metric first, routes that lead nowhere skipped",
  { needs },
  async ({ node }) => {
    const pod = await node.container("a");
    const routes = (...lines: string[]) => node.ip("route flush default", "-6", ...[]).catch(() => lines);
    await routes();
    await node.ip(
      ...["m0", "m1", "m2"].flatMap((name, at) => [
        `link add ${name} type veth peer name ${name}x`,
        `link set ${name} up`,
        `link set ${name}x up`,
        `addr add 10.${at}.0.1/24 dev ${name}`,
      ]),
    );
    const master = async () => {
      const one = new Attachment(node, net({ master: undefined }), pod);
      await one.add();
      const link = (await pod.ipJson("link", "show", "eth0"))[0];
      const name = (await node.ipJson("link")).find(({ ifindex }) => ifindex === link.link_index)?.ifname;
      await one.check();
      await one.del();
      return name;
    };
    const error = await failure(node, add(pod, { master: undefined }));
    assertEquals(error.msg, "no default route interface found");
    await node.run("ip", "-6", "route", "add", "default", "dev", "m2", "metric", "5");
    assertEquals(await master(), "m2");
    await node.ip("route add default via 10.1.0.9 metric 200");
    assertEquals(await master(), "m1");
    await node.ip("route add default via 10.0.0.9 metric 100");
    assertEquals(await master(), "m0");
    await node.ip("route add blackhole default metric 50", "route add default dev m2 metric 1 table 100");
    assertEquals(await master(), "m0");
    await node.ip("route add default metric 10 nexthop via 10.2.0.9 nexthop via 10.1.0.9");
    assertEquals(await master(), "m2");
  },
);

nodeTest("macvlan CHECK without a master survives another default route", { needs }, async ({ node }) => {
  await node.outside();
  const one = new Attachment(node, net({ master: undefined, ipam: single }), await node.container("a"));
  await one.add();
  await node.ip("route del default");
  await one.check();
  await one.del();
});

nodeTest("macvlan on a master in the container", { needs }, async ({ node }) => {
  const pod = await node.container("a");
  await pod.ip(
    "link add inner type veth peer name innerx",
    "link set inner up",
    "link set innerx up",
    "addr add 10.0.0.1/24 dev inner",
    "addr add 192.0.2.50/24 dev innerx",
    "route add default via 10.0.0.9",
  );
  for (const master of ["inner", undefined]) {
    const before = await snapshot(node);
    const one = new Attachment(node, net({ master, linkInContainer: true, ipam: fixed(["192.0.2.11/24"]) }), pod);
    await one.add();
    assertEquals((await pod.ipJson("link", "show", "eth0"))[0].link, "inner");
    await one.check();
    assertSameState(before, await snapshot(node));
    await one.del();
  }
  const error = await failure(node, add(pod, { master: "iner", linkInContainer: true }));
  assertEquals(error.msg, 'failed to lookup master "iner": Link not found');
  assertStringIncludes(error.details ?? "", "in the container (/run/netns/a); similar: inner");
});

nodeTest(
  "macvlan says which master is missing, busy or unfit, and what is similar",
  { needs: [...needs, "bridge"] },
  async ({ node }) => {
    await node.outside();
    await node.ip("link add br0 type bridge", "link add port type veth peer name portx", "link set port master br0");
    const pod = await node.container("a");
    const before = await snapshot(node);
    const cases: [Json, string, RegExp][] = [
      [
        { master: "upink" },
        'failed to lookup master "upink": Link not found',
        /"master" is "upink".* on the host; similar: uplink$/,
      ],
      [{ master: "nic9" }, 'failed to lookup master "nic9": Link not found', /links there: .*uplink/],
      [{ master: "if2" }, 'failed to lookup master "if2": Link not found', /"if2"/],
      [{ master: "a b" }, 'failed to lookup master "a b": Link not found', /"a b"/],
      [{ master: "-h" }, 'failed to lookup master "-h": Link not found', /"-h"/],
      [
        { master: "port" },
        "failed to create macvlan: device or resource busy",
        /port is a port of br0 \(bridge\).*"master": "br0"/,
      ],
      [{ master: "lo" }, "failed to create macvlan: invalid argument", /lo is loopback/],
      [{ mtu: 1501 }, "invalid MTU 1501, must be [0, master MTU(1500)]", /uplink has 1500/],
      [{ mtu: -1 }, "invalid MTU -1, must be [0, master MTU(1500)]", /./],
      [{ mode: "source" }, 'unknown macvlan mode: "source"', /bridge, private, vepa, passthru/],
      [
        { bcqueuelen: -1 },
        "failed to load netconf: json: cannot unmarshal number -1 into Go struct field NetConf.bcqueuelen of type uint32",
        /./,
      ],
      [{ mac: "zz" }, "invalid args zz for MAC addr: address zz: invalid MAC address", /./],
      [{ mac: "01:00:5e:00:00:01" }, "failed to create macvlan: cannot assign requested address", /group address/],
      [{ mac: "02:00:00:00:00:00:00:01" }, "failed to create macvlan: invalid argument", /8 bytes/],
    ];
    for (const [more, msg, details] of cases) {
      const error = await failure(node, add(pod, more));
      assertEquals(error.msg, msg);
      assertMatch(error.details ?? "", details, msg);
    }
    assertSameState(before, await snapshot(node));
    await new Attachment(node, net({ master: "br0", mode: "bridge" }), pod).add();
  },
);

nodeTest(
  "macvlan takes the MAC of runtimeConfig before CNI_ARGS before mac, in any spelling",
  { needs },
  async ({ node }) => {
    await node.outside();
    const pod = await node.container("a");
    const unknown = "IgnoreUnknown=true;K8S_POD_NAME=p;";
    const cases: [Json, string | undefined, string][] = [
      [{ mac: "02-00-00-00-00-0A" }, undefined, "02:00:00:00:00:0a"],
      [{ mac: "0200.0000.000b" }, undefined, "02:00:00:00:00:0b"],
      [{ mac: "02:00:00:00:00:01" }, `${unknown}MAC=02:00:00:00:00:02`, "02:00:00:00:00:02"],
      [
        { mac: "02:00:00:00:00:01", runtimeConfig: { mac: "02:00:00:00:00:03" } },
        `${unknown}MAC=02:00:00:00:00:02`,
        "02:00:00:00:00:03",
      ],
    ];
    for (const [more, args, mac] of cases) {
      const { interfaces } = await call(node, add(pod, more, { args: args ?? null }));
      assertEquals(interfaces[0].mac, mac);
      assertEquals((await pod.ipJson("link", "show", "eth0"))[0].address, mac);
      const check = (given: string) =>
        runPlugin(node, {
          type: "macvlan",
          command: "CHECK",
          netns: pod,
          stdin: { ...net(), prevResult: { cniVersion: "1.1.0", interfaces: [{ ...interfaces[0], mac: given }] } },
        });
      assertEquals((await check(mac.toUpperCase())).code, 0);
      assertMatch(
        (await check("02:00:00:00:00:99")).json.msg,
        /^interface eth0 Mac 02:00:00:00:00:99 doesn't match container Mac: /,
      );
      await call(node, { type: "macvlan", command: "DEL", netns: pod, stdin: net(more), args: "nonsense" });
    }
    for (
      const [args, msg] of [
        ["MAC", 'ARGS: invalid pair "MAC"'],
        ["MAC=02:00:00:00:00:02;", 'ARGS: invalid pair ""'],
        ["mac=02:00:00:00:00:02", 'ARGS: unknown args ["mac=02:00:00:00:00:02"]'],
        [
          "IgnoreUnknown=yes",
          'ARGS: error parsing value of pair "IgnoreUnknown=yes": boolean unmarshal error: invalid input yes',
        ],
      ]
    ) {
      assertEquals((await failure(node, add(pod, {}, { args: args ?? "" }))).msg, msg);
    }
  },
);

nodeTest("macvlan passes mode, MTU and bcqueuelen on, and CHECK compares the mode", { needs }, async ({ node }) => {
  await node.outside();
  const pod = await node.container("a");
  const one = new Attachment(node, net({ mode: "vepa", mtu: 1400, bcqueuelen: 300 }), pod);
  await one.add();
  const [link] = await pod.ipJson("link", "show", "eth0");
  assertEquals([link.mtu, link.linkinfo.info_data.mode, link.linkinfo.info_data.bcqueuelen], [1400, "vepa", 300]);
  await one.check();
  await pod.ip("link set eth0 type macvlan mode private");
  const error = await failure(node, {
    type: "macvlan",
    command: "CHECK",
    netns: pod,
    stdin: one.request(net({ mode: "vepa" }), one.result),
  });
  assertEquals(error.msg, "container macvlan mode private does not match expected value: vepa");
});

nodeTest("macvlan in mode passthru has its master for itself, and the master's MAC", { needs }, async ({ node }) => {
  await node.outside();
  const pod = await node.container("a");
  const mac = (await node.ipJson("link", "show", "uplink"))[0].address;
  const { json, stderr } = await runPlugin(node, add(pod, { mode: "passthru", mac: "02:00:00:00:00:01" }));
  assertEquals(json.interfaces[0].mac, mac);
  assertMatch(stderr, /mac 02:00:00:00:00:01 has no effect in mode passthru/);
  const error = await failure(node, add(await node.container("b"), {}));
  assertEquals(error.msg, "failed to create macvlan: invalid argument");
  assertMatch(error.details ?? "", /passthru has its master for itself/);
});

nodeTest("macvlan ADD succeeds on a master that is down; DEL when the master is gone", { needs }, async ({ node }) => {
  await node.ip("link add m0 type veth peer name m1");
  const pod = await node.container("a");
  const one = new Attachment(node, net({ master: "m0", ipam: single }), pod);
  await one.add();
  assertMatch((await pod.ipJson("link", "show", "eth0"))[0].operstate, /DOWN/);
  await node.ip("link del m0");
  await one.del();
  assertEquals((await node.list("/var/lib/cni/networks/net1")).filter((name) => name.startsWith("10.")), []);
});

nodeTest("macvlan STATUS tells that the master is missing", { needs }, async ({ node }) => {
  const status = (more: Json) => runPlugin(node, { type: "macvlan", command: "STATUS", stdin: net(more) });
  assertEquals((await status({})).json.code, 50);
  assertMatch((await status({})).json.msg, /failed to lookup master "uplink": Link not found/);
  assertEquals((await status({ master: undefined })).json.msg, "no default route interface found");
  assertEquals((await status({ linkInContainer: true })).code, 0);
  await node.outside();
  assertEquals((await status({})).code, 0);
  assertEquals((await status({ master: undefined })).code, 0);
});
