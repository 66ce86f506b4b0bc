/**
 * `cnibox networks` and `cnibox inspect`: the networks of this node, one line each, and one of them with all that it
 * has.
 */
import { loadAll, type NetworkList } from "../cni/conflist.ts";
import { isObject, lookup } from "../cni/decode.ts";
import type { Cached } from "../cni/result_cache.ts";
import type { JsonObject } from "../cni/types.ts";
import { formatAddress } from "../net/cidr.ts";
import { brokenText, type CommandCall, status } from "./command.ts";
import { type Pool, pools, shareText, subnetsOf, useOf } from "./leases.ts";
import { byName, nameOf, podOf, unknownNetwork } from "./owner_names.ts";
import { attachmentsOf, type Folders, foldersOf, ifAllowed, note } from "./setup.ts";
import { knownLists } from "./survey.ts";
import { columns, jsonDocument, natural, oneLine, painter, say, sections, table, terminalWidth } from "./terminal.ts";

/** A network, with what the files of this node say of it. */
interface Known {
  readonly name: string;
  /** Undefined when only attachments or leases tell of it. */
  readonly list: NetworkList | undefined;
  /** Whether runtimes can attach to it. */
  readonly configured: boolean;
  /** Undefined where they may not be read. */
  readonly attachments: readonly Cached[] | undefined;
  readonly pools: readonly Pool[];
}

/** Everything that files tell of networks; what may not be read, or cannot be, is named on standard error. */
function knownNetworks(folders: Folders): Known[] {
  const { lists, broken } = loadAll(folders.conf);
  for (const error of broken) note(`not readable: ${brokenText(error)}`);
  const attachments = ifAllowed("attachments", () => attachmentsOf(folders), note);
  return knownOf(lists, attachments, ifAllowed("leases", () => pools(folders), note) ?? []);
}

/** What these say of networks, by name. */
export function knownOf(
  lists: readonly NetworkList[],
  attachments: readonly Cached[] | undefined,
  all: readonly Pool[],
): Known[] {
  return knownLists(lists, attachments ?? [], all).sort(([a], [b]) => natural(a, b)).map(([name, list]) => ({
    name,
    list,
    configured: lists.some((one) => one.name === name),
    attachments: attachments?.filter(({ network }) => network === name),
    pools: all.filter(({ network }) => network === name),
  }));
}

/** `cnibox networks` */
export function networks(call: CommandCall): number {
  const all = knownNetworks(foldersOf(call));
  if (call.is("quiet")) {
    say(all.map(({ name }) => `${oneLine(name)}\n`).join(""));
    return status.done;
  }
  const options = { headings: !call.is("no-headings"), whole: call.is("no-trunc") };
  say(call.is("json") ? jsonDocument({ networks: all.map(summaryOf) }) : networksText(all, options));
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
    subnetsOf(setsOf(one)).join(" ") || "-",
    usesOf(one).map(({ taken, total }) => shareText(taken, total)).join(", ") || "-",
    `${one.attachments?.length ?? "-"}`,
    one.configured
      ? one.list?.file.slice(one.list.file.lastIndexOf("/") + 1) ?? "-"
      : paint("yellow", "not configured"),
  ]);
  return table(TITLES, rows, { width: whole ? undefined : terminalWidth(), headings, dispensable: ["FILE"] });
}

const usesOf = (one: Known) => one.pools.flatMap(useOf);

const setsOf = ({ pools }: Known) => pools.flatMap(({ sets }) => sets);

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
    subnets: subnetsOf(setsOf(one)),
    ranges: usesOf(one).map(({ range, taken, total, blocks }) => ({
      range,
      taken,
      total: String(total),
      ...(blocks !== undefined && { blocks }),
    })),
    ...(attachments && { attachments: attachments.length }),
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
    attachments: one.attachments?.map((each) => {
      const { containerId, ifName, netns, written } = each;
      const pod = podOf(each);
      return {
        containerId,
        ...(pod !== undefined && { pod }),
        ifName,
        netns,
        ...(written && { since: written.toISOString() }),
      };
    }),
  };
}

function gatewaysOf(one: Known): string[] {
  return [...new Set(setsOf(one).flat().map(({ gateway }) => formatAddress(gateway)))];
}

function inspectText(one: Known): string {
  const { name, list, configured, attachments, pools } = one;
  const paint = painter();
  const unconfigured = list ? "none any more: known by its attachments" : "none: known by its leases";
  const gateways = gatewaysOf(one);
  const attached = (attachments ?? []).toSorted((a, b) => byName(nameOf(a), nameOf(b))).map((
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
      attachments === undefined ? "not known" : attachments.length === 0 ? "nothing" : `${attachments.length}`,
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
