/**
 * A node's share of a cluster's pool: blocks that it owns, addresses given out of them, further blocks taken when they
 * are full and spare ones returned. Addresses are files on this node and need no store; blocks are records in the
 * store.
 *
 * Two locks: the lease folder's, held for as long as files are looked at and written, never while the store is asked;
 * and the block folder's, held by the one call that asks the store.
 *
 * @module
 */
import { badConfig, CniError, code, internal } from "../cni/error.ts";
import { perform } from "../kernel/plan.ts";
import { revisionNumber, type Store as ClusterStore, StoreError, type StoreRecord } from "../store/store.ts";
import {
  type Address,
  formatAddress,
  formatPrefix,
  parseAddress,
  parsePrefix,
  type Prefix,
  prefixContains,
  prefixesOverlap,
} from "../net/cidr.ts";
import { type BlockState, type OwnBlock, readBlocks, withBlock, writeBlocks } from "./block_state.ts";
import {
  addressesOf,
  blockAt,
  blockCount,
  blockKey,
  blockOf,
  blockOfKey,
  familyOf,
  isBlockOf,
  isUsable,
  type Owner,
  type PoolSet,
  readOwner,
} from "./blocks.ts";
import { lockFolder } from "./lock.ts";
import { type Candidate, describe, excludedBy, isGateway, rangeOf, takeRequest, unmet } from "./range.ts";
import { type Holder, openStore, type Store, type StoreOptions, type Taking, takingFrom, withStore } from "./store.ts";

/** A pool as one node's configuration describes it. */
export interface Pool {
  readonly name: string;
  readonly sets: readonly PoolSet[];
  /** May other pools of the store overlap with it? */
  readonly mayOverlap: boolean;
  /** Folder of the leases. */
  readonly folder: string;
  /** Folder of the blocks' file and its lock. */
  readonly blockFolder: string;
  /** How long a released address rests while others are free, in milliseconds. */
  readonly quarantineMs: number;
  readonly identity: Pick<Owner, "node" | "machineId" | "bootId">;
  /** Opened when it is asked for the first time. */
  readonly store: () => ClusterStore;
}

/** How a pool is worked on. */
export type OwnerOptions = Omit<StoreOptions, "create">;

/** Most attempts to take a block for one address. */
const ROUNDS = 16;
/** How long the store is left alone after it did not answer, unless nothing can be done without it; in milliseconds. */
const PAUSE_MS = 10_000;
/** Key prefix of the records that say what each pool is. */
export const POOLS = "cnibox-pools";

/** The file that says which blocks this node owns. */
export const blocksFile = (pool: Pick<Pool, "blockFolder">): string => `${pool.blockFolder}/blocks.json`;

/** What kept an attempt from succeeding with what is here. */
type Need =
  /** The blocks have not been confirmed in this boot. */
  | { readonly kind: "confirm" }
  /** No address of this set is free; or the block of an address that was asked for is not ours. */
  | { readonly kind: "block"; readonly set: PoolSet; readonly wanted?: Address };

/**
 * Chooses one address from each set for the holder, further blocks included where they are needed. All sets or none are
 * taken.
 *
 * @throws {CniError} code 100 when the pool is full; code 11 when the store is needed and does not answer; code 7 when
 * it refuses
 */
export async function beginTaking(
  pool: Pool,
  holder: Holder,
  options: OwnerOptions & { readonly requested: readonly Address[] },
): Promise<Taking> {
  let settle: Error | undefined;
  for (let round = 0;; round++) {
    const open = await openStore(pool.folder, { ...options, create: true });
    if (open === undefined) throw new TypeError("the lease folder was not made");
    let answer: Choice;
    try {
      answer = choose(pool, open.store, { ...options, holder, settle });
    } catch (error) {
      open.close();
      throw error;
    }
    if ("chosen" in answer) {
      const { chosen } = answer;
      return takingFrom(open, chosen, () => take(open.store, holder, chosen));
    }
    open.close();
    const { need } = answer;
    const served = (options.perform ?? perform)(undefined, () => serve(pool, need, options));
    try {
      if (served === undefined) throw unknownYet(pool);
      await served;
      // Others of this node may be quicker than we are each time.
      if (round > ROUNDS) {
        settle = new CniError(code.tryAgain, `pool "${pool.name}": other calls of this node were quicker`);
      }
    } catch (error) {
      if (!(error instanceof CniError) || isFault(error) || !mayDoWithout(pool, need)) throw error;
      if (served && need.kind === "confirm") options.warn(error.message);
      settle = error;
    }
  }
}

