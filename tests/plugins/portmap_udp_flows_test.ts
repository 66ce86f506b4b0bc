import { assertEquals } from "@std/assert";
import type { HostPorts } from "../../lib/rules/host_ports_iptables.ts";
import { flushForAdd, flushForDel } from "../../plugins/portmap/udp_flows.ts";
import type { Run } from "../../lib/kernel/run.ts";
import { parsePrefix } from "../../lib/net/cidr.ts";
import { RULE_TOOLS, withTools } from "../fakes/tools.ts";

const target = parsePrefix("10.22.0.5/24")!;

/** So many published UDP ports, from 7000 on; every tenth of them insists on an address. */
function ports(count: number): HostPorts {
  const mappings = Array.from({ length: count }, (_, index) => ({
    hostPort: 7000 + index,
    containerPort: 53,
    protocol: "udp",
    hostIP: index % 10 === 9 ? "192.0.2.10" : "",
  }));
  const owner = { network: "n", containerId: "c" };
  const conditions = { 4: [], 6: [] };
  return { owner, mappings, snat: true, masqAll: false, markBit: 13, externalMarkChain: undefined, conditions };
}

const flow = (to: string, port: number, from: string) =>
  `udp 17 28 src=192.0.2.2 dst=${to} sport=4000 dport=${port} src=${from} dst=192.0.2.2 sport=53 dport=4000 use=1`;

/** A host that tracks these flows and has the address 192.0.2.1. */
function host(flows: readonly string[]): Run & { lines: string[] } {
  const lines: string[] = [];
  const run: Run = ({ argv }) => {
    lines.push(argv.join(" "));
    const links = [{ addr_info: [{ local: "192.0.2.1" }] }];
    const stdout = argv[0] === "ip" ? JSON.stringify(links) : argv[1] === "-L" ? flows.join("\n") : "";
    return Promise.resolve({ code: 0, signal: null, stdout, stderr: "" });
  };
  return Object.assign(run, { lines });
}

async function flushed(
  work: (call: { host: Run; warn(note: string): void }) => Promise<void>,
  flows: readonly string[],
) {
  const run = host(flows);
  const notes: string[] = [];
  await withTools(RULE_TOOLS, () => work({ host: run, warn: (note) => notes.push(note) }));
  assertEquals(notes, []);
  return run.lines;
}

Deno.test("of 100 published UDP ports ADD lists flows once, and deletes those to this host's addresses alone", async () => {
  const flows = [
    flow("192.0.2.1", 7000, "10.22.0.9"),
    flow("192.0.2.1", 7000, "10.22.0.8"),
    flow("198.51.100.1", 7001, "198.51.100.1"),
    flow("192.0.2.1", 53, "192.0.2.1"),
    flow("192.0.2.10", 7009, "192.0.2.10"),
    flow("192.0.2.1", 7019, "192.0.2.1"),
  ];
  const lines = await flushed((call) => flushForAdd(call, ports(100), target), flows);
  assertEquals(lines, [
    "conntrack -L -f ipv4 -p udp",
    "ip -j -4 addr show",
    "conntrack -D -f ipv4 -p udp --orig-port-dst 7000 --orig-dst 192.0.2.1",
    "conntrack -D -f ipv4 -p udp --orig-port-dst 7009 --orig-dst 192.0.2.10",
  ]);
  assertEquals((await flushed((call) => flushForAdd(call, ports(100), target), [])).length, 1);
});

Deno.test("of 100 published UDP ports DEL lists the container's flows once, and deletes those of its ports alone", async () => {
  const flows = [flow("192.0.2.1", 7003, "10.22.0.5"), flow("192.0.2.1", 53, "10.22.0.5")];
  const one = { family: 4, addresses: ["10.22.0.5"] } as const;
  assertEquals(await flushed((call) => flushForDel(call, ports(100), one), flows), [
    "conntrack -L -f ipv4 -p udp --reply-src 10.22.0.5",
    "conntrack -D -f ipv4 -p udp --orig-port-dst 7003 --reply-src 10.22.0.5",
  ]);
  const two = { family: 4, addresses: ["10.22.0.5", "10.22.0.6"] } as const;
  const lines = await flushed((call) => flushForDel(call, ports(100), two), [
    ...flows,
    flow("192.0.2.1", 7003, "10.22.0.7"),
  ]);
  assertEquals(lines, [
    "conntrack -L -f ipv4 -p udp",
    "conntrack -D -f ipv4 -p udp --orig-port-dst 7003 --reply-src 10.22.0.5",
  ]);
  assertEquals((await flushed((call) => flushForDel(call, ports(100), two), [])).length, 1);
});

Deno.test("a single UDP port takes one process", async () => {
  const one = { family: 4, addresses: ["10.22.0.5"] } as const;
  assertEquals(await flushed((call) => flushForDel(call, ports(1), one), []), [
    "conntrack -D -f ipv4 -p udp --orig-port-dst 7000 --reply-src 10.22.0.5",
  ]);
  assertEquals(await flushed((call) => flushForAdd(call, ports(1), target), []), [
    "conntrack -L -f ipv4 -p udp --orig-port-dst 7000",
  ]);
  const bound = { ...ports(1), mappings: [{ ...ports(1).mappings[0]!, hostIP: "192.0.2.10" }] };
  assertEquals(await flushed((call) => flushForAdd(call, bound, target), []), [
    "conntrack -D -f ipv4 -p udp --orig-port-dst 7000 --orig-dst 192.0.2.10",
  ]);
});
