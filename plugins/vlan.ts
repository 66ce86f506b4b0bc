/**
 * vlan: an 802.1Q link on a link of the host. https://www.cni.dev/plugins/current/main/vlan/
 *
 * Differs from the reference: a failed ADD leaves nothing behind, so that the VLAN ID is free for the next try; DEL
 * needs neither a master nor a valid configuration, and deletes vlan links only; the address is announced when the link
 * comes up; an IPAM plugin's error keeps its code; CHECK compares the master where both are in the container, and MACs
 * in any case; STATUS looks for the master; GC is passed on to the IPAM plugin.
 */
import { decode, decodeLeniently, flag, integer, maybeInteger, text } from "../lib/cni/decode.ts";
import { CniError, code } from "../lib/cni/error.ts";
import { openNetns } from "../lib/cni/netns.ts";
import type { ContainerCall, NetworkCall, Plugin } from "../lib/cni/plugin.ts";
import { type JsonObject, type Result, since } from "../lib/cni/types.ts";
import { allocate } from "../lib/link/container_link.ts";
import {
  collectAddresses,
  ipamKeys,
  ipamType,
  ipamTypeLeniently,
  needed,
  needsLink,
  release,
  statusTools,
  withDns,
} from "../lib/link/ipam.ts";
import { checkMtu, explainSubLink, lookupMaster, masterPlace, type SubLink, subLinkSteps } from "../lib/link/master.ts";
import { attachLink, checkKind, checkMac, detachLink, passingName, requiredPrevResult } from "../lib/link/new_link.ts";
import { checkAddresses, checkRoutes, containerInterface, podState } from "../lib/link/verify.ts";
import type { Link } from "../lib/kernel/ip.ts";
import { StepError } from "../lib/kernel/plan.ts";

const keys = {
  master: text("", "link that the VLAN hangs on; required"),
  vlanId: maybeInteger("VLAN ID; 0: priority-tagged frames", { min: 0, max: 4094 }),
  mtu: integer(0, "MTU of the container's link, at most the master's; 0: the master's", { min: 0 }),
  linkInContainer: flag(false, "the master is a link of the container"),
  ...ipamKeys,
};

export const plugin: Plugin = {
  name: "vlan",
  kind: "main",
  about: "gives the container an 802.1Q VLAN link on a link of the host",
  versions: since("0.1.0"),
  needs: ["ip", "nsenter", "sh"],
  keys,
  parse,
  add,
  del,
  check,
  gc,
  status,
};

const words = { noun: "vlan", kinds: ["vlan"], front: "vlan: " };

const read = (config: JsonObject) => decode(keys, config, "failed to load netconf");

/** The configuration, checked as far as it can be without the kernel. */
function parse(call: { readonly config: JsonObject; warn(note: string): void }) {
  const conf = read(call.config);
  if (conf.master === "") {
    throw new CniError(
      code.internal,
      '"master" field is required. It specifies the host interface name to create the VLAN for',
      '"master" is missing or empty',
    );
  }
  const vlanId = conf.vlanId ?? 0;
  if (vlanId < 0 || vlanId > 4094) {
    throw new CniError(
      code.internal,
      `invalid VLAN ID ${vlanId} (must be between 0 and 4095 inclusive)`,
      `"vlanId" is ${vlanId}; 4095 is reserved: 0 to 4094`,
    );
  }
  if (conf.vlanId === undefined) call.warn('"vlanId" is missing: VLAN 0, priority-tagged frames without a VLAN');
  return { ...conf, vlanId };
}

async function add(call: ContainerCall): Promise<Result> {
  const conf = parse(call);
  const type = ipamType(conf.ipam);
  openNetns(call, `failed to open netns "${call.netns}"`);
  const sub: SubLink = {
    kind: "vlan",
    master: conf.master,
    place: conf.linkInContainer ? "pod" : "host",
    mtu: conf.mtu,
    options: `id ${conf.vlanId}`,
  };
  await checkMtu(call, sub);
  const temp = passingName(call);
  const result = await attachLink(call, {
    noun: "vlan",
    create: await subLinkSteps(call, sub, temp),
    temp,
    explain: (error) => explained(call, sub, error),
    addresses: () => addresses(call, type),
    early: !needsLink(type),
    options: { announce: true },
  });
  return withDns(result, conf.dns);
}

