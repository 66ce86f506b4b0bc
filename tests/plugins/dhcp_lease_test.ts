import { assertEquals, assertThrows } from "@std/assert";
import {
  type ClientEvent,
  LeaseError,
  leaseOf,
  leaseResult,
  parseEvent,
  udhcpcArgs,
} from "../../plugins/dhcp/lease.ts";

/** An ACK as udhcpc reports it; `null` leaves a variable out. */
function ack(changes: Record<string, string | null> = {}): ClientEvent {
  const vars = { ip: "192.168.1.55", subnet: "255.255.255.0", router: "192.168.1.1", lease: "120", ...changes };
  return {
    event: "bound",
    uptime: 1000.5,
    vars: new Map(Object.entries(vars).filter((pair): pair is [string, string] => pair[1] !== null)),
  };
}

const bytes = (text: string) => new TextEncoder().encode(text);
const result = (changes: Record<string, string | null>, listed: number[] = [], priority = 0) =>
  leaseResult(leaseOf(ack(changes)), { listed, priority });

Deno.test("dhcp reads what the hook wrote", () => {
  const event = parseEvent(bytes("event=renew\0PATH=/bin\0ip=10.0.0.1\0message=a=b\nc\0empty=\0uptime=12.34 56.78\n"));
  assertEquals(event?.event, "renew");
  assertEquals(event?.uptime, 12.34);
  assertEquals([...event?.vars ?? []], [["PATH", "/bin"], ["ip", "10.0.0.1"], ["message", "a=b\nc"], ["empty", ""]]);
});

Deno.test("dhcp takes an event for what it is only when it is whole", () => {
  const whole = "event=bound\0ip=10.0.0.1\0uptime=12.34 56.78\n";
  assertEquals(parseEvent(bytes(whole)) === undefined, false);
  for (let length = 0; length < whole.length - " 56.78\n".length; length++) {
    assertEquals(parseEvent(bytes(whole.slice(0, length))), undefined, whole.slice(0, length));
  }
  assertEquals(parseEvent(bytes("ip=10.0.0.1\0uptime=12.34 56.78\n")), undefined);
  // What a server says cannot pass for the end.
  assertEquals(parseEvent(bytes("event=bound\0domain=\nuptime=1 1\n")), undefined);
});

Deno.test("dhcp lease times: option 51, option 58, and what stands in for them", () => {
  const times: readonly (readonly [vars: Record<string, string | null>, seconds: number, renewAfter: number])[] = [
    [{}, 120, 60],
    [{ lease: null }, 3600, 1800],
    [{ lease: "4294967295" }, Infinity, Infinity],
    [{ lease: "0" }, 3600, 1800],
    [{ lease: "rubbish" }, 3600, 1800],
    [{ opt58: "0000001e" }, 120, 30],
    [{ opt58: "0000005a" }, 120, 90],
    [{ opt58: "00000078" }, 120, 60],
    [{ opt58: "00000e10", opt59: "00000708" }, 120, 60],
    [{ opt58: "1e" }, 120, 60],
    [{ opt58: "00000000" }, 120, 60],
    [{ lease: "4294967295", opt58: "0000001e" }, Infinity, 30],
  ];
  for (const [vars, seconds, renewAfter] of times) {
    const lease = leaseOf(ack(vars));
    assertEquals([lease.seconds, lease.renewAfter, lease.since], [seconds, renewAfter, 1000.5], JSON.stringify(vars));
  }
});

Deno.test("dhcp refuses a lease without address or mask", () => {
  const refused: readonly (readonly [vars: Record<string, string | null>, words: string])[] = [
    [{ subnet: null }, "DHCP option Subnet Mask not found in DHCPACK"],
    [{ subnet: "24" }, "DHCP option Subnet Mask not found in DHCPACK"],
    [{ subnet: "255.0.255.0" }, "DHCP option Subnet Mask has gaps: 255.0.255.0"],
    [{ ip: null }, 'DHCP server sent no usable address: ""'],
    [{ ip: "fe80::1" }, 'DHCP server sent no usable address: "fe80::1"'],
  ];
  for (const [vars, words] of refused) assertThrows(() => leaseOf(ack(vars)), LeaseError, words);
  for (const [subnet, length] of [["255.255.255.255", 32], ["0.0.0.0", 0], ["255.255.254.0", 23]] as const) {
    assertEquals(leaseOf(ack({ subnet })).address, `192.168.1.55/${length}`);
  }
});

Deno.test("dhcp result: address, first router, default route", () => {
  const plain = {
    ips: [{ address: "192.168.1.55/24", gateway: "192.168.1.1" }],
    routes: [{ dst: "0.0.0.0/0", gw: "192.168.1.1" }],
  };
  assertEquals(result({}), plain);
  assertEquals(result({ router: "192.168.1.1 192.168.1.2" }), plain);
  assertEquals(result({ router: null }), { ips: [{ address: "192.168.1.55/24" }] });
  assertEquals(result({ dns: "1.1.1.1", domain: "d", search: "s" }), plain, "nobody asked for resolver settings");
});

