/** Several machines on one switch, and an etcd beside it or with a member on each machine. */
import { hasTool } from "./needs.ts";
import { type Background, createNode, type Node } from "./node.ts";
import { testNode } from "./test.ts";
import { eventually } from "./traffic.ts";
import { patience } from "./vm.ts";

/** How the etcd of a world is started. */
export interface EtcdOptions {
  /** How many members; ignored when they are on the machines. */
  readonly members?: number;
  /**
   * One member on each machine, instead of all of them beside the switch: what happens to a machine happens to its
   * member.
   */
  readonly onMachines?: boolean;
  readonly scheme?: "http" | "https";
  /** Arguments beside those for names, data and addresses. */
  readonly args?: readonly string[];
  /** Arguments of curl that a member lets in. */
  readonly curl?: readonly string[];
}

/** One member of an etcd; its data stays when it ends. */
export class Member {
  readonly #argv: readonly string[];
  readonly #curl: readonly string[];
  #running: Background | undefined;
  #pid = "";

  constructor(
    readonly node: Node,
    readonly url: string,
    { argv, curl }: { argv: readonly string[]; curl: readonly string[] },
  ) {
    this.#argv = argv;
    this.#curl = curl;
  }

  /** Starts it if it does not run; {@linkcode healthy} waits for it. */
  async start(): Promise<void> {
    if (this.#running !== undefined) return;
    this.#running = this.node.spawn(["/bin/sh", "-c", 'echo "pid $$"; exec "$@"', "sh", ...this.#argv]);
    this.#pid = (await this.#running.until(/^pid (\d+)\n/))[1] ?? "";
  }

  /** Waits until a write would be done. */
  async healthy(): Promise<void> {
    const argv = ["curl", "-s", "-k", "-f", "-m", "5", ...this.#curl, `${this.url}/health`];
    await eventually(`${this.url} answers`, async () => (await this.node.exec(argv)).code === 0, 60_000);
  }

  /** Ends it as an administrator does. */
  async stop(): Promise<void> {
    await this.#running?.close();
    this.#running = undefined;
  }

  /** SIGKILL. */
  async kill(): Promise<void> {
    await this.node.run("kill", "-9", this.#pid);
    await this.stop();
  }
}

/** Machines 10.99.0.1, fd99::1 and so on; the switch, their router, is 10.99.0.254 and fd99::fe. */
export class World implements AsyncDisposable {
  members: readonly Member[] = [];

  constructor(readonly hub: Node, readonly nodes: readonly Node[]) {}

  nameOf(node: Node): string {
    return `node${this.nodes.indexOf(node) + 1}`;
  }

  /** Where clients reach the members. */
  get endpoints(): string[] {
    return this.members.map(({ url }) => url);
  }

  /** Where clients reach the first member. */
  get etcd(): string {
    const [first] = this.endpoints;
    if (first === undefined) throw new Error("etcd was not started");
    return first;
  }

  /** Starts the members that do not run, and waits until a write would be done. The options count the first time. */
  async startEtcd(options: EtcdOptions = {}): Promise<void> {
    if (this.members.length === 0) this.members = membersOf(this, options);
    await Promise.all(this.members.map((member) => member.start()));
    await Promise.all(this.members.map((member) => member.healthy()));
  }

  /** Ends so many members, the first ones first. */
  async stopEtcd(count = this.members.length): Promise<void> {
    for (const member of this.members.slice(0, count)) await member.stop();
  }

  /** Writes a key. */
  async put(key: string, value: string): Promise<void> {
    const body = JSON.stringify({ key: btoa(key), value: btoa(value) });
    await this.hub.run("curl", "-s", "-f", "-d", body, `${this.etcd}/v3/kv/put`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.hub, ...this.nodes].map((one) => one.close()));
  }
}

function membersOf({ hub, nodes }: World, options: EtcdOptions): Member[] {
  const { members = 1, onMachines = false, scheme = "http", args = [], curl = [] } = options;
  const places = onMachines
    ? nodes.map((node, at) => ({ node, host: `10.99.0.${at + 1}`, peer: `http://10.99.0.${at + 1}:2380`, port: 2379 }))
    : Array.from({ length: members }, (_, at) => {
      return { node: hub, host: "10.99.0.254", peer: `http://127.0.0.1:${2380 + 10 * at}`, port: 2379 + 10 * at };
    });
  const peers = places.map(({ peer }, at) => `m${at}=${peer}`).join();
  return places.map(({ node, host, peer, port }, at) => {
    const url = `${scheme}://${host}:${port}`;
    const argv = [
      ...["etcd", "--name", `m${at}`, "--data-dir", `/run/etcd${at}`, "--log-level", "error"],
      ...["--listen-client-urls", url, "--advertise-client-urls", url],
      ...["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", peers],
      // By etcd's own, a tenth and a whole second, members that wait for a processor elect one leader after the other.
      ...["--heartbeat-interval", `${100 * patience}`, "--election-timeout", `${1000 * patience}`],
      ...args,
    ];
    return new Member(node, url, { argv, curl });
  });
}

/** What a world is made of. */
export interface WorldOptions {
  /** One member beside the switch unless it says otherwise; false: none. */
  readonly etcd?: EtcdOptions | false;
  /** Makes one machine; left out: one that has the plugins. */
  readonly machine?: () => Promise<Node>;
}

/** Makes the machines and the switch, and starts etcd. */
export async function switchboard(
  count: number,
  { etcd = {}, machine = testNode }: WorldOptions = {},
): Promise<World> {
  return await connected(count, machine, async (hub, nodes) => {
    const world = new World(hub, nodes);
    if (etcd) await world.startEtcd(etcd);
    return world;
  });
}

/** Machines on a switch, `hub`, handed to `make`; what it throws ends them all. */
async function connected<T>(
  count: number,
  machine: () => Promise<Node>,
  make: (hub: Node, nodes: readonly Node[]) => Promise<T>,
): Promise<T> {
  if (!hasTool("etcd")) throw new Error("etcd is not installed");
  const made: Node[] = [];
  try {
    const hub = await createNode();
    made.push(hub);
    await hub.ip(
      "link add br0 type bridge",
      "addr add 10.99.0.254/24 dev br0",
      "addr add fd99::fe/64 dev br0 nodad",
      "link set br0 up",
    );
    for (let number = 1; number <= count; number++) {
      const node = await machine();
      made.push(node);
      await plug(hub, node, number);
    }
    return await make(hub, made.slice(1));
  } catch (error) {
    await Promise.all(made.map((one) => one.close()));
    throw error;
  }
}

async function plug(hub: Node, node: Node, number: number): Promise<void> {
  // Process IDs are those of this machine: neither node knows the other's.
  const { success, stderr } = await new Deno.Command("nsenter", {
    args: [
      `--net=/proc/${hub.pid}/ns/net`,
      "ip",
      "link",
      "add",
      `p${number}`,
      "type",
      "veth",
      "peer",
      "name",
      "eth0",
      "netns",
      `${node.pid}`,
    ],
  }).output();
  if (!success) throw new Error(new TextDecoder().decode(stderr));
  await hub.ip(`link set p${number} master br0 up`);
  await node.ip(
    `addr add 10.99.0.${number}/24 dev eth0`,
    `addr add fd99::${number}/64 dev eth0 nodad`,
    "link set eth0 up",
    "route add default via 10.99.0.254",
    "route add ::/0 via fd99::fe",
  );
  await node.sysctl("ipv4/ip_forward", 1);
  await node.sysctl("ipv6/conf/all/forwarding", 1);
}
