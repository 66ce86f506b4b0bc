/**
 * Settings of a container's network namespace by the names that a tuning configuration gives them: find, read, compare.
 * Reading costs one process, which tells of the interface too.
 */
import { goQuote, internal } from "../../lib/cni/error.ts";
import type { ContainerCall } from "../../lib/cni/plugin.ts";
import { aloneArgv } from "../../lib/kernel/batch.ts";
import { isNamed, type Link, linkShow } from "../../lib/kernel/ip.ts";
import { CommandError, failureText, isAbsent } from "../../lib/kernel/run.ts";

/** One setting: the key as configured, and its path below /proc/sys. */
export interface Setting {
  readonly key: string;
  readonly path: string;
  readonly value: string;
}

/** Is this a path below /proc/sys/net that may be written to? */
export function isSetting(path: string): boolean {
  // deno-lint-ignore no-control-regex
  return /^net\/[^\x00-\x1f\x7f]*[^=\x00-\x1f\x7f/]$/.test(path) && !/(^|\/)\.\.(\/|$)|=[^/]*$/.test(path);
}

/**
 * As the reference finds the file: every dot is a slash, so there is no `..`; then the first IFNAME is the interface.
 */
export function setting(key: string, value: string, ifName: string): Setting {
  const written = key.replaceAll(".", "/").replace("IFNAME", () => ifName);
  const path = written.split("/").filter((part) => part !== "").join("/");
  if (isSetting(path) && !value.includes("\0")) return { key, path, value };
  throw internal(
    `invalid net sysctl key: ${goQuote(path)}`,
    `sysctl ${goQuote(key)}: only settings below net belong to a network namespace`,
  );
}

/** The container's link and settings as they are. */
export interface Now {
  readonly link: Link | undefined;
  /** By path: the value, or what is there instead of one that can be read. */
  readonly values: ReadonlyMap<string, string | Unreadable>;
}

/** No such file; a folder; a file that can only be written. */
type Unreadable = { readonly not: "there" | "a file" | "readable" };

/**
 * Constant text, run by /bin/sh in the container's namespace: says what kind of file each setting is, what they hold,
 * then shows the interface that the first argument names, if any. The shell's own `read` gets no more than the first
 * letter, since it asks for one at a time.
 */
const LOOK_SCRIPT = [
  'link=$1; shift; for f; do if [ -d "$f" ]; then echo d; elif [ -e "$f" ]; then echo f; else echo n; fi; done',
  'grep -sH "" /dev/null "$@"; [ -n "$link" ] || exit 0; exec ip -j -d addr show dev "$link"',
].join("\n");

/** Reads these settings and, if asked to, the interface. A missing interface is none, other failures are thrown. */
export async function look(call: ContainerCall, settings: readonly Setting[], withLink: boolean): Promise<Now> {
  if (settings.length === 0 && !withLink) return { link: undefined, values: new Map() };
  const files = settings.map(({ path }) => `/proc/sys/${path}`);
  const argv = settings.length === 0
    ? aloneArgv(["ip", "-j", "-d"], linkShow(call.ifName))
    : ["sh", "-c", LOOK_SCRIPT, "sh", withLink ? call.ifName : "", ...files];
  const command = { argv, question: true };
  const output = await call.pod(command);
  const failure = new CommandError(command, output, failureText(output));
  if (output.code !== 0 && !isAbsent(failure)) throw failure;
  const lines = output.stdout.split("\n");
  const kinds = lines.splice(0, settings.length);
  const shown = lines.find((line) => line.startsWith("["));
  const values = settings.map(({ path }, index): [string, string | Unreadable] => {
    const held = lines.filter((line) => line.startsWith(`${files[index]}:`));
    const text = held.map((line) => line.slice(`${files[index]}:`.length)).join("\n");
    const kind = kinds[index];
    return [path, held.length > 0 ? text : { not: kind === "d" ? "a file" : kind === "f" ? "readable" : "there" }];
  });
  const link = shown === undefined ? undefined : (JSON.parse(shown) as Link[])[0];
  // By a name like if7 iproute2 shows another link when there is none of this name.
  return { link: link && isNamed(link, call.ifName) ? link : undefined, values: new Map(values) };
}

/** Value of a setting; undefined when it can only be written. Throws when there is none. */
export function valueOf(path: string, values: Now["values"]): string | undefined {
  const found = values.get(path) ?? { not: "there" };
  if (typeof found === "string") return found;
  if (found.not === "readable") return undefined;
  const isFolder = found.not === "a file";
  throw internal(
    `open /proc/sys/${path}: ${isFolder ? "is a directory" : "no such file or directory"}`,
    isFolder ? "name a setting in this folder" : "the container's namespace has no such setting",
  );
}

/**
 * Are these values of a setting the same to the kernel? Blanks between its parts do not count, nor how numbers are
 * written.
 */
export function sameValue(configured: string, current: string): boolean {
  const parts = (value: string) => value.trim().split(/\s+/).map(spelled);
  const [a, b] = [parts(configured), parts(current)];
  return a.length === b.length && a.every((part, index) => part === b[index]);
}

/** Numbers as C writes them: 0x10 and 020 are 16. */
function spelled(part: string): string {
  const [, sign = "", digits = ""] = /^([+-]?)(0x[0-9a-f]+|\d+)$/i.exec(part) ?? [];
  if (digits === "") return part;
  const number = /^0[0-7]+$/.test(digits) ? parseInt(digits, 8) : Number(digits);
  return Number.isSafeInteger(number) ? String(sign === "-" ? -number : number) : part;
}
