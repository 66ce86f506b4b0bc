/** `cnibox restore`: rules that somebody flushed come back as they were, once. */
import { assertEquals, assertStringIncludes } from "@std/assert";
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
    { type: "firewall", backend: "iptables" },
  ],
});

async function ok(node: Node, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await node.exec(["/opt/cni/bin/cnibox", ...args]);
  assertEquals(code, 0, `${args.join(" ")}: ${stdout}${stderr}`);
  return stdout;
}

/** All rules, in an order of their own where order does not matter: restored ones are appended in another. Empty base chains do not count. */
async function rules(node: Node): Promise<string[]> {
  const saved = (await node.sh("iptables-save; ip6tables-save")).split("\n")
    // What a setting was before the first mapping is known to nobody after a flush.
    .filter((line) => line.startsWith("-A") && !line.includes("CNI-HOSTPORT-RESET"));
  const listed = (await node.sh("nft -s list ruleset")).split("\n").filter((line) =>
    /(masquerade|dnat to|return|goto|jump) ?.*$/.test(line) && !/counter|xt /.test(line)
  );
  return [...saved, ...listed.map((line) => line.trim())].sort();
}

for (const backend of ["iptables", "nftables"]) {
  nodeTest(`cnibox restore makes flushed rules again with ${backend}, and only those`, {
    needs: ["bridge", "veth", "iptables", "ip6tables", "nf_tables"],
  }, async ({ node }) => {
    await node.write("/etc/cni/net.d/10-pods.conflist", JSON.stringify(conf(backend)));
    for (const [index, name] of ["a", "b", "gone"].entries()) {
      await node.container(name);
      await ok(node, "add", "pods", name, "--id", name, "-p", `${8080 + index}:80`);
    }
    await ok(node, "del", "pods", "gone", "--id", "gone");
    const before = await rules(node);
    assertStringIncludes(await ok(node, "restore", "--all"), "0 restored, 6 were there");
    assertEquals(await rules(node), before);
    await node.run("nft", "flush", "ruleset");
    const missing = JSON.parse(await ok(node, "restore", "--all", "--dry-run", "--json")) as Json;
    assertEquals(missing.rules.map(({ state }: Json) => state), Array(6).fill("missing"));
    assertStringIncludes(await ok(node, "restore", "--all"), "6 restored, 0 were there");
    for (const name of ["a", "b"]) await ok(node, "check", "pods", name, "--id", name);
    const after = await rules(node);
    assertEquals(after, before);
    assertStringIncludes(await ok(node, "restore", "--all"), "0 restored, 6 were there");
    assertEquals(await rules(node), after);
    for (const name of ["a", "b"]) await ok(node, "del", "pods", name, "--id", name);
  });
}
