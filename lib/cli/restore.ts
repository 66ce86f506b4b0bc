/**
 * `cnibox restore`: after a firewall was reloaded or flushed, makes the masquerade, port mapping and firewall rules of
 * the living attachments again, from what their ADD left in the result cache. Rules that are there stay as they are;
 * what is missing of all of them goes in together, so that no packet meets half of it.
 */
import { checkForeignTables } from "../rules/forwarding_nft.ts";
import { checkMasquerade, masqueradeBackend, masqueradePlan, removeMasquerade } from "../rules/masquerade.ts";
import { ruleError } from "../rules/rule_error.ts";
import { type NetworkList, parseList } from "../cni/conflist.ts";
import { type Member, requestOf } from "../cni/member.ts";
import { lookup } from "../cni/decode.ts";
import { CniError, toCniError } from "../cni/error.ts";
import { type Cached, cachedResult } from "../cni/result_cache.ts";
import { callPlugin } from "../cni/skel.ts";
import { parseResult } from "../cni/version.ts";
import { askingOnce } from "../kernel/asked_once.ts";
import { each } from "../kernel/each.ts";
import { netnsState } from "../kernel/netns.ts";
import { readFileIfThere } from "../kernel/state_file.ts";
import { TableError } from "../kernel/iptables.ts";
import { NftError } from "../kernel/nft.ts";
import { apply } from "../kernel/plan.ts";
import { NotOneTransaction, RuleBatch } from "../kernel/rule_batch.ts";
import { CommandError, inNetns, type Run, type RunHooks, systemRun } from "../kernel/run.ts";
import { type Address, parsePrefix } from "../net/cidr.ts";
import { CliError, type CommandCall, status, tell, usageError } from "./command.ts";
import { byName, containerIdOf, podOf, shortId, unknownContainer } from "./owner_names.ts";
import { type Progress, progress } from "./progress.ts";
import { watchedRuntime } from "./runtime.ts";
import { attachmentsOf, type Folders, foldersOf, needRoot, onlyOne } from "./setup.ts";
import { complain, counted, painter, table, terminalWidth } from "./terminal.ts";

/** What came of one attachment's rules of one kind. */
interface Outcome {
  readonly network: string;
  readonly containerId: string;
  readonly pod?: string;
  readonly ifName: string;
  readonly what: string;
  readonly state: "there" | "restored" | "missing" | "failed";
  readonly reason?: string;
}

/** Chained plugins whose ADD makes rules from `prevResult` and nothing else, and may be repeated. */
const RULE_MAKERS = ["portmap", "firewall"];

/** How many attachments are looked at side by side. */
const AT_ONCE = 4;

/** How often a transaction is made anew that another process got in the way of. */
const TRIES = 3;

/** `cnibox restore --all | --id CONTAINER` */
export async function restore(call: CommandCall): Promise<number> {
  const folders = foldersOf(call);
  const word = call.value("id");
  if (word === undefined && !call.is("all")) throw usageError("say what to restore: --all, or --id CONTAINER");
  const id = word === undefined ? undefined : containerIdOf(word, folders);
  const dry = call.is("dry-run");
  if (!dry) needRoot(call, "it writes firewall rules");
  const cached = attachmentsOf(folders, id);
  if (id !== undefined && cached.length === 0) {
    throw unknownContainer(id, attachmentsOf(folders), { advice: [`looked in ${folders.cache}`] });
  }
  using doing = progress();
  doing.step("waiting for another cnibox restore to end");
  using _lock = dry ? undefined : await onlyOne("restore", "cnibox restore");
  const living = cached.filter(isLiving);
  using watched = watchedRuntime(call, folders);
  const outcomes = await restored(living, { call, folders, dry, doing, hooks: watched.runtime.hooks ?? {} });
  doing.step(undefined);
  const dead = cached.length - living.length;
  tell(call, { rules: outcomes, deadAttachments: dead }, () => textOf(outcomes, dead));
  return outcomes.some(({ state }) => state === "failed") ? status.failed : status.done;
}

/** Its namespace is there, and nobody has deleted it. */
function isLiving({ netns, file }: Cached): boolean {
  return netnsState(netns) === "netns" && readFileIfThere(file) !== undefined;
}

/** What the work is done with. */
interface Work {
  readonly call: CommandCall;
  readonly folders: Folders;
  readonly dry: boolean;
  readonly doing: Progress;
  readonly hooks: RunHooks;
}

/** Rules of one kind of one attachment. */
interface Part {
  readonly about: Omit<Outcome, "state" | "reason">;
  readonly of: Cached;
  /** Throws what is missing. Changes nothing, so what several ask is asked `once`. */
  check(once: (run: Run) => Run): Promise<unknown>;
  /** Makes what is missing: in a batch, or at once. */
  make(batch: RuleBatch | undefined): Promise<unknown>;
  /** Removes them: their container went meanwhile. */
  remove(): Promise<unknown>;
}

