/**
 * Masquerading of one attachment (`ipMasq` of bridge and ptp): its rules set, checked, removed and collected, in iptables
 * and in nftables. Names, comments and rules are the reference's, so that either implementation deletes what the other
 * made.
 *
 *     POSTROUTING: from the container's address → CNI-… : to its own subnet: as it is; to anything but multicast: masquerade
 *
 * The usual case is one optimistic transaction that reads nothing first. Only when it is refused is the present state
 * read, and what is there taken into account: the chain of another interface of the same container on the same network
 * (they share it), remains of an attachment that was never deleted, or the other backend.
 */
import { CniError, code } from "../cni/error.ts";
import type { Call } from "../cni/plugin.ts";
import type { ValidAttachment } from "../cni/types.ts";
import type { Link } from "../kernel/ip.ts";
import {
  iptablesTool,
  iptablesUsable,
  quoteWord,
  restore,
  ruleComment,
  ruleTarget,
  ruleWords,
  savedTable,
  TableError,
  transaction,
} from "../kernel/iptables.ts";
import type { SavedTable } from "../kernel/iptables.ts";
import { nft, nftComment, NftError, nftList, nftUsable } from "../kernel/nft.ts";
import { type Applier, type Step, step } from "../kernel/plan.ts";
import { type Run, toolPath } from "../kernel/run.ts";
import {
  type Family,
  formatAddress,
  formatPrefix,
  networkPrefix,
  parseAddress,
  parsePrefix,
  type Prefix,
  prefixContains,
} from "../net/cidr.ts";
import {
  type Attachment,
  chainName,
  iptablesComment,
  nftAttachmentHash,
  nftNetworkHash,
  nftRuleComment,
} from "../net/name.ts";
import { ruleError } from "./rule_error.ts";

/**
 * Which tool sets the rules. `default`: iptables, and nftables where iptables does not work but nft does; found out by
 * the first real command, not by a probe.
 */
export type MasqueradeBackend = "iptables" | "nftables" | "default";

/** Checks `ipMasqBackend`; undefined is the default. Any other word, also "", is an error in the reference's words. */
export function masqueradeBackend(_call: unknown, configured: string | undefined): MasqueradeBackend {
  if (configured === undefined) return "default";
  if (configured === "iptables" || configured === "nftables") return configured;
  throw new CniError(
    code.config,
    `unknown ipmasq backend "${configured}"`,
    '"ipMasqBackend" is "iptables" or "nftables"; without it the one that works here is taken',
  );
}

/** `ips` in CIDR form, by family, equal ones once; what is no address is left out. */
function byFamily(ips: readonly string[]): Map<Family, Prefix[]> {
  const result = new Map<Family, Prefix[]>();
  const seen = new Set<string>();
  for (const ip of ips) {
    const prefix = parsePrefix(ip) ?? hostOf(ip);
    if (prefix === undefined || seen.has(formatPrefix(prefix))) continue;
    seen.add(formatPrefix(prefix));
    const list = result.get(prefix.address.family) ?? [];
    result.set(prefix.address.family, [...list, prefix]);
  }
  return result;
}

function hostOf(ip: string): Prefix | undefined {
  const address = parseAddress(ip);
  return address && { address, length: address.family === 4 ? 32 : 128 };
}

const hostLength = (family: Family) => family === 4 ? 32 : 128;
const MULTICAST: Record<Family, string> = { 4: "224.0.0.0/4", 6: "ff00::/8" };

/**
 * Steps that masquerade what the attachment's addresses (`ips`, in CIDR form) send beyond their own subnets: one for each
 * family with iptables, one with nftables, to be put side by side with what else ADD does.
 */
export function masqueradePlan(owner: Attachment, ips: readonly string[], backend: MasqueradeBackend): Step[] {
  const families = byFamily(ips);
  if (families.size === 0) return [];
  if (backend === "nftables" || (backend === "default" && toolPath("iptables-restore") === "" && hasNft())) {
    return [nftStep(owner, [...families.values()].flat())];
  }
  return [...families].map(([family, prefixes]) => iptablesStep(owner, family, { prefixes, backend }));
}

const hasNft = () => toolPath("nft") !== "";
const WHY = "packets that leave the container's subnet carry the host's address";

