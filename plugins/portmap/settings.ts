/**
 * What a configuration of portmap says, checked: keys, mappings, the backends that may serve, the container's
 * addresses.
 */
import {
  decode,
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
import { badConfig, CniError } from "../../lib/cni/error.ts";
import type { Call, ContainerCall } from "../../lib/cni/plugin.ts";
import { prevResult } from "../../lib/cni/prev_result.ts";
import type { Result } from "../../lib/cni/types.ts";
import { type Family, parseAddress, parsePrefix, type Prefix } from "../../lib/net/cidr.ts";
import { type Backend, type Backends, chosenBackends } from "../../lib/rules/backend.ts";
import { type HostPorts, type PortMapping, protocolName } from "../../lib/rules/host_ports_iptables.ts";

const mappingKeys = {
  hostPort: integer(0, "port on this host", { min: 1, max: 65535 }),
  containerPort: integer(0, "port in the container", { min: 1, max: 65535 }),
  protocol: text("", "tcp, udp, sctp or dccp"),
  hostIP: text("", "only packets to this address of the host; empty, 0.0.0.0 and :: are any"),
};
/** The configuration's keys. */
export const keys = {
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
export type Config = Fields<typeof keys>;

/** {@linkcode parse}, with the words that the reference puts in front on ADD, though not on CHECK. */
export function parsePrefixed(call: ContainerCall): Parsed {
  try {
    return parse(call);
  } catch (error) {
    if (!(error instanceof CniError)) throw error;
    throw new CniError(error.code, `failed to parse config: ${error.msg}`, error.details);
  }
}

/** A configuration, read and checked. */
export interface Parsed {
  readonly conf: Config;
  readonly previous: Result | undefined;
  readonly ports: HostPorts;
  readonly backends: Backends;
  /** Throws when a backend cannot have the configured rules. */
  readonly checkFor: (backend: Backend) => void;
}

/** Reads and checks everything, in the reference's order. */
export function parse(call: Call & { readonly containerId: string }): Parsed {
  const conf = decode(keys, call.config, "failed to parse network configuration");
  const previous = prevResult(call, "failed to parse network configuration");
  if (conf.externalSetMarkChain !== undefined && conf.markMasqBit !== undefined) {
    throw badConfig(
      "Cannot specify externalSetMarkChain and markMasqBit",
      "with a chain of somebody else the mark is its own affair: remove markMasqBit",
    );
  }
  const markBit = conf.markMasqBit ?? 13;
  if (markBit < 0 || markBit > 31) {
    throw badConfig("MasqMarkBit must be between 0 and 31", `"markMasqBit" is ${markBit}`);
  }
  const backends = backendsOf(conf);
  const mappings = conf.runtimeConfig?.portMappings ?? [];
  for (const mapping of mappings) checkMapping(mapping);
  if (!["", "error", "warn"].includes(conf.portConflict)) {
    throw badConfig(`unknown portConflict "${conf.portConflict}"`, 'it is "error" or "warn"');
  }
  const ports = hostPortsOf(call, conf, mappings);
  if (mappings.length > 0) checkWords(conf, ports, backends[0]);
  const checkFor = (backend: Backend) => {
    checkAgreement(conf, backend);
    checkWords(conf, ports, backend);
  };
  return { conf, previous, ports, backends, checkFor };
}

/** What the container is to publish. */
export function hostPortsOf(
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

/** The backends that may serve. Options never choose, they have to agree. */
export function backendsOf(conf: Config): Backends {
  const configured = conf.backend as Backend | undefined;
  const backends = chosenBackends(configured);
  checkAgreement(conf, backends[0]);
  if (configured === undefined || configured === "iptables" || configured === "nftables") return backends;
  throw badConfig(`unrecognized backend "${configured}"`, '"backend" is "iptables" or "nftables"');
}

function checkAgreement(conf: Config, backend: string): void {
  const other: Backend = backend === "iptables" ? "nftables" : "iptables";
  const options = [
    ...(conf.externalSetMarkChain !== undefined && other === "iptables" ? ["externalSetMarkChain"] : []),
    ...(languageOf(conf.conditionsV4) === other ? ["conditionsV4"] : []),
    ...(languageOf(conf.conditionsV6) === other ? ["conditionsV6"] : []),
  ];
  if (options.length === 0) return;
  throw badConfig(
    `${backend} backend was requested but configuration contains ${other}-specific options [${options.join(" ")}]`,
    `write ${options.join(" and ")} in the words of ${backend}, or set "backend": "${other}"`,
  );
}

function checkMapping({ hostPort, containerPort, protocol, hostIP }: PortMapping): void {
  if (containerPort < 1 || containerPort > 65535) {
    throw badConfig(`Invalid container port number: ${containerPort}`, "ports are 1 to 65535");
  }
  if (hostPort < 1 || hostPort > 65535) {
    throw badConfig(`Invalid host port number: ${hostPort}`, "ports are 1 to 65535");
  }
  if (!["tcp", "udp", "sctp", "dccp"].includes(protocolName(protocol))) {
    throw badConfig(`Invalid protocol "${protocol}" of host port ${hostPort}`, "it is tcp, udp, sctp or dccp");
  }
  if (hostIP !== "" && parseAddress(hostIP) === undefined) {
    throw badConfig(`Invalid host IP "${hostIP}" of host port ${hostPort}`, "it is one address of this host, or empty");
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
        throw badConfig(`${name}: no rule can hold ${JSON.stringify(word)}`, "write one word per element");
      }
    }
  }
  const chain = conf.externalSetMarkChain;
  if (chain !== undefined && conf.snat && !/^[^\s"'\\!-][^\s"'\\]{0,27}$/.test(chain)) {
    throw badConfig(
      `unable to setup DNAT: Invalid target name "${chain}"`,
      '"externalSetMarkChain" is the name of a chain: up to 28 characters',
    );
  }
  if (backend === "nftables" && ports.owner.containerId.length > 128) {
    throw badConfig(
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

/** `runtimeConfig.portMappings` as it was given: `[]` for none, undefined when the runtime did not say. */
export function givenMappings({ config }: Call): readonly unknown[] | undefined {
  const runtime = lookup(config, "runtimeConfig");
  const given = isObject(runtime) ? lookup(runtime, "portMappings") : undefined;
  return Array.isArray(given) ? given : undefined;
}

/** Mappings that make sense: DEL ignores the others. */
export function validMappings(conf: Config): PortMapping[] {
  return (conf.runtimeConfig?.portMappings ?? []).filter((mapping) => {
    try {
      checkMapping(mapping);
      return true;
    } catch {
      return false;
    }
  });
}
