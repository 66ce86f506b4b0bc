/** `cnibox ipam`: the addresses that are kept in files of this node, who has them, and what is wrong. */
import { releaseOnly } from "../ipam/allocator.ts";
import { type Lease, Store, withStore } from "../ipam/store.ts";
import { readFileIfThere, replaceFile } from "../kernel/state_file.ts";
import { systemRun } from "../kernel/run.ts";
import { canonicalAddress } from "../net/cidr.ts";
import { CliError, type CommandCall, didYouMean, nearest, status, tell, usageError } from "./command.ts";
import { confirm } from "./confirm.ts";
import { conflicts, leaks } from "./doctor/addresses.ts";
import { findings as linesOf, type Line, ofKind } from "./doctor/finding.ts";
import {
  type Claim,
  gather,
  GONE,
  HELD,
  isCountable,
  judge,
  type Judged,
  type Judgement,
  type Pool,
  pools,
  type Unrecorded,
  unseenLines,
  useOf,
} from "./leases.ts";
import { beginsId, containerIdOf, nameOf, ownerText } from "./owner_names.ts";
import { troubleText } from "./problem_groups.ts";
import { attachmentsOf, entriesOf, type Folders, foldersOf, needRoot, note } from "./setup.ts";
import {
  ageOf,
  counted,
  hanging,
  jsonDocument,
  oneLine,
  type Paint,
  painter,
  say,
  table,
  terminalWidth,
} from "./terminal.ts";

const { warning } = linesOf("addresses");

/** `cnibox ipam [NETWORK]` */
export function usage(call: CommandCall): number {
  const chosen = poolsOf(call);
  tell(call, { pools: chosen.map(shownPool) }, () => usageText(chosen));
  return status.done;
}

/** How full each range is. */
export function usageText(chosen: readonly Pool[]): string {
  const paint = painter();
  const rows = chosen.flatMap((pool) => {
    const [name, uses] = [paint("bold", pool.network), useOf(pool)];
    if (uses.length === 0) return [[name, "-", "", `${pool.leases.length} taken`, paint("yellow", pool.trouble)]];
    return uses.map(({ range, taken, total, blocks }) => {
      const where = blocks === undefined ? "" : ` in ${counted(blocks, "block")} of this node`;
      const free = isCountable(total) ? `${freeOf(taken, total)} free${where}` : where.trim();
      return [name, range, bar(taken, total, paint), `${taken} taken`, free];
    });
  });
  return rows.length > 0 ? table([], rows, { width: terminalWidth() }) : "no network of this node keeps addresses\n";
}

function shownPool(pool: Pool) {
  return {
    network: pool.network,
    folder: pool.folder,
    trouble: pool.trouble || undefined,
    leases: pool.leases.length,
    ranges: useOf(pool).map(({ range, taken, total, blocks }) => ({
      range,
      taken,
      free: String(freeOf(taken, total)),
      total: String(total),
      blocks,
    })),
  };
}

/** Leases can be in no block of this node any more: then nothing is free for them. */
const freeOf = (taken: number, total: bigint) => BigInt(taken) > total ? 0n : total - BigInt(taken);

/** Ten cells, filled as the range is; the colour says how soon it is full. */
function bar(taken: number, total: bigint, paint: Paint): string {
  const share = total === 0n ? 1 : Number((BigInt(taken) * 1000n) / total) / 1000;
  const cells = taken === 0 ? 0 : Math.max(1, Math.round(share * 10));
  return paint(
    share > 0.95 ? "red" : share > 0.8 ? "yellow" : "green",
    `[${"#".repeat(cells)}${"-".repeat(10 - cells)}]`,
  );
}

/** `cnibox ipam list [NETWORK]` */
export async function list(call: CommandCall): Promise<number> {
  const folders = foldersOf(call);
  const { judged } = await judgement(poolsOf(call), folders);
  print(call, judged);
  return status.done;
}

/** `cnibox ipam find WHAT` */
export async function find(call: CommandCall): Promise<number> {
  const folders = foldersOf(call);
  const what = call.arg("WHAT") ?? "";
  const ip = canonicalAddress(what.split("/")[0] ?? "");
  const { judged, unrecorded } = await judgement(pools(folders), folders);
  const id = ip === undefined ? containerIdOf(what, folders) : what;
  const isMeant = (address: string, containerId: string) =>
    address === ip || containerId === id || (ip === undefined && beginsId(id, containerId));
  const found = judged.filter(({ lease }) => isMeant(lease.ip, lease.containerId));
  const lost = unrecorded.filter(({ ip, attachment }) => isMeant(ip, attachment.containerId));
  if (found.length + lost.length === 0) {
    throw new CliError(ip === undefined ? `"${what}" holds no address` : `nobody holds "${what}"`, status.unknown, [
      ...(ip === undefined ? didYouMean(what, namesOf(judged)) : []),
      "cnibox ipam list shows every address",
    ]);
  }
  print(call, found, lost);
  return status.done;
}

