/**
 * Names that people have for attachments: pods of Kubernetes, IDs cut short; and what such a word on the command line
 * means.
 */
import type { Attached } from "../cni/result_cache.ts";
import { CliError, didYouMean, status, usageError } from "./command.ts";
import { attachmentsOf, type Folders } from "./setup.ts";
import { natural } from "./terminal.ts";

/** Network, container and interface: whose something is. One that names no interface is all of the container's. */
export type Owner = Pick<Attached, "network" | "containerId"> & Partial<Pick<Attached, "ifName">>;

type Named = Pick<Attached, "containerId" | "args">;

/**
 * `NAMESPACE/NAME` of the pod that an attachment is for, as its runtime said; undefined when it said nothing of a pod.
 */
export function podOf({ args }: Pick<Attached, "args">): string | undefined {
  const value = (wanted: string) => args.findLast(([key]) => key === wanted)?.[1];
  const [namespace, name] = [value("K8S_POD_NAMESPACE"), value("K8S_POD_NAME")];
  return namespace === undefined || name === undefined ? name : `${namespace}/${name}`;
}

/** IDs are 64 digits long; the first twelve tell them apart. */
export function shortId(id: string): string {
  return LONG_ID.test(id) ? id.slice(0, 12) : id;
}

const LONG_ID = /^[\da-f]{32,}$/;

/** What people call a container: its pod, where the runtime said which one it is, else its ID cut short. */
export function nameOf({ containerId, args = [] }: Pick<Attached, "containerId"> & Partial<Named>): string {
  return podOf({ args }) ?? shortId(containerId);
}

/** Order of such names: as people count, but for IDs, whose digits are no numbers. */
export function byName(a: string, b: string): number {
  const [one, other] = [a, b].map((name) => /^[\da-f]{12}$/.test(name));
  if (one !== other) return one ? -1 : 1;
  return one ? (a < b ? -1 : Number(a > b)) : natural(a, b);
}

/**
 * The container ID that a word stands for: `NAMESPACE/POD` is that of the pod's attachment, twelve digits or more that
 * one long ID begins with are that one, anything else is an ID.
 */
export function containerIdOf(word: string, folders: Folders): string {
  // An ID holds no slash, so nothing can be both.
  const isPod = word.includes("/");
  if (!isPod && !/^[\da-f]{12,}$/.test(word)) return word;
  const all = attachmentsOf(folders);
  if (!isPod && all.some(({ containerId }) => containerId === word)) return word;
  const isMeant = (one: Named) =>
    isPod ? podOf(one) === word : LONG_ID.test(one.containerId) && one.containerId.startsWith(word);
  const ids = [...new Set(all.filter(isMeant).map(({ containerId }) => containerId))];
  const [id] = ids;
  if (id === undefined && !isPod) return word;
  if (id === undefined) throw unknownContainer(word, all, { advice: [`looked in ${folders.cache}`] });
  if (ids.length === 1) return id;
  const what = isPod ? `pod "${word}" has ${ids.length} sandboxes` : `"${word}" begins ${ids.length} IDs`;
  throw usageError(`${what} on this node`, ...ids.map((one) => `--id ${one}`));
}

/** Whose something is, for people: `shop/web-2 (eth0)`. */
export function ownerText(owner: Parameters<typeof nameOf>[0] & Pick<Partial<Attached>, "ifName">): string {
  return `${nameOf(owner) || "nobody"}${owner.ifName ? ` (${owner.ifName})` : ""}`;
}

/** The command that detaches it. */
export function delCommand({ network, containerId, ifName }: Owner): string {
  return `cnibox del ${network} --id ${shortId(containerId)}${ifName ? ` --ifname ${ifName}` : ""}`;
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
