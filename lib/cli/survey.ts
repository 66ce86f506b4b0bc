/**
 * The node as it is: attachments from the runtimes' cache, leases, links and rules, seen together. What one of them
 * says and the others do not is a problem of that attachment. Changes nothing.
 */
import { loadAll, type NetworkList, parseList } from "../cni/conflist.ts";
import { byBytes, type ConfigError } from "../cni/member.ts";
import { lookup } from "../cni/decode.ts";
import type { Cached } from "../cni/result_cache.ts";
import type { Result } from "../cni/types.ts";
import { parseResult } from "../cni/version.ts";
import type { Listing } from "../rules/backend.ts";
import { acceptance, forwarding } from "../rules/forwarding.ts";
import { hostPorts, unknownPorts } from "../rules/host_ports.ts";
import { hostPortOwners } from "../rules/host_ports_iptables.ts";
import { masquerading } from "../rules/masquerade.ts";
import { masqueradeOwners } from "../rules/masquerade_gc.ts";
import { isOwned } from "../rules/rule_upkeep.ts";
import type { RangeSet } from "../ipam/range.ts";
import type { Lease } from "../ipam/store.ts";
import { linksIn, type Unseen } from "../kernel/all_netns.ts";
import type { Link } from "../kernel/ip.ts";
import { parseSave, unreadableTables } from "../kernel/iptables.ts";
import { parseListing } from "../kernel/nft.ts";
import { type Run, systemRun, toolPath } from "../kernel/run.ts";
import { type Family, parsePrefix } from "../net/cidr.ts";
import {
  type Evidence,
  gather,
  GONE,
  isHolder,
  judge,
  type Judged,
  type Judgement,
  lifeOf,
  placeIn,
  type Pool,
  pools,
  unseenLines,
} from "./leases.ts";
import { brokenText } from "./command.ts";
import { byName, delCommand, nameOf, type Owner, shortId } from "./owner_names.ts";
import { attachmentsOf, type Folders, ifAllowed, ipamType, sameNetns } from "./setup.ts";
import { natural } from "./terminal.ts";

/** What is wrong with an attachment. */
export type ProblemCode =
  | "netns-gone"
  | "interface-missing"
  | "address-missing"
  | "lease-missing"
  | "address-shared"
  | "host-link-missing"
  | "port-rules-missing"
  | "masquerade-missing"
  | "firewall-missing"
  | "not-cached"
  | "not-examined"
  | "no-container";

export interface Problem {
  readonly code: ProblemCode;
  readonly text: string;
  /** The command that fixes it. */
  readonly fix: string;
}

/** One interface of one container on one network, from whatever knows of it. */
export interface View {
  readonly network: string;
  readonly containerId: string;
  readonly ifName: string;
  /** "" when nobody knows. */
  readonly netns: string;
  readonly state: "alive" | "gone" | "unknown";
  readonly cached?: Cached;
  readonly result?: Result;
  /** The interface in the container, as it is now. */
  readonly inside?: Link;
  /** Its other end on the host. */
  readonly outside?: Link;
  readonly bridge: string;
  /** Addresses of the result, with prefix lengths; of the leases when there is no result. */
  readonly addresses: readonly string[];
  readonly leases: readonly string[];
  readonly ports: readonly unknown[];
  readonly since?: Date;
  readonly problems: readonly Problem[];
}

/** A lease, what is known of it, and the folder that it lies in. */
export interface LeaseView extends Lease, Pick<Judged, "state" | "evidence"> {
  readonly network: string;
  readonly folder: string;
  /** Path of a namespace that has the address; undefined when none was found. */
  readonly inUse?: string;
}

/** A network: its configuration and its ranges, as far as known. */
export interface NetworkView {
  readonly name: string;
  /** Undefined when only leases tell of it. */
  readonly list?: NetworkList;
  /** Whether runtimes find it in the folder of configurations. */
  readonly configured: boolean;
  readonly bridge: string;
  readonly sets: readonly RangeSet[];
}

/** Something on the host without an owner. */
export interface Orphan {
  readonly what: "link" | "chain";
  readonly name: string;
  readonly network: string;
  readonly text: string;
  /** The command that removes it. */
  readonly fix: string;
}

