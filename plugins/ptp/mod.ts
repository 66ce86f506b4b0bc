/**
 * ptp: a veth pair and routes, no bridge. https://www.cni.dev/plugins/current/main/ptp/
 *
 * Differs from the reference: a failed ADD leaves nothing behind; an address without a gateway is refused at once; /32
 * addresses, two addresses of one subnet, and a route to the own subnet work; a stale route of the host is replaced;
 * there is no wait for duplicate address detection, since nobody else is on the link; DEL removes rules and the host's
 * end without the container; CHECK looks at the host's routes and rules; GC and STATUS do their work.
 */
import { decode, decodeLeniently, flag, integer, maybeText } from "../../lib/cni/decode.ts";
import { CniError, code } from "../../lib/cni/error.ts";
import { openNetns } from "../../lib/cni/netns.ts";
import type { ContainerCall, NetworkCall, Plugin } from "../../lib/cni/plugin.ts";
import { prevResultLeniently } from "../../lib/cni/prev_result.ts";
import { type Interface, type IPConfig, type JsonObject, type Result, since } from "../../lib/cni/types.ts";
import { readDns } from "../../lib/cni/version.ts";
import { allocate } from "../../lib/link/container_link.ts";
import {
  collectAddresses,
  heldAddresses,
  ipamKeys,
  ipamType,
  ipamTypeLeniently,
  release,
  replacesDns,
  statusTools,
  withDns,
  writtenDns,
} from "../../lib/link/ipam.ts";
import { kindAdvice } from "../../lib/link/master.ts";
import {
  checkMasquerade,
  gcMasquerade,
  masqueradeBackend,
  masqueradePlan,
  removeMasquerade,
  statusMasquerade,
} from "../../lib/rules/masquerade.ts";
import { checkKind, checkMac, detachLink, requiredPrevResult } from "../../lib/link/new_link.ts";
import { hostSteps, isSix, plain, podSteps, single } from "./routed_veth.ts";
import { checkAddresses, checkRoutes, containerInterface, podState } from "../../lib/link/verify.ts";
import type { RouteEntry } from "../../lib/kernel/ip.ts";
import { apply, type Step, step, StepError } from "../../lib/kernel/plan.ts";
import { isAbsent } from "../../lib/kernel/run.ts";
import { linkExists } from "../../lib/kernel/proc.ts";
import {
  collectVeths,
  deleteHostEnd,
  deleteHostVeth,
  hostEnd,
  look,
  portAlias,
  withFreeName,
} from "../../lib/link/host_end.ts";
import { macFromSeed } from "../../lib/net/mac.ts";
import type { Attachment } from "../../lib/net/name.ts";

const keys = {
  ipMasq: flag(false, "masquerade traffic that leaves the container's subnet"),
  ipMasqBackend: maybeText("iptables or nftables; iptables when it works, if absent", {
    oneOf: ["iptables", "nftables"],
  }),
  mtu: integer(0, "MTU of both ends of the veth pair; 0: the kernel's default, 1500"),
  ...ipamKeys,
  dns: writtenDns,
};

export const plugin: Plugin = {
  name: "ptp",
  kind: "main",
  about: "connects the container with the host alone, through a veth pair and routes",
  versions: since("0.1.0"),
  needs: ["ip", "nsenter", "sh"],
  keys,
  parse: ({ config }) => ipamType(read(config).ipam),
  add,
  del,
  check,
  gc,
  status,
};

const words = { noun: "veth/p2p", kinds: ["veth"], front: "ptp: " };
const read = (config: JsonObject) => decode(keys, config, "failed to load netconf");

const owner = ({ network, containerId, ifName }: ContainerCall): Attachment => ({ network, containerId, ifName });

