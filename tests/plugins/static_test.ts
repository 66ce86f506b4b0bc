import { assertEquals, assertRejects } from "@std/assert";
import { plugin } from "../../plugins/static.ts";
import { CniError } from "../../lib/cni/error.ts";
import type { ContainerCall } from "../../lib/cni/plugin.ts";
import type { JsonObject, Result } from "../../lib/cni/types.ts";
import { fakeCall } from "../fakes/call.ts";

interface Case {
  readonly promise: string;
  readonly config: JsonObject;
  readonly args?: string;
  /** `address` or `address via gateway`, in order. */
  readonly ips?: readonly string[];
  readonly result?: Partial<Result>;
  /** The error's `msg`. */
  readonly msg?: string;
  readonly warnings?: number;
}

const two = { addresses: [{ address: "10.0.0.2/24", gateway: "10.0.0.1" }, { address: "fd00::2/64" }] };
const notCidr = (what: string) => `the 'address' field is expected to be in CIDR notation, got: '${what}'`;

const cases: readonly Case[] = [
  {
    promise: "hands out one address",
    config: { ipam: { addresses: [{ address: "10.0.0.2/24" }] } },
    ips: ["10.0.0.2/24"],
  },
  {
    promise: "hands out both families in order",
    config: { ipam: two },
    ips: ["10.0.0.2/24 via 10.0.0.1", "fd00::2/64"],
  },
  {
    promise: "hands out several addresses of one family since 0.3.0",
    config: { cniVersion: "0.3.0", ipam: { addresses: [{ address: "10.0.0.2/24" }, { address: "10.0.0.3/24" }] } },
    ips: ["10.0.0.2/24", "10.0.0.3/24"],
  },
  {
    promise: "refuses two addresses of one family before 0.3.0",
    config: { cniVersion: "0.2.0", ipam: { addresses: [{ address: "10.0.0.2/24" }, { address: "10.0.0.3/24" }] } },
    msg: "CNI version 0.2.0 does not support more than 1 address per family",
  },
  {
    promise: "names 0.1.0 when no version is configured",
    config: { cniVersion: "", ipam: { addresses: [{ address: "fd00::2/64" }, { address: "fd00::3/64" }] } },
    msg: "CNI version 0.1.0 does not support more than 1 address per family",
  },
  {
    promise: "hands out one of each family before 0.3.0",
    config: { cniVersion: "0.2.0", ipam: two },
    ips: ["10.0.0.2/24 via 10.0.0.1", "fd00::2/64"],
  },
  {
    promise: "refuses an address without prefix",
    config: { ipam: { addresses: [{ address: "10.0.0.2" }] } },
    msg: notCidr("10.0.0.2"),
  },
  { promise: "refuses an empty address", config: { ipam: { addresses: [{ address: "" }] } }, msg: notCidr("") },
  { promise: "refuses a missing address", config: { ipam: { addresses: [{}] } }, msg: notCidr("") },
  {
    promise: "keeps host bits, /0, /32 and /128",
    config: {
      ipam: {
        addresses: [{ address: "10.1.2.3/8" }, { address: "0.0.0.0/0" }, { address: "10.0.0.1/32" }, {
          address: "FD00::0:1/128",
        }],
      },
    },
    ips: ["10.1.2.3/8", "0.0.0.0/0", "10.0.0.1/32", "fd00::1/128"],
  },
  {
    promise: "prints an IPv4-mapped address as IPv4",
    config: { ipam: { addresses: [{ address: "::ffff:10.0.0.2/120" }] } },
    ips: ["10.0.0.2/24"],
  },
  {
    promise: "takes an empty gateway for none",
    config: { ipam: { addresses: [{ address: "10.0.0.2/24", gateway: "" }] } },
    ips: ["10.0.0.2/24"],
  },
  {
    promise: "takes a null gateway for none",
    config: { ipam: { addresses: [{ address: "10.0.0.2/24", gateway: null }] } },
    ips: ["10.0.0.2/24"],
  },
  {
    promise: "keeps a gateway outside the subnet",
    config: { ipam: { addresses: [{ address: "10.0.0.2/24", gateway: "10.9.9.9" }] } },
    ips: ["10.0.0.2/24 via 10.9.9.9"],
  },
  {
    promise: "keeps a gateway of the other family, and says so",
    config: { ipam: { addresses: [{ address: "10.0.0.2/24", gateway: "fd00::1" }] } },
    ips: ["10.0.0.2/24 via fd00::1"],
    warnings: 1,
  },
  {
    promise: "refuses a bad gateway",
    config: { ipam: { addresses: [{ address: "10.0.0.2/24", gateway: "x" }] } },
    msg: "invalid IP address: x",
  },
  {
    promise: "refuses a bad gateway of an address that loses",
    config: { ipam: { addresses: [{ address: "nonsense", gateway: "x" }] }, runtimeConfig: { ips: ["10.0.0.2/24"] } },
    msg: "invalid IP address: x",
  },
  {
    promise: "appends the addresses of CNI_ARGS",
    config: { ipam: two },
    args: "IP= 10.0.1.2/24 ,10.0.1.3/24",
    ips: ["10.0.0.2/24 via 10.0.0.1", "fd00::2/64", "10.0.1.2/24", "10.0.1.3/24"],
  },
  {
    promise: "refuses a trailing comma in CNI_ARGS IP",
    config: { ipam: {} },
    args: "IP=10.0.0.2/24,",
    msg: "the 'ip' field is expected to be in CIDR notation, got: ''",
  },
  {
    promise: "refuses an address without prefix in CNI_ARGS",
    config: { ipam: {} },
    args: "IP= 10.0.0.2",
    msg: "the 'ip' field is expected to be in CIDR notation, got: '10.0.0.2'",
  },
  {
    promise: "gives GATEWAY to the addresses of CNI_ARGS in its subnet",
    config: { ipam: {} },
    args: "IP=10.0.0.2/24,10.0.1.2/24,fd00::2/64;GATEWAY= 10.0.0.1,fd00::1",
    ips: ["10.0.0.2/24 via 10.0.0.1", "10.0.1.2/24", "fd00::2/64 via fd00::1"],
  },
  {
    promise: "lets the last of two gateways in one subnet count",
    config: { ipam: {} },
    args: "IP=10.0.0.2/24;GATEWAY=10.0.0.1,10.0.0.9",
    ips: ["10.0.0.2/24 via 10.0.0.9"],
  },
  {
    promise: "leaves configured addresses alone with GATEWAY, and says so",
    config: { ipam: { addresses: [{ address: "10.0.0.2/24" }] } },
    args: "GATEWAY=10.0.0.1",
    ips: ["10.0.0.2/24"],
    warnings: 1,
  },
  {
    promise: "refuses a bad GATEWAY, blanks and all",
    config: { ipam: {} },
    args: "IP=10.0.0.2/24;GATEWAY=10.0.0.1, zz",
    msg: "invalid gateway address:  zz",
  },
  {
    promise: "lets args.cni.ips replace configured addresses and CNI_ARGS",
    config: { ipam: { addresses: [{ address: "nonsense" }] }, args: { cni: { ips: ["10.2.2.42/24"] } } },
    args: "IP=10.0.0.2/24",
    ips: ["10.2.2.42/24"],
  },
  {
    promise: "ignores an empty args.cni.ips",
    config: { ipam: two, args: { cni: { ips: [] } } },
    ips: ["10.0.0.2/24 via 10.0.0.1", "fd00::2/64"],
  },
  {
    promise: "lets runtimeConfig.ips win",
    config: { ipam: two, args: { cni: { ips: ["10.2.2.42/24"] } }, RuntimeConfig: { IPs: ["10.3.3.3/24"] } },
    ips: ["10.3.3.3/24"],
  },
  {
    promise: "refuses a bad entry of runtimeConfig.ips",
    config: { ipam: two, runtimeConfig: { ips: ["10.3.3.3"] } },
    msg: "an entry in the 'ips' field is NOT in CIDR notation, got: '10.3.3.3'",
  },
  {
    promise: "refuses a bad entry of args.cni.ips that loses",
    config: { ipam: two, args: { cni: { ips: ["x"] } }, runtimeConfig: { ips: ["10.3.3.3/24"] } },
    msg: "an entry in the 'ips' field is NOT in CIDR notation, got: 'x'",
  },
  {
    promise: "refuses a bad CNI_ARGS IP that loses",
    config: { ipam: two, runtimeConfig: { ips: ["10.3.3.3/24"] } },
    args: "IP=x",
    msg: "the 'ip' field is expected to be in CIDR notation, got: 'x'",
  },
  {
    promise: "refuses unknown CNI_ARGS",
    config: { ipam: two },
    args: "K8S_POD_NAME=a",
    msg: 'ARGS: unknown args ["K8S_POD_NAME=a"]',
  },
  {
    promise: "passes unknown CNI_ARGS over when told to",
    config: { ipam: {} },
    args: "K8S_POD_NAME=a;IgnoreUnknown=1;IP=10.0.0.2/24",
    ips: ["10.0.0.2/24"],
  },
  {
    promise: "demands an ipam section",
    config: { runtimeConfig: { ips: ["10.0.0.2/24"] } },
    msg: "IPAM config missing 'ipam' key",
  },
  {
    promise: "demands more than null for an ipam section",
    config: { ipam: null },
    msg: "IPAM config missing 'ipam' key",
  },
  { promise: "succeeds without any address", config: { ipam: {} }, ips: [] },
  {
    promise: "copies routes with every field, host bits and order",
    config: {
      ipam: {
        routes: [
          { dst: "10.9.9.9/16", gw: "10.0.0.1", mtu: 1400, advmss: 1300, priority: 5, table: 0, scope: 0 },
          { dst: "fd01::5/64" },
          { dst: "10.9.9.9/16", gw: "10.0.0.7" },
        ],
      },
    },
    result: {
      routes: [
        { dst: "10.9.9.9/16", gw: "10.0.0.1", mtu: 1400, advmss: 1300, priority: 5, table: 0, scope: 0 },
        { dst: "fd01::5/64" },
        { dst: "10.9.9.9/16", gw: "10.0.0.7" },
      ],
    },
  },
  { promise: "refuses a bad route", config: { ipam: { routes: [{ dst: "bad" }] } }, msg: "invalid CIDR address: bad" },
  {
    promise: "refuses a bad next hop",
    config: { ipam: { routes: [{ dst: "10.0.0.0/8", gw: "x" }] } },
    msg: "invalid IP address: x",
  },
  {
    promise: "copies DNS settings",
    config: { ipam: { dns: { nameservers: ["10.0.0.53"], domain: "a.b", search: ["a.b"], options: ["ndots:5"] } } },
    result: { dns: { nameservers: ["10.0.0.53"], domain: "a.b", search: ["a.b"], options: ["ndots:5"] } },
  },
  {
    promise: "says that an address is there twice",
    config: { ipam: { addresses: [{ address: "10.0.0.2/24" }, { address: "10.0.0.2/25" }] } },
    ips: ["10.0.0.2/24", "10.0.0.2/25"],
    warnings: 1,
  },
];

