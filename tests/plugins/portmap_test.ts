import { assertEquals, assertRejects } from "@std/assert";
import { plugin } from "../../plugins/portmap/mod.ts";
import { containerAddresses } from "../../plugins/portmap/settings.ts";
import { CniError } from "../../lib/cni/error.ts";
import type { Run } from "../../lib/kernel/run.ts";
import { dnatComment, type Owner } from "../../lib/net/name.ts";
import { hostPortChain } from "../../lib/rules/host_ports_iptables.ts";
import type { JsonObject, Result } from "../../lib/cni/types.ts";
import { formatPrefix } from "../../lib/net/cidr.ts";
import { fakeCall, fakeNetworkCall } from "../fakes/call.ts";
import { recordedRun } from "../fakes/run.ts";

const PREVIOUS = {
  cniVersion: "1.1.0",
  interfaces: [{ name: "cni0" }, { name: "eth0", sandbox: "/run/netns/pod" }],
  ips: [{ address: "10.22.0.5/24", interface: 1 }],
};
const one = { hostPort: 8080, containerPort: 80, protocol: "tcp" };
const conf = (more: JsonObject, mappings: unknown = [one]): JsonObject => ({
  prevResult: PREVIOUS,
  runtimeConfig: { portMappings: mappings },
  ...more,
});

/** What ADD answers without touching anything; the first failure wins, in this order. */
const refused: [what: string, config: JsonObject, msg: string][] = [
  [
    "a port as text",
    conf({}, [{ ...one, hostPort: "80" }]),
    "failed to parse network configuration: json: cannot unmarshal string",
  ],
  [
    "a fraction",
    conf({}, [{ ...one, hostPort: 80.5 }]),
    "failed to parse network configuration: json: cannot unmarshal number 80.5",
  ],
  ["an object for the list", conf({}, {}), "failed to parse network configuration: json: cannot unmarshal object"],
  ["null in the list", conf({}, [null]), "failed to parse network configuration"],
  [
    "a result of another generation",
    conf({ prevResult: { ...PREVIOUS, cniVersion: "0.4.0" } }),
    'could not parse prevResult: result type supports [1.0.0 1.1.0] but unmarshalled CNIVersion is "0.4.0"',
  ],
  ["null among interfaces", conf({ prevResult: { ...PREVIOUS, interfaces: [null] } }), "could not parse prevResult"],
  [
    "chain and bit",
    conf({ externalSetMarkChain: "X", markMasqBit: 99, backend: "ipvs" }),
    "Cannot specify externalSetMarkChain and markMasqBit",
  ],
  ["bit 32", conf({ markMasqBit: 32, backend: "ipvs" }), "MasqMarkBit must be between 0 and 31"],
  ["bit -1", conf({ markMasqBit: -1 }), "MasqMarkBit must be between 0 and 31"],
  ["an unknown backend", conf({ backend: "ipvs" }), 'unrecognized backend "ipvs"'],
  ["an empty backend", conf({ backend: "" }), 'unrecognized backend ""'],
  [
    "an unknown backend with conditions",
    conf({ backend: "ipvs", conditionsV4: ["-s", "x"] }),
    "ipvs backend was requested but configuration contains iptables-specific options [conditionsV4]",
  ],
  [
    "iptables' words for nft",
    conf({ backend: "nftables", conditionsV4: ["!", "-s"], conditionsV6: ["-s"], externalSetMarkChain: "X" }),
    "nftables backend was requested but configuration contains iptables-specific options [externalSetMarkChain conditionsV4 conditionsV6]",
  ],
  [
    "nft's words for iptables",
    conf({ backend: "iptables", conditionsV6: ["ip6", "saddr"] }),
    "iptables backend was requested but configuration contains nftables-specific options [conditionsV6]",
  ],
  [
    "container port 0 before host port 0",
    conf({}, [{ ...one, hostPort: 0, containerPort: 0 }]),
    "Invalid container port number: 0",
  ],
  ["host port 0", conf({}, [{ ...one, hostPort: 0 }]), "Invalid host port number: 0"],
  ["host port -1", conf({}, [{ ...one, hostPort: -1 }]), "Invalid host port number: -1"],
  ["host port 65536", conf({}, [one, { ...one, hostPort: 65536 }]), "Invalid host port number: 65536"],
  ["container port 70000", conf({}, [{ ...one, containerPort: 70000 }]), "Invalid container port number: 70000"],
  ["no protocol", conf({}, [{ hostPort: 1, containerPort: 1 }]), 'Invalid protocol "" of host port 1'],
  ["two protocols", conf({}, [{ ...one, protocol: "tcp,udp" }]), 'Invalid protocol "tcp,udp"'],
  ["an option for a protocol", conf({}, [{ ...one, protocol: "-j" }]), 'Invalid protocol "-j"'],
  ["a host name", conf({}, [{ ...one, hostIP: "localhost" }]), 'Invalid host IP "localhost"'],
  ["a network", conf({}, [{ ...one, hostIP: "2001:db8::/64" }]), 'Invalid host IP "2001:db8::/64"'],
  ["a line break in a condition", conf({ conditionsV4: ["-s", "1\n-A"] }), "conditionsV4: no rule can hold"],
  [
    "a second command in a condition",
    conf({ backend: "nftables", conditionsV4: ["ip", "saddr 1; flush ruleset"] }),
    "conditionsV4: no rule can hold",
  ],
  ["an empty mark chain", conf({ externalSetMarkChain: "" }), "Invalid target name"],
  ["a mark chain that is an option", conf({ externalSetMarkChain: "-j" }), "Invalid target name"],
  [
    "a container ID that no comment can hold",
    conf({ backend: "nftables" }),
    "comment too long, 128 characters maximum allowed",
  ],
  ["an unknown portConflict", conf({ portConflict: "ignore" }), 'unknown portConflict "ignore"'],
];

