/** What a plugin is: one object with five functions, and the calls that these get. */
import type { Keys } from "./decode.ts";
import type { Lock } from "./own_lock.ts";
import type { IPConfig, JsonObject, Result, ValidAttachment } from "./types.ts";
import type { Applier, Explainer, Perform } from "../kernel/plan.ts";
import type { Run } from "../kernel/run.ts";

/** A CNI plugin. `main.ts` finds it by its name; the table of `keys` is what it reads of a network configuration. */
export interface Plugin {
  /** The CNI type: file name in plugins/, symlink in the plugin folder, `type` in configurations. */
  readonly name: string;
  readonly kind: "main" | "ipam" | "meta";
  /** One line for people. */
  readonly about: string;
  /** Versions of the protocol it speaks, oldest first. */
  readonly versions: readonly string[];
  /** Tools it cannot work without, by their plain names. */
  readonly needs: readonly string[];
  /** The configuration, for decoding, for `validate` and for the schema. */
  readonly keys: Keys;
  /** Decides every key of a configuration for ADD, a previous result aside; throws what is wrong, touches nothing. */
  parse?(call: ContainerCall): unknown;
  /** Attaches; returns the result in the newest layout. Everything it did is handed to `call.undo`. */
  add(call: ContainerCall): Promise<Result>;
  /** Detaches: succeeds whatever is left of the attachment, cleans all of it, reports failures at the end. */
  del(call: ContainerCall): Promise<Released | void>;
  /** IPAM plugins that can tell what ADD will give before it is safe on disk: the first step of `add`. */
  begin?(call: ContainerCall): Promise<Lease>;
  /** Throws what is wrong with the attachment. */
  check(call: ContainerCall): Promise<void>;
  /** Removes what belongs to this network and to none of the valid attachments. */
  gc(call: NetworkCall): Promise<void>;
  /** Throws when the next ADD could not work: codes 50 and 51. */
  status(call: NetworkCall): Promise<void>;
  /** IPAM plugins that can tell: the addresses (CIDR or plain) that this attachment holds now. Changes nothing. */
  held?(call: ContainerCall): Promise<readonly string[]>;
  /**
   * What the program does besides the protocol when its first argument is this word: `dhcp daemon`. Gives the exit
   * status.
   */
  readonly roles?: Readonly<Record<string, (args: readonly string[]) => Promise<number>>>;
}

/** ADD of an IPAM plugin in two steps, so that its caller can start what takes long while the addresses are written. */
export interface Lease {
  /**
   * The addresses that the answer will have; undefined where the plugin cannot tell. Nothing may be done with them that
   * the answer has to allow: `commit` can still fail or, where others write without a lock, give others.
   */
  readonly ips?: readonly IPConfig[] | undefined;
  /** Makes the addresses safe and gives the answer. */
  commit(): Promise<Result>;
}

/** What DEL of an IPAM plugin tells a caller in the same process. */
export interface Released {
  /** Addresses in CIDR or plain form that were released. */
  readonly addresses: readonly string[];
}

/** Finds a plugin of this binary by its type; undefined when there is none. */
export type Registry = (name: string) => Promise<Plugin> | undefined;

/** The commands of the protocol that a plugin carries out. */
export type Verb = "ADD" | "DEL" | "CHECK" | "GC" | "STATUS";

/** What every call has. */
export interface Call {
  readonly verb: Verb;
  /** The plugin's own name, a CNI type. */
  readonly type: string;
  /** Network name. */
  readonly network: string;
  /** `cniVersion` as configured; "" means 0.1.0. */
  readonly version: string;
  /** The whole configuration as it came in; plugins decode it by their table of keys. */
  readonly config: JsonObject;
  /** Where the configuration has a key twice in one object, see exact_json.ts. */
  readonly repeated?: readonly (readonly string[])[];
  /** The exact bytes that came in, for delegates. */
  readonly stdin: Uint8Array;
  /** The whole environment of the call. */
  readonly env: Readonly<Record<string, string>>;
  /** Folders of CNI_PATH. */
  readonly path: readonly string[];
  /** Runs commands in this process's namespaces. */
  readonly host: Run;
  /** Makes changes that are no commands: to files, to settings, by asking a daemon. Told instead while explained. */
  readonly perform: Perform;
  /** Present when the call is explained, not carried out. */
  readonly explain?: Explainer | undefined;
  /** A note for the operator, on standard error. */
  warn(note: string): void;
  /** Remembers how to take something back when the call fails; run last first. */
  undo(job: () => Promise<unknown> | unknown): void;
  /** Runs another plugin, with the same input unless told; see delegate.ts. */
  delegate(type: string, verb: DelegateVerb, options?: DelegateOptions): Promise<DelegateAnswer>;
  /** ADD of an IPAM plugin in two steps; of one that cannot, the second one is all of it. */
  begin(type: string): Promise<Lease>;
  /**
   * Addresses that an IPAM plugin of this process holds for the attachment; none where it is another program or cannot
   * tell.
   */
  held(type: string): Promise<readonly string[]>;
}

/** What a delegate is given, and what it may do for its caller when it runs in the same process. */
export interface DelegateOptions extends Company {
  /** Configuration; the caller's own if absent. */
  readonly stdin?: Uint8Array;
}

/** What members of a chain share that are at work side by side in this process. */
export interface Company {
  /** Stands between the member and the kernel. */
  readonly through?: ((run: Run) => Run) | undefined;
  /** Work that has to be done before the member's own IPAM plugin releases addresses. */
  readonly before?: Promise<unknown> | undefined;
  /** ADD: takes over rules that need not be set before the result is there; they are set before the chain answers. */
  readonly later?: ((job: () => Promise<unknown>) => void) | undefined;
}

/**
 * How {@linkcode Call.delegate} is asked. PARSE is not a command of the protocol: it asks whether ADD could read its
 * configuration, and another program whether it speaks the version.
 */
export type DelegateVerb = Verb | "PARSE";

/** What a delegate gave: `result` after ADD, `released` after a DEL in the same process. */
export interface DelegateAnswer {
  readonly result?: Result;
  readonly released?: Released;
}

/** ADD, DEL and CHECK: about one interface of one container. */
export interface ContainerCall extends Call, Applier, Pick<Company, "later"> {
  readonly containerId: string;
  readonly ifName: string;
  /** CNI_NETNS as given, verbatim: `sandbox` in results. */
  readonly netns: string;
  /**
   * A path to the same namespace that stays the same for the whole call: for tools, and for files that are opened
   * there. "" while a call is explained and where there is no such namespace.
   */
  readonly heldNetns: string;
  /** For DEL: is there a container namespace to work in? False when it is empty, gone, no namespace, or our own. */
  readonly podAlive: boolean;
  /**
   * Is CNI_NETNS the namespace that we run in (and no override set)? Only DEL gets this far: no link is to be touched.
   */
  readonly ownNetns: boolean;
  /** CNI_ARGS, unparsed. */
  readonly args: string;
  /** Runs commands in the container's network namespace. */
  readonly pod: Run;
  /** Takes a lock from other calls of this program, by its name; see own_lock.ts. */
  lock(name: string): Promise<Lock>;
}

/** GC and STATUS: about a whole network. */
export interface NetworkCall extends Call {
  /** Attachments to keep; undefined when the caller said nothing, `[]` when none is valid. Only for GC. */
  readonly valid?: readonly ValidAttachment[] | undefined;
}

/** For plugins that keep nothing on the node, or have nothing to look at. */
export async function nothing(): Promise<void> {}
