/**
 * The manifest on a real Kubernetes: `deno task test:kubernetes`. Three bare machines become a network, run pods, are
 * upgraded while pods start, and are as before when it is removed. `PODS=N` for another number than 60, `STARTS=N` than
 * 100. Not a part of `deno task test`: the programs have to be built first, by tests/cluster/kubernetes.sh.
 */
import { assertEquals } from "@std/assert";
import { fromFileUrl, join } from "@std/path";
import { VERSION } from "../../lib/version.ts";
import { cniboxDir } from "../e2e/support/bin.ts";
import { unmet } from "../e2e/support/needs.ts";
import type { Namespace, Node } from "../e2e/support/node.ts";
import { type Json, type PluginCall, runPlugin } from "../e2e/support/plugins.ts";
import { firstContainer, runtimeNeeds } from "../e2e/support/runtimes.ts";
import { type Allowed, difference, snapshot } from "../e2e/support/snapshot.ts";
import { otherBuild, succeed, temporaryFolder } from "../install/support.ts";
import { kubeconfig, kubernetes } from "./api_server.ts";
import { bareMachines, type Kubernetes, patiently, POD_IMAGE, type RunningPod } from "./machines.ts";

const programs = kubernetes();
const missing = [
  ...unmet([...runtimeNeeds, "vxlan", "tool:containerd", "tool:ctr", "tool:etcd", "tool:openssl", "tool:conntrack"]),
  ...("missing" in programs ? [programs.missing] : []),
];
const name = "three bare machines become a network by one manifest, carry pods through an upgrade, and are as before";
const MACHINES = 3;
const PODS = Number(Deno.env.get("PODS") ?? 60);
/** Pods that start while the DaemonSet is upgraded. */
const STARTS = Number(Deno.env.get("STARTS") ?? 100);
/** The manifest's image, and another version's. */
const FIRST = `localhost/cnibox:${VERSION}`;
const NEXT = "localhost/cnibox:next";
const MANIFEST = fromFileUrl(new URL("../../deploy/kubernetes.yaml", import.meta.url));
const secondsSince = (from: number) => ((performance.now() - from) / 1000).toFixed(0);
const say = (text: string) => void Deno.stdout.writeSync(new TextEncoder().encode(`${text}\n`));

