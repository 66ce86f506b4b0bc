/**
 * Calls on a machine that is broken or hostile around them: no room, no /proc, few descriptors, somebody else's files.
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  assertSameState,
  Attachment,
  type By,
  type Command,
  hostLocalLeftovers,
  type Json,
  type Node,
  nodeTest,
  type PluginOutput,
  realTool,
  runPlugin,
  snapshot,
  standIn,
  withStandIns,
} from "./support/mod.ts";

const conf = (more: Json = {}): Json => ({
  cniVersion: "1.1.0",
  name: "net1",
  type: "bridge",
  bridge: "br1",
  isGateway: true,
  ipMasq: true,
  ipMasqBackend: "nftables",
  ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }]] },
  ...more,
});

/**
 * Command line put before a plugin: a script changes what the plugin sees, in a mount namespace of the plugin's own.
 */
const within = (script: string) => ["unshare", "--mount", "/bin/sh", "-euc", `${script}; exec "$0" "$@"`];

// -------------------------------------------------------------------------------------------------------------- /run

const places: Record<string, string> = {
  "is read-only": "mount -o remount,ro,bind /run",
  "is read-only and empty of cnibox": "mount -t tmpfs -o ro none /run/cnibox",
  "is full": `mount -t tmpfs -o size=64k none /run/cnibox; mkdir -m 700 /run/cnibox/io
head -c 100000 /dev/zero >/run/cnibox/fill 2>/dev/null || :`,
  "has no room for another file":
    "mount -t tmpfs -o nr_inodes=3 none /run/cnibox; mkdir -m 700 /run/cnibox/io; : >/run/cnibox/last",
  "is writable for others": "chmod 777 /run/cnibox",
  "belongs to others":
    "mount -t tmpfs -o mode=755 none /run/cnibox; mkdir -m 700 /run/cnibox/io; chown 1000 /run/cnibox/io",
  "leads elsewhere": "mkdir -p /run/elsewhere; rm -rf /run/cnibox; ln -s /run/elsewhere /run/cnibox",
  "holds a FIFO": "rm -rf /run/cnibox/io; mkfifo /run/cnibox/io",
};

for (const [state, script] of Object.entries(places)) {
  nodeTest(`ADD, CHECK and DEL work where /run/cnibox ${state}`, {
    needs: ["bridge", "veth", "nf_tables"],
  }, async ({ node }) => {
    const pod = await node.container();
    const net = new Attachment(node, conf(), pod);
    await net.add();
    await net.del();
    const before = await snapshot(node);
    const call = async (command: Command, previous?: Json) => {
      const { code, stdout, stderr, json } = await runPlugin(node, {
        type: "bridge",
        command,
        netns: pod,
        stdin: net.request(conf(), previous),
        wrap: within(script),
      });
      assertEquals([command, code], [command, 0], stdout + stderr);
      return json;
    };
    const result = await call("ADD");
    await call("CHECK", result);
    await call("DEL", result);
    assertSameState(before, await snapshot(node), { allow: [hostLocalLeftovers] });
    assertEquals(await node.exec(["ls", "-A", "/run/elsewhere"]).then(({ stdout }) => stdout), "");
  });
}

nodeTest("an answer of a tool that /run has no room for is an error, never a short answer", {
  needs: ["bridge", "veth", "nf_tables"],
}, async ({ node }) => {
  const pod = await node.container();
  const net = new Attachment(node, conf(), pod);
  await net.add();
  await net.del();
  const before = await snapshot(node);
  // More than one page, in front of what the tool says itself: blanks are nothing to JSON.
  await standIn(node, "ip", `printf '%5000s\\n' '' 2>/dev/null; exec ${await realTool(node, "ip")} "$@"`);
  const outcomes: string[] = [];
  for (const pages of [2, 3, 4, 5, 6, 8, 64]) {
    const [unshare, mount, ...stand] = withStandIns;
    const room = `mount -t tmpfs -o size=${pages * 4}k,mode=700 none /run/cnibox; exec "$0" "$@"`;
    const { code, json, stdout } = await runPlugin(node, {
      type: "bridge",
      command: "ADD",
      netns: pod,
      stdin: conf(),
      wrap: [unshare!, mount!, "/bin/sh", "-euc", room, ...stand],
    });
    assertEquals(code === 0 ? json.ips?.length : typeof json?.code, code === 0 ? 1 : "number", stdout);
    outcomes.push(code === 0 ? "result" : json.msg);
    await net.del();
    assertSameState(before, await snapshot(node), { allow: [hostLocalLeftovers] });
  }
  assert(outcomes.some((msg) => msg.includes("No space left on device")), outcomes.join("\n"));
  assertEquals(outcomes.at(-1), "result");
});

