import { assertEquals, assertThrows } from "@std/assert";
import { GobError, GobReader, type GobValue, GobWriter, type Schema } from "../../plugins/dhcp/gob.ts";
import { hex } from "../../plugins/dhcp/lease.ts";

/** Messages that the reference's plugin and daemon sent, as they went over the wire. */
const REQUEST =
  "2e7f030101075265717565737401ff80000102010d536572766963654d6574686f64010c000103536571010600000012ff80010d444843502e416c6c6f6361746500";
const CMD_ARGS =
  "6cff8103010107436d644172677301ff82000107010b436f6e7461696e65724944010c0001054e65746e73010c00010649664e616d65010c00010441726773010c00010450617468010c00010d4e65746e734f76657272696465010c000109537464696e44617461010a000000";
const RESPONSE =
  "397f03010108526573706f6e736501ff80000103010d536572766963654d6574686f64010c00010353657101060001054572726f72010c000000";
const EMPTY = "0aff95030102ff9600000003ff9600";

const requestSchema: Schema = { struct: "Request", fields: [["ServiceMethod", "string"], ["Seq", "uint"]] };

function bytes(hex: string): Uint8Array {
  return Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

/** What is in a stream of messages whose lengths all fit into one byte. */
function read(stream: Uint8Array): GobValue[] {
  const reader = new GobReader();
  const values: GobValue[] = [];
  for (let at = 0; at < stream.length;) {
    const length = stream[at] ?? 0;
    const value = reader.message(stream.subarray(at + 1, at + 1 + length));
    if (value !== undefined) values.push(value);
    at += 1 + length;
  }
  return values;
}

Deno.test("gob writes what the reference writes", () => {
  assertEquals(hex(new GobWriter().message(requestSchema, { ServiceMethod: "DHCP.Allocate", Seq: 0 })), REQUEST);
});

Deno.test("gob announces a type once on a stream", () => {
  const writer = new GobWriter();
  writer.message(requestSchema, {});
  assertEquals(hex(writer.message(requestSchema, { Seq: 7 })), "05ff80020700");
});

Deno.test("gob reads what the reference writes", () => {
  assertEquals(read(bytes(REQUEST)), [{ ServiceMethod: "DHCP.Allocate" }]);
  assertEquals(read(bytes(EMPTY)), [{}]);
  // Seq 300 and an error, after a definition of three fields.
  assertEquals(read(bytes(`${RESPONSE}0cff8002fe012c010362616400`)), [{ Seq: 300, Error: "bad" }]);
  // ContainerID c, then StdinData {}, with five fields left out between.
  assertEquals(read(bytes(`${CMD_ARGS}0aff8201016306027b7d00`)), [
    { ContainerID: "c", StdinData: new TextEncoder().encode("{}") },
  ]);
});

Deno.test("gob decodes every value that it encodes", () => {
  const inner: Schema = { struct: "Inner", fields: [["Flag", "bool"], ["Data", "bytes"]] };
  const schema: Schema = {
    struct: "Outer",
    fields: [["Number", "int"], ["Count", "uint"], ["Names", { slice: "string" }], ["List", { slice: inner }], [
      "One",
      inner,
    ]],
  };
  const values: GobValue[] = [
    { One: {} },
    { Number: -1, One: {} },
    { Number: 63, Count: 127, One: { Flag: true } },
    { Number: -65, Count: 128, One: {} },
    { Number: 2 ** 31, Count: 2 ** 32, Names: ["a", "", "ü"], One: {} },
    {
      Number: -(2 ** 40),
      List: [{ Flag: true, Data: new Uint8Array([0, 255]) }, {}],
      One: { Data: new Uint8Array([1]) },
    },
  ];
  for (const value of values) assertEquals(read(new GobWriter().message(schema, value)), [value]);
  assertEquals(read(new GobWriter().message("int", -300)), [-300]);
  assertEquals(read(new GobWriter().message({ slice: "string" }, ["x", "y"])), [["x", "y"]]);
});

Deno.test("gob reader refuses what is no gob", () => {
  const list = hex(new GobWriter().message({ slice: "string" }, ["x"]));
  const broken: readonly (readonly [words: string, stream: string])[] = [
    ["gob: message ends too early", `${RESPONSE}02ff80`],
    ["gob: message ends too early", "03ff8000".slice(0, 4)],
    ["gob: 5 bytes announced, 1 there", `${RESPONSE}05ff80010544`],
    ["gob: type 75 was not announced", "04ff960000"],
    ["gob: Response has no field number 4", `${RESPONSE}05ff80050100`],
    // The list of one string, which claims to have 90.
    ["gob: 90 elements in 2 bytes", list.replace(/010178$/, "5a0178")],
    ["gob: number of more than 64 bits", "02f700"],
    ["gob: unknown kind of type 9", "047f090100"],
    ["gob: value without its mark", "02020100".slice(0, 6)],
  ];
  for (const [words, stream] of broken) {
    assertEquals(assertThrows(() => read(bytes(stream)), GobError).message, words);
  }
});
