/** Pains of bridge: neighbours that know an old MAC, addresses in the way, many at once, MACs and MTUs that change. */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { Attachment, eventually, type Json, type Need, ping } from "../e2e/support/mod.ts";
import { bridgeNet, painTest, play, rulesWith, said } from "./support.ts";

const bridge: Need[] = ["bridge", "veth"];

painTest(
  "P858, P756, P463: an address with a new MAC answers host and neighbours right after ADD",
  bridge,
  async ({ node, by }) => {
    const conf = (address: string, mac: string) =>
      bridgeNet({
        ipMasq: false,
        ipam: { type: "static", addresses: [{ address, gateway: "10.22.0.1" }] },
        runtimeConfig: { mac },
      });
    const neighbour = await node.container("n");
    await new Attachment(node, conf("10.22.0.9/24", "02:00:00:00:00:09"), neighbour).add(by);
    // Whatever was learnt within the last second is kept else.
    for (const [from, dev] of [[neighbour, "eth0"], [node, "br1"]] as const) {
      await from.sysctl(`ipv4/neigh/${dev}/locktime`, 0);
    }
    const answers: Record<string, boolean> = {};
    for (const mac of ["02:00:00:00:00:01", "02:00:00:00:00:02"]) {
      const pod = await node.container(`o${mac.slice(-1)}`);
      const one = new Attachment(node, conf("10.22.0.5/24", mac), pod);
      await one.add(by);
      for (const [who, from] of [["neighbour", neighbour], ["host", node]] as const) {
        answers[`${who} ${mac}`] = await ping(from, "10.22.0.5", { tries: 2 });
      }
      // An entry in use, for some time yet.
      for (const [from, dev] of [[neighbour, "eth0"], [node, "br1"]] as const) {
        await from.ip(`neigh replace 10.22.0.5 lladdr ${mac} dev ${dev} nud reachable`);
      }
      // No DEL, as after a crash. A kernel takes its time to end a namespace.
      await node.removeContainer(pod);
      await eventually(
        "the link is gone",
        async () => (await node.ipJson("link", "show", "type", "veth")).length === 1,
      );
    }
    return answers;
  },
  (answers) => assertEquals([...new Set(Object.values(answers))], [true]),
);

painTest(
  "podman 12306: an address in the way is listed, with the wanted one and the way out",
  bridge,
  async ({ node, by }) => {
    await node.ip("link add br1 type bridge", "addr add 10.1.0.1/16 dev br1", "link set br1 up");
    const netns = await node.container("a");
    const { json } = await play({ node, by }, { type: "bridge", command: "ADD", netns, stdin: bridgeNet() });
    return { msg: json.msg, details: json.details ?? "" };
  },
  ({ msg, details }) => {
    assertEquals(msg, 'failed to set bridge addr: "br1" already has an IP address different from 10.22.0.1/24');
    for (const part of ["10.1.0.1/16", "ip addr del 10.1.0.1/16 dev br1"]) assertStringIncludes(details, part);
  },
);

painTest(
  "P366: a dozen containers at once on a fresh node all get their link",
  [...bridge, "iptables"],
  async ({ node, by }) => {
    const pods = await Promise.all(Array.from({ length: 12 }, (_, i) => node.container(`p${i}`)));
    const conf = bridgeNet({ isDefaultGateway: false, isGateway: true });
    const outputs = await Promise.all(
      pods.map((netns) => play({ node, by }, { type: "bridge", command: "ADD", netns, stdin: conf })),
    );
    return outputs.map(said).filter((text) => text !== "done");
  },
  [],
);

painTest(
  "P102: IPv6 that is switched off is named where an IPv6 address is asked for, and no matter for IPv4",
  bridge,
  async ({ node, by }) => {
    await node.sysctl("ipv6/conf/all/disable_ipv6", 1);
    await node.sysctl("ipv6/conf/default/disable_ipv6", 1);
    const netns = await node.container("a");
    await netns.sysctl("ipv6/conf/default/disable_ipv6", 1);
    const six = { type: "host-local", ranges: [[{ subnet: "fd00:22::/64" }]] };
    const add = async (more: Json) => {
      const stdin = bridgeNet({ ipMasq: false, ...more });
      const { code, json } = await play({ node, by }, { type: "bridge", command: "ADD", netns, stdin });
      return code === 0 ? "done" : `${json.msg}: ${json.details ?? ""}`;
    };
    return { six: await add({ ipam: six, bridge: "br6", name: "six" }), four: await add({}) };
  },
  ({ six, four }) => {
    assertMatch(six, /permission denied/);
    assertStringIncludes(six, "sysctl net/ipv6/conf/br6/disable_ipv6");
    assertEquals(four, "done");
  },
);

