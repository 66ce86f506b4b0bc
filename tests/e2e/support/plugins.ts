/** Calls plugins as a runtime does, ours and the reference's, and the whole life of an attachment to a network list. */
import { type ExecOptions, Namespace, type Node, type Output, PATH } from "./node.ts";

/** Whose plugin: ours, or the reference's. */
export type By = "cnibox" | "ref";

/** Folders inside a node: both are plain plugin folders, as CNI_PATH names them. */
export const binDir: Record<By, string> = { cnibox: "/opt/cni/bin", ref: "/opt/cni/ref" };

export { pluginNames } from "../../../plugins/mod.ts";

export type Command = "ADD" | "DEL" | "CHECK" | "GC" | "STATUS" | "VERSION";

/**
 * One call of a plugin. What is left out is filled in as a runtime would; null leaves a variable unset.
 */
export interface PluginCall {
  /** The plugin's name, `type` in its configuration. */
  type: string;
  command?: Command | (string & Record<never, never>) | null;
  /** CNI_CONTAINERID; the name of the container's namespace when that is given. */
  containerId?: string | null;
  /** CNI_NETNS: a container or a path inside the node. */
  netns?: Namespace | string | null;
  /** CNI_IFNAME, "eth0" unless told. */
  ifName?: string | null;
  /** CNI_ARGS: text, or its pairs. */
  args?: string | Record<string, string> | null;
  /** CNI_PATH; the folder of whoever is called unless told. */
  path?: string | null;
  /** More environment; it wins over all of the above. */
  env?: Record<string, string>;
  /** Standard input: a value goes as JSON, text and bytes as they are. Empty when left out. */
  stdin?: unknown;
  /** Who is called, "cnibox" unless told. */
  by?: By;
  /** The executable, where it is not CNI_PATH's: a path inside the node. */
  exe?: string;
  /** Command line put before the plugin, such as strace. */
  wrap?: string[];
  /** Limit in milliseconds. */
  timeout?: number;
}

// deno-lint-ignore no-explicit-any -- JSON of any CNI version; tests say what they expect of it
export type Json = any;

export interface PluginOutput extends Output {
  /** Standard output parsed, undefined when it is empty or is not one JSON document. */
  json: Json;
}

/** Runs a plugin inside the node, with nothing but the given environment, and returns what came of it. */
export async function runPlugin(node: Node, call: PluginCall): Promise<PluginOutput> {
  const folder = binDir[call.by ?? "cnibox"];
  const options: ExecOptions = { input: stdinOf(call.stdin), env: environmentOf(call, folder) };
  if (call.timeout !== undefined) options.timeout = call.timeout;
  const output = await node.exec([...(call.wrap ?? []), call.exe ?? `${folder}/${call.type}`], options);
  return { ...output, json: parsed(output.stdout) };
}

function environmentOf(call: PluginCall, folder: string): Record<string, string> {
  const container = call.netns instanceof Namespace ? call.netns : undefined;
  const variables: Record<string, string | null | undefined> = {
    PATH,
    CNI_COMMAND: call.command,
    CNI_CONTAINERID: call.containerId === undefined ? container?.name : call.containerId,
    CNI_NETNS: container ? container.netns : call.netns as string | null | undefined,
    CNI_IFNAME: call.ifName === undefined ? "eth0" : call.ifName,
    CNI_ARGS: call.args && typeof call.args === "object"
      ? Object.entries(call.args).map(([key, value]) => `${key}=${value}`).join(";")
      : call.args,
    CNI_PATH: call.path === undefined ? folder : call.path,
  };
  const set = Object.entries(variables).filter((pair): pair is [string, string] => typeof pair[1] === "string");
  return { ...Object.fromEntries(set), ...call.env };
}

function stdinOf(stdin: unknown): string | Uint8Array {
  if (stdin === undefined) return "";
  return typeof stdin === "string" || stdin instanceof Uint8Array ? stdin : JSON.stringify(stdin);
}

