/**
 * bridge: puts the container on a Linux bridge through a veth pair. https://www.cni.dev/plugins/current/main/bridge/
 *
 * Differs from the reference: names and MACs are computed, not drawn, and an IPv4 address always comes with the same
 * MAC, so that neighbours of an address's last owner need not forget anything; the address is announced once more when
 * the port forwards; a new bridge's MAC is pinned; a failed ADD leaves nothing behind; DEL removes rules without
 * needing the namespace; GC and STATUS do their work.
 */
import { decodeLeniently, type Fields } from "../../lib/cni/decode.ts";
import { all, both, CniError, code, internal } from "../../lib/cni/error.ts";
import { openNetns } from "../../lib/cni/netns.ts";
import type { ContainerCall, NetworkCall, Plugin } from "../../lib/cni/plugin.ts";
import { prevResultLeniently } from "../../lib/cni/prev_result.ts";
import type { Interface, IPConfig, Result, Route, ValidAttachment } from "../../lib/cni/types.ts";
import { readDns } from "../../lib/cni/version.ts";
import { apply, type Step, step } from "../../lib/kernel/plan.ts";
import { linkExists } from "../../lib/kernel/proc.ts";
import { toolPath } from "../../lib/kernel/run.ts";
import {
  allocate,
  begin,
  configureLink,
  deleteContainerLink,
  firstHost,
  linkNow,
} from "../../lib/link/container_link.ts";
import {
  deleteHostEnd,
  forwarding,
  hostEnd,
  noRouterAdvertisements,
  ownerOf,
  portAlias,
  undoHostEnd,
} from "../../lib/link/host_end.ts";
import { heldAddresses, ipamTypeLeniently, needsLink, release, replacesDns, withDns } from "../../lib/link/ipam.ts";
import { linkPlugin } from "../../lib/link/link_plugin.ts";
import type { CheckPlan } from "../../lib/link/verify.ts";
import { parseAddress, parsePrefix } from "../../lib/net/cidr.ts";
import { isLinkName } from "../../lib/net/link_name.ts";
import { macFromIpv4, macFromSeed } from "../../lib/net/mac.ts";
import {
  checkMasquerade,
  gcMasquerade,
  type MasqueradeBackend,
  masqueradeBackend,
  masqueradePlan,
  removeMasquerade,
  statusMasquerade,
} from "../../lib/rules/masquerade.ts";
import { type Config, keys, parse, parseForAdd } from "./conf.ts";
import { connect, type Ends, gatewayAddresses } from "./connect.ts";
import { type BridgeNow, MAX_PORTS, portsOf, portState, waitForPort } from "./port.ts";

export const plugin: Plugin = linkPlugin({
  name: "bridge",
  about: "connects the container to a Linux bridge through a veth pair",
  keys,
  parse: parseForAdd,
  add,
  del,
  check,
  pairs: true,
  collect,
  status,
  tools: ({ macspoofchk }) => macspoofchk ? ["nft"] : [],
});

/** Loaded when used: most networks have no spoof check, and every file costs time at the start. */
const spoofCheck = () => import("./spoof_check.ts");

async function add(call: ContainerCall): Promise<Result> {
  const { conf, podMac } = parseForAdd(call);
  const { ifName, netns } = call;
  openNetns(call, `failed to open netns "${netns}"`);
  const masq = conf.ipMasq && conf.ipamType !== "" ? masqueradeBackend(conf.ipMasqBackend) : undefined;

  const owner = ownerOf(call);
  // Where it needs no link, the address comes first, so that the MAC can be made from it.
  const leasing = needsLink(conf.ipamType) ? undefined : begin(call, conf.ipamType);
  const host = hostEnd(owner);
  const endsFor = (ips: readonly IPConfig[] = []): Ends => ({
    host,
    pod: { name: ifName, mac: podMac || computedMac(portAlias(owner), ips), sandbox: netns },
    ips,
  });
  const lease = await leasing;
  // The links are made while the lease is written.
  const early = lease?.ips && startLinks(call, conf, endsFor(lease.ips));
  const ipam = await lease?.commit().catch(async (error) => {
    // What was started is known before it is undone.
    await early?.bridge.catch(() => {});
    throw error;
  });
  const ends = endsFor(ipam?.ips);
  const isRight = early !== undefined && isFor(early, ends.ips);
  if (early && !isRight) await withdraw(call, early);
  const { bridge } = isRight ? early : startLinks(call, conf, ends);
  const links = (masq?: MasqueradeBackend) => attach(call, conf, { ...ends, bridge, ipam, masq });

  // Rules need no link: they are set while the links are made. Only where a second ADD of a living attachment has been
  // refused by now: what it takes back would be the first one's.
  if (!masq || !ipam || (conf.ipamType !== "host-local" && conf.ipamType !== "cluster")) return await links(masq);
  const addresses = (ipam.ips ?? []).map((ip) => ip.address);
  const rules = async () => await apply([masqueradePlan(owner, addresses, masq)], call);
  if (call.later) {
    call.later(rules);
    return await links();
  }
  // The links take longer, so they begin.
  const [result] = await both(call, links, rules);
  return result;
}

