/**
 * Leases that nobody will release: their container went with a crash or a reboot, and its DEL never came.
 *
 * @module
 */
import { surveyNetns, unseenText } from "../kernel/all_netns.ts";
import { namesOf } from "../kernel/regular_file.ts";
import type { Run } from "../kernel/run.ts";
import { bootTime } from "./lease_index.ts";
import { type Lease, RESULTS_FOLDER } from "./store.ts";

/** What is known about leases whose containers may be dead. */
export interface Verdict {
  /** Dead beyond doubt: may be taken. */
  readonly dead: readonly Lease[];
  /** Older than this boot and unknown to the runtimes, but in use, or nobody could tell. */
  readonly suspects: readonly Lease[];
  /** Why nothing could be proved; "" when it could. */
  readonly reason: string;
}

/** What the proof needs to look at. */
export interface ProofOptions {
  readonly host: Run;
  /** Folders of the runtimes' cached results; {@linkcode RESULTS_FOLDER} if absent. */
  readonly resultsFolders?: readonly string[] | undefined;
}

/**
 * Sorts out the leases that are provably dead: written before this host booted, so that the container's kernel state is
 * gone; in no network namespace of the host; and of a container that no runtime's cache knows, so that no DEL is to
 * come. All three, since each alone can lie: clocks are set, containers are restored, caches are moved.
 */
export async function findDead(leases: readonly Lease[], { host, resultsFolders }: ProofOptions): Promise<Verdict> {
  // Boot time is known to the second.
  const boot = bootTime() - 2000;
  const old = leases.filter(({ containerId, written }) => containerId !== "" && written.getTime() < boot);
  if (old.length === 0) return { dead: [], suspects: [], reason: "" };
  let suspects = old;
  try {
    const cached = cachedContainers(resultsFolders ?? [RESULTS_FOLDER]);
    suspects = old.filter(({ containerId }) => !cached.has(containerId));
    if (suspects.length === 0) return { dead: [], suspects, reason: "" };
    const { inUse, unseen } = await surveyNetns(host);
    if (unseen.length > 0) return { dead: [], suspects, reason: unseenText(unseen) };
    const dead = suspects.filter(({ ip }) => !inUse.has(ip));
    return { dead, suspects: suspects.filter(({ ip }) => inUse.has(ip)), reason: "" };
  } catch (error) {
    return { dead: [], suspects, reason: (error as Error).message };
  }
}

/**
 * Container IDs that the file names can mean. A name is network, ID and interface joined by dashes, each of which may
 * hold dashes itself: so every run of parts between the first and the last counts as an ID.
 */
function cachedContainers(folders: readonly string[]): Set<string> {
  const ids = new Set<string>();
  for (const folder of folders) {
    for (const name of namesOf(folder)) {
      const parts = name.split("-");
      for (let from = 1; from < parts.length - 1; from++) {
        for (let to = from + 1; to < parts.length; to++) ids.add(parts.slice(from, to).join("-"));
      }
    }
  }
  return ids;
}
