import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { COMMANDS } from "../../lib/cli/commands.ts";
import { mainPage, pluginPage } from "../../lib/cli/man.ts";
import { loadPlugin, pluginNames } from "../../plugins/mod.ts";

const hasGroff = (() => {
  try {
    return Deno.statSync("/usr/bin/groff").isFile;
  } catch {
    return false;
  }
})();

/** A page as people read it; fails when the formatter has anything to say about it. */
async function formatted(roff: string): Promise<string> {
  const child = new Deno.Command("/usr/bin/groff", {
    args: ["-man", "-Tascii", "-ww", "-P-cbou", "-rLL=200n"],
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(roff));
  await writer.close();
  const { code, stdout, stderr } = await child.output();
  assertEquals([code, new TextDecoder().decode(stderr)], [0, ""]);
  return new TextDecoder().decode(stdout);
}

Deno.test({
  name: `cnibox(8) names every command with every flag${hasGroff ? "" : " [skipped: no groff]"}`,
  ignore: !hasGroff,
  fn: async () => {
    const text = await formatted(mainPage("v0", pluginNames).replace(/[^\x20-\x7e\n]/g, "?"));
    for (const { name, flags, hidden } of COMMANDS) {
      if (hidden) continue;
      assertStringIncludes(text, `cnibox ${name}`);
      for (const flag of flags) assertStringIncludes(text, `--${flag.name}`, name);
    }
    for (const name of pluginNames) assertStringIncludes(text, `cnibox-${name}(8)`);
    assertStringIncludes(text, "cnibox show default/web");
  },
});

Deno.test({
  name: `every plugin has a page that names every key it reads${hasGroff ? "" : " [skipped: no groff]"}`,
  ignore: !hasGroff,
  fn: async () => {
    for (const name of pluginNames) {
      const plugin = (await loadPlugin(name))!;
      const text = await formatted(pluginPage(plugin, "v0").replace(/[^\x20-\x7e\n]/g, "?"));
      assertStringIncludes(text, plugin.about.slice(0, 30));
      for (const key of Object.keys(plugin.keys)) assertStringIncludes(text, key, name);
    }
    const local = (await loadPlugin("host-local"))!;
    const text = await formatted(pluginPage(local, "v0"));
    for (const key of ["ipam.ranges[][].exclude", "ipam.sticky", "ipam.dataDir"]) assertStringIncludes(text, key);
  },
});

Deno.test("nothing in a page is taken for a request: dots and quotes at the beginning of a line, backslashes", () => {
  const plugin = {
    name: "odd",
    kind: "meta" as const,
    about: ".so /etc/passwd",
    versions: ["1.0.0"],
    needs: ["'tool\\x"],
    keys: {},
    add: () => Promise.resolve({}),
    del: () => Promise.resolve(),
    check: () => Promise.resolve(),
    gc: () => Promise.resolve(),
    status: () => Promise.resolve(),
  };
  const lines = pluginPage(plugin, "v0").split("\n");
  assert(!lines.some((line) => line.startsWith(".so") || line.startsWith("'")));
  assert(!lines.some((line) => /\\x/.test(line)));
});
