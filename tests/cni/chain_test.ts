import { assertEquals, assertRejects } from "@std/assert";
import {
  addNetwork,
  checkNetwork,
  delNetwork,
  gcNetwork,
  type MemberCall,
  MemberError,
  probeVersions,
  type Runtime,
  statusNetwork,
} from "../../lib/cni/chain.ts";
import { parseList } from "../../lib/cni/conflist.ts";
import { CniError } from "../../lib/cni/error.ts";
import { nothing, type Plugin } from "../../lib/cni/plugin.ts";
import { prevResult } from "../../lib/cni/prev_result.ts";
import { type Attached, cachePath, listAttachments, writeCache } from "../../lib/cni/result_cache.ts";
import { since } from "../../lib/cni/types.ts";

/** A plugin as a program: notes how it was called, then answers what the files beside it say. */
const PROGRAM = `#!/bin/sh
read -r stdin || :
echo "$CNI_COMMAND \${0##*/} id=$CNI_CONTAINERID netns=$CNI_NETNS if=$CNI_IFNAME args=$CNI_ARGS $stdin" >>"\${0%/*}/calls"
if [ -e "$0.$CNI_COMMAND.fails" ]; then cat "$0.$CNI_COMMAND.fails"; exit 1; fi
[ ! -e "$0.$CNI_COMMAND" ] || cat "$0.$CNI_COMMAND"
`;

/** Folders of one test: plugins, their answers and the cache. */
class Stage {
  readonly calls: MemberCall[] = [];
  readonly notes: string[] = [];
  stderr = "";
  constructor(readonly folder: string) {
    Deno.mkdirSync(`${folder}/bin`);
  }
  program(name: string, answers: Readonly<Record<string, string>> = {}): void {
    Deno.writeTextFileSync(`${this.folder}/bin/${name}`, PROGRAM, { mode: 0o755 });
    for (const [verb, answer] of Object.entries(answers)) this.answer(name, verb, answer);
  }
  answer(name: string, verb: string, text: string): void {
    Deno.writeTextFileSync(`${this.folder}/bin/${name}.${verb}`, text);
  }
  silence(name: string, verb: string): void {
    Deno.removeSync(`${this.folder}/bin/${name}.${verb}`);
  }
  /** First words of every call of a program so far; forgotten then. */
  called(): string[] {
    return this.calledWith().map((line) => line.split(" ").slice(0, 2).join(" "));
  }
  calledWith(): string[] {
    const file = `${this.folder}/bin/calls`;
    try {
      const lines = Deno.readTextFileSync(file).trimEnd().split("\n");
      Deno.removeSync(file);
      return lines;
    } catch {
      return [];
    }
  }
  runtime(own: Readonly<Record<string, Plugin>> = {}): Runtime {
    return {
      path: [`${this.folder}/bin`],
      cache: this.cache,
      registry: (name) => own[name] && Promise.resolve(own[name]),
      builtin: true,
      env: { PATH: "/usr/bin:/bin" },
      limitMs: 5_000,
      warn: (type, note) => this.notes.push(`${type}: ${note}`),
      stderr: (text) => this.stderr += text,
      after: (call) => this.calls.push(call),
    };
  }
  get cache(): string {
    return `${this.folder}/results`;
  }
  cached(): string[] {
    return listAttachments(this.cache).map(({ containerId, ifName }) => `${containerId} ${ifName}`);
  }
}

