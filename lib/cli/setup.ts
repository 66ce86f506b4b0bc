/** From flags and environment to what a command works with: folders, networks, namespaces, attachments. */

import {
  extensionOf,
  listOfSingle,
  loadNetwork,
  type NetworkList,
  parseList,
  UnknownNetwork,
} from "../cni/conflist.ts";
import type { ConfigError } from "../cni/member.ts";
import { CACHE_FOLDER, type Cached, listAttachments } from "../cni/result_cache.ts";
import { lockFile } from "../kernel/lock_file.ts";
import { holderOf } from "../kernel/lock_holder.ts";
import { fileIdentity } from "../kernel/proc.ts";
import { exists, readRegularText, removeIfThere, systemWords, UnusableFile } from "../kernel/regular_file.ts";
import { netnsState } from "../kernel/netns.ts";
import { CommandError } from "../kernel/run.ts";
import { isOwnFolder, notAlone, RUN_FOLDER } from "../kernel/run_folder.ts";
import { sha512 } from "../net/sha512.ts";
import { isObject, lookup } from "../cni/decode.ts";
import type { JsonObject } from "../cni/types.ts";
import { CliError, type CommandCall, didYouMean, status, usageError } from "./command.ts";
import { JsonError, parseJsonc, positionOf, valueOf } from "./jsonc.ts";
import { complain, oneLine } from "./terminal.ts";

/** Where things are on the node; `--root` puts all of them below a folder. */
export interface Folders {
  readonly conf: string;
  readonly cache: string;
  /** Leases of host-local. */
  readonly data: string;
  /** Plugins. */
  readonly path: readonly string[];
  /** Was the plugin path left to us? */
  readonly pathGiven: boolean;
  readonly root: string;
}

/** Folder of configurations when nobody says otherwise. */
export const CONF_FOLDER = "/etc/cni/net.d";
/** Folder of plugins when nobody says otherwise. */
export const PLUGIN_FOLDER = "/opt/cni/bin";
/** Folder of host-local's leases when the configuration does not say. */
export const DATA_FOLDER = "/var/lib/cni/networks";

const env = (name: string) => Deno.env.get(name) ?? "";

/** The folders of a call: flags first, then cnitool's variables, then the usual places. */
export function foldersOf(call: CommandCall): Folders {
  const root = (call.value("root") ?? "").replace(/\/+$/, "");
  const path = call.value("cni-path") ?? env("CNI_PATH");
  return {
    root,
    conf: trimmed(call.value("conf-dir") ?? (env("NETCONFPATH") || `${root}${CONF_FOLDER}`)),
    cache: trimmed(call.value("cache-dir") ?? `${root}${CACHE_FOLDER}`),
    data: trimmed(call.value("data-dir") ?? `${root}${DATA_FOLDER}`),
    path: path === "" ? [`${root}${PLUGIN_FOLDER}`] : path.split(":"),
    pathGiven: path !== "",
  };
}

function trimmed(folder: string): string {
  return folder.length > 1 ? folder.replace(/\/+$/, "") : folder;
}

const noted = new Set<string>();

/** A note that is no failure; said once, however often it is found. */
export function note(text: string): void {
  if (noted.has(text)) return;
  noted.add(text);
  complain(`cnibox: ${oneLine(text)}\n`);
}

/** Finds a network by its name; broken files beside it are skipped with a note. */
export function networkNamed(name: string, folders: Folders): NetworkList {
  const broken: ConfigError[] = [];
  try {
    const list = loadNetwork(folders.conf, name, { onBroken: (error) => broken.push(error) });
    for (const error of broken) note(`skipped ${error.file}: ${error.message}; a runtime would stop there`);
    return list;
  } catch (error) {
    if (!(error instanceof UnknownNetwork)) throw error;
    throw new CliError(error.message, status.unknown, [
      ...didYouMean(name, error.known),
      ...(error.known.length > 0 ? [`networks there: ${error.known.join(", ")}`] : []),
      ...broken.map((one) => `not readable: ${one.file}: ${one.message}`),
      ...(error.known.length + broken.length === 0
        ? ["--conf-dir FOLDER or --conf FILE names another place for configurations"]
        : []),
    ]);
  }
}

