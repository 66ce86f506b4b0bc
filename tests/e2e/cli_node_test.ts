/**
 * The node for its operator: status, networks, inspect, one container in detail, filters, and names that nobody has.
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { type Json, type Node, nodeTest } from "./support/mod.ts";
import { cnibox, configure, must } from "./support/operator.ts";

const network = (name: string, bridge: string, subnet: string) => ({
  cniVersion: "1.1.0",
  name,
  plugins: [
    {
      type: "bridge",
      bridge,
      isGateway: true,
      ipMasq: true,
      ipam: { type: "host-local", ranges: [[{ subnet }]], routes: [{ dst: "0.0.0.0/0" }] },
    },
    { type: "portmap", capabilities: { portMappings: true } },
  ],
});

/** Pods as a kubelet makes them, and a container that has no pod. */
async function pods(node: Node): Promise<void> {
  await configure(node, network("front", "br-front", "10.88.0.0/24"));
  await configure(node, network("back", "br-back", "10.89.0.0/24"), "20-back.conflist");
  for (const [at, name] of ["web-10", "web-2"].entries()) {
    await node.container(name);
    const pod = ["--arg", "IgnoreUnknown=1", "--arg", "K8S_POD_NAMESPACE=shop", "--arg", `K8S_POD_NAME=${name}`];
    await must(node, ["add", "front", name, "--id", `${at + 1}`.repeat(64), ...pod, "-p", `${8080 + at}:80`]);
  }
  await node.container("plain");
  await must(node, ["add", "back", "plain", "--id", "plain"]);
}

const NEEDS = { needs: ["bridge" as const, "veth" as const, "iptables" as const] };

nodeTest("cnibox networks and inspect tell what is configured, how full it is, and what is attached", NEEDS, async ({
  node,
}) => {
  await pods(node);
  const { stdout } = await must(node, ["networks"]);
  assertMatch(stdout, /^NETWORK +PLUGINS +SUBNETS +ADDRESSES +ATTACHED +FILE\n/);
  assertMatch(stdout, /^back +bridge, portmap +10\.89\.0\.0\/24 +1 of 253 +1 +20-back\.conflist$/m);
  assertMatch(stdout, /^front +bridge, portmap +10\.88\.0\.0\/24 +2 of 253 +2 +10-front\.conflist$/m);
  assertEquals((await must(node, ["networks", "-q"])).stdout, "back\nfront\n");
  assertEquals((await must(node, ["networks", "--no-headings"])).stdout.split("\n").length, 3);
  const { json } = await must(node, ["networks", "--json"]);
  assertEquals(json.version, 1);
  assertEquals(
    json.networks.map((
      { network, configured, attachments, ranges }: Json,
    ) => [network, configured, attachments, ranges[0].taken, ranges[0].total]),
    [["back", true, 1, 1, "253"], ["front", true, 2, 2, "253"]],
  );

  const text = (await must(node, ["inspect", "front"])).stdout;
  for (
    const part of [
      "/etc/cni/net.d/10-front.conflist",
      "bridge=br-front",
      "ipMasq=true",
      "ipam=host-local",
      "+portMappings",
      "10.88.0.1",
      "2 of 253 taken",
      "shop/web-10  eth0  /run/netns/web-10",
    ]
  ) assertStringIncludes(text, part);
  assert(text.indexOf("shop/web-2 ") < text.indexOf("shop/web-10 "), "2 before 10");
  const one = (await must(node, ["inspect", "front", "--json"])).json;
  assertEquals(one.configuration.plugins[0].bridge, "br-front");
  assertEquals(one.attachments.map(({ pod }: Json) => pod).sort(), ["shop/web-10", "shop/web-2"]);

  // A network that is configured no more is still known by what is attached to it.
  await node.sh("rm /etc/cni/net.d/20-back.conflist");
  assertMatch((await must(node, ["networks"])).stdout, /^back .*not configured$/m);
  assertStringIncludes((await must(node, ["inspect", "back"])).stdout, "none any more");
});

nodeTest("cnibox status is one screen: healthy, then each kind of problem once with what repairs it", NEEDS, async ({
  node,
}) => {
  await pods(node);
  const well = await must(node, ["status"]);
  assertMatch(well.stdout, /^node +healthy\n/);
  assertMatch(well.stdout, /^cnibox +v\S+, 21 plugins in \/opt\/cni\/bin\n/m);
  assertMatch(well.stdout, /^networks +2: back, front\nattachments +3: 3 ok\n/m);
  assertMatch(well.stdout, /^addresses +back .* 1 of 253 taken\n +front .* 2 of 253 taken\n/m);
  assert(!well.stdout.includes("problems"));

  await node.run("iptables", "-t", "nat", "-F");
  await node.write("/etc/cni/net.d/90-broken.conf", "{");
  const ill = await cnibox(node, ["status"]);
  assertEquals(ill.code, 1);
  assertMatch(ill.stdout, /^node +3 problems\n/);
  assertMatch(ill.stdout, /! 3 attachments lack masquerading +cnibox restore --all\n/);
  assertMatch(ill.stdout, /! 2 attachments lack the rules of their published ports +cnibox restore --all\n/);
  assertMatch(ill.stdout, /! \/etc\/cni\/net\.d\/90-broken\.conf: .* cnibox validate\n/);
  const { json, code } = await cnibox(node, ["status", "--json"]);
  assertEquals([code, json.version, json.healthy], [1, 1, false]);
  assertEquals(json.problems.map(({ code, count, fix }: Json) => [code, count, fix]).sort(), [
    ["masquerade-missing", 3, "cnibox restore --all"],
    ["port-rules-missing", 2, "cnibox restore --all"],
  ]);

  // What it advises is true.
  await node.sh("rm /etc/cni/net.d/90-broken.conf");
  await must(node, ["restore", "--all"]);
  assertEquals((await must(node, ["status", "--json"])).json.healthy, true);
});

