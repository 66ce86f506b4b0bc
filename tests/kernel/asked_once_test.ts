import { assertEquals } from "@std/assert";
import { askingOnce } from "../../lib/kernel/asked_once.ts";
import type { Command, Run } from "../../lib/kernel/run.ts";

Deno.test("what several ask in the same words is asked once, and what changes something is run each time", async () => {
  const run: string[] = [];
  const tool = (name: string): Run => ({ argv }: Command) => {
    run.push(`${name} ${argv.join(" ")}`);
    return Promise.resolve({ code: 0, signal: null, stdout: `${run.length}`, stderr: "" });
  };
  const once = askingOnce();
  const [first, second] = [once(tool("first")), once(tool("second"))];
  const nat = { argv: ["iptables-save", "-t", "nat"] };
  const answers = await Promise.all([first(nat), second(nat), first({ argv: ["iptables-save", "-t", "filter"] })]);
  assertEquals(answers.map(({ stdout }) => stdout), ["1", "1", "2"]);
  const change = { argv: ["iptables-restore", "--noflush"], input: ["*nat\n-N X\nCOMMIT\n"] };
  await first(change);
  await second(change);
  const batch = (line: string) => ({ argv: ["ip", "-batch", "-"], input: [`${line}\n`] });
  for (const line of ["link show dev a", "link show dev b", "link show dev a"]) await first(batch(line));
  assertEquals(run, [
    "first iptables-save -t nat",
    "first iptables-save -t filter",
    "first iptables-restore --noflush",
    "second iptables-restore --noflush",
    "first ip -batch -",
    "first ip -batch -",
  ]);
});
