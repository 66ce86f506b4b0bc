/**
 * tuning: sets sysctls and link attributes of an interface that another plugin made, and puts them back on DEL.
 * https://www.cni.dev/plugins/current/meta/tuning/
 *
 * Differs from the reference: everything is checked before the first change, and a failed ADD is taken back; settings
 * are restored on DEL too; CHECK compares hardware addresses and settings by value, and `promisc` only when it is
 * configured; results carry the new MTU and the address in lower case.
 */
import { checkAllowed, readAllowList } from "./allow_list.ts";
import { type Backup, backupPath, backupText, type Place, readBackup, staleBackups } from "./link_backup.ts";
import { statusTools } from "../../lib/link/needs.ts";
import { look, type Now, sameValue, type Setting, setting, valueOf } from "./settings.ts";
import { parseArgs } from "../../lib/cni/args.ts";
import {
  decode,
  decodeLeniently,
  integer,
  maybeFlag,
  maybeInteger,
  maybeText,
  object,
  text,
  textMap,
} from "../../lib/cni/decode.ts";
import { all, CniError, code, goQuote, internal, needed } from "../../lib/cni/error.ts";
import { openNetns } from "../../lib/cni/netns.ts";
import type { Call, ContainerCall, NetworkCall, Plugin } from "../../lib/cni/plugin.ts";
import { prevResult } from "../../lib/cni/prev_result.ts";
import { type Result, since } from "../../lib/cni/types.ts";
import { runLines } from "../../lib/kernel/batch.ts";
import type { Link } from "../../lib/kernel/ip.ts";
import { linkNow } from "../../lib/link/container_link.ts";
import { isIndexName } from "../../lib/net/link_name.ts";
import { holdNetns } from "../../lib/kernel/netns.ts";
import { type Applier, apply, because, type Plan, type Step, step, StepError } from "../../lib/kernel/plan.ts";
import { fileIdentity } from "../../lib/kernel/proc.ts";
import { CommandError, failureText, inNetns, isAbsent } from "../../lib/kernel/run.ts";
import { failedLine } from "../../lib/kernel/tool_words.ts";
import { usable } from "../../lib/kernel/regular_file.ts";
import { keepFile, removeDrafts, removeFile } from "../../lib/kernel/state_file.ts";
import { isUnicastMac, macLength, parseMac } from "../../lib/net/mac.ts";

const about = {
  sysctl: "settings below net, by their names; IFNAME stands for the interface",
  promisc: "promiscuous mode on",
  allmulti: "all-multicast mode on or off",
  txQLen: "length of the transmit queue, in packets",
};
const keys = {
  sysctl: textMap(about.sysctl),
  mac: text("", "new hardware address"),
  promisc: maybeFlag(about.promisc),
  mtu: integer(0, "new MTU in bytes; 0 leaves it"),
  allmulti: maybeFlag(about.allmulti),
  txQLen: maybeInteger(about.txQLen),
  dataDir: text("/run/cni/tuning", "folder for what DEL puts back"),
  runtimeConfig: object({ mac: text("", "new hardware address") }, "capability `mac`: wins over `mac` and CNI_ARGS"),
  args: object({
    cni: object({
      sysctl: textMap(about.sysctl),
      mac: maybeText("new hardware address; an empty one leaves it"),
      promisc: maybeFlag(about.promisc),
      mtu: maybeInteger("new MTU in bytes; 0 leaves it"),
      allmulti: maybeFlag(about.allmulti),
      txQLen: maybeInteger(about.txQLen),
    }, "by convention"),
  }, "`args.cni` wins over everything else"),
};

export const plugin: Plugin = {
  name: "tuning",
  kind: "meta",
  about: "sets sysctls, MAC, MTU and flags of an interface, and puts them back",
  versions: since("0.1.0"),
  needs: ["ip", "nsenter"],
  keys,
  parse: parseForAdd,
  add,
  del,
  check,
  gc,
  status,
};

function parseForAdd(call: ContainerCall): Wanted {
  const wanted = settings(call);
  checkAllowed(wanted.settings.map(({ key }) => key), readAllowList());
  return wanted;
}

async function add(call: ContainerCall): Promise<Result> {
  const wanted = parseForAdd(call);
  const previous = previousOf(call);
  openNetns(call);
  const now = await look(call, wanted.settings, isLinkChanged(wanted));
  const { plan, backup } = changes(call, wanted, now);
  if (Object.keys(backup).length > 0) {
    const path = backupPath(wanted.dataDir, { containerID: call.containerId, ifname: call.ifName });
    const text = backupText(path, { ...backup, network: call.network, place: placeOf(call, now) });
    call.perform({ file: path, text, why: "what DEL puts back" }, () => call.undo(keepFile(path, text)));
  }
  try {
    if (plan.length > 0) await apply(plan, call);
  } catch (error) {
    if (!(error instanceof StepError) || error.step.tool !== "sysctl") throw error;
    throw internal(error.message, `the kernel did not take ${error.step.text} in ${call.netns}`);
  }
  return tuned(previous, call, wanted);
}

