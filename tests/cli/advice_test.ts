/** Commands that messages advise: each exists, with the flags and arguments that it is advised with. */
import { assert, assertEquals } from "@std/assert";
import { dirname, fromFileUrl, join } from "@std/path";
import { COMMANDS, findCommand } from "../../lib/cli/commands.ts";

const root = dirname(dirname(dirname(fromFileUrl(import.meta.url))));

function* sources(folder: string): Generator<string> {
  for (const { name, isDirectory } of Deno.readDirSync(folder)) {
    const path = join(folder, name);
    if (isDirectory) yield* sources(path);
    else if (name.endsWith(".ts")) yield path;
  }
}

/** Program text without its comments. */
const code = (text: string) => text.replace(/\/\*[^]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");

/** The file that declares the commands; what it says of them is prose, but for the examples. */
const DECLARATIONS = "lib/cli/commands.ts";

/** `cnibox WORD …` in the texts of the program, up to what ends a command; a placeholder is one word. */
function advised(): [file: string, words: string[]][] {
  const files = ["lib", "plugins"].flatMap((folder) => [...sources(join(root, folder))]);
  const texts = files.map((file): [string, string] => {
    const name = file.slice(root.length + 1);
    if (name === DECLARATIONS) {
      return [
        name,
        COMMANDS.flatMap(({ examples }) => examples.map(([, line]) => line)).join("\n"),
      ];
    }
    return [name, code(Deno.readTextFileSync(file)).replace(/\$\{[^}]*\}/g, "VALUE")];
  });
  return texts.flatMap(([name, text]) =>
    [...text.matchAll(/\bcnibox ((?:[\w./=-]+ ?)+)/g)].map(([, line = ""]): [string, string[]] => {
      const [command = ""] = line.trim().split(/\.(?: |$)/);
      return [name, command.split(" ")];
    })
  );
}

/** What follows the name where a text speaks of the program or of whatever command is run. */
const PROSE = /^(VALUE|PLUGIN|COMMAND|--help|-[fan]|can|is|vxlan)$/;

Deno.test("every command that a message advises exists, with the flags that it is advised with", () => {
  const all = advised();
  assert(all.length > 50, `${all.length}`);
  for (const [file, words] of all) {
    if (PROSE.test(words[0] ?? "")) continue;
    const found = findCommand(words);
    if (!found) throw new Error(`${file}: cnibox ${words.join(" ")}`);
    const names = found.command.flags.map(({ name }) => `--${name}`);
    for (const word of found.args.filter((one) => /^--\w/.test(one))) {
      assert([...names, "--help"].includes(word.split("=")[0] ?? ""), `${file}: cnibox ${words.join(" ")}`);
    }
  }
});

/** Commands that refuse to guess what they are for. */
const CHOOSY = ["restore", "gc", "ipam repair", "inspect", "del", "check", "ipam free", "cluster forget"];
/** Where the name alone is the command's own, or the beginning of one. */
const NAMES = ["lib/cli/restore.ts", "lib/cli/problem_groups.ts"];

Deno.test("a command that refuses to guess what it is for is advised with what it is for", () => {
  assertEquals(CHOOSY.filter((name) => !COMMANDS.some((one) => one.name === name)), []);
  for (const [file, words] of advised()) {
    const found = findCommand(words);
    if (!found || !CHOOSY.includes(found.command.name) || NAMES.includes(file)) continue;
    assert(found.args.length > 0, `${file}: cnibox ${words.join(" ")}`);
  }
});
