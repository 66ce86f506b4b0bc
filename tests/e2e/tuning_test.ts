/** tuning on a real container's interface: what it sets, what DEL puts back, and life beside the reference. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import type { Namespace, Node } from "./support/node.ts";
import { Attachment, call, type Json, PluginFailed, runPlugin } from "./support/plugins.ts";
import { childPrograms, type Trace, tracePlugin } from "./support/trace.ts";
import { interopTest, nodeTest } from "./support/test.ts";

const BACKUP = "/run/cni/tuning";
const sysctl = {
  "net.ipv4.conf.IFNAME.log_martians": "1",
  "net.ipv4.ping_group_range": "5 7",
  "net.core.somaxconn": "99",
};
const everything = { mac: "02:AB:00:00:00:01", mtu: 1400, promisc: true, allmulti: true, txQLen: 500, sysctl };

/** A container whose eth0 was made by hand: its other end is in there too. */
async function container(node: Node): Promise<{ pod: Namespace; prevResult: Json }> {
  const pod = await node.container();
  await pod.ip("link add eth0 type veth peer name other", "link set eth0 up", "link set other up");
  const [link] = await pod.ipJson("link", "show", "dev", "eth0");
  const prevResult = {
    cniVersion: "1.1.0",
    interfaces: [{ name: "eth0", mac: "02:00:00:00:00:09" }, {
      name: "eth0",
      mac: link.address,
      mtu: 1500,
      sandbox: pod.netns,
    }],
  };
  return { pod, prevResult };
}

function request(pod: Namespace, prevResult: Json, more: Json) {
  return { type: "tuning", netns: pod, stdin: { cniVersion: "1.1.0", name: "mynet", ...more, prevResult } };
}

/** Everything that tuning changes. */
async function state(pod: Namespace): Promise<Json> {
  const [{ address, mtu, txqlen, promiscuity, flags }] = await pod.ipJson("link", "show", "dev", "eth0");
  return {
    link: { address, mtu, txqlen, promiscuity, flags },
    martians: await pod.sysctl("ipv4/conf/eth0/log_martians"),
    ping: await pod.sysctl("ipv4/ping_group_range"),
    somaxconn: await pod.sysctl("core/somaxconn"),
  };
}

nodeTest(
  "tuning sets everything inside, touches nothing outside, and DEL puts it back",
  { needs: ["veth"] },
  async ({ node }) => {
    const { pod, prevResult } = await container(node);
    const before = await state(pod);
    const outside = await node.sysctl("core/somaxconn");
    const result = await call(node, { command: "ADD", ...request(pod, prevResult, everything) });
    assertEquals(result.interfaces, [
      { name: "eth0", mac: "02:ab:00:00:00:01" },
      { name: "eth0", mac: "02:ab:00:00:00:01", mtu: 1400, sandbox: pod.netns },
    ]);
    const now = await state(pod);
    assertEquals([now.link.address, now.link.mtu, now.link.txqlen, now.link.promiscuity], [
      "02:ab:00:00:00:01",
      1400,
      500,
      1,
    ]);
    assert(now.link.flags.includes("ALLMULTI") && now.link.flags.includes("PROMISC"));
    assertEquals([now.martians, now.ping, now.somaxconn], ["1", "5\t7", "99"]);
    assertEquals(await node.sysctl("core/somaxconn"), outside);
    await call(node, { command: "CHECK", ...request(pod, result, everything) });
    await call(node, { command: "DEL", ...request(pod, result, everything) });
    assertEquals(await state(pod), before);
    assertEquals(await node.list(BACKUP), []);
    await call(node, { command: "DEL", ...request(pod, result, everything) });
  },
);

nodeTest("tuning ADD twice and DEL once end where it began", { needs: ["veth"] }, async ({ node }) => {
  const { pod, prevResult } = await container(node);
  const before = await state(pod);
  await call(node, { command: "ADD", ...request(pod, prevResult, everything) });
  await call(node, {
    command: "ADD",
    ...request(pod, prevResult, { ...everything, mtu: 1300, sysctl: { "net.core.somaxconn": "98" } }),
  });
  assertEquals((await state(pod)).link.mtu, 1300);
  await call(node, { command: "DEL", ...request(pod, prevResult, everything) });
  assertEquals(await state(pod), before);
});

