/** Network namespaces as files: is it one, and is it ours? */
import { fileIdentity } from "./proc.ts";

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
  const ours = ownNetns();
  if (ours === undefined) return "netns";
  if (info.dev !== ours.dev) return "not a namespace";
  return info.ino === ours.ino ? "own" : "netns";
}
