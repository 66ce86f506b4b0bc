/** `cnibox explain`: what ADD or DEL of a network would do, as shell that does the same. Nothing is changed. */
import { addNetwork, delNetwork, type NetworkResult } from "../cni/chain.ts";
import { type Explainer, type Perform, type Plan, step } from "../kernel/plan.ts";
import { type Command, type Output, type Run, systemRun } from "../kernel/run.ts";
import { makeShadow, type Shadow } from "../kernel/shadow.ts";
import { handlesOf, withOwnHandle } from "../kernel/rule_batch.ts";
import { VirtualTables } from "../kernel/virtual_tables.ts";
import { type Block, blockOfCommand, blocksOf, isQuestion, quotedWord, sameWhere } from "../kernel/shell.ts";
import { goJson } from "../cni/version.ts";
import { CliError, type CommandCall, status } from "./command.ts";
import { type Target, targetsOfAdd, targetsOfDel } from "./network.ts";
import { watchedRuntime } from "./runtime.ts";
import { foldersOf, needNetns, netnsPath } from "./setup.ts";
import { jsonDocument, painter, say } from "./terminal.ts";

/** What was recorded of one plugin. */
interface Part {
  readonly network: string;
  readonly plugin: string;
  readonly entries: Entry[];
}

type Entry =
  | { readonly kind: "block"; readonly block: Block }
  | { readonly kind: "note"; readonly text: string; readonly why: string }
  | {
    readonly kind: "file";
    readonly path: string;
    readonly text: string | undefined;
    readonly why: string;
    /** It must not be there before. */
    readonly exclusive?: boolean;
    /** What it has to hold to be removed. */
    readonly held?: string;
  };

/** Collects what plugins would do. */
class Recorder implements Explainer {
  readonly parts: Part[] = [];
  netns = "";
  /** Where an ADD is tried out. DEL works on what is there, so there nothing but questions is run. */
  private copy: Shadow | undefined;
  private handles: ReadonlyMap<string, number> = new Map();
  private tables: VirtualTables | undefined;
  private nft = "";
  constructor(private readonly questions: boolean) {}

  get shadow(): boolean {
    return this.copy !== undefined;
  }
  async tryIn(copy: Shadow): Promise<void> {
    this.copy = copy;
    this.handles = await handlesOf(systemRun(), copy);
  }
  begin(network: string, plugin: string): void {
    this.parts.push({ network, plugin, entries: [] });
  }
  private add(entry: Entry): void {
    this.parts.at(-1)?.entries.push(entry);
  }
  private block({ where, lines }: Block): void {
    // The host's namespace as seen from the container's: ours, which is that of the shell that the script will run in.
    const home = `/proc/${Deno.pid}/ns/net`;
    const shown = lines.map((line) =>
      (withOwnHandle(line, this.handles) ?? line).replaceAll(home, "/proc/$PPID/ns/net")
    );
    this.add({ kind: "block", block: { where, lines: shown } });
  }
  plan(plan: Plan): void {
    for (const block of blocksOf(plan, this.netns, { questions: this.questions })) this.block(block);
  }
  readonly perform: Perform = (effect) => {
    if (!effect) return undefined;
    const { why } = effect;
    if ("setting" in effect) this.plan([[step("host", "sysctl", effect.setting, { why })]]);
    else if ("note" in effect) this.add({ kind: "note", text: effect.note, why });
    else {
      const { file: path, text, exclusive, held } = effect;
      this.add({ kind: "file", path, text, why, ...(exclusive && { exclusive }), ...(held !== undefined && { held }) });
    }
    return undefined;
  };

  async instead(command: Command, ask: Run): Promise<Output> {
    if (this.copy) {
      const output = await this.copy.host(command);
      if (output.code === 0 && !command.planned && !isQuestion(command)) this.command(withoutChecks(command));
      return output;
    }
    return await this.judged(command, ask);
  }

