/**
 * firewall: lets the container's traffic through the host's packet filter, and keeps bridges apart.
 * https://www.cni.dev/plugins/current/meta/firewall/
 *
 * Differs from the reference: everything is checked before the first change, and a failed ADD leaves nothing; a backend for
 * nftables, taken where iptables does not work; bridges stay apart whatever order networks come in; `isolated` holds on the
 * bridge itself too; DEL removes what every backend may have, also without a result; CHECK changes nothing and looks at
 * all rules; GC and STATUS do their work.
 */
import {
  dropOwnerDrafts,
  forgetOwner,
  isGivenAway,
  isRemembered,
  isSame,
  noteOwner,
  type Owned,
  ownedAddresses,
  ownerPath,
  ownerText,
} from "./address_owners.ts";
import {
  addForwarding,
  checkForwarding,
  checkIsolation,
  type Forwarding,
  forwardText,
  type IngressPolicy,
  type Parts,
  removeForwarding,
  removeIsolation,
  takeBackForwarding,
} from "../../lib/rules/forwarding_iptables.ts";
import {
  addNftForwarding,
  checkNftForwarding,
  collectNftForwarding,
  moveToIptables,
  nftForwardText,
  removeNftForwarding,
  removeNftIsolation,
} from "../../lib/rules/forwarding_nft.ts";
import { linkNow } from "../../lib/link/container_link.ts";
import { ruleError } from "../../lib/rules/rule_error.ts";
import { decode, decodeLeniently, type Fields, text } from "../../lib/cni/decode.ts";
import { all, CniError, code } from "../../lib/cni/error.ts";
import type { Call, ContainerCall, NetworkCall, Plugin } from "../../lib/cni/plugin.ts";
import { prevResult, prevResultLeniently } from "../../lib/cni/prev_result.ts";
import { type Result, since } from "../../lib/cni/types.ts";
import {
  busAbsence,
  busAddress,
  FirewalldError,
  firewalldRunning,
  isTrue,
  zoneSource,
} from "../../lib/kernel/firewalld.ts";
import { iptablesTool, iptablesUsable, TableError } from "../../lib/kernel/iptables.ts";
import { NftError, nftUsable } from "../../lib/kernel/nft.ts";
import { apply, type Step, step } from "../../lib/kernel/plan.ts";
import { linkExists } from "../../lib/kernel/proc.ts";
import { toolPath } from "../../lib/kernel/run.ts";
import { type Address, type Family, familyBits, formatAddress, parsePrefix } from "../../lib/net/cidr.ts";
import { isAnyName, isIndexName, isLinkName } from "../../lib/net/link_name.ts";

const keys = {
  backend: text("", "iptables, firewalld or nftables; without it firewalld if it runs, else iptables, else nftables", {
    oneOf: ["iptables", "firewalld", "nftables"],
  }),
  iptablesAdminChainName: text("", "chain for the administrator's own rules, which come first; CNI-ADMIN if empty"),
  firewalldZone: text("", "zone of firewalld that the addresses are put into; trusted if empty"),
  ingressPolicy: text(
    "",
    "open, same-bridge (other restricted bridges do not get in) or isolated (neighbours neither)",
    {
      oneOf: ["open", "same-bridge", "isolated"],
    },
  ),
};

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

type Backend = "iptables" | "firewalld" | "nftables";

interface Config {
  /** As configured; undefined for the automatic choice. */
  readonly backend: Backend | undefined;
  readonly admin: string;
  readonly zone: string;
  readonly policy: IngressPolicy;
}

function settingsOf(call: Call, conf: Fields<typeof keys>): Config {
  const { backend } = conf;
  const known = backend === "iptables" || backend === "firewalld" || backend === "nftables";
  if (!known && backend !== "") {
    call.warn(`unknown backend "${backend}": chosen as without one; it is iptables, firewalld or nftables`);
  }
  const policy = conf.ingressPolicy || "open";
  return {
    backend: known ? backend : undefined,
    admin: conf.iptablesAdminChainName || "CNI-ADMIN",
    zone: conf.firewalldZone || "trusted",
    policy: policy === "same-bridge" || policy === "isolated" ? policy : "open",
  };
}

