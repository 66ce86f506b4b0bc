/**
 * host-device on a real kernel: there and back, whatever happens between, devices found in every way, beside the
 * reference.
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { badIpam, failure, fixed, namesakeTest, single, versions } from "./support/main_plugin.ts";
import {
  assertPings,
  assertSameState,
  Attachment,
  call,
  childPrograms,
  eventually,
  hostLocalLeftovers,
  interopTest,
  type Json,
  type Namespace,
  type Need,
  type Node,
  nodeTest,
  type PluginCall,
  runPlugin,
  snapshot,
  temporaryFiles,
  tracePlugin,
} from "./support/mod.ts";

const needs: Need[] = ["veth"];
const mac = "02:00:00:00:00:d0";
const net = (more: Json = {}): Json => ({
  cniVersion: "1.1.0",
  name: "net1",
  type: "host-device",
  device: "dev0",
  ...more,
});
const asked = (
  command: string,
  netns: PluginCall["netns"],
  more: Json,
  rest: Partial<PluginCall> = {},
): PluginCall => ({
  type: "host-device",
  command,
  netns: netns ?? null,
  stdin: net(more),
  ...rest,
});

/** A device, dev0, whose other end is in a namespace of its own. */
async function device(node: Node, up = true): Promise<Namespace> {
  const peer = await node.container("peer");
  await node.ip(
    `link add dev0 address ${mac} type veth peer name port netns ${peer.netns}`,
    ...(up ? ["link set dev0 up"] : []),
  );
  await peer.ip("link set port up", "addr add 10.22.0.1/24 dev port");
  return peer;
}

const links = async (of: Namespace) =>
  (await of.ipJson("link")).map((link) => link.ifname).filter((name) => name !== "lo");
const leases = async (node: Node) =>
  (await node.list("/var/lib/cni/networks/net1")).filter((name) => name.startsWith("10."));

nodeTest(
  "host-device moves a device in, with its traffic, and back under its name, down",
  { needs },
  async ({ node }) => {
    const peer = await device(node);
    await node.ip("addr add 10.33.0.1/24 dev dev0");
    const pod = await node.container("a");
    const one = new Attachment(
      node,
      net({ ipam: fixed(["10.22.0.2/24 10.22.0.1"], [{ dst: "0.0.0.0/0" }]), dns: { domain: "a.example" } }),
      pod,
    );
    const result = await one.add();
    assertEquals(result, {
      cniVersion: "1.1.0",
      dns: { domain: "a.example" },
      interfaces: [{ name: "eth0", mac, sandbox: "/run/netns/a" }],
      ips: [{ address: "10.22.0.2/24", gateway: "10.22.0.1", interface: 0 }],
      routes: [{ dst: "0.0.0.0/0" }],
    });
    assertEquals([await links(node), await links(pod)], [[], ["eth0"]]);
    assertEquals((await pod.ipJson("link", "show", "eth0"))[0].ifalias, "dev0");
    await assertPings(pod, "10.22.0.1");
    await assertPings(peer, "10.22.0.2");
    await one.check();
    await one.del();
    const [back] = await node.ipJson("addr", "show", "dev0");
    assertEquals([back.address, back.ifalias, back.flags.includes("UP"), back.addr_info], [mac, undefined, false, []]);
    await one.del();
    assertEquals([await links(node), await links(pod)], [["dev0"], []]);
  },
);

