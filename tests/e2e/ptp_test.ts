/** ptp on a real kernel: what it makes, what it leaves, who reaches whom, and beside the reference. */
import { assert, assertEquals, assertMatch, assertRejects, assertStringIncludes } from "@std/assert";
import {
  badIpam,
  besideReference,
  dual,
  failure,
  fixed,
  namesakeTest,
  settled,
  single,
  versions,
} from "./support/main_plugin.ts";
import {
  assertNoPing,
  assertPings,
  assertSameState,
  Attachment,
  call,
  childPrograms,
  hostLocalLeftovers,
  interopTest,
  type Json,
  type Namespace,
  type Need,
  nodeTest,
  PluginFailed,
  request,
  runPlugin,
  serve,
  snapshot,
  temporaryFiles,
  tracePlugin,
} from "./support/mod.ts";

const net = (more: Json = {}): Json => ({
  cniVersion: "1.1.0",
  name: "net1",
  type: "ptp",
  ipMasq: true,
  ipam: dual,
  ...more,
});
const needs: Need[] = ["veth", "iptables", "ip6tables"];
/** What stays after the last container. */
const stays = { allow: [hostLocalLeftovers, /ip_forward|forwarding/] };

nodeTest("ptp containers reach each other and the outside behind NAT, in both families, right after ADD", {
  needs: [...needs, "tool:socat"],
}, async ({ node }) => {
  const outside = await node.outside();
  await settled(node);
  const [a, b] = [await node.container("a"), await node.container("b")];
  const nets = [a, b].map((pod) => new Attachment(node, net(), pod));
  const results = [];
  for (const one of nets) results.push(await one.add());
  assertEquals(results[1].ips.map(({ address }: Json) => address), ["10.22.0.3/24", "fd00:22::3/64"]);
  for (const address of ["10.22.0.3", "fd00:22::3"]) {
    await assertPings(a, address, { tries: 1 });
    await assertPings(node, address, { tries: 1 });
  }
  await assertPings(b, "10.22.0.1", { tries: 1 });
  await assertPings(b, "fd00:22::1", { tries: 1 });
  const [server, inside] = [await serve(outside, 8000), await serve(b, 8001)];
  assertEquals((await request(a, outside.ipv4, 8000, { timeout: 3000 }))?.peer, outside.hostIPv4);
  assertEquals((await request(a, outside.ipv6, 8000, { timeout: 3000 }))?.peer, outside.hostIPv6);
  // The subnet itself is not masqueraded.
  assertEquals((await request(a, "10.22.0.3", 8001, { timeout: 3000 }))?.peer, "10.22.0.2");
  assertEquals((await request(a, "fd00:22::3", 8001, { timeout: 3000 }))?.peer, "fd00:22::2");
  await server.close();
  await inside.close();
  for (const one of nets) await one.check();
  await nets[0]?.del();
  await assertNoPing(b, "10.22.0.2");
  await assertPings(b, outside.ipv4);
});

nodeTest("ptp leaves nothing behind after DEL, after the second DEL, and whatever is gone before", {
  needs: [...needs, "nf_tables"],
}, async ({ node }) => {
  for (const ipMasqBackend of ["iptables", "nftables"]) {
    const conf = net({ ipMasqBackend });
    const first = new Attachment(node, conf, await node.container(`w${ipMasqBackend}`));
    await first.add();
    await first.del();
    const before = await snapshot(node);
    const bare = (pod: Namespace) =>
      call(node, { type: "ptp", command: "DEL", netns: null, containerId: pod.name, stdin: conf });
    const ways: [string, (one: Attachment, pod: Namespace) => Promise<unknown>][] = [
      ["with it", (one) => one.del()],
      ["without the namespace", (one) => one.del("cnibox", { withoutNetns: true })],
      ["without anything", (_, pod) => bare(pod)],
      ["namespace gone", async (one, pod) => {
        await node.removeContainer(pod);
        await one.del();
      }],
      ["link gone", async (one, pod) => {
        await pod.ip("link del eth0");
        await one.del();
      }],
      ["addresses flushed", async (one, pod) => {
        await pod.ip("addr flush dev eth0");
        await one.del();
      }],
    ];
    for (const [at, [how, del]] of ways.entries()) {
      const pod = await node.container(`p${at}${ipMasqBackend}`);
      const one = new Attachment(node, conf, pod);
      await one.add();
      await del(one, pod);
      await bare(pod);
      try {
        assertSameState(before, await snapshot(node), stays);
      } catch (error) {
        throw new Error(`${ipMasqBackend}, ${how}: ${(error as Error).message}`);
      }
    }
  }
});

