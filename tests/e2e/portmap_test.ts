/** portmap on a node's own kernel: rules beside the reference's, traffic, conflicts, and what is left afterwards. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  assertPings,
  assertSameState,
  type By,
  call,
  childPrograms,
  eventually,
  interopTest,
  type Json,
  type Namespace,
  type Node,
  nodeTest,
  type NodeTestOptions,
  type Outside,
  type PluginOutput,
  type Reply,
  request,
  runPlugin,
  serve,
  snapshot,
  tracePlugin,
  type Transport,
} from "./support/mod.ts";

const iptables: NodeTestOptions = { needs: ["bridge", "veth", "iptables", "ip6tables"] };
const nftables: NodeTestOptions = { needs: ["bridge", "veth", "nf_tables"] };
const both = [["iptables", iptables], ["nftables", nftables]] as const;

/** A bridge as the bridge plugin makes it, in both families. */
async function makeBridge(node: Node, name = "cni0", net = 22): Promise<void> {
  await node.ip(
    // Pinned: else it changes when a port goes, and containers keep answering to the old one.
    `link add ${name} address 02:00:00:00:00:${net} type bridge`,
    `addr add 10.${net}.0.1/24 dev ${name}`,
    `addr add 2001:db8:${net}::1/64 dev ${name} nodad`,
    `link set ${name} up`,
  );
  await node.sysctl("ipv4/ip_forward", 1);
  await node.sysctl("ipv6/conf/all/forwarding", 1);
}

interface Pod {
  readonly space: Namespace;
  readonly ipv4: string;
  readonly ipv6: string;
  /** The result of the plugin before portmap. */
  readonly result: Json;
}

/** A container on the bridge, with address `host` in both families. */
async function makePod(
  node: Node,
  host: number,
  { bridge = "cni0", net = 22, name = `ctr-${host}` } = {},
): Promise<Pod> {
  const space = await node.container(name);
  const [ipv4, ipv6] = [`10.${net}.0.${host}`, `2001:db8:${net}::${host}`];
  const veth = `v${net}x${host}`;
  await node.ip(
    `link add ${veth} type veth peer name eth0 netns ${space.netns}`,
    `link set ${veth} master ${bridge} up`,
    `link set ${veth} type bridge_slave hairpin on`,
  );
  await space.ip(
    "link set lo up",
    `addr add ${ipv4}/24 dev eth0`,
    `addr add ${ipv6}/64 dev eth0 nodad`,
    "link set eth0 up",
    `route add default via 10.${net}.0.1`,
    `route add default via 2001:db8:${net}::1`,
  );
  // A new link drops packets until the kernel has seen both ends come up.
  for (const gateway of [`10.${net}.0.1`, `2001:db8:${net}::1`]) await assertPings(space, gateway);
  return { space, ipv4, ipv6, result: resultOf(space, [`${ipv4}/24`, `${ipv6}/64`], bridge) };
}

function resultOf(space: Namespace | string, addresses: string[], bridge = "cni0"): Json {
  const sandbox = typeof space === "string" ? space : space.netns;
  return {
    cniVersion: "1.1.0",
    interfaces: [{ name: bridge }, { name: "veth0" }, { name: "eth0", sandbox }],
    ips: addresses.map((address) => ({ address, interface: 2 })),
  };
}

async function makeOutside(node: Node): Promise<Outside> {
  const outside = await node.outside();
  for (const address of [outside.hostIPv4, outside.hostIPv6]) await assertPings(outside, address);
  return outside;
}

const mapping = (hostPort: number, containerPort = 80, protocol = "tcp", hostIP = "") => ({
  hostPort,
  containerPort,
  protocol,
  ...(hostIP ? { hostIP } : {}),
});
const MAPPINGS = [mapping(8080), mapping(5353, 53, "udp", "192.0.2.10")];

interface Asked extends Json {
  /** `runtimeConfig.portMappings`; undefined leaves the key out. */
  ports?: unknown;
  by?: By;
  id?: string;
  conf?: Json;
  result?: Json;
  netns?: Namespace | string | null;
  env?: Record<string, string>;
}

function conf({ ports = MAPPINGS, conf: more = {}, result }: Asked): Json {
  return {
    cniVersion: "1.1.0",
    name: "mynet",
    type: "portmap",
    ...(ports === undefined ? {} : { runtimeConfig: { portMappings: ports } }),
    ...(result ? { prevResult: result } : {}),
    ...more,
  };
}

/** One call, whatever comes of it. */
function ask(node: Node, command: string, asked: Asked = {}): Promise<PluginOutput> {
  return runPlugin(node, {
    type: "portmap",
    command,
    by: asked.by ?? "cnibox",
    containerId: asked.id ?? "ctr-0001",
    netns: asked.netns === undefined ? "/run/netns/none" : asked.netns,
    stdin: "stdin" in asked ? asked["stdin"] : conf(asked),
    ...(asked.env && { env: asked.env }),
  });
}

/** One call that has to succeed. */
async function done(node: Node, command: string, asked: Asked = {}): Promise<PluginOutput> {
  const output = await ask(node, command, asked);
  assertEquals(output.code, 0, `${command}: ${output.stdout}${output.stderr}`);
  return output;
}

const RESULT = resultOf("/run/netns/none", ["10.22.0.5/24", "2001:db8:22::5/64"]);

async function saved(node: Node, tool = "iptables", table = "nat"): Promise<string> {
  const text = await node.run(`${tool}-save`, "-t", table);
  return text.split("\n").filter((line) => line !== "" && !line.startsWith("#")).join("\n");
}

/** All rules in all tables. */
async function rules(node: Node): Promise<string> {
  return `${await saved(node)}\n${await saved(node, "ip6tables")}\n${await nftTables(node)}`;
}

/** nft's own tables: those that iptables keeps there are listed by it. */
async function nftTables(node: Node): Promise<string> {
  const tables = await Promise.all(
    ["ip", "ip6"].map((family) => node.exec(["nft", "list", "table", family, "cni_hostport"])),
  );
  return tables.map(({ stdout }) => stdout).join("");
}

// ------------------------------------------------------------------------------------------------------------- rules

