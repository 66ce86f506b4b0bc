/** Links on a real kernel: which one is whose, and that nobody else's is touched. */
import { assertEquals, assertNotEquals, assertStringIncludes } from "@std/assert";
import { portAlias } from "../../lib/link/host_end.ts";
import { vethName } from "../../lib/net/name.ts";
import { fixed, single } from "./support/main_plugin.ts";
import {
  assertPings,
  assertSameState,
  Attachment,
  type By,
  call,
  hostLocalLeftovers,
  type Json,
  type Namespace,
  type Need,
  type Node,
  nodeTest,
  runPlugin,
  snapshot,
} from "./support/mod.ts";

const needs: Need[] = ["bridge", "veth"];
/** Two containers whose host ends have the same first name: found by trying 118,000 IDs. */
const ALIKE = ["c53462", "c118137"] as const;
const owner = (containerId: string) => ({ network: "net1", containerId, ifName: "eth0" });

const confs: Record<string, Json> = {
  bridge: { type: "bridge", bridge: "br1", isGateway: true },
  ptp: { type: "ptp" },
};
const net = (type: string, more: Json = {}): Json => ({
  cniVersion: "1.1.0",
  name: "net1",
  ipam: single,
  ...confs[type],
  ...more,
});

/** Aliases of the host's veths by name. */
async function veths(node: Namespace): Promise<Record<string, string>> {
  const links: Json[] = await node.ipJson("link", "show", "type", "veth");
  return Object.fromEntries(links.map(({ ifname, ifalias = "" }) => [ifname, ifalias]));
}

const gc = (node: Node, conf: Json, valid: string[], rest: { wrap?: string[] } = {}) =>
  call(node, {
    type: conf.type,
    command: "GC",
    containerId: null,
    netns: null,
    ifName: null,
    stdin: { ...conf, "cni.dev/valid-attachments": valid.map((containerID) => ({ containerID, ifname: "eth0" })) },
    ...rest,
  });

Deno.test("the two IDs of these tests collide", () => {
  assertEquals(vethName(owner(ALIKE[0])), vethName(owner(ALIKE[1])));
  assertNotEquals(vethName(owner(ALIKE[0]), 1), vethName(owner(ALIKE[1]), 1));
});

for (const type of ["bridge", "ptp"]) {
  nodeTest(`${type}: containers whose computed names are the same have a link each`, { needs }, async ({ node }) => {
    const conf = net(type);
    const pods = [await node.container(ALIKE[0]), await node.container(ALIKE[1])] as const;
    const [first, second] = [new Attachment(node, conf, pods[0]), new Attachment(node, conf, pods[1])];
    const del = (id: string, netns: Namespace | null) =>
      call(node, { type, command: "DEL", containerId: id, netns, stdin: conf });
    const aliases = { [vethName(owner(ALIKE[0]))]: portAlias(owner(ALIKE[0])) };
    await first.add();
    assertEquals(await veths(node), aliases);
    // The second one has no link yet: what bears its name is the first one's.
    await del(ALIKE[1], null);
    await del(ALIKE[1], pods[1]);
    assertEquals(await veths(node), aliases);

    const result = await second.add();
    assertEquals(await veths(node), {
      ...aliases,
      [vethName(owner(ALIKE[1]), 1)]: portAlias(owner(ALIKE[1])),
    });
    assertEquals(result.interfaces.at(-2).name, vethName(owner(ALIKE[1]), 1));
    for (const one of [first, second]) await one.check();
    await assertPings(pods[1], first.result.ips[0].address.split("/")[0]);

    // Without namespace and result, as after a crash.
    await del(ALIKE[1], null);
    assertEquals(await veths(node), aliases);
    await second.add();
    await gc(node, conf, [ALIKE[0]]);
    assertEquals(await veths(node), aliases);

    await second.add();
    await first.del();
    assertEquals(await veths(node), { [vethName(owner(ALIKE[1]), 1)]: portAlias(owner(ALIKE[1])) });
    await del(ALIKE[0], null);
    await second.check();
    await second.del();
    assertEquals(await veths(node), {});
  });

  nodeTest(`${type}: a link whose ADD was killed before it had an alias goes with DEL and GC, a stranger's stays`, {
    needs: [...needs, "reference"],
  }, async ({ node }) => {
    const conf = net(type);
    const names = ["killed", "alive", "ref"];
    const pods = new Map<string, Namespace>();
    for (const name of names) pods.set(name, await node.container(name));
    for (const name of names) {
      await new Attachment(node, conf, pods.get(name)!).add(name === "ref" ? "ref" : "cnibox");
    }
    const before = await veths(node);
    const nameOf = (id: string) => vethName(owner(id));
    const reference = Object.keys(before).find((name) => before[name] === "")!;
    // What an ADD leaves that is killed between the two lines that make a link and name its owner.
    for (const id of ["killed", "alive"]) await node.run("ip", "link", "set", nameOf(id), "nomaster", "alias", "");
    // Of another network with the same name pattern, and nobody's at all.
    await node.ip("link add veth01234567 address 02:00:00:00:00:01 type veth peer name veth89abcdef");
    const strangers = [reference, "veth01234567", "veth89abcdef"];
    await gc(node, net(type, { name: "net2" }), []);
    assertEquals(Object.keys(await veths(node)).sort(), [nameOf("killed"), nameOf("alive"), ...strangers].sort());
    await gc(node, conf, ["alive"]);
    assertEquals(Object.keys(await veths(node)).sort(), [nameOf("alive"), ...strangers].sort());
    await call(node, { type, command: "DEL", containerId: "alive", netns: null, stdin: conf });
    assertEquals(Object.keys(await veths(node)).sort(), strangers.sort());
  });

  nodeTest(`${type}: in a namespace whose /sys is another's, links are those of the namespace`, {
    needs: [...needs, "nf_tables", "iptables"],
  }, async ({ node }) => {
    const conf = net(type, type === "bridge" ? { macspoofchk: true } : {});
    const nested = await node.container("nested");
    const wrap = ["nsenter", `--net=${nested.netns}`, "--"];
    const pods = [await node.container("a"), await node.container("b")];
    const before = [await snapshot(nested), await snapshot(node)];
    const ask = (command: string, pod: Namespace, more: Json = {}) =>
      call(node, { type, command, netns: pod, stdin: { ...conf, ...more }, wrap });
    const results = [];
    for (const pod of pods) results.push(await ask("ADD", pod));
    const rules = async () => type === "bridge" ? await nested.run("nft", "list", "table", "bridge", "nat") : "";
    const [all, now] = [await veths(nested), await rules()];
    assertEquals(Object.keys(all).length, 2);
    // The outer namespace, which /sys shows, has none of these links.
    await gc(node, { ...conf, name: "net2" }, [], { wrap });
    assertEquals([await veths(nested), await rules()], [all, now]);
    for (const [index, pod] of pods.entries()) {
      // The container's namespace is not named: DEL has only the host's end to go by.
      await call(node, {
        type,
        command: "DEL",
        containerId: pod.name,
        netns: index === 0 ? null : pod,
        stdin: { ...conf, prevResult: results[index] },
        wrap,
      });
    }
    assertEquals(await veths(nested), {});
    assertSameState(before[1]!, await snapshot(node), { allow: [hostLocalLeftovers] });
    assertSameState(before[0]!, await snapshot(nested), {
      allow: [hostLocalLeftovers, /br1|forward|PREROUTING|"family":"bridge","name":"nat"/],
    });
  });
}

