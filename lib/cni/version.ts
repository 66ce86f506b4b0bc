/**
 * Results in every layout of the protocol: reading what a chain or a delegate hands over, and printing what this call
 * answers. Inside, a {@linkcode Result} always has the layout of CNI 1.1.0.
 */
import { CniError, code, goQuote, internal } from "./error.ts";
import { goKind, isObject, lookup } from "./decode.ts";
import {
  type DNS,
  type Interface,
  type IPConfig,
  type JsonObject,
  NEWEST,
  type Result,
  type Route,
  VERSIONS,
} from "./types.ts";

import { canonicalAddress, formatPrefix, parsePrefix } from "../net/cidr.ts";

/** The three result layouts. */
type Family = "ip4/ip6" | "versioned" | "sorted";

function familyOf(version: string): Family | undefined {
  switch (version) {
    case "":
    case "0.1.0":
    case "0.2.0":
      return "ip4/ip6";
    case "0.3.0":
    case "0.3.1":
    case "0.4.0":
      return "versioned";
    case "1.0.0":
    case "1.1.0":
      return "sorted";
  }
}

const FAMILY_NAMES: Record<Family, string> = {
  "ip4/ip6": "[ 0.1.0 0.2.0]",
  versioned: "[0.3.0 0.3.1 0.4.0]",
  sorted: "[1.0.0 1.1.0]",
};

/** Numbers of a version, as the gates compare them; missing parts are 0, "" is 0.1.0. */
export function versionParts(version: string): [number, number, number] {
  if (version === "") return [0, 1, 0];
  const parts = version.split(".");
  if (parts.length > 3) throw new CniError(code.decode, `invalid version ${goQuote(version)}: too many parts`);
  const names = ["major", "minor", "micro"];
  const numbers = parts.map((part, index) => {
    if (/^[+-]?\d+$/.test(part)) return Number(part);
    const reason = `strconv.Atoi: parsing ${goQuote(part)}: invalid syntax`;
    throw new CniError(code.decode, `failed to convert ${names[index]} version part ${goQuote(part)}: ${reason}`);
  });
  return [numbers[0] ?? 0, numbers[1] ?? 0, numbers[2] ?? 0];
}

/** Is `version` at least `other`? Both as numbers. */
export function atLeast(version: string, other: string): boolean {
  const [a, b] = [versionParts(version), versionParts(other)];
  for (let i = 0; i < 3; i++) if (a[i] !== b[i]) return (a[i] ?? 0) > (b[i] ?? 0);
  return true;
}

/** Reads a `prevResult` of a configuration at `confVersion`; its own version must be of the same layout. */
export function parsePrevResult(source: JsonObject, confVersion: string, inject = true): Result {
  const own = lookup(source, "cniVersion");
  if (own !== undefined && own !== null && typeof own !== "string") {
    throw internal(
      `could not parse prevResult: json: cannot unmarshal ${typeof own} into Go struct field .cniVersion of type string`,
    );
  }
  const family = familyOf(confVersion);
  if (family === undefined) {
    throw internal(`could not parse prevResult: unsupported CNI result version ${goQuote(confVersion)}`);
  }
  const version = typeof own === "string" ? own : inject ? confVersion : "";
  if (familyOf(version) !== family) {
    throw internal(
      `could not parse prevResult: result type supports ${FAMILY_NAMES[family]} but unmarshalled CNIVersion is ${
        goQuote(version)
      }`,
      `prevResult.cniVersion and the configuration's cniVersion ${goQuote(confVersion)} have to be of one generation`,
    );
  }
  try {
    return readResult(source, family);
  } catch (error) {
    throw internal(`could not parse prevResult: ${(error as Error).message}`);
  }
}

/** Reads what a delegate or a chain member printed: of any version, its own or else `confVersion`. */
export function parseResult(source: JsonObject, confVersion: string): Result {
  const own = source["cniVersion"];
  const version = typeof own === "string" && own !== "" ? own : confVersion === "" ? "0.1.0" : confVersion;
  const family = familyOf(version);
  if (family === undefined) throw internal(`unsupported CNI result version ${goQuote(version)}`);
  return { ...readResult(source, family), cniVersion: version };
}

class Misread extends Error {}

