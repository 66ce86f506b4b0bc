/**
 * What `cnibox node` writes for others: the subnet file of the flannel plugin, and a network list for runtimes. Pure
 * texts.
 */
import { isObject } from "../cni/decode.ts";
import type { JsonObject } from "../cni/types.ts";
import { formatPrefix, type Prefix } from "../net/cidr.ts";
import { type NetworkConf, ofFamily } from "./records.ts";

/** What both files are made of. */
export interface Shares {
  readonly conf: NetworkConf;
  readonly subnets: readonly Prefix[];
  readonly mtu: number;
  readonly ipMasq: boolean;
}

/** First line of our subnet file: a comment to everybody else, and the proof that it is ours. */
export const MARK = "# written by cnibox node";

/** flanneld's subnet.env. */
export function subnetEnv({ conf, subnets, mtu, ipMasq }: Shares): string {
  const lines = [MARK];
  for (const { network } of conf.rules) {
    const { family } = network.address;
    const subnet = ofFamily(subnets, family);
    if (subnet === undefined) continue;
    const front = family === 6 ? "FLANNEL_IPV6_" : "FLANNEL_";
    // flanneld names the gateway's address, the first one.
    const gateway = { address: { family, value: subnet.address.value + 1n }, length: subnet.length };
    lines.push(`${front}NETWORK=${formatPrefix(network)}`, `${front}SUBNET=${formatPrefix(gateway)}`);
  }
  return [...lines, `FLANNEL_MTU=${mtu}`, `FLANNEL_IPMASQ=${ipMasq}`, ""].join("\n");
}

/** The list that is written unless another one is configured. */
const DEFAULT_LIST: JsonObject = {
  cniVersion: "1.0.0",
  name: "cbr0",
  plugins: [
    { type: "flannel", delegate: { hairpinMode: true, isDefaultGateway: true } },
    { type: "portmap", capabilities: { portMappings: true } },
  ],
};

/**
 * A network list. Of a template the values `$RANGES`, `$NETWORKS`, `$MTU` and `$IPMASQ` are replaced, wherever they
 * stand alone.
 */
export function conflistText(template: JsonObject | undefined, shares: Shares): string {
  return `${JSON.stringify(filled(template ?? DEFAULT_LIST, shares), null, 2)}\n`;
}

function filled(value: unknown, shares: Shares): unknown {
  if (Array.isArray(value)) return value.map((one) => filled(one, shares));
  if (isObject(value)) return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, filled(one, shares)]));
  if (value === "$RANGES") return shares.subnets.map((subnet) => [{ subnet: formatPrefix(subnet) }]);
  if (value === "$NETWORKS") return shares.conf.rules.map(({ network }) => ({ dst: formatPrefix(network) }));
  if (value === "$MTU") return shares.mtu;
  // Either this program masquerades, or the plugin does.
  if (value === "$IPMASQ") return !shares.ipMasq;
  return value;
}
