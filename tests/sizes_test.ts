/** How large things may be. Each list of exceptions only gets shorter. */
import { assertEquals } from "@std/assert";
import { dirname, fromFileUrl, join } from "@std/path";
import { writeChunks } from "../tools/build.ts";

const root = dirname(fromFileUrl(new URL(".", import.meta.url)));

/** Text that a bridge ADD with host-local reads, in bytes. It only gets smaller. */
const ADD_TEXT = 134_000;
/** Lines of one function, of its first to its last. */
const FUNCTION_LINES = 80;
/** Lines of one file in plugins/. */
const PLUGIN_LINES = 400;
const COMMENT_COLUMNS = 120;

const LONG_FUNCTIONS: readonly string[] = [];
const LONG_PLUGINS: readonly string[] = ["plugins/dhcp/rpc.ts"];

function sources(folder: string, ends = [".ts"]): string[] {
  return [...Deno.readDirSync(join(root, folder))].flatMap(({ name, isDirectory }) =>
    isDirectory
      ? sources(`${folder}/${name}`, ends)
      : ends.some((end) => name.endsWith(end))
      ? [`${folder}/${name}`]
      : []
  );
}

const linesOf = (file: string) => Deno.readTextFileSync(join(root, file)).replace(/\n$/, "").split("\n");

/** Chunks that a chunk leads to, itself included: those that it loads at once, and those that it loads when called. */
function reached(chunk: string, textOf: (chunk: string) => string, found = new Set<string>()): Set<string> {
  // Of the program's own chunk a plugin uses a part; `node:NAME` is the runtime's.
  if (found.has(chunk) || chunk === "main" || chunk === "node") return found;
  found.add(chunk);
  for (const [, next = ""] of textOf(chunk).matchAll(/\$(?:load|lazily)\("([^":]+):/g)) reached(next, textOf, found);
  return found;
}

const stemsIn = (folder: string) =>
  [...Deno.readDirSync(join(root, folder))].map(({ name }) => name.replace(/\.ts$/, ""));

Deno.test("a bridge ADD reads no more text than its budget, and what is declared by `using` is closed", async (test) => {
  const folder = await Deno.makeTempDir({ prefix: "cnibox-sizes-" });
  try {
    await writeChunks(join(root, "main.ts"), folder);
    await test.step("no plugin loads what lies in a command's chunk", () => {
      const commands = new Set(stemsIn("lib/cli"));
      const textOf = (chunk: string) => Deno.readTextFileSync(join(folder, `chunks/${chunk}.js`));
      for (const plugin of stemsIn("plugins").filter((name) => name !== "mod")) {
        const chunks = [...reached(plugin, textOf)];
        assertEquals(chunks.includes(plugin), true);
        assertEquals(chunks.filter((name) => commands.has(name)), [], plugin);
      }
    });
    const read = ["main", "bridge", "host-local"].map((name) => Deno.statSync(join(folder, `chunks/${name}.js`)).size);
    const total = read.reduce((sum, size) => sum + size, 0);
    const usings = (texts: readonly string[]) => texts.join("\n").match(/\busing [\w$]+ ?=/g)?.length;
    const chunks = [...Deno.readDirSync(`${folder}/chunks`)].map(({ name }) => `${folder}/chunks/${name}`);
    // The minifier may put a value that is read once where it is read: then nobody closes it.
    const written = [...sources("lib"), ...sources("plugins")].map((file) => Deno.readTextFileSync(join(root, file)));
    assertEquals(usings(chunks.map((file) => Deno.readTextFileSync(file))), usings(written), "a `using` is lost");
    assertEquals(total <= ADD_TEXT, true, `it reads ${total} bytes (${read.join(" + ")}), ${ADD_TEXT} are allowed`);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

const FUNCTION = /^( *)(?:export )?(?:async )?function\*? (\w+)/;
const METHOD = /^( *)(?:(?:async|private|static) )*([#\w]+)\(.*\)(?:: .+)? \{$/;
const ARROW = /^( *)(?:export )?const (\w+) = (?:async )?(?:\([^=]*|\w+) => \{$/;

/**
 * Functions of a formatted file with their lines: each ends with the first brace that is indented as its first line is.
 */
function functionsOf(file: string): { readonly name: string; readonly lines: number }[] {
  const lines = linesOf(file);
  return lines.flatMap((line, at) => {
    const [, indent = "", name = ""] = FUNCTION.exec(line) ?? METHOD.exec(line) ?? ARROW.exec(line) ?? [];
    const end = name === "" ? -1 : lines.slice(at).findIndex((one) => one === `${indent}}` || one === `${indent}};`);
    return end < 0 ? [] : [{ name, lines: end + 1 }];
  });
}

Deno.test(`no function in lib/ and plugins/ is longer than ${FUNCTION_LINES} lines`, () => {
  const long = [...sources("lib"), ...sources("plugins")].flatMap((file) =>
    functionsOf(file).filter(({ lines }) => lines > FUNCTION_LINES).map(({ name }) => `${file} ${name}`)
  );
  assertEquals(long.filter((one) => !LONG_FUNCTIONS.includes(one)), []);
});

Deno.test(`no file in plugins/ is longer than ${PLUGIN_LINES} lines`, () => {
  const long = sources("plugins").filter((file) => linesOf(file).length > PLUGIN_LINES);
  assertEquals(long.filter((file) => !LONG_PLUGINS.includes(file)), []);
});

Deno.test(`no comment line is longer than ${COMMENT_COLUMNS} columns`, () => {
  const files = [
    "main.ts",
    ...["lib", "plugins", "tests", "tools"].flatMap((folder) => sources(folder, [".ts", ".sh"])),
  ];
  const long = [...files, "install.sh"].flatMap((file) =>
    linesOf(file).flatMap((line, at) => {
      const isComment = file.endsWith(".sh") ? /^\s*#/.test(line) : /^\s*(\/\/|\/\*|\*)/.test(line);
      return isComment && [...line].length > COMMENT_COLUMNS ? [`${file}:${at + 1}`] : [];
    })
  );
  assertEquals(long, []);
});
