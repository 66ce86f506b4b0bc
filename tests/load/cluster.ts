/**
 * `deno task test:cluster-load`: addresses of one pool for several machines at once, on an etcd with a member on each
 * of them. `--adds N` in all, `--at-once N`, `--hosts N`, `--subnet CIDR`, `--block-size N`, `--timeout DURATION`. Ends
 * with 1 when an address was given twice, when a call failed for another reason than a full pool, or when something is
 * left after DEL of everything and `cnibox cluster trim`.
 */
import { parseArgs } from "@std/cli/parse-args";
import { quantile } from "../bench/measure.ts";
import type { Node } from "../e2e/support/node.ts";
import { must } from "../e2e/support/operator.ts";
import { type Json, runPlugin } from "../e2e/support/plugins.ts";
import { switchboard, type World } from "../e2e/support/world.ts";

const args = parseArgs(Deno.args, {
  string: ["adds", "at-once", "hosts", "subnet", "block-size", "timeout"],
  default: { "adds": "150", "at-once": "32", "hosts": "3", "subnet": "10.42.0.0/16", "timeout": "20s" },
});
const [adds, atOnce, hosts] = [args["adds"], args["at-once"], args["hosts"]].map(Number) as [number, number, number];
const size = args["block-size"];
const say = (text: string) => void Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
const load = () => Deno.readTextFileSync("/proc/loadavg").split(" ").slice(0, 2).join(" ");

function conf(world: World, node: Node): Json {
  return {
    cniVersion: "1.1.0",
    name: "pods",
    ipam: {
      type: "cluster",
      node: world.nameOf(node),
      ranges: [[{ subnet: args["subnet"] }]],
      ...(size && { blockSize: Number(size) }),
      timeout: args["timeout"],
      store: { etcd: { endpoints: world.endpoints } },
    },
  };
}

interface Added {
  readonly node: Node;
  readonly id: string;
  readonly address: string | undefined;
  readonly ms: number;
  /** Code and message, where there is no address. */
  readonly refusal: string;
}

async function add(world: World, node: Node, id: string): Promise<Added> {
  const from = performance.now();
  const about = { type: "cluster", command: "ADD", containerId: id, netns: "/run/netns/none" } as const;
  const { code, json, stdout } = await runPlugin(node, { ...about, stdin: conf(world, node) });
  const ms = performance.now() - from;
  const refusal = code === 0 ? "" : `${json?.code} ${json?.msg ?? stdout}; ${json?.details}`;
  return { node, id, address: json?.ips?.[0]?.address, ms, refusal };
}

async function inParallel<T, R>(items: readonly T[], work: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  const left = items.values();
  await Promise.all(Array.from({ length: atOnce }, async () => {
    for (const item of left) results.push(await work(item));
  }));
  return results;
}

/** Records in etcd, and files of each machine. */
async function state(world: World): Promise<string> {
  const body = JSON.stringify({ key: btoa("/"), range_end: btoa("0"), keys_only: true });
  const { kvs = [] } = JSON.parse(await world.hub.run("curl", "-s", "-f", "-d", body, `${world.etcd}/v3/kv/range`));
  const files = await Promise.all(world.nodes.map((node) => node.sh("cd /var/lib/cni && find . | sort")));
  return JSON.stringify([kvs, files], undefined, 1);
}

async function release(world: World, all: readonly Added[]): Promise<number> {
  const failed = await inParallel(all, async ({ node, id }) => {
    const about = { type: "cluster", command: "DEL", containerId: id, netns: "/run/netns/none" } as const;
    return (await runPlugin(node, { ...about, stdin: conf(world, node) })).code !== 0;
  });
  for (const node of world.nodes) await must(node, ["cluster", "trim"]);
  return failed.filter((one) => one).length;
}

await using world = await switchboard(hosts, { etcd: { onMachines: true } });
for (const [index, node] of world.nodes.entries()) {
  await node.write("/etc/machine-id", `${index + 1}`.repeat(32) + "\n");
  const { ipam } = conf(world, node);
  const list = { cniVersion: "1.1.0", name: "pods", plugins: [{ type: "bridge", ipam }] };
  await node.write("/etc/cni/net.d/10-pods.conflist", JSON.stringify(list));
}
// Folders, locks and what is asked for once in a boot are there before the first look.
await release(world, await Promise.all(world.nodes.map((node) => add(world, node, "first"))));
const before = await state(world);

const processor = /model name\s*: (.*)/.exec(Deno.readTextFileSync("/proc/cpuinfo"))?.[1] ?? Deno.build.arch;
say(`${hosts} hosts, ${hosts} etcd members, ${args["subnet"]}, ${adds} ADDs, ${atOnce} at once`);
say(`${navigator.hardwareConcurrency} × ${processor}, load ${load()}`);
const from = performance.now();
const all = await inParallel(
  Array.from({ length: adds }, (_, index) => index),
  (index) => add(world, world.nodes[index % hosts]!, `c${index}`),
);
const seconds = (performance.now() - from) / 1000;
const given = all.filter(({ address }) => address !== undefined);
const different = new Set(given.map(({ address }) => address)).size;
const full = all.filter(({ refusal }) => refusal.startsWith("100 "));
const failed = all.filter(({ refusal }) => refusal !== "" && !refusal.startsWith("100 "));
const times = all.map(({ ms }) => ms);
say(`given ${given.length}, different ${different}, "full" ${full.length}, failed ${failed.length}`);
say(
  `p50 ${quantile(times, 0.5).toFixed(0)} ms, p99 ${quantile(times, 0.99).toFixed(0)} ms, ` +
    `${(given.length / seconds).toFixed(1)} addresses a second; load ${load()}`,
);
if (full[0]) say(`full: ${full[0].refusal}`);
for (const { refusal } of failed.slice(0, 5)) say(`failed: ${refusal}`);
const notReleased = await release(world, given);
const isClean = await state(world) === before;
say(`DEL failed ${notReleased}; records and files ${isClean ? "as before" : "differ"}`);
Deno.exitCode = different === given.length && failed.length === 0 && notReleased === 0 && isClean ? 0 : 1;
