/**
 * macvlan: a link with a MAC of its own on a link of the host. https://www.cni.dev/plugins/current/main/macvlan/
 *
 * Differs from the reference: configuration is checked before anything is touched; a failed ADD leaves nothing behind;
 * a default route that names no link is passed over; DEL deletes macvlan links only, also when the addresses cannot be
 * given back; CHECK does not ask for the default route again, and compares MACs in any case; STATUS looks for the
 * master; GC is passed on to the IPAM plugin.
 */
import { decode, decodeLeniently, flag, integer, text, uint32 } from "../lib/cni/decode.ts";
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
import { askedMac, checkedMac, macKeys } from "../lib/link/mac_input.ts";
import {
  checkMtu,
  defaultRouteLink,
  explainSubLink,
  invalidMtu,
  lookupMaster,
  masterPlace,
  type SubLink,
  subLinkSteps,
} from "../lib/link/master.ts";
import { attachLink, checkKind, checkMac, detachLink, passingName, requiredPrevResult } from "../lib/link/new_link.ts";
import { checkAddresses, checkRoutes, containerInterface, podState } from "../lib/link/verify.ts";

const MODES = ["bridge", "private", "vepa", "passthru"];

const keys = {
  master: text("", "link that the macvlan hangs on; the default route's, if absent"),
  mode: text("bridge", "who may talk to whom on one master", { oneOf: MODES }),
  mtu: integer(0, "MTU of the container's link, at most the master's; 0: the master's", { min: 0 }),
  ...macKeys,
  linkInContainer: flag(false, "the master is a link of the container"),
  bcqueuelen: uint32("length of the queue for broadcasts, in packets; 0 or absent: the kernel's default, 1000"),
  ...ipamKeys,
};

export const plugin: Plugin = {
  name: "macvlan",
  kind: "main",
  about: "gives the container a link with its own MAC on a link of the host",
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

const words = { noun: "macvlan", kinds: ["macvlan"], lower: true };

/** The configuration, checked as far as it can be without the kernel. */
interface Config extends ReturnType<typeof read> {
  readonly type: string;
}

const read = (config: JsonObject) => decode(keys, config, "failed to load netconf");

function parse({ config }: { readonly config: JsonObject }): Config {
  const conf = read(config);
  const mode = conf.mode === "" ? "bridge" : conf.mode;
  if (!MODES.includes(mode)) {
    throw new CniError(code.internal, `unknown macvlan mode: "${mode}"`, `"mode" is one of ${MODES.join(", ")}`);
  }
  return { ...conf, mode, type: ipamType(conf.ipam) };
}

function parseForAdd(call: ContainerCall): { readonly conf: Config; readonly mac: string | undefined } {
  const conf = parse(call);
  return { conf, mac: checkedMac(askedMac(conf, call.args), "failed to create macvlan") };
}

async function add(call: ContainerCall): Promise<Result> {
  const { conf, mac } = parseForAdd(call);
  if (mac && conf.mode === "passthru") {
    call.warn(`mac ${mac} has no effect in mode passthru: the link has the master's`);
  }
  openNetns(call, `failed to open netns "${call.netns}"`);
  const place = conf.linkInContainer ? "pod" : "host";
  const master = conf.master || await defaultRouteLink(call[place]);
  const queue = conf.bcqueuelen ? ` bcqueuelen ${conf.bcqueuelen}` : "";
  const sub: SubLink = {
    kind: "macvlan",
    master,
    place,
    mtu: conf.mtu,
    ...(mac && { mac }),
    options: `mode ${conf.mode}${queue}`,
  };
  await checkMtu(call, sub);
  const temp = passingName(call);
  const result = await attachLink(call, {
    noun: "macvlan",
    create: await subLinkSteps(call, sub, temp),
    temp,
    explain: (error) => explainSubLink(call, sub, error),
    addresses: conf.type === "" ? undefined : () => allocate(call, conf.type),
    early: !needsLink(conf.type),
    options: { announce: true },
  });
  return withDns(result, conf.dns);
}

async function del(call: ContainerCall): Promise<void> {
  const conf = decodeLeniently(keys, call.config, call.warn);
  await release(call, ipamTypeLeniently(conf.ipam), { jobs: [() => detachLink(call, words.kinds)] });
}

async function check(call: ContainerCall): Promise<void> {
  const conf = parse(call);
  askedMac(conf, call.args);
  openNetns(call, `failed to open netns "${call.netns}"`);
  const place = conf.linkInContainer ? "pod" : "host";
  const previous = requiredPrevResult(call, "required prevResult missing");
  const [pod] = await Promise.all([
    podState(call),
    // The default route may lead elsewhere by now, which is no fault of this link.
    conf.master === "" ? undefined : checkMaster(call, conf, place),
    conf.type === "" ? undefined : call.delegate(conf.type, "CHECK"),
  ]);
  const container = containerInterface(call, previous, false);
  const link = checkKind(container, pod, words);
  const mode = link.linkinfo?.info_data?.["mode"];
  if (mode !== conf.mode) {
    throw new CniError(
      code.internal,
      `container macvlan mode ${mode} does not match expected value: ${conf.mode}`,
      `somebody changed it since ADD, or "mode" was changed`,
    );
  }
  checkMac(container, link, words);
  checkAddresses(call.ifName, pod, previous);
  checkRoutes(pod, previous);
}

async function checkMaster(call: ContainerCall, conf: Config, place: "host" | "pod"): Promise<void> {
  const link = await lookupMaster(call[place], { name: conf.master, where: masterPlace(place, call.netns) });
  if (conf.mtu < 0 || conf.mtu > link.mtu) throw invalidMtu(conf.mtu, link);
}

async function gc(call: NetworkCall): Promise<void> {
  await collectAddresses(call, ipamTypeLeniently(decodeLeniently(keys, call.config, call.warn).ipam));
}

async function status(call: NetworkCall): Promise<void> {
  const conf = parse(call);
  statusTools(plugin.needs);
  if (!conf.linkInContainer) {
    const look = conf.master === ""
      ? defaultRouteLink(call.host)
      : lookupMaster(call.host, { name: conf.master, where: "on the host" });
    await needed(look);
  }
  if (conf.type !== "") await call.delegate(conf.type, "STATUS");
}
