/** bridge on a real kernel: what it makes, what it leaves, who reaches whom, and beside the reference. */
import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { namesakeTest } from "./support/main_plugin.ts";
import {
  assertNoPing,
  assertPings,
  assertSameState,
  Attachment,
  call,
  childPrograms,
  difference,
  eventually,
  hostLocalLeftovers,
  interopTest,
  inVm,
  type Json,
  type Namespace,
  type Node,
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

const net = (more: Json = {}, version = "1.1.0"): Json => ({
  cniVersion: version,
  name: "net1",
  type: "bridge",
  bridge: "br1",
  isDefaultGateway: true,
  ipMasq: true,
  ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }]] },
  ...more,
});
const dual = { ranges: [[{ subnet: "10.22.0.0/24" }], [{ subnet: "fd00:22::/64" }]], type: "host-local" };

/** What stays after the last container: the bridge itself, forwarding, address counters. */
const stays = { allow: [hostLocalLeftovers, /networks directory/, /br1/, /ip_forward|forwarding/] };

/** The error of a call that has to fail. */
async function failure(
  node: Node,
  request: Parameters<typeof runPlugin>[1],
): Promise<{ code: number; msg: string; details?: string }> {
  const output = await runPlugin(node, request);
  assertEquals(output.code, 1, output.stdout + output.stderr);
  return output.json;
}

nodeTest("bridge gives container after container the next address, connects them, and leaves nothing", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  const [a, b] = [await node.container("a"), await node.container("b")];
  const first = new Attachment(node, net(), a);
  const before = await snapshot(node);
  const result = await first.add();
  const between = await snapshot(node);
  assertEquals(result.ips, [{ address: "10.22.0.2/24", gateway: "10.22.0.1", interface: 2 }]);
  assertEquals(result.routes, [{ dst: "0.0.0.0/0", gw: "10.22.0.1" }]);
  assertEquals(
    result.interfaces.map(({ name, sandbox }: Json) => [name.replace(/^veth[0-9a-f]{8}$/, "veth*"), sandbox]),
    [
      ["br1", undefined],
      ["veth*", undefined],
      ["eth0", "/run/netns/a"],
    ],
  );
  const links = await node.ipJson("-d", "link", "show");
  for (const { name, mac } of result.interfaces.slice(0, 2)) {
    assertEquals(links.find((link) => link.ifname === name)?.address, mac);
  }
  const second = new Attachment(node, net(), b);
  assertEquals((await second.add()).ips[0].address, "10.22.0.3/24");
  for (const from of [a, node]) await assertPings(from, "10.22.0.3");
  for (const from of [a, b]) await assertPings(from, "10.22.0.1");
  await first.check();
  await second.check();
  await second.del();
  assertSameState(between, await snapshot(node), { allow: [hostLocalLeftovers] });
  await first.del();
  assertSameState(before, await snapshot(node), stays);
});

nodeTest("a container behind the bridge reaches the outside masqueraded, and answers come back", {
  needs: ["bridge", "veth", "iptables", "ip6tables", "tool:socat"],
}, async ({ node }) => {
  const outside = await node.outside();
  const a = await node.container("a");
  for (const backend of ["iptables", "nftables"]) {
    const one = new Attachment(node, net({ ipam: dual, ipMasqBackend: backend }), a);
    await one.add();
    for (const [address, host] of [[outside.ipv4, outside.hostIPv4], [outside.ipv6, outside.hostIPv6]] as const) {
      const server = await serve(outside, 8000);
      // A fresh uplink solicits nobody before its own link-local address is sure: a second.
      let reply = await request(a, address, 8000);
      reply ??= await request(a, address, 8000, { timeout: 3000 });
      await server.close();
      assertEquals(reply?.peer, host, `${backend} ${address}`);
    }
    await one.check();
    await one.del();
  }
});

