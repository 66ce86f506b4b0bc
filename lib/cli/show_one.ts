/**
 * `cnibox show CONTAINER|POD|ADDRESS`: all of one container's attachments, with the counters of both ends, rules, ports
 * and limits.
 */
import { isObject, lookup } from "../cni/decode.ts";
import type { Link } from "../kernel/ip.ts";
import { inNetns, type Run, systemRun, toolPath } from "../kernel/run.ts";
import { chainName, nftAttachmentHash } from "../net/name.ts";
import { hostPortChain } from "../rules/host_ports_iptables.ts";
import type { CommandCall } from "./command.ts";
import { portText } from "./network.ts";
import { nameOfView, podOfView, stateText, viewJson } from "./show.ts";
import { listOf, type Rules, type Survey, type View } from "./survey.ts";
import { ageOf, jsonDocument, oneLine, painter, sections } from "./terminal.ts";

/** What went through one end of a link. */
interface Counters {
  readonly rx: Direction;
  readonly tx: Direction;
}

interface Direction {
  readonly bytes: number;
  readonly packets: number;
  readonly errors: number;
  readonly dropped: number;
}

/** An attachment and what is looked at for it alone. */
interface Details {
  readonly view: View;
  /** In the container, as it sees it; undefined when it cannot be asked. */
  readonly inside?: Counters | undefined;
  /** On the host, as the host sees it: what the container sends is received there. */
  readonly outside?: Counters | undefined;
  /** Rules that name the attachment or its addresses, as the tools print them. */
  readonly rules: readonly string[];
  readonly limits: Readonly<Record<string, number>>;
}

/** Text or JSON of these attachments. */
export async function detailsText(
  call: CommandCall,
  { rules: { saved }, blind }: Survey,
  views: readonly View[],
): Promise<string> {
  const host = systemRun();
  const nft = await nftText(host);
  const all = await Promise.all(views.map(async (view): Promise<Details> => {
    const [inside, outside] = await Promise.all([
      view.inside && counters(inNetns(host, view.netns), view.inside),
      view.outside && counters(host, view.outside),
    ]);
    return { view, inside, outside, rules: rulesOf(view, saved, nft), limits: limitsOf(view) };
  }));
  if (call.is("json")) return jsonDocument({ attachments: all.map(detailsJson), blind });
  return all.map(detailText).join("\n");
}

async function counters(run: Run, { ifname }: Link): Promise<Counters | undefined> {
  const { code, stdout } = await run({ argv: ["ip", "-j", "-s", "link", "show", "dev", ifname] });
  if (code !== 0) return undefined;
  const [link] = JSON.parse(stdout || "[]") as { stats64?: Counters }[];
  const pick = ({ bytes, packets, errors, dropped }: Direction) => ({ bytes, packets, errors, dropped });
  return link?.stats64 && { rx: pick(link.stats64.rx), tx: pick(link.stats64.tx) };
}

/** The rules of nft as it prints them; "" where they cannot be read, which the survey has named. */
async function nftText(host: Run): Promise<string> {
  if (toolPath("nft") === "") return "";
  const { code, stdout } = await host({ argv: ["nft", "list", "ruleset"] });
  return code === 0 ? stdout : "";
}