for (const { promise, config, args = "", ips, result, msg, warnings = 0 } of cases) {
  Deno.test(`static ADD ${promise}`, async () => {
    const call = fakeCall(config, { args });
    if (msg !== undefined) {
      const error = await assertRejects(() => plugin.add(call));
      assertEquals(error instanceof CniError ? error.msg : (error as Error).message, msg);
      return;
    }
    const given = await plugin.add(call);
    if (ips) assertEquals(given.ips?.map((ip) => ip.address + (ip.gateway ? ` via ${ip.gateway}` : "")), [...ips]);
    for (const [key, value] of Object.entries(result ?? {})) assertEquals(given[key as keyof Result], value);
    assertEquals(call.warnings.length, warnings, call.warnings.join("\n"));
  });
}

const checks: readonly { promise: string; ipam: JsonObject; ips: JsonObject[]; fails?: boolean }[] = [
  {
    promise: "accepts what ADD answered",
    ipam: two,
    ips: [{ address: "fd00::2/64" }, { address: "10.0.0.2/24", gateway: "10.0.0.1" }],
  },
  {
    promise: "accepts any gateway where none is configured",
    ipam: two,
    ips: [{ address: "fd00::2/64", gateway: "fd00::1" }, { address: "10.0.0.2/24", gateway: "10.0.0.1" }],
  },
  {
    promise: "notices another gateway",
    ipam: two,
    ips: [{ address: "fd00::2/64" }, { address: "10.0.0.2/24", gateway: "10.0.0.7" }],
    fails: true,
  },
  {
    promise: "notices another prefix",
    ipam: two,
    ips: [{ address: "fd00::2/64" }, { address: "10.0.0.2/25", gateway: "10.0.0.1" }],
    fails: true,
  },
  { promise: "notices a missing address", ipam: two, ips: [{ address: "fd00::2/64" }], fails: true },
];

