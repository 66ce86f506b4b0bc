/** What several callers ask in the same words, asked once: for callers that change nothing. */
import type { Output, Run } from "./run.ts";
import { isQuestion } from "./shell.ts";

/**
 * A way to run commands for callers that only look: give each of them its `run` through it. What is no question is run
 * each time.
 */
export function askingOnce(): (run: Run) => Run {
  const answers = new Map<string, Promise<Output>>();
  return (run) => (command) => {
    if (!isQuestion(command)) return run(command);
    const key = JSON.stringify([command.argv, command.input]);
    const answer = answers.get(key) ?? run(command);
    answers.set(key, answer);
    return answer;
  };
}
