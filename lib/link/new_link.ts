/**
 * A link that a plugin makes in the container and removes again: macvlan, ipvlan, vlan, dummy and tap. ADD is one
 * process that makes the link and one in the container that names and configures it; the IPAM plugin works beside the
 * first.
 */
import { both } from "../cni/error.ts";
import type { ContainerCall } from "../cni/plugin.ts";
import { prevResultLeniently } from "../cni/prev_result.ts";
import type { Result } from "../cni/types.ts";
import { type Link, linkDel, linkShow, linkUp } from "../kernel/ip.ts";
import { apply, type Step, step } from "../kernel/plan.ts";
import { vethName } from "../net/name.ts";
import {
  allocate,
  configureLink,
  deleteContainerLink,
  deleteLink,
  type LinkOptions,
  linkSettings,
} from "./container_link.ts";
import { type Failure, readFailure, type Reading } from "./failure.ts";
import { needsLink } from "./ipam.ts";

/** How a link of the container is made, and what it gets. */
export interface NewLink {
  /** The plugin's word for it in messages. */
  readonly noun: string;
  /** Steps that make it. */
  readonly create: readonly Step[];
  /** Gets the answers of the questions among these steps. */
  readonly created?: (answers: unknown[][]) => void;
  /** Its name after these steps, from {@linkcode passingName}; absent: they give it its final one. */
  readonly temp?: string;
  /** Steps once it has its name, before it gets addresses and is set up. */
  readonly join?: readonly Step[];
  /** Reads the failure of a step. */
  readonly failure?: (failure: Failure) => Promise<Reading> | Reading;
  /** Where its addresses come from; absent: it gets none. */
  readonly addresses?: (() => Promise<Result>) | undefined;
  /** The addresses can be asked for before the link is there. */
  readonly early?: boolean;
  readonly options?: LinkOptions & { readonly settle?: boolean };
}

/** The name of this attachment's link until it is configured: the pattern of the reference, always the same one. */
export function passingName({ network, containerId, ifName }: ContainerCall): string {
  return vethName({ network, containerId, ifName: `${ifName}:new` });
}

/** Addresses from the IPAM plugin, early where it needs no link; none without a type, unless one is required. */
export function addressesOf(
  call: ContainerCall,
  type: string,
  required = false,
): Pick<NewLink, "addresses" | "early"> {
  return type === "" && !required ? {} : { addresses: () => allocate(call, type), early: !needsLink(type) };
}

/** Makes and configures the link. The result has it as its only interface, and what the addresses came with. */
export async function attachLink(call: ContainerCall, link: NewLink): Promise<Result> {
  const { ifName } = call;
  const { create, temp, addresses, early = false, options = {} } = link;
  const make = async () => {
    const answers = await apply([create], call);
    link.created?.(answers);
  };
  const naming = temp === undefined ? [] : [renameStep(call, link.noun, temp)];
  const show = step("pod", "ip", linkShow(ifName), {
    read: true,
    failing: `failed to refetch ${link.noun} "${ifName}"`,
  });
  try {
    if (!addresses) {
      await make();
      const up = step("pod", "ip", linkUp(ifName), { failing: `failed to set "${ifName}" UP` });
      return result(call, {}, await apply([[...naming, ...(link.join ?? []), up, show]], call));
    }
    let first = [...naming, ...(link.join ?? [])];
    let device = temp;
    let ipam: Result;
    if (early && create.every((one) => one.place === "pod")) {
      ipam = await addresses();
      // Settings are written before the first line of a batch: only without any can the link be made by the same one.
      if (linkSettings(ifName, ipam.ips, options).length > 0 || link.created) await make();
      else first = [...create, ...first];
    } else if (early) {
      [, ipam] = await both(call, make, addresses);
    } else {
      await make();
      if (first.length > 0) await apply([first], call);
      [first, device] = [[], undefined];
      ipam = await addresses();
    }
    const wanted = pointed(call, ipam);
    const known = device === undefined ? options : { ...options, device };
    return result(call, wanted, await configureLink(call, wanted, { ...known, first, last: [show] }));
  } catch (error) {
    throw await readFailure(error, (failure) => read(call, link, failure));
  }
}

function renameStep({ ifName }: ContainerCall, noun: string, temp: string): Step {
  return step("pod", "ip", `link set dev ${temp} name ${ifName}`, {
    failing: `failed to rename ${noun} to "${ifName}"`,
    why: "its final name, free of what the host's links are called",
    undo: step("pod", "ip", linkDel(ifName)),
  });
}

/** All addresses belong to the one interface. */
function pointed({ ifName }: ContainerCall, ipam: Result): Result {
  const ips = (ipam.ips ?? []).map((ip) => ({ ...ip, interface: 0 }));
  return { ...ipam, ips, interfaces: [{ name: ifName }] };
}

/** `answers`: of these the last one is the link as it is now. */
function result({ ifName, netns }: ContainerCall, { cniVersion: _, ...rest }: Result, answers: unknown[][]): Result {
  const now = answers.at(-1)?.[0] as Link | undefined;
  return { ...rest, interfaces: [{ name: ifName, ...(now?.address && { mac: now.address }), sandbox: netns }] };
}

async function read({ ifName }: ContainerCall, link: NewLink, failure: Failure): Promise<Reading> {
  if (/File exists/.test(failure.said) && / name \S+$/.test(failure.step.text)) return taken(ifName);
  return await link.failure?.(failure);
}

/** What to say where the container has a link of the interface's name. */
export function taken(ifName: string): string {
  return `the container already has a link "${ifName}"; it was left alone`;
}

/**
 * Deletes the container's link if it is of one of these kinds, and what an ADD that was killed left under its passing
 * name. A prevResult that names the link says that ADD made it; else its kind is looked at first.
 */
export async function detachLink(call: ContainerCall, kinds: readonly string[]): Promise<void> {
  if (!call.podAlive) return;
  const { ifName, netns } = call;
  const made = prevResultLeniently(call)?.interfaces?.some((one) => one.name === ifName && one.sandbox === netns);
  if (made) return await deleteContainerLink(call);
  const [links = []] = await apply([[step("pod", "ip", "link show", { read: true })]], call) as Link[][];
  const temp = passingName(call);
  for (const { ifname, linkinfo } of links) {
    if (ifname !== ifName && ifname !== temp) continue;
    const kind = linkinfo?.info_kind ?? "physical";
    if (kinds.includes(kind)) await deleteLink(call, ifname, { place: "pod" });
    else call.warn(`the container's "${ifname}" is a ${kind} link, not made by ${call.type}: left alone`);
  }
}
