/** CHECK of what an attachment should look like inside the container: link, addresses, routes. */
import { type CniError, internal } from "../cni/error.ts";
import { openNetns } from "../cni/netns.ts";
import type { ContainerCall } from "../cni/plugin.ts";
import { prevResult } from "../cni/prev_result.ts";
import type { Interface, Result, Route } from "../cni/types.ts";
import { addrShow, type Link, type RouteEntry } from "../kernel/ip.ts";
import { apply, step } from "../kernel/plan.ts";
import { isAbsent } from "../kernel/run.ts";
import { canonicalAddress, formatPrefix, networkPrefix, parsePrefix, prefixContains } from "../net/cidr.ts";

/** What a CHECK compares, where plugins differ. */
export interface CheckPlan {
  readonly words: CheckWords;
  /** The IPAM plugin, which is asked too. */
  readonly ipam?: string | undefined;
  /** Further looks, side by side with that at the container. */
  readonly beside?: (previous: Result) => readonly Promise<unknown>[];
  /** The mode that the link has to have, and the words for another one. */
  readonly mode?: { readonly wanted: string; readonly noun: string; readonly advice: string };
  /** Throws what else is wrong. */
  readonly own?: (seen: Seen) => Promise<void> | void;
  /** There is no link to look at. */
  readonly linkless?: boolean;
}

/** What a CHECK has seen of an attachment whose link is there. */
export interface Seen {
  readonly pod: PodState;
  readonly link: Link;
  /** prevResult, and its entry for the container's link. */
  readonly previous: Result;
  readonly container: Interface;
  /** What the looks beside gave. */
  readonly beside: readonly unknown[];
}

/** CHECK of a plugin that gives the container a link. */
export async function checkAttached(call: ContainerCall, plan: CheckPlan): Promise<void> {
  const { words, ipam } = plan;
  openNetns(call, `failed to open netns "${call.netns}"`);
  const { front = "", missingFront = front, lower = false } = words;
  const previous = requiredPrevResult(call, `${missingFront}${lower ? "r" : "R"}equired prevResult missing`);
  const [pod, , ...beside] = await Promise.all([
    plan.linkless ? undefined : podState(call),
    ipam === undefined ? undefined : call.delegate(ipam, "CHECK"),
    ...plan.beside?.(previous) ?? [],
  ]);
  if (pod === undefined) return;
  const container = containerInterface(call, previous, !lower);
  const link = checkKind(container, pod, words);
  checkMac(container, link, words);
  if (plan.mode) checkMode(link, plan.mode);
  await plan.own?.({ pod, link, previous, container, beside });
  checkAddresses(call.ifName, pod, previous);
  checkRoutes(pod, previous);
}

function checkMode(link: Link, { wanted, noun, advice }: NonNullable<CheckPlan["mode"]>): void {
  const mode = link.linkinfo?.info_data?.["mode"];
  if (mode === wanted) return;
  throw internal(`${noun} mode ${mode} does not match expected value: ${wanted}`, advice);
}

/** The plugin's words for what a CHECK finds: `front` before all but the kind's; macvlan has them in lower case. */
export interface CheckWords {
  readonly noun: string;
  /** Kinds that the link may be of; any, if there are none. */
  readonly kinds: readonly string[];
  readonly front?: string;
  readonly lower?: boolean;
  /** In front of the complaint about a missing prevResult, where that is another word. */
  readonly missingFront?: string;
  /** The complaint about a link that is not there, where it is another one. */
  readonly gone?: (name: string) => CniError;
}

/** The container's link is there and of the right kind. */
export function checkKind({ name }: Interface, { link }: PodState, words: CheckWords): Link {
  const { noun, kinds, front = "", lower = false } = words;
  if (!link && words.gone) throw words.gone(name);
  if (!link) {
    throw internal(
      `${front}${lower ? "c" : "C"}ontainer Interface name in prevResult: ${name} not found`,
      `the container has no link "${name}"`,
    );
  }
  const kind = link.linkinfo?.info_kind;
  if (kinds.length === 0 || (kind !== undefined && kinds.includes(kind))) return link;
  throw internal(
    `${lower ? "e" : "E"}rror: Container interface ${name} not of type ${noun}`,
    `it is ${kind ? `a ${kind} link` : "a physical link"}`,
  );
}

