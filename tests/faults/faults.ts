/**
 * Calls that go wrong at one chosen point: killed, interrupted, refused by the file system, let down by a tool. After each, the node
 * has to be as it was once DEL (or GC) has been called the way a runtime calls it.
 *
 * Points are the system calls of the plugin's main thread that change something or start a process, as strace sees them in an
 * undisturbed run; strace then injects the fault into the n-th call of that name.
 */
import {
  Attachment,
  type Command,
  difference,
  hostLocalLeftovers,
  type Json,
  type Namespace,
  type Node,
  type PluginOutput,
  runPlugin,
  type Snapshot,
  snapshot,
  testNode,
} from "../e2e/support/mod.ts";

/** What is attached: a network list, and what the runtime knows. */
export interface Setup {
  readonly name: string;
  readonly plugins: readonly Json[];
  readonly capabilities?: Record<string, unknown>;
  /** Done once on a fresh node. */
  readonly prepare?: (node: Node) => Promise<unknown>;
}

const hostLocal = (subnet: string) => ({ type: "host-local", ranges: [[{ subnet }]] });

/** The networks that are tried. */
export const setups: readonly Setup[] = [
  {
    name: "bridge+host-local+portmap",
    plugins: [
      { type: "bridge", bridge: "br1", isDefaultGateway: true, ipMasq: true, ipam: hostLocal("10.22.0.0/24") },
      { type: "portmap", capabilities: { portMappings: true } },
    ],
    capabilities: { portMappings: [{ hostPort: 8080, containerPort: 80, protocol: "tcp" }] },
  },
  { name: "ptp+host-local", plugins: [{ type: "ptp", ipMasq: true, ipam: hostLocal("10.23.0.0/24") }] },
  {
    name: "macvlan+host-local",
    plugins: [{ type: "macvlan", master: "up0", ipam: hostLocal("10.24.0.0/24") }],
    prepare: (node) => node.ip("link add up0 type veth peer name up1", "link set up0 up", "link set up1 up"),
  },
];

/** One place where a call can be hit. */
export interface Point {
  readonly syscall: string;
  /** It is the n-th call of that name by the main thread. */
  readonly nth: number;
  readonly shown: string;
}

/** How a call is hit. */
export type Fault =
  | "killed"
  | "killed with its children"
  | "interrupted"
  | "ENOSPC"
  | "EROFS"
  | "EACCES"
  | "EIO"
  | ToolFault;
/** How a tool lets us down. */
export type ToolFault = "tool exits 1" | "tool is killed" | "tool prints garbage" | "tool is missing" | "tool hangs";

export const killFaults: readonly Fault[] = ["killed", "killed with its children", "interrupted"];
export const diskFaults: readonly Fault[] = ["ENOSPC", "EROFS", "EACCES", "EIO"];
export const toolFaults: readonly ToolFault[] = [
  "tool exits 1",
  "tool is killed",
  "tool prints garbage",
  "tool is missing",
  "tool hangs",
];

/** System calls that change something, start something, or wait for it. */
const CHANGING =
  "clone,clone3,vfork,wait4,waitid,openat,link,linkat,unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat,write,pwrite64,ftruncate,flock,fsync,fdatasync";
/** Only these can fail for want of space or rights. */
const WRITING =
  /^(openat|link|linkat|unlink|unlinkat|rename|renameat2?|mkdir|mkdirat|write|pwrite64|ftruncate|fsync|fdatasync)$/;
/** What of the file system concerns us. */
const OURS = /\/(var\/lib\/cni|run\/cnibox|run\/netns|proc\/sys\/net)/;

/** What the result of one operation over all its points is. */
export interface Outcome {
  readonly operation: Command;
  readonly setup: string;
  readonly fault: Fault;
  points: number;
  leaks: number;
  /** Each leak or wrong answer in words. */
  readonly findings: string[];
}

/** A node with one attached network at hand, brought back to the same state before every try. */
export class Trial implements AsyncDisposable {
  #before: Snapshot | undefined;

  private constructor(readonly setup: Setup, readonly node: Node, readonly pods: readonly [Namespace, Namespace]) {}

