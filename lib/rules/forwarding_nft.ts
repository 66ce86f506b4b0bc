/**
 * Forwarding allowed for container addresses, and bridges kept apart, in nftables: for hosts without a usable iptables.
 * The reference has no such backend, so table and sets are our own. Addresses are elements of sets, so that a packet
 * meets the same few rules whatever the number of containers; an element's comment names its attachment.
 *
 * A verdict `accept` holds for one table only. So that a firewall of the host does not drop what is accepted here, each
 * of its forward chains gets a jump in front, to a chain beside it that accepts the same addresses. `drop` holds for
 * all. iptables cannot print a table that holds such rules: its tables get rules of its own. Where an earlier build has
 * left rules of nft there, they are moved.
 *
 *     table inet cni_firewall: forward → CNI-ISOLATION-STAGE-1 → STAGE-2; → CNI-FORWARD → the administrator's chain
 *     tables of iptables: as forwarding_iptables.ts has it
 *     any other table: its forward chain → cni_forward
 */
import { type CniError, internal } from "../cni/error.ts";
import { attachmentsOf, type ValidAttachment } from "../cni/types.ts";
import { iptablesTool, TableError } from "../kernel/iptables.ts";
import {
  nft,
  type NftChain,
  nftComment,
  NftError,
  nftList,
  type NftListing,
  type NftSet,
  setElements,
} from "../kernel/nft.ts";
import { type Run, toolPath } from "../kernel/run.ts";
import { type Address, type Family, formatAddress, parseAddress } from "../net/cidr.ts";
import { type Attachment, nftAttachmentHash, nftNetworkHash, nftRuleComment } from "../net/name.ts";
import { type Adder, type Host, type Remover, settledNft } from "./backend.ts";
import {
  addForwarding,
  canBeInRule,
  FORWARD_CHAIN,
  type Forwarding,
  isForwarded,
  type Parts,
  RELOADED,
  STAGE_1,
  STAGE_2,
  takeBackForwarding,
  unsaid,
} from "./forwarding_iptables.ts";

const TABLE = "inet cni_firewall";
/** In tables of others. */
const GUEST = "cni_forward";
const JUMP_COMMENT = "CNI firewall plugin rules";

const FAMILIES = [4, 6] as const;

const setOf = ({ family }: { readonly family: Family }) => `cni_addresses_v${family}`;
/** Do packets of the family meet the table? */
const meets = (table: string, family: Family) => !table.startsWith(family === 4 ? "ip6 " : "ip ");

/** Sets and rules that accept addresses, in any table. */
function acceptText(table: string, chain: string): string[] {
  return FAMILIES.filter((family) => meets(table, family)).flatMap((family) => {
    const [ip, set] = [family === 4 ? "ip" : "ip6", setOf({ family })];
    return [
      `add rule ${table} ${chain} ${ip} daddr @${set} ct state established,related accept`,
      `add rule ${table} ${chain} ${ip} saddr @${set} accept`,
    ];
  });
}

function setsText(table: string): string[] {
  return FAMILIES.filter((family) => meets(table, family)).map((family) =>
    `add set ${table} ${setOf({ family })} { type ipv${family}_addr ; }`
  );
}

/** Elements for the addresses. Added, deleted and added again: an address that is there gets its new owner's name. */
function elementsText(table: string, owner: Attachment, addresses: readonly Address[]): string[] {
  const comment = nftComment(nftRuleComment(owner));
  return addresses.filter(({ family }) => meets(table, family)).flatMap((address) => {
    const [set, ip] = [setOf(address), formatAddress(address)];
    return [
      `add element ${table} ${set} { ${ip} }`,
      `delete element ${table} ${set} { ${ip} }`,
      `add element ${table} ${set} { ${ip} ${comment} }`,
    ];
  });
}

/** What our own table is like before an ADD. */
interface OwnState {
  /** Names of its chains: those are not made again. */
  readonly there: ReadonlySet<string>;
  /** Its shared rules are as they should be. */
  readonly whole: boolean;
}

