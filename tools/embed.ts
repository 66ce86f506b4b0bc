/**
 * Chunks inside the executable lie between the runtime base and what the compiler puts behind it, so that a call reads
 * those it needs, straight from the file. What the compiler itself embeds the base reads and copies as a whole at every
 * start.
 */
import { createHash } from "node:crypto";
import { join } from "@std/path";

/** Where a chunk lies: its first byte in the executable, the length of its text and, behind it, of its code (bytes). */
export type Place = readonly [at: number, text: number, code: number];

/** Chunks in an executable: where each lies, by name, and the mark that stands in front of every one of them. */
export interface Embedded {
  readonly mark: string;
  readonly places: Readonly<Record<string, Place>>;
}

/**
 * Writes the base and behind it the chunks in `folder`, `NAME.js` and, where there is one, `NAME.code`. By the mark,
 * 16 hexadecimal digits made of all their bytes, a reader knows that what lies in a place is this program's. Same
 * chunks, same bytes.
 */
export async function embed(base: string, folder: string, output: string): Promise<Embedded> {
  const contents = new Map<string, Uint8Array>();
  const hash = createHash("sha256");
  for (const name of [...Deno.readDirSync(folder)].map(({ name }) => name).sort()) {
    const bytes = await Deno.readFile(join(folder, name));
    contents.set(name, bytes);
    hash.update(bytes);
  }
  const mark = hash.digest("hex").slice(0, 16);
  await Deno.copyFile(base, output);
  using file = await Deno.open(output, { append: true });
  const writer = file.writable.getWriter();
  const places: Record<string, Place> = {};
  let at = (await Deno.stat(base)).size;
  for (const [name, text] of contents) {
    if (!name.endsWith(".js")) continue;
    const chunk = name.slice(0, -".js".length);
    const code = contents.get(`${chunk}.code`) ?? new Uint8Array();
    for (const bytes of [new TextEncoder().encode(mark), text, code]) await writer.write(bytes);
    places[chunk] = [at + mark.length, text.length, code.length];
    at += mark.length + text.length + code.length;
  }
  return { mark, places };
}
