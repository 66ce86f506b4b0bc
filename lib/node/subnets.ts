/** Which subnets of the network a node takes. Pure, but for the dice. */
import { type Address, familyBits, type Prefix, prefixContains, prefixesOverlap } from "../net/cidr.ts";
import { PrefixSet } from "./prefix_set.ts";
import { type NetworkConf, ofFamily, type SubnetRule } from "./records.ts";

/** What is chosen among. */
export interface Choice {
  readonly taken: readonly Prefix[];
  /** Preferred, where they fit the network and are free. */
  readonly wanted: readonly Prefix[];
  /** Nothing but the wanted ones will do. */
  readonly only: boolean;
}

/** More subnets than any network of nodes has in use. */
const MOST_TRIES = 1_000_000;

/** One subnet of each family; undefined when one cannot be had. `random` gives a number from 0 to 1, 1 excluded. */
export function pickSubnets(
  { rules }: NetworkConf,
  { taken, wanted, only }: Choice,
  random: () => number = Math.random,
): Prefix[] | undefined {
  const picked: Prefix[] = [];
  for (const rule of rules) {
    const other = ofFamily(wanted, rule.network.address.family);
    const isFree = (one: Prefix) => !taken.some((two) => prefixesOverlap(one, two));
    const found = other && fits(other, rule) && isFree(other)
      ? other
      : only
      ? undefined
      : randomSubnet(rule, taken, random);
    if (found === undefined) return undefined;
    picked.push(found);
  }
  return picked;
}

function fits({ address, length }: Prefix, rule: SubnetRule): boolean {
  return length === rule.length && prefixContains(rule.network, address);
}

/**
 * A free subnet: from a random one on, the first that is free, so that a nearly full network is looked through as a
 * whole.
 */
function randomSubnet(
  { min, max, length }: SubnetRule,
  taken: readonly Prefix[],
  random: () => number,
): Prefix | undefined {
  const { family } = min;
  const size = 1n << BigInt(familyBits(family) - length);
  const count = (max.value - min.value) / size + 1n;
  if (count < 1n) return undefined;
  const at = (index: bigint): Address => ({ family, value: min.value + index * size });
  const start = count > BigInt(Number.MAX_SAFE_INTEGER)
    ? BigInt(Math.floor(random() * Number.MAX_SAFE_INTEGER))
    : BigInt(Math.floor(random() * Number(count)));
  const others = new PrefixSet(taken);
  for (let step = 0n, tries = 0; step < count && tries < MOST_TRIES; step++, tries++) {
    const subnet = { address: at((start + step) % count), length };
    const other = others.overlapping(subnet);
    if (other === undefined) return subnet;
    // A larger one is skipped as a whole.
    if (other.length >= length) continue;
    const bits = BigInt(familyBits(family) - other.length);
    const next = ((other.address.value >> bits) + 1n) << bits;
    step += (next - subnet.address.value) / size - 1n;
  }
  return undefined;
}
