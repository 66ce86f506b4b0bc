/**
 * portmap: publishes ports of the container on this host. https://www.cni.dev/plugins/current/meta/portmap/
 *
 * Differs from the reference: one transaction per family instead of a process per rule, and a failed ADD leaves nothing; a
 * port that another living container has is an error; a container cannot reach what listens on the host's 127.0.0.1; UDP
 * flows are forgotten on DEL too, and only those of the port on this host; DEL needs no more than network and container;
 * CHECK looks at shared rules too; GC and STATUS do their work.
 */
import {
  addHostPorts,
  additionText,
  checkHostPorts,
  collectHostPorts,
  dnatTarget,
  type HostPorts,
  moveHostPortsFirst,
  type PortMapping,
  protocolName,
  removeHostPorts,
  usesLocalhost,
} from "../lib/attach/host_ports.ts";
import {
  addNftHostPorts,
  dropStaleNftRules,
  missingNftPort,
  moveNftPortsFirst,
  nftAdditionText,
  nftOwnRules,
  nftPorts,
  removeNftHostPorts,
} from "../lib/attach/host_ports_nft.ts";
import {
  ensureGuard,
  GUARD_CHECK,
  isLocalnetOn,
  type LocalnetBackend,
  resetLocalnet,
  switchLocalnetOff,
  switchLocalnetOn,
} from "../lib/attach/localnet.ts";
import {
  iptablesRivals,
  isLiving,
  type Listener,
  listeners,
  listEntries,
  nftRivals,
  type Rival,
} from "../lib/attach/port_conflict.ts";
import { ruleError } from "../lib/attach/rule_error.ts";
import { flushForAdd, flushForDel } from "../lib/attach/udp_flows.ts";
import {
  decode,
  decodeLeniently,
  type Fields,
  flag,
  integer,
  isObject,
  list,
  lookup,
  maybeInteger,
  maybeText,
  object,
  text,
} from "../lib/cni/decode.ts";
import { all, CniError, code } from "../lib/cni/error.ts";
import type { Call, ContainerCall, NetworkCall, Plugin } from "../lib/cni/plugin.ts";
import { prevResult, prevResultLeniently } from "../lib/cni/prev_result.ts";
import { type Result, since } from "../lib/cni/types.ts";
import { type Link } from "../lib/kernel/ip.ts";
import { iptablesTool, iptablesUsable, MAX_LINE, savedTable, TableError } from "../lib/kernel/iptables.ts";
import { nftUsable } from "../lib/kernel/nft.ts";
import { apply, type Step, step } from "../lib/kernel/plan.ts";
import { toolPath } from "../lib/kernel/run.ts";
import { writeSysctl } from "../lib/kernel/sysctl.ts";
import { type Family, formatAddress, parseAddress, parsePrefix, type Prefix } from "../lib/net/cidr.ts";

const mappingKeys = {
  hostPort: integer(0, "port on this host", { min: 1, max: 65535 }),
  containerPort: integer(0, "port in the container", { min: 1, max: 65535 }),
  protocol: text("", "tcp, udp, sctp or dccp"),
  hostIP: text("", "only packets to this address of the host; empty, 0.0.0.0 and :: are any"),
};
const keys = {
  backend: maybeText("iptables or nftables; without it iptables, and nftables where only that works", {
    oneOf: ["iptables", "nftables"],
  }),
  snat: flag(true, "masquerade what comes from the container's own subnet and from 127.0.0.1"),
  masqAll: flag(false, "masquerade every client of the published ports"),
  conditionsV4: list(text("", "one word"), "further matches for IPv4, in the words of the backend"),
  conditionsV6: list(text("", "one word"), "further matches for IPv6, in the words of the backend"),
  markMasqBit: maybeInteger("bit of the mark that means: to be masqueraded; 13 if absent", { min: 0, max: 31 }),
  externalSetMarkChain: maybeText(
    "chain in iptables table nat that marks packets to be masqueraded, made by somebody else",
  ),
  portConflict: text("", "what to do when another living container has the port: error (the default) or warn", {
    oneOf: ["error", "warn"],
  }),
  runtimeConfig: object({
    portMappings: list(object(mappingKeys, "one port"), "capability `portMappings`: ports to publish"),
  }, "what the runtime adds"),
};
type Config = Fields<typeof keys>;

