/**
 * firewall on a node's own kernel: rules beside the reference's, traffic under policies, firewalld, and what is left.
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  assertNoPing,
  assertPings,
  assertSameState,
  type By,
  childPrograms,
  eventually,
  interopTest,
  type Json,
  type Namespace,
  type Node,
  nodeTest,
  type NodeTestOptions,
  PATH,
  ping,
  type PluginOutput,
  runPlugin,
  snapshot,
  tracePlugin,
} from "./support/mod.ts";

const iptables: NodeTestOptions = { needs: ["bridge", "veth", "iptables", "ip6tables"] };
const nftables: NodeTestOptions = { needs: ["bridge", "veth", "nf_tables"] };

interface Asked {
  by?: By;
  id?: string;
  conf?: Json;
  /** Addresses of the result before, or the result itself. */
  result?: string[] | Json;
  netns?: Namespace | string | null;
  bridge?: string;
  env?: Record<string, string>;
  wrap?: string[];
}

const DUAL = ["10.22.0.5/24", "2001:db8:22::5/64"];

function resultOf(addresses: string[], bridge = "cni0", veth = "veth0"): Json {
  return {
    cniVersion: "1.0.0",
    interfaces: [{ name: bridge }, { name: veth }, { name: "eth0", sandbox: "/run/netns/none" }],
    ips: addresses.map((address) => ({ address, interface: 2 })),
  };
}

function confOf({ conf = {}, result = DUAL, bridge }: Asked): Json {
  const previous = Array.isArray(result) ? resultOf(result, bridge) : result;
  return {
    cniVersion: "1.0.0",
    name: "net1",
    type: "firewall",
    ...(previous ? { prevResult: previous } : {}),
    ...conf,
  };
}

function ask(node: Node, command: string, asked: Asked = {}): Promise<PluginOutput> {
  return runPlugin(node, {
    type: "firewall",
    command,
    by: asked.by ?? "cnibox",
    containerId: asked.id ?? "ctr1",
    netns: asked.netns === undefined ? "/run/netns/none" : asked.netns,
    stdin: confOf(asked),
    ...(asked.env && { env: asked.env }),
    ...(asked.wrap && { wrap: asked.wrap }),
  });
}

async function done(node: Node, command: string, asked: Asked = {}): Promise<PluginOutput> {
  const output = await ask(node, command, asked);
  assertEquals(output.code, 0, `${command}: ${output.stdout}${output.stderr}`);
  return output;
}

async function saved(node: Node): Promise<string> {
  const texts = await Promise.all(["iptables-save", "ip6tables-save"].map((tool) => node.run(tool, "-t", "filter")));
  return texts.join("\n").split("\n").filter((line) => line !== "" && !line.startsWith("#")).join("\n");
}

const flush = (node: Node) => node.sh("for t in iptables ip6tables; do $t -F; $t -X; $t -P FORWARD ACCEPT; done");

// ------------------------------------------------------------------------------------------------------------- rules

/** Sequences of ADDs whose rules have to be the reference's. */
const sequences: [name: string, adds: Asked[]][] = [
  ["both families", [{}]],
  ["IPv4", [{ result: ["10.22.0.5/24"] }]],
  ["IPv6, in capitals", [{ result: ["2001:DB8:22::5/64"] }]],
  ["a mapped address and prefix lengths 0 and 32", [{ result: ["::ffff:10.0.0.1/128", "10.0.0.2/0", "10.0.0.3/32"] }]],
  ["two IPv4 addresses", [{ result: ["10.22.0.5/24", "10.22.0.6/24"] }]],
  ["no address", [{ result: [] }]],
  ["the same twice", [{}, {}]],
  ["a second container", [{}, { result: ["10.22.0.6/24"] }]],
  ["an administrator's chain, then another", [
    { conf: { iptablesAdminChainName: "CNI-foobar" } },
    { conf: { iptablesAdminChainName: "a".repeat(28) } },
  ]],
  ["a backend that nobody knows", [{ conf: { backend: "IPTABLES" } }]],
  ["policy open", [{ conf: { ingressPolicy: "open" } }]],
  ["policy same-bridge", [{ conf: { ingressPolicy: "same-bridge" } }]],
  ["policy isolated", [{ conf: { ingressPolicy: "isolated" } }]],
  ["same-bridge on one bridge, then isolated on another", [
    { conf: { ingressPolicy: "same-bridge" }, result: ["10.22.0.5/24"] },
    { conf: { ingressPolicy: "isolated" }, result: ["10.23.0.9/24"], bridge: "cni1" },
  ]],
  ["isolated, then same-bridge on the same bridge", [
    { conf: { ingressPolicy: "isolated" }, result: ["10.22.0.5/24"] },
    { conf: { ingressPolicy: "same-bridge" }, result: ["10.22.0.6/24"] },
  ]],
];