const variants: [name: string, asked: Asked][] = [
  ["default", {}],
  ["no snat", { conf: { snat: false } }],
  ["masqAll", { conf: { masqAll: true } }],
  ["mark bit 5", { conf: { markMasqBit: 5 } }],
  ["mark bit 31", { conf: { markMasqBit: 31 } }],
  ["mark bit 0", { conf: { markMasqBit: 0 } }],
  ["host IP 0.0.0.0", { ports: [mapping(8080, 80, "tcp", "0.0.0.0"), mapping(8081, 80, "tcp", "::")] }],
  ["host IP 127.0.0.1", { ports: [mapping(8080, 80, "tcp", "127.0.0.1")] }],
  ["mapped host IP", {
    ports: [mapping(8080, 80, "tcp", "::ffff:192.0.2.10"), mapping(8081, 80, "tcp", "2001:DB8::A")],
  }],
  ["17 ports", { ports: Array.from({ length: 17 }, (_, i) => mapping(8000 + i)) }],
  ["31 ports and a duplicate", { ports: [...Array.from({ length: 31 }, (_, i) => mapping(8000 + i)), mapping(8000)] }],
  ["protocols", {
    ports: [
      mapping(1),
      mapping(2, 2, "udp"),
      mapping(3, 3, "sctp"),
      mapping(4, 4, "TCP"),
      mapping(5, 5, "6"),
      mapping(6, 6, "dccp"),
    ],
  }],
  ["conditions", { conf: { conditionsV4: ["!", "-d", "192.0.2.0/24"], conditionsV6: ["!", "-d", "2001:db8:f::/48"] } }],
  ["a condition with blanks", { conf: { conditionsV4: ["-m", "comment", "--comment", 'a "b" \\c'] } }],
  ["IPv4 only", { result: resultOf("/run/netns/none", ["10.22.0.5/24"]) }],
  ["IPv6 only", { result: resultOf("/run/netns/none", ["2001:db8:22::5/64"]) }],
  ["two IPv4 addresses", { result: resultOf("/run/netns/none", ["10.22.0.5/24", "10.22.0.6/24"]) }],
  ["a long container ID", { id: "a".repeat(250) }],
];

for (const [name, asked] of variants) {
  nodeTest(`portmap ADD with iptables makes the reference's rules: ${name}`, {
    needs: [...iptables.needs!, "reference"],
  }, async ({ node }) => {
    const whole = { result: RESULT, ...asked };
    const seen: Record<string, string> = {};
    for (const by of ["ref", "cnibox"] as const) {
      const { stdout } = await done(node, "ADD", { ...whole, by });
      seen[by] = `${await saved(node)}\n${await saved(node, "ip6tables")}\n${stdout}`;
      await node.sh("iptables -t nat -F; iptables -t nat -X; ip6tables -t nat -F; ip6tables -t nat -X");
    }
    assertEquals(seen["cnibox"], seen["ref"]);
  });
}

nodeTest("portmap ADD of a second container adds to the reference's rules", {
  needs: [...iptables.needs!, "reference"],
}, async ({ node }) => {
  const seen: Record<string, string> = {};
  for (const by of ["ref", "cnibox"] as const) {
    for (const [id, port] of [["one", 8080], ["two", 8081]] as const) {
      await done(node, "ADD", { by, id, ports: [mapping(port)], result: RESULT });
    }
    seen[by] = `${await saved(node)}\n${await saved(node, "ip6tables")}`;
    await node.sh("iptables -t nat -F; iptables -t nat -X; ip6tables -t nat -F; ip6tables -t nat -X");
  }
  assertEquals(seen["cnibox"], seen["ref"]);
});

nodeTest("portmap ADD with an external mark chain makes the reference's rules", {
  needs: [...iptables.needs!, "reference"],
}, async ({ node }) => {
  const asked = { result: RESULT, conf: { externalSetMarkChain: "KUBE-MARK-MASQ" } };
  const missing = await ask(node, "ADD", asked);
  assertEquals(missing.json.code, 7);
  assertStringIncludes(missing.json.msg, "unable to setup DNAT: Chain 'KUBE-MARK-MASQ' does not exist");
  assertStringIncludes(missing.json.details, "externalSetMarkChain");
  assert(!(await rules(node)).includes("CNI-"), await rules(node));
  const seen: Record<string, string> = {};
  for (const by of ["ref", "cnibox"] as const) {
    await node.sh("for t in iptables ip6tables; do $t -t nat -N KUBE-MARK-MASQ; done");
    await done(node, "ADD", { ...asked, by });
    seen[by] = `${await saved(node)}\n${await saved(node, "ip6tables")}`;
    await node.sh("iptables -t nat -F; iptables -t nat -X; ip6tables -t nat -F; ip6tables -t nat -X");
  }
  assertEquals(seen["cnibox"], seen["ref"]);
});

nodeTest("portmap ADD with nftables makes the reference's rules and one more for neighbours", {
  needs: [...nftables.needs!, "reference"],
}, async ({ node }) => {
  for (const more of [{}, { snat: false }, { masqAll: true }]) {
    const asked = { result: RESULT, conf: { backend: "nftables", ...more } };
    await done(node, "ADD", { ...asked, by: "ref" });
    const reference = await nftTables(node);
    await node.run("nft", "flush", "ruleset");
    await done(node, "ADD", asked);
    const ours = (await nftTables(node))
      .replace(/\n\n\tchain localnet \{[^}]*\}/, "")
      .replaceAll(/\n.*ct status dnat masquerade.*/g, "");
    if (!("masqAll" in more)) assertEquals(ours, reference);
    else assertStringIncludes(ours, 'ip saddr 0.0.0.0/0 ip daddr 10.22.0.5 masquerade comment "ctr-0001"');
    await done(node, "CHECK", { ...asked, by: "ref" });
    await done(node, "CHECK", asked);
    await node.run("nft", "flush", "ruleset");
  }
});

for (const [backend, options] of both) {
  interopTest(`portmap ${backend}`, options, async ({ adder, checker, deleter }, node) => {
    const asked = {
      conf: { backend },
      result: RESULT,
      ports: [mapping(8080), mapping(9090, 90, "udp"), mapping(7070)],
    };
    await done(node, "ADD", { ...asked, id: "other", ports: [mapping(1234)], by: adder });
    const before = await rules(node);
    await done(node, "ADD", { ...asked, by: adder });
    // Our CHECK looks at a setting that needs the link; the reference's does not.
    await done(node, "CHECK", { ...asked, by: checker });
    await done(node, "DEL", { ...asked, by: deleter });
    await done(node, "DEL", { ...asked, by: deleter });
    assertEquals(await rules(node), before);
  });
}

nodeTest(
  "portmap DEL needs neither mappings, result, namespace nor a good configuration",
  iptables,
  async ({ node }) => {
    const asks: Asked[] = [
      { result: undefined, netns: null },
      { result: undefined, ports: undefined },
      { result: undefined, ports: [mapping(1)] },
      { ports: [mapping(0), mapping(70000)], conf: { backend: "ipvs", markMasqBit: 99 } },
      { result: { ...RESULT, cniVersion: "0.4.0" } },
      { conf: { snat: false, backend: "nftables" } },
      { conf: { runtimeConfig: { portMappings: [{ hostPort: "80" }] } } },
    ];
    await done(node, "ADD", { id: "other", ports: [mapping(1234)], result: RESULT });
    const before = await rules(node);
    for (const asked of asks) {
      await done(node, "ADD", { result: RESULT });
      await done(node, "DEL", { result: RESULT, ...asked });
      assertEquals(await rules(node), before, JSON.stringify(asked));
    }
    // And the other way round: rules in nftables, whatever is configured.
    for (const asked of asks) {
      await done(node, "ADD", { result: RESULT, conf: { backend: "nftables" } });
      await done(node, "DEL", { result: RESULT, ...asked });
      assert(!(await node.run("nft", "list", "ruleset")).includes('comment "ctr-0001"'), JSON.stringify(asked));
    }
  },
);

