/** A command that has our own standard streams, terminal and environment: what a person wants to run. */
import { missingTool, toolPath } from "./run.ts";

const SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"] as const;

/**
 * Runs a command to its end and gives its exit status, 128 + N after signal N. Signals that reach this process
 * meanwhile are handed on to it.
 */
export async function foreground(argv: readonly string[]): Promise<number> {
  const [tool = "", ...args] = argv;
  const path = tool.includes("/") ? tool : toolPath(tool);
  if (path === "") throw new Error(missingTool(tool));
  const child = new Deno.Command(path, { args, stdin: "inherit", stdout: "inherit", stderr: "inherit" }).spawn();
  const handlers = SIGNALS.map((signal) => {
    const handler = () => {
      try {
        // On a terminal Ctrl-C reaches the command by itself.
        if (signal !== "SIGINT" || !Deno.stdin.isTerminal()) child.kill(signal);
      } catch {
        // It ended meanwhile.
      }
    };
    Deno.addSignalListener(signal, handler);
    return () => Deno.removeSignalListener(signal, handler);
  });
  const { code } = await child.status;
  for (const remove of handlers) remove();
  return code;
}
