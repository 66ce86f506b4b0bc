/** CHECK of what bridge made outside the container's addresses: the bridge, the two ends of the veth pair. */
import { internal } from "../../lib/cni/error.ts";
import type { ContainerCall } from "../../lib/cni/plugin.ts";
import type { Result } from "../../lib/cni/types.ts";
import { isNamed, type Link } from "../../lib/kernel/ip.ts";
import { linkNow } from "../../lib/link/container_link.ts";
import { linkFolder, readKernelFile } from "../../lib/kernel/proc.ts";
import { isLinkName } from "../../lib/net/link_name.ts";
import type { Seen } from "../../lib/link/verify.ts";
import type { Config } from "./conf.ts";

/** The part of bridge's configuration that CHECK compares with. */
type BridgeConf = Pick<Config, "bridge" | "promiscMode">;

/** What is around the container's link: the bridge, and the other end of the link as its port. */
export async function checkAround(call: ContainerCall, conf: BridgeConf, seen: Seen): Promise<void> {
  const bridge = seen.beside[0] as Link | undefined;
  const own = { ...conf, bridge: bridge?.ifname ?? conf.bridge };
  checkBridge(own, seen.previous, bridge);
  if (seen.link.link_index === undefined) {
    throw internal(`Unable to obtain veth peer index for veth ${seen.container.name}`, "");
  }
  await checkHostEnd(call, own, seen);
}

/** prevResult's bridge is there, is one, and is as configured. */
function checkBridge(conf: BridgeConf, previous: Result, bridge: Link | undefined): void {
  const name = conf.bridge;
  const shown = previous.interfaces?.findLast((one) => bridge ? isNamed(bridge, one.name) : one.name === name);
  if (!shown) throw internal("Interface name missing ", `prevResult has no interface "${name}"`);
  if (!bridge) throw internal(`Interface name ${name} not found`, `the bridge is gone: ADD makes it again`);
  if (shown.sandbox) throw internal(`Interface ${name} should not be in sandbox`, shown.sandbox);
  if (bridge.linkinfo?.info_kind !== "bridge") {
    throw internal(
      `Interface ${name} does not have link type of bridge`,
      `it is ${bridge.linkinfo?.info_kind ?? "a physical link"}`,
    );
  }
  if (shown.mac && shown.mac !== bridge.address && isPinned(bridge)) {
    throw internal(`Bridge interface ${name} Mac doesn't match: ${shown.mac}`, `it is ${bridge.address}`);
  }
  const promisc = (bridge.promiscuity ?? 0) !== 0;
  if (promisc !== conf.promiscMode) {
    throw internal(
      `Bridge interface ${name} configured Promisc Mode ${conf.promiscMode} doesn't match current state: ${promisc} `,
      `ip link set dev ${name} promisc ${conf.promiscMode ? "on" : "off"}`,
    );
  }
}

/** Was the link's MAC set by somebody? A bridge whose MAC was not follows its ports, which is no fault. */
function isPinned({ ifname, ifindex }: Link): boolean {
  try {
    const folder = linkFolder(ifname, ifindex);
    return folder !== undefined && readKernelFile(`${folder}/addr_assign_type`).trim() === "3";
  } catch {
    return false;
  }
}

/** Some host interface of prevResult has to be the other end of the container's link, and a port of the bridge. */
async function checkHostEnd(
  call: ContainerCall,
  conf: BridgeConf,
  { previous, link: own, container }: Seen,
): Promise<void> {
  const others = (previous.interfaces ?? []).filter((one) =>
    one.name !== conf.bridge && !(one.name === container.name && one.sandbox === container.sandbox)
  );
  for (const one of others) {
    if (!isLinkName(one.name)) continue;
    const link = await linkNow(call, "host", one.name);
    if (!link) throw internal(`Interface name ${one.name} not found`, "the host's end of the container's link is gone");
    if (one.sandbox) throw internal(`Interface ${one.name} should not be in sandbox`, one.sandbox);
    if (
      link.linkinfo?.info_kind !== "veth" || link.link_index !== own.ifindex ||
      own.link_index !== link.ifindex || link.master !== conf.bridge
    ) continue;
    if (one.mac && one.mac !== link.address) {
      throw internal(`Interface ${one.name} Mac doesn't match: ${one.mac} not found`, `it is ${link.address}`);
    }
    return;
  }
  throw internal(
    `CNI veth created for bridge ${conf.bridge} was not found`,
    `no host interface of prevResult is the other end of ${container.name} and a port of ${conf.bridge}`,
  );
}
