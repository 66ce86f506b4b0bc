/** `cnibox schema`: JSON Schema for editors, made from the tables that the plugins read with. */
import { type Keys, type Schema, schemaOf } from "../cni/decode.ts";
import { CHAIN } from "../cni/member.ts";
import type { Plugin } from "../cni/plugin.ts";
import { VERSIONS } from "../cni/types.ts";
import { CliError, type CommandCall, didYouMean, status } from "./command.ts";
import { jsonText, say } from "./terminal.ts";

const DRAFT = "https://json-schema.org/draft/2020-12/schema";
const NAME = "^[a-zA-Z0-9][a-zA-Z0-9_.\\-]*$";

/** `cnibox schema` */
export async function schema(call: CommandCall): Promise<number> {
  const { names, load } = call.invocation;
  const wanted = call.arg("WHAT") ?? "conflist";
  const all = (await Promise.all(names.map((name) => load(name)))).filter((plugin) => plugin !== undefined);
  if (wanted === "conflist") {
    say(jsonText(listSchema(all)));
    return status.done;
  }
  const plugin = all.find(({ name }) => name === wanted);
  if (!plugin) {
    throw new CliError(`there is no plugin "${wanted}"`, status.unknown, [
      ...didYouMean(wanted, ["conflist", ...names]),
      `conflist, or one of ${names.join(", ")}`,
    ]);
  }
  say(jsonText({ $schema: DRAFT, title: `CNI plugin ${plugin.name}`, ...pluginSchema(plugin, all, true) }));
  return status.done;
}

/** Schema of a network configuration list. */
export function listSchema(plugins: readonly Plugin[]): Schema {
  const inLists = plugins.filter(({ kind }) => kind !== "ipam");
  return {
    $schema: DRAFT,
    title: "CNI network configuration list",
    type: "object",
    required: ["name", "plugins"],
    properties: {
      cniVersion: { description: "version of the list and of all its plugins; absent: 0.1.0", enum: VERSIONS },
      cniVersions: {
        description: "further versions; the highest that both sides know is used",
        type: "array",
        items: { type: "string" },
      },
      name: { description: "name of the network", type: "string", pattern: NAME },
      disableCheck: { description: "CHECK does nothing", ...FLAG },
      disableGC: { description: "GC does nothing", ...FLAG },
      loadOnlyInlinedPlugins: { description: "no plugins from the folder named after the network", ...FLAG },
      plugins: {
        description: "the plugins, in the order in which they attach",
        type: "array",
        minItems: 1,
        items: memberSchema(inLists, plugins),
      },
    },
  };
}

/** Schema of a member of a list, which is one of these. */
function memberSchema(members: readonly Plugin[], plugins: readonly Plugin[]): Schema {
  return {
    type: "object",
    required: ["type"],
    properties: {
      type: {
        description: "name of the plugin's file",
        type: "string",
        examples: members.map(({ name }) => name),
      },
    },
    allOf: members.map((plugin) => ({
      if: { properties: { type: { const: plugin.name } } },
      then: pluginSchema(plugin, plugins, false),
    })),
  };
}

const FLAG: Schema = { anyOf: [{ type: "boolean" }, { enum: ["true", "false"] }] };

/** Schema of one plugin's object; `alone` adds what a list would say. */
export function pluginSchema(plugin: Plugin, plugins: readonly Plugin[], alone: boolean): Schema {
  const { type, properties } = schemaOf(plugin.keys) as { type: string; properties: Readonly<Record<string, Schema>> };
  const { ipam, runtimeConfig, prevResult: _, ...own } = properties;
  const capabilities = Object.keys((runtimeConfig?.["properties"] ?? {}) as Schema);
  const ipams = plugin.kind === "ipam" ? [plugin] : plugins.filter(({ kind }) => kind === "ipam");
  const takesIpam = ipam !== undefined;
  const offered = takesIpam ? [...capabilities, ...ipams.flatMap(capabilitiesOf)] : capabilities;
  return {
    type,
    ...(alone && plugin.kind !== "ipam" && { required: ["type"] }),
    properties: {
      ...(alone && {
        cniVersion: { description: "version of the protocol", enum: plugin.versions },
        name: { description: "name of the network", type: "string", pattern: NAME },
      }),
      ...(plugin.kind === "ipam" ? {} : { type: { description: plugin.about, const: plugin.name } }),
      ...own,
      ...(plugin.name === CHAIN && { plugins: chainSchema(own["plugins"], plugins) }),
      ...(offered.length > 0 && {
        capabilities: {
          description: "what a runtime may hand over",
          type: "object",
          properties: Object.fromEntries([...new Set(offered)].map((name) => [name, { type: "boolean" }])),
          additionalProperties: { type: "boolean" },
        },
      }),
      ...(takesIpam && { ipam: ipamSchema(ipams, ipam) }),
    },
  };
}

/** Members of a chain: what may stand in a list, but no chain. */
function chainSchema(plain: Schema | undefined, plugins: readonly Plugin[]): Schema {
  const members = plugins.filter(({ kind, name }) => kind !== "ipam" && name !== CHAIN);
  const { allOf, ...items } = memberSchema(members, plugins) as { allOf: readonly Schema[] };
  return {
    ...plain,
    minItems: 1,
    items: { ...items, not: { required: ["type"], properties: { type: { const: CHAIN } } }, allOf },
  };
}

/** The table of the object below one of a plugin's keys; undefined where there is none. */
export function keysBelow(plugin: Plugin, key: string): Keys | undefined {
  const below = plugin.keys[key]?.below;
  return below && "keys" in below ? below.keys : undefined;
}

/** Capabilities that a plugin reads. */
export const capabilitiesOf = (plugin: Plugin) => Object.keys(keysBelow(plugin, "runtimeConfig") ?? {});

function ipamSchema(ipams: readonly Plugin[], ipam: Schema): Schema {
  return {
    description: ipam["description"],
    type: "object",
    properties: {
      type: {
        description: "the plugin that gives out addresses",
        type: "string",
        examples: ipams.map(({ name }) => name),
      },
    },
    allOf: ipams.map(({ name, keys }) => {
      const { properties = {} } = (keys["ipam"]?.schema ?? {}) as { properties?: Schema };
      return { if: { properties: { type: { const: name } } }, then: { properties } };
    }),
  };
}
