/** README says what is so: its table is the plugins' own words, and its commands do what it says. */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { dirname, fromFileUrl, join } from "@std/path";
import { VERSION } from "../lib/version.ts";
import { loadPlugin, pluginNames } from "../plugins/mod.ts";
import { parts, unitFiles, written } from "../tools/docs.ts";
import { nodeTest } from "./e2e/support/mod.ts";

const root = dirname(dirname(fromFileUrl(import.meta.url)));
const readme = Deno.readTextFileSync(join(root, "README.md"));

for (const part of parts) {
  Deno.test(`${part.file} says of its ${part.name} what the code says; deno task docs writes it`, async () => {
    assertEquals(written(part), (await part.text()).trim());
  });
}

Deno.test("systemd/ has the units that cnibox install puts down; deno task docs writes them", () => {
  const there = [...Deno.readDirSync(join(root, "systemd"))].map(({ name }) => `systemd/${name}`).sort();
  assertEquals(there, unitFiles().map(([file]) => file).sort());
  for (const [file, text] of unitFiles()) assertEquals(Deno.readTextFileSync(join(root, file)), text);
});

Deno.test("every plugin has a page that names every key it reads", async () => {
  for (const name of pluginNames) {
    const page = Deno.readTextFileSync(join(root, "docs/plugins", `${name}.md`));
    const plugin = await loadPlugin(name);
    for (const key of Object.keys(plugin?.keys ?? {})) {
      if (["ipam", "args", "runtimeConfig", "prevResult", "name", "cniVersion", "type"].includes(key)) continue;
      assertStringIncludes(page, `\`${key}\``, `docs/plugins/${name}.md`);
    }
  }
});

Deno.test("files that are linked exist", () => {
  for (
    const file of [
      "README.md",
      ...[...Deno.readDirSync(join(root, "docs"))].filter(({ name }) => name.endsWith(".md")).map(({ name }) =>
        `docs/${name}`
      ),
    ]
  ) {
    const text = Deno.readTextFileSync(join(root, file));
    for (const [, target = ""] of text.matchAll(/\]\(([^)#:]+)(?:#[^)]*)?\)/g)) {
      Deno.statSync(join(root, dirname(file), target));
    }
  }
});

Deno.test("the version is the one of deno.json", () => {
  assertEquals(VERSION, `v${JSON.parse(Deno.readTextFileSync(join(root, "deno.json"))).version}`);
});

/** The shell blocks below "Connect a container by hand", in order, and the configuration. */
function lesson(): { conf: string; script: string } {
  const start = readme.indexOf("## Connect a container by hand");
  const part = readme.slice(start, readme.indexOf("\n## ", start + 5));
  const blocks = (language: string) =>
    [...part.matchAll(new RegExp(`\`\`\`${language}\\n([\\s\\S]*?)\`\`\``, "g"))].map((match) => match[1] ?? "");
  return { conf: blocks("json")[0] ?? "", script: blocks("sh").join("\n") };
}

nodeTest("README's lesson runs as written: two containers, each other's ping, nothing left", {
  needs: ["bridge", "veth", "iptables"],
}, async ({ node }) => {
  const { conf, script } = lesson();
  await node.write("/root/demo.conf", conf);
  const before = await node.run("ip", "-o", "link");
  const { code, stdout, stderr } = await node.exec(["/bin/sh", "-exc", `cd /root; ${script}`], {
    env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" },
  });
  assertEquals(code, 0, stdout + stderr);
  assertStringIncludes(stdout, '"address": "10.85.0.2/24"');
  assertStringIncludes(stdout, '"address": "10.85.0.3/24"');
  assertStringIncludes(stdout, "-s 10.85.0.2/32");
  assertEquals((stdout.match(/1 received/g) ?? []).length, 2);
  assertEquals(await node.run("ip", "-o", "link"), before);
  assertEquals((await node.list("/var/lib/cni/networks/demo")).filter((name) => /^\d/.test(name)), []);
});
