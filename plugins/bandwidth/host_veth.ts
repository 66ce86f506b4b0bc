/** The host's end of a container's veth pair, found from inside the container and confirmed by the previous result. */
import { goQuote, internal } from "../../lib/cni/error.ts";
import type { ContainerCall } from "../../lib/cni/plugin.ts";
import type { Result } from "../../lib/cni/types.ts";
import { runLines } from "../../lib/kernel/batch.ts";
import { type Link, linkShow } from "../../lib/kernel/ip.ts";
import { must, type Run } from "../../lib/kernel/run.ts";
import { linkNow } from "../../lib/link/container_link.ts";
import { isLinkName } from "../../lib/net/link_name.ts";

/** Links of these names in one place, as far as they are there: one process. */
export async function linksNow(run: Run, names: readonly string[]): Promise<Map<string, Link>> {
  const links = new Map<string, Link>();
  if (names.length === 0) return links;
  // One that is missing must not end the others: -force.
  const { stdout } = await runLines(run, ["ip", "-j", "-d", "-force"], names.map(linkShow));
  for (const line of stdout.split("\n").filter((line) => line.startsWith("["))) {
    for (const link of JSON.parse(line) as Link[]) if (link.ifname) links.set(link.ifname, link);
  }
  return links;
}

/** What {@linkcode hostVeth} found. */
export interface HostVeth {
  /** The host's end. */
  readonly veth: Link;
  /** The links that were asked for beside it, by name. */
  readonly links: ReadonlyMap<string, Link>;
}

/**
 * Finds the host's end of the container's interface, and looks at other host links on the way: two processes side by
 * side. Throws the reference's words when the interface is none of a veth pair, or when the previous result does not
 * know its other end.
 */
export async function hostVeth(call: ContainerCall, { interfaces = [] }: Result, others: string[]): Promise<HostVeth> {
  if (interfaces.length === 0) {
    throw internal("no interfaces provided", "prevResult names no interface");
  }
  const names = interfaces.filter((one) => !one.sandbox && isLinkName(one.name)).map((one) => one.name);
  const [inside, links] = await Promise.all([
    linkNow(call, "pod", call.ifName),
    linksNow(call.host, [...new Set([...others, ...names])]),
  ]);
  const index = peerIndex(call, inside);
  const veth = names.map((name) => links.get(name)).find((one) =>
    one?.ifindex === index && one.linkinfo?.info_kind === "veth" &&
    // The number alone could be that of another link, when the other end lives in a third namespace.
    (one.link_index === undefined || one.link_index === inside?.ifindex)
  );
  if (veth) return { veth, links };
  const all = JSON.parse(await must(call.host, { argv: ["ip", "-j", "-d", "link", "show"] })) as Link[];
  const there = all.find((one) => one.ifindex === index && one.link_index === inside?.ifindex);
  throw internal(
    there ? "no veth peer of container interface found in host ns" : `veth peer with index ${index} is not in host ns`,
    there
      ? `the other end of ${call.ifName} is ${there.ifname}, but prevResult knows ${names.join(", ") || "no host link"}`
      : `the other end of ${call.ifName} is in another network namespace`,
  );
}

function peerIndex({ ifName, netns }: ContainerCall, link: Link | undefined): number {
  const front = `container interface ${ifName} has no veth peer: `;
  if (!link) throw internal(`${front}could not look up ${goQuote(ifName)}: Link not found`, netns);
  const kind = link.linkinfo?.info_kind;
  if (kind !== "veth") {
    throw internal(
      `${front}interface ${goQuote(ifName)} was not a veth interface`,
      `it is ${
        kind ? `a ${kind} link` : "no virtual link"
      }; only veth pairs, as bridge and ptp make them, can be limited`,
    );
  }
  // The other end in the same namespace is shown by its name.
  return link.link_index ?? 0;
}
