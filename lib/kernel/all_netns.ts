/** Every network namespace of this host: which addresses are in use, and where. */
import { type Command, CommandError, failureText, inNetns, must, type Run } from "./run.ts";

/** How many namespaces are asked at a time. */
const AT_ONCE = 8;

/**
 * Addresses of all network namespaces of this host, each with a path of a namespace that has it. Namespaces are found by the
 * processes in them and by the mounts that keep them, this process's and PID 1's.
 *
 * @throws {CommandError} when one of them cannot be asked: then nothing is known about an address that was not found
 */
export async function addressesInUse(host: Run): Promise<Map<string, string>> {
  const inUse = new Map<string, string>();
  let pending: readonly (readonly [ns: string, path: string])[] = [...await namespaces(host)];
  for (let round = 1;; round++) {
    const failed = await askAll(host, pending, inUse);
    if (failed.length === 0) return inUse;
    // A namespace whose last process ended meanwhile has no addresses any more. Of one that lives on, the process that led
    // to it may have ended: then there is another way.
    const still = await namespaces(host);
    pending = failed.flatMap(({ ns }) => {
      const path = still.get(ns);
      return path === undefined ? [] : [[ns, path] as const];
    });
    const stuck = failed.find(({ ns, path }) => still.get(ns) === path || (round === ROUNDS && still.has(ns)));
    if (stuck) throw stuck.error;
  }
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

/** Paths to the namespaces by their inode numbers. */
async function namespaces(host: Run): Promise<Map<string, string>> {
  const [byProcess, ...byMount] = await Promise.all([
    processes(host),
    mounts(host, []),
    mounts(host, ["-N", "1"]),
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
  return paths;
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
