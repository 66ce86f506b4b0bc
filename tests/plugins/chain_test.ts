/** chain in the company of noting plugins: what each member is sent, in which order, and what becomes of failures. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { CniError } from "../../lib/cni/error.ts";
import type { Plugin, Verb } from "../../lib/cni/plugin.ts";
import { prevResult } from "../../lib/cni/prev_result.ts";
import { callPlugin } from "../../lib/cni/skel.ts";
import { type JsonObject, since } from "../../lib/cni/types.ts";
import { plugin as chain } from "../../plugins/chain.ts";
import { loadPlugin, pluginNames } from "../../plugins/mod.ts";

/** Members that write down what they are asked. */
class Stage {
  readonly log: string[] = [];
  readonly sent: Record<string, JsonObject> = {};
  /** `add b`: that call fails. */
  fails = new Set<string>();

  /** What a member waits for before it is done. */
  waits: Record<string, Promise<unknown>> = {};

  readonly registry = (name: string): Promise<Plugin> | undefined => {
    if (!/^([a-c]|portmap|firewall)$/.test(name)) return undefined;
    const note = (verb: string, config: JsonObject) => {
      this.log.push(`${verb} ${name}`);
      this.sent[`${verb} ${name}`] = config;
      if (this.fails.has(`${verb} ${name}`)) throw new CniError(42, `${name} fails`, `details of ${name}`);
    };
    return Promise.resolve({
      name,
      kind: "meta",
      about: "",
      versions: since("0.4.0"),
      needs: [],
      keys: {},
      parse: ({ config }) => note("parse", config),
      add: async (call) => {
        call.undo(() => this.log.push(`undo ${name}`));
        note("add", call.config);
        call.later?.(() => {
          note("rules of", call.config);
          call.undo(() => this.log.push(`undo rules of ${name}`));
          return Promise.resolve();
        });
        if (this.fails.has(`after ${name}`)) throw new CniError(42, `${name} fails`);
        await this.waits[name];
        if (this.waits[name]) this.log.push(`added ${name}`);
        if (/portmap|firewall/.test(name)) return prevResult(call) ?? {};
        return { ...prevResult(call), interfaces: [{ name: `from-${name}` }] };
      },
      del: async (call) => {
        note("del", call.config);
        if (name === "b" && call.config["ipam"]) await call.delegate("c", "DEL");
        await this.waits[name];
        if (this.waits[name]) this.log.push(`deleted ${name}`);
      },
      // deno-lint-ignore require-await
      check: async ({ config }) => note("check", config),
      // deno-lint-ignore require-await
      gc: async ({ config }) => note("gc", config),
      // deno-lint-ignore require-await
      status: async ({ config }) => note("status", config),
    });
  };

  async call(verb: Verb, config: JsonObject, path = ""): Promise<JsonObject | undefined> {
    const whole = { cniVersion: "1.1.0", name: "net1", type: "chain", ...config };
    const { printable } = await callPlugin(chain, {
      env: {
        PATH: "/usr/bin:/bin",
        CNI_COMMAND: verb,
        CNI_CONTAINERID: "ctr1",
        CNI_NETNS: "/run/netns/none",
        CNI_IFNAME: "eth0",
        CNI_PATH: path || "/nowhere",
      },
      stdin: () => new TextEncoder().encode(JSON.stringify(whole)),
      registry: this.registry,
      builtin: true,
      warn: (type, note) => this.log.push(`warning of ${type}: ${note}`),
    });
    return printable;
  }

  async failure(verb: Verb, config: JsonObject, path = ""): Promise<CniError> {
    return await assertRejects(() => this.call(verb, config, path), CniError);
  }
}

const three = { plugins: [{ type: "a" }, { type: "b" }, { type: "c" }] };

Deno.test("chain ADD reads every member, then attaches in order and answers with the last result", async () => {
  const stage = new Stage();
  const result = await stage.call("ADD", three);
  assertEquals(stage.log, ["parse a", "parse b", "parse c", "add a", "add b", "add c"]);
  assertEquals(result?.["interfaces"], [{ name: "from-c" }]);
  assertEquals("prevResult" in (stage.sent["add a"] ?? {}), false);
  assertEquals((stage.sent["add b"]?.["prevResult"] as JsonObject)["interfaces"], [{ name: "from-a" }]);
});

