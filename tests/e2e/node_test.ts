/**
 * Three machines on one switch, an etcd, and `cnibox node` on each: pods reach pods, and what is broken is repaired.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { type EtcdOptions, switchboard, type World } from "./support/world.ts";
import { cnibox, must } from "./support/operator.ts";
import { Namespace, type Node } from "./support/node.ts";
import type { Need } from "./support/needs.ts";
import { Attachment, type Json } from "./support/plugins.ts";
import { firstContainer } from "./support/runtimes.ts";
import { assertSameState, snapshot } from "./support/snapshot.ts";
import { nodeTest, register } from "./support/test.ts";
import { eventually, ping } from "./support/traffic.ts";
import { conflistText, type Shares, subnetEnv } from "../../lib/node/files.ts";
import { parsePrefix } from "../../lib/net/cidr.ts";

const CONF = "/etc/cnibox/node.json";

/** The network's configuration in etcd; both families always. */
const network = (type: string) => ({
  Network: "10.5.0.0/16",
  EnableIPv6: true,
  IPv6Network: "fd05::/48",
  Backend: { Type: type },
});

function worldTest(
  name: string,
  body: (world: World) => Promise<void>,
  { needs = [], ...etcd }: EtcdOptions & { needs?: Need[] } = {},
): void {
  register(name, { needs: ["root", "bridge", "veth", "vxlan", "tool:etcd", "tool:curl", ...needs] }, async () => {
    await using world = await switchboard(3, { etcd });
    await body(world);
  });
}

/** Starts the agent; the way back ends it as a unit does. */
function start(node: Node): { stop: () => Promise<void>; said: () => string } {
  const agent = node.spawn(["/opt/cni/bin/cnibox", "node"]);
  return { stop: () => agent.close(), said: () => agent.stderr };
}

async function configure(world: World, type: string): Promise<void> {
  await world.put("/coreos.com/network/config", JSON.stringify(network(type)));
  for (const node of world.nodes) {
    await node.write(
      CONF,
      JSON.stringify({ store: { etcd: { endpoints: world.endpoints } }, conflist: {}, node: world.nameOf(node) }),
    );
  }
}

async function status(node: Node): Promise<Json> {
  const { stdout } = await cnibox(node, ["node", "status", "--json"]);
  return stdout.startsWith("{") ? JSON.parse(stdout) : undefined;
}

async function problems(node: Node): Promise<string[]> {
  return (await status(node)).problems.map(({ text }: Json) => text);
}

interface Settled {
  /** How many ways lead to each other node. */
  readonly ways?: number;
  readonly nodes?: readonly Node[];
}

/** Waits until each of the nodes knows all others and has a way to them. */
async function settled(world: World, { ways = 2, nodes = world.nodes }: Settled = {}): Promise<void> {
  for (const node of nodes) {
    await eventually(`${world.nameOf(node)} is ready`, async () => {
      const now = await status(node);
      return now?.ready && now.nodes.length === nodes.length - 1 &&
        now.nodes.every((other: Json) => other.ways.length === ways);
    }, 60_000);
  }
}

interface Pod {
  readonly namespace: Namespace;
  readonly addresses: string[];
}

async function pod(node: Node, name: string): Promise<Pod> {
  const { stdout } = await must(node, ["add", "cbr0", name, "--create"]);
  const { ips }: { ips: { address: string }[] } = JSON.parse(stdout);
  const addresses = ips.map(({ address }) => address.split("/")[0] ?? "");
  assertEquals(addresses.length, 2, stdout);
  await node.exec(["ip", "netns", "exec", name, "ip", "link", "set", "lo", "up"]);
  return { namespace: new Namespace(node, name, `/run/netns/${name}`), addresses };
}

async function allReach(pods: readonly Pod[]): Promise<void> {
  for (const from of pods) {
    for (const to of pods) {
      if (from === to) continue;
      for (const address of to.addresses) {
        await eventually(`${from.addresses[0]} reaches ${address}`, () => ping(from.namespace, address), 30_000);
      }
    }
  }
}

