/**
 * tap on a real kernel: frames to and from a program, whose the device is, the container's bridge, and the common
 * promises.
 */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { linkPluginTests } from "./support/link_plugin.ts";
import { failure, fixed, single } from "./support/main_plugin.ts";
import {
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

const needs: Need[] = ["tun"];

linkPluginTests({
  type: "tap",
  needs,
  keys: {},
  children: [2, 2],
  // The reference announces IPv4 addresses only.
  better: [/conf\/eth0\/ndisc_notify/],
  taken: /^failed to rename tap to "taken": file exists$/,
});

const net = (more: Json = {}): Json => ({ cniVersion: "1.1.0", name: "net1", type: "tap", ...more });
const asked = (
  command: string,
  netns: PluginCall["netns"],
  more: Json,
  rest: Partial<PluginCall> = {},
): PluginCall => ({
  type: "tap",
  command,
  netns: netns ?? null,
  stdin: net(more),
  ...rest,
});

nodeTest("tap carries frames to and from a program that opens the device", {
  needs: [...needs, "veth", "tool:socat"],
}, async ({ node }) => {
  const pod = await node.container("a");
  const one = new Attachment(node, net({ ipam: fixed(["10.1.0.2/24"]), mac: "02:00:00:00:00:0a" }), pod);
  await one.add();
  // The program hands every frame to another tap device, in a namespace that plays the virtual machine.
  const guest = await node.container("guest");
  await guest.ip("tuntap add mode tap name inside", "addr add 10.1.0.3/24 dev inside", "link set inside up");
  const program = (
    name: string,
    socket: string,
  ) => ["socat", "-d", "-d", "-b", "65536", `TUN,tun-type=tap,tun-name=${name},iff-no-pi`, socket];
  // Packets in order, with their borders kept (SOCK_SEQPACKET).
  const there = guest.spawn(program("inside", "UNIX-LISTEN:/run/frames,type=5"));
  await there.until(/listening on/);
  const here = pod.spawn(program("eth0", "UNIX-CONNECT:/run/frames,type=5"));
  for (const one of [here, there]) await one.until(/starting data transfer loop/);
  await assertPings(pod, "10.1.0.3");
  await assertPings(guest, "10.1.0.2");
  assertEquals((await guest.ipJson("neigh", "show", "10.1.0.2"))[0].lladdr, "02:00:00:00:00:0a");
  await one.check();
  // DEL removes the device while the program has it open.
  await one.del();
  assertEquals((await pod.ipJson("link")).length, 1);
});

nodeTest(
  "tap belongs to owner and group; others may not open it",
  { needs: [...needs, "tool:socat"] },
  async ({ node }) => {
    const cases: [Json, { user?: string; group?: string }, boolean][] = [
      [{}, {}, false],
      [{ owner: 1234 }, { user: "1234" }, false],
      [{ group: 2345 }, { group: "2345" }, false],
      [{ owner: 1234, group: 2345 }, { user: "1234", group: "2345" }, false],
      [{ owner: 0, group: 0, multiQueue: true }, { user: "root", group: "root" }, true],
      [{ owner: null, group: 2345 }, { group: "2345" }, false],
    ];
    for (const [more, whose, multiQueue] of cases) {
      const pod = await node.container();
      await call(node, asked("ADD", pod, more));
      const [{ linkinfo: { info_kind, info_data } }] = await pod.ipJson("link", "show", "eth0");
      const { type, pi, vnet_hdr, multi_queue, persist, user, group } = info_data;
      assertEquals([info_kind, type, pi, vnet_hdr, multi_queue, persist], [
        "tun",
        "tap",
        false,
        false,
        multiQueue,
        true,
      ]);
      assertEquals({
        ...(user !== undefined && { user: String(user) }),
        ...(group !== undefined && { group: String(group) }),
      }, whose);
    }
    const pod = await node.container();
    await call(node, asked("ADD", pod, { owner: 1234, group: 2345 }));
    // socat attaches to the device, and then wants to set flags too, which takes more than being its owner.
    const open = async (uid: number, gid: number) => {
      const who = ["setpriv", `--reuid=${uid}`, `--regid=${gid}`, "--clear-groups", "--inh-caps=-all"];
      const { stderr } = await pod.exec([...who, "socat", "TUN,tun-type=tap,tun-name=eth0,iff-no-pi", "PIPE"]);
      return stderr.match(/TUNSETIFF|SIOCSIFFLAGS/)?.[0];
    };
    // The machine's own device file stays as it is.
    await node.sh("mknod -m 666 /run/tun c 10 200; mount --bind /run/tun /dev/net/tun");
    assertEquals([await open(1234, 2345), await open(4321, 2345), await open(1234, 5432)], [
      "SIOCSIFFLAGS",
      "TUNSETIFF",
      "TUNSETIFF",
    ]);
  },
);

nodeTest("tap sets MTU and MAC, with owner and group too", { needs }, async ({ node }) => {
  for (const more of [{}, { owner: 1000, group: 1000 }]) {
    const pod = await node.container();
    const result = await call(node, asked("ADD", pod, { ...more, mtu: 1400, mac: "0200.0000.000b" }));
    const [link] = await pod.ipJson("link", "show", "eth0");
    assertEquals([link.mtu, link.address, result.interfaces[0].mac], [1400, "02:00:00:00:00:0b", "02:00:00:00:00:0b"]);
  }
  const pod = await node.container();
  const wins = { mac: "02:00:00:00:00:01", runtimeConfig: { mac: "02:00:00:00:00:03" } };
  const result = await call(node, asked("ADD", pod, wins, { args: "MAC=02:00:00:00:00:02" }));
  assertEquals(result.interfaces[0].mac, "02:00:00:00:00:03");
  // CNI_ARGS count on ADD; nothing in them keeps DEL from its work.
  await call(node, asked("DEL", pod, {}, { args: "nonsense" }));
  assertEquals((await pod.ipJson("link")).length, 1);
});

nodeTest(
  "tap becomes a port of a bridge in the container, and CHECK looks at that",
  { needs: [...needs, "bridge"] },
  async ({ node }) => {
    const pod = await node.container("a");
    await pod.ip("link add br9 type bridge", "link set br9 up", "link add br8 type bridge");
    const one = new Attachment(node, net({ bridge: "br9" }), pod);
    await one.add();
    const [link] = await pod.ipJson("link", "show", "eth0");
    assertEquals([link.master, link.flags.includes("UP")], ["br9", true]);
    await one.check();
    const check = async (more: Json) =>
      (await failure(node, { type: "tap", command: "CHECK", netns: pod, stdin: one.request(net(more), one.result) }))
        .msg;
    assertEquals(await check({ bridge: "br8" }), "tap eth0 is not a port of bridge br8");
    await pod.ip("link set eth0 nomaster", "link set eth0 address 02:00:00:00:00:99");
    assertMatch(
      await check({ bridge: "br9" }),
      /^Interface eth0 Mac .* doesn't match container Mac: 02:00:00:00:00:99$/,
    );
    await pod.ip("link del eth0");
    assertEquals(await check({}), "Cannot find container link eth0");
    await one.del();
  },
);

nodeTest("tap ADD that fails says why and leaves nothing behind", { needs: [...needs, "bridge"] }, async ({ node }) => {
  const pod = await node.container("a");
  await pod.ip("link add br9 type bridge");
  const before = await snapshot(pod);
  const cases: [Json, RegExp][] = [
    [{ mtu: 67 }, /^failed to run command Error: mtu less than device minimum\.\n: exit status 2$/],
    [{ mtu: 65522 }, /^failed to run command Error: mtu greater than device maximum\.\n: exit status 2$/],
    [{ mtu: -10 }, /^failed to run command Error: mtu less than device minimum/],
    [{ bridge: "br8" }, /^failed to get bridge br8: Link not found$/],
    [{ bridge: "if2" }, /^failed to get bridge if2: Link not found$/],
    [{ bridge: "a b" }, /^failed to get bridge a b: Link not found$/],
    [{ bridge: "lo" }, /^failed to set tap eth0 as a port of bridge lo: operation not supported$/],
    [{ selinuxContext: "system_u:system_r:container_t:s0" }, /^failed set socket label: /],
    [{ selinuxContext: "-a b" }, /^failed set socket label: /],
    [
      { owner: "root" },
      /^failed to load netconf: json: cannot unmarshal string into Go struct field NetConf\.owner of type uint32$/,
    ],
    [{ owner: -1 }, /NetConf\.owner of type uint32$/],
    [{ group: 4294967296 }, /NetConf\.group of type uint32$/],
    [{ args: "x" }, /^failed to load netconf: json: cannot unmarshal string/],
    [{ mac: "zz" }, /^invalid args zz for MAC addr: address zz: invalid MAC address$/],
  ];
  for (const [more, msg] of cases) {
    assertMatch((await failure(node, asked("ADD", pod, more))).msg, msg, JSON.stringify(more));
  }
  assertMatch((await failure(node, asked("ADD", pod, {}, { args: "MAC" }))).msg, /^ARGS: invalid pair "MAC"$/);
  assertSameState(before, await snapshot(pod));
  assertEquals((await runPlugin(node, asked("ADD", pod, { args: { cni: {} } }))).code, 0);
});

nodeTest("tap says what is missing when there is no /dev/net/tun", { needs }, async ({ node }) => {
  await node.sh("mkdir /run/nothing; mount --bind /run/nothing /dev/net");
  const error = await failure(node, asked("ADD", await node.container("a"), {}));
  assertMatch(error.msg, /^failed to run command open: No such file or directory/);
  assertStringIncludes(error.details ?? "", "/dev/net/tun");
  const status = await failure(node, { type: "tap", command: "STATUS", stdin: net() });
  assertEquals(status.code, 50);
});

nodeTest("tap with an IPv6 gateway does not wait for addresses that cannot settle", { needs }, async ({ node }) => {
  const pod = await node.container("a");
  const ipam = fixed(["fd01::2/64 fd01::1"], [{ dst: "::/0" }]);
  const one = new Attachment(node, net({ ipam }), pod);
  await one.add();
  assertStringIncludes(await pod.run("ip", "-6", "addr", "show", "dev", "eth0", "tentative"), "fd01::2/64");
  assertStringIncludes(await pod.run("ip", "-6", "route", "show", "default"), "via fd01::1 dev eth0");
  await one.check();
  await one.del();
});

nodeTest("tap on layer 2 only, beside the reference's", { needs: [...needs, "reference"] }, async ({ node }) => {
  for (const by of ["ref", "cnibox"] as const) {
    const pod = await node.container(by);
    const one = new Attachment(node, net({ cniVersion: "1.0.0" }), pod);
    const { ips, interfaces } = await one.add(by);
    assertEquals([ips, interfaces.length], [undefined, 1]);
    for (const checker of ["ref", "cnibox"] as const) await one.check(checker);
    await one.del("cnibox");
    assertEquals((await pod.ipJson("link")).length, 1);
  }
  assertEquals(
    (await failure(node, asked("ADD", await node.container("v2"), { cniVersion: "0.2.0" }))).msg,
    "cannot convert: no valid IP addresses",
  );
  await call(node, asked("STATUS", null, { ipam: single }));
});
