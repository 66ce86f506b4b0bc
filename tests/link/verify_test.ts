import { assertEquals, assertThrows } from "@std/assert";
import { checkRoutes, type PodState } from "../../lib/link/verify.ts";
import { CniError } from "../../lib/cni/error.ts";
import type { Result } from "../../lib/cni/types.ts";
import type { Link, RouteEntry } from "../../lib/kernel/ip.ts";

const result: Result = { ips: [{ address: "10.0.0.2/24" }], routes: [{ dst: "10.96.0.0/12", gw: "10.0.0.1" }] };
const network = { dst: "10.0.0.0/24", dev: "eth0", table: "100" };
const moved = { dst: "10.96.0.0/12", gateway: "10.0.0.1", dev: "eth0", table: "100" };
const vrf = { info_kind: "veth", info_slave_kind: "vrf", info_slave_data: { table: 100 } };

const cases: readonly [promise: string, routes: readonly RouteEntry[], linkinfo: Link["linkinfo"], found: boolean][] = [
  ["is found in the main table", [{ ...moved, table: "main" }], undefined, true],
  ["is found where no table is named", [{ dst: moved.dst, gateway: moved.gateway, dev: "eth0" }], undefined, true],
  ["is found where source based routing moved it", [network, moved], undefined, true],
  ["is not found in a table without the link's own network", [moved], undefined, false],
  [
    "is not found in a table that leads out elsewhere too",
    [network, moved, { dst: "10.5.0.0/16", dev: "eth1", table: "100" }],
    undefined,
    false,
  ],
  ["is found in the table of the link's VRF", [moved], vrf, true],
  ["is not found in the table of another VRF", [{ ...moved, table: "101" }], vrf, false],
  ["is not found by another gateway", [network, { ...moved, gateway: "10.0.0.9" }], undefined, false],
  ["is not found in the local table", [{ ...moved, table: "local" }], undefined, false],
];

for (const [promise, routes, linkinfo, found] of cases) {
  Deno.test(`CHECK: a route of prevResult ${promise}`, () => {
    const link = { ifname: "eth0", ...(linkinfo && { linkinfo }) } as Link;
    const state: PodState = { link, routes };
    if (found) return checkRoutes(state, result);
    assertEquals(
      assertThrows(() => checkRoutes(state, result), CniError).msg.startsWith("Expected Route {Dst:{IP:10.96.0.0 "),
      true,
    );
  });
}
