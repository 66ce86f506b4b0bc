/**
 * Calls that go wrong at one chosen point: killed, interrupted, refused by the file system, let down by a tool. After
 * each, the node has to be as it was once DEL (or GC) has been called the way a runtime calls it.
 *
 * Points are the system calls of the plugin's main thread that concern files of ours or processes, as strace sees them
 * in an undisturbed run; strace then injects the fault into the n-th call of that name, and its log tells whether it
 * did. A fault meets a point before the system call takes place: after it is before the next one, since nothing lies
 * between that anybody else can see.
 */
import {
  type Allowed,
  Attachment,
  call,
  type Command,
  difference,
  eventually,
  hostLocalLeftovers,
  type Json,
  type Namespace,
  type Need,
  type Node,
  PluginFailed,
  type PluginOutput,
  realTool,
  runPlugin,
  type Snapshot,
  snapshot,
  standIn,
  testNode,
  withStandIns,
} from "../e2e/support/mod.ts";

/** What is attached: a network list, and what the runtime knows. */
export interface Setup {
  readonly name: string;
  /** What it takes of the kernel and of tools. */
  readonly needs: readonly Need[];
  readonly plugins: readonly Json[];
  readonly capabilities?: Record<string, unknown>;
  /** Done once on a fresh node. */
  readonly prepare?: (node: Node) => Promise<unknown>;
  /**
   * What the network has outside of its node, once it has come to rest: part of the state that every try has to end
   * with.
   */
  readonly elsewhere?: (node: Node) => Promise<string[]>;
  /** Files that the network keeps for its own use, and may change at any call. */
  readonly own?: Allowed[];
}

const hostLocal = (subnet: string) => ({ type: "host-local", ranges: [[{ subnet }]] });

const portMappings = [{ hostPort: 8080, containerPort: 80, protocol: "tcp" }];

/** The networks that are tried. */
export const setups: readonly Setup[] = [
  {
    name: "bridge+portmap iptables",
    needs: ["bridge", "veth", "iptables"],
    plugins: [
      { type: "bridge", bridge: "br1", isDefaultGateway: true, ipMasq: true, ipam: hostLocal("10.22.0.0/24") },
      { type: "portmap", capabilities: { portMappings: true } },
    ],
    capabilities: { portMappings },
  },
  {
    name: "bridge+portmap nftables",
    needs: ["bridge", "veth", "nf_tables", "nf_tables_bridge"],
    plugins: [
      {
        type: "bridge",
        bridge: "br1",
        isDefaultGateway: true,
        ipMasq: true,
        ipMasqBackend: "nftables",
        macspoofchk: true,
        ipam: hostLocal("10.22.0.0/24"),
      },
      { type: "portmap", backend: "nftables", capabilities: { portMappings: true } },
    ],
    capabilities: { portMappings: [{ hostPort: 8080, containerPort: 80, protocol: "udp" }] },
  },
  {
    name: "ptp+bandwidth+firewall",
    needs: ["veth", "ifb", "tbf", "ingress", "iptables"],
    plugins: [
      { type: "ptp", ipMasq: true, ipam: hostLocal("10.23.0.0/24") },
      {
        type: "bandwidth",
        ingressRate: 8_000_000,
        ingressBurst: 8_000_000,
        egressRate: 8_000_000,
        egressBurst: 8_000_000,
      },
      { type: "firewall" },
    ],
  },
  {
    name: "macvlan+tuning",
    needs: ["macvlan", "veth"],
    plugins: [
      { type: "macvlan", master: "up0", ipam: hostLocal("10.24.0.0/24") },
      { type: "tuning", sysctl: { "net.ipv4.conf.IFNAME.arp_filter": "1" }, mtu: 1400 },
    ],
    prepare: (node) => node.ip("link add up0 type veth peer name up1", "link set up0 up", "link set up1 up"),
  },
  {
    name: "chain of five plugins",
    needs: ["bridge", "veth", "iptables", "ifb", "tbf", "ingress"],
    plugins: [{
      type: "chain",
      capabilities: { portMappings: true },
      plugins: [
        { type: "bridge", bridge: "br1", isDefaultGateway: true, ipMasq: true, ipam: hostLocal("10.25.0.0/24") },
        { type: "portmap", capabilities: { portMappings: true } },
        { type: "bandwidth", egressRate: 8_000_000, egressBurst: 8_000_000 },
        { type: "firewall" },
        { type: "tuning", sysctl: { "net.ipv4.conf.IFNAME.arp_filter": "1" }, mtu: 1400 },
      ],
    }],
    capabilities: { portMappings },
  },
  {
    name: "cluster on etcd",
    needs: ["tool:etcd", "tool:curl"],
    plugins: [cluster({ node: "one" })],
    prepare: startEtcd,
    elsewhere: blocksAndRecords,
    own: [{ section: "files", line: /^\/var\/lib\/cni\/cluster(\/net1(\/(blocks\.json|lock))?)? / }],
  },
];

