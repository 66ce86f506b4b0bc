/**
 * Blocks: the parts of a cluster's pool that nodes own. A block is an aligned prefix; what of it can be given out
 * depends on the ranges that it overlaps.
 *
 * @module
 */
import {
  type Address,
  type Family,
  familyBits,
  formatAddress,
  lastAddress,
  networkPrefix,
  parsePrefix,
  type Prefix,
} from "../net/cidr.ts";
import { type Candidate, candidates, type Range, type RangeSet, size } from "./range.ts";

/** Ranges of a pool. */
export interface PoolSet {
  readonly ranges: RangeSet;
  /** Prefix length of its blocks. */
  readonly blockSize: number;
}

/** Most blocks that a pool is cut into unless the configuration says how large they are. */
const MOST_BLOCKS = 4096n;

/** The longest prefix length that cuts the ranges of a set into 4,096 blocks at most. */
export function defaultBlockSize(ranges: RangeSet): number {
  let addresses = 0n;
  for (const { start, end } of ranges) addresses += end.value - start.value + 1n;
  let size = familyBits(ranges[0].start.family);
  // A range that begins or ends inside a block has one more than its size says.
  for (let each = 1n; (addresses + each - 1n) / each > MOST_BLOCKS; each *= 2n) size--;
  return Math.max(size, 1);
}

/** The block that an address lies in. */
export function blockOf(address: Address, length: number): Prefix {
  return networkPrefix({ address, length });
}

/** How many blocks the ranges of a set lie in. */
export function blockCount({ ranges, blockSize }: PoolSet): bigint {
  return ranges.reduce((sum, range) => sum + blocksIn(range, blockSize), 0n);
}

function blocksIn({ start, end }: Range, length: number): bigint {
  const shift = BigInt(familyBits(start.family) - length);
  return (end.value >> shift) - (start.value >> shift) + 1n;
}

/** The block at a position from 0 to the count of blocks, in ascending order through the ranges. */
export function blockAt({ ranges, blockSize }: PoolSet, position: bigint): Prefix {
  for (const range of ranges) {
    const count = blocksIn(range, blockSize);
    if (position >= count) {
      position -= count;
      continue;
    }
    const { family } = range.start;
    const shift = BigInt(familyBits(family) - blockSize);
    return { address: { family, value: ((range.start.value >> shift) + position) << shift }, length: blockSize };
  }
  throw new RangeError("no block has this position");
}

/** The set within a block: where a range has nothing there it stays, empty, since its gateway is the whole set's. */
function within(block: Prefix, { ranges }: PoolSet): RangeSet {
  const { family, value: first } = block.address;
  const last = lastAddress(block).value;
  return ranges.map((range) => {
    const start = range.start.value > first ? range.start.value : first;
    const end = range.end.value < last ? range.end.value : last;
    return { ...range, start: { family, value: start }, end: { family, value: end < start ? start - 1n : end } };
  }) as [Range, ...Range[]];
}

/** Every address of a block that the set gives out, ascending; at most `limit` of them. */
export function* addressesOf(block: Prefix, set: PoolSet, limit = 1_000_000): Generator<Candidate> {
  for (const candidate of candidates(within(block, set))) {
    if (limit-- <= 0) return;
    yield candidate;
  }
}

/** How many addresses of a block the set gives out. */
export function addressCount(block: Prefix, set: PoolSet): bigint {
  return size(within(block, set));
}

/** Whether the set can give out any address of a block. */
export function isUsable(block: Prefix, set: PoolSet): boolean {
  return !addressesOf(block, set, 1).next().done;
}

/** Whether a block is one of the set's: of its size, and overlapping one of its ranges. */
export function isBlockOf(block: Prefix, { ranges, blockSize }: PoolSet): boolean {
  const last = lastAddress(block).value;
  return block.length === blockSize &&
    ranges.some(({ start, end }) =>
      start.family === block.address.family && start.value <= last && end.value >= block.address.value
    );
}

/** A record's key: `POOL/10.42.0.16-28`. The dash is what flannel writes too, since a slash would part the key. */
export function blockKey(pool: string, block: Prefix): string {
  return `${pool}/${formatAddress(block.address)}-${block.length}`;
}

/** The block that a key names; undefined when it is no block's key. */
export function blockOfKey(key: string): Prefix | undefined {
  const [, text] = /\/([0-9a-f.:]+-\d+)$/.exec(key) ?? [];
  return text === undefined ? undefined : parsePrefix(text.replace("-", "/"));
}

/** What a record says about its block's owner. */
export interface Owner {
  /** Name of the node. */
  readonly node: string;
  /** `/etc/machine-id`: tells two nodes of one name apart; "" where there is none. */
  readonly machineId: string;
  /** Its lease folder on that node: two networks of one node may share a pool, and have no leases in common. */
  readonly folder: string;
  /** `/proc/sys/kernel/random/boot_id` when the block was taken. */
  readonly bootId: string;
  /** When the block was taken, RFC 3339. */
  readonly taken: string;
  /** Differs for each attempt to take a block: an attempt whose answer was lost finds itself by it. */
  readonly nonce: string;
}

/**
 * Reads a record's value; undefined when it is not readable: such a block belongs to somebody, nobody knows to whom.
 */
export function readOwner(value: string): Owner | undefined {
  try {
    const { node, machineId = "", folder = "", bootId = "", taken = "", nonce = "" } = JSON.parse(value);
    if (typeof node !== "string" || node === "") return undefined;
    const rest = { folder: `${folder}`, bootId: `${bootId}`, taken: `${taken}`, nonce: `${nonce}` };
    return { node, machineId: `${machineId}`, ...rest };
  } catch {
    return undefined;
  }
}

/** Address family of a set. */
export function familyOf({ ranges }: PoolSet): Family {
  return ranges[0].start.family;
}
