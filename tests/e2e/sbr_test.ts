/** sbr with real routes: answers that find their way back, tables that stay apart, and life beside the reference. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import type { Namespace, Node } from "./support/node.ts";
import { type By, call, type Json, PluginFailed } from "./support/plugins.ts";
import { childPrograms, type Trace, tracePlugin } from "./support/trace.ts";
import { interopTest, nodeTest } from "./support/test.ts";

/**
 * A container between two worlds that know nothing of each other: eth0 to `left` with the default routes, net1 to
 * `right`. In `right` there is 198.51.100.1 / 2001:db8:51::1, which only that side can answer to.
 */
async function between(node: Node): Promise<{ pod: Namespace; right: Namespace }> {
  const [pod, left, right] = [
    await node.container("ctr1"),
    await node.container("left"),
    await node.container("right"),
  ];
  // Link-local addresses are ready at once.
  for (const one of [pod, left, right]) await one.sysctl("ipv6/conf/default/accept_dad", 0);
  await pod.ip(
    "link set lo up",
    `link add eth0 type veth peer name eth0 netns ${left.netns}`,
    `link add net1 type veth peer name eth0 netns ${right.netns}`,
  );
  for (const [at, world] of [[1, left], [2, right]] as const) {
    await world.ip(
      "link set lo up",
      "link set eth0 up",
      `addr add 10.${at}.0.1/24 dev eth0`,
      `addr add fd00:${at}::1/64 dev eth0 nodad`,
    );
    const name = at === 1 ? "eth0" : "net1";
    await pod.ip(
      `addr add 10.${at}.0.2/24 dev ${name}`,
      `addr add fd00:${at}::2/64 dev ${name} nodad`,
      `link set ${name} up`,
    );
  }
  await pod.ip("route add default via 10.1.0.1", "route add ::/0 via fd00:1::1");
  await right.ip("addr add 198.51.100.1/32 dev lo", "addr add 2001:db8:51::1/128 dev lo nodad");
  return { pod, right };
}

function request(pod: Namespace, more: Json = {}, ifName = "net1") {
  const prevResult = {
    cniVersion: "1.1.0",
    interfaces: [{ name: "net1", sandbox: pod.netns }],
    ips: [
      { address: "10.2.0.2/24", gateway: "10.2.0.1", interface: 0 },
      { address: "fd00:2::2/64", gateway: "fd00:2::1", interface: 0 },
    ],
  };
  return { type: "sbr", netns: pod, ifName, stdin: { cniVersion: "1.1.0", name: "mynet", prevResult, ...more } };
}

async function answers(right: Namespace): Promise<boolean[]> {
  const ping = async (from: string, to: string) =>
    (await right.exec(["ping", "-c", "1", "-W", "1", "-I", from, to])).code === 0;
  return [await ping("198.51.100.1", "10.2.0.2"), await ping("2001:db8:51::1", "fd00:2::2")];
}

/** Rules that are not the kernel's own, without their priorities. */
async function rules(pod: Namespace): Promise<string[]> {
  const both = [await pod.run("ip", "rule"), await pod.run("ip", "-6", "rule")].join("");
  return both.split("\n").filter((line) => line && !/lookup (local|main|default)$/.test(line))
    .map((line) => line.replace(/^\d+:\s*/, "").trim());
}

async function routes(pod: Namespace, table: string | number): Promise<string[]> {
  const list = async (family: string) =>
    (await pod.exec(["ip", family, "route", "show", "table", String(table)])).stdout;
  return [await list("-4"), await list("-6")].join("").split("\n").map((line) => line.trim()).filter((line) =>
    line !== ""
  );
}

nodeTest(
  "sbr sends answers back by the interface that the question came in on",
  { needs: ["veth"] },
  async ({ node }) => {
    const { pod, right } = await between(node);
    assertEquals(await answers(right), [false, false], "without sbr the answers go the other way");
    await call(node, { command: "ADD", ...request(pod) });
    assertEquals(await answers(right), [true, true]);
    assertEquals(await rules(pod), ["from 10.2.0.2 lookup 100", "from fd00:2::2 lookup 101"]);
    assertEquals(await routes(pod, "main"), (await routes(pod, "main")).filter((line) => !line.includes("net1")));
    await call(node, { command: "CHECK", ...request(pod) });
    await call(node, { command: "DEL", ...request(pod) });
    assertEquals(await answers(right), [false, false]);
    assertEquals([await rules(pod), await routes(pod, 100), await routes(pod, 101)], [[], [], []]);
    await call(node, { command: "DEL", ...request(pod) });
  },
);

