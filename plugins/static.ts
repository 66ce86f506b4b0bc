/**
 * static: hands out the addresses that the configuration names. https://www.cni.dev/plugins/current/ipam/static/
 *
 * Keeps nothing on the node and touches nothing: two containers may get the same address.
 *
 * Differs from the reference: CHECK notices a configured address that is missing or has another prefix; gateways that
 * fit no address, and addresses given twice, are told on standard error.
 */
import { parseArgs } from "../lib/cni/args.ts";
import {
  anything,
  decode,
  FieldError,
  type Fields,
  goKind,
  isObject,
  list,
  object,
  refine,
  text,
} from "../lib/cni/decode.ts";
import { internal } from "../lib/cni/error.ts";
import { type ContainerCall, nothing, type Plugin } from "../lib/cni/plugin.ts";
import { prevResult } from "../lib/cni/prev_result.ts";
import { type Result, since } from "../lib/cni/types.ts";
import { atLeast, readDns, readRoutes } from "../lib/cni/version.ts";
import {
  type Address,
  formatAddress,
  formatPrefix,
  parseAddress,
  parsePrefix,
  type Prefix,
  prefixContains,
  sameAddress,
} from "../lib/net/cidr.ts";

const ips = list(text("", "an address with its prefix length"), "addresses instead of all others");
const addressKeys = {
  address: text("", "address with the prefix length of its subnet: 10.10.0.1/24"),
  gateway: refine(text("", "next hop of routes that name none"), gatewayOf, undefined),
  // The reference has a field of its own under this very spelling; any other spelling is `address`.
  Address: { ...anything("another field than `address`, in the reference"), read: notAddress, hidden: true },
};
const keys = {
  ipam: object({
    addresses: list(object(addressKeys, "one address"), "the addresses, in the order of the result"),
    routes: refine(
      anything("routes that the result names, unchanged"),
      (value) => readRoutes(value, "ipam.routes"),
      [],
    ),
    dns: refine(anything("resolver settings that the result names, unchanged"), readDns, undefined),
  }, "what is handed out"),
  runtimeConfig: object({ ips }, "capability `ips`: wins over every other source"),
  args: object({ cni: object({ ips }, "by convention") }, "`args.cni.ips` wins over `ipam.addresses` and CNI_ARGS"),
};

export const plugin: Plugin = {
  name: "static",
  kind: "ipam",
  about: "hands out the addresses written in the configuration",
  versions: since("0.1.0"),
  needs: [],
  keys,
  parse: settings,
  add,
  del: nothing,
  check,
  gc: nothing,
  status: nothing,
};

/** An address to hand out. */
interface Entry {
  readonly prefix: Prefix;
  readonly gateway: Address | undefined;
}

// deno-lint-ignore require-await -- what it throws has to be a rejection
async function add(call: ContainerCall): Promise<Result> {
  const { entries, routes, dns } = settings(call);
  return {
    ips: entries.map(({ prefix, gateway }) => ({
      address: formatPrefix(prefix),
      ...(gateway && { gateway: formatAddress(gateway) }),
    })),
    routes,
    ...(dns && { dns }),
  };
}

// deno-lint-ignore require-await -- what it throws has to be a rejection
async function check(call: ContainerCall): Promise<void> {
  const { entries } = settings(call);
  const previous = prevResult(call);
  if (!previous) {
    throw internal("Required prevResult missing", "CHECK needs what ADD answered, as `prevResult`");
  }
  for (const { prefix, gateway } of entries) {
    const wanted = formatPrefix(prefix);
    const fits = previous.ips?.some((ip) =>
      ip.address === wanted && (gateway === undefined || ip.gateway === formatAddress(gateway))
    );
    if (fits) continue;
    const via = gateway ? ` via ${formatAddress(gateway)}` : "";
    const given = previous.ips?.map((ip) => ip.address + (ip.gateway ? ` via ${ip.gateway}` : "")).join(", ");
    throw internal(
      `static: Failed to match addr ${formatAddress(prefix.address)} on interface ${call.ifName}`,
      `configured: ${wanted}${via}; prevResult has ${given || "no address"}`,
    );
  }
}

/**
 * The addresses in the order of their sources, as the reference builds its list; with the routes and DNS of the result.
 */
