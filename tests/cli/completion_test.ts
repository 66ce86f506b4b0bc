import { assert, assertEquals } from "@std/assert";
import { COMMANDS } from "../../lib/cli/commands.ts";
import { completion } from "../../lib/cli/completion.ts";
import { parseCall } from "../../lib/cli/command.ts";
import { findCommand } from "../../lib/cli/commands.ts";

/** What `cnibox completion SHELL` prints. */
function scriptOf(shell: string): string {
  const call = parseCall(findCommand(["completion"])!.command, [shell], {
    called: "cnibox",
    args: [],
    version: "0",
    names: [],
    load: () => undefined,
  });
  let text = "";
  const original = Deno.stdout.writeSync;
  Deno.stdout.writeSync = (bytes) => {
    text += new TextDecoder().decode(bytes);
    return bytes.length;
  };
  try {
    completion(call);
  } finally {
    Deno.stdout.writeSync = original;
  }
  return text;
}

async function inShell(shell: string, args: readonly string[], input: string): Promise<string> {
  const child = new Deno.Command(shell, { args: [...args], stdin: "piped", stdout: "piped", stderr: "piped" }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(input));
  await writer.close();
  const { code, stdout, stderr } = await child.output();
  assertEquals([code, new TextDecoder().decode(stderr)], [0, ""]);
  return new TextDecoder().decode(stdout);
}

function has(shell: string): boolean {
  return ["/bin", "/usr/bin"].some((folder) => {
    try {
      return Deno.statSync(`${folder}/${shell}`).isFile;
    } catch {
      return false;
    }
  });
}

/** What bash offers for a line; the last word is the one that is being written. */
async function offered(...words: string[]): Promise<string[]> {
  // cnibox itself answers the script's questions from a function here.
  const script = `${scriptOf("bash")}
cnibox() { case "$2" in network) echo mynet; echo other;; netns) echo box;; esac; }
COMP_WORDS=(${words.map((word) => `'${word}'`).join(" ")})
COMP_CWORD=${words.length - 1}
_cnibox
printf '%s\\n' "\${COMPREPLY[@]}"
`;
  return [...new Set((await inShell("bash", ["--norc"], script)).split("\n").filter((line) => line !== ""))];
}

Deno.test("completion for bash loads and offers commands, networks, namespaces, flags and values", async () => {
  assertEquals(await offered("cnibox", "ad"), ["add"]);
  assertEquals((await offered("cnibox", "")).includes("complete"), false);
  assertEquals(await offered("cnibox", "add", ""), ["mynet", "other"]);
  assertEquals(await offered("cnibox", "add", "my"), ["mynet"]);
  assertEquals(await offered("cnibox", "add", "mynet", ""), ["box"]);
  assertEquals(await offered("cnibox", "add", "-p", "80:80", "--json", "mynet", ""), ["box"]);
  assertEquals(await offered("cnibox", "add", "mynet", "--pub"), ["--publish"]);
  assertEquals(await offered("cnibox", "add", "mynet", "--dry"), ["--dry-run"]);
  assertEquals(await offered("cnibox", "completion", ""), ["bash", "zsh", "fish"]);
  assertEquals(await offered("cnibox", "run", "mynet", "--", "umas"), ["umask"]);
});

/** What follows the first word of commands of two words, by that word; and all first words. */
function subcommands(): { firsts: string[]; seconds: Map<string, string[]> } {
  const seconds = new Map<string, string[]>();
  const firsts = new Set<string>();
  for (const { name } of COMMANDS.filter(({ hidden }) => !hidden)) {
    const [first = "", second] = name.split(" ");
    firsts.add(first);
    if (second !== undefined) seconds.set(first, [...seconds.get(first) ?? [], second].sort());
  }
  return { firsts: [...firsts].sort(), seconds };
}

Deno.test("completion for bash offers every command, and every second word", async () => {
  const { firsts, seconds } = subcommands();
  assertEquals((await offered("cnibox", "")).sort(), firsts);
  assert(seconds.size > 2);
  for (const [first, words] of seconds) {
    const answer = await offered("cnibox", first, "");
    assertEquals(words.filter((word) => !answer.includes(word)), [], first);
  }
  // What the first word takes by itself as well.
  assertEquals((await offered("cnibox", "ipam", "")).filter((word) => word === "mynet"), ["mynet"]);
});

Deno.test("completion names every command and flag in every shell", () => {
  for (const shell of ["bash", "zsh", "fish"]) {
    const script = scriptOf(shell);
    for (const { name, flags, hidden } of COMMANDS) {
      if (hidden) continue;
      for (const word of name.split(" ")) assert(script.includes(word), `${shell}: ${word}`);
      for (const flag of flags) assert(script.includes(flag.name), `${shell}: --${flag.name}`);
    }
  }
});

/**
 * A shell's answers to lines, each after one Tab; the script's questions are answered by a program of the same name.
 */
