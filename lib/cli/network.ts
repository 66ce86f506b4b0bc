/** `cnibox add`, `check`, `del` and `status`: what a runtime does with a network, for people. */
import {
  addNetwork,
  checkNetwork,
  delNetwork,
  type MemberCall,
  type NetworkResult,
  type Runtime,
  statusNetwork,
} from "../cni/chain.ts";
import { locate } from "../cni/delegate.ts";
import type { NetworkList } from "../cni/conflist.ts";
import { netnsState } from "../kernel/netns.ts";
import { must, type Run, systemRun } from "../kernel/run.ts";
import { type Attached, type Cached, cachePath, readCache } from "../cni/result_cache.ts";
import { rounded } from "../cni/log.ts";
import { atLeast, goJson } from "../cni/version.ts";
import { REQUEST_FLAGS, type Requested, requestedBy } from "./capabilities.ts";
import { CliError, type CommandCall, didYouMean, status, tell, usageError } from "./command.ts";
import { containerIdOf, delCommand, nameOf, podOf } from "./owner_names.ts";
import { progress } from "./progress.ts";
import { watchedRuntime } from "./runtime.ts";
import {
  argsOf,
  attachmentsOf,
  type Folders,
  foldersOf,
  idOfNetns,
  ifNameOf,
  ifNames,
  ipamType,
  needNetns,
  needRoot,
  NETNS_FOLDER,
  netnsPath,
  networkOrCached,
  networksOf,
  note,
  sameNetns,
} from "./setup.ts";
import { jsonDocument, painter, say } from "./terminal.ts";

/** An attachment that is to be made, with the network it belongs to. */
export interface Target {
  readonly list: NetworkList;
  readonly attached: Attached;
  /** An attachment on disk says so. */
  readonly known?: boolean;
}

/** The attachments that `add NETWORK[,NETWORK…] NETNS` asks for. */
export function targetsOfAdd(call: CommandCall, folders: Folders, netns: string): Target[] {
  const lists = networksOf(call, call.arg("NETWORK"), folders);
  const containerId = call.value("id") ?? idOfNetns(netns);
  const args = argsOf(call);
  const names = ifNames(ifNameOf(call), lists.length);
  const requests = lists.length === 1
    ? [requestedBy(call, lists[0] as NetworkList, args)]
    : sharedRequests(call, lists, args);
  return lists.map((list, index) => ({
    list,
    attached: {
      network: list.name,
      containerId,
      ifName: names[index] ?? "",
      netns,
      ...requests[index] as Requested,
    },
  }));
}

/** Of several networks, the first that can act on a flag gets it. */
function sharedRequests(
  call: CommandCall,
  lists: readonly NetworkList[],
  args: readonly (readonly [string, string])[],
): Requested[] {
  const left = new Set<string>(REQUEST_FLAGS.filter((flag) => call.values(flag).length > 0));
  const requests = lists.map((list) => {
    const own = REQUEST_FLAGS.filter((flag) => {
      if (!left.has(flag)) return false;
      try {
        requestedBy(onlyWith(call, [flag]), list, args);
        return left.delete(flag);
      } catch (error) {
        if (error instanceof CliError) return false;
        throw error;
      }
    });
    return requestedBy(onlyWith(call, own), list, args);
  });
  // Says why nobody could.
  if (left.size > 0) requestedBy(onlyWith(call, [...left]), lists[0] as NetworkList, args);
  return requests;
}

/** The same call with no other flags of this kind than these. */
function onlyWith(call: CommandCall, flags: readonly string[]): CommandCall {
  const kept = (flag: string) => flags.includes(flag) || !(REQUEST_FLAGS as readonly string[]).includes(flag);
  return {
    ...call,
    value: (flag) => kept(flag) ? call.value(flag) : undefined,
    values: (flag) => kept(flag) ? call.values(flag) : [],
  };
}

/** `cnibox add` */
export async function add(call: CommandCall): Promise<number> {
  if (call.is("dry-run")) return await (await import("./explain.ts")).explainAdd(call);
  const folders = foldersOf(call);
  const word = call.arg("NETNS") ?? "";
  const netns = netnsPath(word);
  const targets = targetsOfAdd(call, folders, netns);
  needRoot(call, "it makes links, addresses and rules");
  const created = call.is("create") && netnsState(netns) === "missing";
  if (created) await createNetns(word);
  else needNetns(word, netns);
  try {
    return await addAll(call, folders, targets);
  } catch (error) {
    if (created) await systemRun()({ argv: ["ip", "netns", "delete", word] });
    throw error;
  }
}

