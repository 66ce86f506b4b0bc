/** README says what is so: its table is the plugins' own words, and its commands do what it says. */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { dirname, fromFileUrl, join } from "@std/path";
import { COMMANDS } from "../lib/cli/commands.ts";
import { PACKAGES } from "../lib/cli/sbom.ts";
import { VERSION } from "../lib/version.ts";
import { loadPlugin, pluginNames } from "../plugins/mod.ts";
import { parts, unitFiles, written } from "../tools/docs.ts";
import { FRESH_ROOT, nodeTest, PATH } from "./e2e/support/mod.ts";
import { configure, must } from "./e2e/support/operator.ts";

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
  await node.write("/run/lesson/demo.conf", conf);
  const before = await node.run("ip", "-o", "link");
  const { code, stdout, stderr } = await node.exec(["/bin/sh", "-exc", `cd /run/lesson; ${script}`], {
    env: { PATH },
  });
  assertEquals(code, 0, stdout + stderr);
  assertStringIncludes(stdout, '"address": "10.85.0.2/24"');
  assertStringIncludes(stdout, '"address": "10.85.0.3/24"');
  assertStringIncludes(stdout, "-s 10.85.0.2/32");
  assertEquals((stdout.match(/1 received/g) ?? []).length, 2);
  assertEquals(await node.run("ip", "-o", "link"), before);
  assertEquals((await node.list("/var/lib/cni/networks/demo")).filter((name) => /^\d/.test(name)), []);
});

Deno.test("README is short enough for somebody with two minutes", () => {
  assert(readme.split("\n").length <= 150, `${readme.split("\n").length} lines`);
});

Deno.test("docs/README.md leads to every page and folder of docs/", () => {
  const index = Deno.readTextFileSync(join(root, "docs/README.md"));
  for (const { name, isDirectory } of Deno.readDirSync(join(root, "docs"))) {
    if (name === "README.md" || !(isDirectory || name.endsWith(".md"))) continue;
    if (!["examples", "plugins"].includes(name)) assertStringIncludes(index, isDirectory ? `(${name}/` : `(${name})`);
  }
});

Deno.test("docs/licenses.md names the runtime and every package of the bill of materials, with version and license", () => {
  const page = Deno.readTextFileSync(join(root, "docs/licenses.md"));
  const parts = [{ name: "Deno, the runtime base", version: Deno.version.deno, license: "MIT" }, ...PACKAGES];
  for (const { name, version, license } of parts) {
    const row = page.split("\n").find((line) => line.startsWith(`| ${name} `) || line.startsWith(`| \`${name}\` `));
    assertMatch(row ?? "", new RegExp(`\\| ${version} +\\| ${license} `), name);
  }
});

Deno.test("README's figures are those of docs/performance.md", () => {
  const page = Deno.readTextFileSync(join(root, "docs/performance.md"));
  for (const what of ["ADD and DEL of a pod", "ADD"]) {
    const row = new RegExp(`^\\| p2 .*at once: ${what}, a second, ([\\d.]+) / ([\\d.]+) *\\| ([\\d.]+) `, "m").exec(
      page,
    );
    const [, ours, theirs, ratio] = row ?? [];
    assertMatch(readme, new RegExp(`\\*\\*${ours}\\*\\* \\(${ratio} times\\) +\\| ${theirs} `), what);
  }
  const [, ours, theirs] = /^\| a .*ipMasq: ADD +\| ([\d.]+) +\| [\d.]+ +\| ([\d.]+)/m.exec(page) ?? [];
  assertMatch(readme, new RegExp(`\\| ${ours} ms +\\| \\*\\*${theirs} ms\\*\\*`));
});

Deno.test("README's commands and flags exist", async () => {
  const { stdout } = await new Deno.Command(join(root, "install.sh"), { args: ["--help"] }).output();
  const help = new TextDecoder().decode(stdout);
  const flags = [...readme.matchAll(/^\.\/install\.sh (--\w+)/gm)].map(([, flag = ""]) => flag);
  assertEquals(flags, ["--demo", "--replace"]);
  for (const flag of flags) assertMatch(help, new RegExp(`^ *${flag}\\b`, "m"));
  const words = [...readme.matchAll(/^(?:\$ )?cnibox (\w+)/gm)].map(([, word = ""]) => word);
  assert(words.includes("uninstall"));
  for (const word of words) assert(COMMANDS.some(({ name }) => name === word), word);
});

/** What README says is typed, and what it prints: `…` is any text, on a line of its own any lines. */
function session(): { typed: string; printed: RegExp }[] {
  const blocks = [...readme.matchAll(/```console\n([^]*?)```/g)].map(([, block = ""]) => block).join("");
  return blocks.split(/^\$ /m).slice(1).map((part) => {
    const [typed = "", ...lines] = part.trimEnd().split("\n");
    const pattern = (line: string) => line.split("…").map((text) => text.replace(/[^\w ]/g, "\\$&")).join(".*");
    return {
      typed,
      printed: new RegExp(`^${lines.map((l) => l === "…" ? "(.*\\n)*" : pattern(l) + "\\n").join("")}$`),
    };
  });
}

/** The two networks and three containers of README's picture. */
const PODS = {
  cniVersion: "1.1.0",
  name: "pods",
  plugins: [
    {
      type: "bridge",
      bridge: "cni0",
      isDefaultGateway: true,
      ipMasq: true,
      hairpinMode: true,
      ipam: { type: "host-local", ranges: [[{ subnet: "10.85.0.0/24" }]] },
    },
    { type: "portmap", capabilities: { portMappings: true } },
  ],
};
const LAN = {
  cniVersion: "1.1.0",
  name: "lan",
  plugins: [{
    type: "macvlan",
    master: "uplink",
    ipam: { type: "host-local", ranges: [[{ subnet: "192.0.2.0/24", rangeStart: "192.0.2.100" }]] },
  }],
};

nodeTest("README shows what cnibox prints: the picture, a failed ADD, explain, status, doctor, restore", {
  needs: ["bridge", "veth", "macvlan", "iptables"],
}, async ({ node }) => {
  await configure(node, PODS);
  await configure(node, LAN, "20-lan.conflist");
  await node.outside();
  for (const name of ["web", "db", "camera", "new"]) await node.run("ip", "netns", "add", name);
  await must(node, ["add", "pods", "web", "--id", "web", "-p", "8080:80"]);
  await must(node, ["add", "pods", "db", "--id", "db"]);
  await must(node, ["add", "lan", "camera", "--id", "camera"]);

  // The texts of the picture, in their order. To draw it again, write `drawn` to docs/three_pods.svg.
  const drawn = await node.sh("unshare --uts sh -c 'hostname node1; /opt/cni/bin/cnibox graph --format svg'");
  const texts = (svg: string) => [...svg.matchAll(/<text[^>]*>([^]*?)<\/text>/g)].map(([, text = ""]) => masked(text));
  const masked = (text: string) => text.replace(/<[^>]*>/g, "").replace(/veth[0-9a-f]{8}/, "veth…");
  const picture = Deno.readTextFileSync(join(root, "docs/three_pods.svg"));
  assert(texts(picture).includes("8080 → 80/tcp"));
  assertEquals(texts(drawn), texts(picture));

  assert(session().length > 5);
  for (const { typed, printed } of session()) {
    const { stdout } = await node.exec(["/bin/sh", "-c", `${typed} 2>&1`], {
      env: { PATH: FRESH_ROOT === undefined ? `/opt/cni/bin:${PATH}` : PATH },
    });
    assertMatch(stdout.replace(/ +$/gm, ""), printed, typed);
  }
});
