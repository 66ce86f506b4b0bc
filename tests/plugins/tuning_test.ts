import { settingsIn } from "../fakes/run.ts";
import { assertEquals, assertRejects } from "@std/assert";
import { plugin } from "../../plugins/tuning/mod.ts";
import { CniError } from "../../lib/cni/error.ts";
import type { ContainerCall } from "../../lib/cni/plugin.ts";
import type { JsonObject } from "../../lib/cni/types.ts";
import { linkShow } from "../../lib/kernel/ip.ts";
import { type Command, CommandError, type Output, type Run } from "../../lib/kernel/run.ts";
import { fakeCall, fakeNetworkCall } from "../fakes/call.ts";

const MAC = "0a:00:00:00:00:01";
const LINK = {
  ifindex: 2,
  ifname: "eth0",
  flags: ["UP"],
  mtu: 1500,
  min_mtu: 68,
  max_mtu: 65535,
  address: MAC,
  txqlen: 1000,
  promiscuity: 0,
  operstate: "UP",
};
const prevResult = {
  interfaces: [{ name: "br0" }, { name: "eth0", mac: MAC, mtu: 1500, sandbox: "/proc/self/ns/net" }],
};

/** A pod that has these settings and this link, and takes every change but the refused ones. */
function pod(values: Record<string, string>, link: JsonObject | undefined, refused?: RegExp) {
  const changes: string[] = [];
  const run: Run = (command: Command) => {
    const input = (command.input ?? []).join("");
    const output = { code: 0, signal: null, stdout: "", stderr: "" };
    const answer = (more: Partial<Output>) => Promise.resolve({ ...output, ...more });
    if (command.argv[0] === "sh" && command.argv[2]!.includes("grep ")) {
      const settings = command.argv.slice(5);
      const held = settings.map((file) => values[file.slice("/proc/sys/".length)]);
      output.stdout = held.map((value) => `${value === undefined ? "n" : value.replace(/^(=.*|u)$/s, "f")}\n`).join("");
      settings.forEach((file, index) => {
        if (held[index]?.startsWith("=")) output.stdout += `${file}:${held[index].slice(1)}\n`;
      });
      if (command.argv[4] !== "") {
        if (!link) return answer({ ...output, code: 1, stderr: 'Device "eth0" does not exist.\n' });
        output.stdout += `${JSON.stringify([link])}\n`;
      }
    } else if (command.argv[0] === "sh") {
      for (const setting of settingsIn(command.argv)) {
        changes.push(setting.slice(1));
        if (refused?.test(setting)) {
          return answer({ code: 97, stderr: `sysctl ${setting.slice(1)}:\ntee: /proc/sys/net/x: Invalid argument\n` });
        }
      }
    }
    if (command.argv.join(" ") === `ip -j -d ${linkShow("eth0")}`) {
      if (!link) return answer({ code: 1, stderr: 'Device "eth0" does not exist.\n' });
      output.stdout += `${JSON.stringify([link])}\n`;
    }
    for (const [index, line] of input.split("\n").filter(Boolean).entries()) {
      if (!link) return answer({ code: 1, stderr: `Device "eth0" does not exist.\nCommand failed -:${index + 1}\n` });
      if (line === linkShow("eth0")) output.stdout += `${JSON.stringify([link])}\n`;
      else changes.push(line);
      if (refused?.test(line)) {
        return answer({
          code: 1,
          stderr: `RTNETLINK answers: Device or resource busy\nCommand failed -:${index + 1}\n`,
        });
      }
    }
    return answer({});
  };
  return { run, changes };
}

interface Case {
  readonly promise: string;
  readonly config: JsonObject;
  readonly args?: string;
  readonly values?: Record<string, string>;
  readonly link?: JsonObject | undefined;
  readonly refused?: RegExp;
  readonly changes?: readonly string[];
  readonly undone?: readonly string[];
  readonly msg?: string;
  readonly backup?: JsonObject;
  readonly mac?: string;
  readonly mtu?: number;
  readonly warnings?: number;
}