/** What their owners can be called by. */
function namesOf(judged: readonly Judged[]): string[] {
  return judged.flatMap((
    { lease: { containerId }, attachment },
  ) => [containerId, nameOf({ ...attachment, containerId })]);
}

/** Whose an address is. */
function holding(network: string, address: string, { containerId, ifName }: Pick<Lease, "containerId" | "ifName">) {
  return { address, network, containerId, ifName };
}

function print(call: CommandCall, judged: readonly Judged[], lost: readonly Unrecorded[] = []): void {
  const paint = painter();
  const rows = [
    ...judged.map(({ pool, lease, state, evidence, attachment }) => [
      lease.ip,
      pool.network,
      nameOf({ ...attachment, containerId: lease.containerId }) || "-",
      lease.ifName ?? "-",
      ageOf(lease.written),
      paint(state === "alive" ? "green" : "yellow", state),
      state === "alive" ? "" : evidence,
    ]),
    ...lost.map((one) => {
      const { address, network, ifName = "-", state, evidence } = shownLost(one);
      return [address, network, nameOf(one.attachment), ifName, "-", paint("red", state), evidence];
    }),
  ];
  const document = { addresses: [...judged.map(shown), ...lost.map(shownLost)] };
  tell(call, document, () => table([], rows, { width: terminalWidth() }));
}

/** What a living container uses and no file names. */
function shownLost({ pool, ip, attachment }: Unrecorded) {
  const evidence = `${attachment.netns} has it, and no file says so; cnibox ipam repair ${pool.network} records it`;
  return { ...holding(pool.network, ip, attachment), state: "unrecorded", evidence };
}

function shown({ pool, lease, state, evidence }: Judged) {
  return { ...holding(pool.network, lease.ip, lease), since: lease.written.toISOString(), state, evidence };
}

/** Looks at the node and judges; what could not be looked at is named on standard error. */
async function judgement(chosen: readonly Pool[], folders: Folders): Promise<Judgement> {
  const evidence = await gather(attachmentsOf(folders), systemRun());
  for (const line of unseenLines(evidence.unseen)) note(line);
  return judge(chosen, evidence);
}

function shownClaim(claim: Claim) {
  const { network, ip, recorded, evidence } = claim;
  return { ...holding(network, ip, claim), state: recorded ? "alive" : "unrecorded", evidence };
}

const claimText = (claim: Claim): string => `${claim.ip} of ${ownerText(claim)} on ${claim.network}`;

/** What `check` found and `repair` can fix. */
export interface Findings {
  readonly gone: readonly Judged[];
  readonly suspects: readonly Judged[];
  readonly unrecorded: readonly Unrecorded[];
  readonly duplicates: readonly (readonly Claim[])[];
  readonly odd: readonly string[];
}

async function findings(call: CommandCall, folders: Folders): Promise<Findings> {
  const chosen = poolsOf(call);
  return findingsOf(await judgement(chosen, folders), chosen.flatMap(oddFiles));
}

/** What is wrong by this judgement, and these files. */
export function findingsOf({ judged, unrecorded, duplicates }: Judgement, odd: readonly string[]): Findings {
  return {
    gone: judged.filter(({ state }) => GONE.includes(state)),
    suspects: judged.filter(({ state }) => state !== "alive" && !GONE.includes(state)),
    unrecorded,
    duplicates,
    odd,
  };
}

/** Files of a lease folder that are no leases and not its own. */
function oddFiles({ folder }: Pool): string[] {
  return entriesOf(folder).filter(({ name, isFile }) =>
    name !== "lock" && !name.startsWith("last_reserved_ip.") && !name.startsWith(".cnibox-") &&
    (!isFile || canonicalAddress(name) !== name)
  ).map(({ name }) => `${folder}/${name}`);
}

