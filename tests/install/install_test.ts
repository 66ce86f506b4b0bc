import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { build, CNIBOX, isRoot, listing, otherVersion, ROOT, run, succeed, sumOf, temporaryFolder } from "./support.ts";

const installer = join(ROOT, "install.sh");
const busybox = await run("sh", ["-c", "command -v busybox && busybox httpd --help 2>&1 | grep -q '^Usage: httpd'"]);

/** The program under test, as it is now: a compilation beside this test replaces dist/cnibox. */
const programs = temporaryFolder();
globalThis.addEventListener("unload", () => programs[Symbol.dispose]());
const cnibox = join(programs.path, "cnibox");
Deno.linkSync(CNIBOX, cnibox);
const types = (await succeed(cnibox, ["plugins", "--names"])).stdout.trim().split("\n");
/** The executable, and the name by which it is the CNI library's command line. */
const commands = { cnibox: "755", cnitool: "-> cnibox" };
/** What an upgrade leaves beside it: the executable before, for calls that have started. */
const replaced = { "cnibox (deleted)": "755" };
const links = Object.fromEntries(types.map((name) => [name, "-> cnibox"]));

/** Another version of it. */
const other = join(programs.path, "other");
{
  const main = join(programs.path, "main.ts");
  await Deno.writeTextFile(main, otherVersion("9.9.9"));
  const { code, stderr } = await build(ROOT, ["--main", main, "--output", other]);
  assertEquals(code, 0, stderr);
}

function install(bin: string, from: string, args: string[] = [], env: Record<string, string> = {}) {
  return run(installer, ["--no-deps", "--bin-dir", bin, "--from", from, ...args], { env });
}

async function installed(bin: string, from: string, args: string[] = []): Promise<string> {
  const { code, stdout, stderr } = await install(bin, from, args);
  assertEquals([code, stderr], [0, ""]);
  return stdout;
}

/** An installation beside plugins of others. */
async function installedBeside(
  bin: string,
  from: string,
  args: string[] = [],
): Promise<{ stdout: string; stderr: string }> {
  const { code, stdout, stderr } = await install(bin, from, args);
  assertEquals(code, 73, stderr);
  return { stdout, stderr };
}

async function uninstalled(bin: string): Promise<string> {
  return (await succeed(installer, ["--uninstall", "--bin-dir", bin])).stdout;
}

const version = async (path: string) => (await succeed(path, ["--version"])).stdout;

Deno.test("install puts one executable and a relative link for every plugin into place", async () => {
  using folder = temporaryFolder();
  const bin = join(folder.path, "made", "by", "install");
  const table = await installed(bin, cnibox);
  assertEquals(listing(bin), { ".cnibox": "/", ...commands, ...links });
  assertEquals(await sumOf(join(bin, "cnibox")), await sumOf(cnibox));
  assertEquals(Deno.statSync(join(bin, "cnibox")).uid, Deno.uid());
  assertEquals(listing(join(bin, ".cnibox")), { lock: "644", "made-this-folder": "644" });
  for (const name of types) {
    assertMatch(table, new RegExp(`^${join(bin, name)} +-> cnibox$`, "m"));
    const { stdout } = await succeed(join(bin, name), [], { env: { CNI_COMMAND: "VERSION" } });
    assertStringIncludes(stdout, '"supportedVersions"');
  }
  // Folders that it made go too, but for what others have put there.
  Deno.writeTextFileSync(join(folder.path, "made", "note"), "");
  await uninstalled(bin);
  assertEquals(listing(folder.path), { made: "/" });
  assertEquals(listing(join(folder.path, "made")), { note: "644" });
});

Deno.test("install run again changes nothing and says so", async () => {
  using folder = temporaryFolder();
  await installed(folder.path, cnibox);
  const before = Deno.statSync(join(folder.path, "cnibox")).ino;
  const table = await installed(folder.path, cnibox);
  assertEquals(Deno.statSync(join(folder.path, "cnibox")).ino, before);
  assertEquals(table.split("\n").filter((line) => line.endsWith("unchanged")).length, 2 + types.length);
  assertEquals(listing(join(folder.path, ".cnibox")), { lock: "644" });
});

