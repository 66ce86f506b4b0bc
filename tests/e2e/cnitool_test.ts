/** `cnitool` by name: the reference's command line, to the letter. */
import { assertEquals, assertMatch } from "@std/assert";
import { type Node, nodeTest, type Output } from "./support/mod.ts";
import { configure, must } from "./support/operator.ts";

const PATH = "/usr/sbin:/usr/bin:/sbin:/bin";
const PLUGINS = { PATH, CNI_PATH: "/opt/cni/bin" };
const ID = "cnitool-77383ca0a0715733ca6f";

function cnitool(node: Node, args: string[], env: Record<string, string> = PLUGINS): Promise<Output> {
  return node.exec(["/opt/cni/bin/cnitool", ...args], { env });
}

const USAGE = "cnitool: Add, check, remove, gc or status network interfaces from a network namespace\n" +
  "  cnitool add    <net> <netns>\n  cnitool check  <net> <netns>\n  cnitool del    <net> <netns>\n" +
  "  cnitool gc     <net> <netns>\n  cnitool status <net> <netns>\n";

const list = (name: string, ...plugins: object[]) => ({ cniVersion: "1.1.0", name, plugins });
const bridge = { type: "bridge", bridge: "br1", isGateway: true, ipam: { type: "host-local", subnet: "10.85.0.0/24" } };

/** A plugin that succeeds at ADD with nothing, and fails at everything else that `fails` names. */
const script = (fails: string) =>
  `#!/bin/sh\ncase "$CNI_COMMAND" in ${fails}) ` +
  `echo '{"code":42,"msg":"the fuse blew","details":"buy a new one"}'; exit 1;; ADD) echo '{}';; esac\n`;

nodeTest("cnitool says what the reference says, and fails as it does", async ({ node }) => {
  await configure(node, list("demo", bridge));
  await configure(node, list("gone", { type: "missing" }));
  await configure(node, list("broken", { type: "broken", name: "fuse" }));
  await node.write("/opt/all/broken", script("ADD"), 0o755);
  const add = ["add", "demo", "/run/netns/none"];
  const table: [args: string[], env: Record<string, string>, stderr: string][] = [
    [[], PLUGINS, USAGE],
    [["add", "demo"], PLUGINS, USAGE],
    [["frob", "demo", "x"], PLUGINS, `unknown command "frob" for "cnitool"\n${USAGE}`],
    [["add", "dmo", "x"], PLUGINS, 'no net configuration with name "dmo" in /etc/cni/net.d\n'],
    [add, { ...PLUGINS, NETCONFPATH: "/nowhere" }, "no net configurations found in /nowhere\n"],
    [add, { ...PLUGINS, CAP_ARGS: "{" }, "unexpected end of JSON input\n"],
    [add, { ...PLUGINS, CAP_ARGS: "hello" }, "invalid character 'h' looking for beginning of value\n"],
    [add, { ...PLUGINS, CAP_ARGS: "{a:1}" }, "invalid character 'a' looking for beginning of object key string\n"],
    [add, { ...PLUGINS, CAP_ARGS: '{"a" 1}' }, "invalid character '1' after object key\n"],
    [add, { ...PLUGINS, CAP_ARGS: '{"a":1 "b"}' }, "invalid character '\"' after object key:value pair\n"],
    [add, { ...PLUGINS, CAP_ARGS: '{"a":[1 2]}' }, "invalid character '2' after array element\n"],
    [add, { ...PLUGINS, CAP_ARGS: "{} x" }, "invalid character 'x' after top-level value\n"],
    [
      add,
      { ...PLUGINS, CAP_ARGS: "[]" },
      "json: cannot unmarshal array into Go value of type map[string]interface {}\n",
    ],
    [add, { ...PLUGINS, CNI_ARGS: "A=1;" }, 'invalid CNI_ARGS pair ""\n'],
    [add, { ...PLUGINS, CNI_ARGS: "A", CAP_ARGS: "x" }, "invalid character 'x' looking for beginning of value\n"],
    [add, { ...PLUGINS, CNI_IFNAME: "" }, "interface name is empty\n"],
    [add, { PATH }, 'plugin type="bridge" failed (add): no paths provided\n'],
    [
      ["add", "gone", "x"],
      PLUGINS,
      'plugin type="missing" failed (add): failed to find plugin "missing" in path [/opt/cni/bin]\n',
    ],
    [
      ["add", "broken", "x"],
      { PATH, CNI_PATH: "/opt/all" },
      'plugin type="broken" name="fuse" failed (add): the fuse blew; buy a new one\n',
    ],
  ];
  for (const [args, env, stderr] of table) {
    assertEquals(await cnitool(node, args, env), { code: 1, stdout: "", stderr }, `${args} ${JSON.stringify(env)}`);
  }
  assertEquals(await cnitool(node, ["--help"]), { code: 0, stdout: USAGE, stderr: "" });
});

