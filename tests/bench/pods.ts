/** Pods as a runtime makes them: every member of a list one after the other, with the result of the one before. */
import { folded } from "../../lib/cli/fold.ts";
import { type Json, type Node, PATH } from "../e2e/support/mod.ts";
import type { Side } from "./measure.ts";
import { type Net, nets } from "./work.ts";

const MBIT = 1_000_000;
const bandwidth = { type: "bandwidth", capabilities: { bandwidth: true } };
const RATES = { ingressRate: 80 * MBIT, ingressBurst: 8 * MBIT, egressRate: 40 * MBIT, egressBurst: 8 * MBIT };

/** A list, and for our side the same folded into one entry. */
export interface PodNet {
  readonly list: Net;
  readonly chain: Net;
}

function podNet(name: string, more: readonly Json[]): PodNet {
  const list = {
    ...nets.ports,
    name,
    plugins: [...nets.ports.plugins, ...more],
    capabilities: {
      portMappings: [{ hostPort: 8080, containerPort: 80, protocol: "tcp" }],
      bandwidth: RATES,
    },
  };
  const { capabilities, ...conf } = list;
  return { list, chain: { ...JSON.parse(folded(name, JSON.stringify(conf))), capabilities } };
}

const firewall = { type: "firewall", backend: "iptables" };

/** Lists by their row. */
export const podNets = {
  p2: podNet("p2", []),
  p3: podNet("p3", [firewall]),
  p4: podNet("p4", [firewall, bandwidth]),
};

/**
 * Constant text for bash, which starts nothing but the plugins: commands $4… of a list for container p$1, plugins from
 * folder $2, their types in the words of $3. Configurations are in /run/bench/pod.N.I, without the last brace.
 */
const POD = `
i=$1; folder=$2; types=($3); shift 3
export CNI_COMMAND CNI_CONTAINERID=p$i CNI_NETNS=/run/netns/p$i CNI_IFNAME=eth0
for CNI_COMMAND; do
  prev= from=0 to=\${#types[@]} by=1
  if [ "$CNI_COMMAND" = DEL ]; then
    IFS= read -rd '' prev <"/run/bench/pod.result.$i"
    from=$((to - 1)) to=-1 by=-1
  fi
  for ((n = from; n != to; n += by)); do
    IFS= read -rd '' conf <"/run/bench/pod.$n.$i"
    [ -z "$prev" ] || conf="$conf,\\"prevResult\\":$prev"
    "$folder/\${types[n]}" <<<"$conf}" >"/run/bench/pod.out.$i" || { cat "/run/bench/pod.out.$i"; exit 255; }
    [ "$CNI_COMMAND" != ADD ] || IFS= read -rd '' prev <"/run/bench/pod.out.$i"
  done
  [ "$CNI_COMMAND" != ADD ] || printf %s "$prev" >"/run/bench/pod.result.$i"
done
exit 0
`;

/** Constant text for bash: script $1 for containers 0 … $2 − 1, sixteen at once, with the further arguments. */
const CROWD = `
script=$1 count=$2; shift 2; from=$EPOCHREALTIME
seq 0 $((count - 1)) | xargs -P 16 -I{} bash -c "$script" bash {} "$@" || exit 1
to=$EPOCHREALTIME; echo "us $(( \${to/./} - \${from/./} ))"
`;

/** Containers a second, sixteen at once. */
export interface Rates {
  readonly add: number;
  readonly del: number;
  /** ADD and DEL of a container, one after the other. */
  readonly churn: number;
}

/** Rates of a network on a node that has network namespaces p0 … p(count − 1). */
export async function podRates(node: Node, side: Side, net: Net, count: number): Promise<Rates> {
  const { name, cniVersion, plugins } = net;
  for (let index = 0; index < count; index++) {
    const offered: Record<string, Json> = {
      ...net.capabilities,
      portMappings: [{ hostPort: 10_000 + index, containerPort: 80, protocol: "tcp" }],
    };
    for (const [at, plugin] of plugins.entries()) {
      const { capabilities = {}, ...conf } = plugin;
      const runtimeConfig = Object.fromEntries(Object.keys(capabilities).map((key) => [key, offered[key]]));
      const text = JSON.stringify({ cniVersion, name, ...conf, runtimeConfig });
      await node.write(`/run/bench/pod.${at}.${index}`, text.slice(0, -1));
    }
  }
  const types = plugins.map(({ type }) => type).join(" ");
  const rate = async (count: number, ...commands: string[]) => {
    const { code, stdout, stderr } = await node.exec(
      ["bash", "-c", CROWD, "bash", POD, String(count), side.folder, types, ...commands],
      { env: { PATH, CNI_PATH: side.folder }, timeout: 300_000 },
    );
    const us = Number(/^us (\d+)$/m.exec(stdout)?.[1]);
    if (code !== 0 || !(us > 0)) throw new Error(`${side.name}: ${commands} of many: ${stdout}${stderr}`);
    return count / (us / 1e6);
  };
  // A node at work has had a pod. Of several that are its first the reference's portmap fails: each makes the chain.
  await rate(1, "ADD", "DEL");
  return { add: await rate(count, "ADD"), del: await rate(count, "DEL"), churn: await rate(count, "ADD", "DEL") };
}
