/**
 * Publishing ports of a container, and taking them back: the rules of one or the other backend, and what rules cannot do by
 * themselves. Rivals for a port are looked for when the own rules are set: of two that come at once, one is earlier.
 */
import { all, CniError, code, groupsFor } from "../../lib/cni/error.ts";
import type { Call, ContainerCall } from "../../lib/cni/plugin.ts";
import { iptablesTool, iptablesUsable, MAX_LINE, TableError } from "../../lib/kernel/iptables.ts";
import { nftUsable } from "../../lib/kernel/nft.ts";
import { apply, type Step, step } from "../../lib/kernel/plan.ts";
import { toolPath } from "../../lib/kernel/run.ts";
import { type Family, formatAddress, type Prefix } from "../../lib/net/cidr.ts";
import {
  addHostPorts,
  additionText,
  hostPortChain,
  type HostPorts,
  moveHostPortsFirst,
  removeHostPorts,
  usesLocalhost,
} from "../../lib/rules/host_ports_iptables.ts";
import {
  addNftHostPorts,
  dropStaleNftRules,
  moveNftPortsFirst,
  nftAdditionText,
  nftOwnRules,
  nftPorts,
  removeNftHostPorts,
} from "../../lib/rules/host_ports_nft.ts";
import { isLastBehindLink, letLocalhostOut, publishedThrough, withdrawLocalhost } from "./localhost_access.ts";
import { ensureGuard, GUARD_CHECK, type LocalnetBackend, switchLocalnetOff } from "./localnet.ts";
import { iptablesRivals, isLiving, type Listener, listeners, listEntries, nftRivals, type Rival } from "./conflict.ts";
import { ruleError } from "../../lib/rules/rule_error.ts";
import { flushForAdd, flushForDel } from "./udp_flows.ts";

/** Our own code: a host port is taken by another container. Documented in docs/plugins/portmap.md. */
const PORT_TAKEN = 100;

/** A tool that rules are set with. */
export type Backend = "iptables" | "nftables";

/** What a container publishes, where, and what the configuration says about it. */
export interface Publication {
  readonly ports: HostPorts;
  /** `portConflict`: "" is the default. */
  readonly portConflict: string;
  /** Throws when nftables may not be used although iptables does not work. */
  readonly fallBack: () => void;
  /** No backend is configured. */
  readonly mayFallBack: boolean;
  readonly backend: Backend;
  readonly targets: readonly Prefix[];
}

/** Sets all rules of a container, and what belongs to them. Everything it does is handed to `call.undo`. */
export async function publish(call: ContainerCall, publication: Publication): Promise<void> {
  const { ports, targets, backend } = publication;
  const four = targets.find((target) => target.address.family === 4);
  const localhost = four !== undefined && usesLocalhost(ports);
  const state: State = { used: new Map(), guarded: true };
  let switched = "";
  // First, so that it comes last: by then the rules are gone.
  if (localhost) {
    call.undo(async () => {
      const by = state.used.get(4) ?? backend;
      // Another container may have found it on meanwhile.
      if (switched !== "" && !(await publishedThrough(call, switched, by))) switchLocalnetOff(switched);
      await withdrawLocalhost(call, by);
    });
  }
  const route = step("host", "ip", `route get ${four ? formatAddress(four.address) : ""}`, {
    read: true,
    // Without a way to the container there is no link to let it out through.
    optional: true,
    why: "the link that leads to the container: 127.0.0.1 has to be let out through it",
  });
  const steps = targets.map((target) => publishStep(call, { ...publication, target, localhost, state }));
  const [ends, sockets] = await Promise.all([
    Promise.allSettled([apply([localhost ? [...steps, route] : steps], call)]),
    listeners(call, ports.mappings),
  ]);
  const [end] = ends;
  if (end?.status === "rejected") throw end.reason;
  const dev = localhost ? deviceOf(end?.value[0]) : undefined;
  await together([
    () => settleRivals(call, publication, (family) => state.used.get(family) ?? backend),
    ...targets.map((target) => () => flushForAdd(call, ports, target)),
    async () => {
      if (dev === undefined || !state.guarded || dev === "lo") return;
      switched = await letLocalhostOut(call, dev) ?? "";
    },
  ]);
  tellListeners(call, publication.portConflict, sockets);
}