nodeTest("bridge starts at most three processes for ADD and two for DEL, and opens nothing that others may write", {
  needs: ["bridge", "veth", "iptables", "tool:strace"],
}, async ({ node }) => {
  const [a, b] = [await node.container("a"), await node.container("b")];
  await new Attachment(node, net(), a).add();
  const request = { type: "bridge", netns: b, stdin: net() };
  let add = await tracePlugin(node, { ...request, command: "ADD" });
  // A port that is late to forward, on a busy machine, costs one process more.
  for (let attempt = 0; attempt < 4 && add.children > 3; attempt++) {
    await call(node, { ...request, command: "DEL" });
    add = await tracePlugin(node, { ...request, command: "ADD" });
  }
  assertEquals(add.output.code, 0, add.output.stdout);
  assert(add.children <= 3, `ADD started ${childPrograms(add)}`);
  assertEquals(temporaryFiles(add), []);
  const prevResult = add.output.json;
  const del = await tracePlugin(node, { ...request, command: "DEL", stdin: { ...net(), prevResult } });
  assertEquals(del.output.code, 0, del.output.stdout);
  assert(del.children <= 2, `DEL started ${childPrograms(del)}`);
  assertEquals(temporaryFiles(del), []);
});

nodeTest("DEL cleans the same with a namespace, without one, when it is gone, and twice", {
  needs: ["bridge", "veth", "iptables", "ip6tables", "nf_tables"],
}, async ({ node }) => {
  for (const ipMasqBackend of ["iptables", "nftables"]) {
    const conf = net({ ipam: dual, ipMasqBackend });
    const warmUp = new Attachment(node, conf, await node.container(`w${ipMasqBackend}`));
    await warmUp.add();
    await warmUp.del();
    const before = await snapshot(node);
    const ways: [string, (one: Attachment, pod: Namespace) => Promise<void>][] = [
      ["with it", (one) => one.del()],
      ["without", (one) => one.del("cnibox", { withoutNetns: true })],
      [
        "without prevResult",
        (one, pod) =>
          call(node, { type: "bridge", command: "DEL", netns: null, containerId: pod.name, stdin: conf }).then(() =>
            void (one.result = undefined)
          ),
      ],
      ["namespace gone", async (one, pod) => {
        await node.removeContainer(pod);
        await one.del();
      }],
      ["link gone", async (one, pod) => {
        await pod.ip("link del eth0");
        await one.del();
      }],
      ["rules flushed", async (one) => {
        await node.run("iptables", "-t", "nat", "-F");
        await node.run("ip6tables", "-t", "nat", "-F");
        await one.del();
      }],
      ["address file lost", async (one) => {
        await node.sh("rm -f /var/lib/cni/networks/net1/[0-9f]*");
        await one.del();
      }],
    ];
    for (const [index, [what, way]] of ways.entries()) {
      const pod = await node.container(`p${index}${ipMasqBackend}`);
      const one = new Attachment(node, conf, pod);
      await one.add();
      await way(one, pod);
      const allow = [hostLocalLeftovers, /POSTROUTING|PREROUTING/];
      assertEquals(difference(before, await snapshot(node), { allow }), [], what);
      await one.del();
      await one.del("cnibox", { withoutNetns: true });
      assertEquals(difference(before, await snapshot(node), { allow }), [], `${what}, and twice again`);
    }
  }
});

