/** The state of a node's network and of the plugins' files, in a form that can be compared. */
import type { Namespace, Node } from "./node.ts";

/** Lines by section; within a section sorted, save rules whose order matters. */
export interface Snapshot {
  links: string[];
  addresses: string[];
  routes: string[];
  rules: string[];
  qdiscs: string[];
  vlans: string[];
  iptables: string[];
  ip6tables: string[];
  nft: string[];
  /** Filled on demand only: they come and go with traffic. */
  neighbours: string[];
  sysctls: string[];
  files: string[];
}

export type Section = keyof Snapshot;

/**
 * Lines that may come or go: an expression for any section, or a section's name before it, or a whole section.
 */
export type Allowed = RegExp | Section | { section: Section; line: RegExp };

/** What host-local leaves on purpose: the network's folder, its lock, the last address given out. */
export const hostLocalLeftovers: Allowed = {
  section: "files",
  line: /^\/var\/lib\/cni\/networks(\/[^/ ]+)?( directory$|\/(lock|last_reserved_ip\.\d+) file)/,
};

// Settings that plugins change or that their links bring along, in both families.
const settings = [
  "ipv4/ip_forward",
  "ipv4/conf/*/forwarding",
  "ipv4/conf/*/route_localnet",
  "ipv4/conf/*/rp_filter",
  "ipv4/conf/*/proxy_arp",
  "ipv4/conf/*/arp_notify",
  "ipv4/conf/*/arp_ignore",
  "ipv4/conf/*/arp_announce",
  "ipv4/conf/*/accept_local",
  "ipv6/conf/*/forwarding",
  "ipv6/conf/*/accept_ra",
  "ipv6/conf/*/accept_dad",
  "ipv6/conf/*/enhanced_dad",
  "ipv6/conf/*/disable_ipv6",
  "ipv6/conf/*/proxy_ndp",
  "ipv6/conf/*/ndisc_notify",
  "ipv6/conf/*/addr_gen_mode",
];

const script = `
say() { printf '\\n@@ %s\\n' "$1"; shift; "$@" || { echo "$*: exit $?" >&2; exit 1; }; }
say links ip -json -details link show
say addresses ip -json addr show
say routes4 ip -json -details route show table all
say routes6 ip -json -details -6 route show table all
say rules4 ip -json rule show
say rules6 ip -json -6 rule show
say qdiscs tc -json qdisc show
say vlans bridge -json vlan show
say iptables iptables-save
say ip6tables ip6tables-save
say nft nft -j list ruleset
[ -z "$1" ] || say neighbours ip -json neigh show
cd /proc/sys/net; printf '\\n@@ sysctls\\n'; grep -s '' ${settings.join(" ")}
true
`;

/**
 * The state of a node's host namespace, or of one of its containers (without files), as comparable lines.
 * Throws when one of the tools fails. Left out is what changes by itself: indexes, counters, timers, carrier, and what
 * the kernel adds for link-local IPv6.
 */
export async function snapshot(of: Namespace, { neighbours = false } = {}): Promise<Snapshot> {
  const { code, stdout, stderr } = await of.exec(["/bin/sh", "-c", script, "sh", neighbours ? "neighbours" : ""]);
  if (code !== 0) throw new Error(`no snapshot of ${of.name}: ${stderr}`);
  const said = new Map<string, string>();
  for (const part of stdout.split("\n@@ ").slice(1)) {
    const end = part.indexOf("\n");
    said.set(part.slice(0, end), part.slice(end + 1));
  }
  const json = (name: string) => {
    const text = said.get(name)?.trim();
    return text ? JSON.parse(text) : [];
  };
  return {
    links: json("links").map(linkLine).sort(),
    addresses: json("addresses").flatMap(addressLines).sort(),
    routes: [...json("routes4").map(routeLine), ...json("routes6").map(routeLine)].filter(kept).sort(),
    rules: [...json("rules4"), ...json("rules6").map((rule: Json) => ({ family: "inet6", ...rule }))].map(flat),
    qdiscs: json("qdiscs").filter((qdisc: Json) => qdisc.kind !== "noqueue").map(qdiscLine).sort(),
    vlans: json("vlans").map(flat).filter((line: string) => !line.endsWith(defaultVlan)).sort(),
    iptables: ruleLines(said.get("iptables") ?? ""),
    ip6tables: ruleLines(said.get("ip6tables") ?? ""),
    nft: nftLines(json("nft")),
    neighbours: json("neighbours").map(({ state: _, ...entry }: Json) => flat(entry)).sort(),
    sysctls: (said.get("sysctls") ?? "").trim().split("\n").sort(),
    files: of.netns === undefined ? await fileLines(of.node) : [],
  };
}