nodeTest("sbr keeps two interfaces of one subnet apart", { needs: ["veth"] }, async ({ node }) => {
  const pod = await node.container();
  const lan = await node.container("lan");
  await lan.ip("link add br0 type bridge", "link set br0 up", "addr add 10.3.0.1/24 dev br0");
  for (const at of [1, 2]) {
    await pod.ip(`link add net${at} type veth peer name p${at} netns ${lan.netns}`, `link set net${at} up`);
    await lan.ip(`link set p${at} master br0 up`);
    await pod.ip(`addr add 10.3.0.1${at}/24 dev net${at}`);
    await call(node, {
      type: "sbr",
      command: "ADD",
      netns: pod,
      ifName: `net${at}`,
      stdin: {
        cniVersion: "1.0.0",
        name: "mynet",
        prevResult: {
          cniVersion: "1.0.0",
          interfaces: [{ name: `net${at}`, sandbox: pod.netns }],
          ips: [{ address: `10.3.0.1${at}/24`, gateway: "10.3.0.1", interface: 0 }],
        },
      },
    });
  }
  for (const at of [1, 2]) {
    const [route] = JSON.parse(await pod.run("ip", "-j", "route", "get", "192.0.2.1", "from", `10.3.0.1${at}`));
    assertEquals([route.dev, route.gateway], [`net${at}`, "10.3.0.1"]);
    await lan.run("ping", "-c", "1", "-W", "2", `10.3.0.1${at}`);
  }
});

nodeTest("sbr moves every kind of route, and loses none", { needs: ["veth"] }, async ({ node }) => {
  const { pod } = await between(node);
  await pod.ip(
    "route add 10.90.0.0/16 via 10.2.0.7 dev net1 mtu 1300 metric 5",
    "route add 10.91.0.0/16 via 10.99.0.1 dev net1 onlink",
    "route add 10.92.0.0/16 dev net1 scope link",
    "route add 10.93.0.0/16 nexthop via 10.2.0.7 dev net1 nexthop via 10.2.0.8 dev net1",
    "route add 10.94.0.0/16 nexthop via 10.2.0.7 dev net1 nexthop via 10.1.0.7 dev eth0",
    "route add blackhole 10.95.0.0/16",
    "route add 10.96.0.0/16 via 10.2.0.1 table 777",
    "route add fd90::/64 via fe80::1 dev net1 metric 7",
    "addr add 10.7.0.5/24 dev net1",
  );
  await call(node, { command: "ADD", ...request(pod) });
  const [main, four, six] = [await routes(pod, "main"), await routes(pod, 100), await routes(pod, 101)];
  const has = (list: string[], ...words: string[]) =>
    words.forEach((word) => assert(list.some((line) => line.startsWith(word)), `${word} in:\n${list.join("\n")}`));
  has(four, "default via 10.2.0.1", "10.2.0.0/24 dev net1 proto kernel scope link src 10.2.0.2");
  has(
    four,
    "10.90.0.0/16 via 10.2.0.7 dev net1 metric 5 mtu 1300",
    "10.91.0.0/16 via 10.99.0.1 dev net1 onlink",
    "10.92.0.0/16 dev net1 scope link",
    "10.93.0.0/16",
  );
  has(six, "default via fd00:2::1", "fd00:2::/64", "fd90::/64 via fe80::1 dev net1 metric 7", "fe80::/64");
  assertEquals(four.filter((line) => line.includes(":")), [], "no IPv6 in the table of an IPv4 address");
  has(main, "default via 10.1.0.1", "10.94.0.0/16", "blackhole 10.95.0.0/16", "10.7.0.0/24");
  assertEquals(main.filter((line) => /^10\.9[0123]\.|^10\.2\./.test(line)), []);
  assertEquals(await routes(pod, 777), ["10.96.0.0/16 via 10.2.0.1 dev net1"]);
});

nodeTest("sbr ADD twice, DEL, ADD: the same rules once", { needs: ["veth"] }, async ({ node }) => {
  const { pod, right } = await between(node);
  const connected = [
    "route add 10.2.0.0/24 dev net1 proto kernel scope link src 10.2.0.2",
    "route add fd00:2::/64 dev net1",
  ];
  for (const command of ["ADD", "ADD", "DEL", "ADD"]) {
    // As a runtime would have it: the link is new after DEL, and its routes with it.
    if (command === "DEL") await call(node, { command, ...request(pod) });
    else await call(node, { command, ...request(pod) });
    if (command === "DEL") await pod.ip(...connected);
  }
  assertEquals(await rules(pod), ["from 10.2.0.2 lookup 100", "from fd00:2::2 lookup 101"]);
  assertEquals(await answers(right), [true, true]);
});