function iptablesStep(
  owner: Attachment,
  family: Family,
  { prefixes, backend }: { prefixes: readonly Prefix[]; backend: MasqueradeBackend },
): Step {
  const rules = iptablesRules(owner, family, prefixes);
  const text = transaction("nat", [`-N ${rules.chain}`, ...rules.content, ...rules.jumps]);
  const job = async (call: Applier) => {
    try {
      await addIptables(call, owner, { family, prefixes, text, backend });
    } catch (error) {
      throw ruleError(error);
    }
  };
  return step("host", iptablesTool(family), text, { why: WHY, job });
}

interface IptablesRules {
  readonly chain: string;
  /** Rules of the container's chain: every subnet before the one that masquerades. */
  readonly content: readonly string[];
  readonly jumps: readonly string[];
}

/** The rules as lines of a transaction. `accepted`: further subnets of the same chain. */
function iptablesRules(
  owner: Attachment,
  family: Family,
  prefixes: readonly Prefix[],
  accepted: readonly string[] = [],
): IptablesRules {
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
    jumps: [...new Set(prefixes.map(({ address }) => `${formatAddress(address)}/${hostLength(family)}`))].map((
      source,
    ) => `-A POSTROUTING -s ${source} ${comment} -j ${chain}`),
  };
}

/** Takes back what the optimistic transaction did, or does DEL's work when all is as ADD left it. */
function removalText(owner: Attachment, family: Family, prefixes: readonly Prefix[]): string {
  const { chain, jumps } = iptablesRules(owner, family, prefixes);
  return transaction("nat", [...jumps.map((jump) => jump.replace("-A", "-D")), `-F ${chain}`, `-X ${chain}`]);
}

/** How often a change that another process got in the way of is tried with the state read anew. */
const TRIES = 5;

async function addIptables(
  call: Applier,
  owner: Attachment,
  { family, prefixes, text, backend }: {
    family: Family;
    prefixes: readonly Prefix[];
    text: string;
    backend: MasqueradeBackend;
  },
): Promise<void> {
  const { host } = call;
  let failure: unknown;
  for (let i = 0; i < TRIES; i++) {
    try {
      await restore(host, family, text);
      call.undo(() => takeBack(call, owner, family, prefixes));
      return;
    } catch (error) {
      // Its answer is lost: it may have done its work.
      if (!(error instanceof TableError)) call.undo(() => takeBack(call, owner, family, prefixes));
      if (!(error instanceof TableError) || error.refusal === "locked") throw error;
      failure = error;
    }
    // The chain is there already, or the tool does not work here.
    const chain = chainName(owner);
    const table = await savedTable(host, family, "nat", { about: (name) => name === chain });
    if (table?.chains.has(chain)) {
      const merged = await mergedText(call, owner, { family, prefixes, table });
      try {
        await restore(host, family, merged);
        call.undo(() => cleanIptables(call, owner, { family, addresses: prefixes }));
        return;
      } catch (error) {
        if (!(error instanceof TableError)) {
          call.undo(() => cleanIptables(call, owner, { family, addresses: prefixes }));
        }
        if (!(error instanceof TableError) || error.refusal === "locked") throw error;
        failure = error;
      }
      continue;
    }
    if (i === 0) continue;
    break;
  }
  if (backend === "default" && !(await iptablesUsable(host, family)) && (await nftUsable(host))) {
    return await addNft(call, owner, prefixes);
  }
  throw failure;
}

async function takeBack(call: Applier, owner: Attachment, family: Family, prefixes: readonly Prefix[]): Promise<void> {
  try {
    await restore(call.host, family, removalText(owner, family, prefixes));
  } catch {
    await cleanIptables(call, owner, { family, addresses: prefixes });
  }
}

/** One transaction that makes the chain serve these addresses too, drops remains, and keeps other living interfaces'. */
async function mergedText(
  call: Applier,
  owner: Attachment,
  { family, prefixes, table }: { family: Family; prefixes: readonly Prefix[]; table: SavedTable },
): Promise<string> {
  const chain = chainName(owner);
  const jumps = jumpsTo(table, chain);
  const kept = await keptJumps(call, owner, { jumps, ours: prefixes });
  const gone = jumps.filter((jump) => !kept.includes(jump));
  const accepted = kept.length === 0 ? [] : (table.chains.get(chain) ?? []).flatMap(({ text }) => {
    const words = ruleWords(text);
    const at = words.indexOf("-d");
    return at >= 0 && words[at - 1] !== "!" && ruleTarget(text) === "ACCEPT" ? [words[at + 1] ?? ""] : [];
  });
  const rules = iptablesRules(owner, family, prefixes, accepted);
  // Declaring a chain that is there empties it.
  return transaction("nat", [
    `:${chain} - [0:0]`,
    ...rules.content,
    ...gone.map((jump) => `-D ${jump}`),
    ...rules.jumps,
  ]);
}

