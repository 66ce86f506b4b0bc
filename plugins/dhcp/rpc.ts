/**
 * The calls between the dhcp plugin and its daemon: Go's net/rpc with gob, behind an HTTP CONNECT, on a unix socket. It
 * is the reference's protocol, so that either half works with the reference's other half.
 *
 * @module
 */
import { GobReader, type GobValue, GobWriter, type Schema } from "./gob.ts";
import type { Result, Route } from "../../lib/cni/types.ts";
import { type Acceptor, type Channel, connectUnix } from "../../lib/kernel/unix_socket.ts";
import { formatAddress, formatPrefix, parseAddress, parsePrefix } from "../../lib/net/cidr.ts";

/** Where the daemon listens when nothing else is configured. */
export const DEFAULT_SOCKET = "/run/cni/dhcp.sock";

/** What the plugin was called with; field names as on the wire. */
export interface CmdArgs {
  readonly ContainerID: string;
  /** Absolute. */
  readonly Netns: string;
  readonly IfName: string;
  readonly Args: string;
  readonly Path: string;
  readonly NetnsOverride: string;
  readonly StdinData: Uint8Array;
}

/** The daemon answered with an error, or not at all; the message has the reference's words. */
export class RpcError extends Error {
  override readonly name = "RpcError";
  constructor(message: string, readonly details: string = "") {
    super(message);
  }
}

/** The daemon's own answer: what was asked for is not done, and nothing is left of it. */
export class DaemonRefusal extends RpcError {}

/** What a daemon can do, by the method's name. */
export type Methods = Readonly<Record<string, (args: CmdArgs) => Promise<Result | undefined>>>;

const requestSchema: Schema = { struct: "Request", fields: [["ServiceMethod", "string"], ["Seq", "uint"]] };
const responseSchema: Schema = {
  struct: "Response",
  fields: [["ServiceMethod", "string"], ["Seq", "uint"], ["Error", "string"]],
};
const argsSchema: Schema = {
  struct: "CmdArgs",
  fields: [
    ["ContainerID", "string"],
    ["Netns", "string"],
    ["IfName", "string"],
    ["Args", "string"],
    ["Path", "string"],
    ["NetnsOverride", "string"],
    ["StdinData", "bytes"],
  ],
};
const netSchema: Schema = { struct: "IPNet", fields: [["IP", "bytes"], ["Mask", "bytes"]] };
const textsSchema: Schema = { slice: "string" };
const resultSchema: Schema = {
  struct: "Result",
  fields: [
    ["CNIVersion", "string"],
    ["IPs", { slice: { struct: "IPConfig", fields: [["Address", netSchema], ["Gateway", "bytes"]] } }],
    ["Routes", {
      slice: {
        struct: "Route",
        fields: [["Dst", netSchema], ["GW", "bytes"], ["MTU", "int"], ["AdvMSS", "int"], ["Priority", "int"], [
          "Table",
          "int",
        ], ["Scope", "int"]],
      },
    }],
    ["DNS", {
      struct: "DNS",
      fields: [["Nameservers", textsSchema], ["Domain", "string"], ["Search", textsSchema], ["Options", textsSchema]],
    }],
  ],
};
const emptySchema: Schema = { struct: "", fields: [] };

const CONNECT = "CONNECT /_goRPC_ HTTP/1.0\n\n";
const CONNECTED = "HTTP/1.0 200 Connected to Go RPC\n\n";
/** Largest message, in bytes: a configuration has a place in it. */
const MAX_MESSAGE = 20 * 1024 * 1024;
const MAX_HEAD = 8 * 1024;

/**
 * Calls one method of the daemon behind a socket. `limitMs` bounds the whole call.
 *
 * @throws {SocketError} when nobody listens
 * @throws {RpcError} when the daemon says no, hangs up, or does not answer in time
 */
export async function callDaemon(
  path: string,
  method: string,
  { args, limitMs }: { readonly args: CmdArgs; readonly limitMs: number },
): Promise<Result | undefined> {
  return await withDaemon(path, limitMs, async (stream) => {
    const writer = new GobWriter();
    await stream.channel.write(
      joined(writer.message(requestSchema, { ServiceMethod: method }), writer.message(argsSchema, { ...args })),
    );
    const reader = new GobReader();
    const header = await stream.value(reader) as { readonly [name: string]: GobValue };
    const body = await stream.value(reader);
    const failure = header["Error"];
    if (typeof failure === "string" && failure !== "") {
      const [message = "", ...details] = failure.split("\n");
      throw new DaemonRefusal(message, details.join("\n"));
    }
    return method === "DHCP.Allocate" ? resultFromGob(body) : undefined;
  });
}

