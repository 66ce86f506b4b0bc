/** Container runtimes inside a node: a root file system, containerd with its CRI service, podman on its CNI backend. */
import { Namespace, type Node, type Output, PATH } from "./node.ts";
import type { Need } from "./needs.ts";
import { must } from "./operator.ts";
import { Attachment, type Json } from "./plugins.ts";
import { type Allowed, hostLocalLeftovers } from "./snapshot.ts";
import { nodeTest } from "./test.ts";
import { eventually } from "./traffic.ts";

/** What a node with any container runtime needs of the machine. */
export const runtimeNeeds: Need[] = ["cgroups", "bridge", "veth", "iptables", "tool:runc", "tool:busybox", "tool:curl"];

/** Folder of another containerd than the machine's, its shim and ctr included. */
const CONTAINERD = Deno.env.get("CNIBOX_E2E_CONTAINERD");

export interface RuntimeTest {
  node: Node;
  /** A name for the test's own cgroup, which is shared with the machine's: containers are put below it. */
  cgroup: string;
}

/** A `nodeTest` whose containers may use cgroups; those are removed when the node has ended. */
export function runtimeTest(name: string, needs: Need[], body: (test: RuntimeTest) => Promise<void>): void {
  const binds: Record<string, string> = CONTAINERD === undefined ? {} : { "/usr/local/bin": CONTAINERD };
  nodeTest(name, { needs: [...runtimeNeeds, ...needs], cgroups: true, binds }, async ({ node }) => {
    const cgroup = `cnibox-e2e-${crypto.randomUUID().slice(0, 8)}`;
    try {
      await makeRootfs(node);
      await body({ node, cgroup });
    } finally {
      await node.close(); // with every process that is in these cgroups
      await removeCgroups(cgroup);
    }
  });
}

/** What the first container leaves on a node for those to come: the bridges, forwarding, shared chains. */
export const firstContainer: Allowed[] = [
  hostLocalLeftovers,
  { section: "links", line: /^name=(cni\d|cni-podman\d) / },
  { section: "addresses", line: /^(cni\d|cni-podman\d) / },
  { section: "routes", line: / dev=(cni\d|cni-podman\d) / },
  { section: "sysctls", line: /\/conf\/(cni\d|cni-podman\d)\/(?!route_localnet:1)/ },
  /^ipv[46]\/(ip_forward$|ip_forward:|conf\/[^:]*forwarding:)/,
  /^nat :CNI-HOSTPORT-(DNAT|MASQ|SETMARK) -$/,
  /"CNI portfwd(: 127\.0\.0\.0\/8 is for this host alone| requiring masquerade| masquerade mark)"/,
  /^nat -A (PREROUTING|OUTPUT) -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT$/,
  /^nat -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000\/0x2000 -j MASQUERADE$/,
  /^filter :CNI-(ADMIN|FORWARD) -$|"CNI firewall plugin (rules|admin overrides)"/,
  {
    section: "files",
    line: /^\/(var\/lib|run|etc)\/cni(\/(results|networks|net\.d|tuning))? directory$|cni\.lock file/,
  },
];

export const ROOTFS = "/var/rootfs";

/** The list with its plugins as members of one chain, as `cnibox fold` prints it. */
export async function foldFile(node: Node, file: string, how: "fold" | "unfold" = "fold"): Promise<Json> {
  const { stdout, json } = await must(node, [how, file]);
  await node.write(file, stdout);
  return json;
}

/** CHECK of an attachment by the plugins of a list, with what the runtime has kept of it. Throws PluginFailed. */
export async function checkAttachment(node: Node, list: Json, containerId: string): Promise<void> {
  const kept: Json = JSON.parse(await node.read(`/var/lib/cni/results/${list.name}-${containerId}-eth0`) ?? "");
  // Older libraries keep the namespace in the result alone.
  const netns = kept.netns ?? kept.result.interfaces.find(({ sandbox }: Json) => sandbox).sandbox;
  const attachment = new Attachment(node, list, netns, { containerId, capabilities: kept.capabilityArgs });
  attachment.result = kept.result;
  await attachment.check();
}