nodeTest(
  "a failed ADD leaves no debris, and the retry tells the same error",
  { needs: ["bridge", "veth", "iptables"] },
  async ({ node }) => {
    const a = await node.container("a");
    const warmUp = new Attachment(node, net(), await node.container("w"));
    await warmUp.add();
    await warmUp.del();
    const before = await snapshot(node);
    const routes = (dst: string, gw: string) => ({
      ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }]], routes: [{ dst, gw }] },
    });
    const table: [string, Json, RegExp][] = [
      [
        "unreachable gateway",
        routes("10.99.0.0/16", "172.31.0.1"),
        /^failed to add route '\{10\.99\.0\.0 ffff0000\} via 172\.31\.0\.1 dev eth0 metric 0 \(Scope: universe, Table: 0\)': /,
      ],
      ["unknown masquerade backend", { ipMasqBackend: "bogus" }, /^unknown ipmasq backend "bogus"$/],
      ["bad MAC", { runtimeConfig: { mac: "zz" } }, /^failed to make veth pair: address zz: invalid MAC address$/],
      [
        "multicast MAC",
        { runtimeConfig: { mac: "01:00:00:00:00:01" } },
        /^failed to make veth pair: cannot assign requested address$/,
      ],
      ["MTU out of range", { mtu: 70000 }, /^failed to make veth pair: /],
      ["IPAM plugin missing", { ipam: { type: "none" } }, /^failed to find plugin "none" in path \[\/opt\/cni\/bin\]$/],
      [
        "hairpin and promiscuous",
        { hairpinMode: true, promiscMode: true },
        /^cannot set hairpin mode and promiscuous mode at the same time$/,
      ],
      [
        "IPAM without a link",
        { disableContainerInterface: true },
        /^cannot use IPAM when DisableContainerInterface flag is set$/,
      ],
      ["VLAN too large", { vlan: 4095 }, /^invalid VLAN ID 4095 \(must be between 0 and 4094\)$/],
      [
        "name too long",
        { bridge: "abcdefghijklmnop" },
        /^failed to create bridge "abcdefghijklmnop": could not add "abcdefghijklmnop": numerical result out of range$/,
      ],
      ["name empty", { bridge: "" }, /^failed to create bridge "": could not add "": LinkAttrs.Name cannot be empty$/],
      ["not a bridge", { bridge: "lo" }, /^failed to create bridge "lo": "lo" already exists but is not a bridge$/],
      ["number as text", { mtu: "1500" }, /^failed to load netconf: json: cannot unmarshal string/],
      ["unknown CNI_ARGS", { args: 5 }, /^failed to load netconf: /],
      ["trunk with null", { vlanTrunk: [null] }, /^failed to load netconf: /],
      ["trunk reversed", { vlanTrunk: [{ minID: 5, maxID: 2 }] }, /^minID is greater than maxID in trunk parameter$/],
      [
        "trunk half",
        { vlanTrunk: [{ minID: 5 }] },
        /^minID and maxID should be configured simultaneously, maxID is missing$/,
      ],
    ];
    for (const [what, more, expected] of table) {
      for (const attempt of [1, 2]) {
        const { msg } = await failure(node, { type: "bridge", command: "ADD", netns: a, stdin: net(more) });
        assert(expected.test(msg), `${what}, attempt ${attempt}: ${msg}`);
        assertSameState(before, await snapshot(node), { allow: [hostLocalLeftovers] });
        assertEquals((await a.ipJson("link", "show")).length, 1, what);
      }
    }
    const again = new Attachment(node, net(), a);
    await again.add();
    await again.del();
  },
);

nodeTest(
  "ADD refuses a path that is no namespace with the reference's words",
  { needs: ["bridge", "veth"] },
  async ({ node }) => {
    const gone = await failure(node, {
      type: "bridge",
      command: "ADD",
      netns: "/run/netns/gone",
      containerId: "c",
      stdin: net(),
    });
    assertEquals([gone.code, gone.msg], [
      999,
      'failed to open netns "/run/netns/gone": failed to Statfs "/run/netns/gone": no such file or directory',
    ]);
    await node.write("/run/plain", "x");
    const plain = await failure(node, {
      type: "bridge",
      command: "ADD",
      netns: "/run/plain",
      containerId: "c",
      stdin: net(),
    });
    assertStringIncludes(plain.msg, 'failed to open netns "/run/plain": unknown FS magic on "/run/plain": ');
    const own = await failure(node, {
      type: "bridge",
      command: "ADD",
      netns: "/proc/self/ns/net",
      containerId: "c",
      stdin: net(),
    });
    assertEquals([own.code, own.msg], [8, "plugin's netns and netns from CNI_NETNS should not be the same"]);
    assertEquals(await node.list("/var/lib/cni"), []);
  },
);

namesakeTest("bridge", { needs: ["bridge", "iptables"], net: net() });

nodeTest("DEL with the host's own namespace releases by owner, touches no link and says code 8", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  const a = await node.container("a");
  const one = new Attachment(node, net(), a);
  await one.add();
  await node.ip("link add eth0 type veth peer name eth0p");
  const error = await failure(node, {
    type: "bridge",
    command: "DEL",
    netns: "/proc/self/ns/net",
    containerId: "a",
    stdin: net(),
  });
  assertEquals(error.code, 8);
  const names = (await node.ipJson("link", "show")).map(({ ifname }) => ifname);
  assert(names.includes("eth0"), names.join(" "));
  assertEquals((await node.list("/var/lib/cni/networks/net1")).filter((name) => /^\d+\./.test(name)), []);
  assert(!(await node.run("iptables-save", "-t", "nat")).includes("10.22.0.2"));
});

