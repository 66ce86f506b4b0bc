/** Helpers for the tests of build and installer: trees, programs and folders of their own, never the machine's. */
import { assertEquals } from "@std/assert";
import { dirname, fromFileUrl, join, toFileUrl } from "@std/path";
import { sha256 } from "../../tools/base.ts";

/** The project. */
export const ROOT = dirname(dirname(dirname(fromFileUrl(import.meta.url))));

/** The program under test, written by `deno task compile`. */
export const CNIBOX = join(ROOT, "dist", "cnibox");

export const isRoot = Deno.uid() === 0;

/** What a command left behind. */
export interface Ended {
  code: number;
  stdout: string;
  stderr: string;
}

/** Runs a command to its end, at most two minutes, with only the environment given. */
export async function run(
  command: string,
  args: string[],
  { env = {}, cwd, clear = false }: { env?: Record<string, string>; cwd?: string; clear?: boolean } = {},
): Promise<Ended> {
  const { code, stdout, stderr } = await new Deno.Command(command, {
    args,
    cwd,
    clearEnv: clear,
    env: { NO_COLOR: "1", ...env },
    stdin: "null",
    signal: AbortSignal.timeout(120_000),
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

/** As `run`, for a command that must succeed. */
export async function succeed(
  command: string,
  args: string[],
  options: Parameters<typeof run>[2] = {},
): Promise<Ended> {
  const ended = await run(command, args, options);
  assertEquals({ code: ended.code, stderr: ended.code === 0 ? "" : ended.stderr }, { code: 0, stderr: "" });
  return ended;
}

/** A folder that is removed at the end of `using`. Below .cache/, because a node's /tmp may forbid execution. */
export function temporaryFolder(): { path: string } & Disposable {
  const cache = join(ROOT, ".cache");
  Deno.mkdirSync(cache, { recursive: true });
  const path = Deno.makeTempDirSync({ dir: cache, prefix: "test-" });
  return { path, [Symbol.dispose]: () => Deno.removeSync(path, { recursive: true }) };
}

/**
 * A copy of what is built and installed from, at `path`, so that builds of tests never write to this tree. It shares
 * the cache, and with it the compiler and the base that are already here.
 */
export async function copyTree(path: string): Promise<void> {
  await Deno.mkdir(path, { recursive: true });
  const parts = [
    "main.ts",
    "install.sh",
    "deno.json",
    "deno.lock",
    "README.md",
    "LICENSE",
    "docs",
    "lib",
    "plugins",
    "tools",
  ];
  await succeed("cp", ["-R", ...parts.map((name) => join(ROOT, name)), path]);
  await Deno.symlink(join(ROOT, ".cache"), join(path, ".cache"));
}

/** Builds in the tree at `root` with the Deno that runs the tests. */
export function build(root: string, args: string[], env: Record<string, string> = {}): Promise<Ended> {
  return run(Deno.execPath(), ["run", "-A", join(root, "tools", "build.ts"), ...args], { env, cwd: root });
}

/** Builds another version, whole, in a folder: its plugins do what ours do. Returns the folder. */
export async function otherBuild(folder: string): Promise<string> {
  const tree = join(folder, "tree");
  await copyTree(tree);
  const version = join(tree, "lib/version.ts");
  const source = await Deno.readTextFile(version);
  await Deno.writeTextFile(version, source.replace(/"v[^"]*"/, '"v9.9.9"'));
  const { code, stderr } = await build(tree, ["--output", join(folder, "cnibox")]);
  assertEquals(code, 0, stderr);
  await Deno.remove(tree, { recursive: true });
  return folder;
}

/** Source of another version of cnibox: it has all operator commands, and answers a runtime's VERSION. */
export function otherVersion(version: string): string {
  return `
import { operator } from ${JSON.stringify(toFileUrl(join(ROOT, "lib/cli/mod.ts")))};
import { loadPlugin as load, pluginNames as names } from ${JSON.stringify(toFileUrl(join(ROOT, "plugins/mod.ts")))};
const { args } = Deno;
if (args.length > 0) Deno.exit(await operator({ called: "cnibox", args, version: "v${version}", names, load }));
Deno.stdout.writeSync(new TextEncoder().encode('{"cniVersion":"1.1.0","supportedVersions":["1.1.0"]}\\n'));
`;
}

/** What lies in a folder by name: symlinks with their target, files with their mode, folders with a slash. */
export function listing(path: string): Record<string, string> {
  const entries = [...Deno.readDirSync(path)].sort((one, other) => one.name < other.name ? -1 : 1);
  return Object.fromEntries(entries.map(({ name, isSymlink, isDirectory }) => {
    if (isSymlink) return [name, `-> ${Deno.readLinkSync(join(path, name))}`];
    if (isDirectory) return [name, "/"];
    return [name, ((Deno.lstatSync(join(path, name)).mode ?? 0) & 0o777).toString(8)];
  }));
}

/** SHA-256 of a file, in hex. */
export async function sumOf(path: string): Promise<string> {
  return sha256(await Deno.readFile(path));
}