/**
 * Each block is one address and each released address rests, so that every ADD takes a block and every DEL returns one.
 */
function cluster(changes: Json): Json {
  const store = { etcd: { endpoints: ["http://127.0.0.1:2379"] } };
  return {
    type: "cluster",
    ipam: {
      type: "cluster",
      pool: "net1",
      ranges: [[{ subnet: "10.26.0.0/27" }]],
      blockSize: 32,
      quarantine: "24h",
      store,
      ...changes,
    },
  };
}

const asked = (plugin: Json) => ({ cniVersion: "1.1.0", name: "net1", ...plugin });

/** An etcd on the node, and an address that another node has. */
async function startEtcd(node: Node): Promise<void> {
  node.spawn(["etcd", "--data-dir", "/run/etcd", "--log-level", "error"]);
  const healthy = ["curl", "-s", "-f", "http://127.0.0.1:2379/health"];
  await eventually("etcd answers", async () => (await node.exec(healthy)).code === 0, 60_000);
  const theirs = cluster({ node: "two", dataDir: "/run/two/networks" });
  await call(node, {
    type: "cluster",
    command: "ADD",
    containerId: "theirs",
    netns: "/run/none",
    stdin: asked(theirs),
  });
}

/**
 * One more address, taken and released, settles what a killed call has left open: then records and blocks are the same.
 */
async function blocksAndRecords(node: Node): Promise<string[]> {
  const about = { type: "cluster", containerId: "settle", netns: "/run/none", stdin: asked(cluster({ node: "one" })) };
  const file = "/var/lib/cni/cluster/net1/blocks.json";
  // The pause after a store that did not answer is over.
  const state = await node.read(file);
  if (state !== undefined) await node.write(file, state.replace(/"failed":\d+/, '"failed":0'));
  const { ips: [{ address }] } = await call(node, { ...about, command: "ADD" });
  const theirs = (await node.list("/run/two/networks/net1")).filter((name) => name.startsWith("10."));
  await call(node, { ...about, command: "DEL" });
  const body = JSON.stringify({ key: btoa("/cnibox/cluster/v1/net1/"), range_end: btoa("/cnibox/cluster/v1/net10") });
  const answer = JSON.parse(await node.run("curl", "-s", "-f", "-d", body, "http://127.0.0.1:2379/v3/kv/range"));
  const records = (answer.kvs ?? []).map((
    { key, value }: Json,
  ) => [atob(key).split("/").at(-1), JSON.parse(atob(value)).node]);
  const { blocks } = JSON.parse(await node.read(file) ?? "");
  const mine: string[] = records.filter(([, holder]: string[]) => holder === "one").map(([block = ""]: string[]) =>
    block
  );
  const known: string[] = blocks.map(({ block }: Json) => block.replace("/", "-"));
  return [
    `${mine.length} blocks`,
    ...mine.filter((block) => !known.includes(block)).map((block) => `${block} is lost`),
    ...known.filter((block) => !mine.includes(block)).map((block) => `${block} has no record`),
    ...blocks.filter(({ phase }: Json) => phase !== "own").map(({ block, phase }: Json) => `${block} is ${phase}`),
    ...theirs.includes(address.split("/")[0]) ? [`${address} is given twice`] : [],
  ];
}

