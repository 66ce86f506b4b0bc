/** The units that cnibox ships, under a running systemd: each starts, and does what it is for. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { eventually } from "../../e2e/support/traffic.ts";
import {
  cnibox,
  exec,
  install,
  journalOf,
  machineTest,
  makeOutside,
  pods,
  reachesOutside,
  rules,
  run,
  sh,
  stateOf,
  units,
} from "./machine.ts";

machineTest("install.sh installs the units, and each of them starts", async () => {
  await install();
  for (const unit of units()) {
    await run("systemctl", "enable", "--now", unit);
    assertEquals(await stateOf(unit), "active", unit);
    await journalOf(unit);
  }
  assertEquals(await stateOf("cni-dhcp.service"), "inactive");
  // Enabled too, it waits for its configuration.
  await run("systemctl", "enable", "--now", "cnibox-node.service");
  assertEquals(await stateOf("cnibox-node.service"), "inactive");
  await journalOf("cnibox-node.service");
});

machineTest("dhcp starts by its socket at the first ADD, and again after it was stopped", async () => {
  await sh(`
ip netns add world
ip netns add pod
ip link add eth0 netns world type veth peer name eth0 netns pod
ip -n world addr add 192.168.1.1/24 dev eth0
ip -n world link set eth0 up
`);
  await run(
    ...["systemd-run", "--unit=dnsmasq-test", "ip", "netns", "exec", "world", "dnsmasq", "--no-daemon", "--user=root"],
    ...["--conf-file=/dev/null", "--port=0", "--interface=eth0", "--bind-interfaces", "--no-ping"],
    ...["--dhcp-range=192.168.1.50,192.168.1.99,2m", "--dhcp-leasefile=/run/dnsmasq.leases", "--dhcp-authoritative"],
  );
  const call = (command: string) =>
    exec(["/opt/cni/bin/dhcp"], {
      input: JSON.stringify({ cniVersion: "1.1.0", name: "lan", type: "macvlan", ipam: { type: "dhcp" } }),
      env: {
        CNI_COMMAND: command,
        CNI_CONTAINERID: "pod",
        CNI_NETNS: "/run/netns/pod",
        CNI_IFNAME: "eth0",
        CNI_PATH: "/opt/cni/bin",
      },
    });
  for (const again of [false, true]) {
    if (again) await run("systemctl", "stop", "cni-dhcp.service");
    const { code, stdout } = await call("ADD");
    assertEquals(code, 0, stdout);
    assertMatch(JSON.parse(stdout).ips[0].address, /^192\.168\.1\.\d+\/24$/);
    assertEquals(await stateOf("cni-dhcp.service"), "active");
    assertEquals((await call("DEL")).code, 0);
  }
  assertMatch(await journalOf("cni-dhcp.service"), /Started .*CNI DHCP service/);
  await sh("systemctl stop dnsmasq-test; ip netns del pod; ip netns del world");
});

machineTest("rules are there again after systemctl restart nftables", async () => {
  await Deno.mkdir("/etc/cni/net.d", { recursive: true });
  await Deno.writeTextFile("/etc/cni/net.d/10-pods.conflist", JSON.stringify(pods));
  await makeOutside();
  await run("systemctl", "start", "nftables.service");
  for (const [at, name] of ["a", "b"].entries()) {
    await run("ip", "netns", "add", name);
    await cnibox("add", "pods", name, "--id", name, "-p", `${8080 + at}:80`);
    assert(await reachesOutside(name));
  }
  const before = await rules();
  assert(before.some((line) => line.includes("--dport 8080")));
  await run("systemctl", "restart", "nftables.service");
  await eventually("the rules are back", async () => (await rules()).length === before.length, 60_000);
  assertEquals((await rules()).sort(), before.sort());
  for (const name of ["a", "b"]) assert(await reachesOutside(name));
  assertMatch(await journalOf("cnibox-restore.service"), /[1-9]\d* restored/);
  await run("systemctl", "stop", "nftables.service");
});

machineTest("rules are there again after firewalld starts, and reloads in either way", async () => {
  // As docs/others.md has it: the bridge is trusted for good.
  await run("firewall-offline-cmd", "--zone=trusted", "--add-interface=br1");
  await run("systemctl", "start", "firewalld.service");
  assertEquals(await stateOf("firewalld.service"), "active");
  const complete = async () => {
    const now = await rules();
    return now.some((line) => line.includes("--dport 8080")) && now.some((line) => line.includes("MASQUERADE"));
  };
  const whole = async (what: string) => {
    await eventually(`rules after ${what}`, complete, 60_000);
    for (const name of ["a", "b"]) {
      await eventually(`${name} reaches the outside after ${what}`, () => reachesOutside(name), 30_000);
    }
  };
  await whole("start");
  await run("iptables", "-t", "nat", "-F");
  await run("systemctl", "reload", "firewalld.service");
  await whole("systemctl reload");
  await run("firewall-cmd", "--reload");
  await cnibox("restore", "--all");
  await whole("firewall-cmd --reload and cnibox restore");
  await journalOf("firewalld.service");
  await journalOf("cnibox-restore.service");
  await run("systemctl", "stop", "firewalld.service");
});

machineTest("the machine goes down with every address of the network taken", async () => {
  for (let at = 0; at < 11; at++) {
    await run("ip", "netns", "add", `c${at}`);
    await cnibox("add", "pods", `c${at}`, "--id", `c${at}`);
  }
  await run("ip", "netns", "add", "more");
  const { code, stdout, stderr } = await exec(["/opt/cni/bin/cnibox", "add", "pods", "more", "--id", "more"]);
  assertEquals(code === 0, false, stdout);
  assertMatch(stderr + stdout, /no IP addresses available/);
});
