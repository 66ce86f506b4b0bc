import { assert, assertEquals, assertNotEquals } from "@std/assert";
import { isUnicastMac, macFromIpv4, macFromSeed, macLength, parseMac } from "../../lib/net/mac.ts";

Deno.test("parseMac reads the three spellings in either case", () => {
  const table: [string, string | undefined][] = [
    ["02:00:00:00:00:0b", "02:00:00:00:00:0b"],
    ["02:00:00:00:00:0B", "02:00:00:00:00:0b"],
    ["02-00-00-00-00-0B", "02:00:00:00:00:0b"],
    ["0200.0000.000B", "02:00:00:00:00:0b"],
    ["02:00:00:00:00:00:00:01", "02:00:00:00:00:00:00:01"],
    ["0200.0000.0000.0001", "02:00:00:00:00:00:00:01"],
    [Array(20).fill("ab").join(":"), Array(20).fill("ab").join(":")],
    ["", undefined],
    ["02:00:00:00:00", undefined],
    ["02:00:00:00:00:0b:", undefined],
    ["02:00:00:00:00:00:01", undefined],
    ["02:00-00:00:00:0b", undefined],
    ["2:0:0:0:0:b", undefined],
    ["02:00:00:00:00:0g", undefined],
    ["02000000000b", undefined],
    ["0200:0000:000b", undefined],
    ["02.00.00.00.00.0b", undefined],
    [" 02:00:00:00:00:0b", undefined],
    ["02:00:00:00:00:0b\n", undefined],
  ];
  for (const [text, mac] of table) assertEquals(parseMac(text), mac, JSON.stringify(text));
});

Deno.test("macLength counts bytes", () => {
  assertEquals(macLength("02:00:00:00:00:0b"), 6);
  assertEquals(macLength("02:00:00:00:00:00:00:01"), 8);
});

Deno.test("a link takes neither a group address nor zeros", () => {
  assertEquals(isUnicastMac("02:00:00:00:00:0b"), true);
  assertEquals(isUnicastMac("00:00:00:00:00:01"), true);
  assertEquals(isUnicastMac("01:00:5e:00:00:01"), false);
  assertEquals(isUnicastMac("ff:ff:ff:ff:ff:ff"), false);
  assertEquals(isUnicastMac("00:00:00:00:00:00"), false);
});

Deno.test("macFromSeed gives one unicast, locally administered address per seed", () => {
  for (let i = 0; i < 200; i++) {
    const mac = macFromSeed(`seed ${i}`);
    assertEquals(parseMac(mac), mac);
    assertEquals(Number.parseInt(mac.slice(0, 2), 16) & 3, 2);
    assert(isUnicastMac(mac));
    assertEquals(macFromSeed(`seed ${i}`), mac);
    assertNotEquals(macFromSeed(`seed ${i + 1}`), mac);
  }
});

Deno.test("macFromIpv4 holds the four bytes of the address", () => {
  assertEquals(macFromIpv4(0x0a160002n), "0a:58:0a:16:00:02");
  assertEquals(macFromIpv4(1n), "0a:58:00:00:00:01");
  assertEquals(macFromIpv4(0xffff_ffffn), "0a:58:ff:ff:ff:ff");
});
