/**
 * The link on which a container's link hangs: macvlan, ipvlan and vlan name one, or take the one of the default route.
 */
import { type CniError, internal, needed } from "../cni/error.ts";
import { netnsWord } from "../cni/netns.ts";
import type { ContainerCall, NetworkCall } from "../cni/plugin.ts";
import type { Result } from "../cni/types.ts";
import { isNamed, type Link, linkDel, linkShow, type RouteEntry } from "../kernel/ip.ts";
import { type Place, type Step, step } from "../kernel/plan.ts";
import { CommandError, failureText, isAbsent, must, type Run } from "../kernel/run.ts";
import { isAnyName, isIndexName, isLinkName } from "../net/link_name.ts";
import { similarNames } from "../net/similar.ts";
import type { Failure, Reading } from "./failure.ts";
import { attachLink, type NewLink, passingName } from "./new_link.ts";

/** A link that hangs on another one. */
export interface SubLink {
  readonly kind: "macvlan" | "ipvlan" | "vlan";
  readonly master: string;
  /** Where the master is: on the host, or with `linkInContainer` in the container. */
  readonly place: Place;
  /** Bytes; 0: the master's. */
  readonly mtu: number;
  readonly mac?: string;
  /** What follows `type KIND`. */
  readonly options: string;
}

const ROUTES = ["route show table all exact 0.0.0.0/0", "route show table all exact ::/0"];

/** The link of the first default route of table main, IPv4 before IPv6, lowest metric first. One process. */
export async function defaultRouteLink(run: Run): Promise<string> {
  const command = { argv: ["ip", "-j", "-batch", "-"], input: [`${ROUTES.join("\n")}\n`] };
  const families = (await must(run, command)).split("\n").filter((line) => line.startsWith("["))
    .map((line) => JSON.parse(line) as RouteEntry[]);
  for (const routes of families) {
    const main = routes.filter((route) => (route.table ?? "main") === "main");
    for (const route of main.sort((a, b) => (a.metric ?? 0) - (b.metric ?? 0))) {
      const dev = route.dev ?? route.nexthops?.find((hop) => hop.dev)?.dev;
      if (dev) return dev;
    }
  }
  throw internal(
    "no default route interface found",
    '"master" is not set, and table main has no default route whose interface could be taken: set "master"',
  );
}

/** The master as it is now. Throws `failed to lookup master "M": Link not found`, with the names that are alike. */
export async function lookupMaster(run: Run, { name, where }: { name: string; where: string }): Promise<Link> {
  if (!isAnyName(name)) throw await masterMissing(run, { name, where });
  const command = { argv: ["ip", "-j", "-d", "link", "show", "dev", name] };
  const output = await run(command);
  if (output.code === 0) {
    const [link] = JSON.parse(output.stdout) as Link[];
    // iproute2 takes "if7" for the link with the index 7 when there is none of that name.
    if (link && isNamed(link, name)) return link;
  } else {
    const error = new CommandError(command, output, failureText(output));
    if (!isAbsent(error)) throw internal(`failed to lookup master "${name}": ${error.message}`);
  }
  throw await masterMissing(run, { name, where });
}

/** Where the master is looked for, in words. */
export function masterPlace(place: Place, netns: string): string {
  return place === "host" ? "on the host" : `in the container (${netns})`;
}

async function masterMissing(run: Run, { name, where }: { name: string; where: string }): Promise<CniError> {
  const names = (await links(run)).map((link) => link.ifname).filter((one) => one !== "lo");
  const similar = similarNames(name, names);
  const hint = similar.length > 0
    ? `similar: ${similar.join(" ")}`
    : `links there: ${names.slice(0, 20).join(" ") || "none"}`;
  return internal(
    `failed to lookup master "${name}": Link not found`,
    `"master" is ${JSON.stringify(name)}, and there is no such link ${where}; ${hint}`,
  );
}

async function links(run: Run): Promise<Link[]> {
  const { code: status, stdout } = await run({ argv: ["ip", "-j", "-d", "link", "show"] });
  return status === 0 ? (JSON.parse(stdout || "[]") as Link[]).filter(({ ifname }) => ifname) : [];
}

/**
 * Steps that look at the master and make a link on it, in the container, under the name `temp`: older kernels compare a
 * new link's name with those of the namespace in which the command runs. The first step is a question: the master.
 */
export async function subLinkSteps(call: ContainerCall, sub: SubLink, temp: string): Promise<Step[]> {
  const { kind, place, mtu, mac, options } = sub;
  const where = masterPlace(place, call.netns);
  // What cannot be the kernel's own name, or may be read as a number, costs one more look.
  const master = isLinkName(sub.master) && !isIndexName(sub.master)
    ? sub.master
    : (await lookupMaster(call[place], { name: sub.master, where })).ifname;
  const parts = [`link add link ${master} name ${temp}`];
  if (mtu > 0) parts.push(`mtu ${mtu}`);
  if (mac) parts.push(`address ${mac}`);
  if (place === "host") parts.push(`netns ${netnsWord(call)}`);
  parts.push(`type ${kind} ${options}`);
  return [
    step(place, "ip", linkShow(master), { read: true, failing: `failed to lookup master "${master}"` }),
    step(place, "ip", parts.join(" "), {
      failing: `failed to create ${kind}`,
      why: `a ${kind} on ${master}, made ${place === "host" ? "right in the container" : "here"} under a passing name${
        kind === "vlan" ? "" : `; by design the host does not reach it through ${master}`
      }`,
      undo: step("pod", "ip", linkDel(temp)),
    }),
  ];
}

