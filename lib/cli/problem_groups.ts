/** Problems of many attachments told once each: what is wrong, how many it concerns, and what repairs all of them. */
import type { Problem, ProblemCode, View } from "./survey.ts";

/** One kind of problem, with all that have it. */
export interface ProblemGroup {
  readonly code: ProblemCode;
  readonly text: string;
  readonly count: number;
  /** The command that repairs all of them; where there is none, the one that lists a command for each. */
  readonly fix: string;
  readonly views: readonly View[];
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
  const found = new Map<ProblemCode, { views: View[]; fixes: Set<string> }>();
  for (const view of views) {
    for (const { code, fix } of of(view)) {
      const group = found.get(code) ?? { views: [], fixes: new Set() };
      if (!group.views.includes(view)) group.views.push(view);
      if (fix !== "") group.fixes.add(fix);
      found.set(code, group);
    }
  }
  return [...found].map(([code, { views, fixes }]) => {
    const [one, many] = WORDS[code];
    const text = views.length === 1 ? `1 attachment ${one}` : `${views.length} attachments ${many}`;
    return { code, text, count: views.length, fix: fixOfAll([...fixes]), views };
  });
}

function fixOfAll(fixes: readonly string[]): string {
  const [first = ""] = fixes;
  if (fixes.length < 2) return first;
  if (fixes.every((fix) => fix.startsWith("cnibox restore "))) return "cnibox restore --all";
  // One command for each network.
  if (fixes.length <= 3 && fixes.every((fix) => /^cnibox (gc|ipam repair) /.test(fix))) return fixes.join(" && ");
  return "cnibox show --problems";
}