/** The network's configuration, or what it was when this attachment was made. */
export function networkOrCached(name: string, known: Cached | undefined, folders: Folders): NetworkList {
  try {
    return networkNamed(name, folders);
  } catch (error) {
    if (!known || known.config.length === 0) throw error;
    const list = parseList(known.config);
    if (list.plugins.length === 0) throw error;
    note(`${(error as Error).message}: taking the configuration kept in ${known.file}`);
    return list;
  }
}

/** Reads a file of `--conf`: a list or a single configuration, comments allowed, whatever its name. */
export function networkOfFile(file: string): NetworkList {
  const text = readText(file);
  const { root, extras } = parseText(file, text);
  const source = valueOf(root);
  const bytes = new TextEncoder().encode(extras.length > 0 ? JSON.stringify(source) : text);
  const isList = isObject(source) &&
    ("plugins" in source || (!("type" in source) && extensionOf(file) === ".conflist"));
  const list = isList ? parseList(bytes, file) : listOfSingle(bytes, file);
  if (list.plugins.length === 0) throw new CliError(`${file}: no plugin configs found`, status.badData);
  return list;
}

/** Reads a file's text as JSON with comments; a mistake is told with its place in the file. */
export function parseText(file: string, text: string): ReturnType<typeof parseJsonc> {
  try {
    return parseJsonc(text);
  } catch (error) {
    if (!(error instanceof JsonError)) throw error;
    const { line, column } = positionOf(text, error.at);
    throw new CliError(`${file}:${line}:${column}: ${error.message}`, status.badData, [error.advice]);
  }
}

/** Text of a file that was found in a folder. */
export function readFound(file: string): string {
  try {
    return readRegularText(file, { links: true });
  } catch (error) {
    throw fileError(file, error);
  }
}

/** Text of a regular file; undefined when there is none, something else in its place, or it may not be read. */
export function readIfUsable(file: string, options: { readonly links?: boolean } = {}): string | undefined {
  try {
    return readRegularText(file, options);
  } catch {
    return undefined;
  }
}

/** Text of a file that a person named, which may be a pipe; `-` is standard input. */
export function readText(file: string): string {
  try {
    return file === "-" ? inputText() : Deno.readTextFileSync(file);
  } catch (error) {
    throw fileError(file, error);
  }
}

function inputText(): string {
  const [decoder, buffer] = [new TextDecoder(), new Uint8Array(64 * 1024)];
  let text = "";
  for (let count = Deno.stdin.readSync(buffer); count !== null; count = Deno.stdin.readSync(buffer)) {
    text += decoder.decode(buffer.subarray(0, count), { stream: true });
  }
  return text + decoder.decode();
}

/** What went wrong with a file, as an error for people. */
export function fileError(file: string, error: unknown): CliError {
  if (error instanceof Deno.errors.NotFound) return new CliError(`${file}: no such file or folder`, status.unknown);
  if (error instanceof UnusableFile) return new CliError(`${error.path}: it is ${error.what}`, status.failed);
  if (error instanceof Deno.errors.PermissionDenied) {
    return new CliError(`${file}: permission denied`, status.noRights, ["run this command as root"]);
  }
  return new CliError(`${file}: ${systemWords(error)}`, status.failed);
}

/** Makes a file that appears whole or not at all: `write` gets the path of a draft, of which nothing ever stays. */
export async function writeWhole(file: string, write: (draft: string) => Promise<unknown> | unknown): Promise<void> {
  const draft = `${file}.draft-${Deno.pid}`;
  try {
    Deno.openSync(draft, { write: true, createNew: true }).close();
    try {
      await write(draft);
      Deno.renameSync(draft, file);
    } finally {
      removeIfThere(draft);
    }
  } catch (error) {
    throw error instanceof CommandError ? error : fileError(file, error);
  }
}

