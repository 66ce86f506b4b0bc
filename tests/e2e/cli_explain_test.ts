/** `cnibox explain`: the shell that it prints does what ADD and DEL do, and printing it does nothing. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  assertSameState,
  type Json,
  type Namespace,
  type Node,
  nodeTest,
  type Snapshot,
  snapshot,
} from "./support/mod.ts";
import type { Need } from "./support/needs.ts";
import { isQuestion } from "../../lib/kernel/shell.ts";
import { settingsIn } from "../fakes/run.ts";
import { settled } from "./support/main_plugin.ts";
import { configure, must } from "./support/operator.ts";

interface Case {
  what: string;
  plugins: Json[];
  flags?: string[];
  needs?: Need[];
  /** Before the network is used. */
  prepare?: (node: Node) => Promise<unknown>;
  /** It has to be done anew where the node is brought back to what it was. */
  again?: boolean;
}

const subnet = { type: "host-local", ranges: [[{ subnet: "10.85.0.0/24" }]], routes: [{ dst: "0.0.0.0/0" }] };
const both = {
  type: "host-local",
  ranges: [[{ subnet: "10.85.0.0/24" }], [{ subnet: "fd00:85::/64" }]],
  routes: [{ dst: "0.0.0.0/0" }, { dst: "::/0" }],
};
const bridge = { type: "bridge", bridge: "br-demo", isGateway: true, ipMasq: true, hairpinMode: true, ipam: subnet };
const portmap = { type: "portmap", capabilities: { portMappings: true } };
const uplink = (node: Node) => node.outside();