for (const [name, adds] of sequences) {
  nodeTest(
    `firewall ADD makes the reference's rules: ${name}`,
    { needs: [...iptables.needs!, "reference"] },
    async ({ node }) => {
      const seen: Record<string, string> = {};
      for (const by of ["ref", "cnibox"] as const) {
        const answers: string[] = [];
        for (const asked of adds) answers.push((await done(node, "ADD", { ...asked, by })).stdout);
        seen[by] = `${await saved(node)}\n${answers.join("\n")}`;
        await flush(node);
      }
      assertEquals(seen["cnibox"], seen["ref"]);
    },
  );
}

interopTest("firewall", iptables, async ({ adder, checker, deleter }, node) => {
  for (const policy of ["open", "same-bridge", "isolated"]) {
    const conf = { ingressPolicy: policy };
    await done(node, "ADD", { by: adder, conf, id: "other", result: ["10.22.0.9/24"] });
    const before = await saved(node);
    await done(node, "ADD", { by: adder, conf });
    await done(node, "CHECK", { by: checker, conf });
    await done(node, "DEL", { by: deleter, conf });
    await done(node, "DEL", { by: deleter, conf });
    const rules = await saved(node);
    // The chains that IPv6 needed are there from the first time on.
    assertEquals(
      rules.replaceAll(/.*(CNI-|:)(?!.*10\.22\.0\.9).*\n?/g, ""),
      before.replaceAll(/.*(CNI-|:)(?!.*10\.22\.0\.9).*\n?/g, ""),
    );
    assert(!/10\.22\.0\.5|2001:db8:22::5/.test(rules), rules);
    await flush(node);
  }
});

nodeTest("firewall starts few processes", { needs: [...iptables.needs!, "tool:strace"] }, async ({ node }) => {
  await done(node, "ADD", { id: "first", result: ["10.22.0.9/24"] });
  const trace = async (command: string, conf: Json = {}) =>
    childPrograms(
      await tracePlugin(node, {
        type: "firewall",
        command,
        containerId: "c",
        netns: "/run/netns/none",
        stdin: confOf({ result: ["10.22.0.5/24"], conf }),
      }),
    ).filter((name) => name !== "sh").sort();
  assertEquals(await trace("ADD"), ["iptables-restore", "iptables-restore"]);
  assertEquals(await trace("ADD"), ["iptables-restore"]);
  assertEquals(await trace("CHECK"), ["iptables-restore"]);
  assertEquals(await trace("DEL"), ["iptables", "iptables-restore"]);
});

nodeTest("firewall leaves other rules and the administrator's alone", iptables, async ({ node }) => {
  await node.sh(
    "iptables -A FORWARD -s 203.0.113.1 -j DROP; iptables -N CNI-ADMIN; iptables -A CNI-ADMIN -s 203.0.113.2 -j DROP",
  );
  await done(node, "ADD");
  await done(node, "CHECK");
  const rules = await saved(node);
  assertStringIncludes(rules, "-A CNI-ADMIN -s 203.0.113.2/32 -j DROP");
  assert(rules.indexOf("-j CNI-FORWARD") < rules.indexOf("-A FORWARD -s 203.0.113.1/32 -j DROP"), rules);
  // Not first any more: it is not moved, and not made twice.
  await node.sh("iptables -I FORWARD 1 -s 203.0.113.3 -j DROP");
  await done(node, "ADD", { id: "ctr2", result: ["10.22.0.6/24"] });
  assertEquals((await saved(node)).match(/-A FORWARD .*-j CNI-FORWARD/g)?.length, 2);
  await done(node, "DEL");
  assertStringIncludes(await saved(node), "-A CNI-ADMIN -s 203.0.113.2/32 -j DROP");
});

nodeTest(
  "firewall: ten ADDs at once, of one address and of many, and nothing is left after as many DELs",
  iptables,
  async ({ node }) => {
    const asks = [
      ...Array.from({ length: 10 }, (_, i) => ({ id: `a${i}`, result: [`10.22.0.${i + 10}/24`] })),
      ...Array.from({ length: 10 }, (_, i) => ({ id: `b${i}`, result: ["10.22.0.99/24"] })),
    ];
    await Promise.all(asks.map((asked) => done(node, "ADD", asked)));
    await Promise.all(asks.map((asked) => done(node, "CHECK", asked)));
    assertEquals((await saved(node)).match(/-A FORWARD/g)?.length, 1);
    await Promise.all(asks.map((asked) => done(node, "DEL", asked)));
    assert(!/10\.22\.0\./.test(await saved(node)), await saved(node));
  },
);

