/**
 * From what the kernel has to what it should have. Ours are: routes of our protocol number, and vxlan devices of our
 * group with what is on them. Anything else is left alone; where it is in the way, that is said.
 *
 * @module
 */
import { answersOf } from "../kernel/batch.ts";
import type { Link } from "../kernel/ip.ts";
import type { KernelRoute } from "../kernel/routing.ts";
import { failureText, must, type Output, type Run } from "../kernel/run.ts";
import { complaints } from "../kernel/tool_words.ts";
import { canonicalAddress, type Family } from "../net/cidr.ts";
import type { Problem, Wanted, WantedDevice, WantedFdb, WantedNeighbour, WantedRoute } from "./wanted.ts";

/** Our routes' and neighbours' protocol number (rtnetlink(7): above 16 everybody may choose). */
export const PROTOCOL = "77";
/** Group of our devices: the one mark that a link has from its first moment on. Its bytes spell "cnib". */
export const GROUP = String(0x636e6962);

/** A permanent neighbour as `ip -j neigh show` prints it. */
export interface NeighbourEntry {
  readonly dst: string;
  readonly dev: string;
  readonly lladdr?: string;
}

/** An entry of a forwarding database as `bridge -j fdb show` prints it. */
export interface FdbEntry {
  readonly mac: string;
  readonly dst?: string;
  readonly dev: string;
}

/** What the kernel has. */
export interface KernelState {
  readonly links: readonly Link[];
  readonly routes: readonly KernelRoute[];
  /** Of our devices only. */
  readonly neighbours: readonly NeighbourEntry[];
  readonly fdb: readonly FdbEntry[];
}

/** Lines of one tool's batch, each with the node that it is for. */
export interface Batch {
  readonly tool: "ip" | "bridge";
  readonly lines: readonly PlannedLine[];
}

export interface PlannedLine {
  readonly text: string;
  /** Name of the other node; "" where it is for this one. */
  readonly node: string;
}

/** What is to be done, in order, and what cannot be. */
export interface Repair {
  readonly batches: readonly Batch[];
  readonly problems: readonly Problem[];
}

/** Asks for links, routes, and what is on our devices. `names`: devices that may become ours. */
export async function kernelState(run: Run, names: readonly string[]): Promise<KernelState> {
  const [first, six] = await Promise.all([
    must(run, { argv: ["ip", "-j", "-N", "-d", "-batch", "-"], input: ["addr show\nroute show table main\n"] }),
    // With a table and no family `ip` shows IPv4 alone.
    must(run, { argv: ["ip", "-6", "-j", "-N", "route", "show", "table", "main"] }),
  ]);
  const [links = [], four = []] = answersOf(first) as unknown as [Link[]?, KernelRoute[]?];
  const routes = [
    ...four.map((one) => ({ ...one, family: 4 as const })),
    ...answersOf<KernelRoute>(six).flat().map((one) => ({ ...one, family: 6 as const })),
  ];
  const devices = links.filter((link) => isOurs(link) || names.includes(link.ifname));
  if (devices.length === 0) return { links, routes, neighbours: [], fdb: [] };
  const [neighbours, ...tables] = await Promise.all([
    must(run, { argv: ["ip", "-j", "neigh", "show", "nud", "permanent"] }),
    ...devices.map(({ ifname }) => must(run, { argv: ["bridge", "-j", "fdb", "show", "dev", ifname] })),
  ]);
  return {
    links,
    routes,
    neighbours: answersOf<NeighbourEntry>(neighbours).flat().filter(({ dev }) =>
      devices.some(({ ifname }) => ifname === dev)
    ),
    fdb: tables.flatMap((table, at) =>
      answersOf<FdbEntry>(table).flat().map((one) => ({ ...one, dev: devices[at]!.ifname }))
    ),
  };
}

/** Is this a device of ours? */
export function isOurs({ group, linkinfo }: Link): boolean {
  return group === GROUP && linkinfo?.info_kind === "vxlan";
}

