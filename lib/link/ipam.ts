/** What a main plugin does with its IPAM plugin, and with `dns`, beside asking it for addresses. */
import {
  anyObject,
  anything,
  FieldError,
  flag,
  isObject,
  type Key,
  kindOf,
  lookup,
  maybeText,
  refine,
} from "../cni/decode.ts";
import { all, groupsFor, internal } from "../cni/error.ts";
import type { ContainerCall } from "../cni/plugin.ts";
import type { DNS, JsonObject, Result } from "../cni/types.ts";
import { readDns } from "../cni/version.ts";

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

/** Keys of plugins that can masquerade. */
export const masqueradeKeys = {
  ipMasq: flag(false, "masquerade traffic that leaves the container's subnet"),
  ipMasqBackend: maybeText("iptables or nftables; iptables when it works, if absent", {
    oneOf: ["iptables", "nftables"],
  }),
};

/** `ipam.type`, "" when there is none. `doing`: the plugin's words for a configuration that it cannot read. */
export function ipamType(ipam: JsonObject | undefined, doing = "failed to load netconf"): string {
  const type = (ipam && lookup(ipam, "type")) ?? "";
  if (typeof type === "string") return type;
  throw internal(
    `${doing}: json: cannot unmarshal ${kindOf(type)} into Go struct field NetConf.ipam.type of type string`,
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
 * DEL: links and rules away, then the addresses released, so that nobody gets one that is still in use; but a plugin
 * that works through the link (dhcp) comes first. Whatever fails, the rest is done. With `required`, no type is an
 * error.
 */
export async function release(
  call: ContainerCall,
  type: string,
  options: { jobs: readonly (() => Promise<unknown>)[]; required?: boolean },
): Promise<void> {
  const give = type === "" && !options.required ? [] : [() => call.delegate(type, "DEL")];
  const groups = groupsFor(call, options.jobs);
  await (needsLink(type) ? all(give, ...groups) : all(...groups, give));
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
