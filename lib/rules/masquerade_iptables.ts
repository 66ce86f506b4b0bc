/**
 * Masquerading of one attachment in iptables table `nat`:
 *
 *     POSTROUTING: from the container's address → CNI-… : to its own subnet: as it is; to anything but multicast:
 *     masquerade
 *
 * The usual case is one transaction that reads nothing first. Only when it is refused is the present state read, and
 * what is there taken into account: the chain of another interface of the same container on the same network (they
 * share it), or remains of an attachment that was never deleted.
 */
import type { Link } from "../kernel/ip.ts";
import {
  leadingTo,
  quoteWord,
  ruleTarget,
  ruleWords,
  type SavedTable,
  savedTable,
  transaction,
} from "../kernel/iptables.ts";
import type { Applier } from "../kernel/plan.ts";
import type { Run } from "../kernel/run.ts";
import {
  type Address,
  type Family,
  familyBits,
  formatAddress,
  formatPrefix,
  networkPrefix,
  parseAddress,
  parsePrefix,
  type Prefix,
  prefixContains,
} from "../net/cidr.ts";
import { chainName, iptablesComment } from "../net/name.ts";
import {
  type Change,
  type Host,
  type Listing,
  type Part,
  type Remover,
  type RuleSet,
  settledTable,
} from "./backend.ts";
import { type Masquerading, MULTICAST } from "./masquerade_nft.ts";

type Wanted = Part<Masquerading>;

/** Masquerading in iptables. */
export const masqueradeIptables: RuleSet<Wanted> = {
  text,
  add,
  remove,
  missing: async (call, want) => (await import("./masquerade_check.ts")).missingInIptables(call, want),
  owned,
};

interface IptablesRules {
  readonly chain: string;
  /** Rules of the container's chain: every subnet before the one that masquerades. */
  readonly content: readonly string[];
  readonly jumps: readonly string[];
}

/** The rules as lines of a transaction. `accepted`: further subnets of the same chain. */
function iptablesRules({ owner, family, prefixes }: Wanted, accepted: readonly string[] = []): IptablesRules {
  const chain = chainName(owner);
  const comment = `-m comment --comment ${quoteWord(iptablesComment(owner))}`;
  const subnets = new Set([...accepted, ...prefixes.map((prefix) => formatPrefix(networkPrefix(prefix)))]);
  return {
    chain,
    content: [
      ...[...subnets].map((subnet) => `-A ${chain} -d ${subnet} ${comment} -j ACCEPT`),
      `-A ${chain} ! -d ${MULTICAST[family]} ${comment} -j MASQUERADE`,
    ],
    // An address may be known twice, with its subnet and without.
    jumps: [...new Set(prefixes.map(({ address }) => `${formatAddress(address)}/${familyBits(family)}`))].map((
      source,
    ) => `-A POSTROUTING -s ${source} ${comment} -j ${chain}`),
  };
}

function text(wanted: Wanted): string {
  return transaction("nat", additionLines(wanted));
}

function additionLines(wanted: Wanted): string[] {
  const { chain, content, jumps } = iptablesRules(wanted);
  return [`-N ${chain}`, ...content, ...jumps];
}

/** The table as it is, for what concerns a chain. */
export const ownTable = ({ host }: Host, family: Family, chain: string) =>
  savedTable(host, family, "nat", { about: (name) => name === chain });

async function add(call: Applier, wanted: Wanted): Promise<undefined> {
  const { owner, family } = wanted;
  const chain = chainName(owner);
  return await settledTable(call, { family, table: "nat" }, async (attempt, refusal): Promise<Change<undefined>> => {
    if (attempt > 0) {
      // The chain is there already, or the tool does not work here.
      const table = await ownTable(call, family, chain);
      if (table?.chains.has(chain)) return { lines: await mergedLines(call, wanted, table), result: undefined };
      if (attempt > 1) throw refusal;
    }
    return { lines: additionLines(wanted), result: undefined };
  });
}

