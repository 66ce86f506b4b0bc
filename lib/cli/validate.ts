/** `cnibox validate`: what is wrong with configurations, where, and what was probably meant. Changes nothing. */
import { probeVersions, type Runtime } from "../cni/chain.ts";
import { extensionOf } from "../cni/conflist.ts";
import { byBytes, CHAIN } from "../cni/member.ts";
import { findPlugin } from "../cni/delegate.ts";
import { toCniError } from "../cni/error.ts";
import type { Plugin } from "../cni/plugin.ts";
import { isName } from "../cni/skel.ts";
import { VERSIONS } from "../cni/types.ts";
import { isKnownVersion, versionParts } from "../cni/version.ts";
import { exists } from "../kernel/regular_file.ts";
import { formatPrefix, type Prefix, prefixesOverlap } from "../net/cidr.ts";
import { type CommandCall, nearest, tell } from "./command.ts";
import { checkDuplicates, checkKeys } from "./config_keys.ts";
import { IPAM_RULES, type MemberView, NEEDS_OTHERS, RULES } from "./config_rules.ts";
import { type Finding, Section, type Severity, shown, Source } from "./config_source.ts";
import { type Node, valueOf } from "./jsonc.ts";
import { capabilitiesOf, keysBelow } from "./schema.ts";
import { watchedRuntime } from "./runtime.ts";
import { entriesOf, fileError, type Folders, foldersOf, readFound, readText } from "./setup.ts";
import { counted, oneLine, painter } from "./terminal.ts";

/** Exit statuses of `validate`. */
const RESULT = { clean: 0, warnings: 1, errors: 2 } as const;

/** `cnibox validate` */
export async function validate(call: CommandCall): Promise<number> {
  const folders = foldersOf(call);
  const watched = watchedRuntime(call, folders);
  let report: Report;
  try {
    const known = { runtime: watched.runtime, folders, names: call.invocation.names };
    report = await examine(call.args.length > 0 ? call.args : [folders.conf], known);
  } finally {
    watched[Symbol.dispose]();
  }
  tell(call, { ...report }, () => textOf(report));
  const has = (wanted: Severity) => report.findings.some(({ severity }) => severity === wanted);
  return has("error") ? RESULT.errors : has("warning") ? RESULT.warnings : RESULT.clean;
}

/** What was found in some files. */
export interface Report {
  /** Files that were read, in the order in which a runtime sorts them. */
  readonly files: readonly { readonly file: string; readonly network?: string; readonly plugins: readonly string[] }[];
  readonly findings: readonly Finding[];
  /** By folder, what a runtime takes there; "" when nothing. */
  readonly picked: readonly {
    readonly folder: string;
    readonly file: string;
    readonly network: string;
    readonly usable: boolean;
  }[];
}

interface Known {
  readonly runtime: Runtime;
  readonly folders: Folders;
  /** Types of all plugins of this binary. */
  readonly names: readonly string[];
}

/** What is known of one file after reading it. */
interface Network {
  readonly source: Source;
  readonly file: string;
  /** Undefined when the file holds no list that can be read. */
  name?: string;
  nameAt?: Node;
  types: string[];
  bridges: { readonly name: string; readonly node: Node }[];
  subnets: MemberView["subnets"];
}

const READ = [".conflist", ".conf", ".json"];

/** Looks at files and folders. Throws when one of the paths cannot be read. */
export async function examine(paths: readonly string[], known: Known): Promise<Report> {
  const networks: Network[] = [];
  const extra: Finding[] = [];
  const picked: Report["picked"][number][] = [];
  for (const path of paths) {
    if (isFolder(path)) {
      const folder = path.length > 1 ? path.replace(/\/+$/, "") : path;
      const own = await folderNetworks(folder, known, extra);
      acrossFiles(own);
      picked.push(pickOf(folder, own));
      networks.push(...own);
    } else networks.push(await fileNetwork(path, known));
  }
  return {
    files: networks.map(({ file, name, types }) => ({
      file,
      ...(name !== undefined && { network: name }),
      plugins: types,
    })),
    findings: [...extra, ...networks.flatMap(({ source }) => source.findings)].sort(inOrder),
    picked,
  };
}

