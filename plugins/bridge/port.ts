/** A Linux bridge and a container's port on it: what the bridge plugin needs, short of the container itself. */
import { CniError, code } from "../../lib/cni/error.ts";
import type { Call, ContainerCall } from "../../lib/cni/plugin.ts";
import { addrDel, type Address, addrShow, isNamed, type Link, linkUp } from "../../lib/kernel/ip.ts";
import { apply, type Step, step, StepError } from "../../lib/kernel/plan.ts";
import { linkExists, linkFolder, listKernelFolder, readKernelFile } from "../../lib/kernel/proc.ts";
import { isAbsent } from "../../lib/kernel/run.ts";
import { readFailure } from "../../lib/link/failure.ts";
import { noRouterAdvertisements } from "../../lib/link/host_end.ts";
import { canonicalAddress, isLinkLocal, parseAddress, parsePrefix, prefixesOverlap } from "../../lib/net/cidr.ts";

/** Most ports that the kernel allows on one bridge (BR_MAX_PORTS − 1). */
export const MAX_PORTS = 1023;

/** The line that makes a bridge. Its MAC is named, so that it is pinned: it does not follow the ports' MACs. */
export function bridgeAdd(name: string, options: { mtu: number; vlanFiltering: boolean }): string {
  const bytes = crypto.getRandomValues(new Uint8Array(6));
  bytes[0] = ((bytes[0] ?? 0) & 0xfc) | 0x02;
  const mac = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(":");
  const { mtu, vlanFiltering } = options;
  return `link add name ${name} address ${mac}${mtu > 0 ? ` mtu ${mtu}` : ""} type bridge${
    vlanFiltering ? " vlan_filtering 1" : ""
  }`;
}

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

/**
 * Steps that bring an existing bridge to the requested state, but for its addresses; none in the usual case. Throws
 * when that must not be done.
 */
export function ensureBridge(now: Link, request: BridgeRequest, warn: (note: string) => void): Step[] {
  const name = now.ifname;
  const front = `failed to create bridge "${request.name}"`;
  if (now.linkinfo?.info_kind !== "bridge") throw notABridge(now, request.name);
  const steps: Step[] = [];
  if (request.vlanFiltering && !now.linkinfo.info_data?.["vlan_filtering"]) {
    warn(`bridge ${name} had no VLAN filtering; switching it on`);
    steps.push(
      step("host", "ip", `link set dev ${name} type bridge vlan_filtering 1`, {
        failing: `${front}: could not enable VLAN filtering`,
        why: "without it vlan has no effect",
      }),
    );
  }
  if (request.promisc && !now.promiscuity) {
    steps.push(
      step("host", "ip", `link set dev ${name} promisc on`, {
        failing: `${front}: could not set promiscuous mode on "${name}"`,
        why: "promiscMode",
      }),
    );
  }
  if (!now.flags.includes("UP")) steps.push(step("host", "ip", linkUp(name), { failing: front }));
  if (request.mtu > 0 && now.mtu < request.mtu) {
    warn(
      `mtu ${request.mtu} is larger than that of the existing bridge ${name}, ${now.mtu}: larger packets between them are lost`,
    );
  }
  return steps;
}

/** The error for a link of the bridge's name that is something else. */
export function notABridge({ linkinfo }: Link, name: string): CniError {
  return new CniError(
    code.internal,
    `failed to create bridge "${name}": "${name}" already exists but is not a bridge`,
    `it is ${linkinfo?.info_kind ?? "a physical link"}: choose another name in "bridge"`,
  );
}

/**
 * Steps that put addresses on a link; a conflict is an error, or with forceAddress removed. With them the link gets the
 * MAC for good that it had before it got a port, see {@linkcode macAfter}. `port`: the one that this call makes.
 */
