/** The operator's side of cnibox: `cnibox WORD …`. A command's own file is read when it is run. */
import { ConfigError } from "../cni/member.ts";
import { CniError, code } from "../cni/error.ts";
import type { Plugin } from "../cni/plugin.ts";
import { aboutText, errorText, pluginMain } from "../cni/skel.ts";
import { brokenText, CliError, GROUPS, HELP_WIDTH, helpText, nearest, parseCall, status } from "./command.ts";
import { COMMANDS, findCommand } from "./commands.ts";
import { complain, hanging, oneLine, painter, say, terminalWidth } from "./terminal.ts";

/** How the program was called, and what it has. */
export interface Invocation {
  /** Base name of argv[0]. */
  readonly called: string;
  readonly args: readonly string[];
  readonly version: string;
  readonly names: readonly string[];
  readonly load: (name: string) => Promise<Plugin> | undefined;
}

/** Runs one operator command; returns the exit status. */
export async function operator(invocation: Invocation): Promise<number> {
  const { called, args, version, load } = invocation;
  if (called === "cnitool") return await (await import("./cnitool.ts")).cnitool(invocation);
  const own = load(called);
  if (own) {
    complain(aboutText(await own, version));
    // Whoever takes `bridge` for iproute2's has to notice.
    return args.some((arg) => !["--help", "-h", "--version"].includes(arg)) ? status.usage : status.done;
  }
  if (Deno.build.standalone && !called.startsWith("cnibox")) return unknown(called, invocation, "name");
  const [word, ...rest] = args;
  if (word === undefined || word === "--help" || word === "-h" || (word === "help" && rest.length === 0)) {
    say(overview(invocation));
    return status.done;
  }
  if (word === "--version" || word === "-V") return await run(["version", ...rest], invocation);
  if (word === "help") return await run([...rest, "--help"], invocation);
  return await run(args, invocation);
}

async function run(args: readonly string[], invocation: Invocation): Promise<number> {
  const found = findCommand(args);
  if (!found) {
    const [word = ""] = args;
    const plugin = invocation.load(word);
    if (plugin) return await pluginMain(await plugin, invocation.load, invocation.version);
    return unknown(word, invocation);
  }
  const { command } = found;
  let json = false;
  try {
    const call = parseCall(command, found.args, invocation);
    if (call.is("help")) {
      say(helpText(command, Math.min(HELP_WIDTH, terminalWidth() ?? HELP_WIDTH)));
      return status.done;
    }
    json = call.is("json");
    return await command.run(call);
  } catch (error) {
    return failure(command.name, error, json);
  }
}

/** Says what went wrong; returns the exit status. */
function failure(name: string, error: unknown, json: boolean): number {
  const { number, message, advice } = described(error);
  if (json) {
    const plain = error instanceof CniError ? error : new CniError(code.internal, message, advice.join("; "));
    say(`${errorText(plain)}\n`);
  }
  const paint = painter(Deno.stderr);
  complain(
    `${paint("bold", `cnibox ${name}:`)} ${paint("red", oneLine(message))}\n${
      advice.map((line) => `  ${oneLine(line)}\n`).join("")
    }`,
  );
  return number;
}

function described(error: unknown): { number: number; message: string; advice: readonly string[] } {
  if (error instanceof CliError) return { number: error.status, message: error.message, advice: error.advice };
  if (error instanceof ConfigError) {
    const advice = error.file === "" ? [] : [`cnibox validate ${error.file} shows where`];
    return { number: status.badData, message: brokenText(error), advice };
  }
  if (error instanceof CniError) {
    const number = error.code === code.tryAgain ? status.tryAgain : status.failed;
    return { number, message: error.msg, advice: error.details.split(/\n|; /).filter((line) => line !== "") };
  }
  if (error instanceof Deno.errors.PermissionDenied) {
    const advice = Deno.uid() === 0 ? [] : ["run this command as root"];
    return { number: status.noRights, message: error.message, advice };
  }
  return { number: status.failed, message: error instanceof Error ? error.message : String(error), advice: [] };
}

/** A name that this program was called by, or a word, that is neither plugin nor command. */
function unknown(word: string, invocation: Invocation, as: "word" | "name" = "word"): number {
  const words = COMMANDS.filter(({ hidden }) => !hidden).map(({ name }) => name);
  const near = nearest(word, [...words, ...invocation.names]);
  complain(`cnibox: unknown command or plugin "${oneLine(word)}"\n${near ? `  did you mean ${near}?\n` : ""}`);
  if (as === "name") complain(`\n${overview(invocation)}`);
  else complain("  cnibox --help lists commands and plugins\n");
  return as === "name" ? status.failed : status.usage;
}

function overview({ names }: Invocation): string {
  const paint = painter();
  const parts = ["cnibox: all the standard CNI plugins in one program\n"];
  for (const [group, title] of Object.entries(GROUPS)) {
    const commands = COMMANDS.filter((command) => command.group === group && !command.hidden);
    if (commands.length === 0) continue;
    const width = Math.max(...commands.map(({ name }) => name.length));
    const lines = commands.flatMap(({ name, summary }) => hanging(`  ${name.padEnd(width)}  `, summary));
    parts.push([paint("bold", title), ...lines, ""].join("\n"));
  }
  const how = "(cnibox PLUGIN runs one as its symlink does: CNI_COMMAND and the like in the environment)";
  const head = hanging("", `${paint("bold", "Plugins")} ${how}`);
  parts.push([...head, ...hanging("  ", names.join(" ")), ""].join("\n"));
  parts.push("cnibox COMMAND --help says more, with examples.\n");
  return parts.join("\n");
}
