import { assertEquals } from "@std/assert";
import type { Run } from "../../lib/kernel/run.ts";
import { VirtualTables } from "../../lib/kernel/virtual_tables.ts";

const SAVED = `*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:HAVE - [0:0]
-A POSTROUTING -s 10.0.0.2/32 -m comment --comment mine -j HAVE
COMMIT
`;

/** A kernel that holds SAVED and knows one rule by other words. */
function tables(): { tables: VirtualTables; asked: string[] } {
  const asked: string[] = [];
  const ask: Run = ({ argv }) => {
    asked.push(argv.join(" "));
    const known = argv.includes("-C") && argv.includes("-s") && argv.includes("10.0.0.2");
    const save = argv[0] === "iptables-save";
    return Promise.resolve({ code: save || known ? 0 : 1, signal: null, stdout: save ? SAVED : "", stderr: "" });
  };
  return { tables: new VirtualTables(ask), asked };
}

const restore = (...lines: string[]) => ({
  argv: ["iptables-restore", "--noflush", "-w", "20"],
  input: [`*nat\n${lines.join("\n")}\nCOMMIT\n`],
});

Deno.test("a transaction that would fail is refused with its line, and leaves nothing", async () => {
  const { tables: virtual } = tables();
  const refused = async (line: number, ...lines: string[]) => {
    const verdict = await virtual.restore(restore(...lines));
    assertEquals(verdict.done, false);
    if (!verdict.done) assertEquals(verdict.answer.stderr.startsWith(`iptables-restore: line ${line} failed`), true);
  };
  await refused(3, "-N NEW", "-N HAVE");
  await refused(2, "-A GONE -j ACCEPT");
  await refused(2, "-F GONE");
  await refused(2, "-C PREROUTING -j HAVE");
  await refused(2, "-D PREROUTING -j HAVE");
  // The first of them was refused as a whole.
  await refused(2, "-A NEW -j ACCEPT");
});

Deno.test("a transaction that would work is remembered, its checks left out", async () => {
  const { tables: virtual } = tables();
  const first = await virtual.restore(restore("-N NEW", "-A NEW -j RETURN", "-I PREROUTING 1 -j NEW"));
  assertEquals(first, { done: true, text: "*nat\n-N NEW\n-A NEW -j RETURN\n-I PREROUTING 1 -j NEW\nCOMMIT\n" });
  const second = await virtual.restore(restore("-C NEW -j RETURN", "-A NEW -j ACCEPT"));
  assertEquals(second, { done: true, text: "*nat\n-A NEW -j ACCEPT\nCOMMIT\n" });
  assertEquals(await virtual.restore(restore("-C NEW -j ACCEPT")), { done: true, text: "" });
  const listed = virtual.listed({ argv: ["iptables", "-t", "nat", "-S", "NEW"] });
  assertEquals(listed?.stdout, "-N NEW\n-A NEW -j RETURN\n-A NEW -j ACCEPT\n");
  const saved = virtual.saved({ argv: ["iptables-save", "-t", "nat"] })?.stdout ?? "";
  assertEquals(saved.includes("-A PREROUTING -j NEW\n"), true);
  assertEquals(virtual.saved({ argv: ["ip6tables-save"] }), undefined);
});

Deno.test("a rule that the listing spells in other words is asked for and deleted by its target and comment", async () => {
  const { tables: virtual, asked } = tables();
  const verdict = await virtual.restore(
    restore("-D POSTROUTING -m comment --comment mine -s 10.0.0.2 -j HAVE", "-F HAVE", "-X HAVE"),
  );
  assertEquals(verdict.done, true);
  assertEquals(asked[1], "iptables -w 20 -t nat -C POSTROUTING -m comment --comment mine -s 10.0.0.2 -j HAVE");
  assertEquals(virtual.listed({ argv: ["iptables", "-t", "nat", "-S", "POSTROUTING"] })?.stdout, "-N POSTROUTING\n");
  assertEquals(virtual.listed({ argv: ["iptables", "-t", "nat", "-S", "HAVE"] })?.code, 1);
});

Deno.test("a chain that holds rules or is led to stays, and no rule leads to a chain that is not there", async () => {
  const { tables: virtual } = tables();
  const verdict = async (...lines: string[]) => (await virtual.restore(restore(...lines))).done;
  assertEquals(await verdict("-X HAVE"), false);
  assertEquals(await verdict("-N NEW", "-A NEW -j ACCEPT", "-X NEW"), false);
  assertEquals(await verdict("-A POSTROUTING -j CNI-GONE"), false);
  assertEquals(await verdict("-N CNI-GONE", "-A POSTROUTING -j CNI-GONE"), true);
});