nodeTest("a folder below /run that others can write to is named on standard error", {
  needs: ["bridge", "veth"],
}, async ({ node }) => {
  await node.sh("mkdir -p /run/cnibox/io; chmod 777 /run/cnibox/io");
  const pod = await node.container();
  const call = { type: "bridge", netns: pod, stdin: conf({ ipMasq: false }) };
  const { code, stderr } = await runPlugin(node, { ...call, command: "ADD" });
  assertEquals(code, 0);
  assertStringIncludes(stderr, "/run/cnibox/io");
  assertEquals(await node.list("/run/cnibox/io"), []);
  assertEquals((await runPlugin(node, { ...call, command: "DEL" })).code, 0);
});

// ------------------------------------------------------------------------------------------------------ standard input

/** A plugin whose standard input is a FIFO that is written to and never closed. */
async function neverClosed(node: Node, command: Command, signal?: string): Promise<PluginOutput> {
  await node.sh("rm -f /run/in; mkfifo /run/in");
  const script = `exec 9<>/run/in; echo '{"cniVersion":"1.1.0",' >&9
"$0" </run/in 9>&- & child=$!
[ -z "$SIGNAL" ] || {
  until caught=0x$(sed -n 's/^SigCgt:[[:space:]]*//p' /proc/$child/status) && [ $((caught >> 14 & 1)) = 1 ]; do sleep 0.05; done
  kill -$SIGNAL $child
}
wait $child`;
  return await runPlugin(node, {
    type: "bridge",
    command,
    netns: await node.container(),
    env: { CNIBOX_TOOL_TIMEOUT: signal ? "50" : "1", SIGNAL: signal ?? "" },
    wrap: ["/bin/sh", "-c", script],
    timeout: 30_000,
  });
}

nodeTest("standard input that is never closed ends the call with an I/O error", async ({ node }) => {
  const { code, json, stdout } = await neverClosed(node, "ADD");
  assertEquals([code, json?.code], [1, 5], stdout);
  assertStringIncludes(json.msg, "did not close it within 1 s");
});

for (const command of ["ADD", "DEL", "STATUS"] as const) {
  nodeTest(`SIGTERM ends ${command} while it waits for standard input`, async ({ node }) => {
    const { code, json, stdout } = await neverClosed(node, command, "TERM");
    assertEquals([code, json?.code], [1, 11], stdout);
  });
}

// -------------------------------------------------------------------------------------------------------------- limits

const limits: Record<string, string> = {
  "20 open files": "ulimit -n 20",
  "16 open files": "ulimit -n 16",
  // What is below it is that of the machine, where the node's processes have other numbers.
  "another PID namespace's /proc": "umount -l /proc",
  "no /sys": "umount -l /sys",
};

for (const [limit, script] of Object.entries(limits)) {
  for (const by of ["cnibox", "ref"] as By[]) {
    nodeTest(`with ${limit} ${by === "ref" ? "the reference" : "cnibox"} works or answers an error object`, {
      needs: ["bridge", "veth", "nf_tables", ...(by === "ref" ? ["reference" as const] : [])],
    }, async ({ node }) => {
      const pod = await node.container();
      for (const command of ["ADD", "DEL"] as const) {
        const { code, json, stdout, stderr } = await runPlugin(node, {
          type: "bridge",
          command,
          netns: pod,
          by,
          stdin: conf(),
          wrap: within(script),
        });
        assert(command === "DEL" ? code === 0 || json?.code > 0 : json !== undefined, `${code} ${stdout}${stderr}`);
      }
    });
  }
}