nodeTest("tuning twice in one list: both entries are put back", { needs: ["bridge", "veth"] }, async ({ node }) => {
  const pod = await node.container();
  const conf = {
    cniVersion: "1.1.0",
    name: "mynet",
    plugins: [
      { type: "bridge", bridge: "br0", ipam: { type: "static", addresses: [{ address: "10.9.0.2/24" }] } },
      { type: "tuning", mtu: 1400, sysctl: { "net.core.somaxconn": "99" } },
      { type: "tuning", capabilities: { mac: true }, allmulti: true },
    ],
  };
  const attachment = new Attachment(node, conf, pod, { capabilities: { mac: "02:00:00:00:00:07" } });
  const { interfaces } = await attachment.add();
  assertEquals(interfaces.at(-1).mac, "02:00:00:00:00:07");
  await attachment.check();
  assertEquals(await node.list(BACKUP), [`${pod.name}_eth0.json`]);
  await attachment.del();
  assertEquals(await node.list(BACKUP), []);
  assertEquals(await pod.ipJson("link", "show", "type", "veth"), []);
});

const refusals: [more: Json, msg: string][] = [
  [{ sysctl: { ...sysctl, "net.ipv4.nope": "1" } }, "open /proc/sys/net/ipv4/nope: no such file or directory"],
  [{ sysctl: { ...sysctl, "kernel.shmmax": "1" } }, 'invalid net sysctl key: "kernel/shmmax"'],
  [{ sysctl: { ...sysctl, "net.ipv4.conf": "1" } }, "open /proc/sys/net/ipv4/conf: is a directory"],
  [
    { mtu: 1400, sysctl: { ...sysctl, "net.ipv4.tcp_rmem": "no" } },
    "write /proc/sys/net/ipv4/tcp_rmem: invalid argument",
  ],
  [{ sysctl, mac: "01:00:5e:00:00:01" }, "cannot assign requested address"],
  [{ sysctl, mac: "zz" }, "invalid args zz for MAC addr: address zz: invalid MAC address"],
  [{ sysctl, mtu: 70_000 }, "invalid argument"],
  [{ sysctl, mtu: -1 }, "invalid argument"],
];

for (const [more, msg] of refusals) {
  nodeTest(`tuning ADD that fails changes nothing and says why: ${msg}`, { needs: ["veth"] }, async ({ node }) => {
    const { pod, prevResult } = await container(node);
    const before = await state(pod);
    for (let time = 0; time < 2; time++) {
      const failed = await assertRejects(
        () => call(node, { command: "ADD", ...request(pod, prevResult, more) }),
        PluginFailed,
      );
      assertEquals([failed.error.code, failed.error.msg], [999, msg]);
      assertEquals(await state(pod), before);
      assertEquals(await node.list(BACKUP), []);
    }
  });
}

nodeTest("tuning says that the container has no such interface", async ({ node }) => {
  const pod = await node.container();
  const failed = await assertRejects(
    () => call(node, { command: "ADD", ...request(pod, {}, { mtu: 1400 }) }),
    PluginFailed,
  );
  assertEquals(failed.error.msg, 'failed to get "eth0": Link not found');
});

nodeTest("tuning obeys the node's allow-list", { needs: ["veth"] }, async ({ node }) => {
  const { pod, prevResult } = await container(node);
  await node.write(
    "/etc/cni/tuning/allowlist.conf",
    "^net\\.core\\.somaxconn$\n^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\n",
  );
  const add = (settings: Json) => call(node, { command: "ADD", ...request(pod, prevResult, { sysctl: settings }) });
  await add({ "net.core.somaxconn": "99", "net.ipv4.conf.IFNAME.log_martians": "1" });
  for (const key of ["net.ipv4.ip_forward", "net/core/somaxconn", "net.ipv4.conf.all.log_martians"]) {
    const failed = await assertRejects(() => add({ "net.core.somaxconn": "97", [key]: "1" }), PluginFailed);
    assertEquals(
      failed.error.msg,
      `Sysctl ${key} is not allowed. Only the following sysctls are allowed: ` +
        "[^net\\.core\\.somaxconn$ ^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$]",
    );
    assertEquals(await pod.sysctl("core/somaxconn"), "99");
  }
  await node.write("/etc/cni/tuning/allowlist.conf", "");
  await assertRejects(() => add({ "net.core.somaxconn": "97" }), PluginFailed, "are allowed: []");
  await call(node, { command: "CHECK", ...request(pod, prevResult, { sysctl: { "net.core.somaxconn": "99" } }) });
});

