/** `cnibox show`: the networks of this node and what is attached to them, with what disagrees. */
import { isObject } from "../cni/decode.ts";
import { size } from "../ipam/range.ts";
import type { Status } from "../node/state.ts";
import { canonicalAddress } from "../net/cidr.ts";
import { CliError, type CommandCall, didYouMean, status, usageError } from "./command.ts";
import { shareText, subnetsOf } from "./leases.ts";
import { portText } from "./network.ts";
import { beginsId, nameOf, podOf, unknownContainer, unknownNetwork } from "./owner_names.ts";
import { type Folders, foldersOf, note } from "./setup.ts";
import { agentStatus, peersOf } from "./peers.ts";
import { groupOrphans, groupProblems, LIST, troubleText } from "./problem_groups.ts";
import { type NetworkView, ofNetwork, type Problem, type Survey, survey, type View } from "./survey.ts";
import {
  ageOf,
  CLEAR,
  hanging,
  jsonDocument,
  oneLine,
  type Paint,
  painter,
  say,
  table,
  terminalWidth,
} from "./terminal.ts";

/** How often `--watch` looks again, in milliseconds. */
const WATCH_MS = 2_000;

/** `cnibox show` */
export async function show(call: CommandCall): Promise<number> {
  const folders = foldersOf(call);
  if (!call.is("watch")) {
    say(await once(call, folders));
    return status.done;
  }
  for (;;) {
    const text = await once(call, folders);
    // Home, the new picture, then whatever was below the old one.
    say(Deno.stdout.isTerminal() ? CLEAR + text : text);
    await new Promise((resolve) => setTimeout(resolve, WATCH_MS));
  }
}

async function once(call: CommandCall, folders: Folders): Promise<string> {
  const all = await survey(folders);
  const [what, network] = [call.arg("WHAT"), call.value("network")];
  const seen = network === undefined ? all : ofNetwork(all, network);
  if (!seen) throw unknownNetwork(network ?? "", all.networks.map(({ name }) => name));
  // Other nodes are no part of one network of this one, nor of a selection.
  const whole = network === undefined && !call.is("problems") && call.value("pod") === undefined;
  if (what === undefined) return listed(call, seen, whole ? agentStatus() : undefined);
  const own = network === undefined ? ofNetwork(all, what) : undefined;
  if (own) return listed(call, own);
  const views = seen.views.filter((view) => isMeant(what, view));
  if (views.length === 0) throw unknownThing(what, seen);
  if (call.is("quiet") || call.value("format") !== undefined) return listed(call, { ...seen, views });
  return await (await import("./show_one.ts")).detailsText(call, seen, views);
}

/** Is this attachment what a word on the command line names: an ID or its beginning, a pod, an address? */
function isMeant(word: string, view: View): boolean {
  const pod = podOfView(view);
  const ip = canonicalAddress(word.split("/")[0] ?? "");
  if (ip !== undefined) {
    return view.addresses.some((address) => canonicalAddress(address.split("/")[0] ?? "") === ip);
  }
  return view.containerId === word || pod === word || pod?.split("/")[1] === word ||
    (word.length >= 4 && beginsId(word, view.containerId));
}

function unknownThing(word: string, seen: Survey): CliError {
  if (!seen.seesAttachments) return unseenThing(word, seen);
  const { networks, views } = seen;
  const names = [
    ...networks.map(({ name }) => name),
    ...views.map(nameOfView).flatMap((name) => [name, ...name.split("/").slice(1)]),
    ...views.flatMap(({ addresses }) => addresses),
  ];
  return new CliError(`there is no network, container, pod or address "${word}" on this node`, status.unknown, [
    ...didYouMean(word, names),
    "cnibox show lists those that there are",
  ]);
}

/** What this user cannot see may be there. */
function unseenThing(word: string, { blind }: Survey): CliError {
  return new CliError(`"${word}" is not among what can be seen without root`, status.noRights, blind);
}

/** The pod that an attachment is for. */
export function podOfView({ cached }: View): string | undefined {
  return cached && podOf(cached);
}

/** What people call the container of an attachment. */
export const nameOfView = ({ containerId, cached }: View): string => nameOf({ ...cached, containerId });

/** The survey as the flags want it, in the form that they ask for. */
function listed(call: CommandCall, all: Survey, nodes?: Status): string {
  const seen = filtered(call, all);
  const format = call.value("format");
  if (call.is("quiet")) {
    return [...new Set(seen.views.map(({ containerId }) => containerId))].map((id) => `${oneLine(id)}\n`).join("");
  }
  if (format !== undefined && format !== "json") return seen.views.map((view) => formatted(format, view)).join("");
  if (call.is("json") || format === "json") return jsonDocument(jsonOf(seen, nodes));
  return textOf(call, seen, nodes);
}

