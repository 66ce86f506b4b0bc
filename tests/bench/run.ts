/**
 * `deno task bench`: cnibox beside the reference plugins, in pairs A B A B, each on a throw-away node of its own.
 *
 *     --reference DIR   the reference plugins; else $CNI_REFERENCE_DIR or Debian's
 *     --rows abc        some rows only
 *     --quick           fewer samples
 *     --json FILE       every sample
 *     --plot FILE.svg   rates of row p, growth curves of rows e and f
 */
import { parseArgs } from "@std/cli/parse-args";
import { basename, join } from "@std/path";
import { writeChunks } from "../../tools/build.ts";
import { cacheDir, cniboxDir, referenceDir } from "../e2e/support/bin.ts";
import { binDir, type Namespace, type Node } from "../e2e/support/mod.ts";
import { childProcesses, type Cost, measure, median, quantile, type Side } from "./measure.ts";
import { type Bars, type Curve, type Panel, svg } from "./plot.ts";
import { podNets, podRates, type Rates } from "./pods.ts";
import {
  Attached,
  benchNode,
  ByCommand,
  crowd,
  crowdContainers,
  type Net,
  nets,
  shares,
  startEtcd,
  takeAddresses,
} from "./work.ts";

/** One kind of work, both sides. Costs in milliseconds; `target`: the highest ratio of medians wanted. */
interface Row {
  readonly id: string;
  readonly work: string;
  readonly ours: Cost[];
  readonly theirs: Cost[];
  readonly target?: number;
  readonly memory?: number | undefined;
  readonly children?: readonly (number | undefined)[];
}

/** One number beside what it should be. */
interface Figure {
  readonly id: string;
  readonly what: string;
  readonly value: number;
  readonly target: string;
  readonly met: boolean;
}

const args = parseArgs(Deno.args, {
  string: ["reference", "rows", "json", "plot"],
  boolean: ["quick", "help"],
  default: { rows: "pqabcdefghijk" },
});
const say = (text: string) => void Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
const note = (text: string) => void Deno.stderr.writeSync(new TextEncoder().encode(`${text}\n`));
const HELP =
  `deno task bench: cnibox beside the reference plugins, in pairs, each on a throw-away node of its own; as root.

  --reference DIR   the reference plugins; else $CNI_REFERENCE_DIR or Debian's
  --rows abc        some rows only, in this order
  --quick           fewer samples
  --json FILE       every sample
  --plot FILE.svg   rates of row p, growth curves of rows e and f

Example: deno task bench --rows ac --quick`;
if (args["help"] === true) {
  say(HELP);
  Deno.exit(0);
}
const given = args["reference"] as string | undefined;
if (given) Deno.env.set("CNIBOX_E2E_REFERENCE", given);
else if (Deno.env.get("CNI_REFERENCE_DIR")) {
  Deno.env.set("CNIBOX_E2E_REFERENCE", Deno.env.get("CNI_REFERENCE_DIR") ?? "");
}
const quick = args["quick"] === true;
const SAMPLES = quick ? 7 : 31;
const WARM_UP = 3;
/** Row e: addresses taken; row f: containers on the node. */
const TAKEN = [100, 1_000, 10_000, 50_000];
const CONTAINERS = [10, 100, 250];
const wanted = String(args["rows"]);
const rows: Row[] = [];
/** Row p: pods a second, ours and the reference's. */
const pods: [label: string, ours: number, theirs: number][] = [];
const figures: Figure[] = [];

const OURS: Side = { name: "cnibox", folder: binDir.cnibox };
const THEIRS: Side = { name: "reference", folder: binDir.ref };

if (referenceDir() === undefined) throw new Error("no reference plugins: tests/support/reference.sh fetches them");
const copies = Deno.makeTempDirSync({ dir: cacheDir, prefix: "bench-" });
globalThis.addEventListener("unload", () => Deno.removeSync(copies, { recursive: true }));
Deno.env.set("CNIBOX_E2E_BIN_DIR", freshCopy(cniboxDir(), join(copies, "cnibox")));
Deno.env.set("CNIBOX_E2E_REFERENCE", freshCopy(referenceDir()!, join(copies, basename(referenceDir()!))));