/** One place where a call can be hit. */
export interface Point {
  readonly syscall: string;
  /** It is the n-th call of that name by the main thread. */
  readonly nth: number;
  readonly shown: string;
  /** It changes nothing that outlives the process or that another one sees: an opening for reading. */
  readonly looks: boolean;
  /** It takes note of a tool's end. */
  readonly reaps: boolean;
  /** Tools that may be at work. */
  readonly running: number;
  /** A tool has been waited for: whatever the operation, the call listens to signals. */
  readonly hasWaited: boolean;
  /**
   * A process that is waited for later was only started after another had been waited for: a call that is asked to stop
   * here has to notice, since it looks for signals while it waits.
   */
  readonly hasToStop: boolean;
}

/** How a call is hit. */
export type Fault = KillFault | DiskFault | ToolFault | "lost folder";
/** Signals. */
export type KillFault = typeof killFaults[number];
/** What a system call that writes answers. */
export type DiskFault = typeof diskFaults[number];
/** How a tool lets us down. */
export type ToolFault = typeof toolFaults[number];

export const killFaults = ["killed", "killed with its children", "killed, then ADD again", "interrupted"] as const;
export const diskFaults = ["ENOSPC", "EROFS", "EACCES", "EIO"] as const;
export const toolFaults = [
  "tool exits 1",
  "tool fails after its work",
  "tool is killed",
  "tool prints garbage",
  "tool is missing",
  "tool hangs",
] as const;

/** System calls that change something, start something, or wait for it; the last is what comes after all of them. */
const CHANGING = "clone,clone3,vfork,wait4,waitid,openat,link,linkat,unlink,unlinkat,rename,renameat,renameat2,mkdir," +
  "mkdirat,write,pwrite64,ftruncate,flock,fsync,fdatasync,exit_group";
