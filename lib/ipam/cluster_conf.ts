/** Configuration of the `cluster` IPAM plugin: its own keys, and whereabouts' as synonyms. */
import { parseArgs } from "../cni/args.ts";
import {
  anything,
  decode,
  FieldError,
  type Fields,
  flag,
  isObject,
  list,
  lookup,
  maybeText,
  object,
  refine,
  text,
} from "../cni/decode.ts";
import { badConfig, CniError, code, goQuote } from "../cni/error.ts";
import type { Call } from "../cni/plugin.ts";
import type { DNS, JsonObject, Route } from "../cni/types.ts";
import { atLeast, readDns, readRoutes } from "../cni/version.ts";
import { readKernelFile } from "../kernel/proc.ts";
import { readRegularText, systemWords } from "../kernel/regular_file.ts";
import type { Run } from "../kernel/run.ts";
import {
  type Address,
  familyBits,
  formatAddress,
  formatPrefix,
  networkPrefix,
  parseAddress,
  parsePrefix,
  sameAddress,
} from "../net/cidr.ts";
import { EtcdStore } from "../store/etcd.ts";
import type { Store } from "../store/store.ts";
import { cidr, ipOrCidr, plain, prefixOrAddress } from "./address_keys.ts";
import type { Pool } from "./block_owner.ts";
import { defaultBlockSize, type PoolSet } from "./blocks.ts";
import { type RangeConf, rangeSets } from "./range.ts";

/** Folder of the leases unless `dataDir` names another: host-local's own. */
const DATA_DIR = "/var/lib/cni/networks";
/** Longest time that an ADD waits for the store, in milliseconds. */
const LIMIT_MS = 20_000;
/** Key prefix in etcd. */
const ETCD_PREFIX = "/cnibox/cluster/v1";

const address = (about: string) => refine(maybeText(about), plain, undefined);
const excludes = list(
  refine(text("", "an address or a prefix"), prefixOrAddress, undefined),
  "addresses and prefixes that are never given out",
);
const rangeKeys = {
  subnet: refine(maybeText("network to allocate from, in CIDR form without host bits"), cidr, undefined),
  rangeStart: address("first address to give out; absent: the second of the subnet"),
  rangeEnd: address("last address to give out; absent: the subnet's last, in IPv4 the one before"),
  gateway: address("the gateway, never given out; absent: the subnet's second address"),
  exclude: excludes,
};
const whereaboutsKeys = {
  range: refine(
    maybeText("as whereabouts has it: a network in CIDR form, or FIRST-LAST/LENGTH"),
    whereaboutsRange,
    undefined,
  ),
  range_start: address("first address to give out of `range`"),
  range_end: address("last address to give out of `range`"),
  exclude: excludes,
};
/** Keys of `store.kubernetes`. */
export const kubernetesKeys = {
  kubeconfig: maybeText("kubeconfig file; absent: the files of the pod's service account"),
  namespace: maybeText("namespace of the Lease objects; absent: the kubeconfig's, else kube-system"),
};
/** Keys of `store.etcd`. */
export const etcdKeys = {
  endpoints: list(
    refine(text("", "http://, https:// or unix:// of a member"), endpoint, ""),
    "the members; the next one is asked when one cannot be reached",
  ),
  caFile: maybeText("certificates of the authorities that sign the members' certificates, PEM"),
  certFile: maybeText("client certificate, PEM"),
  keyFile: maybeText("its key, PEM"),
  user: maybeText("user name"),
  passwordFile: maybeText("file that holds the password"),
  prefix: refine(text(ETCD_PREFIX, "what all keys begin with"), keyPrefix, ETCD_PREFIX),
};

