/**
 * Which addresses a container holds, without reading every lease of a folder.
 *
 * The lease folder is the truth; other programs write to it and know nothing of this file, which lies elsewhere. It is
 * a hash table on disk from a lease's content to its address, of which a call reads and writes one or two slots. What
 * it names is always verified by reading the lease. What it does not name is not there as long as the folder is as we
 * left it, and that is known for certain:
 *
 * - Whenever we have changed the folder we set its modification time back by a while ({@linkcode backdate}), and note
 *   it and the time of that change. Whoever adds, removes or renames a file afterwards sets the modification time to
 *   that moment, and the change time to the same one. So nobody else leaves the two apart as noted, however coarse the
 *   kernel's clock is, and also when somebody sets the clock back.
 * - Whoever is killed between its change and its note leaves a modification time that no note fits.
 *
 * A file system that does not keep the time that it was given gets no index. Everything happens under the folder's
 * lock.
 *
 * @module
 */
import { openRegular, removeIfThere } from "../kernel/regular_file.ts";
import { isForeign } from "../kernel/run_folder.ts";
import { type Address, formatAddress, parseAddress } from "../net/cidr.ts";

/** When, and which, a folder is: two states of it differ in one of these. */
export interface FolderState {
  readonly dev: number;
  readonly ino: number;
  readonly mtime: number;
  readonly ctime: number;
}

/** First bytes of the file; another number whenever the layout changes. */
const MAGIC = 0x63_6e_69_32;
const HEADER = 64;
const SLOT = 32;
/** Slots that are read at a time. A key's search begins at the first slot of a window. */
const WINDOW = 16;
const SMALLEST = 128;

/** First byte of a slot behind its key: nothing was ever here, something was, an address of that family is. */
const EMPTY = 0, GONE = 1;

/** Content of a lease and its address in text. */
export type Entry = readonly [content: string, ip: string];

/** What the folder looks like now. */
export function folderState(folder: string): FolderState {
  const { dev, ino, mtime, ctime } = Deno.statSync(folder);
  return { dev, ino: ino ?? 0, mtime: mtime?.getTime() ?? 0, ctime: ctime?.getTime() ?? 0 };
}

/**
 * Sets the folder's modification time to one that nothing else would give it: at least 10 s back, which is more than
 * the resolution of any file system, and up to a minute, so that two who keep notes in different places do not choose
 * the same. Undefined when the folder did not take it.
 */
function backdate(folder: string): FolderState | undefined {
  const mtime = Date.now() - 10_000 - Math.floor(Math.random() * 50_000);
  Deno.utimeSync(folder, new Date(), new Date(mtime));
  const state = folderState(folder);
  return state.mtime === mtime && state.ctime > mtime ? state : undefined;
}

/**
 * The index of one folder, open. Any of its functions may throw what the system says; then it has to be thrown away.
 */
export class LeaseIndex {
  readonly #path: string;
  #table: Table;
  /** A window of slots, and the first of them; undefined when it is not as in the file. */
  readonly #view = new DataView(new ArrayBuffer(WINDOW * SLOT));
  #loaded: number | undefined;

  private constructor(path: string, table: Table) {
    this.#path = path;
    this.#table = table;
  }

  /** The index at `path` when it fits the folder as it is now; undefined when there is none that does. */
  static open(path: string, now: FolderState): LeaseIndex | undefined {
    let file: Deno.FsFile;
    try {
      if (isForeign(path)) return undefined;
      file = openRegular(path, { write: true });
    } catch {
      return undefined;
    }
    const bytes = new Uint8Array(HEADER);
    const header = new DataView(bytes.buffer);
    const fits = file.readSync(bytes) === HEADER && header.getUint32(0) === MAGIC &&
      header.getFloat64(16) === now.dev && header.getFloat64(24) === now.ino &&
      header.getFloat64(32) === now.mtime && header.getFloat64(40) === now.ctime &&
      Math.abs(header.getFloat64(48) - bootTime()) < CLOCK_STEP;
    if (fits) {
      const [slots, used, live] = [header.getUint32(4), header.getUint32(8), header.getUint32(12)];
      return new LeaseIndex(path, { file, slots, used, live });
    }
    file.close();
    return undefined;
  }

