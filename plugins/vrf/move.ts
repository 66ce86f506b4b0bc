/** Putting a link into a VRF without losing what it has: the kernel drops its routes and IPv6 addresses on the way. */
import {
  gatewaysOf,
  type KernelRoute,
  leadsBy,
  routeWords,
  type Routing,
  TABLE,
  tableOf,
} from "../../lib/kernel/routing.ts";
import type { Address, Link } from "../../lib/kernel/ip.ts";

/** What has to be said to `ip` for a link in another VRF, in order. */
export interface Move {
  /** Before: addresses that would come back with a new search for duplicates. */
  readonly before: readonly string[];
  /** After: addresses, then routes that need no gateway, then the others. */
  readonly addresses: readonly string[];
  readonly routes: readonly string[];
  /** Routes that name an IPv6 source which is not usable before the search for duplicates is over. */
  readonly late: readonly string[];
  /** Everything as it was, for a link that is in no VRF again. */
  readonly back: readonly string[];
  /** Routes that also lead out by other links, and cannot be moved. */
  readonly left: readonly string[];
}

/** Plans the way of `link` into the VRF with this table, by what its namespace's routing is now. */
export function planMove(link: Link, table: number, { routes }: Routing): Move {
  const kept = (link.addr_info ?? []).filter((one) =>
    one.family === "inet6" && one.scope !== undefined && isGlobal(one.scope) && !isKernels(one)
  );
  const unsure = kept.some((one) => one.tentative);
  const own = routes.filter((route) => isStatic(route) && leadsBy(route, link.ifname));
  const movable = own.filter((route) => (route.nexthops ?? []).every((one) => one.dev === link.ifname))
    .sort((a, b) => gatewaysOf(a).length - gatewaysOf(b).length);
  const words = (route: KernelRoute) => {
    const from = tableOf(route);
    if (from === TABLE.main) return routeWords(route, table);
    // The address is known to the VRF's table only, and a route in another one must not name it.
    const { prefsrc: _, ...plain } = route;
    return routeWords(route.family === 4 ? plain : route, from);
  };
  const isLate = (route: KernelRoute) => unsure && route.family === 6 && route.prefsrc !== undefined;
  const append = (route: KernelRoute) => `route append ${words(route)}`;
  return {
    before: kept.map((one) => `addr del ${cidr(one)} dev ${link.ifname}`),
    addresses: kept.map((one) => `addr add ${addressWords(one)} dev ${link.ifname}`),
    routes: movable.filter((route) => !isLate(route)).map(append),
    late: movable.filter(isLate).map(append),
    back: [
      ...kept.map((one) => `addr replace ${addressWords(one)} dev ${link.ifname}`),
      ...movable.map((route) => `route append ${routeWords(route, tableOf(route))}`),
    ],
    left: own.filter((route) => !movable.includes(route)).map(({ dst }) => dst),
  };
}

/** Not what the kernel makes by itself for an address. */
function isStatic({ type, protocol, table }: KernelRoute): boolean {
  return (type === undefined || type === "1") && protocol !== "2" && tableOf({ table }) !== TABLE.local;
}

/** Scope by name or number: `ip -N` prints 0. */
function isGlobal(scope: string): boolean {
  return scope === "global" || scope === "0";
}

/** Made by the kernel from a router's announcement: it comes back with the next one. */
function isKernels({ mngtmpaddr, temporary }: Address): boolean {
  return mngtmpaddr === true || temporary === true;
}

function cidr({ local, prefixlen }: Address): string {
  return `${local}/${prefixlen}`;
}

/** The address with its flags. One that is known to be unique is not searched for again. */
function addressWords(one: Address): string {
  const words = [one.address === undefined ? cidr(one) : `${one.local} peer ${one.address}/${one.prefixlen}`];
  if (one.nodad || !one.tentative) words.push("nodad");
  if (one.noprefixroute) words.push("noprefixroute");
  if (one.dynamic) words.push(`valid_lft ${one.valid_life_time} preferred_lft ${one.preferred_life_time}`);
  else if (one.deprecated) words.push("preferred_lft 0");
  return words.join(" ");
}