async function offers(shell: "zsh" | "fish", lines: readonly string[]): Promise<Record<string, string[]>> {
  const folder = await Deno.makeTempDir();
  try {
    const stub =
      '#!/bin/sh\ncase "$2" in network) echo mynet; echo other;; netns) echo box;; container) echo c1;; esac\n';
    await Deno.writeTextFile(`${folder}/cnibox`, stub, { mode: 0o755 });
    // Where a zsh that starts looks for completions; fish reads any file.
    await Deno.writeTextFile(`${folder}/_cnibox`, scriptOf(shell));
    await Deno.writeTextFile(`${folder}/setup`, ZSH_SETUP);
    const driver = `${folder}/driver`;
    await Deno.writeTextFile(driver, shell === "zsh" ? ZSH_DRIVER : FISH_DRIVER);
    const { code, stdout, stderr } = await new Deno.Command(shell, {
      args: [shell === "zsh" ? "-f" : "--no-config", driver, folder, ...lines],
      cwd: folder,
      clearEnv: true,
      env: { PATH: `${folder}:/usr/sbin:/usr/bin:/sbin:/bin`, HOME: folder, TERM: "xterm", LC_ALL: "C.UTF-8" },
      stdin: "null",
      // A shell that waits for ever is a failure too.
      signal: AbortSignal.timeout(60_000),
    }).output();
    const decoder = new TextDecoder();
    assertEquals([code, decoder.decode(stderr)], [0, ""]);
    const answers: Record<string, string[]> = {};
    for (const part of decoder.decode(stdout).split("== ").slice(1)) {
      const [line = "", ...words] = part.split("\n");
      answers[line] = [...new Set(words.map((word) => word.replace(/\t.*/, "")).filter(Boolean))].sort();
    }
    return answers;
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

const FISH_DRIVER = `source $argv[1]/_cnibox
for line in $argv[2..]
  echo "== $line"
  complete -C $line
end
`;

/** A second zsh on a terminal of its own, where a widget writes down what it would show. */
const ZSH_DRIVER = String.raw`zmodload zsh/zpty
export FOLDER=$1
shift
zpty z zsh -f -i
zpty -w z 'source $FOLDER/setup'
zpty -r z out '*SET*UP*'
for line; do
  : >$FOLDER/hits
  zpty -w -n z $'\C-u'"$line"$'\t'
  zpty -r z out '*ASKED*'
  print -r -- "== $line"
  cat $FOLDER/hits
done
zpty -d z
`;

const ZSH_SETUP = String.raw`PS1=
stty rows 200 cols 200
fpath=($FOLDER $fpath)
autoload -U compinit
compinit -u -D
compadd() {
  if [[ ${"$"}{@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then builtin compadd "$@"; return; fi
  local -a hits
  builtin compadd -O hits "$@"
  print -rl -- $hits >>$FOLDER/hits
  builtin compadd "$@"
}
asked() { _main_complete; compstate[list]=; compstate[insert]=; print ASKED; }
zle -C asked complete-word asked
bindkey '^I' asked
bindkey '^U' kill-whole-line
print SET; print UP
`;

for (const shell of ["zsh", "fish"] as const) {
  const name =
    `completion for ${shell} loads and offers all commands, networks, namespaces, flags and values, each in its place`;
  Deno.test({
    name: has(shell) ? name : `${name} [skipped: no ${shell}: run tests/support/packages.sh]`,
    ignore: !has(shell),
    fn: async () => {
      const expected: Record<string, string[]> = {
        "cnibox ad": ["add"],
        "cnibox add ": ["mynet", "other"],
        "cnibox add my": ["mynet"],
        "cnibox add mynet ": ["box"],
        "cnibox add -p 80:80 --json mynet ": ["box"],
        "cnibox add mynet --pub": ["--publish"],
        "cnibox explain add ": ["mynet", "other"],
        "cnibox explain add mynet ": ["box"],
        "cnibox explain add --dry": [],
        "cnibox ipam li": ["list"],
        "cnibox ipam list ": ["mynet", "other"],
        "cnibox ipam find ": ["c1"],
        "cnibox ipam repair --dry": ["--dry-run"],
        "cnibox del mynet --id ": ["c1"],
        "cnibox graph --format ": ["dot", "mermaid", "svg", "tree"],
        "cnibox completion ": ["bash", "fish", "zsh"],
        "cnibox run mynet -- umas": ["umask"],
      };
      const { firsts, seconds } = subcommands();
      expected["cnibox "] = firsts;
      const lines = [...seconds.keys()].map((first) => `cnibox ${first} `);
      const answers = await offers(shell, [...Object.keys(expected), ...lines]);
      for (const [first, words] of seconds) {
        // And what the first word takes by itself.
        const answer = answers[`cnibox ${first} `] ?? [];
        assertEquals(words.filter((word) => !answer.includes(word)), [], first);
      }
      assertEquals(Object.fromEntries(Object.keys(expected).map((line) => [line, answers[line]])), expected);
    },
  });
}
