/**
 * cluster on a real etcd: three machines share a pool, members die, somebody misconfigures, and the main plugins
 * delegate to it.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import type { Namespace, Node } from "./support/node.ts";
import type { Need } from "./support/needs.ts";
import { cnibox, configure, must } from "./support/operator.ts";
import { Attachment, binDir, type Json, type PluginOutput, runPlugin } from "./support/plugins.ts";
import { register } from "./support/test.ts";
import { realTool, standIn, withStandIns } from "./support/tools.ts";
import { eventually } from "./support/traffic.ts";
import { inVm, patience } from "./support/vm.ts";
import { type EtcdOptions, type Member, switchboard, type World } from "./support/world.ts";

const PASSWORD = "a-password-that-nobody-sees";

interface WorldOptions {
  readonly machines?: number;
  readonly etcd?: EtcdOptions | false;
  readonly needs?: readonly Need[];
}

function worldTest(name: string, options: WorldOptions, body: (world: World) => Promise<void>): void {
  const { machines = 3, etcd = {}, needs = [] } = options;
  register(name, { needs: ["root", "bridge", "veth", "tool:etcd", "tool:curl", ...needs] }, async () => {
    await using world = await switchboard(machines, { etcd });
    for (const [index, node] of world.nodes.entries()) {
      await node.write("/etc/machine-id", `${index + 1}`.repeat(32) + "\n");
    }
    await body(world);
  });
}

/** The `ipam` section of a node's configuration. */
function ipam(world: World, node: Node, changes: Json = {}): Json {
  return {
    type: "cluster",
    node: world.nameOf(node),
    ranges: [[{ subnet: "10.42.0.0/26" }]],
    timeout: `${15 * patience}s`,
    store: { etcd: { endpoints: [world.etcd] } },
    ...changes,
  };
}

const conf = (section: Json, name = "pods") => ({ cniVersion: "1.1.0", name, ipam: section });

/** Calls the IPAM plugin as a main plugin does. */
async function ask(node: Node, command: "ADD" | "DEL" | "CHECK" | "STATUS", id: string, stdin: Json) {
  const about = command === "STATUS" ? { ifName: null } : { containerId: id, netns: "/run/netns/none" };
  return await runPlugin(node, { type: "cluster", command, ...about, stdin });
}

async function added(node: Node, id: string, stdin: Json): Promise<string> {
  const output = await ask(node, "ADD", id, stdin);
  assertEquals(output.code, 0, output.stdout + output.stderr);
  return output.json.ips[0].address.split("/")[0];
}

async function done(node: Node, command: "DEL" | "CHECK" | "STATUS", id: string, stdin: Json): Promise<void> {
  const output = await ask(node, command, id, stdin);
  assertEquals(output.code, 0, output.stdout + output.stderr);
}

function refused(output: PluginOutput, code: number, msg: RegExp): void {
  assert(output.code !== 0, output.stdout);
  assertEquals(output.json?.code, code, output.stdout);
  assertMatch(output.json.msg, msg);
}

/** How many ADDs or DELs there are at once: in the virtual machine all of them, and three etcds, share a processor. */
const AT_ONCE = inVm ? 4 : 12;

/** Works through jobs, so many at once. */
async function atOnce(count: number, jobs: readonly (() => Promise<void>)[]): Promise<void> {
  const left = jobs.values();
  await Promise.all(Array.from({ length: count }, async () => {
    for (const job of left) await job();
  }));
}

/** Files below /var/lib/cni, by name. */
async function files(node: Node): Promise<string> {
  return await node.sh("cd /var/lib/cni && find . | sort");
}

interface Key {
  readonly key: string;
  readonly value: string;
}

/** Everything in an etcd that answers without a password. */
async function keys(world: World): Promise<Key[]> {
  const body = JSON.stringify({ key: btoa("/"), range_end: btoa("0") });
  const answer = await world.hub.run("curl", "-s", "-f", "-d", body, `${world.etcd}/v3/kv/range`);
  return (JSON.parse(answer).kvs ?? []).map(({ key, value }: Key) => ({ key: atob(key), value: atob(value) }));
}

/** The network where `cnibox cluster` finds it. */
async function publish(node: Node, section: Json): Promise<void> {
  await configure(node, { cniVersion: "1.1.0", name: "pods", plugins: [{ type: "bridge", ipam: section }] });
}

