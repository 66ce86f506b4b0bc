/**
 * tap: a persistent tap device in the container, for a virtual machine. https://www.cni.dev/plugins/current/main/tap/
 *
 * Differs from the reference: a link of the interface's name is never adopted; `mtu` and `mac` work with `owner` and
 * `group` too, and the device has the same flags in every case; a failed ADD leaves nothing behind; there is no wait
 * for IPv6 addresses, which cannot settle before somebody opens the device; CHECK looks at kind, MAC and bridge; DEL
 * does not read CNI_ARGS, and deletes tap devices only; GC is passed on to the IPAM plugin.
 */
import { anyObject, decode, flag, integer, text, uint32 } from "../lib/cni/decode.ts";
import { CniError, code, internal } from "../lib/cni/error.ts";
import { openNetns } from "../lib/cni/netns.ts";
import type { ContainerCall, Plugin } from "../lib/cni/plugin.ts";
import type { JsonObject, Result } from "../lib/cni/types.ts";
import { linkDel, linkShow, linkUp } from "../lib/kernel/ip.ts";
import { type Step, step } from "../lib/kernel/plan.ts";
import { linkNow } from "../lib/link/container_link.ts";
import type { Failure, Reading } from "../lib/link/failure.ts";
import { ipamKeys, ipamType, withDns } from "../lib/link/ipam.ts";
import { linkPlugin } from "../lib/link/link_plugin.ts";
import { askedMac, checkedMac, macKeys } from "../lib/link/mac_input.ts";
import { kindAdvice } from "../lib/link/master.ts";
import { addressesOf, attachLink, detachLink, passingName } from "../lib/link/new_link.ts";
import type { CheckPlan, Seen } from "../lib/link/verify.ts";
import { isIndexName, isLinkName } from "../lib/net/link_name.ts";

const keys = {
  multiQueue: flag(false, "several queues; whoever opens the device has to ask for the same"),
  mtu: integer(0, "MTU of the device; 0: the kernel's default, 1500", { min: 0 }),
  ...macKeys,
  owner: uint32("user ID that may open the device without privileges"),
  group: uint32("group ID that may open the device without privileges"),
  selinuxContext: text("", "SELinux context in which the device is made"),
  bridge: text("", "bridge in the container that the device becomes a port of"),
  args: anyObject("arguments by convention; none is used"),
  ...ipamKeys,
};

const words = {
  noun: "tap",
  kinds: ["tun"],
  gone: (name: string) => internal(`Cannot find container link ${name}`, "the tap device is gone"),
};

export const plugin: Plugin = linkPlugin({
  name: "tap",
  about: "makes a tap device in the container",
  keys,
  parse: parseForAdd,
  add,
  detach: (call) => [() => detachLink(call, words.kinds)],
  check,
  status: checkTun,
  tools: ({ selinuxContext }) => selinuxContext === "" ? [] : ["runcon"],
});

function parse({ config }: { readonly config: JsonObject }) {
  const conf = decode(keys, config, "failed to load netconf");
  return { ...conf, type: ipamType(conf.ipam) };
}

type Config = ReturnType<typeof parse>;

function parseForAdd(call: ContainerCall) {
  const conf = parse(call);
  const mac = checkedMac(askedMac(conf, call.args), "failed to create tap");
  if (conf.mtu < 0) {
    const least = `"mtu" is ${conf.mtu}: a tap device takes 68 to 65521`;
    throw internal("failed to run command Error: mtu less than device minimum.\n: exit status 2", least);
  }
  return { conf, mac };
}

async function add(call: ContainerCall): Promise<Result> {
  const { conf, mac } = parseForAdd(call);
  openNetns(call, `failed to open netns "${call.netns}"`);
  const { bridge } = conf;
  // What cannot be the kernel's own name, or may be read as a number, costs one more look.
  const usual = bridge === "" || (isLinkName(bridge) && !isIndexName(bridge));
  const port = usual ? bridge : (await linkNow(call, "pod", bridge))?.ifname;
  if (port === undefined) throw noBridge(call, bridge);
  const temp = passingName(call);
  const result = await attachLink(call, {
    noun: "tap",
    create: [createStep(conf, temp)],
    temp,
    join: [...attributeSteps(call, conf.mtu, mac), ...bridgeSteps(call, port)],
    failure: (failure) => read(call, conf, failure),
    ...addressesOf(call, conf.type),
    // Without a process that has it open, the device has no carrier.
    options: { announce: true, settle: false },
  });
  return withDns(result, conf.dns);
}

