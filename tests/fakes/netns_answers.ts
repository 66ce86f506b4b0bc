/** What a host answers when namespaces are asked for their links. */
import type { Output, Run } from "../../lib/kernel/run.ts";

/** A run whose commands `other` answers, and whose questions to the namespace at a path `links` answers. */
export function netnsAnswers(other: (command: string) => Output, links: (path: string) => Output): Run {
  return ({ argv }) => {
    const [tool, , script = "", , ...paths] = argv;
    if (tool !== "sh" || !script.includes("nsenter")) return Promise.resolve(other(argv.join(" ")));
    const answers = paths.map(links).map(({ stdout, stderr, code }) => `${stderr}${stdout}\n\nstatus ${code}\n`);
    return Promise.resolve({ code: 0, signal: null, stdout: answers.join(""), stderr: "" });
  };
}
