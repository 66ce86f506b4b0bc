/**
 * Rules of many callers as one transaction. Each caller does its work as always, asks and changes, but its rules go
 * into a shadow of this node's tables; what the kernel has taken there is written here at once, when all are done.
 * iptables and ip6tables take one such text each, which they commit table by table; nft takes all of its own in one.
 */
import type { Family } from "../net/cidr.ts";
import { restore, transaction } from "./iptables.ts";
import { nft, nftList, type NftListing } from "./nft.ts";
import { type Explainer, type Perform, type Plan, settingOf, type Step } from "./plan.ts";
import type { Command, Output, Run } from "./run.ts";
import { makeShadow, type Shadow } from "./shadow.ts";
import { isQuestion } from "./shell.ts";
import { writeSysctl } from "./sysctl.ts";

type RuleTool = "iptables" | "ip6tables" | "nft";

/** The collected changes cannot be written as one: they have to be made one after the other. */
export class NotOneTransaction extends Error {
  override readonly name = "NotOneTransaction";
}

/** A place to go back to. */
export interface Mark {
  readonly rules: number;
  readonly later: number;
}

/**
 * Collects changes of rules. Everything else a caller does is done here, but what relies on the rules waits for them.
 */
export class RuleBatch implements Explainer {
  readonly shadow = true;
  private readonly rules: { readonly tool: RuleTool; readonly text: string }[] = [];
  private readonly later: (() => unknown)[] = [];

  private constructor(
    private readonly real: Run,
    private readonly copy: Shadow,
    private readonly handles: ReadonlyMap<string, number>,
  ) {}

  /** Copies the tables. Throws {@linkcode NotOneTransaction} where that cannot be done. */
  static async open(real: Run): Promise<RuleBatch> {
    let copy: Shadow | undefined;
    try {
      copy = await makeShadow(real, "", { rulesOnly: true });
      if (copy.missing.length > 0) throw new Error(`nft cannot copy table ${copy.missing.join(" and ")}`);
      return new RuleBatch(real, copy, await handlesOf(real, copy));
    } catch (error) {
      await copy?.close();
      throw new NotOneTransaction(`the tables cannot be copied: ${(error as Error).message}`);
    }
  }

  async close(): Promise<void> {
    await this.copy.close();
  }

  mark(): Mark {
    return { rules: this.rules.length, later: this.later.length };
  }

  /** Forgets what came after a mark: its caller has failed and has taken it back in the copy. */
  forget({ rules, later }: Mark): void {
    this.rules.length = rules;
    this.later.length = later;
  }

  plan(plan: Plan): void {
    // The other steps have been carried out as commands.
    for (const one of plan.flat()) if (one.tool === "sysctl" && one.place === "host") this.setting(one);
  }

  private setting({ text }: Step): void {
    const [key, value] = settingOf(text);
    this.later.push(() => writeSysctl(key, value));
  }

  readonly perform: Perform = (effect, make) => {
    if (!effect || !("setting" in effect)) return make();
    this.later.push(make);
    return undefined;
  };

  async instead(command: Command, ask: Run): Promise<Output> {
    const [name = ""] = command.argv;
    const tool = /^(nft|ip6?tables)(-restore|-save)?$/.exec(name)?.[1] as RuleTool | undefined;
    if (tool === undefined) {
      // A flow that was forgotten before the rules stand would be remembered without them.
      if (name !== "conntrack" || isQuestion(command)) return await ask(command);
      this.later.push(() => ask(command));
      return { code: 0, signal: null, stdout: "", stderr: "" };
    }
    const output = await this.copy.host(command);
    if (output.code === 0 && !isQuestion(command)) this.rules.push({ tool, text: (command.input ?? []).join("") });
    return output;
  }

  /**
   * Writes what was collected, then does what has waited for it. Throws what the tools throw: another process may have
   * changed the tables meanwhile.
   */
  async commit(): Promise<void> {
    const textsOf = (tool: RuleTool) => this.rules.filter((one) => one.tool === tool).map(({ text }) => text);
    // Before anything is written: this may throw.
    const script = mergedScript(textsOf("nft"), this.handles);
    for (const family of [4, 6] satisfies Family[]) {
      const text = mergedTables(textsOf(family === 4 ? "iptables" : "ip6tables"));
      if (text !== "") await restore(this.real, family, text);
    }
    if (script !== "") await nft(this.real, script);
    for (const job of this.later) await job();
  }
}

/** What keeps containers away comes before what leads to them. */
const TABLES = ["raw", "filter", "nat"] as const;

/** Transactions as one for each table, without the lines that only ask. */
export function mergedTables(texts: readonly string[]): string {
  const tables = new Map<string, string[]>(TABLES.map((name) => [name, []]));
  let lines: string[] = [];
  for (const line of texts.flatMap((text) => text.split("\n"))) {
    if (line.startsWith("*")) lines = tables.get(line.slice(1).trim()) ?? [];
    else if (line !== "" && line !== "COMMIT" && !line.startsWith("-C ")) lines.push(line);
  }
  return TABLES.map((name) => {
    const lines = tables.get(name) ?? [];
    return lines.length === 0 ? "" : transaction(name, lines);
  }).join("");
}

/**
 * Scripts as one, without listings; rules that are named by their handles in the copy get those that they have here.
 */
export function mergedScript(texts: readonly string[], handles: ReadonlyMap<string, number>): string {
  const lines = texts.flatMap((text) => text.split("\n")).filter((line) => line !== "" && !line.startsWith("list "));
  return lines.map((line) => {
    const here = withOwnHandle(line, handles);
    if (here === undefined) throw new NotOneTransaction(`a rule is to be made and moved: ${line}`);
    return `${here}\n`;
  }).join("");
}

/** A line for the copy with the handle that its rule has here; undefined where the rule was made in the copy. */
export function withOwnHandle(line: string, handles: ReadonlyMap<string, number>): string | undefined {
  const [, front, chain = "", handle = ""] = /^(delete rule (\S+ \S+ \S+) handle )(\d+)$/.exec(line) ?? [];
  if (front === undefined) return line;
  const here = handles.get(`${chain} ${handle}`);
  return here === undefined ? undefined : front + here;
}

/**
 * Handles of rules here by where they are in the copy: rules of a chain are in the same order in both. Rules are named
 * by their handles in nft's own tables only.
 */
export async function handlesOf(real: Run, copy: Shadow): Promise<Map<string, number>> {
  if (copy.copied.length === 0) return new Map();
  const [here, there] = await Promise.all([listed(real), listed(copy.host)]);
  return pairedHandles(here, there);
}

/** Chains that are not the same in both are left out. */
export function pairedHandles(here: NftListing, there: NftListing): Map<string, number> {
  const originals = byChain(here);
  const pairs = new Map<string, number>();
  for (const [chain, copies] of byChain(there)) {
    const own = originals.get(chain) ?? [];
    if (own.length !== copies.length) continue;
    copies.forEach((handle, index) => pairs.set(`${chain} ${handle}`, own[index] as number));
  }
  return pairs;
}

function byChain({ rules }: NftListing): Map<string, number[]> {
  const chains = new Map<string, number[]>();
  for (const { family, table, chain, handle } of rules) {
    const key = `${family} ${table} ${chain}`;
    chains.set(key, [...chains.get(key) ?? [], handle]);
  }
  return chains;
}

/** All rules of nft; none where it does not work here. */
async function listed(run: Run): Promise<NftListing> {
  const none: NftListing = { chains: [], rules: [], sets: [] };
  try {
    return await nftList(run, "ruleset") ?? none;
  } catch {
    return none;
  }
}
