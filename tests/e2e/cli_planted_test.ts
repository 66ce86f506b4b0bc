/** A FIFO, a device or a link where a file is expected costs one line, and nobody waits for it. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { type Json, type Node, nodeTest, type Output } from "./support/mod.ts";

const conf = {
  cniVersion: "1.1.0",
  name: "pods",
  plugins: [
    {
      type: "bridge",
      bridge: "br1",
      isGateway: true,
      ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }]] },
    },
    { type: "tuning", mtu: 1400 },
  ],
};
/** `timeout` ends what waits: its status is 124 then. */
const cnibox = (node: Node, ...args: string[]): Promise<Output> =>
  node.exec(["timeout", "30", "/opt/cni/bin/cnibox", ...args]);

const RESULTS = "/var/lib/cni/results";
const LEASES = "/var/lib/cni/networks/pods";
const CONF = "/etc/cni/net.d";

async function plant(node: Node): Promise<void> {
  await node.sh(`
    mkdir -p /etc/NetworkManager/conf.d ${CONF}/pods
    mkfifo ${RESULTS}/pods-fifo-eth0 ${LEASES}/10.22.0.9 ${CONF}/50-fifo.conflist ${CONF}/pods/fifo.conf
    mkfifo /etc/NetworkManager/conf.d/fifo.conf
    ln -s /dev/zero ${RESULTS}/pods-zero-eth0
    ln -s pods-a-eth0 ${RESULTS}/pods-link-eth0
    ln -s /dev/zero ${CONF}/60-zero.conf
    truncate -s 1T ${RESULTS}/pods-large-eth0 ${CONF}/70-large.conf
    mkfifo /run/cnibox/gc-pods.lock`);
}

nodeTest("no command waits for a FIFO, follows a link or reads without end", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  await node.write(`${CONF}/10-pods.conflist`, JSON.stringify(conf));
  for (const id of ["a", "b"]) {
    await node.container(id);
    const { code, stderr } = await cnibox(node, "add", "pods", id, "--id", id);
    assertEquals(code, 0, stderr);
  }
  await node.run("ip", "netns", "del", "b");
  await plant(node);
  const skipped = (name: string, what: string) => new RegExp(`${name} is ${what}.*; skipped`);

  const show = await cnibox(node, "show", "--json");
  assertEquals(show.code, 0, show.stderr);
  assertMatch(show.stderr, skipped(`${RESULTS}/pods-fifo-eth0`, "a FIFO"));
  assertMatch(show.stderr, skipped(`${RESULTS}/pods-zero-eth0`, "a symbolic link"));
  assertMatch(show.stderr, skipped(`${RESULTS}/pods-link-eth0`, "a symbolic link"));
  assertMatch(show.stderr, skipped(`${RESULTS}/pods-large-eth0`, "larger than \\d+ bytes"));
  assertMatch(show.stderr, /10\.22\.0\.9 is skipped: it is not a file/);

  for (
    const [words, statuses] of [
      [["graph"], [0]],
      [["ipam"], [0]],
      [["ipam", "list"], [0]],
      [["ipam", "check"], [1]],
      [["restore", "--all", "--dry-run"], [0]],
      [["doctor"], [1, 2]],
      [["validate", CONF], [2]],
      [["gc", "pods", "--dry-run"], [66]],
    ] as const
  ) {
    const { code, stdout, stderr } = await cnibox(node, ...words);
    assert((statuses as readonly number[]).includes(code), `${words.join(" ")}: ${code} ${stdout}${stderr}`);
  }
  const { findings } = JSON.parse((await cnibox(node, "validate", "--json", CONF)).stdout);
  const unreadable = findings.filter(({ rule }: Json) => rule === "unreadable").map(({ file }: Json) => file);
  assertEquals(unreadable.filter((file: string) => file.startsWith(`${CONF}/`)).length >= 3, true, `${unreadable}`);

  await node.sh(`rm ${CONF}/pods/fifo.conf`);
  const gc = await cnibox(node, "gc", "pods", "--yes");
  assertMatch(gc.stderr, /gc-pods.lock is a FIFO/);
  await node.sh("rm /run/cnibox/gc-pods.lock");
  const again = await cnibox(node, "gc", "pods", "--yes");
  assertEquals(again.code, 0, again.stderr);
  assertMatch(again.stdout, /attachment b/);
  assertEquals((await cnibox(node, "check", "pods", "a", "--id", "a")).code, 0);
});

nodeTest("DEL goes on past a FIFO and a link in place of a backup, and leaves them", {
  needs: ["bridge", "veth"],
}, async ({ node }) => {
  await node.write(`${CONF}/10-pods.conflist`, JSON.stringify(conf));
  for (const [id, planted] of [["a", "mkfifo $1"], ["b", "ln -s /etc/passwd $1"]] as const) {
    await node.container(id);
    assertEquals((await cnibox(node, "add", "pods", id, "--id", id)).code, 0);
    const [file = ""] = (await node.list("/run/cni/tuning")).filter((name) => name.startsWith(id));
    assert(file !== "");
    await node.sh(`rm "$1"; ${planted}`, `/run/cni/tuning/${file}`);
    const { code, stderr } = await cnibox(node, "del", "pods", id, "--id", id);
    assertEquals(code, 0, stderr);
    assertMatch(stderr, /is a (FIFO|symbolic link), not a regular file; skipped/);
    assertEquals((await node.list("/run/cni/tuning")).includes(file), true);
  }
});
