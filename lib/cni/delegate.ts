/**
 * Where another plugin is: in this process when CNI_PATH leads to this very binary, else it is a program, see
 * foreign.ts. Both look the same from outside: same look-up, same input bytes, same environment, same errors.
 */
import { isOwnExecutable } from "../kernel/tool_path.ts";
import { goQuote, internal } from "./error.ts";
import type { Effect } from "../kernel/plan.ts";
import type { Plugin, Registry, Verb } from "./plugin.ts";

/** Where a plugin was found, or why not: the reference library's four errors. */
export function findPlugin(type: string, path: readonly string[]): string {
  return lookUp(type, path).file;
}

/** A plugin's file as {@linkcode findPlugin} finds it, and whether it is this very executable. */
export function lookUp(type: string, path: readonly string[]): { file: string; ours: boolean } {
  if (type === "") throw internal("no plugin name provided", 'the configuration needs a "type"');
  if (type.includes("/") || type === ".." || type === ".") {
    throw internal(`invalid plugin name: ${type}`, "a plugin's type is a plain file name, without a slash");
  }
  if (path.length === 0) throw internal("no paths provided", "CNI_PATH names no folder");
  for (const dir of path) {
    const file = dir === "" || dir === "." ? type : `${dir}/${type}`;
    try {
      const info = Deno.statSync(file);
      if (info.isFile) return { file, ours: isOwnExecutable(info) };
    } catch {
      // Not there, or not to be looked at: the next folder.
    }
  }
  throw internal(
    `failed to find plugin ${goQuote(type)} in path [${path.join(" ")}]`,
    `install ${type} into one of these folders`,
  );
}

/** Is this plugin another program? */
export function isForeign({ path }: { readonly path: readonly string[] }, type: string): boolean {
  try {
    return !lookUp(type, path).ours;
  } catch {
    return false;
  }
}

/** Where a plugin is: a file of CNI_PATH, and the plugin itself when it is in this process. */
export interface Located {
  /** "" when it is built in and not installed. */
  readonly file: string;
  readonly own: Plugin | undefined;
}

/** Where {@linkcode locate} looks. */
export interface Places {
  readonly path: readonly string[];
  readonly registry: Registry;
  /** Also take built-in plugins that no folder of `path` holds. */
  readonly builtin?: boolean;
}

/** Finds a plugin: the file as the reference library finds it; that file may be this very binary. */
export async function locate(type: string, { path, registry, builtin = false }: Places): Promise<Located> {
  try {
    const { file, ours } = lookUp(type, path);
    return { file, own: ours ? await registry(type) : undefined };
  } catch (error) {
    const own = builtin ? await registry(type) : undefined;
    if (own) return { file: "", own };
    throw error;
  }
}

/** What `explain` can say of a plugin that is another program. */
export function foreignEffect(file: string, verb: Verb): Effect {
  const type = file.slice(file.lastIndexOf("/") + 1);
  const why = `${type} is another program: what it does is not known here`;
  return { note: `CNI_COMMAND=${verb} ${file} < CONFIGURATION`, why };
}
