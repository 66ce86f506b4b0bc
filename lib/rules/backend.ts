/**
 * The lifecycle of a set of rules, the same for every subject (masquerading, host ports, forwarding): choose a backend,
 * add, fall back, undo, remove from both backends; rule_upkeep.ts has what ADD and DEL do without: check, collect,
 * answer STATUS. The texts of the rules lie in two files for each subject, NAME_iptables.ts and NAME_nft.ts, since
 * their layouts are the reference's.
 */
import { all, CniError, groupsFor } from "../cni/error.ts";
import {
  iptablesTool,
  iptablesUsable,
  restore,
  type SavedTable,
  TableError,
  type TableName,
  transaction,
} from "../kernel/iptables.ts";
import { nft, NftError, type NftListing, nftUsable } from "../kernel/nft.ts";
import { type Applier, type Step, step } from "../kernel/plan.ts";
import { type Run, toolPath } from "../kernel/run.ts";
import type { Family } from "../net/cidr.ts";

/** The error of the protocol for a failure, see rule_error.ts, which is loaded when called. */
async function ruleError(error: unknown, doing?: string): Promise<unknown> {
  return (await import("./rule_error.ts")).ruleError(error, doing);
}

/** A tool that rules are set with. */
export type Backend = "iptables" | "nftables";

/** Backends in the order in which they are tried. */
export type Backends = readonly [Backend, ...Backend[]];

/** Where commands run. */
export interface Host {
  readonly host: Run;
}

/** What adding needs of a call; a bare {@linkcode Applier} will do. */
export interface Adder extends Applier {
  warn?(note: string): void;
}

/** What removing needs of a call; a bare {@linkcode Applier} will do. */
export interface Remover extends Pick<Applier, "host" | "pod" | "explain"> {
  readonly podAlive?: boolean;
  warn?(note: string): void;
}

/** Tables of iptables by family and name, and all of nft, as they are listed. */
export interface Listing {
  readonly tables: Readonly<Record<Family, ReadonlyMap<string, SavedTable>>>;
  readonly nft: NftListing;
}

/**
 * Rules of one subject in one backend. `Want` says what a container is to have; in iptables it is of one family.
 * Methods throw {@linkcode TableError} or {@linkcode NftError} when the tool refuses.
 */
export interface RuleSet<Want> {
  /** The transaction of an ADD that nothing is in the way of: what a plan shows. */
  text(want: Want): string;
  /** Sets the rules. Returns how to undo that where it is not `remove`. */
  add(call: Adder, want: Want): Promise<(() => Promise<unknown>) | undefined>;
  /**
   * Removes the rules, however many there are; absent rules, tables and tools are success. `likely`: they are probably
   * as `add` left them, so one transaction tries that first. Returns whether there were any.
   */
  remove(call: Remover, want: Want, options: { readonly likely: boolean }): Promise<boolean>;
  /** The error for the first rule that is missing; undefined when none is. Changes nothing. */
  missing(call: Host, want: Want): Promise<CniError | undefined>;
  /** Do listed rules include the container's own? */
  owned(listing: Listing, want: Want): boolean;
  /** Words in front of a refused ADD, as the reference has them. */
  readonly failing?: (refusal: string, want: Want) => string;
}

/** What a container is to have in one family. */
export type Part<Want> = Want & { readonly family: Family };

/** Rules of one subject in both backends. */
export interface Subject<Want> {
  /** What the rules are for, as plans say it. */
  readonly why: string;
  /** The same by family: iptables has a tool for each. */
  split(want: Want): readonly Part<Want>[];
  readonly iptables: RuleSet<Part<Want>>;
  readonly nftables: RuleSet<Want>;
}

/**
 * Backends for an ADD: the configured one; else iptables, then nftables where iptables turns out not to work; nftables
 * alone where only nft is installed. Whether a tool works with this kernel is found out by the first transaction.
 */
export function chosenBackends(configured: Backend | undefined): Backends {
  if (configured !== undefined) return [configured];
  return toolPath("iptables-restore") === "" && toolPath("nft") !== "" ? ["nftables"] : ["iptables", "nftables"];
}

