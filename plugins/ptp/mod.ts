/**
 * ptp: a veth pair and routes, no bridge. https://www.cni.dev/plugins/current/main/ptp/
 *
 * Differs from the reference: a failed ADD leaves nothing behind; an address without a gateway is refused at once; /32
 * addresses, two addresses of one subnet, and a route to the own subnet work; a stale route of the host is replaced;
 * there is no wait for duplicate address detection, since nobody else is on the link; DEL removes rules and the host's
 * end without the container; CHECK looks at the host's routes and rules; GC and STATUS do their work.
 */
import { decode, integer } from "../../lib/cni/decode.ts";
import { internal } from "../../lib/cni/error.ts";
import { openNetns } from "../../lib/cni/netns.ts";
import type { ContainerCall, Plugin } from "../../lib/cni/plugin.ts";
import { prevResultLeniently } from "../../lib/cni/prev_result.ts";
import type { Interface, IPConfig, JsonObject, Result } from "../../lib/cni/types.ts";
import { readDns } from "../../lib/cni/version.ts";
import type { RouteEntry } from "../../lib/kernel/ip.ts";
import { apply, step } from "../../lib/kernel/plan.ts";
import { linkExists } from "../../lib/kernel/proc.ts";
import { isAbsent } from "../../lib/kernel/run.ts";
import { allocate, linkNow } from "../../lib/link/container_link.ts";
import { type Failure, readFailure, type Reading } from "../../lib/link/failure.ts";
import {
  deleteHostEnd,
  deleteHostVeth,
  forwarding,
  hostEnd,
  noRouterAdvertisements,
  ownerOf,
  pairExists,
  portAlias,
  withFreeName,
} from "../../lib/link/host_end.ts";
import {
  heldAddresses,
  ipamKeys,
  ipamType,
  ipamTypeLeniently,
  masqueradeKeys,
  replacesDns,
  withDns,
  writtenDns,
} from "../../lib/link/ipam.ts";
import { linkPlugin } from "../../lib/link/link_plugin.ts";
import { kindAdvice } from "../../lib/link/master.ts";
import { detachLink } from "../../lib/link/new_link.ts";
import type { CheckPlan } from "../../lib/link/verify.ts";
import { macFromSeed } from "../../lib/net/mac.ts";
import {
  checkMasquerade,
  gcMasquerade,
  masqueradeBackend,
  masqueradePlan,
  removeMasquerade,
  statusMasquerade,
} from "../../lib/rules/masquerade.ts";
import { hostSteps, isSix, plain, podSteps, single } from "./routed_veth.ts";

const keys = {
  ...masqueradeKeys,
  mtu: integer(0, "MTU of both ends of the veth pair; 0: the kernel's default, 1500"),
  ...ipamKeys,
  dns: writtenDns,
};

const words = { noun: "veth/p2p", kinds: ["veth"], front: "ptp: " };

export const plugin: Plugin = linkPlugin({
  name: "ptp",
  about: "connects the container with the host alone, through a veth pair and routes",
  keys,
  ipamRequired: true,
  parse,
  add,
  detach,
  check,
  pairs: true,
  collect: (call, valid) => [[() => gcMasquerade(call, valid)]],
  status: (call, conf) => conf.ipMasq ? statusMasquerade(call, conf.ipMasqBackend) : undefined,
});

function parse({ config }: { readonly config: JsonObject }) {
  const conf = decode(keys, config, "failed to load netconf");
  return { ...conf, type: ipamType(conf.ipam) };
}

