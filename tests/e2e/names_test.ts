/**
 * Names that a tool could read as something else, on a real kernel: every printable character in the names that plugins
 * are told, with links beside them that a tool would hit if it cut the name short.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { PRINTABLE } from "../fakes/iproute2.ts";
import { failure, fixed } from "./support/main_plugin.ts";
import {
  assertNoPing,
  assertPings,
  assertSameState,
  Attachment,
  call,
  childPrograms,
  type Json,
  type Namespace,
  type Need,
  type Node,
  nodeTest,
  runPlugin,
  snapshot,
  tracePlugin,
} from "./support/mod.ts";

const ipam = fixed(["10.22.0.2/24 10.22.0.1"]);
const LETTERS = PRINTABLE.filter((char) => /\w/.test(char)).join("");
const SIGNS = PRINTABLE.filter((char) => !/[\w/:%]/.test(char));

/** Every sign between two letters, and the letters, digits and the underscore in names of thirteen. */
const EACH = [...SIGNS.map((sign) => `x${sign}y`), ...LETTERS.match(/.{1,13}/g) ?? []];
/** Names with five signs each; {@linkcode turned} puts others of them at the start and at the end. */
const FEW = Array.from({ length: Math.ceil(SIGNS.length / 5) }, (_, at) => SIGNS.slice(at * 5, at * 5 + 5));

function turned(signs: readonly string[], by: number): string {
  const [first = "", ...others] = [...signs.slice(by), ...signs.slice(0, by)];
  return `${first}x${others.slice(0, -1).join("y")}x${others.at(-1) ?? ""}`;
}

/** Links that a name would mean if it were cut short, or read as a number. */
const DECOYS = ["x", "xy", "y", "if", "br", "eth0"];

async function decoys(of: Namespace, names: readonly string[] = DECOYS): Promise<void> {
  await of.ip(...names.map((name) => `link add name ${name} mtu 1400 up type bridge`));
  await of.ip(...names.map((name, at) => `addr add 192.0.2.${at + 1}/32 dev ${name}`));
}

/** What there is of links and addresses, without counters of ports. */
async function linksOf(of: Namespace): Promise<Map<string, string>> {
  const links = await of.ipJson("addr", "show");
  return new Map(links.map(({ ifname, flags, mtu, address, master, ifalias, addr_info }) => [
    ifname,
    JSON.stringify([flags.includes("UP"), mtu, address, master, ifalias, addr_info.map((one: Json) => one.local)]),
  ]));
}

/** Makes and unmakes one attachment, and sees that no link but its own has changed. Returns the number of calls. */
async function roundTrip(
  node: Node,
  pod: Namespace,
  { conf, ifName, own }: { conf: Json; ifName: string; own: string[] },
): Promise<number> {
  const before = [await linksOf(node), await linksOf(pod)];
  const untouched = async (when: string) => {
    const now = [await linksOf(node), await linksOf(pod)];
    for (const [at, place] of ["host", "container"].entries()) {
      for (const [name, state] of before[at]!) {
        if (own.includes(name)) continue;
        assertEquals([name, now[at]!.get(name)], [name, state], `${when} of ${ifName} in the ${place}`);
      }
    }
    return now;
  };
  const one = new Attachment(node, conf, pod, { ifName });
  const result = await one.add();
  assert(result.interfaces.some((it: Json) => it.name === ifName && it.sandbox === pod.netns), JSON.stringify(result));
  const [, inside] = await untouched("ADD");
  assert(inside!.has(ifName), `${ifName} is not there: ${[...inside!.keys()].join(" ")}`);
  await one.check();
  await one.del();
  const [outside, gone] = await untouched("DEL");
  assertEquals([...gone!.keys()].sort(), [...before[1]!.keys()].sort(), `DEL of ${ifName} leaves nothing inside`);
  const more = [...outside!.keys()].filter((name) => !before[0]!.has(name) && !own.includes(name));
  assertEquals(more, [], `DEL of ${ifName} leaves nothing on the host`);
  return 3;
}

