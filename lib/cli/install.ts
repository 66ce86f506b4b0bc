/**
 * `cnibox install`, `rollback`, `uninstall` and `verify`: this very executable put into a plugin folder, and taken out
 * again.
 *
 *     DIR/cnibox              the executable
 *     DIR/bridge, …           symlinks to it
 *     DIR/.cnibox/previous    the executable before the last change
 *     DIR/.cnibox/replaced/   files that --replace moved out of the way; uninstall puts them back
 *     DIR/.cnibox/units/      the systemd units as they were installed; where they are is in .cnibox/units-folder
 *
 * Everything is prepared in a folder of our own below the target and put in place by rename, one name at a time: at any
 * moment, also while pods are being added and after a kill, each name is the old file or the new one, whole.
 */
import { createHash } from "node:crypto";
import { lockWithin } from "../kernel/flock.ts";
import { exists, openRegular, readRegularText, removeIfThere } from "../kernel/regular_file.ts";
import { systemRun, toolPath } from "../kernel/run.ts";
import { quotedWords } from "../kernel/shell.ts";
import { CliError, type CommandCall, status } from "./command.ts";
import { fileError, nearestExisting, needRoot, PLUGIN_FOLDER } from "./setup.ts";
import { progress } from "./progress.ts";
import { jsonDocument, painter, say, table, terminalWidth } from "./terminal.ts";
import { placeUnits, removeUnits, type Row, systemdRuns, UNIT_FOLDER, unitFolder } from "./units.ts";

const NAME = "cnibox";

function folderOf(call: CommandCall): string {
  return absolute((call.value("bin-dir") ?? PLUGIN_FOLDER).replace(/(.)\/+$/, "$1"));
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
  const foreign: string[] = [];
  await inWorkFolder(dir, async ({ state, work }) => {
    const draft = `${work}/${NAME}`;
    await prepare(draft, call.invocation.version);
    rows.push(replaceBinary({ dir, work, draft }));
    for (const name of names) {
      const row = link({ dir, work, replace: call.is("replace") }, name);
      rows.push(row);
      if (!row.good) foreign.push(name);
    }
    rows.push(...linkCommands(dir, pathFolder(call)));
    await label(dir);
    const folder = unitsWanted(call, dir, state);
    if (folder !== undefined && /[^A-Za-z0-9/._-]/.test(dir)) {
      const state = `left out: ${dir} has characters that units would have to quote`;
      rows.push({ file: folder, state, good: false });
    } else if (folder !== undefined) {
      Deno.mkdirSync(folder, { recursive: true, mode: 0o755 });
      needTrusted(folder);
      rows.push(...await placeUnits(dir, folder, { state, run: systemRun() }));
      await label(folder);
    }
  });
  return foreign.length === 0 ? show(call, rows) : showUnfinished(call, rows, foreign);
}

/** Plugins of others were there and stay: whoever relies on ours, a script too, has to notice. */
function showUnfinished(call: CommandCall, rows: readonly Row[], foreign: readonly string[]): number {
  // Only a folder is not swapped: no plugin is one, so it is somebody's mistake.
  const swap = call.is("replace") ? undefined : commandLike(call, ["install", "--replace"]);
  if (call.is("json")) {
    say(jsonDocument({ files: rows, notReplaced: foreign, ...(swap && { swap }) }));
    return status.inTheWay;
  }
  show(call, rows);
  throw new CliError(`not replaced: ${foreign.join(" ")}`, status.inTheWay, [
    "these were there and are not ours: runtimes go on calling them; everything else is installed",
    ...(swap
      ? [`to swap, with the files kept: ${swap}`, `the way back: ${commandLike(call, ["uninstall"])}`]
      : ["a folder is in the way: remove it, then run this again"]),
  ]);
}