worldTest(
  "three machines share a pool to its last address, and leave nothing",
  { etcd: { onMachines: true } },
  async (world) => {
    const { endpoints } = world;
    const confs = new Map<Node, Json>();
    for (const node of world.nodes) {
      const section = ipam(world, node, { store: { etcd: { endpoints } } });
      confs.set(node, conf(section));
      await publish(node, section);
      // Locks and folders are there from the first use on.
      await added(node, "first", confs.get(node));
      await done(node, "DEL", "first", confs.get(node));
      await must(node, ["cluster", "trim"]);
    }
    const before = await Promise.all(world.nodes.map(files));
    assertEquals(await keys(world), []);

    const given: { node: Node; id: string; ip: string }[] = [];
    const full: PluginOutput[] = [];
    const adds = Array.from({ length: 70 }, (_, index) => async () => {
      const node = world.nodes[index % 3]!;
      const output = await ask(node, "ADD", `c${index}`, confs.get(node));
      if (output.code === 0) given.push({ node, id: `c${index}`, ip: output.json.ips[0].address });
      else full.push(output);
    });
    await atOnce(AT_ONCE, adds);
    assertEquals(new Set(given.map(({ ip }) => ip)).size, given.length);
    for (const output of full) {
      refused(output, 100, /^pool "pods" is full: no address of 10\.42\.0\.1-10\.42\.0\.62 is free$/);
      assertMatch(output.json.details, /61 blocks are taken: node\d has \d+/);
    }
    assertEquals([given.length, full.length], [61, 9]);
    const { json } = await must(world.nodes[0]!, ["cluster", "blocks", "--json"]);
    assertEquals(json.blocks.length, 61);

    await atOnce(AT_ONCE, given.map(({ node, id }) => () => done(node, "DEL", id, confs.get(node))));
    for (const node of world.nodes) await must(node, ["cluster", "trim"]);
    assertEquals(await Promise.all(world.nodes.map(files)), before);
    assertEquals(await keys(world), []);
  },
);

worldTest("with two of three members killed a node gives out what it owns, and says when that is all", {
  etcd: { onMachines: true },
}, async (world) => {
  const { members } = world;
  const [one, two] = world.nodes as [Node, Node];
  const section = {
    ranges: [[{ subnet: "10.42.0.0/24", rangeStart: "10.42.0.8" }]],
    blockSize: 30,
    timeout: `${3 * patience}s`,
    store: { etcd: { endpoints: world.endpoints } },
  };
  const mine = conf(ipam(world, one, section));
  const given = [await added(one, "c1", mine)];
  for (const member of members.slice(1)) await member.kill();
  for (const id of ["c2", "c3"]) given.push(await added(one, id, mine));
  await done(one, "DEL", "c3", mine);
  await done(one, "CHECK", "c1", mine);
  await done(one, "STATUS", "", mine);
  given.pop();
  // A block of four: all of it, what rests included, then no more.
  for (const id of ["c4", "c5"]) given.push(await added(one, id, mine));
  assertEquals(new Set(given).size, 4, given.join());
  refused(await ask(one, "ADD", "c6", mine), 11, /^pool "pods": .*etcd.*http:\/\/10\.99\.0\./);
  refused(await ask(one, "STATUS", "", mine), 50, /etcd/);
  const foreign = conf(ipam(world, two, section));
  refused(await ask(two, "ADD", "c1", foreign), 11, /etcd/);
  await done(one, "DEL", "c5", mine);
  given.pop();

  // Back again: what was asked for meanwhile is settled, and everybody goes on.
  await world.startEtcd();
  await eventually("the members agree again", async () => {
    const output = await ask(two, "ADD", "c2", foreign);
    if (output.code === 0) given.push(output.json.ips[0].address.split("/")[0]);
    else assertEquals(output.json.code, 11, output.stdout);
    return output.code === 0;
  }, 60_000);
  for (const id of ["c7", "c8", "c9"]) given.push(await added(one, id, mine));
  assertEquals(new Set(given).size, 7, given.join());
  const owners = (await keys(world)).filter(({ key }) => key.startsWith("/cnibox/cluster/v1/pods/"));
  const known = JSON.parse(await one.read("/var/lib/cni/cluster/pods/blocks.json") ?? "").blocks;
  const there = owners.filter(({ value }) => JSON.parse(value).node === "node1");
  assertEquals(there.length, known.length, JSON.stringify([there, known], null, 1));
});

