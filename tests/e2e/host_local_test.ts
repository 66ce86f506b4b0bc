/** host-local as a runtime runs it: the compiled binary on real folders, beside the reference and against it. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  type By,
  call,
  interopTest,
  inVm,
  type Json,
  type Node,
  nodeTest,
  type PluginCall,
  runPlugin,
  tracePlugin,
} from "./support/mod.ts";

const DATA = "/var/lib/cni/networks";
const FOLDER = `${DATA}/net1`;
const SMALL = [{ subnet: "10.1.0.0/29" }];

function conf(ipam: Json = {}, others: Json = {}): Json {
  return { cniVersion: "1.1.0", name: "net1", ipam: { type: "host-local", ranges: [SMALL], ...ipam }, ...others };
}

function request(
  command: PluginCall["command"],
  containerId: string,
  stdin: Json = conf(),
  by: By = "cnibox",
): PluginCall {
  // host-local looks at no namespace, but a runtime names one.
  return {
    type: "host-local",
    ...(command !== undefined && { command }),
    containerId,
    netns: "/run/netns/none",
    stdin,
    by,
  };
}

const ips = (result: Json): string[] => result.ips.map(({ address }: Json) => address);

/** Name, mode and content of every file of the network. */
async function files(node: Node, folder = FOLDER): Promise<string[]> {
  const script =
    'cd "$1" && for f in * .[!.]*; do [ -e "$f" ] || continue; stat -c "%n %a %s %h" "$f"; od -An -c "$f"; done';
  return (await node.sh(script, folder)).split("\n");
}

const leaseNames = async (node: Node, folder = FOLDER) =>
  (await node.list(folder)).filter((name) => /^[0-9a-f]+[.:]/.test(name));

const DUAL = conf({ ranges: [SMALL, [{ subnet: "fd00:1::/64" }]], routes: [{ dst: "0.0.0.0/0" }] });

interopTest("host-local, both families", {}, async ({ adder, checker, deleter }, node) => {
  for (const [id, v4, v6] of [["ctr1", "10.1.0.2/29", "fd00:1::2/64"], ["ctr2", "10.1.0.3/29", "fd00:1::3/64"]]) {
    assertEquals(ips(await call(node, request("ADD", id!, DUAL, adder))), [v4, v6]);
  }
  for (const id of ["ctr1", "ctr2"]) await call(node, request("CHECK", id, DUAL, checker));
  assert((await runPlugin(node, request("CHECK", "ctr3", DUAL, checker))).code === 1);
  const again = await runPlugin(node, request("ADD", "ctr1", DUAL, checker));
  assertEquals(
    again.json.msg,
    "failed to allocate for range 0: 10.1.0.2 has been allocated to ctr1, duplicate allocation is not allowed",
  );
  await call(node, request("DEL", "ctr1", DUAL, deleter));
  await call(node, request("DEL", "ctr1", DUAL, deleter));
  assertEquals(await leaseNames(node), ["10.1.0.3", "fd00:1::3"]);
  // The round robin goes on where the other left it.
  assertEquals(ips(await call(node, request("ADD", "ctr4", DUAL, checker))), ["10.1.0.4/29", "fd00:1::4/64"]);
  for (const id of ["ctr2", "ctr4"]) await call(node, request("DEL", id, DUAL, deleter));
  assertEquals(await node.list(FOLDER), ["last_reserved_ip.0", "last_reserved_ip.1", "lock"]);
  // The index goes with the last lease, unless another program removed that.
  if (deleter === "cnibox") assertEquals(await node.list("/run/cnibox/host-local"), []);
});