function filtered(call: CommandCall, seen: Survey): Survey {
  const [pod, broken] = [call.value("pod"), call.is("problems")];
  const views = seen.views.filter((view) =>
    (pod === undefined || podOfView(view) === pod || podOfView(view)?.split("/")[1] === pod) &&
    (!broken || !["ok", "unknown"].includes(healthOf(view)))
  );
  if (pod !== undefined && views.length === 0 && !broken) {
    if (!seen.seesAttachments) throw unseenThing(pod, seen);
    throw unknownContainer(pod, seen.views.flatMap(({ cached }) => cached ?? []), { isPod: true });
  }
  const all = pod === undefined && !broken;
  return {
    ...seen,
    views,
    networks: all ? seen.networks : seen.networks.filter(({ name }) => views.some(({ network }) => network === name)),
    orphans: pod === undefined ? seen.orphans : [],
  };
}

/** `{{.containerId}} {{.addresses}}`: the keys of the JSON, lists with blanks between. */
function formatted(format: string, view: View): string {
  const values = viewJson(view);
  const text = format.replace(/\\t/g, "\t").replace(/\{\{\s*\.([\w.]+)\s*\}\}/g, (_, path: string) => {
    const [first = "", ...rest] = path.split(".");
    if (!KEYS.includes(first)) throw usageError(`--format: there is no "${first}"`, `there are: ${KEYS.join(", ")}`);
    let value: unknown = values[first];
    for (const key of rest) value = isObject(value) ? value[key] : undefined;
    return plainText(value);
  });
  return `${text.split("\t").map(oneLine).join("\t")}\n`;
}

