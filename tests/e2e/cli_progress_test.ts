/** What takes long says so on a terminal, in one line that is gone in the end, and nowhere else. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { type Node, nodeTest, type Output, realTool, standIn, withStandIns } from "./support/mod.ts";
import { configure, must } from "./support/operator.ts";

const CNIBOX = "/opt/cni/bin/cnibox";
/** A command line whose standard streams are a terminal, or pipes. */
const onTerminal = (line: string) => ["script", "-qec", line, "/dev/null"];
const inPipe = (line: string) => ["/bin/sh", "-c", line];

/** Text of a line of progress, and how it is removed. */
const shown = (text: string) => new RegExp(`\\x1b\\[G\\x1b\\[K${text}, \\d+ s`);
const REMOVED = "\x1b[G\x1b[K";

/** What a terminal has shown in the end: a line of progress is followed by what replaces it. */
function lastLineRemoved(output: string, text: string): boolean {
  return output.slice(output.lastIndexOf(text)).includes(REMOVED);
}

nodeTest("cnibox add waits for a DHCP server on a terminal with a line, and in a pipe without", {
  needs: ["bridge", "veth", "tool:udhcpc", "tool:script"],
}, async ({ node }) => {
  const ipam = { type: "dhcp" };
  await configure(node, { cniVersion: "1.0.0", name: "lan", plugins: [{ type: "bridge", bridge: "lan0", ipam }] });
  const daemon = node.spawn(["/opt/cni/bin/dhcp", "daemon", "-resendtimeout", "3s"]);
  await daemon.until(/listening on/);
  await node.container("box");
  const line = `${CNIBOX} add lan box`;
  const { code, stdout } = await node.exec(onTerminal(line));
  assertEquals(code, 1, stdout);
  assertMatch(stdout, shown("network lan: waiting for an address from a DHCP server"));
  assert(lastLineRemoved(stdout, "waiting for"), stdout);
  const piped = await node.exec(inPipe(line));
  assertEquals([piped.code, isQuiet(piped)], [1, true]);
});

const isQuiet = ({ stdout, stderr }: Output) =>
  !["waiting for", "attachments removed", "rules looked at", "rules made", "\x1b"].some((text) =>
    (stdout + stderr).includes(text)
  );

/** A plugin whose DEL takes longer than what needs no line. */
const SLOW = `#!/bin/sh
cat >/dev/null
case $CNI_COMMAND in
ADD) echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "'"$CNI_NETNS"'"}]}' ;;
DEL) sleep 1.2 ;;
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}' ;;
esac
`;

/** Three containers of a network that are gone. */
async function left(node: Node): Promise<void> {
  for (const name of ["a", "b", "c"]) {
    const container = await node.container(name);
    await must(node, ["add", "slow", name, "--id", name, "--cni-path", "/opt/slow"]);
    await node.removeContainer(container);
  }
}

nodeTest("cnibox gc counts on a terminal what it has removed, and in a pipe prints its result alone", {
  needs: ["tool:script"],
}, async ({ node }) => {
  await node.write("/opt/slow/slow", SLOW, 0o755);
  await configure(node, { cniVersion: "1.0.0", name: "slow", plugins: [{ type: "slow" }] });
  const line = `${CNIBOX} gc slow --yes --cni-path /opt/slow`;
  await left(node);
  const { code, stdout } = await node.exec(onTerminal(line));
  assertEquals(code, 0, stdout);
  assertMatch(stdout, shown("network slow: 1 of 3 attachments removed"));
  assert(lastLineRemoved(stdout, "attachments removed"), stdout);
  await left(node);
  const piped = await node.exec(inPipe(line));
  assertEquals([piped.code, piped.stderr, isQuiet(piped)], [0, "", true]);
});

/** Three containers whose rules are flushed; the tool that shows what is left takes longer than what needs no line. */
async function flushed(node: Node): Promise<void> {
  const ipam = { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }]] };
  const bridge = { type: "bridge", bridge: "br0", isGateway: true, ipMasq: true, ipMasqBackend: "iptables", ipam };
  await configure(node, { cniVersion: "1.0.0", name: "pods", plugins: [bridge] });
  for (const name of ["a", "b", "c"]) {
    await node.container(name);
    await must(node, ["add", "pods", name, "--id", name]);
  }
  await standIn(node, "iptables-save", `sleep 1.2; exec ${await realTool(node, "iptables-save")} "$@"`);
  await node.run("iptables", "-t", "nat", "-F");
}

nodeTest("cnibox restore counts on a terminal the rules that it has looked at, and in a pipe prints its result alone", {
  needs: ["bridge", "veth", "iptables", "tool:script"],
}, async ({ node }) => {
  await flushed(node);
  const line = `${CNIBOX} restore --all`;
  const { code, stdout } = await node.exec([...withStandIns, ...onTerminal(line)]);
  assertEquals(code, 0, stdout);
  assertMatch(stdout, shown("rules looked at: [0-3] of 3"));
  assert(lastLineRemoved(stdout, "rules "), stdout);
  assertMatch(stdout, /3 restored, 0 were there/);
  await node.run("iptables", "-t", "nat", "-F");
  const piped = await node.exec([...withStandIns, ...inPipe(line)]);
  assertEquals([piped.code, piped.stderr, isQuiet(piped)], [0, "", true]);
});

nodeTest("cnibox restore and install say on a terminal whom they wait for", {
  needs: ["tool:script", "tool:flock"],
}, async ({ node }) => {
  await must(node, ["restore", "--all"]);
  await must(node, ["install", "--bin-dir", "/opt/other", "--plugins", "loopback"]);
  for (
    const [lock, command, text] of [
      ["/run/cnibox/restore.lock", "restore --all", "waiting for another cnibox restore to end"],
      [
        "/opt/other/.cnibox/lock",
        "install --bin-dir /opt/other --plugins loopback",
        "waiting for another installer to end",
      ],
    ] as const
  ) {
    // The lock is flock's alone, and goes with it.
    const holder = node.spawn(["flock", "-o", lock, "sh", "-c", "echo held; exec sleep 600 >/dev/null 2>&1"]);
    await holder.until(/held/);
    const waiting = node.spawn(onTerminal(`${CNIBOX} ${command}`));
    await waiting.until(shown(text));
    await holder.close();
    assertEquals(await waiting.ended(), 0, waiting.stdout);
    assert(lastLineRemoved(waiting.stdout, text), waiting.stdout);
    await waiting.close();
  }
});