nodeTest("host-local writes what the reference writes, to the byte", { needs: ["reference"] }, async ({ node }) => {
  const written: Record<string, unknown> = {};
  for (const by of ["ref", "cnibox"] as const) {
    const on = (ipam: Json = {}) =>
      conf({ ranges: [SMALL, [{ subnet: "FD00:0001::/64" }]], dataDir: `/var/lib/${by}`, ...ipam });
    const results = [];
    for (const id of ["a", "b", "c"]) results.push((await runPlugin(node, request("ADD", id, on(), by))).stdout);
    const asked = { ...request("ADD", "d", on(), by), args: { IP: "10.1.0.6" } };
    results.push((await runPlugin(node, asked)).stdout);
    results.push((await runPlugin(node, request("DEL", "b", on(), by))).stdout);
    results.push((await runPlugin(node, request("CHECK", "a", on(), by))).stdout);
    written[by] = { results, files: await files(node, `/var/lib/${by}/net1`) };
  }
  assertEquals(written["cnibox"], written["ref"]);
});

nodeTest("host-local answers as the reference does in every version", { needs: ["reference"] }, async ({ node }) => {
  await node.write("/etc/pods.conf", "nameserver 192.0.2.53\nsearch a.example b.example\noptions ndots:5\n");
  for (const cniVersion of ["", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]) {
    const answers = await Promise.all((["cnibox", "ref"] as const).map(async (by) => {
      const on = {
        ...conf({
          dataDir: `/var/lib/${by}${cniVersion}`,
          ranges: [[{ subnet: "10.1.0.0/29" }], [{ subnet: "FD00:1::/64", gateway: "fd00:1::f" }]],
          routes: [{ dst: "0.0.0.0/0" }, { dst: "10.9.8.7/8", gw: "10.1.0.9", priority: 5 }, { dst: "::/0" }],
          resolvConf: "/etc/pods.conf",
        }),
        cniVersion,
      };
      const outputs = [];
      for (const command of ["ADD", "ADD", "CHECK", "DEL"] as const) {
        const { code, stdout, json } = await runPlugin(node, request(command, "a", on, by));
        // What helps is ours to say.
        outputs.push([code, code === 0 ? stdout : [json.code, json.msg]]);
      }
      return outputs;
    }));
    assertEquals(answers[0], answers[1], cniVersion);
  }
});

nodeTest("host-local and the reference fail in the same words", { needs: ["reference"] }, async ({ node }) => {
  const bad: [string, Json, PluginCall["args"]?][] = [
    ["no ranges", conf({ ranges: [] })],
    ["empty set", conf({ ranges: [[]] })],
    ["too small", conf({ ranges: [[{ subnet: "10.0.0.0/31" }]] })],
    ["mapped", conf({ ranges: [[{ subnet: "::ffff:10.0.0.0/120" }]] })],
    ["host bits", conf({ ranges: [[{ subnet: "10.0.0.1/24" }]] })],
    ["start outside", conf({ ranges: [[{ subnet: "10.0.0.0/24", rangeStart: "10.0.1.1" }]] })],
    ["start above end", conf({ ranges: [[{ subnet: "10.0.0.0/24", rangeStart: "10.0.0.9", rangeEnd: "10.0.0.8" }]] })],
    ["end outside", conf({ ranges: [[{ subnet: "10.0.0.0/24", rangeEnd: "10.0.1.1" }]] })],
    ["mixed", conf({ ranges: [[{ subnet: "10.0.0.0/24" }, { subnet: "fd00::/64" }]] })],
    ["overlap in a set", conf({ ranges: [[{ subnet: "10.0.0.0/22" }, { subnet: "10.0.1.0/24" }]] })],
    ["overlap of sets", conf({ ranges: [SMALL, [{ subnet: "10.0.0.0/24" }], SMALL] })],
    ["old version", { ...conf({ ranges: [SMALL, [{ subnet: "10.0.0.0/24" }]] }), cniVersion: "0.2.0" }],
    ["no ipam", { cniVersion: "1.1.0", name: "net1" }],
    ["bad subnet", conf({ ranges: [[{ subnet: "010.0.0.0/24" }]] })],
    ["bad gateway", conf({ ranges: [[{ subnet: "10.0.0.0/24", gateway: "x" }]] })],
    ["no resolv.conf", conf({ resolvConf: "/nowhere/resolv.conf" })],
    ["request for the gateway", conf(), { IP: "10.1.0.1" }],
    ["request outside", conf(), { IP: "10.9.0.1" }],
    ["list in IP", conf(), "IP=10.1.0.2,10.1.0.3"],
    ["unknown argument", conf(), "FOO=1"],
    ["bad request", conf({}, { args: { cni: { ips: ["x"] } } })],
    ["empty request", conf({}, { args: { cni: { ips: [""] } } })],
  ];
  for (const [what, stdin, args] of bad) {
    const [ours, ref] = await Promise.all(
      (["cnibox", "ref"] as const).map((by) =>
        runPlugin(node, { ...request("ADD", "a", stdin, by), ...(args !== undefined && { args }) })
      ),
    );
    assertEquals([ours!.json.msg, ours!.code], [ref!.json.msg, ref!.code], what);
  }
  assertEquals(await leaseNames(node), []);
  for (let n = 2; n < 7; n++) await call(node, request("ADD", `c${n}`));
  const [ours, ref] = [
    await runPlugin(node, request("ADD", "x")),
    await runPlugin(node, request("ADD", "x", conf(), "ref")),
  ];
  assertEquals(ours.json.msg, ref.json.msg);
  assertStringIncludes(ours.json.details, "5 of 5 addresses are taken");
});