/** Links for addresses that are not yet safe on disk. */
interface EarlyLinks extends Ends {
  /** What {@linkcode connect} gives. */
  readonly bridge: Promise<BridgeNow>;
}

function startLinks(call: ContainerCall, conf: Config, ends: Ends): EarlyLinks {
  const bridge = connect(call, conf, ends);
  bridge.catch(() => {}); // whoever waits for it is told
  return { ...ends, bridge };
}

function isFor(links: EarlyLinks, ips: readonly IPConfig[]): boolean {
  const same = (one: IPConfig, at: number) => one.address === ips[at]?.address && one.gateway === ips[at]?.gateway;
  return links.ips.length === ips.length && links.ips.every(same);
}

/** The lease differs from its early result: the links have the wrong MAC, and are removed. */
async function withdraw(call: ContainerCall, { bridge, host }: EarlyLinks): Promise<void> {
  await bridge;
  await undoHostEnd(host.name, ownerOf(call)).job?.(call);
}

/** What is put together by {@linkcode attach}; `ipam` is absent until an IPAM plugin that needs the link is asked. */
interface Parts extends Ends {
  readonly bridge: Promise<BridgeNow>;
  readonly ipam: Result | undefined;
  readonly masq: MasqueradeBackend | undefined;
}

async function attach(call: ContainerCall, conf: Config, parts: Parts): Promise<Result> {
  const { host, pod } = parts;
  const bridge = await parts.bridge;
  if (conf.macspoofchk) {
    const { spoofCheckSteps } = await spoofCheck();
    await apply([await spoofCheckSteps(call, host.name, pod.mac ?? "")], call);
  }
  if (call.version === "1.1.0") pod.mtu = conf.mtu > 0 ? conf.mtu : 1500;
  const ipam = conf.ipamType === "" ? undefined : parts.ipam ?? await allocate(call, conf.ipamType);
  let result: Result = { interfaces: [{ name: bridge.ifname, mac: bridge.address ?? "" }, host, pod] };
  if (ipam) result = await configure(call, conf, { ...parts, bridge, ipam });
  else {
    await apply([[noRouterAdvertisements(host.name)]], call);
    await awaitPort(call, conf, host.name);
  }
  if (ipam && conf.vlan !== 0 && conf.isGateway) {
    const { gatewayOfVlan } = await import("./port_vlans.ts");
    result.interfaces = [...result.interfaces ?? [], await gatewayOfVlan(call, conf, bridge, result)];
  }
  return replacesDns(conf.dns) ? withDns(result, readDns(conf.dns)) : result;
}

/** From the first IPv4 address, else from the attachment: the same attachment always gets the same. */
function computedMac(seed: string, ips: readonly IPConfig[] = []): string {
  const v4 = ips.map(({ address }) => parsePrefix(address)?.address).find((address) => address?.family === 4);
  return v4 ? macFromIpv4(v4.value) : macFromSeed(`pod:${seed}`);
}

