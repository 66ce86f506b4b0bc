/** What people ask for with flags, as the capability arguments and CNI_ARGS that plugins understand. */
import type { NetworkList } from "../cni/conflist.ts";
import { isObject } from "../cni/decode.ts";
import type { JsonObject } from "../cni/types.ts";
import { canonicalAddress, parsePrefix } from "../net/cidr.ts";
import { parseMac } from "../net/mac.ts";
import { CliError, type CommandCall, status, usageError } from "./command.ts";
import { note } from "./setup.ts";

/** Arguments of an attachment besides its names. */
export interface Requested {
  readonly capabilityArgs: JsonObject;
  readonly args: readonly (readonly [string, string])[];
}

/** Flags that not every network can act on. */
export const REQUEST_FLAGS = ["publish", "bandwidth", "ip", "mac"] as const;

/** Reads the flags; complains about what no plugin of the network could act on. */
export function requestedBy(
  call: CommandCall,
  list: NetworkList,
  args: readonly (readonly [string, string])[],
): Requested {
  const wanted: JsonObject = {
    // cnitool takes null for an empty object.
    ...objectOf(
      Deno.env.get("CAP_ARGS")?.replace(/^(\s*null\s*)?$/, "{}") ?? "{}",
      (why) => new CliError(`CAP_ARGS${why}`, status.badData),
    ),
    ...objectOf(call.value("cap") ?? "{}", (why) => usageError(`--cap${why}`, EXAMPLE)),
  };
  const pairs = [...args];
  const ports = call.values("publish").flatMap(parsePublish);
  if (ports.length > 0) {
    needCapability(list, ["portMappings", "portmap"], "--publish: no plugin of this network publishes ports");
    wanted["portMappings"] = ports;
  }
  const rates = call.value("bandwidth");
  if (rates !== undefined) {
    needCapability(list, ["bandwidth", "bandwidth"], "--bandwidth: no plugin of this network limits rates");
    wanted["bandwidth"] = parseBandwidth(rates);
  }
  const ips = call.values("ip").flatMap((text) => text.split(",")).map(checkedIp);
  if (ips.length > 0) requestIps(list, ips, wanted, pairs);
  const mac = call.value("mac");
  if (mac !== undefined) requestMac(list, mac, wanted, pairs);
  for (const key of Object.keys(wanted)) {
    if (!declares(list, key)) {
      note(`no plugin of network "${list.name}" declares the capability ${key}: it is not handed on`);
    }
  }
  return { capabilityArgs: wanted, args: pairs };
}

function declares(list: NetworkList, capability: string): boolean {
  return list.plugins.some(({ capabilities }) => capabilities.includes(capability));
}

function needCapability(list: NetworkList, [capability, type]: readonly [string, string], complaint: string): void {
  if (declares(list, capability)) return;
  const here = list.file === "" ? [] : [`the plugins of network "${list.name}" are in ${list.file}`];
  throw usageError(`${complaint}: add {"type": "${type}", "capabilities": {"${capability}": true}}`, ...here);
}

/** A JSON object that somebody wrote. */
function objectOf(text: string, refusal: (why: string) => CliError): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw refusal(`: ${(error as Error).message}`);
  }
  if (isObject(value)) return value;
  throw refusal(" is not a JSON object");
}

const EXAMPLE = `--cap '{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}'`;

/** `[HOSTIP:]HOSTPORT:CONTAINERPORT[/PROTOCOL]`, ports single or as ranges of the same length; IPv6 in brackets. */
export function parsePublish(text: string): JsonObject[] {
  const bad = (why: string) =>
    usageError(`--publish "${text}": ${why}`, "-p [HOSTIP:]HOSTPORT:CONTAINERPORT[/tcp|udp|sctp]");
  const [, address, hosts = "", containers = "", protocol = "tcp"] =
    /^(?:(\[[^\]]*\]|[^:/]*):)?([\d-]+):([\d-]+)(?:\/(.*))?$/s.exec(text) ?? [];
  if (hosts === "") throw bad("not a port mapping");
  if (!["tcp", "udp", "sctp"].includes(protocol)) throw bad(`protocol "${protocol}" is none of tcp, udp, sctp`);
  const hostIP = address === undefined ? undefined : canonicalAddress(address.replace(/^\[(.*)\]$/, "$1"));
  if (address !== undefined && hostIP === undefined) throw bad(`"${address}" is not a valid address`);
  const range = (part: string): [number, number] => {
    const [, from = "", to = from] = /^(\d+)(?:-(\d+))?$/.exec(part) ?? [];
    const [first, last] = [Number(from), Number(to)];
    if (from === "" || first < 1 || last > 65_535 || last < first) throw bad(`"${part}" is not a valid port`);
    return [first, last];
  };
  const [host, hostEnd] = range(hosts);
  const [container, containerEnd] = range(containers);
  if (hostEnd - host !== containerEnd - container) throw bad("the two ranges are not of the same length");
  return Array.from({ length: hostEnd - host + 1 }, (_, i) => ({
    hostPort: host + i,
    containerPort: container + i,
    protocol,
    ...(hostIP !== undefined && { hostIP }),
  }));
}

