/**
 * Results on disk, in the reference library's own files: runtimes, cnitool and cnibox see each other's attachments.
 * One file per attachment: `<folder>/<network>-<containerID>-<ifname>`.
 */
// This engine has no Uint8Array.toBase64 yet.
import { decodeBase64, encodeBase64 } from "@std/encoding/base64";
import { namesOf, readRegularText, usable } from "../kernel/regular_file.ts";
import type { NetworkList } from "./conflist.ts";
import { byBytes, sortedJson } from "./member.ts";
import { isObject } from "./decode.ts";
import { CniError, goQuote } from "./error.ts";
import type { JsonObject } from "./types.ts";
import { convertResult, goJson, isKnownVersion, parseResult } from "./version.ts";

/** Where the reference library keeps results. */
export const CACHE_FOLDER = "/var/lib/cni/results";

const KIND = "cniCacheV1";

/** What a runtime knows of one attachment. */
export interface Attached {
  readonly network: string;
  readonly containerId: string;
  readonly ifName: string;
  readonly netns: string;
  readonly args: readonly (readonly [string, string])[];
  readonly capabilityArgs: JsonObject;
}

/** An attachment as found on disk. */
export interface Cached extends Attached {
  /** The list as it was when the attachment was made: its bytes. */
  readonly config: Uint8Array;
  /** The final result as its plugin printed it, keys sorted; undefined when the file holds none. */
  readonly result?: JsonObject;
  readonly file: string;
  /** When the file was written; undefined where the file system cannot tell. */
  readonly written?: Date;
}

/** Which attachment: the three parts of the file's name. */
export type Key = Pick<Attached, "network" | "containerId" | "ifName">;

/** Path of the file. Throws the reference's complaint when a part is empty. */
export function cachePath(folder: string, { network, containerId, ifName }: Key): string {
  if (network === "" || containerId === "" || ifName === "") {
    throw new Error(
      `cache file path requires network name (${goQuote(network)}), container ID (${goQuote(containerId)}), ` +
        `and interface name (${goQuote(ifName)})`,
    );
  }
  return `${folder}/${network}-${containerId}-${ifName}`;
}

/** The file's content: compact JSON with the reference's order of keys. */
export function cacheText(list: NetworkList, attached: Attached, result: JsonObject): string {
  const { network, containerId, ifName, netns, args, capabilityArgs } = attached;
  const parts = [
    `"kind":"${KIND}"`,
    `"containerId":${goJson(containerId)}`,
    `"config":"${encodeBase64(list.bytes)}"`,
    `"ifName":${goJson(ifName)}`,
    `"networkName":${goJson(network)}`,
  ];
  if (netns !== "") parts.push(`"netns":${goJson(netns)}`);
  if (args.length > 0) parts.push(`"cniArgs":${goJson(args)}`);
  if (Object.keys(capabilityArgs).length > 0) parts.push(`"capabilityArgs":${sortedJson(capabilityArgs)}`);
  if (Object.keys(result).length > 0) parts.push(`"result":${sortedJson(result)}`);
  return `{${parts.join(",")}}`;
}

/** Writes the file, whole or not at all. */
export function writeCache(folder: string, list: NetworkList, attached: Attached, result: JsonObject): void {
  const path = cachePath(folder, attached);
  Deno.mkdirSync(folder, { recursive: true, mode: 0o700 });
  const draft = `${folder}/.${crypto.randomUUID()}.draft`;
  try {
    Deno.writeTextFileSync(draft, cacheText(list, attached, result), { mode: 0o600, createNew: true });
    Deno.renameSync(draft, path);
  } catch (error) {
    remove(draft);
    throw error;
  }
}

/** Removes the file; that it is not there, or cannot be removed, is of no consequence. */
export function removeCache(folder: string, key: Key): void {
  remove(cachePath(folder, key));
}

function remove(path: string): void {
  try {
    Deno.removeSync(path);
  } catch {
    // Not there, or not ours to remove.
  }
}

/**
 * Reads a cache file; undefined when there is none, or when it is not one. `warn` is told of what nobody should have
 * put there.
 */
