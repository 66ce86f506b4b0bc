import { assertEquals, assertThrows } from "@std/assert";
import { openRegular, readRegularText, UnusableFile, usable } from "../../lib/kernel/regular_file.ts";

/** A folder with one of everything that can be in a file's place. */
function inFolder(work: (path: (name: string) => string) => void): void {
  const folder = Deno.makeTempDirSync();
  const path = (name: string) => `${folder}/${name}`;
  try {
    Deno.writeTextFileSync(path("file"), "text");
    Deno.symlinkSync("file", path("link"));
    Deno.symlinkSync("/dev/zero", path("endless"));
    Deno.symlinkSync("nothing", path("dangling"));
    Deno.mkdirSync(path("folder"));
    new Deno.Command("mkfifo", { args: [path("fifo")] }).outputSync();
    Deno.symlinkSync("fifo", path("to-fifo"));
    work(path);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
}

Deno.test("only a regular file is opened, and nothing else is waited for", () =>
  inFolder((path) => {
    assertEquals(readRegularText(path("file")), "text");
    const kinds = {
      link: "a symbolic link",
      endless: "a symbolic link",
      dangling: "a symbolic link",
      folder: "a folder",
      fifo: "a FIFO",
      "to-fifo": "a symbolic link",
    };
    for (const [name, kind] of Object.entries(kinds)) {
      for (const options of [{}, { write: true }, { append: true }, { write: true, create: 0o600 }]) {
        assertThrows(
          () => openRegular(path(name), options),
          UnusableFile,
          `${path(name)} is ${kind}, not a regular file`,
        );
      }
    }
    assertThrows(() => openRegular(path("none")), Deno.errors.NotFound);
  }));

Deno.test("where links are allowed, what they lead to has to be a regular file", () =>
  inFolder((path) => {
    assertEquals(readRegularText(path("link"), { links: true }), "text");
    const kinds = { endless: "a device", "to-fifo": "a FIFO" };
    for (const [name, kind] of Object.entries(kinds)) {
      assertThrows(() => readRegularText(path(name), { links: true }), UnusableFile, `is ${kind}`);
    }
    assertThrows(() => readRegularText(path("dangling"), { links: true }), Deno.errors.NotFound);
  }));

Deno.test("a file is made when that is asked for, and never longer than the limit when it is read", () =>
  inFolder((path) => {
    openRegular(path("new"), { write: true, create: 0o600 }).close();
    assertEquals((Deno.lstatSync(path("new")).mode ?? 0) & 0o777, 0o600);
    assertEquals(readRegularText(path("new")), "");
    assertEquals(readRegularText(path("file"), { limit: 4 }), "text");
    assertThrows(() => readRegularText(path("file"), { limit: 3 }), UnusableFile, "is larger than 3 bytes");
    Deno.truncateSync(path("new"), 2 ** 40);
    assertThrows(() => readRegularText(path("new")), UnusableFile, "is larger than");
  }));

Deno.test("what cannot be used is told and skipped; other failures are thrown", () =>
  inFolder((path) => {
    const told: string[] = [];
    const warn = (note: string) => void told.push(note);
    assertEquals(usable(() => readRegularText(path("file")), warn), "text");
    assertEquals(usable(() => readRegularText(path("fifo")), warn), undefined);
    assertEquals(told, [`${path("fifo")} is a FIFO, not a regular file; skipped`]);
    assertThrows(() => usable(() => readRegularText(path("none")), warn), Deno.errors.NotFound);
  }));
