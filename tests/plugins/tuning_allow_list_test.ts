import { assertEquals, assertThrows } from "@std/assert";
import { checkAllowed, fromRe2, readAllowList } from "../../plugins/tuning/allow_list.ts";
import { CniError } from "../../lib/cni/error.ts";

const matches: readonly [promise: string, line: string, yes: readonly string[], no: readonly string[]][] = [
  ["matches anywhere in a key", "ipv4", ["net.ipv4.ip_forward"], ["net.ipv6.x"]],
  ["is anchored when it says so", "^net\\.ipv4\\.conf\\.all\\.[a-z_]*$", ["net.ipv4.conf.all.rp_filter"], [
    "net.ipv4.conf.all.x.y",
    "xnet.ipv4.conf.all.a",
  ]],
  ["has alternatives", "^net\\.(core|unix)\\.", ["net.core.x", "net.unix.x"], ["net.ipv4.x"]],
  ["knows the absolute anchors", "\\Anet\\.a\\z", ["net.a"], ["net.ab", "xnet.a"]],
  ["knows flags in front", "(?i)^NET\\.A$", ["net.a"], ["net.b"]],
  ["knows quoted text", "^\\Qnet.a+\\E$", ["net.a+"], ["netxa+", "net.aa"]],
  ["knows classes by name", "^net\\.[[:alnum:]_]+$", ["net.Ab_9"], ["net.a-b"]],
  ["knows a bracket as the first of a class", "^[]a]+$", ["]a"], ["b"]],
  ["knows a negated class with a bracket", "^[^]a]$", ["b"], ["]", "a"]],
  ["knows a bracket inside of a class", "^[a[]+$", ["a[["], ["b"]],
  ["knows groups that do not capture, and named ones", "^(?:a|(?P<x>b))$", ["a", "b"], ["c"]],
  ["takes escaped punctuation for itself", "^net\\.a\\-b\\_c\\/d$", ["net.a-b_c/d"], ["net.a.b"]],
  ["is matched against slashes as they are written", "^net\\.", ["net.ipv4.x"], ["net/ipv4/x"]],
];

for (const [promise, line, yes, no] of matches) {
  Deno.test(`a line of the allow-list ${promise}`, () => {
    const pattern = fromRe2(line);
    assertEquals(yes.filter((key) => !pattern.test(key)), []);
    assertEquals(no.filter((key) => pattern.test(key)), []);
  });
}

const refused: readonly [line: string, msg: string][] = [
  ["(", "error parsing regexp: missing closing ): `(`"],
  ["a)", "error parsing regexp: unexpected ): `a)`"],
  ["[a", "error parsing regexp: missing closing ]: `[a`"],
  ["*", "error parsing regexp: missing argument to repetition operator: `*`"],
  ["a\\", "error parsing regexp: trailing backslash at end of expression: `a\\`"],
  ["net(?=x)", "error parsing regexp: invalid or unsupported Perl syntax: `net(?=x)`"],
  ["net(?!x)", "error parsing regexp: invalid or unsupported Perl syntax: `net(?!x)`"],
  ["(?<=x)net", "error parsing regexp: invalid or unsupported Perl syntax: `(?<=x)net`"],
  ["(a)\\1", "error parsing regexp: invalid escape sequence: `(a)\\1`"],
  ["\\pL", "error parsing regexp: invalid escape sequence: `\\pL`"],
  ["a(?i)b", "error parsing regexp: invalid or unsupported Perl syntax: `a(?i)b`"],
  ["(?U)a", "error parsing regexp: invalid or unsupported Perl syntax: `(?U)a`"],
  ["[[:nope:]]", "error parsing regexp: invalid character class range: `[[:nope:]]`"],
];

for (const [line, msg] of refused) {
  Deno.test(`the allow-list refuses the line ${line}`, () => {
    assertEquals(assertThrows(() => fromRe2(line), CniError).msg, msg);
  });
}

Deno.test("without an allow-list every setting is allowed", () => checkAllowed(["net.a"], undefined));

Deno.test("an empty allow-list allows nothing", () => {
  const error = assertThrows(() => checkAllowed(["net.a"], []), CniError);
  assertEquals(error.msg, "Sysctl net.a is not allowed. Only the following sysctls are allowed: []");
});

Deno.test("a refused setting is told with the whole list", () => {
  const error = assertThrows(() => checkAllowed(["net.a", "net.b"], ["^net\\.a$", "# net.b?"]), CniError);
  assertEquals(error.msg, "Sysctl net.b is not allowed. Only the following sysctls are allowed: [^net\\.a$ # net.b?]");
});

Deno.test("a bad line of the allow-list matters only when it is reached", () => {
  checkAllowed(["net.a"], ["net", "("]);
  assertThrows(() => checkAllowed(["other"], ["net", "("]), CniError, "missing closing )");
});

Deno.test("the allow-list is trimmed, and has no comments", async () => {
  const path = await Deno.makeTempFile();
  await Deno.writeTextFile(path, "  ^net\\.a$ \r\n\n\t\n#x\n");
  assertEquals(readAllowList(path), ["^net\\.a$", "#x"]);
  await Deno.remove(path);
  assertEquals(readAllowList(path), undefined);
});

Deno.test("an allow-list that cannot be read is an error", async () => {
  const path = await Deno.makeTempDir();
  assertThrows(() => readAllowList(path), CniError, `open ${path}: `);
  await Deno.remove(path);
});
