import { assertEquals, assertStringIncludes } from "@std/assert";
import { CniError } from "../../lib/cni/error.ts";
import { type ContainerCall, nothing, type Plugin } from "../../lib/cni/plugin.ts";
import { aboutText, callPlugin, errorText, isName } from "../../lib/cni/skel.ts";
import { since } from "../../lib/cni/types.ts";

/** A plugin that does nothing, and says what it was asked. */
function fake(over: Partial<Plugin> = {}): Plugin {
  return {
    name: "fake",
    kind: "main",
    about: "for tests",
    versions: since("0.1.0"),
    needs: [],
    keys: {},
    add: () => Promise.resolve({ ips: [{ address: "10.0.0.2/24" }] }),
    del: nothing,
    check: nothing,
    gc: nothing,
    status: nothing,
    ...over,
  };
}

const FULL = {
  CNI_COMMAND: "ADD",
  CNI_CONTAINERID: "c1",
  CNI_NETNS: "/run/netns/nowhere",
  CNI_IFNAME: "eth0",
  CNI_PATH: "/opt/cni/bin",
};
const CONF = '{"cniVersion":"1.1.0","name":"n1","type":"fake"}';

/** Runs one call; gives "ok" or the error as `code msg; details`. */
async function outcome(
  env: Record<string, string>,
  stdin: string | Uint8Array = CONF,
  plugin = fake(),
): Promise<string> {
  try {
    const bytes = typeof stdin === "string" ? new TextEncoder().encode(stdin) : stdin;
    await callPlugin(plugin, { env, stdin: () => bytes, registry: () => undefined, warn: () => {} });
    return "ok";
  } catch (error) {
    const { code, message } = error as CniError;
    return `${code} ${message}`;
  }
}

const without = (...names: string[]) =>
  Object.fromEntries(Object.entries(FULL).filter(([name]) => !names.includes(name)));

Deno.test("the environment is checked in the order of the specification's table", async () => {
  const missing = (list: string) => `4 required env variables [${list}] missing`;
  const table: [string, Record<string, string>, string][] = [
    ["nothing set but the command", { CNI_COMMAND: "ADD" }, missing("CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH")],
    ["DEL needs no namespace", { CNI_COMMAND: "DEL" }, missing("CNI_CONTAINERID,CNI_IFNAME,CNI_PATH")],
    ["GC needs the path only", { CNI_COMMAND: "GC" }, missing("CNI_PATH")],
    ["STATUS needs the path only", { CNI_COMMAND: "STATUS" }, missing("CNI_PATH")],
    ["an empty value is missing", { ...FULL, CNI_IFNAME: "" }, missing("CNI_IFNAME")],
    [
      "an invalid ID comes before missing names",
      { ...without("CNI_NETNS", "CNI_PATH"), CNI_CONTAINERID: "a/b" },
      "4 invalid characters in containerID; a/b",
    ],
    ["GC does not look at ID and interface", {
      CNI_COMMAND: "GC",
      CNI_PATH: "/x",
      CNI_CONTAINERID: "a/b",
      CNI_IFNAME: "a/b",
    }, "ok"],
  ];
  for (const [what, env, expected] of table) assertEquals(await outcome(env), expected, what);
});

Deno.test("container IDs and network names are letters, digits, dots, dashes and underscores", () => {
  for (const good of ["a", "a.b_c-d", "0", "x".repeat(300)]) assertEquals(isName(good), true, good);
  for (const bad of ["", "_a", "-a", ".a", "a/b", "a b", "a\n", "../x", 'a"b', "a\0"]) {
    assertEquals(isName(bad), false, JSON.stringify(bad));
  }
});

const UNMADE = "interface name contains characters that no link can be made with";
const UNMADE_WHY = "the kernel takes % for a pattern, and iproute2 cannot say control characters";

