/**
 * iptables as it would be: transactions are judged and carried out on a copy of what the kernel holds. So code that
 * tries one transaction and falls back to another takes the very branch that it would take, and nothing is changed.
 */
import { parseSave, ruleComment, ruleTarget, ruleWords } from "./iptables.ts";
import type { Command, Output, Run } from "./run.ts";

/** A table's chains; undefined rules are those of built-in chains that nobody has listed. */
type Chains = Map<string, string[]>;

const BUILT_IN: Readonly<Record<string, readonly string[]>> = {
  raw: ["PREROUTING", "OUTPUT"],
  mangle: ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
  nat: ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
  filter: ["INPUT", "FORWARD", "OUTPUT"],
  security: ["INPUT", "FORWARD", "OUTPUT"],
};

/** What a transaction would do. */
export type Verdict =
  | { readonly done: true; readonly text: string }
  | { readonly done: false; readonly answer: Output };

/** The tables of both families, asked for when first needed. */
export class VirtualTables {
  private readonly families = new Map<string, Map<string, Chains>>();

  /** `ask` runs questions. */
  constructor(private readonly ask: Run) {}

  /** Answers `…-save` for tables that were changed here; undefined lets the kernel answer. */
  saved({ argv }: Command): Output | undefined {
    const tables = this.families.get(toolOf(argv));
    if (!tables) return undefined;
    const at = argv.indexOf("-t");
    const wanted = at < 0 ? undefined : argv[at + 1];
    let stdout = "";
    for (const [name, chains] of tables) {
      if (wanted !== undefined && name !== wanted) continue;
      stdout += `*${name}\n`;
      for (const chain of chains.keys()) {
        stdout += `:${chain} ${BUILT_IN[name]?.includes(chain) ? "ACCEPT" : "-"} [0:0]\n`;
      }
      for (const [chain, rules] of chains) for (const rule of rules) stdout += `-A ${chain} ${rule}\n`;
      stdout += "COMMIT\n";
    }
    return { code: 0, signal: null, stdout, stderr: "" };
  }

  /** Answers `-S CHAIN` likewise. */
  listed({ argv }: Command): Output | undefined {
    const tables = this.families.get(toolOf(argv));
    const chain = argv[argv.indexOf("-S") + 1] ?? "";
    const rules = tables?.get(argv[argv.indexOf("-t") + 1] ?? "filter")?.get(chain);
    if (!tables || !argv.includes("-S")) return undefined;
    if (!rules) {
      return { code: 1, signal: null, stdout: "", stderr: `${argv[0]}: No chain/target/match by that name.\n` };
    }
    const stdout = [`-N ${chain}`, ...rules.map((rule) => `-A ${chain} ${rule}`), ""].join("\n");
    return { code: 0, signal: null, stdout, stderr: "" };
  }

  /** Judges a transaction and, if it would work, carries it out here; `text` is it without its checks. */
  async restore(command: Command): Promise<Verdict> {
    const tool = toolOf(command.argv);
    const tables = await this.tablesOf(tool);
    const draft = new Map([...tables].map(([name, chains]) => [name, copied(chains)]));
    const input = (command.input ?? []).filter((part) => typeof part === "string").join("");
    const kept: string[] = [];
    let table = "";
    let chains: Chains = new Map();
    for (const [index, line] of input.split("\n").entries()) {
      if (line.startsWith("*")) {
        table = line.slice(1).trim();
        chains = draft.get(table) ?? new Map((BUILT_IN[table] ?? []).map((chain) => [chain, []]));
        draft.set(table, chains);
        kept.push(line);
      } else if (line === "COMMIT" || line === "" || line.startsWith("#")) {
        if (line === "COMMIT" && kept.at(-1) === `*${table}`) kept.pop();
        else if (line !== "") kept.push(line);
      } else {
        const complaint = await this.line(line, chains, { tool, table });
        if (complaint !== undefined) {
          const stderr = `${tool}-restore: line ${index + 1} failed: ${complaint}.\n`;
          return { done: false, answer: { code: 1, signal: null, stdout: "", stderr } };
        }
        if (!line.startsWith("-C ")) kept.push(line);
      }
    }
    this.families.set(tool, draft);
    return { done: true, text: kept.length === 0 ? "" : `${kept.join("\n")}\n` };
  }

