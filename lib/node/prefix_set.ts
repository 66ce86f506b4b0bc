/** A set of prefixes that tells quickly whether another one overlaps with one of them. */
import { type Family, familyBits, type Prefix, prefixesOverlap } from "../net/cidr.ts";

/** Prefixes by family and length; those of one length cannot overlap but by being equal. */
export class PrefixSet {
  readonly #byLength = new Map<string, { family: Family; length: number; all: Map<bigint, Prefix> }>();

  constructor(prefixes: Iterable<Prefix> = []) {
    for (const one of prefixes) this.add(one);
  }

  add(prefix: Prefix): void {
    const { address: { family }, length } = prefix;
    const key = `${family}/${length}`;
    const group = this.#byLength.get(key) ?? { family, length, all: new Map() };
    this.#byLength.set(key, group);
    group.all.set(front(prefix, length), prefix);
  }

  /** One that has an address in common with this prefix; undefined when none has. */
  overlapping(prefix: Prefix): Prefix | undefined {
    for (const { family, length, all } of this.#byLength.values()) {
      if (family !== prefix.address.family) continue;
      const found = length <= prefix.length
        ? all.get(front(prefix, length))
        // Smaller ones are looked through; there are few lengths, and rarely a longer one.
        : [...all.values()].find((one) => prefixesOverlap(one, prefix));
      if (found) return found;
    }
    return undefined;
  }
}

/** The first `length` bits. */
function front({ address: { family, value } }: Prefix, length: number): bigint {
  return value >> BigInt(familyBits(family) - length);
}
