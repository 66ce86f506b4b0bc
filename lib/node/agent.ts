/**
 * `cnibox node` at work: it knows what all nodes say, keeps this node's kernel as that wants it, and writes what
 * runtimes read. Never in the path of ADD or DEL. When the source does not answer, everything stays as it is.
 *
 * @module
 */
import { badConfig, CniError, code, toCniError } from "../cni/error.ts";
import { defaultLinks } from "../kernel/default_links.ts";
import type { Link } from "../kernel/ip.ts";
import type { Run } from "../kernel/run.ts";
import { readFileIfThere, removeFile } from "../kernel/state_file.ts";
import { type Address, formatAddress, formatPrefix, parseAddress, prefixesOverlap, sameAddress } from "../net/cidr.ts";
import { isGlobalUnicast } from "../net/global_unicast.ts";
import { revisionNumber, StoreError } from "../store/store.ts";
import type { NodeConf } from "./conf.ts";
import { conflistText, MARK, type Shares, subnetEnv } from "./files.ts";
import { dropMasquerade, type Firewall, firewallOf, keepMasquerade } from "./masquerade.ts";
import { derivedMac, familiesOf, type NetworkConf, type NodeRecord, ofFamily, parseNetworkConf } from "./records.ts";
import { applyRepair, concerns, kernelState, type Repair, repair, type Watched, withdrawal } from "./reconcile.ts";
import type { Snapshot, Source, SourceEvent } from "./source.ts";
import {
  keepFile,
  type Memory,
  memoryText,
  NOTHING,
  type PeerStatus,
  type Places,
  readMemory,
  type Status,
} from "./state.ts";
import { deviceName, linkWith, type Problem, type Wanted, wantedState } from "./wanted.ts";

/** What an agent works with. */
export interface World {
  readonly run: Run;
  readonly source: Source;
  readonly conf: NodeConf;
  readonly places: Places;
  readonly machineId: string;
  /** Told what changes for people, each thing once. */
  readonly say: (text: string) => void;
  /** Adopt what flanneld left. */
  readonly takeOver: boolean;
}

/** Everything that one look at the kernel led to. */
interface Round {
  readonly network: NetworkConf;
  readonly self: NodeRecord;
  readonly wanted: Wanted;
  readonly plan: Repair;
}

/** One node's agent. Its functions are to be called one at a time, `heard` and `listed` aside. */
export class Agent {
  #memory: Memory;
  #store: Status["store"];
  #changes = 0;
  #firewall: Firewall | undefined;
  /** What the last round was about, for the filter of kernel events. */
  #watched: Watched = { devices: [], links: [], anyAddress: false };
  #said = new Set<string>();
  #unreadable = new Set<string>();

  constructor(readonly world: World) {
    const { source, places } = world;
    const memory = readMemory(places.memory);
    // What another store said is not true of this one; what was written stays ours.
    this.#memory = memory.source === source.name ? memory : { ...NOTHING, source: source.name, files: memory.files };
    this.#store = { name: source.name, state: "away", since: now(), error: "not asked yet" };
  }

  /** Revision up to which everything is known. */
  get revision(): string {
    return this.#memory.revision;
  }

  /** Takes everything that the source has. */
  listed({ network, records, unreadable, revision }: Snapshot): void {
    const before = this.#memory;
    const all = new Map(records);
    let unconfirmed: string[] = [];
    // A restored backup has forgotten what came later: those nodes live, and write themselves in again.
    if (revisionNumber(revision) < revisionNumber(before.revision)) {
      this.world.say(
        `${this.world.source.name} went back from revision ${before.revision} to ${revision}: nodes that it does not know any more are kept`,
      );
      unconfirmed = [...before.records.keys()];
    } else unconfirmed = [...before.unconfirmed];
    const keep = (key: string): boolean => {
      const record = before.records.get(key);
      if (record === undefined || all.has(key) || overlaps(record, records.values())) return false;
      all.set(key, record);
      return true;
    };
    unconfirmed = unconfirmed.filter(keep);
    unreadable.forEach(keep);
    this.#unreadable = new Set(unreadable);
    this.#memory = { ...before, network: network ?? before.network, records: all, unconfirmed, revision };
    // Somebody removed it, or wrote it anew: it is claimed again.
    if (before.own && !records.has(before.own.key) && !unreadable.includes(before.own.key)) {
      this.#memory = { ...this.#memory, own: { ...before.own, revision: "" } };
    }
    this.connected();
  }