/** All jobs to their ends; then the first failure is thrown. Nothing may be under way when a failed ADD is undone. */
export async function together(jobs: readonly (() => Promise<unknown>)[]): Promise<void> {
  const ends = await Promise.allSettled(jobs.map((job) => job()));
  for (const end of ends) if (end.status === "rejected") throw end.reason;
}

/** The link in an answer to `ip route get`. */
export function deviceOf(routes: unknown[] | undefined): string | undefined {
  return (routes?.[0] as { dev?: string } | undefined)?.dev;
}

/** What was found out while the rules were set. */
interface State {
  readonly used: Map<Family, Backend>;
  guarded: boolean;
}

interface Part extends Publication {
  readonly target: Prefix;
  readonly localhost: boolean;
  readonly state: State;
}

function publishStep(call: ContainerCall, part: Part): Step {
  const { ports, target, backend, localhost } = part;
  const { family } = target.address;
  const guard = localhost && family === 4 && backend === "iptables" ? GUARD_CHECK : "";
  const text = backend === "iptables" ? guard + additionText(ports, target) : nftAdditionText(ports, target);
  checkLines(text);
  return step("host", backend === "iptables" ? iptablesTool(family) : "nft", text, {
    why: "packets to the published ports go to the container",
    job: () => publishOne(call, part),
  });
}

/** iptables-restore cuts lines that are too long. */
function checkLines(text: string): void {
  const long = text.split("\n").find((line) => line.length > MAX_LINE);
  if (long !== undefined) {
    const begins = `it begins ${long.slice(0, 120)}`;
    throw new CniError(code.config, `a rule of ${long.length} characters is too long`, begins);
  }
}

async function publishOne(call: ContainerCall, part: Part): Promise<void> {
  const { ports, target, backend, state, localhost } = part;
  const { family } = target.address;
  const guarded = localhost && family === 4;
  const guard = async (by: LocalnetBackend) => {
    try {
      await ensureGuard(call.host, by);
    } catch (error) {
      state.guarded = false;
      call.warn(
        `127.0.0.1 of this host will not reach the published ports: route_localnet stays off, since containers could not ` +
          `be kept from this host's own 127.0.0.1: ${(error as Error).message}`,
      );
    }
  };
  if (backend === "iptables") {
    try {
      state.used.set(family, "iptables");
      // Before: a tool that was killed may have done its work.
      call.undo(() => removeHostPorts(call, ports, family));
      await addHostPorts(
        call,
        ports,
        target,
        guarded ? { check: GUARD_CHECK, ensure: () => guard("iptables") } : undefined,
      );
      return;
    } catch (error) {
      if (!(error instanceof TableError)) throw error;
      const mayFallBack = part.mayFallBack && error.refusal !== "locked";
      if (!mayFallBack || await iptablesUsable(call.host, family) || !(await nftUsable(call.host))) {
        throw ruleError(error, error.refusal === "missing" ? "failed to open iptables" : "unable to setup DNAT");
      }
      part.fallBack();
      state.guarded = true;
    }
  }
  state.used.set(family, "nftables");
  try {
    call.undo(() => removeNftHostPorts(call, ports.owner.containerId, { family, targets: [target] }));
    await addNftHostPorts(call, ports, target);
    if (guarded) await guard("nftables");
  } catch (error) {
    throw ruleError(error, "unable to set up nftables rules for port mappings");
  }
}

