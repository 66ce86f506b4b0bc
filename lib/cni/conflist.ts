/**
 * Network configuration as a runtime sees it: lists and single configurations, loaded from a folder with the reference
 * library's rules and words, and the request that each member of a list is sent.
 */
import { readRegular, systemWords } from "../kernel/regular_file.ts";
import { isObject, kindOf } from "./decode.ts";
import { CniError, goQuote } from "./error.ts";
import { byBytes, ConfigError, flattened, type Member, memberOf, sortedJson, textOf } from "./member.ts";
import type { JsonObject } from "./types.ts";
import { NEWEST } from "./types.ts";
import { versionParts } from "./version.ts";

/** A network: what is attached to, plugin by plugin; the members of a `chain` stand in its place. */
export interface NetworkList {
  readonly name: string;
  /** The version that is spoken: the highest of `cniVersions` and `cniVersion`; "" means 0.1.0. */
  readonly version: string;
  readonly disableCheck: boolean;
  readonly disableGC: boolean;
  readonly loadOnlyInlinedPlugins: boolean;
  readonly plugins: readonly Member[];
  /** As loaded: what the result cache keeps. */
  readonly bytes: Uint8Array;
  /** Where it was read; "" when it came from elsewhere. */
  readonly file: string;
  /** A file of one plugin without a list around it. */
  readonly single: boolean;
}

/** No network of that name; `known` are those that there are. */
export class UnknownNetwork extends ConfigError {
  constructor(message: string, readonly folder: string, readonly known: readonly string[]) {
    super(message);
  }
}

const LIST = "error parsing configuration list: ";
const SINGLE = "error parsing configuration: ";
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** Name of a value's type in the reference's messages. */
function goType(value: unknown): string {
  if (value === null) return "<nil>";
  if (Array.isArray(value)) return "[]interface {}";
  if (typeof value === "object") return "map[string]interface {}";
  if (typeof value === "number") return "float64";
  return typeof value === "boolean" ? "bool" : "string";
}

function parseJson(bytes: Uint8Array, doing: string): unknown {
  try {
    return JSON.parse(decoder.decode(bytes));
  } catch (error) {
    const words = (error as Error).message;
    const reason = /end of JSON input|Unterminated/.test(words) ? `unexpected end of JSON input` : words;
    throw new ConfigError(`${doing}${reason}`);
  }
}

/** Reads a list from its text; members of a sibling folder are not looked for. Throws {@linkcode ConfigError}. */
export function parseList(bytes: Uint8Array, file = ""): NetworkList {
  const source = parseJson(bytes, LIST) ?? {};
  if (!isObject(source)) {
    throw new ConfigError(
      `${LIST}json: cannot unmarshal ${kindOf(source)} into Go value of type map[string]interface {}`,
    );
  }
  if (!("name" in source)) throw new ConfigError(`${LIST}no name`);
  const { name } = source;
  if (typeof name !== "string") throw new ConfigError(`${LIST}invalid name type ${goType(name)}`);
  const version = chosenVersion(source);
  const disableCheck = listFlag(source, "disableCheck");
  const disableGC = listFlag(source, "disableGC");
  const loadOnlyInlinedPlugins = listFlag(source, "loadOnlyInlinedPlugins");
  const list = { name, version, disableCheck, disableGC, loadOnlyInlinedPlugins, bytes, file, single: false };
  if (!("plugins" in source)) {
    if (loadOnlyInlinedPlugins) {
      throw new ConfigError(`${LIST}\`loadOnlyInlinedPlugins\` is true, and no 'plugins' key`);
    }
    return { ...list, plugins: [] };
  }
  const { plugins } = source;
  if (!Array.isArray(plugins)) throw new ConfigError(`${LIST}invalid 'plugins' type ${goType(plugins)}`);
  if (plugins.length === 0) throw new ConfigError(`${LIST}no plugins in list`);
  return {
    ...list,
    plugins: plugins.flatMap((plugin, index) => {
      try {
        return flattened(memberOf(plugin));
      } catch (error) {
        throw new ConfigError(`failed to parse plugin config ${index}: ${(error as Error).message}`);
      }
    }),
  };
}

function chosenVersion(source: JsonObject): string {
  const version = "cniVersion" in source ? source["cniVersion"] : "";
  if (typeof version !== "string") throw new ConfigError(`${LIST}invalid cniVersion type ${goType(version)}`);
  if (!("cniVersions" in source)) return version;
  const given = source["cniVersions"];
  if (!Array.isArray(given)) throw new ConfigError(`${LIST}invalid type for cniVersions: []interface {}`);
  const candidates: string[] = [];
  given.forEach((one, index) => {
    if (typeof one !== "string") {
      throw new ConfigError(`${LIST}invalid type for cniVersions index ${index}: ${goType(one)}`);
    }
    if (!isNewerThan(one, NEWEST, `invalid cniVersions entry ${one} at index ${index}`)) candidates.push(one);
  });
  if (version !== "" && !isNewerThan(version, NEWEST, `invalid cniVersion ${version}`)) candidates.push(version);
  let highest: string | undefined;
  for (const one of candidates) if (highest === undefined || !isNewerThan(highest, one, "")) highest = one;
  return highest ?? version;
}

function isNewerThan(version: string, other: string, doing: string): boolean {
  try {
    const [a, b] = [versionParts(version), versionParts(other)];
    for (let i = 0; i < 3; i++) if (a[i] !== b[i]) return (a[i] ?? 0) > (b[i] ?? 0);
    return false;
  } catch (error) {
    throw new ConfigError(`${LIST}${doing}: ${error instanceof CniError ? error.msg : (error as Error).message}`);
  }
}