async function add(call: ContainerCall): Promise<Result> {
  const conf = read(call.config);
  const backend = conf.ipMasq ? masqueradeBackend(call, conf.ipMasqBackend) : undefined;
  openNetns(call, `failed to open netns "${call.netns}"`);
  const ipam = await allocate(call, ipamType(conf.ipam));
  const ips = (ipam.ips ?? []).map((ip) => ({ ...ip, interface: 1, gateway: gatewayOf(ip) }));
  checkMtu(call, conf.mtu, ips);
  const host = hostEnd(owner(call));
  const pod: Interface = {
    name: call.ifName,
    mac: macFromSeed(`pod:${portAlias(owner(call))}`),
    sandbox: call.netns,
  };
  const { cniVersion: _, ...rest } = ipam;
  const result: Result = { ...rest, interfaces: [host, pod], ips };
  try {
    await withFreeName(
      call,
      { owner: owner(call), end: host },
      () => apply([[...forwarding(ips), ...hostSteps(call, { host, pod, ips, mtu: conf.mtu })]], call),
    );
    await apply([
      [
        step("host", "sysctl", `net/ipv6/conf/${host.name}/accept_ra=0`, {
          optional: true,
          why: "containers must not announce routes to the host",
        }),
        ...podSteps(call, result, ips),
        ...(backend ? masqueradePlan(owner(call), ips.map((ip) => ip.address), backend) : []),
      ],
    ], call);
  } catch (error) {
    throw explained(error, { host, pod, mtu: conf.mtu, netns: call.netns });
  }
  return replacesDns(conf.dns) ? withDns(result, readDns(conf.dns)) : result;
}

function gatewayOf({ address, gateway }: IPConfig): string {
  if (gateway || address === undefined) return gateway ?? "";
  throw new CniError(
    code.internal,
    `failed to add route: no gateway for ${address}`,
    "the gateway's address goes on the host's end of the link: the IPAM plugin has to name one with each address",
  );
}

/** The kernel has no IPv6 on a link with a smaller MTU than 1280 (RFC 8200 section 5). */
function checkMtu({ ifName }: ContainerCall, mtu: number, ips: readonly IPConfig[]): void {
  if (mtu < 68 || mtu >= 1280 || !ips.some((ip) => isSix(ip.address))) return;
  const file = `/proc/sys/net/ipv6/conf/${ifName}/keep_addr_on_down`;
  throw new CniError(
    code.internal,
    `failed to enable keep_addr_on_down for interface "${ifName}": open ${file}: no such file or directory`,
    `"mtu" is ${mtu}, and IPv6 needs 1280 at least`,
  );
}

function forwarding(ips: readonly IPConfig[]): Step[] {
  const options = {
    failing: "Could not enable IP forwarding",
    ifDifferent: true,
    why: "the host routes for its containers",
  };
  const six = ips.some((ip) => isSix(ip.address));
  const four = ips.some((ip) => !isSix(ip.address));
  return [
    ...(four ? [step("host", "sysctl", "net/ipv4/ip_forward=1", options)] : []),
    ...(six ? [step("host", "sysctl", "net/ipv6/conf/all/forwarding=1", options)] : []),
  ];
}

function explained(
  error: unknown,
  { host, pod, mtu, netns }: { host: Interface; pod: Interface; mtu: number; netns: string },
): unknown {
  if (!(error instanceof StepError) || !error.step.text.startsWith("link add ")) return error;
  const said = error.output.stderr;
  if (/File exists/.test(said)) {
    return new CniError(
      code.internal,
      `container veth name ("${pod.name}") peer provided ("${host.name}") already exists`,
      `${netns} already has a link "${pod.name}", or the host "${host.name}": left by an ADD that did not end, or still in use; DEL of this container removes both`,
    );
  }
  const advice = /Invalid argument|mtu/.test(said) && mtu > 0
    ? `"mtu" is ${mtu}: a veth pair takes 68 to 65535`
    : kindAdvice(said, "veth");
  return new CniError(code.internal, error.message, advice);
}

