/**
 * Every printable character in every name that a plugin is told: what the tools are told differs from what they are
 * told for a plain name in nothing but that name, as iproute2 reads it.
 */
import { assert, assertEquals } from "@std/assert";
import type { Plugin } from "../../lib/cni/plugin.ts";
import type { JsonObject, Result } from "../../lib/cni/types.ts";
import type { Command, Run } from "../../lib/kernel/run.ts";
import { fakeCall } from "../fakes/call.ts";
import { NETNS } from "../fakes/kernel.ts";
import { PRINTABLE, readByIproute2 } from "../fakes/iproute2.ts";
import { settingsIn } from "../fakes/run.ts";
import { plugin as bandwidth } from "../../plugins/bandwidth/mod.ts";
import { plugin as bridge } from "../../plugins/bridge/mod.ts";
import { plugin as dummy } from "../../plugins/dummy.ts";
import { plugin as hostDevice } from "../../plugins/host-device/mod.ts";
import { plugin as ipvlan } from "../../plugins/ipvlan.ts";
import { plugin as macvlan } from "../../plugins/macvlan.ts";
import { plugin as ptp } from "../../plugins/ptp/mod.ts";
import { plugin as sbr } from "../../plugins/sbr/mod.ts";
import { plugin as tap } from "../../plugins/tap.ts";
import { plugin as tuning } from "../../plugins/tuning/mod.ts";
import { plugin as vlan } from "../../plugins/vlan.ts";
import { plugin as vrf } from "../../plugins/vrf/mod.ts";

interface Case {
  readonly plugin: Plugin;
  /** Kind of the container's interface. */
  readonly kind?: string;
  /** What the configuration says; the name under test is in `field`, or is CNI_IFNAME. */
  readonly keys?: JsonObject;
  readonly field?: string;
  /** Kind of the link that the field names. */
  readonly fieldKind?: string;
  /** Kinds of links with other names. */
  readonly others?: Readonly<Record<string, string>>;
}

const MAC = "02:00:00:00:00:09";

const CASES: readonly Case[] = [
  { plugin: bridge, kind: "veth", others: { cni0: "bridge" } },
  { plugin: bridge, kind: "veth", field: "bridge", fieldKind: "bridge", keys: { isGateway: true, forceAddress: true } },
  { plugin: ptp, kind: "veth" },
  ...[macvlan, ipvlan, vlan].flatMap((plugin): Case[] => [
    { plugin, kind: plugin.name, keys: { master: "eth9", vlanId: 5 } },
    { plugin, kind: plugin.name, keys: { vlanId: 5 }, field: "master" },
  ]),
  { plugin: dummy, kind: "dummy" },
  { plugin: tap, kind: "tun" },
  { plugin: tap, kind: "tun", field: "bridge", fieldKind: "bridge" },
  { plugin: hostDevice, keys: { device: "dev0" } },
  { plugin: hostDevice, field: "device" },
  { plugin: vrf, kind: "veth", keys: { vrfname: "blue" }, others: { blue: "vrf" } },
  { plugin: vrf, kind: "veth", field: "vrfname", fieldKind: "vrf" },
  { plugin: tuning, kind: "veth", keys: { mtu: 1400, sysctl: { "net.ipv4.conf.IFNAME.arp_notify": "1" } } },
  { plugin: tuning, kind: "veth", keys: { mac: MAC, promisc: true, txQLen: 7 } },
  { plugin: sbr, kind: "veth" },
  { plugin: bandwidth, kind: "veth", keys: { ingressRate: 8000, ingressBurst: 80000 } },
];

/** One tool's line, or one setting: what was asked for, where, in words. */
type Told = readonly string[];

/** A kernel that has every link that it is asked for, and notes what it is told. */
function noting(
  { plugin, kind, field, fieldKind, keys = {}, others = {} }: Case,
  name: string,
  verb: string,
): { run: (place: string) => Run; told: Told[] } {
  const told: Told[] = [];
  const link = (ifname: string) => {
    const its = field !== undefined && ifname === name ? fieldKind : others[ifname] ?? kind;
    return {
      ifname,
      ifindex: 5,
      link_index: 5,
      flags: ["UP"],
      mtu: 1500,
      max_mtu: 9000,
      operstate: "UP",
      address: MAC,
      ...(its && { linkinfo: { info_kind: its, info_data: { mode: "bridge", table: 7, id: 5 } } }),
      addr_info: [{ family: "inet", local: "10.9.0.7", prefixlen: 24 }],
    };
  };
  const answer = (words: readonly string[]) => {
    const at = words.indexOf("dev");
    if (/^(addr|link) show dev/.test(words.join(" "))) return [link(words[at + 1] ?? "")];
    if (!/^(addr|link) show$/.test(words.join(" "))) return [];
    const own = link(field ? "eth0" : name);
    if (plugin.name !== "vrf" || verb === "add") return [own];
    const vrfname = field ? name : String(keys["vrfname"]);
    return [{ ...own, master: vrfname }, link(vrfname)];
  };
  const run = (place: string): Run => (command: Command) => {
    const { argv, input = [] } = command;
    for (const setting of settingsIn(argv)) told.push([place, "sysctl", setting]);
    const lines = input.join("").split("\n").filter((line) => line !== "");
    const front = argv[0] === "sh" ? ["ip", "-j", "-d"] : argv.filter((word) => word !== "-batch" && word !== "-");
    const read = lines.length > 0 ? lines.map(readByIproute2) : argv[0] === "sh" ? [] : [argv.slice(toolWords(argv))];
    for (const words of read) {
      told.push([place, ...(lines.length > 0 ? front : argv.slice(0, toolWords(argv))), ...words]);
    }
    // Settings that are read, and the interface with them.
    const files = argv[0] === "sh" && settingsIn(argv).length === 0 ? argv.slice(5) : [];
    if (files.length > 0) {
      told.push([place, ...argv.slice(4)]);
      const held = [...files.map(() => "f"), ...files.map((file) => `${file}:0`), JSON.stringify([link(name)])];
      return Promise.resolve({ code: 0, signal: null, stdout: `${held.join("\n")}\n`, stderr: "" });
    }
    const stdout = read.filter((words) => words.includes("show")).map((words) => `${JSON.stringify(answer(words))}\n`);
    return Promise.resolve({ code: 0, signal: null, stdout: stdout.join(""), stderr: "" });
  };
  return { run, told };
}

