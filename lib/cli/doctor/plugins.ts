/** `doctor` on the plugin folders: is there a plugin of each type in use, and does it answer? */
import { exists } from "../../kernel/regular_file.ts";
import { probeVersions } from "../../cni/chain.ts";
import { lookUp } from "../../cni/delegate.ts";
import { toCniError } from "../../cni/error.ts";
import { entriesOf } from "../setup.ts";
import { findings, type Line, type Node, typesInUse } from "./finding.ts";

export async function plugins({ folders, runtime, lists }: Node): Promise<Line[]> {
  const { ok, warning, failure } = findings("plugins");
  const where = folders.path.join(":");
  const lines: Line[] = [];
  const own: string[] = [];
  for (const type of typesInUse(lists)) {
    let found: ReturnType<typeof lookUp>;
    try {
      found = lookUp(type, folders.path);
    } catch {
      const builtIn = await runtime.registry(type);
      lines.push(failure(`there is no plugin "${type}" in ${where}`, {
        breaks: `runtimes say failed to find plugin "${type}" in path [${folders.path.join(" ")}]`,
        fix: builtIn ? "cnibox install" : `install ${type}`,
      }));
      continue;
    }
    const { file, ours } = found;
    if (ours) {
      own.push(type);
      continue;
    }
    try {
      const versions = await probeVersions(type, { ...runtime, builtin: false, limitMs: runtime.limitMs ?? 5_000 });
      lines.push(ok(`${file} is another program, and speaks ${versions[0]} to ${versions.at(-1)}`));
    } catch (error) {
      lines.push(failure(`${file} does not work: ${toCniError(error).msg}`, {
        breaks: "every network that uses it",
        fix: executable(file) ? `CNI_COMMAND=VERSION ${file} shows more` : `chmod 755 ${file}`,
      }));
    }
  }
  if (own.length > 0) lines.unshift(ok(`${own.join(", ")}: this cnibox, in ${where}`));
  const dangling = folders.path.flatMap(danglingIn);
  if (dangling.length > 0) {
    lines.push(warning(`symlinks that lead nowhere: ${dangling.join(", ")}`, {
      fix: "cnibox install, or remove them",
    }));
  }
  return lines;
}

function danglingIn(folder: string): string[] {
  return entriesOf(folder).filter(({ isSymlink }) => isSymlink).map(({ name }) => `${folder}/${name}`)
    .filter((path) => !exists(path, { links: true }));
}

function executable(file: string): boolean {
  try {
    return ((Deno.statSync(file).mode ?? 0) & 0o111) !== 0;
  } catch {
    return false;
  }
}