nodeTest("an address that was in use a second ago answers the host and other containers at once", {
  needs: ["bridge", "veth"],
}, async ({ node }) => {
  const conf = (address: string, mac?: string) =>
    net({
      ipMasq: false,
      ipam: {
        type: "static",
        addresses: [{ address, gateway: "10.22.0.1" }, {
          address: address.replace("10.22.0.", "fd00:22::").replace("/24", "/64"),
          gateway: "fd00:22::1",
        }],
      },
      ...(mac && { runtimeConfig: { mac } }),
    });
  const neighbour = await node.container("n");
  await new Attachment(node, conf("10.22.0.9/24"), neighbour).add();
  const owners: [string, string | undefined, "cnibox" | "ref"][] = [["o1", "02:00:00:00:00:01", "cnibox"], [
    "o2",
    "02:00:00:00:00:02",
    "cnibox",
  ], ["o3", undefined, "cnibox"]];
  for (const [name, mac, by] of owners) {
    const pod = await node.container(name);
    const one = new Attachment(node, conf("10.22.0.5/24", mac), pod);
    await one.add(by);
    for (const from of [neighbour, node]) {
      for (const address of ["10.22.0.5", "fd00:22::5"]) await assertPings(from, address, { timeout: 2000 } as Json);
    }
    await node.removeContainer(pod);
    // Removed without DEL of the link: the others still know the old MAC.
    await one.del();
  }
});

// The VM's memory holds some thirty calls.
const PODS = inVm ? 5 : 20;
nodeTest(
  `${inVm ? "fifteen" : "sixty"} ADDs at once on a fresh node make one bridge, and no address twice`,
  { needs: ["bridge", "veth", "iptables"], timeout: 120_000 } as Json,
  async ({ node }) => {
    const pods = await Promise.all(Array.from({ length: PODS }, (_, i) => node.container(`p${i}`)));
    const conf = net();
    const all = pods.flatMap((pod) =>
      ["eth0", "eth1", "eth2"].map((ifName) =>
        new Attachment(node, { ...conf, isDefaultGateway: false, isGateway: true }, pod, { ifName })
      )
    );
    const results = await Promise.all(all.map((one) => one.add()));
    assertEquals(new Set(results.map((result) => result.ips[0].address)).size, 3 * PODS);
    assertEquals((await node.ipJson("link", "show", "type", "bridge")).length, 1);
    await Promise.all(all.map((one) => one.del()));
    assertEquals((await node.ipJson("link", "show", "type", "veth")).length, 0);
    assert(!(await node.run("iptables-save", "-t", "nat")).includes("CNI-"));
  },
);

nodeTest("bridge without ipam is layer 2: a link that is up, no address, and CHECK works", {
  needs: ["bridge", "veth"],
}, async ({ node }) => {
  const a = await node.container("a");
  const { ipam: _, ...bare } = net();
  const one = new Attachment(node, bare, a);
  const result = await one.add();
  assertEquals([result.ips, result.routes, result.interfaces.length], [undefined, undefined, 3]);
  const [link] = await a.ipJson("link", "show", "dev", "eth0");
  assertEquals(link.operstate, "UP");
  await one.check();
  await one.del();
  const down = new Attachment(node, { ...bare, disableContainerInterface: true }, a);
  await down.add();
  assert(!(await a.ipJson("link", "show", "dev", "eth0"))[0].flags.includes("UP"));
  await down.del();
});

nodeTest("the bridge keeps its MAC while containers come and go, with a gateway and without", {
  needs: ["bridge", "veth"],
}, async ({ node }) => {
  for (const isDefaultGateway of [true, false]) {
    const conf = net({
      isDefaultGateway,
      ipMasq: false,
      bridge: `brk${isDefaultGateway ? 1 : 0}`,
      name: `k${isDefaultGateway}`,
    });
    const first = new Attachment(node, conf, await node.container(`f${isDefaultGateway}`));
    const { interfaces: [{ mac }] } = await first.add();
    for (let i = 0; i < 5; i++) {
      await new Attachment(node, conf, await node.container(`c${i}${isDefaultGateway}`)).add();
    }
    assertEquals((await node.ipJson("link", "show", "dev", conf.bridge))[0].address, mac);
    await first.check();
  }
});