type Rows = Record<string, () => Promise<unknown>>;
const work: Rows = {
  p: podsAtOnce,
  q: podLives,
  a: () =>
    lifeOf("a", "bridge + host-local, ipMasq", nets.masq, { targets: { ADD: 1.45, DEL: 0.5, pair: 0.7 } })
      .then(() => lifeOf("a", "the same, dual stack", nets.dual, {})),
  b: () => lifeOf("b", "bridge + host-local", nets.plain, {}),
  c: () => lifeOf("c", "bridge + portmap (tcp, udp)", nets.ports, { targets: { ADD: 1.25, DEL: 0.6 } }),
  d: manyAtOnce,
  e: leases,
  f: fullNodes,
  g: () =>
    lifeOf("g", "chain of four: one process / one by one", nets.four, {
      targets: { ADD: 0.8, DEL: 0.5 },
      ours: ByCommand,
    }),
  h: () => lifeOf("h", "loopback", { cniVersion: "1.0.0", name: "lo", plugins: [{ type: "loopback" }] }, {}),
  i: versions,
  j: () =>
    lifeOf("j", "cluster on etcd / our host-local", shares.cluster, {
      targets: { ADD: 1.1 },
      prepare: startEtcd,
      other: { side: OURS, net: shares.local },
    }),
  k: screens,
};
say(
  `cnibox ${await versionOf(join(cniboxDir(), "cnibox"))}; reference ${await versionOf(
    join(referenceDir()!, "bridge"),
  )}`,
);
say(await machine());
for (const id of wanted) {
  note(`row ${id}`);
  await work[id]?.();
  // After each row: a run takes minutes, and may be ended before its end.
  if (args["json"]) Deno.writeTextFileSync(String(args["json"]), JSON.stringify({ rows, figures }, null, 1));
  if (args["plot"]) Deno.writeTextFileSync(String(args["plot"]), svg(panels()));
}
report();

/**
 * ADD and DEL one after the other, of both sides in turn; on nodes of their own, in one container that is used again.
 */
async function lifeOf(
  id: string,
  title: string,
  net: Net,
  { targets = {}, ours = Attached, prepare, samples = SAMPLES, folded = net, other = { side: THEIRS, net } }: {
    targets?: { ADD?: number; DEL?: number; pair?: number };
    ours?: typeof Attached;
    prepare?: (node: Node, side: Side) => Promise<void>;
    samples?: number;
    /** The same network as our side has it. */
    folded?: Net;
    /** What it is compared with: the reference, on the same network, if absent. */
    other?: { readonly side: Side; readonly net: Net };
  },
): Promise<{ add: Row; del: Row }> {
  await using mine = await benchNode();
  await using theirs = await benchNode();
  const pair: Attached[] = [];
  for (
    const [node, who, kind, list] of [[mine, OURS, ours, folded], [theirs, other.side, Attached, other.net]] as const
  ) {
    await prepare?.(node, who);
    pair.push(new kind(node, who, list, await node.container("bench")));
  }
  const costs: Record<"ADD" | "DEL", Cost[][]> = { ADD: [[], []], DEL: [[], []] };
  for (let index = -WARM_UP; index < samples; index++) {
    for (const [at, one] of pair.entries()) {
      const [add, del] = [await one.cost("ADD"), await one.cost("DEL")];
      if (index < 0) continue;
      costs.ADD[at]?.push(add);
      costs.DEL[at]?.push(del);
    }
  }
  const made: Row[] = [];
  const extra: Record<string, { memory: number | undefined; children: (number | undefined)[] }> = {};
  for (const command of ["ADD", "DEL"] as const) extra[command] = { memory: undefined, children: [] };
  const [first] = pair;
  for (const command of ["ADD", "DEL"] as const) extra[command]!.memory = await first?.memory(command);
  for (const one of pair) {
    for (const command of ["ADD", "DEL"] as const) extra[command]!.children.push(await one.children(command));
  }
  for (const command of ["ADD", "DEL"] as const) {
    const target = targets[command];
    made.push({
      id,
      work: `${title}: ${command}`,
      ours: costs[command][0] ?? [],
      theirs: costs[command][1] ?? [],
      ...(target && { target }),
      ...extra[command],
    });
  }
  rows.push(...made);
  if (targets.pair) {
    const sum = (at: number) => (costs.ADD[at] ?? []).map(({ ms }, index) => ms + (costs.DEL[at]?.[index]?.ms ?? 0));
    figure(id, `${title}: ADD + DEL`, median(sum(0)) / median(sum(1)), { most: targets.pair });
  }
  return { add: made[0]!, del: made[1]! };
}

/** Lists of a pod, one container at a time: one chain beside the reference's processes, one after the other. */
async function podLives(): Promise<void> {
  const titles = { p2: "bridge + portmap", p3: "… + firewall", p4: "… + bandwidth" };
  const targets = {
    p2: { ADD: 0.85, DEL: 0.5, pair: 0.6 },
    p3: { ADD: 0.75, DEL: 0.45, pair: 0.55 },
    p4: { ADD: 0.65, DEL: 0.4, pair: 0.5 },
  };
  for (const id of ["p2", "p3", "p4"] as const) {
    const { list, chain } = podNets[id];
    await lifeOf(id, `pod: ${titles[id]}`, list, { folded: chain, targets: targets[id] });
  }
}

