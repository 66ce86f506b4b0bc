/** vlan without a kernel: checks in the reference's order, and IPAM errors that keep their code. */
import { assertEquals, assertRejects } from "@std/assert";
import { CniError } from "../../lib/cni/error.ts";
import type { JsonObject } from "../../lib/cni/types.ts";
import { plugin } from "../../plugins/vlan.ts";
import { noted } from "../fakes/kernel.ts";

const REQUIRED = '"master" field is required. It specifies the host interface name to create the VLAN for';
const REFUSED: readonly (readonly [config: JsonObject, msg: string])[] = [
  [{}, REQUIRED],
  [{ master: "", vlanId: 5000 }, REQUIRED],
  [{ master: "eth0", vlanId: 4095 }, "invalid VLAN ID 4095 (must be between 0 and 4095 inclusive)"],
  [{ master: "eth0", vlanId: -1 }, "invalid VLAN ID -1 (must be between 0 and 4095 inclusive)"],
  [
    { master: "eth0", vlanId: "5" },
    "failed to load netconf: json: cannot unmarshal string into Go struct field NetConf.vlanId of type int",
  ],
  [
    { master: "eth0", linkInContainer: "yes" },
    "failed to load netconf: json: cannot unmarshal string into Go struct field NetConf.linkInContainer of type bool",
  ],
];

for (const [config, msg] of REFUSED) {
  Deno.test(`vlan refuses ${JSON.stringify(config)}`, async () => {
    const { call, log } = noted({ ipam: { type: "static" }, ...config });
    const error = await assertRejects(() => plugin.add(call), CniError);
    assertEquals([error.msg, log], [msg, []]);
  });
}

Deno.test("vlan without vlanId is VLAN 0, and says so", async () => {
  const { call, log } = noted({ master: "eth0", ipam: { type: "static" } }, {
    ipam: { ips: [{ address: "10.1.0.2/24" }] },
  });
  await plugin.add(call);
  assertEquals(log.some((entry) => entry.endsWith("type vlan id 0")), true);
  assertEquals(call.warnings, ['"vlanId" is missing: VLAN 0, priority-tagged frames without a VLAN']);
});

Deno.test("vlan keeps an IPAM plugin's code behind the reference's words", async () => {
  const delegate = () => Promise.reject(new CniError(11, "no lease", "try later"));
  const { call } = noted({ master: "eth0", vlanId: 1, ipam: { type: "static" } }, { changes: { delegate } });
  const error = await assertRejects(() => plugin.add(call), CniError);
  assertEquals([error.code, error.msg], [11, "failed to execute IPAM delegate: no lease; try later"]);
});

Deno.test("vlan DEL looks at no master", async () => {
  const { call, log } = noted({ vlanId: 9999, ipam: { type: "static" } }, { changes: { verb: "DEL" } });
  await plugin.del(call);
  assertEquals(log, ["pod ip: link show", "static DEL"]);
});
