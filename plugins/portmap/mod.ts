/**
 * portmap: publishes ports of the container on this host. https://www.cni.dev/plugins/current/meta/portmap/
 *
 * Differs from the reference: one transaction per family instead of a process per rule, and a failed ADD leaves nothing; a
 * port that another living container has is an error; a container cannot reach what listens on the host's 127.0.0.1; UDP
 * flows are forgotten on DEL too, and only those of the port on this host; DEL needs no more than network and container;
 * CHECK looks at shared rules too; GC and STATUS do their work.
 */
import {
  checkHostPorts,
  collectHostPorts,
  type HostPorts,
  type PortMapping,
  protocolName,
  usesLocalhost,
} from "../../lib/rules/host_ports_iptables.ts";
import { missingNftPort, nftPorts, removeNftHostPorts } from "../../lib/rules/host_ports_nft.ts";
import { collectLocalhost } from "./localhost_access.ts";
import { isGuarded, isLocalnetOn } from "./localnet.ts";
import { isLiving } from "./conflict.ts";
import { type Backend, deviceOf, publish, together, unpublish, unpublishNft } from "./publication.ts";
import { ruleError } from "../../lib/rules/rule_error.ts";
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
} from "../../lib/cni/decode.ts";
import { all, CniError, code } from "../../lib/cni/error.ts";
import type { Call, ContainerCall, NetworkCall, Plugin } from "../../lib/cni/plugin.ts";
import { prevResult, prevResultLeniently } from "../../lib/cni/prev_result.ts";
import { type Result, since } from "../../lib/cni/types.ts";
import { iptablesUsable, TableError } from "../../lib/kernel/iptables.ts";
import { nftUsable } from "../../lib/kernel/nft.ts";
import { apply, step } from "../../lib/kernel/plan.ts";
import { toolPath } from "../../lib/kernel/run.ts";
import { type Family, formatAddress, parseAddress, parsePrefix, type Prefix } from "../../lib/net/cidr.ts";

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
  parse: parsePrefixed,
  add,
  del,
  check,
  gc,
  status,
};

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
  if (targets.length > 0) {
    await publish(call, {
      ports,
      backend,
      targets,
      portConflict: conf.portConflict,
      mayFallBack: conf.backend === undefined,
      fallBack: () => {
        checkAgreement(conf, "nftables");
        checkWords(conf, ports, "nftables");
      },
    });
  }
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

async function check(call: ContainerCall): Promise<void> {
  const { conf, previous, ports, backend } = parse(call);
  if (!previous) throw new CniError(code.config, "Required prevResult missing", "CHECK needs the result of ADD");
  if (ports.mappings.length === 0) return;
  const targets = containerAddresses(previous, call.ifName);
  await together(targets.map((target) => () => checkOne(call, { conf, ports, backend }, target)));
  const four = targets.find((target) => target.address.family === 4);
  if (four && usesLocalhost(ports)) await checkLocalhost(call, four);
}

async function checkOne(
  call: ContainerCall,
  { conf, ports, backend }: Pick<Parsed, "conf" | "ports" | "backend">,
  target: Prefix,
): Promise<void> {
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
    if (error instanceof TableError && ["missing", "absent", "unusable"].includes(error.refusal)) {
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
  // Where the kernel could not have the guard, ADD has left the setting off, and has said so.
  if (!(await isGuarded(call.host))) return;
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
    async () => {
      try {
        await collectLocalhost(call, toolPath("nft") === "" ? ["iptables"] : ["iptables", "nftables"]);
      } catch (error) {
        throw ruleError(error);
      }
    },
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
