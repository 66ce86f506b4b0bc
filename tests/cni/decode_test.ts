import { assertEquals, assertThrows } from "@std/assert";
import {
  anyObject,
  decode,
  decodeLeniently,
  fields,
  flag,
  integer,
  list,
  lookup,
  maybeText,
  object,
  schemaOf,
  text,
  textMap,
} from "../../lib/cni/decode.ts";
import { CniError } from "../../lib/cni/error.ts";

const keys = {
  bridge: text("cni0", "name"),
  backend: maybeText("which", { oneOf: ["a", "b"] }),
  mtu: integer(0, "size", { min: 0 }),
  isGateway: flag(false, "gateway"),
  trunk: list(object({ id: integer(0, "one") }, "element"), "many"),
  sysctl: textMap("settings"),
  ipam: anyObject("others"),
};

Deno.test("an absent or null key has its default, and an empty string is a value", () => {
  const expected = {
    bridge: "cni0",
    backend: undefined,
    mtu: 0,
    isGateway: false,
    trunk: undefined,
    sysctl: undefined,
    ipam: undefined,
  };
  assertEquals(fields(keys, {}), expected);
  assertEquals(fields(keys, { bridge: null, mtu: null, trunk: null, unknown: 1 }), expected);
  assertEquals(fields(keys, { bridge: "", backend: "" }), { ...expected, bridge: "", backend: "" });
});

Deno.test("keys match in any case, and of several spellings the last one counts", () => {
  assertEquals(fields(keys, { BRIDGE: "a", MTU: 5, isgateway: true }).bridge, "a");
  assertEquals(fields(keys, JSON.parse('{"Bridge":"a","bridge":"b"}')).bridge, "b");
  assertEquals(fields(keys, JSON.parse('{"bridge":"b","BRIDGE":"a"}')).bridge, "a");
  assertEquals(lookup(JSON.parse('{"name":"x","NAME":"y"}'), "name"), "y");
});

Deno.test("no type is ever coerced; the message names key, value and what to write", () => {
  const table: [object, string, string][] = [
    [
      { mtu: "1500" },
      "json: cannot unmarshal string into Go struct field NetConf.mtu of type int",
      '"mtu" is "1500": write a whole number without quotes',
    ],
    [
      { mtu: 1500.5 },
      "json: cannot unmarshal number 1500.5 into Go struct field NetConf.mtu of type int",
      '"mtu" is 1500.5: write a whole number without quotes',
    ],
    [
      { isGateway: "true" },
      "json: cannot unmarshal string into Go struct field NetConf.isGateway of type bool",
      '"isGateway" is "true": write true or false without quotes',
    ],
    [
      { bridge: 5 },
      "json: cannot unmarshal number into Go struct field NetConf.bridge of type string",
      '"bridge" is 5: write a string in double quotes',
    ],
    [
      { trunk: {} },
      "json: cannot unmarshal object into Go struct field NetConf.trunk of type []",
      '"trunk" is {}: write a list in square brackets',
    ],
    [
      { trunk: [{ id: "x" }] },
      "json: cannot unmarshal string into Go struct field NetConf.trunk.0.id of type int",
      '"trunk.0.id" is "x": write a whole number without quotes',
    ],
    [{ trunk: [null] }, "trunk: element 0 is null", '"trunk.0" is null: remove it or give it a value'],
    [
      { sysctl: { a: 1 } },
      "json: cannot unmarshal number into Go struct field NetConf.sysctl.a of type string",
      '"sysctl.a" is 1: write a string in double quotes',
    ],
    [
      { ipam: [] },
      "json: cannot unmarshal array into Go struct field NetConf.ipam of type map[string]interface {}",
      '"ipam" is []: write an object in braces',
    ],
  ];
  for (const [source, msg, details] of table) {
    const error = assertThrows(
      () => decode(keys, source as Record<string, unknown>, "failed to load netconf"),
      CniError,
    );
    assertEquals([error.code, error.msg, error.details], [999, `failed to load netconf: ${msg}`, details]);
  }
});

Deno.test("DEL reads what can be read and tells of the rest", () => {
  const notes: string[] = [];
  const conf = decodeLeniently(keys, { bridge: "br1", mtu: "x", isGateway: true }, (note) => notes.push(note));
  assertEquals([conf.bridge, conf.mtu, conf.isGateway, notes.length], ["br1", 0, true, 1]);
});

Deno.test("the schema comes from the same table", () => {
  const schema = schemaOf(keys) as { properties: Record<string, { type: string; default?: unknown; enum?: unknown }> };
  assertEquals(Object.keys(schema.properties), Object.keys(keys));
  assertEquals(schema.properties["bridge"]?.default, "cni0");
  assertEquals(schema.properties["backend"]?.enum, ["a", "b"]);
});
