/**
 * `deno task test:vm`: runs integration tests on a kernel that has everything, in virtual machines that run anywhere.
 *
 * The tests are the same files as on the machine's own kernel. Without arguments the CI set runs (ci_set.ts); `--all`
 * runs everything; files that are named run whole. Each machine is qemu with a Debian kernel; it sees the machine's own
 * file system read-only, and one folder of the run to write to. The machines take the test files from a common queue
 * and put each file's output and exit status beside it. Neither root nor KVM is needed.
 *
 * Files below tests/vm/systemd run in a machine of their own, whose first process is systemd and whose root file system
 * is kept on a disk: one boot for each, in the order of their names.
 *
 * Usage: deno task test:vm [--all] [--systemd] [--kernel FILE] [--vms N] [--filter TEXT] [--limit SECONDS] [FILE …]
 *   --systemd      the files below tests/vm/systemd
 *   --kernel FILE  a vmlinuz-VERSION with its modules in lib/modules; else that of tests/support/kernel.sh
 *   --vms N        machines side by side: as many as processors unless told
 *   --filter TEXT  only tests whose name contains it, or one of several with | between them
 *   --limit N      for one file, 3600 seconds unless told
 * Exit status: 0 when every file passed, 1 when one failed or did not end, 2 when no virtual machine could be run.
 */
import { parseArgs } from "@std/cli/parse-args";
import { basename, fromFileUrl, join, relative, resolve } from "@std/path";
import { cniboxDir } from "../e2e/support/bin.ts";
import { ciFiles, ciMissing } from "./ci_set.ts";
import {
  accelerator,
  boot,
  type Kernel,
  kernelOf,
  type Machine,
  missingPackages,
  writeDisk,
  writeInitramfs,
} from "./machine.ts";

const root = fromFileUrl(new URL("../../", import.meta.url));
const options = parseArgs(Deno.args, { boolean: ["all", "systemd"], string: ["filter", "vms", "limit", "kernel"] });
const limit = Number(options.limit ?? 3600);
const started = Date.now();
const ciSet = !options.all && !options.systemd && options._.length === 0;

const missing = missingPackages();
if (missing.length > 0) give(`install these Debian packages: ${missing.join(" ")}`);
const kernel = findKernel();
const files = testFiles();
const cache = join(root, ".cache/vm");
const run = join(cache, `${Deno.pid}`);
prepare();

const settings = { kernel, initramfs: writeInitramfs(kernel, run), run };
const accel = await accelerator(settings, cache);
const [booted, queued] = [files.filter(needsSystemd), files.filter((file) => !needsSystemd(file))];
const count = Math.min(Number(options.vms ?? affordable()), queued.length);
const side = count + Math.min(1, booted.length);
say(`kernel ${kernel.version} (${accel}), ${side} machine${side > 1 ? "s" : ""}, ${files.length} test files\n`);
const machines: Machine[] = [];
let stopped = false;
for (const signal of ["SIGINT", "SIGTERM"] as const) Deno.addSignalListener(signal, stop);
/** Longest time of a machine that runs all the queue alone, and of one that boots for one file, in seconds. */
const longest = { queue: limit * queued.length + 120, boot: limit + 300 };

const totals = { passed: 0, failed: 0, ignored: 0 };
const broken: string[] = [];
/** Names of the tests that passed. */
const passed = new Set<string>();
/** What was skipped: each reason with its number of tests; and one line for each file. */
const skipped = new Map<string, number>();
const summary: string[] = [];
/** Entries of the queue whose file has ended, and how far the output of each has been printed. */
const done = new Set<string>();
const printed = new Map<string, number>();
const queues = Array.from({ length: count }, () => start({ init: "init.sh" }, longest.queue));
await follow(Promise.all([...queues, systemdMachine()]));
report();

/** Boots a machine and waits for its end, at most `seconds`. */
async function start(more: { init: string; disk?: string; parameters?: string[] }, seconds: number): Promise<void> {
  const init = join(root, "tests/vm", more.init);
  const machine = boot({ ...settings, ...more, accelerator: accel, init });
  machines.push(machine);
  const timer = setTimeout(machine.stop, seconds * 1000);
  await machine.ended;
  clearTimeout(timer);
}

/** The machine that reboots for each of its files. */
async function systemdMachine(): Promise<void> {
  const disk = join(run, "disk");
  if (booted.length > 0) writeDisk(disk);
  for (const file of booted) {
    if (stopped) return;
    const name = nameOf(file);
    Deno.writeTextFileSync(join(run, "queue.systemd", name), file);
    await start({
      init: "systemd.sh",
      disk,
      parameters: [
        ...["systemd.unit=cnibox-vm.target", "systemd.show_status=false"],
        ...["systemd.journald.forward_to_console=1", "systemd.journald.max_level_console=notice"],
      ],
    }, longest.boot);
    if (!exists(join(run, "taken", `${name}.code`))) return;
  }
}

