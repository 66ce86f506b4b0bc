/** dummy without a kernel: IPAM is required, and what goes into one batch. */
import { assertEquals, assertRejects } from "@std/assert";
import { CniError } from "../../lib/cni/error.ts";
import type { Result } from "../../lib/cni/types.ts";
import { plugin } from "../../plugins/dummy.ts";
import { noted } from "../fakes/kernel.ts";

const conf = { ipam: { type: "static" } };

Deno.test("dummy without IPAM says so before it looks at the namespace", async () => {
  for (const ipam of [null, {}, { type: "" }]) {
    const { call } = noted({ ipam }, { changes: { netns: "/nowhere" } });
    for (const verb of [plugin.add, plugin.check]) {
      assertEquals(
        (await assertRejects(() => verb(call) as Promise<unknown>, CniError)).msg,
        "dummy interface requires an IPAM configuration",
      );
    }
  }
});

Deno.test("dummy with IPv4 addresses is one process, with IPv6 addresses two, which nobody checks for duplicates", async () => {
  const cases: [Result, string[]][] = [
    [{ ips: [{ address: "10.1.0.2/32" }] }, [
      "static ADD",
      "pod ip: link add name eth0 type dummy; addr add 10.1.0.2/32 dev eth0; link set dev eth0 up; addr show dev eth0",
    ]],
    [{ ips: [{ address: "fd01::2/64", gateway: "fd01::1" }], routes: [{ dst: "::/0" }] }, [
      "static ADD",
      "pod ip: link add name eth0 type dummy",
      "pod ip: ~net/ipv6/conf/lo/disable_ipv6=0; ~net/ipv6/conf/eth0/disable_ipv6=0; !net/ipv6/conf/eth0/keep_addr_on_down=1; addr add fd01::2/64 dev eth0 nodad; link set dev eth0 up; route prepend ::/0 via fd01::1 dev eth0 proto boot; addr show dev eth0",
    ]],
  ];
  for (const [ipam, expected] of cases) {
    const { call, log } = noted(conf, { ipam });
    await plugin.add(call);
    assertEquals(log, expected);
  }
});

Deno.test("dummy: a name that is taken is an error, and nothing is deleted for it", async () => {
  const { call } = noted(conf, {
    ipam: { ips: [{ address: "10.1.0.2/24" }] },
    fails: { line: /^link add/, stderr: "RTNETLINK answers: File exists" },
  });
  const error = await assertRejects(() => plugin.add(call), CniError);
  assertEquals(error.msg, "failed to create dummy: file exists");
  // The address is released; the link is not ours.
  assertEquals(call.undos.length, 1);
});

Deno.test("dummy on a kernel that has none names the option", async () => {
  const { call } = noted(conf, {
    ipam: { ips: [{ address: "10.1.0.2/24" }] },
    fails: { line: /^link add/, stderr: "Error: Unknown device type." },
  });
  const error = await assertRejects(() => plugin.add(call), CniError);
  assertEquals([error.msg, error.details], [
    "failed to create dummy: operation not supported",
    "this kernel has no dummy links: it needs CONFIG_DUMMY; try: modprobe dummy",
  ]);
});
