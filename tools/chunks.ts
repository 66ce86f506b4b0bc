/**
 * From the ES modules of a bundle to chunks: classic scripts that the engine can keep compiled (loader.ts reads them).
 * The runtime keeps no compiled code of ES modules inside an executable; of a script it takes what it is given.
 *
 *     import{a as b}from"./chunk-X.js";…export{c as d};   →
 *     ($load,$lazily,$exports)=>{const{a:b}=$load("main:3");…$exports.d=c}
 *
 * Modules that a call loads together lie in one chunk, since a script costs time beside what its text costs.
 */
import { join } from "@std/path";

/** Plugins of the hot path. What two of them share lies in the program's own chunk, which every call reads. */
const HOT = ["bridge", "host-local", "portmap", "firewall", "loopback"];
/** What those load when called: each is a chunk of its own, though commands import it statically. */
const LATE = ["foreign", "lease_upkeep", "lock_holder", "log", "rule_error", "rule_upkeep"];
/** What plugins load when called and share with commands. */
const PARTS = ["foreign_versions", "masquerade_gc", "link_upkeep"];

/**
 * Entries in the order in which they take what they import statically, where nobody before them did: no plugin has to
 * load a command's chunk. All others follow by name.
 */
const orderOf = (plugins: Iterable<string>) => [
  ...HOT,
  ...LATE,
  "ptp",
  ...[...plugins].sort(),
  ...PARTS,
  "mod",
  "network",
];

/**
 * Handed to each chunk: a script that is evaluated by `node:vm` sees Node's own in their place, which take time to load
 * and give objects where others give numbers.
 */
export const TIMERS = ["setTimeout", "clearTimeout", "setInterval", "clearInterval"] as const;

/** One module of the bundle. */
interface Module {
  /** What it imports statically, as file names. */
  readonly imports: readonly string[];
  /** Makes the module function, given the ids of all modules. */
  readonly body: (ids: ReadonlyMap<string, string>) => string;
}

/** Sorts the modules in `folder` into chunks; `entry` is the program's own. Gives the text of each chunk, by name. */
export async function chunks(folder: string, entry: string): Promise<Map<string, string>> {
  const modules = new Map<string, Module>();
  const names = [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
  const pluginOf = new Map<string, string>();
  for (const name of names) {
    const text = await Deno.readTextFile(join(folder, name));
    modules.set(name, read(name, text, name === entry));
    for (const [, plugin = "", file = ""] of text.matchAll(PLUGIN)) pluginOf.set(file, plugin);
  }
  const stem = (name: string) => {
    const own = name.replace(/(-[A-Z0-9]{8})?\.js$/, "");
    return own === "mod" ? pluginOf.get(name) ?? own : own;
  };

  const order = orderOf(pluginOf.values());
  const place = (name: string) => {
    const at = name === entry ? -1 : order.indexOf(stem(name));
    return at < 0 && name !== entry ? order.length : at;
  };
  // By plugin, not by file name: of two `mod-HASH.js` the hash depends on where the sources lie on this machine.
  const byStem = (a: string, b: string) => stem(a) < stem(b) ? -1 : Number(stem(a) > stem(b));
  const entries = names.filter((name) => !name.startsWith("chunk-")).sort((a, b) =>
    place(a) - place(b) || byStem(a, b)
  );
  const hot = entries.filter((name) => HOT.includes(stem(name))).map((name) => closure(name, modules));
  const shared = hot.flat().filter((name, index, all) => all.indexOf(name) !== index);
  const members = new Map<string, string[]>();
  const ids = new Map<string, string>();
  for (const one of entries) {
    // Without the bundler's hash, which depends on where packages lie on this machine.
    const chunk = one === entry ? "main" : stem(one);
    if (members.has(chunk)) throw new Error(`two modules named ${chunk} are loaded when called`);
    // `node:NAME` stands for the runtime's own modules.
    if (chunk === "node") throw new Error(`a module named ${chunk} cannot be loaded when called`);
    // The entry is the first of its chunk: its id is known without looking.
    const all = one === entry ? [...new Set([...closure(one, modules), ...shared])] : closure(one, modules);
    const own = all.filter((name) => !ids.has(name));
    members.set(chunk, own);
    own.forEach((name, index) => ids.set(name, `${chunk}:${index}`));
  }
  return new Map(
    [...members].map(([chunk, names]) => [
      chunk,
      `"use strict";(({${TIMERS}})=>[${names.map((name) => modules.get(name)?.body(ids)).join(",\n")}])`,
    ]),
  );
}

/**
 * A line of plugins/mod.ts: the bundler calls every `plugins/NAME/mod.ts` alike, so its name is the one that it is
 * loaded by.
 */
const PLUGIN = /"?([\w-]+)"?:\s*\(\)\s*=>\s*import\("\.\/([^"]+)"\)/g;

