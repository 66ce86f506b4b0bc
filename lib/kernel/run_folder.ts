/** The folder that cnibox has for itself below /run, and who else can write to it. */

/** The folder. */
export const RUN_FOLDER = "/run/cnibox";

const known = new Map<string, boolean>();

/**
 * Whether a folder is one that nobody but root (or ourselves) can write to, and no link. One that is not there is made.
 * Looked at once in a process.
 */
export function isOwnFolder(folder: string): boolean {
  const seen = known.get(folder);
  if (seen !== undefined) return seen;
  const own = check(folder);
  known.set(folder, own);
  return own;
}

function check(folder: string): boolean {
  try {
    return isAlone(Deno.lstatSync(folder));
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) return false;
  }
  try {
    Deno.mkdirSync(folder, { mode: 0o700 });
  } catch (error) {
    // Another call may be making it as well.
    if (!(error instanceof Deno.errors.AlreadyExists)) return false;
  }
  return isAlone(Deno.lstatSync(folder));
}

function isAlone({ isDirectory, uid, mode }: Deno.FileInfo): boolean {
  return isDirectory && (uid === 0 || uid === Deno.uid()) && ((mode ?? 0o777) & 0o022) === 0;
}

/**
 * Whether a path lies below our folder though that is not ours alone: then there is no file of ours, whatever is there.
 */
export function isForeign(path: string): boolean {
  return path.startsWith(`${RUN_FOLDER}/`) && !isOwnFolder(RUN_FOLDER);
}

/** What is said of a folder that is not ours alone. */
export function notAlone(folder: string): string {
  return `${folder} is not a folder that only root can write to`;
}

/** Those of the folders that were looked at which are there and not ours alone. */
export function foreignFolders(): string[] {
  return [...known].filter(([folder, own]) => !own && isOthers(folder)).map(([folder]) => folder);
}

function isOthers(path: string): boolean {
  try {
    return !isAlone(Deno.lstatSync(path));
  } catch {
    // A read-only /run.
    return false;
  }
}
