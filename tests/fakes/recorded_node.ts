/**
 * A node as its files and tools tell of it, of any size and in three conditions: what `cnibox show` and the like make
 * their screens of, without a node.
 */
import type { Found } from "../../lib/cli/survey.ts";
import type { Evidence, Pool } from "../../lib/cli/leases.ts";
import { setsOf } from "../../lib/cli/leases.ts";
import { type NetworkList, parseList } from "../../lib/cni/conflist.ts";
import { ConfigError } from "../../lib/cni/member.ts";
import type { Cached } from "../../lib/cni/result_cache.ts";
import type { JsonObject } from "../../lib/cni/types.ts";
import type { Lease } from "../../lib/ipam/store.ts";
import type { Address, Link } from "../../lib/kernel/ip.ts";
import { parseSave } from "../../lib/kernel/iptables.ts";
import { parsePrefix } from "../../lib/net/cidr.ts";
import { sha512 } from "../../lib/net/sha512.ts";
import { hostPorts, unknownPorts } from "../../lib/rules/host_ports.ts";
import { masquerading } from "../../lib/rules/masquerade.ts";

/**
 * Healthy; with the rules of iptables flushed; or with every second container broken, each in one of four ways, the
 * link of a dead container left, and a configuration that cannot be read.
 */
export type Condition = "healthy" | "flushed" | "half-broken";

/** What is wrong with a container of a half-broken node, by its number modulo eight. */
const FAULTS: Readonly<Record<number, Fault>> = { 1: "gone", 3: "no interface", 5: "no lease", 7: "no rules" };
type Fault = "gone" | "no interface" | "no lease" | "no rules";

/** Deployments of the node's pods; the last one's containers belong to no pod. */
const OWNERS = ["shop/web-7d9c5b6f4-", "shop/cart-5f8d7c9b6-", "kube-system/coredns-76f75df574-", "jobs/batch-", ""];

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;

function list(name: string, bridge: string, subnet: string, file: string): NetworkList {
  const ipam = { type: "host-local", ranges: [[{ subnet }]], routes: [{ dst: "0.0.0.0/0" }] };
  const conf = {
    cniVersion: "1.1.0",
    name,
    plugins: [
      { type: "bridge", bridge, isGateway: true, ipMasq: true, ipam },
      { type: "portmap", capabilities: { portMappings: true } },
    ],
  };
  return parseList(new TextEncoder().encode(JSON.stringify(conf)), file);
}

const FRONT = list("front", "br-front", "10.88.0.0/24", "/etc/cni/net.d/10-front.conflist");
const BACK = list("back", "br-back", "10.89.0.0/24", "/etc/cni/net.d/20-back.conflist");
const SUBNETS = new Map([[FRONT, "10.88.0"], [BACK, "10.89.0"]]);

/** A container with all that a healthy one has. */
interface Container {
  readonly cached: Cached;
  readonly ip: string;
  readonly ns: string;
  readonly inside: Link;
  readonly outside: Link;
  readonly fault: Fault | undefined;
}

function container(index: number, condition: Condition): Container {
  // Every third one is on the second network.
  const network = index % 3 === 2 ? BACK : FRONT;
  const host = index % 3 === 2 ? Math.floor(index / 3) : index - Math.floor(index / 3);
  const ip = `${SUBNETS.get(network)}.${host + 2}`;
  const containerId = sha512(`container ${index}`).slice(0, 64);
  const owner = OWNERS[index % OWNERS.length] ?? "";
  const [namespace = "", stem = ""] = owner.split("/");
  const suffix = stem === "batch-" ? `${index}` : containerId.slice(20, 25);
  const netns = `/run/netns/cni-${
    sha512(`netns ${index}`).slice(0, 32).replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-")
  }`;
  const ports = index % 4 === 0 ? [{ hostPort: 8000 + index, containerPort: 80, protocol: "tcp" }] : [];
  const veth = `veth${containerId.slice(0, 8)}`;
  const bridge = network === FRONT ? "br-front" : "br-back";
  const cached: Cached = {
    network: network.name,
    containerId,
    ifName: "eth0",
    netns,
    args: owner === "" ? [] : [["K8S_POD_NAMESPACE", namespace], ["K8S_POD_NAME", `${stem}${suffix}`]],
    capabilityArgs: ports.length > 0 ? { portMappings: ports } : {},
    config: network.bytes,
    result: resultOf({ ip, netns, bridge, veth }),
    file: `/var/lib/cni/results/${network.name}-${containerId}-eth0`,
    written: new Date(Date.now() - (index % 2 === 0 ? 3 * HOUR : 40 * HOUR) - 20 * MINUTE),
  };
  return {
    cached,
    ip,
    ns: `${4026532000 + index}`,
    inside: link("eth0", 2, { link_index: 10 + index, link_netnsid: 0, linkinfo: { info_kind: "veth" } }, [`${ip}/24`]),
    outside: link(veth, 10 + index, {
      link_index: 2,
      link_netnsid: index,
      master: bridge,
      ifalias: `cni:${network.name}:${containerId}:eth0`,
      linkinfo: { info_kind: "veth" },
    }),
    fault: condition === "half-broken" ? FAULTS[index % 8] : undefined,
  };
}

