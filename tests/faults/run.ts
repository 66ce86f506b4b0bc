/**
 * `deno task test:faults`: every fault at every point of every operation, as a table. `--every N` takes each N-th
 * point, `--setup TEXT`, `--operation TEXT` and `--fault TEXT` only what has that in its name. `--jobs N` nodes are at
 * work at a time; `--count` only counts.
 */
import { parseArgs } from "@std/cli/parse-args";
import {
  diskFaults,
  type Fault,
  killFaults,
  type Outcome,
  setups,
  toolFaults,
  Trial,
  tryLostFolder,
  tryPoints,
  tryTools,
} from "./faults.ts";

const args = parseArgs(Deno.args, {
  boolean: ["count"],
  string: ["setup", "fault", "every", "operation", "jobs"],
  default: { every: "1", setup: "", fault: "", operation: "", jobs: "4" },
});
const every = Number(args["every"]);
const dry = args["count"] === true;
const operations = ["ADD", "DEL", "GC"] as const;
const say = (text: string) => void Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));

/** One row: what is tried on one node without a break. */
interface Work {
  readonly setup: typeof setups[number];
  readonly run: (trial: Trial) => Promise<Outcome>;
}

const wanted = (fault: Fault) => fault.includes(String(args["fault"]));
const work: Work[] = setups.filter(({ name }) => name.includes(String(args["setup"]))).flatMap((setup) => [
  ...operations.filter((one) => one.includes(String(args["operation"]))).flatMap((operation) => [
    ...[...killFaults, ...diskFaults].filter(wanted).map((fault) => ({
      setup,
      run: (trial: Trial) => tryPoints(trial, operation, { fault, every, dry }),
    })),
    ...toolFaults.filter(wanted).map((fault) => ({
      setup,
      run: (trial: Trial) => tryTools(trial, operation, { fault, every, dry }),
    })),
  ]),
  ...(wanted("lost folder") && !dry ? [{ setup, run: tryLostFolder }] : []),
]);

const started = Date.now();
const outcomes: Outcome[] = [];
say(`${"op".padEnd(4)} ${"setup".padEnd(26)} ${"fault".padEnd(26)} points missed  leaks`);

/** Takes rows until none is left; a node is kept as long as the next row is about the same network. */
async function worker(): Promise<void> {
  let trial: Trial | undefined;
  for (let next = work.shift(); next !== undefined; next = work.shift()) {
    if (trial?.setup !== next.setup) {
      await trial?.[Symbol.asyncDispose]();
      trial = await Trial.create(next.setup, first.get(next.setup.name));
      first.set(next.setup.name, first.get(next.setup.name) ?? trial);
    }
    const outcome = await next.run(trial);
    if (outcome.points + outcome.missed.length === 0) continue;
    outcomes.push(outcome);
    const { operation, setup, fault, points, missed, leaks, findings } = outcome;
    const numbers = [points, missed.length, leaks].map((number) => String(number).padStart(6)).join(" ");
    say(`${operation.padEnd(4)} ${setup.padEnd(26)} ${fault.padEnd(26)} ${numbers}`);
    for (const where of missed) say(`  not reached: ${where}`);
    for (const finding of findings) say(`  ${finding}`);
  }
  await trial?.[Symbol.asyncDispose]();
}

/** The first trial of each network: the others take over what it has found out. */
const first = new Map<string, Trial>();
await Promise.all(Array.from({ length: Number(args["jobs"]) }, worker));

const sum = (of: readonly Outcome[], key: "points" | "leaks") => of.reduce((all, one) => all + one[key], 0);
say(`\n| fault                    |  ADD |  DEL |   GC | leaks |`);
say(`| ------------------------ | ---: | ---: | ---: | ----: |`);
for (const fault of [...killFaults, ...diskFaults, ...toolFaults, "lost folder"]) {
  const rows = outcomes.filter((one) => one.fault === fault);
  if (rows.length === 0) continue;
  const cells = operations.map((one) => sum(rows.filter(({ operation }) => operation === one), "points"));
  const numbers = cells.map((number) => String(number).padStart(4)).join(" | ");
  say(`| ${fault.padEnd(24)} | ${numbers} | ${String(sum(rows, "leaks")).padStart(5)} |`);
}
const [points, leaks] = [sum(outcomes, "points"), sum(outcomes, "leaks")];
const missed = outcomes.reduce((all, one) => all + one.missed.length, 0);
const seconds = Math.round((Date.now() - started) / 1000);
say(
  `\npoints ${dry ? "there" : "tried"}: ${points}, not reached: ${missed}, points leaking: ${leaks}, in ${seconds} s`,
);
Deno.exit(leaks === 0 && points > 0 ? 0 : 1);
