/** The older variant of iptables, which keeps its own tables and its own lock: rules of all plugins that set any. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  assertPings,
  type By,
  inVm,
  type Json,
  type Node,
  nodeTest,
  request,
  runPlugin,
  serve,
  snapshot,
} from "./support/mod.ts";

const LEGACY = "/usr/sbin/xtables-legacy-multi";
const needs = ["bridge", "veth", "iptables_legacy", "reference", "tool:iptables-legacy"] as const;

/** Puts the older variant in the place of the newer one, for this node. */
async function useLegacy(node: Node): Promise<void> {
  await node.sh('mount --bind "$1" "$(readlink -f "$(command -v iptables)")"', LEGACY);
  assertStringIncludes(await node.run("iptables", "--version"), "legacy");
}

const result = (addresses: string[]) => ({
  cniVersion: "1.0.0",
  interfaces: [{ name: "cni0" }, { name: "eth0", sandbox: "/run/netns/none" }],
  ips: addresses.map((address) => ({ address, interface: 1 })),
});

async function call(node: Node, type: string, command: string, by: By, more: Json = {}, id = "ctr1"): Promise<void> {
  const ports = [{ hostPort: 8080, containerPort: 80, protocol: "tcp" }, {
    hostPort: 53,
    containerPort: 53,
    protocol: "udp",
  }];
  const output = await runPlugin(node, {
    type,
    command,
    by,
    containerId: id,
    netns: "/run/netns/none",
    stdin: {
      cniVersion: "1.0.0",
      name: "net1",
      type,
      runtimeConfig: { portMappings: ports },
      prevResult: result(["10.22.0.5/24", "2001:db8:22::5/64"]),
      ...more,
    },
  });
  assertEquals(output.code, 0, `${by} ${type} ${command}: ${output.stdout}${output.stderr}`);
}

async function rules(node: Node): Promise<string> {
  const { iptables, ip6tables } = await snapshot(node);
  return [...iptables, ...ip6tables].join("\n");
}

for (const [type, more] of [["portmap", {}], ["firewall", {}], ["firewall", { ingressPolicy: "isolated" }]] as const) {
  nodeTest(`${type} with iptables-legacy makes, checks and deletes the reference's rules ${JSON.stringify(more)}`, {
    needs: [...needs],
  }, async ({ node }) => {
    await useLegacy(node);
    await node.ip("link add cni0 type bridge");
    const seen: string[] = [];
    for (const by of ["ref", "cnibox"] as const) {
      const other = by === "ref" ? "cnibox" : "ref";
      await call(node, type, "ADD", by, more);
      const all = await rules(node);
      // What the reference does not have: the guard of 127.0.0.0/8.
      seen.push(all.split("\n").filter((line) => !/raw|127\.0\.0\.0\/8/.test(line)).join("\n"));
      if (by === "ref") await call(node, type, "CHECK", other, { ...more, snat: false });
      else await call(node, type, "CHECK", other, more);
      await call(node, type, "CHECK", by, more);
      await call(node, type, "DEL", other, more);
      await call(node, type, "DEL", by, more);
      assert(!/10\.22\.0\.5|2001:db8:22::5|CNI-DN/.test(await rules(node)), await rules(node));
    }
    assertEquals(seen[1], seen[0]);
  });
}

// Each has two calls at once, and the VM's memory holds some thirty.
const CONTAINERS = inVm ? 8 : 20;
nodeTest(
  `portmap and firewall with iptables-legacy, ${CONTAINERS} containers at once`,
  { needs: [...needs] },
  async ({ node }) => {
    await useLegacy(node);
    const ids = Array.from({ length: CONTAINERS }, (_, i) => `c${i}`);
    const more = (i: number) => ({
      runtimeConfig: { portMappings: [{ hostPort: 8000 + i, containerPort: 80, protocol: "tcp" }] },
      prevResult: result([`10.22.0.${i + 5}/24`]),
    });
    await Promise.all(ids.map((id, i) => call(node, "portmap", "ADD", "cnibox", more(i), id)));
    await Promise.all(ids.map((id, i) => call(node, "firewall", "ADD", "cnibox", more(i), id)));
    const full = await rules(node);
    for (const chain of ["PREROUTING", "OUTPUT", "POSTROUTING", "FORWARD"]) {
      // One shared jump each, in table nat or filter; the guard is in raw.
      const jumps = full.split("\n").filter((line) => line.includes(`-A ${chain} `) && !line.includes("127.0.0.0/8"));
      assertEquals(jumps.length, 1, jumps.join("\n"));
    }
    await Promise.all(
      ids.flatMap((
        id,
        i,
      ) => [call(node, "portmap", "DEL", "cnibox", more(i), id), call(node, "firewall", "DEL", "cnibox", more(i), id)]),
    );
    assert(!/10\.22\.0\.|CNI-DN/.test(await rules(node)), await rules(node));
  },
);

nodeTest("a published port answers with iptables-legacy", { needs: [...needs, "tool:socat"] }, async ({ node }) => {
  await useLegacy(node);
  const outside = await node.outside();
  await node.ip(
    "link add cni0 address 02:00:00:00:00:22 type bridge",
    "addr add 10.22.0.1/24 dev cni0",
    "link set cni0 up",
  );
  await node.sysctl("ipv4/ip_forward", 1);
  const pod = await node.container();
  await node.ip(`link add v0 type veth peer name eth0 netns ${pod.netns}`, "link set v0 master cni0 up");
  await pod.ip(
    "link set lo up",
    "addr add 10.22.0.5/24 dev eth0",
    "link set eth0 up",
    "route add default via 10.22.0.1",
  );
  await assertPings(pod, "10.22.0.1");
  await assertPings(outside, outside.hostIPv4);
  await call(node, "portmap", "ADD", "cnibox", { prevResult: result(["10.22.0.5/24"]) });
  const server = await serve(pod, 80, { name: "pod" });
  for (const [from, to] of [[outside, outside.hostIPv4], [node, "127.0.0.1"], [node, outside.hostIPv4]] as const) {
    let reply = await request(from, to, 8080);
    for (let i = 0; !reply && i < 3; i++) reply = await request(from, to, 8080);
    assertEquals(reply?.name, "pod", `${from.name} ${to}`);
  }
  await server.close();
});
