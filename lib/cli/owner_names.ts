/**
 * Names that people have for attachments: pods of Kubernetes, IDs cut short; and what such a word on the command line
 * means.
 */
import type { Attached } from "../cni/result_cache.ts";
import { CliError, didYouMean, status, usageError } from "./command.ts";
import { attachmentsOf, type Folders } from "./setup.ts";

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
  return /^[\da-f]{32,}$/.test(id) ? id.slice(0, 12) : id;
}

/** The container ID that a word stands for: `NAMESPACE/POD` is that of the pod's attachment, anything else an ID. */
export function containerIdOf(word: string, folders: Folders): string {
  // An ID holds no slash, so nothing can be both.
  if (!word.includes("/")) return word;
  const all = attachmentsOf(folders);
  const ids = [...new Set(all.filter((one) => podOf(one) === word).map(({ containerId }) => containerId))];
  const [id] = ids;
  if (id === undefined) throw unknownContainer(word, all, { advice: [`looked in ${folders.cache}`] });
  if (ids.length === 1) return id;
  throw usageError(`pod "${word}" has ${ids.length} sandboxes on this node`, ...ids.map((one) => `--id ${one}`));
}

/** The command that detaches it. */
export function delCommand({ network, containerId, ifName }: Owner): string {
  return `cnibox del ${network} --id ${containerId}${ifName ? ` --ifname ${ifName}` : ""}`;
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
