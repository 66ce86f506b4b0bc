/**
 * A shadow of this node: network namespaces of our own in which plugins can be tried out. They hold stand-ins for the
 * host's links, with the same names, numbers and addresses, its routes and its rules, and an empty namespace in place
 * of the container's. The kernel takes what is tried there as it would take it here, and nothing here changes.
 */
import type { Family } from "../net/cidr.ts";
import { runLines } from "./batch.ts";
import type { Link, RouteEntry } from "./ip.ts";
import { iptablesTool, unreadableTables } from "./iptables.ts";
import { type Command, CommandError, must, type Run, toolPath } from "./run.ts";

/** A shadow; it is gone when it is closed, or when this process ends. */
export interface Shadow {
  /** Runs commands in the shadow of the host; the container's namespace in their words means its shadow. */
  readonly host: Run;
  /** nft tables that were copied by nft: those of iptables come with iptables. */
  readonly copied: readonly string[];
  /** nft tables that could not be copied. */
  readonly missing: readonly string[];
  close(): Promise<void>;
}

/** More links than this are not copied: those with addresses and bridges come first. */
const MAX_LINKS = 60;

// Each holder lives until our end of the pipe is closed. A job in the background would lose its standard input: hence
// 3.
const HOLDERS = `exec 3<&0
unshare --net -- /bin/sh -c 'echo pod $$; exec cat' <&3 &
unshare --net -- /bin/sh -c 'echo away $$; exec cat' <&3 &
echo host $$; exec cat`;

/** The host's alone. */
const HOLDER = "echo host $$; exec cat";

/** What a shadow may do without. */
export interface ShadowOptions {
  /** For trying out rules and nothing else: there is no container, and of the links only those that rules name. */
  readonly rulesOnly?: boolean;
}

