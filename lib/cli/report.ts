/**
 * `cnibox report`: one archive with what somebody needs who is asked for help: configuration, survey, rules, versions,
 * logs.
 */
import { configFiles } from "../cni/conflist.ts";
import { isObject } from "../cni/decode.ts";
import { type Run, systemRun, toolPath } from "../kernel/run.ts";
import { CliError, type CommandCall, status } from "./command.ts";
import { tar, type TarFile } from "./image.ts";
import { parseJsonc, valueOf } from "./jsonc.ts";
import { fileError, type Folders, foldersOf, note, readIfUsable } from "./setup.ts";
import { jsonText, say } from "./terminal.ts";

/** What this program is asked, and the file that keeps its answer. */
const OWN: readonly (readonly [file: string, words: string])[] = [
  ["version.json", "version --json"],
  ["plugins.json", "plugins --json"],
  ["status.txt", "status"],
  ["show.json", "show --json"],
  ["doctor.txt", "doctor"],
  ["ipam.json", "ipam list --json"],
  ["validate.txt", "validate"],
];

/** Commands that look at no folder. */
const PLACELESS = ["version", "plugins"];

/** What the machine is asked. */
const TOOLS: readonly (readonly [file: string, command: string])[] = [
  ["kernel.txt", "uname -a"],
  ["links.txt", "ip -d -s address show"],
  ["routes.txt", "ip route show table all"],
  ["routes6.txt", "ip -6 route show table all"],
  ["policy.txt", "ip rule show"],
  ["bridges.txt", "bridge -d link show"],
  ["iptables.txt", "iptables-save -c"],
  ["ip6tables.txt", "ip6tables-save -c"],
  ["nft.txt", "nft list ruleset"],
  ["qdiscs.txt", "tc -s qdisc show"],
  ["sysctl.txt", "sysctl -a --pattern ^net\\.(ipv4|ipv6)\\.conf\\.(all|default)\\.|ip_forward|bridge-nf-call"],
  ["journal.txt", "journalctl --no-pager -n 500 -u cnibox* -u containerd -u crio"],
  ["iproute2.txt", "ip -V"],
  ["iptables-version.txt", "iptables --version"],
  ["nft-version.txt", "nft --version"],
];

/** Bytes of a log that are kept: its end. */
const LOG_LIMIT = 1024 * 1024;

/** `cnibox report [FILE]` */
export async function report(call: CommandCall): Promise<number> {
  const folders = foldersOf(call);
  const at = new Date().toISOString().replace(/[-:]|\.\d+/g, "");
  const folder = `cnibox-report-${at}`;
  const file = call.arg("FILE") ?? `${folder}.tar`;
  const texts = await contents(call, folders);
  const bytes = tar(texts.map(([name, text]): TarFile => ({
    // The format has 100 bytes for a name.
    name: `${folder}/${name}`.slice(0, 100),
    mode: 0o600,
    bytes: new TextEncoder().encode(text),
  })));
  if (file === "-") {
    write(Deno.stdout, bytes);
    return status.done;
  }
  try {
    // Never over a file that is there, and for nobody else to read.
    using target = Deno.openSync(file, { write: true, createNew: true, mode: 0o600 });
    write(target, bytes);
  } catch (error) {
    if (error instanceof Deno.errors.AlreadyExists) throw new CliError(`${file} exists already`, status.failed);
    throw fileError(file, error);
  }
  say(`${file}: ${texts.length} files; look through them before you hand them on\n`);
  return status.done;
}

function write(stream: { writeSync(bytes: Uint8Array): number }, bytes: Uint8Array): void {
  for (let left = bytes; left.length > 0;) left = left.subarray(stream.writeSync(left));
}