function readResult(source: JsonObject, family: Family): Result {
  const interfaces: Interface[] = [];
  const ips: IPConfig[] = [];
  const routes: Route[] = [];
  const dns = readDns(lookup(source, "dns"));
  if (family === "ip4/ip6") {
    for (const name of ["ip4", "ip6"]) {
      const part = lookup(source, name);
      if (part === undefined || part === null) continue;
      if (!isObject(part)) throw wrong(part, name, "struct");
      const ip: IPConfig = { address: cidrOf(lookup(part, "ip"), `${name}.ip`) };
      const gateway = ipOf(lookup(part, "gateway"), `${name}.gateway`);
      ips.push(gateway === undefined ? ip : { ...ip, gateway });
      routes.push(...readRoutes(lookup(part, "routes"), `${name}.routes`));
    }
  } else {
    interfaces.push(...elements(lookup(source, "interfaces"), "interfaces").map(readInterface));
    ips.push(...elements(lookup(source, "ips"), "ips").map(readIp));
    routes.push(...readRoutes(lookup(source, "routes"), "routes"));
  }
  return {
    ...(interfaces.length > 0 && { interfaces }),
    ...(ips.length > 0 && { ips }),
    ...(routes.length > 0 && { routes }),
    ...(dns && { dns }),
  };
}

function wrong(value: unknown, path: string, goType: string): Misread {
  return new Misread(`json: cannot unmarshal ${goKind(value, goType)} into Go struct field .${path} of type ${goType}`);
}

function elements(value: unknown, path: string): JsonObject[] {
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value)) throw wrong(value, path, "[]");
  return value.map((item, index) => {
    if (!isObject(item)) {
      throw item === null ? new Misread(`${path}.${index} is null`) : wrong(item, `${path}.${index}`, "struct");
    }
    return item;
  });
}

function readInterface(source: JsonObject, index: number): Interface {
  const at = `interfaces.${index}`;
  const result: Interface = { name: textOf(lookup(source, "name"), `${at}.name`) ?? "" };
  const mtu = numberOf(lookup(source, "mtu"), `${at}.mtu`);
  if (mtu) result.mtu = mtu;
  for (const name of ["mac", "sandbox", "socketPath", "pciID"] as const) {
    const text = textOf(lookup(source, name), `${at}.${name}`);
    if (text) result[name] = text;
  }
  return result;
}

function readIp(source: JsonObject, index: number): IPConfig {
  const at = `ips.${index}`;
  const result: IPConfig = { address: cidrOf(lookup(source, "address"), `${at}.address`) };
  const face = numberOf(lookup(source, "interface"), `${at}.interface`);
  const gateway = ipOf(lookup(source, "gateway"), `${at}.gateway`);
  if (face !== undefined) result.interface = face;
  if (gateway) result.gateway = gateway;
  return result;
}

/** Reads a `routes` list, of a result or of an `ipam` section; `null` entries and routes without `dst` are refused. */
export function readRoutes(value: unknown, path: string): Route[] {
  return elements(value, path).map((source, index) => {
    const at = `${path}.${index}`;
    const route: Route = { dst: cidrOf(lookup(source, "dst"), `${at}.dst`) };
    const gw = ipOf(lookup(source, "gw"), `${at}.gw`);
    if (gw) route.gw = gw;
    for (const name of ["mtu", "advmss", "priority"] as const) {
      const number = numberOf(lookup(source, name), `${at}.${name}`);
      if (number) route[name] = number;
    }
    for (const name of ["table", "scope"] as const) {
      const number = numberOf(lookup(source, name), `${at}.${name}`);
      if (number !== undefined) route[name] = number;
    }
    return route;
  });
}

/** Reads a `dns` object of a configuration or a result; undefined when absent or wholly empty. */
export function readDns(value: unknown): DNS | undefined {
  if (value === undefined || value === null) return undefined;
  if (!isObject(value)) throw wrong(value, "dns", "types.DNS");
  const dns: DNS = {};
  const domain = textOf(lookup(value, "domain"), "dns.domain");
  if (domain) dns.domain = domain;
  for (const name of ["nameservers", "search", "options"] as const) {
    const items = lookup(value, name);
    if (items === undefined || items === null) continue;
    if (!Array.isArray(items)) throw wrong(items, `dns.${name}`, "[]string");
    const strings = items.map((item, index) => textOf(item, `dns.${name}.${index}`) ?? "");
    if (strings.length > 0) dns[name] = strings;
  }
  return Object.keys(dns).length > 0 ? dns : undefined;
}

function textOf(value: unknown, path: string): string | undefined {
  if (value === undefined || value === null) return undefined;
  if (typeof value !== "string") throw wrong(value, path, "string");
  return value;
}

function numberOf(value: unknown, path: string): number | undefined {
  if (value === undefined || value === null) return undefined;
  if (typeof value !== "number" || !Number.isInteger(value)) throw wrong(value, path, "int");
  return value;
}

