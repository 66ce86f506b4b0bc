/**
 * host-device: moves a link of the host into the container, and back.
 * https://www.cni.dev/plugins/current/main/host-device/
 *
 * Differs from the reference: a failed ADD brings the device back as it was; DEL succeeds when the container or the
 * device is gone, always releases the address, and gives the device its name again when the kernel returned it under
 * another; the name that the container left in the alias is checked before the host gets it; a VLAN that shares a MAC
 * is not taken for the device; CHECK looks at the alias; `dns` counts without IPAM; GC is passed on to the IPAM plugin.
 */
import { decode, decodeLeniently, flag, object, text } from "../../lib/cni/decode.ts";
import { both, internal } from "../../lib/cni/error.ts";
import { openNetns } from "../../lib/cni/netns.ts";
import type { ContainerCall, Plugin } from "../../lib/cni/plugin.ts";
import { prevResultLeniently } from "../../lib/cni/prev_result.ts";
import type { JsonObject, Result } from "../../lib/cni/types.ts";
import { allocate, configureLink } from "../../lib/link/container_link.ts";
import {
  adopt,
  byDeviceId,
  type DeviceChoice,
  findDevice,
  isDpdk,
  isInSysfs,
  moveIn,
  moveOut,
  otherDevice,
  podLinks,
} from "./device.ts";
import { ipamKeys, ipamType, ipamTypeLeniently, needsLink, release, withDns } from "../../lib/link/ipam.ts";
import { linkPlugin } from "../../lib/link/link_plugin.ts";
import { lockAttachment } from "../../lib/link/netns_lock.ts";
import type { CheckPlan } from "../../lib/link/verify.ts";
import { isNamed, type Link, linkShow, linkUp } from "../../lib/kernel/ip.ts";
import { apply, step } from "../../lib/kernel/plan.ts";
import { isAbsent } from "../../lib/kernel/run.ts";
import { isLinkName } from "../../lib/net/link_name.ts";
import { parseMac } from "../../lib/net/mac.ts";

const keys = {
  device: text("", "name of the host's link"),
  hwaddr: text("", "MAC of the host's link"),
  kernelpath: text("", "folder of the device below /sys/devices"),
  pciBusID: text("", "PCI address of the device, such as 0000:00:1f.6"),
  DPDKMode: flag(false, "leave all links alone; found out by the driver where there is a PCI address"),
  runtimeConfig: object(
    { deviceID: text("", "PCI address or auxiliary device (capability deviceID); wins over pciBusID") },
    "what the runtime grants by capabilities",
  ),
  ...ipamKeys,
};

const words = {
  noun: "host device",
  kinds: [],
  gone: (name: string) =>
    internal(
      `Container Interface name in prevResult: ${name} not found`,
      "the device has left the container, or was renamed there",
    ),
};

export const plugin: Plugin = linkPlugin({
  name: "host-device",
  about: "moves a link of the host into the container",
  keys,
  parse,
  add,
  del,
  check,
});

/** The configuration, the device found out as far as it can be without looking for its link. */
function parse({ config }: { readonly config: JsonObject }) {
  const conf = decode(keys, config, "failed to load netconf");
  const { device, hwaddr, kernelpath, pciBusID } = conf;
  const choice = byDeviceId(
    { device, hwaddr, kernelpath, pciBusID, auxiliary: "" },
    conf.runtimeConfig?.deviceID ?? "",
  );
  if (Object.values(choice).every((way) => way === "")) {
    throw internal(
      'specify either "device", "hwaddr", "kernelpath" or "pciBusID"',
      "or have the runtime name one: capabilities deviceID",
    );
  }
  const dpdk = choice.pciBusID === "" ? conf.DPDKMode : isDpdk(choice.pciBusID);
  return { ...conf, choice, dpdk, type: ipamType(conf.ipam) };
}

async function add(call: ContainerCall): Promise<Result> {
  const { choice, dpdk, type, dns } = parse(call);
  openNetns(call, `failed to open netns "${call.netns}"`);
  const lock = await lockAttachment(call);
  call.undo(() => lock.close());
  const other = otherDevice(choice);
  if (other) call.warn(`device ${choice.device} is used, not ${other}, which runtimeConfig.deviceID names`);
  const addresses = type === "" ? () => Promise.resolve<Result>({}) : () => allocate(call, type);
  const { cniVersion: _, ...ipam } = dpdk ? await addresses() : await takeIn(call, choice, addresses, type);
  const ips = (ipam.ips ?? []).map((ip) => ({ ...ip, interface: 0 }));
  const wanted: Result = { ...ipam, interfaces: [{ name: call.ifName, sandbox: call.netns }], ips };
  if (!dpdk) {
    const answers = await configureLink(call, wanted, {
      last: [step("pod", "ip", linkShow(call.ifName), { read: true, failing: `failed to find "${call.ifName}"` })],
    });
    const link = answers.at(-1)?.[0] as Link | undefined;
    wanted.interfaces = [{ name: call.ifName, ...(link?.address && { mac: link.address }), sandbox: call.netns }];
  }
  lock.close();
  return withDns(wanted, dns);
}