nodeTest("host-device finds its device by name, alternative name and MAC, and says what there is instead", {
  needs: [...needs, "macvlan"],
}, async ({ node }) => {
  await device(node);
  await node.ip(
    "link property add dev dev0 altname the-device-with-a-very-long-name",
    `link add link dev0 name upper address ${mac} type macvlan`,
  );
  const pod = await node.container("a");
  const ways = [{ device: "the-device-with-a-very-long-name" }, { device: undefined, hwaddr: "02-00-00-00-00-D0" }, {
    hwaddr: "02:00:00:00:00:01",
  }];
  for (const more of ways) {
    const one = new Attachment(node, net(more), pod);
    await one.add();
    assertEquals((await pod.ipJson("link", "show", "eth0"))[0].ifalias, "dev0");
    await one.check();
    await one.del();
  }
  const before = await snapshot(node);
  const cases: [Json, string, RegExp][] = [
    [{ device: undefined }, 'specify either "device", "hwaddr", "kernelpath" or "pciBusID"', /./],
    [
      { device: "dve0" },
      "failed to find host device: Link not found",
      /"dve0", which the host does not have; similar: dev0/,
    ],
    [{ device: "if2" }, "failed to find host device: Link not found", /"if2"/],
    [{ device: "a b" }, "failed to find host device: Link not found", /"a b"/],
    [{ device: "lo" }, 'failed to move link failed to move "lo" to tempNS: invalid argument', /cannot leave/],
    [
      { device: "", hwaddr: "zz" },
      'failed to find host device: failed to parse MAC address "zz": address zz: invalid MAC address',
      /./,
    ],
    [{ device: "", hwaddr: "02:00:00:00:00:77" }, "failed to find host device: failed to find physical interface", /./],
    [
      { device: "", kernelpath: "/sys/class/net/dev0" },
      'failed to find host device: kernel device path "/sys/class/net/dev0" must be absolute and begin with /sys/devices/',
      /./,
    ],
    [
      { device: "", kernelpath: "/sys/devices/../class/net/dev0" },
      'failed to find host device: kernel device path "/sys/devices/../class/net/dev0" must be absolute and begin with /sys/devices/',
      /./,
    ],
    [
      { device: "", kernelpath: "/sys/devices/none" },
      'failed to find host device: failed to read directory /sys/devices/none/net: "open /sys/devices/none/net: no such file or directory"',
      /./,
    ],
    [
      { device: "", pciBusID: "0000:99:00.0" },
      "error with host device: lstat /sys/bus/pci/devices/0000:99:00.0/driver: no such file or directory",
      /./,
    ],
    [
      { device: "", runtimeConfig: { deviceID: "../../../x" } },
      "runtime config DeviceID ../../../x not found or unsupported",
      /./,
    ],
  ];
  for (const [more, msg, details] of cases) {
    const error = await failure(node, asked("ADD", pod, more));
    assertEquals(error.msg, msg);
    assertMatch(error.details ?? "", details);
  }
  assertSameState(before, await snapshot(node));
});

