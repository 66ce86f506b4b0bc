/**
 * `cnibox install`, `rollback`, `uninstall` and `verify`: this very executable put into a plugin folder, and taken out again. Files and
 * folders are those of install.sh, so that either can go on where the other stopped:
 *
 *     DIR/cnibox              the executable
 *     DIR/bridge, …           symlinks to it
 *     DIR/.cnibox/previous    the executable before the last change
 *     DIR/.cnibox/replaced/   files that --replace moved out of the way
 */
import { createHash } from "node:crypto";
import { systemRun, toolPath } from "../kernel/run.ts";
import { CliError, type CommandCall, status } from "./command.ts";
import { fileError, needRoot, PLUGIN_FOLDER } from "./setup.ts";
import { columns, jsonText, painter, say } from "./terminal.ts";

/** What was done to one file, or found there. */
interface Row {
  readonly file: string;
  readonly state: string;
  readonly good: boolean;
}

const NAME = "cnibox";

function folderOf(call: CommandCall): string {
  return (call.value("bin-dir") ?? PLUGIN_FOLDER).replace(/(.)\/+$/, "$1");
}

/** `cnibox install` */
export async function install(call: CommandCall): Promise<number> {
  const dir = folderOf(call);
  if (dir === PLUGIN_FOLDER) needRoot(call, `it writes to ${dir}`);
  if (!Deno.build.standalone) {
    throw new CliError("only a compiled cnibox can install itself", status.failed, [
      "deno task compile, then dist/cnibox install",
    ]);
  }
  const names = chosen(call);
  const rows: Row[] = [];
  try {
    Deno.mkdirSync(`${dir}/.${NAME}`, { recursive: true, mode: 0o755 });
    const draft = `${dir}/.${NAME}/${NAME}-draft-${Deno.pid}`;
    try {
      await prepare(draft, call.invocation.version);
      rows.push(replaceBinary(dir, draft));
    } finally {
      remove(draft);
    }
    for (const name of names) rows.push(link(dir, name, call.is("replace")));
    await label(dir);
  } catch (error) {
    if (error instanceof CliError) throw error;
    throw fileError(dir, error);
  }
  return show(call, rows);
}

/** Types to link: all, or those of --plugins. */
function chosen(call: CommandCall): readonly string[] {
  const { names } = call.invocation;
  const wanted = call.value("plugins")?.split(",").filter((name) => name !== "");
  const unknown = wanted?.find((name) => !names.includes(name));
  if (unknown !== undefined) {
    throw new CliError(`there is no plugin "${unknown}"`, status.usage, [`there are: ${names.join(" ")}`]);
  }
  return wanted ?? names;
}

/** A copy of ourselves where it will live, on disk, and started once: a mount without exec shows here, not on a pod. */
async function prepare(draft: string, version: string): Promise<void> {
  Deno.copyFileSync(Deno.execPath(), draft);
  Deno.chmodSync(draft, 0o755);
  if (Deno.uid() === 0) Deno.chownSync(draft, 0, 0);
  using file = Deno.openSync(draft, { read: true });
  file.syncSync();
  readWhole(draft);
  const { code, stdout, stderr } = await systemRun()({ argv: [draft, "--version"] });
  if (code !== 0 || !stdout.includes(version)) {
    throw new CliError("the executable does not start there; nothing was changed", status.failed, [
      stderr.trim() || stdout.trim(),
    ]);
  }
}

/**
 * Reads a file from start to end. Before an executable is run for the first time: one that is paged in by being run makes every
 * later call slower.
 */
function readWhole(path: string): void {
  using file = Deno.openSync(path, { read: true });
  const buffer = new Uint8Array(4 * 1024 * 1024);
  while (file.readSync(buffer) !== null);
}

/** Atomic: at any moment the name is the old file or the new one. The old one is kept. */
function replaceBinary(dir: string, draft: string): Row {
  const target = `${dir}/${NAME}`;
  const before = sha256(target);
  if (before === sha256(draft)) return { file: target, state: "unchanged", good: true };
  if (before !== undefined) {
    keep(target, `${dir}/.${NAME}/previous`);
    // A program of this kind opens its own file once more while it starts, under the name that the kernel has for a replaced one.
    keep(target, `${dir}/${NAME} (deleted)`);
  }
  Deno.renameSync(draft, target);
  return {
    file: target,
    state: before === undefined ? "installed" : "installed, the one before kept for rollback",
    good: true,
  };
}

function keep(from: string, to: string): void {
  remove(to);
  try {
    Deno.linkSync(from, to);
  } catch {
    Deno.copyFileSync(from, to);
  }
}

function link(dir: string, name: string, replace: boolean): Row {
  const target = `${dir}/${name}`;
  const now = linkOf(target);
  if (now === NAME) return { file: target, state: "unchanged", good: true };
  if (exists(target) && !isOurs(dir, target)) {
    if (!replace) return { file: target, state: "left alone: not ours; --replace keeps it as a backup", good: false };
    Deno.mkdirSync(`${dir}/.${NAME}/replaced`, { recursive: true });
    Deno.renameSync(target, `${dir}/.${NAME}/replaced/${name}`);
  }
  const draft = `${dir}/.${NAME}/link-${Deno.pid}`;
  remove(draft);
  Deno.symlinkSync(NAME, draft);
  Deno.renameSync(draft, target);
  return { file: target, state: `-> ${NAME}`, good: true };
}

