/**
 * The entry of the compiled executable. With each chunk comes the code that V8 has made of it: parsing and
 * compiling the program's text at every call takes longer than all else that a call does by itself. Code that does not
 * fit this very engine is refused by it, and the text is compiled as usual.
 */
import { Script } from "node:vm";
import { ENTRY, program } from "./loader.ts";
import type { Place } from "./embed.ts";

/** Both written in front of this program by the build, see embed.ts. */
declare const MARK: string;
declare const CHUNKS: Readonly<Record<string, Place>>;

const decoder = new TextDecoder();

/** By way of /proc: the file that runs, even when its name stands for another one by now. */
const EXECUTABLE = "/proc/self/exe";

/** Set where this program is not in the file that runs. */
let other: Deno.FsFile | undefined;

/** A chunk's bytes, text and code; undefined when it is not in this file. */
function chunkIn(file: Deno.FsFile, [at, text, code]: Place): Uint8Array | undefined {
  const bytes = new Uint8Array(MARK.length + text + code);
  file.seekSync(at - MARK.length, Deno.SeekMode.Start);
  for (let done = 0, count: number | null = 0; done < bytes.length; done += count) {
    count = file.readSync(bytes.subarray(done));
    if (count === null) return undefined;
  }
  return decoder.decode(bytes.subarray(0, MARK.length)) === MARK ? bytes.subarray(MARK.length) : undefined;
}

/**
 * The runtime takes this entry from where the kernel says that its file lay. After two upgrades in the moment since the
 * call began, the version between them lies there (lib/cli/install.ts): then its chunks do as well. That file stays
 * open, as the next upgrade gives its name away; the one that runs does not, because a call may have few files.
 */
function bytesOf(place: Place): Uint8Array {
  if (other === undefined) {
    const file = Deno.openSync(EXECUTABLE);
    try {
      const bytes = chunkIn(file, place);
      if (bytes) return bytes;
    } finally {
      file.close();
    }
    other = Deno.openSync(Deno.readLinkSync(EXECUTABLE));
  }
  const bytes = chunkIn(other, place);
  if (!bytes) throw new Error(`${Deno.readLinkSync(EXECUTABLE)}: the program is not whole; install it again`);
  return bytes;
}

const load = program((chunk) => {
  const place = CHUNKS[chunk] as Place, [, text, code] = place;
  const bytes = bytesOf(place);
  return new Script(decoder.decode(bytes.subarray(0, text)), {
    filename: chunk,
    cachedData: code > 0 ? bytes.subarray(text) : undefined,
  }).runInThisContext();
});
load(ENTRY);