const CASES: Case[] = [
  { what: "README's network", plugins: [bridge, portmap], flags: ["-p", "8080:80"], needs: ["iptables"] },
  {
    what: "README's network with nftables",
    plugins: [{ ...bridge, ipMasqBackend: "nftables" }, { ...portmap, backend: "nftables" }],
    flags: ["-p", "8080:80", "-p", "127.0.0.1:53:53/udp"],
    needs: ["nf_tables"],
  },
  {
    what: "a dual-stack bridge",
    plugins: [{ ...bridge, ipam: both }, portmap],
    flags: ["-p", "8080:80"],
    needs: ["iptables"],
  },
  {
    what: "a bridge without addresses",
    plugins: [{ type: "bridge", bridge: "br-demo", mtu: 1400, promiscMode: true }],
  },
  {
    what: "bridge and tuning",
    plugins: [{ ...bridge, ipMasq: false }, {
      type: "tuning",
      mtu: 1400,
      mac: "02:00:00:00:00:85",
      promisc: true,
      allmulti: true,
      txQLen: 500,
      sysctl: { "net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "500" },
    }],
  },
  {
    what: "bridge and bandwidth",
    plugins: [{ ...bridge, ipMasq: false }, { type: "bandwidth", capabilities: { bandwidth: true } }],
    flags: ["--bandwidth", "10M/5M"],
    needs: ["ifb"],
  },
  { what: "bridge and sbr", plugins: [{ ...bridge, ipMasq: false }, { type: "sbr" }] },
  { what: "bridge and firewall", plugins: [bridge, { type: "firewall" }], needs: ["iptables"] },
  {
    what: "ptp",
    plugins: [{ type: "ptp", ipMasq: true, ipam: both }, portmap],
    flags: ["-p", "8080:80"],
    needs: ["iptables"],
  },
  {
    what: "macvlan with written addresses",
    plugins: [{
      type: "macvlan",
      master: "uplink",
      ipam: { type: "static", addresses: [{ address: "192.0.2.77/24" }] },
    }],
    flags: ["--mac", "02:00:00:00:00:85"],
    prepare: uplink,
  },
  {
    what: "ptp with nftables",
    plugins: [{ type: "ptp", ipMasq: true, ipMasqBackend: "nftables", ipam: both }],
    needs: ["nf_tables"],
  },
  {
    what: "a bridge that is there",
    plugins: [{ ...bridge, promiscMode: true, hairpinMode: false, ipam: both }],
    needs: ["iptables"],
    prepare: (node) => node.ip("link add br-demo type bridge", "link set br-demo promisc on up"),
    again: true,
  },
  {
    what: "a bridge whose VLAN has a gateway of its own",
    plugins: [{ ...bridge, ipMasq: false, vlan: 100, ipam: both }],
    needs: ["vlan_filtering"],
  },
  { what: "tap", plugins: [{ type: "tap", ipam: subnet }], flags: ["--mac", "02:00:00:00:00:85"] },
  { what: "loopback", plugins: [{ type: "loopback" }], flags: ["--ifname", "lo"] },
  {
    what: "host-device",
    plugins: [{ type: "host-device", device: "uplink", ipam: subnet }],
    prepare: uplink,
  },
];

/** Commands by where and with what they are run, in order; what is random is made the same. */
type Told = Map<string, string[]>;

function tell(told: Told, key: string, line: string): void {
  // Settings of the host are written without a process; lines that only look, or only check, change nothing.
  if (/^(#|-C |list )/.test(line) || / show\b/.test(line)) return;
  told.set(key, [...told.get(key) ?? [], line.replace(/(br-demo(?:\.\d+)? address) \S+/, "$1 RANDOM")]);
}

/** What explain shows, as `--json` has it. */
function shown({ plugins }: Json): Told {
  const told: Told = new Map();
  for (const { steps } of plugins) {
    for (const { kind, namespace, lines } of steps) {
      if (kind !== "commands") continue;
      let tool = "";
      for (const line of lines as string[]) {
        const setting = /^(?:echo|printf %s) (\S+) >\/proc\/sys\/(\S+)/.exec(line);
        if (setting && namespace === "host") continue;
        if (tool === "") tool = setting ? "ip" : line.startsWith("#") ? "" : line.split(" ")[0] ?? "";
        tell(told, `${namespace} ${tool}`, setting ? `${setting[2]}=${setting[1]}` : line);
        if (!line.endsWith("<<'END'") && (line === "END" || !/^(nft|iptables|ip6tables)/.test(tool))) tool = "";
      }
    }
  }
  return told;
}

/** What ADD ran, by its trace. */
function traced(text: string): Told {
  const told: Told = new Map();
  for (const line of text.split("\n").filter(Boolean)) {
    const { argv = [], input, status, stdout } = JSON.parse(line) as Json;
    if (status !== 0 || stdout === undefined) continue;
    const namespace = argv[0] === "nsenter" ? argv[1].replace("--net=", "") : "host";
    const inner: string[] = argv[0] === "nsenter" ? argv.slice(3) : argv;
    const settings = settingsIn(inner);
    const tool = settings.length > 0 ? "ip" : inner[0];
    const lines = (input ?? "").split("\n").filter(Boolean);
    if (settings.length > 0 || inner.includes("-batch")) {
      for (const setting of settings) tell(told, `${namespace} ${tool}`, setting.slice(1));
      for (const one of lines) tell(told, `${namespace} ${tool}`, `${tool} ${one}`);
    } else {
      const words = inner.filter((word) => word !== "-j" && word !== "-d").join(" ");
      if (isQuestion({ argv: inner, input: lines })) continue;
      if (lines.length === 0) tell(told, `${namespace} ${tool}`, words);
      else for (const one of [`${words} <<'END'`, ...lines, "END"]) tell(told, `${namespace} ${tool}`, one);
    }
  }
  return told;
}

const TRACED = [
  "README's network",
  "README's network with nftables",
  "a dual-stack bridge",
  "a bridge that is there",
  "a bridge whose VLAN has a gateway of its own",
  "a bridge without addresses",
  "ptp",
  "ptp with nftables",
  "macvlan with written addresses",
];

for (const { what, plugins, needs = [], prepare } of CASES.filter((one) => TRACED.includes(one.what))) {
  nodeTest(`explain shows what ADD runs: ${what}`, { needs }, async ({ node }) => {
    await prepare?.(node);
    await configure(node, { cniVersion: "1.1.0", name: "demo", plugins: [plugins[0]] });
    await node.container("one");
    // The second container finds what the first one left.
    await node.container("two");
    for (const id of ["one", "two"]) {
      const { json } = await must(node, ["explain", "add", "demo", id, "--id", id, "--json"]);
      await must(node, ["add", "demo", id, "--id", id, "--trace-file", `/run/trace-${id}`]);
      assertEquals(shown(json), traced(await node.read(`/run/trace-${id}`) ?? ""), id);
    }
  });
}

/** State of host and container; what is random or grows by itself is made the same. */
async function state(node: Node, container: Namespace): Promise<{ host: Snapshot; pod: Snapshot }> {
  // The kernel draws those of bridges, and of the pair that is a VLAN's gateway.
  const all: Json[] = await node.ipJson("link");
  const gateway = all.find(({ ifname }) => ifname === "br-demo.100");
  const macs = all.filter((one) =>
    one.linkinfo?.info_kind === "bridge" || one === gateway || (gateway && one.ifname === gateway.link)
  ).map(({ address }) => address as string);
  const steady = (one: Snapshot) => {
    let text = JSON.stringify(one);
    for (const mac of macs) text = text.replaceAll(mac, "BRIDGE");
    return JSON.parse(text) as Snapshot;
  };
  return { host: steady(await snapshot(node)), pod: steady(await snapshot(container)) };
}

async function isThere(node: Node, type: string): Promise<boolean> {
  return (await node.list("/opt/cni/bin")).includes(type) &&
    (await must(node, ["plugins", "--names"])).stdout.split("\n").includes(type);
}

for (const { what, plugins, flags = [], needs = [], prepare, again = false } of CASES) {
  nodeTest(`explain, copied into a shell, does what ADD and DEL do: ${what}`, { needs }, async ({ node }) => {
    for (const { type } of plugins) if (!await isThere(node, type)) return;
    await prepare?.(node);
    await configure(node, { cniVersion: "1.1.0", name: "demo", plugins });
    const one = await node.container("one");
    const two = await node.container("two");
    const shell = (args: string[]) => must(node, args);
    const run = async (script: string) => {
      const output = await node.exec(["/bin/sh", "-s"], { input: script });
      assertEquals([output.code, output.stderr], [0, ""], `${script}\n${output.stdout}`);
    };
    // A first container makes what all share; then the node is brought back to it each time.
    for (const shared of flags.includes("-p") ? [false, true] : [false]) {
      if (shared) await shell(["add", "demo", "two", "--id", "two", "--ifname", "eth9", ...others(flags)]);
      const arrange = ["demo", "one", "--id", "one", ...flags];
      const before = await state(node, one);
      const added = await shell(["explain", "add", ...arrange]);
      assertSameState(before.host, (await state(node, one)).host);
      assertSameState(before.pod, (await state(node, one)).pod);
      await shell(["add", ...arrange]);
      // A gateway of the host has its routes once the kernel has tried its address.
      await settled(node);
      const real = await state(node, one);
      const deleted = await shell(["explain", "del", ...arrange]);
      assertSameState(real.host, (await state(node, one)).host);
      assertSameState(real.pod, (await state(node, one)).pod);
      await shell(["del", ...arrange]);
      const bare = await state(node, one);

      if (!shared) await reset(node, before.host);
      if (again) await prepare?.(node);
      await node.sh(
        "rm -f /var/lib/cni/networks/demo/last_reserved_ip.*; [ ! -e /run/saved ] || cp /run/saved/* /var/lib/cni/networks/demo/",
      );
      await run(added.stdout);
      await settled(node);
      const copied = await state(node, one);
      const allow = {
        allow: [
          /^\/var\/lib\/cni\/results\/[^ ]* file/,
          /^\/run\/|^\/var\/lib\/cni\/networks\/demo\/lock file|^\/var\/lib\/cni\/networks(\/demo)? directory/,
        ],
      };
      assertSameState(real.host, copied.host, allow);
      assertSameState(real.pod, copied.pod);
      assert((await node.list("/var/lib/cni/results")).includes(`demo-one-${ifName(flags)}`));
      // Handles of nft are counted on: what DEL says belongs to what is there now.
      const afterwards = await shell(["explain", "del", ...arrange]);
      assertEquals(afterwards.stdout.split("\n").length, deleted.stdout.split("\n").length);
      await run(afterwards.stdout);
      assertSameState(bare.host, (await state(node, one)).host, allow);
      assertSameState(bare.pod, (await state(node, one)).pod);
      if (!shared) await reset(node, before.host);
    }
    await node.removeContainer(two);
  });
}

const ifName = (flags: readonly string[]) => flags.includes("--ifname") ? flags[flags.indexOf("--ifname") + 1] : "eth0";

/** The second container cannot have the same ports and interface. */
function others(flags: readonly string[]): string[] {
  const lo = flags.indexOf("--ifname");
  return flags.filter((_, index) => lo < 0 || (index !== lo && index !== lo + 1))
    .map((flag) => flag.replace("8080:", "9090:").replace("127.0.0.1:53:", "127.0.0.1:54:").replace(/:85$/, ":86"));
}

/** Removes what a first ADD leaves for those to come. */
async function reset(node: Node, _: Snapshot): Promise<void> {
  await node.sh(
    "ip link del br-demo.100 2>/dev/null || :; ip link del br-demo 2>/dev/null || :; for t in raw nat filter mangle; do iptables -t $t -F; iptables -t $t -X; ip6tables -t $t -F; ip6tables -t $t -X; done 2>/dev/null || :; " +
      "nft flush ruleset 2>/dev/null || :; echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding",
  );
}

nodeTest("a script of explain add stops at an address that was given out meanwhile", {
  needs: ["bridge", "veth"],
}, async ({ node }) => {
  const ipam = { type: "host-local", ranges: [[{ subnet: "10.44.0.0/24" }]] };
  await configure(node, { cniVersion: "1.1.0", name: "demo", plugins: [{ type: "bridge", bridge: "br-demo", ipam }] });
  await node.container("one");
  const script = await must(node, ["explain", "add", "demo", "one", "--id", "one"]);
  const lease = "/var/lib/cni/networks/demo/10.44.0.2";
  await node.write(lease, "another\r\neth0");
  const output = await node.exec(["/bin/sh", "-s"], { input: script.stdout });
  assert(output.code !== 0, output.stdout);
  assertStringIncludes(output.stderr, lease);
  assertEquals(await node.read(lease), "another\r\neth0");
  assertEquals((await node.list("/var/lib/cni/results").catch(() => [])).length, 0);
  // DEL's script leaves alone what has become another's since.
  await node.exec(["rm", lease]);
  await must(node, ["add", "demo", "one", "--id", "one"]);
  const [taken = ""] = (await node.list("/var/lib/cni/networks/demo")).filter((name) => name.startsWith("10."));
  const removal = await must(node, ["explain", "del", "demo", "one", "--id", "one"]);
  await node.write(`/var/lib/cni/networks/demo/${taken}`, "another\r\neth0");
  assertEquals((await node.exec(["/bin/sh", "-s"], { input: removal.stdout })).code, 0);
  assertEquals(await node.read(`/var/lib/cni/networks/demo/${taken}`), "another\r\neth0");
});

nodeTest(
  "explain names rules of nft by the handles that they have here",
  { needs: ["nf_tables_bridge"] },
  async ({ node }) => {
    const plugins = [{ type: "bridge", bridge: "br-demo", macspoofchk: true, ipam: subnet }];
    await configure(node, { cniVersion: "1.1.0", name: "demo", plugins });
    await node.container("one");
    // What came and went makes handles differ from those of a copy; the jump is left over from an earlier attachment.
    const chain = "bridge nat PREROUTING";
    await node.exec(["nft", "-f", "-"], {
      input: "add table bridge nat\n" +
        `add chain ${chain} { type filter hook prerouting priority -300 ; }\n` +
        "add chain bridge nat cni-br-iface-one-eth0\n" +
        `add rule ${chain} iifname "gone" accept\nadd rule ${chain} iifname "other" accept\n` +
        `add rule ${chain} iifname "veth0" jump cni-br-iface-one-eth0 comment "macspoofchk-one-eth0"\n`,
    });
    const handles = async (text: RegExp) => {
      const { stdout } = await node.exec(["nft", "-a", "list", "chain", ...chain.split(" ")]);
      return stdout.split("\n").filter((line) => text.test(line)).map((line) => /# handle (\d+)/.exec(line)?.[1]);
    };
    await node.exec(["nft", "delete", "rule", ...chain.split(" "), "handle", `${(await handles(/"gone"/))[0]}`]);
    const [left] = await handles(/macspoofchk-one/);
    const { stdout } = await must(node, ["explain", "add", "demo", "one", "--id", "one"]);
    assertStringIncludes(stdout, `delete rule ${chain} handle ${left}\n`);
    assertEquals((await node.exec(["/bin/sh", "-s"], { input: stdout })).code, 0);
    assertEquals([(await handles(/macspoofchk-one/)).length, (await handles(/"other"/)).length], [1, 1]);
  },
);
