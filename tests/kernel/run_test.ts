import { assertEquals } from "@std/assert";
import { systemRun } from "../../lib/kernel/run.ts";
import { eventually } from "../e2e/support/traffic.ts";

/** Constant text: waits until the first file is there, then makes the second. */
const WAITS = 'while [ ! -e "$1" ]; do sleep 0.02; done; : >"$2"';

// Only root's tools have files as their streams, which nobody else may make.
Deno.test({
  name: "a command that is done counts as ended, and goes on by itself",
  ignore: Deno.uid() !== 0,
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async () => {
    const folder = await Deno.makeTempDir({ prefix: "cnibox-run-" });
    const exists = (name: string) => [...Deno.readDirSync(folder)].some((entry) => entry.name === name);
    let asked = 0;
    try {
      const output = await systemRun()({
        argv: ["sh", "-c", WAITS, "sh", `${folder}/go`, `${folder}/went`],
        done: () => ++asked === 3,
      });
      assertEquals([output, asked, exists("went")], [{ code: 0, signal: null, stdout: "", stderr: "" }, 3, false]);
      await Deno.writeTextFile(`${folder}/go`, "");
      await eventually("the process has gone on", () => exists("went"));
    } finally {
      await Deno.writeTextFile(`${folder}/go`, "");
      await Deno.remove(folder, { recursive: true });
    }
  },
});

Deno.test({
  name: "a command that ends before it is done has ended",
  ignore: Deno.uid() !== 0,
  fn: async () => {
    const output = await systemRun()({ argv: ["sh", "-c", "echo no >&2; exit 3"], done: () => false });
    assertEquals([output.code, output.stderr], [3, "no\n"]);
  },
});
