/**
 * Lines of `ip -batch`, and what `ip -j -d` answers. Every function takes values that are already checked: interface
 * names by the protocol's rule, addresses by lib/net.
 */

/** A link as `ip -j -d link show` and `ip -j -d addr show` print it (the parts that are used). */
export interface Link {
  readonly ifindex: number;
  readonly ifname: string;
  /** Other names that the kernel finds it by. */
  readonly altnames?: readonly string[];
  readonly flags: readonly string[];
  readonly mtu: number;
  readonly min_mtu?: number;
  readonly max_mtu?: number;
  readonly operstate: string;
  /** Kind of the root qdisc. */
  readonly qdisc?: string;
  readonly address?: string;
  readonly permaddr?: string;
  readonly master?: string;
  readonly link?: string;
  readonly link_index?: number;
  readonly link_netnsid?: number;
  readonly link_type?: string;
  readonly promiscuity?: number;
  readonly txqlen?: number;
  readonly ifalias?: string;
  /** A number with `-N`. */
  readonly group?: string;
  readonly linkinfo?: {
    readonly info_kind?: string;
    readonly info_data?: Readonly<Record<string, unknown>>;
    readonly info_slave_kind?: string;
    readonly info_slave_data?: Readonly<Record<string, unknown>>;
  };
  readonly addr_info?: readonly Address[];
}

/** Is this the link that was asked for by that name? iproute2 shows link 7 for `if7` when no link is called so. */
export function isNamed(link: Link, name: string): boolean {
  return link.ifname === name || (link.altnames?.includes(name) ?? false);
}

/** An address of a link as `ip -j addr` prints it. */
export interface Address {
  readonly family: "inet" | "inet6";
  readonly local: string;
  readonly prefixlen: number;
  readonly broadcast?: string;
  readonly scope?: string;
  readonly label?: string;
  readonly tentative?: boolean;
  /** With a limited lifetime, in seconds. */
  readonly dynamic?: boolean;
  readonly valid_life_time?: number;
  readonly preferred_life_time?: number;
  /** Made by the kernel from a router's announcement. */
  readonly mngtmpaddr?: boolean;
  readonly temporary?: boolean;
  readonly deprecated?: boolean;
  readonly nodad?: boolean;
  readonly noprefixroute?: boolean;
  /** The other end of a point-to-point address. */
  readonly address?: string;
  readonly dadfailed?: boolean;
}

/** A route as `ip -j route show` prints it. */
export interface RouteEntry {
  readonly type?: string;
  readonly dst: string;
  readonly gateway?: string;
  readonly via?: { readonly family: string; readonly host: string };
  readonly dev?: string;
  readonly protocol?: string;
  readonly scope?: string;
  readonly prefsrc?: string;
  readonly metric?: number;
  readonly table?: string;
  readonly flags?: readonly string[];
  readonly nexthops?: readonly { readonly gateway?: string; readonly dev?: string; readonly weight?: number }[];
}

/** Ends of a veth pair: the host's end gets `name`, the container's `peer` in the namespace at `netns`. */
export interface VethPair {
  readonly name: string;
  readonly mac?: string;
  readonly peer: string;
  readonly peerMac?: string;
  /** Any path with a slash. */
  readonly netns: string;
  /** Bytes; 0 or less: the kernel's default. */
  readonly mtu: number;
}

/** What `link add` is told of one end of a pair. */
const end = (name: string, mac: string | undefined, mtu: number): string =>
  `name ${name}${mac ? ` address ${mac}` : ""}${mtu > 0 ? ` mtu ${mtu}` : ""}`;

/** Makes both ends in one step, across namespaces. */
export function vethAdd({ name, mac, peer, peerMac, netns, mtu }: VethPair): string {
  return `link add ${end(name, mac, mtu)} type veth peer ${end(peer, peerMac, mtu)} netns ${netns}`;
}

/**
 * The same pair, made the other way round: the container's end is made in its namespace, and `up` already when the
 * host's end appears. The other way the kernel cannot raise it: at that moment the pair is not joined yet. Before Linux
 * 6.15 a link of the host that is called as the container's end is in the way, though the namespaces differ; not so
 * where the new one is given an `index` that no link has.
 */
export function vethInto(
  { name, mac, peer, peerMac, netns, mtu }: VethPair,
  { up, index }: { readonly up: boolean; readonly index: number },
): string {
  return `link add${index ? ` index ${index}` : ""} ${end(peer, peerMac, mtu)}${up ? " up" : ""} netns ${netns}` +
    ` type veth peer ${end(name, mac, mtu)}`;
}

export const linkUp = (name: string): string => `link set dev ${name} up`;
export const linkDown = (name: string): string => `link set dev ${name} down`;
export const linkDel = (name: string): string => `link del dev ${name}`;
/**
 * Asks for a link with its addresses. `link show` must not stand in a batch: iproute2 (6.1) remembers its family, and
 * every later `addr show` of that batch answers without addresses.
 */
export const addrShow = (name: string): string => `addr show dev ${name}`;
/** The same question; for callers that want the link only. */
export const linkShow = addrShow;

/** Adds an address, with the broadcast address of an IPv4 subnet of prefix 30 or shorter, as the reference does. */
export function addrAdd(cidr: string, dev: string, options: { nodad?: boolean } = {}): string {
  const [ip = "", prefix = ""] = cidr.split("/");
  const six = ip.includes(":");
  return `addr add ${cidr}${!six && Number(prefix) <= 30 ? " brd +" : ""} dev ${dev}${
    six && options.nodad ? " nodad" : ""
  }`;
}

export const addrDel = (cidr: string, dev: string): string => `addr del ${cidr} dev ${dev}`;
