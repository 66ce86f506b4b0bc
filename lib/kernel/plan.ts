/**
 * Changes to the machine as data. A plan is a list of stages; the stages run in order. Inside a stage, every place and
 * tool is one child process, and those run side by side. The same plan is applied by ADD, printed by `cnibox explain`,
 * compared by tests, and walked back when something fails.
 */
import { aloneArgv, answersOf, batchOf, wordsOf } from "./batch.ts";
import { systemWords } from "./regular_file.ts";
import { type Command, CommandError, failureText, type Output, type Run, says, xtablesWait } from "./run.ts";
import { readSysctl, writeSysctl } from "./sysctl.ts";
import { failedLine, refusedWord } from "./tool_words.ts";

/** Where a step happens: in this process's network namespace, or in the container's. */
export type Place = "host" | "pod";

/**
 * What executes a step's text.
 * - `ip`, `bridge`, `tc`: one line of literal words with single blanks between them, see {@linkcode wordsOf}
 * - `ip6`: one line for `ip -6`, which alone takes IPv6 rules
 * - `sysctl`: `key=value`, see {@linkcode settingOf}; in the host's namespace a plain file write, no child process
 * - `iptables`, `ip6tables`: lines for `…-restore --noflush`, complete with `*table` and `COMMIT`
 * - `nft`: commands for `nft -f -`
 * - `command`: a whole command line, its words separated by single blanks (no quoting; for conntrack and the like)
 */
export type Tool = "ip" | "ip6" | "bridge" | "tc" | "sysctl" | "iptables" | "ip6tables" | "nft" | "command";

/** One change or question. */
export interface Step {
  readonly place: Place;
  readonly tool: Tool;
  readonly text: string;
  /** Why this is done: a short clause for people, printed by `cnibox explain`. */
  readonly why: string;
  /** The reference's words in front of the system's when this fails: `failed to set "eth0" up`. */
  readonly failing: string;
  /** A question: changes nothing and its JSON answer is returned by {@linkcode apply}. */
  readonly read: boolean;
  /** A failure is of no consequence (only for `sysctl` and `command`). */
  readonly optional: boolean;
  /** Only write the setting when it differs (`sysctl`). */
  readonly ifDifferent: boolean;
  /** Steps that take this one back; run one by one when a later step fails, "not there" counting as done. */
  readonly undo: readonly Step[];
  /**
   * Carried out by this instead of by a process for `text`, side by side with the rest of its stage: for changes that
   * need a second way when the first is refused. It hands over its own undo; `text` is what it does when all goes well.
   */
  readonly job?: (call: Applier) => Promise<void>;
  /**
   * Whether it has been carried out, though its process goes on; see {@linkcode Command}. What the process does after
   * it is not waited for.
   */
  readonly done?: Command["done"];
}

/** Stages in order; the steps of a stage side by side, except that one tool at one place does its steps in order. */
export type Plan = readonly (readonly Step[])[];

/** The parts of a step that are not always needed. */
export interface StepOptions {
  readonly why?: string;
  readonly failing?: string;
  readonly read?: boolean;
  readonly optional?: boolean;
  readonly ifDifferent?: boolean;
  readonly undo?: Step | readonly Step[];
  readonly job?: Step["job"];
  readonly done?: Step["done"];
}

/** Makes a step: `step("host", "ip", "link set dev cni0 up", { failing: … })`. */
export function step(place: Place, tool: Tool, text: string, options: StepOptions = {}): Step {
  const { why = "", failing = "", read = false, optional = false, ifDifferent = false, undo = [], job, done } = options;
  return {
    place,
    tool,
    text,
    why,
    failing,
    read,
    optional,
    ifDifferent,
    undo: "text" in undo ? [undo] : undo,
    ...(job && { job }),
    ...(done && { done }),
  };
}

/** What a plan needs from the call that applies it. */
export interface Applier {
  readonly host: Run;
  readonly pod: Run;
  /** Remembers how to take something back, last first. */
  undo(job: () => Promise<unknown> | unknown): void;
  /** Present in `explain`: collects what would be done; nothing is changed. */
  readonly explain?: Explainer | undefined;
}

