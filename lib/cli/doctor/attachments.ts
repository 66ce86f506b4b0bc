/** `doctor` on attachments: those whose parts do not fit together. */
import { groupOrphans, groupProblems, type ProblemGroup } from "../problem_groups.ts";
import { nameOfView, real } from "../show.ts";
import type { ProblemCode } from "../survey.ts";
import { findings, type Line, type Node, ofKind } from "./finding.ts";

const { ok, warning, failure } = findings("attachments");
/** Problems that `doctor` reports with the addresses. */
const OF_ADDRESSES: readonly ProblemCode[] = ["lease-missing", "no-container", "address-shared"];
/** Problems that `cnibox restore` fixes. */
const OF_RULES: readonly ProblemCode[] = ["port-rules-missing", "masquerade-missing", "firewall-missing"];

/** Attachments whose parts do not fit together, a finding for each kind of problem. */
export function attachments({ seen, root }: Pick<Node, "seen" | "root">): Line[] {
  const groups = groupProblems(
    seen.views,
    ({ problems }) => real(problems).filter(({ code }) => !OF_ADDRESSES.includes(code)),
  );
  const lines = [...groups.flatMap(ofAttachments), ...groupOrphans(seen.orphans).flatMap(ofOrphans)];
  const count = seen.views.filter(({ cached }) => cached).length;
  if (lines.length === 0 && root && count > 0) {
    lines.push(ok(`${count} ${count === 1 ? "attachment" : "attachments"}, each whole`));
  }
  return lines;
}

function ofAttachments({ code, text, cases }: ProblemGroup): Line[] {
  const isGone = code === "netns-gone";
  const isOfRules = OF_RULES.includes(code);
  const [id = "", ...others] = new Set(cases.map(({ view }) => view.containerId));
  return ofKind(
    (isGone ? warning : failure)(text, {
      breaks: isGone
        ? "what is left takes up room"
        : isOfRules
        ? "traffic that needs these rules"
        : "containers have no network",
      ...(isOfRules && { run: ["cnibox", "restore", ...(others.length === 0 ? ["--id", id] : ["--all"])] }),
    }),
    cases.flatMap(({ view, problems }) => {
      const { network, containerId, ifName } = view;
      const name = nameOfView(view);
      return problems.map(({ text, fix }) => ({
        text: `${name} (${ifName}) on ${network}: ${text}`,
        fix,
        network,
        containerId,
        ifName,
      }));
    }),
  );
}

function ofOrphans({ text, orphans }: ReturnType<typeof groupOrphans>[number]): Line[] {
  return ofKind(
    warning(text, { breaks: "what is left is in the way of others" }),
    orphans.map(({ name, network, text, fix }) => ({ text: `${name}: ${text}`, fix, network })),
  );
}