/** `RATE[:BURST][/RATE[:BURST]]`: into the container, then out of it; one rate counts for both. Bits, with k, M, G. */
export function parseBandwidth(text: string): JsonObject {
  const bad = () =>
    usageError(
      `--bandwidth "${text}": not a rate`,
      "--bandwidth IN[/OUT], bits a second: 100M, 100M/20M, 1G:4M (rate:burst)",
    );
  const bits = (part: string): number => {
    const [, number = "", unit = ""] = /^(\d+(?:\.\d+)?)([kKmMgG]?)$/.exec(part) ?? [];
    const value = Math.round(Number(number) * ({ k: 1e3, m: 1e6, g: 1e9 }[unit.toLowerCase()] ?? 1));
    if (number === "" || value < 1) throw bad();
    return value;
  };
  const parts = text.split("/");
  if (parts.length > 2) throw bad();
  const [inward, outward] = [parts[0] ?? "", parts[1] ?? parts[0] ?? ""].map((part) => {
    const [rate = "", burst, ...more] = part.split(":");
    if (more.length > 0) throw bad();
    // A tenth of a second at that rate, but never less than some full segments.
    return {
      rate: bits(rate),
      burst: burst === undefined ? Math.max(Math.round(bits(rate) / 10), 524_288) : bits(burst),
    };
  });
  return {
    ingressRate: inward?.rate,
    ingressBurst: inward?.burst,
    egressRate: outward?.rate,
    egressBurst: outward?.burst,
  };
}

function checkedIp(text: string): string {
  const canonical = canonicalAddress(text) ?? (parsePrefix(text) ? text : undefined);
  if (canonical === undefined) {
    throw usageError(`--ip "${text}" is not a valid address`, "--ip 10.1.2.3 or --ip 10.1.2.3/24");
  }
  return canonical;
}

function requestIps(
  list: NetworkList,
  ips: readonly string[],
  wanted: JsonObject,
  pairs: (readonly [string, string])[],
): void {
  if (declares(list, "ips")) {
    wanted["ips"] = ips;
    return;
  }
  const ipam = list.plugins.map(({ config }) => isObject(config["ipam"]) ? config["ipam"]["type"] : undefined);
  const declare = 'declare "capabilities": {"ips": true} in the plugin with the "ipam" section';
  if (!ipam.includes("host-local") && !ipam.includes("static")) {
    throw usageError(`--ip: no plugin of network "${list.name}" takes a requested address`, declare);
  }
  if (ipam.includes("host-local") && ips.length > 1) {
    throw usageError("--ip: without the capability host-local takes one address", declare);
  }
  put(pairs, "IP", ips.join(","));
}

const TAKES_MAC = ["bridge", "macvlan", "tap", "tuning"];

function requestMac(list: NetworkList, mac: string, wanted: JsonObject, pairs: (readonly [string, string])[]): void {
  if (parseMac(mac) === undefined) {
    throw usageError(`--mac "${mac}" is not a valid hardware address`, "--mac 02:00:00:00:00:01");
  }
  if (declares(list, "mac")) wanted["mac"] = mac;
  else if (list.plugins.some(({ type }) => TAKES_MAC.includes(type))) put(pairs, "MAC", mac);
  else {
    throw usageError(
      `--mac: no plugin of network "${list.name}" takes a hardware address`,
      `these do: ${TAKES_MAC.join(", ")}`,
    );
  }
}

/** Sets a pair, and makes plugins that do not know it pass it over. */
function put(pairs: (readonly [string, string])[], key: string, value: string): void {
  const rest = pairs.filter(([name]) => name !== key && name !== "IgnoreUnknown");
  pairs.splice(0, pairs.length, ["IgnoreUnknown", "1"], ...rest, [key, value]);
}
