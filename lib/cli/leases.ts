/**
 * Who holds which address and whether that is so: lease folders, cached attachments and the kernel looked at together.
 * `cnibox ipam`, `show` and `doctor` speak of what is found here.
 */
import { loadAll, type NetworkList } from "../cni/conflist.ts";
import { isObject, lookup } from "../cni/decode.ts";
import { toCniError } from "../cni/error.ts";
import type { Cached } from "../cni/result_cache.ts";
import type { JsonObject } from "../cni/types.ts";
import { atLeast } from "../cni/version.ts";
import { leasesSeen } from "../ipam/lease_upkeep.ts";
import { prefixOrAddress } from "../ipam/address_keys.ts";
import { blocksFile } from "../ipam/block_owner.ts";
import { type OwnBlock, readBlocks } from "../ipam/block_state.ts";
import { addressCount, isBlockOf, type PoolSet } from "../ipam/blocks.ts";
import { foldersOf, poolSets } from "../ipam/cluster_conf.ts";
import { describe, type RangeConf, rangeOf, type RangeSet, rangeSets, size } from "../ipam/range.ts";
import type { Lease } from "../ipam/store.ts";
import { bootTime } from "../ipam/lease_index.ts";
import { surveyNetns, type Unseen, unseenText } from "../kernel/all_netns.ts";
import type { Link } from "../kernel/ip.ts";
import { type NetnsState, netnsState } from "../kernel/netns.ts";
import { fileIdentity } from "../kernel/proc.ts";
import { exists } from "../kernel/regular_file.ts";
import type { Run } from "../kernel/run.ts";
import { canonicalAddress, formatPrefix, parseAddress, type Prefix, prefixContains } from "../net/cidr.ts";
import type { Owner } from "./owner_names.ts";
import { entriesOf, fileError, type Folders, ipamType, note } from "./setup.ts";

/** A network whose addresses are kept in files of this node: by host-local, or by cluster. */
export interface Pool {
  readonly network: string;
  readonly folder: string;
  /** Checked range sets; empty when the folder is there but no configuration names the network, or a bad one. */
  readonly sets: readonly RangeSet[];
  /** Why there are no sets. */
  readonly trouble: string;
  readonly leases: readonly Lease[];
  /** This node's share, where the sets are a whole cluster's: what counts against the leases here. */
  readonly share?: {
    readonly sets: readonly PoolSet[];
    readonly blocks: readonly Prefix[];
    /** Blocks that another node has by now. */
    readonly lost: readonly OwnBlock[];
  };
}

/**
 * What is known of a lease. "not examined": its address was not found, but not everything could be looked at;
 * "unknown": everything was looked at, nothing speaks of it, and that proves nothing either.
 */
export type State =
  | "alive"
  | "idle"
  | "netns gone"
  | "in use, unknown"
  | "not examined"
  | "before boot"
  | "unknown"
  | "empty";

/**
 * States of leases that are provably nobody's: what `gc` and `ipam repair` may release. Everything else counts as
 * alive.
 */
export const GONE: readonly State[] = ["netns gone", "before boot", "empty"];

/** States in which `ipam free` asks for --force. */
export const HELD: readonly State[] = ["alive", "idle", "in use, unknown", "not examined"];

/** A lease with the evidence for its state. */
export interface Judged {
  readonly pool: Pool;
  readonly lease: Lease;
  readonly state: State;
  /** What the state is known by, in words. */
  readonly evidence: string;
  readonly attachment?: Cached;
}

/** An address that a living container has and no lease names. */
export interface Unrecorded {
  readonly pool: Pool;
  readonly ip: string;
  readonly attachment: Cached;
}

