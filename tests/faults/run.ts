/**
 * `deno task test:faults`: every fault at every point of every operation, as a table. `--every N` takes each N-th point,
 * `--setup TEXT`,
 * `--operation TEXT` and `--fault TEXT` only what has that in its name.
 */
import { parseArgs } from "@std/cli/parse-args";
import {
  diskFaults,
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
  string: ["setup", "fault", "every", "operation"],
  default: { every: "1", setup: "", fault: "", operation: "" },
});
const every = Number(args["every"]);
const outcomes: Outcome[] = [];
const say = (text: string) => void Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
const row = ({ operation, setup, fault, points, leaks }: Outcome) =>
  `${operation.padEnd(4)} ${setup.padEnd(26)} ${fault.padEnd(26)} ${String(points).padStart(6)} ${
    String(leaks).padStart(6)
  }`;
const note = (outcome: Outcome) => {
  outcomes.push(outcome);
  say(row(outcome));
  for (const finding of outcome.findings) say(`  ${finding}`);
};

say(`${"op".padEnd(4)} ${"setup".padEnd(26)} ${"fault".padEnd(26)} points  leaks`);
for (const setup of setups.filter(({ name }) => name.includes(String(args["setup"])))) {
  const wanted = (fault: string) => fault.includes(String(args["fault"]));
  await using trial = await Trial.create(setup);
  for (const operation of (["ADD", "DEL", "GC"] as const).filter((one) => one.includes(String(args["operation"])))) {
    for (const fault of [...killFaults, ...diskFaults].filter(wanted)) {
      note(await tryPoints(trial, operation, { fault, every }));
    }
    for (const fault of toolFaults.filter(wanted)) note(await tryTools(trial, operation, { fault, every }));
  }
  if (wanted("lost folder")) note(await tryLostFolder(trial));
}
const [points, leaks] = [
  outcomes.reduce((sum, one) => sum + one.points, 0),
  outcomes.reduce((sum, one) => sum + one.leaks, 0),
];
say(`points tried: ${points}, points leaking: ${leaks}`);
Deno.exit(leaks === 0 && points > 0 ? 0 : 1);
