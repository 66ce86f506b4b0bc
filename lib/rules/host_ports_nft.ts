/**
 * Published ports of a container as rules in nftables, in the reference's table `cni_hostport`. A container's rules
 * carry its ID as comment and nothing else, which is how either implementation finds them.
 *
 *     prerouting, output: to an address of this host → hostports_all → hostports: dnat
 *     masquerading: from the container's own subnet or from 127.0.0.1 to the container: masquerade
 *
 * Emptying a chain makes nft wait for the kernel, so the shared chains are only written when they are not as they
 * should.
 */
import { addToShared, type Host, settledNft } from "./backend.ts";
import { appliesTo, destinationOf, type HostPorts, type PortMapping, protocolName } from "./host_ports_iptables.ts";
import { type CniError, internal } from "../cni/error.ts";
import { nft, nftComment, nftList, type NftRule } from "../kernel/nft.ts";
import type { Run } from "../kernel/run.ts";
import {
  type Family,
  formatAddress,
  formatPrefix,
  networkPrefix,
  parseAddress,
  type Prefix,
  prefixContains,
} from "../net/cidr.ts";

const ip = (family: Family) => family === 4 ? "ip" : "ip6";
/** The table of a family, as commands name it. */
export const hostPortTable = (family: Family) => `${ip(family)} cni_hostport`;
const JUMP = "fib daddr type local jump hostports_all";

/**
 * The shared chains, as the reference writes them, without anybody's conditions: those are in the container's rules.
 */
function setupText(family: Family, options: { snat: boolean; comments: boolean }): string {
  const table = hostPortTable(family);
  return [
    `add table ${table}${options.comments ? ' { comment "CNI portmap plugin" ; }' : ""}`,
    `add chain ${table} hostports`,
    `add chain ${table} hostip_hostports`,
    `add chain ${table} hostports_all`,
    `flush chain ${table} hostports_all`,
    `add rule ${table} hostports_all jump hostip_hostports`,
    `add rule ${table} hostports_all jump hostports`,
    // Numbers: older tools refuse the name dstnat in the output hook.
    ...["prerouting", "output"].flatMap((hook) => [
      `add chain ${table} ${hook} { type nat hook ${hook} priority -100 ; }`,
      `flush chain ${table} ${hook}`,
      `add rule ${table} ${hook} ${JUMP}`,
    ]),
    ...(options.snat ? [`add chain ${table} masquerading { type nat hook postrouting priority 100 ; }`] : []),
    "",
  ].join("\n");
}

/** One rule as chain and text. */
interface OwnRule {
  readonly chain: "hostports" | "masquerading";
  readonly text: string;
}

/** Rules of one container for one of its addresses. */
export function nftOwnRules({ owner, mappings, snat, masqAll, conditions }: HostPorts, target: Prefix): OwnRule[] {
  const { family } = target.address;
  const [f, address] = [ip(family), formatAddress(target.address)];
  const comment = nftComment(owner.containerId);
  const more = conditions[family].map((word) => `${word} `).join("");
  const rules: OwnRule[] = mappings.filter((mapping) => appliesTo(mapping, family)).map((mapping) => {
    const to = destinationOf(mapping);
    const place = family === 4 ? address : `[${address}]`;
    const text =
      `${more}${to === "" ? "" : `${f} daddr ${to} `}${protocolName(mapping.protocol)} dport ${mapping.hostPort} ` +
      `dnat to ${place}:${mapping.containerPort} ${comment}`;
    return { chain: "hostports", text };
  });
  if (!snat) return rules;
  const sources = masqAll
    // The second is what the reference's CHECK counts on.
    ? family === 4 ? ["0.0.0.0/0", "127.0.0.1"] : ["::/0"]
    : [address, ...(family === 4 ? ["127.0.0.1"] : [])];
  for (const source of sources) {
    rules.push({ chain: "masquerading", text: `${f} saddr ${source} ${f} daddr ${address} masquerade ${comment}` });
  }
  if (!masqAll) {
    // Neighbours in the container's subnet who come by the host's address; who comes directly stays as he is.
    const subnet = formatPrefix(networkPrefix(target));
    rules.push({
      chain: "masquerading",
      text: `${f} saddr ${subnet} ${f} daddr ${address} ct status dnat masquerade ${comment}`,
    });
  }
  return rules;
}

/** The whole of an ADD on a new node. */
export function nftAdditionText(ports: HostPorts, target: Prefix): string {
  return setupText(target.address.family, { snat: ports.snat, comments: true }) + rulesText(ports, target);
}

function rulesText(ports: HostPorts, target: Prefix): string {
  const table = hostPortTable(target.address.family);
  return nftOwnRules(ports, target).map(({ chain, text }) => `add rule ${table} ${chain} ${text}\n`).join("");
}