  /** A new index at `path`, in place of any other, of all leases that there are; not valid before {@linkcode seal}. */
  static create(path: string, entries: readonly Entry[]): LeaseIndex {
    const filled = new Uint8Array(entries.length * SLOT);
    entries.forEach(([content, ip], i) => encode(filled.subarray(i * SLOT, (i + 1) * SLOT), content, ip));
    return new LeaseIndex(path, makeTable(path, filled));
  }

  /** Addresses of the leases that have, or had, this content; others can be among them, so each has to be looked at. */
  find(content: string): string[] {
    return this.#scan(content).matches.map(({ ip }) => ip);
  }

  /** Notes a new lease. */
  add(content: string, ip: string): void {
    if ((this.#table.used + 1) * 2 > this.#table.slots) this.#grow();
    const { free, isNew } = this.#scan(content);
    const bytes = new Uint8Array(SLOT);
    encode(bytes, content, ip);
    this.#write(free, bytes);
    if (isNew) this.#table.used++;
    this.#table.live++;
  }

  /** Forgets a lease. */
  remove(content: string, ip: string): void {
    const match = this.#scan(content).matches.find((one) => one.ip === ip);
    if (match === undefined) return;
    const bytes = new Uint8Array(SLOT);
    bytes[8] = GONE;
    this.#write(match.at, bytes);
    this.#table.live--;
  }

  /**
   * All that is to be done on the folder is done: from now on it fits this index. Does nothing when that cannot be
   * said.
   */
  seal(folder: string): void {
    const state = backdate(folder);
    if (state === undefined) return;
    const bytes = new Uint8Array(HEADER);
    const header = new DataView(bytes.buffer);
    header.setUint32(0, MAGIC);
    header.setUint32(4, this.#table.slots);
    header.setUint32(8, this.#table.used);
    header.setUint32(12, this.#table.live);
    header.setFloat64(16, state.dev);
    header.setFloat64(24, state.ino);
    header.setFloat64(32, state.mtime);
    header.setFloat64(40, state.ctime);
    header.setFloat64(48, bootTime());
    writeAt(this.#table.file, 0, bytes);
  }

  /** Whether it holds no lease at all. */
  get isEmpty(): boolean {
    return this.#table.live === 0;
  }

  close(): void {
    this.#table.file.close();
  }

  /**
   * Looks through the slots from the content's own on, to the first that was never used: behind that there is none of
   * it.
   */
  #scan(content: string): Scan {
    const { slots } = this.#table;
    const [high, low] = keyOf(content);
    const scan: Scan = { matches: [], free: -1, isNew: false };
    let at = home(low, slots);
    for (let seen = 0; seen < slots; seen++, at = at + 1 & slots - 1) {
      const offset = seen % WINDOW * SLOT;
      const view = this.#window(at - seen % WINDOW);
      const family = view.getUint8(offset + 8);
      if (family > GONE) {
        if (view.getUint32(offset) === high && view.getUint32(offset + 4) === low) {
          scan.matches.push({ at, ip: decode(view, offset) });
        }
        continue;
      }
      if (scan.free < 0) {
        scan.free = at;
        scan.isNew = family === EMPTY;
      }
      if (family === EMPTY) break;
    }
    return scan;
  }

  /**
   * The window that begins with this slot. What was read last is kept: both formats of a container's leases are in one
   * window.
   */
  #window(first: number): DataView {
    if (this.#loaded !== first) {
      readAt(this.#table.file, HEADER + first * SLOT, new Uint8Array(this.#view.buffer));
      this.#loaded = first;
    }
    return this.#view;
  }

  #write(slot: number, bytes: Uint8Array): void {
    this.#loaded = undefined;
    writeAt(this.#table.file, HEADER + slot * SLOT, bytes);
  }

  /** The same leases in a larger table, or in one of the same size without the marks of those that are gone. */
  #grow(): void {
    const { file, slots, live } = this.#table;
    const all = new Uint8Array(slots * SLOT);
    readAt(file, HEADER, all);
    const filled = new Uint8Array(live * SLOT);
    let count = 0;
    for (let offset = 0; offset < all.length && count < live; offset += SLOT) {
      if (all[offset + 8]! > GONE) filled.set(all.subarray(offset, offset + SLOT), count++ * SLOT);
    }
    this.#table = makeTable(this.#path, filled);
    this.#loaded = undefined;
    file.close();
  }
}

/** The open file, how many slots it has, in how many of them an address is or was, and in how many one is. */
interface Table {
  readonly file: Deno.FsFile;
  readonly slots: number;
  used: number;
  live: number;
}

/** A file with a table of these slots, at most a quarter full: it appears whole or not at all. */
function makeTable(path: string, filled: Uint8Array): Table {
  const count = filled.length / SLOT;
  let slots = SMALLEST;
  while (slots < count * 4) slots *= 2;
  const bytes = new Uint8Array(HEADER + slots * SLOT);
  const keys = new DataView(filled.buffer);
  for (let offset = 0; offset < filled.length; offset += SLOT) {
    let at = home(keys.getUint32(offset + 4), slots);
    while (bytes[HEADER + at * SLOT + 8] !== EMPTY) at = at + 1 & slots - 1;
    bytes.set(filled.subarray(offset, offset + SLOT), HEADER + at * SLOT);
  }
  const draft = `${path}.draft`;
  removeIfThere(draft);
  const file = Deno.openSync(draft, { read: true, write: true, createNew: true, mode: 0o600 });
  try {
    writeAt(file, 0, bytes);
    Deno.renameSync(draft, path);
  } catch (error) {
    file.close();
    removeIfThere(draft);
    throw error;
  }
  return { file, slots, used: count, live: count };
}

/** Where a key has its addresses, and where a further one of it would go. */
interface Scan {
  readonly matches: Match[];
  free: number;
  /** Whether nothing ever was in the free slot. */
  isNew: boolean;
}

interface Match {
  readonly at: number;
  readonly ip: string;
}

/** The slot that the search for a key begins at. */
function home(low: number, slots: number): number {
  return low & slots - WINDOW;
}

/** Slot: key (8 bytes), family (1), zeros (7), address (16). */
function encode(bytes: Uint8Array, content: string, ip: string): void {
  const { family, value } = parseAddress(ip)!;
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const [high, low] = keyOf(content);
  view.setUint32(0, high);
  view.setUint32(4, low);
  bytes[8] = family;
  view.setBigUint64(16, value >> 64n);
  view.setBigUint64(24, value & 0xffff_ffff_ffff_ffffn);
}

function decode(view: DataView, offset: number): string {
  const value = view.getBigUint64(offset + 16) << 64n | view.getBigUint64(offset + 24);
  return formatAddress({ family: view.getUint8(offset + 8) as Address["family"], value });
}

/** Key of a lease: hashes of the whole content and of the container ID alone, which decides where the search begins. */
function keyOf(content: string): [high: number, low: number] {
  const end = content.indexOf("\r\n");
  return [hash(content, content.length), hash(content, end < 0 ? content.length : end)];
}

/**
 * 32 bits of the beginning of a text (FNV-1a, mixed at the end as in MurmurHash3). Need not withstand anybody: leases
 * are verified, and their contents are the runtime's.
 */
function hash(text: string, length: number): number {
  let h = 0x811c9dc5;
  for (let i = 0; i < length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  h = Math.imul(h ^ h >>> 16, 0x85ebca6b);
  h = Math.imul(h ^ h >>> 13, 0xc2b2ae35);
  return (h ^ h >>> 16) >>> 0;
}

/**
 * How far apart two answers to "when did this host boot?" may be, in milliseconds, so that an index on a disk is not
 * taken for one of this boot: a power failure may have kept its first page and lost another.
 */
const CLOCK_STEP = 5_000;

/** When this host booted, in milliseconds of the epoch, by the clock of now. */
export function bootTime(): number {
  return Date.now() - Deno.osUptime() * 1000;
}

function readAt(file: Deno.FsFile, position: number, bytes: Uint8Array): void {
  file.seekSync(position, Deno.SeekMode.Start);
  for (let length = 0; length < bytes.length;) {
    const count = file.readSync(bytes.subarray(length));
    if (count === null) throw new Error("lease index ends early");
    length += count;
  }
}

function writeAt(file: Deno.FsFile, position: number, bytes: Uint8Array): void {
  file.seekSync(position, Deno.SeekMode.Start);
  for (let length = 0; length < bytes.length;) length += file.writeSync(bytes.subarray(length));
}
