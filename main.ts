/** cnibox: every CNI plugin in one program. The name it is called by chooses the plugin. */
import { loadPlugin, pluginNames } from "./plugins/mod.ts";
import { calledAs } from "./lib/kernel/called_as.ts";
import { pluginMain } from "./lib/cni/skel.ts";
import { VERSION } from "./lib/version.ts";

async function main(): Promise<number> {
  const argv0 = await calledAs();
  const called = argv0.slice(argv0.lastIndexOf("/") + 1);
  const plugin = loadPlugin(called);
  if (isForPeople(Deno.args)) {
    // `dhcp daemon` or `cnibox dhcp daemon`, whatever the environment says.
    const [name = "", word = "", ...rest] = plugin ? [called, ...Deno.args] : Deno.args;
    const role = (await loadPlugin(name))?.roles?.[word];
    if (role) return await role(rest);
  }
  if (plugin && (Deno.env.get("CNI_COMMAND") || !isForPeople(Deno.args))) {
    return await pluginMain(plugin, loadPlugin, VERSION);
  }
  const { operator } = await import("./lib/cli/mod.ts");
  return await operator({ called, args: Deno.args, version: VERSION, names: pluginNames, load: loadPlugin });
}

/** `bridge --help` by hand; a runtime never passes arguments. */
function isForPeople(args: readonly string[]): boolean {
  return args.length > 0;
}

Deno.exit(await main());
