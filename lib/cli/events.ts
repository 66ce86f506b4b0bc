/**
 * `cnibox events`: a line for each attachment that comes or goes, from the runtimes' cache, the leases and the kernel's
 * links.
 */
import { loadAll } from "../cni/conflist.ts";
import type { Cached } from "../cni/result_cache.ts";
import { exists } from "../kernel/regular_file.ts";
import { systemRun, toolPath } from "../kernel/run.ts";
import { type CommandCall, status, usageError } from "./command.ts";
import { addressesOf, pools } from "./leases.ts";
import { linksIn } from "../kernel/all_netns.ts";
import { podOf, shortId, unknownNetwork } from "./owner_names.ts";
import { attachmentsOf, type Folders, foldersOf } from "./setup.ts";
import { ownerByAlias } from "./survey.ts";
import { jsonLine, natural, oneLine, painter, say } from "./terminal.ts";

/** Where an attachment is known from. */
type Source = "cache" | "lease" | "link";

/** An attachment as far as it is known. */
interface Known {
  readonly network: string;
  readonly containerId: string;
  readonly ifName: string;
  readonly pod?: string | undefined;
  readonly netns?: string | undefined;
  readonly addresses: readonly string[];
  readonly sources: readonly Source[];
}

/** What came or went. */
interface Event extends Known {
  readonly time: string;
  readonly event: "attached" | "detached";
}

/** Changes come in groups; what belongs to one ADD is told together. In milliseconds. */
const SETTLE_MS = 200;
/** However busy the node is, nothing is told later than this. */
const LATEST_MS = 1_000;
/** Folders that come into being are found this often. */
const LOOK_MS = 2_000;

/** `cnibox events [NETWORK]` */
export async function events(call: CommandCall): Promise<number> {
  const folders = foldersOf(call);
  const network = call.arg("NETWORK");
  let left = countOf(call);
  let leaseFolders: readonly string[] = [];
  using changes = new Changes(() => [folders.conf, folders.cache, folders.data, ...leaseFolders]);
  let before: ReadonlyMap<string, Known> | undefined;
  for (;;) {
    const { known, folders: found } = await look(folders);
    leaseFolders = found;
    if (network !== undefined && !before) needNetwork(network, known.values(), folders);
    for (const event of before ? differences(before, known) : []) {
      if (network !== undefined && event.network !== network) continue;
      say(call.is("json") ? jsonLine({ ...event }) : eventText(event));
      if (--left === 0) return status.done;
    }
    before = known;
    await changes.next();
  }
}

/** Nothing ever comes of a network that nobody has. */
function needNetwork(name: string, known: Iterable<Known>, { conf }: Folders): void {
  const names = new Set([...loadAll(conf).lists.map((list) => list.name), ...[...known].map(({ network }) => network)]);
  if (!names.has(name)) throw unknownNetwork(name, [...names].sort(natural));
}

function countOf(call: CommandCall): number {
  const text = call.value("count");
  if (text === undefined) return Infinity;
  if (!/^[1-9]\d*$/.test(text)) throw usageError(`--count "${text}": write a number above 0`);
  return Number(text);
}

async function look(folders: Folders): Promise<{ known: Map<string, Known>; folders: string[] }> {
  const links = await linksIn(systemRun());
  const all = pools(folders);
  const found = new Map<string, Known>();
  const add = (one: Known) => {
    const key = `${one.network} ${one.containerId} ${one.ifName}`;
    const other = found.get(key);
    found.set(key, other ? { ...one, ...other, sources: [...other.sources, ...one.sources] } : one);
  };
  const cached = attachmentsOf(folders);
  for (const one of cached) add(ofCache(one));
  for (const { network, leases } of all) {
    for (const { ip, containerId, ifName } of leases) {
      if (containerId === "") continue;
      const owner = ifName ?? cached.find((one) => one.network === network && one.containerId === containerId)?.ifName;
      add({ network, containerId, ifName: owner ?? "", addresses: [ip], sources: ["lease"] });
    }
  }
  for (const owner of links.map(ownerByAlias)) {
    if (!owner) continue;
    const { network, containerId, ifName } = owner;
    add({ network, containerId, ifName, addresses: [], sources: ["link"] });
  }
  return { known: found, folders: all.map(({ folder }) => folder) };
}