async function restored(living: readonly Cached[], work: Work): Promise<Outcome[]> {
  const parts: Part[] = [];
  const broken: Outcome[] = [];
  for (const one of living) {
    try {
      const list = parseList(one.config, one.file);
      parts.push(...masqueradeParts(one, list, work), ...chainedParts(one, list, work));
    } catch (error) {
      broken.push({ ...aboutOf(one, "configuration"), state: "failed", reason: (error as Error).message });
    }
  }
  const missing = await missingOf(parts, work.doing);
  const outcomes = new Map<Part, Outcome>(
    parts.map((part) => [part, { ...part.about, state: missing.includes(part) ? "missing" : "there" }]),
  );
  if (!work.dry && missing.length > 0) await make(missing, outcomes, work);
  return [...broken, ...outcomes.values()];
}

async function missingOf(parts: readonly Part[], doing: Progress): Promise<Part[]> {
  const missing = new Set<Part>();
  const once = askingOnce();
  let count = 0;
  await each(parts, AT_ONCE, async (part) => {
    doing.step(`rules looked at: ${count++} of ${parts.length}`);
    try {
      await part.check(once);
    } catch (error) {
      if (!(error instanceof CniError || error instanceof CommandError)) throw error;
      missing.add(part);
    }
  });
  // In their own order: of two that want one port, the first has it.
  return parts.filter((part) => missing.has(part));
}

/** All in one transaction; where that cannot be, one part after the other. */
async function make(missing: readonly Part[], outcomes: Map<Part, Outcome>, { hooks, doing }: Work): Promise<void> {
  for (let i = 1;; i++) {
    const parts = missing.filter(({ of }) => isLiving(of));
    let batch: RuleBatch | undefined;
    try {
      batch = await RuleBatch.open(systemRun(hooks));
      await makeEach(parts, outcomes, { batch, doing });
      if (!parts.every(({ of }) => isLiving(of))) continue;
      await batch.commit();
      return await forgetGone(missing, outcomes);
    } catch (error) {
      if (error instanceof NotOneTransaction) {
        complain(`cnibox: not in one transaction, but one after the other: ${error.message}\n`);
        await makeEach(parts, outcomes, { batch: undefined, doing });
        return await forgetGone(missing, outcomes);
      }
      const tables = error instanceof TableError || error instanceof NftError;
      if (tables && error.refusal === "refused" && i < TRIES) continue;
      const reason = toCniError(ruleError(error)).message;
      for (const [part, outcome] of outcomes) {
        if (outcome.state === "restored") outcomes.set(part, { ...outcome, state: "failed", reason });
      }
      return;
    } finally {
      await batch?.close();
    }
  }
}

/** A DEL that came meanwhile has found no rules yet. */
async function forgetGone(parts: readonly Part[], outcomes: Map<Part, Outcome>): Promise<void> {
  for (const part of parts.filter(({ of }) => !isLiving(of))) {
    if (outcomes.get(part)?.state === "restored") await part.remove();
    outcomes.delete(part);
  }
}

/** What fails is left out; the others do not suffer. */
async function makeEach(
  parts: readonly Part[],
  outcomes: Map<Part, Outcome>,
  { batch, doing }: { readonly batch: RuleBatch | undefined; readonly doing: Progress },
): Promise<void> {
  for (const [at, part] of parts.entries()) {
    doing.step(`rules made: ${at} of ${parts.length}`);
    const mark = batch?.mark();
    try {
      await part.make(batch);
      outcomes.set(part, { ...part.about, state: "restored" });
    } catch (error) {
      if (batch && mark) batch.forget(mark);
      outcomes.set(part, { ...part.about, state: "failed", reason: toCniError(error).message });
    }
  }
}

function aboutOf(one: Cached, what: string): Part["about"] {
  const { network, containerId, ifName } = one;
  const pod = podOf(one);
  return { network, containerId, ...(pod !== undefined && { pod }), ifName, what };
}

