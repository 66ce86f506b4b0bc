/** Several machines on one switch, with an etcd in a place that is none of them. */
import { hasTool } from "./needs.ts";
import { type Background, createNode, type Node } from "./node.ts";
import { testNode } from "./test.ts";
import { eventually } from "./traffic.ts";

/** Machines 10.99.0.1, fd99::1 and so on; the switch, their router, is 10.99.0.254 and fd99::fe, and etcd listens there. */
export class World implements AsyncDisposable {
  readonly #members: (Background | undefined)[];

  constructor(readonly hub: Node, readonly nodes: readonly Node[], members: number) {
    this.#members = Array.from({ length: members }, () => undefined);
  }

  nameOf(node: Node): string {
    return `node${this.nodes.indexOf(node) + 1}`;
  }

  /** Where clients reach the members. */
  get endpoints(): string[] {
    return this.#members.map((_, at) => `http://10.99.0.254:${clientPort(at)}`);
  }

  /** Starts the members that do not run, and waits until a write would be done. */
  async startEtcd(): Promise<void> {
    const peers = this.#members.map((_, at) => `m${at}=${peerUrl(at)}`).join();
    this.#members.forEach((running, at) => {
      const url = this.endpoints[at]!;
      this.#members[at] = running ?? this.hub.spawn([
        ...["etcd", "--name", `m${at}`, "--data-dir", `/run/etcd${at}`, "--log-level", "error"],
        ...["--listen-client-urls", url, "--advertise-client-urls", url],
        ...[
          "--listen-peer-urls",
          peerUrl(at),
          "--initial-advertise-peer-urls",
          peerUrl(at),
          "--initial-cluster",
          peers,
        ],
      ]);
    });
    for (const url of this.endpoints) {
      await eventually(
        `${url} answers`,
        async () => (await this.hub.exec(["curl", "-s", "-f", `${url}/health`])).code === 0,
        60_000,
      );
    }
  }

  /** Ends so many members, the first ones first. */
  async stopEtcd(count = this.#members.length): Promise<void> {
    for (let at = 0; at < count; at++) {
      await this.#members[at]?.close();
      this.#members[at] = undefined;
    }
  }

  /** Writes a key. */
  async put(key: string, value: string): Promise<void> {
    const body = JSON.stringify({ key: btoa(key), value: btoa(value) });
    await this.hub.run("curl", "-s", "-f", "-d", body, `${this.endpoints[0]}/v3/kv/put`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.hub, ...this.nodes].map((one) => one.close()));
  }
}

const clientPort = (member: number) => 2379 + 10 * member;
const peerUrl = (member: number) => `http://127.0.0.1:${2380 + 10 * member}`;

/** Makes the machines and the switch, and starts etcd. */
export async function switchboard(count: number, { members = 1 } = {}): Promise<World> {
  return await connected(count, async (hub, nodes) => {
    const world = new World(hub, nodes, members);
    await world.startEtcd();
    return world;
  });
}

/** Machines on a switch, `hub`, handed to `make`; what it throws ends them all. */
export async function connected<T>(count: number, make: (hub: Node, nodes: readonly Node[]) => Promise<T>): Promise<T> {
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
      const node = await testNode();
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
