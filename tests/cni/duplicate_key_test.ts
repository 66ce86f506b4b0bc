import { assertEquals } from "@std/assert";
import { duplicateKey } from "../../lib/cni/duplicate_key.ts";

const cases: readonly [promise: string, json: string, found: string | undefined][] = [
  ["finds a key that is written twice", '{"sysctl": {"a": "1", "b": "2", "a": "3"}}', "a"],
  ["finds it under a name in another case", '{"SysCtl": {"a": "1", "a": "3"}}', "a"],
  ["knows a key by its meaning, not its spelling", '{"sysctl": {"a": "1", "\\u0061": "3"}}', "a"],
  ["takes values for values", '{"sysctl": {"a": "a", "b": "a", "c": "b"}}', undefined],
  [
    "is not misled by quotes and braces in strings",
    '{"x": "{\\"sysctl\\": {", "sysctl": {"a\\\\": "1", "a": "}"}}',
    undefined,
  ],
  ["passes other objects over", '{"a": {"b": 1, "b": 2}, "sysctl": {"b": "1"}}', undefined],
  ["passes objects further down over", '{"args": {"sysctl": {"a": "1", "a": "2"}}}', undefined],
  ["looks at each of two objects by itself", '{"sysctl": {"a": "1"}, "SYSCTL": {"a": "2"}}', undefined],
  ["passes a list over", '{"sysctl": ["a", "a"]}', undefined],
  ["passes null over", '{"sysctl": null, "a": 1}', undefined],
  ["finds nothing in an empty object", '{"sysctl": {}}', undefined],
];

for (const [promise, json, found] of cases) {
  Deno.test(`duplicateKey ${promise}`, () => assertEquals(duplicateKey(json, "sysctl"), found));
}
