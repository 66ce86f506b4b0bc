/** firewall and the tables of others: what iptables can and cannot read, links that are gone, two calls at once. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  assertNoPing,
  assertPings,
  Attachment,
  type Json,
  type Namespace,
  type Node,
  nodeTest,
  type PluginOutput,
  runPlugin,
} from "./support/mod.ts";

const needs = ["bridge", "veth", "iptables", "ip6tables", "nf_tables"] as const;

interface Asked {
  id?: string;
  conf?: Json;
  ips?: string[];
  /** The first interface of the previous result; null: no previous result. */
  link?: string | null;
  netns?: Namespace | null;
}

function ask(node: Node, command: string, asked: Asked = {}): Promise<PluginOutput> {
  const { id = "ctr1", conf = {}, ips = ["10.22.0.5/24", "2001:db8:22::5/64"], link = "br22" } = asked;
  const prevResult = {
    cniVersion: "1.1.0",
    interfaces: [{ name: link }, { name: "eth0", sandbox: "/run/netns/none" }],
    ips: ips.map((address) => ({ address, interface: 1 })),
  };
  const stdin = { cniVersion: "1.1.0", name: "net1", type: "firewall", ...conf, ...(link !== null && { prevResult }) };
  const netns = asked.netns === undefined ? "/run/netns/none" : asked.netns;
  return runPlugin(node, { type: "firewall", command, containerId: id, netns, stdin });
}

async function done(node: Node, command: string, asked: Asked = {}): Promise<PluginOutput> {
  const output = await ask(node, command, asked);
  assertEquals(output.code, 0, `${command}: ${output.stdout}${output.stderr}`);
  return output;
}

/** What an administrator's backup holds. */
async function backup(node: Node): Promise<string[]> {
  const texts = [];
  for (const tool of ["iptables-save", "ip6tables-save"]) {
    const text = await node.run(tool);
    assert(!text.includes("incompatible"), text);
    texts.push(...text.split("\n").filter((line) => !line.startsWith("#")).map((line) => line.replace(/\[.*\]$/, "")));
  }
  return texts;
}

const nftConf = { backend: "nftables" };

nodeTest("firewall nftables lets traffic through a host of iptables, whose tables iptables goes on reading", {
  needs: [...needs],
}, async ({ node }) => {
  const outside = await node.outside();
  await node.ip(
    "link add br22 address 02:00:00:00:00:22 type bridge",
    "addr add 10.22.0.1/24 dev br22",
    "addr add 2001:db8:22::1/64 dev br22 nodad",
    "link set br22 up",
  );
  await node.sysctl("ipv4/ip_forward", 1);
  await node.sysctl("ipv6/conf/all/forwarding", 1);
  await outside.ip("route add 10.22.0.0/24 via 192.0.2.1", "route add 2001:db8:22::/64 via 2001:db8:ffff::1");
  const pod = await node.container();
  await node.ip(`link add v22 type veth peer name eth0 netns ${pod.netns}`, "link set v22 master br22 up");
  await pod.ip(
    "link set lo up",
    "addr add 10.22.0.5/24 dev eth0",
    "addr add 2001:db8:22::5/64 dev eth0 nodad",
    "link set eth0 up",
    "route add default via 10.22.0.1",
    "route add default via 2001:db8:22::1",
  );
  await assertPings(pod, outside.ipv4);
  await node.sh(
    "for t in iptables ip6tables; do $t -P FORWARD DROP; $t -A FORWARD -s 203.0.113.9 -j ACCEPT || :; done",
  );
  await assertNoPing(pod, outside.ipv4);
  const conf = { ...nftConf, ingressPolicy: "same-bridge" };
  // The shared chains come with the first container.
  await done(node, "ADD", { conf, id: "first", ips: ["10.22.0.9/24", "2001:db8:22::9/64"] });
  const before = await backup(node);
  for (const times of [1, 2]) {
    for (let i = 0; i < times; i++) await done(node, "ADD", { conf });
    assertStringIncludes((await backup(node)).join("\n"), "-s 10.22.0.5/32");
    await assertPings(pod, outside.ipv4);
    await assertPings(pod, outside.ipv6);
    await done(node, "CHECK", { conf });
    for (let i = 0; i < times; i++) await done(node, "DEL", { conf, link: i > 0 ? null : "br22" });
    assertEquals(await backup(node), before);
    await assertNoPing(pod, outside.ipv4);
    assert(!(await node.run("nft", "list", "ruleset")).includes("10.22.0.5"));
  }
  const natives = (await node.run("nft", "list", "tables")).split("\n").filter((line) => /cni/i.test(line));
  assertEquals(natives, ["table inet cni_firewall"]);
});

