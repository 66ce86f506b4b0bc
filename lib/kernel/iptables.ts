/**
 * iptables and ip6tables, spoken to in whole transactions: text for `…-restore --noflush` in, the listing of
 * `…-save` out. Both variants (legacy and nf_tables) take and print the same language.
 */
import type { Family } from "../net/cidr.ts";
import { nftList } from "./nft.ts";
import { kernelFileExists } from "./proc.ts";
import { CommandError, failureText, missingTool, type Output, type Run, says, toolPath, xtablesWait } from "./run.ts";
import { failedLine } from "./tool_words.ts";

/** The tool of a family, by its plain name. */
export function iptablesTool(family: Family): "iptables" | "ip6tables" {
  return family === 4 ? "iptables" : "ip6tables";
}

/** Longest line that iptables-restore reads, in bytes; longer ones are cut without a word. */
export const MAX_LINE = 10_000;

/** How long a transaction waits for the xtables lock, in seconds: below the limit of a child process. */
export const LOCK_WAIT_S = xtablesWait();

/**
 * Why a transaction did not happen. `missing`: the tool is not installed. `absent`: this kernel has no such table, and
 * no module that could be loaded for it, so no rule can be in it. `unusable`: the tool does not work with this kernel,
 * and what is in the table is unknown. `unreadable`: somebody has put rules of nft into the table, which iptables
 * cannot print, so it prints none. `refused`: the tool or the kernel did not take one of its lines.
 */
export type Refusal = "missing" | "absent" | "locked" | "unusable" | "unreadable" | "refused";

/** A tool that could not do its work, and nothing of it was done. */
export class TableError extends CommandError {
  constructor(readonly refusal: Refusal, command: CommandError["command"], output: Output, message: string) {
    super(command, output, message);
  }
}

/** One rule as `…-save` prints it. */
export interface SavedRule {
  readonly chain: string;
  /** What follows `-A CHAIN `: may be used in a transaction as it is. */
  readonly text: string;
}

/** One table as `…-save` prints it. */
export interface SavedTable {
  /** Chains, built-in and others, each with its rules in order. */
  readonly chains: ReadonlyMap<string, readonly SavedRule[]>;
  /** Policies of built-in chains, where they are known. */
  readonly policies?: ReadonlyMap<string, string>;
}

/** Tables that are written here. */
export type TableName = "raw" | "nat" | "filter";

/** Lines for one table as one transaction. */
export function transaction(table: TableName, lines: readonly string[]): string {
  return `*${table}\n${lines.join("\n")}\nCOMMIT\n`;
}

/** A word of a rule in the quoting that transactions and listings share. Line breaks cannot be expressed. */
export function quoteWord(word: string): string {
  if (/[\n\r\0]/.test(word)) throw new RangeError(`a rule cannot hold the line break in ${JSON.stringify(word)}`);
  return /^[\w.:/,=!+@%\[\]-]+$/.test(word) ? word : `"${word.replace(/["\\]/g, "\\$&")}"`;
}

/** The words of a rule's text, quotes and backslashes resolved. */
export function ruleWords(text: string): string[] {
  const words: string[] = [];
  let word: string | undefined;
  let quoted = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i]!;
    if (quoted) {
      if (c === "\\" && i + 1 < text.length) word += text[++i]!;
      else if (c === '"') quoted = false;
      else word += c;
    } else if (c === '"') {
      quoted = true;
      word ??= "";
    } else if (c === " " || c === "\t") {
      if (word !== undefined) words.push(word);
      word = undefined;
    } else word = (word ?? "") + c;
  }
  if (word !== undefined) words.push(word);
  return words;
}

/** Where a rule sends packets: the word after `-j` or `-g`. */
export function ruleTarget(text: string): string | undefined {
  const words = ruleWords(text);
  const at = words.findLastIndex((word) => word === "-j" || word === "-g" || word === "--jump" || word === "--goto");
  return at < 0 ? undefined : words[at + 1];
}

/** Rules of any chain that lead to one of `chains`, as `CHAIN RULE`. */
export function leadingTo(table: SavedTable, ...chains: readonly string[]): string[] {
  return [...table.chains.values()].flat().filter(({ text }) =>
    chains.some((chain) => text.includes(chain)) && chains.includes(ruleTarget(text) ?? "")
  ).map(({ chain, text }) => `${chain} ${text}`);
}

/** The comment of a rule; undefined when it has none. */
export function ruleComment(text: string): string | undefined {
  const words = ruleWords(text);
  const at = words.indexOf("--comment");
  return at < 0 ? undefined : words[at + 1];
}

