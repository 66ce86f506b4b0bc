/**
 * bridge: puts the container on a Linux bridge through a veth pair. https://www.cni.dev/plugins/current/main/bridge/
 *
 * Differs from the reference: names and MACs are computed, not drawn, and an IPv4 address always comes with the same
 * MAC, so that neighbours of an address's last owner need not forget anything; the address is announced once more when
 * the port forwards; a new bridge's MAC is pinned; a failed ADD leaves nothing behind; DEL removes rules without needing
 * the namespace; GC and STATUS do their work.
 */
import { parseArgs } from "../../lib/cni/args.ts";
import {
  anyObject,
  anything,
  decode,
  decodeLeniently,
  flag,
  integer,
  list,
  lookup,
  maybeInteger,
  maybeText,
  object,
  text,
} from "../../lib/cni/decode.ts";
import { all, CniError, code, groupsFor } from "../../lib/cni/error.ts";
import { netnsWord, openNetns } from "../../lib/cni/netns.ts";
import type { ContainerCall, NetworkCall, Plugin } from "../../lib/cni/plugin.ts";
import { prevResult, prevResultLeniently } from "../../lib/cni/prev_result.ts";
import {
  type Attachment,
  type Interface,
  type IPConfig,
  type JsonObject,
  type Result,
  type Route,
  since,
} from "../../lib/cni/types.ts";
import { readDns } from "../../lib/cni/version.ts";
import {
  addressSteps,
  type BridgeNow,
  type BridgeWish,
  createBridge,
  ensureBridge,
  lookAtBridge,
  macAfter,
  MAX_PORTS,
  portsOf,
  portState,
  setPortVlans,
  vlanGateway,
  waitForPort,
} from "./port.ts";
import { allocate, begin, configureLink, deleteContainerLink, firstHost } from "../../lib/link/container_link.ts";
import { heldAddresses, ipamTypeLeniently, replacesDns, withDns } from "../../lib/link/ipam.ts";
import {
  checkMasquerade,
  gcMasquerade,
  type MasqueradeBackend,
  masqueradeBackend,
  masqueradePlan,
  removeMasquerade,
  statusMasquerade,
} from "../../lib/rules/masquerade.ts";
import { addrShow, type Link, vethInto } from "../../lib/kernel/ip.ts";
import { apply, type Step, step, StepError } from "../../lib/kernel/plan.ts";
import { linkExists } from "../../lib/kernel/proc.ts";
import { isAbsent, missingTool, toolPath } from "../../lib/kernel/run.ts";
import {
  collectVeths,
  deleteHostEnd,
  hostEnd,
  hostEndNames,
  portAlias,
  undoHostEnd,
  withFreeName,
} from "../../lib/link/host_end.ts";
import { parseAddress, parsePrefix } from "../../lib/net/cidr.ts";
import { isIndexName, isLinkName } from "../../lib/net/link_name.ts";
import { isUnicastMac, macFromIpv4, macFromSeed, macLength, parseMac } from "../../lib/net/mac.ts";

const trunk = {
  minID: maybeInteger("first VLAN of a range", { min: 1, max: 4094 }),
  maxID: maybeInteger("last VLAN of a range", { min: 1, max: 4094 }),
  id: maybeInteger("one VLAN", { min: 1, max: 4094 }),
};