export const plugin: Plugin = {
  name: "portmap",
  kind: "meta",
  about: "publishes ports of the container on this host",
  versions: since("0.1.0"),
  needs: ["ip"],
  keys,
  add,
  del,
  check,
  gc,
  status,
};

/** Our own code: a host port is taken by another container. Documented in docs/plugins/portmap.md. */
const PORT_TAKEN = 100;

type Backend = "iptables" | "nftables";

async function add(call: ContainerCall): Promise<Result> {
  const { conf, previous, ports, backend } = parsePrefixed(call);
  if (!previous) {
    throw new CniError(
      code.config,
      "must be called as chained plugin",
      "portmap needs the result of the plugin before it in the list",
    );
  }
  if (ports.mappings.length === 0) return previous;
  const targets = containerAddresses(previous, call.ifName);
  if (targets.length > 0) await publish(call, { conf, ports, backend, targets });
  return previous;
}

/** {@linkcode parse}, with the words that the reference puts in front on ADD, though not on CHECK. */
function parsePrefixed(call: ContainerCall): Parsed {
  try {
    return parse(call);
  } catch (error) {
    if (!(error instanceof CniError)) throw error;
    throw new CniError(error.code, `failed to parse config: ${error.msg}`, error.details);
  }
}

interface Parsed {
  readonly conf: Config;
  readonly previous: Result | undefined;
  readonly ports: HostPorts;
  readonly backend: Backend;
}

/** Reads and checks everything, in the reference's order. */
function parse(call: Call & { readonly containerId: string }): Parsed {
  const conf = decode(keys, call.config, "failed to parse network configuration");
  const previous = prevResult(call, "failed to parse network configuration");
  if (conf.externalSetMarkChain !== undefined && conf.markMasqBit !== undefined) {
    throw invalid(
      "Cannot specify externalSetMarkChain and markMasqBit",
      "with a chain of somebody else the mark is its own affair: remove markMasqBit",
    );
  }
  const markBit = conf.markMasqBit ?? 13;
  if (markBit < 0 || markBit > 31) throw invalid("MasqMarkBit must be between 0 and 31", `"markMasqBit" is ${markBit}`);
  const backend = chosenBackend(conf);
  const mappings = conf.runtimeConfig?.portMappings ?? [];
  for (const mapping of mappings) checkMapping(mapping);
  if (!["", "error", "warn"].includes(conf.portConflict)) {
    throw invalid(`unknown portConflict "${conf.portConflict}"`, 'it is "error" or "warn"');
  }
  const ports = hostPorts(call, conf, mappings);
  if (mappings.length > 0) checkWords(conf, ports, backend);
  return { conf, previous, ports, backend };
}

function invalid(msg: string, details: string): CniError {
  return new CniError(code.config, msg, details);
}

function hostPorts(
  call: Pick<ContainerCall, "network" | "containerId">,
  conf: Config,
  mappings: readonly PortMapping[],
): HostPorts {
  return {
    owner: { network: call.network, containerId: call.containerId },
    mappings,
    snat: conf.snat,
    masqAll: conf.masqAll,
    markBit: conf.markMasqBit ?? 13,
    externalMarkChain: conf.externalSetMarkChain,
    conditions: { 4: conf.conditionsV4 ?? [], 6: conf.conditionsV6 ?? [] },
  };
}

/** Whose language a list of conditions is in; undefined when it is empty. */
function languageOf(words: readonly string[] | undefined): Backend | undefined {
  const first = words?.[0] ?? "";
  if (first === "") return undefined;
  return first.startsWith("-") || first.startsWith("!") ? "iptables" : "nftables";
}

/**
 * The backend without a probe: iptables, unless only nft is installed. Whether iptables works with this kernel is found
 * out by the first transaction. Options never choose, they have to agree.
 */