const needs: Need[] = ["bridge", "veth"];

/** The numbers are a part of what is promised. */
function note(text: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));
}

nodeTest("every printable character in the names of bridge and its container's link", { needs }, async ({ node }) => {
  const pod = await node.container("a");
  await Promise.all([decoys(node), decoys(pod)]);
  let calls = 0;
  for (const name of EACH) {
    const bridge = `b${name}`;
    const conf = {
      cniVersion: "1.1.0",
      name: "net1",
      type: "bridge",
      bridge,
      isGateway: true,
      forceAddress: true,
      ipam,
    };
    calls += await roundTrip(node, pod, { conf, ifName: name, own: [bridge] });
    const [made] = await node.ipJson("addr", "show", "dev", bridge);
    assertEquals(made.addr_info.find((one: Json) => one.family === "inet").local, "10.22.0.1", bridge);
    await node.run("ip", "link", "del", "dev", bridge);
  }
  assertEquals(calls, 3 * EACH.length);
  note(`bridge: ${EACH.length} names, ${calls} calls, no other link changed`);
});

nodeTest("every printable character at every place of the names that other plugins are told", {
  needs: [...needs, "macvlan"],
}, async ({ node }) => {
  const pod = await node.container("a");
  await Promise.all([decoys(node), decoys(pod)]);
  let calls = 0;
  const net = (more: Json): Json => ({ cniVersion: "1.1.0", name: "net1", ...more });
  for (const signs of FEW) {
    let name = turned(signs, 0);
    await node.run("ip", "link", "add", "name", name, "up", "type", "bridge");
    const macvlan = net({ type: "macvlan", master: name, ipam });
    calls += await roundTrip(node, pod, { conf: macvlan, ifName: turned(signs, 1), own: [name] });
    await node.run("ip", "link", "del", "dev", name);

    calls += await roundTrip(node, pod, { conf: net({ type: "ptp", ipam }), ifName: turned(signs, 2), own: [] });

    name = turned(signs, 3);
    await node.run("ip", "link", "add", "name", name, "type", "veth", "peer", "name", "peer0");
    const device = net({ type: "host-device", device: name, ipam });
    calls += await roundTrip(node, pod, { conf: device, ifName: turned(signs, 4), own: [name, "peer0"] });
    assert((await linksOf(node)).has(name), `${name} is back`);
    await node.run("ip", "link", "del", "dev", name);

    await pod.run("ip", "link", "add", "name", name, "up", "type", "bridge");
    const tuning = { type: "tuning", mtu: 1300, sysctl: { "net.ipv4.conf.IFNAME.arp_notify": "1" } };
    const tap = net({ plugins: [{ type: "tap", bridge: name }, tuning] });
    calls += 2 * await roundTrip(node, pod, { conf: tap, ifName: turned(signs, 1), own: [name] });
    await pod.run("ip", "link", "del", "dev", name);
  }
  assertEquals(calls, 15 * FEW.length);
  note(`macvlan, ptp, host-device, tap, tuning: ${FEW.length} names of five signs, ${calls} calls`);
});

