/** A device of the host that is lent to a container: which one is meant, and the way there and back. */
import { type CniError, internal } from "../../lib/cni/error.ts";
import { netnsWord } from "../../lib/cni/netns.ts";
import type { Call, ContainerCall } from "../../lib/cni/plugin.ts";
import { type Link, linkDown, linkUp } from "../../lib/kernel/ip.ts";
import { apply, step, StepError } from "../../lib/kernel/plan.ts";
import { linkNames, listKernelFolder, readKernelFile } from "../../lib/kernel/proc.ts";
import { isAbsent, must, says } from "../../lib/kernel/run.ts";
import { linkNow } from "../../lib/link/container_link.ts";
import { isLinkName } from "../../lib/net/link_name.ts";
import { parseMac } from "../../lib/net/mac.ts";
import { similarNames } from "../../lib/net/similar.ts";

/** How a device is chosen; "" where a way is not used. The first that is used counts, in this order. */
export interface DeviceChoice {
  readonly device: string;
  readonly hwaddr: string;
  readonly kernelpath: string;
  readonly pciBusID: string;
  /** Name below /sys/bus/auxiliary/devices. */
  readonly auxiliary: string;
}

const PCI = "/sys/bus/pci/devices";
const AUXILIARY = "/sys/bus/auxiliary/devices";
/** Drivers that hand a device to a program and leave the kernel no link. */
const DPDK_DRIVERS = ["vfio-pci", "uio_pci_generic", "igb_uio"];

const NOT_FOUND = "failed to find host device";

/**
 * What `runtimeConfig.deviceID` names: a PCI device, which wins over `pciBusID`, or an auxiliary one, which clears it.
 */
export function byDeviceId(choice: DeviceChoice, deviceID: string): DeviceChoice {
  if (deviceID === "") return choice;
  if (isPlain(deviceID)) {
    if (folder(`${PCI}/${deviceID}`)) return { ...choice, pciBusID: deviceID };
    if (folder(`${AUXILIARY}/${deviceID}`)) return { ...choice, pciBusID: "", auxiliary: deviceID };
  }
  throw internal(
    `runtime config DeviceID ${deviceID} not found or unsupported`,
    `there is no ${PCI}/${deviceID} and no ${AUXILIARY}/${deviceID}`,
  );
}

/** A single name, that leads nowhere else in a path. */
function isPlain(id: string): boolean {
  return /^[^/\0]+$/.test(id) && id !== "." && id !== "..";
}

function folder(path: string): string[] | undefined {
  try {
    return listKernelFolder(path).sort();
  } catch {
    return undefined;
  }
}

/** Is the PCI device bound to a driver that leaves the kernel no link? Throws when there is no such device. */
export function isDpdk(pciBusID: string): boolean {
  const path = `${PCI}/${pciBusID}`;
  if (!isPlain(pciBusID) || !folder(path)) {
    throw internal(
      `error with host device: lstat ${path}/driver: no such file or directory`,
      `there is no PCI device ${pciBusID}: see lspci -D`,
    );
  }
  try {
    const driver = Deno.readLinkSync(`${path}/driver`);
    return DPDK_DRIVERS.includes(driver.slice(driver.lastIndexOf("/") + 1));
  } catch {
    throw internal(
      `${NOT_FOUND}: no net directory under pci device ${pciBusID}`,
      `no driver is bound to the PCI device ${pciBusID}`,
    );
  }
}

/** Finds the chosen device among the links of the host. One process. */
export async function findDevice(call: ContainerCall, choice: DeviceChoice): Promise<Link> {
  const { device, hwaddr } = choice;
  if (device !== "") return await byName(call, device, { key: "device" });
  if (hwaddr !== "") return await byMac(call, hwaddr);
  const [key, dir] = netFolder(choice);
  const name = folderLink(dir);
  if (name === undefined) {
    throw internal(
      `${NOT_FOUND}: failed to find network device in path ${dir}`,
      `${key}: the device has no link here; one that is in another network namespace is not shown`,
    );
  }
  const link = await byName(call, name, { key });
  if (isSame(link, `${dir}/${name}`)) return link;
  throw internal(
    `${NOT_FOUND}: failed to find network device in path ${dir}`,
    `${key}: /sys shows the links of another network namespace, where ${name} is another link than here: mount sysfs anew`,
  );
}

