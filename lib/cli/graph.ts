/**
 * `cnibox graph`: a picture of the node, as a tree for a terminal, for Mermaid, for Graphviz, or as an SVG that stands
 * alone.
 */
import type { RouteEntry } from "../kernel/ip.ts";
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
  const drawing = drawingOf(seen, { host: Deno.hostname(), defaults: await defaultLinks(), peers });
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

async function defaultLinks(): Promise<string[]> {
  const host = systemRun();
  const found = await Promise.all(["-4", "-6"].map(async (family) => {
    const { code, stdout } = await host({ argv: ["ip", "-j", family, "route", "show", "default"] });
    return code === 0 ? (JSON.parse(stdout || "[]") as RouteEntry[]).flatMap(({ dev }) => dev ?? []) : [];
  }));
  return [...new Set(found.flat())];
}

/** Ports of all containers that lead to one place. */
function portsTo(drawing: Drawing, to: string): { container: Container; port: Port }[] {
  return drawing.containers.flatMap((container) =>
    container.ports.filter((port) => port.to === to).map((port) => ({ container, port }))
  );
}

const join = (...parts: readonly string[]) => parts.filter((part) => part !== "").join("  ");

/** What stands in front of a container. */
const BRANCH = "│  ├─ ";

/** For a terminal. */
export function treeOf(drawing: Drawing, paint: Paint): string {
  const { host, uplinks, bridges } = drawing;
  interface Branch {
    readonly text: string;
    readonly below: readonly string[];
  }
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
  const branches: Branch[] = [
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

/** For Mermaid, which many viewers of Markdown draw. */
export function mermaidOf(drawing: Drawing): string {
  const { host, uplinks, bridges, containers } = drawing;
  const quoted = (...lines: readonly string[]) =>
    `"${lines.filter((line) => line !== "").map(mermaidText).join("<br/>")}"`;
  const out = ["flowchart LR", `  subgraph host[${quoted(host)}]`];
  for (const { name, addresses, isDefault, peers } of uplinks) {
    out.push(
      `    ${idOf("up", name)}[${quoted(name, ...addresses, isDefault ? "default route" : "", ...nodes(peers))}]`,
    );
  }
  for (const bridge of bridges) {
    out.push(`    ${idOf("br", bridge.name)}{{${quoted(bridge.name, ...bridge.addresses, networksText(bridge))}}}`);
  }
  out.push(`    host_stack((${quoted("host")}))`, "  end");
  containers.forEach((container, index) => {
    const bad = container.ports.some(({ health }) => health !== "ok");
    const rows = container.ports.flatMap((
      { name, addresses, published },
    ) => [`${name} ${addresses.join(" ")}`, ...published]);
    out.push(`  c${index}[${quoted(container.id, ...rows)}]${bad ? ":::broken" : ""}`);
  });
  const ends = endsOf(drawing);
  containers.forEach((container, index) => {
    for (const port of container.ports) {
      const trouble = port.health === "ok" ? "" : port.problems[0] ?? port.health;
      const front = [port.veth, ...directText(port)].filter((part) => part !== "").join(", ");
      const label = [front, trouble].filter((part) => part !== "").join(": ");
      const arrow = port.health === "ok" ? "---" : "-.-";
      out.push(`  ${ends.get(port.to) ?? "host_stack"} ${arrow}${label === "" ? "" : `|${quoted(label)}|`} c${index}`);
    }
  });
  for (const { name, masquerade } of bridges) {
    if (!masquerade) continue;
    for (const uplink of uplinks.filter(({ isDefault }) => isDefault)) {
      out.push(`  ${idOf("br", name)} -. masquerade .-> ${idOf("up", uplink.name)}`);
    }
  }
  out.push("  classDef broken stroke:#c0392b,stroke-width:2px");
  return `${out.join("\n")}\n`;
}

/** Names of nodes by the name of the interface. */
function endsOf({ uplinks, bridges }: Drawing): Map<string, string> {
  return new Map([
    ...uplinks.map(({ name }) => [name, idOf("up", name)] as const),
    ...bridges.map(({ name }) => [name, idOf("br", name)] as const),
  ]);
}

/** For Graphviz. */
export function dotOf(drawing: Drawing): string {
  const { host, uplinks, bridges, containers } = drawing;
  const quoted = (...lines: readonly string[]) =>
    `"${lines.filter((line) => line !== "").map((line) => oneLine(line).replace(/["\\]/g, "\\$&")).join("\\n")}"`;
  const out = [
    "graph cnibox {",
    "  rankdir=LR;",
    '  node [shape=box, style=rounded, fontname="Helvetica"];',
    '  edge [fontname="Helvetica", fontsize=10];',
    `  subgraph cluster_host { label=${quoted(host)};`,
    "    host_stack [label=host, shape=circle];",
  ];
  for (const { name, addresses, isDefault, peers } of uplinks) {
    const label = quoted(name, ...addresses, isDefault ? "default route" : "", ...nodes(peers));
    out.push(`    ${idOf("up", name)} [label=${label}];`);
  }
  for (const bridge of bridges) {
    out.push(
      `    ${idOf("br", bridge.name)} [label=${
        quoted(bridge.name, ...bridge.addresses, networksText(bridge))
      }, shape=hexagon];`,
    );
  }
  out.push("  }");
  const ends = endsOf(drawing);
  containers.forEach((container, index) => {
    const bad = container.ports.some(({ health }) => health !== "ok");
    const rows = container.ports.flatMap((
      { name, addresses, published },
    ) => [`${name} ${addresses.join(" ")}`, ...published]);
    out.push(`  c${index} [label=${quoted(container.id, ...rows)}${bad ? ", color=red" : ""}];`);
    for (const port of container.ports) {
      const { to, veth, health, problems } = port;
      const trouble = health === "ok" ? "" : problems[0] ?? health;
      out.push(
        `  ${ends.get(to) ?? "host_stack"} -- c${index} [label=${quoted(veth, ...directText(port), trouble)}${
          health === "ok" ? "" : ", style=dashed, color=red"
        }];`,
      );
    }
  });
  for (const { name, masquerade } of bridges) {
    if (!masquerade) continue;
    for (const uplink of uplinks.filter(({ isDefault }) => isDefault)) {
      out.push(`  ${idOf("br", name)} -- ${idOf("up", uplink.name)} [label=masquerade, style=dotted, dir=forward];`);
    }
  }
  return `${out.join("\n")}\n}\n`;
}
