/** `cnibox deb`: the package comes, is upgraded, goes and is purged, in a root that holds nothing else. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { nodeTest } from "../e2e/support/mod.ts";

nodeTest("a Debian package installs the plugins, leaves what is not ours, and goes without a trace", {
  needs: ["root", "tool:dpkg-deb", "tool:dpkg"],
}, async ({ node }) => {
  const root = "/run/root";
  await node.sh(`mkdir -p ${root}/var/lib/dpkg/info ${root}/var/lib/dpkg/updates; touch ${root}/var/lib/dpkg/status`);
  const dpkg = (...args: string[]) =>
    node.run("dpkg", `--root=${root}`, "--force-script-chrootless", "--force-depends", "--log=/run/dpkg.log", ...args);
  const link = async (path: string) => (await node.run("readlink", `${root}${path}`)).trim();
  await node.run("/opt/cni/bin/cnibox", "deb", "/run/cnibox.deb");
  const listed = await node.run("dpkg-deb", "-c", "/run/cnibox.deb");
  for (
    const file of [
      "./usr/bin/cnibox -> ../lib/cnibox/cnibox",
      "./usr/share/man/man8/cnibox.8.gz",
      "./usr/share/man/man8/cnibox-bridge.8.gz",
      "./usr/share/bash-completion/completions/cnibox",
    ]
  ) assertStringIncludes(listed, file);
  assert(!/^\S+ (?!root\/root)/m.test(listed), "all of it is root's");

  await node.sh(`mkdir -p ${root}/opt/cni/bin ${root}/var/lib/cni/networks/pods`);
  for (const name of ["calico", "ptp"]) await node.write(`${root}/opt/cni/bin/${name}`, "theirs");
  // The second time is an upgrade.
  for (let time = 0; time < 2; time++) {
    await dpkg("-i", "/run/cnibox.deb");
    assertStringIncludes(await node.run(`${root}/usr/bin/cnibox`, "--version"), "cnibox v");
    assertEquals([await link("/opt/cni/bin/bridge"), await link("/opt/cni/bin/cnitool")], ["cnibox", "cnibox"]);
    assertEquals(await node.read(`${root}/opt/cni/bin/ptp`), "theirs");
  }
  await node.write(`${root}/var/lib/cnibox/removed-leases/x`, "x");
  await dpkg("-r", "cnibox");
  assertEquals(await node.list(`${root}/opt/cni/bin`), ["calico", "ptp"]);
  assertEquals(await node.list(`${root}/usr/lib/cnibox`), []);
  assertEquals(await node.list(`${root}/var/lib/cnibox`), ["removed-leases"]);
  await dpkg("--purge", "cnibox");
  assertEquals(await node.list(`${root}/var/lib`), ["cni", "dpkg"]);
  assertEquals(await node.list(`${root}/var/lib/cni/networks`), ["pods"], "leases are the containers'");
});