function isFolder(path: string): boolean {
  try {
    return path !== "-" && Deno.statSync(path).isDirectory;
  } catch (error) {
    throw fileError(path, error);
  }
}

function inOrder(a: Finding, b: Finding): number {
  return byBytes(a.file, b.file) || a.line - b.line || a.column - b.column;
}

async function folderNetworks(folder: string, known: Known, extra: Finding[]): Promise<Network[]> {
  const networks: Network[] = [];
  const entries = [...Deno.readDirSync(folder)].sort((a, b) => byBytes(a.name, b.name));
  for (const { name, isDirectory } of entries) {
    const file = `${folder}/${name}`;
    if (isDirectory) continue;
    if (READ.includes(extensionOf(name))) {
      networks.push(await fileNetwork(file, known, readFound));
      continue;
    }
    // Whoever left these behind may wonder why they do nothing, or be glad.
    if (/\.(conflist|conf|json)\W?\w*$/.test(name)) {
      const message = `not read by runtimes: the name does not end in ${READ.join(", ")}`;
      extra.push({ file, line: 0, column: 0, severity: "note", rule: "not-read", message });
    }
  }
  return networks;
}

/** A file, or the finding that it cannot be read. */
function sourceOf(file: string, read: (file: string) => string): Source {
  try {
    return new Source(file, read(file));
  } catch (error) {
    const source = new Source(file, "");
    source.error("unreadable", undefined, (error as Error).message.replace(`${file}: `, ""));
    return source;
  }
}

/** Looks at one file. */
async function fileNetwork(file: string, known: Known, read = readText): Promise<Network> {
  const source = sourceOf(file, read);
  const network: Network = { source, file, types: [], bridges: [], subnets: [] };
  if (source.findings.length > 0) return network;
  const root = source.parse();
  if (!root) return network;
  if (root.kind !== "object") {
    source.error(
      "json",
      root,
      `the file holds ${root.kind === "array" ? "a list" : `a ${root.kind}`}: a configuration is an object in braces`,
    );
    return network;
  }
  checkDuplicates(source, root);
  const section = new Section(source, root);
  const isListFile = extensionOf(nameOf(file)) === ".conflist";
  const hasPlugins = section.exactly("plugins") !== undefined;
  if (isListFile && !hasPlugins && section.property("type")) {
    source.error(
      "file-kind",
      section.at("type"),
      "a single plugin's configuration in a .conflist file",
      `put it into "plugins": [ … ], or rename the file to ${nameOf(file).replace(/\.conflist$/, ".conf")}`,
    );
    return network;
  }
  if (!isListFile && hasPlugins && file !== "-") {
    source.error(
      "file-kind",
      section.at("plugins"),
      `a list in a ${extensionOf(file)} file: runtimes say "error parsing configuration: missing 'type'"`,
      `rename the file to ${nameOf(file).replace(/\.[^.]*$/, ".conflist")}`,
    );
  }
  if (isListFile || hasPlugins) await list(section, network, known);
  else await single(section, network, known);
  return network;
}

const nameOf = (file: string) => file.slice(file.lastIndexOf("/") + 1);

const FLAGS = ["disableCheck", "disableGC", "loadOnlyInlinedPlugins"];
const LIST_KEYS = ["cniVersion", "cniVersions", "name", ...FLAGS, "plugins"];

/** Keys that runtimes write into their lists for themselves: nerdctl's own, and podman's labels and options. */
function isRuntimes({ key, value }: Section["properties"][number]): boolean {
  if (/^nerdctl[A-Z]/.test(key)) return true;
  return key === "args" && value.properties?.every((one) => one.key.startsWith("podman_")) === true;
}

