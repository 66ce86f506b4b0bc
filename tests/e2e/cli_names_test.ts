/** Names and texts that hold control characters reach no terminal as they are, wherever they come from. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { type Json, type Node, nodeTest, type Output } from "./support/mod.ts";

/** Sets the title of a terminal, turns red, goes back to the line's beginning, C1's own CSI, and a line of its own. */
const EVIL = "\x1b]0;title\x07\x1b[31m\r\x9b2J\u202e\nFORGED";
/** The same as far as the kernel takes it for the name of a link. */
const EVIL_LINK = "e\x1b[31m\x9f";

const cnibox = (node: Node, ...args: string[]): Promise<Output> =>
  node.exec(["timeout", "60", "/opt/cni/bin/cnibox", ...args]);

// deno-lint-ignore no-control-regex
const RAW = /[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]/;

function assertClean(words: string, { stdout, stderr }: Output): void {
  for (const text of [stdout, stderr]) {
    assert(!RAW.test(text), `${words}: ${JSON.stringify(text)}`);
    assert(!/^FORGED/m.test(text), `${words}: ${text}`);
  }
}

const conf = {
  cniVersion: "1.1.0",
  name: "pods",
  plugins: [{
    type: "bridge",
    bridge: "br1",
    isGateway: true,
    ipMasq: true,
    ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }]] },
  }],
};

async function plant(node: Node): Promise<void> {
  const list = (one: Json) => JSON.stringify(one);
  await node.write("/etc/cni/net.d/10-pods.conflist", list(conf));
  await node.container("a");
  assertEquals((await cnibox(node, "add", "pods", "a", "--id", "a")).code, 0);
  // Configurations: name, type, bridge, a key that nobody knows, and the name of the file.
  const plugin = { type: `br${EVIL}`, bridge: EVIL, [EVIL]: EVIL, ipam: { type: "host-local", subnet: EVIL } };
  await node.write("/etc/cni/net.d/20-evil.conflist", list({ cniVersion: "1.1.0", name: EVIL, plugins: [plugin] }));
  await node.write("/etc/cni/net.d/30-\x1b[31m\x9b.conf", list({ cniVersion: EVIL, name: "x", type: "bridge" }));
  await node.write("/etc/cni/net.d/40-broken.conf", `{"name": "${EVIL}", \x1b`);
  // Leases, and a file among them.
  await node.write("/var/lib/cni/networks/pods/10.22.0.9", `id${EVIL}\r\neth${EVIL}`);
  await node.write("/var/lib/cni/networks/pods/odd\x1b[31m", "x");
  await node.write("/var/lib/cni/networks/net\x1b[31m/10.9.0.2", `id${EVIL}\r\neth0`);
  // The cache: an attachment that says such things of itself, and one that nobody can read.
  const cached = {
    kind: "cniCacheV1",
    containerId: `c${EVIL}`,
    config: btoa(JSON.stringify(conf)),
    ifName: `if${EVIL}`,
    networkName: "pods",
    netns: `/run/netns/${EVIL}`,
    capabilityArgs: { portMappings: [{ hostPort: 80, containerPort: 80, protocol: EVIL, hostIP: EVIL }] },
    result: {
      cniVersion: "1.0.0",
      interfaces: [{ name: EVIL, sandbox: EVIL }],
      ips: [{ address: `10.22.0.77/24` }],
    },
  };
  await node.write("/var/lib/cni/results/pods-evil-eth0", list(cached));
  await node.write("/var/lib/cni/results/pods-living-eth0", list({ ...cached, netns: "/run/netns/a" }));
  await node.sh('mkfifo "$1"', "/var/lib/cni/results/pods-fifo\x1b[31m-eth0");
  // Links of the host: a name and an alias.
  await node.run("ip", "link", "add", "name", "plain", "type", "bridge");
  await node.run("ip", "link", "set", "dev", "plain", "alias", `cni:pods:x${EVIL}:eth0`);
  await node.run("ip", "link", "add", "name", EVIL_LINK, "type", "bridge").catch(() => {});
}

nodeTest("no control character of a name reaches the terminal, in no command's output", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  await plant(node);
  const commands = [
    ["show"],
    ["show", "--json"],
    ["graph"],
    ["graph", "--format", "dot"],
    ["graph", "--format", "mermaid"],
    ["graph", "--format", "svg"],
    ["ipam"],
    ["ipam", "--json"],
    ["ipam", "list"],
    ["ipam", "list", "--json"],
    ["ipam", "check"],
    ["ipam", "check", "--json"],
    ["ipam", "find", "10.22.0.9"],
    ["ipam", "free", `nobody${EVIL}`],
    ["ipam", "repair", "--dry-run"],
    ["gc", "pods", "--dry-run"],
    ["gc", "pods", "--dry-run", "--json"],
    ["gc", EVIL, "--dry-run"],
    ["validate", "/etc/cni/net.d"],
    ["validate", "--json", "/etc/cni/net.d"],
    ["doctor"],
    ["doctor", "--json"],
    ["restore", "--all", "--dry-run"],
    ["restore", "--all", "--dry-run", "--json"],
    ["explain", EVIL],
    ["add", EVIL, EVIL, "--json"],
    ["del", "pods", "--id", EVIL, "--ifname", EVIL],
    ["check", "pods", EVIL],
    ["status", EVIL],
    ["schema", EVIL],
    ["show", EVIL],
    [EVIL],
  ];
  const seen = new Map<string, Output>();
  for (const words of commands) {
    const output = await cnibox(node, ...words);
    assertClean(JSON.stringify(words), output);
    assert(output.code !== 124, `${words} waits`);
    seen.set(words.join(" "), output);
  }
  // Escaped, not left out; and JSON says the very text.
  assertStringIncludes(seen.get("ipam list")!.stdout, "\\u001b]0;title\\u0007");
  assertStringIncludes(seen.get("ipam list")!.stdout, "\\u000aFORGED");
  const list: Json[] = JSON.parse(seen.get("ipam list --json")!.stdout).addresses;
  assertEquals(list.find(({ address }) => address === "10.22.0.9").containerId, `id${EVIL}`);
  for (const words of ["show --json", "ipam check --json", "doctor --json"]) JSON.parse(seen.get(words)!.stdout);
});

nodeTest("colours stay ours: a name cannot bring its own, also on a terminal", {
  needs: ["bridge", "tool:script"],
}, async ({ node }) => {
  await node.write("/var/lib/cni/networks/pods/10.22.0.9", "id\x1b[31mred\x1b[0m\r\neth0");
  const { stdout } = await node.exec(["script", "-qec", "TERM=xterm /opt/cni/bin/cnibox ipam list", "/dev/null"]);
  assertStringIncludes(stdout, "id\\u001b[31mred\\u001b[0m");
  assertStringIncludes(stdout, "\x1b[33m");
});
