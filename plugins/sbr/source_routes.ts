/**
 * Which routes and rules an address of its own table needs: the decisions of source based routing, without a kernel.
 */
import type { ContainerCall } from "../../lib/cni/plugin.ts";
import type { Result } from "../../lib/cni/types.ts";
import {
  gatewaysOf,
  isSourceRule,
  type KernelRoute,
  type KernelRule,
  leadsBy,
  type Routing,
  TABLE,
  tableOf,
} from "../../lib/kernel/routing.ts";
import {
  type Address,
  formatAddress,
  parseAddress,
  parsePrefix,
  type Prefix,
  prefixContains,
} from "../../lib/net/cidr.ts";

/** An address to route from. */
export interface Source {
  readonly prefix: Prefix;
  readonly gateway: Address | undefined;
}

/** The addresses of prevResult that are on this interface: an index that leads nowhere counts, as in the reference. */
export function sourcesOf({ ifName }: ContainerCall, { ips = [], interfaces = [] }: Result): Source[] {
  return ips.filter(({ interface: index }) => {
    const owner = index === undefined ? undefined : interfaces[index];
    return owner === undefined || owner.name === ifName;
  }).flatMap(({ address, gateway }) => {
    const prefix = parsePrefix(address);
    return prefix ? [{ prefix, gateway: gateway ? parseAddress(gateway) : undefined }] : [];
  });
}

/** Tables that sbr chooses: the first is 100, and those with a meaning of their own are left out. */
function isOwnTable(table: number): boolean {
  return table >= 100 && (table < TABLE.default || table > TABLE.local);
}

function canonical(address: string): string {
  const parsed = parseAddress(address);
  return parsed ? formatAddress(parsed) : address;
}

/** An address with its table. */
export interface TabledSource extends Source {
  readonly table: number;
}

/** Is this rule one that leads from this address to a table: to that one, or without one to any that sbr chooses? */
export function leadsFrom(rule: KernelRule, address: string, table?: number): boolean {
  if (!isSourceRule(rule) || canonical(rule.src ?? "") !== address) return false;
  return table === undefined ? isOwnTable(tableOf(rule)) : tableOf(rule) === table;
}

/** Each address with its table: the one that a rule leads to already, else the next that nobody uses. */
export function withTables(sources: readonly Source[], { rules, routes }: Routing): TabledSource[] {
  const used = new Set([...rules.map(tableOf), ...routes.map(tableOf)]);
  let next = 100;
  return sources.map((source) => {
    const address = formatAddress(source.prefix.address);
    const rule = rules.find((one) => leadsFrom(one, address));
    if (rule) return { ...source, table: tableOf(rule) };
    while (used.has(next) || !isOwnTable(next)) next++;
    return { ...source, table: next++ };
  });
}

/** A route by this interface alone; what `ip` shows as a broadcast or local one belongs to the kernel. */
export function isMovable(route: KernelRoute, ifName: string): boolean {
  if (route.type !== undefined && route.type !== "1") return false;
  return route.nexthops ? route.nexthops.every((one) => one.dev === ifName) : leadsBy(route, ifName);
}

/**
 * May what is sent from this prefix's address take the route? Gateways in nobody's subnet, such as fe80::1, serve all.
 */
export function isFor(prefix: Prefix, route: KernelRoute, all: readonly Prefix[]): boolean {
  const holds = (one: Prefix, text: string) => {
    const address = parseAddress(text);
    return address !== undefined && prefixContains(one, address);
  };
  const gateways = gatewaysOf(route);
  if (route.prefsrc !== undefined) return holds(prefix, route.prefsrc);
  if (gateways.length === 0) return true;
  return gateways.some((gateway) => holds(prefix, gateway)) ||
    !gateways.some((gateway) => all.some((one) => holds(one, gateway)));
}
