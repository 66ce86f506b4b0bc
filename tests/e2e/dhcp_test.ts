/** dhcp as a runtime runs it: plugin and daemon against real servers, and each with the reference's other half. */
import { assert, assertEquals, assertMatch, assertNotEquals, assertStringIncludes } from "@std/assert";
import { hex } from "../../plugins/dhcp/lease.ts";
import {
  assertPings,
  Attachment,
  type By,
  call,
  eventually,
  inVm,
  type Json,
  type Namespace,
  type Node,
  nodeTest,
  type PluginCall,
  runPlugin,
} from "./support/mod.ts";
import {
  attachments,
  clients,
  daemon,
  dhcpd,
  dnsmasq,
  dnsmasqLeases,
  kill,
  plug,
  pluggedContainer,
  referenceDaemon,
  seen,
  SERVER,
  switchWithServer,
  udhcpd,
} from "./support/dhcp.ts";

const MASQ = ["bridge", "veth", "tool:dnsmasq", "tool:busybox"] as const;
const ISC = ["bridge", "veth", "tool:dhcpd", "tool:busybox"] as const;
/** For what a server's lease time decides: a minute or two, whatever the machine does besides. */
const LONG = 150_000;
/** The shortest waits that the daemon knows. */
const QUICK = ["-timeout", "1s"];

function conf(ipam: Json = {}, others: Json = {}): Json {
  // The type is never read: what is called is the IPAM plugin itself, as a main plugin calls it.
  return { cniVersion: "1.1.0", name: "net1", type: "bridge", ipam: { type: "dhcp", ...ipam }, ...others };
}

function request(
  command: PluginCall["command"],
  netns: Namespace,
  stdin: Json = conf(),
  by: By = "cnibox",
): PluginCall {
  return { type: "dhcp", ...(command !== undefined && { command }), netns, stdin, by, timeout: LONG };
}

/** ADD, and what a main plugin does with the result: address and routes go onto the link. */
async function add(node: Node, container: Namespace, stdin: Json = conf(), by: By = "cnibox"): Promise<Json> {
  const result = await call(node, request("ADD", container, stdin, by));
  await container.ip(
    "link set lo up",
    `addr add ${result.ips[0].address} brd + dev eth0`,
    ...(result.routes ?? []).map(({ dst, gw }: Json) => `route add ${dst} via ${gw} dev eth0`),
  );
  return result;
}

const address = (result: Json): string => result.ips[0].address.replace(/\/.*/, "");
const del = (node: Node, container: Namespace, stdin: Json = conf()) => call(node, request("DEL", container, stdin));

async function addresses(container: Namespace): Promise<string[]> {
  const [link] = await container.ipJson("-4", "addr", "show", "dev", "eth0");
  return (link?.addr_info ?? []).map(({ local, prefixlen }: Json) => `${local}/${prefixlen}`);
}

async function routes(container: Namespace): Promise<string> {
  return (await container.run("ip", "-4", "route", "show", "table", "all")).trim();
}

async function nothingLeft(node: Node): Promise<void> {
  assertEquals(await clients(node), []);
  assertEquals(await attachments(node), []);
}

