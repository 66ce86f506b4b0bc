/**
 * host-local: gives out addresses of configured ranges and keeps them as files on this node.
 * https://www.cni.dev/plugins/current/ipam/host-local/
 *
 * Differs from the reference: all sets under one lock with a time limit; leases appear whole or not at all, and are
 * found without reading them all; what crashes left is taken back when a range is full; DEL needs no valid ranges; GC
 * and STATUS work.
 */
import { parseArgs } from "../lib/cni/args.ts";
import {
  anything,
  decode,
  FieldError,
  type Fields,
  flag,
  isObject,
  type Key,
  list,
  lookup,
  maybeText,
  object,
  refine,
  text,
} from "../lib/cni/decode.ts";
import { badConfig, CniError, code, goQuote, needed } from "../lib/cni/error.ts";
import type { Call, ContainerCall, Lease, NetworkCall, Plugin, Released } from "../lib/cni/plugin.ts";
import { type DNS, type Result, since } from "../lib/cni/types.ts";
import { atLeast, readRoutes } from "../lib/cni/version.ts";
import { begin as beginTaking, held as heldBy, release, releaseOnly } from "../lib/ipam/allocator.ts";
import { cidr, ipOrCidr, plain, prefixOrAddress } from "../lib/ipam/address_keys.ts";
import { leaseOf } from "../lib/ipam/lease.ts";
import { type RangeConf, rangeSets } from "../lib/ipam/range.ts";
import { RESULTS_FOLDER } from "../lib/ipam/store.ts";
import { readRegularText, systemWords } from "../lib/kernel/regular_file.ts";
import { type Address, sameAddress } from "../lib/net/cidr.ts";

const DATA_DIR = "/var/lib/cni/networks";

const rangeKeys = {
  subnet: refine(
    maybeText("network to allocate from, in CIDR form without host bits; /30, /126 or larger"),
    cidr,
    undefined,
  ),
  rangeStart: refine(maybeText("first address to give out; absent: the second of the subnet"), plain, undefined),
  rangeEnd: refine(
    maybeText("last address to give out; absent: the subnet's last, in IPv4 the one before"),
    plain,
    undefined,
  ),
  gateway: refine(maybeText("the gateway, never given out; absent: the subnet's second address"), plain, undefined),
  exclude: list(
    refine(text("", "an address or a prefix"), prefixOrAddress, undefined),
    "addresses and prefixes that are never given out; beside `ranges`, of all of them",
  ),
};
const ranges = nullsAs({}, list(object(rangeKeys, "one range"), "a range set: ranges that are alternatives"));
const sets = (about: string) => nullsAs([], list(ranges, about));
const ips = list(
  refine(text("", "an address; a prefix length is ignored"), requestedIp, undefined),
  "addresses to get",
);
const keys = {
  ipam: object({
    ranges: sets("range sets: one address is given from each"),
    ...rangeKeys,
    routes: refine(anything("routes that the result names"), (value) => readRoutes(value, "ipam.routes"), []),
    dataDir: text(DATA_DIR, "folder of the leases, one folder per network in it"),
    sticky: flag(false, "a pod gets the address that one of its namespace and name had before, when it is free"),
    resolvConf: text("", "file like resolv.conf(5) whose settings the result names"),
  }, "what is given out"),
  runtimeConfig: object({
    ipRanges: sets("capability `ipRanges`: range sets before all others"),
    ips,
  }, "what the runtime adds"),
  args: object({ cni: object({ ips }, "by convention") }, "`args.cni.ips`: addresses to get"),
};

export const plugin: Plugin = {
  name: "host-local",
  kind: "ipam",
  about: "gives out addresses from ranges, kept as files on this node",
  versions: since("0.1.0"),
  needs: [],
  keys,
  parse: settings,
  begin,
  add: async (call) => await (await begin(call)).commit(),
  del,
  check,
  gc,
  status,
  held,
};

const upkeep = () => import("../lib/ipam/lease_upkeep.ts");

async function begin(call: ContainerCall): Promise<Lease> {
  const folder = folderOf(call);
  const memory = isSticky(call) ? (await import("../lib/ipam/sticky.ts")).memoryOf(folder, call) : undefined;
  const more: Pick<Result, "routes" | "dns"> = {};
  const taking = await beginTaking(folder, call, {
    wanted: () => {
      const { routes, dns, ...wanted } = settings(call);
      Object.assign(more, { ...(routes && { routes }), ...(dns && { dns }) });
      return { ...wanted, memory };
    },
    host: call.host,
    warn: call.warn,
    perform: call.perform,
  });
  return leaseOf(call, taking, { more, release: (ips) => releaseOnly(folder, call, { ...call, ips }) });
}

async function del(call: ContainerCall): Promise<Released> {
  return { addresses: await release(folderOf(call), call, call) };
}

async function held(call: ContainerCall): Promise<readonly string[]> {
  return await heldBy(folderOf(call), call, call);
}

async function check(call: ContainerCall): Promise<void> {
  const { folder } = settings(call);
  await (await upkeep()).checkHeld(folder, call);
}

async function gc(call: NetworkCall): Promise<void> {
  // A caller that says nothing about valid attachments has sent DEL for all it knows.
  if (call.valid === undefined || !isObject(lookup(call.config, "ipam"))) return;
  await (await upkeep()).collect(folderOf(call), call.valid, call);
}