Deno.test({
  name: missing.length > 0 ? `${name} [skipped: ${missing.join("; ")}]` : name,
  ignore: missing.length > 0,
  fn: async (test) => {
    if (!("folder" in programs)) return;
    using folder = temporaryFolder();
    const images = [join(folder.path, "image.tar"), join(folder.path, "next.tar")];
    await succeed(join(cniboxDir(), "cnibox"), ["image", images[0]!]);
    await succeed(join(await otherBuild(folder.path), "cnibox"), ["image", images[1]!, "--name", NEXT]);
    await using cluster = await bareMachines(programs.folder, { count: MACHINES, images });
    const { nodes } = cluster.world;
    const before = await Promise.all(nodes.map(state));
    const step = async (what: string, body: () => Promise<void>) => {
      const passed = await test.step(what, async () => {
        const from = performance.now();
        await body().catch(async (error) => {
          throw new Error(`${error}\n${await diagnosis(cluster)}`);
        });
        say(`${what}: ${secondsSince(from)} s`);
      });
      // What comes later builds upon it.
      if (!passed) throw new Error(`"${what}" failed`);
    };

    await step("kubectl apply makes the nodes ready", async () => {
      assertEquals(await cluster.ready(), []);
      await cluster.kubectl(["apply", "-f", MANIFEST]);
      await patiently("all nodes are ready", async () => (await cluster.ready()).length === MACHINES, 180_000);
      await rolledOut(cluster);
    });
    const empty = await Promise.all(nodes.map(state));

    await step(`${PODS} pods reach each other, each with an address of its own`, async () => {
      const from = performance.now();
      await cluster.kubectl(["create", "-f", "-"], JSON.stringify(deployment(PODS)));
      await patiently("all pods run", async () => (await cluster.running("app=pods")).length === PODS, 400_000);
      const pods = await cluster.running("app=pods");
      say(`${PODS} pods run after ${secondsSince(from)} s`);
      assertEquals(new Set(pods.map(({ ip }) => ip)).size, PODS);
      assertEquals(new Set(pods.map(({ machine }) => machine)).size, MACHINES);
      assertEquals(await cluster.events("FailedCreatePodSandBox"), []);
      assertEquals(await unreachable(cluster, pods), []);
      say(`${PODS * (PODS - 1)} pairs have pinged`);
    });

    await step("without pods nothing of theirs is left", async () => {
      await scale(cluster, 0);
      await nothingLeft(nodes);
      const now = await Promise.all(nodes.map(state));
      const differs = nodes.flatMap((node, at) => {
        return difference(empty[at]!, now[at]!, { allow: firstPod }).map((line) =>
          `${cluster.world.nameOf(node)} ${line}`
        );
      });
      assertEquals(differs, []);
    });

    await step("the manifest's account for cluster gives addresses of one pool to each machine", async () => {
      const { data } = await cluster.server.ask("GET", "/api/v1/namespaces/kube-system/secrets/cnibox-cluster");
      const addresses: string[] = [];
      const attachments: { node: Node; call: PluginCall }[] = [];
      for (const node of nodes) {
        await node.write("/run/cluster/kubeconfig", kubeconfig({ token: atob(data.token) }), 0o600);
        const stdin = {
          cniVersion: "1.1.0",
          name: "shared",
          ipam: {
            type: "cluster",
            node: cluster.world.nameOf(node),
            ranges: [[{ subnet: "10.42.0.0/28" }]],
            dataDir: "/run/cluster",
            store: { kubernetes: { kubeconfig: "/run/cluster/kubeconfig" } },
          },
        };
        for (const containerId of ["one", "two"]) {
          const call = { type: "cluster", containerId, netns: "/run/netns/none", stdin } as const;
          const output = await runPlugin(node, { ...call, command: "ADD" });
          assertEquals(output.code, 0, output.stdout);
          addresses.push(output.json.ips[0].address);
          attachments.push({ node, call });
        }
      }
      assertEquals([addresses.length, new Set(addresses).size], [2 * MACHINES, 2 * MACHINES]);
      for (const { metadata: { ownerReferences: [owner] }, spec } of await cluster.server.leases()) {
        assertEquals([owner.kind, owner.name], ["Node", spec.holderIdentity]);
      }
      for (const { node, call } of attachments) {
        const { code, stdout } = await runPlugin(node, { ...call, command: "DEL" });
        assertEquals(code, 0, stdout);
      }
      await cluster.kubectl([
        ...["-n", "kube-system", "delete", "lease", "--selector", "app.kubernetes.io/managed-by=cnibox"],
      ]);
    });

    await step(`the DaemonSet is upgraded while ${STARTS} pods start, and none fails`, async () => {
      const started = new Set<string>();
      let image = FIRST;
      let upgrades = 0;
      // Back to the first one, and on again, so that no pod starts after the upgrade instead of during one.
      while (started.size < STARTS || image !== NEXT) {
        image = image === NEXT ? FIRST : NEXT;
        upgrades++;
        await cluster.kubectl([
          ...["-n", "kube-system", "set", "image", "daemonset/cnibox", `install=${image}`, `node=${image}`],
        ]);
        for (let done = false; !done;) {
          await scale(cluster, 30);
          const pods = await cluster.running("app=pods");
          assertEquals(new Set(pods.map(({ ip }) => ip)).size, pods.length);
          for (const { uid } of pods) started.add(uid);
          done = await isRolledOut(cluster);
          await scale(cluster, 0);
        }
      }
      say(`${started.size} pods started during ${upgrades} upgrades`);
      for (const node of nodes) {
        assertEquals((await node.run("/opt/cni/bin/cnibox", "version")).trim(), "cnibox v9.9.9");
      }
      assertEquals(await cluster.events("FailedCreatePodSandBox"), []);
      // The DaemonSet's own pods have the machine's network: no plugin is asked when one is killed, and a late kubelet
      // kills its sandbox twice.
      const killed = (await cluster.events("FailedKillPod")).filter((text) => !text.startsWith("cnibox-"));
      assertEquals(killed, []);
      await nothingLeft(nodes);
    });

    await step("the Job removes it, and the machines are as before", async () => {
      await cluster.kubectl(["-n", "kube-system", "delete", "daemonset", "cnibox", "--wait=true"]);
      await patiently(
        "its pods are gone",
        async () => (await cluster.pods("app.kubernetes.io/name=cnibox", "kube-system")).length === 0,
        60_000,
      );
      const names = nodes.map((node) => cluster.world.nameOf(node));
      const words = ["manifest", "--image", NEXT, ...names.flatMap((one) => ["--uninstall", one])];
      const { stdout } = await succeed(join(cniboxDir(), "cnibox"), words);
      await cluster.kubectl(["apply", "-f", "-"], stdout);
      for (const one of names) {
        await cluster.kubectl([
          ...["-n", "kube-system", "wait", "--for=condition=complete", `job/cnibox-uninstall-${one}`, "--timeout=180s"],
        ]);
      }
      await cluster.kubectl(["-n", "kube-system", "delete", "job", ...names.map((one) => `cnibox-uninstall-${one}`)]);
      await cluster.kubectl(["delete", "-f", MANIFEST, "--ignore-not-found"]);
      await patiently(
        "the Jobs' pods are gone",
        async () => (await cluster.pods("job-name", "kube-system")).length === 0,
        60_000,
      );
      const now = await Promise.all(nodes.map(state));
      const differs = nodes.flatMap((node, at) =>
        difference(before[at]!, now[at]!, { allow: [...firstPod, hostPaths] }).map((line) =>
          `${cluster.world.nameOf(node)} ${line}`
        )
      );
      assertEquals(differs, []);
    });
  },
});

