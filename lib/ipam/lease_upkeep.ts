/**
 * What is asked of leases beside giving them out and releasing them: a set that is full, a container that has an
 * address already, GC, STATUS and the operator's commands. Loaded when called: a usual ADD or DEL does not read it.
 *
 * @module
 */
import { all, CniError, code, internal } from "../cni/error.ts";
import type { ContainerCall } from "../cni/plugin.ts";
import { attachmentsOf, type ValidAttachment } from "../cni/types.ts";
import { surveyNetns, unseenText } from "../kernel/all_netns.ts";
import type { Run } from "../kernel/run.ts";
import { parseAddress } from "../net/cidr.ts";
import { type AllocatorOptions, type Draw, type Duplicate, held, nameOf } from "./allocator.ts";
import { describe, excludedBy, isGateway, rangeOf, type RangeSet, size } from "./range.ts";
import { findDead, type ProofOptions, type Verdict } from "./reclaim.ts";
import { ADVICE, contentOf, type Holder, ioError, type Lease, Store, type StoreOptions, withStore } from "./store.ts";

/**
 * The set is full: releases what in it belongs to nobody. Files that say nothing are what a crash left; other leases
 * need the proof of {@linkcode findDead}.
 */
export async function reclaim(store: Store, { set, warn, host, resultsFolders }: Draw): Promise<Verdict> {
  const leases = store.leases().filter(({ ip }) => rangeOf(set, parseAddress(ip)!));
  for (const { ip, containerId } of leases) {
    if (containerId !== "") continue;
    store.discard(ip);
    warn(`${ip}: empty lease removed from ${store.folder}: a crash left it`);
  }
  const verdict = await findDead(leases, { host, resultsFolders });
  for (const lease of verdict.dead) {
    store.release(lease.ip, lease);
    warn(
      `${lease.ip}: reclaimed from ${nameOf(lease)}, written ${lease.written.toISOString()}, before this boot; ` +
        "it is in no network namespace, and no runtime has a result of this container",
    );
  }
  return verdict;
}

/** The error of a set that is full. */
export function exhausted(store: Store, { set, during, verdict }: Draw & { verdict: Verdict }): never {
  const { suspects, reason } = verdict;
  const doubt = suspects.length === 0
    ? "none is known to be left over"
    : `${suspects.length} may be left over from before this boot` +
      (reason === "" ? ", but their addresses are in use" : `, but that cannot be proved: ${reason}`);
  throw internal(
    `${during}: no IP addresses available in range set: ${describe(set)}`,
    `${usedOf(set, store.names())} of ${size(set)} addresses are taken, ${doubt}; \`cnibox ipam list\` shows them`,
  );
}

/** The reference's words, and what helps to tell a live container from the leftover of a dead one. */
export async function duplicateError(
  { during, ip, lease }: Duplicate,
  holder: Holder,
  { host }: ProofOptions,
): Promise<CniError> {
  const held = lease === undefined ? "" : `held by ${nameOf(lease)} since ${lease.written.toISOString()}`;
  let where = "";
  try {
    const { inUse, unseen } = await surveyNetns(host);
    const path = inUse.get(ip);
    if (path !== undefined) where = `, in use in ${path}`;
    else where = unseen.length === 0 ? ", in no network namespace of this host" : `, but ${unseenText(unseen)}`;
  } catch {
    // The address alone has to do.
  }
  return internal(
    `${during}: ${ip} has been allocated to ${holder.containerId}, duplicate allocation is not allowed`,
    `${held}${where}; DEL of this container and interface releases it, \`cnibox ipam repair --all\` what crashes left`,
  );
}

/** CHECK: the addresses that the attachment holds; none is an error. */
export async function checkHeld(folder: string, call: ContainerCall): Promise<readonly string[]> {
  const { type, containerId, ifName } = call;
  const addresses = await held(folder, call, call);
  if (addresses.length > 0) return addresses;
  throw internal(
    `${type}: Failed to find address added by container ${containerId}`,
    `no file in ${folder} says ${containerId} ${ifName}: the address may be given to others; add the container again`,
  );
}