nodeTest("an address in the way on the bridge is an error that lists all, or is replaced with forceAddress", {
  needs: ["bridge", "veth"],
}, async ({ node }) => {
  await node.ip("link add br1 type bridge", "addr add 10.0.0.1/8 dev br1", "link set br1 up");
  const a = await node.container("a");
  const conf = net({ ipMasq: false });
  const error = await failure(node, { type: "bridge", command: "ADD", netns: a, stdin: conf });
  assertEquals(error.msg, 'failed to set bridge addr: "br1" already has an IP address different from 10.22.0.1/24');
  assertStringIncludes(error.details ?? "", "10.0.0.1/8");
  assertStringIncludes(error.details ?? "", "ip addr del 10.0.0.1/8 dev br1");
  await new Attachment(node, { ...conf, forceAddress: true }, a).add();
  const [bridge] = await node.ipJson("addr", "show", "dev", "br1");
  assertEquals(bridge.addr_info.filter(({ family }: Json) => family === "inet").map(({ local }: Json) => local), [
    "10.22.0.1",
  ]);
});

nodeTest(
  "hairpinMode, portIsolation, promiscMode and mtu reach the kernel",
  { needs: ["bridge", "veth"] },
  async ({ node }) => {
    const add = async (name: string, more: Json) => {
      const pod = await node.container(name);
      const result = await new Attachment(node, net({ ipMasq: false, ...more }), pod).add();
      const [port] = await node.ipJson("-d", "link", "show", "dev", result.interfaces[1].name);
      return { pod, port, result };
    };
    const plain = await add("plain", {});
    assertEquals([
      plain.port.linkinfo.info_slave_data.hairpin,
      plain.port.linkinfo.info_slave_data.isolated,
      plain.port.mtu,
    ], [false, false, 1500]);
    const hairpin = await add("hairpin", { hairpinMode: true, mtu: 1400 });
    assertEquals([hairpin.port.linkinfo.info_slave_data.hairpin, hairpin.port.mtu, hairpin.result.interfaces[2].mtu], [
      true,
      1400,
      1400,
    ]);
    assertEquals((await hairpin.pod.ipJson("link", "show", "dev", "eth0"))[0].mtu, 1400);
    const [one, two] = [await add("one", { portIsolation: true }), await add("two", { portIsolation: true })];
    assertEquals(one.port.linkinfo.info_slave_data.isolated, true);
    await assertNoPing(one.pod, two.result.ips[0].address.split("/")[0]);
    await assertPings(one.pod, plain.result.ips[0].address.split("/")[0]);
    await add("promisc", { promiscMode: true });
    assert((await node.ipJson("-d", "link", "show", "dev", "br1"))[0].promiscuity > 0);
  },
);

nodeTest(
  "the MAC asked for is taken in the order runtimeConfig, args, CNI_ARGS",
  { needs: ["bridge", "veth"] },
  async ({ node }) => {
    const given = { env: "02:00:00:00:00:01", args: "02-00-00-00-00-02", runtime: "0200.0000.0003" };
    const table: [Json, string | undefined, string][] = [
      [{}, `MAC=${given.env};IgnoreUnknown=1`, "02:00:00:00:00:01"],
      [{ args: { cni: { mac: given.args } } }, `MAC=${given.env};IgnoreUnknown=1`, "02:00:00:00:00:02"],
      [{ args: { cni: { mac: given.args } }, runtimeConfig: { mac: given.runtime } }, undefined, "02:00:00:00:00:03"],
      [{ runtimeConfig: { mac: "" } }, undefined, "0a:58:0a:16:00:05"],
    ];
    for (const [index, [more, args, expected]] of table.entries()) {
      const pod = await node.container(`m${index}`);
      const result = await call(node, {
        type: "bridge",
        command: "ADD",
        netns: pod,
        stdin: net({ ipMasq: false, ...more }),
        args: args ?? null,
      });
      assertEquals(result.interfaces[2].mac, expected);
    }
  },
);

