/**
 * Ranges and range sets: what is configured becomes addresses that can be given out.
 *
 * A range set is a list of ranges that are alternatives of each other; one address is allocated per set.
 *
 * @module
 */
import { CniError, code } from "../cni/error.ts";
import {
  type Address,
  familyBits,
  formatAddress,
  formatPrefix,
  hasHostBits,
  lastAddress,
  networkAddress,
  parseAddress,
  parsePrefix,
  type Prefix,
  prefixContains,
} from "../net/cidr.ts";

/** A range as configured. The texts are well-formed addresses, `subnet` in CIDR form; undefined is "not given". */
export interface RangeConf {
  readonly subnet?: string | undefined;
  readonly rangeStart?: string | undefined;
  readonly rangeEnd?: string | undefined;
  readonly gateway?: string | undefined;
}

/** A checked range: every address from `start` to `end` may be given out, except the gateways of its set. */
export interface Range {
  readonly subnet: Prefix;
  readonly start: Address;
  readonly end: Address;
  readonly gateway: Address;
}

/** Ranges that are alternatives of each other, all of one family, none overlapping another. Never empty. */
export type RangeSet = readonly [Range, ...Range[]];

/** An address of a set, and the range that it belongs to: the prefix length and gateway of a result come from there. */
export interface Candidate {
  readonly address: Address;
  readonly range: Range;
}

/**
 * Checks all range sets of a configuration in the reference's order and with its texts; the index in the errors is the
 * position in `sets`.
 *
 * @param version `cniVersion` of the configuration: before 0.3.0 a result holds one address per family
 * @param warn is told what works but cannot be meant
 */
export function rangeSets(
  sets: readonly (readonly RangeConf[])[],
  { version, atLeast030, warn }: { version: string; atLeast030: boolean; warn: (note: string) => void },
): RangeSet[] {
  if (sets.length === 0) throw badConfig("no IP ranges specified", 'write "ipam": {"ranges": [[{"subnet": "…"}]]}');
  const checked = sets.map((set, index) => rangeSet(set, { index, warn }));
  for (const family of [4, 6]) {
    const count = checked.filter(([first]) => first.start.family === family).length;
    if (count > 1 && !atLeast030) {
      throw badConfig(
        `CNI version ${version} does not support more than 1 address per family`,
        `${count} of the range sets are IPv${family}: write "cniVersion": "0.3.0" or later, or put the ranges into one set`,
      );
    }
  }
  checked.forEach((set, i) => {
    const j = checked.findIndex((other, j) => j > i && set.some((a) => other.some((b) => overlap(a, b))));
    if (j > i) {
      throw badConfig(
        `range set ${i} overlaps with ${j}`,
        `set ${i} is ${describe(set)}, set ${j} is ${describe(checked[j]!)}`,
      );
    }
  });
  return checked;
}

function rangeSet(
  set: readonly RangeConf[],
  { index, warn }: { index: number; warn: (note: string) => void },
): RangeSet {
  const during = `invalid range set ${index}`;
  const [first, ...others] = set.map((conf) => range(conf, { during, warn }));
  if (first === undefined) {
    throw badConfig(`${during}: empty range set`, 'a range set needs at least one {"subnet": "…"}');
  }
  const ranges: RangeSet = [first, ...others];
  const stranger = others.find((one) => one.start.family !== first.start.family);
  if (stranger !== undefined) {
    throw badConfig(
      `${during}: mixed address families`,
      `${formatPrefix(first.subnet)} and ${formatPrefix(stranger.subnet)} are in one set: write a set for each family`,
    );
  }
  ranges.forEach((a, i) => {
    const b = ranges.slice(i + 1).find((other) => overlap(a, other));
    if (b) {
      throw badConfig(`${during}: subnets ${span(a)} and ${span(b)} overlap`, "an address may be in one range only");
    }
  });
  return ranges;
}

function range(conf: RangeConf, { during, warn }: { during: string; warn: (note: string) => void }): Range {
  const subnet = checkedSubnet(conf.subnet, during);
  const network = networkAddress(subnet), last = lastAddress(subnet);
  const family = network.family;
  const shown = formatPrefix(subnet);
  const bounds = `the addresses of ${shown} are ${formatAddress(network)} to ${formatAddress(last)}`;

  const gateway = given(conf.gateway) ?? { family, value: network.value + 1n };
  if (gateway.family !== family) {
    throw badConfig(
      `${during}: gateway ${conf.gateway} is not in the address family of ${shown}`,
      `write an IPv${family} address`,
    );
  }
  if (!prefixContains(subnet, gateway)) warn(`gateway ${conf.gateway} is outside its subnet ${shown}`);

  // IPv4 keeps the broadcast address back unless the configuration names it; IPv6 has none.
  const defaultEnd = { family, value: family === 4 ? last.value - 1n : last.value };
  const wantedEnd = given(conf.rangeEnd);
  const start = given(conf.rangeStart) ?? { family, value: network.value + 1n };
  const end = wantedEnd ?? defaultEnd;
  if (!prefixContains(subnet, start) || (conf.rangeStart !== undefined && start.value > end.value)) {
    const behind = prefixContains(subnet, start) ? `rangeStart lies behind rangeEnd ${formatAddress(end)}; ` : "";
    throw badConfig(`${during}: RangeStart ${formatAddress(start)} not in network ${shown}`, behind + bounds);
  }
  if (!prefixContains(subnet, end) || end.value < start.value) {
    const before = prefixContains(subnet, end) ? `rangeEnd lies before rangeStart ${formatAddress(start)}; ` : "";
    throw badConfig(`${during}: RangeEnd ${formatAddress(end)} not in network ${shown}`, before + bounds);
  }
  return { subnet, start, end, gateway };
}

