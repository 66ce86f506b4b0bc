/**
 * `route_localnet`, which lets this host's 127.0.0.1:PORT be sent to a container, and what it must not open: with it, a
 * container that sends packets to 127.0.0.1 through its link would reach services that listen there.
 *
 * The guard is one rule for the whole host: nothing that comes in by another link than `lo` goes to 127.0.0.0/8.
 * Replies are not affected, since they are addressed to the host until connection tracking has translated them back. It
 * is dead without `route_localnet` (the kernel drops such packets by itself), so it stays, as the reference's shared
 * chains do.
 *
 * Who needs the setting of which link is noted below /run: gone with a reboot as the setting is, and safe from whoever
 * flushes rules. The first one notes it before it switches the setting on; where it was on without any note, somebody
 * else wants it so, and nothing is noted. Who goes says so in its note (`-` before the name), switches the setting off
 * when no other note is left, looks once more, and then removes the note: whoever is killed on the way is found again,
 * and of two who go at once one is the last. A note is an empty file whose name says all: it is there or it is not.
 */
import { restore, TableError, transaction } from "../../lib/kernel/iptables.ts";
import { nft, NftError, nftList } from "../../lib/kernel/nft.ts";
import type { Run } from "../../lib/kernel/run.ts";
import { isForeign, notAlone, RUN_FOLDER } from "../../lib/kernel/run_folder.ts";
import { namesIn, removeFile } from "../../lib/kernel/state_file.ts";
import { readSysctl, writeSysctl } from "../../lib/kernel/sysctl.ts";
import type { Attachment } from "../../lib/net/name.ts";
import { sha512 } from "../../lib/net/sha512.ts";

/** Which tool's tables hold guard and memory. */
export type LocalnetBackend = "iptables" | "nftables";

const GUARD = '! -i lo -d 127.0.0.0/8 -m comment --comment "CNI portfwd: 127.0.0.0/8 is for this host alone" -j DROP';
const NOTES = "/run/cnibox/localnet";
const NFT_TABLE = "ip cni_hostport";
const NFT_GUARD = 'iifname != "lo" ip daddr 127.0.0.0/8 drop comment "CNI portfwd: 127.0.0.0/8 is for this host alone"';

/** Lines that only succeed while the guard stands: put before a transaction, they save a process of their own. */
export const GUARD_CHECK = transaction("raw", [`-C PREROUTING ${GUARD}`]);

/** The setting of a link, by its path below /proc/sys. */
export const settingOf = (dev: string): string => `net/ipv4/conf/${dev}/route_localnet`;

/** Makes sure of the guard. Throws when the kernel cannot have it: then `route_localnet` must stay off. */
export async function ensureGuard(host: Run, backend: LocalnetBackend): Promise<void> {
  if (await hasGuard(host, backend)) return;
  if (backend === "iptables") return await restore(host, 4, transaction("raw", [`-I PREROUTING 1 ${GUARD}`]));
  await nft(
    host,
    [
      `add table ${NFT_TABLE}`,
      `add chain ${NFT_TABLE} localnet { type filter hook prerouting priority -300 ; }`,
      `add rule ${NFT_TABLE} localnet ${NFT_GUARD}`,
      "",
    ].join("\n"),
  );
}

/** Does the guard stand, in either backend? */
export async function isGuarded(host: Run): Promise<boolean> {
  if (await hasGuard(host, "iptables")) return true;
  try {
    return await hasGuard(host, "nftables");
  } catch (error) {
    if (error instanceof NftError) return false;
    throw error;
  }
}

async function hasGuard(host: Run, backend: LocalnetBackend): Promise<boolean> {
  if (backend === "nftables") {
    const listing = await nftList(host, `chain ${NFT_TABLE} localnet`);
    return listing !== undefined && listing.rules.some(({ expr }) => JSON.stringify(expr).includes("127.0.0.0"));
  }
  try {
    await restore(host, 4, GUARD_CHECK);
    return true;
  } catch (error) {
    if (!(error instanceof TableError) || error.refusal === "locked") throw error;
    return false;
  }
}

/** Is `127.0.0.1` sent out through this link? */
export function isLocalnetOn(dev: string): boolean {
  return readSysctl(settingOf(dev)) === "1";
}

interface Note {
  readonly owner: string;
  readonly dev: string;
  readonly leaves: boolean;
}