nodeTest("portmap without mappings starts no process", { needs: ["tool:strace"] }, async ({ node }) => {
  for (const ports of [[], null, undefined]) {
    for (const command of ["ADD", "CHECK", ...(ports === undefined ? [] : ["DEL"])]) {
      const given = conf({ result: RESULT });
      given.runtimeConfig = ports === undefined ? undefined : { portMappings: ports };
      const trace = await tracePlugin(node, {
        type: "portmap",
        command,
        containerId: "c",
        netns: "/run/netns/none",
        stdin: given,
      });
      assertEquals(trace.output.code, 0, trace.output.stdout);
      // `null` on DEL says as little as no key at all.
      if (command === "DEL" && ports === null) continue;
      assertEquals(childPrograms(trace), [], `${command} ${JSON.stringify(ports)}`);
    }
  }
});

nodeTest("portmap starts few processes", { needs: [...iptables.needs!, "tool:strace"] }, async ({ node }) => {
  await makeBridge(node);
  const pod = await makePod(node, 5);
  await done(node, "ADD", { id: "first", ports: [mapping(1)], result: pod.result });
  const trace = (command: string, more: Asked = {}, containerId = "ctr-0001") =>
    tracePlugin(node, {
      type: "portmap",
      command,
      containerId,
      netns: pod.space,
      stdin: conf({ ports: [mapping(8080), mapping(5353, 53, "udp")], ...more }),
    });
  const four = resultOf(pod.space, [`${pod.ipv4}/24`]);
  const plain = (programs: string[]) => programs.filter((name) => name !== "cat" && name !== "sh").sort();
  const add = await trace("ADD", { result: four });
  assertEquals(plain(childPrograms(add)), ["conntrack", "ip", "iptables", "iptables-restore", "ss"], add.output.stderr);
  assertEquals(add.output.stderr, "");
  const check = await trace("CHECK", { result: four });
  assertEquals(plain(childPrograms(check)), ["ip", "iptables-restore"]);
  const del = await trace("DEL", { result: four });
  assertEquals(plain(childPrograms(del)), ["conntrack", "iptables-restore"]);
  // The last one asks whether containers of somebody else's publish ports through the link.
  const last = await trace("DEL", { ports: [mapping(1)], result: four }, "first");
  assertEquals(plain(childPrograms(last)), ["iptables", "iptables-restore"]);
});

nodeTest(
  "portmap looks at tracked flows once, however many UDP ports are published, and deletes the stale ones alone",
  {
    needs: [...iptables.needs!, "tool:strace", "tool:conntrack"],
  },
  async ({ node }) => {
    const outside = await makeOutside(node);
    await makeBridge(node);
    const pod = await makePod(node, 5);
    await done(node, "ADD", { id: "first", ports: [mapping(1)], result: pod.result });
    const ports = Array.from({ length: 100 }, (_, index) => mapping(7000 + index, 53, "udp"));
    const result = resultOf(pod.space, [`${pod.ipv4}/24`]);
    const track = (from: string, to: string, port: number, back = to) =>
      node.run(
        ...["conntrack", "-I", "-p", "udp", "-t", "600", "-s", from, "-d", to, "--sport", "4000", "--dport", `${port}`],
        ...["--reply-src", back, "--reply-dst", from, "--reply-port-src", `${port}`, "--reply-port-dst", "4000"],
      );
    const tracked = async () =>
      [...(await node.run("conntrack", "-L", "-p", "udp")).matchAll(/sport=4000 dport=(\d+)/g)].map(([, port]) => port)
        .sort();
    const trace = async (command: string) => {
      const stdin = conf({ ports, result });
      const traced = await tracePlugin(node, {
        type: "portmap",
        command,
        containerId: "ctr1",
        netns: pod.space,
        stdin,
      });
      assertEquals(traced.output.code, 0, traced.output.stdout);
      return childPrograms(traced).filter((name) => name === "conntrack").length;
    };
    await track(outside.ipv4, outside.hostIPv4, 7003);
    await track(pod.ipv4, outside.ipv4, 7004);
    await track(outside.ipv4, outside.hostIPv4, 53);
    assertEquals(await trace("ADD"), 2);
    assertEquals(await tracked(), ["53", "7004"]);
    await track(outside.ipv4, outside.hostIPv4, 7005, pod.ipv4);
    assertEquals(await trace("DEL"), 2);
    assertEquals(await tracked(), ["53", "7004"]);
    assertEquals(await trace("ADD"), 1);
    assertEquals(await trace("DEL"), 1);
  },
);

