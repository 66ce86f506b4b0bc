/**
 * cluster: addresses that are unique in a whole cluster. Nodes own blocks of a pool, by records in etcd or the
 * Kubernetes API, and give their addresses out from files of their own: the store is asked only for a further block.
 */
import { isObject, lookup } from "../../lib/cni/decode.ts";
import { internal, needed } from "../../lib/cni/error.ts";
import type { ContainerCall, Lease, NetworkCall, Plugin, Released } from "../../lib/cni/plugin.ts";
import { since } from "../../lib/cni/types.ts";
import { held as heldBy, release } from "../../lib/ipam/allocator.ts";
import { beginTaking, blocksFile, confirmBlocks, releaseAddresses, returnSpare } from "../../lib/ipam/block_owner.ts";
import { readBlocks } from "../../lib/ipam/block_state.ts";
import { addressesOf, isBlockOf } from "../../lib/ipam/blocks.ts";
import { type ClusterConf, clusterConf, clusterKeys, foldersOf } from "../../lib/ipam/cluster_conf.ts";
import { leaseOf } from "../../lib/ipam/lease.ts";
import { exists } from "../../lib/kernel/regular_file.ts";
import { formatAddress, formatPrefix, parseAddress, prefixContains } from "../../lib/net/cidr.ts";

export const plugin: Plugin = {
  name: "cluster",
  kind: "ipam",
  about: "gives out addresses that are unique in a cluster, on etcd or the Kubernetes API",
  versions: since("0.3.0"),
  needs: ["curl"],
  keys: clusterKeys,
  parse: async (call) => (await clusterConf(call)).close(),
  begin,
  add: async (call) => await (await begin(call)).commit(),
  del,
  check,
  gc,
  status,
  held,
};

const upkeep = () => import("../../lib/ipam/lease_upkeep.ts");

async function begin(call: ContainerCall): Promise<Lease> {
  const conf = await clusterConf(call);
  try {
    const { pool, requested, routes, dns } = conf;
    const more = { ...(routes.length > 0 && { routes: [...routes] }), ...(dns && { dns }) };
    const { warn, perform } = call;
    const taking = await beginTaking(pool, call, { warn, perform, requested });
    return leaseOf(call, taking, { more, release: () => releaseAddresses(pool, call, call) });
  } finally {
    conf.close();
  }
}

async function del(call: ContainerCall): Promise<Released> {
  const { folder } = foldersOf(call);
  const conf = await leniently(call);
  // Whatever became of the configuration: the address is released, and its block goes back later.
  if (conf === undefined) return { addresses: await release(folder, call, call) };
  try {
    return { addresses: await releaseAddresses(conf.pool, call, call) };
  } finally {
    conf.close();
  }
}

async function leniently(call: ContainerCall | NetworkCall): Promise<ClusterConf | undefined> {
  try {
    return await clusterConf({ ...call, args: "" });
  } catch (error) {
    call.warn(`blocks are not returned: ${(error as Error).message}`);
    return undefined;
  }
}

async function held(call: ContainerCall): Promise<readonly string[]> {
  return await heldBy(foldersOf(call).folder, call, call);
}

async function check(call: ContainerCall): Promise<void> {
  const { folder, blockFolder } = foldersOf(call);
  const addresses = await (await upkeep()).checkHeld(folder, call);
  const { blocks } = readBlocks(blocksFile({ blockFolder }));
  for (const { block, phase, holder } of blocks) {
    const ip = addresses.find((one) => prefixContains(block, parseAddress(one)!));
    if (phase !== "lost" || ip === undefined) continue;
    throw internal(
      `cluster: ${ip} belongs to node ${holder ?? "unknown"} now`,
      `its block ${formatPrefix(block)} was given to that node, which may use the address too: add the container again`,
    );
  }
}

async function gc(call: NetworkCall): Promise<void> {
  if (call.valid === undefined || !isObject(lookup(call.config, "ipam"))) return;
  await (await upkeep()).collect(foldersOf(call).folder, call.valid, call);
  const conf = await leniently(call);
  if (conf === undefined) return;
  try {
    await returnSpare(conf.pool, { warn: call.warn }, { keep: 1 });
  } finally {
    conf.close();
  }
}

/** Longest wait for a lock, in milliseconds, before STATUS says that ADD would wait too. */
const STATUS_LIMIT_MS = 5_000;

async function status(call: NetworkCall): Promise<void> {
  await needed(async () => {
    const { pool, close } = await clusterConf({ ...call, args: "" });
    try {
      await (await upkeep()).checkFolder(pool.folder, call.host);
      const own = readBlocks(blocksFile(pool)).blocks.filter(({ phase }) => phase === "own");
      const full = pool.sets.some((set) =>
        !own.some(({ block }) => isBlockOf(block, set) && hasFree(pool.folder, { block, set }))
      );
      // With addresses left the store may be away.
      if (full) await confirmBlocks(pool, { warn: call.warn, limitMs: STATUS_LIMIT_MS });
    } finally {
      close();
    }
  });
}

function hasFree(
  folder: string,
  { block, set }: { block: Parameters<typeof addressesOf>[0]; set: Parameters<typeof addressesOf>[1] },
): boolean {
  for (const { address } of addressesOf(block, set)) if (!exists(`${folder}/${formatAddress(address)}`)) return true;
  return false;
}
