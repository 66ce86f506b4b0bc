/**
 * Runs the program from its chunks: classic scripts, each an array of module functions, made by one function that gets
 * the timers (chunks.ts). Where a chunk's text lies, and how it becomes functions, is the entry's choice (start.ts,
 * warm_up.ts).
 */

/** What a module gives to others, by name. */
export type Exports = Record<string, unknown>;

/** One module: gets what it imports through `load` and `lazily`, and puts what it exports into `exports`. */
type ModuleBody = (
  load: (id: string) => Exports,
  lazily: (id: string) => Promise<Exports>,
  exports: Exports,
) => unknown;

/** Makes what a chunk's text is when it is run: the function that makes its modules. */
export type Evaluate = (chunk: string) => unknown;

/** What a chunk gets from outside, see chunks.ts. */
const TIMERS = { setTimeout, clearTimeout, setInterval, clearInterval };

/** Ids of modules are `CHUNK:INDEX`, or the name of one that the runtime has built in. */
export const ENTRY = "main:0";

/**
 * Chunks that have been made functions of, by name. With the same ones a program can be run anew without being compiled
 * anew.
 */
export type Chunks = Map<string, readonly ModuleBody[]>;

/** Gives what loads the modules of the program whose chunks `evaluate` reads; each is evaluated once. */
export function program(evaluate: Evaluate, chunks: Chunks = new Map()): (id: string) => Exports {
  const modules = new Map<string, Exports>();
  const bodiesOf = (chunk: string): readonly ModuleBody[] => {
    const make = evaluate(chunk) as (timers: typeof TIMERS) => readonly ModuleBody[];
    const bodies = make(TIMERS);
    chunks.set(chunk, bodies);
    return bodies;
  };
  function load(id: string): Exports {
    const known = modules.get(id);
    if (known) return known;
    if (id.startsWith("node:")) return builtin(id);
    const exports: Exports = {};
    modules.set(id, exports);
    const at = id.indexOf(":");
    const chunk = id.slice(0, at);
    (chunks.get(chunk) ?? bodiesOf(chunk))[Number(id.slice(at + 1))]?.(load, lazily, exports);
    return exports;
  }
  // deno-lint-ignore require-await -- what goes wrong has to be a rejection, as with `import()`
  const lazily = async (id: string): Promise<Exports> => load(id);
  return load;
}

/** The runtime's own modules; each takes time to load, so none is loaded before it is asked for. */
function builtin(name: string): Exports {
  return (globalThis as unknown as { process: typeof import("node:process") }).process.getBuiltinModule(
    name,
  ) as Exports;
}