  /** Takes one change. Returns whether it matters. */
  heard(event: SourceEvent): boolean {
    const before = this.#memory;
    this.#memory = { ...before, revision: event.revision };
    if (event.kind === "network") {
      if (event.text === undefined || event.text === before.network) return false;
      this.#memory = { ...this.#memory, network: event.text };
      return true;
    }
    const { key, revision } = event;
    // The node may live: what it last said of itself is true until it says something else, or goes.
    if (event.kind === "unreadable") {
      this.#unreadable.add(key);
      return true;
    }
    const wasUnreadable = this.#unreadable.delete(key);
    const { record } = event;
    // What the source itself assigns is read from its records, and needs no claim.
    const isOwn = before.own?.key === key && this.world.source.claim !== undefined;
    if (isOwn && before.own?.revision === revision) return false;
    const records = new Map(before.records);
    const known = records.get(key);
    if (record === undefined) records.delete(key);
    else records.set(key, record);
    const unconfirmed = before.unconfirmed.filter((one) => {
      const other = before.records.get(one);
      const isOver = one === key || (record && other && overlaps(other, [record]));
      if (isOver && one !== key) records.delete(one);
      return !isOver;
    });
    this.#memory = { ...this.#memory, records, unconfirmed };
    if (isOwn && before.own) this.#memory = { ...this.#memory, own: { ...before.own, revision: "" } };
    return isOwn || wasUnreadable || JSON.stringify(known, plain) !== JSON.stringify(record, plain);
  }

