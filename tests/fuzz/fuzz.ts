/**
 * Calls made of nonsense, seeded and repeatable: environment, configuration, previous results, lease folders. Whatever
 * comes in, the answer is a result or an error of the protocol, without a stack trace, in time, and nothing outside the
 * call's own folder changes. Plugins run in this process, on a kernel that answers nonsense too: no root, and thousands
 * of cases a second.
 */
import { CniError, toCniError } from "../../lib/cni/error.ts";
import type { Plugin } from "../../lib/cni/plugin.ts";
import { callPlugin, errorText } from "../../lib/cni/skel.ts";
import type { Command, Output } from "../../lib/kernel/run.ts";
import { loadPlugin, pluginNames } from "../../plugins/mod.ts";
import { generator } from "../load/load.ts";

/** A violation of what every call promises. */
export interface Violation {
  readonly number: number;
  readonly plugin: string;
  readonly what: string;
  readonly env: Record<string, string>;
  readonly stdin: string;
}

/** What a run came to. */
export interface Tally {
  readonly cases: number;
  readonly results: number;
  readonly errors: Map<number, number>;
  readonly violations: Violation[];
}

/** Values that have hurt somebody: in names, paths, rules, batches. */
const HOSTILE: readonly unknown[] = [
  "",
  " ",
  "a",
  "eth0",
  "..",
  "../x",
  "../../etc/passwd",
  "/etc/passwd",
  "a/b",
  "a\nb",
  "link del lo\n",
  "a;b",
  "$(id)",
  "`id`",
  "a b",
  "-batch",
  "--help",
  "%s",
  "veth%d",
  'a"b',
  "a'b",
  "a\\b",
  "a\0b",
  "x".repeat(15),
  "x".repeat(16),
  "x".repeat(10_000),
  "é",
  "\u202e",
  "10.0.0.1",
  "10.0.0.1/24",
  "10.0.0.0/31",
  "0.0.0.0/0",
  "::/0",
  "::1",
  "fd00::1/64",
  "::ffff:10.0.0.1",
  "::ffff:10.0.0.0/120",
  "010.0.0.1",
  "10.0.0.1%eth0",
  "10.0.0.256",
  "1e400",
  "02:00:00:00:00:01",
  "ff:ff:ff:ff:ff:ff",
  "zz",
  null,
  true,
  false,
  0,
  -1,
  1,
  1.5,
  4094,
  4095,
  65535,
  65536,
  2 ** 31,
  2 ** 53,
  1e300,
  [],
  {},
  [[]],
  [null],
  { a: 1 },
  [{}],
  "iptables",
  "nftables",
  "tcp",
  "udp",
];

const ENV_VALUES: Readonly<Record<string, readonly string[]>> = {
  CNI_COMMAND: ["ADD", "ADD", "ADD", "DEL", "DEL", "CHECK", "GC", "STATUS", "", "add", "NOPE", "VERSION\n"],
  CNI_CONTAINERID: ["c1", "c1", "c1", "a.b_c-d", "", "../x", "a\nb", "-batch", "x".repeat(10_000), 'a"b', "é"],
  CNI_NETNS: [
    "/run/netns/none",
    "/proc/1/ns/nothing",
    "",
    "/etc/passwd",
    "relative",
    "../../x",
    "/proc/self/ns/net",
    "a\nb",
    "/dev/null",
  ],
  CNI_IFNAME: ["eth0", "eth0", "eth0", "", "-batch", "a/b", "veth%d", "a b", "x".repeat(16), "lo", "..", 'a"', "a\\"],
  CNI_PATH: ["/nonexistent", "", ":", "relative", "/etc:/nonexistent"],
  CNI_ARGS: [
    "",
    "",
    "IgnoreUnknown=1",
    "IgnoreUnknown=1;IP=10.0.0.5;MAC=02:00:00:00:00:05",
    "IP=nonsense",
    "MAC=zz",
    "=",
    ";",
    "A=B=C",
    "IP=../x",
    "MAC=02:00:00:00:00:01\nlink del lo",
  ],
};

