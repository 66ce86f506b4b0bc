/**
 * `deno task docs`: writes the parts of README.md and docs/ that repeat what the code says, and the units in systemd/.
 * A test compares them, so that neither can drift.
 */
import { dirname, fromFileUrl, join } from "@std/path";
import { type Group, GROUPS, helpText } from "../lib/cli/command.ts";
import { COMMANDS } from "../lib/cli/commands.ts";
import { units as unitTexts } from "../lib/cli/units.ts";
import { loadPlugin, pluginNames } from "../plugins/mod.ts";

const root = dirname(dirname(fromFileUrl(import.meta.url)));

/** A part of a file between two comment lines, and what belongs there. */
interface Part {
  readonly file: string;
  readonly name: string;
  readonly text: () => Promise<string>;
}

/** A page for each group of commands: their own help. */
const commandPages: readonly Part[] = (Object.keys(GROUPS) as Group[]).map((group) => ({
  file: `docs/commands/${group}.md`,
  name: "commands",
  text: () => Promise.resolve(groupText(group)),
}));

/** Every generated part. */
export const parts: readonly Part[] = [
  { file: "README.md", name: "plugins", text: pluginTable },
  { file: "docs/architecture.md", name: "modules", text: () => Promise.resolve(moduleMap()) },
  ...commandPages,
];

/** The units in systemd/, to be read, or copied by hand: `cnibox install` carries the same texts. */
export const unitFiles = (): [file: string, text: string][] =>
  Object.entries(unitTexts("/opt/cni/bin")).map(([name, text]) => [`systemd/${name}`, text]);

/** The part as it stands in its file. */
export function written({ file, name }: Part): string {
  const text = Deno.readTextFileSync(join(root, file));
  const found = new RegExp(`<!-- ${name}: generated -->\n([\\s\\S]*?)<!-- /${name} -->`).exec(text);
  if (!found) throw new Error(`${file} has no part "${name}"`);
  return (found[1] ?? "").trim();
}

function groupText(group: Group): string {
  const commands = COMMANDS.filter((command) => command.group === group && !command.hidden);
  return commands.map((command) => `## cnibox ${command.name}\n\n\`\`\`text\n${helpText(command).trimEnd()}\n\`\`\``)
    .join("\n\n");
}

async function pluginTable(): Promise<string> {
  const rows = [["plugin", "kind", "what it does"], ["", "", ""]];
  for (const name of pluginNames) {
    const plugin = await loadPlugin(name);
    rows.push([`[${name}](docs/plugins/${name}.md)`, plugin?.kind ?? "", plugin?.about ?? ""]);
  }
  const widths = [0, 1, 2].map((at) => Math.max(...rows.map((row) => row[at]?.length ?? 0)));
  const cell = (row: number, text: string, at: number) =>
    row === 1 ? "-".repeat(widths[at] ?? 0) : text.padEnd(widths[at] ?? 0);
  return rows.map((row, index) => `| ${row.map((text, at) => cell(index, text, at)).join(" | ")} |`).join("\n");
}

/** Folders of the program, from the top of the import order down. */
const FOLDERS = [
  "plugins",
  "lib/cli",
  "lib/rules",
  "lib/link",
  "lib/node",
  "lib/ipam",
  "lib/store",
  "lib/cni",
  "lib/kernel",
  "lib/net",
];

/** Every source file with the first sentence of its own comment. */
function moduleMap(): string {
  const lines = [
    `main.ts${" ".repeat(16)}${summary("main.ts")}`,
    `lib/version.ts${" ".repeat(9)}${summary("lib/version.ts")}`,
  ];
  for (const folder of FOLDERS) {
    lines.push("", `${folder}/`);
    for (const name of sourcesIn(folder)) lines.push(`  ${name.padEnd(25)} ${summary(`${folder}/${name}`)}`);
  }
  return ["```text", ...lines, "```"].join("\n");
}

/** Names of source files, those one folder below included: `bridge/mod.ts`. */
function sourcesIn(folder: string): string[] {
  let entries: Deno.DirEntry[];
  try {
    entries = [...Deno.readDirSync(join(root, folder))];
  } catch {
    return [];
  }
  return entries.flatMap(({ name, isDirectory }) =>
    isDirectory ? sourcesIn(`${folder}/${name}`).map((one) => `${name}/${one}`) : name.endsWith(".ts") ? [name] : []
  ).sort();
}

/** First sentence of a file's opening comment. */
function summary(file: string): string {
  const source = Deno.readTextFileSync(join(root, file));
  const comment = /^\/\*\*([\s\S]*?)\*\//.exec(source)?.[1] ?? "";
  const text = comment.split("\n").map((line) => line.replace(/^\s*\*?\s?/, "")).join(" ").trim();
  return (/^.*?\.(?=\s|$)/.exec(text)?.[0] ?? text).replace(/\.$/, "");
}

if (import.meta.main) {
  Deno.mkdirSync(join(root, "systemd"), { recursive: true });
  for (const [file, text] of unitFiles()) Deno.writeTextFileSync(join(root, file), text);
  for (const part of parts) {
    const path = join(root, part.file);
    const before = Deno.readTextFileSync(path);
    const text = await part.text();
    const after = before.replace(
      new RegExp(`(<!-- ${part.name}: generated -->\n)[\\s\\S]*?(<!-- /${part.name} -->)`),
      (_, open, close) => `${open}\n${text}\n\n${close}`,
    );
    if (after !== before) Deno.writeTextFileSync(path, after);
  }
}