nodeTest(
  "host-device finds PCI and auxiliary devices through sysfs, and leaves those of DPDK alone",
  { needs },
  async ({ node }) => {
    await device(node);
    const pod = await node.container("a");
    // A bus as sysfs shows one; representors of the same device come first by name.
    await node.sh(`
    bus=/run/bus; mkdir -p $bus/pci/devices $bus/auxiliary/devices $bus/drivers/virtio_net $bus/drivers/vfio-pci
    for id in 0000:00:1f.6 0000:00:1f.7; do mkdir -p "$bus/pci/devices/$id"; done
    cd $bus/pci/devices/0000:00:1f.6; mkdir -p virtio3/net/aaa0 virtio3/net/dev0; echo pf0vf1 >virtio3/net/aaa0/phys_port_name
    ln -s $bus/drivers/virtio_net driver
    ln -s $bus/drivers/vfio-pci $bus/pci/devices/0000:00:1f.7/driver
    mkdir -p $bus/pci/devices/0000:00:1f.8 $bus/pci/devices/0000:00:1f.9/net; ln -s $bus/drivers/virtio_net $bus/pci/devices/0000:00:1f.9/driver
    mkdir -p $bus/auxiliary/devices/mlx5_core.sf.4/net/dev0
    for link in $bus/pci/devices/0000:00:1f.6/virtio3/net/dev0 $bus/auxiliary/devices/mlx5_core.sf.4/net/dev0; do
      cp /sys/class/net/dev0/ifindex /sys/class/net/dev0/address $link/
    done
    # The link of that name in another network namespace, as a /sys shows it that was mounted there.
    mkdir -p $bus/pci/devices/0000:00:1f.a/net/dev0; ln -s $bus/drivers/virtio_net $bus/pci/devices/0000:00:1f.a/driver
    echo 4711 >$bus/pci/devices/0000:00:1f.a/net/dev0/ifindex; cp /sys/class/net/dev0/address $bus/pci/devices/0000:00:1f.a/net/dev0/
    mount --bind $bus /sys/bus
  `);
    const ways: Json[] = [
      { device: "", pciBusID: "0000:00:1f.6" },
      { device: "", runtimeConfig: { deviceID: "0000:00:1f.6" } },
      { device: "", pciBusID: "0000:00:1f.7", runtimeConfig: { deviceID: "mlx5_core.sf.4" } },
    ];
    for (const more of ways) {
      const one = new Attachment(node, net({ ...more, ipam: fixed(["10.22.0.2/24"]) }), pod);
      await one.add();
      assertEquals([await links(node), await links(pod)], [[], ["eth0"]], JSON.stringify(more));
      await one.check();
      await one.del();
      assertEquals([await links(node), await links(pod)], [["dev0"], []]);
    }
    for (const more of [{ device: "", pciBusID: "0000:00:1f.7" }, { dpdkmode: true }]) {
      const one = new Attachment(node, net({ ...more, ipam: fixed(["10.22.0.2/24"]) }), pod);
      const result = await one.add();
      assertEquals(result.interfaces, [{ name: "eth0", sandbox: "/run/netns/a" }]);
      assertEquals(result.ips, [{ address: "10.22.0.2/24", interface: 0 }]);
      await one.check();
      await one.del();
      assertEquals([await links(node), await links(pod)], [["dev0"], []]);
    }
    for (
      const [id, msg] of [
        ["0000:00:1f.8", "failed to find host device: no net directory under pci device 0000:00:1f.8"],
        [
          "0000:00:1f.9",
          "failed to find host device: failed to find network device in path /sys/bus/pci/devices/0000:00:1f.9/net",
        ],
        [
          "0000:00:1f.a",
          "failed to find host device: failed to find network device in path /sys/bus/pci/devices/0000:00:1f.a/net",
        ],
      ]
    ) assertEquals((await failure(node, asked("ADD", pod, { device: "", pciBusID: id }))).msg, msg);
    await node.ip("link add other type veth peer name other1");
    const { stderr } = await runPlugin(
      node,
      asked("ADD", pod, { device: "other", runtimeConfig: { deviceID: "0000:00:1f.6" } }),
    );
    assertMatch(stderr, /device other is used, not dev0, which runtimeConfig\.deviceID names/);
    // A device that is unplugged keeps nobody from deleting.
    await node.sh("rm -r /sys/bus/pci/devices/*");
    await call(node, asked("DEL", pod, { device: "", runtimeConfig: { deviceID: "0000:00:1f.6" } }));
    assertEquals(await links(pod), []);
  },
);

nodeTest("host-device ADD that fails brings the device back as it was, and releases the address", {
  needs: [...needs, "bridge"],
}, async ({ node }) => {
  await badIpam(node);
  await device(node);
  await node.sh('ip link set dev0 alias "the first one"; ip link add br0 type bridge');
  const pod = await node.container("a");
  const cases: [string, string[], Json, RegExp, string?][] = [
    ["IPAM unknown", [], { ipam: { type: "nope" } }, /^failed to find plugin "nope"/],
    ["IPAM fails", [], { ipam: { type: "failing" } }, /^no lease$/],
    ["IPAM empty", [], { ipam: { type: "empty" } }, /^IPAM plugin returned missing IP config$/],
    [
      "route",
      [],
      { ipam: { ...single, routes: [{ dst: "10.9.0.0/16", gw: "10.8.0.1" }] } },
      /^failed to add route .*network is unreachable$/,
    ],
    [
      "name taken",
      ["link add eth0 type bridge"],
      { ipam: single },
      /^failed to move link failed to move "eth0" \(host: "dev0"\) to container NS: file exists$/,
    ],
    [
      "both names taken",
      ["link add eth0 type bridge", "link add dev0 type bridge"],
      { ipam: single },
      /to container NS: file exists$/,
    ],
    ["0.2.0", [], { cniVersion: "0.2.0" }, /^cannot convert: no valid IP addresses$/],
    [
      "a bridge",
      [],
      { device: "br0", ipam: single },
      /^failed to move link failed to move "br0" to tempNS: invalid argument$/,
    ],
  ];
  for (const [what, prepare, more, msg] of cases) {
    await pod.ip(...prepare);
    const [host, inside] = [await snapshot(node), await snapshot(pod)];
    assertMatch((await failure(node, asked("ADD", pod, more))).msg, msg, what);
    try {
      assertSameState(host, await snapshot(node), { allow: [hostLocalLeftovers] });
      assertSameState(inside, await snapshot(pod));
    } catch (error) {
      throw new Error(`${what}: ${(error as Error).message}`);
    }
    for (const name of await links(pod)) await pod.ip(`link del ${name}`);
  }
  // The host's name may be taken in the container: that is no conflict.
  await pod.ip("link add dev0 type bridge");
  const one = new Attachment(node, net(), pod);
  await one.add();
  await one.check();
  await one.del();
  assertEquals([await links(node), await links(pod)], [["br0", "dev0"], ["dev0"]]);
});

