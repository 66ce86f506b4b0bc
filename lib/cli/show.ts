/** `cnibox show`: the networks of this node and what is attached to them, with what disagrees. */
import { isObject } from "../cni/decode.ts";
import { size } from "../ipam/range.ts";
import type { Status } from "../node/state.ts";
import { canonicalAddress } from "../net/cidr.ts";
import { CliError, type CommandCall, didYouMean, status, usageError } from "./command.ts";
import { shareText, subnetsOf } from "./leases.ts";
import { portText } from "./network.ts";
import { podOf, shortId, unknownContainer } from "./owner_names.ts";
import { type Folders, foldersOf, note } from "./setup.ts";
import { agentStatus, peersOf } from "./peers.ts";
import { type NetworkView, type Problem, type Survey, survey, surveyOf, type View } from "./survey.ts";
import {
  ageOf,
  CLEAR,
  jsonDocument,
  natural,
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
  const [what, network] = [call.arg("WHAT"), call.value("network")];
  if (what !== undefined && network === undefined) {
    const seen = await survey(folders, { network: what });
    if (seen.networks.length > 0) return listed(call, seen);
  }
  const seen = await surveyOf(folders, network);
  // Other nodes are no part of one network of this one, nor of a selection.
  const whole = network === undefined && !call.is("problems") && call.value("pod") === undefined;
  if (what === undefined) return listed(call, seen, whole ? agentStatus() : undefined);
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
    (word.length >= 4 && view.containerId.startsWith(word));
}

function unknownThing(word: string, { networks, views }: Survey): CliError {
  const names = [
    ...networks.map(({ name }) => name),
    ...views.map(nameOf),
    ...views.flatMap(({ addresses }) => addresses),
  ];
  return new CliError(`there is no network, container, pod or address "${word}" on this node`, status.unknown, [
    ...didYouMean(word, names),
    "cnibox show lists those that there are",
  ]);
}

/** The pod that an attachment is for. */
export function podOfView({ cached }: View): string | undefined {
  return cached && podOf(cached);
}

/** What people call the container: its pod, else its ID as far as it is needed. */
export function nameOf(view: View): string {
  return podOfView(view) ?? shortId(view.containerId);
}

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
  ).sort((a, b) => natural(nameOf(a), nameOf(b)) || natural(a.ifName, b.ifName));
  if (pod !== undefined && views.length === 0 && !broken) {
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
    networks: networks.map(({ name, list, bridge, sets }) => ({
      network: name,
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

function textOf(call: CommandCall, seen: Survey, nodes: Status | undefined): string {
  const paint = painter();
  const parts = seen.networks.map((network) => networkText(call, network, { seen, paint }));
  if (parts.length === 0) {
    parts.push(
      call.is("problems") ? "no problems\n" : "no networks: nothing is configured, and nothing is attached\n",
    );
  }
  for (const { name, text, fix } of seen.orphans) {
    parts.push(`${paint("yellow", "!")} ${oneLine(`${name}: ${text}`)}\n    ${paint("dim", oneLine(fix))}\n`);
  }
  if (nodes) parts.push(nodesText(nodes, paint));
  for (const text of seen.blind) note(text);
  return parts.join("\n");
}

const TITLES = ["CONTAINER", "IF", "ADDRESS", "PORTS", "HOST END", "NAMESPACE", "AGE", "STATE"];

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

function networkText(call: CommandCall, network: NetworkView, { seen, paint }: { seen: Survey; paint: Paint }): string {
  const { name, list, bridge, sets } = network;
  const own = seen.views.filter((view) => view.network === name);
  const total = sets.reduce((sum, set) => sum + size(set), 0n);
  const taken = seen.leases.filter((lease) => lease.network === name).length;
  const facts = [
    list ? list.plugins.map(({ type }) => type).join(", ") : "not configured any more",
    ...(bridge === "" ? [] : [`bridge ${bridge}`]),
    ...subnetsOf(sets),
    ...(total > 0n ? [`${shareText(taken, total)} addresses taken`] : []),
  ];
  const head = `${paint("bold", oneLine(name))}  ${paint("dim", oneLine(facts.join(" · ")))}\n`;
  if (own.length === 0) return `${head}  nothing attached\n`;
  const whole = call.is("no-trunc");
  const rows = own.map((view) => [...rowOf(view, whole), stateText(view, paint)]);
  const width = whole ? undefined : terminalWidth();
  const rest = table(call.is("no-headings") ? [] : TITLES, rows, { width, indent: "  " });
  const problems = own.flatMap((view) =>
    real(view.problems).map(({ text, fix }) =>
      `  ${paint("red", "!")} ${oneLine(`${nameOf(view)} ${view.ifName}: ${text}`)}${
        fix ? `\n      ${paint("dim", oneLine(fix))}` : ""
      }\n`
    )
  );
  return head + rest + problems.join("");
}

function rowOf(view: View, whole: boolean): string[] {
  const { containerId, ifName, addresses, ports, outside, bridge, netns, since } = view;
  const end = [outside?.ifname ?? "", bridge && outside ? `on ${bridge}` : bridge].filter((part) => part !== "").join(
    " ",
  );
  return [
    whole ? podOfView(view) ?? containerId : nameOf(view),
    ifName || "-",
    addresses.join(" ") || "-",
    ports.map(portText).join(" ") || "-",
    end || "-",
    netns || "-",
    since ? ageOf(since) : "-",
  ];
}

function stateText(view: View, paint: Paint): string {
  const health = healthOf(view);
  const colour = health === "ok" ? "green" : health === "unknown" ? "yellow" : "red";
  return paint(colour, health === "gone" ? "namespace gone" : health);
}
