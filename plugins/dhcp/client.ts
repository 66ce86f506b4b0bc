/**
 * One DHCP client and its folder on disk: started, stopped, found again. The client is a process of its own that lives
 * in the container's network namespace; it renews the lease by itself, whether the daemon runs or not.
 *
 *     /run/cni/dhcp/                    beside the socket, for the socket /run/cni/dhcp.sock
 *       lock                            held by the daemon
 *       wake                            FIFO: hooks tell the daemon what happened
 *       hook/bound renew deconfig …     what a client runs at its events: all the same text
 *       0f5c…/                          one attachment, named by a digest of its client identifier
 *         record.json                   whose it is, and how to start its client again
 *         lease                         the last lease, as the client reported it
 *         pid log                       the client's own
 *         routes                        what was on the link when the lease ran out
 *
 * @module
 */
import { CniError, code } from "../../lib/cni/error.ts";
import { isObject } from "../../lib/cni/decode.ts";
import { answersOf, runLines } from "../../lib/kernel/batch.ts";
import { commandLine, signal, startBackground } from "../../lib/kernel/background.ts";
import { namesOf, readRegular, readRegularText, removeIfThere } from "../../lib/kernel/regular_file.ts";
import { replaceFile } from "../../lib/kernel/state_file.ts";
import { addrAdd, addrDel, addrShow, type Link, linkUp } from "../../lib/kernel/ip.ts";
import { fileIdentity, readKernelFile } from "../../lib/kernel/proc.ts";
import { failureText, inNetns, type Run } from "../../lib/kernel/run.ts";
import { formatAddress, parseAddress, parsePrefix, prefixContains } from "../../lib/net/cidr.ts";
import { sameAttachment } from "../../lib/net/name.ts";
import { sha512 } from "../../lib/net/sha512.ts";
import { clientId, type ClientOptions, type Owner } from "./options.ts";
import { type ClientEvent, type Lease, leaseOf, parseEvent, udhcpcArgs } from "./lease.ts";

/** What is written down about an attachment; survives the daemon. */
export interface LeaseRecord extends Owner {
  /** Path of the namespace as this process sees it. */
  readonly netns: string;
  /** Device and inode of the namespace: a path may lead to another one later. */
  readonly netnsIdentity: string;
  /** Uptimes and namespaces mean nothing after a reboot. */
  readonly bootId: string;
  /** The link as it was when its lease was asked for; 0 and "" before. */
  readonly ifindex: number;
  readonly mac: string;
  readonly options: ClientOptions;
  readonly priority: number;
  readonly broadcast: boolean;
  readonly timeoutMs: number;
  /** Address with prefix length that ADD answered; "" while the first lease is being asked for. */
  readonly address: string;
  /** The lease ran out, and the address was taken off the link. */
  readonly suspended: boolean;
}

/** Folder of the daemon that listens on this socket. */
export function stateFolder(socketPath: string): string {
  return socketPath.endsWith(".sock") ? socketPath.slice(0, -5) : `${socketPath}.d`;
}

/** Folder of one attachment: the same for attachments that servers cannot tell apart. */
export function leaseFolder(state: string, owner: Owner): string {
  return `${state}/${sha512(new TextDecoder().decode(clientId(owner))).slice(0, 32)}`;
}

/** Folders of all attachments. */
export function leaseFolders(state: string): string[] {
  return namesOf(state).filter((name) => /^[0-9a-f]{32}$/.test(name)).map((name) => `${state}/${name}`);
}

/** Writes the record; it appears whole or not at all. */
export function writeRecord(folder: string, record: LeaseRecord): void {
  const send = Object.fromEntries([...record.options.send].map(([number, bytes]) => [number, [...bytes]]));
  replaceFile(
    `${folder}/record.json`,
    JSON.stringify({ version: 1, ...record, options: { send, ask: record.options.ask } }),
  );
}

/** The record of a folder; undefined when there is none, or none that this program wrote. */
export function readRecord(folder: string): LeaseRecord | undefined {
  try {
    const value: unknown = JSON.parse(readRegularText(`${folder}/record.json`));
    if (!isObject(value) || value["version"] !== 1) return undefined;
    const texts = ["containerId", "network", "ifName", "netns", "netnsIdentity", "bootId", "mac", "address"];
    if (!texts.every((name) => typeof value[name] === "string")) return undefined;
    const { send, ask } = value["options"] as { send: Record<string, number[]>; ask: number[] };
    const options = {
      send: new Map(Object.entries(send).map(([number, bytes]) => [Number(number), Uint8Array.from(bytes)])),
      ask: ask.map(Number),
    };
    const { version: _, ifindex, priority, broadcast, timeoutMs, suspended, ...rest } = value;
    return {
      ...rest as unknown as LeaseRecord,
      options,
      ifindex: Number(ifindex),
      priority: Number(priority),
      broadcast: broadcast === true,
      timeoutMs: Number(timeoutMs),
      suspended: suspended === true,
    };
  } catch {
    return undefined;
  }
}

