import { assertEquals, assertThrows } from "@std/assert";
import { fileIdentity, kernelFileExists, listKernelFolder, readKernelFile } from "../../lib/kernel/proc.ts";

Deno.test("kernel files that are not there are errors of their own", () => {
  const none = "/proc/sys/net/ipv4/there-is-none";
  for (const ask of [readKernelFile, fileIdentity, listKernelFolder]) {
    assertThrows(() => ask(none), Deno.errors.NotFound);
  }
  assertEquals(kernelFileExists(none), false);
});

Deno.test("a kernel file that cannot be looked at is neither there nor absent", () => {
  assertEquals(kernelFileExists("/proc/sys/net/ipv4/ip_forward"), true);
  assertEquals(kernelFileExists("/proc/self/status/x"), undefined);
});
