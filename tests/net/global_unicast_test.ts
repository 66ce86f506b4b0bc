import { assertEquals } from "@std/assert";
import { isGlobalUnicast } from "../../lib/net/global_unicast.ts";

Deno.test("global unicast leaves out what does not travel", () => {
  for (
    const text of [
      "10.0.0.1",
      "192.168.0.1",
      "8.8.8.8",
      "fd00::1",
      "2001:db8::1",
      "100.64.0.1",
      "198.18.0.1",
      "240.0.0.1",
      "2002::1",
    ]
  ) {
    assertEquals(isGlobalUnicast(text), true, text);
  }
  const local = ["0.0.0.0", "::", "127.0.0.1", "::1", "169.254.3.4", "fe80::1", "febf::1", "224.0.0.1", "ff02::1"];
  for (const text of [...local, "255.255.255.255", "eth0", ""]) assertEquals(isGlobalUnicast(text), false, text);
});