/** Reads the output of `…-save`: every table in it by its name. */
export function parseSave(text: string): Map<string, SavedTable> {
  const tables = new Map<string, SavedTable>();
  let chains = new Map<string, SavedRule[]>();
  let policies = new Map<string, string>();
  for (const line of text.split("\n")) {
    if (line.startsWith("*")) {
      chains = new Map();
      policies = new Map();
      tables.set(line.slice(1).trim(), { chains, policies });
    } else if (line.startsWith(":")) {
      const [name = "", policy = ""] = line.slice(1).split(" ");
      chains.set(name, []);
      if (policy !== "-") policies.set(name, policy);
    } else {
      const rule = RULE_LINE.exec(line);
      if (rule) {
        const [, chain = "", text = ""] = rule;
        const rules = chains.get(chain);
        if (rules) rules.push({ chain, text });
        else chains.set(chain, [{ chain, text }]);
      }
    }
  }
  return tables;
}

/** One rule, and where it is made when it is missing. */
export interface WantedRule {
  readonly chain: string;
  readonly rule: string;
  /** At the top of its chain; else at the end. */
  readonly first?: boolean;
}

/** The line that makes a rule. */
export function makingLine({ chain, rule, first }: WantedRule): string {
  return first ? `-I ${chain} 1 ${rule}` : `-A ${chain} ${rule}`;
}

/**
 * Of the wanted rules those that are not there. A listing prints rules its own way, so the tool itself is asked (`-C`)
 * where a rule with the same target is there in other words.
 */
export async function missingRules(
  run: Run,
  wanted: readonly WantedRule[],
  { family, table, name }: { family: Family; table: SavedTable; name: TableName },
): Promise<WantedRule[]> {
  const there = await Promise.all(wanted.map(async ({ chain, rule }) => {
    const rules = table.chains.get(chain) ?? [];
    if (rules.some((one) => one.text === rule)) return true;
    const target = ruleTarget(rule);
    if (!rules.some((one) => ruleTarget(one.text) === target)) return false;
    const argv = [iptablesTool(family), "-w", `${LOCK_WAIT_S}`, "-t", name, "-C", chain, ...ruleWords(rule)];
    return (await run({ argv })).code === 0;
  }));
  return wanted.filter((_, index) => !there[index]);
}

/**
 * Which line of its input a refused transaction failed at: 1 is the table's name. Undefined when it did not say: what
 * is wrong with a chain is only found at the end.
 */
export function refusedLine({ output }: TableError): number | undefined {
  return failedLine(output);
}

/**
 * Rules of a chain as `-S` prints them; undefined when there is no such chain, or nothing that it could be in. Throws
 * {@linkcode TableError} when it cannot be told.
 */
export async function listedChain(
  run: Run,
  chain: string,
  { family, table }: { family: Family; table: TableName },
): Promise<SavedRule[] | undefined> {
  const argv = [iptablesTool(family), "-w", `${LOCK_WAIT_S}`, "-t", table, "-S", chain];
  try {
    const text = await checked(run, argv, { family });
    // A chain that is there is named before its rules, also when it has none.
    if (!/^-[NP] /m.test(text)) throw garbled(iptablesTool(family), text);
    return rulesOf(text);
  } catch (error) {
    if (!(error instanceof TableError)) throw error;
    if (holdsNothing(error)) return undefined;
    if (error.refusal === "refused" && says(error, "noChain")) return undefined;
    // iptables 1.8.9 on nf_tables says of a chain that is not there, too, that it cannot be read. The older variant has
    // nothing to say about a table that is not there but that its module could not be loaded, whyever.
    const doubtful = error.refusal === "unreadable" || error.refusal === "unusable";
    if (!doubtful) throw error;
    const saved = await savedTable(run, family, table, { about: (name) => name === chain });
    if (!saved?.chains.has(chain)) return undefined;
    throw error;
  }
}

function rulesOf(text: string): SavedRule[] {
  return text.split("\n").flatMap((line) => {
    const rule = RULE_LINE.exec(line);
    return rule ? [{ chain: rule[1] ?? "", text: rule[2] ?? "" }] : [];
  });
}

/** Counters are printed in front when asked for: `[0:0] -A …`. */
const RULE_LINE = /^(?:\[\d+:\d+\] )?-A (\S+) ?(.*)$/;

/** Does the whole of a transaction, or nothing. Throws {@linkcode TableError}. */
export async function restore(run: Run, family: Family, text: string): Promise<void> {
  const tool = `${iptablesTool(family)}-restore`;
  const said = await checked(run, [tool, "--noflush", "-w", `${LOCK_WAIT_S}`], { input: [text], family });
  // It has nothing to say on standard output: something else has answered in its place, and who knows what it did.
  if (said.split("\n").some((line) => line !== "" && !line.startsWith("#"))) throw garbled(tool, said);
}

function garbled(tool: string, text: string): Error {
  return new Error(`${tool} printed something unreadable: ${JSON.stringify(text.slice(0, 80))}`);
}

/** Every chain of ours and of the reference is called so. */
const isCniChain = (chain: string) => chain.startsWith("CNI-");

