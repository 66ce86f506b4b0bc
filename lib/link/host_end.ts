/**
 * The host's end of an attachment's veth pair: what it is called, what shows whose it is, and its removal on that
 * proof.
 */
import { type CniError, internal } from "../cni/error.ts";
import type { Interface, IPConfig } from "../cni/types.ts";
import { type Link, linkDel } from "../kernel/ip.ts";
import { type Applier, apply, type Step, step, StepError } from "../kernel/plan.ts";
import { linkExists, linkFolder, readKernelFile } from "../kernel/proc.ts";
import { isAbsent } from "../kernel/run.ts";
import { macFromSeed } from "../net/mac.ts";
import { type Attachment, vethName } from "../net/name.ts";
import { sha512 } from "../net/sha512.ts";
import { linkNow } from "./container_link.ts";

/** Bytes that the kernel keeps of an alias. */
const ALIAS_BYTES = 255;

/**
 * The alias that a host veth carries: `show`, `graph`, DEL and GC know its owner by it. One that is too long ends in a
 * hash of the whole.
 */
export function portAlias({ network, containerId, ifName }: Attachment): string {
  const alias = `cni:${network}:${containerId}:${ifName}`;
  // An interface's name may have characters of several bytes.
  if (alias.length <= ALIAS_BYTES / 4 || new TextEncoder().encode(alias).length <= ALIAS_BYTES) return alias;
  return `${`cni:${network}:${containerId}`.slice(0, ALIAS_BYTES - 65)}:${sha512(alias).slice(0, 64)}`;
}

/** Is it the alias of an attachment of this network? */
export function isAliasOf(alias: string, network: string): boolean {
  return alias.startsWith(`cni:${network}:`.slice(0, ALIAS_BYTES - 65));
}

/** How many names a host end may have: where the first one is somebody else's link, the next one is taken. */
const NAMES = 4;

/** All names that the attachment's host end may have, the usual one first. */
export function hostEndNames(owner: Attachment): string[] {
  return Array.from({ length: NAMES }, (_, attempt) => vethName(owner, attempt));
}

/** The host's end as ADD makes it; `attempt` counts the names that were found taken. */
export function hostEnd(owner: Attachment, attempt = 0): Interface {
  const name = vethName(owner, attempt);
  return { name, mac: hostMac(owner.network, name) };
}

/**
 * An index for the container's end that no other link has: the kernel counts up from 1, and never came to half of the
 * 31 bits. From the host end's name, so the same attachment gets the same one.
 */
export function podIndex({ name }: Interface): number {
  return 2 ** 30 + parseInt(name.slice(4), 16) % 2 ** 30;
}

/**
 * MAC of a host end. The kernel sets it in the step that makes the link, before there can be an alias. As nobody else
 * gives a link of this name just this MAC, it shows which network a link without alias was made for.
 */
function hostMac(network: string, name: string): string {
  return macFromSeed(`host:${network}:${name}`);
}

/**
 * Does the link show that it is the attachment's? By its alias, or where an ADD was killed before it set one, by its
 * MAC.
 */
function isHostEnd(link: Link, owner: Attachment): boolean {
  if (link.linkinfo?.info_kind !== "veth") return false;
  return link.ifalias ? link.ifalias === portAlias(owner) : isUnnamed(link, owner.network);
}

/** Did an ADD of this network make the link that was killed before it could set an alias? */
export function isUnnamed({ ifalias, ifname, address }: Partial<Link>, network: string): boolean {
  return !ifalias && ifname !== undefined && address === hostMac(network, ifname);
}

/** Is the host's link of this name the attachment's? Without a process where sysfs is ours and shows an alias. */
async function isOwn(call: Applier, name: string, owner: Attachment): Promise<boolean> {
  const alias = aliasInSysfs(name);
  if (alias !== "") return alias === portAlias(owner);
  const link = await linkNow(call, "host", name);
  return link !== undefined && isHostEnd(link, owner);
}

function aliasInSysfs(name: string): string {
  const folder = linkFolder(name);
  try {
    return folder === undefined ? "" : readKernelFile(`${folder}/ifalias`).replace(/\n$/, "");
  } catch {
    return "";
  }
}

