/** The reference plugins are fetched from the suite that is named, whatever the machine's apt prefers. */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { lackOf } from "../e2e/support/needs.ts";

/**
 * apt as on a machine that pins sid low: without the suite's name, or with the machine's preferences, the release's
 * comes.
 */
const APT = `#!/bin/sh
echo "$*" >>"$LOG"
case "$*" in
  *" download "*) ;;
  *) exit 0 ;;
esac
[ "$SID" = no ] && case "$*" in */sid*) exit 100 ;; esac
version=1.1.1
case "$*" in
  *Dir::Etc::preferences=/dev/null*Dir::Etc::preferencesparts=/dev/null*/sid) version=1.9.1-ds1-1 ;;
esac
echo "$version" >containernetworking-plugins_$version.deb
`;
const DPKG = `#!/bin/sh
case "$1" in
  -x) mkdir -p "$3/usr/lib/cni" && printf '#!/bin/sh\\n' >"$3/usr/lib/cni/bridge" && chmod 755 "$3/usr/lib/cni/bridge" ;;
  -f) cat "$2" ;;
esac
`;

interface Fetched {
  readonly folder: string;
  readonly stderr: string;
  readonly log: string;
}

async function inTree(work: (fetch: (sid: boolean) => Promise<Fetched>) => Promise<void>): Promise<void> {
  const root = Deno.makeTempDirSync();
  try {
    Deno.mkdirSync(`${root}/tests/support`, { recursive: true });
    Deno.mkdirSync(`${root}/bin`);
    for (const name of ["reference.sh", "debian.sh"]) {
      Deno.copyFileSync(new URL(name, import.meta.url), `${root}/tests/support/${name}`);
    }
    Deno.writeTextFileSync(`${root}/bin/apt-get`, APT, { mode: 0o755 });
    Deno.writeTextFileSync(`${root}/bin/dpkg-deb`, DPKG, { mode: 0o755 });
    await work(async (sid) => {
      const { success, stdout, stderr } = await new Deno.Command("sh", {
        args: [`${root}/tests/support/reference.sh`],
        env: { PATH: `${root}/bin:/usr/bin:/bin`, LOG: `${root}/log`, SID: sid ? "yes" : "no", CNI_REFERENCE_DIR: "" },
      }).output();
      const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes).trim();
      assertEquals(success, true, text(stderr));
      return {
        folder: text(stdout).replace(`${root}/.cache/reference/`, ""),
        stderr: text(stderr),
        log: Deno.readTextFileSync(`${root}/log`),
      };
    });
  } finally {
    Deno.removeSync(root, { recursive: true });
  }
}

Deno.test("the suite is named, and the machine's preferences do not count", () =>
  inTree(async (fetch) => {
    const { folder, stderr, log } = await fetch(true);
    assertEquals([folder, stderr], ["1.9.1-ds1-1", ""]);
    assertMatch(log, /-o APT::Default-Release= .* download containernetworking-plugins\/sid$/m);
  }));

Deno.test("where only an older one can be had, that is said, and a newer one is looked for the next time", () =>
  inTree(async (fetch) => {
    const old = await fetch(false);
    assertEquals(old.folder, "1.1.1");
    assertStringIncludes(old.stderr, "only 1.1.1 could be had: tests that need 1.9 are skipped");
    assertEquals((await fetch(false)).folder, "1.1.1");
    assertEquals((await fetch(true)).folder, "1.9.1-ds1-1");
  }));

Deno.test("tests that need the reference are skipped with an older one, with the reason", () => {
  const root = Deno.makeTempDirSync();
  try {
    const folder = (version: string, protocols: string) => {
      Deno.mkdirSync(`${root}/${version}`);
      const text = `#!/bin/sh\necho "CNI protocol versions supported: ${protocols}" >&2\n`;
      Deno.writeTextFileSync(`${root}/${version}/bridge`, text, { mode: 0o755 });
      return `${root}/${version}`;
    };
    assertEquals(lackOf(folder("1.9.1-ds1-1", "0.4.0, 1.0.0, 1.1.0")), "");
    assertEquals(lackOf(folder("1.10.0", "0.4.0, 1.0.0, 1.1.0")), "");
    assertEquals(lackOf(folder("given", "0.4.0, 1.0.0, 1.1.0")), "");
    assertMatch(lackOf(folder("1.1.1-ds1-3", "0.4.0, 1.0.0")), /1\.1\.1-ds1-3 are 1\.1: needs 1\.9/);
    assertMatch(lackOf(folder("1.6.2", "0.4.0, 1.0.0, 1.1.0")), /are 1\.6: needs 1\.9/);
    assertMatch(lackOf(folder("cni", "0.4.0, 1.0.0")), /are before 1\.6: needs 1\.9/);
    assertMatch(lackOf(undefined), /run tests\/support\/reference.sh/);
  } finally {
    Deno.removeSync(root, { recursive: true });
  }
});
