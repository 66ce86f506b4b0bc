/**
 * `route_localnet`, which lets this host's 127.0.0.1:PORT be sent to a container, and what it must not open: with it, a
 * container that sends packets to 127.0.0.1 through its link would reach services that listen there.
 *
 * The guard is one rule for the whole host: nothing that comes in by another link than `lo` goes to 127.0.0.0/8. Replies
 * are not affected, since they are addressed to the host until connection tracking has translated them back. It is dead
 * without `route_localnet` (the kernel drops such packets by itself), so it stays, as the reference's shared chains do.
 *
 * Which links this plugin switched is noted below /run, gone with a reboot as the setting is, and safe from whoever flushes
 * rules; when the last published port of the host goes, they are switched back. A note is an empty file whose name says all:
 * it is there or it is not. Each ADD makes one of its own, so that a DEL which found it unneeded takes away none that came later.
 */
import { restore, TableError, transaction } from "../kernel/iptables.ts";
import { nft, NftError, nftList } from "../kernel/nft.ts";
import type { Run } from "../kernel/run.ts";
import { namesIn, removeFile } from "../kernel/state_file.ts";
import { readSysctl, writeSysctl } from "../kernel/sysctl.ts";

/** Which tool's tables hold guard and memory. */
export type LocalnetBackend = "iptables" | "nftables";

const GUARD = '! -i lo -d 127.0.0.0/8 -m comment --comment "CNI portfwd: 127.0.0.0/8 is for this host alone" -j DROP';
const NOTES = "/run/cnibox/localnet";
const NFT_TABLE = "ip cni_hostport";
const NFT_GUARD = 'iifname != "lo" ip daddr 127.0.0.0/8 drop comment "CNI portfwd: 127.0.0.0/8 is for this host alone"';

/** Lines that only succeed while the guard stands: put before a transaction, they save a process of their own. */
export const GUARD_CHECK = transaction("raw", [`-C PREROUTING ${GUARD}`]);

const settingOf = (dev: string) => `net/ipv4/conf/${dev}/route_localnet`;

/** Makes sure of the guard. Throws when the kernel cannot have it: then `route_localnet` must stay off. */
export async function ensureGuard(host: Run, backend: LocalnetBackend): Promise<void> {
  if (backend === "iptables") {
    try {
      await restore(host, 4, GUARD_CHECK);
    } catch (error) {
      if (!(error instanceof TableError) || error.refusal === "locked") throw error;
      await restore(host, 4, transaction("raw", [`-I PREROUTING 1 ${GUARD}`]));
    }
    return;
  }
  const listing = await nftList(host, `chain ${NFT_TABLE} localnet`);
  if (listing && listing.rules.some(({ expr }) => JSON.stringify(expr).includes("127.0.0.0"))) return;
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
  try {
    await restore(host, 4, GUARD_CHECK);
    return true;
  } catch (error) {
    if (!(error instanceof TableError) || error.refusal === "locked") throw error;
  }
  try {
    const listing = await nftList(host, `chain ${NFT_TABLE} localnet`);
    return listing !== undefined && listing.rules.some(({ expr }) => JSON.stringify(expr).includes("127.0.0.0"));
  } catch (error) {
    if (error instanceof NftError) return false;
    throw error;
  }
}

/** Is `127.0.0.1` sent out through this link? */
export function isLocalnetOn(dev: string): boolean {
  return readSysctl(settingOf(dev)) === "1";
}

/** Path of a new note that a link's setting was off. No link's name holds a slash. */
export function notePath(dev: string, backend: LocalnetBackend): string {
  return `${NOTES}/${backend}@${Deno.pid}-${Math.random().toString(36).slice(2, 10)}@${dev}`;
}

/** Makes a note. Throws what the system says. */
export function makeNote(path: string): void {
  const make = () => Deno.openSync(path, { write: true, createNew: true, mode: 0o600 }).close();
  try {
    make();
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    Deno.mkdirSync(NOTES, { recursive: true, mode: 0o700 });
    make();
  }
}

interface Note {
  readonly path: string;
  readonly dev: string;
}

function notesOf(backend: LocalnetBackend): Note[] {
  return namesIn(NOTES).filter((name) => name.startsWith(`${backend}@`)).map((name) => ({
    path: `${NOTES}/${name}`,
    dev: name.split("@").slice(2).join("@"),
  }));
}

/** Has this plugin switched a link on whose ports are set with this tool? */
export function isNoted(backend: LocalnetBackend): boolean {
  return notesOf(backend).length > 0;
}

/** Switches the setting on. The link has to be guarded already. */
export function switchLocalnetOn(dev: string, write = writeSysctl): void {
  write(settingOf(dev), "1");
}

/** Switches the setting off again: after a failed ADD. */
export function switchLocalnetOff(dev: string, write = writeSysctl): void {
  try {
    write(settingOf(dev), "0");
  } catch (error) {
    // The link is gone, and the setting with it.
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/**
 * Switches back what this plugin switched on, once nothing is published any more. `anyLeft` looks again: a container that
 * came meanwhile has found the setting on, so it is put back. Throws which note cannot be removed.
 */
export async function resetLocalnet(
  backend: LocalnetBackend,
  anyLeft: () => Promise<boolean>,
  { write = writeSysctl, remove = removeFile }: { write?: typeof writeSysctl; remove?: typeof removeFile } = {},
): Promise<void> {
  const notes = notesOf(backend);
  if (notes.length === 0) return;
  const devices = [...new Set(notes.map(({ dev }) => dev))];
  for (const dev of devices) switchLocalnetOff(dev, write);
  if (!(await anyLeft())) {
    const stuck = notes.find(({ path }) => !remove(path));
    if (stuck) throw new Error(`cannot remove ${stuck.path}: it says that route_localnet of ${stuck.dev} was off`);
    return;
  }
  for (const dev of devices) {
    try {
      write(settingOf(dev), "1");
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
}