/** The same lists for two hundred containers, sixteen at once. */
async function podsAtOnce(): Promise<void> {
  const count = quick ? 48 : 200;
  const least = {
    p2: { churn: 1.8, add: 1.3, del: 3 },
    p3: { churn: undefined, add: undefined, del: undefined },
    p4: { churn: 2, add: 1.5, del: 3 },
  };
  for (const id of ["p2", "p3", "p4"] as const) {
    const { list, chain } = podNets[id];
    await using mine = await benchNode();
    await using other = await benchNode();
    for (const node of [mine, other]) await crowdContainers(node, count);
    const rates: [Rates[], Rates[]] = [[], []];
    for (let batch = 0; batch < (quick ? 1 : 3); batch++) {
      const pair = [await podRates(mine, OURS, chain, count), await podRates(other, THEIRS, list, count)];
      pair.forEach((one, at) => rates[at]?.push(one));
    }
    for (const [key, what] of [["churn", "ADD and DEL of a pod"], ["add", "ADD"], ["del", "DEL"]] as const) {
      const [ours, theirs] = rates.map((all) => median(all.map((one) => one[key]))) as [number, number];
      pods.push([`${id} ${key === "churn" ? "both" : key.toUpperCase()}`, ours, theirs]);
      const title = `${count} pods, 16 at once: ${what}, a second, ${ours.toFixed(1)} / ${theirs.toFixed(1)}`;
      figure(id, title, ours / theirs, least[id][key] === undefined ? {} : { least: least[id][key] });
    }
  }
}

/** Two hundred containers, sixteen at once; batches of both sides in turn. */
async function manyAtOnce(): Promise<void> {
  await using mine = await benchNode();
  await using other = await benchNode();
  const count = quick ? 48 : 200;
  for (const node of [mine, other]) await crowdContainers(node, count);
  const rates: Record<string, number[]> = { "0add": [], "0del": [], "1add": [], "1del": [] };
  for (let batch = -1; batch < (quick ? 1 : 3); batch++) {
    for (const [at, [node, side]] of ([[mine, OURS], [other, THEIRS]] as const).entries()) {
      const { add, del } = await crowd(node, side, count);
      if (batch < 0) continue;
      rates[`${at}add`]?.push(add);
      rates[`${at}del`]?.push(del);
    }
  }
  for (const [key, least] of [["add", 1.2], ["del", 2.5]] as const) {
    const [ours, theirs] = [median(rates[`0${key}`] ?? []), median(rates[`1${key}`] ?? [])];
    figure(
      "d",
      `${count} containers, 16 at once: ${key.toUpperCase()} a second, ${ours.toFixed(1)} / ${theirs.toFixed(1)}`,
      ours / theirs,
      { least },
    );
  }
}

/** host-local alone, in folders with addresses taken. */
async function leases(): Promise<void> {
  const made = new Map<number, { add: Row; del: Row }>();
  for (const taken of TAKEN) {
    const target = taken === 10_000 ? 0.33 : taken === 50_000 ? 0.075 : undefined;
    const net = nets.leases(taken);
    const prepare = (node: Node) => Promise.resolve(takeAddresses(node, net.name, taken));
    const title = `host-local, ${taken.toLocaleString("en")} taken`;
    const targets = target ? { ADD: target, DEL: target } : {};
    made.set(
      taken,
      await lifeOf("e", title, net, { targets, prepare, samples: quick ? 5 : taken > 5_000 ? 15 : SAMPLES }),
    );
  }
  for (const key of ["add", "del"] as const) {
    growth("e", `host-local ${key.toUpperCase()}: 50,000 against 100 taken`, {
      high: made.get(50_000)?.[key],
      low: made.get(100)?.[key],
      most: 1.25,
    });
  }
}

/** ADD and DEL on nodes that have containers with rules already. */
async function fullNodes(): Promise<void> {
  const made = new Map<number, { add: Row; del: Row }>();
  for (const count of CONTAINERS) {
    const prepare = (node: Node, side: Side) => fill(node, side, count);
    const title = `bridge, ipMasq, beside ${count} containers`;
    made.set(count, await lifeOf("f", title, nets.masq, { prepare, samples: quick ? 7 : 25 }));
  }
  for (const key of ["add", "del"] as const) {
    growth("f", `bridge ${key.toUpperCase()}: beside 250 against 10 containers`, {
      high: made.get(250)?.[key],
      low: made.get(10)?.[key],
      most: 1.15,
    });
  }
}