for (const [backend, options] of both) {
  nodeTest(`portmap ${backend}: a failed ADD leaves nothing`, options, async ({ node }) => {
    await done(node, "ADD", { id: "other", ports: [mapping(1)], result: RESULT, conf: { backend } });
    const before = await rules(node);
    const bad: Asked[] = [
      { ports: [mapping(8080), mapping(0)] },
      { ports: [mapping(65536)] },
      { ports: [mapping(8080, 70000)] },
      { ports: [{ hostPort: 80, containerPort: 80 }] },
      { ports: [mapping(8080, 80, "icmp")] },
      { ports: [mapping(8080, 80, "tcp,udp")] },
      { ports: [mapping(8080, 80, "tcp", "nonsense")] },
      { ports: [mapping(8080, 80, "tcp", "192.0.2.0/24")] },
      { ports: [null] },
      {
        ports: [mapping(8080)],
        conf: { backend, conditionsV6: backend === "iptables" ? ["--nonsense"] : ["nonsense"] },
      },
      {
        ports: [mapping(8080)],
        conf: { backend, conditionsV4: backend === "iptables" ? ["-m", "nonsense"] : ["ip nonsense"] },
      },
      { ports: [mapping(8080)], conf: { backend, conditionsV4: [backend === "iptables" ? "-s" : "ip", "a\nb"] } },
    ];
    for (const asked of bad) {
      const output = await ask(node, "ADD", { result: RESULT, conf: { backend }, ...asked });
      assertEquals(output.code, 1, JSON.stringify(asked));
      assert(output.json?.msg, output.stdout);
      assertEquals(await rules(node), before, JSON.stringify(asked));
    }
  });

  nodeTest(`portmap ${backend}: ADD again with another address serves that one`, options, async ({ node }) => {
    const asked = { conf: { backend }, ports: [mapping(8080)] };
    await done(node, "ADD", { ...asked, result: resultOf("/run/netns/none", ["10.22.0.7/24"]) });
    await done(node, "ADD", { ...asked, result: resultOf("/run/netns/none", ["10.22.0.5/24"]) });
    const once = await rules(node);
    assert(!once.includes("10.22.0.7"), once);
    await done(node, "ADD", { ...asked, result: resultOf("/run/netns/none", ["10.22.0.5/24"]) });
    assertEquals(
      (await rules(node)).match(/dnat to 10\.22\.0\.5|to-destination 10\.22\.0\.5/g)?.length,
      1,
    );
    await done(node, "DEL", { ...asked, result: resultOf("/run/netns/none", ["10.22.0.5/24"]) });
    assert(!(await rules(node)).includes("10.22.0.5"), await rules(node));
  });

  nodeTest(
    `portmap ${backend}: DEL for one network keeps the container's ports on another`,
    options,
    async ({ node }) => {
      const net = (name: string, host: string) => ({
        conf: { backend, name },
        ports: [mapping(8080)],
        result: resultOf("/run/netns/none", [host]),
      });
      const [a, b] = [net("net-a", "10.22.0.5/24"), net("net-b", "10.33.0.5/24")];
      await done(node, "ADD", a);
      const second = await done(node, "ADD", b);
      assertEquals(second.stderr, "");
      await done(node, "DEL", a);
      await done(node, "CHECK", b);
      assert(!(await rules(node)).includes("10.22.0.5"));
      await done(node, "DEL", b);
      assert(!(await rules(node)).includes("10.33.0.5"));
    },
  );

  nodeTest(`portmap ${backend}: ten ADDs at once on a new node, then ten DELs`, options, async ({ node }) => {
    const asked = Array.from({ length: 10 }, (_, i) => ({
      id: `c${i}`,
      conf: { backend },
      ports: [mapping(8000 + i), mapping(9000 + i, 9, "udp")],
      result: resultOf("/run/netns/none", [`10.22.0.${i + 5}/24`, `2001:db8:22::${i + 5}/64`]),
    }));
    await Promise.all(asked.map((one) => done(node, "ADD", one)));
    await Promise.all(asked.map((one) => done(node, "CHECK", one)));
    if (backend === "iptables") {
      // Nobody adds a shared jump a second time.
      for (const tool of ["iptables", "ip6tables"]) {
        const text = await saved(node, tool);
        for (const chain of ["PREROUTING", "OUTPUT", "POSTROUTING"]) {
          assertEquals(text.match(new RegExp(`^-A ${chain} `, "gm"))?.length, 1, text);
        }
      }
    }
    // Twice each: somebody else may be faster.
    await Promise.all([...asked, ...asked].map((one) => done(node, "DEL", one)));
    const left = await rules(node);
    assert(!/CNI-DN-|comment "c\d|10\.22\.0\./.test(left), left);
  });

  nodeTest(
    `portmap ${backend}: CHECK names what is missing, DEL works on a flushed host`,
    options,
    async ({ node }) => {
      await makeBridge(node);
      const pod = await makePod(node, 5);
      const asked = { conf: { backend }, ports: [mapping(8080)], result: pod.result, netns: pod.space };
      const flushes = backend === "iptables"
        ? [
          ["iptables -t nat -F PREROUTING", "PREROUTING"],
          ["iptables -t nat -F OUTPUT", "OUTPUT"],
          ["iptables -t nat -F POSTROUTING", "POSTROUTING"],
          ["iptables -t nat -F CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-DNAT"],
          ["iptables -t nat -F CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-MASQ"],
          ["ip6tables -t nat -F CNI-DN-e4c76feec97a77ba32cd9", "CNI-DN-e4c76feec97a77ba32cd9"],
          [
            "iptables -t nat -F; iptables -t nat -X",
            "chain CNI-DN-e4c76feec97a77ba32cd9 not found in iptables table nat",
          ],
        ]
        : [
          ["nft flush chain ip cni_hostport hostports", 'missing hostport rules in "hostports" chain'],
          ["nft flush chain ip6 cni_hostport masquerading", 'missing hostport rules in "masquerading" chain'],
          ["nft flush chain ip cni_hostport prerouting", 'missing hostport rules in "prerouting" chain'],
          ["nft delete table ip cni_hostport", "not found"],
        ];
      for (
        const [flush = "", words = ""] of [...flushes, [
          "sysctl -qw net.ipv4.conf.cni0.route_localnet=0",
          "route_localnet",
        ]]
      ) {
        await done(node, "ADD", asked);
        await done(node, "CHECK", asked);
        await node.sh(flush);
        const output = await ask(node, "CHECK", asked);
        assertEquals(output.code, 1, flush);
        assertStringIncludes(output.json.msg, words);
        await done(node, "DEL", asked);
        assert(!/ctr-0001|CNI-DN/.test(await rules(node)), flush);
      }
    },
  );

  nodeTest(`portmap ${backend}: GC removes what is not valid and nothing else`, options, async ({ node }) => {
    const add = (id: string, name: string, port: number) =>
      done(node, "ADD", { id, conf: { backend, name }, ports: [mapping(port)], result: RESULT });
    await add("keep", "mynet", 1);
    await add("gone", "mynet", 2);
    await add("elsewhere", "other", 3);
    // How rules in nftables, which name no network, are told to be in use: the runtime's cache.
    await node.write("/var/lib/cni/results/other-elsewhere-eth0", "{}");
    const gc = (valid: Json) =>
      call(node, {
        type: "portmap",
        command: "GC",
        stdin: { cniVersion: "1.1.0", name: "mynet", type: "portmap", "cni.dev/valid-attachments": valid },
      });
    await gc([{ containerID: "keep", ifname: "eth0" }]);
    const left = await rules(node);
    for (const [id, there] of [["keep", true], ["gone", false], ["elsewhere", true]] as const) {
      assertEquals(new RegExp(`\\b${id}\\b`).test(left), there, `${id}: ${left}`);
    }
  });
}

nodeTest("portmap GC and STATUS need version 1.1.0; STATUS names a backend that is not there", async ({ node }) => {
  const ask = (command: string, more: Json, env = {}) =>
    runPlugin(node, {
      type: "portmap",
      command,
      stdin: { cniVersion: "1.1.0", name: "mynet", type: "portmap", ...more },
      env,
    });
  for (const command of ["GC", "STATUS"]) {
    const output = await ask(command, { cniVersion: "1.0.0" });
    assertEquals([output.code, output.json.code], [1, 1]);
  }
  assertEquals((await ask("STATUS", {})).code, 0);
  await node.sh("mount --bind /dev/null /usr/sbin/nft");
  const none = await ask("STATUS", { backend: "nftables" });
  assertEquals(none.json.code, 50, none.stdout);
});

nodeTest("portmap nftables: conditions are the container's own, also beside one of the reference with others", {
  needs: [...nftables.needs!, "reference"],
}, async ({ node }) => {
  const asked = (id: string, port: number, by: By, source?: string) => ({
    id,
    by,
    ports: [mapping(port)],
    result: resultOf("/run/netns/none", [`10.22.0.${port}/24`]),
    conf: { backend: "nftables", ...(source ? { conditionsV4: ["ip", "saddr", source] } : {}) },
  });
  await done(node, "ADD", asked("one", 1, "cnibox", "192.0.2.0/24"));
  await done(node, "ADD", asked("two", 2, "cnibox", "198.51.100.0/24"));
  await done(node, "ADD", asked("three", 3, "cnibox"));
  const table = await nftTables(node);
  assertStringIncludes(table, 'ip saddr 192.0.2.0/24 tcp dport 1 dnat to 10.22.0.1:80 comment "one"');
  assertStringIncludes(table, 'ip saddr 198.51.100.0/24 tcp dport 2 dnat to 10.22.0.2:80 comment "two"');
  assertEquals(table.match(/^\t\tfib daddr type local jump hostports_all$/gm)?.length, 2);
  for (
    const [id, port, source] of [["one", 1, "192.0.2.0/24"], ["two", 2, "198.51.100.0/24"], [
      "three",
      3,
      undefined,
    ]] as const
  ) {
    await done(node, "CHECK", asked(id, port, "cnibox", source));
    await done(node, "CHECK", asked(id, port, "ref", source));
  }
  // The reference's conditions are everybody's; the next ADD removes them.
  await done(node, "ADD", asked("four", 4, "ref", "203.0.113.0/24"));
  assertStringIncludes(await nftTables(node), "ip saddr 203.0.113.0/24 fib daddr type local jump hostports_all");
  await done(node, "ADD", asked("five", 5, "cnibox"));
  assert(!(await nftTables(node)).includes("203.0.113.0/24"));
});

nodeTest(
  "portmap DEL removes what older releases of the reference left",
  { needs: [...iptables.needs!, "nf_tables"] },
  async ({ node }) => {
    // Up to 0.6: a chain for masquerading, too.
    await node.exec(["iptables-restore", "--noflush"], {
      input: `*nat
-N CNI-HOSTPORT-DNAT
-N CNI-HOSTPORT-SNAT
-N CNI-DN-e4c76feec97a77ba32cd9
-N CNI-SN-e4c76feec97a77ba32cd9
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"mynet\\" id: \\"ctr-0001\\"" -m tcp --dport 8080 -j CNI-DN-e4c76feec97a77ba32cd9
-A CNI-HOSTPORT-SNAT -m comment --comment "snat" -j CNI-SN-e4c76feec97a77ba32cd9
-A CNI-DN-e4c76feec97a77ba32cd9 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.22.0.5:80
-A CNI-SN-e4c76feec97a77ba32cd9 -s 127.0.0.1/32 -j MASQUERADE
COMMIT
`,
    });
    assertStringIncludes(await saved(node), "CNI-SN-e4c");
    await done(node, "DEL", { result: RESULT });
    assert(!/CNI-[DS]N-/.test(await saved(node)), await saved(node));
    // 1.6.0 and 1.6.1 in nftables.
    await node.exec(["nft", "-f", "-"], {
      input: `add table ip cni_hostport
add chain ip cni_hostport hostports
add chain ip cni_hostport hostip_hostports
add chain ip cni_hostport masquerading { type nat hook postrouting priority 100 ; }
add rule ip cni_hostport hostip_hostports ip daddr 192.0.2.10 udp dport 5353 dnat to 10.22.0.5:53 comment "ctr-0001"
add rule ip cni_hostport hostports ip protocol tcp th dport 8080 dnat ip addr . port to 10.22.0.5 . 80 comment "ctr-0001"
add rule ip cni_hostport masquerading ip saddr 10.22.0.5 ip daddr 10.22.0.5 masquerade comment "ctr-0001"
add rule ip cni_hostport hostports tcp dport 9090 dnat to 10.22.0.9:80 comment "other"
`,
    });
    await done(node, "DEL", { result: RESULT });
    const left = await nftTables(node);
    assert(!left.includes("ctr-0001"), left);
    assertStringIncludes(left, "other");
  },
);

nodeTest(
  "portmap leaves strangers' rules alone, and takes doubled shared jumps as they are",
  iptables,
  async ({ node }) => {
    await done(node, "ADD", { id: "first", ports: [mapping(1)], result: RESULT });
    await node.sh(`iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
iptables -t nat -A CNI-HOSTPORT-DNAT -p tcp --dport 4444 -j ACCEPT
iptables -t nat -I PREROUTING -s 203.0.113.1 -j ACCEPT
iptables -t nat -A POSTROUTING -s 203.0.113.2 -j ACCEPT
iptables -t nat -I POSTROUTING -s 203.0.113.3 -j ACCEPT`);
    const before = await saved(node);
    for (let i = 0; i < 2; i++) {
      await done(node, "ADD", { result: RESULT });
      await done(node, "CHECK", { result: RESULT });
    }
    await done(node, "DEL", { result: RESULT });
    assertEquals(await saved(node), before);
  },
);

nodeTest(
  "portmap: ADD and DEL of one container at the same time leave one state or the other",
  iptables,
  async ({ node }) => {
    for (const backend of ["iptables", "nftables"]) {
      const asked = { result: RESULT, conf: { backend } };
      for (let i = 0; i < 4; i++) {
        await Promise.all([ask(node, "ADD", asked), ask(node, "DEL", asked), ask(node, "DEL", asked)]);
        await done(node, "DEL", asked);
        assert(!/ctr-0001|CNI-DN/.test(await rules(node)), await rules(node));
      }
    }
  },
);

nodeTest("portmap nftables takes container IDs up to what a comment holds", nftables, async ({ node }) => {
  const asked = { id: "a".repeat(128), conf: { backend: "nftables" }, result: RESULT };
  for (const command of ["ADD", "CHECK", "DEL"]) await done(node, command, asked);
  assert(!(await nftTables(node)).includes("aaaa"));
});

// ------------------------------------------------------------------------------------------------------- tools missing

/** Removes tools: an executable that nobody may execute is none. */
async function without(node: Node, ...tools: string[]): Promise<void> {
  for (const tool of tools) {
    await node.sh(
      '[ ! -e "$(command -v "$1")" ] || mount --bind /dev/null "$(readlink -f "$(command -v "$1")")"',
      tool,
    );
  }
}

nodeTest(
  "portmap with nft alone uses it, with neither fails, and DEL succeeds all the same",
  nftables,
  async ({ node }) => {
    // iptables and ip6tables are one executable.
    await without(node, "iptables");
    await done(node, "ADD", { result: RESULT });
    assertStringIncludes(await node.run("nft", "list", "ruleset"), "cni_hostport");
    await done(node, "CHECK", { result: RESULT });
    await done(node, "DEL", { result: RESULT });
    assert(!(await node.run("nft", "list", "ruleset")).includes("ctr-0001"));
    await without(node, "nft");
    for (const backend of [undefined, "iptables", "nftables"]) {
      const output = await ask(node, "ADD", { result: RESULT, conf: backend ? { backend } : {} });
      assertEquals(output.code, 1);
      assertStringIncludes(output.json.msg, "executable file not found in $PATH");
      assertStringIncludes(output.json.details, "install");
      await done(node, "DEL", { result: RESULT, conf: backend ? { backend } : {} });
    }
  },
);

nodeTest("portmap falls back to nft where iptables does not work with the kernel", nftables, async ({ node }) => {
  await node.write(
    "/run/bad",
    '#!/bin/sh\necho "iptables v1.8.9 (legacy): can\'t initialize iptables table: iptables who? (do you need to insmod?)" >&2\nexit 3\n',
    0o755,
  );
  for (const tool of ["iptables", "ip6tables"]) {
    await node.sh('mount --bind /run/bad "$(readlink -f "$(command -v "$1")")"', tool);
  }
  const before = await node.run("nft", "list", "ruleset");
  assertEquals(before, "");
  await done(node, "ADD", { result: RESULT });
  assertStringIncludes(await node.run("nft", "list", "ruleset"), "dnat to 10.22.0.5:80");
  await done(node, "CHECK", { result: RESULT });
  await done(node, "DEL", { result: RESULT });
  assert(!(await node.run("nft", "list", "ruleset")).includes("10.22.0.5"));
  const named = await ask(node, "ADD", { result: RESULT, conf: { backend: "iptables" } });
  assertStringIncludes(named.json.msg, "exit status 3");
});

// ------------------------------------------------------------------------------------------------------------ traffic

/** The answer of a port that has to answer: the first packets of a pair may be lost to neighbour discovery. */
async function answer(
  from: Namespace,
  to: string,
  port: number,
  transport: Transport = "tcp",
): Promise<Reply | undefined> {
  for (let i = 0; i < 4; i++) {
    const reply = await request(from, to, port, { transport });
    if (reply) return reply;
  }
}

/** Who talks to the published port, how, and as whom the container sees him: undefined where it does not matter. */
async function traffic(node: Node, outside: Outside, pod: Pod, sibling: Pod, transport: Transport): Promise<void> {
  const servers = [await serve(pod.space, 80, { transport, name: "pod" })];
  const port = transport === "tcp" ? 8080 : 5353;
  const asked: [who: string, from: Namespace, to: string][] = [
    ["from outside", outside, outside.hostIPv4],
    ["from the host by its address", node, outside.hostIPv4],
    ["from the host by the bridge's address", node, "10.22.0.1"],
    ["from the host by 127.0.0.1", node, "127.0.0.1"],
    ["from a neighbour", sibling.space, outside.hostIPv4],
    ["from a neighbour by the bridge's address", sibling.space, "10.22.0.1"],
    ["from the container itself", pod.space, outside.hostIPv4],
    ["from outside, IPv6", outside, outside.hostIPv6],
    ["from the host, IPv6", node, outside.hostIPv6],
    ["from a neighbour, IPv6", sibling.space, outside.hostIPv6],
    ["from the container itself, IPv6", pod.space, outside.hostIPv6],
  ];
  try {
    for (const [who, from, to] of asked) {
      const reply = await answer(from, to, port, transport);
      assertEquals(reply?.name, "pod", `${transport} ${who}`);
      if (who.startsWith("from outside")) {
        assertEquals(
          reply?.peer,
          who.endsWith("IPv6") ? outside.ipv6 : outside.ipv4,
          `${who}: the client's own address`,
        );
      }
    }
  } finally {
    for (const server of servers) await server.close();
  }
}

for (const [backend, options] of both) {
  nodeTest(`portmap ${backend}: a published port answers from everywhere, by TCP and UDP`, {
    needs: [...options.needs!, "tool:socat"],
  }, async ({ node }) => {
    const outside = await makeOutside(node);
    await makeBridge(node);
    const [pod, sibling] = [await makePod(node, 5), await makePod(node, 6)];
    const ports = [mapping(8080), mapping(5353, 80, "udp")];
    await done(node, "ADD", { conf: { backend }, ports, result: pod.result, netns: pod.space });
    const bridged = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    const there = (await node.exec(["test", "-e", bridged])).code === 0;
    // Whether frames of a bridge meet the packet filter: both are found on hosts.
    for (const value of there ? ["0", "1"] : [undefined]) {
      if (value !== undefined) {
        await node.sh(`for f in ${bridged} /proc/sys/net/bridge/bridge-nf-call-ip6tables; do echo ${value} >$f; done`);
      }
      for (const transport of ["tcp", "udp"] as const) await traffic(node, outside, pod, sibling, transport);
    }
    await done(node, "DEL", { conf: { backend }, ports, result: pod.result, netns: pod.space });
    assertEquals(await request(outside, outside.hostIPv4, 8080), undefined);
  });

  nodeTest(`portmap ${backend}: hostIP binds the port to that address`, {
    needs: [...options.needs!, "tool:socat"],
  }, async ({ node }) => {
    const outside = await makeOutside(node);
    await node.ip(`addr add 192.0.2.10/24 dev ${outside.uplink}`);
    await makeBridge(node);
    const pod = await makePod(node, 5);
    const ports = [mapping(8080, 80, "tcp", "192.0.2.10"), mapping(8081, 80, "tcp", "127.0.0.1")];
    await done(node, "ADD", { conf: { backend }, ports, result: pod.result, netns: pod.space });
    const server = await serve(pod.space, 80, { name: "pod" });
    assertEquals((await answer(outside, "192.0.2.10", 8080))?.name, "pod");
    assertEquals(await request(outside, outside.hostIPv4, 8080), undefined);
    assertEquals((await answer(node, "127.0.0.1", 8081))?.name, "pod");
    assertEquals(await request(outside, outside.hostIPv4, 8081), undefined);
    await server.close();
  });

  nodeTest(`portmap ${backend}: traffic to other hosts' ports of the same number passes by`, {
    needs: [...options.needs!, "tool:socat"],
  }, async ({ node }) => {
    const outside = await makeOutside(node);
    await makeBridge(node);
    const [pod, client] = [await makePod(node, 5), await makePod(node, 6)];
    await outside.ip("route add 10.22.0.0/24 via 192.0.2.1");
    await done(node, "ADD", { conf: { backend }, ports: [mapping(8080)], result: pod.result, netns: pod.space });
    const server = await serve(outside, 8080, { name: "outside" });
    assertEquals((await answer(client.space, outside.ipv4, 8080))?.name, "outside");
    assertEquals((await answer(node, outside.ipv4, 8080))?.name, "outside");
    await server.close();
  });

  nodeTest(`portmap ${backend}: a container does not reach services of the host's 127.0.0.1`, {
    needs: [...options.needs!, "tool:socat", "reference"],
  }, async ({ node }) => {
    await makeBridge(node);
    const pod = await makePod(node, 5);
    const secret = await serve(node, 6666, { name: "secret", address: "127.0.0.1" });
    // A container with its own route to 127.0.0.0/8 and the right to use it.
    await pod.space.sysctl("ipv4/conf/all/route_localnet", 1);
    await pod.space.sh(
      "ip addr flush dev lo; ip route flush table local 127.0.0.0/8 || true; ip route add 127.0.0.0/8 via 10.22.0.1 src 10.22.0.5",
    );
    const asked = { conf: { backend }, ports: [mapping(8080)], result: pod.result, netns: pod.space };
    await done(node, "ADD", { ...asked, by: "ref" });
    assertEquals(
      (await request(pod.space, "127.0.0.1", 6666, { bind: "10.22.0.5" }))?.name,
      "secret",
      "the attack works",
    );
    await done(node, "DEL", { ...asked, by: "ref" });
    await done(node, "ADD", asked);
    assertEquals(await node.sysctl("ipv4/conf/cni0/route_localnet"), "1");
    assertEquals(await request(pod.space, "127.0.0.1", 6666, { bind: "10.22.0.5" }), undefined);
    await secret.close();
    const server = await serve(pod.space, 80, { name: "pod" });
    assertEquals((await answer(node, "127.0.0.1", 8080))?.name, "pod");
    await server.close();
  });

  nodeTest(
    `portmap ${backend}: route_localnet goes back with the last mapping, if it was off before`,
    options,
    async ({ node }) => {
      await makeBridge(node);
      await makeBridge(node, "br0.10", 23);
      await node.sysctl("ipv4/conf/br0.10/route_localnet", 1);
      const [one, two] = [await makePod(node, 5), await makePod(node, 6)];
      const three = await makePod(node, 7, { bridge: "br0.10", net: 23 });
      const asked = (pod: Pod, port: number) => ({
        id: `c${port}`,
        conf: { backend },
        ports: [mapping(port)],
        result: pod.result,
        netns: pod.space,
      });
      const settings = async () => [
        await node.sysctl("ipv4/conf/cni0/route_localnet"),
        await node.sysctl("ipv4/conf/br0.10/route_localnet"),
      ];
      for (let round = 0; round < 2; round++) {
        for (const [pod, port] of [[one, 1], [two, 2], [three, 3]] as const) await done(node, "ADD", asked(pod, port));
        assertEquals(await settings(), ["1", "1"]);
        await done(node, "DEL", asked(one, 1));
        await done(node, "DEL", asked(three, 3));
        assertEquals(await settings(), ["1", "1"]);
        await done(node, "DEL", asked(two, 2));
        assertEquals(await settings(), ["0", "1"]);
      }
      // None of the ports can be reached by 127.0.0.1: the setting is left alone.
      await done(node, "ADD", { ...asked(one, 1), ports: [mapping(1, 1, "tcp", "192.0.2.10")] });
      assertEquals(await settings(), ["0", "1"]);
    },
  );

  nodeTest(
    `portmap ${backend}: UDP clients that keep talking reach the container at once, and nobody else loses a flow`,
    {
      needs: [...options.needs!, "tool:socat", "tool:conntrack"],
    },
    async ({ node }) => {
      const outside = await makeOutside(node);
      await makeBridge(node);
      const [pod, next] = [await makePod(node, 5), await makePod(node, 6)];
      await outside.ip("route add 10.22.0.0/24 via 192.0.2.1");
      const servers = [
        await serve(pod.space, 80, { transport: "udp", name: "pod" }),
        await serve(next.space, 80, { transport: "udp", name: "next" }),
        await serve(outside, 5353, { transport: "udp", name: "outside" }),
      ];
      // Same source port each time: the tracked flow stays the same.
      const ask = async (from: Namespace, to: string, port: number) => {
        const socat = ["timeout", "3", "socat", "-t0.5", "-", `UDP:${to}:5353,sourceport=${port}`];
        const { stdout } = await from.exec(socat, { input: "hello\n" });
        return stdout.split(" ")[0] || undefined;
      };
      const client = 4000;
      // Rules of any kind switch tracking on, as on a node that has containers already.
      await node.run("iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "10.99.0.0/24", "-j", "MASQUERADE");
      assertEquals(await ask(outside, outside.hostIPv4, client), undefined);
      assertEquals(await ask(next.space, outside.ipv4, 4001), "outside");
      const tracked = async () =>
        (await node.run("conntrack", "-L", "-p", "udp")).split("\n").filter((line) => line.includes("sport=4001"))
          .length;
      assertEquals(await tracked(), 1);
      const asked = (pod: Pod, id: string) => ({
        id,
        conf: { backend },
        ports: [mapping(5353, 80, "udp")],
        result: pod.result,
        netns: pod.space,
      });
      await done(node, "ADD", asked(pod, "one"));
      assertEquals(await ask(outside, outside.hostIPv4, client), "pod");
      assertEquals(await tracked(), 1);
      await done(node, "DEL", asked(pod, "one"));
      assertEquals((await node.run("conntrack", "-L", "-p", "udp")).includes("sport=4000"), false);
      assertEquals(await tracked(), 1);
      await done(node, "ADD", asked(next, "two"));
      assertEquals(await ask(outside, outside.hostIPv4, client), "next");
      for (const server of servers) await server.close();
    },
  );

  // --------------------------------------------------------------------------------------------------------- conflicts

  nodeTest(
    `portmap ${backend}: a port that another living container has is an error that leaves nothing`,
    options,
    async ({ node }) => {
      await makeBridge(node);
      const [one, two] = [await makePod(node, 5), await makePod(node, 6)];
      const asked = (pod: Pod, id: string, ports: Json[], more = {}) => ({
        id,
        conf: { backend, ...more },
        ports,
        result: pod.result,
        netns: pod.space,
      });
      await done(node, "ADD", asked(one, "one", [mapping(8080), mapping(9090, 90, "tcp", "192.0.2.10")]));
      const before = await snapshot(node);
      for (
        const ports of [[mapping(8080)], [mapping(7070), mapping(8080, 81)], [mapping(9090)], [
          mapping(8080, 80, "tcp", "192.0.2.99"),
        ], [mapping(9090, 1, "tcp", "192.0.2.10")]]
      ) {
        const output = await ask(node, "ADD", asked(two, "two", ports));
        assertEquals(output.code, 1, JSON.stringify(ports));
        assertEquals(output.json.code, 100);
        assertStringIncludes(output.json.msg, "is already published by container one");
        assertStringIncludes(output.json.details, "portConflict");
        assertSameState(before, await snapshot(node));
      }
      // No conflict: another protocol, another address of the host.
      await done(node, "ADD", asked(two, "two", [mapping(8080, 80, "udp"), mapping(9090, 90, "tcp", "192.0.2.11")]));
      await done(node, "DEL", asked(two, "two", [mapping(8080, 80, "udp"), mapping(9090, 90, "tcp", "192.0.2.11")]));
      assertSameState(before, await snapshot(node));
      const warned = await done(node, "ADD", asked(two, "two", [mapping(8080)], { portConflict: "warn" }));
      assertStringIncludes(warned.stderr, "host port 8080/tcp is already published by container one");
      await done(node, "DEL", asked(two, "two", [mapping(8080)]));
      assertSameState(before, await snapshot(node));
    },
  );

  nodeTest(`portmap ${backend}: rules of a dead container neither block nor take the traffic`, {
    needs: [...options.needs!, "tool:socat"],
  }, async ({ node }) => {
    const outside = await makeOutside(node);
    await makeBridge(node);
    const [one, two, three] = [await makePod(node, 5), await makePod(node, 6), await makePod(node, 7)];
    const asked = (pod: Pod, id: string) => ({
      id,
      conf: { backend },
      ports: [mapping(8080), mapping(8081)],
      result: pod.result,
      netns: pod.space,
    });
    await done(node, "ADD", asked(one, "dead"));
    await node.removeContainer(one.space);
    const output = await done(node, "ADD", asked(two, "two"));
    assertStringIncludes(output.stderr, "rules of container dead");
    const server = await serve(two.space, 80, { name: "two" });
    assertEquals((await answer(outside, outside.hostIPv4, 8080))?.name, "two");
    assertEquals((await answer(outside, outside.hostIPv6, 8080))?.name, "two");
    await done(node, "CHECK", asked(two, "two"));
    const third = await ask(node, "ADD", asked(three, "three"));
    assertStringIncludes(third.json.msg, "container two");
    await done(node, "DEL", asked(two, "two"));
    await done(node, "DEL", asked(one, "dead"));
    assert(!/8080/.test(await rules(node)), await rules(node));
    await server.close();
  });

  nodeTest(
    `portmap ${backend}: of containers that ask for one port at the same time, one gets it`,
    options,
    async ({ node }) => {
      await makeBridge(node);
      const pods = await Promise.all([5, 6, 7, 8].map((host) => makePod(node, host)));
      const outputs = await Promise.all(pods.map((pod, i) =>
        ask(node, "ADD", {
          id: `c${i}`,
          conf: { backend },
          ports: [mapping(8080)],
          result: pod.result,
          netns: pod.space,
        })
      ));
      assertEquals(
        outputs.filter((output) => output.code === 0).length,
        1,
        outputs.map(({ stdout }) => stdout).join("\n"),
      );
      for (const output of outputs) if (output.code !== 0) assertEquals(output.json.code, 100, output.stdout);
      assertEquals((await rules(node)).match(/(dnat to|to-destination) 10\.22/g)?.length, 1);
    },
  );
}

nodeTest("portmap warns of a program of the host that has the port, and refuses when it is asked to", {
  needs: [...iptables.needs!, "tool:socat"],
}, async ({ node }) => {
  await makeBridge(node);
  const pod = await makePod(node, 5);
  const server = await serve(node, 8080, { name: "host" });
  const asked = { ports: [mapping(8080)], result: pod.result, netns: pod.space };
  const output = await done(node, "ADD", asked);
  assertStringIncludes(output.stderr, "host port 8080/tcp is in use by socat");
  await done(node, "DEL", asked);
  const refused = await ask(node, "ADD", { ...asked, conf: { portConflict: "error" } });
  assertEquals(refused.json.code, 100);
  assert(!(await rules(node)).includes("CNI-DN"));
  await server.close();
});

nodeTest(
  "portmap leaves route_localnet off, says so, and passes CHECK, where the kernel cannot have the guard",
  iptables,
  async ({ node }) => {
    await makeBridge(node);
    const pod = await makePod(node, 5);
    // A kernel without table raw, as far as iptables can tell.
    await node.write(
      "/run/no-raw",
      `#!/bin/sh
cat >/run/input.$$
if grep -q '^\\*raw' /run/input.$$; then echo "iptables-restore v1.8.9 (legacy): can't initialize iptables table \\\`raw'" >&2; exit 3; fi
exec /run/iptables-restore "$@" </run/input.$$
`,
      0o755,
    );
    await node.sh(
      'tool="$(command -v iptables-restore)"; cp -L "$tool" /run/iptables-restore; rm /etc/alternatives/iptables-restore; cp /run/no-raw /etc/alternatives/iptables-restore',
    );
    const asked = { ports: [mapping(8080)], result: pod.result, netns: pod.space };
    const output = await done(node, "ADD", asked);
    assertStringIncludes(output.stderr, "route_localnet stays off");
    assertEquals(await node.sysctl("ipv4/conf/cni0/route_localnet"), "0");
    await done(node, "CHECK", asked);
    await done(node, "DEL", asked);
    assert(!(await rules(node)).includes("CNI-DN-"), await rules(node));
  },
);

nodeTest("portmap on ptp's link: route_localnet on the container's own veth", {
  needs: [...iptables.needs!, "tool:socat"],
}, async ({ node }) => {
  const space = await node.container("p");
  await node.ip(
    `link add p0 type veth peer name eth0 netns ${space.netns}`,
    "addr add 10.44.0.1/32 dev p0",
    "link set p0 up",
    "route add 10.44.0.5/32 dev p0 scope link",
  );
  await space.ip(
    "link set lo up",
    "addr add 10.44.0.5/32 dev eth0",
    "link set eth0 up",
    "route add 10.44.0.1/32 dev eth0 scope link",
    "route add default via 10.44.0.1",
  );
  const asked = { ports: [mapping(8080)], result: resultOf(space, ["10.44.0.5/32"], "p0"), netns: space };
  await done(node, "ADD", asked);
  assertEquals(await node.sysctl("ipv4/conf/p0/route_localnet"), "1");
  assertEquals(await node.list("/run/cnibox/localnet"), []);
  const server = await serve(space, 80, { name: "ptp" });
  await eventually(
    "127.0.0.1 reaches the container",
    async () => (await request(node, "127.0.0.1", 8080))?.name === "ptp",
  );
  await server.close();
  await done(node, "DEL", asked);
});

nodeTest("portmap undoes route_localnet when ADD fails after it", iptables, async ({ node }) => {
  await makeBridge(node);
  const one = await makePod(node, 5);
  await makeBridge(node, "cni1", 23);
  const other = await makePod(node, 9, { bridge: "cni1", net: 23 });
  await done(node, "ADD", { id: "one", ports: [mapping(8080)], result: one.result });
  const output = await ask(node, "ADD", { id: "two", ports: [mapping(8080)], result: other.result });
  assertEquals(output.json.code, 100);
  assertEquals(await node.sysctl("ipv4/conf/cni1/route_localnet"), "0");
});