function listFlag(source: JsonObject, key: string): boolean {
  if (!(key in source)) return false;
  const value = source[key];
  if (typeof value === "boolean") return value;
  if (typeof value !== "string") throw new ConfigError(`${LIST}invalid type ${goType(value)} for ${key}`);
  const word = value.toLowerCase();
  if (word !== "true" && word !== "false") {
    throw new ConfigError(`${LIST}invalid value ${goQuote(word)} for ${key}`);
  }
  return word === "true";
}

/** Reads a file of one plugin; members of a sibling folder are such files too. */
export function parseMember(bytes: Uint8Array, file?: string): Member {
  return memberOf(parseJson(bytes, SINGLE), file);
}

/** A list around a single plugin's configuration, as the reference library makes one. */
export function listOfSingle(bytes: Uint8Array, file = ""): NetworkList {
  const member = parseMember(bytes);
  const wrapped = {
    cniVersion: textOf(member.config, "cniVersion"),
    name: member.name,
    plugins: [member.config],
  };
  return { ...parseList(new TextEncoder().encode(sortedJson(wrapped)), file), single: true };
}

/** Files of a folder with one of these extensions (`.conflist`), sorted by name; none when there is no such folder. */
export function configFiles(folder: string, extensions: readonly string[]): string[] {
  let entries: Deno.DirEntry[];
  try {
    entries = [...Deno.readDirSync(folder)];
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return [];
    throw new ConfigError(`open ${folder}: ${systemWords(error)}`, folder);
  }
  // A symlink counts as a file, whatever it leads to.
  return entries.filter((entry) => !entry.isDirectory && extensions.includes(extensionOf(entry.name)))
    .map((entry) => `${folder.replace(/\/+$/, "")}/${entry.name}`)
    .sort(byBytes);
}

/** The text from the last dot on; a file named just `.conf` has that extension. */
export function extensionOf(name: string): string {
  const at = name.lastIndexOf(".");
  return at < 0 ? "" : name.slice(at);
}

function readFile(file: string): Uint8Array {
  try {
    // Configurations may be links: that is how volumes of Kubernetes are made.
    return readRegular(file, { links: true });
  } catch (error) {
    throw new ConfigError(`error reading ${file}: ${systemWords(error)}`, file);
  }
}

/** Reads one file by its extension: `.conflist` is a list, anything else a single plugin's configuration. */
export function loadFile(file: string): NetworkList {
  return inFile(file, () => {
    const bytes = readFile(file);
    if (extensionOf(file.slice(file.lastIndexOf("/") + 1)) !== ".conflist") return listOfSingle(bytes, file);
    return withSiblings(parseList(bytes, file), file);
  });
}

/** Adds the members that lie in the folder named after the network, beside the list's file. */
export function withSiblings(list: NetworkList, file: string): NetworkList {
  const folder = file.includes("/") ? file.slice(0, file.lastIndexOf("/")) : ".";
  let { plugins } = list;
  if (!list.loadOnlyInlinedPlugins && list.name !== "") {
    const others = configFiles(`${folder}/${list.name}`, [".conf"]);
    plugins = [...plugins, ...others.map((other) => inFile(other, () => parseMember(readFile(other), other)))];
  }
  if (plugins.length === 0) throw new ConfigError("no plugin configs found", file);
  return { ...list, plugins };
}

/** Does what may find a mistake in a file's text: the error then names the file. */
export function inFile<T>(file: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (error instanceof ConfigError && error.file === "") throw new ConfigError(error.message, file);
    throw error;
  }
}

/** Extensions of single configurations. */
const SINGLES = [".conf", ".json"];

/** What a folder holds: usable networks in the order in which they are looked for, and what could not be read. */
export interface Networks {
  readonly lists: readonly NetworkList[];
  readonly broken: readonly ConfigError[];
}

/** Reads a whole folder, going on past what is broken. */
export function loadAll(folder: string): Networks {
  const lists: NetworkList[] = [];
  const broken: ConfigError[] = [];
  for (const file of [...configFiles(folder, [".conflist"]), ...configFiles(folder, SINGLES)]) {
    try {
      lists.push(loadFile(file));
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      broken.push(error);
    }
  }
  return { lists, broken };
}

/**
 * Finds a network by its name: lists first, then single configurations, each in the order of file names. As in the
 * reference, a file that is broken ends the search, also when it describes another network; with `onBroken` it is
 * reported there and the search goes on.
 */
export function loadNetwork(
  folder: string,
  name: string,
  options: { onBroken?: (error: ConfigError) => void } = {},
): NetworkList {
  const known: string[] = [];
  const lists = configFiles(folder, [".conflist"]);
  const singles = () => configFiles(folder, SINGLES);
  const search = (files: readonly string[]): NetworkList | undefined => {
    for (const file of files) {
      try {
        const list = loadFile(file);
        if (list.name === name) return list;
        known.push(list.name);
      } catch (error) {
        if (!(error instanceof ConfigError) || !options.onBroken) throw error;
        options.onBroken(error);
      }
    }
  };
  const found = search(lists) ?? search(singles());
  if (found) return found;
  const empty = lists.length === 0 && singles().length === 0;
  const message = empty
    ? `no net configurations found in ${folder}`
    : `no net configuration with name "${name}" in ${folder}`;
  throw new UnknownNetwork(message, folder, known);
}
