/**
 * The entry of the compiled executable. With each chunk comes the code that V8 has made of it: parsing and
 * compiling the program's text at every call takes longer than all else that a call does by itself. Code that does not
 * fit this very engine is refused by it, and the text is compiled as usual.
 */
import { Script } from "node:vm";
import { ENTRY, program } from "./loader.ts";

function codeOf(path: string): Uint8Array | undefined {
  try {
    return Deno.readFileSync(path);
  } catch {
    return undefined;
  }
}

const load = program(
  `${import.meta.dirname}/chunks`,
  (text, path) => new Script(text, { filename: path, cachedData: codeOf(`${path}.code`) }).runInThisContext(),
);
load(ENTRY);
