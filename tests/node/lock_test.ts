/** One agent per node, also where the one before removes the lock's file. */
import { assert, assertEquals } from "@std/assert";
import { isHeld, takeLock } from "../../lib/node/lock.ts";

async function inFolder(body: (path: string) => Promise<void>): Promise<void> {
  const folder = Deno.makeTempDirSync();
  try {
    await body(`${folder}/node.lock`);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

Deno.test("node's lock is had by one at a time", () =>
  inFolder(async (path) => {
    assertEquals(await isHeld(path), false);
    const first = await takeLock(path, 10_000);
    assert(first);
    const second = takeLock(path, 10_000);
    assertEquals(await Promise.race([second, Promise.resolve("waits")]), "waits");
    first[Symbol.dispose]();
    const held = await second;
    assert(held);
    assertEquals(await isHeld(path), true);
    held[Symbol.dispose]();
    assertEquals(await isHeld(path), false);
  }));

Deno.test("node's lock that is removed while another waits for it keeps off a third one all the same", () =>
  inFolder(async (path) => {
    const first = await takeLock(path, 10_000);
    assert(first);
    const waiting = takeLock(path, 10_000);
    // It has opened the file by now, and asks for the lock of that.
    Deno.removeSync(path);
    first[Symbol.dispose]();
    const second = await waiting;
    assert(second);
    assertEquals(await isHeld(path), true);
    second[Symbol.dispose]();
  }));
