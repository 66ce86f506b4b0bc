/**
 * Who has which address: one folder per network, one file per address, as the reference plugin keeps them. Other
 * programs share the folder, so its content is a contract:
 *
 * - `<address>`, canonical text: container ID, CR LF, interface; before plugins 0.8.0 the container ID alone. Mode
 * 0600.
 * - `last_reserved_ip.<set>`: the address that was given out last; the round robin goes on behind it.
 * - `lock`: whoever reads or writes holds flock(2) on it.
 *
 * A lease is written and synced under another name and then linked to its own: it appears whole or not at all, however
 * this process ends, and never in place of another.
 *
 * @module
 */
import { CniError, code } from "../cni/error.ts";
import { type Address, canonicalAddress, compareAddresses, parseAddress } from "../net/cidr.ts";
import { folderState, LeaseIndex } from "./lease_index.ts";
import { kindOf, openRegular, readRegularText, removeIfThere, systemWords } from "../kernel/regular_file.ts";
import { type Perform, perform } from "../kernel/plan.ts";
import { isForeign } from "../kernel/run_folder.ts";
import { type Lock, lockFolder, type LockOptions, once } from "./lock.ts";
import type { Candidate } from "./range.ts";

/** Who holds an address: interface `ifName` of container `containerId`. */
export interface Holder {
  readonly containerId: string;
  readonly ifName: string;
}

/** One address file. */
export interface Lease {
  /** The file's name: the address in canonical text. */
  readonly ip: string;
  /** "" when the file says nothing: what a crash of another program, or of the machine, left. */
  readonly containerId: string;
  /** Undefined in leases of plugins before 0.8.0, which hold for every interface of the container. */
  readonly ifName: string | undefined;
  /** When the file was written. */
  readonly written: Date;
}

/** What a holder has: leases in today's format, and those that name the container alone. */
export interface Holding {
  readonly own: readonly string[];
  readonly old: readonly string[];
}

export interface StoreOptions extends LockOptions {
  /** Makes the folder when it is missing; else `work` is not called, and the answer is undefined. */
  readonly create?: boolean;
  /**
   * Where the index of leases is kept; {@linkcode INDEX_FOLDER} if absent. Whoever cannot write there works without
   * one.
   */
  readonly indexFolder?: string | undefined;
  /** Told what is odd but no failure. */
  readonly warn: (note: string) => void;
  /** Makes the changes; {@linkcode perform} if absent. */
  readonly perform?: Perform | undefined;
}

/**
 * On a file system that a reboot empties, and outside every lease folder: the reference reads those with all that is
 * below.
 */
export const INDEX_FOLDER = "/run/cnibox/host-local";

/** Where runtimes keep the results of ADD unless told otherwise: a file per attachment, until its DEL. */
export const RESULTS_FOLDER = "/var/lib/cni/results";

/**
 * What a lease is called before it is linked to its address, while the lock is held. A killed call may leave it; the
 * next one removes it.
 */
const DRAFT = ".cnibox-lease";

/** The leases of one network, whose lock is held until `close`; closing twice does no harm. */
export interface OpenStore {
  readonly store: Store;
  close(): void;
}

/**
 * Locks a lease folder; undefined where there is none.
 *
 * @throws {CniError} code 11 when the lock is not to be had in time, code 5 when the folder cannot be used
 */
export async function openStore(folder: string, options: StoreOptions): Promise<OpenStore | undefined> {
  const locked = (options.perform ?? perform)(undefined, () => lockExisting(folder, options));
  if (locked === undefined) return (await import("./preview.ts")).openPreview(folder, options);
  const lock = await locked;
  if (lock === undefined) return undefined;
  // What a killed ADD left. ADD itself writes over it.
  if (!options.create) tryRemove(`${folder}/${DRAFT}`);
  const store = new Store(folder, options);
  const close = () => {
    try {
      store.settle();
    } finally {
      lock.close();
    }
    // After the lock is gone: others need not wait for the disk.
    if (store.hasReserved) syncFolder(folder);
  };
  return { store, close: once(close) };
}