  /** The source has answered. */
  connected(): void {
    if (this.#store.state === "connected") return;
    if (this.#store.error !== "not asked yet") this.world.say(`${this.world.source.name} answers again`);
    this.#store = { name: this.world.source.name, state: "connected", since: now() };
  }

  /** The source does not answer; said once. */
  away(error: unknown): void {
    const text = error instanceof Error ? error.message : String(error);
    if (this.#store.state === "away" && this.#store.error !== "not asked yet") return;
    this.world.say(`${text}; everything stays as it is`);
    this.#store = { name: this.world.source.name, state: "away", since: now(), error: text };
  }

  /** Does a line of `ip monitor` call for a round? */
  concerns(line: string): boolean {
    return concerns(line, this.#watched);
  }

  /** What would be done in the kernel now. Changes nothing, and claims nothing. */
  async plan(): Promise<Repair> {
    const { round, problems } = await this.#look({ claim: false });
    return round
      ? { ...round.plan, problems: [...problems, ...round.wanted.problems, ...round.plan.problems] }
      : { batches: [], problems };
  }

  /** One round: looks, repairs, writes. Returns how the node is now. */
  async reconcile(): Promise<Status> {
    const { round, problems } = await this.#look({ claim: this.#store.state === "connected" });
    if (round) {
      problems.push(...round.wanted.problems, ...round.plan.problems);
      const failed = await applyRepair(this.world.run, round.plan);
      this.#changes += round.plan.batches.reduce((sum, { lines }) => sum + lines.length, 0) - failed.length;
      problems.push(...failed);
      await this.#finish(round, problems);
    }
    const status = this.#status(round, problems);
    keepFile(this.world.places.memory, memoryText(this.#memory));
    keepFile(this.world.places.status, `${JSON.stringify(status)}\n`, 0o644);
    this.#sayNew(problems);
    return status;
  }

  /**
   * Removes everything that is ours: routes, devices, rules, files, and this node's record where the source answers.
   */
  async withdraw(): Promise<Problem[]> {
    const { run, source, places } = this.world;
    const now = await kernelState(run, []);
    const problems = await applyRepair(run, withdrawal(now));
    await dropMasquerade(run, "nftables").catch(() => false);
    await dropMasquerade(run, "iptables").catch(() => false);
    for (const [path, text] of Object.entries(this.#memory.files)) {
      // Changed since, or another's by now: it stays.
      if (readFileIfThere(path) === text) removeFile(path);
    }
    const { own } = this.#memory;
    try {
      if (own) await source.release?.(own);
      removeFile(places.memory);
    } catch (error) {
      problems.push({ node: "", text: `the record ${own?.key} stays: ${toCniError(error).message}` });
    }
    removeFile(places.status);
    return problems;
  }

  async #look({ claim }: { claim: boolean }): Promise<{ round?: Round; problems: Problem[] }> {
    const problems: Problem[] = [...this.#unreadable].map((key) => ({ node: key, text: "its record is not readable" }));
    const { conf, run, takeOver } = this.world;
    const text = conf.network ? JSON.stringify(conf.network) : this.#memory.network;
    try {
      if (text === undefined) {
        throw badConfig(`${this.world.source.name} has no network configuration`, 'name it under "network"');
      }
      const network = parseNetworkConf(text, conf.network ? '"network"' : this.world.source.name);
      const names = network.backend.type === "vxlan"
        ? familiesOf(network).map((family) => deviceName(family, network.backend.vni))
        : [];
      const state = await kernelState(run, names);
      const self = await this.#self(network, state.links, claim);
      const own = this.#memory.own?.key;
      const others = [...this.#memory.records].filter(([key]) => key !== own).map(([, record]) => record);
      const wanted = wantedState({ self, others, conf: network, links: state.links });
      const plan = repair(wanted, state, { takeOver });
      const links = self.publicIps.flatMap((ip) => linkWith(state.links, ip)?.ifname ?? []);
      this.#watched = { devices: wanted.devices.map(({ name }) => name), links, anyAddress: wanted.held.length > 0 };
      return { round: { network, self, wanted, plan }, problems };
    } catch (error) {
      problems.push({ node: "", text: toCniError(error).message });
      return { problems };
    }
  }

  /** This node's record, claimed where it has to be and can be. */
  async #self(network: NetworkConf, links: readonly Link[], claim: boolean): Promise<NodeRecord> {
    const { source, conf, machineId } = this.world;
    if (source.claim === undefined) return this.#assigned(network);
    const own = this.#memory.own;
    const wanted = await this.#described(network, links);
    const isCurrent = own !== undefined && own.revision !== "" && isSame(own.record, wanted);
    if (claim && (!isCurrent || !this.#claimed) && !this.#unreadable.has(own?.key ?? "")) {
      try {
        const claimed = await source.claim({
          self: { ...wanted, subnets: [], machineId },
          conf: network,
          previous: own,
        });
        if (own && shown(own.record) !== shown(claimed.record)) {
          this.world.say(`this node's subnets were ${shown(own.record)} and are ${shown(claimed.record)} now`);
        }
        this.#claimed = true;
        this.#memory = { ...this.#memory, own: claimed };
        return claimed.record;
      } catch (error) {
        if (!(error instanceof StoreError) || own === undefined) throw error;
        this.away(error);
      }
    }
    if (own === undefined) {
      const why = this.#store.error ?? "it is being asked for";
      throw new CniError(code.tryAgain, `node "${conf.node}" has no subnet yet: ${why}`);
    }
    return own.record;
  }

  /** The record that the source itself has of this node. */
  #assigned({ rules }: NetworkConf): NodeRecord {
    const { source, conf } = this.world;
    const record = this.#memory.records.get(conf.node);
    if (record === undefined) {
      throw badConfig(`${source.name} has no node "${conf.node}"`, 'see "node", or NODENAME of the environment');
    }
    for (const { network: { address: { family } } } of rules) {
      if (ofFamily(record.subnets, family)) continue;
      throw new CniError(
        code.tryAgain,
        `node "${conf.node}" has no IPv${family} podCIDR`,
        "kube-controller-manager gives it one: --allocate-node-cidrs=true --cluster-cidr=NETWORK",
      );
    }
    this.#memory = { ...this.#memory, own: { key: conf.node, record, revision: "" } };
    return record;
  }

  /** Was the claim confirmed since this process started? */
  #claimed = false;

  /** What this node says about itself, without subnets. */
  async #described({ rules, backend }: NetworkConf, links: readonly Link[]): Promise<NodeRecord> {
    const { conf, machineId } = this.world;
    const own = this.#memory.own?.record;
    const publicIps: Address[] = [];
    const vteps: Record<number, string> = {};
    for (const { network: { address: { family } } } of rules) {
      const found = ofFamily(conf.publicIps, family) ?? await this.#addressOf(family, links);
      if (found) publicIps.push(found);
      if (backend.type === "vxlan") vteps[family] = own?.vteps[family] ?? derivedMac(conf.node, family, backend.vni);
    }
    return {
      name: conf.node,
      subnets: [],
      publicIps,
      backend: backend.type === "none" ? "alloc" : backend.type,
      vni: backend.type === "vxlan" ? backend.vni : undefined,
      vteps,
      machineId,
    };
  }

  /**
   * First global address of the link that is named, or that the default route leads out by. What it was before stays
   * while it is there.
   */
  async #addressOf(family: 4 | 6, links: readonly Link[]): Promise<Address | undefined> {
    const before = this.#memory.own && ofFamily(this.#memory.own.record.publicIps, family);
    const name = this.world.conf.interface ?? (await defaultLinks(this.world.run, family))[0];
    const link = links.find(({ ifname }) => ifname === name);
    const all = (link?.addr_info ?? []).flatMap(({ local, temporary, deprecated }) => {
      const address = parseAddress(local);
      return address?.family === family && isGlobalUnicast(local) && !temporary && !deprecated ? [address] : [];
    });
    return all.find((one) => before && sameAddress(one, before)) ?? all[0] ?? before;
  }

  /** Rules, then the files: a runtime sees the network when it works. */
  async #finish({ network, self, wanted }: Round, problems: Problem[]): Promise<void> {
    const { run, conf } = this.world;
    const shares: Shares = { conf: network, subnets: self.subnets, mtu: conf.mtu ?? wanted.mtu, ipMasq: conf.ipMasq };
    try {
      this.#firewall ??= await firewallOf(run);
      const pairs = network.rules.flatMap((rule) => {
        const subnet = ofFamily(self.subnets, rule.network.address.family);
        return subnet ? [{ subnet, network: rule.network }] : [];
      });
      if (await keepMasquerade(run, this.#firewall, conf.ipMasq ? pairs : [])) this.#changes++;
    } catch (error) {
      problems.push({ node: "", text: toCniError(error).message });
    }
    if (problems.some(({ node }) => node === "")) return;
    try {
      if (conf.subnetFile !== "") this.#write(conf.subnetFile, subnetEnv(shares), (text) => text.startsWith(MARK));
      // After what its plugins read.
      if (conf.conflist) this.#write(conf.conflist.file, conflistText(conf.conflist.content, shares), () => false);
    } catch (error) {
      problems.push({ node: "", text: toCniError(error).message });
    }
  }

  /**
   * Writes a file of ours. Another's is replaced only when it says the same thing to its readers, or on `--take-over`.
   */
  #write(path: string, text: string, isOurs: (text: string) => boolean): void {
    const before = readFileIfThere(path);
    const mine = before === undefined || before === text || isOurs(before) || before === this.#memory.files[path];
    if (!mine && !this.world.takeOver) {
      const text = `${path} is there and was not written by this program`;
      throw new CniError(code.io, text, "remove it, or use --take-over");
    }
    keepFile(path, text, 0o644);
    this.#memory = { ...this.#memory, files: { ...this.#memory.files, [path]: text } };
  }

  #status(round: Round | undefined, problems: readonly Problem[]): Status {
    const { conf } = this.world;
    const own = this.#memory.own;
    const ways = Map.groupBy(round?.wanted.routes ?? [], ({ node }) => node);
    const nodes: PeerStatus[] = [...this.#memory.records].filter(([key]) => key !== own?.key).map(([key, record]) => ({
      node: record.name,
      publicIPs: record.publicIps.map(formatAddress),
      subnets: record.subnets.map(formatPrefix),
      ways: (ways.get(record.name) ?? []).map(({ dst, gateway, dev }) => `${dst} via ${gateway} dev ${dev}`),
      ...(this.#memory.unconfirmed.includes(key) && { unconfirmed: true }),
    }));
    return {
      version: 1,
      node: conf.node,
      pid: Deno.pid,
      ready: round !== undefined && !problems.some(({ node }) => node === ""),
      reconciled: now(),
      store: this.#store,
      backend: round?.network.backend.type ?? "",
      networks: round?.network.rules.map(({ network }) => formatPrefix(network)) ?? [],
      subnets: own?.record.subnets.map(formatPrefix) ?? [],
      publicIPs: own?.record.publicIps.map(formatAddress) ?? [],
      mtu: conf.mtu ?? round?.wanted.mtu ?? 0,
      nodes,
      problems,
      changes: this.#changes,
    };
  }

  #sayNew(problems: readonly Problem[]): void {
    const texts = problems.map(({ node, text }) => node === "" ? text : `node ${node}: ${text}`);
    for (const text of texts) if (!this.#said.has(text)) this.world.say(text);
    for (const text of this.#said) if (!texts.includes(text)) this.world.say(`resolved: ${text}`);
    this.#said = new Set(texts);
  }
}

const now = () => new Date().toISOString();

/** JSON of records: addresses are numbers that JSON does not know. */
const plain = (_: string, value: unknown) => typeof value === "bigint" ? String(value) : value;

function overlaps(record: NodeRecord, others: Iterable<NodeRecord>): boolean {
  return [...others].some(({ subnets }) =>
    subnets.some((one) => record.subnets.some((two) => prefixesOverlap(one, two)))
  );
}

function shown({ subnets }: NodeRecord): string {
  return subnets.map(formatPrefix).join(", ");
}

/** Do both say the same, subnets aside? */
function isSame(one: NodeRecord, other: NodeRecord): boolean {
  const text = ({ publicIps, backend, vni, vteps, machineId }: NodeRecord) =>
    JSON.stringify([publicIps.map(formatAddress), backend, vni, vteps[4], vteps[6], machineId]);
  return text(one) === text(other);
}