/** The error of an explained ADD that needs the store. */
function unknownYet(pool: Pool): CniError {
  return new CniError(
    code.notAvailable,
    `pool "${pool.name}": no address is free in the blocks of this node: ADD would ask ${pool.store().name} for a further one`,
    "which one it gets is known only then; `cnibox cluster blocks` shows who has what",
  );
}

/** Is it the configuration that is wrong? A store that lets this node in no more is a store that is away. */
function isFault({ code: number, cause }: CniError): boolean {
  return number === code.config && !(cause instanceof StoreError);
}

/** Is there something that can be given out though the store does not answer, or has no block left? */
function mayDoWithout(pool: Pool, need: Need): boolean {
  if (need.kind === "confirm") return readBlocks(blocksFile(pool)).blocks.some(({ phase }) => phase === "own");
  return need.wanted === undefined;
}

interface Draw extends OwnerOptions {
  readonly holder: Holder;
  readonly requested: readonly Address[];
  /**
   * Why nothing more will come of the store: addresses that rest are given out, blocks that were not confirmed are
   * trusted. Thrown when that is not enough.
   */
  readonly settle: Error | undefined;
}

type Choice = { readonly chosen: Candidate[] } | { readonly need: Need };

function choose(pool: Pool, leases: Store, draw: Draw): Choice {
  const state = readBlocks(blocksFile(pool));
  refuseDuplicate(leases, draw.holder);
  if (!draw.settle && state.bootId !== pool.identity.bootId && !isPaused(state)) return { need: { kind: "confirm" } };
  const left = [...draw.requested];
  const plan: Candidate[] = [];
  const taken = leases.names();
  for (const set of pool.sets) {
    const request = takeRequest(set.ranges, left);
    const found = request === undefined
      ? freeAddress(pool, set, { state, taken, settle: draw.settle !== undefined })
      : requestedAddress(set, request, { state, leases });
    if (found === undefined) {
      if (draw.settle && request === undefined) throw draw.settle;
      return { need: { kind: "block", set, ...(request && { wanted: request }) } };
    }
    plan.push(found);
  }
  if (left.length > 0) throw unmet(left, pool.sets.map(({ ranges }) => ranges));
  return { chosen: plan };
}

function take(leases: Store, holder: Holder, chosen: Candidate[]): Candidate[] {
  const done: string[] = [];
  try {
    for (const { address } of chosen) {
      const ip = formatAddress(address);
      if (!leases.reserve(ip, holder)) throw internal(`${leases.folder}/${ip} is in the way`, "");
      done.push(ip);
    }
  } catch (error) {
    for (const ip of done) leases.release(ip, holder);
    throw error;
  }
  return chosen;
}

function refuseDuplicate(leases: Store, holder: Holder): void {
  const { own: [ip] } = leases.holding(holder);
  if (ip === undefined) return;
  throw internal(
    `${ip} has been allocated to ${holder.containerId}, duplicate allocation is not allowed`,
    `${leases.folder}/${ip}; DEL of this container and interface releases it`,
  );
}

/** The address that has been free for longest; one that rests only when nothing else will come. */
function freeAddress(
  pool: Pool,
  set: PoolSet,
  { state, taken, settle }: { state: BlockState; taken: ReadonlySet<string>; settle: boolean },
): Candidate | undefined {
  const rested = Date.now() - pool.quarantineMs;
  let best: { candidate: Candidate; freed: number } | undefined;
  for (const { block, phase } of state.blocks) {
    if (phase !== "own" || !isBlockOf(block, set)) continue;
    for (const candidate of addressesOf(block, set)) {
      const ip = formatAddress(candidate.address);
      if (taken.has(ip)) continue;
      const freed = state.freed[ip] ?? 0;
      if (freed === 0) return candidate;
      if (best === undefined || freed < best.freed) best = { candidate, freed };
    }
  }
  return best && (settle || best.freed <= rested) ? best.candidate : undefined;
}