/** Configuration and the result before, checked; ADD and CHECK need both. */
function parse(call: ContainerCall): { config: Config; previous: Result; forwarding: Forwarding } {
  const conf = decode(keys, call.config, "failed to load netconf");
  const previous = prevResult(call);
  if (!previous) {
    throw new CniError(
      code.config,
      "missing prevResult from earlier plugin",
      "firewall needs the result of the plugin before it in the list",
    );
  }
  const config = checkedSettings(call, conf);
  const addresses = addressesOf(previous);
  const bridge = config.policy === "open" || addresses.length === 0 ? "" : bridgeOf(previous, config.policy);
  return { config, previous, forwarding: { admin: config.admin, addresses, policy: config.policy, bridge } };
}

function checkedSettings(call: Call, conf: Fields<typeof keys>): Config {
  if (!["", "open", "same-bridge", "isolated"].includes(conf.ingressPolicy)) {
    throw new CniError(
      code.config,
      `unknown ingress policy: "${conf.ingressPolicy}"`,
      '"ingressPolicy" is open, same-bridge or isolated',
    );
  }
  const config = settingsOf(call, conf);
  if (!/^[A-Za-z_][\w.:+-]{0,27}$/.test(config.admin)) {
    throw new CniError(
      code.config,
      `failed to check iptables chain existence: chain name "${config.admin}" too long or not a name`,
      '"iptablesAdminChainName" has up to 28 letters, digits, "-" and "_"',
    );
  }
  return config;
}

/** Every address of the result, whatever it is on; the same one once. */
function addressesOf({ ips = [] }: Result): Address[] {
  const found = new Map<string, Address>();
  for (const { address } of ips) {
    const prefix = parsePrefix(address);
    if (prefix) found.set(formatAddress(prefix.address), prefix.address);
  }
  return [...found.values()];
}

function bridgeOf({ interfaces = [] }: Result, policy: string): string {
  const [first] = interfaces;
  if (!first) {
    throw new CniError(
      code.config,
      `interface needs to be set for ingress policy "${policy}", make sure to chain "firewall" plugin with "bridge"`,
      "the first interface of prevResult has to be the bridge",
    );
  }
  if (first.name === "") {
    throw new CniError(code.config, "got empty bridge name", "the first interface of prevResult has to be the bridge");
  }
  if (!isAnyName(first.name)) {
    throw new CniError(code.config, `prevResult: "${first.name}" cannot be the name of a bridge`);
  }
  return first.name;
}

/** The same, about the bridge's own name: packet filters know no other. A process only where prevResult has an alternative one. */
async function withKernelName(call: ContainerCall, forwarding: Forwarding): Promise<Forwarding> {
  const { bridge } = forwarding;
  if (bridge === "" || (isLinkName(bridge) && linkExists(bridge))) return forwarding;
  const now = await linkNow({ ...call, explain: undefined }, "host", bridge);
  return { ...forwarding, bridge: now?.ifname ?? bridge };
}

const ofFamily = (addresses: readonly Address[], family: Family) => addresses.filter((one) => one.family === family);
const familiesOf = (addresses: readonly Address[]) =>
  ([4, 6] as const).filter((family) => ofFamily(addresses, family).length > 0);
const sourceOf = (address: Address) => `${formatAddress(address)}/${familyBits(address.family)}`;

async function add(call: ContainerCall): Promise<Result> {
  const { config, previous, forwarding: configured } = parse(call);
  if (configured.addresses.length === 0) return previous;
  const backend = await chosenBackend(call, config);
  const forwarding = await withKernelName(call, configured);
  const accept = backend !== "firewalld";
  const steps: Step[] = [];
  if (!accept) {
    steps.push(...forwarding.addresses.map((address) => sourceStep(call, config.zone, address)));
    if (config.policy !== "open") {
      steps.push(...ruleSteps(call, forwarding, { accept, backend: await ruleBackend(call) }));
    }
  } else steps.push(...ruleSteps(call, forwarding, { accept, backend, configured: config.backend }));
  if (config.policy === "isolated") steps.push(...portSteps(previous));
  noteOwners(call, forwarding.addresses);
  await apply([steps], call);
  return previous;
}

