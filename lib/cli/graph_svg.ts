/**
 * The node as one SVG that needs nothing else: three columns, host interfaces, bridges and containers, with a line for
 * every interface. Sizes are computed from the text, so nothing overlaps.
 */
import type { Bridge, Container, Drawing, Port, Uplink } from "./drawing.ts";
import { counted, oneLine } from "./terminal.ts";

const FONT = 13;
/** Widths of characters in pixels, a little generous: viewers choose among fonts. */
const MONO = 7.9;
const SANS = 7.3;
const ROW = 21;
const BADGE_ROW = 25;
const PAD = 14;
const HEAD = 34;
const GAP = 18;
const TOP = 96;
const SIDE = 32;
/** More containers than this are drawn as a line each, so that a picture stays one that can be looked at. */
const MOST_CARDS = 24;
const DENSE_ROW = 20;
const DENSE_PAD = 4;
const DENSE_GAP = 6;
/** Longer names of namespaces are machines', and tell nobody anything. */
const LONGEST_NOTE = 20;

const STYLE = `
  text { font: ${FONT}px system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: #1f2933 }
  .page { fill: #f6f7f9 }
  .title { font-size: 20px; font-weight: 600 }
  .dim { fill: #6b7785; font-size: 12px }
  .caption { fill: #6b7785; font-size: 11px; letter-spacing: 0.08em; font-weight: 600 }
  .mono { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: 12.5px }
  .name { font-weight: 600 }
  .light { fill: #ffffff }
  .card { fill: #ffffff; stroke: #d5dae0 }
  .uplink { fill: #3d5a80 } .container { fill: #4a5568 } .broken { fill: #b3392f } .absent { fill: #8a94a0 }
  .wire { fill: none; stroke-width: 2 } .bad { stroke: #b3392f; stroke-dasharray: 6 5 }
  .label { fill: #ffffff; stroke: #d5dae0 } .label-text { fill: #4a5561; font-size: 11.5px }
  .nat { fill: none; stroke: #c77d0a; stroke-width: 2; stroke-dasharray: 2 5; stroke-linecap: round }
  .badge { fill: #fdf1dd; stroke: #e9c78d } .badge-text { fill: #8a5a08; font-size: 12px }
  .trouble { fill: #b3392f; font-size: 12px }
`;

/** Colours of networks, by the order of their bridges. */
const HUES = ["#2a7f62", "#2b6cb0", "#805ad5", "#b7791f", "#b83280", "#2c7a7b"];
const DIRECT = "#3d5a80";

