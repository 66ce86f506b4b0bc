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
  return (await inShell("bash", ["--norc"], script)).split("\n").filter((line) => line !== "");
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

for (const shell of ["zsh", "fish"]) {
  Deno.test({
    name: has(shell)
      ? `completion for ${shell} is understood by it`
      : `completion for ${shell} is understood by it [skipped: no ${shell}]`,
    ignore: !has(shell),
    fn: async () => {
      await inShell(shell, ["--no-exec"], scriptOf(shell));
    },
  });
}
