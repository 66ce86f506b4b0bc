/**
 * dhcp: hands out an address that a DHCPv4 server leases. https://www.cni.dev/plugins/current/ipam/dhcp/
 *
 * The plugin asks a daemon on the node (`dhcp daemon`), which keeps the lease as long as the attachment lives.
 *
 * Differs from the reference: leases survive the daemon, RELEASE reaches the server, DEL works without a daemon, CHECK
 * compares the lease with prevResult, GC and STATUS do something; see docs/plugins/dhcp.md.
 */
import { decode, decodeLeniently, object, text } from "../../lib/cni/decode.ts";
import { all, badConfig, CniError, code, internal } from "../../lib/cni/error.ts";
import type { Call, ContainerCall, NetworkCall, Plugin } from "../../lib/cni/plugin.ts";
import { prevResult } from "../../lib/cni/prev_result.ts";
import { type Result, since } from "../../lib/cni/types.ts";
import {
  leaseFolder,
  leaseFolders,
  readLease,
  readRecord,
  releaseWithoutDaemon,
  secondsLeft,
  stateFolder,
} from "./client.ts";
import { clientOptions, dhcpKeys } from "./options.ts";
import { callDaemon, DaemonRefusal, DEFAULT_SOCKET, greetDaemon, RpcError } from "./rpc.ts";
import { SocketError } from "../../lib/kernel/unix_socket.ts";
import { sameAttachment } from "../../lib/net/name.ts";

export const plugin: Plugin = {
  name: "dhcp",
  kind: "ipam",
  about: "hands out addresses leased from a DHCP server",
  versions: since("0.1.0"),
  // The daemon needs more; it says so when it starts.
  needs: [],
  keys: dhcpKeys,
  parse: settings,
  add,
  del,
  check,
  gc,
  status,
  held,
  roles: {
    daemon: async (args) => await (await import("./daemon.ts")).daemonMain(args),
  },
};

/** Longest wait for a lease, in milliseconds: the daemon gives up after 208 s unless it is told otherwise. */
const LEASE_LIMIT_MS = 230_000;
/** Longest wait for anything else. */
const ANSWER_LIMIT_MS = 30_000;
/** Longest wait for a daemon that STATUS asks for, which systemd may have to start first. */
const STATUS_LIMIT_MS = 5_000;

async function add(call: ContainerCall): Promise<Result> {
  const { socket } = settings(call);
  const effect = {
    note: `ask the DHCP daemon behind ${socket} for a lease`,
    why: "the address is not known before",
  };
  return await call.perform(effect, () => leased(call, socket)) ?? {};
}

async function leased(call: ContainerCall, socket: string): Promise<Result> {
  let asked = true;
  call.undo(async () => {
    // What was refused left nothing; and another ADD of the same container may be asking meanwhile.
    if (asked) await ask(call, socket, "DHCP.Release");
  });
  try {
    return await allocate(call, socket);
  } catch (error) {
    asked = !(error instanceof NotLeased);
    throw error;
  }
}

async function del(call: ContainerCall): Promise<void> {
  const socket = socketLeniently(call);
  const effect = { note: `have the DHCP daemon behind ${socket} release the lease`, why: "by its owner" };
  await call.perform(effect, async () => {
    try {
      await ask(call, socket, "DHCP.Release");
    } catch (error) {
      if (!(error instanceof SocketError)) throw translated(error, socket, "DHCP.Release");
      const done = await releaseWithoutDaemon(stateFolder(socket), call, call);
      call.warn(
        `dial unix ${socket}: connect: ${error.reason}; ` +
          (done ? "the lease was released without the daemon" : "it left no lease of this container"),
      );
    }
  });
}

async function check(call: ContainerCall): Promise<void> {
  const { socket } = settings(call);
  const folder = leaseFolder(stateFolder(socket), call);
  const record = readRecord(folder);
  const lease = readLease(folder);
  // Asking would wait for a server, and a runtime with it.
  if (record && sameAttachment(record, call) && record.address !== "" && (record.suspended || expired(lease))) {
    throw internal(
      `dhcp: the lease of ${record.address} ran out and no server renewed it`,
      `it was taken off ${record.ifName} and comes back when a server leases it again; see the daemon's log`,
    );
  }
  const result = await allocate(call, socket);
  const previous = prevResult(call);
  const [leased] = result.ips ?? [];
  if (!previous || !leased) return;
  if (previous.ips?.some(({ address }) => address === leased.address)) return;
  const shown = previous.ips?.map(({ address }) => address).join(", ");
  throw internal(
    `dhcp: the server leases ${leased.address} to ${call.ifName}, but prevResult has ${shown || "no address"}`,
    "the server gave the lease up; delete the container and add it again",
  );
}

function expired(lease: ReturnType<typeof readLease>): boolean {
  return lease !== undefined && secondsLeft(lease) <= 0;
}