/** A note for every set that has no address left. */
export async function usage(
  folder: string,
  sets: readonly RangeSet[],
  options: Omit<StoreOptions, "create">,
): Promise<string[]> {
  const names = await withStore(folder, options, (store) => store.names());
  return sets.filter((set) => BigInt(usedOf(set, names ?? [])) >= size(set))
    .map((set) => `no IP addresses available in range set: ${describe(set)}: all ${size(set)} are taken`);
}

/** STATUS: throws when the next ADD could not have an address of every set. */
export async function checkSpace(folder: string, sets: readonly RangeSet[], options: AllocatorOptions): Promise<void> {
  const { host } = options;
  await checkFolder(folder, host);
  const [full] = await usage(folder, sets, options);
  if (full === undefined) return;
  // ADD takes back what is provably dead; only when there is nothing of that kind does it fail.
  const { dead } = await findDead(await leases(folder, options), { host });
  if (dead.length > 0) return;
  throw new CniError(code.notAvailable, full, "cnibox ipam check tells whose addresses these are");
}

/** How many of these names are addresses that the set could give out. */
function usedOf(set: RangeSet, names: Iterable<string>): number {
  let count = 0;
  for (const name of names) {
    const address = parseAddress(name);
    const range = address && rangeOf(set, address);
    if (address && range && !isGateway(set, address) && !excludedBy(range, address)) count++;
  }
  return count;
}

/**
 * Releases what belongs to none of the valid holders, and returns it. A lease that names the container alone stays
 * while that container has any valid interface; files that say nothing go.
 */
export async function collect(
  folder: string,
  valid: readonly ValidAttachment[],
  options: Omit<StoreOptions, "create">,
): Promise<Lease[]> {
  const attachments = new Set(attachmentsOf("", valid).map(contentOf));
  const containers = new Set(valid.map(({ containerID }) => containerID));
  const isValid = ({ containerId, ifName }: Lease) =>
    ifName === undefined ? containers.has(containerId) : attachments.has(contentOf({ containerId, ifName }));
  const gone = await withStore(folder, options, async (store) => {
    const stale = store.leases().filter((lease) => !isValid(lease));
    await all(
      stale.map((lease) => () => lease.containerId === "" ? store.discard(lease.ip) : store.release(lease.ip, lease)),
    );
    return stale;
  });
  return gone ?? [];
}

/** Every lease of the network, in ascending order of addresses. */
export async function leases(folder: string, options: Omit<StoreOptions, "create">): Promise<Lease[]> {
  return await withStore(folder, options, (store) => store.leases()) ?? [];
}

/** The same without the lock, for those who only look: whoever changes a lease looks again under it. */
export function leasesSeen(folder: string, warn: (note: string) => void): Lease[] {
  return new Store(folder, { warn }).leases();
}

/**
 * Makes sure that the folder is one that can be written, or could be made; changes nothing.
 *
 * @throws {CniError} code 5 when it cannot
 */
export async function checkFolder(folder: string, host: Run): Promise<void> {
  let path = folder;
  for (;;) {
    try {
      if (!Deno.statSync(path).isDirectory) throw new CniError(code.io, `${path} is not a folder`, ADVICE.ENOTDIR);
      break;
    } catch (error) {
      const parent = parentOf(path);
      if (!(error instanceof Deno.errors.NotFound) || parent === path) throw ioError(`failed to read ${path}`, error);
      path = parent;
    }
  }
  // Asks the kernel, which knows of read-only file systems too; mode bits do not tell.
  const { code: status } = await host({ argv: ["test", "-w", path, "-a", "-x", path] });
  if (status === 0) return;
  throw new CniError(code.io, `${path} cannot be written`, `leases are kept in ${folder}: ${ADVICE.EROFS}`);
}

function parentOf(path: string): string {
  const parent = path.replace(/\/+[^/]+\/*$/, "");
  if (parent === "") return "/";
  return parent === path ? "." : parent;
}