/** A root file system of nothing but BusyBox, with a page for its web server. */
export async function makeRootfs(node: Node): Promise<void> {
  await node.sh(
    `mkdir -p "$1/bin" "$1/etc" "$1/proc" "$1/sys" "$1/dev" "$1/tmp" "$1/www"
     cp "$(command -v busybox)" "$1/bin/busybox"
     for name in sh ip ping sleep cat wget httpd; do ln -s busybox "$1/bin/$name"; done
     echo 'hello from a container' >"$1/www/index.html"`,
    ROOTFS,
  );
}

/** A page fetched from the node itself, empty where nobody answers; asks again while a server starts. */
export async function fetchPage(from: Namespace, url: string): Promise<string> {
  const argv = ["curl", "-sS", "--max-time", "5", "--retry", "20", "--retry-delay", "1", "--retry-connrefused", url];
  return (await from.exec(argv)).stdout.trim();
}

/** True when nobody answers at a port of the node. */
export async function refuses(from: Namespace, url: string): Promise<boolean> {
  return (await from.exec(["curl", "-sS", "--max-time", "2", url])).code !== 0;
}

/** Removes a test's cgroup, those below it included, once the kernel counts no process there any more. */
export async function removeCgroups(name: string): Promise<void> {
  const root = "/sys/fs/cgroup";
  const folders = [`${root}/${name}`, ...[...Deno.readDirSync(root)].map((entry) => `${root}/${entry.name}/${name}`)];
  const empty = (folder: string) => {
    try {
      for (const entry of Deno.readDirSync(folder)) if (entry.isDirectory) empty(`${folder}/${entry.name}`);
      Deno.removeSync(folder);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory)) throw error;
    }
  };
  await eventually(`cgroup ${name} is gone`, () => {
    try {
      folders.forEach(empty);
      return true;
    } catch {
      return false; // the kernel still counts a process that has ended
    }
  });
}

// ---------------------------------------------------------------------------------------------------------- containerd

/** A network of pods; docs/runtimes/containerd.md has the same file. */
export const podNetwork: Json = {
  cniVersion: "1.0.0",
  name: "net",
  plugins: [
    {
      type: "bridge",
      bridge: "cni0",
      isGateway: true,
      ipMasq: true,
      hairpinMode: true,
      ipam: {
        type: "host-local",
        ranges: [[{ subnet: "10.88.0.0/16" }], [{ subnet: "fd00:88::/64" }]],
        routes: [{ dst: "0.0.0.0/0" }, { dst: "::/0" }],
      },
    },
    { type: "portmap", capabilities: { portMappings: true } },
    { type: "firewall" },
  ],
};

/**
 * containerd's configuration: where plugins and networks are, as docs/runtimes/containerd.md has it; image, snapshotter
 * and scores are for a node without a registry, on an overlay, that may not raise its limits.
 */
export const containerdConfig = `version = 2

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/web:1"
  restrict_oom_score_adj = true

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
    max_conf_num = 2
`;

/** The same for containerd 2, whose CRI service is two plugins. */
const containerd2Config = `version = 3

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "native"

  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "localhost/web:1"

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true

  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
    max_conf_num = 2
`;

async function isContainerd2(node: Node): Promise<boolean> {
  return (await node.run("containerd", "--version")).includes("containerd/v2 ");
}

/** Arguments of `ctr image import` for the snapshotter of these tests. */
export async function importArguments(node: Node): Promise<string[]> {
  return [...(await isContainerd2(node) ? ["--local"] : []), "--snapshotter", "native"];
}

/** A containerd that answers. */
export interface Containerd {
  /** `ctr ARGS` in a containerd namespace of the test's own; throws when it fails. */
  ctr(...args: string[]): Promise<string>;
  /** Kills it (SIGKILL); containers go on. */
  kill(): Promise<void>;
  cri: Cri;
}

/** `sandbox` is the image of a pod's own container. */
export async function startContainerd(node: Node, namespace: string, sandbox?: string): Promise<Containerd> {
  const config = await isContainerd2(node) ? containerd2Config : containerdConfig;
  await node.write(
    "/etc/containerd/config.toml",
    sandbox === undefined ? config : config.replace("localhost/web:1", sandbox),
  );
  const daemon = node.spawn(["sh", "-c", "echo $$ >/run/containerd.pid; exec containerd"]);
  const answers = async () => (await node.exec(["ctr", "version"])).code === 0;
  await eventually("containerd answers", answers, 30_000).catch((error) => {
    throw new Error(`${error.message}\n${daemon.stderr}`);
  });
  return {
    ctr: (...args) => node.run("ctr", "--namespace", namespace, ...args),
    async kill() {
      await node.sh("kill -9 $(cat /run/containerd.pid)");
      await daemon.ended();
    },
    cri: new Cri(node),
  };
}

