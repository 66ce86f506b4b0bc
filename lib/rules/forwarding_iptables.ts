/**
 * Forwarding allowed for container addresses, and bridges kept apart, in iptables table `filter`. Chains, comments and
 * rules are the reference's, so that either implementation checks and deletes what the other made.
 *
 *     FORWARD: → CNI-ISOLATION-STAGE-1: from a restricted bridge to another link → STAGE-2: to a restricted bridge:
 *     drop
 *              → CNI-FORWARD: → the administrator's chain; replies to the address: accept; from the address: accept
 *
 * An ADD asks and changes in two transactions: the first only asks whether everything is there (`-C`), and the line
 * that it fails at tells what is missing. The present state is read only when that is more than the container's own two
 * rules.
 */
import { badConfig, type CniError, internal } from "../cni/error.ts";
import {
  listedChain,
  makingLine,
  missingRules,
  quoteWord,
  refusedLine,
  restore,
  ruleComment,
  ruleTarget,
  ruleWords,
  type SavedRule,
  type SavedTable,
  savedTable,
  TableError,
  transaction,
  type WantedRule,
} from "../kernel/iptables.ts";
import type { Run } from "../kernel/run.ts";
import { type Address, type Family, familyBits, formatAddress } from "../net/cidr.ts";
import { type Host, mayBeOthers, settledTable } from "./backend.ts";
import { settledInTurn } from "./shared_chains.ts";

/** `ingressPolicy`: `open` keeps no bridge apart. */
export type IngressPolicy = "open" | "same-bridge" | "isolated";

/** What is wanted for a container. */
export interface Forwarding {
  /** The administrator's chain, which decides before ours. */
  readonly admin: string;
  readonly addresses: readonly Address[];
  readonly policy: IngressPolicy;
  /** The bridge that the policy is about; "" with `open`. */
  readonly bridge: string;
  /** The rules are there for the backend nftables, which keeps its own elsewhere: they prove nothing about that one. */
  readonly forNft?: boolean;
}

/** What CHECK says of rules that are gone. */
export const RELOADED =
  "somebody removed rules of this container, for example by reloading a firewall; ADD makes them again";

export const FORWARD_CHAIN = "CNI-FORWARD";
export const STAGE_1 = "CNI-ISOLATION-STAGE-1";
export const STAGE_2 = "CNI-ISOLATION-STAGE-2";

const comment = (text: string) => `-m comment --comment "${text}"`;
const JUMP = `${comment("CNI firewall plugin rules")} -j ${FORWARD_CHAIN}`;
const STAGE_1_JUMP = `${comment("CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)")} -j ${STAGE_1}`;

/** Jumps that all containers share. */
function sharedRules({ admin }: Forwarding): WantedRule[] {
  return [
    { chain: "FORWARD", rule: JUMP, first: true },
    {
      chain: FORWARD_CHAIN,
      rule: `${comment("CNI firewall plugin admin overrides")} -j ${quoteWord(admin)}`,
      first: true,
    },
  ];
}

/** Rules that keep the bridge apart, in the order in which the reference makes them. */
function isolationRules({ policy, bridge }: Forwarding): WantedRule[] {
  if (policy === "open") return [];
  const name = linkWord(bridge, policy);
  const shared = comment("CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)");
  const own = comment(`CNI firewall plugin rules (ingressPolicy: ${policy})`);
  return [
    { chain: "FORWARD", rule: STAGE_1_JUMP, first: true },
    { chain: STAGE_1, rule: `-i ${name} ! -o ${name} ${own} -j ${STAGE_2}`, first: true },
    ...(policy === "isolated" ? [{ chain: STAGE_1, rule: `-i ${name} -o ${name} ${own} -j DROP`, first: true }] : []),
    { chain: STAGE_1, rule: `${shared} -j RETURN` },
    { chain: STAGE_2, rule: `-o ${name} ${shared} -j DROP`, first: true },
    { chain: STAGE_2, rule: `${shared} -j RETURN` },
  ];
}

/**
 * Can a rule be about this link, and be read back? At the end of a name iptables takes "+" and nft "*" for any text;
 * iptables-save prints names without quotes, and nft has nothing that escapes one.
 */
