/** `cnibox ipam` on a node with ten containers, three of them broken in different ways. */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { type Json, type Namespace, type Node, nodeTest, type Output } from "./support/mod.ts";

const conf = {
  cniVersion: "1.0.0",
  name: "pods",
  plugins: [{
    type: "bridge",
    bridge: "br1",
    isGateway: true,
    ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/28" }]] },
  }],
};

const cnibox = (node: Node, ...args: string[]): Promise<Output> => node.exec(["/opt/cni/bin/cnibox", ...args]);

async function ok(node: Node, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await cnibox(node, ...args);
  assertEquals(code, 0, `${args.join(" ")}: ${stdout}${stderr}`);
  return stdout;
}

async function tenContainers(node: Node): Promise<Namespace[]> {
  await node.write("/etc/cni/net.d/10-pods.conflist", JSON.stringify(conf));
  const pods: Namespace[] = [];
  for (let i = 0; i < 10; i++) {
    pods.push(await node.container(`p${i}`));
    await ok(node, "add", "pods", `p${i}`, "--id", `c${i}`);
  }
  return pods;
}

nodeTest("cnibox ipam names what is broken, fixes what can be, and touches nothing healthy", {
  needs: ["bridge", "veth"],
}, async ({ node }) => {
  const pods = await tenContainers(node);
  assertStringIncludes(await ok(node, "ipam"), "10 taken");
  assertEquals(JSON.parse(await ok(node, "ipam", "pods", "--json")).pools[0].ranges, [{
    range: "10.22.0.1-10.22.0.14",
    taken: 10,
    free: "3",
    total: "13",
  }]);
  assertStringIncludes(await ok(node, "ipam", "check"), "every address has a living owner");
  const healthy = await node.sh("cd /var/lib/cni/networks/pods; sha256sum 10.22.0.[5-9] 10.22.0.1?");

  await node.removeContainer(pods[0]!); //                            namespace gone
  await node.sh("rm /var/lib/cni/networks/pods/10.22.0.3"); //         address file lost
  await node.write("/var/lib/cni/networks/pods/10.22.0.14", ""); //     what a crash left
  await node.write("/var/lib/cni/networks/pods/notes.txt", "x");

  const checked = await cnibox(node, "ipam", "check", "--json");
  assertEquals(checked.code, 1);
  const found = JSON.parse(checked.stdout) as Json;
  assertEquals(found.gone.map(({ address, state }: Json) => [address, state]), [["10.22.0.2", "netns gone"], [
    "10.22.0.14",
    "empty",
  ]]);
  assertEquals(found.unrecorded, [{ address: "10.22.0.3", network: "pods", containerId: "c1", ifName: "eth0" }]);
  assertEquals([found.suspects, found.duplicates, found.odd], [[], [], ["/var/lib/cni/networks/pods/notes.txt"]]);

  const before = await node.list("/var/lib/cni/networks/pods");
  assertStringIncludes(await ok(node, "ipam", "repair", "--dry-run"), "would release 10.22.0.2 of c0");
  assertEquals(await node.list("/var/lib/cni/networks/pods"), before);
  assertStringIncludes(await ok(node, "ipam", "repair", "pods", "--yes"), "record 10.22.0.3 for c1 (eth0) on pods");
  assertEquals(await node.read("/var/lib/cni/networks/pods/10.22.0.3"), "c1\r\neth0");
  assertEquals(await node.read("/var/lib/cnibox/removed-leases/pods/10.22.0.2"), "c0\r\neth0");
  assertEquals(
    await node.sh("cd /var/lib/cni/networks/pods; sha256sum 10.22.0.[5-9] 10.22.0.1[01]"),
    healthy.split("\n").filter((line) => !line.endsWith("10.22.0.14")).join("\n"),
  );
  await node.sh("rm /var/lib/cni/networks/pods/notes.txt");
  assertStringIncludes(await ok(node, "ipam", "check"), "every address has a living owner");
});

nodeTest("cnibox ipam check tells a kind of problem once, and the command that it names repairs every case", {
  needs: ["bridge", "veth"],
}, async ({ node }) => {
  const pods = await tenContainers(node);
  for (const pod of pods.slice(0, 4)) await node.removeContainer(pod);
  await node.sh("cd /var/lib/cni/networks/pods; rm 10.22.0.9 10.22.0.10 10.22.0.11");
  const told = await cnibox(node, "ipam", "check");
  assertEquals([told.code, told.stderr], [1, ""]);
  assertEquals(told.stdout.split("\n"), [
    "! 4 addresses are held by containers whose namespace is gone",
    "    cnibox ipam repair pods",
    "! 3 addresses are used by containers, and no file says so",
    "    cnibox ipam repair pods",
    "",
    "each case: cnibox ipam check --verbose",
    "",
  ]);
  const each = (await cnibox(node, "ipam", "check", "-v")).stdout.split("\n").filter((line) => line.startsWith("  - "));
  assertEquals(each.length, 7);
  assertEquals(each[0], "  - 10.22.0.2 of c0 (eth0) on pods: /run/netns/p0 is gone; DEL never came");
  assertEquals(each[4], "  - 10.22.0.9 is used by c7 (eth0) on pods, and no file says so");
  await ok(node, "ipam", "repair", "pods", "--yes");
  assertStringIncludes(await ok(node, "ipam", "check"), "every address has a living owner");
});

nodeTest(
  "cnibox ipam find and free: whose an address is, and releasing it by hand",
  { needs: ["bridge", "veth"] },
  async ({ node }) => {
    await tenContainers(node);
    assertStringIncludes(await ok(node, "ipam", "find", "10.22.0.4"), "c2");
    assertStringIncludes(await ok(node, "ipam", "find", "c7"), "10.22.0.9");
    const nobody = await cnibox(node, "ipam", "find", "10.22.0.13");
    assertEquals(nobody.code, 66);
    const alive = await cnibox(node, "ipam", "free", "10.22.0.4");
    assertEquals(alive.code, 1);
    assertStringIncludes(alive.stderr, "10.22.0.4 is in use");
    const freed = JSON.parse(await ok(node, "ipam", "free", "10.22.0.4", "--force", "--yes", "--json")) as Json;
    assertEquals(freed.freed.map(({ address, network }: Json) => [address, network]), [["10.22.0.4", "pods"]]);
    assertEquals((await node.list("/var/lib/cni/networks/pods")).includes("10.22.0.4"), false);
  },
);