/** All of it. */
export interface Survey {
  readonly networks: readonly NetworkView[];
  readonly views: readonly View[];
  readonly leases: readonly LeaseView[];
  readonly links: readonly Link[];
  /** Links in the other namespaces of this host. */
  readonly elsewhere: readonly Link[];
  readonly orphans: readonly Orphan[];
  readonly pools: readonly Pool[];
  readonly judgement: Judgement;
  /** Rules of iptables, ip6tables and nft; none of those that cannot be read. */
  readonly rules: Rules;
  /** Namespaces that could not be looked at. */
  readonly unseen: readonly Unseen[];
  /** Configurations that cannot be read, for people. */
  readonly broken: readonly string[];
  /** What could not be looked at, for people. */
  readonly blind: readonly string[];
  /** Whether attachments could be read: where they could not, that there are none says nothing. */
  readonly seesAttachments: boolean;
}

export interface Rules extends Listing {
  readonly readable: boolean;
  /** What the tables of iptables were read from, by family; "" where nothing was. */
  readonly saved: Readonly<Record<Family, string>>;
}

/** What files and tools say of the node, before anything is concluded from it. */
export interface Found extends Pick<Survey, "rules" | "blind"> {
  readonly lists: readonly NetworkList[];
  readonly broken: readonly ConfigError[];
  /** Undefined when this user may not read them. */
  readonly attachments: readonly Cached[] | undefined;
  readonly pools: readonly Pool[];
  /** Links of the host; undefined when they could not be listed. */
  readonly links: readonly Link[] | undefined;
  readonly evidence: Evidence;
}

/** Looks at everything. A user other than root goes without what he may not read, which `blind` then names. */
export async function survey(folders: Folders): Promise<Survey> {
  return surveyOf(await look(folders));
}

async function look(folders: Folders): Promise<Found> {
  const host = systemRun();
  const blind: string[] = [];
  const readable = <T>(what: string, read: () => T) => ifAllowed(what, read, (text) => blind.push(text));
  const attachments = readable("attachments", () => attachmentsOf(folders));
  const all = readable("leases", () => pools(folders)) ?? [];
  const [links, rules, evidence] = await Promise.all([
    linksIn(host).catch((error) => {
      blind.push(`the links of this host could not be listed: ${(error as Error).message}`);
      return undefined;
    }),
    rulesNow(host),
    gather(attachments ?? [], host),
  ]);
  if (!rules.readable) {
    blind.push(
      Deno.uid() === 0 ? "rules cannot be read: iptables-save or nft shows why" : "rules cannot be read without root",
    );
  }
  const living = [...evidence.places.values()].filter(({ state }) => state === "netns");
  if (living.length > 0 && !living.some(({ ns }) => evidence.links.has(ns))) {
    blind.push("namespaces cannot be entered without root");
  }
  blind.push(...unseenLines(evidence.unseen));
  return { ...loadAll(folders.conf), attachments, pools: all, links, rules, evidence, blind };
}

/** What follows from what was found. */
export function surveyOf({ lists, broken, attachments, pools, links, rules, evidence, blind }: Found): Survey {
  const cached = attachments ?? [];
  const networks = networkViews(lists, cached, pools);
  const judgement = judge(pools, evidence);
  const leases = judgement.judged.map(({ pool: { network, folder }, lease, state, evidence: why }): LeaseView => {
    const path = evidence.inUse.get(lease.ip);
    return { ...lease, network, folder, state, evidence: why, ...(path !== undefined && { inUse: path }) };
  });
  const around = { links: links ?? [], seesLinks: links !== undefined, rules, leases, networks, evidence, judgement };
  const recorded = [...cached.map((one) => viewOf(one, around)), ...uncached(cached, around)];
  // Whoever may not read the attachments cannot tell whom nothing but a link speaks of.
  const views = [...recorded, ...(attachments === undefined ? [] : byLinkAlone(recorded, around))].sort((a, b) =>
    byName(nameOf({ ...a.cached, ...a }), nameOf({ ...b.cached, ...b })) || natural(a.ifName, b.ifName)
  );
  // Whoever may not read the attachments knows of none that it belongs to nobody.
  const orphans = attachments === undefined ? [] : [...orphanLinks(views, around.links), ...orphanChains(views, rules)];
  return {
    networks,
    views,
    leases,
    links: around.links,
    elsewhere: [...evidence.links.values()].flat(),
    orphans: orphans.map((one) => ({ ...one, fix: fixOfOrphan(one, networks) })),
    pools,
    judgement,
    rules,
    unseen: evidence.unseen,
    broken: broken.map(brokenText),
    blind,
    seesAttachments: attachments !== undefined,
  };
}

