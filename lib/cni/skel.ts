/**
 * What every plugin call goes through: environment and standard input become a call, the plugin does its work, one JSON
 * document goes to standard output. The order of checks, the codes and the texts are those of the reference library.
 */
import {
  collectScratch,
  type Command,
  inNetns,
  isAbsent,
  readable,
  type Run,
  type RunHooks,
  systemRun,
  toolLimit,
  within,
} from "../kernel/run.ts";
import { type HeldNetns, holdNetns } from "../kernel/netns.ts";
import { foreignFolders, notAlone } from "../kernel/run_folder.ts";
import { leftovers } from "../kernel/scratch.ts";
import { type Explainer, perform } from "../kernel/plan.ts";
import { goKind, isObject, lookup } from "./decode.ts";
import { isLinkName } from "../net/link_name.ts";
import { foreignEffect, locate } from "./delegate.ts";
import { badConfig, CniError, code, goQuote, internal, toCniError } from "./error.ts";
import { isOrdinary } from "./ordinary_json.ts";
import type {
  Call,
  Company,
  ContainerCall,
  DelegateAnswer,
  Lease,
  NetworkCall,
  Plugin,
  Registry,
  Released,
  Verb,
} from "./plugin.ts";
import { type JsonObject, NEWEST, type Result, type ValidAttachment } from "./types.ts";
import { atLeast, convertResult, goJson, parseResult } from "./version.ts";

/** One call of one plugin, whoever makes it: a runtime, another plugin in this process, or an operator's command. */
export interface Request extends Company {
  readonly env: Readonly<Record<string, string>>;
  /** Reads the configuration; not called for VERSION. Throws what the system says. */
  readonly stdin: () => Uint8Array | Promise<Uint8Array>;
  readonly registry: Registry;
  readonly warn: (type: string, note: string) => void;
  /** Set while SIGTERM asks to stop: nothing new is started, what was done is undone. */
  readonly interruption?: Interruption;
  /** What runs commands; this process's own namespaces if absent. */
  readonly run?: Run;
  /** Watches every child process: for logs and traces. */
  readonly hooks?: RunHooks;
  readonly explain?: Explainer;
  /** Also take built-in plugins that CNI_PATH does not lead to: an operator's command before anything is installed. */
  readonly builtin?: boolean;
  /** ADD: hands the result to whoever asked; when that fails, everything is undone. */
  readonly deliver?: ((result: JsonObject) => void) | undefined;
  /** CNI_NETNS, where the caller in this process has opened it. */
  readonly netns?: HeldNetns;
  /** Another plugin in this process asks, with its own input. */
  readonly delegated?: boolean;
  /** Instead of the whole command, this function of the plugin's: {@linkcode Plugin.parse}, `begin` or `held`. */
  readonly only?: "parse" | "begin" | "held" | undefined;
  /** Takes over what takes a successful ADD back, first to last. */
  readonly undo?: ((job: () => Promise<unknown> | unknown) => void) | undefined;
}

/**
 * Whether somebody asked this process to stop, whether a command was not started for that, and whether it is busy
 * taking things back.
 */
export interface Interruption {
  requested: string;
  refused?: boolean;
  undoing: boolean;
  /** How many calls are: members of a chain may fail side by side. */
  undoers?: number;
}

/** What a call gave. */
export interface Answer {
  /** ADD: the result in the newest layout. */
  readonly result?: Result;
  /** ADD: the result as an object in the configuration's version. */
  readonly printable?: JsonObject;
  readonly released?: Released;
  readonly held?: readonly string[] | undefined;
  readonly lease?: Lease;
}

const ID = /^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$/;
// Unicode White_Space; ECMAScript's \s lacks U+0085 and has U+FEFF.
const BAD_IFNAME = /[/:\t\n\v\f\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]/;

/** A container ID or network name that may become part of a path or a rule. */
export function isName(text: string): boolean {
  return ID.test(text) && !text.endsWith("\n");
}

/**
 * Refuses what cannot be an interface name: the reference library's checks in their order. What no link can be made
 * with is refused only by who makes one: what has been made some other way can be deleted.
 */
