/**
 * Plans as shell: what a plan does, for reading and for copying. Steps become plain commands, grouped by the namespace
 * that they work in, each with its reason above it.
 */
import { wordsOf } from "./batch.ts";
import { grouped, type Plan, settingOf, type Step } from "./plan.ts";
import type { Command } from "./run.ts";

/** Where a block of commands is run: the host's namespace, or the one at a path. */
export type Where = "host" | { readonly netns: string };

/** Commands of one namespace that belong together. */
export interface Block {
  readonly where: Where;
  readonly lines: readonly string[];
}

/** What may be left out. */
export interface ShellOptions {
  /** Also show what is only asked. */
  readonly questions?: boolean;
}

/** The blocks of a plan, in order; neighbours of the same namespace are one. */
export function blocksOf(plan: Plan, netns: string, options: ShellOptions = {}): Block[] {
  const blocks: { where: Where; lines: string[] }[] = [];
  for (const stage of plan) {
    for (const group of grouped(stage)) {
      // Settings are written before what else the container's first process does.
      const ordered = [
        ...group.filter((one) => one.tool === "sysctl"),
        ...group.filter((one) => one.tool !== "sysctl"),
      ];
      const lines = ordered.flatMap((one) => one.read && !options.questions ? [] : stepLines(one));
      if (lines.length === 0) continue;
      const where: Where = group[0]?.place === "pod" ? { netns } : "host";
      const last = blocks.at(-1);
      if (last && sameWhere(last.where, where)) last.lines.push(...lines);
      else blocks.push({ where, lines });
    }
  }
  return blocks;
}

/** Is it the same namespace? */
export function sameWhere(a: Where, b: Where): boolean {
  return a === b || (a !== "host" && b !== "host" && a.netns === b.netns);
}

function stepLines(step: Step): string[] {
  const why = step.why === "" ? [] : [`# ${step.why}`];
  const lines = commandLines(step);
  if (step.optional) {
    const end = lines.length - 1;
    // A document that follows belongs to the command's own line.
    const at = lines.findIndex((line) => line.includes("<<'")) >= 0 ? 0 : end;
    return [...why, ...lines.map((line, index) => index === at ? orNothing(line) : line)];
  }
  return [...why, ...lines];
}

function orNothing(line: string): string {
  const at = line.indexOf(" <<'");
  return at < 0 ? `${line} 2>/dev/null || :` : `${line.slice(0, at)} 2>/dev/null${line.slice(at)} || :`;
}

function commandLines({ tool, text }: Step): string[] {
  if (tool === "sysctl") return sysctlLines(text);
  if (tool === "command") return [quotedWords(text.split(" "))];
  if (tool === "nft") return withInput("nft -f -", text);
  if (tool === "iptables" || tool === "ip6tables") return withInput(`${tool}-restore --noflush -w 20`, text);
  return [`${tool === "ip6" ? "ip -6" : tool} ${quotedWords(wordsOf(text))}`];
}

function sysctlLines(text: string): string[] {
  const [key, value] = settingOf(text);
  const print = /^-|\\/.test(value) ? "printf %s" : "echo";
  return [`${print} ${quotedWord(value)} >${quotedWord(`/proc/sys/${key}`)}`];
}

/** A command with a document on its standard input. */
export function withInput(command: string, input: string): string[] {
  const lines = input.replace(/\n$/, "").split("\n");
  let end = "END";
  while (lines.includes(end)) end += "_";
  return [`${command} <<'${end}'`, ...lines, end];
}

/** Words of a line in iproute2's batch language: blanks separate, either quote groups, nothing escapes. */
export function batchWords(line: string): string[] {
  return [...line.matchAll(/"([^"]*)"|'([^']*)'|(\S+)/g)].map(([, double, single, plain]) =>
    double ?? single ?? plain ?? ""
  );
}

/** A word as a shell takes it literally. */
export function quotedWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

/** A command line of literal words. */
export function quotedWords(words: readonly string[]): string {
  return words.map(quotedWord).join(" ");
}

/** A command that is run as it is. */
export function blockOfCommand(command: Command): Block {
  const { inner, netns } = withoutNsenter(command.argv);
  const input = (command.input ?? []).filter((part) => typeof part === "string").join("");
  const words = quotedWords(inner);
  const batch = /^(ip|tc|bridge)$/.test(inner[0] ?? "") && inner.includes("-batch");
  const lines = batch
    ? input.split("\n").filter((line) => line.trim() !== "").map((line) => {
      const own = `${inner[0]} ${quotedWords(batchWords(line))}`;
      return inner.includes("-force") ? orNothing(own) : own;
    })
    : inner[0] === "conntrack"
    // That there was nothing to delete counts as a failure there.
    ? [`${words} >/dev/null 2>&1 || :`]
    : input === ""
    ? [words]
    : withInput(words, input);
  return { where: netns === undefined ? "host" : { netns }, lines };
}

function withoutNsenter(argv: readonly string[]): { inner: readonly string[]; netns?: string } {
  const netns = argv[0] === "nsenter" ? /^--net=(.*)$/s.exec(argv[1] ?? "")?.[1] : undefined;
  return netns === undefined ? { inner: argv } : { inner: argv.slice(3), netns };
}

const QUESTION_LINE = /^\s*(?:-\S+\s+)*[a-z]+\s+(?:[a-z]+\s+)?(?:show|list|ls|get)\b/;

/** Does a command only look? What is not known to, counts as a change. */
export function isQuestion(command: Command): boolean {
  if (command.question) return true;
  const [tool = "", ...args] = withoutNsenter(command.argv).inner;
  const name = tool.slice(tool.lastIndexOf("/") + 1);
  const plain = args.filter((arg) => !arg.startsWith("-"));
  switch (name) {
    case "ip":
    case "bridge":
    case "tc": {
      if (args.includes("-V") || args.includes("-Version")) return true;
      if (!args.some((arg) => /^-b(atch)?$/.test(arg))) return QUESTION_LINE.test(plain.join(" "));
      const parts = command.input ?? [];
      const text = parts.map((part) => typeof part === "string" ? part : "change").join("");
      return text.split("\n").every((line) => line.trim() === "" || QUESTION_LINE.test(line));
    }
    case "nft":
      return plain[0] === "list" || args.some((arg) => ["-c", "--check", "-v", "--version"].includes(arg));
    case "iptables":
    case "ip6tables":
      return args.some((arg) => /^(-[LSCV]|--(list|list-rules|check|version))$/.test(arg));
    case "conntrack":
      return args.includes("-L") || args.includes("--version");
    case "firewall-cmd":
      return args.every((arg) => /^--(state|query|get|list|zone|ipset|direct|permanent)/.test(arg));
    case "ipset":
      return plain[0] === "list" || plain[0] === "save";
    case "sysctl":
      return !args.some((arg) => arg === "-w" || arg.includes("="));
    case "ss":
    case "lsns":
    case "findmnt":
    case "test":
    case "cat":
    case "stat":
    case "ls":
    case "readlink":
    case "iptables-save":
    case "ip6tables-save":
    case "ebtables-save":
      return true;
    case "iptables-restore":
    case "ip6tables-restore":
      return args.includes("--test") || args.includes("-t") || args.includes("--version");
    default:
      return false;
  }
}
