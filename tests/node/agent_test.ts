/** `cnibox node` on a kernel and a store in memory: what it makes, repairs, leaves alone, and survives. */
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { Agent, type World } from "../../lib/node/agent.ts";
import { type NodeConf, parseNodeConf } from "../../lib/node/conf.ts";
import { derivedMac } from "../../lib/node/records.ts";
import { serve } from "../../lib/node/serve.ts";
import { EtcdSource } from "../../lib/node/source.ts";
import type { Status } from "../../lib/node/state.ts";
import { StoreError } from "../../lib/store/store.ts";
import { RoutingKernel } from "../fakes/routing_kernel.ts";
import { FakeStore } from "../fakes/store.ts";

const HOST_GW = { Network: "10.5.0.0/16", Backend: { Type: "host-gw" } };
const DUAL = { Network: "10.5.0.0/16", EnableIPv6: true, IPv6Network: "fd05::/48", Backend: { Type: "vxlan" } };

/** A node with a folder, a kernel and a view of a store; removed with `using`. */
class TestNode implements Disposable {
  readonly folder = Deno.makeTempDirSync();
  readonly kernel = new RoutingKernel();
  readonly said: string[] = [];
  readonly conf: NodeConf;
  agent: Agent;

  constructor(readonly store: FakeStore, readonly number: number, readonly more: { takeOver?: boolean } = {}) {
    this.kernel.link("lo", ["127.0.0.1/8"]);
    this.kernel.link("eth0", [`10.99.0.${number}/24`, `fd99::${number}/64`]);
    for (const [family, dst] of [[4, "default"], [6, "default"]] as const) {
      this.kernel.routes.push({
        family,
        dst,
        gateway: family === 4 ? "10.99.0.254" : "fd99::254",
        dev: "eth0",
        protocol: "3",
      });
    }
    this.conf = parseNodeConf(
      JSON.stringify({
        node: `n${number}`,
        store: { etcd: { endpoints: ["http://unused"] } },
        ipMasq: false,
        subnetFile: this.path("subnet.env"),
        conflist: { file: this.path("10-cnibox.conflist") },
      }),
      "node.json",
    );
    this.agent = this.start();
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  /** A new process of the same node. */
  start(): Agent {
    const world: World = {
      run: (command) => this.kernel.run(command),
      source: new EtcdSource(this.store),
      conf: this.conf,
      places: { memory: this.path("memory.json"), status: this.path("status.json"), lock: this.path("lock") },
      machineId: `machine ${this.number}`,
      say: (text) => this.said.push(text),
      takeOver: this.more.takeOver ?? false,
    };
    return this.agent = new Agent(world);
  }

  /** One round with everything that the store has. */
  async round(): Promise<Status> {
    try {
      this.agent.listed(await this.agent.world.source.list());
    } catch (error) {
      this.agent.away(error);
    }
    return await this.agent.reconcile();
  }

  read(name: string): string | undefined {
    try {
      return Deno.readTextFileSync(this.path(name));
    } catch {
      return undefined;
    }
  }

  /** Our routes as words. */
  routes(): string[] {
    return this.kernel.routes.filter(({ protocol }) => protocol === "77")
      .map(({ dst, gateway, dev }) => `${dst} via ${gateway} dev ${dev}`).sort();
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.folder, { recursive: true });
  }
}

function newStore(network: object): FakeStore {
  const store = new FakeStore();
  store.records.set("config", { value: JSON.stringify(network), revision: 1 });
  return store;
}

/** Another node's record, as flanneld writes it. */
async function peer(store: FakeStore, key: string, more: object): Promise<void> {
  await store.createIfAbsent(`subnets/${key}`, JSON.stringify(more));
}

const PEER = { PublicIP: "10.99.0.2", PublicIPv6: null, BackendType: "host-gw" };
const ROUTE = "10.5.2.0/24 via 10.99.0.2 dev eth0";

