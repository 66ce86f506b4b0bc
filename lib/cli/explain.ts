/** `cnibox explain`: what ADD or DEL of a network would do, as shell that does the same. Nothing is changed. */
import { addNetwork, delNetwork, type NetworkResult } from "../cni/chain.ts";
import type { Explainer, Plan } from "../kernel/plan.ts";
import type { Command, Output } from "../kernel/run.ts";
import { type Block, blockOfCommand, blocksOf, isQuestion, quotedWord, type Where } from "../kernel/shell.ts";
import { goJson } from "../cni/version.ts";
import { type CommandCall, status } from "./command.ts";
import { type Target, targetsOfAdd, targetsOfDel } from "./network.ts";
import { watchedRuntime } from "./runtime.ts";
import { foldersOf, needNetns, netnsPath } from "./setup.ts";
import { jsonText, painter, say } from "./terminal.ts";

/** What was recorded of one plugin. */
interface Part {
  readonly verb: string;
  readonly plugin: string;
  readonly entries: Entry[];
}

type Entry =
  | { readonly kind: "block"; readonly block: Block }
  | { readonly kind: "note"; readonly text: string; readonly why: string }
  | { readonly kind: "file"; readonly path: string; readonly text: string | undefined; readonly why: string };

/** Collects what plugins would do. */
class Recorder implements Explainer {
  readonly parts: Part[] = [];
  netns = "";
  /** True when the kernel cannot be asked. */
  private readonly blind = Deno.uid() !== 0;
  constructor(private readonly questions: boolean) {}

  begin(verb: string, plugin: string): void {
    this.parts.push({ verb, plugin, entries: [] });
  }
  private add(entry: Entry): void {
    if (this.parts.length === 0) this.begin("", "");
    this.parts.at(-1)?.entries.push(entry);
  }
  plan(plan: Plan): void {
    for (const block of blocksOf(plan, this.netns, { questions: this.questions })) this.add({ kind: "block", block });
  }
  note(_: string, text: string, why: string): void {
    this.add({ kind: "note", text, why });
  }
  file(path: string, text: string | undefined, why: string): void {
    this.add({ kind: "file", path, text, why });
  }
  instead(command: Command): Output | undefined {
    if (isQuestion(command)) return this.blind && needsRoot(command) ? NOTHING : undefined;
    this.add({ kind: "block", block: blockOfCommand(command) });
    return NOTHING;
  }
}

const NOTHING: Output = { code: 0, signal: null, stdout: "", stderr: "" };

function needsRoot({ argv }: Command): boolean {
  return argv[0] === "nsenter" || /^(iptables|ip6tables|nft|conntrack)/.test(argv[0] ?? "");
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
  const { runtime, close } = watchedRuntime(call, foldersOf(call), { explain: recorder });
  const results: unknown[] = [];
  try {
    for (const target of targets) {
      recorder.netns = target.attached.netns;
      const watched = { ...runtime, before: (_: string, type: string) => recorder.begin(target.list.name, type) };
      const answer = await work(target, watched);
      if (answer) results.push(answer.printable);
    }
  } finally {
    close();
  }
  say(
    call.is("json")
      ? jsonOf(verb, recorder.parts, results)
      : scriptOf(verb, { targets, parts: recorder.parts, results }),
  );
  return status.done;
}

function jsonOf(verb: string, parts: readonly Part[], results: readonly unknown[]): string {
  return jsonText({
    verb,
    plugins: parts.map(({ plugin, verb: network, entries }) => ({
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
    out.push(comment("Without root the rules and the container cannot be looked at: shown as for an empty node."));
  }
  out.push("set -e");
  parts.forEach(({ plugin, entries }, index) => {
    out.push("", paint("bold", `### ${plugin} (plugin ${index + 1} of ${parts.length})`));
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
    if (entry.kind === "block" && last?.kind === "block" && same(entry.block.where, last.block.where)) {
      const lines = [...last.block.lines, ...entry.block.lines];
      result[result.length - 1] = { kind: "block", block: { where: entry.block.where, lines } };
    } else result.push(entry);
  }
  return result;
}

const same = (a: Where, b: Where) => a === b || (a !== "host" && b !== "host" && a.netns === b.netns);

function entryLines(entry: Entry, paint: ReturnType<typeof painter>): string[] {
  if (entry.kind === "note") return [paint("dim", `# ${entry.why}`), paint("dim", `# ${entry.text}`)];
  if (entry.kind === "file") return [paint("dim", `# ${entry.why}`), ...fileLines(entry.path, entry.text)];
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
function fileLines(path: string, text: string | undefined): string[] {
  if (text === undefined) return [`rm -f ${quotedWord(path)}`];
  const folder = path.slice(0, path.lastIndexOf("/"));
  const format = text.replaceAll("\\", "\\\\").replaceAll("%", "%%").replaceAll("\r", "\\r").replaceAll("\n", "\\n");
  return [
    `mkdir -p ${quotedWord(folder)}`,
    `(umask 077; printf '${format.replaceAll("'", `'\\''`)}' >${quotedWord(path)})`,
  ];
}
