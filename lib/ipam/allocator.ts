/**
 * Takes the next free address, or the one asked for; releases addresses. All sets of a call under one lock, so that
 * nobody sees a container with half of its addresses, and with nothing taken when one set has none left.
 *
 * @module
 */
import { all, internal } from "../cni/error.ts";
import { type Address, formatAddress, formatPrefix, parseAddress, sameAddress } from "../net/cidr.ts";
import {
  type Candidate,
  candidates,
  describe,
  excludedBy,
  isGateway,
  rangeOf,
  type RangeSet,
  takeRequest,
  unmet,
} from "./range.ts";
import type { ProofOptions } from "./reclaim.ts";
import {
  type Holder,
  type Lease,
  openStore,
  Store,
  type StoreOptions,
  type Taking,
  takingFrom,
  withStore,
} from "./store.ts";

/** Loaded when used: what follows when a set is full, or the container has an address already. */
const upkeep = () => import("./lease_upkeep.ts");

/** What an owner had before: its next container gets it again when it is free. Used while the lock is held. */
export interface Memory {
  had(): readonly Address[];
  /** Notes that these are the owner's. Failing is no failure. */
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
      throw internal("nothing can be allocated"); // passes through what explains failures of files
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
        throw error instanceof Duplicate ? await (await upkeep()).duplicateError(error, holder, options) : error;
      }
    },
  };
}

/** A set to take from: its position decides which cursor is its own. */
export interface Draw extends AllocatorOptions {
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
    if (left.length > 0) throw unmet(left, sets.map(({ set }) => set));
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
    throw internal(`${during}: requested ip ${ip} is subnet's gateway`, `request another one of ${describe(set)}`);
  }
  const range = rangeOf(set, request)!;
  const excluded = excludedBy(range, request);
  if (excluded) {
    throw internal(`${during}: requested IP address ${ip} is excluded`, `by "exclude": ${formatPrefix(excluded)}`);
  }
  if (store.reserve(ip, holder)) return { address: request, range };
  if (store.isBlank(ip)) {
    store.discard(ip);
    if (store.reserve(ip, holder)) return { address: request, range };
  }
  const lease = store.lease(ip);
  throw internal(
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
  const { exhausted, reclaim } = await upkeep();
  const verdict = await reclaim(store, draw);
  return takeFree(store, holder, candidates(set, cursor)) ?? exhausted(store, { ...draw, verdict });
}

/** Every candidate of a set, those that were had before first. */
function* inTurn(
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

/** The container has an address of this set already; `lease` is the file that says so. */
export class Duplicate extends Error {
  constructor(readonly during: string, readonly ip: string, readonly lease: Lease | undefined) {
    super(ip);
  }
}

/** Whose a lease is, for people. */
export function nameOf({ containerId, ifName }: Lease): string {
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
