/** What every check of `cnibox doctor` is given, and what it says. */
import type { Runtime } from "../../cni/chain.ts";
import type { NetworkList } from "../../cni/conflist.ts";
import type { Run } from "../../kernel/run.ts";
import { fixOfAll } from "../problem_groups.ts";
import { type Folders, ipamType } from "../setup.ts";
import type { Survey } from "../survey.ts";

/**
 * `ok`, a warning (some things will not work, or soon not), or a failure (containers cannot be attached or reached).
 */
export type Grade = "ok" | "warning" | "failure";

/** One of several things that have the same problem. */
export interface Case {
  readonly text: string;
  readonly fix?: string;
  readonly network?: string;
  readonly containerId?: string;
  readonly ifName?: string;
  readonly address?: string;
}

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
  /** Everything that has the problem, where several things can. */
  readonly cases?: readonly Case[];
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

/** Makes the findings of an area, by their grade. */
export function findings(area: string) {
  type More = Omit<Line, "area" | "grade" | "text">;
  const of = (grade: Grade) => (text: string, more: More = {}): Line => ({ area, grade, text, ...more });
  return { ok: of("ok"), warning: of("warning"), failure: of("failure") };
}

/** Lists the cases of every finding, each with its fix. */
export const VERBOSE = "cnibox doctor --verbose";

/**
 * One finding for all cases of a kind, none where there are none. A single case keeps its own words; the text of the
 * finding is for several. `list` is the command that lists the cases where no one command fixes all of them.
 */
export function ofKind(line: Line, cases: readonly Case[], list = VERBOSE): Line[] {
  const [first, ...others] = cases;
  if (!first) return [];
  const fix = fixOfAll(cases.map(({ fix = "" }) => fix), list);
  return [{ ...line, text: others.length === 0 ? first.text : line.text, ...(fix !== "" && { fix }), cases }];
}

/** Types that the node's networks use, IPAM plugins too; runtimes bring loopback along. */
export function typesInUse(lists: readonly NetworkList[]): string[] {
  const types = new Set<string>(["loopback"]);
  for (const { plugins } of lists) {
    for (const { type, config } of plugins) {
      types.add(type);
      if (ipamType(config) !== "") types.add(ipamType(config));
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
