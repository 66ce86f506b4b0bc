/** Many containers at once: no failure, no address twice, nothing left, and how fast that was. */
import {
  Attachment,
  type By,
  difference,
  hostLocalLeftovers,
  type Json,
  type Namespace,
  type Node,
  PluginFailed,
  runPlugin,
  snapshot,
  testNode,
} from "../e2e/support/mod.ts";

/** What a load run is made of. */
export interface Load {
  readonly backend: "iptables" | "nftables";
  readonly containers: number;
  /** How many calls are under way at any time. */
  readonly atOnce: number;
  /** `mixed`: DEL and ADD at random, seeded; else ADD of all, CHECK of all, DEL of all. */
  readonly mixed: boolean;
  readonly by: By;
  /** Every second container's addresses come from the reference's host-local, on the same folder. */
  readonly foreignIpam?: boolean;
  readonly seed: number;
}

/** What came of it. Rates are calls per second; 0 where there was no such phase. */
export interface Report {
  readonly load: Load;
  readonly add: number;
  readonly check: number;
  readonly del: number;
  readonly failures: string[];
  readonly duplicates: number;
  readonly residue: string[];
}

const conf = ({ backend }: Load): Json => ({
  cniVersion: "1.0.0",
  name: "load",
  type: "bridge",
  bridge: "br1",
  isDefaultGateway: true,
  ipMasq: true,
  ipMasqBackend: backend,
  ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/20" }]] },
});

/** Runs one load on a node of its own. */
export async function run(load: Load): Promise<Report> {
  await using node = await testNode();
  const pods = await containers(node, load.containers);
  const failures: string[] = [];
  const attach = (pod: Namespace, index: number) => {
    const foreign = load.foreignIpam && index % 2 === 1;
    return new Attachment(node, conf(load), pod, foreign ? { env: { CNI_PATH: "/run/mixed" } } : {});
  };
  // A plugin folder whose bridge is ours and whose host-local is the reference's.
  if (load.foreignIpam) {
    await node.sh(
      "mkdir -p /run/mixed; ln -s /opt/cni/bin/bridge /run/mixed/; ln -s /opt/cni/ref/host-local /run/mixed/",
    );
  }
  const warm = new Attachment(node, conf(load), await node.container("warm"));
  await warm.add(load.by);
  await warm.del(load.by).catch(() => {});
  const before = await snapshot(node);
  const all = pods.map(attach);
  const taken = new Map<string, number>();
  let duplicates = 0;
  const note = (index: number) => {
    const address = all[index]?.result?.ips?.[0]?.address as string | undefined;
    if (address === undefined) return;
    if (taken.has(address)) duplicates++;
    taken.set(address, index);
  };
  const failed = (what: string) => (error: unknown) =>
    void failures.push(`${what}: ${(error as Error).message.slice(0, 300)}`);
  const free = (index: number) => {
    for (const [address, owner] of taken) if (owner === index) taken.delete(address);
  };
  const add = (index: number) => all[index]!.add(load.by).then(() => note(index), failed(`ADD ${index}`));
  const check = (index: number) => all[index]!.check(load.by).catch(failed(`CHECK ${index}`));
  const del = (index: number) => {
    free(index);
    return all[index]!.del(load.by).catch(failed(`DEL ${index}`));
  };
  const indexes = pods.map((_, index) => index);
  const rates = { add: 0, check: 0, del: 0 };
  if (load.mixed) {
    const random = generator(load.seed);
    const there = new Set<number>();
    // Two passes' worth of calls; each container's own calls stay in order, as a runtime keeps them.
    const steps = Array.from({ length: load.containers * 3 }, () => Math.floor(random() * load.containers));
    const last = new Map<number, Promise<unknown>>();
    const rate = await inParallel(steps, load.atOnce, (index) => {
      const next = (last.get(index) ?? Promise.resolve()).then(() => {
        if (there.has(index)) {
          there.delete(index);
          return del(index);
        }
        there.add(index);
        return add(index);
      });
      last.set(index, next);
      return next;
    });
    rates.add = rates.del = rate / 2;
    await inParallel([...there], load.atOnce, del);
  } else {
    rates.add = await inParallel(indexes, load.atOnce, add);
    rates.check = await inParallel(indexes, load.atOnce, check);
    rates.del = await inParallel(indexes, load.atOnce, del);
  }
  const residue = difference(before, await snapshot(node), { allow: [hostLocalLeftovers, /\/run\/cnibox/] });
  return { load, ...rates, failures, duplicates, residue };
}

async function containers(node: Node, count: number): Promise<Namespace[]> {
  const names = Array.from({ length: count }, (_, index) => `p${index}`);
  const made: Namespace[] = [];
  for (let at = 0; at < names.length; at += 16) {
    made.push(...await Promise.all(names.slice(at, at + 16).map((name) => node.container(name))));
  }
  return made;
}