/** Prints results as they come until the machines have ended: one file at a time, the others when it has ended. */
async function follow(ended: Promise<unknown>): Promise<void> {
  let running = true;
  const over = ended.finally(() => running = false);
  let current: string | undefined;
  for (let last = false; !last;) {
    last = !running;
    const taken = namesIn("taken").filter((name) => /_test\.ts$/.test(name) && !done.has(name));
    const ended = taken.filter((name) => exists(join(run, "taken", `${name}.code`)));
    if (current === undefined || !taken.includes(current)) current = taken[0];
    if (current !== undefined) print(current);
    if (last || current === undefined || ended.includes(current)) {
      for (const name of ended) finish(name);
      current = undefined;
    }
    if (!last) await Promise.race([over, new Promise((next) => setTimeout(next, 250))]);
  }
}

/**
 * Prints the whole lines that are new in a file's output; its own closing line is left out: one at the end counts all.
 */
function print(name: string): void {
  const from = printed.get(name) ?? 0;
  const log = textOf(join(run, "taken", `${name}.log`)).replaceAll("\r", "");
  const end = log.lastIndexOf("\n") + 1;
  if (end <= from) return;
  printed.set(name, end);
  const lines = log.slice(from, end).split("\n");
  say(lines.filter((line) => !isClosing(line)).join("\n").replace(/\n{3,}/g, "\n\n"));
}

