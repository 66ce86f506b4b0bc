import { assertEquals } from "@std/assert";
import { forgetTools, isTrustedFolder, searchMoreFolders, toolEnvPath, toolPath } from "../../lib/kernel/tool_path.ts";

/** A folder that only root can write to, and so all above it; gone when closed. */
function rootsFolder(): Disposable & { path: string } {
  const path = Deno.makeTempDirSync({ dir: "/run", prefix: "cnibox-tools-" });
  Deno.chmodSync(path, 0o755);
  return { path, [Symbol.dispose]: () => Deno.removeSync(path, { recursive: true }) };
}

const asRoot = { ignore: Deno.uid() !== 0 };

Deno.test("a folder is trusted when only root can write to it and to all above it", asRoot, () => {
  using folder = rootsFolder();
  const { path } = folder;
  Deno.mkdirSync(`${path}/open/own`, { recursive: true });
  Deno.mkdirSync(`${path}/group`);
  Deno.mkdirSync(`${path}/others`);
  Deno.chmodSync(`${path}/open`, 0o1777);
  Deno.chmodSync(`${path}/group`, 0o775);
  Deno.chownSync(`${path}/others`, 1000, 1000);
  Deno.symlinkSync(`${path}/open/own`, `${path}/link`);
  Deno.symlinkSync("/usr/bin", `${path}/open/to-bin`);
  Deno.writeTextFileSync(`${path}/file`, "");
  const cases: Record<string, boolean> = {
    "": true,
    "/": true,
    "/open": false,
    "/open/own": false,
    "/group": false,
    "/others": false,
    // Where it leads, and where it lies.
    "/link": false,
    "/open/to-bin": false,
    "/file": false,
    "/none": false,
  };
  for (const [name, trusted] of Object.entries(cases)) {
    assertEquals([name, isTrustedFolder(path + name)], [name, trusted]);
  }
  for (const relative of [".", "bin", ""]) assertEquals(isTrustedFolder(relative), false);
});

Deno.test("the system's folders come first, then trusted ones of PATH that hold no plugins", asRoot, () => {
  using folder = rootsFolder();
  const { path } = folder;
  const before = Deno.env.get("PATH") ?? "";
  for (const name of ["tools", "plugins"]) Deno.mkdirSync(`${path}/${name}`);
  for (const name of ["tools/ip", "tools/only-here", "plugins/host-local", "plugins/bridge"]) {
    Deno.writeTextFileSync(`${path}/${name}`, "", { mode: 0o755 });
  }
  try {
    Deno.env.set("PATH", `/tmp:${path}/plugins:${path}/tools:relative:/usr/bin`);
    forgetTools();
    assertEquals(toolEnvPath(), "/usr/sbin:/usr/bin:/sbin:/bin");
    assertEquals(toolPath("sh"), "/usr/bin/sh");
    assertEquals(toolPath("only-here"), `${path}/tools/only-here`);
    assertEquals(toolEnvPath().split(":").slice(0, 5), ["/usr/sbin", "/usr/bin", "/sbin", "/bin", `${path}/tools`]);
    assertEquals(toolEnvPath().includes("plugins"), false);
    assertEquals(searchMoreFolders(), false);
    assertEquals(toolPath("nowhere"), "");
  } finally {
    Deno.env.set("PATH", before);
    forgetTools();
  }
});
