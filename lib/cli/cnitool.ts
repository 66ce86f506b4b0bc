/**
 * `cnitool`: the reference's command line, for what is written for it. Arguments, variables, output, exit statuses and
 * error texts are those of its version 1.3.0; `-i` and `--ifname` of later versions are understood as well.
 */
import {
  addNetwork,
  checkNetwork,
  delNetwork,
  GcError,
  gcNetwork,
  MemberError,
  type Runtime,
  statusNetwork,
} from "../cni/chain.ts";
import { loadNetwork, type NetworkList } from "../cni/conflist.ts";
import { isObject, kindOf } from "../cni/decode.ts";
import { CniError, code, goQuote } from "../cni/error.ts";
import { type Attached, CACHE_FOLDER } from "../cni/result_cache.ts";
import type { JsonObject } from "../cni/types.ts";
import { goJson } from "../cni/version.ts";
import type { Invocation } from "./mod.ts";
import { interruptedBySignals } from "./runtime.ts";
import { cleaned, cniArgs, CONF_FOLDER, idOfNetns } from "./setup.ts";
import { complain, say } from "./terminal.ts";

type Verb = (list: NetworkList, attached: Attached, runtime: Runtime) => Promise<unknown>;

/** Every verb, by its word. */
const VERBS: Readonly<Record<string, Verb>> = {
  add: async (list, attached, runtime) => {
    const { printable } = await addNetwork(list, attached, { ...runtime, interruption: interruptedBySignals() });
    say(goJson(printable, 4));
  },
  check: checkNetwork,
  del: (list, attached, runtime) => delNetwork(list, attached, runtime),
  gc: (list, _, runtime) => gcNetwork(list, runtime),
  status: (list, _, runtime) => statusNetwork(list, runtime),
};

/** `cnitool VERB NETWORK NETNS`; returns the exit status. */
export async function cnitool({ called, args, load }: Invocation): Promise<number> {
  const { words, ifName, help } = readArgs(args);
  const [word = "", network = "", netns = ""] = words;
  if (help || word === "help") {
    say(usage(called));
    return 0;
  }
  if (words.length < 3) {
    complain(usage(called));
    return 1;
  }
  const verb = Object.hasOwn(VERBS, word) ? VERBS[word] : undefined;
  if (!verb) {
    // The reference does nothing and says nothing, as if it had done something.
    complain(`unknown command ${goQuote(word)} for ${goQuote(called)}\n${usage(called)}`);
    return 1;
  }
  try {
    const list = loadNetwork(variable("NETCONFPATH") || CONF_FOLDER, network);
    await verb(list, attachedOf(list.name, netns, ifName), runtimeOf(load));
    return 0;
  } catch (error) {
    complain(`${referenceText(error)}\n`);
    return 1;
  }
}

const variable = (name: string) => Deno.env.get(name) ?? "";

/** Flags may stand anywhere; what is no flag of ours is a word. */
function readArgs(args: readonly string[]): { words: string[]; ifName: string | undefined; help: boolean } {
  const words: string[] = [];
  let ifName: string | undefined;
  let help = false;
  for (let at = 0; at < args.length; at++) {
    const arg = args[at] ?? "";
    const joined = /^(?:--ifname=|-i=?)(.+)$/s.exec(arg)?.[1];
    if (arg === "-i" || arg === "--ifname") ifName = args[++at];
    else if (joined !== undefined) ifName = joined;
    else if (arg === "-h" || arg === "--help") help = true;
    else words.push(arg);
  }
  return { words, ifName, help };
}

function usage(program: string): string {
  const verbs = Object.keys(VERBS).map((verb) => `  ${program} ${verb.padEnd(6)} <net> <netns>\n`);
  return `${program}: Add, check, remove, gc or status network interfaces from a network namespace\n${verbs.join("")}`;
}

/** Unlike `cnibox add`, a namespace is a path: a bare name lies in the working folder. */
function attachedOf(network: string, word: string, ifName: string | undefined): Attached {
  const netns = cleaned(word.startsWith("/") ? word : `${Deno.cwd()}/${word}`);
  return {
    network,
    // In this order the reference complains.
    capabilityArgs: capabilityArgs(variable("CAP_ARGS")),
    args: cniArgs(variable("CNI_ARGS")),
    containerId: idOfNetns(netns),
    ifName: ifName ?? Deno.env.get("CNI_IFNAME") ?? "eth0",
    netns,
  };
}

function runtimeOf(registry: Runtime["registry"]): Runtime {
  const path = variable("CNI_PATH");
  return {
    path: path === "" ? [] : path.split(":"),
    cache: CACHE_FOLDER,
    registry,
    builtin: false,
    env: Deno.env.toObject(),
    warn: (type, text) => complain(`${type}: ${text}\n`),
    stderr: complain,
  };
}

function capabilityArgs(text: string): JsonObject {
  if (text === "") return {};
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(goSyntaxText(text, (error as Error).message));
  }
  if (value === null) return {};
  if (isObject(value)) return value;
  throw new Error(`json: cannot unmarshal ${kindOf(value)} into Go value of type map[string]interface {}`);
}

/** What the reference's parser says where this one says something else. */
const SYNTAX: readonly (readonly [RegExp, string])[] = [
  [/^Expected ':'/, "after object key"],
  [/^Expected ',' or '}'/, "after object key:value pair"],
  [/^Expected ',' or ']'/, "after array element"],
  [/^Expected (double-quoted )?property name/, "looking for beginning of object key string"],
  [/^Unexpected non-whitespace/, "after top-level value"],
];

function goSyntaxText(text: string, words: string): string {
  if (/end of JSON input|Unterminated/.test(words)) return "unexpected end of JSON input";
  const position = /at position (\d+)/.exec(words)?.[1];
  const character = position === undefined ? /Unexpected token '(.)'/su.exec(words)?.[1] : text[Number(position)];
  // Past the last character.
  if (character === undefined) return "unexpected end of JSON input";
  const place = SYNTAX.find(([pattern]) => pattern.test(words))?.[1] ?? "looking for beginning of value";
  return `invalid character '${character}' ${place}`;
}

/** Failures to find a plugin, whose details are ours alone. */
const NOT_FOUND = /^(no plugin name provided$|invalid plugin name: |no paths provided$|failed to find plugin )/;

/** An error as the reference's library words it, without what this one adds for people. */
function referenceText(error: unknown): string {
  if (error instanceof GcError) {
    return error.failures.map(({ doing, error }) => `${doing}: ${failureText(error)}`).join("\n");
  }
  if (error instanceof MemberError || !(error instanceof CniError)) return failureText(error);
  // What the library itself refuses has details only where a name is wrong.
  return error.code === code.environment || error.code === code.config ? error.message : error.msg;
}

function failureText(error: unknown): string {
  if (!(error instanceof CniError)) return error instanceof Error ? error.message : String(error);
  const { msg, details } = error instanceof MemberError ? { ...error.plugin, msg: error.msg } : error;
  const own = NOT_FOUND.test(error instanceof MemberError ? error.plugin.msg : msg);
  return own || details === "" ? msg : `${msg}; ${details}`;
}