function resultOf({ ip, netns, bridge, veth }: Record<"ip" | "netns" | "bridge" | "veth", string>): JsonObject {
  return {
    cniVersion: "1.1.0",
    interfaces: [{ name: bridge }, { name: veth }, { name: "eth0", sandbox: netns }],
    ips: [{ address: `${ip}/24`, gateway: ip.replace(/\d+$/, "1"), interface: 2 }],
    routes: [{ dst: "0.0.0.0/0" }],
  };
}

function link(ifname: string, ifindex: number, more: Partial<Link> = {}, addresses: readonly string[] = []): Link {
  const addr_info = addresses.map((text): Address => {
    const [local = "", length = ""] = text.split("/");
    return { family: "inet", local, prefixlen: Number(length), scope: "global" } as Address;
  });
  return { ifname, ifindex, flags: ["BROADCAST", "UP", "LOWER_UP"], mtu: 1500, operstate: "UP", addr_info, ...more };
}

/** Rules of these containers as `iptables-save` lists them. */
function savedRules(containers: readonly Container[]): string {
  const lines = containers.flatMap(({ cached, ip }) => {
    const owner = { network: cached.network, containerId: cached.containerId, ifName: cached.ifName };
    const prefix = parsePrefix(`${ip}/24`);
    const prefixes = prefix ? [prefix] : [];
    const mappings = (cached.capabilityArgs["portMappings"] ?? []) as { hostPort: number; containerPort: number }[];
    const ports = {
      ...unknownPorts(owner),
      mappings: mappings.map((one) => ({ ...one, protocol: "tcp", hostIP: "" })),
    };
    const texts = [
      ...masquerading.split({ owner, prefixes }).map((part) => masquerading.iptables.text(part)),
      ...(mappings.length === 0
        ? []
        : hostPorts.split({ ports, targets: prefixes }).map((part) => hostPorts.iptables.text(part))),
    ];
    return texts.join("\n").split("\n").filter((line) => line.startsWith("-A "));
  });
  return ["*nat", ...lines, "COMMIT", ""].join("\n");
}

/** The node with so many containers on two networks, every fourth of which publishes a port. */
export function recordedNode(count: number, condition: Condition): Found {
  const all = Array.from({ length: count }, (_, index) => container(index, condition));
  const living = all.filter(({ fault }) => fault !== "gone");
  const whole = living.filter(({ fault }) => fault !== "no interface");
  const saved = condition === "flushed" ? "" : savedRules(all.filter(({ fault }) => fault !== "no rules"));
  const left = link("veth0badcafe", 9, {
    ifalias: `cni:front:${sha512("left").slice(0, 64)}:eth0`,
    master: "br-front",
  });
  const evidence: Evidence = {
    attachments: all.map(({ cached }) => cached),
    inUse: new Map(whole.map(({ ip, cached }) => [ip, cached.netns])),
    links: new Map(
      living.map(({ ns, inside, fault }) => [ns, [link("lo", 1), ...(fault === "no interface" ? [] : [inside])]]),
    ),
    places: new Map(
      all.map(({ cached, ns, fault }) => [
        cached.netns,
        fault === "gone" ? { state: "missing", ns: "" } : { state: "netns", ns },
      ]),
    ),
    unseen: [],
    doubt: "",
    boot: Date.now() - 1_000 * HOUR,
  };
  return {
    lists: [FRONT, BACK],
    broken: condition === "half-broken"
      ? [new ConfigError("unexpected end of text", "/etc/cni/net.d/30-lan.conf")]
      : [],
    attachments: evidence.attachments,
    pools: [BACK, FRONT].map((network) => poolOf(network, all)),
    links: [
      link("lo", 1),
      link("eth0", 2, {}, ["192.0.2.10/24"]),
      link("br-front", 3, { linkinfo: { info_kind: "bridge" } }, ["10.88.0.1/24"]),
      link("br-back", 4, { linkinfo: { info_kind: "bridge" } }, ["10.89.0.1/24"]),
      ...(condition === "half-broken" ? [left] : []),
      ...whole.map(({ outside }) => outside),
    ],
    rules: {
      readable: true,
      saved: { 4: saved, 6: "" },
      tables: { 4: parseSave(saved), 6: new Map() },
      nft: { chains: [], rules: [], sets: [] },
    },
    evidence,
    blind: [],
  };
}

function poolOf(network: NetworkList, all: readonly Container[]): Pool {
  const ipam = network.plugins[0]?.config["ipam"] as JsonObject;
  const own = all.filter(({ cached, fault }) => cached.network === network.name && fault !== "no lease");
  const leases = own.map(({ ip, cached: { containerId, ifName, written } }): Lease => (
    { ip, containerId, ifName, written: written ?? new Date() }
  ));
  return { network: network.name, folder: `/var/lib/cni/networks/${network.name}`, ...setsOf(ipam, "1.1.0"), leases };
}
