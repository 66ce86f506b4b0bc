/**
 * `deno task test:node-load`: what `cnibox node` costs beside many other nodes, which are records in an etcd and
 * nothing else. `--peers N`, `--seconds N` of quiet running, `--changes N` of one record after that.
 */
import { parseArgs } from "@std/cli/parse-args";
import type { Node } from "../e2e/support/node.ts";
import { eventually } from "../e2e/support/traffic.ts";
import { switchboard, type World } from "../e2e/support/world.ts";

const args = parseArgs(Deno.args, {
  string: ["peers", "seconds", "changes"],
  default: { peers: "100", seconds: "180", changes: "5" },
});
const [peers, seconds, changes] = [args["peers"], args["seconds"], args["changes"]].map(Number) as [
  number,
  number,
  number,
];
const say = (text: string) => void Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const TICKS = 100;

const PREFIX = "/coreos.com/network";
const keyOf = (peer: number) => `${PREFIX}/subnets/10.${100 + (peer >> 8)}.${peer & 255}.0-24`;

/** A peer as flanneld writes it; with another `turn` its device has another hardware address. */
function record(peer: number, turn = 0): string {
  const bytes = [peer >> 8, peer & 255, turn].map((one) => one.toString(16).padStart(2, "0"));
  const BackendData = { VNI: 1, VtepMAC: `5a:00:00:${bytes.join(":")}` };
  return JSON.stringify({ PublicIP: `10.200.${peer >> 8}.${peer & 255}`, BackendType: "vxlan", BackendData });
}

interface Usage {
  /** Milliseconds of processor time, of tools that have ended too. */
  readonly cpuMs: number;
  readonly memoryMiB: number;
}

async function usage(node: Node, pid: number): Promise<Usage> {
  const stat = (await node.sh('cat "/proc/$1/stat"', `${pid}`)).replace(/^.*\) /, "").split(" ");
  const status = await node.sh('cat "/proc/$1/status"', `${pid}`);
  // Fields 14 to 17: user and system, its own and that of children.
  const ticks = stat.slice(11, 15).reduce((sum, one) => sum + Number(one), 0);
  return { cpuMs: ticks * 1000 / TICKS, memoryMiB: Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1]) / 1024 };
}

async function fdb(node: Node, mac: string): Promise<boolean> {
  return (await node.run("bridge", "fdb", "show", "dev", "flannel.1")).includes(mac);
}

async function fill(world: World): Promise<void> {
  await world.put(
    `${PREFIX}/config`,
    JSON.stringify({ Network: "10.0.0.0/8", SubnetLen: 24, Backend: { Type: "vxlan" } }),
  );
  for (let from = 1; from <= peers; from += 100) {
    const numbers = Array.from({ length: Math.min(100, peers - from + 1) }, (_, at) => from + at);
    const success = numbers.map((one) => ({ request_put: { key: btoa(keyOf(one)), value: btoa(record(one)) } }));
    await world.hub.write("/run/txn", JSON.stringify({ success }));
    await world.hub.run("curl", "-s", "-f", "-d", "@/run/txn", `${world.etcd}/v3/kv/txn`);
  }
}

await using world = await switchboard(1);
const [node] = world.nodes as [Node];
await fill(world);
const conf = { store: { etcd: { endpoints: world.endpoints } }, conflist: {}, node: "node1" };
await node.write("/etc/cnibox/node.json", JSON.stringify(conf));
const agent = node.spawn(["/opt/cni/bin/cnibox", "node"]);
let pid = 0;
await eventually("the agent has a way to every node", async () => {
  const text = await node.read("/run/cnibox/node.json");
  const now = text === undefined ? undefined : JSON.parse(text);
  pid = now?.pid ?? 0;
  return now?.ready === true && now.nodes.length === peers;
}, 300_000).catch((error) => {
  throw new Error(`${error}\n${agent.stderr}`);
});
const load = () => Deno.readTextFileSync("/proc/loadavg").split(" ").slice(0, 2).join(" ");
const processor = /model name\s*: (.*)/.exec(Deno.readTextFileSync("/proc/cpuinfo"))?.[1] ?? Deno.build.arch;
say(`${peers} peers on vxlan; ${navigator.hardwareConcurrency} × ${processor}, load ${load()}`);
const start = await usage(node, pid);
say(`ready: ${start.memoryMiB.toFixed(0)} MiB, ${start.cpuMs.toFixed(0)} ms of processor time since its start`);
// A leak shows as a slope.
const SAMPLES = 6;
const memory: string[] = [];
let quiet = start;
for (let sample = 0; sample < SAMPLES; sample++) {
  await sleep(seconds * 1000 / SAMPLES);
  quiet = await usage(node, pid);
  memory.push(quiet.memoryMiB.toFixed(0));
}
const hourly = (quiet.cpuMs - start.cpuMs) / seconds * 3600 / 1000;
say(
  `${seconds} s of nothing new: ${quiet.memoryMiB.toFixed(0)} MiB, ${(quiet.cpuMs - start.cpuMs).toFixed(0)} ms, ` +
    `which is ${hourly.toFixed(1)} s an hour; MiB on the way: ${memory.join(" ")}`,
);
for (let turn = 1; turn <= changes; turn++) {
  await world.put(keyOf(peers), record(peers, turn));
  const mac = JSON.parse(record(peers, turn)).BackendData.VtepMAC;
  await eventually("the change is in the kernel", () => fdb(node, mac), 60_000);
}
// What follows a change, its own events in the kernel included.
await sleep(3_000);
const after = await usage(node, pid);
say(
  `one change: ${((after.cpuMs - quiet.cpuMs) / changes).toFixed(0)} ms of processor time; ${
    after.memoryMiB.toFixed(0)
  } MiB; load ${load()}`,
);
