/** Where nodes tell each other about themselves: an etcd in flannel's layout, or the Node objects of Kubernetes. */
import { badConfig, CniError, code } from "../cni/error.ts";
import { formatAddress, type Prefix, prefixesOverlap, sameAddress } from "../net/cidr.ts";
import type { NodeObject, NodeObjects } from "../store/kubernetes_nodes.ts";
import type { Store, StoreRecord } from "../store/store.ts";
import {
  isInside,
  type NetworkConf,
  type NodeRecord,
  parseSubnetKey,
  parseSubnetRecord,
  recordOfNode,
  subnetKey,
  subnetRecord,
} from "./records.ts";
import { pickSubnets } from "./subnets.ts";

/** Everything at one instant. */
export interface Snapshot {
  /** The network's configuration, where the source has it. */
  readonly network: string | undefined;
  /** By the source's key. */
  readonly records: ReadonlyMap<string, NodeRecord>;
  /** Keys of records that are not readable. */
  readonly unreadable: readonly string[];
  readonly revision: string;
}

/** One change. */
export type SourceEvent =
  | { readonly kind: "network"; readonly text: string | undefined; readonly revision: string }
  /** `record` absent: it went. */
  | { readonly kind: "node"; readonly key: string; readonly record: NodeRecord | undefined; readonly revision: string }
  /** It is there, and not readable. */
  | { readonly kind: "unreadable"; readonly key: string; readonly revision: string };

/** This node's own entry. */
export interface Claim {
  readonly key: string;
  readonly record: NodeRecord;
  /** Revision at which it was last written or read. */
  readonly revision: string;
}

/** What a claim is made of. */
export interface ClaimRequest {
  /** This node's record, its subnets aside. */
  readonly self: NodeRecord;
  readonly conf: NetworkConf;
  /** What this node had before. */
  readonly previous: Claim | undefined;
}

/** A source of records. All its functions throw {@linkcode StoreError} when it does not answer. */
export interface Source {
  /** For messages: what kind, and where. */
  readonly name: string;
  list(): Promise<Snapshot>;
  /** Its revision now, as cheaply as it can be had. */
  probe(): Promise<string>;
  watch(since: string, options: { event: (event: SourceEvent) => void; signal: AbortSignal }): Promise<void>;
  /**
   * Makes sure that this node has subnets, and that its record says what it should. Absent where the source itself
   * gives nodes their subnets.
   *
   * @throws {CniError} when there is none to be had, or another machine says that it has this node's address
   */
  claim?(request: ClaimRequest): Promise<Claim>;
  /** Removes this node's entry, when it is still as it was claimed. */
  release?(claim: Claim): Promise<void>;
}

const SUBNETS = "subnets/";
const CONFIG = "config";
/** Most attempts to take a subnet: each loses only to another node that took one. */
const ROUNDS = 16;

/** An etcd whose prefix is flannel's. */
export class EtcdSource implements Source {
  constructor(readonly store: Store) {}

  get name(): string {
    return this.store.name;
  }

  async list(): Promise<Snapshot> {
    const { records, revision } = await this.store.list("");
    const known = new Map<string, NodeRecord>();
    const unreadable: string[] = [];
    for (const { key, value } of records) {
      if (!key.startsWith(SUBNETS)) continue;
      const record = parseSubnetRecord(key.slice(SUBNETS.length), value);
      if (record) known.set(key, record);
      else unreadable.push(key);
    }
    return { network: records.find(({ key }) => key === CONFIG)?.value, records: known, unreadable, revision };
  }

  async probe(): Promise<string> {
    return (await this.store.list(CONFIG)).revision;
  }

  async watch(since: string, { event, signal }: Parameters<Source["watch"]>[1]): Promise<void> {
    await this.store.watch("", since, {
      signal,
      event: ({ key, value, revision }) => {
        if (key === CONFIG) event({ kind: "network", text: value, revision });
        if (!key.startsWith(SUBNETS)) return;
        const record = value === undefined ? undefined : parseSubnetRecord(key.slice(SUBNETS.length), value);
        const isReadable = value === undefined || record !== undefined;
        event(isReadable ? { kind: "node", key, record, revision } : { kind: "unreadable", key, revision });
      },
    });
  }

  async claim(request: ClaimRequest): Promise<Claim> {
    for (let round = 0; round < ROUNDS; round++) {
      const { records } = await this.store.list(SUBNETS);
      const claim = await this.#attempt(request, records);
      if (claim) return claim;
    }
    throw new CniError(code.tryAgain, "other nodes were quicker each time a subnet was asked for", this.name);
  }

  async release({ key, record }: Claim): Promise<void> {
    const { records } = await this.store.list(key);
    const now = records.find((one) => one.key === key);
    const found = now && parseSubnetRecord(key.slice(SUBNETS.length), now.value);
    if (now && found && isSameNode(found, record)) await this.store.removeIfRevision(key, now.revision);
  }