async function list(section: Section, network: Network, known: Known): Promise<void> {
  const { source } = section;
  for (const property of section.properties) {
    const { key, at } = property;
    if (LIST_KEYS.includes(key) || isRuntimes(property)) continue;
    const meant = LIST_KEYS.find((one) => one.toLowerCase() === key.toLowerCase());
    if (meant) source.error("key-case", at, `"${key}" is not read: here case counts`, `write "${meant}"`);
    else {
      const near = nearest(key, LIST_KEYS);
      source.warn(
        "unknown-key",
        at,
        `unknown key "${key}" for a list; ignored`,
        near ? `did you mean "${near}"?` : 'keys of plugins belong into the elements of "plugins"',
      );
    }
  }
  checkName(section, network);
  const version = checkVersion(section);
  for (const key of FLAGS) checkFlag(section, key);
  const property = section.exactly("plugins");
  const folder = `${
    network.file.includes("/") ? network.file.slice(0, network.file.lastIndexOf("/")) : "."
  }/${network.name}`;
  const siblings = section.get("loadOnlyInlinedPlugins") === true || network.name === undefined
    ? []
    : siblingsOf(folder);
  if (property && property.value.kind !== "array") {
    source.error(
      "plugins",
      property.value,
      `"plugins" is ${shown(valueOf(property.value))}: a list in square brackets belongs here`,
    );
    return;
  }
  const nodes = property?.value.items ?? [];
  if (!property && section.property("plugins")) return;
  if (nodes.length === 0 && (property || siblings.length === 0)) {
    source.error("plugins", property ?? section.node, "no plugins in list", `add "plugins": [{"type": "…"}]`);
    return;
  }
  const members: Section[] = [];
  for (const [index, node] of nodes.entries()) {
    if (node.kind === "object") members.push(new Section(source, node));
    else {source.error(
        "plugins",
        node,
        `"plugins.${index}" is ${shown(valueOf(node))}: an object in braces belongs here`,
      );}
  }
  for (const file of siblings) {
    const inner = sourceOf(file, readFound);
    const root = inner.findings.length > 0 ? undefined : inner.parse();
    if (root?.kind === "object") members.push(new Section(inner, root));
    else if (root) inner.error("json", root, "a configuration is an object in braces");
    if (root?.kind !== "object") source.include(inner);
  }
  await checkMembers(members, network, { known, version });
  for (const { source: inner } of members) if (inner !== source) source.include(inner);
}

function siblingsOf(folder: string): string[] {
  return entriesOf(folder).filter(({ name, isDirectory }) => !isDirectory && extensionOf(name) === ".conf")
    .map(({ name }) => `${folder}/${name}`).sort(byBytes);
}

async function single(section: Section, network: Network, known: Known): Promise<void> {
  checkName(section, network);
  const version = checkVersion(section);
  for (const key of [...FLAGS, "cniVersions"]) {
    if (section.get(key) === undefined) continue;
    const text = `"${key}" has no effect in a single configuration`;
    section.source.warn("no-effect", section.at(key), text, "make it a .conflist");
  }
  await checkMembers([section], network, { known, version });
}

function checkName(section: Section, network: Network): void {
  const property = section.property("name");
  if (!property || property.value.kind === "null") {
    section.source.error("name", section.node, 'the network has no "name"', '"name": "mynet"');
    return;
  }
  const name = valueOf(property.value);
  if (typeof name !== "string") section.wrong("name", "name", `"name" is ${shown(name)}: write a string`);
  else if (name === "") section.wrong("name", "name", '"name" is empty');
  else if (!isName(name)) {
    section.wrong(
      "name",
      "name",
      `"name" is ${shown(name)}: letters, digits, "_", "." and "-" are allowed, the first a letter or digit`,
    );
  } else {
    network.name = name;
    network.nameAt = property.value;
  }
}