/** A command of what is installed, for the same places as this call. */
function commandLike(call: CommandCall, [word = "", ...more]: readonly string[]): string {
  const dir = folderOf(call);
  const places = word === "install" ? call.command.flags.map(({ name }) => name) : ["bin-dir", "path-dir"];
  const words = [`${dir}/${NAME}`, word];
  for (const { name, value, kind } of call.command.flags.filter(({ name }) => places.includes(name))) {
    const given = name === "bin-dir" && dir === PLUGIN_FOLDER ? undefined : call.value(name);
    if (value === undefined && call.is(name)) words.push(`--${name}`);
    else if (given !== undefined) words.push(`--${name}`, kind === "folder" && given !== "" ? absolute(given) : given);
  }
  return quotedWords([...words, ...more]);
}

/** The folder for units: the one that is named, the one from before, or systemd's own for the usual plugin folder. */
function unitsWanted(call: CommandCall, dir: string, state: string): string | undefined {
  if (call.is("no-units")) return undefined;
  const named = call.value("units");
  if (named !== undefined) return absolute(named);
  return unitFolder(state) ?? (dir === PLUGIN_FOLDER && systemdRuns() ? UNIT_FOLDER : undefined);
}

/** Longest wait for another installer, in milliseconds. */
const LOCK_LIMIT_MS = 300_000;

/** Folders of an installation: `state` keeps what is needed later, `work` is new and goes with the command. */
interface Workplace {
  readonly state: string;
  readonly work: string;
}

/**
 * Does `doing` with a new folder that nobody else can write to, on the same file system as the target: there everything
 * is prepared. One installer at a time. Where nothing is installed afterwards, nothing stays either.
 */
async function inWorkFolder(dir: string, doing: (place: Workplace) => Promise<void>): Promise<void> {
  const state = `${dir}/.${NAME}`;
  try {
    const parent = nearestExisting(dir);
    needTrusted(parent, parent !== dir);
    Deno.mkdirSync(dir, { recursive: true, mode: 0o755 });
    needTrusted(dir);
    if (!exists(state)) Deno.mkdirSync(state, { mode: 0o755 });
    if (!Deno.lstatSync(state).isDirectory) throw new CliError(`refused: ${state} is not a folder`, status.failed);
    needTrusted(state);
    using waiting = progress();
    waiting.step("waiting for another installer to end");
    using lock = openRegular(`${state}/lock`, { write: true, create: 0o644 });
    if (!await lockWithin(lock, LOCK_LIMIT_MS)) {
      throw new CliError(`another installer is at work in ${dir}`, status.tryAgain);
    }
    waiting.step(`working in ${dir}`);
    if (parent !== dir) {
      const marker = openRegular(`${state}/${MADE}`, { write: true, create: 0o644 });
      try {
        marker.writeSync(new TextEncoder().encode(parent));
      } finally {
        marker.close();
      }
    }
    for (const { name } of [...Deno.readDirSync(state)]) {
      // Of one that was killed.
      if (name.startsWith("work.")) Deno.removeSync(`${state}/${name}`, { recursive: true });
    }
    const work = Deno.makeTempDirSync({ dir: state, prefix: "work." });
    try {
      await doing({ state, work });
    } finally {
      Deno.removeSync(work, { recursive: true });
      if (!exists(`${dir}/${NAME}`) && !exists(`${state}/replaced`)) leave(dir, state);
    }
  } catch (error) {
    if (error instanceof CliError) throw error;
    throw fileError(dir, error);
  }
}

/** Marks a plugin folder that did not exist before, and names the folder above it that did. */
const MADE = "made-this-folder";

/** Removes our folder, and the folders that we made if they are empty. */
function leave(dir: string, state: string): void {
  const made = exists(`${state}/${MADE}`) ? readRegularText(`${state}/${MADE}`) : undefined;
  for (const name of ["previous", MADE, "lock"]) removeIfThere(`${state}/${name}`);
  removeEmpty(state);
  if (made === undefined) return;
  removeEmpty(dir);
  // An earlier version named none.
  if (made === "") return;
  for (let path = dirname(dir); path !== made && path !== "/"; path = dirname(path)) removeEmpty(path);
}

