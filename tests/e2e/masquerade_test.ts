/** Masquerade rules against the kernel's own tables: set, shared, checked, removed and collected, in both backends. */
import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import {
  checkMasquerade,
  gcMasquerade,
  type MasqueradeBackend,
  masqueradeBackend,
  masqueradePlan,
  removeMasquerade,
} from "../../lib/rules/masquerade.ts";
import type { NetworkCall } from "../../lib/cni/plugin.ts";
import type { ValidAttachment } from "../../lib/cni/types.ts";
import { apply } from "../../lib/kernel/plan.ts";
import type { Run } from "../../lib/kernel/run.ts";
import type { Attachment } from "../../lib/net/name.ts";
import { createNode, type Namespace, type Node } from "./support/node.ts";

const ignore = Deno.uid() !== 0;
const net1: Attachment = { network: "net1", containerId: "ctr1", ifName: "eth0" };

/** A host whose commands run in a throw-away node, and what they were. */
interface Host {
  readonly host: Run;
  readonly pod: Run;
  readonly podAlive: boolean;
  readonly commands: string[];
  readonly undos: (() => unknown)[];
  undo(job: () => unknown): void;
}

function hostOf(node: Node, pod?: Namespace): Host {
  const commands: string[] = [];
  const undos: (() => unknown)[] = [];
  const runIn = (where: Namespace): Run => async ({ argv, input }) => {
    commands.push(argv.join(" "));
    const output = await where.exec([...argv], input ? { input: input.join("") } : {});
    return { ...output, signal: null };
  };
  return {
    host: runIn(node),
    pod: runIn(pod ?? node),
    podAlive: pod !== undefined,
    commands,
    undos,
    undo: (job) => undos.push(job),
  };
}

async function add(host: Host, owner: Attachment, ips: string[], backend: MasqueradeBackend = "default") {
  await apply([masqueradePlan(owner, ips, backend)], host);
}

const gcCall = (host: Host, network = "net1") => ({ ...host, network }) as unknown as NetworkCall;
const gc = (host: Host, valid: ValidAttachment[]) => gcMasquerade(gcCall(host), valid);

/** What is in the nat tables, without what changes by itself. */
async function saved(node: Node, tool = "iptables"): Promise<string> {
  const text = await node.run(`${tool}-save`, "-t", "nat");
  return text.split("\n").filter((line) => /^-A|^:CNI/.test(line)).join("\n");
}

const V4 = `:CNI-85373d34c6846b6c53ee2e7f - [0:0]
-A POSTROUTING -s 10.22.0.2/32 -m comment --comment "name: \\"net1\\" id: \\"ctr1\\"" -j CNI-85373d34c6846b6c53ee2e7f
-A CNI-85373d34c6846b6c53ee2e7f -d 10.22.0.0/16 -m comment --comment "name: \\"net1\\" id: \\"ctr1\\"" -j ACCEPT
-A CNI-85373d34c6846b6c53ee2e7f ! -d 224.0.0.0/4 -m comment --comment "name: \\"net1\\" id: \\"ctr1\\"" -j MASQUERADE`;
const V6 = `:CNI-85373d34c6846b6c53ee2e7f - [0:0]
-A POSTROUTING -s fd00:22::2/128 -m comment --comment "name: \\"net1\\" id: \\"ctr1\\"" -j CNI-85373d34c6846b6c53ee2e7f
-A CNI-85373d34c6846b6c53ee2e7f -d fd00:22::/64 -m comment --comment "name: \\"net1\\" id: \\"ctr1\\"" -j ACCEPT
-A CNI-85373d34c6846b6c53ee2e7f ! -d ff00::/8 -m comment --comment "name: \\"net1\\" id: \\"ctr1\\"" -j MASQUERADE`;

