/** What every check of `cnibox doctor` is given, and what it says. */
import type { Runtime } from "../../cni/chain.ts";
import type { NetworkList } from "../../cni/conflist.ts";
import { isObject, lookup } from "../../cni/decode.ts";
import type { Run } from "../../kernel/run.ts";
import type { Folders } from "../setup.ts";
import type { Survey } from "../survey.ts";

/**
 * `ok`, a warning (some things will not work, or soon not), or a failure (containers cannot be attached or reached).
 */
export type Grade = "ok" | "warning" | "failure";

/** One thing that was looked at. */
export interface Line {
  readonly area: string;
  readonly grade: Grade;
  readonly text: string;
  /** What breaks. */
  readonly breaks?: string;
  /** What to do, as a command where there is one. */
  readonly fix?: string;
  /** The command that `--fix` runs: it fixes the problem and does no harm. */
  readonly run?: readonly string[];
}

/** What every check may look at. */
export interface Node {
  readonly folders: Folders;
  readonly host: Run;
  readonly runtime: Runtime;
  readonly names: readonly string[];
  readonly lists: readonly NetworkList[];
  readonly seen: Survey;
  readonly root: boolean;
}

export type Check = (node: Node) => Line[] | Promise<Line[]>;

export const ok = (area: string, text: string): Line => ({ area, grade: "ok", text });

export const counted = (number: number, word: string) => `${number} ${word}${number === 1 ? "" : "s"}`;

/** Types that the node's networks use, IPAM plugins too; runtimes bring loopback along. */
export function typesInUse(lists: readonly NetworkList[]): string[] {
  const types = new Set<string>(["loopback"]);
  for (const { plugins } of lists) {
    for (const { type, config } of plugins) {
      types.add(type);
      const ipam = lookup(config, "ipam");
      const own = isObject(ipam) ? lookup(ipam, "type") : undefined;
      if (typeof own === "string" && own !== "") types.add(own);
    }
  }
  return [...types];
}

/** What a command says on either stream; "" when it cannot be run. */
export async function output(host: Run, argv: readonly string[]): Promise<string> {
  try {
    const { stdout, stderr } = await host({ argv, limitMs: 5_000 });
    return `${stdout}${stderr}`;
  } catch {
    return "";
  }
}

export function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}
