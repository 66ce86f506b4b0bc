/** Others on the node: an operator or firewalld empties the firewall between ADD, CHECK and DEL. */
import { assert, assertEquals, assertNotEquals, assertStringIncludes } from "@std/assert";
import {
  assertNoPing,
  assertPings,
  assertSameState,
  Attachment,
  eventually,
  hostLocalLeftovers,
  type Json,
  type Node,
  nodeTest,
  type NodeTestOptions,
  PATH,
  request,
  runPlugin,
  serve,
  type Snapshot,
  snapshot,
} from "./support/mod.ts";
import { cnibox, configure, must } from "./support/operator.ts";
import { firstContainer } from "./support/runtimes.ts";

const iptables: NodeTestOptions = { needs: ["bridge", "veth", "iptables", "ip6tables", "tool:socat"] };
const nftables: NodeTestOptions = { needs: ["bridge", "veth", "nf_tables", "tool:socat"] };

type Backend = "iptables" | "nftables";

/** Every plugin that makes rules, all on one backend. */
function list(backend: Backend): Json {
  return {
    cniVersion: "1.1.0",
    name: "others",
    plugins: [
      {
        type: "bridge",
        bridge: "cni0",
        isGateway: true,
        ipMasq: true,
        ipMasqBackend: backend,
        ipam: {
          type: "host-local",
          ranges: [[{ subnet: "10.30.0.0/24" }], [{ subnet: "fd00:30::/64" }]],
          routes: [{ dst: "0.0.0.0/0" }, { dst: "::/0" }],
        },
      },
      { type: "portmap", backend, capabilities: { portMappings: true } },
      { type: "firewall", backend },
    ],
  };
}

const capabilities = {
  portMappings: [
    { hostPort: 8080, containerPort: 80, protocol: "tcp" },
    { hostPort: 8053, containerPort: 53, protocol: "udp" },
  ],
};

/** What CHECK of one member of the list says: "" when it finds all there. */
async function complaints(attachment: Attachment, node: Node, conf: Json): Promise<Record<string, string>> {
  const said: Record<string, string> = {};
  for (const plugin of conf.plugins) {
    const output = await runPlugin(node, {
      type: plugin.type,
      command: "CHECK",
      containerId: "ctr1",
      netns: "/run/netns/ctr1",
      stdin: attachment.request(plugin, attachment.result),
    });
    said[plugin.type] = output.code === 0 ? "" : output.json.msg;
  }
  return said;
}

/** What somebody does to the rules. */
const flushes: Record<string, { script: string; backends: Backend[] }> = {
  "iptables -F and -t nat -F": {
    script: "for t in filter nat; do iptables -w -t $t -F; ip6tables -w -t $t -F; done",
    backends: ["iptables"],
  },
  "iptables -F and -X of every table": {
    script: `for t in filter nat raw mangle; do
      iptables -w -t $t -F; iptables -w -t $t -X; ip6tables -w -t $t -F; ip6tables -w -t $t -X; done`,
    backends: ["iptables"],
  },
  "nft flush ruleset": { script: "nft flush ruleset", backends: ["iptables", "nftables"] },
};

for (const [what, { script, backends }] of Object.entries(flushes)) {
  for (const backend of backends) {
    const needs = backend === "iptables" ? iptables : nftables;
    const more = what.startsWith("nft") ? ["nf_tables" as const] : [];
    nodeTest(
      `${what} between ADD, CHECK and DEL (${backend}): CHECK says what is missing, DEL and a new ADD succeed`,
      { needs: [...needs.needs!, ...more] },
      async ({ node }) => {
        const conf = list(backend);
        const container = await node.container("ctr1");
        const world = await node.outside();
        const attachment = new Attachment(node, conf, container, { capabilities });
        const empty = await snapshot(container);
        await attachment.add();
        await attachment.check();
        const server = await serve(container, 80);
        assertEquals((await request(world, world.hostIPv4, 8080))?.name, "ctr1");
        await assertPings(container, world.ipv4);

        await node.sh(script);
        const said = await complaints(attachment, node, conf);
        for (const plugin of conf.plugins) assert(said[plugin.type], `CHECK of ${plugin.type} finds nothing missing`);
        // Each names a chain, a rule or a table: something that an operator can look for.
        for (const text of Object.values(said)) assert(/chain|rule|table|CNI-/i.test(text), text);
        await assertNoPing(container, world.ipv4); // no masquerading, no way back
        assertEquals(await request(world, world.hostIPv4, 8080), undefined);

        assertEquals(await node.sysctl("ipv4/conf/cni0/route_localnet"), "1");
        await attachment.del();
        assertEquals(await node.sysctl("ipv4/conf/cni0/route_localnet"), "0");
        assertEquals(await node.list("/run/cnibox/localnet"), []);
        const gone = await snapshot(node);
        assertEquals(gone.links.filter((line) => /veth/.test(line) && !/uplink/.test(line)), []);
        assertEquals(
          (await node.list("/var/lib/cni/networks/others")).filter((name) => /^[0-9a-f.:]+$/.test(name)),
          [],
        );
        assertSameState(empty, await snapshot(container), { allow: ["sysctls"] });
        for (const section of ["iptables", "ip6tables", "nft"] as const) {
          const left = gone[section].filter((line) =>
            /10\.30\.0\.|fd00:30:|ctr1|8080|8053|CNI-[0-9a-f]{24}|CNI-DN-/.test(line)
          );
          assertEquals(left, [], section);
        }
        await attachment.del(); // what is gone is gone

        // The next container finds a node that works as before the flush.
        await attachment.add();
        await attachment.check();
        assertEquals((await request(world, world.hostIPv4, 8080))?.name, "ctr1");
        await assertPings(container, world.ipv4);
        await server.close();
        await attachment.del();
      },
    );
  }
}