const NFT = `table inet cni_plugins_masquerade {
	comment "Masquerading for plugins from github.com/containernetworking/plugins"
	chain masq_checks {
		comment "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet"
		ip saddr 10.22.0.2 ip daddr != 10.22.0.0/16 masquerade comment "8e48f37d5de60467-7883a6f9ce71eedb, net: net1, if: eth0, id: ctr1"
		ip6 saddr fd00:22::2 ip6 daddr != fd00:22::/64 masquerade comment "8e48f37d5de60467-7883a6f9ce71eedb, net: net1, if: eth0, id: ctr1"
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip daddr 224.0.0.0/4 return
		ip6 daddr ff00::/8 return
		goto masq_checks
	}
}
`;

Deno.test("masquerade with iptables sets the reference's rules in one process per family and removes them in one", {
  ignore,
}, async () => {
  await using node = await createNode();
  const host = hostOf(node);
  await add(host, net1, ["10.22.0.2/16", "fd00:22::2/64"]);
  assertEquals(await saved(node), V4);
  assertEquals(await saved(node, "ip6tables"), V6);
  assertEquals(host.commands, ["iptables-restore --noflush -w 20", "ip6tables-restore --noflush -w 20"]);
  await checkMasquerade(host, net1, ["10.22.0.2/16", "fd00:22::2/64"]);
  host.commands.length = 0;
  await removeMasquerade(host, net1, ["10.22.0.2/16", "fd00:22::2/64"]);
  assertEquals(host.commands, ["iptables-restore --noflush -w 20", "ip6tables-restore --noflush -w 20"]);
  assertEquals(await saved(node) + await saved(node, "ip6tables"), "");
});

Deno.test(
  "masquerade with nftables sets the reference's table, a later attachment takes one process",
  { ignore },
  async () => {
    await using node = await createNode();
    const host = hostOf(node);
    const empty = await node.run("nft", "list", "ruleset");
    assertEquals(empty, "");
    await add(host, net1, ["10.22.0.2/16", "fd00:22::2/64"], "nftables");
    assertEquals(await node.run("nft", "list", "ruleset"), NFT);
    host.commands.length = 0;
    const second = { ...net1, containerId: "ctr2" };
    await add(host, second, ["10.22.0.3/16"], "nftables");
    assertEquals(host.commands, ["nft -f -"]);
    await checkMasquerade(host, second, ["10.22.0.3/16"], "nftables");
    await removeMasquerade(host, second, ["10.22.0.3/16"], "nftables");
    assertEquals(await node.run("nft", "list", "ruleset"), NFT);
  },
);

Deno.test("masquerade with nftables puts shared rules back that somebody flushed", { ignore }, async () => {
  await using node = await createNode();
  const host = hostOf(node);
  await add(host, { ...net1, containerId: "ctr0" }, ["10.22.0.9/16"], "nftables");
  await node.run("nft", "flush table inet cni_plugins_masquerade");
  await assertRejects(() => checkMasquerade(host, net1, ["10.22.0.2/16"], "nftables"), Error, "postrouting");
  await add(host, net1, ["10.22.0.2/16", "fd00:22::2/64"], "nftables");
  assertEquals(await node.run("nft", "list", "ruleset"), NFT);
});

for (const known of [true, false]) {
  for (const backend of ["iptables", "nftables"] as const) {
    const what = `${known ? "known addresses" : "no address"}, rules of ${backend}`;
    Deno.test(`masquerade removal: ${what}, whatever backend is configured`, { ignore }, async () => {
      await using node = await createNode();
      const host = hostOf(node);
      const ips = ["10.22.0.2/16", "fd00:22::2/64"];
      for (const configured of [undefined, "iptables", "nftables"]) {
        await add(host, net1, ips, backend);
        await add(host, { ...net1, network: "net2" }, ips, backend);
        await removeMasquerade(host, net1, known ? ips : [], configured);
        await removeMasquerade(host, net1, known ? ips : [], configured);
        const all = await saved(node) + await saved(node, "ip6tables") + await node.run("nft", "list", "ruleset");
        assert(!all.includes("net1"), all);
        assertStringIncludes(all, "net2");
      }
    });
  }
}

Deno.test("masquerade removal on an empty node makes no tables", { ignore }, async () => {
  await using node = await createNode();
  const host = hostOf(node);
  await removeMasquerade(host, net1, []);
  await removeMasquerade(host, net1, ["10.22.0.2/16", "fd00::1/64"]);
  await gc(host, []);
  assertEquals(await node.run("nft", "list", "ruleset"), "");
});

