/**
 * Ranges and range sets: what is configured becomes addresses that can be given out.
 *
 * A range set is a list of ranges that are alternatives of each other; one address is allocated per set.
 *
 * @module
 */
import { badConfig, type CniError, internal } from "../cni/error.ts";
import {
  type Address,
  compareAddresses,
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
  prefixesOverlap,
} from "../net/cidr.ts";

/** A range as configured. The texts are well-formed addresses, `subnet` in CIDR form; undefined is "not given". */
export interface RangeConf {
  readonly subnet?: string | undefined;
  readonly rangeStart?: string | undefined;
  readonly rangeEnd?: string | undefined;
  readonly gateway?: string | undefined;
  /** What is never given out. */
  readonly excluded?: readonly Prefix[] | undefined;
}

/**
 * A checked range: every address from `start` to `end` may be given out, except the gateways of its set and what is
 * excluded.
 */
export interface Range {
  readonly subnet: Prefix;
  readonly start: Address;
  readonly end: Address;
  readonly gateway: Address;
  readonly excluded?: readonly Prefix[];
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
  { version, atLeast030, excluded = [], warn }: {
    version: string;
    atLeast030: boolean;
    /** Never given out, of whichever range. */
    excluded?: readonly Prefix[] | undefined;
    warn: (note: string) => void;
  },
): RangeSet[] {
  if (sets.length === 0) throw badConfig("no IP ranges specified", 'write "ipam": {"ranges": [[{"subnet": "…"}]]}');
  const checked = sets.map((set, index) => rangeSet(set, { index, excluded, warn }));
  const stray = excluded.find((one) => !checked.flat().some(({ subnet }) => prefixesOverlap(subnet, one)));
  if (stray) throw badConfig(`exclude ${formatPrefix(stray)} is in no range`, "write it as the ranges have it");
  if (!atLeast030) refuseSeveral(checked, version);
  for (const [i, set] of checked.entries()) {
    const j = checked.findIndex((other, j) => j > i && set.some((a) => other.some((b) => overlap(a, b))));
    if (j > i) throw overlapping(checked, [i, j]);
  }
  return checked;
}

function refuseSeveral(sets: readonly RangeSet[], version: string): void {
  for (const family of [4, 6]) {
    const count = sets.filter(([first]) => first.start.family === family).length;
    if (count < 2) continue;
    throw badConfig(
      `CNI version ${version} does not support more than 1 address per family`,
      `${count} of the range sets are IPv${family}: write "cniVersion": "0.3.0" or later, or put the ranges into one set`,
    );
  }
}

function overlapping(sets: readonly RangeSet[], [i, j]: readonly [number, number]): CniError {
  const [a, b] = [sets[i]!, sets[j]!];
  return badConfig(`range set ${i} overlaps with ${j}`, `set ${i} is ${describe(a)}, set ${j} is ${describe(b)}`);
}

function rangeSet(
  set: readonly RangeConf[],
  { index, ...options }: Excluding & { index: number },
): RangeSet {
  const during = `invalid range set ${index}`;
  const [first, ...others] = set.map((conf) => range(conf, { during, ...options }));
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
  for (const [i, a] of ranges.entries()) {
    const b = ranges.slice(i + 1).find((other) => overlap(a, other));
    if (b === undefined) continue;
    throw badConfig(`${during}: subnets ${span(a)} and ${span(b)} overlap`, "an address may be in one range only");
  }
  return ranges;
}

/** What all ranges of a configuration are checked with. */
interface Excluding {
  readonly excluded: readonly Prefix[];
  readonly warn: (note: string) => void;
}

function range(conf: RangeConf, { during, excluded, warn }: Excluding & { during: string }): Range {
  const subnet = checkedSubnet(conf.subnet, during);
  const { family, value } = subnet.address;
  const gateway = given(conf.gateway) ?? { family, value: value + 1n };
  if (gateway.family !== family) throw otherFamily(gateway, { during, subnet });
  if (!prefixContains(subnet, gateway)) warn(`gateway ${conf.gateway} is outside its subnet ${formatPrefix(subnet)}`);

  const start = given(conf.rangeStart) ?? { family, value: value + 1n };
  const end = given(conf.rangeEnd) ?? defaultEnd(subnet);
  if (!prefixContains(subnet, start) || (conf.rangeStart !== undefined && start.value > end.value)) {
    throw outside("RangeStart", start, {
      during,
      subnet,
      order: `rangeStart lies behind rangeEnd ${formatAddress(end)}`,
    });
  }
  if (!prefixContains(subnet, end) || end.value < start.value) {
    throw outside("RangeEnd", end, {
      during,
      subnet,
      order: `rangeEnd lies before rangeStart ${formatAddress(start)}`,
    });
  }
  const checked = { subnet, start, end, gateway };
  const shared = excluded.filter((one) => prefixesOverlap(subnet, one));
  const own = conf.excluded ?? [];
  return own.length + shared.length === 0 ? checked : withExcluded(checked, { own, shared, during });
}

function withExcluded(
  range: Range,
  { own, shared, during }: { own: readonly Prefix[]; shared: readonly Prefix[]; during: string },
): Range {
  const stray = own.find((one) => !prefixesOverlap(range.subnet, one));
  if (stray !== undefined) {
    throw badConfig(
      `${during}: exclude ${formatPrefix(stray)} not in network ${formatPrefix(range.subnet)}`,
      '"exclude" names addresses and prefixes of the range that it stands in',
    );
  }
  const whole = { ...range, excluded: [...own, ...shared] };
  if (size([whole]) > 0n) return whole;
  throw badConfig(
    `${during}: exclude leaves nothing of ${formatPrefix(range.subnet)}`,
    "no address could be given out",
  );
}