/** Mostly what a runtime sends, since a bad variable ends the call at once. */
function environment({ random, pick }: Chance): Record<string, string> {
  const entries = Object.entries(ENV_VALUES).map(([name, values]) => {
    const usual = name === "CNI_COMMAND"
      ? pick(["ADD", "ADD", "DEL", "CHECK", "GC", "STATUS"])
      : name === "CNI_NETNS"
      ? "/run/netns/pod"
      : values[0] ?? "";
    return [name, random() < 0.94 ? usual : pick(values)];
  });
  return Object.fromEntries(entries);
}

/** Runs so many cases from a seed. Every case is told by its number and the seed alone. */
export async function fuzz(
  cases: number,
  options: { seed: number; from?: number; folder: string; limitMs?: number },
): Promise<Tally> {
  const { seed, from = 0, folder, limitMs = 5_000 } = options;
  const plugins = await Promise.all(
    pluginNames.filter((name) => name !== "dhcp").map(async (name) => (await loadPlugin(name)) as Plugin),
  );
  const tally = { cases: 0, results: 0, errors: new Map<number, number>(), violations: [] as Violation[] };
  for (let number = from; number < from + cases; number++) {
    const random = generator(seed * 1_000_003 + number);
    const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)] as T;
    const plugin = pick(plugins);
    const env = environment({ random, pick });
    const stdin = textOf(configuration(plugin, { random, pick, folder }), { random, pick });
    const violate = (what: string) =>
      void tally.violations.push({ number, plugin: plugin.name, what, env, stdin: stdin.slice(0, 2000) });
    tally.cases++;
    spoil(folder, { random, pick });
    const before = leases(folder);
    const started = performance.now();
    try {
      const answer = await callPlugin(plugin, {
        env,
        stdin: () => new TextEncoder().encode(stdin),
        registry: () => undefined,
        warn: () => {},
        run: nonsenseKernel({ random, pick, violate }),
      });
      if (answer.printable) JSON.stringify(answer.printable);
      tally.results++;
      if (answer.printable) Deno.removeSync(folder, { recursive: true });
    } catch (error) {
      const failure = toCniError(error);
      tally.errors.set(failure.code, (tally.errors.get(failure.code) ?? 0) + 1);
      if (!isClear(error, failure)) violate(`unclear: ${(error as Error).stack}`);
      const shown = JSON.parse(errorText(failure));
      if (typeof shown.code !== "number" || typeof shown.msg !== "string" || shown.msg === "") {
        violate(`bad error object ${errorText(failure)}`);
      }
    }
    if (tally.results === 0 || env["CNI_COMMAND"] === "ADD") {
      const after = leases(folder);
      // What a refused ADD took is released; what was garbage may have been cleaned up.
      const came = after.filter((name) => !before.includes(name));
      if (came.length > 0) violate(`left behind: ${came.join(" ")}`);
    }
    const ms = performance.now() - started;
    if (ms > limitMs) violate(`took ${ms.toFixed(0)} ms`);
  }
  return tally;
}

/** Names in the lease folder that count as leases, lock and cursors left out. */
function leases(folder: string): string[] {
  try {
    return [...Deno.readDirSync(`${folder}/net1`)].map(({ name }) => name).filter((name) =>
      name !== "lock" && !name.startsWith("last_reserved_ip")
    );
  } catch {
    return [];
  }
}

/**
 * Now and then, finds the lease folder as others may have left it: odd names, odd contents, links and pipes where files
 * belong.
 */
