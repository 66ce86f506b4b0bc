/** docs/architecture.md's "Add a plugin", followed to the letter in a copy of the project. */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { copyTree, isRoot, ROOT, run, succeed, temporaryFolder } from "./support.ts";

Deno.test({
  name: "a newcomer's plugin, made as the page says, is built, tested, and found by the operator's commands",
  ignore: !isRoot,
  fn: async () => {
    const page = await Deno.readTextFile(join(ROOT, "docs/architecture.md"));
    const section = page.split(/^## /m).find((part) => part.startsWith("Add a plugin\n")) ?? "";
    const [copy = "", line = "", test = "", trial = ""] = [...section.matchAll(/^```\w+\n(.*?)^```$/gms)].map((
      [, text],
    ) => text);
    using folder = temporaryFolder();
    const tree = join(folder.path, "tree");
    await copyTree(tree);
    await succeed("cp", ["-R", join(ROOT, "tests"), join(ROOT, "docs"), tree]);
    await succeed("sh", ["-euc", copy], { cwd: tree });
    const list = join(tree, "plugins/mod.ts"), text = await Deno.readTextFile(list);
    const changed = text.replace(/^(?= {2}"host-device": )/m, line);
    assertEquals(changed.split("\n").length, text.split("\n").length + 1);
    await Deno.writeTextFile(list, changed);
    await Deno.writeTextFile(join(tree, "tests/e2e/hello_test.ts"), test);
    const path = `${join(Deno.execPath(), "..")}:${Deno.env.get("PATH")}`;
    const { code, stdout, stderr } = await run("sh", ["-euc", trial], {
      cwd: tree,
      // Tests in this process may have said where their own plugins are.
      env: { PATH: path, CNIBOX_BINARY: join(tree, "dist/cnibox"), CNIBOX_E2E_BIN_DIR: "" },
    });
    assertEquals(code, 0, stdout + stderr);
    assertStringIncludes(stdout, "ok | 1 passed | 0 failed");
    const { stdout: names } = await succeed(join(tree, "dist/cnibox"), ["plugins", "--names"]);
    assertEquals(names.split("\n").filter((name) => name === "hello"), ["hello"]);
  },
});
