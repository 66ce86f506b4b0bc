/**
 * firewalld over D-Bus, by a tool that speaks it: `busctl` (part of systemd, there on every host that runs systemd),
 * else `dbus-send` (part of dbus itself). Not `firewall-cmd`, which is a Python program and takes a third of a second
 * to start.
 */
import { CommandError, missingTool, type Output, type Run, toolPath } from "./run.ts";
import { busText } from "./tool_words.ts";

const NAME = "org.fedoraproject.FirewallD1";
const PATH = "/org/fedoraproject/FirewallD1";
const DEFAULT_BUS = "unix:path=/var/run/dbus/system_bus_socket";
/** How long firewalld may take to answer, in seconds: it rewrites its rules for each call. */
const PATIENCE_S = 20;
/** How long the bus itself may take, which knows the answer. */
const BUS_PATIENCE_S = 4;

/** firewalld's refusal, or the bus's: the message is its own words. */
export class FirewalldError extends CommandError {}

/** Address of the system bus in this environment. */
export function busAddress(env: Readonly<Record<string, string>>): string {
  return env["DBUS_SYSTEM_BUS_ADDRESS"] || DEFAULT_BUS;
}

/** What keeps the bus from being reached, in the words of the reference; undefined when its socket is there. */
export function busAbsence(address: string): string | undefined {
  const path = /^unix:path=([^,;]+)/.exec(address)?.[1];
  if (path === undefined) return undefined;
  try {
    Deno.statSync(path);
    return undefined;
  } catch {
    return `dial unix ${path}: connect: no such file or directory`;
  }
}

interface Message {
  readonly destination: string;
  readonly path: string;
  readonly interface: string;
  readonly method: string;
  readonly strings: readonly string[];
  readonly patienceS?: number;
}

async function send(run: Run, address: string, message: Message): Promise<string> {
  const { destination, path, method, strings, patienceS = PATIENCE_S } = message;
  const busctl = toolPath("busctl") !== "";
  const argv = busctl
    ? [
      ...["busctl", `--address=${address}`, `--timeout=${patienceS}`, "call", destination, path, message.interface],
      ...[method, "s".repeat(strings.length), ...strings],
    ]
    : [
      ...[
        "dbus-send",
        `--bus=${address}`,
        `--reply-timeout=${patienceS * 1000}`,
        "--print-reply",
        `--dest=${destination}`,
      ],
      ...[path, `${message.interface}.${method}`, ...strings.map((text) => `string:${text}`)],
    ];
  const fail = (output: Output, words: string) => new FirewalldError({ argv }, output, words);
  if (!busctl && toolPath("dbus-send") === "") {
    throw fail({ code: -1, signal: null, stdout: "", stderr: "" }, missingTool("busctl"));
  }
  let output: Output;
  try {
    // A bus that does not even greet is not covered by the tool's own limit.
    output = await run({ argv, question: /^(Get|query)/.test(method), limitMs: (patienceS + 2) * 1000 });
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    throw fail(error.output, error.message);
  }
  if (output.code === 0) return output.stdout;
  throw fail(output, busText(output));
}

/** Does firewalld own its name on the bus? Any failure means no, as in the reference. */
export async function firewalldRunning(run: Run, address: string): Promise<boolean> {
  if (busAbsence(address) !== undefined) return false;
  try {
    await send(run, address, {
      destination: "org.freedesktop.DBus",
      path: "/org/freedesktop/DBus",
      interface: "org.freedesktop.DBus",
      method: "GetNameOwner",
      strings: [NAME],
      patienceS: BUS_PATIENCE_S,
    });
    return true;
  } catch {
    return false;
  }
}

/** What a source is, and where it belongs. */
export interface ZoneSource {
  readonly zone: string;
  /** Address with its length: `10.22.0.5/32`. */
  readonly source: string;
}

/** Changes or asks about a source of a zone, in the running configuration only. Throws {@linkcode FirewalldError}. */
export async function zoneSource(
  run: Run,
  address: string,
  { method, zone, source }: ZoneSource & { readonly method: "addSource" | "removeSource" | "querySource" },
): Promise<string> {
  const absence = busAbsence(address);
  if (absence !== undefined) {
    throw new FirewalldError({ argv: ["busctl"] }, { code: -1, signal: null, stdout: "", stderr: absence }, absence);
  }
  return await send(run, address, {
    destination: NAME,
    path: PATH,
    interface: `${NAME}.zone`,
    method,
    strings: [zone, source],
  });
}

/** Reads the answer of `querySource`: `b true`, or `boolean true`. */
export function isTrue(answer: string): boolean {
  return /\b(b|boolean) true\b/.test(answer);
}