/** Rules of any chain that lead to `chain`, as `CHAIN RULE`. */
function jumpsTo(table: SavedTable, chain: string): string[] {
  const jumps: string[] = [];
  for (const rules of table.chains.values()) {
    for (const rule of rules) {
      if (rule.text.includes(chain) && ruleTarget(rule.text) === chain) jumps.push(`${rule.chain} ${rule.text}`);
    }
  }
  return jumps;
}

function sourceOf(jump: string): Prefix | undefined {
  const words = ruleWords(jump);
  const at = words.indexOf("-s");
  return at < 0 || words[at - 1] === "!" ? undefined : parsePrefix(words[at + 1] ?? "");
}

/**
 * Of the jumps to a container's chain, those that belong to another interface of the container that is still there: their
 * source is an address on it. Asks the container only when there is a jump that is not ours.
 */
async function keptJumps(
  call: Pick<Applier, "pod"> & { readonly podAlive?: boolean },
  owner: Attachment,
  { jumps, ours }: { jumps: readonly string[]; ours: readonly Prefix[] },
): Promise<string[]> {
  const mine = (source: Prefix) =>
    source.length === hostLength(source.address.family) && ours.some((one) => prefixContains(source, one.address));
  const others = jumps.filter((jump) => {
    const source = sourceOf(jump);
    return source !== undefined && !mine(source);
  });
  if (others.length === 0 || call.podAlive === false) return [];
  const living = await addressesBeside(call.pod, owner.ifName);
  return others.filter((jump) => {
    const source = sourceOf(jump);
    return source !== undefined && living.some((address) => prefixContains(source, address.address));
  });
}

/** Addresses of the container's interfaces but this one; [] when it cannot be asked. */
async function addressesBeside(pod: Run, ifName: string): Promise<Prefix[]> {
  try {
    const { code, stdout } = await pod({ argv: ["ip", "-j", "addr", "show"] });
    if (code !== 0) return [];
    const links = JSON.parse(stdout) as Link[];
    return links.filter((link) => link.ifname !== ifName).flatMap((link) => link.addr_info ?? []).flatMap(({ local }) =>
      hostOf(local) ?? []
    );
  } catch {
    return [];
  }
}

const NFT_TABLE = "inet cni_plugins_masquerade";
const TABLE_COMMENT = "Masquerading for plugins from github.com/containernetworking/plugins";
const CHAIN_COMMENT = "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet";

function nftStep(owner: Attachment, prefixes: readonly Prefix[]): Step {
  const text = nftSetup(true) + nftRules(owner, prefixes);
  const job = async (call: Applier) => {
    try {
      await addNft(call, owner, prefixes);
    } catch (error) {
      throw ruleError(error);
    }
  };
  return step("host", "nft", text, { why: WHY, job });
}

/** The table and its shared chains. Emptying a chain makes the next transaction wait, so this is not done every time. */
function nftSetup(comments: boolean): string {
  const note = (text: string) => comments ? ` { comment "${text}" ; }` : "";
  return [
    `add table ${NFT_TABLE}${note(TABLE_COMMENT)}`,
    `add chain ${NFT_TABLE} masq_checks${note(CHAIN_COMMENT)}`,
    `add chain ${NFT_TABLE} postrouting { type nat hook postrouting priority 100 ; }`,
    `flush chain ${NFT_TABLE} postrouting`,
    `add rule ${NFT_TABLE} postrouting ip daddr ${MULTICAST[4]} return`,
    `add rule ${NFT_TABLE} postrouting ip6 daddr ${MULTICAST[6]} return`,
    `add rule ${NFT_TABLE} postrouting goto masq_checks`,
    "",
  ].join("\n");
}