/**
 * Removes the host's end of the attachment's pair, and does `after` in the same process. False when the host has none
 * that is its.
 */
export async function deleteHostEnd(call: Applier, owner: Attachment, after: readonly Step[] = []): Promise<boolean> {
  for (let attempt = 0; attempt < NAMES; attempt++) {
    const name = vethName(owner, attempt);
    if (linkExists(name) === false || !await isOwn(call, name, owner)) continue;
    await deleteHostVeth(call, name, after);
    return true;
  }
  return false;
}

/** An attachment's name, by which its links and rules are known. */
export function ownerOf({ network, containerId, ifName }: Attachment): Attachment {
  return { network, containerId, ifName };
}

/** Steps that make the host forward for its containers. */
export function forwarding(ips: readonly IPConfig[], failing: string): Step[] {
  const options = { failing, ifDifferent: true, why: "the host routes for its containers" };
  const six = ips.some((ip) => ip.address.includes(":"));
  const four = ips.some((ip) => !ip.address.includes(":"));
  return [
    ...(four ? [step("host", "sysctl", "net/ipv4/ip_forward=1", options)] : []),
    ...(six ? [step("host", "sysctl", "net/ipv6/conf/all/forwarding=1", options)] : []),
  ];
}

/** A link of the host that leads to containers takes no routes from there. */
export function noRouterAdvertisements(link: string): Step {
  return step("host", "sysctl", `net/ipv6/conf/${link}/accept_ra=0`, {
    optional: true,
    why: "containers must not announce routes to the host",
  });
}

/** The error where one of a pair's two names is another link's. */
export function pairExists({ host, pod, netns }: { host: Interface; pod: Interface; netns: string }): CniError {
  return internal(
    `container veth name ("${pod.name}") peer provided ("${host.name}") already exists`,
    `${netns} already has a link "${pod.name}", or the host "${host.name}": left by an ADD that did not end, or still in use; DEL of this container removes both`,
  );
}

/** Takes back that `name` was made for the attachment, unless the link of that name shows another owner. */
export function undoHostEnd(name: string, owner: Attachment): Step {
  const job = async (call: Applier) => {
    if (await isOwn(call, name, owner)) await deleteHostVeth(call, name);
  };
  return step("host", "ip", linkDel(name), { job });
}

/**
 * Makes a host end under the first name that no other link has: where `make` fails because somebody else has a link of
 * that name, `end` becomes the next one, and `make` is called again.
 */
export async function withFreeName<T>(
  call: Applier,
  { owner, end }: { owner: Attachment; end: Interface },
  make: () => Promise<T>,
): Promise<T> {
  for (let attempt = 1;; attempt++) {
    try {
      return await make();
    } catch (error) {
      if (attempt === NAMES || !isExisting(error) || !await isTaken(call, end.name, owner)) throw error;
      Object.assign(end, hostEnd(owner, attempt));
    }
  }
}

/** Did a link of this name, or its peer's, stand in the way? */
export function isExisting(error: unknown): boolean {
  return error instanceof StepError && error.step.text.startsWith("link add ") &&
    /File exists/.test(error.output.stderr);
}

async function isTaken(call: Applier, name: string, owner: Attachment): Promise<boolean> {
  const link = await linkNow(call, "host", name);
  return link !== undefined && !isHostEnd(link, owner);
}

/**
 * Deletes a host veth by name, and does `after` in the same process; not there counts as done. Once nobody sees the
 * link any more, nothing is waited for: the kernel keeps who deleted it until its own last traces are gone, some 15 ms.
 */
export async function deleteHostVeth(call: Applier, name: string, after: readonly Step[] = []): Promise<void> {
  const visible = linkExists(name) === true;
  const gone = step("host", "ip", linkDel(name), {
    failing: `failed to delete "${name}"`,
    why: "the container's end goes with it",
    ...(visible && { done: () => linkExists(name) === false }),
  });
  try {
    await apply([[gone, ...after]], call);
  } catch (error) {
    // A step after it that failed tells that the link is gone; a process that did not get so far tells nothing.
    if (!isAbsent(error) && !(error instanceof StepError && after.includes(error.step))) throw error;
  }
}