/**
 * Is it this link that a folder in sysfs shows? A /sys that was mounted in another namespace shows links of the same
 * names.
 */
function isSame({ ifindex, address = "" }: Link, dir: string): boolean {
  try {
    return Number(readKernelFile(`${dir}/ifindex`)) === ifindex && readKernelFile(`${dir}/address`).trim() === address;
  } catch {
    return false;
  }
}

async function byName(call: ContainerCall, name: string, { key }: { key: string }): Promise<Link> {
  const link = await linkNow(call, "host", name);
  if (link) return link;
  const names = [...linkNames() ?? []].filter((one) => one !== "lo");
  const similar = similarNames(name, names);
  throw internal(
    `${NOT_FOUND}: Link not found`,
    `"${key}" leads to the link ${JSON.stringify(name)}, which the host does not have${
      similar.length > 0 ? `; similar: ${similar.join(" ")}` : ""
    }; a container may have it already`,
  );
}

/** Links made on top of another one share its MAC: the one below is meant. */
async function byMac(call: ContainerCall, hwaddr: string): Promise<Link> {
  const mac = parseMac(hwaddr);
  if (mac === undefined) {
    throw internal(
      `${NOT_FOUND}: failed to parse MAC address "${hwaddr}": address ${hwaddr}: invalid MAC address`,
      '"hwaddr" is written like 02:00:00:00:00:01',
    );
  }
  const [links = []] = await apply([[step("host", "ip", "link show", { read: true })]], call) as Link[][];
  const alike = links.filter((link) => link.address === mac);
  const found = alike.find((link) => !link.linkinfo?.info_kind && link.link === undefined) ?? alike[0];
  if (found) return found;
  throw internal(
    `${NOT_FOUND}: failed to find physical interface`,
    `no link of the host has the MAC ${mac} ("hwaddr")`,
  );
}

/** The folder in sysfs that has the device's links, and the key that leads there. */
function netFolder({ kernelpath, pciBusID, auxiliary }: DeviceChoice): [key: string, dir: string] {
  if (kernelpath !== "") {
    if (!kernelpath.startsWith("/sys/devices/") || kernelpath.split("/").includes("..")) {
      throw internal(
        `${NOT_FOUND}: kernel device path "${kernelpath}" must be absolute and begin with /sys/devices/`,
        '"kernelpath" is the folder of a device, such as /sys/devices/pci0000:00/0000:00:03.0',
      );
    }
    return ["kernelpath", present(`${kernelpath.replace(/\/+$/, "")}/net`)];
  }
  if (pciBusID === "") return ["deviceID", present(`${AUXILIARY}/${auxiliary}/net`)];
  const device = `${PCI}/${pciBusID}`;
  const virtio = folder(device)?.find((name) => name.startsWith("virtio") && folder(`${device}/${name}/net`));
  const dir = folder(`${device}/net`) ? `${device}/net` : virtio && `${device}/${virtio}/net`;
  if (dir) return ["pciBusID", dir];
  throw internal(
    `${NOT_FOUND}: no net directory under pci device ${pciBusID}`,
    `its driver makes no network link, or the link is in another network namespace`,
  );
}

function present(dir: string): string {
  if (folder(dir)) return dir;
  throw internal(
    `${NOT_FOUND}: failed to read directory ${dir}: "open ${dir}: no such file or directory"`,
    "the device has no network link",
  );
}

