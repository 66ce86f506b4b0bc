import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  additionText,
  appliesTo,
  destinationOf,
  dnatTarget,
  entryOwner,
  type HostPorts,
  ownRules,
  type PortMapping,
  protocolName,
  removalLines,
  usesLocalhost,
} from "../../lib/rules/host_ports_iptables.ts";
import { nftAdditionText, nftOwnRules, readNftPort } from "../../lib/rules/host_ports_nft.ts";
import { isLiving, nftConflicts, parseEntries, parseSockets } from "../../plugins/portmap/conflict.ts";
import { parsePrefix } from "../../lib/net/cidr.ts";
import { recordedRun } from "../fakes/run.ts";

const mapping = (hostPort: number, containerPort = 80, protocol = "tcp", hostIP = ""): PortMapping => ({
  hostPort,
  containerPort,
  protocol,
  hostIP,
});

function ports(changes: Partial<HostPorts> = {}): HostPorts {
  return {
    owner: { network: "mynet", containerId: "ctr-0001" },
    mappings: [mapping(8080), mapping(5353, 53, "udp", "192.0.2.10")],
    snat: true,
    masqAll: false,
    markBit: 13,
    externalMarkChain: undefined,
    conditions: { 4: [], 6: [] },
    ...changes,
  };
}

const V4 = parsePrefix("10.22.0.5/24")!;
const V6 = parsePrefix("2001:db8:22::5/64")!;

Deno.test("an ADD in iptables relies on the shared rules and makes the container's", () => {
  assertEquals(
    additionText(ports(), V4),
    `*nat
-C CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000
-C CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-C POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-C PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-C OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-N CNI-DN-e4c76feec97a77ba32cd9
-A CNI-DN-e4c76feec97a77ba32cd9 -p tcp --dport 8080 -s 10.22.0.0/24 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-e4c76feec97a77ba32cd9 -p tcp --dport 8080 -s 127.0.0.1 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-e4c76feec97a77ba32cd9 -p tcp --dport 8080 -j DNAT --to-destination 10.22.0.5:80
-A CNI-DN-e4c76feec97a77ba32cd9 -p udp --dport 5353 -d 192.0.2.10 -s 10.22.0.0/24 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-e4c76feec97a77ba32cd9 -p udp --dport 5353 -d 192.0.2.10 -s 127.0.0.1 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-e4c76feec97a77ba32cd9 -p udp --dport 5353 -d 192.0.2.10 -j DNAT --to-destination 10.22.0.5:53
-A CNI-HOSTPORT-DNAT -m comment --comment "dnat name: \\"mynet\\" id: \\"ctr-0001\\"" -m multiport -p tcp --destination-ports 8080 -j CNI-DN-e4c76feec97a77ba32cd9
-A CNI-HOSTPORT-DNAT -m comment --comment "dnat name: \\"mynet\\" id: \\"ctr-0001\\"" -m multiport -p udp --destination-ports 5353 -j CNI-DN-e4c76feec97a77ba32cd9
COMMIT
`,
  );
});

Deno.test("a mapping to an address of the other family has an entry and no rules", () => {
  const { content, entries } = ownRules(ports(), V6);
  assertEquals(content, [
    "-p tcp --dport 8080 -s 2001:db8:22::/64 -j CNI-HOSTPORT-SETMARK",
    "-p tcp --dport 8080 -j DNAT --to-destination [2001:db8:22::5]:80",
  ]);
  assertEquals(entries.length, 2);
});

Deno.test("a DEL in iptables takes back what ADD made", () => {
  const chain = "CNI-DN-e4c76feec97a77ba32cd9";
  const lines = removalLines(ports(), 4);
  assertEquals(lines.length, 4);
  assertEquals(lines.slice(2), [`-F ${chain}`, `-X ${chain}`]);
});

