/** The part of `deno task fuzz` that runs inside a throw-away node. Prints one JSON object. */
import { parseArgs } from "@std/cli/parse-args";
import { fuzz } from "./fuzz.ts";

const args = parseArgs(Deno.args, {
  string: ["cases", "seed", "from"],
  default: { cases: "1000", seed: "1", from: "0" },
});
const started = performance.now();
const tally = await fuzz(Number(args["cases"]), {
  seed: Number(args["seed"]),
  from: Number(args["from"]),
  folder: "/run/fuzz/networks",
});
const shown = { ...tally, errors: Object.fromEntries(tally.errors), seconds: (performance.now() - started) / 1000 };
Deno.stdout.writeSync(new TextEncoder().encode(`${JSON.stringify(shown)}\n`));
Deno.exit(0);
