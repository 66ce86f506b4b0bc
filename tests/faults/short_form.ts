/** What the files of this folder have in common. */
import { assert, assertEquals } from "@std/assert";
import { inVm, unmet } from "../e2e/support/mod.ts";
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

/** Takes every n-th point of each plugin list. */
const EVERY = 43;

/**
 * The short form of `deno task test:faults` for one of its plugin lists: every operation and every fault at some
 * points. Each list has a file of its own, since files are tried side by side.
 */
export function tryShortly(name: string): void {
  const setup = setups.find((one) => one.name === name)!;
  const missing = unmet(["tool:strace", ...setup.needs]);
  Deno.test({
    name: `${setup.name}: a call that is killed, interrupted, or let down by disk or tools leaves nothing` +
      (missing.length > 0 ? ` [skipped: ${missing.join("; ")}]` : ""),
    ignore: inVm || missing.length > 0,
    fn: async () => {
      const outcomes: Outcome[] = [];
      await using trial = await Trial.create(setup);
      for (const [number, operation] of (["ADD", "DEL", "GC"] as const).entries()) {
        const faults = [...operation === "ADD" ? killFaults : ["killed" as const], diskFaults[number]!];
        for (const fault of faults) outcomes.push(await tryPoints(trial, operation, { fault, every: EVERY }));
        // Two for each operation, so that each is there.
        for (const fault of toolFaults.slice(2 * number, 2 * number + 2)) {
          outcomes.push(await tryTools(trial, operation, { fault, every: 13 }));
        }
      }
      outcomes.push(await tryLostFolder(trial));
      assertEquals(outcomes.flatMap(({ findings }) => findings), []);
      assert(outcomes.reduce((sum, { points }) => sum + points, 0) > 12);
    },
  });
}