function requestedAddress(
  set: PoolSet,
  address: Address,
  { state, leases }: { state: BlockState; leases: Store },
): Candidate | undefined {
  const ip = formatAddress(address);
  const range = rangeOf(set.ranges, address)!;
  if (isGateway(set.ranges, address)) {
    throw internal(`requested ip ${ip} is subnet's gateway`, "request another one");
  }
  const excluded = excludedBy(range, address);
  if (excluded) {
    throw internal(`requested IP address ${ip} is excluded`, `by "exclude": ${formatPrefix(excluded)}`);
  }
  const own = state.blocks.find(({ block, phase }) => phase === "own" && prefixContains(block, address));
  if (own === undefined) return undefined;
  const lease = leases.lease(ip);
  if (lease !== undefined) {
    throw internal(
      `requested IP address ${ip} is not available`,
      `it is held by container ${lease.containerId} on this node`,
    );
  }
  return { address, range };
}

/** Asks the store for what is needed; one call of this node at a time. */
async function serve(pool: Pool, need: Need, options: OwnerOptions): Promise<void> {
  await asking(pool, options, async () => {
    if (need.kind === "confirm") {
      if (await look(pool, options) === undefined) await confirm(pool, options);
      return;
    }
    // Whoever asked before us may have got enough for both.
    if (await hasFree(pool, need, options)) return;
    await takeBlock(pool, need, options);
  });
}

/** Does work with the store while no other call of this node does, and notes whether the store answered. */
async function asking<T>(pool: Pool, options: OwnerOptions, work: () => Promise<T>): Promise<T> {
  Deno.mkdirSync(pool.blockFolder, { recursive: true, mode: 0o755 });
  const lock = await lockFolder(pool.blockFolder, options.limitMs === undefined ? {} : { limitMs: options.limitMs });
  try {
    const result = await work();
    const state = readBlocks(blocksFile(pool));
    if (state.failed !== 0) await change(pool, options, (now) => ({ ...now, failed: 0 }));
    return result;
  } catch (error) {
    if (!(error instanceof StoreError)) throw error;
    if (error.failure !== "refused") await change(pool, options, (now) => ({ ...now, failed: Date.now() }));
    const told = new CniError(
      error.failure === "refused" ? code.config : code.tryAgain,
      `pool "${pool.name}": ${error.message}`,
      error.failure === "refused"
        ? 'see "store" in "ipam"'
        : "addresses of blocks that this node owns are still given out",
    );
    told.cause = error;
    throw told;
  } finally {
    lock.close();
  }
}

function isPaused({ failed }: BlockState): boolean {
  return failed !== 0 && Math.abs(Date.now() - failed) < PAUSE_MS;
}

/** Changes the blocks' file under the lease folder's lock, and returns what it says then. */
async function change(pool: Pool, options: OwnerOptions, work: (state: BlockState) => BlockState): Promise<BlockState> {
  const { warn, indexFolder, limitMs } = options;
  const state = await withStore(pool.folder, { warn, indexFolder, limitMs, create: true }, () => {
    const before = readBlocks(blocksFile(pool));
    const after = work(before);
    if (after !== before) writeBlocks(blocksFile(pool), after);
    return after;
  });
  if (state === undefined) throw new TypeError("the lease folder was not made");
  return state;
}

/** The state, when its blocks are confirmed already. */
async function look(pool: Pool, options: OwnerOptions): Promise<BlockState | undefined> {
  const state = await change(pool, options, (now) => now);
  return state.bootId === pool.identity.bootId ? state : undefined;
}

async function hasFree(
  pool: Pool,
  { set, wanted }: Extract<Need, { kind: "block" }>,
  options: OwnerOptions,
): Promise<boolean> {
  const { warn, indexFolder } = options;
  return await withStore(pool.folder, { warn, indexFolder, create: true }, (leases) => {
    const state = readBlocks(blocksFile(pool));
    if (wanted) return state.blocks.some(({ block, phase }) => phase === "own" && prefixContains(block, wanted));
    return freeAddress(pool, set, { state, taken: leases.names(), settle: false }) !== undefined;
  }) ?? false;
}

