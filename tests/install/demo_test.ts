import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { CNIBOX, isRoot, listing, ROOT, run, temporaryFolder } from "./support.ts";

const installer = join(ROOT, "install.sh");
const ready = await run("sh", ["-c", "for tool in unshare ip iptables busybox; do command -v $tool || exit 1; done"]);
const ignore = !isRoot || ready.code !== 0;

/** What the demo could leave on this machine. Other tests come and go meanwhile, so only what bears its names. */
async function traces(): Promise<string> {
  const { stdout } = await run("sh", [
    "-c",
    "{ ip -o link; ip route show table all; iptables-save; nft list ruleset; ls /run/netns; find /var/lib/cni /run/cni; } 2>&1" +
    " | grep -E 'br-demo|demo-[ab]|10[.]85[.]0[.]|/demo(/|$)'; true",
  ]);
  return stdout;
}

/** The JSON document that a text ends with, but for `tail`. */
function lastDocument(text: string, tail: string): { ips: { address: string }[]; interfaces: { name: string }[] } {
  return JSON.parse(text.slice(text.indexOf("{\n", text.indexOf("Result of ADD")), text.length - tail.length));
}

/** The part of the demo that runs in namespaces, with the plugins of a folder. */
function demoInside(bin: string) {
  return run("unshare", [
    ..."--net --mount --pid --fork --kill-child --mount-proc --propagation private sh".split(" "),
    installer,
    "--demo-inside",
    `--bin-dir=${bin}`,
  ]);
}

Deno.test({
  name: "demo installs, works, and leaves nothing behind",
  ignore,
  fn: async () => {
    using folder = temporaryFolder();
    const bin = join(folder.path, "bin"), before = await traces();
    const { code, stdout, stderr } = await run(installer, [
      "--no-deps",
      "--demo",
      `--from=${CNIBOX}`,
      `--bin-dir=${bin}`,
    ]);
    assertEquals(code, 0, stdout + stderr);
    for (const step of ["ADD", "ping", "page", "CHECK", "DEL"]) {
      assertMatch(stdout, new RegExp(`^ {2}ok {4}.*${step}`, "m"));
    }
    assertEquals(stdout.match(/FAIL/), null);
    assertMatch(stdout, /\}\nnothing left behind\n$/);
    const result = lastDocument(stdout, "nothing left behind\n");
    assertEquals(result.ips.map(({ address }) => address), ["10.85.0.2/24"]);
    assertEquals(result.interfaces[0]?.name, "br-demo");
    assertEquals(await traces(), before);
    assertEquals(listing(join(bin, ".cnibox")), { lock: "644", "made-this-folder": "644" });
  },
});

Deno.test({
  name: "demo that fails says at which step, and leaves nothing behind",
  ignore,
  fn: async () => {
    using folder = temporaryFolder();
    const before = await traces();
    for (const name of ["bridge", "host-local"]) Deno.symlinkSync(CNIBOX, join(folder.path, name));
    const failing = `#!/bin/sh\n[ "$CNI_COMMAND" != CHECK ] || { echo '{"code": 7, "msg": "no"}'; exit 1; }\n` +
      `exec -a portmap ${CNIBOX}\n`;
    Deno.writeTextFileSync(join(folder.path, "portmap"), failing.replace("/bin/sh", "/bin/bash"), { mode: 0o755 });
    const { code, stdout } = await demoInside(folder.path);
    assertEquals(code, 1);
    assertStringIncludes(stdout, '\n  FAIL  CHECK demo-a and demo-b\n{"code": 7, "msg": "no"}\n');
    assertEquals(await traces(), before);
  },
});

Deno.test("demo uses the network of docs/examples/demo.conflist", async () => {
  const script = await Deno.readTextFile(installer);
  const conf = (name: string) => JSON.parse(`{${new RegExp(`^${name}_conf='([^']*)'`, "m").exec(script)?.[1]}}`);
  const { plugins } = JSON.parse(await Deno.readTextFile(join(ROOT, "docs", "examples", "demo.conflist")));
  assertEquals([conf("bridge"), conf("portmap")], plugins);
});
