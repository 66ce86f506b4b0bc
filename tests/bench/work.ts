/** What is measured: networks, the life of an attachment in them, and nodes that are not empty. */
import { eventually, type Json, type Namespace, type Node, testNode } from "../e2e/support/mod.ts";
import { type Call, childProcesses, type Cost, measure, peakMemory, type Side } from "./measure.ts";

/** A network list and what the runtime adds to it. */
export interface Net {
  readonly cniVersion: string;
  readonly name: string;
  readonly plugins: readonly Json[];
  readonly capabilities?: Record<string, unknown>;
}

const host = (name: string, plugins: Json[], capabilities?: Record<string, unknown>): Net => ({
  cniVersion: "1.0.0",
  name,
  plugins,
  ...(capabilities && { capabilities }),
});

const V4 = [{ subnet: "10.22.0.0/16" }];
const V6 = [{ subnet: "fd00:22::/64" }];
const bridge = (ipMasq: boolean, ranges: Json[] = [V4]): Json => ({
  type: "bridge",
  bridge: "br22",
  isDefaultGateway: true,
  ipMasq,
  ipam: { type: "host-local", ranges },
});
const portmap = { type: "portmap", capabilities: { portMappings: true } };
const PORTS = {
  portMappings: [
    { hostPort: 8080, containerPort: 80, protocol: "tcp" },
    { hostPort: 5353, containerPort: 53, protocol: "udp" },
  ],
};

/** The networks of the rows. */
export const nets = {
  masq: host("masq", [bridge(true)]),
  plain: host("plain", [bridge(false)]),
  dual: host("dual", [bridge(true, [V4, V6])]),
  ports: host("ports", [bridge(true), portmap], PORTS),
  four: host("four", [bridge(true), portmap, { type: "tuning", sysctl: { "net.core.somaxconn": "512" } }, {
    type: "firewall",
    backend: "iptables",
  }], PORTS),
  leases: (taken: number) =>
    host(`leases${taken}`, [{
      type: "host-local",
      ipam: { type: "host-local", ranges: [[{ subnet: "10.0.0.0/12" }]] },
    }]),
};

/**
 * A bridge without masquerading on a /16: with addresses of our host-local, or of cluster on an etcd of the node's own.
 */
export const shares = {
  local: host("local", [bridge(false)]),
  cluster: host("shared", [{
    ...bridge(false),
    ipam: {
      type: "cluster",
      node: "bench",
      ranges: [V4],
      store: { etcd: { endpoints: ["http://127.0.0.1:2379"] } },
    },
  }]),
};

/** Starts an etcd on the node. */
export async function startEtcd(node: Node): Promise<void> {
  node.spawn(["etcd", "--data-dir", "/run/etcd", "--log-level", "error"]);
  const healthy = ["curl", "-s", "-f", "http://127.0.0.1:2379/health"];
  await eventually("etcd answers", async () => (await node.exec(healthy)).code === 0, 60_000);
}

/** One network on one node, as one side's plugins carry it out. */
export class Attached {
  result: Json;

  constructor(
    readonly node: Node,
    readonly side: Side,
    readonly net: Net,
    readonly container?: Namespace,
  ) {}

  /** The call of one member of the list. */
  call(command: string, plugin: Json, prevResult: Json): Call {
    const { name, cniVersion, capabilities = {} } = this.net;
    const granted = Object.entries(capabilities).filter(([key]) => plugin.capabilities?.[key]);
    const { capabilities: _, ...conf } = plugin;
    return {
      type: plugin.type,
      command,
      container: this.container,
      stdin: {
        cniVersion,
        name,
        ...conf,
        ...(granted.length > 0 && { runtimeConfig: Object.fromEntries(granted) }),
        ...(prevResult && { prevResult }),
      },
    };
  }

  /** Carries out ADD or DEL of the whole list as a runtime does; `each` runs one call and gives its JSON. */
  async run(command: "ADD" | "DEL", each: (call: Call) => Promise<Json>): Promise<void> {
    const { plugins } = this.net;
    if (command === "ADD") {
      let result: Json;
      for (const plugin of plugins) result = await each(this.call("ADD", plugin, result));
      this.result = result;
    } else {
      for (const plugin of [...plugins].reverse()) await each(this.call("DEL", plugin, this.result));
      this.result = undefined;
    }
  }

  /** The cost of ADD or DEL. */
  async cost(command: "ADD" | "DEL"): Promise<Cost> {
    let [ms, cpuMs] = [0, 0];
    await this.run(command, async (call) => {
      const one = await measure(this.node, this.side, call);
      ms += one.ms;
      cpuMs += one.cpuMs;
      return one.json;
    });
    return { ms, cpuMs };
  }

