/**
 * What a bridge lacks for a port, and why a port could not be made. Loaded when called: an ADD on a bridge that is as
 * it should be does not read this file.
 */
import { type CniError, internal } from "../../lib/cni/error.ts";
import type { ContainerCall } from "../../lib/cni/plugin.ts";
import { addrDel, type Address, type Link, linkUp } from "../../lib/kernel/ip.ts";
import { apply, type Step, step, StepError } from "../../lib/kernel/plan.ts";
import { linkNow } from "../../lib/link/container_link.ts";
import { type Failure, readFailure, type Reading } from "../../lib/link/failure.ts";
import { noRouterAdvertisements, pairExists } from "../../lib/link/host_end.ts";
import { isLinkLocal, parseAddress, parsePrefix, prefixesOverlap } from "../../lib/net/cidr.ts";
import type { Config } from "./conf.ts";
import type { Ends } from "./connect.ts";
import { type BridgeNow, type BridgeRequest, hasAddress, MAX_PORTS, portsOf } from "./port.ts";

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

/** The line that makes a bridge. Its MAC is named, so that it is pinned: it does not follow the ports' MACs. */
function bridgeAdd(name: string, options: { mtu: number; vlanFiltering: boolean }): string {
  const bytes = crypto.getRandomValues(new Uint8Array(6));
  bytes[0] = ((bytes[0] ?? 0) & 0xfc) | 0x02;
  const mac = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(":");
  const { mtu, vlanFiltering } = options;
  return `link add name ${name} address ${mac}${mtu > 0 ? ` mtu ${mtu}` : ""} type bridge${
    vlanFiltering ? " vlan_filtering 1" : ""
  }`;
}

/** What addresses on a link need to know. */
interface Addressing extends Pick<BridgeRequest, "addresses" | "forceAddress"> {
  /** The port that this call makes. */
  readonly port?: string;
}

/** Brings an existing bridge to the requested state. Returns it as it is then. */
export async function completeBridge(
  call: ContainerCall,
  now: BridgeNow,
  request: BridgeRequest & Addressing,
): Promise<BridgeNow> {
  const addresses = addressSteps(now, request, ADDRESS_FAILURE);
  const steps = [...ensureBridge(now, request, call.warn), ...addresses];
  try {
    if (steps.length > 0) await apply([steps], call);
  } catch (error) {
    throw await readFailure(error, (failure) => ipv6Advice(failure, now.ifname));
  }
  const mac = macAfter(now, addresses);
  return { ...now, ...(mac && { address: mac }) };
}

/** Puts the containers' gateway on a link. Returns the MAC that the link has then. `front`: words for a failure. */
export async function giveAddresses(
  call: ContainerCall,
  now: BridgeNow,
  { front = ADDRESS_FAILURE, ...request }: Addressing & { readonly front?: string },
): Promise<string | undefined> {
  const steps = addressSteps(now, request, front);
  if (steps.length > 0) await apply([steps], call);
  return macAfter(now, steps);
}

/** In front of what is wrong with the gateway's addresses. */
const ADDRESS_FAILURE = "failed to set bridge addr";

/**
 * Steps that bring an existing bridge to the requested state, but for its addresses; none in the usual case. Throws
 * when that must not be done.
 */
function ensureBridge(now: Link, request: BridgeRequest, warn: (note: string) => void): Step[] {
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
function notABridge({ linkinfo }: Link, name: string): CniError {
  return internal(
    `failed to create bridge "${name}": "${name}" already exists but is not a bridge`,
    `it is ${linkinfo?.info_kind ?? "a physical link"}: choose another name in "bridge"`,
  );
}

/**
 * Steps that put addresses on a link; a conflict is an error, or with forceAddress removed. With them the link gets the
 * MAC for good that it had before it got a port, see {@linkcode macAfter}.
 */
function addressSteps(
  now: BridgeNow,
  request: Addressing,
  front: string,
): Step[] {
  const name = now.ifname;
  const there = now.addr_info ?? [];
  const steps: Step[] = [];
  for (const wanted of request.addresses) {
    if (there.some((one) => hasAddress(one, wanted))) continue;
    for (
      const other of there.filter((one) =>
        conflicts(one, wanted) && !request.addresses.some((ours) => hasAddress(one, ours))
      )
    ) {
      const cidr = `${other.local}/${other.prefixlen}`;
      if (!request.forceAddress) {
        const all = there.map((one) => `${one.local}/${one.prefixlen}`).join(" ");
        throw internal(
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
function macAfter({ address, macBefore = address }: BridgeNow, steps: readonly Step[]): string | undefined {
  return steps.length > 0 ? macBefore : address;
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

/** Why the port could not be made. */
export async function portFailure(
  call: ContainerCall,
  { error, step, said }: Failure,
  { conf, ends }: { readonly conf: Config; readonly ends: Ends },
): Promise<Reading> {
  if (step.text.startsWith("link add") && /File exists/.test(said)) return pairExists({ ...ends, netns: call.netns });
  if (!step.text.includes(" master ")) return undefined;
  const now = await linkNow(call, "host", conf.bridge);
  if (now && now.linkinfo?.info_kind !== "bridge") return notABridge(now, conf.bridge);
  if (now && (portsOf(now.ifname, now.ifindex)?.length ?? 0) >= MAX_PORTS) {
    return internal(error.message, `bridge ${conf.bridge} has ${MAX_PORTS} ports, the kernel's limit`);
  }
  return undefined;
}

function ipv6Advice({ step, said }: Failure, bridge: string): Reading {
  if (!step.text.includes(":") || !/permission denied|IPv6 is disabled/i.test(said)) return undefined;
  return `IPv6 is switched off there: sysctl net/ipv6/conf/${bridge}/disable_ipv6 (or net.ipv6.conf.all.disable_ipv6, or ipv6.disable=1 on the kernel's command line)`;
}