nodeTest(
  "sbr passes tables over that others use, with rules or with routes alone",
  { needs: ["veth"] },
  async ({ node }) => {
    const { pod } = await between(node);
    await pod.ip("rule add from 10.55.0.1 lookup 100", "route add 10.56.0.0/16 via 10.1.0.1 table 101");
    await pod.run("ip", "-6", "rule", "add", "from", "fd55::1", "lookup", "102");
    await call(node, { command: "ADD", ...request(pod) });
    assertEquals((await rules(pod)).sort(), [
      "from 10.2.0.2 lookup 103",
      "from 10.55.0.1 lookup 100",
      "from fd00:2::2 lookup 104",
      "from fd55::1 lookup 102",
    ]);
  },
);

nodeTest("sbr for two interfaces at once: each address has its own table", { needs: ["veth"] }, async ({ node }) => {
  for (let round = 0; round < 3; round++) {
    const pod = await node.container(`many${round}`);
    const names = Array.from({ length: 6 }, (_, at) => `net${at}`);
    for (const [at, name] of names.entries()) {
      await pod.ip(
        `link add ${name} type veth peer name p${at}`,
        `link set ${name} up`,
        `link set p${at} up`,
        `addr add 10.4.${at}.2/24 dev ${name}`,
      );
    }
    await Promise.all(names.map((ifName, at) =>
      call(node, {
        type: "sbr",
        command: "ADD",
        netns: pod,
        ifName,
        stdin: {
          cniVersion: "1.0.0",
          name: "mynet",
          prevResult: { cniVersion: "1.0.0", ips: [{ address: `10.4.${at}.2/24`, gateway: `10.4.${at}.1` }] },
        },
      })
    ));
    const tables = (await rules(pod)).map((line) => line.split("lookup ")[1]);
    assertEquals(tables.sort(), ["100", "101", "102", "103", "104", "105"]);
  }
});

nodeTest("sbr ADD that fails changes nothing and says the same again", { needs: ["veth"] }, async ({ node }) => {
  const { pod } = await between(node);
  await pod.ip("route add 10.90.0.0/16 via 10.2.0.7 dev net1");
  const now = async () => [(await routes(pod, "all")).sort(), await rules(pod)];
  const before = await now();
  const conf = request(pod, { gateways: ["10.77.0.1"] });
  for (let time = 0; time < 2; time++) {
    const failed = await assertRejects(() => call(node, { command: "ADD", ...conf }), PluginFailed);
    assertEquals(failed.error.msg, "Failed to add default route to 10.77.0.1: network is unreachable");
    assertEquals(await now(), before);
  }
});

nodeTest("sbr with a table adds rules only, once", { needs: ["veth"] }, async ({ node }) => {
  const { pod, right } = await between(node);
  await pod.ip("route add 10.2.0.0/24 dev net1 table 5000", "route add default via 10.2.0.1 table 5000");
  const before = await routes(pod, "main");
  for (let time = 0; time < 2; time++) await call(node, { command: "ADD", ...request(pod, { table: 5000 }) });
  assertEquals(await rules(pod), ["from 10.2.0.2 lookup 5000", "from fd00:2::2 lookup 5000"]);
  assertEquals(await routes(pod, "main"), before);
  assertEquals((await answers(right))[0], true);
  await call(node, { command: "CHECK", ...request(pod, { table: 5000 }) });
  await call(node, { command: "DEL", ...request(pod, { table: 5000 }) });
  assertEquals(await rules(pod), []);
  assertEquals((await routes(pod, 5000)).length, 2);
});

nodeTest("sbr with hints leaves the way to the own subnet in the main table", { needs: ["veth"] }, async ({ node }) => {
  const { pod, right } = await between(node);
  await call(node, { command: "ADD", ...request(pod, { addSourceHints: true, gateways: ["fd00:2::1"] }) });
  const main = (await routes(pod, "main")).filter((line) => line.includes("net1"));
  assertEquals(main, [
    "10.2.0.0/24 dev net1 scope link src 10.2.0.2",
    "fd00:2::/64 dev net1 src fd00:2::2 metric 1024 pref medium",
  ]);
  assertEquals(await answers(right), [true, true]);
  await pod.run("ping", "-c", "1", "-W", "2", "10.2.0.1");
  await pod.run("ping", "-c", "1", "-W", "2", "fd00:2::1");
});

