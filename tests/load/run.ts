/**
 * `deno task test:load`: hundreds of containers at once, on both backends, ours beside the reference. `--containers N`,
 * `--at-once N`, `--seed N`.
 */
import { parseArgs } from "@std/cli/parse-args";
import { referenceDir } from "../e2e/support/bin.ts";
import { type Load, run } from "./load.ts";

const args = parseArgs(Deno.args, {
  string: ["containers", "at-once", "seed"],
  default: { containers: "500", "at-once": "32", seed: "1" },
});
const containers = Number(args["containers"]);
const atOnce = Number(args["at-once"]);
const seed = Number(args["seed"]);
const say = (text: string) => void Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
const loads: Load[] = [];
for (const backend of ["iptables", "nftables"] as const) {
  for (const mixed of [false, true]) loads.push({ backend, containers, atOnce, mixed, by: "cnibox", seed });
}
if (referenceDir()) {
  loads.push({ backend: "iptables", containers, atOnce, mixed: false, by: "cnibox", foreignIpam: true, seed });
  for (const backend of ["iptables", "nftables"] as const) {
    loads.push({ backend, containers, atOnce, mixed: false, by: "ref", seed });
  }
}
say(
  `${"who".padEnd(22)} ${"backend".padEnd(9)} ${
    "order".padEnd(6)
  }   ADD/s CHECK/s   DEL/s  failures duplicates residue`,
);
let bad = 0;
for (const load of loads) {
  const { add, check, del, failures, duplicates, residue } = await run(load);
  const who = load.by === "ref" ? "reference" : load.foreignIpam ? "cnibox, half ref. IPAM" : "cnibox";
  const rate = (value: number) => value === 0 ? "      -" : value.toFixed(1).padStart(7);
  say(
    `${who.slice(0, 22).padEnd(22)} ${load.backend.padEnd(9)} ${(load.mixed ? "mixed" : "phases").padEnd(6)} ${
      rate(add)
    } ${rate(check)} ${rate(del)} ${String(failures.length).padStart(9)} ${String(duplicates).padStart(10)} ${
      String(residue.length).padStart(7)
    }`,
  );
  for (const line of [...failures.slice(0, 5), ...residue.slice(0, 5)]) say(`    ${line}`);
  if (load.by === "cnibox") bad += failures.length + duplicates + residue.length;
}
Deno.exit(bad === 0 ? 0 : 1);
