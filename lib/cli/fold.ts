/**
 * `cnibox fold` and `cnibox unfold`: a network list with its plugins as members of one `chain`, and back. Only the text
 * of `plugins` changes; comments, order and spelling of everything else stay.
 */
import { inFile, parseList } from "../cni/conflist.ts";
import { isObject } from "../cni/decode.ts";
import { CHAIN, type Member } from "../cni/member.ts";
import { atLeast } from "../cni/version.ts";
import { CliError, type CommandCall, status } from "./command.ts";
import { unreachable } from "./config_rules.ts";
import { Section, Source } from "./config_source.ts";
import { type Node, valueOf } from "./jsonc.ts";
import { parseText, readText } from "./setup.ts";
import { complain, say } from "./terminal.ts";

/** `cnibox fold` */
export function fold(call: CommandCall): number {
  const file = call.arg("FILE") ?? "-";
  say(folded(file, readText(file)));
  return status.done;
}

/** `cnibox unfold` */
export function unfold(call: CommandCall): number {
  const file = call.arg("FILE") ?? "-";
  const { text, notes } = unfolded(file, readText(file));
  for (const note of notes) complain(`cnibox unfold: ${note}\n`);
  say(text);
  return status.done;
}

/** The text of a list with all its plugins in one chain. Throws what a runtime would say about the list. */
export function folded(file: string, source: string): string {
  const { text } = unfolded(file, source);
  const list = readList(file, text);
  const { version, plugins } = list;
  if (!atLeast(version, "0.4.0")) {
    throw new CliError(`${file}: ${CHAIN} needs "cniVersion" 0.4.0 or later`, status.badData, [
      `it is ${version === "" ? "missing, which means 0.1.0" : version}`,
    ]);
  }
  return replaced(text, [{ node: list.node, text: chainText(text, list.node, plugins) }]);
}

function chainText(text: string, array: Node, plugins: readonly Member[]): string {
  const names = [...new Set(plugins.flatMap(({ capabilities }) => capabilities))];
  const capabilities = `{ ${names.map((name) => `${JSON.stringify(name)}: true`).join(", ")} }`;
  const keys = [`"type": "${CHAIN}"`, ...(names.length > 0 ? [`"capabilities": ${capabilities}`] : [])];
  const members = text.slice(array.start, array.end);
  if (!members.includes("\n")) return `[{ ${[...keys, `"plugins": ${members}`].join(", ")} }]`;
  const base = indentOf(text, array.start);
  const first = indentOf(text, array.items?.[0]?.start ?? array.start);
  const unit = first.length > base.length ? first.slice(base.length) : "  ";
  const deeper = members.replaceAll("\n", `\n${unit}${unit}`);
  const lines = [...keys, `"plugins": ${deeper}`].map((line) => `${base}${unit}${unit}${line}`);
  return `[\n${base}${unit}{\n${lines.join(",\n")}\n${base}${unit}}\n${base}]`;
}

/** The text of a list with the members of every chain in its place, and what changes by that. */
export function unfolded(file: string, source: string): { readonly text: string; readonly notes: readonly string[] } {
  const { node } = readList(file, source);
  const notes: string[] = [];
  const changes = (node.items ?? []).flatMap((item) => {
    const chain = new Section(new Source(file, source), item);
    if (chain.text("type") !== CHAIN) return [];
    notes.push(
      ...unreachable(chain).map(({ type, capability }) =>
        `${type} declares ${capability}, which the chain does not pass on; the unfolded list does`
      ),
    );
    return [{ node: item, text: membersText(source, chain) }];
  });
  return { text: replaced(source, changes), notes };
}

/** The members of a chain as they stand in a list, with the chain's `args` where they have none. */
function membersText(source: string, chain: Section): string {
  const array = chain.property("plugins")?.value as Node;
  const args = chain.property("args")?.value;
  const given = (array.items ?? []).filter((item) => args && new Section(chain.source, item).get("args") === undefined)
    .map((item) => {
      const rest = item.properties?.length ? "," : "";
      return {
        node: { start: item.start, end: item.start + 1 },
        text: `{ "args": ${JSON.stringify(valueOf(args as Node))}${rest}`,
      };
    });
  const text = replaced(source, given, array).slice(1, -1).trim();
  const deeper = indentOf(source, array.items?.[0]?.start ?? array.start).length -
    indentOf(source, chain.node.start).length;
  return deeper > 0 ? text.replaceAll(new RegExp(`\\n[ \\t]{${deeper}}`, "g"), "\n") : text;
}

/** A list that a runtime can read, and its array of plugins in the text. */
function readList(file: string, text: string) {
  const { root } = parseText(file, text);
  const value = valueOf(root);
  if (isObject(value) && !("plugins" in value) && "type" in value) {
    throw new CliError(`${file}: a single plugin's configuration, not a list`, status.badData, [
      'put it into "plugins": [ … ] of a .conflist file',
    ]);
  }
  const named = file === "-" ? "" : file;
  const list = inFile(named, () => parseList(new TextEncoder().encode(JSON.stringify(value)), named));
  const node = root.properties?.findLast(({ key }) => key === "plugins")?.value;
  if (!node || list.plugins.length === 0) {
    throw new CliError(`${file}: no plugins in the list itself`, status.badData, ['"plugins" of the file is folded']);
  }
  return { ...list, node };
}

type Span = Pick<Node, "start" | "end">;

/** A text, or a part of it, with some spans replaced. */
function replaced(
  text: string,
  changes: readonly { readonly node: Span; readonly text: string }[],
  part: Span = { start: 0, end: text.length },
): string {
  let result = "";
  let at = part.start;
  for (const { node, text: other } of changes) {
    result += text.slice(at, node.start) + other;
    at = node.end;
  }
  return result + text.slice(at, part.end);
}

/** White space that the line of an offset begins with. */
function indentOf(text: string, offset: number): string {
  const line = text.slice(text.lastIndexOf("\n", offset - 1) + 1);
  return /^[ \t]*/.exec(line)?.[0] ?? "";
}