Deno.test("interface names are those that a link can have", async () => {
  const table: [string, string][] = [
    ["abcdefghijklmno", "ok"],
    ["abcdefghijklmnop", "4 interface name is too long; interface name should be less than 16 characters"],
    ["éééééééé", "4 interface name is too long; interface name should be less than 16 characters"],
    [".", "4 interface name is . or .."],
    ["..", "4 interface name is . or .."],
    ["a/b", "4 interface name contains / or : or whitespace characters"],
    ["a:b", "4 interface name contains / or : or whitespace characters"],
    ["a b", "4 interface name contains / or : or whitespace characters"],
    ["a\u00a0b", "4 interface name contains / or : or whitespace characters"],
    ["a\u0085b", "4 interface name contains / or : or whitespace characters"],
    ["-batch", "ok"],
    [`a"b`, "ok"],
    [`#'\\`, "ok"],
    ["veth%d", `4 ${UNMADE}; CNI_IFNAME is "veth%d": ${UNMADE_WHY}`],
    ["a\x00b", `4 ${UNMADE}; CNI_IFNAME is "a\\x00b": ${UNMADE_WHY}`],
  ];
  for (const [name, expected] of table) {
    assertEquals(await outcome({ ...FULL, CNI_IFNAME: name }), expected, JSON.stringify(name));
    // Whatever an interface is called that somebody made, it can be deleted.
    const del = await outcome({ ...FULL, CNI_COMMAND: "DEL", CNI_IFNAME: name });
    assertEquals(del, expected.includes(UNMADE) ? "ok" : expected, `DEL ${JSON.stringify(name)}`);
  }
});

Deno.test("standard input has to be one JSON object with a network name", async () => {
  const table: [string, RegExp][] = [
    ["", /^6 error unmarshall network config: unexpected end of JSON input/],
    ['{"name":', /^6 error unmarshall network config: unexpected end of JSON input/],
    ["[]", /^6 error unmarshall network config: /],
    ['"x"', /^6 error unmarshall network config: /],
    ["null", /^7 missing network name/],
    ["{}", /^7 missing network name/],
    ['{"name":""}', /^7 missing network name/],
    ['{"name":null}', /^7 missing network name/],
    ['{"name":5}', /^6 error unmarshall network config: .*; "name" is 5/],
    ['{"name":"a"} x', /^6 error unmarshall network config: /],
    ['{"name":"a/b"}', /^7 invalid characters found in network name; a\/b$/],
    ['{"NAME":"a","CNIVersion":"1.0.0"}', /^ok$/],
    ['{"name":"a/b","NAME":"good"}', /^ok$/],
    ['{"NAME":"good","name":"a/b"}', /^7 invalid characters/],
    ["\ufeff{}", /^6 error unmarshall network config: /],
  ];
  for (const [stdin, expected] of table) {
    const got = await outcome(FULL, stdin);
    assertEquals(expected.test(got), true, `${JSON.stringify(stdin)} gave ${got}`);
  }
});

Deno.test("invalid UTF-8 is read as replacement characters, not refused", async () => {
  const bytes = new Uint8Array([
    ...new TextEncoder().encode('{"name":"n","x":"'),
    0xff,
    0xfe,
    ...new TextEncoder().encode('"}'),
  ]);
  assertEquals(await outcome(FULL, bytes), "ok");
});

Deno.test("a failing standard input is an I/O error", async () => {
  const stdin = () => {
    throw new Error("is a directory");
  };
  try {
    await callPlugin(fake(), { env: FULL, stdin, registry: () => undefined, warn: () => {} });
  } catch (error) {
    assertEquals((error as CniError).code, 5);
    assertEquals((error as CniError).msg, "error reading from stdin: is a directory");
  }
});

Deno.test("an unknown command is refused after the configuration was read", async () => {
  assertEquals(await outcome({ ...FULL, CNI_COMMAND: "add" }), "4 unknown CNI_COMMAND: add");
  assertStringIncludes(await outcome({ ...FULL, CNI_COMMAND: "add" }, ""), "6 error unmarshall network config");
});