nodeTest("firewall: ADDs that come together on a new node make what all share once", {
  needs: [...iptables.needs!, "tool:strace"],
}, async ({ node }) => {
  // Between a tool's look at the rules and its change to them there is time for all the others.
  const wrap = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=sendmsg:delay_enter=300000"];
  const conf = { ingressPolicy: "isolated" };
  const ids = ["a", "b", "c"], address = (index: number) => `10.22.0.${index + 10}/24`;
  await Promise.all(ids.map((id, index) => done(node, "ADD", { id, conf, result: [address(index)], wrap })));
  const rules = (await saved(node)).split("\n").filter((line) => line.startsWith("-A"));
  assertEquals(rules.filter((rule, index) => rules.indexOf(rule) !== index), []);
  await Promise.all(ids.map((id, index) => done(node, "CHECK", { id, conf, result: [address(index)] })));
});

nodeTest("firewall CHECK names what is missing and changes nothing", iptables, async ({ node }) => {
  const conf = { ingressPolicy: "isolated" };
  const result = ["10.22.0.5/24"];
  const flushes: [how: string, words: string][] = [
    [
      "iptables -F FORWARD",
      "expected FORWARD rule [-m comment --comment CNI firewall plugin rules -j CNI-FORWARD] not found",
    ],
    [
      "iptables -D CNI-FORWARD 1",
      "expected CNI-FORWARD rule [-m comment --comment CNI firewall plugin admin overrides -j CNI-ADMIN] not found",
    ],
    [
      "iptables -D CNI-FORWARD 2",
      "expected rule [-d 10.22.0.5/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT] not found",
    ],
    ["iptables -D CNI-FORWARD 3", "expected rule [-s 10.22.0.5/32 -j ACCEPT] not found"],
    ["iptables -F CNI-ISOLATION-STAGE-1", "expected CNI-ISOLATION-STAGE-1 rule"],
    ["iptables -F CNI-ISOLATION-STAGE-2", "expected CNI-ISOLATION-STAGE-2 rule"],
    ["iptables -F; iptables -X", "expected FORWARD rule"],
  ];
  for (const [how, words] of flushes) {
    await done(node, "ADD", { conf, result });
    await done(node, "CHECK", { conf, result });
    await node.sh(how);
    const before = await snapshot(node);
    const output = await ask(node, "CHECK", { conf, result });
    assertEquals(output.code, 1, how);
    assertStringIncludes(output.json.msg, words);
    assertSameState(before, await snapshot(node));
    await done(node, "DEL", { conf, result });
    await flush(node);
  }
});

nodeTest("firewall puts bridges' rules in front again where something else came first", iptables, async ({ node }) => {
  const conf = { ingressPolicy: "same-bridge" };
  const order = async () => [...(await saved(node)).matchAll(/^-A FORWARD .*-j (\S+)$/gm)].map((match) => match[1]);
  await done(node, "ADD", { conf, result: ["10.22.0.5/24"] });
  await node.sh("iptables -D FORWARD -m comment --comment 'CNI firewall plugin rules' -j CNI-FORWARD");
  // Its jump is made anew, by a network that keeps no bridge apart.
  await done(node, "ADD", { id: "ctr2", result: ["10.23.0.5/24"] });
  assertEquals(await order(), ["CNI-ISOLATION-STAGE-1", "CNI-FORWARD"]);
  // As the reference leaves it.
  await node.sh(
    "iptables -D FORWARD 2; iptables -I FORWARD 1 -m comment --comment 'CNI firewall plugin rules' -j CNI-FORWARD",
  );
  assertEquals(await order(), ["CNI-FORWARD", "CNI-ISOLATION-STAGE-1"]);
  const output = await ask(node, "CHECK", { conf, result: ["10.22.0.5/24"] });
  assertStringIncludes(output.json.msg, "comes after");
  await done(node, "ADD", { conf, id: "ctr3", result: ["10.22.0.7/24"] });
  assertEquals(await order(), ["CNI-ISOLATION-STAGE-1", "CNI-FORWARD"]);
});

nodeTest("firewall CHECK accepts isolation rules of releases before 1.7", iptables, async ({ node }) => {
  const conf = { ingressPolicy: "same-bridge" };
  const result = ["10.22.0.5/24"];
  await done(node, "ADD", { result });
  const old = "-m comment --comment 'CNI firewall plugin rules (ingressPolicy: same-bridge)'";
  await node.sh(`iptables -N CNI-ISOLATION-STAGE-1; iptables -N CNI-ISOLATION-STAGE-2
iptables -I FORWARD 1 ${old} -j CNI-ISOLATION-STAGE-1
iptables -A CNI-ISOLATION-STAGE-1 -i cni0 ! -o cni0 ${old} -j CNI-ISOLATION-STAGE-2
iptables -A CNI-ISOLATION-STAGE-1 ${old} -j RETURN
iptables -A CNI-ISOLATION-STAGE-2 -o cni0 ${old} -j DROP
iptables -A CNI-ISOLATION-STAGE-2 ${old} -j RETURN`);
  await done(node, "CHECK", { conf, result });
  await done(node, "ADD", { conf, result });
  await done(node, "CHECK", { conf, result });
});