/** Looks who else has the ports, now that the own rules are in their place. */
async function settleRivals(
  call: ContainerCall,
  publication: Publication,
  backendOf: (family: Family) => Backend,
): Promise<void> {
  const { portConflict, targets } = publication;
  const found = await Promise.all(targets.map(async (target) => {
    const rivals = await rivalsFor(call, publication, { target, backend: backendOf(target.address.family) });
    const ahead = rivals.filter((rival) => rival.ahead);
    const address = formatAddress(target.address);
    const living = await Promise.all(
      ahead.map(async (rival) => rival.address !== address && await isLiving(call, rival, target.address.family)),
    );
    return {
      target,
      rivals,
      living: ahead.filter((_, index) => living[index]),
      dead: ahead.filter((_, index) => !living[index]),
    };
  }));
  const [four, six] = [found.find(isFour), found.find((one) => !isFour(one))];
  const behind = four && six && six.living.length > 0
    ? await behindInFour(call, publication, { four, six, backend: backendOf(4) })
    : new Set<string>();
  const living = [...(four?.living ?? []), ...(six?.living ?? []).filter(({ key }) => !behind.has(key))];
  const taken = living.filter(({ conditional }) => !conditional);
  const [first] = taken;
  if (first && portConflict !== "warn") {
    throw new CniError(
      PORT_TAKEN,
      `host port ${[...new Set(taken.map(portOf))].join(", ")} is already published by ${nameOf(first)}`,
      'choose another port, or remove that container; "portConflict": "warn" takes the port in vain, as the reference does',
    );
  }
  for (const rival of living) {
    call.warn(`host port ${portOf(rival)} is already published by ${nameOf(rival)}, which keeps its traffic`);
  }
  for (const { target, living, dead } of found) {
    for (const rival of dead) {
      call.warn(
        `host port ${portOf(rival)}: rules of ${nameOf(rival)} are left over; this container's go first. ` +
          "DEL of that container or GC of its network removes them",
      );
    }
    if (dead.length > 0 && living.length === 0) await moveFirst(call, publication, { target, backendOf });
  }
}

interface Found {
  readonly target: Prefix;
  readonly rivals: readonly Rival[];
  readonly living: readonly Rival[];
}

const isFour = ({ target }: { readonly target: Prefix }) => target.address.family === 4;

async function rivalsFor(
  call: ContainerCall,
  { ports }: Publication,
  { target, backend }: { target: Prefix; backend: Backend },
): Promise<Rival[]> {
  const { family } = target.address;
  if (backend === "iptables") return await iptablesRivals(call, ports, family);
  const rules = await nftPorts(call, family);
  const mine = rules.filter((rule) => rule.comment === ports.owner.containerId).length;
  if (mine > nftOwnRules(ports, target).filter(({ chain }) => chain === "hostports").length) {
    await dropStaleNftRules(call, ports, target);
  }
  return nftRivals(rules, ports, family);
}

/** How often, and how long apart, the other family is looked at once more. */
const [LOOKS, LOOK_MS] = [8, 50];

/**
 * Both families are set side by side, so of two containers that come at once each may be first in one. IPv4 decides then:
 * who is behind there will give up in both. One that is not there yet is waited for.
 */
async function behindInFour(
  call: ContainerCall,
  publication: Publication,
  { four, six, backend }: { four: Found; six: Found; backend: Backend },
): Promise<ReadonlySet<string>> {
  let { rivals } = four;
  for (let i = 0; i < LOOKS && six.living.some(({ key }) => !rivals.some((one) => one.key === key)); i++) {
    await new Promise((done) => setTimeout(done, LOOK_MS));
    rivals = await rivalsFor(call, publication, { target: four.target, backend });
  }
  const ahead = new Set(rivals.filter((rival) => rival.ahead).map(({ key }) => key));
  return new Set(rivals.map(({ key }) => key).filter((key) => !ahead.has(key)));
}

async function moveFirst(
  call: ContainerCall,
  { ports }: Publication,
  { target, backendOf }: { target: Prefix; backendOf: (family: Family) => Backend },
): Promise<void> {
  const { family } = target.address;
  if (backendOf(family) === "iptables") await moveHostPortsFirst(call, ports, family);
  else await moveNftPortsFirst(call, ports, target);
}