nodeTest("host-device DEL always releases the address, and returns what can be returned", {
  needs: [...needs, "bridge"],
}, async ({ node }) => {
  await device(node);
  const conf = net({ ipam: single });
  const bare = (netns: PluginCall["netns"], containerId = "a") =>
    call(node, asked("DEL", netns, { ipam: single }, { containerId }));
  let pod = await node.container("a");
  const one = new Attachment(node, conf, pod);
  await one.add();
  await bare(null);
  await bare("");
  assertEquals(await leases(node), []);
  await bare(pod);
  assertEquals([await links(node), await links(pod)], [["dev0"], []]);
  // The kernel returned the device when the container went, under the name that it had there, or another.
  for (const name of ["eth0", `dev${(await node.ipJson("link", "show", "dev0"))[0].ifindex}`]) {
    await node.ip(`link set dev0 name ${name} alias dev0`, `link set ${name} up`);
    await bare("/run/netns/gone");
    const [link] = await node.ipJson("link", "show", "dev0");
    assertEquals([link.ifalias, link.flags.includes("UP")], [undefined, false]);
  }
  // What is not surely the device is left alone.
  await node.ip("link set dev0 name eth0 alias other0");
  await bare("/run/netns/gone");
  assertEquals(await links(node), ["eth0"]);
  await node.ip("link set eth0 name dev0");
  // A link that was not moved there.
  pod = await node.container("b");
  await pod.ip("link add eth0 type bridge");
  const { code, stderr } = await runPlugin(node, asked("DEL", pod, { ipam: single }));
  assertEquals([code, await links(pod)], [0, ["eth0"]]);
  assertMatch(stderr, /failed to find original ifname for "eth0" \(alias is not set\)/);
});

nodeTest("host-device DEL keeps the device in the container while the host has another link of its name", {
  needs: [...needs, "bridge"],
}, async ({ node }) => {
  await device(node);
  const pod = await node.container("a");
  const one = new Attachment(node, net({ ipam: single }), pod);
  await one.add();
  await node.ip("link add dev0 type bridge");
  const error = await failure(node, asked("DEL", pod, { ipam: single }));
  assertEquals(error.msg, 'failed to move "dev0" to hostNS: file exists');
  const [link] = await pod.ipJson("link", "show", "eth0");
  assertEquals([link.ifalias, link.flags.includes("UP"), await leases(node)], ["dev0", true, []]);
  await node.ip("link del dev0");
  await one.del();
  assertEquals([await links(node), await links(pod)], [["dev0"], []]);
});

nodeTest(
  "host-device DEL goes on where one was killed that had given a veth its own name again",
  { needs },
  async ({ node }) => {
    await node.ip("link add dev0 type veth peer name far0");
    const pod = await node.container("a");
    const one = new Attachment(node, net(), pod);
    await one.add();
    await pod.ip("link set eth0 down", "link set eth0 name dev0", "link add dev1 type veth peer name dev2");
    await one.del();
    assertEquals([(await links(node)).sort(), (await links(pod)).sort()], [["dev0", "far0"], ["dev1", "dev2"]]);
  },
);