  /** Undefined when another node was quicker. */
  async #attempt({ self, conf, previous }: ClaimRequest, records: readonly StoreRecord[]): Promise<Claim | undefined> {
    const others: Prefix[] = [];
    for (const one of records) {
      const record = parseSubnetRecord(one.key.slice(SUBNETS.length), one.value);
      if (record === undefined && one.key === previous?.key) {
        throw badConfig(
          `this node's record ${one.key} is not readable`,
          `remove it from ${this.name} unless another node has that subnet now: it is written anew`,
        );
      }
      const address = record?.publicIps.find((ip) => self.publicIps.some((own) => sameAddress(own, ip)));
      if (record === undefined || address === undefined) {
        others.push(...subnetsOf(one, conf));
        continue;
      }
      if (record.machineId !== "" && record.machineId !== self.machineId) {
        throw badConfig(
          `node "${record.name}" says that it has this node's address ${formatAddress(address)}`,
          `it is another machine; if it is gone for good, remove ${one.key} from ${this.name}`,
        );
      }
      const kept = pickSubnets(conf, { taken: [], wanted: record.subnets, only: true });
      if (kept === undefined) {
        // Of another network, or another length: this node's, and of no use.
        await this.store.removeIfRevision(one.key, one.revision);
        continue;
      }
      // Others know the device by the address in the record.
      const vteps = record.backend === self.backend ? { ...self.vteps, ...record.vteps } : self.vteps;
      return await this.#renew(one, { ...self, subnets: kept, vteps }, previous);
    }
    const subnets = pickSubnets(conf, { taken: others, wanted: previous?.record.subnets ?? [], only: false });
    if (subnets === undefined) {
      throw new CniError(
        code.internal,
        "no subnet of the network is free",
        `${records.length} are taken in ${this.name}; those of nodes that are gone have to be removed there`,
      );
    }
    const record = { ...self, subnets };
    const key = `${SUBNETS}${subnetKey(subnets)}`;
    const made = await this.store.createIfAbsent(key, subnetRecord(record));
    if (made === undefined || await this.#isBeaten(made, record, conf)) return undefined;
    return { key, record, revision: made.revision };
  }

  /**
   * Writes the record again unless it is as this node wrote it: one of flanneld's lives for a day only, and without a
   * time to live it stays until somebody removes it.
   */
  async #renew(now: StoreRecord, record: NodeRecord, previous: Claim | undefined): Promise<Claim | undefined> {
    const text = subnetRecord(record);
    const isOurs = previous?.key === now.key && previous.revision === now.revision && now.value === text;
    const written = isOurs ? now : await this.store.replaceIfRevision(now.key, text, now.revision);
    return written && { key: now.key, record, revision: written.revision };
  }

  /**
   * One key has the subnets of both families: two nodes may have asked for one IPv4 subnet under different keys. The
   * later one yields.
   */
  async #isBeaten(made: StoreRecord, { subnets }: NodeRecord, conf: NetworkConf): Promise<boolean> {
    const { records } = await this.store.list(SUBNETS);
    const earlier = records.some((one) =>
      one.key !== made.key && BigInt(one.revision) <= BigInt(made.revision) &&
      subnetsOf(one, conf).some((other) => subnets.some((own) => prefixesOverlap(other, own)))
    );
    if (earlier) await this.store.removeIfRevision(made.key, made.revision);
    return earlier;
  }
}

/** What a record takes of the network: its key says it, readable or not. What lies outside is nobody's share. */
function subnetsOf({ key }: StoreRecord, conf: NetworkConf): Prefix[] {
  return (parseSubnetKey(key.slice(SUBNETS.length)) ?? []).filter((one) => isInside(one, conf));
}

function isSameNode(one: NodeRecord, other: NodeRecord): boolean {
  return one.machineId === other.machineId && one.name === other.name;
}

/** The Node objects of a cluster; nothing is written, since Kubernetes itself gives each node its subnets. */
export function kubernetesSource(nodes: NodeObjects, conf: NetworkConf): Source {
  const read = (node: NodeObject) => recordOfNode(node, conf.backend);
  return {
    name: nodes.api.name,
    list: async () => {
      const { nodes: all, revision } = await nodes.list();
      const records = new Map(all.map((one) => [one.metadata.name, read(one)]));
      return { network: undefined, records, unreadable: [], revision };
    },
    probe: async () => (await nodes.list(1)).revision,
    watch: async (since, { event, signal }) => {
      await nodes.watch(since, {
        signal,
        event: ({ node, gone, revision }) =>
          event({ kind: "node", key: node.metadata.name, record: gone ? undefined : read(node), revision }),
      });
    },
  };
}