/** Makes a namespace as `ip netns add` does, with its `lo` up. */
export async function makeNetns(host: Run, name: string): Promise<void> {
  await must(host, { argv: ["ip", "netns", "add", name] });
  await must(host, { argv: ["ip", "-n", name, "link", "set", "dev", "lo", "up"] });
}

async function createNetns(name: string): Promise<void> {
  if (name.includes("/") || name.startsWith("pid:")) {
    throw usageError(`--create makes a namespace by its name below ${NETNS_FOLDER}, not "${name}"`);
  }
  await makeNetns(systemRun(), name);
  note(`made network namespace ${NETNS_FOLDER}/${name}`);
}

async function addAll(call: CommandCall, folders: Folders, targets: readonly Target[]): Promise<number> {
  for (const { attached } of targets) refuseTwice(attached, folders);
  using watched = watchedRuntime(call, folders, { interruptible: true });
  const { runtime, calls } = watched;
  const done: { target: Target; answer: NetworkResult; calls: MemberCall[] }[] = [];
  using waiting = progress();
  try {
    for (const target of targets) {
      calls.length = 0;
      waiting.step(attachingText(target.list));
      done.push({ target, answer: await addNetwork(target.list, target.attached, runtime), calls: [...calls] });
    }
  } catch (error) {
    // The networks before this one were asked for together with it.
    if (runtime.interruption) runtime.interruption.undoing = true;
    for (const { target: { list, attached } } of done.reverse()) {
      await delNetwork(list, attached, runtime, { force: true });
      note(`undone: network "${list.name}"`);
    }
    throw error;
  }
  if (call.is("json") || !Deno.stdout.isTerminal()) {
    const results = done.map(({ answer }) => answer.printable);
    say(results.length === 1 ? `${goJson(results[0], 4)}\n` : jsonDocument({ results }));
  } else for (const one of done) say(attachedText(one.target, one.answer, one.calls, folders));
  return status.done;
}

/** What ADD of a network does, for those who wait for it. */
export function attachingText({ name, plugins }: NetworkList): string {
  const isLeased = plugins.some(({ config }) => ipamType(config) === "dhcp");
  if (isLeased) return `network ${name}: waiting for an address from a DHCP server`;
  return `network ${name}: ADD of ${plugins.map(({ type }) => type).join(", ")}`;
}

/** A second ADD would fail, and what undoes it would take the first one down. */
function refuseTwice(attached: Attached, folders: Folders): void {
  const known = readCache(cachePath(folders.cache, attached));
  if (!known) return;
  const { network, containerId, ifName } = attached;
  const gone = netnsState(known.netns) !== "netns";
  throw new CliError(`${containerId} is already attached to network "${network}" with ${ifName}`, status.failed, [
    gone ? `its namespace ${known.netns} is gone` : `in ${known.netns}`,
    `${delCommand(attached)} detaches it`,
    "--ifname NAME attaches it a second time, with another interface",
  ]);
}

/** What a person wants to know of a new attachment. */
export function attachedText(
  { list, attached }: Target,
  answer: NetworkResult,
  calls: readonly MemberCall[],
  folders: Folders,
): string {
  const paint = painter();
  const { interfaces = [], ips = [], routes = [], dns } = answer.result;
  const lines = [
    `${paint("green", "attached")} ${paint("bold", attached.ifName)} in ${attached.netns} to network ${
      paint("bold", list.name)
    }`,
  ];
  const row = (name: string, text: string) => lines.push(`  ${name.padEnd(10)} ${text}`);
  for (const { address, gateway } of ips) row("address", `${address}${gateway ? `, gateway ${gateway}` : ""}`);
  if (ips.length === 0) row("address", "none");
  for (const { dst, gw } of routes) row("route", `${dst}${gw ? ` via ${gw}` : ""}`);
  const inside = interfaces.filter(({ sandbox }) => sandbox);
  for (const { name, mac, mtu } of inside) {
    row("interface", [name, mac, mtu ? `mtu ${mtu}` : ""].filter(Boolean).join(", "));
  }
  const outside = interfaces.filter(({ sandbox }) => !sandbox).map(({ name }) => name);
  if (outside.length > 0) row("on host", outside.join(", "));
  const ports = attached.capabilityArgs["portMappings"];
  if (Array.isArray(ports)) { for (const port of ports) row("port", portText(port)); }
  if (dns?.nameservers?.length) row("dns", dns.nameservers.join(" "));
  row("container", attached.containerId);
  row("result", cachePath(folders.cache, attached));
  row("plugins", timesText(calls));
  return `${lines.join("\n")}\n`;
}

