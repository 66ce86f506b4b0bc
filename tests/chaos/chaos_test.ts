/** The short form of `deno task test:chaos`. */
import { assertEquals } from "@std/assert";
import { unmet } from "../e2e/support/mod.ts";
import { run } from "./chaos.ts";

const missing = unmet(["root", "bridge", "veth", "macvlan", "ifb", "iptables", "nf_tables"]);
Deno.test({
  name: `calls of five networks, killed and side by side, harm nothing that is not theirs and leave nothing${
    missing.length > 0 ? ` [skipped: ${missing.join(", ")}]` : ""
  }`,
  ignore: missing.length > 0,
  fn: async () => {
    const { counts, violations } = await run({ operations: 150, atOnce: 12, seed: 11 });
    assertEquals(violations, []);
    assertEquals(counts.killed > 0, true, "nothing was killed");
  },
});
