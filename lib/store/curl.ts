/**
 * HTTP by curl(1), one child process a request: this program itself has no right to use the network. Everything,
 * secrets included, goes in through curl's configuration on standard input; nothing of it is in argv.
 *
 * @module
 */
import { streamLines } from "../kernel/lines.ts";
import { CommandError, missingTool, type Run, says, toolPath } from "../kernel/run.ts";

/** Where a server is and how it is spoken to: what is the same for all its requests. */
export interface Endpoint {
  /** `http://HOST:PORT`, `https://HOST:PORT`, or `unix:///PATH` for HTTP on a socket. */
  readonly url: string;
  /** Files in PEM form. */
  readonly caFile?: string | undefined;
  readonly certFile?: string | undefined;
  readonly keyFile?: string | undefined;
  /** Do not check the server's certificate. */
  readonly insecure?: boolean | undefined;
  /** The name that the server's certificate is checked for, where it is not the URL's. */
  readonly serverName?: string | undefined;
}

/** One request. */
export interface HttpRequest {
  readonly method: "GET" | "POST" | "PUT" | "DELETE";
  /** Path and query, percent-encoded. */
  readonly path: string;
  readonly headers?: readonly string[];
  readonly body?: string;
  /** Longest time for the whole request, in milliseconds. */
  readonly limitMs: number;
  /** Latest version of TLS. */
  readonly mostTls?: "1.2";
}

/** What the server answered. */
export interface HttpResponse {
  readonly status: number;
  readonly body: string;
}

/**
 * What became of a request without an answer. `sent`: the server may have got it, so a write may have been done, or be
 * done later. `distrusted`: one of both sides does not accept the other's certificate, so nothing was done, and will
 * not be until somebody changes that.
 */
export type Unanswered = "unsent" | "sent" | "distrusted";

/** No answer. */
export class NoAnswer extends Error {
  override readonly name = "NoAnswer";
  constructor(
    readonly endpoint: string,
    readonly reason: string,
    readonly outcome: Unanswered,
    /** curl's exit status. */
    readonly curl = 0,
  ) {
    super(`${endpoint}: ${reason}`);
  }
}

/** Longest wait for a connection, in milliseconds: then the next endpoint is tried. */
const CONNECT_LIMIT_MS = 3_000;

/**
 * Sends one request and returns the answer, whatever its status.
 *
 * @throws {NoAnswer} when there is none
 */
export async function request(run: Run, endpoint: Endpoint, wanted: HttpRequest): Promise<HttpResponse> {
  const answer = await send(run, endpoint, wanted);
  if (!(answer instanceof Error)) return answer;
  // With TLS 1.3 a server may refuse a certificate, and close the connection, before a byte of the request is out: the
  // reason is then lost. With TLS 1.2 it is told before.
  const isClosed = answer.curl === 55 && answer.outcome === "unsent" && endpoint.url.startsWith("https:");
  const again = isClosed ? await send(run, endpoint, { ...wanted, mostTls: "1.2" }) : answer;
  if (!(again instanceof Error)) return again;
  throw again.outcome === "unsent" ? answer : again;
}

/**
 * Sends a request whose answer has no end, and hands over its lines as they come, until `signal` aborts. Resolves with
 * how it ended.
 */
export async function follow(
  endpoint: Endpoint,
  wanted: Omit<HttpRequest, "limitMs">,
  signal: AbortSignal,
  line: (text: string) => void,
): Promise<string> {
  const input = [curlConfig(endpoint, { ...wanted, limitMs: 24 * 3600_000 })];
  return await streamLines({ argv: ["curl", "-q", "-N", "-K", "-"], input, signal }, line);
}