/** Every pool of the node: networks of the configuration folder, and lease folders that nothing configures any more. */
export function pools(folders: Folders): Pool[] {
  const found = new Map<string, Pool>();
  for (const list of loadAll(folders.conf).lists) {
    for (const { config } of list.plugins) {
      const type = ipamType(config);
      if (type !== "host-local" && type !== "cluster") continue;
      const ipam = lookup(config, "ipam") as JsonObject;
      const given = lookup(ipam, "dataDir");
      const data = typeof given === "string" && given !== "" ? `${folders.root}${given}` : folders.data;
      const folder = `${data}/${list.name}`;
      const known = type === "cluster" ? shareOf(config, { list, root: folders.root }) : setsOf(ipam, list.version);
      found.set(folder, { network: list.name, folder, ...known, leases: read(folder) });
    }
  }
  for (const { name: network, isDirectory } of entriesOf(folders.data)) {
    const folder = `${folders.data}/${network}`;
    if (!isDirectory || found.has(folder)) continue;
    found.set(folder, {
      network,
      folder,
      sets: [],
      trouble: "no configuration names this network",
      leases: read(folder),
    });
  }
  return [...found.values()].sort((a, b) => a.network < b.network ? -1 : 1);
}

/**
 * Leases of a folder, read without its lock: a look must not keep an ADD waiting. Whoever changes a lease looks again
 * under it.
 */
function read(folder: string): Lease[] {
  try {
    if (Deno.uid() !== 0) needReadable(folder);
    Deno.statSync(folder);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return [];
    throw fileError(folder, error);
  }
  return leasesSeen(folder, note);
}

/** A lease that may not be read looks like none. */
function needReadable(folder: string): void {
  for (const { name, isFile } of Deno.readDirSync(folder)) {
    const isLease = isFile && canonicalAddress(name) === name;
    if (isLease && exists(`${folder}/${name}`)) Deno.openSync(`${folder}/${name}`).close();
  }
}

/** The sets of a cluster's pool, and the blocks of it that are this node's. */
function shareOf(
  config: JsonObject,
  { list: { name, version }, root }: { list: NetworkList; root: string },
): Pick<Pool, "sets" | "trouble" | "share"> {
  try {
    const sets = poolSets({ config, version, warn: () => {} });
    const { blockFolder } = foldersOf({ config, network: name });
    const own = readBlocks(blocksFile({ blockFolder: `${root}${blockFolder}` })).blocks;
    const blocks = own.filter(({ phase }) => phase === "own").map(({ block }) => block);
    const lost = own.filter(({ phase }) => phase === "lost");
    return { sets: sets.map(({ ranges }) => ranges), trouble: "", share: { sets, blocks, lost } };
  } catch (error) {
    return { sets: [], trouble: toCniError(error).msg };
  }
}

/** Range sets of an `ipam` section; a bad one gives none, with the reason. */
export function setsOf(ipam: JsonObject, version: string): { sets: readonly RangeSet[]; trouble: string } {
  try {
    return { sets: configuredSets(ipam, version), trouble: "" };
  } catch (error) {
    return { sets: [], trouble: (error as Error).message };
  }
}

/** Range sets of an `ipam` section of host-local. Throws what is wrong with them. */
export function configuredSets(ipam: JsonObject, version: string): RangeSet[] {
  const excluded = (source: unknown) => {
    const value = isObject(source) ? lookup(source, "exclude") : undefined;
    return Array.isArray(value) ? value.map((one) => prefixOrAddress(String(one), "exclude")) : undefined;
  };
  const legacy = rangeConf(ipam).subnet === undefined ? [] : [[rangeConf(ipam)]];
  const ranges = lookup(ipam, "ranges");
  const sets = (Array.isArray(ranges) ? ranges : []).map((set) =>
    Array.isArray(set) ? set.map((one) => ({ ...rangeConf(one), excluded: excluded(one) })) : []
  );
  const options = { version, atLeast030: atLeast(version, "0.3.0"), excluded: excluded(ipam), warn: () => {} };
  return rangeSets([...legacy, ...sets], options);
}

/** A range as it is configured, without what it excludes. */
export function rangeConf(source: unknown): RangeConf {
  const text = (key: string) => {
    const value = isObject(source) ? lookup(source, key) : undefined;
    return typeof value === "string" && value !== "" ? value : undefined;
  };
  const [subnet, rangeStart] = [text("subnet"), text("rangeStart")];
  return { subnet, rangeStart, rangeEnd: text("rangeEnd"), gateway: text("gateway") };
}

