/**
 * Networks carried out: the members of a list one after the other, each in this process when it is cnibox itself, else
 * as a program. Order, injection, cache and texts are those of the reference library; a failed ADD is undone.
 */
import { inNetns, type RunHooks, systemRun } from "../kernel/run.ts";
import { type Explainer, type Perform, perform } from "../kernel/plan.ts";
import type { NetworkList } from "./conflist.ts";
import { type Injection, type Member, requestOf } from "./member.ts";
import { foreignEffect, locate, type Located } from "./delegate.ts";
import { runForeign } from "./foreign.ts";
import { badConfig, CniError, code, goQuote, internal, toCniError } from "./error.ts";
import { foreignVersions } from "./foreign_versions.ts";
import type { Plugin, Registry, Verb } from "./plugin.ts";
import {
  type Attached,
  type Cached,
  cachedResult,
  cachePath,
  cacheText,
  listAttachments,
  printed,
  removeCache,
  writeCache,
} from "./result_cache.ts";
import { callPlugin, checkIfName, type Interruption, isName } from "./skel.ts";
import { netnsState } from "../kernel/netns.ts";
import { type JsonObject, type Result, type ValidAttachment } from "./types.ts";
import { atLeast, parseResult } from "./version.ts";

/** One call of one member, when it is over. */
export interface MemberCall {
  readonly verb: Verb;
  readonly type: string;
  /** Place in the list, from 0. */
  readonly index: number;
  /** File of the plugin; "" when it is built in and not installed. */
  readonly file: string;
  readonly inProcess: boolean;
  readonly ms: number;
  readonly error?: CniError;
}

/** What every operation on a network needs. */
export interface Runtime {
  /** Folders with plugins. */
  readonly path: readonly string[];
  /** Folder of the result cache. */
  readonly cache: string;
  readonly registry: Registry;
  /** Also take built-in plugins that no folder of `path` holds. */
  readonly builtin: boolean;
  /** What plugins find in their environment besides the protocol's variables. */
  readonly env: Readonly<Record<string, string>>;
  /** How long a foreign plugin may take, in milliseconds. */
  readonly limitMs?: number | undefined;
  readonly interruption?: Interruption | undefined;
  readonly hooks?: RunHooks | undefined;
  readonly explain?: Explainer | undefined;
  /** A note for the operator. */
  readonly warn: (type: string, note: string) => void;
  /** What a foreign plugin wrote on standard error and still succeeded. */
  readonly stderr: (text: string) => void;
  /** Told what comes next: a member, or "" for what the runtime itself does. */
  readonly before?: ((verb: Verb, type: string) => void) | undefined;
  readonly after?: ((call: MemberCall) => void) | undefined;
}

/** What ADD of a network gave. */
export interface NetworkResult {
  /** In the layout and version in which the last plugin printed it. */
  readonly printable: JsonObject;
  readonly version: string;
  /** The same in the newest layout. */
  readonly result: Result;
}

/** A member of a list failed. `code` and `details` are the plugin's. */
export class MemberError extends CniError {
  constructor(
    readonly list: NetworkList,
    readonly index: number,
    readonly doing: "add" | "delete" | "check" | "status",
    readonly plugin: CniError,
    /** What came of undoing an ADD, in sentences. */
    readonly undone: readonly string[] = [],
  ) {
    const member = list.plugins[index];
    const place = `plugin ${index + 1} of ${list.plugins.length} of network ${goQuote(list.name)}`;
    const described = `plugin type=${goQuote(member?.type ?? "")}` +
      (member?.name ? ` name=${goQuote(member.name)}` : "");
    const details = [plugin.details, place, ...undone].filter((part) => part !== "").join("; ");
    // CHECK and STATUS hand the plugin's error on unwrapped.
    const bare = doing === "check" || doing === "status";
    super(plugin.code, bare ? plugin.msg : `${described} failed (${doing}): ${plugin.msg}`, details);
  }
}

/** What failed while garbage was collected: each failure with what was being done. The rest was done all the same. */
export class GcError extends CniError {
  constructor(readonly failures: readonly { readonly doing: string; readonly error: CniError }[]) {
    const told = failures.map(({ doing, error: { code, msg, details } }) =>
      new CniError(code, `${doing}: ${msg}`, details)
    );
    const [first] = told;
    const alone = told.length === 1;
    super(
      first?.code ?? code.internal,
      alone ? first?.msg ?? "" : told.map(({ message }) => message).join("\n"),
      alone ? first?.details : "",
    );
  }
}