nodeTest("CHECK says what is wrong", { needs: ["bridge", "veth", "iptables"] }, async ({ node }) => {
  const a = await node.container("a");
  const one = new Attachment(node, net(), a);
  const result = await one.add();
  const veth = result.interfaces[1].name;
  const check = (prevResult: Json = result) =>
    failure(node, { type: "bridge", command: "CHECK", netns: a, stdin: { ...net(), prevResult } });
  assertEquals(
    (await failure(node, { type: "bridge", command: "CHECK", netns: a, stdin: net() })).msg,
    "Required prevResult missing",
  );
  const changed = (index: number, more: Json) => ({
    ...result,
    interfaces: result.interfaces.map((entry: Json, at: number) => at === index ? { ...entry, ...more } : entry),
  });
  assertStringIncludes(
    (await check(changed(2, { mac: "02:00:00:00:00:99" }))).msg,
    "Interface eth0 Mac 02:00:00:00:00:99 doesn't match container Mac: ",
  );
  assertEquals(
    (await check(changed(2, { sandbox: "/other" }))).msg,
    "Sandbox in prevResult  doesn't match configured netns: /run/netns/a",
  );
  assertEquals((await check(changed(0, { name: "x" }))).msg, "Interface name missing ");
  assertStringIncludes(
    (await check(changed(1, { mac: "02:00:00:00:00:99" }))).msg,
    `Interface ${veth} Mac doesn't match: 02:00:00:00:00:99 not found`,
  );
  const breaks: [string, string, string][] = [
    [`ip link set ${veth} nomaster`, `ip link set ${veth} master br1`, "CNI veth created for bridge br1 was not found"],
    [
      "ip netns exec a ip addr del 10.22.0.2/24 dev eth0",
      "ip netns exec a ip addr add 10.22.0.2/24 brd + dev eth0; ip netns exec a ip route add default via 10.22.0.1",
      "Failed to match addr 10.22.0.2/24 on interface eth0",
    ],
    [
      "ip netns exec a ip route del default",
      "ip netns exec a ip route add default via 10.22.0.1",
      "Expected Route {Dst:{IP:0.0.0.0 Mask:00000000} GW:10.22.0.1 MTU:0 AdvMSS:0 Priority:0 Table:<nil> Scope:<nil>} not found in routing table",
    ],
    [
      "ip link set br1 promisc on",
      "ip link set br1 promisc off",
      "Bridge interface br1 configured Promisc Mode false doesn't match current state: true ",
    ],
    [
      "mv /var/lib/cni/networks/net1/10.22.0.2 /run/kept",
      "mv /run/kept /var/lib/cni/networks/net1/10.22.0.2",
      "host-local: Failed to find address added by container a",
    ],
  ];
  for (const [spoil, fix, msg] of breaks) {
    await node.sh(spoil);
    assertEquals((await check()).msg, msg, spoil);
    await node.sh(fix);
    await one.check();
  }
  await node.run("iptables", "-t", "nat", "-F", "POSTROUTING");
  assertEquals((await check()).code, 999);
});

nodeTest("GC removes veths, rules and addresses of attachments that are not valid, and nothing else", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  const pods = await Promise.all(["a", "b", "c"].map((name) => node.container(name)));
  const all = pods.map((pod) => new Attachment(node, net(), pod));
  for (const one of all) await one.add();
  const other = new Attachment(
    node,
    net({ name: "net2", bridge: "br2", ipam: { type: "host-local", ranges: [[{ subnet: "10.23.0.0/24" }]] } }),
    await node.container("o"),
  );
  await other.add();
  const gc = (more: Json) =>
    call(node, {
      type: "bridge",
      command: "GC",
      containerId: null,
      netns: null,
      ifName: null,
      stdin: { ...net(), ...more },
    });
  const before = await snapshot(node);
  await gc({});
  assertSameState(before, await snapshot(node));
  await gc({ "cni.dev/valid-attachments": [{ containerID: "b", ifname: "eth0" }] });
  await all[1]!.check();
  await other.check();
  assertEquals((await node.list("/var/lib/cni/networks/net1")).filter((name) => /^\d/.test(name)), ["10.22.0.3"]);
  const rules = await node.run("iptables-save", "-t", "nat");
  assertEquals(["a", "b", "c", "o"].map((id) => rules.includes(`id: \\"${id}\\"`)), [false, true, false, true]);
  assertEquals((await node.ipJson("link", "show", "type", "veth")).length, 2);
});

