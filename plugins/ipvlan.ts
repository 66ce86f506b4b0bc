/**
 * ipvlan: a link that shares the MAC of a link of the host. https://www.cni.dev/plugins/current/main/ipvlan/
 *
 * Differs from the reference: a failed ADD leaves nothing behind; a negative `mtu` is refused; DEL needs neither a
 * master nor a valid prevResult, and deletes ipvlan links only; CHECK works without `master`, and compares MACs in any
 * case; an ADD that changes the mode of other links of the same master says so; STATUS looks for the master; GC is
 * passed on to the IPAM plugin.
 */
import { decode, decodeLeniently, flag, integer, text } from "../lib/cni/decode.ts";
import { CniError, code } from "../lib/cni/error.ts";
import { openNetns } from "../lib/cni/netns.ts";
import type { ContainerCall, NetworkCall, Plugin } from "../lib/cni/plugin.ts";
import { prevResult } from "../lib/cni/prev_result.ts";
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
import {
  checkMtu,
  defaultRouteLink,
  explainSubLink,
  lookupMaster,
  masterPlace,
  type SubLink,
  subLinkSteps,
} from "../lib/link/master.ts";
import { attachLink, checkKind, checkMac, detachLink, passingName, requiredPrevResult } from "../lib/link/new_link.ts";
import { checkAddresses, checkRoutes, containerInterface, podState } from "../lib/link/verify.ts";
import type { Link } from "../lib/kernel/ip.ts";
import { step, StepError } from "../lib/kernel/plan.ts";

const MODES = ["l2", "l3", "l3s"];

const keys = {
  master: text(
    "",
    "link that the ipvlan hangs on; if absent, the one of prevResult in a chain, else the default route's",
  ),
  mode: text("l2", "whether the master switches (l2) or routes (l3; l3s: through the host's netfilter)", {
    oneOf: MODES,
  }),
  mtu: integer(0, "MTU of the container's link; 0: the master's", { min: 0 }),
  linkInContainer: flag(false, "the master is a link of the container"),
  ...ipamKeys,
};

