import { assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { ENTRY, type Exports, program } from "../../tools/loader.ts";
import { chunks } from "../../tools/chunks.ts";
import { temporaryFolder } from "./support.ts";

/** Makes chunks of these modules and runs them; gives what the entry exports, and the names of the chunks read. */
async function run(modules: Record<string, string>): Promise<{ exports: Exports; read: string[]; chunks: string[] }> {
  using folder = temporaryFolder();
  for (const [name, text] of Object.entries(modules)) await Deno.writeTextFile(join(folder.path, name), text);
  const made = await chunks(folder.path, "main.js");
  const read: string[] = [];
  const load = program((chunk) => {
    read.push(chunk);
    return (0, eval)(made.get(chunk) ?? "");
  });
  const exports = load(ENTRY);
  await exports["done"];
  return { exports, read, chunks: [...made.keys()] };
}

Deno.test("chunks: modules see each other as they did, and those loaded when called are chunks of their own", async () => {
  const { exports, read, chunks } = await run({
    "main.js": 'import{a as b,c}from"./chunk-AAAAAAAA.js";import"./chunk-BBBBBBBB.js";import*as p from"node:path";' +
      'import u from"node:util";var s=[b,c,p.basename("/x/y"),typeof u.parseArgs];' +
      'var d=import("./bridge-CCCCCCCC.js").then(m=>s.push(m.plugin,m.default));export{s as seen,d as done};\n',
    "chunk-AAAAAAAA.js": 'var a="a",e="c";export{a,e as c};\n/*! a licence */\n',
    "chunk-BBBBBBBB.js": "globalThis.chunksWereHere=true;\n",
    "bridge-CCCCCCCC.js": 'import{a as x}from"./chunk-AAAAAAAA.js";import{z}from"./chunk-DDDDDDDD.js";' +
      'var o="import{a}from\\"b\\"";export{x as plugin,z as default};',
    "chunk-DDDDDDDD.js": "var z=26;export{z};",
    "ptp-EEEEEEEE.js": 'import{z}from"./chunk-DDDDDDDD.js";export{z as y};',
  });
  assertEquals(exports["seen"], ["a", "c", "y", "function", "a", 26]);
  assertEquals(read, ["main", "bridge"]);
  assertEquals(chunks, ["main", "bridge", "ptp"]);
  assertEquals(Reflect.get(globalThis, "chunksWereHere"), true);
});

Deno.test("chunks: what two plugins of the hot path share is in the chunk that every call reads", async () => {
  const { read } = await run({
    "main.js": 'var d=import("./loopback-AAAAAAAA.js");export{d as done};',
    "loopback-AAAAAAAA.js": 'import{z}from"./chunk-CCCCCCCC.js";export{z};',
    "bridge-BBBBBBBB.js": 'import{z}from"./chunk-CCCCCCCC.js";export{z};',
    "chunk-CCCCCCCC.js": "var z=26;export{z};",
  });
  assertEquals(read, ["main", "loopback"]);
});

Deno.test("chunks: a bundle of another shape is refused", async () => {
  const bad: Record<string, Record<string, string>> = {
    "imports or exports in the middle": { "main.js": 'var a=1;import{b}from"node:path";' },
    "not in the bundle": { "main.js": 'import{b}from"./chunk-AAAAAAAA.js";' },
    "two modules named x": { "main.js": "", "x-AAAAAAAA.js": "", "x-BBBBBBBB.js": "" },
  };
  for (const [words, modules] of Object.entries(bad)) await assertRejects(() => run(modules), Error, words);
});
