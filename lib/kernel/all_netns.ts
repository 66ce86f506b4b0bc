/** Every network namespace of this host: which addresses are in use, and where. */
import { type Command, CommandError, failureText, inNetns, must, type Run } from "./run.ts";

/** How many namespaces are asked at a time. */
const AT_ONCE = 8;

/** What is known of the addresses of this host's namespaces. */
export interface AddressSurvey {
  /** Addresses that were found, each with a path of a namespace that has it. */
  readonly inUse: ReadonlyMap<string, string>;
  /** What could not be looked at: as long as there is any, an address that was not found may be in use all the same. */
  readonly unseen: readonly Unseen[];
}

/** A namespace, or a listing of namespaces, that could not be looked at. */
export interface Unseen {
  /** Inode number of the namespace; "" where a whole listing failed. */
  readonly ns: string;
  /** Path of the namespace, or what would have been listed. */
  readonly path: string;
  readonly reason: string;
}

/** One clause about what could not be looked at, for people; "" when everything could. */
export function unseenText(unseen: readonly Unseen[]): string {
  return unseen.map(({ path, reason }) => `${path} could not be looked at: ${reason}`).join("; ");
}

/**
 * Addresses of all network namespaces of this host. Namespaces are found by the processes in them and by the mounts
 * that keep them, this process's and PID 1's. One that cannot be asked is named in the answer; what the others have is
 * kept.
 */
export async function addressesInUse(host: Run): Promise<AddressSurvey> {
  const inUse = new Map<string, string>();
  const first = await namespaces(host);
  let pending: readonly (readonly [ns: string, path: string])[] = [...first.paths];
  for (let round = 1;; round++) {
    const failed = await askAll(host, pending, inUse);
    if (failed.length === 0) return { inUse, unseen: first.unseen };
    // A namespace whose last process ended meanwhile has no addresses any more. Of one that lives on, the process that
    // led to it may have ended: then there is another way.
    const again = await namespaces(host);
    const lives = ({ ns }: Failed) => again.paths.has(ns) || again.unseen.length > 0;
    const isStuck = (one: Failed) =>
      round === ROUNDS || !again.paths.has(one.ns) || again.paths.get(one.ns) === one.path;
    const alive = failed.filter(lives);
    const stuck = alive.filter(isStuck);
    pending = alive.filter((one) => !isStuck(one)).map(({ ns }) => [ns, again.paths.get(ns) ?? ""] as const);
    first.unseen.push(...stuck.map(({ ns, path, error }) => ({ ns, path, reason: reasonOf(error) })));
  }
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** How often a namespace is looked for by another way. */
const ROUNDS = 3;

interface Failed {
  readonly ns: string;
  readonly path: string;
  readonly error: unknown;
}

/** Asks namespaces for their addresses; returns those that could not be asked. */
async function askAll(
  host: Run,
  namespaces: readonly (readonly [ns: string, path: string])[],
  inUse: Map<string, string>,
): Promise<Failed[]> {
  const pending = [...namespaces];
  const failed: Failed[] = [];
  const worker = async () => {
    for (let next = pending.shift(); next !== undefined; next = pending.shift()) {
      const [ns, path] = next;
      try {
        for (const ip of await addressesIn(inNetns(host, path))) inUse.set(ip, path);
      } catch (error) {
        failed.push({ ns, path, error });
      }
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  return failed;
}

/** Paths to the namespaces by their inode numbers, and the listings that failed. */
async function namespaces(host: Run): Promise<{ paths: Map<string, string>; unseen: Unseen[] }> {
  const unseen: Unseen[] = [];
  const listed = (what: string, listing: Promise<string>) =>
    listing.catch((error) => {
      unseen.push({ ns: "", path: what, reason: reasonOf(error) });
      return "";
    });
  const [byProcess, ...byMount] = await Promise.all([
    listed("the namespaces of processes", processes(host)),
    listed("the mounted namespaces", mounts(host, [])),
    listed("the namespaces that PID 1 has mounted", mounts(host, ["-N", "1"])),
  ]);
  const paths = new Map<string, string>();
  for (const [index, listed] of byMount.entries()) {
    for (const line of listed.split("\n")) {
      // /run/netns/t1 nsfs[net:[4026532248]]
      const [, target, ns] = /^(\S+) \S*net:\[(\d+)\]/.exec(line) ?? [];
      if (target !== undefined && ns !== undefined) {
        paths.set(ns, (index === 0 ? "" : "/proc/1/root") + unescape(target));
      }
    }
  }
  for (const line of byProcess.split("\n")) {
    const [, ns, pid] = /^\s*(\d+)\s+(\d+)\s*$/.exec(line) ?? [];
    if (ns !== undefined && pid !== undefined) paths.set(ns, `/proc/${pid}/ns/net`);
  }
  return { paths, unseen };
}

/** Namespaces by the processes in them, one line each. */
async function processes(host: Run): Promise<string> {
  const command: Command = { argv: ["lsns", "-n", "-r", "-t", "net", "-o", "NS,PID"] };
  for (let listing = 1;; listing++) {
    const output = await host(command);
    if (output.code === 0) return output.stdout;
    // A process that ends while lsns reads about it makes the whole listing fail, without a word (util-linux 2.38).
    const silent = output.code === 1 && output.stdout === "" && output.stderr === "";
    if (!silent || listing === LISTINGS) throw new CommandError(command, output, failureText(output));
  }
}

/** How often processes are listed at most; on a busy node one listing in a hundred fails. */
const LISTINGS = 5;

/** Mounts of namespaces, one line each; findmnt exits with 1 when there are none. */
async function mounts(host: Run, of: readonly string[]): Promise<string> {
  const command: Command = { argv: ["findmnt", "-n", "-r", ...of, "-t", "nsfs", "-o", "TARGET,SOURCE"] };
  const output = await host(command);
  if (output.code > 1 || (output.code === 1 && output.stderr.trim() !== "")) {
    throw new CommandError(command, output, output.stderr.trim());
  }
  return output.stdout;
}

/** findmnt's raw output writes blanks and the like as \x20. */
function unescape(text: string): string {
  return text.replace(/\\x([0-9a-f]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
}

async function addressesIn(pod: Run): Promise<string[]> {
  const links = JSON.parse(await must(pod, { argv: ["ip", "-j", "address", "show"] })) as {
    addr_info?: { local?: string }[];
  }[];
  return links.flatMap((link) => link.addr_info ?? []).flatMap(({ local }) => local === undefined ? [] : [local]);
}
