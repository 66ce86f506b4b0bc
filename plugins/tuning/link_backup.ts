/**
 * What an interface was like before tuning changed it: one small file per attachment, read again by DEL. Path and keys
 * are those of the reference, so that either can put back what the other changed; the last two keys are ours, and the
 * reference ignores them.
 */
import { goJson } from "../../lib/cni/version.ts";
import { isObject } from "../../lib/cni/decode.ts";
import type { JsonObject, ValidAttachment } from "../../lib/cni/types.ts";
import { isLinkName } from "../../lib/net/link_name.ts";
import { isSetting } from "./settings.ts";
import { usable } from "../../lib/kernel/regular_file.ts";
import { collectDrafts, namesIn, readFileIfThere } from "../../lib/kernel/state_file.ts";

/** Attributes to put back; absent ones were not changed. */
export interface Backup {
  mac?: string;
  promisc?: boolean;
  mtu?: number;
  allmulti?: boolean;
  txQLen?: number;
  /** Settings below /proc/sys, by their path there. */
  sysctl?: Readonly<Record<string, string>>;
  /** Network that the attachment belongs to: what GC needs to know. */
  network?: string;
  /** Where the interface is: GC is told no namespaces. */
  place?: Place;
}

/** An interface in a namespace, and what tells that they are still the same. */
export interface Place {
  readonly netns: string;
  /** Device and inode of the namespace. */
  readonly id: string;
  readonly ifName: string;
  /** Index of the link; 0 when it was not looked at. */
  readonly index: number;
}

/** The file of one attachment. */
export function backupPath(folder: string, { containerID, ifname }: ValidAttachment): string {
  return `${folder.replace(/\/+$/, "")}/${containerID}_${ifname}.json`;
}

/** Reads a backup: undefined when there is none, "broken" when it is not one. Throws what reading throws. */
export function readBackup(path: string): Backup | undefined | "broken" {
  const text = readFileIfThere(path);
  if (text === undefined) return undefined;
  let source: unknown;
  try {
    source = JSON.parse(text);
  } catch {
    return "broken";
  }
  return isObject(source) ? fromJson(source) : "broken";
}

function fromJson({ mac, promisc, mtu, allmulti, txQLen, sysctl, network, place }: JsonObject): Backup {
  const backup: Backup = {};
  if (typeof mac === "string" && mac !== "") backup.mac = mac;
  if (typeof promisc === "boolean") backup.promisc = promisc;
  if (typeof mtu === "number" && mtu !== 0) backup.mtu = mtu;
  if (typeof allmulti === "boolean") backup.allmulti = allmulti;
  if (typeof txQLen === "number") backup.txQLen = txQLen;
  if (isObject(sysctl)) {
    const settings = Object.entries(sysctl).filter(([key, value]) => isSetting(key) && typeof value === "string");
    backup.sysctl = Object.fromEntries(settings) as Record<string, string>;
  }
  if (typeof network === "string") backup.network = network;
  if (isPlace(place)) backup.place = place;
  return backup;
}

function isPlace(value: unknown): value is Place {
  if (!isObject(value)) return false;
  const { netns, id, ifName, index } = value;
  return typeof netns === "string" && typeof id === "string" && typeof index === "number" &&
    typeof ifName === "string" && isLinkName(ifName);
}

/**
 * Content of the file that says what is to be put back. Values that an earlier ADD of the same attachment kept stay:
 * they are the older ones.
 */
export function backupText(path: string, backup: Backup): string {
  const kept = readBackup(path);
  const older = kept === undefined || kept === "broken" ? {} : kept;
  const sysctl = { ...backup.sysctl, ...older.sysctl };
  const { network, ...rest } = { ...backup, ...older };
  // The container may have come back in another namespace.
  const place = backup.place ?? older.place;
  return goJson({
    ...pick(rest, ["mac", "promisc", "mtu", "allmulti", "txQLen"]),
    ...(Object.keys(sysctl).length > 0 && { sysctl }),
    network,
    ...(place && { place }),
  }, 1);
}

function pick(backup: Backup, keys: readonly (keyof Backup)[]): JsonObject {
  return Object.fromEntries(keys.filter((key) => backup[key] !== undefined).map((key) => [key, backup[key]]));
}

/** A backup and its file. */
export interface Kept {
  readonly path: string;
  readonly backup: Backup;
}

/**
 * Backups of this network whose attachments are not among the valid ones. A place that another backup names too is left
 * out of them: the interface there is that one's by now.
 */
export function staleBackups(folder: string, network: string, valid: readonly ValidAttachment[]): Kept[] {
  const keep = new Set(valid.map((one) => backupPath("", one)));
  collectDrafts(folder);
  const all = namesIn(folder).filter((name) => name.endsWith(".json")).flatMap((name) => {
    // What is not a regular file is nobody's backup, and stays where it is.
    const backup = usable(() => readBackup(`${folder}/${name}`), () => {});
    return backup === undefined || backup === "broken" ? [] : [{ name, backup }];
  });
  const placeOf = ({ place }: Backup) => place ? `${place.id} ${place.ifName}` : "";
  return all.filter(({ name, backup }) => backup.network === network && !keep.has(`/${name}`)).map(
    ({ name, backup }) => {
      const { place, ...rest } = backup;
      const isShared = all.some((one) => one.name !== name && placeOf(one.backup) === placeOf(backup));
      return { path: `${folder}/${name}`, backup: place && !isShared ? backup : rest };
    },
  );
}