/** Checks `cniVersion` and `cniVersions`; returns the version that is spoken. */
function checkVersion(section: Section): string {
  const { source } = section;
  const property = section.property("cniVersion");
  const several = section.property("cniVersions");
  const candidates: string[] = [];
  for (const node of several?.value.items ?? []) {
    const value = valueOf(node);
    if (typeof value !== "string") source.error("version", node, `"cniVersions" holds ${shown(value)}: write strings`);
    else if (!isVersionText(value)) source.error("version", node, `"${value}" is not a version`, 'such as "1.0.0"');
    else if (isKnownVersion(value)) candidates.push(value);
  }
  if (several && several.value.kind !== "array") {
    source.error("version", several.value, '"cniVersions" is a list of strings');
  }
  const value = property && valueOf(property.value);
  if (property === undefined) {
    if (candidates.length === 0) {
      source.warn("version", section.node, 'there is no "cniVersion": that means 0.1.0', 'add "cniVersion": "1.0.0"');
    }
  } else if (typeof value !== "string") {
    section.wrong("version", "cniVersion", `"cniVersion" is ${shown(value)}: write a string such as "1.0.0"`);
  } else if (value !== "" && !isKnownVersion(value)) {
    const text = `"cniVersion" is "${value}", which no plugin speaks`;
    section.wrong("version", "cniVersion", text, `there are ${VERSIONS.join(", ")}`);
  } else candidates.push(value);
  return candidates.sort((a, b) => VERSIONS.indexOf(a as never) - VERSIONS.indexOf(b as never)).at(-1) ?? "";
}

function isVersionText(text: string): boolean {
  try {
    versionParts(text);
    return true;
  } catch {
    return false;
  }
}

function checkFlag(section: Section, key: string): void {
  const property = section.exactly(key);
  if (!property) return;
  const value = valueOf(property.value);
  if (typeof value === "boolean" || (typeof value === "string" && /^(true|false)$/i.test(value))) return;
  section.source.error("value", property.value, `"${key}" is ${shown(value)}: write true or false`);
}

interface Around {
  readonly known: Known;
  readonly version: string;
}

async function checkMembers(given: readonly Section[], network: Network, { known, version }: Around): Promise<void> {
  const members: Section[] = [];
  for (const member of given) {
    if (member.text("type") === CHAIN) members.push(...await membersOfChain(member, { known, version }));
    else members.push(member);
  }
  const types = members.map((member) => member.text("type") ?? "");
  network.types = types.filter((type) => type !== "");
  for (const [index, member] of members.entries()) {
    const type = types[index] ?? "";
    const capabilities = declared(member);
    const view: MemberView = { member, type, index, types, members, version, capabilities, subnets: network.subnets };
    const bridge = type === "bridge" ? member.property("bridge")?.value : undefined;
    if (bridge && typeof bridge.value === "string") network.bridges.push({ name: bridge.value, node: bridge });
    await checkMember(view, known);
  }
}

/**
 * Looks at a chain as such, and gives its members: they are judged in its place, among their neighbours in the list.
 */
async function membersOfChain(member: Section, { known, version }: Around): Promise<Section[]> {
  const { source } = member;
  const alone = { index: 0, types: [CHAIN], members: [member], subnets: [] };
  await checkMember({ member, type: CHAIN, version, capabilities: declared(member), ...alone }, known);
  return member.items("plugins").filter(({ kind }) => kind === "object").flatMap((node) => {
    const inner = new Section(source, node);
    if (inner.text("type") !== CHAIN) return [inner];
    source.error("type", inner.valueAt("type"), "a chain cannot hold another chain", "put its members in its place");
    return [];
  });
}

function declared(member: Section): string[] {
  const property = member.property("capabilities");
  if (!property || property.value.kind === "null") return [];
  if (property.value.kind !== "object") {
    member.source.error("value", property.value, '"capabilities" is an object such as {"portMappings": true}');
    return [];
  }
  return (property.value.properties ?? []).flatMap(({ key, value }) => {
    if (value.kind !== "boolean" && value.kind !== "null") {
      member.source.error("value", value, `"capabilities.${key}" is ${shown(valueOf(value))}: write true or false`);
    }
    return value.value === true ? [key] : [];
  });
}