for (const type of ["host-gw", "vxlan"]) {
  worldTest(`pods of three machines reach each other over ${type}, and every fault is repaired`, async (world) => {
    await configure(world, type);
    const agents = world.nodes.map(start);
    await settled(world);
    const pods = await Promise.all(world.nodes.map((node) => pod(node, "box")));
    await allReach(pods);
    const [one, two] = world.nodes as [Node, Node];
    const dev = type === "vxlan" ? "flannel.1" : "eth0";
    const ours = async () =>
      (await one.ipJson("route", "show", "proto", "77")).length +
      (await one.ipJson("-6", "route", "show", "proto", "77")).length;
    assertEquals(await ours(), 4);
    await one.run("ip", "route", "add", "10.77.0.0/16", "via", "10.99.0.2", "proto", "static");
    const way = new RegExp(`node2 .*10\\.5\\.\\d+\\.0/24.* via \\S+ dev ${dev.replace(".", "\\.")}`);
    assertMatch((await must(one, ["show"])).stdout, way);
    assertMatch((await must(one, ["graph"])).stdout, way);
    const { json } = await must(one, ["show", "--json"]);
    assertEquals(json.nodes.others.map(({ node }: Json) => node).sort(), ["node2", "node3"]);
    // Flushed table.
    await one.run("ip", "route", "flush", "proto", "77");
    await one.run("ip", "-6", "route", "flush", "proto", "77");
    await eventually("flushed routes are back", async () => await ours() === 4);
    // Flap: the administrator's IPv6 address goes with the link, and comes back with it. The device waits.
    const [{ ifindex }] = await one.ipJson("link", "show", dev) as [Json];
    await one.ip("link set eth0 down");
    await eventually("it says that the link is down", async () => /eth0 .* is down/.test((await problems(one)).join()));
    await one.ip("link set eth0 up", "addr replace fd99::1/64 dev eth0 nodad");
    await one.ip("route replace 10.77.0.0/16 via 10.99.0.2 proto static");
    await eventually("it says no more", async () => (await problems(one)).length === 0);
    assertEquals((await one.ipJson("link", "show", dev))[0].ifindex, ifindex);
    await eventually("the routes are back after a flap", async () => await ours() === 4);
    if (type === "vxlan") {
      const [{ mac, dst }] = JSON.parse(await one.run("bridge", "-j", "fdb", "show", "dev", dev));
      await one.run("bridge", "fdb", "del", mac, "dev", dev, "dst", dst, "self");
      await eventually(
        "the FDB entry is back",
        async () => (await one.run("bridge", "fdb", "show", "dev", dev)).includes(`${mac} dst ${dst} self permanent`),
      );
      await one.run("ip", "neigh", "flush", "dev", dev, "nud", "permanent");
      await one.run("ip", "link", "del", dev);
      await eventually("the device is back", async () => await ours() === 4);
    }
    await allReach(pods);
    // Store away: all stays, and new pods start.
    await world.stopEtcd();
    await allReach([...pods, await pod(one, "late")]);
    await eventually("it says that the store is away", async () => (await status(one)).store.state === "away", 30_000);
    assertEquals((await status(one)).ready, true);
    await world.startEtcd();
    await eventually(
      "it says that the store is back",
      async () => (await status(one)).store.state === "connected",
      60_000,
    );
    // Ended, its neighbour gone meanwhile, started anew.
    await agents[0]!.stop();
    assertEquals(await ours(), 4);
    await agents[1]!.stop();
    assertMatch((await must(two, ["node", "--withdraw"])).stdout, /out of the network/);
    assertEquals(await two.ipJson("route", "show", "proto", "77"), []);
    assertEquals((await two.run("ip", "-br", "link")).includes("flannel"), false);
    const explained = (await must(one, ["node", "--explain"])).stdout;
    assertMatch(explained, /^ip route del 10\.5\.\d+\.0\/24 via \S+ dev \S+ proto 77$/m);
    agents[0] = start(one);
    await eventually("the routes of the node that went are gone", async () => await ours() === 2, 60_000);
    await allReach([pods[0]!, pods[2]!]);
    assert((await one.run("ip", "route", "show", "10.77.0.0/16")).includes("via 10.99.0.2"));
  });
}