function parsed(text: string): Json {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** A plugin answered with an error where success was expected. */
export class PluginFailed extends Error {
  constructor(readonly what: string, readonly output: PluginOutput) {
    super(`${what}: exit ${output.code}\n${output.stdout}\n${output.stderr}`);
    this.name = "PluginFailed";
  }

  /** Its error object: code, msg, details. */
  get error(): Json {
    return this.output.json;
  }
}

/**
 * `runPlugin` for a call that has to succeed; returns its JSON, undefined where it prints none. Throws PluginFailed.
 */
export async function call(node: Node, request: PluginCall): Promise<Json> {
  const output = await runPlugin(node, request);
  if (output.code !== 0) {
    throw new PluginFailed(`${request.by ?? "cnibox"} ${request.type} ${request.command}`, output);
  }
  return output.json;
}

/** A network: one plugin's configuration, or a list of them. */
export interface Network {
  cniVersion?: string;
  name: string;
  plugins: Json[];
}

/** Wraps one plugin's configuration into a list of one; a list stays what it is. */
export function network(conf: Json): Network {
  if (Array.isArray(conf.plugins)) return conf;
  const { name, cniVersion, ...plugin } = conf;
  return { name, cniVersion, plugins: [plugin] };
}

export interface AttachmentOptions {
  /** CNI_CONTAINERID; the namespace's name unless told. */
  containerId?: string;
  /** CNI_IFNAME, "eth0" unless told. */
  ifName?: string;
  args?: PluginCall["args"];
  /** What the runtime knows, handed to the plugins that declare the capability: { portMappings: […] }. */
  capabilities?: Record<string, unknown>;
  /** More environment for every call. */
  env?: Record<string, string>;
}

/**
 * One container's attachment to one network, driven as libcni drives it: plugins in order, prevResult handed on, the
 * result kept for CHECK and DEL, capabilities injected. Every step may be done by ours or by the reference.
 */
export class Attachment {
  /** Result of the last ADD, as the last plugin printed it. */
  result: Json = undefined;
  readonly network: Network;
  readonly #netns: Namespace | string | null;
  readonly #options: AttachmentOptions;

  constructor(readonly node: Node, conf: Json, netns: Namespace | string, options: AttachmentOptions = {}) {
    this.network = network(conf);
    this.#netns = netns;
    this.#options = options;
  }

  /** ADD through the list. Throws PluginFailed; what went before stays, as libcni leaves it to a later DEL. */
  async add(by: By = "cnibox"): Promise<Json> {
    let previous: Json = undefined;
    for (const plugin of this.network.plugins) previous = await this.#call("ADD", plugin, previous, by);
    return this.result = previous;
  }

  /** CHECK through the list, with the last result. Throws PluginFailed. */
  async check(by: By = "cnibox"): Promise<void> {
    for (const plugin of this.network.plugins) await this.#call("CHECK", plugin, this.result, by);
  }

  /**
   * DEL through the list backwards, with the last result where the version has it. Throws PluginFailed.
   * @param withoutNetns true leaves CNI_NETNS out, as for a namespace that is gone
   */
  async del(by: By = "cnibox", { withoutNetns = false } = {}): Promise<void> {
    const previous = versionAtLeast(this.network.cniVersion, [0, 4, 0]) ? this.result : undefined;
    for (const plugin of this.network.plugins.toReversed()) {
      await this.#call("DEL", plugin, previous, by, withoutNetns ? null : this.#netns);
    }
  }

  /** The configuration that a plugin of the list gets on standard input. */
  request(plugin: Json, previous?: Json): Json {
    const { capabilities: declared, ...rest } = plugin;
    const runtimeConfig = Object.fromEntries(
      Object.entries(this.#options.capabilities ?? {}).filter(([name]) => declared?.[name] === true),
    );
    return {
      ...rest,
      name: this.network.name,
      cniVersion: this.network.cniVersion,
      ...(Object.keys(runtimeConfig).length > 0 ? { runtimeConfig } : {}),
      ...(previous === undefined ? {} : { prevResult: previous }),
    };
  }

  #call(command: Command, plugin: Json, previous: Json, by: By, netns = this.#netns): Promise<Json> {
    const { containerId, ifName, args, env } = this.#options;
    const request: PluginCall = {
      type: plugin.type,
      command,
      containerId: containerId ?? (this.#netns instanceof Namespace ? this.#netns.name : "ctr"),
      netns,
      by,
      stdin: this.request(plugin, previous),
    };
    if (ifName !== undefined) request.ifName = ifName;
    if (args !== undefined) request.args = args;
    if (env !== undefined) request.env = env;
    return call(this.node, request);
  }
}

function versionAtLeast(version: string | undefined, least: number[]): boolean {
  const have = (version || "0.1.0").split(".").map(Number);
  for (const [at, number] of least.entries()) {
    if ((have[at] ?? 0) !== number) return (have[at] ?? 0) > number;
  }
  return true;
}
