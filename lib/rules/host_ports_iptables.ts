/**
 * Published ports of a container as rules in iptables: set, removed, checked and collected. Names, comments and rules
 * are the reference's, so that either implementation checks and deletes what the other made.
 *
 *     PREROUTING, OUTPUT: to an address of this host → CNI-HOSTPORT-DNAT: to a published port, one rule for 15 of them
 *       → CNI-DN-…, the container's own chain: from where replies would not come back → CNI-HOSTPORT-SETMARK; then DNAT
 *     POSTROUTING: with that mark → CNI-HOSTPORT-MASQ: masquerade
 *
 * The usual case is one transaction per family that names the shared rules it relies on (`-C`) and makes the
 * container's own. Only when it is refused is the present state read, and what is missing is made as well.
 */
import { badConfig, type CniError, internal } from "../cni/error.ts";
import {
  iptablesTool,
  leadingTo,
  makingLine,
  missingRules,
  quoteWord,
  refusedLine,
  restore,
  ruleComment,
  ruleTarget,
  ruleWords,
  type SavedTable,
  savedTable,
  TableError,
  transaction,
  type WantedRule,
} from "../kernel/iptables.ts";
import {
  type Family,
  formatAddress,
  formatPrefix,
  isLoopback,
  isUnspecified,
  networkPrefix,
  parseAddress,
  type Prefix,
} from "../net/cidr.ts";
import { chainName, dnatComment, type Owner } from "../net/name.ts";
import { type Change, type Host, mayBeOthers, settledTable } from "./backend.ts";
import { settledInTurn } from "./shared_chains.ts";

/** One published port, checked: ports from 1 to 65535, `hostIP` "" or an address. */
export interface PortMapping {
  readonly hostPort: number;
  readonly containerPort: number;
  /** As configured: `tcp`, `UDP`, `6`. */
  readonly protocol: string;
  readonly hostIP: string;
}

/** What a container publishes on one network, and how. */
export interface HostPorts {
  readonly owner: Owner;
  readonly mappings: readonly PortMapping[];
  /** Masquerade what comes from the container's own subnet and from 127.0.0.1. */
  readonly snat: boolean;
  /** Masquerade every client. */
  readonly masqAll: boolean;
  /** 0 to 31. */
  readonly markBit: number;
  /** Chain of somebody else that marks packets to be masqueraded. */
  readonly externalMarkChain: string | undefined;
  /** Further matches of the rules that lead to the container. */
  readonly conditions: Readonly<Record<Family, readonly string[]>>;
}

/** Shared chains of the reference. */
export const DNAT_CHAIN = "CNI-HOSTPORT-DNAT";
const MARK_CHAIN = "CNI-HOSTPORT-SETMARK";
const MASQ_CHAIN = "CNI-HOSTPORT-MASQ";
/** multiport matches this many ports. */
const PORTS_PER_RULE = 15;
/** The container's own chain. */
export function hostPortChain(owner: Owner): string {
  return chainName(owner, "DN-");
}

/** A protocol's usual name: iptables takes any case, and numbers. */
export function protocolName(protocol: string): string {
  const lower = protocol.toLowerCase();
  return ({ "6": "tcp", "17": "udp", "33": "dccp", "132": "sctp" } as Record<string, string>)[lower] ?? lower;
}

/**
 * Does this mapping give the family rules of its own? One with a `hostIP` of the other family does not. What is not an
 * address counts as IPv6, as in the reference.
 */
export function appliesTo({ hostIP }: PortMapping, family: Family): boolean {
  return hostIP === "" || (parseAddress(hostIP)?.family ?? 6) === family;
}

/** The destination that a mapping insists on; "" for any address of this host. */
export function destinationOf({ hostIP }: PortMapping): string {
  const address = parseAddress(hostIP);
  return address && !isUnspecified(address) ? formatAddress(address) : "";
}

/** Can a port be reached by 127.0.0.1? Only then is `route_localnet` of any use. */
export function usesLocalhost({ snat, mappings }: HostPorts): boolean {
  return snat && mappings.some((mapping) => {
    const to = parseAddress(destinationOf(mapping));
    return appliesTo(mapping, 4) && (to === undefined || isLoopback(to));
  });
}

/** Rules that all containers share, in the order in which they are made. */
function sharedRules({ snat, markBit, externalMarkChain }: HostPorts): WantedRule[] {
  // >>> 0: bit 31 is a sign in 32-bit arithmetic.
  const mark = `0x${((1 << markBit) >>> 0).toString(16)}`;
  const marking = snat && externalMarkChain === undefined
    ? [
      {
        chain: MARK_CHAIN,
        rule: `-m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark ${mark}/${mark}`,
      },
      { chain: MASQ_CHAIN, rule: `-m mark --mark ${mark}/${mark} -j MASQUERADE` },
      {
        chain: "POSTROUTING",
        rule: `-m comment --comment "CNI portfwd requiring masquerade" -j ${MASQ_CHAIN}`,
        first: true,
      },
    ]
    : [];
  const local = `-m addrtype --dst-type LOCAL -j ${DNAT_CHAIN}`;
  return [...marking, { chain: "PREROUTING", rule: local }, { chain: "OUTPUT", rule: local }];
}

