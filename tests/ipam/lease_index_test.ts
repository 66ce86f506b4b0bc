import { assertEquals } from "@std/assert";
import { folderState, LeaseIndex } from "../../lib/ipam/lease_index.ts";
import { inFolder } from "./support.ts";

/** Runs a test with a lease folder and the path of an index. */
function withIndex(test: (folder: string, path: string) => Promise<void> | void): Promise<void> {
  return inFolder(async ({ path, options }) => {
    Deno.mkdirSync(path, { recursive: true });
    Deno.mkdirSync(options.indexFolder, { recursive: true });
    await test(path, `${options.indexFolder}/index`);
  });
}

function opened(folder: string, path: string): LeaseIndex | undefined {
  return LeaseIndex.open(path, folderState(folder));
}

Deno.test("an index finds what it was given, and forgets what it is told to", () =>
  withIndex((folder, path) => {
    const index = LeaseIndex.create(path, [["a\r\neth0", "10.0.0.2"], ["a\r\neth0", "fd00::2"], ["old", "10.0.0.3"]]);
    assertEquals(index.find("a\r\neth0").sort(), ["10.0.0.2", "fd00::2"]);
    assertEquals(index.find("old"), ["10.0.0.3"]);
    assertEquals(index.find("a\r\neth1"), []);
    index.add("a\r\neth1", "255.255.255.255");
    index.add("a\r\neth2", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
    index.remove("a\r\neth0", "10.0.0.2");
    index.remove("a\r\neth0", "10.0.0.9");
    index.remove("nobody", "10.0.0.3");
    index.seal(folder);
    index.close();
    const again = opened(folder, path)!;
    assertEquals(again.find("a\r\neth0"), ["fd00::2"]);
    assertEquals(again.find("a\r\neth1"), ["255.255.255.255"]);
    assertEquals(again.find("a\r\neth2"), ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]);
    assertEquals(again.find("old"), ["10.0.0.3"]);
    again.close();
  }));

Deno.test("an index grows without losing anything", () =>
  withIndex((folder, path) => {
    const index = LeaseIndex.create(path, []);
    const ip = (i: number) => `10.${i >> 16}.${i >> 8 & 255}.${i & 255}`;
    for (let i = 0; i < 3000; i++) index.add(`container-${i}\r\neth0`, ip(i));
    for (let i = 0; i < 3000; i += 2) index.remove(`container-${i}\r\neth0`, ip(i));
    for (let i = 0; i < 3000; i++) {
      assertEquals(index.find(`container-${i}\r\neth0`), i % 2 === 0 ? [] : [ip(i)]);
    }
    index.seal(folder);
    index.close();
    const again = opened(folder, path)!;
    assertEquals(again.find("container-2999\r\neth0"), [ip(2999)]);
    again.close();
  }));

Deno.test("an index that many came to and left stays small", () =>
  withIndex((folder, path) => {
    const index = LeaseIndex.create(path, []);
    for (let i = 0; i < 5000; i++) {
      index.add(`container-${i}`, "10.0.0.2");
      index.remove(`container-${i}`, "10.0.0.2");
    }
    assertEquals(index.isEmpty, true);
    assertEquals(index.find("container-1"), []);
    index.seal(folder);
    index.close();
    assertEquals(Deno.statSync(path).size < 10_000, true);
  }));

Deno.test("an index fits as long as nobody else changes the folder", () =>
  withIndex((folder, path) => {
    const changes: Record<string, () => void> = {
      "adds a file": () => Deno.writeTextFileSync(`${folder}/10.0.0.9`, "x"),
      "renames a file": () => Deno.renameSync(`${folder}/10.0.0.9`, `${folder}/10.0.0.8`),
      "removes a file": () => Deno.removeSync(`${folder}/10.0.0.8`),
      "adds a folder": () => Deno.mkdirSync(`${folder}/below`),
    };
    for (const [who, change] of Object.entries(changes)) {
      const index = LeaseIndex.create(path, []);
      index.seal(folder);
      index.close();
      const before = opened(folder, path);
      assertEquals(before !== undefined, true, who);
      before?.close();
      // At once: within one tick of the kernel's clock.
      change();
      assertEquals(opened(folder, path), undefined, who);
    }
  }));

Deno.test("an index belongs to one state of one folder", () =>
  withIndex((folder, path) => {
    const index = LeaseIndex.create(path, []);
    index.seal(folder);
    index.close();
    const { mtime, ctime } = folderState(folder);
    // What a file system shows after a change at a moment when the clock says what was noted: both times are that
    // moment.
    assertEquals(mtime < ctime, true);
    assertEquals(LeaseIndex.open(path, { ...folderState(folder), ctime: mtime }), undefined);
    assertEquals(LeaseIndex.open(path, { ...folderState(folder), ino: 1 }), undefined);
    assertEquals(LeaseIndex.open(path, { ...folderState(folder), dev: 1 }), undefined);
  }));

Deno.test("an index counts only when it was sealed after the last change", () =>
  withIndex((folder, path) => {
    const index = LeaseIndex.create(path, []);
    index.close();
    assertEquals(opened(folder, path), undefined);
    const sealed = LeaseIndex.create(path, []);
    sealed.seal(folder);
    sealed.close();
    const killed = opened(folder, path)!;
    Deno.writeTextFileSync(`${folder}/10.0.0.9`, "x");
    killed.add("x", "10.0.0.9");
    killed.close();
    assertEquals(opened(folder, path), undefined);
  }));

Deno.test("a file that is no index is no index", () =>
  withIndex((folder, path) => {
    assertEquals(opened(folder, path), undefined);
    for (const bytes of [0, 3, 64, 4096]) {
      Deno.writeFileSync(path, new Uint8Array(bytes).fill(7));
      assertEquals(opened(folder, path), undefined);
    }
  }));
