/**
 * vrf: puts the container's interface into a VRF inside the container: its routes are then looked up apart from all
 * others. https://www.cni.dev/plugins/current/meta/vrf/
 *
 * Differs from the reference: all routes and addresses come along, at once; ADD may be repeated and is taken back when
 * it fails; tables in use are not chosen; DEL needs no interface and frees it from no other master.
 */
import { statusTools } from "../../lib/link/needs.ts";
import { lockNetns } from "../../lib/link/netns_lock.ts";
import { planMove } from "./move.ts";
import { decode, decodeLeniently, integer, text } from "../../lib/cni/decode.ts";
import { CniError, internal, toCniError } from "../../lib/cni/error.ts";
import { openNetns } from "../../lib/cni/netns.ts";
import { type Call, type ContainerCall, type NetworkCall, nothing, type Plugin } from "../../lib/cni/plugin.ts";
import { prevResult } from "../../lib/cni/prev_result.ts";
import { type Result, since } from "../../lib/cni/types.ts";
import { runLines } from "../../lib/kernel/batch.ts";
import { isNamed, type Link } from "../../lib/kernel/ip.ts";
import { apply, because, type Step, step, StepError } from "../../lib/kernel/plan.ts";
import { type Routing, routingNow, TABLE, tableOf } from "../../lib/kernel/routing.ts";
import { canonicalAddress } from "../../lib/net/cidr.ts";
import { isLinkName } from "../../lib/net/link_name.ts";

const keys = {
  vrfname: text("", "name of the VRF, 15 bytes at most; it is made when it is not there"),
  table: integer(0, "its routing table; 0 is the first that nobody uses", { min: 0, max: 2 ** 32 - 1 }),
};

export const plugin: Plugin = {
  name: "vrf",
  kind: "meta",
  about: "puts the interface into a VRF, with its routes and addresses",
  versions: since("0.3.1"),
  needs: ["ip", "nsenter"],
  keys,
  parse: parseForAdd,
  add,
  del,
  check,
  gc: nothing,
  status,
};

/** What the reference says in front of everything that goes wrong inside the namespace. */
const FRONT = "cmdAdd failed: ";

async function parseForAdd(call: Call): Promise<void> {
  const { vrfname } = settings(call);
  await failing(() => checkName(vrfname));
}

async function add(call: ContainerCall): Promise<Result> {
  const conf = settings(call);
  const previous = previousOf(call);
  await failing(async () => {
    openNetns(call);
    checkName(conf.vrfname);
    const lock = await lockNetns(call);
    call.undo(() => lock.close());
    await enslave(call, { ...conf, previous });
    lock.close();
  });
  return previous;
}

/** The reference's words in front of a failure. */
async function failing(work: () => Promise<void> | void): Promise<void> {
  try {
    await work();
  } catch (error) {
    const { code, msg, details } = toCniError(error);
    throw new CniError(code, msg.startsWith(FRONT) ? msg : FRONT + msg, details);
  }
}

/** Takes the interface out of this VRF, and removes the VRF when it was the last one in it. */
async function del(call: ContainerCall): Promise<void> {
  const { vrfname: configured } = decodeLeniently({ vrfname: keys.vrfname }, call.config, call.warn);
  if (!call.podAlive || configured === "") return;
  const lock = await lockNetns(call);
  try {
    const links = await linksOf(call);
    const vrf = links.find((one) => isNamed(one, configured));
    if (!vrf) return;
    const vrfname = vrf.ifname;
    if (!isVrf(vrf)) return call.warn(`Netlink ${vrfname} is not a VRF: it is left alone`);
    const members = links.filter((one) => one.master === vrfname).map((one) => one.ifname);
    const lines = [
      ...(members.includes(call.ifName) ? [`link set dev ${call.ifName} nomaster`] : []),
      ...(members.every((name) => name === call.ifName) ? [`link del dev ${vrfname}`] : []),
    ];
    if (lines.length === 0) return;
    const stderr = await force(because(call, "a VRF goes with its last interface"), lines);
    if (stderr === "") return;
    // Somebody may have been quicker: what counts is what is left.
    const left = await linksOf(call);
    const stays = left.some((one) => one.ifname === call.ifName && one.master === vrfname) ||
      left.some((one) => one.ifname === vrfname) && !left.some((one) => one.master === vrfname);
    if (stays) throw internal(`resetMaster: could reset master to ${call.ifName}`, stderr);
  } finally {
    lock.close();
  }
}

