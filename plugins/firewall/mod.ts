/**
 * firewall: lets the container's traffic through the host's packet filter, and keeps bridges apart.
 * https://www.cni.dev/plugins/current/meta/firewall/
 *
 * Differs from the reference: everything is checked before the first change, and a failed ADD leaves nothing; a backend
 * for nftables, taken where iptables does not work; bridges stay apart whatever order networks come in; `isolated`
 * holds on the bridge itself too; DEL removes what every backend may have, also without a result; CHECK changes nothing
 * and looks at all rules; GC and STATUS do their work.
 */
import {
  dropOwnerDrafts,
  forgetOwner,
  isRemembered,
  noteOwner,
  type Owned,
  ownedAddresses,
  ownerPath,
  ownerText,
} from "./address_owners.ts";
import { addressesOf, checkedSettings, type Config, keys, parse, settingsOf } from "./settings.ts";
import { checkSource, sourceRemovals, sourceStep } from "./zone.ts";
import { decode, decodeLeniently } from "../../lib/cni/decode.ts";
import { all, CniError, code } from "../../lib/cni/error.ts";
import type { Call, ContainerCall, NetworkCall, Plugin } from "../../lib/cni/plugin.ts";
import { prevResultLeniently } from "../../lib/cni/prev_result.ts";
import { type Result, since } from "../../lib/cni/types.ts";
import { heldByAnother } from "../../lib/ipam/lease_holder.ts";
import { busAbsence, busAddress, firewalldRunning } from "../../lib/kernel/firewalld.ts";
import { apply, type Step, step } from "../../lib/kernel/plan.ts";
import { linkExists } from "../../lib/kernel/proc.ts";
import { linkNow } from "../../lib/link/container_link.ts";
import { type Address, formatAddress } from "../../lib/net/cidr.ts";
import { isAnyName, isIndexName, isLinkName } from "../../lib/net/link_name.ts";
import { type Attachment, sameAttachment } from "../../lib/net/name.ts";
import { bothBackends, chosenBackends, removeRules, ruleSteps, together } from "../../lib/rules/backend.ts";
import { acceptance, type Forwarded, forwarding, onReadable } from "../../lib/rules/forwarding.ts";
import { type Forwarding, removeForwarding, removeIsolation } from "../../lib/rules/forwarding_iptables.ts";
import { collectNftForwarding, removeNftIsolation } from "../../lib/rules/forwarding_nft.ts";

export const plugin: Plugin = {
  name: "firewall",
  kind: "meta",
  about: "lets the container's traffic through the host's firewall",
  versions: since("0.4.0"),
  needs: [],
  keys,
  parse: (call) => checkedSettings(call, decode(keys, call.config, "failed to load netconf")),
  add,
  del,
  check,
  gc,
  status,
};

/**
 * The same, about the bridge's own name: packet filters know no other. A process only where prevResult has an
 * alternative one.
 */
async function withKernelName(call: ContainerCall, forwarding: Forwarding): Promise<Forwarding> {
  const { bridge } = forwarding;
  if (bridge === "" || (isLinkName(bridge) && linkExists(bridge))) return forwarding;
  const now = await linkNow(call, "host", bridge);
  return { ...forwarding, bridge: now?.ifname ?? bridge };
}

const upkeep = () => import("../../lib/rules/rule_upkeep.ts");

async function add(call: ContainerCall): Promise<Result> {
  const { config, previous, forwarding: configured } = parse(call);
  if (configured.addresses.length === 0) return previous;
  const backend = await chosenBackend(call, config);
  const want = wanted(call, await withKernelName(call, configured), { accept: backend !== "firewalld" });
  const steps = want.accept ? [] : want.addresses.map((address) => sourceStep(call, config.zone, address));
  if (want.accept || config.policy !== "open") {
    steps.push(...ruleSteps(forwarding, want, chosenBackends(backend === "firewalld" ? undefined : backend)));
  }
  if (config.policy === "isolated") steps.push(...portSteps(previous));
  noteOwners(call, want.addresses);
  await apply([steps], call);
  return previous;
}