/**
 * Fails when two snapshots differ in more than is allowed, and shows the difference: `-` was there before, `+` is there
 * now.
 */
export function assertSameState(before: Snapshot, after: Snapshot, { allow = [] }: { allow?: Allowed[] } = {}): void {
  const lines = difference(before, after, { allow });
  if (lines.length > 0) throw new Error(`the state differs:\n${lines.join("\n")}`);
}

/** The lines that came (`+`) and went (`-`) between two snapshots, each with its section. */
export function difference(before: Snapshot, after: Snapshot, { allow = [] }: { allow?: Allowed[] } = {}): string[] {
  const lines: string[] = [];
  for (const section of Object.keys(before) as Section[]) {
    const may = (line: string) => allow.some((one) => allows(one, section, line));
    const gone = without(before[section], after[section]).filter((line) => !may(line));
    const come = without(after[section], before[section]).filter((line) => !may(line));
    for (const line of gone) lines.push(`- ${section}: ${line}`);
    for (const line of come) lines.push(`+ ${section}: ${line}`);
  }
  return lines;
}

function allows(allowed: Allowed, section: Section, line: string): boolean {
  if (allowed instanceof RegExp) return allowed.test(line);
  if (typeof allowed === "string") return allowed === section;
  return allowed.section === section && allowed.line.test(line);
}

// Difference of multisets: the same rule twice is not the same as once.
function without(lines: string[], others: string[]): string[] {
  const left = new Map<string, number>();
  for (const line of others) left.set(line, (left.get(line) ?? 0) + 1);
  return lines.filter((line) => {
    const count = left.get(line) ?? 0;
    if (count > 0) left.set(line, count - 1);
    return count === 0;
  });
}

// deno-lint-ignore no-explicit-any -- the tools' own JSON
type Json = any;

/** One line for a JSON object: `key=value` pairs, keys as the tool orders them. */
function flat(object: Json): string {
  return Object.entries(object).map(([key, value]) =>
    `${key}=${typeof value === "object" ? JSON.stringify(value) : value}`
  ).join(" ");
}

const volatile =
  /timer|_root_id$|^root_|^bridge_id$|topology_change|hold|fdb_n_learned|^state$|^port_id$|^port_no$|^no$/;

function steady(data: Json): Json {
  return Object.fromEntries(
    Object.entries(data ?? {}).filter(([key]) =>
      !volatile.test(key) && !/^(id|port|designated_|config_pending)/.test(key)
    ),
  );
}

function linkLine(link: Json): string {
  const flags = (link.flags as string[]).filter((flag) => ["UP", "PROMISC", "ALLMULTI", "NOARP"].includes(flag));
  const info = link.linkinfo ?? {};
  const line: Json = {
    name: link.ifname,
    kind: info.info_kind ?? link.link_type,
    parent: link.link ?? undefined,
    master: link.master,
    mtu: link.mtu,
    txqlen: link.txqlen,
    flags: flags.join(","),
    address: link.address,
    alias: link.ifalias,
    altnames: link.altnames,
    promiscuity: link.promiscuity,
    data: info.info_kind === "veth" ? undefined : steady(info.info_data),
    port: info.info_slave_kind === undefined ? undefined : steady(info.info_slave_data),
  };
  return flat(Object.fromEntries(Object.entries(line).filter(([, value]) => value !== undefined)));
}