Deno.test("install keeps the version before, and goes back to it", async () => {
  using folder = temporaryFolder();
  const path = join(folder.path, "cnibox"), previous = join(folder.path, ".cnibox", "previous");
  await installed(folder.path, cnibox);
  assertStringIncludes(await installed(folder.path, other), "the one before kept for rollback");
  assertEquals(await version(path), "cnibox v9.9.9\n");
  assertEquals(await sumOf(previous), await sumOf(cnibox));
  await installed(folder.path, previous);
  assertEquals(await sumOf(path), await sumOf(cnibox));
  assertEquals(await version(previous), "cnibox v9.9.9\n");
});

Deno.test("install links only the plugins that are asked for, and knows their names", async () => {
  using folder = temporaryFolder();
  const [first = "", second = ""] = types;
  await installed(folder.path, cnibox, [`--plugins=${first},${second}`]);
  assertEquals(listing(folder.path), { ".cnibox": "/", ...commands, [first]: "-> cnibox", [second]: "-> cnibox" });
  using empty = temporaryFolder();
  const bin = join(empty.path, "bin");
  const { code, stderr } = await install(bin, cnibox, ["--plugins", `${first},brigde`]);
  assertEquals(code, 1);
  assertStringIncludes(stderr, 'there is no plugin "brigde"');
  assertStringIncludes(stderr, `there are: ${types.join(" ")}`);
  assertEquals(listing(empty.path), {});
});

Deno.test("install leaves files that are not ours alone, names them, and ends with a status of its own", async () => {
  using folder = temporaryFolder();
  const [file = "", link = "", directory = ""] = types;
  Deno.writeTextFileSync(join(folder.path, file), "another's plugin");
  Deno.symlinkSync("somewhere/else", join(folder.path, link));
  Deno.mkdirSync(join(folder.path, directory));
  const { stdout: table, stderr } = await installedBeside(folder.path, cnibox);
  for (const name of [file, link, directory]) {
    assertMatch(table, new RegExp(`^${join(folder.path, name)} +left alone: not ours$`, "m"));
  }
  assertMatch(stderr, new RegExp(`not replaced: ${[file, link, directory].join(" ")}$`, "m"));
  assertEquals(listing(folder.path), {
    ".cnibox": "/",
    ...commands,
    ...links,
    [file]: "644",
    [link]: "-> somewhere/else",
    [directory]: "/",
  });
  await uninstalled(folder.path);
  assertEquals(listing(folder.path), { [file]: "644", [link]: "-> somewhere/else", [directory]: "/" });
});

Deno.test("install --replace moves files of others out of the way, --uninstall puts them back", async () => {
  using folder = temporaryFolder();
  const [file = "", link = "", directory = ""] = types;
  Deno.writeTextFileSync(join(folder.path, file), "another's plugin", { mode: 0o750 });
  Deno.symlinkSync("somewhere/else", join(folder.path, link));
  Deno.mkdirSync(join(folder.path, directory));
  Deno.writeTextFileSync(join(folder.path, "weave-net"), "nothing that we know");
  const before = listing(folder.path);
  const { stdout: table, stderr } = await installedBeside(folder.path, cnibox, ["--replace"]);
  assertMatch(stderr, new RegExp(`not replaced: ${directory}$`, "m"));
  assertStringIncludes(stderr, "a folder is in the way: remove it");
  // A folder cannot be a plugin: it is somebody's mistake, to be looked at.
  assertEquals(table.match(/^.* left alone: not ours/gm)?.length, 1);
  assertMatch(table, new RegExp(`^${join(folder.path, directory)} +left alone: not ours`, "m"));
  assertEquals(listing(folder.path), { ...before, ".cnibox": "/", ...commands, ...links, [directory]: "/" });
  // Again, and with another version in between: what is kept is still what was there first.
  await installedBeside(folder.path, other, ["--replace"]);
  await installedBeside(folder.path, cnibox, ["--replace"]);
  await uninstalled(folder.path);
  assertEquals(listing(folder.path), before);
  assertEquals(Deno.readTextFileSync(join(folder.path, file)), "another's plugin");
});