async function send(run: Run, endpoint: Endpoint, wanted: HttpRequest): Promise<HttpResponse | NoAnswer> {
  const input = curlConfig(endpoint, wanted);
  let output;
  try {
    output = await run({ argv: CURL, input: [input], question: true, limitMs: wanted.limitMs + 5_000 });
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    if (toolPath("curl") === "") return new NoAnswer(endpoint.url, missingTool("curl"), "unsent");
    return new NoAnswer(endpoint.url, error.message, "sent");
  }
  const [whole, body = "", status = "000", size] = /^([^]*)\n(\d+) (\d+)$/.exec(output.stdout) ?? [];
  if (output.code === 0 && whole === undefined) return new NoAnswer(endpoint.url, "curl printed no status", "sent");
  if (output.code !== 0 || status === "000") {
    const { code, stderr } = output;
    return new NoAnswer(endpoint.url, curlReason(code, stderr), outcome(output, size), code);
  }
  return { status: Number(status), body };
}

/** `size`: how many bytes curl says that it sent; undefined when it says nothing. */
function outcome({ code, stderr }: { code: number; stderr: string }, size: string | undefined): Unanswered {
  if (DISTRUSTED.has(code) || says({ code, stderr }, "certificateAlert")) return "distrusted";
  return (size === undefined ? UNSENT.has(code) : size === "0") ? "unsent" : "sent";
}

/** `-q`: no configuration file of a user. */
const CURL = ["curl", "-q", "-K", "-"];

/**
 * curl's exit statuses that say that no request was sent: its own options, no such host, no connection, TLS that fails.
 */
const UNSENT = new Set([1, 2, 3, 5, 6, 7, 35]);
/** And those that name a certificate: the server's is not accepted, or a file with one of ours cannot be used. */
const DISTRUSTED = new Set([58, 60, 66, 77, 82, 83, 90, 91]);
/**
 * The configuration that makes curl send this request and print the answer's body, a line end, and status and bytes
 * sent.
 */
export function curlConfig(
  endpoint: Endpoint,
  { method, path, headers = [], body, limitMs, mostTls }: HttpRequest,
): string {
  const socket = /^unix:\/\/(\/.*)$/.exec(endpoint.url)?.[1];
  const base = socket === undefined ? endpoint.url.replace(/\/+$/, "") : "http://localhost";
  const options: [string, string | true | undefined][] = [
    ["url", base + path],
    ["request", method],
    ["unix-socket", socket],
    ["cacert", endpoint.caFile],
    ["cert", endpoint.certFile],
    ["key", endpoint.keyFile],
    ["insecure", endpoint.insecure || undefined],
    ["tls-max", mostTls],
    ["connect-to", connectTo(endpoint)],
    ...headers.map((header): [string, string] => ["header", header]),
    ["data-raw", body],
    ["proto", "=http,https"],
    ["noproxy", "*"],
    ["globoff", true],
    ["silent", true],
    ["show-error", true],
    ["connect-timeout", seconds(Math.min(limitMs, CONNECT_LIMIT_MS))],
    ["max-time", seconds(limitMs)],
    ["write-out", "\n%{http_code} %{size_request}"],
  ];
  return options.flatMap(([name, value]) =>
    value === undefined ? [] : value === true ? [`${name}\n`] : [`${name} = "${escaped(value)}"\n`]
  ).join("");
}

/**
 * curl checks the certificate for the URL's host: with another server name the URL gets that name, and the way stays.
 */
function connectTo({ serverName, url }: Endpoint): string | undefined {
  if (serverName === undefined) return undefined;
  const { hostname, port } = new URL(url);
  return `::${hostname}:${port || "443"}`;
}

const seconds = (ms: number) => (Math.max(ms, 100) / 1000).toFixed(3);

/** Inside double quotes curl reads `\\`, `\"`, `\t`, `\n`, `\r` and `\v`; a line end ends the option. */
function escaped(value: string): string {
  if (value.includes("\0")) throw new TypeError("a NUL byte cannot be sent");
  return value.replace(/[\\"]/g, "\\$&").replaceAll("\n", "\\n").replaceAll("\r", "\\r").replaceAll("\t", "\\t")
    .replaceAll("\v", "\\v");
}

/** curl's words without its own name and number. */
function curlReason(code: number, stderr: string): string {
  const words = stderr.trim().split("\n")[0]?.replace(/^curl: \(\d+\) /, "") ?? "";
  return words === "" ? `curl ended with ${code}` : words;
}