/** The configured backend; else firewalld, if it runs; else undefined for one of the packet filters. */
async function chosenBackend(call: Call, { backend }: Config): Promise<Config["backend"]> {
  if (backend !== undefined) return backend;
  return await firewalldRunning(call.host, busAddress(call.env)) ? "firewalld" : undefined;
}

/** With firewalld the addresses are its own affair, and only the bridges are ours. */
function wanted(owner: Attachment, forwarding: Forwarding, { accept }: { readonly accept: boolean }): Forwarded {
  return { ...forwarding, accept, owner };
}

/**
 * Neighbours on one bridge never meet the packet filter, unless br_netfilter is loaded: the ports are kept apart too.
 */
function portSteps({ interfaces = [] }: Result): Step[] {
  const [bridge, ...others] = interfaces;
  const ports = others.filter(({ name, sandbox }) => !sandbox && name !== bridge?.name && isLinkName(name));
  return ports.filter(({ name }) => !isIndexName(name) || linkExists(name)).map(({ name }) =>
    step("host", "command", `ip link set dev ${name} type bridge_slave isolated on`, {
      optional: true,
      why: "no frame passes between isolated ports of a bridge",
    })
  );
}

/** Remembers whose the addresses are; rules work without. */
function noteOwners(call: ContainerCall, addresses: readonly Address[]): void {
  for (const address of addresses) {
    const why = "DEL without a result, and GC, find the address by it";
    const effect = { file: ownerPath(address), text: ownerText(call), why };
    try {
      call.perform(effect, () => call.undo(noteOwner(address, call)));
    } catch (error) {
      call.warn(`whose ${formatAddress(address)} is cannot be noted: ${(error as Error).message}`);
    }
  }
}

async function del(call: ContainerCall): Promise<void> {
  const config = settingsOf(call, decodeLeniently(keys, call.config, call.warn));
  const previous = prevResultLeniently(call);
  const noted = ownedAddresses().filter(({ owner }) => sameAttachment(owner, call)).map(({ address }) => address);
  const known = new Map([...(previous ? addressesOf(previous) : []), ...noted].map((one) => [formatAddress(one), one]));
  // An address that is somebody else's by now keeps its rules: they are his.
  const addresses = [...known.values()].filter((address) => !heldByAnother(formatAddress(address), call));
  const bridge = previous?.interfaces?.[0]?.name ?? "";
  await all([
    // Either backend may have them, whatever is configured now.
    () =>
      removeRules(call, forwarding, acceptance(call, addresses, config.admin), { backends: bothBackends(undefined) }),
    ...zoneRemovals(call, config, addresses),
    ...(config.policy === "open" || (previous && !isAnyName(bridge))
      ? []
      : [() => dropOwnIsolation(call, bridge, config.admin)]),
  ]);
  await all([...known.values()].map((address) => () => forget(call, address, call)));
  call.perform(undefined, () => dropOwnerDrafts(call));
}

function zoneRemovals(
  call: Call,
  { backend, zone }: Config,
  addresses: readonly Address[],
): (() => Promise<unknown>)[] {
  return backend === "iptables" ? [] : sourceRemovals(call, zone, addresses);
}

function forget(call: Call, address: Address, owner: Owned["owner"]): void {
  const file = ownerPath(address);
  call.perform({ file, why: "the address has no owner any more" }, () => {
    if (forgetOwner(address, owner)) return;
    throw new CniError(code.io, `cannot remove ${file}`, "the rules of the address are gone");
  });
}

/**
 * Rules about a link that goes with the container, as ptp's, go with it too; a bridge's stay. Without a previous result
 * the link is the one that ptp makes, and rules about veths that are gone go with it: nobody else's DEL knows of those
 * either.
 */