function nftRules(owner: Attachment, prefixes: readonly Prefix[]): string {
  const comment = nftComment(nftRuleComment(owner));
  return prefixes.map((prefix) => {
    const ip = prefix.address.family === 4 ? "ip" : "ip6";
    const subnet = formatPrefix(networkPrefix(prefix));
    return `add rule ${NFT_TABLE} masq_checks ${ip} saddr ${formatAddress(prefix.address)} ${ip} daddr != ${subnet} ` +
      `masquerade ${comment}\n`;
  }).join("");
}

/**
 * The rules alone first, printing the shared chain with them: the table is there on every node but a new one. Stale rules
 * of the same attachment are left to DEL: listing all rules, which finding them takes, costs more than the whole ADD.
 */
async function addNft(call: Applier, owner: Attachment, prefixes: readonly Prefix[]): Promise<void> {
  const { host } = call;
  const rules = nftRules(owner, prefixes);
  const undo = () => call.undo(() => cleanNft(host, owner));
  try {
    const shown = await nft(host, `${rules}list chain ${NFT_TABLE} postrouting\n`);
    undo();
    if (!isWhole(shown)) await setUpNft(host, "");
    return;
  } catch (error) {
    // Its answer is lost: it may have done its work.
    if (!(error instanceof NftError)) undo();
    if (!(error instanceof NftError) || error.refusal === "missing") throw error;
  }
  undo();
  await setUpNft(host, rules);
}

function isWhole(postrouting: string): boolean {
  return [/hook postrouting/, /224\.0\.0\.0\/4 return/, /ff00::\/8 return/, /goto masq_checks/].every((part) =>
    part.test(postrouting)
  );
}

/** Older kernels and tools know no comments on tables and chains. */
async function setUpNft(host: Run, rules: string): Promise<void> {
  try {
    await nft(host, nftSetup(true) + rules);
  } catch (error) {
    try {
      await nft(host, nftSetup(false) + rules);
    } catch {
      throw error;
    }
  }
}

/** Deletes the rules of an attachment; false when it had none. */
async function cleanNft(host: Run, owner: Attachment): Promise<boolean> {
  const hash = nftAttachmentHash(owner);
  return await deleteNft(host, (comment) => comment.startsWith(hash));
}

async function deleteNft(host: Run, chosen: (comment: string) => boolean): Promise<boolean> {
  for (let i = 0;; i++) {
    const listing = await nftList(host, `chain ${NFT_TABLE} masq_checks`);
    const handles = (listing?.rules ?? []).filter((rule) => chosen(rule.comment ?? "")).map((rule) => rule.handle);
    if (handles.length === 0) return i > 0;
    try {
      await nft(host, handles.map((handle) => `delete rule ${NFT_TABLE} masq_checks handle ${handle}\n`).join(""));
      return true;
    } catch (error) {
      // Another process may have deleted one of them meanwhile.
      if (!(error instanceof NftError) || i + 1 >= TRIES) throw error;
    }
  }
}

/** What removing needs of a call; a bare {@linkcode Applier} will do. */
type RemovalCall = Pick<Applier, "host" | "pod"> & { readonly podAlive?: boolean };

/**
 * Removes the attachment's rules, whichever backend set them, whoever's they were. `addresses` (CIDR or plain) are those
 * that are known, from the link or `prevResult`: with them one transaction does it, beside the deletion of the link;
 * without them, or when something else is found than expected, all jumps to the container's chain are looked for. What is
 * not there is success; missing tools too. `configured` is `ipMasqBackend`: that backend is looked at first.
 */
export async function removeMasquerade(
  call: RemovalCall,
  owner: Attachment,
  addresses: readonly string[],
  configured?: string,
): Promise<void> {
  try {
    if (configured === "nftables") {
      if (await quietNft(call.host, owner)) return;
      await removeIptables(call, owner, []);
      return;
    }
    if (await removeIptables(call, owner, addresses)) return;
    await quietNft(call.host, owner);
  } catch (error) {
    throw ruleError(error);
  }
}

/** Like {@linkcode cleanNft}; an nft that does not work with this kernel has set no rules either. */
async function quietNft(host: Run, owner: Attachment): Promise<boolean> {
  try {
    return await cleanNft(host, owner);
  } catch (error) {
    if (error instanceof NftError && !(await nftUsable(host))) return false;
    throw error;
  }
}