export function checkIfName(name: string, verb = "ADD"): void {
  if (new TextEncoder().encode(name).length > 15) {
    throw new CniError(
      code.environment,
      "interface name is too long",
      "interface name should be less than 16 characters",
    );
  }
  if (name === "." || name === "..") throw new CniError(code.environment, "interface name is . or ..");
  if (BAD_IFNAME.test(name)) {
    throw new CniError(code.environment, "interface name contains / or : or whitespace characters");
  }
  if (verb !== "ADD" || isLinkName(name)) return;
  throw new CniError(
    code.environment,
    "interface name contains characters that no link can be made with",
    `CNI_IFNAME is ${goQuote(name)}: the kernel takes % for a pattern, and iproute2 cannot say control characters`,
  );
}

const VERBS: readonly string[] = ["ADD", "DEL", "CHECK", "GC", "STATUS"];

/** Which variables each command needs: the order is that of the checks and of the names in the message. */
const VARIABLES: readonly (readonly [name: string, needed: readonly string[]])[] = [
  ["CNI_CONTAINERID", ["ADD", "CHECK", "DEL"]],
  ["CNI_NETNS", ["ADD", "CHECK"]],
  ["CNI_IFNAME", ["ADD", "CHECK", "DEL"]],
  ["CNI_PATH", ["ADD", "CHECK", "DEL", "GC", "STATUS"]],
];

function checkEnvironment(env: Request["env"]): void {
  const command = env["CNI_COMMAND"] ?? "";
  const missing: string[] = command === "" ? ["CNI_COMMAND"] : [];
  for (const [name, needed] of VARIABLES) {
    if (!needed.includes(command)) continue;
    const value = env[name] ?? "";
    if (value === "") missing.push(name);
    else if (name === "CNI_CONTAINERID" && !isName(value)) {
      throw new CniError(code.environment, "invalid characters in containerID", value);
    } else if (name === "CNI_IFNAME") checkIfName(value, command);
  }
  if (missing.length > 0) throw new CniError(code.environment, `required env variables [${missing.join(",")}] missing`);
}

async function readConfig(
  stdin: Request["stdin"],
): Promise<{ bytes: Uint8Array; config: JsonObject; repeated: Call["repeated"] }> {
  let bytes: Uint8Array;
  try {
    bytes = await stdin();
  } catch (error) {
    if (error instanceof CniError) throw error;
    throw new CniError(code.io, `error reading from stdin: ${(error as Error).message}`);
  }
  let value: unknown;
  let repeated: Call["repeated"] = [];
  try {
    // A byte order mark is a syntax error, as in the reference; invalid UTF-8 becomes U+FFFD.
    const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
    value = JSON.parse(text);
    if (!isOrdinary(text, value)) ({ value, repeated } = (await import("./exact_json.ts")).readExactly(text));
  } catch (error) {
    const words = (error as Error).message;
    const reason = /end of JSON input|Unterminated/.test(words) ? "unexpected end of JSON input" : words;
    throw new CniError(
      code.decode,
      `error unmarshall network config: ${reason}`,
      "standard input has to be one JSON object: the network configuration",
    );
  }
  if (value === null) value = {};
  if (!isObject(value)) {
    throw new CniError(
      code.decode,
      `error unmarshall network config: json: cannot unmarshal ${
        goKind(value, "")
      } into Go value of type types.NetConf`,
    );
  }
  return { bytes, config: value, repeated };
}

function networkName(config: JsonObject): string {
  const name = lookup(config, "name") ?? "";
  if (typeof name !== "string") {
    throw new CniError(
      code.decode,
      `error unmarshall network config: json: cannot unmarshal ${
        goKind(name, "")
      } into Go struct field NetConf.name of type string`,
      `"name" is ${JSON.stringify(name)}: write a string`,
    );
  }
  if (name === "") throw badConfig("missing network name", 'the configuration needs a "name"');
  if (!isName(name)) throw badConfig("invalid characters found in network name", name);
  return name;
}

function confVersion(config: JsonObject): string {
  const version = lookup(config, "cniVersion") ?? "";
  if (typeof version === "string") return version;
  throw new CniError(
    code.decode,
    `decoding version from network config: json: cannot unmarshal ${
      goKind(version, "")
    } into Go struct field .cniVersion of type string`,
    `"cniVersion" is ${JSON.stringify(version)}: write a string such as "1.0.0"`,
  );
}