async function check(call: ContainerCall): Promise<void> {
  const { vrfname: configured, table } = settings(call);
  const previous = previousOf(call);
  openNetns(call);
  const links = await linksOf(call);
  const vrf = links.find((one) => isNamed(one, configured));
  if (!vrf) throw internal("Link not found", `there is no VRF ${configured} in ${call.netns}`);
  const vrfname = vrf.ifname;
  checkVrf(vrf, table);
  const link = links.find((one) => one.ifname === call.ifName);
  if (link?.master !== vrfname) {
    throw internal(
      `failed to find ${call.ifName} associated to vrf ${vrfname}`,
      link ? `its master is ${link.master ?? "none"}` : `there is no ${call.ifName} in ${call.netns}`,
    );
  }
  const [missing] = missingAddresses(call, previous, link);
  if (missing === undefined) return;
  throw internal(`Failed to match addr ${missing} on interface ${call.ifName}`, "it is in prevResult");
}

// deno-lint-ignore require-await -- what it throws has to be a rejection
async function status(call: NetworkCall): Promise<void> {
  settings(call);
  statusTools(plugin.needs);
}

function settings(call: Call): { vrfname: string; table: number } {
  const conf = decode(keys, call.config, "failed to load netconf");
  if (conf.table < 0 || conf.table > 2 ** 32 - 1) {
    throw internal(
      `failed to load netconf: json: cannot unmarshal number ${conf.table} into Go struct field VRFNetConf.table of type uint32`,
      '"table" is 0 to 4294967295',
    );
  }
  if (conf.vrfname !== "") return conf;
  throw internal("configuration is expected to have a valid vrf name", 'set "vrfname"');
}

function previousOf(call: Call): Result {
  const previous = prevResult(call);
  if (previous) return previous;
  throw internal("missing prevResult from earlier plugin", "vrf comes after a main plugin in a list");
}

function checkName(name: string): void {
  if (isLinkName(name)) return;
  const long = new TextEncoder().encode(name).length > 15;
  throw internal(
    `could not add VRF ${name}: ${long ? "numerical result out of range" : "invalid argument"}`,
    long ? '"vrfname" has 15 bytes at most' : '"vrfname" is not a valid link name',
  );
}

function isVrf({ linkinfo }: Link): boolean {
  return linkinfo?.info_kind === "vrf";
}

/** Refuses a link of that name that is no VRF, or another table than the wanted one. */
function checkVrf(vrf: Link, table: number): void {
  if (!isVrf(vrf)) {
    const kind = vrf.linkinfo?.info_kind ?? "physical";
    throw internal(`Netlink ${vrf.ifname} is not a VRF`, `it is a ${kind} link: choose another "vrfname"`);
  }
  if (table === 0 || tableOfVrf(vrf) === table) return;
  throw internal(
    `VRF ${vrf.ifname} already exist with different routing table ${tableOfVrf(vrf)}`,
    `"table" is ${table}: leave it out to use the VRF as it is`,
  );
}

function tableOfVrf({ linkinfo }: Link): number {
  return Number(linkinfo?.info_data?.["table"] ?? 0);
}

/** The first table that no VRF, no rule and no route has; those with a meaning of their own are left out. */
function freeTable({ links, rules, routes }: Routing): number {
  const used = new Set([
    ...links.filter(isVrf).map(tableOfVrf),
    ...rules.filter((rule) => rule.table !== undefined).map(tableOf),
    ...routes.map(tableOf),
    ...Object.values(TABLE),
  ]);
  let table = 1;
  while (used.has(table)) table++;
  return table;
}