for (const [what, config, msg] of refused) {
  Deno.test(`portmap ADD refuses ${what} before it does anything`, async () => {
    const host = recordedRun("");
    const id = what.startsWith("a container ID") ? "a".repeat(129) : "ctr1";
    const error = await assertRejects(() => plugin.add(fakeCall(config, { host, containerId: id })), CniError);
    assertEquals(error.msg.startsWith("failed to parse config: "), true, error.msg);
    assertEquals(error.msg.includes(msg), true, error.msg);
  });
}

Deno.test("portmap needs a result before it, also without mappings", async () => {
  for (const mappings of [[one], []]) {
    const config = conf({ prevResult: undefined }, mappings);
    await assertRejects(() => plugin.add(fakeCall(config)), CniError, "must be called as chained plugin");
    await assertRejects(() => plugin.check(fakeCall(config)), CniError, "Required prevResult missing");
  }
});

Deno.test("portmap without mappings, or without an address of its own, asks nobody", async () => {
  const nothing: JsonObject[] = [
    conf({}, []),
    conf({}, null),
    conf({ runtimeConfig: null }),
    { prevResult: PREVIOUS },
    conf({ prevResult: { ...PREVIOUS, ips: [] } }),
    conf({ prevResult: { ...PREVIOUS, ips: [{ address: "10.0.0.1/24", interface: 0 }] } }),
  ];
  for (const config of nothing) {
    const host = recordedRun("");
    const result = await plugin.add(fakeCall(config, { host }));
    assertEquals(result.interfaces?.length, 2);
    await plugin.check(fakeCall(config, { host }));
  }
  await plugin.del(fakeCall(conf({}, []), { host: recordedRun("") }));
});

Deno.test("portmap reads keys in any case, the last of several", async () => {
  const upper = [{ HostPort: 0, ContainerPort: 80, Protocol: "tcp", HostIP: "" }];
  await assertRejects(() => plugin.add(fakeCall(conf({}, upper))), CniError, "Invalid host port number: 0");
  const twice = [{ hostPort: 80, hostport: 0, containerPort: 80, protocol: "tcp" }];
  await assertRejects(() => plugin.add(fakeCall(conf({}, twice))), CniError, "Invalid host port number: 0");
});

const eth0 = { name: "eth0", sandbox: "/x" };
const addresses: [what: string, result: Result, chosen: string[]][] = [
  ["both families, lengths kept", { ips: [{ address: "2001:db8::5/64" }, { address: "10.0.0.5/24" }] }, [
    "10.0.0.5/24",
    "2001:db8::5/64",
  ]],
  ["the first of each family", { ips: [{ address: "10.0.0.5/24" }, { address: "10.0.0.6/24" }] }, ["10.0.0.5/24"]],
  ["not of another interface", {
    interfaces: [{ name: "net1", sandbox: "/x" }, eth0],
    ips: [{ address: "10.0.0.5/24", interface: 0 }, { address: "10.0.0.6/24", interface: 1 }],
  }, ["10.0.0.6/24"]],
  [
    "not of one without a sandbox",
    { interfaces: [{ name: "eth0" }], ips: [{ address: "10.0.0.5/24", interface: 0 }] },
    [],
  ],
  ["with an index past the end or before the beginning", {
    interfaces: [eth0],
    ips: [{ address: "10.0.0.5/24", interface: 7 }, { address: "2001:db8::5/64", interface: -1 }],
  }, ["10.0.0.5/24", "2001:db8::5/64"]],
  ["none at all", {}, []],
];

