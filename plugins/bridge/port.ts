/** A Linux bridge and a container's port on it: what the bridge plugin needs, short of the container itself. */
import type { ContainerCall } from "../../lib/cni/plugin.ts";
import type { Address, Link } from "../../lib/kernel/ip.ts";
import { linkExists, linkFolder, listKernelFolder, readKernelFile } from "../../lib/kernel/proc.ts";
import { canonicalAddress } from "../../lib/net/cidr.ts";

/** Most ports that the kernel allows on one bridge (BR_MAX_PORTS − 1). */
export const MAX_PORTS = 1023;

/** What a bridge should be like. Addresses in CIDR form. */
export interface BridgeRequest {
  readonly name: string;
  readonly mtu: number;
  readonly vlanFiltering: boolean;
  readonly promisc: boolean;
  /** Gateway addresses that belong on the bridge itself. */
  readonly addresses: readonly string[];
  readonly forceAddress: boolean;
}

/** A link, and the MAC that it had before it got a port: a bridge whose MAC nobody set takes one of a port's. */
export interface BridgeNow extends Link {
  readonly macBefore?: string | undefined;
}

/** Is there nothing that the bridge lacks, and nothing wrong with it? The usual case. */
export function isComplete(now: BridgeNow, request: BridgeRequest): boolean {
  const { linkinfo, flags, mtu, promiscuity, addr_info = [] } = now;
  return linkinfo?.info_kind === "bridge" && flags.includes("UP") && mtu >= request.mtu &&
    (!request.promisc || Boolean(promiscuity)) &&
    (!request.vlanFiltering || Boolean(linkinfo.info_data?.["vlan_filtering"])) &&
    request.addresses.every((wanted) => addr_info.some((one) => hasAddress(one, wanted)));
}

/** Is an address of a link this one, in CIDR form? */
export function hasAddress(one: Address, cidr: string): boolean {
  return `${canonicalAddress(one.local)}/${one.prefixlen}` === cidr;
}

/** Ports of a bridge, whose index may be known; undefined where they cannot be seen. */
export function portsOf(name: string, ifindex?: number): string[] | undefined {
  try {
    if (linkExists(name) === false) return [];
    const folder = linkFolder(name, ifindex);
    return folder === undefined ? undefined : listKernelFolder(`${folder}/brif`);
  } catch {
    return undefined;
  }
}

/**
 * Pauses between looks at a port that is not up yet, in milliseconds: 2.6 s altogether, as long as the reference waits.
 */
const PAUSES = [0.5, 1, 1, 2, 2, 5, 10, 20, 50, 100, 200, 200, 500, 500, 500, 500];

/** Waits until a port's operational state is up. Returns the last state seen: "up" unless time ran out. */
export async function waitForPort(call: ContainerCall, port: string): Promise<string> {
  let state = await portState(call, port);
  for (const pause of PAUSES) {
    if (state === "up") return state;
    await new Promise((resolve) => setTimeout(resolve, pause));
    state = await portState(call, port);
  }
  return state;
}

/** A port's operational state: from sysfs when that shows our namespace, which costs no process; else from `ip`. */
export async function portState(call: ContainerCall, port: string): Promise<string> {
  const folder = linkFolder(port);
  if (folder !== undefined) {
    try {
      return readKernelFile(`${folder}/operstate`).trim();
    } catch {
      // It has just gone; the kernel says so below.
    }
  }
  const { stdout } = await call.host({ argv: ["ip", "-j", "link", "show", "dev", port] });
  const [link] = JSON.parse(stdout || "[]") as Link[];
  return (link?.operstate ?? "not-present").toLowerCase().replace("lowerlayerdown", "lower-layer-down").replace(
    "notpresent",
    "not-present",
  );
}