/** IPv4 keeps the broadcast address back unless the configuration names it; IPv6 has none. */
function defaultEnd(subnet: Prefix): Address {
  const { family, value } = lastAddress(subnet);
  return { family, value: family === 4 ? value - 1n : value };
}

function otherFamily(gateway: Address, { during, subnet }: { during: string; subnet: Prefix }): CniError {
  return badConfig(
    `${during}: gateway ${formatAddress(gateway)} is not in the address family of ${formatPrefix(subnet)}`,
    `write an IPv${subnet.address.family} address`,
  );
}

/**
 * A bound that is not in its network, or on the wrong side of the other one: the reference has the same words for both.
 */
function outside(
  bound: "RangeStart" | "RangeEnd",
  address: Address,
  { during, subnet, order }: { during: string; subnet: Prefix; order: string },
): CniError {
  const shown = formatPrefix(subnet);
  const bounds = `${formatAddress(subnet.address)} to ${formatAddress(lastAddress(subnet))}`;
  return badConfig(
    `${during}: ${bound} ${formatAddress(address)} not in network ${shown}`,
    prefixContains(subnet, address) ? order : `the addresses of ${shown} are ${bounds}`,
  );
}

/** The network itself, or what is wrong with it. */
function checkedSubnet(text: string | undefined, during: string): Prefix {
  const subnet = text === undefined ? undefined : parsePrefix(text);
  const usable = subnet !== undefined && subnet.length <= familyBits(subnet.address.family) - 2 &&
    !(subnet.address.family === 4 && text?.includes(":")) && !hasHostBits(subnet);
  if (!usable) throw badSubnet(text, during);
  return subnet;
}

function badSubnet(text: string | undefined, during: string): CniError {
  if (text === undefined) {
    return badConfig(`${during}: IP <nil> not v4 nor v6`, 'a range needs a "subnet" such as "10.1.2.0/24"');
  }
  const subnet = parsePrefix(text);
  if (subnet === undefined) return badConfig(`invalid CIDR address: ${text}`, 'write "subnet" as ADDRESS/LENGTH');
  const longest = familyBits(subnet.address.family) - 2;
  if (subnet.length > longest) {
    return badConfig(
      `${during}: Network ${formatPrefix(subnet)} too small to allocate from`,
      `a subnet needs at least 4 addresses: /${longest} or shorter`,
    );
  }
  if (subnet.address.family === 4 && text.includes(":")) {
    return badConfig(
      `${during}: IPNet IP and Mask version mismatch`,
      `"subnet" is ${text}: write ${formatPrefix(subnet)}`,
    );
  }
  const network = formatAddress(networkAddress(subnet));
  return badConfig(
    `${during}: Network has host bits set. For a subnet mask of length ${subnet.length} the network address is ${network}`,
    `"subnet" is ${text}: write ${network}/${subnet.length}`,
  );
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

/** Takes the address that was asked for of this set out of those that are left. */
export function takeRequest(set: RangeSet, left: Address[]): Address | undefined {
  const at = left.findIndex((address) => rangeOf(set, address));
  return at < 0 ? undefined : left.splice(at, 1)[0];
}

/** The error for addresses that were asked for and that no set has, or of which one set has several. */
export function unmet(left: readonly Address[], sets: readonly RangeSet[]): CniError {
  return internal(
    `failed to allocate all requested IPs: ${left.map(formatAddress).join(" ")}`,
    `one address per range set can be requested; the sets are ${sets.map(describe).join(" and ")}`,
  );
}

/** The range of the set that the address lies in; undefined when it lies in none. */
export function rangeOf(set: RangeSet, { family, value }: Address): Range | undefined {
  return set.find(({ start, end }) => start.family === family && start.value <= value && value <= end.value);
}

/** Whether the address is a gateway of this set, so that it must not be given out. */
export function isGateway(set: RangeSet, { value }: Address): boolean {
  return set.some(({ gateway }) => gateway.value === value);
}

/** The prefix of `exclude` that an address lies in; undefined when it may be given out. */
export function excludedBy({ excluded }: Range, address: Address): Prefix | undefined {
  return excluded?.find((one) => prefixContains(one, address));
}

/** How many addresses the set can give out. */
export function size(set: RangeSet): bigint {
  let count = 0n;
  for (const range of set) count += range.end.value - range.start.value + 1n - excludedCount(range);
  const gateways = new Map(set.map(({ gateway }) => [gateway.value, gateway]));
  for (const gateway of gateways.values()) {
    const range = rangeOf(set, gateway);
    if (range && !excludedBy(range, gateway)) count--;
  }
  return count;
}

function excludedCount({ start, end, excluded = [] }: Range): bigint {
  let count = 0n;
  let next = start.value;
  // Prefixes lie in each other or apart: in their order, one that begins before the end of another lies in it.
  for (const one of [...excluded].sort((a, b) => compareAddresses(networkAddress(a), networkAddress(b)))) {
    const first = networkAddress(one).value;
    const last = lastAddress(one).value;
    const from = first < next ? next : first;
    const to = last > end.value ? end.value : last;
    if (to < from) continue;
    count += to - from + 1n;
    next = to + 1n;
  }
  return count;
}

/**
 * Every address of the set once, gateways and what is excluded left out, in the order of the round robin: from the one
 * after `cursor` (from the first one when there is none, or it is outside), through the ranges and round again, the
 * cursor's own address last.
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
    const excluded = excludedBy(range, address);
    // To its end at once: it may hold more addresses than can be counted through.
    if (excluded) value = lastAddress(excluded).value;
    else if (!isGateway(set, address)) yield { address, range };
  }
}