/** The error for an MTU that a link on this master cannot have. */
export function invalidMtu(mtu: number, master: Link): CniError {
  return internal(
    `invalid MTU ${mtu}, must be [0, master MTU(${master.mtu})]`,
    `"mtu" is ${mtu} and ${master.ifname} has ${master.mtu}: lower it, raise that of ${master.ifname}, or leave it out`,
  );
}

/** Why the steps of {@linkcode subLinkSteps} failed. */
export async function subLinkFailure(
  call: ContainerCall,
  sub: SubLink,
  { error, step, said }: Failure,
): Promise<Reading> {
  const { master, place, mtu } = sub;
  const run = call[place];
  const where = masterPlace(place, call.netns);
  if (step.read) return isAbsent(error) ? await masterMissing(run, { name: master, where }) : undefined;
  if (!step.text.startsWith("link add ")) return undefined;
  const all = await links(run);
  const now = all.find((link) => isNamed(link, master));
  if (/Invalid argument|out of range|Numerical result/.test(said) && now && mtu > now.mtu) return invalidMtu(mtu, now);
  return createAdvice(said, sub, { all, now });
}

/**
 * ADD of a link that hangs on another one. `own`: what is the plugin's; its steps come before those that make the link.
 */
export async function attachSubLink(
  call: ContainerCall,
  sub: SubLink,
  own: Partial<Omit<NewLink, "noun" | "temp">>,
): Promise<Result> {
  await checkMtu(call, sub);
  const temp = passingName(call);
  return await attachLink(call, {
    options: { announce: true },
    ...own,
    noun: sub.kind,
    temp,
    create: [...own.create ?? [], ...await subLinkSteps(call, sub, temp)],
    failure: async (failure) => await own.failure?.(failure) ?? await subLinkFailure(call, sub, failure),
  });
}

/** Refuses a negative MTU; a larger one than the master's is left to the kernel, see {@linkcode subLinkFailure}. */
export async function checkMtu(call: ContainerCall, { master, place, mtu }: SubLink): Promise<void> {
  if (mtu >= 0) return;
  throw invalidMtu(mtu, await lookupMaster(call[place], { name: master, where: masterPlace(place, call.netns) }));
}

/** STATUS of a plugin whose links hang on another one: is that there? What is in a container cannot be known. */
export async function masterStatus(
  call: NetworkCall,
  { master, linkInContainer }: { master: string; linkInContainer: boolean },
): Promise<void> {
  if (master === "" || linkInContainer) return;
  await needed(() => lookupMaster(call.host, { name: master, where: "on the host" }));
}

/** Kernel option of each kind: what to look for when it is not there. */
const OPTIONS = {
  macvlan: "CONFIG_MACVLAN",
  ipvlan: "CONFIG_IPVLAN",
  vlan: "CONFIG_VLAN_8021Q",
  dummy: "CONFIG_DUMMY",
  tun: "CONFIG_TUN",
  veth: "CONFIG_VETH",
} as const;

/** Module that has the kind. */
const MODULES: Readonly<Record<string, string>> = { vlan: "8021q" };

/** What to do when the kernel does not know a type of link; "" for any other failure. */
export function kindAdvice(words: string, kind: keyof typeof OPTIONS): string {
  return /Unknown device type|Operation not supported/.test(words)
    ? `this kernel has no ${kind} links: it needs ${OPTIONS[kind]}; try: modprobe ${MODULES[kind] ?? kind}`
    : "";
}

function createAdvice(words: string, sub: SubLink, { all, now }: { all: Link[]; now: Link | undefined }): string {
  const { kind, master } = sub;
  const told = words.split("\n").filter((line) => line.startsWith("Error: ")).join(" ");
  if (/Error: mtu /.test(words)) return `"mtu" is ${sub.mtu}: ${told.replace(/^Error: /, "")}`;
  if (/Unknown device type|Operation not supported/.test(words)) return kindAdvice(words, kind);
  if (/busy/i.test(words)) return busy(sub, all, now);
  if (/File exists|already exists/.test(words)) {
    return kind === "vlan"
      ? `${master} already has a VLAN link with this vlanId, here or in another container: a vlanId can be used once on one master`
      : "left by an ADD that did not end; DEL of this container removes it";
  }
  if (/Invalid argument/.test(words)) {
    return now?.link_type && now.link_type !== "ether"
      ? `${master} is ${now.link_type}: the master has to be an Ethernet link`
      : `${master} refuses "type ${kind} ${sub.options}"${told === "" ? "" : `: ${told}`}${
        kind === "macvlan" ? "; a macvlan in mode passthru has its master for itself" : ""
      }`;
  }
  return told;
}

/** Kinds that take all that their master receives. */
const TAKERS = ["macvlan", "macvtap", "ipvlan", "ipvtap"];

/** A link passes what it receives to one user only: name it. */
function busy({ kind, master }: SubLink, all: Link[], now: Link | undefined): string {
  if (now?.master) {
    const what = now.linkinfo?.info_slave_kind ?? "another link";
    return `${master} is a port of ${now.master} (${what}), which takes all that it receives: use "master": "${now.master}"`;
  }
  const other = all.find(({ link, linkinfo }) => {
    const its = linkinfo?.info_kind ?? "";
    return link === now?.ifname && TAKERS.includes(its) && its !== kind;
  });
  const user = other ? `${other.linkinfo?.info_kind} ${other.ifname}` : "a macvlan or ipvlan of another container";
  return `${master} already carries ${user}: it cannot carry both kinds`;
}