/** Longest wait for the lock, in milliseconds, before STATUS says that ADD would wait too. */
const STATUS_LIMIT_MS = 5_000;

async function status(call: NetworkCall): Promise<void> {
  const { host, warn } = call;
  await needed(async () => {
    const { folder, sets } = settings({ ...call, args: "" });
    await (await upkeep()).checkSpace(folder, sets, { host, warn, limitMs: STATUS_LIMIT_MS });
  });
}

/** Everything that ADD needs, checked. */
function settings(call: Call & { readonly args: string }) {
  const conf = decode(keys, call.config, "");
  const { ipam, runtimeConfig } = conf;
  if (ipam === undefined) {
    throw badConfig(
      "IPAM config missing 'ipam' key",
      'write "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/24"}]]}',
    );
  }
  const legacy = ipam.subnet === undefined ? [] : [[{ ...ipam, exclude: undefined }]];
  const all = [...runtimeConfig?.ipRanges ?? [], ...legacy, ...ipam.ranges ?? []];
  const warn = call.verb === "ADD" ? call.warn : () => {};
  return {
    folder: folderOf(call),
    sets: rangeSets(all.map((set) => set.map((one): RangeConf => ({ ...one, excluded: one.exclude }))), {
      version: call.version,
      atLeast030: atLeast(call.version, "0.3.0"),
      excluded: ipam.exclude,
      warn,
    }),
    requested: requested(conf, call),
    routes: ipam.routes,
    dns: ipam.resolvConf === "" ? undefined : resolvConf(ipam.resolvConf),
    resultsFolders: resultsFolders(ipam.dataDir || DATA_DIR),
  };
}

/** Addresses that were asked for, in the order of their sources; all of them count. */
function requested({ ipam, runtimeConfig, args }: Fields<typeof keys>, call: { readonly args: string }): Address[] {
  const { IP = "" } = parseArgs(call.args, ipam?.sticky ? ["IP", "K8S_POD_NAMESPACE", "K8S_POD_NAME"] : ["IP"]);
  const all = [...IP === "" ? [] : [ipOfArgs(IP)], ...args?.cni?.ips ?? [], ...runtimeConfig?.ips ?? []];
  return all.filter((address, at) => all.findIndex((other) => sameAddress(other, address)) === at);
}

function ipOfArgs(value: string): Address {
  const address = ipOrCidr(value);
  if (address !== undefined) return address;
  throw new CniError(
    code.environment,
    `ARGS: error parsing value of pair ${goQuote(`IP=${value}`)}: invalid IP address ${value}`,
    "IP in CNI_ARGS is one address; more can be asked for with the capability `ips`",
  );
}

/** Whether pods get their addresses again; what is no boolean is refused where the configuration is read. */
function isSticky({ config }: Call): boolean {
  const ipam = lookup(config, "ipam");
  return isObject(ipam) && lookup(ipam, "sticky") === true;
}

/** Folder of the network's leases. Asks for nothing else, so that DEL works whatever became of the ranges. */
function folderOf(call: Call): string {
  const ipam = lookup(call.config, "ipam");
  const given = isObject(ipam) ? lookup(ipam, "dataDir") : undefined;
  const dataDir = typeof given === "string" && given !== "" ? given : DATA_DIR;
  return `${dataDir.replace(/\/+$/, "")}/${call.network}`;
}

/** A runtime that keeps leases elsewhere keeps its results beside them. */
function resultsFolders(dataDir: string): string[] {
  const [, base] = /^(.*)\/networks\/*$/.exec(dataDir) ?? [];
  return [...new Set([RESULTS_FOLDER, ...base === undefined ? [] : [`${base}/results`]])];
}

/** DNS settings of a file like resolv.conf(5): what the reference takes from it, checked as little. */
function resolvConf(path: string): DNS | undefined {
  let lines: string[];
  try {
    lines = readRegularText(path, { links: true }).split("\n");
  } catch (error) {
    throw new CniError(code.io, `open ${path}: ${systemWords(error)}`, '"resolvConf" in "ipam" names no readable file');
  }
  const dns: Required<DNS> = { nameservers: [], domain: "", search: [], options: [] };
  for (const line of lines) {
    const [keyword, first, ...others] = line.trim().split(/\s+/);
    if (first === undefined || /^[#;]/.test(keyword ?? "")) continue;
    if (keyword === "nameserver") dns.nameservers.push(first);
    else if (keyword === "domain") dns.domain = first;
    else if (keyword === "search" || keyword === "options") dns[keyword].push(first, ...others);
  }
  const said = Object.entries(dns).filter(([, value]) => value.length > 0);
  return said.length === 0 ? undefined : Object.fromEntries(said);
}

/**
 * Reads `null` elements as something else: the reference takes a null set for an empty one, and finds it wanting later.
 */
function nullsAs<T>(instead: unknown, key: Key<T>): Key<T> {
  const replace = (item: unknown) => item === null ? instead : item;
  return { ...key, read: (value, path) => key.read(Array.isArray(value) ? value.map(replace) : value, path) };
}

function requestedIp(value: string, path: string): Address {
  const address = ipOrCidr(value);
  if (address !== undefined) return address;
  const msg = value === "" ? "cannot understand ip: IP <nil> not v4 nor v6" : `invalid IP address ${value}`;
  throw new FieldError(path, msg, `"${path}" is an address, with or without a prefix length`);
}
