/** `cnibox add`, `check`, `del`, `status`, `run`: networks attached by people, with our plugins, others' and both. */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import {
  type Allowed,
  assertPings,
  assertSameState,
  Attachment,
  type By,
  hostLocalLeftovers,
  type Json,
  type Node,
  nodeTest,
  request,
  serve,
  snapshot,
} from "./support/mod.ts";
import { cnibox, configure, must } from "./support/operator.ts";

const demo = {
  cniVersion: "1.0.0",
  name: "demo",
  plugins: [
    {
      type: "bridge",
      bridge: "br-demo",
      isGateway: true,
      ipMasq: true,
      hairpinMode: true,
      ipam: { type: "host-local", ranges: [[{ subnet: "10.85.0.0/24" }]], routes: [{ dst: "0.0.0.0/0" }] },
    },
    { type: "portmap", capabilities: { portMappings: true } },
    { type: "tuning", sysctl: { "net.ipv4.conf.IFNAME.arp_filter": "1" } },
  ],
};
const ports = [{ hostPort: 8080, containerPort: 80, protocol: "tcp" }];

/** What the first container leaves for those to come. */
const shared: Allowed[] = [
  hostLocalLeftovers,
  /br-demo/,
  /ip_forward|forwarding/,
  /CNI-HOSTPORT|CNI portfwd/,
  /^\/var\/lib\/cni|^\/run\/cni/,
];

/** Folders in the order in which plugins are looked for: ours, theirs, or a folder that takes some from each. */
async function pathOf(node: Node, by: By | "mixed"): Promise<string> {
  if (by !== "mixed") return by === "cnibox" ? "/opt/cni/bin" : "/opt/cni/ref";
  // Their IPAM below our bridge, their portmap between two of ours.
  await node.sh(
    "mkdir -p /opt/mixed; for p in bridge tuning; do ln -sf /opt/cni/bin/cnibox /opt/mixed/$p; done; " +
      "for p in host-local portmap; do ln -sf /opt/cni/ref/$p /opt/mixed/$p; done",
  );
  return "/opt/mixed";
}

/** The result without what is drawn by lot. */
function steady(result: Json): Json {
  const { interfaces, ...rest } = result;
  return {
    ...rest,
    interfaces: interfaces.map(({ name, mac: _, mtu: __, ...more }: Json) => ({
      name: name.replace(/^veth.*/, "veth"),
      ...more,
    })),
  };
}

for (const by of ["cnibox", "ref", "mixed"] as const) {
  nodeTest(
    `cnibox add, check and del do with ${
      by === "ref" ? "the reference's plugins" : by === "mixed" ? "a mixed chain" : "our plugins"
    } what a runtime does`,
    { needs: ["iptables", ...(by === "cnibox" ? [] : ["reference" as const])] },
    async ({ node }) => {
      const path = await pathOf(node, by);
      const options = { env: { CNI_PATH: path, PATH: "/usr/sbin:/usr/bin:/sbin:/bin" } };
      await configure(node, demo);
      const container = await node.container("one");
      await container.run("ip", "link", "set", "lo", "up");
      const outside = await node.outside();
      const before = await snapshot(node);
      const { json } = await must(node, ["add", "demo", "one", "--id", "one", "-p", "8080:80", "--json"], options);

      // By hand, as libcni calls the plugins: another container, the next address.
      const two = await node.container("two");
      const byHand = new Attachment(node, demo, two, {
        capabilities: { portMappings: [{ ...ports[0], hostPort: 8081 }] },
      });
      const wanted = await byHand.add(by === "ref" ? "ref" : "cnibox");
      const renamed = JSON.parse(
        JSON.stringify(steady(wanted)).replaceAll("/two", "/one").replaceAll("10.85.0.3", "10.85.0.2"),
      );
      assertEquals(steady(json), renamed);
      await byHand.del(by === "ref" ? "ref" : "cnibox");

      await assertPings(container, "10.85.0.1");
      const server = await serve(container, 80);
      assertEquals((await request(outside, outside.hostIPv4, 8080))?.name, "one");
      await server.close();
      assertEquals(
        (await must(node, ["check", "demo", "one", "--id", "one", "-p", "8080:80", "--json"], options)).json.healthy,
        true,
      );

      const cache = JSON.parse(await node.read("/var/lib/cni/results/demo-one-eth0") ?? "");
      assertEquals(Object.keys(cache), [
        "kind",
        "containerId",
        "config",
        "ifName",
        "networkName",
        "netns",
        "capabilityArgs",
        "result",
      ]);
      assertEquals(atob(cache.config), await node.read("/etc/cni/net.d/10-demo.conflist"));
      assertEquals(cache.result, json);
      assertEquals(cache.capabilityArgs, { portMappings: ports });

      await must(node, ["del", "demo", "one", "--id", "one"], options);
      assertEquals(await node.list("/var/lib/cni/results"), []);
      assertSameState(before, await snapshot(node), { allow: [...shared, /POSTROUTING|PREROUTING|OUTPUT/] });
      await must(node, ["del", "demo", "one", "--id", "one"], options);
    },
  );
}

