/**
 * `cnibox restore`: after a firewall was reloaded or flushed, makes the masquerade, port mapping and firewall rules of the living attachments
 * again, from what their ADD left in the result cache. Rules that are there stay as they are.
 */
import { checkMasquerade, masqueradeBackend, masqueradePlan } from "../attach/masquerade.ts";
import { type Member, type NetworkList, parseList, requestOf } from "../cni/conflist.ts";
import { lookup } from "../cni/decode.ts";
import { CniError, toCniError } from "../cni/error.ts";
import { type Cached, cachedResult } from "../cni/result_cache.ts";
import { callPlugin } from "../cni/skel.ts";
import type { JsonObject } from "../cni/types.ts";
import { parseResult } from "../cni/version.ts";
import { netnsState } from "../kernel/netns.ts";
import { apply, type Step } from "../kernel/plan.ts";
import { systemRun } from "../kernel/run.ts";
import { CliError, type CommandCall, status, usageError } from "./command.ts";
import { attachmentsOf, type Folders, foldersOf, needRoot } from "./setup.ts";
import { columns, complain, jsonText, painter, say } from "./terminal.ts";

/** What came of one attachment's rules of one kind. */
interface Outcome {
  readonly network: string;
  readonly container: string;
  readonly interface: string;
  readonly what: string;
  readonly state: "there" | "restored" | "missing" | "failed";
  readonly reason?: string;
}

/** Chained plugins whose ADD makes rules from `prevResult` and nothing else, and may be repeated. */
const RULE_MAKERS = ["portmap", "firewall"];

/** `cnibox restore --all | --id CONTAINER` */
export async function restore(call: CommandCall): Promise<number> {
  const folders = foldersOf(call);
  const id = call.value("id");
  if (id === undefined && !call.is("all")) throw usageError("say what to restore: --all, or --id CONTAINER");
  const dry = call.is("dry-run");
  if (!dry) needRoot(call, "it writes firewall rules");
  const cached = attachmentsOf(folders, id);
  if (id !== undefined && cached.length === 0) {
    throw new CliError(`no attachment of container "${id}" is known`, status.unknown, [`looked in ${folders.cache}`]);
  }
  const living = cached.filter(({ netns }) => netnsState(netns) === "netns");
  const outcomes = [...await masquerades(living, folders, dry)];
  for (const one of living) outcomes.push(...await chained(one, { folders, call, dry }));
  show(call, outcomes, cached.length - living.length);
  return outcomes.some(({ state }) => state === "failed") ? status.failed : status.done;
}

function listOf({ config, file }: Cached): NetworkList {
  return parseList(config, file);
}

/** The final result of an attachment in its list's version; undefined when the cache holds none. */
function resultOf(one: Cached, list: NetworkList, folders: Folders): JsonObject | undefined {
  return cachedResult(folders.cache, one, list.version);
}

/** Masquerading of all attachments in one transaction for each family and backend. */
async function masquerades(living: readonly Cached[], folders: Folders, dry: boolean): Promise<Outcome[]> {
  const host = systemRun();
  const outcomes: Outcome[] = [];
  const steps: Step[] = [];
  for (const one of living) {
    const owner = { network: one.network, containerId: one.containerId, ifName: one.ifName };
    const about = { network: one.network, container: one.containerId, interface: one.ifName, what: "masquerade" };
    try {
      const list = listOf(one);
      const member = list.plugins.find(({ type, config }) =>
        ["bridge", "ptp"].includes(type) && lookup(config, "ipMasq") === true
      );
      const result = member && resultOf(one, list, folders);
      if (!member || !result) continue;
      const configured = lookup(member.config, "ipMasqBackend");
      const backend = typeof configured === "string" ? configured : undefined;
      const ips = (parseResult(result, list.version).ips ?? []).map(({ address }) => address);
      const present = await checkMasquerade({ host }, owner, ips, backend).then(() => true, () => false);
      if (!present) steps.push(...masqueradePlan(owner, ips, masqueradeBackend(undefined, backend)));
      outcomes.push({ ...about, state: present ? "there" : dry ? "missing" : "restored" });
    } catch (error) {
      outcomes.push({ ...about, state: "failed", reason: toCniError(error).message });
    }
  }
  if (dry || steps.length === 0) return outcomes;
  try {
    await apply([steps], { host, pod: host, undo: () => {} });
    return outcomes;
  } catch (error) {
    const reason = toCniError(error).message;
    return outcomes.map((one) => one.state === "restored" ? { ...one, state: "failed", reason } : one);
  }
}