nodeTest("dhcp leases, renews when the server says, and releases", { needs: [...MASQ] }, async ({ node }) => {
  const world = await switchWithServer(node);
  const server = await dnsmasq(world, [
    "--dhcp-option=option:T1,4",
    "--dhcp-option=121,0.0.0.0/0,192.168.1.1,10.9.0.0/16,192.168.1.9,10.8.0.0/16,0.0.0.0",
    "--dhcp-option=option:dns-server,192.168.1.3",
    "--dhcp-option=option:domain-search,a.example,b.example",
    "--dhcp-option=option:domain-name,c.example",
  ]);
  const process = await daemon(node);
  const container = await pluggedContainer(node, world, "ctr1");
  const all = conf({
    priority: 77,
    request: [{ option: "121" }, { option: "6" }, { option: "15" }, { option: "119" }],
    provide: [
      { option: "host-name", value: "left", fromArg: "HOST" },
      { option: "vendor-class-identifier", value: "cni", fromArg: "CLASS" },
      { option: "77", value: "üser" },
    ],
  });
  const result = await call(node, { ...request("ADD", container, all), args: "A;HOST=web1;CLASS=a=b;B=" });
  assertMatch(result.ips[0].address, /^192\.168\.1\.[5-9][0-9]\/24$/);
  assertEquals(result, {
    cniVersion: "1.1.0",
    ips: [{ address: result.ips[0].address, gateway: SERVER }],
    routes: [
      { dst: "0.0.0.0/0", gw: "192.168.1.1", priority: 77 },
      { dst: "10.9.0.0/16", gw: "192.168.1.9", priority: 77 },
      { dst: "10.8.0.0/16", gw: "0.0.0.0", priority: 77, scope: 253 },
    ],
    dns: { nameservers: ["192.168.1.3"], domain: "c.example", search: ["a.example", "b.example"] },
  });
  assertEquals(await addresses(container), [], "the calling plugin puts the address on the link");
  assertMatch(server.stderr, /client provides name: web1/);
  assertMatch(server.stderr, /vendor class: a=b$/m);
  assertMatch(server.stderr, /user class: ser$/m);
  assertMatch(server.stderr, /requested options: 1:netmask, 3:router, 6:dns-server/);
  const [lease = ""] = await dnsmasqLeases(node);
  // A zero byte, then ctr1/net1/eth0.
  assertStringIncludes(lease, " 00:63:74:72:31:2f:6e:65:74:31:2f:65:74:68:30");

  await container.ip(`addr add ${result.ips[0].address} dev eth0`);
  const acks = seen(server, "DHCPACK");
  await eventually("the server has renewed the lease twice", () => seen(server, "DHCPACK") >= acks + 2, LONG);
  assertEquals(seen(server, "DHCPDISCOVER"), 1, server.stderr);
  await call(node, request("CHECK", container, { ...all, prevResult: result }));

  await del(node, container, all);
  await eventually("the server has the address back", async () => (await dnsmasqLeases(node)).length === 0);
  assertEquals(seen(server, "DHCPRELEASE"), 1);
  await nothingLeft(node);
  await del(node, container, all);
  assertEquals(process.stderr.split("\n").filter((line) => /fail|error/i.test(line)), []);
});

nodeTest("dhcp brings the link up, and releases what never got onto it", { needs: [...MASQ] }, async ({ node }) => {
  const world = await switchWithServer(node);
  const server = await dnsmasq(world);
  await daemon(node);
  const container = await pluggedContainer(node, world);
  const result = await call(node, request("ADD", container));
  assertEquals(result.routes, [{ dst: "0.0.0.0/0", gw: SERVER }]);
  assertEquals((await container.ipJson("link", "show", "eth0"))[0].operstate, "UP");
  assertEquals(await call(node, request("ADD", container)), result, "a second ADD gives the same lease");
  assertEquals(seen(server, "DHCPDISCOVER"), 1);
  await del(node, container);
  assertEquals(await dnsmasqLeases(node), []);
  assertEquals(await addresses(container), []);
});

nodeTest("dhcp serves every version of the protocol", { needs: [...MASQ] }, async ({ node }) => {
  const world = await switchWithServer(node);
  await dnsmasq(world);
  await daemon(node);
  const container = await pluggedContainer(node, world);
  for (
    const cniVersion of inVm ? ["0.2.0", "1.1.0"] : ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
  ) {
    const { ip4, ips, routes } = await call(node, request("ADD", container, conf({}, { cniVersion })));
    assertMatch(ip4?.ip ?? ips[0].address, /^192\.168\.1\.[5-9][0-9]\/24$/, cniVersion);
    assertEquals(ip4?.gateway ?? ips[0].gateway, SERVER);
    assertEquals((ip4?.routes ?? routes)[0], { dst: "0.0.0.0/0", gw: SERVER });
    assertEquals(ips?.[0].version, /^0\.[34]/.test(cniVersion) ? "4" : undefined);
  }
  await del(node, container);
});