Deno.test("chain sends a member what a list would send it", async () => {
  const stage = new Stage();
  await stage.call("ADD", {
    prevResult: { cniVersion: "1.1.0", interfaces: [{ name: "before" }] },
    args: { cni: { x: 1 } },
    capabilities: { mac: true, ips: true },
    runtimeConfig: { mac: "02:00:00:00:00:01", ips: ["10.0.0.1"] },
    plugins: [
      { type: "a", own: 1, capabilities: { mac: true, ips: false } },
      { type: "b", args: { cni: { x: 2 } }, name: "mine", cniVersion: "0.3.1" },
    ],
  });
  assertEquals(stage.sent["add a"], {
    args: { cni: { x: 1 } },
    capabilities: { ips: false, mac: true },
    cniVersion: "1.1.0",
    name: "net1",
    own: 1,
    prevResult: { cniVersion: "1.1.0", interfaces: [{ name: "before" }] },
    runtimeConfig: { mac: "02:00:00:00:00:01" },
    type: "a",
  });
  assertEquals(stage.sent["add b"], {
    args: { cni: { x: 2 } },
    cniVersion: "1.1.0",
    name: "net1",
    prevResult: { cniVersion: "1.1.0", interfaces: [{ name: "from-a" }] },
    type: "b",
  });
});

Deno.test("chain ADD that fails takes back what every member before it did, last first", async () => {
  const stage = new Stage();
  stage.fails.add("add c");
  const { code, msg, details } = await stage.failure("ADD", three);
  assertEquals([code, msg, details], [42, "c fails", "plugin 3 of 3 (c): details of c"]);
  assertEquals(stage.log.slice(3), ["add a", "add b", "add c", "undo c", "undo b", "undo a"]);
});

Deno.test("chain ADD finds a mistake of the last member before the first has done anything", async () => {
  const stage = new Stage();
  stage.fails.add("parse c");
  assertEquals((await stage.failure("ADD", three)).details, "plugin 3 of 3 (c): details of c");
  assertEquals(stage.log, ["parse a", "parse b", "parse c"]);
});

Deno.test("chain ADD finds a mistake of an IPAM plugin before anything is done", async () => {
  const stage = new Stage();
  stage.fails.add("parse c");
  const { details } = await stage.failure("ADD", { plugins: [{ type: "a" }, { type: "b", ipam: { type: "c" } }] });
  assertEquals(details, "plugin 2 of 2 (b): details of c");
  assert(!stage.log.some((line) => line.startsWith("add")));
});

Deno.test("chain refuses members that are none, by place and type, before anything is done", async () => {
  const cases: [JsonObject, string][] = [
    [{}, '"plugins" has to list at least one plugin'],
    [{ plugins: [] }, '"plugins" has to list at least one plugin'],
    [{ plugins: [{ type: "a" }, 5] }, "plugins.1: number instead of a plugin's configuration"],
    [{ plugins: [{ type: "a" }, {}] }, "plugins.1: error parsing configuration: missing 'type'"],
    [
      { plugins: [{ type: "a" }, { type: "chain", plugins: [{ type: "b" }] }] },
      "plugins.1 (chain): a chain cannot hold another chain",
    ],
    [
      { plugins: [{ type: "a" }, { type: "b", capabilities: { mac: "yes" } }] },
      "plugins.1 (b): error parsing configuration: json: cannot unmarshal string into Go struct field " +
      "PluginConf.capabilities of type bool",
    ],
  ];
  for (const [config, words] of cases) {
    for (const verb of ["ADD", "CHECK", "STATUS"] as const) {
      const stage = new Stage();
      const { code, msg } = await stage.failure(verb, config);
      assertEquals([code, msg, stage.log], [7, words, []]);
    }
  }
});

Deno.test("chain ADD that cannot find a member has done nothing", async () => {
  const stage = new Stage();
  const { msg, details } = await stage.failure("ADD", { plugins: [{ type: "a" }, { type: "zzz" }] });
  assertEquals(msg, 'failed to find plugin "zzz" in path [/nowhere]');
  assert(details.startsWith("plugin 2 of 2 (zzz): "));
  assertEquals(stage.log, ["parse a"]);
});

