import { assertEquals } from "@std/assert";
import { similarNames } from "../../lib/net/similar.ts";

const LINKS = ["lo", "eth0", "eth1", "enp3s0", "cni0", "bond0.100"];

const CASES: readonly (readonly [wanted: string, similar: readonly string[]])[] = [
  ["eht0", ["eth0"]],
  ["ETH0", ["eth0", "eth1"]],
  ["eth", ["eth0", "eth1"]],
  ["enp3s1", ["enp3s0"]],
  ["enp3s0f0", ["enp3s0"]],
  ["bond0", ["bond0.100"]],
  ["l", ["lo"]],
  ["wlan0", []],
  ["", []],
];

for (const [wanted, similar] of CASES) {
  Deno.test(`similar names of ${JSON.stringify(wanted)}`, () => assertEquals(similarNames(wanted, LINKS), similar));
}

Deno.test("similar names: no more than three, and an equal one first", () => {
  assertEquals(similarNames("eth1", ["eth4", "eth3", "eth2", "eth1"]), ["eth1", "eth2", "eth3"]);
});