nodeTest("firewall refuses before it changes anything", iptables, async ({ node }) => {
  const before = await snapshot(node);
  const bad: [Asked, string][] = [
    [{ conf: { ingressPolicy: "closed" } }, 'unknown ingress policy: "closed"'],
    [{ conf: { ingressPolicy: "Same-Bridge" } }, 'unknown ingress policy: "Same-Bridge"'],
    [{ result: null }, "missing prevResult from earlier plugin"],
    [
      { conf: { ingressPolicy: "isolated" }, result: { cniVersion: "1.0.0", ips: [{ address: "10.0.0.1/24" }] } },
      'interface needs to be set for ingress policy "isolated", make sure to chain "firewall" plugin with "bridge"',
    ],
    [{ conf: { ingressPolicy: "isolated" }, result: resultOf(DUAL, "") }, "got empty bridge name"],
    [{ conf: { ingressPolicy: "isolated" }, result: resultOf(DUAL, "a b") }, "cannot be the name of a bridge"],
    [{ conf: { iptablesAdminChainName: "a".repeat(29) } }, "failed to check iptables chain existence"],
    [{ conf: { iptablesAdminChainName: "a\nb" } }, "failed to check iptables chain existence"],
    [{ conf: { cniVersion: "0.3.1" } }, "incompatible CNI versions"],
    [{ result: { ...resultOf(DUAL), cniVersion: "0.4.0" } }, "could not parse prevResult"],
  ];
  for (const [asked, words] of bad) {
    const output = await ask(node, "ADD", asked);
    assertEquals(output.code, 1, words);
    assertStringIncludes(output.json.msg, words);
    assertSameState(before, await snapshot(node));
  }
  // DEL does what it can.
  await done(node, "ADD");
  await done(node, "DEL", { conf: { ingressPolicy: "closed" } });
  assert(!/10\.22\.0\.5/.test(await saved(node)));
  const warned = await done(node, "ADD", { conf: { backend: "ipvs" } });
  assertStringIncludes(warned.stderr, 'unknown backend "ipvs"');
});

nodeTest(
  "firewall DEL finds the addresses without a result, and GC those of containers that are gone",
  iptables,
  async ({ node }) => {
    const gc = (valid: Json, by: By = "cnibox") =>
      runPlugin(node, {
        type: "firewall",
        command: "GC",
        by,
        stdin: { cniVersion: "1.1.0", name: "net1", type: "firewall", "cni.dev/valid-attachments": valid },
      });
    await done(node, "ADD");
    await done(node, "DEL", { result: null, netns: null });
    assert(!/10\.22\.0\.5|2001/.test(await saved(node)), await saved(node));
    assertEquals(await node.list("/run/cnibox/firewall"), []);
    for (
      const [id, ip] of [["keep", "10.22.0.10"], ["gone", "10.22.0.11"], ["moved", "10.22.0.12"], [
        "leased",
        "10.22.0.13",
      ]] as const
    ) {
      await done(node, "ADD", { id, result: [`${ip}/24`] });
    }
    await done(node, "ADD", { id: "gone", conf: { name: "net2" }, result: ["10.23.0.11/24"] });
    // Addresses that somebody else has got since: by a lease, and by what the runtime remembers.
    await node.write("/var/lib/cni/networks/net1/10.22.0.13", "new\r\neth0");
    await node.write("/var/lib/cni/results/net1-new-eth0", JSON.stringify({ result: resultOf(["10.22.0.12/24"]) }));
    await done(node, "DEL", { id: "leased", result: ["10.22.0.13/24"] });
    assertEquals((await gc([{ containerID: "keep", ifname: "eth0" }])).code, 0);
    const rules = await saved(node);
    for (
      const [ip, there] of [["22.0.10", true], ["22.0.11", false], ["22.0.12", true], ["22.0.13", true], [
        "23.0.11",
        true,
      ]] as const
    ) {
      assertEquals(rules.includes(`10.${ip}/32`), there, `10.${ip}: ${rules}`);
    }
  },
);

