/**
 * Published ports of a container as rules in iptables: set, removed, checked and collected. Names, comments and rules are
 * the reference's, so that either implementation checks and deletes what the other made.
 *
 *     PREROUTING, OUTPUT: to an address of this host → CNI-HOSTPORT-DNAT: to a published port, one rule for 15 of them
 *       → CNI-DN-…, the container's own chain: from where replies would not come back → CNI-HOSTPORT-SETMARK; then DNAT
 *     POSTROUTING: with that mark → CNI-HOSTPORT-MASQ: masquerade
 *
 * The usual case is one transaction per family that names the shared rules it relies on (`-C`) and makes the container's
 * own. Only when it is refused is the present state read, and what is missing is made as well.
 */
import { CniError, code } from "../cni/error.ts";
import { lockWithin } from "../kernel/flock.ts";
import {
  iptablesTool,
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
import { type Run, SCRATCH } from "../kernel/run.ts";
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
/** How often a change that another process got in the way of is tried with the state read anew. */
export const TRIES = 5;

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
 * Does this mapping give the family rules of its own? One with a `hostIP` of the other family does not. What is no address
 * counts as IPv6, as in the reference.
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
  const protocols = [...new Set(mappings.map((mapping) => mapping.protocol))].sort(byBytes);
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

function byBytes(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** The usual ADD: everything shared is there, nothing of the container's is. */
export function additionText(ports: HostPorts, target: Prefix): string {
  const { chain, content, entries } = ownRules(ports, target);
  return transaction("nat", [
    ...sharedRules(ports).map(({ chain, rule }) => `-C ${chain} ${rule}`),
    `-N ${chain}`,
    ...content.map((rule) => `-A ${chain} ${rule}`),
    ...entries.map((rule) => `-A ${DNAT_CHAIN} ${rule}`),
  ]);
}

/** The usual DEL: everything is as ADD left it. */
export function removalText({ owner, mappings, conditions }: HostPorts, family: Family): string {
  const chain = hostPortChain(owner);
  const entries = entryRules(owner, mappings, conditions[family]);
  return transaction("nat", [
    ...entries.map((rule) => `-D ${DNAT_CHAIN} ${rule}`),
    `-F ${chain}`,
    `-X ${chain}`,
  ]);
}

/** Where commands run. */
export interface Host {
  readonly host: Run;
}

/** Something that the usual transaction relies on besides its own table. */
export interface Reliance {
  /** Lines in front of the transaction that fail it when this is not as it should. */
  readonly check: string;
  /** Makes it so. */
  ensure(): Promise<void>;
}

/**
 * Publishes the ports for one address: in one process when nothing is missing. Throws {@linkcode TableError} and nothing
 * was changed.
 */
export async function addHostPorts(
  { host }: Host,
  ports: HostPorts,
  target: Prefix,
  reliance?: Reliance,
): Promise<void> {
  const { family } = target.address;
  let failure: unknown;
  for (let i = 0; i < TRIES; i++) {
    try {
      if (i === 0) await restore(host, family, (reliance?.check ?? "") + additionText(ports, target));
      else await oneAtATime(async () => await restore(host, family, await repairText(host, ports, target)));
      return;
    } catch (error) {
      if (!(error instanceof TableError) || error.refusal === "locked" || error.refusal === "missing") throw error;
      // At first it may have been what the transaction relies on.
      if (i > 0 && error.refusal !== "refused") throw error;
      failure = error;
    }
    if (i === 0) await reliance?.ensure();
  }
  throw failure;
}

/** Longest wait for another call that makes what all containers share, in milliseconds. */
const SHARED_MS = 10_000;

/**
 * One call of this host at a time, as far as that can be had: iptables takes a chain that another call has just made for its own,
 * and adds the jumps to it once more.
 */
async function oneAtATime(work: () => Promise<void>): Promise<void> {
  let folder: Deno.FsFile | undefined;
  try {
    // Any folder of ours does, and this one is there once a tool has been run.
    folder = Deno.openSync(SCRATCH);
  } catch {
    // Not root, or nothing was run: then without.
  }
  const locked = folder !== undefined && await lockWithin(folder, SHARED_MS);
  try {
    await work();
  } finally {
    if (locked) folder?.close();
  }
}

/** Puts what leads to the container in front of all others, in its order: what is before it leads to dead containers. */
export async function moveHostPortsFirst({ host }: Host, ports: HostPorts, family: Family): Promise<void> {
  const entries = entryRules(ports.owner, ports.mappings, ports.conditions[family]);
  const lines = [
    ...entries.map((rule) => `-D ${DNAT_CHAIN} ${rule}`),
    ...entries.toReversed().map((rule) => `-I ${DNAT_CHAIN} 1 ${rule}`),
  ];
  await restore(host, family, transaction("nat", lines));
}

/** What makes the shared rules that are missing, and the container's own in place of what is there of it. */
async function repairText(host: Run, ports: HostPorts, target: Prefix): Promise<string> {
  const { family } = target.address;
  const table = await savedTable(host, family, "nat");
  // The first failure says what does not work.
  if (table === undefined) return additionText(ports, target);
  const external = ports.externalMarkChain;
  if (ports.snat && external !== undefined && !table.chains.has(external)) throw noMarkChain(external, family);
  const missing = await missingRules(host, sharedRules(ports), { family, table, name: "nat" });
  const { chain, content, entries } = ownRules(ports, target);
  return transaction("nat", [
    ...sharedChains(ports).filter((name) => !table.chains.has(name)).map((name) => `-N ${name}`),
    ...missing.map(makingLine),
    // Declaring a chain that is there empties it.
    `:${chain} - [0:0]`,
    ...content.map((rule) => `-A ${chain} ${rule}`),
    ...leadingTo(table, [chain]).map((rule) => `-D ${rule}`),
    ...entries.map((rule) => `-A ${DNAT_CHAIN} ${rule}`),
  ]);
}

function noMarkChain(chain: string, family: Family): CniError {
  return new CniError(
    code.config,
    `unable to setup DNAT: Chain '${chain}' does not exist in ${iptablesTool(family)} table nat`,
    `"externalSetMarkChain" names a chain that its owner has to make first (kube-proxy no longer makes KUBE-MARK-MASQ); ` +
      "remove the option to have the marks set by cnibox",
  );
}

/** Rules of any chain that lead to one of `chains`, as `CHAIN RULE`. */
function leadingTo(table: SavedTable, chains: readonly string[]): string[] {
  return [...table.chains.values()].flat().filter(({ text }) =>
    chains.some((chain) => text.includes(chain)) && chains.includes(ruleTarget(text) ?? "")
  ).map(({ chain, text }) => `${chain} ${text}`);
}

/** What removing found. */
export interface Removed {
  /** There were rules of the container. */
  readonly found: boolean;
  /** Addresses that its ports led to, where they had to be read. */
  readonly addresses: readonly string[];
}

/**
 * Removes the container's rules of one family: by one transaction when they are as `ports` would make them, else whatever
 * is found by the names of its chains. A missing tool or table is success.
 */
export async function removeHostPorts({ host }: Host, ports: HostPorts, family: Family): Promise<Removed> {
  if (ports.mappings.length > 0) {
    try {
      await restore(host, family, removalText(ports, family));
      return { found: true, addresses: [] };
    } catch (error) {
      if (!(error instanceof TableError) || error.refusal === "locked") throw error;
      if (error.refusal === "missing") return { found: false, addresses: [] };
    }
  }
  return await cleanHostPorts({ host }, ports.owner, family);
}

/** Removes a container's chain, everything that leads to it, and what releases before 0.7 left. */
export async function cleanHostPorts({ host }: Host, owner: Owner, family: Family): Promise<Removed> {
  // `CNI-SN-…`: the masquerading chain of releases before 0.7.
  const chains = [hostPortChain(owner), chainName(owner, "SN-")];
  return await cleanChains({ host }, family, { choose: () => chains, about: (name) => chains.includes(name) });
}

/** Removes chains chosen by what the table holds; tried again when somebody else changes the table meanwhile. */
async function cleanChains(
  { host }: Host,
  family: Family,
  { choose, ...options }: {
    readonly choose: (table: SavedTable) => readonly string[];
    readonly about?: (chain: string) => boolean;
  },
): Promise<Removed> {
  for (let i = 0;; i++) {
    const table = await savedTable(host, family, "nat", options);
    const chains = table === undefined ? [] : choose(table);
    const there = chains.filter((chain) => table?.chains.has(chain));
    if (table === undefined || there.length === 0) return { found: i > 0, addresses: [] };
    const lines = [
      ...leadingTo(table, there).map((rule) => `-D ${rule}`),
      ...there.flatMap((chain) => [`-F ${chain}`, `-X ${chain}`]),
    ];
    try {
      await restore(host, family, transaction("nat", lines));
      return { found: true, addresses: [...new Set(there.flatMap((chain) => targetsOf(table, chain)))] };
    } catch (error) {
      if (!(error instanceof TableError) || error.refusal === "locked" || i + 1 >= TRIES) throw error;
    }
  }
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
 * Throws, in the reference's words, which of the container's rules is missing. The tool compares: one transaction that
 * only asks. Rules that a release of the reference would have made in another place are not asked for.
 */
export async function checkHostPorts({ host }: Host, ports: HostPorts, target: Prefix): Promise<void> {
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
    return;
  } catch (error) {
    if (!(error instanceof TableError) || error.refusal !== "refused") throw error;
    // Line 1 is `*nat`.
    const index = (refusedLine(error) ?? 2) - 2;
    const doing = `could not check ipv${family} dnat`;
    const advice = `${iptablesTool(family)} has no rule: ${(lines[index] ?? lines[0] ?? "").slice(3)}`;
    const table = await savedTable(host, family, "nat");
    if (table && !table.chains.has(chain)) {
      throw new CniError(
        code.internal,
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
    throw new CniError(code.internal, `${doing}: rule [${shown}] in chain ${name} not found in table nat`, advice);
  }
}

/** The container that a rule in {@linkcode DNAT_CHAIN} leads to; undefined when its comment was cut or is no such thing. */
export function entryOwner(rule: string): Owner | undefined {
  const found = /^dnat name: "([^"]*)" id: "([^"]*)"$/.exec(ruleComment(rule) ?? "");
  return found ? { network: found[1] ?? "", containerId: found[2] ?? "" } : undefined;
}

/** Removes the chains of this network's containers that are not valid any more. */
export async function collectHostPorts(
  { host }: Host,
  network: string,
  { family, valid }: { family: Family; valid: ReadonlySet<string> },
): Promise<void> {
  const choose = (table: SavedTable) => {
    const stale = new Set<string>();
    for (const { text } of table.chains.get(DNAT_CHAIN) ?? []) {
      const owner = entryOwner(text);
      if (owner === undefined || owner.network !== network || valid.has(owner.containerId)) continue;
      const chain = hostPortChain(owner);
      // The chain's name says whether the comment tells the truth.
      if (ruleTarget(text) === chain) stale.add(chain);
    }
    return [...stale];
  };
  await cleanChains({ host }, family, { choose });
}