/** Our own table: what is missing of it, and the container's elements. */
function ownText(
  { admin, policy, bridge, addresses }: Forwarding,
  owner: Attachment,
  { there, whole, accept }: Parts & OwnState,
): string[] {
  // `create` fails where `add` would pass: of two that come at once, the second looks again.
  const chain = (name: string, base = "") =>
    there.has(name) ? `flush chain ${TABLE} ${name}` : `create chain ${TABLE} ${name}${base}`;
  const shared = [
    `add table ${TABLE}`,
    ...setsText(TABLE),
    `add set ${TABLE} restricted { type ifname ; }`,
    `add set ${TABLE} same { type ifname . ifname ; }`,
    `add set ${TABLE} isolated { type ifname . ifname ; }`,
    ...[STAGE_1, STAGE_2, FORWARD_CHAIN].map((name) => chain(name)),
    `add rule ${TABLE} ${STAGE_1} iifname . oifname @isolated drop`,
    `add rule ${TABLE} ${STAGE_1} iifname . oifname @same return`,
    `add rule ${TABLE} ${STAGE_1} iifname @restricted jump ${STAGE_2}`,
    `add rule ${TABLE} ${STAGE_2} oifname @restricted drop`,
    ...acceptText(TABLE, FORWARD_CHAIN),
    chain("forward", " { type filter hook forward priority 0 ; }"),
    `add rule ${TABLE} forward jump ${STAGE_1}`,
    `add rule ${TABLE} forward jump ${FORWARD_CHAIN}`,
  ];
  return [
    ...(whole ? [] : shared),
    ...(there.has(admin) ? [] : [`create chain ${TABLE} ${admin}`]),
    ...(there.has(admin) && whole ? [] : [`insert rule ${TABLE} ${FORWARD_CHAIN} jump ${admin}`]),
    ...(accept ? elementsText(TABLE, owner, addresses) : []),
    ...isolationText({ policy, bridge }),
  ];
}

function isolationText({ policy, bridge }: Pick<Forwarding, "policy" | "bridge">): string[] {
  if (policy === "open") return [];
  if (!canBeInRule(bridge, "nftables")) throw unsaid(bridge, policy, "nftables");
  return [
    `add element ${TABLE} same { "${bridge}" . "${bridge}" }`,
    `add element ${TABLE} restricted { "${bridge}" }`,
    ...(policy === "isolated" ? [`add element ${TABLE} isolated { "${bridge}" . "${bridge}" }`] : []),
  ];
}

/** The whole of an ADD on a host with no other firewall. */
export function nftForwardText(forwarding: Forwarding, owner: Attachment, parts: Parts): string {
  return ownText(forwarding, owner, { ...parts, there: new Set(), whole: false }).join("\n") + "\n";
}

/** Forward chains of the host's own firewall. firewalld's is left to firewalld, which takes no rules from others. */
function foreignHooks(chains: readonly NftChain[]): NftChain[] {
  return chains.filter(({ family, table, type, hook }) =>
    hook === "forward" && type === "filter" && ["inet", "ip", "ip6"].includes(family) &&
    `${family} ${table}` !== TABLE && table !== "firewalld"
  );
}

/** A table that iptables keeps in nf_tables. */
function isOfIptables({ family, table }: NftChain, chains: readonly NftChain[]): boolean {
  return ["ip", "ip6"].includes(family) && table === "filter" &&
    chains.some((one) => one.family === family && one.table === table && one.name === "FORWARD");
}

/**
 * Sets what is missing for the container. Throws {@linkcode NftError}; `warn` is told which table could not be changed.
 */
export async function addNftForwarding(
  call: Adder,
  forwarding: Forwarding,
  { owner, ...parts }: Parts & { readonly owner: Attachment },
): Promise<void> {
  const { host } = call;
  const chains = await settledNft(call, async () => {
    const [listing, own] = await Promise.all([nftList(host, "chains"), nftList(host, `table ${TABLE}`)]);
    const there = new Set(own?.chains.map(({ name }) => name));
    const whole = own !== undefined && missingShared(own) === undefined;
    return { lines: ownText(forwarding, owner, { ...parts, there, whole }), result: listing?.chains ?? [] };
  });
  if (!parts.accept) return;
  for (const hook of foreignHooks(chains)) {
    if (isOfIptables(hook, chains)) await openIptables(call, hook, forwarding);
    else await openForeign(call, hook, { chains, owner, forwarding });
  }
}