/** Publishes the ports for one address. */
export async function addNftHostPorts(call: Host, ports: HostPorts, target: Prefix): Promise<void> {
  const { family } = target.address;
  await addToShared(call, {
    rules: rulesText(ports, target),
    chain: `${hostPortTable(family)} prerouting`,
    isWhole: (shown) => new RegExp(`^\\s*${JUMP}`, "m").test(shown),
    setup: (comments) => setupText(family, { snat: ports.snat, comments }),
  });
}

/** A rule of `hostports`, read. */
export interface NftPort {
  readonly handle: number;
  readonly comment: string;
  readonly protocol: string;
  readonly port: number;
  /** "" for any address of this host. */
  readonly hostIP: string;
  readonly address: string;
  readonly containerPort: number;
  /** The rule has matches of its own: nobody here knows what they let through. */
  readonly conditional: boolean;
}

type Json = Record<string, unknown>;

/**
 * Reads a rule that sends a port to a container; undefined when it is none, or of a form that nobody writes any more.
 */
export function readNftPort({ handle, comment = "", expr }: NftRule): NftPort | undefined {
  let [protocol, port, hostIP, conditional] = ["", 0, "", false];
  let [address, containerPort] = ["", 0];
  for (const one of expr as Json[]) {
    const match = one["match"] as Json | undefined;
    const payload = (match?.["left"] as Json | undefined)?.["payload"] as Json | undefined;
    const dnat = one["dnat"] as Json | undefined;
    if (dnat) {
      address = typeof dnat["addr"] === "string" ? dnat["addr"] : "";
      containerPort = typeof dnat["port"] === "number" ? dnat["port"] : 0;
    } else if (match && payload?.["field"] === "dport" && match["op"] === "==") {
      protocol = String(payload["protocol"]);
      port = typeof match["right"] === "number" ? match["right"] : 0;
    } else if (match && payload?.["field"] === "daddr" && match["op"] === "==" && typeof match["right"] === "string") {
      hostIP = match["right"];
    } else if (match) conditional = true;
  }
  if (address === "" || port === 0) return undefined;
  return { handle, comment, protocol, port, hostIP, address, containerPort, conditional };
}

/** Rules of the chain that all containers' ports are in, in order. */
export async function nftPorts({ host }: Host, family: Family): Promise<NftPort[]> {
  const listing = await nftList(host, `chain ${hostPortTable(family)} hostports`);
  return (listing?.rules ?? []).flatMap((rule) => readNftPort(rule) ?? []);
}

/** Puts the container's rules in front of all others, in their order: what is before them leads to dead containers. */
export async function moveNftPortsFirst({ host }: Host, ports: HostPorts, target: Prefix): Promise<void> {
  const { family } = target.address;
  const table = hostPortTable(family);
  const address = formatAddress(target.address);
  const mine = (await nftPorts({ host }, family)).filter((one) =>
    one.comment === ports.owner.containerId && one.address === address
  );
  const rules = nftOwnRules(ports, target).filter(({ chain }) => chain === "hostports").reverse();
  await nft(
    host,
    mine.map(({ handle }) => `delete rule ${table} hostports handle ${handle}\n`).join("") +
      rules.map(({ text }) => `insert rule ${table} hostports ${text}\n`).join(""),
  );
}

const CHAINS = ["hostports", "hostip_hostports", "masquerading"];

/** Removes a container's rules of one family: those for the targets, or all. */
export async function removeNftHostPorts(
  call: Host,
  containerId: string,
  { family, targets = [] }: { family: Family; targets?: readonly Prefix[] },
): Promise<NftRemoved> {
  const own = targets.filter(({ address }) => address.family === family);
  return await deleteRules(call, family, (rule) => {
    if (rule.comment !== containerId) return false;
    const to = addressOf(rule);
    return own.length === 0 || to === undefined || own.some((one) => within(one, to));
  });
}

/** Removes what a former ADD of the same container left beside the newest rules, for this address's subnet. */
export async function dropStaleNftRules(call: Host, ports: HostPorts, target: Prefix): Promise<void> {
  const { family } = target.address;
  const wanted = { hostports: 0, masquerading: 0 };
  for (const { chain } of nftOwnRules(ports, target)) wanted[chain]++;
  await deleteRules(call, family, (rule, all) => {
    if (rule.comment !== ports.owner.containerId) return false;
    const mine = all.filter((one) => {
      const to = addressOf(one);
      return one.chain === rule.chain && one.comment === rule.comment && to !== undefined && within(target, to);
    }).sort((a, b) => b.handle - a.handle);
    const index = mine.indexOf(rule);
    return index >= (rule.chain === "masquerading" ? wanted.masquerading : wanted.hostports);
  });
}