nodeTest("dhcp keeps leases across restarts of its daemon", { needs: [...MASQ] }, async ({ node }) => {
  const world = await switchWithServer(node);
  const server = await dnsmasq(world, ["--dhcp-option=option:T1,4"]);
  let process = await daemon(node);
  const one = await pluggedContainer(node, world, "one");
  const two = await pluggedContainer(node, world, "two");
  const results = [await add(node, one), await add(node, two)];

  await process.close();
  assertEquals((await node.list("/run/cni")).includes("dhcp.sock"), false, "a daemon that ends takes its socket along");
  assertEquals(await node.read("/run/dhcp.pid"), undefined);
  assertEquals((await clients(node)).length, 2, "and leaves the clients");
  const [first = ""] = await clients(node);
  process = await daemon(node);
  assertStringIncludes(process.stderr, "2 leases taken over");
  assertEquals((await clients(node))[0], first, "which the next one takes over as they are");

  await kill(node, process);
  assertEquals((await node.list("/run/cni")).includes("dhcp.sock"), true, "one that is killed leaves its socket");
  await node.sh('kill -9 "$1"', first.split(" ")[0]!);
  process = await daemon(node);
  await eventually("a client that died is started again", async () => (await clients(node)).length === 2);
  const discovers = seen(server, "DHCPDISCOVER");
  const acks = seen(server, "DHCPACK");
  await eventually("both are renewed", () => seen(server, "DHCPACK") >= acks + 3, LONG);
  assert(discovers <= 3, "only the client that died asked anew");
  for (const [index, container] of [one, two].entries()) {
    await call(node, request("CHECK", container, conf({}, { prevResult: results[index] })));
    assertEquals(await call(node, request("ADD", container)), results[index]);
    await del(node, container);
  }
  assertEquals(await dnsmasqLeases(node), []);
  assertEquals(seen(server, "DHCPRELEASE"), 2);
  await nothingLeft(node);
});

nodeTest(
  "dhcp without its daemon: ADD and STATUS say so, DEL and GC release",
  { needs: [...MASQ] },
  async ({ node }) => {
    const world = await switchWithServer(node);
    const server = await dnsmasq(world);
    const container = await pluggedContainer(node, world, "one");
    const other = await pluggedContainer(node, world, "two");
    const away = "error dialing DHCP daemon: dial unix /run/cni/dhcp.sock: connect:";

    let failed = await runPlugin(node, request("ADD", container));
    assertEquals([failed.code, failed.json.code, failed.json.msg], [1, 999, `${away} no such file or directory`]);
    assertStringIncludes(failed.json.details, "systemctl start cni-dhcp.socket, or /opt/cni/bin/dhcp daemon");
    const elsewhere = conf({ daemonSocketPath: "/run/other.sock" });
    failed = await runPlugin(node, request("STATUS", container, elsewhere));
    assertEquals([failed.code, failed.json.code], [1, 50]);
    assertStringIncludes(failed.json.details, "/opt/cni/bin/dhcp daemon -socketpath /run/other.sock");
    await del(node, container);

    const process = await daemon(node);
    await call(node, request("STATUS", container));
    for (const one of [container, other]) await add(node, one);
    await kill(node, process);
    failed = await runPlugin(node, request("STATUS", container));
    assertEquals([failed.json.code, failed.json.msg], [50, `${away} connection refused`]);
    failed = await runPlugin(node, request("CHECK", container));
    assertEquals([failed.json.code, failed.json.msg], [999, `${away} connection refused`]);

    await del(node, container);
    await eventually("DEL has released one", () => seen(server, "DHCPRELEASE") === 1);
    assertEquals((await attachments(node)).length, 1);
    const gc = (valid: string[]) =>
      call(node, {
        type: "dhcp",
        command: "GC",
        stdin: conf({}, { "cni.dev/valid-attachments": valid.map((containerID) => ({ containerID, ifname: "eth0" })) }),
      });
    await gc(["two"]);
    assertEquals((await attachments(node)).length, 1);
    await gc([]);
    await eventually("GC has released the other", () => seen(server, "DHCPRELEASE") === 2);
    await nothingLeft(node);
  },
);

