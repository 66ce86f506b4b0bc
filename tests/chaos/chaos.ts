/**
 * A node at its worst: ADD, CHECK, DEL and GC of several networks at random and side by side, calls killed alone or
 * with their tools, and beside them things that are nobody's business but their owner's. What has to hold is looked at
 * all the time.
 *
 * @module
 */
import {
  Attachment,
  difference,
  hostLocalLeftovers,
  type Json,
  type Namespace,
  type Node,
  type PluginOutput,
  runPlugin,
  snapshot,
  testNode,
} from "../e2e/support/mod.ts";
import { generator } from "../load/load.ts";

/** What a chaos run is made of. */
export interface Chaos {
  /** Operations (ADD, CHECK, DEL or GC of a whole list) to carry out. */
  readonly operations: number;
  /** Operations under way at any time. */
  readonly atOnce: number;
  readonly seed: number;
}

/** What came of it. */
export interface Report {
  /** Operations by name; `killed` counts those that a kill ended. */
  readonly counts: Record<"ADD" | "CHECK" | "DEL" | "GC" | "killed", number>;
  /** How often everything was looked at. */
  readonly looks: number;
  /** Each broken promise in words. */
  readonly violations: string[];
}

/** Containers of each network. */
const PER_NETWORK = 6;
/** Where the containers of a network are told apart by number: ports and devices. */
const firstPort = 20_000;

const hostLocal = (subnet: string) => ({ type: "host-local", ranges: [[{ subnet }]] });
const rates = { ingressRate: 80_000_000, ingressBurst: 8_000_000, egressRate: 80_000_000, egressBurst: 8_000_000 };
const arpFilter = { type: "tuning", sysctl: { "net.ipv4.conf.IFNAME.arp_filter": "1" }, mtu: 1400 };

/** The networks: all main plugins that every kernel has, with the meta plugins behind them. */
const networks: readonly { readonly name: string; readonly plugins: readonly Json[] }[] = [
  {
    name: "web",
    plugins: [
      { type: "bridge", bridge: "br-web", isDefaultGateway: true, ipMasq: true, ipam: hostLocal("10.61.0.0/24") },
      { type: "portmap", capabilities: { portMappings: true } },
      { type: "firewall", ingressPolicy: "same-bridge" },
      arpFilter,
      { type: "bandwidth", ...rates },
    ],
  },
  {
    name: "nft",
    plugins: [
      {
        ...{ type: "bridge", bridge: "br-nft", isDefaultGateway: true, ipMasq: true, ipMasqBackend: "nftables" },
        macspoofchk: true,
        ipam: hostLocal("10.62.0.0/24"),
      },
      { type: "portmap", backend: "nftables", capabilities: { portMappings: true } },
      { type: "sbr" },
    ],
  },
  {
    name: "p2p",
    plugins: [
      { type: "ptp", ipMasq: true, ipam: hostLocal("10.63.0.0/24") },
      { type: "bandwidth", ...rates },
      { type: "firewall" },
    ],
  },
  {
    name: "mac",
    plugins: [{ type: "macvlan", master: "up0", ipam: hostLocal("10.64.0.0/24") }, arpFilter, { type: "sbr" }],
  },
  { name: "lent", plugins: [{ type: "host-device", ipam: hostLocal("10.65.0.0/24") }, { type: "tuning", mtu: 1400 }] },
];

/**
 * `gone`: nothing of it is left. `attached`: ADD succeeded. `dirty`: a call was killed, and what it left is for DEL or
 * GC. While an operation is under way a pod is `busy`.
 */
type State = "gone" | "attached" | "dirty" | "busy";

interface Pod {
  readonly id: string;
  readonly network: typeof networks[number];
  readonly list: Attachment;
  readonly netns: Namespace;
  /** A host-device network has another configuration for each container. */
  readonly plugins: readonly Json[];
  /** Never deleted, never killed: it has to live through everything. */
  readonly standing: boolean;
  state: State;
  /** How often its state has changed: a look counts only for pods that have been left alone meanwhile. */
  changes: number;
}

/** Carries out one run on a node of its own. */
export async function run(chaos: Chaos): Promise<Report> {
  await using node = await testNode();
  const scene = await Scene.create(node, chaos);
  await scene.play();
  return scene.report();
}

class Scene {
  readonly #counts = { ADD: 0, CHECK: 0, DEL: 0, GC: 0, killed: 0 };
  readonly #violations: string[] = [];
  readonly #random: () => number;
  #looks = 0;
  #started = 0;
  /** Addresses in use, with the pod that has each. */
  readonly #taken = new Map<string, Pod>();
  /** Longest undisturbed operation of a plugin so far, in seconds: kills are spread over as long. */
  #longest = 0.2;
  /** Networks whose GC is under way: one at a time each. */
  readonly #collecting = new Set<string>();
  #strangers = "";

