/**
 * `deno task test:vm`: runs integration tests in user-mode Linux, a kernel that has every link type and needs no root.
 *
 * The tests are the same files as on the machine's own kernel. Those run here that need something which that kernel lacks;
 * `--all` runs all of them. Each virtual machine sees the machine's own file system read-only, and one folder of its own to
 * write to. They take the test files from a common queue and put each file's output and exit status beside it.
 *
 * Usage: deno task test:vm [--all] [--vms N] [--filter TEXT] [--limit SECONDS] [FILE …]
 *   --limit  for one file, 1200 seconds unless told
 * Exit status: 0 when every file passed, 1 when one failed or did not end, 2 when no virtual machine could be run.
 *
 * User-mode Linux 6.1 dies at its first process where the processor's extended state is larger than it knows (with AMX): then
 * nothing can be run, which is said, and is no failure.
 */
import { parseArgs } from "@std/cli/parse-args";
import { basename, fromFileUrl, join, resolve } from "@std/path";
import { cniboxDir, referenceDir } from "../e2e/support/bin.ts";
import { features, kernelFeatures } from "../e2e/support/needs.ts";

const root = fromFileUrl(new URL("../..", import.meta.url));
const options = parseArgs(Deno.args, { boolean: ["all"], string: ["filter", "vms", "limit"] });
const limit = Number(options.limit ?? 1200);
const started = Date.now();

function say(text: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(text));
}

function give(text: string): never {
  Deno.stderr.writeSync(new TextEncoder().encode(`test:vm: ${text}\n`));
  Deno.exit(2);
}

/** What this machine's own kernel can run; nothing for an ordinary user, whose tests then all run in the VM. */
const host = Deno.uid() === 0 ? features() : new Set<string>();
const lacking = kernelFeatures.filter((feature) => !host.has(feature));
const files = await testFiles();
if (files.length === 0) {
  say(
    "this machine's own kernel runs every test: nothing is left for the virtual machine (--all runs them there too)\n",
  );
  Deno.exit(0);
}
const version = kernelVersion();

const run = join(root, ".cache/vm", `${Deno.pid}`);
removeOldRuns(join(root, ".cache/vm"));
Deno.mkdirSync(join(run, "queue"), { recursive: true });
Deno.mkdirSync(join(run, "taken"));
for (const [at, file] of files.entries()) {
  Deno.writeTextFileSync(join(run, "queue", `${String(at).padStart(3, "0")}-${basename(file)}`), file);
}
Deno.writeTextFileSync(join(run, "environment"), environment());

const count = Math.max(1, Math.min(Number(options.vms ?? navigator.hardwareConcurrency), files.length));
say(`kernel ${version}, ${count} virtual machine${count > 1 ? "s" : ""}, ${files.length} test files`);
say(options.all || Deno.uid() !== 0 ? "\n" : `, for what this kernel lacks: ${lacking.join(" ")}\n`);

const machines = Array.from({ length: count }, boot);
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  Deno.addSignalListener(signal, () => machines.forEach((machine) => machine.stop()));
}
const watchdog = setTimeout(() => machines.forEach((machine) => machine.stop()), (limit * files.length + 120) * 1000);
let running = true;
const over = Promise.all(machines.map((machine) => machine.ended)).then(() => running = false);
const totals = { passed: 0, failed: 0, ignored: 0 };
const broken: string[] = [];
const done = new Set<string>();
try {
  while (done.size < files.length) {
    const last = !running;
    collect();
    if (last) break;
    await Promise.race([over, new Promise((next) => setTimeout(next, 200))]);
  }
} finally {
  clearTimeout(watchdog);
  machines.forEach((machine) => machine.stop());
  await over;
}

