/**
 * `cnibox cluster`: who holds which part of a pool that nodes share, and whether records and this node's files agree.
 */
import { loadAll, type NetworkList } from "../cni/conflist.ts";
import { isObject, lookup } from "../cni/decode.ts";
import { toCniError } from "../cni/error.ts";
import { blocksFile, confirmBlocks, type Pool, POOLS, returnSpare } from "../ipam/block_owner.ts";
import { readBlocks } from "../ipam/block_state.ts";
import { addressesOf, blockCount, blockOfKey, isBlockOf, readOwner } from "../ipam/blocks.ts";
import { type ClusterConf, clusterConf } from "../ipam/cluster_conf.ts";
import { leases } from "../ipam/allocator.ts";
import type { Lease } from "../ipam/store.ts";
import { systemRun } from "../kernel/run.ts";
import { formatPrefix, parseAddress, type Prefix, prefixContains } from "../net/cidr.ts";
import { StoreError, type StoreRecord } from "../store/store.ts";
import { CliError, type CommandCall, nearest, status } from "./command.ts";
import { confirm } from "./confirm.ts";
import { type Folders, foldersOf, needRoot, note } from "./setup.ts";
import { ageOf, columns, jsonDocument, painter, say } from "./terminal.ts";

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

/** `cnibox cluster pools` */
export async function listPools(call: CommandCall): Promise<number> {
  return await withPools(call, async (all) => {
    const rows = [];
    for (const { pool, networks } of shared(all)) {
      const records = await recordsOf(pool);
      const total = pool.sets.reduce((sum, set) => sum + blockCount(set), 0n);
      rows.push({
        pool: pool.name,
        networks: networks.map(({ network }) => network),
        store: pool.store().name,
        ranges: pool.sets.flatMap(({ ranges }) => ranges.map(({ subnet }) => formatPrefix(subnet))),
        blockSizes: pool.sets.map(({ blockSize }) => blockSize),
        blocks: { taken: records.length, total: String(total) },
        nodes: new Set(records.map(({ value }) => readOwner(value)?.node ?? "unknown")).size,
      });
    }
    if (call.is("json")) say(jsonDocument({ pools: rows }));
    else {
      const paint = painter();
      say(
        rows.length === 0 ? "no network of this node uses a cluster's pool\n" : columns([
          ["POOL", "NETWORKS", "RANGES", "BLOCKS", "NODES", "STORE"],
          ...rows.map((one) => [
            paint("bold", one.pool),
            one.networks.join(", "),
            one.ranges.join(", "),
            `${one.blocks.taken} of ${one.blocks.total} taken`,
            `${one.nodes}`,
            one.store,
          ]),
        ]),
      );
    }
    return status.done;
  });
}