function ofCache(one: Cached): Known {
  const { network, containerId, ifName, netns } = one;
  return { network, containerId, ifName, pod: podOf(one), netns, addresses: addressesOf(one), sources: ["cache"] };
}

/** What is in one and not in the other. */
function differences(before: ReadonlyMap<string, Known>, now: ReadonlyMap<string, Known>): Event[] {
  const time = new Date().toISOString();
  const gone = [...before].filter(([key]) => !now.has(key)).map(([, one]) => ({ ...one, event: "detached" as const }));
  const come = [...now].filter(([key]) => !before.has(key)).map(([, one]) => ({ ...one, event: "attached" as const }));
  return [...gone, ...come].map(({ event, ...one }) => ({ time, event, ...one }));
}

function eventText({ time, event, network, containerId, ifName, pod, addresses }: Event): string {
  const paint = painter();
  const word = paint(event === "attached" ? "green" : "yellow", event);
  const parts = [pod ?? shortId(containerId), ifName, "on", network, ...addresses].map(oneLine);
  return `${time} ${word} ${parts.join(" ")}\n`;
}

/** Tells when something changed: files in the folders, links of the host. */
class Changes {
  readonly #folders: () => readonly string[];
  readonly #watched = new Map<string, Deno.FsWatcher>();
  readonly #monitor: Deno.ChildProcess | undefined;
  readonly #timer: number;
  #changed = Promise.withResolvers<void>();
  #last = 0;

  constructor(folders: () => readonly string[]) {
    this.#folders = folders;
    this.#monitor = this.#watchLinks();
    this.#timer = setInterval(() => this.#watchFolders(), LOOK_MS);
  }

  /** Waits for a change, and until no more come for a moment. */
  async next(): Promise<void> {
    this.#watchFolders();
    await this.#changed.promise;
    const first = performance.now();
    do await new Promise((resolve) => setTimeout(resolve, SETTLE_MS)); while (
      performance.now() - this.#last < SETTLE_MS && performance.now() - first < LATEST_MS
    );
    this.#changed = Promise.withResolvers<void>();
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
    for (const watcher of this.#watched.values()) watcher.close();
    try {
      this.#monitor?.kill("SIGTERM");
    } catch {
      // It has ended.
    }
  }

  #wake(): void {
    this.#last = performance.now();
    this.#changed.resolve();
  }

  /** Folders that are there and not watched yet. */
  #watchFolders(): void {
    for (const folder of this.#folders()) {
      if (this.#watched.has(folder)) continue;
      try {
        const watcher = Deno.watchFs(folder, { recursive: false });
        this.#watched.set(folder, watcher);
        void this.#follow(folder, watcher);
        // What happened before it was watched.
        this.#wake();
      } catch {
        // Not there yet.
      }
    }
  }

  async #follow(folder: string, watcher: Deno.FsWatcher): Promise<void> {
    for await (const { kind } of watcher) {
      if (kind !== "access") this.#wake();
      if (kind === "remove" && !exists(folder)) break;
    }
    this.#watched.delete(folder);
    try {
      watcher.close();
    } catch {
      // Closed already.
    }
  }

  #watchLinks(): Deno.ChildProcess | undefined {
    let child: Deno.ChildProcess;
    try {
      child = new Deno.Command(toolPath("ip") || "ip", {
        args: ["-o", "monitor", "link"],
        stdin: "null",
        stdout: "piped",
        stderr: "null",
      }).spawn();
    } catch {
      return undefined;
    }
    const end = () => {
      this[Symbol.dispose]();
      Deno.exit(0);
    };
    for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const) Deno.addSignalListener(signal, end);
    void (async () => {
      for await (const _ of child.stdout) this.#wake();
    })();
    return child;
  }
}
