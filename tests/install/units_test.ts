/** The installer and systemd's units: in a folder of the test's own, never the machine's. */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { CNIBOX, listing, ROOT, run, succeed, temporaryFolder } from "./support.ts";

const UNITS = [
  "cni-dhcp.service",
  "cni-dhcp.socket",
  "cnibox-node.service",
  "cnibox-page-cache.service",
  "cnibox-restore.service",
];
const ALL = Object.fromEntries(UNITS.map((name) => [name, "644"]));

async function install(bin: string, ...args: string[]): Promise<string> {
  const flags = ["--no-deps", "--bin-dir", bin, "--from", CNIBOX, ...args];
  return (await succeed(join(ROOT, "install.sh"), flags)).stdout;
}

const uninstall = (bin: string) => succeed(join(bin, "cnibox"), ["uninstall", "--bin-dir", bin]);

Deno.test("install --units puts units in place that start this program, and says how to use them", async () => {
  using folder = temporaryFolder();
  const bin = join(folder.path, "bin"), units = join(folder.path, "units");
  const table = await install(bin, "--units", units);
  assertEquals(listing(units), ALL);
  assertMatch(table, /\/cni-dhcp\.socket .* systemctl enable --now cni-dhcp\.socket$/m);
  assertMatch(table, /\/cnibox-restore\.service .* systemctl enable --now cnibox-restore\.service$/m);
  const text = await Deno.readTextFile(join(units, "cnibox-restore.service"));
  assertStringIncludes(text, `ExecStart=${bin}/cnibox restore --all\n`);
  assertStringIncludes(await Deno.readTextFile(join(units, "cni-dhcp.service")), `ExecStart=${bin}/dhcp daemon\n`);
  assertStringIncludes(
    await Deno.readTextFile(join(units, "cnibox-page-cache.service")),
    `ExecStart=/bin/cat ${bin}/cnibox\n`,
  );
  // Again: nothing changes, also when the folder is not named; an older unit of ours is brought up to date.
  assertEquals((await install(bin, "--units", units)).match(/\/units\/cni.* unchanged$/gm)?.length, UNITS.length);
  for (const place of [join(units, "cni-dhcp.socket"), join(bin, ".cnibox/units/cni-dhcp.socket")]) {
    await Deno.writeTextFile(place, "[Socket]\n# as an earlier version had it\n");
  }
  assertMatch(await install(bin), /cni-dhcp\.socket .* installed; to use it/);
  assertStringIncludes(await Deno.readTextFile(join(units, "cni-dhcp.socket")), "ListenStream=/run/cni/dhcp.sock");
  await uninstall(bin);
  assertEquals(listing(folder.path), { units: "/" });
  assertEquals(listing(units), {});
});

Deno.test("install without --units puts none anywhere else than below the usual plugin folder", async () => {
  using folder = temporaryFolder();
  const before = listing("/etc/systemd/system");
  await install(join(folder.path, "bin"));
  await install(join(folder.path, "bin"), "--no-units");
  assertEquals(listing("/etc/systemd/system"), before);
  assertEquals(Object.keys(listing(join(folder.path, "bin/.cnibox"))), ["lock", "made-this-folder"]);
});

Deno.test("install leaves units alone that are another's or were changed, and so does --uninstall", async () => {
  using folder = temporaryFolder();
  const bin = join(folder.path, "bin"), units = join(folder.path, "units");
  await Deno.mkdir(units);
  const socket = join(units, "cni-dhcp.socket"), restore = join(units, "cnibox-restore.service");
  await Deno.writeTextFile(socket, "[Socket]\nListenStream=/run/other.sock\n");
  assertMatch(await install(bin, "--units", units), /cni-dhcp\.socket .* left alone: not ours, or changed since$/m);
  await Deno.writeTextFile(restore, "# changed\n", { append: true });
  assertMatch(await install(bin), /cnibox-restore\.service .* left alone: not ours, or changed since$/m);
  assertMatch((await uninstall(bin)).stdout, /cni-dhcp\.service .* removed$/m);
  assertEquals(Object.keys(listing(units)), ["cni-dhcp.socket", "cnibox-restore.service"]);
  assertEquals(await Deno.readTextFile(socket), "[Socket]\nListenStream=/run/other.sock\n");
});

Deno.test("install leaves units out where they would have to quote the program's path", async () => {
  using folder = temporaryFolder();
  const bin = join(folder.path, "with space"), units = join(folder.path, "units");
  assertMatch(await install(bin, "--units", units), /left out: .* characters that units would have to quote/);
  assertEquals(Object.keys(listing(folder.path)), ["with space"]);
});

const verifies = (await run("sh", ["-c", "command -v systemd-analyze"])).code === 0;

Deno.test({
  name: verifies ? "units are understood by systemd" : "units are understood by systemd [skipped: no systemd-analyze]",
  ignore: !verifies,
  fn: async () => {
    using folder = temporaryFolder();
    const units = join(folder.path, "units");
    await install(join(folder.path, "bin"), "--units", units);
    const { code, stdout, stderr } = await run(
      "systemd-analyze",
      ["verify", "--man=no", "--recursive-errors=no", ...UNITS.map((name) => join(units, name))],
      // Only these units and systemd's own: what is wrong with other units of this machine is not our matter.
      { env: { SYSTEMD_UNIT_PATH: `${units}:/usr/lib/systemd/system:/lib/systemd/system` } },
    );
    const about = (stdout + stderr).split("\n").filter((line) => UNITS.some((name) => line.includes(name)));
    assertEquals({ code, about }, { code: 0, about: [] });
  },
});