async function openIptables(
  { host, warn, undo }: Adder,
  hook: NftChain,
  forwarding: Forwarding,
): Promise<void> {
  const family = hook.family === "ip" ? 4 : 6;
  const addresses = forwarding.addresses.filter((one) => one.family === family);
  const rules = (await nftList(host, `chain ${hook.family} ${hook.table} ${hook.name}`))?.rules ?? [];
  if (addresses.length === 0 || (rules.length === 0 && hook.policy !== "drop")) return;
  try {
    await moveToIptables({ host }, family, forwarding.admin);
    const made = await addForwarding({ host }, inIptables(forwarding.admin, addresses), { family, accept: true });
    undo(() => takeBackForwarding({ host }, made, family));
  } catch (error) {
    if (!(error instanceof TableError)) throw error;
    warn?.(`${iptablesTool(family)} may drop what this container forwards, and could not be changed: ${error.message}`);
  }
}

function inIptables(admin: string, addresses: readonly Address[]): Forwarding {
  return { admin, addresses, policy: "open", bridge: "", forNft: true };
}

/**
 * Moves what an earlier build has put into a table of iptables: iptables cannot print the table as long as rules of nft
 * are there. Returns whether there were any. Throws {@linkcode TableError} when iptables does not take the addresses.
 */
export async function moveToIptables({ host }: Host, family: Family, admin: string): Promise<boolean> {
  const table = `${family === 4 ? "ip" : "ip6"} filter`;
  const moved = await settledNft({ host }, async (attempt) => {
    const { chains = [], rules = [], sets = [] } = await nftList(host, `table ${table}`) ?? {};
    const isOurs = chains.some(({ name }) => name === GUEST) && chains.some(({ name }) => name === "FORWARD");
    const own = sets.filter(({ name }) => name === `cni_addresses_v${family}`);
    const addresses = own.flatMap(setElements).flatMap(({ value }) =>
      (typeof value === "string" ? parseAddress(value) : undefined) ?? []
    );
    // After a refusal another call has done it meanwhile.
    if (!isOurs) return { lines: [], result: attempt > 0 ? [] : undefined };
    // The rules serve living containers: without the tool they stay.
    if (addresses.length > 0 && toolPath(`${iptablesTool(family)}-restore`) === "") {
      return { lines: [], result: undefined };
    }
    const jumps = rules.filter(({ expr }) => JSON.stringify(expr).includes(`"${GUEST}"`));
    return {
      lines: [
        ...jumps.map(({ chain, handle }) => `delete rule ${table} ${chain} handle ${handle}`),
        `flush chain ${table} ${GUEST}`,
        `delete chain ${table} ${GUEST}`,
        ...own.map(({ name }) => `delete set ${table} ${name}`),
      ],
      result: addresses,
    };
  });
  if (moved === undefined) return false;
  if (moved.length > 0) await addForwarding({ host }, inIptables(admin, moved), { family, accept: true });
  return true;
}

async function openForeign(
  { host, warn }: Adder,
  hook: NftChain,
  { chains, owner, forwarding }: { chains: readonly NftChain[]; owner: Attachment; forwarding: Forwarding },
): Promise<void> {
  const table = `${hook.family} ${hook.table}`;
  try {
    const rules = (await nftList(host, `chain ${table} ${hook.name}`))?.rules ?? [];
    // It lets everything through.
    if (rules.length === 0 && hook.policy !== "drop") return;
    const hasChain = chains.some((one) => `${one.family} ${one.table}` === table && one.name === GUEST);
    const hasJump = rules.some(({ expr }) => JSON.stringify(expr).includes(`"${GUEST}"`));
    const lines = [
      ...(hasChain ? [] : [...setsText(table), `create chain ${table} ${GUEST}`, ...acceptText(table, GUEST)]),
      ...(hasJump ? [] : [`insert rule ${table} ${hook.name} jump ${GUEST} ${nftComment(JUMP_COMMENT)}`]),
      ...elementsText(table, owner, forwarding.addresses),
    ];
    await nft(host, lines.join("\n") + "\n");
  } catch (error) {
    if (!(error instanceof NftError)) throw error;
    warn?.(
      `nft table ${table} may drop what this container forwards, and could not be changed: ${error.message}; ` +
        `let its chain ${hook.name} accept the container's addresses`,
    );
  }
}