nodeTest("dhcp GC releases what is not valid, of its own network only", { needs: [...MASQ] }, async ({ node }) => {
  const world = await switchWithServer(node);
  const server = await dnsmasq(world);
  await daemon(node);
  const container = await pluggedContainer(node, world, "one");
  const other = await pluggedContainer(node, world, "two");
  const foreign = await pluggedContainer(node, world, "three");
  await add(node, container);
  await add(node, other);
  const elsewhere = conf({}, { name: "net2" });
  await add(node, foreign, elsewhere);
  const stdin = conf({}, { "cni.dev/valid-attachments": [{ containerID: "two", ifname: "eth0" }] });
  await call(node, { type: "dhcp", command: "GC", stdin });
  assertEquals(seen(server, "DHCPRELEASE"), 1);
  assertEquals((await attachments(node)).length, 2);
  await call(node, { type: "dhcp", command: "GC", stdin: conf() });
  assertEquals((await attachments(node)).length, 2, "a caller that says nothing about attachments loses none");
  await del(node, other);
  await del(node, foreign, elsewhere);
  await nothingLeft(node);
});

nodeTest("dhcp ADD without a server ends in time and leaves nothing", { needs: [...MASQ] }, async ({ node }) => {
  const world = await switchWithServer(node);
  await daemon(node, ["-timeout=1s", "--resendtimeout", "3s"]);
  const container = await pluggedContainer(node, world);
  const [{ address: mac }] = await container.ipJson("link", "show", "eth0");
  const [failed, second] = await Promise.all([
    runPlugin(node, request("ADD", container)),
    runPlugin(node, request("ADD", container)),
  ]);
  assertEquals(failed.json.msg, "error calling DHCP.Allocate: no more tries");
  assertEquals(failed.json.details, `eth0 (${mac}): no DHCP server answered within 3 s`);
  assertEquals(second.json.msg, failed.json.msg, "both ask with one client");
  await nothingLeft(node);
  await del(node, container);

  // One address for two.
  await dnsmasq(world, [], ".50,192.168.1.50");
  await add(node, container);
  const late = await pluggedContainer(node, world);
  const refused = await runPlugin(node, request("ADD", late));
  assertEquals(refused.json.msg, "error calling DHCP.Allocate: no more tries");
  await del(node, late);
  await del(node, container);
  await nothingLeft(node);
  await add(node, late);
});

nodeTest("dhcp ADD refuses what it cannot use", { needs: [...MASQ] }, async ({ node }) => {
  const world = await switchWithServer(node);
  await daemon(node, ["-resendtimeout", "20s", ...QUICK]);
  const container = await pluggedContainer(node, world);
  const refused = async (change: Partial<PluginCall>, stdin = conf()) => {
    const { code, json } = await runPlugin(node, { ...request("ADD", container, stdin), ...change });
    assertEquals(code, 1);
    return `${json.code} ${json.msg}`;
  };
  assertEquals(
    await refused({ ifName: "eth9" }),
    '999 error calling DHCP.Allocate: error looking up "eth9": Link not found',
  );
  assertEquals(
    await refused({ netns: "/run/netns/none", containerId: "ctr" }),
    '999 error calling DHCP.Allocate: failed to Statfs "/run/netns/none": no such file or directory',
  );
  assertEquals(
    await refused({}, { cniVersion: "1.1.0", name: "net1", type: "bridge" }),
    "7 error parsing netconf: ipam is missing",
  );
  assertStringIncludes(await refused({}, conf({ request: [{ option: "bogus" }] })), 'Can not parse option "bogus"');
  await nothingLeft(node);

  const long = "n".repeat(230);
  const server = await udhcpd(node, world, ["option router 192.168.1.1"]);
  assertEquals(
    await refused({}),
    "999 error calling DHCP.Allocate: DHCP option Subnet Mask not found in DHCPACK",
    "the server sends no mask",
  );
  await nothingLeft(node);
  await server.close();

  await dnsmasq(world);
  await plug(node, world, container, "net9");
  const named = conf({}, { name: long });
  const ok = await runPlugin(node, { ...request("ADD", container, named), containerId: "a".repeat(30) });
  assertEquals(ok.code, 0, ok.stdout);
  const twin = await runPlugin(node, {
    ...request("ADD", container, named),
    containerId: "a".repeat(30),
    ifName: "net9",
  });
  assertMatch(
    twin.json.msg,
    /^error calling DHCP.Allocate: the client identifier of a+\/n+\/net9 is taken by a+\/n+\/eth0$/,
  );
  assertEquals((await attachments(node)).length, 1);
});