/** `127.0.0.1:8080 → 80/tcp` */
export function portText(mapping: unknown): string {
  const { hostIP, hostPort, containerPort, protocol = "tcp" } = lowerKeys(mapping);
  const host = typeof hostIP === "string" && hostIP !== "" ? hostIP.includes(":") ? `[${hostIP}]:` : `${hostIP}:` : "";
  return `${host}${hostPort} → ${containerPort}/${protocol}`;
}

/** containerd writes these keys with capitals. */
function lowerKeys(value: unknown): Record<string, unknown> {
  if (typeof value !== "object" || value === null) return {};
  return Object.fromEntries(
    Object.entries(value).map(([key, one]) => [key.charAt(0).toLowerCase() + key.slice(1), one]),
  );
}

/** `bridge 21.3 ms, portmap 12.0 ms (program)` */
export function timesText(calls: readonly MemberCall[]): string {
  return calls.map(({ type, ms, inProcess }) => `${type} ${ms.toFixed(1)} ms${inProcess ? "" : " (program)"}`).join(
    ", ",
  );
}

/** `cnibox del` */
export async function del(call: CommandCall): Promise<number> {
  if (call.is("dry-run")) return await (await import("./explain.ts")).explainDel(call);
  const folders = foldersOf(call);
  const targets = targetsOfDel(call, folders);
  needRoot(call, "it removes links, addresses and rules");
  using watched = watchedRuntime(call, folders);
  const { runtime, calls } = watched;
  const failures: unknown[] = [];
  for (const { list, attached, known } of targets.reverse()) {
    if (netnsState(attached.netns) === "own") {
      throw usageError(`${attached.netns} is the host's own network namespace; nothing was changed`);
    }
    calls.length = 0;
    try {
      await delNetwork(list, attached, runtime, { force: call.is("force") });
      if (!known) note(`${notAttached(call, list.name, folders).message}: DEL was run all the same`);
      report(call, { list, attached }, calls, "detached");
    } catch (error) {
      failures.push(error);
    }
  }
  if (failures.length > 0) throw failures[0];
  return status.done;
}

/** The attachments that `del` and `check` are about. */
export function targetsOfDel(call: CommandCall, folders: Folders): Target[] {
  const word = call.arg("NETNS");
  const netns = word === undefined ? undefined : netnsPath(word);
  const id = idOf(call, folders);
  if (netns === undefined && id === undefined) {
    throw usageError("NETNS is missing", "or name the container: --id");
  }
  const words = call.arg("NETWORK");
  const names = words?.split(",") ?? [networksOf(call, undefined, folders)[0]?.name ?? ""];
  return names.map((name, index) => {
    const known = knownAttachment(call, name, { netns, index }, folders);
    const given = call.value("conf") === undefined ? [] : networksOf(call, name, folders);
    const list = given[0] ?? networkOrCached(name, known, folders);
    const containerId = known?.containerId ?? id ?? idOfNetns(netns ?? "");
    const ifName = known?.ifName ?? ifNames(ifNameOf(call), names.length)[index] ?? "";
    const { args, capabilityArgs } = requestedBy(call, list, argsOf(call));
    return {
      list,
      known: known !== undefined,
      attached: {
        network: name,
        containerId,
        ifName,
        // The path that the attachment was made with: plugins compare it with their results.
        netns: known && (netns === undefined || sameNetns(known.netns, netns)) ? known.netns : netns ?? "",
        args: args.length > 0 ? args : known?.args ?? [],
        capabilityArgs: Object.keys(capabilityArgs).length > 0 ? capabilityArgs : known?.capabilityArgs ?? {},
      },
    };
  });
}

/** The container that `--id` names. */
function idOf(call: CommandCall, folders: Folders): string | undefined {
  const word = call.value("id");
  return word === undefined ? undefined : containerIdOf(word, folders);
}

/** The attachment on disk that the arguments mean, whoever made it. */
function knownAttachment(
  call: CommandCall,
  network: string,
  { netns, index }: { netns: string | undefined; index: number },
  folders: Folders,
): Cached | undefined {
  const id = idOf(call, folders);
  const ifName = call.value("ifname") === undefined ? undefined : ifNames(ifNameOf(call), index + 1)[index];
  const matching = attachmentsOf(folders).filter((one) =>
    one.network === network && (id === undefined || one.containerId === id) &&
    (ifName === undefined || one.ifName === ifName) &&
    (id !== undefined || netns === undefined || one.netns === netns || sameNetns(one.netns, netns))
  );
  if (matching.length <= 1) return matching[0];
  const usual = matching.find((one) =>
    one.ifName === ifNameOf(call) && one.containerId === (id ?? idOfNetns(netns ?? ""))
  );
  if (usual) return usual;
  const ways = matching.map((one) => `--id ${one.containerId} --ifname ${one.ifName}`);
  throw usageError(`several attachments to network "${network}" match`, ...ways);
}