worldTest("the leader is killed while addresses are given out: none is given twice", {
  etcd: { onMachines: true },
}, async (world) => {
  const store = { etcd: { endpoints: world.endpoints } };
  const confs = world.nodes.map((node) => conf(ipam(world, node, { store, ranges: [[{ subnet: "10.42.0.0/24" }]] })));
  const given: string[] = [];
  const [count, killed] = inVm ? [40, 12] : [100, 30];
  const adds = Array.from({ length: count }, (_, index) => async () => {
    if (index === killed) await (await leader(world)).kill();
    const output = await ask(world.nodes[index % 3]!, "ADD", `c${index}`, confs[index % 3]);
    if (output.code === 0) given.push(output.json.ips[0].address);
    else assertEquals(output.json?.code, 11, output.stdout);
  });
  await atOnce(AT_ONCE / 2, adds);
  assert(given.length > killed, `${given.length} of ${count} were given`);
  assertEquals(new Set(given).size, given.length);
});

async function leader(world: World): Promise<Member> {
  for (const member of world.members) {
    const text = await world.hub.run("curl", "-s", "-f", "-d", "{}", `${member.url}/v3/maintenance/status`);
    const { header, leader } = JSON.parse(text);
    if (header.member_id === leader) return member;
  }
  throw new Error("no member is the leader");
}

/** An authority of its own, in a folder of a node, with certificates for etcd's address and for a client. */
async function certificates(node: Node, folder: string): Promise<void> {
  await node.sh(
    `mkdir -p "$1"; cd "$1"
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=test authority" -keyout ca.key -out ca.pem 2>&1
    printf 'subjectAltName=IP:10.99.0.254,IP:127.0.0.1\\n' >ext
    for name in server client; do
      openssl req -newkey rsa:2048 -nodes -subj "/CN=$name" -keyout $name.key -out $name.csr 2>&1
      openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out $name.pem 2>&1
    done`,
    folder,
  );
}

const SERVER = ["--cert-file", "/etc/etcd-tls/server.pem", "--key-file", "/etc/etcd-tls/server.key"];

/** Copies files of the switch to where the machines' configuration names them. */
async function hand(world: World, files: Readonly<Record<string, string>>): Promise<void> {
  for (const [name, from] of Object.entries(files)) {
    const text = await world.hub.read(from) ?? "";
    for (const node of world.nodes) await node.write(`/etc/cni/etcd/${name}`, text, 0o600);
  }
}

/** Starts etcd with TLS and a password, and gives the machines what they need to reach it. */
async function secure(world: World): Promise<void> {
  const { hub } = world;
  for (const folder of ["/etc/etcd-tls", "/etc/other-tls"]) await certificates(hub, folder);
  await world.startEtcd({ scheme: "https", args: [...SERVER, "--bcrypt-cost", "4"] });
  const post = (path: string, body: Json) =>
    hub.run("curl", "-s", "-k", "-f", "-d", JSON.stringify(body), `${world.etcd}/v3/auth/${path}`);
  await post("user/add", { name: "root", password: PASSWORD });
  await post("role/add", { name: "root" });
  await post("user/grant", { user: "root", role: "root" });
  // And one who may work on another cluster's keys alone.
  await post("user/add", { name: "guest", password: PASSWORD });
  await post("role/add", { name: "guest" });
  const [key, range_end] = [btoa("/elsewhere/"), btoa("/elsewhere0")];
  await post("role/grant", { name: "guest", perm: { permType: "READWRITE", key, range_end } });
  await post("user/grant", { user: "guest", role: "guest" });
  await post("enable", {});
  await hand(world, { "ca.pem": "/etc/etcd-tls/ca.pem", "other-ca.pem": "/etc/other-tls/ca.pem" });
  for (const node of world.nodes) {
    await node.write("/etc/cni/etcd/password", `${PASSWORD}\n`, 0o600);
    await node.write("/etc/cni/etcd/wrong-password", "guessed-by-somebody\n", 0o600);
  }
}