nodeTest("tuning reaches an interface whose name has a dot, and one that is named like the placeholder", {
  needs: ["veth"],
}, async ({ node }) => {
  const pod = await node.container();
  for (const ifName of ["eth0.100", "IFNAME"]) {
    await pod.ip(`link add ${ifName} type veth peer name other`);
    const more = { sysctl: { "net.ipv4.conf.IFNAME.log_martians": "1" } };
    await call(node, { command: "ADD", ifName, ...request(pod, {}, more) });
    assertEquals(await pod.sysctl(`ipv4/conf/${ifName}/log_martians`), "1");
    await call(node, { command: "CHECK", ifName, ...request(pod, {}, more) });
    await call(node, { command: "DEL", ifName, ...request(pod, {}, more) });
    assertEquals(await pod.sysctl(`ipv4/conf/${ifName}/log_martians`), "0");
    await pod.ip(`link del ${ifName}`);
  }
});

nodeTest("tuning sets what can only be written", { needs: ["veth"] }, async ({ node }) => {
  const { pod, prevResult } = await container(node);
  const more = { sysctl: { "net.ipv4.route.flush": "1" } };
  await call(node, { command: "ADD", ...request(pod, prevResult, more) });
  await call(node, { command: "CHECK", ...request(pod, prevResult, more) });
  await call(node, { command: "DEL", ...request(pod, prevResult, more) });
});

nodeTest(
  "tuning DEL needs neither interface nor namespace nor a sound configuration",
  { needs: ["veth"] },
  async ({ node }) => {
    const removals: ((pod: Namespace) => Promise<unknown>)[] = [
      (pod) => pod.ip("link del eth0"),
      (pod) => node.removeContainer(pod),
    ];
    for (const remove of removals) {
      const { pod, prevResult } = await container(node);
      await call(node, { command: "ADD", ...request(pod, prevResult, { mtu: 1400, mac: "02:00:00:00:00:01" }) });
      await remove(pod);
      await call(node, { command: "DEL", ...request(pod, 5, { mtu: "x", sysctl: [], args: 7 }), args: "nonsense" });
      assertEquals(await node.list(BACKUP), []);
    }
    await node.write(`${BACKUP}/ctr9_eth0.json`, '{"mac": "02:');
    await call(node, {
      type: "tuning",
      command: "DEL",
      containerId: "ctr9",
      stdin: { cniVersion: "1.1.0", name: "mynet" },
    });
    assertEquals(await node.list(BACKUP), []);
  },
);

nodeTest("tuning GC removes backups of lost containers of its own network", { needs: ["veth"] }, async ({ node }) => {
  const { pod, prevResult } = await container(node);
  const dataDir = "/var/lib/cni/mine";
  await call(node, { command: "ADD", ...request(pod, prevResult, { mtu: 1400, dataDir }) });
  const gc = (name: string, valid: Json) =>
    call(node, {
      type: "tuning",
      command: "GC",
      stdin: { cniVersion: "1.1.0", name, dataDir, "cni.dev/valid-attachments": valid },
    });
  await gc("other", []);
  await gc("mynet", [{ containerID: pod.name, ifname: "eth0" }]);
  assertEquals(await node.list(dataDir), [`${pod.name}_eth0.json`]);
  await gc("mynet", []);
  assertEquals(await node.list(dataDir), []);
});

nodeTest(
  "tuning GC puts back what a lost container's interface was like, and touches no other",
  { needs: ["veth"] },
  async ({ node }) => {
    const { pod, prevResult } = await container(node);
    const before = await state(pod);
    const gc = async (valid: Json) => {
      const stdin = { cniVersion: "1.1.0", name: "mynet", "cni.dev/valid-attachments": valid };
      const { code, stdout } = await runPlugin(node, { type: "tuning", command: "GC", stdin });
      assertEquals(code, 0, stdout);
    };
    await call(node, { command: "ADD", ...request(pod, prevResult, everything) });
    const tuned = await state(pod);
    await gc([{ containerID: pod.name, ifname: "eth0" }]);
    assertEquals(await state(pod), tuned);
    await gc([]);
    assertEquals([await state(pod), await node.list(BACKUP)], [before, []]);
    // The interface is another one by now; the namespace is.
    for (const again of ["ip link del eth0; ip link add eth0 mtu 1300 type veth peer name other", "new"]) {
      await call(node, { command: "ADD", ...request(pod, prevResult, { mtu: 1400 }) });
      if (again === "new") {
        await node.removeContainer(pod);
        const next = await node.container(pod.name);
        await next.ip("link add eth0 mtu 1300 type veth peer name other");
      } else await pod.exec(["sh", "-c", again]);
      await gc([]);
      const [link] = JSON.parse(
        await node.run("nsenter", `--net=${pod.netns}`, "ip", "-j", "link", "show", "dev", "eth0"),
      );
      assertEquals([link.mtu, await node.list(BACKUP)], [1300, []], again);
    }
    // Gone altogether.
    const lost = await container(node);
    await call(node, { command: "ADD", ...request(lost.pod, lost.prevResult, { mtu: 1400 }) });
    await node.removeContainer(lost.pod);
    await gc([]);
    assertEquals(await node.list(BACKUP), []);
  },
);