nodeTest(
  "firewall GC removes isolation rules of bridges that are gone, DEL those of a container's own link",
  iptables,
  async ({ node }) => {
    await node.ip("link add cni0 type bridge", "link add cni1 type bridge", "link add p0 type veth peer name p1");
    const conf = { ingressPolicy: "isolated" };
    await done(node, "ADD", { conf });
    await done(node, "ADD", { conf, id: "ctr2", bridge: "cni1", result: ["10.23.0.5/24"] });
    await done(node, "ADD", { conf, id: "ctr3", bridge: "p0", result: ["10.24.0.5/24"] });
    await done(node, "DEL", { conf, id: "ctr3", bridge: "p0", result: ["10.24.0.5/24"] });
    await done(node, "DEL", { conf });
    let rules = await saved(node);
    assert(!rules.includes(" p0 "), rules);
    assertStringIncludes(rules, "-i cni0");
    await node.ip("link del cni1");
    const { code } = await runPlugin(node, {
      type: "firewall",
      command: "GC",
      stdin: { cniVersion: "1.1.0", name: "net1", type: "firewall", "cni.dev/valid-attachments": [] },
    });
    assertEquals(code, 0);
    rules = await saved(node);
    assert(!rules.includes("cni1"), rules);
    assertStringIncludes(rules, "-i cni0");
  },
);

nodeTest("firewall with one family's tool missing works for the other", iptables, async ({ node }) => {
  // Both families are one executable in Debian, by links that the node has for itself.
  await node.sh("rm /etc/alternatives/ip6tables /etc/alternatives/ip6tables-restore /etc/alternatives/ip6tables-save");
  const four = { result: ["10.22.0.5/24"] };
  for (const command of ["ADD", "CHECK", "DEL"]) await done(node, command, four);
  // Both families in one result: nft takes the other one.
  await done(node, "ADD", { conf: { backend: "" } });
  assertStringIncludes(await node.run("nft", "list", "ruleset"), "2001:db8:22::5");
  await done(node, "CHECK");
  await done(node, "DEL");
  assert(!/10\.22\.0\.5|2001:db8:22::5/.test(await node.run("nft", "list", "ruleset")));
  const output = await ask(node, "ADD", { conf: { backend: "iptables" } });
  assertStringIncludes(output.json.msg, 'exec: "ip6tables": executable file not found in $PATH');
  assert(!/10\.22\.0\.5|2001:db8:22::5/.test(await node.run("nft", "list", "ruleset")));
});

// ------------------------------------------------------------------------------------------------------------ traffic

interface Pod {
  space: Namespace;
  ipv4: string;
  ipv6: string;
  result: Json;
}

async function makeBridge(node: Node, name: string, net: number): Promise<void> {
  await node.ip(
    `link add ${name} address 02:00:00:00:00:${net} type bridge`,
    `addr add 10.${net}.0.1/24 dev ${name}`,
    `addr add 2001:db8:${net}::1/64 dev ${name} nodad`,
    `link set ${name} up`,
  );
  await node.sysctl("ipv4/ip_forward", 1);
  await node.sysctl("ipv6/conf/all/forwarding", 1);
}

async function makePod(node: Node, bridge: string, net: number, host: number): Promise<Pod> {
  const space = await node.container(`p${net}x${host}`);
  const [ipv4, ipv6, veth] = [`10.${net}.0.${host}`, `2001:db8:${net}::${host}`, `v${net}x${host}`];
  await node.ip(
    `link add ${veth} type veth peer name eth0 netns ${space.netns}`,
    `link set ${veth} master ${bridge} up`,
  );
  await space.ip(
    "link set lo up",
    `addr add ${ipv4}/24 dev eth0`,
    `addr add ${ipv6}/64 dev eth0 nodad`,
    "link set eth0 up",
    `route add default via 10.${net}.0.1`,
    `route add default via 2001:db8:${net}::1`,
  );
  for (const gateway of [`10.${net}.0.1`, `2001:db8:${net}::1`]) await assertPings(space, gateway);
  return { space, ipv4, ipv6, result: resultOf([`${ipv4}/24`, `${ipv6}/64`], bridge, veth) };
}

/** Runs what follows with these tools out of reach. */
async function without(node: Node, tool: string): Promise<void> {
  await node.sh('mount --bind /dev/null "$(readlink -f "$(command -v "$1")")"', tool);
}

const DROP_ALL = `table inet filter {
	chain forward {
		type filter hook forward priority 0; policy drop;
	}
}`;