nodeTest("ours and the reference make and delete the same links, whatever a tool would read into their names", {
  needs: [...needs, "reference"],
}, async ({ node }) => {
  const pod = await node.container("a");
  await Promise.all([decoys(node), decoys(pod)]);
  const bridge = { cniVersion: "1.1.0", name: "net1", type: "bridge", bridge: "cni0", ipam };
  const cases: [Json, string][] = [
    [bridge, "eth0#x"],
    [{ ...bridge, bridge: "br#1", isGateway: true, forceAddress: true }, "eth1"],
    [{ cniVersion: "1.1.0", name: "net1", type: "ptp", ipam }, "eth0#1"],
    [{ cniVersion: "1.1.0", name: "net1", type: "host-device", device: "dev0" }, "net1#a"],
    [bridge, "if2"],
    [{ ...bridge, bridge: "if3" }, "eth1"],
    [bridge, "-x"],
    [bridge, "up"],
    [bridge, `'"`],
    [bridge, "\\"],
  ];
  for (const [conf, ifName] of cases) {
    for (const [adder, deleter] of [["ref", "cnibox"], ["cnibox", "ref"], ["cnibox", "cnibox"]] as const) {
      if (conf.type === "host-device") await node.ip("link add dev0 type veth peer name peer0");
      const before = [await linksOf(node), await linksOf(pod)];
      const one = new Attachment(node, conf, pod, { ifName });
      await one.add(adder);
      await one.check(deleter);
      await one.del(deleter);
      const after = [await linksOf(node), await linksOf(pod)];
      after[0]!.delete(conf.bridge);
      if (conf.type === "host-device") { for (const all of [before, after]) all[0]!.delete("dev0"); }
      assertEquals(after, before, `${adder} adds ${ifName}, ${deleter} deletes it`);
      await node.sh('ip link del dev "$1" 2>/dev/null || :', conf.type === "host-device" ? "dev0" : conf.bridge ?? "");
    }
  }
});

nodeTest("names that no link can have are refused by ADD, never by DEL", { needs }, async ({ node }) => {
  const pod = await node.container("a");
  const stdin = { cniVersion: "1.1.0", name: "net1", type: "bridge", bridge: "cni0", ipam };
  const before = [await snapshot(node), await snapshot(pod)];
  for (const ifName of ["a%b", "a%d", "%"]) {
    const { code, msg } = await failure(node, { type: "bridge", command: "ADD", netns: pod, ifName, stdin });
    assertEquals([code, msg], [4, "interface name contains characters that no link can be made with"]);
    await call(node, { type: "bridge", command: "DEL", netns: pod, ifName, stdin });
  }
  for (const name of ["a%b", "a:b", "a b", "a/b", "\u00e0"]) {
    const conf = { ...stdin, bridge: name };
    const { msg } = await failure(node, { type: "bridge", command: "ADD", netns: pod, stdin: conf });
    assertEquals(msg, `failed to create bridge "${name}": could not add "${name}": invalid argument`);
    await call(node, { type: "bridge", command: "DEL", netns: pod, stdin: conf });
  }
  assertSameState(before[0]!, await snapshot(node));
  assertSameState(before[1]!, await snapshot(pod));
});

nodeTest(
  "an interface that iproute2 would take for a number is not deleted in another's place",
  { needs },
  async ({ node }) => {
    const pod = await node.container("a");
    await decoys(pod, ["x", "y"]);
    const before = await linksOf(pod);
    for (const [, { ifindex }] of (await pod.ipJson("link", "show", "type", "bridge")).entries()) {
      for (const ifName of [`if${ifindex}`, `if${ifindex}x`, `if0${ifindex}`]) {
        for (const type of ["bridge", "ptp", "macvlan", "tap", "host-device", "tuning"]) {
          const stdin = { cniVersion: "1.1.0", name: "net1", type, device: "none", master: "none", ipam };
          await call(node, { type, command: "DEL", netns: pod, ifName, stdin });
        }
      }
    }
    assertEquals(await linksOf(pod), before);
  },
);

