/** Every network namespace of this host: its links, and which addresses are in use where. */
import { answersOf } from "./batch.ts";
import { each } from "./each.ts";
import type { Link } from "./ip.ts";
import { type Command, CommandError, failureText, must, type Run } from "./run.ts";

/** How many processes ask at a time, and how many namespaces each of them asks, one after the other. */
const AT_ONCE = 8;
const EACH = { least: 4, most: 32 };

/** What is known of this host's namespaces. */
export interface NetnsSurvey {
  /** Links with their addresses and details, by the namespaces' inode numbers. */
  readonly links: ReadonlyMap<string, readonly Link[]>;
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
 * Asks all network namespaces of this host. They are found by the processes in them and by the mounts that keep them,
 * this process's and PID 1's; `also` names others by inode number and path. One that cannot be asked is named in the
 * answer; what the others have is kept.
 */
export async function surveyNetns(host: Run, also: ReadonlyMap<string, string> = new Map()): Promise<NetnsSurvey> {
  const links = new Map<string, readonly Link[]>();
  const inUse = new Map<string, string>();
  const first = await namespaces(host);
  let pending: readonly (readonly [ns: string, path: string])[] = [...new Map([...also, ...first.paths])];
  for (let round = 1;; round++) {
    const failed: Unseen[] = [];
    for (const answer of await askAll(host, pending)) {
      if ("reason" in answer) {
        failed.push(answer);
        continue;
      }
      links.set(answer.ns, answer.links);
      for (const ip of answer.links.flatMap(addressesOf)) inUse.set(ip, answer.path);
    }
    if (failed.length === 0) return { links, inUse, unseen: first.unseen };
    // A namespace whose last process ended meanwhile has no addresses any more. Of one that lives on, the process that
    // led to it may have ended: then there is another way.
    const again = await namespaces(host);
    const lives = ({ ns }: Unseen) => again.paths.has(ns) || again.unseen.length > 0;
    const isStuck = (one: Unseen) =>
      round === ROUNDS || !again.paths.has(one.ns) || again.paths.get(one.ns) === one.path;
    const alive = failed.filter(lives);
    first.unseen.push(...alive.filter(isStuck));
    pending = alive.filter((one) => !isStuck(one)).map(({ ns }) => [ns, again.paths.get(ns) ?? ""] as const);
  }
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** How often a namespace is looked for by another way. */
const ROUNDS = 3;

type Answer = Unseen | { readonly ns: string; readonly path: string; readonly links: readonly Link[] };

/** Asks namespaces for their links: a few processes, each of which asks some of them in turn. */
async function askAll(host: Run, namespaces: readonly (readonly [ns: string, path: string])[]): Promise<Answer[]> {
  const count = Math.min(EACH.most, Math.max(EACH.least, Math.ceil(namespaces.length / AT_ONCE)));
  const parts: (typeof namespaces)[] = [];
  for (let from = 0; from < namespaces.length; from += count) parts.push(namespaces.slice(from, from + count));
  const answers: Answer[] = [];
  await each(parts, AT_ONCE, async (part) => void answers.push(...await askSome(host, part)));
  return answers;
}

/** Asks for links with their addresses and details. */
const IP = ["ip", "-j", "-d", "address", "show"];

/** Constant text for sh: the links of each namespace, or what went wrong, then a line with the status. */
const ASK = `for ns do nsenter --net="$ns" -- ${IP.join(" ")} 2>&1; code=$?
[ $code -ne 127 ] || exit 127; printf '\nstatus %s\n' $code; done`;

async function askSome(host: Run, namespaces: readonly (readonly [ns: string, path: string])[]): Promise<Answer[]> {
  let texts: readonly string[] = [];
  let trouble = "no answer";
  try {
    const argv = ["sh", "-c", ASK, "sh", ...namespaces.map(([, path]) => path)];
    // Whoever owns a namespace names its links, but a line break in a name is escaped there.
    texts = (await must(host, { argv, question: true })).split(/^status (\d+)$/m);
  } catch (error) {
    trouble = reasonOf(error);
  }
  const isWhole = texts.length === 2 * namespaces.length + 1;
  return namespaces.map(([ns, path], at) => {
    const [text = "", code] = isWhole ? texts.slice(2 * at, 2 * at + 2) : [];
    if (code !== "0") return { ns, path, reason: text.trim() || trouble };
    try {
      const [links] = answersOf<Link>(text);
      return links ? { ns, path, links } : { ns, path, reason: text.trim() || trouble };
    } catch (error) {
      return { ns, path, reason: reasonOf(error) };
    }
  });
}

const addressesOf = ({ addr_info = [] }: Link) => addr_info.flatMap(({ local }) => local === undefined ? [] : [local]);

/** Links of a namespace, with their addresses and details. Throws when they cannot be listed. */
export async function linksIn(run: Run): Promise<Link[]> {
  return answersOf<Link>(await must(run, { argv: IP })).flat();
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