/** The part of a survey that is one network's; undefined where nothing tells of such a network. */
export function ofNetwork(seen: Survey, network: string): Survey | undefined {
  const isOwn = (one: { readonly network: string }) => one.network === network;
  const networks = seen.networks.filter(({ name }) => name === network);
  if (networks.length === 0) return undefined;
  const [views, leases, orphans] = [seen.views.filter(isOwn), seen.leases.filter(isOwn), seen.orphans.filter(isOwn)];
  return { ...seen, networks, views, leases, orphans };
}

async function rulesNow(host: Run): Promise<Rules> {
  let readable = true;
  const read = async <T>(argv: string[], parse: (text: string) => T): Promise<T | undefined> => {
    if (toolPath(argv[0] ?? "") === "") return undefined;
    const { code, stdout } = await host({ argv });
    // A host may do without IPv6.
    const isFailed = code !== 0 && argv[0] !== "ip6tables-save";
    if (isFailed || unreadableTables(stdout).length > 0) readable = false;
    return code === 0 ? parse(stdout) : undefined;
  };
  const [four = "", six = "", nft] = await Promise.all([
    read(["iptables-save"], (text) => text),
    read(["ip6tables-save"], (text) => text),
    read(["nft", "-j", "list", "ruleset"], parseListing),
  ]);
  return {
    tables: { 4: parseSave(four), 6: parseSave(six) },
    saved: { 4: four, 6: six },
    nft: nft ?? { chains: [], rules: [], sets: [] },
    readable,
  };
}

/** Every network that is configured, attached to, or has leases; with what configured it, as far as that is known. */
export function knownLists(
  lists: readonly NetworkList[],
  cached: readonly Cached[],
  all: readonly Pool[],
): [name: string, list: NetworkList | undefined][] {
  const known = new Map<string, NetworkList | undefined>();
  for (const list of lists) if (!known.has(list.name)) known.set(list.name, list);
  for (const one of cached) if (!known.get(one.network)) known.set(one.network, listOf(one));
  for (const { network } of all) if (!known.has(network)) known.set(network, undefined);
  return [...known];
}

function networkViews(lists: readonly NetworkList[], cached: readonly Cached[], all: readonly Pool[]): NetworkView[] {
  return knownLists(lists, cached, all).sort(([a], [b]) => byBytes(a, b)).map(([name, list]) => {
    const bridge = list?.plugins.find(({ type }) => type === "bridge");
    const own = all.filter(({ network }) => network === name);
    return {
      name,
      ...(list && { list }),
      configured: list !== undefined && lists.includes(list),
      bridge: bridge ? textOf(lookup(bridge.config, "bridge")) || "cni0" : "",
      sets: own.flatMap(({ sets }) => sets),
    };
  });
}

/** The configuration that an attachment was made with. */
export function listOf(cached: Cached): NetworkList | undefined {
  try {
    return cached.config.length === 0 ? undefined : parseList(cached.config);
  } catch {
    return undefined;
  }
}

const textOf = (value: unknown): string => typeof value === "string" ? value : "";

interface Around {
  readonly links: readonly Link[];
  /** Whether the links are all that there are. */
  readonly seesLinks: boolean;
  readonly rules: Rules;
  readonly leases: readonly LeaseView[];
  readonly networks: readonly NetworkView[];
  readonly evidence: Evidence;
  readonly judgement: Judgement;
}

