/**
 * `cnibox man`: manual pages in roff, made from the declarations of the commands and from the plugins' tables of keys.
 */
import { type Schema, schemaOf } from "../cni/decode.ts";
import type { Plugin } from "../cni/plugin.ts";
import {
  CliError,
  type CommandCall,
  flagAbout,
  flagText,
  GROUPS,
  HELP,
  nearest,
  type OperatorCommand,
  status,
  STATUSES,
  usageLine,
} from "./command.ts";
import { COMMANDS } from "./commands.ts";
import type { Invocation } from "./mod.ts";
import { fileError } from "./setup.ts";
import { say } from "./terminal.ts";

/** `cnibox man [PAGE]` */
export async function man(call: CommandCall): Promise<number> {
  const { names, load, version } = call.invocation;
  const folder = call.value("dir");
  if (folder !== undefined) {
    const pages = await manualPages(call.invocation);
    write(`${folder}/man8`, pages);
    say(`${pages.length} pages in ${folder}/man8\n`);
    return status.done;
  }
  const page = call.arg("PAGE") ?? "cnibox";
  if (page === "cnibox") {
    say(mainPage(version, names));
    return status.done;
  }
  const plugin = await load(page.replace(/^cnibox-/, ""));
  if (!plugin) {
    const near = nearest(page, ["cnibox", ...names]);
    throw new CliError(`there is no page "${page}"`, status.unknown, near ? [`did you mean ${near}?`] : []);
  }
  say(pluginPage(plugin, version));
  return status.done;
}

/** Every page with its name. */
export async function manualPages({ names, load, version }: Invocation): Promise<[name: string, roff: string][]> {
  const pages: [string, string][] = [["cnibox", mainPage(version, names)]];
  for (const name of names) {
    const plugin = await load(name);
    if (plugin) pages.push([`cnibox-${name}`, pluginPage(plugin, version)]);
  }
  return pages;
}

function write(folder: string, pages: readonly (readonly [string, string])[]): void {
  try {
    Deno.mkdirSync(folder, { recursive: true });
    for (const [name, text] of pages) Deno.writeTextFileSync(`${folder}/${name}.8`, text);
  } catch (error) {
    throw fileError(folder, error);
  }
}

