/** Rates and bursts of a bandwidth configuration: integers of 64 bits, from the configuration itself or the runtime. */
import { FieldError, fields, type Key, type Keys, NumberText } from "../../lib/cni/decode.ts";
import { internal } from "../../lib/cni/error.ts";
import type { JsonObject } from "../../lib/cni/types.ts";

/** Limit of one direction. */
export interface Limit {
  /** Bits a second. */
  readonly rate: bigint;
  /** Bits that may pass at once. */
  readonly burst: bigint;
}

/** Limits as they are named: ingress is what goes into the container. */
export interface Limits {
  readonly ingress?: Limit;
  readonly egress?: Limit;
}

/** The four keys, as decoded. */
export interface Rates {
  readonly ingressRate: bigint;
  readonly ingressBurst: bigint;
  readonly egressRate: bigint;
  readonly egressBurst: bigint;
}

const MAX = 2n ** 64n - 1n;

/** A number of bits: any integer from 0 to 2^64 − 1; 0 when absent. */
export function bits(about: string): Key<bigint> {
  return {
    absent: 0n,
    about,
    schema: { type: "integer", minimum: 0, maximum: Number(MAX), default: 0 },
    read: (value, path) => {
      const written = value instanceof NumberText ? value.text : typeof value === "number" ? `${value}` : "";
      const number = /^\d+$/.test(written) ? BigInt(written) : undefined;
      if (number !== undefined && number <= MAX) return number;
      const shown = written === "" ? typeof value : `number ${written}`;
      throw new FieldError(
        path,
        `json: cannot unmarshal ${shown} into Go struct field PluginConf.${path} of type uint64`,
        `"${path}": write a whole number of bits from 0 to ${MAX}, without quotes`,
      );
    },
  };
}

/**
 * The limits that count. One of the four keys in the configuration itself, even `0` or `null`, turns the runtime's off.
 * Throws for a rate without burst or a burst without rate, and for bursts that the kernel cannot take.
 */
export function limitsOf(own: Rates, runtime: Rates | undefined, config: JsonObject): Limits {
  const names = ["ingressrate", "ingressburst", "egressrate", "egressburst"];
  const given = Object.keys(config).some((key) => names.includes(key.toLowerCase())) ? own : runtime;
  if (!given) return {};
  const ingress = limitOf("ingress", { rate: given.ingressRate, burst: given.ingressBurst });
  const egress = limitOf("egress", { rate: given.egressRate, burst: given.egressBurst });
  return { ...(ingress && { ingress }), ...(egress && { egress }) };
}

function limitOf(direction: string, limit: Limit): Limit | undefined {
  const { rate, burst } = limit;
  const refuse = (msg: string, details: string) => internal(msg, details);
  if (rate === 0n && burst === 0n) return undefined;
  const both = `${direction}Rate is ${rate}, ${direction}Burst is ${burst}: set both, or neither`;
  if (burst === 0n) throw refuse("if rate is set, burst must also be set", both);
  if (rate === 0n) throw refuse("if burst is set, rate must also be set", both);
  if (burst / 8n >= 2n ** 32n - 1n) {
    throw refuse("burst cannot be more than 4GB", `${direction}Burst is ${burst} bit; the most is 34359738359`);
  }
  return limit;
}

/** Refuses what the kernel would refuse when half of the work is done. */
export function checkKernelLimits({ ingress, egress }: Limits): void {
  for (const [direction, limit] of [["ingress", ingress], ["egress", egress]] as const) {
    if (!limit || (limit.rate >= 8n && limit.burst >= 8n)) continue;
    const text =
      `${direction}Rate is ${limit.rate} bit/s, ${direction}Burst is ${limit.burst} bit: both have to be 8 or more`;
    throw internal("create qdisc: invalid argument", text);
  }
}

/** What works, but hardly as somebody meant it. */
export function doubts({ ingress, egress }: Limits, mtu: number): string[] {
  const notes: string[] = [];
  for (const [direction, limit] of [["ingress", ingress], ["egress", egress]] as const) {
    if (!limit) continue;
    // The Ethernet header counts.
    const packet = BigInt(mtu + 14) * 8n;
    if (limit.burst < packet) {
      notes.push(
        `${direction}Burst ${limit.burst} is smaller than a packet: everything longer than ${
          limit.burst / 8n
        } bytes is dropped; ` +
          `set at least ${packet}`,
      );
    }
  }
  return notes;
}

/** Decoding that never fails, for DEL: are there limits, as far as can be told? */
export function mayHaveLimits<K extends Keys>(keys: K, config: JsonObject): boolean {
  try {
    const { runtimeConfig, ...own } = fields(keys, config) as { runtimeConfig?: { bandwidth?: Rates } } & Rates;
    const { ingress, egress } = limitsOf(own, runtimeConfig?.bandwidth, config);
    return ingress !== undefined || egress !== undefined;
  } catch {
    return true;
  }
}
