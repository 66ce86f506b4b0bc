import { assertEquals } from "@std/assert";
import { lockHolder } from "../../lib/kernel/lock_holder.ts";

const LOCKS = [
  "1: POSIX  ADVISORY  WRITE 11 fe:00:42 0 EOF",
  "1: -> POSIX  ADVISORY  WRITE 20 fe:00:42 0 EOF",
  "2: FLOCK  ADVISORY  READ  12 fe:00:42 0 EOF",
  "2: -> FLOCK  ADVISORY  WRITE 21 fe:00:42 0 EOF",
  "2:  -> FLOCK  ADVISORY  WRITE 22 fe:00:42 0 EOF",
  "12: FLOCK  ADVISORY  WRITE 13 fe:00:43 0 EOF",
  "12: -> FLOCK  ADVISORY  WRITE 23 fe:00:43 0 EOF",
  "13: FLOCK  ADVISORY  WRITE 0 00:00:44 0 EOF",
  "13: -> FLOCK  ADVISORY  WRITE 24 00:00:44 0 EOF",
  "",
].join("\n");

Deno.test("lockHolder finds the holder by the file's inode", () => {
  const table: [inode: number, pid: number | undefined][] = [[42, 12], [43, 13], [44, undefined], [4, undefined]];
  for (const [inode, pid] of table) assertEquals(lockHolder(LOCKS, { inode, waiting: 0 }), pid, `${inode}`);
  assertEquals(lockHolder("", { inode: 42, waiting: 0 }), undefined);
});

Deno.test("lockHolder finds the holder by our own wait where inodes differ", () => {
  const table: [waiting: number, pid: number | undefined][] = [
    [20, undefined],
    [21, 12],
    [22, 12],
    [23, 13],
    [24, undefined],
    [13, undefined],
    [2, undefined],
  ];
  for (const [waiting, pid] of table) assertEquals(lockHolder(LOCKS, { inode: 1, waiting }), pid, `${waiting}`);
});

Deno.test("without an inode lockHolder tells of our own wait alone: a file elsewhere may have the same number", () => {
  assertEquals(lockHolder(LOCKS, { waiting: 21 }), 12);
  assertEquals(lockHolder(LOCKS, { waiting: 13 }), undefined);
});