Deno.test("install beside plugins of others prints the command that swaps them, and the way back", async () => {
  using folder = temporaryFolder();
  const bin = join(folder.path, "with space"), [theirs = "", ours = ""] = types;
  Deno.mkdirSync(bin);
  Deno.writeTextFileSync(join(bin, theirs), "another's plugin");
  const before = listing(bin);
  const { stderr } = await installedBeside(bin, cnibox, ["--plugins", `${theirs},${ours}`]);
  assertStringIncludes(stderr, `not replaced: ${theirs}\n`);
  const advised = (words: RegExp) => words.exec(stderr)?.[1] ?? "";
  const swap = advised(/^ {2}to swap, with the files kept: (.*)$/m), back = advised(/^ {2}the way back: (.*)$/m);
  await succeed("sh", ["-c", swap], { cwd: "/" });
  const both = { [theirs]: "-> cnibox", [ours]: "-> cnibox" };
  assertEquals(listing(bin), { ".cnibox": "/", ...commands, ...both });
  await succeed("sh", ["-c", back], { cwd: "/" });
  assertEquals(listing(bin), before);
  // For scripts: the same status, and one document.
  const { code, stdout, stderr: silent } = await run(cnibox, [
    "install",
    "--json",
    "--bin-dir",
    bin,
    "--plugins",
    theirs,
  ]);
  const { notReplaced, swap: told } = JSON.parse(stdout);
  assertEquals([code, notReplaced, silent], [73, [theirs], ""]);
  await succeed("sh", ["-c", told], { cwd: "/" });
  assertEquals(listing(bin)[theirs], "-> cnibox");
});

Deno.test("install --uninstall leaves a file alone that took a plugin's place since, with the backup beside it", async () => {
  using folder = temporaryFolder();
  const [name = ""] = types;
  Deno.writeTextFileSync(join(folder.path, name), "first");
  await installed(folder.path, cnibox, ["--replace"]);
  Deno.removeSync(join(folder.path, name));
  Deno.writeTextFileSync(join(folder.path, name), "second");
  assertStringIncludes(await uninstalled(folder.path), "kept: other files have taken these places");
  assertEquals(listing(folder.path), { ".cnibox": "/", [name]: "644" });
  assertEquals(Deno.readTextFileSync(join(folder.path, name)), "second");
  assertEquals(Deno.readTextFileSync(join(folder.path, ".cnibox", "replaced", name)), "first");
});

Deno.test("install --uninstall twice, or where nothing is, succeeds", async () => {
  using folder = temporaryFolder();
  const bin = join(folder.path, "bin");
  await installed(bin, cnibox);
  await uninstalled(bin);
  assertEquals(listing(folder.path), {});
  assertEquals(await uninstalled(bin), `nothing of ours in ${bin}\n`);
  assertEquals(listing(folder.path), {});
});

Deno.test("install takes over links and copies of its own that were made by other means", async () => {
  using folder = temporaryFolder();
  const [absolute = "", hard = "", copy = ""] = types;
  Deno.copyFileSync(cnibox, join(folder.path, "cnibox"));
  Deno.symlinkSync(join(folder.path, "cnibox"), join(folder.path, absolute));
  Deno.linkSync(join(folder.path, "cnibox"), join(folder.path, hard));
  Deno.copyFileSync(cnibox, join(folder.path, copy));
  await installed(folder.path, cnibox);
  assertEquals(listing(folder.path), { ".cnibox": "/", ...commands, ...links });
});

const strace = (await run("sh", ["-c", "command -v strace"])).code === 0;

