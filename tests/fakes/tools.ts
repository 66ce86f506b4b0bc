/** Tools that are there: what looks for them on PATH finds empty executables in a folder of the test's own. */
import { forgetTools } from "../../lib/kernel/run.ts";

/** Runs `work` on a machine where these tools are installed, whatever is installed here. */
export async function withTools(names: readonly string[], work: () => Promise<void> | void): Promise<void> {
  // Only folders count that nobody else may write to, nor those above them.
  const folder = Deno.makeTempDirSync({ dir: Deno.uid() === 0 ? "/run" : Deno.env.get("HOME") ?? "/" });
  const path = Deno.env.get("PATH") ?? "";
  try {
    for (const name of names) Deno.writeTextFileSync(`${folder}/${name}`, "", { mode: 0o755 });
    Deno.env.set("PATH", `${folder}:${path}`);
    forgetTools();
    await work();
  } finally {
    Deno.env.set("PATH", path);
    forgetTools();
    Deno.removeSync(folder, { recursive: true });
  }
}

/** All that sets packet filter rules. */
export const RULE_TOOLS = [
  ...["iptables", "iptables-restore", "iptables-save", "ip6tables", "ip6tables-restore", "ip6tables-save"],
  ...["nft", "conntrack", "ss", "busctl"],
];
