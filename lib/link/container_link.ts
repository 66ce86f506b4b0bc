/** What every main plugin does to the container's link: settings, addresses, up, routes; and removing it again. */
import { formatAddress, networkAddress, nextAddress, parsePrefix } from "../net/cidr.ts";
import { isAnyName, isIndexName } from "../net/link_name.ts";
import { internal } from "../cni/error.ts";
import type { ContainerCall, Lease } from "../cni/plugin.ts";
import type { Result, Route } from "../cni/types.ts";
import { addrAdd, addrShow, isNamed, type Link, linkDel, linkUp } from "../kernel/ip.ts";
import { type Applier, apply, type Place, type Step, step } from "../kernel/plan.ts";
import { isAbsent } from "../kernel/run.ts";

/** How a container's link is to be set up. */
export interface LinkOptions {
  /** Say the addresses are in use without asking: where a duplicate is impossible. */
  readonly nodad?: boolean;
  /** `false`: turn duplicate detection off on the link, `true`: on; absent: leave it. (bridge's `enabledad`) */
  readonly dad?: boolean;
  /** Have the kernel announce addresses when the link comes up or its MAC is set: neighbours forget an old owner. */
  readonly announce?: boolean;
  /** What the link is called while its settings are written, when it is renamed only after that; absent: its name. */
  readonly device?: string;
}

/** Settings of the container's link, to be written before its addresses. */
export function linkSettings(ifName: string, ips: Result["ips"], options: LinkOptions = {}): Step[] {
  const { device = ifName } = options;
  const six = `net/ipv6/conf/${device}`;
  const steps: Step[] = [];
  if (options.dad === false) steps.push(sysctl(`${six}/accept_dad=0`, "no wait for duplicate address detection", true));
  if (options.dad === true) {
    steps.push(sysctl(`${six}/enhanced_dad=1`, "tell own looped-back probes apart", true));
    steps.push(sysctl(`${six}/accept_dad=1`, "look for duplicate addresses", true));
  }
  if (options.announce) {
    steps.push(
      sysctl(`net/ipv4/conf/${device}/arp_notify=1`, "announce the address: neighbours forget an old owner", true),
    );
  }
  if (!ips?.some((ip) => ip.address.includes(":"))) return steps;
  for (const [name, shown] of [["lo", "lo"], [device, ifName]]) {
    steps.push(step("pod", "sysctl", `net/ipv6/conf/${name}/disable_ipv6=0`, {
      ifDifferent: true,
      failing: `failed to enable IPv6 for interface "${shown}" (net/ipv6/conf/${shown}/disable_ipv6)`,
      why: "an IPv6 address follows",
    }));
  }
  steps.push(step("pod", "sysctl", `${six}/keep_addr_on_down=1`, {
    failing: `failed to enable keep_addr_on_down for interface "${ifName}"`,
    why: "IPv6 addresses survive a link that goes down",
  }));
  if (options.announce) steps.push(sysctl(`${six}/ndisc_notify=1`, "the same for IPv6 neighbours", true));
  return steps;
}

function sysctl(text: string, why: string, optional: boolean): Step {
  return step("pod", "sysctl", text, { why, optional });
}

/** Addresses of the result on the container's link, then up. */
export function addressSteps(ifName: string, result: Result, options: LinkOptions = {}): Step[] {
  const steps = ownIps(ifName, result).map((ip) =>
    step("pod", "ip", addrAdd(ip.address, ifName, { nodad: options.nodad ?? false }), {
      failing: `failed to add IP addr ${ip.address} to "${ifName}"`,
      why: "the container's address",
    })
  );
  return [...steps, step("pod", "ip", linkUp(ifName), { failing: `failed to set "${ifName}" UP` })];
}

/** The addresses that point at this link; an index at no link or another one is an error, none at all: not ours. */
function ownIps(ifName: string, { interfaces = [], ips = [] }: Result): NonNullable<Result["ips"]> {
  return ips.filter((ip) => {
    if (ip.interface === undefined) return false;
    if (interfaces[ip.interface]?.name === ifName) return true;
    throw internal(`failed to add IP addr ${ip.address} to "${ifName}": invalid interface index`);
  });
}

