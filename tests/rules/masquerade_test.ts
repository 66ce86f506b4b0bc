import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { masqueradeBackend, masqueradePlan, removeMasquerade } from "../../lib/rules/masquerade.ts";
import { CniError } from "../../lib/cni/error.ts";
import { apply } from "../../lib/kernel/plan.ts";
import type { Output, Run } from "../../lib/kernel/run.ts";
import { RULE_TOOLS, withTools } from "../fakes/tools.ts";

const net1 = { network: "net1", containerId: "ctr1", ifName: "eth0" };
const CHAIN = "CNI-85373d34c6846b6c53ee2e7f";
const COMMENT = '-m comment --comment "name: \\"net1\\" id: \\"ctr1\\""';

Deno.test("a plan has one step per family with iptables and one with nftables", async () => {
  await withTools(RULE_TOOLS, () => {
    const ips = ["10.22.0.2/16", "fd00:22::2/64", "10.22.0.2/16"];
    assertEquals(masqueradePlan(net1, ips, "default").map(({ tool, text }) => [tool, text]), [
      [
        "iptables",
        `*nat
-N ${CHAIN}
-A ${CHAIN} -d 10.22.0.0/16 ${COMMENT} -j ACCEPT
-A ${CHAIN} ! -d 224.0.0.0/4 ${COMMENT} -j MASQUERADE
-A POSTROUTING -s 10.22.0.2/32 ${COMMENT} -j ${CHAIN}
COMMIT
`,
      ],
      [
        "ip6tables",
        `*nat
-N ${CHAIN}
-A ${CHAIN} -d fd00:22::/64 ${COMMENT} -j ACCEPT
-A ${CHAIN} ! -d ff00::/8 ${COMMENT} -j MASQUERADE
-A POSTROUTING -s fd00:22::2/128 ${COMMENT} -j ${CHAIN}
COMMIT
`,
      ],
    ]);
    const [nft, ...others] = masqueradePlan(net1, ips, "nftables");
    assertEquals([nft?.tool, others.length], ["nft", 0]);
    assertEquals(nft?.text.split("\n").filter((line) => line.includes("saddr")).length, 2);
    assertEquals(masqueradePlan(net1, [], "default"), []);
  });
});

Deno.test("words of ipMasqBackend", () => {
  assertEquals([undefined, "iptables", "nftables"].map((word) => masqueradeBackend(word)), [
    "default",
    "iptables",
    "nftables",
  ]);
  for (const word of ["", "bogus", "NFTABLES"]) {
    assertThrows(() => masqueradeBackend(word), CniError, `unknown ipmasq backend "${word}"`);
  }
});

/** A host that answers by the beginning of a command line; commands are noted. */
function host(answers: Record<string, Partial<Output>>): { host: Run; pod: Run; undo(): void; lines: string[] } {
  const lines: string[] = [];
  const run: Run = ({ argv }) => {
    const line = argv.join(" ");
    lines.push(line);
    const key = Object.keys(answers).find((one) => line.startsWith(one));
    return Promise.resolve({ code: 0, signal: null, stdout: "", stderr: "", ...(key !== undefined && answers[key]) });
  };
  return { host: run, pod: run, undo: () => {}, lines };
}

const LOCKED = { code: 4, stderr: "Another app is currently holding the xtables lock. Stopped waiting after 20s.\n" };
const UNUSABLE = {
  code: 3,
  stderr: "iptables v1.8.9 (legacy): can't initialize iptables table `nat': iptables who? (do you need to insmod?)\n",
};
const VERSION = { stdout: "nftables v1.0.6 (Lester Gooch #5)\n" };

Deno.test("a held lock is code 11, at once: nothing is tried again", async () => {
  await withTools(RULE_TOOLS, async () => {
    const call = host({ "iptables-restore": LOCKED });
    const error = await assertRejects(() => apply([masqueradePlan(net1, ["10.22.0.2/16"], "default")], call), CniError);
    assertEquals(error.code, 11);
    assertEquals(call.lines.length, 1);
    const removal = host({ "iptables-restore": LOCKED });
    assertEquals((await assertRejects(() => removeMasquerade(removal, net1, ["10.22.0.2/16"]), CniError)).code, 11);
    assertEquals(removal.lines.length, 1);
  });
});