Deno.test("node leases a subnet without a time to live, routes to all others, and writes its files last", async () => {
  const store = newStore(HOST_GW);
  using one = new TestNode(store, 1);
  using two = new TestNode(store.view(), 2);
  const first = await one.round();
  assertEquals([first.ready, first.subnets.length, one.routes()], [true, 1, []]);
  await two.round();
  await one.round();
  const [subnet1, subnet2] = [first.subnets[0], JSON.parse(two.read("status.json")!).subnets[0]];
  assert(subnet1 !== subnet2);
  assertEquals(one.routes(), [`${subnet2} via 10.99.0.2 dev eth0`]);
  assertEquals(two.routes(), [`${subnet1} via 10.99.0.1 dev eth0`]);
  assertMatch(
    one.read("subnet.env")!,
    /^FLANNEL_NETWORK=10\.5\.0\.0\/16\nFLANNEL_SUBNET=10\.5\.\d+\.1\/24\nFLANNEL_MTU=1500$/m,
  );
  assertEquals(JSON.parse(one.read("10-cnibox.conflist")!).plugins[0].type, "flannel");
  assertEquals(JSON.parse(one.read("status.json")!).nodes[0].ways, [`${subnet2} via 10.99.0.2 dev eth0`]);
  // Again, and in a new process: nothing to do, nothing to write.
  const [lines, revision] = [one.kernel.lines.length, store.revision];
  await one.round();
  one.start();
  assertEquals((await one.round()).subnets, first.subnets);
  assertEquals([one.kernel.lines.length, store.revision], [lines, revision]);
});

Deno.test("node repairs what a flap, a flush or a deleted entry took, and touches nothing of others", async () => {
  const store = newStore(DUAL);
  const data = (mac: string) => ({ VNI: 1, VtepMAC: mac });
  await peer(store, "10.5.2.0-24&fd05:0:0:2::-64", {
    PublicIP: "10.98.0.2",
    PublicIPv6: "fd98::2",
    BackendType: "vxlan",
    BackendData: data("5a:00:00:00:00:02"),
    BackendV6Data: data("5a:00:00:00:06:02"),
  });
  using node = new TestNode(store, 1);
  const { kernel } = node;
  const foreign = { family: 4 as const, dst: "10.77.0.0/16", gateway: "10.99.0.9", dev: "eth0", protocol: "12" };
  kernel.routes.push(foreign);
  const status = await node.round();
  assertEquals([status.problems, status.mtu], [[], 1430]);
  const whole = () => [
    node.routes(),
    kernel.neighbours.map(({ dst, dev, lladdr }) => `${dst} ${dev} ${lladdr}`).sort(),
    kernel.fdb.map(({ mac, dst, dev }) => `${mac} ${dst} ${dev}`).sort(),
  ];
  const before = structuredClone(whole());
  assertEquals(before[0], [
    "10.5.2.0/24 via 10.5.2.0 dev flannel.1",
    "fd05:0:0:2::/64 via fd05:0:0:2:: dev flannel-v6.1",
  ]);
  assertEquals(before[2], ["5a:00:00:00:00:02 10.98.0.2 flannel.1", "5a:00:00:00:06:02 fd98::2 flannel-v6.1"]);
  assertEquals(kernel.links.find(({ ifname }) => ifname === "flannel.1")?.["address"], derivedMac("n1", 4, 1));
  const faults: [string, () => void][] = [
    ["flap", () => kernel.flap("flannel.1")],
    ["flush", () => kernel.routes = kernel.routes.filter((one) => one === foreign)],
    ["FDB", () => kernel.fdb = []],
    ["FDB elsewhere", () => kernel.fdb[0]!["dst"] = "10.98.0.66"],
    ["neighbours", () => kernel.neighbours = []],
    ["device", () => void kernel.run({ argv: ["ip", "-force", "-batch", "-"], input: ["link del dev flannel.1\n"] })],
    ["other address", () => kernel.links.find(({ ifname }) => ifname === "flannel.1")!["addr_info"] = []],
  ];
  for (const [name, fault] of faults) {
    fault();
    await Promise.resolve();
    await node.round();
    assertEquals(whole(), before, name);
    assert(kernel.routes.includes(foreign), name);
  }
  const count = kernel.lines.length;
  await node.round();
  assertEquals(kernel.lines.length, count);
});