const GATES: Readonly<Record<string, string>> = { CHECK: "0.4.0", GC: "1.1.0", STATUS: "1.1.0" };

function checkVersion(plugin: Plugin, verb: string, version: string): void {
  const first = GATES[verb];
  if (first !== undefined) {
    if (!atLeast(version, first)) {
      throw new CniError(
        code.incompatibleVersion,
        `config version does not allow ${verb}`,
        `"cniVersion" is ${goQuote(version)}; ${verb} needs ${first} or later`,
      );
    }
    if (!plugin.versions.some((one) => atLeast(one, version))) {
      throw new CniError(code.incompatibleVersion, `plugin version does not allow ${verb}`);
    }
  }
  const wanted = version === "" ? "0.1.0" : version;
  if (plugin.versions.includes(wanted)) return;
  const list = plugin.versions.map(goQuote).join(" ");
  throw new CniError(
    code.incompatibleVersion,
    "incompatible CNI versions",
    `config is ${goQuote(wanted)}, plugin supports [${list}]`,
  );
}

const NO_PROC = "failed to open current namespace: /proc does not show this process";
const SAME_NETNS = "plugin's netns and netns from CNI_NETNS should not be the same";

/** Does the whole of one call; throws a {@linkcode CniError}. After a failed ADD everything it did is undone. */
export async function callPlugin(plugin: Plugin, request: Request): Promise<Answer> {
  const { env } = request;
  checkEnvironment(env);
  const { bytes, config, repeated } = await readConfig(request.stdin);
  const network = networkName(config);
  const verb = env["CNI_COMMAND"] ?? "";
  if (!VERBS.includes(verb)) throw new CniError(code.environment, `unknown CNI_COMMAND: ${verb}`);
  const version = confVersion(config);
  checkVersion(plugin, verb, version);

  const given = env["CNI_NETNS"] ?? "";
  const ofContainer = verb !== "GC" && verb !== "STATUS";
  const netns = ofContainer ? request.netns ?? holdNetns(given) : undefined;
  // What is explained is read and copied by people: there the path is what they gave.
  const naming: Naming = { given, held: request.explain ? "" : netns?.path ?? "" };
  const undos: Undo[] = [];
  // Once ADD has succeeded, whoever asked for it takes back what is still done for it.
  const remember: Remember = { undo: (job) => void undos.push(job) };
  const { through = (run: Run) => run } = request;
  const ask = (type: string, verb: Verb, more: Partial<Request> = {}) =>
    delegate(type, {
      ...request,
      ...(netns && { netns }),
      before: undefined,
      later: undefined,
      deliver: undefined,
      delegated: true,
      env: { ...env, CNI_COMMAND: verb },
      stdin: () => bytes,
      only: undefined,
      undo: base.undo,
      ...more,
    }, version);
  const base: Call = {
    verb: verb as Verb,
    type: plugin.name,
    network,
    version,
    config,
    repeated,
    stdin: bytes,
    env,
    path: (env["CNI_PATH"] ?? "").split(":"),
    host: explaining(readable(through(request.run ?? systemRun(guarded(request, naming)))), request.explain),
    perform: request.explain?.perform ?? perform,
    explain: request.explain,
    warn: (note) => request.warn(plugin.name, asGiven(note, naming)),
    undo: (job) => remember.undo(job),
    delegate: async (type, verb, { stdin = bytes, ...company } = {}) => {
      if (verb === "DEL") await request.before;
      const more = { ...company, stdin: () => stdin };
      return verb === "PARSE" ? await ask(type, "ADD", { ...more, only: "parse" }) : await ask(type, verb, more);
    },
    begin: async (type) => (await ask(type, "ADD", { only: "begin" })).lease ?? { commit: () => Promise.resolve({}) },
    held: async (type) => (await ask(type, "DEL", { only: "held" })).held ?? [],
  };
  for (const path of repeated ?? []) {
    base.warn(
      `${goQuote(path.join("."))} is written twice in the configuration: its values are merged, the later one wins`,
    );
  }
  try {
    if (verb === "DEL" || verb === "GC") await base.perform(undefined, () => endKilledCalls(request));
    return netns
      ? await callForContainer(plugin, base, { request, netns, naming, undos, remember })
      : await callForNetwork(plugin, base, request);
  } catch (error) {
    throw withGivenPath(error, naming);
  } finally {
    if (!request.netns) netns?.close();
  }
}