/** Makes a shadow. Without root it lives in a user namespace of its own, and knows no rules of the host. */
export async function makeShadow(
  real: Run,
  netns: string,
  { rulesOnly = false }: ShadowOptions = {},
): Promise<Shadow> {
  const rootless = Deno.uid() !== 0;
  const holder = new Deno.Command(toolPath("unshare") || "unshare", {
    args: [
      ...(rootless ? ["--user", "--map-root-user"] : []),
      "--net",
      "--",
      "/bin/sh",
      "-c",
      rulesOnly ? HOLDER : HOLDERS,
    ],
    clearEnv: true,
    env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", LC_ALL: "C" },
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const close = async () => {
    await holder.stdin.close().catch(() => {});
    await holder.stdout.cancel().catch(() => {});
    await holder.stderr.cancel().catch(() => {});
    await holder.status;
  };
  try {
    const pids = await holderPids(holder, rulesOnly ? 1 : 3);
    const path = (name: string) => `/proc/${pids.get(name)}/ns/net`;
    const user = [`--user=/proc/${pids.get("host")}/ns/user`, "--preserve-credentials"];
    const enter = (name: string): Run => (command) => {
      const inner = inShadow(command, netns, path("pod"));
      const net = `--net=${path(name)}`;
      // Runs take `nsenter --net=PATH --` apart; with more options it is a command like any other.
      const front = rootless ? ["sh", "-c", 'exec nsenter "$@"', "sh", ...user, net, "--"] : ["nsenter", net, "--"];
      return real({ ...inner, argv: [...front, ...inner.argv] });
    };
    const host = enter("host");
    if (!rulesOnly) await copyLinks(real, host, path("away"));
    const tables = rootless ? { copied: [], missing: [] } : await copyRules(real, host, { rulesOnly });
    return { host, ...tables, close };
  } catch (error) {
    await close();
    throw error;
  }
}

async function holderPids(holder: Deno.ChildProcess, count: number): Promise<Map<string, string>> {
  const pids = new Map<string, string>();
  const reader = holder.stdout.getReader();
  const decoder = new TextDecoder();
  let said = "";
  while (pids.size < count) {
    const { value, done } = await reader.read();
    if (done) {
      const words = new TextDecoder().decode(await new Response(holder.stderr).arrayBuffer()).trim();
      throw new Error(`no namespace to try things out in: ${words || "unshare ended"}`);
    }
    said += decoder.decode(value, { stream: true });
    for (const [, name = "", pid = ""] of said.matchAll(/^(\w+) (\d+)$/gm)) pids.set(name, pid);
  }
  reader.releaseLock();
  return pids;
}

/** The same command with the container's namespace replaced by its shadow. */
function inShadow(command: Command, netns: string, shadow: string): Command {
  if (netns === "") return command;
  const word = new RegExp(`(^|[\\s=])${netns.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}(?=$|[\\s])`, "g");
  const changed = (text: string) => text.replace(word, (_, before: string) => `${before}${shadow}`);
  return { ...command, argv: command.argv.map(changed), ...(command.input && { input: command.input.map(changed) }) };
}

async function json<T>(real: Run, ...args: string[]): Promise<T[]> {
  return JSON.parse(await must(real, { argv: ["ip", "-j", "-d", ...args] }) || "[]") as T[];
}

/** Stand-ins of links, and their routes; what this kernel cannot have is left out. */
async function copyLinks(real: Run, shadow: Run, away: string): Promise<void> {
  const [links, routes, routes6] = await Promise.all([
    json<Link>(real, "addr", "show"),
    json<RouteEntry>(real, "-4", "route", "show"),
    json<RouteEntry>(real, "-6", "route", "show"),
  ]);
  const chosen = links.filter(({ ifname }) => ifname !== "lo").sort((a, b) => weight(b) - weight(a)).slice(
    0,
    MAX_LINKS,
  );
  const names = new Set(chosen.map(({ ifname }) => ifname));
  const lines = [
    "link set dev lo up",
    ...chosen.flatMap((link) => standIn(link, away)),
    ...chosen.flatMap(({ ifname, master }) =>
      master && names.has(master) ? [`link set dev ${ifname} master ${master}`] : []
    ),
    ...[...routes, ...routes6].flatMap((route) => routeLine(route, names)),
  ];
  await runLines(shadow, ["ip", "-force"], lines);
}

async function copyRules(
  real: Run,
  shadow: Run,
  { rulesOnly }: { readonly rulesOnly: boolean },
): Promise<Pick<Shadow, "copied" | "missing">> {
  const [tables, saved, saved6] = await Promise.all([nftTables(real), savedRules(real, 4), savedRules(real, 6)]);
  if (rulesOnly) await copyNamedLinks(real, shadow, [...tables.values()].join(""));
  const [unreadable, unreadable6] = await Promise.all([
    copyTables(shadow, 4, saved),
    copyTables(shadow, 6, saved6),
  ]);
  const hidden = [...unreadable, ...unreadable6];
  return await copyNft(shadow, [...tables].filter(([name]) => !OF_IPTABLES.test(name) || hidden.includes(name)));
}

/**
 * Where rules name links by their number, as `iif "eth0"`, nft takes them only where there are such links, of whatever
 * kind.
 */
async function copyNamedLinks(real: Run, shadow: Run, rules: string): Promise<void> {
  if (!rules.includes('"')) return;
  const links = (await json<Link>(real, "link", "show")).filter(({ ifname }) =>
    ifname !== "lo" && rules.includes(`"${ifname}"`)
  ).slice(0, MAX_LINKS);
  const lines = links.map(({ ifname, ifindex }) => `link add name ${ifname} index ${ifindex} type bridge`);
  if (lines.length > 0) await runLines(shadow, ["ip", "-force"], lines);
}

function weight({ linkinfo, addr_info = [], master }: Link): number {
  if (linkinfo?.info_kind === "bridge") return 3;
  return addr_info.length > 0 ? 2 : master ? 0 : 1;
}

/** Links of other kinds are pairs whose other end is out of sight. */
function standIn(link: Link, away: string): string[] {
  const { ifname, ifindex, address, mtu, flags, linkinfo, ifalias, addr_info = [] } = link;
  const own = `name ${ifname} index ${ifindex}${
    address && /^[\da-f:]{17}$/.test(address) ? ` address ${address}` : ""
  } mtu ${mtu}`;
  const kind = linkinfo?.info_kind;
  const filtering = linkinfo?.info_data?.["vlan_filtering"] === 1 ? " vlan_filtering 1" : "";
  const made = kind === "bridge" || kind === "ifb" ? [`link add ${own} type ${kind}${filtering}`] : [
    `link add ${own} type veth peer name peer${ifindex} netns ${away}`,
  ];
  return [
    ...made,
    ...(ifalias && !/["\n]/.test(ifalias) ? [`link set dev ${ifname} alias "${ifalias}"`] : []),
    ...(flags.includes("PROMISC") ? [`link set dev ${ifname} promisc on`] : []),
    ...(flags.includes("UP") ? [`link set dev ${ifname} up`] : []),
    ...addr_info.filter(({ scope, family }) => !(family === "inet6" && scope === "link"))
      .map(({ local, prefixlen, broadcast }) =>
        `addr add ${local}/${prefixlen}${broadcast ? ` brd ${broadcast}` : ""} dev ${ifname}${
          local.includes(":") ? " nodad" : ""
        }`
      ),
  ];
}

function routeLine({ dst, gateway, dev, metric, protocol }: RouteEntry, names: ReadonlySet<string>): string[] {
  if (dev === undefined || !names.has(dev) || protocol === "kernel") return [];
  const six = dst.includes(":") || gateway?.includes(":");
  const to = dst === "default" ? (six ? "::/0" : "0.0.0.0/0") : dst;
  return [
    `route replace ${to}${gateway ? ` via ${gateway}` : ""} dev ${dev}${metric ? ` metric ${metric}` : ""} onlink`,
  ];
}

/** What `…-save` prints; "" where the tool is not there or does not work. */
async function savedRules(real: Run, family: Family): Promise<string> {
  const tool = `${iptablesTool(family)}-save`;
  if (toolPath(tool) === "") return "";
  const { code, stdout } = await real({ argv: [tool] });
  return code === 0 ? stdout : "";
}

/** Returns the names, as nft has them, of tables that iptables cannot print. */
async function copyTables(shadow: Run, family: Family, saved: string): Promise<string[]> {
  if (saved === "") return [];
  const tool = iptablesTool(family);
  const command = { argv: [`${tool}-restore`], input: [saved] };
  const answer = await shadow(command);
  if (answer.code !== 0) {
    throw new CommandError(command, answer, `the rules of ${tool} cannot be copied: ${answer.stderr.trim()}`);
  }
  return unreadableTables(saved).map((name) => `${family === 4 ? "ip" : "ip6"} ${name}`);
}

/** Tables that iptables keeps in nf_tables come with iptables: nft cannot write all that is in them. */
const OF_IPTABLES = /^(ip|ip6) (raw|mangle|nat|filter|security)$/;

/** Tables of nft, each with its text; undefined where it cannot be listed. None where nft does not work. */
async function nftTables(real: Run): Promise<Map<string, string | undefined>> {
  if (toolPath("nft") === "") return new Map();
  const all = await real({ argv: ["nft", "list", "ruleset"] });
  if (all.code === 0) return listedTables(all.stdout);
  const { code, stdout } = await real({ argv: ["nft", "list", "tables"] });
  return new Map(
    code === 0 ? [...stdout.matchAll(/^table (\S+ \S+)$/gm)].map(([, name = ""]) => [name, undefined]) : [],
  );
}

/** The tables of a listing, each with its text. */
export function listedTables(listing: string): Map<string, string> {
  return new Map(
    [...listing.matchAll(/^table (\S+ \S+) \{.*?^\}$/gms)].map(([text, name = ""]) => [name, `${text}\n`]),
  );
}

async function copyNft(
  shadow: Run,
  tables: readonly (readonly [name: string, text: string | undefined])[],
): Promise<Pick<Shadow, "copied" | "missing">> {
  const copied: string[] = [];
  const missing: string[] = [];
  for (const [name, text] of tables) {
    const done = text !== undefined && (await shadow({ argv: ["nft", "-f", "-"], input: [text] })).code === 0;
    (done ? copied : missing).push(name);
  }
  return { copied, missing };
}