Deno.test("node takes nothing away while its link is down or waits for its address", async () => {
  for (const conf of [DUAL, { ...DUAL, Backend: { Type: "host-gw" } }]) {
    const store = newStore(conf);
    await peer(store, "10.5.2.0-24&fd05:0:0:2::-64", {
      PublicIP: "10.99.0.2",
      PublicIPv6: "fd99::2",
      BackendType: conf.Backend.Type,
      BackendData: { VNI: 1, VtepMAC: "5a:00:00:00:00:02" },
      BackendV6Data: { VNI: 1, VtepMAC: "5a:00:00:00:06:02" },
    });
    using node = new TestNode(store, 1);
    const { kernel } = node;
    await node.round();
    const [count, routes] = [kernel.lines.length, node.routes()];
    assertEquals(routes.length, 2);
    const eth0 = kernel.links.find(({ ifname }) => ifname === "eth0")!;
    const before = { ...eth0 };
    for (
      const [fault, problem] of [
        [{ flags: ["BROADCAST"] }, "eth0 with 10.99.0.1 is down"],
        [{ addr_info: [(eth0["addr_info"] as unknown[])[0]] }, "no link of this node has the address fd99::1"],
        [{ addr_info: [] }, "no link of this node has the address 10.99.0.1"],
      ] as const
    ) {
      Object.assign(eth0, before, fault);
      const status = await node.round();
      assertEquals([status.ready, status.problems[0]?.text], [false, problem]);
      assertEquals([kernel.lines.length, node.routes()], [count, routes], problem);
    }
    Object.assign(eth0, before);
    assertEquals([(await node.round()).problems, kernel.lines.length], [[], count]);
  }
});

Deno.test("a node whose record is not readable any more keeps its routes and its subnet, and is named", async () => {
  const store = newStore(HOST_GW);
  await peer(store, "10.5.2.0-24", PEER);
  using node = new TestNode(store, 1);
  const { subnets } = await node.round();
  const garble = async (key: string) => {
    const { revision } = (await store.list(key)).records[0]!;
    return (await store.replaceIfRevision(key, "garbage", revision))!.revision;
  };
  const problem = { node: "subnets/10.5.2.0-24", text: "its record is not readable" };
  const revision = await garble("subnets/10.5.2.0-24");
  // Heard of, listed, and after a restart.
  assertEquals(node.agent.heard({ kind: "unreadable", key: "subnets/10.5.2.0-24", revision }), true);
  assertEquals([(await node.agent.reconcile()).problems, node.routes()], [[problem], [ROUTE]]);
  assertEquals([(await node.round()).problems, node.routes()], [[problem], [ROUTE]]);
  node.start();
  assertEquals([(await node.round()).problems, node.routes()], [[problem], [ROUTE]]);
  // Its own: it stays what it was, and is not written over.
  const own = `subnets/${subnets[0]!.replace("/", "-")}`;
  await garble(own);
  const status = await node.round();
  assertEquals([status.subnets, status.ready, status.problems.length], [subnets, true, 2]);
  node.start();
  assertEquals((await node.round()).subnets, subnets);
  assertEquals((await store.list(own)).records[0]!.value, "garbage");
  // Readable again, or gone.
  await store.replaceIfRevision(problem.node, JSON.stringify(PEER), revision);
  assertEquals([(await node.round()).problems.length, node.routes()], [1, [ROUTE]]);
  const { revision: now } = (await store.list(problem.node)).records[0]!;
  await store.removeIfRevision(problem.node, now);
  assertEquals([(await node.round()).problems.length, node.routes()], [1, []]);
});

Deno.test("a subnet whose record is not readable is taken", async () => {
  const store = newStore({ ...HOST_GW, SubnetMin: "10.5.1.0", SubnetMax: "10.5.1.0" });
  // Under a key of two families: the key of IPv4 alone would be free.
  await store.createIfAbsent("subnets/10.5.1.0-24&fd05:0:0:1::-64", "garbage");
  using one = new TestNode(store, 1);
  const { subnets, problems } = await one.round();
  assertEquals([subnets, problems.map(({ text }) => text)], [[], [
    "its record is not readable",
    "no subnet of the network is free; 1 are taken in fake store; those of nodes that are gone have to be removed there",
  ]]);
});

Deno.test("node makes a device anew, with what is on it, when the network's configuration changes, and removes it with the backend", async () => {
  const store = newStore(DUAL);
  const vteps = {
    BackendData: { VNI: 1, VtepMAC: "5a:00:00:00:00:02" },
    BackendV6Data: { VNI: 1, VtepMAC: "5a:00:00:00:06:02" },
  };
  await peer(store, "10.5.2.0-24&fd05:0:0:2::-64", {
    PublicIP: "10.99.0.2",
    PublicIPv6: "fd99::2",
    BackendType: "vxlan",
    ...vteps,
  });
  using node = new TestNode(store, 1);
  await node.round();
  const before = [node.routes(), node.kernel.fdb.length, node.kernel.neighbours.length];
  for (const [backend, after] of [[{ Type: "vxlan", Port: 4789 }, before], [{ Type: "none" }, [[], 0, 0]]] as const) {
    const { revision } = (await store.list("config")).records[0]!;
    await store.replaceIfRevision("config", JSON.stringify({ ...DUAL, Backend: backend }), revision);
    const { problems } = await node.round();
    assertEquals(problems, []);
    assertEquals([node.routes(), node.kernel.fdb.length, node.kernel.neighbours.length], [...after]);
  }
  assertEquals(node.kernel.links.map(({ ifname }) => ifname), ["lo", "eth0"]);
});

