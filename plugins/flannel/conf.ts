/** flannel's subnet file, and the configuration that is made of it for the delegate. */
import { sortedJson, Verbatim } from "../../lib/cni/member.ts";
import { isObject } from "../../lib/cni/decode.ts";
import { CniError, code, goQuote, internal } from "../../lib/cni/error.ts";
import type { JsonObject, Route } from "../../lib/cni/types.ts";
import { readRoutes } from "../../lib/cni/version.ts";
import { readRegularText, systemWords } from "../../lib/kernel/regular_file.ts";
import { formatPrefix, networkPrefix, parsePrefix } from "../../lib/net/cidr.ts";

/** What flanneld tells this node. */
export interface SubnetEnv {
  /** Networks of the whole cluster, host bits masked. */
  readonly networks: readonly string[];
  readonly ipv6Networks: readonly string[];
  /** This node's share of them. */
  readonly subnet: string | undefined;
  readonly ipv6Subnet: string | undefined;
  readonly mtu: number;
  /** Does flanneld masquerade? Then the delegate must not. */
  readonly ipMasq: boolean;
  /** What may be wrong with the file. */
  readonly doubts: readonly string[];
}

/** Reads the subnet file. Throws its errors with the reference's words; `failure` is their code. */
export function readSubnetEnv(path: string, failure: number = code.internal): SubnetEnv {
  let text: string;
  try {
    text = readRegularText(path, { links: true });
  } catch (error) {
    throw badFile(
      `open ${path}: ${systemWords(error)}`,
      failure,
      "flanneld writes it when it has a subnet: is its pod running on this node?",
    );
  }
  return parseSubnetEnv(text, path, failure);
}

function badFile(what: string, failure: number, details: string): CniError {
  return new CniError(
    failure,
    `failed to load flannel 'subnet.env' file: ${what}. Check the flannel pod log for this node.`,
    details,
  );
}

/**
 * The text of a subnet file: `KEY=VALUE` lines, no quoting; unknown keys are ignored, the last of several counts.
 */
export function parseSubnetEnv(text: string, path: string, failure: number = code.internal): SubnetEnv {
  const values = new Map<string, string>();
  const bad = (what: string, line: string) => badFile(what, failure, `${path}: ${line}`);
  for (const raw of text.split("\n")) {
    const line = raw.replace(/\r$/, "");
    const at = line.indexOf("=");
    const key = at < 0 ? line : line.slice(0, at);
    if (!/^FLANNEL_(NETWORK|SUBNET|IPV6_NETWORK|IPV6_SUBNET|MTU|IPMASQ)$/.test(key)) continue;
    if (at < 0) throw bad(`invalid line "${line}"`, "a key needs = and a value");
    values.set(key, line.slice(at + 1));
  }
  const doubts: string[] = [];
  const cidrs = (key: string, list: boolean): string[] => {
    const value = values.get(key);
    if (value === undefined) return [];
    const found = (list ? value.split(",") : [value]).map((item) => {
      const prefix = parsePrefix(item);
      if (!prefix) throw bad(`invalid CIDR address: ${item}`, `${key}=${value}`);
      const isSix = key.includes("IPV6");
      if ((prefix.address.family === 6) !== isSix) doubts.push(`${key} of ${path} holds ${item}, of the other family`);
      return formatPrefix(networkPrefix(prefix));
    });
    return [...new Set(found)];
  };
  const [networks, subnets] = [cidrs("FLANNEL_NETWORK", true), cidrs("FLANNEL_SUBNET", false)];
  const [ipv6Networks, ipv6Subnets] = [cidrs("FLANNEL_IPV6_NETWORK", true), cidrs("FLANNEL_IPV6_SUBNET", false)];
  const mtu = values.get("FLANNEL_MTU");
  if (mtu !== undefined && !(/^\d+$/.test(mtu) && Number(mtu) < 2 ** 32)) {
    const reason = /^\d+$/.test(mtu) ? "value out of range" : "invalid syntax";
    throw bad(`strconv.ParseUint: parsing ${goQuote(mtu)}: ${reason}`, `FLANNEL_MTU=${mtu}`);
  }
  const missing = [
    ...(networks.length + ipv6Networks.length > 0 ? [] : ["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"]),
    ...(subnets.length + ipv6Subnets.length > 0 ? [] : ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]),
    ...(mtu === undefined ? ["FLANNEL_MTU"] : []),
    ...(values.has("FLANNEL_IPMASQ") ? [] : ["FLANNEL_IPMASQ"]),
  ];
  if (missing.length > 0) {
    throw badFile(`${path} is missing ${missing.join(", ")}`, failure, "flanneld writes all of them");
  }
  return {
    networks,
    ipv6Networks,
    subnet: subnets[0],
    ipv6Subnet: ipv6Subnets[0],
    mtu: Number(mtu),
    ipMasq: values.get("FLANNEL_IPMASQ") === "true",
    doubts,
  };
}

