/**
 * A node with ten containers, three of them broken in different ways: show, graph, ipam check and doctor name all
 * three.
 */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { type Json, type Node, nodeTest } from "./support/mod.ts";
import { cnibox, configure, must } from "./support/operator.ts";

const network = (name: string, bridge: string, subnet: string, more: Json[] = []) => ({
  cniVersion: "1.1.0",
  name,
  plugins: [{
    type: "bridge",
    bridge,
    isGateway: true,
    ipMasq: name === "front",
    hairpinMode: true,
    ipam: { type: "host-local", ranges: [[{ subnet }]], routes: [{ dst: "0.0.0.0/0" }] },
  }, ...more],
});

const fronts = ["web", "api", "cache", "auth", "mail"];
const backs = ["db", "queue", "worker", "metrics", "batch"];

/** Ten healthy containers on two networks, one of them on both. */
async function healthyNode(node: Node): Promise<void> {
  await node.outside();
  await configure(
    node,
    network("front", "br-front", "10.88.0.0/24", [{ type: "portmap", capabilities: { portMappings: true } }]),
  );
  await configure(node, network("back", "br-back", "10.89.0.0/24"), "20-back.conflist");
  for (const name of [...fronts, ...backs]) {
    await node.container(name);
    const networks = name === "api" ? "front,back" : fronts.includes(name) ? "front" : "back";
    const port = name === "web" ? ["-p", "8080:80"] : [];
    await must(node, ["add", networks, name, "--id", name, ...port]);
  }
}

/** Breaks three: a namespace gone, an address file lost, a veth deleted by hand. */
async function breakThree(node: Node): Promise<{ mail: string; queue: string; cache: string }> {
  const addresses: Record<string, string> = {};
  for (const [name, list] of [["mail", "front"], ["queue", "back"], ["cache", "front"]] as const) {
    const cache = JSON.parse(await node.read(`/var/lib/cni/results/${list}-${name}-eth0`) ?? "{}");
    addresses[name] = cache.result.ips[0].address.split("/")[0];
  }
  const { mail = "", queue = "", cache = "" } = addresses;
  await node.run("ip", "netns", "del", "mail");
  await node.sh(`rm "$1"`, `/var/lib/cni/networks/back/${queue}`);
  const veths: Json[] = await node.ipJson("link", "show", "type", "veth");
  await node.run("ip", "link", "del", "dev", veths.find(({ ifalias }) => ifalias === "cni:front:cache:eth0").ifname);
  return { mail, queue, cache };
}

nodeTest("cnibox show and doctor find a healthy node healthy", { needs: ["iptables"] }, async ({ node }) => {
  await healthyNode(node);
  const { json } = await must(node, ["show", "--json"]);
  const all: Json[] = json.networks.flatMap((one: Json) => one.attachments);
  assertEquals(all.length, 11);
  assertEquals(all.filter(({ state }) => state !== "ok"), []);
  assertEquals([json.orphans, json.blind], [[], []]);
  const web = all.find(({ containerId }) => containerId === "web");
  assertEquals([web.netns, web.ifName, web.bridge, web.addresses, web.ports], [
    "/run/netns/web",
    "eth0",
    "br-front",
    ["10.88.0.2/24"],
    [{ hostPort: 8080, containerPort: 80, protocol: "tcp" }],
  ]);
  assertMatch(web.hostInterface, /^veth/);

  const doctor = await cnibox(node, ["doctor", "--json"]);
  assertEquals(doctor.json.findings.filter(({ grade }: Json) => grade !== "ok"), [], doctor.stdout);
  assertEquals(doctor.code, 0);
  const areas = new Set(doctor.json.findings.map(({ area }: Json) => area));
  for (
    const area of [
      "configuration",
      "plugins",
      "tools",
      "kernel",
      "forwarding",
      "firewall",
      "MTU",
      "addresses",
      "attachments",
      "disk",
    ]
  ) {
    assert(areas.has(area), area);
  }
});

