/** A kernel that does what it is told and notes it: for tests of what a plugin asks for, and in which order. */
import type { DelegateVerb } from "../../lib/cni/plugin.ts";
import type { JsonObject, Result } from "../../lib/cni/types.ts";
import type { Run } from "../../lib/kernel/run.ts";
import { type Fake, fakeCall } from "./call.ts";
import { settingsIn } from "./run.ts";
import type { ContainerCall } from "../../lib/cni/plugin.ts";

/** What the noting kernel answers and where it fails. */
export interface KernelOptions {
  /** Answer of a question, by the line that asks it; `[]` if absent. */
  readonly answers?: Readonly<Record<string, unknown[]>>;
  /** The line of a batch that fails, and the tool's words. */
  readonly fails?: { readonly line: RegExp; readonly stderr: string };
  /** What the IPAM plugin answers. */
  readonly ipam?: Result;
  readonly changes?: Partial<ContainerCall>;
}

/** An interface's namespace that exists, so that it can be opened: this process's own. */
export const NETNS = "/proc/self/ns/net";

/**
 * A call on a noting kernel: `log` has one entry for each process, `PLACE TOOL: line; line`, settings as
 * `MARKkey=value`, and one for each question to the IPAM plugin.
 */
export function noted(config: JsonObject, options: KernelOptions = {}): { call: ContainerCall & Fake; log: string[] } {
  const { answers = {}, fails, ipam = {}, changes = {} } = options;
  const log: string[] = [];
  const runAt = (place: string): Run => (command) => {
    const { argv } = command;
    const settings = settingsIn(argv);
    const tool = settings.length > 0 || (argv[0] === "ip" && argv.includes("-batch")) ? "ip" : argv.join(" ");
    const text = (command.input?.join("") ?? "").trim();
    const lines = text === "" ? [] : text.split("\n");
    log.push(`${place} ${[tool, [...settings, ...lines].join("; ")].filter(Boolean).join(": ")}`);
    const at = lines.findIndex((line) => fails?.line.test(line));
    if (fails && at >= 0) {
      return Promise.resolve({
        code: 1,
        signal: null,
        stdout: "",
        stderr: `${fails.stderr}\nCommand failed -:${at + 1}\n`,
      });
    }
    const asked = lines.length === 0 ? [command.argv.join(" ")] : lines;
    const stdout = asked.filter((line) => / show\b/.test(line)).map((line) =>
      `${JSON.stringify(answers[line] ?? [])}\n`
    ).join("");
    return Promise.resolve({ code: 0, signal: null, stdout, stderr: "" });
  };
  const delegate = (type: string, verb: DelegateVerb) => {
    log.push(`${type} ${verb}`);
    return Promise.resolve(verb === "ADD" ? { result: ipam } : {});
  };
  const call = fakeCall(config, { netns: NETNS, host: runAt("host"), pod: runAt("pod"), delegate, ...changes });
  return { call, log };
}
