/**
 * Has the engine compile what calls need: plays ADD, CHECK and DEL of the usual networks on a machine that is not
 * there, then writes what the engine made of each chunk to `CHUNK.code`. Compiled with the very base that the program
 * is compiled with, since code fits only the engine that made it; the build runs it, as any user:
 *
 *     warm_up CHUNKS SCRATCH    folder of the chunks, and an empty folder that may be written to
 *
 * The machine is a folder: every file that the program opens lies in it, every tool agrees. What a call answers is no
 * matter, but that it succeeds: then it went the way that real calls go.
 */
import { Script } from "node:vm";
import { type Chunks, ENTRY, program } from "./loader.ts";

const [chunkFolder = "", scratch = ""] = Deno.args;
const machine = Deno;
// Every file that calls write lies below it: without it, these were files of this very machine.
if (!scratch.startsWith("/") || [...machine.readDirSync(scratch)].length > 0) {
  throw new Error(`the scratch folder "${scratch}" is not an empty folder, named by its whole path`);
}
const chunks: Chunks = new Map();
const scripts = new Map<string, Script>();
const textOf = (chunk: string) => machine.readTextFileSync(`${chunkFolder}/${chunk}.js`);
const evaluate = (chunk: string) => {
  const script = new Script(textOf(chunk), { filename: chunk });
  scripts.set(chunk, script);
  return script.runInThisContext();
};

/** What one call has, and what it left. */
interface PlayedCall {
  readonly env: Record<string, string>;
  readonly args: readonly string[];
  readonly stdin: string;
  stdout: string;
  stderr: string;
}

/** One call of the program by the name `called`; gives its standard output, or throws when it fails. */
async function call(called: string, input: Partial<Pick<PlayedCall, "env" | "args" | "stdin">>): Promise<string> {
  const at: PlayedCall = { env: {}, args: [], stdin: "", stdout: "", stderr: "", ...input };
  const status = await new Promise<number>((exit) => {
    Object.defineProperty(globalThis, "Deno", { value: pretended(at, exit), configurable: true, writable: true });
    machine.writeTextFileSync(`${scratch}/proc/self/cmdline`, `${called}\0`);
    program(evaluate, chunks)(ENTRY);
  });
  if (status !== 0) throw new Error(`${called} ${JSON.stringify(at.env)}: ${at.stdout}${at.stderr}`);
  return at.stdout;
}

/** Paths of the files that may be given to tools, by the number that lib/kernel/run.ts knows them by. */
const numbered = new Map<unknown, string>();

/** Functions of the runtime that take a path first, or two of them. */
const ONE_PATH = /^(open|read|write|stat|lstat|mkdir|remove|utime|chmod|chown|truncate|realPath|readDir|readLink)/;
const TWO_PATHS = /^(rename|link|symlink|copyFile)/;