export function addressSteps(
  now: BridgeNow,
  request: Pick<BridgeRequest, "addresses" | "forceAddress"> & { readonly port?: string },
  front: string,
): Step[] {
  const name = now.ifname;
  const there = now.addr_info ?? [];
  const steps: Step[] = [];
  for (const wanted of request.addresses) {
    if (there.some((one) => sameAddress(one, wanted))) continue;
    for (
      const other of there.filter((one) =>
        conflicts(one, wanted) && !request.addresses.some((ours) => sameAddress(one, ours))
      )
    ) {
      const cidr = `${other.local}/${other.prefixlen}`;
      if (!request.forceAddress) {
        const all = there.map((one) => `${one.local}/${one.prefixlen}`).join(" ");
        throw new CniError(
          code.internal,
          `${front}: "${name}" already has an IP address different from ${wanted}`,
          `addresses of ${name}: ${all}; wanted: ${wanted}; ports: ${
            portsOf(name, now.ifindex)?.length ?? "unknown"
          }. If nothing uses ${cidr} any more: ip addr del ${cidr} dev ${name}; or set "forceAddress"`,
        );
      }
      steps.push(
        step("host", "ip", addrDel(cidr, name), {
          failing: `could not remove IP address from "${name}"`,
          why: "forceAddress",
        }),
      );
    }
    const six = wanted.includes(":");
    const brd = !six && Number(wanted.split("/")[1]) <= 30 ? " brd +" : "";
    // A bridge with no port but the new one has nobody who could hold a duplicate.
    const nodad = six && isAlone(now, request.port) ? " nodad" : "";
    steps.push(step("host", "ip", `addr replace ${wanted}${brd} dev ${name}${nodad}`, {
      failing: `${front}: could not add IP address ${wanted} to "${name}"`,
      why: "the containers' gateway",
    }));
  }
  // Naming the MAC pins it: otherwise the kernel gives the bridge the lowest MAC of its ports.
  const mac = macAfter(now, steps);
  if (steps.length > 0 && mac && !/^[0:]+$/.test(mac)) {
    steps.push(
      step("host", "ip", `link set dev ${name} address ${mac}`, {
        failing: `${front}: could not set bridge's mac ${mac}`,
        why: "pin the MAC: the kernel would change it with the ports",
      }),
    );
  }
  return steps;
}

/** The link's MAC once these {@linkcode addressSteps} are carried out. */
export function macAfter({ address, macBefore = address }: BridgeNow, steps: readonly Step[]): string | undefined {
  return steps.length > 0 ? macBefore : address;
}

function sameAddress(one: Address, cidr: string): boolean {
  return `${canonicalAddress(one.local)}/${one.prefixlen}` === cidr;
}

/** Any other IPv4 address is in conflict; of IPv6 those whose prefixes overlap, link-local ones never. */
function conflicts(one: Address, wanted: string): boolean {
  const six = wanted.includes(":");
  if ((one.family === "inet6") !== six) return false;
  if (!six) return true;
  const address = parseAddress(one.local);
  const [a, b] = [parsePrefix(`${one.local}/${one.prefixlen}`), parsePrefix(wanted)];
  return address !== undefined && !isLinkLocal(address) && a !== undefined && b !== undefined && prefixesOverlap(a, b);
}

