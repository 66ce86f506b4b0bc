/** `cnibox status` without a network: the health of the whole node on one screen. */
import { lookUp } from "../cni/delegate.ts";
import { loadAll } from "../cni/conflist.ts";
import { brokenText, type CommandCall, status, tell } from "./command.ts";
import { pools, shareText, useOf } from "./leases.ts";
import { groupOrphans, groupProblems, type ProblemGroup } from "./problem_groups.ts";
import { type Folders, foldersOf, ifAllowed } from "./setup.ts";
import { healthOf, real } from "./show.ts";
import { type Survey, survey } from "./survey.ts";
import { columns, counted, natural, oneLine, painter, sections } from "./terminal.ts";

/** Everything that the screen tells. */
interface Overview {
  readonly version: string;
  readonly plugins: { readonly folder: string; readonly ours: number; readonly foreign: readonly string[] };
  readonly networks: readonly string[];
  readonly attachments: Readonly<Record<ReturnType<typeof healthOf>, number>>;
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
  const overview = await look(call, foldersOf(call));
  const healthy = isHealthy(overview);
  tell(call, jsonOf(overview, healthy), () => textOf(overview, healthy));
  return healthy ? status.done : status.failed;
}

async function look(call: CommandCall, folders: Folders): Promise<Overview> {
  const seen = await survey(folders, { partial: true });
  const { broken } = loadAll(folders.conf);
  const attachments = { ok: 0, broken: 0, gone: 0, unknown: 0 };
  for (const view of seen.views) attachments[healthOf(view)]++;
  return {
    version: call.invocation.version,
    plugins: pluginsIn(folders, call.invocation.names),
    networks: seen.networks.map(({ name }) => name).sort(natural),
    attachments,
    addresses: await addressesOf(folders),
    problems: groupProblems(seen.views, ({ problems }) => real(problems)),
    orphans: seen.orphans,
    broken: broken.map(brokenText),
    blind: seen.blind,
  };
}

async function addressesOf(folders: Folders): Promise<Overview["addresses"]> {
  // The survey has said already what cannot be read.
  const all = await ifAllowed("leases", () => pools(folders), () => {}) ?? [];
  return all.flatMap((pool) =>
    useOf(pool).map(({ range, taken, total }) => ({ network: pool.network, range, taken, total }))
  );
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

function isHealthy({ problems, orphans, broken }: Overview): boolean {
  return problems.length + orphans.length + broken.length === 0;
}

function jsonOf({ version, addresses, problems, ...rest }: Overview, healthy: boolean) {
  return {
    cnibox: version,
    healthy,
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

function textOf(overview: Overview, healthy: boolean): string {
  const { version, plugins, networks, attachments, addresses, broken, blind } = overview;
  const problems = [...overview.problems, ...groupOrphans(overview.orphans)];
  const paint = painter();
  const { section, rows } = sections(paint);
  const verdict = healthy
    ? paint("green", "healthy")
    : paint("red", counted(problems.length + broken.length, "problem"));
  section("node", [verdict]);
  const foreign = plugins.foreign.length === 0 ? "" : `; not this program: ${plugins.foreign.join(", ")}`;
  section("cnibox", [`${version}, ${plugins.ours} plugins in ${plugins.folder}${foreign}`]);
  section("networks", [networks.length === 0 ? "none" : `${networks.length}: ${networks.join(", ")}`]);
  const all = Object.values(attachments).reduce((sum, one) => sum + one, 0);
  const states = Object.entries(attachments).filter(([, number]) => number > 0).map(([state, number]) =>
    `${number} ${state}`
  );
  section("attachments", [all === 0 ? "none" : `${all}: ${states.join(", ")}`]);
  // A line for each range, in columns of their own.
  const shares = addresses.map((one) => [one.network, one.range, `${shareText(one.taken, one.total)} taken`]);
  section("addresses", columns(shares).split("\n").slice(0, -1));
  section("problems", [
    ...problems.map(({ text, fix }) => problemText(text, fix)),
    ...broken.map((text) => problemText(text, "cnibox validate")),
  ]);
  section("not seen", blind);
  return columns(rows);

  function problemText(text: string, fix: string): string {
    return `${paint("red", "!")} ${oneLine(text)}${fix === "" ? "" : `  ${paint("dim", oneLine(fix))}`}`;
  }
}
