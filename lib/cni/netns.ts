/** The container's namespace as a plugin opens it. */
import { oneWord } from "../kernel/batch.ts";
import { netnsState } from "../kernel/netns.ts";
import { internal } from "./error.ts";
import type { ContainerCall } from "./plugin.ts";

/**
 * Makes sure that CNI_NETNS is a network namespace, with the reference's texts if it is not. `doing` goes in front:
 * bridge says `failed to open netns "P": …`, loopback nothing.
 */
export function openNetns(
  { netns, podAlive }: { readonly netns: string; readonly podAlive?: boolean },
  doing = "",
): void {
  // Seen when the call was made.
  if (podAlive) return;
  const now = netnsState(netns);
  const isThere = now === "netns" || now === "own";
  if (isThere && podAlive === undefined) return;
  // What was not there when the call was made is not there for this call.
  const state = isThere ? "missing" : now;
  const front = doing === "" ? "" : `${doing}: `;
  if (state === "missing") {
    throw internal(
      `${front}failed to Statfs "${netns}": no such file or directory`,
      "CNI_NETNS names no network namespace: the container is gone, or was not started yet",
    );
  }
  throw internal(
    `${front}unknown FS magic on "${netns}": ${magicOf(netns)}`,
    "CNI_NETNS is a file or folder that is not a network namespace",
  );
}

/** Magic number of the file system, in hex as the reference prints it; only asked for on this way to an error. */
function magicOf(path: string): string {
  try {
    const { stdout } = new Deno.Command("stat", { args: ["-f", "-c", "%t", "--", path], stderr: "null" }).outputSync();
    return new TextDecoder().decode(stdout).trim();
  } catch {
    return "?";
  }
}

/**
 * The container's namespace as one word of a line of `ip`, with a slash in it, so that iproute2 takes it for a path and
 * not for a name.
 */
export function netnsWord({ netns, heldNetns }: Pick<ContainerCall, "netns" | "heldNetns">): string {
  if (heldNetns !== "") return heldNetns;
  return oneWord(netns.includes("/") ? netns : `./${netns}`);
}