export function canBeInRule(name: string, tool: "iptables" | "nftables"): boolean {
  return !(tool === "iptables" ? /["\\]|\+$|^!$/ : /["\\]|\*$/).test(name);
}

function linkWord(name: string, policy: string): string {
  if (canBeInRule(name, "iptables")) return quoteWord(name);
  throw unsaid(name, policy, "iptables");
}

/** The error for a bridge that a packet filter has no way to name. */
export function unsaid(name: string, policy: string, tool: string): CniError {
  return badConfig(
    `ingressPolicy "${policy}": no rule of ${tool} can be about a bridge called "${name}"`,
    'choose another name in "bridge"',
  );
}

const FOR_NFT = ` ${comment("CNI firewall plugin rules (backend: nftables)")}`;

/** The container's own rules. */
function addressRules({ addresses, forNft }: Forwarding): WantedRule[] {
  const mark = forNft ? FOR_NFT : "";
  return addresses.flatMap((address) => {
    const host = `${formatAddress(address)}/${familyBits(address.family)}`;
    return [
      { chain: FORWARD_CHAIN, rule: `-d ${host} -m conntrack --ctstate RELATED,ESTABLISHED${mark} -j ACCEPT` },
      { chain: FORWARD_CHAIN, rule: `-s ${host}${mark} -j ACCEPT` },
    ];
  });
}

/** Parts of the work: with firewalld the addresses are its own affair, and only the bridges are ours. */
export interface Parts {
  readonly accept: boolean;
}

function wantedRules(forwarding: Forwarding, { accept }: Parts): WantedRule[] {
  return [
    ...(accept ? sharedRules(forwarding) : []),
    ...isolationRules(forwarding),
    ...(accept ? addressRules(forwarding) : []),
  ];
}

/** What an ADD comes down to where everything shared is there. */
export function forwardText(forwarding: Forwarding, parts: Parts): string {
  return transaction("filter", wantedRules(forwarding, parts).map(makingLine));
}

/**
 * Makes what is missing of the wanted rules, for addresses of one family. Returns the container's own rules that were
 * made, for taking them back. Throws {@linkcode TableError} and nothing was changed.
 */
export async function addForwarding(
  { host }: Host,
  forwarding: Forwarding,
  { family, ...parts }: Parts & { readonly family: Family },
): Promise<WantedRule[]> {
  const wanted = wantedRules(forwarding, parts);
  const own = parts.accept ? addressRules(forwarding) : [];
  const [missing, ordered] = await Promise.all([
    firstMissing(host, family, wanted),
    forwarding.policy === "open" ? true : isOrdered(host, family),
  ]);
  if (missing === undefined && ordered) return [];
  const rest = missing === undefined ? [] : wanted.slice(missing);
  // One address's rules are made together: where the first is missing, so is the second.
  if (ordered && missing !== undefined && rest.length <= 2 && missing >= wanted.length - own.length) {
    try {
      await restore(host, family, transaction("filter", rest.map(makingLine)));
      return rest;
    } catch (error) {
      if (!mayBeOthers(error)) throw error;
    }
  }
  // The reference opens the way to the container before it keeps bridges apart.
  const inTurn = [...(parts.accept ? sharedRules(forwarding) : []), ...own, ...isolationRules(forwarding)];
  const chains = [
    ...(parts.accept ? [FORWARD_CHAIN, forwarding.admin] : []),
    ...(forwarding.policy === "open" ? [] : [STAGE_1, STAGE_2]),
  ];
  return await settledInTurn({ host }, { family, table: "filter" }, async (attempt, refusal) => {
    const table = await savedTable(host, family, "filter");
    if (table === undefined) {
      // Without a table the transaction is tried once, which tells what does not work.
      if (attempt > 0) throw refusal;
      return { lines: wanted.map(makingLine), result: own };
    }
    const missing = await missingRules(host, inTurn, { family, table, name: "filter" });
    return {
      lines: [
        ...chains.filter((chain) => !table.chains.has(chain)).map((chain) => `-N ${quoteWord(chain)}`),
        ...missing.map(makingLine),
        ...orderLines(table, missing),
      ],
      result: missing.filter((rule) => own.some((one) => one.rule === rule.rule)),
    };
  });
}

