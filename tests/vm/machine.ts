/** One virtual machine: qemu, a Debian kernel, and an initramfs that mounts the machine's own file system. */
import { basename, dirname, fromFileUrl, join } from "@std/path";

const here = fromFileUrl(new URL(".", import.meta.url));

/** What differs between processors. */
const architecture = {
  x86_64: {
    qemu: "qemu-system-x86_64",
    machine: "pc",
    // Emulated, `rep movsb` copies byte by byte, and a fifth level of page tables is one more to walk.
    cpu: "max,erms=off,fsrm=off,la57=off",
    console: "ttyS0",
    package: "qemu-system-x86",
  },
  aarch64: {
    qemu: "qemu-system-aarch64",
    machine: "virt",
    cpu: "max",
    console: "ttyAMA0",
    package: "qemu-system-arm",
  },
}[Deno.build.arch];

export interface Kernel {
  /** The kernel's file, vmlinuz-VERSION. */
  file: string;
  version: string;
  /** Folder whose lib/modules/VERSION holds its modules. */
  tree: string;
}

export interface MachineOptions {
  kernel: Kernel;
  initramfs: string;
  accelerator: "tcg" | "kvm";
  /** The folder that the machine may write; /run/out inside. */
  run: string;
  /** First program of the root file system; "none" ends the machine once the kernel has started. */
  init: string;
  /** An ext4 image that keeps every change to the root file system; without one it is read-only. */
  disk?: string;
  /** More words for the kernel's command line. */
  parameters?: string[];
}

export interface Machine {
  /** Resolves when qemu has ended. */
  ended: Promise<unknown>;
  /** Ends it at once. */
  stop(): void;
  /** What the kernel and the first process have printed so far. */
  console(): string;
}

/** The kernel of a file. Its version is in the file's name, its modules are in lib/modules beside the file's folder. */
export function kernelOf(file: string): Kernel {
  const version = basename(file).replace(/^vmlinuz-/, "");
  const tree = dirname(dirname(file));
  if (!exists(file) || !exists(join(tree, "lib/modules", version, "modules.dep"))) {
    throw new Error(`${file}: no kernel "vmlinuz-VERSION" with its modules in ${join(tree, "lib/modules/VERSION")}`);
  }
  return { file, version, tree };
}

/** What this machine lacks to run virtual ones, as Debian packages. */
export function missingPackages(): string[] {
  const tools = [[architecture.qemu, architecture.package], ["modprobe", "kmod"], [
    "busybox",
    "busybox-static",
  ]] as const;
  return tools.filter(([tool]) => !output(["sh", "-c", 'command -v "$1"', "sh", tool]).success).map(([, name]) => name);
}

/** Writes an initramfs: busybox, the modules that the root file system needs, and initramfs.sh. */
export function writeInitramfs(kernel: Kernel, folder: string): string {
  const tree = join(folder, "initramfs");
  for (const name of ["bin", "modules", "proc", "dev", "root"]) Deno.mkdirSync(join(tree, name), { recursive: true });
  Deno.copyFileSync("/bin/busybox", join(tree, "bin/busybox"));
  for (const name of ["sh", "mount", "umount", "mkdir", "insmod", "sed", "reboot", "switch_root"]) {
    Deno.symlinkSync("busybox", join(tree, "bin", name));
  }
  Deno.copyFileSync(join(here, "initramfs.sh"), join(tree, "init"));
  const modules = new Set<string>();
  for (const name of ["virtio_pci", "9pnet_virtio", "9p", "virtio_blk", "ext4", "crc32c", "overlay"]) {
    const { stdout } = output(["modprobe", "-d", kernel.tree, "-S", kernel.version, "--show-depends", name]);
    for (const [, path] of stdout.matchAll(/^insmod (\S+)/gm)) modules.add(path ?? "");
  }
  // Loaded in this order; not every kernel's modules are compressed, and busybox cannot load those that are.
  for (const [at, path] of [...modules].entries()) {
    const to = join(tree, "modules", `${String(at).padStart(2, "0")}-${basename(path).replace(/\.ko.*/, ".ko")}`);
    const unpack = path.endsWith(".xz") ? ["xz", "-dc"] : path.endsWith(".zst") ? ["zstd", "-dc"] : ["cat"];
    run(["sh", "-c", 'to=$1; shift; exec "$@" >"$to"', "sh", to, ...unpack, path]);
  }
  const file = join(folder, "initramfs.cpio");
  run(["sh", "-c", 'cd "$1" && find . | busybox cpio -o -H newc >"$2" 2>/dev/null', "sh", tree, file]);
  Deno.removeSync(tree, { recursive: true });
  return file;
}