interface Box {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

interface Card {
  readonly kind: "uplink" | "bridge" | "container" | "broken" | "absent";
  /** Colour of the head, where the kind does not say it. */
  readonly hue?: string;
  readonly title: string;
  readonly note: string;
  readonly rows: readonly Row[];
  /** Where the rows of a card without a head begin, behind its title; undefined for cards with one. */
  readonly dense?: number;
}

interface Row {
  readonly text: string;
  readonly style: "mono" | "dim" | "badge" | "trouble";
  /** The interface that the row belongs to, for its line. */
  readonly port?: Port;
  /** Ports on the same row. */
  readonly published?: string;
}

/** Draws. */
export function svgOf(drawing: Drawing): string {
  const { host, uplinks, bridges, containers } = drawing;
  const cards = {
    uplinks: uplinks.map(uplinkCard),
    bridges: bridges.map((bridge, index) => bridgeCard(bridge, hueOf(index))),
    containers: containers.length > MOST_CARDS ? denseCards(containers) : containers.map(containerCard),
  };
  const { xs, widths: [first = 0, second = 0, third = 0] } = columnsOf(cards, containers);
  const containerBoxes = stacked(cards.containers, xs[2] ?? 0, third);
  const bridgeBoxes = levelled(
    cards.bridges,
    xs[1] ?? 0,
    second,
    bridges.map(({ name }) => centreOf(containers, containerBoxes, name)),
  );
  const uplinkBoxes = levelled(
    cards.uplinks,
    xs[0] ?? 0,
    first,
    uplinks.map(({ name, isDefault }) =>
      isDefault && bridgeBoxes.length > 0 ? middle(bridgeBoxes) : centreOf(containers, containerBoxes, name)
    ),
  );
  const bottom = Math.max(
    TOP + 80,
    ...[...containerBoxes, ...bridgeBoxes, ...uplinkBoxes].map(({ y, height }) => y + height),
  );
  const width = (xs[2] ?? 0) + third + SIDE + GAP;
  const hostWidth = (xs[1] ?? 0) + second + GAP - SIDE;
  const height = bottom + 64;
  const places = new Map([
    ...uplinks.map(({ name }, index) => [name, uplinkBoxes[index]] as const),
    ...bridges.map(({ name }, index) => [name, bridgeBoxes[index]] as const),
  ]);
  const spans = new Map([...places.keys()].map((name) => [name, spanOf(containers, containerBoxes, name)] as const));
  const hues = new Map(bridges.map(({ name }, index) => [name, hueOf(index)] as const));
  const labelled = Math.max(0, ...containers.flatMap(({ ports }) => ports.map(labelWidth)));
  const edge: Box = { x: SIDE, y: TOP - 40, width: hostWidth, height: bottom - TOP + 60 };
  const lines = containers.flatMap((container, index) =>
    wires(container, containerBoxes[index], {
      places,
      spans,
      edge,
      card: cards.containers[index],
      hues,
      labelled,
      column: xs[1] ?? 0,
    })
  );
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${round(width)}" height="${round(height)}" viewBox="0 0 ${
      round(width)
    } ${round(height)}" role="img">`,
    `<title>${escaped(`Container networks of ${host}`)}</title>`,
    `<style>${STYLE}</style>`,
    `<rect class="page" width="100%" height="100%"/>`,
    `<text class="title" x="${SIDE}" y="34">${escaped(host)}</text>`,
    `<text class="dim" x="${round(SIDE + host.length * 12.5 + 16)}" y="34">${escaped(summaryOf(drawing))}</text>`,
    `<rect x="${edge.x}" y="${edge.y}" width="${round(edge.width)}" height="${
      round(edge.height)
    }" rx="14" fill="#ffffff" fill-opacity="0.55" stroke="#c3cad2" stroke-dasharray="3 4"/>`,
    caption("HOST", SIDE + GAP, TOP - 18),
    caption("CONTAINERS", xs[2] ?? 0, TOP - 18),
    ...bridges.flatMap((bridge, index) => nat(bridge, { from: bridgeBoxes[index], uplinks, boxes: uplinkBoxes })),
    ...lines.map(({ path }) => path),
    ...lines.map(({ label }) => label),
    ...cards.uplinks.map((card, index) => drawn(card, uplinkBoxes[index])),
    ...cards.bridges.map((card, index) => drawn(card, bridgeBoxes[index])),
    ...cards.containers.map((card, index) => drawn(card, containerBoxes[index])),
    legend(drawing, SIDE, height - 20),
    "</svg>",
  ];
  return `${parts.filter((part) => part !== "").join("\n")}\n`;
}

/** Where the three columns begin, and how wide they are. */
function columnsOf(
  cards: Readonly<Record<"uplinks" | "bridges" | "containers", readonly Card[]>>,
  containers: readonly Container[],
): { xs: number[]; widths: number[] } {
  const widths = [cards.uplinks, cards.bridges, cards.containers].map((column) =>
    Math.max(150, ...column.map(widthOf))
  );
  const [first = 0, second = 0] = widths;
  const labels = Math.max(40, ...containers.flatMap(({ ports }) => ports.map((port) => labelWidth(port) + 90)));
  // Lines that climb high need room to be told apart.
  const tall = cards.containers.reduce((sum, card) => sum + heightOf(card) + GAP, 0);
  const climb = Math.min(240, Math.max(0, (tall - 600) / 5));
  const start = SIDE + GAP;
  return { xs: [start, start + first + 110, round(start + first + 110 + second + labels + 50 + climb)], widths };
}

const hueOf = (index: number) => HUES[index % HUES.length] ?? DIRECT;

/** `10 containers on 3 networks, 2 need attention` */
function summaryOf({ containers }: Drawing): string {
  const networks = new Set(containers.flatMap(({ ports }) => ports.map(({ network }) => network)));
  const bad = containers.filter(({ ports }) => ports.some(({ health }) => health !== "ok")).length;
  const trouble = bad === 0 ? "" : `, ${bad} ${bad === 1 ? "needs" : "need"} attention`;
  return `${counted(containers.length, "container")} on ${counted(networks.size, "network")}${trouble}`;
}

function uplinkCard({ name, kind, addresses, isDefault, up, peers }: Uplink): Card {
  return {
    kind: up ? "uplink" : "absent",
    title: name,
    note: [kind, up ? "" : "down"].filter((part) => part !== "").join(", "),
    rows: [
      ...addresses.map((text): Row => ({ text, style: "mono" })),
      ...(isDefault ? [{ text: "default route", style: "dim" } as const] : []),
      ...peers.map((text): Row => ({ text: `node ${text}`, style: "dim" })),
    ],
  };
}

