/** ptp without a kernel: what is refused before anything is made, and what DEL does without being told much. */
import { assertEquals, assertRejects } from "@std/assert";
import { CniError } from "../../lib/cni/error.ts";
import type { JsonObject, Result } from "../../lib/cni/types.ts";
import { plugin } from "../../plugins/ptp/mod.ts";
import { noted } from "../fakes/kernel.ts";

const net = (more: JsonObject = {}): JsonObject => ({ type: "ptp", ipam: { type: "static" }, ...more });
const four: Result = { ips: [{ address: "10.1.0.2/24", gateway: "10.1.0.1" }], routes: [{ dst: "0.0.0.0/0" }] };
const six: Result = { ips: [{ address: "fd01::2/64", gateway: "fd01::1" }] };

const REFUSED: readonly (readonly [what: string, more: JsonObject, ipam: Result, msg: string])[] = [
  ["an unknown backend", { ipMasq: true, ipMasqBackend: "x" }, four, 'unknown ipmasq backend "x"'],
  ["no gateway", {}, { ips: [{ address: "10.1.0.2/24" }] }, "failed to add route: no gateway for 10.1.0.2/24"],
  ["no address", {}, {}, "IPAM plugin returned missing IP config"],
  [
    "a small MTU with IPv6",
    { mtu: 1000 },
    six,
    'failed to enable keep_addr_on_down for interface "eth0": open /proc/sys/net/ipv6/conf/eth0/keep_addr_on_down: no such file or directory',
  ],
  [
    "dns that is no object",
    { dns: [] },
    four,
    "failed to load netconf: json: cannot unmarshal array into Go struct field .dns of type types.DNS",
  ],
  [
    "an MTU in quotes",
    { mtu: "1400" },
    four,
    "failed to load netconf: json: cannot unmarshal string into Go struct field NetConf.mtu of type int",
  ],
];

for (const [what, more, ipam, msg] of REFUSED) {
  Deno.test(`ptp refuses ${what} before any link is made`, async () => {
    const { call, log } = noted(net(more), { ipam });
    const error = await assertRejects(() => plugin.add(call), CniError);
    assertEquals(error.msg, msg);
    assertEquals(log.filter((entry) => !entry.startsWith("static")), []);
  });
}

Deno.test("ptp ignores masquerading altogether when it is off", async () => {
  const { call, log } = noted(net({ ipMasqBackend: "x" }), { changes: { verb: "DEL", podAlive: false } });
  await plugin.del(call);
  assertEquals(log, ["static DEL"]);
});

Deno.test("ptp DEL without IPAM deletes the link, then says what is missing", async () => {
  const { call, log } = noted({ type: "ptp" }, {
    answers: { "link show": [{ ifname: "eth0", linkinfo: { info_kind: "veth" } }] },
    changes: { verb: "DEL" },
  });
  await plugin.del(call);
  assertEquals(log.map((entry) => entry.replace(/^ DEL$/, "(no type) DEL")), [
    "(no type) DEL",
    "pod ip: link show",
    "pod ip: link del dev eth0",
  ]);
});