/** Does `work` on a lease folder while its lock is held; undefined where there is no such folder. */
export async function withStore<T>(
  folder: string,
  options: StoreOptions,
  work: (store: Store) => Promise<T> | T,
): Promise<T | undefined> {
  const open = await openStore(folder, options);
  if (open === undefined) return undefined;
  try {
    return await work(open.store);
  } finally {
    open.close();
  }
}

/** Addresses that are going to be taken while the lock of their folder is held. */
export interface Taking {
  /**
   * What will be taken; undefined when that takes long to say, or will fail. Where others write without the lock, it
   * may be others.
   */
  readonly candidates: readonly Candidate[] | undefined;
  /** Takes them, and releases the lock. */
  commit(): Promise<Candidate[]>;
  /** Releases the lock with nothing taken, unless `commit` was called. */
  abandon(): void;
}

/** The two steps of taking addresses from an open store. */
export function takingFrom(
  { close }: OpenStore,
  candidates: Taking["candidates"],
  take: () => Promise<Candidate[]> | Candidate[],
): Taking {
  const commit = async () => {
    try {
      return await take();
    } finally {
      close();
    }
  };
  return { candidates, commit, abandon: close };
}

async function lockExisting(folder: string, options: StoreOptions): Promise<Lock | undefined> {
  const meanwhile = once(options.meanwhile);
  for (let attempt = 0;; attempt++) {
    try {
      return await lockFolder(folder, { ...options, meanwhile });
    } catch (error) {
      if (error instanceof CniError) throw error;
      // Made only when missing; somebody may remove it again before the lock is taken.
      if (!(error instanceof Deno.errors.NotFound) || attempt === 5) throw ioError(`failed to lock ${folder}`, error);
    }
    if (!options.create) return undefined;
    meanwhile();
    try {
      Deno.mkdirSync(folder, { recursive: true, mode: 0o755 });
    } catch (error) {
      throw ioError(`failed to create ${folder}`, error);
    }
  }
}

/** The leases of one network, locked. */
export class Store {
  readonly folder: string;
  readonly #options: StoreOptions;
  /**
   * Undefined where there is none; looked for before the first change and the first search, see {@linkcode
   * Store.#open}.
   */
  #index: LeaseIndex | undefined;
  #looked = false;
  /** Addresses by content, once everything had to be read. */
  #read: Map<string, string[]> | undefined;
  /** Content of the draft that lies in the folder, to be linked. */
  #draft: string | undefined;
  #changed = false;
  #reserved = false;

  constructor(folder: string, options: StoreOptions) {
    this.folder = folder;
    this.#options = options;
  }

  /** Looks for the index that fits the folder as others left it. */
  #open(): void {
    if (this.#looked) return;
    this.#looked = true;
    const state = folderState(this.folder);
    this.#index = LeaseIndex.open(this.#indexPath(state), state);
  }

  get hasReserved(): boolean {
    return this.#reserved;
  }