/** The plugin's table of keys. */
export const clusterKeys = {
  ipam: object({
    pool: maybeText("name of the pool; networks of one name and store share it; absent: the network's name"),
    ranges: list(
      list(object(rangeKeys, "one range"), "a range set: ranges that are alternatives"),
      "range sets: one address is given from each",
    ),
    blockSize: refine(
      anything('prefix length of the blocks that nodes own: a number, or {"4": 28, "6": 124}'),
      blockSizes,
      {},
    ),
    quarantine: refine(
      text("60s", "how long a released address rests while others are free: 60s, 5m, 1h"),
      duration,
      60_000,
    ),
    timeout: refine(text("20s", "longest time that ADD waits for the store"), duration, LIMIT_MS),
    allowOverlap: flag(false, "other pools of the store may overlap with this one: networks that never meet"),
    node: maybeText("name of this node; absent: NODENAME of the environment, else the host name"),
    store: object({
      etcd: object(etcdKeys, "an etcd, 3.4 or later"),
      kubernetes: object(kubernetesKeys, "Lease objects of a Kubernetes API"),
    }, "where nodes agree on who owns what"),
    routes: refine(anything("routes that the result names"), (value) => readRoutes(value, "ipam.routes"), []),
    dns: refine(anything("resolver settings that the result names, unchanged"), readDns, undefined),
    dataDir: text(DATA_DIR, "folder of the leases, one folder per network in it"),
    ...whereaboutsKeys,
    ipRanges: list(object(whereaboutsKeys, "one range"), "as whereabouts has it: one address is given from each"),
    gateway: address("gateway of every range that names none; of the ranges of its family"),
    network_name: maybeText("as whereabouts has it: name of the pool, which may overlap with others"),
    enable_overlapping_ranges: flag(true, "as whereabouts has it: false is `allowOverlap`"),
    kubernetes: object(kubernetesKeys, "as whereabouts has it: `store.kubernetes`"),
    configuration_path: maybeText("as whereabouts has it: a file with keys of this section that are not in it"),
  }, "what is given out"),
  runtimeConfig: object({
    ips: list(refine(text("", "an address; a prefix length is ignored"), requested, undefined), "addresses to get"),
  }, "what the runtime adds"),
  args: object({
    cni: object(
      { ips: list(refine(text("", "an address"), requested, undefined), "addresses to get") },
      "by convention",
    ),
  }, "`args.cni.ips`: addresses to get"),
};

/** Everything that a call needs, checked. */
export interface ClusterConf {
  readonly pool: Pool;
  readonly requested: readonly Address[];
  readonly routes: readonly Route[];
  readonly dns: DNS | undefined;
  /** Removes what was written for the store's tools. */
  close(): void;
}

/** What the reading of a configuration needs of a call. */
export type ConfCall = SetsCall & Pick<Call, "network" | "host"> & { readonly args?: string };
type SetsCall = Pick<Call, "config" | "version" | "warn">;

/** Reads the configuration. Throws {@linkcode CniError} naming key and value. */
export async function clusterConf(call: ConfCall): Promise<ClusterConf> {
  const conf = readConf(call.config);
  const { ipam } = conf;
  if (ipam === undefined) {
    throw badConfig(
      "IPAM config missing 'ipam' key",
      'write "ipam": {"type": "cluster", "ranges": [[{"subnet": "10.42.0.0/16"}]], "store": …}',
    );
  }
  const { folder, blockFolder } = foldersOf(call);
  const name = poolName(ipam, call.network);
  const node = ipam.node ?? (Deno.env.get("NODENAME") || Deno.hostname());
  const limit = Date.now() + (ipam.timeout ?? LIMIT_MS);
  const { store, close } = await storeOf({ ...ipam, node }, call.host, () => limit);
  return {
    pool: {
      name,
      sets: setsOf(ipam, call),
      mayOverlap: ipam.allowOverlap || !ipam.enable_overlapping_ranges || ipam.network_name !== undefined,
      folder,
      blockFolder,
      quarantineMs: ipam.quarantine ?? 60_000,
      identity: { node, ...machine() },
      store,
    },
    requested: allRequested([...conf.args?.cni?.ips ?? [], ...conf.runtimeConfig?.ips ?? []], call.args ?? ""),
    routes: ipam.routes,
    dns: ipam.dns,
    close,
  };
}

/**
 * Folders of a network's leases and of its blocks' file; asks for nothing else, so that DEL works whatever became of
 * the rest.
 */
