import { assertEquals, assertMatch } from "@std/assert";
import { dirname, join, relative } from "@std/path";
import { DENO_VERSION, PINNED } from "../../tools/base.ts";
import { CNIBOX, copyTree, isRoot, listing, ROOT, run, succeed, sumOf, temporaryFolder } from "./support.ts";

/** One release, made in a tree of its own, for all tests. */
const made = temporaryFolder();
globalThis.addEventListener("unload", () => made[Symbol.dispose]());
const tree = join(made.path, "tree");
await copyTree(tree);
const { version } = JSON.parse(await Deno.readTextFile(join(tree, "deno.json")));
const name = `cnibox-${version}-linux-${Deno.build.arch}`;
const archive = join(tree, "dist", `${name}.tar.gz`);
const release = await run(join(tree, "install.sh"), ["--release"], { env: { DENO: Deno.execPath() } });
assertEquals(release.code, 0, release.stderr);
const types = (await succeed(join(tree, "dist", "cnibox"), ["plugins", "--names"])).stdout.trim().split("\n");
const whole = {
  ".cnibox": "/",
  cnibox: "755",
  cnitool: "-> cnibox",
  ...Object.fromEntries(types.map((name) => [name, "-> cnibox"])),
};

function install(bin: string, from: string) {
  return run(join(tree, "install.sh"), ["--no-deps", "--bin-dir", bin, "--from", from]);
}

Deno.test("release is one archive of root's plain files, and says where it is", async () => {
  assertEquals(release.stdout, `${archive}\n`);
  assertEquals(listing(join(tree, "dist")), {
    cnibox: "755",
    "cnibox.base": "644",
    [`${name}.tar.gz`]: "644",
    [`${name}.tar.gz.sha256`]: "644",
  });
  const { stdout } = await succeed("tar", ["--numeric-owner", "-tvzf", archive]);
  const entries = stdout.trim().split("\n").map((line) => line.split(/\s+/)).map((words) =>
    words.slice(0, 2).concat(words.slice(5))
  );
  const executables = ["cnibox", "install.sh"];
  assertEquals(
    entries,
    [...CONTENT, ...executables].sort().map((file) => [
      executables.includes(file) ? "-rwxr-xr-x" : "-rw-r--r--",
      "0/0",
      `${name}/${file}`,
    ]),
  );
});

/** Files below a folder, by their paths from there. */
function filesBelow(folder: string): string[] {
  return [...Deno.readDirSync(folder)].flatMap(({ name, isDirectory }) =>
    isDirectory ? filesBelow(join(folder, name)).map((path) => `${name}/${path}`) : [name]
  );
}

/** What a release holds beside its two programs. */
const CONTENT = [
  ...["BASE", "LICENSE", "README.md", "SHA256SUMS"],
  ...filesBelow(join(ROOT, "docs")).map((path) => `docs/${path}`),
  ...["cnibox", ...types.map((type) => `cnibox-${type}`)].map((page) => `man/man8/${page}.8`),
];

