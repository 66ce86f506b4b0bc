/** `doctor` on addresses: full pools, blocks of other nodes, and leases that do not agree with what is in use. */
import { unseenText } from "../../kernel/all_netns.ts";
import { formatPrefix } from "../../net/cidr.ts";
import { GONE, isIn, type Judged, type Judgement, type Pool, type State, useOf } from "../leases.ts";
import { delCommand, nameOf, ownerText } from "../owner_names.ts";
import { type Case, findings, type Line, type Node, ofKind } from "./finding.ts";

const { ok, warning, failure } = findings("addresses");

/**
 * Blocks of a cluster's pool that another node has by now: the store was restored from a backup, or somebody forgot
 * this node.
 */
function lostBlocks(all: readonly Pool[]): Line[] {
  const lost = all.flatMap(({ network, leases, share }) =>
    (share?.lost ?? []).map(({ block, holder }) => ({ network, leases, block, holder }))
  );
  const used = lost.flatMap(({ leases, block }) => leases.map(({ ip }) => ip).filter((ip) => isIn(block, ip)));
  return ofKind(
    warning(`${lost.length} blocks belong to other nodes now`, {
      breaks: used.length === 0 ? "" : `${used.join(", ")} may be given to others as well`,
    }),
    lost.map(({ network, block, holder }) => ({
      text: `network ${network}: block ${formatPrefix(block)} belongs to ${holder ?? "another node"} now`,
      fix: "cnibox cluster check says whose it is; add the containers that have such an address again",
      network,
    })),
  );
}

/** Ranges with few addresses left. A cluster's node takes a further block when its own are full. */
function fullRanges(all: readonly Pool[]): Line[] {
  const uses = all.flatMap((pool) => useOf(pool).map((use) => ({ network: pool.network, ...use })));
  return uses.filter(({ taken, total, blocks }) => blocks === undefined && BigInt(taken) * 10n >= total * 9n).map(
    ({ network, range, taken, total }) => {
      const isFull = BigInt(taken) >= total;
      return (isFull ? failure : warning)(`network ${network}: ${taken} of ${total} addresses of ${range} are taken`, {
        breaks: isFull ? "no IP addresses available in range set" : "soon no container can be attached",
        fix: "cnibox ipam check finds those that nobody uses; else a larger subnet",
      });
    },
  );
}

type Leak = Exclude<State, "alive">;

/** What is wrong with several leases of a state. */
const LEASES: Readonly<Record<Leak, string>> = {
  "idle": "addresses are on no interface of the living containers that hold them",
  "netns gone": "addresses are held by containers whose namespace is gone",
  "before boot": "addresses are held since before this boot, and nobody uses them",
  "unknown": "addresses are held by containers that nobody knows",
  "empty": "files of addresses are empty",
  "in use, unknown": "addresses are in use by containers that no runtime's cache knows",
  "not examined": "addresses could not be examined",
};

/** States that may be as they should be: only who asks about addresses wants to know of them. */
const UNCERTAIN: readonly State[] = ["in use, unknown", "not examined"];

/** Leases without a living owner who has the address: a finding for each state. `list` is as for `ofKind`. */
export function leaks(judged: readonly Judged[], list?: string): Line[] {
  return (Object.keys(LEASES) as Leak[]).flatMap((state) => {
    const own = judged.filter((one) => one.state === state);
    return ofKind(
      warning(`${own.length} ${LEASES[state]}`, {
        breaks: state === "idle" ? "containers have no network" : "fewer addresses for other containers",
        ...(GONE.includes(state) && { run: repair(own) }),
      }),
      own.map(caseOf),
      list,
    );
  });
}

function caseOf({ pool: { network }, lease, state, evidence, attachment }: Judged): Case {
  const { ip, containerId, ifName } = lease;
  return {
    text: `${ip} of ${ownerText({ ...attachment, containerId, ifName })} on ${network}: ${evidence}`,
    fix: UNCERTAIN.includes(state)
      ? ""
      : state === "idle"
      ? `${delCommand({ network, containerId, ifName })}, then add it again`
      : state === "unknown"
      ? `cnibox ipam free ${ip} --network ${network}`
      : `cnibox ipam repair ${network}`,
    network,
    containerId,
    ...(ifName !== undefined && { ifName }),
    address: ip,
  };
}

/** Repairs the network of these, or all when there are several. */
function repair(of: readonly { readonly pool: Pool }[]): string[] {
  const [network = "", ...others] = new Set(of.map(({ pool }) => pool.network));
  return ["cnibox", "ipam", "repair", others.length === 0 ? network : "--all", "--yes"];
}

/** Addresses that are used and not recorded, or held by several. `list` is as for `ofKind`. */
export function conflicts({ unrecorded, duplicates }: Omit<Judgement, "judged">, list?: string): Line[] {
  return [
    ...ofKind(
      failure(`${unrecorded.length} addresses are used by containers, and no file says so`, {
        breaks: "they can be given to a second container",
        run: repair(unrecorded),
      }),
      unrecorded.map(({ pool: { network }, ip, attachment }) => ({
        text: `${ip} is used by ${ownerText(attachment)} on ${network}, and no file says so`,
        fix: `cnibox ipam repair ${network}`,
        network,
        containerId: attachment.containerId,
        ifName: attachment.ifName,
        address: ip,
      })),
      list,
    ),
    ...ofKind(
      failure(`${duplicates.length} addresses are held by several containers each`, {
        breaks: "all of them answer to it",
      }),
      duplicates.map((claims) => ({
        text: `${claims[0]?.ip} is held by ${claims.map((one) => `${nameOf(one)} on ${one.network}`).join(" and ")}`,
        fix: "delete and add one of them again",
        ...(claims[0] && { address: claims[0].ip }),
      })),
      list,
    ),
  ];
}

export function addresses({ seen: { views, pools, judgement, unseen }, root }: Pick<Node, "seen" | "root">): Line[] {
  if (!root) return [];
  const lines = [
    ...fullRanges(pools),
    ...lostBlocks(pools),
    ...ofKind(
      warning(`${unseen.length} namespaces could not be looked at`, {
        breaks: "an address that is not found elsewhere counts as alive, so less is released than could be",
      }),
      unseen.map((one) => ({ text: unseenText([one]) })),
    ),
    // Of a container that lacks its interface or address, its attachment tells.
    ...leaks(
      judgement.judged.filter(({ state, attachment }) =>
        !UNCERTAIN.includes(state) &&
        (state !== "idle" || !views.some(({ cached, problems }) => cached === attachment && problems.length > 0))
      ),
    ),
    ...conflicts(judgement),
  ];
  const { length } = judgement.judged;
  if (lines.length > 0 || pools.length === 0) return lines;
  return [ok(`${length} ${length === 1 ? "address" : "addresses"} taken, every one with a living owner`)];
}