async function checkMember(view: MemberView, known: Known): Promise<void> {
  const { member, type, index, types, version } = view;
  const property = member.property("type");
  if (!property || type === "") {
    const value = member.get("type") ?? "";
    const text = value === "" ? 'plugin without "type"' : `"type" is ${shown(value)}: write a string`;
    member.wrong("type", "type", text, `one of ${known.names.join(", ")}`);
    return;
  }
  if (type.includes("/") || type === "." || type === "..") {
    member.wrong("type", "type", `"type" is ${shown(type)}: a plain file name, without a slash`);
    return;
  }
  const plugin = await pluginOf(type, property.value, view, known);
  if (plugin?.kind === "ipam") {
    const hint = `write "ipam": {"type": "${type}", …} in a plugin such as bridge`;
    member.wrong("type", "type", `${type} gives out addresses: it is not a plugin of a list`, hint);
    return;
  }
  if (plugin && index === 0 && NEEDS_OTHERS.includes(type) && !(type === "tuning" && types.length === 1)) {
    const text = `${type} comes first: it changes what another plugin has made`;
    member.wrong("order", "type", text, "put it behind a plugin such as bridge");
  }
  if (plugin && index > 0 && plugin.kind === "main" && type !== "loopback" && types.slice(0, index).includes(type)) {
    member.doubtful("order", "type", `${type} is there twice: both make the same interface`);
  }
  const ipam = await ipamOf(view, known);
  if (plugin) {
    checkKeys(member, plugin.keys, {
      of: type,
      elsewhere: ipam ? [['in "ipam"', Object.keys(keysBelow(ipam.plugin, "ipam") ?? {})]] : [],
      besides: [...FLAGS, "cniVersions"],
    });
    checkCapabilities(view, plugin, ipam?.plugin);
    if (version !== "" && !plugin.versions.includes(version) && isKnownVersion(version)) {
      const hint = `it speaks ${plugin.versions.join(", ")}`;
      member.wrong("version", "type", `${type} does not speak version ${version}`, hint);
    }
  }
  if (ipam) {
    const keys = keysBelow(ipam.plugin, "ipam");
    const above = plugin ? [[`one level up, in ${type}`, Object.keys(plugin.keys)] as const] : [];
    if (keys) checkKeys(ipam.section, keys, { of: ipam.plugin.name, elsewhere: above, besides: ["type"] });
    IPAM_RULES[ipam.plugin.name]?.(view, ipam.section);
  }
  RULES[type]?.(view);
}

/** The plugin of a type, when it is ours; says when it cannot be found or does not fit. */
async function pluginOf(
  type: string,
  node: Node,
  { member, version }: MemberView,
  known: Known,
): Promise<Plugin | undefined> {
  const own = await known.runtime.registry(type);
  const { path, pathGiven } = known.folders;
  let file = "";
  try {
    file = findPlugin(type, path);
  } catch {
    // Below.
  }
  const where = path.join(":");
  if (file === "" && !(own && !pathGiven && !exists(path[0] ?? "", { links: true }))) {
    const installed = path.flatMap(entriesOf).map(({ name }) => name);
    const near = own ? undefined : nearest(type, [...known.names, ...installed]);
    const hint = near
      ? `did you mean "${near}"?`
      : own
      ? "cnibox install puts it there"
      : "install it, or name its folder with CNI_PATH";
    if (own) member.source.warn("not-installed", node, `plugin "${type}" is not in ${where}`, hint);
    else member.source.error("not-installed", node, `there is no plugin "${type}" in ${where}`, hint);
  } else if (!own && file !== "") await checkForeign(type, node, { member, version, known });
  return own;
}

