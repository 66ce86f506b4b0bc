import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { CniError } from "../../lib/cni/error.ts";
import { lockFolder } from "../../lib/ipam/lock.ts";
import { holdLock, inFolder } from "./support.ts";

Deno.test("a lock is made when it is missing, and is the reference's file", () =>
  inFolder(async ({ path }) => {
    Deno.mkdirSync(path, { recursive: true });
    (await lockFolder(path)).close();
    const info = Deno.lstatSync(`${path}/lock`);
    assertEquals([info.isFile, info.size], [true, 0]);
    assertEquals(info.mode! & 0o777, 0o750 & ~Deno.umask());
  }));

Deno.test("a lock excludes flock(1), and flock(1) excludes us; the error names file and holder", () =>
  inFolder(async ({ path }) => {
    Deno.mkdirSync(path, { recursive: true });
    const lock = await lockFolder(path);
    const busy = await new Deno.Command("flock", { args: ["-n", `${path}/lock`, "true"] }).output();
    assertEquals(busy.code, 1);
    lock.close();
    {
      await using holder = await holdLock(`${path}/lock`);
      const error = await assertRejects(() => lockFolder(path, { limitMs: 50 }), CniError);
      assertEquals(error.code, 11);
      assertEquals(error.msg, `could not lock ${path}/lock within 0.05 s`);
      assert(/held by process \d+/.test(error.details), error.details);
      assertStringIncludes(error.details, `process ${holder.pid} (flock)`);
    }
    // The wait that was given up ends now, and keeps nothing.
    (await lockFolder(path)).close();
  }));

Deno.test("what can be done meanwhile is done once, while the lock is waited for", () =>
  inFolder(async ({ path }) => {
    Deno.mkdirSync(path, { recursive: true });
    const holder = await holdLock(`${path}/lock`);
    let done = 0;
    const waiting = lockFolder(path, { limitMs: 30_000, meanwhile: () => done++ });
    assertEquals(done, 1);
    // Another file is the lock now: it is waited for anew.
    Deno.removeSync(`${path}/lock`);
    await holder[Symbol.asyncDispose]();
    (await waiting).close();
    assertEquals(done, 1);
  }));

Deno.test("a lock that was waited for is had when its holder goes", () =>
  inFolder(async ({ path }) => {
    Deno.mkdirSync(path, { recursive: true });
    const holder = await holdLock(`${path}/lock`);
    const waiting = lockFolder(path, { limitMs: 30_000 });
    await holder[Symbol.asyncDispose]();
    (await waiting).close();
  }));

Deno.test("a lock whose file was replaced meanwhile does not count", () =>
  inFolder(async ({ path }) => {
    Deno.mkdirSync(path, { recursive: true });
    const holder = await holdLock(`${path}/lock`);
    const waiting = lockFolder(path, { limitMs: 30_000 });
    // Started: it waits for the old file, or will open the new one. Either way it has to hold the new one in the end.
    Deno.removeSync(`${path}/lock`);
    await holder[Symbol.asyncDispose]();
    const lock = await waiting;
    const busy = await new Deno.Command("flock", { args: ["-n", `${path}/lock`, "true"] }).output();
    assertEquals(busy.code, 1);
    lock.close();
  }));

Deno.test("nothing but a regular file is taken for a lock", () =>
  inFolder(async ({ path }) => {
    Deno.mkdirSync(path, { recursive: true });
    const elsewhere = `${path}/../elsewhere`;
    const plant: Record<string, () => Promise<unknown> | unknown> = {
      "a symbolic link": () => Deno.symlinkSync(elsewhere, `${path}/lock`),
      "a folder": () => Deno.mkdirSync(`${path}/lock`),
      "a FIFO": () => new Deno.Command("mkfifo", { args: [`${path}/lock`] }).output(),
    };
    for (const [kind, make] of Object.entries(plant)) {
      await make();
      const error = await assertRejects(() => lockFolder(path), CniError);
      assertEquals(error.code, 5);
      assertEquals(error.msg, `lock file ${path}/lock is not a regular file`);
      assertStringIncludes(error.details, kind);
      Deno.removeSync(`${path}/lock`);
    }
    await assertRejects(() => Deno.lstat(elsewhere), Deno.errors.NotFound);
  }));

Deno.test("a missing folder is told apart", () =>
  inFolder(async ({ path }) => {
    await assertRejects(() => lockFolder(path), Deno.errors.NotFound);
  }));
