/** `cnibox gc`: what dead containers left goes, what lives stays, also when no runtime's cache knows it. */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { Attachment, type Node, nodeTest, type Output } from "./support/mod.ts";

const plugin = {
  type: "bridge",
  bridge: "br1",
  isGateway: true,
  ipMasq: true,
  ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }]] },
};
const cnibox = (node: Node, ...args: string[]): Promise<Output> => node.exec(["/opt/cni/bin/cnibox", ...args]);

nodeTest(
  "cnibox gc takes away the dead, keeps the living, asks first",
  { needs: ["bridge", "veth", "iptables"] },
  async ({ node }) => {
    await node.write(
      "/etc/cni/net.d/10-pods.conflist",
      JSON.stringify({ cniVersion: "1.1.0", name: "pods", plugins: [plugin] }),
    );
    const pods = [];
    for (const name of ["a", "b", "c"]) {
      pods.push(await node.container(name));
      const { code, stderr } = await cnibox(node, "add", "pods", name, "--id", name);
      assertEquals(code, 0, stderr);
    }
    // By hand, as another runtime without this cache would.
    const foreign = new Attachment(
      node,
      { cniVersion: "1.1.0", name: "pods", ...plugin },
      await node.container("hand"),
    );
    await foreign.add();
    await node.removeContainer(pods[0]!);
    const asked = await cnibox(node, "gc", "pods");
    assertEquals(asked.code, 64);
    assertStringIncludes(asked.stderr, "--yes");
    const dry = await cnibox(node, "gc", "pods", "--dry-run");
    assertStringIncludes(
      dry.stdout,
      "pods: 3 living attachments stay, 1 to go\n  attachment a (eth0): /run/netns/a is gone",
    );
    const done = await cnibox(node, "gc", "pods", "--yes");
    assertEquals(done.code, 0, done.stderr);
    assertEquals((await node.list("/var/lib/cni/networks/pods")).filter((name) => /^\d/.test(name)), [
      "10.22.0.3",
      "10.22.0.4",
      "10.22.0.5",
    ]);
    const rules = await node.run("iptables-save", "-t", "nat");
    assertEquals(["a", "b", "c", "hand"].map((id) => rules.includes(`id: \\"${id}\\"`)), [false, true, true, true]);
    await foreign.check();
    for (const name of ["b", "c"]) assertEquals((await cnibox(node, "check", "pods", name, "--id", name)).code, 0);
  },
);
