/**
 * bandwidth: limits the rate of a container behind a veth pair with token buckets: towards the container on the host's
 * end, away from it on an intermediate device (ifb) that this end's traffic is redirected to.
 * https://www.cni.dev/plugins/current/meta/bandwidth/
 *
 * Differs from the reference: a failed ADD is taken back and a repeated one succeeds; CHECK looks at all that ADD made;
 * DEL leaves the container its traffic and needs no valid limits; GC removes the devices that are marked as ours.
 */
import { type HostVeth, hostVeth, linksNow } from "./host_veth.ts";
import { statusTools } from "../../lib/link/needs.ts";
import { bits, checkKernelLimits, doubts, type Limits, limitsOf, mayHaveLimits } from "./rate_limits.ts";
import { checkBucket, redirectsTo, shape, tcSteps } from "./shaping.ts";
import { decode, object } from "../../lib/cni/decode.ts";
import { all, code, internal } from "../../lib/cni/error.ts";
import { openNetns } from "../../lib/cni/netns.ts";
import { type Call, type ContainerCall, type NetworkCall, type Plugin } from "../../lib/cni/plugin.ts";
import { prevResult, prevResultLeniently } from "../../lib/cni/prev_result.ts";
import { attachmentsOf, type Result, since } from "../../lib/cni/types.ts";
import { oneWord, runLines } from "../../lib/kernel/batch.ts";
import { type Link, linkDel } from "../../lib/kernel/ip.ts";
import { apply, because, type Step, step } from "../../lib/kernel/plan.ts";
import { linkNames } from "../../lib/kernel/proc.ts";
import { must } from "../../lib/kernel/run.ts";
import { type Filter, ingressDel, rootDel, tcShow } from "../../lib/kernel/tc.ts";
import { deleteLink } from "../../lib/link/container_link.ts";
import { macFromSeed } from "../../lib/net/mac.ts";
import { type Attachment, nftAttachmentHash, nftNetworkHash, nftRuleComment } from "../../lib/net/name.ts";
import { sha512 } from "../../lib/net/sha512.ts";

const four = {
  ingressRate: bits("limit towards the container in bit/s; 0 is none"),
  ingressBurst: bits("what may pass towards the container at once, in bit"),
  egressRate: bits("limit from the container in bit/s; 0 is none"),
  egressBurst: bits("what may pass from the container at once, in bit"),
};
const keys = {
  ...four,
  runtimeConfig: object(
    { bandwidth: object(four, "limits from the runtime") },
    "capability `bandwidth`: ignored as soon as one of the four keys stands in the configuration itself",
  ),
};

export const plugin: Plugin = {
  name: "bandwidth",
  kind: "meta",
  about: "limits the rate of a container's traffic in both directions",
  versions: since("0.3.0"),
  needs: ["ip", "tc", "nsenter"],
  keys,
  parse: (call) => checkKernelLimits(settings(call)),
  add,
  del,
  check,
  gc,
  status,
};

async function add(call: ContainerCall): Promise<Result> {
  const limits = settings(call);
  const previous = previousOf(call, "must be called as chained plugin");
  if (!limits.ingress && !limits.egress) return previous;
  checkKernelLimits(limits);
  statusTools(plugin.needs, code.internal);
  const ifb = ifbName(call);
  const { veth, links } = await find(call, previous, ifb);
  for (const note of doubts(limits, veth.mtu)) call.warn(note);
  const mac = macFromSeed(ifb);
  if (limits.egress) await apply([ifbSteps(call, ifb, { mac, mtu: veth.mtu, old: links.get(ifb) })], call);
  await shape(call, { steps: tcSteps(limits, veth, ifb), limits, veth, ifb });
  if (!limits.egress) return previous;
  return { ...previous, interfaces: [...previous.interfaces ?? [], { name: ifb, mac }] };
}

/** The ifb goes by its name alone; the container's end of the veth, when it is still there, gets its traffic back. */
async function del(call: ContainerCall): Promise<void> {
  const ifb = ifbName(call);
  const present = linkNames();
  const isThere = present?.has(ifb) ?? true;
  if (!isThere && !mayHaveLimits(keys, call.config)) return;
  const previous = prevResultLeniently(call);
  const found = call.podAlive && previous?.interfaces
    ? await hostVeth(call, previous, [ifb]).catch(() => undefined)
    : undefined;
  const link = found?.links.get(ifb) ?? (isThere ? (await linksNow(call.host, [ifb])).get(ifb) : undefined);
  const ours = link !== undefined && isOurs(link, call);
  if (link && !ours) call.warn(`${ifb} is left alone: it is ${whatIs(link)}`);
  await all([
    async () => found && await clear(call, found, ours),
    async () => ours && await deleteLink(call, ifb, { place: "host" }),
  ]);
}

async function check(call: ContainerCall): Promise<void> {
  const limits = settings(call);
  const previous = previousOf(call, "must be called as a chained plugin");
  const ifb = ifbName(call);
  const { veth, links } = await find(call, previous, ifb);
  const { ingress, egress } = limits;
  if (!ingress && !egress) return;
  const device = links.get(ifb);
  if (egress && !device) throw internal("get ifb device: Link not found", `${ifb} is gone`);
  const [rootOfVeth, filters, rootOfIfb] = await tcShow(call.host, [
    `qdisc show dev ${veth.ifname}`,
    `filter show dev ${veth.ifname} parent ffff:`,
    ...(egress ? [`qdisc show dev ${ifb}`] : []),
  ]);
  if (ingress) checkBucket(rootOfVeth, { limit: ingress, dev: veth.ifname, mtu: veth.mtu });
  if (!egress) return;
  checkBucket(rootOfIfb, { limit: egress, dev: ifb, mtu: veth.mtu });
  if (!device?.flags.includes("UP")) {
    throw internal(`ifb device ${ifb} is down`, `ip link set dev ${ifb} up`);
  }
  if (!(filters as Filter[] | undefined)?.some((one) => redirectsTo(one, [ifb]))) {
    const text = `traffic from the container is not redirected to ${ifb}`;
    throw internal("Failed to find filter", `${text}: tc filter show dev ${veth.ifname} ingress`);
  }
}