function report(call: CommandCall, { list, attached }: Target, calls: readonly MemberCall[], word: string): void {
  const { containerId, ifName, netns } = attached;
  const name = nameOf(attached);
  const plugins = calls.map(({ type, ms, inProcess }) => ({ type, ms: rounded(ms), inProcess }));
  const paint = painter();
  const head = `${paint("green", word)} ${paint("bold", ifName)} of ${name}, network ${paint("bold", list.name)}`;
  const times = calls.length > 0 ? `\n  plugins    ${timesText(calls)}` : "";
  tell(call, { network: list.name, containerId, ifName, netns, [word]: true, plugins }, () => `${head}${times}\n`);
}

/** Nothing on disk says that what the arguments name is attached. */
function notAttached(call: CommandCall, network: string, folders: Folders): CliError {
  const [id, word] = [call.value("id"), call.arg("NETNS")];
  const who = id === undefined ? netnsPath(word ?? "") : `${id.includes("/") ? "pod" : "container"} "${id}"`;
  const others = attachmentsOf(folders).filter((one) => one.network === network);
  return new CliError(`${who} is not attached to network "${network}", as far as is known`, status.unknown, [
    ...(id === undefined ? [] : didYouMean(id, others.flatMap((one) => podOf(one) ?? one.containerId))),
    `looked in ${folders.cache}`,
    ...(others.length > 0 ? [`attached there: ${others.map((one) => nameOf(one)).join(", ")}`] : []),
  ]);
}

/** `cnibox check` */
export async function check(call: CommandCall): Promise<number> {
  const folders = foldersOf(call);
  const targets = targetsOfDel(call, folders);
  needRoot(call, "it looks into the container's namespace and at the rules");
  using watched = watchedRuntime(call, folders);
  const { runtime, calls } = watched;
  for (const target of targets) {
    const { list, attached } = target;
    const word = call.arg("NETNS");
    if (word !== undefined) needNetns(word, attached.netns);
    if (!target.known) throw notAttached(call, list.name, folders);
    needNetns(attached.netns, attached.netns);
    calls.length = 0;
    await checkNetwork(list, attached, runtime);
    if (list.disableCheck) note(`network "${list.name}" has disableCheck: nothing was looked at`);
    report(call, target, calls, "healthy");
  }
  return status.done;
}

/** `cnibox status` */
export async function networkStatus(call: CommandCall): Promise<number> {
  if (call.arg("NETWORK") === undefined && call.value("conf") === undefined) {
    return await (await import("./node_overview.ts")).nodeOverview(call);
  }
  const folders = foldersOf(call);
  const lists = networksOf(call, call.arg("NETWORK"), folders);
  needRoot(call, "plugins look at the kernel and at their folders");
  using watched = watchedRuntime(call, folders);
  const { runtime, calls } = watched;
  const paint = painter();
  for (const list of lists) {
    calls.length = 0;
    const asked = atLeast(list.version, "1.1.0");
    if (asked) await statusNetwork(list, runtime);
    else await statusFromOutside(list, { runtime, folders });
    const plugins = calls.map(({ type, ms }) => ({ type, ms: rounded(ms) }));
    const ready = `${paint("green", "ready")} network ${paint("bold", list.name)}: ${timesText(calls)}\n`;
    const outside =
      `network "${list.name}" is of version ${list.version || "0.1.0"}, and STATUS came with 1.1.0: its ` +
      "plugins were not asked; they are there, and its ranges are not full\n";
    const document = { network: list.name, asked, ...(asked && { ready: true }), plugins };
    tell(call, document, () => asked ? ready : outside);
  }
  return status.done;
}

/** What can be known of a network whose plugins cannot be asked. Throws the first thing that ADD would fail with. */
async function statusFromOutside(
  list: NetworkList,
  { runtime, folders }: { runtime: Runtime; folders: Folders },
): Promise<void> {
  for (const { type } of list.plugins) await locate(type, runtime);
  const { pools, useOf } = await import("./leases.ts");
  const uses = pools(folders).filter(({ network }) => network === list.name).flatMap(useOf);
  const full = uses.find(({ taken, total, blocks }) => blocks === undefined && BigInt(taken) >= total);
  if (full) {
    const text = `network "${list.name}": all ${full.total} addresses of ${full.range} are taken`;
    throw new CliError(text, status.failed, [`cnibox ipam check ${list.name} finds those that nobody uses`]);
  }
}
