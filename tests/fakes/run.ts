/** A `Run` that answers from a transcript: `$` a command, `<` its standard input, `>` its answer, `!` its failure. */
import { SETTINGS_SCRIPT } from "../../lib/kernel/plan.ts";
import type { Command, Output, Run } from "../../lib/kernel/run.ts";

/** The settings that a process of a plan writes, as `MARKkey=value`; none for other processes. */
export function settingsIn(argv: readonly string[]): string[] {
  const at = argv.indexOf(SETTINGS_SCRIPT);
  const words = at < 0 ? [] : argv.slice(at + 3);
  return words.flatMap((word, index) => index % 2 === 0 ? [`${word}=${words[index + 1]}`] : []);
}

/** A recorded run: refuses what the transcript does not have, and tells what was not asked for. */
export interface RecordedRun extends Run {
  /** The commands of the transcript that nobody ran. */
  unused(): string[];
}

interface Entry {
  readonly command: string;
  stdin: string;
  stdout: string;
  stderr: string;
  used: boolean;
}

/**
 * Answers commands as the transcript says. Commands may come in any order, since independent ones run side by side;
 * each entry serves once. A command with `!` lines fails with exit status 1 and these words.
 */
export function recordedRun(transcript: string): RecordedRun {
  const entries: Entry[] = [];
  for (const line of transcript.split("\n")) {
    const [mark, text] = [line.slice(0, 2), line.slice(2)];
    if (line === "") continue;
    if (mark === "$ ") {
      entries.push({ command: text, stdin: "", stdout: "", stderr: "", used: false });
      continue;
    }
    const entry = entries.at(-1);
    const part = ({ "< ": "stdin", "> ": "stdout", "! ": "stderr" } as const)[mark];
    if (!entry || !part) throw new Error(`transcript: what is "${line}"?`);
    entry[part] += `${text}\n`;
  }
  const run = async (command: Command): Promise<Output> => {
    await Promise.resolve();
    // A script is written in one line, as anything else.
    const line = command.argv.join(" ").replaceAll("\n", " ");
    const stdin = command.input?.join("") ?? "";
    const entry = entries.find((one) => !one.used && one.command === line && one.stdin === stdin);
    if (!entry) {
      const asked = [`$ ${line}`, ...stdin.split("\n").filter(Boolean).map((text) => `< ${text}`)].join("\n");
      const left = entries.filter((one) => !one.used)
        .map((one) =>
          [`$ ${one.command}`, ...one.stdin.split("\n").filter(Boolean).map((text) => `< ${text}`)].join("\n")
        );
      throw new Error(`not in the transcript:\n${asked}\nleft there:\n${left.join("\n")}`);
    }
    entry.used = true;
    return { code: entry.stderr === "" ? 0 : 1, signal: null, stdout: entry.stdout, stderr: entry.stderr };
  };
  return Object.assign(run, { unused: () => entries.filter((one) => !one.used).map((one) => one.command) });
}
