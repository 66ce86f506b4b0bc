/**
 * Reads the program in the compiled executable (start.ts is its entry). The program lies there as packs: classic scripts, each an array of
 * module functions, and for each the code that V8 has made of it (packs.ts). Parsing and compiling the program's text at
 * every call takes longer than all else that a call does by itself; a pack whose code fits is only read.
 *
 * Code that does not fit this very engine is refused by it, and the text is compiled as usual.
 */
import { Script } from "node:vm";
import * as process from "node:process";

/** What a module gives to others, by name. */
export type Exports = Record<string, unknown>;

/** One module: gets what it imports through `load` and `lazily`, and puts what it exports into `exports`. */
type ModuleBody = (
  load: (id: string) => Exports,
  lazily: (id: string) => Promise<Exports>,
  exports: Exports,
) => unknown;

/** Scripts of the packs in use, by name, and the modules in them. */
export interface Packs {
  readonly scripts: Map<string, Script>;
  readonly bodies: Map<string, readonly ModuleBody[]>;
}

/** Ids of modules are `PACK:INDEX`, or the name of one that the runtime has built in. */
export const ENTRY = "main:0";

/**
 * Loads the modules of a program whose packs are in `folder`; each is evaluated once. `builtin` gives the runtime's own.
 * With the same `packs` a program can be evaluated anew without being compiled anew.
 */
export function program(
  folder: string,
  builtin: (name: string) => Exports,
  packs: Packs = { scripts: new Map(), bodies: new Map() },
): (id: string) => Exports {
  const modules = new Map<string, Exports>();
  function load(id: string): Exports {
    const known = modules.get(id);
    if (known) return known;
    if (id.startsWith("node:")) return builtin(id);
    const exports: Exports = {};
    modules.set(id, exports);
    const at = id.indexOf(":");
    const pack = id.slice(0, at);
    const bodies = packs.bodies.get(pack) ?? bodiesOf(folder, pack, packs);
    bodies[Number(id.slice(at + 1))]?.(load, lazily, exports);
    return exports;
  }
  // deno-lint-ignore require-await -- what goes wrong has to be a rejection, as with `import()`
  const lazily = async (id: string): Promise<Exports> => load(id);
  return load;
}

function bodiesOf(folder: string, pack: string, packs: Packs): readonly ModuleBody[] {
  const path = `${folder}/${pack}`;
  const text = Deno.readTextFileSync(`${path}.js`);
  const script = new Script(text, { filename: `cnibox/${pack}.js`, cachedData: codeOf(`${path}.code`) });
  const bodies = script.runInThisContext() as readonly ModuleBody[];
  packs.scripts.set(pack, script);
  packs.bodies.set(pack, bodies);
  return bodies;
}

function codeOf(path: string): Uint8Array | undefined {
  try {
    return Deno.readFileSync(path);
  } catch {
    return undefined;
  }
}

/** The runtime's own modules. */
export function builtin(name: string): Exports {
  return (name === "node:process" ? process : process.getBuiltinModule(name)) as unknown as Exports;
}