nodeTest("dhcp follows links and namespaces that go without DEL", { needs: [...MASQ] }, async ({ node }) => {
  const world = await switchWithServer(node);
  const server = await dnsmasq(world, ["--dhcp-option=option:T1,4"]);
  const process = await daemon(node);
  const gone = await pluggedContainer(node, world, "gone");
  const bare = await pluggedContainer(node, world, "bare");
  const lease = await add(node, gone);
  await add(node, bare);
  await node.removeContainer(gone);
  await bare.ip("link del eth0");
  // All answer at once, whatever the daemon has noticed; and again.
  for (const verb of ["CHECK", "CHECK", "ADD"] as const) {
    const { json } = await runPlugin(node, request(verb, bare));
    assertStringIncludes(json.msg, 'error looking up "eth0": Link not found');
  }
  await plug(node, world, bare);
  const first = await call(node, request("ADD", bare));
  await bare.ip("link del eth0");
  await plug(node, world, bare);
  assertEquals(
    address(await call(node, request("ADD", bare))),
    address(first),
    "a new link of that name gets a client of its own, and the old one's address",
  );
  // The other container's is gone as soon as its lease would have been renewed.
  const lines = await clients(node), id = hex(new TextEncoder().encode("bare/net1/eth0"));
  assertEquals(lines.filter((line) => line.includes(id)).length, 1, lines.join("\n"));
  await bare.ip("link del eth0");
  await call(node, { ...request("DEL", bare), netns: null, containerId: "bare" });
  await eventually(
    "the lease of the namespace that went is released",
    () =>
      server.stderr.includes(`DHCPRELEASE(sw0) ${address(lease)} `) && /gone\/net1\/eth0: dropped/.test(process.stderr),
    LONG,
  );
  await nothingLeft(node);
  const again = await runPlugin(node, request("CHECK", bare));
  assertStringIncludes(again.json.msg, 'error looking up "eth0": Link not found');
  await call(node, { ...request("DEL", bare), netns: "/run/netns/none", containerId: "gone" });

  // A container of the same name in a new namespace has nothing to do with the old one.
  const before = await pluggedContainer(node, world, "same");
  await add(node, before);
  await node.removeContainer(before);
  const after = await pluggedContainer(node, world, "same");
  await add(node, after);
  assertEquals((await attachments(node)).length, 1);
  await del(node, after);
  await nothingLeft(node);
});

nodeTest("dhcp takes an expired address off the link, and puts it back", { needs: [...ISC] }, async ({ node }) => {
  const world = await switchWithServer(node);
  let server = await dhcpd(node, world, { seconds: 16 });
  const process = await daemon(node, QUICK);
  const container = await pluggedContainer(node, world);
  const result = await add(node, container);
  await container.ip("route add 10.9.0.0/16 via 192.168.1.7 metric 5", "route add default via 192.168.1.1 table 100");
  const before = await routes(container);
  await server.close();

  await eventually("the lease runs out", async () => (await addresses(container)).length === 0, LONG);
  assertMatch(process.stderr, /the lease of 192\.168\.1\.1\d\d\/24 ran out: taken off eth0/);
  const checked = await runPlugin(node, request("CHECK", container, conf({}, { prevResult: result })));
  assertEquals(checked.json.msg, `dhcp: the lease of ${result.ips[0].address} ran out and no server renewed it`);
  assertEquals((await container.ipJson("link", "show", "eth0"))[0].operstate, "UP");

  server = await dhcpd(node, world, { seconds: 16 });
  await eventually("the address comes back", async () => (await addresses(container)).length === 1, LONG);
  assertEquals(await addresses(container), [result.ips[0].address]);
  await eventually("with its routes", async () => (await routes(container)) === before);
  await eventually("the daemon is done", async () => {
    const { code } = await runPlugin(node, request("CHECK", container, conf({}, { prevResult: result })));
    return code === 0;
  });
  await server.until(new RegExp(`DHCPACK on ${address(result)} .*[^]*DHCPACK on ${address(result)} `), LONG);
  await del(node, container);
  await server.until(new RegExp(`DHCPRELEASE of ${address(result)} .* \\(found\\)`));
  await nothingLeft(node);
});

