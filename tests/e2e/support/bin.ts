/** Where the plugins under test come from: the compiled binary behind symlinks, and the reference's folder. */
import { fromFileUrl, join } from "@std/path";
import { pluginNames } from "./plugins.ts";

const root = fromFileUrl(new URL("../../..", import.meta.url));

/** The project's folder for what may be thrown away. */
export const cacheDir = join(root, ".cache");

/**
 * A folder as the installer makes it: `cnibox`, and a relative symlink for each plugin and `cnitool`. Made once per
 * build, below .cache/e2e, from $CNIBOX_BINARY or dist/cnibox, so that a build beside a running test does not change
 * what it tests. Throws when there is no binary.
 */
export function cniboxDir(): string {
  const known = Deno.env.get("CNIBOX_E2E_BIN_DIR");
  if (known) return known;
  const binary = Deno.env.get("CNIBOX_BINARY") ?? join(root, "dist/cnibox");
  let info: Deno.FileInfo;
  try {
    info = Deno.statSync(binary);
  } catch {
    throw new Error(`${binary} is not there: \`deno task compile\` makes it`);
  }
  const parent = join(cacheDir, "e2e");
  const folder = join(parent, `bin-${info.mtime?.getTime()}-${info.size}`);
  if (!exists(folder)) make(binary, parent, folder);
  Deno.env.set("CNIBOX_E2E_BIN_DIR", folder);
  return folder;
}

// Appears whole by a rename; earlier builds' folders go, for each is as large as the binary.
function make(binary: string, parent: string, folder: string): void {
  Deno.mkdirSync(parent, { recursive: true });
  for (const entry of Deno.readDirSync(parent)) {
    const path = join(parent, entry.name);
    const old = Date.now() - (Deno.statSync(path).mtime?.getTime() ?? 0) > 3_600_000;
    if (entry.name.startsWith("bin-") && old) Deno.removeSync(path, { recursive: true });
  }
  const draft = Deno.makeTempDirSync({ dir: parent, prefix: "draft-" });
  Deno.copyFileSync(binary, join(draft, "cnibox"));
  Deno.chmodSync(join(draft, "cnibox"), 0o755);
  Deno.chmodSync(draft, 0o755);
  for (const name of [...pluginNames, "cnitool"]) Deno.symlinkSync("cnibox", join(draft, name));
  try {
    Deno.renameSync(draft, folder);
  } catch (error) {
    Deno.removeSync(draft, { recursive: true });
    if (!exists(folder)) throw error; // else another test process was quicker
  }
}

/**
 * Folder of the reference plugins; undefined when there is none on this machine (tests/support/reference.sh fetches
 * them).
 */
export function referenceDir(): string | undefined {
  const known = Deno.env.get("CNIBOX_E2E_REFERENCE");
  if (known !== undefined) return known || undefined;
  const { success, stdout } = new Deno.Command("sh", {
    args: [join(root, "tests/support/reference.sh"), "--offline"],
    stderr: "null",
  }).outputSync();
  const folder = success ? new TextDecoder().decode(stdout).trim() : "";
  Deno.env.set("CNIBOX_E2E_REFERENCE", folder);
  return folder || undefined;
}

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}