for (const backend of ["iptables", "nftables"] as const) {
  const options = backend === "iptables" ? iptables : nftables;
  nodeTest(
    `firewall ${backend}: the container's traffic passes a host that drops what it does not know`,
    options,
    async ({ node }) => {
      const outside = await node.outside();
      await makeBridge(node, "cni0", 22);
      const pod = await makePod(node, "cni0", 22, 5);
      await outside.ip("route add 10.22.0.0/24 via 192.0.2.1", "route add 2001:db8:22::/64 via 2001:db8:ffff::1");
      await assertPings(pod.space, outside.ipv4);
      await assertPings(pod.space, outside.ipv6);
      if (backend === "iptables") await node.sh("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP");
      else {
        await without(node, "iptables");
        await node.exec(["nft", "-f", "-"], { input: DROP_ALL });
      }
      await assertNoPing(pod.space, outside.ipv4);
      const asked = { result: pod.result, netns: pod.space };
      await done(node, "ADD", asked);
      await done(node, "CHECK", asked);
      await assertPings(pod.space, outside.ipv4);
      await assertPings(pod.space, outside.ipv6);
      // New connections from outside stay with the host's own rules.
      await assertNoPing(outside, pod.ipv4);
      await done(node, "DEL", asked);
      await done(node, "DEL", asked);
      await assertNoPing(pod.space, outside.ipv4);
      await assertNoPing(pod.space, outside.ipv6);
    },
  );

  nodeTest(
    `firewall ${backend}: restricted bridges do not reach each other, and isolated neighbours neither`,
    options,
    async ({ node }) => {
      const outside = await node.outside();
      await outside.ip("route add 10.0.0.0/8 via 192.0.2.1");
      if (backend === "nftables") await without(node, "iptables");
      const [bridges, pods] = [["cni0", "cni1", "cni2"], [] as Pod[]];
      for (const [i, bridge] of bridges.entries()) {
        await makeBridge(node, bridge, 22 + i);
        for (const host of [5, 6]) pods.push(await makePod(node, bridge, 22 + i, host));
      }
      const [a, a2, b, b2, c] = pods as [Pod, Pod, Pod, Pod, Pod];
      const policies = ["same-bridge", "isolated", "open"];
      for (const [i, pod] of pods.entries()) {
        await done(node, "ADD", {
          id: pod.space.name,
          result: pod.result,
          conf: { ingressPolicy: policies[Math.floor(i / 2)] },
        });
      }
      for (const [i, pod] of pods.entries()) {
        await done(node, "CHECK", {
          id: pod.space.name,
          result: pod.result,
          conf: { ingressPolicy: policies[Math.floor(i / 2)] },
        });
      }
      const flows: [what: string, from: Pod, to: string, passes: boolean][] = [
        ["same-bridge to its neighbour", a, a2.ipv4, true],
        ["isolated to its neighbour", b, b2.ipv4, false],
        ["isolated to its neighbour, IPv6", b, b2.ipv6, false],
        ["same-bridge to isolated", a, b.ipv4, false],
        ["same-bridge to isolated, IPv6", a, b.ipv6, false],
        ["isolated to same-bridge", b, a.ipv4, false],
        ["open to same-bridge", c, a.ipv4, true],
        ["open to isolated", c, b.ipv4, true],
        ["same-bridge to open", a, c.ipv4, true],
        ["isolated to open", b, c.ipv4, true],
        ["same-bridge to outside", a, outside.ipv4, true],
        ["isolated to its gateway", b, "10.23.0.1", true],
      ];
      for (const [what, from, to, passes] of flows) {
        assertEquals(await ping(from.space, to, { tries: passes ? 3 : 1 }), passes, what);
      }
      assert(await ping(node, b.ipv4), "host to isolated");
    },
  );
}

nodeTest("firewall nftables: rules, owners of addresses, GC, and a flushed host", nftables, async ({ node }) => {
  const conf = { backend: "nftables", ingressPolicy: "same-bridge" };
  await node.ip("link add cni0 type bridge");
  await done(node, "ADD", { conf });
  const first = await node.run("nft", "list", "ruleset");
  await done(node, "ADD", { conf });
  assertEquals(await node.run("nft", "list", "ruleset"), first);
  for (
    const how of [
      "flush table inet cni_firewall",
      "delete chain inet cni_firewall forward",
      "delete table inet cni_firewall",
      "flush chain inet cni_firewall CNI-FORWARD",
      "flush set inet cni_firewall cni_addresses_v4",
      "flush set inet cni_firewall same",
    ]
  ) {
    await done(node, "CHECK", { conf });
    await node.run("nft", how);
    const output = await ask(node, "CHECK", { conf });
    assertEquals(output.code, 1, how);
    await done(node, "ADD", { conf });
    await done(node, "CHECK", { conf });
  }
  // An address that a new container has got before the old one goes.
  await done(node, "ADD", { conf, id: "new", result: ["10.22.0.5/24"] });
  await done(node, "DEL", { conf });
  await done(node, "CHECK", { conf, id: "new", result: ["10.22.0.5/24"] });
  await done(node, "ADD", { conf, id: "other", result: ["10.22.0.7/24"] });
  await done(node, "ADD", { conf: { ...conf, name: "net2" }, id: "other", result: ["10.23.0.7/24"] });
  await runPlugin(node, {
    type: "firewall",
    command: "GC",
    stdin: {
      cniVersion: "1.1.0",
      name: "net1",
      type: "firewall",
      backend: "nftables",
      "cni.dev/valid-attachments": [{ containerID: "new", ifname: "eth0" }],
    },
  });
  const left = await node.run("nft", "list", "ruleset");
  assertStringIncludes(left, "10.22.0.5");
  assertStringIncludes(left, "10.23.0.7");
  assert(!left.includes("10.22.0.7"), left);
  await done(node, "DEL", { conf, id: "new", result: null, netns: null });
  assert(!(await node.run("nft", "list", "ruleset")).includes("10.22.0.5"));
});