/** Rules of the chained plugins of one attachment: CHECK says whether they are there, ADD makes them. */
async function chained(
  one: Cached,
  { folders, call, dry }: { folders: Folders; call: CommandCall; dry: boolean },
): Promise<Outcome[]> {
  const outcomes: Outcome[] = [];
  let list: NetworkList;
  try {
    list = listOf(one);
  } catch (error) {
    return [{
      network: one.network,
      container: one.containerId,
      interface: one.ifName,
      what: "configuration",
      state: "failed",
      reason: (error as Error).message,
    }];
  }
  for (const member of list.plugins.filter(({ type }) => RULE_MAKERS.includes(type))) {
    const about = { network: one.network, container: one.containerId, interface: one.ifName, what: member.type };
    try {
      const present = await run("CHECK", one, { list, member, folders, call }).then(() => true, (error) => {
        if (!(error instanceof CniError)) throw error;
        return false;
      });
      if (!present && !dry) await run("ADD", one, { list, member, folders, call });
      outcomes.push({ ...about, state: present ? "there" : dry ? "missing" : "restored" });
    } catch (error) {
      outcomes.push({ ...about, state: "failed", reason: toCniError(error).message });
    }
  }
  return outcomes;
}

interface Target {
  readonly list: NetworkList;
  readonly member: Member;
  readonly folders: Folders;
  readonly call: CommandCall;
}

/** One call of a built-in plugin with an attachment's cached result. */
async function run(verb: "ADD" | "CHECK", one: Cached, { list, member, folders, call }: Target): Promise<void> {
  const plugin = await call.invocation.load(member.type);
  if (!plugin) throw new CliError(`there is no plugin ${member.type}`, status.failed);
  const stdin = requestOf(list, member, {
    prevResult: resultOf(one, list, folders),
    capabilityArgs: one.capabilityArgs,
  });
  const env = {
    CNI_COMMAND: verb,
    CNI_CONTAINERID: one.containerId,
    CNI_NETNS: one.netns,
    CNI_IFNAME: one.ifName,
    CNI_ARGS: one.args.map(([key, value]) => `${key}=${value}`).join(";"),
    CNI_PATH: folders.path.join(":"),
  };
  await callPlugin(plugin, {
    env,
    stdin: () => stdin,
    registry: call.invocation.load,
    builtin: true,
    warn: (type, note) => complain(`${type}: ${note}\n`),
  });
}

function show(call: CommandCall, outcomes: readonly Outcome[], dead: number): void {
  if (call.is("json")) {
    say(jsonText({ rules: outcomes, deadAttachments: dead }));
    return;
  }
  const paint = painter();
  const colours = { there: "green", restored: "green", missing: "yellow", failed: "red" } as const;
  say(
    columns(
      outcomes.map((
        one,
      ) => [
        one.container,
        one.interface,
        one.network,
        one.what,
        paint(colours[one.state], one.state),
        one.reason ?? "",
      ]),
    ),
  );
  const restored = outcomes.filter(({ state }) => state === "restored").length;
  const there = outcomes.filter(({ state }) => state === "there").length;
  say(
    `${restored} restored, ${there} were there${
      dead > 0 ? `, ${dead} attachments of dead containers left alone` : ""
    }\n`,
  );
}