Deno.test("node removes a node that went while it was not running, and says nothing to the store", async () => {
  const store = newStore(HOST_GW);
  await peer(store, "10.5.2.0-24", PEER);
  using node = new TestNode(store, 1);
  await node.round();
  assertEquals(node.routes(), [ROUTE]);
  await store.removeIfRevision("subnets/10.5.2.0-24", `${store.records.get("subnets/10.5.2.0-24")!.revision}`);
  node.start();
  const revision = store.revision;
  await node.round();
  assertEquals([node.routes(), store.revision], [[], revision]);
});

Deno.test("node leaves a foreign route to a node's subnet alone and names it; --take-over adopts one that leads the same way", async () => {
  for (const takeOver of [false, true]) {
    const store = newStore(HOST_GW);
    await peer(store, "10.5.2.0-24", PEER);
    await peer(store, "10.5.3.0-24", { ...PEER, PublicIP: "10.99.0.3" });
    using node = new TestNode(store, 1, { takeOver });
    const same = { family: 4 as const, dst: "10.5.2.0/24", gateway: "10.99.0.2", dev: "eth0", protocol: "3" };
    const other = { family: 4 as const, dst: "10.5.3.0/24", gateway: "10.99.0.9", dev: "eth0", protocol: "4" };
    node.kernel.routes.push(same, other);
    const { problems } = await node.round();
    assertEquals(problems, [{
      node: "10.99.0.3",
      text: "a route to 10.5.3.0/24 that is not ours leads elsewhere: via 10.99.0.9 dev eth0 proto 4",
    }]);
    assert(node.kernel.routes.includes(other));
    assertEquals(node.routes(), takeOver ? [ROUTE] : []);
  }
});

Deno.test("node names a node that host-gw cannot reach, a subnet outside of the network, and one that two have", async () => {
  const store = newStore(HOST_GW);
  await peer(store, "10.5.2.0-24", { ...PEER, PublicIP: "10.98.0.2" });
  await peer(store, "10.0.0.0-8", PEER);
  await peer(store, "10.5.4.0-24", { ...PEER, PublicIP: "10.99.0.4" });
  await peer(store, "10.5.4.0-23", { ...PEER, PublicIP: "10.99.0.5" });
  await store.createIfAbsent("subnets/10.5.9.0-24", "garbage");
  using node = new TestNode(store, 1);
  const { ready, problems } = await node.round();
  assertEquals(problems.map(({ node, text }) => `${node}: ${text}`), [
    "subnets/10.5.9.0-24: its record is not readable",
    "10.98.0.2: 10.98.0.2 is not on the link eth0 (10.99.0.1/24): host-gw cannot reach it; use vxlan",
    "10.99.0.2: 10.0.0.0/8 is not in 10.5.0.0/16",
    "10.99.0.5: 10.5.4.0/23 overlaps with 10.5.4.0/24, which another node has",
  ]);
  assertEquals([ready, node.routes()], [true, ["10.5.4.0/24 via 10.99.0.4 dev eth0"]]);
  const count = node.said.length;
  await node.round();
  assertEquals(node.said.length, count);
});