nodeTest("host-device DEL finds a device that the container renamed, or whose alias it changed", {
  needs: [...needs, "dummy"],
}, async ({ node }) => {
  await node.ip("link add dev0 type dummy");
  const pod = await node.container("a");
  const one = new Attachment(node, net(), pod);
  await one.add();
  await pod.ip("link set eth0 down", "link set eth0 name mine");
  await one.del();
  assertEquals([await links(node), await links(pod)], [["dev0"], []]);
  for (const alias of ["../../etc", "a b", ""]) {
    await one.add();
    await pod.run("ip", "link", "set", "eth0", "alias", alias);
    await one.del();
    assertEquals([await links(node), await links(pod)], [["dev0"], []], alias);
  }
});

nodeTest(
  "host-device CHECK notices a device that is gone, changed, or has lost its alias",
  { needs },
  async ({ node }) => {
    await device(node);
    const pod = await node.container("a");
    const conf = net({ ipam: fixed(["10.22.0.2/24"], [{ dst: "10.9.0.0/16" }]) });
    const one = new Attachment(node, conf, pod);
    await one.add();
    await one.check();
    const damage: [string[], RegExp][] = [
      [["route del 10.9.0.0/16"], /^Expected Route/],
      [["addr del 10.22.0.2/24 dev eth0"], /^Failed to match addr 10\.22\.0\.2\/24 on interface eth0$/],
      [['link set eth0 alias ""'], /^failed to find original ifname for "eth0" \(alias is not set\)$/],
      [
        ["link set eth0 address 02:00:00:00:00:99"],
        /^Interface eth0 Mac 02:00:00:00:00:d0 doesn't match container Mac: 02:00:00:00:00:99$/,
      ],
      [["link set eth0 down", "link set eth0 name x"], /^Container Interface name in prevResult: eth0 not found$/],
    ];
    for (const [lines, msg] of damage) {
      await pod.ip(...lines);
      assertMatch((await failure(node, asked("CHECK", pod, one.request(conf, one.result)))).msg, msg);
    }
    assertEquals((await failure(node, asked("CHECK", pod, {}))).msg, "Required prevResult missing");
  },
);

namesakeTest("host-device", { needs, net: net(), prepare: device });

nodeTest("host-device touches no link of the host's own namespace", { needs }, async ({ node }) => {
  await device(node);
  const before = await snapshot(node);
  for (const command of ["ADD", "CHECK", "DEL"]) {
    assertEquals(
      (await failure(node, asked(command, "/proc/1/ns/net", {}, { containerId: "a", ifName: "dev0" }))).code,
      8,
    );
  }
  assertSameState(before, await snapshot(node));
});

nodeTest(
  "host-device: of two ADDs for one device one wins, and the other takes nothing from it",
  { needs },
  async ({ node }) => {
    await device(node);
    const pods = [await node.container("a"), await node.container("b")];
    const answers = await Promise.all(pods.map((pod) => runPlugin(node, asked("ADD", pod, {}))));
    assertEquals(answers.map(({ code }) => code).sort(), [0, 1]);
    const lost = answers.find(({ code }) => code === 1);
    assertMatch(lost?.json.msg, /^failed to find host device: Link not found$/);
    const winner = pods[answers.findIndex(({ code }) => code === 0)];
    assertEquals(winner && await links(winner), ["eth0"]);
  },
);

nodeTest(
  "host-device takes any path and name, and answers in every version of the protocol",
  { needs },
  async ({ node }) => {
    await device(node);
    const pod = await node.container("a");
    await node.sh('touch "$2"; mount --bind "$1" "$2"', pod.netns ?? "", "/run/other file");
    for (const cniVersion of versions) {
      const ipam = fixed(["10.22.0.2/24"]);
      const one = new Attachment(node, net({ cniVersion, ipam }), "/run/other file", { ifName: "net.100" });
      const result = await one.add();
      if (cniVersion < "0.3.0") assertEquals(result, { cniVersion, ip4: { ip: "10.22.0.2/24" }, dns: {} });
      else assertEquals(result.interfaces, [{ name: "net.100", mac, sandbox: "/run/other file" }]);
      if (cniVersion >= "0.4.0") await one.check();
      await one.del();
    }
    assertEquals(await links(node), ["dev0"]);
  },
);

