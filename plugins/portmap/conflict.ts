/**
 * One host port asked for twice: by two containers, or by a container and a program of this host. Rules take no notice,
 * the older one just keeps the traffic, so somebody has to look.
 */
import { heldByAnother } from "../../lib/ipam/lease_holder.ts";
import { answersOf } from "../../lib/kernel/batch.ts";
import { listedChain, ruleTarget, ruleWords, type SavedRule } from "../../lib/kernel/iptables.ts";
import type { Host } from "../../lib/rules/backend.ts";
import type { NftPort } from "../../lib/rules/host_ports_nft.ts";
import type { Run } from "../../lib/kernel/run.ts";
import { toolPath } from "../../lib/kernel/run.ts";
import { type Family, parseAddress, sameAddress } from "../../lib/net/cidr.ts";
import {
  appliesTo,
  destinationOf,
  DNAT_CHAIN,
  dnatTarget,
  entryOwner,
  hostPortChain,
  type HostPorts,
  type PortMapping,
  protocolName,
} from "../../lib/rules/host_ports_iptables.ts";

/** A port that somebody else's rules send to another container. */
export interface ConflictingMapping {
  /** What tells containers apart in the rules of one backend, in both families. */
  readonly key: string;
  /** Its rules come before ours: it has the traffic. */
  readonly ahead: boolean;
  readonly protocol: string;
  readonly port: number;
  readonly containerId: string;
  /** Unknown where rules do not tell. */
  readonly network: string | undefined;
  /** The container's address; "" when its rules lead nowhere. */
  readonly address: string;
  /** Either side's rules have conditions of their own, so both may work. */
  readonly conditional: boolean;
}

/** Do both mean some packet, as far as the address of this host goes? "" is any address. */
function overlap(a: string, b: string): boolean {
  if (a === "" || b === "") return true;
  const [x, y] = [parseAddress(a), parseAddress(b)];
  return x === undefined || y === undefined ? a === b : sameAddress(x, y);
}

/** Mappings that concern a family, with what they insist on. */
function ownPorts(ports: HostPorts, family: Family): PortMapping[] {
  return ports.mappings.filter((mapping) => appliesTo(mapping, family));
}

/** One rule of {@linkcode DNAT_CHAIN} as it is listed: which ports it takes, and where it leads. */
interface Entry {
  readonly chain: string;
  readonly protocol: string;
  readonly ports: readonly (readonly [from: number, to: number])[];
  readonly text: string;
}

const ENTRY_WORDS = new Set(["-p", "-m", "--comment", "--dports", "-j"]);

/** Of listed rules those that match ports. */
export function parseEntries(rules: readonly SavedRule[]): Entry[] {
  return rules.flatMap(({ text: rule }) => {
    const words = ruleWords(rule);
    const list = words[words.indexOf("--dports") + 1] ?? "";
    const target = ruleTarget(rule);
    if (!words.includes("--dports") || target === undefined) return [];
    const ports = list.split(",").map((part) => {
      const [from = "", to = from] = part.split(":");
      return [Number(from), Number(to)] as const;
    });
    return [{ chain: target, protocol: protocolName(words[words.indexOf("-p") + 1] ?? ""), ports, text: rule }];
  });
}

function hasConditions(rule: string): boolean {
  return ruleWords(rule).some((word) => word.startsWith("-") && !ENTRY_WORDS.has(word)) ||
    ruleWords(rule).includes("!");
}

/** Rules of the chain that leads to containers; [] when there is no such chain. */
export async function listEntries({ host }: Host, family: Family): Promise<SavedRule[]> {
  return await listedChain(host, DNAT_CHAIN, { family, table: "nat" }) ?? [];
}

/**
 * Conflicting mappings in iptables. Ask when the own rules are set: of two that came at once, one is earlier in the
 * list.
 */
export async function iptablesConflicts(
  { host }: Host,
  ports: HostPorts,
  family: Family,
): Promise<ConflictingMapping[]> {
  const entries = parseEntries(await listEntries({ host }, family));
  const mine = hostPortChain(ports.owner);
  const at = entries.findIndex((entry) => entry.chain === mine);
  const conflicts: ConflictingMapping[] = [];
  for (const [index, entry] of entries.entries()) {
    if (entry.chain === mine) continue;
    const own = ownPorts(ports, family).filter(({ protocol, hostPort }) =>
      protocolName(protocol) === entry.protocol && entry.ports.some(([from, to]) => from <= hostPort && hostPort <= to)
    );
    const owner = entryOwner(entry.text);
    // Another network of the same container leads to the same program.
    if (own.length === 0 || owner?.containerId === ports.owner.containerId) continue;
    const listed = await listedChain(host, entry.chain, { family, table: "nat" }) ?? [];
    const rules = listed.map(({ text }) => ({ words: ruleWords(text), to: dnatTarget(text) })).filter(({ to }) =>
      to !== undefined
    );
    for (const { protocol, hostPort, hostIP } of own) {
      const rule = rules.find(({ words }) => {
        const destination = words[words.indexOf("-d") + 1] ?? "";
        return words[words.indexOf("--dport") + 1] === `${hostPort}` &&
          protocolName(words[words.indexOf("-p") + 1] ?? "") === protocolName(protocol) &&
          overlap(
            words.includes("-d") ? destination.replace(/\/(32|128)$/, "") : "",
            destinationOf({ protocol, hostPort, hostIP, containerPort: 0 }),
          );
      });
      if (rule === undefined) continue;
      conflicts.push({
        key: entry.chain,
        ahead: at < 0 || index < at,
        protocol: entry.protocol,
        port: hostPort,
        containerId: owner?.containerId ?? entry.chain,
        network: owner?.network,
        address: rule.to?.address ?? "",
        conditional: hasConditions(entry.text) || ports.conditions[family].length > 0,
      });
    }
  }
  return conflicts;
}