/** Takes a block that nobody has: a random one, then, once somebody was quicker, one that the list shows as free. */
async function takeBlock(pool: Pool, need: Extract<Need, { kind: "block" }>, options: OwnerOptions): Promise<void> {
  const { set } = need;
  const wanted = need.wanted && blockOf(need.wanted, set.blockSize);
  let state = await change(pool, options, (now) => now);
  // Asked for earlier, and nobody knows what came of it: that is settled first.
  if (state.blocks.some(({ phase }) => phase === "taking")) {
    await confirm(pool, options);
    if (await hasFree(pool, need, options)) return;
  }
  let others: readonly StoreRecord[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const block = wanted ?? pick(set, [...state.blocks.map((one) => one.block), ...others.flatMap(blockOfRecord)]);
    if (block === undefined) throw full(pool, set, holders(others));
    if (await claim(pool, block, options)) return;
    others = (await confirm(pool, options)).records;
    if (await hasFree(pool, need, options)) return;
    if (wanted) throw heldBy(pool, need.wanted!, others);
    state = await change(pool, options, (now) => now);
    await new Promise((resolve) => setTimeout(resolve, Math.random() * 20 * (round + 1)));
  }
  throw new CniError(
    code.tryAgain,
    `pool "${pool.name}": other nodes were quicker in ${ROUNDS} rounds`,
    "the pool is nearly full, or very many nodes take blocks at once",
  );
}

const blockOfRecord = ({ key }: StoreRecord): Prefix[] => {
  const block = blockOfKey(key);
  return block === undefined ? [] : [block];
};

/** A usable block that overlaps none of these, from a random position on; undefined when there is none. */
function pick(set: PoolSet, taken: readonly Prefix[]): Prefix | undefined {
  const names = new Set(taken.map(formatPrefix));
  const odd = taken.filter(({ length }) => length !== set.blockSize);
  const count = blockCount(set);
  const start = randomBelow(count);
  // More than this is only walked through where nearly everything is taken.
  for (let step = 0n; step < count && step < 1_000_000n; step++) {
    const block = blockAt(set, (start + step) % count);
    if (names.has(formatPrefix(block)) || odd.some((one) => prefixesOverlap(one, block))) continue;
    if (isUsable(block, set)) return block;
  }
  return undefined;
}

function randomBelow(count: bigint): bigint {
  const [high = 0, low = 0] = crypto.getRandomValues(new Uint32Array(2));
  return ((BigInt(high) << 32n) | BigInt(low)) % count;
}

/** Makes the record of a block. What is about to happen is written down before, so that a killed call loses nothing. */
async function claim(pool: Pool, block: Prefix, options: OwnerOptions): Promise<boolean> {
  const { identity, folder } = pool;
  const owner: Owner = { ...identity, folder, taken: new Date().toISOString(), nonce: crypto.randomUUID() };
  const value = JSON.stringify(owner);
  await change(pool, options, (now) => withBlock(now, block, { phase: "taking", revision: "", value }));
  let made: StoreRecord | undefined;
  try {
    made = await pool.store().createIfAbsent(blockKey(pool.name, block), value);
  } catch (error) {
    // Surely not made: the note of it would only cost a question.
    if (error instanceof StoreError && error.failure !== "unknown") {
      await change(pool, options, (now) => withBlock(now, block, undefined));
    }
    throw error;
  }
  await change(pool, options, (now) => {
    if (made === undefined) return withBlock(now, block, undefined);
    const { revision } = made;
    // The store has forgotten what it said before: everything is confirmed once more.
    const bootId = revisionNumber(revision) < revisionNumber(now.revision) ? "" : now.bootId;
    return { ...withBlock(now, block, { phase: "own", revision, value }), bootId, revision };
  });
  return made !== undefined;
}

/** What the store says of a pool. */
export interface Confirmed {
  readonly records: readonly StoreRecord[];
  /** Blocks of this node that another one's record stands for now. */
  readonly lost: readonly OwnBlock[];
}

/**
 * Holds this node's blocks against the store's records, both ways: what is recorded as ours is ours, what is not
 * recorded is recorded again, and where another node's record stands, the block is lost to us. Also holds the pool
 * against other pools and other nodes' settings.
 */