  private constructor(
    readonly node: Node,
    readonly chaos: Chaos,
    readonly pods: readonly Pod[],
    readonly clean: Clean,
  ) {
    this.#random = generator(chaos.seed);
  }

  static async create(node: Node, chaos: Chaos): Promise<Scene> {
    await node.ip("link add up0 type veth peer name up1", "link set up0 up", "link set up1 up");
    const pods: Pod[] = [];
    for (const network of networks) {
      for (let index = 0; index < PER_NETWORK; index++) pods.push(await pod(node, network, index));
    }
    await strangers(node);
    // Bridges, shared chains and forwarding stay for good: they are there before the first look.
    for (const network of networks) {
      const first = new Attachment(
        node,
        conf(network.name, pods.find((one) => one.network === network)!.plugins),
        pods[0]!.netns,
        {
          containerId: "warm",
          ifName: "warm0",
          capabilities: ports(999),
        },
      );
      await first.add();
      await first.del();
    }
    return new Scene(node, chaos, pods, await look(node, pods));
  }

  async play(): Promise<void> {
    this.#strangers = await theirs(this.node);
    for (const one of this.pods) if (one.standing) await this.#add(one, undefined);
    let done = false;
    const watching = (async () => {
      while (!done) await this.#look();
    })();
    // It is awaited below; until then its failure is nobody's.
    watching.catch(() => done = true);
    await Promise.all(Array.from({ length: this.chaos.atOnce }, async () => {
      while (this.#started < this.chaos.operations) {
        this.#started++;
        await this.#next();
      }
    }));
    done = true;
    await watching;
    await this.#end();
  }

  report(): Report {
    return { counts: this.#counts, looks: this.#looks, violations: this.#violations };
  }

  /** One operation at random, on a pod that nobody else is at. */
  async #next(): Promise<void> {
    if (this.#random() < 0.04) return await this.#gc();
    const idle = this.pods.filter(({ state }) => state !== "busy");
    const one = idle[Math.floor(this.#random() * idle.length)];
    // More callers than pods: nothing to do but wait for one.
    if (!one) return void await new Promise((resolve) => setTimeout(resolve, 10));
    const kill = one.standing || this.#random() >= 0.2 ? undefined : {
      place: Math.floor(this.#random() * one.plugins.length),
      after: this.#random() * this.#longest,
      alone: this.#random() < 0.5,
    };
    if (one.state === "gone") await this.#add(one, kill);
    else if (one.state === "dirty") {
      // Left for GC now and then.
      if (this.#random() < 0.7) await this.#del(one, kill);
    } else if (one.standing || this.#random() < 0.3) await this.#check(one);
    else await this.#del(one, kill);
  }

  /** Does something with a pod that nobody else may touch meanwhile. */
  async #with(one: Pod, work: () => Promise<State>): Promise<void> {
    one.state = "busy";
    one.changes++;
    one.state = await work();
    one.changes++;
  }

  async #add(one: Pod, kill: Kill | undefined): Promise<void> {
    await this.#with(one, async () => {
      this.#counts.ADD++;
      let previous: Json;
      for (const [place, plugin] of one.plugins.entries()) {
        const output = await this.#call(one, {
          command: "ADD",
          plugin,
          previous,
          kill: kill?.place === place ? kill : undefined,
        });
        if (output.code !== 0) {
          // A runtime calls DEL after a failed ADD too.
          if (!this.#wasKilled(output, kill)) this.#failed("ADD", one, output);
          return "dirty";
        }
        previous = output.json;
      }
      one.list.result = previous;
      for (const { address } of previous.ips ?? []) {
        const other = this.#taken.get(address);
        if (other) this.#violation(`${address} was given to ${one.id} while ${other.id} has it`);
        this.#taken.set(address, one);
      }
      return "attached";
    });
  }