function spoil(folder: string, { random, pick }: Chance): void {
  if (random() < 0.7) return;
  const network = `${folder}/net1`;
  try {
    Deno.removeSync(folder, { recursive: true });
  } catch {
    // It was not there.
  }
  Deno.mkdirSync(network, { recursive: true });
  const write = (name: string, text: string) => Deno.writeTextFileSync(`${network}/${name}`, text);
  for (let i = Math.floor(random() * 6); i > 0; i--) {
    const name = pick([
      "10.1.0.2",
      "10.1.0.3",
      "10.2.0.2",
      "fd00:1::2",
      "last_reserved_ip.0",
      "last_reserved_ip.1",
      "notes.txt",
      "10.1.0.02",
      "10.1.0.999",
    ]);
    const content = pick([
      "",
      "c1\r\neth0",
      "c1",
      "c1\neth0",
      "other\r\neth0",
      "\0\0",
      "10.1.0.200",
      "x".repeat(5000),
      "c1\r\neth0\r\n\r\n",
    ]);
    const way = random();
    try {
      if (way < 0.8) write(name, content);
      else if (way < 0.9) {
        Deno.symlinkSync(pick(["/etc/passwd", "/nonexistent", "10.1.0.3", "."]), `${network}/${name}`);
      } else Deno.mkdirSync(`${network}/${name}`);
    } catch {
      // The name was taken.
    }
  }
  const way = random();
  if (way < 0.05) Deno.symlinkSync("/etc/passwd", `${network}/lock`);
  else if (way < 0.1) Deno.mkdirSync(`${network}/lock`);
  else if (way < 0.15) new Deno.Command("mkfifo", { args: [`${network}/lock`] }).outputSync();
}

/** Errors of JavaScript itself are accidents of ours; those of the protocol, of tools and of the system are answers. */
function isClear(error: unknown, failure: CniError): boolean {
  if (
    error instanceof TypeError || error instanceof RangeError || error instanceof ReferenceError ||
    error instanceof SyntaxError
  ) return false;
  return !/undefined|\[object Object\]|NaN/.test(failure.msg.replace(/"(?:[^"\\]|\\.)*"/g, ""));
}

/** Sources of chance of one case. */
interface Chance {
  readonly random: () => number;
  readonly pick: <T>(list: readonly T[]) => T;
}

/**
 * A configuration that is half right: known keys with values right and wrong, unknown keys, other cases, a previous
 * result.
 */
function configuration(plugin: Plugin, { random, pick, folder }: Chance & { folder: string }): Record<string, unknown> {
  const conf: Record<string, unknown> = {};
  if (random() < 0.97) conf["name"] = random() < 0.9 ? "net1" : pick(HOSTILE);
  conf["cniVersion"] = random() < 0.9
    ? pick(["0.1.0", "0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0", "1.1.0"])
    : pick(HOSTILE);
  conf["type"] = plugin.name;
  for (const name of Object.keys(plugin.keys)) {
    if (random() < 0.5) continue;
    const key = random() < 0.05 ? name.toUpperCase() : name;
    conf[key] = random() < 0.4 ? pick(HOSTILE) : likely(name, { random, pick, folder });
  }
  if (random() < 0.6) conf["ipam"] = ipam({ random, pick, folder });
  if (random() < 0.6) conf["prevResult"] = previous({ random, pick });
  if (random() < 0.2) {
    conf["cni.dev/valid-attachments"] = random() < 0.7 ? [{ containerID: "c1", ifname: "eth0" }] : pick(HOSTILE);
  }
  return conf;
}