  /** Without a shadow: questions are asked, changes of rules are tried on a copy, others are taken for done. */
  private async judged(command: Command, ask: Run): Promise<Output> {
    this.tables ??= new VirtualTables(ask);
    const [tool = ""] = command.argv;
    if (/^ip6?tables-save$/.test(tool)) return this.tables.saved(command) ?? await ask(command);
    if (/^ip6?tables$/.test(tool)) return this.tables.listed(command) ?? await ask(command);
    if (tool === "nft" && command.argv.includes("-j")) return withoutDeleted(await ask(command), this.nft);
    if (isQuestion(command)) return await ask(command);
    if (/^ip6?tables-restore$/.test(tool)) {
      const verdict = await this.tables.restore(command);
      if (!verdict.done) return verdict.answer;
    } else if (tool === "nft") {
      const text = this.nft + textOf(command);
      const checked = await ask({ argv: ["nft", "--check", "-f", "-"], input: [text] });
      if (checked.code !== 0) return checked;
      this.nft = textOf(withoutChecks({ argv: command.argv, input: [text] }));
    }
    this.command(withoutChecks(command));
    return { code: 0, signal: null, stdout: "", stderr: "" };
  }

  private command(command: Command): void {
    if (command.input && textOf(command) === "") return;
    const { where, lines } = blockOfCommand(command);
    this.block({ where, lines: command.why ? [`# ${command.why}`, ...lines] : lines });
  }
}

/** A listing of nft without the rules that a script deletes. */
function withoutDeleted(output: Output, script: string): Output {
  const gone = new Set(
    [...script.matchAll(/^delete rule (\S+ \S+ \S+) handle (\d+)$/gm)].map(([, where, handle]) => `${where} ${handle}`),
  );
  if (output.code !== 0 || gone.size === 0) return output;
  const listing = JSON.parse(output.stdout) as {
    nftables: { rule?: { family: string; table: string; chain: string; handle: number } }[];
  };
  const nftables = listing.nftables.filter(({ rule }) =>
    !rule || !gone.has(`${rule.family} ${rule.table} ${rule.chain} ${rule.handle}`)
  );
  return { ...output, stdout: JSON.stringify({ nftables }) };
}

const textOf = ({ input = [] }: Command): string => input.join("");

/** A transaction without the lines that only make it fail when something is not as expected. */
function withoutChecks(command: Command): Command {
  const [tool = ""] = command.argv;
  const check = /^ip6?tables-restore$/.test(tool) ? /^-C / : tool === "nft" ? /^list / : undefined;
  if (!check) return command;
  const kept = textOf(command).split("\n").filter((line) => !check.test(line)).join("\n");
  // What is left of a table without lines.
  return { ...command, input: [kept.replace(/^\*\w+\nCOMMIT\n/gm, "")] };
}

/** `cnibox explain add|del NETWORK NETNS` */
export async function explain(call: CommandCall): Promise<number> {
  return await (call.arg("VERB") === "del" ? explainDel(call) : explainAdd(call));
}

/** `cnibox add --dry-run` */
export async function explainAdd(call: CommandCall): Promise<number> {
  const folders = foldersOf(call);
  const word = call.arg("NETNS") ?? "";
  const netns = netnsPath(word);
  const targets = targetsOfAdd(call, folders, netns);
  needNetns(word, netns);
  return await recorded(
    call,
    "ADD",
    targets,
    async (target, runtime) => await addNetwork(target.list, target.attached, runtime),
  );
}

/** `cnibox del --dry-run` */
export async function explainDel(call: CommandCall): Promise<number> {
  const targets = targetsOfDel(call, foldersOf(call)).reverse();
  return await recorded(call, "DEL", targets, async ({ list, attached }, runtime) => {
    await delNetwork(list, attached, runtime);
    return undefined;
  });
}

type Work = (
  target: Target,
  runtime: ReturnType<typeof watchedRuntime>["runtime"],
) => Promise<NetworkResult | undefined>;

async function recorded(call: CommandCall, verb: string, targets: readonly Target[], work: Work): Promise<number> {
  const recorder = new Recorder(call.is("questions"));
  using watched = watchedRuntime(call, foldersOf(call), { explain: recorder });
  const results: unknown[] = [];
  for (const target of targets) {
    recorder.netns = target.attached.netns;
    const before = (_: string, type: string) => recorder.begin(target.list.name, type);
    if (verb === "ADD" && !recorder.shadow) await recorder.tryIn(await shadowOf(target.attached.netns));
    const answer = await work(target, { ...watched.runtime, before });
    if (answer) results.push(answer.printable);
  }
  say(
    call.is("json")
      ? jsonOf(verb, recorder.parts, results)
      : scriptOf(verb, { targets, parts: recorder.parts, results }),
  );
  return status.done;
}

async function shadowOf(netns: string): Promise<Shadow> {
  try {
    return await makeShadow(systemRun(), netns);
  } catch (error) {
    if (Deno.uid() === 0) throw error;
    throw new CliError((error as Error).message, status.noRights, [
      "as root it works everywhere; as a user where user namespaces are allowed",
    ]);
  }
}