/** Conflicting mappings among rules of nftables, in their order. */
export function nftConflicts(rules: readonly NftPort[], ports: HostPorts, family: Family): ConflictingMapping[] {
  const mine = ports.owner.containerId;
  const at = rules.findIndex((rule) => rule.comment === mine);
  return rules.flatMap((rule, index) => {
    if (rule.comment === mine) return [];
    const own = ownPorts(ports, family).find((mapping) =>
      protocolName(mapping.protocol) === rule.protocol && mapping.hostPort === rule.port &&
      overlap(destinationOf(mapping), rule.hostIP)
    );
    if (own === undefined) return [];
    return [{
      key: rule.comment,
      ahead: at < 0 || index < at,
      protocol: rule.protocol,
      port: rule.port,
      containerId: rule.comment,
      network: undefined,
      address: rule.address,
      conditional: rule.conditional || ports.conditions[family].length > 0,
    }];
  });
}

/** How long a container may take to answer for its address: a neighbour on a link of this very host. */
const WAITS_MS = [5, 15, 30, 60, 120, 240, 480];

/**
 * Is there still a container behind these rules? Its address has to answer for itself on the link that leads there (the
 * kernel asks by ARP or neighbour discovery; a living container's kernel answers within a millisecond, even when every
 * process in it is stopped), and it must not have been given to another container since. Only asked when two want one
 * port.
 */
export async function isLiving(
  { host }: Host,
  { address, ...owner }: Pick<ConflictingMapping, "containerId" | "network" | "address">,
  family: Family,
): Promise<boolean> {
  if (address === "" || heldByAnother(address, owner)) return false;
  const ask = async <T>(words: string): Promise<T | undefined> => {
    const { code, stdout } = await host({ argv: ["ip", "-j", `-${family}`, ...words.split(" ")] });
    return code === 0 ? answersOf<T>(stdout)[0]?.[0] : undefined;
  };
  const route = await ask<{ dev?: string; gateway?: string; type?: string }>(`route get ${address}`);
  if (route?.dev === undefined || route.type === "unreachable" || route.type === "blackhole") return false;
  // An address of this host, or one behind a router: cannot be asked.
  if (route.type === "local" || route.gateway !== undefined) return true;
  const neighbour = async () =>
    (await ask<{ state?: string[] }>(`neigh show ${address} dev ${route.dev}`))?.state?.[0] ?? "NONE";
  if (["PERMANENT", "NOARP"].includes(await neighbour())) return true;
  await host({ argv: ["ip", "neigh", "del", address, "dev", route.dev] });
  await host({ argv: ["ip", "neigh", "add", address, "dev", route.dev, "use"] });
  for (const wait of WAITS_MS) {
    await new Promise((done) => setTimeout(done, wait));
    const state = await neighbour();
    if (["REACHABLE", "STALE", "DELAY", "PERMANENT", "NOARP"].includes(state)) return true;
    if (state === "FAILED") return false;
  }
  return false;
}

/** A program of this host that listens on a published port. */
export interface Listener {
  readonly protocol: string;
  readonly port: number;
  readonly address: string;
  /** `nginx (PID 12)`, or "" when it cannot be told. */
  readonly program: string;
}

/** Programs that hold ports for a container: they belong to its runtime and are no conflict. */
const HOLDERS = ["conmon", "podman", "docker-proxy", "rootlessport"];

/** Programs of this host that listen on one of the ports; [] when `ss` is not there. */
export async function listeners({ host }: Host, mappings: readonly PortMapping[]): Promise<Listener[]> {
  const wanted = mappings.filter(({ protocol }) => ["tcp", "udp"].includes(protocolName(protocol)));
  if (wanted.length === 0 || wanted.length > 64 || toolPath("ss") === "") return [];
  const filter = [...new Set(wanted.map(({ hostPort }) => `sport = :${hostPort}`))].join(" or ");
  const found = await socketsOf(host, ["ss", "-Hlntu", filter]);
  const taken = found.filter((one) => wanted.some((mapping) => isSame(mapping, one)));
  if (taken.length === 0) return [];
  // Naming programs means looking through all processes: only now.
  const named = await socketsOf(host, ["ss", "-Hlntup", filter]);
  return named.filter((one) => wanted.some((mapping) => isSame(mapping, one))).filter(({ program }) =>
    !HOLDERS.some((holder) => program.startsWith(`${holder} `))
  );
}

function isSame(mapping: PortMapping, one: Listener): boolean {
  const address = one.address.replace(/%.*$/, "");
  const any = ["*", "0.0.0.0", "::"].includes(address);
  return protocolName(mapping.protocol) === one.protocol && mapping.hostPort === one.port &&
    overlap(destinationOf(mapping), any ? "" : address);
}

async function socketsOf(host: Run, argv: readonly string[]): Promise<Listener[]> {
  const { code, stdout } = await host({ argv });
  return code === 0 ? parseSockets(stdout) : [];
}

/** Reads `ss -Hlntup`: `tcp LISTEN 0 128 [::]:22 [::]:* users:(("sshd",pid=1,fd=4))`. */
export function parseSockets(text: string): Listener[] {
  return text.split("\n").flatMap((line) => {
    const [protocol = "", , , , local = ""] = line.trim().split(/\s+/);
    const at = local.lastIndexOf(":");
    if (at < 0) return [];
    const user = /users:\(\("([^"]*)",pid=(\d+)/.exec(line);
    return [{
      protocol,
      port: Number(local.slice(at + 1)),
      address: local.slice(0, at).replace(/^\[|\]$/g, ""),
      program: user ? `${user[1]} (PID ${user[2]})` : "",
    }];
  });
}
