import { assertEquals } from "@std/assert";
import { aloneArgv, batchLine, batchOf, oneWord, runLines, wordsOf } from "../../lib/kernel/batch.ts";
import { PRINTABLE, readByIproute2 } from "../fakes/iproute2.ts";
import type { Command, Run } from "../../lib/kernel/run.ts";

Deno.test("every pair of printable characters is one word to iproute2, in a batch or by itself", () => {
  let alone = 0;
  for (const first of ["", "a", ...PRINTABLE]) {
    for (const last of PRINTABLE) {
      const word = first + last;
      for (const line of [`link set dev ${word} up`, `link del dev ${word}`]) {
        assertEquals(wordsOf(line), line.split(" "), "no caller has to quote");
        const batch = batchLine(line);
        if (batch === undefined) alone++;
        else assertEquals(readByIproute2(batch), line.split(" "), batch);
      }
    }
  }
  // "#" anywhere, and words that begin with one kind of quote and hold the other too.
  assertEquals(alone, 2 * (96 + 93 + 2));
});

Deno.test("blanks, line feeds and nothing at all are words too", () => {
  for (const text of ["a b", " a", "a ", " ", "a\tb", "'a b", "two  blanks"]) {
    const line = `link set dev v0 alias ${oneWord(text)} up`;
    assertEquals(wordsOf(line)[5], text);
    assertEquals(readByIproute2(batchLine(line)!), wordsOf(line), line);
  }
  assertEquals(readByIproute2(batchLine("link set dev v0 alias ")!), ["link", "set", "dev", "v0", "alias", ""]);
  assertEquals(batchLine(`link set dev v0 alias ${oneWord("a\nlink del eth0")}`), undefined);
  assertEquals(aloneArgv(["ip"], `alias ${oneWord("a\nb c")}`), ["ip", "alias", "a\nb c"]);
});

function noting(fails?: string): { run: Run; commands: Command[] } {
  const commands: Command[] = [];
  const run: Run = (command) => {
    commands.push(command);
    const code = fails !== undefined && command.argv.includes(fails) ? 2 : 0;
    return Promise.resolve({ code, signal: null, stdout: `[${commands.length}]\n`, stderr: code ? "no\n" : "" });
  };
  return { run, commands };
}

Deno.test("lines are one process, or where a batch cannot say them one each", async () => {
  assertEquals(batchOf(["tc"], ["qdisc show dev a", "qdisc show dev 'b"]), {
    argv: ["tc", "-batch", "-"],
    input: [`qdisc show dev a\nqdisc show dev "'b"\n`],
  });
  const { run, commands } = noting();
  const output = await runLines(run, ["ip", "-j"], ["link show dev a#b", "link show dev c"]);
  assertEquals(commands.map(({ argv }) => argv.join(" ")), ["ip -j link show dev a#b", "ip -j link show dev c"]);
  assertEquals(output.stdout, "[1]\n[2]\n");
});

Deno.test("lines that are a process each stop at the first failure, and with -force at none", async () => {
  for (const [tool, count] of [[["ip"], 1], [["ip", "-force"], 3]] as const) {
    const { run, commands } = noting("#");
    const output = await runLines(run, tool, ["link del dev #", "link del dev b", "link del dev c"]);
    assertEquals([commands.length, output.code, output.stderr], [count, 2, "no\nCommand failed -:1\n"]);
  }
});