const keys = {
  bridge: text("cni0", "name of the bridge; made when there is none"),
  isGateway: flag(false, "put the gateway's address on the bridge and switch forwarding on"),
  isDefaultGateway: flag(false, "isGateway, and a default route through it"),
  forceAddress: flag(false, "replace addresses of the bridge that are in the way"),
  ipMasq: flag(false, "masquerade traffic that leaves the container's subnet"),
  ipMasqBackend: maybeText("iptables or nftables; iptables when it works, if absent", {
    oneOf: ["iptables", "nftables"],
  }),
  mtu: integer(0, "MTU of a new bridge and of both ends of the veth pair; 0: the kernel's default"),
  hairpinMode: flag(false, "let the port send frames back to where they came from"),
  promiscMode: flag(false, "put the bridge into promiscuous mode"),
  vlan: integer(0, "access VLAN of the container's port; 0: none", { min: 0, max: 4094 }),
  vlanTrunk: list(object(trunk, "a range or a single VLAN"), "tagged VLANs of the container's port"),
  preserveDefaultVlan: flag(false, "keep the port's implicit VLAN beside vlan or vlanTrunk"),
  macspoofchk: flag(false, "drop frames that do not come from the container's own MAC"),
  enabledad: flag(false, "look for duplicates of the container's IPv6 addresses"),
  disableContainerInterface: flag(false, "leave the container's link down"),
  portIsolation: flag(false, "keep the container's port from talking to other isolated ports"),
  ipam: anyObject("who gives the container its addresses; without a type the container gets none"),
  dns: anyObject("resolver settings, instead of those of the IPAM plugin"),
  args: object(
    { cni: object({ mac: text("", "MAC of the container's link") }, "conventional arguments") },
    "arguments of the configuration",
  ),
  runtimeConfig: object(
    { mac: text("", "MAC of the container's link (capability mac)") },
    "what the runtime grants by capabilities",
  ),
  prevResult: anything("result of the plugin before, for CHECK and DEL"),
};

export const plugin: Plugin = {
  name: "bridge",
  kind: "main",
  about: "connects the container to a Linux bridge through a veth pair",
  versions: since("0.1.0"),
  needs: ["ip", "nsenter", "sh"],
  keys,
  parse: parseForAdd,
  add,
  del,
  check,
  gc,
  status,
};

/** The configuration, checked. */
interface Config extends Omit<ReturnType<typeof read>, "vlanTrunk" | "dns"> {
  readonly ipamType: string;
  /** Tagged VLANs, ascending; undefined when there is no `vlanTrunk` at all. */
  readonly trunk: readonly number[] | undefined;
  readonly mac: string;
  readonly dns: JsonObject | undefined;
}

const read = (config: JsonObject) => decode(keys, config, "failed to load netconf");

function parse(call: ContainerCall): Config {
  const { vlanTrunk, ...conf } = read(call.config);
  if (conf.vlan < 0 || conf.vlan > 4094) {
    throw invalid(`invalid VLAN ID ${conf.vlan} (must be between 0 and 4094)`, '"vlan"');
  }
  const trunk = vlanTrunk && trunkIds(vlanTrunk);
  const asked = parseArgs(call.args, ["MAC"]).MAC;
  const mac = conf.runtimeConfig?.mac || conf.args?.cni?.mac || asked || "";
  const front = `failed to create bridge "${conf.bridge}": could not add "${conf.bridge}"`;
  if (conf.bridge === "") throw invalid(`${front}: LinkAttrs.Name cannot be empty`, '"bridge" is empty');
  if (new TextEncoder().encode(conf.bridge).length > 15) {
    throw invalid(`${front}: numerical result out of range`, '"bridge" may have 15 characters at most');
  }
  if (!isLinkName(conf.bridge)) {
    throw invalid(`${front}: invalid argument`, '"bridge" has characters that no link name may have');
  }
  return { ...conf, isGateway: conf.isGateway || conf.isDefaultGateway, ipamType: ipamType(conf.ipam), trunk, mac };
}

function ipamType(ipam: JsonObject | undefined): string {
  const type = ipam === undefined ? "" : lookup(ipam, "type") ?? "";
  if (typeof type === "string") return type;
  throw invalid(
    `failed to load netconf: json: cannot unmarshal ${typeof type} into Go struct field NetConf.ipam.type of type string`,
    '"ipam.type" has to be a string',
  );
}

function invalid(msg: string, details: string): CniError {
  return new CniError(code.internal, msg, details);
}

