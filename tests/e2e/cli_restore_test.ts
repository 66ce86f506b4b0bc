/** `cnibox restore`: rules that somebody flushed come back as they were, all at once, and once. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { type Json, type Node, nodeTest } from "./support/mod.ts";

const conf = (backend: string): Json => ({
  cniVersion: "1.0.0",
  name: "pods",
  plugins: [
    {
      type: "bridge",
      bridge: "br1",
      isDefaultGateway: true,
      ipMasq: true,
      ipMasqBackend: backend,
      ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }], [{ subnet: "fd00:22::/64" }]] },
    },
    { type: "portmap", backend, capabilities: { portMappings: true } },
    { type: "firewall", backend, ingressPolicy: "same-bridge" },
  ],
});

async function ok(node: Node, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await node.exec(["/opt/cni/bin/cnibox", ...args]);
  assertEquals(code, 0, `${args.join(" ")}: ${stdout}${stderr}`);
  return stdout;
}

/** What is in the tables, without the counters. */
async function rules(node: Node): Promise<string[]> {
  const saved = (await node.sh("iptables-save; ip6tables-save")).split("\n")
    .filter((line) => /^[-:*]/.test(line))
    .map((line) => line.replace(/ \[\d+:\d+\]$/, ""));
  // Each line with the table and the chain that it is in.
  let [table, block] = ["", ""];
  const kept = (await node.sh("nft -s list ruleset")).split("\n").flatMap((line) => {
    const opened = /^table (\S+ \S+)/.exec(line)?.[1];
    if (opened !== undefined) [table, block] = [opened, ""];
    block = /^\t\S+ (\S+) \{/.exec(line)?.[1] ?? block;
    // Tables of iptables are compared above; what nft prints of them depends on what is loaded.
    if (/^ip6? (raw|mangle|nat|filter)$/.test(table) || /^\s*\}?$/.test(line)) return [];
    return [`${table} ${block}: ${line.trim()}`];
  });
  return [...saved, ...kept];
}

/**
 * Which tools changed rules of the node, one entry for each process; questions, and what was only tried out, do not
 * count.
 */
async function writers(node: Node, file: string): Promise<string[]> {
  const entries = (await node.read(file) ?? "").split("\n").filter(Boolean).map((line) => JSON.parse(line) as Json);
  return entries.flatMap(({ argv = [], input = "" }: Json) => {
    const [tool] = argv as string[];
    if (tool === "nft") return argv.includes("-j") || !/^(?!list )./m.test(input) ? [] : ["nft"];
    if (!/^ip6?tables-restore$/.test(tool ?? "")) return [];
    return /^(?![*]|COMMIT|-C )./m.test(input) ? [tool as string] : [];
  });
}

/** How many processes were started. */
async function started(node: Node, file: string): Promise<number> {
  return (await node.read(file) ?? "").split("\n").filter(Boolean).length;
}

async function withContainers(node: Node, list: Json, names: readonly string[]): Promise<void> {
  await node.write("/etc/cni/net.d/10-pods.conflist", JSON.stringify(list));
  for (const [index, name] of names.entries()) {
    await node.container(name);
    const port = index + name.charCodeAt(0);
    await ok(node, "add", "pods", name, "--id", name, "-p", `${8000 + port}:80`, "-p", `${5300 + port}:53/udp`);
  }
}

const needs = ["bridge", "veth", "iptables", "ip6tables", "nf_tables"] as const;
const WRITERS: Record<string, string[]> = { iptables: ["iptables-restore", "ip6tables-restore"], nftables: ["nft"] };
/** Most processes for two containers with both families: where all is there, and where all is gone. */
const PROCESSES: Record<string, [intact: number, flushed: number]> = { iptables: [16, 62], nftables: [8, 46] };

for (const backend of ["iptables", "nftables"]) {
  nodeTest(`cnibox restore makes flushed rules again with ${backend}, in one transaction, and only those`, {
    needs: [...needs],
  }, async ({ node }) => {
    await withContainers(node, conf(backend), ["a", "b", "gone"]);
    await ok(node, "del", "pods", "gone", "--id", "gone");
    const before = await rules(node);
    assertStringIncludes(await ok(node, "restore", "--all", "--trace-file", "/run/intact"), "0 restored, 6 were there");
    assertEquals(await writers(node, "/run/intact"), []);
    const [intact = 0, flushed = 0] = PROCESSES[backend] ?? [];
    assert(await started(node, "/run/intact") <= intact, `${await started(node, "/run/intact")} for nothing`);
    assertEquals(await rules(node), before);

    await node.run("nft", "flush", "ruleset");
    const missing = JSON.parse(await ok(node, "restore", "--all", "--dry-run", "--json")) as Json;
    assertEquals(missing.rules.map(({ state }: Json) => state), Array(6).fill("missing"));
    assertStringIncludes(await ok(node, "restore", "--all", "--trace-file", "/run/first"), "6 restored, 0 were there");
    assertEquals(await writers(node, "/run/first"), WRITERS[backend]);
    assert(await started(node, "/run/first") <= flushed, `${await started(node, "/run/first")} to make them again`);
    for (const name of ["a", "b"]) await ok(node, "check", "pods", name, "--id", name);
    const after = await rules(node);
    assertEquals(after.toSorted(), before.toSorted());

    assertStringIncludes(await ok(node, "restore", "--all", "--trace-file", "/run/again"), "0 restored, 6 were there");
    assertEquals(await writers(node, "/run/again"), []);
    assertEquals(await rules(node), after);
    for (const name of ["a", "b"]) await ok(node, "del", "pods", name, "--id", name);
  });

  nodeTest(`cnibox restore makes what is missing of one container with ${backend}, and leaves the others' alone`, {
    needs: [...needs],
  }, async ({ node }) => {
    await withContainers(node, conf(backend), ["a", "b"]);
    const before = await rules(node);
    // Somebody removes a part of both's rules, and leaves the rest.
    if (backend === "iptables") await node.sh("iptables -t nat -F; ip6tables -t nat -F; iptables -F CNI-FORWARD");
    else await node.sh("nft flush chain ip cni_hostport masquerading; nft delete table inet cni_plugins_masquerade");
    const said = JSON.parse(await ok(node, "restore", "--id", "a", "--json", "--trace-file", "/run/one")) as Json;
    assert(said.rules.every(({ containerId, state }: Json) => containerId === "a" && state !== "failed"));
    const tools = await writers(node, "/run/one");
    assertEquals(tools.length, new Set(tools).size, `${tools}`);
    await ok(node, "check", "pods", "a", "--id", "a");
    const { code } = await node.exec(["/opt/cni/bin/cnibox", "check", "pods", "b", "--id", "b"]);
    assertEquals(code, 1);
    await ok(node, "restore", "--all");
    assertEquals((await rules(node)).toSorted(), before.toSorted());
  });
}