function chosenBackend(conf: Config): Backend {
  const { backend } = conf;
  const chosen = backend ?? (toolPath("iptables-restore") === "" && toolPath("nft") !== "" ? "nftables" : "iptables");
  checkAgreement(conf, chosen);
  if (chosen === "iptables" || chosen === "nftables") return chosen;
  throw invalid(`unrecognized backend "${chosen}"`, '"backend" is "iptables" or "nftables"');
}

function checkAgreement(conf: Config, backend: string): void {
  const other: Backend = backend === "iptables" ? "nftables" : "iptables";
  const options = [
    ...(conf.externalSetMarkChain !== undefined && other === "iptables" ? ["externalSetMarkChain"] : []),
    ...(languageOf(conf.conditionsV4) === other ? ["conditionsV4"] : []),
    ...(languageOf(conf.conditionsV6) === other ? ["conditionsV6"] : []),
  ];
  if (options.length === 0) return;
  throw invalid(
    `${backend} backend was requested but configuration contains ${other}-specific options [${options.join(" ")}]`,
    `write ${options.join(" and ")} in the words of ${backend}, or set "backend": "${other}"`,
  );
}

function checkMapping({ hostPort, containerPort, protocol, hostIP }: PortMapping): void {
  if (containerPort < 1 || containerPort > 65535) {
    throw invalid(`Invalid container port number: ${containerPort}`, "ports are 1 to 65535");
  }
  if (hostPort < 1 || hostPort > 65535) {
    throw invalid(`Invalid host port number: ${hostPort}`, "ports are 1 to 65535");
  }
  if (!["tcp", "udp", "sctp", "dccp"].includes(protocolName(protocol))) {
    throw invalid(`Invalid protocol "${protocol}" of host port ${hostPort}`, "it is tcp, udp, sctp or dccp");
  }
  if (hostIP !== "" && parseAddress(hostIP) === undefined) {
    throw invalid(`Invalid host IP "${hostIP}" of host port ${hostPort}`, "it is one address of this host, or empty");
  }
}

/** What becomes part of a rule as it is written in the configuration. */
function checkWords(conf: Config, ports: HostPorts, backend: Backend): void {
  for (const [name, words] of [["conditionsV4", conf.conditionsV4], ["conditionsV6", conf.conditionsV6]] as const) {
    for (const word of words ?? []) {
      // A line break ends a rule in both languages; ";" and "#" do in nft's.
      // deno-lint-ignore no-control-regex
      const bad = backend === "iptables" ? /[\x00-\x1f]/ : /[\x00-\x1f;#\\]/;
      if (bad.test(word)) {
        throw invalid(`${name}: no rule can hold ${JSON.stringify(word)}`, "write one word per element");
      }
    }
  }
  const chain = conf.externalSetMarkChain;
  if (chain !== undefined && conf.snat && !/^[^\s"'\\!-][^\s"'\\]{0,27}$/.test(chain)) {
    throw invalid(
      `unable to setup DNAT: Invalid target name "${chain}"`,
      '"externalSetMarkChain" is the name of a chain: up to 28 characters',
    );
  }
  if (backend === "nftables" && ports.owner.containerId.length > 128) {
    throw invalid(
      "unable to set up nftables rules for port mappings: comment too long, 128 characters maximum allowed",
      `the container ID has ${ports.owner.containerId.length} characters`,
    );
  }
}

/** At most one address of each family: the first that is on this interface, or on none that is known. */
export function containerAddresses({ ips = [], interfaces = [] }: Result, ifName: string): Prefix[] {
  const found = new Map<Family, Prefix>();
  for (const { address, interface: index } of ips) {
    const prefix = parsePrefix(address);
    if (prefix === undefined || found.has(prefix.address.family)) continue;
    const face = index === undefined ? undefined : interfaces[index];
    if (face && (face.name !== ifName || !face.sandbox)) continue;
    found.set(prefix.address.family, prefix);
  }
  return [...found.values()].sort((a, b) => a.address.family - b.address.family);
}

interface Publication {
  readonly conf: Config;
  readonly ports: HostPorts;
  readonly backend: Backend;
  readonly targets: readonly Prefix[];
}

async function publish(call: ContainerCall, publication: Publication): Promise<void> {
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
      await resetWhenUnused(call, by);
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
    ...targets.map((target) => async () =>
      await settleRivals(call, publication, { target, backend: state.used.get(target.address.family) ?? backend })
    ),
    ...targets.map((target) => () => flushForAdd(call, ports, target)),
    async () => {
      if (dev === undefined || !state.guarded || dev === "lo" || isLocalnetOn(dev)) return;
      switched = dev;
      await letLocalhostOut(call, dev, state.used.get(4) ?? backend);
    },
  ]);
  tellListeners(call, publication.conf, sockets);
}

