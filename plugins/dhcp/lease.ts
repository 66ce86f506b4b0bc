/**
 * One lease as the DHCP client reports it, and what a plugin makes of it. Pure.
 *
 * @module
 */
import type { Result, Route } from "../../lib/cni/types.ts";
import { formatAddress, formatPrefix, networkPrefix, parseAddress, parsePrefix } from "../../lib/net/cidr.ts";
import { type ClientOptions, identifierOption, type Owner } from "./options.ts";

/** Something that happened to a client, as its hook wrote it down. */
export interface ClientEvent {
  readonly event: string;
  /** The client's variables: what the server sent, by udhcpc's names. */
  readonly vars: ReadonlyMap<string, string>;
  /** When, in seconds since the machine started. */
  readonly uptime: number;
}

/**
 * Reads what the hook wrote: `event=NAME`, the client's whole environment, `uptime=SECONDS IDLE`, each ended by a NUL
 * byte except the last. Undefined when it is not whole.
 */
export function parseEvent(bytes: Uint8Array): ClientEvent | undefined {
  const entries = new TextDecoder().decode(bytes).split("\0");
  const first = entries[0] ?? "";
  const last = /^uptime=(\d+(?:\.\d+)?) /.exec(entries.at(-1) ?? "")?.[1];
  if (!first.startsWith("event=") || last === undefined || entries.length < 3) return undefined;
  const vars = new Map<string, string>();
  for (const entry of entries.slice(1, -1)) {
    const at = entry.indexOf("=");
    if (at > 0) vars.set(entry.slice(0, at), entry.slice(at + 1));
  }
  return { event: first.slice(6), vars, uptime: Number(last) };
}

/** A lease that a server gave. */
export interface Lease {
  /** The address with the prefix length of its subnet. */
  readonly address: string;
  /** Server that gave it; "" when it did not say. */
  readonly server: string;
  /** Seconds from `since`; infinite leases are Infinity. */
  readonly seconds: number;
  /** Seconds from `since` after which the client asks its server again; never above `seconds`. */
  readonly renewAfter: number;
  /** Uptime of the machine when it was given or last renewed, in seconds. */
  readonly since: number;
  readonly vars: ReadonlyMap<string, string>;
}

/** Lease time without option 51, in seconds. */
const DEFAULT_SECONDS = 3600;
const INFINITE = 0xffff_ffff;

/** Why an answer is no lease that a plugin can use; the reference's words. */
export class LeaseError extends Error {
  override readonly name = "LeaseError";
}

/**
 * The lease in a `bound` or `renew` event.
 *
 * @throws {LeaseError} when the server sent no address or no subnet mask
 */
export function leaseOf({ vars, uptime }: ClientEvent): Lease {
  const ip = parseAddress(vars.get("ip") ?? "");
  if (ip?.family !== 4) throw new LeaseError(`DHCP server sent no usable address: "${vars.get("ip") ?? ""}"`);
  const mask = parseAddress(vars.get("subnet") ?? "");
  if (mask?.family !== 4) throw new LeaseError("DHCP option Subnet Mask not found in DHCPACK");
  const bits = mask.value.toString(2).padStart(32, "0");
  const length = bits.indexOf("0") < 0 ? 32 : bits.indexOf("0");
  if (bits.lastIndexOf("1") >= length) throw new LeaseError(`DHCP option Subnet Mask has gaps: ${vars.get("subnet")}`);
  const given = vars.has("lease") ? Number(vars.get("lease")) : DEFAULT_SECONDS;
  const seconds = given >= INFINITE ? Infinity : Number.isFinite(given) && given > 0 ? given : DEFAULT_SECONDS;
  // Option 58; what lies beyond the lease's end is a server's mistake.
  const asked = /^[0-9a-f]{8}$/i.test(vars.get("opt58") ?? "") ? parseInt(vars.get("opt58") ?? "", 16) : 0;
  const renewAfter = asked > 0 && asked < INFINITE && asked < seconds ? asked : seconds / 2;
  return {
    address: formatPrefix({ address: ip, length }),
    server: vars.get("serverid") ?? "",
    seconds,
    renewAfter,
    since: uptime,
    vars,
  };
}

/** What the configuration has to say about a result. */
export interface ResultOptions {
  /** Metric of every route; 0 is none. */
  readonly priority: number;
  /** Numbers of the options that the configuration lists, see {@linkcode clientOptions}. */
  readonly listed: readonly number[];
}

/** The reference knows the scope of a route without gateway by this number: "link". */
const SCOPE_LINK = 253;

/**
 * What ADD answers for a lease: one address, its routes and, if the configuration asked for such options, resolver
 * settings.
 */