Deno.test("node killed before any of its commands is put right by the next process", async () => {
  for (let kill = 0;; kill++) {
    const store = newStore(DUAL);
    await peer(store, "10.5.2.0-24&fd05:0:0:2::-64", {
      PublicIP: "10.99.0.2",
      PublicIPv6: "fd99::2",
      BackendType: "vxlan",
      BackendData: { VNI: 1, VtepMAC: "5a:00:00:00:00:02" },
      BackendV6Data: { VNI: 1, VtepMAC: "5a:00:00:00:06:02" },
    });
    using node = new TestNode(store, 1);
    let left = kill;
    node.kernel.interfere = () => {
      if (left-- === 0) throw new Error("killed");
    };
    const isKilled = await node.round().then(() => false, () => true);
    // Nobody is told of a network that does not work yet.
    if (isKilled) assertEquals([node.read("subnet.env"), node.read("10-cnibox.conflist")], [undefined, undefined]);
    node.kernel.interfere = () => {};
    node.start();
    const { ready, problems } = await node.round();
    assertEquals([ready, problems, node.routes().length, node.kernel.fdb.length, node.kernel.neighbours.length], [
      true,
      [],
      2,
      2,
      2,
    ]);
    assertEquals([...store.records.keys()].length, 3);
    if (!isKilled) {
      assert(kill > 10, `${kill} commands`);
      break;
    }
  }
});

Deno.test("node killed around any of its requests to the store has one subnet afterwards", async () => {
  for (let kill = 0; kill < 8; kill++) {
    const store = newStore(DUAL);
    using node = new TestNode(store, 1);
    let left = kill;
    store.interfere = () => {
      if (left-- === 0) throw new Error("killed");
    };
    await node.round().catch(() => {});
    store.interfere = () => {};
    node.start();
    const { ready, subnets } = await node.round();
    assertEquals([ready, subnets.length, store.records.size], [true, 2, 2], `${kill}`);
  }
});

Deno.test("node keeps everything while the store is away, says so once, and starts from memory", async () => {
  const store = newStore(HOST_GW);
  await peer(store, "10.5.2.0-24", PEER);
  using node = new TestNode(store, 1);
  const before = await node.round();
  store.interfere = () => {
    throw new StoreError("unreachable", "etcd http://unused: connection refused");
  };
  for (let hour = 0; hour < 25; hour++) {
    const status = await node.round();
    assertEquals([status.ready, status.store.state, status.subnets], [true, "away", before.subnets]);
  }
  assertEquals(node.said, ["etcd http://unused: connection refused; everything stays as it is"]);
  assertEquals([node.routes(), node.kernel.lines.length], [[ROUTE], 1]);
  // The machine was started anew: nothing is in the kernel or below /run, and the store is still away.
  node.kernel.routes = node.kernel.routes.filter(({ protocol }) => protocol !== "77");
  Deno.removeSync(node.path("subnet.env"));
  node.start();
  const status = await node.round();
  assertEquals([status.ready, status.subnets, node.routes()], [true, before.subnets, [ROUTE]]);
  assertMatch(node.read("subnet.env")!, /FLANNEL_SUBNET=/);
  store.interfere = () => {};
  assertEquals((await node.round()).store.state, "connected");
});

Deno.test("node keeps the nodes that a restored store has forgotten, and writes itself in again with its subnet", async () => {
  const store = newStore(HOST_GW);
  await peer(store, "10.5.2.0-24", PEER);
  using node = new TestNode(store, 1);
  const { subnets } = await node.round();
  for (const key of store.records.keys()) if (key !== "config") store.records.delete(key);
  store.revision = 1;
  const status = await node.round();
  assertEquals([status.subnets, node.routes()], [subnets, [ROUTE]]);
  assertEquals(status.nodes.map(({ unconfirmed }) => unconfirmed), [true]);
  assertEquals(store.records.size, 2);
  // It comes back under the same key, or its subnet is another's now.
  await peer(store, "10.5.2.0-24", { ...PEER, PublicIP: "10.99.0.3" });
  const next = await node.round();
  assertEquals([next.nodes.length, node.routes()], [1, ["10.5.2.0/24 via 10.99.0.3 dev eth0"]]);
});

Deno.test("node takes flanneld's record of its own address over, and refuses one of another machine", async () => {
  const store = newStore(HOST_GW);
  await peer(store, "10.5.7.0-24", { ...PEER, PublicIP: "10.99.0.1" });
  using node = new TestNode(store, 1);
  assertEquals((await node.round()).subnets, ["10.5.7.0/24"]);
  assertEquals(JSON.parse(store.records.get("subnets/10.5.7.0-24")!.value).Node, "n1");
  using twin = new TestNode(store.view(), 1);
  Object.assign(twin.agent.world, { machineId: "another" });
  const { ready, problems } = await twin.round();
  assertEquals([ready, problems.map(({ text }) => text)], [false, [
    `node "n1" says that it has this node's address 10.99.0.1; it is another machine; if it is gone for good, remove ` +
    "subnets/10.5.7.0-24 from fake store",
  ]]);
  assertEquals([twin.read("subnet.env"), store.records.size], [undefined, 2]);
});

