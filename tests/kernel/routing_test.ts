import { assertEquals } from "@std/assert";
import { isSourceRule, type KernelRoute, type KernelRule, routeWords, routingNow } from "../../lib/kernel/routing.ts";
import { recordedRun } from "../fakes/run.ts";

/** A route as `ip -N -j -d` prints it; the words that make it again in table 100. */
const routes: readonly [promise: string, family: 4 | 6, json: string, words: string][] = [
  [
    "a connected route",
    4,
    '{"type":"1","dst":"10.0.0.0/24","dev":"eth0","table":"254","protocol":"2","scope":"253","prefsrc":"10.0.0.2","flags":[]}',
    "10.0.0.0/24 dev eth0 proto 2 scope 253 src 10.0.0.2 table 100",
  ],
  [
    "a default route with metrics",
    4,
    '{"type":"1","dst":"default","gateway":"10.0.0.1","dev":"eth0","protocol":"3","scope":"0","metric":50,"flags":[],"metrics":[{"mtu":1400,"advmss":1300,"other":1}]}',
    "0.0.0.0/0 via 10.0.0.1 dev eth0 proto 3 scope 0 metric 50 mtu 1400 advmss 1300 table 100",
  ],
  [
    "a default route of IPv6",
    6,
    '{"dst":"default","gateway":"fe80::1","dev":"eth0","protocol":"3","scope":"0","metric":1024,"flags":[],"pref":"medium"}',
    "::/0 via fe80::1 dev eth0 proto 3 scope 0 metric 1024 pref medium table 100",
  ],
  [
    "a gateway that is said to be on the link",
    4,
    '{"dst":"10.3.0.0/16","gateway":"10.9.9.9","dev":"eth0","protocol":"3","scope":"0","flags":["onlink"]}',
    "10.3.0.0/16 via 10.9.9.9 dev eth0 proto 3 scope 0 onlink table 100",
  ],
  [
    "a gateway of the other family",
    4,
    '{"dst":"10.5.0.0/16","via":{"family":"inet6","host":"fe80::1"},"dev":"eth0","protocol":"3","scope":"0","flags":[]}',
    "10.5.0.0/16 via inet6 fe80::1 dev eth0 proto 3 scope 0 table 100",
  ],
  [
    "a type of service",
    4,
    '{"dst":"10.6.0.0/16","tos":"0x10","dev":"eth0","protocol":"3","scope":"253","flags":["linkdown"]}',
    "10.6.0.0/16 tos 0x10 dev eth0 proto 3 scope 253 table 100",
  ],
  [
    "several ways",
    4,
    '{"dst":"10.2.0.0/16","protocol":"3","scope":"0","flags":[],"nexthops":[{"gateway":"10.0.0.1","dev":"eth0","weight":2,"flags":[]},{"gateway":"10.0.0.3","dev":"eth0","weight":1,"flags":["onlink"]}]}',
    "10.2.0.0/16 proto 3 scope 0 table 100 nexthop via 10.0.0.1 dev eth0 weight 2 nexthop via 10.0.0.3 dev eth0 weight 1 onlink",
  ],
  [
    "a lifetime and a preference",
    6,
    '{"dst":"fd01::/64","from":"fd00::/64","gateway":"fd00::1","dev":"eth0","protocol":"3","scope":"0","metric":5,"flags":[],"expires":999,"pref":"high"}',
    "fd01::/64 from fd00::/64 via fd00::1 dev eth0 proto 3 scope 0 metric 5 expires 999 pref high table 100",
  ],
];

for (const [promise, family, json, words] of routes) {
  Deno.test(`routeWords says ${promise}`, () => {
    assertEquals(routeWords({ ...JSON.parse(json), family } as KernelRoute, 100), words);
  });
}

Deno.test("routeWords puts another source only where there was one", () => {
  const route = JSON.parse(routes[0]![2]) as KernelRoute;
  assertEquals(
    routeWords({ ...route, family: 4 }, 7, { src: "10.0.0.9" }),
    "10.0.0.0/24 dev eth0 proto 2 scope 253 src 10.0.0.9 table 7",
  );
  assertEquals(
    routeWords({ family: 4, dst: "10.0.0.0/24", dev: "eth0" }, 7, { src: "10.0.0.9" }),
    "10.0.0.0/24 dev eth0 table 7",
  );
});

const rules: readonly [json: string, source: boolean][] = [
  ['{"priority":32765,"src":"10.0.0.2","table":"100","protocol":"0"}', true],
  ['{"priority":32765,"src":"10.0.0.2","srclen":32,"table":"100"}', true],
  ['{"priority":7,"src":"10.0.0.0","srclen":24,"table":"100"}', false],
  ['{"priority":0,"src":"all","table":"255","protocol":"2"}', false],
  ['{"priority":4,"not":null,"src":"10.0.0.7","table":"77"}', false],
  ['{"priority":5,"src":"10.5.5.5","action":"6"}', false],
  ['{"priority":6,"src":"10.5.5.5","iif":"eth0","table":"100"}', false],
  ['{"priority":7,"src":"10.0.0.2","fwmark":"0x5","table":"100"}', false],
];

for (const [json, source] of rules) {
  Deno.test(`${json} is ${source ? "" : "not "}a rule of a source alone`, () => {
    assertEquals(isSourceRule({ ...JSON.parse(json), family: 4 } as KernelRule), source);
  });
}

Deno.test("routingNow takes two processes, and does without what is not there", async () => {
  const run = recordedRun(`$ ip -j -N -d -force -batch -
< rule show
< route show table all root 0.0.0.0/0
< addr show dev eth0
< addr show dev gone
< route show table all root ::/0
> [{"priority":0,"src":"all","table":"255"}]
> []
> [{"ifindex":2,"ifname":"eth0","addr_info":[]}]
> [{"dst":"fd00::/64","dev":"eth0"}]
! Device "gone" does not exist.
$ ip -6 -j -N rule show
! RTNETLINK answers: Operation not supported`);
  const { rules, routes, links } = await routingNow(run, ["addr show dev eth0", "addr show dev gone"]);
  assertEquals(rules as unknown, [{ priority: 0, src: "all", table: "255", family: 4 }]);
  assertEquals(routes, [{ dst: "fd00::/64", dev: "eth0", family: 6 }]);
  assertEquals(links.map((link) => link.ifname), ["eth0"]);
  assertEquals(run.unused(), []);
});