nodeTest("firewall DEL finds rules of the backend that is not configured any more", {
  needs: [...iptables.needs!, "nf_tables"],
}, async ({ node }) => {
  for (
    const [added, deleted] of [["iptables", "nftables"], ["nftables", "iptables"], ["nftables", ""], ["iptables", ""]]
  ) {
    await done(node, "ADD", { conf: { backend: added } });
    await done(node, "DEL", { conf: { backend: deleted } });
    const left = await saved(node) + await node.run("nft", "list", "ruleset");
    assert(!/10\.22\.0\.5|2001:db8:22::5/.test(left), `${added} ${deleted}: ${left}`);
  }
});

nodeTest(
  "firewall with neither iptables nor nft: ADD says what to install, DEL succeeds, STATUS tells",
  nftables,
  async ({ node }) => {
    await without(node, "iptables");
    await without(node, "nft");
    const output = await ask(node, "ADD");
    assertStringIncludes(
      output.json.msg,
      'could not initialize iptables protocol 0: failed to locate iptables: exec: "iptables": executable file not found in $PATH',
    );
    assertStringIncludes(output.json.details, "install");
    await done(node, "DEL");
    const status = await runPlugin(node, {
      type: "firewall",
      command: "STATUS",
      stdin: { cniVersion: "1.1.0", name: "n", type: "firewall" },
    });
    assertEquals(status.json.code, 50);
  },
);

// ---------------------------------------------------------------------------------------------------------- firewalld

const withFirewalld: NodeTestOptions = {
  needs: [...iptables.needs!, "nf_tables", "tool:firewalld", "tool:dbus-daemon", "tool:busctl"],
};

/** A system bus and firewalld of the node's own. */
async function startFirewalld(node: Node): Promise<{ stop(): Promise<void> }> {
  await node.sh("mkdir -p /run/dbus && dbus-daemon --system --fork --nopidfile");
  const daemon = node.spawn(["firewalld", "--nofork", "--nopid"], { env: { PATH } });
  await eventually("firewalld answers", async () => (await node.exec(["firewall-cmd", "--state"])).code === 0, 30_000);
  return { stop: () => daemon.close() };
}

const sources = (node: Node, zone = "trusted") =>
  node.run("firewall-cmd", `--zone=${zone}`, "--list-sources").then((text) => text.trim());

