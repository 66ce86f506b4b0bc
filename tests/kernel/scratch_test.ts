import { assertEquals, assertMatch } from "@std/assert";
import { endOrphans } from "../../lib/kernel/orphans.ts";
import { CALL_VARIABLE, callName, isOver, leftovers, openScratch, SCRATCH } from "../../lib/kernel/scratch.ts";

const asRoot = { ignore: Deno.uid() !== 0 };

/** The name that a call of this process would have. */
function nameOf(pid: number): string {
  const [, space] = callName().split("-");
  const stat = Deno.readTextFileSync(`/proc/${pid}/stat`);
  return `${pid}-${space}-${stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]}`;
}

Deno.test("a call is over when its process has ended, is ending, or another one has its number", asRoot, async () => {
  assertMatch(callName(), /^\d+-\d+-\d+$/);
  assertEquals(callName(), nameOf(Deno.pid));
  const child = new Deno.Command("sleep", { args: ["600"] }).spawn();
  const name = nameOf(child.pid);
  assertEquals(isOver(name), false);
  const [pid, space, start] = name.split("-");
  assertEquals(isOver(`${pid}-${space}-${Number(start) - 1}`), true);
  // In another PID namespace, or where nobody knew: not to be known from here.
  assertEquals(isOver(`${pid}-${Number(space) + 1}-${start}`), undefined);
  assertEquals(isOver(`${pid}-0-${start}`), undefined);
  child.kill("SIGKILL");
  await child.status;
  assertEquals(isOver(name), true);
});

Deno.test("output is read as it was written, and nothing stays", asRoot, () => {
  const scratch = openScratch("in\n");
  if (!scratch) throw new Error("there is no folder for it");
  const [err, out, input] = scratch.streams;
  assertEquals(input && new TextDecoder().decode(readAll(input)), "in\n");
  out?.writeSync(new TextEncoder().encode("\nout\n"));
  err?.writeSync(new TextEncoder().encode(""));
  for (const stream of scratch.streams) stream.close();
  assertEquals(scratch.read(), { stdout: "\nout\n", stderr: "" });
  scratch.remove();
  assertEquals([...Deno.readDirSync(SCRATCH)].filter(({ name }) => name.startsWith(callName())), []);
});

function readAll(file: Deno.FsFile): Uint8Array {
  const bytes = new Uint8Array(100);
  return bytes.subarray(0, file.readSync(bytes) ?? 0);
}

Deno.test("only processes that name a killed call are ended", asRoot, async () => {
  const caller = new Deno.Command("sleep", { args: ["600"] }).spawn();
  const name = nameOf(caller.pid);
  const start = (env: Record<string, string>) => new Deno.Command("sleep", { args: ["600"], env }).spawn();
  const tool = start({ [CALL_VARIABLE]: name });
  const strangers = [start({ [CALL_VARIABLE]: `${name}0` }), start({ OTHER: `${CALL_VARIABLE}=${name}` })];
  const file = `${SCRATCH}/${name}-0.out`;
  try {
    const scratch = openScratch("");
    for (const stream of scratch?.streams ?? []) stream.close();
    scratch?.remove();
    Deno.writeTextFileSync(file, "");
    // The call lives: it is waited for by whoever called.
    assertEquals(leftovers()?.has(name), false);
    assertEquals(await endOrphans(1000), []);
    assertEquals(isRunning(tool.pid), true);
    caller.kill("SIGKILL");
    await caller.status;
    assertEquals(leftovers()?.get(name), [file]);
    assertEquals(await endOrphans(10_000), []);
    assertEquals((await tool.status).signal, "SIGKILL");
    assertEquals(strangers.map(({ pid }) => isRunning(pid)), [true, true]);
    assertEquals(leftovers()?.has(name), false);
  } finally {
    for (const child of [caller, tool, ...strangers]) {
      try {
        child.kill("SIGKILL");
      } catch {
        // It has ended.
      }
      await child.status;
    }
    try {
      Deno.removeSync(file);
    } catch {
      // As it should be.
    }
  }
});

function isRunning(pid: number): boolean {
  try {
    return !/\) [ZX] /.test(Deno.readTextFileSync(`/proc/${pid}/stat`));
  } catch {
    return false;
  }
}
