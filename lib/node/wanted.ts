/** What this node's kernel has to look like, given what all nodes say about themselves. Pure. */
import type { Link } from "../kernel/ip.ts";
import {
  type Address,
  canonicalAddress,
  type Family,
  familyBits,
  formatAddress,
  formatPrefix,
  parseAddress,
  type Prefix,
  prefixContains,
  sameAddress,
} from "../net/cidr.ts";
import { PrefixSet } from "./prefix_set.ts";
import { familiesOf, isInside, type NetworkConf, type NodeRecord, ofFamily } from "./records.ts";

/** A link's name that stands in a batch line as it is. */
const PLAIN_NAME = /^(?!-)[^\s/"'`$\\%#\p{Cc}]+$/u;

/** A route to another node's subnet. */
export interface WantedRoute {
  readonly family: Family;
  readonly dst: string;
  readonly gateway: string;
  readonly dev: string;
  /** The gateway is on the device, whatever its addresses say. */
  readonly onlink: boolean;
  /** Name of the node that it leads to. */
  readonly node: string;
}

/** Hardware address of another node's vxlan device. */
export interface WantedNeighbour {
  readonly dst: string;
  readonly mac: string;
  readonly dev: string;
}

/** The node behind a hardware address. */
export type WantedFdb = WantedNeighbour;

/** A vxlan device of this node. */
export interface WantedDevice {
  readonly name: string;
  readonly family: Family;
  readonly vni: number;
  readonly port: number;
  readonly local: string;
  /** The device that carries its packets. */
  readonly link: string;
  readonly mac: string;
  readonly mtu: number;
  /** Its own address in CIDR form: the network address of this node's subnet, alone. */
  readonly address: string;
}

/** Something that keeps two nodes apart, or this node out of the network. */
export interface Problem {
  /** Name of the other node; "" for this one. */
  readonly node: string;
  readonly text: string;
}

/** All that is wanted of the kernel. */
export interface Wanted {
  readonly devices: readonly WantedDevice[];
  readonly routes: readonly WantedRoute[];
  readonly neighbours: readonly WantedNeighbour[];
  readonly fdb: readonly WantedFdb[];
  readonly problems: readonly Problem[];
  /** Families of which it is not known now how this node is reached: what the kernel has of them stays as it is. */
  readonly held: readonly Family[];
  /** Largest packet that pods can send to all other nodes, in bytes. */
  readonly mtu: number;
}

/** The link that one of this node's public addresses is on. */
interface Underlay {
  readonly address: Address;
  readonly link: Link;
  /** What can be reached on this link without a router. */
  readonly onLink: readonly Prefix[];
}

/** What vxlan adds to each packet: outer Ethernet, IP and UDP headers and its own, in bytes. */
const OVERHEAD: Readonly<Record<Family, number>> = { 4: 50, 6: 70 };
const LARGEST_MTU = 65_535;

/** flannel's name for a vxlan device. */
export function deviceName(family: Family, vni: number): string {
  return family === 4 ? `flannel.${vni}` : `flannel-v6.${vni}`;
}

/** The link with this address. */
export function linkWith(links: readonly Link[], address: Address): Link | undefined {
  const text = formatAddress(address);
  return links.find(({ addr_info = [] }) => addr_info.some(({ local }) => canonicalAddress(local) === text));
}

/** Works out everything from this node's record, the others' and the links. */
export function wantedState(
  { self, others, conf, links }: {
    readonly self: NodeRecord;
    readonly others: readonly NodeRecord[];
    readonly conf: NetworkConf;
    readonly links: readonly Link[];
  },
): Wanted {
  const problems: Problem[] = [];
  const underlays = new Map<Family, Underlay>();
  for (const family of familiesOf(conf)) {
    const found = underlayOf(self, family, links);
    if (typeof found === "string") problems.push({ node: "", text: found });
    else underlays.set(family, found);
  }
  // A link that is down, or waits for its address, comes back: pods' ways are not removed meanwhile.
  const held = familiesOf(conf).filter((family) => !underlays.has(family));
  const devices = conf.backend.type === "vxlan" ? devicesOf(self, conf, underlays) : [];
  const all = { devices, routes: [] as WantedRoute[], neighbours: [] as WantedNeighbour[], fdb: [] as WantedFdb[] };
  const taken = new PrefixSet(self.subnets);
  if (conf.backend.type !== "none") {
    for (const node of [...others].sort(byName)) {
      for (const subnet of node.subnets) {
        const family = subnet.address.family;
        const underlay = underlays.get(family);
        const device = devices.find((one) => one.family === family);
        const way = refusal({ node, subnet, taken, self, conf }) ??
          wayTo({ node, subnet, underlay, device, conf });
        if (way === undefined) continue;
        if (typeof way === "string") {
          problems.push({ node: node.name, text: way });
          continue;
        }
        taken.add(subnet);
        all.routes.push(way.route);
        all.neighbours.push(...way.neighbour);
        all.fdb.push(...way.fdb);
      }
    }
  }
  const sizes = devices.length > 0
    ? devices.map(({ mtu }) => mtu)
    : [...underlays.values()].map(({ link }) => link.mtu);
  return { ...all, problems, held, mtu: Math.min(LARGEST_MTU, ...sizes) };
}

function byName(a: NodeRecord, b: NodeRecord): number {
  return a.name < b.name ? -1 : a.name > b.name ? 1 : 0;
}

function underlayOf(self: NodeRecord, family: Family, links: readonly Link[]): Underlay | string {
  const address = ofFamily(self.publicIps, family);
  if (address === undefined) return `this node has no IPv${family} address that others reach it by`;
  const link = linkWith(links, address);
  if (link === undefined) return `no link of this node has the address ${formatAddress(address)}`;
  if (!PLAIN_NAME.test(link.ifname)) return `the link's name ${JSON.stringify(link.ifname)} cannot be written for ip`;
  if (!link.flags.includes("UP")) return `${link.ifname} with ${formatAddress(address)} is down`;
  const onLink = (link.addr_info ?? []).flatMap(({ local, prefixlen }) => {
    const one = parseAddress(local);
    return one === undefined || one.family !== family ? [] : [{ address: one, length: prefixlen }];
  });
  return { address, link, onLink };
}

function devicesOf(
  self: NodeRecord,
  { backend }: NetworkConf,
  underlays: ReadonlyMap<Family, Underlay>,
): WantedDevice[] {
  return [...underlays].flatMap(([family, { address, link }]) => {
    const subnet = ofFamily(self.subnets, family);
    const mac = self.vteps[family];
    if (subnet === undefined || mac === undefined) return [];
    return [{
      name: deviceName(family, backend.vni),
      family,
      vni: backend.vni,
      port: backend.port,
      local: formatAddress(address),
      link: link.ifname,
      mac,
      mtu: link.mtu - OVERHEAD[family],
      address: formatPrefix({ address: subnet.address, length: familyBits(family) }),
    }];
  });
}

interface Way {
  readonly route: WantedRoute;
  readonly neighbour: readonly WantedNeighbour[];
  readonly fdb: readonly WantedFdb[];
}

/** Why no route may lead to a subnet, whatever the backend. */
function refusal(
  { node, subnet, taken, self, conf }: {
    readonly node: NodeRecord;
    readonly subnet: Prefix;
    readonly taken: PrefixSet;
    readonly self: NodeRecord;
    readonly conf: NetworkConf;
  },
): string | undefined {
  const text = formatPrefix(subnet);
  // A record must not move this node's other traffic.
  if (!isInside(subnet, conf)) {
    return `${text} is not in ${conf.rules.map(({ network }) => formatPrefix(network)).join(" or ")}`;
  }
  const other = taken.overlapping(subnet);
  if (other) return `${text} overlaps with ${formatPrefix(other)}, which another node has`;
  const same = node.publicIps.find((one) => self.publicIps.some((own) => sameAddress(own, one)));
  if (same) return `it says that it has this node's address ${formatAddress(same)}`;
  return undefined;
}

/**
 * How a subnet is reached; a text says why it is not; undefined when this node lacks the family, which is said once
 * elsewhere.
 */
function wayTo(
  { node, subnet, underlay, device, conf: { backend } }: {
    readonly node: NodeRecord;
    readonly subnet: Prefix;
    readonly underlay: Underlay | undefined;
    readonly device: WantedDevice | undefined;
    readonly conf: NetworkConf;
  },
): Way | string | undefined {
  if (underlay === undefined) return undefined;
  const { family } = subnet.address;
  const dst = formatPrefix(subnet);
  const peer = ofFamily(node.publicIps, family);
  if (peer === undefined) return `it names no IPv${family} address that it is reached by`;
  const onLink = underlay.onLink.some((one) => prefixContains(one, peer));
  const direct = backend.type === "host-gw" || backend.directRouting;
  if (direct && onLink) {
    const route = {
      family,
      dst,
      gateway: formatAddress(peer),
      dev: underlay.link.ifname,
      onlink: false,
      node: node.name,
    };
    return { route, neighbour: [], fdb: [] };
  }
  if (backend.type === "host-gw") {
    const nets = underlay.onLink.map(formatPrefix).join(", ");
    return `${
      formatAddress(peer)
    } is not on the link ${underlay.link.ifname} (${nets}): host-gw cannot reach it; use vxlan`;
  }
  if (device === undefined) return undefined;
  if (node.backend !== "vxlan") return `its backend is ${node.backend || "not said"}, not vxlan`;
  if (node.vni !== undefined && node.vni !== backend.vni) return `its VNI is ${node.vni}, not ${backend.vni}`;
  const mac = node.vteps[family];
  if (mac === undefined) return `it does not say the hardware address of its IPv${family} vxlan device`;
  const gateway = formatAddress(subnet.address);
  const route = { family, dst, gateway, dev: device.name, onlink: true, node: node.name };
  return {
    route,
    neighbour: [{ dst: gateway, mac, dev: device.name }],
    fdb: [{ dst: formatAddress(peer), mac, dev: device.name }],
  };
}