/** What is changed by other means than a command; `why` is a short clause for people. */
export type Effect =
  & { readonly why: string }
  & (
    | {
      /** Path of a file that is written whole; without `text`, removed. */
      readonly file: string;
      readonly text?: string | undefined;
      /** Only where there is no such file. */
      readonly exclusive?: boolean;
      /** Only where the file still holds this. */
      readonly held?: string | undefined;
    }
    /** `key=value`, as in a `sysctl` step of the host. */
    | { readonly setting: string }
    /** Anything else: what is asked, or run. */
    | { readonly note: string }
  );

/**
 * Makes a change that is no command. While a call is explained the effect is told instead, where there is one to tell,
 * and the answer is undefined.
 */
export type Perform = <T>(effect: Effect | undefined, make: () => T) => T | undefined;

/** Makes the change. */
export const perform: Perform = (_, make) => make();

/** Collects the plans of a call that is explained instead of carried out. */
export interface Explainer {
  plan(plan: Plan): void;
  /** Stands in for {@linkcode perform}. */
  readonly perform: Perform;
  /**
   * Everything is tried out in a shadow of the node: plans are carried out there. Else nothing but questions is run.
   */
  readonly shadow: boolean;
  /** Stands in for a command: its answer. `ask` runs it here. */
  instead(command: Command, ask: Run): Promise<Output>;
}

/** A step that failed, with the words that its plan has for it. */
export class StepError extends CommandError {
  /** `guessed`: what failed is known by its words alone, so what comes after it may be done as well. */
  constructor(readonly step: Step, cause: CommandError, readonly guessed = false) {
    super(ownCommand(step) ?? cause.command, cause.output, text(step.failing, cause.message));
  }
}

const text = (failing: string, message: string) => failing === "" ? message : `${failing}: ${message}`;

/** The one line of a batch that failed, as a command of its own. */
function ownCommand({ tool, text, failing }: Step): Command | undefined {
  const isLine = tool === "ip" || tool === "bridge" || tool === "tc";
  if (tool === "sysctl" && failing !== "") return { argv: ["sysctl", "-w", text] };
  return isLine && failing !== "" ? { argv: [tool, ...wordsOf(text)] } : undefined;
}

/**
 * Carries a plan out and returns the answers of its questions, in the order of the steps. When a step fails, the others
 * of its stage end first, what they did is handed to `undo`, and the first failure is thrown as a
 * {@linkcode StepError}. In explain mode nothing but stages of questions is run; other questions answer `[]`.
 */
export async function apply(plan: Plan, call: Applier): Promise<unknown[][]> {
  const answers: unknown[][] = [];
  for (const stage of plan) {
    if (call.explain && !call.explain.shadow && stage.some((one) => !one.read)) {
      await explained(stage, call, call.explain);
      for (const one of stage) if (one.read) answers.push([]);
      continue;
    }
    const groups = grouped(stage);
    const ends = await Promise.allSettled(groups.map((group) => runGroup(group, call)));
    const byStep = new Map<Step, unknown[]>();
    let failure: unknown;
    ends.forEach((end, index) => {
      const group = groups[index] ?? [];
      let done = group;
      if (end.status === "fulfilled") { for (const [one, answer] of end.value) byStep.set(one, answer); }
      else {
        failure ??= end.reason;
        // A batch stops at the failing line: what came before is done. Where we can't tell, all of it may be.
        const at = end.reason instanceof StepError && !end.reason.guessed ? group.indexOf(end.reason.step) : -1;
        if (at >= 0 && isBatch(group)) done = group.slice(0, at);
      }
      for (const one of done) for (const back of one.undo) call.undo(() => applyUndo(back, call));
    });
    if (failure !== undefined) throw failure;
    call.explain?.plan([stage.filter((one) => !one.job)]);
    for (const one of stage) if (one.read) answers.push(byStep.get(one) ?? []);
  }
  return answers;
}

/** Hands a stage to the explainer. Jobs find out by themselves which way they would take. */
async function explained(stage: readonly Step[], call: Applier, explain: Explainer): Promise<void> {
  explain.plan([stage.filter((one) => !one.job)]);
  for (const one of stage) {
    await one.job?.(because(call, one.why));
  }
}

/** The same call with a reason for the commands that it runs: for changes that are no steps of a plan. */
export function because<C extends Pick<Applier, "host" | "pod">>(call: C, why: string): C {
  const reasoned = (run: Run): Run => (command) => run({ ...command, why });
  return { ...call, host: reasoned(call.host), pod: reasoned(call.pod) };
}