function checkedSubnet(text: string | undefined, during: string): Prefix {
  if (text === undefined) {
    throw badConfig(`${during}: IP <nil> not v4 nor v6`, 'a range needs a "subnet" such as "10.1.2.0/24"');
  }
  const subnet = parsePrefix(text);
  if (subnet === undefined) throw badConfig(`invalid CIDR address: ${text}`, 'write "subnet" as ADDRESS/LENGTH');
  const bits = familyBits(subnet.address.family);
  if (subnet.length > bits - 2) {
    throw badConfig(
      `${during}: Network ${formatPrefix(subnet)} too small to allocate from`,
      `a subnet needs at least 4 addresses: /${bits - 2} or shorter`,
    );
  }
  if (subnet.address.family === 4 && text.includes(":")) {
    throw badConfig(
      `${during}: IPNet IP and Mask version mismatch`,
      `"subnet" is ${text}: write ${formatPrefix(subnet)}`,
    );
  }
  if (hasHostBits(subnet)) {
    const network = formatAddress(networkAddress(subnet));
    throw badConfig(
      `${during}: Network has host bits set. For a subnet mask of length ${subnet.length} the network address is ${network}`,
      `"subnet" is ${text}: write ${network}/${subnet.length}`,
    );
  }
  return subnet;
}

function given(text: string | undefined): Address | undefined {
  if (text === undefined) return undefined;
  const address = parseAddress(text);
  if (address === undefined) throw badConfig(`invalid IP address: ${text}`, "write a plain IPv4 or IPv6 address");
  return address;
}

function overlap(a: Range, b: Range): boolean {
  return a.start.family === b.start.family && a.start.value <= b.end.value && b.start.value <= a.end.value;
}

function span({ start, end }: Range): string {
  return `${formatAddress(start)}-${formatAddress(end)}`;
}

/** A set as the reference's errors show it: `start-end` of every range, joined by commas. */
export function describe(set: RangeSet): string {
  return set.map(span).join(",");
}

/** The range of the set that the address lies in; undefined when it lies in none. */
export function rangeOf(set: RangeSet, { family, value }: Address): Range | undefined {
  return set.find(({ start, end }) => start.family === family && start.value <= value && value <= end.value);
}

/** Whether the address is a gateway of this set, so that it must not be given out. */
export function isGateway(set: RangeSet, { value }: Address): boolean {
  return set.some(({ gateway }) => gateway.value === value);
}

/** How many addresses the set can give out. */
export function size(set: RangeSet): bigint {
  let count = 0n;
  for (const { start, end } of set) count += end.value - start.value + 1n;
  const gateways = new Map(set.map(({ gateway }) => [gateway.value, gateway]));
  for (const gateway of gateways.values()) if (rangeOf(set, gateway)) count--;
  return count;
}

/**
 * Every address of the set once, gateways left out, in the order of the round robin: from the one after `cursor` (from the
 * first one when there is none, or it is outside), through the ranges and round again, the cursor's own address last.
 */
export function* candidates(set: RangeSet, cursor?: Address): Generator<Candidate> {
  const from = cursor === undefined ? undefined : rangeOf(set, cursor);
  if (from === undefined || cursor === undefined) {
    for (const range of set) yield* walk(range, range.start.value, { to: range.end.value, set });
    return;
  }
  const at = set.indexOf(from);
  yield* walk(from, cursor.value + 1n, { to: from.end.value, set });
  for (const range of [...set.slice(at + 1), ...set.slice(0, at)]) {
    yield* walk(range, range.start.value, { to: range.end.value, set });
  }
  yield* walk(from, from.start.value, { to: cursor.value, set });
}

function* walk(range: Range, value: bigint, { to, set }: { to: bigint; set: RangeSet }): Generator<Candidate> {
  const { family } = range.start;
  for (; value <= to; value++) {
    const address = { family, value };
    if (!isGateway(set, address)) yield { address, range };
  }
}

function badConfig(msg: string, details: string): CniError {
  return new CniError(code.config, msg, details);
}