/** Layer 3: addresses and routes in the container; beside it forwarding and masquerade on the host. */
async function configure(
  call: ContainerCall,
  conf: Config,
  { bridge, ipam, host, pod, masq }: Omit<Parts, "bridge"> & { bridge: BridgeNow; ipam: Result },
): Promise<Result> {
  const ips = (ipam.ips ?? []).map((ip) => {
    const gateway = ip.gateway ?? (conf.isGateway ? firstHost(ip.address) : undefined);
    return { ...ip, interface: 2, ...(gateway && { gateway }) };
  });
  const routes = [...(ipam.routes ?? [])];
  if (conf.isDefaultGateway) routes.push(...defaultRoutes(ips, routes));
  let { address } = bridge;
  if (conf.isGateway && conf.vlan === 0 && needsLink(conf.ipamType)) {
    const request = { addresses: gatewayAddresses(ips), forceAddress: conf.forceAddress, port: host.name };
    address = await (await import("./shape.ts")).giveAddresses(call, bridge, request);
  }
  const result: Result = { ...ipam, ips, routes, interfaces: [{ name: bridge.ifname, mac: address ?? "" }, host, pod] };
  const more = [
    noRouterAdvertisements(host.name),
    ...(conf.isGateway ? forwarding(ips, "failed to enable forwarding") : []),
    ...(masq ? masqueradePlan(ownerOf(call), ips.map((ip) => ip.address), masq) : []),
  ];
  const options = { dad: conf.enabledad, announce: true, more, last: [announcement(pod)] };
  // Before the container's tools get to announce it, the port usually forwards.
  const [, state] = await both(call, () => configureLink(call, result, options), () => portState(call, host.name));
  if (state !== "up") {
    await awaitPort(call, conf, host.name);
    await apply([[announcement(pod)]], call);
  }
  return result;
}

function announcement(pod: Interface): Step {
  return step("pod", "ip", `link set dev ${pod.name} address ${pod.mac}`, {
    why: "announces the addresses, now that the port forwards: setting a MAC does, even the same",
  });
}

function notUp(state: string, veth: string, bridge: string): CniError {
  return internal(
    `bridge port in error state: ${state}`,
    `${veth} on ${bridge} did not come up: is the bridge up, and the container's end still there?`,
  );
}

/** A default route through the first address of each family, unless the IPAM plugin gave one with a gateway. */
function defaultRoutes(ips: NonNullable<Result["ips"]>, routes: readonly Route[]): Route[] {
  const added: Route[] = [];
  for (const dst of ["0.0.0.0/0", "::/0"]) {
    const six = dst === "::/0";
    const first = ips.find((ip) => ip.address.includes(":") === six);
    if (!first?.gateway || routes.some((route) => route.dst === dst && route.gw)) continue;
    added.push({ dst, gw: first.gateway });
  }
  return added;
}

/** The port has to forward when ADD ends, and when the container announces itself; the reference waits as long. */
async function awaitPort(call: ContainerCall, conf: Config, veth: string): Promise<void> {
  if (conf.disableContainerInterface) return;
  const state = await waitForPort(call, veth);
  if (state !== "up") throw notUp(state, veth, conf.bridge);
}

async function del(call: ContainerCall): Promise<void> {
  const conf = decodeLeniently(keys, call.config, call.warn);
  const ipam = ipamTypeLeniently(conf.ipam);
  const attachment = ownerOf(call);
  const previous = prevResultLeniently(call);
  const known = ownAddresses(call, previous);
  // The result says the kernel's name where the configuration has an alternative one.
  const names = [conf.bridge, previous?.interfaces?.find((one) => !one.sandbox)?.name ?? ""];
  const bridge = names.find((name) => isLinkName(name) && linkExists(name) !== false) ?? "";
  const unmasquerade = async (addresses: readonly string[]) => {
    if (conf.ipMasq) await removeMasquerade(call, attachment, distinct(addresses), conf.ipMasqBackend);
  };
  let first: Promise<void> | undefined;
  const rest = async () => {
    const held = await heldAddresses(call, ipam);
    const unknown = distinct(held.filter((one) => !known.some((cidr) => cidr.split("/")[0] === one.split("/")[0])));
    const neighbours = neighbourSteps(bridge, unknown);
    // One transaction at a time on the container's chain.
    await first?.catch(() => {});
    await all([
      ...(first && unknown.length === 0 ? [] : [() => unmasquerade([...known, ...held])]),
      ...(neighbours.length > 0 ? [() => apply([neighbours], call).catch(() => {})] : []),
    ]);
  };
  // What takes longest begins: the rules, whose addresses the previous result usually knows, then the link. The rest is
  // read and done beside them.
  const jobs = [
    ...(ipam !== "" && known.length > 0 ? [() => first = unmasquerade(known)] : []),
    () => deleteLinks(call, bridge, distinct(known)),
    ...(ipam !== "" ? [rest] : []),
    ...(conf.macspoofchk ? [() => removeSpoofRules(call)] : []),
  ];
  await release(call, ipam, { jobs });
}