nodeTest(
  "cnibox show, graph, ipam check and doctor name what is broken, and only that",
  { needs: ["iptables"] },
  async ({ node }) => {
    await healthyNode(node);
    const { mail, queue, cache } = await breakThree(node);

    const { json, stdout } = await must(node, ["show", "--json"]);
    const broken: Json[] = json.networks.flatMap((one: Json) => one.attachments).filter(({ state }: Json) =>
      state !== "ok"
    );
    assertEquals(
      broken.map(({ containerId, state, problems }) => [containerId, state, problems.map(({ code }: Json) => code)])
        .sort(),
      [
        ["cache", "broken", ["interface-missing"]],
        ["mail", "gone", ["netns-gone"]],
        ["queue", "broken", ["lease-missing"]],
      ],
      stdout,
    );
    const text = (await must(node, ["show"])).stdout;
    for (
      const part of [
        "there is no eth0 in /run/netns/cache",
        "its namespace /run/netns/mail is gone",
        `${queue} is not recorded`,
      ]
    ) {
      assertStringIncludes(text, part);
    }
    assertEquals((await must(node, ["show", "back", "--json"])).json.networks.map(({ network }: Json) => network), [
      "back",
    ]);
    assertEquals((await cnibox(node, ["show", "nothing"])).code, 66);

    const check = await cnibox(node, ["ipam", "check"]);
    assertEquals(check.code, 1);
    for (const part of [`${mail} of mail`, `${queue} is used by queue`, `${cache} of cache`]) {
      assertStringIncludes(
        check.stdout,
        part,
      );
    }
    assertEquals(
      check.stdout.split("\n").filter((line) => / (on|of) (front|back|[a-z]+ \(eth0\) on)/.test(line)).length,
      3,
      check.stdout,
    );

    const doctor = await cnibox(node, ["doctor", "--json"]);
    assertEquals(doctor.code, 2);
    const complaints: string[] = doctor.json.findings.filter(({ grade }: Json) => grade !== "ok").map((
      { text }: Json,
    ) => text);
    for (const name of ["mail", "queue", "cache"]) assert(complaints.some((one) => one.includes(name)), name);
    for (const name of [...fronts, ...backs].filter((one) => !["mail", "queue", "cache"].includes(one))) {
      assert(!complaints.some((one) => one.includes(name)), `${name}: ${complaints}`);
    }

    // What can be fixed is fixed, and nothing healthy is touched.
    const healthy = async () => {
      const views: Json[] = (await must(node, ["show", "--json"])).json.networks.flatMap((one: Json) =>
        one.attachments
      );
      return views.filter(({ containerId }) => !["mail", "queue", "cache"].includes(containerId))
        .map(({ containerId, ifName, addresses, hostInterface, leases, state }) => ({
          containerId,
          ifName,
          addresses,
          hostInterface,
          leases,
          state,
        }));
    };
    const before = await healthy();
    await must(node, ["ipam", "repair", "--all", "--yes"]);
    await must(node, ["gc", "front", "--yes"]);
    await must(node, ["gc", "back", "--yes"]);
    assertEquals(await healthy(), before);
    const left: Json[] = (await must(node, ["show", "--json"])).json.networks.flatMap((one: Json) => one.attachments)
      .filter(({ state }: Json) => state !== "ok");
    assertEquals(left.map(({ containerId }) => containerId), ["cache"]);
    await must(node, ["del", "front", "cache"]);
    await must(node, ["add", "front", "cache", "--id", "cache"]);
    assertEquals((await cnibox(node, ["doctor"])).code, 0);
  },
);