/** All jobs to their ends; then the first failure is thrown. Nothing may be under way when a failed ADD is undone. */
async function together(jobs: readonly (() => Promise<unknown>)[]): Promise<void> {
  const ends = await Promise.allSettled(jobs.map((job) => job()));
  for (const end of ends) if (end.status === "rejected") throw end.reason;
}

function deviceOf(routes: unknown[] | undefined): string | undefined {
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
    throw invalid(`a rule of ${long.length} characters is too long`, `it begins ${long.slice(0, 120)}`);
  }
}

async function publishOne(call: ContainerCall, part: Part): Promise<void> {
  const { ports, target, backend, conf, state, localhost } = part;
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
      const mayFallBack = conf.backend === undefined && error.refusal !== "locked";
      if (!mayFallBack || await iptablesUsable(call.host, family) || !(await nftUsable(call.host))) {
        throw ruleError(error, error.refusal === "missing" ? "failed to open iptables" : "unable to setup DNAT");
      }
      checkAgreement(conf, "nftables");
      checkWords(conf, ports, "nftables");
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
  { conf, ports }: Publication,
  { target, backend }: { target: Prefix; backend: Backend },
): Promise<void> {
  const { family } = target.address;
  let rivals: Rival[];
  if (backend === "iptables") rivals = await iptablesRivals(call, ports, family);
  else {
    const rules = await nftPorts(call, family);
    rivals = nftRivals(rules, ports, family);
    const mine = rules.filter((rule) => rule.comment === ports.owner.containerId).length;
    if (mine > nftOwnRules(ports, target).filter(({ chain }) => chain === "hostports").length) {
      await dropStaleNftRules(call, ports, target);
    }
  }
  if (rivals.length === 0) return;
  const address = formatAddress(target.address);
  const living = await Promise.all(
    rivals.map(async (rival) => rival.address !== address && await isLiving(call, rival, family)),
  );
  const taken = rivals.filter((rival, index) => living[index] && !rival.conditional);
  const maybe = rivals.filter((rival, index) => living[index] && rival.conditional);
  if (taken.length > 0 && conf.portConflict !== "warn") {
    throw new CniError(
      PORT_TAKEN,
      `host port ${taken.map(portOf).join(", ")} is already published by ${nameOf(taken[0]!)}`,
      'choose another port, or remove that container; "portConflict": "warn" takes the port in vain, as the reference does',
    );
  }
  for (const rival of [...taken, ...maybe]) {
    call.warn(`host port ${portOf(rival)} is already published by ${nameOf(rival)}, which keeps its traffic`);
  }
  const dead = rivals.filter((_, index) => !living[index]);
  if (dead.length === 0) return;
  for (const rival of dead) {
    call.warn(
      `host port ${portOf(rival)}: rules of ${nameOf(rival)} are left over; this container's go first. ` +
        "DEL of that container or GC of its network removes them",
    );
  }
  if (taken.length + maybe.length > 0) return;
  if (backend === "iptables") await moveHostPortsFirst(call, ports, family);
  else await moveNftPortsFirst(call, ports, target);
}

const portOf = ({ port, protocol }: Rival | Listener) => `${port}/${protocol}`;
const nameOf = ({ containerId, network, address }: Rival) =>
  `container ${containerId}${network === undefined ? "" : ` of network ${network}`}${address ? ` (${address})` : ""}`;

