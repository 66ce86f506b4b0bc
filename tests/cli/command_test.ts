import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  CliError,
  helpText,
  nearest,
  type OperatorCommand,
  parseCall,
  STATUSES,
  usageLine,
} from "../../lib/cli/command.ts";
import { COMMANDS, findCommand } from "../../lib/cli/commands.ts";
import { distance } from "../../lib/net/similar.ts";
import type { Invocation } from "../../lib/cli/mod.ts";

const invocation: Invocation = { called: "cnibox", args: [], version: "0", names: [], load: () => undefined };

const command: OperatorCommand = {
  name: "try",
  group: "run",
  summary: "try things",
  positional: [
    { name: "NETWORK", about: "a network", unless: "conf" },
    { name: "NETNS", about: "a namespace" },
    { name: "WORD", about: "a word", optional: true, oneOf: ["red", "green"] },
  ],
  flags: [
    { name: "conf", value: "FILE", about: "a file" },
    { name: "publish", short: "p", value: "PORT", many: true, about: "ports" },
    { name: "json", about: "JSON" },
    { name: "format", value: "FORMAT", oneOf: ["tree", "dot"], about: "how" },
  ],
  examples: [["why", "cnibox try a b"]],
  run: () => Promise.resolve(0),
};

const parse = (...args: string[]) => parseCall(command, args, invocation);
const refused = (args: string[], message: string, hint?: string) => {
  const error = assertThrows(() => parse(...args), CliError);
  assertEquals([error.status, error.message], [64, message]);
  if (hint) assert(error.advice.includes(hint), error.advice.join("\n"));
};

Deno.test("arguments are given by name, flags by kind", () => {
  const call = parse("net", "-p", "1:1", "ns", "--publish=2:2", "--json");
  assertEquals([call.arg("NETWORK"), call.arg("NETNS"), call.arg("WORD")], ["net", "ns", undefined]);
  assertEquals([call.values("publish"), call.is("json"), call.value("format")], [["1:1", "2:2"], true, undefined]);
});

Deno.test("words that look like numbers stay words", () => {
  assertEquals(parse("1", "0x10", "--format", "dot").args, ["1", "0x10"]);
});

Deno.test("an argument that a flag stands for may be left out", () => {
  const call = parse("--conf", "x", "ns");
  assertEquals([call.arg("NETWORK"), call.arg("NETNS")], [undefined, "ns"]);
  const both = parse("--conf", "x", "net", "ns");
  assertEquals([both.arg("NETWORK"), both.arg("NETNS")], ["net", "ns"]);
});

Deno.test("wrong usage says what is wrong and what is right", () => {
  refused([], "NETWORK and NETNS are missing", "usage: cnibox try [FLAGS] NETWORK NETNS [WORD]");
  refused(["a"], "NETNS is missing");
  refused(["a", "b", "c"], 'WORD "c" is none of red, green');
  refused(["a", "b", "gren"], 'WORD "gren" is none of red, green', "did you mean green?");
  refused(["a", "b", "red", "x", "y"], 'too many arguments: "x" "y"');
  refused(["a", "b", "--jsn"], "unknown flag --jsn", "did you mean --json?");
  refused(["a", "b", "-x"], "unknown flag -x");
  refused(["a", "b", "--conf"], "--conf needs a value: --conf FILE");
  refused(["a", "b", "-p"], "--publish needs a value: --publish PORT");
  refused(["a", "b", "--json=yes"], "--json takes no value");
  refused(["a", "b", "--conf", "x", "--conf", "y"], "--conf is given 2 times");
  refused(["a", "b", "--format", "png"], '--format "png" is none of tree, dot');
});

Deno.test("help needs no arguments", () => {
  assertEquals(parse("--help").is("help"), true);
  assertEquals(parse("-h", "--conf", "x").is("help"), true);
});

