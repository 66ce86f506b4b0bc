/** macvlan without a kernel: the configuration, and the one line that it becomes. */
import { assertEquals, assertRejects } from "@std/assert";
import { CniError } from "../../lib/cni/error.ts";
import type { JsonObject } from "../../lib/cni/types.ts";
import { plugin } from "../../plugins/macvlan.ts";
import { NETNS, noted } from "../fakes/kernel.ts";

/** The line that makes the link, without its passing name. */
async function made(config: JsonObject, args = ""): Promise<string> {
  const { call, log } = noted({ master: "eth0", ...config }, { changes: { args } });
  await plugin.add(call);
  const line = log.flatMap((entry) => entry.split("; ")).find((text) => text.includes("link add"));
  return (line ?? "").replace(/veth[0-9a-f]{8}/, "T").replace(`netns ${NETNS} `, "");
}

const LINES: readonly (readonly [config: JsonObject, line: string, args?: string])[] = [
  [{}, "link add link eth0 name T type macvlan mode bridge"],
  [{ mode: "" }, "link add link eth0 name T type macvlan mode bridge"],
  [{ mode: "private", mtu: 1400 }, "link add link eth0 name T mtu 1400 type macvlan mode private"],
  [{ bcqueuelen: 300 }, "link add link eth0 name T type macvlan mode bridge bcqueuelen 300"],
  [{ bcqueuelen: 0 }, "link add link eth0 name T type macvlan mode bridge"],
  [{ MODE: "vepa", MTU: null }, "link add link eth0 name T type macvlan mode vepa"],
  [{ mac: "0200.0000.000A" }, "link add link eth0 name T address 02:00:00:00:00:0a type macvlan mode bridge"],
  [
    { mac: "02:00:00:00:00:01" },
    "link add link eth0 name T address 02:00:00:00:00:02 type macvlan mode bridge",
    "MAC=02-00-00-00-00-02",
  ],
  [
    { runtimeConfig: { mac: "02:00:00:00:00:03" } },
    "link add link eth0 name T address 02:00:00:00:00:03 type macvlan mode bridge",
    "MAC=02-00-00-00-00-02",
  ],
];

for (const [config, line, args] of LINES) {
  Deno.test(`macvlan ${JSON.stringify(config)}${args ? ` and ${args}` : ""}`, async () =>
    assertEquals(await made(config, args), line));
}

const REFUSED: readonly (readonly [config: JsonObject, msg: string, args?: string])[] = [
  [{ mode: "source" }, 'unknown macvlan mode: "source"'],
  [{ mode: "Bridge" }, 'unknown macvlan mode: "Bridge"'],
  [{ mac: "02:00:00:00:00" }, "invalid args 02:00:00:00:00 for MAC addr: address 02:00:00:00:00: invalid MAC address"],
  [{ mac: "ff:ff:ff:ff:ff:ff" }, "failed to create macvlan: cannot assign requested address"],
  [{ mac: "00:00:00:00:00:00" }, "failed to create macvlan: cannot assign requested address"],
  [{ mac: "02:00:00:00:00:00:00:01" }, "failed to create macvlan: invalid argument"],
  [
    { bcqueuelen: -1 },
    "failed to load netconf: json: cannot unmarshal number -1 into Go struct field NetConf.bcqueuelen of type uint32",
  ],
  [
    { ipam: { type: 5 } },
    "failed to load netconf: json: cannot unmarshal number into Go struct field NetConf.ipam.type of type string",
  ],
  [
    { ipam: "static" },
    "failed to load netconf: json: cannot unmarshal string into Go struct field NetConf.ipam of type map[string]interface {}",
  ],
  [{ dns: "x" }, "failed to load netconf: json: cannot unmarshal string into Go struct field .dns of type types.DNS"],
  [
    { dns: { search: 5 } },
    "failed to load netconf: json: cannot unmarshal number into Go struct field .dns.search of type []string",
  ],
  [{}, 'ARGS: invalid pair "MAC"', "MAC"],
];

for (const [config, msg, args = ""] of REFUSED) {
  Deno.test(`macvlan refuses ${JSON.stringify(config)}${args ? ` and ${args}` : ""} before anything is touched`, async () => {
    const { call, log } = noted({ master: "eth0", ...config }, { changes: { args } });
    const error = await assertRejects(() => plugin.add(call), CniError);
    assertEquals([error.msg, log], [msg, []]);
  });
}

Deno.test("macvlan DEL releases the address after the link is gone, whatever the configuration says", async () => {
  const answers = { "link show": [{ ifname: "eth0", linkinfo: { info_kind: "macvlan" } }] };
  const { call, log } = noted({ mode: "source", mtu: "x", ipam: { type: "host-local" } }, {
    answers,
    changes: { verb: "DEL", args: "x" },
  });
  await plugin.del(call);
  assertEquals(log, ["pod ip: link show", "pod ip: link del dev eth0", "host-local DEL"]);
  assertEquals(call.warnings.length, 1);
});

Deno.test("macvlan DEL lets an IPAM plugin that works through the link go first", async () => {
  const { call, log } = noted({ ipam: { type: "dhcp" } }, { changes: { verb: "DEL" } });
  await plugin.del(call);
  assertEquals(log, ["dhcp DEL", "pod ip: link show"]);
});

Deno.test("macvlan replaces the IPAM plugin's dns, also with none", async () => {
  const ipam = { ips: [{ address: "10.1.0.2/24" }], dns: { domain: "a.example" } };
  for (const dns of [undefined, { domain: "b.example" }]) {
    const { call } = noted({ master: "eth0", dns, ipam: { type: "static" } }, { ipam });
    assertEquals((await plugin.add(call)).dns, dns);
  }
});