nodeTest("ptp DEL removes what the reference added when the namespace is not named", {
  needs: [...needs, "reference"],
}, async ({ node }) => {
  const one = new Attachment(node, net({ cniVersion: "1.0.0" }), await node.container("a"));
  const before = await snapshot(node);
  await one.add("ref");
  await one.del("cnibox", { withoutNetns: true });
  assertSameState(before, await snapshot(node), stays);
});

namesakeTest("ptp", { needs, net: net() });

nodeTest("ptp ADD and DEL in the host's own namespace touch no link", { needs }, async ({ node }) => {
  await node.ip("link add eth0 type veth peer name eth1");
  const before = await snapshot(node);
  const own = { type: "ptp", netns: "/proc/1/ns/net", containerId: "a", stdin: net() };
  for (const command of ["ADD", "DEL", "CHECK"]) assertEquals((await failure(node, { ...own, command })).code, 8);
  assertSameState(before, await snapshot(node), stays);
});

const inside = async (pod: Namespace) => ({
  v4: (await pod.run("ip", "-4", "route")).trim().split("\n").map((line) => line.trim()),
  v6: (await pod.run("ip", "-6", "route", "show", "root", "2000::/3")).trim().split("\n").map((line) => line.trim()),
});

nodeTest(
  "ptp takes /31, /32 and /128 addresses, two of a subnet, and a route to the own subnet",
  { needs: ["veth"] },
  async ({ node }) => {
    const pod = await node.container("a");
    const ipam = fixed([
      "10.6.0.2/32 10.6.0.1",
      "10.7.0.2/24 10.7.0.1",
      "10.7.0.3/24 10.7.0.1",
      "10.8.0.1/31 10.8.0.0",
      "fd07::2/128 fe80::1",
    ], [{ dst: "0.0.0.0/0" }, { dst: "10.7.0.0/24" }, { dst: "0.0.0.0/0" }, { dst: "2001:db8::/32" }]);
    const one = new Attachment(node, net({ ipMasq: false, ipam }), pod);
    await one.add();
    assertEquals(await inside(pod), {
      v4: [
        "default via 10.6.0.1 dev eth0",
        "10.6.0.1 dev eth0 scope link src 10.6.0.2",
        "10.7.0.0/24 via 10.7.0.1 dev eth0 src 10.7.0.2",
        "10.7.0.1 dev eth0 scope link src 10.7.0.2",
        "10.8.0.0 dev eth0 scope link src 10.8.0.1",
        "10.8.0.0/31 via 10.8.0.0 dev eth0 src 10.8.0.1",
      ],
      v6: ["2001:db8::/32 via fe80::1 dev eth0 metric 1024 pref medium"],
    });
    for (const address of ["10.6.0.2", "10.7.0.2", "10.7.0.3", "10.8.0.1", "fd07::2"]) await assertPings(node, address);
    for (const gateway of ["10.6.0.1", "10.7.0.1", "10.8.0.0"]) await assertPings(pod, gateway);
    await one.check();
    await one.del();
  },
);

