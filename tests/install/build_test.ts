import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { DENO_VERSION, PINNED } from "../../tools/base.ts";
import { PERMISSIONS, writeChunks } from "../../tools/build.ts";
import type { Place } from "../../tools/embed.ts";
import { build, CNIBOX, copyTree, otherVersion, ROOT, run, succeed, sumOf, temporaryFolder } from "./support.ts";

/** The base of this machine, kept once it has built. */
const kept = join(ROOT, ".cache", `denort-${DENO_VERSION}-${Deno.build.arch}`);
const noStrace = (await run("sh", ["-c", "command -v strace"])).code !== 0;

Deno.test("build and its shell scripts name the same Deno", async () => {
  assertStringIncludes(await Deno.readTextFile(join(ROOT, "tools", "deno.sh")), `\nversion=${DENO_VERSION}\n`);
});

Deno.test("build grants neither network nor FFI, and never asks", () => {
  for (const right of ["--deny-net", "--deny-ffi", "--deny-import", "--no-prompt"]) {
    assert(PERMISSIONS.includes(right), `${PERMISSIONS}`);
  }
});

Deno.test("build of the same source in another place and time gives the same bytes", async () => {
  using folder = temporaryFolder();
  const trees = [join(folder.path, "a"), join(folder.path, "b", "with a space", "and-a-longer-name")];
  const sums = [];
  for (const [index, tree] of trees.entries()) {
    await copyTree(tree);
    await Deno.utime(join(tree, "main.ts"), index * 1e9, index * 1e9);
    const { code, stderr } = await build(tree, []);
    assertEquals(code, 0, stderr);
    sums.push(await sumOf(join(tree, "dist", "cnibox")));
    assertEquals([...Deno.readDirSync(join(tree, "dist"))].map(({ name }) => name).sort(), ["cnibox", "cnibox.base"]);
  }
  assertEquals(sums[0], sums[1]);
});

/** Where the chunks of the executable under test lie. */
async function chunksOf(bytes: Uint8Array): Promise<Record<string, Place>> {
  const { size: base } = await Deno.stat(kept);
  const [, json = ""] = /\bCHUNKS=(\{[^}]*\})/.exec(new TextDecoder("latin1").decode(bytes.subarray(base))) ?? [];
  return JSON.parse(json);
}

Deno.test("build embeds every plugin as a chunk of its own, in front of what the compiler embeds", async () => {
  const names = (await succeed(CNIBOX, ["plugins", "--names"])).stdout.trim().split("\n");
  const bytes = await Deno.readFile(CNIBOX);
  const places = await chunksOf(bytes);
  for (const name of names) {
    const [at, text] = places[name] ?? [0, 0];
    const start = new TextDecoder().decode(bytes.subarray(at, at + text));
    assert(start.startsWith('"use strict";'), `${name} is not among ${Object.keys(places)}`);
  }
  // Their text is compiled already: the build itself has seen that the engine takes this code.
  for (const name of ["bridge", "host-local", "portmap", "firewall", "ptp", "loopback"]) {
    const [, , code = 0] = places[name] ?? [];
    assert(code > 0, `${name} comes without compiled code`);
  }
  // The rest is what every start reads: the entry, and the compiler's own notes.
  const end = Math.max(...Object.values(places).map(([at, text, code]) => at + text + code));
  assert(bytes.length - end < 20_000, `the compiler embeds ${bytes.length - end} bytes`);
});

Deno.test("the warm-up run plays calls nowhere but in an empty folder", async () => {
  using folder = temporaryFolder();
  await Deno.writeTextFile(join(folder.path, "somebody's"), "");
  for (const scratch of ["", "relative", folder.path]) {
    // Without the right to write: what it would write lies in the folders of this machine.
    const warmUp = ["run", "--no-prompt", "--allow-read", join(ROOT, "tools", "warm_up.ts"), folder.path, scratch];
    const { code, stderr } = await run(Deno.execPath(), warmUp);
    assertEquals(code, 1);
    assertMatch(stderr, /is not an empty folder/);
  }
});