nodeTest(
  "cnibox add shows a person what was attached, and JSON to a script",
  { needs: ["iptables", "tool:script"] },
  async ({ node }) => {
    await configure(node, demo);
    for (const name of ["one", "two"]) await node.container(name);
    const line = "/opt/cni/bin/cnibox add demo one -p 127.0.0.1:8080:80/udp";
    const env = { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", TERM: "dumb" };
    const { stdout } = await node.exec(["script", "-qec", line, "/dev/null"], { env });
    for (
      const part of [
        "attached eth0",
        "10.85.0.2/24, gateway 10.85.0.1",
        "127.0.0.1:8080 → 80/udp",
        "br-demo",
        "cnitool-",
      ]
    ) {
      assertStringIncludes(stdout, part);
    }
    assert(!stdout.includes("\x1b"), "colours go to terminals alone");
    const piped = await must(node, ["add", "demo", "two"]);
    assertEquals([piped.json.ips[0].address, piped.stderr], ["10.85.0.3/24", ""]);
  },
);

nodeTest("cnibox takes what cnitool takes from the environment", { needs: ["iptables"] }, async ({ node }) => {
  await node.write("/etc/nets/10-demo.conflist", JSON.stringify(demo));
  await node.container("t1");
  const env = {
    PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
    NETCONFPATH: "/etc/nets",
    CNI_PATH: "/opt/cni/bin",
    CNI_ARGS: "IgnoreUnknown=1;K8S_POD_NAME=pod",
    CAP_ARGS: JSON.stringify({ portMappings: ports, dns: { servers: ["192.0.2.53"] } }),
    CNI_IFNAME: "net7",
  };
  const { json } = await must(node, ["add", "demo", "/run/netns/t1", "--json"], { env });
  assertEquals(json.interfaces.at(-1).name, "net7");
  const cache = JSON.parse(await node.read("/var/lib/cni/results/demo-cnitool-458ee3745730d9600685-net7") ?? "{}");
  assertEquals(cache.cniArgs, [["IgnoreUnknown", "1"], ["K8S_POD_NAME", "pod"]]);
  assertEquals(cache.capabilityArgs, { dns: { servers: ["192.0.2.53"] }, portMappings: ports });
  // DEL and CHECK need none of it again: they have the attachment.
  const plain = { env: { PATH: env.PATH, NETCONFPATH: env.NETCONFPATH } };
  await must(node, ["check", "demo", "t1"], plain);
  await must(node, ["del", "demo", "t1"], plain);
  assertEquals(await node.list("/var/lib/cni/results"), []);
  assertEquals((await node.run("iptables-save", "-t", "nat")).includes("--dport 8080"), false);
});

const cnitool = Deno.env.get("CNIBOX_E2E_CNITOOL");
nodeTest(
  `cnibox and cnitool see each other's attachments${cnitool ? "" : " [skipped: CNIBOX_E2E_CNITOOL names no cnitool]"}`,
  { needs: ["iptables"], ...(cnitool && { binds: { "/opt/cnitool": cnitool.replace(/\/[^/]*$/, "") } }) },
  async ({ node }) => {
    if (!cnitool) return;
    await configure(node, demo);
    await node.container("one");
    const env = {
      PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
      CNI_PATH: "/opt/cni/bin",
      CAP_ARGS: JSON.stringify({ portMappings: ports }),
    };
    const theirs = async (...args: string[]) => {
      const output = await node.exec(["/opt/cnitool/cnitool", ...args, "demo", "/run/netns/one"], { env });
      assertEquals([output.code, output.stderr], [0, ""]);
      return output.stdout;
    };
    const result = JSON.parse(await theirs("add"));
    const cache = await firstCache(node);
    await must(node, ["check", "demo", "one"]);
    await must(node, ["del", "demo", "one"]);
    assertEquals(await node.list("/var/lib/cni/results"), []);
    await node.sh("rm -f /var/lib/cni/networks/demo/last_reserved_ip.0");
    const { json } = await must(node, ["add", "demo", "one", "--json"], { env });
    // Older libraries print an empty dns, and do not write the namespace down.
    const plain = (text?: string) => text?.replace('"dns":{},', "").replace('"netns":"/run/netns/one",', "");
    assertEquals({ dns: {}, ...json }, { dns: {}, ...result });
    assertEquals(plain(await firstCache(node)), plain(cache), "the files are the same to the byte");
    await theirs("check");
    await theirs("del");
    assertEquals(await node.list("/var/lib/cni/results"), []);
  },
);

async function firstCache(node: Node): Promise<string | undefined> {
  const [name] = await node.list("/var/lib/cni/results");
  return name && await node.read(`/var/lib/cni/results/${name}`);
}

nodeTest(
  "cnibox add undoes a chain that fails in the middle and says where",
  { needs: ["iptables"] },
  async ({ node }) => {
    const plugins = [demo.plugins[0], { type: "tuning", mtu: 1400 }, { type: "broken" }, demo.plugins[1]];
    await configure(node, { ...demo, plugins });
    await node.sh("mkdir -p /opt/all; cp -P /opt/cni/bin/* /opt/all/");
    await node.write(
      "/opt/all/broken",
      '#!/bin/sh\n[ "$CNI_COMMAND" = ADD ] || exit 0\necho \'{"code": 42, "msg": "the fuse blew", "details": "buy a new one"}\'; exit 1\n',
      0o755,
    );
    const container = await node.container("one");
    await configure(node, { ...demo, plugins });
    const env = { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", CNI_PATH: "/opt/all" };
    const before = await snapshot(node);
    const inside = await snapshot(container);
    const { code, stdout, stderr } = await cnibox(node, ["add", "demo", "one", "--id", "one"], { env });
    assertEquals([code, stdout], [1, ""]);
    assertEquals(stderr.split("\n").slice(0, 4), [
      'cnibox add: plugin type="broken" failed (add): the fuse blew',
      "  buy a new one",
      '  plugin 3 of 4 of network "demo"',
      "  undone by DEL of broken, tuning, bridge",
    ]);
    const json = await cnibox(node, ["add", "demo", "one", "--id", "one", "--json"], { env });
    assertEquals([json.code, json.json.code, json.json.msg], [
      1,
      42,
      'plugin type="broken" failed (add): the fuse blew',
    ]);
    assertSameState(before, await snapshot(node), { allow: shared });
    assertSameState(inside, await snapshot(container));
  },
);

nodeTest("cnibox says of a plugin that hangs, crashes or prints garbage what it did", async ({ node }) => {
  const list = (type: string) => ({ cniVersion: "1.0.0", name: type, plugins: [{ type }] });
  const script = (body: string) => `#!/bin/sh\n[ "$CNI_COMMAND" = ADD ] || exit 0\n${body}\n`;
  const plugins: [string, string, number, RegExp][] = [
    ["hangs", "exec sleep 600", 75, /plugin \/opt\/all\/hangs did not answer ADD within 0\.3 s/],
    ["crashes", "kill -SEGV $$", 1, /netplugin failed with no error message: signal: segmentation fault/],
    ["garbage", "echo hello", 1, /failed to unmarshal raw result: /],
    ["mute", "exit 3", 1, /netplugin failed with no error message: exit status 3/],
    ["moody", "echo oops >&2; exit 1", 1, /netplugin failed: "oops\\n"/],
  ];
  await node.container("one");
  const env = { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", CNI_PATH: "/opt/all" };
  for (const [type, body, status, message] of plugins) {
    await configure(node, list(type));
    await node.write(`/opt/all/${type}`, script(body), 0o755);
    const { code, stdout, stderr } = await cnibox(node, ["add", type, "one", "--timeout", "0.3"], { env });
    assertEquals([code, stdout], [status, ""], stderr);
    assertMatch(stderr, message);
    assertStringIncludes(stderr, `plugin 1 of 1 of network "${type}"`);
  }
});

nodeTest("cnibox refuses what cannot be, and says what can", async ({ node }) => {
  await configure(node, { ...demo, plugins: [{ type: "loopback" }] });
  await configure(node, { ...demo, name: "other", plugins: [{ type: "missing" }] });
  await node.write("/etc/cni/net.d/99-broken.conflist", "{ nonsense");
  await node.container("one");
  const table: [args: string[], status: number, ...parts: string[]][] = [
    [
      ["add", "dmo", "one"],
      66,
      'no net configuration with name "dmo"',
      "did you mean demo?",
      "networks there: demo, other",
      "99-broken.conflist",
    ],
    [["add", "demo", "on"], 66, "no network namespace at /run/netns/on", "did you mean one?"],
    [["add", "demo", "pid:999999"], 66, "no network namespace at /proc/999999/ns/net", "there is no such process"],
    [["add", "demo", "pid:x"], 64, "a process is named like pid:1234"],
    [["add", "demo", "/etc/passwd"], 64, "/etc/passwd is not a network namespace"],
    [["add", "demo", "/proc/self/ns/net"], 64, "is the host's own network namespace; nothing was changed"],
    [["add", "demo", "one", "--id", "a/b"], 1, "invalid characters in containerID"],
    [["add", "demo", "one", "--ifname", "a/b"], 1, "interface name contains / or : or whitespace characters"],
    [
      ["add", "demo", "one", "-p", "8080:80"],
      64,
      "--publish: no plugin of this network publishes ports",
      "portMappings",
    ],
    [["add", "demo", "one", "--frob"], 64, "unknown flag --frob"],
    [["add", "demo"], 64, "NETNS is missing", "usage: cnibox add"],
    [
      ["add", "--conf", "/etc/cni/net.d/99-broken.conflist", "one"],
      65,
      "99-broken.conflist:1:3: the key nonsense without quotes",
    ],
    [["add", "--conf", "/nowhere", "one"], 66, "/nowhere: no such file"],
    [
      ["add", "other", "one"],
      1,
      'failed to find plugin "missing" in path [/opt/cni/bin]',
      'plugin 1 of 1 of network "other"',
    ],
    [["del", "demo"], 64, "NETNS is missing", "--id"],
    [["check", "demo", "one"], 66, '/run/netns/one is not attached to network "demo", as far as is known', "looked in"],
    [["check", "demo", "--id", "nobody"], 66, 'container "nobody" is not attached to network "demo"', "looked in"],
    [["frobnicate"], 64, 'unknown command or plugin "frobnicate"', "cnibox --help"],
    [["ad"], 64, 'unknown command or plugin "ad"', "did you mean add?"],
  ];
  const before = await snapshot(node);
  for (const [args, status, ...parts] of table) {
    const { code, stdout, stderr } = await cnibox(node, args);
    assertEquals([code, stdout], [status, ""], `${args.join(" ")}: ${stderr}`);
    for (const part of parts) assertStringIncludes(stderr, part, args.join(" "));
  }
  assertSameState(before, await snapshot(node));
});

nodeTest("cnibox add --create makes the namespace that is not there, and takes it back when it fails", {
  needs: ["iptables"],
}, async ({ node }) => {
  await configure(node, demo);
  const { stderr } = await must(node, ["add", "demo", "box", "--create"]);
  assertStringIncludes(stderr, "made network namespace /run/netns/box");
  const [lo] = JSON.parse(await node.run("ip", "-n", "box", "-j", "link", "show", "lo"));
  assert(lo.flags.includes("UP"));
  await must(node, ["check", "demo", "box"]);
  await must(node, ["add", "demo", "box", "--create", "--ifname", "eth1"]);
  await configure(node, { ...demo, name: "bad", plugins: [{ type: "missing" }] }, "20-bad.conflist");
  const failed = await cnibox(node, ["add", "bad", "other", "--create"]);
  assertEquals([failed.code, await node.list("/run/netns")], [1, ["box"]]);
  const path = await cnibox(node, ["add", "demo", "/run/netns/third", "--create"]);
  assertEquals(path.code, 64);
  await must(node, ["del", "demo", "box", "--ifname", "eth1"]);
  await must(node, ["del", "demo", "box"]);
});

nodeTest("cnibox says what needs root", async ({ node }) => {
  await configure(node, { ...demo, plugins: [{ type: "loopback" }] });
  await node.container("one");
  const output = await node.exec(
    ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/opt/cni/bin/cnibox", "add", "demo", "one"],
  );
  assertEquals(output.code, 77);
  assertStringIncludes(output.stderr, "add needs root: it makes links, addresses and rules");
});

nodeTest(
  "cnibox add refuses a second attachment of the same name and leaves the first alone",
  { needs: ["iptables"] },
  async ({ node }) => {
    await configure(node, demo);
    const container = await node.container("one");
    await must(node, ["add", "demo", "one"]);
    const before = await snapshot(node);
    const { code, stderr } = await cnibox(node, ["add", "demo", "one"]);
    assertEquals(code, 1);
    assertStringIncludes(stderr, 'is already attached to network "demo" with eth0');
    assertSameState(before, await snapshot(node));
    await assertPings(container, "10.85.0.1");
  },
);

nodeTest(
  "a first plugin that finds the interface in its way does not take it down",
  { needs: ["reference"] },
  async ({ node }) => {
    await configure(node, { ...demo, plugins: [demo.plugins[0]] });
    const container = await node.container("one");
    await container.ip("link add eth0 type veth peer name other");
    const before = await snapshot(container);
    for (const plugins of ["ref", "cnibox"] as const) {
      const { code, stderr } = await cnibox(node, ["add", "demo", "one"], { plugins });
      assertEquals(code, 1);
      assertMatch(stderr, /already exists/);
      assertSameState(before, await snapshot(container));
    }
  },
);

nodeTest(
  "cnibox attaches several networks at once, and none when one fails",
  { needs: ["iptables"] },
  async ({ node }) => {
    const second = {
      ...demo,
      name: "second",
      plugins: [{
        ...demo.plugins[0],
        bridge: "br-second",
        ipam: { type: "host-local", ranges: [[{ subnet: "10.86.0.0/24" }]] },
      }],
    };
    await configure(node, demo);
    await configure(node, second);
    await configure(node, { ...demo, name: "bad", plugins: [{ type: "ptp", ipam: { type: "host-local" } }] });
    const container = await node.container("one");
    await must(node, ["add", "demo,second", "one"]);
    const addresses = await container.run("ip", "-br", "addr");
    assertMatch(addresses, /^eth0@\S+ +UP +10\.85\.0\.2\/24/m);
    assertMatch(addresses, /^eth1@\S+ +UP +10\.86\.0\.2\/24/m);
    await must(node, ["del", "demo,second", "one"]);
    assertEquals(await node.list("/var/lib/cni/results"), []);
    const { code, stderr } = await cnibox(node, ["add", "demo,bad", "one"]);
    assertEquals(code, 1);
    assertStringIncludes(stderr, 'undone: network "demo"');
    assertEquals(await node.list("/var/lib/cni/results"), []);
    assertEquals((await container.run("ip", "-br", "link")).includes("eth"), false);
  },
);

nodeTest(
  "cnibox del works when namespace and configuration are gone, and by process",
  { needs: ["iptables"] },
  async ({ node }) => {
    await configure(node, demo);
    const one = await node.container("one");
    const two = await node.container("two");
    const pid = await node.processIn(two);
    const before = await snapshot(node);
    await must(node, ["add", "demo", "one", "--id", "one", "-p", "8080:80"]);
    await must(node, ["add", "demo", `pid:${pid}`, "--id", "two", "-p", "8081:80"]);
    await must(node, ["check", "demo", "two"], {});
    await must(node, ["del", "demo", "two"]);
    await node.removeContainer(one);
    await node.sh("rm /etc/cni/net.d/*");
    const { stderr } = await must(node, ["del", "demo", "--id", "one"]);
    assertStringIncludes(stderr, "taking the configuration kept in /var/lib/cni/results/demo-one-eth0");
    assertSameState(before, await snapshot(node), { allow: shared });
  },
);

nodeTest(
  "cnibox add --trace writes one JSON object a line beside the result",
  { needs: ["iptables"] },
  async ({ node }) => {
    await configure(node, demo);
    await node.container("one");
    const { json, stderr } = await must(node, ["add", "demo", "one", "--trace", "--json"]);
    assertEquals(json.cniVersion, "1.0.0");
    const lines = stderr.trim().split("\n").map((line) => JSON.parse(line));
    const commands = lines.filter(({ argv }) => argv);
    assert(
      commands.some(({ plugin, argv, input }) =>
        plugin === "bridge" && argv.includes("-batch") && /link add/.test(input)
      ),
    );
    assert(
      commands.every((one) =>
        typeof one.ms === "number" && typeof one.status === "number" && "stdout" in one && one.time
      ),
    );
    assertEquals(lines.filter(({ command }) => command).map(({ plugin, command }) => `${plugin} ${command}`), [
      "bridge ADD",
      "portmap ADD",
      "tuning ADD",
    ]);
    await must(node, ["del", "demo", "one", "--trace-file", "/run/trace"]);
    assert((await node.read("/run/trace") ?? "").trim().split("\n").every((line) => JSON.parse(line)));
  },
);

nodeTest(
  "cnibox status tells whether the next container can be attached",
  { needs: ["iptables"] },
  async ({ node }) => {
    const ipam = { type: "host-local", ranges: [[{ subnet: "10.85.0.0/30" }]] };
    await configure(node, { ...demo, cniVersion: "1.1.0", plugins: [{ ...demo.plugins[0], ipam }] });
    await node.container("one");
    assertEquals((await must(node, ["status", "demo", "--json"])).json.ready, true);
    await configure(node, {
      ...demo,
      cniVersion: "1.1.0",
      plugins: [{ ...demo.plugins[0], ipam: { ...ipam, dataDir: "/etc/passwd" } }],
    });
    const { code, json } = await cnibox(node, ["status", "demo", "--json"]);
    assertEquals([code, typeof json.msg], [1, "string"]);
    await configure(node, demo);
    const old = await must(node, ["status", "demo"]);
    assertMatch(old.stdout, /STATUS came with 1\.1\.0: its plugins were not asked; they are there/);
    const { json: unasked } = await must(node, ["status", "demo", "--json"]);
    assertEquals([unasked.asked, unasked.ready], [false, undefined]);
    // Nobody is ready whose next ADD is known to fail.
    await configure(node, { ...demo, plugins: [{ ...demo.plugins[0], ipam }] });
    await must(node, ["add", "demo", "one"]);
    const full = await cnibox(node, ["status", "demo"]);
    assertEquals([full.code, /all 1 addresses of .* are taken/.test(full.stderr)], [1, true], full.stderr);
    await configure(node, { ...demo, plugins: [{ type: "no-such-plugin" }] });
    assertEquals((await cnibox(node, ["status", "demo"])).code, 1);
  },
);

nodeTest("cnibox run gives a command a network and leaves nothing", { needs: ["iptables"] }, async ({ node }) => {
  await configure(node, demo);
  const before = await snapshot(node);
  const { stdout } = await must(node, ["run", "demo", "--", "ip", "-br", "addr"]);
  assertMatch(stdout, /^eth0@\S+ +UP +10\.85\.0\.2\/24/m);
  assertMatch(stdout, /^lo +UNKNOWN +127\.0\.0\.1\/8/m);
  assertEquals((await cnibox(node, ["run", "demo", "--", "sh", "-c", "exit 7"])).code, 7);
  assertEquals((await cnibox(node, ["run", "demo", "--", "sh", "-c", "kill -TERM $$"])).code, 143);
  assertEquals((await cnibox(node, ["run", "demo", "--", "no-such-command"])).code, 127);
  const piped = await cnibox(node, ["run", "demo", "--", "cat"], { input: "through\n" });
  assertEquals(piped.stdout, "through\n");
  const failed = await cnibox(node, ["run", "nothing", "--", "true"]);
  assertEquals(failed.code, 66);
  const busy = await cnibox(node, ["run", "demo", "--ip", "192.0.2.1", "--", "true"]);
  assertEquals(busy.code, 125, busy.stderr);

  const running = node.spawn([
    "/opt/cni/bin/cnibox",
    "run",
    "demo",
    "-p",
    "8080:80",
    "--",
    "sh",
    "-c",
    "echo up; exec sleep 600",
  ]);
  await running.until(/up/);
  await running.close();
  assertEquals(await running.ended(), 143);
  assertSameState(before, await snapshot(node), { allow: [...shared, /POSTROUTING|PREROUTING|OUTPUT/] });
  assertEquals((await node.run("ip", "netns")).trim(), "");
});
