/**
 * What every plugin call goes through: environment and standard input become a call, the plugin does its work, one JSON
 * document goes to standard output. The order of checks, the codes and the texts are those of the reference library.
 */
import { collectScratch, inNetns, isAbsent, readable, type Run, type RunHooks, systemRun } from "../kernel/run.ts";
import { netnsState } from "../kernel/netns.ts";
import type { Explainer } from "../kernel/plan.ts";
import { isObject, lookup } from "./decode.ts";
import { lookUp, runForeign } from "./delegate.ts";
import { CniError, code, goQuote, toCniError } from "./error.ts";
import type {
  Call,
  Company,
  ContainerCall,
  DelegateAnswer,
  Foresight,
  NetworkCall,
  Plugin,
  Released,
  Verb,
} from "./plugin.ts";
import { type Attachment, type JsonObject, NEWEST, type Result } from "./types.ts";
import { atLeast, convertResult, goJson, parseResult } from "./version.ts";

/** Finds a plugin of this binary by its type; undefined when there is none. */
export type Registry = (name: string) => Promise<Plugin> | undefined;

/** One call of one plugin, whoever makes it: a runtime, another plugin in this process, or an operator's command. */
export interface Request extends Foresight, Company {
  readonly env: Readonly<Record<string, string>>;
  /** Reads the configuration; not called for VERSION. Throws what the system says. */
  readonly stdin: () => Uint8Array;
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
  /** Only ask which addresses the attachment holds, see {@linkcode Plugin.held}. */
  readonly held?: boolean;
  /** Only read the configuration, see {@linkcode Plugin.parse}. */
  readonly parse?: boolean;
  /** Takes over what takes a successful ADD back, first to last. */
  readonly undo?: ((job: () => Promise<unknown> | unknown) => void) | undefined;
}

/** Whether somebody asked this process to stop, whether a command was not started for that, and whether it is busy taking things back. */
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
}

const ID = /^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$/;
// Unicode White_Space; ECMAScript's \s lacks U+0085 and has U+FEFF.
const BAD_IFNAME = /[/:\t\n\v\f\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]/;

/** A container ID or network name that may become part of a path or a rule. */
export function isName(text: string): boolean {
  return ID.test(text) && !text.endsWith("\n");
}

/** Refuses what cannot be an interface name; the reference library's checks in their order, and NUL. */
export function checkIfName(name: string): void {
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
  // iproute2 reads a leading dash as an option, quotes and backslashes as its batch syntax, % as a pattern.
  // deno-lint-ignore no-control-regex
  if (/^-|[\x00-\x1f\x7f"'\\%]/.test(name)) {
    throw new CniError(
      code.environment,
      "interface name contains characters that no tool accepts",
      `CNI_IFNAME is ${goQuote(name)}`,
    );
  }
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
    } else if (name === "CNI_IFNAME") checkIfName(value);
  }
  if (missing.length > 0) throw new CniError(code.environment, `required env variables [${missing.join(",")}] missing`);
}

function readConfig(stdin: () => Uint8Array): { bytes: Uint8Array; config: JsonObject } {
  let bytes: Uint8Array;
  try {
    bytes = stdin();
  } catch (error) {
    throw new CniError(code.io, `error reading from stdin: ${(error as Error).message}`);
  }
  let value: unknown;
  try {
    // A byte order mark is a syntax error, as in the reference; invalid UTF-8 becomes U+FFFD.
    value = JSON.parse(new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes));
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
    const kind = Array.isArray(value) ? "array" : typeof value === "boolean" ? "bool" : typeof value;
    throw new CniError(
      code.decode,
      `error unmarshall network config: json: cannot unmarshal ${kind} into Go value of type types.NetConf`,
    );
  }
  return { bytes, config: value };
}

function networkName(config: JsonObject): string {
  const name = lookup(config, "name") ?? "";
  if (typeof name !== "string") {
    const kind = Array.isArray(name) ? "array" : typeof name === "boolean" ? "bool" : typeof name;
    throw new CniError(
      code.decode,
      `error unmarshall network config: json: cannot unmarshal ${kind} into Go struct field NetConf.name of type string`,
      `"name" is ${JSON.stringify(name)}: write a string`,
    );
  }
  if (name === "") throw new CniError(code.config, "missing network name", 'the configuration needs a "name"');
  if (!isName(name)) throw new CniError(code.config, "invalid characters found in network name", name);
  return name;
}

