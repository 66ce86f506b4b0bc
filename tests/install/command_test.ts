/** `cnibox install`, `verify`, `rollback`, `uninstall`, and the list of what it is made of. */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
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
      assertEquals(first.code, 73, first.stderr);
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
  name: "install links cnibox and cnitool for people, and uninstall removes those links and nobody else's",
  ignore,
  fn: () =>
    inFolder(async (folder) => {
      const dir = `${folder}/plugins`, path = `${folder}/path`;
      const options = ["--bin-dir", dir, "--path-dir", path, "--plugins", "bridge"];
      await Deno.mkdir(path);
      assertEquals((await run(binary, "install", ...options)).code, 0);
      assertEquals(await Deno.readLink(`${dir}/cnitool`), "cnibox");
      for (const name of ["cnibox", "cnitool"]) {
        assertEquals(await Deno.readLink(`${path}/${name}`), `${dir}/cnibox`);
        assertEquals((await run(`${path}/${name}`, "--help")).code, 0);
      }
      assertStringIncludes((await run(`${path}/cnibox`, "--version")).stdout, "cnibox v");
      assertEquals((await run(binary, "install", ...options)).stdout.match(/unchanged/g)?.length, 5);
      assertEquals((await run(`${path}/cnibox`, "uninstall", ...options.slice(0, 4))).code, 0);
      // The folder that install made goes with what was in it.
      assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name), ["path"]);
      assertEquals([...Deno.readDirSync(path)], []);

      // Somebody else's: a program, and a link to another installation.
      await Deno.mkdir(dir);
      await Deno.writeTextFile(`${path}/cnitool`, "theirs");
      await Deno.symlink("/opt/other/cnibox", `${path}/cnibox`);
      await Deno.writeTextFile(`${dir}/cnitool`, "theirs");
      const { code, stdout } = await run(binary, "install", ...options, "--replace");
      assertEquals([code, stdout.match(/left alone: not ours/g)?.length], [0, 3]);
      assertEquals((await run(binary, "uninstall", ...options.slice(0, 4))).code, 0);
      for (const file of [`${path}/cnitool`, `${dir}/cnitool`]) assertEquals(await Deno.readTextFile(file), "theirs");
      assertEquals(await Deno.readLink(`${path}/cnibox`), "/opt/other/cnibox");
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

/** What somebody else may have prepared, each with the words of the refusal. */
const PREPARED: Readonly<Record<string, { words: RegExp; prepare(dir: string, victim: string): void }>> = {
  "a folder of another user": {
    words: /belongs to user 65534/,
    prepare: (dir) => Deno.chownSync(dir, 65534, 65534),
  },
  "a folder that others may write to": {
    words: /others may write to/,
    prepare: (dir) => Deno.chmodSync(dir, 0o1777),
  },
  "a folder below one that others may write to": {
    words: /others may write to/,
    prepare: (dir) => Deno.chmodSync(dirname(dir), 0o777),
  },
  "a folder of ours that is a link": {
    words: /\.cnibox is (not a folder|a link)/,
    prepare(dir, victim) {
      Deno.mkdirSync(`${victim}-folder`);
      Deno.symlinkSync(`${victim}-folder`, `${dir}/.cnibox`);
    },
  },
  "a folder of ours that is another user's": {
    words: /belongs to user 65534/,
    prepare(dir) {
      Deno.mkdirSync(`${dir}/.cnibox`);
      Deno.chownSync(`${dir}/.cnibox`, 65534, 65534);
    },
  },
  "a lock that is a link": {
    words: /lock(: it)? is (not a regular file|a symbolic link)/,
    prepare(dir, victim) {
      Deno.mkdirSync(`${dir}/.cnibox`);
      Deno.symlinkSync(victim, `${dir}/.cnibox/lock`);
    },
  },
  "a lock that is a FIFO": {
    words: /lock(: it)? is (not a regular file|a FIFO)/,
    prepare(dir) {
      Deno.mkdirSync(`${dir}/.cnibox`);
      new Deno.Command("mkfifo", { args: [`${dir}/.cnibox/lock`] }).outputSync();
    },
  },
};

for (const [what, { words, prepare }] of Object.entries(PREPARED)) {
  const installers = {
    "cnibox install": (dir: string) => run(binary, "install", "--bin-dir", dir),
    "install.sh": (dir: string) =>
      run("timeout", "60", join(root, "install.sh"), "--no-deps", "--no-units", "--from", binary, "--bin-dir", dir),
  };
  for (const [name, installer] of Object.entries(installers)) {
    Deno.test({
      name: `${name} refuses ${what}`,
      ignore,
      fn: () =>
        inFolder(async (folder) => {
          const dir = `${folder}/above/bin`, victim = `${folder}/victim`;
          Deno.mkdirSync(dir, { recursive: true });
          Deno.writeTextFileSync(victim, "untouched");
          prepare(dir, victim);
          const { code, stderr } = await installer(dir);
          assertEquals(code, 1, stderr);
          assertMatch(stderr, words);
          assertEquals(Deno.readTextFileSync(victim), "untouched");
          const left = [...Deno.readDirSync(dir)].map(({ name }) => name).filter((name) => name !== ".cnibox");
          assertEquals(left, []);
        }),
    });
  }
}

Deno.test({
  name: "verify refuses what others could replace, and an executable that is a link",
  ignore,
  fn: () =>
    inFolder(async (folder) => {
      const dir = `${folder}/bin`;
      const verify = async () => (await run(binary, "verify", "--bin-dir", dir)).code;
      assertEquals((await run(binary, "install", "--bin-dir", dir)).code, 0);
      assertEquals(await verify(), 0);
      const isRefused = async (spoil: () => void, restore: () => void) => {
        spoil();
        assertEquals(await verify(), 1, `${spoil}`);
        restore();
        assertEquals(await verify(), 0, `${restore}`);
      };
      await isRefused(() => Deno.chownSync(dir, 65534, 65534), () => Deno.chownSync(dir, 0, 0));
      await isRefused(() => Deno.chmodSync(dir, 0o775), () => Deno.chmodSync(dir, 0o755));
      await isRefused(() => Deno.chmodSync(folder, 0o777), () => Deno.chmodSync(folder, 0o700));
      await isRefused(() => Deno.chownSync(`${dir}/.cnibox`, 65534, 0), () => Deno.chownSync(`${dir}/.cnibox`, 0, 0));
      await isRefused(() => {
        Deno.renameSync(`${dir}/cnibox`, `${dir}/elsewhere`);
        Deno.symlinkSync("elsewhere", `${dir}/cnibox`);
      }, () => Deno.renameSync(`${dir}/elsewhere`, `${dir}/cnibox`));
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
  assertEquals([...new Set(named)].sort(), packages.map(({ name, version }) => `${name}@${version}`));
  for (const { name, version, purl } of packages) {
    assertEquals(purl, `pkg:npm/${name.replace("@", "%40")}@${version}`);
  }
});
