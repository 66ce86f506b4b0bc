/**
 * A member of a network list: what a runtime reads of its object, and the request that its plugin is sent. `chain`
 * reads its own members the same way.
 */
import { isObject, kindOf, lookup } from "./decode.ts";
import type { JsonObject, ValidAttachment } from "./types.ts";
import { goJson, readDns } from "./version.ts";

/** One plugin of a list. */
export interface Member {
  /** CNI type: the name of the plugin's file. */
  readonly type: string;
  /** The member's own `name`, which no plugin sees, but error texts do; "" when it has none. */
  readonly name: string;
  /** Capabilities that are declared and switched on. */
  readonly capabilities: readonly string[];
  /** The object as written. */
  readonly config: JsonObject;
  /** The file it came from, where that is not the list's own. */
  readonly file?: string;
}

/**
 * A configuration that cannot be used; `file` is "" when the text came from elsewhere. The message is the reference's.
 */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
  constructor(message: string, readonly file = "") {
    super(message);
  }
}

const SINGLE = "error parsing configuration: ";

/** Reads the parts of a member that the runtime looks at, with the types that the reference demands. */
export function memberOf(source: unknown, file?: string): Member {
  const config = source ?? {};
  if (!isObject(config)) {
    throw new ConfigError(`${SINGLE}json: cannot unmarshal ${kindOf(config)} into Go value of type types.PluginConf`);
  }
  const type = textOf(config, "type");
  textOf(config, "cniVersion");
  const name = textOf(config, "name");
  const ipam = recordOf(config, "ipam", "types.IPAM");
  if (ipam) textOf(ipam, "type", "ipam.type");
  recordOf(config, "prevResult", "map[string]interface {}");
  const declared = recordOf(config, "capabilities", "map[string]bool") ?? {};
  const capabilities: string[] = [];
  for (const [key, value] of Object.entries(declared)) {
    if (value !== null && typeof value !== "boolean") throw wrongType(value, "capabilities", "bool");
    if (value === true) capabilities.push(key);
  }
  try {
    readDns(lookup(config, "dns"));
  } catch (error) {
    throw new ConfigError(`${SINGLE}${(error as Error).message}`);
  }
  if (type === "") throw new ConfigError(`${SINGLE}missing 'type'`);
  return { type, name, capabilities, config, ...(file !== undefined && { file }) };
}

function wrongType(value: unknown, path: string, wanted: string): ConfigError {
  return new ConfigError(
    `${SINGLE}json: cannot unmarshal ${kindOf(value)} into Go struct field PluginConf.${path} of type ${wanted}`,
  );
}

export function textOf(source: JsonObject, key: string, path = key): string {
  const value = lookup(source, key) ?? "";
  if (typeof value !== "string") throw wrongType(value, path, "string");
  return value;
}

function recordOf(source: JsonObject, key: string, wanted: string): JsonObject | undefined {
  const value = lookup(source, key) ?? undefined;
  if (value !== undefined && !isObject(value)) throw wrongType(value, key, wanted);
  return value;
}

/** The type of a member that holds members of its own. */
export const CHAIN = "chain";

/** A mistake in one member of a chain: its place, from 0, and its type, "" when it has none. */
export class ChainError extends ConfigError {
  constructor(message: string, readonly index: number, readonly type: string) {
    super(`plugins.${index}${type === "" ? "" : ` (${type})`}: ${message}`);
  }
}

/** Members of a chain, or what is wrong with each; `args` of the chain is for those that have none. */
export function chainMembers(config: JsonObject): (Member | ChainError)[] {
  const [plugins, args] = [lookup(config, "plugins"), lookup(config, "args")];
  if (!Array.isArray(plugins) || plugins.length === 0) {
    throw new ConfigError('"plugins" has to list at least one plugin');
  }
  return plugins.map((source, index) => {
    const type = isObject(source) ? lookup(source, "type") : undefined;
    const wrong = (message: string) => new ChainError(message, index, typeof type === "string" ? type : "");
    if (type === CHAIN) return wrong("a chain cannot hold another chain");
    if (!isObject(source)) return wrong(`${kindOf(source)} instead of a plugin's configuration`);
    try {
      const member = memberOf(source);
      return args === undefined || lookup(source, "args") ? member : { ...member, config: { ...source, args } };
    } catch (error) {
      return wrong((error as Error).message);
    }
  });
}

/**
 * A member of a list as the plugins that carry it out: those of a chain with what a runtime hands to them through it.
 */
export function flattened(member: Member): Member[] {
  if (member.type !== CHAIN) return [member];
  return chainMembers(member.config).map((one) => {
    if (one instanceof ChainError) throw one;
    return { ...one, capabilities: one.capabilities.filter((key) => member.capabilities.includes(key)) };
  });
}

/** What is put into a member's request besides its name and version. */
export interface Injection {
  /** The previous result, as the plugin that made it printed it. */
  readonly prevResult?: JsonObject | undefined;
  /** Everything the caller offers; what the member declares gets through. */
  readonly capabilityArgs?: JsonObject | undefined;
  /** For GC: attachments to keep. */
  readonly valid?: readonly ValidAttachment[] | undefined;
}

/** The bytes that a member is sent: its object, with name, version and what the call adds, keys sorted. */
export function requestOf(
  list: { readonly name: string; readonly version: string },
  member: Member,
  injection: Injection = {},
): Uint8Array {
  const { prevResult, capabilityArgs = {}, valid } = injection;
  const request: JsonObject = { ...member.config, name: list.name, cniVersion: list.version };
  if (prevResult) request["prevResult"] = new Verbatim(prevResult);
  const granted = member.capabilities.filter((key) => Object.hasOwn(capabilityArgs, key));
  if (granted.length > 0) {
    request["runtimeConfig"] = Object.fromEntries(granted.map((key) => [key, capabilityArgs[key]]));
  }
  if (valid) {
    const kept = valid.map(({ containerID, ifname }) => new Verbatim({ containerID, ifname }));
    request["cni.dev/valid-attachments"] = kept;
    // The name of an early draft, which older plugins read.
    request["cni.dev/attachments"] = kept;
  }
  return new TextEncoder().encode(sortedJson(request));
}

/** An object whose keys keep their order in {@linkcode sortedJson}. */
export class Verbatim {
  constructor(readonly value: JsonObject) {}
}

/** Compact JSON with the keys of every object sorted bytewise, as the reference library prints untyped objects. */
export function sortedJson(value: unknown): string {
  if (value instanceof Verbatim) return goJson(value.value);
  if (Array.isArray(value)) return `[${value.map(sortedJson).join(",")}]`;
  if (!isObject(value)) return goJson(value ?? null);
  const parts: string[] = [];
  for (const key of Object.keys(value).sort(byBytes)) {
    if (value[key] !== undefined) parts.push(`${goJson(key)}:${sortedJson(value[key])}`);
  }
  return `{${parts.join(",")}}`;
}

/** Order of UTF-8 bytes, which is that of code points. */
export function byBytes(a: string, b: string): number {
  const [left, right] = [[...a], [...b]];
  for (let i = 0; i < left.length && i < right.length; i++) {
    const difference = (left[i]?.codePointAt(0) ?? 0) - (right[i]?.codePointAt(0) ?? 0);
    if (difference !== 0) return difference;
  }
  return left.length - right.length;
}