/** The configured backend, or the first that is there: found out without a process where the files tell. */
async function chosenBackend(call: Call, { backend }: Config): Promise<Backend> {
  if (backend !== undefined) return backend;
  if (await firewalldRunning(call.host, busAddress(call.env))) return "firewalld";
  return await ruleBackend(call);
}

async function ruleBackend(_call: Call): Promise<"iptables" | "nftables"> {
  return await Promise.resolve(toolPath("iptables-restore") === "" && toolPath("nft") !== "" ? "nftables" : "iptables");
}

interface RuleOptions extends Parts {
  readonly backend: Backend;
  readonly configured?: Backend | undefined;
}

const WHY = "the host's packet filter lets the container's traffic through";

function ruleSteps(call: ContainerCall, forwarding: Forwarding, options: RuleOptions): Step[] {
  const { accept, backend, configured } = options;
  if (backend === "nftables") {
    return [step("host", "nft", nftForwardText(forwarding, call, { accept }), {
      why: WHY,
      job: () => setNft(call, forwarding, { accept }),
    })];
  }
  return familiesOf(forwarding.addresses).map((family) => {
    const part = { ...forwarding, addresses: ofFamily(forwarding.addresses, family) };
    return step("host", iptablesTool(family), forwardText(part, { accept }), {
      why: WHY,
      job: () => setIptables(call, part, { family, accept, mayFallBack: configured === undefined }),
    });
  });
}

async function setNft(call: ContainerCall, forwarding: Forwarding, parts: Parts): Promise<void> {
  try {
    await addNftForwarding(call, forwarding, { ...parts, owner: call });
  } catch (error) {
    // Its answer is lost: it may have done its work.
    if (parts.accept && !(error instanceof NftError)) {
      call.undo(() => removeNftForwarding(call, call, forwarding.admin));
    }
    throw ruleError(error);
  }
  if (parts.accept) call.undo(() => removeNftForwarding(call, call, forwarding.admin));
}

async function setIptables(
  call: ContainerCall,
  part: Forwarding,
  { family, accept, mayFallBack }: Parts & { readonly family: Family; readonly mayFallBack: boolean },
): Promise<void> {
  try {
    const made = await onReadable(
      call,
      { family, admin: part.admin },
      () => addForwarding(call, part, { family, accept }),
    );
    call.undo(() => takeBackForwarding(call, made, family));
  } catch (error) {
    if (!(error instanceof TableError)) {
      if (accept) call.undo(() => removeForwarding(call, part.addresses, family));
      throw error;
    }
    const stuck = !mayFallBack || error.refusal === "locked" || await iptablesUsable(call.host, family) ||
      !(await nftUsable(call.host));
    if (stuck) {
      const front = error.refusal === "missing" ? `could not initialize iptables protocol ${family === 4 ? 0 : 1}` : "";
      throw ruleError(error, front);
    }
    await setNft(call, part, { accept });
  }
}

/** Does work on a table of iptables; what hides it from iptables is moved out of it first, where an earlier build has put it there. */
async function onReadable<T>(
  call: Call,
  { family, admin }: { readonly family: Family; readonly admin: string },
  work: () => Promise<T>,
): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof TableError) || error.refusal !== "unreadable") throw error;
    if (!(await moveToIptables(call, family, admin))) throw error;
    return await work();
  }
}

/** Puts an address into a zone; that it is there already is success. */
function sourceStep(call: ContainerCall, zone: string, address: Address): Step {
  const source = sourceOf(address);
  const job = async () => {
    try {
      await zoneSource(call.host, busAddress(call.env), { method: "addSource", zone, source });
      call.undo(() => zoneSource(call.host, busAddress(call.env), { method: "removeSource", zone, source }));
    } catch (error) {
      if (!(error instanceof FirewalldError)) throw error;
      if (error.message.includes("ZONE_ALREADY_SET")) return;
      const absence = busAbsence(busAddress(call.env));
      throw new CniError(
        code.internal,
        absence ?? `failed to add the address ${source} to ${zone} zone: ${error.message}`,
        `firewall-cmd --zone=${zone} --add-source=${source} has to work; is firewalld running?`,
      );
    }
  };
  return step("host", "command", `firewall-cmd --zone=${zone} --add-source=${source}`, {
    why: "firewalld lets through what this zone lets through",
    job,
  });
}