Deno.test({
  name: "install killed at any step leaves every name whole, and the next run does the rest",
  ignore: !strace,
  fn: async () => {
    using folder = temporaryFolder();
    const [foreign = "", fresh = "", third = ""] = types, chosen = [foreign, fresh, third];
    // strace counts each kind of call by itself.
    const calls = ["rename", "link", "linkat", "symlink", "unlink", "mkdir"];
    const sums = [await sumOf(cnibox), await sumOf(other)];
    const itself = (
      bin: string,
      args: string[] = [],
    ) => ["install", `--bin-dir=${bin}`, `--plugins=${chosen}`, ...args];
    let killed = 0;
    for (let at = 0, count = 1; at < calls.length; count++) {
      const step = `${calls[at]} ${count}`, bin = join(folder.path, `bin-${calls[at]}-${count}`);
      Deno.mkdirSync(bin);
      Deno.writeTextFileSync(join(bin, foreign), "another's plugin");
      assertEquals((await run(cnibox, itself(bin))).code, 73);
      Deno.removeSync(join(bin, fresh));
      const inject = `inject=${calls[at]}:signal=KILL:when=${count}`;
      const { code } = await run("strace", ["-qq", "-o/dev/null", "-e", inject, other, ...itself(bin, ["--replace"])]);
      const between = listing(bin);
      assertEquals(between.cnibox, "755", `step ${step}`);
      assert(
        sums.includes(await sumOf(join(bin, "cnibox"))),
        `step ${step}: cnibox is neither the old nor the new one`,
      );
      assert([undefined, "-> cnibox"].includes(between[fresh]), `step ${step}: ${fresh} is ${between[fresh]}`);
      assertEquals(between[third], "-> cnibox", `step ${step}`);
      const kept = between[foreign] === "644" ? join(bin, foreign) : join(bin, ".cnibox", "replaced", foreign);
      assertEquals(Deno.readTextFileSync(kept), "another's plugin", `step ${step}`);
      await succeed(other, itself(bin, ["--replace"]));
      const whole = Object.fromEntries(chosen.map((name) => [name, "-> cnibox"]));
      assertEquals(listing(bin), { ".cnibox": "/", ...commands, ...replaced, ...whole }, `step ${step}`);
      assertEquals(listing(join(bin, ".cnibox")), { lock: "644", previous: "755", replaced: "/" }, `step ${step}`);
      await uninstalled(bin);
      assertEquals(listing(bin), { [foreign]: "644" }, `step ${step}`);
      Deno.removeSync(bin, { recursive: true });
      if (code === 0) [at, count] = [at + 1, 0];
      else killed++;
    }
    assert(killed > 10, `only ${killed} steps were interrupted`);
  },
});

Deno.test("install replaces the program while it is being called, and no call fails", async () => {
  using folder = temporaryFolder();
  await installed(folder.path, cnibox);
  const [name = ""] = types;
  let upgrading = true, calls = 0;
  const failures: unknown[] = [];
  const callers = [1, 2, 3].map(async () => {
    while (upgrading) {
      const ended = await run(join(folder.path, name), [], { env: { CNI_COMMAND: "VERSION" } });
      if (ended.code !== 0 || ended.stderr !== "" || !ended.stdout.includes('"supportedVersions"')) {
        failures.push(ended);
      }
      calls++;
    }
  });
  for (let upgrade = 0; upgrade < 20; upgrade++) await installed(folder.path, upgrade % 2 === 0 ? other : cnibox);
  upgrading = false;
  await Promise.all(callers);
  assertEquals(failures, []);
  assert(calls > 100, `only ${calls} calls were made`);
  assertEquals(listing(folder.path), { ".cnibox": "/", ...commands, ...replaced, ...links });
});

Deno.test("install run twice while a call starts leaves it the version in between", async () => {
  using folder = temporaryFolder();
  const path = join(folder.path, "cnibox"), called = join(folder.path, "called");
  Deno.mkdirSync(called);
  Deno.symlinkSync("/proc/self/fd/3", join(called, "cnibox"));
  // What the call finds then: the file that it runs has no name any more, and the old one is of another version.
  const upgraded = 'exec 3<"$1"; rm "$1"; cp "$2" "$1 (deleted)"; exec "$3/cnibox" --version';
  for (const [runs, found] of [[cnibox, other], [other, cnibox]] as const) {
    await Deno.copyFile(runs, path);
    assertEquals((await succeed("sh", ["-c", upgraded, "sh", path, found, called])).stdout, await version(found));
  }
});

Deno.test("install by two at once ends with one whole installation", async () => {
  using folder = temporaryFolder();
  const bin = join(folder.path, "bin");
  await Promise.all([installed(bin, cnibox), installed(bin, cnibox), installed(bin, other)]);
  assertEquals(listing(bin), { ".cnibox": "/", ...commands, ...replaced, ...links });
  assertMatch(await version(join(bin, "cnibox")), /^cnibox v/);
});

Deno.test("install refuses a program that does not start, and changes nothing", async () => {
  using folder = temporaryFolder();
  await installed(folder.path, cnibox);
  const broken = join(folder.path, "broken");
  const bytes = await Deno.readFile(cnibox);
  await Deno.writeFile(broken, bytes.subarray(0, 1_000_000));
  const before = listing(folder.path);
  const { code, stderr } = await install(folder.path, broken);
  assertEquals(code, 1);
  assertMatch(stderr, /does not start; nothing was changed/);
  assertEquals(listing(folder.path), before);
  assertEquals(await sumOf(join(folder.path, "cnibox")), await sumOf(cnibox));
});