function bridgeCard({ name, addresses, networks, exists, up }: Bridge, hue: string): Card {
  return {
    kind: exists && up ? "bridge" : "absent",
    ...(exists && up && { hue }),
    title: name,
    note: exists ? (up ? "bridge" : "bridge, down") : "not made yet",
    rows: [
      ...addresses.map((text): Row => ({ text, style: "mono" })),
      ...networks.map((text): Row => ({ text: `network ${text}`, style: "dim" })),
    ],
  };
}

function containerCard({ id, netns, ports }: Container): Card {
  const note = netns.replace(/^\/(var\/)?run\/netns\//, "");
  return {
    kind: kindOf(ports),
    title: id,
    note: note.length > LONGEST_NOTE ? "" : note,
    rows: ports.flatMap((port): Row[] => [
      { text: `${port.name}  ${port.addresses.join("  ") || "no address"}`, style: "mono", port },
      ...port.published.map((text): Row => ({ text, style: "badge" })),
      ...port.problems.map((text): Row => ({ text, style: "trouble" })),
    ]),
  };
}

const kindOf = (ports: readonly Port[]) => ports.some(({ health }) => health !== "ok") ? "broken" : "container";

/** A line for each container, and one for each further interface and problem. */
function denseCards(containers: readonly Container[]): Card[] {
  const dense = Math.max(...containers.map(({ id }) => id.length)) * (SANS + 0.9) + 16;
  return containers.map(({ id, ports }) => ({
    kind: kindOf(ports),
    title: id,
    note: "",
    dense,
    rows: ports.flatMap((port): Row[] => [
      {
        text: `${port.name}  ${port.addresses.join("  ") || "no address"}`,
        style: "mono",
        port,
        ...(port.published.length > 0 && { published: port.published.join("  ") }),
      },
      ...port.problems.map((text): Row => ({ text, style: "trouble" })),
    ]),
  }));
}

function widthOf({ title, note, rows, dense }: Card): number {
  if (dense !== undefined) {
    const wide = rows.map(({ text, style, published = "" }) =>
      text.length * (style === "mono" ? MONO : 6.9) + (published === "" ? 0 : published.length * 7.3 + 16)
    );
    return Math.ceil(2 * PAD + dense + Math.max(...wide));
  }
  const head = title.length * (SANS + 0.9) + (note === "" || note === title ? 0 : note.length * 6.4 + 24);
  return Math.ceil(
    2 * PAD + Math.max(
      head,
      ...rows.map(({ text, style }) => text.length * (style === "mono" ? MONO : 6.9) + (style === "badge" ? 18 : 0)),
    ),
  );
}

function heightOf(card: Card): number {
  const { rows, dense } = card;
  if (dense !== undefined) return 2 * DENSE_PAD + rows.length * DENSE_ROW;
  return HEAD + (rows.length === 0 ? 0 : rowsHeight(card, rows.length) + 12);
}

/** Height of the first rows. */
function rowsHeight({ rows, dense }: Card, count: number): number {
  if (dense !== undefined) return count * DENSE_ROW;
  return rows.slice(0, count).reduce((sum, { style }) => sum + (style === "badge" ? BADGE_ROW : ROW), 0);
}

/** Where the text of a row stands below the top of its card. */
function baseline(card: Card, row: number): number {
  return (card.dense === undefined ? HEAD + 20 : DENSE_PAD + 14) + rowsHeight(card, row);
}

function stacked(cards: readonly Card[], x: number, width: number): Box[] {
  let y = TOP;
  return cards.map((card) => {
    const box = { x, y, width, height: heightOf(card) };
    y += box.height + (card.dense === undefined ? GAP : DENSE_GAP);
    return box;
  });
}

/** Places cards near a preferred height, in order, without overlaps. */
function levelled(cards: readonly Card[], x: number, width: number, preferred: readonly (number | undefined)[]): Box[] {
  const order = cards.map((_, index) => index).sort((a, b) =>
    (preferred[a] ?? Infinity) - (preferred[b] ?? Infinity) || a - b
  );
  const boxes: Box[] = [];
  let y = TOP;
  for (const index of order) {
    const height = heightOf(cards[index] as Card);
    const wanted = preferred[index] === undefined ? y : (preferred[index] ?? 0) - height / 2;
    const at = Math.max(y, wanted);
    boxes[index] = { x, y: at, width, height };
    y = at + height + GAP;
  }
  return boxes;
}

/** Height of the middle of what leads to an interface. */
function centreOf(containers: readonly Container[], boxes: readonly Box[], name: string): number | undefined {
  const own = boxes.filter((_, index) => containers[index]?.ports.some(({ to }) => to === name));
  return own.length === 0 ? undefined : middle(own);
}

function middle(boxes: readonly Box[]): number {
  const top = Math.min(...boxes.map(({ y }) => y));
  return (top + Math.max(...boxes.map(({ y, height }) => y + height))) / 2;
}

function drawn(card: Card, box: Box | undefined): string {
  if (!box) return "";
  const { kind, hue, title, note, rows, dense } = card;
  const { x, y, width, height } = box;
  const left = round(x + PAD + (dense ?? 0));
  const body = rows.map(({ text, style, port, published }, index) => {
    const at = round(y + baseline(card, index));
    if (style === "badge") return badge(text, x + PAD, at - 3);
    if (!port) return `<text class="${style}" x="${left}" y="${at}">${escaped(text)}</text>`;
    const addresses = port.addresses.map((one) => `<tspan dx="12">${escaped(one)}</tspan>`).join("");
    const ports = published ? `<tspan class="badge-text" dx="16">${escaped(published)}</tspan>` : "";
    return `<text class="${style}" x="${left}" y="${at}"><tspan class="name">${escaped(port.name)}</tspan>` +
      `${addresses || '<tspan dx="12" fill="#6b7785">no address</tspan>'}${ports}</text>`;
  });
  if (dense !== undefined) {
    return [
      `<g>`,
      `<rect class="card" x="${x}" y="${round(y)}" width="${width}" height="${height}" rx="6"/>`,
      `<rect class="${kind}" x="${x}" y="${round(y)}" width="6" height="${height}" rx="3"/>`,
      `<text class="name" x="${x + PAD}" y="${round(y + baseline(card, 0))}">${escaped(title)}</text>`,
      ...body,
      `</g>`,
    ].join("\n");
  }
  const noted = note === "" || note === title
    ? ""
    : `<text class="light" x="${x + width - PAD}" y="${round(y + 22)}" text-anchor="end" opacity="0.8" font-size="12">${
      escaped(note)
    }</text>`;
  return [
    `<g>`,
    `<rect class="card" x="${x}" y="${round(y)}" width="${width}" height="${height}" rx="10"/>`,
    `<path ${hue ? `fill="${hue}"` : `class="${kind}"`} d="${headPath(box, rows.length === 0)}"/>`,
    `<text class="name light" x="${x + PAD}" y="${round(y + 22)}">${escaped(title)}</text>`,
    noted,
    ...body,
    `</g>`,
  ].filter((part) => part !== "").join("\n");
}

/** A badge or a label from `x` on, at the height of a line. */
function badge(text: string, x: number, y: number, [box, words] = ["badge", "badge-text"]): string {
  const wide = badgeWidth(text);
  return `<rect class="${box}" x="${round(x)}" y="${round(y - 10)}" width="${round(wide)}" height="20" rx="10"/>` +
    `<text class="${words}" x="${round(x + wide / 2)}" y="${round(y + 4)}" text-anchor="middle">${
      escaped(text)
    }</text>`;
}

const badgeWidth = (text: string) => text.length * 7.3 + 18;

/** The coloured head of a card: round above, straight below. */
function headPath({ x, y, width }: Box, alone: boolean): string {
  const low = alone ? `a10 10 0 0 1 -10 10 h${-(width - 20)} a10 10 0 0 1 -10 -10` : `v10 h${-width} v-10`;
  return `M${x} ${round(y + HEAD - 10)} V${round(y + 10)} a10 10 0 0 1 10 -10 h${width - 20} a10 10 0 0 1 10 10 V${
    round(y + HEAD - 10)
  } ${low} z`;
}

/** Heights between which the lines of an interface end, where they are many. */
type Span = readonly [low: number, high: number];

/** More lines than this are spread along the interface. */
const MANY_WIRES = 6;

function spanOf(containers: readonly Container[], boxes: readonly Box[], name: string): Span | undefined {
  const own = boxes.filter((_, index) => containers[index]?.ports.some(({ to }) => to === name));
  if (own.length <= MANY_WIRES) return undefined;
  return [Math.min(...own.map(({ y }) => y)), Math.max(...own.map(({ y, height }) => y + height))];
}

/** Where on an interface the line of a given height begins. */
function startOf(end: number, { y, height }: Box, span: Span | undefined): number {
  const [top, bottom] = [y + HEAD / 2, y + height - 12];
  if (!span) return clamp(end, top, bottom);
  return top + (end - span[0]) / (span[1] - span[0]) * (bottom - top);
}

interface WireOptions {
  readonly places: ReadonlyMap<string, Box | undefined>;
  readonly spans: ReadonlyMap<string, Span | undefined>;
  readonly edge: Box;
  readonly card: Card | undefined;
  readonly hues: ReadonlyMap<string, string>;
  /** Width of the widest label. */
  readonly labelled: number;
  /** Where the column of the bridges begins. */
  readonly column: number;
}

/** What is written on the line of an interface. */
const labelOf = ({ veth, kind, direct, network }: Port): string =>
  [direct ? network : "", veth || (kind === "veth" ? "" : kind)].filter((part) => part !== "").join(" · ");
const labelWidth = (port: Port): number => labelOf(port) === "" ? 0 : badgeWidth(labelOf(port));

/** A line for every interface, from its row to where it leads, and what is written on it. */
function wires({ ports }: Container, box: Box | undefined, options: WireOptions): { path: string; label: string }[] {
  const { places, spans, edge, card, hues, labelled, column } = options;
  if (!box || !card) return [];
  return ports.map((port) => {
    const row = card.rows.findIndex((one) => one.port === port);
    const end = { x: box.x, y: box.y + baseline(card, row) - 5 };
    const place = places.get(port.to);
    const hue = hues.get(port.to);
    const wide = labelWidth(port);
    // All lines are level before the labels begin: none crosses one.
    const level = end.x - labelled - 34;
    const start = place
      ? { x: place.x + place.width, y: startOf(end.y, place, spans.get(port.to)) }
      : { x: edge.x + edge.width, y: end.y };
    // From a host interface straight to a container: level before the bridges are reached, so as to pass between them.
    const to = place && hue === undefined ? column - 12 : level;
    const bend = Math.max(20, (to - start.x) / 2);
    const curve = `M${round(start.x)} ${round(start.y)} C${round(start.x + bend)} ${round(start.y)} ${
      round(to - bend)
    } ${round(end.y)} ${round(to)} ${round(end.y)} H${round(end.x)}`;
    const look = port.health === "ok" ? `class="wire" stroke="${hue ?? DIRECT}"` : `class="wire bad"`;
    const words = wide === 0 ? "" : badge(labelOf(port), end.x - wide - 20, end.y, ["label", "mono label-text"]);
    const masquerade = port.masquerade && !place
      ? badge("masquerade", start.x - badgeWidth("masquerade"), start.y)
      : "";
    return { path: `<path ${look} d="${curve}"/>`, label: masquerade + words };
  });
}

/** Masqueraded traffic from a bridge to the default route. */
function nat(
  bridge: Bridge,
  { from, uplinks, boxes }: { from: Box | undefined; uplinks: readonly Uplink[]; boxes: readonly Box[] },
): string[] {
  if (!bridge.masquerade || !from) return [];
  return uplinks.flatMap(({ isDefault }, index) => {
    const to = boxes[index];
    if (!isDefault || !to) return [];
    const [x1, y1, x2, y2] = [from.x, from.y + HEAD / 2, to.x + to.width, to.y + HEAD / 2];
    const bend = (x1 - x2) / 2;
    const label = "masquerade";
    const middle = (x1 + x2) / 2;
    return [
      `<path class="nat" d="M${round(x1)} ${round(y1)} C${round(x1 - bend)} ${round(y1)} ${round(x2 + bend)} ${
        round(y2)
      } ${round(x2)} ${round(y2)}"/>` +
      badge(label, middle - badgeWidth(label) / 2, (y1 + y2) / 2),
    ];
  });
}

function caption(text: string, x: number, y: number): string {
  return `<text class="caption" x="${round(x)}" y="${y}">${text}</text>`;
}

function legend({ bridges }: Drawing, x: number, y: number): string {
  const items: [fill: string, text: string][] = [
    ['class="uplink"', "host interface"],
    ...bridges.map((
      { name, networks },
      index,
    ): [string, string] => [`fill="${hueOf(index)}"`, networks.length > 0 ? `network ${networks.join(", ")}` : name]),
    ['class="container"', "container"],
    ['class="broken"', "needs attention"],
  ];
  let at = x;
  return items.map(([fill, text]) => {
    const part = `<rect ${fill} x="${round(at)}" y="${round(y - 10)}" width="12" height="12" rx="3"/>` +
      `<text class="dim" x="${round(at + 18)}" y="${round(y)}">${escaped(text)}</text>`;
    at += 18 + text.length * 6.9 + 24;
    return part;
  }).join("");
}

function clamp(value: number, low: number, high: number): number {
  return Math.min(Math.max(value, low), high);
}

const round = (value: number) => Math.round(value * 10) / 10;

/** Text for XML; what XML cannot hold is left out. */
function escaped(text: string): string {
  return oneLine(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
}