/** Both backends, the configured one first: either may hold rules, whatever is configured now. */
export function bothBackends(configured: string | undefined): Backends {
  return configured === "nftables" ? ["nftables", "iptables"] : ["iptables", "nftables"];
}

/** Steps that set the rules: one for each family with iptables, one with nftables. */
export function ruleSteps<Want>(subject: Subject<Want>, want: Want, backends: Backends): Step[] {
  const { why, iptables, nftables } = subject;
  if (backends[0] === "nftables") {
    return [step("host", "nft", nftables.text(want), { why, job: (call) => addedByNft(call, nftables, want) })];
  }
  return subject.split(want).map((part) =>
    step("host", iptablesTool(part.family), iptables.text(part), {
      why,
      job: async (call) => {
        try {
          await added(call, iptables, part);
        } catch (error) {
          const mayFallBack = backends.length > 1 && !(await isFinal(call, error, part.family));
          if (!mayFallBack) throw await ruleError(error, iptables.failing?.(refusalOf(error), part));
          await addedByNft(call, nftables, part);
        }
      },
    })
  );
}

/** Is it no use to try nftables: iptables works, or its lock is held, or nft does not work either? */
async function isFinal({ host }: Host, error: unknown, family: Family): Promise<boolean> {
  if (!(error instanceof TableError) || error.refusal === "locked") return true;
  return await iptablesUsable(host, family) || !(await nftUsable(host));
}

async function added<Want>(call: Adder, rules: RuleSet<Want>, want: Want): Promise<void> {
  let undo: () => Promise<unknown> = () => rules.remove(call, want, { likely: true });
  // Before: a tool that is killed, or whose answer is lost, may have done its work.
  call.undo(() => undo());
  try {
    undo = await rules.add(call, want) ?? undo;
  } catch (error) {
    // A refused transaction of iptables has changed nothing; nft may have taken an earlier one.
    const isNothingDone = error instanceof TableError || refusalOf(error) === "missing" || error instanceof CniError;
    if (isNothingDone) undo = () => Promise.resolve();
    throw error;
  }
}

async function addedByNft<Want>(call: Adder, rules: RuleSet<Want>, want: Want): Promise<void> {
  const remove: RuleSet<Want>["remove"] = async (call, want, options) =>
    await byNft(call, () => rules.remove(call, want, options)) ?? false;
  try {
    await added(call, { ...rules, remove }, want);
  } catch (error) {
    throw await ruleError(error, rules.failing?.(refusalOf(error), want));
  }
}

function refusalOf(error: unknown): string {
  return error instanceof TableError || error instanceof NftError ? error.refusal : "";
}

/** What removing is told. */
export interface RemovalOptions {
  /** Where to look, in this order. The second is asked only when the first had no rules in some family. */
  readonly backends: Backends;
  /** Words in front of a failure. */
  readonly doing?: string;
}

/** Removes the rules from the backends; the failure of one does not keep the other from being asked. */
export async function removeRules<Want>(
  call: Remover,
  subject: Subject<Want>,
  want: Want,
  { backends, doing = "" }: RemovalOptions,
): Promise<void> {
  const errors: unknown[] = [];
  for (const [index, backend] of backends.entries()) {
    try {
      if (await removedFrom(call, subject, want, { backend, likely: index === 0 })) break;
    } catch (error) {
      errors.push(await ruleError(error, doing));
      // The runtime is told to try again.
      if (refusalOf(error) === "locked") break;
    }
  }
  await all(errors.map((error) => () => Promise.reject(error)));
}

/** True when the backend held rules in every family. */
async function removedFrom<Want>(
  call: Remover,
  { split, iptables, nftables }: Subject<Want>,
  want: Want,
  { backend, likely }: { readonly backend: Backend; readonly likely: boolean },
): Promise<boolean> {
  if (backend === "nftables") return await byNft(call, () => nftables.remove(call, want, { likely })) ?? false;
  const parts = split(want);
  let found = 0;
  const jobs = parts.map((part) => async () => {
    try {
      if (await iptables.remove(call, part, { likely })) found++;
    } catch (error) {
      // What is not installed has set nothing.
      if (refusalOf(error) !== "missing") throw error;
    }
  });
  for (const group of groupsFor(call, jobs)) await together(group);
  return parts.length > 0 && found === parts.length;
}