/** A value of about the right form for a key, by its name. */
function likely(name: string, { random, pick, folder }: Chance & { folder: string }): unknown {
  if (/runtimeConfig/.test(name)) {
    return {
      portMappings: [{
        hostPort: pick([8080, 0, 70000, "x"]),
        containerPort: pick([80, -1]),
        protocol: pick(["tcp", "udp", "icmp", "tcp,udp", ""]),
        hostIP: pick(["", "0.0.0.0", "::", "127.0.0.1", "x; drop", null]),
      }],
      ips: [pick(["10.1.0.5", "10.1.0.5/24", "fd00::5", "nonsense", null, 5])],
      mac: pick(HOSTILE),
      ipRanges: pick([[[{ subnet: "10.1.0.0/24" }]], [{ subnet: "10.1.0.0/24" }], null, {}]),
      bandwidth: {
        ingressRate: pick([0, 8000, -1, 2 ** 63, "x"]),
        ingressBurst: pick([0, 8000]),
        egressRate: pick([0, 1]),
        egressBurst: pick([0, 1, null]),
      },
    };
  }
  if (/args/.test(name)) {
    return {
      cni: { mac: pick(HOSTILE), ips: [pick(HOSTILE)], sysctl: { "net.ipv4.conf.all.log_martians": pick(HOSTILE) } },
    };
  }
  if (/sysctl/i.test(name)) {
    return {
      [
        String(
          pick(["net.core.somaxconn", "kernel.hostname", "net/../../x", "net.ipv4.conf.IFNAME.arp_filter", "", "a\nb"]),
        )
      ]: pick(["1", "", "x\ny", 5]),
    };
  }
  if (/delegate/.test(name)) return { type: pick(["bridge", "none", "../x", ""]), x: pick(HOSTILE) };
  if (/dataDir|subnetFile/.test(name)) return folder;
  if (/conditions/.test(name)) return [pick(HOSTILE), pick(HOSTILE)];
  if (/vlanTrunk/.test(name)) return [{ id: pick([1, 4095, "x"]) }, { minID: pick([1, 9]), maxID: pick([5, null]) }];
  if (/ipam/.test(name)) return ipam({ random, pick, folder });
  return pick([true, false, 0, 1, 1500, "br0", "eth9", "bridge", "private", "l2", "100", 100, "iptables"]);
}

function ipam({ random, pick, folder }: Chance & { folder: string }): unknown {
  if (random() < 0.1) return pick(HOSTILE);
  const subnet = () =>
    random() < 0.7 ? pick(["10.1.0.0/24", "10.2.0.0/30", "fd00:1::/64", "192.0.2.0/29"]) : pick(HOSTILE);
  const range = () => ({
    subnet: subnet(),
    ...(random() < 0.3 && { rangeStart: pick(["10.1.0.9", ...HOSTILE]) }),
    ...(random() < 0.3 && { gateway: pick(["10.1.0.1", ...HOSTILE]) }),
  });
  return {
    type: random() < 0.8 ? pick(["host-local", "static", "none"]) : pick(HOSTILE),
    dataDir: folder,
    ...(random() < 0.7 &&
      { ranges: random() < 0.8 ? [[range()], ...(random() < 0.4 ? [[range(), range()]] : [])] : pick(HOSTILE) }),
    ...(random() < 0.3 && { subnet: subnet() }),
    ...(random() < 0.4 &&
      {
        addresses: [{
          address: pick(["10.1.0.7/24", "fd00::7/64", ...HOSTILE]),
          gateway: pick(["10.1.0.1", ...HOSTILE]),
        }],
      }),
    ...(random() < 0.4 &&
      {
        routes: [{
          dst: pick(["0.0.0.0/0", "10.9.0.0/16", ...HOSTILE]),
          gw: pick(["10.1.0.1", ...HOSTILE]),
          mtu: pick([0, 1400, "x"]),
        }],
      }),
    ...(random() < 0.2 && { resolvConf: pick(["/etc/hostname", "/nonexistent", ...HOSTILE]) }),
  };
}

