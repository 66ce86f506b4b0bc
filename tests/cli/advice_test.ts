/** Commands that messages advise: each exists, with the flags and arguments that it is advised with, and is run. */
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

/** Folders of tests that run the compiled program. */
const RUNNING = ["tests/e2e", "tests/install", "tests/cluster"];

/** Command lines in the tests: `["gc", "--all"]`, `["/opt/cni/bin/cnibox", "gc"]`, `cnibox gc --all` in a script. */
function* linesOfTests(): Generator<string[]> {
  for (const file of RUNNING.flatMap((folder) => [...sources(join(root, folder))])) {
    const text = code(Deno.readTextFileSync(file));
    for (const [, elements = ""] of text.matchAll(/\[([^[\]]*)\]/g)) {
      const words = [...elements.matchAll(/"([^"]*)"|`([^`]*)`|[^,\s]+/g)].map(([all, a, b]) => a ?? b ?? all);
      yield words.slice(words.findIndex((word) => /(^|\/)cnibox$/.test(word)) + 1);
    }
    for (const [, line = ""] of text.matchAll(/\bcnibox ((?:[\w./=${}-]+ ?)+)/g)) yield line.trim().split(" ");
  }
}

/** A command's name, and after it each flag that it is given here. */
function usesOf(words: string[]): string[] {
  const found = findCommand(words);
  if (!found) return [];
  const { name, flags } = found.command;
  const given = found.args.filter((one) => /^--\w/.test(one)).map((one) => one.split("=")[0] ?? "");
  return [
    name,
    ...given.filter((flag) => flags.some((one) => `--${one.name}` === flag)).map((flag) => `${name} ${flag}`),
  ];
}

/** Uses whose words are put together at run time, with the word to find and the file that does so. */
const PUT_TOGETHER: Record<string, [word: string, file: string]> = {
  "unfold": ['"unfold"', "tests/e2e/containerd_test.ts"],
  "manifest --uninstall": ['"--uninstall"', "tests/cluster/network.ts"],
};

Deno.test("every command that a message advises is run by a test, with each flag that it is advised with", () => {
  const run = new Set([...linesOfTests()].flatMap(usesOf));
  for (const [use, [word, file]] of Object.entries(PUT_TOGETHER)) {
    if (Deno.readTextFileSync(join(root, file)).includes(word)) run.add(use);
  }
  const messages = advised().filter(([file]) => file !== DECLARATIONS);
  const missing = messages.flatMap(([file, words]) =>
    usesOf(words).filter((use) => !run.has(use)).map((use) => `${use} (${file})`)
  );
  assertEquals([...new Set(missing)], []);
});