async function dropOwnIsolation(call: ContainerCall, first: string, admin: string): Promise<void> {
  const { hostEndNames, portAlias } = await import("../../lib/link/host_end.ts");
  const own = new Set<string>();
  for (const link of first === "" ? hostEndNames(call) : [first]) {
    // A tool that failed otherwise tells nothing: a bridge keeps its rules.
    const now = linkExists(link) === false ? undefined : await linkNow(call, "host", link);
    // A name that is computed may be another attachment's, too.
    const isOurs = !now || (now.linkinfo?.info_kind === "veth" && (first !== "" || now.ifalias === portAlias(call)));
    if (isOurs) own.add(link);
  }
  const isGone = (name: string) => first === "" && /^veth[0-9a-f]{8}$/.test(name) && linkExists(name) === false;
  await dropIsolation(call, admin, (name) => own.has(name) || isGone(name));
}

async function dropIsolation(call: Call, admin: string, gone: (link: string) => boolean): Promise<void> {
  const { collectionJobs } = await upkeep();
  await all(collectionJobs(call, {
    iptables: (family) => onReadable(call, { family, admin }, () => removeIsolation(call, family, gone)),
    nftables: () => removeNftIsolation(call, gone),
  }));
}

async function check(call: ContainerCall): Promise<void> {
  const { config, forwarding: configured } = parse(call);
  if (configured.addresses.length === 0) return;
  const backend = await chosenBackend(call, config);
  const want = wanted(call, await withKernelName(call, configured), { accept: backend !== "firewalld" });
  if (!want.accept) {
    for (const address of want.addresses) await checkSource(call, config.zone, address);
    if (config.policy === "open") return;
  }
  // ADD may have found the other one usable, or the reference may have made rules where nftables is configured.
  const [first] = chosenBackends(backend === "firewalld" ? undefined : backend);
  const { checkRules } = await upkeep();
  await checkRules(call, forwarding, want, bothBackends(first));
}

async function gc(call: NetworkCall): Promise<void> {
  const { valid } = call;
  if (valid === undefined) return;
  const config = settingsOf(call, decodeLeniently(keys, call.config, call.warn));
  const isValid = ({ containerId, ifName }: Owned["owner"]) =>
    valid.some((one) => one.containerID === containerId && one.ifname === ifName);
  const stale = ownedAddresses().filter(({ owner }) => owner.network === call.network && !isValid(owner));
  const free = stale.filter(({ address, owner }) =>
    !heldByAnother(formatAddress(address), owner) && !isRemembered(address, owner)
  ).map(({ address }) => address);
  const { admin } = config;
  const { collectionJobs } = await upkeep();
  // Unknown counts as there.
  const isGone = (link: string) => linkExists(link) === false;
  await all([
    ...zoneRemovals(call, config, free),
    ...collectionJobs(call, {
      iptables: async (family) => {
        const own = free.filter((one) => one.family === family);
        await together([
          ...(own.length > 0 ? [() => removeForwarding(call, own, family)] : []),
          () => onReadable(call, { family, admin }, () => removeIsolation(call, family, isGone)),
        ]);
      },
      nftables: () => collectNftForwarding(call, call.network, { valid, admin, isGone }),
    }),
  ]);
  await all(stale.map(({ address, owner }) => () => forget(call, address, owner)));
}

async function status(call: NetworkCall): Promise<void> {
  const { backend, policy } = settingsOf(call, decode(keys, call.config, "failed to load netconf"));
  const bus = busAddress(call.env);
  const firewalld = backend === "iptables" || backend === "nftables" ? false : await firewalldRunning(call.host, bus);
  if (backend === "firewalld" && !firewalld) {
    throw new CniError(
      code.notAvailable,
      busAbsence(bus) ?? "The name org.fedoraproject.FirewallD1 was not provided by any .service files",
      "start firewalld, or set another backend",
    );
  }
  if (firewalld && policy === "open") return;
  const { statusOfRules } = await upkeep();
  await statusOfRules(call, backend === "firewalld" ? undefined : backend, "the firewall plugin needs it");
}
