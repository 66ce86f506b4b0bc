/**
 * `deno task compile`: writes dist/cnibox, the one executable that is every plugin.
 *
 *     main.ts and what it imports ──bundle──▶ ES modules ──chunks.ts──▶ few scripts ──warm_up.ts──▶ and their code
 *     start.ts, which reads them ──compile──▶ runtime base + start.ts + scripts + code = dist/cnibox
 *
 * The base is the runtime that `deno compile` puts the program behind. A base runs only what a compiler of its own
 * version wrote, so one version of Deno does everything: {@linkcode DENO_VERSION}. base.ts says where its base comes
 * from.
 *
 * Everything fetched is kept in .cache/. The same inputs give the same bytes.
 *
 * `--output FILE` writes elsewhere; `--main FILE` builds another program than main.ts. What base it is goes into a file
 * beside the executable, `FILE.base`.
 */
import { parseArgs } from "node:util";
import { basename, dirname, join, resolve } from "@std/path";
import { type Base, BuildError, CACHE, DENO_VERSION, obtainBase, ROOT, run, say, WORK_PREFIX } from "./base.ts";
import { chunks } from "./chunks.ts";
import { embed } from "./embed.ts";

/**
 * What the compiled program may do: all but network (`import` included) and FFI. The work needs the rest, and /proc and
 * /sys are open to a program only with everything else granted. Unix sockets need no network right, but read and write
 * access to their path: the way to the dhcp daemon. No prompt: a refused access is an error, never a question on a
 * terminal.
 */
export const PERMISSIONS = ["--no-prompt", "--allow-all", "--deny-net", "--deny-import", "--deny-ffi"];

/** A call ends before machine code pays; with it, code of the warm-up run says what to compile at once. */
const V8_FLAGS = ["--no-sparkplug"];

/**
 * Those of the warm-up run: nothing is collected. Between parts of its code V8 leaves what lay there before, and memory
 * that is used for the first time is empty: the code is the same each time. The memory reducer collects after eight
 * seconds, which a busy machine may need. And the code says nothing of which functions were optimized meanwhile, by
 * threads beside: that differs too.
 */
const WARM_UP_FLAGS = [
  ...V8_FLAGS,
  "--min-semi-space-size=256",
  "--initial-old-space-size=1024",
  "--no-memory-reducer",
  "--no-profile-guided-optimization",
];

if (import.meta.main) {
  try {
    await build(Deno.args);
  } catch (error) {
    say(`error: ${error instanceof BuildError ? error.message : error instanceof Error ? error.stack : error}`);
    Deno.exit(1);
  }
}

async function build(args: string[]): Promise<void> {
  if (Deno.version.deno !== DENO_VERSION) {
    throw new BuildError(`this is Deno ${Deno.version.deno}; build with ${DENO_VERSION}: tools/deno.sh gets it`);
  }
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
    const base = await obtainBase();
    await compile({ main, folder: join(work, "program") }, draft, base);
    await selfTest(draft, base);
    await Deno.writeTextFile(`${draft}.base`, `${base.text}\n`);
    await Deno.rename(`${draft}.base`, `${output}.base`);
    await Deno.rename(draft, output);
    const { size } = await Deno.stat(output);
    say(`${output}: ${(size / 1e6).toFixed(1)} MB, base ${base.text}`);
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

/** Turns the program into few modules, each plugin its own, and returns the entry. Same source, same bytes. */
export async function bundle(main: string, outdir: string): Promise<string> {
  await run(Deno.execPath(), [
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

/** Writes the program as its entry reads it: `start.js`, and its chunks in a folder beside it. Returns its path. */
export async function writeChunks(main: string, folder: string): Promise<string> {
  const entry = await bundle(main, join(folder, "modules"));
  await Deno.mkdir(join(folder, "chunks"));
  for (const [name, text] of await chunks(dirname(entry), basename(entry))) {
    await Deno.writeTextFile(join(folder, "chunks", `${name}.js`), text);
  }
  await Deno.remove(dirname(entry), { recursive: true });
  await bundleOne("start.ts", join(folder, "start.js"));
  return join(folder, "start.js");
}

/** One of the build's own programs as one file. */
async function bundleOne(name: string, output: string): Promise<void> {
  await run(Deno.execPath(), [
    "bundle",
    "--quiet",
    "--platform=deno",
    "--minify",
    `--output=${output}`,
    join(ROOT, "tools", name),
  ], { failing: "bundling failed", cwd: ROOT });
}

/**
 * Adds to each chunk what this base's engine makes of it: the warm-up run is compiled with the same base and plays the
 * usual calls. Then the code is given to an engine with the program's own flags.
 */
async function warmUp(folder: string, base: string): Promise<void> {
  const scratch = await Deno.makeTempDir({ dir: folder });
  const chunks = join(folder, "chunks");
  const play = async (name: string, args: string[], flags: readonly string[]) => {
    const [entry, program] = [join(folder, `${name}.js`), join(folder, name)];
    await bundleOne(`${name}.ts`, entry);
    await compileEntry(entry, program, base, flags);
    await run(program, args, { failing: "the warm-up run of the usual calls failed", timeout: 60_000 });
    for (const path of [program, entry]) await Deno.remove(path);
  };
  await play("warm_up", [chunks, scratch], WARM_UP_FLAGS);
  await play("stamp", [chunks], V8_FLAGS);
  await Deno.remove(scratch, { recursive: true });
}

/** What is compiled, and a folder for what is made of it on the way. */
interface Program {
  readonly main: string;
  readonly folder: string;
}

/** Compiles the program, chunks and their code included. */
async function compile({ main, folder }: Program, output: string, base: Base): Promise<void> {
  const entry = await writeChunks(main, folder);
  // Only of cnibox itself is known what its usual calls are.
  if (main === join(ROOT, "main.ts")) {
    await warmUp(folder, base.file);
  }
  const withChunks = join(folder, "base");
  const { mark, places } = await embed(base.file, join(folder, "chunks"), withChunks);
  const known = `const MARK=${JSON.stringify(mark)},CHUNKS=${JSON.stringify(places)};`;
  await Deno.writeTextFile(entry, known + await Deno.readTextFile(entry));
  // The compiler stores the time of the last change.
  await Deno.utime(entry, 0, 0);
  await compileEntry(entry, output, withChunks);
}

/** Compiles one entry. */
async function compileEntry(
  entry: string,
  output: string,
  base: string,
  flags: readonly string[] = V8_FLAGS,
): Promise<void> {
  await run(Deno.execPath(), [
    "compile",
    "--quiet",
    "--no-config",
    "--no-check",
    "--no-lock",
    "--no-npm",
    "--no-remote",
    // The code cache would be a file in the temporary folder that a root process trusts and anybody can put there
    // first.
    "--no-code-cache",
    `--v8-flags=${flags.join(",")}`,
    ...PERMISSIONS,
    `--output=${output}`,
    entry,
  ], {
    failing: "deno compile failed",
    cwd: dirname(entry),
    env: { DENORT_BIN: base },
  });
}

/** A base and a compiler that do not fit give a file that cannot start: found here, not on a node. */
async function selfTest(binary: string, base: Base): Promise<void> {
  await run(binary, ["--version"], {
    failing: `the compiled program does not start on this base: ${base.text}`,
    timeout: 60_000,
  });
}
