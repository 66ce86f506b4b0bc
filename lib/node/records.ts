/**
 * What nodes tell each other: flannel's network configuration and subnet records, as they lie in etcd, and Node objects
 * of Kubernetes. Both become the same two things: the network of all nodes, and one record per node.
 *
 * @module
 */
import { isObject } from "../cni/decode.ts";
import { badConfig } from "../cni/error.ts";
import type { JsonObject } from "../cni/types.ts";
import {
  type Address,
  type Family,
  familyBits,
  formatAddress,
  formatPrefix,
  hasHostBits,
  networkPrefix,
  parseAddress,
  parsePrefix,
  type Prefix,
  prefixContains,
} from "../net/cidr.ts";
import { macLength, parseMac } from "../net/mac.ts";
import { sha512 } from "../net/sha512.ts";
import type { NodeObject } from "../store/kubernetes_nodes.ts";
import { jsonObject, word } from "../store/store.ts";

/** How packets get to other nodes. */
export type BackendType = "host-gw" | "vxlan" | "none";

/** The backend with what it needs. */
export interface Backend {
  readonly type: BackendType;
  readonly vni: number;
  readonly port: number;
  /** vxlan only: nodes on the same link are reached by plain routes. */
  readonly directRouting: boolean;
}

/** Which subnets of one family nodes take. */
export interface SubnetRule {
  readonly network: Prefix;
  readonly length: number;
  /** Network addresses of the first and the last subnet. */
  readonly min: Address;
  readonly max: Address;
}

/** The network of all nodes. */
export interface NetworkConf {
  readonly rules: readonly SubnetRule[];
  readonly backend: Backend;
}

/** What one node says about itself. */
export interface NodeRecord {
  /** Its name; its public address where the record has no name. */
  readonly name: string;
  /** At most one per family. */
  readonly subnets: readonly Prefix[];
  /** At most one per family: where other nodes reach it. */
  readonly publicIps: readonly Address[];
  /** flannel's word; "" where it is not said. */
  readonly backend: string;
  readonly vni: number | undefined;
  /** Hardware addresses of its vxlan devices. */
  readonly vteps: { readonly [family in Family]?: string };
  /** Tells two machines of one address apart; "" where it is not said. */
  readonly machineId: string;
}

/** The element of a family. */
export function ofFamily<T extends Address | Prefix>(all: readonly T[], family: Family): T | undefined {
  return all.find((one) => ("address" in one ? one.address.family : one.family) === family);
}

/** Families of the network. */
export function familiesOf({ rules }: NetworkConf): Family[] {
  return rules.map(({ network }) => network.address.family);
}

/** Is this a part of the network? */
export function isInside({ address, length }: Prefix, { rules }: NetworkConf): boolean {
  return rules.some(({ network }) => network.length <= length && prefixContains(network, address));
}

/** The JSON object that a text is. Throws an error that names `where`, and tells what to write. */
export function readObject(text: string, where: string, advice: string): JsonObject {
  let source: unknown;
  try {
    source = JSON.parse(text);
  } catch (error) {
    throw badConfig(`${where}: ${(error as Error).message}`, advice);
  }
  if (!isObject(source)) throw badConfig(`${where}: not an object`, advice);
  return source;
}

/** Reads flannel's network configuration (`net-conf.json`, or the key `config` in etcd). `where` names it in errors. */
export function parseNetworkConf(text: string, where: string): NetworkConf {
  const source = readObject(text, where, 'write {"Network": "10.42.0.0/16", "Backend": {"Type": "vxlan"}}');
  const rules: SubnetRule[] = [];
  if (source["EnableIPv4"] !== false) rules.push(subnetRule(source, 4, where));
  if (source["EnableIPv6"] === true) rules.push(subnetRule(source, 6, where));
  if (rules.length === 0) throw badConfig(`${where}: neither IPv4 nor IPv6 is enabled`, 'write "EnableIPv6": true');
  return { rules, backend: backendOf(source["Backend"], where) };
}

/** Shortest rest that a subnet leaves for hosts, and the length that is usual. */
const LENGTHS = { 4: { longest: 30, usual: 24 }, 6: { longest: 126, usual: 64 } } as const;

