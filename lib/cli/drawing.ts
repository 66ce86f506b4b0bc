/** A survey as something that can be drawn: host interfaces, bridges, containers, and what leads where. */
import { lookup } from "../cni/decode.ts";
import type { Link } from "../kernel/ip.ts";
import { portText } from "./network.ts";
import { shortId } from "./owner_names.ts";
import type { PeerView } from "./peers.ts";
import { healthOf, nameOfView, real } from "./show.ts";
import { ownerByAlias, type Survey, type View } from "./survey.ts";

/** An interface of the host that leads elsewhere, or that containers hang on directly. */
export interface Uplink {
  readonly name: string;
  readonly kind: string;
  readonly addresses: readonly string[];
  readonly up: boolean;
  /** Does the default route lead here? */
  readonly isDefault: boolean;
  /** Other nodes that are reached through it, a line each; empty in most places. */
  readonly peers: readonly string[];
}

/** A bridge of a network. */
export interface Bridge {
  readonly name: string;
  readonly addresses: readonly string[];
  readonly networks: readonly string[];
  readonly up: boolean;
  /** Subnets whose traffic leaves with the host's address. */
  readonly masquerade: boolean;
  /** False when networks name it but the host has no such link. */
  readonly exists: boolean;
}

/** An interface of a container. */
export interface Port {
  readonly name: string;
  readonly network: string;
  readonly addresses: readonly string[];
  /** Name of the bridge or uplink that it leads to; "" when it leads straight to the host. */
  readonly to: string;
  /** It leads to no bridge, which would say what follows from the network. */
  readonly direct: boolean;
  /** What it sends beyond its subnet leaves with the host's address. Said of bridges for all that hang on them. */
  readonly masquerade: boolean;
  /** The host's end of the pair. */
  readonly veth: string;
  readonly kind: string;
  readonly published: readonly string[];
  readonly health: ReturnType<typeof healthOf>;
  readonly problems: readonly string[];
}

/** A container, known by its namespace or by its ID alone. */
export interface Container {
  readonly id: string;
  readonly netns: string;
  readonly ports: readonly Port[];
}

export interface Drawing {
  readonly host: string;
  readonly uplinks: readonly Uplink[];
  readonly bridges: readonly Bridge[];
  readonly containers: readonly Container[];
}

/** What else is drawn than a survey has. */
export interface Surroundings {
  readonly host: string;
  /** Interfaces of the default routes. */
  readonly defaults: readonly string[];
  readonly peers: readonly PeerView[];
}

/** Most lines about other nodes at one interface. */
const MOST_PEERS = 12;

/** Sorts a survey into what is drawn. */
export function drawingOf(seen: Survey, { host, defaults, peers }: Surroundings): Drawing {
  const { networks, views, links } = seen;
  const strangers = strangersOf(seen);
  const masquerading = new Set(
    networks.filter(({ list }) => list?.plugins.some(({ config }) => lookup(config, "ipMasq") === true)).map((
      { name },
    ) => name),
  );
  const bridgeNames = new Set(networks.map(({ bridge }) => bridge).filter((name) => name !== ""));
  for (const { bridge } of views) if (bridge !== "") bridgeNames.add(bridge);
  for (const { ports: [port] } of strangers) if (port && port.to !== "") bridgeNames.add(port.to);
  const bridges = [...bridgeNames].sort().map((name): Bridge => {
    const link = links.find(({ ifname }) => ifname === name);
    const own = networks.filter(({ bridge }) => bridge === name).map((one) => one.name);
    return {
      name,
      addresses: addressesOf(link),
      networks: own,
      up: link?.flags.includes("UP") ?? false,
      masquerade: own.some((one) => masquerading.has(one)),
      exists: link !== undefined,
    };
  });
  const parents = new Set(views.flatMap((view) => parentOf(view, links)?.ifname ?? []));
  const uplinks = links.filter(({ ifname, linkinfo, master }) =>
    ifname !== "lo" && !bridgeNames.has(ifname) &&
    (parents.has(ifname) || defaults.includes(ifname) ||
      (master === undefined && !["veth", "ifb"].includes(linkinfo?.info_kind ?? "")))
  ).map((link): Uplink => ({
    name: link.ifname,
    kind: link.linkinfo?.info_kind ?? "",
    addresses: addressesOf(link),
    up: link.flags.includes("UP"),
    isDefault: defaults.includes(link.ifname),
    peers: peerLines(peers.filter(({ devices }) => devices.includes(link.ifname))),
  }));
  const containers = new Map<string, Container>();
  for (const view of views) {
    const key = view.netns === "" || view.state !== "alive" ? `id ${view.containerId}` : view.netns;
    const known = containers.get(key) ?? { id: nameOfView(view), netns: view.netns, ports: [] };
    containers.set(key, {
      ...known,
      ports: [...known.ports, portOf(view, { links, networks, bridgeNames, masquerading })],
    });
  }
  const inOrder = [...containers.values(), ...strangers].map((one) => ({ ...one, ports: one.ports.toSorted(byName) }));
  return { host, uplinks, bridges, containers: inOrder.sort(byPlace) };
}