// A call takes a second of the VM's one processor, and its memory holds some thirty.
const AT_ONCE = inVm ? 20 : 100;
nodeTest(
  `host-local shares a folder with the reference: ${AT_ONCE} at once, no address twice`,
  { needs: ["reference"] },
  async ({ node }) => {
    const wide = conf({ ranges: [[{ subnet: "10.7.0.0/24" }], [{ subnet: "fd00:7::/64" }]] });
    const ids = Array.from({ length: AT_ONCE }, (_, i) => `ctr${i}`);
    const by = (i: number, turn: number): By => (i + turn) % 2 === 0 ? "ref" : "cnibox";
    const results = await Promise.all(ids.map((id, i) => call(node, request("ADD", id, wide, by(i, 0)))));
    for (const family of [0, 1]) assertEquals(new Set(results.map((result) => ips(result)[family])).size, AT_ONCE);
    assertEquals((await leaseNames(node)).length, 2 * AT_ONCE);
    await Promise.all(ids.map((id, i) => call(node, request("CHECK", id, wide, by(i, 1)))));
    // Half of them go while others come, each by the other implementation.
    const [going, staying] = [ids.slice(0, AT_ONCE / 2), ids.slice(AT_ONCE / 2)];
    await Promise.all(going.flatMap((id, i) => [
      call(node, request("DEL", id, wide, by(i, 1))),
      call(node, request("ADD", `new${id}`, wide, by(i, 0))),
    ]));
    const there = [...staying, ...going.map((id) => `new${id}`)];
    const holders = (await node.sh('cd "$1" && for f in 10.* fd*; do head -1 "$f"; done', FOLDER)).trim().split(/\r\n/);
    assertEquals(holders.sort(), [...there, ...there].sort());
    await Promise.all(there.map((id, i) => call(node, request("DEL", id, wide, by(i, 0)))));
    assertEquals(await leaseNames(node), []);
  },
);