nodeTest(
  "ptp replaces the host's stale route to an address that a container gets",
  { needs: ["veth"] },
  async ({ node }) => {
    await node.ip(
      "link add old type veth peer name older",
      "link set old up",
      "link set older up",
      "route add 10.22.0.2/32 dev old scope host",
    );
    const pod = await node.container("a");
    await new Attachment(node, net({ ipMasq: false, ipam: single }), pod).add();
    assertMatch(await node.run("ip", "route", "show", "10.22.0.2"), /dev veth[0-9a-f]{8} scope host/);
    await assertPings(node, "10.22.0.2");
  },
);

nodeTest("ptp ADD that fails leaves nothing behind and says why", { needs }, async ({ node }) => {
  await badIpam(node);
  const pod = await node.container("a");
  await pod.ip(
    "link add taken type veth peer name taken1",
    "link add eth9 type veth peer name eth8",
    "link set eth9 up",
    "route add 10.97.0.1/32 dev eth9",
  );
  await call(node, { type: "host-local", command: "ADD", containerId: "x", netns: pod, stdin: net() });
  const [host, container] = [await snapshot(node), await snapshot(pod)];
  const cases: [string, Json, RegExp, Partial<Parameters<typeof runPlugin>[1]>?][] = [
    ["no IPAM", { ipam: undefined }, /^no plugin name provided$/],
    ["unknown IPAM", { ipam: { type: "nope" } }, /^failed to find plugin "nope" in path \[\/opt\/cni\/bin\]$/],
    ["failing IPAM", { ipam: { type: "failing" } }, /^no lease$/],
    ["empty IPAM", { ipam: { type: "empty" } }, /^IPAM plugin returned missing IP config$/],
    ["no gateway", { ipam: fixed(["10.9.0.2/24"]) }, /^failed to add route: no gateway for 10\.9\.0\.2\/24$/],
    ["backend", { ipMasqBackend: "x" }, /^unknown ipmasq backend "x"$/],
    ["mtu 67", { mtu: 67 }, /^failed to make veth pair: invalid argument$/],
    ["mtu 65536", { mtu: 65536 }, /^failed to make veth pair: invalid argument$/],
    [
      "mtu text",
      { mtu: "1400" },
      /^failed to load netconf: json: cannot unmarshal string into Go struct field NetConf\.mtu of type int$/,
    ],
    [
      "mtu 1279 with IPv6",
      { mtu: 1279 },
      /^failed to enable keep_addr_on_down for interface "eth0": open .*keep_addr_on_down: no such file/,
    ],
    ["name taken", {}, /^container veth name \("taken"\) peer provided \("veth[0-9a-f]{8}"\) already exists$/, {
      ifName: "taken",
    }],
    [
      "route",
      { ipam: { ...dual, routes: [{ dst: "10.99.0.0/24", gw: "10.98.0.1" }] } },
      /^failed to add route '\{10\.99\.0\.0 ffffff00\} via 10\.98\.0\.1 dev eth0 metric 0 \(Scope: universe, Table: 0\)': network is unreachable$/,
    ],
    [
      "gateway of another link",
      { ipam: fixed(["10.97.0.2/24 10.97.0.1"]) },
      /^failed to add route \{Dst: 10\.97\.0\.1\/32 Src: 10\.97\.0\.2 Gw: <nil>\}: file exists$/,
    ],
  ];
  for (const [what, more, msg, how = {}] of cases) {
    const error = await failure(node, { type: "ptp", command: "ADD", netns: pod, stdin: net(more), ...how });
    assertMatch(error.msg, msg, what);
    if (what === "failing IPAM") assertEquals([error.code, error.details], [11, "try later"]);
    try {
      assertSameState(host, await snapshot(node), stays);
      assertSameState(container, await snapshot(pod), { allow: [/^ipv6\/conf\/(lo|all|default)/] });
    } catch (error) {
      throw new Error(`${what}: ${(error as Error).message}`);
    }
  }
});