async function fill(node: Node, side: Side, count: number): Promise<void> {
  for (let index = 0; index < count; index++) {
    const container: Namespace = await node.container(`full${index}`);
    await new Attached(node, side, nets.masq, container).cost("ADD");
  }
}

/** What operators look at, on a node that is full. */
async function screens(): Promise<void> {
  const count = quick ? 48 : 200;
  await using node = await benchNode();
  for (let index = 0; index < count; index++) {
    await new ByCommand(node, OURS, nets.masq, await node.container(`full${index}`)).cost("ADD");
  }
  for (const command of ["show", "status", "doctor", "graph"]) {
    // doctor may have something to say about the machine.
    const call = { type: "cnibox", command, stdin: undefined, args: [command], statuses: [1, 2] };
    const costs: Cost[] = [];
    for (let index = -1; index < (quick ? 3 : 9); index++) {
      const cost = await measure(node, OURS, call);
      if (index >= 0) costs.push(cost);
    }
    const title = `cnibox ${command} beside ${count} containers`;
    figure("k", `${title}, ms`, medianOf(costs, "ms"), { most: 1_000 });
    figure("k", `${title}: processor time, ms`, medianOf(costs, "cpuMs"), {});
    const children = await childProcesses(node, OURS, call);
    // One for each namespace, and a few.
    if (children !== undefined) figure("k", `${title}: processes`, children, { most: count + 40 });
  }
}

/** The bare start. */
async function versions(): Promise<void> {
  await using node = await benchNode();
  const costs: Cost[][] = [[], []];
  for (let index = -WARM_UP; index < SAMPLES; index++) {
    for (const [at, side] of [OURS, THEIRS].entries()) {
      const cost = await measure(node, side, { type: "bridge", command: "VERSION", stdin: { cniVersion: "1.0.0" } });
      if (index >= 0) costs[at]?.push(cost);
    }
  }
  rows.push({ id: "i", work: "VERSION: the bare start", ours: costs[0] ?? [], theirs: costs[1] ?? [] });
  await programText();
}

