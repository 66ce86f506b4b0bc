/** Problems of many attachments told once each: what is wrong, how many it concerns, and what repairs all of them. */
import type { Orphan, Problem, ProblemCode, View } from "./survey.ts";
import { hanging, oneLine, painter } from "./terminal.ts";

/** One kind of problem, with all that have it. */
export interface ProblemGroup {
  readonly code: ProblemCode;
  readonly text: string;
  /** The command that repairs all of them; where there is none, the one that lists a command for each. */
  readonly fix: string;
  /** Each attachment once, with all its problems of this kind. */
  readonly cases: readonly { readonly view: View; readonly problems: readonly Problem[] }[];
}

/** One kind of things that belong to no attachment. */
export interface OrphanGroup {
  readonly text: string;
  readonly fix: string;
  readonly orphans: readonly Orphan[];
}

/** What is wrong, after "3 attachments". */
const WORDS: Readonly<Record<ProblemCode, readonly [one: string, many: string]>> = {
  "netns-gone": ["has a namespace that is gone", "have namespaces that are gone"],
  "interface-missing": ["lacks its interface", "lack their interface"],
  "address-missing": ["lacks an address on its interface", "lack an address on their interface"],
  "lease-missing": ["has an address that is not recorded", "have addresses that are not recorded"],
  "address-shared": ["has an address that others have too", "have addresses that others have too"],
  "host-link-missing": ["lacks the host's end of its link", "lack the host's end of their link"],
  "port-rules-missing": ["lacks the rules of its published ports", "lack the rules of their published ports"],
  "masquerade-missing": ["lacks masquerading", "lack masquerading"],
  "firewall-missing": ["lacks firewall rules", "lack firewall rules"],
  "not-cached": ["is known by its lease alone", "are known by their leases alone"],
  "not-examined": ["could not be examined", "could not be examined"],
  "no-container": ["has an address and no container", "have addresses and no container"],
};

/** Groups problems by their kind, in the order in which they are found. */
export function groupProblems(
  views: readonly View[],
  of: (view: View) => readonly Problem[] = ({ problems }) => problems,
): ProblemGroup[] {
  const found = new Map<ProblemCode, Map<View, Problem[]>>();
  for (const view of views) {
    for (const problem of of(view)) {
      const group = found.get(problem.code) ?? new Map<View, Problem[]>();
      group.set(view, [...group.get(view) ?? [], problem]);
      found.set(problem.code, group);
    }
  }
  return [...found].map(([code, group]) => {
    const cases = [...group].map(([view, problems]) => ({ view, problems }));
    const fixes = cases.flatMap(({ problems }) => problems.map(({ fix }) => fix));
    const [one, many] = WORDS[code];
    const text = cases.length === 1 ? `1 attachment ${one}` : `${cases.length} attachments ${many}`;
    return { code, text, fix: fixOfAll(fixes, LIST), cases };
  });
}

/** Groups what belongs to no attachment by what it is and by what removes it; one alone keeps its own words. */
export function groupOrphans(orphans: readonly Orphan[]): OrphanGroup[] {
  const kinds = Map.groupBy(
    orphans,
    ({ what, fix }) => what === "chain" ? what : fix.startsWith(GC) ? "dead" : "alive",
  );
  return [...kinds].map(([kind, all]) => {
    const [first] = all;
    const text = first && all.length === 1 ? `${first.name}: ${first.text}` : ORPHAN_WORDS[kind](all.length);
    return { text, fix: fixOfAll(all.map(({ fix }) => fix), LIST), orphans: all };
  });
}

const ORPHAN_WORDS = {
  chain: (count: number) => `iptables rules of ${count} containers that nobody knows`,
  dead: (count: number) => `${count} links of containers that nobody knows`,
  alive: (count: number) => `${count} links of containers that nobody knows, and whose namespaces live`,
} as const;

/** Lists every problem with the command that repairs it. */
export const LIST = "cnibox show --problems";
const GC = "cnibox gc ";

/** The one command that does what all of these do; where there is none, the one that lists them. */
export function fixOfAll(fixes: readonly string[], list: string): string {
  const all = [...new Set(fixes)].filter((fix) => fix !== "");
  const [first = ""] = all;
  if (all.length < 2) return first;
  const each = (pattern: RegExp) => all.every((fix) => pattern.test(fix));
  if (each(/^cnibox restore --id [^ ]+$/)) return "cnibox restore --all";
  // It takes several networks.
  if (each(/^cnibox gc [^ ]+$/)) return `${GC}${all.map((fix) => fix.slice(GC.length)).join(",")}`;
  if (each(/^cnibox ipam repair [^ ]+$/)) return "cnibox ipam repair --all";
  return list;
}

/** What is wrong, and below it the command that repairs it. */
export function troubleText({ text, fix }: Pick<Problem, "text" | "fix">, mark: string, indent: string): string {
  const lines = [
    ...hanging(`${indent}${mark} `, oneLine(text)),
    ...(fix === "" ? [] : hanging(`${indent}    `, painter()("dim", oneLine(fix)))),
  ];
  return lines.map((line) => `${line}\n`).join("");
}
