/**
 * How an executable gets into the page cache decides what its calls cost: it is read from start to end before its first
 * run.
 */
import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { CNIBOX, ROOT, run, succeed, temporaryFolder } from "./support.ts";

const noStrace = (await run("sh", ["-c", "command -v strace"])).code !== 0;
const isRoot = Deno.uid() === 0;

/**
 * Bytes read of files whose path matches `of`, by the command and all its children, before the first program whose path
 * matches `run` is started. Undefined when none is.
 */
async function readBefore(command: string[], { of, run }: { of: RegExp; run: RegExp }): Promise<number | undefined> {
  using folder = temporaryFolder();
  const path = join(folder.path, "trace");
  await succeed("strace", ["-f", "-y", "-s", "0", "-e", "trace=execve,read", "-o", path, ...command]);
  let bytes = 0;
  for (const line of (await Deno.readTextFile(path)).split("\n")) {
    const [, file = "", count] = /read\(\d+<([^>]*)>.* = (\d+)$/.exec(line) ?? [];
    if (of.test(file)) bytes += Number(count);
    if (run.test(/execve\("([^"]*)"/.exec(line)?.[1] ?? "")) return bytes;
  }
  return undefined;
}

const size = Deno.statSync(CNIBOX).size;

Deno.test({
  name: "install.sh reads the executable from start to end before it runs it",
  ignore: noStrace,
  fn: async () => {
    using folder = temporaryFolder();
    const draft = /\/\.cnibox\/work\.[^/]+\/cnibox$/;
    const command = [join(ROOT, "install.sh"), "--no-deps", `--from=${CNIBOX}`, `--bin-dir=${folder.path}/bin`];
    assertEquals(await readBefore(command, { of: draft, run: draft }), size);
  },
});

Deno.test({
  name: "cnibox install and rollback read the executable from start to end before they run it",
  ignore: noStrace || !isRoot,
  fn: async () => {
    using folder = temporaryFolder();
    const draft = /\/\.cnibox\/work\.[^/]+\/cnibox$/, flag = `--bin-dir=${folder.path}`;
    Deno.copyFileSync(CNIBOX, join(folder.path, "cnibox"));
    // Other bytes than those to be installed.
    Deno.writeTextFileSync(join(folder.path, "cnibox"), "\n", { append: true });
    assertEquals(await readBefore([CNIBOX, "install", flag], { of: draft, run: draft }), size);
    const back = await readBefore([CNIBOX, "rollback", flag], { of: draft, run: /\/test-[^/]+\/cnibox$/ });
    assertEquals(back, size + 1);
  },
});