/** An image made of the root file system, whose program is the web server: pods of it answer on port 80. */
export async function importWebImage(node: Node): Promise<void> {
  await importImage(node, "localhost/web:1", ["/bin/busybox", "httpd", "-f", "-h", "/www"]);
}

/** An image made of the root file system, for pods. */
export async function importImage(node: Node, name: string, entrypoint: readonly string[]): Promise<void> {
  await node.sh(
    `mkdir -p /run/image; cd /run/image
     tar -C "$1" -cf layer.tar .
     sum=$(sha256sum layer.tar | cut -d ' ' -f 1)
     arch=$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
     printf '{"architecture":"%s","os":"linux","config":{"Entrypoint":%s},` +
      `"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$arch" "$3" "$sum" >config.json
     printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$2" >manifest.json
     tar -cf image.tar manifest.json config.json layer.tar`,
    ROOTFS,
    name,
    JSON.stringify(entrypoint),
  );
  await node.run(
    "ctr",
    "--namespace",
    "k8s.io",
    "images",
    "import",
    ...await importArguments(node),
    "/run/image/image.tar",
  );
}

/** A call of the runtime interface was refused. */
export class CriError extends Error {
  override name = "CriError";
}

export interface Pod {
  name: string;
  cgroup: string;
  hostPort?: number;
}

/** The kubelet's side of CRI (k8s.io/cri-api, runtime.v1): gRPC through curl, messages written field by field. */
export class Cri {
  constructor(readonly node: Node) {}

  /** RunPodSandbox; returns the pod's ID. Throws CriError. */
  async run({ name, cgroup, hostPort }: Pod): Promise<string> {
    const metadata = [...text(1, name), ...text(2, `uid-${name}`), ...text(3, "default")];
    const ports = hostPort === undefined ? [] : message(5, [...number(2, 80), ...number(3, hostPort)]);
    const linux = message(8, text(1, `/${cgroup}`));
    const answer = await this.#call("RunPodSandbox", message(1, [...message(1, metadata), ...ports, ...linux]));
    return string(answer[1]);
  }