/** Neighbours on one bridge never meet the packet filter, unless br_netfilter is loaded: the ports are kept apart too. */
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
    if (call.explain) {
      call.explain.file(ownerPath(address), ownerText(call), "DEL without a result, and GC, find the address by it");
      continue;
    }
    try {
      call.undo(noteOwner(address, call));
    } catch (error) {
      call.warn(`whose ${formatAddress(address)} is cannot be noted: ${(error as Error).message}`);
    }
  }
}

async function del(call: ContainerCall): Promise<void> {
  const config = settingsOf(call, decodeLeniently(keys, call.config, call.warn));
  const previous = prevResultLeniently(call);
  const noted = ownedAddresses().filter(({ owner }) => isSame(owner, call)).map(({ address }) => address);
  const known = new Map([...(previous ? addressesOf(previous) : []), ...noted].map((one) => [formatAddress(one), one]));
  // An address that is somebody else's by now keeps its rules: they are his.
  const addresses = [...known.values()].filter((address) => !isGivenAway(address, call));
  const bridge = previous?.interfaces?.[0]?.name ?? "";
  const found = new Set<Family>();
  const inIptables = removals(call, config, addresses, (family) => found.add(family));
  const inNft = () => byNft(call, () => removeNftForwarding(call, call, config.admin));
  await all(
    [
      ...inIptables,
      ...(config.policy === "open" || (previous && !isAnyName(bridge))
        ? []
        : [() => dropOwnIsolation(call, bridge, config.admin)]),
    ],
    // Rules of one backend are proof that the other was not asked, in that family.
    [async () => addresses.length > 0 && familiesOf(addresses).every((one) => found.has(one)) || await inNft()],
  );
  await all([...known.values()].map((address) => () => forget(call, address, call)));
  if (!call.explain) dropOwnerDrafts(call);
}

function forget(call: Call, address: Address, owner: Owned["owner"]): void {
  if (call.explain) call.explain.file(ownerPath(address), undefined, "the address is nobody's any more");
  else if (!forgetOwner(address, owner)) {
    throw new CniError(code.io, `cannot remove ${ownerPath(address)}`, "the rules of the address are gone");
  }
}

/** Jobs that remove addresses from iptables and from firewalld: either may have them, whatever is configured now. */
function removals(
  call: Call,
  config: Config,
  addresses: readonly Address[],
  found: (family: Family) => void = () => {},
): (() => Promise<unknown>)[] {
  if (addresses.length === 0) return [];
  const bus = busAddress(call.env);
  const zones = config.backend === "iptables" || busAbsence(bus) !== undefined ? [] : addresses;
  return [
    ...familiesOf(addresses).map((family) => async () => {
      try {
        if (await removeForwarding(call, ofFamily(addresses, family), family)) found(family);
      } catch (error) {
        throw ruleError(error);
      }
    }),
    // The source may be unknown, and firewalld away.
    ...zones.map((address) => () =>
      zoneSource(call.host, bus, { method: "removeSource", zone: config.zone, source: sourceOf(address) }).catch(
        () => {},
      )
    ),
  ];
}

/** An nft that does not work with this kernel has set nothing. */
async function byNft(call: Call, work: () => Promise<void>): Promise<void> {
  if (toolPath("nft") === "") return;
  try {
    await work();
  } catch (error) {
    if (await nftUsable(call.host)) throw ruleError(error);
  }
}

/**
 * Rules about a link that goes with the container, as ptp's, go with it too; a bridge's stay. Without a previous result the
 * link is the one that ptp makes, and rules about veths that are gone go with it: nobody else's DEL knows of those either.
 */
async function dropOwnIsolation(call: ContainerCall, first: string, admin: string): Promise<void> {
  const { hostEndNames, portAlias } = await import("../../lib/link/host_end.ts");
  const own = new Set<string>();
  for (const link of first === "" ? hostEndNames(call) : [first]) {
    // A tool that failed otherwise tells nothing: a bridge keeps its rules.
    const now = linkExists(link) === false ? undefined : await linkNow({ ...call, explain: undefined }, "host", link);
    // A name that is computed may be another attachment's, too.
    const isOurs = !now || (now.linkinfo?.info_kind === "veth" && (first !== "" || now.ifalias === portAlias(call)));
    if (isOurs) own.add(link);
  }
  const isGone = (name: string) => first === "" && /^veth[0-9a-f]{8}$/.test(name) && linkExists(name) === false;
  await dropIsolation(call, admin, (name) => own.has(name) || isGone(name));
}

