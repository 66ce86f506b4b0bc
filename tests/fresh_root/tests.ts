/**
 * README's second command, on a root file system with nothing in it: a checkout whose test command gets what the tests
 * use, and runs them all. `deno task test:fresh-root --tests` runs this, and takes as long as all tests do.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { createNode, FRESH_ROOT, PATH } from "../e2e/support/mod.ts";
import { ROOT, run } from "../install/support.ts";

assert(FRESH_ROOT !== undefined, "run tests/fresh_root/run.sh");
const packages = Deno.env.get("CNIBOX_E2E_PACKAGES") ?? "";

/** The second command of README's section on installing. */
function command(): string {
  const [, block = ""] = /\n## Install[^]*?```sh\n([^]*?)```/.exec(Deno.readTextFileSync(join(ROOT, "README.md"))) ??
    [];
  const [, second = ""] = block.split("\n");
  assertMatch(second, /^sh tests\/run\.sh +# in a checkout/);
  return second;
}

Deno.test("README's second command gets what the tests use on a bare Debian, and passes them all", async () => {
  const checkout = join(FRESH_ROOT, "root/checkout");
  const cloned = await run("git", ["clone", "--quiet", "--no-hardlinks", ROOT, checkout]);
  assertEquals(cloned.code, 0, cloned.stderr);
  await using node = await createNode({
    installing: true,
    cgroups: true,
    binds: { "/var/cache/apt/archives": packages },
  });
  const { code } = await node.exec(["/bin/sh", "-c", `cd /root/checkout\n{ ${command()}\n} >/root/log 2>&1`], {
    env: { PATH, HOME: "/root", NO_COLOR: "1" },
    timeout: 4 * 3_600_000,
  });
  const log = Deno.readTextFileSync(join(FRESH_ROOT, "root/log"));
  const lines = log.split("\n");
  // Those of the two runs of `deno test`; what a test is skipped for stands in its name.
  const counts = lines.filter((line) => /^(ok|FAILED) \| \d+ passed/.test(line));
  const failed = lines.filter((line) => / \.\.\. FAILED|^error: /.test(line));
  const skipped = new Set([...log.matchAll(/\[skipped: ([^\]]+)\]/g)].map(([, why]) => why));
  // deno-lint-ignore no-console -- what ran, and what did not, is the result
  console.log([...counts, ...[...skipped].map((why) => `skipped: ${why}`), ...failed].join("\n"));
  assertEquals(counts.length, 2, lines.slice(-40).join("\n"));
  assertEquals(code, 0, log.slice(log.indexOf(" ERRORS "), log.indexOf(" ERRORS ") + 20_000));
});
