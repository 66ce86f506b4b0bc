/**
 * cluster on Lease objects of a real kube-apiserver: `deno task test:cluster`. Not a part of `deno task test`: the
 * programs have to be built first, by tests/cluster/kubernetes.sh.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { fromFileUrl } from "@std/path";
import type { Node } from "../e2e/support/node.ts";
import { PATH } from "../e2e/support/node.ts";
import { unmet } from "../e2e/support/needs.ts";
import { configure, must } from "../e2e/support/operator.ts";
import { type Json, type PluginOutput, runPlugin } from "../e2e/support/plugins.ts";
import { eventually } from "../e2e/support/traffic.ts";
import { switchboard, type World } from "../e2e/support/world.ts";
import { type ApiServer, FOLDER, kubeconfig, kubernetes, startApiServer } from "./api_server.ts";

const programs = kubernetes();
const missing = [
  ...unmet(["root", "bridge", "veth", "tool:etcd", "tool:curl", "tool:openssl"]),
  ...("missing" in programs ? [programs.missing] : []),
];

function clusterTest(name: string, body: (world: World, server: ApiServer) => Promise<void>): void {
  Deno.test({
    name: missing.length > 0 ? `${name} [skipped: ${missing.join("; ")}]` : name,
    ignore: missing.length > 0,
    fn: async () => {
      if (!("folder" in programs)) return;
      await using world = await switchboard(3);
      for (const [index, node] of world.nodes.entries()) {
        await node.write("/etc/machine-id", `${index + 1}`.repeat(32) + "\n");
      }
      await body(world, await startApiServer(world, programs.folder));
    },
  });
}

function conf(world: World, node: Node, changes: Json = {}): Json {
  return {
    cniVersion: "1.1.0",
    name: "pods",
    ipam: {
      type: "cluster",
      node: world.nameOf(node),
      ranges: [[{ subnet: "10.42.0.0/26" }]],
      store: { kubernetes: { kubeconfig: `${FOLDER}/cnibox.kubeconfig` } },
      ...changes,
    },
  };
}

async function ask(node: Node, command: "ADD" | "DEL" | "CHECK", containerId: string, stdin: Json) {
  return await runPlugin(node, { type: "cluster", command, containerId, netns: "/run/netns/none", stdin });
}

async function added(node: Node, id: string, stdin: Json): Promise<string> {
  const output = await ask(node, "ADD", id, stdin);
  assertEquals(output.code, 0, output.stdout + output.stderr);
  return output.json.ips[0].address;
}

function refused(output: PluginOutput, code: number, msg: RegExp): void {
  assert(output.code !== 0, output.stdout);
  assertEquals(output.json?.code, code, output.stdout);
  assertMatch(output.json.msg, msg);
  assert(!(output.stdout + output.stderr).includes("token-of"), "a token is in the answer");
}

async function publish(node: Node, stdin: Json): Promise<void> {
  await configure(node, { cniVersion: "1.1.0", name: "pods", plugins: [{ type: "bridge", ipam: stdin.ipam }] });
}

clusterTest("the five verbs hold on Lease objects", async (world) => {
  const script = fromFileUrl(new URL("./verbs.ts", import.meta.url));
  const argv = ["run", "-A", "--no-check", script, `${FOLDER}/cnibox.kubeconfig`, "node1"];
  const env = { PATH, HOME: Deno.env.get("HOME") ?? "/root", DENO_DIR: Deno.env.get("DENO_DIR") ?? "" };
  if (env.DENO_DIR === "") Reflect.deleteProperty(env, "DENO_DIR");
  const { code, stdout, stderr } = await world.hub.exec([Deno.execPath(), ...argv], { env, timeout: 120_000 });
  assertEquals(code, 0, stdout + stderr);
});

clusterTest("three machines share a pool on Lease objects, and leave nothing", async (world, server) => {
  const given: { node: Node; id: string; ip: string }[] = [];
  const full: PluginOutput[] = [];
  const jobs = Array.from({ length: 70 }, (_, index) => index).values();
  await Promise.all(Array.from({ length: 12 }, async () => {
    for (const index of jobs) {
      const node = world.nodes[index % 3]!;
      const output = await ask(node, "ADD", `c${index}`, conf(world, node));
      if (output.code === 0) given.push({ node, id: `c${index}`, ip: output.json.ips[0].address });
      else full.push(output);
    }
  }));
  for (const output of full) {
    refused(output, 100, /^pool "pods" is full: no address of 10\.42\.0\.1-10\.42\.0\.62 is free$/);
  }
  assertEquals([given.length, new Set(given.map(({ ip }) => ip)).size, full.length], [61, 61, 9]);
  const leases = await server.leases();
  // One for each block, and one that says what the pool is.
  assertEquals(leases.length, 62);
  for (const { metadata, spec } of leases) {
    assertEquals([metadata.ownerReferences[0].kind, metadata.ownerReferences[0].name], ["Node", spec.holderIdentity]);
  }
  for (const { node, id } of given) assertEquals((await ask(node, "DEL", id, conf(world, node))).code, 0);
  for (const node of world.nodes) {
    await publish(node, conf(world, node));
    await must(node, ["cluster", "trim"]);
  }
  assertEquals(await server.leases(), []);
});

clusterTest("tokens, certificates and rights: what is wrong is named, what works goes on", async (world, server) => {
  const [node] = world.nodes as [Node];
  const by = (name: string, changes: Json = {}) =>
    conf(world, node, { store: { kubernetes: { kubeconfig: `${FOLDER}/${name}` } }, ...changes });
  const ip = await added(node, "c1", by("cnibox.kubeconfig"));
  assertMatch(ip, /^10\.42\.0\.\d+\/26$/);
  // A block of one address each: every ADD has to ask.
  await node.write(`${FOLDER}/renewed.token`, "token-of-yesterday\n", 0o600);
  await node.write(`${FOLDER}/renewed.kubeconfig`, kubeconfig({ tokenFile: `${FOLDER}/renewed.token` }), 0o600);
  refused(
    await ask(node, "ADD", "c2", by("renewed.kubeconfig")),
    7,
    /^pool "pods": Kubernetes API https:.*Unauthorized/,
  );
  await node.write(`${FOLDER}/renewed.token`, "token-of-cnibox-itself\n", 0o600);
  await added(node, "c2", by("renewed.kubeconfig"));
  refused(
    await ask(node, "ADD", "c3", by("stranger.kubeconfig")),
    7,
    /^pool "pods": Kubernetes API .*User "stranger" cannot (get|list|create) resource "(nodes|leases)"/,
  );
  const certificate = { "client-certificate": `${FOLDER}/cnibox.pem`, "client-key": `${FOLDER}/cnibox.key` };
  await node.write(`${FOLDER}/certificate.kubeconfig`, kubeconfig(certificate));
  await added(node, "c3", by("certificate.kubeconfig"));
  const data = {
    "client-certificate-data": btoa(await node.read(`${FOLDER}/cnibox.pem`) ?? ""),
    "client-key-data": btoa(await node.read(`${FOLDER}/cnibox.key`) ?? ""),
  };
  await node.write(`${FOLDER}/data.kubeconfig`, kubeconfig(data), 0o600);
  await added(node, "c4", by("data.kubeconfig"));
  assertEquals(await node.list("/run/cnibox/store"), []);
  refused(await ask(node, "ADD", "c5", by("none.kubeconfig")), 7, /kubeconfig \/etc\/kube\/none\.kubeconfig: /);
  assertEquals((await server.leases()).length, 5);
  for (const id of ["c1", "c2", "c3", "c4"]) {
    assertEquals((await ask(node, "CHECK", id, by("cnibox.kubeconfig"))).code, 0);
    assertEquals((await ask(node, "DEL", id, by("cnibox.kubeconfig"))).code, 0);
  }
});

clusterTest("with a Node object its Lease objects go, and its addresses are free for others", async (world, server) => {
  const [one, two] = world.nodes as [Node, Node];
  const all = { ranges: [[{ subnet: "10.42.0.0/29" }]], blockSize: 32 };
  const given: string[] = [];
  for (let count = 0; count < 5; count++) given.push(await added(one, `c${count}`, conf(world, one, all)));
  refused(await ask(two, "ADD", "c1", conf(world, two, all)), 100, /^pool "pods" is full/);
  const controller = server.collectGarbage();
  await server.ask("DELETE", "/api/v1/nodes/node1");
  await eventually("the Lease objects of node1 are gone", async () => (await server.leases()).length === 0, 120_000)
    .catch((error) => {
      throw new Error(`${error}\n${controller.stderr.slice(-3000)}`);
    });
  assert(given.includes(await added(two, "c1", conf(world, two, all))));
});