/** Chains that the shared rules live in or lead to. */
function sharedChains({ snat, externalMarkChain }: HostPorts): string[] {
  return [...(snat && externalMarkChain === undefined ? [MARK_CHAIN, MASQ_CHAIN] : []), DNAT_CHAIN];
}

/** The container's rules, without the chain that they are in. */
interface OwnRules {
  readonly chain: string;
  /** In the container's chain. */
  readonly content: readonly string[];
  /** In {@linkcode DNAT_CHAIN}. */
  readonly entries: readonly string[];
}

/** Rules of one container for one of its addresses, in the reference's order. */
export function ownRules(ports: HostPorts, target: Prefix): OwnRules {
  const { owner, mappings, snat, masqAll, conditions } = ports;
  const { family } = target.address;
  const chain = hostPortChain(owner);
  const marker = ports.externalMarkChain ?? MARK_CHAIN;
  const ip = formatAddress(target.address);
  const content = mappings.filter((mapping) => appliesTo(mapping, family)).flatMap((mapping) => {
    const to = destinationOf(mapping);
    const match = `-p ${quoteWord(mapping.protocol)} --dport ${mapping.hostPort}${to === "" ? "" : ` -d ${to}`}`;
    const sources = !snat
      ? []
      : masqAll
      ? [family === 4 ? "0.0.0.0/0" : "::/0"]
      : [formatPrefix(networkPrefix(target)), ...(family === 4 ? ["127.0.0.1"] : [])];
    const place = family === 4 ? ip : `[${ip}]`;
    return [
      ...sources.map((source) => `${match} -s ${source} -j ${marker}`),
      `${match} -j DNAT --to-destination ${place}:${mapping.containerPort}`,
    ];
  });
  // A rule that is there already is not made twice, as in the reference.
  return { chain, content: [...new Set(content)], entries: entryRules(owner, mappings, conditions[family]) };
}

/** Rules that lead to the container's chain: all mappings take part, also those of the other family. */
function entryRules(owner: Owner, mappings: readonly PortMapping[], conditions: readonly string[]): string[] {
  const comment = quoteWord(dnatComment(owner));
  const more = conditions.map((word) => ` ${quoteWord(word)}`).join("");
  const protocols = [...new Set(mappings.map((mapping) => mapping.protocol))].sort();
  return protocols.flatMap((protocol) => {
    const ports = mappings.filter((mapping) => mapping.protocol === protocol).map((mapping) => mapping.hostPort);
    const rules: string[] = [];
    for (let i = 0; i < ports.length; i += PORTS_PER_RULE) {
      const some = ports.slice(i, i + PORTS_PER_RULE).join(",");
      rules.push(
        `-m comment --comment ${comment} -m multiport -p ${quoteWord(protocol)} --destination-ports ${some}${more}` +
          ` -j ${hostPortChain(owner)}`,
      );
    }
    return rules;
  });
}

/** The usual ADD: everything shared is there, nothing of the container's is. */
export function additionText(ports: HostPorts, target: Prefix): string {
  return transaction("nat", additionLines(ports, target));
}

function additionLines(ports: HostPorts, target: Prefix): string[] {
  const { chain, content, entries } = ownRules(ports, target);
  return [
    ...sharedRules(ports).map(({ chain, rule }) => `-C ${chain} ${rule}`),
    `-N ${chain}`,
    ...content.map((rule) => `-A ${chain} ${rule}`),
    ...entries.map((rule) => `-A ${DNAT_CHAIN} ${rule}`),
  ];
}

/** The usual DEL: everything is as ADD left it. */
export function removalLines({ owner, mappings, conditions }: HostPorts, family: Family): string[] {
  const chain = hostPortChain(owner);
  const entries = entryRules(owner, mappings, conditions[family]);
  return [...entries.map((rule) => `-D ${DNAT_CHAIN} ${rule}`), `-F ${chain}`, `-X ${chain}`];
}

/** Something that the usual transaction relies on besides its own table. */
export interface Reliance {
  /** Lines in front of the transaction that fail it when this is not as it should. */
  readonly check: string;
  /** Makes it so. */
  ensure(): Promise<void>;
}

/**
 * Publishes the ports for one address: in one process when nothing is missing. Throws {@linkcode TableError} and
 * nothing was changed.
 */