nodeTest("tuning writes the backup that the reference writes", { needs: ["reference", "veth"] }, async ({ node }) => {
  const { pod, prevResult } = await container(node);
  const path = `${BACKUP}/${pod.name}_eth0.json`;
  const attributes = { ...everything, sysctl: {} };
  await call(node, { command: "ADD", by: "ref", ...request(pod, prevResult, attributes) });
  const theirs = (await node.read(path))!;
  await call(node, { command: "DEL", by: "ref", ...request(pod, prevResult, attributes) });
  await call(node, { command: "ADD", ...request(pod, prevResult, attributes) });
  // What is behind the reference's keys is ours.
  assertEquals((await node.read(path))?.replace(/,\n "network": "mynet",\n "place": \{[^}]*\}/, ""), theirs);
});

nodeTest("tuning refuses in the reference's words", { needs: ["reference", "veth"] }, async ({ node }) => {
  const { pod, prevResult } = await container(node);
  for (const [more, msg] of refusals) {
    const output = await runPlugin(node, { command: "ADD", by: "ref", ...request(pod, prevResult, more) });
    assertEquals(output.json?.msg, msg);
  }
});

// The reference's CHECK never accepts capital letters, nor two values in one setting.
const plain = { mac: "02:ab:00:00:00:01", mtu: 1400, promisc: true, allmulti: true, txQLen: 500 };

nodeTest("tuning starts no more programs than it must, and none when there is nothing to do", {
  needs: ["veth", "tool:strace"],
}, async ({ node }) => {
  const { pod, prevResult } = await container(node);
  const programs = async (command: string, more: Json) => {
    const trace = await tracePlugin(node, { command, ...request(pod, prevResult, more) });
    assertEquals(trace.output.code, 0, trace.output.stdout);
    return toolsOf(trace);
  };
  assertEquals(await programs("ADD", {}), []);
  assertEquals(await programs("DEL", {}), []);
  assertEquals(await programs("ADD", everything), ["grep", "ip", "ip"]);
  assertEquals(await programs("CHECK", everything), ["grep", "ip"]);
  assertEquals(await programs("DEL", everything), ["ip"]);
  assertEquals(await programs("ADD", { sysctl }), ["grep"]);
  assertEquals(await programs("DEL", { sysctl }), []);
  assertEquals(await programs("ADD", { mtu: 1400 }), ["ip", "ip"]);
  assertEquals(await programs("DEL", { mtu: 1400 }), ["ip"]);
});

nodeTest("tuning STATUS says what the node does not allow", async ({ node }) => {
  await node.write("/etc/cni/tuning/allowlist.conf", "^net\\.core\\.");
  const status = (settings: Json) =>
    call(node, { type: "tuning", command: "STATUS", stdin: { cniVersion: "1.1.0", name: "mynet", sysctl: settings } });
  await status({ "net.core.somaxconn": "1" });
  const failed = await assertRejects(() => status({ "net.ipv4.ip_forward": "1" }), PluginFailed);
  assertEquals([failed.error.code, failed.error.msg.startsWith("Sysctl net.ipv4.ip_forward is not allowed. ")], [
    50,
    true,
  ]);
});

interopTest("tuning", { needs: ["veth"] }, async ({ adder, checker, deleter }, node) => {
  const { pod, prevResult } = await container(node);
  const before = await state(pod);
  const more = { ...plain, sysctl: { "net.core.somaxconn": "99" } };
  const result = await call(node, { command: "ADD", by: adder, ...request(pod, prevResult, more) });
  await call(node, { command: "CHECK", by: checker, ...request(pod, result, more) });
  await call(node, { command: "DEL", by: deleter, ...request(pod, result, more) });
  const after = await state(pod);
  assertEquals(after.link, before.link);
  // Settings are put back only where both are ours.
  if (adder === "cnibox" && deleter === "cnibox") assertEquals(after, before);
  assertEquals(await node.list(BACKUP), []);
});

/** What was started; nsenter and the shell become a tool, they are no processes of their own. */
function toolsOf(trace: Trace): string[] {
  return childPrograms(trace).filter((name) => name !== "nsenter" && name !== "sh");
}