/** Finds every plugin of a list before anything is touched. */
async function locateAll(list: NetworkList, runtime: Runtime, doing: MemberError["doing"]): Promise<Located[]> {
  const located: Located[] = [];
  for (const [index, member] of list.plugins.entries()) {
    try {
      located.push(await locate(member.type, runtime));
    } catch (error) {
      throw new MemberError(list, index, doing, toCniError(error));
    }
  }
  return located;
}

/** One command for one member, and what it is told besides. */
interface MemberStep extends Pick<Injection, "prevResult" | "valid"> {
  readonly verb: Verb;
  readonly list: NetworkList;
  readonly index: number;
  /** Where the member is; found now, if absent. */
  readonly where?: Located | undefined;
  readonly attached?: Attached;
}

/** Calls one member, here or as a program. Throws a {@linkcode CniError}. */
async function callMember(step: MemberStep, runtime: Runtime): Promise<NetworkResult | undefined> {
  const { verb, list, index, attached, prevResult, valid } = step;
  const member = list.plugins[index] as Member;
  const where = step.where ?? await locate(member.type, runtime);
  const stdin = requestOf(list, member, { prevResult, capabilityArgs: attached?.capabilityArgs, valid });
  const env = {
    ...runtime.env,
    CNI_COMMAND: verb,
    CNI_CONTAINERID: attached?.containerId ?? "",
    CNI_NETNS: attached?.netns ?? "",
    CNI_ARGS: (attached?.args ?? []).map(([key, value]) => `${key}=${value}`).join(";"),
    CNI_IFNAME: attached?.ifName ?? "",
    CNI_PATH: runtime.path.join(":"),
  };
  runtime.before?.(verb, member.type);
  const started = performance.now();
  let error: CniError | undefined;
  try {
    return where.own ? await callHere(where.own, env, stdin, list, runtime) : await callProgram();
  } catch (thrown) {
    error = toCniError(thrown);
    throw error;
  } finally {
    runtime.after?.({
      verb,
      type: member.type,
      index,
      file: where.file,
      inProcess: where.own !== undefined,
      ms: performance.now() - started,
      ...(error && { error }),
    });
  }

  async function callProgram(): Promise<NetworkResult | undefined> {
    if (runtime.interruption?.requested && !runtime.interruption.undoing) throw interrupted(runtime.interruption);
    const { limitMs } = runtime;
    const call = { verb, env, stdin, version: list.version, ...(limitMs !== undefined && { limitMs }) };
    const answer = await performIn(runtime)(foreignEffect(where.file, verb), () => runForeign(where.file, call));
    if (!answer) return verb === "ADD" ? { printable: {}, version: list.version, result: {} } : undefined;
    if (answer.stderr !== "") runtime.stderr(answer.stderr);
    if (!answer.result) return undefined;
    const version = answer.result.cniVersion ?? list.version;
    return { result: answer.result, version, printable: printed(JSON.parse(answer.stdout) ?? {}, version, version) };
  }
}

const performIn = ({ explain }: Runtime): Perform => explain?.perform ?? perform;

function interrupted({ requested }: Interruption): CniError {
  return new CniError(code.tryAgain, `interrupted by ${requested}`, "nothing more was started");
}

async function callHere(
  plugin: Plugin,
  env: Readonly<Record<string, string>>,
  stdin: Uint8Array,
  list: NetworkList,
  runtime: Runtime,
): Promise<NetworkResult | undefined> {
  const { interruption, hooks, explain } = runtime;
  const answer = await callPlugin(plugin, {
    env,
    stdin: () => stdin,
    registry: runtime.registry,
    builtin: runtime.builtin,
    warn: runtime.warn,
    ...(interruption && { interruption }),
    ...(hooks && { hooks }),
    ...(explain && { explain }),
  });
  if (!answer.printable) return undefined;
  const version = list.version === "" ? "0.1.0" : list.version;
  return { printable: answer.printable, version, result: parseResult(answer.printable, version) };
}

/** The library's checks of ADD, before any plugin is called. */
function checkNames(list: NetworkList, { containerId, ifName }: Attached): void {
  if (containerId === "") throw new CniError(code.unknownContainer, "missing containerID");
  if (!isName(containerId)) throw new CniError(code.environment, "invalid characters in containerID", containerId);
  if (list.name === "") throw badConfig("missing network name:");
  if (!isName(list.name)) throw badConfig("invalid characters found in network name", list.name);
  if (ifName === "") throw new CniError(code.environment, "interface name is empty");
  checkIfName(ifName);
}