Deno.test("nodes that ask at once get different subnets, of both families", async () => {
  const store = newStore({
    Network: "10.5.0.0/20",
    EnableIPv6: true,
    IPv6Network: "fd05::/60",
    Backend: { Type: "host-gw" },
  });
  const nodes = Array.from({ length: 12 }, (_, at) => new TestNode(store.view(), at + 1));
  try {
    await Promise.all(nodes.map((one) => one.round()));
    const all = (await Promise.all(nodes.map((one) => one.round()))).flatMap(({ ready, subnets }) =>
      ready ? subnets : []
    );
    assertEquals([new Set(all).size, store.records.size], [24, 13]);
  } finally {
    for (const one of nodes) one[Symbol.dispose]();
  }
});

Deno.test("node --take-over adopts flanneld's device, routes, record and file as they are: nothing is made anew", async () => {
  const store = newStore({ Network: "10.5.0.0/16", Backend: { Type: "vxlan" } });
  const record = (number: number) => ({
    PublicIP: `10.99.0.${number}`,
    BackendType: "vxlan",
    BackendData: { VNI: 1, VtepMAC: `5a:00:00:00:00:0${number}` },
  });
  await peer(store, "10.5.1.0-24", record(1));
  await peer(store, "10.5.2.0-24", record(2));
  using node = new TestNode(store, 1, { takeOver: true });
  const { kernel } = node;
  kernel.link("flannel.1", ["10.5.1.0/32"], {
    address: "5a:00:00:00:00:01",
    mtu: 1450,
    linkinfo: { info_kind: "vxlan", info_data: { id: 1, port: 8472, link: "eth0", local: "10.99.0.1" } },
  });
  for (const number of [2, 3]) {
    const route = {
      dst: `10.5.${number}.0/24`,
      gateway: `10.5.${number}.0`,
      dev: "flannel.1",
      protocol: "3",
      flags: ["onlink"],
    };
    kernel.routes.push({ family: 4, ...route });
    kernel.fdb.push({
      mac: `5a:00:00:00:00:0${number}`,
      dst: `10.99.0.${number}`,
      dev: "flannel.1",
      state: "permanent",
    });
    kernel.neighbours.push({ dst: `10.5.${number}.0`, dev: "flannel.1", lladdr: `5a:00:00:00:00:0${number}` });
  }
  Deno.writeTextFileSync(node.path("subnet.env"), "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\n");
  const { ready, problems, subnets } = await node.round();
  assertEquals([ready, problems, subnets], [true, [], ["10.5.1.0/24"]]);
  assertEquals(kernel.lines, [
    `link set dev flannel.1 group ${0x636e6962}`,
    // Of a node that has no record any more, on a device that is ours now.
    "fdb del 5a:00:00:00:00:03 dev flannel.1 dst 10.99.0.3 self",
    "neigh del 10.5.3.0 dev flannel.1",
    "route replace 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink proto 77",
  ]);
  assertEquals(JSON.parse(store.records.get("subnets/10.5.1.0-24")!.value).BackendData, record(1).BackendData);
  assertMatch(node.read("subnet.env")!, /^# written by cnibox node\n/);
});

Deno.test("node does not replace files and devices that are another's", async () => {
  const store = newStore(DUAL);
  using node = new TestNode(store, 1);
  Deno.writeTextFileSync(node.path("subnet.env"), "FLANNEL_NETWORK=10.5.0.0/16\n");
  node.kernel.link("flannel.1", [], {
    linkinfo: { info_kind: "vxlan", info_data: { id: 1, port: 8472, link: "eth0", local: "10.99.0.1" } },
  });
  const { ready, problems } = await node.round();
  assertEquals(ready, false);
  assertMatch(problems[0]!.text, /^a link flannel\.1 is there that is not ours: end the program/);
  node.kernel.links = node.kernel.links.filter(({ ifname }) => ifname !== "flannel.1");
  assertMatch(
    (await node.round()).problems[0]!.text,
    /subnet\.env is there and was not written by this program; remove it/,
  );
  assertEquals(node.read("subnet.env"), "FLANNEL_NETWORK=10.5.0.0/16\n");
});

Deno.test("node --withdraw removes what is its own, and its record", async () => {
  const store = newStore(DUAL);
  using node = new TestNode(store, 1);
  const foreign = { family: 4 as const, dst: "10.77.0.0/16", gateway: "10.99.0.9", dev: "eth0", protocol: "12" };
  node.kernel.routes.push(foreign);
  await node.round();
  Deno.writeTextFileSync(node.path("10-cnibox.conflist"), "changed by hand");
  assertEquals(await node.start().withdraw(), []);
  assertEquals([node.routes(), node.kernel.links.map(({ ifname }) => ifname)], [[], ["lo", "eth0"]]);
  assert(node.kernel.routes.includes(foreign));
  assertEquals([node.read("subnet.env"), node.read("10-cnibox.conflist")], [undefined, "changed by hand"]);
  assertEquals([...store.records.keys()], ["config"]);
});

Deno.test("node of a thousand sends the kernel what one change needs and no more, in as many processes as ever", async () => {
  const store = newStore({ Network: "10.0.0.0/8", SubnetLen: 24, Backend: { Type: "vxlan" } });
  const record = (number: number, mac: number) => ({
    PublicIP: `10.${200 + (number >> 8)}.${number & 255}.7`,
    BackendType: "vxlan",
    BackendData: {
      VNI: 1,
      VtepMAC: `5a:00:00:${[number >> 8, number & 255, mac].map((one) => one.toString(16).padStart(2, "0")).join(":")}`,
    },
  });
  const key = (number: number) => `10.${number >> 8}.${number & 255}.0-24`;
  for (let number = 1; number <= 1000; number++) await peer(store, key(number), record(number, 0));
  using node = new TestNode(store, 1);
  const run = node.kernel.run;
  const commands: string[] = [];
  Object.assign(node.kernel, {
    run: (command: Parameters<typeof run>[0]) => {
      commands.push(command.argv.join(" "));
      return run(command);
    },
  });
  await node.round();
  assertEquals([node.routes().length, node.kernel.fdb.length], [1000, 1000]);
  commands.length = 0;
  await node.round();
  const quiet = commands.length;
  assert(quiet <= 6, commands.join("\n"));
  const changed = `subnets/${key(500)}`;
  await store.replaceIfRevision(changed, JSON.stringify(record(500, 1)), `${store.records.get(changed)!.revision}`);
  const before = node.kernel.lines.length;
  commands.length = 0;
  await node.round();
  assertEquals(node.kernel.lines.slice(before).map((line) => line.split(" ").slice(0, 2).join(" ")), [
    "fdb del",
    "fdb replace",
    "neigh replace",
  ]);
  // One batch of each tool more.
  assertEquals(commands.length, quiet + 2);
});

Deno.test("node --explain changes nothing", async () => {
  const store = newStore(HOST_GW);
  await peer(store, "10.5.2.0-24", PEER);
  using node = new TestNode(store, 1);
  await node.round();
  node.kernel.flap("eth0");
  const [lines, revision] = [node.kernel.lines.length, store.revision];
  const { batches } = await node.agent.plan();
  assertEquals(batches.map(({ lines }) => lines.map(({ text }) => text)), [[
    "route add 10.5.2.0/24 via 10.99.0.2 dev eth0 proto 77",
  ]]);
  assertEquals([node.kernel.lines.length, store.revision], [lines, revision]);
});

/** Waits until something holds that a loop brings about. */
async function until(what: string, holds: () => boolean): Promise<void> {
  for (let tries = 0; !holds(); tries++) {
    if (tries > 3000) throw new Error(`not so in the end: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

Deno.test("node follows the store: changes, a watch that ends, a revision that is forgotten, a store that goes and comes", async () => {
  const store = newStore(HOST_GW);
  using node = new TestNode(store, 1);
  const end = new AbortController();
  const other = store.view();
  const pace = { roundMs: 60_000, settleMs: 1, relistMs: 60_000, retryMs: [1, 20] } as const;
  const work = serve(node.agent, end.signal, pace);
  try {
    await until("a subnet", () => node.read("subnet.env") !== undefined);
    await peer(other, "10.5.2.0-24", PEER);
    await until("a route", () => node.routes().length === 1);
    const lists = () => store.calls.filter((one) => one === "list ").length;
    const before = lists();
    store.cut();
    await peer(other, "10.5.3.0-24", { ...PEER, PublicIP: "10.99.0.3" });
    await until("a route after the watch ended", () => node.routes().length === 2);
    assertEquals(lists(), before);
    store.forgotten = store.revision + 1;
    store.cut();
    await until("a full list", () => lists() > before);
    store.forgotten = 0;
    store.interfere = () => {
      throw new StoreError("unreachable", "away");
    };
    store.cut();
    await until("away", () => node.said.some((one) => one.startsWith("away;")));
    assertEquals(node.routes().length, 2);
    await other.removeIfRevision("subnets/10.5.3.0-24", `${store.records.get("subnets/10.5.3.0-24")!.revision}`);
    store.interfere = () => {};
    await until("the removal, heard of late", () => node.routes().length === 1);
    assert(node.said.includes("fake store answers again"));
    // The record is removed by somebody: the node writes itself in again.
    const own = [...store.records.keys()].find((key) => key.startsWith("subnets/") && key !== "subnets/10.5.2.0-24")!;
    await other.removeIfRevision(own, `${store.records.get(own)!.revision}`);
    await until("its record", () => store.records.has(own));
  } finally {
    end.abort();
    await work;
  }
  assertEquals(node.routes(), [ROUTE]);
});

Deno.test("node hears of kernel events that concern it, and of no others", async () => {
  const store = newStore(DUAL);
  using node = new TestNode(store, 1);
  await node.round();
  const concerns = (line: string) => node.agent.concerns(line);
  for (
    const line of [
      "2: eth0@if5: <BROADCAST,MULTICAST> mtu 1500 qdisc noqueue state DOWN group 0 \\    link/[1] 4a:ae brd ff:ff",
      "Deleted 2: eth0    inet6 fd99::1/64 scope 0 nodad \\       valid_lft forever preferred_lft forever",
      "Deleted 10.5.2.0/24 via 10.99.0.2 dev eth0 proto 77 ",
      "Deleted 10.99.0.2 dev flannel.1 lladdr 02:00:00:00:00:02 NOARP PERMANENT ",
      "Deleted 4: flannel-v6.1: <BROADCAST,MULTICAST> mtu 1430 ",
    ]
  ) assert(concerns(line), line);
  for (
    const line of [
      "10.99.0.254 dev eth0 lladdr 4a:00:00:00:00:09 REACHABLE ",
      "7: veth12@if2: <BROADCAST,MULTICAST,UP> mtu 1500 qdisc noqueue master cni0 state UP group 0 ",
      "10.5.1.9 dev cni0 lladdr 4a:00:00:00:00:09 STALE ",
      "10.77.0.0/16 via 10.99.0.9 dev eth0 proto 12 ",
    ]
  ) assert(!concerns(line), line);
  // While its address is missing, whatever link may bring it.
  const eth0 = node.kernel.links.find(({ ifname }) => ifname === "eth0")!;
  eth0["addr_info"] = [];
  await node.round();
  assert(concerns("9: eth1    inet 10.99.0.1/24 scope 0 eth1\\       valid_lft forever preferred_lft forever"));
  assert(concerns("9: eth1    inet6 fd99::1/64 scope 0 \\       valid_lft forever preferred_lft forever"));
  for (
    const line of [
      "7: veth12@if2: <BROADCAST,MULTICAST,UP> mtu 1500 qdisc noqueue master cni0 state UP group 0 ",
      "7: veth12    inet6 fe80::4/64 scope 253 \\       valid_lft forever preferred_lft forever",
    ]
  ) assert(!concerns(line), line);
});

Deno.test("a configuration that cannot be meant names key and value", async () => {
  const message = async (conf: object) =>
    (await assertRejects(async () =>
      await Promise.resolve().then(() => parseNodeConf(JSON.stringify(conf), "node.json"))
    ) as Error).message;
  const store = { etcd: { endpoints: ["http://10.0.0.1:2379"] } };
  assertMatch(await message({}), /"store" names neither etcd nor kubernetes/);
  assertMatch(await message({ store: { kubernetes: {} } }), /"network" is missing/);
  assertMatch(await message({ store, inteface: "eth0" }), /unknown key "inteface"/);
  assertMatch(await message({ store, interface: "a b" }), /"interface" is "a b"/);
  assertMatch(await message({ store, publicIPs: ["10.0.0.1/24"] }), /"publicIPs\.0" is "10\.0\.0\.1\/24"/);
  assertMatch(await message({ store, mtu: 9 }), /mtu/);
});
