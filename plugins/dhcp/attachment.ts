/**
 * One attachment in the dhcp daemon: its client, its lease, what happens to both, and who waits for them.
 *
 * @module
 */
import { openNetns } from "../../lib/cni/netns.ts";
import type { Result } from "../../lib/cni/types.ts";
import { signal } from "../../lib/kernel/background.ts";
import { addrAdd, addrDel, type Link, linkShow, linkUp } from "../../lib/kernel/ip.ts";
import { inNetns, type Run } from "../../lib/kernel/run.ts";
import {
  clientPid,
  clientWords,
  ip,
  isClient,
  type LeaseRecord,
  netnsIdentity,
  readLease,
  readLeaseEvent,
  secondsLeft,
  sleep,
  startClient,
  stopClient,
  writeRecord,
} from "./client.ts";
import { type Lease, LeaseError, leaseOf, leaseResult } from "./lease.ts";
import type { Owner } from "./options.ts";
import { RpcError } from "./rpc.ts";

/** What an attachment needs of the daemon. */
export interface Keeper {
  readonly host: Run;
  /** The DHCP client's command, without arguments. */
  readonly client: readonly string[];
  /** Longest pause between two starts of a client that ends by itself, in milliseconds. */
  readonly restartMs: number;
  /** Called once, when the attachment has ended. */
  forget(attachment: DhcpAttachment): void;
}

/** One attachment: its client, its lease, and who waits for it. */
export class DhcpAttachment {
  #pid: number | undefined;
  /** Of a client that this process started. */
  #ended: Promise<void> | undefined;
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

  constructor(readonly keeper: Keeper, readonly folder: string, public record: LeaseRecord) {}

  /** Brings the link up, starts a client and waits for its lease. */
  async acquire(limitMs: number, wanted: string): Promise<Result> {
    const { netns, ifName } = this.record;
    openNetns({ netns });
    const { failure, answers } = await ip(this.record, this.keeper.host, [linkUp(ifName), linkShow(ifName)]);
    let link = answers[0]?.[0] as Link | undefined;
    if (failure !== "" || !link) {
      throw new RpcError(`error looking up ${JSON.stringify(ifName)}: ${failure || "Link not found"}`);
    }
    // What is sent before there is a carrier is lost, and the client waits seconds before it tries again.
    for (let waited = 0; link && !link.flags.includes("LOWER_UP") && waited < CARRIER_LIMIT_MS; waited += 50) {
      await sleep(50);
      link = (await ip(this.record, this.keeper.host, [linkShow(ifName)])).answers[0]?.[0] as Link | undefined;
    }
    if (this.ending) throw new RpcError("released while the lease was asked for");
    this.record = { ...this.record, ifindex: link?.ifindex ?? 0, mac: link?.address ?? "" };
    Deno.mkdirSync(this.folder, { recursive: true, mode: 0o700 });
    writeRecord(this.folder, this.record);
    this.#start(wanted);
    const lease = this.#next(limitMs);
    const { address } = await lease;
    this.record = { ...this.record, address };
    writeRecord(this.folder, this.record);
    log(`${nameOf(this.record)}: ${address} leased`);
    return this.#result(await lease);
  }

  /** Why there is nothing left to keep: the link is gone, or another one has its name. Undefined when all is well. */
  async lost(): Promise<string | undefined> {
    const { ifName, ifindex } = this.record;
    if (ifindex === 0) return undefined;
    const { failure, answers } = await ip(this.record, this.keeper.host, [linkShow(ifName)]);
    if (failure === "Link not found") return `${ifName} is gone`;
    const link = answers[0]?.[0] as Link | undefined;
    return link && link.ifindex !== ifindex ? `${ifName} was replaced` : undefined;
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
    const { pid, ended } = startClient(this.folder, this.record, { client: this.keeper.client, address });
    this.#pid = pid;
    this.#ended = ended;
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
    const pod = inNetns(this.keeper.host, netns);
    const save = 'umask 077; ip -4 route save table all dev "$1" >"$2"';
    await pod({ argv: ["sh", "-c", save, "sh", ifName, `${this.folder}/routes`] });
    const { failure } = await ip(this.record, this.keeper.host, [addrDel(address, ifName)]);
    if (failure !== "") log(`${nameOf(this.record)}: ${address} could not be taken off ${ifName}: ${failure}`);
    // Renewed while we were at it?
    if (this.#lease && this.#lease.since > lease.since && this.#lease.address === address) {
      await this.#resume(this.#lease);
    }
  }

  async #resume(lease: Lease): Promise<void> {
    const { ifName, address, netns } = this.record;
    log(`${nameOf(this.record)}: ${address} leased again: back on ${ifName}`);
    const { failure } = await ip(this.record, this.keeper.host, [addrAdd(address, ifName)]);
    if (failure !== "") log(`${nameOf(this.record)}: ${address} could not be put on ${ifName}: ${failure}`);
    const pod = inNetns(this.keeper.host, netns);
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
      const { netns, netnsIdentity: identity } = this.record;
      const why = netnsIdentity(netns) === identity ? await this.lost() : `its namespace ${netns} is gone`;
      if (why !== undefined) return void this.end(why);
      const pause = Math.min(2 ** this.#failures++ * 1000, this.keeper.restartMs);
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
   * Stops the client, which releases the lease, and forgets it all. `why` is logged if nobody asked for it; who still
   * waits for the lease gets `error`.
   */
  end(why: string, error: Error = new RpcError("released while the lease was asked for", why)): Promise<void> {
    this.ending ??= (async () => {
      if (why !== "") log(`${nameOf(this.record)}: dropped: ${why}`);
      this.#settle(({ reject }) => reject(error));
      try {
        const client = { pid: this.#pid, ended: this.#ended };
        await stopClient(this.folder, this.record, { host: this.keeper.host, warn: log, ...client });
      } catch (error) {
        log(`${nameOf(this.record)}: ${(error as Error).message}`);
      } finally {
        this.keeper.forget(this);
      }
    })();
    return this.ending;
  }
}

/** How long a link may take to get its carrier, in milliseconds. */
const CARRIER_LIMIT_MS = 3000;
/** Largest log of one client, in bytes: some days of renewals. */
const MAX_LOG = 64 * 1024;

export function nameOf(owner: Owner | undefined): string {
  return owner ? `${owner.containerId}/${owner.network}/${owner.ifName}` : "";
}

/** One line on standard error, with the time in front as Go's log has it. */
export function log(text: string): void {
  const now = new Date();
  const two = (number: number) => String(number).padStart(2, "0");
  const day = `${now.getFullYear()}/${two(now.getMonth() + 1)}/${two(now.getDate())}`;
  write(`${day} ${two(now.getHours())}:${two(now.getMinutes())}:${two(now.getSeconds())} ${text}\n`);
}

export function write(text: string): void {
  try {
    Deno.stderr.writeSync(new TextEncoder().encode(text));
  } catch {
    // Nobody reads it any more; leases matter more.
  }
}
