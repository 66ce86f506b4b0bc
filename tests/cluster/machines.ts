/**
 * A Kubernetes of bare machines: containerd, kubelet and kube-proxy on each, the control plane beside the switch, and
 * no network for pods until somebody brings one. Every file is in a machine's own folders, every rule in its own
 * network.
 */
import { importArguments, importImage, makeRootfs, removeCgroups, startContainerd } from "../e2e/support/runtimes.ts";
import { type Background, createNode, Namespace, type Node } from "../e2e/support/node.ts";
import type { Json } from "../e2e/support/plugins.ts";
import { eventually } from "../e2e/support/traffic.ts";
import { switchboard, type World } from "../e2e/support/world.ts";
import { ADMIN, type ApiServer, FOLDER, kubeconfig, startServer } from "./api_server.ts";

/** Network of all pods. The manifest has the same. */
export const POD_NETWORK = "10.244.0.0/16";
/** What pods are made of; nothing is ever fetched. */
export const POD_IMAGE = "localhost/web:1";
const PAUSE_IMAGE = "localhost/pause:1";

/**
 * What the kubelet sets in the kernel, which is not the machine's own: it finds these values, and sets nothing.
 */
const TUNABLES = {
  "vm/overcommit_memory": 1,
  "vm/panic_on_oom": 0,
  "kernel/panic": 10,
  "kernel/panic_on_oops": 1,
  "kernel/keys/root_maxkeys": 1_000_000,
  "kernel/keys/root_maxbytes": 25_000_000,
};

/** One running pod. */
export interface RunningPod {
  readonly name: string;
  readonly uid: string;
  readonly ip: string;
  readonly machine: string;
}

/** Machines, and how to speak with their Kubernetes. */
export class Kubernetes implements AsyncDisposable {
  readonly programs = new Map<string, Background>();

  constructor(readonly world: World, readonly server: ApiServer, readonly cgroup: string) {}

  /** kubectl as the administrator; it has to succeed. */
  async kubectl(args: readonly string[], input?: string): Promise<string> {
    const { folder, world: { hub } } = this.server;
    const argv = [`${folder}/kubectl`, "--kubeconfig", `${FOLDER}/admin.kubeconfig`, "--cache-dir", "/run/kubectl"];
    const output = await hub.exec([...argv, ...args], {
      ...(input !== undefined && { input }),
      timeout: 600_000,
    });
    if (output.code !== 0) throw new Error(`kubectl ${args.join(" ")}: ${output.stderr}${output.stdout}`);
    return output.stdout;
  }

  /** Names of nodes that are ready. */
  async ready(): Promise<string[]> {
    const { items }: { items: Json[] } = await this.server.ask("GET", "/api/v1/nodes");
    return items.filter(({ status }) =>
      status.conditions?.some(({ type, status }: Json) => type === "Ready" && status === "True")
    ).map(({ metadata }) => metadata.name).sort();
  }

  /** All pods of a namespace that `selector` selects, in any state. */
  async pods(selector: string, namespace = "default"): Promise<Json[]> {
    const path = `/api/v1/namespaces/${namespace}/pods?labelSelector=${encodeURIComponent(selector)}`;
    return (await this.server.ask("GET", path)).items;
  }

  /** Those that run and are not about to end. */
  async running(selector: string): Promise<RunningPod[]> {
    return (await this.pods(selector)).filter(({ metadata, status }) =>
      metadata.deletionTimestamp === undefined &&
      status.conditions?.some(({ type, status }: Json) => type === "Ready" && status === "True")
    ).map(({ metadata, spec, status }) => ({
      name: metadata.name,
      uid: metadata.uid,
      ip: status.podIP,
      machine: spec.nodeName,
    }));
  }

  /** Messages of events with this reason, in all namespaces. */
  async events(reason: string): Promise<string[]> {
    const { items } = await this.server.ask("GET", `/api/v1/events?fieldSelector=reason%3D${reason}&limit=1000`);
    return items.map(({ involvedObject, message, count = 1 }: Json) => `${involvedObject.name} ×${count}: ${message}`);
  }

