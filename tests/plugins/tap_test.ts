/** tap without a kernel: the lines that make the device. */
import { assertEquals, assertRejects } from "@std/assert";
import { CniError } from "../../lib/cni/error.ts";
import type { JsonObject } from "../../lib/cni/types.ts";
import { plugin } from "../../plugins/tap.ts";
import { noted } from "../fakes/kernel.ts";

async function made(config: JsonObject): Promise<string[]> {
  const { call, log } = noted(config);
  await plugin.add(call);
  return log.map((entry) => entry.replaceAll(/veth[0-9a-f]{8}/g, "T"));
}
const named = "link set dev T name eth0";
const up = "link set dev eth0 up; addr show dev eth0";

const LINES: readonly (readonly [config: JsonObject, log: string[]])[] = [
  [{}, ["pod ip: tuntap add mode tap name T", `pod ip: ${named}; ${up}`]],
  [{ multiQueue: true, owner: 0, group: 4294967295 }, [
    "pod ip: tuntap add mode tap name T multi_queue user 0 group 4294967295",
    `pod ip: ${named}; ${up}`,
  ]],
  [{ owner: null, group: 5, mtu: 1400, mac: "02-00-00-00-00-0A" }, [
    "pod ip: tuntap add mode tap name T group 5",
    `pod ip: ${named}; link set dev eth0 mtu 1400 address 02:00:00:00:00:0a; ${up}`,
  ]],
  [{ bridge: "br0" }, [
    "pod ip: tuntap add mode tap name T",
    `pod ip: ${named}; addr show dev br0; link set dev eth0 master br0; link set dev eth0 up; ${up}`,
  ]],
  [{ selinuxContext: "system_u:system_r:container_t:s0" }, [
    "pod runcon system_u:system_r:container_t:s0 ip tuntap add mode tap name T",
    `pod ip: ${named}; ${up}`,
  ]],
];

for (const [config, log] of LINES) {
  Deno.test(`tap ${JSON.stringify(config)}`, async () => assertEquals(await made(config), log));
}

const REFUSED: readonly (readonly [config: JsonObject, msg: string])[] = [
  [
    { owner: "root" },
    "failed to load netconf: json: cannot unmarshal string into Go struct field NetConf.owner of type uint32",
  ],
  [
    { owner: -1 },
    "failed to load netconf: json: cannot unmarshal number -1 into Go struct field NetConf.owner of type uint32",
  ],
  [
    { group: 4294967296 },
    "failed to load netconf: json: cannot unmarshal number 4294967296 into Go struct field NetConf.group of type uint32",
  ],
  [{ mtu: -10 }, "failed to run command Error: mtu less than device minimum.\n: exit status 2"],
  [{ bridge: "a b" }, "failed to get bridge a b: Link not found"],
  [{ selinuxContext: "-x" }, "failed set socket label: invalid argument"],
  [{ selinuxContext: "a b" }, "failed set socket label: invalid argument"],
  [
    { args: [] },
    "failed to load netconf: json: cannot unmarshal array into Go struct field NetConf.args of type map[string]interface {}",
  ],
];

for (const [config, msg] of REFUSED) {
  Deno.test(`tap refuses ${JSON.stringify(config)} before anything is touched`, async () => {
    const { call, log } = noted(config);
    const error = await assertRejects(() => plugin.add(call), CniError);
    assertEquals([error.msg, log], [msg, []]);
  });
}

Deno.test("tap does not take a bridge that is shown for another name", async () => {
  const { call, log } = noted({ bridge: "if3" }, { answers: { "addr show dev if3": [{ ifname: "br0" }] } });
  const error = await assertRejects(() => plugin.add(call), CniError);
  assertEquals([error.msg, log], ["failed to get bridge if3: Link not found", ["pod ip: addr show dev if3"]]);
});

Deno.test("tap DEL does not read CNI_ARGS", async () => {
  const { call, log } = noted({}, {
    answers: { "link show": [{ ifname: "eth0", linkinfo: { info_kind: "tun" } }] },
    changes: { verb: "DEL", args: "x" },
  });
  await plugin.del(call);
  assertEquals(log, ["pod ip: link show", "pod ip: link del dev eth0"]);
});