/**
 * Attaches: every member in order, each with the result of the one before; then the result goes into the cache. When
 * anything fails, what the members did is taken back by DEL in reverse order and the first failure is thrown.
 */
export async function addNetwork(list: NetworkList, attached: Attached, runtime: Runtime): Promise<NetworkResult> {
  const located = await locateAll(list, runtime, "add");
  checkNames(list, attached);
  let last: NetworkResult | undefined;
  // A first plugin that is a program and finds the interface in its way must not be followed by a DEL that removes it.
  const mayUndoFirst = located[0]?.own ? true : !await interfaceExists(attached, runtime);
  for (const [index, where] of located.entries()) {
    try {
      const prevResult: JsonObject | undefined = last?.printable;
      last = await callMember({ verb: "ADD", list, index, where, attached, prevResult }, runtime);
    } catch (error) {
      // A plugin of ours took back what it did; for a program nobody knows.
      const from = where.own || (index === 0 && !mayUndoFirst) ? index - 1 : index;
      const undone = await undoAdd(list, attached, { runtime, located, from, last });
      throw new MemberError(list, index, "add", toCniError(error), undone);
    }
  }
  const final = last as NetworkResult;
  runtime.before?.("ADD", "");
  try {
    performIn(runtime)({
      file: cachePath(runtime.cache, attached),
      text: cacheText(list, attached, final.printable),
      why: "runtimes and cnitool find the attachment and its result here",
    }, () => writeCache(runtime.cache, list, attached, final.printable));
  } catch (error) {
    const from = list.plugins.length - 1;
    const undone = await undoAdd(list, attached, { runtime, located, from, last });
    throw new CniError(
      code.io,
      `failed to set network ${goQuote(list.name)} cached result: ${(error as Error).message}`,
      undone.join("; "),
    );
  }
  return final;
}

async function interfaceExists({ netns, ifName }: Attached, runtime: Runtime): Promise<boolean> {
  if (netnsState(netns) !== "netns") return false;
  const pod = inNetns(systemRun(runtime.hooks ?? {}), netns.includes("/") ? netns : `./${netns}`);
  try {
    return (await pod({ argv: ["ip", "link", "show", "dev", ifName] })).code === 0;
  } catch {
    return false;
  }
}

interface Undoing {
  readonly runtime: Runtime;
  readonly located: readonly Located[];
  /** The last member to be called. */
  readonly from: number;
  readonly last: NetworkResult | undefined;
}

/** DEL of the first members of a list, in reverse; goes on past failures and says what came of it. */
async function undoAdd(list: NetworkList, attached: Attached, undoing: Undoing): Promise<string[]> {
  const { runtime, located, from, last } = undoing;
  if (runtime.explain) return [];
  const { interruption } = runtime;
  if (interruption) interruption.undoing = true;
  const done: string[] = [];
  const failed: string[] = [];
  for (let index = from; index >= 0; index--) {
    const member = list.plugins[index] as Member;
    const prevResult = atLeast(list.version, "0.4.0") ? last?.printable : undefined;
    try {
      await callMember({ verb: "DEL", list, index, where: located[index], attached, prevResult }, runtime);
      done.push(member.type);
    } catch (error) {
      failed.push(`DEL of ${member.type} failed: ${toCniError(error).message}`);
    }
  }
  if (interruption) interruption.undoing = false;
  return [...(done.length > 0 ? [`undone by DEL of ${done.join(", ")}`] : []), ...failed];
}

/** What DEL does beside the reference library's way. */
export interface DelOptions {
  /** Go on past a member that fails; all failures are reported at the end. */
  readonly force?: boolean;
}

/**
 * Detaches: every member in reverse order with the cached result, then the cache file goes. Stops at the first member
 * that fails, as the protocol has it: what follows may depend on it, an address must not be released while rules
 * still lead to it.
 */
export async function delNetwork(
  list: NetworkList,
  attached: Attached,
  runtime: Runtime,
  { force = false }: DelOptions = {},
): Promise<void> {
  const prevResult = resultForDel(list, attached, runtime);
  const failures: MemberError[] = [];
  for (let index = list.plugins.length - 1; index >= 0; index--) {
    try {
      await callMember({ verb: "DEL", list, index, attached, prevResult }, runtime);
    } catch (error) {
      const failure = new MemberError(list, index, "delete", toCniError(error));
      if (!force) throw failure;
      failures.push(failure);
    }
  }
  const [first, ...others] = failures;
  if (first) {
    if (others.length === 0) throw first;
    throw new CniError(first.code, first.msg, [first.details, ...others.map((one) => one.message)].join("\n"));
  }
  runtime.before?.("DEL", "");
  const effect = { file: cachePath(runtime.cache, attached), why: "the attachment is no more" };
  performIn(runtime)(effect, () => removeCache(runtime.cache, attached));
}