async function add(call: ContainerCall): Promise<Result> {
  const conf = parse(call);
  const owner = ownerOf(call);
  const backend = conf.ipMasq ? masqueradeBackend(conf.ipMasqBackend) : undefined;
  openNetns(call, `failed to open netns "${call.netns}"`);
  const ipam = await allocate(call, conf.type);
  const ips = (ipam.ips ?? []).map((ip) => ({ ...ip, interface: 1, gateway: gatewayOf(ip) }));
  checkMtu(call, conf.mtu, ips);
  const host = hostEnd(owner);
  const pod: Interface = { name: call.ifName, mac: macFromSeed(`pod:${portAlias(owner)}`), sandbox: call.netns };
  const { cniVersion: _, ...rest } = ipam;
  const result: Result = { ...rest, interfaces: [host, pod], ips };
  const pair = () => {
    const links = hostSteps(call, { host, pod, ips, mtu: conf.mtu });
    return apply([[...forwarding(ips, "Could not enable IP forwarding"), ...links]], call);
  };
  try {
    await withFreeName(call, { owner, end: host }, pair);
    await apply([
      [
        noRouterAdvertisements(host.name),
        ...podSteps(call, result, ips),
        ...(backend ? masqueradePlan(owner, ips.map((ip) => ip.address), backend) : []),
      ],
    ], call);
  } catch (error) {
    throw await readFailure(error, (failure) => read(failure, { host, pod, mtu: conf.mtu, netns: call.netns }));
  }
  return replacesDns(conf.dns) ? withDns(result, readDns(conf.dns)) : result;
}

function gatewayOf({ address, gateway }: IPConfig): string {
  if (gateway || address === undefined) return gateway ?? "";
  throw internal(
    `failed to add route: no gateway for ${address}`,
    "the gateway's address goes on the host's end of the link: the IPAM plugin has to name one with each address",
  );
}

/** The kernel has no IPv6 on a link with a smaller MTU than 1280 (RFC 8200 section 5). */
function checkMtu({ ifName }: ContainerCall, mtu: number, ips: readonly IPConfig[]): void {
  if (mtu < 68 || mtu >= 1280 || !ips.some((ip) => isSix(ip.address))) return;
  const file = `/proc/sys/net/ipv6/conf/${ifName}/keep_addr_on_down`;
  throw internal(
    `failed to enable keep_addr_on_down for interface "${ifName}": open ${file}: no such file or directory`,
    `"mtu" is ${mtu}, and IPv6 needs 1280 at least`,
  );
}

function read(
  { step: { text }, said }: Failure,
  pair: { host: Interface; pod: Interface; mtu: number; netns: string },
): Reading {
  if (!text.startsWith("link add ")) return undefined;
  if (/File exists/.test(said)) return pairExists(pair);
  return /Invalid argument|mtu/.test(said) && pair.mtu > 0
    ? `"mtu" is ${pair.mtu}: a veth pair takes 68 to 65535`
    : kindAdvice(said, "veth");
}

async function detach(call: ContainerCall, conf: Omit<ReturnType<typeof parse>, "type">) {
  const type = ipamTypeLeniently(conf.ipam);
  const previous = prevResultLeniently(call);
  const known = (previous?.ips ?? []).map((ip) => ip.address);
  const held = conf.ipMasq && type !== "" ? await heldAddresses(call, type) : [];
  const rules = () => removeMasquerade(call, ownerOf(call), [...new Set([...known, ...held])], conf.ipMasqBackend);
  return [() => deletePair(call, previous), ...(conf.ipMasq ? [rules] : [])];
}

/** By the host's end where its name is known: that needs no container. Either end takes the other with it. */
async function deletePair(call: ContainerCall, previous: Result | undefined): Promise<void> {
  if (!call.ownNetns && await deleteHostEnd(call, ownerOf(call))) return;
  if (call.podAlive || call.ownNetns) return await detachLink(call, words.kinds);
  // The reference draws names; its result tells which, and the MAC whether that link is still the one.
  const drawn = previous?.interfaces?.find((one) => !one.sandbox && /^veth[0-9a-f]{8}$/.test(one.name));
  if (!drawn || linkExists(drawn.name) === false) return;
  const link = await linkNow(call, "host", drawn.name);
  if (link?.linkinfo?.info_kind === "veth" && link.address === drawn.mac && !link.ifalias) {
    await deleteHostVeth(call, drawn.name);
  }
}

function check(call: ContainerCall): CheckPlan {
  const { type, ipMasq, ipMasqBackend } = parse(call);
  return {
    words,
    ipam: type,
    beside: (previous) => [checkHost(call, previous)],
    own: async ({ previous: { ips = [] } }) => {
      if (ipMasq) await checkMasquerade(call, ownerOf(call), ips.map((ip) => ip.address), ipMasqBackend);
    },
  };
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
    throw internal(
      `ptp: host has no route to ${plain(address)} through ${host.name}`,
      `ip route replace ${single(plain(address))} dev ${host.name}${isSix(address) ? "" : " scope host"}`,
    );
  });
}