/** Only these can fail for want of space or rights. */
const WRITING =
  /^(openat\(.*(O_WRONLY|O_RDWR|O_CREAT)|(link|linkat|unlink|unlinkat|rename|renameat2?|mkdir|mkdirat|write|pwrite64|ftruncate|fsync|fdatasync)\()/;
const STARTING = /^(clone3?|vfork)\(/;
const PROCESS = /^(clone3?|vfork|wait4|waitid|flock|exit_group)\(/;
/** The end of a child process has been seen. */
const REAPED = /^(wait4|waitid)\(.*WIFEXITED/;
/** What of the file system concerns us: files of ours, settings, and the answer. */
const OURS = /^write\(1<|^\w+\([^{]*?[<"]\/(var\/lib\/cni|run\/cni|run\/netns|proc\/sys\/net)/;

/** What the result of one operation over all its points is. */
export interface Outcome {
  readonly operation: Command;
  readonly setup: string;
  readonly fault: Fault;
  points: number;
  /**
   * Points that the call did not reach when it was to be hit there, however often it was tried: tools end in another
   * order.
   */
  readonly missed: string[];
  leaks: number;
  /** Each leak or wrong answer in words. */
  readonly findings: string[];
}

/** A node with two containers, brought back to the same state before every try. */
export class Trial implements AsyncDisposable {
  #state!: { node: Node; pods: readonly [Namespace, Namespace] };
  /** What a try has to end with. */
  #before!: State;
  /** The second container, while it is attached. */
  #neighbour: Attachment | undefined;
  /** Points and starts of tools that were found, by operation and plugin. */
  points = new Map<string, Promise<Point[]>>();
  starts = new Map<string, Promise<number>>();

  private constructor(readonly setup: Setup) {}

  /** A trial of a network; what `like`, another one of the same, has found out is not looked for again. */
  static async create(setup: Setup, like?: Trial): Promise<Trial> {
    const trial = new Trial(setup);
    if (like) [trial.points, trial.starts] = [like.points, like.starts];
    await trial.#fresh();
    return trial;
  }

  get node(): Node {
    return this.#state.node;
  }

  get pods(): readonly [Namespace, Namespace] {
    return this.#state.pods;
  }

  async #fresh(): Promise<void> {
    const node = await testNode();
    await this.setup.prepare?.(node);
    const pods = [await node.container("a"), await node.container("b")] as const;
    this.#state = { node, pods };
    this.#neighbour = undefined;
    await wrapTools(node);
    // Bridge, shared chains and forwarding stay for good: they are there before the first look.
    const warm = this.attachment(0);
    await warm.add();
    await warm.del();
    this.#before = await this.#look();
  }

  /**
   * Sees to it that the second container is attached, or not. It stays so for the tries to come: nothing that they do
   * is about it.
   */
  async neighbour(wanted: boolean): Promise<void> {
    if (wanted === (this.#neighbour !== undefined)) return;
    if (!wanted) return await this.renew();
    this.#neighbour = this.attachment(1);
    await this.#neighbour.add();
    await this.#neighbour.check();
    this.#before = await this.#look();
  }

  async #look(): Promise<State> {
    const elsewhere = await this.setup.elsewhere?.(this.node) ?? [];
    const [host, notes, ...pods] = await Promise.all([
      snapshot(this.node),
      this.#notes(),
      ...this.pods.map(async (pod) => (await pod.ipJson("addr", "show")).map((link) => podLine(pod, link))),
    ]);
    return { host, inside: [...notes, ...pods.flat(), ...elsewhere] };
  }

  /**
   * Files below /run/cnibox but for what each call drops there for its tools and the index of the leases, which is an
   * aid only.
   */
  async #notes(): Promise<string[]> {
    const folders = (await this.node.list("/run/cnibox")).filter((name) => name !== "io" && name !== "host-local");
    const names = await Promise.all(folders.map((folder) => this.node.list(`/run/cnibox/${folder}`)));
    return folders.flatMap((folder, index) => (names[index] ?? []).map((name) => `/run/cnibox/${folder}/${name}`));
  }

  /** A new node: after a leak, the next try must not inherit it. */
  async renew(): Promise<void> {
    await this.node.close();
    await this.#fresh();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.node.close();
  }

  /** The attachment of one of the two containers. */
  attachment(index: 0 | 1): Attachment {
    const { plugins, capabilities } = this.setup;
    const conf = { cniVersion: "1.1.0", name: "net1", plugins: [...plugins] };
    return new Attachment(this.node, conf, this.pods[index], index === 0 && capabilities ? { capabilities } : {});
  }

  /** What differs from the state before; empty when nothing does. */
  async residue(): Promise<string[]> {
    const { host, inside } = await this.#look();
    return [
      ...difference(this.#before.host, host, { allow: [hostLocalLeftovers, ...this.setup.own ?? []] }),
      ...this.#before.inside.filter((line) => !inside.includes(line)).map((line) => `- ${line}`),
      ...inside.filter((line) => !this.#before.inside.includes(line)).map((line) => `+ ${line}`),
    ];
  }
}

/** What can be told of a node. */
interface State {
  readonly host: Snapshot;
  /** Links of the containers with their addresses, files of ours below /run, and what the network has elsewhere. */
  readonly inside: readonly string[];
}

function podLine({ name }: Namespace, { ifname, address, mtu, flags, addr_info }: Json): string {
  const addresses = addr_info.filter(({ scope, family }: Json) => scope !== "link" || family === "inet")
    .map(({ local, prefixlen }: Json) => `${local}/${prefixlen}`);
  return `${name}: ${ifname} ${address} mtu ${mtu} ${flags.includes("UP") ? "up" : "down"} ${addresses.join(" ")}`;
}

/** What is done to one call, and what has to come of it. */
interface Hit {
  /** Which call: index in the order in which the operation goes through the list. */
  readonly place: number;
  readonly extra: Partial<Parameters<typeof runPlugin>[1]>;
  /** Was the call really hit? Always, if absent. */
  readonly landed?: (output: PluginOutput) => Promise<boolean> | boolean;
  /** The call has to answer, and an ADD that answers an error has to have undone everything. */
  readonly answers?: boolean;
  /** If it answers an error, that is code 11. */
  readonly interrupted?: boolean;
  /** It has to answer an error. */
  readonly hasToStop?: boolean;
  /** Its standard output is refused: what is heard of the answer is nobody's promise. */
  readonly muffled?: boolean;
  /** ADD is called once more before DEL. */
  readonly again?: boolean;
  /** A tool has ended well that did not do its work: success proves nothing. */
  readonly lies?: boolean;
}

/** What a try has shown. */
interface Attempt {
  readonly landed: boolean;
  /** Leaks and wrong answers in words. */
  readonly wrong: readonly string[];
}

const VALID = { "cni.dev/valid-attachments": [{ containerID: "b", ifname: "eth0" }] };

/** Carries out an operation with one of its calls hit, then lets a runtime clean up. */
async function attempt(trial: Trial, operation: Command, hit: Hit): Promise<Attempt> {
  await trial.neighbour(operation === "GC");
  const { node, setup } = trial;
  const wrong: string[] = [];
  const [pod] = trial.pods;
  const list = trial.attachment(0);
  let landed = true;
  let failed = false;
  let previous: Json;
  if (operation === "DEL") previous = await list.add();
  if (operation === "GC") await list.add();
  const ordered = operation === "DEL" ? [...setup.plugins].reverse() : setup.plugins;
  for (const [index, plugin] of ordered.entries()) {
    const output = await runPlugin(node, {
      type: plugin.type,
      command: operation,
      netns: operation === "GC" ? null : pod,
      ...(operation === "GC" && { containerId: null, ifName: null }),
      stdin: { ...list.request(plugin, previous), ...(operation === "GC" && VALID) },
      ...(index === hit.place && hit.extra),
    });
    if (index === hit.place && hit.landed) landed = await hit.landed(output);
    if (output.code !== 0) {
      failed = true;
      if (index !== hit.place) wrong.push(`${plugin.type} failed, which nobody had hit: ${output.stdout}`);
      else if (!hit.muffled && (hit.answers || output.code === 1)) wrong.push(...wrongAnswer(output, hit));
      await settled(node);
      if (output.code === 1 && operation === "ADD") wrong.push(...await notUndone(trial, list, index));
      break;
    }
    if (index === hit.place && hit.hasToStop && landed) {
      wrong.push(`it went on as if nothing had been: ${output.stdout}`);
    }
    if (operation === "ADD") previous = output.json;
    // The whole list succeeded: the runtime hands the result to DEL.
    if (operation === "ADD" && index === ordered.length - 1) list.result = previous;
  }
  await settled(node);
  if (hit.again) {
    await list.add().catch((error) => {
      if (!(error instanceof PluginFailed) || typeof error.error?.code !== "number") {
        wrong.push(`ADD once more: ${(error as Error).message.slice(0, 400)}`);
      }
    });
  }
  // Whoever was told that all is removed does not ask once more.
  const done = operation !== "ADD" && !failed && !hit.lies;
  wrong.push(...await cleanedUp(trial, operation, { list, done }));
  return { landed, wrong };
}

/** An error has to be one JSON object of the protocol, without a stack trace. */
function wrongAnswer(output: PluginOutput, { interrupted }: Hit): string[] {
  const { json, code, stdout, stderr } = output;
  if (code !== 1 || typeof json?.code !== "number" || typeof json?.msg !== "string") {
    return [`exit ${code}, stdout ${stdout.slice(0, 200)}, stderr ${stderr.slice(0, 400)}`];
  }
  if (interrupted && json.code !== 11) return [`interrupted, but code ${json.code}: ${stdout}`];
  return /at .*\.(js|ts):\d+/.test(`${stdout}${stderr}`) ? [`a stack trace: ${stdout}${stderr}`] : [];
}

/** After an ADD that answered an error: what it left. Only the plugins before it are told to delete. */
async function notUndone(trial: Trial, list: Attachment, failed: number): Promise<string[]> {
  for (const plugin of trial.setup.plugins.slice(0, failed).reverse()) {
    await runPlugin(trial.node, {
      type: plugin.type,
      command: "DEL",
      netns: trial.pods[0],
      stdin: list.request(plugin),
    });
  }
  return (await trial.residue()).map((line) => `not undone: ${line}`);
}

/** What a runtime does next, and whether that leaves the node as it was. */
async function cleanedUp(
  trial: Trial,
  operation: Command,
  { list, done }: { list: Attachment; done: boolean },
): Promise<string[]> {
  const { node, setup } = trial;
  const wrong: string[] = [];
  const report = (what: string) => (error: unknown) =>
    void wrong.push(`${what}: ${(error as Error).message.slice(0, 400)}`);
  if (operation === "GC") {
    for (const plugin of done ? [] : setup.plugins) {
      const output = await runPlugin(node, {
        type: plugin.type,
        command: "GC",
        netns: null,
        containerId: null,
        ifName: null,
        stdin: { ...list.request(plugin), ...VALID },
      });
      if (output.code !== 0) wrong.push(`second GC: ${output.stdout}`);
    }
    // DEL never comes: the container's namespace goes, and what is in it. On the host GC has to have done everything,
    // and the valid one is as it was, or the states differ.
    await trial.pods[0].exec(["ip", "link", "del", "eth0"]);
  } else if (!done) await list.del().catch(report("DEL"));
  wrong.push(...(await trial.residue()).map((line) => `left: ${line}`));
  return wrong;
}

const TOOL_NAMES = /^(ip|curl|nsenter|iptables.*|ip6tables.*|xtables.*|nft|conntrack|tc|bridge)$/;

/** Waits until no tool that a killed plugin had started is running any more. */
async function settled(node: Node): Promise<void> {
  for (let i = 0; i < 250; i++) {
    const { stdout } = await node.exec(["ps", "-eo", "comm="]);
    if (!stdout.split("\n").some((name) => TOOL_NAMES.test(name.trim()))) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** The points of one call of an operation, from the trace of an undisturbed one. */
async function pointsOf(trial: Trial, operation: Command, place: number): Promise<Point[]> {
  const log = "/run/points";
  const wrap = ["strace", "-qq", "-y", "-s", "200", "-o", log, "-e", `trace=${CHANGING}`, "-e", "signal=none"];
  const { wrong } = await attempt(trial, operation, { place, extra: { wrap } });
  if (wrong.length > 0) throw new Error(`${operation}, undisturbed: ${wrong.join("\n")}`);
  const counts = new Map<string, number>();
  const points: Omit<Point, "hasToStop">[] = [];
  let begun = false;
  let running = 0;
  let hasWaited = false;
  for (const line of (await trial.node.read(log) ?? "").split("\n")) {
    const syscall = /^(\w+)\(/.exec(line)?.[1];
    if (!syscall) continue;
    const nth = (counts.get(syscall) ?? 0) + 1;
    counts.set(syscall, nth);
    const ours = OURS.test(line);
    const starts = STARTING.test(line) && !line.includes("CLONE_THREAD");
    const reaps = REAPED.test(line);
    begun ||= ours || starts;
    // The tool that is waited for has ended.
    if (reaps) running--;
    if (ours || (begun && PROCESS.test(line) && !line.includes("CLONE_THREAD"))) {
      const looks = ours && syscall === "openat" && !WRITING.test(line);
      points.push({ syscall, nth, shown: line.slice(0, 160), looks, reaps, running, hasWaited });
    }
    if (starts) running++;
    hasWaited ||= reaps;
  }
  const lastStart = points.findLastIndex(({ shown }) => STARTING.test(shown));
  const lastWait = points.slice(0, Math.max(0, lastStart)).findLastIndex(({ reaps }) => reaps);
  return points.map((point, index) => ({ ...point, hasToStop: index < lastWait }));
}

/**
 * How strace is told of a fault at a point. Undefined when the fault cannot happen there, or when it is the same as at
 * the next point: the call only looks, or it takes note that a tool has ended, which nobody else can see.
 */
function injection(fault: KillFault | DiskFault, point: Point, shift = 0): string | undefined {
  const { syscall, shown, looks, reaps, running } = point;
  const nth = Math.max(1, point.nth + shift);
  switch (fault) {
    case "killed":
    case "killed, then ADD again":
      return looks || reaps ? undefined : `${syscall}:signal=KILL:when=${nth}`;
    case "killed with its children":
      // Where no tool is at work it is the same as above. Where one is, it has come further at each point.
      return running > 0 ? `${syscall}:signal=KILL:when=${nth}` : undefined;
    case "interrupted":
      return looks || syscall === "exit_group" ? undefined : `${syscall}:signal=TERM:when=${nth}`;
    default:
      return WRITING.test(shown) ? `${syscall}:error=${fault}:when=${nth}` : undefined;
  }
}

/** What strace writes when it has hit; empty when it has not. */
const HIT_LOG = "/run/hit";
/** Its first process is strace, which ends with the plugin; and with the first process every other one ends. */
const AS_A_GROUP = ["unshare", "--pid", "--fork", "--"];
/** The program under the plugin makes calls of its own, to wake its threads, now one more and now one less. */
const SHIFTS = [0, 0, 1, -1, 2, -2, 0, 1];

/** Does the log end with the call that was to be hit, or with one that is the same but for names drawn at random? */
function hasHit({ shown }: Point, log: string, fault: KillFault | DiskFault): boolean {
  const lines = log.split("\n").filter((line) => line !== "" && !line.startsWith("+++ "));
  const hit = fault === "interrupted"
    ? lines[lines.findIndex((line) => line.startsWith("--- SIGTERM")) - 1]
    : fault.startsWith("killed")
    ? lines.at(-1)
    : lines.find((line) => line.includes("(INJECTED)"));
  return hit !== undefined && essence(hit) === essence(shown);
}

function essence(line: string): string {
  const [path = ""] = /(?<=[<"])\/[^>"]+/.exec(line) ?? [];
  const name = path.replace(/io\/[^.]+/, "io/NAME").replace(/[0-9][0-9.]*/g, "N");
  return `${/^\w+/.exec(line)?.[0]} ${PROCESS.test(line) ? "" : name}`;
}

/** What is tried of the points that there are. */
export interface Choice<F extends Fault> {
  readonly fault: F;
  /** Each n-th point; all if absent. */
  readonly every?: number;
  /** They are only counted. */
  readonly dry?: boolean;
}

/** Tries a fault at every point of an operation, or at every n-th. */
export async function tryPoints(
  trial: Trial,
  operation: Command,
  { fault, every = 1, dry = false }: Choice<KillFault | DiskFault>,
): Promise<Outcome> {
  const outcome: Outcome = { operation, setup: trial.setup.name, fault, points: 0, missed: [], leaks: 0, findings: [] };
  if (fault === "killed, then ADD again" && operation !== "ADD") return outcome;
  const stops = fault === "interrupted";
  const kills = killFaults.some((one) => one === fault) && !stops;
  const asGroup = kills && fault !== "killed";
  let number = 0;
  for (const place of trial.setup.plugins.keys()) {
    const points = await remembered(trial.points, `${operation} ${place}`, () => pointsOf(trial, operation, place));
    for (const point of points) {
      if (injection(fault, point) === undefined || number++ % every !== 0) continue;
      if (dry) {
        outcome.points++;
        continue;
      }
      const strace = ["strace", "-qq", "-y", "-s", "200", "-o", HIT_LOG, "-e", `trace=${point.syscall}`];
      const hit: Omit<Hit, "extra"> = {
        place,
        landed: async () => hasHit(point, await trial.node.read(HIT_LOG) ?? "", fault),
        // Before they wait for something, all but ADD end by SIGTERM as by SIGKILL, and are called again.
        answers: !kills && (!stops || operation === "ADD" || point.hasWaited),
        interrupted: stops,
        hasToStop: stops && operation === "ADD" && point.hasToStop,
        again: fault === "killed, then ADD again",
        muffled: point.shown.startsWith("write(1<"),
      };
      let tried: Attempt = { landed: false, wrong: [] };
      for (const shift of SHIFTS) {
        const inject = injection(fault, point, shift);
        if (tried.landed || inject === undefined) break;
        // What went wrong because something else was hit has to be gone.
        if (tried.wrong.length > 0) await trial.renew();
        const wrap = [...asGroup ? AS_A_GROUP : [], ...strace, "-e", `inject=${inject}`];
        tried = await attempt(trial, operation, { ...hit, extra: { wrap } });
      }
      const where = `place ${place} at ${point.syscall}#${point.nth} ${point.shown}`;
      await count(trial, outcome, { ...tried, where });
    }
  }
  return outcome;
}

async function remembered<T>(known: Map<string, Promise<T>>, key: string, find: () => Promise<T>): Promise<T> {
  const found = known.get(key) ?? find();
  known.set(key, found);
  return await found;
}

async function count(
  trial: Trial,
  outcome: Outcome,
  { landed, wrong, where }: Attempt & { readonly where: string },
): Promise<void> {
  if (landed) outcome.points++;
  else outcome.missed.push(where);
  if (wrong.length === 0) return;
  if (!landed) return await trial.renew();
  outcome.leaks++;
  outcome.findings.push(`${outcome.operation} ${outcome.setup} ${outcome.fault} ${where}\n    ${wrong.join("\n    ")}`);
  await trial.renew();
}

/** Tools that the tried plugins use. */
const TOOLS = [
  ...["ip", "bridge", "tc", "nsenter", "conntrack", "ss", "nft", "curl"],
  ...["iptables", "iptables-restore", "iptables-save", "ip6tables", "ip6tables-restore", "ip6tables-save"],
];

/** Tools of which the n-th start fails as asked. */
async function wrapTools(node: Node): Promise<void> {
  await node.sh("mkdir -p /run/fault/n");
  for (const tool of TOOLS) {
    const real = await realTool(node, tool);
    if (real === undefined) continue;
    await standIn(
      node,
      tool,
      `n=1; until mkdir /run/fault/n/$n 2>/dev/null; do n=$((n+1)); done
if [ "$n" = "$(cat /run/fault/target)" ]; then case $(cat /run/fault/mode) in
  "tool exits 1") echo "something went wrong" >&2; exit 1 ;;
  "tool fails after its work") ${real} "$@"; echo "something went wrong" >&2; exit 1 ;;
  "tool is killed") kill -9 $$ ;;
  "tool prints garbage") echo '[{"not": json'; exit 0 ;;
  "tool is missing") exit 127 ;;
  "tool hangs") exec sleep 1000 ;;
esac; fi
exec ${real} "$@"`,
    );
  }
}

/** Tries a failing tool at every start of a tool that an operation makes. */
export async function tryTools(
  trial: Trial,
  operation: Command,
  { fault, every = 1, dry = false }: Choice<ToolFault>,
): Promise<Outcome> {
  const outcome: Outcome = { operation, setup: trial.setup.name, fault, points: 0, missed: [], leaks: 0, findings: [] };
  const extra = { env: { CNIBOX_TOOL_TIMEOUT: fault === "tool hangs" ? "2" : "30" }, wrap: withStandIns };
  const arm = (target: number) =>
    trial.node.sh(
      'rm -rf /run/fault/n; mkdir /run/fault/n; echo "$1" >/run/fault/target; echo "$2" >/run/fault/mode',
      String(target),
      fault,
    );
  let number = 0;
  for (const place of trial.setup.plugins.keys()) {
    const starts = await remembered(trial.starts, `${operation} ${place}`, async () => {
      await arm(0);
      const { wrong } = await attempt(trial, operation, { place, extra });
      if (wrong.length > 0) throw new Error(`${operation}, undisturbed: ${wrong.join("\n")}`);
      return (await trial.node.list("/run/fault/n")).length;
    });
    for (let target = 1; target <= starts; target++) {
      if (number++ % every !== 0) continue;
      if (dry) {
        outcome.points++;
        continue;
      }
      await arm(target);
      const tried = await attempt(trial, operation, {
        place,
        extra,
        answers: true,
        lies: fault === "tool prints garbage",
        landed: async () => (await trial.node.list("/run/fault/n")).length >= target,
      });
      if (fault === "tool hangs") await trial.node.exec(["pkill", "-9", "-x", "sleep"]);
      await count(trial, outcome, { ...tried, where: `place ${place} at start ${target} of a tool` });
    }
  }
  return outcome;
}

/** The IPAM folder vanishes between ADD and DEL. */
export async function tryLostFolder(trial: Trial): Promise<Outcome> {
  const fault = "lost folder" as const;
  const outcome: Outcome = {
    operation: "DEL",
    setup: trial.setup.name,
    fault,
    points: 0,
    missed: [],
    leaks: 0,
    findings: [],
  };
  await trial.neighbour(false);
  const list = trial.attachment(0);
  await list.add();
  await trial.node.sh("rm -rf /var/lib/cni/networks");
  const wrong: string[] = [];
  await list.del().catch((error) => wrong.push(`DEL: ${(error as Error).message}`));
  wrong.push(...(await trial.residue()).filter((line) => !/\/networks/.test(line)));
  await count(trial, outcome, { landed: true, wrong, where: "between ADD and DEL" });
  await trial.renew();
  return outcome;
}