/** Tables that may hold elements of ours. */
async function tables(host: Run): Promise<{ own: NftListing | undefined; foreign: string[] }> {
  const [chains, own] = await Promise.all([nftList(host, "chains"), nftList(host, `table ${TABLE}`)]);
  const foreign = (chains?.chains ?? []).filter(({ name }) => name === GUEST).map(({ family, table }) =>
    `${family} ${table}`
  );
  return { own, foreign: [...new Set(foreign)] };
}

type Collector = Pick<Remover, "host" | "warn">;

/**
 * Removes the elements that `chosen` picks by comment and address, from our table and from those of others. What is not
 * there, also nft itself, is success. What an earlier build has left in tables of iptables is moved out of them.
 * Returns whether there were any.
 */
async function removeElements(
  { host, warn }: Collector,
  admin: string,
  chosen: (comment: string, address: string) => boolean,
): Promise<boolean> {
  const { own, foreign } = await tables(host);
  const gone: { set: string; address: string }[] = [];
  for (const set of own?.sets ?? []) {
    if (!set.name.startsWith("cni_addresses_")) continue;
    for (const { value, comment } of setElements(set)) {
      if (typeof value === "string" && chosen(comment, value)) gone.push({ set: set.name, address: value });
    }
  }
  for (const table of [TABLE, ...foreign]) {
    const mine = gone.filter(({ set }) => meets(table, set.endsWith("_v4") ? 4 : 6));
    const lines = mine.map(({ set, address }) => `delete element ${table} ${set} { ${address} }\n`);
    if (lines.length === 0) continue;
    try {
      await nft(host, lines.join(""));
    } catch (error) {
      if (!(error instanceof NftError)) throw error;
      for (const line of lines) {
        await nft(host, line).catch((error) => {
          if (!(error instanceof NftError) || error.refusal === "refused") throw error;
        });
      }
    }
  }
  for (const family of FAMILIES) {
    if (!foreign.includes(family === 4 ? "ip filter" : "ip6 filter")) continue;
    try {
      await moveToIptables({ host }, family, admin);
    } catch (error) {
      if (!(error instanceof TableError)) throw error;
      warn?.(
        `${
          iptablesTool(family)
        } may drop what other containers forward: ${error.message}; \`cnibox restore --all\` looks again`,
      );
    }
  }
  return gone.length > 0;
}

/** Removes the attachment's addresses; one that has got a new owner since stays. */
export async function removeNftForwarding(call: Collector, owner: Attachment, admin: string): Promise<boolean> {
  const hash = nftAttachmentHash(owner);
  return await removeElements(call, admin, (comment) => comment.startsWith(hash));
}

/** Removes addresses of this network's attachments that are not valid, and bridges that are gone. */
export async function collectNftForwarding(
  call: Collector,
  network: string,
  { valid, admin, isGone }: {
    readonly valid: readonly ValidAttachment[];
    readonly admin: string;
    readonly isGone: (link: string) => boolean;
  },
): Promise<void> {
  const front = `${nftNetworkHash(network)}-`;
  const keep = new Set(attachmentsOf(network, valid).map(nftAttachmentHash));
  await removeElements(call, admin, (comment) => comment.startsWith(front) && !keep.has(comment.slice(0, 33)));
  await removeNftIsolation(call, isGone);
}

/** Removes what keeps links apart that `isGone` picks. */
export async function removeNftIsolation({ host }: Host, isGone: (link: string) => boolean): Promise<void> {
  await settledNft({ host }, async () => {
    const listing = await nftList(host, `table ${TABLE}`);
    const lines = (listing?.sets ?? []).filter(({ name }) => ["restricted", "same", "isolated"].includes(name)).flatMap(
      (set) =>
        setElements(set).flatMap(({ value }) => {
          const names = typeof value === "string" ? [value] : (value as { concat?: string[] }).concat ?? [];
          if (!names.some(isGone)) return [];
          return [`delete element ${TABLE} ${set.name} { ${names.map((name) => `"${name}"`).join(" . ")} }`];
        }),
    );
    return { lines, result: undefined };
  });
}

/** The error for the first thing that is missing for the container. */
export async function missingNftForwarding(
  { host }: Host,
  forwarding: Forwarding,
  parts: Parts,
): Promise<CniError | undefined> {
  const lost = await lostParts(host, forwarding, parts);
  return lost === undefined ? undefined : internal(lost, RELOADED);
}

