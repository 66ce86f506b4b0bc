/**
 * A throw-away node: what a machine is to a CNI plugin, in namespaces of its own.
 *
 * One process holds a network, a mount and a PID namespace. Its /run, /etc, /var and /opt are private (overlays on
 * tmpfs), /sys and /proc belong to its own network and processes, and the rest of the root file system but /tmp is
 * read-only. So plugins run in it as a runtime runs them on a machine, and nothing that they do reaches the real one.
 * The holder lives as long as a pipe to the test process: when that ends, however it ends, every process of the node is
 * killed by the kernel and nothing is left behind.
 */

import { eventually } from "./traffic.ts";
import { patience } from "./vm.ts";

/** What came of a command. */
export interface Output {
  /** Exit status; 128 + the signal's number when a signal ended it. */
  code: number;
  stdout: string;
  stderr: string;
}

export interface ExecOptions {
  /** Text or bytes on standard input; nothing (end of file) when left out. */
  input?: string | Uint8Array;
  /** Environment; only PATH is set when left out. */
  env?: Record<string, string>;
  /** Limit in milliseconds, 60,000 unless told. Past it the whole node is killed and the call fails. */
  timeout?: number;
}

export interface NodeOptions {
  /** Folders of the machine shown read-only inside the node: path inside → path on the machine. */
  binds?: Record<string, string>;
  /** True shows the machine's cgroups below /sys/fs/cgroup: container runtimes need them. */
  cgroups?: boolean;
  /** With {@linkcode FRESH_ROOT}: the machine's network, and writing to the root itself, to install into it. */
  installing?: boolean;
}

export const PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** Folder of a root file system that nodes have instead of the machine's: that of `deno task test:fresh-root`. */
export const FRESH_ROOT = Deno.env.get("CNIBOX_E2E_ROOT");

const nsenterPath = "/usr/bin/nsenter";

/** A command in a namespace failed that should not have. */
export class CommandFailed extends Error {
  constructor(readonly argv: string[], readonly output: Output) {
    super(`${argv.join(" ")}: exit ${output.code}\n${output.stderr}${output.stdout}`);
    this.name = "CommandFailed";
  }
}

/** One network namespace of a node: its host, a container, or the world outside. */
export class Namespace {
  readonly #node: Node | undefined;

  constructor(
    node: Node | undefined,
    /** A short name: the namespace's file below /run/netns, "host" for the node's own. */
    readonly name: string,
    /** Path inside the node as CNI_NETNS would have it; undefined for the node's own namespace. */
    readonly netns: string | undefined,
  ) {
    this.#node = node;
  }

  get node(): Node {
    return this.#node ?? (this as unknown as Node);
  }

