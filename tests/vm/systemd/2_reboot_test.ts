/**
 * The machine of 1_units_test.ts after its reboot: leases are on the disk, and nothing else of its containers is left.
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { eventually } from "../../e2e/support/traffic.ts";
import {
  cnibox,
  exec,
  exists,
  journalOf,
  machineTest,
  makeOutside,
  reachesOutside,
  rules,
  run,
  sh,
  stateOf,
  units,
} from "./machine.ts";

const pool = "/var/lib/cni/networks/pods";
const leases = () => [...Deno.readDirSync(pool)].map(({ name }) => name).filter((name) => /^\d/.test(name)).sort();

machineTest("after a reboot every enabled unit is up by itself", async () => {
  for (const unit of units()) {
    if (unit === "cnibox-restore.service") continue; // wanted by firewalld and nftables, which are not enabled
    assertEquals(await stateOf(unit), "active", unit);
    await journalOf(unit);
  }
  assertEquals(await stateOf("cni-dhcp.service"), "inactive");
  await run("systemctl", "start", "nftables.service");
  await eventually("restore has run", async () => await stateOf("cnibox-restore.service") === "active", 60_000);
  await journalOf("cnibox-restore.service");
  await run("systemctl", "stop", "nftables.service");
});

machineTest(
  "after a reboot a full network gives addresses of the dead, whom no runtime knows, to the living",
  async () => {
    assertEquals(leases().length, 13);
    assertEquals(exists("/run/netns/a"), false);
    await makeOutside();
    // An address is free for ADD once no runtime's cache names it; the others are for `ipam repair`, which looks
    // further.
    for (const name of ["c0", "c1"]) await sh(`rm /var/lib/cni/results/pods-${name}-eth0`);
    for (const name of ["new1", "new2"]) {
      await run("ip", "netns", "add", name);
      await cnibox("add", "pods", name, "--id", name, "-p", `${name === "new1" ? 8080 : 8081}:80`);
      assert(await reachesOutside(name));
    }
    // The address that a dead container had is a living one's.
    assertStringIncludes(await cnibox("ipam", "find", "new1"), "10.22.0.");
  },
);

machineTest("after a reboot cnibox ipam repair releases what belongs to nobody, and only that", async () => {
  const before = leases().length;
  const checked = await exec(["/opt/cni/bin/cnibox", "ipam", "check"]);
  assertEquals(checked.code, 1, checked.stdout);
  await cnibox("ipam", "repair", "--all", "--yes");
  const owners = leases().map((name) => Deno.readTextFileSync(`${pool}/${name}`).split(/\s/)[0]);
  assertEquals(owners.sort(), ["new1", "new2"]);
  Deno.stdout.writeSync(new TextEncoder().encode(`leases: ${before} before repair, ${owners.length} after\n`));
  assertMatch(await cnibox("ipam", "check"), /every address has a living owner/);
});

machineTest("after a reboot cnibox gc clears what the dead left, and restore makes the living's rules", async () => {
  await cnibox("gc", "pods", "--yes");
  assertMatch(await cnibox("gc", "pods", "--dry-run"), /2 living attachments stay, nothing is known to go/);
  const before = (await rules()).sort();
  await run("nft", "flush", "ruleset");
  assertEquals(await reachesOutside("new1"), false);
  await cnibox("restore", "--all");
  assertEquals((await rules()).sort(), before);
  for (const name of ["new1", "new2"]) {
    assert(await reachesOutside(name));
    await cnibox("check", "pods", name, "--id", name);
    await cnibox("del", "pods", name, "--id", name);
  }
  assertEquals(leases(), []);
});