Deno.test("a command line of its own comes after two dashes, untouched", () => {
  const runner: OperatorCommand = {
    ...command,
    positional: [{ name: "NETWORK", about: "" }],
    rest: { name: "COMMAND", about: "" },
  };
  const call = parseCall(runner, ["net", "--json", "--", "ls", "-p", "--", "x"], invocation);
  assertEquals([call.arg("NETWORK"), call.rest], ["net", ["ls", "-p", "--", "x"]]);
  const error = assertThrows(() => parseCall(runner, ["net"], invocation), CliError);
  assertEquals(error.message, "COMMAND is missing: it comes after --");
});

Deno.test("distances count insertions, removals, replacements and swaps", () => {
  assertEquals(
    [["", "abc"], ["abc", "abc"], ["abc", "acb"], ["ipMasquerade", "ipMasq"], ["kitten", "sitting"]].map((
      [a = "", b = ""],
    ) => distance(a, b)),
    [3, 0, 1, 6, 3],
  );
});

Deno.test("the nearest word is what was meant, or nothing", () => {
  const keys = ["ipMasq", "ipMasqBackend", "isGateway", "isDefaultGateway", "mtu", "bridge", "rangeStart"];
  const table: [string, string | undefined][] = [
    ["ipMask", "ipMasq"],
    ["isGatway", "isGateway"],
    ["range_start", "rangeStart"],
    ["startRange", "rangeStart"],
    ["MTU", "mtu"],
    ["isDefaultGatway", "isDefaultGateway"],
    ["zzz", undefined],
    ["x", undefined],
  ];
  for (const [given, wanted] of table) assertEquals(nearest(given, keys), wanted, given);
});

Deno.test("every command has help with an example, and its arguments can be told apart", () => {
  for (const one of COMMANDS.filter(({ hidden }) => !hidden)) {
    const help = helpText(one);
    assert(one.examples.length > 0, one.name);
    assert(one.examples.every(([, line]) => line.includes("cnibox ")), one.name);
    assert(help.includes(usageLine(one)) && help.includes("exit status:"), one.name);
    assert(help.replaceAll("\n", " ").includes(one.summary), one.name);
    assert(help.split("\n").every((line) => line.length <= 120), `${one.name}: a line is too long`);
    const narrow = helpText(one, 60).split("\n").filter((line) => !/^(usage:| +(# |\S*cnibox ))/.test(line));
    assertEquals(narrow.filter((line) => line.length > 60 && line.trim().includes(" ")), [], one.name);
    assert(!one.summary.endsWith("."), one.name);
    const names = one.flags.flatMap(({ name, short }) => short ? [name, short] : [name]);
    assertEquals(new Set(names).size, names.length, one.name);
    const many = one.positional.findIndex((each) => each.many);
    assert(many < 0 || many === one.positional.length - 1, one.name);
  }
  assertEquals(new Set(COMMANDS.map(({ name }) => name)).size, COMMANDS.length);
});

Deno.test("every command has JSON for scripts, but for those whose output is a format of its own", () => {
  const without = COMMANDS.filter(({ flags }) => !flags.some(({ name }) => name === "json")).map(({ name }) => name);
  // `run` has its command's output, `graph` a choice of formats, `report` an archive; `schema` is JSON, and so are
  // configurations; `manifest` is YAML.
  assertEquals(without, [
    "run",
    "fold",
    "unfold",
    "schema",
    "report",
    "graph",
    "manifest",
    "man",
    "completion",
    "complete",
  ]);
});

Deno.test("help tells every exit status once", () => {
  for (const command of COMMANDS) {
    const text = helpText(command);
    const told = text.slice(text.indexOf("exit status:")).matchAll(/^ {2}(\d+) /gm);
    const numbers = [...told].map(([, number]) => Number(number));
    assertEquals(numbers, [...new Set(numbers)].sort((a, b) => a - b), command.name);
    for (const [number] of [...STATUSES, ...(command.statuses ?? [])]) assert(numbers.includes(number), command.name);
  }
});

Deno.test("the words of a command line lead to its command", () => {
  assertEquals(findCommand(["add", "x"])?.command.name, "add");
  assertEquals(findCommand(["add", "x"])?.args, ["x"]);
  assertEquals(findCommand(["nothing"]), undefined);
});