  async #check(one: Pod): Promise<void> {
    await this.#with(one, async () => {
      this.#counts.CHECK++;
      for (const plugin of one.plugins) {
        const output = await this.#call(one, { command: "CHECK", plugin, previous: one.list.result });
        if (output.code !== 0) this.#failed("CHECK", one, output);
      }
      return "attached";
    });
  }

  async #del(one: Pod, kill: Kill | undefined): Promise<void> {
    await this.#with(one, async () => {
      this.#counts.DEL++;
      for (const [address, owner] of this.#taken) if (owner === one) this.#taken.delete(address);
      const place = kill && one.plugins.length - 1 - kill.place;
      for (const [at, plugin] of [...one.plugins.entries()].reverse()) {
        const hit = place === at ? kill : undefined;
        const output = await this.#call(one, { command: "DEL", plugin, previous: one.list.result, kill: hit });
        if (output.code === 0) continue;
        if (!this.#wasKilled(output, hit)) this.#failed("DEL", one, output);
        return "dirty";
      }
      one.list.result = undefined;
      return "gone";
    });
  }

  /**
   * GC of one network with the list of what is attached or under way; what is dirty is not on it, and left alone
   * meanwhile.
   */
  async #gc(): Promise<void> {
    const network = networks[Math.floor(this.#random() * networks.length)]!;
    if (this.#collecting.has(network.name)) return;
    this.#collecting.add(network.name);
    this.#counts.GC++;
    const mine = this.pods.filter((one) => one.network === network);
    const dirty = mine.filter(({ state }) => state === "dirty");
    for (const one of dirty) one.state = "busy";
    const valid = mine.filter((one) => !dirty.includes(one)).map(({ id }) => ({ containerID: id, ifname: "eth0" }));
    const kill = this.#random() < 0.1
      ? { place: 0, after: this.#random() * this.#longest, alone: this.#random() < 0.5 }
      : undefined;
    let state: State = "gone";
    // Which device a lent link is stands in each configuration: GC of one container's speaks for all.
    for (const [place, plugin] of mine[0]!.plugins.entries()) {
      const output = await runPlugin(this.node, {
        type: plugin.type,
        command: "GC",
        containerId: null,
        ifName: null,
        netns: null,
        timeout: 120_000,
        stdin: {
          ...mine[0]!.list.request(plugin),
          "cni.dev/valid-attachments": [...valid, { containerID: "stranger", ifname: "eth0" }],
        },
        ...(kill?.place === place && { wrap: killer(kill) }),
      });
      if (output.code === 0) continue;
      if (!this.#wasKilled(output, kill)) this.#failed(`GC by ${plugin.type}`, mine[0]!, output);
      state = "dirty";
    }
    for (const one of dirty) {
      // What stays inside a living container is DEL's business: GC cannot know its namespace.
      one.state = state === "gone" && await this.#isBare(one) ? "gone" : "dirty";
      one.changes++;
      if (one.state === "gone") one.list.result = undefined;
      for (const [address, owner] of this.#taken) if (owner === one) this.#taken.delete(address);
    }
    this.#collecting.delete(network.name);
  }

  async #isBare(one: Pod): Promise<boolean> {
    const links = await one.netns.ipJson("link", "show");
    return links.every(({ ifname }) => ifname === "lo");
  }

  async #call(
    one: Pod,
    { command, plugin, previous, kill }: {
      command: "ADD" | "CHECK" | "DEL";
      plugin: Json;
      previous: Json;
      kill?: Kill | undefined;
    },
  ): Promise<PluginOutput> {
    const started = performance.now();
    const output = await runPlugin(this.node, {
      type: plugin.type,
      command,
      containerId: one.id,
      netns: one.netns,
      timeout: 120_000,
      stdin: one.list.request(plugin, previous),
      ...(kill && { wrap: killer(kill) }),
    });
    if (!kill) this.#longest = Math.max(this.#longest, Math.min(2, (performance.now() - started) / 1000));
    return output;
  }

  #wasKilled({ code, stdout }: PluginOutput, kill: Kill | undefined): boolean {
    if (!kill || !KILLED.includes(code)) return false;
    this.#counts.killed++;
    if (stdout !== "" && stdout.trim()[0] !== "{") this.#violation(`a killed call printed ${stdout}`);
    return true;
  }

  #failed(what: string, { id }: Pod, { code, stdout, stderr }: PluginOutput): void {
    this.#violation(`${what} of ${id} failed with ${code}: ${stdout}${stderr}`.slice(0, 600));
  }

  #violation(text: string): void {
    this.#violations.push(text);
  }

  /**
   * What holds at any time: strangers are untouched, standing pods are whole, and of pods that are gone nothing is
   * left.
   */
  async #look(): Promise<void> {
    const quiet = this.pods.filter(({ state }) => state === "gone").map((one) => ({ one, changes: one.changes }));
    const strangers = await theirs(this.node);
    if (strangers !== this.#strangers) {
      this.#violation(`strangers changed:\n${this.#strangers}\n=>\n${strangers}`);
      this.#strangers = strangers;
    }
    const traces = await this.node.sh(
      "iptables-save; nft list ruleset; grep -rs . /var/lib/cni/networks || true; ip -o link show",
    );
    for (const { one, changes } of quiet) {
      if (one.state !== "gone" || one.changes !== changes) continue;
      const line = traces.split("\n").find((line) => new RegExp(`\\b${one.id}\\b`).test(line));
      if (line) this.#violation(`${one.id} is gone, but not ${line}`);
    }
    for (const one of this.pods) {
      if (!one.standing || one.list.result === undefined) continue;
      const address = one.list.result.ips[0].address;
      const links = await one.netns.ipJson("addr", "show", "dev", "eth0");
      if (!links[0]?.addr_info.some(({ local, prefixlen }: Json) => `${local}/${prefixlen}` === address)) {
        this.#violation(`${one.id} lost ${address}`);
      }
    }
    this.#looks++;
  }

  /** DEL of everything: then the node is as it was. */
  async #end(): Promise<void> {
    for (const one of this.pods) if (one.state !== "gone") await this.#del(one, undefined);
    const now = await look(this.node, this.pods);
    const left = difference(this.clean.host, now.host, {
      allow: [hostLocalLeftovers, { section: "files", line: /stranger/ }],
    });
    left.push(...now.inside.filter((line) => !this.clean.inside.includes(line)).map((line) => `+ ${line}`));
    left.push(...this.clean.inside.filter((line) => !now.inside.includes(line)).map((line) => `- ${line}`));
    for (const line of left) this.#violation(`left at the end: ${line}`);
    this.#looks++;
  }
}

