/** ipvlan without a kernel: which master is taken, whose addresses, and the one line that they become. */
import { assertEquals, assertRejects } from "@std/assert";
import { CniError } from "../../lib/cni/error.ts";
import type { JsonObject, Result } from "../../lib/cni/types.ts";
import { plugin } from "../../plugins/ipvlan.ts";
import { NETNS, noted } from "../fakes/kernel.ts";

const previous = (interfaces: JsonObject[], ips: JsonObject[] = [{ address: "10.7.0.2/24", gateway: "10.7.0.1" }]) => ({
  prevResult: { cniVersion: "1.1.0", interfaces, ips, routes: [{ dst: "10.9.0.0/16" }] },
});
const ipam: Result = { ips: [{ address: "10.1.0.2/24" }] };

async function made(config: JsonObject) {
  const { call, log } = noted(config, { ipam, answers: { "ip -j -batch -": [] } });
  const result = await plugin.add(call);
  const lines = log.flatMap((entry) => entry.split("; "));
  const line = lines.find((text) => text.includes("link add")) ?? "";
  return { result, line: line.replace(/veth[0-9a-f]{8}/, "T").replace(`netns ${NETNS} `, ""), log };
}

Deno.test("ipvlan names mode and flag, since both belong to the master", async () => {
  assertEquals(
    (await made({ master: "eth0", mode: "l3", mtu: 1400, ipam: { type: "static" } })).line,
    "link add link eth0 name T mtu 1400 type ipvlan mode l3 bridge",
  );
});

Deno.test("ipvlan in a chain takes master, addresses and routes of prevResult", async () => {
  const { result, line, log } = await made(previous([{ name: "ens3" }]));
  assertEquals(line, "link add link ens3 name T type ipvlan mode l2 bridge");
  assertEquals(result.ips, [{ address: "10.7.0.2/24", gateway: "10.7.0.1", interface: 0 }]);
  assertEquals(log.some((entry) => entry.includes("route prepend 10.9.0.0/16 via 10.7.0.1 dev eth0")), true);
});

Deno.test("ipvlan: master wins over prevResult's interface, IPAM over its addresses", async () => {
  const { result, line } = await made({
    master: "eth0",
    ipam: { type: "static" },
    ...previous([{ name: "a" }, { name: "b" }]),
  });
  assertEquals(line.includes("link eth0 "), true);
  assertEquals(result.ips?.map((ip) => ip.address), ["10.1.0.2/24"]);
  assertEquals(result.routes, undefined);
});

const REFUSED: readonly (readonly [config: JsonObject, msg: string])[] = [
  [previous([{ name: "a" }, { name: "b" }]), "chained master failure. PrevResult lacks a single named interface"],
  [previous([{ name: "" }]), "chained master failure. PrevResult lacks a single named interface"],
  [previous([]), "chained master failure. PrevResult lacks a single named interface"],
  [{ master: "eth0", mode: "L2" }, 'unknown ipvlan mode: "L2"'],
  [
    { master: "eth0", prevResult: 5 },
    "failed to load netconf: json: cannot unmarshal number into Go struct field NetConf.prevResult of type map[string]interface {}",
  ],
  [
    { prevResult: { cniVersion: "0.3.1", interfaces: [{ name: "a" }] } },
    'could not parse prevResult: result type supports [1.0.0 1.1.0] but unmarshalled CNIVersion is "0.3.1"',
  ],
];

for (const [config, msg] of REFUSED) {
  Deno.test(`ipvlan refuses ${JSON.stringify(config).slice(0, 70)}`, async () => {
    const { call, log } = noted(config);
    const error = await assertRejects(() => plugin.add(call), CniError);
    assertEquals([error.msg, log], [msg, []]);
  });
}

Deno.test("ipvlan DEL reads neither master nor prevResult", async () => {
  const { call, log } = noted({ mode: "x", prevResult: { cniVersion: "0.3.1" } }, { changes: { verb: "DEL" } });
  await plugin.del(call);
  assertEquals(log, ["pod ip: link show"]);
});
