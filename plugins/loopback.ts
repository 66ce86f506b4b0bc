/**
 * loopback: brings the container's `lo` up on ADD and down on DEL. https://www.cni.dev/plugins/current/main/loopback/
 *
 * Differs from the reference: results have the layout that their version demands; the host's own `lo` is never touched.
 */
import { decode } from "../lib/cni/decode.ts";
import { internal } from "../lib/cni/error.ts";
import { openNetns } from "../lib/cni/netns.ts";
import { type ContainerCall, nothing, type Plugin } from "../lib/cni/plugin.ts";
import { prevResult } from "../lib/cni/prev_result.ts";
import { type IPConfig, type Result, since } from "../lib/cni/types.ts";
import { addrShow, type Link, linkDown, linkShow, linkUp } from "../lib/kernel/ip.ts";
import { apply, step } from "../lib/kernel/plan.ts";

export const plugin: Plugin = {
  name: "loopback",
  kind: "main",
  about: "brings the container's loopback interface up",
  versions: since("0.1.0"),
  needs: ["ip", "nsenter"],
  keys: {},
  add,
  del,
  check,
  gc: nothing,
  status: nothing,
};

async function add(call: ContainerCall): Promise<Result> {
  decode(plugin.keys, call.config, "failed to parse network config");
  const previous = prevResult(call, "failed to parse network config");
  openNetns(call);
  const [shown] = await apply([[
    step("pod", "ip", linkUp("lo"), {
      failing: 'failed to set "lo" up',
      why: "the kernel adds 127.0.0.1 and ::1 by itself",
    }),
    step("pod", "ip", addrShow("lo"), { read: true, why: "its addresses go into the result" }),
  ]], call);
  const addresses = (shown?.[0] as Link | undefined)?.addr_info ?? [];
  const stranger = addresses.find((one) => one.family === "inet" ? !one.local.startsWith("127.") : one.local !== "::1");
  if (stranger) {
    throw internal(
      `loopback interface found with non-loopback address "${stranger.local}"`,
      `remove ${stranger.local}/${stranger.prefixlen} from lo in ${call.netns}`,
    );
  }
  if (previous) return previous;
  const ips: IPConfig[] = [];
  for (const family of ["inet", "inet6"]) {
    const first = addresses.find((one) => one.family === family);
    if (first) ips.push({ address: `${first.local}/${first.prefixlen}`, interface: 0 });
  }
  return { interfaces: [{ name: "lo", mac: "00:00:00:00:00:00", sandbox: call.netns }], ips };
}

async function del(call: ContainerCall): Promise<void> {
  if (!call.podAlive) return;
  await apply(
    [[step("pod", "ip", linkDown("lo"), { failing: 'failed to set "lo" down', why: "its addresses stay" })]],
    call,
  );
}

async function check(call: ContainerCall): Promise<void> {
  openNetns(call);
  const [shown] = await apply([[step("pod", "ip", linkShow("lo"), { read: true })]], call);
  const lo = shown?.[0] as Link | undefined;
  if (!lo?.flags.includes("UP")) {
    throw internal("loopback interface is down", `nsenter --net=${call.netns} ip link set lo up`);
  }
}
