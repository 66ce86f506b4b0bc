/**
 * Lines of `tc -batch` for rate limits, the arithmetic of token buckets, and what `tc -j` answers. Every function takes
 * values that are already checked.
 */
import { runLines } from "./batch.ts";
import { CommandError, failureText, type Run } from "./run.ts";

/** A token bucket as it is handed to tc. */
export interface TokenBucket {
  /** Bytes a second. */
  readonly rate: bigint;
  /** Size of the bucket in bytes: what may pass at once. */
  readonly burst: bigint;
  /** Bytes that may wait, the bucket included. */
  readonly limit: bigint;
}

/** A token bucket as the reference's CHECK wants to find it: numbers as the kernel reports them. */
export interface ReportedBucket {
  readonly rate: bigint;
  readonly limit: bigint;
  /** The bucket as the time it takes to fill, in ticks of 64 ns, cut to 32 bits. */
  readonly buffer: bigint;
}

const U32 = 0xffff_ffffn;
/** Ticks of 64 ns in a microsecond: what /proc/net/psched has said since Linux 2.6.31. */
const TICKS_PER_US = 15.625;
/** How long a packet waits at most, in microseconds. */
const LATENCY_US = 25_000;

/** What the reference tells the kernel for a rate in bit/s and a burst in bit: its arithmetic, its wrapping. */
export function referenceBucket(rateBits: bigint, burstBits: bigint): ReportedBucket {
  const { rate, burst, fill, latency } = parts(rateBits, burstBits);
  return {
    rate,
    limit: latency + burst & U32,
    buffer: BigInt(Math.trunc(Number(fill & U32) * TICKS_PER_US)) & U32,
  };
}

/**
 * The bucket that tc is told. The kernel reports a bucket that was given in bytes a few ticks larger than the
 * reference, whose CHECK compares exactly: then a burst that is smaller by what passes in a microsecond gives the same
 * number. A queue limit that wrapped around 32 bits in the reference and holds no packet of `mtu` bytes any more is put
 * right.
 */
export function tokenBucket(rateBits: bigint, burstBits: bigint, mtu: number): TokenBucket {
  const { rate, burst, fill, latency } = parts(rateBits, burstBits);
  const wanted = referenceBucket(rateBits, burstBits);
  const least = latency + BigInt(mtu);
  const wrapped = latency + burst > U32;
  const limit = wrapped && wanted.limit < BigInt(mtu) ? (least < U32 ? least : U32) : wanted.limit;
  const ticks = BigInt(Math.trunc(Number(fill) * TICKS_PER_US));
  const same = (bytes: bigint) => (reportedTicks(rate, bytes) & U32) === wanted.buffer;
  if (same(burst)) return { rate, burst, limit };
  const { mult, shift } = ratio(rate);
  const other = ((ticks << 6n << shift) + mult - 1n) / mult;
  return { rate, burst: other > 0n && other <= U32 && same(other) ? other : burst, limit };
}

/**
 * Rate and burst in bytes, the time to fill the bucket in microseconds, and what passes in the time a packet may wait.
 */
function parts(rateBits: bigint, burstBits: bigint) {
  const [rate, burst] = [rateBits / 8n, burstBits / 8n];
  return {
    rate,
    burst,
    fill: BigInt(Math.trunc(Number(burst) * 1_000_000 / Number(rate))),
    latency: BigInt(Math.trunc(Number(rate) * LATENCY_US / 1_000_000)),
  };
}

/** The kernel's stand-in for a division by a rate in bytes a second (psched_ratecfg_precompute). */
function ratio(rate: bigint): { mult: bigint; shift: bigint } {
  let factor = 1_000_000_000n;
  for (let shift = 0n;; shift++) {
    const mult = factor / rate & U32;
    if (mult >> 31n || factor >> 63n) return { mult: mult || 1n, shift };
    factor <<= 1n;
  }
}

/** Ticks that the kernel reports for a bucket given in bytes, before they are cut to 32 bits. */
export function reportedTicks(rate: bigint, bytes: bigint): bigint {
  const { mult, shift } = ratio(rate);
  return BigInt.asUintN(64, bytes * mult) >> shift >> 6n;
}

/** Limits what leaves by a link. */
export function rootTbfAdd(dev: string, { rate, burst, limit }: TokenBucket): string {
  return `qdisc add dev ${dev} root handle 1: tbf rate ${rate}bps burst ${burst}b limit ${limit}b`;
}

export const rootDel = (dev: string): string => `qdisc del dev ${dev} root`;
export const ingressAdd = (dev: string): string => `qdisc add dev ${dev} handle ffff: ingress`;
export const ingressDel = (dev: string): string => `qdisc del dev ${dev} ingress`;

/** Sends everything that comes in by a link out by another one. */
export function redirectAdd(dev: string, to: string): string {
  return `filter add dev ${dev} parent ffff: protocol all prio 1 u32 match u32 0 0 flowid 1:1 ` +
    `action mirred egress redirect dev ${to}`;
}

/** A queueing discipline as `tc -raw -j -d qdisc show` prints it. */
export interface Qdisc {
  readonly kind: string;
  readonly handle: string;
  readonly root?: boolean;
  readonly options?: {
    /** Bytes a second. */
    readonly rate?: number;
    /** Ticks in hex, without prefix. */
    readonly burst_raw?: string;
    readonly limit?: number;
  };
}

/** A filter as `tc -j -d filter show` prints it. */
export interface Filter {
  readonly kind: string;
  readonly options?: {
    readonly flowid?: string;
    readonly actions?: readonly {
      readonly kind: string;
      readonly mirred_action?: string;
      readonly direction?: string;
      /** `*` when that link is gone. */
      readonly to_dev?: string;
    }[];
  };
}

/** What one question to tc answers with; undefined when it failed, for instance since there is no such link. */
export type Shown = readonly unknown[] | undefined;

/**
 * Asks several things in one process, such as `qdisc show dev veth0`. A question that fails fails those after it too.
 */
export async function tcShow(run: Run, questions: readonly string[]): Promise<Shown[]> {
  const tool = ["tc", "-raw", "-d", "-j"];
  const output = await runLines(run, tool, questions);
  if (output.code < 0) throw new CommandError({ argv: tool, input: questions }, output, failureText(output));
  const lines = output.stdout.split("\n").filter((line) => line.startsWith("["));
  return questions.map((_, index) => lines[index] === undefined ? undefined : JSON.parse(lines[index]) as unknown[]);
}
