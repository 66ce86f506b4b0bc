/** Pains of the chained plugins, of links made of others, and of dhcp and static. */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { Attachment, type Json } from "../e2e/support/mod.ts";
import { bridgeNet, leases, painTest, play, said, type Stage } from "./support.ts";

/** What a failed call said, with its details; "done" when it succeeded. */
async function complaint(stage: Stage, type: string, stdin: Json, more: Json = {}): Promise<string> {
  const request = { type, command: "ADD", containerId: "a", stdin, ...more };
  const { code, json } = await play(stage, request);
  return code === 0 ? "done" : `${json?.msg ?? "nothing"}: ${json?.details ?? ""}`;
}

painTest(
  "P461: firewall works where nft is all there is",
  ["bridge", "veth", "nf_tables", "iptables"],
  async (stage) => {
    const { node } = stage;
    for (const tool of ["iptables", "ip6tables"]) {
      await node.sh('mount --bind /dev/null "$(readlink -f "$(command -v "$1")")" || true', tool);
    }
    const stdin = {
      cniVersion: "1.0.0",
      name: "net1",
      type: "firewall",
      prevResult: {
        cniVersion: "1.0.0",
        interfaces: [{ name: "cni0" }, { name: "veth0" }, { name: "eth0", sandbox: "/run/netns/none" }],
        ips: [{ address: "10.22.0.5/24", interface: 2 }],
      },
    };
    const text = await complaint(stage, "firewall", stdin, { netns: "/run/netns/none" });
    return `${text}; rules: ${(await node.run("nft", "list", "ruleset")).includes("10.22.0.5")}`;
  },
  "done; rules: true",
);

painTest(
  "tuning names setting and cause for a sysctl that is not there, and changes nothing",
  ["veth"],
  async (stage) => {
    const netns = await stage.node.container("a");
    await netns.ip("link add eth0 type veth peer name eth0p");
    const before = await netns.sysctl("ipv4/conf/all/rp_filter");
    const stdin = {
      cniVersion: "1.0.0",
      name: "net1",
      type: "tuning",
      sysctl: { "net.ipv4.conf.all.rp_filter": before === "2" ? "1" : "2", "net.core.nonsense": "1" },
      prevResult: { cniVersion: "1.0.0", interfaces: [{ name: "eth0", sandbox: netns.netns }], ips: [] },
    };
    const text = await complaint(stage, "tuning", stdin, { netns });
    return { text, changed: (await netns.sysctl("ipv4/conf/all/rp_filter")) !== before };
  },
  ({ text, changed }) => {
    assertMatch(text, /net[./]core[./]nonsense/);
    assertEquals(changed, false);
  },
);

painTest(
  "sbr DEL says nothing when link and namespace are gone",
  ["veth"],
  async (stage) => {
    const netns = await stage.node.container("a");
    const stdin = { cniVersion: "1.0.0", name: "net1", type: "sbr" };
    const del = async (netns: Json) =>
      said(await play(stage, { type: "sbr", command: "DEL", containerId: "a", netns, stdin }));
    return [await del(netns), await del("/run/netns/gone"), await del(null)];
  },
  ["done", "done", "done"],
);

painTest(
  "a master that is not there is named by key, name and namespace, with those that are like it",
  ["bridge"],
  async (stage) => {
    await stage.node.ip("link add uplink0 type bridge");
    const stdin = bridgeNet({ type: "vlan", master: "uplnk0", vlanId: 5 });
    return await complaint(stage, "vlan", stdin, { netns: await stage.node.container("a") });
  },
  (seen) => {
    for (const part of ["Link not found", "master", "uplnk0", "uplink0"]) assertStringIncludes(seen, part);
  },
);

painTest(
  "P773, C1167: a device that left with its container blocks no DEL, and the address is released",
  ["veth"],
  async (stage) => {
    const { node } = stage;
    await node.ip("link add net1 type veth peer name net1p");
    const stdin = bridgeNet({ type: "host-device", device: "net1" });
    const netns = await node.container("a");
    const one = new Attachment(node, stdin, netns);
    await one.add(stage.by);
    await netns.ip("link del eth0");
    const del = { type: "host-device", command: "DEL", containerId: "a" };
    const withIt = said(await play(stage, { ...del, netns, stdin: { ...stdin, prevResult: one.result } }));
    await node.removeContainer(netns);
    const without = said(
      await play(stage, { ...del, netns: netns.netns, stdin: { ...stdin, prevResult: one.result } }),
    );
    const unnamed = said(await play(stage, { ...del, netns: null, stdin }));
    return { withIt, without, unnamed, leases: await leases(node) };
  },
  { withIt: "done", without: "done", unnamed: "done", leases: [] },
);

painTest(
  "P29 for ptp: a failed ADD leaves nothing, and the second try tells the same cause",
  ["veth"],
  async (stage) => {
    const netns = await stage.node.container("a");
    const stdin = bridgeNet({
      type: "ptp",
      ipMasq: false,
      ipam: {
        type: "host-local",
        ranges: [[{ subnet: "10.22.0.0/24" }]],
        routes: [{ dst: "10.99.0.0/16", gw: "172.31.0.1" }],
      },
    });
    const first = await complaint(stage, "ptp", stdin, { netns });
    const second = await complaint(stage, "ptp", stdin, { netns });
    return { same: first === second, leases: await leases(stage.node), links: (await netns.ipJson("link")).length };
  },
  { same: true, leases: [], links: 1 },
);

painTest(
  "multus 1031: without its daemon, dhcp says what to start, and STATUS refuses",
  ["veth"],
  async (stage) => {
    const netns = await stage.node.container("a");
    const stdin = { cniVersion: "1.1.0", name: "net1", type: "macvlan", ipam: { type: "dhcp" } };
    const status = await play(stage, { type: "dhcp", command: "STATUS", stdin });
    return { ADD: await complaint(stage, "dhcp", stdin, { netns }), STATUS: status.json?.code ?? 0 };
  },
  ({ ADD, STATUS }) => {
    assertStringIncludes(
      ADD,
      "error dialing DHCP daemon: dial unix /run/cni/dhcp.sock: connect: no such file or directory",
    );
    assertMatch(ADD, /dhcp daemon|systemctl/);
    assertEquals(STATUS, 50);
  },
);

painTest(
  "static tells a wrong address before anything is configured",
  ["bridge", "veth"],
  async (stage) => {
    const netns = await stage.node.container("a");
    const add = (address: Json) =>
      complaint(stage, "bridge", bridgeNet({ ipMasq: false, ipam: { type: "static", addresses: [address] } }), {
        netns,
      });
    return {
      prefix: await add({ address: "10.22.0.5/33" }),
      missing: await add({ address: "10.22.0.5" }),
      links: (await netns.ipJson("link")).length,
    };
  },
  ({ prefix, missing, links }) => {
    assertStringIncludes(prefix, "10.22.0.5/33");
    assertStringIncludes(missing, "10.22.0.5");
    assertEquals(links, 1);
  },
);