/** Networks and namespace of a call whose arguments are `NETWORK… NETNS`, with or without `--conf`. */
export function networksOf(call: CommandCall, words: string | undefined, folders: Folders): NetworkList[] {
  const file = call.value("conf");
  if (file === undefined) {
    if (words === undefined) throw usageError("NETWORK is missing", "or name a file: --conf FILE");
    return words.split(",").map((name) => networkNamed(name, folders));
  }
  const list = networkOfFile(file);
  if (words !== undefined && words !== list.name) {
    throw usageError(`${file} holds network "${list.name}", not "${words}"`);
  }
  return [list];
}

/** Type of a member's IPAM plugin; "" when it has none. */
export function ipamType(config: JsonObject): string {
  const ipam = lookup(config, "ipam");
  const type = isObject(ipam) ? lookup(ipam, "type") : undefined;
  return typeof type === "string" ? type : "";
}

/** Refuses to go on without root; `why` says what for. */
export function needRoot(call: CommandCall, why: string): void {
  if (Deno.uid() === 0) return;
  throw new CliError(`${call.command.name} needs root: ${why}`, status.noRights, [
    `sudo cnibox ${call.command.name} …`,
    "or, to try things out: unshare -Urnm, which makes you root of namespaces of your own",
  ]);
}

/** Folder in which `ip netns` keeps its namespaces. */
export const NETNS_FOLDER = "/run/netns";

/** Path of a namespace: `pid:N`, a path, or a name below /run/netns. Does not look whether it is there. */
export function netnsPath(word: string): string {
  const pid = /^pid:(.*)$/s.exec(word)?.[1];
  if (pid !== undefined) {
    if (!/^[1-9]\d{0,9}$/.test(pid)) throw usageError(`NETNS "${word}": a process is named like pid:1234`);
    return `/proc/${pid}/ns/net`;
  }
  if (word === "") throw usageError("NETNS is empty", "a path, a name below /run/netns, or pid:N");
  if (!word.includes("/")) return `${NETNS_FOLDER}/${word}`;
  return cleaned(word.startsWith("/") ? word : `${Deno.cwd()}/${word}`);
}

/** Path without `//`, `.` and `..`, as text: no file is looked at. */
export function cleaned(path: string): string {
  const parts: string[] = [];
  for (const part of path.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== "" && part !== ".") parts.push(part);
  }
  return `/${parts.join("/")}`;
}

/** The nearest folder above a path that is there, or the path itself. */
export function nearestExisting(path: string): string {
  let at = path;
  while (at !== "" && !exists(at, { links: true })) at = at.slice(0, at.lastIndexOf("/"));
  return at || "/";
}

/** What is in a folder; nothing where it cannot be read. */
export function entriesOf(folder: string): Deno.DirEntry[] {
  try {
    return [...Deno.readDirSync(folder)];
  } catch {
    return [];
  }
}

/** Names below /run/netns. */
export function netnsNames(): string[] {
  return entriesOf(NETNS_FOLDER).map(({ name }) => name).sort();
}

/** Makes sure that a namespace is there and is not this machine's own. */
export function needNetns(word: string, path: string): void {
  const state = netnsState(path);
  if (state === "netns") return;
  if (state === "own") {
    const advice = "name the container's namespace: a path, a name below /run/netns, or pid:N";
    throw usageError(`${word} is the host's own network namespace; nothing was changed`, advice);
  }
  const names = netnsNames();
  if (state === "missing") {
    throw new CliError(`no network namespace at ${path}`, status.unknown, [
      ...(word.includes("/") ? [] : didYouMean(word, names)),
      ...(word.startsWith("pid:") ? ["there is no such process"] : []),
      names.length > 0 ? `namespaces in ${NETNS_FOLDER}: ${names.join(", ")}` : "ip netns add NAME makes one",
    ]);
  }
  const advice = "a namespace is a file such as /run/netns/NAME or /proc/PID/ns/net";
  throw usageError(`${path} is not a network namespace`, advice);
}