const variants: [what: string, changes: Partial<HostPorts>, content: string[], entries: number][] = [
  ["no snat", { snat: false, mappings: [mapping(1)] }, ["-p tcp --dport 1 -j DNAT --to-destination 10.22.0.5:80"], 1],
  ["masqAll", { masqAll: true, mappings: [mapping(1)] }, [
    "-p tcp --dport 1 -s 0.0.0.0/0 -j CNI-HOSTPORT-SETMARK",
    "-p tcp --dport 1 -j DNAT --to-destination 10.22.0.5:80",
  ], 1],
  ["external chain", { externalMarkChain: "KUBE-MARK-MASQ", mappings: [mapping(1)] }, [
    "-p tcp --dport 1 -s 10.22.0.0/24 -j KUBE-MARK-MASQ",
    "-p tcp --dport 1 -s 127.0.0.1 -j KUBE-MARK-MASQ",
    "-p tcp --dport 1 -j DNAT --to-destination 10.22.0.5:80",
  ], 1],
  ["the same port twice", { snat: false, mappings: [mapping(1), mapping(1)] }, [
    "-p tcp --dport 1 -j DNAT --to-destination 10.22.0.5:80",
  ], 1],
  [
    "15 ports",
    { snat: false, mappings: Array.from({ length: 15 }, (_, i) => mapping(i + 1, 1)) },
    Array.from({ length: 15 }, (_, i) => `-p tcp --dport ${i + 1} -j DNAT --to-destination 10.22.0.5:1`),
    1,
  ],
  [
    "16 ports",
    { snat: false, mappings: Array.from({ length: 16 }, (_, i) => mapping(i + 1, 1)) },
    Array.from({ length: 16 }, (_, i) => `-p tcp --dport ${i + 1} -j DNAT --to-destination 10.22.0.5:1`),
    2,
  ],
];

for (const [what, changes, content, entries] of variants) {
  Deno.test(`rules of a container: ${what}`, () => {
    const own = ownRules(ports(changes), V4);
    assertEquals(own.content, content);
    assertEquals(own.entries.length, entries);
  });
}

Deno.test("entries are grouped by the protocol as it is written, in byte order", () => {
  const own = ownRules(
    ports({ mappings: [mapping(1, 1, "udp"), mapping(2, 2, "tcp"), mapping(3, 3, "TCP"), mapping(4, 4, "sctp")] }),
    V4,
  );
  assertEquals(own.entries.map((rule) => /-p (\S+)/.exec(rule)?.[1]), ["TCP", "sctp", "tcp", "udp"]);
});

Deno.test("the mark is one bit, also the highest", () => {
  for (const [markBit, mark] of [[0, "0x1/0x1"], [13, "0x2000/0x2000"], [31, "0x80000000/0x80000000"]] as const) {
    assertStringIncludes(additionText(ports({ markBit }), V4), `--set-xmark ${mark}\n`);
  }
});

Deno.test("conditions are words of the container's entries, whatever is in them", () => {
  const own = ownRules(ports({ conditions: { 4: ["!", "-d", "a b"], 6: [] } }), V4);
  assert(
    own.entries.every((rule) => rule.includes(' "!" -d "a b" -j') || rule.includes(' ! -d "a b" -j')),
    own.entries.join("\n"),
  );
  assert(ownRules(ports({ conditions: { 4: ["x"], 6: [] } }), V6).entries.every((rule) => !rule.includes(" x ")));
});

Deno.test("host addresses: family, destination, and whether 127.0.0.1 reaches the port", () => {
  const cases: [hostIP: string, four: boolean, six: boolean, destination: string, localhost: boolean][] = [
    ["", true, true, "", true],
    ["0.0.0.0", true, false, "", true],
    ["::", false, true, "", false],
    ["192.0.2.10", true, false, "192.0.2.10", false],
    ["127.0.0.1", true, false, "127.0.0.1", true],
    ["127.8.8.8", true, false, "127.8.8.8", true],
    ["::ffff:192.0.2.10", true, false, "192.0.2.10", false],
    ["2001:DB8::A", false, true, "2001:db8::a", false],
    ["nonsense", false, true, "", false],
  ];
  for (const [hostIP, four, six, destination, localhost] of cases) {
    const one = mapping(1, 1, "tcp", hostIP);
    assertEquals([appliesTo(one, 4), appliesTo(one, 6), destinationOf(one)], [four, six, destination], hostIP);
    assertEquals(usesLocalhost(ports({ mappings: [one] })), localhost, hostIP);
    assertEquals(usesLocalhost(ports({ mappings: [one], snat: false })), false);
  }
});

Deno.test("protocols have one name", () => {
  for (
    const [text, name] of [
      ["tcp", "tcp"],
      ["TCP", "tcp"],
      ["6", "tcp"],
      ["17", "udp"],
      ["132", "sctp"],
      ["33", "dccp"],
      ["icmp", "icmp"],
      ["", ""],
    ]
  ) {
    assertEquals(protocolName(text!), name!);
  }
});

