/**
 * `dhcp daemon`: keeps the DHCP leases of this node's containers. It answers the plugin's calls and watches over one
 * DHCP client per attachment; those outlive it, and the next daemon finds them again (dhcp_client.ts says where).
 *
 * @module
 */
import { decode, isObject, lookup } from "../../lib/cni/decode.ts";
import { badConfig, CniError } from "../../lib/cni/error.ts";
import type { JsonObject, Result } from "../../lib/cni/types.ts";
import { startSocketProxy } from "../../lib/kernel/background.ts";
import { removeIfThere } from "../../lib/kernel/regular_file.ts";
import { must, type Run, systemRun } from "../../lib/kernel/run.ts";
import { findClient } from "../../lib/kernel/udhcpc.ts";
import { type Acceptor, connectUnix, listenUnix, SocketError } from "../../lib/kernel/unix_socket.ts";
import { sameAttachment } from "../../lib/net/name.ts";
import { DhcpAttachment, type Keeper, log, nameOf, write } from "./attachment.ts";
import {
  bootId,
  leaseFolder,
  leaseFolders,
  netnsIdentity,
  prepareState,
  readRecord,
  stateFolder,
  stopClient,
} from "./client.ts";
import { type DaemonFlags, daemonFlags, FlagError } from "./flags.ts";
import { clientOptions, dhcpKeys, type Owner } from "./options.ts";
import { type CmdArgs, RpcError, serve } from "./rpc.ts";
import { lockFolder } from "../../lib/ipam/lock.ts";

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
  // One attachment's trouble is no reason to give the others up.
  addEventListener("unhandledrejection", (event) => {
    event.preventDefault();
    log(String(event.reason));
  });
  try {
    const daemon = await Daemon.start(flags);
    try {
      log(`listening on ${flags.hostPrefix}${flags.socketPath}, ${daemon.size} leases taken over`);
      await stopped;
      return 0;
    } finally {
      await daemon[Symbol.asyncDispose]();
    }
  } catch (error) {
    log((error as Error).message);
    return 1;
  }
}

/** How often netns, clients and lease files are looked at, in seconds: for what nobody tells us. */
const SWEEP_SECONDS = 15;

class Daemon implements AsyncDisposable, Keeper {
  readonly #leases = new Map<string, DhcpAttachment>();
  readonly #closing: (() => unknown)[] = [];
  readonly host: Run = systemRun();

  private constructor(
    readonly flags: DaemonFlags,
    readonly state: string,
    readonly client: readonly string[],
    readonly bootId: string,
  ) {}

  get restartMs(): number {
    return this.flags.resendMaxMs;
  }

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
    // One daemon per folder, whatever the socket: it is released by the kernel when this process ends.
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
      for (const lease of this.#leases.values()) {
        try {
          lease.tick(sweep);
        } catch (error) {
          log(`${nameOf(lease.record)}: ${(error as Error).message}`);
        }
      }
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
      // The runtime cannot take an inherited socket: systemd's own relay accepts there and passes on to a socket of
      // ours.
      const inner = `${this.state}/daemon.sock`;
      const acceptor = listenUnix(inner);
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
        const acceptor = listenUnix(path);
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
    removeIfThere(path);
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
        for (const line of lines) this.#told(line);
      }
    })().catch((error) => log(`${path}: ${error.message}; lease files are read every ${SWEEP_SECONDS} s`));
  }

  /** A hook's line: whose folder, which event, when. */
  #told(line: string): void {
    const [name = "", event = "", uptime = ""] = line.split(" ");
    try {
      this.#leases.get(`${this.state}/${name}`)?.happened(event, Number(uptime));
    } catch (error) {
      log(`${name}: ${(error as Error).message}`);
    }
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
        const lease = new DhcpAttachment(this, folder, record);
        this.#leases.set(folder, lease);
        lease.adopt();
      }),
    );
  }

  /** The first half of ADD; CHECK too asks for the lease. */
  async allocate(args: CmdArgs): Promise<Result> {
    const { owner, config } = this.#ownerOf(args);
    const conf = decode(dhcpKeys, config, "error parsing netconf").ipam;
    if (!conf) throw badConfig("error parsing netconf: ipam is missing");
    const options = clientOptions(conf, args.Args);
    const folder = leaseFolder(this.state, owner);
    const netns = this.flags.hostPrefix + args.Netns;
    let wanted = wantedAddress(config);
    for (;;) {
      const known = this.#leases.get(folder);
      if (known === undefined) break;
      if (known.ending) {
        await known.ending;
        continue;
      }
      if (!sameAttachment(known.record, owner)) {
        throw new RpcError(
          `the client identifier of ${nameOf(owner)} is taken by ${nameOf(known.record)}`,
          "identifiers are cut after 254 bytes; shorten the network's name or the container's ID",
        );
      }
      const why = netnsIdentity(netns) === known.record.netnsIdentity
        ? await known.lost()
        : `its namespace ${known.record.netns} was replaced`;
      if (why === undefined) return await known.current(leaseLimit(this.flags));
      wanted ||= known.record.address;
      await known.end(why);
    }
    const fresh = new DhcpAttachment(this, folder, {
      ...owner,
      netns,
      netnsIdentity: netnsIdentity(netns),
      bootId: this.bootId,
      ifindex: 0,
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
      return await fresh.acquire(leaseLimit(this.flags), wanted);
    } catch (error) {
      await fresh.end("", error as Error);
      throw withDetails(error);
    }
  }

  /** DEL: releases the lease; knowing nothing of it is success. */
  async release(args: CmdArgs): Promise<undefined> {
    const { owner } = this.#ownerOf(args);
    const known = this.#leases.get(leaseFolder(this.state, owner));
    if (known && sameAttachment(known.record, owner)) await known.end("");
  }

  #ownerOf(args: CmdArgs): { readonly owner: Owner; readonly config: JsonObject } {
    let config: unknown;
    try {
      config = JSON.parse(new TextDecoder().decode(args.StdinData));
    } catch (error) {
      throw new RpcError(`error parsing netconf: ${(error as Error).message}`);
    }
    if (!isObject(config)) throw new RpcError("error parsing netconf: it is not an object");
    const network = lookup(config, "name");
    const owner = {
      containerId: args.ContainerID,
      network: typeof network === "string" ? network : "",
      ifName: args.IfName,
    };
    return { owner, config };
  }

  forget(lease: DhcpAttachment): void {
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

/** A daemon that is just ending releases its lock within this many milliseconds. */
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

function withDetails(error: unknown): Error {
  return error instanceof CniError ? new RpcError(error.msg, error.details) : error as Error;
}