/** The link still has the MAC of prevResult, in whatever case that is written. */
export function checkMac({ name, mac }: Interface, link: Link, words: CheckWords): void {
  const { front = "", lower = false } = words;
  if (!mac || mac.toLowerCase() === link.address) return;
  throw internal(
    `${front}${lower ? "i" : "I"}nterface ${name} Mac ${mac} doesn't match container Mac: ${link.address ?? ""}`,
    `ip link set dev ${name} address ${mac}`,
  );
}

function requiredPrevResult(call: ContainerCall, missing: string): Result {
  const previous = prevResult(call);
  if (previous) return previous;
  throw internal(missing, "CHECK needs the result of ADD as prevResult");
}

/** The container's link as it is now, and the routes of both families and all tables. */
export interface PodState {
  /** Undefined when there is no such link. */
  readonly link: Link | undefined;
  readonly routes: readonly RouteEntry[];
}

/** Looks at a link of the container and at all routes there: one process. */
export async function podState(call: ContainerCall): Promise<PodState> {
  try {
    const [shown, v4, v6] = await apply([[
      step("pod", "ip", addrShow(call.ifName), { read: true }),
      step("pod", "ip", "route show table all root 0.0.0.0/0", { read: true }),
      step("pod", "ip", "route show table all root ::/0", { read: true }),
    ]], call);
    const routes = [
      ...named((v4 ?? []) as RouteEntry[], "0.0.0.0/0"),
      ...named((v6 ?? []) as RouteEntry[], "::/0"),
    ];
    const link = shown?.[0] as Link | undefined;
    // iproute2 shows another link for a name like "if7".
    return { link: link?.ifname === call.ifName ? link : undefined, routes };
  } catch (error) {
    if (isAbsent(error)) return { link: undefined, routes: [] };
    throw error;
  }
}

/** Default routes of both families are called the same: `default`. */
function named(routes: readonly RouteEntry[], everything: string): RouteEntry[] {
  return routes.map((route) => route.dst === "default" ? { ...route, dst: everything } : route);
}

/** prevResult's entry for this container's interface: the last one of that name and namespace. */
export function containerInterface(
  { ifName, netns }: ContainerCall,
  { interfaces = [] }: Result,
  capital = true,
): Interface {
  const found = interfaces.findLast((one) => one.name === ifName && one.sandbox === netns);
  if (found) return found;
  throw internal(
    `${capital ? "S" : "s"}andbox in prevResult  doesn't match configured netns: ${netns}`,
    `no interface of prevResult is "${ifName}" in that namespace`,
  );
}

/** Every address of prevResult is on the link, and its network is reachable. */
export function checkAddresses(
  ifName: string,
  { link, routes }: PodState,
  { ips = [], interfaces = [] }: Result,
): void {
  for (const ip of ips) {
    // An address of another of this container's interfaces is that one's affair.
    const owner = ip.interface === undefined ? undefined : interfaces[ip.interface];
    if (owner && owner.name !== ifName) continue;
    if (!link) throw internal(`Cannot find container link ${ifName}`);
    const wanted = parsePrefix(ip.address);
    const has = link.addr_info?.some((one) =>
      canonicalAddress(one.local) === addressOf(ip.address) && one.prefixlen === wanted?.length
    );
    if (!has) {
      const there = link.addr_info?.map((one) => `${one.local}/${one.prefixlen}`).join(" ") || "none";
      throw internal(`Failed to match addr ${ip.address} on interface ${ifName}`, `addresses there: ${there}`);
    }
    if (!wanted || wanted.length === (wanted.address.family === 4 ? 32 : 128)) continue;
    const network = formatPrefix(networkPrefix(wanted));
    if (!routes.some((route) => route.type !== "local" && samePrefix(route.dst, network))) {
      throw internal(
        `Failed to find Gateway ${ip.gateway ?? "<nil>"} for interface ${ifName}`,
        `there is no route to ${network}${link.flags.includes("UP") ? "" : `: ${ifName} is down`}`,
      );
    }
  }
}