if (done.size === 0 && machines.every((machine) => machine.console().includes("put_fp_registers"))) {
  say(
    `this processor's extended state (AMX) is more than kernel ${version} knows: it dies at its first process, and the tests ` +
      "that need it stay skipped on this machine\n\nok | 0 passed | 0 failed\n",
  );
  Deno.removeSync(run, { recursive: true });
  Deno.exit(0);
}
for (const [at, file] of files.entries()) {
  const name = `${String(at).padStart(3, "0")}-${basename(file)}`;
  if (done.has(name)) continue;
  broken.push(`${file}: did not end`);
  say(`\n${file} did not end; so far:\n${textOf(join(run, "taken", `${name}.log`))}\n`);
}
if (broken.length > 0) {
  for (const machine of machines) say(machine.console());
  say(`\n FAILURES \n\n${broken.join("\n")}\n`);
}
if (totals.passed + totals.failed === 0 && broken.length === 0) {
  broken.push("no test was run");
  say("no test was run: does --filter match a test that this machine's own kernel cannot run?\n");
}
const seconds = Math.round((Date.now() - started) / 1000);
const counts = `${totals.passed} passed | ${totals.failed} failed${
  totals.ignored > 0 ? ` | ${totals.ignored} ignored` : ""
}`;
say(`\n${broken.length > 0 ? "FAILED" : "ok"} | ${counts} (${seconds}s)\n`);
const report = Deno.env.get("CNIBOX_E2E_MATRIX");
if (report) Deno.writeTextFileSync(report, textOf(join(run, "matrix")), { append: true });
Deno.removeSync(run, { recursive: true });
Deno.exit(broken.length > 0 ? 1 : 0);

/** The test files of this run: those that name a feature which this kernel lacks, or all, or those asked for. */
async function testFiles(): Promise<string[]> {
  const named: string[] = options._.map(String);
  const found: string[] = [];
  for await (const entry of Deno.readDir(join(root, "tests/e2e"))) {
    if (entry.name.endsWith("_test.ts")) found.push(`tests/e2e/${entry.name}`);
  }
  if (named.length > 0) return named.map((file) => resolve(file));
  found.sort();
  if (options.all || Deno.uid() !== 0) return found;
  return found.filter((file) => {
    const text = Deno.readTextFileSync(join(root, file));
    return lacking.some((feature) => text.includes(`"${feature}"`));
  });
}

/** Version of the kernel whose modules are installed, after the packages are there; ends the program where they are not. */
function kernelVersion(): string {
  const missing = ["linux.uml", "modprobe"].filter((tool) =>
    !new Deno.Command("sh", {
      args: ["-c", `PATH=$PATH:/usr/sbin:/sbin; command -v ${tool}`],
      stdout: "null",
    }).outputSync().success
  );
  if (missing.length > 0) give(`no ${missing.join(", ")}: run tests/support/packages.sh`);
  const versions = [...Deno.readDirSync("/usr/lib/uml/modules")].map((entry) => entry.name).sort();
  return versions.at(-1) ?? give("no modules in /usr/lib/uml/modules");
}

function environment(): string {
  const features = options.all || Deno.uid() !== 0 ? undefined : [...host].join(",");
  const variables: Record<string, string | undefined> = {
    CNIBOX_VM_ROOT: root,
    CNIBOX_VM_DENO: Deno.execPath(),
    CNIBOX_VM_LIMIT: String(limit),
    CNIBOX_VM_OPTIONS: "",
    CNIBOX_E2E_VM: "1",
    CNIBOX_E2E_BIN_DIR: cniboxDir(),
    CNIBOX_E2E_REFERENCE: referenceDir() ?? "",
    CNIBOX_E2E_HOST_FEATURES: features,
    CNIBOX_E2E_MATRIX: "/run/out/matrix",
    DENO_DIR: denoDir(),
    DENO_NO_UPDATE_CHECK: "1",
    NO_COLOR: Deno.stdout.isTerminal() ? undefined : "1",
    CI: Deno.env.get("CI"),
  };
  if (options.filter !== undefined) {
    // One word for the shell inside, so a dot stands for each space.
    if (!/^[\w.,: -]+$/.test(options.filter)) give("--filter takes letters, digits, spaces and . , : - _");
    variables.CNIBOX_VM_OPTIONS += ` --filter=/${options.filter.replaceAll(" ", ".")}/`;
  }
  return Object.entries(variables).filter(([, value]) => value !== undefined)
    .map(([name, value]) => `export ${name}='${value}'\n`).join("");
}

