/**
 * The frame of the plugins that give a container a link: what DEL, CHECK, GC and STATUS do in all of them is said here,
 * and a plugin adds what is its own.
 */
import { decodeLeniently, type Fields, type Key, type Keys } from "../cni/decode.ts";
import type { ContainerCall, NetworkCall, Plugin } from "../cni/plugin.ts";
import { type JsonObject, type Result, since, type ValidAttachment } from "../cni/types.ts";
import { ipamTypeLeniently, release } from "./ipam.ts";
import type { CheckPlan } from "./verify.ts";

type Job = () => Promise<unknown>;

/** What one plugin says for itself. */
export interface LinkPlugin<K extends Keys> {
  readonly name: string;
  readonly about: string;
  readonly keys: K;
  /** A configuration without an IPAM plugin is an error. */
  readonly ipamRequired?: boolean;
  readonly parse: Plugin["parse"];
  add(call: ContainerCall): Promise<Result>;
  check(call: ContainerCall): CheckPlan;
  /** DEL: what removes the link, side by side with what else is removed before the addresses are released. */
  detach?(call: ContainerCall, conf: Fields<K>): readonly Job[] | Promise<readonly Job[]>;
  /** DEL, where that does not do. */
  readonly del?: Plugin["del"];
  /** Its links are veth pairs whose host ends show whose they are. */
  readonly pairs?: boolean;
  /** GC: removes what else belongs to none of the valid attachments, one group after the other; addresses come last. */
  collect?(call: NetworkCall, valid: readonly ValidAttachment[], conf: Fields<K>): readonly (readonly Job[])[];
  /** STATUS: throws when something else is missing than tools and the IPAM plugin. */
  status?(call: NetworkCall, conf: Fields<K>): Promise<unknown> | void;
  /** Tools that this configuration needs besides. */
  tools?(conf: Fields<K>): readonly string[];
}

/** Tools that all of them need. */
export const NEEDS = ["ip", "nsenter", "sh"];

/** `ipam` of a configuration. */
export function ipamOf<K extends Keys>(conf: Fields<K>): JsonObject | undefined {
  return conf["ipam"] as JsonObject | undefined;
}

/** Makes the plugin. */
export function linkPlugin<K extends Keys & { readonly ipam: Key<JsonObject | undefined> }>(
  own: LinkPlugin<K>,
): Plugin {
  const { name, about, keys, parse, add, ipamRequired: required = false } = own;
  async function del(call: ContainerCall): Promise<void> {
    const conf = decodeLeniently(keys, call.config, call.warn);
    await release(call, ipamTypeLeniently(ipamOf(conf)), { jobs: await own.detach?.(call, conf) ?? [], required });
  }

  async function check(call: ContainerCall): Promise<void> {
    const plan = own.check(call);
    const { checkAttached } = await import("./verify.ts");
    await checkAttached(call, plan);
  }

  return {
    name,
    kind: "main",
    about,
    versions: since("0.1.0"),
    needs: NEEDS,
    keys,
    parse,
    add,
    del: own.del ?? del,
    check,
    gc: async (call) => await (await import("./link_upkeep.ts")).gcOf(call, own),
    status: async (call) => await (await import("./link_upkeep.ts")).statusOf(call, own),
  };
}
