/** Small files of plugins on the node: a runtime may kill a plugin at any instruction, so a file appears whole or not at all. */

/**
 * Writes a file of mode 0600 in one piece and onto the disk; folders above it are made with mode 0700. Another reader sees
 * the old content or the new. Throws what the system says.
 */
export function replaceFile(path: string, content: string | Uint8Array): void {
  const slash = path.lastIndexOf("/");
  const folder = slash < 0 ? "." : path.slice(0, slash) || "/";
  Deno.mkdirSync(folder, { recursive: true, mode: 0o700 });
  const draft = `${folder}/.${crypto.randomUUID()}.draft`;
  try {
    const file = Deno.openSync(draft, { write: true, createNew: true, mode: 0o600 });
    try {
      const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
      for (let done = 0; done < bytes.length;) done += file.writeSync(bytes.subarray(done));
      file.syncSync();
    } finally {
      file.close();
    }
    Deno.renameSync(draft, path);
  } catch (error) {
    removeFile(draft);
    throw error;
  }
}

/** Text of a file; undefined when there is none. Throws what the system says otherwise. */
export function readFileIfThere(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return undefined;
    throw error;
  }
}

/** Removes a file; that it is not there is success. Returns whether it is gone. */
export function removeFile(path: string): boolean {
  try {
    Deno.removeSync(path);
    return true;
  } catch (error) {
    return error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory;
  }
}

/** Names in a folder; none when there is no such folder. */
export function namesIn(folder: string): string[] {
  try {
    return [...Deno.readDirSync(folder)].filter((entry) => entry.isFile).map((entry) => entry.name);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return [];
    throw error;
  }
}
