/** `doctor` on files: room and permission to write leases and results, and the label of the executable. */
import { exists } from "../../kernel/regular_file.ts";
import { readKernelFile } from "../../kernel/proc.ts";
import type { Run } from "../../kernel/run.ts";
import { nearestExisting } from "../setup.ts";
import { findings, type Line, type Node, output } from "./finding.ts";

export async function disk({ folders, host, root }: Node): Promise<Line[]> {
  const { ok, warning, failure } = findings("disk");
  const lines: Line[] = [];
  for (const wanted of [folders.data, folders.cache]) {
    const path = nearestExisting(wanted);
    const [space, inodes] = await Promise.all([usedPercent(host, path, "-Pk"), usedPercent(host, path, "-Pi")]);
    const worst = Math.max(space, inodes);
    if (worst >= 95) {
      lines.push((worst >= 99 ? failure : warning)(`${path} is ${worst} % full${inodes >= space ? " (inodes)" : ""}`, {
        breaks: "leases and results cannot be written: ADD fails",
        fix: `make room below ${path}`,
      }));
    }
    if (root && (await host({ argv: ["test", "-w", path] })).code !== 0) {
      lines.push(failure(`${path} cannot be written (read-only?)`, {
        breaks: "ADD fails",
        fix: `mount -o remount,rw the file system of ${path}`,
      }));
    }
  }
  return lines.length > 0 ? lines : [ok(`${folders.data} and ${folders.cache} can be written, with room left`)];
}

async function usedPercent(host: Run, path: string, option: string): Promise<number> {
  const { stdout } = await host({ argv: ["df", option, "--", path] });
  return Number(/(\d+)%/.exec(stdout.split("\n")[1] ?? "")?.[1] ?? 0);
}

/** SELinux: a plugin without the right label may not be started by confined runtimes. */
export async function labels({ folders, host }: Node): Promise<Line[]> {
  const { ok, warning } = findings("SELinux");
  let enforcing = "";
  try {
    enforcing = readKernelFile("/sys/fs/selinux/enforce").trim();
  } catch {
    return [];
  }
  const file = folders.path.map((folder) => `${folder}/cnibox`).find((path) => exists(path, { links: true }));
  if (!file) return [];
  const label = (await output(host, ["stat", "-c", "%C", "--", file])).trim();
  if (/bin_t|container_runtime_exec_t/.test(label) || enforcing !== "1") {
    return [ok(`${file} is ${label || "without a label"}`)];
  }
  return [warning(`${file} is ${label}`, {
    breaks: "confined runtimes may not start it",
    fix: `restorecon -v ${file}`,
  })];
}
