/**
 * `dhcp daemon`: keeps the DHCP leases of this node's containers. It answers the plugin's calls and watches over one DHCP
 * client per attachment; those outlive it, and the next daemon finds them again (dhcp_client.ts says where).
 *
 * @module
 */
import { decode, isObject, lookup } from "../cni/decode.ts";
import { CniError, code } from "../cni/error.ts";
import { openNetns } from "../cni/netns.ts";
import type { JsonObject, Result } from "../cni/types.ts";
import { signal, startSocketProxy } from "../kernel/background.ts";
import { addrAdd, addrDel, type Link, linkShow, linkUp } from "../kernel/ip.ts";
import { inNetns, must, type Run, systemRun } from "../kernel/run.ts";
import { type Acceptor, connectUnix, inheritedListener, listenUnix, SocketError } from "../kernel/unix_socket.ts";
import {
  bootId,
  clientPid,
  clientWords,
  findClient,
  ip,
  isClient,
  leaseFolder,
  leaseFolders,
  type LeaseRecord,
  netnsIdentity,
  prepareState,
  readLease,
  readLeaseEvent,
  readRecord,
  sameOwner,
  secondsLeft,
  sleep,
  startClient,
  stateFolder,
  stopClient,
  writeRecord,
} from "./dhcp_client.ts";
import { type DaemonFlags, daemonFlags, FlagError } from "./dhcp_flags.ts";
import { type Lease, LeaseError, leaseOf, leaseResult } from "./dhcp_lease.ts";
import { clientOptions, dhcpKeys, type Owner } from "./dhcp_options.ts";
import { type CmdArgs, RpcError, serve } from "./dhcp_rpc.ts";
import { lockFolder } from "./lock.ts";

/** Runs the daemon until it is told to stop; returns the exit status. `args` are its flags. */
export async function daemonMain(args: readonly string[]): Promise<number> {
  let flags: DaemonFlags;
  try {
    flags = daemonFlags(args);
  } catch (error) {
    if (!(error instanceof FlagError)) throw error;
    write(error.text);
    return error.status;
  }
  const stopped = new Promise<void>((resolve) => {
    for (const name of ["SIGTERM", "SIGINT"] as const) Deno.addSignalListener(name, () => resolve());
  });
  // A terminal that goes away, and log readers that do.
  Deno.addSignalListener("SIGHUP", () => {});
  try {
    await using daemon = await Daemon.start(flags);
    log(`listening on ${flags.hostPrefix}${flags.socketPath}, ${daemon.size} leases taken over`);
    await stopped;
    return 0;
  } catch (error) {
    log((error as Error).message);
    return 1;
  }
}

/** How often netns, clients and lease files are looked at, in seconds: for what nobody tells us. */
const SWEEP_SECONDS = 15;

class Daemon implements AsyncDisposable {
  readonly #leases = new Map<string, Attachment>();
  readonly #closing: (() => unknown)[] = [];
  readonly host: Run = systemRun();

  private constructor(
    readonly flags: DaemonFlags,
    readonly state: string,
    readonly client: readonly string[],
    readonly bootId: string,
  ) {}

  get size(): number {
    return this.#leases.size;
  }

  static async start(flags: DaemonFlags): Promise<Daemon> {
    const path = flags.hostPrefix + flags.socketPath;
    if (flags.pidFile !== "" && !flags.pidFile.startsWith("/")) {
      throw new Error(`Error writing pidfile ${JSON.stringify(flags.pidFile)}: path not absolute`);
    }
    const client = await findClient(systemRun());
    if (client === undefined) {
      throw new Error(
        'no DHCP client: exec: "udhcpc": executable file not found in $PATH; install BusyBox with its udhcpc (Debian: busybox or udhcpc)',
      );
    }
    const state = stateFolder(path);
    prepareState(state);
    const daemon = new Daemon(flags, state, client, bootId());
    try {
      await daemon.#open(path);
      return daemon;
    } catch (error) {
      await daemon[Symbol.asyncDispose]();
      throw error;
    }
  }

