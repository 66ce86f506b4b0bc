/** A lease folder of a test: a real one, gone afterwards. */
import type { Run } from "../../lib/kernel/run.ts";
import { untilClosed } from "../kernel/open_files.ts";

export interface Folder {
  /** Folder of the leases; not made yet. */
  readonly path: string;
  /** Options for every function of the allocator: an index of its own, warnings collected, no child processes. */
  readonly options: {
    readonly indexFolder: string;
    readonly warn: (note: string) => void;
    readonly host: Run;
    readonly resultsFolders: readonly string[];
  };
  readonly warnings: string[];
  /** Names in the folder, sorted; empty when it is not there. */
  names(): string[];
  read(name: string): string;
  /** Writes a file as another program would; makes the folder. */
  write(name: string, text: string): void;
}

/** Runs a test in a temporary folder. */
export async function inFolder(test: (folder: Folder) => Promise<void> | void): Promise<void> {
  const base = await Deno.makeTempDir({ prefix: "cnibox-ipam-" });
  const path = `${base}/networks/net1`;
  const warnings: string[] = [];
  try {
    await test({
      path,
      options: {
        indexFolder: `${base}/run`,
        warn: (note) => warnings.push(note),
        host: () => Promise.reject(new Error("no child process expected")),
        resultsFolders: [`${base}/results`],
      },
      warnings,
      names: () => exists(path) ? [...Deno.readDirSync(path)].map(({ name }) => name).sort() : [],
      read: (name) => Deno.readTextFileSync(`${path}/${name}`),
      write: (name, text) => {
        Deno.mkdirSync(path, { recursive: true });
        Deno.writeTextFileSync(`${path}/${name}`, text);
      },
    });
    await untilClosed(base);
  } finally {
    await Deno.remove(base, { recursive: true });
  }
}

export function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** A program that holds flock(2) on the file until it is told to stop. */
export async function holdLock(path: string): Promise<{ pid: number; [Symbol.asyncDispose](): Promise<void> }> {
  const child = new Deno.Command("flock", { args: [path, "sh", "-c", "echo; read x"], stdin: "piped", stdout: "piped" })
    .spawn();
  const reader = child.stdout.getReader();
  await reader.read();
  return {
    pid: child.pid,
    [Symbol.asyncDispose]: async () => {
      await child.stdin.close();
      while (!(await reader.read()).done);
      await child.status;
    },
  };
}
