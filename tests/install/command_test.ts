/** `cnibox install`, `verify`, `rollback`, `uninstall`, and the list of what it is made of. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { dirname, fromFileUrl, join } from "@std/path";

const root = dirname(dirname(dirname(fromFileUrl(import.meta.url))));
const binary = Deno.env.get("CNIBOX_BINARY") ?? join(root, "dist/cnibox");
const ignore = Deno.uid() !== 0;

async function run(exe: string, ...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const { code, stdout, stderr } = await new Deno.Command(exe, { args, env: { NO_COLOR: "1" } }).output();
  return { code, stdout: new TextDecoder().decode(stdout), stderr: new TextDecoder().decode(stderr) };
}

async function inFolder(test: (dir: string) => Promise<void>): Promise<void> {
  const dir = await Deno.makeTempDir({ prefix: "cnibox-install-" });
  try {
    await test(dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

Deno.test({
  name: "cnibox install puts itself and every plugin there, keeps what is not ours, and uninstall puts all back",
  ignore,
  fn: () =>
    inFolder(async (dir) => {
      await Deno.writeTextFile(`${dir}/bridge`, "somebody else's");
      const first = await run(binary, "install", "--bin-dir", dir);
      assertEquals(first.code, 0, first.stderr);
      assertStringIncludes(first.stdout, "left alone: not ours");
      assertEquals(await Deno.readLink(`${dir}/host-local`), "cnibox");
      assertEquals((await run(binary, "verify", "--bin-dir", dir)).code, 1);
      assertEquals((await run(binary, "install", "--bin-dir", dir, "--replace")).code, 0);
      const verified = await run(binary, "verify", "--bin-dir", dir);
      assertEquals(verified.code, 0, verified.stdout);
      assertStringIncludes((await run(`${dir}/bridge`)).stderr, "CNI bridge plugin v");
      assertEquals((await run(binary, "uninstall", "--bin-dir", dir)).code, 0);
      assertEquals(await Deno.readTextFile(`${dir}/bridge`), "somebody else's");
      assertEquals([...Deno.readDirSync(dir)].map(({ name }) => name), ["bridge"]);
    }),
});

Deno.test({
  name: "an upgrade keeps the executable from before, and rollback brings it back",
  ignore,
  fn: () =>
    inFolder(async (dir) => {
      await Deno.writeTextFile(`${dir}/cnibox`, "#!/bin/sh\necho cnibox v0.0.1\n", { mode: 0o755 });
      assertEquals((await run(binary, "install", "--bin-dir", dir, "--plugins", "bridge")).code, 0);
      assertStringIncludes((await run(`${dir}/cnibox`, "version")).stdout, "cnibox v");
      const back = await run(binary, "rollback", "--bin-dir", dir);
      assertStringIncludes(back.stdout, "cnibox v0.0.1 is back");
      const forth = await run(binary, "rollback", "--bin-dir", dir);
      assertEquals(forth.code, 0, forth.stderr);
      assert((await Deno.stat(`${dir}/cnibox`)).size > 1_000_000);
    }),
});

Deno.test({
  name: "verify refuses another sum than the one asked for, and an executable that others may write",
  ignore,
  fn: () =>
    inFolder(async (dir) => {
      await run(binary, "install", "--bin-dir", dir);
      assertEquals((await run(binary, "verify", "--bin-dir", dir, "--sha256", "0".repeat(64))).code, 1);
      await Deno.chmod(`${dir}/cnibox`, 0o777);
      assertEquals((await run(binary, "verify", "--bin-dir", dir)).code, 1);
    }),
});

Deno.test("the bill of materials names runtime and packages, and the program imports no others", async () => {
  const { stdout } = await run(binary, "version", "--sbom");
  const document = JSON.parse(stdout) as {
    bomFormat: string;
    components: { name: string; version: string; purl: string }[];
  };
  assertEquals(document.bomFormat, "CycloneDX");
  const [deno, v8, ...packages] = document.components;
  assertEquals([deno?.name, v8?.name], ["deno", "v8"]);
  const { stdout: info } = await run(Deno.execPath(), "info", "--json", join(root, "main.ts"));
  const graph = JSON.parse(info) as { modules: { specifier: string }[] };
  const foreign = graph.modules.map(({ specifier }) => specifier).filter((one) => !/^(file|node|ext):/.test(one));
  const named = foreign.map((one) => /^npm:\/?((?:@[^@/]+\/)?[^@/]+)@([^/]+)/.exec(one)?.slice(1, 3).join("@") ?? one);
  assertEquals([...new Set(named)], packages.map(({ name, version }) => `${name}@${version}`));
  for (const { name, version, purl } of packages) {
    assertEquals(purl, `pkg:npm/${name.replace("@", "%40")}@${version}`);
  }
});