function plainText(value: unknown): string {
  if (value === undefined || value === null) return "";
  if (Array.isArray(value)) return value.map(plainText).join(" ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** What `--json` prints. */
export function jsonOf({ networks, views, orphans, blind }: Survey, nodes?: Status): Readonly<Record<string, unknown>> {
  return {
    networks: networks.map(({ name, list, configured, bridge, sets }) => ({
      network: name,
      configured,
      ...(list && { cniVersion: list.version, plugins: list.plugins.map(({ type }) => type), file: list.file }),
      ...(bridge !== "" && { bridge }),
      subnets: subnetsOf(sets),
      attachments: views.filter((view) => view.network === name).map(viewJson),
    })),
    orphans,
    blind,
    ...(nodes && {
      nodes: { backend: nodes.backend, store: nodes.store, reconciled: nodes.reconciled, others: nodes.nodes },
    }),
  };
}

/** Keys of {@linkcode viewJson}, for `--format`. */
const KEYS = [
  ...["network", "containerId", "pod", "ifName", "netns", "state", "namespace", "interface", "hostInterface", "bridge"],
  ...["addresses", "leases", "ports", "since", "cached", "problems"],
];

/** An attachment for scripts. */
export function viewJson(view: View): Readonly<Record<string, unknown>> {
  const pod = podOfView(view);
  const { network, containerId, ifName, netns } = view;
  const { state, inside, outside, bridge, addresses, leases, ports, since, problems, cached } = view;
  return {
    network,
    containerId,
    ...(pod !== undefined && { pod }),
    ifName,
    netns,
    state: healthOf(view),
    namespace: state,
    ...(inside &&
      { interface: { index: inside.ifindex, mac: inside.address, mtu: inside.mtu, up: inside.flags.includes("UP") } }),
    ...(outside && { hostInterface: outside.ifname }),
    ...(bridge !== "" && { bridge }),
    addresses,
    leases,
    ports,
    ...(since && { since: since.toISOString() }),
    cached: cached !== undefined,
    problems,
  };
}

/** One word for an attachment. */
export function healthOf({ state, problems }: View): "ok" | "broken" | "gone" | "unknown" {
  if (state === "gone") return "gone";
  if (real(problems).length > 0) return "broken";
  return state === "unknown" ? "unknown" : "ok";
}

/** Problems that somebody should do something about. */
export function real(problems: readonly Problem[]): readonly Problem[] {
  return problems.filter(({ code }) => code !== "not-cached" && code !== "not-examined");
}

/** How the list is shown. */
export interface ListOptions {
  /** Only what has problems, and each of them. */
  readonly problems?: boolean;
  /** Whole IDs, and cells that are not cut. */
  readonly whole?: boolean;
  readonly headings?: boolean;
}

function textOf(call: CommandCall, seen: Survey, nodes: Status | undefined): string {
  for (const text of seen.blind) note(text);
  return listText(seen, {
    problems: call.is("problems"),
    whole: call.is("no-trunc"),
    headings: !call.is("no-headings"),
  }) + (nodes ? `\n${nodesText(nodes, painter())}` : "");
}

/** Every network with its attachments, and what is wrong. */
export function listText(seen: Survey, options: ListOptions = {}): string {
  const paint = painter();
  const parts = seen.networks.map((network) => networkText(network, seen, options));
  if (parts.length + (options.problems ? seen.orphans.length : 0) === 0) {
    parts.push(options.problems ? "no problems\n" : "no networks: nothing is configured, and nothing is attached\n");
  }
  const orphans = options.problems ? seen.orphans.map((one) => ({ ...one, text: `${one.name}: ${one.text}` })) : [];
  const told = options.problems ? orphans : groupOrphans(seen.orphans);
  if (told.length > 0) parts.push(told.map((one) => troubleText(one, paint("yellow", "!"), "")).join(""));
  return parts.join("\n");
}

const TITLES = ["CONTAINER", "IF", "ADDRESS", "PORTS", "HOST END", "NAMESPACE", "AGE", "STATE"];
/** What a narrow terminal does without. */
const DISPENSABLE = ["NAMESPACE", "HOST END", "AGE", "PORTS"];

/** The other nodes and the ways to them. */
function nodesText(nodes: Status, paint: Paint): string {
  const { backend, store, reconciled } = nodes;
  const state = store.state === "connected" ? "" : `${store.name} away for ${ageOf(new Date(store.since))}`;
  const facts = [backend, state, `seen ${ageOf(new Date(reconciled))} ago`].filter((one) => one !== "");
  const head = `${paint("bold", "other nodes")}  ${paint("dim", oneLine(facts.join(" · ")))}\n`;
  const rows = peersOf(nodes).map(({ node, subnets, publicIPs, ways }) => [
    node,
    subnets.join(" "),
    publicIPs.join(" "),
    ways.length > 0 ? ways.join(", ") : paint("red", "no way"),
  ]);
  return head +
    (rows.length === 0 ? "  none\n" : table(["NODE", "SUBNETS", "ADDRESSES", "WAY"], rows, { indent: "  " }));
}

function networkText(network: NetworkView, seen: Survey, { problems, whole, headings = true }: ListOptions): string {
  const paint = painter();
  const { name, list, configured, bridge, sets } = network;
  const own = seen.views.filter((view) => view.network === name);
  const total = sets.reduce((sum, set) => sum + size(set), 0n);
  const taken = seen.leases.filter((lease) => lease.network === name).length;
  const facts = [
    ...(list ? [list.plugins.map(({ type }) => type).join(", ")] : []),
    // What was attached by a configuration has been configured once, here or elsewhere.
    ...(configured ? [] : [list ? "not configured any more" : "not configured"]),
    ...(bridge === "" ? [] : [`bridge ${bridge}`]),
    ...subnetsOf(sets),
    ...(total > 0n ? [`${shareText(taken, total)} addresses`] : []),
  ];
  // Lines break between facts alone.
  const text = oneLine(facts.map((fact) => fact.replaceAll(" ", FIRM)).join(" · "));
  const head = hanging(`${paint("bold", oneLine(name))}  `, paint("dim", text)).join("\n").replaceAll(FIRM, " ");
  if (own.length === 0) {
    return `${head}\n  ${seen.seesAttachments ? "nothing attached" : "attachments are not known"}\n`;
  }
  const rest = table(TITLES, own.map((view) => rowOf(view, { whole, bridge, paint })), {
    width: whole ? undefined : terminalWidth(),
    indent: "  ",
    headings,
    dispensable: DISPENSABLE,
  });
  return `${head}\n${rest}${problemsText(own, problems)}`;
}

/** A blank at which no line breaks. */
const FIRM = "\u00a0";

/** So many attachments with one problem are told one by one also where nobody asked for each. */
const FEW = 3;

function problemsText(views: readonly View[], each: boolean | undefined): string {
  const mark = painter()("red", "!");
  const groups = groupProblems(views, ({ problems }) => real(problems));
  return groups.map(({ text, fix, cases }) => {
    const single = cases.flatMap(({ view, problems }) =>
      problems.map((one) => ({ text: `${nameOfView(view)} ${view.ifName}: ${one.text}`, fix: one.fix }))
    );
    if (cases.length <= FEW) return single.map((one) => troubleText(one, mark, "  ")).join("");
    const isList = fix === LIST;
    const head = troubleText({ text, fix: each && isList ? "" : fix }, mark, "  ");
    // One command for all need not be repeated.
    const below = single.map((one) => troubleText({ ...one, fix: isList ? one.fix : "" }, "-", "    "));
    return each ? head + below.join("") : head;
  }).join("");
}

function rowOf(
  view: View,
  { whole, bridge, paint }: { whole: boolean | undefined; bridge: string; paint: Paint },
): string[] {
  const { containerId, ifName, addresses, ports, outside, netns, since } = view;
  // The bridge of the network is in the line above the table.
  const on = view.bridge === bridge ? "" : view.bridge;
  const end = [outside?.ifname ?? "", on && outside ? `on ${on}` : on].filter((part) => part !== "").join(" ");
  return [
    whole ? podOfView(view) ?? containerId : nameOfView(view),
    ifName || "-",
    addresses.join(" ") || "-",
    ports.map(portText).join(" ") || "-",
    end || "-",
    netns || "-",
    since ? ageOf(since) : "-",
    stateText(view, paint),
  ];
}

/** Its health in a colour. */
export function stateText(view: View, paint: Paint): string {
  const health = healthOf(view);
  const colour = health === "ok" ? "green" : health === "unknown" ? "yellow" : "red";
  return paint(colour, health);
}