/** Connects and says hello, no more: is a daemon there, and does it speak? Throws as {@linkcode callDaemon} does. */
export async function greetDaemon(path: string, limitMs: number): Promise<void> {
  await withDaemon(path, limitMs, () => Promise.resolve());
}

async function withDaemon<T>(path: string, limitMs: number, work: (stream: Stream) => Promise<T>): Promise<T> {
  const channel = await connectUnix(path);
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new RpcError(`no answer within ${limitMs / 1000} s`)), limitMs);
  });
  try {
    return await Promise.race([late, dialled(channel).then(work)]);
  } finally {
    clearTimeout(timer);
    channel.close();
  }
}

async function dialled(channel: Channel): Promise<Stream> {
  const stream = new Stream(channel);
  await channel.write(new TextEncoder().encode(CONNECT));
  const head = await stream.head();
  if (head === "") throw new RpcError("unexpected EOF");
  const status = head.split("\n")[0]?.replace(/^HTTP\/\S+ /, "").trim();
  if (status !== "200 Connected to Go RPC") throw new RpcError(`unexpected HTTP response: ${status}`);
  return stream;
}

/** Serves calls until the socket is closed. A call that fails, or a client that talks nonsense, ends nothing else. */
export async function serve(acceptor: Acceptor, methods: Methods, warn: (note: string) => void): Promise<void> {
  for (;;) {
    let channel: Channel;
    try {
      channel = await acceptor.accept();
    } catch (error) {
      if (error instanceof Deno.errors.BadResource || error instanceof Deno.errors.Interrupted) return;
      // Out of file descriptors, perhaps: others may be released meanwhile.
      warn(`accept: ${(error as Error).message}`);
      await new Promise((resolve) => setTimeout(resolve, 100));
      continue;
    }
    serveOne(channel, methods)
      .catch((error) => warn(`rpc: ${(error as Error).message}`))
      .finally(() => channel.close());
  }
}

async function serveOne(channel: Channel, methods: Methods): Promise<void> {
  const stream = new Stream(channel);
  const encoder = new TextEncoder();
  const head = await stream.head();
  // Somebody looked whether we are there, or hung up while we were starting.
  if (head === "") return;
  const [method, path] = (head.split("\n")[0] ?? "").split(" ");
  if (method !== "CONNECT" || path !== "/_goRPC_") {
    const [status, text] = method === "CONNECT"
      ? ["404 Not Found", "404 page not found\n"]
      : ["405 Method Not Allowed", "405 must CONNECT\n"];
    const type = "Content-Type: text/plain; charset=utf-8";
    await channel.write(encoder.encode(`HTTP/1.0 ${status}\n${type}\n\n${text}`.replaceAll("\n", "\r\n")));
    return;
  }
  await channel.write(encoder.encode(CONNECTED));
  const reader = new GobReader();
  const writer = new GobWriter();
  for (;;) {
    const request = await stream.value(reader, true) as { readonly [name: string]: GobValue } | undefined;
    if (request === undefined) return;
    const name = String(request["ServiceMethod"] ?? "");
    const Seq = Number(request["Seq"] ?? 0);
    const args = cmdArgs(await stream.value(reader));
    let failure = "";
    let body: Uint8Array = new Uint8Array();
    try {
      const call = Object.hasOwn(methods, name) ? methods[name] : undefined;
      if (!call) throw new RpcError(`rpc: can't find method ${name}`);
      const result = await call(args);
      const [schema, value] = result ? [resultSchema, gobFromResult(result)] as const : [emptySchema, {}] as const;
      const header = writer.message(responseSchema, { ServiceMethod: name, Seq });
      body = joined(header, writer.message(schema, value));
    } catch (error) {
      const details = error instanceof RpcError ? error.details : "";
      failure = (error as Error).message + (details === "" ? "" : `\n${details}`);
      const header = writer.message(responseSchema, { ServiceMethod: name, Seq, Error: failure });
      body = joined(header, writer.message(emptySchema, {}));
    }
    await channel.write(body);
  }
}

