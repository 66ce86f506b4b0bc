/** host-device without a kernel: which device is meant, the way there, and what DEL makes of what it finds. */
import { assertEquals, assertRejects } from "@std/assert";
import { CniError } from "../../lib/cni/error.ts";
import type { JsonObject } from "../../lib/cni/types.ts";
import { plugin } from "../../plugins/host-device/mod.ts";
import { NETNS, noted } from "../fakes/kernel.ts";

const link = (ifname: string, more = {}) => ({
  ifindex: 7,
  ifname,
  address: "02:00:00:00:00:0a",
  flags: ["UP"],
  mtu: 1500,
  operstate: "UP",
  ...more,
});
const home = `/proc/${Deno.pid}/ns/net`;

Deno.test("host-device notes the name in the alias, then moves and renames in one step", async () => {
  const { call, log } = noted({ device: "ens9" }, {
    answers: { "addr show dev ens9": [link("ens9")], "addr show dev eth0": [link("eth0")] },
  });
  const result = await plugin.add(call);
  assertEquals(log, [
    "host ip: addr show dev ens9",
    `host ip: link set dev ens9 alias ens9; link set dev ens9 netns ${NETNS} name eth0`,
    "pod ip: link set dev eth0 up; addr show dev eth0",
  ]);
  assertEquals(result.interfaces, [{ name: "eth0", mac: "02:00:00:00:00:0a", sandbox: NETNS }]);
});

Deno.test("host-device: of links that share a MAC the one below is taken", async () => {
  const links = [link("vlan5", { link: "ens9", linkinfo: { info_kind: "vlan" } }), link("ens9")];
  const { call, log } = noted({ hwaddr: "0200.0000.000A" }, { answers: { "link show": links } });
  await plugin.add(call);
  assertEquals(log[1], `host ip: link set dev ens9 alias ens9; link set dev ens9 netns ${NETNS} name eth0`);
});

const REFUSED: readonly (readonly [config: JsonObject, msg: string])[] = [
  [{}, 'specify either "device", "hwaddr", "kernelpath" or "pciBusID"'],
  [{ hwaddr: "zz" }, 'failed to find host device: failed to parse MAC address "zz": address zz: invalid MAC address'],
  [
    { kernelpath: "/sys/class/net" },
    'failed to find host device: kernel device path "/sys/class/net" must be absolute and begin with /sys/devices/',
  ],
  [
    { kernelpath: "/sys/devices/a/../b" },
    'failed to find host device: kernel device path "/sys/devices/a/../b" must be absolute and begin with /sys/devices/',
  ],
  [
    { kernelpath: "/sys/devices/none/" },
    'failed to find host device: failed to read directory /sys/devices/none/net: "open /sys/devices/none/net: no such file or directory"',
  ],
  [
    { pciBusID: "9999:99:99.9" },
    "error with host device: lstat /sys/bus/pci/devices/9999:99:99.9/driver: no such file or directory",
  ],
  [{ pciBusID: "../x" }, "error with host device: lstat /sys/bus/pci/devices/../x/driver: no such file or directory"],
  [{ runtimeConfig: { deviceID: ".." } }, "runtime config DeviceID .. not found or unsupported"],
  [{ runtimeConfig: { deviceID: "none" } }, "runtime config DeviceID none not found or unsupported"],
];

for (const [config, msg] of REFUSED) {
  Deno.test(`host-device refuses ${JSON.stringify(config)}, moving nothing`, async () => {
    const { call, log } = noted(config);
    const error = await assertRejects(() => plugin.add(call), CniError);
    assertEquals([error.msg, log.filter((entry) => entry.includes("link set"))], [msg, []]);
  });
}

const moved = (from: string, to: string) => [
  `pod ip: link set dev ${from} down; link set dev ${from} name ${to}; link set dev ${to} netns ${home}`,
  `host ip: link set dev ${to} alias ""`,
];
const prevResult = { cniVersion: "1.1.0", interfaces: [{ name: "eth0", sandbox: NETNS }] };