  static async create(setup: Setup): Promise<Trial> {
    const node = await testNode();
    await setup.prepare?.(node);
    const pods = [await node.container("a"), await node.container("b")] as const;
    const trial = new Trial(setup, node, pods);
    // Bridge, shared chains and forwarding stay for good: they are there before the first look.
    const warm = trial.attachment(0);
    await warm.add();
    await warm.del();
    trial.#before = await snapshot(node);
    return trial;
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

  /** What differs from the state before anything was attached; empty when nothing does. */
  async residue(): Promise<string[]> {
    const allow = [hostLocalLeftovers, /\/run\/cnibox/];
    const host = difference(this.#before!, await snapshot(this.node), { allow });
    const links = await Promise.all(
      this.pods.map(async (pod) => (await pod.ipJson("link", "show")).map(({ ifname }) => `${pod.name}: ${ifname}`)),
    );
    return [
      ...host,
      ...links.flat().filter((link) =>
        !/: (lo|tunl0|gre0|gretap0|erspan0|sit0|ip6tnl0|ip6gre0|ip6_vti0|ip_vti0)$/.test(link)
      ),
    ];
  }
}

/** One call of one plugin of the list, as the runtime makes it. */
interface Single {
  readonly command: Command;
  readonly plugin: Json;
  readonly stdin: Json;
}

/** Carries out an operation with one of its calls hit, then lets a runtime clean up. Returns what is wrong. */
async function attempt(
  trial: Trial,
  operation: Command,
  hit: (call: Single) => Parameters<typeof runPlugin>[1] | undefined,
): Promise<{ happened: boolean; wrong: string[] }> {
  const { node, setup } = trial;
  const wrong: string[] = [];
  let happened = false;
  const [pod] = trial.pods;
  const list = trial.attachment(0);
  const other = trial.attachment(1);
  let previous: Json;
  if (operation === "DEL") previous = await list.add();
  if (operation === "GC") {
    await list.add();
    await other.add();
  }
  const ordered = operation === "DEL" ? [...setup.plugins].reverse() : setup.plugins;
  for (const plugin of ordered) {
    const valid = operation === "GC" ? { "cni.dev/valid-attachments": [{ containerID: "b", ifname: "eth0" }] } : {};
    const stdin = { ...list.request(plugin, previous), ...valid };
    const base = {
      type: plugin.type,
      command: operation,
      netns: operation === "GC" ? null : pod,
      ...(operation === "GC" && { containerId: null, ifName: null }),
      stdin,
    };
    const extra = hit({ command: operation, plugin, stdin });
    const output = await runPlugin(node, { ...base, ...extra });
    if (extra) happened = true;
    if (output.code !== 0) {
      wrong.push(...wrongAnswer(output));
      break;
    }
    if (operation === "ADD") previous = output.json;
  }
  await settled(node);
  wrong.push(...await cleanedUp(trial, operation, { list, other }));
  return { happened, wrong };
}

/** An error has to be one JSON object of the protocol; a killed call says nothing. */
function wrongAnswer(output: PluginOutput): string[] {
  if (output.code >= 128) return [];
  const { json, code, stdout, stderr } = output;
  if (code !== 1 || typeof json?.code !== "number" || typeof json?.msg !== "string") {
    return [`exit ${code}, stdout ${stdout.slice(0, 200)}, stderr ${stderr.slice(0, 200)}`];
  }
  return /at .*\.(js|ts):\d+/.test(`${stdout}${stderr}`) ? [`a stack trace: ${stdout}${stderr}`] : [];
}

/** What a runtime does next, and whether that leaves the node as it was. */
async function cleanedUp(
  trial: Trial,
  operation: Command,
  { list, other }: { list: Attachment; other: Attachment },
): Promise<string[]> {
  const { node, setup } = trial;
  const wrong: string[] = [];
  const report = (what: string) => (error: unknown) =>
    void wrong.push(`${what}: ${(error as Error).message.slice(0, 400)}`);
  if (operation === "GC") {
    const valid = { "cni.dev/valid-attachments": [{ containerID: "b", ifname: "eth0" }] };
    for (const plugin of setup.plugins) {
      const stdin = { ...list.request(plugin), ...valid };
      const output = await runPlugin(node, {
        type: plugin.type,
        command: "GC",
        netns: null,
        containerId: null,
        ifName: null,
        stdin,
      });
      if (output.code !== 0) wrong.push(`second GC: ${output.stdout}`);
    }
    await other.check().catch(report("CHECK of the valid one after GC"));
    await other.del().catch(report("DEL of the valid one"));
  }
  await list.del().catch(report("DEL"));
  wrong.push(...(await trial.residue()).map((line) => `left: ${line}`));
  return wrong;
}

/** Waits until no tool that a killed plugin had started is running any more. */
async function settled(node: Node): Promise<void> {
  for (let i = 0; i < 100; i++) {
    const { stdout } = await node.exec(["/bin/sh", "-c", "ps -eo comm="]);
    if (!/^(ip|nsenter|iptables.*|ip6tables.*|nft|conntrack|tc|bridge)$/m.test(stdout)) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** The points of one plugin's part of an operation, from an undisturbed run. */
async function pointsOf(trial: Trial, operation: Command, index: number): Promise<Point[]> {
  const { node } = trial;
  const log = "/run/points";
  let at = 0;
  await attempt(
    trial,
    operation,
    () =>
      at++ === index
        ? {
          type: trial.setup.plugins[index].type,
          wrap: ["strace", "-qq", "-y", "-s", "200", "-o", log, "-e", `trace=${CHANGING}`, "-e", "signal=none"],
        }
        : undefined,
  );
  const counts = new Map<string, number>();
  const points: Point[] = [];
  let started = false;
  for (const line of (await node.read(log) ?? "").split("\n")) {
    const syscall = /^(\w+)\(/.exec(line)?.[1];
    if (!syscall) continue;
    const nth = (counts.get(syscall) ?? 0) + 1;
    counts.set(syscall, nth);
    const process = /^(clone3?|vfork|wait4|waitid|flock)$/.test(syscall) && !line.includes("CLONE_THREAD");
    if (OURS.test(line)) started = true;
    if (OURS.test(line) || (started && process)) points.push({ syscall, nth, shown: line.slice(0, 120) });
  }
  return points;
}

/** How strace is told of a fault at a point; undefined when the fault cannot happen there. */
function injection(fault: Fault, { syscall, nth }: Point): string | undefined {
  if (fault === "killed" || fault === "killed with its children") return `${syscall}:signal=KILL:when=${nth}`;
  if (fault === "interrupted") return `${syscall}:signal=TERM:when=${nth}`;
  if (diskFaults.includes(fault)) return WRITING.test(syscall) ? `${syscall}:error=${fault}:when=${nth}` : undefined;
  return undefined;
}

/** Tries a fault at every point of an operation, or at every n-th. */
export async function tryPoints(
  trial: Trial,
  operation: Command,
  { fault, every = 1 }: { fault: Fault; every?: number },
): Promise<Outcome> {
  const outcome: Outcome = { operation, setup: trial.setup.name, fault, points: 0, leaks: 0, findings: [] };
  const { node } = trial;
  for (const [index, plugin] of trial.setup.plugins.entries()) {
    // DEL goes through the list backwards.
    const place = operation === "DEL" ? trial.setup.plugins.length - 1 - index : index;
    const points = await pointsOf(trial, operation, place);
    for (const [number, point] of points.entries()) {
      const inject = injection(fault, point);
      if (inject === undefined || number % every !== 0) continue;
      const group = fault === "killed with its children"
        ? [
          "/bin/sh",
          "-c",
          '"$@"; s=$?; pkill -9 -x "ip|nsenter|sh|iptables-restor|ip6tables-resto|nft|conntrack"; exit $s',
          "sh",
        ]
        : [];
      let at = 0;
      const wrap = [
        ...group,
        "strace",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        `trace=${point.syscall}`,
        "-e",
        `inject=${inject}`,
      ];
      const { wrong } = await attempt(trial, operation, () => at++ === place ? { type: plugin.type, wrap } : undefined);
      count(outcome, wrong, `${operation} ${plugin.type} ${fault} at ${point.syscall}#${point.nth} ${point.shown}`);
      if (wrong.length > 0) await startAfresh(trial);
    }
    await node.sh("rm -rf /run/cnibox/io/*");
  }
  return outcome;
}

function count(outcome: Outcome, wrong: string[], where: string): void {
  outcome.points++;
  if (wrong.length === 0) return;
  outcome.leaks++;
  outcome.findings.push(`${where}\n    ${wrong.join("\n    ")}`);
}

/** After a leak, the next try must not inherit it. */
async function startAfresh({ node, pods }: Trial): Promise<void> {
  await node.sh(
    "iptables -t nat -F; iptables -t nat -X; rm -f /var/lib/cni/networks/net1/[0-9]*; for v in $(ls /sys/class/net | grep ^veth); do ip link del $v; done; true",
  );
  for (const pod of pods) await pod.exec(["/bin/sh", "-c", "ip link del eth0"]);
}

/** Tools that the tried plugins use. */
const TOOLS = ["ip", "nsenter", "sh", "iptables-restore", "iptables-save", "conntrack", "nft"];

/** Puts wrappers before the real tools: the n-th start of one of them fails as asked. */
async function wrapTools(node: Node): Promise<void> {
  await node.sh("mkdir -p /usr/local/sbin /run/fault 2>/dev/null || mkdir -p /run/fault");
  for (const tool of TOOLS) {
    const { stdout } = await node.exec(["/bin/sh", "-c", `command -v ${tool}`]);
    const real = stdout.trim();
    if (real === "" || tool === "sh") continue;
    await node.write(
      `/run/fault/${tool}`,
      `#!/bin/sh
n=$(cat /run/fault/count 2>/dev/null || echo 0); n=$((n+1)); echo $n >/run/fault/count
if [ "$n" = "$(cat /run/fault/target)" ]; then case $(cat /run/fault/mode) in
  "tool exits 1") echo "something went wrong" >&2; exit 1 ;;
  "tool is killed") kill -9 $$ ;;
  "tool prints garbage") echo '[{"not": json'; exit 0 ;;
  "tool is missing") exit 127 ;;
  "tool hangs") exec sleep 1000 ;;
esac; fi
exec ${real} "$@"
`,
      0o755,
    );
  }
}

/** Tries a failing tool at every start of a tool that an operation makes. */
export async function tryTools(
  trial: Trial,
  operation: Command,
  { fault, every = 1 }: { fault: ToolFault; every?: number },
): Promise<Outcome> {
  const outcome: Outcome = { operation, setup: trial.setup.name, fault, points: 0, leaks: 0, findings: [] };
  const { node } = trial;
  await wrapTools(node);
  const env = { PATH: "/run/fault:/usr/sbin:/usr/bin:/sbin:/bin", CNIBOX_TOOL_TIMEOUT: "1" };
  const arm = (target: number) =>
    node.sh(
      'echo 0 >/run/fault/count; echo "$1" >/run/fault/target; echo "$2" >/run/fault/mode',
      String(target),
      fault,
    );
  for (const [index, plugin] of trial.setup.plugins.entries()) {
    const place = operation === "DEL" ? trial.setup.plugins.length - 1 - index : index;
    for (let target = 1;; target++) {
      let at = 0;
      await arm(target);
      const { wrong } = await attempt(trial, operation, () => at++ === place ? { type: plugin.type, env } : undefined);
      const used = Number(await node.read("/run/fault/count"));
      await node.exec(["/bin/sh", "-c", "pkill -9 -x sleep"]);
      if (target > used) {
        // Undisturbed: the last start of a tool was passed.
        if (wrong.length > 0) count(outcome, wrong, `${operation} ${plugin.type} undisturbed`);
        break;
      }
      if (target % every === 0) {
        count(outcome, wrong, `${operation} ${plugin.type} ${fault} at start ${target} of a tool`);
      }
      if (wrong.length > 0) await startAfresh(trial);
    }
  }
  return outcome;
}

/** The IPAM folder vanishes between ADD and DEL. */
export async function tryLostFolder(trial: Trial): Promise<Outcome> {
  const outcome: Outcome = {
    operation: "DEL",
    setup: trial.setup.name,
    fault: "EIO",
    points: 0,
    leaks: 0,
    findings: [],
  };
  const list = trial.attachment(0);
  await list.add();
  await trial.node.sh("rm -rf /var/lib/cni/networks");
  const wrong: string[] = [];
  await list.del().catch((error) => wrong.push(`DEL: ${(error as Error).message}`));
  wrong.push(...(await trial.residue()).filter((line) => !/networks/.test(line)));
  count(outcome, wrong, "the IPAM folder deleted between ADD and DEL");
  return outcome;
}
