/**
 * Publishing ports of a container, and withdrawing them: the rules of one or the other backend, and what rules cannot
 * do by themselves. Conflicting mappings are looked for when the own rules are set: of two that come at once, one is
 * earlier.
 */
import { badConfig, CniError, groupsFor } from "../../lib/cni/error.ts";
import type { Call, ContainerCall } from "../../lib/cni/plugin.ts";
import { MAX_LINE } from "../../lib/kernel/iptables.ts";
import { apply, step } from "../../lib/kernel/plan.ts";
import { type Family, formatAddress, type Prefix } from "../../lib/net/cidr.ts";
import { type Backend, type Backends, ruleSteps, type Subject, together } from "../../lib/rules/backend.ts";
import { familiesOf, hostPorts, type Published } from "../../lib/rules/host_ports.ts";
import {
  addHostPorts,
  hostPortChain,
  type HostPorts,
  moveHostPortsFirst,
  type Removed,
  removeHostPorts,
  usesLocalhost,
} from "../../lib/rules/host_ports_iptables.ts";
import {
  dropStaleNftRules,
  moveNftPortsFirst,
  nftOwnRules,
  nftPorts,
  removeNftHostPorts,
} from "../../lib/rules/host_ports_nft.ts";
import { isLastBehindLink, letLocalhostOut, publishedThrough, withdrawLocalhost } from "./localhost_access.ts";
import { ensureGuard, GUARD_CHECK, type LocalnetBackend, switchLocalnetOff } from "./localnet.ts";
import {
  type ConflictingMapping,
  iptablesConflicts,
  isLiving,
  type Listener,
  listeners,
  listEntries,
  nftConflicts,
} from "./conflict.ts";
import { flushForAdd, flushForDel } from "./udp_flows.ts";

/** Our own code: a host port is taken by another container. Documented in docs/plugins/portmap.md. */
const PORT_TAKEN = 100;

/** What a container publishes, where, and what the configuration says about it. */
export interface Publication extends Published {
  /** `portConflict`: "" is the default. */
  readonly portConflict: string;
  /** Throws when a backend cannot have the rules that are configured. */
  readonly checkFor: (backend: Backend) => void;
  /** The backend to use, and the one to fall back to. */
  readonly backends: Backends;
}