Deno.test("rules are read back: where they lead, and whose they are", () => {
  assertEquals(dnatTarget("-p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.22.0.5:80"), {
    address: "10.22.0.5",
    port: 80,
  });
  assertEquals(dnatTarget("-j DNAT --to-destination [2001:db8::5]:80"), { address: "2001:db8::5", port: 80 });
  for (const rule of ["-j ACCEPT", "-j DNAT --to-destination 10.0.0.1", "-j DNAT --to-destination 10.0.0.1:80-90"]) {
    assertEquals(dnatTarget(rule), undefined, rule);
  }
  assertEquals(entryOwner('-m comment --comment "dnat name: \\"a\\" id: \\"b\\"" -j X'), {
    network: "a",
    containerId: "b",
  });
  for (const comment of ['dnat name: \\"a\\" id: \\"b..', 'name: \\"a\\" id: \\"b\\"', "x"]) {
    assertEquals(entryOwner(`-m comment --comment "${comment}" -j X`), undefined);
  }
});

Deno.test("entries are read by port, with ranges and conditions", () => {
  const rules = [
    '-p tcp -m comment --comment "dnat name: \\"a\\" id: \\"b\\"" -m multiport --dports 80,8000:8010 -j CNI-DN-1',
    "! -d 192.0.2.0/24 -p udp -m multiport --dports 53 -j CNI-DN-2",
    "-s 10.0.0.0/8 -j SOMETHING",
    "-p tcp -m multiport --dports 80",
  ].map((text) => ({ chain: "CNI-HOSTPORT-DNAT", text }));
  assertEquals(parseEntries(rules).map(({ chain, protocol, ports }) => [chain, protocol, ports]), [
    ["CNI-DN-1", "tcp", [[80, 80], [8000, 8010]]],
    ["CNI-DN-2", "udp", [[53, 53]]],
  ]);
});

Deno.test("an ADD in nft sets the table up and makes the container's rules, conditions with them", () => {
  const text = nftAdditionText(ports({ conditions: { 4: ["ip", "saddr", "10.0.0.0/8"], 6: [] } }), V4);
  assertStringIncludes(text, "add rule ip cni_hostport prerouting fib daddr type local jump hostports_all\n");
  assertStringIncludes(
    text,
    'add rule ip cni_hostport hostports ip saddr 10.0.0.0/8 tcp dport 8080 dnat to 10.22.0.5:80 comment "ctr-0001"\n',
  );
  assertStringIncludes(text, 'ip daddr 192.0.2.10 udp dport 5353 dnat to 10.22.0.5:53 comment "ctr-0001"');
});

Deno.test("nft's rules for masquerading: self, 127.0.0.1, neighbours; or everybody", () => {
  const rules = (changes: Partial<HostPorts>, target = V4) =>
    nftOwnRules(ports(changes), target).filter(({ chain }) => chain === "masquerading").map(({ text }) =>
      text.replace(/ comment.*/, "")
    );
  assertEquals(rules({}), [
    "ip saddr 10.22.0.5 ip daddr 10.22.0.5 masquerade",
    "ip saddr 127.0.0.1 ip daddr 10.22.0.5 masquerade",
    "ip saddr 10.22.0.0/24 ip daddr 10.22.0.5 ct status dnat masquerade",
  ]);
  assertEquals(rules({ masqAll: true }), [
    "ip saddr 0.0.0.0/0 ip daddr 10.22.0.5 masquerade",
    "ip saddr 127.0.0.1 ip daddr 10.22.0.5 masquerade",
  ]);
  assertEquals(rules({ masqAll: true }, V6), ["ip6 saddr ::/0 ip6 daddr 2001:db8:22::5 masquerade"]);
  assertEquals(rules({ snat: false }), []);
});