painTest(
  "P680, CVE-2020-10749: IPv6 addresses are ready when ADD returns, and the host believes no container that plays router",
  bridge,
  async ({ node, by }) => {
    const netns = await node.container("a");
    const conf = bridgeNet({ ipMasq: false, ipam: { type: "host-local", ranges: [[{ subnet: "fd00:22::/64" }]] } });
    await new Attachment(node, conf, netns).add(by);
    const [{ addr_info }] = await netns.ipJson("addr", "show", "dev", "eth0");
    const address = addr_info.find(({ local }: Json) => local === "fd00:22::2");
    return {
      tentative: address?.tentative ?? false,
      answers: await ping(node, "fd00:22::2", { tries: 1 }),
      hostListens: await node.sh("cat /proc/sys/net/ipv6/conf/br1/accept_ra /proc/sys/net/ipv6/conf/veth*/accept_ra"),
    };
  },
  { tentative: false, answers: true, hostListens: "0\n0\n" },
);

painTest(
  "P805, C285: the bridge keeps its MAC while containers come and go, without a gateway too",
  bridge,
  async ({ node, by }) => {
    const conf = bridgeNet({ ipMasq: false, isDefaultGateway: false, isGateway: false });
    const seen = new Set<string>();
    const look = async () => void seen.add((await node.ipJson("link", "show", "br1"))[0].address);
    for (let i = 0; i < 4; i++) {
      const one = new Attachment(node, conf, await node.container(`c${i}`));
      await one.add(by);
      await look();
      if (i % 2) {
        await one.del(by);
        await look();
      }
    }
    return seen.size;
  },
  1,
);

painTest(
  "P393: an MTU that the bridge does not carry is told, with both numbers",
  bridge,
  async ({ node, by }) => {
    await node.ip("link add br1 mtu 1400 type bridge", "link set br1 up");
    await new Attachment(node, bridgeNet({ ipMasq: false, mtu: 1400 }), await node.container("a")).add(by);
    const netns = await node.container("b");
    const stdin = bridgeNet({ ipMasq: false, mtu: 9000 });
    const output = await play({ node, by }, { type: "bridge", command: "ADD", netns, stdin });
    const mtus = output.json?.interfaces?.map(({ mtu }: Json) => mtu ?? 0) ?? [];
    return { code: output.code, notes: output.stderr.trim(), mtus };
  },
  ({ code, notes, mtus }) => {
    assertEquals(code, 0);
    for (const number of ["1400", "9000"]) assertStringIncludes(notes, number);
    assert(mtus.includes(9000), String(mtus));
  },
);

painTest(
  "P620: a MAC that no link can have is named with where it came from",
  bridge,
  async ({ node, by }) => {
    const netns = await node.container("a");
    const stdin = bridgeNet({ ipMasq: false, runtimeConfig: { mac: "01:00:00:00:00:01" } });
    const { json } = await play({ node, by }, { type: "bridge", command: "ADD", netns, stdin });
    return `${json.msg}: ${json.details ?? ""}`;
  },
  (seen) => {
    assertStringIncludes(seen, "failed to make veth pair");
    assertStringIncludes(seen, "01:00:00:00:00:01");
    assertMatch(seen, /needs a unicast address/);
  },
);

painTest(
  "C215, C925: masquerade rules do not add up while one container comes and goes by crashes",
  [...bridge, "iptables"],
  async ({ node, by }) => {
    for (let round = 0; round < 3; round++) {
      const pod = await node.container("a");
      await new Attachment(node, bridgeNet(), pod).add(by);
      await node.removeContainer(pod);
      await play({ node, by }, { type: "bridge", command: "DEL", netns: null, containerId: "a", stdin: bridgeNet() });
    }
    return await rulesWith(node, "CNI-");
  },
  0,
);
