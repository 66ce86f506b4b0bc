import { assertEquals, assertThrows } from "@std/assert";
import { CniError } from "../../lib/cni/error.ts";
import type { JsonObject, Result } from "../../lib/cni/types.ts";
import { atLeast, convertResult, goJson, parsePrevResult, parseResult } from "../../lib/cni/version.ts";

const FULL: Result = {
  interfaces: [
    { name: "br0", mac: "02:00:00:00:00:01" },
    {
      name: "eth0",
      mac: "02:00:00:00:00:02",
      mtu: 1400,
      sandbox: "/run/netns/c1",
      pciID: "0000:00:01.0",
      socketPath: "/s",
    },
  ],
  ips: [
    { address: "10.0.0.2/24", gateway: "10.0.0.1", interface: 0 },
    { address: "fd00::2/64", gateway: "fd00::1", interface: 1 },
  ],
  routes: [
    { dst: "0.0.0.0/0", gw: "10.0.0.1", mtu: 1300, advmss: 1200, priority: 5, table: 0, scope: 0 },
    { dst: "::/0", mtu: 0, priority: 0 },
  ],
  dns: { nameservers: ["10.0.0.53"], domain: "a.b", search: ["c"], options: ["d"] },
};

const compact = (result: Result, version: string) => JSON.stringify(convertResult(result, version));

Deno.test("a result is printed in the layout, key order and version of each generation", () => {
  assertEquals(
    compact(FULL, "1.1.0"),
    '{"cniVersion":"1.1.0","dns":{"domain":"a.b","nameservers":["10.0.0.53"],"options":["d"],"search":["c"]},' +
      '"interfaces":[{"mac":"02:00:00:00:00:01","name":"br0"},' +
      '{"mac":"02:00:00:00:00:02","mtu":1400,"name":"eth0","pciID":"0000:00:01.0","sandbox":"/run/netns/c1","socketPath":"/s"}],' +
      '"ips":[{"address":"10.0.0.2/24","gateway":"10.0.0.1","interface":0},{"address":"fd00::2/64","gateway":"fd00::1","interface":1}],' +
      '"routes":[{"advmss":1200,"dst":"0.0.0.0/0","gw":"10.0.0.1","mtu":1300,"priority":5,"scope":0,"table":0},{"dst":"::/0"}]}',
  );
  assertEquals(
    compact(FULL, "0.4.0"),
    '{"cniVersion":"0.4.0","interfaces":[{"name":"br0","mac":"02:00:00:00:00:01"},' +
      '{"name":"eth0","mac":"02:00:00:00:00:02","sandbox":"/run/netns/c1"}],' +
      '"ips":[{"version":"4","interface":0,"address":"10.0.0.2/24","gateway":"10.0.0.1"},' +
      '{"version":"6","interface":1,"address":"fd00::2/64","gateway":"fd00::1"}],' +
      '"routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1","mtu":1300,"advmss":1200,"priority":5,"table":0,"scope":0},{"dst":"::/0"}],' +
      '"dns":{"nameservers":["10.0.0.53"],"domain":"a.b","search":["c"],"options":["d"]}}',
  );
  assertEquals(
    compact(FULL, "0.2.0"),
    '{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24","gateway":"10.0.0.1","routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1"}]},' +
      '"ip6":{"ip":"fd00::2/64","gateway":"fd00::1","routes":[{"dst":"::/0"}]},' +
      '"dns":{"nameservers":["10.0.0.53"],"domain":"a.b","search":["c"],"options":["d"]}}',
  );
});

Deno.test("dns is always there before 1.0.0 and only when it says something after", () => {
  const bare: Result = { ips: [{ address: "10.0.0.2/24" }] };
  assertEquals(compact(bare, "1.0.0"), '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}');
  assertEquals(
    compact(bare, "0.3.0"),
    '{"cniVersion":"0.3.0","ips":[{"version":"4","address":"10.0.0.2/24"}],"dns":{}}',
  );
  assertEquals(compact(bare, ""), '{"cniVersion":"0.1.0","ip4":{"ip":"10.0.0.2/24"},"dns":{}}');
});

Deno.test("0.2.0 keeps the first address of each family, and routes of families that have one", () => {
  const many: Result = {
    ips: [{ address: "10.0.0.2/24" }, { address: "10.0.1.2/24" }],
    routes: [{ dst: "::/0" }, { dst: "10.9.0.0/16", mtu: 1400 }],
  };
  assertEquals(
    compact(many, "0.2.0"),
    '{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24","routes":[{"dst":"10.9.0.0/16"}]},"dns":{}}',
  );
  const error = assertThrows(() => convertResult({ interfaces: [{ name: "eth0" }] }, "0.2.0"), CniError);
  assertEquals([error.code, error.msg], [999, "cannot convert: no valid IP addresses"]);
});

