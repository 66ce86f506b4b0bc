/**
 * `cnibox networks` and `cnibox inspect`: the networks of this node, one line each, and one of them with all that it
 * has.
 */
import { loadAll, type NetworkList } from "../cni/conflist.ts";
import { isObject, lookup } from "../cni/decode.ts";
import type { ConfigError } from "../cni/member.ts";
import type { Cached } from "../cni/result_cache.ts";
import type { JsonObject } from "../cni/types.ts";
import { formatAddress, formatPrefix } from "../net/cidr.ts";
import { type CommandCall, status } from "./command.ts";
import { type Pool, pools, useOf } from "./leases.ts";
import { byName, nameOf, podOf, unknownNetwork } from "./owner_names.ts";
import { attachmentsOf, type Folders, foldersOf, note } from "./setup.ts";
import { listOf } from "./survey.ts";
import { columns, jsonDocument, natural, oneLine, painter, say, sections, table, terminalWidth } from "./terminal.ts";

/** A network, with what the files of this node say of it. */
interface Known {
  readonly name: string;
  /** Undefined when only attachments or leases tell of it. */
  readonly list: NetworkList | undefined;
  /** Whether runtimes can attach to it. */
  readonly configured: boolean;
  readonly attachments: readonly Cached[];
  readonly pools: readonly Pool[];
}

/** Everything that files tell of networks; what may not be read, or cannot be, is named on standard error. */
function knownNetworks(folders: Folders): Known[] {
  const { lists, broken } = loadAll(folders.conf);
  for (const error of broken) note(`not readable: ${brokenText(error)}`);
  const attachments = orNothing("attachments", () => attachmentsOf(folders));
  return knownOf(lists, attachments, orNothing("leases", () => pools(folders)));
}

/** What these say of networks, by name. */
export function knownOf(
  lists: readonly NetworkList[],
  attachments: readonly Cached[],
  all: readonly Pool[],
): Known[] {
  const names = new Set([
    ...lists.map(({ name }) => name),
    ...attachments.map(({ network }) => network),
    ...all.map(({ network }) => network),
  ]);
  return [...names].sort(natural).map((name) => {
    const own = attachments.filter(({ network }) => network === name);
    const configured = lists.find((list) => list.name === name);
    return {
      name,
      list: configured ?? own.map(listOf).find((list) => list !== undefined),
      configured: configured !== undefined,
      attachments: own,
      pools: all.filter(({ network }) => network === name),
    };
  });
}

const brokenText = ({ file, message }: ConfigError) => message.includes(file) ? message : `${file}: ${message}`;

function orNothing<T>(what: string, read: () => T[]): T[] {
  try {
    return read();
  } catch (error) {
    if (Deno.uid() === 0) throw error;
    note(`${what} cannot be read without root`);
    return [];
  }
}

/** `cnibox networks` */
export function networks(call: CommandCall): number {
  const all = knownNetworks(foldersOf(call));
  if (call.is("quiet")) {
    say(all.map(({ name }) => `${oneLine(name)}\n`).join(""));
    return status.done;
  }
  if (call.is("json")) {
    say(jsonDocument({ networks: all.map(summaryOf) }));
    return status.done;
  }
  say(networksText(all, { headings: !call.is("no-headings"), whole: call.is("no-trunc") }));
  return status.done;
}

const TITLES = ["NETWORK", "PLUGINS", "SUBNETS", "ADDRESSES", "ATTACHED", "FILE"];

/** A line for each network. */
export function networksText(all: readonly Known[], { headings = true, whole = false } = {}): string {
  if (all.length === 0) return "no networks: nothing is configured, and nothing is attached\n";
  const paint = painter();
  const rows = all.map((one) => [
    paint("bold", one.name),
    one.list?.plugins.map(({ type }) => type).join(", ") ?? "-",
    subnetsOf(one).join(" ") || "-",
    usesOf(one).map(({ taken, total }) => shareText(taken, total)).join(", ") || "-",
    `${one.attachments.length}`,
    one.configured
      ? one.list?.file.slice(one.list.file.lastIndexOf("/") + 1) ?? "-"
      : paint("yellow", "not configured"),
  ]);
  return table(TITLES, rows, { width: whole ? undefined : terminalWidth(), headings, dispensable: ["FILE"] });
}

const usesOf = (one: Known) => one.pools.flatMap(useOf);