/** First link of a folder that is not the representor of another port. */
function folderLink(dir: string): string | undefined {
  const names = folder(dir) ?? [];
  return names.find((name) => !/^pf\d+[vs]f\d+$|^pf\d+$/.test(portName(`${dir}/${name}`))) ?? names[0];
}

function portName(link: string): string {
  try {
    return readKernelFile(`${link}/phys_port_name`).trim();
  } catch {
    return "";
  }
}

/** Is the device that is chosen by name another one than the one behind the runtime's device ID? Then its name. */
export function otherDevice(choice: DeviceChoice): string | undefined {
  if (choice.device === "" || (choice.pciBusID === "" && choice.auxiliary === "")) return undefined;
  try {
    const name = folderLink(netFolder({ ...choice, device: "", hwaddr: "", kernelpath: "" })[1]);
    return name === choice.device ? undefined : name;
  } catch {
    return undefined;
  }
}

/**
 * Moves the device into the container under the name of its interface. Its alias keeps its name for the way back, as
 * the reference has it. Failure and a later failure of this call bring it back as it was.
 */
export async function moveIn(call: ContainerCall, device: Link): Promise<void> {
  const { ifName } = call;
  const name = device.ifname;
  if (!isLinkName(name)) {
    throw internal(
      `failed to move link failed to rename host device "${name}" to "${ifName}": invalid argument`,
      "its name has characters that iproute2 cannot be told",
    );
  }
  call.undo(() => takeBack(call, device));
  try {
    await apply([[
      step("host", "ip", `link set dev ${name} alias ${name}`, {
        failing: `failed to move link failed to set alias to "${name}"`,
        why: "DEL finds its name there",
      }),
      // In the container it is renamed, so that nobody on the host sees the name.
      step("host", "ip", `link set dev ${name} netns ${netnsWord(call)} name ${ifName}`, {
        failing: "failed to move link",
        why: "the kernel removes addresses, routes and bridge membership; MAC and MTU stay",
      }),
    ]], call);
  } catch (error) {
    throw explained(error, { name, ifName });
  }
}

function explained(error: unknown, { name, ifName }: { name: string; ifName: string }): unknown {
  if (!(error instanceof StepError)) return error;
  const reason = error.message.slice(error.step.failing.length + 2);
  if (isAbsent(error)) {
    return internal(`${NOT_FOUND}: Link not found`, `${name} has just gone, to another container?`);
  }
  if (reason === "file exists") {
    return internal(
      `failed to move link failed to move "${ifName}" (host: "${name}") to container NS: file exists`,
      `the container already has a link "${ifName}"; it was left alone, and ${name} is back on the host`,
    );
  }
  const fixed = reason === "invalid argument" ? `${name} cannot leave its namespace: bridges and lo cannot` : "";
  return internal(`failed to move link failed to move "${name}" to tempNS: ${reason}`, fixed);
}

/** Undoes {@linkcode moveIn}, however far it came. */
async function takeBack(call: ContainerCall, device: Link): Promise<void> {
  const { ifname: name, ifalias = "", address, flags } = device;
  const there = (await podLinks(call)).find((link) =>
    link.ifalias === name && link.address === address && (link.ifname === call.ifName || link.ifname === name)
  );
  if (there) await moveOut(call, there.ifname, { name, keepAlias: true });
  // An alias is any text: not for a batch.
  const output = await call.host({
    argv: ["ip", "link", "set", "dev", name, "alias", ifalias, ...(flags.includes("UP") ? ["up"] : [])],
  });
  if (output.code !== 0 && !says(output, "noDevice")) throw new Error(`${name}: ${output.stderr.trim()}`);
}

/** All links of the container; none when it is gone. */
export async function podLinks(call: ContainerCall): Promise<Link[]> {
  try {
    const [links = []] = await apply([[step("pod", "ip", "link show", { read: true })]], call) as Link[][];
    return links;
  } catch (error) {
    if (says(error, "notEntered")) return [];
    throw error;
  }
}