  async #open(path: string): Promise<void> {
    const { pidFile } = this.flags;
    // One daemon per folder, whatever the socket: it is given back by the kernel when this process ends.
    const lock = await lockFolder(this.state, { limitMs: LOCK_WAIT_MS }).catch((error) => {
      throw new Error(`Error getting listener: listen unix ${path}: bind: address already in use: ${error.message}`);
    });
    this.#closing.push(() => lock.close());
    if (pidFile !== "") {
      try {
        Deno.writeTextFileSync(pidFile, String(Deno.pid), { mode: 0o644 });
      } catch (error) {
        throw new Error(`Error writing pidfile ${JSON.stringify(pidFile)}: ${(error as Error).message}`);
      }
      this.#closing.push(() => Deno.removeSync(pidFile));
    }
    await this.#listenToHooks();
    await this.#adopt();
    const acceptor = await this.#listen(path);
    this.#closing.push(() => acceptor.close());
    serve(acceptor, {
      "DHCP.Allocate": (args) => this.allocate(args),
      "DHCP.Release": (args) => this.release(args),
    }, log);
    let second = 0;
    const timer = setInterval(() => {
      const sweep = ++second % SWEEP_SECONDS === 0;
      for (const lease of this.#leases.values()) lease.tick(sweep);
    }, 1000);
    this.#closing.push(() => clearInterval(timer));
  }