Deno.test("build makes chunks that run without their compiled code too", async () => {
  using folder = temporaryFolder();
  await writeChunks(join(ROOT, "main.ts"), folder.path);
  const start = join(folder.path, "plain.ts");
  await Deno.writeTextFile(
    start,
    `import { ENTRY, program } from ${JSON.stringify(join(ROOT, "tools/loader.ts"))};
    const textOf = (chunk) => Deno.readTextFileSync(\`\${import.meta.dirname}/chunks/\${chunk}.js\`);
    program((chunk) => (0, eval)(textOf(chunk)))(ENTRY);`,
  );
  const program = (args: string[], env: Record<string, string> = {}) =>
    succeed(Deno.execPath(), ["run", "--no-config", "--no-lock", "--no-prompt", "-A", start, ...args], { env });
  assertMatch((await program(["version"])).stdout, /^cnibox v\d/);
  assertMatch((await program(["schema", "bridge"])).stdout, /"hairpinMode"/);
  const { stdout } = await program(["bridge"], { CNI_COMMAND: "VERSION" });
  assertStringIncludes(stdout, '"supportedVersions"');
});

Deno.test("a program that is replaced while it runs reads its own chunks to the end", async () => {
  using folder = temporaryFolder();
  const running = join(folder.path, "cnibox"), beside = join(folder.path, "beside"), pipe = join(folder.path, "pipe");
  await Deno.copyFile(CNIBOX, running);
  await succeed("mkfifo", [pipe]);
  const child = new Deno.Command(running, { args: ["validate", pipe], stdout: "piped" }).spawn();
  // It has read its first chunks when it reads the pipe; those that know the plugin are read afterwards.
  const writer = await Deno.open(pipe, { write: true });
  await Deno.writeTextFile(beside, "#!/bin/false\n", { mode: 0o755 });
  await Deno.rename(beside, running);
  await writer.write(new TextEncoder().encode('{"cniVersion":"1.0.0","name":"n","type":"bridge","bridge":7}'));
  writer.close();
  assertStringIncludes(new TextDecoder().decode((await child.output()).stdout), '"bridge" is 7');
});

Deno.test("build gives a program without network, FFI and prompts, and with what the plugins need", async () => {
  using folder = temporaryFolder();
  const main = join(folder.path, "probe.ts");
  await Deno.writeTextFile(
    main,
    `const answer = async (ask) => {
      try {
        await ask();
        return "granted";
      } catch (error) {
        return error.constructor.name;
      }
    };
    Deno.stdout.writeSync(new TextEncoder().encode(JSON.stringify({
      connect: await answer(() => Deno.connect({ port: 9 })),
      listen: await answer(() => Deno.listen({ port: 0 })),
      resolve: await answer(() => Deno.resolveDns("localhost", "A")),
      fetch: await answer(() => fetch("http://127.0.0.1:9/")),
      ffi: await answer(() => Deno.dlopen("libc.so.6", {})),
      read: await answer(() => Deno.readTextFile("/etc/hostname")),
      write: await answer(() => Deno.writeTextFile(Deno.args[0]?.startsWith("/") ? Deno.args[0] : "/dev/null", "")),
      env: await answer(() => Deno.env.toObject()),
      run: await answer(() => new Deno.Command("true").output()),
      uid: await answer(() => Deno.uid()),
    })));`,
  );
  const output = join(folder.path, "probe");
  const built = await build(ROOT, ["--main", main, "--output", output]);
  assertEquals(built.code, 0, built.stderr);
  const { stdout } = await succeed(output, [join(folder.path, "written")]);
  const refused = "NotCapable", granted = "granted";
  assertEquals(JSON.parse(stdout), {
    connect: refused,
    listen: refused,
    resolve: refused,
    fetch: refused,
    ffi: refused,
    read: granted,
    write: granted,
    env: granted,
    run: granted,
    uid: granted,
  });
});