/**
 * Moves a link of the container to the host and restores its name. On failure it stays in the container, as it
 * was.
 */
export async function moveOut(
  call: ContainerCall,
  from: string,
  { name, keepAlias = false }: { name: string; keepAlias?: boolean },
): Promise<void> {
  if (linkNames()?.has(name)) throw nameTaken(name);
  const home = `/proc/${Deno.pid}/ns/net`;
  const renaming = `failed to rename device "${from}" to "${name}"`;
  const moving = `failed to move "${name}" to hostNS`;
  const down = step("pod", "ip", linkDown(from), { failing: renaming, why: "a link that is up may not be renamed" });
  const rename = step("pod", "ip", `link set dev ${from} name ${name}`, {
    failing: renaming,
    why: "its own name again, before the host sees it",
  });
  const move = step("pod", "ip", `link set dev ${name} netns ${home}`, { failing: moving, why: "back to the host" });
  const both = step("pod", "ip", `link set dev ${from} netns ${home} name ${name}`, {
    failing: `failed to move "${from}" to hostNS`,
    why: `the container has another link "${name}"`,
  });
  try {
    await apply([from === name ? [down, move] : [down, rename, move]], call);
  } catch (error) {
    if (!(error instanceof StepError) || !says(error, "nameTaken")) throw error;
    // The container has another link of that name, or the host has one now.
    if (error.step === rename) await apply([[both]], call);
    else await stay(call, { from, name });
  }
  if (keepAlias) return;
  const forget = step("host", "ip", `link set dev ${name} alias `, { failing: `failed to unset alias of "${name}"` });
  await apply([[forget]], call);
}

async function stay(call: ContainerCall, { from, name }: { from: string; name: string }): Promise<never> {
  const steps = from === name ? [] : [step("pod", "ip", `link set dev ${name} name ${from}`)];
  await apply([[...steps, step("pod", "ip", linkUp(from))]], call);
  throw nameTaken(name);
}

function nameTaken(name: string): CniError {
  return internal(
    `failed to move "${name}" to hostNS: file exists`,
    `the host has another link "${name}" now: rename or delete it, then DEL moves the device back`,
  );
}

/**
 * The container is gone without DEL: the kernel returned the device under the name it had there, or as dev<index>.
 * Gives it its name again, if there is no doubt which one it is. `mine`: may the link be the configured device?
 */
export async function adopt(call: Call & ContainerCall, mine: (link: Link) => boolean): Promise<void> {
  const links = JSON.parse(await must(call.host, { argv: ["ip", "-j", "-d", "link", "show"] }) || "[]") as Link[];
  const names = new Set(links.map((link) => link.ifname));
  const stranded = links.filter(({ ifname, ifalias = "", ifindex }) =>
    (ifname === call.ifName || ifname === `dev${ifindex}`) && ifalias !== ifname && isLinkName(ifalias) &&
    !names.has(ifalias)
  ).filter(mine);
  const [link] = stranded;
  if (!link || stranded.length > 1) return;
  const name = link.ifalias ?? "";
  await apply([[
    step("host", "ip", linkDown(link.ifname), { failing: `failed to set "${link.ifname}" down` }),
    step("host", "ip", `link set dev ${link.ifname} name ${name}`, {
      failing: `failed to rename device "${link.ifname}" to "${name}"`,
      why: "the container is gone, and the kernel returned it under another name",
    }),
    step("host", "ip", `link set dev ${name} alias `, { failing: `failed to unset alias of "${name}"` }),
  ]], call);
}

/** Is it a link of the device that is chosen by its place in sysfs? */
export function isInSysfs(choice: DeviceChoice, link: Link): boolean {
  if (choice.device !== "" || choice.hwaddr !== "") return false;
  try {
    return isSame(link, `${netFolder(choice)[1]}/${link.ifname}`);
  } catch {
    return false;
  }
}