/** How to get from one to the other. `takeOver`: what flanneld left that leads the same way becomes ours. */
export function repair(wanted: Wanted, all: KernelState, { takeOver }: { readonly takeOver: boolean }): Repair {
  const now = withoutFamilies(all, wanted.held);
  const problems: Problem[] = [];
  const links: PlannedLine[] = [];
  /** Devices of which nothing will be left that is on them now. */
  const fresh = new Set<string>();
  const blocked = new Set<string>();
  for (const link of now.links) {
    if (!isOurs(link) || wanted.devices.some(({ name }) => name === link.ifname)) continue;
    links.push(own(`link del dev ${link.ifname}`));
    fresh.add(link.ifname);
  }
  for (const device of wanted.devices) {
    const found = now.links.find(({ ifname }) => ifname === device.name);
    const { lines, problem, made } = deviceLines(device, found, takeOver);
    links.push(...lines.map(own));
    if (made) fresh.add(device.name);
    if (problem === undefined) continue;
    blocked.add(device.name);
    problems.push({ node: "", text: problem });
  }
  const usable = <T extends { readonly dev: string }>(all: readonly T[]) => all.filter(({ dev }) => !blocked.has(dev));
  const stays = ({ dev }: { readonly dev: string }) =>
    !fresh.has(dev) && !blocked.has(dev) && wanted.devices.some(({ name }) => name === dev);
  const routes = routeLines(usable(wanted.routes), now.routes.filter(({ dev = "" }) => !fresh.has(dev)), {
    takeOver,
    problems,
  });
  return {
    batches: [
      { tool: "ip" as const, lines: links },
      { tool: "bridge" as const, lines: fdbLines(usable(wanted.fdb), now.fdb.filter(stays)) },
      {
        tool: "ip" as const,
        lines: [...neighbourLines(usable(wanted.neighbours), now.neighbours.filter(stays)), ...routes],
      },
    ].filter(({ lines }) => lines.length > 0),
    problems,
  };
}

/** The state without what is ours of these families: neither missed nor removed. */
function withoutFamilies(now: KernelState, families: readonly Family[]): KernelState {
  if (families.length === 0) return now;
  return {
    ...now,
    links: now.links.filter((link) => !isOurs(link) || !families.includes(familyOf(link))),
    routes: now.routes.filter(({ family }) => !families.includes(family)),
  };
}

/** Family of what a vxlan device sends. */
function familyOf({ linkinfo }: Link): Family {
  return linkinfo?.info_data?.["local6"] === undefined ? 4 : 6;
}

const own = (text: string): PlannedLine => ({ text, node: "" });

function deviceLines(
  device: WantedDevice,
  found: Link | undefined,
  takeOver: boolean,
): { lines: string[]; problem?: string; made?: boolean } {
  const { name, vni, port, local, link, mac, mtu, address } = device;
  const add = [
    `link add name ${name} address ${mac} mtu ${mtu} group ${GROUP} type vxlan id ${vni} local ${local} dev ${link} dstport ${port} nolearning`,
    `addr add ${address} dev ${name}`,
    `link set dev ${name} up`,
  ];
  if (found === undefined) return { lines: add, made: true };
  const differs = difference(device, found);
  if (isOurs(found) && differs) return { lines: [`link del dev ${name}`, ...add], made: true };
  if (!isOurs(found) && (differs || !takeOver)) {
    const why = differs ? ` and has ${differs}` : "";
    return {
      lines: [],
      problem:
        `a link ${name} is there that is not ours${why}: end the program that made it, then use --take-over or remove the link`,
    };
  }
  const lines: string[] = [];
  if (!isOurs(found)) lines.push(`link set dev ${name} group ${GROUP}`);
  if (found.address !== mac) lines.push(`link set dev ${name} address ${mac}`);
  if (found.mtu !== mtu) lines.push(`link set dev ${name} mtu ${mtu}`);
  let isThere = false;
  for (const { local, prefixlen, scope } of found.addr_info ?? []) {
    const text = `${local}/${prefixlen}`;
    if (text === address) isThere = true;
    // 253: the address of the link itself, which the kernel made.
    else if (scope !== "253" && scope !== "link") lines.push(`addr del ${text} dev ${name}`);
  }
  if (!isThere) lines.push(`addr add ${address} dev ${name}`);
  if (!found.flags.includes("UP")) lines.push(`link set dev ${name} up`);
  return { lines };
}

