/**
 * Files that others could have put there: only a regular file of a sane size is opened, and not through a link. Opening
 * a FIFO waits for its other end, and opening a device may do anything.
 *
 * The runtime has neither O_NOFOLLOW nor O_NONBLOCK. So the path is looked at first, and what was opened has to be what
 * was seen. Whoever replaces the file by a FIFO between the two could still have us wait, which takes the right to
 * write in that folder.
 */

/** Something else than a regular file of a sane size is in a file's place. */
export class UnusableFile extends Error {
  override readonly name = "UnusableFile";
  /** `what` is wrong with it: "a FIFO", "larger than …". */
  constructor(readonly path: string, readonly what: string) {
    super(`${path} is ${what}`);
  }
}

/** The system's words for a failure, as Go prints them: `no space left on device`. Other errors keep their own. */
export function systemWords(error: unknown): string {
  if (error instanceof UnusableFile) return `it is ${error.what}`;
  const { message } = error as Error;
  return /^(.*?) \(os error \d+\)/s.exec(message)?.[1]?.toLowerCase() ?? message;
}

/** Whether something has this name; what a link leads to does not matter, unless `links` are followed. */
export function exists(path: string, { links = false } = {}): boolean {
  try {
    return look(path, links) !== undefined;
  } catch {
    return false;
  }
}

/** Names of all that is in a folder; none where there is no such folder. Throws what the system says. */
export function namesOf(folder: string): string[] {
  try {
    return [...Deno.readDirSync(folder)].map(({ name }) => name);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return [];
    throw error;
  }
}

/** Removes a file; that it is not there is success. Throws what the system says. */
export function removeIfThere(path: string): void {
  try {
    Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** Longest file that is read, in bytes: far more than any file of ours or of a runtime. */
const LARGEST = 16 * 1024 * 1024;

/** How a file is opened. Without any of these it is read. */
export interface OpenOptions {
  readonly write?: boolean;
  readonly append?: boolean;
  /** Makes the file with this mode when it is missing. */
  readonly create?: number;
  /** Follows links, for files that administrators place; what they lead to has to be a regular file as well. */
  readonly links?: boolean;
}

/** Opens a regular file. Throws {@linkcode UnusableFile}, or what the system says. */
export function openRegular(path: string, options: OpenOptions = {}): Deno.FsFile {
  const { write = false, append = false, create, links = false } = options;
  const mode = write ? { read: true, write } : append ? { append } : { read: true };
  for (;;) {
    const seen = look(path, links);
    if (seen === undefined && create !== undefined) {
      try {
        return Deno.openSync(path, { ...mode, createNew: true, mode: create });
      } catch (error) {
        if (error instanceof Deno.errors.AlreadyExists) continue;
        throw error;
      }
    }
    // Reading a folder fails by itself, in the words that the reference has too.
    if (seen && !seen.isFile && !(links && seen.isDirectory)) {
      throw new UnusableFile(path, `${kindOf(seen)}, not a regular file`);
    }
    const file = Deno.openSync(path, mode);
    const { dev, ino } = file.statSync();
    if (dev === seen?.dev && ino === seen.ino) return file;
    // Somebody replaced it meanwhile, as writers of whole files do.
    file.close();
  }
}

/** Content of a regular file. Throws {@linkcode UnusableFile}, or what the system says. */
export function readRegular(
  path: string,
  { links = false, limit = LARGEST }: { links?: boolean; limit?: number } = {},
): Uint8Array {
  const file = openRegular(path, { links });
  try {
    let buffer = new Uint8Array(Math.min(file.statSync().size, limit) + 1);
    for (let length = 0;;) {
      const count = file.readSync(buffer.subarray(length));
      if (count === null) return buffer.subarray(0, length);
      length += count;
      if (length > limit) throw new UnusableFile(path, `larger than ${limit} bytes`);
      if (length < buffer.length) continue;
      const larger = new Uint8Array(buffer.length * 2);
      larger.set(buffer);
      buffer = larger;
    }
  } finally {
    file.close();
  }
}

/** Text of a regular file. */
export function readRegularText(path: string, options: { links?: boolean; limit?: number } = {}): string {
  return new TextDecoder().decode(readRegular(path, options));
}

/**
 * What `read` reads; undefined, with a warning, when something that nobody should have put there is in the file's
 * place.
 */
export function usable<T>(read: () => T, warn: (note: string) => void): T | undefined {
  try {
    return read();
  } catch (error) {
    if (!(error instanceof UnusableFile)) throw error;
    warn(`${error.message}; skipped`);
  }
}

function look(path: string, links: boolean): Deno.FileInfo | undefined {
  try {
    return links ? Deno.statSync(path) : Deno.lstatSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

/** What stands in a file's place, in words. */
export function kindOf(info: Deno.FileInfo | Deno.DirEntry): string {
  if (info.isSymlink) return "a symbolic link";
  if (info.isDirectory) return "a folder";
  if (!("isFifo" in info)) return "not a file";
  if (info.isFifo) return "a FIFO";
  return info.isSocket ? "a socket" : "a device";
}
