/**
 * Takes the next free address, or the one asked for; releases addresses. All sets of a call under one lock, so that
 * nobody sees a container with half of its addresses, and with nothing taken when one set has none left.
 *
 * @module
 */
import { all, CniError, code } from "../cni/error.ts";
import { addressesInUse, unseenText } from "../kernel/all_netns.ts";
import { type Address, formatAddress, formatPrefix, parseAddress, sameAddress } from "../net/cidr.ts";
import { type Candidate, candidates, describe, excludedBy, isGateway, rangeOf, type RangeSet, size } from "./range.ts";
import { findDead, type ProofOptions, type Verdict } from "./reclaim.ts";
import {
  contentOf,
  type Holder,
  type Lease,
  openStore,
  Store,
  type StoreOptions,
  type Taking,
  takingFrom,
  withStore,
} from "./store.ts";

/** What an owner had before: its next container gets it again when it is free. Used while the lock is held. */
export interface Memory {
  readonly path: string;
  had(): readonly Address[];
  /** Content of the file once these are the owner's. */
  after(addresses: readonly Address[]): string;
  /** Failing is no failure. */
  keep(addresses: readonly Address[]): void;
}

/** What to allocate: one address from each set, one of those asked for where there is one. */
export interface Wanted {
  readonly sets: readonly RangeSet[];
  readonly requested: readonly Address[];
  readonly memory?: Memory | undefined;
  /** Where runtimes keep results, see {@linkcode ProofOptions}. */
  readonly resultsFolders?: readonly string[] | undefined;
}

/** How, and where. */
export type AllocatorOptions = Omit<StoreOptions, "create"> & ProofOptions;

/** How many candidates are tried one by one before the folder is listed to see which are free. */
const TRIES = 32;

/**
 * Locks the folder to take one address per set for the holder, in the order of the sets. `wanted` is called once,
 * before anything is made, while the lock is asked for; what it throws is thrown.
 *
 * @throws {CniError} in the reference's words, with nothing taken; codes 5 and 11 for the file system and the lock
 */
export async function begin(
  folder: string,
  holder: Holder,
  { wanted, ...options }: AllocatorOptions & { readonly wanted: () => Wanted },
): Promise<Taking> {
  let known: Wanted | undefined;
  let refused: { error: unknown } | undefined;
  const meanwhile = () => {
    try {
      known = wanted();
    } catch (error) {
      refused = { error };
      throw new CniError(code.internal, "nothing can be allocated"); // passes through what explains failures of files
    }
  };
  const open = await openStore(folder, { ...options, create: true, meanwhile }).catch((error) => {
    throw refused ? refused.error : error;
  });
  if (open === undefined || known === undefined) throw new TypeError("nothing is wanted");
  const { store } = open;
  const draws = drawsOf(store, { ...options, ...known });
  const { commit, ...taking } = takingFrom(open, forecast(store, draws), () => allocateAll(store, holder, draws));
  return {
    ...taking,
    commit: async () => {
      try {
        return await commit();
      } catch (error) {
        // Only now, without the lock: others need not wait for an explanation.
        throw error instanceof Duplicate ? await explained(error, holder, options) : error;
      }
    },
  };
}

/** A set to take from: its position decides which cursor is its own. */
interface Draw extends AllocatorOptions {
  readonly set: RangeSet;
  readonly index: number;
  readonly during: string;
  /** The address of this set that was asked for. */
  readonly request: Address | undefined;
  /** Tried before all others. */
  readonly had: readonly Address[];
  /** Where the round robin goes on. */
  readonly cursor: Address | undefined;
}

/** What is to be taken, and which of the requested addresses are of no set. */
interface Draws {
  readonly sets: readonly Draw[];
  readonly left: readonly Address[];
  readonly memory: Memory | undefined;
}

function drawsOf(store: Store, { sets, requested, memory, ...options }: Wanted & AllocatorOptions): Draws {
  const left = [...requested];
  const had = memory?.had() ?? [];
  const draws = sets.map((set, index) => {
    const request = takeRequest(set, left);
    const cursor = request === undefined ? store.cursor(index) : undefined;
    return { ...options, set, index, during: `failed to allocate for range ${index}`, request, had, cursor };
  });
  return { sets: draws, left, memory };
}

