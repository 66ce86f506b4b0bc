/**
 * A veth pair that is routed, not bridged: gateways and routes on the host's end, the way to them in the container
 * (ptp).
 */
import { networkOf } from "../../lib/net/cidr.ts";
import { netnsWord } from "../../lib/cni/netns.ts";
import type { ContainerCall } from "../../lib/cni/plugin.ts";
import type { Interface, IPConfig, Result, Route } from "../../lib/cni/types.ts";
import { vethAdd } from "../../lib/kernel/ip.ts";
import { type Step, step } from "../../lib/kernel/plan.ts";
import { portAlias, undoHostEnd } from "../../lib/link/host_end.ts";
import { addressSteps, linkSettings, routeSteps } from "../../lib/link/container_link.ts";

/** Is it of IPv6? */
export const isSix = (text: string) => text.includes(":");
/** A CIDR without its length. */
export const plain = (cidr: string) => cidr.slice(0, cidr.indexOf("/"));
/** An address as a route or address of its own. */
export const single = (ip: string) => `${ip}/${isSix(ip) ? 128 : 32}`;

/** An address with its gateway. */
export type Addressed = IPConfig & { readonly gateway: string };

/** The pair, and on the host's end every gateway and a route to every address. */
export function hostSteps(
  call: ContainerCall,
  { host, pod, ips, mtu }: { host: Interface; pod: Interface; ips: readonly Addressed[]; mtu: number },
): Step[] {
  const veth = host.name;
  const pair = vethAdd({
    name: veth,
    mac: host.mac ?? "",
    peer: pod.name,
    peerMac: pod.mac ?? "",
    netns: netnsWord(call),
    mtu,
  });
  const gateways = [...new Set(ips.map((ip) => ip.gateway))];
  return [
    step("host", "ip", pair, {
      failing: "failed to make veth pair",
      why: "the container's end is made in its namespace",
      undo: undoHostEnd(veth, call),
    }),
    ...(ips.some((ip) => isSix(ip.address)) ? [linkLocalStep(host)] : []),
    step("host", "ip", `link set dev ${veth} alias ${portAlias(call)} up`, {
      failing: `failed to set "${veth}" up`,
      why: "the alias tells whose it is",
    }),
    ...gateways.map((gateway) =>
      // Nobody but the container could have the same address on this link.
      step("host", "ip", `addr add ${single(gateway)} dev ${veth}${isSix(gateway) ? " nodad" : ""}`, {
        failing: `failed to add IP addr (${gateway}) to veth`,
        why: "the container's gateway",
      })
    ),
    ...ips.map(({ address }) =>
      step("host", "ip", `route replace ${single(plain(address))} dev ${veth}${isSix(address) ? "" : " scope host"}`, {
        failing: "failed to add route on host",
        why: "to the container; a stale route of an earlier owner goes",
      })
    ),
  ];
}

/**
 * The link-local address that the kernel would make of the MAC, usable at once: the host asks for its containers' MACs
 * from it, so that until then nothing can be forwarded to them.
 */
function linkLocalStep({ name, mac = "" }: Interface): Step {
  const [a = 0, b = 0, c = 0, d = 0, e = 0, f = 0] = mac.split(":").map((byte) => Number.parseInt(byte, 16));
  const groups = [(a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f].map((group) => group.toString(16));
  return step("host", "ip", `addr add fe80::${groups.join(":")}/64 dev ${name} nodad`, {
    failing: `failed to add IP addr (fe80::${groups.join(":")}) to veth`,
    why: "the kernel's own would be of no use until its duplicate address detection is done",
  });
}

/** Addresses, the way to each gateway, the subnets through it, then the configured routes. */
export function podSteps(call: ContainerCall, result: Result, ips: readonly Addressed[]): Step[] {
  const options = { nodad: true };
  const subnets = new Set(ips.map(({ address }) => networkOf(address)));
  const routes = (result.routes ?? []).filter((route) => !isSubnet(route, ips));
  return [
    ...linkSettings(call.ifName, result.ips, options),
    ...addressSteps(call.ifName, result, options),
    ...ips.filter((ip, index) => ips.findIndex(({ gateway }) => gateway === ip.gateway) === index).map((ip) =>
      routeStep(call, { dst: single(ip.gateway), src: plain(ip.address), rest: isSix(ip.address) ? "" : " scope link" })
    ),
    ...ips.filter((ip) => subnets.delete(networkOf(ip.address))).flatMap((ip) => subnetSteps(call, ip)),
    ...routeSteps(call.ifName, { ...result, routes }),
  ];
}

/** The whole subnet is behind the gateway, also what the kernel takes for neighbours. */
function subnetSteps(call: ContainerCall, { address, gateway }: Addressed): Step[] {
  const dst = networkOf(address);
  // An IPv4 address with all bits for the network has no route of the kernel, and needs none.
  if (dst === single(plain(address)) && !isSix(dst)) return [];
  return [
    step("pod", "ip", `route del ${dst} dev ${call.ifName} proto kernel`, {
      failing: `failed to delete route {Dst: ${dst}}`,
      why: "there are no neighbours on this link",
    }),
    routeStep(call, { dst, via: gateway, src: plain(address), rest: "" }),
  ];
}

/**
 * Exclusive: a route of another interface to the same subnet or gateway is an error, since one of them could not work.
 */
function routeStep(
  { ifName }: ContainerCall,
  { dst, via, src, rest }: { dst: string; via?: string; src: string; rest: string },
): Step {
  return step("pod", "ip", `route add ${dst}${via ? ` via ${via}` : ""} dev ${ifName}${rest} src ${src}`, {
    failing: `failed to add route {Dst: ${dst} Src: ${src} Gw: ${via ?? "<nil>"}}`,
    why: via ? "the subnet is reached through the host" : "the way to the gateway",
  });
}

/** Does this route say what is so already: that a subnet of the container is behind its gateway? */
function isSubnet({ dst, gw, table, priority }: Route, ips: readonly Addressed[]): boolean {
  if (table || priority) return false;
  return ips.some((ip) => networkOf(ip.address) === dst && (gw === undefined || gw === ip.gateway));
}