Deno.test("chain DEL asks every member in reverse with the call's result, whatever fails, and names all that failed", async () => {
  const stage = new Stage();
  stage.fails = new Set(["del c", "del a"]);
  const given = { cniVersion: "1.1.0", interfaces: [{ name: "last" }] };
  const { code, msg, details } = await stage.failure("DEL", { ...three, prevResult: given });
  assertEquals(stage.log, ["del c", "del b", "del a"]);
  assertEquals(stage.sent["del a"]?.["prevResult"], given);
  assertEquals([code, msg], [42, "c fails"]);
  assertEquals(details, "plugin 3 of 3 (c): details of c\nplugin 1 of 3 (a): details of a: a fails");
});

Deno.test("chain DEL does what it can beside a member that cannot be read", async () => {
  const stage = new Stage();
  const { code, msg } = await stage.failure("DEL", { plugins: [{ type: "a" }, { type: "chain" }, { type: "c" }] });
  assertEquals([code, msg], [7, "plugins.1 (chain): a chain cannot hold another chain"]);
  assertEquals(stage.log, ["del c", "del a"]);
});

Deno.test("chain CHECK goes in order with the call's result and stops at the first complaint", async () => {
  const stage = new Stage();
  stage.fails.add("check b");
  const given = { cniVersion: "1.1.0", interfaces: [{ name: "last" }] };
  const { details } = await stage.failure("CHECK", { ...three, prevResult: given });
  assertEquals(stage.log, ["check a", "check b"]);
  assertEquals(stage.sent["check a"]?.["prevResult"], given);
  assertEquals(details, "plugin 2 of 3 (b): details of b");
});

Deno.test("chain GC asks every member, with the attachments to keep, whatever fails", async () => {
  const stage = new Stage();
  stage.fails.add("gc a");
  const valid = [{ containerID: "x", ifname: "eth0" }];
  await stage.failure("GC", { ...three, "cni.dev/valid-attachments": valid });
  assertEquals(stage.log, ["gc a", "gc b", "gc c"]);
  assertEquals(stage.sent["gc c"]?.["cni.dev/valid-attachments"], valid);
});

const later = () => new Promise((done) => setTimeout(done, 20));

Deno.test("chain ADD lets members that only set rules work beside those after them, with the rules of those before", async () => {
  const stage = new Stage();
  stage.waits = { portmap: later(), firewall: later() };
  const plugins = ["a", "portmap", "firewall", "b"].map((type) => ({ type }));
  const result = await stage.call("ADD", { plugins });
  const log = stage.log.filter((line) => !line.startsWith("parse"));
  assertEquals(log.slice(0, 5), ["add a", "rules of a", "add portmap", "add firewall", "add b"]);
  assertEquals(log.slice(5).sort(), ["added firewall", "added portmap"]);
  assertEquals(result?.["interfaces"], [{ name: "from-b" }]);
  const ofA = [{ name: "from-a" }];
  for (const member of ["portmap", "firewall", "b"]) {
    assertEquals((stage.sent[`add ${member}`]?.["prevResult"] as JsonObject)["interfaces"], ofA);
  }
});

Deno.test("chain ADD waits for whatever is under way before it takes anything back", async () => {
  for (const failing of ["add b", "add portmap", "rules of a"]) {
    const stage = new Stage();
    stage.fails.add(failing);
    stage.waits = { firewall: later() };
    const plugins = ["a", "portmap", "firewall", "b"].map((type) => ({ type }));
    const { details } = await stage.failure("ADD", { plugins });
    const place = { "add b": "plugin 4 of 4 (b)", "add portmap": "plugin 2 of 4 (portmap)" }[failing];
    assertEquals(details.split(": ")[0], place ?? "plugin 1 of 4 (a)");
    const undone = stage.log.filter((line) => line.startsWith("undo"));
    assertEquals(stage.log.indexOf("undo a"), stage.log.length - 1, stage.log.join());
    assert(stage.log.indexOf("added firewall") < stage.log.indexOf("undo firewall"));
    assertEquals(undone.includes("undo rules of a"), failing !== "rules of a");
    assertEquals(undone.filter((line) => !line.includes("rules")).length, 4);
  }
});