function tellListeners(call: Call, conf: Config, sockets: readonly Listener[]): void {
  if (sockets.length === 0) return;
  const names = sockets.map((one) => `${one.program || "a program of this host"} on ${one.address} ${portOf(one)}`);
  const words = `host port ${[...new Set(sockets.map(portOf))].join(", ")} is in use by ${names.join(", ")}`;
  if (conf.portConflict !== "error") {
    call.warn(`${words}: what is sent to it goes to the container now`);
    return;
  }
  throw new CniError(
    PORT_TAKEN,
    words,
    'choose another port, or stop that program; without "portConflict" this is a warning',
  );
}

/** Lets this host's 127.0.0.1 out through the link that leads to the container. */
async function letLocalhostOut(call: ContainerCall, dev: string, backend: Backend): Promise<void> {
  try {
    const remember = !(await isVeth(call, dev));
    await switchLocalnetOn(call.host, dev, {
      backend,
      remember,
      ...(call.explain && { write: writerOf(call) }),
    });
  } catch (error) {
    throw new CniError(
      code.internal,
      `unable to enable route_localnet: ${(error as Error).message}`,
      `net.ipv4.conf.${dev}.route_localnet; "snat": false does without`,
    );
  }
}

/** Does a published port lead to a container behind this link? */
async function publishedThrough(call: Call, dev: string, backend: Backend): Promise<boolean> {
  const addresses = backend === "nftables"
    ? (await nftPorts(call, 4)).map(({ address }) => address)
    : [...(await savedTable(call.host, 4, "nat"))?.chains.values() ?? []].flat().flatMap(({ text }) =>
      dnatTarget(text)?.address ?? []
    );
  const input = [...new Set(addresses)].map((address) => `route get ${address}\n`);
  if (input.length === 0) return false;
  const { stdout } = await call.host({ argv: ["ip", "-j", "-force", "-batch", "-"], input });
  return stdout.includes(`"dev":${JSON.stringify(dev)}`);
}

/** Writes a setting, or says that it would be written. */
function writerOf({ explain }: Call): typeof writeSysctl {
  if (!explain) return writeSysctl;
  return (key, value) => {
    const why = value === "1"
      ? "127.0.0.1 of this host reaches the port"
      : "no port of this host is published any more";
    explain.plan([[step("host", "sysctl", `${key}=${value}`, { why })]]);
  };
}

/** The host's end of a container's own pair goes with the container, and its settings with it. */
async function isVeth(call: Call, dev: string): Promise<boolean> {
  const { code, stdout } = await call.host({ argv: ["ip", "-j", "-d", "link", "show", "dev", dev] });
  if (code !== 0) return false;
  return (JSON.parse(stdout) as Link[])[0]?.linkinfo?.info_kind === "veth";
}

async function del(call: ContainerCall): Promise<void> {
  const conf = decodeLeniently(keys, call.config, call.warn);
  const given = givenMappings(call);
  // The runtime says that nothing is published. When it says nothing, something may have been.
  if (given?.length === 0) return;
  const mappings = (conf.runtimeConfig?.portMappings ?? []).filter((mapping) => {
    try {
      checkMapping(mapping);
      return true;
    } catch {
      return false;
    }
  });
  const ports = hostPorts(call, conf, mappings);
  const previous = prevResultLeniently(call);
  const targets = previous ? containerAddresses(previous, call.ifName) : [];
  const families: Family[] = targets.length > 0 ? targets.map((target) => target.address.family) : [4, 6];
  const byIptables = () => unpublish(call, { ports, targets, families });
  const byNft = () => unpublishNft(call, { ports, targets, families });
  const [first, second] = conf.backend === "nftables" ? [byNft, byIptables] : [byIptables, byNft];
  const errors: unknown[] = [];
  for (const remove of [first, second]) {
    try {
      if (await remove()) break;
    } catch (error) {
      errors.push(ruleError(error, "could not teardown dnat"));
    }
  }
  await all(errors.map((error) => () => Promise.reject(error)));
}