async function applyUndo(one: Step, call: Applier): Promise<void> {
  await runGroup([one], call);
}

function isBatch(group: readonly Step[]): boolean {
  return group[0]?.tool !== "iptables" && group[0]?.tool !== "ip6tables" && group[0]?.tool !== "nft";
}

/** Steps of a stage by the process that executes them. Settings of the container ride with its first `ip` process. */
export function grouped(stage: readonly Step[]): Step[][] {
  const groups = new Map<string, Step[]>();
  stage.forEach((one, index) => {
    const tool = one.tool === "sysctl" ? (one.place === "pod" ? "ip" : "sysctl") : one.tool;
    const alone = tool === "command" || one.job !== undefined;
    const key = alone ? `${tool} ${index}` : `${one.place} ${tool}`;
    const group = groups.get(key);
    if (group) group.push(one);
    else groups.set(key, [one]);
  });
  return [...groups.values()];
}

/**
 * Key and value of a `sysctl` step, the key with slashes: interface names may hold dots. They may hold `=` as well, but
 * no setting's own name does: what separates is the first `=` behind the last slash that a key can have.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * assertEquals(settingOf("net/ipv4/conf/a=b/arp_notify=1"), ["net/ipv4/conf/a=b/arp_notify", "1"]);
 * ```
 */
export function settingOf(text: string): [key: string, value: string] {
  const [, key = "", value = ""] = /^(.*\/[^\/=]+)=(.*)$/s.exec(text) ?? /^([^=]*)=(.*)$/s.exec(text) ?? [];
  return [key, value];
}

/**
 * Constant text, run by /bin/sh in the container's namespace: writes settings given as pairs of arguments (mark and
 * key, value), then becomes `ip`, if that is the first argument. Marks: `!` must work, `?` may fail, `~` only when
 * different (`read` fails here also when it has read: these files give nothing after the first byte to who reads byte
 * by byte). A refused setting is written once more by `tee`, since the shell's own `printf` does not say why.
 */
export const SETTINGS_SCRIPT = [
  'ip=$1; shift; while [ $# -gt 0 ]; do m=${1%"${1#?}"}; k=${1#?}; f=/proc/sys/$k; v=$2; shift 2',
  'if [ "$m" = "~" ]; then [ -e "$f" ] || continue; o=; { read -r o <"$f"; } 2>/dev/null; [ "$o" = "$v" ] && continue; fi',
  '{ printf %s "$v" >"$f"; } 2>/dev/null || [ "$m" = "?" ] || { echo "sysctl $k=$v:" >&2; printf %s "$v" | tee "$f" >/dev/null; exit 97; }',
  'done; [ -n "$ip" ] || exit 0; exec "$ip" -j -d -batch -',
].join("\n");

/**
 * Constant text, run by /bin/sh in the shadow of the host: writes settings given as pairs of arguments, key and value.
 */
const SHADOW_SETTINGS = 'while [ $# -gt 0 ]; do printf %s "$2" >"/proc/sys/$1"; shift 2; done 2>/dev/null; :';

async function runGroup(group: readonly Step[], call: Applier): Promise<Map<Step, unknown[]>> {
  const [first] = group;
  const answers = new Map<Step, unknown[]>();
  if (first === undefined) return answers;
  if (first.job) {
    await first.job(because(call, first.why));
    return answers;
  }
  const run = first.place === "host" ? call.host : call.pod;
  if (first.tool === "sysctl" && first.place === "host") {
    if (!call.explain) group.forEach(hostSysctl);
    else {
      const pairs = group.flatMap(({ text }) => settingOf(text));
      await run({ argv: ["sh", "-c", SHADOW_SETTINGS, "sh", ...pairs], planned: true });
    }
    return answers;
  }
  const process = processOf(group);
  if (!process) return await runAlone(group, call);
  const { argv, input } = process;
  const done = group.find((one) => one.done)?.done;
  const output = await run({
    argv,
    ...(input && { input }),
    ...(done && { done }),
    ...(call.explain && { planned: true }),
  });
  if (output.code === 0 || group.every((one) => one.optional)) {
    readAnswers(group, output.stdout, answers);
    return answers;
  }
  const cause = new CommandError({ argv, ...(input && { input }) }, output, failureText(output));
  const known = failedStep(group, output);
  const guess = known ? undefined : unparsed(group, output);
  throw new StepError(known ?? guess ?? { ...first, failing: "" }, cause, guess !== undefined);
}