for (const { promise, ipam, ips, fails = false } of checks) {
  Deno.test(`static CHECK ${promise}`, async () => {
    const call = fakeCall({ ipam, prevResult: { ips } }, { verb: "CHECK" });
    if (!fails) return await plugin.check(call);
    const error = await assertRejects(() => plugin.check(call), CniError);
    assertEquals(error.msg, "static: Failed to match addr 10.0.0.2 on interface eth0");
  });
}

Deno.test("static CHECK demands a prevResult", async () => {
  const error = await assertRejects(() => plugin.check(fakeCall({ ipam: two }, { verb: "CHECK" })), CniError);
  assertEquals(error.msg, "Required prevResult missing");
});

Deno.test("static DEL reads neither configuration nor CNI_ARGS", async () => {
  const call: ContainerCall = fakeCall({ ipam: 5 }, { verb: "DEL", args: "nonsense", podAlive: false, netns: "" });
  assertEquals(await plugin.del(call), undefined);
});

Deno.test("static hands out a thousand addresses in order", async () => {
  const addresses = Array.from({ length: 1000 }, (_, i) => ({ address: `10.0.${i >> 8}.${i & 255}/16` }));
  assertEquals((await plugin.add(fakeCall({ ipam: { addresses } }))).ips, addresses);
});