nodeTest(
  "STATUS tells of tools that are missing and of the IPAM plugin's trouble",
  { needs: ["bridge", "veth"] },
  async ({ node }) => {
    const status = (more: Json) =>
      runPlugin(node, {
        type: "bridge",
        command: "STATUS",
        containerId: null,
        netns: null,
        ifName: null,
        stdin: { ...net(), ...more },
      });
    assertEquals((await status({})).code, 0);
    const missing = await status({ ipam: { type: "none" } });
    assertEquals(missing.json.msg, 'failed to find plugin "none" in path [/opt/cni/bin]');
    await node.write("/var/lib/cni-broken", "x");
    const broken = await status({
      ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }]], dataDir: "/var/lib/cni-broken" },
    });
    assertEquals([broken.code, broken.json.code], [1, 50]);
  },
);

nodeTest("an attachment has the form of every protocol version", { needs: ["bridge", "veth"] }, async ({ node }) => {
  for (const version of ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]) {
    const one = new Attachment(
      node,
      net({ ipMasq: false, ipam: dual, name: `v${version}` }, version),
      await node.container(`v${version.replaceAll(".", "")}`),
    );
    const result = await one.add();
    assertEquals(result.cniVersion, version);
    if (version < "0.3.0") {
      assertEquals([Object.keys(result), result.ip4.routes], [["cniVersion", "ip4", "ip6", "dns"], [{
        dst: "0.0.0.0/0",
        gw: "10.22.0.1",
      }]]);
    } else if (version < "1.0.0") {
      assertEquals([Object.keys(result), result.ips[1].version], [
        ["cniVersion", "interfaces", "ips", "routes", "dns"],
        "6",
      ]);
    } else assertEquals(Object.keys(result), ["cniVersion", "interfaces", "ips", "routes"]);
    if (version >= "0.4.0") await one.check();
    await one.del();
  }
});

nodeTest("macspoofchk lets the container's own MAC through and no other, and goes with it", {
  needs: ["bridge", "veth", "nf_tables_bridge"],
}, async ({ node }) => {
  const [a, b] = [await node.container("a"), await node.container("b")];
  const conf = net({ ipMasq: false, macspoofchk: true });
  const one = new Attachment(node, conf, a);
  await one.add();
  await new Attachment(node, conf, b).add();
  await assertPings(a, "10.22.0.3");
  await a.ip("link set eth0 address 02:00:00:00:00:99");
  assert(!await ping(a, "10.22.0.3"));
  await one.del();
  await one.del();
  const rules = await node.run("nft", "list", "ruleset");
  assertEquals([rules.includes("macspoofchk-a-eth0"), rules.includes("macspoofchk-b-eth0")], [false, true]);
});

nodeTest("vlan puts the container's port into it, and its gateway onto a link of its own", {
  needs: ["bridge", "veth", "vlan_filtering"],
}, async ({ node }) => {
  const conf = net({ ipMasq: false, vlan: 100 });
  const [a, b, c] = [await node.container("a"), await node.container("b"), await node.container("c")];
  const one = new Attachment(node, conf, a);
  const result = await one.add();
  assertEquals(result.interfaces.map(({ name }: Json) => name).slice(2), ["eth0", "br1.100"]);
  const vlans = async (dev: string) =>
    (JSON.parse(await node.run("bridge", "-j", "vlan", "show", "dev", dev)) as Json)[0].vlans;
  assertEquals(await vlans(result.interfaces[1].name), [{ vlan: 100, flags: ["PVID", "Egress Untagged"] }]);
  await assertPings(a, "10.22.0.1");
  await new Attachment(node, conf, b).add();
  await assertPings(a, "10.22.0.3");
  const other = net({
    name: "net2",
    ipMasq: false,
    vlan: 200,
    isDefaultGateway: false,
    ipam: { type: "static", addresses: [{ address: "10.22.0.9/24" }] },
  });
  await new Attachment(node, other, c).add();
  await assertNoPing(c, "10.22.0.2");
  await one.check();
  await one.del();
  assertEquals(
    (await node.ipJson("addr", "show", "dev", "br1.100"))[0].addr_info.some(({ local }: Json) => local === "10.22.0.1"),
    true,
  );
});

