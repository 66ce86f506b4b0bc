import { assert, assertEquals } from "@std/assert";
import type { Plugin } from "../../lib/cni/plugin.ts";
import { listSchema, pluginSchema } from "../../lib/cli/schema.ts";
import { loadPlugin, pluginNames } from "../../plugins/mod.ts";

// deno-lint-ignore no-explicit-any -- JSON
type Json = any;

/** The words of JSON Schema that our schemas use, checked as the standard says; returns the complaints. */
function complaints(schema: Json, value: Json, path = ""): string[] {
  const found: string[] = [];
  const complain = (what: string) => found.push(`${path || "."}: ${what}`);
  const types: Record<string, boolean> = {
    object: typeof value === "object" && value !== null && !Array.isArray(value),
    array: Array.isArray(value),
    string: typeof value === "string",
    boolean: typeof value === "boolean",
    integer: Number.isInteger(value),
    number: typeof value === "number",
  };
  if (schema.type && !types[schema.type]) complain(`no ${schema.type}`);
  if (schema.enum && !schema.enum.includes(value)) complain(`none of ${schema.enum}`);
  if ("const" in schema && value !== schema.const) complain(`not ${schema.const}`);
  if (schema.pattern && types.string && !new RegExp(schema.pattern).test(value)) complain("pattern");
  if (schema.minimum !== undefined && value < schema.minimum) complain("too small");
  if (schema.maximum !== undefined && value > schema.maximum) complain("too large");
  if (schema.minItems && types.array && value.length < schema.minItems) complain("too short");
  if (types.array && schema.items) {
    value.forEach((item: Json, at: number) => found.push(...complaints(schema.items, item, `${path}/${at}`)));
  }
  if (types.object) {
    for (const key of schema.required ?? []) if (!(key in value)) complain(`no ${key}`);
    for (const [key, inner] of Object.entries(schema.properties ?? {})) {
      if (key in value) found.push(...complaints(inner, value[key], `${path}/${key}`));
    }
    if (typeof schema.additionalProperties === "object") {
      for (const key of Object.keys(value)) {
        if (!(key in (schema.properties ?? {}))) {
          found.push(...complaints(schema.additionalProperties, value[key], `${path}/${key}`));
        }
      }
    }
  }
  for (const one of schema.allOf ?? []) {
    if (!one.if || complaints(one.if, value).length === 0) found.push(...complaints(one.then ?? one, value, path));
  }
  if (schema.not && complaints(schema.not, value).length === 0) complain("is what it may not be");
  if (schema.anyOf && schema.anyOf.every((one: Json) => complaints(one, value).length > 0)) {
    complain("none of the forms");
  }
  return found;
}

const plugins = await Promise.all(pluginNames.map((name) => loadPlugin(name) as Promise<Plugin>));
const demo = JSON.parse(await Deno.readTextFile(new URL("../../docs/examples/demo.conflist", import.meta.url)));

Deno.test("the schema of lists takes the documentation's network and refuses what is wrong with it", () => {
  const schema = JSON.parse(JSON.stringify(listSchema(plugins)));
  assertEquals(complaints(schema, demo), []);
  const spoiled = (change: (list: Json) => void) => {
    const list = structuredClone(demo);
    change(list);
    return complaints(schema, list);
  };
  assertEquals(spoiled((list) => delete list.name), [".: no name"]);
  assertEquals(spoiled((list) => list.cniVersion = "2.0.0").length, 1);
  assertEquals(spoiled((list) => list.plugins = []), ["/plugins: too short"]);
  assertEquals(spoiled((list) => list.plugins[0].mtu = "1500"), ["/plugins/0/mtu: no integer"]);
  assertEquals(spoiled((list) => list.plugins[0].vlan = 5000), ["/plugins/0/vlan: too large"]);
  assertEquals(spoiled((list) => list.plugins[0].ipMasqBackend = "pf").length, 1);
  assertEquals(spoiled((list) => list.plugins[0].ipam.ranges = {}), ["/plugins/0/ipam/ranges: no array"]);
  assertEquals(spoiled((list) => list.plugins[1].capabilities.portMappings = "yes"), [
    "/plugins/1/capabilities/portMappings: no boolean",
  ]);
});

Deno.test("the schema of lists sees the members of a chain", () => {
  const schema = JSON.parse(JSON.stringify(listSchema(plugins)));
  const chain = (members: Json[], more = {}) => ({
    ...demo,
    plugins: [{ type: "chain", plugins: members, ...more }],
  });
  assertEquals(complaints(schema, chain(demo.plugins, { capabilities: { portMappings: true } })), []);
  assertEquals(complaints(schema, chain([])), ["/plugins/0/plugins: too short"]);
  assertEquals(complaints(schema, chain([{ type: "bridge", mtu: "1500" }])), ["/plugins/0/plugins/0/mtu: no integer"]);
  assertEquals(complaints(schema, chain([{ mtu: 1500 }])), ["/plugins/0/plugins/0: no type"]);
  assertEquals(complaints(schema, chain(demo.plugins, { capabilities: { portMappings: "yes" } })), [
    "/plugins/0/capabilities/portMappings: no boolean",
  ]);
  assertEquals(complaints(schema, chain([{ type: "chain", plugins: [{ type: "loopback" }] }])), [
    "/plugins/0/plugins/0: is what it may not be",
  ]);
});

Deno.test("the schema of every plugin has all its keys, each explained", () => {
  for (const plugin of plugins) {
    const { properties } = JSON.parse(JSON.stringify(pluginSchema(plugin, plugins, true)));
    for (const key of Object.keys(plugin.keys)) {
      if (key === "runtimeConfig" || key === "prevResult") continue;
      assert(properties[key]?.description, `${plugin.name}.${key}`);
    }
  }
});
