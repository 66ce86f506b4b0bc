/** Three machines on one switch with etcd members of their own, for the tests of `cluster`. */
import type { Background, Node } from "./node.ts";
import { eventually } from "./traffic.ts";
import { connected } from "./world.ts";

const PORT = 2379;

/** How the etcd of a world is started: arguments beside those for its data and its addresses. */
export interface EtcdOptions {
  readonly scheme?: "http" | "https";
  readonly args?: readonly string[];
}

/** One member of an etcd cluster; its data stays when it is killed. */
export interface Member {
  readonly url: string;
  start(): Promise<void>;
  /** SIGKILL. */
  kill(): Promise<void>;
}

/** Machines 10.99.0.1, fd99::1 and so on; the switch, their router, is 10.99.0.254 and fd99::fe, and etcd listens there. */
export class World implements AsyncDisposable {
  #etcd: Background | undefined;
  etcd = `http://10.99.0.254:${PORT}`;

  constructor(readonly hub: Node, readonly nodes: readonly Node[]) {}

  nameOf(node: Node): string {
    return `node${this.nodes.indexOf(node) + 1}`;
  }

  async startEtcd({ scheme = "http", args = [] }: EtcdOptions = {}): Promise<void> {
    const url = this.etcd = `${scheme}://10.99.0.254:${PORT}`;
    this.#etcd = this.hub.spawn([
      ...["etcd", "--data-dir", "/run/etcd", "--log-level", "error"],
      ...["--listen-client-urls", url, "--advertise-client-urls", url],
      ...["--listen-peer-urls", "http://127.0.0.1:2380"],
      ...args,
    ]);
    await healthy(this.hub, url);
  }

  /** One etcd member on each machine, all of one cluster; started. */
  async startMembers(): Promise<Member[]> {
    const peers = this.nodes.map((node, index) => `${this.nameOf(node)}=http://10.99.0.${index + 1}:2380`).join(",");
    const members = this.nodes.map((node, index) =>
      member(node, {
        url: `http://10.99.0.${index + 1}:${PORT}`,
        peer: `http://10.99.0.${index + 1}:2380`,
        name: this.nameOf(node),
        peers,
      })
    );
    await Promise.all(members.map((one) => one.start()));
    return members;
  }

  async stopEtcd(): Promise<void> {
    await this.#etcd?.close();
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

function member(
  node: Node,
  { url, peer, name, peers }: { url: string; peer: string; name: string; peers: string },
): Member {
  let running: Background | undefined;
  let pid = "";
  const argv = [
    ...["etcd", "--name", name, "--data-dir", "/run/etcd-member", "--log-level", "error"],
    ...["--listen-client-urls", url, "--advertise-client-urls", url],
    ...["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", peers],
  ];
  return {
    url,
    start: async () => {
      running = node.spawn(["/bin/sh", "-c", 'echo "pid $$"; exec "$@"', "sh", ...argv]);
      pid = (await running.until(/^pid (\d+)\n/))[1] ?? "";
      await healthy(node, url);
    },
    kill: async () => {
      await node.run("kill", "-9", pid);
      await running?.close();
    },
  };
}

async function healthy(from: Node, url: string): Promise<void> {
  const argv = ["curl", "-s", "-k", "-f", "-m", "5", `${url}/health`];
  await eventually(`${url} answers`, async () => (await from.exec(argv)).code === 0, 60_000);
}

/** Makes the machines and the switch, and starts etcd: in the middle, unless `etcd` is false. */
export async function switchboard(count: number, { etcd = {} }: { etcd?: EtcdOptions | false } = {}): Promise<World> {
  return await connected(count, async (hub, nodes) => {
    const world = new World(hub, nodes);
    if (etcd) await world.startEtcd(etcd);
    return world;
  });
}