Deno.test("versions are matched and gated as in the reference", async () => {
  const list = 'plugin supports ["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]';
  const table: [string, string, string][] = [
    ["ADD", '""', "ok"],
    ["ADD", "null", "ok"],
    ["ADD", '"1.0"', `1 incompatible CNI versions; config is "1.0", ${list}`],
    ["ADD", '"9.9.9"', `1 incompatible CNI versions; config is "9.9.9", ${list}`],
    ["ADD", '"abc"', `1 incompatible CNI versions; config is "abc", ${list}`],
    ["CHECK", '"0.3.1"', '1 config version does not allow CHECK; "cniVersion" is "0.3.1"; CHECK needs 0.4.0 or later'],
    ["CHECK", '"0.4.0"', "ok"],
    ["CHECK", '"1.2.0"', "1 plugin version does not allow CHECK"],
    ["CHECK", '"abc"', '6 failed to convert major version part "abc": strconv.Atoi: parsing "abc": invalid syntax'],
    [
      "STATUS",
      '"1.0.0"',
      '1 config version does not allow STATUS; "cniVersion" is "1.0.0"; STATUS needs 1.1.0 or later',
    ],
    ["STATUS", '"1.1"', `1 incompatible CNI versions; config is "1.1", ${list}`],
    ["STATUS", '"1.1.0.0"', '6 invalid version "1.1.0.0": too many parts'],
    ["GC", '"1.1.0"', "ok"],
    ["GC", '"1.0.0"', '1 config version does not allow GC; "cniVersion" is "1.0.0"; GC needs 1.1.0 or later'],
  ];
  for (const [command, version, expected] of table) {
    assertEquals(
      await outcome({ ...FULL, CNI_COMMAND: command }, `{"name":"n","cniVersion":${version}}`),
      expected,
      `${command} ${version}`,
    );
  }
  const wrong = await outcome(FULL, '{"name":"n","cniVersion":1}');
  assertEquals(/^6 decoding version from network config: .*"cniVersion" is 1/.test(wrong), true, wrong);
});

Deno.test("ADD and CHECK refuse the plugin's own namespace before anything is touched", async () => {
  let called = 0;
  const plugin = fake({
    add: () => Promise.resolve({ ips: [{ address: `10.0.0.${++called}/8` }] }),
    check: () => Promise.resolve(void called++),
  });
  const own = { ...FULL, CNI_NETNS: "/proc/self/ns/net" };
  for (const command of ["ADD", "CHECK"]) {
    assertStringIncludes(
      await outcome({ ...own, CNI_COMMAND: command }, CONF, plugin),
      "8 plugin's netns and netns from CNI_NETNS should not be the same",
    );
  }
  assertStringIncludes(await outcome({ ...own, CNI_NETNS_OVERRIDE: "yes" }, CONF, plugin), "8 plugin's netns");
  assertEquals(called, 0);
  for (const override of ["1", "true", "TrUe"]) {
    assertEquals(await outcome({ ...own, CNI_NETNS_OVERRIDE: override }, CONF, plugin), "ok");
  }
});

Deno.test("DEL in the plugin's own namespace cleans up by owner, leaves links alone, then says code 8", async () => {
  const seen: boolean[] = [];
  const plugin = fake({ del: (call: ContainerCall) => Promise.resolve(void seen.push(call.podAlive, call.ownNetns)) });
  const got = await outcome({ ...FULL, CNI_COMMAND: "DEL", CNI_NETNS: "/proc/self/ns/net" }, CONF, plugin);
  assertStringIncludes(got, "8 plugin's netns and netns from CNI_NETNS should not be the same");
  assertEquals(seen, [false, true]);
});

Deno.test("DEL takes an empty, missing or plain file namespace for a dead container", async () => {
  for (const netns of ["", "/run/netns/nowhere", "/etc/passwd"]) {
    let alive: boolean | undefined;
    const plugin = fake({ del: (call: ContainerCall) => Promise.resolve(void (alive = call.podAlive)) });
    assertEquals(await outcome({ ...FULL, CNI_COMMAND: "DEL", CNI_NETNS: netns }, CONF, plugin), "ok");
    assertEquals(alive, false, netns);
  }
});

Deno.test("a failed ADD is undone last first, and says what could not be", async () => {
  const done: string[] = [];
  const plugin = fake({
    add: (call: ContainerCall) => {
      call.undo(() => done.push("first"));
      call.undo(() => Promise.reject(new Error("stuck")));
      call.undo(() => done.push("last"));
      return Promise.reject(new CniError(11, "no", "because"));
    },
  });
  assertEquals(
    await outcome(FULL, CONF, plugin),
    "11 no; because; could not be undone: stuck; DEL of this container cleans up",
  );
  assertEquals(done, ["last", "first"]);
});

