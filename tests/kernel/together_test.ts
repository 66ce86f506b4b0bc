import { assertEquals, assertRejects } from "@std/assert";
import type { Command, Output, Run } from "../../lib/kernel/run.ts";
import { joined, joiningRestores } from "../../lib/kernel/together.ts";

const OK: Output = { code: 0, signal: null, stdout: "", stderr: "" };
const REFUSED: Output = { ...OK, code: 2, stderr: "line 3 failed" };

/** A kernel that notes what it is given, and refuses what has one of these words. */
function noting(...refused: string[]): { run: Run; log: string[] } {
  const log: string[] = [];
  const run: Run = ({ argv, input = [] }) => {
    const text = input.join("");
    log.push([argv[0], text.trim().replaceAll("\n", " ")].join(" ").trim());
    return Promise.resolve(refused.some((word) => text.includes(word)) ? REFUSED : OK);
  };
  return { run, log };
}

const restore = (text: string, tool = "iptables"): Command => ({
  argv: [`${tool}-restore`, "--noflush"],
  input: [text],
});
/** Two callers at work side by side. */
function pair(run: Run): [Run, Run] {
  const through = joiningRestores();
  return [through(run), through(run)];
}
const nat = (...lines: string[]) => `*nat\n${lines.join("\n")}\nCOMMIT\n`;

Deno.test("transactions of one turn about one table are one process, the lines of each caller in order", async () => {
  const { run, log } = noting();
  const [one, two] = pair(run);
  const answers = await Promise.all([
    one(restore(nat("-N A"))),
    two(restore(`*raw\n-C R r\nCOMMIT\n${nat("-C X", "-N B")}`)),
  ]);
  assertEquals(answers, [OK, OK]);
  assertEquals(log, ["iptables-restore *raw -C R r COMMIT *nat -N A -C X -N B COMMIT"]);
});

Deno.test("a refused common transaction is followed by each caller's own, and each learns its own end", async () => {
  const { run, log } = noting("-N B");
  const [one, two] = pair(run);
  const answers = await Promise.all([one(restore(nat("-N A"))), two(restore(nat("-N B")))]);
  assertEquals(answers, [OK, REFUSED]);
  assertEquals(log, [
    "iptables-restore *nat -N A -N B COMMIT",
    "iptables-restore *nat -N A COMMIT",
    "iptables-restore *nat -N B COMMIT",
  ]);
});

Deno.test("a common transaction that was killed may have been done: nobody tries again in its place", async () => {
  const log: string[] = [];
  const killed: Output = { ...OK, code: 137, signal: "SIGKILL" };
  const run: Run = ({ argv }) => (log.push(String(argv[0])), Promise.resolve(killed));
  const [one, two] = pair(run);
  assertEquals(await Promise.all([one(restore(nat("-N A"))), two(restore(nat("-N B")))]), [killed, killed]);
  const broken: Run = () => (log.push("broken"), Promise.reject(new Error("no process")));
  const [three, four] = pair(broken);
  const ends = [three(restore(nat("-N A"))), four(restore(nat("-N B")))];
  for (const end of ends) await assertRejects(() => end, Error, "no process");
  assertEquals(log, ["iptables-restore", "broken"]);
});

Deno.test("questions, other tables, families, tools and later turns stay apart", async () => {
  const { run, log } = noting();
  const through = joiningRestores();
  const at = through(run);
  await Promise.all([
    at(restore(nat("-N A"))),
    at(restore(nat("-C B"))),
    at(restore("*filter\n-N C\nCOMMIT\n")),
    at(restore(nat("-N D"), "ip6tables")),
    at(restore(`${nat("-N E")}*filter\n-N F\nCOMMIT\n`)),
    at({ argv: ["ip", "link"] }),
  ]);
  await at(restore(nat("-N G")));
  assertEquals(log.sort(), [
    "ip",
    "ip6tables-restore *nat -N D COMMIT",
    "iptables-restore *filter -N C COMMIT",
    "iptables-restore *nat -C B COMMIT",
    "iptables-restore *nat -N A COMMIT",
    "iptables-restore *nat -N E COMMIT *filter -N F COMMIT",
    "iptables-restore *nat -N G COMMIT",
  ]);
});

Deno.test("tables that are only asked come before the one that is changed", () => {
  assertEquals(joined([nat("-N A"), `*raw\n-C R\nCOMMIT\n`]), `*raw\n-C R\nCOMMIT\n${nat("-N A")}`);
});
