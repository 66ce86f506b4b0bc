/** Traffic between the namespaces of a node: pings, and servers that tell who talked to them. */
import { patience } from "./vm.ts";
import type { Background, Namespace } from "./node.ts";

export interface PingOptions {
  /** Tries until the first answer, 3 unless told. */
  tries?: number;
  /** Milliseconds that each try waits, 1000 unless told. */
  wait?: number;
  /** Bytes of payload, and then no fragmentation. */
  size?: number;
  /** Source address or interface. */
  from?: string;
}

/** Whether an address answers a ping; stops at the first answer. */
export async function ping(from: Namespace, address: string, options: PingOptions = {}): Promise<boolean> {
  const wait = (options.wait ?? 1000) / 1000;
  const argv = ["ping", "-n", "-q", "-c1", `-W${wait}`];
  if (options.size !== undefined) argv.push("-s", String(options.size), "-M", "do");
  if (options.from !== undefined) argv.push("-I", options.from);
  for (let left = options.tries ?? 3; left > 0; left--) {
    const { code, stderr } = await from.exec([...argv, address]);
    if (code === 0) return true;
    if (
      code === 2 &&
      !/unreachable|Address not available|Cannot assign|Operation not permitted|too long|denied/i.test(stderr)
    ) {
      throw new Error(`ping ${address}: ${stderr}`);
    }
    if (code === 2 && left > 1) await pause(200); // no route yet: an address may still be tentative
  }
  return false;
}

/** Fails unless the address answers. */
export async function assertPings(from: Namespace, address: string, options: PingOptions = {}): Promise<void> {
  if (await ping(from, address, options)) return;
  const where = await from.exec([
    "sh",
    "-c",
    'ip addr; ip route; ip -6 route; ip neigh; ip route get "$1"',
    "sh",
    address,
  ]);
  throw new Error(`${from.name} gets no answer from ${address}\n${where.stdout}${where.stderr}`);
}

/** Fails when the address answers. Gives it one try of a second. */
export async function assertNoPing(from: Namespace, address: string, options: PingOptions = {}): Promise<void> {
  if (await ping(from, address, { tries: 1, ...options })) {
    throw new Error(`${from.name} gets an answer from ${address}`);
  }
}

export type Transport = "tcp" | "udp" | "sctp";

/** A server in a namespace that answers every request with its name and the peer's address and port. */
export interface Server {
  close(): Promise<void>;
  process: Background;
}

/**
 * Serves a port, on both families unless an address is given, until closed: every connection (or datagram) is answered
 * with `NAME PEERADDRESS PEERPORT`. Needs "tool:socat".
 */
export async function serve(
  at: Namespace,
  port: number,
  { transport = "tcp", name = at.name, address }: { transport?: Transport; name?: string; address?: string } = {},
): Promise<Server> {
  const kind = { tcp: "TCP6-LISTEN", udp: "UDP6-RECVFROM", sctp: "SCTP6-LISTEN" }[transport];
  const bind = address === undefined
    ? ",ipv6only=0"
    : address.includes(":")
    ? `,bind=[${address}]`
    : `,bind=[::ffff:${address}],ipv6only=0`;
  // socat hands an IPv4 peer over as [::ffff:a.b.c.d] written out in groups; `request` turns it back.
  const process = at.spawn([
    "socat",
    "-d",
    "-d",
    `${kind}:${port},fork,reuseaddr${bind}`,
    // A server that ends with something unread resets the connection, and its answer may be lost.
    `SYSTEM:read line; echo ${name} "$SOCAT_PEERADDR" "$SOCAT_PEERPORT"`,
  ]);
  await process.until(/listening on|receiving on|now serving|receiving IP protocol|starting (accept|recvfrom) loop/);
  return { process, close: () => process.close() };
}

export interface Reply {
  /** Name that the server gave itself. */
  name: string;
  /** The client's address as the server saw it. */
  peer: string;
  peerPort: number;
}

/**
 * Asks a server made by `serve`; undefined when no answer came within `timeout` milliseconds (1000 unless told).
 */
export async function request(
  from: Namespace,
  address: string,
  port: number,
  { transport = "tcp", timeout = 1000, bind }: { transport?: Transport; timeout?: number; bind?: string } = {},
): Promise<Reply | undefined> {
  const host = address.includes(":") ? `[${address}]` : address;
  const source = bind === undefined ? "" : `,bind=${bind.includes(":") ? `[${bind}]` : bind}`;
  const seconds = timeout * patience / 1000;
  const to = transport === "udp"
    ? `UDP:${host}:${port}${source}`
    : `${transport.toUpperCase()}:${host}:${port}${source},connect-timeout=${seconds}`;
  const { stdout } = await from.exec(["timeout", String(seconds + 2), "socat", `-t${seconds}`, "-", `${to}`], {
    input: "hello\n",
  });
  const match = stdout.match(/^(\S+) \[?([^\]\s]+)\]? (\d+)$/m);
  return match ? { name: match[1] ?? "", peer: plainAddress(match[2] ?? ""), peerPort: Number(match[3]) } : undefined;
}

/** An IPv4-mapped IPv6 address, or a fully written IPv6 address, in its usual form. */
function plainAddress(text: string): string {
  if (!text.includes(":")) return text;
  const canonical = new URL(`http://[${text}]/`).hostname.slice(1, -1);
  const mapped = canonical.match(/^::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})$/);
  if (!mapped) return canonical;
  const high = parseInt(mapped[1] ?? "", 16), low = parseInt(mapped[2] ?? "", 16);
  return [high >> 8, high & 255, low >> 8, low & 255].join(".");
}

/**
 * Waits until a condition holds, asking every 50 ms; fails after `timeout` milliseconds (10,000 unless told) with
 * `what`.
 */
export async function eventually(
  what: string,
  holds: () => Promise<boolean> | boolean,
  timeout = 10_000,
): Promise<void> {
  const limit = Date.now() + timeout * patience;
  while (!await holds()) {
    if (Date.now() > limit) throw new Error(`still not so after ${timeout} ms: ${what}`);
    await pause(50);
  }
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((done) => setTimeout(done, milliseconds));
}