/** Name and text of every file. */
async function contents(call: CommandCall, folders: Folders): Promise<[string, string][]> {
  const host = systemRun();
  const places = call.command.flags.flatMap(({ name }) => {
    const value = call.value(name);
    return value === undefined ? [] : [`--${name}=${value}`];
  });
  const own = OWN.map(async ([name, words]): Promise<[string, string]> => {
    return [name, await answerOf(host, [...selfArgv(), ...words.split(" "), ...accepted(words, places)])];
  });
  const tools = TOOLS.filter(([, command]) => toolPath(command.split(" ")[0] ?? "") !== "").map(
    async ([name, command]): Promise<[string, string]> => [name, await answerOf(host, command.split(" "))],
  );
  return [
    ...await Promise.all([...own, ...tools]),
    ["os-release.txt", readIfUsable("/etc/os-release", { links: true }) ?? ""],
    ...configurations(folders),
    ...logs(),
  ];
}

/** Flags for places, as far as a command has them. */
function accepted(words: string, places: readonly string[]): readonly string[] {
  if (PLACELESS.includes(words.split(" ")[0] ?? "")) return [];
  return words === "validate" ? places.filter((flag) => /^--(conf-dir|root)=/.test(flag)) : places;
}

/** This program, also where it is not compiled. */
function selfArgv(): string[] {
  return Deno.build.standalone ? [Deno.execPath()] : [Deno.execPath(), "run", "-A", Deno.mainModule];
}

async function answerOf(host: Run, argv: readonly string[]): Promise<string> {
  try {
    const { code, stdout, stderr } = await host({ argv: [...argv] });
    return withoutSecrets(
      `${stdout}${stderr === "" ? "" : `\n[standard error]\n${stderr}`}${code === 0 ? "" : `\n[exit ${code}]\n`}`,
    );
  } catch (error) {
    return `[not run: ${(error as Error).message}]\n`;
  }
}

/** Configurations of networks, without what opens doors. */
function configurations(folders: Folders): [string, string][] {
  let files: string[] = [];
  try {
    files = configFiles(folders.conf, [".conflist", ".conf", ".json"]);
  } catch (error) {
    note((error as Error).message);
  }
  return files.map((file) => [`net.d/${file.slice(file.lastIndexOf("/") + 1)}`, configurationText(file)]);
}

function configurationText(file: string): string {
  const text = readIfUsable(file, { links: true });
  if (text === undefined) return "[not readable]\n";
  try {
    return jsonText(redacted(valueOf(parseJsonc(text).root)));
  } catch {
    // Broken as it is, nobody can tell what in it is secret, but lines that look so.
    return withoutSecrets(text);
  }
}

/** Keys whose values are secret, or may be. */
const SECRET = /token|passw|secret|private|credential|auth|^key|key$|cert|kubeconfig/i;
const REMOVED = "[removed]";

/** A value without its secrets; what is only named after one, such as a list of objects, is gone through. */
export function redacted(value: unknown, key = ""): unknown {
  if (SECRET.test(key) && (typeof value === "string" || typeof value === "number")) return REMOVED;
  if (Array.isArray(value)) return value.map((one) => redacted(one, key));
  if (!isObject(value)) return typeof value === "string" ? withoutSecrets(value) : value;
  return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, redacted(one, name)]));
}

/** Text without what looks like a key, a token, or a password in a URL. */
export function withoutSecrets(text: string): string {
  return text
    .replace(/-----BEGIN [^-]+-----[^]*?(-----END [^-]+-----|$)/g, REMOVED)
    .replace(/\b(bearer|basic) +[\w.~+/=-]{8,}/gi, `$1 ${REMOVED}`)
    .replace(/\beyJ[\w-]+\.[\w-]+\.[\w-]+/g, REMOVED)
    .replace(/(\w+:\/\/[^\s:/@"]*:)[^\s@/"]+@/g, `$1${REMOVED}@`)
    .replace(
      /("?[\w.-]*(?:token|passw(?:or)?d|secret|credential|private[-_]?key)[\w.-]*"?\s*[:=]\s*)("[^"]*"|[^\s",}]+)/gi,
      `$1"${REMOVED}"`,
    );
}

/** The end of the plugins' log, where this environment names one. */
function logs(): [string, string][] {
  const file = Deno.env.get("CNIBOX_LOG") ?? "";
  const text = file === "" ? undefined : readIfUsable(file, { links: true });
  return text === undefined ? [] : [["cnibox.log", withoutSecrets(text.slice(-LOG_LIMIT))]];
}
