/**
 * What README and docs/install.md say is typed to install cnibox, on a root file system with nothing in it; in the
 * order of this file. tests/fresh_root/run.sh runs it, and then the tests of what is typed afterwards.
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { createNode, FRESH_ROOT, type Node, type Output, PATH } from "../e2e/support/mod.ts";
import { referenceDir } from "../e2e/support/bin.ts";
import { copyTree, ROOT, run, temporaryFolder } from "../install/support.ts";

assert(FRESH_ROOT !== undefined, "run tests/fresh_root/run.sh");
const packages = Deno.env.get("CNIBOX_E2E_PACKAGES") ?? "";

/** Commands typed by root where the release was unpacked. */
async function typed(script: string, { code: wanted = 0 } = {}): Promise<Output> {
  await using node = await createNode({ installing: true, binds: { "/var/cache/apt/archives": packages } });
  return await typedOn(node, script, wanted);
}

async function typedOn(node: Node, script: string, wanted: number): Promise<Output> {
  const output = await node.exec(["/bin/sh", "-exc", `cd /root/cnibox-*\n${script}`], {
    env: { PATH, HOME: "/root" },
    timeout: 900_000,
  });
  assertEquals(output.code, wanted, output.stdout + output.stderr);
  return output;
}

/** The shell blocks of README's section on installing. */
function blocks(): string[] {
  const readme = Deno.readTextFileSync(join(ROOT, "README.md"));
  const start = readme.indexOf("\n## Install");
  const part = readme.slice(start, readme.indexOf("\n## ", start + 5));
  return [...part.matchAll(/```sh\n([^]*?)```/g)].map(([, block = ""]) => block);
}

Deno.test("README's first commands install what is missing, and cnibox, and show it at work", async () => {
  using folder = temporaryFolder();
  const tree = join(folder.path, "tree");
  await copyTree(tree);
  const released = await run(join(tree, "install.sh"), ["--release"], { env: { DENO: Deno.execPath() } });
  assertEquals(released.code, 0, released.stderr);
  await run("tar", ["-xzf", released.stdout.trim(), "-C", join(FRESH_ROOT, "root")]);

  const [first = "", second = "", ...others] = blocks()[0]?.trim().split("\n") ?? [];
  assertEquals(others, []);
  // Every test, in a checkout: what continuous integration does on a bare Debian.
  assertMatch(second, /^sh tests\/run\.sh +# in a checkout/);
  const { stdout } = await typed(first);
  assertMatch(stdout, /^ {2}packages .*\biproute2\b.*\budhcpc\b.* installed with apt-get$/m);
  assertMatch(stdout, /^ {2}tools .* all there$/m);
  assertMatch(stdout, /\nnothing left behind\n$/);
  const { stdout: found } = await typed("command -v cnibox; command -v cnitool; cnibox --version; cnibox verify");
  assertMatch(found, /^\/usr\/local\/bin\/cnibox\n\/usr\/local\/bin\/cnitool\ncnibox v/);
});

Deno.test("what README and the tutorials say is to be installed beside it can be", async () => {
  const tutorials = join(ROOT, "docs/tutorials");
  const pages = [join(ROOT, "README.md"), ...[...Deno.readDirSync(tutorials)].map(({ name }) => join(tutorials, name))];
  const texts = pages.map((page) => Deno.readTextFileSync(page));
  const named = texts.flatMap((text) =>
    [...text.matchAll(/`apt install ([^`]+)`/g)].flatMap(([, one = ""]) => one.split(" "))
  );
  assert(named.includes("iputils-ping"));
  await typed(`export DEBIAN_FRONTEND=noninteractive
apt-get -q -y install --no-install-recommends ${[...new Set(named)].join(" ")}`);
});

const reference = referenceDir();

Deno.test({
  name: "README swaps other plugins for ours, and back" +
    (reference ? "" : " [skipped: no reference plugins: run tests/support/reference.sh]"),
  ignore: reference === undefined,
  fn: async () => {
    await typed("cnibox uninstall; test ! -e /opt/cni; mkdir -p /opt/cni/bin");
    await run("cp", ["-R", `${reference}/.`, join(FRESH_ROOT, "opt/cni/bin")]);
    const sums = "cd /opt/cni/bin; sha256sum *; ls -ln | tail -n +2";
    const { stdout: before } = await typed(sums);
    const { stderr } = await typed("./install.sh", { code: 73 });
    assertMatch(stderr, /^cnibox install: not replaced: .*\bbridge\b.*\bptp\b/m);
    assertStringIncludes(stderr, "to swap, with the files kept: /opt/cni/bin/cnibox install --replace\n");
    assertMatch(
      (await typed("/opt/cni/bin/bridge --version 2>&1 || :")).stdout,
      /^CNI bridge plugin version unknown$/m,
    );
    const [swap = "", back = "", ...others] = blocks()[1]?.trim().split("\n") ?? [];
    assertEquals(others, []);
    await typed(swap);
    assertStringIncludes((await typed("cnibox verify; readlink /opt/cni/bin/bridge")).stdout, "\ncnibox\n");
    await typed(back);
    assertEquals((await typed(sums)).stdout, before);
    await typed("rm -r /opt/cni; ./install.sh");
  },
});

Deno.test("the Debian package is made, comes, goes and is purged, with manual pages and completion", async () => {
  const { stdout } = await typed(`./install.sh --uninstall
./install.sh --deb
dpkg -i ./cnibox_*.deb
test "$(command -v cnibox)" = /usr/bin/cnibox
cnibox --version
readlink /opt/cni/bin/bridge /opt/cni/bin/cnitool
zcat /usr/share/man/man8/cnibox-bridge.8.gz | head -n 1
bash -ec '. /usr/share/bash-completion/completions/cnibox; complete -p cnibox'
mkdir -p /var/lib/cnibox
dpkg --remove cnibox
test ! -e /opt/cni
test ! -e /usr/bin/cnibox
dpkg --purge cnibox
test ! -e /var/lib/cnibox
rm ./cnibox_*.deb
./install.sh`);
  for (const part of [/^cnibox v/m, /^cnibox\ncnibox$/m, /^\.TH CNIBOX-BRIDGE 8/m, /^complete -F _cnibox cnibox$/m]) {
    assertMatch(stdout, part);
  }
});
