/** Token buckets and the redirection on the host's end of a container's veth pair: put on, looked at. */
import { type CniError, internal } from "../../lib/cni/error.ts";
import type { ContainerCall } from "../../lib/cni/plugin.ts";
import type { Link } from "../../lib/kernel/ip.ts";
import { apply, type Step, step, StepError } from "../../lib/kernel/plan.ts";
import {
  type Filter,
  ingressAdd,
  ingressDel,
  type Qdisc,
  redirectAdd,
  referenceBucket,
  reportedTicks,
  rootDel,
  rootTbfAdd,
  type Shown,
  tcShow,
  tokenBucket,
} from "../../lib/kernel/tc.ts";
import type { Limit, Limits } from "./rate_limits.ts";

/**
 * The steps that limit the host's end `veth`; with a limit for what comes from the container, through `ifb`. One
 * process.
 */
export function tcSteps({ ingress, egress }: Limits, veth: Link, ifb: string): Step[] {
  const dev = veth.ifname;
  const bucket = ({ rate, burst }: Limit) => tokenBucket(rate, burst, veth.mtu);
  const steps: Step[] = [];
  if (ingress) {
    steps.push(step("host", "tc", rootTbfAdd(dev, bucket(ingress)), {
      why: "limits what goes to the container",
      failing: "create qdisc",
      undo: step("host", "tc", rootDel(dev)),
    }));
  }
  if (!egress) return steps;
  return [
    ...steps,
    step("host", "tc", ingressAdd(dev), {
      failing: "create ingress qdisc",
      undo: step("host", "tc", ingressDel(dev)),
    }),
    step("host", "tc", redirectAdd(dev, ifb), { failing: "add filter" }),
    // Last: a second try of these steps finds the device as the first one did.
    step("host", "tc", rootTbfAdd(ifb, bucket(egress)), {
      why: "limits what comes from the container",
      failing: "create ifb qdisc: create qdisc",
    }),
  ];
}

/**
 * Applies the steps; when they are refused, what an earlier ADD left on this link is removed, and they are tried again.
 */
export async function shape(
  call: ContainerCall,
  { steps, limits, veth, ifb }: { steps: Step[]; limits: Limits; veth: Link; ifb: string },
): Promise<void> {
  try {
    await apply([steps], call);
    return;
  } catch (error) {
    if (!(error instanceof StepError)) throw error;
    const dev = veth.ifname;
    const [qdiscs = [], filters = []] = await tcShow(call.host, [
      `qdisc show dev ${dev}`,
      `filter show dev ${dev} parent ffff:`,
    ]) as [Qdisc[]?, Filter[]?];
    const root = limits.ingress && qdiscs.find((one) => one.root && one.handle !== "0:");
    const entry = limits.egress && qdiscs.find((one) => one.handle === "ffff:");
    const rules = filters.filter((one) => one.options?.actions);
    if (root && (root.handle !== "1:" || !["tbf", "htb"].includes(root.kind))) throw taken("create qdisc", dev, root);
    if (entry && (entry.kind !== "ingress" || !rules.every((one) => redirectsTo(one, [ifb, "*"])))) {
      throw taken("create ingress qdisc", dev, entry);
    }
    if (!root && !entry) throw error;
    await apply([[
      ...(entry ? [step("host", "tc", ingressDel(dev), { why: "left by an earlier ADD" })] : []),
      ...(root ? [step("host", "tc", rootDel(dev), { why: "left by an earlier ADD" })] : []),
    ]], call);
  }
  await apply([steps], call);
}

function taken(doing: string, dev: string, { kind, handle }: Qdisc): CniError {
  return internal(
    `${doing}: file exists`,
    `${dev} has a ${kind} qdisc ${handle} that is not ours: tc qdisc show dev ${dev}`,
  );
}

/** Is this the filter that sends everything to one of these devices? `*` is one that is gone. */
export function redirectsTo({ kind, options }: Filter, devices: readonly string[]): boolean {
  return kind === "u32" && options?.actions?.[0]?.mirred_action === "redirect" &&
    devices.includes(options.actions[0].to_dev ?? "");
}

/** The root has to be a token bucket with these numbers, ours or the reference's. */
export function checkBucket(shown: Shown, { limit, dev, mtu }: { limit: Limit; dev: string; mtu: number }): void {
  const root = (shown as Qdisc[] | undefined)?.find((one) => one.root);
  // What release 1.5.0 made instead: its numbers mean something else.
  if (root?.kind === "htb") return;
  if (root?.kind !== "tbf") {
    throw internal("Failed to find qdisc", `${dev} has no tbf at its root: ${root?.kind ?? "nothing"}`);
  }
  const { rate = 0, burst_raw = "0", limit: size = 0 } = root.options ?? {};
  const theirs = referenceBucket(limit.rate, limit.burst);
  const ours = tokenBucket(limit.rate, limit.burst, mtu);
  const differs = (what: string, now: unknown, wanted: unknown) =>
    internal(`${what} doesn't match`, `tbf of ${dev}: ${what.toLowerCase()} is ${now}, not ${wanted}`);
  if (rate !== Number(ours.rate)) throw differs("Rate", rate, ours.rate);
  if (![theirs.limit, ours.limit].includes(BigInt(size))) throw differs("Limit", size, ours.limit);
  const buffer = BigInt(`0x${burst_raw}`);
  const buckets = [ours.burst, limit.burst / 8n].map((bytes) => BigInt.asUintN(32, reportedTicks(ours.rate, bytes)));
  if (![theirs.buffer, ...buckets].includes(buffer)) throw differs("Buffer", buffer, theirs.buffer);
}