/** What leases and attachments are judged by: looked at once, for all judgements of a command. */
export interface Evidence {
  readonly attachments: readonly Cached[];
  /** Addresses that were found in namespaces, each with a path of one. */
  readonly inUse: ReadonlyMap<string, string>;
  /** Links of this host's other namespaces, by inode number. */
  readonly links: ReadonlyMap<string, readonly Link[]>;
  /** What the paths of the attachments' namespaces lead to. */
  readonly places: ReadonlyMap<string, Place>;
  /** What could not be looked at. */
  readonly unseen: readonly Unseen[];
  /** Why an address that was not found may be in use all the same; "" when it is not. */
  readonly doubt: string;
  /** When this host booted, with a margin: in milliseconds of the epoch. */
  readonly boot: number;
}

/** What the path of a namespace leads to. */
export interface Place {
  readonly state: NetnsState;
  /** Inode number; "" where it cannot be looked at. */
  readonly ns: string;
}

/** Looks at the namespaces of this host, and at those of attachments that no process and no mount leads to. */
export async function gather(attachments: readonly Cached[], host: Run): Promise<Evidence> {
  const places = new Map(attachments.map(({ netns }) => [netns, placeOf(netns)] as const));
  const own = placeOf("/proc/self/ns/net").ns;
  const also = [...places].filter(([, { state }]) => state === "netns").map(([path, { ns }]) => [ns, path] as const);
  const { links, inUse, unseen } = await surveyNetns(host, new Map(also));
  const elsewhere = new Map([...links].filter(([ns]) => ns !== own));
  // Whose namespace a known attachment's is, its cached result says: no other container is in there.
  const known = new Set([...places.values()].map(({ ns }) => ns));
  const doubt = unseenText(unseen.filter(({ ns }) => ns === "" || !known.has(ns)));
  return { attachments, inUse, links: elsewhere, places, unseen, doubt, boot: bootTime() - 2000 };
}

/** What could not be looked at, a line each; of many the first. */
export function unseenLines(unseen: readonly Unseen[]): string[] {
  const [first, ...others] = unseen;
  if (!first || others.length < 3) return unseen.map((one) => unseenText([one]));
  return [`${unseen.length} namespaces could not be looked at; ${first.path}: ${first.reason}`];
}

function placeOf(path: string): Place {
  try {
    return { state: netnsState(path), ns: path === "" ? "" : `${fileIdentity(path).ino}` };
  } catch {
    return { state: netnsState(path), ns: "" };
  }
}

/** What the path of an attachment's namespace led to; one that came meanwhile is looked at now. */
export function placeIn({ places }: Pick<Evidence, "places">, path: string): Place {
  return places.get(path) ?? placeOf(path);
}

/** Whether the container of an attachment lives, and what that is known by. */
export interface Life {
  readonly state: "alive" | "gone" | "unknown";
  readonly evidence: string;
}

/** Judges an attachment: it is gone when its namespace is, and when its addresses provably are in no other. */
export function lifeOf(attachment: Cached, known: Evidence): Life {
  const { netns, written } = attachment;
  const { inUse, doubt, boot } = known;
  const { state, ns } = placeIn(known, netns);
  if (state === "netns" || state === "own") return { state: "alive", evidence: `namespace ${netns}` };
  if (state === "not a namespace" && ns === "") {
    return { state: "unknown", evidence: `${netns} cannot be looked at` };
  }
  const gone = netns === "" ? "its namespace is not known" : `${netns} is gone`;
  const ip = addressesOf(attachment).find((ip) => inUse.has(ip));
  if (ip !== undefined) return { state: "unknown", evidence: `${gone}, but ${ip} is in use in ${inUse.get(ip)}` };
  if (doubt !== "") return { state: "unknown", evidence: `${gone}, but ${doubt}` };
  if (netns !== "") return { state: "gone", evidence: `${gone}; DEL never came` };
  const old = written !== undefined && written.getTime() < boot;
  return old
    ? { state: "gone", evidence: "older than this boot; DEL never came" }
    : { state: "unknown", evidence: gone };
}

