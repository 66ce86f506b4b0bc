/**
 * Which addresses a container holds, without reading every lease of a folder.
 *
 * The lease folder is the truth; other programs write to it and know nothing of this file, which lies elsewhere. It is a hash
 * table on disk from a lease's content to its address, of which a call reads and writes one or two slots. What it names is
 * always verified by reading the lease. What it does not name is not there as long as the folder is as we left it, and that is
 * known for certain:
 *
 * - Whenever we have changed the folder we set its modification time back by a while ({@linkcode backdate}), and note it and the
 *   time of that change. Whoever adds, removes or renames a file afterwards sets the modification time to that moment, and the
 *   change time to the same one. So nobody else leaves the two apart as noted, however coarse the kernel's clock is, and also
 *   when somebody sets the clock back.
 * - Whoever is killed between its change and its note leaves a modification time that no note fits.
 *
 * A file system that does not keep the time that it was given gets no index. Everything happens under the folder's lock.
 *
 * @module
 */
import { type Address, formatAddress, parseAddress } from "../net/cidr.ts";

/** When, and which, a folder is: two states of it differ in one of these. */
export interface FolderState {
  readonly dev: number;
  readonly ino: number;
  readonly mtime: number;
  readonly ctime: number;
}

const MAGIC = 0x63_6e_69_31;
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
 * Sets the folder's modification time to one that nothing else would give it: at least 10 s back, which is more than the
 * resolution of any file system, and up to a minute, so that two who keep notes in different places do not choose the same.
 * Undefined when the folder did not take it.
 */
function backdate(folder: string): FolderState | undefined {
  const mtime = Date.now() - 10_000 - Math.floor(Math.random() * 50_000);
  Deno.utimeSync(folder, new Date(), new Date(mtime));
  const state = folderState(folder);
  return state.mtime === mtime && state.ctime > mtime ? state : undefined;
}

/** The index of one folder, open. Any of its functions may throw what the system says; then it has to be thrown away. */
export class LeaseIndex {
  readonly #path: string;
  #table: Table;
  /** The last look into the table, as long as nothing was written since. */
  #last: Scan | undefined;

  private constructor(path: string, table: Table) {
    this.#path = path;
    this.#table = table;
  }

  /** The index at `path` when it fits the folder as it is now; undefined when there is none that does. */
  static open(path: string, now: FolderState): LeaseIndex | undefined {
    let file: Deno.FsFile;
    try {
      file = Deno.openSync(path, { read: true, write: true });
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

  /** All that is to be done on the folder is done: from now on it fits this index. Does nothing when that cannot be said. */
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

  /** Looks through the slots from the content's own on, to the first that was never used: behind that there is none of it. */
  #scan(content: string): Scan {
    if (this.#last?.content === content) return this.#last;
    const { file, slots } = this.#table;
    const [high, low] = hash(content);
    const scan = { content, matches: [] as Match[], free: -1, isNew: false };
    const bytes = new Uint8Array(WINDOW * SLOT);
    const view = new DataView(bytes.buffer);
    let at = home(low, slots);
    for (let seen = 0; seen < slots; seen++, at = at + 1 & slots - 1) {
      const offset = seen % WINDOW * SLOT;
      if (offset === 0) readAt(file, HEADER + at * SLOT, bytes);
      const family = bytes[offset + 8]!;
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
    return this.#last = scan;
  }

  #write(slot: number, bytes: Uint8Array): void {
    this.#last = undefined;
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
    this.#last = undefined;
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
  readonly content: string;
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
  const [high, low] = hash(content);
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

/** Two 32-bit hashes (the cyrb53 mixing). Need not withstand anybody: leases are verified, and contents are the runtime's. */
function hash(text: string): [high: number, low: number] {
  let a = 0xdeadbeef, b = 0x41c6ce57;
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    a = Math.imul(a ^ unit, 2654435761);
    b = Math.imul(b ^ unit, 1597334677);
  }
  a = Math.imul(a ^ a >>> 16, 2246822507) ^ Math.imul(b ^ b >>> 13, 3266489909);
  b = Math.imul(b ^ b >>> 16, 2246822507) ^ Math.imul(a ^ a >>> 13, 3266489909);
  return [a >>> 0, b >>> 0];
}

/**
 * How far apart two answers to "when did this host boot?" may be, in milliseconds, so that an index on a disk is not taken for
 * one of this boot: a power failure may have kept its first page and lost another.
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

function removeIfThere(path: string): void {
  try {
    Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}