async function dropIsolation(call: Call, admin: string, gone: (link: string) => boolean): Promise<void> {
  await all([
    ...([4, 6] as const).map((family) => async () => {
      try {
        await onReadable(call, { family, admin }, () => removeIsolation(call, family, gone));
      } catch (error) {
        throw ruleError(error);
      }
    }),
    () => byNft(call, () => removeNftIsolation(call, gone)),
  ]);
}

async function check(call: ContainerCall): Promise<void> {
  const { config, forwarding: configured } = parse(call);
  if (configured.addresses.length === 0) return;
  const backend = await chosenBackend(call, config);
  const forwarding = await withKernelName(call, configured);
  if (backend === "firewalld") {
    for (const address of forwarding.addresses) await checkSource(call, config.zone, address);
    if (config.policy !== "open") {
      await checkRules(call, forwarding, { accept: false, backend: await ruleBackend(call) });
    }
    return;
  }
  await checkRules(call, forwarding, { accept: true, backend });
}

async function checkRules(
  call: ContainerCall,
  forwarding: Forwarding,
  { accept, backend }: RuleOptions,
): Promise<void> {
  for (const family of familiesOf(forwarding.addresses)) {
    const part = { ...forwarding, addresses: ofFamily(forwarding.addresses, family) };
    const inIptables = async () => {
      if (accept) await checkForwarding(call, part, family);
      await checkIsolation(call, part, family);
    };
    const inNft = () => checkNftForwarding(call, part, { accept });
    // ADD may have found the other one usable, or the reference may have made rules where nftables is configured.
    const [first, second] = backend === "nftables" ? [inNft, inIptables] : [inIptables, inNft];
    try {
      await first();
    } catch (error) {
      if (await second().then(() => true, () => false)) continue;
      throw ruleError(error);
    }
  }
}

async function checkSource(call: Call, zone: string, address: Address): Promise<void> {
  const source = sourceOf(address);
  const failure = (details: string) =>
    new CniError(code.internal, `failed to find the address ${source} in ${zone} zone`, details);
  let answer: string;
  try {
    answer = await zoneSource(call.host, busAddress(call.env), { method: "querySource", zone, source });
  } catch (error) {
    throw failure((error as Error).message);
  }
  if (!isTrue(answer)) throw failure("firewalld has forgotten it, for example by a reload; ADD puts it in again");
}

async function gc(call: NetworkCall): Promise<void> {
  const { valid } = call;
  if (valid === undefined) return;
  const config = settingsOf(call, decodeLeniently(keys, call.config, call.warn));
  const isValid = ({ containerId, ifName }: Owned["owner"]) =>
    valid.some((one) => one.containerID === containerId && one.ifname === ifName);
  const stale = ownedAddresses().filter(({ owner }) => owner.network === call.network && !isValid(owner));
  const free = stale.filter(({ address, owner }) => !isGivenAway(address, owner) && !isRemembered(address, owner));
  // Unknown counts as there.
  const isGone = (link: string) => linkExists(link) === false;
  await all([
    ...removals(call, config, free.map(({ address }) => address)),
    () => byNft(call, () => collectNftForwarding(call, call.network, { valid, admin: config.admin, isGone })),
    ...([4, 6] as const).map((family) => async () => {
      try {
        await onReadable(call, { family, admin: config.admin }, () => removeIsolation(call, family, isGone));
      } catch (error) {
        throw ruleError(error);
      }
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
  const usable = await Promise.all([
    backend !== "nftables" && iptablesUsable(call.host),
    backend !== "iptables" && nftUsable(call.host),
  ]);
  if (usable.some(Boolean)) return;
  throw new CniError(
    code.notAvailable,
    backend === undefined || backend === "firewalld"
      ? "neither iptables nor nftables is usable"
      : `${backend} is not usable`,
    "install the package and make sure that this kernel has its modules",
  );
}
