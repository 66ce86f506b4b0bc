/** One at a time, also where the one before removes the lock's file. */
import { assert, assertEquals } from "@std/assert";
import { isLocked, lockFile } from "../../lib/kernel/lock_file.ts";
import { holdLock } from "../ipam/support.ts";
import { untilClosed } from "./open_files.ts";

async function inFolder(body: (path: string) => Promise<void>): Promise<void> {
  const folder = Deno.makeTempDirSync();
  try {
    await body(`${folder}/node.lock`);
    await untilClosed(folder);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

Deno.test("a lock is had by one at a time", () =>
  inFolder(async (path) => {
    assertEquals(await isLocked(path), false);
    const first = await lockFile(path, 10_000);
    assert(first);
    const second = lockFile(path, 10_000);
    assertEquals(await Promise.race([second, Promise.resolve("waits")]), "waits");
    first?.close();
    const held = await second;
    assert(held);
    assertEquals(await isLocked(path), true);
    held?.close();
    assertEquals(await isLocked(path), false);
  }));

Deno.test("a lock that is removed while another waits for it keeps off a third one all the same", () =>
  inFolder(async (path) => {
    const first = await lockFile(path, 10_000);
    assert(first);
    const waiting = lockFile(path, 10_000);
    // It has opened the file by now, and asks for the lock of that.
    Deno.removeSync(path);
    first?.close();
    const second = await waiting;
    assert(second);
    assertEquals(await isLocked(path), true);
    second?.close();
  }));

Deno.test("a lock that another process holds is seen by asking once", () =>
  inFolder(async (path) => {
    Deno.writeTextFileSync(path, "");
    await using _holder = await holdLock(path);
    assertEquals(await isLocked(path), true);
    const waits = new RegExp(`-> FLOCK .* ${Deno.pid} `, "g");
    assertEquals(Deno.readTextFileSync("/proc/locks").match(waits)?.length, 1);
  }));