function deployment(replicas: number): Json {
  const labels = { app: "pods" };
  return {
    apiVersion: "apps/v1",
    kind: "Deployment",
    metadata: { name: "pods" },
    spec: {
      replicas,
      selector: { matchLabels: labels },
      template: {
        metadata: { labels },
        spec: {
          automountServiceAccountToken: false,
          enableServiceLinks: false,
          terminationGracePeriodSeconds: 1,
          containers: [{ name: "web", image: POD_IMAGE, imagePullPolicy: "Never" }],
          topologySpreadConstraints: [{
            maxSkew: 1,
            topologyKey: "kubernetes.io/hostname",
            whenUnsatisfiable: "DoNotSchedule",
            labelSelector: { matchLabels: labels },
          }],
        },
      },
    },
  };
}

/** So many pods, all of them running; none that is about to end. */
async function scale(cluster: Kubernetes, count: number): Promise<void> {
  await cluster.kubectl(["scale", "deployment", "pods", `--replicas=${count}`]);
  await patiently(`there are ${count} pods`, async () => {
    return (await cluster.pods("app=pods")).length === count && (await cluster.running("app=pods")).length === count;
  }, 300_000);
}

async function isRolledOut({ server }: Kubernetes): Promise<boolean> {
  const { metadata, status } = await server.ask("GET", "/apis/apps/v1/namespaces/kube-system/daemonsets/cnibox");
  return status.observedGeneration === metadata.generation && status.updatedNumberScheduled === MACHINES &&
    status.numberAvailable === MACHINES;
}

async function rolledOut(cluster: Kubernetes): Promise<void> {
  await patiently("the DaemonSet is rolled out", () => isRolledOut(cluster), 180_000);
}

/** Pods that ping all others at the same time. */
const AT_ONCE = 10;

