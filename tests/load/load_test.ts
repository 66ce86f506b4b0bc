/** The short form of `deno task test:load`: fewer containers, the same promises. */
import { assertEquals } from "@std/assert";
import { unmet } from "../e2e/support/mod.ts";
import { contend, run, tenNetworks } from "./load.ts";

const missing = unmet(["root", "bridge", "veth", "iptables", "nf_tables"]);
const ignore = missing.length > 0;
const why = ignore ? ` [skipped: ${missing.join(", ")}]` : "";
const base = { containers: 24, atOnce: 12, by: "cnibox", seed: 7 } as const;

for (const backend of ["iptables", "nftables"] as const) {
  Deno.test({
    name:
      `twenty-four containers, twelve at once, DEL and ADD mixed at random with ${backend}: no failure, no address twice, nothing left${why}`,
    ignore,
    fn: async () => {
      const { failures, duplicates, residue } = await run({ ...base, backend, mixed: true });
      assertEquals({ failures, duplicates, residue }, { failures: [], duplicates: 0, residue: [] });
    },
  });
}

for (const backend of ["iptables", "nftables"] as const) {
  Deno.test({
    name:
      `ten networks publish ports at once, every two the same one, with ${backend}: one of the two gets it, the other hears why, nothing is left${why}`,
    ignore,
    fn: async () => {
      const { refusals, ...others } = await tenNetworks(backend);
      const ports = [7000, 7001, 7002, 7003, 7004];
      assertEquals(refusals, ports.map((port) => `100 host port ${port}/tcp is already published by container NAME`));
      assertEquals(others, {
        owners: Object.fromEntries(ports.map((port) => [port, 1])),
        failures: [],
        duplicates: 0,
        residue: [],
      });
    },
  });
}

const noReference = unmet(["root", "bridge", "veth", "iptables", "reference"]);
Deno.test({
  name: `half of the addresses come from the reference's host-local on the same folder: none twice${
    noReference.length ? ` [skipped: ${noReference.join(", ")}]` : ""
  }`,
  ignore: noReference.length > 0,
  fn: async () => {
    const { failures, duplicates, residue } = await run({
      ...base,
      backend: "iptables",
      mixed: false,
      foreignIpam: true,
    });
    assertEquals({ failures, duplicates, residue }, { failures: [], duplicates: 0, residue: [] });
  },
});

Deno.test({
  name:
    `a range of five addresses with fifty contenders: five win, the others hear why, and addresses come back in order${why}`,
  ignore,
  fn: async () => {
    const { winners, errors, again } = await contend(50);
    assertEquals([...winners].sort(), ["10.30.0.2/29", "10.30.0.3/29", "10.30.0.4/29", "10.30.0.5/29", "10.30.0.6/29"]);
    assertEquals(
      new Set(errors),
      new Set(["999 failed to allocate for range 0: no IP addresses available in range set: 10.30.0.1-10.30.0.6"]),
    );
    assertEquals(errors.length, 45);
    // Every address was given out last to first in turn: after the last comes the first.
    assertEquals(again, ["10.30.0.2/29", "10.30.0.3/29", "10.30.0.4/29", "10.30.0.5/29", "10.30.0.6/29"]);
  },
});