async function checkForeign(
  type: string,
  node: Node,
  { member, version, known }: { member: Section; version: string; known: Known },
): Promise<void> {
  try {
    const versions = await probeVersions(type, { ...known.runtime, limitMs: known.runtime.limitMs ?? 3_000 });
    const wanted = version || "0.1.0";
    if (!versions.includes(wanted)) {
      const hint = `it speaks ${versions.join(", ")}`;
      member.source.error("version", node, `${type} does not speak version ${wanted}`, hint);
    }
  } catch (error) {
    member.source.warn("version", node, `${type} does not say which versions it speaks: ${toCniError(error).msg}`);
  }
}

/** The `ipam` section, when its plugin is ours. */
async function ipamOf(view: MemberView, known: Known): Promise<{ section: Section; plugin: Plugin } | undefined> {
  const { member } = view;
  const property = member.property("ipam");
  if (!property || property.value.kind === "null") return undefined;
  if (property.value.kind !== "object") {
    const text = `"ipam" is ${shown(valueOf(property.value))}: an object in braces belongs here`;
    member.wrong("value", "ipam", text, '"ipam": {"type": "host-local", …}');
    return undefined;
  }
  const section = new Section(member.source, property.value);
  const node = section.property("type")?.value;
  const type = node && valueOf(node);
  if (node === undefined || type === "" || type === null) {
    if (section.properties.length > 0) {
      const text = '"ipam" without "type": nobody gives addresses';
      member.source.error("type", node ?? property, text, '"type": "host-local"');
    }
    return undefined;
  }
  if (typeof type !== "string") {
    member.source.error("type", node, `"ipam.type" is ${shown(type)}: write a string`);
    return undefined;
  }
  if (type.includes("/")) {
    member.source.error("type", node, `"ipam.type" is ${shown(type)}: a plain file name, without a slash`);
    return undefined;
  }
  const plugin = await pluginOf(type, node, view, known);
  if (!plugin) return undefined;
  if (plugin.kind !== "ipam") {
    const all = await Promise.all(known.names.map((name) => known.runtime.registry(name)));
    const names = all.filter((one) => one?.kind === "ipam").map((one) => one?.name);
    member.source.error("type", node, `${type} gives out no addresses`, `one of ${names.join(", ")}`);
    return undefined;
  }
  return { section, plugin };
}

const CAPABILITIES = [
  ...["portMappings", "ipRanges", "bandwidth", "dns", "ips", "mac", "infinibandGUID", "deviceID", "aliases"],
  ...["cgroupPath", "io.kubernetes.cri.pod-annotations"],
];

function checkCapabilities(
  { member, type, capabilities, types, members }: MemberView,
  plugin: Plugin,
  ipam: Plugin | undefined,
): void {
  // It hands on what its members read.
  if (type === CHAIN) return;
  const { source } = member;
  const section = member.section("capabilities");
  const read = [...capabilitiesOf(plugin), ...(ipam ? capabilitiesOf(ipam) : [])];
  for (const property of section?.properties ?? []) {
    const { key, value } = property;
    if (value.value !== true || read.includes(key)) continue;
    const near = nearest(key, [...read, ...CAPABILITIES]);
    const known = CAPABILITIES.includes(key);
    const better = members.findIndex((_, at) => types[at] !== type && (OWNERS[key] ?? []).includes(types[at] ?? ""));
    const hint = !known && near
      ? `did you mean "${near}"?`
      : better >= 0
      ? `it belongs to ${types[better]}`
      : read.length > 0
      ? `it reads ${read.join(", ")}`
      : undefined;
    source.warn("capability", property, `${type} does not read the capability "${key}"`, hint);
  }
  if (type === "portmap" && !capabilities.includes("portMappings")) {
    source.warn(
      "capability",
      section?.node ?? member.node,
      'portmap never hears of ports: it does not declare "portMappings"',
      'add "capabilities": {"portMappings": true}',
    );
  }
}

/** Whose a capability usually is. */
const OWNERS: Readonly<Record<string, readonly string[]>> = {
  portMappings: ["portmap"],
  bandwidth: ["bandwidth"],
  deviceID: ["host-device"],
};

