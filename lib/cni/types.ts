/** The protocol's objects, keys as on the wire. Inside cnibox a result always has the layout of CNI 1.1.0. */
import type { Attachment } from "../net/name.ts";

/** Versions of the protocol that can be spoken, oldest first. */
export const VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] as const;
export type Version = typeof VERSIONS[number];
/** The newest version; what VERSION answers and what results are converted from. */
export const NEWEST: Version = "1.1.0";

/** Every version from `first` on: what a plugin supports. */
export function since(first: Version): readonly Version[] {
  return VERSIONS.slice(VERSIONS.indexOf(first));
}

/** Any JSON object as it came in. */
export type JsonObject = { [key: string]: unknown };

/** An interface that a plugin made or changed; `sandbox` is the namespace's path, absent for the host's own. */
export interface Interface {
  name: string;
  mac?: string;
  mtu?: number;
  sandbox?: string;
  socketPath?: string;
  pciID?: string;
}

/** An address in CIDR form; `interface` is an index into the result's `interfaces`. */
export interface IPConfig {
  address: string;
  interface?: number;
  gateway?: string;
}

/** A route to put into the container. `table` and `scope` are printed even when 0; the others only when not 0. */
export interface Route {
  dst: string;
  gw?: string;
  mtu?: number;
  advmss?: number;
  priority?: number;
  table?: number;
  scope?: number;
}

/** Resolver settings handed to the runtime. */
export interface DNS {
  nameservers?: string[];
  domain?: string;
  search?: string[];
  options?: string[];
}

/** What ADD answers, in the layout of CNI 1.1.0. `version` is the one it came in with, for results of others. */
export interface Result {
  cniVersion?: string;
  interfaces?: Interface[];
  ips?: IPConfig[];
  routes?: Route[];
  dns?: DNS;
}

/** An attachment as GC names it. */
export interface ValidAttachment {
  readonly containerID: string;
  readonly ifname: string;
}

/** Attachments that GC names, as everything else here names them. */
export function attachmentsOf(network: string, valid: readonly ValidAttachment[]): Attachment[] {
  return valid.map(({ containerID, ifname }) => ({ network, containerId: containerID, ifName: ifname }));
}