  /** Networks of a machine's pods by their address, as the plugins' cache has them. */
  async namespaces(machine: Node): Promise<Map<string, Namespace>> {
    const found = new Map<string, Namespace>();
    for (const name of await machine.list("/var/lib/cni/results")) {
      const text = await machine.read(`/var/lib/cni/results/${name}`);
      if (text === undefined) continue;
      const { result: { ips = [], interfaces = [] } = {} }: Json = JSON.parse(text);
      const path: string | undefined = interfaces.find(({ sandbox }: Json) => sandbox)?.sandbox;
      if (path === undefined) continue;
      const file = path.slice(path.lastIndexOf("/") + 1);
      for (const { address } of ips) {
        found.set(address.split("/")[0], new Namespace(machine, file, `/run/netns/${file}`));
      }
    }
    return found;
  }

  /** Ends of what the programs said, for a failure. */
  said(bytes = 1500): string {
    return [...this.programs].map(([name, { stderr }]) => `--- ${name}\n${stderr.slice(-bytes)}`).join("\n");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.world[Symbol.asyncDispose]();
    await removeCgroups(this.cgroup);
  }
}

/** Starts everything, `images` imported on each machine; the nodes are there, and not ready. */
export async function bareMachines(
  folder: string,
  { count, images }: { readonly count: number; readonly images: readonly string[] },
): Promise<Kubernetes> {
  const cgroup = `cnibox-e2e-${crypto.randomUUID().slice(0, 8)}`;
  const world = await switchboard(count, { machine: () => createNode({ cgroups: true }) });
  try {
    const names = world.nodes.map((node) => world.nameOf(node));
    const accounts = names.map((name) => ({
      user: `system:node:${name}`,
      group: "system:nodes",
      token: tokenOf(name),
    }));
    const server = await startServer(world, folder, { accounts, args: ["--allow-privileged=true"] });
    const kubernetes = new Kubernetes(world, server, cgroup);
    startControllers(kubernetes);
    await Promise.all(world.nodes.map(async (machine) => {
      await machine.write("/etc/machine-id", `${world.nodes.indexOf(machine) + 1}`.repeat(32) + "\n");
      await prepare(machine, images);
      await startMachine(kubernetes, machine);
    }));
    await patiently("all nodes are registered", async () => {
      const { items } = await server.ask("GET", "/api/v1/nodes");
      return items.length === count && items.every(({ spec }: Json) => spec.podCIDR !== undefined);
    }, 120_000).catch((error) => {
      throw new Error(`${error}\n${kubernetes.said()}`);
    });
    for (const machine of world.nodes) {
      await patiently("the kubelet's rules are there, and those of the API's service", async () => {
        return hasRulesOfKubernetes(await machine.run("iptables-save"));
      }, 60_000).catch((error) => {
        throw new Error(`${error}\n${kubernetes.said()}`);
      });
    }
    return kubernetes;
  } catch (error) {
    await world[Symbol.asyncDispose]();
    await removeCgroups(cgroup);
    throw error;
  }
}

/** Their chains in each of the three tables, and the way to the API server. */
function hasRulesOfKubernetes(rules: string): boolean {
  const canaries = (name: string) => rules.split(`\n:KUBE-${name}-CANARY `).length - 1;
  return canaries("KUBELET") === 3 && canaries("PROXY") === 3 && rules.includes("-j KUBE-FIREWALL") &&
    rules.includes("--to-destination 10.99.0.254:6443");
}

/** `eventually` for what takes seconds: it asks once a second, and leaves the processors to Kubernetes. */
export async function patiently(what: string, holds: () => Promise<boolean>, timeout: number): Promise<void> {
  await eventually(what, async () => {
    if (await holds()) return true;
    await new Promise((done) => setTimeout(done, 1_000));
    return false;
  }, timeout);
}

const tokenOf = (name: string) => `token-of-${name}`;

