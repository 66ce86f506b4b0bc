/** `cnibox run NETWORK -- COMMAND …`: a namespace that lives as long as a command. */
import { addNetwork, delNetwork } from "../cni/chain.ts";
import { toCniError } from "../cni/error.ts";
import { foreground } from "../kernel/foreground.ts";
import { systemRun } from "../kernel/run.ts";
import { CliError, type CommandCall } from "./command.ts";
import { attachingText, makeNetns, type Target, targetsOfAdd } from "./network.ts";
import { delCommand } from "./owner_names.ts";
import { progress } from "./progress.ts";
import { watchedRuntime } from "./runtime.ts";
import { foldersOf, needRoot, NETNS_FOLDER, note } from "./setup.ts";

/** Exit status for what fails before the command starts. */
const NOT_STARTED = 125;

/** `cnibox run` */
export async function run(call: CommandCall): Promise<number> {
  const folders = foldersOf(call);
  const name = `cnibox-run-${crypto.randomUUID().slice(0, 8)}`;
  const netns = `${NETNS_FOLDER}/${name}`;
  const targets = targetsOfAdd(call, folders, netns);
  needRoot(call, "it makes a network namespace");
  using watched = watchedRuntime(call, folders, { interruptible: true });
  const { runtime } = watched;
  const host = systemRun(runtime.hooks ?? {});
  const attached: Target[] = [];
  let started = false;
  try {
    await makeNetns(host, name);
    {
      using waiting = progress();
      for (const target of targets) {
        waiting.step(attachingText(target.list));
        await addNetwork(target.list, target.attached, runtime);
        attached.push(target);
      }
    }
    if (runtime.interruption?.requested) return 128 + 15;
    started = true;
    // `ip netns exec` also shows the namespace's own /sys.
    // The shell tells a missing command (127) from one that may not be run (126).
    return await foreground(["ip", "netns", "exec", name, "sh", "-c", 'exec "$@"', "sh", ...call.rest]);
  } catch (error) {
    if (started) throw error;
    const { msg, message, details } = toCniError(error) as { msg: string; message: string; details: string };
    if (error instanceof CliError) throw new CliError(message, NOT_STARTED, error.advice);
    throw new CliError(msg, NOT_STARTED, details.split(/\n|; /).filter((line) => line !== ""));
  } finally {
    if (runtime.interruption) runtime.interruption.undoing = true;
    for (const { list, attached: one } of attached.reverse()) {
      try {
        await delNetwork(list, one, runtime, { force: true });
      } catch (error) {
        note(`cleaning up: ${toCniError(error).message}`);
        note(`${delCommand(one)} tries again`);
      }
    }
    const { code, stderr } = await host({ argv: ["ip", "netns", "delete", name] });
    if (code !== 0) note(`cleaning up: ip netns delete ${name}: ${stderr.trim()}`);
  }
}