/** One of several that hold the same address. */
export interface Claim {
  readonly network: string;
  readonly ip: string;
  readonly containerId: string;
  readonly ifName: string | undefined;
  /** Whether a lease says so. */
  readonly recorded: boolean;
  readonly evidence: string;
}

/** What {@linkcode judge} finds. */
export interface Judgement {
  readonly judged: readonly Judged[];
  readonly unrecorded: readonly Unrecorded[];
  /** Addresses that several living containers have: by their leases, or by their results. */
  readonly duplicates: readonly (readonly Claim[])[];
}

/** Judges every lease by the cache of attachments, the namespaces that live, and the addresses that are in use. */
export function judge(all: readonly Pool[], evidence: Evidence): Judgement {
  const judged = all.flatMap((pool) => pool.leases.map((lease) => judgeOne(pool, lease, evidence)));
  const living = evidence.attachments.filter((one) => lifeOf(one, evidence).state === "alive");
  const claims = living.flatMap((attachment) => {
    const pool = all.find((one) => one.network === attachment.network);
    if (!pool) return [];
    return addressesOf(attachment).filter((ip) => belongs(pool, ip)).map((ip) => ({ pool, ip, attachment }));
  });
  const unrecorded = claims.filter(({ pool, ip }) =>
    !judged.some(({ pool: { network }, lease }) =>
      network === pool.network && lease.ip === ip && lease.containerId !== ""
    )
  );
  return { judged, unrecorded, duplicates: duplicatesOf(judged, claims) };
}

function belongs(pool: Pool, ip: string): boolean {
  const address = parseAddress(ip);
  return address !== undefined &&
    (pool.sets.length === 0 || pool.sets.some((set) => rangeOf(set, address) !== undefined));
}

function judgeOne(pool: Pool, lease: Lease, known: Evidence): Judged {
  const { attachment, life } = holderOf(pool, lease, known);
  const found = (state: State, evidence: string) => ({
    pool,
    lease,
    state,
    evidence,
    ...(attachment && { attachment }),
  });
  const where = known.inUse.get(lease.ip);
  if (life?.state === "alive" && attachment) {
    if (where !== undefined || !wasSeen(attachment, known)) return found("alive", life.evidence);
    return found("idle", `${attachment.netns} lives, but no interface in it has the address`);
  }
  if (where !== undefined) {
    const why = lease.containerId === "" ? "the file is empty" : "no runtime's cache knows the container";
    return found("in use, unknown", life?.evidence ?? `in use in ${where}; ${why}`);
  }
  if (life?.state === "gone") return found("netns gone", life.evidence);
  if (life) return found("not examined", life.evidence);
  if (known.doubt !== "") return found("not examined", `in no namespace that was looked at, but ${known.doubt}`);
  if (lease.containerId === "") return found("empty", "the file is empty: what a crash left");
  if (lease.written.getTime() < known.boot) {
    return found("before boot", "older than this boot, in no namespace, in no runtime's cache");
  }
  return found("unknown", "in no namespace, in no runtime's cache");
}

/**
 * The attachment that a lease is for. A lease that names no interface is for all of the container; then the one that
 * lives counts.
 */
function holderOf({ network }: Pool, lease: Lease, known: Evidence): { attachment?: Cached; life?: Life } {
  if (lease.containerId === "") return {};
  const owner = { ...lease, network };
  const holders = known.attachments.filter((one) => isHolder(owner, one))
    .map((attachment) => ({ attachment, life: lifeOf(attachment, known) }));
  return ["alive", "unknown", "gone"].flatMap((state) => holders.filter(({ life }) => life.state === state))[0] ?? {};
}

/** Is a lease or a claim this attachment's? One that names no interface is for all of the container. */
export function isHolder({ network, containerId, ifName }: Owner, of: Owner): boolean {
  return network === of.network && containerId === of.containerId && (ifName === undefined || ifName === of.ifName);
}