async function onStage(work: (stage: Stage) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir({ prefix: "chain" });
  try {
    await work(new Stage(folder));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

function network(types: readonly string[], rest: Readonly<Record<string, unknown>> = {}) {
  const plugins = types.map((type) => ({ type }));
  return parseList(new TextEncoder().encode(JSON.stringify({ cniVersion: "1.0.0", name: "net", plugins, ...rest })));
}

const attached: Attached = {
  network: "net",
  containerId: "c1",
  ifName: "eth0",
  netns: "/run/netns/none",
  args: [["K", "V"], ["L", "W"]],
  capabilityArgs: {},
};
const RESULT = '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}';

/** A plugin of our own that adds one address to what came before, and notes every call. */
function ownPlugin(log: string[], options: { failing?: string } = {}): Plugin {
  return {
    name: "own",
    kind: "meta",
    about: "",
    versions: since("0.1.0"),
    needs: [],
    keys: {},
    add: (call) => {
      log.push("ADD own");
      call.undo(() => log.push("undo own"));
      if (options.failing) throw new CniError(11, options.failing, "later");
      return Promise.resolve({ ips: [...prevResult(call)?.ips ?? [], { address: "10.0.0.99/24" }] });
    },
    del: () => Promise.resolve(void log.push("DEL own")),
    check: nothing,
    gc: nothing,
    status: nothing,
  };
}

Deno.test("network ADD hands the result on, answers the last one and caches it", () =>
  onStage(async (stage) => {
    stage.program("a", { ADD: RESULT });
    stage.program("b", { ADD: '{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.3/24"}],"x":1}' });
    const list = network(["a", "b"]);
    const { printable, version, result } = await addNetwork(list, attached, stage.runtime());
    assertEquals(version, "0.4.0");
    assertEquals(printable, { cniVersion: "0.4.0", ips: [{ version: "4", address: "10.0.0.3/24" }], dns: {} });
    assertEquals(result.ips, [{ address: "10.0.0.3/24" }]);
    assertEquals(stage.calledWith(), [
      'ADD a id=c1 netns=/run/netns/none if=eth0 args=K=V;L=W {"cniVersion":"1.0.0","name":"net","type":"a"}',
      'ADD b id=c1 netns=/run/netns/none if=eth0 args=K=V;L=W {"cniVersion":"1.0.0","name":"net","prevResult":' +
      '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]},"type":"b"}',
    ]);
    assertEquals(JSON.parse(Deno.readTextFileSync(cachePath(stage.cache, attached))).result, {
      cniVersion: "0.4.0",
      dns: {},
      ips: [{ version: "4", address: "10.0.0.3/24" }],
    });
    assertEquals(stage.calls.map(({ type, index, verb }) => [type, index, verb]), [["a", 0, "ADD"], ["b", 1, "ADD"]]);
  }));

Deno.test("network ADD mixes plugins of our own with programs", () =>
  onStage(async (stage) => {
    const log: string[] = [];
    stage.program("a", { ADD: RESULT });
    stage.program("z", { ADD: RESULT });
    const runtime = stage.runtime({ own: ownPlugin(log) });
    await addNetwork(network(["a", "own", "z"]), attached, runtime);
    const [, last = ""] = stage.calledWith();
    assertEquals(JSON.parse(last.slice(last.indexOf("{"))).prevResult, {
      cniVersion: "1.0.0",
      ips: [{ address: "10.0.0.2/24" }, { address: "10.0.0.99/24" }],
    });
    await delNetwork(network(["a", "own", "z"]), attached, runtime);
    assertEquals(log, ["ADD own", "DEL own"]);
    assertEquals(stage.called(), ["DEL z", "DEL a"]);
    assertEquals(stage.calls.map(({ inProcess }) => inProcess), [false, true, false, false, true, false]);
  }));

Deno.test("a failed network ADD names the plugin, its place and the reason, and is undone in reverse", () =>
  onStage(async (stage) => {
    for (const name of ["a", "b", "d"]) stage.program(name, { ADD: RESULT });
    stage.program("c", { "ADD.fails": '{"code":11,"msg":"no room","details":"come back"}' });
    const error = await assertRejects(() => addNetwork(network(["a", "b", "c", "d"]), attached, stage.runtime()));
    assertEquals(error instanceof MemberError && { code: error.code, msg: error.msg, details: error.details }, {
      code: 11,
      msg: 'plugin type="c" failed (add): no room',
      details: 'come back; plugin 3 of 4 of network "net"; undone by DEL of c, b, a',
    });
    const calls = stage.calledWith();
    assertEquals(calls.map((line) => line.slice(0, 5)), ["ADD a", "ADD b", "ADD c", "DEL c", "DEL b", "DEL a"]);
    // The reference's plugins clean up only what the previous result tells them.
    assertEquals(calls.slice(3).map((line) => line.includes('"prevResult":{"cniVersion":"1.0.0","ips"')), [
      true,
      true,
      true,
    ]);
    assertEquals(stage.cached(), []);
  }));

Deno.test("a failed network ADD leaves a plugin of our own to itself: it took back what it did", () =>
  onStage(async (stage) => {
    const log: string[] = [];
    stage.program("a", { ADD: RESULT });
    const runtime = stage.runtime({ own: ownPlugin(log, { failing: "held" }) });
    const error = await assertRejects(() => addNetwork(network(["a", "own"]), attached, runtime), CniError);
    assertEquals([error.code, error.msg], [11, 'plugin type="own" failed (add): held']);
    assertEquals(log, ["ADD own", "undo own"]);
    assertEquals(stage.called(), ["ADD a", "DEL a"]);
  }));

Deno.test("a failed network ADD whose undoing fails goes on and says so", () =>
  onStage(async (stage) => {
    stage.program("a", { ADD: RESULT });
    stage.program("b", { ADD: RESULT, "DEL.fails": '{"code":999,"msg":"stuck"}' });
    stage.program("c", { "ADD.fails": "" });
    const error = await assertRejects(() => addNetwork(network(["a", "b", "c"]), attached, stage.runtime()), CniError);
    assertEquals(error.msg, 'plugin type="c" failed (add): netplugin failed with no error message: exit status 1');
    assertEquals(error.details, 'plugin 3 of 3 of network "net"; undone by DEL of c, a; DEL of b failed: stuck');
    assertEquals(stage.called(), ["ADD a", "ADD b", "ADD c", "DEL c", "DEL b", "DEL a"]);
  }));

Deno.test("a network ADD whose result cannot be cached fails and is undone", () =>
  onStage(async (stage) => {
    stage.program("a", { ADD: RESULT });
    Deno.writeTextFileSync(stage.cache, "a file where the folder belongs");
    const error = await assertRejects(() => addNetwork(network(["a"]), attached, stage.runtime()), CniError);
    assertEquals(error.msg.startsWith('failed to set network "net" cached result: '), true, error.msg);
    assertEquals(stage.called(), ["ADD a", "DEL a"]);
  }));

Deno.test("network ADD finds every plugin before it calls one", () =>
  onStage(async (stage) => {
    stage.program("a", { ADD: RESULT });
    const error = await assertRejects(() => addNetwork(network(["a", "gone"]), attached, stage.runtime()), CniError);
    assertEquals(
      error.msg,
      `plugin type="gone" failed (add): failed to find plugin "gone" in path [${stage.folder}/bin]`,
    );
    assertEquals(stage.called(), []);
  }));

Deno.test("network ADD refuses names that are none before it calls a plugin", () =>
  onStage(async (stage) => {
    stage.program("a", { ADD: RESULT });
    const table: [Partial<Attached>, Record<string, unknown>, number, string][] = [
      [{ containerId: "" }, {}, 3, "missing containerID"],
      [{ containerId: "a/b" }, {}, 4, "invalid characters in containerID"],
      [{}, { name: "" }, 7, "missing network name:"],
      [{}, { name: "a b" }, 7, "invalid characters found in network name"],
      [{ ifName: "" }, {}, 4, "interface name is empty"],
      [{ ifName: "0123456789abcdef" }, {}, 4, "interface name is too long"],
      [{ ifName: ".." }, {}, 4, "interface name is . or .."],
      [{ ifName: "a b" }, {}, 4, "interface name contains / or : or whitespace characters"],
    ];
    for (const [change, rest, code, msg] of table) {
      const error = await assertRejects(
        () => addNetwork(network(["a"], rest), { ...attached, ...change }, stage.runtime()),
        CniError,
      );
      assertEquals([error.code, error.msg], [code, msg]);
    }
    assertEquals(stage.called(), []);
  }));

Deno.test("network ADD says what a plugin's garbage, crash or silence was", () =>
  onStage(async (stage) => {
    const list = network(["a"]);
    const failure = async () =>
      (await assertRejects(() => addNetwork(list, attached, stage.runtime()), CniError)).msg
        .replace('plugin type="a" failed (add): ', "");
    stage.program("a", { ADD: "garbage" });
    assertEquals((await failure()).startsWith("failed to unmarshal raw result: "), true);
    stage.program("a", { ADD: "" });
    assertEquals(await failure(), "failed to unmarshal raw result: unexpected end of JSON input");
    stage.program("a", { ADD: '{"cniVersion":"9.0.0"}' });
    assertEquals(await failure(), 'unsupported CNI result version "9.0.0"');
    Deno.writeTextFileSync(`${stage.folder}/bin/a`, "#!/bin/sh\nkill -SEGV $$\n");
    assertEquals(await failure(), "netplugin failed with no error message: signal: segmentation fault");
    Deno.writeTextFileSync(`${stage.folder}/bin/a`, "#!/bin/sh\necho oops >&2; exit 3\n");
    assertEquals(await failure(), 'netplugin failed: "oops\\n"');
    Deno.writeTextFileSync(`${stage.folder}/bin/a`, '#!/bin/sh\n[ "$CNI_COMMAND" = DEL ] || exec sleep 60\n');
    const runtime = { ...stage.runtime(), limitMs: 200 };
    const late = await assertRejects(() => addNetwork(list, attached, runtime), CniError);
    assertEquals([late.code, late.msg.endsWith("did not answer ADD within 0.2 s")], [11, true]);
  }));

Deno.test("network DEL goes in reverse with the cached result and removes the cache file", () =>
  onStage(async (stage) => {
    for (const name of ["a", "b"]) stage.program(name, { ADD: RESULT });
    const list = network(["a", "b"]);
    await addNetwork(list, attached, stage.runtime());
    stage.called();
    await delNetwork(list, attached, stage.runtime());
    const lines = stage.calledWith();
    assertEquals(lines.map((line) => line.slice(0, 5)), ["DEL b", "DEL a"]);
    assertEquals(lines.every((line) => line.includes(`"prevResult":${RESULT}`)), true);
    assertEquals(stage.cached(), []);
  }));

Deno.test("network DEL gives no result below 0.4.0, and works without a cache file", () =>
  onStage(async (stage) => {
    stage.program("a");
    writeCache(stage.cache, network(["a"]), attached, JSON.parse(RESULT));
    await delNetwork(network(["a"], { cniVersion: "0.3.1" }), attached, stage.runtime());
    await delNetwork(network(["a"]), attached, stage.runtime());
    assertEquals(stage.calledWith().map((line) => line.includes("prevResult")), [false, false]);
  }));

Deno.test("network DEL goes on without a cached result that cannot be used, and removes it", () =>
  onStage(async (stage) => {
    stage.program("a", { "DEL.fails": '{"code":7,"msg":"no"}' });
    Deno.mkdirSync(stage.cache);
    Deno.writeTextFileSync(cachePath(stage.cache, attached), '{"cniVersion":"77.0.0"}');
    await assertRejects(() => delNetwork(network(["a"]), attached, stage.runtime()), CniError);
    assertEquals(stage.notes.length, 1);
    assertEquals([...Deno.readDirSync(stage.cache)], []);
  }));

Deno.test("network DEL stops at the first failure and keeps the cache file; with force it goes on", () =>
  onStage(async (stage) => {
    for (const name of ["a", "b", "c"]) stage.program(name, { ADD: RESULT });
    const list = network(["a", "b", "c"]);
    await addNetwork(list, attached, stage.runtime());
    stage.called();
    stage.answer("b", "DEL.fails", '{"code":5,"msg":"stuck"}');
    const error = await assertRejects(() => delNetwork(list, attached, stage.runtime()), CniError);
    assertEquals([error.code, error.msg, error.details], [
      5,
      'plugin type="b" failed (delete): stuck',
      'plugin 2 of 3 of network "net"',
    ]);
    assertEquals(stage.called(), ["DEL c", "DEL b"]);
    assertEquals(stage.cached(), ["c1 eth0"]);
    await assertRejects(() => delNetwork(list, attached, stage.runtime(), { force: true }), CniError, "stuck");
    assertEquals(stage.called(), ["DEL c", "DEL b", "DEL a"]);
    assertEquals(stage.cached(), ["c1 eth0"]);
  }));

Deno.test("network CHECK hands everybody the cached result and stops at the first complaint, unwrapped", () =>
  onStage(async (stage) => {
    for (const name of ["a", "b", "c"]) stage.program(name, { ADD: RESULT });
    const list = network(["a", "b", "c"]);
    await addNetwork(list, attached, stage.runtime());
    stage.called();
    await checkNetwork(list, attached, stage.runtime());
    assertEquals(stage.calledWith().every((line) => line.includes(`"prevResult":${RESULT}`)), true);
    stage.answer("b", "CHECK.fails", '{"code":102,"msg":"address is gone"}');
    const error = await assertRejects(() => checkNetwork(list, attached, stage.runtime()), CniError);
    assertEquals([error.code, error.msg], [102, "address is gone"]);
    assertEquals(stage.called(), ["CHECK a", "CHECK b"]);
  }));

Deno.test("network CHECK is refused below 0.4.0, skipped when disabled, and fails on an unusable cache", () =>
  onStage(async (stage) => {
    stage.program("a");
    await assertRejects(
      () => checkNetwork(network(["a"], { cniVersion: "0.3.1" }), attached, stage.runtime()),
      CniError,
      'configuration version "0.3.1" does not support the CHECK command',
    );
    await checkNetwork(network(["a"], { disableCheck: true }), attached, stage.runtime());
    assertEquals(stage.called(), []);
    await checkNetwork(network(["a"]), attached, stage.runtime());
    assertEquals(stage.called(), ["CHECK a"]);
    Deno.mkdirSync(stage.cache);
    Deno.writeTextFileSync(cachePath(stage.cache, attached), "[");
    await assertRejects(
      () => checkNetwork(network(["a"]), attached, stage.runtime()),
      CniError,
      'failed to get network "net" cached result: ',
    );
  }));

Deno.test("network STATUS asks nobody below 1.1.0 and keeps the plugin's code", () =>
  onStage(async (stage) => {
    stage.program("a", { "STATUS.fails": '{"code":50,"msg":"no addresses"}' });
    await statusNetwork(network(["a"]), stage.runtime());
    assertEquals(stage.called(), []);
    const list = network(["a"], { cniVersion: "1.1.0" });
    const error = await assertRejects(() => statusNetwork(list, stage.runtime()), CniError);
    assertEquals([error.code, error.msg], [50, "no addresses"]);
    assertEquals(stage.calledWith(), ['STATUS a id= netns= if= args= {"cniVersion":"1.1.0","name":"net","type":"a"}']);
  }));

Deno.test("network GC deletes what is not valid with its own arguments, then tells every plugin", () =>
  onStage(async (stage) => {
    stage.program("a", { ADD: RESULT });
    stage.program("b", { ADD: RESULT });
    const list = network(["a", "b"], { cniVersion: "1.1.0" });
    for (const containerId of ["c1", "c2", "c3"]) {
      await addNetwork(list, { ...attached, containerId, args: [["ID", containerId]] }, stage.runtime());
    }
    writeCache(stage.cache, list, { ...attached, network: "other" }, JSON.parse(RESULT));
    stage.called();
    stage.answer("b", "GC.fails", '{"code":9,"msg":"later"}');
    const error = await assertRejects(
      () => gcNetwork(list, stage.runtime(), [{ containerID: "c2", ifname: "eth0" }]),
      CniError,
    );
    assertEquals([error.code, error.msg], [9, "failed to GC plugin b: later"]);
    const lines = stage.calledWith();
    assertEquals(lines.map((line) => line.split(" ").slice(0, 3).join(" ")), [
      "DEL b id=c1",
      "DEL a id=c1",
      "DEL b id=c3",
      "DEL a id=c3",
      "GC a id=",
      "GC b id=",
    ]);
    assertEquals(lines[2]?.includes("args=ID=c3"), true);
    assertEquals(lines[4]?.includes('"cni.dev/valid-attachments":[{"containerID":"c2","ifname":"eth0"}]'), true);
    assertEquals(stage.cached(), ["c2 eth0", "c1 eth0"]);
  }));

Deno.test("network GC without a list deletes everything, and tells no plugin what is valid", () =>
  onStage(async (stage) => {
    stage.program("a", { ADD: RESULT });
    const list = network(["a"], { cniVersion: "1.1.0" });
    for (const containerId of ["c1", "c2"]) await addNetwork(list, { ...attached, containerId }, stage.runtime());
    stage.called();
    stage.answer("a", "DEL.fails", '{"code":5,"msg":"stuck"}');
    const error = await assertRejects(() => gcNetwork(list, stage.runtime()), CniError);
    assertEquals(
      error.msg,
      'failed to delete stale attachment c1 eth0: plugin type="a" failed (delete): stuck; plugin 1 of 1 of network "net"\n' +
        'failed to delete stale attachment c2 eth0: plugin type="a" failed (delete): stuck; plugin 1 of 1 of network "net"',
    );
    assertEquals(stage.called(), ["DEL a", "DEL a", "GC a"]);
    stage.silence("a", "DEL.fails");
    const { deleted } = await gcNetwork(list, stage.runtime());
    assertEquals(deleted.map(({ containerId }) => containerId), ["c1", "c2"]);
    assertEquals(stage.calledWith().at(-1)?.includes("valid-attachments"), false);
  }));

Deno.test("network GC sends no GC below 1.1.0 and does nothing when disabled", () =>
  onStage(async (stage) => {
    stage.program("a", { ADD: RESULT });
    await addNetwork(network(["a"]), attached, stage.runtime());
    stage.called();
    await gcNetwork(network(["a"], { disableGC: true }), stage.runtime());
    assertEquals(stage.called(), []);
    await gcNetwork(network(["a"]), stage.runtime());
    assertEquals(stage.called(), ["DEL a"]);
  }));

Deno.test("the versions of a program are asked for as the reference library does", () =>
  onStage(async (stage) => {
    const runtime = stage.runtime({ own: ownPlugin([]) });
    stage.program("a", { VERSION: '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}' });
    assertEquals(await probeVersions("a", runtime), ["0.4.0", "1.0.0"]);
    assertEquals(stage.calledWith(), ['VERSION a id= netns=dummy if=dummy args= {"cniVersion":"1.1.0"}']);
    assertEquals(await probeVersions("own", runtime), since("0.1.0"));
    stage.answer("a", "VERSION", '{"cniVersion":"0.2.0"}');
    assertEquals(await probeVersions("a", runtime), ["0.1.0", "0.2.0"]);
    stage.answer("a", "VERSION", '{"cniVersion":"1.0.0"}');
    await assertRejects(
      () => probeVersions("a", runtime),
      CniError,
      "decoding version info: missing field supportedVersions",
    );
    stage.answer("a", "VERSION", "{}");
    await assertRejects(() => probeVersions("a", runtime), CniError, "decoding version info: missing field cniVersion");
    stage.answer("a", "VERSION.fails", '{"code":4,"msg":"unknown CNI_COMMAND: VERSION"}');
    assertEquals(await probeVersions("a", runtime), ["0.1.0"]);
  }));