/**
 * Both ends of the veth pair, found from the host, or else from the container; and what the host knows of `addresses`.
 */
async function deleteLinks(call: ContainerCall, bridge: string, addresses: readonly string[]): Promise<void> {
  const neighbours = neighbourSteps(bridge, addresses);
  if (!call.ownNetns && await deleteHostEnd(call, ownerOf(call), neighbours)) return;
  await deleteContainerLink(call);
  if (neighbours.length > 0) await apply([neighbours], call).catch(() => {});
}

async function removeSpoofRules(call: ContainerCall): Promise<void> {
  const { removeSpoofCheck } = await spoofCheck();
  await removeSpoofCheck(call);
}

function ownAddresses(call: ContainerCall, previous: Result | undefined): string[] {
  const interfaces = previous?.interfaces ?? [];
  const own = (previous?.ips ?? []).filter((ip) =>
    ip.interface === undefined || interfaces[ip.interface]?.name === call.ifName
  );
  return own.map((ip) => ip.address);
}

/** Each address once, with its prefix length where that is known. */
function distinct(addresses: readonly string[]): string[] {
  const plain = new Map<string, string>();
  for (const given of addresses) {
    const key = given.split("/")[0] ?? "";
    if (parseAddress(key) && !plain.get(key)?.includes("/")) plain.set(key, given);
  }
  return [...plain.values()];
}

/** The host drops what it knows of these addresses, so that their next owner is found at once. */
function neighbourSteps(bridge: string, addresses: readonly string[]): Step[] {
  if (bridge === "" || linkExists(bridge) === false) return [];
  return addresses.map((cidr) =>
    step("host", "ip", `neigh flush to ${cidr.split("/")[0]} dev ${bridge}`, {
      why: "its next owner may have another MAC",
    })
  );
}

function check(call: ContainerCall): CheckPlan {
  const conf = parse(call);
  return {
    words: { noun: "veth", kinds: ["veth"], gone },
    ipam: conf.ipamType || undefined,
    beside: () => [linkNow(call, "host", conf.bridge)],
    own: async (seen) => {
      const { checkAround } = await import("./check.ts");
      await checkAround(call, conf, seen);
      if (!conf.ipMasq || conf.ipamType === "") return;
      await checkMasquerade(call, ownerOf(call), ownAddresses(call, seen.previous), conf.ipMasqBackend);
    },
  };
}

const gone = (name: string) => internal(`Interface name ${name} not found`, "the container's link is gone");

function collect(call: NetworkCall, valid: readonly ValidAttachment[], { macspoofchk }: Fields<typeof keys>) {
  const rules = macspoofchk && toolPath("nft") !== "" ? [() => collectSpoofRules(call, valid)] : [];
  // A link that is there speaks for its rules, so the links go first.
  return [[() => gcMasquerade(call, valid)], rules];
}

async function collectSpoofRules(call: NetworkCall, valid: readonly ValidAttachment[]): Promise<void> {
  const { collectSpoofChecks, spoofCheckRef } = await spoofCheck();
  const keep = new Set(valid.map(spoofCheckRef));
  await collectSpoofChecks(call, (ref, veth) => !keep.has(ref) && linkExists(veth) === false);
}

async function status(call: NetworkCall, conf: Fields<typeof keys>): Promise<void> {
  if (conf.ipMasq) await statusMasquerade(call, conf.ipMasqBackend);
  const ports = portsOf(conf.bridge)?.length ?? 0;
  if (ports < MAX_PORTS) return;
  throw new CniError(
    code.notAvailable,
    `bridge ${conf.bridge} has ${ports} ports, the kernel's limit`,
    "no further container can be connected",
  );
}