Deno.test("install refuses a program for another machine, a text, and a file that is not there", async () => {
  using folder = temporaryFolder();
  const bin = join(folder.path, "bin"), given = join(folder.path, "given");
  const bytes = (await Deno.readFile(cnibox)).subarray(0, 100_000);
  bytes[18] = 0x28;
  const cases: [Uint8Array, RegExp][] = [
    [bytes, /built for another kind of machine/],
    [new TextEncoder().encode("#!/bin/sh\n"), /neither an executable nor a release archive/],
    [new Uint8Array(), /neither an executable nor a release archive/],
    [new Uint8Array([0x1f, 0x8b, 8, 0, 1, 2, 3]), /cannot be read: it is cut short/],
  ];
  for (const [content, words] of cases) {
    await Deno.writeFile(given, content);
    const { code, stderr } = await install(bin, given);
    assertEquals(code, 1);
    assertMatch(stderr, words);
  }
  await Deno.remove(given);
  assertMatch((await install(bin, given)).stderr, /there is no file/);
  assertEquals(listing(folder.path), {});
});

Deno.test("install holds a program to the SHA256SUMS beside it", async () => {
  using folder = temporaryFolder();
  const bin = join(folder.path, "bin"), given = join(folder.path, "given");
  Deno.mkdirSync(given);
  Deno.copyFileSync(cnibox, join(given, "cnibox"));
  Deno.writeTextFileSync(join(given, "SHA256SUMS"), `${await sumOf(other)}  cnibox\n`);
  const { code, stderr } = await install(bin, join(given, "cnibox"));
  assertEquals(code, 1);
  assertMatch(stderr, /refused: .* differs from its sum/);
  Deno.writeTextFileSync(join(given, "SHA256SUMS"), `${await sumOf(cnibox)}  cnibox\n`);
  await installed(bin, join(given, "cnibox"));
});

Deno.test("install says what is wrong with its arguments", async () => {
  for (
    const [args, words] of [
      [["--bindir", "/x"], "unknown option --bindir"],
      [["--bin-dir"], "--bin-dir needs a value"],
      [["--from="], "--from needs a value"],
      [["bridge"], "unknown option bridge"],
    ] as const
  ) {
    const { code, stdout, stderr } = await run(installer, [...args]);
    assertEquals([code, stdout, stderr], [1, "", `install.sh: ${words}; see --help\n`]);
  }
  const { stdout } = await succeed(installer, ["--help"]);
  for (const option of (await Deno.readTextFile(installer)).matchAll(/^ {6}(--[a-z-]+)\)/gm)) {
    if (option[1] !== "--demo-inside") assertStringIncludes(stdout, `\n  ${option[1]} `);
  }
});

Deno.test("install on a machine of another kind, or with an old glibc, ends before anything is touched", async () => {
  using folder = temporaryFolder();
  const bin = join(folder.path, "bin"), shims = join(folder.path, "shims");
  for (
    const [tool, answer, words] of [
      [
        "uname",
        "case $1 in -m) echo riscv64 ;; *) echo Linux ;; esac",
        "cnibox needs x86_64 or aarch64; this machine is riscv64",
      ],
      ["uname", "echo FreeBSD", "cnibox runs on Linux; this is FreeBSD"],
      ["getconf", "echo glibc 2.26", "cnibox needs glibc 2.27 or newer; this system has 2.26"],
    ] as const
  ) {
    Deno.mkdirSync(shims);
    Deno.writeTextFileSync(join(shims, tool), `#!/bin/sh\n${answer}\n`, { mode: 0o755 });
    const { code, stderr } = await install(bin, cnibox, [], { PATH: `${shims}:/usr/bin:/bin` });
    assertEquals([code, stderr], [1, `install.sh: ${words}\n`]);
    Deno.removeSync(shims, { recursive: true });
  }
  assertEquals(listing(folder.path), {});
});

