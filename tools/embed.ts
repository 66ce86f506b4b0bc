/**
 * Chunks inside the executable lie between the runtime base and what the compiler puts behind it, so that a call reads
 * those it needs, straight from the file. What the compiler itself embeds the base reads and copies as a whole at every
 * start.
 */
import { join } from "@std/path";

/** Where a chunk lies: its first byte in the executable, the length of its text and, behind it, of its code (bytes). */
export type Place = readonly [at: number, text: number, code: number];

/**
 * Writes the base and behind it the chunks in `folder`, `NAME.js` and, where there is one, `NAME.code`. Returns the
 * places by the chunks' names. Same chunks, same bytes.
 */
export async function embed(base: string, folder: string, output: string): Promise<Record<string, Place>> {
  await Deno.copyFile(base, output);
  using file = await Deno.open(output, { append: true });
  const writer = file.writable.getWriter();
  const names = [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
  const places: Record<string, Place> = {};
  let at = (await Deno.stat(base)).size;
  for (const name of names.filter((name) => name.endsWith(".js"))) {
    const chunk = name.slice(0, -".js".length);
    const text = await Deno.readFile(join(folder, name));
    const code = names.includes(`${chunk}.code`)
      ? await Deno.readFile(join(folder, `${chunk}.code`))
      : new Uint8Array();
    for (const bytes of [text, code]) await writer.write(bytes);
    places[chunk] = [at, text.length, code.length];
    at += text.length + code.length;
  }
  return places;
}
