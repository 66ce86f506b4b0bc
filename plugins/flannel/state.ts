/**
 * What flannel gave its delegate at ADD, kept for CHECK, DEL and GC. The reference keeps one file for a container,
 * `<folder>/<containerID>`, which a second interface overwrites. That one is kept for it, and beside it one of our own
 * for each attachment, `<folder>/<containerID>@<ifName>@<network>`: `@` occurs in no container ID.
 */
import { isObject } from "../../lib/cni/decode.ts";
import { CniError, code } from "../../lib/cni/error.ts";
import type { JsonObject } from "../../lib/cni/types.ts";
import { usable } from "../../lib/kernel/regular_file.ts";
import { namesIn, readFileIfThere, removeDrafts, removeFile } from "../../lib/kernel/state_file.ts";
import type { Attachment } from "../../lib/net/name.ts";

/** The configuration of one attachment as it is on disk. */
export interface State {
  readonly path: string;
  readonly text: string;
  /** Undefined when the file holds no configuration with a type. */
  readonly conf: (JsonObject & { readonly type: string }) | undefined;
}

/** Longest name of a file of ours: file systems take 255 bytes. */
const LONGEST = 255;

/** Paths of the reference's file and of ours; without ours when its name would be too long. */
export function statePaths(
  folder: string,
  { network, containerId, ifName }: Attachment,
): { plain: string; own?: string } {
  const base = folder.replace(/\/+$/, "");
  const own = `${containerId}@${ifName}@${network}`;
  const fits = new TextEncoder().encode(own).length <= LONGEST;
  return { plain: `${base}/${containerId}`, ...(fits && { own: `${base}/${own}` }) };
}

/**
 * Reads one file; undefined when there is none, or something that nobody should have put there. Throws what the system
 * says otherwise.
 */
export function readState(path: string, warn: (note: string) => void = () => {}): State | undefined {
  const text = usable(() => readFileIfThere(path), warn);
  if (text === undefined) return undefined;
  let conf: unknown;
  try {
    conf = JSON.parse(text);
  } catch {
    conf = undefined;
  }
  const isConf = isObject(conf) && typeof conf["type"] === "string";
  return { path, text, conf: isConf ? conf as State["conf"] : undefined };
}

/** The state of an attachment: ours, else the reference's if it is about the same network, or cannot be read. */
export function findState(
  folder: string,
  attachment: Attachment,
  warn: (note: string) => void = () => {},
): State | undefined {
  const { plain, own } = statePaths(folder, attachment);
  const ours = own === undefined ? undefined : readState(own, warn);
  if (ours?.conf) return ours;
  const theirs = readState(plain, warn);
  if (theirs?.conf && theirs.conf["name"] === attachment.network) return theirs;
  return ours ?? (theirs?.conf ? undefined : theirs);
}

/**
 * Removes the state of an attachment that is gone. The reference's file goes when it says the same, unless another
 * interface of the container says that too; one that is about something else stays. Without a state, what a killed ADD
 * left goes.
 */
export function dropState(folder: string, attachment: Attachment, state: State | undefined): void {
  const { plain, own } = statePaths(folder, attachment);
  if (own !== undefined) remove(own);
  removeDrafts(plain);
  if (state === undefined) return;
  const base = plain.slice(0, plain.lastIndexOf("/"));
  const others = namesIn(base).filter((name) => name.startsWith(`${attachment.containerId}@`));
  const shared = others.some((name) => readState(`${base}/${name}`)?.text === state.text);
  if (state.path === plain || (!shared && readState(plain)?.text === state.text)) remove(plain);
}

function remove(path: string): void {
  if (!removeFile(path)) throw new CniError(code.io, `cannot remove ${path}`);
}

/** All states of one network: those of attachments by name, and the reference's of whole containers. */
export function statesOf(
  folder: string,
  network: string,
): (State & { readonly containerId: string; readonly ifName?: string })[] {
  const base = folder.replace(/\/+$/, "");
  return namesIn(base).filter((name) => !name.startsWith(".")).flatMap((name) => {
    const [, containerId = name, ifName, owner] = /^([^@]+)@(.+)@([^@]+)$/.exec(name) ?? [];
    if (owner !== undefined && owner !== network) return [];
    const state = readState(`${base}/${name}`);
    if (!state || (owner === undefined && state.conf?.["name"] !== network)) return [];
    return [{ ...state, containerId, ...(ifName !== undefined && { ifName }) }];
  });
}
