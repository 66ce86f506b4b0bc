/** The container's namespace as a plugin opens it. */
import { netnsState } from "../kernel/netns.ts";
import { CniError, code } from "./error.ts";
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
    throw new CniError(
      code.internal,
      `${front}failed to Statfs "${netns}": no such file or directory`,
      "CNI_NETNS names no network namespace: the container is gone, or was not started yet",
    );
  }
  throw new CniError(
    code.internal,
    `${front}unknown FS magic on "${netns}": ${magicOf(netns)}`,
    "CNI_NETNS is a file or folder that is no network namespace",
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
 * The container's namespace as one word of an `ip -batch` line, with a slash in it, so that iproute2 takes it for a path and not for
 * a name. Throws for a path that cannot be written there.
 */
export function netnsWord({ netns, heldNetns }: Pick<ContainerCall, "netns" | "heldNetns">): string {
  if (heldNetns !== "") return heldNetns;
  const path = netns.includes("/") ? netns : `./${netns}`;
  // deno-lint-ignore no-control-regex
  if (/^[^\s'"#\\\0-\x1f\x7f-\x9f]+$/.test(path)) return path;
  const quote = path.includes("'") ? '"' : "'";
  // A batch line ends at a line feed or "#", and a backslash may join it with the next, in quotes too.
  if (!path.includes(quote) && !/[#\\\p{Cc}]/u.test(path)) return `${quote}${path}${quote}`;
  throw new CniError(
    code.environment,
    `failed to open netns "${netns}": the path has characters that iproute2 cannot be told`,
    'CNI_NETNS may not hold line feeds, "#", backslashes, or both kinds of quotes',
  );
}