/** Masquerading that bridge or ptp made. */
function masqueradeParts(one: Cached, list: NetworkList, { folders, hooks }: Work): Part[] {
  const member = list.plugins.find(({ type, config }) =>
    ["bridge", "ptp"].includes(type) && lookup(config, "ipMasq") === true
  );
  const result = member && cachedResult(folders.cache, one, list.version);
  if (!member || !result) return [];
  const owner = { network: one.network, containerId: one.containerId, ifName: one.ifName };
  const configured = lookup(member.config, "ipMasqBackend");
  const backend = typeof configured === "string" ? configured : undefined;
  const ips = (parseResult(result, list.version).ips ?? []).map(({ address }) => address);
  const real = systemRun(hooks);
  return [{
    about: aboutOf(one, "masquerade"),
    of: one,
    check: (once) => checkMasquerade({ host: once(real) }, owner, ips, backend),
    make: async (batch) => {
      const host: Run = batch ? (command) => batch.instead(command, real) : real;
      const plan = masqueradePlan(owner, ips, masqueradeBackend(backend));
      await apply([plan], { host, pod: inNetns(real, one.netns), undo: () => {} });
    },
    remove: () => removeMasquerade({ host: real, pod: inNetns(real, one.netns) }, owner, ips, backend),
  }];
}

/** Rules of the chained plugins: CHECK says whether they are there, ADD makes them. */
function chainedParts(one: Cached, list: NetworkList, work: Work): Part[] {
  return list.plugins.filter(({ type }) => RULE_MAKERS.includes(type)).map((member) => ({
    about: aboutOf(one, member.type),
    of: one,
    check: async (once) => {
      await run("CHECK", one, { ...work, list, member, through: once });
      if (member.type === "firewall") {
        await checkForeignTables({ host: once(systemRun(work.hooks)) }, addressesOf(one, list, work));
      }
    },
    make: (batch) => run("ADD", one, { ...work, list, member, batch }),
    remove: () => run("DEL", one, { ...work, list, member }),
  }));
}

function addressesOf(one: Cached, list: NetworkList, { folders }: Work): Address[] {
  const result = cachedResult(folders.cache, one, list.version);
  const ips = (result && parseResult(result, list.version).ips) ?? [];
  return ips.flatMap(({ address }) => parsePrefix(address)?.address ?? []);
}

interface Target extends Work {
  readonly list: NetworkList;
  readonly member: Member;
  readonly batch?: RuleBatch | undefined;
  readonly through?: (run: Run) => Run;
}

/** One call of a built-in plugin with an attachment's cached result. */
async function run(
  verb: "ADD" | "CHECK" | "DEL",
  one: Cached,
  { list, member, folders, call, hooks, batch, through }: Target,
): Promise<void> {
  const plugin = await call.invocation.load(member.type);
  if (!plugin) throw new CliError(`there is no plugin ${member.type}`, status.failed);
  const stdin = requestOf(list, member, {
    prevResult: cachedResult(folders.cache, one, list.version),
    capabilityArgs: one.capabilityArgs,
  });
  const env = {
    CNI_COMMAND: verb,
    CNI_CONTAINERID: one.containerId,
    CNI_NETNS: one.netns,
    CNI_IFNAME: one.ifName,
    CNI_ARGS: one.args.map(([key, value]) => `${key}=${value}`).join(";"),
    CNI_PATH: folders.path.join(":"),
  };
  await callPlugin(plugin, {
    env,
    stdin: () => stdin,
    registry: call.invocation.load,
    builtin: true,
    hooks,
    ...(batch && { explain: batch }),
    ...(through && { through }),
    warn: (type, note) => complain(`${type}: ${note}\n`),
  });
}

/** More rules with one outcome than this are told in one line. */
const MANY = 12;

function textOf(outcomes: readonly Outcome[], dead: number): string {
  const paint = painter();
  const colours = { there: "green", restored: "green", missing: "yellow", failed: "red" } as const;
  const nameOf = ({ pod, containerId }: Outcome) => pod ?? shortId(containerId);
  const sorted = outcomes.toSorted((a, b) => byName(nameOf(a), nameOf(b)));
  const alike = Map.groupBy(sorted, ({ what, state, reason = "" }) => `${what} ${state} ${reason}`);
  const rows = [...alike.values()].flatMap((all) => {
    const shown = ({ what, state, reason = "" }: Outcome) => [what, paint(colours[state], state), reason];
    if (all.length > MANY && all[0]) return [[`${all.length} attachments`, "", "", ...shown(all[0])]];
    return all.map((one) => [nameOf(one), one.ifName, one.network, ...shown(one)]);
  });
  const count = (state: Outcome["state"]) => outcomes.filter((one) => one.state === state).length;
  const others = [
    ...(["missing", "failed"] as const).flatMap((state) => count(state) > 0 ? [`${count(state)} ${state}`] : []),
    ...(dead > 0 ? [`${counted(dead, "attachment")} of dead containers left alone`] : []),
  ];
  const sum = `${[`${count("restored")} restored`, `${count("there")} were there`, ...others].join(", ")}\n`;
  return `${table([], rows, { width: terminalWidth() })}${sum}`;
}