const portOf = ({ port, protocol }: Rival | Listener) => `${port}/${protocol}`;
const nameOf = ({ containerId, network, address }: Rival) =>
  `container ${containerId}${network === undefined ? "" : ` of network ${network}`}${address ? ` (${address})` : ""}`;

function tellListeners(call: Call, portConflict: string, sockets: readonly Listener[]): void {
  if (sockets.length === 0) return;
  const names = sockets.map((one) => `${one.program || "a program of this host"} on ${one.address} ${portOf(one)}`);
  const words = `host port ${[...new Set(sockets.map(portOf))].join(", ")} is in use by ${names.join(", ")}`;
  if (portConflict !== "error") {
    call.warn(`${words}: what is sent to it goes to the container now`);
    return;
  }
  throw new CniError(
    PORT_TAKEN,
    words,
    'choose another port, or stop that program; without "portConflict" this is a warning',
  );
}

/** What is to be removed, as far as it is known. */
export interface Withdrawal {
  readonly ports: HostPorts;
  readonly targets: readonly Prefix[];
  readonly families: readonly Family[];
}

const ofFamily = (targets: readonly Prefix[], family: Family) =>
  targets.filter((target) => target.address.family === family).map((target) => formatAddress(target.address));

/** True when iptables held the container's rules of every family: then no other backend has been asked for them. */
export async function unpublish(call: ContainerCall, { ports, targets, families }: Withdrawal): Promise<boolean> {
  let found = 0;
  const jobs = families.map((family) => async () => {
    // Beside the removal, not after it: a listing right after a deletion waits for the kernel once more.
    const [removal, others] = await Promise.allSettled([
      removeHostPorts(call, ports, family),
      family === 4 && isLastBehindLink(call) ? publishesElse(call, ports) : undefined,
    ]);
    const removed = removal.status === "fulfilled" ? removal.value : undefined;
    if (removed?.found) found++;
    await all(...groupsFor<() => unknown>(call, [
      () => removal.status === "rejected" ? Promise.reject(removal.reason) : undefined,
      ...(removed?.found
        ? [() => flushForDel(call, ports, { family, addresses: addressesOf(targets, family, removed.addresses) })]
        : []),
      // Also without rules: the DEL that removed them may have been killed before this.
      ...(family === 4
        ? [() => withdrawLocalhost(call, "iptables", others.status === "fulfilled" ? others.value : undefined)]
        : []),
    ]));
  });
  await all(...groupsFor(call, jobs));
  return found === families.length;
}

/** Does any other container publish a port by IPv4? */
async function publishesElse(call: Call, { owner }: HostPorts): Promise<boolean> {
  const chain = hostPortChain(owner);
  return (await listEntries(call, 4)).some(({ text }) => !text.includes(chain));
}

function addressesOf(targets: readonly Prefix[], family: Family, read: readonly string[]): string[] {
  return [...new Set([...ofFamily(targets, family), ...read])];
}

/** True when nftables held the container's rules of every family. */
export async function unpublishNft(call: ContainerCall, { ports, targets, families }: Withdrawal): Promise<boolean> {
  if (toolPath("nft") === "") return false;
  let found = 0;
  const jobs = families.map((family) => async () => {
    const own = targets.filter((target) => target.address.family === family);
    const removed = await removeNftHostPorts(call, ports.owner.containerId, {
      family,
      targets: own.length > 0 ? own : undefined,
    });
    if (removed.found) found++;
    await all(...groupsFor<() => unknown>(call, [
      ...(removed.found
        ? [() => flushForDel(call, ports, { family, addresses: addressesOf(targets, family, removed.addresses) })]
        : []),
      ...(family === 4 ? [() => withdrawLocalhost(call, "nftables", !removed.empty)] : []),
    ]));
  });
  await all(...groupsFor(call, jobs));
  return found === families.length;
}