/** Removes the devices that are marked with this network and belong to none of the valid attachments. */
async function gc(call: NetworkCall): Promise<void> {
  if (call.valid === undefined) return;
  const keep = new Set(attachmentsOf(call.network, call.valid).map(nftAttachmentHash));
  const stale = async () => {
    const links = JSON.parse(
      await must(call.host, { argv: ["ip", "-j", "-d", "link", "show", "type", "ifb"] }) || "[]",
    );
    return (links as Link[]).filter(({ ifname, ifalias = "" }) =>
      /^bwp[0-9a-f]{12}$/.test(ifname ?? "") && ifalias.startsWith(`${nftNetworkHash(call.network)}-`) &&
      !keep.has(ifalias.slice(0, 33))
    ).map(({ ifname }) => ifname);
  };
  const names = await stale();
  if (names.length === 0) return;
  const { stderr } = await runLines(call.host, ["ip", "-force"], names.map(linkDel));
  const left = await stale();
  if (left.length > 0) throw internal(`failed to delete ${left.join(", ")}`, stderr.trim());
}

// deno-lint-ignore require-await -- what it throws has to be a rejection
async function status(call: NetworkCall): Promise<void> {
  checkKernelLimits(settings(call));
  statusTools(plugin.needs);
}

function settings(call: Call): Limits {
  const { runtimeConfig, ...own } = decode(
    keys,
    call.config,
    "failed to parse network configuration",
  );
  return limitsOf(own, runtimeConfig?.bandwidth, call.config);
}

function previousOf(call: Call, missing: string): Result {
  const previous = prevResult(call, "failed to parse network configuration");
  if (previous) return previous;
  throw internal(missing, "bandwidth comes after bridge or ptp in a list");
}

async function find(call: ContainerCall, previous: Result, ifb: string): Promise<HostVeth> {
  openNetns(call, `failed to open netns "${call.netns}"`);
  return await hostVeth(call, previous, [ifb]);
}

/** Name of the device, as the reference computes it: the interface takes no part, and there is no separator. */
function ifbName({ network, containerId }: ContainerCall): string {
  return `bwp${sha512(network + containerId).slice(0, 12)}`;
}

/**
 * May a call about this attachment remove the device? Not what another plugin made, nor another interface's of ours.
 */
function isOurs({ linkinfo, ifalias = "" }: Link, attachment: Attachment): boolean {
  if (linkinfo?.info_kind !== "ifb") return false;
  return !/^[0-9a-f]{16}-[0-9a-f]{16}, net: /.test(ifalias) || ifalias.startsWith(nftAttachmentHash(attachment));
}

function whatIs({ linkinfo, ifalias }: Link): string {
  if (linkinfo?.info_kind !== "ifb") return `a ${linkinfo?.info_kind ?? "physical"} link`;
  return ifalias ? `marked "${ifalias}"` : "without a mark of ours";
}

/** Makes the device. One of this very attachment that is there already goes first; any other is an error. */
function ifbSteps(call: ContainerCall, ifb: string, how: { mac: string; mtu: number; old: Link | undefined }): Step[] {
  const { mac, mtu, old } = how;
  const mark = nftRuleComment(call);
  if (old && (old.linkinfo?.info_kind !== "ifb" || old.ifalias !== mark)) {
    const text = `${ifb} is ${
      whatIs(old)
    }: it is another interface's of this container, or a left-over that DEL removes`;
    throw internal("adding link: file exists", text);
  }
  return [
    ...(old ? [step("host", "ip", linkDel(ifb), { why: "left by an earlier ADD" })] : []),
    step("host", "ip", `link add name ${ifb} mtu ${mtu} txqueuelen 0 address ${mac} up type ifb`, {
      why: "what comes from the container leaves by it again, limited",
      failing: "adding link",
      undo: step("host", "ip", linkDel(ifb)),
    }),
    step("host", "ip", `link set dev ${ifb} alias ${oneWord(mark)}`, { why: "tells GC whose it is" }),
  ];
}

/** Takes redirection and limit off the host's end; that it cannot be done is of no consequence, the link goes soon. */
async function clear(call: ContainerCall, { veth }: HostVeth, redirected: boolean): Promise<void> {
  let toNowhere = false;
  if (!redirected) {
    // Without the device the redirection would swallow everything.
    const [filters = []] = await tcShow(call.host, [`filter show dev ${veth.ifname} parent ffff:`]) as [Filter[]?];
    toNowhere = filters.some((one) => redirectsTo(one, ["*"]));
  }
  const lines = [
    ...(redirected || toNowhere ? [ingressDel(veth.ifname)] : []),
    ...(veth.qdisc === "tbf" ? [`${rootDel(veth.ifname)} handle 1:`] : []),
  ];
  if (lines.length > 0) {
    await runLines(because(call, "the container's traffic flows again").host, ["tc", "-force"], lines);
  }
}