/** An attachment in a file's name, which has 255 bytes at most. None of its parts has a colon. */
export function ownerText({ network, containerId, ifName }: Attachment): string {
  const text = `${network}:${containerId}:${ifName}`;
  return text.length <= 200 ? text : `${text.slice(0, 100)}~${sha512(text).slice(0, 40)}`;
}

function pathOf({ owner, dev, leaves }: Note): string {
  return `${NOTES}/${leaves ? "-" : ""}${owner}:${dev}`;
}

function notes(): Note[] {
  return namesIn(NOTES).map((name) => {
    const leaves = name.startsWith("-");
    const at = name.lastIndexOf(":");
    return { owner: name.slice(leaves ? 1 : 0, Math.max(0, at)), dev: name.slice(at + 1), leaves };
  });
}

/** Where it is noted that the attachment needs the setting of a link. */
export function notePath(attachment: Attachment, dev: string): string {
  return pathOf({ owner: ownerText(attachment), dev, leaves: false });
}

/** Notes it. Throws what the system says. */
export function makeNote(attachment: Attachment, dev: string): void {
  const path = notePath(attachment, dev);
  if (isForeign(path)) throw new Error(notAlone(RUN_FOLDER));
  const make = () => Deno.openSync(path, { write: true, createNew: true, mode: 0o600 }).close();
  try {
    make();
  } catch (error) {
    // It is noted already.
    if (error instanceof Deno.errors.AlreadyExists) return;
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    Deno.mkdirSync(NOTES, { recursive: true, mode: 0o700 });
    make();
  }
}

/** Has this plugin switched the link's setting on, for whomever? */
export function isNoted(dev: string): boolean {
  return notes().some((note) => note.dev === dev);
}

/** Links whose setting an attachment needs, and whether it is the only one. */
export function notedFor(attachment: Attachment): { dev: string; alone: boolean }[] {
  const owner = ownerText(attachment);
  const all = notes();
  const devices = new Set(all.filter((note) => note.owner === owner).map(({ dev }) => dev));
  return [...devices].map((dev) => ({ dev, alone: !all.some((one) => isUser(one, dev) && one.owner !== owner) }));
}

const isUser = (note: Note, dev: string) => note.dev === dev && !note.leaves;

/** Says that the attachment goes. Returns whether nobody needs the link's setting any more. */
export function leaveLink(attachment: Attachment, dev: string): boolean {
  const note = { owner: ownerText(attachment), dev, leaves: false };
  rename(note);
  return !notes().some((one) => isUser(one, dev));
}

function rename(note: Note): void {
  try {
    Deno.renameSync(pathOf(note), pathOf({ ...note, leaves: true }));
  } catch (error) {
    // An earlier DEL got so far.
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** The attachments of a network that are not valid go. Returns the links that nobody needs and somebody has left. */
export function leaveInvalid(network: string, isValid: (owner: string, containerId: string) => boolean): string[] {
  for (const note of notes()) {
    const [ofNetwork, containerId = ""] = note.owner.split(":");
    if (!note.leaves && ofNetwork === network && !isValid(note.owner, containerId)) rename(note);
  }
  const all = notes();
  return [...new Set(all.map(({ dev }) => dev))].filter((dev) => !all.some((one) => isUser(one, dev)));
}

/** Switches the setting of a link off that nobody needs; on again, if somebody has come meanwhile who found it on. */
export function switchBack(dev: string): void {
  switchLocalnetOff(dev);
  if (notes().some((one) => isUser(one, dev))) ifThere(() => switchLocalnetOn(dev));
}

/** Removes the notes of those who have left a link: of one attachment, or of all. Throws which cannot be removed. */
export function forgetLeft(dev: string, attachment?: Attachment): void {
  const owner = attachment && ownerText(attachment);
  const left = notes().filter((note) => note.leaves && note.dev === dev && (owner ?? note.owner) === note.owner);
  const stuck = left.map(pathOf).find((path) => !removeFile(path));
  if (stuck !== undefined) throw new Error(`cannot remove ${stuck}: it says that route_localnet of ${dev} was off`);
}

/** Switches the setting on. The link has to be guarded already. */
export function switchLocalnetOn(dev: string): void {
  writeSysctl(settingOf(dev), "1");
}

/** Switches the setting off again. */
export function switchLocalnetOff(dev: string): void {
  ifThere(() => writeSysctl(settingOf(dev), "0"));
}

/** The link may be gone, and the setting with it. */
function ifThere(work: () => void): void {
  try {
    work();
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}