async function confirm(pool: Pool, options: OwnerOptions): Promise<Confirmed> {
  const store = pool.store();
  const { records, revision } = await store.list(`${pool.name}/`);
  refuseOtherMachine(pool, records);
  refuseOtherSizes(pool, records);
  await declare(pool, store);
  const byBlock = new Map(
    records.flatMap((record) => blockOfRecord(record).map((block) => [formatPrefix(block), record])),
  );
  const state = await change(pool, options, (now) => adopted(pool, now, records));
  for (const one of state.blocks) {
    const record = byBlock.get(formatPrefix(one.block));
    const next = await settled(pool, one, record);
    if (next === one) continue;
    const { block, ...rest } = next ?? { block: one.block };
    await change(
      pool,
      options,
      (now) => withBlock(now, block, next === undefined ? undefined : rest as Omit<OwnBlock, "block">),
    );
    if (next?.phase === "lost" && one.phase !== "lost") {
      options.warn(
        `block ${
          formatPrefix(block)
        } of pool "${pool.name}" belongs to node ${next.holder}: none of its addresses are given out here any more`,
      );
    }
  }
  const after = await change(pool, options, (now) => ({ ...now, bootId: pool.identity.bootId, revision }));
  return { records, lost: after.blocks.filter(({ phase }) => phase === "lost") };
}

/** Records that name this very node and that it does not know of: a call was killed between the store and the disk. */
function adopted(pool: Pool, state: BlockState, records: readonly StoreRecord[]): BlockState {
  const known = new Set(state.blocks.map(({ block }) => formatPrefix(block)));
  let next = state;
  for (const record of records) {
    const [block] = blockOfRecord(record);
    if (block === undefined || known.has(formatPrefix(block)) || !isOurs(pool, record.value)) continue;
    next = withBlock(next, block, { phase: "own", revision: record.revision, value: record.value });
  }
  return next;
}

/**
 * What becomes of one block of ours, given the record that stands for it; undefined: it is not ours, and need not be
 * remembered.
 */
async function settled(pool: Pool, one: OwnBlock, record: StoreRecord | undefined): Promise<OwnBlock | undefined> {
  const key = blockKey(pool.name, one.block);
  if (record === undefined) {
    if (one.phase === "taking" || one.phase === "returning") return undefined;
    const made = await pool.store().createIfAbsent(key, one.value);
    return made ? { ...one, phase: "own", revision: made.revision } : { ...one, phase: "lost", holder: "another node" };
  }
  if (!isOurs(pool, record.value)) {
    if (one.phase === "taking" || one.phase === "returning") return undefined;
    return { ...one, phase: "lost", holder: readOwner(record.value)?.node ?? "unknown (the record is not readable)" };
  }
  if (one.phase === "returning") {
    return await pool.store().removeIfRevision(key, record.revision) ? undefined : one;
  }
  if (one.phase === "own" && one.revision === record.revision) return one;
  return { block: one.block, phase: "own", revision: record.revision, value: record.value };
}

/** Is it this node's, and for these leases? */
function isOurs({ identity, folder }: Pool, value: string): boolean {
  const owner = readOwner(value);
  return owner?.node === identity.node && owner.folder === folder &&
    (owner.machineId === "" || owner.machineId === identity.machineId);
}

function refuseOtherMachine({ identity, name }: Pool, records: readonly StoreRecord[]): void {
  for (const { key, value } of records) {
    const owner = readOwner(value);
    if (owner?.node !== identity.node || owner.machineId === "" || owner.machineId === identity.machineId) continue;
    throw badConfig(
      `pool "${name}": another machine has the node name "${identity.node}" too`,
      `${key} was taken by machine ${owner.machineId}, this is ${identity.machineId}: give each node a name of its own ("node" in "ipam"); ` +
        `if that machine is gone for good, \`cnibox cluster forget ${identity.node}\` frees its blocks`,
    );
  }
}

function refuseOtherSizes(pool: Pool, records: readonly StoreRecord[]): void {
  for (const record of records) {
    const [block] = blockOfRecord(record);
    const set = block && pool.sets.find((one) => familyOf(one) === block.address.family);
    if (!block || !set || block.length === set.blockSize) continue;
    throw badConfig(
      `pool "${pool.name}": "blockSize" is ${set.blockSize} here, and the pool has blocks of /${block.length}`,
      'all nodes of a pool have to use one size; write the same "ranges" and "blockSize" everywhere',
    );
  }
}