worldTest("pods' traffic to the world is masqueraded, and that between nodes is not", async (world) => {
  await configure(world, "host-gw");
  world.nodes.forEach(start);
  await settled(world);
  const [one, two] = world.nodes as [Node, Node];
  const [a, b] = [await pod(one, "box"), await pod(two, "box")];
  // The switch knows no way back to pods: an answer came by the node's own address.
  assert(await ping(a.namespace, "10.99.0.254"));
  const sniffer = b.namespace.spawn(["tcpdump", "-lnni", "eth0", "icmp"]);
  await sniffer.until(/listening on/);
  assert(await ping(a.namespace, b.addresses[0]!));
  await sniffer.until(new RegExp(`IP ${a.addresses[0]!.replaceAll(".", "\\.")} > `));
  await sniffer.close();
});

worldTest(
  "doctor tries the ways to other nodes with packets as large as pods send, and knows when nobody keeps them",
  async (world) => {
    await configure(world, "vxlan");
    const agents = world.nodes.map(start);
    await settled(world);
    const [one] = world.nodes as [Node];
    const said = async () => {
      const { stdout } = await cnibox(one, ["doctor", "--json"]);
      const findings: Json[] = JSON.parse(stdout).findings;
      return findings.filter(({ area }) => area === "nodes").flatMap(({ grade, text, cases = [{ text }] }) =>
        cases.map((one: Json) => `${grade} ${one.text}`)
      );
    };
    await eventually(
      "all ways carry",
      async () => (await said()).join() === "ok 4 ways to 2 other nodes carry 1430 bytes",
      30_000,
    );
    await world.hub.ip("link set p2 mtu 1300");
    const narrow = await said();
    assertEquals(
      narrow.map((text) => text.replace(/10\.5\.\d+\.0|fd05:[0-9a-f:]+/, "ADDRESS")),
      [
        "warning node2: ADDRESS answers, but not to packets of 1430 bytes",
        "warning node2: ADDRESS answers, but not to packets of 1430 bytes",
      ],
    );
    await world.hub.ip("link set p2 down");
    assertEquals((await said()).filter((text) => /^warning node2: \S+ does not answer$/.test(text)).length, 2);
    await agents[0]!.stop();
    assertMatch((await said())[0]!, /^failure cnibox node does not run; it last looked at /);
  },
);

worldTest("two of three etcd members gone, and an agent killed: pods keep talking, new ones start", async (world) => {
  await configure(world, "host-gw");
  world.nodes.forEach(start);
  await settled(world);
  const [one, two] = world.nodes as [Node, Node];
  const pods = [await pod(one, "box"), await pod(two, "box")];
  // One is enough for nobody to notice: the others are asked.
  await world.stopEtcd(1);
  await allReach(pods);
  assertEquals((await cnibox(two, ["node", "status"])).code, 0);
  await world.stopEtcd(2);
  await one.sh("kill -9 $(pidof cnibox)");
  await one.run("ip", "route", "flush", "proto", "77");
  start(one);
  await allReach([...pods, await pod(one, "late")]);
  await eventually("the agent says so", async () => (await status(one))?.store.state === "away", 60_000);
  await world.startEtcd();
  await eventually("the agent is told again", async () => (await status(one)).store.state === "connected", 60_000);
}, { members: 3 });

/** Routing daemons of docs/node.md: their file there, how they start, and what their routes are called. */
const ROUTERS = [
  {
    name: "BIRD",
    need: "tool:bird",
    file: "/etc/bird/bird.conf",
    start: "bird -c /etc/bird/bird.conf -s /run/bird.ctl",
    proto: "bird",
    families: ["-4", "-6"],
  },
  {
    name: "FRR",
    need: "tool:vtysh",
    file: "/etc/frr/frr.conf",
    start: "sed -i s/^ospfd=no/ospfd=yes/ /etc/frr/daemons; /usr/lib/frr/frrinit.sh start",
    proto: "ospf",
    families: ["-4"],
  },
] as const;