/**
 * One table as it is now; undefined when the family's tool is not installed or has no such table in this kernel, so
 * that nothing of it can be there. Of a table that iptables cannot print, nft is asked for the names of its chains:
 * when none is one that the caller wants to know `about`, they are returned without rules. Throws {@linkcode
 * TableError} when it cannot be told.
 */
export async function savedTable(
  run: Run,
  family: Family,
  table: TableName,
  { about = isCniChain }: { about?: (chain: string) => boolean } = {},
): Promise<SavedTable | undefined> {
  const argv = [`${iptablesTool(family)}-save`, "-t", table];
  try {
    const text = await checked(run, argv, { family });
    if (unreadableTables(text).includes(table)) return await chainsByNft(run, family, { table, about, argv });
    // A table that is not there prints nothing, or comments: rules must not be taken for gone because a tool talks
    // nonsense.
    const told = text.split("\n").some((line) => line !== "" && !line.startsWith("#"));
    if (told && !/^COMMIT$/m.test(text)) throw garbled(`${iptablesTool(family)}-save`, text);
    return parseSave(text).get(table) ?? { chains: new Map() };
  } catch (error) {
    if (error instanceof TableError && holdsNothing(error)) return undefined;
    throw error;
  }
}

/** Whether a failure proves that no rule can be in the table. */
function holdsNothing({ refusal }: TableError): boolean {
  return refusal === "missing" || refusal === "absent";
}

/** Tables in whose place `…-save` says, with status 0, that it cannot print them. */
export function unreadableTables(saved: string): string[] {
  return [...saved.matchAll(/^# Table `(.*)' is incompatible/gm)].map(([, name = ""]) => name);
}

async function chainsByNft(
  run: Run,
  family: Family,
  { table, about, argv }: {
    readonly table: TableName;
    readonly about: (chain: string) => boolean;
    readonly argv: readonly string[];
  },
): Promise<SavedTable> {
  const listing = await nftList(run, `table ${family === 4 ? "ip" : "ip6"} ${table}`);
  const names = listing?.chains.map(({ name }) => name);
  if (names && !names.some(about)) return { chains: new Map(names.map((name) => [name, []])) };
  const stderr = `Table \`${table}' is incompatible, use 'nft' tool.`;
  const output = { code: 0, signal: null, stdout: "", stderr };
  throw new TableError("unreadable", { argv }, output, commandFailure(argv, output));
}

/**
 * The reference's own test: `-t filter -S INPUT 1` ends with 0 or 1 (no rule), anything else means that the tool and
 * this kernel do not fit.
 */
export async function iptablesUsable(run: Run, family: Family = 4): Promise<boolean> {
  const tool = iptablesTool(family);
  if (toolPath(tool) === "" || toolPath(`${tool}-restore`) === "") return false;
  try {
    const { code } = await run({ argv: [tool, "-t", "filter", "-S", "INPUT", "1", "-w", `${LOCK_WAIT_S}`] });
    return code === 0 || code === 1;
  } catch {
    return false;
  }
}

async function checked(
  run: Run,
  argv: readonly string[],
  { input, family }: { input?: readonly string[]; family: Family },
): Promise<string> {
  const command = { argv, ...(input && { input }) };
  const [tool = ""] = argv;
  if (toolPath(tool) === "") {
    const output = { code: -1, signal: null, stdout: "", stderr: missingTool(tool) };
    throw new TableError("missing", command, output, missingTool(iptablesTool(family)));
  }
  const output = await run(command);
  if (output.code === 0) return output.stdout;
  const refusal = family === 6 && lacksIpv6(output) ? "absent" : refusalOf(output);
  throw new TableError(refusal, command, output, commandFailure(argv, output));
}

/** The words of the reference's iptables library for a command that failed. */
export function commandFailure(argv: readonly string[], output: Output): string {
  const [tool = "", ...args] = argv;
  const words = [toolPath(tool) || tool, ...args].join(" ");
  const how = output.signal ? `signal: ${output.signal}` : `exit status ${output.code}`;
  const said = output.stderr.split("\n").filter((line) => !line.startsWith("# Warning")).join("\n").trim();
  return `running [${words}]: ${how}: ${said === "" ? failureText(output) : said}`;
}

/**
 * Whether this kernel has IPv6 switched off. A filter of system calls uses the same words, so they alone prove nothing.
 */
function lacksIpv6(output: Output): boolean {
  return says(output, "noFamily") && kernelFileExists("/proc/sys/net/ipv6") === false;
}

function refusalOf(output: Output): Refusal {
  if (says(output, "tablesLocked")) return "locked";
  if (says(output, "tableUnreadable")) return "unreadable";
  if (says(output, "tableAbsent")) return "absent";
  // Exit status 3: version or kernel do not fit.
  return output.code === 3 || says(output, "tablesUnusable") ? "unusable" : "refused";
}
