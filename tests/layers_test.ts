/** Imports run one way; a file that points up is named here. */
import { assertEquals } from "@std/assert";
import { dirname, fromFileUrl, join, relative } from "@std/path";

const root = dirname(dirname(fromFileUrl(import.meta.url)));

/** What each folder may import of the project, itself included. The most special folder comes first. */
const MAY: readonly [folder: string, may: readonly string[]][] = [
  ["lib/cli/", ["lib/"]],
  ["plugins/mod.ts", ["plugins/", "lib/"]],
  ["plugins/", ["lib/rules/", "lib/link/", "lib/ipam/", "lib/cni/", "lib/kernel/", "lib/net/"]],
  ["lib/rules/", ["lib/rules/", "lib/link/", "lib/ipam/", "lib/cni/", "lib/kernel/", "lib/net/"]],
  ["lib/link/", ["lib/link/", "lib/ipam/", "lib/cni/", "lib/kernel/", "lib/net/"]],
  ["lib/node/", ["lib/node/", "lib/ipam/", "lib/store/", "lib/cni/", "lib/kernel/", "lib/net/"]],
  ["lib/ipam/", ["lib/ipam/", "lib/store/", "lib/cni/", "lib/kernel/", "lib/net/"]],
  ["lib/store/", ["lib/store/", "lib/cni/", "lib/kernel/", "lib/net/"]],
  ["lib/cni/", ["lib/cni/", "lib/kernel/", "lib/net/"]],
  ["lib/kernel/", ["lib/kernel/", "lib/net/"]],
  ["lib/net/", ["lib/net/"]],
  ["lib/", ["lib/"]],
  ["main.ts", ["plugins/mod.ts", "lib/"]],
];

function sources(folder: string): string[] {
  const found: string[] = [];
  for (const { name, isDirectory } of Deno.readDirSync(join(root, folder))) {
    const path = `${folder}/${name}`;
    if (isDirectory) found.push(...sources(path));
    else if (name.endsWith(".ts")) found.push(path);
  }
  return found;
}

const files = ["main.ts", ...sources("lib"), ...sources("plugins")];

/** Project files that a file imports, statically or when needed. */
function imports(file: string): string[] {
  const text = Deno.readTextFileSync(join(root, file));
  const given = [...text.matchAll(/(?:from|import\(|import)\s*"(\.[^"]+)"/g)].map((match) => match[1] ?? "");
  return given.map((path) => relative(root, join(root, dirname(file), path)));
}

Deno.test("imports point down: main, plugins and cli, rules, link, ipam, store, cni, kernel, net", () => {
  const up: string[] = [];
  for (const file of files) {
    const own = /^plugins\/[^/]+\//.exec(file)?.[0];
    const may = [...MAY.find(([folder]) => file.startsWith(folder))?.[1] ?? [], ...(own ? [own] : [])];
    for (const target of imports(file)) {
      if (!may.some((folder) => target.startsWith(folder))) up.push(`${file} → ${target}`);
    }
  }
  assertEquals(up, []);
});

Deno.test("only lib/kernel starts tools; only delegates, the operator's own commands and magic numbers are elsewhere", () => {
  const starters = files.filter((file) => /new Deno\.Command\(/.test(Deno.readTextFileSync(join(root, file))));
  const others = starters.filter((file) => !file.startsWith("lib/kernel/") && !file.startsWith("lib/cli/"));
  assertEquals(others.sort(), ["lib/cni/foreign.ts", "lib/cni/netns.ts"]);
});

/** Files that still read a tool's wording themselves. The list only gets shorter. */
const READ_WORDS = [
  "lib/cli/doctor.ts",
  "lib/link/host_end.ts",
  "lib/link/master.ts",
  "lib/link/new_link.ts",
  "plugins/bridge/mod.ts",
  "plugins/bridge/port_vlans.ts",
  "plugins/bridge/shape.ts",
  "plugins/bridge/spoof_check.ts",
  "lib/kernel/udhcpc.ts",
  "plugins/dummy.ts",
  "plugins/ipvlan.ts",
  "plugins/ptp/mod.ts",
  "plugins/tap.ts",
  "plugins/vlan.ts",
];

Deno.test("only tool_words.ts reads a tool's wording", () => {
  const reads = /\.(?:test|exec)\([^)\n]*\bstderr\b|= error\.output\.stderr;/;
  const readers = files.filter((file) =>
    file !== "lib/kernel/tool_words.ts" && reads.test(Deno.readTextFileSync(join(root, file)))
  );
  assertEquals(readers.filter((file) => !READ_WORDS.includes(file)), []);
});