nodeTest(
  "cnibox show finds rules that were flushed, and links that nobody knows",
  { needs: ["iptables"] },
  async ({ node }) => {
    await configure(
      node,
      network("front", "br-front", "10.88.0.0/24", [{ type: "portmap", capabilities: { portMappings: true } }]),
    );
    for (const name of ["web", "lost"]) {
      await node.container(name);
      await must(node, ["add", "front", name, "--id", name, "-p", name === "web" ? "8080:80" : "8081:80"]);
    }
    await node.sh("rm /var/lib/cni/results/front-lost-eth0 /var/lib/cni/networks/front/10.88.0.3");
    const lost = (await must(node, ["show", "--json"])).json;
    assertEquals(lost.orphans.map(({ what, text }: Json) => [what, /lost/.test(text)]), [["link", true], [
      "chain",
      true,
    ]]);
    await node.sh("iptables -t nat -F");
    const { json } = await must(node, ["show", "--json"]);
    const web = json.networks[0].attachments.find(({ containerId }: Json) => containerId === "web");
    assertEquals(web.problems.map(({ code }: Json) => code), ["port-rules-missing", "masquerade-missing"]);
    await must(node, ["doctor", "--fix"]).catch(() => {});
    const after = (await must(node, ["show", "--json"])).json;
    assertEquals(after.networks[0].attachments.find(({ containerId }: Json) => containerId === "web").state, "ok");
  },
);

nodeTest("a container that was attached by hand stands where its link leads, also where no lease tells of it", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  const plugin = {
    type: "bridge",
    bridge: "br-hand",
    isGateway: true,
    ipMasq: true,
    ipam: { type: "static", addresses: [{ address: "10.91.0.7/24", gateway: "10.91.0.1" }] },
  };
  await configure(node, { cniVersion: "1.1.0", name: "hand", plugins: [plugin] });
  await node.write("/run/hand.conf", JSON.stringify({ ...plugin, cniVersion: "1.1.0", name: "hand" }));
  await node.container("box");
  const variables = "CNI_CONTAINERID=box CNI_NETNS=/run/netns/box CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin";
  await node.sh(`CNI_COMMAND=ADD ${variables} /opt/cni/bin/bridge </run/hand.conf`);
  const { json } = await must(node, ["show", "hand", "--json"]);
  const [box, ...others] = json.networks[0].attachments;
  assertEquals([box.containerId, box.ifName, box.bridge, box.addresses, box.netns, box.state, others, json.orphans], [
    "box",
    "eth0",
    "br-hand",
    ["10.91.0.7/24"],
    "/run/netns/box",
    "ok",
    [],
    [],
  ]);
  assertMatch(
    (await must(node, ["show"])).stdout,
    /^ {2}box +eth0 +10\.91\.0\.7\/24 +- +veth\w{8} +\/run\/netns\/box/m,
  );
  assertMatch((await must(node, ["graph"])).stdout, /br-hand[^]*─ veth\w{8} ── eth0 of box {2}10\.91\.0\.7\/24$/m);
  assertMatch((await must(node, ["status"])).stdout, /^node +healthy$/m);
  assertEquals(
    (await must(node, ["gc", "hand", "--yes"])).stdout,
    "hand: 1 living attachment stays, nothing is known to go\n",
  );
  await node.sh(`CNI_COMMAND=DEL ${variables} /opt/cni/bin/bridge </run/hand.conf`);
  assertEquals((await must(node, ["show", "-q"])).stdout, "");
});