/** What a link has that cannot be changed, and should be otherwise. */
function difference({ vni, port, local, link, family }: WantedDevice, found: Link): string | undefined {
  const { info_kind, info_data = {} } = found.linkinfo ?? {};
  if (info_kind !== "vxlan") return `kind ${info_kind ?? "none"}`;
  const is = family === 4 ? info_data["local"] : info_data["local6"];
  const pairs = [["id", info_data["id"], vni], ["port", info_data["port"], port], ["local", is, local], [
    "link",
    info_data["link"],
    link,
  ]];
  const other = pairs.find(([, has, wants]) => has !== wants);
  return other && `${other[0]} ${other[1] ?? "none"}`;
}

function routeLines(
  wanted: readonly WantedRoute[],
  now: readonly KernelRoute[],
  { takeOver, problems }: { readonly takeOver: boolean; readonly problems: Problem[] },
): PlannedLine[] {
  const add: PlannedLine[] = [];
  const kept = new Set<KernelRoute>();
  const byDst = Map.groupBy(now, ({ family, dst }) => `${family} ${dst}`);
  for (const route of wanted) {
    const same = byDst.get(`${route.family} ${route.dst}`) ?? [];
    const ours = same.filter(isOurRoute);
    const foreign = same.find((one) => !isOurRoute(one) && hasUsualMetric(one));
    const exact = ours.find((one) => leadsThere(one, route));
    if (exact) kept.add(exact);
    if (exact || foreign) {
      if (!exact && foreign && !leadsThere(foreign, route)) {
        problems.push({
          node: route.node,
          text: `a route to ${route.dst} that is not ours leads elsewhere: ${wayText(foreign)} proto ${
            foreign.protocol ?? "0"
          }`,
        });
      }
      if (!exact && foreign && takeOver && leadsThere(foreign, route)) add.push(line("replace", route));
      continue;
    }
    // A replaced route is there all the time; `replace` must not hit another's.
    if (ours[0]) kept.add(ours[0]);
    add.push(line(ours[0] ? "replace" : "add", route));
  }
  const gone = now.filter((one) => isOurRoute(one) && !kept.has(one));
  return [...gone.map((one) => own(`route del ${typeText(one)}${one.dst} ${wayText(one)} proto ${PROTOCOL}`)), ...add];
}

function line(verb: "add" | "replace", { dst, gateway, dev, onlink, node }: WantedRoute): PlannedLine {
  return { text: `route ${verb} ${dst} via ${gateway} dev ${dev}${onlink ? " onlink" : ""} proto ${PROTOCOL}`, node };
}

function isOurRoute({ protocol }: KernelRoute): boolean {
  return protocol === PROTOCOL;
}

/** Two routes of one destination live side by side when their metrics differ. */
function hasUsualMetric({ family, metric }: KernelRoute): boolean {
  return (metric ?? 0) === (family === 4 ? 0 : 1024);
}

function leadsThere(route: KernelRoute, { gateway, dev, onlink }: WantedRoute): boolean {
  return route.gateway === gateway && route.dev === dev && hasUsualMetric(route) &&
    (route.flags ?? []).includes("onlink") === onlink && !(route.flags ?? []).includes("dead");
}

/** Plain routes need no type; they are number 1 (rtnetlink(7)). */
function typeText({ type }: KernelRoute): string {
  return type === undefined || type === "1" || type === "unicast" ? "" : `${type} `;
}

function wayText({ gateway, via, dev, nexthops, metric, family }: KernelRoute): string {
  if (nexthops) {
    return nexthops.map((one) =>
      `nexthop${one.gateway ? ` via ${one.gateway}` : ""}${one.dev ? ` dev ${one.dev}` : ""}`
    )
      .join(" ");
  }
  const words = [
    gateway && `via ${gateway}`,
    via && `via ${via.family} ${via.host}`,
    dev && `dev ${dev}`,
    metric !== undefined && metric !== (family === 4 ? 0 : 1024) && `metric ${metric}`,
  ];
  return words.filter((one) => one).join(" ");
}

function neighbourLines(wanted: readonly WantedNeighbour[], now: readonly NeighbourEntry[]): PlannedLine[] {
  const { gone, missing } = compared(wanted, now, {
    key: ({ dst, dev }) => `${dst} ${dev}`,
    keyNow: ({ dst, dev }) => `${canonicalAddress(dst)} ${dev}`,
    isRight: (one, { mac }) => one.lladdr === mac,
  });
  return [
    ...gone.map(({ dst, dev }) => own(`neigh del ${dst} dev ${dev}`)),
    ...missing.map(({ dst, mac, dev }) =>
      own(`neigh replace ${dst} lladdr ${mac} dev ${dev} nud permanent protocol ${PROTOCOL}`)
    ),
  ];
}