function addressOf(cidr: string): string | undefined {
  return canonicalAddress(cidr.slice(0, cidr.indexOf("/")));
}

/** Every route of prevResult is in its table; of several next hops any may match. */
export function checkRoutes(state: PodState, result: Result): void {
  const { routes } = state;
  const own = ownTables(state, result);
  for (const route of result.routes ?? []) {
    if (!routes.some((one) => isRoute(one, route, own))) {
      throw internal(
        `Expected Route ${goRoute(route)} not found in routing table`,
        `no route to ${route.dst}${route.gw ? ` via ${route.gw}` : ""}`,
      );
    }
  }
}

/**
 * Tables that later plugins of the list moved the main table's routes into: the VRF's that the link is in, and those of
 * source based routing. The latter hold the link's own network, and lead out by nothing else.
 */
function ownTables({ link, routes }: PodState, { ips = [] }: Result): Set<string> {
  const tables = new Map<string, RouteEntry[]>();
  for (const route of routes) {
    const table = route.table ?? "main";
    if (table === "main" || table === "local" || table === "default") continue;
    tables.set(table, [...tables.get(table) ?? [], route]);
  }
  const networks = ips.map(({ address }) => parsePrefix(address)).filter((one) => one !== undefined)
    .map((prefix) => formatPrefix(networkPrefix(prefix)));
  const own = [...tables].filter(([, entries]) =>
    entries.every((one) => (one.dev ?? link?.ifname) === link?.ifname) &&
    entries.some((one) => networks.some((network) => samePrefix(one.dst, network)))
  ).map(([table]) => table);
  const { info_slave_kind, info_slave_data } = link?.linkinfo ?? {};
  return new Set(info_slave_kind === "vrf" ? [...own, String(info_slave_data?.["table"])] : own);
}

function isRoute(entry: RouteEntry, wanted: Route, own: ReadonlySet<string>): boolean {
  if (!samePrefix(entry.dst, wanted.dst)) return false;
  const table = entry.table ?? "main";
  const wantedTable = wanted.table ?? 0;
  const names: Record<number, string> = { 0: "main", 254: "main", 255: "local", 253: "default" };
  const moved = names[wantedTable] === "main" && own.has(table);
  if (!moved && table !== (names[wantedTable] ?? String(wantedTable))) {
    // /etc/iproute2/rt_tables may give any other table a name: then the number is not shown.
    if (names[wantedTable] !== undefined || /^\d+$/.test(table) || ["main", "local"].includes(table)) return false;
  }
  if (!wanted.gw || isDefault(wanted.dst)) return true;
  const gateways = [entry.gateway, entry.via?.host, ...(entry.nexthops ?? []).map((hop) => hop.gateway)];
  return gateways.some((gateway) =>
    gateway !== undefined && canonicalAddress(gateway) === canonicalAddress(wanted.gw ?? "")
  );
}

function isDefault(dst: string): boolean {
  return dst === "0.0.0.0/0" || dst === "::/0";
}

/** Does `shown` by iproute2 (a bare host address, a CIDR) mean the same destination as the CIDR? */
function samePrefix(shown: string, cidr: string): boolean {
  const wanted = parsePrefix(cidr);
  if (!wanted) return false;
  const text = shown.includes("/") ? shown : `${shown}/${shown.includes(":") ? 128 : 32}`;
  const prefix = parsePrefix(text);
  return prefix !== undefined && prefix.length === wanted.length && prefixContains(prefix, wanted.address);
}

/** A route as Go prints the record: people search for these texts. */
function goRoute({ dst, gw, mtu = 0, advmss = 0, priority = 0, table, scope }: Route): string {
  const [ip = "", length = ""] = dst.split("/");
  const bits = ip.includes(":") ? 128 : 32;
  const mask = (((1n << BigInt(length)) - 1n) << BigInt(bits - Number(length))).toString(16).padStart(bits / 4, "0");
  return `{Dst:{IP:${ip} Mask:${mask}} GW:${gw ?? "<nil>"} MTU:${mtu} AdvMSS:${advmss} Priority:${priority} ` +
    `Table:${table ?? "<nil>"} Scope:${scope ?? "<nil>"}}`;
}