const set = (what: string) => `link set dev eth0 ${what}`;
const cases: readonly Case[] = [
  {
    promise: "changes nothing when nothing is asked for",
    config: { sysctl: null, mtu: 0, promisc: false },
    changes: [],
  },
  { promise: "leaves promisc alone when it is false", config: { promisc: false, sysctl: {} }, changes: [] },
  {
    promise: "sets everything, settings first, and keeps what was there",
    config: {
      mac: "02-AB-00-00-00-01",
      mtu: 1400,
      promisc: true,
      allmulti: false,
      txQLen: 0,
      sysctl: { "net.b": "2", "net.IFNAME": "x" },
    },
    values: { "net/b": "=1", "net/eth0": "=y z" },
    changes: [
      "net/eth0=x",
      "net/b=2",
      set("address 02:ab:00:00:00:01"),
      set("promisc on"),
      set("mtu 1400"),
      set("allmulticast off"),
      set("txqueuelen 0"),
    ],
    backup: {
      mac: MAC,
      promisc: false,
      mtu: 1500,
      allmulti: false,
      txQLen: 1000,
      sysctl: { "net/eth0": "y z", "net/b": "1" },
      network: "net1",
    },
    mac: "02:ab:00:00:00:01",
    mtu: 1400,
  },
  {
    promise: "lets args.cni win over runtimeConfig, CNI_ARGS and configuration",
    config: {
      mac: "02:00:00:00:00:01",
      runtimeConfig: { mac: "02:00:00:00:00:03" },
      args: { cni: { mac: "02:00:00:00:00:04" } },
    },
    args: "MAC=02:00:00:00:00:02",
    changes: [set("address 02:00:00:00:00:04")],
  },
  {
    promise: "lets runtimeConfig win over CNI_ARGS",
    config: { mac: "02:00:00:00:00:01", runtimeConfig: { mac: "02:00:00:00:00:03" } },
    args: "MAC=02:00:00:00:00:02",
    changes: [set("address 02:00:00:00:00:03")],
  },
  {
    promise: "lets CNI_ARGS win over the configuration",
    config: { mac: "02:00:00:00:00:01", runtimeConfig: { mac: "" } },
    args: "MAC=02:00:00:00:00:02",
    changes: [set("address 02:00:00:00:00:02")],
  },
  {
    promise: "keeps the configured address when others are empty",
    config: { mac: "02:00:00:00:00:01", runtimeConfig: { mac: "" } },
    args: "MAC=",
    changes: [set("address 02:00:00:00:00:01")],
  },
  {
    promise: "turns the address off with an empty args.cni.mac",
    config: { mac: "02:00:00:00:00:01", args: { cni: { mac: "" } } },
    changes: [],
  },
  {
    promise: "merges settings key by key",
    config: { sysctl: { "net.a": "1", "net.b": "1" }, args: { cni: { sysctl: { "net.b": "2" } } } },
    values: { "net/a": "=0", "net/b": "=0" },
    changes: ["net/a=1", "net/b=2"],
  },
  {
    promise: "takes settings of args.cni without any other",
    config: { args: { cni: { sysctl: { "net.b": "2" } } } },
    values: { "net/b": "=0" },
    changes: ["net/b=2"],
  },
  {
    promise: "reads keys in any case",
    config: { SYSCTL: { "net.a": "1" }, TxQlen: 5 },
    values: { "net/a": "=0" },
    changes: ["net/a=1", set("txqueuelen 5")],
  },
  {
    promise: "writes nothing for an empty value",
    config: { sysctl: { "net.a": "" } },
    values: { "net/a": "=0" },
    changes: [],
  },
  {
    promise: "sets what can only be written, and keeps nothing of it",
    config: { sysctl: { "net.flush": "1" } },
    values: { "net/flush": "u" },
    changes: ["net/flush=1"],
  },
  { promise: "refuses the same key twice", config: {}, msg: "duplicated sysctl keys are not allowed" },
  {
    promise: "refuses a number for a setting",
    config: { sysctl: { "net.a": 1 } },
    msg:
      "failed to load netconf: json: cannot unmarshal number into Go struct field NetConf.sysctl.net.a of type string",
  },
  {
    promise: "refuses a setting outside net before it looks",
    config: { sysctl: { "net.a": "1", "kernel.shmmax": "1" } },
    msg: 'invalid net sysctl key: "kernel/shmmax"',
    changes: [],
  },
  {
    promise: "refuses a setting that is not there before it changes others",
    config: { sysctl: { "net.a": "1", "net.nope": "1" } },
    values: { "net/a": "=0" },
    msg: "open /proc/sys/net/nope: no such file or directory",
    changes: [],
  },
  {
    promise: "refuses a folder",
    config: { sysctl: { "net.a": "1" } },
    values: { "net/a": "d" },
    msg: "open /proc/sys/net/a: is a directory",
    changes: [],
  },
  {
    promise: "refuses a bad address before it sets settings",
    config: { mac: "zz", sysctl: { "net.a": "1" } },
    values: { "net/a": "=0" },
    msg: "invalid args zz for MAC addr: address zz: invalid MAC address",
    changes: [],
  },
  {
    promise: "refuses an address of 8 bytes",
    config: { mac: "02:00:00:00:00:00:00:01" },
    msg: "invalid args 02:00:00:00:00:00:00:01 for MAC addr: address 02:00:00:00:00:00:00:01: invalid MAC address",
    changes: [],
  },
  {
    promise: "refuses a multicast address",
    config: { mac: "01:00:5e:00:00:01" },
    msg: "cannot assign requested address",
    changes: [],
  },
  { promise: "refuses a negative MTU", config: { mtu: -1 }, msg: "invalid argument", changes: [] },
  { promise: "refuses an MTU above the link's", config: { mtu: 70000 }, msg: "invalid argument", changes: [] },
  {
    promise: "takes any MTU of a link without a limit",
    config: { mtu: 70000 },
    link: { ...LINK, max_mtu: 0 },
    changes: [set("mtu 70000")],
  },
  { promise: "warns about an MTU below IPv6's", config: { mtu: 1000 }, changes: [set("mtu 1000")], warnings: 1 },
  {
    promise: "says that the link is not there",
    config: { mtu: 1400 },
    link: undefined,
    msg: 'failed to get "eth0": Link not found',
    changes: [],
  },
  {
    promise: "needs no link for settings alone",
    config: { sysctl: { "net.a": "1" } },
    values: { "net/a": "=0" },
    link: undefined,
    changes: ["net/a=1"],
  },
  { promise: "demands a prevResult", config: { prevResult: null }, msg: "Required prevResult missing" },
  {
    promise: "refuses unknown CNI_ARGS",
    config: {},
    args: "mac=02:00:00:00:00:01",
    msg: 'ARGS: unknown args ["mac=02:00:00:00:00:01"]',
  },
  {
    promise: "takes settings and attributes back when a later one is refused",
    config: { sysctl: { "net.a": "1" }, mac: "02:00:00:00:00:01", mtu: 1400 },
    values: { "net/a": "=0" },
    refused: /mtu 1400/,
    msg: "device or resource busy",
    changes: ["net/a=1", set("address 02:00:00:00:00:01"), set("mtu 1400")],
    undone: [set(`address ${MAC}`), "net/a=0"],
  },
  {
    promise: "takes back what was set before the refused setting",
    config: { sysctl: { "net.a": "1", "net.b": "zz", "net.c": "1" } },
    values: { "net/a": "=0", "net/b": "=0", "net/c": "=0" },
    refused: /net\/b=zz/,
    msg: "write /proc/sys/net/x: invalid argument",
    changes: ["net/a=1", "net/b=zz"],
    undone: ["net/a=0"],
  },
];