nodeTest("dhcp goes on by itself when the server rejects the address", { needs: [...MASQ] }, async ({ node }) => {
  const world = await switchWithServer(node);
  const first = await dnsmasq(world, ["--dhcp-option=option:T1,4"]);
  const process = await daemon(node, QUICK);
  const container = await pluggedContainer(node, world);
  const result = await add(node, container);
  await first.close();
  await node.sh("rm /run/dnsmasq.leases");
  const second = await dnsmasq(world, [], ".150,192.168.1.199");
  await eventually("the server rejects", () => seen(second, "DHCPNAK") > 0, LONG);
  await eventually(
    "and gives another address",
    () => /the server now leases 192\.168\.1\.1[5-9]\d\/24/.test(process.stderr),
    LONG,
  );
  assertEquals(await addresses(container), [result.ips[0].address], "the container keeps what it was told");
  const checked = await runPlugin(node, request("CHECK", container, conf({}, { prevResult: result })));
  assertMatch(
    checked.json.msg,
    /^dhcp: the server leases 192\.168\.1\.1[5-9]\d\/24 to eth0, but prevResult has 192\.168\.1\.\d+\/24$/,
  );
  await del(node, container);
  assertEquals(seen(second, "DHCPRELEASE"), 1, "what the server gave last is released");
  assertEquals(await dnsmasqLeases(node), []);
  await nothingLeft(node);
});

nodeTest(
  "dhcp daemon: one per socket, stale sockets replaced, the reference's flags",
  { needs: [...MASQ] },
  async ({ node }) => {
    const world = await switchWithServer(node);
    await dnsmasq(world);
    const run = (...flags: string[]) => node.exec(["/opt/cni/bin/dhcp", "daemon", ...flags]);
    const help = await run("-h");
    assertEquals([help.code, help.stdout, help.stderr.split("\n")[0]], [0, "", "Usage of daemon:"]);
    const wrong = await run("-timeout", "5");
    assertEquals([wrong.code, wrong.stderr.split("\n")[0]], [2, 'invalid value "5" for flag -timeout: parse error']);
    const relative = await run("-pidfile", "rel.pid");
    assertMatch(
      relative.stderr,
      /^\d{4}\/\d\d\/\d\d \d\d:\d\d:\d\d Error writing pidfile "rel.pid": path not absolute\n$/,
    );
    assertEquals(relative.code, 1);

    // What a daemon that was killed leaves.
    await node.sh(
      "mkdir -m 700 -p /run/cni; timeout 20 socat UNIX-LISTEN:/run/cni/dhcp.sock,unlink-close=0 /dev/null & sleep 0.5; kill $!",
    );
    assertEquals(await node.list("/run/cni"), ["dhcp.sock"]);
    const process = await daemon(node);
    assertEquals(await node.read("/run/dhcp.pid"), (await node.run("pgrep", "-f", "^/opt/cni/bin/dhcp daemon")).trim());
    assertEquals((await node.run("stat", "-c", "%a %U %F", "/run/cni/dhcp.sock")).trim(), "660 root socket");
    const second = await node.exec(["/opt/cni/bin/cnibox", "dhcp", "daemon", "-pidfile", "/run/second.pid"]);
    assertEquals(second.code, 1);
    assertStringIncludes(
      second.stderr,
      "Error getting listener: listen unix /run/cni/dhcp.sock: bind: address already in use",
    );
    assertEquals(await node.read("/run/second.pid"), undefined);
    const container = await pluggedContainer(node, world);
    await call(node, request("ADD", container));
    await del(node, container);
    await process.close();

    // A daemon that sees the host's root elsewhere.
    await node.sh("mkdir /run/host; mount --rbind / /run/host");
    const prefixed = node.spawn([
      "/opt/cni/bin/dhcp",
      "daemon",
      "-hostprefix",
      "/run/host",
      "-socketpath",
      "/run/x.sock",
      "-broadcast",
    ]);
    await prefixed.until(/listening on \/run\/host\/run\/x\.sock/);
    const elsewhere = conf({ daemonSocketPath: "/run/x.sock" });
    await call(node, request("ADD", container, elsewhere));
    assertStringIncludes((await clients(node)).join("\n"), " -B");
    assertEquals((await attachments(node, "/run/x")).length, 1);
    await del(node, container, elsewhere);
    assertEquals((await attachments(node, "/run/x")).length, 0);
  },
);