/** `cnibox cluster blocks [POOL]` */
export async function listBlocks(call: CommandCall): Promise<number> {
  return await withPools(call, async (all) => {
    const rows = [];
    for (const { pool, networks } of shared(all)) {
      const mine = await allLeases(networks);
      for (const record of (await recordsOf(pool)).sort(byBlock)) rows.push(blockRow(pool, record, mine));
    }
    if (call.is("json")) say(jsonDocument({ blocks: rows }));
    else {
      say(
        rows.length === 0 ? "no blocks are taken\n" : columns([
          ["POOL", "BLOCK", "NODE", "SINCE", "TAKEN HERE"],
          ...rows.map(({ pool, block, node, taken, used, usable }) => [
            pool,
            block,
            node,
            taken === "" ? "-" : ageOf(new Date(taken)),
            used === undefined ? "-" : `${used} of ${usable}`,
          ]),
        ]),
      );
    }
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

function isIn(block: Prefix, ip: string): boolean {
  const address = parseAddress(ip);
  return address !== undefined && prefixContains(block, address);
}

/** `cnibox cluster find ADDRESS` */
export async function find(call: CommandCall): Promise<number> {
  const word = call.arg("ADDRESS") ?? "";
  const address = parseAddress(word.split("/")[0] ?? "");
  if (address === undefined) throw new CliError(`"${word}" is not a valid address`, status.usage);
  return await withPools(call, async (all) => {
    const rows = [];
    for (const { pool, networks } of shared(all)) {
      if (!pool.sets.some(({ ranges }) => ranges.some(({ subnet }) => prefixContains(subnet, address)))) continue;
      const record = (await recordsOf(pool)).find(({ key }) => {
        const block = blockOfKey(key);
        return block !== undefined && prefixContains(block, address);
      });
      const lease = (await allLeases(networks)).find(({ ip }) => parseAddress(ip)?.value === address.value);
      rows.push({
        pool: pool.name,
        block: record && blockOfKey(record.key) ? formatPrefix(blockOfKey(record.key)!) : undefined,
        node: record ? readOwner(record.value)?.node ?? "unknown" : undefined,
        containerId: lease?.containerId,
        ifName: lease?.ifName,
      });
    }
    if (rows.length === 0) throw new CliError(`no pool of this node has ${word}`, status.unknown);
    if (call.is("json")) say(jsonDocument({ address: word, found: rows }));
    else {
      for (const { pool, block, node, containerId, ifName } of rows) {
        const holder = containerId === undefined
          ? ""
          : `, given to container ${containerId}, interface ${ifName ?? "unknown"}`;
        say(
          block === undefined
            ? `${pool}: in no node's block\n`
            : `${pool}: in block ${block} of node ${node}${holder}\n`,
        );
      }
    }
    return status.done;
  });
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
        const address = parseAddress(ip)!;
        add(
          { address, length: address.family === 4 ? 32 : 128 },
          `given to container ${containerId} here, in no block of this node`,
        );
      }
      for (const { key, value } of records) {
        const block = blockOfKey(key);
        if (block === undefined || readOwner(value) === undefined) {
          findings.push({
            pool: pool.name,
            block: key,
            finding: "the record is not readable; its block is given to nobody",
          });
        }
      }
    }
    if (call.is("json")) say(jsonDocument({ findings }));
    else if (findings.length === 0) say(`records and files agree\n`);
    else say(columns(findings.map(({ pool, block, finding }) => [pool, block, finding])));
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
    if (call.is("json")) say(jsonDocument({ returned }));
    else {say(
        returned.length === 0
          ? "no block is spare\n"
          : columns(returned.map(({ pool, block }) => [pool, `${block} returned`])),
      );}
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
      const near = nearest(node, [...names]);
      throw new CliError(`no block belongs to a node "${node}"`, status.unknown, [
        ...(near ? [`did you mean ${near}?`] : []),
        ...(names.size > 0 ? [`nodes with blocks: ${[...names].sort().join(", ")}`] : []),
      ]);
    }
    for (const { pool } of all) {
      if (pool.identity.node !== node || call.is("force")) continue;
      throw new CliError(`"${node}" is this very node, and it is alive`, status.failed, [
        "cnibox cluster trim returns what it does not need",
        "--force frees its blocks all the same: addresses in use here may be given to others then",
      ]);
    }
    const list = found.map(({ pool, record }) => `${pool.name} ${formatPrefix(blockOfKey(record.key)!)}`);
    if (!call.is("json")) say(`${list.length} blocks of node ${node} to free: ${list.join(", ")}\n`);
    confirm(call, "free them?", [`containers of node ${node} that still live would share their addresses with others`]);
    let removed = 0;
    for (const { pool, record } of found) {
      if (await asked(pool, () => pool.store().removeIfRevision(record.key, record.revision))) removed++;
    }
    if (call.is("json")) say(jsonDocument({ node, removed, blocks: list }));
    else say(`${removed} blocks of node ${node} are free\n`);
    return status.done;
  });
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
      const near = nearest(wanted, names);
      throw new CliError(`no network of this node uses a pool "${wanted}"`, status.unknown, [
        ...(near ? [`did you mean ${near}?`] : []),
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
    for (const { config } of list.plugins) {
      const ipam = lookup(config, "ipam");
      if (isObject(ipam) && lookup(ipam, "type") === "cluster") yield { list, config };
    }
  }
}