/** Index of the first wanted rule that is not there; undefined when all are. Nothing is changed. */
async function firstMissing(host: Run, family: Family, wanted: readonly WantedRule[]): Promise<number | undefined> {
  if (wanted.length === 0) return undefined;
  try {
    await restore(host, family, transaction("filter", wanted.map(({ chain, rule }) => `-C ${chain} ${rule}`)));
    return undefined;
  } catch (error) {
    if (!(error instanceof TableError) || error.refusal !== "refused") throw error;
    // Line 1 is the table's name.
    const line = refusedLine(error);
    if (line !== undefined) return line - 2;
    const table = await savedTable(host, family, "filter");
    if (table === undefined) throw error;
    const [first] = await missingRules(host, wanted, { family, table, name: "filter" });
    // Some chain is missing that a rule leads to.
    return first ? wanted.indexOf(first) : 0;
  }
}

/** Do bridges come first? Else CNI-FORWARD accepts what they would drop. */
async function isOrdered(host: Run, family: Family): Promise<boolean> {
  const rules = await listedChain(host, "FORWARD", { family, table: "filter" });
  return inOrder(rules ?? []);
}

function inOrder(rules: readonly SavedRule[]): boolean {
  const targets = rules.map(({ text }) => ruleTarget(text));
  const [stage, forward] = [targets.indexOf(STAGE_1), targets.indexOf(FORWARD_CHAIN)];
  return stage < 0 || forward < 0 || stage < forward;
}

/** Lines that put the bridges' jump in front again, where it is or comes behind the other. */
function orderLines(table: SavedTable, missing: readonly WantedRule[]): string[] {
  if (missing.some(({ rule }) => rule === STAGE_1_JUMP)) return [];
  const rules = table.chains.get("FORWARD") ?? [];
  const stages = rules.filter(({ text }) => ruleTarget(text) === STAGE_1);
  const [stage] = stages;
  if (stage === undefined) return [];
  if (inOrder(rules) && !missing.some(({ rule }) => rule === JUMP)) return [];
  return [...stages.map(({ text }) => `-D FORWARD ${text}`), `-I FORWARD 1 ${stage.text}`];
}

/** Removes rules that an ADD has made; a DEL at the same time may have removed some of them. */
export async function takeBackForwarding(
  { host }: Host,
  rules: readonly WantedRule[],
  family: Family,
): Promise<void> {
  await settledTable({ host }, { family, table: "filter" }, async (attempt) => {
    const table = attempt === 0 ? undefined : await savedTable(host, family, "filter");
    const gone = table ? await missingRules(host, rules, { family, table, name: "filter" }) : [];
    const there = rules.filter((rule) => !gone.includes(rule));
    return { lines: there.map(({ chain, rule }) => `-D ${chain} ${rule}`), result: undefined };
  });
}

/**
 * Removes the rules of addresses, however many times they are there: the reference's ADDs may race and make them twice.
 * A missing chain, table or tool is success. Returns whether there were any that the backend iptables makes.
 */
export async function removeForwarding(
  { host }: Host,
  addresses: readonly Address[],
  family: Family,
): Promise<boolean> {
  let found = false;
  return await settledTable({ host }, { family, table: "filter" }, async () => {
    const own = (await forwardChain(host, family)).filter(({ text }) => addresses.some((one) => isFor(text, one)));
    found ||= own.some(({ text }) => !text.includes(FOR_NFT));
    return { lines: own.map(({ chain, text }) => `-D ${chain} ${text}`), result: found };
  });
}

/** Rules that accept; none where there is no such chain, table or tool. */
async function forwardChain(host: Run, family: Family): Promise<readonly SavedRule[]> {
  return await listedChain(host, FORWARD_CHAIN, { family, table: "filter" }) ?? [];
}