const dirname = (path: string) => path.slice(0, path.lastIndexOf("/")) || "/";

function absolute(path: string): string {
  return path.startsWith("/") ? path : `${Deno.cwd()}/${path}`;
}

function needTrusted(folder: string, above = false): void {
  const distrust = distrustOf(folder, above);
  if (distrust === undefined) return;
  throw new CliError(`refused: ${distrust}`, status.failed, [
    "what is installed there could be replaced: chown and chmod go-w it, or use another folder",
  ]);
}

/**
 * Why what lies in a folder could be replaced by somebody other than root and ourselves; undefined when it could not.
 * Folders above it may be sticky, as /tmp is; `above` says that for the folder itself.
 */
function distrustOf(folder: string, above = false): string | undefined {
  let path = Deno.realPathSync(folder);
  for (let sticky = above;; sticky = true) {
    const { uid, mode } = Deno.statSync(path);
    if (uid !== 0 && uid !== Deno.uid()) return `${path} belongs to user ${uid}`;
    const bits = mode ?? 0;
    if ((bits & 0o022) !== 0 && !(sticky && (bits & 0o1000) !== 0)) {
      return `others may write to ${path} (mode ${(bits & 0o7777).toString(8)})`;
    }
    if (path === "/") return undefined;
    path = dirname(path);
  }
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
  const file = Deno.openSync(draft, { read: true });
  try {
    file.syncSync();
  } finally {
    file.close();
  }
  readWhole(draft);
  const { code, stdout, stderr } = await systemRun()({ argv: [draft, "--version"] });
  if (code !== 0 || !stdout.includes(version)) {
    throw new CliError("the executable does not start there; nothing was changed", status.failed, [
      stderr.trim() || stdout.trim(),
    ]);
  }
}

/**
 * Reads a file from start to end. Before an executable is run for the first time: one that is paged in by being run
 * makes every later call slower.
 */
function readWhole(path: string): void {
  using file = Deno.openSync(path, { read: true });
  const buffer = new Uint8Array(4 * 1024 * 1024);
  while (file.readSync(buffer) !== null);
}

/** Atomic: at any moment the name is the old file or the new one. The old one is kept. */
function replaceBinary({ dir, work, draft }: { dir: string; work: string; draft: string }): Row {
  const target = `${dir}/${NAME}`;
  if (exists(target) && !Deno.lstatSync(target).isFile) {
    throw new CliError(`refused: ${target} is in the way and not a file`, status.failed);
  }
  const before = sha256(target);
  if (before === sha256(draft)) return { file: target, state: "unchanged", good: true };
  if (before !== undefined) {
    for (const name of [`.${NAME}/previous`, REPLACED]) keep(target, `${dir}/${name}`, `${work}/kept`);
  }
  Deno.renameSync(draft, target);
  return {
    file: target,
    state: before === undefined ? "installed" : "installed, the one before kept for rollback",
    good: true,
  };
}

/**
 * A program of this kind opens its own file once more while it starts, by the name that the kernel has for it. Once the
 * file is replaced that is its old path and " (deleted)". A call that started before still needs to find it there, and
 * nobody can tell whether there is one: in a pod the machine's processes cannot be seen. So the name stays until the
 * next install or uninstall; it is one more name of what is kept for rollback, and takes no space.
 */
const REPLACED = `${NAME} (deleted)`;

/** The file under another name as well: there is no moment without either. `draft` is a name in a folder that goes. */
function keep(from: string, to: string, draft: string): void {
  // Where both are one file already, renaming leaves the draft.
  removeIfThere(draft);
  try {
    Deno.linkSync(from, draft);
  } catch {
    Deno.copyFileSync(from, draft);
  }
  Deno.renameSync(draft, to);
}