/** The reference's words in front of whatever the IPAM plugin says; its code is kept. */
async function addresses(call: ContainerCall, type: string): Promise<Result> {
  try {
    return await allocate(call, type);
  } catch (error) {
    if (!(error instanceof CniError) || error.msg.startsWith("IPAM plugin returned")) throw error;
    throw new CniError(error.code, `failed to execute IPAM delegate: ${error.message}`);
  }
}

async function explained(call: ContainerCall, sub: SubLink, error: unknown): Promise<unknown> {
  if (error instanceof StepError && /Network is down/.test(error.output.stderr)) {
    return new CniError(code.internal, error.message, `the master is down: ip link set dev ${sub.master} up`);
  }
  return await explainSubLink(call, sub, error);
}

async function del(call: ContainerCall): Promise<void> {
  const conf = decodeLeniently(keys, call.config, call.warn);
  await release(call, ipamTypeLeniently(conf.ipam), {
    jobs: [() => detachLink(call, words.kinds)],
    required: true,
  });
}

async function check(call: ContainerCall): Promise<void> {
  const conf = parse(call);
  const place = conf.linkInContainer ? "pod" : "host";
  openNetns(call, `failed to open netns "${call.netns}"`);
  const type = ipamType(conf.ipam);
  const previous = requiredPrevResult(call, "vlan: Required prevResult missing");
  const [pod, master] = await Promise.all([
    podState(call),
    lookupMaster(call[place], { name: conf.master, where: masterPlace(place, call.netns) }),
    call.delegate(type, "CHECK"),
  ]);
  const container = containerInterface(call, previous);
  const link = checkKind(container, pod, words);
  checkMac(container, link, words);
  checkVlan(link, conf, place === "pod" ? master : undefined);
  checkAddresses(call.ifName, pod, previous);
  checkRoutes(pod, previous);
}

/** The texts are the reference's, which took them from another plugin; the details say what is meant. */
function checkVlan(link: Link, conf: ReturnType<typeof parse>, master: Link | undefined): void {
  const { ifname } = link;
  const id = link.linkinfo?.info_data?.["id"];
  if (id !== conf.vlanId) {
    throw new CniError(
      code.internal,
      `Error: Tuning link ${ifname} configured promisc is ${conf.vlanId}, current value is ${id}`,
      `"vlanId" is ${conf.vlanId}, and ${ifname} has VLAN ID ${id}`,
    );
  }
  if (conf.mtu !== 0 && conf.mtu !== link.mtu) {
    throw new CniError(
      code.internal,
      `Error: Tuning configured MTU of ${ifname} is ${conf.mtu}, current value is ${link.mtu}`,
      `ip link set dev ${ifname} mtu ${conf.mtu}`,
    );
  }
  if (master && link.link !== undefined && link.link !== master.ifname) {
    throw new CniError(
      code.internal,
      `vlan: Interface ${ifname} hangs on ${link.link}, not on ${master.ifname}`,
      `"master" is ${conf.master}`,
    );
  }
}

async function gc(call: NetworkCall): Promise<void> {
  await collectAddresses(call, ipamTypeLeniently(decodeLeniently(keys, call.config, call.warn).ipam));
}

async function status(call: NetworkCall): Promise<void> {
  const conf = read(call.config);
  statusTools(plugin.needs);
  if (conf.master !== "" && !conf.linkInContainer) {
    await needed(lookupMaster(call.host, { name: conf.master, where: "on the host" }));
  }
  await call.delegate(ipamType(conf.ipam), "STATUS");
}
