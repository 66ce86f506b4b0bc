/** What a plugin call starts and opens, seen by strace. */
import type { Node } from "./node.ts";
import { type PluginCall, type PluginOutput, runPlugin } from "./plugins.ts";

/** One program that was started: the plugin itself comes first. */
export interface Exec {
  pid: number;
  /** The executable's path as given to the kernel. */
  path: string;
  argv: string[];
}

export interface Trace {
  output: PluginOutput;
  /** Programs in the order of their start, the plugin itself first. */
  execs: Exec[];
  /** Processes started below the plugin; threads are not counted. */
  children: number;
  /**
   * Paths that were opened, made, linked or renamed, whether that worked or not, as they were given; with duplicates.
   */
  files: string[];
}

let count = 0;

/**
 * Runs a plugin under strace. Needs "tool:strace". The call works as without, only slower.
 */
export async function tracePlugin(node: Node, call: PluginCall): Promise<Trace> {
  const folder = `/run/trace${++count}`;
  await Deno.mkdir(node.path(folder));
  // One file for each thread (-ff), so that no line is cut in two by another.
  const wrap = ["strace", "-ff", "-qq", "-ttt", "-s", "4096", "-e", "trace=%file,%process", "-e", "signal=none"];
  const output = await runPlugin(node, { ...call, wrap: [...wrap, "-o", `${folder}/t`, ...(call.wrap ?? [])] });
  const execs: (Exec & { at: number })[] = [];
  const files: string[] = [];
  let children = 0;
  for (const name of await node.list(folder)) {
    const pid = Number(name.slice(2));
    for (const line of (await node.read(`${folder}/${name}`) ?? "").split("\n")) {
      const match = line.match(/^(\d+\.\d+) (\w+)\((.*)\)\s+= (-?\d+|\?)/);
      if (!match) continue;
      const [, at, syscall = "", args = "", result] = match;
      if (syscall === "execve" && result === "0") {
        const [, path = "", list = ""] = args.match(/^"((?:[^"\\]|\\.)*)", \[(.*?)\]/) ?? [];
        execs.push({ pid, path, argv: strings(list), at: Number(at) });
      } else if (/^(clone3?|v?fork)$/.test(syscall) && Number(result) > 0) {
        if (!args.includes("CLONE_THREAD")) children++;
      } else if (
        /^(open|openat|openat2|creat|mkdir|mkdirat|mknod|mknodat|link|linkat|symlink|symlinkat|rename|renameat2?)$/
          .test(syscall)
      ) {
        files.push(...strings(args));
      }
    }
  }
  await Deno.remove(node.path(folder), { recursive: true });
  execs.sort((one, other) => one.at - other.at);
  return { output, execs: execs.map(({ at: _, ...exec }) => exec), children, files };
}

/** Base names of the programs started, the plugin itself left out. */
export function childPrograms(trace: Trace): string[] {
  return trace.execs.slice(1).map(({ path }) => path.slice(path.lastIndexOf("/") + 1));
}

/** Paths below the folders where any local user may put files. */
export function temporaryFiles(trace: Trace): string[] {
  return trace.files.filter((path) => /^\/(tmp|var\/tmp|dev\/shm)(\/|$)/.test(path));
}

function strings(text: string): string[] {
  return [...text.matchAll(/"((?:[^"\\]|\\.)*)"/g)].map((match) => match[1] ?? "");
}