/** Living containers that nothing but the alias of their link tells of, where that link leads. */
function strangersOf({ links, elsewhere, orphans }: Survey): Container[] {
  return orphans.filter(({ what }) => what === "link").flatMap(({ name, text }): Container[] => {
    const link = links.find(({ ifname }) => ifname === name);
    const owner = link && ownerByAlias(link);
    if (!link || !owner?.lives) return [];
    const inside = elsewhere.find((one) => one.link_index === link.ifindex && one.ifindex === link.link_index);
    const port: Port = {
      name: owner.ifName,
      network: owner.network,
      addresses: addressesOf(inside),
      to: link.master ?? "",
      direct: link.master === undefined,
      masquerade: false,
      veth: link.ifname,
      kind: "veth",
      published: [],
      health: "broken",
      problems: [text],
    };
    return [{ id: shortId(owner.containerId), netns: "", ports: [port] }];
  });
}

function peerLines(peers: readonly PeerView[]): string[] {
  const lines = peers.map(({ node, subnets, ways }) => `${node} ${subnets.join(" ")} ${ways.join(", ")}`);
  const more = lines.length - MOST_PEERS;
  return more > 1 ? [...lines.slice(0, MOST_PEERS), `and ${more} nodes more: cnibox node status`] : lines;
}

/** `eth2` before `eth10`. */
function byName(a: Port, b: Port): number {
  return numbered(a.name) < numbered(b.name) ? -1 : 1;
}

/** Containers of one bridge side by side. */
function byPlace(a: Container, b: Container): number {
  const key = ({ ports, id }: Container) => `${ports[0]?.to ?? ""} ${numbered(ports[0]?.addresses[0] ?? "")} ${id}`;
  return key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0;
}

/** Addresses in the order of their numbers. */
const numbered = (text: string) => text.replace(/\d+/g, (digits) => digits.padStart(3, "0"));

function addressesOf(link: Link | undefined): string[] {
  return (link?.addr_info ?? []).filter(({ scope }) => scope !== "link").map(({ local, prefixlen }) =>
    `${local}/${prefixlen}`
  );
}

/** The host's link that a container's link hangs on: macvlan and the like. */
function parentOf({ inside }: View, links: readonly Link[]): Link | undefined {
  if (!inside || inside.linkinfo?.info_kind === "veth" || inside.link_index === undefined) return undefined;
  return links.find(({ ifindex }) => ifindex === inside.link_index);
}

interface Known extends Pick<Survey, "links" | "networks"> {
  readonly bridgeNames: ReadonlySet<string>;
  /** Networks with `ipMasq`. */
  readonly masquerading: ReadonlySet<string>;
}

function portOf(view: View, { links, networks, bridgeNames, masquerading }: Known): Port {
  const { ifName, network, addresses, inside, outside, bridge, ports, problems } = view;
  const configured = networks.find(({ name }) => name === network)?.bridge ?? "";
  const to = parentOf(view, links)?.ifname ?? (bridge || (outside ? "" : configured));
  const direct = !bridgeNames.has(to);
  return {
    name: ifName || "?",
    network,
    addresses,
    to,
    direct,
    masquerade: direct && masquerading.has(network),
    veth: outside?.ifname ?? "",
    kind: inside?.linkinfo?.info_kind ?? "",
    published: ports.map(portText),
    health: healthOf(view),
    problems: real(problems).map(({ text }) => text),
  };
}
