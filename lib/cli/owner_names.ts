/**
 * Names that people have for attachments: pods of Kubernetes, containers of podman and nerdctl, IDs cut short; and what
 * such a word on the command line means.
 */
import type { Attached } from "../cni/result_cache.ts";
import { CliError, didYouMean, status, usageError } from "./command.ts";
import { attachmentsOf, type Folders } from "./setup.ts";
import { natural } from "./terminal.ts";

/** Network, container and interface: whose something is. One that names no interface is all of the container's. */
export type Owner = Pick<Attached, "network" | "containerId"> & Partial<Pick<Attached, "ifName">>;

type Named = Pick<Attached, "containerId" | "args">;

/**
 * What the runtime calls the container that an attachment is for: `NAMESPACE/NAME` of a pod, the name of podman's
 * container, the host name that nerdctl's was given; undefined when it said none of them.
 */
export function podOf({ containerId, args }: Named): string | undefined {
  const value = (wanted: string) => args.findLast(([key]) => key === wanted)?.[1];
  const [namespace, name] = [value("K8S_POD_NAMESPACE"), value("K8S_POD_NAME")];
  if (name !== undefined) return namespace === undefined ? name : `${namespace}/${name}`;
  const hostname = value("NERDCTL_CNI_DHCP_HOSTNAME") ?? "";
  // Who was given no host name has the beginning of its ID.
  return hostname === "" || digitsOf(containerId)?.startsWith(hostname) ? undefined : hostname;
}

/** IDs have 64 digits; the first twelve tell them apart. nerdctl puts containerd's namespace before them. */
export function shortId(id: string): string {
  return digitsOf(id)?.slice(0, 12) ?? id;
}

/** Does a word that may be cut short stand for this ID? */
export function beginsId(word: string, id: string): boolean {
  return id.startsWith(word) || (digitsOf(id)?.startsWith(word) ?? false);
}

/** The digits of a long ID; undefined when it is another kind of ID. */
function digitsOf(id: string): string | undefined {
  return /^(?:[\w.-]+-)?([\da-f]{32,})$/.exec(id)?.[1];
}

/** What people call a container: its pod, where the runtime said which one it is, else its ID cut short. */
export function nameOf({ containerId, args = [] }: Pick<Attached, "containerId"> & Partial<Named>): string {
  return podOf({ containerId, args }) ?? shortId(containerId);
}

/** Order of such names: as people count, but for IDs, whose digits are no numbers. */
export function byName(a: string, b: string): number {
  const [one, other] = [a, b].map((name) => /^[\da-f]{12}$/.test(name));
  if (one !== other) return one ? -1 : 1;
  return one ? (a < b ? -1 : Number(a > b)) : natural(a, b);
}

/**
 * The container ID that a word stands for: an ID that is attached; the one whose name it is; the one long ID that
 * begins with it, by twelve digits or more; else the word itself.
 */
export function containerIdOf(word: string, folders: Folders): string {
  const all = attachmentsOf(folders);
  // An ID holds no slash.
  const isPod = word.includes("/");
  if (!isPod && all.some(({ containerId }) => containerId === word)) return word;
  const isCut = /^[\da-f]{12,}$/.test(word);
  const isMeant = (one: Named) =>
    podOf(one) === word || (isCut && digitsOf(one.containerId)?.startsWith(word) === true);
  const ids = [...new Set(all.filter(isMeant).map(({ containerId }) => containerId))];
  const [id] = ids;
  if (id === undefined && !isPod) return word;
  if (id === undefined) throw unknownContainer(word, all, { advice: [`looked in ${folders.cache}`] });
  if (ids.length === 1) return id;
  const what = isPod
    ? `pod "${word}" has ${ids.length} sandboxes`
    : isCut
    ? `"${word}" begins ${ids.length} IDs`
    : `${ids.length} containers are called "${word}"`;
  throw usageError(`${what} on this node`, ...ids.map((one) => `--id ${one}`));
}

/** Whose something is, for people: `shop/web-2 (eth0)`. */
export function ownerText(owner: Parameters<typeof nameOf>[0] & Pick<Partial<Attached>, "ifName">): string {
  return `${nameOf(owner) || "nobody"}${owner.ifName ? ` (${owner.ifName})` : ""}`;
}

/** The command that detaches it. Only an ID that some attachment has may be cut short. */
export function delCommand({ network, containerId, ifName }: Owner, { isKnown = true } = {}): string {
  const id = isKnown ? shortId(containerId) : containerId;
  return `cnibox del ${network} --id ${id}${ifName ? ` --ifname ${ifName}` : ""}`;
}

/** Nobody of that name is attached; says which name is like it. */
export function unknownContainer(
  word: string,
  known: readonly Named[],
  { advice = [], isPod = word.includes("/") }: { advice?: readonly string[]; isPod?: boolean } = {},
): CliError {
  const what = isPod ? "pod" : "container";
  return new CliError(`no attachment of ${what} "${word}" is known`, status.unknown, [
    ...didYouMean(word, known.flatMap((one) => [one.containerId, podOf(one) ?? []].flat())),
    ...advice,
  ]);
}

/** No network of that name is on this node; names those that are. */
export function unknownNetwork(word: string, known: readonly string[]): CliError {
  return new CliError(`there is no network "${word}" on this node`, status.unknown, [
    ...didYouMean(word, known),
    known.length > 0 ? `networks there: ${known.join(", ")}` : "no network is configured, attached to, or has leases",
  ]);
}