type Undo = () => Promise<unknown> | unknown;
/** Where what takes a call back is kept. */
interface Remember {
  undo: (job: Undo) => void;
}

/** GC and STATUS. */
async function callForNetwork(plugin: Plugin, base: Call, { interruption, delegated }: Request): Promise<Answer> {
  const { verb } = base;
  if (verb === "STATUS") {
    await toTheEnd(() => plugin.status(base as NetworkCall), { interruption, verb });
    return {};
  }
  collectScratch();
  const valid = validAttachments(base.config);
  if (valid === undefined && !delegated) {
    base.warn(`GC without "${VALID}": nothing is removed, since nobody said which attachments to keep`);
  }
  await toTheEnd(() => plugin.gc({ ...base, valid }), { interruption, verb });
  return {};
}

/** What {@linkcode callForContainer} needs beside the call itself. */
interface ContainerWork {
  readonly request: Request;
  readonly netns: HeldNetns;
  readonly naming: Naming;
  readonly undos: readonly Undo[];
  readonly remember: Remember;
}

/** ADD, DEL and CHECK. */
async function callForContainer(
  plugin: Plugin,
  base: Call,
  { request, netns: { state, path }, naming, undos, remember }: ContainerWork,
): Promise<Answer> {
  const { env, interruption } = request;
  const { verb } = base;
  const { given, held } = naming;
  const override = (env["CNI_NETNS_OVERRIDE"] ?? "").toLowerCase();
  const same = state === "own" && override !== "1" && override !== "true";
  if (same && verb !== "DEL") {
    throw new CniError(
      code.netns,
      SAME_NETNS,
      `CNI_NETNS is ${given}: the namespace that this plugin runs in; nothing was changed`,
    );
  }
  const isThere = state === "netns" || state === "own";
  if (isThere && path === "") throw internal(NO_PROC, `CNI_NETNS is ${given}; nothing was changed`);
  const podAlive = !same && isThere;
  const call: ContainerCall = {
    ...base,
    containerId: env["CNI_CONTAINERID"] ?? "",
    ifName: env["CNI_IFNAME"] ?? "",
    netns: given,
    heldNetns: podAlive ? held : "",
    ownNetns: same,
    podAlive,
    args: env["CNI_ARGS"] ?? "",
    later: request.later,
    pod: podAlive || request.explain
      ? inNetns(base.host, held || (given.includes("/") ? given : `./${given}`))
      : inNoNetns(given),
    // Few plugins need one.
    lock: async (name) =>
      await base.perform(undefined, async () => (await import("./own_lock.ts")).ownLock(name, base.warn)) ??
        { close() {} },
  };
  if (request.only === "held") return { held: await plugin.held?.(call) };
  if (request.only === "parse") {
    await plugin.parse?.({ ...call, warn: () => {} });
    return {};
  }
  if (request.only === "begin") {
    // Whoever asked decides between the steps: what undoes them is the caller's from the first one on.
    if (request.undo) remember.undo = request.undo;
    return { lease: await plugin.begin?.(call) ?? { commit: () => plugin.add(call) } };
  }
  if (verb === "ADD") return await added(plugin, call, { request, undos, remember });
  if (verb === "CHECK") {
    await toTheEnd(() => plugin.check(call), { interruption, verb });
    return {};
  }
  const released = await toTheEnd(() => plugin.del(call), { interruption, verb }) ?? undefined;
  if (same) {
    throw new CniError(
      code.netns,
      SAME_NETNS,
      `CNI_NETNS is ${given}: no link was touched; addresses and rules of this container were removed`,
    );
  }
  return released ? { released } : {};
}

/** ADD: the result, or everything undone. */
async function added(
  plugin: Plugin,
  call: ContainerCall,
  { request, undos, remember }: Pick<ContainerWork, "request" | "undos" | "remember">,
): Promise<Answer> {
  const { interruption } = request;
  try {
    const result = await plugin.add(call);
    if (interruption?.requested) throw interrupted(interruption, call.verb);
    const printable = convertResult(result, call.version);
    request.deliver?.(printable);
    if (request.undo) undos.forEach(remember.undo = request.undo);
    return { result, printable };
  } catch (error) {
    const left = await undoing(interruption, () => undoAll(undos));
    // Whatever the words of the plugin for what it was at: it failed because it was asked to.
    const failure = interruption?.requested ? interrupted(interruption, call.verb) : toCniError(error);
    if (left.length === 0) throw failure;
    const note = `could not be undone: ${left.join("; ")}; DEL of this container cleans up`;
    throw new CniError(failure.code, failure.msg, failure.details === "" ? note : `${failure.details}; ${note}`);
  }
}