nodeTest("host-device: DELs at once, and a DEL during ADD, end well and leave nothing", { needs }, async ({ node }) => {
  await device(node);
  const pod = await node.container("a");
  const before = await snapshot(node);
  const del = (netns: Namespace | null) =>
    runPlugin(node, { ...asked("DEL", netns, { ipam: { type: "slow" } }), containerId: "a" });
  const home = async (what: string) => {
    assertEquals([await links(node), await links(pod)], [["dev0"], []], what);
    assertSameState(before, await snapshot(node), { allow: [/dev0/, /slow|\/run\//] });
    assertEquals((await node.ipJson("link", "show", "dev0"))[0].ifalias, undefined, what);
  };
  await badIpam(node);
  await node.write(
    "/opt/cni/bin/slow",
    `#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exit 0
: >/run/slow.asked; until [ -e /run/slow.go ]; do sleep 0.02; done
echo '{"cniVersion":"1.1.0","ips":[{"address":"10.22.0.2/24"}]}'
`,
    0o755,
  );
  for (let round = 0; round < 4; round++) {
    await node.sh("rm -f /run/slow.*");
    const add = runPlugin(node, asked("ADD", pod, { ipam: { type: "slow" } }));
    await eventually(
      "the device is in, and ADD still at work",
      async () => (await links(pod)).includes("eth0") && (await node.list("/run")).includes("slow.asked"),
    );
    const dels = [del(pod), del(pod)];
    // Nothing depends on how long: a DEL that starts later only has less to wait for.
    await new Promise((done) => setTimeout(done, 200));
    await node.write("/run/slow.go", "");
    const ends = await Promise.all([add, ...dels]);
    assertEquals(ends.map(({ code }) => code), [0, 0, 0], ends.map(({ stdout }) => stdout).join());
    await home(`DEL during ADD, round ${round}`);
  }
  for (let round = 0; round < 4; round++) {
    await call(node, asked("ADD", pod, { ipam: { type: "slow" } }));
    const ends = await Promise.all([del(pod), del(pod), del(pod)]);
    assertEquals(ends.map(({ code }) => code), [0, 0, 0], ends.map(({ stdout }) => stdout).join());
    await home(`DELs at once, round ${round}`);
  }
});

nodeTest("host-device starts few processes, and opens nothing that others may write", {
  needs: [...needs, "tool:strace"],
}, async ({ node }) => {
  await device(node);
  const pod = await node.container("a");
  const stdin = net({ ipam: single });
  const add = await tracePlugin(node, { type: "host-device", command: "ADD", netns: pod, stdin });
  assertEquals(add.output.code, 0, add.output.stdout);
  assertEquals(temporaryFiles(add), []);
  assert(add.children <= 3, `ADD started ${childPrograms(add)}`);
  const del = await tracePlugin(node, {
    type: "host-device",
    command: "DEL",
    netns: pod,
    stdin: { ...stdin, prevResult: add.output.json },
  });
  assertEquals(del.output.code, 0, del.output.stdout);
  assert(del.children <= 3, `DEL started ${childPrograms(del)}`);
});

nodeTest("host-device forwards STATUS and GC to the IPAM plugin", { needs }, async ({ node }) => {
  await device(node);
  await new Attachment(node, net({ ipam: single }), await node.container("a")).add();
  await call(node, { type: "host-device", command: "STATUS", stdin: net({ ipam: single }) });
  await call(node, {
    type: "host-device",
    command: "GC",
    stdin: net({ ipam: single, "cni.dev/valid-attachments": [] }),
  });
  assertEquals(await leases(node), []);
});

interopTest("host-device", { needs }, async ({ adder, checker, deleter }, node) => {
  await device(node);
  const pod = await node.container("a");
  const one = new Attachment(node, net({ cniVersion: "1.0.0", ipam: single }), pod);
  await one.add(adder);
  await assertPings(pod, "10.22.0.1");
  await one.check(checker);
  await one.del(deleter);
  assertEquals([await links(node), await links(pod), await leases(node)], [["dev0"], [], []]);
  assertStringIncludes(JSON.stringify(await node.ipJson("link", "show", "dev0")), mac);
});