nodeTest("ptp sets the MTU on both ends", { needs: ["veth"] }, async ({ node }) => {
  for (const [mtu, actual] of [[1400, 1400], [68, 68], [65535, 65535], [0, 1500], [-5, 1500]]) {
    const pod = await node.container();
    const one = new Attachment(node, net({ mtu, ipMasq: false, ipam: single }), pod);
    const { interfaces } = await one.add();
    assertEquals((await pod.ipJson("link", "show", "eth0"))[0].mtu, actual);
    assertEquals((await node.ipJson("link", "show", interfaces[0].name))[0].mtu, actual);
    await one.del();
  }
});

for (const cniVersion of versions) {
  nodeTest(`ptp answers in the layout of ${cniVersion}`, { needs: ["veth"] }, async ({ node }) => {
    const pod = await node.container("a");
    const one = new Attachment(node, net({ cniVersion, ipMasq: false, ipam: fixed(["10.1.0.2/24 10.1.0.1"]) }), pod);
    const result = await one.add();
    const mac = (await pod.ipJson("link", "show", "eth0"))[0].address;
    if (cniVersion < "0.3.0") {
      assertEquals(result, { cniVersion, ip4: { ip: "10.1.0.2/24", gateway: "10.1.0.1" }, dns: {} });
    } else {
      assertEquals(result.interfaces[1], { name: "eth0", mac, sandbox: "/run/netns/a" });
      const host = result.interfaces[0];
      assertEquals((await node.ipJson("link", "show", host.name))[0].address, host.mac);
      assertEquals(Object.keys(host).sort(), ["mac", "name"]);
      assertEquals(result.ips.map(({ version: _, ...ip }: Json) => ip), [{
        interface: 1,
        address: "10.1.0.2/24",
        gateway: "10.1.0.1",
      }]);
    }
    await one.del();
  });
}

nodeTest(
  "ptp: any member of dns replaces what the IPAM plugin says about it",
  { needs: ["veth"] },
  async ({ node }) => {
    const ipam = { ...fixed(["10.1.0.2/24 10.1.0.1"]), dns: { nameservers: ["10.1.0.53"], domain: "a.example" } };
    const cases: [Json, Json][] = [
      [undefined, ipam.dns],
      [{}, ipam.dns],
      [{ domain: "" }, ipam.dns],
      [{ nameservers: [] }, undefined],
      [{ domain: "b.example" }, { domain: "b.example" }],
    ];
    for (const [dns, expected] of cases) {
      const one = new Attachment(node, net({ dns, ipMasq: false, ipam }), await node.container());
      assertEquals((await one.add()).dns, expected, JSON.stringify(dns));
      await one.del();
    }
  },
);

