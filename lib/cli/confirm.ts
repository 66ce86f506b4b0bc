/** The one rule of commands that remove things: they say what they would do, and ask. */
import { CliError, type CommandCall, status } from "./command.ts";
import { say } from "./terminal.ts";

/** Asks on a terminal; anywhere else `--yes` is needed. `why` is what somebody should know before. */
export function confirm(call: CommandCall, question: string, why: readonly string[] = []): void {
  if (call.is("yes")) return;
  if (!Deno.stdin.isTerminal()) {
    throw new CliError("not a terminal; use --yes", status.usage, [
      ...why,
      `cnibox ${call.command.name} … --yes does it without asking`,
    ]);
  }
  say(`${[...why, question].join(". ")} [y/N] `);
  const answer = new Uint8Array(16);
  const count = Deno.stdin.readSync(answer) ?? 0;
  if (!/^y(es)?\s*$/i.test(new TextDecoder().decode(answer.subarray(0, count)))) {
    throw new CliError("not done", status.failed);
  }
}
