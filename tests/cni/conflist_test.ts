import { assert, assertEquals, assertThrows } from "@std/assert";
import { listOfSingle, loadAll, loadFile, loadNetwork, parseList, UnknownNetwork } from "../../lib/cni/conflist.ts";
import { byBytes, ConfigError, requestOf, sortedJson } from "../../lib/cni/member.ts";

const bytes = (text: string) => new TextEncoder().encode(text);
const text = (content: Uint8Array) => new TextDecoder().decode(content);

async function inFolder(files: Record<string, string>, work: (folder: string) => void | Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir({ prefix: "conflist" });
  try {
    for (const [name, content] of Object.entries(files)) {
      const path = `${folder}/${name}`;
      Deno.mkdirSync(path.slice(0, path.lastIndexOf("/")), { recursive: true });
      Deno.writeTextFileSync(path, content);
    }
    await work(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** What a list with this mistake says; every text is the reference library's. */
const LOAD_ERRORS: readonly (readonly [what: string, source: string, message: string])[] = [
  ["empty text", "", "error parsing configuration list: unexpected end of JSON input"],
  ["cut text", '{"name":"a', "error parsing configuration list: unexpected end of JSON input"],
  ["null", "null", "error parsing configuration list: no name"],
  [
    "an array",
    "[]",
    "error parsing configuration list: json: cannot unmarshal array into Go value of type map[string]interface {}",
  ],
  ["no name", "{}", "error parsing configuration list: no name"],
  ["name in another case", '{"Name":"a"}', "error parsing configuration list: no name"],
  ["name a number", '{"name":5}', "error parsing configuration list: invalid name type float64"],
  ["name null", '{"name":null}', "error parsing configuration list: invalid name type <nil>"],
  ["name a list", '{"name":[]}', "error parsing configuration list: invalid name type []interface {}"],
  ["name an object", '{"name":{}}', "error parsing configuration list: invalid name type map[string]interface {}"],
  ["name a boolean", '{"name":true}', "error parsing configuration list: invalid name type bool"],
  [
    "version a number",
    '{"name":"a","cniVersion":1}',
    "error parsing configuration list: invalid cniVersion type float64",
  ],
  [
    "version null",
    '{"name":"a","cniVersion":null}',
    "error parsing configuration list: invalid cniVersion type <nil>",
  ],
  [
    "versions a string",
    '{"name":"a","cniVersions":"1.0.0"}',
    "error parsing configuration list: invalid type for cniVersions: []interface {}",
  ],
  [
    "versions of numbers",
    '{"name":"a","cniVersions":["1.0.0",1]}',
    "error parsing configuration list: invalid type for cniVersions index 1: float64",
  ],
  [
    "a version that is none",
    '{"name":"a","cniVersions":["x"]}',
    'error parsing configuration list: invalid cniVersions entry x at index 0: failed to convert major version part "x": ' +
    'strconv.Atoi: parsing "x": invalid syntax',
  ],
  [
    "too many parts",
    '{"name":"a","cniVersions":[],"cniVersion":"1.0.0.0"}',
    'error parsing configuration list: invalid cniVersion 1.0.0.0: invalid version "1.0.0.0": too many parts',
  ],
  [
    "disableCheck a number",
    '{"name":"a","disableCheck":1}',
    "error parsing configuration list: invalid type float64 for disableCheck",
  ],
  [
    "disableCheck null",
    '{"name":"a","disableCheck":null}',
    "error parsing configuration list: invalid type <nil> for disableCheck",
  ],
  [
    "disableCheck another word",
    '{"name":"a","disableCheck":"YES"}',
    'error parsing configuration list: invalid value "yes" for disableCheck',
  ],
  [
    "disableGC another word",
    '{"name":"a","disableGC":"no"}',
    'error parsing configuration list: invalid value "no" for disableGC',
  ],
  [
    "loadOnlyInlinedPlugins a list",
    '{"name":"a","loadOnlyInlinedPlugins":[]}',
    "error parsing configuration list: invalid type []interface {} for loadOnlyInlinedPlugins",
  ],
  [
    "only inlined, but none",
    '{"name":"a","loadOnlyInlinedPlugins":true}',
    "error parsing configuration list: `loadOnlyInlinedPlugins` is true, and no 'plugins' key",
  ],
  [
    "plugins an object",
    '{"name":"a","plugins":{}}',
    "error parsing configuration list: invalid 'plugins' type map[string]interface {}",
  ],
  [
    "plugins null",
    '{"name":"a","plugins":null}',
    "error parsing configuration list: invalid 'plugins' type <nil>",
  ],
  ["no plugins", '{"name":"a","plugins":[]}', "error parsing configuration list: no plugins in list"],
  [
    "a plugin without type",
    '{"name":"a","plugins":[{"type":"b"},{}]}',
    "failed to parse plugin config 1: error parsing configuration: missing 'type'",
  ],
  [
    "a plugin that is null",
    '{"name":"a","plugins":[null]}',
    "failed to parse plugin config 0: error parsing configuration: missing 'type'",
  ],
  [
    "a plugin that is a string",
    '{"name":"a","plugins":["bridge"]}',
    "failed to parse plugin config 0: error parsing configuration: json: cannot unmarshal string into Go value of type types.PluginConf",
  ],
  [
    "type a number",
    '{"name":"a","plugins":[{"type":1}]}',
    "failed to parse plugin config 0: error parsing configuration: json: cannot unmarshal number into Go struct field PluginConf.type of type string",
  ],
  [
    "a capability that is no boolean",
    '{"name":"a","plugins":[{"type":"b","capabilities":{"mac":"yes"}}]}',
    "failed to parse plugin config 0: error parsing configuration: json: cannot unmarshal string into Go struct field PluginConf.capabilities of type bool",
  ],
  [
    "capabilities a list",
    '{"name":"a","plugins":[{"type":"b","capabilities":["mac"]}]}',
    "failed to parse plugin config 0: error parsing configuration: json: cannot unmarshal array into Go struct field PluginConf.capabilities of type map[string]bool",
  ],
  [
    "ipam a string",
    '{"name":"a","plugins":[{"type":"b","ipam":"host-local"}]}',
    "failed to parse plugin config 0: error parsing configuration: json: cannot unmarshal string into Go struct field PluginConf.ipam of type types.IPAM",
  ],
  [
    "ipam.type a number",
    '{"name":"a","plugins":[{"type":"b","ipam":{"type":5}}]}',
    "failed to parse plugin config 0: error parsing configuration: json: cannot unmarshal number into Go struct field PluginConf.ipam.type of type string",
  ],
];

for (const [what, source, message] of LOAD_ERRORS) {
  Deno.test(`a network list is refused: ${what}`, () => {
    assertThrows(() => parseList(bytes(source)), ConfigError, message);
  });
}

Deno.test("a network list that is no JSON says what was found instead", () => {
  assertThrows(
    () => parseList(bytes('{"name": nonsense}')),
    ConfigError,
    "error parsing configuration list: Unexpected token",
  );
});

Deno.test("a byte order mark is a syntax error", () => {
  assertThrows(() => parseList(bytes('\ufeff{"name":"a"}')), ConfigError, "error parsing configuration list: ");
});

Deno.test("the version of a list is the highest that both sides know", () => {
  const version = (rest: string) => parseList(bytes(`{"name":"a",${rest}}`)).version;
  assertEquals(parseList(bytes('{"name":"a"}')).version, "");
  assertEquals(version('"cniVersion":"9.9.9"'), "9.9.9");
  assertEquals(version('"cniVersions":["0.4.0","1.1.0","0.3.1"]'), "1.1.0");
  assertEquals(version('"cniVersions":["0.10.0","0.4.0"]'), "0.10.0");
  assertEquals(version('"cniVersion":"0.4.0","cniVersions":["1.0.0","2.0.0"]'), "1.0.0");
  assertEquals(version('"cniVersion":"1.1.0","cniVersions":["1.0.0"]'), "1.1.0");
  assertEquals(version('"cniVersion":"2.0.0","cniVersions":["3.0.0"]'), "2.0.0");
  assertEquals(version('"cniVersion":"1.0.0","cniVersions":[]'), "1.0.0");
});

Deno.test("the flags of a list are booleans or words in any case", () => {
  const list = parseList(
    bytes('{"name":"a","disableCheck":"TRUE","disableGC":false,"loadOnlyInlinedPlugins":"False"}'),
  );
  assertEquals([list.disableCheck, list.disableGC, list.loadOnlyInlinedPlugins], [true, false, false]);
});

Deno.test("capabilities that are null count as not declared", () => {
  const list = parseList(
    bytes('{"name":"a","plugins":[{"type":"b","capabilities":{"mac":null,"ips":true,"x":false}}]}'),
  );
  assertEquals(list.plugins[0]?.capabilities, ["ips"]);
});

Deno.test("keys of a member match in any case, keys of a list do not", () => {
  assertEquals(parseList(bytes('{"name":"a","plugins":[{"TYPE":"b"}]}')).plugins[0]?.type, "b");
});

Deno.test("a single configuration becomes a list of one, its list-level keys without effect", () => {
  const list = listOfSingle(bytes('{"type":"bridge","name":"n","cniVersion":"0.4.0","disableCheck":true,"a":1}'));
  assertEquals([list.name, list.version, list.disableCheck, list.single], ["n", "0.4.0", false, true]);
  assertEquals(
    text(list.bytes),
    '{"cniVersion":"0.4.0","name":"n","plugins":[{"a":1,"cniVersion":"0.4.0","disableCheck":true,"name":"n","type":"bridge"}]}',
  );
});

Deno.test("a single configuration without a name loads, one without a type does not", () => {
  assertEquals(listOfSingle(bytes('{"type":"bridge"}')).name, "");
  assertThrows(() => listOfSingle(bytes('{"plugins":[]}')), ConfigError, "error parsing configuration: missing 'type'");
});

const LIST = (name: string, type = "bridge") =>
  `{"cniVersion":"1.0.0","name":"${name}","plugins":[{"type":"${type}"}]}`;
const CONF = (name: string, type = "bridge") => `{"cniVersion":"1.0.0","name":"${name}","type":"${type}"}`;

Deno.test("a network is looked for in lists first, then in single configurations, by file name", () =>
  inFolder({
    "10-a.conf": CONF("x", "from-conf"),
    "05-a.json": CONF("x", "from-json"),
    "90-a.conflist": LIST("x", "from-list"),
    "95-a.conflist": LIST("x", "never"),
    "20-b.conf": CONF("y", "second"),
    "15-b.json": CONF("y", "first"),
  }, (folder) => {
    assertEquals(loadNetwork(folder, "x").plugins[0]?.type, "from-list");
    assertEquals(loadNetwork(folder, "y").plugins[0]?.type, "first");
  }));

Deno.test("a broken file before the match ends the search, one behind it is never read", () =>
  inFolder({ "10.conflist": LIST("x"), "20.conflist": "{", "30.conflist": LIST("z") }, (folder) => {
    assertEquals(loadNetwork(folder, "x").name, "x");
    const error = assertThrows(() => loadNetwork(folder, "z"), ConfigError);
    assertEquals(error.file, `${folder}/20.conflist`);
    const passed: string[] = [];
    assertEquals(loadNetwork(folder, "z", { onBroken: ({ file }) => passed.push(file) }).name, "z");
    assertEquals(passed, [`${folder}/20.conflist`]);
  }));

Deno.test("an unknown network lists the known ones", () =>
  inFolder({ "10.conflist": LIST("x"), "20.conf": CONF("y") }, (folder) => {
    const error = assertThrows(() => loadNetwork(folder, "z"), UnknownNetwork);
    assertEquals(error.message, `no net configuration with name "z" in ${folder}`);
    assertEquals(error.known, ["x", "y"]);
  }));

Deno.test("a folder without configurations, or none at all, says so", () =>
  inFolder({ "readme.txt": "", "sub.conflist/x": "" }, (folder) => {
    for (const path of [folder, `${folder}/nowhere`]) {
      assertThrows(() => loadNetwork(path, "z"), UnknownNetwork, `no net configurations found in ${path}`);
    }
  }));

Deno.test("a file that cannot be read is named with the system's reason", () =>
  inFolder({ "real/x": "" }, (folder) => {
    Deno.symlinkSync(`${folder}/real`, `${folder}/10.conflist`);
    Deno.symlinkSync(`${folder}/gone`, `${folder}/05.conf`);
    assertThrows(
      () => loadFile(`${folder}/10.conflist`),
      ConfigError,
      `error reading ${folder}/10.conflist: is a directory`,
    );
    assertThrows(
      () => loadFile(`${folder}/05.conf`),
      ConfigError,
      `error reading ${folder}/05.conf: no such file or directory`,
    );
  }));

Deno.test("a list stored as .conf has no type", () =>
  inFolder({ "10.conf": LIST("x") }, (folder) => {
    assertThrows(() => loadNetwork(folder, "x"), ConfigError, "error parsing configuration: missing 'type'");
  }));

Deno.test("members from the folder beside the list come after the inlined ones, in the order of their names", () =>
  inFolder({
    "10.conflist": LIST("x", "inlined"),
    "x/20.conf": '{"type":"second"}',
    "x/10.conf": '{"type":"first"}',
    "x/05.json": '{"type":"never"}',
    "20.conflist": '{"name":"y","loadOnlyInlinedPlugins":true,"plugins":[{"type":"alone"}]}',
    "y/10.conf": '{"type":"never"}',
    "30.conflist": '{"name":"z"}',
    "40.conflist": '{"name":"w"}',
    "w/10.conf": '{"type":"only"}',
  }, (folder) => {
    const types = (file: string) => loadFile(`${folder}/${file}`).plugins.map(({ type }) => type);
    assertEquals(types("10.conflist"), ["inlined", "first", "second"]);
    assertEquals(types("20.conflist"), ["alone"]);
    assertThrows(() => types("30.conflist"), ConfigError, "no plugin configs found");
    assertEquals(types("40.conflist"), ["only"]);
    const { lists, broken } = loadAll(folder);
    assertEquals(lists.map(({ name }) => name), ["x", "y", "w"]);
    assertEquals(broken.map(({ file }) => file), [`${folder}/30.conflist`]);
  }));

Deno.test("a bad file in the folder beside the list fails the list and is named", () =>
  inFolder({ "10.conflist": LIST("x"), "x/10.conf": "{}" }, (folder) => {
    const error = assertThrows(() => loadNetwork(folder, "x"), ConfigError, "missing 'type'");
    assertEquals(error.file, `${folder}/x/10.conf`);
  }));

function requestFor(member: string, injection: Parameters<typeof requestOf>[2] = {}, version = "1.0.0"): string {
  const list = parseList(bytes(`{"cniVersion":"${version}","name":"net","disableGC":true,"plugins":[${member}]}`));
  return text(requestOf(list, list.plugins[0]!, injection));
}

Deno.test("a request is the member with name and version of the list, keys sorted", () => {
  assertEquals(
    requestFor('{"type":"b","name":"own","z":1,"10":2,"2":3,"A":{"b":1,"a":"<&>"},"cniVersion":"0.1.0"}'),
    '{"10":2,"2":3,"A":{"a":"\\u003c\\u0026\\u003e","b":1},"cniVersion":"1.0.0","name":"net","type":"b","z":1}',
  );
});

Deno.test("a request gets what it declares and the caller offers, and keeps its declaration", () => {
  const member = '{"type":"b","capabilities":{"mac":true,"ips":true,"portMappings":false}}';
  assertEquals(
    requestFor(member, { capabilityArgs: { mac: "c2:11:22:33:44:55", portMappings: [], dns: {} } }),
    '{"capabilities":{"ips":true,"mac":true,"portMappings":false},"cniVersion":"1.0.0","name":"net",' +
      '"runtimeConfig":{"mac":"c2:11:22:33:44:55"},"type":"b"}',
  );
  const written = '{"type":"b","capabilities":{"mac":true},"runtimeConfig":{"ips":["10.0.0.1"]}}';
  assertEquals(JSON.parse(requestFor(written, { capabilityArgs: { mac: "x" } })).runtimeConfig, { mac: "x" });
  assertEquals(JSON.parse(requestFor(written, { capabilityArgs: { dns: {} } })).runtimeConfig, { ips: ["10.0.0.1"] });
});

Deno.test("a previous result keeps the order of its keys", () => {
  const prevResult = { cniVersion: "0.4.0", ips: [{ version: "4", address: "10.0.0.2/24" }], dns: {} };
  const request = requestFor('{"type":"b","prevResult":{"old":1}}', { prevResult }, "0.4.0");
  assert(request.includes(`"prevResult":${JSON.stringify(prevResult)}`), request);
});

Deno.test("a request for GC names the valid attachments under both keys, an empty list too", () => {
  const pair = '[{"containerID":"a","ifname":"eth0"}]';
  assertEquals(
    requestFor('{"type":"b"}', { valid: [{ containerID: "a", ifname: "eth0" }] }, "1.1.0"),
    `{"cni.dev/attachments":${pair},"cni.dev/valid-attachments":${pair},"cniVersion":"1.1.0","name":"net","type":"b"}`,
  );
  assertEquals(JSON.parse(requestFor('{"type":"b"}', { valid: [] }))["cni.dev/valid-attachments"], []);
  assertEquals("cni.dev/valid-attachments" in JSON.parse(requestFor('{"type":"b"}')), false);
});

Deno.test("keys are sorted by bytes, not by UTF-16 units", () => {
  assertEquals(["\u{1f600}", "\uff5e", "b", "B", "", "ab", "a"].sort(byBytes), [
    "",
    "B",
    "a",
    "ab",
    "b",
    "\uff5e",
    "\u{1f600}",
  ]);
  assertEquals(sortedJson({ b: [{ d: 1, c: null }], a: undefined }), '{"b":[{"c":null,"d":1}]}');
});