function fdbLines(wanted: readonly WantedFdb[], now: readonly FdbEntry[]): PlannedLine[] {
  // All zeros: where unknown addresses go; we set no such entry.
  const unicast = now.filter(({ mac, dst }) => dst !== undefined && mac !== "00:00:00:00:00:00");
  const { gone, missing } = compared(wanted, unicast, {
    key: ({ mac, dev }) => `${mac} ${dev}`,
    keyNow: ({ mac, dev }) => `${mac} ${dev}`,
    isRight: (one, { dst }) => one.dst === dst,
  });
  return [
    ...gone.map(({ mac, dst, dev }) => own(`fdb del ${mac} dev ${dev} dst ${dst} self`)),
    ...missing.map(({ mac, dst, dev }) => own(`fdb replace ${mac} dev ${dev} dst ${dst} self permanent`)),
  ];
}

/** What is there and not wanted, and what is wanted and not there as it should be. */
function compared<W, N>(
  wanted: readonly W[],
  now: readonly N[],
  { key, keyNow, isRight }: {
    readonly key: (one: W) => string;
    readonly keyNow: (one: N) => string;
    readonly isRight: (one: N, wanted: W) => boolean;
  },
): { gone: N[]; missing: W[] } {
  const keys = new Set(wanted.map(key));
  const there = Map.groupBy(now, keyNow);
  return {
    gone: now.filter((one) => !keys.has(keyNow(one))),
    missing: wanted.filter((one) => !there.get(key(one))?.some((other) => isRight(other, one))),
  };
}

/** Carries a plan out; a line that fails stops no other. Returns what failed. */
export async function applyRepair(run: Run, { batches }: Repair): Promise<Problem[]> {
  const problems: Problem[] = [];
  for (const batch of batches) {
    const output = await run(batchCommand(batch));
    if (output.code !== 0) problems.push(...failures(batch, output));
  }
  return problems;
}

/** The one process that does a batch. */
export function batchCommand({ tool, lines }: Batch): { argv: string[]; input: string[] } {
  return { argv: [tool, "-force", "-batch", "-"], input: [lines.map(({ text }) => `${text}\n`).join("")] };
}

/** A batch's complaints, each above the number of its line. */
function failures({ tool, lines }: Batch, output: Output): Problem[] {
  const problems = complaints(output).map(({ line, text }): Problem => {
    const { text: failed = "", node = "" } = lines[line - 1] ?? {};
    return { node, text: `${tool} ${failed}: ${text}` };
  });
  return problems.length > 0 ? problems : [{ node: "", text: `${tool}: ${failureText(output)}` }];
}

/** What takes back everything that is ours in the kernel. */
export function withdrawal(now: KernelState): Repair {
  const nothing: Wanted = { devices: [], routes: [], neighbours: [], fdb: [], problems: [], held: [], mtu: 0 };
  return repair(nothing, now, { takeOver: false });
}

/** What kernel events are looked at for. */
export interface Watched {
  /** Ours. */
  readonly devices: readonly string[];
  /** Those that carry packets to other nodes. */
  readonly links: readonly string[];
  /** One of this node's addresses is missing: whatever link may bring it. */
  readonly anyAddress: boolean;
}

/** Does a line of `ip -N -o monitor link address route neigh` concern us? */
export function concerns(line: string, { devices, links, anyAddress }: Watched): boolean {
  const text = line.replace(/^Deleted /, "");
  // Links and addresses: `2: eth0@if5: <…`, `2: eth0    inet 10.99.0.1/24 …`.
  const link = /^\d+: ([^\s:@]+)/.exec(text)?.[1];
  if (link !== undefined) {
    // Pods' links come with addresses of the link's own scope, 253.
    const isAddress = anyAddress && / inet6? \S+ .*scope 0 /.test(text);
    return isAddress || links.includes(link) || devices.includes(link);
  }
  const dev = / dev (\S+)/.exec(text)?.[1];
  if (text.includes(` proto ${PROTOCOL} `)) return true;
  return dev !== undefined && devices.includes(dev);
}