export async function addHostPorts(
  call: Host,
  ports: HostPorts,
  target: Prefix,
  reliance?: Reliance,
): Promise<void> {
  const { family } = target.address;
  try {
    await restore(call.host, family, (reliance?.check ?? "") + additionText(ports, target));
    return;
  } catch (error) {
    if (!mayBeOthers(error)) throw error;
  }
  await reliance?.ensure();
  await settledInTurn(call, { family, table: "nat" }, async (attempt, refusal) => {
    const table = await savedTable(call.host, family, "nat");
    // Without a table the transaction is tried once more, which tells what does not work.
    if (table === undefined && attempt > 0) throw refusal;
    const lines = table ? await repairLines(call, ports, { target, table }) : additionLines(ports, target);
    return { lines, result: undefined };
  });
}

/**
 * Puts what leads to the container in front of all others, in its order: what is before it leads to dead containers.
 */
export async function moveHostPortsFirst({ host }: Host, ports: HostPorts, family: Family): Promise<void> {
  const entries = entryRules(ports.owner, ports.mappings, ports.conditions[family]);
  const lines = [
    ...entries.map((rule) => `-D ${DNAT_CHAIN} ${rule}`),
    ...entries.toReversed().map((rule) => `-I ${DNAT_CHAIN} 1 ${rule}`),
  ];
  await restore(host, family, transaction("nat", lines));
}

/** What makes the shared rules that are missing, and the container's own in place of what is there of it. */
async function repairLines(
  { host }: Host,
  ports: HostPorts,
  { target, table }: { readonly target: Prefix; readonly table: SavedTable },
): Promise<string[]> {
  const { family } = target.address;
  const external = ports.externalMarkChain;
  if (ports.snat && external !== undefined && !table.chains.has(external)) throw noMarkChain(external, family);
  const missing = await missingRules(host, sharedRules(ports), { family, table, name: "nat" });
  const { chain, content, entries } = ownRules(ports, target);
  return [
    ...sharedChains(ports).filter((name) => !table.chains.has(name)).map((name) => `-N ${name}`),
    ...missing.map(makingLine),
    // Declaring a chain that is there empties it.
    `:${chain} - [0:0]`,
    ...content.map((rule) => `-A ${chain} ${rule}`),
    ...leadingTo(table, chain).map((rule) => `-D ${rule}`),
    ...entries.map((rule) => `-A ${DNAT_CHAIN} ${rule}`),
  ];
}

function noMarkChain(chain: string, family: Family): CniError {
  return badConfig(
    `unable to setup DNAT: Chain '${chain}' does not exist in ${iptablesTool(family)} table nat`,
    `"externalSetMarkChain" names a chain that its owner has to make first (kube-proxy no longer makes KUBE-MARK-MASQ); ` +
      "remove the option to have the marks set by cnibox",
  );
}

/** What removing found. */
export interface Removed {
  /** There were rules of the container. */
  readonly found: boolean;
  /** Addresses that its ports led to, where they had to be read. */
  readonly addresses: readonly string[];
}

/**
 * Removes the container's rules of one family: by one transaction when they are as `ports` would make them, else
 * whatever is found by the names of its chains. A missing tool or table is success.
 */
export async function removeHostPorts(
  call: Host,
  ports: HostPorts,
  { family, likely }: { readonly family: Family; readonly likely: boolean },
): Promise<Removed> {
  // `CNI-SN-…`: the masquerading chain of releases before 0.7.
  const chains = [hostPortChain(ports.owner), chainName(ports.owner, "SN-")];
  const first = likely && ports.mappings.length > 0 ? removalLines(ports, family) : [];
  return await cleanChains(call, family, { first, choose: () => chains, about: (name) => chains.includes(name) });
}

/**
 * Removes chains chosen by what the table holds; tried again when somebody else changes the table meanwhile. `first`:
 * lines to try without a look at the table.
 */
async function cleanChains(
  { host }: Host,
  family: Family,
  { first = [], choose, ...options }: {
    readonly first?: readonly string[];
    readonly choose: (table: SavedTable) => readonly string[];
    readonly about?: (chain: string) => boolean;
  },
): Promise<Removed> {
  return await settledTable({ host }, { family, table: "nat" }, async (attempt): Promise<Change<Removed>> => {
    if (attempt === 0 && first.length > 0) return { lines: first, result: { found: true, addresses: [] } };
    const table = await savedTable(host, family, "nat", options);
    const there = table === undefined ? [] : choose(table).filter((chain) => table.chains.has(chain));
    if (table === undefined || there.length === 0) return { lines: [], result: { found: false, addresses: [] } };
    return {
      lines: [
        ...leadingTo(table, ...there).map((rule) => `-D ${rule}`),
        ...there.flatMap((chain) => [`-F ${chain}`, `-X ${chain}`]),
      ],
      result: { found: true, addresses: [...new Set(there.flatMap((chain) => targetsOf(table, chain)))] },
    };
  });
}