function addressLines(link: Json): string[] {
  return (link.addr_info ?? []).filter((address: Json) => !(address.scope === "link" && address.family === "inet6"))
    .map((address: Json) => {
      const label = address.label && address.label !== link.ifname ? ` label ${address.label}` : "";
      const peer = address.address ? ` peer ${address.address}` : "";
      const flags = [
        ...(address.secondary ? ["secondary"] : []),
        ...(address.noprefixroute ? ["noprefixroute"] : []),
        ...(address.nodad ? ["nodad"] : []),
      ];
      return `${link.ifname} ${address.local}/${address.prefixlen}${peer} scope ${address.scope}${label}` +
        (address.broadcast ? ` brd ${address.broadcast}` : "") + (flags.length > 0 ? ` ${flags.join(" ")}` : "");
    });
}

function routeLine({ flags, pref: _, ...route }: Json): string {
  const told = (flags as string[] ?? []).filter((flag) => !["linkdown", "dead", "offload", "trap"].includes(flag));
  return flat({ ...route, ...(told.length > 0 ? { flags: told } : {}) });
}

// Link-local and multicast routes come and go with carrier and duplicate address detection.
function kept(route: string): boolean {
  return !/\bdst=(fe80:|ff00:)/.test(route);
}

function qdiscLine({ handle: _, refcnt: __, ...qdisc }: Json): string {
  return flat(qdisc);
}

/** The rules and own chains of `iptables-save`, each with its table; what an empty built-in chain says is left out. */
function ruleLines(saved: string): string[] {
  const lines: string[] = [];
  let table = "";
  for (const line of saved.split("\n")) {
    if (line.startsWith("*")) table = line.slice(1);
    else if (line.startsWith(":")) {
      const [chain, policy] = line.slice(1).split(" ");
      if (policy !== "ACCEPT") lines.push(`${table} :${chain} ${policy}`);
    } else if (line.startsWith("-")) lines.push(`${table} ${line}`);
  }
  return lines;
}

/** nft's objects without handles and counters; the empty tables that iptables makes for itself are left out. */
function nftLines(ruleset: Json): string[] {
  const own = ["filter", "nat", "mangle", "raw", "security"];
  const lines: string[] = [];
  for (const entry of ruleset.nftables ?? []) {
    const [kind, object] = Object.entries(entry)[0] as [string, Json];
    if (kind === "metainfo") continue;
    const table = kind === "table" ? object.name : object.table;
    const iptables = (object.family === "ip" || object.family === "ip6") && own.includes(table);
    // iptables-save shows the chains and rules of those tables.
    if (iptables && kind !== "set" && kind !== "map") continue;
    lines.push(`${kind} ${JSON.stringify(plain(object))}`);
  }
  return lines;
}

function plain(value: Json): Json {
  if (Array.isArray(value)) return value.map(plain);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(
    Object.entries(value).filter(([key]) => key !== "handle" && key !== "packets" && key !== "bytes")
      .map(([key, member]) => [key, plain(member)]),
  );
}

// Every bridge and port has it where the kernel filters VLANs.
const defaultVlan = ' vlans=[{"vlan":1,"flags":["PVID","Egress Untagged"]}]';

const folders = ["/var/lib/cni", "/run/cni", "/etc/cni"];

async function fileLines(node: Node): Promise<string[]> {
  const lines: string[] = [];
  for (const folder of folders) await walk(node, folder, lines);
  return lines.sort();
}

async function walk(node: Node, folder: string, lines: string[]): Promise<void> {
  for (const name of await node.list(folder)) {
    const path = `${folder}/${name}`;
    const info = await Deno.lstat(node.path(path));
    if (info.isDirectory) {
      lines.push(`${path} directory`);
      await walk(node, path, lines);
    } else if (info.isSymlink) lines.push(`${path} symlink to ${await Deno.readLink(node.path(path))}`);
    else if (info.isFile) {
      const mode = ((info.mode ?? 0) & 0o7777).toString(8);
      lines.push(`${path} file ${mode} ${JSON.stringify(await node.read(path))}`);
    } else lines.push(`${path} special`);
  }
}