nodeTest("cnibox restore makes rules beside a foreign firewall's, which stay as they are", {
  needs: [...needs],
}, async ({ node }) => {
  await node.write(
    "/run/firewall.nft",
    `table inet guard {
  chain input { type filter hook input priority 0; policy accept; iif "lo" accept; }
  chain forward { type filter hook forward priority 0; policy drop; ct state invalid drop; }
}
`,
  );
  await node.run("nft", "-f", "/run/firewall.nft");
  await withContainers(node, conf("nftables"), ["a", "b"]);
  const before = await rules(node);
  assertStringIncludes(before.join("\n"), "jump cni_forward");
  // What `systemctl restart nftables` does.
  await node.sh("nft flush ruleset; nft -f /run/firewall.nft");
  await ok(node, "restore", "--all", "--trace-file", "/run/trace");
  assertEquals(await writers(node, "/run/trace"), ["nft"]);
  assertEquals((await rules(node)).toSorted(), before.toSorted());
  // Firewalls with more manners remove nothing but their own table.
  await node.sh("nft delete table inet guard; nft -f /run/firewall.nft");
  assertStringIncludes(await ok(node, "restore", "--all"), "2 restored, 4 were there");
  assertEquals((await rules(node)).toSorted(), before.toSorted());
  assertStringIncludes(await ok(node, "restore", "--all"), "0 restored, 6 were there");
});

nodeTest("cnibox restore goes on past an attachment whose rules cannot be made", { needs: [...needs] }, async ({
  node,
}) => {
  await withContainers(node, conf("iptables"), ["a", "b"]);
  const before = await rules(node);
  await node.run("nft", "flush", "ruleset");
  // What was remembered of the first cannot be: no rule holds such a port.
  const path = "/var/lib/cni/results/pods-a-eth0";
  const cached = JSON.parse(await node.read(path) ?? "{}") as Json;
  const ports = cached.capabilityArgs.portMappings[0] as Json;
  const published = ports.hostPort;
  ports.hostPort = 99999;
  await node.write(path, JSON.stringify(cached));
  const said = await node.exec(["/opt/cni/bin/cnibox", "restore", "--all", "--json"]);
  assertEquals(said.code, 1);
  const failed = (JSON.parse(said.stdout) as Json).rules.filter(({ state }: Json) => state === "failed");
  assertEquals(failed.map(({ containerId, what }: Json) => [containerId, what]), [["a", "portmap"]]);
  await ok(node, "check", "pods", "b", "--id", "b");
  ports.hostPort = published;
  await node.write(path, JSON.stringify(cached));
  await ok(node, "restore", "--all");
  assertEquals((await rules(node)).toSorted(), before.toSorted());
});

nodeTest("cnibox restore makes rules one after the other where no shadow can be made", { needs: [...needs] }, async ({
  node,
}) => {
  await withContainers(node, conf("iptables"), ["a", "b"]);
  const before = await rules(node);
  await node.run("nft", "flush", "ruleset");
  await node.sh(
    "printf '#!/bin/sh\\nexit 1\\n' >/run/unshare; chmod 755 /run/unshare; mount --bind /run/unshare $(command -v unshare)",
  );
  const { code, stderr } = await node.exec(["/opt/cni/bin/cnibox", "restore", "--all"]);
  assertEquals(code, 0, stderr);
  assertStringIncludes(stderr, "one after the other");
  assertEquals((await rules(node)).toSorted(), before.toSorted());
});

for (const backend of ["iptables", "nftables"]) {
  nodeTest(
    `cnibox restore, called by several at once with ${backend}, makes every rule once`,
    { needs: [...needs] },
    async ({
      node,
    }) => {
      await withContainers(node, conf(backend), ["a", "b"]);
      const before = await rules(node);
      await node.run("nft", "flush", "ruleset");
      await Promise.all([1, 2, 3].map(() => ok(node, "restore", "--all")));
      assertEquals((await rules(node)).toSorted(), before.toSorted());
    },
  );
}

nodeTest("cnibox restore leaves nothing of a container that is deleted meanwhile", { needs: [...needs] }, async ({
  node,
}) => {
  await withContainers(node, conf("iptables"), ["a"]);
  const before = await rules(node);
  await withContainers(node, conf("iptables"), ["b", "c", "d"]);
  await node.run("nft", "flush", "ruleset");
  await Promise.all([
    ok(node, "restore", "--all"),
    ...["b", "c", "d"].map((name) => ok(node, "del", "pods", name, "--id", name)),
  ]);
  assertEquals((await rules(node)).toSorted(), before.toSorted());
});
