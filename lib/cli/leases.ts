/**
 * Who holds which address and whether that is so: lease folders, cached attachments and the kernel looked at together. `cnibox ipam`,
 * `show` and `doctor` speak of what is found here.
 */
import { loadAll, type NetworkList } from "../cni/conflist.ts";
import { isObject, lookup } from "../cni/decode.ts";
import { toCniError } from "../cni/error.ts";
import type { Cached } from "../cni/result_cache.ts";
import type { JsonObject } from "../cni/types.ts";
import { atLeast } from "../cni/version.ts";
import { leases } from "../ipam/allocator.ts";
import { describe, type RangeConf, rangeOf, type RangeSet, rangeSets, size } from "../ipam/range.ts";
import type { Lease } from "../ipam/store.ts";
import { bootTime } from "../ipam/lease_index.ts";
import { addressesInUse } from "../kernel/all_netns.ts";
import { netnsState } from "../kernel/netns.ts";
import type { Run } from "../kernel/run.ts";
import { canonicalAddress, parseAddress } from "../net/cidr.ts";
import { CliError, status } from "./command.ts";
import { attachmentsOf, type Folders } from "./setup.ts";

/** A network whose addresses host-local keeps. */
export interface Pool {
  readonly network: string;
  readonly folder: string;
  /** Checked range sets; empty when the folder is there but no configuration names the network, or a bad one. */
  readonly sets: readonly RangeSet[];
  /** Why there are no sets. */
  readonly trouble: string;
  readonly leases: readonly Lease[];
}

/** What is known of a lease. */
export type State = "alive" | "idle" | "netns gone" | "in use, unknown" | "before boot" | "unknown" | "empty";

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
export async function pools(folders: Folders): Promise<Pool[]> {
  const found = new Map<string, Pool>();
  for (const list of configured(folders)) {
    for (const member of list.plugins) {
      const ipam = lookup(member.config, "ipam");
      if (!isObject(ipam) || lookup(ipam, "type") !== "host-local") continue;
      const given = lookup(ipam, "dataDir");
      const data = typeof given === "string" && given !== "" ? `${folders.root}${given}` : folders.data;
      const folder = `${data}/${list.name}`;
      found.set(folder, { network: list.name, folder, ...setsOf(ipam, list.version), leases: await read(folder) });
    }
  }
  for (const network of foldersIn(folders.data)) {
    const folder = `${folders.data}/${network}`;
    if (found.has(folder)) continue;
    found.set(folder, {
      network,
      folder,
      sets: [],
      trouble: "no configuration names this network",
      leases: await read(folder),
    });
  }
  return [...found.values()].sort((a, b) => a.network < b.network ? -1 : 1);
}

function configured(folders: Folders): NetworkList[] {
  return [...loadAll(folders.conf).lists];
}

async function read(folder: string): Promise<Lease[]> {
  try {
    return await leases(folder, { warn: () => {} });
  } catch (error) {
    if (Deno.uid() === 0) throw error;
    throw new CliError(toCniError(error).msg, status.noRights, ["run this command as root"]);
  }
}

function foldersIn(folder: string): string[] {
  try {
    return [...Deno.readDirSync(folder)].filter(({ isDirectory }) => isDirectory).map(({ name }) => name);
  } catch {
    return [];
  }
}

/** Range sets of an `ipam` section; a bad one gives none, with the reason. */
function setsOf(ipam: JsonObject, version: string): { sets: readonly RangeSet[]; trouble: string } {
  try {
    const text = (value: unknown) => typeof value === "string" && value !== "" ? value : undefined;
    const range = (source: unknown): RangeConf =>
      isObject(source)
        ? {
          subnet: text(lookup(source, "subnet")),
          rangeStart: text(lookup(source, "rangeStart")),
          rangeEnd: text(lookup(source, "rangeEnd")),
          gateway: text(lookup(source, "gateway")),
        }
        : {};
    const legacy = text(lookup(ipam, "subnet")) === undefined ? [] : [[range(ipam)]];
    const ranges = lookup(ipam, "ranges");
    const sets = Array.isArray(ranges) ? ranges.map((set) => Array.isArray(set) ? set.map(range) : []) : [];
    return {
      sets: rangeSets([...legacy, ...sets], { version, atLeast030: atLeast(version, "0.3.0"), warn: () => {} }),
      trouble: "",
    };
  } catch (error) {
    return { sets: [], trouble: (error as Error).message };
  }
}