function confVersion(config: JsonObject): string {
  const version = lookup(config, "cniVersion") ?? "";
  if (typeof version === "string") return version;
  const kind = Array.isArray(version) ? "array" : typeof version === "boolean" ? "bool" : typeof version;
  throw new CniError(
    code.decode,
    `decoding version from network config: json: cannot unmarshal ${kind} into Go struct field .cniVersion of type string`,
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

const SAME_NETNS = "plugin's netns and netns from CNI_NETNS should not be the same";

/** Does the whole of one call; throws a {@linkcode CniError}. After a failed ADD everything it did is undone. */
export async function callPlugin(plugin: Plugin, request: Request): Promise<Answer> {
  const { env, interruption } = request;
  checkEnvironment(env);
  const { bytes, config } = readConfig(request.stdin);
  const network = networkName(config);
  const verb = env["CNI_COMMAND"] ?? "";
  if (!VERBS.includes(verb)) throw new CniError(code.environment, `unknown CNI_COMMAND: ${verb}`);
  const version = confVersion(config);
  checkVersion(plugin, verb, version);

  const undos: (() => Promise<unknown> | unknown)[] = [];
  // Once ADD has succeeded, whoever asked for it takes back what is still done for it.
  let remember = (job: () => Promise<unknown> | unknown): void => void undos.push(job);
  const { through = (run: Run) => run } = request;
  const host = explaining(readable(through(request.run ?? systemRun(guarded(request)))), request.explain);
  const path = (env["CNI_PATH"] ?? "").split(":");
  const base: Call = {
    verb: verb as Verb,
    type: plugin.name,
    network,
    version,
    config,
    stdin: bytes,
    env,
    path,
    host,
    explain: request.explain,
    warn: (note) => request.warn(plugin.name, note),
    undo: (job) => remember(job),
    delegate: async (type, verb, { stdin = bytes, chosen, meanwhile, through, before, later } = {}) => {
      if (verb === "DEL") await request.before;
      return await delegate(type, {
        ...request,
        chosen,
        meanwhile,
        through: through ?? request.through,
        before,
        later,
        deliver: undefined,
        env: { ...env, CNI_COMMAND: verb === "HELD" ? "DEL" : verb === "PARSE" ? "ADD" : verb },
        stdin: () => stdin,
        held: verb === "HELD",
        parse: verb === "PARSE",
        undo: base.undo,
      }, version);
    },
  };
  if (verb === "GC") {
    collectScratch();
    const valid = validAttachments(config);
    await toTheEnd(() => plugin.gc({ ...base, valid }), { interruption, verb });
    return {};
  }
  if (verb === "STATUS") {
    await toTheEnd(() => plugin.status(base as NetworkCall), { interruption, verb });
    return {};
  }

  const netns = env["CNI_NETNS"] ?? "";
  const state = netnsState(netns);
  const override = (env["CNI_NETNS_OVERRIDE"] ?? "").toLowerCase();
  const same = state === "own" && override !== "1" && override !== "true";
  if (same && verb !== "DEL") {
    throw new CniError(
      code.netns,
      SAME_NETNS,
      `CNI_NETNS is ${netns}: the namespace that this plugin runs in; nothing was changed`,
    );
  }
  const call: ContainerCall = {
    ...base,
    containerId: env["CNI_CONTAINERID"] ?? "",
    ifName: env["CNI_IFNAME"] ?? "",
    netns,
    ownNetns: same,
    podAlive: !same && (state === "netns" || state === "own"),
    args: env["CNI_ARGS"] ?? "",
    chosen: request.chosen,
    meanwhile: request.meanwhile,
    later: request.later,
    pod: inNetns(host, netns.includes("/") ? netns : `./${netns}`),
  };
  if (request.held) return { held: await plugin.held?.(call) };
  if (request.parse) {
    await plugin.parse?.({ ...call, warn: () => {} });
    return {};
  }
  if (verb === "CHECK") {
    await toTheEnd(() => plugin.check(call), { interruption, verb });
    return {};
  }
  if (verb === "DEL") {
    const released = await toTheEnd(() => plugin.del(call), { interruption, verb }) ?? undefined;
    if (same) {
      throw new CniError(
        code.netns,
        SAME_NETNS,
        `CNI_NETNS is ${netns}: no link was touched; addresses and rules of this container were removed`,
      );
    }
    return released ? { released } : {};
  }
  try {
    const result = await plugin.add(call);
    if (interruption?.requested) throw interrupted(interruption, verb);
    const printable = convertResult(result, version);
    request.deliver?.(printable);
    if (request.undo) undos.forEach(remember = request.undo);
    return { result, printable };
  } catch (error) {
    const left = await undoing(interruption, () => undoAll(undos));
    // Whatever the words of the plugin for what it was at: it failed because it was asked to.
    const failure = interruption?.requested ? interrupted(interruption, verb) : toCniError(error);
    if (left.length === 0) throw failure;
    const note = `could not be undone: ${left.join("; ")}; DEL of this container cleans up`;
    throw new CniError(failure.code, failure.msg, failure.details === "" ? note : `${failure.details}; ${note}`);
  }
}

interface Interruptible {
  readonly interruption: Interruption | undefined;
  readonly verb: string;
}

/**
 * Work that is not taken back: once SIGTERM came it ends what is running and starts nothing more. When all was done nevertheless,
 * that is the answer; else it is to be called again, whatever became of the part that was left out.
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
function guarded(request: Request): RunHooks {
  const { interruption, hooks = {} } = request;
  return {
    ...hooks,
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

function validAttachments(config: JsonObject): Attachment[] | undefined {
  const key = "cni.dev/valid-attachments";
  if (!(key in config)) return undefined;
  const value = config[key];
  if (value === null) return [];
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

async function locate(type: string, request: Request): Promise<{ file: string; plugin: Plugin | undefined }> {
  try {
    const { file, ours } = lookUp(type, (request.env["CNI_PATH"] ?? "").split(":"));
    return { file, plugin: ours ? await request.registry(type) : undefined };
  } catch (error) {
    const plugin = request.builtin ? await request.registry(type) : undefined;
    if (plugin) return { file: "", plugin };
    throw error;
  }
}

async function delegate(type: string, request: Request, version: string): Promise<DelegateAnswer> {
  const { env } = request;
  const { file, plugin } = await locate(type, request);
  if (plugin) {
    const { printable, released, held } = await callPlugin(plugin, request);
    // Through the wire's layout and back, so that nothing gets across that a program could not have handed over.
    return {
      ...(printable && { result: parseResult(printable, version) }),
      ...(released && { released }),
      ...(held && { held }),
    };
  }
  if (request.held) return {};
  if (request.parse) {
    const { checkSpoken } = await import("./foreign_versions.ts");
    await checkSpoken(file, { type, version, env });
    return {};
  }
  const verb = env["CNI_COMMAND"] as Verb;
  if (request.explain) {
    request.explain.note(
      "host",
      `CNI_COMMAND=${verb} ${file} < CONFIGURATION`,
      `${type} is another program: what it does is not known here`,
    );
    return verb === "ADD" ? { result: {} } : {};
  }
  const answer = await runForeign(file, { verb, env, stdin: request.stdin(), version });
  if (answer.stderr !== "") Deno.stderr.writeSync(new TextEncoder().encode(answer.stderr));
  return answer.result ? { result: answer.result } : {};
}

/** Largest configuration that is read, in bytes. */
const MAX_STDIN = 16 * 1024 * 1024;

/** All of standard input, read synchronously: much cheaper to start than a stream. */
export function readStdin(): Uint8Array {
  let buffer = new Uint8Array(16 * 1024);
  let length = 0;
  for (;;) {
    if (length === buffer.length) {
      if (length >= MAX_STDIN) throw new Error(`more than ${MAX_STDIN / 1024 / 1024} MiB`);
      const larger = new Uint8Array(buffer.length * 4);
      larger.set(buffer);
      buffer = larger;
    }
    const count = Deno.stdin.readSync(buffer.subarray(length));
    if (count === null) return buffer.subarray(0, length);
    length += count;
  }
}

function write(stream: { writeSync(bytes: Uint8Array): number }, text: string): void {
  let bytes = new TextEncoder().encode(text);
  while (bytes.length > 0) bytes = bytes.subarray(stream.writeSync(bytes));
}

/** The text that answers a call without CNI_COMMAND. */
export function aboutText(plugin: Plugin, version: string): string {
  return `CNI ${plugin.name} plugin ${version}\nCNI protocol versions supported: ${plugin.versions.join(", ")}\n`;
}

/** A plugin as a program: returns the exit status. `build` is the version that the about text names. */
export async function pluginMain(plugin: Plugin, registry: Registry, build: string): Promise<number> {
  const env = Deno.env.toObject();
  const command = env["CNI_COMMAND"] ?? "";
  if (command === "") {
    write(Deno.stderr, aboutText(plugin, build));
    return 0;
  }
  if (command === "VERSION") {
    write(Deno.stdout, `${JSON.stringify({ cniVersion: NEWEST, supportedVersions: plugin.versions })}\n`);
    return 0;
  }
  const interruption: Interruption = { requested: "", undoing: false };
  let listening = false;
  const listen = () => {
    if (listening) return;
    listening = true;
    for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const) {
      Deno.addSignalListener(signal, () => interruption.requested = signal);
    }
  };
  // ADD listens before it changes anything. The others, to whom it then costs no time, when a tool is at work, or when they wait.
  if (command === "ADD") listen();
  else setTimeout(listen);
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
      stdin: record ? () => record.stdin(readStdin()) : readStdin,
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
  }
}

/** An error as it goes on standard output. */
export function errorText({ code, msg, details }: CniError): string {
  return goJson({ code, msg, ...(details !== "" && { details }) }, 4);
}
