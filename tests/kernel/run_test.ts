import { assertEquals } from "@std/assert";
import { readable, systemRun } from "../../lib/kernel/run.ts";
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

Deno.test("what ip prints is JSON, also with control characters in names; what a shell prints keeps its tabs", async () => {
  // As iproute2 6.1 prints an alias of every byte: these five, quotes and backslashes it escapes itself.
  const raw = [1, 2, 3, 4, 5, 6, 7, 11, ...Array.from({ length: 18 }, (_, at) => at + 14), 127];
  const octal = raw.map((byte) => `\\${byte.toString(8).padStart(3, "0")}`).join("");
  const printed = `[{"ifname":"a","ifalias":"${octal}\\\\b\\\\t\\\\n\\\\f\\\\r\\\\"\\\\\\\\\\377"}]\\n`;
  const run = readable(systemRun());
  const { stdout } = await run({ argv: ["sh", "-c", 'printf "$1"; exit', "-j", printed] });
  const [link] = JSON.parse(stdout);
  assertEquals(link.ifalias, `${String.fromCharCode(...raw)}\b\t\n\f\r"\\\ufffd`);
  assertEquals((await run({ argv: ["sh", "-c", 'printf "4096\\t131072\\n"'] })).stdout, "4096\t131072\n");
});