  /** Addresses of the holder, in ascending order. */
  holding({ containerId, ifName }: Holder): Holding {
    this.#open();
    const own = this.#having(`${containerId}\r\n${ifName}`);
    return { own, old: this.#having(containerId) };
  }

  /** Whether there is no file of an address: then {@linkcode reserve} takes it, unless the disk fails. */
  isFree(ip: string): boolean {
    try {
      Deno.lstatSync(`${this.folder}/${ip}`);
      return false;
    } catch (error) {
      return error instanceof Deno.errors.NotFound;
    }
  }

  /** Takes an address for the holder. False when it is taken already, by whomever. */
  reserve(ip: string, holder: Holder): boolean {
    this.#open();
    const content = contentOf(holder);
    this.#writeDraft(content);
    try {
      Deno.linkSync(`${this.folder}/${DRAFT}`, `${this.folder}/${ip}`);
    } catch (error) {
      if (error instanceof Deno.errors.AlreadyExists) return false;
      if (!knowsNoLinks(error)) throw ioError(`failed to reserve ${ip}`, error);
      if (!this.#createWhole(ip, content)) return false;
    }
    this.#changed = this.#reserved = true;
    // A second lease gets a file of its own: nobody expects one with two names.
    this.#dropDraft();
    this.#note((index) => index.add(content, ip));
    this.#read?.set(content, [...this.#read.get(content) ?? [], ip]);
    return true;
  }

  /** Releases an address that the holder has; `old` names the lease by the container alone. "Not there" is done. */
  release(ip: string, holder: { readonly containerId: string; readonly ifName?: string | undefined }): void {
    this.#open();
    const content = contentOf(holder);
    removeLease(`${this.folder}/${ip}`, `failed to release ${ip}`);
    this.#changed = true;
    this.#note((index) => index.remove(content, ip));
    this.#read?.set(content, (this.#read.get(content) ?? []).filter((other) => other !== ip));
  }

  /**
   * Whether the address file says nothing: then it is what a crash left, since nobody writes while the lock is ours.
   */
  isBlank(ip: string): boolean {
    return this.lease(ip)?.containerId === "";
  }

  /** Removes an address file that says nothing. */
  discard(ip: string): void {
    this.#open();
    removeLease(`${this.folder}/${ip}`, `failed to remove the empty lease ${ip}`);
    this.#changed = true;
  }

  /** The address that set `index` gave out last; undefined when that is not known. */
  cursor(index: number): Address | undefined {
    const path = `${this.folder}/last_reserved_ip.${index}`;
    try {
      return parseAddress(readRegularText(path));
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return undefined;
      this.#options.warn(`Error retrieving last reserved ip: ${systemWords(error)}`);
    }
    return undefined;
  }

  /**
   * Notes the address that set `index` gave out last. It is a hint: failing is no failure, the next search starts at
   * another place. So it is written in place, as the reference does; a rename over it would make ext4 wait for the
   * disk.
   */
  setCursor(index: number, ip: string): void {
    this.#open();
    const path = `${this.folder}/last_reserved_ip.${index}`;
    try {
      const file = openRegular(path, { write: true, create: 0o600 });
      if (file.statSync().size > ip.length) file.truncateSync(ip.length);
      writeOut(file, ip, { sync: false });
      this.#changed = true;
    } catch (error) {
      this.#options.warn(`failed to write ${path}: ${systemWords(error)}`);
    }
  }

  /** Names of all files: which addresses are taken, without asking by whom. */
  names(): Set<string> {
    return new Set(list(this.folder).map(({ name }) => name));
  }

  /** The lease of an address; undefined when there is none that can be read. */
  lease(ip: string): Lease | undefined {
    const path = `${this.folder}/${ip}`;
    try {
      const text = readRegularText(path);
      const { mtime } = Deno.lstatSync(path);
      const [containerId = "", ifName] = isBlank(text) ? [] : splitContent(text.trim());
      return { ip, containerId, ifName, written: mtime ?? new Date() };
    } catch {
      return undefined;
    }
  }

  /** Every lease, in ascending order of addresses. Reads every file. */
  leases(): Lease[] {
    const leases = this.#addressFiles().flatMap((ip) => this.lease(ip) ?? []);
    const order = leases.map((lease) => ({ lease, address: parseAddress(lease.ip)! }));
    return order.sort((a, b) => compareAddresses(a.address, b.address)).map(({ lease }) => lease);
  }

  /** Before the lock is released: nothing of ours stays in the folder, and the index says what is there now. */
  settle(): void {
    this.#dropDraft();
    if (this.#index === undefined) return;
    this.#note((index) => {
      if (index.isEmpty) Deno.removeSync(this.#indexPath(folderState(this.folder)));
      else if (this.#changed) index.seal(this.folder);
    });
    this.#index?.close();
    this.#index = undefined;
  }

  /** Addresses of the leases with exactly this content. */
  #having(content: string): string[] {
    if (this.#index !== undefined) {
      let hints: string[] | undefined;
      this.#note((index) => hints = index.find(content));
      if (hints?.every((ip) => readIfThere(`${this.folder}/${ip}`)?.trim() === content)) return sorted(hints);
      // Somebody wrote into a lease: an index cannot know that, so it starts anew.
      this.#index?.close();
      this.#index = undefined;
    }
    this.#read ??= this.#readAll();
    return sorted(this.#read.get(content) ?? []);
  }

  /** Reads every lease, and makes an index of them. */
  #readAll(): Map<string, string[]> {
    const found = new Map<string, string[]>();
    for (const ip of this.#addressFiles()) {
      const text = readIfThere(`${this.folder}/${ip}`);
      if (text === undefined || isBlank(text)) continue;
      const content = text.trim();
      const ips = found.get(content);
      if (ips === undefined) found.set(content, [ip]);
      else ips.push(ip);
    }
    this.#makeIndex(found);
    return found;
  }

  #makeIndex(found: Map<string, string[]>): void {
    if (isForeign(this.#indexPath({ dev: 0, ino: 0 }))) return;
    const folder = this.#options.indexFolder ?? INDEX_FOLDER;
    const path = this.#indexPath(folderState(this.folder));
    const entries = [...found].flatMap(([content, ips]) => ips.map((ip) => [content, ip] as const));
    try {
      try {
        this.#index = LeaseIndex.create(path, entries);
      } catch (error) {
        if (!(error instanceof Deno.errors.NotFound)) throw error;
        Deno.mkdirSync(folder, { recursive: true, mode: 0o700 });
        this.#index = LeaseIndex.create(path, entries);
      }
      this.#changed = true;
    } catch {
      // Nothing depends on an index but the time that the next call takes.
    }
  }

  #indexPath({ dev, ino }: { dev: number; ino: number }): string {
    return `${this.#options.indexFolder ?? INDEX_FOLDER}/${dev}-${ino}`;
  }

  /** Works on the index, if there is one; what fails there is thrown away with it. */
  #note(work: (index: LeaseIndex) => void): void {
    if (this.#index === undefined) return;
    try {
      work(this.#index);
    } catch {
      this.#index.close();
      this.#index = undefined;
    }
  }

  #writeDraft(content: string): void {
    if (this.#draft === content) return;
    try {
      writeNew(`${this.folder}/${DRAFT}`, content, { sync: true });
    } catch (error) {
      tryRemove(`${this.folder}/${DRAFT}`);
      throw ioError(`failed to write a lease in ${this.folder}`, error);
    }
    this.#changed = true;
    this.#draft = content;
  }

  #dropDraft(): void {
    if (this.#draft !== undefined) tryRemove(`${this.folder}/${DRAFT}`);
    this.#draft = undefined;
  }

  /** For file systems without links: exclusive, but a crash may leave the file empty. */
  #createWhole(ip: string, content: string): boolean {
    const path = `${this.folder}/${ip}`;
    let file: Deno.FsFile;
    try {
      file = createNew(path);
    } catch (error) {
      if (error instanceof Deno.errors.AlreadyExists) return false;
      throw ioError(`failed to reserve ${ip}`, error);
    }
    try {
      writeOut(file, content, { sync: true });
    } catch (error) {
      tryRemove(path);
      throw ioError(`failed to reserve ${ip}`, error);
    }
    return true;
  }

  /** Regular files of the folder whose names are addresses. What else there is, is not ours to read. */
  #addressFiles(): string[] {
    return list(this.folder).filter((entry) => {
      if (canonicalAddress(entry.name) !== entry.name) return false;
      if (!entry.isFile) this.#options.warn(`${this.folder}/${entry.name} is skipped: it is ${kindOf(entry)}`);
      return entry.isFile;
    }).map(({ name }) => name);
  }
}

/** What a lease file holds. */
export function contentOf({ containerId, ifName }: { containerId: string; ifName?: string | undefined }): string {
  return ifName === undefined ? containerId : `${containerId}\r\n${ifName}`;
}

function splitContent(content: string): [containerId: string, ifName: string | undefined] {
  const at = content.indexOf("\r\n");
  return at < 0 ? [content, undefined] : [content.slice(0, at), content.slice(at + 2)];
}

/** Nothing but blanks, or the zeros that some file systems fill a file with whose data a power failure took. */
function isBlank(text: string): boolean {
  return /^[\s\0]*$/.test(text);
}

function sorted(ips: readonly string[]): string[] {
  if (ips.length < 2) return [...ips];
  return [...ips].sort((a, b) => compareAddresses(parseAddress(a)!, parseAddress(b)!));
}

function list(folder: string): Deno.DirEntry[] {
  try {
    return [...Deno.readDirSync(folder)];
  } catch (error) {
    throw ioError(`failed to read ${folder}`, error);
  }
}

/** A file's text; undefined when it cannot be read, which the reference skips too. */
function readIfThere(path: string): string | undefined {
  try {
    return readRegularText(path);
  } catch {
    return undefined;
  }
}

/**
 * Writes a file that nobody else can have put there: what is in the way, such as a killed call's own, is removed first.
 */
function writeNew(path: string, text: string, options: { sync: boolean }): void {
  let file: Deno.FsFile;
  try {
    file = createNew(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
    Deno.removeSync(path);
    file = createNew(path);
  }
  writeOut(file, text, options);
}

function createNew(path: string): Deno.FsFile {
  return Deno.openSync(path, { write: true, createNew: true, mode: 0o600 });
}

/** Writes all of the text and closes the file; `sync` makes it outlast a power failure. */
function writeOut(file: Deno.FsFile, text: string, { sync }: { sync: boolean }): void {
  try {
    const bytes = new TextEncoder().encode(text);
    for (let length = 0; length < bytes.length;) length += file.writeSync(bytes.subarray(length));
    if (sync) file.syncDataSync();
  } finally {
    file.close();
  }
}

function removeLease(path: string, doing: string): void {
  try {
    removeIfThere(path);
  } catch (error) {
    throw ioError(doing, error);
  }
}

function tryRemove(path: string): void {
  try {
    Deno.removeSync(path);
  } catch {
    // A draft that stays is in nobody's way, and the next call removes it.
  }
}

/** Makes the names in a folder outlast a power failure, as far as its file system can. */
function syncFolder(folder: string): void {
  try {
    const handle = Deno.openSync(folder, { read: true });
    try {
      handle.syncSync();
    } finally {
      handle.close();
    }
  } catch {
    // The lease is there; that it outlasts a power failure is more than the reference promises.
  }
}

/** vfat and its like have no links; they answer in different ways. */
function knowsNoLinks(error: unknown): boolean {
  return ["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK"].includes(errnoOf(error));
}

function errnoOf(error: unknown): string {
  return (error as { code?: string }).code ?? "";
}

/** What to do about a failure of the file system, by its code. */
export const ADVICE: Readonly<Record<string, string>> = {
  ENOSPC: "the file system is full (space or inodes: df, df -i); nothing was left behind",
  EDQUOT: "the quota is used up; nothing was left behind",
  EROFS: 'it has to be writable; "dataDir" in "ipam" can name another folder',
  EACCES: 'plugins run as root; or "dataDir" in "ipam" names a folder that this user can write',
  EPERM: "the folder or file may be immutable (lsattr), or belong to another user",
  ENOTDIR: "a part of this path is a file",
  EEXIST: "a file is where a folder should be",
  EIO: "the disk fails: see the kernel's log",
};

/** A failure of the file system: code 5, the system's words, and what to do. */
export function ioError(doing: string, error: unknown): CniError {
  if (error instanceof CniError) return error;
  return new CniError(code.io, `${doing}: ${systemWords(error)}`, ADVICE[errnoOf(error)] ?? "");
}