/** The host's table as builds up to this one left it, with the addresses of two containers. */
const OLD = ["ip", "ip6"].map((ip, index) => {
  const table = `${ip} filter`;
  const set = `cni_addresses_v${index === 0 ? 4 : 6}`;
  const [one, other] = index === 0 ? ["10.22.0.5", "10.22.0.6"] : ["2001:db8:22::5", "2001:db8:22::6"];
  return `
    add set ${table} ${set} { type ${ip}${index === 0 ? "v4" : "v6"}_addr ; }
    create chain ${table} cni_forward
    add rule ${table} cni_forward ${ip} daddr @${set} ct state established,related accept
    add rule ${table} cni_forward ${ip} saddr @${set} accept
    insert rule ${table} FORWARD jump cni_forward comment "CNI firewall plugin rules"
    add element ${table} ${set} { ${one} }
    add element ${table} ${set} { ${other} }
  `.replaceAll("ip6v6", "ipv6");
}).join("");

for (const verb of ["ADD", "DEL", "GC", "ADD by iptables"]) {
  nodeTest(`firewall ${verb} moves what an earlier build left in the tables of iptables, and loses nobody`, {
    needs: [...needs],
  }, async ({ node }) => {
    await node.sh(
      "for t in iptables ip6tables; do $t -P FORWARD DROP; $t -A FORWARD -s 203.0.113.9 -j ACCEPT || :; done",
    );
    const conf = { ...nftConf, ingressPolicy: verb === "ADD by iptables" ? "same-bridge" : "open" };
    await done(node, "ADD", { conf });
    await done(node, "ADD", { conf, id: "other", ips: ["10.22.0.6/24", "2001:db8:22::6/64"] });
    await node.sh("for t in iptables ip6tables; do $t -F CNI-FORWARD; $t -D FORWARD 1; $t -X CNI-FORWARD; done");
    await node.exec(["nft", "-f", "-"], { input: OLD });
    assertStringIncludes(await node.run("iptables-save"), "incompatible");
    if (verb === "GC") {
      const valid = [{ containerID: "other", ifname: "eth0" }];
      const stdin = { cniVersion: "1.1.0", name: "net1", ...conf, "cni.dev/valid-attachments": valid };
      const { code, stdout } = await runPlugin(node, { type: "firewall", command: "GC", stdin });
      assertEquals(code, 0, stdout);
    } else if (verb === "ADD by iptables") {
      await node.sh("for t in iptables ip6tables; do $t -N CNI-ISOLATION-STAGE-1; done");
      await done(node, "ADD", { conf: { ingressPolicy: "same-bridge" }, id: "third", ips: ["10.22.0.7/24"] });
      await done(node, "ADD", { conf: { ingressPolicy: "same-bridge" }, id: "third", ips: ["2001:db8:22::7/64"] });
    } else await done(node, verb, { conf });
    const now = (await backup(node)).join("\n");
    for (const ip of ["10.22.0.6/32", "2001:db8:22::6/128"]) assertStringIncludes(now, `-s ${ip}`);
    assertEquals(now.includes("-s 10.22.0.5/32"), verb.startsWith("ADD"));
    assert(!now.includes("cni_forward"), now);
    await done(node, "DEL", { conf, id: "other", link: null });
    assert(!(await backup(node)).join("\n").includes("10.22.0.6"));
  });
}

nodeTest("what iptables cannot print is an error where it may hold a container's rules, and none where it cannot", {
  needs: [...needs],
}, async ({ node }) => {
  const network = {
    cniVersion: "1.1.0",
    name: "net1",
    type: "bridge",
    bridge: "br22",
    isGateway: true,
    ipMasq: true,
    ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }]] },
  };
  const attachment = new Attachment(node, network, await node.container("a"));
  await attachment.add();
  await node.sh(`nft 'add set ip nat somebodys { type ipv4_addr ; }'
    nft 'add rule ip nat POSTROUTING ip saddr @somebodys ct state new accept'`);
  assertStringIncludes(await node.run("iptables-save", "-t", "nat"), "incompatible");
  const check = await attachment.check().then(() => "passed", (error) => error.error.msg);
  assertStringIncludes(check, "is incompatible");
  await attachment.del();
  const chains = (await node.run("nft", "list", "chains", "ip")).match(/CNI-[0-9a-f]{24}/g) ?? [];
  assertEquals(chains, []);
  // Nothing of it is there any more, as nft says.
  await attachment.del();
});

