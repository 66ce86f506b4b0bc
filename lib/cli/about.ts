/** `cnibox plugins` and `cnibox version`: what this program is. */
import { type CommandCall, tell } from "./command.ts";
import { jsonText, painter, say, table, terminalWidth } from "./terminal.ts";

/** `cnibox plugins` */
export async function plugins(call: CommandCall): Promise<number> {
  const { names, load } = call.invocation;
  if (call.is("names")) {
    say(names.map((name) => `${name}\n`).join(""));
    return 0;
  }
  const all = await Promise.all(names.map((name) => load(name)));
  const known = all.filter((plugin) => plugin !== undefined);
  const plugins = known.map(({ name, kind, about, versions, needs }) => ({ name, kind, about, versions, needs }));
  const paint = painter();
  const span = (versions: readonly string[]) => `${versions[0]} to ${versions.at(-1)}`;
  const rows = plugins.map(({ name, kind, about, versions }) => [paint("bold", name), kind, about, span(versions)]);
  tell(call, { plugins }, () => table([], rows, { width: terminalWidth() }));
  return 0;
}

/** `cnibox version` */
export async function version(call: CommandCall): Promise<number> {
  const { version, names } = call.invocation;
  if (call.is("sbom")) say(jsonText((await import("./sbom.ts")).sbom(version)));
  else if (call.is("json")) {
    say(jsonText({
      version,
      deno: Deno.version.deno,
      v8: Deno.version.v8,
      arch: Deno.build.arch,
      standalone: Deno.build.standalone,
      plugins: names,
    }));
  } else say(`cnibox ${version}\n`);
  return 0;
}
