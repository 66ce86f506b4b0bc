/** `doctor` on attachments: those whose parts do not fit together. */
import { real } from "../show.ts";
import { type Line, type Node, ok } from "./finding.ts";

/** Attachments whose parts do not fit together; addresses have their own lines. */
export function attachments({ seen, root }: Node): Line[] {
  const area = "attachments";
  const lines: Line[] = [];
  for (const { network, containerId, ifName, problems } of seen.views) {
    for (const { code, text, fix } of real(problems)) {
      if (["lease-missing", "no-container", "address-shared"].includes(code)) continue;
      const rules = ["port-rules-missing", "masquerade-missing", "firewall-missing"].includes(code);
      lines.push({
        area,
        grade: code === "netns-gone" ? "warning" : "failure",
        text: `${containerId} (${ifName}) on ${network}: ${text}`,
        breaks: code === "netns-gone"
          ? "what is left of it takes up room"
          : rules
          ? "its traffic"
          : "the container has no network",
        fix,
        ...(rules && { run: ["cnibox", "restore", "--id", containerId] }),
      });
    }
  }
  for (const { name, text, fix } of seen.orphans) {
    lines.push({ area, grade: "warning", text: `${name}: ${text}`, breaks: "it is in the way of others", fix });
  }
  const count = seen.views.filter(({ cached }) => cached).length;
  if (lines.length === 0 && root && count > 0) {
    lines.push(ok(area, `${count} ${count === 1 ? "attachment" : "attachments"}, each whole`));
  }
  return lines;
}
