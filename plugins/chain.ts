/**
 * chain: the members of a plugin list in one call. Ours alone; no other plugin set has it.
 *
 * A runtime starts a process for every member of a list. Here it starts one, and the members run inside, each with the
 * request that the list would have sent it, so that a list and its folded form leave the same on the node. A member
 * that CNI_PATH leads to another program for is started as that program.
 */
import { anyObject, anything, decode, isObject, type Key, list, lookup } from "../lib/cni/decode.ts";
import { isForeign } from "../lib/cni/delegate.ts";
import { badConfig, CniError, code, isInTurn, toCniError } from "../lib/cni/error.ts";
import { CHAIN, ChainError, chainMembers, ConfigError, type Member, requestOf } from "../lib/cni/member.ts";
import type { Call, Company, ContainerCall, DelegateVerb, NetworkCall, Plugin } from "../lib/cni/plugin.ts";
import { type JsonObject, type Result, since } from "../lib/cni/types.ts";
import { convertResult, parsePrevResult } from "../lib/cni/version.ts";
import { joiningRestores } from "../lib/kernel/together.ts";

const flags: Key<JsonObject | undefined> = {
  ...anyObject("what the runtime may hand over: everything that a member declares"),
  schema: { type: "object", additionalProperties: { type: "boolean" } },
};
const keys = {
  plugins: list(anyObject("one plugin"), "the members, each written exactly as in a list"),
  capabilities: flags,
  args: anything("arguments for members that have none of their own"),
  runtimeConfig: anyObject("what the runtime hands over; each member gets what it declares"),
  prevResult: anything("result of the plugin before"),
};

export const plugin: Plugin = {
  name: CHAIN,
  kind: "meta",
  about: "runs the members of a plugin list in one call",
  // Those that every member of this binary speaks; a test compares.
  versions: since("0.4.0"),
  needs: [],
  keys,
  add,
  del,
  check,
  gc,
  status,
};

/** One member in this call. */
interface Part {
  readonly member: Member;
  readonly index: number;
  readonly count: number;
}

/** Members that set rules of the host, and hand the result before them on: their neighbours need not wait for them. */
const RULES_ONLY = ["firewall", "portmap"];

async function add(call: ContainerCall): Promise<Result> {
  const parts = partsOf(call);
  for (const part of parts) await readable(call, part);
  const company = new Jobs(call);
  const last = parts.findLastIndex((part) => company.mayRunBeside(part));
  let result: Result | undefined;
  let prevResult = given(call);
  try {
    for (const part of parts) {
      if (prevResult && company.mayRunBeside(part)) {
        company.start(part, { verb: "ADD", prevResult });
        continue;
      }
      if (isForeign(call, part.member.type)) await company.done();
      // Rules are only worth waiting for when others are to come.
      const later = part.index < last ? (job: () => Promise<unknown>) => company.startWithNext(part, job) : undefined;
      ({ result = {} } = await ask(call, part, { verb: "ADD", prevResult, through: company.through, later }));
      prevResult = convertResult(result, call.version);
      // What runs in this process has handed over how to take it back.
      if (isForeign(call, part.member.type)) call.undo(() => ask(call, part, { verb: "DEL", prevResult }));
    }
  } catch (error) {
    // Whatever is under way is known before anything is taken back; nothing more is started.
    await company.settled;
    throw error;
  }
  await company.done();
  return result ?? parsePrevResult(prevResult ?? {}, call.version);
}

/** Members at work beside those that come after them, whose rules go into common transactions. */
class Jobs {
  readonly through = joiningRestores();
  readonly #running: { readonly part: Part; readonly work: Promise<unknown> }[] = [];
  #next: (() => void)[] = [];

  constructor(readonly call: ContainerCall) {}

  mayRunBeside({ member }: Part): boolean {
    return RULES_ONLY.includes(member.type) && !isInTurn(this.call) && !isForeign(this.call, member.type);
  }

  /** Starts a member, and with it what has waited for the next one. */
  start(part: Part, request: Request): void {
    this.#next.splice(0).forEach((job) => job());
    this.#run(part, ask(this.call, part, { ...request, through: this.through }));
  }

  startWithNext(part: Part, job: () => Promise<unknown>): void {
    this.#next.push(() => this.#run(part, naming(part, job)));
  }

