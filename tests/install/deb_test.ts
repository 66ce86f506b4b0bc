/** `cnibox deb`: the package comes, is upgraded, goes and is purged, in a root that holds nothing else. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { VERSION } from "../../lib/version.ts";
import { nodeTest } from "../e2e/support/mod.ts";
import { CNIBOX, ROOT, run, temporaryFolder } from "./support.ts";

nodeTest("a Debian package installs the plugins, leaves what is not ours, and goes without a trace", {
  needs: ["root", "tool:dpkg-deb", "tool:dpkg"],
}, async ({ node }) => {
  const root = "/run/root";
  await node.sh(`mkdir -p ${root}/var/lib/dpkg/info ${root}/var/lib/dpkg/updates; touch ${root}/var/lib/dpkg/status`);
  const options = [`--root=${root}`, "--force-script-chrootless", "--force-depends", "--log=/run/dpkg.log"];
  const dpkg = (...args: string[]) => node.run("dpkg", ...options, ...args);
  const link = async (path: string) => (await node.run("readlink", `${root}${path}`)).trim();
  await node.run("/opt/cni/bin/cnibox", "deb", "/run/cnibox.deb");
  // Into a folder it goes by its own name; the same executable gives the same bytes.
  await node.run("mkdir", "/run/packages");
  await node.run("/opt/cni/bin/cnibox", "deb", "/run/packages/");
  const architecture = (await node.run("dpkg", "--print-architecture")).trim();
  const named = `cnibox_${VERSION.slice(1)}_${architecture}.deb`;
  assertEquals(await node.list("/run/packages"), [named]);
  await node.run("cmp", "/run/cnibox.deb", `/run/packages/${named}`);
  const listed = await node.run("dpkg-deb", "-c", "/run/cnibox.deb");
  for (
    const file of [
      "./usr/bin/cnibox -> ../lib/cnibox/cnibox",
      "./usr/share/man/man8/cnibox.8.gz",
      "./usr/share/man/man8/cnibox-bridge.8.gz",
      "./usr/share/bash-completion/completions/cnibox",
      "./usr/share/doc/cnibox/copyright",
    ]
  ) assertStringIncludes(listed, file);
  assert(!/^\S+ (?!root\/root)/m.test(listed), "all of it is root's");

  await node.sh(`mkdir -p ${root}/opt/cni/bin ${root}/var/lib/cni/networks/pods`);
  for (const name of ["calico", "ptp"]) await node.write(`${root}/opt/cni/bin/${name}`, "theirs");
  // The second time is an upgrade.
  for (let time = 0; time < 2; time++) {
    const { code, stderr } = await node.exec(["dpkg", ...options, "-i", "/run/cnibox.deb"]);
    assertEquals(code, 0, stderr);
    // That another's plugin stays is said, and does not fail the package.
    assertStringIncludes(stderr, "cnibox install: not replaced: ptp\n");
    assertStringIncludes(await node.run(`${root}/usr/bin/cnibox`, "--version"), "cnibox v");
    assertEquals([await link("/opt/cni/bin/bridge"), await link("/opt/cni/bin/cnitool")], ["cnibox", "cnibox"]);
    assertEquals(await node.read(`${root}/opt/cni/bin/ptp`), "theirs");
    assertStringIncludes(await node.read(`${root}/usr/share/doc/cnibox/copyright`) ?? "", "whitequark");
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

const dpkgDeb = (await run("sh", ["-c", "command -v dpkg-deb"])).code === 0;

Deno.test({
  name: "install.sh --deb makes the package without a network" + (dpkgDeb ? "" : " [skipped: no dpkg-deb]"),
  ignore: !dpkgDeb || Deno.uid() !== 0,
  fn: async () => {
    using folder = temporaryFolder();
    const made = () =>
      run("unshare", ["--net", "--", join(ROOT, "install.sh"), "--deb", "--from", CNIBOX], { cwd: folder.path });
    const { code, stdout, stderr } = await made();
    assertEquals(code, 0, stderr);
    const [{ name: file = "" } = {}, ...others] = [...Deno.readDirSync(folder.path)];
    assertEquals(others, []);
    assertStringIncludes(stdout, `${folder.path}/${file}: `);
    const { stdout: fields } = await run("dpkg-deb", ["-f", join(folder.path, file), "Package", "Version"]);
    assertEquals(fields, `Package: cnibox\nVersion: ${VERSION.slice(1)}\n`);
    // A second one replaces the first; nothing else is left.
    assertEquals((await made()).code, 0);
    assertEquals([...Deno.readDirSync(folder.path)].map(({ name }) => name), [file]);
  },
});