/** Does a listed table lead packets to the container's chain? */
export function leadsTo(table: SavedTable | undefined, owner: Owner): boolean {
  return table !== undefined && leadingTo(table, hostPortChain(owner)).length > 0;
}

/** Addresses that a container's chain sends to. */
function targetsOf(table: SavedTable, chain: string): string[] {
  return (table.chains.get(chain) ?? []).flatMap(({ text }) => dnatTarget(text)?.address ?? []);
}

/** `10.22.0.5:80` or `[fd00::5]:80` after `--to-destination`. */
export function dnatTarget(rule: string): { address: string; port: number } | undefined {
  const words = ruleWords(rule);
  const at = words.indexOf("--to-destination");
  const found = /^\[?([0-9a-f.:]+?)\]?:(\d+)$/.exec(at < 0 ? "" : words[at + 1] ?? "");
  return found ? { address: found[1] ?? "", port: Number(found[2]) } : undefined;
}

/**
 * The error, in the reference's words, for the first of the container's rules that is missing. The tool compares: one
 * transaction that only asks. Rules that a release of the reference would have made in another place are not asked for.
 */
export async function missingHostPort(
  { host }: Host,
  ports: HostPorts,
  target: Prefix,
): Promise<CniError | undefined> {
  const { family } = target.address;
  const { chain, content, entries } = ownRules(ports, target);
  const shared = sharedRules(ports);
  const lines = [
    ...content.map((rule) => `-C ${chain} ${rule}`),
    ...entries.map((rule) => `-C ${DNAT_CHAIN} ${rule}`),
    ...shared.map(({ chain, rule }) => `-C ${chain} ${rule}`),
  ];
  try {
    await restore(host, family, transaction("nat", lines));
    return undefined;
  } catch (error) {
    if (!(error instanceof TableError)) throw error;
    if (["missing", "absent", "unusable"].includes(error.refusal)) return unusable(error, family);
    if (error.refusal !== "refused") throw error;
    // Line 1 is `*nat`.
    const index = (refusedLine(error) ?? 2) - 2;
    const doing = `could not check ipv${family} dnat`;
    const advice = `${iptablesTool(family)} has no rule: ${(lines[index] ?? lines[0] ?? "").slice(3)}`;
    const table = await savedTable(host, family, "nat");
    if (table && !table.chains.has(chain)) {
      return internal(
        `${doing}: chain ${chain} not found in iptables table nat`,
        "somebody removed rules of this container, for example by reloading a firewall",
      );
    }
    const [name, rules] = index < content.length
      ? [chain, content]
      : index < content.length + entries.length
      ? [DNAT_CHAIN, entries.map((rule) => rule.replace(/ -j \S+$/, ""))]
      : [shared[index - content.length - entries.length]?.chain ?? "", [lines[index]?.replace(/^-C \S+ /, "") ?? ""]];
    const shown = rules.map((rule) => `[${ruleWords(rule).join(" ")}]`).join(" ");
    return internal(`${doing}: rule [${shown}] in chain ${name} not found in table nat`, advice);
  }
}

function unusable({ message }: TableError, family: Family): CniError {
  const [four, six] = family === 4 ? [message, "<nil>"] : ["<nil>", message];
  return internal(
    `neither iptables nor ip6tables is usable, (iptables) ${four}, (ip6tables) ${six}`,
    'install the package iptables, or set "backend": "nftables"',
  );
}

/**
 * The container that a rule in {@linkcode DNAT_CHAIN} leads to; undefined when its comment was cut or is no such thing.
 */
export function entryOwner(rule: string): Owner | undefined {
  const found = /^dnat name: "([^"]*)" id: "([^"]*)"$/.exec(ruleComment(rule) ?? "");
  return found ? { network: found[1] ?? "", containerId: found[2] ?? "" } : undefined;
}

/** Whose rules a table holds: the chain's name says whether a comment tells the truth. */
export function hostPortOwners(table: SavedTable): Owner[] {
  return (table.chains.get(DNAT_CHAIN) ?? []).flatMap(({ text }) => {
    const owner = entryOwner(text);
    return owner && ruleTarget(text) === hostPortChain(owner) ? [owner] : [];
  });
}

/** Removes the chains of containers that `isStale` picks. */
export async function collectHostPorts(
  call: Host,
  family: Family,
  isStale: (owner: Owner) => boolean,
): Promise<void> {
  const choose = (table: SavedTable) => [...new Set(hostPortOwners(table).filter(isStale).map(hostPortChain))];
  await cleanChains(call, family, { choose });
}