Deno.test("nft's rules are read back, and conflicting mappings are told by port, protocol and address", () => {
  const port = (value: number) => ({
    match: { op: "==", left: { payload: { protocol: "tcp", field: "dport" } }, right: value },
  });
  const to = (value: string) => ({
    match: { op: "==", left: { payload: { protocol: "ip", field: "daddr" } }, right: value },
  });
  const not = { match: { op: "!=", left: { payload: { protocol: "ip", field: "saddr" } }, right: "10.0.0.1" } };
  const dnat = { dnat: { addr: "10.22.0.9", port: 80 } };
  const rule = (handle: number, comment: string, expr: unknown[]) =>
    readNftPort({ family: "ip", table: "cni_hostport", chain: "hostports", handle, comment, expr });
  const rules = [
    rule(1, "a", [port(8080), dnat])!,
    rule(2, "b", [to("192.0.2.1"), port(9090), dnat])!,
    rule(3, "c", [not, port(8080), dnat])!,
    rule(4, "ctr-0001", [port(8080), dnat])!,
    rule(5, "d", [port(8080), dnat])!,
  ];
  assertEquals(rules[1], {
    handle: 2,
    comment: "b",
    protocol: "tcp",
    port: 9090,
    hostIP: "192.0.2.1",
    address: "10.22.0.9",
    containerPort: 80,
    conditional: false,
  });
  assertEquals(rule(6, "x", [{ jump: { target: "y" } }]), undefined);
  const seen = (mappings: PortMapping[]) =>
    nftConflicts(rules, ports({ mappings }), 4).map(({ key, ahead, conditional }) => [key, ahead, conditional]);
  assertEquals(seen([mapping(8080)]), [["a", true, false], ["c", true, true], ["d", false, false]]);
  assertEquals(seen([mapping(9090)]), [["b", true, false]]);
  assertEquals(seen([mapping(9090, 80, "tcp", "192.0.2.2")]), []);
  assertEquals(seen([mapping(9090, 80, "tcp", "192.0.2.1")]), [["b", true, false]]);
  assertEquals(seen([mapping(8080, 80, "udp")]), []);
});

Deno.test("sockets are read with their programs", () => {
  const text =
    `tcp LISTEN 0      128        127.0.0.1:8080 0.0.0.0:* users:(("nginx",pid=12,fd=6),("nginx",pid=13,fd=6))
udp UNCONN 0      0                *:53         *:*
tcp LISTEN 0      128             [::]:22         [::]:*
udp UNCONN 0 0 127.0.0.53%lo:53 0.0.0.0:*
`;
  assertEquals(parseSockets(text).map(({ protocol, address, port, program }) => [protocol, address, port, program]), [
    ["tcp", "127.0.0.1", 8080, "nginx (PID 12)"],
    ["udp", "*", 53, ""],
    ["tcp", "::", 22, ""],
    ["udp", "127.0.0.53%lo", 53, ""],
  ]);
});

const other = { containerId: "old", network: undefined, address: "10.22.0.9" };
const living: [what: string, transcript: string, is: boolean][] = [
  ["no way leads there", "$ ip -j -4 route get 10.22.0.9\n! RTNETLINK answers: Network is unreachable", false],
  ["an address of the host", '$ ip -j -4 route get 10.22.0.9\n> [{"type":"local","dst":"10.22.0.9","dev":"lo"}]', true],
  [
    "behind a router",
    '$ ip -j -4 route get 10.22.0.9\n> [{"dst":"10.22.0.9","gateway":"192.0.2.1","dev":"eth0"}]',
    true,
  ],
  [
    "it answers",
    `$ ip -j -4 route get 10.22.0.9
> [{"dst":"10.22.0.9","dev":"cni0"}]
$ ip -j -4 neigh show 10.22.0.9 dev cni0
> [{"dst":"10.22.0.9","state":["STALE"]}]
$ ip neigh del 10.22.0.9 dev cni0
$ ip neigh add 10.22.0.9 dev cni0 use
$ ip -j -4 neigh show 10.22.0.9 dev cni0
> [{"dst":"10.22.0.9","state":["REACHABLE"]}]`,
    true,
  ],
  [
    "it does not answer",
    `$ ip -j -4 route get 10.22.0.9
> [{"dst":"10.22.0.9","dev":"cni0"}]
$ ip -j -4 neigh show 10.22.0.9 dev cni0
> []
$ ip neigh del 10.22.0.9 dev cni0
! RTNETLINK answers: No such file or directory
$ ip neigh add 10.22.0.9 dev cni0 use
$ ip -j -4 neigh show 10.22.0.9 dev cni0
> [{"dst":"10.22.0.9","state":["FAILED"]}]`,
    false,
  ],
];

for (const [what, transcript, is] of living) {
  Deno.test(`a container is ${is ? "living" : "gone"}: ${what}`, async () => {
    const host = recordedRun(transcript);
    assertEquals(await isLiving({ host }, other, 4), is);
    assertEquals(host.unused(), []);
  });
}

Deno.test("a container without an address is gone, and nobody is asked", async () => {
  assertEquals(await isLiving({ host: recordedRun("") }, { ...other, address: "" }, 4), false);
});