/** Judges every lease by the cache of attachments, the namespaces that live, and the addresses that are in use. */
export async function judge(
  all: readonly Pool[],
  folders: Folders,
  host: Run,
): Promise<{ judged: Judged[]; unrecorded: Unrecorded[]; duplicates: Judged[][] }> {
  const attachments = attachmentsOf(folders);
  const inUse = await addressesInUse(host).catch(() => undefined);
  const boot = bootTime() - 2000;
  const judged = all.flatMap((pool) => pool.leases.map((lease) => judgeOne(pool, lease, { attachments, inUse, boot })));
  const unrecorded = attachments.flatMap((attachment) => {
    const pool = all.find((one) => one.network === attachment.network);
    if (!pool || netnsState(attachment.netns) !== "netns") return [];
    const missing = addressesOf(attachment).filter((ip) =>
      !pool.leases.some((lease) => lease.ip === ip) && belongs(pool, ip)
    );
    return missing.map((ip) => ({ pool, ip, attachment }));
  });
  return { judged, unrecorded, duplicates: twice(judged) };
}

function belongs(pool: Pool, ip: string): boolean {
  const address = parseAddress(ip);
  return address !== undefined &&
    (pool.sets.length === 0 || pool.sets.some((set) => rangeOf(set, address) !== undefined));
}

interface Known {
  readonly attachments: readonly Cached[];
  readonly inUse: ReadonlyMap<string, string> | undefined;
  readonly boot: number;
}

function judgeOne(pool: Pool, lease: Lease, { attachments, inUse, boot }: Known): Judged {
  if (lease.containerId === "") {
    return { pool, lease, state: "empty", evidence: "the file is empty: what a crash left" };
  }
  const attachment = attachments.find((one) =>
    one.network === pool.network && one.containerId === lease.containerId &&
    (lease.ifName === undefined || one.ifName === lease.ifName)
  );
  const where = inUse?.get(lease.ip);
  if (attachment) {
    const alive = netnsState(attachment.netns) === "netns";
    if (alive && inUse && where === undefined) {
      const evidence = `${attachment.netns} lives, but no interface in it has the address`;
      return { pool, lease, attachment, state: "idle", evidence };
    }
    if (alive) return { pool, lease, attachment, state: "alive", evidence: `namespace ${attachment.netns}` };
    if (where === undefined) {
      return {
        pool,
        lease,
        attachment,
        state: "netns gone",
        evidence: `${attachment.netns || "its namespace"} is gone; DEL never came`,
      };
    }
  }
  if (where !== undefined) {
    return {
      pool,
      lease,
      ...(attachment && { attachment }),
      state: "in use, unknown",
      evidence: `in use in ${where}; no runtime's cache knows the container`,
    };
  }
  if (lease.written.getTime() < boot) {
    return {
      pool,
      lease,
      state: "before boot",
      evidence: "older than this boot, in no namespace, in no runtime's cache",
    };
  }
  return {
    pool,
    lease,
    state: "unknown",
    evidence: inUse ? "in no namespace, in no runtime's cache" : "namespaces could not be looked at",
  };
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

/** Leases of one address in several folders whose ranges are the same. */
function twice(judged: readonly Judged[]): Judged[][] {
  const byIp = new Map<string, Judged[]>();
  for (const one of judged) byIp.set(one.lease.ip, [...byIp.get(one.lease.ip) ?? [], one]);
  return [...byIp.values()].filter((list) => list.filter(({ state }) => state === "alive").length > 1);
}

/** How full a pool's set is. */
export interface Use {
  readonly range: string;
  readonly taken: number;
  /** Addresses that can be given out; IPv6 sets have more than a number can count. */
  readonly total: bigint;
}

/** Use of every set of a pool. */
export function useOf(pool: Pool): Use[] {
  return pool.sets.map((set) => {
    const taken = pool.leases.filter(({ ip, containerId }) => {
      const address = parseAddress(ip);
      return containerId !== "" && address !== undefined && rangeOf(set, address) !== undefined;
    }).length;
    return { range: describe(set), taken, total: size(set) };
  });
}