/** Is it a bridge without another port than this one? */
function isAlone({ ifname, ifindex, linkinfo }: Link, port: string | undefined): boolean {
  return linkinfo?.info_kind === "bridge" && (portsOf(ifname, ifindex)?.every((one) => one === port) ?? false);
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

/** Makes the bridge; somebody else may be faster, which is as good. */
export async function createBridge(call: ContainerCall, request: BridgeRequest): Promise<void> {
  const { name } = request;
  const front = `failed to create bridge "${name}": could not add "${name}"`;
  const make = step("host", "ip", bridgeAdd(name, request), { failing: front, why: "there is no such bridge yet" });
  try {
    await apply([[make]], call);
  } catch (error) {
    if (!(error instanceof StepError) || !/File exists/.test(error.output.stderr)) {
      throw await readFailure(
        error,
        ({ said }) =>
          /not supported|Unknown device type/.test(said)
            ? "the kernel lacks CONFIG_BRIDGE or CONFIG_BRIDGE_VLAN_FILTERING: modprobe bridge"
            : undefined,
      );
    }
  }
  await apply([[noRouterAdvertisements(name)]], call);
}

/** The bridge as it is now, or undefined. */
export async function lookAtBridge(call: Call & ContainerCall, name: string): Promise<Link | undefined> {
  try {
    const [shown] = await apply([[step("host", "ip", addrShow(name), { read: true })]], call);
    const link = shown?.[0] as Link | undefined;
    return link && isNamed(link, name) ? link : undefined;
  } catch (error) {
    if (isAbsent(error)) return undefined;
    throw error;
  }
}

/** A VLAN configuration of a port. */
export interface PortVlans {
  /** Access or native VLAN; 0: none. */
  readonly vlan: number;
  /** Tagged VLANs, ascending, without duplicates. */
  readonly trunk: readonly number[];
  readonly preserveDefault: boolean;
}

/** Sets a port's VLANs: asks for what it has now, then changes in one batch. */
export async function setPortVlans(
  call: ContainerCall,
  port: string,
  { vlan, trunk, preserveDefault }: PortVlans,
): Promise<void> {
  if (vlan === 0 && trunk.length === 0) return;
  const lines: Step[] = [];
  if (!preserveDefault) {
    for (const vid of await vlansOf(call, port)) {
      lines.push(
        step("host", "bridge", `vlan del dev ${port} vid ${vid} master`, {
          failing: `failed to remove default vlan on interface "${port}"`,
          why: "the port's implicit VLAN",
        }),
      );
    }
  }
  const failing = `failed to setup vlan tag on interface "${port}"`;
  if (vlan !== 0) {
    lines.push(
      step("host", "bridge", `vlan add dev ${port} vid ${vlan} pvid untagged master`, {
        failing,
        why: "the container's VLAN",
      }),
    );
  }
  // Adding the native VLAN once more, tagged, would remove its untagged and PVID flags.
  for (const vid of trunk.filter((vid) => vid !== vlan)) {
    lines.push(step("host", "bridge", `vlan add dev ${port} vid ${vid} master`, { failing, why: "trunk" }));
  }
  if (vlan === 0) {
    lines.push(step("host", "bridge", `vlan add dev ${port} vid 1 pvid untagged master`, {
      failing: `failed to setup default native vlan tag on interface "${port}"`,
      why: "untagged frames of a trunk port",
    }));
  }
  await apply([lines], call);
}

async function vlansOf(call: ContainerCall, port: string): Promise<number[]> {
  const { code: status, stdout } = await call.host({ argv: ["bridge", "-j", "vlan", "show", "dev", port] });
  if (status !== 0) return [1];
  const [entry] = JSON.parse(stdout || "[]") as { vlans?: { vlan: number; vlanEnd?: number }[] }[];
  return (entry?.vlans ?? []).flatMap(({ vlan, vlanEnd = vlan }) =>
    Array.from({ length: vlanEnd - vlan + 1 }, (_, i) => vlan + i)
  );
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

/**
 * The gateway's own link for a VLAN, `BRIDGE.VLAN`: one end of a veth pair whose other end is a port in that VLAN.
 * Shared by the VLAN's containers and never removed. Returns the link as it is now. `peers`: names for the other end,
 * of which the first is taken that no other link has.
 */
export async function vlanGateway(
  call: ContainerCall,
  bridge: Link,
  { vlans, peers }: { vlans: PortVlans; peers: readonly string[] },
): Promise<Link> {
  const name = `${bridge.ifname}.${vlans.vlan}`;
  const front = `failed to create vlan interface: faild to create vlan gateway "${name}"`;
  if (name.length > 15) {
    throw new CniError(
      code.internal,
      `${front}: failed to make veth pair: numerical result out of range`,
      `"${name}" is longer than 15 characters: choose a shorter "bridge"`,
    );
  }
  let link = await lookAtBridge(call, name);
  for (const peer of peers) {
    if (link) return link;
    await makeVlanGateway(call, { name, peer, bridge, vlans, front });
    link = await lookAtBridge(call, name);
  }
  if (link) return link;
  throw new CniError(
    code.internal,
    `failed to create vlan interface: failed to find interface "${name}": Link not found`,
    `links called ${peers.join(", ")} are in the way`,
  );
}

/** Makes nothing when there is a link of one of the two names already. */
async function makeVlanGateway(
  call: ContainerCall,
  { name, peer, bridge, vlans, front }: {
    name: string;
    peer: string;
    bridge: Link;
    vlans: PortVlans;
    front: string;
  },
): Promise<void> {
  try {
    await apply([[
      step("host", "ip", `link add name ${name} mtu ${bridge.mtu} type veth peer name ${peer} mtu ${bridge.mtu}`, {
        failing: `${front}: failed to make veth pair`,
        why: `gateway of VLAN ${vlans.vlan}`,
      }),
      step("host", "ip", `link set dev ${peer} master ${bridge.ifname} up`, {
        failing: `failed to create vlan interface: failed to up "${peer}"`,
      }),
      step("host", "ip", linkUp(name), { failing: `failed to create vlan interface: failed to up "${name}"` }),
    ]], call);
    await setPortVlans(call, peer, { ...vlans, trunk: [] });
  } catch (error) {
    if (!(error instanceof StepError) || !/File exists/.test(error.output.stderr)) throw error;
  }
}
