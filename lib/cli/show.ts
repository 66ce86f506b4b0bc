/** `cnibox show`: the networks of this node and what is attached to them, with what disagrees. */
import { formatPrefix } from "../net/cidr.ts";
import { size } from "../ipam/range.ts";
import type { Status } from "../node/state.ts";
import { CliError, type CommandCall, status } from "./command.ts";
import { portText } from "./network.ts";
import { foldersOf, note } from "./setup.ts";
import { agentStatus, peersOf } from "./peers.ts";
import { type NetworkView, type Problem, type Survey, survey, type View } from "./survey.ts";
import { ageOf, CLEAR, columns, jsonText, oneLine, type Paint, painter, say } from "./terminal.ts";

/** How often `--watch` looks again, in milliseconds. */
const WATCH_MS = 2_000;

/** `cnibox show` */
export async function show(call: CommandCall): Promise<number> {
  const folders = foldersOf(call);
  const network = call.arg("NETWORK");
  const once = async (): Promise<string> => {
    const seen = await survey(folders, { network });
    if (network !== undefined && seen.networks.length === 0) {
      throw new CliError(`there is no network "${network}" on this node`, status.unknown, [
        `cnibox show lists those that there are`,
      ]);
    }
    // Other nodes are no part of one network of this one.
    const nodes = network === undefined ? agentStatus() : undefined;
    return call.is("json") ? jsonText(jsonOf(seen, nodes)) : textOf(seen, nodes);
  };
  if (!call.is("watch")) {
    say(await once());
    return status.done;
  }
  for (;;) {
    const text = await once();
    // Home, the new picture, then whatever was below the old one.
    say(Deno.stdout.isTerminal() ? CLEAR + text : text);
    await new Promise((resolve) => setTimeout(resolve, WATCH_MS));
  }
}

/** What `--json` prints. */
export function jsonOf({ networks, views, orphans, blind }: Survey, nodes?: Status): unknown {
  return {
    networks: networks.map(({ name, list, bridge, sets }) => ({
      name,
      ...(list && { cniVersion: list.version, plugins: list.plugins.map(({ type }) => type), file: list.file }),
      ...(bridge !== "" && { bridge }),
      subnets: subnetsOf({ sets }),
      attachments: views.filter((view) => view.network === name).map(viewJson),
    })),
    orphans,
    blind,
    ...(nodes && {
      nodes: { backend: nodes.backend, store: nodes.store, reconciled: nodes.reconciled, others: nodes.nodes },
    }),
  };
}

function viewJson(view: View): unknown {
  const {
    containerId,
    ifName,
    netns,
    state,
    inside,
    outside,
    bridge,
    addresses,
    leases,
    ports,
    since,
    problems,
    cached,
  } = view;
  return {
    containerId,
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

function subnetsOf({ sets }: Pick<NetworkView, "sets">): string[] {
  return sets.flatMap((set) => set.map(({ subnet }) => formatPrefix(subnet)));
}

function textOf(seen: Survey, nodes: Status | undefined): string {
  const paint = painter();
  const parts = seen.networks.map((network) => networkText(network, seen, paint));
  if (parts.length === 0) parts.push("no networks: nothing is configured, and nothing is attached\n");
  for (const { name, text, mend } of seen.orphans) {
    parts.push(`${paint("yellow", "!")} ${oneLine(`${name}: ${text}`)}\n    ${paint("dim", oneLine(mend))}\n`);
  }
  if (nodes) parts.push(nodesText(nodes, paint));
  for (const text of seen.blind) note(text);
  return parts.join("\n");
}

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
  const titles = ["NODE", "SUBNETS", "ADDRESSES", "WAY"].map((title) => paint("dim", title));
  return head + (rows.length === 0 ? "  none\n" : columns([titles, ...rows], "  "));
}

function networkText(network: NetworkView, { views, leases }: Survey, paint: Paint): string {
  const { name, list, bridge, sets } = network;
  const own = views.filter((view) => view.network === name);
  const total = sets.reduce((sum, set) => sum + size(set), 0n);
  const taken = leases.filter((lease) => lease.network === name).length;
  const facts = [
    list ? list.plugins.map(({ type }) => type).join(", ") : "not configured any more",
    ...(bridge === "" ? [] : [`bridge ${bridge}`]),
    ...subnetsOf({ sets }),
    // Nobody runs out of the addresses of an IPv6 network.
    ...(total > 0n ? [total < 1n << 32n ? `${taken} of ${total} addresses taken` : `${taken} addresses taken`] : []),
  ];
  const head = `${paint("bold", oneLine(name))}  ${paint("dim", oneLine(facts.join(" · ")))}\n`;
  if (own.length === 0) return `${head}  nothing attached\n`;
  const rows = own.map((view) => [...rowOf(view), stateText(view, paint)]);
  const titles = ["CONTAINER", "IF", "ADDRESS", "PORTS", "HOST END", "NAMESPACE", "AGE", "STATE"].map((title) =>
    paint("dim", title)
  );
  const table = columns([titles, ...rows], "  ");
  const problems = own.flatMap((view) =>
    real(view.problems).map(({ text, mend }) =>
      `  ${paint("red", "!")} ${oneLine(`${shortId(view.containerId)} ${view.ifName}: ${text}`)}${
        mend ? `\n      ${paint("dim", oneLine(mend))}` : ""
      }\n`
    )
  );
  return head + table + problems.join("");
}

/** IDs are 64 digits long; the first twelve tell them apart. */
export function shortId(id: string): string {
  return /^[\da-f]{32,}$/.test(id) ? id.slice(0, 12) : id;
}

function rowOf({ containerId, ifName, addresses, ports, outside, bridge, netns, since }: View): string[] {
  const end = [outside?.ifname ?? "", bridge && outside ? `on ${bridge}` : bridge].filter((part) => part !== "").join(
    " ",
  );
  return [
    shortId(containerId),
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