/** Steps that no batch can hold: a process each, in order. Settings come first, as in a batch. */
async function runAlone(group: readonly Step[], call: Applier): Promise<Map<Step, unknown[]>> {
  const settings = group.filter((one) => one.tool === "sysctl");
  const parts = [settings, ...group.filter((one) => one.tool !== "sysctl").map((one) => [one])];
  const answers = new Map<Step, unknown[]>();
  for (const part of parts) for (const [one, answer] of await runGroup(part, call)) answers.set(one, answer);
  return answers;
}

function hostSysctl(one: Step): void {
  const [key, value] = settingOf(one.text);
  try {
    if (one.ifDifferent && readSysctl(key) === value) return;
    writeSysctl(key, value);
  } catch (error) {
    if (one.optional) return;
    const command = { argv: ["sysctl", "-w", one.text] };
    const text = `open /proc/sys/${key}: ${systemWords(error)}`;
    throw new StepError(one, new CommandError(command, { code: 1, signal: null, stdout: "", stderr: text }, text));
  }
}

/** The one process that does all the steps of a group; undefined when they need one each. */
export function processOf(group: readonly Step[]): { argv: string[]; input?: string[] } | undefined {
  const tool = group[0]?.tool;
  if (tool === "command") return { argv: (group[0]?.text ?? "").split(" ") };
  if (tool === "nft") return { argv: ["nft", "-f", "-"], input: [lines(group)] };
  if (tool === "iptables" || tool === "ip6tables") {
    return { argv: [`${tool}-restore`, "--noflush", "-w", `${xtablesWait()}`], input: [lines(group)] };
  }
  const settings = group.filter((one) => one.tool === "sysctl");
  const texts = group.filter((one) => one.tool !== "sysctl").map(({ text }) => text);
  const front = tool === "ip6" ? ["ip", "-6", "-j", "-d"] : tool === "bridge" || tool === "tc" ? [tool] : IP;
  const batch = batchOf(front, texts);
  if (settings.length > 0) {
    const pairs = settings.flatMap((one) => {
      const [key, value] = settingOf(one.text);
      return [`${one.ifDifferent ? "~" : one.optional ? "?" : "!"}${key}`, value];
    });
    return batch &&
      { argv: ["sh", "-c", SETTINGS_SCRIPT, "sh", texts.length > 0 ? "ip" : "", ...pairs], input: batch.input };
  }
  const [text = "", ...more] = texts;
  return batch ?? (more.length > 0 ? undefined : { argv: aloneArgv(front, text) });
}

const IP = ["ip", "-j", "-d"];

function lines(group: readonly Step[]): string {
  return group.map((one) => one.text.endsWith("\n") ? one.text : `${one.text}\n`).join("");
}

/** Which step a batch stopped at; undefined when the process itself could not do its work. */
function failedStep(group: readonly Step[], output: Output): Step | undefined {
  const setting = group.find((one) => one.tool === "sysctl" && output.stderr.includes(`sysctl ${one.text}:\n`));
  if (setting) return setting;
  const line = failedLine(output);
  const [first] = group;
  if (line) return group.filter((one) => one.tool !== "sysctl")[line - 1];
  if (!isBatch(group) || first?.tool === "command") return first;
  // A line that was a process of its own.
  return processOf(group)?.input === undefined && !says(output, "notEntered") ? first : undefined;
}

/** The first step with the word that a tool's parser has refused: it ends the whole batch then, and names no line. */
function unparsed(group: readonly Step[], output: Output): Step | undefined {
  const word = refusedWord(output);
  if (word === undefined || !isBatch(group)) return undefined;
  return group.find((one) => one.tool !== "sysctl" && wordsOf(one.text).includes(word));
}

function readAnswers(group: readonly Step[], stdout: string, answers: Map<Step, unknown[]>): void {
  const questions = group.filter((one) => one.read);
  if (questions.length === 0) return;
  const lists = answersOf(stdout);
  questions.forEach((one, index) => answers.set(one, lists[index] ?? []));
}