nodeTest("cnibox show tells all of one container, by ID, pod or address", NEEDS, async ({ node }) => {
  await pods(node);
  await node.run("ip", "netns", "exec", "web-10", "ping", "-c", "3", "-i", "0.2", "10.88.0.1");
  const id = "1".repeat(64);
  const texts = [];
  for (const word of [id, id.slice(0, 12), "shop/web-10", "web-10", "10.88.0.2", "10.88.0.2/24"]) {
    const { stdout } = await must(node, ["show", word]);
    texts.push(stdout.replace(/, \d+ (s|min)$/m, "").replace(/ \d+ packets, \d+ bytes/g, ""));
    assertEquals(texts.at(-1), texts[0], word);
  }
  const { stdout } = await must(node, ["show", "shop/web-10"]);
  for (
    const part of [
      "shop/web-10 eth0 on front  ok",
      id,
      "10.88.0.2/24",
      "8080 → 80/tcp",
      "on br-front",
      "iptables -t nat -A",
      "--to-destination 10.88.0.2:80",
    ]
  ) assertStringIncludes(stdout, part);
  assert(!stdout.includes("10.88.0.3"), stdout);
  const { json } = await must(node, ["show", "web-10", "--json"]);
  assertEquals(json.attachments.length, 1);
  const [{ counters, hostCounters, rules, pod, containerId }] = json.attachments;
  assertEquals([pod, containerId], ["shop/web-10", id]);
  assert(counters.tx.packets >= 3 && hostCounters.rx.packets >= 3, "three pings left it and came to the host");
  assertEquals(typeof hostCounters.rx.dropped, "number");
  assert(rules.length >= 2, rules.join("\n"));
});