/** Takes the address that was asked for of this set out of those that are left. */
export function takeRequest(set: RangeSet, left: Address[]): Address | undefined {
  const at = left.findIndex((address) => rangeOf(set, address));
  return at < 0 ? undefined : left.splice(at, 1)[0];
}

/** Before anything else is looked at: what is going to be taken. */
function forecast(store: Store, { sets, left }: Draws): Candidate[] | undefined {
  if (left.length > 0) return undefined;
  const found: Candidate[] = [];
  for (const { set, request, had, cursor } of sets) {
    const walk = request === undefined ? inTurn(set, cursor, had) : grantable(set, request);
    const candidate = firstFree(store, walk);
    if (candidate === undefined) return undefined;
    found.push(candidate);
  }
  return found;
}

async function allocateAll(store: Store, holder: Holder, { sets, left, memory }: Draws): Promise<Candidate[]> {
  const taken: Candidate[] = [];
  try {
    for (const draw of sets) {
      const { request, had } = draw;
      const candidate = request === undefined
        ? await takeAny(store, holder, draw)
        : takeRequested(store, holder, { ...draw, request });
      taken.push(candidate);
      // What was had before lies anywhere: the round robin goes on where it was.
      if (!had.some((one) => sameAddress(one, candidate.address))) {
        store.setCursor(draw.index, formatAddress(candidate.address));
      }
    }
    if (left.length > 0) {
      throw new CniError(
        code.internal,
        `failed to allocate all requested IPs: ${left.map(formatAddress).join(" ")}`,
        `one address per range set can be requested; the sets are ${
          sets.map(({ set }) => describe(set)).join(" and ")
        }`,
      );
    }
    memory?.keep(taken.map(({ address }) => address));
    return taken;
  } catch (error) {
    // Only what this call took: the container may have other addresses from earlier ones.
    for (const { address } of taken) store.release(formatAddress(address), holder);
    throw error;
  }
}

function takeRequested(
  store: Store,
  holder: Holder,
  { set, request, during }: Pick<Draw, "set" | "during"> & { request: Address },
): Candidate {
  const ip = formatAddress(request);
  if (isGateway(set, request)) {
    throw new CniError(
      code.internal,
      `${during}: requested ip ${ip} is subnet's gateway`,
      `request another one of ${describe(set)}`,
    );
  }
  const range = rangeOf(set, request)!;
  const excluded = excludedBy(range, request);
  if (excluded) {
    throw new CniError(
      code.internal,
      `${during}: requested IP address ${ip} is excluded`,
      `by "exclude": ${formatPrefix(excluded)}`,
    );
  }
  if (store.reserve(ip, holder)) return { address: request, range };
  if (store.isBlank(ip)) {
    store.discard(ip);
    if (store.reserve(ip, holder)) return { address: request, range };
  }
  const lease = store.lease(ip);
  throw new CniError(
    code.internal,
    `${during}: requested IP address ${ip} is not available in range set ${describe(set)}`,
    lease === undefined ? `${store.folder}/${ip} is in the way` : `${ip} is held by ${nameOf(lease)}`,
  );
}

async function takeAny(store: Store, holder: Holder, draw: Draw): Promise<Candidate> {
  const { set, during, had, cursor } = draw;
  const { own, old } = store.holding(holder);
  const has = [...own, ...old].find((ip) => rangeOf(set, parseAddress(ip)!));
  if (has !== undefined) throw new Duplicate(during, has, store.lease(has));

  const free = takeFree(store, holder, inTurn(set, cursor, had));
  if (free !== undefined) return free;
  const verdict = await reclaim(store, draw);
  return takeFree(store, holder, candidates(set, cursor)) ?? exhausted(store, { ...draw, verdict });
}

/** Every candidate of a set, those that were had before first. */
export function* inTurn(
  set: RangeSet,
  cursor: Address | undefined,
  had: readonly Address[],
): Generator<Candidate> {
  for (const address of had) yield* grantable(set, address);
  yield* candidates(set, cursor);
}

/** The address, if it is one that the set may give. */
function grantable(set: RangeSet, address: Address): Candidate[] {
  const range = rangeOf(set, address);
  return range && !isGateway(set, address) && !excludedBy(range, address) ? [{ address, range }] : [];
}