nodeTest("bridge: a bridge that was there keeps its own MAC from its first gateway on, as the reference has it", {
  needs: [...needs, "reference"],
}, async ({ node }) => {
  const mac = async (name: string) => (await node.ipJson("link", "show", "dev", name))[0].address;
  for (const by of ["ref", "cnibox"] as const) {
    const bridge = `br${by}`;
    await node.ip(`link add ${bridge} type bridge`);
    const own = await mac(bridge);
    const conf = net("bridge", {
      name: by,
      bridge,
      ipam: { type: "host-local", ranges: [[{ subnet: by === "ref" ? "10.31.0.0/24" : "10.32.0.0/24" }]] },
    });
    const ones = [];
    for (const name of ["a", "b"]) {
      const one = new Attachment(node, conf, await node.container(`${by}${name}`));
      const { interfaces } = await one.add(by);
      assertEquals([interfaces[0].mac, await mac(bridge)], [own, own], by);
      assertNotEquals(interfaces[1].mac, own);
      ones.push(one);
    }
    await ones[0]!.check(by);
    for (const one of ones) {
      await one.del(by);
      assertEquals(await mac(bridge), own, by);
    }
  }
});

nodeTest("firewall: GC in a namespace whose /sys is another's keeps the isolation rules of its bridges", {
  needs: [...needs, "iptables", "ip6tables"],
}, async ({ node }) => {
  const nested = await node.container("nested");
  const wrap = ["nsenter", `--net=${nested.netns}`, "--"];
  const pod = await node.container("a");
  const stdin = { cniVersion: "1.1.0", name: "net1", type: "firewall", ingressPolicy: "same-bridge" };
  const prevResult = await call(node, { type: "bridge", command: "ADD", netns: pod, stdin: net("bridge"), wrap });
  await call(node, { type: "firewall", command: "ADD", netns: pod, stdin: { ...stdin, prevResult }, wrap });
  const rules = async () => (await nested.run("iptables-save", "-t", "filter")).match(/^-A CNI-ISOLATION.*br1.*$/gm);
  const before = await rules();
  assertEquals(before?.length, 2);
  await gc(node, { ...stdin, name: "net2" }, [], { wrap });
  assertEquals(await rules(), before);
});

/**
 * Everything but a zero that an alias may hold and that JSON, a terminal or a shell reads in its own way; not UTF-8 at
 * its end.
 */
const HOSTILE = String
  .raw`$'\x01\x02\x03\x04\x05\x06\x07\b\t\n\v\f\r\x0e\x0f\x10\x1b[2J\x1f\x7f"\'"}],[{\\" # $x\xc3\x28\xff'`;
