import { assert, assertEquals } from "@std/assert";
import { fields, isObject, NumberText } from "../../lib/cni/decode.ts";
import { readExactly } from "../../lib/cni/exact_json.ts";
import { isOrdinary } from "../../lib/cni/ordinary_json.ts";

/** What Go's decoder makes of it, run with the reference's plugins; see tests/e2e/configuration_test.ts. */
const twice: readonly [promise: string, json: string, value: unknown, where: string[]][] = [
  ["the later of two plain values counts", '{"a": 1, "b": 2, "a": "3"}', { b: 2, a: "3" }, ["a"]],
  ["a key is known by its meaning, not its spelling", '{"a": 1, "\\u0061": 3}', { a: 3 }, ["a"]],
  ["objects are merged", '{"a": {"b": 1, "c": 2}, "a": {"c": 3}}', { a: { b: 1, c: 3 } }, ["a"]],
  ["objects further down are merged", '{"a": {"b": {"c": 1}}, "a": {"b": {"d": 2}}}', { a: { b: { c: 1, d: 2 } } }, [
    "a",
  ]],
  ["an empty object takes nothing off", '{"ipam": {"type": "x"}, "ipam": {}}', { ipam: { type: "x" } }, ["ipam"]],
  ["null leaves an object", '{"ipam": {"type": "x"}, "ipam": null}', { ipam: { type: "x" } }, ["ipam"]],
  ["null leaves a plain value", '{"a": "x", "a": null}', { a: "x" }, ["a"]],
  ["null empties a list", '{"a": [1], "a": null}', { a: null }, ["a"]],
  ["elements of lists are merged", '{"a": [{"b": 1}, {"b": 2}], "a": [{"c": 3}]}', { a: [{ b: 1, c: 3 }] }, ["a"]],
  ["lists of lists too", '{"a": [[{"b": 1}]], "a": [[{"c": 3}]]}', { a: [[{ b: 1, c: 3 }]] }, ["a"]],
  ["routes are not", '{"routes": [{"b": 1}], "routes": [{"c": 3}]}', { routes: [{ c: 3 }] }, ["routes"]],
  [
    "a map's members are replaced",
    '{"prevResult": {"dns": {"a": 1}, "ips": [{"b": 1}]}, "prevResult": {"dns": {"b": 2}}}',
    { prevResult: { dns: { b: 2 }, ips: [{ b: 1 }] } },
    ["prevResult"],
  ],
  ["a place inside a list is told", '{"a": [{}, {"b": 1, "b": 2}]}', { a: [{}, { b: 2 }] }, ["a.1.b"]],
  ["three values are read in turn", '{"a": {"b": 1}, "a": {"c": 2}, "a": {"b": 3}}', { a: { c: 2, b: 3 } }, ["a", "a"]],
  [
    "texts are no keys",
    '{"x": "{\\"a\\": {", "a\\\\": "1", "a": "}", "a": ","}',
    { x: '{"a": {', "a\\": "1", a: "," },
    ["a"],
  ],
];

for (const [promise, json, value, where] of twice) {
  Deno.test(`of a key that is written twice ${promise}`, () => {
    const read = readExactly(json);
    assertEquals([read.value, read.repeated.map((path) => path.join("."))], [value, where]);
    assert(!isOrdinary(json, JSON.parse(json)));
  });
}

Deno.test("a later spelling of a key is merged into an earlier one", () => {
  const keys = { ipam: { absent: undefined, about: "", schema: {}, read: (value: unknown) => value } };
  const read = (json: string) => fields(keys, JSON.parse(json)).ipam;
  assertEquals(read('{"ipam": {"a": 1, "b": 2}, "IPAM": {"b": 3}}'), { a: 1, b: 3 });
  assertEquals(read('{"ipam": {"a": 1}, "Ipam": null}'), { a: 1 });
  assertEquals(read('{"ipam": [1], "Ipam": null}'), undefined);
});

Deno.test("numbers that Go takes for no integer keep their text, and so do those that are too large", () => {
  for (const text of ["1500.0", "15e2", "15E2", "1e0", "-0.0", "1e400", "99999999999999999999", "9007199254740993"]) {
    const json = `{"mtu": ${text}, "list": [1, ${text}]}`;
    assertEquals(readExactly(json).value, { mtu: new NumberText(text), list: [1, new NumberText(text)] });
    assert(!isOrdinary(json, JSON.parse(json)), text);
    assert(!isObject(new NumberText(text)));
  }
  const inMap = '{"prevResult": {"interfaces": [{"mtu": 15e2}]}}';
  assertEquals(readExactly(inMap).value, JSON.parse(inMap));
});

Deno.test("configurations as they are written every day are ordinary, and read exactly they are the same", () => {
  const plain = [
    "{}",
    "null",
    '"a"',
    '{"cniVersion": "1.0.0", "name": "n", "ipam": {"ranges": [[{"subnet": "10.1.0.0/16"}]], "routes": [{"dst": "::/0"}]}}',
    '{"mtu": 1500, "vlan": -0, "list": [1, -2, 30], "deep": [[[{"a": [{"b": {}}]}]]], "x" :\n null, "y"\t: true}',
    '{"a": "b\\": c", "b": "b,1.5", "c": ":", ":": "x:1e5", "d": ["[2.0", "12345678901234567"]}',
    '{"__proto__": {"a": 1}, "constructor": 2, "": 3}',
  ];
  for (const json of plain) {
    assert(isOrdinary(json, JSON.parse(json)), json);
    const { value, repeated } = readExactly(json);
    assertEquals([JSON.stringify(value), repeated], [JSON.stringify(JSON.parse(json)), []]);
  }
});