async function gc(call: NetworkCall): Promise<void> {
  const { valid } = call;
  // A caller that says nothing about valid attachments has sent DEL for all it knows.
  if (valid === undefined) return;
  const socket = socketLeniently(call);
  const state = stateFolder(socket);
  const jobs = leaseFolders(state).flatMap((folder) => {
    const record = readRecord(folder);
    if (record === undefined || record.network !== call.network || record.address === "") return [];
    const { containerId, ifName } = record;
    if (valid.some((one) => one.containerID === containerId && one.ifname === ifName)) return [];
    const owner = { containerId, ifName, network: call.network };
    return [async () => {
      try {
        await ask({ ...call, ...owner, netns: record.netns, args: "" }, socket, "DHCP.Release");
      } catch (error) {
        if (!(error instanceof SocketError)) throw translated(error, socket, "DHCP.Release");
        await releaseWithoutDaemon(state, owner, call);
      }
    }];
  });
  await all(jobs);
}

async function status(call: NetworkCall): Promise<void> {
  const { socket } = settings({ ...call, args: "" });
  try {
    await greetDaemon(socket, STATUS_LIMIT_MS);
  } catch (error) {
    const { msg, details } = translated(error, socket, "DHCP.Allocate");
    throw new CniError(code.notAvailable, msg, details);
  }
}

// deno-lint-ignore require-await -- the interface is one for plugins that have to wait
async function held(call: ContainerCall): Promise<readonly string[]> {
  const socket = socketLeniently(call);
  const record = readRecord(leaseFolder(stateFolder(socket), call));
  return record && sameAttachment(record, call) && record.address !== "" ? [record.address] : [];
}

/** What the configuration says, checked before anybody is asked. */
function settings(call: Call & { readonly args: string }): { readonly socket: string } {
  const { ipam } = decode(dhcpKeys, call.config, "error parsing netconf");
  if (!ipam) {
    throw badConfig("error parsing netconf: ipam is missing", 'write "ipam": {"type": "dhcp"}');
  }
  try {
    clientOptions(ipam, call.args);
  } catch (error) {
    if (!(error instanceof CniError)) throw error;
    // It is the daemon that finds this in the reference.
    throw new CniError(error.code, `error calling DHCP.Allocate: ${error.msg}`, error.details);
  }
  return { socket: ipam.daemonSocketPath || DEFAULT_SOCKET };
}

const socketKeys = {
  ipam: object({ daemonSocketPath: text("", "where the daemon listens") }, "read even if the rest is wrong"),
};

/** For what must not fail on a configuration that has become wrong. */
function socketLeniently({ config, warn }: Call): string {
  return decodeLeniently(socketKeys, config, warn).ipam?.daemonSocketPath || DEFAULT_SOCKET;
}

async function allocate(call: ContainerCall, socket: string): Promise<Result> {
  try {
    return await ask(call, socket, "DHCP.Allocate") ?? {};
  } catch (error) {
    throw translated(error, socket, "DHCP.Allocate");
  }
}

type Asked = Pick<ContainerCall, "containerId" | "netns" | "ifName" | "args" | "env" | "stdin">;

async function ask(call: Asked, socket: string, method: string): Promise<Result | undefined> {
  const { netns, env } = call;
  return await callDaemon(socket, method, {
    args: {
      ContainerID: call.containerId,
      Netns: netns.startsWith("/") ? netns : workingFolder(netns),
      IfName: call.ifName,
      Args: call.args,
      Path: env["CNI_PATH"] ?? "",
      NetnsOverride: env["CNI_NETNS_OVERRIDE"] ?? "",
      StdinData: call.stdin,
    },
    limitMs: method === "DHCP.Allocate" ? LEASE_LIMIT_MS : ANSWER_LIMIT_MS,
  });
}

/** The daemon has a working folder of its own. */
function workingFolder(netns: string): string {
  try {
    return netns === "" ? Deno.cwd() : `${Deno.cwd()}/${netns}`;
  } catch {
    return netns;
  }
}

/** There is no lease, nor anybody who still tries to get one. */
class NotLeased extends CniError {}

function translated(error: unknown, socket: string, method: string): CniError {
  if (error instanceof CniError) return error;
  if (error instanceof SocketError) {
    const flag = socket === DEFAULT_SOCKET ? "" : ` -socketpath ${socket}`;
    return new NotLeased(
      code.internal,
      `error dialing DHCP daemon: dial unix ${socket}: connect: ${error.reason}`,
      `no DHCP daemon listens on ${socket}; start it: systemctl start cni-dhcp.socket, or /opt/cni/bin/dhcp daemon${flag}`,
    );
  }
  const msg = `error calling ${method}: ${(error as Error).message}`;
  const details = error instanceof RpcError ? error.details : "";
  return error instanceof DaemonRefusal ? new NotLeased(code.internal, msg, details) : internal(msg, details);
}
