/**
 * HTTP by curl(1), one child process a request: this program itself has no right to use the network. Everything, secrets included,
 * goes in through curl's configuration on standard input; nothing of it is in argv.
 *
 * @module
 */
import { CommandError, missingTool, type Run, toolPath } from "../kernel/run.ts";

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
}

/** What the server answered. */
export interface HttpResponse {
  readonly status: number;
  readonly body: string;
}

/** No answer. `sent`: the server may have got the request, so a write may have been done, or be done later. */
export class NoAnswer extends Error {
  override readonly name = "NoAnswer";
  constructor(readonly endpoint: string, readonly reason: string, readonly sent: boolean) {
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
  const input = curlConfig(endpoint, wanted);
  let output;
  try {
    output = await run({ argv: CURL, input: [input], question: true, limitMs: wanted.limitMs + 5_000 });
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    if (toolPath("curl") === "") throw new NoAnswer(endpoint.url, missingTool("curl"), false);
    throw new NoAnswer(endpoint.url, error.message, true);
  }
  const [, body = "", status = "0", size = "0"] = /^([^]*)\n(\d+) (\d+)$/.exec(output.stdout) ?? [];
  if (output.code !== 0 || status === "000") {
    throw new NoAnswer(endpoint.url, curlReason(output.code, output.stderr), !REFUSED.has(output.code) && size !== "0");
  }
  return { status: Number(status), body };
}

/** `-q`: no configuration file of a user. */
const CURL = ["curl", "-q", "-K", "-"];

/** curl's exit statuses that say that no request was sent: no such host, no connection, TLS refused, unusable certificates. */
const REFUSED = new Set([1, 2, 3, 5, 6, 7, 35, 53, 54, 58, 59, 60, 66, 77, 80, 82, 83, 90, 91]);

/** The configuration that makes curl send this request and print the answer's body, a line end, and status and bytes sent. */
export function curlConfig(endpoint: Endpoint, { method, path, headers = [], body, limitMs }: HttpRequest): string {
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

/** curl checks the certificate for the URL's host: with another server name the URL gets that name, and the way stays. */
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