nodeTest("ptp CHECK notices what is missing or changed, and nothing right after ADD", { needs }, async ({ node }) => {
  const damage: [string, (pod: Namespace, veth: string) => Promise<unknown>, RegExp][] = [
    [
      "link",
      (pod) => pod.ip("link del eth0"),
      /ptp: (Container Interface name in prevResult: eth0 not found|host has no route)/,
    ],
    [
      "kind",
      (pod) =>
        pod.ip(
          "link set eth0 down",
          "link set eth0 name gone",
          "link add eth0 type veth peer name x",
          "link del eth0",
          "link add eth0 type bridge",
        ),
      /Error: Container interface eth0 not of type veth\/p2p/,
    ],
    [
      "MAC",
      (pod) => pod.ip("link set eth0 address 02:00:00:00:00:99"),
      /ptp: Interface eth0 Mac .* doesn't match container Mac: 02:00:00:00:00:99/,
    ],
    [
      "address",
      (pod) => pod.ip("addr del 10.22.0.2/24 dev eth0"),
      /Failed to match addr 10\.22\.0\.2\/24 on interface eth0/,
    ],
    [
      "route",
      (pod) => pod.ip("route del default"),
      /Expected Route \{Dst:\{IP:0\.0\.0\.0 Mask:0+\} GW:<nil>.*not found in routing table/,
    ],
    ["subnet", (pod) => pod.ip("route del 10.22.0.0/24"), /Failed to find Gateway 10\.22\.0\.1 for interface eth0/],
    ["host's route", () => node.ip("route del 10.22.0.2"), /ptp: host has no route to 10\.22\.0\.2 through veth/],
    ["rules", () => node.run("iptables", "-t", "nat", "-F"), /./],
  ];
  for (const [what, change, msg] of damage) {
    const pod = await node.container();
    const one = new Attachment(node, net({ name: `n${what.length}` }), pod);
    const result = await one.add();
    await one.check();
    await change(pod, result.interfaces[0].name);
    const error = await assertRejects(() => one.check(), PluginFailed, undefined, what);
    assertMatch(error.error.msg, msg, what);
    await one.del();
    await node.removeContainer(pod);
  }
  const error = await failure(node, {
    type: "ptp",
    command: "CHECK",
    netns: await node.container(),
    stdin: net({ ipam: fixed(["10.1.0.2/24 10.1.0.1"]) }),
  });
  assertMatch(error.msg, /^(ptp: )?Required prevResult missing$/);
});

nodeTest("ptp STATUS asks the IPAM plugin, GC removes what nobody lists", { needs }, async ({ node }) => {
  const [a, b] = [await node.container("a"), await node.container("b")];
  const first = new Attachment(node, net(), a);
  await first.add();
  const between = await snapshot(node);
  await new Attachment(node, net(), b).add();
  await call(node, { type: "ptp", command: "STATUS", stdin: net() });
  assertEquals(
    (await failure(node, { type: "ptp", command: "STATUS", stdin: net({ ipam: undefined }) })).msg,
    "no plugin name provided",
  );
  const gc = (valid: Json) =>
    call(node, { type: "ptp", command: "GC", stdin: net({ "cni.dev/valid-attachments": valid }) });
  const valid = [{ containerID: "a", ifname: "eth0" }, { containerID: "b", ifname: "eth0" }];
  await gc(valid);
  await assertPings(node, "10.22.0.3");
  await gc(valid.slice(0, 1));
  assertSameState(between, await snapshot(node), stays);
  await first.check();
});

nodeTest(
  "ptp starts few processes, and opens nothing that others may write",
  { needs: [...needs, "tool:strace"] },
  async ({ node }) => {
    const pod = await node.container("a");
    const request = { type: "ptp", netns: pod, stdin: net() };
    const add = await tracePlugin(node, { ...request, command: "ADD" });
    assertEquals(add.output.code, 0, add.output.stdout);
    assertEquals(temporaryFiles(add), []);
    // The pair; the container's side; the rules of each family.
    assert(add.children <= 4, `ADD started ${childPrograms(add)}`);
    const del = await tracePlugin(node, {
      ...request,
      command: "DEL",
      stdin: { ...net(), prevResult: add.output.json },
    });
    assertEquals(del.output.code, 0, del.output.stdout);
    assert(del.children <= 3, `DEL started ${childPrograms(del)}`);
  },
);

nodeTest("ptp leaves the same state as the reference", { needs: [...needs, "reference"] }, async ({ node }) => {
  const ipam = fixed(["10.1.0.2/24 10.1.0.1", "fd01::2/64 fd01::1"], [{ dst: "0.0.0.0/0" }, { dst: "::/0" }, {
    dst: "10.9.0.0/16",
  }]);
  // The reference gives the host's end no queue, and draws what we compute.
  assertEquals(await besideReference(node, net({ cniVersion: "1.0.0", ipam, mtu: 1400 })), []);
});

interopTest("ptp, both families, masqueraded", { needs }, async ({ adder, checker, deleter }, node) => {
  const before = await snapshot(node);
  const pod = await node.container("a");
  const one = new Attachment(node, net({ cniVersion: "1.0.0" }), pod);
  await one.add(adder);
  await assertPings(pod, "10.22.0.1");
  await one.check(checker);
  await one.del(deleter);
  assertSameState(before, await snapshot(node), stays);
  assertStringIncludes(JSON.stringify(await pod.ipJson("link")), '"lo"');
});