/** Were the addresses in this namespace looked at? */
function wasSeen({ netns }: Cached, known: Evidence): boolean {
  return !known.unseen.some(({ ns }) => ns === "" || ns === placeIn(known, netns).ns);
}

/** Addresses that host-local gave to an attachment, by its cached result. */
export function addressesOf({ result, ifName }: Cached): string[] {
  const interfaces = Array.isArray(result?.["interfaces"])
    ? result["interfaces"] as { name?: string; sandbox?: string }[]
    : [];
  const ips = Array.isArray(result?.["ips"]) ? result["ips"] as { address?: string; interface?: number }[] : [];
  const old = ["ip4", "ip6"].flatMap((key) => isObject(result?.[key]) ? [{ address: String(result[key]["ip"]) }] : []);
  const own = [...ips, ...old].filter((ip) =>
    !("interface" in ip) || ip.interface === undefined || interfaces[ip.interface]?.name === ifName ||
    !interfaces[ip.interface]?.sandbox
  );
  return own.flatMap(({ address = "" }) => canonicalAddress(address.split("/")[0] ?? "") ?? []);
}

/**
 * Addresses that more than one living container has: whoever has a lease, and whoever was given the address by a
 * result.
 */
function duplicatesOf(judged: readonly Judged[], used: readonly Unrecorded[]): Claim[][] {
  const claims = new Map<string, Claim[]>();
  const claim = (one: Claim) => {
    const others = claims.get(one.ip) ?? [];
    if (!others.some((other) => isHolder(other, one))) claims.set(one.ip, [...others, one]);
  };
  for (const { pool: { network }, lease: { ip, containerId, ifName }, state, evidence } of judged) {
    // Of those that are not known to live, only one whose address a living container of the same network has.
    const contests = !GONE.includes(state) && containerId !== "" &&
      used.some((one) => one.ip === ip && one.pool.network === network);
    if (state === "alive" || contests) claim({ network, ip, containerId, ifName, recorded: true, evidence });
  }
  for (const { pool: { network }, ip, attachment: { containerId, ifName, netns } } of used) {
    claim({ network, ip, containerId, ifName, recorded: false, evidence: `namespace ${netns}` });
  }
  return [...claims.values()].filter((list) => list.length > 1);
}

/** How full a pool's set is. */
export interface Use {
  readonly range: string;
  readonly taken: number;
  /** Addresses that can be given out, on this node; IPv6 sets have more than a number can count. */
  readonly total: bigint;
  /** How many blocks of the set are this node's, where it is a cluster's: more can be taken when they are full. */
  readonly blocks?: number;
}

/** Nobody runs out of the addresses of an IPv6 network. */
export const isCountable = (total: bigint) => total < 1n << 32n;

/** `5 of 253`, or how many are taken where there is no end of them. */
export const shareText = (taken: number, total: bigint) => isCountable(total) ? `${taken} of ${total}` : `${taken}`;

/** Subnets of range sets, in CIDR form. */
export const subnetsOf = (sets: readonly RangeSet[]) =>
  sets.flatMap((set) => set.map(({ subnet }) => formatPrefix(subnet)));

/** Does the address lie in the block? */
export function isIn(block: Prefix, ip: string): boolean {
  const address = parseAddress(ip);
  return address !== undefined && prefixContains(block, address);
}

/** Use of every set of a pool. */
export function useOf(pool: Pool): Use[] {
  return pool.sets.map((set, index) => {
    const taken = pool.leases.filter(({ ip, containerId }) => {
      const address = parseAddress(ip);
      return containerId !== "" && address !== undefined && rangeOf(set, address) !== undefined;
    }).length;
    const whole = pool.share?.sets[index];
    if (whole === undefined) return { range: describe(set), taken, total: size(set) };
    const own = pool.share?.blocks.filter((block) => isBlockOf(block, whole)) ?? [];
    const total = own.reduce((sum, block) => sum + addressCount(block, whole), 0n);
    return { range: describe(set), taken, total, blocks: own.length };
  });
}
