/** `doctor` on the configuration folder: which network runtimes take, and what `cnibox validate` finds there. */
import { exists } from "../../kernel/regular_file.ts";
import { examine } from "../validate.ts";
import { counted } from "../terminal.ts";
import { findings, type Line, type Node } from "./finding.ts";

const { ok, warning, failure } = findings("configuration");

export async function configuration({ folders, runtime, names }: Node): Promise<Line[]> {
  if (!exists(folders.conf, { links: true })) {
    return [failure(`there is no folder ${folders.conf}`, {
      breaks: 'runtimes say "cni config uninitialized" or "no network config found"',
      fix: "write a network there: cnibox schema conflist, docs/examples",
    })];
  }
  const { findings, picked, files } = await examine([folders.conf], { runtime, folders, names });
  const lines: Line[] = [];
  for (const { file, network, usable } of picked) {
    if (file === "") {
      lines.push(failure(`no network in ${folders.conf}`, {
        breaks: 'runtimes say "cni config uninitialized"',
        fix: `put a .conflist into ${folders.conf}`,
      }));
    } else if (usable) lines.push(ok(`runtimes take ${file}, network "${network}"`));
    else {
      lines.push(failure(`runtimes take ${file} first, and fail with it`, {
        breaks: "no container gets a network",
        fix: `cnibox validate ${file}`,
      }));
    }
  }
  const count = (severity: string) =>
    findings.filter((one) => one.severity === severity && one.rule !== "not-installed").length;
  const [errors, warnings] = [count("error"), count("warning")];
  if (errors + warnings === 0 && files.length > 0) {
    lines.push(ok(`${files.length === 1 ? "the file is" : `all ${files.length} files are`} sound`));
  }
  if (errors + warnings > 0) {
    const text = `${counted(errors, "error")} and ${counted(warnings, "warning")} in ${folders.conf}`;
    lines.push((errors > 0 ? failure : warning)(text, { fix: "cnibox validate" }));
  }
  return lines;
}