const DELETIONS: readonly (readonly [what: string, config: JsonObject, links: unknown[], log: string[]])[] = [
  ["the device, by its alias", { device: "x" }, [link("eth0", { ifalias: "ens9z" })], moved("eth0", "ens9z")],
  [
    "a device that the container renamed",
    { device: "ens9z" },
    [link("lo"), link("mine", { ifalias: "ens9z" })],
    moved("mine", "ens9z"),
  ],
  ["a device whose alias the container took, when ADD is known to have moved it", { device: "ens9z", prevResult }, [
    link("eth0"),
  ], moved("eth0", "ens9z")],
  [
    "a device that the container renamed, by the MAC of prevResult",
    {
      pciBusID: "9999:99:99.9",
      prevResult: { ...prevResult, interfaces: [{ ...prevResult.interfaces[0], mac: "02:00:00:00:00:0b" }] },
    },
    [link("lo"), link("mine", { ifalias: "ens9z", permaddr: "02:00:00:00:00:0b" })],
    moved("mine", "ens9z"),
  ],
  ["a device that the container renamed, by hwaddr", { hwaddr: "02:00:00:00:00:0A" }, [
    link("mine", { ifalias: "ens9z" }),
  ], moved("mine", "ens9z")],
  ["not one whose alias is no name", { device: "" }, [link("eth0", { ifalias: "../x" })], []],
  ["not one without an alias", { device: "ens9z" }, [link("eth0")], []],
  ["not a veth that has the alias by chance", { device: "ens9z" }, [
    link("mine", { ifalias: "ens9z", linkinfo: { info_kind: "veth" } }),
  ], []],
  ["nothing where two could be meant", { device: "ens9z" }, [
    link("a", { ifalias: "ens9z" }),
    link("b", { ifalias: "ens9z" }),
  ], []],
  ["nothing where nothing is", { pciBusID: "9999:99:99.9", runtimeConfig: { deviceID: "none" } }, [], []],
];

for (const [what, config, links, log] of DELETIONS) {
  Deno.test(`host-device DEL returns ${what}`, async () => {
    const run = noted({ ipam: { type: "host-local" }, ...config }, {
      answers: { "link show": links },
      changes: { verb: "DEL" },
    });
    await plugin.del(run.call);
    assertEquals(run.log, ["pod ip: link show", ...log, "host-local DEL"]);
  });
}

const ADOPTIONS: readonly (readonly [what: string, config: JsonObject, links: unknown[], renamed: string])[] = [
  ["under the container's name", { device: "ens9" }, [link("eth0", { ifalias: "ens9" })], "eth0"],
  ["under its index", { device: "ens9" }, [link("dev7", { ifalias: "ens9" })], "dev7"],
  ["by its MAC", { hwaddr: "02:00:00:00:00:0A" }, [link("eth0", { ifalias: "ens9" })], "eth0"],
  [
    "by the MAC of prevResult, when it was named by another name",
    {
      device: "alternative-name",
      prevResult: { ...prevResult, interfaces: [{ ...prevResult.interfaces[0], mac: "02:00:00:00:00:0a" }] },
    },
    [link("eth0", { ifalias: "ens9" })],
    "eth0",
  ],
  ["not under another index", { device: "ens9" }, [link("dev8", { ifalias: "ens9" })], ""],
  ["not another device", { device: "ens8" }, [link("eth0", { ifalias: "ens9" })], ""],
  ["not while its name is taken", { device: "ens9" }, [link("eth0", { ifalias: "ens9" }), link("ens9")], ""],
  ["not one of two", { device: "ens9" }, [link("eth0", { ifalias: "ens9" }), link("dev7", { ifalias: "ens9" })], ""],
];

for (const [what, config, links, renamed] of ADOPTIONS) {
  Deno.test(`host-device DEL without the container renames what the kernel returned: ${what}`, async () => {
    const answers = { "ip -j -d link show": links };
    const run = noted(config, { answers, changes: { verb: "DEL", podAlive: false } });
    await plugin.del(run.call);
    assertEquals(
      run.log.slice(1),
      renamed === ""
        ? []
        : [`host ip: link set dev ${renamed} down; link set dev ${renamed} name ens9; link set dev ens9 alias ""`],
    );
  });
}

Deno.test("host-device DEL in the host's own namespace only releases the address", async () => {
  const { call, log } = noted({ device: "ens9", ipam: { type: "static" } }, {
    changes: { verb: "DEL", podAlive: false, ownNetns: true },
  });
  await plugin.del(call);
  assertEquals(log, ["static DEL"]);
});