/** By another kind of link, or a copy of what is or was installed here. */
function isOurs(dir: string, target: string): boolean {
  const sum = sha256(target);
  return sum !== undefined && (sum === sha256(`${dir}/${NAME}`) || sum === sha256(`${dir}/.${NAME}/previous`));
}

/** SELinux: the label that the policy has for the folder, where there is the tool. */
async function label(dir: string): Promise<void> {
  if (toolPath("restorecon") === "" || toolPath("selinuxenabled") === "") return;
  if ((await systemRun()({ argv: ["selinuxenabled"] })).code === 0) {
    await systemRun()({ argv: ["restorecon", "-R", dir] });
  }
}

/** `cnibox rollback` */
export async function rollback(call: CommandCall): Promise<number> {
  const dir = folderOf(call);
  if (dir === PLUGIN_FOLDER) needRoot(call, `it writes to ${dir}`);
  const previous = `${dir}/.${NAME}/previous`;
  if (!exists(previous)) throw new CliError(`no earlier executable is kept in ${dir}/.${NAME}`, status.failed);
  const draft = `${dir}/.${NAME}/${NAME}-draft-${Deno.pid}`;
  try {
    Deno.copyFileSync(previous, draft);
    Deno.chmodSync(draft, 0o755);
    // Reads the draft from start to end, as `prepare` does.
    const row = replaceBinary(dir, draft);
    const { stdout } = await systemRun()({ argv: [`${dir}/${NAME}`, "--version"] });
    return show(call, [{ ...row, state: `${stdout.trim()} is back, the one from before kept for rollback` }]);
  } catch (error) {
    throw fileError(dir, error);
  } finally {
    remove(draft);
  }
}

/** `cnibox uninstall` */
export function uninstall(call: CommandCall): number {
  const dir = folderOf(call);
  if (dir === PLUGIN_FOLDER) needRoot(call, `it writes to ${dir}`);
  const rows: Row[] = [];
  try {
    const replaced = `${dir}/.${NAME}/replaced`;
    for (const { name, isSymlink } of [...Deno.readDirSync(dir)]) {
      if (!isSymlink || linkOf(`${dir}/${name}`) !== NAME) continue;
      if (exists(`${replaced}/${name}`)) {
        Deno.renameSync(`${replaced}/${name}`, `${dir}/${name}`);
        rows.push({ file: `${dir}/${name}`, state: "put back as it was", good: true });
      } else {
        Deno.removeSync(`${dir}/${name}`);
        rows.push({ file: `${dir}/${name}`, state: "removed", good: true });
      }
    }
    for (const file of [`${dir}/${NAME}`, `${dir}/${NAME} (deleted)`, `${dir}/.${NAME}/previous`]) remove(file);
    rows.push({ file: `${dir}/${NAME}`, state: "removed", good: true });
    for (const folder of [replaced, `${dir}/.${NAME}`]) removeEmpty(folder);
  } catch (error) {
    throw fileError(dir, error);
  }
  return show(call, rows);
}

/** `cnibox verify` */
export function verify(call: CommandCall): number {
  const dir = folderOf(call);
  const rows: Row[] = [];
  const binary = `${dir}/${NAME}`;
  const sum = sha256(binary);
  const wanted = call.value("sha256");
  rows.push({
    file: binary,
    state: sum === undefined ? "missing" : `sha256 ${sum}`,
    good: sum !== undefined && (wanted === undefined || wanted === sum),
  });
  if (sum !== undefined) {
    const { uid, mode } = Deno.statSync(binary);
    const writable = ((mode ?? 0) & 0o022) !== 0;
    rows.push({
      file: binary,
      state: `owner ${uid}, mode ${((mode ?? 0) & 0o7777).toString(8)}`,
      good: uid === 0 && !writable && ((mode ?? 0) & 0o111) !== 0,
    });
  }
  if (Deno.build.standalone && sum !== undefined) {
    rows.push({
      file: binary,
      state: sum === sha256(Deno.execPath()) ? "is this version" : "is another version than this",
      good: true,
    });
  }
  for (const name of chosen(call)) {
    const target = `${dir}/${name}`;
    const now = linkOf(target);
    const ours = now === NAME || (exists(target) && isOurs(dir, target));
    rows.push({
      file: target,
      state: ours ? now === NAME ? `-> ${NAME}` : "a copy of it" : exists(target) ? "not ours" : "missing",
      good: ours,
    });
  }
  show(call, rows);
  return rows.every(({ good }) => good) ? status.done : status.failed;
}

function show(call: CommandCall, rows: readonly Row[]): number {
  if (call.is("json")) say(jsonText(rows));
  else {
    const paint = painter();
    say(columns(rows.map(({ file, state, good }) => [file, paint(good ? "green" : "yellow", state)])));
  }
  return status.done;
}

function sha256(path: string): string | undefined {
  try {
    using file = Deno.openSync(path, { read: true });
    const hash = createHash("sha256");
    const buffer = new Uint8Array(1024 * 1024);
    for (let count = file.readSync(buffer); count !== null; count = file.readSync(buffer)) {
      hash.update(buffer.subarray(0, count));
    }
    return hash.digest("hex");
  } catch {
    return undefined;
  }
}

function linkOf(path: string): string | undefined {
  try {
    return Deno.readLinkSync(path);
  } catch {
    return undefined;
  }
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

function remove(path: string): void {
  try {
    Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

function removeEmpty(folder: string): void {
  try {
    Deno.removeSync(folder);
  } catch {
    // Something is kept there.
  }
}
