/** What a main plugin does with its IPAM plugin, and with `dns`, beside asking it for addresses. */
import { anyObject, anything, FieldError, isObject, type Key, lookup, refine } from "../cni/decode.ts";
import { all, CniError, code } from "../cni/error.ts";
import type { ContainerCall, NetworkCall } from "../cni/plugin.ts";
import type { DNS, JsonObject, Result } from "../cni/types.ts";
import { readDns } from "../cni/version.ts";
import { missingTool, toolPath } from "../kernel/run.ts";

const dns: Key<DNS | undefined> = refine(anything("resolver settings for the result"), checkedDns, undefined);

function checkedDns(value: unknown, path: string): DNS | undefined {
  try {
    return readDns(value);
  } catch (error) {
    throw new FieldError(
      path,
      (error as Error).message,
      `"${path}" is an object of nameservers, domain, search, options`,
    );
  }
}

/** Keys of every main plugin's configuration. */
export const ipamKeys = {
  ipam: anyObject("who gives the container its addresses: `type` names an IPAM plugin, which reads the rest"),
  dns,
  prevResult: anything("result of the plugin before"),
};

/** `ipam.type`, "" when there is none. `doing`: the plugin's words for a configuration that it cannot read. */
export function ipamType(ipam: JsonObject | undefined, doing = "failed to load netconf"): string {
  const type = (ipam && lookup(ipam, "type")) ?? "";
  if (typeof type === "string") return type;
  const kind = Array.isArray(type) ? "array" : typeof type === "boolean" ? "bool" : typeof type;
  throw new CniError(
    code.internal,
    `${doing}: json: cannot unmarshal ${kind} into Go struct field NetConf.ipam.type of type string`,
    `"ipam.type" is ${JSON.stringify(type)}: write the name of an IPAM plugin`,
  );
}

/** The same for DEL and GC, for which a type that cannot be read is none. */
export function ipamTypeLeniently(ipam: JsonObject | undefined): string {
  const type = ipam && lookup(ipam, "type");
  return typeof type === "string" ? type : "";
}

/** Does this IPAM plugin need the container's link before it can answer? Those here do not; of others nobody knows. */
export function needsLink(type: string): boolean {
  return type !== "host-local" && type !== "static" && type !== "cluster";
}

/**
 * DEL: links and rules away, then the addresses given back, so that nobody gets one that is still in use; but a plugin
 * that works through the link (dhcp) comes first. Whatever fails, the rest is done. With `required`, no type is an
 * error.
 */
export async function release(
  call: ContainerCall,
  type: string,
  options: { jobs: readonly (() => Promise<unknown>)[]; required?: boolean },
): Promise<void> {
  const give = type === "" && !options.required ? [] : [() => call.delegate(type, "DEL")];
  if (needsLink(type)) await all(give, options.jobs);
  else await all(options.jobs, give);
}

/** The addresses that an IPAM plugin of this process still has for the attachment. */
export async function heldAddresses(call: ContainerCall, type: string): Promise<readonly string[]> {
  try {
    return await call.held(type);
  } catch {
    // Its DEL will say what is wrong.
    return [];
  }
}

/** GC of the IPAM plugin; one that does not know the command has nothing to say. */
export async function collectAddresses(call: NetworkCall, type: string): Promise<void> {
  if (type === "") return;
  try {
    await call.delegate(type, "GC");
  } catch (error) {
    const unknown: readonly number[] = [code.environment, code.incompatibleVersion];
    if (!(error instanceof CniError) || !unknown.includes(error.code)) throw error;
    call.warn(`${type} collects nothing: ${error.msg}`);
  }
}

const PACKAGES: Readonly<Record<string, string>> = {
  ip: "iproute2",
  tc: "iproute2, on some systems iproute-tc",
  nsenter: "util-linux",
  runcon: "coreutils",
};

/** STATUS of the tools that a plugin starts; for ADD, before anything is touched, with another code for `failure`. */
export function statusTools(names: readonly string[], failure: number = code.notAvailable): void {
  const missing = names.find((name) => toolPath(name) === "");
  if (missing === undefined) return;
  const details = `install the package ${PACKAGES[missing] ?? missing}`;
  throw new CniError(failure, missingTool(missing), details);
}

/** STATUS of something that the next ADD needs: a failure gets code 50. */
export async function needed(work: Promise<unknown>): Promise<void> {
  try {
    await work;
  } catch (error) {
    if (!(error instanceof CniError)) throw error;
    throw new CniError(code.notAvailable, error.msg, error.details);
  }
}

/** The result with these resolver settings and no others. */
export function withDns(result: Result, dns: DNS | undefined): Result {
  const { dns: _, ...rest } = result;
  return dns ? { ...rest, dns } : rest;
}

/** `dns` as it was written, checked, for {@linkcode replacesDns}. */
export const writtenDns: Key<unknown> = refine(
  anything("resolver settings, instead of those of the IPAM plugin"),
  (value, path) => {
    checkedDns(value, path);
    return value;
  },
  undefined,
);

/** Does `dns` of the configuration replace the IPAM plugin's as a whole? Any member does, even an empty list. */
export function replacesDns(dns: unknown): boolean {
  if (!isObject(dns)) return false;
  const lists = ["nameservers", "search", "options"].some((name) => Array.isArray(lookup(dns, name)));
  return lists || (lookup(dns, "domain") ?? "") !== "";
}