/** Are all addresses let through, for whichever backend? */
export async function isForwarded({ host }: Host, addresses: readonly Address[], family: Family): Promise<boolean> {
  const rules = await forwardChain(host, family);
  return addresses.every((address) => rules.filter(({ text }) => isFor(text, address)).length > 1);
}

/** Does a listed table let all addresses through? */
export function acceptsAll(table: SavedTable | undefined, addresses: readonly Address[]): boolean {
  const rules = table?.chains.get(FORWARD_CHAIN) ?? [];
  return addresses.every((address) => rules.some(({ text }) => isFor(text, address)));
}

function isFor(marked: string, address: Address): boolean {
  const rule = marked.replace(FOR_NFT, "");
  const host = `${formatAddress(address)}/${familyBits(address.family)}`;
  if (rule === `-s ${host} -j ACCEPT`) return true;
  return rule.startsWith(`-d ${host} -m conntrack --ctstate `) && ruleTarget(rule) === "ACCEPT";
}

/** The error, in the reference's words, for the first rule that is missing for addresses of one family. */
export async function missingForwarding(
  { host }: Host,
  forwarding: Forwarding,
  { family, accept }: Parts & { readonly family: Family },
): Promise<CniError | undefined> {
  return accept && await missingAcceptance(host, forwarding, family) ||
    await missingIsolation(host, forwarding, family);
}

async function missingAcceptance(host: Run, forwarding: Forwarding, family: Family): Promise<CniError | undefined> {
  const wanted = [...sharedRules(forwarding), ...addressRules(forwarding)];
  const missing = await firstMissing(host, family, wanted);
  const rule = missing === undefined ? undefined : wanted[missing];
  if (rule === undefined) return undefined;
  const words = `[${ruleWords(rule.rule).join(" ")}]`;
  const chain = missing === 0 ? "FORWARD " : missing === 1 ? `${FORWARD_CHAIN} ` : "";
  return internal(`expected ${chain}rule ${words} not found`, RELOADED);
}

/**
 * The first of the bridge's rules that is missing. Their comments have changed between releases: they are not compared.
 */
async function missingIsolation(host: Run, forwarding: Forwarding, family: Family): Promise<CniError | undefined> {
  if (forwarding.policy === "open") return undefined;
  const table = await savedTable(host, family, "filter");
  const plain = (rule: string) => {
    const words = ruleWords(rule);
    const at = words.indexOf("--comment");
    return (at < 0 ? words : words.toSpliced(at - 2, 4)).join(" ");
  };
  for (const { chain, rule } of isolationRules(forwarding)) {
    const rules = table?.chains.get(chain) ?? [];
    if (rules.some(({ text }) => plain(text) === plain(rule))) continue;
    return internal(
      `expected ${chain} rule [${ruleWords(rule).join(" ")}] not found`,
      `without it ingressPolicy "${forwarding.policy}" of ${forwarding.bridge} does not hold; ADD makes it again`,
    );
  }
  if (!inOrder(table?.chains.get("FORWARD") ?? [])) {
    return internal(
      `jump to ${STAGE_1} in FORWARD comes after the one to ${FORWARD_CHAIN}`,
      `so ingressPolicy "${forwarding.policy}" of ${forwarding.bridge} does not hold; ADD puts them in order`,
    );
  }
  return undefined;
}

/** Removes isolation rules about links chosen by `gone`; those that releases before 1.7 made too. */
export async function removeIsolation({ host }: Host, family: Family, gone: (link: string) => boolean): Promise<void> {
  const about = (name: string) => name === STAGE_1 || name === STAGE_2;
  await settledTable({ host }, { family, table: "filter" }, async () => {
    const table = await savedTable(host, family, "filter", { about });
    const lines = [STAGE_1, STAGE_2].flatMap((name) => table?.chains.get(name) ?? []).filter(({ text }) => {
      if (!ruleComment(text)?.startsWith("CNI firewall plugin rules (ingressPolicy: ")) return false;
      const words = ruleWords(text);
      const at = words.findIndex((word) => word === "-i" || word === "-o");
      return at >= 0 && gone(words[at + 1] ?? "");
    }).map(({ chain, text }) => `-D ${chain} ${text}`);
    return { lines, result: undefined };
  });
}
