/** Network namespaces as files: is it one, and is it ours? */
import { fileIdentity } from "./proc.ts";
import { namesOf } from "./regular_file.ts";

/** What a path that should be a network namespace turned out to be. */
export type NetnsState = "netns" | "own" | "missing" | "not a namespace";

let own: { dev: number; ino: number | null } | undefined;

/** Device and inode of this process's own network namespace; undefined without /proc. */
function ownNetns(): { dev: number; ino: number | null } | undefined {
  try {
    own ??= fileIdentity("/proc/self/ns/net");
  } catch {
    // Without /proc nothing can be compared.
  }
  return own;
}

/**
 * Looks at a path without entering it. All namespaces live on one file system (nsfs), so device numbers tell whether a
 * file is a namespace at all; which kind of namespace it is, nsenter finds out.
 */
export function netnsState(path: string): NetnsState {
  if (path === "") return "missing";
  let info: { dev: number; ino: number | null };
  try {
    info = fileIdentity(path);
  } catch (error) {
    return error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory
      ? "missing"
      : "not a namespace";
  }
  return stateOf(info);
}

function stateOf(info: { dev: number; ino: number | null }): NetnsState {
  const ours = ownNetns();
  if (ours === undefined) return "netns";
  if (info.dev !== ours.dev) return "not a namespace";
  return info.ino === ours.ino ? "own" : "netns";
}

/** A namespace that was looked up once: whatever its path leads to later, this is the one. */
export interface HeldNetns {
  readonly state: NetnsState;
  /** A path for tools that leads there as long as it is held; "" when there is none. */
  readonly path: string;
  close(): void;
}

/**
 * Opens a network namespace, so that every tool gets the same one: a path may lead somewhere else each time that it is
 * looked up. Without /proc nobody can be handed what is open here, nor can our own namespace be told from others: then
 * `path` is "".
 */
export function holdNetns(path: string): HeldNetns {
  const nothing = (state: NetnsState): HeldNetns => ({ state, path: "", close: () => {} });
  // Only what is a namespace is opened: to open something else may take for ever, or set something off.
  const seen = netnsState(path);
  if (seen !== "netns" && seen !== "own") return nothing(seen);
  let file: Deno.FsFile;
  try {
    file = Deno.openSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return nothing("missing");
    throw error;
  }
  let number: number | undefined;
  let state: NetnsState;
  try {
    const { dev, ino } = file.statSync();
    state = stateOf({ dev, ino });
    number = state === "not a namespace" ? undefined : descriptor({ dev, ino });
  } finally {
    if (number === undefined) file.close();
  }
  if (number === undefined) return nothing(state);
  return { state, path: `${ownFolder()}/fd/${number}`, close: () => file.close() };
}

/** Number of a descriptor of this process that is open on this file. Undefined where /proc does not tell. */
function descriptor({ dev, ino }: { dev: number; ino: number | null }): number | undefined {
  // The newest is that of the listing itself, which is closed by now; the one before it is most likely ours.
  const numbers = namesOf("/proc/self/fd").map(Number).sort((a, b) => b - a);
  const [newest = 0, ...others] = numbers;
  return [...others, newest].find((number) => {
    try {
      const info = Deno.statSync(`/proc/self/fd/${number}`);
      return info.dev === dev && info.ino === ino;
    } catch {
      return false;
    }
  });
}

/** This process's folder below /proc, by the number that it has there: /proc may be that of another PID namespace. */
const ownFolder = () => `/proc/${Deno.readLinkSync("/proc/self")}`;
