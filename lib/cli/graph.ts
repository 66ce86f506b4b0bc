/**
 * `cnibox graph`: a picture of the node, as a tree for a terminal, for Mermaid, for Graphviz, or as an SVG that stands
 * alone.
 */
import { defaultLinks } from "../kernel/default_links.ts";
import { systemRun } from "../kernel/run.ts";
import { type CommandCall, status } from "./command.ts";
import { type Bridge, type Container, type Drawing, drawingOf, type Port } from "./drawing.ts";
import { unknownNetwork } from "./owner_names.ts";
import { agentStatus, peersOf } from "./peers.ts";
import { foldersOf, note } from "./setup.ts";
import { ofNetwork, survey } from "./survey.ts";
import { cut, oneLine, type Paint, painter, say, terminalWidth, widthOf } from "./terminal.ts";

/** `cnibox graph` */
export async function graph(call: CommandCall): Promise<number> {
  const [folders, network] = [foldersOf(call), call.arg("NETWORK")];
  const all = await survey(folders);
  const seen = network === undefined ? all : ofNetwork(all, network);
  if (!seen) throw unknownNetwork(network ?? "", all.networks.map(({ name }) => name));
  for (const text of seen.blind) note(text);
  const peers = network === undefined ? peersOf(agentStatus()) : [];
  for (const { node, devices } of peers) if (devices.length === 0) note(`no way leads to node ${node}`);
  const links = await Promise.all(([4, 6] as const).map((family) => defaultLinks(systemRun(), family).catch(() => [])));
  const drawing = drawingOf(seen, { host: Deno.hostname(), defaults: links.flat(), peers });
  switch (call.value("format") ?? "tree") {
    case "mermaid":
      say(mermaidOf(drawing));
      break;
    case "dot":
      say(dotOf(drawing));
      break;
    case "svg":
      say((await import("./graph_svg.ts")).svgOf(drawing));
      break;
    default:
      say(treeOf(drawing, painter()));
  }
  return status.done;
}

/** Ports of all containers that lead to one place. */
function portsTo(drawing: Drawing, to: string): { container: Container; port: Port }[] {
  return drawing.containers.flatMap((container) =>
    container.ports.filter((port) => port.to === to).map((port) => ({ container, port }))
  );
}

const filled = (parts: readonly string[]) => parts.filter((part) => part !== "");
const join = (...parts: readonly string[]) => filled(parts).join("  ");

/** What stands in front of a container. */
const BRANCH = "│  ├─ ";

/** For a terminal. */
export function treeOf(drawing: Drawing, paint: Paint): string {
  const { host, uplinks, bridges } = drawing;
  const room = (terminalWidth() ?? Infinity) - BRANCH.length;
  const leaf = ({ container, port }: { container: Container; port: Port }) => {
    const good = port.health === "ok";
    const trouble = good ? "" : paint("red", port.problems[0] ?? port.health);
    const published = port.published.map((text) => paint("magenta", text)).join(" ");
    const parts = [
      `${paint("bold", port.name)} of ${paint(good ? "green" : "red", container.id)}`,
      port.addresses.join(" "),
      ...directText(port),
      published,
      trouble,
    ];
    const mark = good ? "" : paint("red", "! ");
    const whole = `${mark}${port.veth === "" ? "" : `${port.veth} ── `}${join(...parts)}`;
    // The rest says more than the end on the host does.
    return widthOf(whole) > room ? `${mark}${join(...parts)}` : whole;
  };
  const branches = [
    ...uplinks.map(({ name, kind, addresses, isDefault, up, peers }) => ({
      text: join(
        paint("bold", name),
        kind,
        addresses.join(" "),
        isDefault ? "default route" : "",
        up ? "" : paint("yellow", "down"),
      ),
      below: [...portsTo(drawing, name).map(leaf), ...nodes(peers)],
    })),
    ...bridges.map((bridge) => ({
      text: join(
        paint("bold", bridge.name),
        "bridge",
        bridge.addresses.join(" "),
        networksText(bridge),
        bridge.masquerade ? "masquerade" : "",
        stateOf(bridge, paint),
      ),
      below: portsTo(drawing, bridge.name).map(leaf),
    })),
    ...portsTo(drawing, "").map((one) => ({ text: leaf(one), below: [] })),
  ];
  const lines = [paint("bold", host)];
  branches.forEach(({ text, below }, index) => {
    const last = index === branches.length - 1;
    lines.push(`${last ? "└─" : "├─"} ${text}`);
    below.forEach((line, at) => lines.push(`${last ? "  " : "│ "} ${at === below.length - 1 ? "└─" : "├─"} ${line}`));
  });
  return `${lines.map((line) => cut(oneLine(line))).join("\n")}\n`;
}

/** What a bridge says of all that hang on it. */
const directText = ({ direct, network, masquerade }: Port): string[] => [
  ...(direct ? [`network ${network}`] : []),
  ...(masquerade ? ["masquerade"] : []),
];

function networksText({ networks }: Bridge): string {
  return networks.length === 0 ? "" : `network ${networks.join(", ")}`;
}

