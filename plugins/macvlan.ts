/**
 * macvlan: a link with a MAC of its own on a link of the host. https://www.cni.dev/plugins/current/main/macvlan/
 *
 * Differs from the reference: configuration is checked before anything is touched; a failed ADD leaves nothing behind;
 * a default route that names no link is ignored; DEL deletes macvlan links only, also when the addresses cannot be
 * released; CHECK does not ask for the default route again, and compares MACs in any case; STATUS looks for the
 * master; GC is passed on to the IPAM plugin.
 */
import { decode, flag, integer, text, uint32 } from "../lib/cni/decode.ts";
import { internal, needed } from "../lib/cni/error.ts";
import { openNetns } from "../lib/cni/netns.ts";
import type { ContainerCall, NetworkCall, Plugin } from "../lib/cni/plugin.ts";
import type { JsonObject, Result } from "../lib/cni/types.ts";
import { ipamKeys, ipamType, withDns } from "../lib/link/ipam.ts";
import { linkPlugin } from "../lib/link/link_plugin.ts";
import { askedMac, checkedMac, macKeys } from "../lib/link/mac_input.ts";
import {
  attachSubLink,
  defaultRouteLink,
  invalidMtu,
  lookupMaster,
  masterPlace,
  masterStatus,
} from "../lib/link/master.ts";
import { addressesOf, detachLink } from "../lib/link/new_link.ts";
import type { CheckPlan } from "../lib/link/verify.ts";

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

const words = { noun: "macvlan", kinds: ["macvlan"], lower: true };

export const plugin: Plugin = linkPlugin({
  name: "macvlan",
  about: "gives the container a link with its own MAC on a link of the host",
  keys,
  parse: parseForAdd,
  add,
  detach: (call) => [() => detachLink(call, words.kinds)],
  check,
  status,
});

/** The configuration, checked as far as it can be without the kernel. */
function parse({ config }: { readonly config: JsonObject }) {
  const conf = decode(keys, config, "failed to load netconf");
  const mode = conf.mode === "" ? "bridge" : conf.mode;
  if (!MODES.includes(mode)) {
    throw internal(`unknown macvlan mode: "${mode}"`, `"mode" is one of ${MODES.join(", ")}`);
  }
  return { ...conf, mode, type: ipamType(conf.ipam), place: conf.linkInContainer ? "pod" as const : "host" as const };
}

type Config = ReturnType<typeof parse>;

function parseForAdd(call: ContainerCall): { readonly conf: Config; readonly mac: string | undefined } {
  const conf = parse(call);
  return { conf, mac: checkedMac(askedMac(conf, call.args), "failed to create macvlan") };
}

async function add(call: ContainerCall): Promise<Result> {
  const { conf, mac } = parseForAdd(call);
  const { place, mtu, type } = conf;
  if (mac && conf.mode === "passthru") {
    call.warn(`mac ${mac} has no effect in mode passthru: the link has the master's`);
  }
  openNetns(call, `failed to open netns "${call.netns}"`);
  const master = conf.master || await defaultRouteLink(call[place]);
  const options = `mode ${conf.mode}${conf.bcqueuelen ? ` bcqueuelen ${conf.bcqueuelen}` : ""}`;
  const sub = { kind: "macvlan" as const, master, place, mtu, ...(mac && { mac }), options };
  return withDns(await attachSubLink(call, sub, addressesOf(call, type)), conf.dns);
}

function check(call: ContainerCall): CheckPlan {
  const conf = parse(call);
  askedMac(conf, call.args);
  return {
    words,
    ipam: conf.type || undefined,
    // The default route may lead elsewhere by now, which is no fault of this link.
    beside: () => conf.master === "" ? [] : [checkMaster(call, conf)],
    mode: {
      wanted: conf.mode,
      noun: "container macvlan",
      advice: 'somebody changed it since ADD, or "mode" was changed',
    },
  };
}

async function checkMaster(call: ContainerCall, { master, place, mtu }: Config): Promise<void> {
  const link = await lookupMaster(call[place], { name: master, where: masterPlace(place, call.netns) });
  if (mtu < 0 || mtu > link.mtu) throw invalidMtu(mtu, link);
}

async function status(call: NetworkCall): Promise<void> {
  const conf = parse(call);
  if (conf.master === "" && !conf.linkInContainer) await needed(() => defaultRouteLink(call.host));
  await masterStatus(call, conf);
}