Deno.test("release holds the manual: every page that its own pages link, and pages that man reads", async () => {
  using folder = temporaryFolder();
  await succeed("tar", ["-xzf", archive, "-C", folder.path]);
  const unpacked = join(folder.path, name);
  for (const page of CONTENT.filter((path) => path.endsWith(".md"))) {
    const text = await Deno.readTextFile(join(unpacked, page));
    for (const [, target = ""] of text.matchAll(/\]\(([^)#:]+)(?:#[^)]*)?\)/g)) {
      const path = relative(unpacked, join(unpacked, dirname(page), target));
      // Links into the source are for those who have it.
      if (!/^(lib|plugins|tests|tools|deploy|systemd)\/|^main\.ts$/.test(path)) Deno.statSync(join(unpacked, path));
    }
  }
  assertMatch(await Deno.readTextFile(join(unpacked, "man/man8/cnibox-bridge.8")), /^\.TH CNIBOX-BRIDGE 8/);
  const sums = await Deno.readTextFile(join(unpacked, "SHA256SUMS"));
  const named = sums.trim().split("\n").map((line) => line.slice(66)).sort();
  assertEquals(named, [...CONTENT, "cnibox", "install.sh"].filter((path) => path !== "SHA256SUMS").sort());
});

Deno.test("release records the base that its executable is made of", async () => {
  const { stdout } = await succeed("tar", ["-xOzf", archive, `${name}/BASE`]);
  const base = join(tree, ".cache", `denort-${DENO_VERSION}-${Deno.build.arch}`);
  const [, sum] = /^Deno \S+ for \S+, SHA-256 ([0-9a-f]{64}), (not )?pinned\n$/.exec(stdout) ?? [];
  assertEquals(sum, await sumOf(base));
  if (Deno.build.arch === "x86_64") assertEquals(sum, PINNED.sha256);
});

Deno.test("release made again is the same, byte for byte", async () => {
  const before = await sumOf(archive);
  await succeed(join(tree, "install.sh"), ["--release"], { env: { DENO: Deno.execPath() } });
  assertEquals(await sumOf(archive), before);
  assertEquals(await Deno.readTextFile(`${archive}.sha256`), `${before}  ${name}.tar.gz\n`);
});

Deno.test("release installs from the archive, and from where it was unpacked", async () => {
  using folder = temporaryFolder();
  const bin = join(folder.path, "bin"), unpacked = join(folder.path, "unpacked");
  const first = await install(bin, archive);
  assertEquals(first.code, 0, first.stderr);
  assertEquals(listing(bin), whole);
  assertEquals(await sumOf(join(bin, "cnibox")), await sumOf(join(tree, "dist", "cnibox")));
  Deno.mkdirSync(unpacked);
  await succeed("tar", ["-xzf", archive, "-C", unpacked]);
  await succeed(join(unpacked, name, "install.sh"), ["--no-deps", `--bin-dir=${bin}-2`]);
  assertEquals(listing(`${bin}-2`), whole);
});

Deno.test({
  name: "release installs without network, Deno, Node and package managers",
  ignore: !isRoot,
  fn: async () => {
    using folder = temporaryFolder();
    const bin = join(folder.path, "bin"), tools = join(folder.path, "tools");
    Deno.mkdirSync(tools);
    const needed =
      "sh cat sed awk grep sort tr cut od tar gzip sha256sum cmp cp mv ln ls rm rmdir mkdir mktemp chmod " +
      "stat chown readlink dirname basename uname id wc head sync getconf";
    for (const tool of needed.split(" ")) {
      Deno.symlinkSync((await succeed("sh", ["-c", `command -v ${tool}`])).stdout.trim(), join(tools, tool));
    }
    // The installer adds the usual folders to PATH: in a namespace where they are empty but for what programs need.
    const { code, stderr } = await run("unshare", [
      "--net",
      "--",
      "sh",
      "-c",
      `sed 's|^PATH=.*|PATH=${tools}|' "$0" | env -i PATH=${tools} sh -s -- "$@"`,
      join(tree, "install.sh"),
      `--bin-dir=${bin}`,
      `--from=${archive}`,
    ]);
    assertEquals(code, 0, stderr);
    assertEquals(listing(bin), whole);
  },
});

Deno.test("release with one changed byte, cut short, or with files that do not belong there is refused", async () => {
  using folder = temporaryFolder();
  const bin = join(folder.path, "bin"), given = join(folder.path, "given.tar.gz"), work = join(folder.path, "work");
  const repacked = async (change: (inside: string) => void | Promise<void>, args: string[] = [name]) => {
    await Deno.remove(work, { recursive: true }).catch(() => {});
    Deno.mkdirSync(work);
    await succeed("tar", ["-xzf", archive, "-C", work]);
    await change(join(work, name));
    await succeed("tar", ["-C", work, "--use-compress-program=gzip -1", "-cf", given, ...args], {
      env: { TAR_OPTIONS: "-P" },
    });
  };
  const flip = (path: string) => {
    using file = Deno.openSync(path, { read: true, write: true });
    const byte = new Uint8Array(1), at = Math.floor(file.statSync().size / 2);
    file.seekSync(at, Deno.SeekMode.Start);
    file.readSync(byte);
    file.seekSync(at, Deno.SeekMode.Start);
    file.writeSync(byte.map((value) => value ^ 1));
  };
  const cases: [string, () => void | Promise<void>, RegExp][] = [
    ["one byte of the program", () => repacked((inside) => flip(join(inside, "cnibox"))), /differ from its SHA256SUMS/],
    [
      "one byte of a page",
      () => repacked((inside) => flip(join(inside, "docs/install.md"))),
      /differ from its SHA256SUMS/,
    ],
    [
      "one byte of the installer",
      () => repacked((inside) => flip(join(inside, "install.sh"))),
      /differ from its SHA256SUMS/,
    ],
    ["no sums", () => repacked((inside) => Deno.removeSync(join(inside, "SHA256SUMS"))), /lacks cnibox or SHA256SUMS/],
    ["a sum left out", () =>
      repacked((inside) => {
        const sums = join(inside, "SHA256SUMS");
        Deno.writeTextFileSync(sums, Deno.readTextFileSync(sums).replace(/^.* cnibox\n/m, ""));
        flip(join(inside, "cnibox"));
      }), /SHA256SUMS in .* does not name cnibox/],
    [
      "a file outside",
      () => repacked(() => Deno.writeTextFileSync(join(work, "outside"), ""), [name, `${name}/../outside`]),
      /holds files that no release/,
    ],
    [
      "a file outside, from below",
      () => repacked(() => Deno.writeTextFileSync(join(work, "outside"), ""), [name, `${name}/docs/../../outside`]),
      /holds files that no release/,
    ],
    ["a link in place of the program", () =>
      repacked((inside) => {
        Deno.removeSync(join(inside, "cnibox"));
        Deno.symlinkSync(CNIBOX, join(inside, "cnibox"));
      }), /holds something else than files/],
    ["a link in place of its folder", () =>
      repacked((inside) => {
        Deno.renameSync(inside, `${inside}-elsewhere`);
        Deno.symlinkSync(`${inside}-elsewhere`, inside);
      }), /holds files that no release/],
    [
      "a second name for a file",
      () => repacked((inside) => Deno.linkSync(join(inside, "LICENSE"), join(inside, "NOTICE"))),
      /something else than files/,
    ],
    ["an absolute path", () => repacked(() => {}, [name, "/etc/hostname"]), /holds files that no release/],
    ["cut short", async () => {
      Deno.copyFileSync(archive, given);
      await Deno.truncate(given, 1_000_000);
    }, /cut short|cannot be unpacked/],
    ["a wrong sum beside it", () => {
      Deno.copyFileSync(archive, given);
      Deno.writeTextFileSync(`${given}.sha256`, `${"0".repeat(64)}  given.tar.gz\n`);
    }, /differs from its sum/],
  ];
  for (const [what, prepare, words] of cases) {
    await prepare();
    const { code, stderr } = await install(bin, given);
    assertEquals(code, 1, what);
    assertMatch(stderr, words, what);
    assertEquals(await Deno.stat(bin).catch(() => undefined), undefined, what);
  }
});