nodeTest("cnibox show filters and prints what scripts and narrow terminals want", NEEDS, async ({ node }) => {
  await pods(node);
  const out = async (...args: string[]) => (await must(node, ["show", ...args])).stdout;
  const all = await out();
  assert(all.indexOf("shop/web-2 ") < all.indexOf("shop/web-10 "), all);
  assertEquals((await out("-q")).trim().split("\n").sort(), ["1".repeat(64), "2".repeat(64), "plain"]);
  assertEquals(await out("--pod", "shop/web-2", "-q"), `${"2".repeat(64)}\n`);
  assertEquals(await out("--network", "back", "-q"), "plain\n");
  assertEquals(
    await out("--network", "front", "--format", "{{.pod}}\\t{{.addresses}} {{ .interface.mtu }}"),
    "shop/web-2\t10.88.0.3/24 1500\nshop/web-10\t10.88.0.2/24 1500\n",
  );
  assertEquals((await must(node, ["show", "--format", "json"])).json.version, 1);
  assert(!(await out("--no-headings")).includes("CONTAINER"));
  assertEquals(await out("--problems"), "no problems\n");
  await node.run("ip", "netns", "del", "plain");
  const broken = await out("--problems");
  assertStringIncludes(broken, "plain");
  assert(!broken.includes("web-2"), broken);
  for (const COLUMNS of ["80", "60"]) {
    const { stdout } = await must(node, ["show", "--network", "front"], { env: { COLUMNS } });
    const rows = stdout.split("\n").filter((line) => /^ {2}\S/.test(line));
    assertEquals(rows.length, 3);
    for (const line of rows) assert(line.length <= Number(COLUMNS), line);
    for (const words of ["networks", "ipam", "ipam list", "status", "plugins", "verify", "--help", "show --help"]) {
      const { stdout } = await cnibox(node, words.split(" "), { env: { COLUMNS } });
      // What cannot be broken stays whole: the usage, and the commands of examples.
      const lines = stdout.split("\n").filter((line) => !/^(usage:| +(cnibox|#) )/.test(line));
      assert(lines.length > 1, words);
      for (const line of lines) assert(line.length <= Number(COLUMNS), `${words} at ${COLUMNS}: ${line}`);
    }
  }
  const { code, stderr } = await cnibox(node, ["show", "--format", "{{.nonsense}}"]);
  assertEquals(code, 64);
  assertStringIncludes(stderr, "containerId");
});

nodeTest("pods are named wherever an ID is: check, restore, ipam find, del", NEEDS, async ({ node }) => {
  await pods(node);
  await must(node, ["check", "front", "--id", "shop/web-2"]);
  assertEquals((await must(node, ["complete", "pod"])).stdout, "shop/web-10\nshop/web-2\n");
  assertEquals((await must(node, ["complete", "shown"])).stdout.split("\n").slice(0, 3), ["front", "back", "plain"]);
  await node.run("iptables", "-t", "nat", "-F");
  assertStringIncludes((await must(node, ["restore", "--id", "shop/web-2"])).stdout, "2 restored");
  assertStringIncludes((await must(node, ["ipam", "find", "shop/web-2"])).stdout, "10.88.0.3");
  await must(node, ["del", "front", "--id", "shop/web-2"]);
  assertEquals(await node.list("/var/lib/cni/results"), ["back-plain-eth0", `front-${"1".repeat(64)}-eth0`]);
});

nodeTest("networks, containers, pods and pools that nobody has: status 66, and the names that are near", NEEDS, async ({
  node,
}) => {
  await pods(node);
  const table: [args: string[], ...parts: string[]][] = [
    [["status", "frnt"], "did you mean front?"],
    [["inspect", "frnt"], "did you mean front?", "networks there: back, front"],
    [["show", "frnt"], "did you mean front?"],
    [["show", "--network", "frnt"], "did you mean front?"],
    [["show", "--pod", "shop/web-3"], 'pod "shop/web-3"', "did you mean shop/web-"],
    [["show", "shop/web-3"], "did you mean shop/web-"],
    [["show", "10.88.0.9"], 'no network, container, pod or address "10.88.0.9"'],
    [["graph", "frnt"], "did you mean front?"],
    [["gc", "frnt", "--dry-run"], "did you mean front?"],
    [["ipam", "frnt"], "did you mean"],
    [["ipam", "list", "frnt"], "did you mean front?"],
    [["ipam", "check", "frnt"], "did you mean front?"],
    [["ipam", "find", "plian"], "did you mean plain?"],
    [["ipam", "free", "10.88.0.9"], "nobody holds"],
    [["ipam", "free", "10.88.0.3", "--network", "frnt"], "did you mean front?"],
    [["ipam", "repair", "frnt", "--dry-run"], "did you mean front?"],
    [["events", "frnt"], "did you mean front?"],
    [["check", "back", "--id", "plian"], "did you mean plain?"],
    [["check", "front", "--id", "shop/web-3"], "did you mean shop/web-"],
    [["del", "front", "--id", "shop/web-3"], "did you mean shop/web-"],
    [["restore", "--id", "plian"], "did you mean plain?"],
    [["restore", "--id", "shop/web-3"], "did you mean shop/web-"],
    [["explain", "add", "frnt", "plain"], "did you mean front?"],
    [["cluster", "blocks", "nowhere"], 'pool "nowhere"'],
    [["cluster", "check", "nowhere"], 'pool "nowhere"'],
    [["schema", "bridg"], "did you mean bridge?"],
  ];
  for (const [args, ...parts] of table) {
    const { code, stderr, stdout } = await cnibox(node, args);
    assertEquals([code, stdout], [66, ""], `${args.join(" ")}: ${stderr}`);
    for (const part of parts) assertStringIncludes(stderr, part, args.join(" "));
  }
});

nodeTest(
  "commands that remove things say what they would do, ask, and need --all where several networks are meant",
  NEEDS,
  async ({
    node,
  }) => {
    await pods(node);
    await node.run("ip", "netns", "del", "plain");
    const table: [args: string[], says: string][] = [
      [["gc", "back"], "attachment plain (eth0)"],
      [["gc", "--all"], "attachment plain (eth0)"],
      [["ipam", "repair", "back"], "release 10.89.0.2 of plain"],
      [["ipam", "repair", "--all"], "release 10.89.0.2 of plain"],
      [["ipam", "free", "10.89.0.2"], "free 10.89.0.2 of plain"],
    ];
    const before = await node.sh("find /var/lib/cni -type f | sort");
    for (const [args, says] of table) {
      const { code, stdout, stderr } = await cnibox(node, args);
      assertEquals([code, stderr.includes("use --yes")], [64, true], `${args.join(" ")}: ${stderr}`);
      assertStringIncludes(stdout, says, args.join(" "));
    }
    for (const args of [["gc"], ["ipam", "repair"]]) {
      const { code, stderr } = await cnibox(node, args);
      assertEquals([code, stderr.includes("NETWORK, or --all")], [64, true], stderr);
    }
    assertEquals(await node.sh("find /var/lib/cni -type f | sort"), before);
    await must(node, ["ipam", "repair", "--all", "--yes"]);
    await must(node, ["gc", "--all", "--yes"]);
    assertEquals((await must(node, ["status", "--json"])).json.healthy, true);
  },
);