  /** Peak memory of the largest call, in MiB. */
  async memory(command: "ADD" | "DEL"): Promise<number | undefined> {
    let peak: number | undefined;
    await this.run(command, async (call) => {
      const one = await peakMemory(this.node, this.side, call);
      if (one !== undefined) peak = Math.max(peak ?? 0, one);
      return JSON.parse(await this.node.read("/run/bench/io.out") || "null");
    });
    return peak;
  }

  /** Child processes of all calls. */
  async children(command: "ADD" | "DEL"): Promise<number | undefined> {
    let count: number | undefined;
    await this.run(command, async (call) => {
      const one = await childProcesses(this.node, this.side, call);
      if (one !== undefined) count = (count ?? 0) + one;
      return JSON.parse(await this.node.read("/run/bench/io.out") || "null");
    });
    return count;
  }
}

/** The same list by `cnibox add` and `cnibox del`: one process. */
export class ByCommand extends Attached {
  override async run(command: "ADD" | "DEL", each: (call: Call) => Promise<Json>): Promise<void> {
    const { name, cniVersion, plugins, capabilities = {} } = this.net;
    await this.node.write(`/etc/cni/net.d/${name}.conflist`, JSON.stringify({ cniVersion, name, plugins }));
    const word = command === "ADD" ? "add" : "del";
    const args = [word, "--json", "--cap", JSON.stringify(capabilities), name, this.container?.netns ?? ""];
    await each({ type: "cnibox", command: word, container: this.container, stdin: undefined, args });
  }
}

/** A node for one side, with all plugin folders in it. */
export async function benchNode(): Promise<Node> {
  const node = await testNode();
  await node.write("/run/bench/none", "");
  return node;
}

/** A folder of host-local with so many addresses taken, the last of them given out last. */
export function takeAddresses(node: Node, network: string, count: number): void {
  const folder = node.path(`/var/lib/cni/networks/${network}`);
  Deno.mkdirSync(folder, { recursive: true });
  let last = "";
  for (let index = 0; index < count; index++) {
    const value = index + 2;
    last = `10.${(value >> 16) & 15}.${(value >> 8) & 255}.${value & 255}`;
    Deno.writeTextFileSync(`${folder}/${last}`, `${"0".repeat(56)}${String(index).padStart(8, "0")}\r\neth0`);
  }
  Deno.writeTextFileSync(`${folder}/last_reserved_ip.0`, last);
}

/** Constant text for bash: $2 of containers p0 … p($1 − 1), sixteen at once, by plugin $3. */
const CROWD = [
  "export CNI_COMMAND=$2 CNI_IFNAME=eth0; from=$EPOCHREALTIME",
  'seq 0 $(( $1 - 1 )) | xargs -P 16 -I{} sh -c \'CNI_CONTAINERID=p{} CNI_NETNS=/run/netns/p{} exec "$0" ' +
  '</run/bench/$CNI_COMMAND.{} >/run/bench/out.{} || { cat /run/bench/out.{}; exit 1; }\' "$3" || exit 1',
  'to=$EPOCHREALTIME; echo "us $(( ${to/./} - ${from/./} ))"',
].join("\n");

/** Containers a second when so many are added, then deleted, sixteen at once. */
export async function crowd(node: Node, side: Side, count: number): Promise<{ add: number; del: number }> {
  const [plugin] = nets.masq.plugins;
  const conf = { cniVersion: "1.0.0", name: "masq", ...plugin };
  const rate = async (command: "ADD" | "DEL", stdin: (index: number) => Promise<Json>) => {
    for (let index = 0; index < count; index++) {
      await node.write(`/run/bench/${command}.${index}`, JSON.stringify(await stdin(index)));
    }
    const { code, stdout, stderr } = await node.exec(
      ["bash", "-c", CROWD, "bash", String(count), command, `${side.folder}/bridge`],
      { env: { PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", CNI_PATH: side.folder } },
    );
    const us = Number(/^us (\d+)$/m.exec(stdout)?.[1]);
    if (code !== 0 || !(us > 0)) throw new Error(`${side.name}: ${command} of many: ${stdout}${stderr}`);
    return count / (us / 1e6);
  };
  const add = await rate("ADD", () => Promise.resolve(conf));
  const results = await Promise.all(
    Array.from({ length: count }, async (_, index) => JSON.parse(await node.read(`/run/bench/out.${index}`) ?? "")),
  );
  const del = await rate("DEL", (index) => Promise.resolve({ ...conf, prevResult: results[index] }));
  return { add, del };
}

/** Network namespaces p0 … p(count − 1). */
export async function crowdContainers(node: Node, count: number): Promise<void> {
  await node.sh('i=0; while [ $i -lt "$1" ]; do ip netns add p$i; i=$((i + 1)); done', String(count));
}
