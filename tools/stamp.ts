/**
 * Makes the code of the warm-up run fit an engine with the flags of this very program, which are those of cnibox: V8
 * takes code only from an engine whose flags were the same, though it is the same code.
 *
 *     stamp CHUNKS    folder of the chunks and their code
 */
import { Script } from "node:vm";

const [folder = ""] = Deno.args;
/** Where the hash of the flags lies in the header of V8's code, in bytes (SerializedCodeData). */
const [FROM, TO] = [12, 16];

const flags = new Script("").createCachedData().subarray(FROM, TO);
for (const { name } of [...Deno.readDirSync(folder)].filter(({ name }) => name.endsWith(".code"))) {
  const code = Deno.readFileSync(`${folder}/${name}`);
  code.set(flags, FROM);
  const text = Deno.readTextFileSync(`${folder}/${name.replace(/code$/, "js")}`);
  if (new Script(text, { cachedData: code }).cachedDataRejected) throw new Error(`the engine refuses ${name}`);
  Deno.writeFileSync(`${folder}/${name}`, code);
}