Deno.test({
  name: "install on a system without glibc says so in one sentence",
  ignore: !isRoot || busybox.code !== 0,
  fn: async () => {
    using folder = temporaryFolder();
    Deno.mkdirSync(join(folder.path, "bin"));
    Deno.copyFileSync(busybox.stdout.trim(), join(folder.path, "bin", "busybox"));
    Deno.copyFileSync(installer, join(folder.path, "install.sh"));
    const applets = (await succeed(busybox.stdout.trim(), ["--list"])).stdout.trim().split("\n");
    for (const applet of applets) {
      if (applet !== "busybox") Deno.symlinkSync("busybox", join(folder.path, "bin", applet));
    }
    const { code, stdout, stderr } = await run("chroot", [folder.path, "/bin/sh", "/install.sh"], {
      env: { PATH: "/bin:/usr/sbin" },
    });
    assertEquals([code, stdout], [1, ""]);
    assertMatch(stderr, /^install\.sh: cnibox needs glibc 2\.27 or newer; this system has no \S+ \(musl.*\)\n$/);
    assertEquals(Object.keys(listing(folder.path)), ["bin", "install.sh"]);
  },
});

Deno.test({
  name: "install by an ordinary user into a folder of root's says what to do",
  ignore: !isRoot,
  fn: async () => {
    const { code, stderr } = await run("sh", [
      "-c",
      'exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -s -- --bin-dir=/opt/there-is-none/bin <"$0"',
      installer,
    ], { cwd: "/" });
    assertEquals(code, 1);
    assertMatch(
      stderr,
      /cannot write to \/opt\/there-is-none\/bin: run as root, or name another folder with --bin-dir/,
    );
  },
});

Deno.test("install without packages names what is missing, and goes on", async () => {
  using folder = temporaryFolder();
  const tools = join(folder.path, "tools"), bin = join(folder.path, "bin");
  await onlyTools(tools);
  const { code, stdout, stderr } = await run("/bin/sh", [
    // The installer adds the usual folders to PATH; without them it sees this machine's tools no more.
    "-c",
    `sed 's|^PATH=.*|PATH=${tools}|' "$0" | sh -s -- "$@"`,
    installer,
    "--no-deps",
    `--bin-dir=${bin}`,
    `--from=${cnibox}`,
  ], { env: { PATH: "/usr/bin:/bin" } });
  assertEquals(code, 0, stderr);
  assertMatch(
    stdout,
    /^ {2}tools +MISSING: conntrack iproute2 iptables nftables udhcpc util-linux +plugins will fail without them$/m,
  );
  assertEquals(listing(bin), { ".cnibox": "/", ...commands, ...links });
});

Deno.test({
  name: "install says on a terminal that packages are being installed, and in a pipe nothing of it",
  ignore: !isRoot || (await run("sh", ["-c", "command -v script"])).code !== 0,
  fn: async () => {
    using folder = temporaryFolder();
    const tools = join(folder.path, "tools"), alone = join(folder.path, "install.sh");
    await onlyTools(tools);
    Deno.symlinkSync((await succeed("sh", ["-c", "command -v sleep"])).stdout.trim(), join(tools, "sleep"));
    // It installs nothing, and takes its time.
    Deno.writeTextFileSync(join(tools, "apt-get"), "#!/bin/sh\nexec sleep 1.2\n", { mode: 0o755 });
    const source = await Deno.readTextFile(installer);
    Deno.writeTextFileSync(alone, source.replace(/^PATH=.*$/m, `PATH=${tools}`), { mode: 0o755 });
    const line = `${alone} --bin-dir=${join(folder.path, "bin")} --from=${cnibox}`;
    const { stdout } = await succeed("script", ["-qec", line, "/dev/null"]);
    assertMatch(stdout.replaceAll("\r\x1b[K", "<line>"), /<line>installing conntrack .* udhcpc util-linux, 0 s<line>/);
    const { stderr } = await succeed("sh", ["-c", line]);
    assertEquals(stderr, "");
  },
});

/** A folder with only what every system has: no package manager, no network tool, no Deno, no Node. */
async function onlyTools(folder: string): Promise<void> {
  Deno.mkdirSync(folder);
  const names =
    "sh cat sed awk grep sort tr cut od tar gzip sha256sum cmp cp mv ln rm rmdir mkdir mktemp chmod chown " +
    "readlink dirname basename uname id wc head sync getconf stat";
  for (const name of names.split(" ")) {
    const { stdout } = await succeed("sh", ["-c", `command -v ${name}`]);
    Deno.symlinkSync(stdout.trim(), join(folder, name));
  }
}