  /** Addresses in PodSandboxStatus: first the pod's own, then further ones. */
  async addresses(id: string): Promise<string[]> {
    const status = fields((await this.#call("PodSandboxStatus", text(1, id)))[1]?.[0]);
    const network = fields(status[5]?.[0]);
    return [string(network[1]), ...(network[2] ?? []).map((ip) => string(fields(ip)[1]))];
  }

  /** True while containerd takes the pod's sandbox for running; false from when it has heard of its end. */
  async ready(id: string): Promise<boolean> {
    const status = fields((await this.#call("PodSandboxStatus", text(1, id)))[1]?.[0]);
    return status[3] === undefined; // SANDBOX_READY is 0, which is not written
  }

  /** What Status says of the network: "" when it is ready, else why not. */
  async networkTrouble(): Promise<string> {
    const status = fields((await this.#call("Status", []))[1]?.[0]);
    for (const condition of (status[1] ?? []).map(fields)) {
      if (string(condition[1]) !== "NetworkReady") continue;
      return condition[2] === undefined ? `${string(condition[3])}: ${string(condition[4])}` : "";
    }
    throw new Error("Status does not speak of NetworkReady");
  }

  /** The networks that containerd has loaded, as JSON. It hears of a new file a moment after it is written. */
  async networks(): Promise<string> {
    const answer = await this.#call("Status", number(1, 1));
    const info = (answer[2] ?? []).map(fields).find((entry) => string(entry[1]) === "cniconfig");
    return string(info?.[2]);
  }

  /** StopPodSandbox, then RemovePodSandbox. Throws CriError. */
  async remove(id: string): Promise<void> {
    await this.#call("StopPodSandbox", text(1, id));
    await this.#call("RemovePodSandbox", text(1, id));
  }

  async #call(method: string, request: number[]): Promise<Fields> {
    const length = [24, 16, 8, 0].map((shift) => request.length >>> shift & 255);
    await this.node.write("/run/cri/request", new Uint8Array([0, ...length, ...request]));
    await this.node.run(
      ...["curl", "-sS", "--http2-prior-knowledge", "--unix-socket", "/run/containerd/containerd.sock"],
      ...["-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", "@/run/cri/request"],
      ...["-D", "/run/cri/head", "-o", "/run/cri/answer", `http://localhost/runtime.v1.RuntimeService/${method}`],
    );
    const head = await this.node.read("/run/cri/head") ?? "";
    if (!/^grpc-status: 0\r?$/m.test(head)) {
      throw new CriError(`${method}: ${decodeURIComponent(/^grpc-message: (.*)$/m.exec(head)?.[1] ?? head)}`);
    }
    return fields((await Deno.readFile(this.node.path("/run/cri/answer"))).subarray(5));
  }
}

// Protocol buffers, as much as these messages are made of: varints and texts.

function varint(value: number): number[] {
  return value < 128 ? [value] : [value & 127 | 128, ...varint(value >>> 7)];
}

function number(field: number, value: number): number[] {
  return [...varint(field << 3), ...varint(value)];
}

function message(field: number, body: number[]): number[] {
  return [...varint(field << 3 | 2), ...varint(body.length), ...body];
}

function text(field: number, value: string): number[] {
  return message(field, [...new TextEncoder().encode(value)]);
}

/** The values of a message by field, each as the bytes that it has; a varint as its own bytes. */
type Fields = Record<number, Uint8Array[]>;

function fields(bytes: Uint8Array = new Uint8Array()): Fields {
  const found: Fields = {};
  let at = 0;
  const next = () => {
    for (let value = 0, shift = 0;; shift += 7) {
      const byte = bytes[at++];
      if (byte === undefined) throw new Error("a message is cut short");
      value += (byte & 127) * 2 ** shift;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const key = next();
    const from = at;
    const kind = key & 7;
    if (kind !== 0 && kind !== 2) throw new Error(`a field of kind ${kind}`);
    const size = next();
    const start = kind === 2 ? at : from;
    if (kind === 2) at += size;
    (found[key >>> 3] ??= []).push(bytes.subarray(start, at));
  }
  return found;
}

function string(value: Uint8Array | Uint8Array[] | undefined): string {
  return new TextDecoder().decode(Array.isArray(value) ? value[0] : value);
}

// -------------------------------------------------------------------------------------------------------------- podman

/** containers.conf for podman's CNI backend; the same lines are in docs/runtimes/podman.md. */
export const containersConf = `[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
`;

/** podman inside a node, with nothing of the machine's own podman. */
export class Podman {
  constructor(readonly node: Node, readonly cgroup: string) {}

  async configure(): Promise<void> {
    // A node has no systemd, no journal, no place where overlayfs may be, and the machine's /dev/shm.
    await this.node.write(
      "/etc/containers/containers.conf",
      `${containersConf}
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"

[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
`,
    );
    await this.node.write(
      "/etc/containers/storage.conf",
      '[storage]\ndriver = "vfs"\nrunroot = "/run/containers/storage"\ngraphroot = "/var/lib/containers/e2e"\n',
    );
  }

  exec(...args: string[]): Promise<Output> {
    return this.node.exec(["podman", ...args], { env: { PATH, HOME: "/root" } });
  }

  /** `podman ARGS`, which has to succeed. */
  async run(...args: string[]): Promise<string> {
    const output = await this.exec(...args);
    if (output.code !== 0) throw new Error(`podman ${args.join(" ")}: exit ${output.code}\n${output.stderr}`);
    return output.stdout.trim();
  }

  /** A container that serves a page on port 80 until it is removed; returns its ID. */
  serve(name: string, ...options: string[]): Promise<string> {
    return this.run(
      ...["run", "--detach", "--name", name, "--cgroup-parent", `/${this.cgroup}`, ...options],
      ...["--rootfs", ROOTFS, "/bin/busybox", "httpd", "-f", "-h", "/www"],
    );
  }

  /** The container's network namespace. */
  async namespace(name: string): Promise<Namespace> {
    const path = await this.run("inspect", "--format", "{{.NetworkSettings.SandboxKey}}", name);
    return new Namespace(this.node, name, path);
  }
}
