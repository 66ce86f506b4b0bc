/** Many transactions made into one. */
import { assertEquals, assertThrows } from "@std/assert";
import type { NftListing, NftRule } from "../../lib/kernel/nft.ts";
import { mergedScript, mergedTables, NotOneTransaction, pairedHandles } from "../../lib/kernel/rule_batch.ts";

Deno.test("one transaction for each table, what keeps away before what leads there, in each caller's order", () => {
  const texts = [
    "*nat\n-C PREROUTING -j CNI-HOSTPORT-DNAT\n-N CNI-DN-a\n-A CNI-DN-a -j RETURN\nCOMMIT\n",
    "*raw\n-I PREROUTING 1 ! -i lo -d 127.0.0.0/8 -j DROP\nCOMMIT\n",
    "*filter\n-A FORWARD -j CNI-FORWARD\nCOMMIT\n*nat\n-A POSTROUTING -j CNI-b\nCOMMIT\n",
  ];
  assertEquals(
    mergedTables(texts),
    `*raw
-I PREROUTING 1 ! -i lo -d 127.0.0.0/8 -j DROP
COMMIT
*filter
-A FORWARD -j CNI-FORWARD
COMMIT
*nat
-N CNI-DN-a
-A CNI-DN-a -j RETURN
-A POSTROUTING -j CNI-b
COMMIT
`,
  );
});

Deno.test("transactions that only ask leave nothing to write", () => {
  assertEquals(mergedTables(["*nat\n-C PREROUTING -j CNI-HOSTPORT-DNAT\nCOMMIT\n"]), "");
  assertEquals(mergedTables([]), "");
  assertEquals(mergedScript(["list chain ip cni_hostport prerouting\n"], new Map()), "");
});

const rule = (chain: string, handle: number): NftRule => ({
  family: "ip",
  table: "cni_hostport",
  chain,
  handle,
  expr: [],
});
const listing = (...rules: NftRule[]): NftListing => ({ chains: [], rules, sets: [] });

Deno.test("rules that are named by their handles in the copy get those that they have here", () => {
  const here = listing(rule("hostports", 12), rule("hostports", 15), rule("masquerading", 16), rule("output", 3));
  const copy = listing(rule("hostports", 4), rule("hostports", 5), rule("masquerading", 6));
  const handles = pairedHandles(here, copy);
  assertEquals(
    mergedScript([
      "add rule ip cni_hostport hostports tcp dport 80 dnat to 10.1.0.2:80\nlist chain ip cni_hostport prerouting\n",
      "delete rule ip cni_hostport hostports handle 5\ndelete rule ip cni_hostport masquerading handle 6\n",
    ], handles),
    `add rule ip cni_hostport hostports tcp dport 80 dnat to 10.1.0.2:80
delete rule ip cni_hostport hostports handle 15
delete rule ip cni_hostport masquerading handle 16
`,
  );
});

Deno.test("a rule that the same batch makes cannot be deleted by its handle in one transaction", () => {
  assertThrows(() => mergedScript(["delete rule ip cni_hostport hostports handle 9\n"], new Map()), NotOneTransaction);
});

Deno.test("chains that have changed since they were copied have no pairs", () => {
  const handles = pairedHandles(listing(rule("hostports", 1)), listing(rule("hostports", 1), rule("hostports", 2)));
  assertEquals(handles.size, 0);
});