/** Puts everything back that there is something to put back on; a link that is gone takes its backup with it. */
async function del(call: ContainerCall): Promise<void> {
  const conf = decodeLeniently({ dataDir: keys.dataDir }, call.config, call.warn);
  const path = backupPath(conf.dataDir || keys.dataDir.absent, { containerID: call.containerId, ifname: call.ifName });
  const backup = usable(() => readBackup(path), call.warn);
  if (backup === undefined) call.perform(undefined, () => removeDrafts(path));
  if (backup === undefined || call.ownNetns) return;
  if (backup !== "broken" && call.podAlive && !await restore(call, backup)) {
    call.warn(`${path} is kept: not everything in it could be put back`);
    return;
  }
  call.perform({ file: path, why: "there is nothing left to put back" }, () => forget(path));
}

function forget(path: string): void {
  if (!removeFile(path)) throw new CniError(code.io, `cannot remove ${path}`, "all that it held is put back");
}

async function check(call: ContainerCall): Promise<void> {
  const wanted = settings(call);
  previousOf(call);
  openNetns(call);
  const { link, values } = await look(call, wanted.settings, true);
  for (const { path, value } of wanted.settings) {
    const now = valueOf(path, values);
    if (now === undefined || value === "" || sameValue(value, now)) continue;
    throw differs(`value of /proc/sys/${path} is ${value}, current value is ${now}`, call);
  }
  if (!link) throw internal(`Cannot find container link ${call.ifName}`, `looked in ${call.netns}`);
  const { mac, promisc, mtu, allmulti, txQLen } = wanted;
  const promiscuous = (link.promiscuity ?? 0) > 0;
  if (mac !== "" && (parseMac(mac) ?? mac) !== link.address) {
    throw differs(`Ethernet of ${call.ifName} is ${mac}, current value is ${link.address}`, call);
  }
  if (promisc !== undefined && promiscuous !== promisc) {
    throw internal(
      `Error: Tuning link ${call.ifName} configured promisc is ${promisc}, current value is ${link.promiscuity ?? 0}`,
      promisc ? "" : "the kernel counts who wants it: a packet capture that runs counts too",
    );
  }
  if (mtu !== 0 && link.mtu !== mtu) {
    throw differs(`MTU of ${call.ifName} is ${mtu}, current value is ${link.mtu}`, call);
  }
  if (allmulti !== undefined && isAllMulticast(link) !== allmulti) {
    throw differs(`all-multicast mode of ${call.ifName} is ${allmulti}, current value is ${!allmulti}`, call);
  }
  if (txQLen !== undefined && (link.txqlen ?? 0) !== txQLen) {
    throw differs(`Transmit Queue Length of ${call.ifName} is ${txQLen}, current value is ${link.txqlen ?? 0}`, call);
  }
}

async function gc(call: NetworkCall): Promise<void> {
  if (call.valid === undefined) return;
  const conf = decodeLeniently({ dataDir: keys.dataDir }, call.config, call.warn);
  const stale = staleBackups(conf.dataDir || keys.dataDir.absent, call.network, call.valid);
  await all(stale.map(({ path, backup }) => async () => {
    if (await putBack(call, backup)) forget(path);
    else call.warn(`${path} is kept: not everything in it could be put back`);
  }));
}

function placeOf({ netns, heldNetns, ifName }: ContainerCall, { link }: Now): Place {
  return { netns, id: identityOf(heldNetns || netns), ifName, index: link?.ifindex ?? 0 };
}

function identityOf(netns: string): string {
  const { dev, ino } = fileIdentity(netns);
  return `${dev}:${ino}`;
}

/**
 * DEL's work for an attachment that nobody sent DEL for, if its interface is still there. Says whether nothing is left
 * to be done.
 */