/** True when rules of the attachment were there, in every family: then no other backend was asked for them. */
async function removeIptables(call: RemovalCall, owner: Attachment, addresses: readonly string[]): Promise<boolean> {
  const known = byFamily(addresses);
  const families: readonly Family[] = known.size > 0 ? [...known.keys()] : [4, 6];
  const ends = await Promise.allSettled(families.map(async (family) => {
    const prefixes = known.get(family) ?? [];
    if (prefixes.length > 0) {
      try {
        await restore(call.host, family, removalText(owner, family, prefixes));
        return true;
      } catch (error) {
        if (!(error instanceof TableError) || error.refusal === "locked") throw error;
        if (error.refusal === "missing") return false;
      }
    }
    return await cleanIptables(call, owner, { family, addresses: prefixes });
  }));
  for (const end of ends) if (end.status === "rejected") throw end.reason;
  return ends.every((end) => end.status === "fulfilled" && end.value);
}

/** Finds everything that leads to the container's chain and removes it, except what another living interface needs. */
async function cleanIptables(
  call: RemovalCall,
  owner: Attachment,
  { family, addresses }: { family: Family; addresses: readonly Prefix[] },
): Promise<boolean> {
  const chain = chainName(owner);
  for (let i = 0;; i++) {
    const table = await savedTable(call.host, family, "nat", { about: (name) => name === chain });
    if (table === undefined) return false;
    const jumps = jumpsTo(table, chain);
    if (jumps.length === 0 && !table.chains.has(chain)) return i > 0;
    const kept = await keptJumps(call, owner, { jumps, ours: addresses });
    const lines = jumps.filter((jump) => !kept.includes(jump)).map((jump) => `-D ${jump}`);
    if (kept.length === 0) lines.push(`-F ${chain}`, `-X ${chain}`);
    if (lines.length === 0) return true;
    try {
      await restore(call.host, family, transaction("nat", lines));
      if (kept.length > 0) await dropIfUnused(call, family, chain);
      return true;
    } catch (error) {
      if (!(error instanceof TableError) || error.refusal === "locked" || i + 1 >= TRIES) throw error;
    }
  }
}

/**
 * Removes a chain that nothing leads to any more. Of several interfaces of a container that go at once each may have left it to
 * the others: whoever is last finds that out here.
 */
async function dropIfUnused({ host }: RemovalCall, family: Family, chain: string): Promise<void> {
  const table = await savedTable(host, family, "nat", { about: (name) => name === chain });
  if (!table?.chains.has(chain) || jumpsTo(table, chain).length > 0) return;
  try {
    await restore(host, family, transaction("nat", [`-F ${chain}`, `-X ${chain}`]));
  } catch (error) {
    // Another one was quicker, or has come since.
    if (!(error instanceof TableError) || error.refusal === "locked") throw error;
  }
}

/** Throws what of the attachment's masquerading is missing; rules of either backend and either implementation will do. */
export async function checkMasquerade(
  call: Pick<Call, "host">,
  owner: Attachment,
  ips: readonly string[],
  configured?: string,
): Promise<void> {
  const families = byFamily(ips);
  if (families.size === 0) return;
  try {
    const [first, second] = configured === "nftables" ? [missingNft, missingIptables] : [missingIptables, missingNft];
    const missing = await first(call.host, owner, families);
    if (missing === undefined || (await second(call.host, owner, families)) === undefined) return;
    throw new CniError(
      code.internal,
      `masquerading of ${owner.network} ${owner.containerId} ${owner.ifName} is incomplete: ${missing}`,
      "somebody removed rules of this container, for example by reloading a firewall",
    );
  } catch (error) {
    throw ruleError(error);
  }
}

type Families = ReadonlyMap<Family, readonly Prefix[]>;

async function missingIptables(host: Run, owner: Attachment, families: Families): Promise<string | undefined> {
  const chain = chainName(owner);
  const found = await Promise.all([...families].map(async ([family, prefixes]) => {
    const table = await savedTable(host, family, "nat", { about: (name) => name === chain });
    const content = table?.chains.get(chain);
    const tool = iptablesTool(family);
    if (table === undefined || content === undefined) return `chain ${chain} not found in ${tool} table nat`;
    if (!content.some((rule) => ruleTarget(rule.text) === "MASQUERADE")) {
      return `no rule that masquerades in chain ${chain} of ${tool} table nat`;
    }
    const sources = (table.chains.get("POSTROUTING") ?? []).filter((rule) => ruleTarget(rule.text) === chain)
      .flatMap((rule) => sourceOf(rule.text) ?? []);
    for (const { address } of prefixes) {
      if (sources.some((source) => prefixContains(source, address))) continue;
      return `no jump from ${formatAddress(address)} to ${chain} in POSTROUTING of ${tool} table nat`;
    }
  }));
  return found.find((one) => one !== undefined);
}