/** What is known of an attachment that is on disk. */
function viewOf(cached: Cached, around: Around): View {
  const { network, containerId, ifName, netns } = cached;
  const { state, evidence } = lifeOf(cached, around.evidence);
  const result = resultOf(cached);
  const pod = around.evidence.links.get(placeIn(around.evidence, netns).ns);
  const inside = pod?.find(({ ifname }) => ifname === ifName);
  const outside = inside && peerOf(inside, around.links);
  const own = around.leases.filter((lease) => isHolder(lease, cached));
  const list = around.networks.find(({ name }) => name === network)?.list ?? listOf(cached);
  const addresses = (result?.ips ?? []).map(({ address }) => address);
  const ports = capability(cached, "portMappings");
  const base = { network, containerId, ifName, netns, state, cached, ports } as const;
  const bridge = outside?.master ??
    (result?.interfaces ?? []).find(({ name, sandbox }) =>
      !sandbox && around.links.some((link) => link.ifname === name && link.linkinfo?.info_kind === "bridge")
    )?.name ?? "";
  const problems = problemsOf({ ...base, evidence, addresses, inside, outside, pod, own, list, result }, around);
  return {
    ...base,
    ...(result && { result }),
    ...(inside && { inside }),
    ...(outside && { outside }),
    ...(cached.written && { since: cached.written }),
    bridge,
    addresses,
    leases: own.map(({ ip }) => ip),
    problems,
  };
}

function resultOf({ result }: Cached): Result | undefined {
  if (!result) return undefined;
  try {
    return parseResult(result, "1.0.0");
  } catch {
    return undefined;
  }
}

function capability({ capabilityArgs }: Cached, name: string): readonly unknown[] {
  const value = capabilityArgs[name];
  return Array.isArray(value) ? value : [];
}

/** The other end of a pair, among the host's links. */
function peerOf(inside: Link, links: readonly Link[]): Link | undefined {
  if (inside.linkinfo?.info_kind !== "veth") return undefined;
  return links.find((link) =>
    link.ifindex === inside.link_index && link.linkinfo?.info_kind === "veth" &&
    (link.link_index === undefined || link.link_index === inside.ifindex)
  );
}

interface Facts extends Pick<View, "network" | "containerId" | "ifName" | "netns" | "state" | "addresses" | "ports"> {
  /** What the state is known by. */
  readonly evidence: string;
  readonly inside: Link | undefined;
  readonly outside: Link | undefined;
  /** All links in the container; undefined when it cannot be entered. */
  readonly pod: readonly Link[] | undefined;
  readonly own: readonly LeaseView[];
  readonly list: NetworkList | undefined;
  readonly result: Result | undefined;
}

function problemsOf(facts: Facts, around: Around): Problem[] {
  const { network, ifName, netns, state, evidence, pod, inside, outside, addresses, result } = facts;
  if (state === "gone") {
    const text = netns === "" ? evidence : `its namespace ${netns} is gone`;
    return [{ code: "netns-gone", text, fix: `cnibox gc ${network}` }];
  }
  const problems: Problem[] = [];
  if (state === "unknown") problems.push({ code: "not-examined", text: evidence, fix: "" });
  const fix = `${delCommand(facts)}, then add it again`;
  if (pod && !inside) problems.push({ code: "interface-missing", text: `there is no ${ifName} in ${netns}`, fix });
  else if (inside) {
    const there = new Set((inside.addr_info ?? []).map(({ local }) => local));
    for (const cidr of addresses) {
      if (there.has(cidr.split("/")[0] ?? "")) continue;
      problems.push({ code: "address-missing", text: `${ifName} does not have ${cidr}`, fix });
    }
    const pair = inside.linkinfo?.info_kind === "veth" && (result?.interfaces ?? []).some(({ sandbox }) => !sandbox);
    if (pair && !outside && around.seesLinks) {
      problems.push({ code: "host-link-missing", text: `the host's end of ${ifName} is gone`, fix });
    }
  }
  problems.push(...leaseProblems(facts, around));
  if (around.rules.readable && state === "alive") problems.push(...missingRules(facts, around.rules));
  return problems;
}

/** Does an IPAM plugin of this network keep its addresses in files of this node? */
function hasLeases({ plugins }: NetworkList): boolean {
  const ipam = plugins.map(({ config }) => ipamType(config)).find((type) => type !== "") ?? "";
  return ["host-local", "cluster"].includes(ipam);
}

