/** `cnibox gc`: removes what dead containers left of a network, for runtimes that never ask for it. */
import { gcNetwork, type Runtime, staleAttachments } from "../cni/chain.ts";
import { loadAll, type NetworkList } from "../cni/conflist.ts";
import { toCniError } from "../cni/error.ts";
import type { ValidAttachment } from "../cni/types.ts";
import { systemRun } from "../kernel/run.ts";
import { CliError, type CommandCall, status, usageError } from "./command.ts";
import { confirm } from "./confirm.ts";
import { gather, GONE, judge, type Judged, lifeOf, pools } from "./leases.ts";
import { linksIn } from "../kernel/all_netns.ts";
import { nameOf, shortId } from "./owner_names.ts";
import { progress } from "./progress.ts";
import { watchedRuntime } from "./runtime.ts";
import { attachmentsOf, type Folders, foldersOf, needRoot, networkOrCached, networksOf, onlyOne } from "./setup.ts";
import { listOf, ownerByAlias } from "./survey.ts";
import { jsonDocument, oneLine, say } from "./terminal.ts";

/** What is to go from one network, and what stays. */
interface Plan {
  readonly list: NetworkList;
  readonly valid: readonly ValidAttachment[];
  /** How many attachments are to go. */
  readonly stale: number;
  /** All that is to go in words, one line each. */
  readonly goes: readonly string[];
  /** What stays only because nothing proves it dead, with the reason. */
  readonly doubts: readonly string[];
}

/** `cnibox gc NETWORK` */
export async function gc(call: CommandCall): Promise<number> {
  const folders = foldersOf(call);
  const lists = networksToCollect(call, folders);
  const dry = call.is("dry-run");
  if (!dry) needRoot(call, "it deletes links, rules and addresses");
  const plans: Plan[] = [];
  using doing = progress();
  for (const list of lists) {
    doing.step(`network ${list.name}: looking for what is left of dead containers`);
    plans.push(await planOf(list, folders));
  }
  doing.step(undefined);
  if (!call.is("json")) { for (const plan of plans) say(planText(plan)); }
  if (dry) {
    if (call.is("json")) say(jsonDocument({ networks: plans.map(shown) }));
    return status.done;
  }
  if (plans.some(({ goes }) => goes.length > 0)) confirm(call, "remove this?");
  using watched = watchedRuntime(call, folders, { interruptible: true });
  const failures: string[] = [];
  for (const { list, valid, stale } of plans) {
    doing.step(`network ${list.name}: waiting for another collection to end`);
    using _lock = await onlyOne(`gc-${list.name}`, `collection of network "${list.name}"`);
    // Somebody may have taken time to answer: who came meanwhile stays, and so does who was to stay before.
    const now = await planOf(list, folders);
    const step = (done: number) => doing.step(`network ${list.name}: ${done} of ${stale} attachments removed`);
    await gcNetwork(list, counting(watched.runtime, step), [...valid, ...now.valid]).catch((error) =>
      void failures.push(`${list.name}: ${toCniError(error).message.replaceAll("\n", "; ")}`)
    );
  }
  if (call.is("json")) say(jsonDocument({ networks: plans.map(shown), failures }));
  if (failures.length > 0) {
    throw new CliError(failures.join("; "), status.failed, [
      "what could be removed was; the next call tries the rest again",
    ]);
  }
  return status.done;
}

/** The same runtime; `step` is told how many attachments are gone. */
function counting(runtime: Runtime, step: (done: number) => void): Runtime {
  let done = 0;
  step(done);
  return {
    ...runtime,
    after: (call) => {
      runtime.after?.(call);
      // DEL ends with the first member.
      if (call.verb === "DEL" && call.index === 0) step(++done);
    },
  };
}

/**
 * The networks by name or file; of one that is not configured any more, what its attachments were made with. As long as
 * a file cannot be read, no network is known to be missing: it may be that one's.
 */
function networksToCollect(call: CommandCall, folders: Folders): NetworkList[] {
  const words = call.arg("NETWORK");
  if (call.value("conf") !== undefined) return networksOf(call, words, folders);
  if ((words === undefined) !== call.is("all")) throw usageError("say which: NETWORK, or --all");
  const { lists, broken } = loadAll(folders.conf);
  const attached = broken.length === 0 ? attachmentsOf(folders).filter((one) => listOf(one) !== undefined) : [];
  const names = words?.split(",") ??
    new Set([...lists.map(({ name }) => name), ...attached.map(({ network }) => network)]);
  return [...names].map((name) => networkOrCached(name, attached.find(({ network }) => network === name), folders));
}

/**
 * Valid is whoever is not provably gone: an attachment in the runtime's cache, the holder of a lease, and whoever a
 * pair belongs to whose other end is in another namespace.
 */
async function planOf(list: NetworkList, folders: Folders): Promise<Plan> {
  const host = systemRun();
  const evidence = await gather(attachmentsOf(folders), host);
  const known = evidence.attachments.filter(({ network }) => network === list.name);
  const { judged } = judge(pools(folders).filter(({ network }) => network === list.name), evidence);
  const valid = new Map<string, ValidAttachment>();
  const doubts: string[] = [];
  const keep = (containerID: string, ifname: string) => valid.set(`${containerID}/${ifname}`, { containerID, ifname });
  for (const { containerId, ifName, life } of known.map((one) => ({ ...one, life: lifeOf(one, evidence) }))) {
    if (life.state !== "gone") keep(containerId, ifName);
    if (life.state === "unknown") doubts.push(`attachment ${shortId(containerId)} (${ifName}): ${life.evidence}`);
  }
  for (const one of judged) {
    const { lease, state, attachment } = one;
    if (GONE.includes(state)) continue;
    if (lease.containerId !== "") keep(lease.containerId, lease.ifName ?? "eth0");
    if (!attachment && state !== "alive") doubts.push(addressText(one));
  }
  for (const owner of (await linksIn(host)).map(ownerByAlias)) {
    if (owner?.network === list.name && owner.lives) keep(owner.containerId, owner.ifName);
  }
  const stale = staleAttachments(list, folders.cache, [...valid.values()]);
  const leases = judged.filter(({ lease, state }) =>
    GONE.includes(state) && !stale.some(({ containerId }) => containerId === lease.containerId)
  );
  return {
    list,
    valid: [...valid.values()],
    stale: stale.length,
    goes: [
      ...stale.map((one) => `attachment ${nameOf(one)} (${one.ifName}): ${lifeOf(one, evidence).evidence}`),
      ...leases.map(addressText),
    ],
    doubts,
  };
}

const addressText = ({ lease: { ip, containerId }, attachment, evidence }: Judged): string =>
  `address ${ip} of ${nameOf({ ...attachment, containerId }) || "nobody"}: ${evidence}`;

/** What `--json` prints of a plan. */
function shown({ list, valid, goes, doubts }: Plan) {
  return {
    network: list.name,
    valid: valid.map(({ containerID, ifname }) => ({ containerId: containerID, ifName: ifname })),
    goes,
    doubts,
  };
}

function planText({ list: { name }, valid, goes, doubts }: Plan): string {
  const head = `${oneLine(name)}: ${valid.length} living ${
    valid.length === 1 ? "attachment stays" : "attachments stay"
  }, `;
  const kept = doubts.map((line) => `  kept, not proved to be gone: ${oneLine(line)}\n`).join("");
  if (goes.length === 0) return `${head}nothing is known to go\n${kept}`;
  return `${head}${goes.length} to go\n${goes.map((line) => `  ${oneLine(line)}\n`).join("")}${kept}`;
}