/** Text of the program as it is shipped, all of it and what a bridge ADD with host-local reads, in kilobytes. */
async function programText(): Promise<void> {
  const folder = Deno.makeTempDirSync({ dir: cacheDir, prefix: "bench-" });
  try {
    await writeChunks(join(import.meta.dirname!, "../../main.ts"), folder);
    const sizes = new Map(
      [...Deno.readDirSync(join(folder, "chunks"))].map((
        { name },
      ) => [name, Deno.statSync(join(folder, "chunks", name)).size]),
    );
    const sum = (of: Iterable<number>) => [...of].reduce((total, size) => total + size, 0) / 1000;
    figure("i", "program text, minified, KB", sum(sizes.values()), { most: 200 });
    const read = ["main.js", "bridge.js", "host-local.js"].map((name) => sizes.get(name) ?? NaN);
    figure("i", "of it read by ADD of bridge with host-local, KB", sum(read), { most: 200 });
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

/**
 * Copies a folder of plugins and reads every file from start to end, before any is run: how an executable got into the
 * page cache changes what its calls cost, and both sides are to be alike.
 */
function freshCopy(from: string, to: string): string {
  Deno.mkdirSync(to, { mode: 0o755 });
  const buffer = new Uint8Array(4 * 1024 * 1024);
  for (const { name, isSymlink } of Deno.readDirSync(from)) {
    if (isSymlink) Deno.symlinkSync(Deno.readLinkSync(join(from, name)), join(to, name));
    else {
      Deno.copyFileSync(join(from, name), join(to, name));
      using file = Deno.openSync(join(to, name));
      while (file.readSync(buffer) !== null);
    }
  }
  return to;
}

function figure(id: string, what: string, value: number, limit: { most?: number; least?: number }): void {
  const { most, least } = limit;
  const met = most === undefined ? value >= (least ?? 0) : value <= most;
  const target = most !== undefined ? `≤ ${most}` : least !== undefined ? `≥ ${least}` : "";
  figures.push({ id, what, value, target, met });
}

function growth(id: string, what: string, { high, low, most }: { high?: Row; low?: Row; most: number }): void {
  if (!high || !low) return;
  figure(id, `growth of ${what}`, medianOf(high.ours, "ms") / medianOf(low.ours, "ms"), { most });
}

function medianOf(costs: readonly Cost[], key: keyof Cost): number {
  return median(costs.map((cost) => cost[key]));
}

function report(): void {
  say("");
  const heads = [
    "row",
    "work",
    "ms, ours",
    "p95",
    "reference",
    "p95",
    "ratio",
    "middle half",
    "target",
    "CPU ms",
    "ref.",
    "MiB",
    "processes",
  ];
  const lines = rows.map((row) => {
    const ms = (costs: readonly Cost[]) => costs.map((cost) => cost.ms);
    const ratios = row.ours.map(({ ms }, index) => ms / (row.theirs[index]?.ms ?? NaN));
    const ratio = medianOf(row.ours, "ms") / medianOf(row.theirs, "ms");
    const target = row.target === undefined ? "" : `≤ ${row.target} ${ratio <= row.target ? "met" : "missed"}`;
    return [
      row.id,
      row.work,
      medianOf(row.ours, "ms").toFixed(1),
      quantile(ms(row.ours), 0.95).toFixed(1),
      medianOf(row.theirs, "ms").toFixed(1),
      quantile(ms(row.theirs), 0.95).toFixed(1),
      ratio.toFixed(2),
      `${quantile(ratios, 0.25).toFixed(2)}–${quantile(ratios, 0.75).toFixed(2)}`,
      target,
      medianOf(row.ours, "cpuMs").toFixed(0),
      medianOf(row.theirs, "cpuMs").toFixed(0),
      row.memory?.toFixed(0) ?? "",
      row.children?.map((count) => count ?? "?").join(" / ") ?? "",
    ];
  });
  // What a node feels comes first.
  if (figures.length > 0) {
    table([
      ["row", "figure", "value", "target"],
      ...figures.map(({ id, what, value, target, met }) => [
        id,
        what,
        value.toFixed(2),
        target === "" ? "" : `${target} ${met ? "met" : "missed"}`,
      ]),
    ]);
    say("");
  }
  if (lines.length > 0) table([heads, ...lines]);
}

/** As Markdown, so that it can go into a page as it is. */
function table(lines: readonly (readonly string[])[]): void {
  const widths = lines[0]?.map((_, at) => Math.max(...lines.map((line) => line[at]?.length ?? 0))) ?? [];
  lines.forEach((line, index) => {
    say(`| ${line.map((cell, at) => cell.padEnd(widths[at] ?? 0)).join(" | ")} |`);
    if (index === 0) say(`| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`);
  });
}

function panels(): (Panel | Bars)[] {
  const curves = (id: string, xs: readonly number[]): Curve[] =>
    ["ADD", "DEL"].flatMap((command) => {
      const of = rows.filter((row) => row.id === id && row.work.endsWith(command));
      const points = (key: "ours" | "theirs") => of.map((row, at) => [xs[at] ?? 0, medianOf(row[key], "ms")] as const);
      return [
        { name: `cnibox ${command}`, points: points("ours") },
        { name: `reference ${command}`, points: points("theirs") },
      ];
    });
  const names: [string, string] = ["cnibox, one chain", "reference, its plugins in turn"];
  return [
    {
      title: "Pods a second, 16 at once",
      x: "p2: bridge + portmap, p3: + firewall, p4: + bandwidth",
      names,
      groups: pods,
    },
    { title: "host-local", x: "addresses taken", curves: curves("e", TAKEN) },
    { title: "bridge, ipMasq", x: "containers on the node", curves: curves("f", CONTAINERS) },
  ].filter((panel) => "groups" in panel ? pods.length > 0 : panel.curves.some(({ points }) => points.length > 0));
}

async function versionOf(path: string): Promise<string> {
  const isOurs = basename(path) === "cnibox";
  const { stdout, stderr } = await new Deno.Command(path, { args: isOurs ? ["--version"] : [], clearEnv: true })
    .output();
  const text = new TextDecoder().decode(isOurs ? stdout : stderr);
  const version = /(?:cnibox|version) v?(\d+\.\d+\.\d+\S*)/.exec(text)?.[1];
  // Debian's plugins do not know their version; the folder that they were unpacked to does.
  return version ?? /\d+\.\d+\.\d+[^/]*/.exec(path)?.[0] ?? "of unknown version";
}

async function machine(): Promise<string> {
  const cpu = /model name\s*: (.*)/.exec(await Deno.readTextFile("/proc/cpuinfo"))?.[1] ?? Deno.build.arch;
  const iptables = await new Deno.Command("iptables", { args: ["-V"] }).output().catch(() => undefined);
  const load = (await Deno.readTextFile("/proc/loadavg")).split(" ")[0];
  return [
    `${navigator.hardwareConcurrency} × ${cpu}`,
    `Linux ${Deno.osRelease()}`,
    new TextDecoder().decode(iptables?.stdout).trim(),
    `load ${load}`,
  ].join(", ");
}