Deno.test("masquerade removal finds jumps of other addresses and of the form before 0.8.0", { ignore }, async () => {
  await using node = await createNode();
  const host = hostOf(node);
  await add(host, net1, ["10.22.0.2/16"]);
  const chain = "CNI-85373d34c6846b6c53ee2e7f";
  for (const source of ["10.22.0.0/16", "10.9.9.9/32"]) {
    await node.run(
      "iptables",
      "-t",
      "nat",
      "-A",
      "POSTROUTING",
      "-s",
      source,
      "-m",
      "comment",
      "--comment",
      'name: "net1" id: "ctr1"',
      "-j",
      chain,
    );
  }
  await removeMasquerade(host, net1, ["10.22.0.2/16"]);
  assertEquals(await saved(node), "");
});

Deno.test(
  "masquerade of a container's second interface keeps that of the first, in any order of removal",
  { ignore },
  async () => {
    await using node = await createNode();
    const pod = await node.container();
    await pod.ip(
      "link add eth0 type veth peer name p0",
      "addr add 10.22.0.2/16 dev eth0",
      "link add eth1 type veth peer name p1",
      "addr add 10.23.0.2/16 dev eth1",
    );
    const host = hostOf(node, pod);
    const eth1 = { ...net1, ifName: "eth1" };
    await add(host, net1, ["10.22.0.2/16"]);
    await add(host, eth1, ["10.23.0.2/16"]);
    const both = await saved(node);
    for (
      const text of ["-s 10.22.0.2/32", "-s 10.23.0.2/32", "-d 10.22.0.0/16", "-d 10.23.0.0/16"]
    ) assertStringIncludes(both, text);
    assert(both.lastIndexOf("-j ACCEPT") < both.indexOf("-j MASQUERADE"), both);
    assertEquals(both.match(/-j MASQUERADE/g)?.length, 1);
    await checkMasquerade(host, net1, ["10.22.0.2/16"]);
    await checkMasquerade(host, eth1, ["10.23.0.2/16"]);
    await removeMasquerade(host, net1, ["10.22.0.2/16"]);
    await checkMasquerade(host, eth1, ["10.23.0.2/16"]);
    assert(!(await saved(node)).includes("-s 10.22.0.2/32"));
    // Nothing is known, and the other interface is alive: its rules stay.
    await removeMasquerade(host, net1, []);
    await checkMasquerade(host, eth1, ["10.23.0.2/16"]);
    await removeMasquerade(host, eth1, ["10.23.0.2/16"]);
    assertEquals(await saved(node), "");
  },
);

Deno.test(
  "masquerade added twice, the second time for another address, serves the second only",
  { ignore },
  async () => {
    await using node = await createNode();
    const pod = await node.container();
    const host = hostOf(node, pod);
    await add(host, net1, ["10.99.0.7/16"]);
    await add(host, net1, ["10.22.0.2/16"]);
    assertEquals(await saved(node), V4);
    await add(host, net1, ["10.22.0.2/16"]);
    assertEquals(await saved(node), V4);
  },
);

Deno.test(
  "masquerade of two addresses of one family accepts both subnets before it masquerades",
  { ignore },
  async () => {
    await using node = await createNode();
    const host = hostOf(node);
    await add(host, net1, ["10.22.0.2/16", "10.33.0.2/24"]);
    const rules = (await saved(node)).split("\n").filter((line) => line.startsWith("-A CNI-")).map((line) =>
      line.split(" ").at(-1)
    );
    assertEquals(rules, ["ACCEPT", "ACCEPT", "MASQUERADE"]);
    await removeMasquerade(host, net1, ["10.22.0.2/16", "10.33.0.2/24"]);
    assertEquals(await saved(node), "");
  },
);