export const plugin: Plugin = {
  name: "ipvlan",
  kind: "main",
  about: "gives the container a link that shares the MAC of a link of the host",
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

const words = { noun: "ipvlan", kinds: ["ipvlan"] };

function parse({ config }: { readonly config: JsonObject }) {
  const conf = decode(keys, config, "failed to load netconf");
  const mode = conf.mode === "" ? "l2" : conf.mode;
  if (!MODES.includes(mode)) {
    throw new CniError(code.internal, `unknown ipvlan mode: "${mode}"`, `"mode" is one of ${MODES.join(", ")}`);
  }
  return { ...conf, mode, type: ipamType(conf.ipam), place: conf.linkInContainer ? "pod" as const : "host" as const };
}

type Config = ReturnType<typeof parse>;

async function add(call: ContainerCall): Promise<Result> {
  const conf = parse(call);
  const previous = prevResult(call);
  openNetns(call, `failed to open netns "${call.netns}"`);
  const sub: SubLink = {
    kind: "ipvlan",
    master: await chooseMaster(call, conf, previous),
    place: conf.place,
    mtu: conf.mtu,
    // The flag belongs to the master, as the mode does: named, so that an older link's is not kept by chance.
    options: `mode ${conf.mode} bridge`,
  };
  await checkMtu(call, sub);
  const temp = passingName(call);
  const chained = conf.type === "" && previous?.ips?.length ? previous : undefined;
  const result = await attachLink(call, {
    noun: "ipvlan",
    create: [
      step(sub.place, "ip", "link show type ipvlan", { read: true, why: "other links of this master" }),
      ...await subLinkSteps(call, sub, temp),
    ],
    created: ([links = [], [master] = [] as unknown[]]) =>
      warnOfOthers(call, (master as Link | undefined)?.ifname ?? sub.master, {
        mode: conf.mode,
        links: links as Link[],
      }),
    temp,
    explain: (error) => explained(call, sub, error),
    addresses: () => chained ? Promise.resolve(chained) : allocate(call, conf.type),
    early: chained !== undefined || !needsLink(conf.type),
    options: { announce: true },
  });
  return withDns(result, conf.dns);
}

/** `master`, else the one named interface of prevResult, else the default route's. */
async function chooseMaster(call: ContainerCall, conf: Config, previous: Result | undefined): Promise<string> {
  if (conf.master !== "") return conf.master;
  if (!previous) return await defaultRouteLink(call[conf.place]);
  const [first, ...others] = previous.interfaces ?? [];
  if (first && first.name !== "" && others.length === 0) return first.name;
  const names = (previous.interfaces ?? []).map((one) => one.name || '""').join(" ");
  throw new CniError(
    code.internal,
    "chained master failure. PrevResult lacks a single named interface",
    `prevResult has ${names === "" ? "no interfaces" : `the interfaces ${names}`}: say which one with "master"`,
  );
}

/**
 * The mode belongs to the master: a new link changes it for those that are there. Those of other containers cannot be
 * seen from here.
 */
function warnOfOthers(
  call: ContainerCall,
  master: string,
  { mode, links }: { mode: string; links: Link[] },
): void {
  const others = links.filter((one) => one.link === master && one.linkinfo?.info_data?.["mode"] !== mode);
  if (others.length === 0) return;
  const names = others.map((one) => `${one.ifname} (${one.linkinfo?.info_data?.["mode"]})`).join(", ");
  call.warn(`mode ${mode} changes that of ${names}: all ipvlan links of ${master} have one mode`);
}

async function explained(call: ContainerCall, sub: SubLink, error: unknown): Promise<unknown> {
  if (error instanceof StepError && /Address already (in use|assigned)/.test(error.output.stderr)) {
    return new CniError(
      code.internal,
      error.message,
      `another ipvlan link of ${sub.master} has this address: an address can be used once on one master`,
    );
  }
  return await explainSubLink(call, sub, error);
}

async function del(call: ContainerCall): Promise<void> {
  const conf = decodeLeniently(keys, call.config, call.warn);
  await release(call, ipamTypeLeniently(conf.ipam), { jobs: [() => detachLink(call, words.kinds)] });
}

async function check(call: ContainerCall): Promise<void> {
  const conf = parse(call);
  openNetns(call, `failed to open netns "${call.netns}"`);
  const previous = requiredPrevResult(call, "Required prevResult missing");
  const where = masterPlace(conf.place, call.netns);
  const [pod] = await Promise.all([
    podState(call),
    // Without "master" the choice was ADD's: prevResult is another one now, and the default route may have changed.
    conf.master === "" ? undefined : lookupMaster(call[conf.place], { name: conf.master, where }),
    conf.type === "" ? undefined : call.delegate(conf.type, "CHECK"),
  ]);
  const container = containerInterface(call, previous);
  const link = checkKind(container, pod, words);
  const mode = link.linkinfo?.info_data?.["mode"];
  if (mode !== conf.mode) {
    throw new CniError(
      code.internal,
      `Container IPVlan mode ${mode} does not match expected value: ${conf.mode}`,
      "all ipvlan links of one master have the mode that the newest of them was made with",
    );
  }
  checkMac(container, link, words);
  checkAddresses(call.ifName, pod, previous);
  checkRoutes(pod, previous);
}

async function gc(call: NetworkCall): Promise<void> {
  await collectAddresses(call, ipamTypeLeniently(decodeLeniently(keys, call.config, call.warn).ipam));
}

async function status(call: NetworkCall): Promise<void> {
  const conf = parse(call);
  statusTools(plugin.needs);
  // Without "master" it may come from a chain, of which STATUS knows nothing.
  if (conf.master !== "" && !conf.linkInContainer) {
    await needed(lookupMaster(call.host, { name: conf.master, where: "on the host" }));
  }
  if (conf.type !== "") await call.delegate(conf.type, "STATUS");
}