async function del(call: ContainerCall): Promise<void> {
  const conf = decodeLeniently(keys, call.config, call.warn);
  const type = ipamTypeLeniently(conf.ipam);
  const previous = prevResultLeniently(call);
  const known = (previous?.ips ?? []).map((ip) => ip.address);
  const held = conf.ipMasq && type !== "" ? await heldAddresses(call, type) : [];
  const rules = () => removeMasquerade(call, owner(call), [...new Set([...known, ...held])], conf.ipMasqBackend);
  await release(call, type, {
    jobs: [() => deletePair(call, previous), ...(conf.ipMasq ? [rules] : [])],
    required: true,
  });
}

/** By the host's end where its name is known: that needs no container. Either end takes the other with it. */
async function deletePair(call: ContainerCall, previous: Result | undefined): Promise<void> {
  if (!call.ownNetns && await deleteHostEnd(call, owner(call))) return;
  if (call.podAlive || call.ownNetns) return await detachLink(call, words.kinds);
  // The reference draws names; its result tells which, and the MAC whether that link is still the one.
  const drawn = previous?.interfaces?.find((one) => !one.sandbox && /^veth[0-9a-f]{8}$/.test(one.name));
  if (!drawn || linkExists(drawn.name) === false) return;
  const link = await look(call, drawn.name);
  if (link?.linkinfo?.info_kind === "veth" && link.address === drawn.mac && !link.ifalias) {
    await deleteHostVeth(call, drawn.name);
  }
}

async function check(call: ContainerCall): Promise<void> {
  const conf = read(call.config);
  openNetns(call, `failed to open netns "${call.netns}"`);
  await call.delegate(ipamType(conf.ipam), "CHECK");
  const previous = requiredPrevResult(call, "ptp: Required prevResult missing");
  const [pod] = await Promise.all([podState(call), checkHost(call, previous)]);
  const container = containerInterface(call, previous);
  checkMac(container, checkKind(container, pod, words), words);
  checkAddresses(call.ifName, pod, previous);
  checkRoutes(pod, previous);
  if (!conf.ipMasq) return;
  const addresses = (previous.ips ?? []).map((ip) => ip.address);
  await checkMasquerade(call, owner(call), addresses, conf.ipMasqBackend);
}

/** The host's way to every address of the container leads to the host's end of the pair. */
async function checkHost(call: ContainerCall, { interfaces = [], ips = [] }: Result): Promise<void> {
  const host = interfaces.find((one) => !one.sandbox);
  const own = ips.filter((ip) => ip.interface === undefined || interfaces[ip.interface]?.name === call.ifName);
  if (!host) return;
  const questions = own.map(({ address }) =>
    step("host", "ip", `route show table all exact ${single(plain(address))}`, { read: true })
  );
  let answers: unknown[][] = [];
  try {
    answers = questions.length > 0 ? await apply([questions], call) : [];
  } catch (error) {
    if (!isAbsent(error)) throw error;
  }
  own.forEach(({ address }, index) => {
    const routes = (answers[index] ?? []) as RouteEntry[];
    if (routes.some((route) => route.dev === host.name && (route.table ?? "main") === "main")) return;
    throw new CniError(
      code.internal,
      `ptp: host has no route to ${plain(address)} through ${host.name}`,
      `ip route replace ${single(plain(address))} dev ${host.name}${isSix(address) ? "" : " scope host"}`,
    );
  });
}

async function gc(call: NetworkCall): Promise<void> {
  const conf = decodeLeniently(keys, call.config, call.warn);
  const { valid } = call;
  const links = valid ? [collectVeths(call, call.network, valid), gcMasquerade(call, valid)] : [];
  const ends = await Promise.allSettled([...links, collectAddresses(call, ipamTypeLeniently(conf.ipam))]);
  for (const end of ends) if (end.status === "rejected") throw end.reason;
}

async function status(call: NetworkCall): Promise<void> {
  const conf = read(call.config);
  statusTools(plugin.needs);
  if (conf.ipMasq) await statusMasquerade(call, conf.ipMasqBackend);
  await call.delegate(ipamType(conf.ipam), "STATUS");
}