Deno.test("printing indents by four blanks, escapes as Go does, and ends without a newline", () => {
  assertEquals(
    goJson(convertResult({ dns: { domain: "<&>" } }, "1.0.0"), 4),
    '{\n    "cniVersion": "1.0.0",\n    "dns": {\n        "domain": "\\u003c\\u0026\\u003e"\n    }\n}',
  );
  assertEquals(goJson("\u2028"), '"\\u2028"');
});

Deno.test("an answer of any version is read, and its own version counts before the configuration's", () => {
  const old = parseResult({
    cniVersion: "0.2.0",
    ip4: { ip: "10.0.0.2/24", routes: [{ dst: "0.0.0.0/0" }] },
    ip6: { ip: "FD00::2/64" },
  }, "1.0.0");
  assertEquals(old, {
    cniVersion: "0.2.0",
    ips: [{ address: "10.0.0.2/24" }, { address: "fd00::2/64" }],
    routes: [{ dst: "0.0.0.0/0" }],
  });
  assertEquals(parseResult({ cniVersion: 5, ips: [{ address: "::ffff:10.0.0.2/120" }] }, "1.0.0").ips, [{
    address: "10.0.0.2/24",
  }]);
  assertEquals(parseResult({}, "").cniVersion, "0.1.0");
  const error = assertThrows(() => parseResult({ cniVersion: "9.0.0" }, "1.0.0"), CniError);
  assertEquals(error.msg, 'unsupported CNI result version "9.0.0"');
});

Deno.test("prevResult has to be of the configuration's generation", () => {
  const table: [string, JsonObject, string][] = [
    [
      "1.0.0",
      { cniVersion: "0.4.0" },
      'could not parse prevResult: result type supports [1.0.0 1.1.0] but unmarshalled CNIVersion is "0.4.0"',
    ],
    [
      "0.4.0",
      { cniVersion: "1.0.0" },
      'could not parse prevResult: result type supports [0.3.0 0.3.1 0.4.0] but unmarshalled CNIVersion is "1.0.0"',
    ],
    [
      "0.2.0",
      { cniVersion: "1.0.0" },
      'could not parse prevResult: result type supports [ 0.1.0 0.2.0] but unmarshalled CNIVersion is "1.0.0"',
    ],
    [
      "1.0.0",
      { cniVersion: "" },
      'could not parse prevResult: result type supports [1.0.0 1.1.0] but unmarshalled CNIVersion is ""',
    ],
    ["7", {}, 'could not parse prevResult: unsupported CNI result version "7"'],
    ["1.0.0", { ips: [{ address: "10.0.0.2" }] }, "could not parse prevResult: invalid CIDR address: 10.0.0.2"],
    ["1.0.0", { ips: [{ address: "10.0.0.2/24", gateway: "x" }] }, "could not parse prevResult: invalid IP address: x"],
    ["1.0.0", { ips: [null] }, "could not parse prevResult: ips.0 is null"],
  ];
  for (const [version, source, expected] of table) {
    const error = assertThrows(() => parsePrevResult(source, version), CniError);
    assertEquals(error.msg, expected);
  }
  for (const version of ["1.0.0", "1.1.0"]) assertEquals(parsePrevResult({}, version), {});
  assertEquals(
    parsePrevResult({ CNIVersion: "1.1.0", IPS: [{ Address: "10.0.0.2/8", Interface: -1, gateway: "" }] }, "1.0.0"),
    {
      ips: [{ address: "10.0.0.2/8", interface: -1 }],
    },
  );
});

Deno.test("unknown keys of a result are dropped, host bits and odd indexes are kept", () => {
  const source = {
    cniVersion: "1.0.0",
    extra: 1,
    ips: [{ address: "10.0.0.2/24", interface: 9, other: true }],
    routes: [{ dst: "10.1.2.3/8", table: 0 }],
  };
  assertEquals(
    compact(parsePrevResult(source, "1.0.0"), "1.0.0"),
    '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24","interface":9}],"routes":[{"dst":"10.1.2.3/8","table":0}]}',
  );
});

Deno.test("versions compare as numbers, missing parts being zero", () => {
  assertEquals([atLeast("1.1", "1.1.0"), atLeast("0.10.0", "0.4.0"), atLeast("", "0.1.0"), atLeast("1.0.0", "1.1.0")], [
    true,
    true,
    true,
    false,
  ]);
});
