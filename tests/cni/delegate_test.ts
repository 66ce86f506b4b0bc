import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { findPlugin } from "../../lib/cni/delegate.ts";
import { runForeign } from "../../lib/cni/foreign.ts";
import { CniError } from "../../lib/cni/error.ts";

/** A folder with a program in it, removed afterwards. */
async function withProgram(script: string, test: (dir: string, file: string) => Promise<void>): Promise<void> {
  const dir = await Deno.makeTempDir({ prefix: "cnibox-test-" });
  try {
    await Deno.writeTextFile(`${dir}/ipam`, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
    await test(dir, `${dir}/ipam`);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

const call = (verb: "ADD" | "DEL" = "ADD") => ({
  verb,
  env: { PATH: "/usr/bin:/bin", MARK: "kept" },
  stdin: new TextEncoder().encode('{"a":1}'),
  version: "1.0.0",
});

Deno.test("a plugin is the first regular file of its name on CNI_PATH", async () => {
  await withProgram("", async (dir, file) => {
    await Deno.mkdir(`${dir}/first/ipam`, { recursive: true });
    await Deno.symlink(file, `${dir}/linked`);
    assertEquals(findPlugin("ipam", [`${dir}/first`, dir]), file);
    assertEquals(findPlugin("linked", [dir]), `${dir}/linked`);
  });
  const table: [string, string[], string][] = [
    ["", ["/x"], "no plugin name provided"],
    ["a/b", ["/x"], "invalid plugin name: a/b"],
    ["..", ["/x"], "invalid plugin name: .."],
    ["x", [], "no paths provided"],
    ["x", ["/a", "/b"], 'failed to find plugin "x" in path [/a /b]'],
  ];
  for (const [name, path, msg] of table) assertEquals(assertThrows(() => findPlugin(name, path), CniError).msg, msg);
});

Deno.test("a foreign plugin gets the same bytes, the environment and the command", async () => {
  await withProgram(
    'input=$(cat); printf \'{"dns":{"domain":"%s %s %s"}}\' "$CNI_COMMAND" "$MARK" "$(printf %s "$input" | wc -c | tr -d " ")"',
    async (_, file) => {
      const { result } = await runForeign(file, call());
      assertEquals(result, { cniVersion: "1.0.0", dns: { domain: "ADD kept 7" } });
    },
  );
});

Deno.test("every way of failing has the reference library's error", async () => {
  const table: [string, string, number, RegExp][] = [
    ["an error object", 'echo \'{"code":50,"msg":"m","details":"d","x":1}\'; exit 1', 50, /^m; d$/],
    ["an object without code", 'echo \'{"msg":"m"}\'; exit 1', 0, /^m$/],
    [
      "code as a string",
      'echo \'{"code":"1","msg":"m"}\'; exit 1',
      0,
      /^netplugin failed but error parsing its diagnostic message /,
    ],
    [
      "garbage",
      "printf 'no \"json\"'; exit 3",
      0,
      /^netplugin failed but error parsing its diagnostic message "no \\"json\\"": /,
    ],
    ["stderr only", "printf 'oh\\nno' >&2; exit 1", 0, /^netplugin failed: "oh\\nno"/],
    ["nothing", "exit 3", 0, /^netplugin failed with no error message: exit status 3$/],
    ["a signal", "kill -9 $$", 0, /^netplugin failed with no error message: signal: killed$/],
    ["no answer to ADD", "exit 0", 999, /^failed to unmarshal raw result: unexpected end of JSON input$/],
    ["a list", "echo '[]'", 999, /^failed to unmarshal raw result: /],
    ["an unknown version", 'echo \'{"cniVersion":"9.0.0"}\'', 999, /^unsupported CNI result version "9.0.0"$/],
  ];
  for (const [what, script, code, message] of table) {
    await withProgram(script, async (_, file) => {
      const error = await assertRejects(() => runForeign(file, call()), CniError, undefined, what);
      assertEquals(error.code, code, what);
      assertEquals(message.test(error.message), true, `${what}: ${error.message}`);
    });
  }
});

Deno.test("null, an error object with status 0, and an old version are answers", async () => {
  const table: [string, object][] = [
    ["echo null", { cniVersion: "1.0.0" }],
    ['echo \'{"code":5,"msg":"m"}\'', { cniVersion: "1.0.0" }],
    ['echo \'{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"}}\'', {
      cniVersion: "0.2.0",
      ips: [{ address: "10.0.0.2/24" }],
    }],
  ];
  for (const [script, expected] of table) {
    await withProgram(script, async (_, file) => assertEquals((await runForeign(file, call())).result, expected));
  }
});

Deno.test("what a foreign plugin prints for other commands than ADD is ignored", async () => {
  await withProgram(
    "echo nonsense",
    async (_, file) => assertEquals((await runForeign(file, call("DEL"))).result, undefined),
  );
});

Deno.test({
  name: "a foreign plugin that cannot start or does not end is told apart",
  // Nobody waits for the output of one that was killed: its own children may keep it open.
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async () => {
    await withProgram("sleep 20", async (_, file) => {
      const late = await assertRejects(() => runForeign(file, { ...call(), limitMs: 100 }), CniError);
      assertEquals([late.code, late.msg], [11, `plugin ${file} did not answer ADD within 0.1 s`]);
      await Deno.chmod(file, 0o644);
      const dead = await assertRejects(() => runForeign(file, call()), CniError);
      assertEquals([dead.code, dead.msg], [
        0,
        `netplugin failed with no error message: fork/exec ${file}: permission denied`,
      ]);
    });
  },
});