/** Does the work for each item, so many at once; returns items per second. */
async function inParallel<T>(
  items: readonly T[],
  atOnce: number,
  work: (item: T) => Promise<unknown>,
): Promise<number> {
  const started = performance.now();
  let next = 0;
  await Promise.all(Array.from({ length: atOnce }, async () => {
    while (next < items.length) await work(items[next++]!);
  }));
  return items.length / ((performance.now() - started) / 1000);
}

/** Numbers in [0, 1) that are the same for the same seed (mulberry32). */
export function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** What ten networks that publish ports at the same time came to. */
export interface TenNetworks {
  /** Ports, each with how many of the two containers that asked for it got it. */
  readonly owners: Record<number, number>;
  /** What those who did not get theirs were told: code and message, without the name of who has it. */
  readonly refusals: string[];
  /** Calls that failed and should not have. */
  readonly failures: string[];
  readonly duplicates: number;
  readonly residue: string[];
}

/**
 * Ten networks, one container on each, all at once: each publishes a port of its own, and every two, on different
 * networks, ask for the same one.
 */
export async function tenNetworks(backend: Load["backend"]): Promise<TenNetworks> {
  await using node = await testNode();
  const indexes = Array.from({ length: 10 }, (_, index) => index);
  const contested = (index: number) => 7000 + index % 5;
  const pods = await containers(node, indexes.length);
  const all = pods.map((pod, index) => {
    const list = {
      cniVersion: "1.0.0",
      name: `net${index}`,
      plugins: [
        {
          type: "bridge",
          bridge: `br${index}`,
          isGateway: true,
          ipMasq: true,
          ipMasqBackend: backend,
          ipam: { type: "host-local", ranges: [[{ subnet: `10.40.${index}.0/24` }]] },
        },
        { type: "portmap", backend, capabilities: { portMappings: true } },
      ],
    };
    const portMappings = [9000 + index, contested(index)].map((hostPort) => ({
      hostPort,
      containerPort: 80,
      protocol: "tcp",
    }));
    return new Attachment(node, list, pod, { capabilities: { portMappings } });
  });
  // Bridges and shared chains are there before the first look.
  for (const one of all) {
    await one.add();
    await one.del();
  }
  const before = await snapshot(node);
  const failures: string[] = [];
  const failed = (what: string) => (error: unknown) =>
    void failures.push(`${what}: ${(error as Error).message.slice(0, 300)}`);
  const owners: Record<number, number> = {};
  const refusals: string[] = [];
  const addresses = new Set<string>();
  let attached = 0;
  await Promise.all(all.map(async (one, index) => {
    try {
      const { ips } = await one.add();
      owners[contested(index)] = (owners[contested(index)] ?? 0) + 1;
      attached++;
      addresses.add(ips[0].address);
    } catch (error) {
      if (!(error instanceof PluginFailed)) throw error;
      refusals.push(`${error.error?.code} ${error.error?.msg}`.replace(/ container .*/, " container NAME"));
      one.result = undefined;
    }
  }));
  for (const [index, one] of all.entries()) if (one.result) await one.check().catch(failed(`CHECK ${index}`));
  await Promise.all(all.map((one, index) => one.del().catch(failed(`DEL ${index}`))));
  const residue = difference(before, await snapshot(node), { allow: [hostLocalLeftovers] });
  return { owners, refusals: refusals.sort(), failures, duplicates: attached - addresses.size, residue };
}

/**
 * A range of five addresses with many contenders: who wins, what the others hear, and in which order addresses come
 * back.
 */
export async function contend(contenders: number): Promise<{ winners: string[]; errors: string[]; again: string[] }> {
  await using node = await testNode();
  const stdin = {
    cniVersion: "1.0.0",
    name: "five",
    type: "host-local",
    ipam: { type: "host-local", ranges: [[{ subnet: "10.30.0.0/29" }]] },
  };
  const call = (index: number, command: "ADD" | "DEL") =>
    runPlugin(node, { type: "host-local", command, containerId: `c${index}`, netns: "/run/netns/none", stdin });
  const outputs = await Promise.all(Array.from({ length: contenders }, (_, index) => call(index, "ADD")));
  const winners = outputs.flatMap(({ code, json }) => code === 0 ? [json.ips[0].address as string] : []);
  const errors = outputs.flatMap(({ code, json, stdout }) =>
    code === 0 ? [] : [`${json?.code} ${json?.msg ?? stdout}`]
  );
  const owners = outputs.flatMap(({ code, json }, index) =>
    code === 0 ? [{ index, address: json.ips[0].address as string }] : []
  );
  // Freed in an order of their own; round robin goes on from the last one given out.
  const again: string[] = [];
  for (const { index } of owners) await call(index, "DEL");
  for (let index = 100; index < 105; index++) again.push((await call(index, "ADD")).json.ips[0].address);
  return { winners, errors, again };
}