function previous({ random, pick }: Chance): unknown {
  if (random() < 0.15) return pick(HOSTILE);
  return {
    ...(random() < 0.8 && { cniVersion: pick(["0.4.0", "1.0.0", "1.1.0", "", 5]) }),
    ...(random() < 0.8 && {
      interfaces: random() < 0.9
        ? [{ name: pick(["br0", ...HOSTILE]) }, { name: pick(["veth0", ...HOSTILE]), mac: "02:00:00:00:00:01" }, {
          name: pick(["eth0", ...HOSTILE]),
          sandbox: pick(["/run/netns/none", ...HOSTILE]),
        }]
        : pick(HOSTILE),
    }),
    ...(random() < 0.8 &&
      {
        ips: random() < 0.9
          ? [{
            address: pick(["10.1.0.7/24", "fd00::7/64", ...HOSTILE]),
            interface: pick([2, 0, -1, 99, null, "x"]),
            gateway: pick(["10.1.0.1", ...HOSTILE]),
          }]
          : pick(HOSTILE),
      }),
    ...(random() < 0.4 && { routes: [{ dst: pick(["0.0.0.0/0", ...HOSTILE]), table: pick([0, 100, null]) }] }),
    ...(random() < 0.4 && { dns: random() < 0.8 ? { nameservers: [pick(["10.0.0.53", 5, null])] } : pick(HOSTILE) }),
  };
}

/** The configuration as text, now and then cut off or with something behind it. */
function textOf(conf: Record<string, unknown>, { random, pick }: Chance): string {
  const text = JSON.stringify(conf);
  const way = random();
  if (way < 0.03) return text.slice(0, Math.floor(random() * text.length));
  if (way < 0.05) return text + pick(["x", "{}", "\0", "\ufeff"]);
  if (way < 0.06) return JSON.stringify(pick(HOSTILE)) ?? "";
  if (way < 0.07) return "[".repeat(Math.floor(random() * 20_000));
  return text;
}

const LINK = {
  ifindex: 2,
  ifname: "br0",
  flags: ["UP"],
  mtu: 1500,
  operstate: "UP",
  address: "02:00:00:00:00:09",
  linkinfo: { info_kind: "bridge" },
  addr_info: [{ family: "inet", local: "10.1.0.1", prefixlen: 24 }],
};

/**
 * A kernel that agrees, refuses, or talks nonsense. It also looks at what reaches it: no batch line may hold a command
 * that nobody planned, no argument a line break.
 */
function nonsenseKernel(
  { random, pick, violate }: Chance & { violate: (what: string) => void },
): (command: Command) => Promise<Output> {
  return ({ argv, input }) => {
    if (argv.slice(1).some((arg) => /[\n\0]/.test(arg) && !arg.includes("ip=$1"))) {
      violate(`a line break in an argument: ${JSON.stringify(argv)}`);
    }
    const text = input?.join("") ?? "";
    for (const line of text.split("\n")) {
      if (/^link del lo|^\s*drop\b|\$\(id\)|`id`/.test(line) && !/^add rule|comment/.test(line)) {
        violate(`injected: ${JSON.stringify(line)}`);
      }
    }
    const ok = (stdout: string) => Promise.resolve({ code: 0, signal: null, stdout, stderr: "" });
    const way = random();
    if (way < 0.55) {
      const questions = (text.match(/show/g) ?? []).length;
      return ok(
        argv.some((arg) => /^(nft)$/.test(arg)) && argv.includes("-j")
          ? '{"nftables":[]}'
          : `${JSON.stringify([LINK])}\n`.repeat(Math.max(questions, argv.includes("-j") ? 1 : 0)),
      );
    }
    if (way < 0.7) {
      return ok(pick(["", "[]", "[{}]\n", "not json", '[{"ifname":5}]\n', "[null]\n", '{"nftables":null}', "[", "\0"]));
    }
    const stderr = pick([
      "RTNETLINK answers: File exists\nCommand failed -:1\n",
      'Cannot find device "x"\n',
      "Error: something.\nCommand failed -:2\n",
      "",
      "nsenter: cannot open x: No such file or directory\n",
      "Command failed -:999\n",
    ]);
    return Promise.resolve({ code: pick([1, 2, 127, 255]), signal: pick([null, null, "SIGKILL"]), stdout: "", stderr });
  };
}
