/** The short form of `deno task fuzz`. */
import { assertEquals } from "@std/assert";
import { unmet } from "../e2e/support/mod.ts";
import { fuzzInNode } from "./node.ts";

const missing = unmet(["root"]);
Deno.test({
  name: `five thousand calls made of nonsense all have a proper answer and leave nothing${
    missing.length ? ` [skipped: ${missing.join(", ")}]` : ""
  }`,
  ignore: missing.length > 0,
  fn: async () => {
    const { cases, violations } = await fuzzInNode(5000, { seed: 20 });
    assertEquals(violations.map(({ number, plugin, what }) => `${number} ${plugin}: ${what}`), []);
    assertEquals(cases, 5000);
  },
});