/** A name may hold all of these but blanks, a slash and a colon. */
const HOSTILE_NAME = String.raw`$'\x01\x07\x1b[m"\\},{\xff'`;

/** What a container may do to its links, as root in its namespace. */
async function deface(pod: Namespace, links: string[]): Promise<void> {
  const { netns = "" } = pod;
  const lines = [
    `ip link add name ${HOSTILE_NAME} type veth peer name other`,
    ...[...links, "other"].map((name) => `ip link set dev ${name} alias ${HOSTILE}`),
  ];
  // bash alone reads such characters by number.
  await pod.node.run("nsenter", `--net=${netns}`, "--", "bash", "-ec", lines.join("\n"));
}

nodeTest("whatever a container calls its links: CHECK answers and DEL leaves nothing, as with the reference", {
  needs: [...needs, "reference", "tool:bash"],
}, async ({ node }) => {
  for (const by of ["ref", "cnibox"] as By[]) {
    for (const type of ["bridge", "ptp"]) {
      const pod = await node.container(`${by}${type}`);
      const one = new Attachment(node, net(type), pod);
      await one.add(by);
      await deface(pod, ["eth0"]);
      await one.check(by);
      await one.del(by);
      assertEquals((await pod.run("ip", "-o", "link")).includes("eth0"), false, `${by} ${type}`);
    }
    await node.ip("link add dev0 address 02:00:00:00:00:d0 type veth peer name dev1");
    const pod = await node.container(`${by}device`);
    const conf = net("host-device", { type: "host-device", device: "dev0", ipam: fixed(["10.9.0.2/24"]) });
    const one = new Attachment(node, conf, pod);
    await one.add(by);
    await deface(pod, ["lo"]);
    await one.check(by);
    await one.del(by);
    const { stdout } = await node.exec(["ip", "-j", "link", "show", "dev", "dev0"]);
    assertEquals(JSON.parse(stdout)[0].ifname, "dev0", by);
    await node.ip("link del dev0");
  }
});

nodeTest("host-device returns a device whose alias the container made unreadable", {
  needs: [...needs, "tool:bash"],
}, async ({ node }) => {
  await node.ip("link add dev0 type veth peer name dev1");
  const pod = await node.container("a");
  const one = new Attachment(node, net("", { type: "host-device", device: "dev0", ipam: fixed(["10.9.0.2/24"]) }), pod);
  await one.add();
  await deface(pod, ["eth0"]);
  await one.del();
  assertEquals((await node.ipJson("link", "show", "dev", "dev0"))[0].ifalias, undefined);
});

nodeTest("sbr works beside unreadable links, and with a lock that the container holds on its namespace", {
  needs: [...needs, "tool:bash", "tool:flock"],
}, async ({ node }) => {
  const pod = await node.container("a");
  await pod.ip(
    "link set lo up",
    "link add eth0 type veth peer name p",
    "link set eth0 up",
    "link set p up",
    "addr add 10.4.0.2/24 dev eth0",
  );
  await deface(pod, ["eth0"]);
  const holder = await pod.spawn(["flock", "-F", "/proc/self/ns/net", "sh", "-c", "echo held; exec sleep infinity"]);
  try {
    await holder.until(/held/);
    const prevResult = { cniVersion: "1.1.0", ips: [{ address: "10.4.0.2/24", gateway: "10.4.0.1" }] };
    const stdin = { cniVersion: "1.1.0", name: "net1", prevResult };
    const rules = async () =>
      (await pod.run("ip", "rule")).split("\n").filter((line) => line.includes("10.4.0.2")).length;
    for (const [command, left] of [["ADD", 1], ["CHECK", 1], ["DEL", 0]] as const) {
      const { code, stdout, stderr } = await runPlugin(node, { type: "sbr", command, netns: pod, stdin });
      assertEquals([code, await rules()], [0, left], stdout);
      if (command !== "CHECK") {
        assertStringIncludes(stderr, "is locked, not by cnibox, for 2 s: going on (held by process");
      }
    }
  } finally {
    await holder.close();
  }
});

nodeTest("a full range takes back dead addresses beside a container with unreadable links", {
  needs: [...needs, "tool:bash"],
}, async ({ node }) => {
  const ask = (command: string, containerId: string) =>
    runPlugin(node, {
      type: "host-local",
      command,
      containerId,
      netns: "/none",
      stdin: {
        cniVersion: "1.1.0",
        name: "net1",
        ipam: { type: "host-local", ranges: [[{ subnet: "10.1.0.0/30" }]] },
      },
    });
  assertEquals((await ask("ADD", "dead")).json.ips[0].address, "10.1.0.2/30");
  await node.sh("touch -d 2001-02-03 /var/lib/cni/networks/net1/10.*");
  const pod = await node.container("hostile");
  await deface(pod, ["lo"]);
  await node.processIn(pod);
  const output = await ask("ADD", "new");
  assertEquals([output.code, output.json.ips?.[0].address], [0, "10.1.0.2/30"], output.stdout);
});