nodeTest("what nobody knows is removed by the commands that are advised for it, also with an ID of 64 digits", {
  needs: ["iptables"],
}, async ({ node }) => {
  await configure(
    node,
    network("front", "br-front", "10.88.0.0/24", [{ type: "portmap", capabilities: { portMappings: true } }]),
  );
  const [kept, lost] = ["web", "lost"].map((name, at) => [name, `${at}`.repeat(64)] as const);
  for (const [name, id] of [kept!, lost!]) {
    await node.container(name);
    await must(node, ["add", "front", name, "--id", id, "-p", name === "web" ? "8080:80" : "8081:80"]);
  }
  await node.sh('rm "/var/lib/cni/results/front-$1-eth0" /var/lib/cni/networks/front/10.88.0.3', lost![1]);
  await node.write("/var/lib/cni/networks/front/10.88.0.77", "stranger\r\neth0");
  const { json } = await cnibox(node, ["status", "--json"]);
  const fixes: string[] = [...json.orphans, ...json.problems].map(({ fix }: Json) => fix);
  assertEquals(fixes, [
    `cnibox del front --id ${lost![1]} --ifname eth0`,
    "cnibox gc front",
    "cnibox ipam free 10.88.0.77 --network front",
  ]);
  for (const fix of fixes) {
    await must(node, [...fix.split(" ").slice(1), ...(fix.startsWith("cnibox del") ? [] : ["--yes"])]);
  }
  assertMatch((await must(node, ["status"])).stdout, /^node +healthy$/m);
  assertEquals((await must(node, ["show", "-q"])).stdout, `${kept![1]}\n`);
  await must(node, ["check", "front", "--id", kept![1].slice(0, 12)]);
});

nodeTest("cnibox doctor reports flushed rules once for all containers, and the fix that it names works", {
  needs: ["iptables"],
}, async ({ node }) => {
  await configure(node, network("front", "br-front", "10.88.0.0/24"));
  for (const name of ["web", "api", "auth"]) {
    await node.container(name);
    await must(node, ["add", "front", name, "--id", name]);
  }
  await node.sh("iptables -t nat -F");
  const { code, json } = await cnibox(node, ["doctor", "--json"]);
  assertEquals([code, json.version], [2, 1]);
  const [flushed, ...others] = json.findings.filter(({ area }: Json) => area === "attachments");
  assertEquals([flushed.text, flushed.fix, others], ["3 attachments lack masquerading", "cnibox restore --all", []]);
  assertEquals(flushed.cases.map(({ containerId, fix }: Json) => [containerId, fix]).sort(), [
    ["api", "cnibox restore --id api"],
    ["auth", "cnibox restore --id auth"],
    ["web", "cnibox restore --id web"],
  ]);
  const { stdout } = await cnibox(node, ["doctor"]);
  assertMatch(stdout, /^failure attachments +3 attachments lack masquerading$/m);
  assert(!/\bapi\b/.test(stdout), stdout);
  assertMatch(stdout, /each case: cnibox doctor --verbose\n$/);
  assertMatch(
    (await cnibox(node, ["doctor", "-v"])).stdout,
    /^ +- api \(eth0\) on front: its masquerade rules are gone$/m,
  );
  await must(node, flushed.fix.split(" ").slice(1));
  assertEquals((await cnibox(node, ["doctor", "--json"])).json.findings.filter(({ cases }: Json) => cases), []);
});