/** Where links are put, where they are prepared, and whether other files are moved out of the way. */
interface Linking {
  readonly dir: string;
  readonly work: string;
  readonly replace: boolean;
}

function link({ dir, work, replace }: Linking, name: string): Row {
  const target = `${dir}/${name}`;
  const now = linkOf(target);
  if (now === NAME) return { file: target, state: "unchanged", good: true };
  if (exists(target) && !isOurs(dir, target)) {
    // A folder cannot be a plugin: it is somebody's mistake, to be looked at.
    if (!replace || Deno.lstatSync(target).isDirectory) {
      return { file: target, state: "left alone: not ours", good: false };
    }
    Deno.mkdirSync(`${dir}/.${NAME}/replaced`, { recursive: true });
    keep(target, `${dir}/.${NAME}/replaced/${name}`, `${work}/kept`);
  }
  const draft = `${work}/${name}`;
  Deno.symlinkSync(NAME, draft);
  Deno.renameSync(draft, target);
  return { file: target, state: `-> ${NAME}`, good: true };
}

/** By another kind of link, or a copy of what is or was installed here. */
function isOurs(dir: string, target: string): boolean {
  if (sameFile(target, `${dir}/${NAME}`)) return true;
  const sum = Deno.lstatSync(target).isSymlink ? undefined : sha256(target);
  return sum !== undefined && (sum === sha256(`${dir}/${NAME}`) || sum === sha256(`${dir}/.${NAME}/previous`));
}

function isOurLink(dir: string, file: string): boolean {
  const target = linkOf(file);
  return target !== undefined && (target === NAME || sameFile(file, `${dir}/${NAME}`));
}

/** Do both paths lead to one file? */
function sameFile(one: string, other: string): boolean {
  try {
    const [a, b] = [Deno.statSync(one), Deno.statSync(other)];
    return a.dev === b.dev && a.ino === b.ino;
  } catch {
    return false;
  }
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
  const rows: Row[] = [];
  await inWorkFolder(dir, async ({ work }) => {
    const draft = `${work}/${NAME}`;
    if (!Deno.lstatSync(previous).isFile) throw new CliError(`refused: ${previous} is not a file`, status.failed);
    Deno.copyFileSync(previous, draft);
    Deno.chmodSync(draft, 0o755);
    // Reads the draft from start to end, as `prepare` does.
    const row = replaceBinary({ dir, work, draft });
    const { stdout } = await systemRun()({ argv: [`${dir}/${NAME}`, "--version"] });
    rows.push({ ...row, state: `${stdout.trim()} is back, the one from before kept for rollback` });
  });
  return show(call, rows);
}

/** `cnibox uninstall` */
export async function uninstall(call: CommandCall): Promise<number> {
  const dir = folderOf(call);
  if (dir === PLUGIN_FOLDER) needRoot(call, `it writes to ${dir}`);
  if (!exists(`${dir}/.${NAME}`)) {
    if (!call.is("json")) say(`nothing of ours in ${dir}`);
    return call.is("json") ? show(call, []) : status.done;
  }
  const rows: Row[] = [];
  await inWorkFolder(dir, async ({ state }) => {
    rows.push(...unlinkCommands(dir, pathFolder(call)));
    rows.push(...await removeUnits({ state, run: systemRun() }));
    rows.push(...unlinked(dir, `${state}/replaced`));
    for (const file of [`${dir}/${NAME}`, `${dir}/${REPLACED}`, `${state}/previous`]) removeIfThere(file);
    rows.push({ file: `${dir}/${NAME}`, state: "removed", good: true });
    removeEmpty(`${state}/replaced`);
    if (exists(`${state}/replaced`)) {
      rows.push({ file: `${state}/replaced`, state: "kept: other files have taken these places", good: false });
    }
  });
  return show(call, rows);
}

/**
 * Removes the links to us, and puts back what is kept of the files that were there, unless others have taken their
 * places.
 */