for (const one of cases) {
  Deno.test(`tuning ADD ${one.promise}`, async () => {
    const folder = await Deno.makeTempDir();
    const fake = pod(one.values ?? {}, "link" in one ? one.link : LINK, one.refused);
    const call = fakeCall({ dataDir: folder, prevResult, ...one.config }, {
      netns: "/proc/self/ns/net",
      args: one.args ?? "",
      pod: fake.run,
      ...(one.promise.includes("twice") && { repeated: [["sysctl", "a"]] }),
    });
    try {
      if (one.msg === undefined) {
        const result = await plugin.add(call);
        const face = result.interfaces?.[1];
        if (one.mac) assertEquals([face?.mac, result.interfaces?.[0]?.mac], [one.mac, undefined]);
        if (one.mtu) assertEquals(face?.mtu, one.mtu);
      } else {
        const error = await assertRejects(() => plugin.add(call));
        assertEquals(error instanceof CniError ? error.msg : (error as Error).message, one.msg);
      }
      if (one.changes) assertEquals(fake.changes, [...one.changes]);
      if (one.backup) {
        const { place, ...kept } = JSON.parse(await Deno.readTextFile(`${folder}/ctr1_eth0.json`));
        assertEquals(kept, one.backup);
        assertEquals([place.netns, place.ifName, place.index], ["/proc/self/ns/net", "eth0", 2]);
      }
      assertEquals(call.warnings.length, one.warnings ?? 0);
      fake.changes.length = 0;
      for (const back of call.undos.reverse()) await back();
      if (one.undone) assertEquals(fake.changes, [...one.undone]);
      assertEquals([...Deno.readDirSync(folder)], []);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  });
}

interface Del {
  readonly promise: string;
  readonly file?: string;
  readonly link?: JsonObject | undefined;
  readonly call?: Partial<ContainerCall>;
  readonly refused?: RegExp;
  readonly changes: readonly string[];
  readonly kept?: boolean;
}

const everything =
  '{"mac":"3E:6F:18:4B:EA:51","promisc":true,"mtu":1500,"allmulti":true,"txQLen":7,"speed":1,"sysctl":{"net/a":"1\\t2"}}';
const dels: readonly Del[] = [
  { promise: "does nothing without a backup", changes: [] },
  {
    promise: "puts everything back, MTU first, settings last",
    file: everything,
    changes: [
      set("mtu 1500"),
      set("address 3e:6f:18:4b:ea:51"),
      set("promisc on"),
      set("allmulticast on"),
      set("txqueuelen 7"),
      "net/a=1\t2",
    ],
  },
  {
    promise: "puts back only what the file has",
    file: '{"mac":"","mtu":0,"allmulti":false}',
    changes: [set("allmulticast off")],
  },
  { promise: "removes the file of a broken backup", file: '{"mac"', changes: [] },
  { promise: "removes the file when the link is gone", file: '{"mtu":1500}', link: undefined, changes: [] },
  {
    promise: "removes the file when the namespace is gone",
    file: everything,
    call: { podAlive: false, netns: "" },
    changes: [],
  },
  {
    promise: "keeps the file when the namespace is the host's own",
    file: everything,
    call: { podAlive: false, ownNetns: true },
    changes: [],
    kept: true,
  },
  {
    promise: "keeps the file when the kernel refuses, and goes on",
    file: '{"mtu":1500,"sysctl":{"net/a":"1"}}',
    refused: /mtu/,
    changes: [set("mtu 1500"), "net/a=1"],
    kept: true,
  },
  {
    promise: "reads a configuration that is wrong in every other key",
    file: '{"txQLen":1}',
    call: { config: { mtu: "x", sysctl: 5, prevResult: 7 }, args: "nonsense" },
    changes: [set("txqueuelen 1")],
  },
];

for (const one of dels) {
  Deno.test(`tuning DEL ${one.promise}`, async () => {
    const folder = await Deno.makeTempDir();
    const path = `${folder}/ctr1_eth0.json`;
    const fake = pod({}, "link" in one ? one.link : LINK, one.refused);
    try {
      if (one.file !== undefined) await Deno.writeTextFile(path, one.file);
      const { config, ...changes } = one.call ?? {};
      const call = fakeCall({ dataDir: `${folder}/`, ...config }, { verb: "DEL", pod: fake.run, ...changes });
      for (const round of [1, 2]) {
        await plugin.del(call);
        if (round === 1) assertEquals(fake.changes, [...one.changes]);
      }
      assertEquals([...Deno.readDirSync(folder)].length, one.kept ? 1 : 0);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  });
}

Deno.test("tuning DEL fails and keeps the file when the tool does not get so far as to be refused", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await Deno.writeTextFile(`${folder}/ctr1_eth0.json`, '{"mtu":1500}');
    const broken: Run = () => Promise.resolve({ code: 1, signal: null, stdout: "", stderr: "something went wrong\n" });
    await assertRejects(
      async () => await plugin.del(fakeCall({ dataDir: folder }, { verb: "DEL", pod: broken })),
      CommandError,
      "something went wrong",
    );
    assertEquals([...Deno.readDirSync(folder)].length, 1);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

const other = {
  ...LINK,
  mtu: 1400,
  address: "02:ab:00:00:00:01",
  flags: ["UP", "ALLMULTI"],
  promiscuity: 1,
  txqlen: 500,
};
const checks: readonly {
  promise: string;
  config: JsonObject;
  values?: Record<string, string>;
  link?: JsonObject | undefined;
  msg?: string;
}[] = [
  {
    promise: "accepts what is as configured, however it is spelled",
    config: {
      mac: "02-AB-00-00-00-01",
      mtu: 1400,
      promisc: true,
      allmulti: true,
      txQLen: 500,
      sysctl: { "net.a": "0x10 0" },
    },
    values: { "net/a": "=16\t0" },
    link: other,
  },
  { promise: "does not mind a capture when promisc is not configured", config: {}, link: other },
  {
    promise: "notices promisc when it is configured off",
    config: { promisc: false },
    link: other,
    msg: "Error: Tuning link eth0 configured promisc is false, current value is 1",
  },
  {
    promise: "notices promisc that is off",
    config: { promisc: true },
    msg: "Error: Tuning link eth0 configured promisc is true, current value is 0",
  },
  {
    promise: "notices another address",
    config: { mac: "02:AB:00:00:00:02" },
    link: other,
    msg: "Error: Tuning configured Ethernet of eth0 is 02:AB:00:00:00:02, current value is 02:ab:00:00:00:01",
  },
  {
    promise: "notices another MTU",
    config: { mtu: 1401 },
    link: other,
    msg: "Error: Tuning configured MTU of eth0 is 1401, current value is 1400",
  },
  {
    promise: "notices all-multicast mode",
    config: { allmulti: false },
    link: other,
    msg: "Error: Tuning configured all-multicast mode of eth0 is false, current value is true",
  },
  {
    promise: "notices another queue length",
    config: { txQLen: 0 },
    link: other,
    msg: "Error: Tuning configured Transmit Queue Length of eth0 is 0, current value is 500",
  },
  {
    promise: "notices another value",
    config: { sysctl: { "net.ipv4.conf.all.log_martians": "7" } },
    values: { "net/ipv4/conf/all/log_martians": "=0" },
    msg: "Error: Tuning configured value of /proc/sys/net/ipv4/conf/all/log_martians is 7, current value is 0",
  },
  {
    promise: "notices a setting that is gone",
    config: { sysctl: { "net.a": "7" } },
    msg: "open /proc/sys/net/a: no such file or directory",
  },
  { promise: "does not read what can only be written", config: { sysctl: { "net.a": "7" } }, values: { "net/a": "u" } },
  { promise: "notices a link that is gone", config: {}, link: undefined, msg: "Cannot find container link eth0" },
  { promise: "demands a prevResult", config: { prevResult: null }, msg: "Required prevResult missing" },
];

for (const { promise, config, values = {}, msg, ...rest } of checks) {
  Deno.test(`tuning CHECK ${promise}`, async () => {
    const fake = pod(values, "link" in rest ? rest.link : LINK);
    const call = fakeCall({ prevResult, ...config }, { verb: "CHECK", netns: "/proc/self/ns/net", pod: fake.run });
    if (msg === undefined) return await plugin.check(call);
    assertEquals((await assertRejects(() => plugin.check(call), CniError)).msg, msg);
    assertEquals(fake.changes, []);
  });
}

Deno.test("tuning GC without a list of valid attachments removes nothing", async () => {
  const folder = await Deno.makeTempDir();
  await Deno.writeTextFile(`${folder}/gone_eth0.json`, '{"mtu":1500,"network":"net1"}');
  await plugin.gc(fakeNetworkCall({ dataDir: folder }));
  assertEquals([...Deno.readDirSync(folder)].length, 1);
  await plugin.gc(fakeNetworkCall({ dataDir: folder }, { valid: [] }));
  assertEquals([...Deno.readDirSync(folder)].length, 0);
  await Deno.remove(folder);
});