  /** systemd's socket when it gave one, else our own. */
  async #listen(path: string): Promise<Acceptor> {
    const passed = Deno.env.get("LISTEN_PID") === String(Deno.pid) ? Number(Deno.env.get("LISTEN_FDS") ?? 0) : 0;
    if (passed > 1) {
      throw new Error(`Error getting listener: Too many (${passed}) FDs passed through socket activation`);
    }
    if (passed === 1) {
      try {
        return await inheritedListener(3);
      } catch (error) {
        if (!(error instanceof SocketError)) throw error;
      }
      // Deno before 2.9 cannot take it: systemd's own relay accepts there and passes on to a socket of ours.
      const inner = `${this.state}/daemon.sock`;
      const acceptor = await listenUnix(inner);
      const stop = startSocketProxy(inner, `${this.state}/proxy.pid`);
      this.#closing.push(stop);
      return acceptor;
    }
    // The lock keeps our own kind away; this finds the reference's daemon.
    try {
      (await connectUnix(path)).close();
    } catch (error) {
      if (!(error instanceof SocketError)) throw error;
      try {
        const acceptor = await listenUnix(path);
        this.#closing.push(() => Deno.removeSync(path));
        return acceptor;
      } catch (error) {
        throw new Error(`Error getting listener: listen unix ${path}: bind: ${(error as Error).message}`);
      }
    }
    throw new Error(`Error getting listener: listen unix ${path}: bind: address already in use`);
  }

  /** Hooks write one line each into a FIFO, which is held open for writing too, so that it never ends. */
  async #listenToHooks(): Promise<void> {
    const path = `${this.state}/wake`;
    try {
      Deno.removeSync(path);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
    await must(this.host, { argv: ["mkfifo", "-m", "600", "--", path] });
    const fifo = Deno.openSync(path, { read: true, write: true });
    (async () => {
      const buffer = new Uint8Array(4096);
      let rest = "";
      for (;;) {
        const count = await fifo.read(buffer);
        if (count === null) continue;
        const lines = (rest + new TextDecoder().decode(buffer.subarray(0, count))).split("\n");
        rest = lines.pop() ?? "";
        for (const line of lines) {
          const [name = "", event = "", uptime = ""] = line.split(" ");
          for (const lease of this.#leases.values()) {
            if (lease.folder.endsWith(`/${name}`)) lease.happened(event, Number(uptime));
          }
        }
      }
    })().catch((error) => log(`${path}: ${error.message}; lease files are read every ${SWEEP_SECONDS} s`));
  }

  /** Goes on with what an earlier daemon left. */
  async #adopt(): Promise<void> {
    await Promise.all(
      leaseFolders(this.state).map(async (folder) => {
        const record = readRecord(folder);
        const why = record === undefined
          ? "its record cannot be read"
          : record.bootId !== this.bootId
          ? "it is from before the last boot"
          : record.address === ""
          ? "its ADD was interrupted"
          : netnsIdentity(record.netns) !== record.netnsIdentity
          ? `its namespace ${record.netns} is gone`
          : undefined;
        if (record === undefined || why !== undefined) {
          log(`${nameOf(record) || folder}: dropped: ${why}`);
          try {
            await stopClient(folder, record, { host: this.host, warn: log });
          } catch (error) {
            log(`${folder}: ${(error as Error).message}`);
          }
          return;
        }
        const lease = new Attachment(this, folder, record);
        this.#leases.set(folder, lease);
        lease.adopt();
      }),
    );
  }

  /** The first half of ADD; CHECK too asks for the lease. */
  async allocate(args: CmdArgs): Promise<Result> {
    const { owner, config } = this.#ownerOf(args);
    const conf = decode(dhcpKeys, config, "error parsing netconf").ipam;
    if (!conf) throw new CniError(code.config, "error parsing netconf: ipam is missing");
    const options = clientOptions(conf, args.Args);
    const folder = leaseFolder(this.state, owner);
    const netns = this.flags.hostPrefix + args.Netns;
    for (;;) {
      const known = this.#leases.get(folder);
      if (known === undefined) break;
      if (known.ending) {
        await known.ending;
        continue;
      }
      if (!sameOwner(known.record, owner)) {
        throw new RpcError(
          `the client identifier of ${nameOf(owner)} is taken by ${nameOf(known.record)}`,
          "identifiers are cut after 254 bytes; shorten the network's name or the container's ID",
        );
      }
      const { netnsIdentity: before } = known.record;
      if (netnsIdentity(netns) === before) return await known.current(leaseLimit(this.flags));
      await known.end(`its namespace ${known.record.netns} was replaced`);
    }
    const fresh = new Attachment(this, folder, {
      ...owner,
      netns,
      netnsIdentity: netnsIdentity(netns),
      bootId: this.bootId,
      mac: "",
      options,
      priority: conf.priority,
      broadcast: this.flags.broadcast,
      timeoutMs: this.flags.timeoutMs,
      address: "",
      suspended: false,
    });
    this.#leases.set(folder, fresh);
    try {
      return await fresh.acquire(leaseLimit(this.flags), wantedAddress(config));
    } catch (error) {
      await fresh.end("", error as Error);
      throw withDetails(error);
    }
  }

  /** DEL: gives the lease back; knowing nothing of it is success. */
  async release(args: CmdArgs): Promise<undefined> {
    const { owner } = this.#ownerOf(args);
    const known = this.#leases.get(leaseFolder(this.state, owner));
    if (known && sameOwner(known.record, owner)) await known.end("");
  }

  #ownerOf(args: CmdArgs): { readonly owner: Owner; readonly config: JsonObject } {
    let config: unknown;
    try {
      config = JSON.parse(new TextDecoder().decode(args.StdinData));
    } catch (error) {
      throw new RpcError(`error parsing netconf: ${(error as Error).message}`);
    }
    if (!isObject(config)) throw new RpcError("error parsing netconf: it is no object");
    const network = lookup(config, "name");
    const owner = {
      containerId: args.ContainerID,
      network: typeof network === "string" ? network : "",
      ifName: args.IfName,
    };
    return { owner, config };
  }

  forget(lease: Attachment): void {
    if (this.#leases.get(lease.folder) === lease) this.#leases.delete(lease.folder);
  }

  /** Stops listening. Clients and what is known of them stay. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const job of this.#closing.reverse()) {
      try {
        await job();
      } catch (error) {
        if (!(error instanceof Deno.errors.NotFound)) log((error as Error).message);
      }
    }
  }
}

/** A daemon that is just ending gives its lock back within this many milliseconds. */
const LOCK_WAIT_MS = 500;

function leaseLimit(flags: DaemonFlags): number {
  return Math.max(1000, flags.resendTimeoutMs);
}

/** CHECK of a container that this daemon does not know brings the address along that it has. */
function wantedAddress(config: JsonObject): string {
  const previous = lookup(config, "prevResult");
  if (!isObject(previous) || !Array.isArray(previous["ips"])) return "";
  for (const one of previous["ips"]) {
    const address = isObject(one) ? one["address"] : undefined;
    if (typeof address === "string" && /^\d+\.\d+\.\d+\.\d+\/\d+$/.test(address)) return address;
  }
  return "";
}

/** One attachment: its client, its lease, and who waits for it. */
class Attachment {
  #pid: number | undefined;
  #lease: Lease | undefined;
  #waiting: { resolve: (lease: Lease) => void; reject: (error: Error) => void }[] = [];
  /** Events since the last lease, for errors. */
  #trouble = "";
  /** Uptime of the lease whose time of renewal was told to the client. */
  #renewed = 0;
  #failures = 0;
  #restarting = false;
  #turning = false;
  /** Address that the server gives now, if it is not the one that the container has. */
  #changed = "";
  ending: Promise<void> | undefined;

  constructor(readonly daemon: Daemon, readonly folder: string, public record: LeaseRecord) {}

  /** Brings the link up, starts a client and waits for its lease. */
  async acquire(limitMs: number, wanted: string): Promise<Result> {
    const { netns, ifName } = this.record;
    openNetns({ netns });
    const { failure, answers } = await ip(this.record, this.daemon.host, [linkUp(ifName), linkShow(ifName)]);
    let link = answers[0]?.[0] as Link | undefined;
    if (failure !== "" || !link) {
      throw new RpcError(`error looking up ${JSON.stringify(ifName)}: ${failure || "Link not found"}`);
    }
    // What is sent before there is a carrier is lost, and the client waits seconds before it tries again.
    for (let waited = 0; link && !link.flags.includes("LOWER_UP") && waited < CARRIER_LIMIT_MS; waited += 50) {
      await sleep(50);
      link = (await ip(this.record, this.daemon.host, [linkShow(ifName)])).answers[0]?.[0] as Link | undefined;
    }
    if (this.ending) throw new RpcError("released while the lease was asked for");
    this.record = { ...this.record, mac: link?.address ?? "" };
    Deno.mkdirSync(this.folder, { recursive: true, mode: 0o700 });
    writeRecord(this.folder, this.record);
    const lease = this.#next(limitMs);
    this.#start(wanted);
    const { address } = await lease;
    this.record = { ...this.record, address };
    writeRecord(this.folder, this.record);
    log(`${nameOf(this.record)}: ${address} leased`);
    return this.#result(await lease);
  }

  /** The lease as it is now; waits for the client where it has none. */
  async current(limitMs: number): Promise<Result> {
    const lease = this.#lease;
    if (lease && this.record.address !== "" && !this.record.suspended && secondsLeft(lease) > 0) {
      return this.#result(lease);
    }
    if (this.#pid !== undefined && this.record.address !== "") signal(this.#pid, "SIGUSR1");
    return this.#result(await this.#next(limitMs));
  }

  #result(lease: Lease): Result {
    return leaseResult(lease, { priority: this.record.priority, listed: this.record.options.ask });
  }

  /** Goes on with a lease of an earlier daemon. */
  adopt(): void {
    const lease = readLease(this.folder);
    this.#lease = lease;
    this.#pid = clientPid(this.folder);
    if (lease && lease.address !== this.record.address) this.#changed = lease.address;
    log(
      `${nameOf(this.record)}: ${this.record.address} taken over` +
        (this.#pid === undefined ? "; its client is gone and starts again" : ""),
    );
    if (this.#pid === undefined) this.#start(this.record.address);
  }

  #next(limitMs: number): Promise<Lease> {
    const { promise, resolve, reject } = Promise.withResolvers<Lease>();
    const timer = setTimeout(() => {
      const { ifName, mac } = this.record;
      const seen = this.#trouble || "no DHCP server answered";
      reject(new RpcError("no more tries", `${ifName} (${mac}): ${seen} within ${limitMs / 1000} s`));
    }, limitMs);
    this.#waiting.push({ resolve, reject });
    return promise.finally(() => clearTimeout(timer));
  }

  #settle(how: (waiter: { resolve: (lease: Lease) => void; reject: (error: Error) => void }) => void): void {
    this.#waiting.splice(0).forEach(how);
  }

  #start(address: string): void {
    const { pid, ended } = startClient(this.folder, this.record, { client: this.daemon.client, address });
    this.#pid = pid;
    ended.then(() => this.#clientEnded(pid));
  }

  /** A hook told what happened to the client. `uptime` is when. */
  happened(event: string, uptime: number): void {
    if (this.ending) return;
    const told = `${nameOf(this.record)}: `;
    switch (event) {
      case "bound":
      case "renew": {
        const seen = readLeaseEvent(this.folder);
        // A full disk keeps the hook from writing; a renewal is one all the same.
        if (event === "renew" && this.#lease && (!seen || seen.uptime < uptime)) {
          log(`${told}renewed, but ${this.folder} could not be written to`);
          return this.#renew({ ...this.#lease, since: uptime });
        }
        if (!seen) return log(`${told}leased, but ${this.folder} could not be written to`);
        try {
          return this.#renew(leaseOf(seen));
        } catch (error) {
          if (!(error instanceof LeaseError)) throw error;
          this.#settle(({ reject }) => reject(new RpcError(error.message, "the server's answer cannot be used")));
          return log(told + error.message);
        }
      }
      case "nak":
        this.#trouble = "server rejected request with Nak";
        return log(told + this.#trouble);
      case "leasefail":
        this.#trouble ||= "no DHCP server answered";
        if (this.#lease) log(`${told}${this.#trouble}`);
        return;
      case "deconfig":
        if (this.#lease && !this.record.suspended) log(`${told}lease not renewed; asking all servers anew`);
        return;
    }
  }

  #renew(lease: Lease): void {
    const { address } = this.record;
    const first = this.#lease === undefined || address === "";
    this.#lease = lease;
    this.#trouble = "";
    this.#failures = 0;
    if (!first && lease.address !== address && this.#changed !== lease.address) {
      this.#changed = lease.address;
      log(
        `${
          nameOf(this.record)
        }: the server now leases ${lease.address}, but the container has ${address} and keeps it: ` +
          `delete the container and add it again`,
      );
    } else if (lease.address === address) this.#changed = "";
    if (this.record.suspended && lease.address === address) this.#turn(() => this.#resume(lease));
    else this.#settle(({ resolve }) => resolve(lease));
  }

  /** Every second; `sweep` now and then. */
  tick(sweep: boolean): void {
    if (this.ending || this.record.address === "") return;
    if (sweep) this.#sweep();
    const lease = this.#lease;
    if (!lease || this.ending) return;
    const age = Deno.osUptime() - lease.since;
    // udhcpc itself asks after half of the time, whatever the server said.
    if (age >= lease.renewAfter && lease.renewAfter < lease.seconds / 2 && this.#renewed !== lease.since) {
      this.#renewed = lease.since;
      if (this.#pid !== undefined) signal(this.#pid, "SIGUSR1");
    }
    if (secondsLeft(lease) > 0 || this.record.suspended || this.#changed !== "") return;
    const seen = readLease(this.folder);
    if (seen && seen.since > lease.since) this.#renew(seen);
    else this.#turn(() => this.#suspend(lease));
  }

  #sweep(): void {
    const { netns, netnsIdentity: identity } = this.record;
    if (netnsIdentity(netns) !== identity) {
      this.end(`its namespace ${netns} is gone`);
      return;
    }
    const seen = readLease(this.folder);
    if (seen && (!this.#lease || seen.since > this.#lease.since)) this.#renew(seen);
    if (this.#pid !== undefined && !this.#restarting && !isClient(this.#pid, this.folder)) this.#clientEnded(this.#pid);
    this.#shortenLog();
  }

  #shortenLog(): void {
    try {
      const path = `${this.folder}/log`;
      if (Deno.statSync(path).size > MAX_LOG) Deno.truncateSync(path);
    } catch {
      // Without one there is nothing to shorten.
    }
  }

  /** One change of the link at a time. */
  #turn(work: () => Promise<void>): void {
    if (this.#turning) return;
    this.#turning = true;
    work().catch((error) => log(`${nameOf(this.record)}: ${error.message}`)).finally(() => this.#turning = false);
  }

  /** The address is no longer ours to use: it leaves the link, and the routes that go with it are remembered. */
  async #suspend(lease: Lease): Promise<void> {
    const { ifName, address, netns } = this.record;
    log(`${nameOf(this.record)}: the lease of ${address} ran out: taken off ${ifName} until a server gives it again`);
    this.record = { ...this.record, suspended: true };
    writeRecord(this.folder, this.record);
    const pod = inNetns(this.daemon.host, netns);
    const save = 'umask 077; ip -4 route save table all dev "$1" >"$2"';
    await pod({ argv: ["sh", "-c", save, "sh", ifName, `${this.folder}/routes`] });
    const { failure } = await ip(this.record, this.daemon.host, [addrDel(address, ifName)]);
    if (failure !== "") log(`${nameOf(this.record)}: ${address} could not be taken off ${ifName}: ${failure}`);
    // Renewed while we were at it?
    if (this.#lease && this.#lease.since > lease.since && this.#lease.address === address) {
      await this.#resume(this.#lease);
    }
  }

  async #resume(lease: Lease): Promise<void> {
    const { ifName, address, netns } = this.record;
    log(`${nameOf(this.record)}: ${address} leased again: back on ${ifName}`);
    const { failure } = await ip(this.record, this.daemon.host, [addrAdd(address, ifName)]);
    if (failure !== "") log(`${nameOf(this.record)}: ${address} could not be put on ${ifName}: ${failure}`);
    const pod = inNetns(this.daemon.host, netns);
    // Routes that the kernel made by itself meanwhile are no error.
    await pod({ argv: ["sh", "-c", 'ip -4 route restore <"$1"; rm -f -- "$1"', "sh", `${this.folder}/routes`] });
    this.record = { ...this.record, suspended: false };
    writeRecord(this.folder, this.record);
    this.#settle(({ resolve }) => resolve(lease));
  }

  async #clientEnded(pid: number): Promise<void> {
    if (this.ending || this.#pid !== pid || this.#restarting) return;
    this.#pid = undefined;
    const words = clientWords(this.folder);
    if (this.record.address === "") {
      this.#settle(({ reject }) => reject(new RpcError(`DHCP client ended: ${words}`)));
      return;
    }
    this.#restarting = true;
    try {
      const { failure } = await ip(this.record, this.daemon.host, [linkShow(this.record.ifName)]);
      if (failure === "Link not found" || netnsIdentity(this.record.netns) !== this.record.netnsIdentity) {
        return void this.end(`${this.record.ifName} is gone`);
      }
      const pause = Math.min(2 ** this.#failures++ * 1000, this.daemon.flags.resendMaxMs);
      log(`${nameOf(this.record)}: its client ended (${words}); started again in ${pause / 1000} s`);
      await sleep(pause);
      if (!this.ending) this.#start(this.record.address);
    } catch (error) {
      log(`${nameOf(this.record)}: ${(error as Error).message}`);
    } finally {
      this.#restarting = false;
    }
  }

  /**
   * Stops the client, which gives the lease back, and forgets it all. `why` is logged if nobody asked for it; who still waits
   * for the lease gets `error`.
   */
  end(why: string, error: Error = new RpcError("released while the lease was asked for", why)): Promise<void> {
    this.ending ??= (async () => {
      if (why !== "") log(`${nameOf(this.record)}: dropped: ${why}`);
      this.#settle(({ reject }) => reject(error));
      try {
        await stopClient(this.folder, this.record, { host: this.daemon.host, warn: log, pid: this.#pid });
      } catch (error) {
        log(`${nameOf(this.record)}: ${(error as Error).message}`);
      } finally {
        this.daemon.forget(this);
      }
    })();
    return this.ending;
  }
}

/** How long a link may take to get its carrier, in milliseconds. */
const CARRIER_LIMIT_MS = 3000;
/** Largest log of one client, in bytes: some days of renewals. */
const MAX_LOG = 64 * 1024;

function nameOf(owner: Owner | undefined): string {
  return owner ? `${owner.containerId}/${owner.network}/${owner.ifName}` : "";
}

function withDetails(error: unknown): Error {
  return error instanceof CniError ? new RpcError(error.msg, error.details) : error as Error;
}

/** One line on standard error, with the time in front as Go's log has it. */
function log(text: string): void {
  const now = new Date();
  const two = (number: number) => String(number).padStart(2, "0");
  const day = `${now.getFullYear()}/${two(now.getMonth() + 1)}/${two(now.getDate())}`;
  write(`${day} ${two(now.getHours())}:${two(now.getMinutes())}:${two(now.getSeconds())} ${text}\n`);
}

function write(text: string): void {
  try {
    Deno.stderr.writeSync(new TextEncoder().encode(text));
  } catch {
    // Nobody reads it any more; leases matter more.
  }
}