function jsonOf(verb: string, parts: readonly Part[], results: readonly unknown[]): string {
  return jsonDocument({
    verb,
    plugins: parts.map(({ plugin, network, entries }) => ({
      network,
      plugin,
      steps: entries.map((entry) => {
        if (entry.kind !== "block") return entry;
        const { where, lines } = entry.block;
        return { kind: "commands", namespace: where === "host" ? "host" : where.netns, lines };
      }),
    })),
    ...(results.length > 0 && { results }),
  });
}

interface Script {
  readonly targets: readonly Target[];
  readonly parts: readonly Part[];
  readonly results: readonly unknown[];
}

/** The shell script. */
function scriptOf(verb: string, { targets, parts, results }: Script): string {
  const paint = painter();
  const comment = (text: string) => paint("dim", `# ${text}`);
  const out: string[] = [];
  for (const { attached: { network, containerId, ifName, netns } } of targets) {
    out.push(
      comment(
        `${verb} of network "${network}" for container ${containerId}, interface ${ifName} in ${
          netns || "no namespace"
        }`,
      ),
    );
  }
  out.push(comment("Nothing was done. Run as root, these commands do the same."));
  if (Deno.uid() !== 0) {
    out.push(comment("Tried out without root: as if this node had no rules yet."));
  }
  out.push("set -e");
  const count = parts.filter(({ plugin }) => plugin !== "").length;
  let number = 0;
  parts.forEach(({ plugin, entries }) => {
    out.push("", paint("bold", plugin === "" ? "### the runtime" : `### ${plugin} (plugin ${++number} of ${count})`));
    const own = merged(entries);
    if (own.length === 0) out.push(comment("nothing to do"));
    for (const entry of own) out.push("", ...entryLines(entry, paint));
  });
  results.forEach((result) => {
    out.push("", comment("what a runtime is told:"));
    for (const line of goJson(result, 2).split("\n")) out.push(comment(line));
  });
  return `${out.join("\n")}\n`;
}

/** Blocks that follow each other in the same namespace as one. */
function merged(entries: readonly Entry[]): Entry[] {
  const result: Entry[] = [];
  for (const entry of entries) {
    const last = result.at(-1);
    if (entry.kind === "block" && last?.kind === "block" && sameWhere(entry.block.where, last.block.where)) {
      const lines = [...last.block.lines, ...entry.block.lines];
      result[result.length - 1] = { kind: "block", block: { where: entry.block.where, lines } };
    } else result.push(entry);
  }
  return result;
}

function entryLines(entry: Entry, paint: ReturnType<typeof painter>): string[] {
  if (entry.kind === "note") return [paint("dim", `# ${entry.why}`), paint("dim", `# ${entry.text}`)];
  if (entry.kind === "file") return [paint("dim", `# ${entry.why}`), ...fileLines(entry.path, entry.text, entry)];
  const { where, lines } = entry.block;
  const shown = lines.map((line) => line.startsWith("#") ? paint("dim", line) : line);
  if (where === "host") return [paint("cyan", "# on the host"), ...shown];
  let end = "CONTAINER";
  while (lines.includes(end)) end += "_";
  return [
    paint("cyan", "# in the container's namespace"),
    `nsenter --net=${quotedWord(where.netns)} -- sh -e <<'${end}'`,
    ...shown,
    end,
  ];
}

/** Writes or removes a file as plugins do: readable for its owner alone, in folders that are made when missing. */
function fileLines(
  path: string,
  text: string | undefined,
  { exclusive, held }: { readonly exclusive?: boolean; readonly held?: string },
): string[] {
  const file = quotedWord(path);
  if (text === undefined) {
    return [held === undefined ? `rm -f ${file}` : `! printf ${printfWord(held)} | cmp -s - ${file} || rm -f ${file}`];
  }
  return [
    `mkdir -p ${quotedWord(path.slice(0, path.lastIndexOf("/")))}`,
    `(umask 077; ${exclusive ? "set -C; " : ""}printf ${printfWord(text)} >${file})`,
  ];
}

/** What `printf` writes as this text. */
function printfWord(text: string): string {
  const format = text.replaceAll("\\", "\\\\").replaceAll("%", "%%").replaceAll("\r", "\\r").replaceAll("\n", "\\n");
  return `'${format.replaceAll("'", `'\\''`)}'`;
}