/**
 * Ends the tools that killed calls left running: what they still do would come after all that this call removes. Files
 * below /run say whether there are any.
 */
async function endKilledCalls({ run }: Request): Promise<void> {
  if (run || leftovers()?.size === 0) return;
  const { endOrphans } = await import("../kernel/orphans.ts");
  const [orphan] = await endOrphans(toolLimit());
  if (!orphan) return;
  throw new CniError(
    code.tryAgain,
    `process ${orphan.pid}, left by a call that was killed, does not end`,
    `${orphan.command}: the kernel is at work for it; nothing was removed yet, call again`,
  );
}

/** Stands for the namespace of a container that has none: nothing enters what may have come into its place. */
function inNoNetns(netns: string): Run {
  const stderr = `nsenter: cannot open ${netns}: No such file or directory`;
  return () => Promise.resolve({ code: 1, signal: null, stdout: "", stderr });
}

/** CNI_NETNS as it was given, and the path that tools get for it; "" when they get the given one. */
interface Naming {
  readonly given: string;
  readonly held: string;
}

/** A text for people, who know the namespace by the path that they gave. */
function asGiven(text: string, { given, held }: Naming): string {
  return held === "" ? text : text.replaceAll(held, given);
}

function withGivenPath(error: unknown, naming: Naming): unknown {
  if (naming.held === "") return error;
  const { code, msg, details } = toCniError(error);
  const texts = [asGiven(msg, naming), asGiven(details, naming)] as const;
  return texts[0] === msg && texts[1] === details ? error : new CniError(code, ...texts);
}

interface Interruptible {
  readonly interruption: Interruption | undefined;
  readonly verb: string;
}

/**
 * Work that is not taken back: once SIGTERM came it ends what is running and starts nothing more. When all was done
 * nevertheless, that is the answer; else it is to be called again, whatever became of the part that was left out.
 */
async function toTheEnd<T>(work: () => Promise<T> | T, { interruption, verb }: Interruptible): Promise<T> {
  const stopped = () => interruption?.requested && !interruption.undoing ? interruption : undefined;
  let result: T;
  try {
    result = await work();
  } catch (error) {
    const by = stopped();
    if (by) throw interrupted(by, verb, (error as Error).message);
    throw error;
  }
  const by = stopped();
  if (by?.refused) throw interrupted(by, verb);
  return result;
}

/** While this is under way, tools are started whoever asked to stop. */
async function undoing<T>(interruption: Interruption | undefined, work: () => Promise<T>): Promise<T> {
  if (!interruption) return await work();
  interruption.undoers = (interruption.undoers ?? 0) + 1;
  interruption.undoing = true;
  try {
    return await work();
  } finally {
    interruption.undoing = --interruption.undoers > 0;
  }
}

/** Last first, every one of them; returns what failed. */
async function undoAll(jobs: readonly (() => Promise<unknown> | unknown)[]): Promise<string[]> {
  const left: string[] = [];
  for (const job of [...jobs].reverse()) {
    try {
      await job();
    } catch (error) {
      if (!isAbsent(error)) left.push((error as Error).message);
    }
  }
  return left;
}

/** While a call is explained, only questions reach the kernel. */
function explaining(run: Run, explain: Explainer | undefined): Run {
  if (!explain) return run;
  return async (command) => await explain.instead(command, run);
}

/** Child processes do not start any more once SIGTERM came, except those that take things back. */
function guarded(request: Request, naming: Naming): RunHooks {
  const { interruption, hooks = {} } = request;
  const shown = (command: Command): Command => ({
    ...command,
    argv: command.argv.map((word) => asGiven(word, naming)),
    ...(command.input && { input: command.input.map((part) => asGiven(part, naming)) }),
  });
  const { after } = hooks;
  return {
    ...hooks,
    ...(after && { after: (command, output, ms) => after(shown(command), output, ms) }),
    // Not after it: whoever started a command has to learn how it ended, for what it did is to be undone.
    before: (command) => {
      if (interruption?.requested && !interruption.undoing) {
        interruption.refused = true;
        throw new CniError(code.tryAgain, `${interruption.requested} came before ${command.argv[0]} was started`);
      }
      hooks.before?.(command);
    },
  };
}

