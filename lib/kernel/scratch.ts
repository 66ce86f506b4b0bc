/**
 * Standard input and output of tools as small files, readable by root only. The runtime's own pipes are streams, and
 * making the first of them costs more (5 ms) than starting a tool and reading two files. The name of a file says which
 * call it belongs to, so a later call can tell what a killed one left.
 */

import { isOwnFolder, RUN_FOLDER } from "./run_folder.ts";

/** Folder of the files. */
export const SCRATCH = `${RUN_FOLDER}/io`;
/** Environment variable of every tool: the call that started it, see {@linkcode callName}. */
export const CALL_VARIABLE = "CNIBOX_CALL";

let name: string | undefined;

/**
 * Name of this call, which no other process of this boot has: process ID, PID namespace, and when the process was
 * started. The namespace is 0 where /proc does not tell: then nobody can know later whether the call is over.
 */
export function callName(): string {
  return name ??= nameInProc() ?? `${Deno.pid}-0-${Math.random().toString().slice(2, 12)}`;
}

function nameInProc(): string | undefined {
  try {
    const space = pidNamespace();
    const { pid, start } = look("self");
    return pid === Deno.pid && space !== "" ? `${pid}-${space}-${start}` : undefined;
  } catch {
    return undefined;
  }
}

/** Inode number of this process's PID namespace, in decimal. */
function pidNamespace(): string {
  return Deno.readLinkSync("/proc/self/ns/pid").replace(/\D/g, "");
}

/**
 * A process as the kernel sees it: ID, start in ticks since boot, and whether it is ending. Throws where there is none.
 */
function look(process: number | "self"): { pid: number; start: string; ending: boolean } {
  const text = Deno.readTextFileSync(`/proc/${process}/stat`);
  // The second field is the program's name in parentheses, and may hold anything: proc_pid_stat(5).
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  const [state = "", , , , , , flags] = fields;
  return {
    pid: Number.parseInt(text),
    start: fields[19] ?? "",
    ending: "ZX".includes(state) || isExiting(Number(flags)),
  };
}

/** PF_EXITING */
const isExiting = (flags: number) => (flags & 4) !== 0;

/** Whether a call that has this name is over; undefined where that cannot be known from here. */
export function isOver(call: string): boolean | undefined {
  const [pid = "", space = "", start] = call.split("-");
  const [, ownSpace] = callName().split("-");
  if (space === "0" || space !== ownSpace) return undefined;
  try {
    const process = look(Number(pid));
    return process.ending || process.start !== start;
  } catch (error) {
    return error instanceof Deno.errors.NotFound ? true : undefined;
  }
}

let count = 0;

/** Whether there is a folder for the files that belongs to root alone; made if need be. */
function hasFolder(): boolean {
  return Deno.uid() === 0 && isOwnFolder(RUN_FOLDER) && isOwnFolder(SCRATCH);
}

/** Files of one command. */
export interface Scratch {
  /**
   * Standard streams, the last first; input is absent where there is none. To be closed once the command is started.
   */
  readonly streams: readonly Deno.FsFile[];
  /** What the command printed, once it has ended. Throws when there was no room for all of it. */
  read(): { stdout: string; stderr: string };
  remove(): void;
}

/**
 * Files for one command with this input; undefined where there can be none: not root, /run full, read-only, or somebody
 * else's.
 */
export function openScratch(input: string): Scratch | undefined {
  if (!hasFolder()) return undefined;
  const base = `${SCRATCH}/${callName()}-${count++}`;
  const [err, out] = [`${base}.err`, `${base}.out`];
  const streams: Deno.FsFile[] = [];
  const paths: string[] = [];
  const remove = () => paths.forEach(removeFile);
  const open = (path: string, text: string) => {
    // Never follows a link, and never waits for a FIFO: there must be nothing of that name.
    const file = Deno.openSync(path, { read: true, write: true, createNew: true, mode: 0o600 });
    streams.push(file);
    paths.push(path);
    const bytes = new TextEncoder().encode(text);
    for (let done = 0; done < bytes.length;) done += file.writeSync(bytes.subarray(done));
    return file;
  };
  try {
    // One byte takes the room that most answers need, and tells a full file system before anything is started.
    open(err, RESERVED);
    open(out, RESERVED);
    if (input !== "") open(`${base}.in`, input).seekSync(0, Deno.SeekMode.Start);
  } catch {
    for (const file of streams) file.close();
    remove();
    return undefined;
  }
  return { streams, read: () => ({ stdout: readOutput(out), stderr: readOutput(err) }), remove };
}

const RESERVED = "\n";
/** Files grow by whole pages: where the room ended, a page ended. */
const PAGE = 4096;

function readOutput(path: string): string {
  const bytes = Deno.readFileSync(path);
  if (bytes.length % PAGE === 0) Deno.writeTextFileSync(path, RESERVED, { append: true, create: false });
  return new TextDecoder().decode(bytes.subarray(RESERVED.length));
}

function removeFile(path: string): void {
  try {
    Deno.removeSync(path);
  } catch {
    // It lies there until GC finds it.
  }
}

/**
 * Files of calls that are over and were killed, by the calls' names. Undefined where there can be no files, so that
 * nothing is known about killed calls either.
 */
export function leftovers(): Map<string, string[]> | undefined {
  if (!hasFolder()) return undefined;
  const byCall = new Map<string, string[]>();
  try {
    for (const { name } of Deno.readDirSync(SCRATCH)) {
      const call = /^(\d+-\d+-\d+)-\d+\.\w+$/.exec(name)?.[1];
      if (call === undefined || call === callName()) continue;
      const files = byCall.get(call);
      if (files) files.push(`${SCRATCH}/${name}`);
      else byCall.set(call, [`${SCRATCH}/${name}`]);
    }
  } catch {
    return undefined;
  }
  for (const call of byCall.keys()) if (!isOver(call)) byCall.delete(call);
  return byCall;
}

/** Removes files that are older than any command may be. Returns how many there were. */
export function collectScratch(limitMs: number): number {
  if (!hasFolder()) return 0;
  const latest = Date.now() - 2 * Math.max(limitMs, 10 * 60_000);
  let count = 0;
  try {
    for (const { name } of Deno.readDirSync(SCRATCH)) {
      const path = `${SCRATCH}/${name}`;
      if ((Deno.lstatSync(path).mtime?.getTime() ?? latest) >= latest) continue;
      removeFile(path);
      count++;
    }
  } catch {
    // Another process is collecting.
  }
  return count;
}
