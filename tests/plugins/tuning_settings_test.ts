import { assertEquals, assertThrows } from "@std/assert";
import { sameValue, setting } from "../../plugins/tuning/settings.ts";
import { CniError } from "../../lib/cni/error.ts";

const found: readonly [key: string, ifName: string, path: string][] = [
  ["net.ipv4.conf.all.rp_filter", "eth0", "net/ipv4/conf/all/rp_filter"],
  ["net/ipv4/conf/eth0.100/rp_filter", "eth0", "net/ipv4/conf/eth0/100/rp_filter"],
  ["net.ipv4.conf.IFNAME.rp_filter", "eth0.100", "net/ipv4/conf/eth0.100/rp_filter"],
  ["net.ipv4.conf.IFNAME.IFNAME", "eth0", "net/ipv4/conf/eth0/IFNAME"],
  ["net.ipv4.conf.IFNAME.rp_filter", "a$&b", "net/ipv4/conf/a$&b/rp_filter"],
  ["/net//ipv4/./ip_forward", "eth0", "net/ipv4/ip_forward"],
  ["net/../kernel/shmmax", "eth0", "net/kernel/shmmax"],
];

for (const [key, ifName, path] of found) {
  Deno.test(`the setting ${key} of ${ifName} is ${path}`, () => {
    assertEquals(setting(key, "1", ifName), { key, path, value: "1" });
  });
}

for (
  const key of [
    "",
    "net",
    "net.",
    "kernel.shmmax",
    "/kernel/shmmax",
    "..",
    "net.a=b",
    "net.a\nb",
  ]
) {
  Deno.test(`${JSON.stringify(key)} is no setting`, () => {
    assertThrows(() => setting(key, "1", "eth0"), CniError, "invalid net sysctl key: ");
  });
}

const same: readonly [configured: string, current: string, equal: boolean][] = [
  ["1", "1", true],
  ["1", "0", false],
  ["1 0", "1\t0", true],
  ["1 0\n", "1\t0", true],
  ["1", "1\t0", false],
  ["0x10", "16", true],
  ["010", "8", true],
  ["-1", "-1", true],
  ["+1", "1", true],
  ["cubic", "cubic", true],
  ["cubic", "reno", false],
  ["99999999999999999999", "99999999999999999999", true],
];

for (const [configured, current, equal] of same) {
  Deno.test(`${JSON.stringify(configured)} is ${equal ? "" : "not "}what ${JSON.stringify(current)} is`, () => {
    assertEquals(sameValue(configured, current), equal);
  });
}