const U32 = 2 ** 32 - 1;

/** Routes of the result through the container's link, in order; a route that is there twice is set once. */
export function routeSteps(ifName: string, result: Result): Step[] {
  const gateways = (result.ips ?? []).filter((ip) => ip.interface !== undefined).map((ip) => ip.gateway ?? "");
  const first = {
    v4: gateways.find((gw) => gw !== "" && !gw.includes(":")),
    v6: gateways.find((gw) => gw.includes(":")),
  };
  const texts = new Map<string, Step>();
  for (const route of result.routes ?? []) {
    const six = route.dst.includes(":");
    // A route with a scope below the gateway's (link, host) cannot go through one.
    const inherited = (route.scope ?? 0) >= 253 ? undefined : six ? first.v6 : first.v4;
    const gw = route.gw ?? inherited;
    const failing = routeFailure(ifName, route, gw);
    checkRoute(route, gw, failing);
    const text = routeText(ifName, route, gw);
    texts.set(text, step("pod", "ip", text, { failing, why: "route from the configuration" }));
  }
  return [...texts.values()];
}

/** Numbers of a route, and the largest that the kernel takes. */
const ROUTE_NUMBERS = [["mtu", U32], ["advmss", U32], ["priority", U32], ["table", U32], ["scope", 255]] as const;

/** Refuses what iproute2's parser would refuse without a word about which route it was. */
function checkRoute(route: Route, gw: string | undefined, failing: string): void {
  const { dst } = route;
  if (gw && gw.includes(":") !== dst.includes(":")) {
    throw internal(
      `${failing}: gateway, source, and destination ip are not the same IP family`,
      `the route to ${dst}: "gw" is ${gw}; IPv4 and IPv6 do not mix`,
    );
  }
  for (const [key, most] of ROUTE_NUMBERS) {
    const value = route[key] ?? 0;
    if (value >= 0 && value <= most) continue;
    throw internal(
      `${failing}: numerical result out of range`,
      `the route to ${dst}: "${key}" is ${value}: 0 to ${most}`,
    );
  }
}

function routeText(dev: string, route: Route, gw: string | undefined): string {
  const six = route.dst.includes(":");
  const parts = [`route prepend ${route.dst}`];
  if (gw) parts.push(`via ${gw}`);
  parts.push(`dev ${dev}`);
  // iproute2 would choose scope link for an IPv4 route without a gateway.
  if (!six) parts.push(`scope ${route.scope ?? "global"}`);
  if (route.priority) parts.push(`metric ${route.priority}`);
  if (route.table) parts.push(`table ${route.table}`);
  if (route.mtu) parts.push(`mtu ${route.mtu}`);
  if (route.advmss) parts.push(`advmss ${route.advmss}`);
  return `${parts.join(" ")} proto boot`;
}

const SCOPES: Readonly<Record<number, string>> = {
  0: "universe",
  200: "site",
  253: "link",
  254: "host",
  255: "nowhere",
};

function routeFailure(dev: string, route: Route, gw: string | undefined): string {
  const [ip = "", length = ""] = route.dst.split("/");
  const bits = ip.includes(":") ? 128 : 32;
  const mask = (((1n << BigInt(length)) - 1n) << BigInt(bits - Number(length))).toString(16).padStart(bits / 4, "0");
  const scope = SCOPES[route.scope ?? 0] ?? "unknown";
  return `failed to add route '{${ip} ${mask}} via ${gw ?? "<nil>"} dev ${dev} metric ${route.priority ?? 0} ` +
    `(Scope: ${scope}, Table: ${route.table ?? 0})'`;
}

/** Does the result give the container an IPv6 gateway? Only then is duplicate detection waited for. */
export function hasV6Gateway({ ips = [] }: Result): boolean {
  return ips.some((ip) => ip.interface !== undefined && ip.gateway?.includes(":"));
}

