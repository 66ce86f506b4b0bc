/** `cnibox gc`: what dead containers left goes, what lives stays, also when no runtime's cache knows it. */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { Attachment, type Json, type Node, nodeTest, type Output } from "./support/mod.ts";

const plugin = {
  type: "bridge",
  bridge: "br1",
  isGateway: true,
  ipMasq: true,
  ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }]] },
};
const cnibox = (node: Node, ...args: string[]): Promise<Output> => node.exec(["/opt/cni/bin/cnibox", ...args]);

nodeTest(
  "cnibox gc removes the dead, keeps the living, asks first",
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

/** A namespace that is listed and cannot be entered: its mount lies below another. */
async function hiddenNamespace(node: Node): Promise<() => Promise<string>> {
  await node.sh(`mkdir -p /run/hidden && touch /run/hidden/ns && ip netns add foreign &&
    mount --bind /run/netns/foreign /run/hidden/ns && ip netns del foreign && mount -t tmpfs none /run/hidden`);
  return () => node.sh("umount /run/hidden && umount /run/hidden/ns");
}

nodeTest(
  "a namespace that cannot be entered is named, nobody counts as dead because of it, and what could be seen is kept",
  { needs: ["bridge", "veth", "iptables"] },
  async ({ node }) => {
    await node.write(
      "/etc/cni/net.d/10-pods.conflist",
      JSON.stringify({ cniVersion: "1.1.0", name: "pods", plugins: [plugin] }),
    );
    for (const name of ["a", "b"]) {
      await node.container(name);
      assertEquals((await cnibox(node, "add", "pods", name, "--id", name)).code, 0);
    }
    // Lives, and no cache knows it: only its lease does, and the kernel.
    const hand = new Attachment(node, { cniVersion: "1.1.0", name: "pods", ...plugin }, await node.container("hand"));
    await hand.add();
    await node.run("ip", "netns", "del", "a");
    const leases = async () => (await node.list("/var/lib/cni/networks/pods")).filter((name) => /^\d/.test(name));
    const [dead = "", , living = ""] = await leases();
    const reason = /\/run\/hidden\/ns could not be looked at: \S/;

    const reveal = await hiddenNamespace(node);
    const gc = await cnibox(node, "gc", "pods", "--yes");
    assertEquals(gc.code, 0, gc.stderr);
    assertMatch(gc.stdout, /3 living attachments stay, nothing is known to go/);
    assertMatch(gc.stdout, new RegExp(`not proved to be gone: attachment a .*${reason.source}`));
    await hand.check();
    for (const [ip, words] of [[dead, /may be in use/], [living, /is in use/]] as const) {
      const freed = await cnibox(node, "ipam", "free", ip);
      assertEquals([freed.code, words.test(freed.stderr)], [1, true], freed.stderr);
    }
    const checked = await cnibox(node, "ipam", "check", "--json");
    const { gone, suspects } = JSON.parse(checked.stdout);
    assertEquals([gone, suspects.map(({ address, state }: Json) => [address, state])], [[], [
      [dead, "not examined"],
      [living, "in use, unknown"],
    ]]);
    assertMatch(checked.stderr, reason);
    assertEquals((await cnibox(node, "ipam", "repair", "--all", "--yes")).code, 0);
    assertEquals((await leases()).length, 3);
    const shown = JSON.parse((await cnibox(node, "show", "--json")).stdout);
    assertEquals(shown.networks[0].attachments.map(({ containerId, state }: Json) => [containerId, state]), [
      ["a", "unknown"],
      ["b", "ok"],
      ["hand", "ok"],
    ]);
    assertMatch(shown.blind.join(), reason);
    const doctor: Json[] = JSON.parse((await cnibox(node, "doctor", "--json")).stdout).findings;
    assert(
      doctor.some(({ area, cases = [] }) => area === "addresses" && cases.some(({ text }: Json) => reason.test(text))),
      JSON.stringify(doctor),
    );
    assert(!doctor.some(({ run }) => run), JSON.stringify(doctor));

    await reveal();
    assertMatch((await cnibox(node, "gc", "pods", "--yes")).stdout, /attachment a \(eth0\): \/run\/netns\/a is gone/);
    assertEquals((await leases()).length, 2);
    await hand.check();
  },
);

nodeTest(
  "cnibox gc keeps a container that only its link tells of",
  { needs: ["bridge", "veth"] },
  async ({ node }) => {
    const conf = { ...plugin, ipMasq: false, ipam: { type: "static", addresses: [{ address: "10.22.0.7/24" }] } };
    const list = JSON.stringify({ cniVersion: "1.1.0", name: "pods", plugins: [conf] });
    await node.write("/etc/cni/net.d/10-pods.conflist", list);
    const hand = new Attachment(node, { cniVersion: "1.1.0", name: "pods", ...conf }, await node.container("hand"));
    await hand.add();
    assertEquals((await cnibox(node, "gc", "pods", "--yes")).code, 0);
    await hand.check();
    // It lives, and there is nothing to repair.
    const { networks, orphans } = JSON.parse((await cnibox(node, "show", "--json")).stdout);
    assertEquals(networks[0].attachments.map(({ containerId, state }: Json) => [containerId, state]), [[
      "hand",
      "ok",
    ]]);
    assertEquals(orphans, []);
  },
);

nodeTest(
  "what doctor suggests for attachments of a network that is not configured any more works",
  { needs: ["bridge", "veth", "iptables"] },
  async ({ node }) => {
    const file = "/etc/cni/net.d/10-pods.conflist";
    await node.write(file, JSON.stringify({ cniVersion: "1.1.0", name: "pods", plugins: [plugin] }));
    for (const name of ["a", "b"]) {
      await node.container(name);
      assertEquals((await cnibox(node, "add", "pods", name, "--id", name)).code, 0);
      await node.run("ip", "netns", "del", name);
    }
    await node.run("rm", file);
    const doctor: Json[] = JSON.parse((await cnibox(node, "doctor", "--json")).stdout).findings;
    const gone = doctor.find(({ text }) => text === "2 attachments have namespaces that are gone");
    assertEquals(gone?.fix, "cnibox gc pods", JSON.stringify(doctor));
    const gc = await cnibox(node, ...gone.fix.split(" ").slice(1), "--yes");
    assertEquals(gc.code, 0, gc.stderr);
    assertEquals(await node.list("/var/lib/cni/results"), []);
    assertEquals((await node.list("/var/lib/cni/networks/pods")).filter((name) => /^\d/.test(name)), []);
    assertEquals((await cnibox(node, "gc", "pods", "--yes")).code, 66);
  },
);

nodeTest(
  "two containers with one address: show, ipam check, ipam repair, gc and doctor say the same",
  { needs: ["bridge", "veth", "iptables"] },
  async ({ node }) => {
    await node.write(
      "/etc/cni/net.d/10-pods.conflist",
      JSON.stringify({ cniVersion: "1.1.0", name: "pods", plugins: [plugin] }),
    );
    await node.container("a");
    assertEquals((await cnibox(node, "add", "pods", "a", "--id", "a")).code, 0);
    // As after a lease that was freed by mistake: the next container gets the same address.
    await node.sh("rm /var/lib/cni/networks/pods/*");
    await node.container("b");
    assertEquals((await cnibox(node, "add", "pods", "b", "--id", "b")).code, 0);
    const both = /10\.22\.0\.2.*\b[ab]\b.*\b[ab]\b/;

    const shown = JSON.parse((await cnibox(node, "show", "--json")).stdout);
    assertEquals(
      shown.networks[0].attachments.map(({ containerId, problems }: Json) => [containerId, problems[0]?.code]),
      [["a", "address-shared"], ["b", "address-shared"]],
    );
    const check = await cnibox(node, "ipam", "check", "--json");
    const { duplicates, unrecorded, gone, suspects } = JSON.parse(check.stdout);
    assertEquals([check.code, unrecorded, gone, suspects], [1, [], [], []]);
    assertEquals(
      duplicates.map((list: Json[]) => list.map(({ address, containerId }) => [address, containerId]).sort()),
      [[
        ["10.22.0.2", "a"],
        ["10.22.0.2", "b"],
      ]],
    );
    assertMatch((await cnibox(node, "ipam", "repair", "--all", "--yes")).stdout, both);
    const doctor: Json[] = JSON.parse((await cnibox(node, "doctor", "--json")).stdout).findings;
    assertEquals(
      doctor.filter(({ grade, text }) => grade === "failure" && both.test(text)).map(({ area }) => area),
      ["addresses"],
    );
    assertMatch(
      (await cnibox(node, "gc", "pods", "--yes")).stdout,
      /2 living attachments stay, nothing is known to go/,
    );
    for (const name of ["a", "b"]) await node.run("ip", "-n", name, "link", "show", "dev", "eth0");
  },
);