nodeTest("cnitool hands on what check, del, gc and status of a plugin say", async ({ node }) => {
  const env = { PATH, CNI_PATH: "/opt/all" };
  await configure(node, list("broken", { type: "broken" }));
  await node.write("/opt/all/broken", script("CHECK|DEL|GC|STATUS"), 0o755);
  const call = (verb: string) => cnitool(node, [verb, "broken", "/var/run/netns/testing"], env);
  assertEquals((await call("add")).code, 0);
  assertEquals(await node.list("/var/lib/cni/results"), [`broken-${ID}-eth0`]);
  const fuse = "the fuse blew; buy a new one\n";
  for (const verb of ["check", "status"]) assertEquals(await call(verb), { code: 1, stdout: "", stderr: fuse });
  const deleted = `plugin type="broken" failed (delete): ${fuse}`;
  assertEquals(await call("del"), { code: 1, stdout: "", stderr: deleted });
  const collected = `failed to delete stale attachment ${ID} eth0: ${deleted}failed to GC plugin broken: ${fuse}`;
  assertEquals(await call("gc"), { code: 1, stdout: "", stderr: collected });

  await node.write("/opt/all/broken", script("NONE"), 0o755);
  for (const verb of ["check", "status", "gc"]) {
    assertEquals(await call(verb), { code: 0, stdout: "", stderr: "" }, verb);
  }
  assertEquals(await node.list("/var/lib/cni/results"), [], "gc without a list of the valid deletes all");
});

nodeTest(
  "cnitool names the attachment after the path it was given, and takes the interface from flag or variable",
  async ({
    node,
  }) => {
    const env = { PATH, CNI_PATH: "/opt/all", CNI_IFNAME: "net0" };
    await configure(node, list("mute", { type: "mute" }));
    await node.write("/opt/all/mute", script("NONE"), 0o755);
    const made = async (...args: string[]) => {
      const { code, stderr } = await node.exec([
        "sh",
        "-c",
        'cd /run/netns && exec /opt/cni/bin/cnitool "$@"',
        "sh",
        ...args,
      ], {
        env,
      });
      assertEquals([code, stderr], [0, ""]);
      const [name = ""] = await node.list("/var/lib/cni/results");
      await cnitool(node, ["gc", "mute", "-"], env);
      return name;
    };
    await node.sh("mkdir -p /run/netns");
    assertEquals(await made("add", "mute", "/run/netns/t1"), "mute-cnitool-458ee3745730d9600685-net0");
    assertEquals(await made("add", "mute", "t1"), "mute-cnitool-458ee3745730d9600685-net0");
    assertEquals(await made("add", "mute", "//run/./netns/x/../t1/"), "mute-cnitool-458ee3745730d9600685-net0");
    for (const flag of [["-i", "net7"], ["--ifname", "net7"], ["--ifname=net7"], ["-inet7"]]) {
      assertEquals(await made(...flag, "add", "mute", "t1"), "mute-cnitool-458ee3745730d9600685-net7");
    }
  },
);

for (const by of ["bin", "ref"]) {
  nodeTest(`cnitool and cnibox share attachments, with the plugins of /opt/cni/${by}`, {
    needs: ["bridge", "veth", "iptables", ...(by === "ref" ? ["reference" as const] : [])],
  }, async ({ node }) => {
    const env = { PATH, CNI_PATH: `/opt/cni/${by}`, CNI_ARGS: "IgnoreUnknown=1;K8S_POD_NAME=web" };
    await configure(node, list("demo", bridge));
    await node.container("one");
    const { code, stdout, stderr } = await cnitool(node, ["add", "demo", "/run/netns/one", "more"], env);
    assertEquals([code, stderr], [0, ""]);
    assertMatch(stdout, /^\{\n {4}"cniVersion": "1\.1\.0",\n/);
    assertMatch(stdout, /[^\n]$/, "no end of line after the result");
    const [file = ""] = await node.list("/var/lib/cni/results");
    const cached = JSON.parse(await node.read(`/var/lib/cni/results/${file}`) ?? "{}");
    assertEquals(cached.result, JSON.parse(stdout));
    assertEquals(cached.cniArgs, [["IgnoreUnknown", "1"], ["K8S_POD_NAME", "web"]]);
    await must(node, ["check", "demo", "one"], { env });
    assertEquals(await cnitool(node, ["check", "demo", "/run/netns/one"], env), { code: 0, stdout: "", stderr: "" });
    assertEquals(await cnitool(node, ["del", "demo", "/run/netns/one"], env), { code: 0, stdout: "", stderr: "" });
    const { json } = await must(node, ["add", "demo", "one"], { env });
    assertEquals(json.ips[0].address, "10.85.0.3/24", "JSON, since nobody looks");
    assertEquals((await cnitool(node, ["del", "demo", "/run/netns/one"], env)).code, 0);
    assertEquals(await node.list("/var/lib/cni/results"), []);
  });
}