Deno.test("masquerade hands over what takes it back", { ignore }, async () => {
  await using node = await createNode();
  for (const backend of ["iptables", "nftables"] as const) {
    const host = hostOf(node);
    await add(host, net1, ["10.22.0.2/16", "fd00:22::2/64"], backend);
    for (const undo of host.undos.reverse()) await undo();
    assert(!(await saved(node) + await node.run("nft", "list", "ruleset")).includes("net1"));
  }
});

Deno.test("masquerade CHECK names what is missing", { ignore }, async () => {
  await using node = await createNode();
  const host = hostOf(node);
  const ips = ["10.22.0.2/16"];
  await assertRejects(
    () => checkMasquerade(host, net1, ips),
    Error,
    "chain CNI-85373d34c6846b6c53ee2e7f not found in iptables table nat",
  );
  await add(host, net1, ips);
  await node.run("iptables", "-t", "nat", "-F", "POSTROUTING");
  await assertRejects(() => checkMasquerade(host, net1, ips), Error, "no jump from 10.22.0.2");
  await node.run("iptables", "-t", "nat", "-F");
  await assertRejects(() => checkMasquerade(host, net1, ips), Error, "no rule that masquerades");
  await removeMasquerade(host, net1, ips);
  assertEquals(await saved(node), "");
});

Deno.test(
  "masquerade GC collects this network's attachments that are not valid, and nothing else",
  { ignore },
  async () => {
    for (const backend of ["iptables", "nftables"] as const) {
      await using node = await createNode();
      const host = hostOf(node);
      const long = "a".repeat(64);
      for (
        const [network, containerId, ip] of [["net1", "ctr1", 2], ["net1", "dead", 3], ["net2", "dead", 4], [
          "net1",
          long,
          5,
        ]] as const
      ) {
        await add(host, { network, containerId, ifName: "eth0" }, [`10.22.0.${ip}/16`, `fd00:22::${ip}/64`], backend);
      }
      await gc(host, [{ containerID: "ctr1", ifname: "eth0" }, { containerID: long, ifname: "eth0" }]);
      const all = await saved(node) + await saved(node, "ip6tables") + await node.run("nft", "list", "ruleset");
      for (const [ip, there] of [[2, true], [3, false], [4, true], [5, true]] as const) {
        assertEquals(all.includes(`10.22.0.${ip}`), there, `10.22.0.${ip} ${backend}`);
        assertEquals(all.includes(`fd00:22::${ip}`), there, `fd00:22::${ip} ${backend}`);
      }
      await gc(host, []);
      const left = await saved(node) + await saved(node, "ip6tables") + await node.run("nft", "list", "ruleset");
      assert(!left.includes("net: net1") && !left.includes('\\"net1'), left);
    }
  },
);

Deno.test("masquerade of 20 containers set and removed at the same time leaves nothing", { ignore }, async () => {
  await using node = await createNode();
  for (const backend of ["iptables", "nftables"] as const) {
    const host = hostOf(node);
    const owners = Array.from({ length: 20 }, (_, i) => ({ ...net1, containerId: `c${i}` }));
    await Promise.all(owners.map((owner, i) => add(host, owner, [`10.22.0.${i + 2}/16`], backend)));
    const set = await saved(node) + await node.run("nft", "list", "ruleset");
    for (let i = 0; i < 20; i++) assertStringIncludes(set, `10.22.0.${i + 2}`);
    await Promise.all(
      owners.flatMap((owner, i) => [1, 2].map(() => removeMasquerade(host, owner, [`10.22.0.${i + 2}/16`], backend))),
    );
    const left = await saved(node) + await node.run("nft", "list", "ruleset");
    assert(!/10\.22\.0\.|CNI-/.test(left), left);
  }
});

Deno.test("masquerade backend: words the configuration may have", () => {
  assertEquals(masqueradeBackend(undefined), "default");
  assertEquals(masqueradeBackend("nftables"), "nftables");
  for (const bad of ["", "bogus", "IPTABLES"]) {
    let said = "";
    try {
      masqueradeBackend(bad);
    } catch (error) {
      said = (error as Error).message;
    }
    assertStringIncludes(said, `unknown ipmasq backend "${bad}"`);
  }
});
