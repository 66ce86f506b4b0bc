/**
 * `cnibox cluster`: who holds which part of a pool that nodes share, and whether records and this node's files agree.
 */
import { loadAll, type NetworkList } from "../cni/conflist.ts";
import { toCniError } from "../cni/error.ts";
import { blocksFile, confirmBlocks, type Pool, POOLS, returnSpare } from "../ipam/block_owner.ts";
import { readBlocks } from "../ipam/block_state.ts";
import { addressesOf, blockCount, blockOfKey, isBlockOf, readOwner } from "../ipam/blocks.ts";
import { type ClusterConf, clusterConf } from "../ipam/cluster_conf.ts";
import { leases } from "../ipam/lease_upkeep.ts";
import type { Lease } from "../ipam/store.ts";
import { systemRun } from "../kernel/run.ts";
import { type Address, formatPrefix, hostPrefix, parseAddress, type Prefix, prefixContains } from "../net/cidr.ts";
import { StoreError, type StoreRecord } from "../store/store.ts";
import { CliError, type CommandCall, didYouMean, status, tell, usageError } from "./command.ts";
import { confirm } from "./confirm.ts";
import { isIn } from "./leases.ts";
import { type Folders, foldersOf, ipamType, needRoot, note } from "./setup.ts";
import { ageOf, counted, painter, say, table, terminalWidth } from "./terminal.ts";

/** A network of this node with its pool. */
interface Configured {
  readonly pool: Pool;
  readonly network: string;
  close(): void;
}

/** A pool with the networks of this node that use it. */
interface Shared {
  /** Of the first of these networks. */
  readonly pool: Pool;
  readonly networks: readonly Configured[];
}

/** Each pool once, by name and store. */
function shared(all: readonly Configured[]): Shared[] {
  const groups = Map.groupBy(all, ({ pool }) => `${pool.name} ${pool.store().name}`);
  return [...groups.values()].map((networks) => ({ pool: networks[0]!.pool, networks }));
}

/** Rows in columns, below their titles; or what is said where there are none. */
function listed(none: string, rows: readonly string[][], titles?: readonly string[]): string {
  return rows.length === 0 ? none : table(titles ?? [], rows, { width: terminalWidth() });
}

/** `cnibox cluster pools` */
export async function listPools(call: CommandCall): Promise<number> {
  return await withPools(call, async (all) => {
    const pools = await Array.fromAsync(shared(all), poolRow);
    const paint = painter();
    const rows = pools.map(({ pool, networks, ranges, blocks: { taken, total }, nodes, store }) => {
      const share = `${taken} of ${total} taken`;
      return [paint("bold", pool), networks.join(", "), ranges.join(", "), share, `${nodes}`, store];
    });
    const titles = ["POOL", "NETWORKS", "RANGES", "BLOCKS", "NODES", "STORE"];
    tell(call, { pools }, () => listed("no network of this node uses a cluster's pool\n", rows, titles));
    return status.done;
  });
}

async function poolRow({ pool, networks }: Shared) {
  const records = await recordsOf(pool);
  const total = pool.sets.reduce((sum, set) => sum + blockCount(set), 0n);
  return {
    pool: pool.name,
    networks: networks.map(({ network }) => network),
    store: pool.store().name,
    ranges: pool.sets.flatMap(({ ranges }) => ranges.map(({ subnet }) => formatPrefix(subnet))),
    blockSizes: pool.sets.map(({ blockSize }) => blockSize),
    blocks: { taken: records.length, total: String(total) },
    nodes: new Set(records.map(({ value }) => readOwner(value)?.node ?? "unknown")).size,
  };
}

/** `cnibox cluster blocks [POOL]` */
export async function listBlocks(call: CommandCall): Promise<number> {
  return await withPools(call, async (all) => {
    const blocks: ReturnType<typeof blockRow>[] = [];
    for (const { pool, networks } of shared(all)) {
      const mine = await allLeases(networks);
      for (const record of (await recordsOf(pool)).sort(byBlock)) blocks.push(blockRow(pool, record, mine));
    }
    const rows = blocks.map(({ pool, block, node, taken, used, usable }) => {
      const since = taken === "" ? "-" : ageOf(new Date(taken));
      return [pool, block, node, since, used === undefined ? "-" : `${used} of ${usable}`];
    });
    tell(
      call,
      { blocks },
      () => listed("no blocks are taken\n", rows, ["POOL", "BLOCK", "NODE", "SINCE", "TAKEN HERE"]),
    );
    return status.done;
  });
}

function byBlock(a: StoreRecord, b: StoreRecord): number {
  const [left, right] = [blockOfKey(a.key)?.address, blockOfKey(b.key)?.address];
  if (!left || !right || left.family !== right.family) return a.key < b.key ? -1 : 1;
  return left.value < right.value ? -1 : 1;
}