/** Says what this pool is, and refuses one that overlaps with another, or that is somewhere else on other nodes. */
async function declare(pool: Pool, store: ClusterStore): Promise<void> {
  const { records } = await store.list(`${POOLS}/`);
  const mine = pool.sets.flatMap(({ ranges }) => ranges.map(({ subnet }) => subnet));
  for (const { key, value } of records) {
    const other = key.slice(POOLS.length + 1);
    if (other === pool.name || pool.mayOverlap) continue;
    const theirs = readSubnets(value);
    const clash = mine.find((one) => theirs.some((two) => prefixesOverlap(one, two)));
    if (clash === undefined) continue;
    throw badConfig(
      `pool "${pool.name}" overlaps with pool "${other}": ${formatPrefix(clash)}`,
      'both would give out the same addresses; use one "pool" for both networks, or, for networks that never meet, "allowOverlap": true',
    );
  }
  const known = records.find(({ key }) => key === `${POOLS}/${pool.name}`);
  const subnets = known === undefined ? [] : readSubnets(known.value);
  if (subnets.length > 0 && !mine.some((one) => subnets.some((two) => prefixesOverlap(one, two)))) {
    throw badConfig(
      `pool "${pool.name}" is ${mine.map(formatPrefix).join(", ")} here, and ${
        subnets.map(formatPrefix).join(", ")
      } in ${store.name}`,
      'another cluster\'s store, or its "prefix"? For other addresses give the pool another name',
    );
  }
  // It grows with what one node has more than the others, and never shrinks: blocks out there may be in use.
  const more = mine.filter((one) => !subnets.some((two) => two.length <= one.length && prefixesOverlap(one, two)));
  if (known !== undefined && more.length === 0) return;
  const value = JSON.stringify({
    subnets: [...subnets, ...more].map(formatPrefix),
    blockSize: pool.sets.map(({ blockSize }) => blockSize),
  });
  if (known === undefined) await store.createIfAbsent(`${POOLS}/${pool.name}`, value);
  else await store.replaceIfRevision(known.key, value, known.revision);
}

function readSubnets(value: string): Prefix[] {
  try {
    const { subnets } = JSON.parse(value);
    return subnets.flatMap((text: string) => parsePrefix(text) ?? []);
  } catch {
    return [];
  }
}

function full(pool: Pool, { ranges }: PoolSet, details: string): CniError {
  return new CniError(100, `pool "${pool.name}" is full: no address of ${describe(ranges)} is free`, details);
}

/** How many blocks there are, and who has most of them. */
function holders(records: readonly StoreRecord[]): string {
  const counts = new Map<string, number>();
  for (const { value } of records) {
    const node = readOwner(value)?.node ?? "unknown";
    counts.set(node, (counts.get(node) ?? 0) + 1);
  }
  const top = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 3).map(([node, count]) => `${node} has ${count}`);
  return `${records.length} blocks are taken: ${top.join(", ")}; \`cnibox cluster blocks\` lists them`;
}

function heldBy(pool: Pool, address: Address, records: readonly StoreRecord[]): CniError {
  const record = records.find((one) => blockOfRecord(one).some((block) => prefixContains(block, address)));
  const owner = record && readOwner(record.value);
  const where = owner?.node === pool.identity.node ? ` for another network, in ${owner.folder}` : "";
  return internal(
    `requested IP address ${formatAddress(address)} is not available in pool "${pool.name}"`,
    `its block is held by node ${owner?.node ?? "unknown"}${where}`,
  );
}

/**
 * Releases everything that the holder has, and returns spare blocks. The store need not answer. Returns the addresses.
 */
export async function releaseAddresses(pool: Pool, holder: Holder, options: OwnerOptions): Promise<string[]> {
  const { perform: make = perform } = options;
  const ips = await withStore(pool.folder, options, (leases) => {
    const { own } = leases.holding(holder);
    for (const ip of own) leases.release(ip, holder);
    make(undefined, () => noteFreed(pool, own, leases));
    return [...own];
  }) ?? [];
  if (ips.length > 0) await make(undefined, () => returnSpare(pool, options, { keep: 1 }));
  return ips;
}