/** Text as roff prints it: nothing in it is a request or an escape, and dashes are those that can be typed. */
function plain(text: string): string {
  return text.replace(/\\/g, "\\e").replace(/-/g, "\\-").replace(/^([.'])/gm, "\\&$1");
}

const bold = (text: string) => `\\fB${plain(text)}\\fR`;
const section = (title: string, ...lines: string[]) => [`.SH ${title.toUpperCase()}`, ...lines];
/** A term and what it means. */
const item = (term: string, ...about: string[]) => [".TP", term, ...about];

function page(name: string, version: string, lines: readonly string[]): string {
  return `.TH ${name.toUpperCase()} 8 "" "cnibox ${version}" "System Administration"\n${lines.join("\n")}\n`;
}

/** Variables that commands read. */
const ENVIRONMENT: readonly (readonly [name: string, about: string])[] = [
  ["CNI_PATH", "folders of plugins, separated by colons"],
  ["NETCONFPATH", "folder of network configurations"],
  ["CNI_ARGS", "pairs for plugins: KEY=VALUE;KEY=VALUE"],
  ["CAP_ARGS", "capability arguments, a JSON object"],
  ["CNI_IFNAME", "interface in the container"],
  ["CNIBOX_LOG", "file to which every call of a plugin adds a line of JSON"],
  ["CNIBOX_TOOL_TIMEOUT", "how long a tool may take, in seconds"],
  ["COLUMNS", "width of tables"],
  ["NO_COLOR, FORCE_COLOR, CLICOLOR_FORCE", "never colours; colours also where nobody looks at a terminal"],
];

const FILES: readonly (readonly [path: string, about: string])[] = [
  ["/etc/cni/net.d", "network configurations"],
  ["/opt/cni/bin", "plugins: symlinks to cnibox"],
  ["/var/lib/cni/results", "attachments and their results"],
  ["/var/lib/cni/networks", "leases of host-local, one folder per network"],
];

/** cnibox(8) */
export function mainPage(version: string, names: readonly string[]): string {
  const shown = COMMANDS.filter(({ hidden }) => !hidden);
  const groups = Object.entries(GROUPS).flatMap(([group, title]) => {
    const commands = shown.filter((command) => command.group === group);
    return commands.length === 0 ? [] : section(title, ...commands.flatMap(commandText));
  });
  const items = (rows: readonly (readonly [string, string])[]) =>
    rows.flatMap(([name, about]) => item(bold(name), plain(about)));
  return page("cnibox", version, [
    ...section("Name", "cnibox \\- all the standard CNI plugins in one program"),
    ...section(
      "Synopsis",
      `${bold("cnibox")} \\fICOMMAND\\fR [\\fIFLAGS\\fR] [\\fIARGUMENTS\\fR]`,
      ".br",
      `${bold("cnitool")} \\fIVERB\\fR \\fINETWORK\\fR \\fINETNS\\fR`,
    ),
    ...section(
      "Description",
      plain(
        "Called by the name of a plugin, cnibox is that plugin. Called by its own name, it runs, explains, checks,",
      ),
      plain("shows and repairs networks. Called as cnitool, it is the reference's command line of that name."),
    ),
    ...groups,
    ...section("Exit status", ...items(STATUSES.map(([number, meaning]) => [`${number}`, meaning]))),
    ...section("Environment", ...items(ENVIRONMENT)),
    ...section("Files", ...items(FILES)),
    ...section("See also", names.map((name) => `${bold(`cnibox-${name}`)}(8)`).join(",\n")),
  ]);
}

function commandText(command: OperatorCommand): string[] {
  const lines = [`.SS "${plain(`cnibox ${command.name}`)}"`, plain(`${capital(command.summary)}.`)];
  lines.push(".PP", ".nf", plain(usageLine(command).replace(/^usage: /, "")), ".fi");
  for (const paragraph of command.about ?? []) lines.push(".PP", plain(paragraph));
  const named = [...command.positional, ...(command.rest ? [command.rest] : [])];
  for (const { name, about } of named) lines.push(...item(`\\fI${plain(name)}\\fR`, plain(about)));
  for (const flag of [...command.flags, HELP]) lines.push(...item(bold(flagText(flag)), plain(flagAbout(flag))));
  for (const [number, meaning] of command.statuses ?? []) lines.push(...item(`exit status ${number}`, plain(meaning)));
  for (const [why, line] of command.examples) {
    lines.push(".PP", plain(`${capital(why)}:`), ".PP", ".RS", ".nf", plain(line), ".fi", ".RE");
  }
  return lines;
}

const capital = (text: string) => text.charAt(0).toUpperCase() + text.slice(1);

/** cnibox-PLUGIN(8) */
export function pluginPage({ name, about, kind, keys, versions, needs }: Plugin, version: string): string {
  const kinds = { main: "makes interfaces", ipam: "gives out addresses", meta: "changes what another plugin has made" };
  return page(`cnibox-${name}`, version, [
    ...section("Name", `${plain(`cnibox-${name}`)} \\- ${plain(about)}`),
    ...section(
      "Description",
      `The CNI plugin ${bold(name)} ${plain(`${kinds[kind]}: it ${about}.`)}`,
      plain(`It speaks versions ${versions.join(", ")} of the protocol.`),
      ...(needs.length > 0 ? [plain(`It needs ${needs.join(", ")}.`)] : []),
    ),
    ...section("Configuration", ...propertiesText(schemaOf(keys))),
    ...section("See also", `${bold("cnibox")}(8)`),
  ]);
}

/** Every key, those of objects below their own. */
function propertiesText(schema: Schema, path = ""): string[] {
  const { properties = {} } = schema as { properties?: Readonly<Record<string, Schema>> };
  return Object.entries(properties).flatMap(([name, one]) => {
    const whole = path === "" ? name : `${path}.${name}`;
    const { description = "", items } = one as { description?: string; items?: Schema };
    const facts = [typeText(one), ...defaultText(one)].filter((part) => part !== "").join(", ");
    const head = `${bold(whole)}${facts === "" ? "" : ` (${plain(facts)})`}`;
    return [
      ...item(head, plain(description || "see the documentation")),
      ...propertiesText(one, whole),
      ...itemsText(items, whole),
    ];
  });
}

function itemsText(items: Schema | undefined, path: string): string[] {
  if (items === undefined) return [];
  const { items: inner } = items as { items?: Schema };
  return [...propertiesText(items, `${path}[]`), ...itemsText(inner, `${path}[]`)];
}

function typeText(schema: Schema): string {
  const { type, enum: words } = schema as { type?: string | readonly string[]; enum?: readonly unknown[] };
  if (words) return `one of ${words.map((word) => JSON.stringify(word)).join(", ")}`;
  return type === undefined ? "" : [type].flat().join(" or ");
}

function defaultText(schema: Schema): string[] {
  const { default: absent } = schema as { default?: unknown };
  return absent === undefined || absent === "" ? [] : [`default ${JSON.stringify(absent)}`];
}
