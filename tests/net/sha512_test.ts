import { assertEquals } from "@std/assert";
import { createHash } from "node:crypto";
import { sha512 } from "../../lib/net/sha512.ts";

const expected = (text: string) => createHash("sha512").update(text).digest("hex");

Deno.test("sha512 agrees with the standard's own vectors", () => {
  assertEquals(
    sha512("abc"),
    "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
  );
  assertEquals(
    sha512(
      "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
    ).slice(0, 32),
    "8e959b75dae313da8cf4f72814fc143f",
  );
  assertEquals(sha512("").slice(0, 32), "cf83e1357eefb8bdf1542850d66d8007");
});

Deno.test("sha512 agrees with the runtime's own for every length around the blocks, and beyond ASCII", () => {
  for (let length = 0; length < 700; length++) {
    const text = Array.from({ length }, (_, i) => String.fromCharCode(32 + (i * 7 + length * 13) % 95)).join("");
    assertEquals(sha512(text), expected(text), `${length} bytes`);
  }
  for (const text of ["é", "日本語".repeat(50), "\0", "\u{10ffff}", "a".repeat(100_000)]) {
    assertEquals(sha512(text), expected(text));
  }
});