/** A node with nothing attached: its own state, and the links in the containers. */
interface Clean {
  readonly host: Awaited<ReturnType<typeof snapshot>>;
  readonly inside: readonly string[];
}

async function look(node: Node, pods: readonly Pod[]): Promise<Clean> {
  const inside: string[] = [];
  for (const { id, netns } of pods) {
    for (const { ifname, mtu } of await netns.ipJson("link", "show")) inside.push(`${id}: ${ifname} mtu ${mtu}`);
  }
  return { host: await snapshot(node), inside };
}

/** Which call of a list is killed, how many seconds after its start, and whether its tools live on. */
interface Kill {
  readonly place: number;
  readonly after: number;
  readonly alone: boolean;
}

/** What timeout(1) ends with when it has killed, or when the call ended by itself at that very moment. */
const KILLED = [137, 124];

/** timeout(1) kills its own process group, tools included; in the foreground its child alone. */
function killer({ after, alone }: Kill): string[] {
  return ["timeout", ...(alone ? ["--foreground"] : []), "--signal=KILL", after.toFixed(4)];
}

const conf = (name: string, plugins: readonly Json[]) => ({ cniVersion: "1.1.0", name, plugins: [...plugins] });
const ports = (index: number) => ({
  portMappings: ["tcp", "udp"].map((protocol) => ({ hostPort: firstPort + index, containerPort: 80, protocol })),
});

async function pod(node: Node, network: typeof networks[number], index: number): Promise<Pod> {
  const id = `${network.name}-pod-${index}-x`;
  const netns = await node.container(id);
  const device = `dev${index}`;
  const lent = network.plugins[0].type === "host-device";
  if (lent) await node.ip(`link add ${device} type veth peer name far${index}`, `link set far${index} up`);
  const plugins = network.plugins.map((plugin) => plugin.type === "host-device" ? { ...plugin, device } : plugin);
  const list = new Attachment(node, conf(network.name, plugins), netns, {
    containerId: id,
    capabilities: ports(networks.indexOf(network) * 100 + index),
  });
  return { id, network, list, netns, plugins, standing: index === 0, state: "gone", changes: 0 };
}

/** What is not ours and never to be touched: links, addresses, rules, a lease. */
async function strangers(node: Node): Promise<void> {
  await node.ip(
    "link add stranger0 type veth peer name stranger1",
    "link set stranger0 alias owned-by-somebody-else",
    "addr add 203.0.113.1/30 dev stranger0",
    "link set stranger0 up",
    "link add vethstranger type veth peer name vethstrange1",
  );
  await node.sh(`
    iptables -A FORWARD -s 203.0.113.7 -m comment --comment stranger -j DROP
    iptables -t nat -N STRANGER
    iptables -t nat -A STRANGER -d 203.0.113.8 -m comment --comment stranger -j RETURN
    iptables -t nat -A PREROUTING -m comment --comment stranger -j STRANGER
    nft 'add table inet stranger; add chain inet stranger mine { type filter hook forward priority 5; };
         add rule inet stranger mine ip saddr 203.0.113.9 drop comment "stranger"'
    ip rule add from 203.0.113.10 table 77 priority 1077
    mkdir -p /var/lib/cni/networks/web
    printf 'stranger\\r\\neth0' >/var/lib/cni/networks/web/10.61.0.250
  `);
}

/** Strangers as they are now, in one text. */
async function theirs(node: Node): Promise<string> {
  return await node.sh(`
    ip -o addr show dev stranger0 | sed 's/valid_lft.*//'
    ip -o link show dev vethstranger | sed 's/^[0-9]*: //'
    iptables-save | grep stranger; iptables-save -t nat | grep STRANGER
    nft list table inet stranger
    ip rule show | grep 203.0.113.10
    cat /var/lib/cni/networks/web/10.61.0.250
  `);
}