function settings(call: ContainerCall) {
  const conf = decode(keys, call.config, "");
  if (!conf.ipam) {
    throw internal(
      "IPAM config missing 'ipam' key",
      'write the addresses into "ipam": {"type": "static", "addresses": [{"address": "10.10.0.1/24"}]}',
    );
  }
  // Every source is read, also one that loses: a bad entry in it is an error in the reference too.
  const { routes, dns, addresses = [] } = conf.ipam;
  const fromArgs = entriesOfArgs(call);
  const fromCni = entriesOfList(conf.args?.cni?.ips ?? []);
  let entries = entriesOfList(conf.runtimeConfig?.ips ?? []);
  if (entries.length === 0) entries = fromCni;
  if (entries.length === 0) entries = [...entriesOfConfiguration(addresses), ...fromArgs];
  checkCount(entries, call.version);
  if (call.verb === "ADD") warnAbout(entries, call);
  return { entries, routes, dns };
}

/** CNI_ARGS: `IP` adds addresses; `GATEWAY` is for those of them whose subnet holds it, the last one that fits. */
function entriesOfArgs(call: ContainerCall): Entry[] {
  const { IP = "", GATEWAY = "" } = parseArgs(call.args, ["IP", "GATEWAY"]);
  const words = "the 'ip' field is expected to be in CIDR notation, got:";
  const prefixes = IP === "" ? [] : IP.split(",").map((item) => cidr(item.trim(), words));
  const gateways = GATEWAY === "" ? [] : GATEWAY.split(",").map((item) => {
    const gateway = parseAddress(item.trim());
    if (gateway) return gateway;
    throw internal(
      `invalid gateway address: ${item}`,
      "GATEWAY in CNI_ARGS is a list of addresses without prefix lengths, separated by commas",
    );
  });
  for (const gateway of gateways) {
    if (call.verb !== "ADD" || prefixes.some((prefix) => prefixContains(prefix, gateway))) continue;
    call.warn(
      `GATEWAY ${formatAddress(gateway)} of CNI_ARGS is in no subnet of the IP in CNI_ARGS and is left out; ` +
        `configured addresses have a "gateway" of their own`,
    );
  }
  return prefixes.map((prefix) => ({ prefix, gateway: gateways.findLast((one) => prefixContains(prefix, one)) }));
}

function entriesOfConfiguration(items: readonly (Fields<typeof addressKeys> | undefined)[]): Entry[] {
  return items.map((item) => ({
    prefix: cidr(item?.address ?? "", "the 'address' field is expected to be in CIDR notation, got:"),
    gateway: item?.gateway,
  }));
}

function entriesOfList(items: readonly string[]): Entry[] {
  return items.map((item) => ({
    prefix: cidr(item, "an entry in the 'ips' field is NOT in CIDR notation, got:"),
    gateway: undefined,
  }));
}

function cidr(item: string, words: string): Prefix {
  const prefix = parsePrefix(item);
  if (prefix) return prefix;
  const advice = parseAddress(item) ? `give it the prefix length of its subnet: ${item}/…` : "write ADDRESS/LENGTH";
  throw internal(`${words} '${item}'`, advice);
}

function notAddress(value: unknown, path: string): void {
  if (isObject(value) && Object.keys(value).length === 0) return;
  const msg = isObject(value)
    ? `"${path}" as an object is not supported`
    : `json: cannot unmarshal ${
      goKind(value, "")
    } into Go struct field Address.ipam.addresses.Address of type net.IPNet`;
  throw new FieldError(path, msg, `"${path}" is another field than "address": write the key in lower case`);
}

function gatewayOf(value: string): Address | undefined {
  if (value === "") return undefined;
  const gateway = parseAddress(value);
  if (gateway) return gateway;
  throw internal(`invalid IP address: ${value}`, 'a "gateway" is an address without a prefix length');
}

/** Before 0.3.0 a result holds one address of each family. */
function checkCount(entries: readonly Entry[], version: string): void {
  if (atLeast(version, "0.3.0")) return;
  const count = (family: number) => entries.filter(({ prefix }) => prefix.address.family === family).length;
  if (count(4) <= 1 && count(6) <= 1) return;
  throw internal(
    `CNI version ${version || "0.1.0"} does not support more than 1 address per family`,
    'set "cniVersion" to 0.3.0 or later, or leave one IPv4 and one IPv6 address',
  );
}

function warnAbout(entries: readonly Entry[], call: ContainerCall): void {
  entries.forEach(({ prefix, gateway }, index) => {
    const { address } = prefix;
    if (gateway && gateway.family !== address.family) {
      call.warn(`gateway ${formatAddress(gateway)} is of another family than its address ${formatPrefix(prefix)}`);
    }
    if (entries.findIndex((other) => sameAddress(other.prefix.address, address)) < index) {
      call.warn(`address ${formatAddress(address)} is given twice: the interface will refuse the second`);
    }
  });
}
