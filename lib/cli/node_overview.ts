/** `cnibox status` without a network: the health of the whole node on one screen. */
import { lookUp } from "../cni/delegate.ts";
import { type CommandCall, status, tell } from "./command.ts";
import { shareText, useOf } from "./leases.ts";
import { groupOrphans, groupProblems, type ProblemGroup } from "./problem_groups.ts";
import { type Folders, foldersOf } from "./setup.ts";
import { healthOf, real } from "./show.ts";
import { type Survey, survey } from "./survey.ts";
import { columns, counted, natural, oneLine, painter, sections, terminalWidth, widthOf } from "./terminal.ts";

/** Everything that the screen tells. */
export interface Overview {
  readonly version: string;
  readonly plugins: { readonly folder: string; readonly ours: number; readonly foreign: readonly string[] };
  readonly networks: readonly string[];
  /** Undefined where they may not be read. */
  readonly attachments: Readonly<Record<ReturnType<typeof healthOf>, number>> | undefined;
  readonly addresses: readonly { network: string; range: string; taken: number; total: bigint }[];
  readonly problems: readonly ProblemGroup[];
  /** What belongs to no attachment. */
  readonly orphans: Survey["orphans"];
  /** Configurations that cannot be read. */
  readonly broken: readonly string[];
  readonly blind: readonly string[];
}

/** `cnibox status` */
export async function nodeOverview(call: CommandCall): Promise<number> {
  const folders = foldersOf(call);
  const { version, names } = call.invocation;
  const overview = overviewOf(await survey(folders), { version, plugins: pluginsIn(folders, names) });
  tell(call, jsonOf(overview), () => overviewText(overview));
  return problemsIn(overview) === 0 ? status.done : status.failed;
}

/** What the screen tells of a survey and of this program. */
export function overviewOf(seen: Survey, program: Pick<Overview, "version" | "plugins">): Overview {
  const attachments = { ok: 0, broken: 0, gone: 0, unknown: 0 };
  for (const view of seen.views) attachments[healthOf(view)]++;
  const { networks, pools, orphans, broken, blind, seesAttachments } = seen;
  return {
    ...program,
    networks: networks.map(({ name }) => name).sort(natural),
    attachments: seesAttachments ? attachments : undefined,
    addresses: pools.flatMap((pool) =>
      useOf(pool).map(({ range, taken, total }) => ({ network: pool.network, range, taken, total }))
    ),
    problems: groupProblems(seen.views, ({ problems }) => real(problems)),
    orphans,
    broken,
    blind,
  };
}

/** Which plugins are this program: the others are somebody else's, or another version. */
function pluginsIn({ path }: Folders, names: readonly string[]): Overview["plugins"] {
  const foreign: string[] = [];
  let ours = 0;
  for (const name of names) {
    try {
      if (lookUp(name, path).ours) ours++;
      else foreign.push(name);
    } catch {
      // Not installed.
    }
  }
  return { folder: path.join(":"), ours, foreign };
}

function problemsIn({ problems, orphans, broken }: Overview): number {
  return problems.length + groupOrphans(orphans).length + broken.length;
}

function jsonOf(overview: Overview) {
  const { version, addresses, problems, ...rest } = overview;
  const count = problemsIn(overview);
  return {
    cnibox: version,
    // Who could not see everything cannot say that all is well.
    ...((count > 0 || rest.blind.length === 0) && { healthy: count === 0 }),
    ...rest,
    addresses: addresses.map((one) => ({ ...one, total: String(one.total) })),
    problems: problems.map(({ code, text, fix, cases }) => ({
      code,
      text,
      count: cases.length,
      fix,
      attachments: cases.map(({ view: { network, containerId, ifName } }) => ({ network, containerId, ifName })),
    })),
  };
}

/** The screen. */
export function overviewText(overview: Overview): string {
  const { version, plugins, networks, attachments, addresses, broken, blind } = overview;
  const paint = painter();
  const problems = [
    ...[...overview.problems, ...groupOrphans(overview.orphans)].flatMap(({ text, fix }) => problemLines(text, fix)),
    ...broken.flatMap((text) => problemLines(text, "cnibox validate")),
  ];
  const count = problemsIn(overview);
  const foreign = plugins.foreign.length === 0 ? "" : `; not this program: ${plugins.foreign.join(", ")}`;
  const all = Object.values(attachments ?? {}).reduce((sum, one) => sum + one, 0);
  const states = Object.entries(attachments ?? {}).filter(([, number]) => number > 0).map(([state, number]) =>
    `${number} ${state}`
  );
  const shares = addresses.map((one) => [one.network, one.range, `${shareText(one.taken, one.total)} taken`]);
  return sections([
    ["node", [
      count > 0
        ? paint("red", counted(count, "problem"))
        : blind.length > 0
        ? paint("yellow", "no problem in what could be seen")
        : paint("green", "healthy"),
    ]],
    ["cnibox", [`${version}, ${plugins.ours} plugins in ${plugins.folder}${foreign}`]],
    ["networks", [networks.length === 0 ? "none" : `${networks.length}: ${networks.join(", ")}`]],
    ["attachments", [!attachments ? "not known" : all === 0 ? "none" : `${all}: ${states.join(", ")}`]],
    ["addresses", columns(shares).split("\n").slice(0, -1)],
    ["problems", problems],
    ["not seen", blind],
  ]);

  /** Problem and command on one line, or on two where that is too long. */
  function problemLines(text: string, fix: string): string[] {
    const line = `${paint("red", "!")} ${oneLine(text)}`;
    if (fix === "") return [line];
    const width = terminalWidth();
    const both = `${line}  ${paint("dim", oneLine(fix))}`;
    const fits = width === undefined || widthOf(both) <= width - "attachments  ".length;
    return fits ? [both] : [line, `  ${paint("dim", oneLine(fix))}`];
  }
}
