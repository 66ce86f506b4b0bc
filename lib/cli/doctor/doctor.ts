/**
 * `cnibox doctor`: diagnoses common problems of a node and suggests fixes. It changes nothing without `--fix`.
 */
import { loadAll } from "../../cni/conflist.ts";
import { toCniError } from "../../cni/error.ts";
import { foreground } from "../../kernel/foreground.ts";
import { systemRun } from "../../kernel/run.ts";
import { type CommandCall, tell } from "../command.ts";
import { watchedRuntime } from "../runtime.ts";
import { foldersOf } from "../setup.ts";
import { survey } from "../survey.ts";
import { complain, counted, hanging, oneLine, painter } from "../terminal.ts";
import { addresses } from "./addresses.ts";
import { attachments } from "./attachments.ts";
import { configuration } from "./configuration.ts";
import { daemons } from "./dhcp.ts";
import { disk, labels } from "./disk.ts";
import { type Case, type Check, findings, type Grade, type Line, type Node, VERBOSE } from "./finding.ts";
import { firewallBackends, forwardPolicy } from "./firewall.ts";
import { bridgeFilter, forwarding } from "./forwarding.ts";
import { kernelFeatures } from "./kernel.ts";
import { bridges, managers, mtu } from "./links.ts";
import { localhost } from "./localhost.ts";
import { otherNodes } from "./nodes.ts";
import { plugins } from "./plugins.ts";
import { tools } from "./tools.ts";

/** Exit statuses of `doctor`. */
const RESULT = { healthy: 0, warnings: 1, failures: 2 } as const;

/** All checks in the order in which people read them. */
const CHECKS: readonly Check[] = [
  configuration,
  plugins,
  tools,
  kernelFeatures,
  forwarding,
  bridgeFilter,
  firewallBackends,
  forwardPolicy,
  localhost,
  managers,
  mtu,
  addresses,
  attachments,
  bridges,
  daemons,
  otherNodes,
  disk,
  labels,
];

/** `cnibox doctor` */
export async function doctor(call: CommandCall): Promise<number> {
  const lines = await diagnosis(call);
  tell(call, { findings: lines }, () => textOf(lines, { verbose: call.is("verbose") }));
  if (call.is("fix")) await applyFixes(lines);
  if (lines.some(({ grade }) => grade === "failure")) return RESULT.failures;
  return lines.some(({ grade }) => grade === "warning") ? RESULT.warnings : RESULT.healthy;
}

async function diagnosis(call: CommandCall): Promise<Line[]> {
  const folders = foldersOf(call);
  using watched = watchedRuntime(call, folders);
  const { lists } = loadAll(folders.conf);
  const node: Node = {
    folders,
    host: systemRun(),
    runtime: watched.runtime,
    names: call.invocation.names,
    lists,
    seen: await survey(folders),
    root: Deno.uid() === 0,
  };
  const found = await Promise.all(CHECKS.map(async (check) => {
    try {
      return await check(node);
    } catch (error) {
      return [findings(check.name).warning(`could not be looked at: ${toCniError(error).message}`)];
    }
  }));
  const lines = found.flat();
  if (!node.root) {
    const text = "not run as root: rules, namespaces and leases could not be looked at";
    lines.push(findings("doctor").warning(text, { fix: "sudo cnibox doctor" }));
  }
  return lines;
}

/** What people read: a finding each, its cases below where they are wanted. */
export function textOf(lines: readonly Line[], { verbose }: { readonly verbose: boolean }): string {
  const paint = painter();
  const marks: Readonly<Record<Grade, string>> = {
    ok: paint("green", "ok     "),
    warning: paint("yellow", "warning"),
    failure: paint("red", "failure"),
  };
  const width = Math.max(...lines.map(({ area }) => area.length));
  const indent = " ".repeat("failure ".length + width + 2);
  const out = lines.flatMap(({ area, grade, text, breaks, fix, cases = [] }) => [
    ...hanging(`${marks[grade]} ${area.padEnd(width)}  `, oneLine(text)),
    ...(breaks ? hanging(indent, paint("dim", `breaks: ${oneLine(breaks)}`)) : []),
    ...(fix && !(verbose && fix === VERBOSE) ? hanging(indent, `fix: ${oneLine(fix)}`) : []),
    ...(verbose && cases.length > 1 ? cases.flatMap((one) => caseText(one, fix, indent)) : []),
  ]);
  const count = (grade: Grade) => lines.filter((one) => one.grade === grade).length;
  const total = (grade: Grade) => counted(count(grade), grade);
  const more = !verbose && lines.some(({ cases = [] }) => cases.length > 1) ? `; each case: ${VERBOSE}` : "";
  const sum = hanging("", `${total("failure")}, ${total("warning")}, ${count("ok")} ok${more}`);
  return `${[...out, "", ...sum].join("\n")}\n`;
}

/** A case, with its fix where that is not the one for all. */
function caseText({ text, fix }: Case, fixOfAll: string | undefined, indent: string): string[] {
  return [
    ...hanging(`${indent}- `, oneLine(text)),
    ...(fix && fix !== fixOfAll ? hanging(`${indent}  `, `fix: ${oneLine(fix)}`) : []),
  ];
}

/** Runs the fixes that do no harm, each command shown before it is run. */
async function applyFixes(lines: readonly Line[]): Promise<void> {
  const done = new Set<string>();
  for (const { run } of lines) {
    if (!run || done.has(run.join(" "))) continue;
    done.add(run.join(" "));
    complain(`+ ${run.join(" ")}\n`);
    const own = run[0] === "cnibox" ? [Deno.execPath(), ...run.slice(1)] : run;
    const code = await foreground(own);
    if (code !== 0) complain(`  exit status ${code}\n`);
  }
  if (done.size === 0) complain("no fix that can be applied without asking\n");
}