function rulesOf(
  { network, containerId, ifName, addresses }: View,
  saved: Rules["saved"],
  nft: string,
): string[] {
  const owner = { network, containerId, ifName };
  const ips = addresses.map((address) => address.split("/")[0] ?? "");
  const words = [chainName(owner), hostPortChain(owner), `id: \\"${containerId}\\"`, ...ips.map((ip) => ` ${ip}/`)];
  const found: string[] = [];
  for (const [tool, text] of [["iptables", saved[4]], ["ip6tables", saved[6]]] as const) {
    let name = "";
    for (const line of text.split("\n")) {
      if (line.startsWith("*")) name = line.slice(1);
      if (line.startsWith("-A ") && words.some((word) => line.includes(word))) found.push(`${tool} -t ${name} ${line}`);
    }
  }
  let path = "";
  // What a rule or an element of a map or set names: not a longer address that begins with it.
  const marks = [nftAttachmentHash(owner), `comment "${containerId}"`];
  const isOwn = (line: string) =>
    marks.some((mark) => line.includes(mark)) || line.split(/[\s,{}]+/).some((word) => ips.includes(word));
  for (const line of nft.split("\n").map((line) => line.trim())) {
    if (/^table .*\{$/.test(line)) path = line.slice(0, -2);
    // A line of iptables-nft's tables has been seen above.
    else if (!/^table ip6? (nat|filter|raw|mangle)$/.test(path) && isOwn(line)) found.push(`nft ${path}: ${line}`);
  }
  return found;
}

/** Keys of the bandwidth plugin: bits a second, and bits at once. */
const LIMITS = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

/** What the bandwidth plugin was told: by the runtime, else by the configuration. */
function limitsOf({ cached }: View): Record<string, number> {
  const list = cached && listOf(cached);
  const member = list?.plugins.find(({ type }) => type === "bandwidth");
  if (!cached || !member) return {};
  const asked = cached.capabilityArgs["bandwidth"];
  const source = isObject(asked) ? asked : member.config;
  return Object.fromEntries(LIMITS.flatMap((key) => {
    const value = lookup(source, key);
    return typeof value === "number" && value > 0 ? [[key, value]] : [];
  }));
}

function detailsJson({ view, inside, outside, rules, limits }: Details) {
  return {
    ...viewJson(view),
    ...(inside && { counters: inside }),
    ...(outside && { hostCounters: outside }),
    rules,
    limits,
  };
}

function detailText({ view, inside, outside, rules, limits }: Details): string {
  const paint = painter();
  const { network, containerId, ifName, netns, addresses, leases, ports, since, problems, bridge } = view;
  const pod = podOfView(view);
  const text = sections([
    ["container", [containerId]],
    [pod?.includes("/") ? "pod" : "name", pod === undefined ? [] : [pod]],
    ["namespace", [netns || "not known"]],
    ["addresses", addresses],
    ["leases", [leases.length === 0 ? "none" : leases.join(" ")]],
    ["since", since ? [`${since.toISOString()}, ${ageOf(since)}`] : []],
    ["interface", view.inside ? [linkText(view.inside, ""), ...countersText(inside)] : ["not found"]],
    ["host end", view.outside ? [linkText(view.outside, bridge), ...countersText(outside)] : []],
    ["ports", ports.map(portText)],
    ["limits", limitsText(limits)],
    ["rules", rules],
    ["problems", problems.map(({ text, fix }) => `${text}${fix === "" ? "" : `: ${fix}`}`)],
  ], "  ");
  const head = `${paint("bold", oneLine(nameOfView(view)))} ${oneLine(ifName)} on ${paint("bold", oneLine(network))}`;
  return `${head}  ${stateText(view, paint)}\n${text}`;
}

function linkText({ ifname, address, mtu, flags }: Link, bridge: string): string {
  const parts = [ifname, address ?? "", `mtu ${mtu}`, flags.includes("UP") ? "up" : "down"];
  return [...parts, bridge === "" ? "" : `on ${bridge}`].filter((part) => part !== "").join("  ");
}

function countersText(counters: Counters | undefined): string[] {
  if (!counters) return [];
  return (["rx", "tx"] as const).map((way) => {
    const { bytes, packets, dropped, errors } = counters[way];
    return `${way} ${packets} packets, ${bytes} bytes, ${dropped} dropped, ${errors} errors`;
  });
}

function limitsText(limits: Details["limits"]): string[] {
  return (["ingress", "egress"] as const).flatMap((way) => {
    const [rate, burst] = [limits[`${way}Rate`], limits[`${way}Burst`]];
    return rate === undefined ? [] : [`${way} ${bits(rate)}/s${burst === undefined ? "" : `, burst ${bits(burst)}`}`];
  });
}

/** `100 Mbit` */
function bits(value: number): string {
  for (const [unit, size] of [["Gbit", 1e9], ["Mbit", 1e6], ["kbit", 1e3]] as const) {
    if (value >= size) return `${Math.round(value / size * 10) / 10} ${unit}`;
  }
  return `${value} bit`;
}