/**
 * The first candidate that is free. After some tries the folder is listed: then a full one costs no more than its
 * listing.
 */
function takeFree(store: Store, holder: Holder, walk: Iterable<Candidate>): Candidate | undefined {
  let tries = 0;
  let taken: Set<string> | undefined;
  for (const candidate of walk) {
    const ip = formatAddress(candidate.address);
    if (tries++ === TRIES) taken = store.names();
    if (!taken?.has(ip) && store.reserve(ip, holder)) return candidate;
  }
  return undefined;
}

/** What {@linkcode takeFree} is going to take; undefined when that takes long to say. */
function firstFree(store: Store, walk: Iterable<Candidate>): Candidate | undefined {
  let tries = 0;
  for (const candidate of walk) {
    if (store.isFree(formatAddress(candidate.address))) return candidate;
    if (++tries === TRIES) return undefined;
  }
  return undefined;
}

/**
 * The set is full: releases what in it belongs to nobody. Files that say nothing are what a crash left; other leases
 * need the proof of {@linkcode findDead}.
 */
async function reclaim(store: Store, { set, warn, host, resultsFolders }: Draw): Promise<Verdict> {
  const leases = store.leases().filter(({ ip }) => rangeOf(set, parseAddress(ip)!));
  for (const { ip, containerId } of leases) {
    if (containerId !== "") continue;
    store.discard(ip);
    warn(`${ip}: empty lease removed from ${store.folder}: a crash left it`);
  }
  const verdict = await findDead(leases, { host, resultsFolders });
  for (const lease of verdict.dead) {
    store.release(lease.ip, lease);
    warn(
      `${lease.ip}: reclaimed from ${nameOf(lease)}, written ${lease.written.toISOString()}, before this boot; ` +
        "it is in no network namespace, and no runtime has a result of this container",
    );
  }
  return verdict;
}

function exhausted(store: Store, { set, during, verdict }: Draw & { verdict: Verdict }): never {
  const { suspects, reason } = verdict;
  const doubt = suspects.length === 0
    ? "none is known to be left over"
    : `${suspects.length} may be left over from before this boot` +
      (reason === "" ? ", but their addresses are in use" : `, but that cannot be proved: ${reason}`);
  throw new CniError(
    code.internal,
    `${during}: no IP addresses available in range set: ${describe(set)}`,
    `${usedOf(set, store.names())} of ${size(set)} addresses are taken, ${doubt}; \`cnibox ipam\` lists them`,
  );
}

/** The container has an address of this set already; `lease` is the file that says so. */
class Duplicate extends Error {
  constructor(readonly during: string, readonly ip: string, readonly lease: Lease | undefined) {
    super(ip);
  }
}

/** The reference's words, and what helps to tell a live container from the leftover of a dead one. */
async function explained({ during, ip, lease }: Duplicate, holder: Holder, { host }: ProofOptions): Promise<CniError> {
  const held = lease === undefined ? "" : `held by ${nameOf(lease)} since ${lease.written.toISOString()}`;
  let where = "";
  try {
    const { inUse, unseen } = await addressesInUse(host);
    const path = inUse.get(ip);
    if (path !== undefined) where = `, in use in ${path}`;
    else where = unseen.length === 0 ? ", in no network namespace of this host" : `, but ${unseenText(unseen)}`;
  } catch {
    // The address alone has to do.
  }
  return new CniError(
    code.internal,
    `${during}: ${ip} has been allocated to ${holder.containerId}, duplicate allocation is not allowed`,
    `${held}${where}; DEL of this container and interface releases it, \`cnibox ipam repair --all\` what crashes left`,
  );
}

function nameOf({ containerId, ifName }: Lease): string {
  if (containerId === "") return "an empty file";
  return ifName === undefined ? `container ${containerId}` : `container ${containerId}, interface ${ifName}`;
}

/**
 * Releases everything that the holder has, in today's format or, failing that, in the one that names the container
 * alone, and returns the addresses. Nothing there is success. A file that cannot be removed does not keep the others.
 */