nodeTest("cnibox doctor knows the usual mistakes of a node", { needs: ["iptables"] }, async ({ node }) => {
  const said = async (pattern: RegExp, grade: string) => {
    const { json } = await cnibox(node, ["doctor", "--json"]);
    const line = json.findings.find(({ text }: Json) => pattern.test(text));
    assertEquals(line?.grade, grade, `${pattern}: ${JSON.stringify(json)}`);
    assert(line.fix, JSON.stringify(line));
  };
  await said(/no network in \/etc\/cni\/net.d/, "failure");
  await node.write("/etc/cni/net.d/00-broken.conflist", "{");
  await said(/runtimes take .*00-broken.conflist first, and fail/, "failure");
  await node.sh("rm /etc/cni/net.d/*");
  await configure(node, {
    ...network("front", "br-front", "10.88.0.0/29"),
    plugins: [...network("front", "br-front", "10.88.0.0/29").plugins, { type: "theirs" }],
  });
  await said(/there is no plugin "theirs"/, "failure");
  await configure(node, network("front", "br-front", "10.88.0.0/30"));
  await node.container("web");
  await must(node, ["add", "front", "web"]);
  await said(/1 of 1 addresses of .* are taken/, "failure");
  await node.sh("iptables -P FORWARD DROP");
  await said(/FORWARD policy DROP/, "failure");
  await node.sh("iptables -P FORWARD ACCEPT; echo 0 >/proc/sys/net/ipv4/ip_forward");
  await said(/forwarding of IPv4 is off, and 1 container is/, "failure");
  await cnibox(node, ["doctor", "--fix"]);
  assertEquals(await node.sysctl("ipv4/ip_forward"), "1");
  await node.container("open");
  await configure(
    node,
    network("open", "br-open", "10.91.0.0/24", [{ type: "portmap", capabilities: { portMappings: true } }]),
  );
  await must(node, ["add", "open", "open", "-p", "8080:80"]);
  const { json: all } = await cnibox(node, ["doctor", "--json"]);
  assertEquals(all.findings.filter(({ area }: Json) => area === "localhost").map(({ grade }: Json) => grade), ["ok"]);
  await node.sysctl("ipv4/conf/br-open/route_localnet", "0");
  await said(/route_localnet is off for br-open/, "warning");
  await node.sysctl("ipv4/conf/br-open/route_localnet", "1");
  await node.sh("iptables -t raw -F PREROUTING");
  await said(/route_localnet is on for br-open, and no rule guards/, "failure");
  await must(node, ["del", "open", "open"]);
  const outside = await node.outside();
  await node.ip(`link set dev ${outside.uplink} mtu 1280`);
  await said(/takes 1280/, "warning");
  const [address] = (await node.ipJson("addr", "show", "dev", outside.uplink))[0].addr_info;
  await configure(
    node,
    network("clash", "br-clash", `${address.local.replace(/\d+$/, "128")}/25`),
    "30-clash.conflist",
  );
  await said(/network clash: .* overlaps .* of /, "warning");
  await node.ip(`addr add 10.92.0.9/24 dev ${outside.uplink}`);
  await configure(node, network("clash", "br-clash", "10.92.0.0/16"), "30-clash.conflist");
  await said(/network clash: 10.92.0.0\/16 overlaps 10.92.0.0\/24 of /, "failure");
  await node.sh("rm /etc/cni/net.d/30-clash.conflist");
  await node.sh("iptables-legacy -t nat -A POSTROUTING -j RETURN || :");
  if ((await node.sh("iptables-legacy-save 2>/dev/null || :")).includes("-A")) {
    await said(/rules of both kinds of iptables/, "warning");
  }
  await configure(node, {
    ...network("leased", "br-d", "10.90.0.0/24"),
    plugins: [{ type: "bridge", bridge: "br-d", ipam: { type: "dhcp" } }],
  });
  await said(/needs the DHCP daemon/, "failure");
});

nodeTest(
  "cnibox ipam finds an address that no file names, and needs root for the files",
  { needs: ["iptables"] },
  async ({
    node,
  }) => {
    await healthyNode(node);
    const { queue } = await breakThree(node);
    for (const what of [queue, "queue"]) {
      const { json } = await must(node, ["ipam", "find", what, "--json"]);
      assertEquals(json.addresses.map(({ address, containerId, state }: Json) => [address, containerId, state]), [
        [queue, "queue", "unrecorded"],
      ]);
    }
    assertStringIncludes((await must(node, ["ipam", "find", "queue"])).stdout, "cnibox ipam repair back records it");
    const user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/opt/cni/bin/cnibox"];
    const { code, stderr } = await node.exec([...user, "ipam", "check"]);
    assertEquals([code, /permission denied\n {2}run this command as root/.test(stderr)], [77, true], stderr);
    const typo = await cnibox(node, ["ipam", "chek"]);
    assertEquals([typo.code, typo.stderr.includes("did you mean cnibox ipam check?")], [66, true], typo.stderr);
  },
);

