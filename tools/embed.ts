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
  const names = [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
  const contents = new Map<string, Uint8Array>();
  for (const name of names) contents.set(name, await Deno.readFile(join(folder, name)));
  const hash = createHash("sha256");
  for (const bytes of contents.values()) hash.update(bytes);
  const mark = hash.digest("hex").slice(0, 16);
  await Deno.copyFile(base, output);
  using file = await Deno.open(output, { append: true });
  const writer = file.writable.getWriter();
  const places: Record<string, Place> = {};
  let at = (await Deno.stat(base)).size;
  for (const name of names.filter((name) => name.endsWith(".js"))) {
    const chunk = name.slice(0, -".js".length);
    const text = contents.get(name) ?? new Uint8Array(), code = contents.get(`${chunk}.code`) ?? new Uint8Array();
    for (const bytes of [new TextEncoder().encode(mark), text, code]) await writer.write(bytes);
    places[chunk] = [at + mark.length, text.length, code.length];
    at += mark.length + text.length + code.length;
  }
  return { mark, places };
}