/** Number of words that are the tool and its options. */
function toolWords(argv: readonly string[]): number {
  return 1 + argv.slice(1).findIndex((word) => !word.startsWith("-"));
}

const VERBS = ["add", "check", "del"] as const;

/** What a call tells the tools, and how it ends, with the name under test written as NAME. */
async function outcome(one: Case, name: string, verb: typeof VERBS[number]): Promise<string[]> {
  const { plugin, keys = {}, field } = one;
  const { run, told } = noting(one, name, verb);
  const ifName = field === undefined ? name : "eth0";
  const bridge = field === "bridge" && plugin.name === "bridge" ? name : "cni0";
  const addresses = [{ address: "10.9.0.2/24", gateway: "10.9.0.1", interface: 2 }];
  const prevResult: Result = {
    cniVersion: "1.1.0",
    interfaces: [{ name: bridge, mac: MAC }, { name: "veth0", mac: MAC }, { name: ifName, mac: MAC, sandbox: NETNS }],
    ips: addresses,
  };
  const chained = ["meta"].includes(plugin.kind) || verb !== "add";
  const config = {
    type: plugin.name,
    ...(plugin.kind === "main" && { ipam: { type: "static" } }),
    ...keys,
    ...(field && { [field]: name }),
    ...(chained && { prevResult }),
  };
  const call = fakeCall(config as unknown as JsonObject, {
    host: run("host"),
    pod: run("pod"),
    netns: NETNS,
    ifName,
    verb: verb === "add" ? "ADD" : verb === "check" ? "CHECK" : "DEL",
    delegate: (_type, verb) => Promise.resolve(verb === "ADD" ? { result: { ips: addresses } } : {}),
  });
  let end = "done";
  try {
    await plugin[verb](call);
  } catch (error) {
    end = (error as Error).message;
  }
  const plain = (text: string) =>
    text.replaceAll(name, "NAME").replace(/veth[0-9a-f]{8}/g, "VETH").replace(/bwp[0-9a-f]{12}/g, "IFB")
      .replace(/([0-9a-f]{2}:){5}[0-9a-f]{2}/g, "MAC").replace(/[0-9a-f]{16}/g, "HASH");
  return [
    ...told.map((words) => plain(JSON.stringify(words.map((word) => word.replaceAll(name, "NAME"))))).sort(),
    end,
  ];
}

for (const one of CASES) {
  const { plugin, field = "CNI_IFNAME" } = one;
  Deno.test(`${plugin.name} tells tools ${field} as one word, whatever it is made of`, async () => {
    const dataDir = Deno.makeTempDirSync();
    try {
      await compare({ ...one, keys: { ...one.keys, ...(plugin.name === "tuning" && { dataDir }) } });
    } finally {
      Deno.removeSync(dataDir, { recursive: true });
    }
  });
}

async function compare(one: Case): Promise<void> {
  let calls = 0;
  for (const verb of VERBS) {
    const plain = await outcome(one, "qz=qz", verb);
    if (verb === "add") assert(plain.some((line) => line.includes("NAME")), `no tool is told: ${plain.join("\n")}`);
    for (const char of PRINTABLE.filter((char) => !/[/:%]/.test(char))) {
      for (const name of new Set([`${char}qz`, `q${char}z`, `qz${char}`, `'"${char}`])) {
        const got = await outcome(one, name, verb);
        // The reason in an error may quote a name in another way.
        assertEquals(got.slice(0, -1), plain.slice(0, -1), `${verb} ${name}: ${got.at(-1)}, else ${plain.at(-1)}`);
        calls++;
      }
    }
  }
  // Two of them are one for "q", and for "z".
  assertEquals(calls, 3 * (91 * 4 - 2));
}