async function lostParts(host: Run, forwarding: Forwarding, parts: Parts): Promise<string | undefined> {
  const own = await nftList(host, `table ${TABLE}`);
  if (own === undefined) return `nft table ${TABLE} not found`;
  const shared = missingShared(own);
  if (shared !== undefined) return shared;
  const has = (name: string, value: string) =>
    own.sets.some((set) =>
      set.name === name &&
      setElements(set).some((one) => (typeof one.value === "string" ? one.value : JSON.stringify(one.value)) === value)
    );
  if (parts.accept) {
    const missing = forwarding.addresses.find((address) => !has(setOf(address), formatAddress(address)));
    if (missing) return `expected element ${formatAddress(missing)} in nft table ${TABLE} not found`;
  }
  const { policy, bridge } = forwarding;
  if (policy === "open") return undefined;
  const pair = JSON.stringify({ concat: [bridge, bridge] });
  if (!has("restricted", bridge) || !has("same", pair) || (policy === "isolated" && !has("isolated", pair))) {
    return `expected element ${bridge} for ingressPolicy "${policy}" in nft table ${TABLE} not found`;
  }
}

/** Which of the rules that all containers share is missing; undefined when none is. */
function missingShared({ rules }: NftListing): string | undefined {
  const expected = [
    ...[["forward", STAGE_1], ["forward", FORWARD_CHAIN], [STAGE_1, "@isolated"], [STAGE_1, "@same"]],
    ...[[STAGE_1, STAGE_2], [STAGE_2, "@restricted"]],
    ...FAMILIES.map((family) => [FORWARD_CHAIN, `@${setOf({ family })}`]),
  ];
  for (const [chain = "", word = ""] of expected) {
    if (rules.some((rule) => rule.chain === chain && JSON.stringify(rule.expr).includes(`"${word}"`))) continue;
    return `expected rule about ${word} in chain ${chain} of nft table ${TABLE} not found`;
  }
}

/** Does our listed table let all addresses through? */
export function nftAcceptsAll({ sets }: NftListing, addresses: readonly Address[]): boolean {
  const own = sets.filter(({ table }) => table === TABLE.slice("inet ".length));
  return addresses.every((address) => holds(own, address));
}

function holds(sets: readonly NftSet[], address: Address): boolean {
  return sets.some((set) =>
    set.name === setOf(address) && setElements(set).some(({ value }) => value === formatAddress(address))
  );
}

/**
 * Throws when another firewall's table, made anew by its owner, has lost what lets these addresses through. Not a part
 * of CHECK: a table that cannot be changed is a warning at ADD, and no failure of the container.
 */
export async function checkForeignTables({ host }: Host, addresses: readonly Address[]): Promise<void> {
  const own = await nftList(host, `table ${TABLE}`);
  const taken = addresses.filter((address) => own && holds(own.sets, address));
  // Another backend lets them through.
  if (taken.length === 0) return;
  const chains = (await nftList(host, "chains"))?.chains ?? [];
  for (const hook of foreignHooks(chains)) {
    const table = `${hook.family} ${hook.table}`;
    const rules = (await nftList(host, `chain ${table} ${hook.name}`))?.rules ?? [];
    if (rules.length === 0 && hook.policy !== "drop") continue;
    if (isOfIptables(hook, chains)) {
      const family = hook.family === "ip" ? 4 : 6;
      if (await isForwarded({ host }, taken.filter((one) => one.family === family), family)) continue;
      throw internal(
        `${iptablesTool(family)} has no rules for ${
          taken.map(formatAddress).join(", ")
        }, and its chain FORWARD may drop them`,
        "somebody flushed it; ADD makes the rules again",
      );
    }
    const jumps = rules.some(({ expr }) => JSON.stringify(expr).includes(`"${GUEST}"`));
    const wanted = taken.filter(({ family }) => meets(table, family));
    for (const address of wanted) {
      const set = jumps ? await nftList(host, `set ${table} ${setOf(address)}`) : undefined;
      if (set && holds(set.sets, address)) continue;
      throw internal(
        `chain ${hook.name} of nft table ${table} does not let ${formatAddress(address)} through`,
        "its owner has made the table anew; ADD makes the rules again",
      );
    }
  }
}