function cmdArgs(value: GobValue | undefined): CmdArgs {
  const fields = (typeof value === "object" ? value : {}) as { readonly [name: string]: GobValue | undefined };
  const text = (name: string) => typeof fields[name] === "string" ? fields[name] : "";
  const data = fields["StdinData"];
  return {
    ContainerID: text("ContainerID"),
    Netns: text("Netns"),
    IfName: text("IfName"),
    Args: text("Args"),
    Path: text("Path"),
    NetnsOverride: text("NetnsOverride"),
    StdinData: data instanceof Uint8Array ? data : new Uint8Array(),
  };
}

/** Bytes as they come, cut into HTTP heads and gob messages. */
class Stream {
  #rest = new Uint8Array();
  constructor(readonly channel: Channel) {}

  async #more(): Promise<boolean> {
    const part = await this.channel.read();
    if (part === null) return false;
    this.#rest = joined(this.#rest, part);
    return true;
  }

  #take(count: number): Uint8Array {
    const part = this.#rest.subarray(0, count);
    this.#rest = this.#rest.subarray(count);
    return part;
  }

  /** Text up to the empty line, without it; "" when the other side hung up. */
  async head(): Promise<string> {
    for (;;) {
      // Requests end their lines with \n, servers may with \r\n.
      const text = new TextDecoder("latin1").decode(this.#rest.subarray(0, MAX_HEAD));
      const end = /\r?\n\r?\n/.exec(text);
      if (end) {
        this.#take(end.index + end[0].length);
        return text.slice(0, end.index).replaceAll("\r", "");
      }
      if (this.#rest.length >= MAX_HEAD) throw new RpcError("malformed HTTP head");
      if (!await this.#more()) return "";
    }
  }

  /** The next value on the stream; what it takes of definitions is read on the way. */
  async value(reader: GobReader, mayEnd: true): Promise<GobValue | undefined>;
  async value(reader: GobReader): Promise<GobValue>;
  async value(reader: GobReader, mayEnd = false): Promise<GobValue | undefined> {
    for (;;) {
      const message = await this.#message();
      if (message === undefined) {
        if (mayEnd) return undefined;
        throw new RpcError("unexpected EOF");
      }
      const value = reader.message(message);
      if (value !== undefined) return value;
    }
  }

  async #message(): Promise<Uint8Array | undefined> {
    while (this.#rest.length === 0) if (!await this.#more()) return undefined;
    const first = this.#rest[0] ?? 0;
    const width = first < 128 ? 0 : 256 - first;
    if (width > 4) throw new RpcError("gob: message too long");
    while (this.#rest.length < 1 + width) if (!await this.#more()) throw new RpcError("unexpected EOF");
    let length = width === 0 ? first : 0;
    for (let i = 1; i <= width; i++) length = length * 256 + (this.#rest[i] ?? 0);
    if (length > MAX_MESSAGE) throw new RpcError("gob: message too long");
    while (this.#rest.length < 1 + width + length) if (!await this.#more()) throw new RpcError("unexpected EOF");
    this.#take(1 + width);
    return this.#take(length);
  }
}

/** A result as the reference's daemon sends it. Its routes and gateways are all IPv4. */
export function gobFromResult({ ips = [], routes = [], dns }: Result): GobValue {
  return {
    IPs: ips.map(({ address, gateway }) => ({
      Address: netBytes(address),
      ...(gateway && { Gateway: addressBytes(gateway) }),
    })),
    Routes: routes.map(({ dst, gw, mtu, advmss, priority, table, scope }) => ({
      Dst: netBytes(dst),
      ...(gw && { GW: addressBytes(gw) }),
      MTU: mtu ?? 0,
      AdvMSS: advmss ?? 0,
      Priority: priority ?? 0,
      Table: table ?? 0,
      Scope: scope ?? 0,
    })),
    DNS: {
      Nameservers: dns?.nameservers ?? [],
      Domain: dns?.domain ?? "",
      Search: dns?.search ?? [],
      Options: dns?.options ?? [],
    },
  };
}

/** The result in a daemon's answer; pointers to zero do not get across, so `table` and `scope` of 0 are absent. */
export function resultFromGob(value: GobValue): Result {
  const fields = objectOf(value);
  const ips = listOf(fields["IPs"]).map((item) => {
    const ip = objectOf(item);
    const gateway = addressText(ip["Gateway"]);
    return { address: netText(ip["Address"]), ...(gateway !== undefined && { gateway }) };
  });
  const routes = listOf(fields["Routes"]).map((item) => {
    const from = objectOf(item);
    const route: Route = { dst: netText(from["Dst"]) };
    const gw = addressText(from["GW"]);
    if (gw !== undefined) route.gw = gw;
    const names = { mtu: "MTU", advmss: "AdvMSS", priority: "Priority", table: "Table", scope: "Scope" } as const;
    for (const [name, wire] of Object.entries(names) as [keyof typeof names, string][]) {
      const number = from[wire];
      if (typeof number === "number" && number !== 0) route[name] = number;
    }
    return route;
  });
  const source = objectOf(fields["DNS"]);
  const texts = (value: GobValue | undefined) => listOf(value).filter((one) => typeof one === "string");
  const dns = {
    ...(listOf(source["Nameservers"]).length > 0 && { nameservers: texts(source["Nameservers"]) }),
    ...(typeof source["Domain"] === "string" && { domain: source["Domain"] }),
    ...(listOf(source["Search"]).length > 0 && { search: texts(source["Search"]) }),
    ...(listOf(source["Options"]).length > 0 && { options: texts(source["Options"]) }),
  };
  return { ips, routes, ...(Object.keys(dns).length > 0 && { dns }) };
}

function objectOf(value: GobValue | undefined): { readonly [name: string]: GobValue | undefined } {
  return typeof value === "object" && !Array.isArray(value) && !(value instanceof Uint8Array)
    ? value as { readonly [name: string]: GobValue }
    : {};
}

function listOf(value: GobValue | undefined): readonly GobValue[] {
  return Array.isArray(value) ? value as readonly GobValue[] : [];
}

function addressBytes(text: string): Uint8Array {
  const address = parseAddress(text);
  if (address === undefined) throw new RpcError(`invalid IP address: ${text}`);
  return bytesOf(address.value, address.family === 4 ? 4 : 16);
}

function netBytes(text: string): GobValue {
  const prefix = parsePrefix(text);
  if (prefix === undefined) throw new RpcError(`invalid CIDR address: ${text}`);
  const size = prefix.address.family === 4 ? 4 : 16;
  const ones = BigInt(size * 8);
  const mask = ((1n << ones) - 1n) ^ ((1n << (ones - BigInt(prefix.length))) - 1n);
  return { IP: bytesOf(prefix.address.value, size), Mask: bytesOf(mask, size) };
}

function bytesOf(value: bigint, size: number): Uint8Array {
  return Uint8Array.from({ length: size }, (_, i) => Number((value >> BigInt(8 * (size - 1 - i))) & 0xffn));
}

/** An address of 4 or 16 bytes; IPv4 in 16 bytes is IPv4. */
function addressText(value: GobValue | undefined): string | undefined {
  if (!(value instanceof Uint8Array) || value.length === 0) return undefined;
  if (value.length !== 4 && value.length !== 16) throw new RpcError(`address of ${value.length} bytes`);
  const number = valueOf(value);
  const four = value.length === 4 || number >> 32n === 0xffffn;
  return formatAddress(four ? { family: 4, value: number & 0xffff_ffffn } : { family: 6, value: number });
}

function netText(value: GobValue | undefined): string {
  const { IP, Mask } = objectOf(value);
  const text = addressText(IP);
  if (text === undefined || !(Mask instanceof Uint8Array)) throw new RpcError("answer without an address");
  const bits = valueOf(Mask).toString(2).padStart(Mask.length * 8, "0");
  const length = bits.indexOf("0") < 0 ? bits.length : bits.indexOf("0");
  const prefix = parsePrefix(`${text}/${!text.includes(":") && Mask.length === 16 ? length - 96 : length}`);
  if (prefix === undefined || bits.lastIndexOf("1") >= length) {
    throw new RpcError(`answer with a wrong mask for ${text}`);
  }
  return formatPrefix(prefix);
}

function valueOf(bytes: Uint8Array): bigint {
  return bytes.reduce((value, byte) => value << 8n | BigInt(byte), 0n);
}

function joined(a: Uint8Array, b: Uint8Array): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(a.length + b.length);
  whole.set(a);
  whole.set(b, a.length);
  return whole;
}