Deno.test("dhcp result: classless routes stand alone, classful ones beside the default route", () => {
  const cases: readonly (readonly [vars: Record<string, string | null>, routes: unknown])[] = [
    [{ staticroutes: "0.0.0.0/0 192.168.1.9 10.8.0.0/16 0.0.0.0", routes: "10.0.0.0/192.168.1.7" }, [
      { dst: "0.0.0.0/0", gw: "192.168.1.9" },
      { dst: "10.8.0.0/16", gw: "0.0.0.0", scope: 253 },
    ]],
    [{ staticroutes: "10.1.2.3/32 192.168.1.9 10.1.2.128/25 192.168.1.8 10.9.9.9/9 192.168.1.7" }, [
      { dst: "10.1.2.3/32", gw: "192.168.1.9" },
      { dst: "10.1.2.128/25", gw: "192.168.1.8" },
      { dst: "10.0.0.0/9", gw: "192.168.1.7" },
    ]],
    // Cut off, or nonsense: as if it were not there.
    [{ staticroutes: "10.0.0.0/8 192.168.1.9 10.8.0.0/16" }, [{ dst: "0.0.0.0/0", gw: "192.168.1.1" }]],
    [{ staticroutes: "10.0.0.0/33 192.168.1.9" }, [{ dst: "0.0.0.0/0", gw: "192.168.1.1" }]],
    [{ staticroutes: "" }, [{ dst: "0.0.0.0/0", gw: "192.168.1.1" }]],
    [{ staticroutes: "10.0.0.0/8 192.168.1.9", router: null }, [{ dst: "10.0.0.0/8", gw: "192.168.1.9" }]],
    [{ routes: "10.1.2.3/192.168.1.7 172.16.1.1/192.168.1.7 192.168.7.7/192.168.1.7 broken 10.0.0.0/x" }, [
      { dst: "10.0.0.0/8", gw: "192.168.1.7" },
      { dst: "172.16.0.0/16", gw: "192.168.1.7" },
      { dst: "192.168.7.0/24", gw: "192.168.1.7" },
      { dst: "0.0.0.0/0", gw: "192.168.1.1" },
    ]],
  ];
  for (const [vars, routes] of cases) assertEquals(result(vars).routes, routes as never, JSON.stringify(vars));
});

Deno.test("dhcp result: priority goes to every route", () => {
  const vars = { staticroutes: "10.0.0.0/8 192.168.1.9 10.8.0.0/16 0.0.0.0" };
  assertEquals(result(vars, [], 77).routes, [
    { dst: "10.0.0.0/8", gw: "192.168.1.9", priority: 77 },
    { dst: "10.8.0.0/16", gw: "0.0.0.0", priority: 77, scope: 253 },
  ]);
});

Deno.test("dhcp result: resolver settings only when they were asked for", () => {
  const vars = { dns: "1.1.1.1 rubbish 9.9.9.9", domain: "c.example", search: "a.example b.example" };
  assertEquals(result(vars, [6, 15, 119]).dns, {
    nameservers: ["1.1.1.1", "9.9.9.9"],
    domain: "c.example",
    search: ["a.example", "b.example"],
  });
  assertEquals(result(vars, [6]).dns, { nameservers: ["1.1.1.1", "9.9.9.9"] });
  assertEquals(result({}, [6, 15, 119]).dns, undefined);
});

Deno.test("dhcp client is started with exactly what is configured", () => {
  const owner = { containerId: "c", network: "n", ifName: "eth0" };
  const options = {
    send: new Map([[12, bytes("web")], [60, new Uint8Array()], [61, bytes("me")], [224, Uint8Array.from([0, 255])]]),
    ask: [121, 3, 1],
  };
  const settings = { broadcast: true, timeoutMs: 10_000, address: "10.0.0.1", pidFile: "/run/x/pid" };
  assertEquals(
    udhcpcArgs(owner, options, settings).join(" "),
    "-f -i eth0 -s /bin/sh -p /run/x/pid -t 3 -T 3 -A 20 -R -V  -C -x 0x3d:6d65 -x 0xc:776562 -x 0xe0:00ff -o -O 121 -O 3 -O 1 -B -r 10.0.0.1",
  );
  const plain = udhcpcArgs(owner, { send: new Map(), ask: [] }, {
    ...settings,
    broadcast: false,
    timeoutMs: 500,
    address: "",
  });
  assertEquals(
    plain.join(" "),
    "-f -i eth0 -s /bin/sh -p /run/x/pid -t 3 -T 1 -A 1 -R -V  -C -x 0x3d:00632f6e2f65746830 -o",
  );
});