const secured = (world: World, changes: Json = {}) => ({
  store: {
    etcd: {
      endpoints: [world.etcd],
      caFile: "/etc/cni/etcd/ca.pem",
      user: "root",
      passwordFile: "/etc/cni/etcd/password",
      ...changes,
    },
  },
});

worldTest("the executable opens no internet socket, and no secret is in a command line or an environment", {
  machines: 1,
  etcd: false,
  needs: ["tool:strace", "tool:openssl"],
}, async (world) => {
  await secure(world);
  const [node] = world.nodes as [Node];
  await node.sh("mkdir /run/trace");
  const wrap = ["strace", "-ff", "-qq", "-v", "-s", "8192", "-e", "trace=socket,execve", "-o", "/run/trace/t"];
  const stdin = conf(ipam(world, node, secured(world)));
  const about = { containerId: "c1", netns: "/run/netns/none" };
  const output = await runPlugin(node, { type: "cluster", command: "ADD", ...about, stdin, wrap });
  assertEquals(output.code, 0, output.stdout + output.stderr);
  let curls = 0;
  for (const name of await node.list("/run/trace")) {
    const text = await node.read(`/run/trace/${name}`) ?? "";
    for (const secret of [PASSWORD, btoa(PASSWORD), "Authorization"]) assert(!text.includes(secret), text);
    const isCurl = /execve\("[^"]*\/curl", .* = 0$/m.test(text);
    assertEquals(/socket\(AF_INET6?, SOCK_STREAM/.test(text), isCurl, text);
    if (isCurl) curls++;
    else assert(!/AF_INET/.test(text), text);
  }
  assert(curls >= 3, `${curls} requests were made`);
});

worldTest("a store that refuses or cannot be reached is named with the reason, and nothing is lost", {
  machines: 1,
  etcd: false,
  needs: ["tool:openssl"],
}, async (world) => {
  await secure(world);
  const [node] = world.nodes as [Node];
  const good = conf(ipam(world, node, secured(world)));
  await added(node, "c1", good);
  const before = await files(node);
  // A pool of its own each time: nothing is confirmed yet, so the store has to be asked.
  const bad = (changes: Json) => ask(node, "ADD", "c2", conf(ipam(world, node, secured(world, changes)), "fresh"));
  const password = await bad({ passwordFile: "/etc/cni/etcd/wrong-password" });
  refused(password, 7, /^pool "fresh": etcd https:\/\/10\.99\.0\.254:2379: user "root": .*invalid user ID or password/);
  assert(!(password.stdout + password.stderr).includes("guessed"), password.stdout);
  refused(
    await bad({ caFile: "/etc/cni/etcd/other-ca.pem" }),
    7,
    /^pool "fresh": etcd https:\/\/10\.99\.0\.254:2379: SSL certificate problem/,
  );
  refused(await bad({ caFile: "/etc/cni/etcd/none.pem" }), 7, /"ipam\.store\.etcd\.caFile" is "\/etc\/cni\/etcd\/none/);
  refused(await bad({ user: undefined }), 7, /etcd https:.*user name is empty/);
  // Another cluster's prefix: this user's rights end where the other's keys begin.
  refused(await bad({ user: "guest" }), 7, /^pool "fresh": etcd https:\/\/10\.99\.0\.254:2379: .*permission denied/);
  const elsewhere = secured(world, { user: "guest", prefix: "/elsewhere/cnibox" });
  await added(node, "c2", conf(ipam(world, node, elsewhere), "elsewhere"));
  await done(node, "DEL", "c2", conf(ipam(world, node, elsewhere), "elsewhere"));
  refused(
    await bad({ endpoints: ["https://10.99.0.254:1"] }),
    11,
    /^pool "fresh": etcd https:\/\/10\.99\.0\.254:1: .*(refused|Failed to connect)/,
  );
  // The container that was there before is what it was.
  await done(node, "CHECK", "c1", good);
  assertEquals((await files(node)).replaceAll(/^.*\b(fresh|elsewhere)\b.*\n/gm, ""), before);
  await added(node, "c2", good);
  for (const id of ["c1", "c2"]) await done(node, "DEL", id, good);
});

worldTest("an etcd that wants a client's certificate gets it; a missing, foreign or unusable one is named", {
  machines: 1,
  etcd: false,
  needs: ["tool:openssl"],
}, async (world) => {
  const [node] = world.nodes as [Node];
  for (const folder of ["/etc/etcd-tls", "/etc/other-tls"]) await certificates(world.hub, folder);
  await world.startEtcd({
    scheme: "https",
    args: [...SERVER, "--client-cert-auth", "--trusted-ca-file", "/etc/etcd-tls/ca.pem"],
    curl: ["--cert", "/etc/etcd-tls/client.pem", "--key", "/etc/etcd-tls/client.key"],
  });
  await hand(world, {
    "ca.pem": "/etc/etcd-tls/ca.pem",
    "client.pem": "/etc/etcd-tls/client.pem",
    "client.key": "/etc/etcd-tls/client.key",
    "foreign.pem": "/etc/other-tls/client.pem",
    "foreign.key": "/etc/other-tls/client.key",
  });
  const by = (certFile?: string, keyFile?: string) => {
    const named = (file?: string) => file && `/etc/cni/etcd/${file}`;
    const etcd = {
      endpoints: [world.etcd],
      caFile: named("ca.pem"),
      certFile: named(certFile),
      keyFile: named(keyFile),
    };
    return conf(ipam(world, node, { store: { etcd }, blockSize: 32 }));
  };
  const good = by("client.pem", "client.key");
  await added(node, "c1", good);
  const before = await files(node);
  // Each ADD needs a block of its own, so the store has to be asked.
  const where = 'pool "pods": etcd https://10\\.99\\.0\\.254:2379: ';
  refused(await ask(node, "ADD", "c2", by()), 7, new RegExp(`^${where}.*alert`));
  refused(await ask(node, "ADD", "c2", by("foreign.pem", "foreign.key")), 7, new RegExp(`^${where}.*alert`));
  refused(await ask(node, "ADD", "c2", by("client.pem", "foreign.key")), 7, new RegExp(`^${where}.*key`));
  refused(
    await ask(node, "ADD", "c2", by("none.pem")),
    7,
    /"ipam\.store\.etcd\.certFile" is "\/etc\/cni\/etcd\/none\.pem"/,
  );
  // What was there goes on, without asking; and nothing came of the others.
  await done(node, "CHECK", "c1", good);
  assertEquals(await files(node), before);
  const owned = JSON.parse(await node.read("/var/lib/cni/cluster/pods/blocks.json") ?? "").blocks;
  assertEquals(owned.map(({ phase }: Json) => phase), ["own"]);
  await added(node, "c2", good);
  for (const id of ["c1", "c2"]) await done(node, "DEL", id, good);
});

/**
 * `before` it is started or `after` its work, with the answer unread, the n-th curl kills the call that has started it.
 */
async function killerCurl(node: Node): Promise<(target: string) => Promise<boolean>> {
  const real = await realTool(node, "curl");
  await standIn(
    node,
    "curl",
    `n=1; until mkdir /run/curls/$n 2>/dev/null; do n=$((n + 1)); done
case $(cat /run/target) in
  "before $n") touch /run/hit; kill -9 $PPID; exit 1 ;;
  "after $n") ${real} "$@" >/dev/null; touch /run/hit; kill -9 $PPID; exit 1 ;;
esac
exec ${real} "$@"`,
  );
  return async (target) => {
    const hit = (await node.exec(["test", "-e", "/run/hit"])).code === 0;
    await node.sh('rm -rf /run/curls /run/hit; mkdir /run/curls; echo "$1" >/run/target', target);
    return hit;
  };
}

for (const operation of ["ADD", "DEL"] as const) {
  worldTest(`${operation} killed at each request that it makes loses no block, and none has two owners`, {
    machines: 2,
  }, async (world) => {
    const [node, other] = world.nodes as [Node, Node];
    // A block is an address, and each released one rests: every ADD takes a block, and DEL returns the second spare
    // one.
    const section = (one: Node) => ipam(world, one, { blockSize: 32, quarantine: "1h" });
    const [mine, theirs] = [conf(section(node)), conf(section(other))];
    const foreign = await added(other, "theirs", theirs);
    await publish(node, section(node));
    const before = await keys(world);
    const aim = await killerCurl(node);
    let hits = 0;
    for (const when of ["before", "after"]) {
      for (let number = 1, hit = true; hit; number++) {
        // As on a node that was just installed: everything is asked for.
        await node.sh("rm -rf /var/lib/cni/cluster");
        await aim("never");
        if (operation === "DEL") {
          for (const id of ["c1", "c2"]) await added(node, id, mine);
          // One spare block is kept.
          await done(node, "DEL", "c1", mine);
        }
        await aim(`${when} ${number}`);
        const about = { containerId: "c2", netns: "/run/netns/none" };
        const output = await runPlugin(node, {
          type: "cluster",
          command: operation,
          ...about,
          stdin: mine,
          wrap: withStandIns,
        });
        hit = await aim("never");
        if (hit) hits++;
        else assertEquals(output.code, 0, output.stdout + output.stderr);
        // What a runtime does then: once more, or DEL and another one.
        if (operation === "DEL") await done(node, "DEL", "c2", mine);
        else if (hit) await added(node, "c2", mine);
        const given = [foreign, await added(node, "c3", mine), await added(node, "c4", mine)];
        assertEquals(new Set(given).size, 3, given.join());
        await done(node, "CHECK", "c3", mine);
        assertEquals((await must(node, ["cluster", "check"])).stdout, "records and files agree\n");
        for (const id of ["c1", "c2", "c3", "c4"]) await done(node, "DEL", id, mine);
        await must(node, ["cluster", "trim"]);
        assertEquals(await keys(world), before, `${when} ${number}`);
      }
    }
    // To confirm, to say what the pool is, to take a block; to return one.
    assert(hits >= (operation === "ADD" ? 6 : 2), `${hits} calls were killed`);
  });
}

worldTest("one name for two machines, an overlapping pool, a record edited by hand: refused, and nothing is lost", {
  machines: 2,
}, async (world) => {
  const [one, two] = world.nodes as [Node, Node];
  const small = { blockSize: 30 };
  const mine = conf(ipam(world, one, small));
  const ip = await added(one, "c1", mine);
  const before = await keys(world);

  const twin = await ask(two, "ADD", "c1", conf(ipam(world, two, { ...small, node: "node1" })));
  refused(twin, 7, /^pool "pods": another machine has the node name "node1" too$/);
  assertMatch(twin.json.details, new RegExp(`machine ${"1".repeat(32)}, this is ${"2".repeat(32)}`));
  const overlapping = conf(ipam(world, two, { ranges: [[{ subnet: "10.42.0.0/24" }]] }), "more");
  refused(await ask(two, "ADD", "c1", overlapping), 7, /^pool "more" overlaps with pool "pods": 10\.42\.0\.0\/24$/);
  const other = conf(ipam(world, two, { blockSize: 29 }));
  refused(
    await ask(two, "ADD", "c1", other),
    7,
    /^pool "pods": "blockSize" is 29 here, and the pool has blocks of \/30$/,
  );
  assertEquals(await keys(world), before);
  await done(one, "CHECK", "c1", mine);

  const record = before.find(({ key }) => key.includes("/pods/10."))!;
  await world.put(record.key, "edited by hand");
  await publish(one, mine.ipam);
  const found = await must(one, ["cluster", "check", "--json"]).catch((error) => `${error}`);
  assertMatch(`${found}`, /the record is not readable; its block is given to nobody/);
  assertMatch(`${found}`, new RegExp(`in use here: ${ip.replaceAll(".", "\\.")}\\b`));
  refused(
    await ask(one, "CHECK", "c1", mine),
    999,
    new RegExp(`^cluster: ${ip.replaceAll(".", "\\.")} belongs to node`),
  );
  // Nobody gets an address of that block any more.
  const theirs = conf(ipam(world, two, small));
  const given = [ip];
  for (const [index, node] of [one, two, one, two, one].entries()) {
    given.push(await added(node, `more${index}`, node === one ? mine : theirs));
  }
  assertEquals(new Set(given).size, 6, given.join());
  const block = (address: string) => Math.trunc(Number(address.split(".")[3]) / 4);
  assertEquals(given.filter((address) => block(address) === block(ip)), [ip]);
  await world.put(record.key, record.value);
  const { stdout } = await must(one, ["cluster", "check"]);
  assertEquals(stdout, "records and files agree\n");
  await done(one, "CHECK", "c1", mine);
  await done(one, "DEL", "c1", mine);
});

worldTest("a machine that is gone for good is forgotten by the command that the error of its successor names", {
  machines: 2,
}, async (world) => {
  const [gone, successor] = world.nodes as [Node, Node];
  const mine = ipam(world, gone);
  await added(gone, "c1", conf(mine));
  await publish(gone, mine);
  const same = ipam(world, successor, { node: "node1" });
  await publish(successor, same);
  const { json } = await ask(successor, "ADD", "c1", conf(same));
  const [, advised = ""] = /`cnibox (cluster forget node1)`/.exec(json.details) ?? [];

  const unknown = await cnibox(gone, ["cluster", "forget", "node2"]);
  assertEquals(unknown.code, 66, unknown.stderr);
  assertMatch(unknown.stderr, /^ {2}did you mean node1\?$/m);
  const living = await cnibox(gone, [...advised.split(" "), "--yes"]);
  assertEquals(living.code, 1, living.stdout);
  assertMatch(living.stderr, /"node1" is this very node, and it is alive/);

  assertMatch((await must(successor, [...advised.split(" "), "--yes"])).stdout, /^freed \d+ blocks? of node node1$/m);
  await added(successor, "c1", conf(same));
  await done(successor, "DEL", "c1", conf(same));
});

worldTest("two networks of one node share a pool, each with blocks of its own", { machines: 1 }, async (world) => {
  const [node] = world.nodes as [Node];
  const section = ipam(world, node, { pool: "common", blockSize: 29 });
  for (const name of ["left", "right"]) {
    await configure(node, { cniVersion: "1.1.0", name, plugins: [{ type: "bridge", ipam: section }] });
  }
  const given: string[] = [];
  for (const id of ["c1", "c2"]) {
    for (const name of ["left", "right"]) given.push(await added(node, id, conf(section, name)));
  }
  assertEquals(new Set(given).size, 4, given.join());
  const { json: { pools } } = await must(node, ["cluster", "pools", "--json"]);
  assertEquals(pools.map(({ networks, blocks }: Json) => [networks, blocks.taken]), [[["left", "right"], 2]]);
  const { json: { blocks } } = await must(node, ["cluster", "blocks", "--json"]);
  assertEquals(blocks.map(({ used }: Json) => used), [2, 2]);
  assertEquals((await must(node, ["cluster", "check"])).stdout, "records and files agree\n");
  for (const id of ["c1", "c2"]) {
    for (const name of ["left", "right"]) await done(node, "DEL", id, conf(section, name));
  }
  await must(node, ["cluster", "trim"]);
  assertEquals(await keys(world), []);
});

worldTest("show, ipam, doctor, explain and schema know what cluster gives out", { machines: 1 }, async (world) => {
  const [node] = world.nodes as [Node];
  const section = ipam(world, node, { blockSize: 29 });
  await configure(node, {
    cniVersion: "1.1.0",
    name: "pods",
    plugins: [{ type: "bridge", bridge: "cni0", isGateway: true, ipam: section }],
  });
  for (const name of ["box", "free"]) await node.container(name);
  const empty = await must(node, ["explain", "add", "pods", "box", "--id", "c1"]).catch((error) => `${error}`);
  assertMatch(`${empty}`, /no address is free in the blocks of this node: ADD would ask etcd http:/);
  await must(node, ["add", "pods", "box", "--id", "c1"]);
  const { json: { pools: [pool] } } = await must(node, ["ipam", "--json"]);
  const [{ range, taken, free, total, blocks }] = pool.ranges;
  assertEquals([pool.trouble, range, taken, blocks], [undefined, "10.42.0.1-10.42.0.62", 1, 1]);
  // The first block has the gateway and the network's address, the last one what is after its end.
  assertEquals(Number(total) - Number(free), 1);
  assert([6, 7, 8].includes(Number(total)), total);
  assertMatch((await must(node, ["ipam"])).stdout, /1 taken +\d free in 1 block of this node/);
  const { json: { addresses: [lease] } } = await must(node, ["ipam", "list", "--json"]);
  assertEquals([lease.network, lease.containerId, lease.state], ["pods", "c1", "alive"]);
  assertEquals((await must(node, ["ipam", "check"])).code, 0);
  assertMatch((await must(node, ["show"])).stdout, /pods.*10\.42\.0\.0\/26/);
  assertMatch(
    (await must(node, ["explain", "add", "pods", "free", "--id", "c2"])).stdout,
    /\/var\/lib\/cni\/networks\/pods\/10\.42\.0\.\d+/,
  );
  assertMatch((await must(node, ["schema", "cluster"])).stdout, /"blockSize"/);
  // Another node has the block by now.
  const [record] = (await keys(world)).filter(({ key }) => key.includes("/pods/10."));
  await world.put(record!.key, JSON.stringify({ node: "node9", machineId: "9" }));
  await must(node, ["cluster", "check"]).catch(() => {});
  const doctor = (await node.exec([`${binDir.cnibox}/cnibox`, "doctor"])).stdout;
  assertMatch(doctor, /network pods: block 10\.42\.0\.\d+\/29 belongs to node9 now/);
  // Nothing that can be executed: curl is missing.
  await node.run("mount", "--bind", "/dev/null", "/usr/bin/curl");
  assertMatch((await node.exec([`${binDir.cnibox}/cnibox`, "doctor"])).stdout, /curl is missing/);
  const fresh = conf(ipam(world, node), "fresh");
  refused(await ask(node, "ADD", "c2", fresh), 11, /exec: "curl": executable file not found in \$PATH/);
  refused(await ask(node, "STATUS", "", fresh), 50, /exec: "curl": executable file not found in \$PATH/);
  await node.run("umount", "/usr/bin/curl");
  await world.put(record!.key, record!.value);
  await must(node, ["cluster", "check"]);
  await must(node, ["del", "pods", "box", "--id", "c1"]);
});

/** Each main plugin with what its configuration needs. */
const mains: { name: string; needs: Need[]; plugin: Json }[] = [
  { name: "bridge", needs: [], plugin: { type: "bridge", bridge: "cni0", isGateway: true } },
  { name: "ptp", needs: [], plugin: { type: "ptp" } },
  { name: "macvlan", needs: ["macvlan"], plugin: { type: "macvlan", master: "eth0" } },
  { name: "ipvlan", needs: ["ipvlan"], plugin: { type: "ipvlan", master: "eth0" } },
];

for (const { name, needs, plugin } of mains) {
  for (const folded of name === "bridge" ? [false, true] : [false]) {
    const title = `${name}${folded ? " in chain" : ""} gets addresses of both families from cluster and returns them`;
    worldTest(title, { machines: 1, needs }, async (world) => {
      const [node] = world.nodes as [Node];
      const section = ipam(world, node, {
        ranges: [[{ subnet: "10.42.0.0/24" }], [{ subnet: "fd42::/64" }]],
        routes: [{ dst: "0.0.0.0/0" }, { dst: "::/0" }],
      });
      const main = { ...plugin, ipam: section };
      const list = {
        cniVersion: "1.1.0",
        name: "pods",
        plugins: [folded ? { type: "chain", plugins: [main, { type: "tuning" }] } : main],
      };
      await configure(node, list);
      const attached: { pod: Namespace; attachment: Attachment; ips: string[] }[] = [];
      for (let count = 0; count < 3; count++) {
        const pod = await node.container();
        const attachment = new Attachment(node, list, pod);
        const { ips } = await attachment.add();
        attached.push({ pod, attachment, ips: ips.map(({ address }: Json) => address) });
        await attachment.check();
      }
      const all = attached.flatMap(({ ips }) => ips);
      assertEquals([all.length, new Set(all).size], [6, 6]);
      for (const { pod, ips } of attached) {
        const shown = await pod.run("ip", "-o", "addr", "show", "dev", "eth0");
        for (const address of ips) assert(shown.includes(` ${address} `), `${address} is not in ${shown}`);
      }
      const { json } = await must(node, ["cluster", "find", all[0]!.split("/")[0]!, "--json"]);
      assertEquals([json.found[0].node, json.found[0].containerId], ["node1", attached[0]!.pod.name]);
      for (const { attachment } of attached) await attachment.del();
      await must(node, ["cluster", "trim"]);
      assertEquals(await keys(world), []);
      const left = await node.list("/var/lib/cni/networks/pods");
      assertEquals(left.filter((file) => /^(10\.|fd42)/.test(file)), []);
    });
  }
}