function resultForDel(list: NetworkList, attached: Attached, runtime: Runtime): JsonObject | undefined {
  if (!atLeast(list.version, "0.4.0")) return undefined;
  try {
    return cachedResult(runtime.cache, attached, list.version);
  } catch (error) {
    runtime.warn("cache", `${cachePath(runtime.cache, attached)} cannot be used: ${(error as Error).message}`);
    performIn(runtime)(undefined, () => removeCache(runtime.cache, attached));
    return undefined;
  }
}

/** Looks whether an attachment is as it should be; throws the first complaint. */
export async function checkNetwork(list: NetworkList, attached: Attached, runtime: Runtime): Promise<void> {
  if (!atLeast(list.version, "0.4.0")) {
    throw new CniError(
      code.incompatibleVersion,
      `configuration version ${goQuote(list.version)} does not support the CHECK command`,
      'set "cniVersion" to 0.4.0 or later',
    );
  }
  if (list.disableCheck) return;
  let prevResult: JsonObject | undefined;
  try {
    prevResult = cachedResult(runtime.cache, attached, list.version);
  } catch (error) {
    const text = `failed to get network ${goQuote(list.name)} cached result: ${(error as Error).message}`;
    throw internal(text, cachePath(runtime.cache, attached));
  }
  for (const index of list.plugins.keys()) {
    try {
      await callMember({ verb: "CHECK", list, index, attached, prevResult }, runtime);
    } catch (error) {
      throw new MemberError(list, index, "check", toCniError(error));
    }
  }
}

/** Asks every member whether the next ADD can work; below version 1.1.0 nobody is asked. */
export async function statusNetwork(list: NetworkList, runtime: Runtime): Promise<void> {
  if (!atLeast(list.version, "1.1.0")) return;
  for (const index of list.plugins.keys()) {
    try {
      await callMember({ verb: "STATUS", list, index }, runtime);
    } catch (error) {
      throw new MemberError(list, index, "status", toCniError(error));
    }
  }
}

/** Attachments of a network that are on disk and not in `valid`. */
export function staleAttachments(
  list: NetworkList,
  cache: string,
  valid: readonly ValidAttachment[] | undefined,
): Cached[] {
  const keep = new Set((valid ?? []).map(({ containerID, ifname }) => `${containerID}/${ifname}`));
  return listAttachments(cache).filter((one) =>
    one.network === list.name && !keep.has(`${one.containerId}/${one.ifName}`)
  );
}

/**
 * Collects garbage: DEL of every cached attachment that is not valid, then GC of every member. Without `valid`, every
 * attachment is stale, and members are not told which are valid. Goes on past failures; all of them are thrown as one.
 */
export async function gcNetwork(
  list: NetworkList,
  runtime: Runtime,
  valid?: readonly ValidAttachment[],
): Promise<{ readonly deleted: readonly Cached[] }> {
  if (list.disableGC) return { deleted: [] };
  const failures: { doing: string; error: CniError }[] = [];
  const deleted: Cached[] = [];
  for (const stale of staleAttachments(list, runtime.cache, valid)) {
    try {
      await delNetwork(list, stale, runtime);
      deleted.push(stale);
    } catch (error) {
      const doing = `failed to delete stale attachment ${stale.containerId} ${stale.ifName}`;
      failures.push({ doing, error: toCniError(error) });
    }
  }
  if (atLeast(list.version, "1.1.0")) {
    for (const [index, member] of list.plugins.entries()) {
      try {
        await callMember({ verb: "GC", list, index, valid }, runtime);
      } catch (error) {
        failures.push({ doing: `failed to GC plugin ${member.type}`, error: toCniError(error) });
      }
    }
  }
  if (failures.length > 0) throw new GcError(failures);
  return { deleted };
}

/** Versions that a plugin says it speaks: the library's VERSION probe. */
export async function probeVersions(type: string, runtime: Runtime): Promise<readonly string[]> {
  const { file, own } = await locate(type, runtime);
  return own ? own.versions : await foreignVersions(file, runtime);
}
