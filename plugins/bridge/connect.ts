/** The container's port on the bridge, and what the bridge lacks for it. */
import { internal } from "../../lib/cni/error.ts";
import { netnsWord } from "../../lib/cni/netns.ts";
import type { ContainerCall } from "../../lib/cni/plugin.ts";
import type { Interface, IPConfig } from "../../lib/cni/types.ts";
import { addrShow, vethInto } from "../../lib/kernel/ip.ts";
import { apply, type Step, step, StepError } from "../../lib/kernel/plan.ts";
import { linkExists } from "../../lib/kernel/proc.ts";
import { isAbsent } from "../../lib/kernel/run.ts";
import { firstHost, linkNow } from "../../lib/link/container_link.ts";
import { readFailure } from "../../lib/link/failure.ts";
import { isExisting, ownerOf, podIndex, portAlias, undoHostEnd, withFreeName } from "../../lib/link/host_end.ts";
import { isIndexName } from "../../lib/net/link_name.ts";
import type { Config } from "./conf.ts";
import { type BridgeNow, type BridgeRequest, isComplete } from "./port.ts";

/** Both ends of the veth pair, and the addresses that the container gets, as far as they are known. */
export interface Ends {
  readonly host: Interface;
  readonly pod: Interface;
  readonly ips: readonly IPConfig[];
}

/** What a port is made from; `index`: of the container's end, 0 leaves it to the kernel. */
interface Port extends Ends {
  readonly index: number;
}

/** Loaded when used: what a bridge that is as it should be does without. */
const shape = () => import("./shape.ts");

/** The port, and what the bridge lacks: usually one process that finds the bridge as it should be. */
export async function connect(call: ContainerCall, conf: Config, ends: Ends): Promise<BridgeNow> {
  const { host, ips } = ends;
  const request = bridgeRequest(conf, ips);
  // By such a name iproute2 would show another link when there is none of this name.
  if (isIndexName(conf.bridge) && !await linkNow(call, "host", conf.bridge)) {
    await (await shape()).createBridge(call, request);
  }
  // Where the host has a link that is called as the container's: see vethInto.
  const free = podIndex(host);
  let index = linkExists(call.ifName) === false ? 0 : free;
  let found: BridgeNow | undefined;
  for (let attempt = 0; found === undefined; attempt++) {
    try {
      found = await withFreeName(
        call,
        { owner: ownerOf(call), end: host },
        () => addPort(call, conf, { ...ends, index }),
      );
    } catch (error) {
      if (!(error instanceof StepError)) throw error;
      if (attempt === 0 && isAbsent(error) && error.step.text === addrShow(conf.bridge)) {
        await (await shape()).createBridge(call, request);
      } else if (!index && isExisting(error)) {
        // Alternative names count, and are not in /proc.
        index = free;
      } else {
        throw await readFailure(error, async (failure) => (await shape()).portFailure(call, failure, { conf, ends }));
      }
    }
  }
  const bridge = isComplete(found, request)
    ? found
    : await (await shape()).completeBridge(call, found, { ...request, port: host.name });
  if (request.vlanFiltering) {
    const { setPortVlans } = await import("./port_vlans.ts");
    const { vlan, trunk = [], preserveDefaultVlan: preserveDefault } = conf;
    await setPortVlans(call, host.name, { vlan, trunk, preserveDefault });
  }
  return bridge;
}

/**
 * One process makes the port, and looks at the bridge before and after: one that nobody gave a MAC takes one from its
 * ports.
 */
async function addPort(call: ContainerCall, conf: Config, ends: Port): Promise<BridgeNow> {
  const show = () => step("host", "ip", addrShow(conf.bridge), { read: true });
  const [[before] = [], [now] = []] = await apply(
    [[show(), ...portSteps(call, conf, ends), show()]],
    call,
  ) as BridgeNow[][];
  if (now) return { ...now, macBefore: before?.address };
  throw internal(`failed to create bridge "${conf.bridge}": could not lookup "${conf.bridge}": Link not found`, "");
}

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

/** Switches of a port: key of the configuration, iproute2's word, the words for a failure. */
const PORT_FLAGS = [
  ["hairpinMode", "hairpin", "failed to setup hairpin mode"],
  ["portIsolation", "isolated", "failed to set isolated on"],
] as const;

function portSteps(call: ContainerCall, conf: Config, { host, pod, ips, index }: Port): Step[] {
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
  const pair = vethInto(ends, { up: !conf.disableContainerInterface, index });
  const steps = [
    step("host", "ip", pair, {
      failing: "failed to make veth pair",
      undo: undoHostEnd(veth, ownerOf(call)),
      why: `the container's end, up from the start${index ? "; told from the host's by index" : ""}`,
    }),
    step("host", "ip", `link set dev ${veth} master ${bridge} alias ${portAlias({ ...call })} up`, {
      failing: `failed to connect "${veth}" to bridge ${bridge}`,
      why: "the port; its alias tells whose it is",
    }),
  ];
  for (const [key, word, failing] of PORT_FLAGS) {
    if (!conf[key]) continue;
    const text = `link set dev ${veth} type bridge_slave ${word} on`;
    steps.push(step("host", "ip", text, { failing: `${failing} for ${veth}`, why: key }));
  }
  for (const ip of ips) {
    const address = ip.address.split("/")[0] ?? "";
    steps.push(
      step("host", "ip", `neigh flush to ${address} dev ${bridge}`, { why: "forget the address's last owner" }),
    );
  }
  return steps;
}
