/**
 * `deno task test:chaos`: ADD, CHECK, DEL, GC and kills at random on one node, invariants checked all the time.
 * `--operations N`, `--at-once N`, `--seed N`.
 */
import { parseArgs } from "@std/cli/parse-args";
import { run } from "./chaos.ts";

const args = parseArgs(Deno.args, {
  string: ["operations", "at-once", "seed"],
  default: { operations: "2000", "at-once": "16", seed: "1" },
});
const say = (text: string) => void Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
const started = performance.now();
const { counts, looks, violations } = await run({
  operations: Number(args["operations"]),
  atOnce: Number(args["at-once"]),
  seed: Number(args["seed"]),
});
for (const violation of violations) say(violation);
say(
  `${counts.ADD} ADD, ${counts.CHECK} CHECK, ${counts.DEL} DEL, ${counts.GC} GC; ${counts.killed} killed; ` +
    `${looks} looks; ${violations.length} violations; ${((performance.now() - started) / 1000).toFixed(0)} s`,
);
Deno.exit(violations.length === 0 ? 0 : 1);