async function putBack(call: NetworkCall, { place, ...backup }: Backup): Promise<boolean> {
  if (place === undefined) return true;
  const held = holdNetns(place.netns);
  try {
    if (held.state !== "netns" || identityOf(held.path || place.netns) !== place.id) return true;
    const { ifName, index } = place;
    const pod = inNetns(call.host, held.path || place.netns);
    const command = { argv: ["ip", "-j", "link", "show", "dev", ifName] };
    const shown = await pod(command);
    const failure = new CommandError(command, shown, failureText(shown));
    if (shown.code !== 0 && isAbsent(failure)) return true;
    if (shown.code !== 0) throw failure;
    const [link] = JSON.parse(shown.stdout) as Link[];
    // A link of the same name that came later has nothing of this one's.
    if (link === undefined || (index !== 0 && link.ifindex !== index)) return true;
    return await restore({ ...call, pod, ifName }, backup);
  } finally {
    held.close();
  }
}

async function status(call: NetworkCall): Promise<void> {
  const wanted = settings({ ...call, ifName: "eth0", args: "" });
  statusTools(plugin.needs);
  await needed(() => checkAllowed(wanted.settings.map(({ key }) => key), readAllowList()));
}

/** What the configuration asks for, all its sources merged. */
interface Wanted {
  readonly settings: readonly Setting[];
  readonly mac: string;
  readonly promisc: boolean | undefined;
  readonly mtu: number;
  readonly allmulti: boolean | undefined;
  readonly txQLen: number | undefined;
  readonly dataDir: string;
}

function settings(call: Call & Pick<ContainerCall, "ifName" | "args">): Wanted {
  for (const [place, key, ...below] of call.repeated ?? []) {
    if (place?.toLowerCase() !== "sysctl" || key === undefined || below.length > 0) continue;
    throw internal("duplicated sysctl keys are not allowed", `${goQuote(key)} is written twice`);
  }
  const conf = decode(keys, call.config, "failed to load netconf");
  const { MAC = "" } = parseArgs(call.args, ["MAC"]);
  const cni = conf.args?.cni;
  const sysctl = { ...conf.sysctl, ...cni?.sysctl };
  return {
    settings: Object.keys(sysctl).sort().map((key) => setting(key, sysctl[key] ?? "", call.ifName)),
    mac: cni?.mac ?? (conf.runtimeConfig?.mac || MAC || conf.mac),
    promisc: cni?.promisc ?? conf.promisc,
    mtu: cni?.mtu ?? conf.mtu,
    allmulti: cni?.allmulti ?? conf.allmulti,
    txQLen: cni?.txQLen ?? conf.txQLen,
    dataDir: conf.dataDir || keys.dataDir.absent,
  };
}

function previousOf(call: ContainerCall): Result {
  const previous = prevResult(call);
  if (previous) return previous;
  throw internal("Required prevResult missing", "tuning comes after a main plugin in a list");
}

/** Is a link attribute to be changed? */
function isLinkChanged({ mac, mtu, promisc, allmulti, txQLen }: Wanted): boolean {
  return mac !== "" || mtu !== 0 || promisc === true || allmulti !== undefined || txQLen !== undefined;
}

/** The steps, each with its way back, and what DEL needs. Refuses what cannot work before anything is done. */
function changes(call: ContainerCall, wanted: Wanted, { link, values }: Now): { plan: Plan; backup: Backup } {
  const { ifName } = call;
  const backup: Backup = {};
  const before: Record<string, string> = {};
  const steps: Step[] = wanted.settings.filter(({ value }) => value !== "").map(({ path, value }) => {
    const old = valueOf(path, values);
    if (old !== undefined) before[path] = old;
    const undo = old === undefined ? [] : step("pod", "sysctl", `${path}=${old}`, { optional: true });
    return step("pod", "sysctl", `${path}=${value}`, { why: `was ${old ?? "not readable"}`, undo });
  });
  if (Object.keys(before).length > 0) backup.sysctl = before;
  if (isLinkChanged(wanted)) {
    if (!link) {
      throw internal(`failed to get "${ifName}": Link not found`, `looked in ${call.netns}`);
    }
    checkLinkValues(call, wanted, link);
    Object.assign(backup, attributesOf(link, wanted));
    for (const name of ORDER) {
      const value = name === "mac" ? parseMac(wanted.mac) : wanted[name];
      if (backup[name] === undefined || value === undefined) continue;
      const undo = step("pod", "ip", linkSet(ifName, name, backup[name]));
      steps.push(step("pod", "ip", linkSet(ifName, name, value), { why: `${name} was ${backup[name]}`, undo }));
    }
  }
  return { plan: steps.length > 0 ? [steps] : [], backup };
}

/** Attributes in the order in which ADD sets them. */
const ORDER = ["mac", "promisc", "mtu", "allmulti", "txQLen"] as const;