function cidrOf(value: unknown, path: string): string {
  const cidr = textOf(value, path);
  if (cidr === undefined) throw new Misread(`${path} is missing`);
  const prefix = parsePrefix(cidr);
  if (prefix === undefined) throw new Misread(`invalid CIDR address: ${cidr}`);
  return formatPrefix(prefix);
}

function ipOf(value: unknown, path: string): string | undefined {
  const ip = textOf(value, path);
  if (ip === undefined || ip === "") return undefined;
  const canonical = canonicalAddress(ip);
  if (canonical === undefined) throw new Misread(`invalid IP address: ${ip}`);
  return canonical;
}

/** The result as an object in the layout of `confVersion` ("" is 0.1.0), keys in the order they are printed. */
export function convertResult(result: Result, confVersion: string): JsonObject {
  const version = confVersion === "" ? "0.1.0" : confVersion;
  const { interfaces = [], ips = [], routes = [], dns } = result;
  switch (familyOf(version)) {
    case "sorted":
      return {
        cniVersion: version,
        ...(dns && Object.keys(dns).length > 0 && { dns: picked(dns, ["domain", "nameservers", "options", "search"]) }),
        ...(interfaces.length > 0 && {
          interfaces: interfaces.map((one) =>
            picked({ ...one, mtu: one.mtu || undefined }, ["mac", "mtu", "name", "pciID", "sandbox", "socketPath"], [
              "name",
            ])
          ),
        }),
        ...(ips.length > 0 && { ips: ips.map((one) => picked(one, ["address", "gateway", "interface"])) }),
        ...(routes.length > 0 && {
          routes: routes.map((one) => routeOf(one, ["advmss", "dst", "gw", "mtu", "priority", "scope", "table"])),
        }),
      };
    case "versioned":
      return {
        cniVersion: version,
        ...(interfaces.length > 0 &&
          { interfaces: interfaces.map((one) => picked(one, ["name", "mac", "sandbox"], ["name"])) }),
        ...(ips.length > 0 && {
          ips: ips.map((one) => ({
            version: isV6(one.address) ? "6" : "4",
            ...picked(one, ["interface", "address", "gateway"]),
          })),
        }),
        ...(routes.length > 0 && { routes: routes.map((one) => routeOf(one, ROUTE_KEYS)) }),
        dns: dnsOf(dns),
      };
    case "ip4/ip6": {
      const four = ips.find((one) => !isV6(one.address));
      const six = ips.find((one) => isV6(one.address));
      if (!four && !six) throw internal("cannot convert: no valid IP addresses");
      const part = (one: IPConfig, v6: boolean) => {
        const own = routes.filter((route) => isV6(route.dst) === v6);
        return {
          ip: one.address,
          ...(one.gateway && { gateway: one.gateway }),
          ...(own.length > 0 && { routes: own.map(({ dst, gw }) => ({ dst, ...(gw && { gw }) })) }),
        };
      };
      return {
        cniVersion: version,
        ...(four && { ip4: part(four, false) }),
        ...(six && { ip6: part(six, true) }),
        dns: dnsOf(dns),
      };
    }
  }
  throw internal(`no converter for CNI result version ${NEWEST} to ${version}`);
}

const ROUTE_KEYS = ["dst", "gw", "mtu", "advmss", "priority", "table", "scope"] as const;

function routeOf(route: Route, keys: readonly (keyof Route)[]): JsonObject {
  return picked({
    ...route,
    mtu: route.mtu || undefined,
    advmss: route.advmss || undefined,
    priority: route.priority || undefined,
  }, keys);
}

function dnsOf(dns: DNS | undefined): JsonObject {
  return picked(dns ?? {}, ["nameservers", "domain", "search", "options"]);
}

function isV6(cidr: string): boolean {
  return cidr.includes(":");
}

/** The named keys in that order; empty strings and lists and absent values are left out, except for `always`. */
function picked<T extends object>(
  source: T,
  keys: readonly (keyof T & string)[],
  always: readonly string[] = [],
): JsonObject {
  const result: JsonObject = {};
  for (const key of keys) {
    const value = source[key];
    const empty = value === undefined || value === "" || (Array.isArray(value) && value.length === 0);
    if (!empty || always.includes(key)) result[key] = value ?? "";
  }
  return result;
}

/** JSON as Go's encoder writes it: `<`, `>`, `&` and the two line separators are escaped. */
export function goJson(value: unknown, indent = 0): string {
  return JSON.stringify(value, undefined, indent).replace(
    /[<>&\u2028\u2029]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** Is this one of the protocol's versions? */
export function isKnownVersion(version: string): boolean {
  return (VERSIONS as readonly string[]).includes(version);
}