nodeTest(
  "sbr DEL leaves other rules alone, and works without link, namespace and prevResult",
  { needs: ["veth"] },
  async ({ node }) => {
    const { pod } = await between(node);
    await call(node, { command: "ADD", ...request(pod) });
    await pod.ip("rule add from 10.2.0.2 lookup 77", "rule add from 10.2.0.2 fwmark 5 lookup 100");
    await pod.ip("link del net1");
    await call(node, { command: "DEL", ...request(pod) });
    assertEquals(await rules(pod), ["from 10.2.0.2 fwmark 0x5 lookup 100", "from 10.2.0.2 lookup 77"]);
    await call(node, { command: "DEL", ...request(pod, { prevResult: 5, table: "x" }) });
    await node.removeContainer(pod);
    await call(node, { command: "DEL", ...request(pod) });
    await call(node, { command: "DEL", ...request(pod), netns: null, containerId: "ctr1" });
    assertEquals((await node.list("/run/netns")).includes("ctr1"), false, "DEL makes no file where the namespace was");
  },
);

nodeTest("sbr CHECK notices what is gone", { needs: ["veth"] }, async ({ node }) => {
  const { pod } = await between(node);
  await call(node, { command: "ADD", ...request(pod) });
  const damage: [command: string, msg: string][] = [
    ["-6 route del default table 101", "table 101 of fd00:2::2 has no default route"],
    ["rule del from 10.2.0.2 lookup 100", "no rule leads from 10.2.0.2 to a table of its own"],
  ];
  for (const [command, msg] of damage) {
    await pod.run("ip", ...command.split(" "));
    const failed = await assertRejects(() => call(node, { command: "CHECK", ...request(pod) }), PluginFailed);
    assertEquals(failed.error.msg, msg);
  }
});

nodeTest("sbr works without IPv6 in the container", { needs: ["veth"] }, async ({ node }) => {
  const pod = await node.container();
  await pod.sysctl("ipv6/conf/all/disable_ipv6", 1);
  await pod.sysctl("ipv6/conf/default/disable_ipv6", 1);
  await pod.ip(
    "link add net1 type veth peer name p",
    "link set net1 up",
    "link set p up",
    "addr add 10.2.0.2/24 dev net1",
  );
  const prevResult = { cniVersion: "1.1.0", ips: [{ address: "10.2.0.2/24", gateway: "10.2.0.1" }] };
  await call(node, { command: "ADD", ...request(pod, { prevResult }) });
  await call(node, { command: "CHECK", ...request(pod, { prevResult }) });
  await call(node, { command: "DEL", ...request(pod, { prevResult }) });
  assertEquals(await rules(pod), []);
});

nodeTest("sbr starts no more programs than it must", { needs: ["veth", "tool:strace"] }, async ({ node }) => {
  const { pod } = await between(node);
  const programs = async (command: string) => {
    const trace = await tracePlugin(node, { command, ...request(pod) });
    assertEquals(trace.output.code, 0, trace.output.stdout);
    return toolsOf(trace);
  };
  // Two list, one for each family changes.
  assertEquals(await programs("ADD"), ["ip", "ip", "ip", "ip"]);
  assertEquals(await programs("CHECK"), ["ip", "ip"]);
  assertEquals(await programs("DEL"), ["ip", "ip", "ip", "ip"]);
  assertEquals(await programs("DEL"), ["ip", "ip"]);
});

interopTest(
  "sbr",
  { needs: ["veth"] },
  async ({ adder, checker, deleter }: Record<"adder" | "checker" | "deleter", By>, node) => {
    const { pod, right } = await between(node);
    await call(node, { command: "ADD", by: adder, ...request(pod) });
    assertEquals(await answers(right), [true, true]);
    await call(node, { command: "CHECK", by: checker, ...request(pod) });
    await call(node, { command: "DEL", by: deleter, ...request(pod) });
    assertEquals(await rules(pod), []);
  },
);

interopTest("sbr with a table", { needs: ["veth"] }, async ({ adder, checker, deleter }, node) => {
  const { pod } = await between(node);
  await call(node, { command: "ADD", by: adder, ...request(pod, { table: 5000 }) });
  assertEquals((await rules(pod)).length, 2);
  await call(node, { command: "CHECK", by: checker, ...request(pod, { table: 5000 }) });
  await call(node, { command: "DEL", by: deleter, ...request(pod, { table: 5000 }) });
  assertEquals(await rules(pod), []);
});

/** What was started; nsenter and the shell become a tool, they are no processes of their own. */
function toolsOf(trace: Trace): string[] {
  return childPrograms(trace).filter((name) => name !== "nsenter" && name !== "sh");
}