/**
 * Puts the result on the container's link: one process in the container when nothing has to be waited for; with
 * duplicate detection on, one more for each look at the addresses. `first` are steps of the container before its
 * addresses, `last` after them, `more` steps of the same stage beside it (rules on the host). `settle: false` does not
 * wait for addresses that cannot settle. Returns the answers of the questions among these steps.
 */
export async function configureLink(
  call: ContainerCall,
  result: Result,
  options: LinkOptions & {
    first?: readonly Step[];
    more?: readonly Step[];
    last?: readonly Step[];
    settle?: boolean;
  } = {},
): Promise<unknown[][]> {
  const { ifName } = call;
  const { first = [], more = [], last = [] } = options;
  const settings = linkSettings(ifName, result.ips, options);
  const addresses = addressSteps(ifName, result, options);
  const routes = routeSteps(ifName, result);
  const mustSettle = hasV6Gateway(result) && options.dad !== false && !options.nodad && options.settle !== false;
  // Settings come first: they are written before anything else, and what is undone after a failure is what precedes it.
  if (!mustSettle) return await apply([[...settings, ...first, ...addresses, ...routes, ...last, ...more]], call);
  const answers = await apply([[...settings, ...first, ...addresses, ...last, ...more]], call);
  await call.perform(undefined, async () => await (await import("./settling.ts")).settle(call));
  if (routes.length > 0) await apply([routes], call);
  return answers;
}

/** Deletes the container's link; a link that is not there, or a namespace that is gone, counts as done. */
export async function deleteContainerLink(call: ContainerCall): Promise<void> {
  if (!call.podAlive || (isIndexName(call.ifName) && !await linkNow(call, "pod", call.ifName))) return;
  await deleteLink(call, call.ifName, { place: "pod", why: "its other end goes with it" });
}

/** Deletes a link; one that is not there, or whose namespace is gone, counts as done. */
export async function deleteLink(
  call: Applier,
  name: string,
  { place, why = "" }: { readonly place: Place; readonly why?: string },
): Promise<void> {
  try {
    await apply([[step(place, "ip", linkDel(name), { failing: `failed to delete "${name}"`, why })]], call);
  } catch (error) {
    if (!isAbsent(error)) throw error;
  }
}

/** The link with this name or alternative name, with its addresses; undefined when there is none. One process. */
export async function linkNow(call: Applier, place: Place, name: string): Promise<Link | undefined> {
  if (!isAnyName(name)) return undefined;
  try {
    const [shown] = await apply([[step(place, "ip", addrShow(name), { read: true })]], call);
    const link = shown?.[0] as Link | undefined;
    return link && isNamed(link, name) ? link : undefined;
  } catch (error) {
    if (isAbsent(error)) return undefined;
    throw error;
  }
}

/**
 * First step of the IPAM plugin's ADD. What the second one gives is released when this call fails; none is an error.
 */
export async function begin(call: ContainerCall, type: string): Promise<Lease> {
  const lease = await call.begin(type);
  let committed = false;
  // Registered before anything that is made for the addresses: that is undone first.
  call.undo(async () => committed && await call.delegate(type, "DEL"));
  return {
    ips: lease.ips,
    commit: async () => {
      const result = await lease.commit();
      committed = true;
      if (result.ips?.length || call.explain) return result;
      throw internal("IPAM plugin returned missing IP config", `${type} gave no address`);
    },
  };
}

/** ADD of the IPAM plugin, for callers that have nothing to do between its steps. */
export async function allocate(call: ContainerCall, type: string): Promise<Result> {
  return await (await begin(call, type)).commit();
}

/** Network address plus one: the gateway that a main plugin invents. Undefined at the end of the address space. */
export function firstHost(cidr: string): string | undefined {
  const prefix = parsePrefix(cidr);
  if (!prefix) return undefined;
  const next = nextAddress(networkAddress(prefix));
  return next && formatAddress(next);
}
