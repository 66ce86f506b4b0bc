/**
 * Small files of plugins on the node: a runtime may kill a plugin at any instruction, so a file appears whole or not at
 * all.
 */
import { readRegularText } from "./regular_file.ts";

import { isForeign, notAlone, RUN_FOLDER } from "./run_folder.ts";

/**
 * Writes a file of mode 0600 in one piece and onto the disk; folders above it are made with mode 0700. Another reader
 * sees the old content or the new. Throws what the system says. `as`: a path in the same folder that drafts are named
 * by instead, for files whose names who cleans up may not know. `mode`: another mode for the file, less what the
 * process's mask takes off.
 */
export function replaceFile(
  path: string,
  content: string | Uint8Array,
  { as = path, mode = 0o600 }: { readonly as?: string; readonly mode?: number } = {},
): void {
  if (isForeign(path)) throw new Error(notAlone(RUN_FOLDER));
  Deno.mkdirSync(splitPath(path).folder, { recursive: true, mode: 0o700 });
  const { file, draft } = openDraft(as, mode);
  try {
    try {
      const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
      for (let done = 0; done < bytes.length;) done += file.writeSync(bytes.subarray(done));
      file.syncSync();
    } finally {
      file.close();
    }
    Deno.renameSync(draft, path);
  } catch (error) {
    remove(draft);
    throw error;
  }
}

/** Does the same, and returns how the file is brought back to what it was. */
export function keepFile(path: string, content: string, options: { readonly as?: string } = {}): () => void {
  const before = readFileIfThere(path);
  replaceFile(path, content, options);
  return () => before === undefined ? void removeFile(path) : replaceFile(path, before, options);
}

function splitPath(path: string): { folder: string; name: string } {
  const slash = path.lastIndexOf("/");
  return { folder: slash < 0 ? "." : path.slice(0, slash) || "/", name: path.slice(slash + 1) };
}

/** More drafts of one file than anybody would ever leave. */
const MOST_DRAFTS = 1000;

/** A draft's name leads from the file to it: whoever removes the file removes what killed writers left as well. */
function draftOf(path: string, number: number): string {
  const { folder, name } = splitPath(path);
  // A name has 255 bytes at most; its end tells more than its beginning.
  return `${folder}/.${name.slice(-80)}.${number}.draft`;
}

/** Never another's draft: two may write the same file at once. */
function openDraft(path: string, mode: number): { file: Deno.FsFile; draft: string } {
  for (let number = 0;; number++) {
    const draft = draftOf(path, number);
    try {
      return { file: Deno.openSync(draft, { write: true, createNew: true, mode }), draft };
    } catch (error) {
      if (!(error instanceof Deno.errors.AlreadyExists) || number >= MOST_DRAFTS) throw error;
    }
  }
}

/** Removes what writers of this file left that were killed. To be called when nobody writes it. */
export function removeDrafts(path: string): void {
  if (isForeign(path)) return;
  for (let number = 0; number < MOST_DRAFTS; number++) {
    try {
      Deno.removeSync(draftOf(path, number));
    } catch {
      return;
    }
  }
}

/** Drafts that lie longer than any write takes. */
const OLD_MS = 10 * 60_000;

/** Removes the drafts in a folder that killed writers left some time ago, whatever they were for. */
export function collectDrafts(folder: string): void {
  for (const name of namesIn(folder)) {
    if (!name.startsWith(".") || !name.endsWith(".draft")) continue;
    try {
      const { mtime } = Deno.lstatSync(`${folder}/${name}`);
      if (mtime && mtime.getTime() < Date.now() - OLD_MS) Deno.removeSync(`${folder}/${name}`);
    } catch {
      // Somebody else was quicker.
    }
  }
}

/**
 * Text of a file; undefined when there is none. Throws {@linkcode UnusableFile}, or what the system says. `links` are
 * followed for files that administrators place.
 */
export function readFileIfThere(path: string, { links = false } = {}): string | undefined {
  if (isForeign(path)) return undefined;
  try {
    return readRegularText(path, { links });
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return undefined;
    throw error;
  }
}

/** Removes a file, and its drafts; that it is not there is success. Returns whether it is gone. */
export function removeFile(path: string): boolean {
  if (isForeign(path)) return true;
  removeDrafts(path);
  return remove(path);
}

function remove(path: string): boolean {
  try {
    Deno.removeSync(path);
    return true;
  } catch (error) {
    return error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory;
  }
}

/** Names in a folder; none when there is no such folder. */
export function namesIn(folder: string): string[] {
  if (isForeign(folder)) return [];
  try {
    return [...Deno.readDirSync(folder)].filter((entry) => entry.isFile).map((entry) => entry.name);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return [];
    throw error;
  }
}