/** Folder of downloaded packages, which the VM reads. */
function denoDir(): string {
  const { stdout } = new Deno.Command(Deno.execPath(), { args: ["info", "--json"], cwd: "/" }).outputSync();
  return JSON.parse(new TextDecoder().decode(stdout)).denoDir;
}

/** Boots one virtual machine. It ends by itself when the queue is empty, at the latest with this program. */
function boot() {
  // The kernel takes its stub processes with it in a PID namespace of its own; that takes root. The shell inside ends the
  // kernel when its standard input is at end of file: when this program is gone, however it went. Signals to the process group
  // are for this program alone.
  const uml = [
    ...["linux.uml", "mem=3G", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet"],
    ...["con=null", "con0=null,fd:1", `init=${join(root, "tests/vm/init.sh")}`, `cnibox_run=${run}`],
  ];
  const script =
    `trap "" INT TERM; exec 3<&0; "$@" </dev/null 3<&- & uml=$!; (cat <&3 >/dev/null; kill -9 $uml) >/dev/null 2>&1 & wait $uml`;
  const shell = ["/bin/sh", "-c", script, "sh", ...uml];
  const alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
  const [command = "", ...args] = Deno.uid() === 0 ? [...alone, ...shell] : shell;
  const child = new Deno.Command(command, { args, stdin: "piped", stdout: "piped", stderr: "piped" }).spawn();
  let console = "";
  const collect = async (from: ReadableStream<Uint8Array>) => {
    for await (const part of from.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>)) {
      console += part;
    }
  };
  return {
    ended: Promise.all([child.status, collect(child.stdout), collect(child.stderr)]),
    stop: () => void child.stdin.close().catch(() => {}),
    console: () => console,
  };
}

/** Prints and counts the files that have ended since. */
function collect(): void {
  for (const { name } of [...Deno.readDirSync(join(run, "taken"))].sort((a, b) => a.name < b.name ? -1 : 1)) {
    if (!name.endsWith(".code") || done.has(name.slice(0, -5))) continue;
    const stem = name.slice(0, -5);
    done.add(stem);
    const log = textOf(join(run, "taken", `${stem}.log`)).replaceAll("\r", "");
    const code = Number(textOf(join(run, "taken", name)));
    // Each file's own closing line is left out: one at the end counts all of them.
    const closing = /^(?:ok|FAILED) \| .*$/;
    // deno-lint-ignore no-control-regex
    const plain = (line: string) => line.replace(/\x1b\[[0-9;]*m/g, "");
    const lines = log.split("\n");
    say(lines.filter((line) => !closing.test(plain(line))).join("\n").replace(/\n{3,}/g, "\n\n"));
    const last = lines.map(plain).findLast((line) => closing.test(line)) ?? "";
    for (const key of ["passed", "failed", "ignored"] as const) {
      totals[key] += Number(last.match(new RegExp(`(\\d+) ${key}`))?.[1] ?? 0);
    }
    if (code !== 0) broken.push(`${textOf(join(run, "taken", stem))}: exit ${code}`);
  }
}

/** Folders of runs that were killed. */
function removeOldRuns(folder: string): void {
  Deno.mkdirSync(folder, { recursive: true });
  for (const { name } of Deno.readDirSync(folder)) {
    const alive = name !== String(Deno.pid) && textOf(`/proc/${name}/comm`) !== "";
    if (!alive) Deno.removeSync(join(folder, name), { recursive: true });
  }
}

function textOf(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return "";
  }
}