/** `runtimeConfig.portMappings` as it was given: `[]` for none, undefined when the runtime did not say. */
function givenMappings({ config }: Call): readonly unknown[] | undefined {
  const runtime = lookup(config, "runtimeConfig");
  const given = isObject(runtime) ? lookup(runtime, "portMappings") : undefined;
  return Array.isArray(given) ? given : undefined;
}

interface Withdrawal {
  readonly ports: HostPorts;
  readonly targets: readonly Prefix[];
  readonly families: readonly Family[];
}

const ofFamily = (targets: readonly Prefix[], family: Family) =>
  targets.filter((target) => target.address.family === family).map((target) => formatAddress(target.address));

/** True when iptables held the container's rules of every family: then no other backend has been asked for them. */
async function unpublish(call: ContainerCall, { ports, targets, families }: Withdrawal): Promise<boolean> {
  let found = 0;
  await all(families.map((family) => async () => {
    const removed = await removeHostPorts(call, ports, family);
    if (removed.found) found++;
    await all([
      ...(removed.found
        ? [() => flushForDel(call, ports, { family, addresses: addressesOf(targets, family, removed.addresses) })]
        : []),
      // Also without rules: the DEL that removed them may have been killed before this.
      ...(family === 4 ? [() => resetWhenUnused(call, "iptables")] : []),
    ]);
  }));
  return found === families.length;
}

/** Switches route_localnet back where this plugin switched it on, when no container has a port of this host any more. */
async function resetWhenUnused(call: Call, backend: LocalnetBackend): Promise<void> {
  const anyLeft = backend === "iptables"
    ? async () => (await listEntries(call, 4)).length > 0
    : async () => (await nftPorts(call, 4)).length > 0;
  try {
    if (!(await anyLeft())) await resetLocalnet(call.host, backend, anyLeft, writerOf(call));
  } catch (error) {
    // A backend that does not work here has switched nothing on.
    if (error instanceof TableError && (error.refusal === "missing" || error.refusal === "unusable")) return;
    if (backend === "nftables" && !(await nftUsable(call.host))) return;
    throw error;
  }
}

function addressesOf(targets: readonly Prefix[], family: Family, read: readonly string[]): string[] {
  return [...new Set([...ofFamily(targets, family), ...read])];
}

/** True when nftables held the container's rules of every family. */
async function unpublishNft(call: ContainerCall, { ports, targets, families }: Withdrawal): Promise<boolean> {
  if (toolPath("nft") === "") return false;
  let found = 0;
  await all(families.map((family) => async () => {
    const own = targets.filter((target) => target.address.family === family);
    const removed = await removeNftHostPorts(call, ports.owner.containerId, {
      family,
      targets: own.length > 0 ? own : undefined,
    });
    if (removed.found) found++;
    await all([
      ...(removed.found
        ? [() => flushForDel(call, ports, { family, addresses: addressesOf(targets, family, removed.addresses) })]
        : []),
      ...(family === 4 && removed.empty ? [() => resetWhenUnused(call, "nftables")] : []),
    ]);
  }));
  return found === families.length;
}

async function check(call: ContainerCall): Promise<void> {
  const { conf, previous, ports, backend } = parse(call);
  if (!previous) throw new CniError(code.config, "Required prevResult missing", "CHECK needs the result of ADD");
  if (ports.mappings.length === 0) return;
  const targets = containerAddresses(previous, call.ifName);
  await together(targets.map((target) => () => checkOne(call, { conf, ports, backend, targets }, target)));
  const four = targets.find((target) => target.address.family === 4);
  if (four && usesLocalhost(ports)) await checkLocalhost(call, four);
}