nodeTest(
  "dhcp daemon stays away from a socket that another program serves",
  { needs: [...MASQ, "reference"] },
  async ({ node }) => {
    await referenceDaemon(node);
    const second = await node.exec(["/opt/cni/bin/dhcp", "daemon"]);
    assertEquals(second.code, 1);
    assertMatch(
      second.stderr,
      /Error getting listener: listen unix \/run\/cni\/dhcp.sock: bind: address already in use\n$/,
    );
  },
);

nodeTest(
  "dhcp daemon starts by systemd's socket",
  { needs: [...MASQ, "tool:systemd-socket-activate"] },
  async ({ node }) => {
    const world = await switchWithServer(node);
    const server = await dnsmasq(world);
    const container = await pluggedContainer(node, world);
    await node.sh("mkdir -m 700 /run/cni");
    const systemd = node.spawn(["systemd-socket-activate", "-l", "/run/cni/dhcp.sock", "/opt/cni/bin/dhcp", "daemon"]);
    await systemd.until(/Listening on/);
    await add(node, container);
    await call(node, request("STATUS", container));
    await del(node, container);
    assertEquals(seen(server, "DHCPRELEASE"), 1);
    await nothingLeft(node);
  },
);

nodeTest("dhcp serves many containers at once", { needs: [...MASQ] }, async ({ node }) => {
  const world = await switchWithServer(node);
  const server = await dnsmasq(world, [], ".20,192.168.1.220");
  await daemon(node);
  const containers: Namespace[] = [];
  for (let i = 0; i < (inVm ? 4 : 30); i++) containers.push(await pluggedContainer(node, world, `c${i}`));
  const results = await Promise.all(containers.map((one) => add(node, one)));
  assertEquals(new Set(results.map(address)).size, containers.length);
  assertEquals((await clients(node)).length, containers.length);
  // Twice at once each, as runtimes do.
  await Promise.all([...containers, ...containers].map((one) => del(node, one)));
  await eventually("the server has all back", async () => (await dnsmasqLeases(node)).length === 0);
  assertEquals(seen(server, "DHCPRELEASE"), containers.length);
  await nothingLeft(node);
});

for (const [plugin, daemonBy] of [["ref", "cnibox"], ["cnibox", "ref"]] as const) {
  nodeTest(
    `dhcp: ${plugin}'s plugin with ${daemonBy}'s daemon`,
    { needs: [...MASQ, "reference"] },
    async ({ node }) => {
      const world = await switchWithServer(node);
      const server = await dnsmasq(world, ["--dhcp-option=121,0.0.0.0/0,192.168.1.1,10.8.0.0/16,0.0.0.0"]);
      const process = daemonBy === "ref" ? await referenceDaemon(node) : await daemon(node);
      const container = await pluggedContainer(node, world, "ctr1");
      const stdin = conf({ priority: 77, request: [{ option: "121" }] });
      const result = await call(node, request("ADD", container, stdin, plugin));
      assertEquals(result, {
        cniVersion: "1.1.0",
        ips: [{ address: result.ips[0].address, gateway: SERVER }],
        routes: [
          { dst: "0.0.0.0/0", gw: "192.168.1.1", priority: 77 },
          { dst: "10.8.0.0/16", gw: "0.0.0.0", priority: 77, scope: 253 },
        ],
      });
      await container.ip(`addr add ${result.ips[0].address} dev eth0`);
      await call(node, request("CHECK", container, { ...stdin, prevResult: result }, plugin));
      const failed = await runPlugin(node, { ...request("ADD", container, stdin, plugin), ifName: "eth9" });
      assertStringIncludes(failed.json.msg, 'error calling DHCP.Allocate: error looking up "eth9": Link not found');
      if (plugin === "cnibox") await call(node, request("STATUS", container, stdin));
      await call(node, request("DEL", container, stdin, plugin));
      if (daemonBy === "cnibox") {
        await eventually("the server has the address back", () => seen(server, "DHCPRELEASE") === 1);
      }
      await process.close();

      // The next daemon, whoever's it is, gets the same address for the same container.
      const other = daemonBy === "ref" ? await daemon(node) : await referenceDaemon(node);
      assertEquals((await call(node, request("ADD", container, stdin, daemonBy))).ips, result.ips);
      await other.close();
    },
  );
}

