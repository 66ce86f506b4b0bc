/**
 * ipvlan: a link that shares the MAC of a link of the host. https://www.cni.dev/plugins/current/main/ipvlan/
 *
 * Differs from the reference: a failed ADD leaves nothing behind; a negative `mtu` is refused; DEL needs neither a
 * master nor a valid prevResult, and deletes ipvlan links only; CHECK works without `master`, and compares MACs in any
 * case; an ADD that changes the mode of other links of the same master says so; STATUS looks for the master; GC is
 * passed on to the IPAM plugin.
 */
import { decode, flag, integer, text } from "../lib/cni/decode.ts";
import { internal } from "../lib/cni/error.ts";
import { openNetns } from "../lib/cni/netns.ts";
import type { ContainerCall, Plugin } from "../lib/cni/plugin.ts";
import { prevResult } from "../lib/cni/prev_result.ts";
import type { JsonObject, Result } from "../lib/cni/types.ts";
import type { Link } from "../lib/kernel/ip.ts";
import { step } from "../lib/kernel/plan.ts";
import { ipamKeys, ipamType, withDns } from "../lib/link/ipam.ts";
import { linkPlugin } from "../lib/link/link_plugin.ts";
import { attachSubLink, defaultRouteLink, lookupMaster, masterPlace, masterStatus } from "../lib/link/master.ts";
import { addressesOf, detachLink } from "../lib/link/new_link.ts";
import type { CheckPlan } from "../lib/link/verify.ts";

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

const words = { noun: "ipvlan", kinds: ["ipvlan"] };

export const plugin: Plugin = linkPlugin({
  name: "ipvlan",
  about: "gives the container a link that shares the MAC of a link of the host",
  keys,
  parse,
  add,
  detach: (call) => [() => detachLink(call, words.kinds)],
  check,
  // Without "master" it may come from a chain, of which STATUS knows nothing.
  status: (call) => masterStatus(call, parse(call)),
});

function parse({ config }: { readonly config: JsonObject }) {
  const conf = decode(keys, config, "failed to load netconf");
  const mode = conf.mode === "" ? "l2" : conf.mode;
  if (!MODES.includes(mode)) {
    throw internal(`unknown ipvlan mode: "${mode}"`, `"mode" is one of ${MODES.join(", ")}`);
  }
  return { ...conf, mode, type: ipamType(conf.ipam), place: conf.linkInContainer ? "pod" as const : "host" as const };
}

type Config = ReturnType<typeof parse>;

async function add(call: ContainerCall): Promise<Result> {
  const conf = parse(call);
  const { place, mtu, mode, type } = conf;
  const previous = prevResult(call);
  openNetns(call, `failed to open netns "${call.netns}"`);
  const master = await chooseMaster(call, conf, previous);
  const chained = type === "" && previous?.ips?.length ? previous : undefined;
  // The flag belongs to the master, as the mode does: named, so that an older link's is not kept by chance.
  const result = await attachSubLink(call, { kind: "ipvlan", master, place, mtu, options: `mode ${mode} bridge` }, {
    create: [step(place, "ip", "link show type ipvlan", { read: true, why: "other links of this master" })],
    created: ([links = [], [now] = [] as unknown[]]) =>
      warnOfOthers(call, (now as Link | undefined)?.ifname ?? master, { mode, links: links as Link[] }),
    ...(chained ? { addresses: () => Promise.resolve(chained), early: true } : addressesOf(call, type, true)),
    failure: ({ said }) =>
      /Address already (in use|assigned)/.test(said)
        ? `another ipvlan link of ${master} has this address: an address can be used once on one master`
        : undefined,
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
  throw internal(
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

function check(call: ContainerCall): CheckPlan {
  const conf = parse(call);
  const where = masterPlace(conf.place, call.netns);
  return {
    words,
    ipam: conf.type || undefined,
    // Without "master" the choice was ADD's: prevResult is another one now, and the default route may have changed.
    beside: () => conf.master === "" ? [] : [lookupMaster(call[conf.place], { name: conf.master, where })],
    mode: {
      wanted: conf.mode,
      noun: "Container IPVlan",
      advice: "all ipvlan links of one master have the mode that the newest of them was made with",
    },
  };
}