/** Addresses of host-local and cluster that no lease names, or that others have as well. */
function leaseProblems(facts: Facts, around: Around): Problem[] {
  const { network, addresses, own, list } = facts;
  const isKept = list !== undefined && hasLeases(list);
  return addresses.flatMap((cidr): Problem[] => {
    const ip = cidr.split("/")[0] ?? "";
    const claims = around.judgement.duplicates.find((list) => list[0]?.ip === ip) ?? [];
    if (claims.some((one) => isHolder(one, facts))) {
      const others = claims.filter((one) => !isHolder(one, facts)).map((one) =>
        `${shortId(one.containerId)} ${one.ifName ?? ""}`.trim() + (one.network === network ? "" : ` on ${one.network}`)
      );
      const text = `${ip} is also that of ${others.join(" and ")}`;
      return [{ code: "address-shared", text, fix: `${delCommand(facts)}, then add it again` }];
    }
    if (!isKept || own.some((lease) => lease.ip === ip)) return [];
    const other = around.leases.find((lease) => lease.ip === ip && lease.network === network);
    return [{
      code: "lease-missing",
      text: other?.containerId
        ? `${ip} is recorded for ${shortId(other.containerId)} ${other.ifName ?? ""}`
        : `${ip} is not recorded: it may be given to another`,
      fix: `cnibox ipam repair ${network}`,
    }];
  });
}

/** Rules that the plugins of the network should have set. */
function missingRules({ network, containerId, ifName, addresses, ports, list }: Facts, rules: Rules): Problem[] {
  const owner = { network, containerId, ifName };
  const fix = `cnibox restore --id ${shortId(containerId)}`;
  const problems: Problem[] = [];
  const has = (type: string, key?: string) =>
    list?.plugins.some((plugin) => plugin.type === type && (key === undefined || lookup(plugin.config, key) === true));
  const prefixes = addresses.flatMap((cidr) => parsePrefix(cidr) ?? []);
  const known = prefixes.length > 0;
  const published = { ports: unknownPorts(owner), targets: prefixes };
  if (ports.length > 0 && has("portmap") && !isOwned(hostPorts, rules, published)) {
    problems.push({ code: "port-rules-missing", text: "the rules of its published ports are gone", fix });
  }
  if (
    (has("bridge", "ipMasq") || has("ptp", "ipMasq")) && known && !isOwned(masquerading, rules, { owner, prefixes })
  ) {
    problems.push({ code: "masquerade-missing", text: "its masquerade rules are gone", fix });
  }
  // firewalld keeps its own rules.
  const byFirewalld = rules.nft.chains.some(({ table }) => table === "firewalld");
  const accepted = acceptance(owner, prefixes.map(({ address }) => address), "");
  if (has("firewall") && known && !byFirewalld && !isOwned(forwarding, rules, accepted)) {
    problems.push({ code: "firewall-missing", text: "the rules that let its traffic through are gone", fix });
  }
  return problems;
}

/** Holders of leases that no cache file knows: made by hand, or by a runtime that keeps its cache elsewhere. */
function uncached(cached: readonly Cached[], { leases, links, evidence }: Around): View[] {
  const insides = new Map(
    [...evidence.links.values()].flat().flatMap((link) =>
      (link.addr_info ?? []).map(({ local }) => [local, link] as const)
    ),
  );
  const views = new Map<string, View>();
  for (const lease of leases) {
    if (lease.containerId === "" || cached.some((one) => isHolder(lease, one))) continue;
    const inside = insides.get(lease.ip);
    const outside = inside && peerOf(inside, links);
    const key = `${lease.network} ${lease.containerId} ${lease.ifName ?? ""}`;
    const known = views.get(key);
    const netns = known?.netns || ownPath(lease.inUse ?? "");
    const state = netns !== "" ? "alive" : GONE.includes(lease.state) ? "gone" : "unknown";
    views.set(key, {
      network: lease.network,
      containerId: lease.containerId,
      ifName: lease.ifName ?? known?.ifName ?? inside?.ifname ?? "",
      netns,
      state,
      ...(inside ? { inside } : known?.inside && { inside: known.inside }),
      ...(outside ? { outside } : known?.outside && { outside: known.outside }),
      bridge: outside?.master ?? known?.bridge ?? "",
      addresses: [...known?.addresses ?? [], lease.ip],
      leases: [...known?.leases ?? [], lease.ip],
      ports: [],
      since: lease.written,
      problems: [uncachedProblem(lease, state)],
    });
  }
  return [...views.values()];
}

/** A namespace was found by the mounts of the first process: its path here, where that is the same namespace. */
function ownPath(found: string): string {
  const path = found.replace(/^\/proc\/1\/root(?=\/)/, "");
  return path !== found && sameNetns(path, found) ? path : found;
}

