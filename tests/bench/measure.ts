/** One call measured as its parent sees it: time, processor time of it and all its children, memory. */
import { type Namespace, type Node, PATH } from "../e2e/support/mod.ts";

/** Who is measured: a folder of plugins inside the node. */
export interface Side {
  readonly name: string;
  /** CNI_PATH inside the node. */
  readonly folder: string;
}

/** What one call, or several one after the other, cost. */
export interface Cost {
  /** Milliseconds from start to end. */
  readonly ms: number;
  /** Milliseconds of processor time, user and system, children included. */
  readonly cpuMs: number;
}

/** One call of one plugin. */
export interface Call {
  readonly type: string;
  readonly command: string;
  readonly container?: Namespace | undefined;
  readonly containerId?: string;
  readonly stdin: unknown;
  /** Arguments instead of a plugin call: the operator's command. */
  readonly args?: readonly string[];
  /** Exit statuses that are no failure besides 0. */
  readonly statuses?: readonly number[];
}

/**
 * Constant text for bash: runs $3… with standard streams in files $1.*, called by the name $2, and says what it cost.
 */
const TIMED = [
  "f=$1; name=$2; shift 2; TIMEFORMAT='%3U %3S'",
  "from=$EPOCHREALTIME",
  '{ time { (exec -a "$name" "$@") <"$f.in" >"$f.out" 2>"$f.err"; }; } 2>"$f.time"; code=$?',
  "to=$EPOCHREALTIME",
  'echo "$code $(( ${to/./} - ${from/./} )) $(<"$f.time")"; [ "$code" = 0 ] || cat "$f.out" "$f.err"; cat "$f.out" >&2',
].join("\n");

/** Environment of a plugin call, and nothing else. */
export function environment(side: Side, call: Call): Record<string, string> {
  const { container, containerId = container?.name ?? "bench" } = call;
  return {
    PATH,
    HOME: "/root",
    CNI_PATH: side.folder,
    ...(call.args ? {} : {
      CNI_COMMAND: call.command,
      CNI_CONTAINERID: containerId,
      CNI_NETNS: container?.netns ?? "/run/netns/none",
      CNI_IFNAME: "eth0",
    }),
  };
}

/** Command line of a call, without the name that it is called by. */
export function programOf(side: Side, call: Call): string[] {
  return [`${side.folder}/${call.type}`, ...call.args ?? []];
}

const isFine = ({ statuses = [] }: Call, code: number) => code === 0 || statuses.includes(code);

/** Runs a call that has to succeed; gives its cost and its JSON. */
// deno-lint-ignore no-explicit-any -- JSON of any CNI version
export async function measure(node: Node, side: Side, call: Call): Promise<Cost & { json: any }> {
  await node.write("/run/bench/io.in", call.stdin === undefined ? "" : JSON.stringify(call.stdin));
  const name = `${side.folder}/${call.type}`;
  const { stdout, stderr } = await node.exec(
    ["bash", "-c", TIMED, "bash", "/run/bench/io", name, ...programOf(side, call)],
    { env: environment(side, call) },
  );
  const [, code, us, user, system] = /^(\d+) (\d+) ([\d.]+) ([\d.]+)/.exec(stdout) ?? [];
  if (!isFine(call, Number(code))) throw new Error(`${side.name}: ${call.type} ${call.command}: ${stdout}${stderr}`);
  return {
    ms: Number(us) / 1000,
    cpuMs: (Number(user) + Number(system)) * 1000,
    json: stderr.startsWith("{") ? JSON.parse(stderr) : undefined,
  };
}

/** Peak memory of the largest process of a call in MiB, by GNU time; undefined where that is not installed. */
export async function peakMemory(node: Node, side: Side, call: Call): Promise<number | undefined> {
  await node.write("/run/bench/io.in", call.stdin === undefined ? "" : JSON.stringify(call.stdin));
  const script = '[ -x /usr/bin/time ] || exit 42; f=$1; n=$2; shift 2; exec /usr/bin/time -f %M -o "$f.mem" ' +
    `bash -c 'exec -a "$0" "$@"' "$n" "$@" <"$f.in" >"$f.out"`;
  const output = await node.exec(
    ["bash", "-c", script, "bash", "/run/bench/io", `${side.folder}/${call.type}`, ...programOf(side, call)],
    { env: environment(side, call) },
  );
  if (output.code === 42) return undefined;
  if (output.code !== 0) throw new Error(`${side.name}: ${call.type} ${call.command}: ${output.stderr}`);
  return Number((await node.read("/run/bench/io.mem") ?? "").trim().split("\n").at(-1)) / 1024;
}

/** How many processes a call starts, by strace; undefined where that is not installed. */
export async function childProcesses(node: Node, side: Side, call: Call): Promise<number | undefined> {
  await node.write("/run/bench/io.in", call.stdin === undefined ? "" : JSON.stringify(call.stdin));
  const script = 'command -v strace >/dev/null || exit 42; f=$1; n=$2; shift 2; exec strace -f -qq -o "$f.trace" ' +
    `-e trace=execve -e signal=none bash -c 'exec -a "$0" "$@"' "$n" "$@" <"$f.in" >"$f.out"`;
  const output = await node.exec(
    ["bash", "-c", script, "bash", "/run/bench/io", `${side.folder}/${call.type}`, ...programOf(side, call)],
    { env: environment(side, call) },
  );
  if (output.code === 42) return undefined;
  if (!isFine(call, output.code)) throw new Error(`${side.name}: ${call.type} ${call.command}: ${output.stderr}`);
  const pids = new Set<string>();
  for (const line of (await node.read("/run/bench/io.trace") ?? "").split("\n")) {
    // Where others did something meanwhile, the line is in two parts.
    const [, pid] = /^(\d+) +(?:execve\(|<\.\.\. execve resumed).* = 0$/.exec(line) ?? [];
    if (pid) pids.add(pid);
  }
  // The plugin itself is the process that bash was.
  return pids.size - 1;
}

/** The value below which the part `share` of the values lies. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((one, other) => one - other);
  const at = (sorted.length - 1) * share;
  const [low = NaN, high = low] = [sorted[Math.floor(at)], sorted[Math.ceil(at)]];
  return low + (high - low) * (at - Math.floor(at));
}

/** The middle value. */
export const median = (values: readonly number[]): number => quantile(values, 0.5);