/** Makes the VRF if need be, and puts the interface into it with all it has. */
async function enslave(
  call: ContainerCall,
  { vrfname: configured, table: wanted, previous }: { vrfname: string; table: number; previous: Result },
): Promise<void> {
  const { ifName } = call;
  const now = await routingNow(call.pod, ["addr show"]);
  const vrf = now.links.find((one) => isNamed(one, configured));
  const vrfname = vrf?.ifname ?? configured;
  if (vrf) checkVrf(vrf, wanted);
  const link = now.links.find((one) => one.ifname === ifName);
  if (!link) {
    throw internal(`could not get link by name ${ifName}`, `Link not found in ${call.netns}`);
  }
  if (link.master !== undefined && link.master !== vrfname) {
    throw internal(
      `interface ${ifName} has already a master set: ${link.master}`,
      `take it out of ${link.master}, or leave vrf out of the list`,
    );
  }
  if (link.master === vrfname) return await repair(call, previous, link);
  const table = vrf ? tableOfVrf(vrf) : wanted || freeTable(now);
  const move = planMove(link, table, now);
  for (const dst of move.left) call.warn(`the route to ${dst} leads out by other links too, and is lost`);
  const back = [`link set dev ${ifName} nomaster`, ...move.back];
  let isOurs = vrf === undefined;
  call.undo(() => force(call, isOurs ? [...back, `link del dev ${vrfname}`] : back));
  const line = (text: string, failing: string, why = ""): Step => step("pod", "ip", text, { failing, why });
  const made = vrf ? [] : [
    line(`link add name ${vrfname} type vrf table ${table}`, `could not add VRF ${vrfname}`, "there is none yet"),
    line(`link set dev ${vrfname} up`, `could not set link up for VRF ${vrfname}`),
  ];
  const gone = "failed removing ipv6 addresses before slaving interface";
  const routeLine = (text: string) => line(text, `could not add route '${text.slice("route append ".length)}'`);
  const steps = [
    ...made,
    ...move.before.map((text) => line(text, gone, "it comes back without a search for duplicates")),
    line(
      `link set dev ${ifName} master ${vrfname}`,
      `could not set vrf ${vrfname} as master of ${ifName}`,
      "the kernel drops most of its routes",
    ),
    ...move.addresses.map((text) =>
      line(text, `could not restore address ${text.split(" ")[2]} to ${ifName} @ ${vrfname}`)
    ),
    ...move.routes.map(routeLine),
  ];
  try {
    await apply([steps], call);
  } catch (error) {
    if (vrf || !(error instanceof StepError) || error.step !== made[0]) throw error;
    // The reference takes no lock: it may have made the VRF meanwhile.
    isOurs = false;
    if (!(await linksOf(call)).some((one) => one.ifname === vrfname)) throw error;
    return await enslave(call, { vrfname, table: wanted, previous });
  }
  // Only after a main plugin that did not wait for it.
  if (move.addresses.some((text) => !text.includes(" nodad"))) {
    await call.perform(undefined, async () => await (await import("../../lib/link/settling.ts")).settle(call));
  }
  if (move.late.length > 0) await apply([move.late.map(routeLine)], call);
}

/** The interface is where it belongs: an earlier ADD was here. What of prevResult it lacks, it gets. */
async function repair(call: ContainerCall, previous: Result, link: Link): Promise<void> {
  const steps = missingAddresses(call, previous, link).map((cidr) =>
    step("pod", "ip", `addr add ${cidr} dev ${call.ifName}${cidr.includes(":") ? " nodad" : " brd +"}`, {
      failing: `could not restore address ${cidr} to ${call.ifName}`,
    })
  );
  if (steps.length > 0) await apply([steps], call);
}

/** Addresses of prevResult that the interface does not have. */
function missingAddresses({ ifName }: ContainerCall, { ips = [], interfaces = [] }: Result, link: Link): string[] {
  const present = new Set(link.addr_info?.map((one) => `${canonicalAddress(one.local)}/${one.prefixlen}`));
  return ips.filter(({ interface: index }) => index !== undefined && interfaces[index]?.name === ifName)
    .map(({ address }) => address).filter((address) => !present.has(address));
}

async function linksOf(call: ContainerCall): Promise<Link[]> {
  const [links = []] = await apply([[step("pod", "ip", "addr show", { read: true })]], call);
  return links as Link[];
}

/** Runs every line, also when others fail; returns what the tool complained about. */
async function force(call: ContainerCall, lines: readonly string[]): Promise<string> {
  const { code, stderr } = await runLines(call.pod, ["ip", "-force"], lines);
  return code === 0 ? "" : stderr.trim();
}