export async function release(
  folder: string,
  holder: Holder,
  options: Omit<StoreOptions, "create">,
): Promise<string[]> {
  const released = await withStore(folder, options, async (store) => {
    const { own, old } = store.holding(holder);
    const ips = own.length > 0 ? own : old;
    const lease = own.length > 0 ? holder : { containerId: holder.containerId };
    await all(ips.map((ip) => () => store.release(ip, lease)));
    return ips;
  });
  return [...released ?? []];
}

/** Releases these addresses of the holder and no others: how a call undoes what it did itself. */
export async function releaseOnly(
  folder: string,
  holder: Holder,
  options: Omit<StoreOptions, "create"> & { readonly ips: readonly string[] },
): Promise<void> {
  await withStore(folder, options, async (store) => {
    const { own } = store.holding(holder);
    await all(own.filter((ip) => options.ips.includes(ip)).map((ip) => () => store.release(ip, holder)));
  });
}

/** The addresses that {@linkcode release} would release. */
export async function held(folder: string, holder: Holder, options: Omit<StoreOptions, "create">): Promise<string[]> {
  const ips = await withStore(folder, options, (store) => {
    const { own, old } = store.holding(holder);
    return own.length > 0 ? own : old;
  });
  return [...ips ?? []];
}

/** A note for every set that has no address left. */
export async function usage(
  folder: string,
  sets: readonly RangeSet[],
  options: Omit<StoreOptions, "create">,
): Promise<string[]> {
  const names = await withStore(folder, options, (store) => store.names());
  return sets.filter((set) => BigInt(usedOf(set, names ?? [])) >= size(set))
    .map((set) => `no IP addresses available in range set: ${describe(set)}: all ${size(set)} are taken`);
}

/** How many of these names are addresses that the set could give out. */
function usedOf(set: RangeSet, names: Iterable<string>): number {
  let count = 0;
  for (const name of names) {
    const address = parseAddress(name);
    const range = address && rangeOf(set, address);
    if (address && range && !isGateway(set, address) && !excludedBy(range, address)) count++;
  }
  return count;
}

/**
 * Releases what belongs to none of the valid holders, and returns it. A lease that names the container alone stays
 * while that container has any valid interface; files that say nothing go.
 */
export async function collect(
  folder: string,
  valid: readonly Holder[],
  options: Omit<StoreOptions, "create">,
): Promise<Lease[]> {
  const attachments = new Set(valid.map(contentOf));
  const containers = new Set(valid.map(({ containerId }) => containerId));
  const isValid = ({ containerId, ifName }: Lease) =>
    ifName === undefined ? containers.has(containerId) : attachments.has(contentOf({ containerId, ifName }));
  const gone = await withStore(folder, options, async (store) => {
    const stale = store.leases().filter((lease) => !isValid(lease));
    await all(
      stale.map((lease) => () => lease.containerId === "" ? store.discard(lease.ip) : store.release(lease.ip, lease)),
    );
    return stale;
  });
  return gone ?? [];
}

/** Every lease of the network, in ascending order of addresses. */
export async function leases(folder: string, options: Omit<StoreOptions, "create">): Promise<Lease[]> {
  return await withStore(folder, options, (store) => store.leases()) ?? [];
}

/** The same without the lock, for those who only look: whoever changes a lease looks again under it. */
export function leasesSeen(folder: string, warn: (note: string) => void): Lease[] {
  return new Store(folder, { warn }).leases();
}

/** What {@linkcode repair} did, and what it left because it could not be sure. */
export interface Repaired {
  readonly empty: readonly Lease[];
  readonly verdict: Verdict;
}

/** Releases what is provably nobody's in the whole folder: empty files, and leases of dead containers. */
export async function repair(folder: string, options: AllocatorOptions): Promise<Repaired> {
  const done = await withStore(folder, options, async (store) => {
    const found = store.leases();
    const empty = found.filter(({ containerId }) => containerId === "");
    const verdict = await findDead(found, options);
    await all([
      ...empty.map(({ ip }) => () => store.discard(ip)),
      ...verdict.dead.map((lease) => () => store.release(lease.ip, lease)),
    ]);
    return { empty, verdict };
  });
  return done ?? { empty: [], verdict: { dead: [], suspects: [], reason: "" } };
}