nodeTest("bridge ADD sets the MACs of its links, so that systemd-udevd keeps its hands off them", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  const container = await node.container("ctr1");
  const { interfaces } = await new Attachment(node, list("iptables"), container, { capabilities }).add();
  // 3, "set by somebody": udev's MACAddressPolicy leaves these alone (systemd.link(5)). 1 is the kernel's own choice.
  const assigned = (name: string) => `/sys/class/net/${name}/addr_assign_type`;
  assertEquals(
    (await node.run("cat", ...interfaces.slice(0, 2).map((link: Json) => assigned(link.name)))).trim(),
    "3\n3",
  );
  const inside = "mount -t sysfs sysfs /sys && cat /sys/class/net/eth0/addr_assign_type";
  assertEquals((await container.run("unshare", "--mount", "sh", "-c", inside)).trim(), "3");
});

// ----------------------------------------------------------------------------------------------------------- firewalld

const withFirewalld: NodeTestOptions = {
  needs: [...iptables.needs!, "nf_tables", "tool:firewalld", "tool:dbus-daemon", "tool:busctl"],
};

nodeTest(
  "firewall-cmd --reload between ADD, CHECK and DEL: CHECK says what is missing, restore makes it again",
  withFirewalld,
  async ({ node }) => {
    await startFirewalld(node);
    const conf = list("iptables");
    delete conf.plugins[2].backend; // firewalld, since it runs
    await configure(node, conf);
    const container = await node.container("ctr1");
    await node.outside();
    const warm = await warmUp(node);
    const checked = () => cnibox(node, ["check", "others", "ctr1", "--id", "ctr1"]);
    await must(node, ["add", "others", "ctr1", "--id", "ctr1", "-p", "192.0.2.1:8080:80"]);
    assertEquals((await checked()).code, 0);
    const before = await snapshot(node);

    await node.run("firewall-cmd", "--reload");
    const missing = await checked();
    assertNotEquals(missing.code, 0);
    // With its own sources firewalld forgets what others have in iptables.
    assertStringIncludes(missing.stderr, "masquerading of others ctr1 eth0 is incomplete");
    assertEquals((await sources(node)).trim(), "");
    // A note says when not all goes in at once.
    assertEquals((await must(node, ["restore", "--all"])).stderr, "");
    assertEquals((await checked()).code, 0);
    assertSameState(before, await snapshot(node), { allow: [hostLocalLeftovers] });
    assert((await node.run("firewall-cmd", "--zone=trusted", "--list-sources")).includes("10.30.0.3/32"));
    assertEquals((await container.ipJson("addr", "show", "eth0")).length, 1);

    await node.run("firewall-cmd", "--reload");
    await must(node, ["del", "others", "ctr1", "--id", "ctr1"]);
    assertEquals((await sources(node)).trim(), "");
    // firewalld makes a zone's chains when it is first used, and has dropped what containers share; nothing else may
    // differ.
    const own = { section: "nft", line: /"firewalld"/ } as const;
    assertSameState(warm, await snapshot(node), { allow: [...firstContainer, own] });
  },
);

const sources = (node: Node) => node.run("firewall-cmd", "--zone=trusted", "--list-sources");

/** A first container comes and goes, with what it leaves for those to come. */
async function warmUp(node: Node): Promise<Snapshot> {
  await node.container("first");
  await must(node, ["add", "others", "first", "--id", "first", "-p", "192.0.2.1:8080:80"]);
  await must(node, ["del", "others", "first", "--id", "first"]);
  await node.run("ip", "netns", "del", "first");
  return snapshot(node);
}

/** A system bus and firewalld of the node's own. */
async function startFirewalld(node: Node): Promise<void> {
  await node.sh("mkdir -p /run/dbus && dbus-daemon --system --fork --nopidfile");
  node.spawn(["firewalld", "--nofork", "--nopid"], { env: { PATH } });
  await eventually("firewalld answers", async () => (await node.exec(["firewall-cmd", "--state"])).code === 0, 30_000);
}
