/** The operator's side of cnibox: `cnibox WORD …`. Help and listings are made from the plugins' own declarations. */
import type { Plugin } from "../cni/plugin.ts";
import { aboutText, pluginMain } from "../cni/skel.ts";

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
  const { called, args, version, names, load } = invocation;
  const [word, ...rest] = args;
  const own = load(called);
  if (own) {
    const plugin = await own;
    say(aboutText(plugin, version), Deno.stderr);
    return 0;
  }
  if (Deno.build.standalone && !called.startsWith("cnibox")) return unknown(called, invocation);
  if (word === undefined || word === "--help" || word === "-h" || word === "help") {
    say(help(invocation));
    return 0;
  }
  if (word === "--version" || word === "-V" || word === "version") {
    say(`cnibox ${version}\n`);
    return 0;
  }
  if (word === "plugins") {
    if (rest[0] === "--names") say(names.map((name) => `${name}\n`).join(""));
    else say(await table(invocation));
    return 0;
  }
  const plugin = load(word);
  if (plugin) return await pluginMain(await plugin, load, version);
  return unknown(word, invocation);
}

function unknown(word: string, invocation: Invocation): number {
  say(`cnibox: unknown command or plugin "${word}"\n\n${help(invocation)}`, Deno.stderr);
  return 1;
}

function help({ names }: Invocation): string {
  return `cnibox: all the standard CNI plugins in one program

usage: cnibox PLUGIN          runs a plugin, as its symlink does (CNI_COMMAND and the like in the environment)
       cnibox plugins         the plugins, one line each
       cnibox --version

plugins: ${names.join(" ")}
`;
}

async function table({ names, load }: Invocation): Promise<string> {
  const rows: string[] = [];
  for (const name of names) {
    const plugin = await load(name);
    if (plugin) {
      rows.push(`${name.padEnd(12)} ${plugin.kind.padEnd(5)} ${plugin.about.padEnd(60)} ${plugin.versions.join(" ")}`);
    }
  }
  return `${rows.join("\n")}\n`;
}

function say(text: string, stream: { writeSync(bytes: Uint8Array): number } = Deno.stdout): void {
  let bytes = new TextEncoder().encode(text);
  while (bytes.length > 0) bytes = bytes.subarray(stream.writeSync(bytes));
}
