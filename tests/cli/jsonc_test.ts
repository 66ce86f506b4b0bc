import { assertEquals, assertThrows } from "@std/assert";
import { JsonError, parseJsonc, positionOf, valueOf } from "../../lib/cli/jsonc.ts";

Deno.test("JSON is read as JSON.parse reads it", () => {
  const texts = [
    '{"a":[1,-2.5e3,true,false,null,"x"],"b":{"c":{}},"d":[]}',
    " [ ] ",
    '"\\u00e9\\n\\"\\\\\\/\\b\\f\\r\\t\\ud83d\\ude00"',
    '{"a":1,"a":2}',
    '"日本"',
    "0",
    "1E+2",
  ];
  for (const text of texts) assertEquals(valueOf(parseJsonc(text).root), JSON.parse(text), text);
});

Deno.test("a key named __proto__ is a key like any other", () => {
  assertEquals(Object.keys(valueOf(parseJsonc('{"__proto__":{"x":1}}').root) as object), ["__proto__"]);
});

Deno.test("comments and last commas are read and reported", () => {
  const text = '// first\n{"a": 1, /* inner */ "b": [1, 2,],\n}\n';
  const { root, extras } = parseJsonc(text);
  assertEquals(valueOf(root), { a: 1, b: [1, 2] });
  assertEquals(
    extras.map(({ what, at }) => [what, positionOf(text, at).line, positionOf(text, at).column]),
    [["comment", 1, 1], ["comment", 2, 10], ["trailing comma", 2, 32], ["trailing comma", 2, 34]],
  );
  assertEquals(parseJsonc("\ufeff{}").extras.map(({ what }) => what), ["byte order mark"]);
  assertEquals(valueOf(parseJsonc('["/* no */ // comment"]').root), ["/* no */ // comment"]);
});

Deno.test("nodes know where they begin and end", () => {
  const text = '{\n  "näme": "x",\n  "list": [10, {"k": null}]\n}';
  const { root } = parseJsonc(text);
  const list = root.properties?.[1];
  assertEquals(text.slice(list?.value.start, list?.value.end), '[10, {"k": null}]');
  assertEquals(list?.at, text.indexOf('"list"'));
  assertEquals(positionOf(text, list?.at ?? 0), { line: 3, column: 3 });
  const emoji = '{"😀": 1}';
  assertEquals(positionOf(emoji, parseJsonc(emoji).root.properties?.[0]?.value.start ?? 0).column, 7);
});

const MISTAKES: readonly (readonly [text: string, line: number, column: number, message: string])[] = [
  ["", 1, 1, "the file is empty"],
  ["  // nothing\n", 1, 1, "the file is empty"],
  ['{"a": 1', 1, 8, "the file ends inside an object"],
  ['{"a": [1, 2', 1, 12, "the file ends inside a list"],
  ['{"a":', 1, 6, "the file ends in the middle of a value"],
  ['{"a": 1 "b": 2}', 1, 8, "a comma is missing"],
  ['{\n  "a": 1\n  "b": 2\n}', 2, 9, "a comma is missing"],
  ['{"a" 1}', 1, 6, '"1" after the key "a"'],
  ["{a: 1}", 1, 2, "the key a without quotes"],
  ["{'a': 1}", 1, 2, "a key in single quotes"],
  ["{\"a\": 'x'}", 1, 7, "a string in single quotes"],
  ['{"a": 10.0.0.1}', 1, 7, '"10.0.0.1" is not a number'],
  ['{"a": 010}', 1, 7, '"010" is not a number'],
  ['{"a": True}', 1, 7, '"True" is not a value'],
  ['{"a": bridge}', 1, 7, '"bridge" without quotes'],
  ['{"a": "x}\n', 1, 7, "a string that does not end on its line"],
  ['{"a": "\\x"}', 1, 8, '"\\x" is not a valid escape in a string'],
  ['{"a": 1,, "b": 2}', 1, 9, "a comma too many"],
  ["[1,,2]", 1, 4, "a comma too many"],
  ['{"a": [1}', 1, 9, '"}" where "]" belongs'],
  ['{"a": 1} {"b": 2}', 1, 10, '"{" after the end of the configuration'],
  ['{"a": 1 /* x', 1, 9, "a comment that does not end"],
  ['{"a":\t"\t"}', 1, 8, "a control character (U+0009) in a string"],
  ["[".repeat(300) + "]".repeat(300), 1, 202, "more than 200 levels deep"],
];

for (const [text, line, column, message] of MISTAKES) {
  Deno.test(`a mistake in JSON is found where it is: ${message} (${line}:${column})`, () => {
    const error = assertThrows(() => parseJsonc(text), JsonError);
    const at = positionOf(text, error.at);
    assertEquals([error.message, at.line, at.column], [message, line, column]);
  });
}

/** A text with some characters changed, the same in every run. */
function spoiled(text: string, seed: number): string {
  const signs = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "\\",
    "0",
    "-",
    ".",
    "e",
    "t",
    "\t",
    "\n",
    "\u00a0",
    "\u2028",
    "'",
    " ",
  ];
  let state = seed + 1;
  const below = (limit: number) => (state = (state * 48271) % 0x7fff_ffff) % limit;
  for (let count = 0; count <= below(3); count++) {
    const at = below(text.length + 1);
    text = text.slice(0, at) + (below(3) === 0 ? "" : signs[below(signs.length)]) + text.slice(at + below(2));
  }
  return text;
}

Deno.test("what JSON.parse reads is read alike; all else is refused, or has a comment or a last comma", () => {
  const whole = '{"a": [1, -2.5e3, true, null, "x\\u00e9\\\\"], "b": {"c": {}, "d": [[], ""]}}';
  let valid = 0;
  for (let seed = 0; seed < 6000; seed++) {
    const text = spoiled(whole, seed * 7919);
    let expected: unknown;
    try {
      expected = JSON.parse(text);
      valid++;
    } catch {
      let extras = 0;
      try {
        extras = parseJsonc(text).extras.length;
      } catch (error) {
        assertEquals(error instanceof JsonError, true, `${text}: ${error}`);
        continue;
      }
      assertEquals(extras > 0, true, text);
      continue;
    }
    assertEquals(valueOf(parseJsonc(text).root), expected, text);
  }
  assertEquals(valid > 100, true, `${valid} texts were JSON`);
});