function unlinked(dir: string, replaced: string): Row[] {
  const rows: Row[] = [];
  for (const { name, isSymlink } of [...Deno.readDirSync(dir)]) {
    const file = `${dir}/${name}`;
    if (!isSymlink || exists(`${replaced}/${name}`) || !isOurLink(dir, file)) continue;
    Deno.removeSync(file);
    rows.push({ file, state: "removed", good: true });
  }
  for (const { name } of exists(replaced) ? [...Deno.readDirSync(replaced)] : []) {
    const file = `${dir}/${name}`;
    if (exists(file) && !isOurLink(dir, file)) continue;
    Deno.renameSync(`${replaced}/${name}`, file);
    rows.push({ file, state: "put back as it was", good: true });
  }
  return rows;
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
    const { uid, mode, isFile } = Deno.lstatSync(binary);
    const writable = ((mode ?? 0) & 0o022) !== 0;
    rows.push({
      file: binary,
      state: `${isFile ? "" : "not a file itself: "}owner ${uid}, mode ${((mode ?? 0) & 0o7777).toString(8)}`,
      good: isFile && uid === 0 && !writable && ((mode ?? 0) & 0o111) !== 0,
    });
    for (const folder of [dir, `${dir}/.${NAME}`].filter((path) => exists(path))) {
      const distrust = distrustOf(folder);
      if (distrust !== undefined) rows.push({ file: folder, state: distrust, good: false });
    }
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
  if (call.is("json")) say(jsonDocument({ files: rows }));
  else {
    const paint = painter();
    const shown = rows.map(({ file, state, good }) => [file, paint(good ? "green" : "yellow", state)]);
    say(table([], shown, { width: terminalWidth() }));
  }
  return status.done;
}

function sha256(path: string): string | undefined {
  try {
    using file = openRegular(path, { links: true });
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

function removeEmpty(folder: string): void {
  try {
    Deno.removeSync(folder);
  } catch {
    // Something is kept there.
  }
}

/** Folder on people's PATH where commands are linked when the plugins go to their usual place. */
const PATH_FOLDER = "/usr/local/bin";

/** Where commands are linked for people; undefined when nowhere. */
function pathFolder(call: CommandCall): string | undefined {
  const given = call.value("path-dir") ?? (folderOf(call) === PLUGIN_FOLDER ? PATH_FOLDER : "");
  return given === "" ? undefined : given.replace(/(.)\/+$/, "$1");
}

/** Links for people, and the executable or link that each leads to: `cnitool` here, it and `cnibox` on the PATH. */
function commandLinks(dir: string, path: string | undefined): { file: string; target: string }[] {
  const onPath = path === undefined ? [] : [NAME, "cnitool"];
  return [
    { file: `${dir}/cnitool`, target: NAME },
    ...onPath.map((name) => ({ file: `${path}/${name}`, target: `${dir}/${NAME}` })),
  ];
}

/** Makes the links that are not there; what somebody else put in such a place stays, `--replace` or not. */
function linkCommands(dir: string, path: string | undefined): Row[] {
  return commandLinks(dir, path).map(({ file, target }) => {
    if (linkOf(file) === target) return { file, state: "unchanged", good: true };
    if (exists(file)) return { file, state: "left alone: not ours", good: file.endsWith("/cnitool") };
    try {
      Deno.symlinkSync(target, file);
      return { file, state: `-> ${target}`, good: true };
    } catch (error) {
      return { file, state: `not made: ${fileError(file, error).message}`, good: false };
    }
  });
}

/** Removes the links that lead to what is uninstalled. */
function unlinkCommands(dir: string, path: string | undefined): Row[] {
  return commandLinks(dir, path).filter(({ file, target }) => linkOf(file) === target).map(({ file }) => {
    try {
      Deno.removeSync(file);
      return { file, state: "removed", good: true };
    } catch (error) {
      return { file, state: `not removed: ${fileError(file, error).message}`, good: false };
    }
  });
}