Deno.test({
  name: "program of the build opens nothing below the temporary folder",
  ignore: noStrace,
  fn: async () => {
    using folder = temporaryFolder();
    const bin = join(folder.path, "bin"), trace = join(folder.path, "trace");
    await succeed(join(ROOT, "install.sh"), ["--no-deps", "--from", CNIBOX, "--bin-dir", bin]);
    for (const [name, env] of [["loopback", { CNI_COMMAND: "VERSION" }], ["cnibox", {}]] as const) {
      await succeed("strace", ["-f", "-s", "4096", "-e", "trace=%file", "-o", trace, join(bin, name), "--version"], {
        env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", TMPDIR: "/tmp/of-anybody", ...env },
        clear: true,
        cwd: "/",
      });
      const paths = [...(await Deno.readTextFile(trace)).matchAll(/"(\/[^"]*)"/g)].map(([, path]) => path ?? "");
      assert(paths.length > 20, "the trace shows no file at all");
      // The program itself may lie there: the project may have been cloned into a temporary folder.
      const foreign = paths.filter((path) => !path.startsWith(`${bin}/`));
      assertEquals(foreign.filter((path) => /^\/(var\/)?tmp(\/|$)/.test(path)), []);
    }
  },
});

Deno.test("build says which DENORT_BIN it cannot use", async () => {
  using folder = temporaryFolder();
  const output = join(folder.path, "out");
  const cases = [["/etc/passwd", "is not a base of Deno"], ["/there/is/none", "there is no file"]] as const;
  for (const [file, words] of cases) {
    const { code, stderr } = await build(ROOT, ["--output", output], { DENORT_BIN: file });
    assertEquals(code, 1);
    assertMatch(stderr, new RegExp(`^error: DENORT_BIN: .*${words}`, "m"));
    assertEquals([...Deno.readDirSync(folder.path)], []);
  }
});

Deno.test("build takes the base that DENORT_BIN names, and warns of it", async () => {
  using folder = temporaryFolder();
  const main = join(folder.path, "main.ts"), output = join(folder.path, "out"), base = join(folder.path, "base");
  await Deno.writeTextFile(main, otherVersion("1.2.3"));
  await Deno.copyFile(kept, base);
  const { code, stderr } = await build(ROOT, ["--main", main, "--output", output], { DENORT_BIN: base });
  assertEquals(code, 0, stderr);
  const sum = await sumOf(base);
  assertStringIncludes(
    stderr,
    `warning: the base is ${base}, SHA-256 ${sum}, because DENORT_BIN says so; tested is SHA-256 ${PINNED.sha256}\n`,
  );
  const record = await Deno.readTextFile(`${output}.base`);
  assertEquals(record, `Deno ${DENO_VERSION} for ${Deno.build.arch}, SHA-256 ${sum}, named by DENORT_BIN\n`);
  assertEquals((await succeed(output, ["--version"])).stdout, "cnibox v1.2.3\n");
});

Deno.test("build refuses a base that does not start, and leaves the program of before", async () => {
  using folder = temporaryFolder();
  const main = join(folder.path, "main.ts"), output = join(folder.path, "out"), base = join(folder.path, "base");
  await Deno.writeTextFile(main, otherVersion("1.2.3"));
  await Deno.writeTextFile(output, "the program of before");
  // Its ELF header promises an interpreter that is not there.
  const bytes = await Deno.readFile(kept);
  const loader = new TextEncoder().encode("/lib64/ld-linux");
  const at = bytes.findIndex((_, index) => loader.every((byte, offset) => bytes[index + offset] === byte));
  assert(at > 0 || Deno.build.arch !== "x86_64");
  bytes.set(new TextEncoder().encode("/none/"), Math.max(at, 0));
  await Deno.writeFile(base, bytes, { mode: 0o755 });
  const { code, stderr } = await build(ROOT, ["--main", main, "--output", output], { DENORT_BIN: base });
  assertEquals(code, 1);
  assertMatch(stderr, /the compiled program does not start on this base/);
  assertEquals(await Deno.readTextFile(output), "the program of before");
  assertEquals([...Deno.readDirSync(folder.path)].map(({ name }) => name).sort(), ["base", "main.ts", "out"]);
});