Deno.test("an ADD whose result has no form in the configuration's version is undone too", async () => {
  const done: string[] = [];
  const plugin = fake({
    add: (call: ContainerCall) => {
      call.undo(() => done.push("undone"));
      return Promise.resolve({ interfaces: [{ name: "eth0" }] });
    },
  });
  assertEquals(
    await outcome(FULL, '{"name":"n","cniVersion":"0.2.0"}', plugin),
    "999 cannot convert: no valid IP addresses",
  );
  assertEquals(done, ["undone"]);
});

Deno.test("GC tells plugins apart what the caller did not say and what is empty, under either name of the list", async () => {
  const seen: unknown[] = [];
  const plugin = fake({ gc: (call) => Promise.resolve(void seen.push(call.valid)) });
  const env = { CNI_COMMAND: "GC", CNI_PATH: "/x" };
  const conf = (extra: string) => `{"name":"n","cniVersion":"1.1.0"${extra}}`;
  const one = (id: string) => [{ containerID: id, ifname: "eth0" }];
  const [valid, other] = ['"cni.dev/valid-attachments"', '"cni.dev/attachments"'];
  const table: [extra: string, expected: unknown][] = [
    ["", undefined],
    [`,${valid}:null`, []],
    [`,${valid}:[]`, []],
    [`,${valid}:${JSON.stringify(one("a"))}`, one("a")],
    [`,${other}:null`, []],
    [`,${other}:${JSON.stringify(one("b"))}`, one("b")],
    [`,${other}:${JSON.stringify(one("b"))},${valid}:${JSON.stringify(one("a"))}`, one("a")],
    [`,${other}:${JSON.stringify(one("b"))},${valid}:null`, []],
    [`,"CNI.dev/Attachments":${JSON.stringify(one("b"))}`, one("b")],
  ];
  for (const [extra, expected] of table) {
    assertEquals(await outcome(env, conf(extra), plugin), "ok");
    assertEquals(seen.splice(0), [expected], extra);
  }
  for (const bad of ["{}", "false", '"a"', "0", '[{"containerID":1}]', "[null]", '[{"containerID":"a"}]']) {
    for (const key of [valid, other]) {
      assertStringIncludes(await outcome(env, conf(`,${key}:${bad}`), plugin), `6 ${key}: `);
    }
  }
  assertEquals(seen, []);
});

Deno.test("GC without a list says so once, whoever else is asked in its turn", async () => {
  const warnings: string[] = [];
  const inner = fake({ kind: "ipam" });
  const folder = await Deno.makeTempDir();
  try {
    const bytes = new TextEncoder().encode('{"name":"n","cniVersion":"1.1.0","ipam":{"type":"inner"}}');
    await callPlugin(fake({ gc: async (call) => void await call.delegate("inner", "GC") }), {
      env: { CNI_COMMAND: "GC", CNI_PATH: folder },
      stdin: () => bytes,
      registry: () => Promise.resolve(inner),
      builtin: true,
      warn: (_, note) => warnings.push(note),
    });
  } finally {
    await Deno.remove(folder);
  }
  assertEquals(warnings.length, 1);
  assertStringIncludes(warnings[0] ?? "", 'GC without "cni.dev/valid-attachments": nothing is removed');
});

Deno.test("errors are printed as the reference prints them", () => {
  assertEquals(
    errorText(new CniError(7, "bad <name>", "a&b")),
    '{\n    "code": 7,\n    "msg": "bad \\u003cname\\u003e",\n    "details": "a\\u0026b"\n}',
  );
  assertEquals(errorText(new CniError(0, "x")), '{\n    "code": 0,\n    "msg": "x"\n}');
});

Deno.test("the about text names plugin, version and protocol versions", () => {
  assertEquals(
    aboutText(fake({ versions: since("0.4.0") }), "v9"),
    "CNI fake plugin v9\nCNI protocol versions supported: 0.4.0, 1.0.0, 1.1.0\n",
  );
});
