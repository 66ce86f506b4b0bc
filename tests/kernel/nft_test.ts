import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { nft, nftComment, NftError, nftList, nftUsable, parseListing, setElements } from "../../lib/kernel/nft.ts";
import type { Output, Run } from "../../lib/kernel/run.ts";
import { RULE_TOOLS, withTools } from "../fakes/tools.ts";

const answering = (...outputs: Partial<Output>[]): Run => () =>
  Promise.resolve({
    code: 0,
    signal: null,
    stdout: "",
    stderr: "",
    ...(outputs.length > 1 ? outputs.shift() : outputs[0]),
  });

Deno.test("nft's JSON is read into chains, rules and sets", () => {
  const listing = parseListing(JSON.stringify({
    nftables: [
      { metainfo: { version: "1.0.6" } },
      { table: { family: "ip", name: "t" } },
      { chain: { family: "ip", table: "t", name: "c", handle: 1, hook: "forward", policy: "drop" } },
      { rule: { family: "ip", table: "t", chain: "c", handle: 7, comment: "ctr1", expr: [{ accept: null }] } },
      { set: { name: "s", elem: ["10.0.0.1", { elem: { val: "10.0.0.2", comment: "x" } }, { concat: ["a", "a"] }] } },
      { set: { name: "empty" } },
    ],
  }));
  assertEquals(listing.chains.map(({ name, policy }) => [name, policy]), [["c", "drop"]]);
  assertEquals(listing.rules.map(({ handle, comment }) => [handle, comment]), [[7, "ctr1"]]);
  assertEquals(listing.sets.map(setElements), [
    [
      { value: "10.0.0.1", comment: "" },
      { value: "10.0.0.2", comment: "x" },
      { value: { concat: ["a", "a"] }, comment: "" },
    ],
    [],
  ]);
  assertEquals(parseListing("{}"), { chains: [], rules: [], sets: [] });
});

Deno.test("what is not there is undefined, what nft refuses is an error in one line", async () => {
  await withTools(RULE_TOOLS, async () => {
    const absent = { code: 1, stderr: "Error: No such file or directory\nlist chain ip t c\n             ^\n" };
    assertEquals(await nftList(answering(absent), "chain ip t c"), undefined);
    const refused = {
      code: 1,
      stderr:
        "/dev/stdin:2:15-20: Error: syntax error, unexpected string\nadd rule ip t c bogus\n              ^^^^^\n",
    };
    const error = await assertRejects(() => nft(answering(refused), "x"), NftError);
    assertEquals([error.refusal, error.message], [
      "refused",
      "failed to run nft: line 2: Error: syntax error, unexpected string",
    ]);
    const lost = await assertRejects(
      () =>
        nft(
          answering({
            code: 1,
            stderr: "/dev/stdin:1:1-2: Error: Could not process rule: No such file or directory\n",
          }),
          "x",
        ),
      NftError,
    );
    assertEquals(lost.refusal, "absent");
  });
});

Deno.test("a comment that nft cannot hold is refused", () => {
  assertEquals(nftComment("net: a, if: eth0"), 'comment "net: a, if: eth0"');
  for (const bad of ['a"b', "a\nb", "\t"]) assertThrows(() => nftComment(bad), RangeError);
});

Deno.test("nft is usable from 1.0.1 on, and when the kernel takes a table", async () => {
  await withTools(RULE_TOOLS, async () => {
    const cases: [version: Partial<Output>, dry: Partial<Output>, usable: boolean][] = [
      [{ stdout: "nftables v1.0.6 (Lester Gooch #5)\n" }, {}, true],
      [{ stdout: "nftables v1.0.1 (x)\n" }, {}, true],
      [{ stdout: "nftables v1.0.0 (x)\n" }, {}, false],
      [{ stdout: "nftables v0.9.8 (x)\n" }, {}, false],
      [{ stdout: "nftables v1.0.6 (x)\n" }, { code: 1 }, false],
      [{ code: 1 }, {}, false],
    ];
    for (const [version, dry, usable] of cases) {
      assertEquals(await nftUsable(answering(version, dry)), usable, version.stdout);
    }
  });
});
