/** The container's port on the bridge, and what the bridge lacks for it. */
import { netnsWord } from "../../lib/cni/netns.ts";
import type { ContainerCall } from "../../lib/cni/plugin.ts";
import type { Interface, IPConfig, Result } from "../../lib/cni/types.ts";
import { addrShow, type Link, vethInto } from "../../lib/kernel/ip.ts";
import { apply, type Step, step, StepError } from "../../lib/kernel/plan.ts";
import { isAbsent } from "../../lib/kernel/run.ts";
import { firstHost } from "../../lib/link/container_link.ts";
import { type Failure, readFailure, type Reading } from "../../lib/link/failure.ts";
import { hostEndNames, ownerOf, pairExists, portAlias, undoHostEnd, withFreeName } from "../../lib/link/host_end.ts";
import { isIndexName } from "../../lib/net/link_name.ts";
import { type Config, invalid } from "./conf.ts";
import {
  addressSteps,
  type BridgeNow,
  type BridgeRequest,
  createBridge,
  ensureBridge,
  lookAtBridge,
  macAfter,
  MAX_PORTS,
  notABridge,
  portsOf,
  setPortVlans,
  vlanGateway,
} from "./port.ts";

/** Both ends of the veth pair, and the addresses that the container gets, as far as they are known. */
export interface Ends {
  readonly host: Interface;
  readonly pod: Interface;
  readonly ips: readonly IPConfig[];
}

/** The port, and what the bridge lacks: usually one process that finds the bridge as it should be. */
export async function connect(call: ContainerCall, conf: Config, ends: Ends): Promise<BridgeNow> {
  const { host, ips } = ends;
  const request = bridgeRequest(conf, ips);
  // By such a name iproute2 would show another link when there is none of this name.
  if (isIndexName(conf.bridge) && !await lookAtBridge(call, conf.bridge)) await createBridge(call, request);
  let bridge: BridgeNow | undefined;
  for (let attempt = 0; bridge === undefined; attempt++) {
    try {
      bridge = await withFreeName(call, { owner: ownerOf(call), end: host }, () => addPort(call, conf, ends));
    } catch (error) {
      if (!(error instanceof StepError)) throw error;
      if (attempt === 0 && isAbsent(error) && error.step.text === addrShow(conf.bridge)) {
        await createBridge(call, request);
      } else throw await readFailure(error, (failure) => read(call, conf, failure, ends));
    }
  }
  const now = bridge;
  const addresses = addressSteps(now, { ...request, port: host.name }, ADDRESS_FAILURE);
  const steps = [...ensureBridge(now, request, call.warn), ...addresses];
  try {
    if (steps.length > 0) await apply([steps], call);
  } catch (error) {
    throw await readFailure(error, (failure) => ipv6Advice(failure, now.ifname));
  }
  await setVlans(call, conf, host.name);
  const mac = macAfter(bridge, addresses);
  return { ...bridge, ...(mac && { address: mac }) };
}

/**
 * One process makes the port, and looks at the bridge before and after: one that nobody gave a MAC takes one from its
 * ports.
 */
async function addPort(call: ContainerCall, conf: Config, ends: Ends): Promise<BridgeNow> {
  const show = () => step("host", "ip", addrShow(conf.bridge), { read: true });
  const [[before] = [], [now] = []] = await apply(
    [[show(), ...portSteps(call, conf, ends), show()]],
    call,
  ) as BridgeNow[][];
  if (now) return { ...now, macBefore: before?.address };
  throw invalid(`failed to create bridge "${conf.bridge}": could not lookup "${conf.bridge}": Link not found`, "");
}

/** In front of what is wrong with the gateway's addresses. */
export const ADDRESS_FAILURE = "failed to set bridge addr";

function bridgeRequest(conf: Config, ips: readonly IPConfig[]): BridgeRequest {
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
export function gatewayAddresses(ips: readonly IPConfig[]): string[] {
  const all = ips.map((ip) => {
    const gateway = ip.gateway ?? firstHost(ip.address);
    return gateway && `${gateway}/${ip.address.split("/")[1]}`;
  });
  return [...new Set(all.filter((one) => one !== undefined && one !== ""))] as string[];
}

function portSteps(call: ContainerCall, conf: Config, { host, pod, ips }: Ends): Step[] {
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
      undo: undoHostEnd(veth, ownerOf(call)),
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

/** Why the port could not be made. */
async function read(call: ContainerCall, conf: Config, { error, step, said }: Failure, ends: Ends): Promise<Reading> {
  if (step.text.startsWith("link add") && /File exists/.test(said)) return pairExists({ ...ends, netns: call.netns });
  if (!step.text.includes(" master ")) return undefined;
  const now = await lookAtBridge(call, conf.bridge);
  if (now && now.linkinfo?.info_kind !== "bridge") return notABridge(now, conf.bridge);
  if (now && (portsOf(now.ifname, now.ifindex)?.length ?? 0) >= MAX_PORTS) {
    return invalid(error.message, `bridge ${conf.bridge} has ${MAX_PORTS} ports, the kernel's limit`);
  }
  return undefined;
}

function ipv6Advice({ step, said }: Failure, bridge: string): Reading {
  if (!step.text.includes(":") || !/permission denied|IPv6 is disabled/i.test(said)) return undefined;
  return `IPv6 is switched off there: sysctl net/ipv6/conf/${bridge}/disable_ipv6 (or net.ipv6.conf.all.disable_ipv6, or ipv6.disable=1 on the kernel's command line)`;
}

/** With a VLAN the gateway's addresses are on a link of their own, `BRIDGE.VLAN`. */
export async function gatewayOfVlan(
  call: ContainerCall,
  conf: Config,
  bridge: Link,
  result: Result,
): Promise<Interface> {
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