export function foldersOf(
  { config, network }: Pick<Call, "config" | "network">,
): { folder: string; blockFolder: string } {
  const ipam = lookup(config, "ipam");
  const given = isObject(ipam) ? lookup(ipam, "dataDir") : undefined;
  const dataDir = (typeof given === "string" && given !== "" ? given : DATA_DIR).replace(/\/+$/, "");
  const base = /^(.*)\/networks$/.exec(dataDir)?.[1] ?? dataDir;
  // Outside of every lease folder: others take whatever lies in one for a lease.
  return { folder: `${dataDir}/${network}`, blockFolder: `${base}/cluster/${network}` };
}

/** Throws {@linkcode CniError} naming key and value that cannot work anywhere; no file but whereabouts' is opened. */
export function checkConf(call: SetsCall & Pick<Call, "network">): void {
  const { ipam } = readConf(call.config);
  if (ipam === undefined) return;
  poolName(ipam, call.network);
  const { etcd } = oneStore(ipam);
  if (etcd !== undefined) checkEtcd(etcd, "ipam.store.etcd");
  setsOf(ipam, call);
}

function poolName({ pool, network_name }: Ipam, network: string): string {
  const name = pool ?? network_name ?? network;
  if (/^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,99}$/.test(name) && name !== "cnibox-pools") return name;
  throw badConfig(
    `"ipam.pool" is ${JSON.stringify(name)}`,
    "a pool's name has letters, digits, `_`, `.` and `-`, 100 at most",
  );
}

/**
 * The range sets that a configuration describes; asks for nothing else. Throws {@linkcode CniError} naming key and
 * value.
 */
export function poolSets(call: SetsCall): readonly PoolSet[] {
  const { ipam } = readConf(call.config);
  return ipam === undefined ? [] : setsOf(ipam, call);
}

type Ipam = NonNullable<ReturnType<typeof readConf>["ipam"]>;
const readConf = (config: Call["config"]) => decode(clusterKeys, withFlatFile(config), "");

/** Where whereabouts looks for its flat file, the first one that exists. */
const FLAT_FILES = ["/etc/kubernetes/cni/net.d", "/etc/cni/net.d", "/host/etc/cni/net.d"].map((folder) =>
  `${folder}/whereabouts.d/whereabouts.conf`
);

/**
 * The configuration with what whereabouts' flat file says of keys that its `ipam` section leaves empty. That file is
 * looked at where the section names it, or names no store.
 */
function withFlatFile(config: JsonObject): JsonObject {
  const ipam = lookup(config, "ipam");
  if (!isObject(ipam)) return config;
  const named = lookup(ipam, "configuration_path");
  const isNamed = typeof named === "string" && named !== "";
  if (!isNamed && ["store", "kubernetes"].some((key) => isObject(lookup(ipam, key)))) return config;
  for (const path of isNamed ? [named] : FLAT_FILES) {
    const more = flatFile(path);
    if (more) return { ...config, ipam: { ...more, ...ipam } };
  }
  if (!isNamed) return config;
  throw badConfig(`"ipam.configuration_path" is ${JSON.stringify(named)}`, "there is no such file");
}

/** What the file says; undefined where there is none. Of overlapping ranges it never says anything. */
function flatFile(path: string): JsonObject | undefined {
  let given: unknown;
  try {
    given = JSON.parse(readRegularText(path, { links: true }));
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return undefined;
    throw badConfig(`${path} cannot be used: ${systemWords(error)}`, "it holds one JSON object, as whereabouts has it");
  }
  if (!isObject(given)) throw badConfig(`${path} holds no JSON object`, "it holds an `ipam` section, without its name");
  const { enable_overlapping_ranges: _, ...keys } = given;
  return keys;
}