function within(prefix: Prefix, address: string): boolean {
  const parsed = parseAddress(address);
  return parsed !== undefined && prefixContains(prefix, parsed);
}

/** The container's address in a rule of any release: where it sends to, or the destination that it masquerades. */
function addressOf({ chain, expr }: NftRule): string | undefined {
  if (chain !== "masquerading") {
    const dnat = (expr as Json[]).map((one) => one["dnat"] as Json | undefined).find((one) => one !== undefined);
    const to = dnat?.["addr"];
    if (typeof to === "string") return to;
    // Release 1.6.0: `dnat ip addr . port to 10.22.0.5 . 80`.
    const parts = ((to as Json | undefined)?.["concat"] ?? []) as unknown[];
    return typeof parts[0] === "string" ? parts[0] : undefined;
  }
  for (const one of expr as Json[]) {
    const match = one["match"] as Json | undefined;
    const payload = (match?.["left"] as Json | undefined)?.["payload"] as Json | undefined;
    if (payload?.["field"] === "daddr" && typeof match?.["right"] === "string") return match["right"];
  }
}

/** What removing found. */
export interface NftRemoved {
  /** There were rules of the container. */
  readonly found: boolean;
  /** Addresses that its ports led to. */
  readonly addresses: readonly string[];
  /** No ports of other containers are left. */
  readonly empty: boolean;
}

async function deleteRules(
  { host }: Host,
  family: Family,
  chosen: (rule: NftRule, all: readonly NftRule[]) => boolean,
): Promise<NftRemoved> {
  const table = hostPortTable(family);
  return await settledNft({ host }, async (attempt) => {
    const listing = await nftList(host, `table ${table}`);
    const rules = (listing?.rules ?? []).filter((rule) => CHAINS.includes(rule.chain));
    const going = rules.filter((rule) => chosen(rule, rules));
    const addresses = going.filter((rule) => rule.chain !== "masquerading").flatMap((rule) => addressOf(rule) ?? []);
    return {
      lines: going.map(({ chain, handle }) => `delete rule ${table} ${chain} handle ${handle}`),
      result: {
        found: going.length > 0 || attempt > 0,
        addresses: [...new Set(addresses)],
        empty: rules.every((rule) => going.includes(rule) || rule.chain === "masquerading"),
      },
    };
  });
}

/** The error, in the reference's words, for what is missing of the container's rules for one address. */
export async function missingNftPort(
  { host }: Host,
  ports: HostPorts,
  target: Prefix,
): Promise<CniError | undefined> {
  const lost = await lostRules(host, ports, target);
  return lost === undefined
    ? undefined
    : internal(lost, "somebody removed rules of this container, for example by reloading a firewall");
}

async function lostRules(host: Run, ports: HostPorts, target: Prefix): Promise<string | undefined> {
  const { family } = target.address;
  const address = formatAddress(target.address);
  const listing = await nftList(host, `table ${hostPortTable(family)}`);
  const wanted = ports.mappings.filter((mapping) => appliesTo(mapping, family));
  if (listing === undefined) return `failed to run nft: table ${hostPortTable(family)} not found`;
  const mine = listing.rules.filter((rule) => rule.comment === ports.owner.containerId);
  const inPorts = mine.filter((rule) => rule.chain === "hostports" || rule.chain === "hostip_hostports");
  const missing = wanted.find((mapping) => !inPorts.some((rule) => serves(rule, mapping, address)));
  if (missing) {
    return `missing hostport rules in "hostports" chain: ${missing.protocol} ${missing.hostPort} to ` +
      `${address} ${missing.containerPort}`;
  }
  if (wanted.length > 0 && ports.snat) {
    const least = family === 4 && !ports.masqAll ? 2 : 1;
    const found = mine.filter((rule) => rule.chain === "masquerading" && addressOf(rule) === address).length;
    if (found < least) return 'missing hostport rules in "masquerading" chain';
  }
  for (const hook of ["prerouting", "output"]) {
    const jumps = listing.rules.filter((rule) => rule.chain === hook).some((rule) =>
      /"target": ?"host(ip_host)?ports/.test(JSON.stringify(rule.expr))
    );
    if (!jumps) return `missing hostport rules in "${hook}" chain`;
  }
}

function serves(rule: NftRule, { protocol, hostPort, containerPort }: PortMapping, address: string): boolean {
  const read = readNftPort(rule);
  if (read === undefined) return addressOf(rule) === address && JSON.stringify(rule.expr).includes(`${hostPort}`);
  return read.protocol === protocolName(protocol) && read.port === hostPort && read.address === address &&
    read.containerPort === containerPort;
}