  #run(part: Part, work: Promise<unknown>): void {
    work.catch(() => {}); // whoever waits for it is told
    this.#running.push({ part, work });
  }

  /** Ends when all have ended. */
  get settled(): Promise<unknown> {
    return Promise.allSettled(this.#running.map(({ work }) => work));
  }

  /** Waits for all; throws the failure of the first in the list. */
  async done(): Promise<void> {
    this.#next.splice(0).forEach((job) => job());
    await this.settled;
    for (const { work } of this.#running.toSorted((a, b) => a.part.index - b.part.index)) await work;
  }
}

/** Finds a mistake of one member, or of its IPAM plugin, before any member has changed anything. */
async function readable(call: ContainerCall, part: Part): Promise<void> {
  await ask(call, part, { verb: "PARSE" });
  const ipam = lookup(part.member.config, "ipam");
  const type = isObject(ipam) ? lookup(ipam, "type") : undefined;
  if (typeof type === "string" && type !== "" && !isForeign(call, type)) await ask(call, part, { verb: "PARSE", type });
}

/** In reverse, all of them whatever fails. Addresses are released when the rules that lead to them are gone. */
async function del(call: ContainerCall): Promise<void> {
  const prevResult = given(call);
  const company = new Jobs(call);
  const ends: Promise<unknown>[] = [];
  for (const part of partsLeniently(call).reverse()) {
    const before = Promise.allSettled(ends);
    const beside = part instanceof CniError || company.mayRunBeside(part);
    if (!beside && isForeign(call, part.member.type)) await before;
    const end = askIf(call, part, { verb: "DEL", prevResult, through: company.through, before });
    ends.push(end);
    if (!beside) await Promise.allSettled([end]);
  }
  report(await Promise.allSettled(ends));
}

async function check(call: ContainerCall): Promise<void> {
  for (const part of partsOf(call)) await ask(call, part, { verb: "CHECK", prevResult: given(call) });
}

async function gc(call: NetworkCall): Promise<void> {
  const ends: PromiseSettledResult<unknown>[] = [];
  for (const part of partsLeniently(call)) ends.push(...await Promise.allSettled([unlessUnknown(call, part, "GC")]));
  report(ends);
}

async function status(call: NetworkCall): Promise<void> {
  for (const part of partsOf(call)) await unlessUnknown(call, part, "STATUS");
}

/** GC and STATUS are younger than many programs: one that does not know them has nothing to say. */
async function unlessUnknown(call: NetworkCall, part: Part | CniError, verb: "GC" | "STATUS"): Promise<void> {
  try {
    await askIf(call, part, { verb, valid: call.valid });
  } catch (error) {
    const { code: number, msg } = error as CniError;
    const unknown = number === code.incompatibleVersion || msg === `unknown CNI_COMMAND: ${verb}`;
    if (!unknown || part instanceof CniError || !isForeign(call, part.member.type)) throw error;
  }
}

/** Members in order. A mistake in any of them is thrown. */
function partsOf(call: Call): Part[] {
  const parts = partsLeniently(call).map((part) => {
    if (part instanceof CniError) throw part;
    return part;
  });
  decode(keys, call.config, "failed to load netconf");
  return parts;
}

/** Members in order, with the error for each that cannot be read in its place. */
function partsLeniently({ config }: Call): (Part | CniError)[] {
  const advice = '"plugins" lists the members, each written as in a network list';
  try {
    return chainMembers(config).map((member, index, { length: count }) =>
      member instanceof ChainError ? badConfig(member.message, advice) : { member, index, count }
    );
  } catch (error) {
    throw badConfig((error as ConfigError).message, advice);
  }
}

/** Throws the first failure, with the others in `details`. */
function report(ends: readonly PromiseSettledResult<unknown>[]): void {
  const failures = ends.filter((end) => end.status === "rejected").map(({ reason }) => toCniError(reason));
  const [first, ...others] = failures;
  if (first === undefined) return;
  const also = others.map(({ msg, details }) => `${details}: ${msg}`);
  throw new CniError(first.code, first.msg, [first.details, ...also].join("\n"));
}

interface Request extends Company {
  readonly verb: DelegateVerb;
  /** Which plugin is asked; the member's own if absent. */
  readonly type?: string;
  readonly prevResult?: JsonObject | undefined;
  readonly valid?: NetworkCall["valid"];
}

/** Asks a member; what it throws says which one it is. */
async function ask(call: Call, part: Part, { verb, type = part.member.type, prevResult, valid, ...company }: Request) {
  const runtimeConfig = lookup(call.config, "runtimeConfig");
  const capabilityArgs = isObject(runtimeConfig) ? runtimeConfig : undefined;
  const injection = { prevResult, valid, capabilityArgs };
  const stdin = requestOf({ name: call.network, version: call.version }, part.member, injection);
  return await naming(part, () => call.delegate(type, verb, { stdin, ...company }));
}

/** The same for a member that may be none. */
async function askIf(call: Call, part: Part | CniError, request: Request): Promise<unknown> {
  if (part instanceof CniError) throw part;
  return await ask(call, part, request);
}

async function naming<T>({ member, index, count }: Part, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    const { code, msg, details } = toCniError(error);
    const place = `plugin ${index + 1} of ${count} (${member.type})`;
    throw new CniError(code, msg, details === "" ? place : `${place}: ${details}`);
  }
}

/** The call's own `prevResult`, as it came. */
function given({ config }: Call): JsonObject | undefined {
  const result = lookup(config, "prevResult");
  return isObject(result) ? result : undefined;
}