function blockRow(pool: Pool, { key, value }: StoreRecord, mine: readonly Lease[]) {
  const block = blockOfKey(key);
  const owner = readOwner(value);
  const set = block && pool.sets.find((one) => isBlockOf(block, one));
  const isMine = owner?.node === pool.identity.node;
  return {
    pool: pool.name,
    block: block ? formatPrefix(block) : key,
    node: owner?.node ?? "unknown: the record is not readable",
    taken: owner?.taken ?? "",
    usable: block && set ? [...addressesOf(block, set, 65_536)].length : undefined,
    // How full others' blocks are, their own files alone say.
    used: isMine && block ? mine.filter(({ ip }) => isIn(block, ip)).length : undefined,
  };
}

/** `cnibox cluster find ADDRESS` */
export async function find(call: CommandCall): Promise<number> {
  const word = call.arg("ADDRESS") ?? "";
  const address = parseAddress(word.split("/")[0] ?? "");
  if (address === undefined) throw usageError(`"${word}" is not a valid address`);
  return await withPools(call, async (all) => {
    const having = shared(all).filter(({ pool }) =>
      pool.sets.some(({ ranges }) => ranges.some(({ subnet }) => prefixContains(subnet, address)))
    );
    if (having.length === 0) throw new CliError(`no pool of this node has ${word}`, status.unknown);
    const found = await Array.fromAsync(having, (one) => placeOf(address, one));
    const lines = found.map(({ pool, block, node, containerId, ifName = "unknown" }) => {
      if (block === undefined) return `${pool}: in no node's block\n`;
      const holder = containerId === undefined ? "" : `, given to container ${containerId}, interface ${ifName}`;
      return `${pool}: in block ${block} of node ${node}${holder}\n`;
    });
    tell(call, { address: word, found }, () => lines.join(""));
    return status.done;
  });
}

/** Where in a pool an address is, and who has it. */
async function placeOf(address: Address, { pool, networks }: Shared) {
  const records = (await recordsOf(pool)).map((record) => ({ ...record, block: blockOfKey(record.key) }));
  const record = records.find(({ block }) => block && prefixContains(block, address));
  const lease = (await allLeases(networks)).find(({ ip }) => parseAddress(ip)?.value === address.value);
  return {
    pool: pool.name,
    block: record?.block && formatPrefix(record.block),
    node: record && (readOwner(record.value)?.node ?? "unknown"),
    containerId: lease?.containerId,
    ifName: lease?.ifName,
  };
}

/** `cnibox cluster check [POOL]` */
export async function check(call: CommandCall): Promise<number> {
  needRoot(call, "it reads the leases of this node");
  return await withPools(call, async (all) => {
    const findings: { pool: string; block: string; finding: string }[] = [];
    for (const { pool } of all) {
      const { records, lost } = await asked(pool, () => confirmBlocks(pool, { warn: note }));
      const add = (block: Prefix, finding: string) =>
        findings.push({ pool: pool.name, block: formatPrefix(block), finding });
      const living = await leasesOf(pool);
      for (const { block, holder } of lost) {
        const ips = living.filter(({ ip }) => isIn(block, ip)).map(({ ip }) => ip);
        add(block, `belongs to node ${holder}` + (ips.length > 0 ? `; in use here: ${ips.join(", ")}` : ""));
      }
      const own = readBlocks(blocksFile(pool)).blocks;
      for (const { ip, containerId } of living) {
        if (own.some(({ block }) => isIn(block, ip))) continue;
        add(hostPrefix(parseAddress(ip)!), `given to container ${containerId} here, in no block of this node`);
      }
      for (const { key, value } of records) {
        const block = blockOfKey(key);
        if (block === undefined || readOwner(value) === undefined) {
          const finding = "the record is not readable; its block is given to nobody";
          findings.push({ pool: pool.name, block: key, finding });
        }
      }
    }
    const rows = findings.map(({ pool, block, finding }) => [pool, block, finding]);
    tell(call, { findings }, () => listed("records and files agree\n", rows));
    return findings.length === 0 ? status.done : status.failed;
  });
}

/** `cnibox cluster trim [POOL]` */
export async function trim(call: CommandCall): Promise<number> {
  needRoot(call, "it changes what this node owns");
  return await withPools(call, async (all) => {
    const returned: { pool: string; block: string }[] = [];
    for (const { pool } of all) {
      const blocks = await asked(pool, () => returnSpare(pool, { warn: note }, { keep: 0, always: true }));
      for (const block of blocks) returned.push({ pool: pool.name, block: formatPrefix(block) });
      await removeEmptyPool(pool);
    }
    const rows = returned.map(({ pool, block }) => [pool, `${block} returned`]);
    tell(call, { returned }, () => listed("no block is spare\n", rows));
    return status.done;
  });
}

/** What a pool is said to be goes with its last block. */
async function removeEmptyPool(pool: Pool): Promise<void> {
  if ((await recordsOf(pool)).length > 0) return;
  const store = pool.store();
  const { records } = await asked(pool, () => store.list(`${POOLS}/`));
  const record = records.find(({ key }) => key === `${POOLS}/${pool.name}`);
  if (record) await asked(pool, () => store.removeIfRevision(record.key, record.revision));
}