function interrupted({ requested }: Interruption, verb: string, last = ""): CniError {
  const state = verb === "ADD"
    ? "what this call had done was undone"
    : verb === "DEL" || verb === "GC"
    ? `not everything was removed: call ${verb} again`
    : "nothing was changed: ask again";
  return new CniError(code.tryAgain, `interrupted by ${requested}`, last === "" ? state : `${state}; ${last}`);
}

const VALID = "cni.dev/valid-attachments";

/** The attachments to keep; the library's other name for the list counts when this one is absent. */
function validAttachments(config: JsonObject): ValidAttachment[] | undefined {
  const key = lookup(config, VALID) !== undefined ? VALID : "cni.dev/attachments";
  const value = lookup(config, key);
  // That is how the library writes a runtime's empty list.
  if (value === null) return [];
  if (value === undefined) return undefined;
  const bad = (what: string) =>
    new CniError(code.decode, `"${key}": ${what}`, 'it is a list of {"containerID": …, "ifname": …}');
  if (!Array.isArray(value)) throw bad("not a list");
  return value.map((item, index) => {
    const containerID = isObject(item) ? lookup(item, "containerID") : undefined;
    const ifname = isObject(item) ? lookup(item, "ifname") : undefined;
    if (typeof containerID !== "string" || typeof ifname !== "string") {
      throw bad(`element ${index} lacks containerID or ifname`);
    }
    return { containerID, ifname };
  });
}

async function delegate(
  type: string,
  request: Request,
  version: string,
): Promise<DelegateAnswer & Pick<Answer, "held" | "lease">> {
  const { env, only } = request;
  const { file, own } = await locate(type, { ...request, path: (env["CNI_PATH"] ?? "").split(":") });
  if (own) {
    const { printable, released, held, lease } = await callPlugin(own, request);
    // Through the wire's layout and back, so that nothing gets across that a program could not have handed over.
    return {
      ...(printable && { result: parseResult(printable, version) }),
      ...(released && { released }),
      ...(held && { held }),
      ...(lease && { lease: wired(lease, version) }),
    };
  }
  if (only === "held") return {};
  if (only === "parse") {
    const { checkSpoken } = await import("./foreign_versions.ts");
    await checkSpoken(file, { type, version, env });
    return {};
  }
  if (only === "begin") {
    const whole = { ...request, only: undefined };
    return { lease: { commit: async () => (await delegate(type, whole, version)).result ?? {} } };
  }
  const verb = env["CNI_COMMAND"] as Verb;
  const stdin = await request.stdin();
  const { perform: run = perform } = request.explain ?? {};
  const answer = await run(foreignEffect(file, verb), async () => {
    const { runForeign } = await import("./foreign.ts");
    return await runForeign(file, { verb, env, stdin, version });
  });
  if (!answer) return verb === "ADD" ? { result: {} } : {};
  if (answer.stderr !== "") Deno.stderr.writeSync(new TextEncoder().encode(answer.stderr));
  return answer.result ? { result: answer.result } : {};
}

/** A lease whose answers have been through the wire's layout of this version. */
function wired({ ips, commit }: Lease, version: string): Lease {
  const through = (result: Result) => parseResult(convertResult(result, version), version);
  return {
    ips: ips && through({ ips: [...ips] }).ips,
    commit: async () => {
      try {
        return through(await commit());
      } catch (error) {
        throw toCniError(error);
      }
    },
  };
}

/** Largest configuration that is read, in bytes. */
const MAX_STDIN = 16 * 1024 * 1024;