Deno.test("without a configured backend nft serves where iptables does not work with the kernel", async () => {
  await withTools(RULE_TOOLS, async () => {
    const answers = {
      "iptables-restore": UNUSABLE,
      "iptables-save": UNUSABLE,
      "iptables -t filter": UNUSABLE,
      "nft --version": VERSION,
    };
    const call = host(answers);
    await apply([masqueradePlan(net1, ["10.22.0.2/16"], "default")], call);
    assertEquals(call.lines.filter((line) => line === "nft -f -").length > 0, true);
    const named = host(answers);
    const error = await assertRejects(
      () => apply([masqueradePlan(net1, ["10.22.0.2/16"], "iptables")], named),
      CniError,
    );
    assertEquals(named.lines.some((line) => line.startsWith("nft -f")), false);
    assertEquals(error.details.includes("nftables"), true);
  });
});

Deno.test("removal with known addresses is one process, and asks further only when that is refused", async () => {
  await withTools(RULE_TOOLS, async () => {
    const call = host({});
    await removeMasquerade(call, net1, ["10.22.0.2/16"]);
    assertEquals(call.lines, ["iptables-restore --noflush -w 20"]);
    const gone = host({
      "iptables-restore": { code: 2, stderr: `Chain '${CHAIN}' does not exist\n` },
      "iptables-save": { stdout: "*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n" },
      "nft -j": { code: 1, stderr: "Error: No such file or directory\n" },
    });
    await removeMasquerade(gone, net1, ["10.22.0.2/16"]);
    assertEquals(gone.lines, [
      "iptables-restore --noflush -w 20",
      "iptables-save -t nat",
      "nft -j list chain inet cni_plugins_masquerade masq_checks",
    ]);
  });
});

Deno.test("removal succeeds where nothing works", async () => {
  await withTools(RULE_TOOLS, async () => {
    const call = host({
      iptables: UNUSABLE,
      ip6tables: UNUSABLE,
      "nft -j": { code: 1, stderr: "Error: Could not process rule: Operation not supported\n" },
      "nft --version": { code: 1 },
    });
    await removeMasquerade(call, net1, ["10.22.0.2/16"]);
    await removeMasquerade(call, net1, []);
  });
});

Deno.test("of two interfaces of a container that go at once, the last takes their chain along", async () => {
  await withTools(RULE_TOOLS, async () => {
    const rule = (ip: string) => `-A POSTROUTING -s ${ip}/32 ${COMMENT} -j ${CHAIN}\n`;
    const saved = (...ips: string[]) =>
      `*nat\n:POSTROUTING ACCEPT [0:0]\n:${CHAIN} - [0:0]\n${ips.map(rule).join("")}COMMIT\n`;
    // The other's rule is there at the first look, and gone at the second: it saw ours, and left the chain to us.
    const listings = [saved("10.22.0.2", "10.22.0.3"), saved()];
    const written: string[] = [];
    const run: Run = ({ argv, input }) => {
      const answer = { code: 0, signal: null, stdout: "", stderr: "" };
      if (argv[0] === "iptables-save") return Promise.resolve({ ...answer, stdout: listings.shift() ?? "" });
      if (argv[0] === "iptables-restore") {
        written.push(input?.join("") ?? "");
        const busy = {
          code: 4,
          stderr: `iptables-restore v1.8.9 (nf_tables): CHAIN_DEL failed (Device or resource busy)\n`,
        };
        return Promise.resolve({ ...answer, ...(written.length === 1 && busy) });
      }
      // The other interface still has its address.
      const link = { ifname: "eth1", addr_info: [{ family: "inet", local: "10.22.0.3", prefixlen: 16 }] };
      return Promise.resolve({ ...answer, stdout: `${JSON.stringify([link])}\n` });
    };
    await removeMasquerade({ host: run, pod: run }, net1, ["10.22.0.2/16"]);
    assertEquals(written.slice(1), [
      `*nat\n-D ${rule("10.22.0.2").slice(3)}COMMIT\n`,
      `*nat\n-F ${CHAIN}\n-X ${CHAIN}\nCOMMIT\n`,
    ]);
  });
});