/** `cnibox ipam check [NETWORK]` */
export async function check(call: CommandCall): Promise<number> {
  const found = await findings(call, foldersOf(call));
  const document = {
    gone: found.gone.map(shown),
    suspects: found.suspects.map(shown),
    unrecorded: found.unrecorded.map(({ pool, ip, attachment }) => holding(pool.network, ip, attachment)),
    duplicates: found.duplicates.map((list) => list.map(shownClaim)),
    odd: found.odd,
  };
  tell(call, document, () => checkText(found, { verbose: call.is("verbose") }));
  return isClean(found) ? status.done : status.failed;
}

function isClean({ gone, suspects, unrecorded, duplicates, odd }: Findings): boolean {
  return gone.length + suspects.length + unrecorded.length + duplicates.length + odd.length === 0;
}

/** Lists every case of every finding. */
const VERBOSE = "cnibox ipam check --verbose";

/** What people read: a finding for each kind of problem, its cases below where they are wanted. */
export function checkText(
  { gone, suspects, unrecorded, duplicates, odd }: Findings,
  { verbose = false }: { readonly verbose?: boolean } = {},
): string {
  const paint = painter();
  const lines: Line[] = [
    ...leaks([...gone, ...suspects], VERBOSE),
    ...conflicts({ unrecorded, duplicates }, VERBOSE),
    ...ofKind(
      warning(`${odd.length} files are not valid addresses; ignored`),
      odd.map((file) => ({ text: `${file} is not a valid address; ignored` })),
    ),
  ];
  if (lines.length === 0) {
    return `${
      hanging("", "every address has a living owner, and every living owner's address is recorded").join("\n")
    }\n`;
  }
  const shown = lines.map(({ grade, text, fix = "", cases = [] }) => {
    const mark = paint(grade === "failure" ? "red" : "yellow", "!");
    if (!verbose || cases.length < 2) return troubleText({ text, fix }, mark, "");
    const below = cases.map((one) => ({ text: one.text, fix: one.fix === fix ? "" : one.fix ?? "" }));
    return troubleText({ text, fix: fix === VERBOSE ? "" : fix }, mark, "") +
      below.map((one) => troubleText(one, "-", "  ")).join("");
  });
  const isMore = !verbose && lines.some(({ cases = [] }) => cases.length > 1);
  return shown.join("") + (isMore ? `\neach case: ${VERBOSE}\n` : "");
}

/** One thing that `repair` does. */
interface Repair {
  readonly text: string;
  run(): Promise<unknown>;
}

/** `cnibox ipam repair NETWORK | --all` */
export async function repair(call: CommandCall): Promise<number> {
  const folders = foldersOf(call);
  const dry = call.is("dry-run");
  if (!dry && (call.arg("NETWORK") === undefined) !== call.is("all")) {
    throw usageError("say which: NETWORK, or --all", "--dry-run looks at all of them");
  }
  if (!dry) needRoot(call, "it changes lease files");
  const found = await findings(call, folders);
  const repairs = repairsOf(found, folders);
  if (!call.is("json")) say(repairText(found, repairs, dry ? "would " : ""));
  if (!dry && repairs.length > 0) {
    confirm(call, "do this?");
    // Somebody may have taken time to answer: only what is still so is done.
    const now = repairsOf(await findings(call, folders), folders);
    for (const one of now.filter(({ text }) => repairs.some((before) => before.text === text))) await one.run();
    if (!call.is("json")) say("done\n");
  }
  if (call.is("json")) {
    say(jsonDocument({
      dryRun: dry,
      done: repairs.map(({ text }) => text),
      left: found.suspects.map(shown),
      duplicates: found.duplicates.map((list) => list.map(shownClaim)),
    }));
  }
  return status.done;
}

function repairsOf({ gone, unrecorded }: Findings, folders: Folders): Repair[] {
  return [
    ...gone.map((one): Repair => ({
      text: `release ${one.lease.ip} of ${ownerOf(one)} on ${one.pool.network}: ${one.evidence}`,
      run: () => releaseLease(folders, one.pool, one.lease),
    })),
    ...unrecorded.map(({ pool, ip, attachment }): Repair => ({
      text: `record ${ip} for ${ownerText(attachment)} on ${pool.network}`,
      run: () =>
        withStore(pool.folder, { create: true, warn: () => {} }, (store: Store) => {
          if (store.isBlank(ip)) store.discard(ip);
          store.reserve(ip, attachment);
        }),
    })),
  ];
}