async function checkOne(call: ContainerCall, { conf, ports, backend }: Publication, target: Prefix): Promise<void> {
  try {
    if (backend === "nftables") {
      const missing = await missingNftPort(call, ports, target);
      if (missing !== undefined) throw new CniError(code.internal, missing, RELOADED);
      return;
    }
    await checkHostPorts(call, ports, target);
  } catch (error) {
    // Without a configured backend ADD may have found that only nft works.
    const mayBeNft = backend === "iptables" && conf.backend === undefined && toolPath("nft") !== "";
    if (mayBeNft && await missingNftPort(call, ports, target).catch(() => "nft does not work") === undefined) return;
    if (error instanceof TableError && (error.refusal === "missing" || error.refusal === "unusable")) {
      const [four, six] = target.address.family === 4 ? [error.message, "<nil>"] : ["<nil>", error.message];
      throw new CniError(
        code.internal,
        `neither iptables nor ip6tables is usable, (iptables) ${four}, (ip6tables) ${six}`,
        'install the package iptables, or set "backend": "nftables"',
      );
    }
    throw ruleError(error);
  }
}

const RELOADED = "somebody removed rules of this container, for example by reloading a firewall";

async function checkLocalhost(call: ContainerCall, target: Prefix): Promise<void> {
  const [routes] = await apply(
    [[step("host", "ip", `route get ${formatAddress(target.address)}`, { read: true })]],
    call,
  )
    .catch(() => [[]]);
  const dev = deviceOf(routes);
  if (dev === undefined || dev === "lo" || isLocalnetOn(dev)) return;
  throw new CniError(
    code.internal,
    `route_localnet of ${dev} is off: 127.0.0.1 of this host does not reach the published ports`,
    `sysctl -w net.ipv4.conf.${dev.replaceAll(".", "/")}.route_localnet=1`,
  );
}

async function gc(call: NetworkCall): Promise<void> {
  if (call.valid === undefined) return;
  const valid = new Set(call.valid.map((one) => one.containerID));
  await all([
    ...([4, 6] as const).map((family) => async () => {
      try {
        await collectHostPorts(call, call.network, { family, valid });
      } catch (error) {
        throw ruleError(error);
      }
    }),
    () => collectNft(call, valid),
  ], [
    ...(toolPath("nft") === "" ? ["iptables" as const] : ["iptables" as const, "nftables" as const]).map(
      (backend) => async () => {
        try {
          await resetWhenUnused(call, backend);
        } catch (error) {
          throw ruleError(error);
        }
      },
    ),
  ]);
}

/**
 * Rules in nftables do not say which network they are of. What goes is a container that is not valid here, that no runtime
 * on this host remembers for any network, and that does not answer.
 */
async function collectNft(call: NetworkCall, valid: ReadonlySet<string>): Promise<void> {
  if (toolPath("nft") === "") return;
  const remembered = cachedResults();
  for (const family of [4, 6] as const) {
    let rules;
    try {
      rules = await nftPorts(call, family);
    } catch (error) {
      if (!(await nftUsable(call.host))) return;
      throw ruleError(error);
    }
    const suspects = new Map(
      rules.filter(({ comment }) =>
        comment !== "" && !valid.has(comment) && !remembered.some((name) => name.includes(comment))
      )
        .map((rule) => [rule.comment, rule]),
    );
    await together([...suspects.values()].map((rule) => async () => {
      const rival = { ...rule, containerId: rule.comment, network: undefined };
      if (await isLiving(call, rival, family)) return;
      await removeNftHostPorts(call, rule.comment, { family });
    }));
  }
}

/** Names of the results that runtimes keep by the CNI library: `NETWORK-CONTAINER-INTERFACE`. */
function cachedResults(): string[] {
  try {
    return [...Deno.readDirSync("/var/lib/cni/results")].map(({ name }) => name);
  } catch {
    return [];
  }
}

async function status(call: NetworkCall): Promise<void> {
  const conf = decode(keys, call.config, "failed to parse network configuration");
  const backend = chosenBackend(conf);
  const usable = await Promise.all([
    conf.backend !== "nftables" && iptablesUsable(call.host),
    conf.backend !== "iptables" && nftUsable(call.host),
  ]);
  if (usable.some(Boolean)) return;
  throw new CniError(
    code.notAvailable,
    conf.backend === undefined ? "neither iptables nor nftables is usable" : `${backend} is not usable`,
    "published ports need it: install the package and make sure that this kernel has its modules",
  );
}
