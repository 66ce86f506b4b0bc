import { assertEquals, assertThrows } from "@std/assert";
import { parseBandwidth, parsePublish, requestedBy } from "../../lib/cli/capabilities.ts";
import { CliError, parseCall } from "../../lib/cli/command.ts";
import { findCommand } from "../../lib/cli/commands.ts";
import { parseList } from "../../lib/cni/conflist.ts";

Deno.test("published ports are read as people write them", () => {
  const tcp = (hostPort: number, containerPort: number) => ({ hostPort, containerPort, protocol: "tcp" });
  assertEquals(parsePublish("8080:80"), [tcp(8080, 80)]);
  assertEquals(parsePublish("127.0.0.1:8080:80/udp"), [
    { hostPort: 8080, containerPort: 80, protocol: "udp", hostIP: "127.0.0.1" },
  ]);
  assertEquals(parsePublish("[2001:DB8::1]:53:53/sctp"), [
    { hostPort: 53, containerPort: 53, protocol: "sctp", hostIP: "2001:db8::1" },
  ]);
  assertEquals(parsePublish("8000-8002:80-82"), [tcp(8000, 80), tcp(8001, 81), tcp(8002, 82)]);
});

for (
  const text of [
    "80",
    "0:80",
    "80:65536",
    "a:80",
    "8080:80/icmp",
    "1.2.3:80:80",
    "1-3:1-2",
    "3-1:3-1",
    "::1:80:80",
    "80:80/",
    "",
  ]
) {
  Deno.test(`a port mapping is refused: "${text}"`, () => {
    assertThrows(() => parsePublish(text), CliError, `--publish "${text}": `);
  });
}

Deno.test("rates are read with their units, for one or both directions", () => {
  assertEquals(parseBandwidth("100M"), {
    ingressRate: 100_000_000,
    ingressBurst: 10_000_000,
    egressRate: 100_000_000,
    egressBurst: 10_000_000,
  });
  assertEquals(parseBandwidth("1G:4M/512k"), {
    ingressRate: 1_000_000_000,
    ingressBurst: 4_000_000,
    egressRate: 512_000,
    egressBurst: 524_288,
  });
  for (const text of ["", "fast", "1M/2M/3M", "1M:2M:3M", "-1M", "0", "1T"]) {
    assertThrows(() => parseBandwidth(text), CliError, "not a rate", text);
  }
});

function requested(plugins: readonly unknown[], ...flags: string[]) {
  const list = parseList(new TextEncoder().encode(JSON.stringify({ name: "net", cniVersion: "1.0.0", plugins })));
  const { command } = findCommand(["add"])!;
  const call = parseCall(command, ["net", "ns", ...flags], {
    called: "cnibox",
    args: [],
    version: "0",
    names: [],
    load: () => undefined,
  });
  return requestedBy(call, list, []);
}

const bridge = { type: "bridge", ipam: { type: "host-local" } };
const portmap = { type: "portmap", capabilities: { portMappings: true } };

Deno.test("flags become capability arguments where a plugin declares them", () => {
  const all = { ...bridge, capabilities: { ips: true, mac: true } };
  assertEquals(
    requested([all, portmap], "-p", "8080:80", "--ip", "10.0.0.7", "--ip", "2001:DB8::7", "--mac", "02:00:00:00:00:01"),
    {
      capabilityArgs: {
        portMappings: [{ hostPort: 8080, containerPort: 80, protocol: "tcp" }],
        ips: ["10.0.0.7", "2001:db8::7"],
        mac: "02:00:00:00:00:01",
      },
      args: [],
    },
  );
});

Deno.test("an address or a hardware address goes the old way where no plugin declares it", () => {
  assertEquals(requested([bridge], "--ip", "10.0.0.7", "--mac", "02:00:00:00:00:01"), {
    capabilityArgs: {},
    args: [["IgnoreUnknown", "1"], ["IP", "10.0.0.7"], ["MAC", "02:00:00:00:00:01"]],
  });
});

Deno.test("what no plugin could act on is refused with what to add", () => {
  const refused = (plugins: readonly unknown[], flags: string[], message: string) =>
    assertThrows(() => requested(plugins, ...flags), CliError, message);
  refused([bridge], ["-p", "80:80"], '--publish: no plugin of this network publishes ports: add {"type": "portmap"');
  refused([bridge], ["--bandwidth", "1M"], "--bandwidth: no plugin of this network limits rates");
  refused([{ type: "bridge" }], ["--ip", "10.0.0.7"], '--ip: no plugin of network "net" takes a requested address');
  refused(
    [bridge],
    ["--ip", "10.0.0.7", "--ip", "10.0.0.8"],
    "--ip: without the capability host-local takes one address",
  );
  refused([bridge], ["--ip", "10.0.0"], '--ip "10.0.0" is not a valid address');
  refused(
    [{ type: "ptp" }],
    ["--mac", "02:00:00:00:00:01"],
    '--mac: no plugin of network "net" takes a hardware address',
  );
  refused([bridge], ["--mac", "nonsense"], '--mac "nonsense" is not a valid hardware address');
  refused([bridge], ["--cap", "["], "--cap: ");
  refused([bridge], ["--cap", "[]"], "--cap is not a JSON object");
  refused([bridge], ["--cap", "null"], "--cap is not a JSON object");
});