/**
 * Living containers that neither cache nor lease knows, of networks whose addresses have no leases: the alias of the
 * host's end says whose it is.
 */
function byLinkAlone(views: readonly View[], { links, networks, evidence }: Around): View[] {
  const elsewhere = [...evidence.links.values()].flat();
  return links.flatMap((outside): View[] => {
    const owner = ownerByAlias(outside);
    const list = networks.find(({ name }) => name === owner?.network)?.list;
    if (!owner?.lives || !list || hasLeases(list) || views.some((view) => isHolder(owner, view))) return [];
    const { network, containerId, ifName } = owner;
    const inside = elsewhere.find((link) => link.ifname === ifName && peerOf(link, [outside]) !== undefined);
    const addresses = (inside?.addr_info ?? []).filter(({ scope }) => scope !== "link");
    return [{
      network,
      containerId,
      ifName,
      netns: ownPath(addresses.map(({ local }) => evidence.inUse.get(local)).find((path) => path !== undefined) ?? ""),
      state: "alive",
      ...(inside && { inside }),
      outside,
      bridge: outside.master ?? "",
      addresses: addresses.map(({ local, prefixlen }) => `${local}/${prefixlen}`),
      leases: [],
      ports: [],
      problems: [{ code: "not-cached", text: "no runtime remembers it: only its link does", fix: "" }],
    }];
  });
}

function uncachedProblem({ network, ip, state, evidence }: LeaseView, of: View["state"]): Problem {
  if (of === "alive") {
    return { code: "not-cached", text: "no runtime remembers it: only its lease does", fix: "" };
  }
  if (state === "not examined") return { code: "not-examined", text: evidence, fix: "" };
  const fix = GONE.includes(state) ? `cnibox ipam repair ${network}` : `cnibox ipam free ${ip} --network ${network}`;
  return { code: "no-container", text: "no namespace has its address, and no runtime remembers it", fix };
}

/** Whose a host's end is by its alias, and whether the other end is in another namespace: then that one lives. */
export function ownerByAlias({ ifalias, link_netnsid }: Link): (Required<Owner> & { lives: boolean }) | undefined {
  const [, network, containerId, ifName] = /^cni:([^:]+):([^:]+):(.+)$/s.exec(ifalias ?? "") ?? [];
  if (network === undefined || containerId === undefined || ifName === undefined) return undefined;
  return { network, containerId, ifName, lives: link_netnsid !== undefined };
}

/** Host ends of pairs whose alias names nobody. */
function orphanLinks(views: readonly View[], links: readonly Link[]): Orphan[] {
  return links.flatMap((link) => {
    const owner = ownerByAlias(link);
    if (!owner) return [];
    const { network: name, containerId, ifName, lives } = owner;
    if (views.some((view) => isHolder(owner, view))) return [];
    return [{
      what: "link" as const,
      name: link.ifname,
      network: name,
      text: `link of container ${shortId(containerId)} (${ifName}), which nobody knows` +
        (lives ? ", and whose namespace lives" : ""),
      fix: lives ? delCommand(owner, { isKnown: false }) : `cnibox gc ${name}`,
    }];
  });
}

/** Removes it; where neither configuration nor attachments say how the network was made, the user has to. */
function fixOfOrphan({ network, fix }: Orphan, networks: readonly NetworkView[]): string {
  if (networks.some(({ name, list }) => name === network && list !== undefined)) return fix;
  return `${fix} --conf FILE, where FILE is what configured ${network}`;
}

/** Rules of containers that nobody knows. */
function orphanChains(views: readonly View[], { tables }: Rules): Orphan[] {
  const nat = Object.values(tables).flatMap((family) => family.get("nat") ?? []);
  const found = new Map<string, Orphan>();
  for (const owner of nat.flatMap((table) => [...masqueradeOwners(table), ...hostPortOwners(table)])) {
    const { network: name, containerId: id } = owner;
    if (views.some((view) => view.network === name && view.containerId === id)) continue;
    const text = `iptables rules of container ${shortId(id)}, which nobody knows`;
    found.set(`${name} ${id}`, { what: "chain", name: shortId(id), network: name, text, fix: `cnibox gc ${name}` });
  }
  return [...found.values()];
}
