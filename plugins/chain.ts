/**
 * chain: the members of a plugin list in one call. Ours alone; no other plugin set has it.
 *
 * A runtime starts a process for every member of a list. Here it starts one, and the members run inside, each with the
 * request that the list would have sent it, so that a list and its folded form leave the same on the node. A member that
 * CNI_PATH leads to another program for is started as that program.
 */
import { anyObject, anything, decode, isObject, type Key, list, lookup } from "../lib/cni/decode.ts";
import { lookUp } from "../lib/cni/delegate.ts";
import { CniError, code, toCniError } from "../lib/cni/error.ts";
import { CHAIN, ChainError, chainMembers, ConfigError, type Member, requestOf } from "../lib/cni/member.ts";
import type { Call, ContainerCall, DelegateVerb, NetworkCall, Plugin } from "../lib/cni/plugin.ts";
import { type JsonObject, type Result, since } from "../lib/cni/types.ts";
import { convertResult } from "../lib/cni/version.ts";

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

async function add(call: ContainerCall): Promise<Result> {
  const parts = partsOf(call);
  for (const part of parts) await readable(call, part);
  let last = given(call);
  let result: Result = {};
  for (const part of parts) {
    ({ result = {} } = await ask(call, part, { verb: "ADD", prevResult: last }));
    const prevResult = last = convertResult(result, call.version);
    // What runs in this process has handed over how to take it back.
    if (isForeign(call, part.member.type)) call.undo(() => ask(call, part, { verb: "DEL", prevResult }));
  }
  return result;
}

/** Finds a mistake of one member, or of its IPAM plugin, before any member has changed anything. */
async function readable(call: ContainerCall, part: Part): Promise<void> {
  await ask(call, part, { verb: "PARSE" });
  const ipam = lookup(part.member.config, "ipam");
  const type = isObject(ipam) ? lookup(ipam, "type") : undefined;
  if (typeof type === "string" && type !== "" && !isForeign(call, type)) await ask(call, part, { verb: "PARSE", type });
}

/** In reverse, all of them whatever fails. */
async function del(call: ContainerCall): Promise<void> {
  await each(partsLeniently(call).reverse(), (part) => ask(call, part, { verb: "DEL", prevResult: given(call) }));
}

async function check(call: ContainerCall): Promise<void> {
  for (const part of partsOf(call)) await ask(call, part, { verb: "CHECK", prevResult: given(call) });
}

async function gc(call: NetworkCall): Promise<void> {
  await each(partsLeniently(call), (part) => unlessUnknown(call, part, "GC"));
}

async function status(call: NetworkCall): Promise<void> {
  for (const part of partsOf(call)) await unlessUnknown(call, part, "STATUS");
}

/** GC and STATUS are younger than many programs: one that does not know them has nothing to say. */
async function unlessUnknown(call: NetworkCall, part: Part, verb: "GC" | "STATUS"): Promise<void> {
  try {
    await ask(call, part, { verb, valid: call.valid });
  } catch (error) {
    const { code: number, msg } = error as CniError;
    const unknown = number === code.incompatibleVersion || msg === `unknown CNI_COMMAND: ${verb}`;
    if (!unknown || !isForeign(call, part.member.type)) throw error;
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
      member instanceof ChainError ? new CniError(code.config, member.message, advice) : { member, index, count }
    );
  } catch (error) {
    throw new CniError(code.config, (error as ConfigError).message, advice);
  }
}

/** Work on every member; at the end the first failure is thrown, with the others in `details`. */
async function each(
  parts: readonly (Part | CniError)[],
  work: (part: Part) => Promise<unknown>,
): Promise<void> {
  const failures: CniError[] = [];
  for (const part of parts) {
    try {
      if (part instanceof CniError) throw part;
      await work(part);
    } catch (error) {
      failures.push(toCniError(error));
    }
  }
  const [first, ...others] = failures;
  if (first === undefined) return;
  const also = others.map(({ msg, details }) => `${details}: ${msg}`);
  throw new CniError(first.code, first.msg, [first.details, ...also].join("\n"));
}

interface Request {
  readonly verb: DelegateVerb;
  /** Which plugin is asked; the member's own if absent. */
  readonly type?: string;
  readonly prevResult?: JsonObject | undefined;
  readonly valid?: NetworkCall["valid"];
}

/** Asks a member; what it throws says which one it is. */
async function ask(call: Call, { member, index, count }: Part, { verb, type = member.type, ...more }: Request) {
  const runtimeConfig = lookup(call.config, "runtimeConfig");
  const capabilityArgs = isObject(runtimeConfig) ? runtimeConfig : undefined;
  const stdin = requestOf({ name: call.network, version: call.version }, member, { ...more, capabilityArgs });
  try {
    return await call.delegate(type, verb, { stdin });
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

/** Is this plugin another program? */
function isForeign(call: Call, type: string): boolean {
  try {
    return !lookUp(type, call.path).ours;
  } catch {
    return false;
  }
}
