/**
 * Routes and rules of a network namespace, as numbers: what `ip -N -j` answers, and the words that make the same route
 * again somewhere else. Names of tables and protocols are those of a file on the node, so none are used here.
 */
import { answersOf, runLines } from "./batch.ts";
import type { Run } from "./run.ts";
import type { Link, RouteEntry } from "./ip.ts";

/** A route, with the family that `ip` leaves out of its answer. */
export interface KernelRoute extends RouteEntry {
  readonly family: 4 | 6;
  readonly from?: string;
  readonly tos?: string;
  readonly expires?: number;
  readonly pref?: string;
  readonly metrics?: readonly Readonly<Record<string, string | number>>[];
  readonly nexthops?: readonly Nexthop[];
}

/** One way of a multipath route. */
export interface Nexthop {
  readonly gateway?: string;
  readonly via?: { readonly family: string; readonly host: string };
  readonly dev?: string;
  readonly weight?: number;
  readonly flags?: readonly string[];
}

/** A rule of policy routing. */
export interface KernelRule {
  readonly family: 4 | 6;
  readonly priority: number;
  readonly src?: string;
  readonly srclen?: number;
  readonly table?: string;
  /** Every other key is a condition more. */
  readonly [key: string]: unknown;
}

/** Tables by number (linux/rtnetlink.h). */
export const TABLE = { default: 253, main: 254, local: 255 } as const;
/** Scope of a route to what is on the link itself. */
export const SCOPE_LINK = 253;

/** What a namespace's routing looks like. */
export interface Routing {
  readonly rules: readonly KernelRule[];
  readonly routes: readonly KernelRoute[];
  /** Links that were asked for by further questions, with their addresses. */
  readonly links: readonly Link[];
}

/**
 * Lists all rules and routes of both families, and what further questions of `ip` ask for (`addr show …`): two
 * processes side by side, since only an option tells which family's rules are meant. What does not exist is not in the
 * answer.
 */
export async function routingNow(run: Run, questions: readonly string[] = []): Promise<Routing> {
  const lines = ["rule show", "route show table all root 0.0.0.0/0", ...questions, "route show table all root ::/0"];
  const [all, six] = await Promise.all([
    runLines(run, ["ip", "-j", "-N", "-d", "-force"], lines),
    run({ argv: ["ip", "-6", "-j", "-N", "rule", "show"] }),
  ]);
  const [rules4 = [], routes4 = [], ...rest] = answersOf(all.stdout);
  const [rules6 = []] = answersOf(six.stdout);
  const others = rest.flat();
  return {
    rules: [
      ...rules4.map((rule) => ({ ...rule, family: 4 }) as KernelRule),
      ...rules6.map((rule) => ({ ...rule, family: 6 }) as KernelRule),
    ],
    routes: [
      ...routes4.map((route) => ({ ...route, family: 4 }) as KernelRoute),
      ...others.filter((one) => "dst" in one).map((route) => ({ ...route, family: 6 }) as unknown as KernelRoute),
    ],
    links: others.filter((one) => "ifname" in one) as unknown as Link[],
  };
}

/** Table of a route; the main one is not always named. */
export function tableOf({ table }: { readonly table?: string | undefined }): number {
  return table === undefined ? TABLE.main : Number(table);
}

/** Metrics that `ip route` takes by the names that it prints. */
const METRICS = [
  "mtu",
  "advmss",
  "window",
  "hoplimit",
  "initcwnd",
  "initrwnd",
  "quickack",
  "reordering",
  "cwnd",
  "ssthresh",
];

/**
 * The words after `ip route replace|add|del` that stand for this route in another table, with another source address if
 * told. Scope and family are always said: `ip` would guess them.
 */
export function routeWords(route: KernelRoute, table: number, options: { src?: string } = {}): string {
  const { dst, family, from, tos, protocol, scope, metric, expires, pref, flags = [], metrics = [], nexthops } = route;
  const src = route.prefsrc === undefined ? undefined : options.src ?? route.prefsrc;
  const words = [dst === "default" ? (family === 4 ? "0.0.0.0/0" : "::/0") : dst];
  const add = (word: string, value: string | number | undefined) => {
    if (value !== undefined) words.push(word, String(value));
  };
  add("from", from);
  add("tos", tos);
  if (!nexthops) words.push(...wayWords(route));
  add("proto", protocol);
  add("scope", scope);
  add("src", src);
  add("metric", metric);
  for (const name of METRICS) add(name, metrics[0]?.[name]);
  add("expires", expires);
  if (!nexthops && flags.includes("onlink")) words.push("onlink");
  add("pref", pref);
  add("table", table);
  for (const one of nexthops ?? []) {
    words.push("nexthop", ...wayWords(one));
    add("weight", one.weight);
    if (one.flags?.includes("onlink")) words.push("onlink");
  }
  return words.join(" ");
}

function wayWords({ gateway, via, dev }: Nexthop): string[] {
  return [
    ...(gateway ? ["via", gateway] : []),
    ...(via ? ["via", via.family, via.host] : []),
    ...(dev ? ["dev", dev] : []),
  ];
}

/** Does this route lead out by that link, alone or among others? */
export function leadsBy({ dev, nexthops = [] }: KernelRoute, ifName: string): boolean {
  return dev === ifName || nexthops.some((one) => one.dev === ifName);
}

/** The addresses that a route's gateways have. */
export function gatewaysOf({ gateway, nexthops = [] }: KernelRoute): string[] {
  return [gateway, ...nexthops.map((one) => one.gateway)].filter((one) => one !== undefined);
}

/** Is this rule "from this address, look in a table", and nothing else? */
export function isSourceRule(rule: KernelRule): boolean {
  const { family, priority: _, src, srclen, table, protocol: __, ...conditions } = rule;
  const whole = srclen === undefined || srclen === (family === 4 ? 32 : 128);
  return src !== undefined && src !== "all" && whole && table !== undefined && Object.keys(conditions).length === 0;
}
