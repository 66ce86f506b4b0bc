/** A command that stays and tells what happens, a line at a time: `ip monitor`, a watch of curl. */
import { missingTool, toolEnv, toolPath } from "./run.ts";

/** A command whose lines are read as they come. */
export interface Stream {
  readonly argv: readonly string[];
  /** Text for standard input, in parts; closed after it. */
  readonly input?: readonly string[];
  /** Ends the command. */
  readonly signal: AbortSignal;
}

/** Longest line that is kept, in characters: what is longer is no event of anything we ask. */
const LONGEST = 8 * 1024 * 1024;

/**
 * Starts the command and hands every line of its output over. Resolves when it has ended, with how: its last words, or
 * its status.
 *
 * @throws when the tool is missing, in the words that Go programs have for it
 */
export async function streamLines({ argv, input = [], signal }: Stream, line: (text: string) => void): Promise<string> {
  const [tool = "", ...args] = argv;
  const path = toolPath(tool);
  if (path === "") throw new Error(missingTool(tool));
  const child = new Deno.Command(path, {
    args,
    clearEnv: true,
    env: toolEnv(),
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const stop = () => {
    try {
      child.kill("SIGTERM");
    } catch {
      // It has ended by itself.
    }
  };
  signal.addEventListener("abort", stop);
  if (signal.aborted) stop();
  try {
    const writer = child.stdin.getWriter();
    await writer.write(new TextEncoder().encode(input.join(""))).catch(() => {});
    await writer.close().catch(() => {});
    const words = new Response(child.stderr).text();
    let rest = "";
    for await (const part of child.stdout.pipeThrough(new TextDecoderStream())) {
      const lines = (rest + part).split("\n");
      rest = lines.pop() ?? "";
      if (rest.length > LONGEST) {
        stop();
        throw new Error(`${tool} printed a line of more than ${LONGEST} characters`);
      }
      for (const one of lines) if (one !== "") line(one);
    }
    if (rest !== "") line(rest);
    const { code, signal: killed } = await child.status;
    return (await words).trim().split("\n").at(-1) || `${tool} ended ${killed ? `by ${killed}` : `with ${code}`}`;
  } finally {
    signal.removeEventListener("abort", stop);
    stop();
  }
}