function startControllers({ world: { hub }, server: { folder }, programs }: Kubernetes): void {
  const common = [
    ...["--kubeconfig", `${FOLDER}/admin.kubeconfig`, "--leader-elect=false", "--port", "0", "--secure-port", "0"],
  ];
  programs.set(
    "kube-controller-manager",
    hub.spawn([
      ...[`${folder}/kube-controller-manager`, ...common],
      ...["--allocate-node-cidrs=true", "--cluster-cidr", POD_NETWORK, "--service-cluster-ip-range", "10.96.0.0/16"],
      ...["--root-ca-file", `${FOLDER}/ca.pem`, "--service-account-private-key-file", `${FOLDER}/accounts.key`],
      ...["--node-monitor-grace-period", "120s", "--flex-volume-plugin-dir", "/run/kube/volumes"],
    ]),
  );
  programs.set("kube-scheduler", hub.spawn([`${folder}/kube-scheduler`, ...common]));
}

/** containerd with all images, before the kubelet looks at them. */
async function prepare(machine: Node, images: readonly string[]): Promise<void> {
  await machine.sh("mount --make-rshared /");
  for (const [name, value] of Object.entries(TUNABLES)) {
    await machine.write(`/run/tunables/${name}`, `${value}\n`);
    await machine.run("mount", "--bind", `/run/tunables/${name}`, `/proc/sys/${name}`);
  }
  await makeRootfs(machine);
  const { ctr } = await startContainerd(machine, "k8s.io", PAUSE_IMAGE);
  await importImage(machine, POD_IMAGE, ["/bin/busybox", "httpd", "-f", "-h", "/www"]);
  await importImage(machine, PAUSE_IMAGE, ["/bin/busybox", "sleep", "2000000000"]);
  for (const archive of images) await ctr("image", "import", ...await importArguments(machine), archive);
}

async function startMachine({ world, server: { folder }, programs, cgroup }: Kubernetes, machine: Node): Promise<void> {
  const name = world.nameOf(machine);
  await machine.sh(
    `cd /sys/fs/cgroup; if [ -e cgroup.procs ]; then mkdir -p "$1"; else for one in */; do mkdir -p "$one$1"; done; fi`,
    `${cgroup}/${name}`,
  );
  const authority = await world.hub.read(`${FOLDER}/ca.pem`) ?? "";
  await machine.write(`${FOLDER}/ca.pem`, authority);
  await machine.write(`${FOLDER}/kubelet.kubeconfig`, kubeconfig({ token: tokenOf(name) }), 0o600);
  await machine.write(`${FOLDER}/admin.kubeconfig`, kubeconfig({ token: ADMIN }), 0o600);
  programs.set(
    `kubelet ${name}`,
    machine.spawn([
      ...[`${folder}/kubelet`, "--kubeconfig", `${FOLDER}/kubelet.kubeconfig`, "--hostname-override", name],
      ...["--container-runtime", "remote"],
      ...["--container-runtime-endpoint", "unix:///run/containerd/containerd.sock"],
      ...["--root-dir", "/run/kubelet", "--cert-dir", "/run/kubelet/pki"],
      ...["--volume-plugin-dir", "/run/kubelet/volumes", "--node-ip", `10.99.0.${name.slice("node".length)}`],
      ...["--fail-swap-on=false", "--cgroup-driver=cgroupfs", `--cgroup-root=/${cgroup}/${name}`],
      ...["--enforce-node-allocatable=", "--eviction-hard=", "--resolv-conf="],
      ...["--serialize-image-pulls=false", "--kube-api-qps=50", "--kube-api-burst=100", "--read-only-port=0"],
    ]),
  );
  programs.set(
    `kube-proxy ${name}`,
    machine.spawn([
      ...[`${folder}/kube-proxy`, "--kubeconfig", `${FOLDER}/admin.kubeconfig`, "--hostname-override", name],
      ...["--proxy-mode=iptables", "--cluster-cidr", POD_NETWORK, "--conntrack-max-per-core=0"],
      ...["--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"],
    ]),
  );
}
