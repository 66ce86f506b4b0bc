/**
 * The screens of docs/screens: what `show`, `status`, `doctor`, `ipam`, `networks` and `graph` print of recorded
 * nodes, at two widths, and two pictures. With CNIBOX_WRITE_EXPECTED=1 this writes them, to be looked at.
 */
import { assert, assertEquals } from "@std/assert";
import { addresses } from "../../lib/cli/doctor/addresses.ts";
import { attachments } from "../../lib/cli/doctor/attachments.ts";
import { textOf } from "../../lib/cli/doctor/doctor.ts";
import { findings, type Line, type Node } from "../../lib/cli/doctor/finding.ts";
import { forwardPolicy } from "../../lib/cli/doctor/firewall.ts";
import { bridges } from "../../lib/cli/doctor/links.ts";
import { drawingOf } from "../../lib/cli/drawing.ts";
import { treeOf } from "../../lib/cli/graph.ts";
import { svgOf } from "../../lib/cli/graph_svg.ts";
import { checkText, findingsOf, usageText } from "../../lib/cli/ipam.ts";
import { knownOf, networksText } from "../../lib/cli/networks.ts";
import { overviewOf, overviewText } from "../../lib/cli/node_overview.ts";
import { listText } from "../../lib/cli/show.ts";
import { type Found, type Survey, surveyOf } from "../../lib/cli/survey.ts";
import { painter, widthOf } from "../../lib/cli/terminal.ts";
import { type Condition, recordedNode } from "../fakes/recorded_node.ts";

const ok = (area: string, text: string) => findings(area).ok(text);
const FOLDER = new URL("../../docs/screens/", import.meta.url);
const WRITES = Deno.env.get("CNIBOX_WRITE_EXPECTED") === "1";

/** What doctor says of a machine; the rest of its findings follows from the recorded node. */
const MACHINE: readonly Line[] = [
  ok("plugins", "loopback, bridge, host-local, portmap: this cnibox, in /opt/cni/bin"),
  ok("tools", "ip 6.1.0, nsenter, iptables 1.8.9, nft 1.0.6"),
  ok("tools", "rules are set with iptables 1.8.9 or nft 1.0.6"),
  ok("kernel", "links of kind bridge, veth"),
  ok("forwarding", "forwarding of IPv4 is on"),
  ok("forwarding", "rp_filter lets answers through"),
];

const drawn = (seen: Survey) => drawingOf(seen, { host: "node1", defaults: ["eth0"], peers: [] });

function doctorText(found: Found, seen: Survey): string {
  const node: Pick<Node, "seen" | "lists" | "root"> = { seen, lists: found.lists, root: true };
  const file = found.broken[0]?.file;
  const configuration = file
    ? {
      area: "configuration",
      grade: "failure",
      text: "1 error and 0 warnings in /etc/cni/net.d",
      fix: "cnibox validate",
    }
    : ok("configuration", "all 2 files are sound");
  return textOf([
    ok("configuration", 'runtimes take /etc/cni/net.d/10-front.conflist, network "front"'),
    configuration as Line,
    ...MACHINE,
    ...forwardPolicy(node as Node),
    ...addresses(node),
    ...attachments(node),
    ...bridges(node as Node),
  ], { verbose: false });
}

/** Every command with what it prints. */
function screens(found: Found): [command: string, text: string][] {
  const seen = surveyOf(found);
  const plugins = { folder: "/opt/cni/bin", ours: 21, foreign: [] };
  return [
    ["cnibox status", overviewText(overviewOf(seen, { version: "v0.1.0", plugins }))],
    ["cnibox networks", networksText(knownOf(found.lists, found.attachments, found.pools))],
    ["cnibox doctor", doctorText(found, seen)],
    ["cnibox ipam", usageText(found.pools)],
    ["cnibox ipam check", checkText(findingsOf(seen.judgement, []))],
    ["cnibox show", listText(seen)],
    ["cnibox graph", treeOf(drawn(seen), painter())],
  ];
}

/** Runs `work` with a terminal of this width that shows no colours. */
function atWidth<T>(width: number, work: () => T): T {
  const names = ["COLUMNS", "FORCE_COLOR", "CLICOLOR_FORCE", "NO_COLOR"];
  const before = names.map((name) => [name, Deno.env.get(name)] as const);
  for (const name of names) Deno.env.delete(name);
  Deno.env.set("COLUMNS", `${width}`);
  Deno.env.set("NO_COLOR", "1");
  try {
    return work();
  } finally {
    for (const [name, value] of before) value === undefined ? Deno.env.delete(name) : Deno.env.set(name, value);
  }
}

/** Compares with the file, or writes it. */
function assertFile(name: string, text: string): void {
  if (WRITES) Deno.writeTextFileSync(new URL(name, FOLDER), text);
  assertEquals(text, Deno.readTextFileSync(new URL(name, FOLDER)), name);
}

const CONDITIONS: readonly Condition[] = ["healthy", "flushed", "half-broken"];

for (const condition of CONDITIONS) {
  for (const count of [12, 200]) {
    Deno.test(`a ${condition} node with ${count} containers looks as docs/screens has it`, () => {
      for (const width of [80, 60]) {
        const shown = atWidth(width, () => screens(recordedNode(count, condition)));
        for (const [command, text] of shown) {
          for (const line of text.split("\n")) {
            assert(widthOf(line) <= width, `${command} at ${width} columns: ${line}`);
          }
        }
        assertFile(
          `${condition}_${count}_at_${width}.txt`,
          shown.map(([command, text]) => `$ ${command}\n${text}`).join("\n"),
        );
      }
    });
  }
}

Deno.test("problems of two hundred containers fill no more lines than those of twelve", () => {
  const lines = (count: number) =>
    atWidth(80, () => screens(recordedNode(count, "flushed"))).filter(([command]) =>
      ["cnibox status", "cnibox doctor"].includes(command)
    ).map(([, text]) => text.split("\n").length);
  assertEquals(lines(200), lines(12));
  const show = atWidth(80, () => listText(surveyOf(recordedNode(200, "flushed"))));
  assertEquals(show.split("\n").filter((line) => line.includes("!")).length, 4, show);
  const each = atWidth(80, () => listText(surveyOf(recordedNode(200, "flushed")), { problems: true }));
  assertEquals(each.split("\n").filter((line) => line.includes("its masquerade rules are gone")).length, 200);
});

for (const count of [12, 60]) {
  Deno.test(`the picture of a node with ${count} containers is that of docs/screens`, () => {
    assertFile(`node_${count}.svg`, svgOf(drawn(surveyOf(recordedNode(count, "half-broken")))));
  });
}

Deno.test("docs/screens/README.md leads to every screen", () => {
  const index = Deno.readTextFileSync(new URL("README.md", FOLDER));
  for (const { name } of Deno.readDirSync(FOLDER)) {
    if (name !== "README.md") assert(index.includes(`(${name})`), name);
  }
});
