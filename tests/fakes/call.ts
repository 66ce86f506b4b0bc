/** A call as a plugin gets it, without a runtime: everything has a default. */
import type { ContainerCall, NetworkCall } from "../../lib/cni/plugin.ts";
import type { JsonObject } from "../../lib/cni/types.ts";
import { perform } from "../../lib/kernel/plan.ts";
import { inNetns } from "../../lib/kernel/run.ts";
import { recordedRun } from "./run.ts";

/** What a test looks at after a call. */
export interface Fake {
  /** What went to standard error. */
  readonly warnings: string[];
  /** What a failed ADD would take back, in the order it was registered. */
  readonly undos: (() => Promise<unknown> | unknown)[];
}

/** A call about `eth0` of container `ctr1` on network `net1`; `config` is completed with name and version. */
export function fakeCall(config: JsonObject, changes: Partial<ContainerCall> = {}): ContainerCall & Fake {
  const whole = { cniVersion: "1.1.0", name: "net1", ...config };
  const warnings: string[] = [];
  const undos: Fake["undos"] = [];
  const host = changes.host ?? recordedRun("");
  const netns = changes.netns ?? "/run/netns/pod";
  return {
    verb: "ADD",
    type: typeof config["type"] === "string" ? config["type"] : "fake",
    network: String(whole.name),
    version: String(whole.cniVersion),
    config: whole,
    stdin: new TextEncoder().encode(JSON.stringify(whole)),
    env: {},
    path: ["/opt/cni/bin"],
    host,
    warn: (note) => warnings.push(note),
    undo: (job) => undos.push(job),
    perform: changes.explain?.perform ?? perform,
    delegate: () => Promise.reject(new Error("no delegate expected")),
    // Methods, so that a copy with another `delegate` asks that one.
    begin(type) {
      return Promise.resolve({ commit: async () => (await this.delegate(type, "ADD")).result ?? {} });
    },
    held: () => Promise.resolve([]),
    containerId: "ctr1",
    ifName: "eth0",
    netns,
    heldNetns: "",
    podAlive: true,
    ownNetns: false,
    args: "",
    pod: inNetns(host, netns),
    lock: () => Promise.resolve({ close: () => {} }),
    ...changes,
    warnings,
    undos,
  };
}

/** A GC or STATUS call. */
export function fakeNetworkCall(config: JsonObject, changes: Partial<NetworkCall> = {}): NetworkCall & Fake {
  return { ...fakeCall(config), verb: "GC", ...changes } as NetworkCall & Fake;
}