/** Work with nft. One that is not installed, or does not work with this kernel, has set nothing: undefined then. */
export async function byNft<T>({ host }: Host, work: () => Promise<T>): Promise<T | undefined> {
  if (toolPath("nft") === "") return undefined;
  try {
    return await work();
  } catch (error) {
    if (await nftUsable(host)) throw error;
    return undefined;
  }
}

/** All jobs to their ends; then the first failure is thrown. Nothing may be under way when a failed ADD is undone. */
export async function together(jobs: readonly (() => Promise<unknown>)[]): Promise<void> {
  const ends = await Promise.allSettled(jobs.map((job) => job()));
  for (const end of ends) if (end.status === "rejected") throw end.reason;
}

/** What a look at the rules leads to: lines of one transaction, none for nothing to do, and what it comes to. */
export interface Change<T> {
  readonly lines: readonly string[];
  readonly result: T;
}

/** How often a change that another process got in the way of is tried with the state read anew. */
const TRIES = 5;

/** Can what refused a transaction be that the rules were others than its writer took them for? */
export function mayBeOthers(error: unknown): boolean {
  return !["", "locked", "missing"].includes(refusalOf(error));
}

/**
 * Reads, decides, and writes; decides anew when the transaction is refused, since another process may have changed the
 * rules in between. `decide` is told how many transactions were refused before, and the last refusal.
 */
async function settled<T>(
  decide: (attempt: number, refusal: unknown) => Promise<Change<T>>,
  write: (lines: readonly string[]) => Promise<unknown>,
): Promise<T> {
  let refusal: unknown;
  for (let attempt = 0;; attempt++) {
    const { lines, result } = await decide(attempt, refusal);
    if (lines.length === 0) return result;
    try {
      await write(lines);
      return result;
    } catch (error) {
      if (attempt + 1 >= TRIES || !mayBeOthers(error)) throw error;
      refusal = error;
    }
  }
}

/** {@linkcode settled} in a table of iptables. */
export async function settledTable<T>(
  { host }: Host,
  { family, table }: { readonly family: Family; readonly table: TableName },
  decide: (attempt: number, refusal: unknown) => Promise<Change<T>>,
): Promise<T> {
  return await settled(decide, (lines) => restore(host, family, transaction(table, lines)));
}

/** {@linkcode settled} in nft. */
export async function settledNft<T>({ host }: Host, decide: (attempt: number) => Promise<Change<T>>): Promise<T> {
  return await settled(decide, (lines) => nft(host, lines.map((line) => `${line}\n`).join("")));
}

/** An addition to a table of nft whose chains all containers share. */
export interface SharedAddition {
  /** The container's rules, as lines with their ends. */
  readonly rules: string;
  /** One of the shared chains, and whether it is as it should be. */
  readonly chain: string;
  isWhole(shown: string): boolean;
  /** Makes the table and its shared chains; older kernels and tools know no comments on them. */
  setup(comments: boolean): string;
}

/**
 * The rules alone first, printing a shared chain with them: the table is there on every node but a new one. Writing the
 * shared chains makes the next transaction wait for the kernel, so it is only done where they are not as they should.
 */
export async function addToShared({ host }: Host, { rules, chain, isWhole, setup }: SharedAddition): Promise<void> {
  let rest = "";
  try {
    if (isWhole(await nft(host, `${rules}list chain ${chain}\n`))) return;
  } catch (error) {
    if (!(error instanceof NftError) || error.refusal === "missing") throw error;
    rest = rules;
  }
  try {
    await nft(host, setup(true) + rest);
  } catch (error) {
    await nft(host, setup(false) + rest).catch(() => {
      throw error;
    });
  }
}
