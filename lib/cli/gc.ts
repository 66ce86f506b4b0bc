/** `cnibox gc`: takes away what dead containers left of a network, for runtimes that never ask for it. */
import { gcNetwork, staleAttachments } from "../cni/chain.ts";
import type { NetworkList } from "../cni/conflist.ts";
import { toCniError } from "../cni/error.ts";
import type { Attachment } from "../cni/types.ts";
import { netnsState } from "../kernel/netns.ts";
import { systemRun } from "../kernel/run.ts";
import { CliError, type CommandCall, status } from "./command.ts";
import { judge, pools, type State } from "./leases.ts";
import { watchedRuntime } from "./runtime.ts";
import { attachmentsOf, type Folders, foldersOf, needRoot, networksOf, onlyOne } from "./setup.ts";
import { jsonText, say } from "./terminal.ts";

/** What is to go from one network, and what stays. */
interface Plan {
  readonly list: NetworkList;
  readonly valid: readonly Attachment[];
  /** In words, one line each. */
  readonly goes: readonly string[];
}

/** `cnibox gc NETWORK` */
export async function gc(call: CommandCall): Promise<number> {
  const folders = foldersOf(call);
  const lists = networksOf(call, call.arg("NETWORK"), folders);
  const dry = call.is("dry-run");
  if (!dry) needRoot(call, "it deletes links, rules and addresses");
  const plans: Plan[] = [];
  for (const list of lists) plans.push(await planOf(list, folders));
  if (!call.is("json")) { for (const { list, valid, goes } of plans) say(planText(list, valid, goes)); }
  if (dry) {
    if (call.is("json")) say(jsonText(plans.map(({ list, valid, goes }) => ({ network: list.name, valid, goes }))));
    return status.done;
  }
  if (!call.is("yes") && plans.some(({ goes }) => goes.length > 0)) confirm(call);
  const { runtime, close } = watchedRuntime(call, folders, { interruptible: true });
  const failures: string[] = [];
  try {
    for (const { list, valid } of plans) {
      using _lock = await onlyOne(`gc-${list.name}`, `collection of network "${list.name}"`);
      await gcNetwork(list, runtime, valid).catch((error) =>
        void failures.push(`${list.name}: ${toCniError(error).message}`)
      );
    }
  } finally {
    close();
  }
  if (call.is("json")) {
    say(jsonText(plans.map(({ list, valid, goes }) => ({ network: list.name, valid, goes, failures }))));
  }
  if (failures.length > 0) {
    throw new CliError(failures.join("; "), status.failed, [
      "what could be taken away was; the rest is tried again by the next call",
    ]);
  }
  return status.done;
}

/** States of leases whose holders live. */
const LIVING: readonly State[] = ["alive", "idle", "in use, unknown"];

/** Valid is whoever lives: by the runtime's cache, or by an address that is in use. */
async function planOf(list: NetworkList, folders: Folders): Promise<Plan> {
  const living = attachmentsOf(folders).filter(({ network, netns }) =>
    network === list.name && netnsState(netns) === "netns"
  );
  const own = (await pools(folders)).filter(({ network }) => network === list.name);
  const { judged } = await judge(own, folders, systemRun());
  const valid = new Map<string, Attachment>();
  const keep = (containerID: string, ifname: string) => valid.set(`${containerID}/${ifname}`, { containerID, ifname });
  for (const { containerId, ifName } of living) keep(containerId, ifName);
  for (const { lease, state } of judged) {
    if (LIVING.includes(state)) keep(lease.containerId, lease.ifName ?? "eth0");
  }
  const stale = staleAttachments(list, folders.cache, [...valid.values()]);
  const leases = judged.filter(({ lease, state }) =>
    !LIVING.includes(state) && !stale.some(({ containerId }) => containerId === lease.containerId)
  );
  return {
    list,
    valid: [...valid.values()],
    goes: [
      ...stale.map(({ containerId, ifName, netns }) =>
        `attachment ${containerId} (${ifName}): ${netns || "its namespace"} is gone`
      ),
      ...leases.map(({ lease, evidence }) => `address ${lease.ip} of ${lease.containerId || "nobody"}: ${evidence}`),
    ],
  };
}

function planText({ name }: NetworkList, valid: readonly Attachment[], goes: readonly string[]): string {
  const head = `${name}: ${valid.length} living ${valid.length === 1 ? "attachment stays" : "attachments stay"}, `;
  if (goes.length === 0) return `${head}nothing is known to go\n`;
  return `${head}${goes.length} to go\n${goes.map((line) => `  ${line}\n`).join("")}`;
}

/** Asks where somebody can answer; where nobody can, `--yes` has to say so. */
function confirm(call: CommandCall): void {
  if (!Deno.stdin.isTerminal()) {
    throw new CliError("not done: nobody to ask", status.usage, [
      `cnibox ${call.command.name} … --yes does it without asking`,
    ]);
  }
  say("take this away? [y/N] ");
  const answer = new Uint8Array(16);
  const count = Deno.stdin.readSync(answer) ?? 0;
  if (!/^y(es)?\s*$/i.test(new TextDecoder().decode(answer.subarray(0, count)))) {
    throw new CliError("not done", status.failed);
  }
}
