/** What `cnibox node` remembers: on disk over a reboot, and below /run for whoever asks how it is. */
import { isObject } from "../cni/decode.ts";
import { readFileIfThere, replaceFile } from "../kernel/state_file.ts";
import { jsonObject } from "../store/store.ts";
import { type NodeRecord, parseSubnetRecord, subnetKey, subnetRecord } from "./records.ts";
import type { Claim } from "./source.ts";
import type { Problem } from "./wanted.ts";

/** Where things are on the node. */
export interface Places {
  /** Over a reboot. */
  readonly memory: string;
  /** For probes. */
  readonly status: string;
  readonly lock: string;
}

export const PLACES: Places = {
  memory: "/var/lib/cnibox/node.json",
  status: "/run/cnibox/node.json",
  lock: "/run/cnibox/node.lock",
};

/** What is known of the network when the store does not answer. */
export interface Memory {
  /** Name of the source that it came from. */
  readonly source: string;
  readonly revision: string;
  /** Text of the network's configuration, where the source has one. */
  readonly network: string | undefined;
  readonly own: Claim | undefined;
  readonly records: ReadonlyMap<string, NodeRecord>;
  /** Keys of records that a restored store does not have any more. */
  readonly unconfirmed: readonly string[];
  /** Files that were written, and their text. */
  readonly files: Readonly<Record<string, string>>;
}

/** Nothing. */
export const NOTHING: Memory = {
  source: "",
  revision: "0",
  network: undefined,
  own: undefined,
  records: new Map(),
  unconfirmed: [],
  files: {},
};

/** The text of a memory; records are written as flannel's. */
export function memoryText({ own, records, ...rest }: Memory): string {
  const written = (record: NodeRecord) => [subnetKey(record.subnets), subnetRecord(record)];
  return `${
    JSON.stringify({
      version: 1,
      ...rest,
      own: own && { key: own.key, revision: own.revision, record: written(own.record) },
      // A Node without podCIDRs has nothing to remember.
      records: [...records].filter(([, { subnets, publicIps }]) => subnets.length > 0 && publicIps.length > 0)
        .map(([key, record]) => [key, ...written(record)]),
    })
  }\n`;
}

/** What was remembered at a path; what is not readable is not. */
export function readMemory(path: string): Memory {
  const value = jsonObject(readFileIfThere(path) ?? "");
  if (value?.["version"] !== 1) return NOTHING;
  const { source, revision, network, own, records, unconfirmed, files } = value;
  const record = (pair: unknown): NodeRecord | undefined =>
    Array.isArray(pair) ? parseSubnetRecord(String(pair[0]), String(pair[1])) : undefined;
  const ownRecord = isObject(own) ? record(own["record"]) : undefined;
  return {
    source: typeof source === "string" ? source : "",
    revision: typeof revision === "string" && /^\d+$/.test(revision) ? revision : "0",
    network: typeof network === "string" ? network : undefined,
    own: isObject(own) && ownRecord
      ? { key: String(own["key"]), revision: String(own["revision"]), record: ownRecord }
      : undefined,
    records: new Map((Array.isArray(records) ? records : []).flatMap((one) => {
      const found = Array.isArray(one) ? record(one.slice(1)) : undefined;
      return found ? [[String(one[0]), found] as const] : [];
    })),
    unconfirmed: Array.isArray(unconfirmed) ? unconfirmed.map(String) : [],
    files: isObject(files) ? Object.fromEntries(Object.entries(files).map(([path, text]) => [path, String(text)])) : {},
  };
}

/** How the node is, for people and probes. */
export interface Status {
  readonly version: 1;
  readonly node: string;
  readonly pid: number;
  /** Do pods of this node reach those of all nodes that can be reached? Stays true while the store is away. */
  readonly ready: boolean;
  readonly reconciled: string;
  readonly store: {
    readonly name: string;
    readonly state: "connected" | "away";
    readonly since: string;
    readonly error?: string;
  };
  readonly backend: string;
  readonly networks: readonly string[];
  readonly subnets: readonly string[];
  readonly publicIPs: readonly string[];
  readonly mtu: number;
  readonly nodes: readonly PeerStatus[];
  readonly problems: readonly Problem[];
  /** How many commands were needed since the start to bring the kernel to what it should be. */
  readonly changes: number;
}

/** Another node, and the way to it. */
export interface PeerStatus {
  readonly node: string;
  readonly publicIPs: readonly string[];
  readonly subnets: readonly string[];
  /** `via 10.99.0.2 dev eth0`, one per subnet that has a way. */
  readonly ways: readonly string[];
  /** The store was restored from a time before this record, and nobody has confirmed it since. */
  readonly unconfirmed?: boolean;
}

/** Writes a file, unless it has this text already. Returns whether it was written. */
export function keepFile(path: string, text: string, mode = 0o600): boolean {
  if (readFileIfThere(path) === text) return false;
  const folder = path.slice(0, path.lastIndexOf("/"));
  // Others read what lies below: folders that are missing get the usual mode.
  if (mode !== 0o600) Deno.mkdirSync(folder, { recursive: true, mode: 0o755 });
  replaceFile(path, text, { mode });
  return true;
}