function subnetRule(source: JsonObject, family: Family, where: string): SubnetRule {
  const front = family === 6 ? "IPv6" : "";
  const value = (name: string) => source[`${front}${name}`];
  const network = typeof value("Network") === "string" ? parsePrefix(String(value("Network"))) : undefined;
  if (network === undefined || network.address.family !== family) {
    throw badConfig(
      `${where}: "${front}Network" is ${JSON.stringify(value("Network"))}`,
      `write the IPv${family} network of all nodes in CIDR form`,
    );
  }
  const { longest, usual } = LENGTHS[family];
  const given = value("SubnetLen");
  const length = given === undefined || given === 0
    ? (network.length + 2 <= usual ? usual : network.length + 2)
    : given as number;
  if (!Number.isInteger(length) || length < network.length + 2 || length > longest) {
    throw badConfig(
      `${where}: "${front}SubnetLen" is ${JSON.stringify(given ?? length)}`,
      `for ${formatPrefix(network)} it is a prefix length from ${network.length + 2} to ${longest}`,
    );
  }
  const size = 1n << BigInt(familyBits(family) - length);
  const first = networkPrefix(network).address.value;
  const end = first + (1n << BigInt(familyBits(family) - network.length));
  const limit = (name: string, absent: bigint): Address => {
    const text = value(name);
    if (text === undefined || text === null) return { family, value: absent };
    const address = typeof text === "string" ? parseAddress(text) : undefined;
    if (address && prefixContains(network, address) && !hasHostBits({ address, length })) return address;
    throw badConfig(
      `${where}: "${front}${name}" is ${JSON.stringify(text)}`,
      `it is the address of a /${length} in ${formatPrefix(network)}`,
    );
  };
  // The first subnet has the network's own address: flannel leaves it out, and so do we.
  return {
    network: networkPrefix(network),
    length,
    min: limit("SubnetMin", first + size),
    max: limit("SubnetMax", end - size),
  };
}

function backendOf(source: unknown, where: string): Backend {
  const given = isObject(source) ? source : {};
  const type = given["Type"] === undefined ? "vxlan" : given["Type"];
  // flannel's word for "others route" is alloc.
  const known = type === "alloc" ? "none" : type;
  if (known !== "host-gw" && known !== "vxlan" && known !== "none") {
    throw badConfig(`${where}: backend type ${JSON.stringify(type)} is not supported`, "host-gw, vxlan and none are");
  }
  const whole = (name: string, absent: number, max: number): number => {
    const value = given[name] ?? absent;
    if (typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= max) return value || absent;
    throw badConfig(`${where}: "Backend.${name}" is ${JSON.stringify(value)}`, `it is a whole number up to ${max}`);
  };
  return {
    type: known,
    vni: whole("VNI", 1, 0xff_ffff),
    port: whole("Port", 8472, 0xffff),
    directRouting: given["DirectRouting"] === true,
  };
}

/**
 * The subnets that a key of flannel's stands for: `10.5.34.0-24`, `10.5.34.0-24&fd00:0:0:22::-64`; undefined for any
 * other key.
 */
export function parseSubnetKey(key: string): Prefix[] | undefined {
  const [, four = "", length4 = "", six, length6] = /^(\d+\.\d+\.\d+\.\d+)-(\d+)(?:&([0-9a-f:]+)-(\d+))?$/.exec(key) ??
    [];
  const first = parsePrefix(`${four}/${length4}`);
  const second = six === undefined ? undefined : parsePrefix(`${six}/${length6}`);
  if (first === undefined || (six !== undefined && second === undefined)) return undefined;
  // Without IPv4 flannel writes the network of all addresses.
  const all = [...(first.length === 0 ? [] : [first]), ...(second ? [second] : [])];
  return all.length > 0 && all.every((one) => !hasHostBits(one)) ? all : undefined;
}

/** flannel's key for subnets. */
export function subnetKey(subnets: readonly Prefix[]): string {
  const [four, six] = [ofFamily(subnets, 4), ofFamily(subnets, 6)];
  const text = (one: Prefix) => formatPrefix(one).replace("/", "-");
  return `${four ? text(four) : "0.0.0.0-0"}${six ? `&${text(six)}` : ""}`;
}