nodeTest("cnibox doctor says without root what it can see, and calls nothing unknown that it may not know", {
  needs: ["iptables"],
}, async ({ node }) => {
  await healthyNode(node);
  const argv = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "/opt/cni/bin/cnibox",
    "doctor",
    "--json",
  ];
  const { code, stdout, stderr } = await node.exec(argv);
  const lines: Json[] = JSON.parse(stdout).findings;
  assertEquals([code, stderr], [1, ""]);
  assert(lines.some(({ area, grade }) => area === "tools" && grade === "ok"));
  assertEquals(lines.filter(({ grade, area }) => grade !== "ok" && area !== "br_netfilter").map(({ text }) => text), [
    "not run as root: rules, namespaces and leases could not be looked at",
  ]);
});

nodeTest(
  "cnibox says without root what it could not see, and not that it is not there",
  { needs: ["iptables"] },
  async ({
    node,
  }) => {
    await healthyNode(node);
    const user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/opt/cni/bin/cnibox"];
    const said = async (...args: string[]) => await node.exec([...user, ...args]);
    const status = await said("status");
    assertEquals(status.code, 0, status.stderr);
    assertMatch(status.stdout, /^node +no problem in what could be seen$/m);
    assertMatch(status.stdout, /^attachments +not known$/m);
    assertMatch(status.stdout, /^not seen +attachments cannot be read without root$/m);
    const { healthy, attachments } = JSON.parse((await said("status", "--json")).stdout);
    assertEquals([healthy, attachments], [undefined, undefined]);
    const show = await said("show");
    assertMatch(show.stdout, /^ {2}attachments are not known$/m);
    assertMatch(show.stderr, /^cnibox: attachments cannot be read without root$/m);
    const web = await said("show", "web");
    assertEquals(web.code, 77);
    assertMatch(
      web.stderr,
      /"web" is not among what can be seen without root\n {2}attachments cannot be read without root/,
    );
    assertMatch((await said("networks", "--no-headings")).stdout, /^back .* - +20-back\.conflist$/m);
    assertEquals(JSON.parse((await said("networks", "--json")).stdout).networks[0].attachments, undefined);
    assertMatch((await said("inspect", "front")).stdout, /^ {2}attached +not known$/m);
  },
);

nodeTest("cnibox graph draws the node in four ways", { needs: ["iptables", "tool:rsvg-convert"] }, async ({ node }) => {
  await healthyNode(node);
  await breakThree(node);
  const tree = (await must(node, ["graph"])).stdout;
  assertMatch(tree, /├─ br-back {2}bridge {2}10\.89\.0\.1\/24 {2}network back/);
  assertMatch(tree, /veth\w+ ── eth0 of web {2}10\.88\.0\.2\/24 {2}8080 → 80\/tcp/);
  assertMatch(tree, /! eth0 of mail .* its namespace \/run\/netns\/mail is gone/);
  const mermaid = (await must(node, ["graph", "--format", "mermaid"])).stdout;
  assertMatch(mermaid, /^flowchart LR\n/);
  assertMatch(mermaid, /br_br_front -\. masquerade \.-> up_uplink/);
  const dot = (await must(node, ["graph", "--format", "dot"])).stdout;
  assertMatch(dot, /^graph cnibox \{\n[\s\S]*\n\}\n$/);
  const svg = (await must(node, ["graph", "--format", "svg"])).stdout;
  await node.write("/run/node.svg", svg);
  await node.run("rsvg-convert", "/run/node.svg", "-o", "/run/node.png");
  const png = await Deno.readFile(node.path("/run/node.png"));
  assertEquals([...png.slice(1, 4)].map((byte) => String.fromCharCode(byte)).join(""), "PNG");
  const [width, height] = [new DataView(png.buffer).getUint32(16), new DataView(png.buffer).getUint32(20)];
  assertEquals([width, height], [
    Math.ceil(Number(/width="([\d.]+)"/.exec(svg)?.[1])),
    Math.ceil(Number(/height="([\d.]+)"/.exec(svg)?.[1])),
  ]);
  const picture = Deno.env.get("CNIBOX_WRITE_PICTURE");
  if (picture) await Deno.writeTextFile(picture, svg);
});