function repairText({ suspects, duplicates }: Findings, repairs: readonly Repair[], before: string): string {
  const lines = [
    ...repairs.map(({ text }) => `${before}${text}`),
    ...suspects.map((one) => `left alone: ${one.lease.ip} of ${ownerOf(one)}: ${one.evidence}`),
    ...duplicates.map((list) =>
      `left alone: ${list.map(claimText).join(" and ")}: delete one of them and add it again`
    ),
  ];
  return `${lines.map(oneLine).join("\n") || "nothing to repair"}\n`;
}

/** Whose a lease is: `shop/web-2`. */
const ownerOf = ({ lease: { containerId }, attachment }: Judged): string =>
  nameOf({ ...attachment, containerId }) || "nobody";

/** Where removed leases are kept, so that a mistake can be undone. */
const BACKUP = "/var/lib/cnibox/removed-leases";

/** Removes one lease under the lock, if it still is what it was; keeps a copy. */
async function releaseLease({ root }: Folders, { network, folder }: Pool, lease: Lease): Promise<void> {
  const kept = `${root}${BACKUP}/${network}`;
  const text = readFileIfThere(`${folder}/${lease.ip}`);
  if (text === undefined) return;
  replaceFile(`${kept}/${lease.ip}`, text);
  await withStore(folder, { warn: () => {} }, (store: Store) => {
    const now = store.lease(lease.ip);
    if (now?.containerId !== lease.containerId || now.ifName !== lease.ifName) return;
    if (lease.containerId === "") store.discard(lease.ip);
    else store.release(lease.ip, lease);
  });
}

/** `cnibox ipam free ADDRESS…` */
export async function free(call: CommandCall): Promise<number> {
  const folders = foldersOf(call);
  needRoot(call, "it changes lease files");
  const network = call.value("network");
  const all = pools(folders);
  if (network !== undefined && !all.some((one) => one.network === network)) throw unknownPool(network, all);
  const { judged } = await judgement(all, folders);
  const wanted = call.args.map((text) => {
    const ip = canonicalAddress(text);
    const found = judged.filter(({ pool, lease }) =>
      lease.ip === ip && (network === undefined || pool.network === network)
    );
    if (found.length === 0) {
      throw new CliError(`nobody holds "${text}"`, status.unknown, [
        ...didYouMean(text, judged.map(({ lease }) => lease.ip)),
        "cnibox ipam list shows every address",
      ]);
    }
    if (found.length > 1) {
      const where = found.map(({ pool }) => pool.network).join(", ");
      throw usageError(`${text} is held on several networks: ${where}`, "--network NETWORK says which");
    }
    return found[0] as Judged;
  });
  const alive = wanted.filter(({ state }) => HELD.includes(state));
  if (alive.length > 0 && !call.is("force")) {
    throw new CliError(
      `${alive.map(({ lease }) => lease.ip).join(", ")} ${
        alive[0]?.state === "not examined" ? "may be" : "is"
      } in use: ${alive[0]?.evidence}`,
      status.failed,
      ["cnibox del detaches the container; --force releases the address all the same"],
    );
  }
  if (!call.is("json")) {
    say(wanted.map((one) => `free ${one.lease.ip} of ${oneLine(ownerOf(one))} on ${one.pool.network}\n`).join(""));
  }
  confirm(call, "do this?");
  for (const { pool, lease } of wanted) {
    if (lease.ifName !== undefined && lease.containerId !== "") {
      await releaseOnly(pool.folder, { containerId: lease.containerId, ifName: lease.ifName }, {
        ips: [lease.ip],
        warn: () => {},
      });
    } else await releaseLease(folders, pool, lease);
  }
  const freed = wanted.map(({ pool, lease }) => holding(pool.network, lease.ip, lease));
  if (call.is("json")) say(jsonDocument({ freed }));
  return status.done;
}

function poolsOf(call: CommandCall): Pool[] {
  const all = pools(foldersOf(call));
  const name = call.arg("NETWORK");
  if (name === undefined) return all;
  const chosen = all.filter(({ network }) => network === name);
  if (chosen.length > 0) return chosen;
  const near = call.command.name === "ipam" ? nearest(name, ["list", "find", "check", "free", "repair"]) : undefined;
  throw unknownPool(name, all, near === undefined ? [] : [`did you mean cnibox ipam ${near}?`]);
}

function unknownPool(name: string, all: readonly Pool[], advice: readonly string[] = []): CliError {
  const names = all.map(({ network }) => network);
  return new CliError(`no network "${name}" keeps addresses here`, status.unknown, [
    ...(advice.length > 0 ? advice : didYouMean(name, names)),
    `networks that do: ${names.join(", ") || "none"}`,
  ]);
}