/** The runtime, on the machine that is not there. */
function pretended(at: PlayedCall, exit: (status: number) => void): typeof Deno {
  const decoder = new TextDecoder();
  const inside = (value: unknown) =>
    typeof value === "string" && value.startsWith("/") && !value.startsWith(chunkFolder) ? `${scratch}${value}` : value;
  let read = false;
  const instead: Record<string, unknown> = {
    args: at.args,
    build: { ...machine.build, standalone: true },
    env: {
      get: (name: string) => at.env[name],
      toObject: () => ({ ...at.env }),
      has: (name: string) => name in at.env,
    },
    uid: () => 0,
    execPath: () => "/opt/cni/bin/cnibox",
    exit,
    addSignalListener: () => {},
    removeSignalListener: () => {},
    stdin: {
      read: (bytes: Uint8Array) => {
        if (read) return Promise.resolve(null);
        read = true;
        return Promise.resolve(new TextEncoder().encodeInto(at.stdin, bytes).written);
      },
      isTerminal: () => false,
    },
    stdout: {
      writeSync: (bytes: Uint8Array) => (at.stdout += decoder.decode(bytes), bytes.length),
      isTerminal: () => false,
    },
    stderr: {
      writeSync: (bytes: Uint8Array) => (at.stderr += decoder.decode(bytes), bytes.length),
      isTerminal: () => false,
    },
    // Whoever builds the program stands for root.
    lstatSync: (path: string) => ({ ...machine.lstatSync(String(inside(path))), uid: 0 }),
    openSync: (path: string, options?: Deno.OpenOptions) => {
      const file = machine.openSync(String(inside(path)), options);
      for (const symbol of Object.getOwnPropertySymbols(file)) numbered.set(Reflect.get(file, symbol), path);
      return file;
    },
    Command: class {
      readonly #argv: readonly string[];
      readonly #streams: Record<string, unknown>;
      constructor(program: string, { args = [], ...streams }: Deno.CommandOptions = {}) {
        this.#argv = [program, ...args];
        this.#streams = { ...streams };
      }
      spawn() {
        const { stdin, stdout } = this.#streams;
        const input = typeof stdin === "number" ? machine.readTextFileSync(`${scratch}${numbered.get(stdin)}`) : "";
        machine.writeTextFileSync(`${scratch}${numbered.get(stdout)}`, answer(this.#argv, input), { append: true });
        return { status: Promise.resolve({ success: true, code: 0, signal: null }), pid: 1, kill: () => {} };
      }
    },
  };
  return new Proxy(machine, {
    get: (target, name: string) => {
      if (name in instead) return instead[name];
      const own = Reflect.get(target, name) as unknown;
      if (typeof own !== "function") return own;
      const paths = TWO_PATHS.test(name) ? 2 : ONE_PATH.test(name) ? 1 : 0;
      if (paths === 0) return own;
      return (...args: unknown[]) =>
        own.apply(target, args.map((value, index) => index < paths ? inside(value) : value));
    },
  });
}

/**
 * What a tool prints: for each question of a batch a link that is as every caller wants it, and no rules at all.
 */
function answer(tool: readonly string[], input: string): string {
  if (tool.some((word) => /(^|\/)nft$/.test(word))) return '{"nftables":[]}\n';
  if (tool.some((word) => word.endsWith("-save"))) return "*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n";
  if (tool.some((word) => /(^|\/)ip6?tables$/.test(word))) return `-N ${tool[tool.indexOf("-S") + 1]}\n`;
  // plugins/tuning/settings.ts asks what kind of file each setting is, then what they hold.
  const settings = tool.filter((word) => word.startsWith("/proc/sys/"));
  if (settings.length > 0) return `${"f\n".repeat(settings.length)}${settings.map((path) => `${path}:512\n`).join("")}`;
  const questions = input === "" ? [tool.join(" ")] : input.split("\n");
  return questions.filter((line) => /\bshow\b/.test(line) && !/ dev bwp/.test(line)).map((line) => {
    const [, name = "eth0"] = /\bdev (\S+)/.exec(line) ?? [];
    return `${JSON.stringify(/^(route|rule)/.test(line) ? [] : [link(name)])}\n`;
  }).join("");
}

function link(ifname: string): Record<string, unknown> {
  const isBridge = ifname.startsWith("br");
  return {
    ifindex: isBridge ? 5 : 2,
    link_index: 2,
    ifname,
    flags: ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"],
    mtu: 1500,
    qdisc: "noqueue",
    operstate: "UP",
    address: ifname === "eth0" ? "0a:58:0a:01:00:02" : "02:00:00:00:00:01",
    link_type: "ether",
    promiscuity: 0,
    linkinfo: { info_kind: isBridge ? "bridge" : "veth", info_data: {} },
    addr_info: isBridge
      ? [{ family: "inet", local: "10.1.0.1", prefixlen: 16 }, { family: "inet6", local: "fd00:1::1", prefixlen: 64 }]
      : ifname === "lo"
      ? []
      : [{ family: "inet", local: "10.1.0.2", prefixlen: 16 }],
  };
}

function put(path: string, text = "", mode = 0o644): void {
  machine.mkdirSync(`${scratch}${path.slice(0, path.lastIndexOf("/"))}`, { recursive: true });
  machine.writeTextFileSync(`${scratch}${path}`, text, { mode });
}

/** A link of the host, as /proc and /sys show it. */
function putLink(name: string, alias = ""): void {
  put(`/proc/sys/net/ipv4/conf/${name}/tag`, "0\n");
  put(`/proc/self/net/dev_snmp6/${name}`, "ifIndex                         \t2\n");
  put(`/sys/class/net/${name}/ifindex`, "2\n");
  put(`/sys/class/net/${name}/ifalias`, `${alias}\n`);
}

/** Files of the machine: tools, namespaces, settings. */
function furnish(): void {
  const tools = ["ip", "bridge", "tc", "nsenter", "sh", "sysctl", "conntrack", "nft", "ss", "busctl", "modprobe"];
  for (
    const tool of [...tools, ...["", "6"].flatMap((n) => [`ip${n}tables`, `ip${n}tables-save`, `ip${n}tables-restore`])]
  ) {
    put(`/usr/sbin/${tool}`, "", 0o755);
  }
  put("/opt/cni/bin/cnibox", "", 0o755);
  for (const type of TYPES) machine.symlinkSync("cnibox", `${scratch}/opt/cni/bin/${type}`);
  machine.mkdirSync(`${scratch}/proc/${machine.pid}`, { recursive: true });
  machine.symlinkSync(String(machine.pid), `${scratch}/proc/self`);
  put("/proc/self/ns/net");
  put("/run/netns/c1");
  put("/proc/sys/net/ipv4/ip_forward", "1\n");
  put("/proc/sys/net/ipv6/conf/all/forwarding", "1\n");
  put("/proc/self/net/dev", "\n\n");
  put("/proc/self/stat", `${machine.pid} (cnibox) S 1${" 0".repeat(17)} 1 0\n`);
  machine.symlinkSync("pid:[1]", `${scratch}/proc/self/ns/pid`);
  // What is open for the runtime, the namespace, and the listing of these itself.
  for (const number of [21, 23]) put(`/proc/self/fd/${number}`);
  machine.symlinkSync(`${scratch}/run/netns/c1`, `${scratch}/proc/self/fd/22`);
  for (const name of ["all", "br0"]) putLink(name);
  // A block of the network that has its addresses from a cluster's pool: no store is asked.
  put("/proc/sys/kernel/random/boot_id", "1\n");
  const block = { block: "10.1.2.0/28", phase: "own", revision: "1", value: "" };
  const at = NETWORKS.findIndex(({ type }) => type === "cluster");
  put(`/var/lib/cni/cluster/net${at}/blocks.json`, JSON.stringify({ blocks: [block], revision: "1", bootId: "1" }));
  put("/etc/cni/net.d/all.conflist", JSON.stringify({ cniVersion: "1.0.0", name: "all", plugins: CHAIN }));
}

const V4 = [{ subnet: "10.1.0.0/16" }], V6 = [{ subnet: "fd00:1::/64" }];
const BRIDGE = { type: "bridge", bridge: "br0", isDefaultGateway: true, ipMasq: true };
const CHAIN = [
  { ...BRIDGE, ipam: { type: "host-local", ranges: [V4] } },
  { type: "portmap", capabilities: { portMappings: true } },
  { type: "tuning", sysctl: { "net.core.somaxconn": "512" } },
  { type: "firewall", backend: "iptables" },
];
const PORTS = {
  portMappings: [
    { hostPort: 8080, containerPort: 80, protocol: "tcp" },
    { hostPort: 5353, containerPort: 53, protocol: "udp" },
  ],
};
/** The lists of pods, each as one call. */
const PODS = [2, 3, 4].map((count) => ({
  type: "chain",
  plugins: [...CHAIN.filter(({ type }) => type !== "tuning"), { type: "bandwidth", capabilities: { bandwidth: true } }]
    .slice(0, count),
  runtimeConfig: { ...PORTS, bandwidth: { egressRate: 8_000_000, egressBurst: 800_000 } },
}));
/** Networks whose calls are played; of chained plugins with the result of the first one. */
const NETWORKS: readonly Record<string, unknown>[] = [
  { ...BRIDGE, ipam: { type: "host-local", ranges: [V4] } },
  { ...BRIDGE, ipam: { type: "host-local", ranges: [V4, V6] } },
  { type: "portmap", runtimeConfig: PORTS },
  { type: "firewall", backend: "iptables" },
  { type: "tuning", sysctl: { "net.core.somaxconn": "512" } },
  { type: "host-local", ipam: { type: "host-local", ranges: [[{ subnet: "10.2.0.0/16" }]] } },
  { type: "loopback" },
  { type: "ptp", ipMasq: true, ipam: { type: "host-local", ranges: [[{ subnet: "10.3.0.0/16" }]] } },
  { type: "bandwidth", ingressRate: 8_000_000, ingressBurst: 800_000, egressRate: 8_000_000, egressBurst: 800_000 },
  { type: "macvlan", master: "eth0", ipam: { type: "host-local", ranges: [[{ subnet: "10.4.0.0/16" }]] } },
  { type: "ipvlan", master: "eth0", ipam: { type: "host-local", ranges: [[{ subnet: "10.5.0.0/16" }]] } },
  {
    type: "cluster",
    ipam: { type: "cluster", node: "n1", ranges: [V4], store: { etcd: { endpoints: ["http://[::1]:2379"] } } },
  },
  { type: "static", ipam: { type: "static", addresses: [{ address: "10.6.0.2/16", gateway: "10.6.0.1" }] } },
  ...PODS,
];
const TYPES = [...new Set(NETWORKS.map(({ type }) => String(type)))];

/** Nobody else holds it: it is there until the engine collects. */
const witness = new WeakRef({});
furnish();
const ATTACHMENT = { CNI_CONTAINERID: "c1", CNI_NETNS: "/run/netns/c1", CNI_IFNAME: "eth0", CNI_PATH: "/opt/cni/bin" };
let first: unknown;
for (const [index, network] of NETWORKS.entries()) {
  const type = String(network["type"]);
  const conf = {
    cniVersion: "1.0.0",
    name: `net${index}`,
    ...network,
    ...(first !== undefined && type !== "chain" && { prevResult: first }),
  };
  const plugin = async (command: string, stdin: unknown) =>
    await call(type, { env: { ...ATTACHMENT, CNI_COMMAND: command }, stdin: JSON.stringify(stdin) });
  await plugin("VERSION", undefined);
  const prevResult = JSON.parse(await plugin("ADD", conf));
  first ??= prevResult;
  for (const { name, sandbox } of prevResult.interfaces ?? []) {
    if (!sandbox && name.startsWith("veth")) putLink(name, `cni:net${index}:c1:eth0`);
  }
  await plugin("DEL", { ...conf, prevResult });
}
for (const word of ["add", "del"]) {
  const args = [word, "--json", "--cap", JSON.stringify(PORTS), "all", "/run/netns/c1"];
  await call("cnibox", { env: { CNI_PATH: "/opt/cni/bin" }, args });
}
if (witness.deref() === undefined) throw new Error("the engine has collected: its code differs from run to run");
for (const [chunk, script] of scripts) {
  machine.writeFileSync(`${chunkFolder}/${chunk}.code`, script.createCachedData());
}
machine.exit(0);