/** `cnibox cluster forget NODE` */
export async function forget(call: CommandCall): Promise<number> {
  const node = call.arg("NODE") ?? "";
  return await withPools(call, async (all) => {
    const found: { pool: Pool; record: StoreRecord }[] = [];
    const names = new Set<string>();
    for (const { pool } of shared(all)) {
      for (const record of await recordsOf(pool)) {
        const owner = readOwner(record.value);
        if (owner) names.add(owner.node);
        if (owner?.node === node) found.push({ pool, record });
      }
    }
    if (found.length === 0) {
      throw new CliError(`no block belongs to a node "${node}"`, status.unknown, [
        ...didYouMean(node, [...names]),
        ...(names.size > 0 ? [`nodes with blocks: ${[...names].sort().join(", ")}`] : []),
      ]);
    }
    if (!call.is("force") && found.some(isOwn)) {
      throw new CliError(`"${node}" is this very node, and it is alive`, status.failed, [
        "cnibox cluster trim returns what it does not need",
        "--force frees its blocks all the same: addresses in use here may be given to others then",
      ]);
    }
    const list = found.map(({ pool, record }) => `${pool.name} ${formatPrefix(blockOfKey(record.key)!)}`);
    if (!call.is("json")) say(`${counted(list.length, "block")} of node ${node} to free: ${list.join(", ")}\n`);
    confirm(call, "free them?", [`containers of node ${node} that still live would share their addresses with others`]);
    let removed = 0;
    for (const { pool, record } of found) {
      if (await asked(pool, () => pool.store().removeIfRevision(record.key, record.revision))) removed++;
    }
    tell(call, { node, removed, blocks: list }, () => `freed ${counted(removed, "block")} of node ${node}\n`);
    return status.done;
  });
}

/** Is the record this machine's, or may it be? Another machine can have the same node name. */
function isOwn({ pool: { identity }, record }: { pool: Pool; record: StoreRecord }): boolean {
  const owner = readOwner(record.value);
  const isOther = owner !== undefined && owner.machineId !== "" && identity.machineId !== "" &&
    owner.machineId !== identity.machineId;
  return owner?.node === identity.node && !isOther;
}

async function recordsOf(pool: Pool): Promise<StoreRecord[]> {
  return [...(await asked(pool, () => pool.store().list(`${pool.name}/`))).records];
}

async function allLeases(networks: readonly Configured[]): Promise<Lease[]> {
  return (await Promise.all(networks.map(({ pool }) => leasesOf(pool)))).flat();
}

async function leasesOf(pool: Pool): Promise<Lease[]> {
  try {
    return await leases(pool.folder, { warn: note });
  } catch (error) {
    note(toCniError(error).message);
    return [];
  }
}

async function asked<T>(pool: Pool, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof StoreError)) throw error;
    throw new CliError(
      `pool "${pool.name}": ${error.message}`,
      error.failure === "refused" ? status.failed : status.tryAgain,
    );
  }
}

async function withPools(call: CommandCall, work: (pools: readonly Configured[]) => Promise<number>): Promise<number> {
  const wanted = call.command.positional.some(({ name }) => name === "POOL") ? call.arg("POOL") : undefined;
  const all = await configuredPools(foldersOf(call));
  try {
    const chosen = wanted === undefined ? all : all.filter(({ pool }) => pool.name === wanted);
    if (wanted !== undefined && chosen.length === 0) {
      const names = [...new Set(all.map(({ pool }) => pool.name))];
      throw new CliError(`no network of this node uses a pool "${wanted}"`, status.unknown, [
        ...didYouMean(wanted, names),
        ...(names.length > 0 ? [`pools: ${names.join(", ")}`] : []),
      ]);
    }
    return await work(chosen);
  } finally {
    for (const one of all) one.close();
  }
}

/** The configured networks that use a pool; networks with one lease folder, and so with one share of the pool, once. */
async function configuredPools(folders: Folders): Promise<Configured[]> {
  const found = new Map<string, Configured>();
  for (const { list, config } of clusterMembers(folders)) {
    let conf: ClusterConf;
    try {
      conf = await clusterConf({ config, network: list.name, version: list.version, host: systemRun(), warn: note });
    } catch (error) {
      note(`network "${list.name}": ${toCniError(error).message}`);
      continue;
    }
    const { pool, close } = conf;
    const key = `${pool.name} ${pool.store().name} ${pool.folder}`;
    if (found.has(key)) close();
    else found.set(key, { pool, network: list.name, close });
  }
  return [...found.values()];
}

function* clusterMembers(folders: Folders): Generator<{ list: NetworkList; config: Record<string, unknown> }> {
  const { lists, broken } = loadAll(folders.conf);
  for (const error of broken) note(`skipped ${error.file}: ${error.message}`);
  for (const list of lists) {
    for (const { config } of list.plugins) if (ipamType(config) === "cluster") yield { list, config };
  }
}
