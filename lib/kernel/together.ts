/**
 * Rules of several callers as one transaction. Callers at work side by side each start `iptables-restore` by
 * themselves; what they start in one turn of the event loop about one table goes to one process, as one transaction.
 * When that is refused, nothing was changed: each caller's own is run then, and each learns what became of it.
 */
import type { Command, Output, Run } from "./run.ts";

interface Waiting {
  readonly command: Command;
  readonly run: Run;
  readonly settle: (output: Output | Promise<Output>) => void;
}

/** A way to run commands for callers that are at work side by side: give each of them its `run` through it. */
export function joiningRestores(): (run: Run) => Run {
  const waiting = new Map<string, Waiting[]>();
  return (run) => async (command) => {
    const changed = changedTables(command);
    // Tables are committed one after the other: of two, one may be changed and the other refused.
    if (changed.length !== 1) return await run(command);
    const key = [...command.argv, ...changed].join(" ");
    return await new Promise<Output>((settle) => {
      const one = { command, run, settle };
      const others = waiting.get(key);
      if (others) return others.push(one);
      const group: Waiting[] = [one];
      waiting.set(key, group);
      setTimeout(() => {
        waiting.delete(key);
        runGroup(group);
      });
    });
  };
}

async function runGroup(group: readonly Waiting[]): Promise<void> {
  const [first] = group;
  if (!first) return;
  if (group.length > 1) {
    const input = [joined(group.map(({ command }) => textOf(command)))];
    const answer = first.run({ ...first.command, input });
    const output = await answer.catch(() => undefined);
    // Done; or its answer is lost, and it may have done its work: that is the same for everybody.
    if (!output || output.code === 0 || output.signal !== null || output.code < 0) {
      for (const { settle } of group) settle(answer);
      return;
    }
  }
  for (const { command, run, settle } of group) {
    const answer = run(command);
    settle(answer);
    await answer.catch(() => {});
  }
}

const textOf = ({ input = [] }: Command) => input.join("");
const isQuestion = (line: string) => line.startsWith("-C ");

/** Tables that a command is to change: none for anything but a transaction of iptables. */
function changedTables(command: Command): string[] {
  if (!/^ip6?tables-restore$/.test(command.argv[0] ?? "")) return [];
  return [...tablesOf([textOf(command)])].filter(([, lines]) => !lines.every(isQuestion)).map(([table]) => table);
}

function tablesOf(texts: readonly string[]): Map<string, string[]> {
  const tables = new Map<string, string[]>();
  for (const text of texts) {
    let lines: string[] = [];
    for (const line of text.split("\n")) {
      if (line.startsWith("*")) tables.set(line, lines = tables.get(line) ?? []);
      else if (line !== "" && line !== "COMMIT") lines.push(line);
    }
  }
  return tables;
}

/** Transactions as one for each table; those that only ask come first, so that a refusal finds nothing changed. */
export function joined(texts: readonly string[]): string {
  const tables = [...tablesOf(texts)];
  const asking = tables.filter(([, lines]) => lines.every(isQuestion));
  const changing = tables.filter(([, lines]) => !lines.every(isQuestion));
  return [...asking, ...changing].map(([table, lines]) => `${[table, ...lines].join("\n")}\nCOMMIT\n`).join("");
}