/** Reads a subnet record of flannel's; undefined when it is not one. */
export function parseSubnetRecord(key: string, text: string): NodeRecord | undefined {
  const [subnets, value] = [parseSubnetKey(key), jsonObject(text)];
  if (subnets === undefined || value === undefined) return undefined;
  const publicIps = [value["PublicIP"], value["PublicIPv6"]].flatMap((one) => {
    const address = typeof one === "string" ? parseAddress(one) : undefined;
    return address && address.value !== 0n ? [address] : [];
  });
  if (publicIps.length === 0) return undefined;
  const { vni, mac } = vtepOf(value["BackendData"]);
  const six = vtepOf(value["BackendV6Data"]);
  return {
    name: word(value["Node"]) ?? formatAddress(publicIps[0]!),
    subnets,
    publicIps,
    backend: word(value["BackendType"]) ?? "",
    vni: vni ?? six.vni,
    vteps: { ...(mac && { 4: mac }), ...(six.mac && { 6: six.mac }) },
    machineId: word(value["MachineID"]) ?? "",
  };
}

/** The text of a subnet record: flannel's members, and the node's name and machine, which flanneld ignores. */
export function subnetRecord(record: NodeRecord): string {
  const [four, six] = [ofFamily(record.publicIps, 4), ofFamily(record.publicIps, 6)];
  const data = (mac: string | undefined) => mac === undefined ? undefined : { VNI: record.vni, VtepMAC: mac };
  return JSON.stringify({
    PublicIP: four ? formatAddress(four) : "0.0.0.0",
    PublicIPv6: six ? formatAddress(six) : null,
    BackendType: record.backend,
    BackendData: data(record.vteps[4]),
    BackendV6Data: data(record.vteps[6]),
    Node: record.name,
    MachineID: record.machineId,
  });
}

function vtepOf(data: unknown): { vni?: number; mac?: string } {
  if (!isObject(data)) return {};
  const { VNI: vni, VtepMAC } = data;
  const mac = typeof VtepMAC === "string" ? parseMac(VtepMAC) : undefined;
  return { ...(typeof vni === "number" && { vni }), ...(mac && macLength(mac) === 6 && { mac }) };
}

/**
 * Hardware address of a node's vxlan device where no record says one: the same for everybody who knows the node's name.
 */
export function derivedMac(node: string, family: Family, vni: number): string {
  const hash = sha512(`cnibox vxlan ${vni} IPv${family} ${node}`);
  // Second bit of the first byte: given out locally, not by a vendor.
  return ["02", ...[0, 2, 4, 6, 8].map((at) => hash.slice(at, at + 2))].join(":");
}

const FLANNEL = "flannel.alpha.coreos.com";

/**
 * A Node object as a record: its podCIDRs and internal addresses. A node that flanneld once ran on keeps its hardware
 * addresses, which flanneld on other nodes still uses; for others they are made of the node's name, so nothing has to
 * be written.
 */
export function recordOfNode({ metadata, spec, status }: NodeObject, { vni, type }: Backend): NodeRecord {
  const { name, annotations = {} } = metadata;
  const cidrs = spec?.podCIDRs ?? (spec?.podCIDR ? [spec.podCIDR] : []);
  const subnets = firstOfFamily(cidrs.flatMap((text) => parsePrefix(text) ?? []).map(networkPrefix));
  const internal = (status?.addresses ?? []).filter((one) => one.type === "InternalIP");
  const named = [annotations[`${FLANNEL}/public-ip-overwrite`], annotations[`${FLANNEL}/public-ipv6-overwrite`]];
  const publicIps = firstOfFamily(
    [...named, ...internal.map(({ address }) => address)].flatMap((text) => parseAddress(text ?? "") ?? []),
  );
  const backend = annotations[`${FLANNEL}/backend-type`] ?? type;
  const vteps: { [family in Family]?: string } = {};
  for (const [family, key] of [[4, "backend-data"], [6, "backend-v6-data"]] as const) {
    if (backend === "vxlan") {
      vteps[family] = vtepOf(jsonObject(annotations[`${FLANNEL}/${key}`] ?? "")).mac ?? derivedMac(name, family, vni);
    }
  }
  return { name, subnets, publicIps, backend, vni, vteps, machineId: "" };
}

function firstOfFamily<T extends Address | Prefix>(all: readonly T[]): T[] {
  return ([4, 6] as const).flatMap((family) => ofFamily(all, family) ?? []);
}