/** The parts of flannel's own configuration that reach the delegate. */
export interface FlannelConf {
  readonly name: string;
  readonly cniVersion: string;
  readonly delegate: JsonObject | undefined;
  readonly ipam: JsonObject | undefined;
  readonly runtimeConfig: JsonObject | undefined;
  readonly args: JsonObject | undefined;
}

/** The delegate's configuration: what is written under `delegate`, completed by what flanneld says. */
export function delegateConf(conf: FlannelConf, env: SubnetEnv): JsonObject {
  const { delegate = {}, runtimeConfig, args } = conf;
  checkDelegate(delegate);
  const type = typeof delegate["type"] === "string" ? delegate["type"] : "bridge";
  return {
    ipMasq: !env.ipMasq,
    mtu: env.mtu,
    ...(type === "bridge" && { isGateway: true }),
    ...(args && { args }),
    ...delegate,
    type,
    ...(runtimeConfig && { runtimeConfig }),
    name: conf.name,
    ...(conf.cniVersion !== "" && { cniVersion: conf.cniVersion }),
    ipam: ipamConf(conf.ipam ?? {}, env),
  };
}

function checkDelegate(delegate: JsonObject): void {
  const refuse = (msg: string, details: string) => internal(msg, details);
  if (Object.hasOwn(delegate, "type") && typeof delegate["type"] !== "string") {
    throw refuse(
      "'delegate' dictionary, if present, must have (string) 'type' field",
      'write "delegate": {"type": "bridge"}',
    );
  }
  for (const key of ["name", "ipam"]) {
    if (!Object.hasOwn(delegate, key)) continue;
    throw refuse(
      `'delegate' dictionary must not have '${key}' field, it'll be set by flannel`,
      `write "${key}" beside "delegate", not inside`,
    );
  }
}

function ipamConf(ipam: JsonObject, env: SubnetEnv): JsonObject {
  const ranges = [env.subnet, env.ipv6Subnet].filter((subnet) => subnet !== undefined).map((subnet) => [{ subnet }]);
  const routes = configuredRoutes(ipam["routes"]);
  for (const dst of [...env.networks, ...env.ipv6Networks]) {
    if (!routes.some((route) => route.dst === dst && route.gw === undefined)) routes.push({ dst });
  }
  return { type: "host-local", ...ipam, ranges, routes: routes.map((route) => new Verbatim(ordered(route))) };
}

function configuredRoutes(given: unknown): Route[] {
  const front = "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse ipam.routes: ";
  const advice = '"ipam.routes" is a list of {"dst": "10.0.0.0/8", "gw": "10.1.2.3"}';
  if (given !== undefined && given !== null && !Array.isArray(given)) {
    const kind = isObject(given) ? "object" : typeof given === "boolean" ? "bool" : typeof given;
    const text = `json: cannot unmarshal ${kind} into Go value of type []types.Route`;
    throw internal(front + text, advice);
  }
  try {
    return readRoutes(given, "ipam.routes");
  } catch (error) {
    throw internal(front + (error as Error).message, advice);
  }
}

/** A route with its keys in the order of the reference, which is not that of the alphabet. */
function ordered({ dst, gw, mtu, advmss, priority, table, scope }: Route): JsonObject {
  return {
    dst,
    ...(gw !== undefined && { gw }),
    ...(mtu !== undefined && { mtu }),
    ...(advmss !== undefined && { advmss }),
    ...(priority !== undefined && { priority }),
    ...(table !== undefined && { table }),
    ...(scope !== undefined && { scope }),
  };
}

/** A configuration as the delegate gets it, and as it is kept: one line, sorted keys, the reference's escapes. */
export function confText(conf: JsonObject): string {
  return sortedJson(conf);
}