/** Sets all rules of a container, and what belongs to them. Everything it does is handed to `call.undo`. */
export async function publish(call: ContainerCall, publication: Publication): Promise<void> {
  const { ports, targets, backends } = publication;
  const four = targets.find((target) => target.address.family === 4);
  const localhost = four !== undefined && usesLocalhost(ports);
  const state: State = { used: new Map(), guarded: true };
  const backendOf = (family: Family) => state.used.get(family) ?? backends[0];
  let switched = "";
  // First, so that it comes last: by then the rules are gone.
  if (localhost) {
    call.undo(async () => {
      const by = backendOf(4);
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
  const steps = ruleSteps(publishing(call, publication, { localhost, state }), publication, backends);
  const [ends, sockets] = await Promise.all([
    Promise.allSettled([apply([localhost ? [...steps, route] : steps], call)]),
    listeners(call, ports.mappings),
  ]);
  const [end] = ends;
  if (end?.status === "rejected") throw end.reason;
  const dev = localhost ? deviceOf(end?.value[0]) : undefined;
  await together([
    () => settleConflicts(call, publication, backendOf),
    ...targets.map((target) => () => flushForAdd(call, ports, target)),
    async () => {
      if (dev === undefined || !state.guarded || dev === "lo") return;
      switched = await letLocalhostOut(call, dev) ?? "";
    },
  ]);
  tellListeners(call, publication.portConflict, sockets);
}

/** The link in an answer to `ip route get`. */
export function deviceOf(routes: unknown[] | undefined): string | undefined {
  return (routes?.[0] as { dev?: string } | undefined)?.dev;
}

/** What is found out while the rules are set. */
interface State {
  readonly used: Map<Family, Backend>;
  guarded: boolean;
}

/**
 * The rules of an ADD: with the guard of 127.0.0.0/8 where 127.0.0.1 is let out, and a note of which backend took them.
 */
function publishing(
  call: ContainerCall,
  { checkFor }: Publication,
  { localhost, state }: { readonly localhost: boolean; readonly state: State },
): Subject<Published> {
  const { iptables, nftables } = hostPorts;
  const guard = async (by: LocalnetBackend) => {
    try {
      state.guarded = true;
      await ensureGuard(call.host, by);
    } catch (error) {
      state.guarded = false;
      call.warn(
        `127.0.0.1 of this host will not reach the published ports: route_localnet stays off, since containers could not ` +
          `be kept from this host's own 127.0.0.1: ${(error as Error).message}`,
      );
    }
  };
  const reliance = { check: GUARD_CHECK, ensure: () => guard("iptables") };
  return {
    ...hostPorts,
    iptables: {
      ...iptables,
      text: (part) => checkedLines((localhost && part.family === 4 ? GUARD_CHECK : "") + iptables.text(part)),
      add: async (_, { ports, family, targets: [target] }) => {
        state.used.set(family, "iptables");
        if (target) await addHostPorts(call, ports, target, localhost && family === 4 ? reliance : undefined);
        return undefined;
      },
    },
    nftables: {
      ...nftables,
      text: (want) => checkedLines(nftables.text(want)),
      add: async (applier, want) => {
        checkFor("nftables");
        for (const family of familiesOf(want)) state.used.set(family, "nftables");
        const undo = await nftables.add(applier, want);
        if (localhost && familiesOf(want).includes(4)) await guard("nftables");
        return undo;
      },
    },
  };
}

/** iptables-restore cuts lines that are too long. */
function checkedLines(text: string): string {
  const long = text.split("\n").find((line) => line.length > MAX_LINE);
  if (long === undefined) return text;
  const begins = `it begins ${long.slice(0, 120)}`;
  throw badConfig(`a rule of ${long.length} characters is too long`, begins);
}

/** Looks who else has the ports, now that the own rules are in their place. */
async function settleConflicts(
  call: ContainerCall,
  publication: Publication,
  backendOf: (family: Family) => Backend,
): Promise<void> {
  const { portConflict, targets } = publication;
  const found = await Promise.all(targets.map(async (target) => {
    const conflicts = await conflictsFor(call, publication, { target, backend: backendOf(target.address.family) });
    const ahead = conflicts.filter((other) => other.ahead);
    const address = formatAddress(target.address);
    const living = await Promise.all(
      ahead.map(async (other) => other.address !== address && await isLiving(call, other, target.address.family)),
    );
    return {
      target,
      conflicts,
      living: ahead.filter((_, index) => living[index]),
      dead: ahead.filter((_, index) => !living[index]),
    };
  }));
  const [four, six] = [found.find(isFour), found.find((one) => !isFour(one))];
  const gone = four && six && six.living.length > 0
    ? await givingUp(call, publication, { four, six, backendOf })
    : new Set<string>();
  const living = [...(four?.living ?? []), ...(six?.living ?? []).filter(({ key }) => !gone.has(key))];
  const taken = living.filter(({ conditional }) => !conditional);
  const [first] = taken;
  if (first && portConflict !== "warn") {
    throw new CniError(
      PORT_TAKEN,
      `host port ${[...new Set(taken.map(portOf))].join(", ")} is already published by ${nameOf(first)}`,
      'choose another port, or remove that container; "portConflict": "warn" takes the port in vain, as the reference does',
    );
  }
  for (const other of living) {
    call.warn(`host port ${portOf(other)} is already published by ${nameOf(other)}, which keeps its traffic`);
  }
  for (const { target, living, dead } of found) {
    for (const other of dead) {
      call.warn(
        `host port ${portOf(other)}: rules of ${nameOf(other)} are left over; this container's go first. ` +
          "DEL of that container or GC of its network removes them",
      );
    }
    if (dead.length > 0 && living.every(({ key }) => gone.has(key))) {
      await moveFirst(call, publication, { target, backendOf });
    }
  }
}

interface Found {
  readonly target: Prefix;
  readonly conflicts: readonly ConflictingMapping[];
  readonly living: readonly ConflictingMapping[];
}

const isFour = ({ target }: { readonly target: Prefix }) => target.address.family === 4;

async function conflictsFor(
  call: ContainerCall,
  { ports }: Publication,
  { target, backend }: { target: Prefix; backend: Backend },
): Promise<ConflictingMapping[]> {
  const { family } = target.address;
  if (backend === "iptables") return await iptablesConflicts(call, ports, family);
  const rules = await nftPorts(call, family);
  const mine = rules.filter((rule) => rule.comment === ports.owner.containerId).length;
  if (mine > nftOwnRules(ports, target).filter(({ chain }) => chain === "hostports").length) {
    await dropStaleNftRules(call, ports, target);
  }
  return nftConflicts(rules, ports, family);
}

/** How long both families are looked at again: a container that comes at the same time has its rules in one only. */
const WAITS_MS = [25, 50, 100, 200, 400, 800, 1600];

/**
 * Who is ahead in IPv6 but does not keep the port. Both families are set side by side, so of several containers that
 * come at once each may be first in one. IPv4 decides then: who is behind there gives up in both, and may have done so
 * before it is seen there. One that is not there yet is waited for.
 */
async function givingUp(
  call: ContainerCall,
  publication: Publication,
  { four, six, backendOf }: { four: Found; six: Found; backendOf: (family: Family) => Backend },
): Promise<ReadonlySet<string>> {
  const gone = new Set<string>();
  let [inFour, inSix] = [four.conflicts, six.conflicts];
  for (const wait of [...WAITS_MS, 0]) {
    for (const { key, ahead } of inFour) if (!ahead) gone.add(key);
    for (const { key } of six.living) if (!inSix.some((one) => one.key === key)) gone.add(key);
    const undecided = six.living.some(({ key }) => !gone.has(key) && !inFour.some((one) => one.key === key));
    if (!undecided || wait === 0) break;
    await new Promise((done) => setTimeout(done, wait));
    [inFour = [], inSix = []] = await Promise.all(
      [four, six].map(({ target }) =>
        conflictsFor(call, publication, { target, backend: backendOf(target.address.family) })
      ),
    );
  }
  return gone;
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

const portOf = ({ port, protocol }: ConflictingMapping | Listener) => `${port}/${protocol}`;
const nameOf = ({ containerId, network, address }: ConflictingMapping) =>
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

/** The rules of a DEL: with them go tracked flows, and the way out for 127.0.0.1. */
export function withdrawing(call: ContainerCall): Subject<Published> {
  const inOrder = async (jobs: readonly (() => Promise<unknown>)[]) => {
    for (const group of groupsFor(call, jobs)) await together(group);
  };
  const flush = ({ ports, targets }: Published, family: Family, { addresses }: Pick<Removed, "addresses">) => {
    const known = targets.filter(({ address }) => address.family === family).map(({ address }) =>
      formatAddress(address)
    );
    return flushForDel(call, ports, { family, addresses: [...new Set([...known, ...addresses])] });
  };
  return {
    ...hostPorts,
    iptables: {
      ...hostPorts.iptables,
      remove: async (_, part, { likely }) => {
        const { ports, family } = part;
        // Beside the removal, not after it: a listing right after a deletion waits for the kernel once more.
        const [removal, others] = await Promise.allSettled([
          removeHostPorts(call, ports, { family, likely }),
          family === 4 && isLastBehindLink(call) ? publishesElse(call, ports) : undefined,
        ]);
        const removed = removal.status === "fulfilled" && removal.value.found ? removal.value : undefined;
        await inOrder([
          async () => await (removal.status === "rejected" && Promise.reject(removal.reason)),
          ...(removed ? [() => flush(part, family, removed)] : []),
          // Also without rules: the DEL that removed them may have been killed before this.
          ...(family === 4
            ? [() => withdrawLocalhost(call, "iptables", others.status === "fulfilled" ? others.value : undefined)]
            : []),
        ]);
        return removed !== undefined;
      },
    },
    nftables: {
      ...hostPorts.nftables,
      remove: async (_, published) => {
        const { ports: { owner }, targets } = published;
        let found = 0;
        const families = familiesOf(published);
        await inOrder(families.map((family) => async () => {
          const removed = await removeNftHostPorts(call, owner.containerId, { family, targets });
          if (removed.found) found++;
          await inOrder([
            ...(removed.found ? [() => flush(published, family, removed)] : []),
            ...(family === 4 ? [() => withdrawLocalhost(call, "nftables", !removed.empty)] : []),
          ]);
        }));
        return found === families.length;
      },
    },
  };
}

/** Does any other container publish a port by IPv4? */
async function publishesElse(call: Call, { owner }: HostPorts): Promise<boolean> {
  const chain = hostPortChain(owner);
  return (await listEntries(call, 4)).some(({ text }) => !text.includes(chain));
}