export function leaseResult({ address, vars }: Lease, { priority, listed }: ResultOptions): Result {
  const gateway = routers(vars)[0];
  const routes = routesOf(vars).map((route) => priority === 0 ? route : { ...route, priority });
  const words = (name: string, option: number) =>
    listed.includes(option) ? (vars.get(name) ?? "").split(/\s+/).filter((word) => word !== "") : [];
  const nameservers = words("dns", 6).filter((word) => parseAddress(word) !== undefined);
  const [domain] = words("domain", 15);
  const search = words("search", 119);
  const dns = {
    ...(nameservers.length > 0 && { nameservers }),
    ...(domain !== undefined && { domain }),
    ...(search.length > 0 && { search }),
  };
  return {
    ips: [{ address, ...(gateway !== undefined && { gateway }) }],
    ...(routes.length > 0 && { routes }),
    ...(Object.keys(dns).length > 0 && { dns }),
  };
}

function routers(vars: ReadonlyMap<string, string>): string[] {
  return (vars.get("router") ?? "").split(/\s+/).flatMap((word) => {
    const address = parseAddress(word);
    return address?.family === 4 ? [formatAddress(address)] : [];
  });
}

/**
 * Option 121 alone when it is there and can be read; else option 33 and a default route through the first router (RFC
 * 3442).
 */
function routesOf(vars: ReadonlyMap<string, string>): Route[] {
  const classless = classlessRoutes(vars.get("staticroutes") ?? "");
  if (classless.length > 0) return classless;
  const routes = classfulRoutes(vars.get("routes") ?? "");
  const [router] = routers(vars);
  if (router !== undefined) routes.push({ dst: "0.0.0.0/0", gw: router });
  return routes;
}

/** udhcpc writes option 121 as `DESTINATION/LENGTH ROUTER` again and again; [] when anything in it cannot be read. */
function classlessRoutes(text: string): Route[] {
  const words = text.split(/\s+/).filter((word) => word !== "");
  const routes: Route[] = [];
  for (let at = 0; at < words.length; at += 2) {
    const dst = parsePrefix(words[at] ?? "");
    const gw = parseAddress(words[at + 1] ?? "");
    if (dst?.address.family !== 4 || gw?.family !== 4) return [];
    const route: Route = { dst: formatPrefix(networkPrefix(dst)), gw: formatAddress(gw) };
    routes.push(gw.value === 0n ? { ...route, scope: SCOPE_LINK } : route);
  }
  return routes;
}

/**
 * udhcpc writes option 33 as `DESTINATION/ROUTER`; the mask is that of the destination's class (RFC 2132 section 5.8).
 */
function classfulRoutes(text: string): Route[] {
  return text.split(/\s+/).flatMap((word) => {
    const [to, via] = word.split("/");
    const dst = parseAddress(to ?? "");
    const gw = parseAddress(via ?? "");
    if (dst?.family !== 4 || gw?.family !== 4) return [];
    const first = Number(dst.value >> 24n);
    const length = first < 128 ? 8 : first < 192 ? 16 : first < 224 ? 24 : 32;
    return [{ dst: formatPrefix(networkPrefix({ address: dst, length })), gw: formatAddress(gw) }];
  });
}

/** How a client is run, beside its options. */
export interface ClientSettings {
  /** `-broadcast`: servers are asked to broadcast their answers. */
  readonly broadcast: boolean;
  /** `-timeout`: wait for one answer, in milliseconds. */
  readonly timeoutMs: number;
  /** The address to ask for; "" for any. */
  readonly address: string;
  /** Where the client writes its process ID, an absolute path: this also marks it as ours in the process list. */
  readonly pidFile: string;
}

/** Sends per round. */
const SENDS = 3;

/**
 * Arguments of BusyBox udhcpc (1.35 and newer) after its name. Its hook is the shell: udhcpc runs `sh EVENT` in the
 * folder that it was started in, where a file of that name lies, which need not be on a file system that allows
 * programs.
 */
export function udhcpcArgs(owner: Owner, options: ClientOptions, settings: ClientSettings): string[] {
  // An answer that is late still counts, so asking again early costs nothing; a first packet is easily lost on a new
  // link.
  const wait = Math.min(3, Math.max(1, Math.round(settings.timeoutMs / 1000)));
  const pause = Math.min(20, Math.max(1, Math.round(settings.timeoutMs / 500)));
  const args = ["-f", "-i", owner.ifName, "-s", "/bin/sh", "-p", settings.pidFile];
  args.push("-t", String(SENDS), "-T", String(wait), "-A", String(pause));
  // Release the lease on SIGTERM; no vendor class and no client identifier but ours.
  args.push("-R", "-V", "", "-C", "-x", `0x3d:${hex(identifierOption(owner, options))}`);
  for (const [number, content] of options.send) {
    // udhcpc has no way to send an option without content.
    if (number !== 61 && content.length > 0) args.push("-x", `0x${number.toString(16)}:${hex(content)}`);
  }
  // -o: nothing of its own list. Subnet mask and lease times are asked for whatever else is.
  args.push("-o");
  for (const number of options.ask) args.push("-O", String(number));
  if (settings.broadcast) args.push("-B");
  if (settings.address !== "") args.push("-r", settings.address);
  return args;
}

/** Bytes as udhcpc takes them: two hexadecimal digits for each. */
export function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