function setsOf(ipam: Ipam, call: SetsCall): PoolSet[] {
  const own = (ipam.ranges ?? []).map((set) => set.map(({ exclude, ...one }) => ({ ...one, excluded: exclude })));
  const first = ipam.range === undefined ? [] : [[{ ...ipam.range, ...limits(ipam) }]];
  const more = (ipam.ipRanges ?? []).map((one) => {
    if (one.range === undefined) {
      throw badConfig('an element of "ipam.ipRanges" has no "range"', 'write {"range": "192.0.2.0/24"}');
    }
    return [{ ...one.range, ...limits(one), excluded: one.exclude }];
  });
  const sets = [...first, ...more, ...own].map((set) =>
    set.map((one: RangeConf) => ({ ...one, gateway: one.gateway ?? gatewayFor(one, ipam.gateway) }))
  );
  const checked = rangeSets(sets, {
    version: call.version,
    atLeast030: atLeast(call.version, "0.3.0"),
    excluded: ipam.exclude,
    warn: call.warn,
  });
  return checked.map((ranges) => {
    const { family } = ranges[0].start;
    const blockSize = ipam.blockSize?.[family] ?? defaultBlockSize(ranges);
    const shortest = Math.min(...ranges.map(({ subnet }) => subnet.length));
    if (blockSize <= familyBits(family) && blockSize >= shortest) return { ranges, blockSize };
    throw badConfig(
      `"ipam.blockSize" is ${blockSize}`,
      `for ${ranges.map(({ subnet }) => formatPrefix(subnet)).join(", ")} it is a prefix length from ${shortest} to ${
        familyBits(family)
      }`,
    );
  });
}

function limits({ range_start, range_end }: { range_start?: string | undefined; range_end?: string | undefined }) {
  return { ...(range_start && { rangeStart: range_start }), ...(range_end && { rangeEnd: range_end }) };
}

/** One gateway for all ranges of its family, and of no other. */
function gatewayFor({ subnet }: RangeConf, gateway: string | undefined): string | undefined {
  const family = subnet === undefined ? undefined : parsePrefix(subnet)?.address.family;
  return gateway !== undefined && parseAddress(gateway)?.family === family ? gateway : undefined;
}

/** The one store that a configuration names. */
function oneStore(ipam: Pick<Ipam, "store" | "kubernetes">) {
  const { etcd, kubernetes = ipam.kubernetes } = ipam.store ?? {};
  if (etcd !== undefined && kubernetes !== undefined) {
    throw badConfig('"ipam.store" names etcd and kubernetes', "a pool is in one store: remove the other");
  }
  if (etcd !== undefined) return { etcd };
  if (kubernetes !== undefined) return { kubernetes };
  throw badConfig(
    '"ipam.store" is missing',
    'write "store": {"etcd": {"endpoints": […]}} or {"kubernetes": {"kubeconfig": "…"}}',
  );
}

async function storeOf(
  ipam: Pick<Ipam, "store" | "kubernetes"> & { readonly node: string },
  host: Run,
  deadline: () => number,
): Promise<{ store: () => Store; close: () => void }> {
  const { etcd, kubernetes } = oneStore(ipam);
  if (etcd !== undefined) {
    const store = openEtcd(host, etcd, { deadline, path: "ipam.store.etcd" });
    return { store: () => store, close: () => {} };
  }
  // Loaded when used: etcd needs no YAML.
  const { openKubernetes } = await import("../store/open_kubernetes.ts");
  return openKubernetes(host, { ...kubernetes, node: ipam.node }, deadline);
}

/** The etcd that a configuration names at `path`. Throws {@linkcode CniError} naming key and value. */
export function openEtcd(
  host: Run,
  etcd: Fields<typeof etcdKeys>,
  { deadline, path }: { readonly deadline: () => number; readonly path: string },
): Store {
  const endpoints = checkEtcd(etcd, path);
  for (const key of ["caFile", "certFile", "keyFile", "passwordFile"] as const) readable(etcd[key], `${path}.${key}`);
  return new EtcdStore(host, { ...etcd, endpoints }, { deadline });
}

/** What has to be there in any case; returns the endpoints. */
function checkEtcd(etcd: Fields<typeof etcdKeys>, path: string): readonly string[] {
  const { endpoints = [], passwordFile, user } = etcd;
  if (endpoints.length === 0) {
    throw badConfig(`"${path}.endpoints" is empty`, 'write "endpoints": ["https://10.0.0.1:2379"]');
  }
  if (user !== undefined && passwordFile === undefined) {
    throw badConfig(
      `"${path}.user" is ${JSON.stringify(user)} without a "passwordFile"`,
      "name the file that holds the password",
    );
  }
  return endpoints;
}