/** Nobody runs out of the addresses of an IPv6 network. */
const shareText = (taken: number, total: bigint) => total < 1n << 32n ? `${taken} of ${total}` : `${taken}`;

function subnetsOf({ pools }: Known): string[] {
  return pools.flatMap(({ sets }) => sets.flatMap((set) => set.map(({ subnet }) => formatPrefix(subnet))));
}

function summaryOf(one: Known) {
  const { name, list, configured, attachments } = one;
  return {
    network: name,
    configured,
    ...(list && {
      file: list.file,
      cniVersion: list.version === "" ? "0.1.0" : list.version,
      plugins: list.plugins.map(({ type }) => type),
    }),
    subnets: subnetsOf(one),
    ranges: usesOf(one).map(({ range, taken, total, blocks }) => ({
      range,
      taken,
      total: String(total),
      ...(blocks !== undefined && { blocks }),
    })),
    attachments: attachments.length,
  };
}

/** `cnibox inspect NETWORK` */
export function inspect(call: CommandCall): number {
  const wanted = call.arg("NETWORK") ?? "";
  const all = knownNetworks(foldersOf(call));
  const found = all.find(({ name }) => name === wanted);
  if (!found) throw unknownNetwork(wanted, all.map(({ name }) => name));
  say(call.is("json") ? jsonDocument(detailsOf(found)) : inspectText(found));
  return status.done;
}

function detailsOf(one: Known) {
  return {
    ...summaryOf(one),
    ...(one.list && {
      configuration: {
        cniVersion: one.list.version,
        name: one.name,
        disableCheck: one.list.disableCheck,
        disableGC: one.list.disableGC,
        plugins: one.list.plugins.map(({ config }) => config),
      },
    }),
    gateways: gatewaysOf(one),
    attachments: one.attachments.map(({ containerId, ifName, netns, args, written }) => ({
      containerId,
      ...(podOf({ args }) !== undefined && { pod: podOf({ args }) }),
      ifName,
      netns,
      ...(written && { since: written.toISOString() }),
    })),
  };
}

function gatewaysOf({ pools }: Known): string[] {
  return [
    ...new Set(pools.flatMap(({ sets }) => sets.flatMap((set) => set.map(({ gateway }) => formatAddress(gateway))))),
  ];
}

function inspectText(one: Known): string {
  const { name, list, configured, attachments, pools } = one;
  const paint = painter();
  const unconfigured = list ? "none any more: known by its attachments" : "none: known by its leases";
  const gateways = gatewaysOf(one);
  const attached = attachments.toSorted((a, b) => byName(nameOf(a), nameOf(b))).map((
    each,
  ) => [nameOf(each), each.ifName, each.netns || "-"]);
  const text = sections([
    ["file", [configured && list ? list.file : paint("yellow", unconfigured)]],
    ["version", list ? [list.version === "" ? "0.1.0" : list.version] : []],
    [
      "plugins",
      (list?.plugins ?? []).map(({ type, config, capabilities }) =>
        [type, ...settingsOf(config, capabilities)].join("  ")
      ),
    ],
    ["ranges", [
      ...usesOf(one).map(({ range, taken, total }) => `${range}  ${shareText(taken, total)} taken`),
      ...(configured ? pools.flatMap(({ trouble }) => trouble === "" ? [] : [paint("yellow", trouble)]) : []),
    ]],
    ["gateway", gateways.length === 0 ? [] : [gateways.join(" ")]],
    ["leases", pools.map(({ folder }) => folder)],
    ["attached", [
      attachments.length === 0 ? "nothing" : `${attachments.length}`,
      ...columns(attached).split("\n").slice(0, -1),
    ]],
  ], "  ");
  return `${paint("bold", oneLine(name))}\n${text}`;
}

/** Keys of a member that are its own, as `key=value`; what holds more than a value is only named. */
function settingsOf(config: JsonObject, capabilities: readonly string[]): string[] {
  const own = Object.entries(config).filter(([key]) => !["type", "name", "cniVersion", "capabilities"].includes(key));
  const settings = own.map(([key, value]) => {
    const type = key === "ipam" && isObject(value) ? lookup(value, "type") : undefined;
    if (typeof type === "string") return `ipam=${type}`;
    return typeof value === "object" && value !== null ? key : `${key}=${value}`;
  });
  return [...settings, ...capabilities.map((name) => `+${name}`)];
}