nodeTest(
  "dhcp CHECK adopts a container that the reference's daemon knew",
  { needs: [...MASQ, "reference"] },
  async ({ node }) => {
    const world = await switchWithServer(node);
    const server = await dnsmasq(world);
    const old = await referenceDaemon(node);
    const container = await pluggedContainer(node, world);
    const result = await add(node, container, conf(), "ref");
    await old.close();
    await daemon(node);
    await call(node, request("CHECK", container, conf({}, { prevResult: result })));
    assertEquals((await clients(node)).length, 1);
    await del(node, container);
    assertEquals(await dnsmasqLeases(node), []);
    assertNotEquals(seen(server, "DHCPRELEASE"), 0);
  },
);

nodeTest(
  "dhcp under bridge: traffic, and the lease is released before the link goes",
  { needs: [...MASQ] },
  async ({ node }) => {
    const world = await switchWithServer(node);
    const server = await dnsmasq(world);
    await daemon(node);
    await node.ip(
      "link add br0 type bridge",
      "link set br0 up",
      `link add up0 type veth peer name px netns ${world.name}`,
      "link set up0 master br0",
      "link set up0 up",
    );
    await world.ip("link set px master sw0", "link set px up");
    const container = await node.container();
    const net = new Attachment(node, conf({}, { bridge: "br0" }), container);
    const result = await net.add();
    assertMatch(result.ips[0].address, /^192\.168\.1\./);
    await assertPings(container, SERVER);
    await net.check();
    await net.del();
    assertEquals(seen(server, "DHCPRELEASE"), 1);
    assertEquals(await dnsmasqLeases(node), []);
    await nothingLeft(node);
  },
);

nodeTest(
  "dhcp under macvlan: traffic, and the lease is released",
  { needs: [...MASQ, "macvlan"] },
  async ({ node }) => {
    const world = await switchWithServer(node);
    const server = await dnsmasq(world);
    await daemon(node);
    await node.ip(`link add up0 type veth peer name px netns ${world.name}`, "link set up0 up");
    await world.ip("link set px master sw0", "link set px up");
    const container = await node.container();
    const net = new Attachment(node, conf({}, { type: "macvlan", master: "up0" }), container);
    await net.add();
    await assertPings(container, SERVER);
    await net.check();
    await net.del();
    assertEquals(seen(server, "DHCPRELEASE"), 1);
    assertEquals(await dnsmasqLeases(node), []);
    await nothingLeft(node);
  },
);

nodeTest("dhcp under ipvlan: containers that share a MAC get leases of their own", {
  needs: [...MASQ, "ipvlan"],
}, async ({ node }) => {
  const world = await switchWithServer(node);
  const server = await dnsmasq(world);
  await daemon(node, ["-broadcast"]);
  await node.ip(`link add up0 type veth peer name px netns ${world.name}`, "link set up0 up");
  await world.ip("link set px master sw0", "link set px up");
  const nets = [];
  for (const name of ["one", "two"]) {
    const container = await node.container(name);
    const net = new Attachment(node, conf({}, { type: "ipvlan", master: "up0" }), container);
    nets.push(net);
    await net.add();
    await assertPings(container, SERVER);
  }
  assertNotEquals(address(nets[0]?.result), address(nets[1]?.result));
  for (const net of nets) await net.del();
  assertEquals(seen(server, "DHCPRELEASE"), 2);
  await nothingLeft(node);
});