function readable(path: string | undefined, key: string): void {
  if (path === undefined) return;
  try {
    Deno.openSync(path).close();
  } catch (error) {
    throw badConfig(
      `"${key}" is ${JSON.stringify(path)}: ${systemWords(error)}`,
      "the file has to be there, and readable",
    );
  }
}

/** What tells this machine, and this run of it, apart from others; "" where the system does not say. */
export function machine(): { machineId: string; bootId: string } {
  return { machineId: quietly("/etc/machine-id"), bootId: quietly("/proc/sys/kernel/random/boot_id") };
}

function quietly(path: string): string {
  try {
    return readKernelFile(path).trim();
  } catch {
    return "";
  }
}

function allRequested(others: readonly Address[], args: string): Address[] {
  const { IP = "" } = parseArgs(args, ["IP"]);
  const asked = IP === "" ? [] : IP.split(",").map((one) => {
    const found = ipOrCidr(one.trim());
    if (found) return found;
    throw new CniError(
      code.environment,
      `ARGS: error parsing value of pair ${goQuote(`IP=${IP}`)}: invalid IP address ${one}`,
      "IP in CNI_ARGS is an address, or several with commas between them",
    );
  });
  const all = [...asked, ...others];
  return all.filter((one, at) => all.findIndex((other) => sameAddress(one, other)) === at);
}

function requested(value: string, path: string): Address {
  const found = ipOrCidr(value);
  if (found) return found;
  throw new FieldError(path, `invalid IP address ${value}`, `"${path}" is an address, with or without a prefix length`);
}

/** `192.0.2.0/24`, or `192.0.2.10-192.0.2.20/24`: the network is then the last address's. */
function whereaboutsRange(value: string | undefined, path: string): RangeConf | undefined {
  if (value === undefined) return undefined;
  const [, first, last = "", length] = /^([^-/]+)-([^-/]+)\/(\d+)$/.exec(value) ?? [];
  const whole = parsePrefix(first === undefined ? value : `${last}/${length}`);
  const start = first === undefined ? undefined : parseAddress(first);
  if (whole === undefined || (first !== undefined && start === undefined)) {
    throw new FieldError(
      path,
      `invalid CIDR ${value}`,
      `"${path}" is a network, 192.0.2.0/24, or 192.0.2.10-192.0.2.20/24`,
    );
  }
  const subnet = formatPrefix(networkPrefix(whole));
  return start ? { subnet, rangeStart: formatAddress(start), rangeEnd: last } : { subnet };
}

function blockSizes(value: unknown, path: string): { readonly 4?: number; readonly 6?: number } {
  const isLength = (one: unknown): one is number =>
    typeof one === "number" && Number.isInteger(one) && one > 0 && one <= 128;
  if (isLength(value)) return { 4: value, 6: value };
  if (isObject(value) && Object.entries(value).every(([key, one]) => (key === "4" || key === "6") && isLength(one))) {
    return value;
  }
  throw badValue(value, path, 'write a prefix length, 28, or {"4": 28, "6": 124}');
}

/** Milliseconds of `90s`, `5m`, `1h30m`, `0`. */
function duration(value: string, path: string): number {
  const unit: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3600_000 };
  const parts = [...value.matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h)/g)];
  if (value === "0") return 0;
  if (parts.length > 0 && parts.map(([whole]) => whole).join("") === value) {
    return parts.reduce((sum, [, count, name = ""]) => sum + Number(count) * (unit[name] ?? 0), 0);
  }
  throw badValue(value, path, "write a duration: 60s, 5m, 1h");
}

function endpoint(value: string, path: string): string {
  if (/^(https?:\/\/[^\s/]+\/?|unix:\/\/\/\S+)$/.test(value)) return value;
  throw badValue(value, path, "write http://HOST:PORT, https://HOST:PORT or unix:///PATH");
}

/** A prefix of keys in etcd, as a key of a configuration. */
export function keyPrefix(value: string, path: string): string {
  if (/^\/[\x21-\x7e]*[^/\s]$/.test(value)) return value;
  throw badValue(value, path, "a prefix begins with a slash, and has none at its end");
}

/** The error for a value that a key cannot have. */
export function badValue(value: unknown, path: string, advice: string): FieldError {
  return new FieldError(path, `"${path}" is ${JSON.stringify(value)}`, advice);
}
