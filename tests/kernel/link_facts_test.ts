/** What /proc and /sys tell about links of this process's own network namespace. */
import { assertEquals } from "@std/assert";
import { linkExists, linkFolder, readKernelFile } from "../../lib/kernel/proc.ts";

const there: [name: string, exists: boolean | undefined][] = [
  ["lo", true],
  ["none-of-ours", false],
  // A folder of settings for all links, and for links to come: no links, but a link may be called so.
  ["all", undefined],
  ["default", undefined],
  // None of these can be a link's name.
  ["", false],
  [".", false],
  ["..", false],
  ["../../ipv6/conf/lo", false],
];

for (const [name, exists] of there) {
  Deno.test(`whether there is a link "${name}" is ${exists ?? "not known"}`, () =>
    assertEquals(linkExists(name), exists));
}

Deno.test("a link's folder in sysfs counts when its index is the kernel's", () => {
  const index = Number(readKernelFile("/sys/class/net/lo/ifindex"));
  assertEquals(linkFolder("lo", index), "/sys/class/net/lo");
  assertEquals(linkFolder("lo", index + 1), undefined);
  assertEquals(linkFolder("none-of-ours"), undefined);
  assertEquals(linkFolder("none-of-ours", index), undefined);
});
