import { assertEquals, assertThrows } from "@std/assert";
import { parseArgs } from "../../lib/cni/args.ts";
import { CniError } from "../../lib/cni/error.ts";

Deno.test("CNI_ARGS is read strictly", () => {
  const known = ["MAC", "IP"] as const;
  const good: [string, object][] = [
    ["", {}],
    ["MAC=1", { MAC: "1" }],
    ["MAC=", { MAC: "" }],
    ["IP=a;MAC=b", { IP: "a", MAC: "b" }],
    ["MAC=a;MAC=b", { MAC: "b" }],
    ["FOO=1;IgnoreUnknown=1;MAC=b", { MAC: "b" }],
    ["IgnoreUnknown=TRUE;FOO=1", {}],
  ];
  for (const [args, expected] of good) assertEquals(parseArgs(args, known), expected, args);
  const bad: [string, string][] = [
    ["FOO=1;BAR=2", 'ARGS: unknown args ["FOO=1" "BAR=2"]'],
    ["mac=1", 'ARGS: unknown args ["mac=1"]'],
    ["FOO=1;IgnoreUnknown=0", 'ARGS: unknown args ["FOO=1"]'],
    ["ignoreunknown=1", 'ARGS: unknown args ["ignoreunknown=1"]'],
    ["MAC=1;", 'ARGS: invalid pair ""'],
    ["MAC=a=b", 'ARGS: invalid pair "MAC=a=b"'],
    ["none", 'ARGS: invalid pair "none"'],
    [
      "IgnoreUnknown=maybe",
      'ARGS: error parsing value of pair "IgnoreUnknown=maybe": boolean unmarshal error: invalid input maybe',
    ],
  ];
  for (const [args, msg] of bad) assertEquals(assertThrows(() => parseArgs(args, known), CniError).msg, msg, args);
});