/** Writes an empty disk. It takes no more room than what is written to it. */
export function writeDisk(file: string): void {
  run(["sh", "-c", 'PATH=$PATH:/usr/sbin:/sbin; truncate -s 4G "$1" && mkfs.ext4 -q -F "$1"', "sh", file]);
}

let machines = 0;

/**
 * Boots a machine. It ends by itself when it would boot again (a panic does that too), at the latest with this program.
 */
export function boot(options: MachineOptions): Machine {
  const share = (name: string, path: string, more: string) => [
    ...["-fsdev", `local,id=${name},path=${path},security_model=none,${more}`],
    ...["-device", `virtio-9p-pci,fsdev=${name},mount_tag=${name}`],
  ];
  const console = join(options.run, `console-${++machines}`);
  const parameters = [
    ...[`console=${architecture.console}`, "quiet", "panic=-1", "oops=panic", "reboot=t", "mitigations=off"],
    // Emulated code is kept by its address: were programs put elsewhere at each start, each would be translated anew.
    ...["norandmaps", "rdinit=/init", `cnibox_init=${options.init}`, ...(options.parameters ?? [])],
  ];
  const args = [
    // The kernel ends qemu with this program, however that ends.
    ...["--pdeathsig", "KILL", architecture.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"],
    ...["-serial", `file:${console}`, "-machine", architecture.machine, "-m", "2G"],
    ...options.accelerator === "kvm"
      ? ["-accel", "kvm", "-cpu", "host"]
      : ["-accel", "tcg,tb-size=512", "-cpu", architecture.cpu],
    ...["-kernel", options.kernel.file, "-initrd", options.initramfs, "-append", parameters.join(" ")],
    ...share("root", "/", "readonly=on,multidevs=remap"),
    ...share("run", options.run, "multidevs=remap"),
    ...options.disk ? ["-drive", `file=${options.disk},format=raw,if=virtio,cache=unsafe`] : [],
  ];
  const child = new Deno.Command("setpriv", { args, stdin: "null", stdout: "null", stderr: "piped" }).spawn();
  let complaints = "";
  const collect = async () => complaints = await new Response(child.stderr).text();
  return {
    ended: Promise.all([child.status, collect()]),
    stop: () => {
      try {
        child.kill("SIGKILL");
      } catch { /* it has ended already */ }
    },
    console: () => complaints + (exists(console) ? Deno.readTextFileSync(console) : ""),
  };
}

/**
 * "kvm" where a trial boot under KVM worked, else "tcg": there are machines whose /dev/kvm opens and whose guests hang.
 * What was found is kept in `folder` until the machine boots again.
 */
export async function accelerator(options: Omit<MachineOptions, "accelerator" | "init">, folder: string) {
  const bootId = Deno.readTextFileSync("/proc/sys/kernel/random/boot_id").trim();
  const kept = join(folder, `kvm-${bootId}`);
  if (exists(kept)) return Deno.readTextFileSync(kept) === "kvm" ? "kvm" : "tcg";
  let found: "kvm" | "tcg" = "tcg";
  if (output(["sh", "-c", ": <>/dev/kvm"]).success) {
    const machine = boot({ ...options, accelerator: "kvm", init: "none" });
    const limit = setTimeout(machine.stop, 10_000);
    await machine.ended;
    clearTimeout(limit);
    if (machine.console().includes("test:vm: boots")) found = "kvm";
  }
  Deno.writeTextFileSync(kept, found);
  return found;
}

function output(argv: string[]): { success: boolean; stdout: string; stderr: string } {
  const [command = "", ...args] = argv;
  const env = { PATH: `${Deno.env.get("PATH") ?? ""}:/usr/sbin:/sbin` };
  const { success, stdout, stderr } = new Deno.Command(command, { args, env }).outputSync();
  return { success, stdout: new TextDecoder().decode(stdout), stderr: new TextDecoder().decode(stderr) };
}

function run(argv: string[]): void {
  const { success, stderr } = output(argv);
  if (!success) throw new Error(`${argv.join(" ")}: ${stderr}`);
}

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}