/** Lines that make the chain serve these addresses too, drop remains, and keep other living interfaces' rules. */
async function mergedLines(call: Applier, wanted: Wanted, table: SavedTable): Promise<string[]> {
  const chain = chainName(wanted.owner);
  const jumps = leadingTo(table, chain);
  const kept = await keptJumps(call, wanted, jumps);
  const gone = jumps.filter((jump) => !kept.includes(jump));
  const accepted = kept.length === 0 ? [] : (table.chains.get(chain) ?? []).flatMap(({ text }) => {
    const words = ruleWords(text);
    const at = words.indexOf("-d");
    return at >= 0 && words[at - 1] !== "!" && ruleTarget(text) === "ACCEPT" ? [words[at + 1] ?? ""] : [];
  });
  const rules = iptablesRules(wanted, accepted);
  // Declaring a chain that is there empties it.
  return [`:${chain} - [0:0]`, ...rules.content, ...gone.map((jump) => `-D ${jump}`), ...rules.jumps];
}

/** The source that a rule names. */
export function sourceOf(jump: string): Prefix | undefined {
  const words = ruleWords(jump);
  const at = words.indexOf("-s");
  return at < 0 || words[at - 1] === "!" ? undefined : parsePrefix(words[at + 1] ?? "");
}

/**
 * Of the jumps to a container's chain, those that belong to another interface of the container that is still there:
 * their source is an address on it. Asks the container only when there is a jump that is not ours.
 */
async function keptJumps(
  call: Pick<Remover, "pod" | "podAlive">,
  { owner, prefixes }: Wanted,
  jumps: readonly string[],
): Promise<string[]> {
  const mine = (source: Prefix) =>
    source.length === familyBits(source.address.family) && prefixes.some((one) => prefixContains(source, one.address));
  const others = jumps.filter((jump) => {
    const source = sourceOf(jump);
    return source !== undefined && !mine(source);
  });
  if (others.length === 0 || call.podAlive === false) return [];
  const living = await addressesBeside(call.pod, owner.ifName);
  return others.filter((jump) => {
    const source = sourceOf(jump);
    return source !== undefined && living.some((address) => prefixContains(source, address));
  });
}

/** Addresses of the container's interfaces but this one; [] when it cannot be asked. */
async function addressesBeside(pod: Run, ifName: string): Promise<Address[]> {
  try {
    const { code, stdout } = await pod({ argv: ["ip", "-j", "addr", "show"] });
    if (code !== 0) return [];
    const links = JSON.parse(stdout) as Link[];
    return links.filter((link) => link.ifname !== ifName).flatMap(({ addr_info = [] }) =>
      addr_info.flatMap(({ local }) => parseAddress(local) ?? [])
    );
  } catch {
    return [];
  }
}

async function remove(call: Remover, wanted: Wanted, { likely }: { readonly likely: boolean }): Promise<boolean> {
  const { owner, family, prefixes } = wanted;
  const [chain, table] = [chainName(owner), "nat"] as const;
  const dropChain = [`-F ${chain}`, `-X ${chain}`];
  let found = false;
  const isShared = await settledTable(call, { family, table }, async (attempt) => {
    if (attempt === 0 && likely && prefixes.length > 0) {
      found = true;
      const jumps = iptablesRules(wanted).jumps.map((jump) => jump.replace("-A", "-D"));
      return { lines: [...jumps, ...dropChain], result: false };
    }
    // Everything that leads to the container's chain goes, except what another living interface needs.
    const saved = await ownTable(call, family, chain);
    const jumps = saved ? leadingTo(saved, chain) : [];
    found = jumps.length > 0 || (saved?.chains.has(chain) ?? false);
    if (!found) return { lines: [], result: false };
    const kept = await keptJumps(call, wanted, jumps);
    const gone = jumps.filter((jump) => !kept.includes(jump)).map((jump) => `-D ${jump}`);
    return { lines: kept.length > 0 ? gone : [...gone, ...dropChain], result: kept.length > 0 && gone.length > 0 };
  });
  // Of several interfaces of a container that go at once each may have left the chain to the others: the last finds
  // that out.
  if (isShared) {
    await settledTable(call, { family, table }, async () => {
      const saved = await ownTable(call, family, chain);
      const isUnused = saved?.chains.has(chain) && leadingTo(saved, chain).length === 0;
      return { lines: isUnused ? dropChain : [], result: undefined };
    });
  }
  return found;
}

function owned({ tables }: Listing, { owner, family }: Wanted): boolean {
  const chain = chainName(owner);
  const table = tables[family].get("nat");
  return table !== undefined && leadingTo(table, chain).length > 0;
}