/** Pairs of pods of which the first gets no answer from the second. */
async function unreachable(cluster: Kubernetes, pods: readonly RunningPod[]): Promise<string[]> {
  const inside = new Map<string, Namespace>();
  for (const node of cluster.world.nodes) {
    for (const [ip, namespace] of await cluster.namespaces(node)) inside.set(ip, namespace);
  }
  const script = `for ip in "$@"; do
    ping -n -q -c 1 -W 3 "$ip" >/dev/null || ping -n -q -c 1 -W 5 "$ip" >/dev/null || echo "$ip"
  done`;
  const failed: string[] = [];
  for (let first = 0; first < pods.length; first += AT_ONCE) {
    await Promise.all(
      pods.slice(first, first + AT_ONCE).map(async ({ ip }) => {
        const from = inside.get(ip);
        if (from === undefined) throw new Error(`no namespace has ${ip}`);
        const others = pods.filter((other) => other.ip !== ip).map((other) => other.ip);
        const { stdout } = await from.exec(["/bin/sh", "-c", script, "sh", ...others], { timeout: 600_000 });
        failed.push(...stdout.split("\n").filter((line) => line !== "").map((to) => `${ip} -> ${to}`));
      }),
    );
    // All machines are one kernel, which has room for 1,024 neighbours.
    await Promise.all([...inside.values()].map((one) => one.run("ip", "-4", "neigh", "flush", "all")));
  }
  return failed;
}

/** What pods leave on machines when they go: addresses, interfaces, namespaces, cached results, records. */
async function left(nodes: readonly Node[]): Promise<string[]> {
  const found: string[] = [];
  for (const node of nodes) {
    for (const link of await node.ipJson("link", "show", "type", "veth")) {
      if (link.ifname !== "eth0") found.push(`link ${link.ifname}`);
    }
    for (const name of await node.list("/run/netns")) found.push(`namespace ${name}`);
    for (const name of await node.list("/var/lib/cni/results")) found.push(`result ${name}`);
    for (const name of await node.list("/var/lib/cni/flannel")) found.push(`flannel ${name}`);
    for (const network of await node.list("/var/lib/cni/networks")) {
      for (const name of await node.list(`/var/lib/cni/networks/${network}`)) {
        if (/^[0-9a-f:.]+$/.test(name)) found.push(`lease ${name} of ${network}`);
      }
    }
  }
  return found;
}

/** A pod's object may go before the kubelet has stopped the last of its sandbox. */
async function nothingLeft(nodes: readonly Node[]): Promise<void> {
  await patiently("the kubelets have stopped all sandboxes", async () => (await left(nodes)).length === 0, 60_000)
    .catch(() => {});
  assertEquals(await left(nodes), []);
}

/** What the first pods leave for those to come: beside what any container does, folders without a file. */
const firstPod: Allowed[] = [
  ...firstContainer,
  { section: "files", line: /^(\/var\/lib\/cni\/flannel directory|\/run\/cnibox\/(host-local|io) d )$/ },
];

/** Empty folders that the kubelet makes for the DaemonSet. A pod cannot remove what is mounted into it. */
const hostPaths: Allowed = { section: "files", line: /^\/(run\/cnibox|run\/flannel|var\/lib\/cnibox) d $/ };

/** Folders that the manifest writes to, beside those of a snapshot. */
const FOLDERS = ["/opt/cni/bin", "/etc/cnibox", "/run/cnibox", "/var/lib/cnibox", "/run/flannel"];

async function state(node: Node) {
  const files = await Promise.all(FOLDERS.map(async (folder) => {
    const { stdout } = await node.exec(["find", folder, "-printf", "%p %y %l\n"]);
    return stdout.split("\n").filter((line) => line !== "");
  }));
  const seen = await snapshot(node);
  return { ...seen, files: [...seen.files, ...files.flat()].sort() };
}

async function diagnosis(cluster: Kubernetes): Promise<string> {
  const words = [["get", "nodes,pods", "-A", "-o", "wide"], ["get", "events", "-A"]];
  const said: string[] = [];
  for (const one of words) said.push((await cluster.kubectl(one).catch(String)).slice(-6000));
  for (const node of cluster.world.nodes) {
    said.push(await node.sh("tail -n 20 /var/log/pods/*/*/*.log 2>/dev/null || true"));
  }
  return [...said, cluster.said()].join("\n");
}