export function readCache(file: string, warn: (note: string) => void = () => {}): Cached | undefined {
  let source: unknown;
  let written: Date | null;
  try {
    const text = usable(() => readRegularText(file), warn);
    if (text === undefined) return undefined;
    source = JSON.parse(text);
    written = Deno.lstatSync(file).mtime;
  } catch {
    return undefined;
  }
  if (!isObject(source) || source["kind"] !== KIND) return undefined;
  const text = (key: string) => typeof source[key] === "string" ? source[key] : "";
  const [ifName, network] = [text("ifName"), text("networkName")];
  if (ifName === "" || network === "") return undefined;
  const { cniArgs, capabilityArgs, result } = source;
  return {
    network,
    containerId: text("containerId"),
    ifName,
    netns: text("netns") || sandboxOf(result),
    args: Array.isArray(cniArgs) ? cniArgs.filter(isPair) : [],
    capabilityArgs: isObject(capabilityArgs) ? capabilityArgs : {},
    config: bytesOf(text("config")),
    ...(isObject(result) && { result }),
    file,
    ...(written && { written }),
  };
}

/** What base64 stands for; nothing where it is broken: the rest of the file still tells what is attached. */
function bytesOf(base64: string): Uint8Array {
  try {
    return decodeBase64(base64);
  } catch {
    return new Uint8Array();
  }
}

/** Older libraries do not write the namespace down, but their results name it. */
function sandboxOf(result: unknown): string {
  const interfaces = isObject(result) && Array.isArray(result["interfaces"]) ? result["interfaces"] : [];
  const paths = interfaces.map((one) => isObject(one) && typeof one["sandbox"] === "string" ? one["sandbox"] : "");
  return paths.find((path) => path !== "") ?? "";
}

function isPair(value: unknown): value is [string, string] {
  return Array.isArray(value) && value.length === 2 && value.every((part) => typeof part === "string");
}

/** Every attachment on disk, sorted by file name; what is not one is skipped. */
export function listAttachments(folder: string, warn: (note: string) => void = () => {}): Cached[] {
  return namesOf(folder).sort(byBytes).map((name) => readCache(`${folder}/${name}`, warn)).filter((one) =>
    one !== undefined
  );
}

/**
 * The result of an attachment in the layout of `version`, for `prevResult`. Undefined when there is no file. Throws
 * when the content cannot be used; a file of an unknown kind is read as a bare result, which is what runtimes wrote
 * before the cache had a format.
 */
export function cachedResult(folder: string, key: Key, version: string): JsonObject | undefined {
  let text: string;
  try {
    text = readRegularText(cachePath(folder, key));
  } catch (error) {
    if (error instanceof Error && error.message.startsWith("cache file path")) throw error;
    return undefined;
  }
  let source: unknown;
  try {
    source = JSON.parse(text);
  } catch (error) {
    throw new Error(`decoding version from network config: ${(error as Error).message}`);
  }
  const bare = isObject(source) && source["kind"] === KIND ? source["result"] ?? {} : source;
  if (!isObject(bare)) throw new Error("decoding version from network config: the result is not an object");
  const own = bare["cniVersion"];
  const from = typeof own === "string" && own !== "" ? own : "0.1.0";
  if (!isKnownVersion(from)) throw new Error(`unsupported CNI result version ${goQuote(from)}`);
  try {
    return printed(bare, from, version);
  } catch (error) {
    const reason = error instanceof CniError ? error.msg : (error as Error).message;
    throw new Error(`failed to convert cached result to config version ${goQuote(version)}: ${reason}`);
  }
}

const OLD = ["", "0.1.0", "0.2.0"];

/** A result as its plugin printed it in the layout of another version. */
export function printed(source: JsonObject, from: string, to: string): JsonObject {
  const result = parseResult(source, from);
  // A result without addresses can be neither made nor refused by those who only hand it on.
  if (OLD.includes(from) && OLD.includes(to) && !result.ips?.length) {
    return { cniVersion: to === "" ? "0.1.0" : to, dns: result.dns ?? {} };
  }
  return convertResult(result, to);
}