Deno.test("chain ADD sets no rules for a member that failed after it had left them to the chain", async () => {
  const stage = new Stage();
  stage.fails.add("after a");
  await stage.failure("ADD", { plugins: [{ type: "a" }, { type: "portmap" }] });
  assertEquals(stage.log.slice(2), ["add a", "undo a"]);
});

Deno.test("chain DEL releases addresses when every rule that leads to them is gone", async () => {
  const stage = new Stage();
  stage.waits = { portmap: later(), b: Promise.resolve() };
  await stage.call("DEL", {
    plugins: [{ type: "b", ipam: { type: "c" } }, { type: "portmap" }, { type: "a" }],
  });
  assertEquals(stage.log, ["del a", "del portmap", "del b", "deleted portmap", "del c", "deleted b"]);
});

Deno.test("chain speaks the versions that every plugin of this binary speaks", async () => {
  const all = await Promise.all(pluginNames.map((name) => loadPlugin(name) as Promise<Plugin>));
  const common = all.map(({ versions }) => versions).reduce((a, b) => a.filter((one) => b.includes(one)));
  assertEquals(chain.versions, common);
});

Deno.test("every plugin that reads a configuration can be asked whether it could", async () => {
  const all = await Promise.all(pluginNames.map((name) => loadPlugin(name) as Promise<Plugin>));
  const silent = all.filter(({ parse, keys }) => !parse && Object.keys(keys).length > 0).map(({ name }) => name);
  assertEquals(silent, ["chain"]);
});

/** A plugin as a program: notes its calls, answers what it is told to. */
const PROGRAM = `#!/bin/sh
read -r stdin || :
echo "$CNI_COMMAND $CNI_IFNAME" >>"\${0%/*}/calls"
case $CNI_COMMAND in
  VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["VERSIONS"]}' ;;
  ADD) echo '{"cniVersion":"1.1.0","interfaces":[{"name":"foreign"}]}' ;;
  DEL) ;;
  *) echo "{\\"code\\":4,\\"msg\\":\\"unknown CNI_COMMAND: $CNI_COMMAND\\"}"; exit 1 ;;
esac
`;

async function withProgram(version: string, body: (folder: string, calls: () => string[]) => Promise<void>) {
  const folder = await Deno.makeTempDir();
  try {
    await Deno.writeTextFile(`${folder}/f`, PROGRAM.replace("VERSIONS", version), { mode: 0o755 });
    await body(folder, () => {
      try {
        return Deno.readTextFileSync(`${folder}/calls`).trim().split("\n");
      } catch {
        return [];
      }
    });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

const mixed = { plugins: [{ type: "a" }, { type: "f" }, { type: "c" }] };

Deno.test("chain runs a member that is another program, and takes it back by DEL", async () => {
  await withProgram("1.1.0", async (folder, calls) => {
    const stage = new Stage();
    stage.fails.add("add c");
    await stage.failure("ADD", mixed, folder);
    assertEquals(calls(), ["VERSION dummy", "ADD eth0", "DEL eth0"]);
    assertEquals((stage.sent["add c"]?.["prevResult"] as JsonObject)["interfaces"], [{ name: "foreign" }]);
    assertEquals(stage.log.slice(-3), ["add c", "undo c", "undo a"]);
  });
});

Deno.test("chain ADD with a program that does not speak the version fails with code 1 before anything is done", async () => {
  await withProgram("0.4.0", async (folder, calls) => {
    const stage = new Stage();
    const { code, msg, details } = await stage.failure("ADD", mixed, folder);
    assertEquals([code, msg], [1, "incompatible CNI versions"]);
    assertEquals(details, `plugin 2 of 3 (f): config is "1.1.0", ${folder}/f supports ["0.4.0"]`);
    assertEquals([stage.log, calls()], [["parse a"], ["VERSION dummy"]]);
  });
});

Deno.test("chain GC and STATUS leave out a program that does not know them", async () => {
  await withProgram("1.1.0", async (folder) => {
    const stage = new Stage();
    await stage.call("GC", { ...mixed, "cni.dev/valid-attachments": [] }, folder);
    await stage.call("STATUS", mixed, folder);
    assertEquals(stage.log, ["gc a", "gc c", "status a", "status c"]);
    assert(
      (await stage.failure("CHECK", { ...mixed, prevResult: {} }, folder)).details.startsWith("plugin 2 of 3 (f)"),
    );
  });
});