async function missingNft(host: Run, owner: Attachment, families: Families): Promise<string | undefined> {
  const hash = nftAttachmentHash(owner);
  const listing = await nftList(host, `table ${NFT_TABLE}`);
  if (listing === undefined) return `nft table ${NFT_TABLE} not found`;
  const jumps = listing.rules.some(({ chain, expr }) =>
    chain === "postrouting" && JSON.stringify(expr).includes('"masq_checks"')
  );
  if (!jumps) return `no rule in chain postrouting of nft table ${NFT_TABLE} leads to masq_checks`;
  const rules = listing.rules.filter((rule) => rule.comment?.startsWith(hash)).map(({ expr }) => JSON.stringify(expr));
  for (const { address } of [...families.values()].flat()) {
    const text = formatAddress(address);
    if (!rules.some((rule) => rule.includes(`"${text}"`) && rule.includes('"masquerade"'))) {
      return `no rule for ${text} in chain masq_checks of nft table ${NFT_TABLE}`;
    }
  }
}

/**
 * Removes the rules of this network's attachments that are not among the valid ones. iptables names the container only,
 * so there an interface of a container counts as valid as long as any of it is.
 */
export async function gcMasquerade(call: Call, valid: readonly ValidAttachment[]): Promise<void> {
  const { network, host } = call;
  const containers = new Set(valid.map((one) => one.containerID));
  const keep = new Set(
    valid.map(({ containerID, ifname }) => nftRuleComment({ network, containerId: containerID, ifName: ifname })),
  );
  const front = `${nftNetworkHash(network)}-`;
  const jobs = [
    ...([4, 6] as const).map((family) => collectIptables(host, network, { family, containers })),
    deleteNft(host, (comment) => comment.startsWith(front) && !keep.has(comment)).catch(async (error) => {
      if (await nftUsable(host)) throw error;
    }),
  ];
  const ends = await Promise.allSettled(jobs);
  for (const end of ends) if (end.status === "rejected") throw ruleError(end.reason);
}

async function collectIptables(
  host: Run,
  network: string,
  { family, containers }: { family: Family; containers: ReadonlySet<string> },
): Promise<void> {
  for (let i = 0;; i++) {
    const table = await savedTable(host, family, "nat");
    if (table === undefined) return;
    const chains = new Set<string>();
    const front = `name: "${network}" id: "`;
    for (const rule of [...table.chains.values()].flat()) {
      if (!rule.text.includes("id: ")) continue;
      const comment = ruleComment(rule.text) ?? "";
      if (!comment.startsWith(front) || !comment.endsWith('"')) continue;
      const containerId = comment.slice(front.length, -1);
      if (containers.has(containerId)) continue;
      // The chain's name says whether the comment tells the truth.
      const chain = chainName({ network, containerId });
      if (rule.chain === chain || ruleTarget(rule.text) === chain) chains.add(chain);
    }
    const lines = [...chains].flatMap((chain) => [
      ...jumpsTo(table, chain).map((jump) => `-D ${jump}`),
      ...(table.chains.has(chain) ? [`-F ${chain}`, `-X ${chain}`] : []),
    ]);
    if (lines.length === 0) return;
    try {
      await restore(host, family, transaction("nat", lines));
      return;
    } catch (error) {
      if (!(error instanceof TableError) || error.refusal === "locked" || i + 1 >= TRIES) throw error;
    }
  }
}

/** Throws code 50 when the next ADD with `ipMasq` could not set its rules. */
export async function statusMasquerade(call: Call, configured?: string): Promise<void> {
  const backend = masqueradeBackend(call, configured);
  const [four, other] = await Promise.all([
    backend === "nftables" ? false : iptablesUsable(call.host),
    backend === "iptables" ? false : nftUsable(call.host),
  ]);
  if (four || other) return;
  throw new CniError(
    code.notAvailable,
    backend === "default" ? "neither iptables nor nftables is usable" : `${backend} is not usable`,
    "ipMasq needs it: install the package and make sure that this kernel has its modules",
  );
}