for (const backend of ["iptables", "nftables"]) {
  nodeTest(`firewall ${backend}: DEL without a result removes what kept a ptp link apart that is gone`, {
    needs: [...needs],
  }, async ({ node }) => {
    const conf = { backend, ingressPolicy: "isolated" };
    const ptp = { type: "ptp", ipam: { type: "host-local", ranges: [[{ subnet: "10.23.0.0/24" }]] } };
    const rules = async () =>
      ((await backup(node)).join("\n") + await node.run("nft", "list", "ruleset")).match(/"?veth[0-9a-f]{8}"?/g) ?? [];
    for (const alive of [true, false]) {
      const pod = await node.container();
      const link = new Attachment(node, { cniVersion: "1.1.0", name: "net1", plugins: [ptp] }, pod);
      const { interfaces } = await link.add();
      await done(node, "ADD", { conf, id: pod.name, link: interfaces[0].name, netns: pod });
      // Another bridge's rules stay, whether it is there or not.
      await done(node, "ADD", { conf, id: "other", link: "br99", ips: ["10.24.0.5/24"] });
      assert((await rules()).length > 0);
      if (!alive) await node.ip(`link del ${interfaces[0].name}`);
      await done(node, "DEL", { conf, id: pod.name, link: null, netns: pod });
      assertEquals(await rules(), []);
      assertStringIncludes((await backup(node)).join("\n") + await node.run("nft", "list", "ruleset"), "br99");
      if (alive) await link.del();
    }
    // A link of that very name that is another's keeps its rules.
    const [pod, stranger] = [await node.container(), await node.container()];
    const link = new Attachment(node, { cniVersion: "1.1.0", name: "net1", plugins: [ptp] }, pod);
    const { interfaces } = await link.add();
    await node.ip(`link set dev ${interfaces[0].name} alias cni:net1:${stranger.name}:eth0`);
    await done(node, "ADD", { conf, id: stranger.name, link: interfaces[0].name, netns: stranger });
    await done(node, "DEL", { conf, id: pod.name, link: null, netns: pod });
    assert((await rules()).length > 0);
  });

  nodeTest(
    `firewall ${backend}: two DELs at once end with 0 and leave nothing`,
    { needs: [...needs] },
    async ({ node }) => {
      const conf = { backend, ingressPolicy: "isolated" };
      await node.ip("link add veth00000001 type veth peer name other");
      for (let round = 0; round < 12; round++) {
        const link = round % 2 === 0 ? "veth00000001" : "veth00000002";
        await done(node, "ADD", { conf, link });
        const ends = await Promise.all([1, 2, 3].map(() => ask(node, "DEL", { conf, link })));
        for (const { code, stdout, stderr } of ends) assertEquals(code, 0, stdout + stderr);
        const left = (await backup(node)).join("\n") + await node.run("nft", "list", "ruleset");
        assert(!/10\.22\.0\.5|2001:db8:22::5|veth0000/.test(left), left);
      }
    },
  );
}

nodeTest("two DELs at once of everything that makes rules end with 0 and leave nothing", {
  needs: [...needs, "ifb"],
}, async ({ node }) => {
  const network = {
    cniVersion: "1.1.0",
    name: "net1",
    plugins: [
      {
        type: "bridge",
        bridge: "br22",
        isGateway: true,
        ipMasq: true,
        macspoofchk: true,
        ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }]] },
      },
      { type: "portmap", capabilities: { portMappings: true } },
      { type: "firewall", ingressPolicy: "same-bridge" },
      {
        type: "bandwidth",
        ingressRate: 1_000_000,
        ingressBurst: 1_000_000,
        egressRate: 1_000_000,
        egressBurst: 1_000_000,
      },
      { type: "tuning", mtu: 1400 },
    ],
  };
  const state = async () =>
    [...await backup(node), ...(await node.run("nft", "list", "ruleset")).split("\n")].join("\n");
  for (let round = 0; round < 6; round++) {
    const pod = await node.container();
    const portMappings = [{ hostPort: 8080, containerPort: 80, protocol: "tcp" }];
    const attachment = new Attachment(node, network, pod, { capabilities: { portMappings } });
    const result = await attachment.add();
    const dels = [...network.plugins].reverse().map((plugin) => async () => {
      const stdin = {
        cniVersion: "1.1.0",
        name: "net1",
        ...plugin,
        prevResult: result,
        runtimeConfig: { portMappings },
      };
      const call = { command: "DEL", type: plugin.type, netns: pod, stdin };
      return await Promise.all([runPlugin(node, call), runPlugin(node, call)]);
    });
    // One after the other, as a runtime does, or all at once, as none should.
    const ends = round % 2 === 0 ? await Promise.all(dels.map((del) => del())) : [];
    if (round % 2 === 1) { for (const del of dels) ends.push(await del()); }
    for (const { code, stdout, stderr } of ends.flat()) assertEquals(code, 0, stdout + stderr);
    const left = await state();
    assert(!new RegExp(`${pod.name}|10\\.22\\.0\\.[0-9]+/32`).test(left), left);
    assertEquals(
      (await node.ipJson("link", "show", "type", "ifb")).filter(({ ifname }: Json) => ifname?.startsWith("bwp")),
      [],
    );
    assertEquals((await node.ipJson("link", "show", "master", "br22")).length, 0);
  }
});
