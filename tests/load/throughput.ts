/**
 * `deno task test:node-throughput`: how fast a pod of one machine sends to a pod of another (iperf3, one TCP stream)
 * over host-gw and vxlan, beside bridges and routes made by hand. All three worlds are there at once and take turns, so
 * that other work on the machine meets them alike. `--seconds N` for each run, `--rounds N`.
 */
import { parseArgs } from "@std/cli/parse-args";
import { quantile } from "../bench/measure.ts";
import { Namespace } from "../e2e/support/node.ts";
import { must } from "../e2e/support/operator.ts";
import type { Json } from "../e2e/support/plugins.ts";
import { eventually, ping } from "../e2e/support/traffic.ts";
import { switchboard, type World } from "../e2e/support/world.ts";

const args = parseArgs(Deno.args, { string: ["seconds", "rounds"], default: { seconds: "5", rounds: "5" } });
const [seconds, rounds] = [Number(args["seconds"]), Number(args["rounds"])];
const say = (text: string) => void Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
const load = () => Deno.readTextFileSync("/proc/loadavg").split(" ").slice(0, 2).join(" ");

interface Pod {
  readonly namespace: Namespace;
  readonly addresses: readonly string[];
}

/** A pod on each of two machines, which reach each other by routes that nobody keeps. */
async function byHand({ nodes }: World): Promise<Pod[]> {
  return await Promise.all(nodes.map(async (node, at) => {
    const [own, other] = at === 0 ? [1, 2] : [2, 1];
    const namespace = await node.container("box");
    await node.ip(
      "link add br0 type bridge",
      `addr add 10.6.${own}.1/24 dev br0`,
      `addr add fd06:0:0:${own}::1/64 dev br0 nodad`,
      `link add veth0 type veth peer name eth0 netns ${namespace.netns}`,
      "link set veth0 master br0 up",
      "link set br0 up",
      `route add 10.6.${other}.0/24 via 10.99.0.${other}`,
      `route add fd06:0:0:${other}::/64 via fd99::${other}`,
    );
    await namespace.ip(
      `addr add 10.6.${own}.2/24 dev eth0`,
      `addr add fd06:0:0:${own}::2/64 dev eth0 nodad`,
      "link set eth0 up",
      `route add default via 10.6.${own}.1`,
      `route add ::/0 via fd06:0:0:${own}::1`,
    );
    return { namespace, addresses: [`10.6.${own}.2`, `fd06:0:0:${own}::2`] };
  }));
}

/** A pod on each of two machines, which `cnibox node` connects. */
async function byAgent(world: World, type: string): Promise<Pod[]> {
  const network = { Network: "10.5.0.0/16", EnableIPv6: true, IPv6Network: "fd05::/48", Backend: { Type: type } };
  await world.put("/coreos.com/network/config", JSON.stringify(network));
  return await Promise.all(world.nodes.map(async (node) => {
    const conf = { store: { etcd: { endpoints: world.endpoints } }, conflist: {}, node: world.nameOf(node) };
    await node.write("/etc/cnibox/node.json", JSON.stringify(conf));
    node.spawn(["/opt/cni/bin/cnibox", "node"]);
    await eventually("the node is ready, and knows the other one", async () => {
      const text = await node.read("/run/cnibox/node.json");
      const now: Json = text && JSON.parse(text);
      return now?.ready === true && now.nodes.length === 1 && now.nodes[0].ways.length === 2;
    }, 60_000);
    const { json } = await must(node, ["add", "cbr0", "box", "--create"]);
    return {
      namespace: new Namespace(node, "box", "/run/netns/box"),
      addresses: json.ips.map(({ address }: Json) => address.split("/")[0]),
    };
  }));
}

interface Way {
  readonly name: string;
  readonly pods: Pod[];
  /** Gbit/s of each round, by family. */
  readonly rates: readonly [number[], number[]];
}

async function measure({ pods: [from, to], rates }: Way): Promise<void> {
  for (const family of [0, 1] as const) {
    const argv = ["iperf3", "-c", to!.addresses[family]!, "-t", String(seconds), "-O", "1", "-J"];
    const { code, stdout, stderr } = await from!.namespace.exec(argv, { timeout: (seconds + 60) * 1000 });
    if (code !== 0) throw new Error(`iperf3: ${stdout}${stderr}`);
    rates[family].push(JSON.parse(stdout).end.sum_received.bits_per_second / 1e9);
  }
}

function shown({ rates }: Way, plain: Way): string {
  return rates.map((all, family) => {
    const ratios = all.map((rate, round) => rate / plain.rates[family]![round]!);
    return `${quantile(all, 0.5).toFixed(1)} Gbit/s (${quantile(ratios, 0.5).toFixed(2)})`;
  }).join(" | ");
}

await using plainWorld = await switchboard(2, { etcd: false });
await using directWorld = await switchboard(2);
await using tunnelWorld = await switchboard(2);
const ways: Way[] = [];
for (
  const [name, pods] of [
    ["routes by hand", await byHand(plainWorld)],
    ["host-gw", await byAgent(directWorld, "host-gw")],
    ["vxlan", await byAgent(tunnelWorld, "vxlan")],
  ] as const
) {
  ways.push({ name, pods, rates: [[], []] });
}
for (const { name, pods: [from, to] } of ways) {
  for (const address of to!.addresses) {
    await eventually(`${name}: ${address} answers`, () => ping(from!.namespace, address), 30_000);
  }
  await to!.namespace.spawn(["iperf3", "-s", "--forceflush"]).until(/Server listening/);
}
const processor = /model name\s*: (.*)/.exec(Deno.readTextFileSync("/proc/cpuinfo"))?.[1] ?? Deno.build.arch;
say(`${rounds} rounds of ${seconds} s; ${navigator.hardwareConcurrency} × ${processor}, load ${load()}`);
for (let round = 0; round < rounds; round++) for (const way of ways) await measure(way);
say("median, and the median of its ratios to routes by hand in the same round:");
for (const way of ways) say(`| ${way.name} | ${shown(way, ways[0]!)} |`);
say(`load ${load()}`);
