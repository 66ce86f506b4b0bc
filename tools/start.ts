/**
 * The entry of the compiled executable. With each chunk comes the code that V8 has made of it: parsing and
 * compiling the program's text at every call takes longer than all else that a call does by itself. Code that does not
 * fit this very engine is refused by it, and the text is compiled as usual.
 */
import { Script } from "node:vm";
import { ENTRY, program } from "./loader.ts";
import type { Place } from "./embed.ts";

/** Written in front of this program by the build. */
declare const CHUNKS: Readonly<Record<string, Place>>;

const decoder = new TextDecoder();

/** Not kept open: a call may have few files. */
function bytesAt(at: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  // By way of /proc: the file that runs, even when its name stands for another one by now.
  const executable = Deno.openSync("/proc/self/exe");
  try {
    executable.seekSync(at, Deno.SeekMode.Start);
    for (let done = 0, count: number | null = 0; done < length; done += count) {
      count = executable.readSync(bytes.subarray(done));
      if (count === null) throw new Error(`the executable ends ${length - done} bytes before its program does`);
    }
  } finally {
    executable.close();
  }
  return bytes;
}

const load = program((chunk) => {
  const [at, text, code] = CHUNKS[chunk] as Place;
  const bytes = bytesAt(at, text + code);
  return new Script(decoder.decode(bytes.subarray(0, text)), {
    filename: chunk,
    cachedData: code > 0 ? bytes.subarray(text) : undefined,
  }).runInThisContext();
});
load(ENTRY);