function finish(name: string): void {
  print(name);
  done.add(name);
  // What takes long is said between a test's name and its result.
  const log = plain(textOf(join(run, "taken", `${name}.log`)).replaceAll("\r", ""));
  const lines = log.replaceAll(/'.*' has been running for over \(.*\)\n/g, "").split("\n");
  const closing = lines.findLast(isClosing) ?? "";
  for (const key of ["passed", "failed", "ignored"] as const) {
    totals[key] += Number(closing.match(new RegExp(`(\\d+) ${key}`))?.[1] ?? 0);
  }
  for (const line of lines) {
    const name = line.match(/^(.*) \.\.\. ?ok \(/)?.[1];
    if (name) passed.add(name);
    const reason = line.match(/\[skipped: (.*)\] \.\.\. ignored/)?.[1];
    if (reason) skipped.set(reason, (skipped.get(reason) ?? 0) + 1);
  }
  summary.push(`${textOf(join(run, "taken", name)).padEnd(40)} ${closing.replace(/ \| 0 failed/, "")}`);
  const code = Number(textOf(join(run, "taken", `${name}.code`)));
  if (code !== 0) broken.push(`${textOf(join(run, "taken", name))}: exit ${code}`);
}

/** What did not end, what failed, and the closing line in the form of `deno test`. Ends the program. */
function report(): never {
  const undone = files.filter((file) => !done.has(nameOf(file)));
  for (const file of undone) {
    print(nameOf(file));
    broken.push(`${file}: did not end`);
  }
  if (undone.length > 0) { for (const machine of machines) say(machine.console()); }
  say(`\non kernel ${kernel.version} (${accel}):\n${summary.sort().join("\n")}\n`);
  for (const [reason, count] of skipped) say(`${count} not run: ${reason}\n`);
  if (totals.passed + totals.failed === 0 && broken.length === 0) broken.push("no test ran: does --filter match one?");
  if (ciSet && options.filter === undefined && broken.length === 0) {
    broken.push(...ciMissing(passed).map((pattern) => `the CI set names ${pattern}, and no such test ran`));
  }
  if (broken.length > 0) say(`\n FAILURES \n\n${broken.join("\n")}\n`);
  const seconds = Math.round((Date.now() - started) / 1000);
  const ignored = totals.ignored > 0 ? ` | ${totals.ignored} ignored` : "";
  const verdict = broken.length > 0 ? "FAILED" : "ok";
  say(`\n${verdict} | ${totals.passed} passed | ${totals.failed} failed${ignored} (${seconds}s)\n`);
  const matrix = Deno.env.get("CNIBOX_E2E_MATRIX");
  if (matrix) Deno.writeTextFileSync(matrix, textOf(join(run, "matrix")), { append: true });
  Deno.removeSync(run, { recursive: true });
  Deno.exit(broken.length > 0 ? 1 : 0);
}

function findKernel(): Kernel {
  try {
    return kernelOf(options.kernel === undefined ? fetched("kernel.sh") ?? Deno.exit(2) : resolve(options.kernel));
  } catch (error) {
    give((error as Error).message);
  }
}

/** Path that a script of tests/support finds or fetches; undefined when it cannot, and has said why. */
function fetched(script: string): string | undefined {
  const { success, stdout } = new Deno.Command("sh", { args: [join(root, "tests/support", script)], stderr: "inherit" })
    .outputSync();
  return success ? new TextDecoder().decode(stdout).trim() : undefined;
}

/** The test files of this run, from the project's folder. */
function testFiles(): string[] {
  const named = options._.map((file: string | number) => relative(root, resolve(String(file))));
  if (named.length > 0) return named;
  if (ciSet) return ciFiles(root);
  const folders = [...options.all ? ["tests/e2e"] : [], ...options.all || options.systemd ? ["tests/vm/systemd"] : []];
  return folders.flatMap((folder) =>
    [...Deno.readDirSync(join(root, folder))].map(({ name }) => `${folder}/${name}`)
      .filter((name) => name.endsWith("_test.ts")).sort()
  );
}

function needsSystemd(file: string): boolean {
  return file.startsWith("tests/vm/systemd/");
}

/** A file's name in the queue. */
function nameOf(file: string): string {
  return `${String(files.indexOf(file)).padStart(3, "0")}-${basename(file)}`;
}

/** The run's folder: the queue of files, and what the tests find in their environment. */
function prepare(): void {
  removeOldRuns();
  // Compiled here, and read inside.
  const cached = new Deno.Command(Deno.execPath(), {
    args: ["test", "--no-run", "--no-check", "--quiet", ...files],
    cwd: root,
  }).outputSync();
  if (!cached.success) give(new TextDecoder().decode(cached.stderr));
  for (const folder of ["queue", "queue.systemd", "taken"]) Deno.mkdirSync(join(run, folder), { recursive: true });
  for (const file of files) {
    if (!needsSystemd(file)) Deno.writeTextFileSync(join(run, "queue", nameOf(file)), file);
  }
  Deno.writeTextFileSync(join(run, "environment"), environment());
}

function environment(): string {
  const variables: Record<string, string | undefined> = {
    CNIBOX_VM_ROOT: root,
    CNIBOX_VM_DENO: Deno.execPath(),
    CNIBOX_VM_LIMIT: String(limit),
    CNIBOX_VM_MODULES: kernel.tree,
    CNIBOX_VM_OPTIONS: "",
    CNIBOX_E2E_VM: ciSet ? "ci" : "all",
    CNIBOX_E2E_BIN_DIR: cniboxDir(),
    CNIBOX_E2E_REFERENCE: fetched("reference.sh") ?? "",
    CNIBOX_E2E_MATRIX: "/run/out/matrix",
    DENO_DIR: denoDir(),
    DENO_NO_UPDATE_CHECK: "1",
    NO_COLOR: Deno.stdout.isTerminal() ? undefined : "1",
    CI: Deno.env.get("CI"),
  };
  if (options.filter !== undefined) {
    // One word for the shell inside, so a dot stands for each space.
    if (!/^[\w.,:| -]+$/.test(options.filter)) give("--filter takes letters, digits, spaces and . , : - _ |");
    variables.CNIBOX_VM_OPTIONS += ` --filter=/${options.filter.replaceAll(" ", ".")}/`;
  }
  return Object.entries(variables).filter(([, value]) => value !== undefined)
    .map(([name, value]) => `export ${name}='${value}'\n`).join("");
}

/** Folder of downloaded packages, which the machines read. */
function denoDir(): string {
  const { stdout } = new Deno.Command(Deno.execPath(), { args: ["info", "--json"], cwd: "/" }).outputSync();
  return JSON.parse(new TextDecoder().decode(stdout)).denoDir;
}

/** As many machines as there are processors, and no more than the memory holds. */
function affordable(): number {
  const fit = Math.floor(Deno.systemMemoryInfo().available / (3 * 1024 ** 3));
  return Math.max(1, Math.min(navigator.hardwareConcurrency, fit));
}

/** Folders of runs that were killed. */
function removeOldRuns(): void {
  Deno.mkdirSync(cache, { recursive: true });
  for (const { name } of Deno.readDirSync(cache)) {
    if (/^\d+$/.test(name) && (name === String(Deno.pid) || !exists(`/proc/${name}`))) {
      Deno.removeSync(join(cache, name), { recursive: true });
    }
  }
}

function stop(): void {
  stopped = true;
  for (const machine of machines) machine.stop();
}

function namesIn(folder: string): string[] {
  return [...Deno.readDirSync(join(run, folder))].map(({ name }) => name).sort();
}

function plain(line: string): string {
  // deno-lint-ignore no-control-regex
  return line.replace(/\x1b\[[0-9;]*m/g, "");
}

function isClosing(line: string): boolean {
  return /^(?:ok|FAILED) \| .*$/.test(plain(line));
}

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}

function textOf(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return "";
  }
}

function say(text: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(text));
}

function give(text: string): never {
  Deno.stderr.writeSync(new TextEncoder().encode(`test:vm: ${text}\n`));
  Deno.exit(2);
}