/** The device, without packet information and virtio headers: whoever opens it chooses those anyway. */
function createStep({ multiQueue, owner, group, selinuxContext }: Config, temp: string): Step {
  const parts = [`tuntap add mode tap name ${temp}`];
  if (multiQueue) parts.push("multi_queue");
  if (owner !== undefined) parts.push(`user ${owner}`);
  if (group !== undefined) parts.push(`group ${group}`);
  const undo = step("pod", "ip", linkDel(temp));
  const why = "made under a passing name: what is called like it already is not to be taken for it";
  const text = parts.join(" ");
  if (selinuxContext === "") return step("pod", "ip", text, { failing: "failed to run command", why, undo });
  // A process of its own, so that nothing else gets the context.
  const command = `runcon ${checkedContext(selinuxContext)} ip ${text}`;
  return step("pod", "command", command, { failing: "failed set socket label", why, undo });
}

function attributeSteps({ ifName }: ContainerCall, mtu: number, mac: string | undefined): Step[] {
  const wanted = [...(mtu > 0 ? [`mtu ${mtu}`] : []), ...(mac ? [`address ${mac}`] : [])];
  if (wanted.length === 0) return [];
  return [step("pod", "ip", `link set dev ${ifName} ${wanted.join(" ")}`, { failing: "failed to run command" })];
}

/** One word, that no program takes for an option. */
function checkedContext(context: string): string {
  if (/^[^\s\p{Cc}-][^\s\p{Cc}]*$/u.test(context)) return context;
  throw internal(
    "failed set socket label: invalid argument",
    `"selinuxContext" is ${JSON.stringify(context)}: write it like system_u:system_r:container_t:s0`,
  );
}

function bridgeSteps({ ifName }: ContainerCall, bridge: string): Step[] {
  if (bridge === "") return [];
  return [
    step("pod", "ip", linkShow(bridge), { read: true, failing: `failed to get bridge ${bridge}` }),
    step("pod", "ip", `link set dev ${ifName} master ${bridge}`, {
      failing: `failed to set tap ${ifName} as a port of bridge ${bridge}`,
      why: "bridge",
    }),
    step("pod", "ip", linkUp(ifName), { failing: "failed to set tap interface up" }),
  ];
}

function noBridge({ netns }: ContainerCall, bridge: string): CniError {
  return internal(
    `failed to get bridge ${bridge}: Link not found`,
    `"bridge" is a bridge in the container (${netns}), and there is none of that name`,
  );
}

/** The reference's words are those of the `ip` that it runs too. */
function read(call: ContainerCall, conf: Config, { error, step: { failing, text, read }, said }: Failure): Reading {
  if (read && failing.startsWith("failed to get bridge")) return noBridge(call, conf.bridge);
  if (text.includes(" master ") && /not supported/i.test(said)) return `${conf.bridge} is not a bridge`;
  if (text.startsWith("runcon ")) {
    return internal(`${failing}: ${said.trim() || error.message}`, '"selinuxContext" needs SELinux');
  }
  if (failing !== "failed to run command") return undefined;
  const own = said.split("\n").filter((line) => line !== "" && !line.startsWith("Command failed")).join("\n");
  const exit = text.startsWith("tuntap ") ? 1 : 2;
  return internal(`${failing} ${own}\n: exit status ${exit}`, advice(conf, said));
}

function advice(conf: Config, said: string): string {
  if (/mtu|Invalid argument/.test(said) && conf.mtu > 0) return `"mtu" is ${conf.mtu}: a tap device takes 68 to 65521`;
  if (/open|\/dev\/net\/tun/.test(said)) {
    return "/dev/net/tun is needed, and the kernel's CONFIG_TUN; try: modprobe tun";
  }
  if (/Invalid argument/.test(said)) {
    return `"owner" is ${conf.owner ?? "absent"}, "group" is ${conf.group ?? "absent"}`;
  }
  return kindAdvice(said, "tun");
}

function check(call: ContainerCall): CheckPlan {
  const conf = parse(call);
  askedMac(conf, call.args);
  return { words, ipam: conf.type || undefined, own: (seen) => checkPort(call, conf.bridge, seen) };
}

async function checkPort(call: ContainerCall, bridge: string, { link }: Seen): Promise<void> {
  if (bridge === "" || link.master === bridge) return;
  if (link.master !== undefined && link.master === (await linkNow(call, "pod", bridge))?.ifname) return;
  throw internal(
    `tap ${link.ifname} is not a port of bridge ${bridge}`,
    `ip link set dev ${link.ifname} master ${bridge}`,
  );
}

function checkTun(): void {
  if (hasTun()) return;
  throw new CniError(code.notAvailable, "open /dev/net/tun: no such file or directory", "try: modprobe tun");
}

function hasTun(): boolean {
  try {
    return Deno.statSync("/dev/net/tun").isCharDevice === true;
  } catch {
    return false;
  }
}