nodeTest("firewall with firewalld: sources of a zone, added, checked and removed beside the reference", {
  needs: [...withFirewalld.needs!, "reference"],
}, async ({ node }) => {
  const daemon = await startFirewalld(node);
  const untouched = await saved(node);
  for (const adder of ["cnibox", "ref"] as const) {
    for (const other of ["ref", "cnibox"] as const) {
      await done(node, "ADD", { by: adder });
      assertEquals((await sources(node)).split(" ").sort(), ["10.22.0.5/32", "2001:db8:22::5/128"]);
      await done(node, "ADD", { by: other });
      await done(node, "CHECK", { by: other });
      await done(node, "DEL", { by: other });
      assertEquals(await sources(node), "");
      await done(node, "DEL", { by: adder });
    }
  }
  assertEquals(await saved(node), untouched);
  // Another zone; a zone that is not there; an address that is in another zone.
  await done(node, "ADD", { conf: { firewalldZone: "internal" } });
  assertStringIncludes(await sources(node, "internal"), "10.22.0.5/32");
  const conflict = await ask(node, "ADD");
  assertEquals(
    conflict.json.msg,
    "failed to add the address 10.22.0.5/32 to trusted zone: ZONE_CONFLICT: '10.22.0.5/32' already bound to a zone",
  );
  await done(node, "DEL", { conf: { firewalldZone: "internal" } });
  const nozone = await ask(node, "ADD", { conf: { backend: "firewalld", firewalldZone: "nozone" } });
  assertEquals(nozone.json.msg, "failed to add the address 10.22.0.5/32 to nozone zone: INVALID_ZONE: nozone");
  // The second address fails: the first is taken back.
  await node.run("firewall-cmd", "--zone=internal", "--add-source=2001:db8:22::5/128");
  assertEquals((await ask(node, "ADD")).code, 1);
  assertEquals(await sources(node), "");
  await node.run("firewall-cmd", "--zone=internal", "--remove-source=2001:db8:22::5/128");
  // What firewalld has forgotten, CHECK misses.
  await done(node, "ADD");
  await node.run("firewall-cmd", "--zone=trusted", "--remove-source=10.22.0.5/32");
  const forgotten = await ask(node, "CHECK");
  assertEquals(forgotten.json.msg, "failed to find the address 10.22.0.5/32 in trusted zone");
  await done(node, "DEL", { result: null });
  assertEquals(await sources(node), "");
  // Bridges are kept apart in iptables nevertheless.
  await done(node, "ADD", { conf: { ingressPolicy: "same-bridge" } });
  const rules = await saved(node);
  assertStringIncludes(rules, "CNI-ISOLATION-STAGE-1 -i cni0 ! -o cni0");
  assert(!rules.includes("CNI-FORWARD"), rules);
  await done(node, "CHECK", { conf: { ingressPolicy: "same-bridge" } });
  await daemon.stop();
  await done(node, "DEL", { conf: { ingressPolicy: "same-bridge" } });
  const gone = await ask(node, "ADD", { conf: { backend: "firewalld" } });
  assertEquals(
    gone.json.msg,
    "failed to add the address 10.22.0.5/32 to trusted zone: The name org.fedoraproject.FirewallD1 was not provided by any .service files",
  );
  const status = await runPlugin(node, {
    type: "firewall",
    command: "STATUS",
    stdin: { cniVersion: "1.1.0", name: "n", type: "firewall", backend: "firewalld" },
  });
  assertEquals(status.json.code, 50);
});

nodeTest(
  "firewall without a backend: what firewalld or iptables holds is removed whichever runs by then",
  withFirewalld,
  async ({ node }) => {
    await done(node, "ADD");
    const daemon = await startFirewalld(node);
    await done(node, "DEL");
    assert(!/10\.22\.0\.5/.test(await saved(node)), await saved(node));
    await done(node, "ADD");
    assertStringIncludes(await sources(node), "10.22.0.5/32");
    await daemon.stop();
    await done(node, "DEL");
  },
);

nodeTest("firewall with firewalld configured and no bus: ADD says so, DEL succeeds", iptables, async ({ node }) => {
  const output = await ask(node, "ADD", { conf: { backend: "firewalld" } });
  assertEquals(output.json.msg, "dial unix /var/run/dbus/system_bus_socket: connect: no such file or directory");
  await done(node, "DEL", { conf: { backend: "firewalld" } });
});

nodeTest("firewall does not wait for ever for a bus that never answers", {
  needs: [...iptables.needs!, "tool:socat", "tool:busctl"],
}, async ({ node }) => {
  const bus = node.spawn(["socat", "-d", "-d", "UNIX-LISTEN:/run/bus,fork", "SYSTEM:cat >/dev/null"]);
  await bus.until(/listening on/);
  const env = { DBUS_SYSTEM_BUS_ADDRESS: "unix:path=/run/bus" };
  // Nobody says that firewalld runs: iptables it is.
  await done(node, "ADD", { env });
  assertStringIncludes(await saved(node), "-s 10.22.0.5/32 -j ACCEPT");
  await done(node, "DEL", { env, conf: { backend: "iptables" } });
  await bus.close();
});

nodeTest("firewall without busctl speaks to firewalld by dbus-send", {
  needs: [...withFirewalld.needs!, "tool:dbus-send"],
}, async ({ node }) => {
  const daemon = await startFirewalld(node);
  await without(node, "busctl");
  for (let i = 0; i < 2; i++) await done(node, "ADD");
  assertEquals((await sources(node)).split(" ").sort(), ["10.22.0.5/32", "2001:db8:22::5/128"]);
  await done(node, "CHECK");
  await node.run("firewall-cmd", "--zone=trusted", "--remove-source=10.22.0.5/32");
  assertEquals((await ask(node, "CHECK")).json.msg, "failed to find the address 10.22.0.5/32 in trusted zone");
  const nozone = await ask(node, "ADD", { conf: { firewalldZone: "nozone" } });
  assertEquals(nozone.json.msg, "failed to add the address 10.22.0.5/32 to nozone zone: INVALID_ZONE: nozone");
  await done(node, "DEL");
  assertEquals(await sources(node), "");
  await daemon.stop();
});
