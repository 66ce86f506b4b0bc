/** The configuration of bridge. */
import { parseArgs } from "../../lib/cni/args.ts";
import {
  anyObject,
  anything,
  decode,
  type Fields,
  flag,
  integer,
  list,
  maybeInteger,
  object,
  text,
} from "../../lib/cni/decode.ts";
import { internal } from "../../lib/cni/error.ts";
import type { ContainerCall } from "../../lib/cni/plugin.ts";
import type { JsonObject } from "../../lib/cni/types.ts";
import { ipamType, masqueradeKeys } from "../../lib/link/ipam.ts";
import { checkedMac, macKeys } from "../../lib/link/mac_input.ts";
import { isLinkName } from "../../lib/net/link_name.ts";

const trunk = {
  minID: maybeInteger("first VLAN of a range", { min: 1, max: 4094 }),
  maxID: maybeInteger("last VLAN of a range", { min: 1, max: 4094 }),
  id: maybeInteger("one VLAN", { min: 1, max: 4094 }),
};

/** What bridge reads of a configuration. */
export const keys = {
  bridge: text("cni0", "name of the bridge; made when there is none"),
  isGateway: flag(false, "put the gateway's address on the bridge and switch forwarding on"),
  isDefaultGateway: flag(false, "isGateway, and a default route through it"),
  forceAddress: flag(false, "replace addresses of the bridge that are in the way"),
  ...masqueradeKeys,
  mtu: integer(0, "MTU of a new bridge and of both ends of the veth pair; 0: the kernel's default"),
  hairpinMode: flag(false, "let the port send frames back to where they came from"),
  promiscMode: flag(false, "put the bridge into promiscuous mode"),
  vlan: integer(0, "access VLAN of the container's port; 0: none", { min: 0, max: 4094 }),
  vlanTrunk: list(object(trunk, "a range or a single VLAN"), "tagged VLANs of the container's port"),
  preserveDefaultVlan: flag(false, "keep the port's implicit VLAN beside vlan or vlanTrunk"),
  macspoofchk: flag(false, "drop frames that do not come from the container's own MAC"),
  enabledad: flag(false, "look for duplicates of the container's IPv6 addresses"),
  disableContainerInterface: flag(false, "leave the container's link down"),
  portIsolation: flag(false, "keep the container's port from talking to other isolated ports"),
  ipam: anyObject("who gives the container its addresses; without a type the container gets none"),
  dns: anyObject("resolver settings, instead of those of the IPAM plugin"),
  args: object(
    { cni: object({ mac: text("", "MAC of the container's link") }, "conventional arguments") },
    "arguments of the configuration",
  ),
  runtimeConfig: macKeys.runtimeConfig,
  prevResult: anything("result of the plugin before, for CHECK and DEL"),
};

/** The configuration, checked. */
export interface Config extends Omit<Fields<typeof keys>, "vlanTrunk" | "dns"> {
  readonly ipamType: string;
  /** Tagged VLANs, ascending; undefined when there is no `vlanTrunk` at all. */
  readonly trunk: readonly number[] | undefined;
  readonly mac: string;
  readonly dns: JsonObject | undefined;
}

/** Decodes and checks it, as CHECK and ADD have in common. */
export function parse(call: ContainerCall): Config {
  const { vlanTrunk, ...conf } = decode(keys, call.config, "failed to load netconf");
  if (conf.vlan < 0 || conf.vlan > 4094) {
    throw internal(`invalid VLAN ID ${conf.vlan} (must be between 0 and 4094)`, '"vlan"');
  }
  const trunk = vlanTrunk && trunkIds(vlanTrunk);
  const asked = parseArgs(call.args, ["MAC"]).MAC;
  const mac = conf.runtimeConfig?.mac || conf.args?.cni?.mac || asked || "";
  const front = `failed to create bridge "${conf.bridge}": could not add "${conf.bridge}"`;
  if (conf.bridge === "") throw internal(`${front}: LinkAttrs.Name cannot be empty`, '"bridge" is empty');
  if (new TextEncoder().encode(conf.bridge).length > 15) {
    throw internal(`${front}: numerical result out of range`, '"bridge" may have 15 characters at most');
  }
  if (!isLinkName(conf.bridge)) {
    throw internal(`${front}: invalid argument`, '"bridge" has characters that no link name may have');
  }
  return { ...conf, isGateway: conf.isGateway || conf.isDefaultGateway, ipamType: ipamType(conf.ipam), trunk, mac };
}

/** VLANs of `vlanTrunk`, with the reference's checks in their order. */
function trunkIds(
  elements: readonly { minID: number | undefined; maxID: number | undefined; id: number | undefined }[],
): number[] {
  const ids = new Set<number>();
  const isVlan = (id: number) => id >= 1 && id <= 4094;
  elements.forEach(({ minID, maxID, id }, index) => {
    const at = `"vlanTrunk.${index}": VLANs are 1 to 4094`;
    if (minID !== undefined && maxID !== undefined) {
      if (!isVlan(minID)) throw internal("incorrect trunk minID parameter", at);
      if (!isVlan(maxID)) throw internal("incorrect trunk maxID parameter", at);
      if (minID > maxID) throw internal("minID is greater than maxID in trunk parameter", at);
      for (let vid = minID; vid <= maxID; vid++) ids.add(vid);
    } else if (minID !== undefined || maxID !== undefined) {
      throw internal(
        `minID and maxID should be configured simultaneously, ${minID === undefined ? "minID" : "maxID"} is missing`,
        at,
      );
    }
    if (id === undefined) return;
    if (!isVlan(id)) throw internal("incorrect trunk id parameter", at);
    ids.add(id);
  });
  return [...ids].sort((a, b) => a - b);
}

/** For ADD; `podMac` is "" when no MAC is asked for. */
export function parseForAdd(call: ContainerCall): { readonly conf: Config; readonly podMac: string } {
  const conf = parse(call);
  if (conf.disableContainerInterface && conf.ipamType !== "") {
    throw internal(
      "cannot use IPAM when DisableContainerInterface flag is set",
      'remove "ipam" or "disableContainerInterface"',
    );
  }
  if (conf.hairpinMode && conf.promiscMode) {
    throw internal(
      "cannot set hairpin mode and promiscuous mode at the same time",
      'remove "hairpinMode" or "promiscMode"',
    );
  }
  const failing = "failed to make veth pair";
  return { conf, podMac: checkedMac(conf.mac, failing, failing) ?? "" };
}