for (const { name, need, file, start: command, proto, families } of ROUTERS) {
  worldTest(
    `with backend none ${name} carries the subnets between machines, set up as docs/node.md says`,
    async (world) => {
      await configure(world, "none");
      world.nodes.forEach((node) => start(node));
      await settled(world, { ways: 0 });
      const page = await Deno.readTextFile(new URL("../../docs/node.md", import.meta.url));
      const conf = page.split("```").find((block) => block.startsWith(`text\n# ${file}\n`))?.replace(/^text\n.*\n/, "");
      if (conf === undefined) throw new Error(`docs/node.md has no ${file}`);
      for (const node of world.nodes) {
        await node.write(file, conf);
        await node.sh(command);
      }
      const pods = await Promise.all(world.nodes.map((node) => pod(node, "box")));
      const [one] = world.nodes as [Node];
      for (const family of families) {
        await eventually(`${name} has set the routes`, async () => {
          const routes = await one.ipJson(family, "route", "show", "proto", proto);
          return routes.filter(({ dst }) => /^(10\.5\.|fd05:)/.test(dst)).length === 2;
        }, 120_000);
      }
      const six = families.some((family) => family === "-6");
      await allReach(pods.map(({ namespace, addresses }) => {
        return { namespace, addresses: addresses.filter((one) => six || !one.includes(":")) };
      }));
      assertEquals(await one.ipJson("route", "show", "proto", "77"), []);
    },
    { needs: [need] },
  );
}

worldTest("a second agent of one node waits, and says who holds the place", async (world) => {
  await configure(world, "host-gw");
  const [node] = world.nodes as [Node];
  start(node);
  await eventually("it runs", async () => (await status(node))?.ready, 60_000);
  const { code, stderr } = await cnibox(node, ["node", "--once"]);
  assertEquals(code, 75);
  assertMatch(stderr, /another cnibox node is at work\n.*held by process \d+/);
});

nodeTest(
  "beside Multus a pod has the second network of docs/node.md too, called as Multus calls it",
  { needs: ["bridge", "veth", "macvlan"] },
  async ({ node }) => {
    const page = await Deno.readTextFile(new URL("../../docs/node.md", import.meta.url));
    const name = /^metadata: \{ name: (\w+) \}$/m.exec(page)?.[1] ?? "";
    const second = JSON.parse(/^ {2}config: '(.*)'$/m.exec(page)?.[1] ?? "");
    await node.ip(
      `link add ${second.master} type veth peer name storage0`,
      `link set ${second.master} up`,
      "link set storage0 up",
    );
    const conf = { rules: [{ network: parsePrefix("10.244.0.0/16")! }] } as unknown as Shares["conf"];
    const shares: Shares = { conf, subnets: [parsePrefix("10.244.1.0/24")!], mtu: 1450, ipMasq: true };
    await node.write("/run/flannel/subnet.env", subnetEnv(shares));
    const first = JSON.parse(conflistText(undefined, shares));
    const before = await snapshot(node);
    // Multus gives a network without a name that of its object, and calls the default network first.
    const attach = (pod: Namespace) =>
      [{ list: first, ifName: "eth0" }, { list: { name, ...second }, ifName: "net1" }].map(({ list, ifName }) =>
        new Attachment(node, list, pod, {
          ifName,
          args: `IgnoreUnknown=true;K8S_POD_NAMESPACE=default;K8S_POD_NAME=${pod.name};K8S_POD_UID=uid-${pod.name};` +
            `K8S_POD_INFRA_CONTAINER_ID=${pod.name}`,
        })
      );
    const [a, b] = [await node.container(), await node.container()];
    const attached = [attach(a), attach(b)];
    for (const one of attached.flat()) await one.add();
    for (const one of attached.flat()) await one.check();
    const [, [eth0, net1]] = attached as [Attachment[], [Attachment, Attachment]];
    assertEquals(net1.result.interfaces.at(-1).name, "net1");
    for (const { result } of [eth0, net1]) {
      assert(await ping(a, result.ips[0].address.split("/")[0]), JSON.stringify(result));
    }
    // The default route stays the first network's.
    assertEquals((await b.ipJson("route", "show", "default")).map(({ dev }) => dev), ["eth0"]);
    for (const one of attached.flat().reverse()) await one.del();
    const flannel = /^\/var\/lib\/cni\/flannel directory$/;
    assertSameState(before, await snapshot(node), { allow: [...firstContainer, flannel] });
  },
);