/** A module and all that it imports statically, itself first. */
function closure(name: string, modules: ReadonlyMap<string, Module>, found: string[] = []): string[] {
  if (found.includes(name)) return found;
  const module = modules.get(name);
  if (module === undefined) throw new Error(`${name} is imported and not in the bundle`);
  found.push(name);
  for (const next of module.imports) closure(next, modules, found);
  return found;
}

/**
 * `import{a as b}from"x"`, `import*as a from"x"`, `import a from"x"`, `import"x"`: the bundler writes them at the very
 * front.
 */
const IMPORT = /^\s*import\s*(?:(?:\{([^}]*)\}|\*\s*as ([\w$]+)|([\w$]+))\s*from)?\s*"([^"]+)";?/;
/** The bundler writes them at the very end, before the licences that packages want to be kept. */
const EXPORT = /export\s*\{([^}]*)\};?\s*((?:\/\*![^*]*\*\/\s*)*)$/;
const LAZY = /\bimport\("([^"]+)"\)/g;

function read(file: string, source: string, isEntry: boolean): Module {
  let text = source;
  const head: { names: string; from: string }[] = [];
  for (let found = IMPORT.exec(text); found; found = IMPORT.exec(text)) {
    const [whole, some, all, byDefault, from = ""] = found;
    // Only the runtime's own modules have a default here, which is the module itself.
    const names = some !== undefined ? `{${some.replace(/ as /g, ":")}}` : all ?? byDefault;
    head.push({ names: names ?? "", from });
    text = text.slice(whole.length);
  }
  const exported = EXPORT.exec(text);
  if (exported) text = `${exported[2]}${text.slice(0, exported.index)}`;
  if (/(^|[;}\n])\s*(import|export)\s*[{*"]/.test(text)) throw new Error(`${file}: imports or exports in the middle`);
  const local = (from: string) => from.replace(/^\.\//, "");
  const tail = (exported?.[1] ?? "").split(",").filter((one) => one.trim() !== "").map((one) => {
    const [name = "", as = name] = one.trim().split(" as ");
    return `$exports.${as}=${name};`;
  });
  return {
    imports: head.filter(({ from }) => from.startsWith("./")).map(({ from }) => local(from)),
    body: (ids) => {
      const id = (from: string) => {
        const found = from.startsWith("node:") ? from : ids.get(local(from));
        if (found === undefined) throw new Error(`${file} imports ${from}, which is not in the bundle`);
        return JSON.stringify(found);
      };
      const imports = head.map(({ names, from }) => `${names === "" ? "" : `const ${names}=`}$load(${id(from)});`);
      const rest = text.replace(LAZY, (_, from: string) => `$lazily(${id(from)})`);
      // Only the program's own module may wait at its top level: nobody imports it.
      return `${isEntry ? "async" : ""}($load,$lazily,$exports)=>{${imports.join("")}${rest}\n${tail.join("")}}`;
    },
  };
}
