/** `deno task fuzz --cases N --seed S`: calls made of nonsense. Ends with 0 when every one had a proper answer. */
import { parseArgs } from "@std/cli/parse-args";
import { fuzzInNode } from "./node.ts";

const args = parseArgs(Deno.args, {
  string: ["cases", "seed", "from"],
  default: { cases: "5000", seed: "1", from: "0" },
});
const seed = Number(args["seed"]);
const { cases, results, errors, violations, seconds } = await fuzzInNode(Number(args["cases"]), {
  seed,
  from: Number(args["from"]),
});
const say = (text: string) => void Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
for (const { number, plugin, what, env, stdin } of violations.slice(0, 20)) {
  say(
    `case ${number} (${plugin}): ${what}\n  ${
      JSON.stringify(env)
    }\n  ${stdin}\n  again: deno task fuzz --seed ${seed} --from ${number} --cases 1`,
  );
}
say(
  `cases: ${cases}, seed: ${seed}, results: ${results}, errors by code: ${
    JSON.stringify(errors)
  }, violations: ${violations.length}, seconds: ${seconds.toFixed(1)}`,
);
Deno.exit(violations.length === 0 ? 0 : 1);