  /** Runs a command here, and returns what came of it, also when it failed. */
  async exec(argv: string[], options: ExecOptions = {}): Promise<Output> {
    const node = this.node;
    const child = new Deno.Command(nsenterPath, {
      args: [...node.enter(this.netns), "--", ...argv],
      clearEnv: true,
      env: options.env ?? { PATH },
      stdin: options.input === undefined ? "null" : "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    let late = false;
    const limit = (options.timeout ?? 60_000) * patience;
    const timer = setTimeout(() => {
      late = true;
      node.kill();
    }, limit);
    try {
      const [output] = await Promise.all([child.output(), feed(child, options.input)]);
      if (late) throw new Error(`${argv.join(" ")}: still running after ${limit} ms, so its node was killed`);
      return {
        code: output.code,
        stdout: new TextDecoder().decode(output.stdout),
        stderr: new TextDecoder().decode(output.stderr),
      };
    } finally {
      clearTimeout(timer);
    }
  }

  /** Runs a command that has to succeed and returns its standard output. Throws CommandFailed. */
  async run(...argv: string[]): Promise<string> {
    const output = await this.exec(argv);
    if (output.code !== 0) throw new CommandFailed(argv, output);
    return output.stdout;
  }

  /** Lines for `ip -batch`, all of which have to succeed; returns what they printed. */
  async ip(...lines: string[]): Promise<string> {
    const argv = ["ip", "-batch", "-"];
    const output = await this.exec(argv, { input: lines.join("\n") + "\n" });
    if (output.code !== 0) throw new CommandFailed([...argv, ...lines], output);
    return output.stdout;
  }

  /** `ip -json -details ARGS`, parsed. */
  // deno-lint-ignore no-explicit-any -- the tool's own shape; tests pick what they look at
  async ipJson(...args: string[]): Promise<any[]> {
    const text = await this.run("ip", "-json", "-details", ...args);
    return text.trim() === "" ? [] : JSON.parse(text);
  }

  /** A shell script that has to succeed; arguments arrive as $1, $2, … Returns its standard output. */
  sh(script: string, ...args: string[]): Promise<string> {
    return this.run("/bin/sh", "-euc", script, "sh", ...args);
  }

  /** One net setting, name below /proc/sys/net with slashes: "ipv4/ip_forward". */
  async sysctl(name: string, value?: string | number): Promise<string> {
    const path = `/proc/sys/net/${name}`;
    if (value !== undefined) await this.sh(`printf '%s\\n' "$2" >"$1"`, path, String(value));
    return (await this.run("cat", path)).trim();
  }

  /**
   * Starts a command that stays: a server, a sniffer. It ends with `close()`, at the latest with the node.
   * Its standard input is at end of file; its outputs are collected.
   */
  spawn(argv: string[], options: { env?: Record<string, string> } = {}): Background {
    const node = this.node;
    // A shell beside the command waits for the end of its standard input, which is ours to close, and then ends the
    // command.
    const script = `exec 3<&0; "$@" </dev/null 3<&- & child=$!; trap 'kill $child' TERM
      (cat <&3; kill $$) >/dev/null 2>&1 & exec 3<&-; wait $child`;
    const child = new Deno.Command(nsenterPath, {
      args: [...node.enter(this.netns), "--", "/bin/sh", "-c", script, "sh", ...argv],
      clearEnv: true,
      env: options.env ?? { PATH },
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const background = new Background(argv, child);
    node.backgrounds.add(background);
    return background;
  }
}

/** A command that stays until closed. */
export class Background {
  stdout = "";
  stderr = "";
  readonly #ended: Promise<number>;
  readonly #child: Deno.ChildProcess;
  #changed = Promise.withResolvers<void>();
  #closed = false;
  #code: number | undefined;

  constructor(readonly argv: string[], child: Deno.ChildProcess) {
    this.#child = child;
    const collect = async (from: ReadableStream<Uint8Array>, add: (text: string) => void) => {
      const decoder = new TextDecoder();
      for await (const part of from) {
        add(decoder.decode(part, { stream: true }));
        this.#wake();
      }
    };
    this.#ended = Promise.all([
      child.status,
      collect(child.stdout, (text) => this.stdout += text),
      collect(child.stderr, (text) => this.stderr += text),
    ]).then(([status]) => {
      this.#code = status.code;
      this.#wake();
      return status.code;
    });
  }

  /**
   * Waits until standard output or standard error matches. Fails when the command ends first, or after `timeout` ms.
   */
  async until(pattern: RegExp, timeout = 20_000): Promise<RegExpMatchArray> {
    const limit = Date.now() + timeout * patience;
    while (true) {
      const match = this.stdout.match(pattern) ?? this.stderr.match(pattern);
      if (match) return match;
      const left = limit - Date.now();
      if (this.#code !== undefined || left <= 0) {
        const what = this.#code !== undefined ? `ended (${this.#code})` : `said nothing in ${timeout} ms`;
        throw new Error(`${this.argv.join(" ")}: ${what} before ${pattern}\n${this.stderr}${this.stdout}`);
      }
      let timer: ReturnType<typeof setTimeout> | undefined;
      const sleep = new Promise<void>((done) => timer = setTimeout(done, left));
      await Promise.race([this.#changed.promise, sleep]);
      clearTimeout(timer);
    }
  }

  /** Waits for the command to end by itself and returns its exit status. */
  ended(): Promise<number> {
    return this.#ended;
  }

  /** Ends the command (SIGTERM) and waits for it. */
  async close(): Promise<void> {
    if (!this.#closed) {
      this.#closed = true;
      await this.#child.stdin.close().catch(() => {});
    }
    await this.#ended;
  }

  #wake(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers<void>();
  }
}

/**
 * A throw-away node; itself the namespace of its host. Make one with `createNode`, end it with `close()` or `await
 * using`.
 */
export class Node extends Namespace {
  readonly backgrounds = new Set<Background>();
  readonly #holder: Deno.ChildProcess;
  #containers = 0;

  constructor(holder: Deno.ChildProcess, readonly pid: number) {
    super(undefined, "host", undefined);
    this.#holder = holder;
  }

  /** nsenter's options for the node, or for a namespace file inside of it. */
  enter(netns?: string): string[] {
    // A mount namespace has its own root, so where this process lives below a chroot, the holder's root has to be told
    // too.
    const net = netns === undefined ? "--net" : `--net=${this.path(netns)}`;
    return [`--target=${this.pid}`, "--mount", "--pid", "--root", "--wd", net];
  }

  /** A path inside the node as the test process sees it. */
  path(inside: string): string {
    return `/proc/${this.pid}/root${inside}`;
  }

  /** Contents of a file inside the node; undefined when there is none. */
  async read(inside: string): Promise<string | undefined> {
    try {
      return await Deno.readTextFile(this.path(inside));
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return undefined;
      throw error;
    }
  }

  /** Writes a file inside the node, and the folders above it. */
  async write(inside: string, contents: string | Uint8Array, mode = 0o644): Promise<void> {
    await Deno.mkdir(this.path(inside.slice(0, inside.lastIndexOf("/")) || "/"), { recursive: true });
    const bytes = typeof contents === "string" ? new TextEncoder().encode(contents) : contents;
    await Deno.writeFile(this.path(inside), bytes, { mode });
  }

  /** Sorted names in a folder inside the node; [] when there is none. */
  async list(inside: string): Promise<string[]> {
    try {
      const names: string[] = [];
      for await (const entry of Deno.readDir(this.path(inside))) names.push(entry.name);
      return names.sort();
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return [];
      throw error;
    }
  }

  /** Adds an empty network namespace, /run/netns/NAME, as a runtime does for a pod. lo is down in it. */
  async container(name = `ctr${++this.#containers}`): Promise<Namespace> {
    await this.run("ip", "netns", "add", name);
    return new Namespace(this, name, `/run/netns/${name}`);
  }

  /** Removes a container's namespace, as a runtime does that never called DEL, or after it. */
  async removeContainer(container: Namespace): Promise<void> {
    await this.run("ip", "netns", "del", container.name);
  }

  /**
   * Starts a process that sleeps in a container and returns its PID inside the node: its namespace is
   * /proc/PID/ns/net.
   */
  async processIn(container: Namespace): Promise<number> {
    const process = container.spawn(["/bin/sh", "-c", "echo $$; exec sleep infinity"]);
    return Number((await process.until(/^(\d+)\n/))[1]);
  }

  /**
   * Links the node with a namespace that plays the world outside: `uplink` on the host, `eth0` out there, the host's
   * default routes through it. Out there nobody knows a way to the containers: what comes back came by the host's
   * address.
   */
  async outside(options: OutsideOptions = {}): Promise<Outside> {
    const name = options.name ?? "outside";
    const uplink = options.uplink ?? "uplink";
    const v4 = options.ipv4 ?? "192.0.2";
    const v6 = options.ipv6 ?? "2001:db8:ffff:";
    await this.run("ip", "netns", "add", name);
    const world = new Outside(this, name, `/run/netns/${name}`, {
      uplink,
      hostIPv4: `${v4}.1`,
      ipv4: `${v4}.2`,
      hostIPv6: `${v6}:1`,
      ipv6: `${v6}:2`,
    });
    await this.ip(
      `link add ${uplink} type veth peer name eth0 netns ${world.netns}`,
      `addr add ${world.hostIPv4}/24 dev ${uplink}`,
      `addr add ${world.hostIPv6}/64 dev ${uplink} nodad`,
      `link set ${uplink} up`,
    );
    await world.ip(
      "link set lo up",
      `addr add ${world.ipv4}/24 dev eth0`,
      `addr add ${world.ipv6}/64 dev eth0 nodad`,
      "link set eth0 up",
    );
    if (options.defaultRoutes ?? true) {
      await this.ip(`route add default via ${world.ipv4}`, `route add ::/0 via ${world.ipv6}`);
    }
    // The kernel writes an IPv6 address's own route a moment after the address: a snapshot is to have it.
    await eventually("the uplink's IPv6 address has its route", async () => {
      return (await this.exec(["ip", "route", "get", world.hostIPv6])).stdout.startsWith("local ");
    });
    return world;
  }

  /** Kills every process of the node at once. `close()` is still to be called. */
  kill(): void {
    try {
      this.#holder.kill("SIGKILL");
    } catch { /* it has ended already */ }
  }

  /** Ends every process of the node and, with them, its namespaces. */
  async close(): Promise<void> {
    await this.#holder.stdin.close().catch(() => {});
    await this.#holder.status;
    // Their pipes are at end of file now, for the kernel has killed what held them open.
    await Promise.all([...this.backgrounds].map((background) => background.close()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

export interface OutsideOptions {
  /** Name of the namespace, "outside" unless told. */
  name?: string;
  /** Name of the host's end of the link, "uplink" unless told. */
  uplink?: string;
  /** First three octets of the network between both; 192.0.2 unless told. */
  ipv4?: string;
  /** First groups of the /64 between both, with a colon at the end; 2001:db8:ffff: unless told. */
  ipv6?: string;
  /** False leaves the host without default routes. */
  defaultRoutes?: boolean;
}

interface OutsideAddresses {
  uplink: string;
  hostIPv4: string;
  ipv4: string;
  hostIPv6: string;
  ipv6: string;
}

/** The world outside of a node, and the addresses on both ends of the link to it. */
export class Outside extends Namespace {
  readonly uplink: string;
  readonly hostIPv4: string;
  readonly ipv4: string;
  readonly hostIPv6: string;
  readonly ipv6: string;

  constructor(node: Node, name: string, netns: string, addresses: OutsideAddresses) {
    super(node, name, netns);
    this.uplink = addresses.uplink;
    this.hostIPv4 = addresses.hostIPv4;
    this.ipv4 = addresses.ipv4;
    this.hostIPv6 = addresses.hostIPv6;
    this.ipv6 = addresses.ipv6;
  }
}

// Arguments: "cgroups" or "", then pairs of a path inside and the machine's folder to show there.
// The PID is read before the new /proc is mounted: it is the one that the test process knows.
const setup = `
set -e
cd /
read -r pid rest </proc/self/stat
cgroups=$1; shift
mount -t tmpfs -o mode=755 node /run
mkdir -p /run/netns /run/lock /run/node
if [ -n "$cgroups" ]; then mkdir /run/node/cgroup; mount --rbind /sys/fs/cgroup /run/node/cgroup; fi
mount -t proc proc /proc
mount -t sysfs sysfs /sys
[ -z "$cgroups" ] || mount --move /run/node/cgroup /sys/fs/cgroup
for folder in /etc /var /opt; do
  [ -d "$folder" ] || continue
  mkdir -p "/run/node$folder/upper" "/run/node$folder/work"
  mount -t overlay -o "lowerdir=$folder,upperdir=/run/node$folder/upper,workdir=/run/node$folder/work" node "$folder"
done
for folder in /var/lib/cni /etc/cni /opt/cni; do
  [ ! -d "$folder" ] || rm -rf "$folder"
done
mkdir -p /var/lib/cni /etc/cni/net.d /opt/cni/bin
while [ $# -gt 1 ]; do
  mkdir -p "$1"
  mount --bind -o ro "$2" "$1"
  shift 2
done
mount --bind /tmp /tmp
# Below a chroot / is no mount, and cannot be made read-only.
! mountpoint -q / || mount -o remount,bind,ro /
ip link set lo up
echo 0 >/proc/sys/net/ipv4/ip_forward
echo "ready $pid"
exec env --ignore-signal=CHLD cat >/dev/null 2>&1
`;

// Arguments: the root, "cgroups" or "", "installing" or "", then pairs as above for who installs. The node is the root
// as it is installed, below an overlay.
const setupFresh = `
set -e
cd /
read -r pid rest </proc/self/stat
mount -t tmpfs -o mode=755 node /run
root=/run/root
mkdir $root
if [ -n "$3" ]; then mount --bind "$1" $root; else
  mkdir /run/upper /run/work
  mount -t overlay -o "lowerdir=$1,upperdir=/run/upper,workdir=/run/work" node $root
fi
mount --rbind /dev $root/dev
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
[ -z "$2" ] || mount --rbind /sys/fs/cgroup $root/sys/fs/cgroup
mount -t tmpfs -o mode=755 node $root/run
mkdir $root/run/lock $root/run/netns
if [ -z "$3" ]; then
  ip link set lo up
  echo 0 >$root/proc/sys/net/ipv4/ip_forward
else
  shift 3
  while [ $# -gt 1 ]; do mount --bind "$2" "$root$1"; shift 2; done
fi
# Ready is who has this root: before, a command would run on the machine's.
exec chroot $root env --ignore-signal=CHLD sh -c 'echo "ready $1"; exec cat >/dev/null 2>&1' sh $pid
`;

/**
 * Makes a node: forwarding off, lo up, no other link, empty /var/lib/cni, /etc/cni/net.d, /opt/cni/bin and /run.
 * Needs root. Throws with the failing command's words.
 */
export async function createNode(options: NodeOptions = {}): Promise<Node> {
  const { installing = false, cgroups = false, binds = {} } = options;
  const [script, more] = FRESH_ROOT === undefined
    ? [setup, [cgroups ? "cgroups" : "", ...Object.entries(binds).flat()]]
    : [setupFresh, [
      FRESH_ROOT,
      cgroups ? "cgroups" : "",
      installing ? "installing" : "",
      ...Object.entries(binds).flat(),
    ]];
  const holder = new Deno.Command("/usr/bin/unshare", {
    args: [
      ...(installing ? [] : ["--net"]),
      ...["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "--"],
      ...["/bin/sh", "-c", `exec 2>&1; ${script}`, "sh", ...more],
    ],
    clearEnv: true,
    env: { PATH },
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
  }).spawn();
  let said = "";
  const reader = holder.stdout.getReader();
  const decoder = new TextDecoder();
  let ready: RegExpMatchArray | null = null;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    said += decoder.decode(part.value, { stream: true });
    ready = said.match(/^ready (\d+)$/m);
    if (ready) break;
  }
  await reader.cancel();
  if (ready) return new Node(holder, Number(ready[1]));
  await holder.stdin.close().catch(() => {});
  const { code } = await holder.status;
  throw new Error(`no node could be made (exit ${code}): ${said.trim()}`);
}

async function feed(child: Deno.ChildProcess, input: string | Uint8Array | undefined): Promise<void> {
  if (input === undefined) return;
  const writer = child.stdin.getWriter();
  try {
    await writer.write(typeof input === "string" ? new TextEncoder().encode(input) : input as Uint8Array<ArrayBuffer>);
    await writer.close();
  } catch (error) {
    // A command may end without reading what it is given, and a killed one while it is written.
    if (!(error instanceof Deno.errors.BrokenPipe) && !(error instanceof TypeError)) throw error;
  }
}