/** All of standard input, to its end. */
async function readAll(): Promise<Uint8Array> {
  let buffer = new Uint8Array(16 * 1024);
  let length = 0;
  for (;;) {
    if (length === buffer.length) {
      if (length >= MAX_STDIN) throw new Error(`more than ${MAX_STDIN / 1024 / 1024} MiB`);
      const larger = new Uint8Array(buffer.length * 4);
      larger.set(buffer);
      buffer = larger;
    }
    // A thread reads: somebody may keep the other end open for ever. No stream: these cost more to start.
    const count = await Deno.stdin.read(buffer.subarray(length));
    if (count === null) return buffer.subarray(0, length);
    length += count;
  }
}

/** All of standard input; throws when it does not end in time, or when `interrupted` throws. */
async function readStdin(interrupted: Promise<never>): Promise<Uint8Array> {
  const limitMs = toolLimit();
  const bytes = await Promise.race([within(limitMs, readAll(), () => {}), interrupted]);
  if (bytes === undefined) throw new Error(`its writer did not close it within ${limitMs / 1000} s`);
  return bytes;
}

function write(stream: { writeSync(bytes: Uint8Array): number }, text: string): void {
  let bytes = new TextEncoder().encode(text);
  while (bytes.length > 0) bytes = bytes.subarray(stream.writeSync(bytes));
}

/** The text that answers a call without CNI_COMMAND. */
export function aboutText(plugin: Plugin, version: string): string {
  return `CNI ${plugin.name} plugin ${version}\nCNI protocol versions supported: ${plugin.versions.join(", ")}\n`;
}

/**
 * A plugin as a program: returns the exit status. The configuration is read while the plugin is loaded. `build` is the
 * version that the about text names.
 */
export async function pluginMain(loaded: Plugin | Promise<Plugin>, registry: Registry, build: string): Promise<number> {
  const env = Deno.env.toObject();
  const command = env["CNI_COMMAND"] ?? "";
  if (command === "") {
    write(Deno.stderr, aboutText(await loaded, build));
    return 0;
  }
  if (command === "VERSION") {
    const { versions } = await loaded;
    write(Deno.stdout, `${JSON.stringify({ cniVersion: NEWEST, supportedVersions: versions })}\n`);
    return 0;
  }
  const { interruption, listen, asked } = interruptible(command);
  // ADD listens before it changes anything. The others, to whom it then costs no time, when a tool is at work, or when
  // they wait.
  if (command === "ADD") listen();
  else setTimeout(listen);
  const input = readStdin(asked);
  // What it throws is thrown to whoever asks for it.
  input.catch(() => {});
  const plugin = await loaded;
  let log: typeof import("./log.ts") | undefined;
  if (env["CNIBOX_LOG"]) log = await import("./log.ts");
  const record = log?.open(env, plugin.name);
  const hooks: RunHooks = {
    ...record?.hooks,
    before: (command) => {
      queueMicrotask(listen);
      record?.hooks.before?.(command);
    },
  };
  try {
    const answer = await callPlugin(plugin, {
      env,
      stdin: record ? async () => record.stdin(await input) : () => input,
      registry,
      interruption,
      warn: (type, note) => write(Deno.stderr, `${type}: ${note}\n`),
      hooks,
      deliver: (result) => write(Deno.stdout, goJson(result, 4)),
    });
    record?.end(answer.printable);
    return 0;
  } catch (error) {
    const failure = toCniError(error);
    record?.end(undefined, failure);
    try {
      write(Deno.stdout, errorText(failure));
    } catch {
      // Nobody hears it there: the runtime is gone, or its disk is full.
      write(Deno.stderr, `${plugin.name}: ${failure.message}\n`);
    }
    return 1;
  } finally {
    for (const folder of foreignFolders()) write(Deno.stderr, `${plugin.name}: ${notAlone(folder)}; it is not used\n`);
  }
}

/** What a signal changes: `asked` throws then, for work that nothing else ends. */
function interruptible(verb: string) {
  const interruption: Interruption = { requested: "", undoing: false };
  const { promise: asked, reject } = Promise.withResolvers<never>();
  asked.catch(() => {});
  let listening = false;
  const listen = () => {
    if (listening) return;
    listening = true;
    for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const) {
      Deno.addSignalListener(signal, () => {
        interruption.requested = signal;
        reject(interrupted(interruption, verb));
      });
    }
  };
  return { interruption, listen, asked };
}

/** An error as it goes on standard output. */
export function errorText({ code, msg, details }: CniError): string {
  return goJson({ code, msg, ...(details !== "" && { details }) }, 4);
}