function linkSet(ifName: string, name: typeof ORDER[number], value: string | number | boolean): string {
  const word = { mac: "address", promisc: "promisc", mtu: "mtu", allmulti: "allmulticast", txQLen: "txqueuelen" }[name];
  return `link set dev ${ifName} ${word} ${typeof value === "boolean" ? (value ? "on" : "off") : value}`;
}

/** The present values of what is to be changed. */
function attributesOf(link: Link, { mac, promisc, mtu, allmulti, txQLen }: Wanted): Backup {
  return {
    ...(mac !== "" && { mac: link.address ?? "" }),
    ...(promisc === true && { promisc: (link.promiscuity ?? 0) > 0 }),
    ...(mtu !== 0 && { mtu: link.mtu }),
    ...(allmulti !== undefined && { allmulti: isAllMulticast(link) }),
    ...(txQLen !== undefined && { txQLen: link.txqlen ?? 0 }),
  };
}

function isAllMulticast({ flags }: Link): boolean {
  return flags.includes("ALLMULTI");
}

/** What the kernel would refuse, in its words, with the reason that it does not give. */
function checkLinkValues(call: ContainerCall, { mac, mtu, txQLen }: Wanted, link: Link): void {
  if (mac !== "") {
    const parsed = parseMac(mac);
    const length = macLength(link.address ?? "");
    if (parsed === undefined || macLength(parsed) !== length) {
      const text = `invalid args ${mac} for MAC addr: address ${mac}: invalid MAC address`;
      throw internal(text, `${call.ifName} takes an address of ${length} bytes`);
    }
    if (!isUnicastMac(parsed)) {
      throw internal("cannot assign requested address", `mac ${mac} is not the address of one interface`);
    }
  }
  const { min_mtu: min = 0, max_mtu: max = 0 } = link;
  if (mtu !== 0 && (mtu < Math.max(1, min) || mtu > (max || 2 ** 31 - 1))) {
    throw internal("invalid argument", `mtu ${mtu}: ${call.ifName} takes ${min} to ${max || "any number of"} bytes`);
  }
  if (mtu !== 0 && mtu < 1280 && link.mtu >= 1280) {
    call.warn(`mtu ${mtu} is below 1280: the kernel takes all IPv6 addresses off ${call.ifName}`);
  }
  if (txQLen !== undefined && (txQLen < 0 || txQLen > 2 ** 31 - 1)) {
    throw internal("numerical result out of range", `txQLen ${txQLen}: write a number of packets`);
  }
}

/** The previous result with what changed. */
function tuned(previous: Result, { ifName, netns }: ContainerCall, { mac, mtu }: Wanted): Result {
  const interfaces = previous.interfaces?.map((one) => {
    if (one.name !== ifName) return one;
    const sized = mtu !== 0 && one.mtu !== undefined && one.sandbox === netns;
    return { ...one, ...(mac !== "" && { mac: parseMac(mac) ?? mac }), ...(sized && { mtu }) };
  });
  return { ...previous, ...(interfaces && { interfaces }) };
}

/** Puts the attributes back, then the settings, going on after failures. Says whether nothing is left to be done. */
async function restore(
  call: Applier & Pick<ContainerCall, "ifName" | "warn">,
  backup: Omit<Backup, "place">,
): Promise<boolean> {
  const { ifName } = call;
  const lines = (["mtu", "mac", "promisc", "allmulti", "txQLen"] as const).flatMap((name) => {
    const value = name === "mac" ? parseMac(backup.mac ?? "") : backup[name];
    return value === undefined ? [] : [linkSet(ifName, name, value)];
  });
  const settings = Object.entries(backup.sysctl ?? {}).map(([path, value]) =>
    step("pod", "sysctl", `${path}=${value}`, { optional: true })
  );
  let done = true;
  // By a name like if7 iproute2 changes another link when there is none of this name.
  if (lines.length > 0 && (!isIndexName(ifName) || await linkNow(call, "pod", ifName))) {
    const output = await runLines(because(call, "as ADD found it").pod, ["ip", "-force"], lines);
    const failure = new CommandError({ argv: ["ip", "-force"], input: lines }, output, failureText(output));
    // Settings of a link that is gone went with it.
    done = output.code === 0 || isAbsent(failure);
    // What the kernel refuses now it refuses again; a tool that did not get so far is worth another DEL.
    if (!done && failedLine(output) === undefined) throw failure;
    if (!done) call.warn(`failed to restore ${ifName}: ${failure.message}`);
  }
  if (settings.length > 0) await apply([settings], call);
  return done;
}

function differs(what: string, { netns }: ContainerCall): CniError {
  return internal(`Error: Tuning configured ${what}`, `somebody changed it in ${netns}`);
}