/** The last event that brought a lease; undefined before the first. */
export function readLeaseEvent(folder: string): ClientEvent | undefined {
  try {
    return parseEvent(readRegular(`${folder}/lease`));
  } catch {
    return undefined;
  }
}

/** The lease in a folder; undefined when there is none that can be used. */
export function readLease(folder: string): Lease | undefined {
  const event = readLeaseEvent(folder);
  try {
    return event && leaseOf(event);
  } catch {
    return undefined;
  }
}

/** Seconds that a lease has left; 0 or less when it ran out. */
export function secondsLeft(lease: Lease): number {
  return lease.since + lease.seconds - Deno.osUptime();
}

/** What identifies the running kernel and a namespace in it. */
export function bootId(): string {
  return readKernelFile("/proc/sys/kernel/random/boot_id").trim();
}

/** Device and inode of a namespace; "" when there is none. */
export function netnsIdentity(path: string): string {
  try {
    const { dev, ino } = fileIdentity(path);
    return `${dev}:${ino}`;
  } catch {
    return "";
  }
}

/** What clients run at their events. */
const EVENTS = ["deconfig", "bound", "renew", "nak", "leasefail"];

/**
 * Writes a lease down, whole or not at all, and wakes the daemon if one listens; opening the FIFO for both directions
 * never waits. The environment is copied byte by byte: what a server sent is never read by a shell. The client waits
 * for this, so it starts as little as it can.
 */
const HOOK = `umask 077
event=\${0##*/}
IFS= read -r uptime </proc/uptime
case $event in
bound | renew)
  {
    printf 'event=%s\\000' "$event" && cat "/proc/$$/environ" && printf 'uptime=%s\\n' "$uptime"
  } >"$CNIBOX_LEASE/.$$" && mv -f "$CNIBOX_LEASE/.$$" "$CNIBOX_LEASE/lease"
  ;;
esac
if [ -p ../wake ]; then printf '%s %s %s\\n' "\${CNIBOX_LEASE##*/}" "$event" "$uptime" 1<>../wake; fi
`;

/**
 * Makes the folder of a daemon, with the hook in it. Throws when others could write there: root runs what lies in it.
 */
export function prepareState(state: string): void {
  Deno.mkdirSync(`${state}/hook`, { recursive: true, mode: 0o700 });
  for (const folder of [state, `${state}/hook`]) {
    const { uid, mode, isSymlink } = Deno.lstatSync(folder);
    if (isSymlink || uid !== Deno.uid() || ((mode ?? 0) & 0o022) !== 0) {
      throw new Error(`${folder} belongs to somebody else, or others may write to it: remove it`);
    }
  }
  for (const event of EVENTS) {
    const path = `${state}/hook/${event}`;
    let present = "";
    try {
      present = readRegularText(path);
    } catch {
      // Not there yet.
    }
    if (present !== HOOK) replaceFile(path, HOOK);
  }
}

/** Starts the client of a record in its namespace. `address` is asked for; "" for any. */
export function startClient(
  folder: string,
  record: LeaseRecord,
  { client, address }: { readonly client: readonly string[]; readonly address: string },
): { readonly pid: number; readonly ended: Promise<void> } {
  const pidFile = `${folder}/pid`;
  const settings = {
    broadcast: record.broadcast,
    timeoutMs: record.timeoutMs,
    address: address.replace(/\/.*/, ""),
    pidFile,
  };
  removeIfThere(pidFile);
  return startBackground([...client, ...udhcpcArgs(record, record.options, settings)], {
    cwd: `${folder.slice(0, folder.lastIndexOf("/"))}/hook`,
    env: { CNIBOX_LEASE: folder },
    log: `${folder}/log`,
    netns: record.netns,
  });
}

/** Process ID of the living client of a folder; undefined when there is none. */
export function clientPid(folder: string): number | undefined {
  try {
    const pid = Number(readRegularText(`${folder}/pid`).trim());
    return pid > 1 && isClient(pid, folder) ? pid : undefined;
  } catch {
    return undefined;
  }
}

/** Is this process the client of this folder? Process IDs are used again, command lines tell. */
export function isClient(pid: number, folder: string): boolean {
  return commandLine(pid).split("\0").includes(`${folder}/pid`);
}

/** The last words of a client, for errors. */
export function clientWords(folder: string): string {
  try {
    return readRegularText(`${folder}/log`).trim().split("\n").slice(-3).join("; ");
  } catch {
    return "";
  }
}

/** How long a client may take to release its lease, in milliseconds. */
const STOP_LIMIT_MS = 2000;

/** What stopping a client needs. */
export interface StopOptions {
  /** Resolves when it has ended, for one that this process started. */
  readonly ended?: Promise<void> | undefined;
  readonly host: Run;
  readonly warn: (note: string) => void;
  /** Known process ID, when the client has not written its own yet. */
  readonly pid?: number | undefined;
}