/** Are two paths the same namespace? */
export function sameNetns(a: string, b: string): boolean {
  try {
    const [left, right] = [fileIdentity(a), fileIdentity(b)];
    return left.dev === right.dev && left.ino === right.ino;
  } catch {
    return false;
  }
}

/** The container ID that cnitool gives to a namespace: either finds what the other attached. */
export function idOfNetns(path: string): string {
  return `cnitool-${sha512(path).slice(0, 20)}`;
}

/** CNI_ARGS as pairs, read as cnitool does. */
export function cniArgs(text: string): [string, string][] {
  if (text === "") return [];
  return text.split(";").map((pair) => {
    const parts = pair.split("=");
    const [key = "", value = ""] = parts;
    if (parts.length !== 2 || key === "" || value === "") {
      throw new CliError(`invalid CNI_ARGS pair "${pair}"`, status.badData, ["CNI_ARGS is KEY=VALUE;KEY=VALUE"]);
    }
    return [key, value];
  });
}

/** Pairs of the environment and of `--arg`. */
export function argsOf(call: CommandCall): [string, string][] {
  return [
    ...cniArgs(env("CNI_ARGS")),
    ...call.values("arg").flatMap((pair) => {
      if (!/^[^=;]+=[^=;]+$/.test(pair)) throw usageError(`--arg "${pair}": write KEY=VALUE`);
      return cniArgs(pair);
    }),
  ];
}

/** Interface names of several networks: eth0, eth1, …; the first is given. */
export function ifNames(first: string, count: number): string[] {
  const [, stem = first, digits] = /^(.*?)(\d+)$/.exec(first) ?? [];
  return Array.from(
    { length: count },
    (_, i) => i === 0 ? first : digits === undefined ? `${first}${i}` : `${stem}${Number(digits) + i}`,
  );
}

/** Interface name of a call: the flag, then cnitool's variable, then eth0. */
export function ifNameOf(call: CommandCall): string {
  return call.value("ifname") ?? (env("CNI_IFNAME") || "eth0");
}

/** Attachments on disk of one container, or all of them. */
export function attachmentsOf(folders: Folders, containerId?: string): Cached[] {
  try {
    const all = listAttachments(folders.cache, note);
    return containerId === undefined ? all : all.filter((one) => one.containerId === containerId);
  } catch (error) {
    throw fileError(folders.cache, error);
  }
}

/** What `read` gives; where a user other than root may not read it undefined, and `blind` is told. */
export function ifAllowed<T>(what: string, read: () => T, blind: (text: string) => void): T | undefined {
  try {
    return read();
  } catch (error) {
    if (Deno.uid() === 0) throw error;
    blind(`${what} cannot be read without root`);
  }
}

/** Waits until nobody else on this node does the same; closing the file lets others go on. */
export async function onlyOne(name: string, doing: string): Promise<Deno.FsFile> {
  if (!isOwnFolder(RUN_FOLDER)) throw new CliError(notAlone(RUN_FOLDER), status.failed);
  const path = `${RUN_FOLDER}/${name}.lock`;
  const file = await lockFile(path, 20_000);
  if (file) return file;
  throw new CliError(`another ${doing} is at work`, status.tryAgain, [
    `${path} is ${holderOf(fileIdentity(path).ino ?? 0)}`,
  ]);
}

/** Seconds of `--timeout`. */
export function timeoutMs(call: CommandCall): number | undefined {
  const text = call.value("timeout");
  if (text === undefined) return undefined;
  const seconds = Number(text);
  if (!/^\d+(\.\d+)?$/.test(text) || seconds <= 0 || seconds > 86_400) {
    throw usageError(`--timeout "${text}": write seconds, such as 30`);
  }
  return seconds * 1000;
}