nodeTest("a bridge by its alternative name is the bridge: results, CHECK, firewall's isolation", {
  needs: [...needs, "iptables"],
}, async ({ node }) => {
  await node.ip("link add lan type bridge");
  await node.run("ip", "link", "property", "add", "dev", "lan", "altname", "lan-of-pods");
  const conf = (bridge: string, subnet: string, name: string) => ({
    cniVersion: "1.1.0",
    name,
    plugins: [{
      type: "bridge",
      bridge,
      isDefaultGateway: true,
      ipam: { type: "host-local", ranges: [[{ subnet }]] },
    }, { type: "firewall", ingressPolicy: "same-bridge" }],
  });
  const [a, b, c] = [await node.container("a"), await node.container("b"), await node.container("c")];
  const one = new Attachment(node, conf("lan-of-pods", "10.22.0.0/24", "net1"), a);
  const two = new Attachment(node, conf("cni2", "10.23.0.0/24", "net2"), b);
  const three = new Attachment(node, conf("lan-of-pods", "10.22.0.0/24", "net1"), c);
  const [result, other] = [await one.add(), await two.add(), await three.add()];
  assertEquals(result.interfaces[0].name, "lan");
  assertMatch(await node.run("iptables-save"), /-A CNI-ISOLATION-STAGE-2 -o lan /);
  await one.check();
  const [mine, his] = [result, other].map(({ ips }) => ips[0].address.split("/")[0]);
  await assertNoPing(b, mine);
  await assertNoPing(a, his);
  await assertPings(c, mine);
  // As an ADD wrote it that knew the bridge by the other name.
  const old = {
    ...result,
    interfaces: [{ ...result.interfaces[0], name: "lan-of-pods" }, ...result.interfaces.slice(1)],
  };
  for (const plugin of one.network.plugins) {
    const stdin = one.request(plugin, old);
    await call(node, { type: plugin.type, command: "CHECK", netns: a, stdin });
  }
  for (const attachment of [one, two, three]) await attachment.del();
  const children = new Map<string, string[]>();
  // A port that is late to forward costs one process more: the least of three counts.
  for (let attempt = 0; attempt < 3; attempt++) {
    for (const bridge of ["lan", "lan-of-pods"]) {
      const plugin = { ...one.network.plugins[0]!, bridge };
      const asked = { type: "bridge", netns: a };
      for (const [command, previous] of [["ADD"], ["DEL", result]] as const) {
        const key = `${bridge} ${command}`;
        const programs = childPrograms(
          await tracePlugin(node, { ...asked, command, stdin: one.request(plugin, previous) }),
        );
        if (programs.length < (children.get(key)?.length ?? Infinity)) children.set(key, programs);
      }
    }
  }
  for (const command of ["ADD", "DEL"]) {
    assertEquals(
      children.get(`lan-of-pods ${command}`),
      children.get(`lan ${command}`),
      "the other name costs no process",
    );
  }
});

nodeTest("a route that the kernel cannot have is named, in the reference's words, and no script is shown", {
  needs: [...needs, "reference"],
}, async ({ node }) => {
  const pod = await node.container("a");
  const asked = (route: Json, by: "ref" | "cnibox") => {
    const given = { ...ipam, addresses: [...ipam.addresses, { address: "fd00:22::2/64" }], routes: [route] };
    const stdin = { cniVersion: "1.1.0", name: "net1", type: "bridge", bridge: "cni0", isGateway: true, ipam: given };
    return { type: "bridge", command: "ADD", netns: pod, stdin, by };
  };
  for (const route of [{ dst: "10.20.0.0/16", gw: "fd00:22::1" }, { dst: "fd01::/64", gw: "10.22.0.1" }]) {
    const before = await snapshot(pod);
    const { msg, details } = await failure(node, asked(route, "cnibox"));
    assertSameState(before, await snapshot(pod));
    const theirs = await failure(node, asked(route, "ref"));
    assertEquals(msg, theirs.msg);
    assertEquals(details, `the route to ${route.dst}: "gw" is ${route.gw}; IPv4 and IPv6 do not mix`);
    await runPlugin(node, { ...asked(route, "ref"), command: "DEL" });
  }
  const numbers = [["mtu", 4294967296], ["advmss", -5], ["priority", 4294967297], ["table", -1], [
    "scope",
    256,
  ]] as const;
  for (const [key, value] of numbers) {
    const { msg, details } = await failure(node, asked({ dst: "10.20.0.0/16", [key]: value }, "cnibox"));
    assertMatch(msg, /^failed to add route '\{10\.20\.0\.0 ffff0000\} via .*\)': numerical result out of range$/);
    assertMatch(details ?? "", new RegExp(`^the route to 10.20.0.0/16: "${key}" is ${value}: 0 to `));
  }
});