/**
 * Stops a client, which returns its lease to the server; then removes its folder. Succeeds whatever is left. A
 * client that no longer has link or address cannot return anything: that is reported, and the lease runs out by itself.
 */
export async function stopClient(folder: string, record: LeaseRecord | undefined, options: StopOptions): Promise<void> {
  const pid = clientPid(folder) ??
    (options.pid !== undefined && isClient(options.pid, folder) ? options.pid : undefined);
  if (pid !== undefined) {
    const lease = releasable(folder);
    const added = lease && record ? await prepareRelease(record, lease, options) : false;
    signal(pid, "SIGTERM");
    const limit = performance.now() + STOP_LIMIT_MS;
    const { ended } = options;
    for (let pause = 4; isClient(pid, folder) && performance.now() < limit; pause = Math.min(pause * 2, 100)) {
      await (ended ? Promise.race([ended, sleep(limit - performance.now())]) : sleep(pause));
    }
    if (isClient(pid, folder)) {
      options.warn(`DHCP client ${pid} did not end: killed`);
      signal(pid, "SIGKILL");
      while (isClient(pid, folder)) await sleep(10);
    }
    if (added && lease && record) await ip(record, options.host, [addrDel(lease.address, record.ifName)]);
  }
  // A hook may be writing its last event.
  for (let tries = 0;; tries++) {
    try {
      Deno.removeSync(folder, { recursive: true });
      return;
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return;
      if (tries === 5) throw error;
      await sleep(20);
    }
  }
}

/** What can be released: also a lease that is of no use to a plugin, for want of a subnet mask. */
function releasable(folder: string): Pick<Lease, "address" | "server" | "vars"> | undefined {
  const lease = readLease(folder);
  if (lease) return lease;
  const vars = readLeaseEvent(folder)?.vars;
  const address = vars?.get("ip") ?? "";
  if (!vars || parseAddress(address)?.family !== 4) return undefined;
  return { address: `${address}/32`, server: vars.get("serverid") ?? "", vars };
}

/**
 * The release goes from the leased address to the server (RFC 2131 section 4.4.6), so both must be possible. Between a
 * failed ADD and its DEL nobody has put the address on the link: then this does. True when it did.
 */
async function prepareRelease(
  record: LeaseRecord,
  { address, server, vars }: Pick<Lease, "address" | "server" | "vars">,
  { host, warn }: StopOptions,
): Promise<boolean> {
  const { ifName } = record;
  const { failure, answers } = await ip(record, host, [addrShow(ifName)]);
  const link = answers[0]?.[0] as Link | undefined;
  if (failure !== "" || !link) {
    warn(
      `failed to send DHCPRELEASE: ${address} stays taken on the server until its lease runs out: ` +
        `${ifName}: ${failure || "Link not found"}`,
    );
    return false;
  }
  if (link.addr_info?.some((one) => one.local === address.replace(/\/.*/, ""))) return false;
  const lines = [linkUp(ifName), addrAdd(address, ifName)];
  const subnet = parsePrefix(address);
  const to = parseAddress(server);
  if (subnet && to && !prefixContains(subnet, to)) {
    const router = parseAddress((vars.get("router") ?? "").split(/\s+/)[0] ?? "");
    const via = router && prefixContains(subnet, router) ? ` via ${formatAddress(router)}` : "";
    lines.push(`route replace ${formatAddress(to)}/32${via} dev ${ifName}`);
  }
  const { failure: refused } = await ip(record, host, lines);
  if (refused !== "") warn(`failed to send DHCPRELEASE from ${address}: ${refused}`);
  return refused === "";
}

/** Lines of `ip -batch` in an attachment's namespace; `failure` has the tool's words when it stopped. */
export async function ip(
  { netns }: LeaseRecord,
  host: Run,
  lines: readonly string[],
): Promise<{ readonly failure: string; readonly answers: unknown[][] }> {
  try {
    const output = await runLines(inNetns(host, netns), ["ip", "-j", "-d"], lines);
    return { failure: output.code === 0 ? "" : failureText(output), answers: answersOf(output.stdout) };
  } catch (error) {
    return { failure: (error as Error).message, answers: [] };
  }
}

/**
 * For callers without a daemon: ends what it left of one attachment.
 *
 * @throws {CniError} code 11 when the folder cannot be removed
 */
export async function releaseWithoutDaemon(state: string, owner: Owner, options: StopOptions): Promise<boolean> {
  const folder = leaseFolder(state, owner);
  const record = readRecord(folder);
  if (record === undefined && clientPid(folder) === undefined) return false;
  if (record && !sameAttachment(record, owner)) return false;
  try {
    await stopClient(folder, record, options);
  } catch (error) {
    throw new CniError(code.tryAgain, `could not remove ${folder}: ${(error as Error).message}`);
  }
  return true;
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
