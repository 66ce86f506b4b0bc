/**
 * dummy: addresses on a link that leads nowhere. https://www.cni.dev/plugins/current/main/dummy/
 *
 * Differs from the reference: any failed ADD leaves nothing behind; DEL deletes dummy links only, also when the
 * addresses cannot be released; CHECK looks at routes too, and lets a /32 address pass; `dns` counts when the IPAM
 * plugin gives none; GC is passed on to the IPAM plugin.
 */
import { decode } from "../lib/cni/decode.ts";
import { internal } from "../lib/cni/error.ts";
import { openNetns } from "../lib/cni/netns.ts";
import type { ContainerCall, Plugin } from "../lib/cni/plugin.ts";
import type { JsonObject, Result } from "../lib/cni/types.ts";
import { linkDel } from "../lib/kernel/ip.ts";
import { step } from "../lib/kernel/plan.ts";
import { ipamKeys, ipamType } from "../lib/link/ipam.ts";
import { linkPlugin } from "../lib/link/link_plugin.ts";
import { kindAdvice } from "../lib/link/master.ts";
import { addressesOf, attachLink, detachLink, taken } from "../lib/link/new_link.ts";
import type { CheckPlan } from "../lib/link/verify.ts";

const words = { noun: "dummy", kinds: ["dummy"], missingFront: "dummy: " };

export const plugin: Plugin = linkPlugin({
  name: "dummy",
  about: "gives the container addresses on a link that leads nowhere",
  keys: ipamKeys,
  ipamRequired: true,
  parse,
  add,
  detach: (call) => [() => detachLink(call, words.kinds)],
  check,
});

function parse({ config }: { readonly config: JsonObject }) {
  const doing = "failed to parse network config";
  const conf = decode(ipamKeys, config, doing);
  const type = ipamType(conf.ipam, doing);
  if (type !== "") return { ...conf, type };
  throw internal(
    "dummy interface requires an IPAM configuration",
    'the configuration needs "ipam" with a "type", such as static or host-local',
  );
}

async function add(call: ContainerCall): Promise<Result> {
  const conf = parse(call);
  const { ifName } = call;
  openNetns(call, `failed to open netns "${call.netns}"`);
  const result = await attachLink(call, {
    noun: "dummy",
    // Made from inside the container, so that its name is compared with those there.
    create: [
      step("pod", "ip", `link add name ${ifName} type dummy`, {
        failing: "failed to create dummy",
        why: "what is sent to it is dropped",
        undo: step("pod", "ip", linkDel(ifName)),
      }),
    ],
    failure: ({ said, step: { text } }) =>
      !text.startsWith("link add ") ? undefined : /File exists/.test(said) ? taken(ifName) : kindAdvice(said, "dummy"),
    ...addressesOf(call, conf.type),
    // Nobody else is on this link.
    options: { nodad: true },
  });
  return result.dns || !conf.dns ? result : { ...result, dns: conf.dns };
}

function check(call: ContainerCall): CheckPlan {
  return {
    words,
    ipam: parse(call).type,
    own: ({ link: { flags, ifname } }) => {
      if (flags.includes("UP")) return;
      throw internal(`Interface ${ifname} is down`, `ip link set dev ${ifname} up`);
    },
  };
}