for (const [what, result, chosen] of addresses) {
  Deno.test(`portmap's addresses: ${what}`, () => {
    assertEquals(containerAddresses(result, "eth0").map(formatPrefix), chosen);
  });
}

Deno.test("portmap's result is the one before it, in every version", async () => {
  const old = { ip4: { ip: "10.0.0.5/24", gateway: "10.0.0.1" } };
  for (const version of ["0.1.0", "0.2.0"]) {
    const result = await plugin.add(fakeCall({ cniVersion: version, prevResult: { cniVersion: version, ...old } }));
    assertEquals(result.ips, [{ address: "10.0.0.5/24", gateway: "10.0.0.1" }]);
  }
});

const [MINE, OTHER] = ["mine", "other"].map((containerId) => ({ network: "mynet", containerId })) as [Owner, Owner];

/** The chain that leads to containers, as it is listed, with one rule for each of them. */
function listedEntries(owners: readonly Owner[]): string {
  return owners.map((owner) =>
    `-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "${dnatComment(owner).replaceAll('"', '\\"')}" ` +
    `-m multiport --dports 8080 -j ${hostPortChain(owner)}\n`
  ).join("");
}

/** A host whose rules lead to these containers, look by look; the last look stays. Everybody on it is alive. */
function hostWith(looks: Readonly<Record<"iptables" | "ip6tables", readonly (readonly Owner[])[]>>): Run {
  const asked = { iptables: 0, ip6tables: 0 };
  return async ({ argv }) => {
    await Promise.resolve();
    const answer = (stdout = "") => ({ code: 0, signal: null, stdout, stderr: "" });
    const [tool = "", last = ""] = [argv[0], argv.at(-1)];
    if ((tool === "iptables" || tool === "ip6tables") && argv.includes("-S")) {
      if (last === "CNI-HOSTPORT-DNAT") {
        return answer(
          `-N ${last}\n${listedEntries(looks[tool][Math.min(asked[tool]++, looks[tool].length - 1)] ?? [])}`,
        );
      }
      const to = tool === "iptables" ? "10.22.0.6:80" : "[2001:db8:22::6]:80";
      return answer(`-N ${last}\n-A ${last} -p tcp -m tcp --dport 8080 -j DNAT --to-destination ${to}\n`);
    }
    if (argv.includes("route")) return answer('[{"dst":"x","dev":"cni0"}]');
    if (argv.includes("neigh")) return answer('[{"dst":"x","state":["REACHABLE"]}]');
    return answer();
  };
}

const together: [what: string, looks: Parameters<typeof hostWith>[0], taken: boolean][] = [
  ["the other is behind in IPv4", { iptables: [[MINE, OTHER]], ip6tables: [[OTHER, MINE]] }, false],
  ["the other comes to IPv4 late", { iptables: [[MINE], [MINE], [MINE, OTHER]], ip6tables: [[OTHER, MINE]] }, false],
  [
    "the other comes to IPv4 and gives up between two looks",
    { iptables: [[MINE]], ip6tables: [[OTHER, MINE], [OTHER, MINE], [MINE]] },
    false,
  ],
  [
    "the other gives up in IPv4 first",
    { iptables: [[MINE], [MINE, OTHER], [MINE]], ip6tables: [[OTHER, MINE]] },
    false,
  ],
  ["the other is ahead in IPv4", { iptables: [[OTHER, MINE]], ip6tables: [[MINE, OTHER]] }, true],
  ["the other has IPv6 only", { iptables: [[MINE]], ip6tables: [[OTHER, MINE]] }, true],
];

for (const [what, looks, taken] of together) {
  Deno.test(`portmap, of two that ask for one port at once: ${what}`, async () => {
    const both = {
      ...PREVIOUS,
      ips: [...PREVIOUS.ips, { address: "2001:db8:22::5/64", interface: 1 }],
    };
    const config = conf({ name: "mynet", backend: "iptables", snat: false, prevResult: both });
    const call = fakeCall(config, { host: hostWith(looks), containerId: "mine" });
    if (!taken) await plugin.add(call);
    else await assertRejects(() => plugin.add(call), CniError, "already published by container other");
  });
}

Deno.test("portmap GC without a list, and STATUS with a bad configuration", async () => {
  await plugin.gc(fakeNetworkCall({}, { valid: undefined }));
  await assertRejects(() => plugin.status(fakeNetworkCall({ backend: "ipvs" })), CniError, "unrecognized backend");
});
