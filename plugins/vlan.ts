/**
 * vlan: an 802.1Q link on a link of the host. https://www.cni.dev/plugins/current/main/vlan/
 *
 * Differs from the reference: a failed ADD leaves nothing behind, so that the VLAN ID is free for the next try; DEL
 * needs neither a master nor a valid configuration, and deletes vlan links only; the address is announced when the link
 * comes up; an IPAM plugin's error keeps its code; CHECK compares the master where both are in the container, and MACs
 * in any case; STATUS looks for the master; GC is passed on to the IPAM plugin.
 */
import { decode, flag, integer, maybeInteger, text } from "../lib/cni/decode.ts";
import { CniError, internal } from "../lib/cni/error.ts";
import { openNetns } from "../lib/cni/netns.ts";
import type { ContainerCall, Plugin } from "../lib/cni/plugin.ts";
import type { JsonObject, Result } from "../lib/cni/types.ts";
import type { Link } from "../lib/kernel/ip.ts";
import { allocate } from "../lib/link/container_link.ts";
import { ipamKeys, ipamType, needsLink, withDns } from "../lib/link/ipam.ts";
import { linkPlugin } from "../lib/link/link_plugin.ts";
import { attachSubLink, lookupMaster, masterPlace, masterStatus } from "../lib/link/master.ts";
import { detachLink } from "../lib/link/new_link.ts";
import type { CheckPlan } from "../lib/link/verify.ts";

const keys = {
  master: text("", "link that the VLAN hangs on; required"),
  vlanId: maybeInteger("VLAN ID; 0: priority-tagged frames", { min: 0, max: 4094 }),
  mtu: integer(0, "MTU of the container's link, at most the master's; 0: the master's", { min: 0 }),
  linkInContainer: flag(false, "the master is a link of the container"),
  ...ipamKeys,
};

const words = { noun: "vlan", kinds: ["vlan"], front: "vlan: " };

export const plugin: Plugin = linkPlugin({
  name: "vlan",
  about: "gives the container an 802.1Q VLAN link on a link of the host",
  keys,
  ipamRequired: true,
  parse,
  add,
  detach: (call) => [() => detachLink(call, words.kinds)],
  check,
  status: masterStatus,
});

/** The configuration, checked as far as it can be without the kernel. */
function parse(call: { readonly config: JsonObject; warn(note: string): void }) {
  const conf = decode(keys, call.config, "failed to load netconf");
  if (conf.master === "") {
    throw internal(
      '"master" field is required. It specifies the host interface name to create the VLAN for',
      '"master" is missing or empty',
    );
  }
  const vlanId = conf.vlanId ?? 0;
  if (vlanId < 0 || vlanId > 4094) {
    throw internal(
      `invalid VLAN ID ${vlanId} (must be between 0 and 4095 inclusive)`,
      `"vlanId" is ${vlanId}; 4095 is reserved: 0 to 4094`,
    );
  }
  if (conf.vlanId === undefined) call.warn('"vlanId" is missing: VLAN 0, priority-tagged frames without a VLAN');
  return { ...conf, vlanId, type: ipamType(conf.ipam), place: conf.linkInContainer ? "pod" as const : "host" as const };
}

async function add(call: ContainerCall): Promise<Result> {
  const conf = parse(call);
  const { master, place, mtu, type } = conf;
  openNetns(call, `failed to open netns "${call.netns}"`);
  const result = await attachSubLink(call, { kind: "vlan", master, place, mtu, options: `id ${conf.vlanId}` }, {
    addresses: () => addresses(call, type),
    early: !needsLink(type),
    failure: ({ said }) =>
      /Network is down/.test(said) ? `the master is down: ip link set dev ${master} up` : undefined,
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

function check(call: ContainerCall): CheckPlan {
  const conf = parse(call);
  const where = masterPlace(conf.place, call.netns);
  return {
    words,
    ipam: conf.type,
    beside: () => [lookupMaster(call[conf.place], { name: conf.master, where })],
    own: ({ link, beside: [master] }) => checkVlan(link, conf, conf.place === "pod" ? master as Link : undefined),
  };
}

/** The texts are the reference's, which took them from another plugin; the details say what is meant. */
function checkVlan(link: Link, conf: ReturnType<typeof parse>, master: Link | undefined): void {
  const { ifname } = link;
  const id = link.linkinfo?.info_data?.["id"];
  if (id !== conf.vlanId) {
    throw internal(
      `Error: Tuning link ${ifname} configured promisc is ${conf.vlanId}, current value is ${id}`,
      `"vlanId" is ${conf.vlanId}, and ${ifname} has VLAN ID ${id}`,
    );
  }
  if (conf.mtu !== 0 && conf.mtu !== link.mtu) {
    throw internal(
      `Error: Tuning configured MTU of ${ifname} is ${conf.mtu}, current value is ${link.mtu}`,
      `ip link set dev ${ifname} mtu ${conf.mtu}`,
    );
  }
  if (master && link.link !== undefined && link.link !== master.ifname) {
    throw internal(
      `vlan: Interface ${ifname} hangs on ${link.link}, not on ${master.ifname}`,
      `"master" is ${conf.master}`,
    );
  }
}