function stateOf({ exists, up }: Bridge, paint: Paint): string {
  return exists ? (up ? "" : paint("yellow", "down")) : paint("dim", "not made yet");
}

const nodes = (peers: readonly string[]) => peers.map((text) => `node ${text}`);

const idOf = (...parts: readonly string[]) => parts.join("_").replace(/[^\w]/g, "_");

/** Mermaid's own way to write what means something to it. */
function mermaidText(text: string): string {
  const names: Readonly<Record<string, string>> = { '"': "#quot;", "<": "#lt;", ">": "#gt;", "#": "#35;" };
  return oneLine(text).replace(/["<>#]/g, (character) => names[character] ?? "");
}

/** A drawing as boxes and lines, for the languages that have such. */
function pictureOf({ uplinks, bridges, containers }: Drawing) {
  const places = [
    ...uplinks.map(({ name }) => [name, idOf("up", name)] as const),
    ...bridges.map(({ name }) => [name, idOf("br", name)] as const),
  ];
  const ends = new Map(places);
  const defaults = uplinks.filter(({ isDefault }) => isDefault);
  return {
    uplinks: uplinks.map(({ name, addresses, isDefault, peers }) => ({
      id: idOf("up", name),
      text: [name, ...addresses, isDefault ? "default route" : "", ...nodes(peers)],
    })),
    bridges: bridges.map((bridge) => ({
      id: idOf("br", bridge.name),
      text: [bridge.name, ...bridge.addresses, networksText(bridge)],
    })),
    containers: containers.map(({ id, ports }, index) => ({
      id: `c${index}`,
      text: [id, ...ports.flatMap((port) => [`${port.name} ${port.addresses.join(" ")}`, ...port.published])],
      bad: ports.some(({ health }) => health !== "ok"),
      lines: ports.map((port) => ({
        from: ends.get(port.to) ?? "host_stack",
        facts: [port.veth, ...directText(port)],
        /** "" where there is none. */
        trouble: port.health === "ok" ? "" : port.problems[0] ?? port.health,
      })),
    })),
    masquerades: bridges.filter(({ masquerade }) => masquerade).flatMap(({ name }) =>
      defaults.map((uplink) => ({ from: idOf("br", name), to: idOf("up", uplink.name) }))
    ),
  };
}

/** For Mermaid, which many viewers of Markdown draw. */
export function mermaidOf(drawing: Drawing): string {
  const { uplinks, bridges, containers, masquerades } = pictureOf(drawing);
  const quoted = (...lines: readonly string[]) => `"${filled(lines).map(mermaidText).join("<br/>")}"`;
  const out = [
    "flowchart LR",
    `  subgraph host[${quoted(drawing.host)}]`,
    ...uplinks.map(({ id, text }) => `    ${id}[${quoted(...text)}]`),
    ...bridges.map(({ id, text }) => `    ${id}{{${quoted(...text)}}}`),
    `    host_stack((${quoted("host")}))`,
    "  end",
    ...containers.map(({ id, text, bad }) => `  ${id}[${quoted(...text)}]${bad ? ":::broken" : ""}`),
    ...containers.flatMap(({ id, lines }) =>
      lines.map(({ from, facts, trouble }) => {
        const label = filled([filled(facts).join(", "), trouble]).join(": ");
        return `  ${from} ${trouble === "" ? "---" : "-.-"}${label === "" ? "" : `|${quoted(label)}|`} ${id}`;
      })
    ),
    ...masquerades.map(({ from, to }) => `  ${from} -. masquerade .-> ${to}`),
    "  classDef broken stroke:#c0392b,stroke-width:2px",
  ];
  return `${out.join("\n")}\n`;
}

/** For Graphviz. */
export function dotOf(drawing: Drawing): string {
  const { uplinks, bridges, containers, masquerades } = pictureOf(drawing);
  const quoted = (...lines: readonly string[]) =>
    `"${filled(lines).map((line) => oneLine(line).replace(/["\\]/g, "\\$&")).join("\\n")}"`;
  const out = [
    "graph cnibox {",
    "  rankdir=LR;",
    '  node [shape=box, style=rounded, fontname="Helvetica"];',
    '  edge [fontname="Helvetica", fontsize=10];',
    `  subgraph cluster_host { label=${quoted(drawing.host)};`,
    "    host_stack [label=host, shape=circle];",
    ...uplinks.map(({ id, text }) => `    ${id} [label=${quoted(...text)}];`),
    ...bridges.map(({ id, text }) => `    ${id} [label=${quoted(...text)}, shape=hexagon];`),
    "  }",
    ...containers.flatMap(({ id, text, bad, lines }) => [
      `  ${id} [label=${quoted(...text)}${bad ? ", color=red" : ""}];`,
      ...lines.map(({ from, facts, trouble }) => {
        const look = trouble === "" ? "" : ", style=dashed, color=red";
        return `  ${from} -- ${id} [label=${quoted(...facts, trouble)}${look}];`;
      }),
    ]),
    ...masquerades.map(({ from, to }) => `  ${from} -- ${to} [label=masquerade, style=dotted, dir=forward];`),
    "}",
  ];
  return `${out.join("\n")}\n`;
}