  /** Does one line; returns what iptables would complain about. */
  private async line(
    line: string,
    chains: Chains,
    where: { tool: string; table: string },
  ): Promise<string | undefined> {
    const declared = /^:(\S+) /.exec(line)?.[1];
    if (declared !== undefined) {
      chains.set(declared, []);
      return undefined;
    }
    const [, verb = "", chain = "", rest = ""] = /^-([A-Z]) (\S+) ?(.*)$/s.exec(line) ?? [];
    const rules = chains.get(chain);
    if (verb === "N") {
      if (rules) return "Chain already exists";
      chains.set(chain, []);
      return undefined;
    }
    if (!rules) return "No chain/target/match by that name";
    if ((verb === "A" || verb === "I") && !isTarget(ruleTarget(rest), chains)) return "No such target";
    if (verb === "X") {
      if (rules.length > 0) return "Directory not empty";
      if ([...chains.values()].flat().some((rule) => ruleTarget(rule) === chain)) return "Too many links";
    }
    if (verb === "A") rules.push(rest);
    else if (verb === "I") {
      const [, place = "1", rule = rest] = /^(\d+) (.*)$/s.exec(rest) ?? [];
      rules.splice(Number(place) - 1, 0, rule);
    } else if (verb === "F") rules.length = 0;
    else if (verb === "X") chains.delete(chain);
    else if (verb === "C" || verb === "D") {
      const at = rules.indexOf(rest);
      if (at < 0 && !await this.inKernel(chain, rest, where)) {
        return "Bad rule (does a matching rule exist in that chain?)";
      }
      if (verb === "D") rules.splice(at >= 0 ? at : likeliest(rules, rest), 1);
    }
    return undefined;
  }

  /** The kernel is asked where the listing's words differ from ours. */
  private async inKernel(
    chain: string,
    rule: string,
    { tool, table }: { tool: string; table: string },
  ): Promise<boolean> {
    const argv = [tool, "-w", "20", "-t", table, "-C", chain, ...ruleWords(rule)];
    return (await this.ask({ argv })).code === 0;
  }

  private async tablesOf(tool: string): Promise<Map<string, Chains>> {
    const known = this.families.get(tool);
    if (known) return known;
    const { code, stdout } = await this.ask({ argv: [`${tool}-save`] });
    const tables = new Map<string, Chains>();
    if (code === 0) {
      for (const [name, { chains }] of parseSave(stdout)) {
        tables.set(name, new Map([...chains].map(([chain, rules]) => [chain, rules.map(({ text }) => text)])));
      }
    }
    this.families.set(tool, tables);
    return tables;
  }
}

/** Extensions have names of capital letters; any other target is a chain. */
function isTarget(target: string | undefined, chains: Chains): boolean {
  return target === undefined || /^[A-Z\d]+$/.test(target) || chains.has(target);
}

/** Which of a chain's rules a text means that the listing spells differently: that with its target and its comment. */
function likeliest(rules: readonly string[], text: string): number {
  const [target, comment] = [ruleTarget(text), ruleComment(text)];
  const at = rules.findIndex((rule) => ruleTarget(rule) === target && ruleComment(rule) === comment);
  return at < 0 ? rules.length : at;
}

function copied(chains: Chains): Chains {
  return new Map([...chains].map(([chain, rules]) => [chain, [...rules]]));
}

/** `iptables` or `ip6tables`. */
function toolOf(argv: readonly string[]): string {
  const name = argv[0]?.slice(argv[0].lastIndexOf("/") + 1) ?? "";
  return name.replace(/-(save|restore)$/, "");
}
