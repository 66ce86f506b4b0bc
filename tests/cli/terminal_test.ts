import { assert, assertEquals } from "@std/assert";
import { cut, hanging, natural, painter, sections, table, terminalWidth, widthOf } from "../../lib/cli/terminal.ts";

function withEnv(variables: Record<string, string>, test: () => void): void {
  const names = ["NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "TERM", "COLUMNS"];
  const before = names.map((name) => [name, Deno.env.get(name)] as const);
  for (const name of names) Deno.env.delete(name);
  for (const [name, value] of Object.entries(variables)) Deno.env.set(name, value);
  try {
    test();
  } finally {
    for (const [name, value] of before) value === undefined ? Deno.env.delete(name) : Deno.env.set(name, value);
  }
}

const rows = [
  ["4f1c2a9e8b7d", "eth0", "10.88.0.2/24 fd00::2/64", "/run/netns/a-rather-long-name"],
  ["web", "net1", "10.88.0.31/24", "/run/netns/b"],
];

Deno.test("a table fits the width it is given: the widest columns give first, and say that they were cut", () =>
  withEnv({}, () => {
    const whole = table(["CONTAINER", "IF", "ADDRESS", "NAMESPACE"], rows);
    assert(!whole.includes("…"));
    for (const width of [80, 60, 40]) {
      const lines = table(["CONTAINER", "IF", "ADDRESS", "NAMESPACE"], rows, { width, indent: "  " }).trimEnd().split(
        "\n",
      );
      assertEquals(lines.length, 3);
      for (const line of lines) assert(widthOf(line) <= width, `${width}: ${line}`);
      assert(lines[2]?.startsWith("  web "), "what is short stays whole");
    }
    assertEquals(table(["CONTAINER", "IF", "ADDRESS", "NAMESPACE"], rows, { width: 60 }).includes("…"), true);
  }));

Deno.test("a table keeps what it cannot cut: no column is narrower than six", () =>
  withEnv({}, () => {
    const lines = table([], rows, { width: 10 }).trimEnd().split("\n");
    assertEquals(lines, ["4f1c2…  eth0  10.88…  /run/…", "web     net1  10.88…  /run/…"]);
  }));

Deno.test("colours are kept where a cell is cut", () =>
  withEnv({ FORCE_COLOR: "1" }, () => {
    const paint = painter({ isTerminal: () => false });
    const [line = ""] = table([], [[paint("red", "a long cell in red"), "x"]], { width: 12 }).split("\n");
    assertEquals(widthOf(line), 12);
    assert(line.includes("[31m") && line.includes("[0m"));
  }));

Deno.test("colours: on a terminal, where they are asked for, and never with NO_COLOR", () => {
  const painted = (isTerminal: boolean) => painter({ isTerminal: () => isTerminal })("red", "x") !== "x";
  const cases: [Record<string, string>, pipe: boolean, terminal: boolean][] = [
    [{ TERM: "xterm" }, false, true],
    [{ TERM: "dumb" }, false, false],
    [{ TERM: "dumb", FORCE_COLOR: "1" }, true, true],
    [{ CLICOLOR_FORCE: "1" }, true, true],
    [{ CLICOLOR_FORCE: "0" }, false, true],
    [{ FORCE_COLOR: "1", NO_COLOR: "1" }, false, false],
  ];
  for (const [env, pipe, terminal] of cases) {
    withEnv(env, () => assertEquals([painted(false), painted(true)], [pipe, terminal], JSON.stringify(env)));
  }
});

Deno.test("COLUMNS says how wide a table may be", () => {
  withEnv({ COLUMNS: "60" }, () => assertEquals(terminalWidth(), 60));
  withEnv({ COLUMNS: "wide" }, () => assert(terminalWidth() !== 0));
});

Deno.test("names are in the order in which people count", () => {
  assertEquals(["pod10", "pod2", "pod1"].sort(natural), ["pod1", "pod2", "pod10"]);
});

Deno.test("a narrow table does without columns before it cuts names, and cuts the name of a pod in its middle", () =>
  withEnv({}, () => {
    const titles = ["CONTAINER", "ADDRESS", "NAMESPACE", "AGE"];
    const pods = [["kube-system/coredns-76f75df574-a1b2c", "10.88.0.2/24", "/run/netns/cni-0a1b2c3d-4e5f", "3 h"]];
    const at = (width: number) => table(titles, pods, { width, dispensable: ["NAMESPACE", "AGE"] }).split("\n");
    assertEquals(at(100)[0], "CONTAINER                             ADDRESS       NAMESPACE                     AGE");
    assertEquals(at(60)[0]?.split(/ +/), ["CONTAINER", "ADDRESS", "AGE"]);
    assertEquals(at(60)[1], "kube-system/coredns-76f75df574-a1b2c  10.88.0.2/24  3 h");
    assertEquals(at(40)[1], "kube-system/…75df574-a1b2c  10.88.0.2/24");
    assertEquals(table(titles, pods, { width: 60, headings: false, dispensable: ["NAMESPACE"] }).split("\n").length, 2);
  }));

Deno.test("text that does not fit goes on below its first word", () => {
  assertEquals(hanging("! ", "one two three four", 14), ["! one two", "  three four"]);
  assertEquals(hanging("! ", "  one two three four", 16), ["!   one two", "    three four"]);
  withEnv({ COLUMNS: "24" }, () =>
    assertEquals(
      sections([["node", ["healthy"]], ["none", []], ["problems", ["! many things", "  the fix"]]]),
      "node      healthy\nproblems  ! many things\n            the fix\n",
    ));
});

Deno.test("a line is cut outside of its colours", () =>
  withEnv({ FORCE_COLOR: "1" }, () => {
    const paint = painter({ isTerminal: () => false });
    const line = cut(`${paint("bold", "eth0")} of ${paint("red", "a long name")}`, 12);
    assertEquals(widthOf(line), 12);
    assert(line.endsWith(`…${paint("red", "x").split("x")[1]}`), JSON.stringify(line));
    assertEquals(cut("short", 12), "short");
  }));
