/**
 * dummy: addresses on a link that leads nowhere. https://www.cni.dev/plugins/current/main/dummy/
 *
 * Differs from the reference: any failed ADD leaves nothing behind; DEL deletes dummy links only, also when the
 * addresses cannot be given back; CHECK looks at routes too, and lets a /32 address pass; `dns` counts when the IPAM
 * plugin gives none; GC is passed on to the IPAM plugin.
 */
import { decode, decodeLeniently } from "../lib/cni/decode.ts";
import { CniError, code } from "../lib/cni/error.ts";
import { openNetns } from "../lib/cni/netns.ts";
import type { ContainerCall, NetworkCall, Plugin } from "../lib/cni/plugin.ts";
import { type JsonObject, type Result, since } from "../lib/cni/types.ts";
import { allocate } from "../lib/link/container_link.ts";
import {
  collectAddresses,
  ipamKeys,
  ipamType,
  ipamTypeLeniently,
  needsLink,
  release,
  statusTools,
} from "../lib/link/ipam.ts";
import { kindAdvice } from "../lib/link/master.ts";
import { attachLink, checkKind, checkMac, detachLink, requiredPrevResult } from "../lib/link/new_link.ts";
import { checkAddresses, checkRoutes, containerInterface, podState } from "../lib/link/verify.ts";
import { linkDel } from "../lib/kernel/ip.ts";
import { step, StepError } from "../lib/kernel/plan.ts";

export const plugin: Plugin = {
  name: "dummy",
  kind: "main",
  about: "gives the container addresses on a link that leads nowhere",
  versions: since("0.1.0"),
  needs: ["ip", "nsenter", "sh"],
  keys: ipamKeys,
  parse: ({ config }) => parse(config),
  add,
  del,
  check,
  gc,
  status,
};

const words = { noun: "dummy", kinds: ["dummy"] };

function parse(config: JsonObject): ReturnType<typeof read> & { readonly type: string } {
  const conf = read(config);
  const type = ipamType(conf.ipam, "failed to parse network config");
  if (type !== "") return { ...conf, type };
  throw new CniError(
    code.internal,
    "dummy interface requires an IPAM configuration",
    'the configuration needs "ipam" with a "type", such as static or host-local',
  );
}

const read = (config: JsonObject) => decode(ipamKeys, config, "failed to parse network config");

async function add(call: ContainerCall): Promise<Result> {
  const conf = parse(call.config);
  openNetns(call, `failed to open netns "${call.netns}"`);
  const result = await attachLink(call, {
    noun: "dummy",
    // Made from inside the container, so that its name is compared with those there.
    create: [
      step("pod", "ip", `link add name ${call.ifName} type dummy`, {
        failing: "failed to create dummy",
        why: "what is sent to it is dropped",
        undo: step("pod", "ip", linkDel(call.ifName)),
      }),
    ],
    explain: (error) => explained(call, error),
    addresses: () => allocate(call, conf.type),
    early: !needsLink(conf.type),
    // Nobody else is on this link.
    options: { nodad: true },
  });
  return result.dns || !conf.dns ? result : { ...result, dns: conf.dns };
}

function explained({ ifName }: ContainerCall, error: unknown): unknown {
  if (!(error instanceof StepError) || !error.step.text.startsWith("link add ")) return error;
  const said = error.output.stderr;
  const advice = /File exists/.test(said)
    ? `the container already has a link "${ifName}"; it was left alone`
    : kindAdvice(said, "dummy");
  return new CniError(code.internal, error.message, advice);
}

async function del(call: ContainerCall): Promise<void> {
  const conf = decodeLeniently(ipamKeys, call.config, call.warn);
  await release(call, ipamTypeLeniently(conf.ipam), {
    jobs: [() => detachLink(call, words.kinds)],
    required: true,
  });
}

async function check(call: ContainerCall): Promise<void> {
  const conf = parse(call.config);
  openNetns(call, `failed to open netns "${call.netns}"`);
  const previous = requiredPrevResult(call, "dummy: Required prevResult missing");
  const [pod] = await Promise.all([podState(call), call.delegate(conf.type, "CHECK")]);
  const container = containerInterface(call, previous);
  const link = checkKind(container, pod, words);
  checkMac(container, link, words);
  if (!link.flags.includes("UP")) {
    throw new CniError(code.internal, `Interface ${link.ifname} is down`, `ip link set dev ${link.ifname} up`);
  }
  checkAddresses(call.ifName, pod, previous);
  checkRoutes(pod, previous);
}

async function gc(call: NetworkCall): Promise<void> {
  await collectAddresses(call, ipamTypeLeniently(decodeLeniently(ipamKeys, call.config, call.warn).ipam));
}

async function status(call: NetworkCall): Promise<void> {
  const conf = decode(ipamKeys, call.config, "failed to load netconf");
  statusTools(plugin.needs);
  await call.delegate(ipamType(conf.ipam), "STATUS");
}