nodeTest("host-local starts no process, opens nothing in a temporary folder, and reads no lease but its own", {
  needs: ["tool:strace"],
}, async ({ node }) => {
  const wide = conf({ ranges: [[{ subnet: "10.64.0.0/16" }]] });
  await node.sh(
    'mkdir -p "$1"; i=0; while [ $i -lt 2000 ]; do printf "other%d\\r\\neth0" $i >"$1/10.64.$((i / 250)).$((i % 250))"; i=$((i + 1)); done',
    FOLDER,
  );
  // The first call reads all, and leaves an index.
  await call(node, request("ADD", "first", wide));
  for (const command of ["ADD", "CHECK", "DEL", "ADD"] as const) {
    const trace = await tracePlugin(node, request(command, "ctr1", wide));
    assertEquals(trace.output.code, 0, trace.output.stdout);
    assertEquals(trace.children, 0);
    assertEquals(trace.files.filter((path) => /^\/(tmp|var\/tmp|dev\/shm)\//.test(path)), []);
    const opened = trace.files.filter((path) => path.startsWith(`${FOLDER}/`) && /\/[0-9.]+$/.test(path));
    assert(opened.length <= 2, `${command}: ${opened.join(" ")}`);
  }
});

nodeTest(
  "host-local, killed at any instruction, leaves whole leases or none",
  { needs: ["tool:strace"] },
  async ({ node }) => {
    const calls =
      "linkat,link,unlink,unlinkat,rename,renameat,renameat2,utimensat,fdatasync,fsync,ftruncate,flock,mkdir,mkdirat,write";
    let ends = 0;
    for (let when = 1; ends === 0; when++) {
      assert(when < 150, "no call ends");
      const wrap = ["strace", "-f", "-qq", "-o", "/run/trace", "-e", `trace=${calls}`];
      const inject = ["-e", `inject=${calls}:signal=KILL:when=${when}`];
      const output = await runPlugin(node, { ...request("ADD", `killed${when}`, DUAL), wrap: [...wrap, ...inject] });
      if (output.code === 0) ends++;
      for (const name of await leaseNames(node)) {
        const content = await node.read(`${FOLDER}/${name}`);
        assert(
          /^(killed|next)\d+\r\neth0$/.test(content ?? ""),
          `killed at ${when}: ${name} is ${JSON.stringify(content)}`,
        );
      }
      // The next one is not disturbed, and the runtime's DEL cleans up.
      await call(node, request("ADD", `next${when}`, DUAL));
      for (const id of [`next${when}`, `killed${when}`]) await call(node, request("DEL", id, DUAL));
      assertEquals(await node.list(FOLDER), ["last_reserved_ip.0", "last_reserved_ip.1", "lock"], `killed at ${when}`);
    }
  },
);

nodeTest(
  "host-local DEL, killed at any instruction, is finished by the next",
  { needs: ["tool:strace"] },
  async ({ node }) => {
    const calls = "unlink,unlinkat,utimensat,fsync,flock,write,pwrite64";
    for (let when = 1, ends = 0; ends === 0; when++) {
      assert(when < 200, "no call ends");
      await call(node, request("ADD", "other", DUAL));
      await call(node, request("ADD", "ctr", DUAL));
      const wrap = ["strace", "-f", "-qq", "-o", "/run/trace", "-e", `trace=${calls}`];
      const inject = ["-e", `inject=${calls}:signal=KILL:when=${when}`];
      const output = await runPlugin(node, { ...request("DEL", "ctr", DUAL), wrap: [...wrap, ...inject] });
      if (output.code === 0) ends++;
      await call(node, request("DEL", "ctr", DUAL));
      assertEquals((await leaseNames(node)).length, 2, `killed at ${when}`);
      await call(node, request("CHECK", "other", DUAL));
      await call(node, request("DEL", "other", DUAL));
      when += Math.floor(when / 8);
    }
  },
);

nodeTest("host-local on a full or read-only file system says so, and leaves nothing", async ({ node }) => {
  const dataDir = "/run/data";
  await node.sh('mkdir "$1" && mount -t tmpfs -o nr_inodes=5,mode=755 full "$1"', dataDir);
  const full = await runPlugin(node, request("ADD", "a", conf({ dataDir, ranges: DUAL.ipam.ranges })));
  assertEquals([full.code, full.json.code], [1, 5]);
  assertStringIncludes(full.json.msg, "no space left on device");
  assertStringIncludes(full.json.details, "df -i");
  assertEquals(await leaseNames(node, `${dataDir}/net1`), []);
  await node.sh('mount -o remount,nr_inodes=100 "$1"', dataDir);
  await call(node, request("ADD", "a", conf({ dataDir })));
  await node.sh('mount -o remount,ro "$1"', dataDir);
  const before = await files(node, `${dataDir}/net1`);
  for (const command of ["ADD", "DEL"] as const) {
    const output = await runPlugin(node, request(command, command === "ADD" ? "b" : "a", conf({ dataDir })));
    assertEquals([output.code, output.json.code], [1, 5], command);
    assertStringIncludes(output.json.msg, "read-only file system");
  }
  await call(node, request("CHECK", "a", conf({ dataDir })));
  await call(node, request("DEL", "nobody", conf({ dataDir })));
  const status = await runPlugin(node, request("STATUS", "a", conf({ dataDir })));
  assertEquals([status.code, status.json.code], [1, 50]);
  assertStringIncludes(status.json.msg, "cannot be written");
  assertEquals(await files(node, `${dataDir}/net1`), before);
  await node.sh('mount -o remount,rw "$1"', dataDir);
  await call(node, request("DEL", "a", conf({ dataDir })));
});

nodeTest("host-local works where files cannot have two names", async ({ node }) => {
  // overlayfs and tmpfs know links; what refuses them here is the kernel's audit of this one call.
  const output = await runPlugin(node, {
    ...request("ADD", "a"),
    wrap: [
      "strace",
      "-f",
      "-qq",
      "-o",
      "/run/trace",
      "-e",
      "trace=link,linkat",
      "-e",
      "inject=link,linkat:error=EPERM",
    ],
  });
  assertEquals(output.code, 0, output.stdout);
  assertEquals(await node.read(`${FOLDER}/10.1.0.2`), "a\r\neth0");
  assertEquals(await node.list(FOLDER), ["10.1.0.2", "last_reserved_ip.0", "lock"]);
});

nodeTest("host-local waits for nothing that is planted in its folder", async ({ node }) => {
  await node.sh('mkdir -p "$1" && cd "$1" && ln -s /run/elsewhere lock', FOLDER);
  const output = await runPlugin(node, { ...request("ADD", "a"), timeout: 20_000 });
  assertEquals(output.json.code, 5);
  assertStringIncludes(output.json.msg, "lock is not a regular file");
  assertEquals(await node.read("/run/elsewhere"), undefined);
  await node.sh('cd "$1" && rm lock && mkfifo lock', FOLDER);
  for (const command of ["ADD", "DEL"] as const) {
    const output = await runPlugin(node, { ...request(command, "a"), timeout: 20_000 });
    assertStringIncludes(output.json.details, "a FIFO", command);
  }
  await node.sh('cd "$1" && rm lock && mkfifo 10.1.0.2 last_reserved_ip.0 .cnibox-lease', FOLDER);
  assertEquals(ips(await call(node, { ...request("ADD", "a"), timeout: 20_000 })), ["10.1.0.3/29"]);
  await call(node, { ...request("DEL", "a"), timeout: 20_000 });
});

nodeTest("host-local waits 20 s for a lock, no longer, and names who has it", async ({ node }) => {
  await call(node, request("ADD", "a"));
  const holder = node.spawn(["flock", "-F", `${FOLDER}/lock`, "sh", "-c", "echo held $$; exec sleep infinity"]);
  const [, pid] = await holder.until(/held (\d+)\n/);
  const [add, del] = await Promise.all([runPlugin(node, request("ADD", "b")), runPlugin(node, request("DEL", "a"))]);
  for (const output of [add, del]) {
    assertEquals([output.code, output.json.code], [1, 11]);
    assertEquals(output.json.msg, `could not lock ${FOLDER}/lock within 20 s`);
    assertStringIncludes(output.json.details, `held by process ${pid} (sleep)`);
  }
  // A holder that is killed takes its lock along.
  await node.sh("kill -9 $1", pid!);
  await holder.close();
  assertEquals(ips(await call(node, request("ADD", "b"))), ["10.1.0.3/29"]);
  await call(node, request("DEL", "a"));
});

nodeTest("host-local gives a full range's dead addresses to the living", async ({ node }) => {
  for (let n = 2; n < 7; n++) await call(node, request("ADD", `c${n}`));
  await node.sh('cd "$1" && touch -d 2001-02-03 10.*', FOLDER);
  // In use: by a pod with a process, by one that only a mount keeps, and known to a runtime on another network.
  const pod = await node.container("pod"), kept = await node.container("kept");
  await pod.ip("link set lo up", "address add 10.1.0.2/32 dev lo");
  await kept.ip("link set lo up", "address add 10.1.0.3/32 dev lo");
  await node.processIn(pod);
  await node.write("/var/lib/cni/results/other-c4-eth1", "{}");
  const output = await runPlugin(node, request("ADD", "new"));
  assertEquals(output.code, 0, output.stdout);
  assertEquals(ips(output.json), ["10.1.0.5/29"]);
  const notes = output.stderr.trim().split("\n");
  assertEquals(notes.map((note) => note.slice(0, 58)), [
    "host-local: 10.1.0.5: reclaimed from container c5, interfa",
    "host-local: 10.1.0.6: reclaimed from container c6, interfa",
  ]);
  assertEquals(await leaseNames(node), ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5"]);
  await call(node, request("ADD", "another"));
  const full = await runPlugin(node, request("ADD", "last"));
  assertStringIncludes(full.json.details, "5 of 5 addresses are taken, 2 may be left over from before this boot");
  // A repeated ADD is told whether its container lives.
  const twice = await runPlugin(node, request("ADD", "c2"));
  assertStringIncludes(twice.json.details, "in use in ");
  const gone = await runPlugin(node, request("ADD", "c4"));
  assertStringIncludes(gone.json.details, "in no network namespace of this host");
});

nodeTest("host-local GC and STATUS", async ({ node }) => {
  for (const id of ["a", "b", "c"]) await call(node, request("ADD", id));
  await call(node, request("STATUS", "x"));
  const valid = [{ containerID: "b", ifname: "eth0" }];
  await call(node, request("GC", "x", conf({}, { "cni.dev/valid-attachments": valid })));
  assertEquals(await leaseNames(node), ["10.1.0.3"]);
  await call(node, request("GC", "x"));
  assertEquals(await leaseNames(node), ["10.1.0.3"]);
  await call(node, request("GC", "x", conf({}, { "cni.dev/valid-attachments": null })));
  assertEquals(await leaseNames(node), []);
  const bad = await runPlugin(node, request("STATUS", "x", conf({ ranges: [[{ subnet: "10.0.0.1/24" }]] })));
  assertEquals([bad.code, bad.json.code], [1, 50]);
});

nodeTest("host-local never gives out what exclude names, of one range or of all", async ({ node }) => {
  const ranges = [[{ ...SMALL[0], exclude: ["10.1.0.2", "10.1.0.4/31"] }], [{ subnet: "fd00:1::/64" }]];
  const stdin = conf({ ranges, exclude: ["fd00:1::/65", "10.1.0.3"] });
  assertEquals(ips(await call(node, request("ADD", "ctr1", stdin))), ["10.1.0.6/29", "fd00:1:0:0:8000::/64"]);
  const full = await runPlugin(node, request("ADD", "ctr2", stdin));
  assertEquals(full.code, 1);
  assertStringIncludes(full.json.msg, "no IP addresses available in range set: 10.1.0.1-10.1.0.6");
  assertStringIncludes(full.json.details, "1 of 1 addresses are taken");
  assertEquals(await leaseNames(node), ["10.1.0.6", "fd00:1:0:0:8000::"]);
  await call(node, request("DEL", "ctr1", stdin));

  const asked = await runPlugin(
    node,
    request("ADD", "ctr3", conf({ ranges }, { args: { cni: { ips: ["10.1.0.5"] } } })),
  );
  assertEquals(asked.json.msg, "failed to allocate for range 0: requested IP address 10.1.0.5 is excluded");
  const refused: [Json, string][] = [
    [{ ranges: [[{ ...SMALL[0], exclude: ["10.2.0.0/24"] }]] }, "exclude 10.2.0.0/24 not in network 10.1.0.0/29"],
    [{ ranges: [[{ ...SMALL[0], exclude: ["10.1.0.0/16"] }]] }, "exclude leaves nothing of 10.1.0.0/29"],
    [{ exclude: ["10.2.0.1"] }, "exclude 10.2.0.1/32 is in no range"],
    [{ exclude: ["ten"] }, "invalid CIDR address: ten"],
  ];
  for (const [ipam, msg] of refused) {
    const { code, json } = await runPlugin(node, request("ADD", "ctr4", conf(ipam)));
    assertEquals(code, 1);
    assertStringIncludes(json.msg, msg);
  }
});

nodeTest("host-local with sticky gives a pod of the same name its address again, when it is free", async ({ node }) => {
  const stdin = conf({ sticky: true, ranges: [[{ subnet: "10.1.0.0/28" }], [{ subnet: "fd00:1::/64" }]] });
  const pod = (name: string, id: string, command: "ADD" | "DEL" = "ADD") => ({
    ...request(command, id, stdin),
    args: `IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=${name};K8S_POD_UID=${id}`,
  });
  const db = ["10.1.0.2/28", "fd00:1::2/64"];
  assertEquals(ips(await call(node, pod("db-0", "a1"))), db);
  assertEquals(ips(await call(node, pod("web", "b1"))), ["10.1.0.3/28", "fd00:1::3/64"]);
  await call(node, pod("db-0", "a1", "DEL"));
  // Others go on; the pod comes back to what it had, and the round robin does not follow it.
  assertEquals(ips(await call(node, pod("new", "c1"))), ["10.1.0.4/28", "fd00:1::4/64"]);
  assertEquals(ips(await call(node, pod("db-0", "a2"))), db);
  assertEquals(ips(await call(node, pod("newer", "d1"))), ["10.1.0.5/28", "fd00:1::5/64"]);
  // While the old one still has it, the new one gets another, which is its own from then on.
  assertEquals(ips(await call(node, pod("db-0", "a3"))), ["10.1.0.6/28", "fd00:1::6/64"]);
  for (const id of ["a2", "a3"]) await call(node, pod("db-0", id, "DEL"));
  assertEquals(ips(await call(node, pod("db-0", "a4"))), ["10.1.0.6/28", "fd00:1::6/64"]);
  // Another namespace, no pod at all, and a name that is none: as without the key.
  assertEquals(ips(await call(node, { ...pod("web", "e1"), args: "K8S_POD_NAMESPACE=other;K8S_POD_NAME=db-0" })), [
    "10.1.0.7/28",
    "fd00:1::7/64",
  ]);
  assertEquals(ips(await call(node, request("ADD", "f1", stdin)))[0], "10.1.0.8/28");
  assertEquals(
    ips(await call(node, { ...pod("x", "g1"), args: "K8S_POD_NAMESPACE=a b;K8S_POD_NAME=c" }))[0],
    "10.1.0.9/28",
  );

  const kept = await node.read(`${FOLDER}/.cnibox-sticky`) ?? "";
  assertEquals(kept.split("\n").filter((line) => line.includes("db-0")), [
    "10.1.0.6 shop/db-0 eth0",
    "fd00:1::6 shop/db-0 eth0",
    "10.1.0.7 other/db-0 eth0",
    "fd00:1::7 other/db-0 eth0",
  ]);
  // What is in its way costs the memory, not the container.
  await node.sh(`rm ${FOLDER}/.cnibox-sticky; mkdir ${FOLDER}/.cnibox-sticky`);
  assertEquals(ips(await call(node, pod("db-0", "h1")))[0], "10.1.0.10/28");
});
