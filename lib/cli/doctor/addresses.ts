/** `doctor` on addresses: full pools, blocks of other nodes, and leases that do not agree with what is in use. */
import { unseenText } from "../../kernel/all_netns.ts";
import { formatPrefix, parseAddress, prefixContains } from "../../net/cidr.ts";
import { gather, GONE, judge, type Pool, pools, useOf } from "../leases.ts";
import { attachmentsOf } from "../setup.ts";
import { type Line, type Node, ok } from "./finding.ts";

/**
 * Blocks of a cluster's pool that another node has by now: the store was restored from a backup, or somebody forgot
 * this node.
 */
function lostBlocks({ network, leases, share }: Pool): Line[] {
  return (share?.lost ?? []).map(({ block, holder }) => {
    const isIn = (ip: string) => {
      const address = parseAddress(ip);
      return address !== undefined && prefixContains(block, address);
    };
    const used = leases.map(({ ip }) => ip).filter(isIn);
    return {
      area: "addresses",
      grade: "warning",
      text: `network ${network}: block ${formatPrefix(block)} belongs to ${holder ?? "another node"} now`,
      breaks: used.length === 0 ? "" : `${used.join(", ")} may be given to others as well`,
      fix: "cnibox cluster check says whose it is; add the containers that have such an address again",
    };
  });
}

export async function addresses({ folders, host, root }: Node): Promise<Line[]> {
  const area = "addresses";
  if (!root) return [];
  const all = await pools(folders);
  const lines: Line[] = [];
  for (const pool of all) {
    for (const { range, taken, total, blocks } of useOf(pool)) {
      // A node takes a further block when its own are full.
      if (blocks !== undefined) continue;
      const full = BigInt(taken) >= total;
      if (!full && BigInt(taken) * 10n < total * 9n) continue;
      lines.push({
        area,
        grade: full ? "failure" : "warning",
        text: `network ${pool.network}: ${taken} of ${total} addresses of ${range} are taken`,
        breaks: full ? "no IP addresses available in range set" : "soon no container can be attached",
        fix: "cnibox ipam check finds those that nobody uses; else a larger subnet",
      });
    }
  }
  lines.push(...all.flatMap(lostBlocks));
  const evidence = await gather(attachmentsOf(folders), host);
  const { judged, unrecorded, duplicates } = judge(all, evidence);
  for (const one of evidence.unseen) {
    lines.push({
      area,
      grade: "warning",
      text: unseenText([one]),
      breaks: "whose address is not found elsewhere counts as alive, so less is released than could be",
    });
  }
  const owner = (id: string, ifName: string | undefined) => `${id || "nobody"}${ifName ? ` (${ifName})` : ""}`;
  for (const { pool, lease, state, evidence } of judged) {
    if (state === "alive" || state === "in use, unknown" || state === "not examined") continue;
    lines.push({
      area,
      grade: "warning",
      text: `${lease.ip} of ${owner(lease.containerId, lease.ifName)} on ${pool.network}: ${evidence}`,
      breaks: state === "idle" ? "the container has no network" : "the address is lost to others",
      fix: state === "idle"
        ? `cnibox del ${pool.network} --id ${lease.containerId}, then add it again`
        : state === "unknown"
        ? `cnibox ipam free ${lease.ip}`
        : `cnibox ipam repair ${pool.network}`,
      ...(GONE.includes(state) && { run: ["cnibox", "ipam", "repair", pool.network] }),
    });
  }
  for (const { pool, ip, attachment } of unrecorded) {
    lines.push({
      area,
      grade: "failure",
      text: `${ip} is used by ${
        owner(attachment.containerId, attachment.ifName)
      } on ${pool.network}, and no file says so`,
      breaks: "it can be given to a second container",
      fix: `cnibox ipam repair ${pool.network}`,
      run: ["cnibox", "ipam", "repair", pool.network],
    });
  }
  for (const list of duplicates) {
    lines.push({
      area,
      grade: "failure",
      text: `${list[0]?.ip} is held by ${
        list.map(({ containerId, pool }) => `${containerId} on ${pool.network}`).join(" and ")
      }`,
      breaks: "both answer to it",
      fix: "delete and add one of them again",
    });
  }
  if (lines.length === 0 && all.length > 0) {
    lines.push(
      ok(
        area,
        `${judged.length} ${judged.length === 1 ? "address" : "addresses"} taken, every one with a living owner`,
      ),
    );
  }
  return lines;
}