/** What only shows when several files are seen together. */
function acrossFiles(networks: readonly Network[]): void {
  networks.forEach((one, index) => {
    for (const other of networks.slice(0, index)) {
      if (one.name !== undefined && one.name === other.name && one.nameAt) {
        const listFirst = (file: string) => file.endsWith(".conflist") ? 0 : 1;
        const [used, unused] = listFirst(other.file) <= listFirst(one.file) ? [other, one] : [one, other];
        unused.source.error(
          "duplicate-network",
          unused.nameAt,
          `network "${one.name}" is in ${nameOf(used.file)} too`,
          "the one found there is used, this one never",
        );
        continue;
      }
      for (const subnet of one.subnets) {
        const clash = other.subnets.find(({ prefix }) => prefixesOverlap(prefix, subnet.prefix));
        if (!clash) continue;
        one.source.warn(
          "overlap",
          subnet.place,
          `${formatPrefix(subnet.prefix)} overlaps ${formatPrefix(clash.prefix)} of network "${other.name}" in ${
            nameOf(other.file)
          }`,
          "addresses may be given out twice: choose another subnet",
        );
      }
      for (const bridge of one.bridges) {
        if (
          !other.bridges.some(({ name }) => name === bridge.name) || one.subnets.length === 0 || sameSubnets(one, other)
        ) continue;
        one.source.warn(
          "shared-bridge",
          bridge.node,
          `bridge "${bridge.name}" is that of network "${other.name}" in ${
            nameOf(other.file)
          } too, with another subnet`,
          "give each network a bridge of its own",
        );
      }
    }
  });
}

function sameSubnets(one: Network, other: Network): boolean {
  const texts = (subnets: readonly { prefix: Prefix }[]) =>
    subnets.map(({ prefix }) => formatPrefix(prefix)).sort().join(" ");
  return texts(one.subnets) === texts(other.subnets);
}

/** The file that a runtime takes: containerd and CRI-O sort all names together, the first one counts. */
function pickOf(folder: string, networks: readonly Network[]): Report["picked"][number] {
  const [first] = networks;
  const usable = first !== undefined &&
    !first.source.findings.some(({ severity, rule }) =>
      severity === "error" && rule !== "duplicate-network" && rule !== "not-installed"
    );
  return { folder, file: first?.file ?? "", network: first?.name ?? "", usable };
}

function textOf({ files, findings, picked }: Report): string {
  const paint = painter();
  const colours: Readonly<Record<Severity, "red" | "yellow" | "cyan">> = {
    error: "red",
    warning: "yellow",
    note: "cyan",
  };
  const lines = findings.map(({ file, line, column, severity, message, hint }) => {
    const where = line === 0 ? file : `${file}:${line}:${column}`;
    return `${paint("bold", oneLine(where))}: ${paint(colours[severity], severity)}: ${oneLine(message)}${
      hint ? `\n    ${paint("dim", oneLine(hint))}` : ""
    }`;
  });
  const count = (severity: Severity) => findings.filter((one) => one.severity === severity).length;
  if (lines.length > 0) lines.push("");
  for (const { folder, file, network, usable } of picked) {
    lines.push(
      file === ""
        ? `${folder}: no configuration: runtimes say "cni config uninitialized"`
        : usable
        ? `${folder}: runtimes take ${file.slice(folder.length + 1)}, network "${
          oneLine(network)
        }", for containers that name no other`
        : `${folder}: runtimes take ${file.slice(folder.length + 1)} first, and fail with it`,
    );
  }
  const [errors, warnings] = [count("error"), count("warning")];
  const verdict = errors + warnings === 0
    ? paint("green", "nothing wrong")
    : `${counted(errors, "error")}, ${counted(warnings, "warning")}`;
  lines.push(`${counted(files.length, "file")}: ${verdict}`);
  return `${lines.join("\n")}\n`;
}