/** The device into the container; beside it the addresses, where they do not depend on it. */
async function takeIn(
  call: ContainerCall,
  choice: DeviceChoice,
  addresses: () => Promise<Result>,
  type: string,
): Promise<Result> {
  const move = async () => await moveIn(call, await findDevice(call, choice));
  if (type === "" || !needsLink(type)) return (await both(call, move, addresses))[1];
  await move();
  const failing = `failed to move link failed to set "${call.ifName}" up`;
  await apply([[step("pod", "ip", linkUp(call.ifName), { failing, why: "the IPAM plugin may need it" })]], call);
  return await addresses();
}

async function del(call: ContainerCall): Promise<void> {
  const conf = decodeLeniently(keys, call.config, call.warn);
  const type = ipamTypeLeniently(conf.ipam);
  const device = { ...conf, auxiliary: "" };
  // What an ADD of the attachment that is still at work does comes to its end first, or a DEL beside this one.
  const lock = await lockAttachment(call);
  try {
    await release(call, type, { jobs: call.ownNetns ? [] : [() => returnDevice(call, device)] });
  } finally {
    lock.close();
  }
}

async function returnDevice(call: ContainerCall, choice: DeviceChoice): Promise<void> {
  const { ifName, netns } = call;
  const moved = prevResultLeniently(call)?.interfaces?.find((one) => one.name === ifName && one.sandbox === netns);
  const mine = (link: Link) => isChosen(link, choice) || hasMac(link, moved?.mac);
  if (!call.podAlive) return await adopt(call, (link) => mine(link) || isInSysfs(choice, link));
  const links = await podLinks(call);
  const named = links.find((link) => link.ifname === ifName);
  // The container may have renamed it, or a DEL was killed that had given it its own name again: of a veth, which any
  // container may have with any alias, nothing less than both is proof.
  const told = ({ ifname, ifalias }: Link) => choice.device !== "" && ifname === choice.device && ifalias === ifname;
  const alike = named ? [] : links.filter((link) => (link.linkinfo?.info_kind !== "veth" || told(link)) && mine(link));
  const link = named ?? (alike.length === 1 ? alike[0] : undefined);
  if (!link) return;
  const name = originalName(link, moved ? choice.device : "");
  if (name !== undefined) await returnLink(call, link, name);
  else call.warn(`failed to find original ifname for "${link.ifname}" (alias is not set): left alone`);
}

/** A call of another implementation may do the same at this moment: what has left the container is done. */
async function returnLink(call: ContainerCall, link: Link, name: string): Promise<void> {
  try {
    await moveOut(call, link.ifname, { name });
  } catch (error) {
    if (!isAbsent(error) || (await podLinks(call)).some(({ ifindex }) => ifindex === link.ifindex)) throw error;
  }
}

/** The alias, if it can be a name: the container may have changed it. Else what the configuration says. */
function originalName({ ifalias = "" }: Link, device: string): string | undefined {
  return [ifalias, device].find(isLinkName);
}

function isChosen(link: Link, choice: DeviceChoice): boolean {
  if (choice.device !== "") return link.ifalias === choice.device || isNamed(link, choice.device);
  return choice.hwaddr !== "" && hasMac(link, parseMac(choice.hwaddr));
}

/** The address that was burnt in, where there is one, survives what the container does. */
function hasMac({ permaddr, address }: Link, mac: string | undefined): boolean {
  return mac !== undefined && (permaddr === mac || address === mac);
}

function check(call: ContainerCall): CheckPlan {
  const { dpdk, type } = parse(call);
  return {
    words,
    ipam: type || undefined,
    linkless: dpdk,
    own: ({ link: { ifalias }, container: { name } }) => {
      if (ifalias) return;
      throw internal(
        `failed to find original ifname for "${name}" (alias is not set)`,
        "DEL could not restore the device's name: ip link set dev NAME alias ORIGINAL",
      );
    },
  };
}