nodeTest("vlanTrunk carries its VLANs tagged, with the native one untagged", {
  needs: ["bridge", "veth", "vlan_filtering"],
}, async ({ node }) => {
  const { ipam: _, ...bare } = net({ vlanTrunk: [{ minID: 10, maxID: 12 }, { id: 20 }, { id: 11 }] });
  const result = await new Attachment(node, bare, await node.container("a")).add();
  const vlans = async (name: string) =>
    (JSON.parse(await node.run("bridge", "-j", "vlan", "show", "dev", name)) as Json)[0].vlans;
  const expanded = (list: Json[]) =>
    list.flatMap(({ vlan, vlanEnd = vlan, flags = [] }) =>
      Array.from({ length: vlanEnd - vlan + 1 }, (_, i) => [vlan + i, flags.length])
    );
  assertEquals(expanded(await vlans(result.interfaces[1].name)), [[1, 2], [10, 0], [11, 0], [12, 0], [20, 0]]);
  const native = await new Attachment(node, { ...bare, name: "net2", vlan: 11 }, await node.container("b")).add();
  assertEquals(expanded(await vlans(native.interfaces[1].name)), [[10, 0], [11, 2], [12, 0], [20, 0]]);
  const kept = await new Attachment(node, {
    ...bare,
    name: "net3",
    vlanTrunk: undefined,
    vlan: 30,
    preserveDefaultVlan: true,
  }, await node.container("c")).add();
  assertEquals(expanded(await vlans(kept.interfaces[1].name)).map(([vid]) => vid), [1, 30]);
});

nodeTest("DEL by another name leaves the others alone: two interfaces of one container", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  const outside = await node.outside();
  const a = await node.container("a");
  const first = new Attachment(node, net({ isDefaultGateway: true }), a, { ifName: "eth0" });
  const second = new Attachment(node, net({ isDefaultGateway: false, isGateway: true }), a, { ifName: "net1" });
  await first.add();
  await second.add();
  await second.del();
  await first.check();
  await assertPings(a, outside.ipv4);
});

nodeTest(
  "a repeated ADD for a living container fails and changes nothing",
  { needs: ["bridge", "veth", "iptables"] },
  async ({ node }) => {
    const a = await node.container("a");
    const one = new Attachment(node, net(), a);
    await one.add();
    const before = await snapshot(node);
    await assertRejects(() => new Attachment(node, net(), a).add(), PluginFailed);
    assertSameState(before, await snapshot(node));
    await one.check();
    await eventually("the container still answers", async () => await ping(node, "10.22.0.2"));
  },
);

for (
  const [name, more] of [["IPv4", {}], ["dual stack", { ipam: dual }], ["nftables", { ipMasqBackend: "nftables" }], [
    "no gateway",
    { isDefaultGateway: false, ipMasq: false },
  ]] as [string, Json][]
) {
  interopTest(
    `bridge + host-local, ${name}`,
    { needs: ["bridge", "veth", "iptables", "ip6tables", "nf_tables"] },
    async ({ adder, checker, deleter }, node) => {
      const warmUp = new Attachment(node, net(more, "1.0.0"), await node.container("w"));
      await warmUp.add();
      await warmUp.del();
      const before = await snapshot(node);
      const one = new Attachment(node, net(more, "1.0.0"), await node.container("a"));
      await one.add(adder);
      await one.check(checker);
      // With nftables the reference deletes its rules, then complains of an iptables chain that there never was.
      await one.del(deleter).catch((error) => {
        if (deleter !== "ref" || name !== "nftables" || !`${error}`.includes("does not exist")) throw error;
      });
      assertSameState(before, await snapshot(node), { allow: [hostLocalLeftovers, /br1/] });
    },
  );
}