/** VLANs of `vlanTrunk`, with the reference's checks in their order. */
function trunkIds(
  elements: readonly { minID: number | undefined; maxID: number | undefined; id: number | undefined }[],
): number[] {
  const ids = new Set<number>();
  const isVlan = (id: number) => id >= 1 && id <= 4094;
  elements.forEach(({ minID, maxID, id }, index) => {
    const at = `"vlanTrunk.${index}": VLANs are 1 to 4094`;
    if (minID !== undefined && maxID !== undefined) {
      if (!isVlan(minID)) throw invalid("incorrect trunk minID parameter", at);
      if (!isVlan(maxID)) throw invalid("incorrect trunk maxID parameter", at);
      if (minID > maxID) throw invalid("minID is greater than maxID in trunk parameter", at);
      for (let vid = minID; vid <= maxID; vid++) ids.add(vid);
    } else if (minID !== undefined || maxID !== undefined) {
      throw invalid(
        `minID and maxID should be configured simultaneously, ${minID === undefined ? "minID" : "maxID"} is missing`,
        at,
      );
    }
    if (id === undefined) return;
    if (!isVlan(id)) throw invalid("incorrect trunk id parameter", at);
    ids.add(id);
  });
  return [...ids].sort((a, b) => a - b);
}

/** Loaded when used: most networks have no spoof check, and every file costs time at the start. */
const spoofCheck = () => import("./spoof_check.ts");

/** IPAM plugins that need no link: their answer comes first, so that the MAC can be made from the address. */
const ADDRESS_FIRST = ["host-local", "static", "cluster"];

function parseForAdd(call: ContainerCall): { readonly conf: Config; readonly podMac: string } {
  const conf = parse(call);
  if (conf.disableContainerInterface && conf.ipamType !== "") {
    throw invalid(
      "cannot use IPAM when DisableContainerInterface flag is set",
      'remove "ipam" or "disableContainerInterface"',
    );
  }
  if (conf.hairpinMode && conf.promiscMode) {
    throw invalid(
      "cannot set hairpin mode and promiscuous mode at the same time",
      'remove "hairpinMode" or "promiscMode"',
    );
  }
  return { conf, podMac: conf.mac === "" ? "" : checkedMac(conf.mac) };
}