/** Under the lock: when addresses were released, and which blocks are spare now. */
function noteFreed(pool: Pool, ips: readonly string[], leases: Store): void {
  if (ips.length === 0) return;
  const state = readBlocks(blocksFile(pool));
  if (state.blocks.length === 0) return;
  const now = Date.now();
  const freed = { ...state.freed };
  for (const ip of ips) freed[ip] = now;
  const spare = spareBlocks(pool, { ...state, freed }, leases, 1).map(({ block }) => formatPrefix(block));
  const blocks = state.blocks.map((one) =>
    spare.includes(formatPrefix(one.block)) ? { ...one, phase: "returning" as const } : one
  );
  writeBlocks(blocksFile(pool), { ...state, freed, blocks });
}

/** Own blocks of which no address is given out, beyond the first `keep` of each range set. */
function spareBlocks(pool: Pool, state: BlockState, leases: Store, keep: number): OwnBlock[] {
  const used = [...leases.names()].flatMap((name) => parseAddress(name) ?? []);
  const resting = restingByBlock(pool, state);
  // Asked of the leases, not of a block's addresses: a block may have more of them than can be gone through.
  return pool.sets.flatMap((set) => {
    const inUse = new Set(used.map((address) => formatPrefix(blockOf(address, set.blockSize))));
    const spare = state.blocks.filter(({ block, phase }) =>
      phase === "own" && isBlockOf(block, set) && !inUse.has(formatPrefix(block))
    );
    // Kept is what serves for longest: a block of addresses that all rest would send the next ADD to the store.
    return spare.toSorted((a, b) => resting(a.block) - resting(b.block)).slice(keep);
  });
}

/** How many addresses of a block have not rested for long enough. */
function restingByBlock(pool: Pool, { blocks, freed }: BlockState): (block: Prefix) => number {
  const since = Date.now() - pool.quarantineMs;
  const resting = Object.entries(freed).flatMap(([ip, at]) => at > since ? parseAddress(ip) ?? [] : []);
  const counts = new Map(
    blocks.map(({ block }) => [block, resting.filter((address) => prefixContains(block, address)).length]),
  );
  return (block) => counts.get(block) ?? 0;
}

/**
 * Returns the blocks that are marked for it, and spare ones beyond `keep`. A store that does not answer keeps nobody:
 * later.
 */
export async function returnSpare(
  pool: Pool,
  options: OwnerOptions,
  { keep, always = false }: { keep: number; always?: boolean },
): Promise<readonly Prefix[]> {
  const state = await withStore(pool.folder, options, (leases) => {
    let now = readBlocks(blocksFile(pool));
    const spare = spareBlocks(pool, now, leases, keep);
    for (const { block, ...rest } of spare) now = withBlock(now, block, { ...rest, phase: "returning" });
    if (spare.length > 0) writeBlocks(blocksFile(pool), now);
    return now;
  });
  const going = state?.blocks.filter(({ phase }) => phase === "returning") ?? [];
  if (state === undefined || going.length === 0 || (!always && isPaused(state))) return [];
  const gone: Prefix[] = [];
  try {
    await asking(pool, options, async () => {
      for (const { block, revision } of going) {
        // Not removed: it has another revision, or is gone. Either way the next confirmation tells whose it is.
        await pool.store().removeIfRevision(blockKey(pool.name, block), revision);
        await change(pool, options, (now) => forgotten(now, block));
        gone.push(block);
      }
    });
  } catch (error) {
    if (always) throw error;
    options.warn(`blocks are returned later: ${(error as Error).message}`);
  }
  return gone;
}

function forgotten(state: BlockState, block: Prefix): BlockState {
  const isIn = (ip: string) => {
    const address = parseAddress(ip);
    return address !== undefined && prefixContains(block, address);
  };
  const freed = Object.fromEntries(Object.entries(state.freed).filter(([ip]) => !isIn(ip)));
  return { ...withBlock(state, block, undefined), freed };
}

/** Confirms this node's blocks now; see {@linkcode Confirmed}. */
export async function confirmBlocks(pool: Pool, options: OwnerOptions): Promise<Confirmed> {
  return await asking(pool, options, () => confirm(pool, options));
}
