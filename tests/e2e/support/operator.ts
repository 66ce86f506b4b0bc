/** The operator's command line inside a node: `cnibox WORD …` as a person runs it. */
import { type ExecOptions, type Node, type Output, PATH } from "./node.ts";
import { binDir, type By, type Json } from "./plugins.ts";

/** What came of a command; `json` is standard output parsed, undefined when it is no JSON. */
export interface Said extends Output {
  json: Json;
}

export interface SayOptions extends ExecOptions {
  /** Whose plugins are on CNI_PATH; both folders when left out, ours first. */
  plugins?: By | By[];
}

/** Runs `cnibox …` and returns what came of it, also when it failed. */
export async function cnibox(node: Node, args: string[], options: SayOptions = {}): Promise<Said> {
  const { plugins, env, ...rest } = options;
  const path = plugins === undefined ? [] : [plugins].flat().map((by) => binDir[by]);
  const variables = { PATH, ...(path.length > 0 && { CNI_PATH: path.join(":") }), ...env };
  const output = await node.exec([`${binDir.cnibox}/cnibox`, ...args], { ...rest, env: variables });
  let json: Json;
  try {
    json = JSON.parse(output.stdout);
  } catch {
    json = undefined;
  }
  return { ...output, json };
}

/** The same for a command that has to succeed. */
export async function must(node: Node, args: string[], options: SayOptions = {}): Promise<Said> {
  const said = await cnibox(node, args, options);
  if (said.code !== 0) throw new Error(`cnibox ${args.join(" ")}: exit ${said.code}\n${said.stderr}${said.stdout}`);
  return said;
}

/** Puts a network where runtimes look for it. */
export async function configure(node: Node, list: Json, file = `10-${list.name}.conflist`): Promise<void> {
  await node.write(`/etc/cni/net.d/${file}`, typeof list === "string" ? list : JSON.stringify(list, undefined, 2));
}