async function add(call: ContainerCall): Promise<Result> {
  const { conf, podMac } = parseForAdd(call);
  const { ifName, netns } = call;
  openNetns(call, `failed to open netns "${netns}"`);
  const masq = conf.ipMasq && conf.ipamType !== "" ? masqueradeBackend(call, conf.ipMasqBackend) : undefined;

  const attachment = attachmentOf(call);
  const leasing = ADDRESS_FIRST.includes(conf.ipamType) ? begin(call, conf.ipamType) : undefined;
  const host = hostEnd(attachment);
  const endsFor = (ips: readonly IPConfig[] = []): Ends => ({
    host,
    pod: { name: ifName, mac: podMac || computedMac(portAlias(attachment), ips), sandbox: netns },
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
  const isRight = early && isFor(early, ends.ips);
  if (early && !isRight) await withdraw(call, early);
  const bridge = isRight ? early.bridge : undefined;

  // Rules need no link: they are set while the links are made. Only where a second ADD of a living attachment has been
  // refused by now: what it takes back would be the first one's.
  if (masq && ipam && (conf.ipamType === "host-local" || conf.ipamType === "cluster") && !call.explain) {
    const addresses = (ipam.ips ?? []).map((ip) => ip.address);
    const rules = async () => await apply([masqueradePlan(attachment, addresses, masq)], call);
    if (call.later) {
      call.later(rules);
      return await attach(call, conf, { ...ends, bridge, ipam, masq: undefined });
    }
    // The links take longer, so they begin.
    const links = attach(call, conf, { ...ends, bridge, ipam, masq: undefined });
    return await beside(links, rules());
  }
  return await attach(call, conf, { ...ends, bridge, ipam, masq });
}

/** Both ends of the veth pair, and the addresses that the container gets, as far as they are known. */
interface Ends {
  readonly host: Interface;
  readonly pod: Interface;
  readonly ips: readonly IPConfig[];
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

/** The answer became another one than the lease had foretold: the links have the wrong MAC, and are removed. */
async function withdraw(call: ContainerCall, { bridge, host }: EarlyLinks): Promise<void> {
  await bridge;
  await undoHostEnd(host.name, attachmentOf(call)).job?.(call);
}

/** What `work` gives, once both have ended: whatever was done is known before it is taken back. The first failure counts. */
async function beside<T>(work: Promise<T>, other: Promise<unknown>): Promise<T> {
  const [first, second] = await Promise.allSettled([work, other]);
  if (first.status === "rejected") throw first.reason;
  if (second.status === "rejected") throw second.reason;
  return first.value;
}

/** The links, addresses and routes; `ipam` is absent until an IPAM plugin that needs the link is asked. */
async function attach(
  call: ContainerCall,
  conf: Config,
  parts: Ends & { bridge: Promise<Link> | undefined; ipam: Result | undefined; masq: MasqueradeBackend | undefined },
): Promise<Result> {
  const { host, pod, masq } = parts;
  let { ipam } = parts;
  const shown: Interface = { name: conf.bridge };
  const bridge = await (parts.bridge ?? connect(call, conf, parts));
  if (conf.macspoofchk) {
    const { spoofCheckSteps } = await spoofCheck();
    await apply([await spoofCheckSteps(call, host.name, pod.mac ?? "")], call);
  }
  if (conf.ipamType !== "") ipam ??= await allocate(call, conf.ipamType);
  else await apply([[noRouterAdvertisements(host.name)]], call);
  Object.assign(shown, { name: bridge.ifname, mac: bridge.address ?? "" });
  const result: Result = { interfaces: [shown, host, pod] };
  if (call.version === "1.1.0") pod.mtu = conf.mtu > 0 ? conf.mtu : 1500;
  if (ipam) {
    // Before the container's tools get to announce it, the port usually forwards.
    let heard = true;
    const forwards = async () => void (heard = await portState(call, host.name) === "up");
    const configured = await beside(configure(call, conf, { bridge, shown, ipam, host, pod, masq }), forwards());
    Object.assign(result, configured, { interfaces: result.interfaces });
    if (!heard) {
      await awaitPort(call, conf, host.name);
      await apply([[announcement(pod)]], call);
    }
  } else await awaitPort(call, conf, host.name);
  if (ipam && conf.vlan !== 0 && conf.isGateway) {
    const gateway = await gatewayOfVlan(call, conf, bridge, result);
    result.interfaces?.push(gateway);
  }
  return replacesDns(conf.dns) ? withDns(result, readDns(conf.dns)) : result;
}

function attachmentOf(
  { network, containerId, ifName }: ContainerCall,
): { network: string; containerId: string; ifName: string } {
  return { network, containerId, ifName };
}

function checkedMac(given: string): string {
  const mac = parseMac(given);
  if (mac === undefined) {
    throw invalid(
      `failed to make veth pair: address ${given}: invalid MAC address`,
      'the MAC asked for in runtimeConfig.mac, args.cni.mac or CNI_ARGS "MAC"',
    );
  }
  if (macLength(mac) !== 6) {
    throw invalid(
      "failed to make veth pair: invalid argument",
      `${given} has ${macLength(mac)} bytes; an Ethernet address has 6`,
    );
  }
  if (!isUnicastMac(mac)) {
    throw invalid("failed to make veth pair: cannot assign requested address", `${given} is no unicast address`);
  }
  return mac;
}

/** From the first IPv4 address, else from the attachment: the same attachment always gets the same. */
function computedMac(seed: string, ips: readonly IPConfig[] = []): string {
  const v4 = ips.map(({ address }) => parsePrefix(address)?.address).find((address) => address?.family === 4);
  return v4 ? macFromIpv4(v4.value) : macFromSeed(`pod:${seed}`);
}

/** The port, and what the bridge lacks: usually one process that finds the bridge as it should be. */
async function connect(
  call: ContainerCall,
  conf: Config,
  ends: Ends,
): Promise<BridgeNow> {
  const { host, pod, ips } = ends;
  const wish = bridgeWish(conf, ips);
  // By such a name iproute2 would show another link when there is none of this name.
  if (isIndexName(conf.bridge) && !await lookAtBridge(call, conf.bridge)) await createBridge(call, wish);
  let bridge: BridgeNow | undefined;
  for (let attempt = 0; bridge === undefined; attempt++) {
    try {
      bridge = await withFreeName(call, { owner: attachmentOf(call), end: host }, () => addPort(call, conf, ends));
    } catch (error) {
      if (!(error instanceof StepError)) throw error;
      if (attempt === 0 && isAbsent(error) && error.step.text === addrShow(conf.bridge)) await createBridge(call, wish);
      else throw await explained(call, conf, error, { host, pod });
    }
  }
  const now = bridge;
  const addresses = addressSteps(now, { ...wish, port: host.name }, ADDRESS_FAILURE);
  const steps = [...ensureBridge(now, wish, call.warn), ...addresses];
  if (steps.length > 0) await apply([steps], call).catch((error) => Promise.reject(withIpv6Hint(error, now.ifname)));
  await setVlans(call, conf, host.name);
  const mac = macAfter(bridge, addresses);
  return { ...bridge, ...(mac && { address: mac }) };
}

/** One process makes the port, and looks at the bridge before and after: one that nobody gave a MAC takes one from its ports. */
async function addPort(call: ContainerCall, conf: Config, ends: Ends): Promise<BridgeNow> {
  const show = () => step("host", "ip", addrShow(conf.bridge), { read: true });
  const [[before] = [], [now] = []] = await apply(
    [[show(), ...portSteps(call, conf, ends), show()]],
    call,
  ) as BridgeNow[][];
  if (now) return { ...now, macBefore: before?.address };
  throw invalid(`failed to create bridge "${conf.bridge}": could not lookup "${conf.bridge}": Link not found`, "");
}

const ADDRESS_FAILURE = "failed to set bridge addr";

function bridgeWish(conf: Config, ips: readonly IPConfig[]): BridgeWish {
  const onBridge = conf.isGateway && conf.vlan === 0;
  return {
    name: conf.bridge,
    mtu: conf.mtu,
    vlanFiltering: conf.vlan !== 0 || conf.trunk !== undefined,
    promisc: conf.promiscMode,
    addresses: onBridge ? gatewayAddresses(ips) : [],
    forceAddress: conf.forceAddress,
  };
}

/** Each address's gateway with the address's prefix length, once each. */
function gatewayAddresses(ips: readonly IPConfig[]): string[] {
  const all = ips.map((ip) => {
    const gateway = ip.gateway ?? firstHost(ip.address);
    return gateway && `${gateway}/${ip.address.split("/")[1]}`;
  });
  return [...new Set(all.filter((one) => one !== undefined && one !== ""))] as string[];
}

function portSteps(
  call: ContainerCall,
  conf: Config,
  { host, pod, ips }: Ends,
): Step[] {
  const { bridge } = conf;
  const veth = host.name;
  // Up from the start: once the host's end is up too, the port forwards, and what the container announces is heard.
  const ends = {
    name: veth,
    mac: host.mac ?? "",
    peer: pod.name,
    peerMac: pod.mac ?? "",
    netns: netnsWord(call),
    mtu: conf.mtu,
  };
  const pair = vethInto(ends, { up: !conf.disableContainerInterface });
  const steps = [
    step("host", "ip", pair, {
      failing: "failed to make veth pair",
      undo: undoHostEnd(veth, attachmentOf(call)),
      why: "the container's end is made in its namespace, up from the start",
    }),
    step("host", "ip", `link set dev ${veth} master ${bridge} alias ${portAlias({ ...call })} up`, {
      failing: `failed to connect "${veth}" to bridge ${bridge}`,
      why: "the port; its alias tells whose it is",
    }),
  ];
  if (conf.hairpinMode) {
    steps.push(
      step("host", "ip", `link set dev ${veth} type bridge_slave hairpin on`, {
        failing: `failed to setup hairpin mode for ${veth}`,
        why: "hairpinMode",
      }),
    );
  }
  if (conf.portIsolation) {
    steps.push(
      step("host", "ip", `link set dev ${veth} type bridge_slave isolated on`, {
        failing: `failed to set isolated on for ${veth}`,
        why: "portIsolation",
      }),
    );
  }
  for (const ip of ips) {
    const address = ip.address.split("/")[0] ?? "";
    steps.push(
      step("host", "ip", `neigh flush to ${address} dev ${bridge}`, { why: "forget the address's last owner" }),
    );
  }
  return steps;
}

async function setVlans(call: ContainerCall, conf: Config, port: string): Promise<void> {
  await setPortVlans(call, port, {
    vlan: conf.vlan,
    trunk: conf.trunk ?? [],
    preserveDefault: conf.preserveDefaultVlan,
  });
}

/** Says in the reference's words, and with what to do, why the port could not be made. */
async function explained(
  call: ContainerCall,
  conf: Config,
  error: StepError,
  { host, pod }: { host: Interface; pod: Interface },
): Promise<unknown> {
  const words = error.output.stderr;
  if (error.step.text.startsWith("link add") && /File exists/.test(words)) {
    return invalid(
      `container veth name ("${pod.name}") peer provided ("${host.name}") already exists`,
      `${call.netns} already has a link "${pod.name}", or the host "${host.name}": left by an ADD that did not end, or still in use; DEL of this container removes both`,
    );
  }
  if (error.step.text.includes(" master ")) {
    const now = await lookAtBridge(call, conf.bridge);
    if (now && now.linkinfo?.info_kind !== "bridge") {
      return invalid(
        `failed to create bridge "${conf.bridge}": "${conf.bridge}" already exists but is not a bridge`,
        `it is ${now.linkinfo?.info_kind ?? "a physical link"}: choose another name in "bridge"`,
      );
    }
    if (now && (portsOf(now.ifname, now.ifindex)?.length ?? 0) >= MAX_PORTS) {
      return invalid(error.message, `bridge ${conf.bridge} has ${MAX_PORTS} ports, the kernel's limit`);
    }
  }
  return error;
}

function withIpv6Hint(error: unknown, bridge: string): unknown {
  if (
    !(error instanceof StepError) || !/permission denied|IPv6 is disabled/i.test(error.output.stderr) ||
    !error.step.text.includes(":")
  ) return error;
  return invalid(
    error.message,
    `IPv6 is switched off there: sysctl net/ipv6/conf/${bridge}/disable_ipv6 (or net.ipv6.conf.all.disable_ipv6, or ipv6.disable=1 on the kernel's command line)`,
  );
}

/** What {@linkcode configure} works with. */
interface Parts {
  readonly bridge: BridgeNow;
  /** The bridge in the result. */
  readonly shown: Interface;
  readonly ipam: Result;
  readonly host: Interface;
  readonly pod: Interface;
  readonly masq: MasqueradeBackend | undefined;
}

/** Layer 3: addresses and routes in the container; beside it forwarding and masquerade on the host. */
async function configure(call: ContainerCall, conf: Config, parts: Parts): Promise<Result> {
  const { bridge, shown, ipam, host, pod, masq } = parts;
  const ips = (ipam.ips ?? []).map((ip) => {
    const gateway = ip.gateway ?? (conf.isGateway ? firstHost(ip.address) : undefined);
    return { ...ip, interface: 2, ...(gateway && { gateway }) };
  });
  const routes = [...(ipam.routes ?? [])];
  if (conf.isDefaultGateway) routes.push(...defaultRoutes(ips, routes));
  const attachment = attachmentOf(call);
  const result: Result = { ...ipam, ips, routes, interfaces: [{ name: bridge.ifname }, host, pod] };
  if (conf.isGateway && conf.vlan === 0 && !ADDRESS_FIRST.includes(conf.ipamType)) {
    const steps = addressSteps(
      bridge,
      { addresses: gatewayAddresses(ips), forceAddress: conf.forceAddress, port: host.name },
      ADDRESS_FAILURE,
    );
    if (steps.length > 0) await apply([steps], call);
    shown.mac = macAfter(bridge, steps) ?? "";
  }
  const beside = [
    noRouterAdvertisements(host.name),
    ...(conf.isGateway ? forwarding(ips) : []),
    ...(masq ? masqueradePlan(attachment, ips.map((ip) => ip.address), masq) : []),
  ];
  await configureLink(call, result, { dad: conf.enabledad, announce: true, more: beside, last: [announcement(pod)] });
  const { interfaces: _, ...rest } = result;
  return rest;
}

function announcement(pod: Interface): Step {
  return step("pod", "ip", `link set dev ${pod.name} address ${pod.mac}`, {
    why: "announces the addresses, now that the port forwards: setting a MAC does, even the same",
  });
}

function notUp(state: string, veth: string, bridge: string): CniError {
  return invalid(
    `bridge port in error state: ${state}`,
    `${veth} on ${bridge} did not come up: is the bridge up, and the container's end still there?`,
  );
}

function forwarding(ips: NonNullable<Result["ips"]>): Step[] {
  const options = {
    failing: "failed to enable forwarding",
    ifDifferent: true,
    why: "the host routes for its containers",
  };
  const six = ips.some((ip) => ip.address.includes(":"));
  const four = ips.some((ip) => !ip.address.includes(":"));
  return [
    ...(four ? [step("host", "sysctl", "net/ipv4/ip_forward=1", options)] : []),
    ...(six ? [step("host", "sysctl", "net/ipv6/conf/all/forwarding=1", options)] : []),
  ];
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

function noRouterAdvertisements(veth: string): Step {
  return step("host", "sysctl", `net/ipv6/conf/${veth}/accept_ra=0`, {
    optional: true,
    why: "containers must not announce routes to the host",
  });
}

/** The port has to forward when ADD ends, and when the container announces itself; the reference waits as long. */
async function awaitPort(call: ContainerCall, conf: Config, veth: string): Promise<void> {
  if (conf.disableContainerInterface) return;
  const state = await waitForPort(call, veth);
  if (state !== "up") throw notUp(state, veth, conf.bridge);
}

/** With a VLAN the gateway's addresses are on a link of their own, `BRIDGE.VLAN`. */
async function gatewayOfVlan(call: ContainerCall, conf: Config, bridge: Link, result: Result): Promise<Interface> {
  const vlans = { vlan: conf.vlan, trunk: [], preserveDefault: conf.preserveDefaultVlan };
  const peers = hostEndNames({ network: `${bridge.ifname}.${conf.vlan}`, containerId: "gateway", ifName: "vlan" });
  const link = await vlanGateway(call, bridge, { vlans, peers });
  const steps = addressSteps(
    link,
    { addresses: gatewayAddresses(result.ips ?? []), forceAddress: conf.forceAddress },
    "failed to set vlan interface for bridge with addr",
  );
  if (steps.length > 0) await apply([steps], call);
  return { name: link.ifname, mac: link.address ?? "" };
}

async function del(call: ContainerCall): Promise<void> {
  const conf = decodeLeniently(keys, call.config, call.warn);
  const ipam = ipamTypeLeniently(conf.ipam);
  const attachment = attachmentOf(call);
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
  // What takes longest begins: the rules, whose addresses the previous result usually knows, then the link. The rest is read and
  // done beside them.
  const jobs = [
    ...(ipam !== "" && known.length > 0 ? [() => first = unmasquerade(known)] : []),
    () => deleteLinks(call, bridge, distinct(known)),
    ...(ipam !== "" ? [rest] : []),
    ...(conf.macspoofchk ? [() => removeSpoofRules(call)] : []),
  ];
  const give = ipam === "" ? [] : [() => call.delegate(ipam, "DEL")];
  // Only when the link is gone is the address free for the next one; but a lease is given back through the link.
  const groups = groupsFor(call, jobs);
  await (ipam === "dhcp" ? all(give, ...groups) : all(...groups, give));
}

/** Both ends of the veth pair, found from the host, or else from the container; and what the host knows of `addresses`. */
async function deleteLinks(call: ContainerCall, bridge: string, addresses: readonly string[]): Promise<void> {
  const neighbours = neighbourSteps(bridge, addresses);
  if (!call.ownNetns && await deleteHostEnd(call, attachmentOf(call), neighbours)) return;
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

async function check(call: ContainerCall): Promise<void> {
  const conf = parse(call);
  const { bridge: name, ipamType } = conf;
  openNetns(call, `failed to open netns "${call.netns}"`);
  if (ipamType !== "") await call.delegate(ipamType, "CHECK");
  const previous = prevResult(call);
  if (!previous) throw invalid("Required prevResult missing", "CHECK needs the result of ADD");
  const { checkAddresses, checkRoutes, containerInterface, podState } = await import("../../lib/link/verify.ts");
  const { checkBridge, checkContainer, checkHostEnd } = await import("./check.ts");
  const [pod, bridge] = await Promise.all([podState(call), lookAtBridge(call, name)]);
  const seen = { ...conf, bridge: bridge?.ifname ?? name };
  checkBridge(seen, previous, bridge);
  const container = containerInterface(call, previous);
  checkContainer(container, pod);
  await checkHostEnd(call, seen, previous, { pod, bridge, container });
  checkAddresses(call.ifName, pod, previous);
  checkRoutes(pod, previous);
  if (conf.ipMasq && ipamType !== "") {
    await checkMasquerade(call, attachmentOf(call), ownAddresses(call, previous), conf.ipMasqBackend);
  }
}

async function gc(call: NetworkCall): Promise<void> {
  const conf = decodeLeniently(keys, call.config, call.warn);
  const ipam = ipamTypeLeniently(conf.ipam);
  const { valid } = call;
  await all(
    valid === undefined ? [] : [
      () => collectVeths(call, call.network, valid),
      () => gcMasquerade(call, valid),
    ],
    [
      // A link that is there speaks for its rules, so the links go first.
      ...(valid && conf.macspoofchk && toolPath("nft") !== "" ? [() => collectSpoofRules(call, valid)] : []),
      ...(ipam !== "" ? [() => call.delegate(ipam, "GC")] : []),
    ],
  );
}

async function collectSpoofRules(call: NetworkCall, valid: readonly Attachment[]): Promise<void> {
  const { collectSpoofChecks, spoofCheckRef } = await spoofCheck();
  const keep = new Set(valid.map(spoofCheckRef));
  await collectSpoofChecks(call, (ref, veth) => !keep.has(ref) && linkExists(veth) === false);
}

async function status(call: NetworkCall): Promise<void> {
  const conf = decode(keys, call.config, "failed to load netconf");
  for (const tool of ["ip", "nsenter", ...(conf.macspoofchk ? ["nft"] : [])]) {
    if (toolPath(tool) === "") {
      throw new CniError(
        code.notAvailable,
        missingTool(tool),
        `install ${tool === "nft" ? "nftables" : tool === "ip" ? "iproute2" : "util-linux"}`,
      );
    }
  }
  if (conf.ipMasq) await statusMasquerade(call, conf.ipMasqBackend);
  const ports = portsOf(conf.bridge)?.length;
  if (ports !== undefined && ports >= MAX_PORTS) {
    throw new CniError(
      code.notAvailable,
      `bridge ${conf.bridge} has ${ports} ports, the kernel's limit`,
      "no further container can be connected",
    );
  }
  const type = ipamType(conf.ipam);
  if (type !== "") await call.delegate(type, "STATUS");
}
