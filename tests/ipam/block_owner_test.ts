/**
 * Nodes that share a pool: who gets which block, what survives a killed call, and what is refused. Stores and races are
 * the test's.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { CniError } from "../../lib/cni/error.ts";
import {
  beginTaking,
  blocksFile,
  confirmBlocks,
  type Pool,
  releaseAddresses,
  returnSpare,
} from "../../lib/ipam/block_owner.ts";
import { readBlocks, writeBlocks } from "../../lib/ipam/block_state.ts";
import {
  addressCount,
  addressesOf,
  blockOfKey,
  defaultBlockSize,
  isUsable,
  type PoolSet,
} from "../../lib/ipam/blocks.ts";
import { rangeSets } from "../../lib/ipam/range.ts";
import { formatAddress, formatPrefix, parseAddress, parsePrefix } from "../../lib/net/cidr.ts";
import { StoreError } from "../../lib/store/store.ts";
import { FakeStore } from "../fakes/store.ts";

const POOL = { version: "1.0.0", atLeast030: true, warn: () => {} };

function set(subnet: string, blockSize?: number, exclude: string[] = []): PoolSet {
  const [ranges] = rangeSets([[{ subnet, excluded: exclude.map((text) => parsePrefix(text)!) }]], POOL);
  return { ranges: ranges!, blockSize: blockSize ?? defaultBlockSize(ranges!) };
}

interface Node {
  readonly pool: Pool;
  readonly warnings: string[];
  add(id: string, ...requested: string[]): Promise<string>;
  del(id: string): Promise<string[]>;
  blocks(): string[];
}

async function withNodes(
  store: FakeStore,
  sets: readonly PoolSet[],
  work: (node: (name: string, changes?: Partial<Pool>) => Node) => Promise<void>,
): Promise<void> {
  const root = await Deno.makeTempDir();
  try {
    await work((name, changes = {}) => {
      const warnings: string[] = [];
      const pool: Pool = {
        name: "pods",
        sets,
        mayOverlap: false,
        folder: `${root}/${name}/networks/pods`,
        blockFolder: `${root}/${name}/cluster/pods`,
        quarantineMs: 60_000,
        identity: { node: name, machineId: `machine-${name}`, bootId: "boot1" },
        store: () => store,
        ...changes,
      };
      const options = { warn: (note: string) => void warnings.push(note), indexFolder: `${root}/index` };
      return {
        pool,
        warnings,
        add: async (id, ...requested) => {
          const taking = await beginTaking(pool, { containerId: id, ifName: "eth0" }, {
            ...options,
            requested: requested.map((text) => parseAddress(text)!),
          });
          const taken = await taking.commit();
          assertEquals(taking.candidates, taken);
          return taken.map(({ address }) => formatAddress(address)).join(" ");
        },
        del: (id) => releaseAddresses(pool, { containerId: id, ifName: "eth0" }, options),
        blocks: () => readBlocks(blocksFile(pool)).blocks.map(({ block, phase }) => `${formatPrefix(block)} ${phase}`),
      };
    });
  } finally {
    await Deno.remove(root, { recursive: true });
  }
}

const blockRecords = (store: FakeStore) => [...store.records.keys()].filter((key) => key.startsWith("pods/")).sort();
const away = () => Promise.reject(new StoreError("unreachable", "fake store: connection refused"));

Deno.test("a pool of a /24 has blocks of /32, of a /16 of /28, of a /64 of /76", () => {
  assertEquals(["10.0.0.0/24", "10.0.0.0/16", "fd42::/64"].map((subnet) => set(subnet).blockSize), [32, 28, 76]);
});

Deno.test("what is excluded may be larger than anybody can count", () => {
  const pool = set("fd42::/64", 76, ["fd42::/70", "fd42::400:0:0:0/77"]);
  const [first, after, half] = ["fd42::/76", "fd42:0:0:0:0800::/76", "fd42:0:0:0:0400::/76"].map((text) =>
    parsePrefix(text)!
  );
  assertEquals([isUsable(first!, pool), isUsable(after!, pool), isUsable(half!, pool)], [false, true, true]);
  const [one] = addressesOf(half!, pool, 1);
  assertEquals(formatAddress(one!.address), "fd42::408:0:0:0");
});

Deno.test("the addresses of a block are counted without going through them", () => {
  const excludes = [
    "10.42.0.0/30",
    "10.42.0.2",
    "10.42.0.20",
    "10.42.0.40/29",
    "10.42.0.44",
    "10.42.0.44",
    "10.42.0.62/31",
  ];
  for (const exclude of [[], excludes]) {
    const pool = set("10.42.0.0/26", 28, exclude.map((text) => text.includes("/") ? text : `${text}/32`));
    for (const text of ["10.42.0.0/28", "10.42.0.16/28", "10.42.0.32/28", "10.42.0.48/28", "10.42.1.0/28"]) {
      const block = parsePrefix(text)!;
      assertEquals(addressCount(block, pool), BigInt([...addressesOf(block, pool)].length), text);
    }
  }
  const large = set("fd42::/64", 76);
  // Without the network's own address and the gateway.
  assertEquals(addressCount(parsePrefix("fd42::/76")!, large), 2n ** 52n - 2n);
});

Deno.test("two nodes never give the same address, and share the pool to its last one", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/27")], async (node) => {
    const nodes = [node("a"), node("b")];
    const given: string[] = [];
    for (let index = 0; index < 29; index++) given.push(await nodes[index % 2]!.add(`c${index}`));
    assertEquals(new Set(given).size, 29);
    const error = await assertRejects(() => nodes[0]!.add("one too many"), CniError);
    assertEquals([error.code, error.msg], [100, 'pool "pods" is full: no address of 10.42.0.1-10.42.0.30 is free']);
    assert(/29 blocks are taken: a has 15, b has 14/.test(error.details), error.details);
  });
});

Deno.test("fifteen of sixteen addresses cost no request", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/16")], async (node) => {
    const one = node("a");
    for (let index = 0; index < 96; index++) await one.add(`c${index}`);
    // Two lists and the pool's own record at first, then a request for each block.
    assert(store.calls.length <= 3 + 8, store.calls.join("\n"));
  });
});

Deno.test("a thousand addresses of a /16 cost at most a request for each twelve", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/16")], async (node) => {
    const one = node("a");
    const given = new Set<string>();
    for (let index = 0; index < 1000; index++) given.add(await one.add(`c${index}`));
    assertEquals(given.size, 1000);
    assert(store.calls.length <= 1000 / 12, `${store.calls.length} requests`);
  });
});

Deno.test("a block that somebody else takes in the same moment is theirs", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/16")], async (node) => {
    const [one, two] = [node("a"), node("b")];
    let raced = 0;
    store.interfere = ({ verb, key, after }) => {
      if (verb !== "create" || after || !key.startsWith("pods/") || raced++ > 2) return;
      store.records.set(key, {
        value: JSON.stringify({ ...two.pool.identity, taken: "", nonce: "x" }),
        revision: ++store.revision,
      });
    };
    const ip = await one.add("c1");
    const theirs = blockRecords(store).filter((key) => store.records.get(key)!.value.includes('"node":"b"'));
    assertEquals(theirs.length, 3);
    for (const key of theirs) assert(!one.blocks().join().includes(formatPrefix(blockOfKey(key)!)));
    assert(ip !== "");
  });
});

for (const after of [false, true]) {
  Deno.test(`a call that dies ${after ? "after" : "before"} its block's record is made loses no block`, async () => {
    const store = new FakeStore();
    await withNodes(store, [set("10.42.0.0/24", 28)], async (node) => {
      const one = node("a");
      store.interfere = ({ verb, key, ...call }) => {
        if (verb === "create" && key.startsWith("pods/") && call.after === after) throw new TypeError("killed");
      };
      await assertRejects(() => one.add("c1"), TypeError);
      store.interfere = () => {};
      await one.add("c1");
      assertEquals(blockRecords(store).length, 1);
      assertEquals(one.blocks().length, 1);
    });
  });
}

Deno.test("with the store away, addresses of own blocks are given out; a full node says so with code 11", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/16", 30)], async (node) => {
    const one = node("a");
    await one.add("c1");
    store.interfere = away;
    const more = node("a", { identity: { ...one.pool.identity, bootId: "boot2" } });
    await more.add("c2");
    assert(more.warnings.some((note) => note.includes("connection refused")), more.warnings.join());
    let error: CniError | undefined;
    for (let index = 3; index < 6 && !error; index++) {
      await more.add(`c${index}`).catch((found) => error = found);
    }
    assertEquals(error?.code, 11);
    assertEquals(error?.msg, 'pool "pods": fake store: connection refused');
    await more.del("c2");
  });
});

Deno.test("an address rests after its release while others are free, and is given out again when none is", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/29", 29)], async (node) => {
    const one = node("a");
    const first = await one.add("c1");
    await one.del("c1");
    const given: string[] = [];
    for (let index = 2; index < 6; index++) given.push(await one.add(`c${index}`));
    assert(!given.includes(first), `${first} was given out again at once: ${given}`);
    assertEquals(await one.add("c6"), first);
  });
});

Deno.test("one spare block stays, the others are returned; trim returns that one as well", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/24")], async (node) => {
    const one = node("a");
    for (let index = 0; index < 5; index++) await one.add(`c${index}`);
    assertEquals(blockRecords(store).length, 5);
    for (let index = 0; index < 5; index++) await one.del(`c${index}`);
    assertEquals(blockRecords(store).length, 1);
    await returnSpare(one.pool, { warn: () => {} }, { keep: 0, always: true });
    assertEquals([blockRecords(store), one.blocks()], [[], []]);
  });
});

Deno.test("spare blocks of both families are returned", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/24"), set("fd42::/120")], async (node) => {
    const one = node("a");
    for (const id of ["c1", "c2", "c3"]) await one.add(id);
    for (const id of ["c1", "c2", "c3"]) await one.del(id);
    // One of each family stays, so that the next container costs no request.
    assertEquals(blockRecords(store).length, 2);
    assertEquals(one.blocks().map((line) => line.includes(":")).sort(), [false, true]);
    await returnSpare(one.pool, { warn: () => {} }, { keep: 0, always: true });
    assertEquals([one.warnings, blockRecords(store), one.blocks()], [[], [], []]);
    assertEquals(readBlocks(blocksFile(one.pool)).freed, {});
  });
});

Deno.test("a block is spare only when none of its addresses is in use, however large it is", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("fd42::/64")], async (node) => {
    const one = node("a");
    // The last address of the first /76.
    await one.add("c1", "fd42::f:ffff:ffff:ffff");
    const trimmed = await returnSpare(one.pool, { warn: () => {} }, { keep: 0, always: true });
    assertEquals([trimmed, blockRecords(store)], [[], ["pods/fd42::-76"]]);
    await one.del("c1");
    await returnSpare(one.pool, { warn: () => {} }, { keep: 0, always: true });
    assertEquals(blockRecords(store), []);
  });
});

Deno.test("a block that could not be returned is returned later, and gives out nothing meanwhile", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/24")], async (node) => {
    const one = node("a");
    for (const id of ["c1", "c2", "c3"]) await one.add(id);
    store.interfere = away;
    for (const id of ["c1", "c2", "c3"]) await one.del(id);
    assertEquals(one.blocks().filter((line) => line.endsWith("returning")).length, 2);
    store.interfere = () => {};
    await returnSpare(one.pool, { warn: () => {} }, { keep: 1, always: true });
    assertEquals(blockRecords(store).length, 1);
  });
});

Deno.test("a store restored from an old copy: nothing is given out twice, and what another node has now is lost", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/24", 28)], async (node) => {
    const [one, two] = [node("a"), node("b")];
    await one.add("c1");
    const [key = ""] = blockRecords(store);
    // The copy is older than the block; meanwhile another node got it.
    const revision = store.revision;
    store.revision = 1;
    store.records.set(key, { value: JSON.stringify({ ...two.pool.identity, taken: "", nonce: "n" }), revision: 1 });
    assert(revision > 1);
    const { lost } = await confirmBlocks(one.pool, { warn: (note) => void one.warnings.push(note) });
    assertEquals(lost.map(({ holder }) => holder), ["b"]);
    assert(one.warnings.some((note) => note.includes("belongs to node b")), one.warnings.join());
    const ip = await one.add("c2");
    const block = blockOfKey(key)!;
    assertEquals(formatPrefix({ ...block, address: { ...block.address } }) !== "", true);
    assert(parseAddress(ip)!.value < block.address.value || parseAddress(ip)!.value > block.address.value + 15n);
  });
});

Deno.test("records that went are made again at the next boot", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/24", 28)], async (node) => {
    const one = node("a");
    await one.add("c1");
    const keys = blockRecords(store);
    for (const key of keys) store.records.delete(key);
    await node("a", { identity: { ...one.pool.identity, bootId: "boot2" } }).add("c2");
    assertEquals(blockRecords(store), keys);
  });
});

Deno.test("two networks of one node share a pool: neither gives out the other's addresses", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/24", 28)], async (node) => {
    const [one, two] = [
      node("a"),
      node("a", { folder: `${node("a").pool.folder}-too`, blockFolder: `${node("a").pool.blockFolder}-too` }),
    ];
    const given = [await one.add("c1"), await two.add("c2"), await one.add("c3"), await two.add("c4")];
    assertEquals(new Set(given).size, 4, given.join());
    assertEquals(blockRecords(store).length, 2);
    assertEquals([one.blocks().length, readBlocks(blocksFile(two.pool)).blocks.length], [1, 1]);
  });
});

Deno.test("another machine with this node's name is refused", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/24", 28)], async (node) => {
    await node("a").add("c1");
    const twin = node("a-twin", { identity: { node: "a", machineId: "another", bootId: "boot9" } });
    const error = await assertRejects(() => twin.add("c1"), CniError);
    assertEquals([error.code, error.msg], [7, 'pool "pods": another machine has the node name "a" too']);
  });
});

Deno.test("one name for two pools, as of another cluster's store, is refused; a pool that grows is known to the others", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/25", 28)], async (node) => {
    await node("a").add("c1");
    const before = [...store.records];
    const other = await assertRejects(() => node("b", { sets: [set("10.50.0.0/24", 28)] }).add("c1"), CniError);
    assertEquals(
      [other.code, other.msg],
      [7, 'pool "pods" is 10.50.0.0/24 here, and 10.42.0.0/25 in fake store'],
    );
    assertEquals([...store.records], before);
    await node("c", { sets: [set("10.42.0.0/24", 28)] }).add("c1");
    const clash = await assertRejects(
      () => node("b", { name: "more", sets: [set("10.42.0.128/25")] }).add("c1"),
      CniError,
    );
    assertEquals(clash.msg, 'pool "more" overlaps with pool "pods": 10.42.0.128/25');
  });
});

Deno.test("a store that lets a node in no more takes nothing from it: what it owns is given out, then code 7", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/24", 30)], async (node) => {
    const one = node("a");
    await one.add("c1", "10.42.0.8");
    const before = [...store.records];
    store.interfere = () => Promise.reject(new StoreError("refused", "fake store: the token has expired"));
    // Not confirmed in this boot, nor ever again.
    const later = node("a", { identity: { ...one.pool.identity, bootId: "boot2" } });
    for (const id of ["c2", "c3", "c4"]) await later.add(id);
    assert(later.warnings.some((note) => note.includes("the token has expired")), later.warnings.join());
    const error = await assertRejects(() => later.add("c5"), CniError);
    assertEquals([error.code, error.msg], [7, 'pool "pods": fake store: the token has expired']);
    assertEquals([...store.records], before);
  });
});

Deno.test("one container started over and over asks for a block when all addresses rest, not each time", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/16")], async (node) => {
    const one = node("a");
    for (let index = 0; index < 90; index++) {
      await one.add(`c${index}`);
      await one.del(`c${index}`);
    }
    // 16 addresses a block: six or seven of them taken, and all but one returned.
    assert(store.calls.length <= 3 + 2 * 7, store.calls.join("\n"));
    assertEquals(one.blocks().length, 1);
  });
});

Deno.test("with the store away for an hour nothing changes its owner, whatever the node does meanwhile", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/24", 29)], async (node) => {
    const [one, two] = [node("a"), node("b")];
    await two.add("c1");
    for (const id of ["c1", "c2"]) await one.add(id);
    const [records, blocks] = [[...store.records], one.blocks()];
    const file = blocksFile(one.pool);
    store.interfere = away;
    for (let minute = 0; minute < 60; minute++) {
      await one.add("guest");
      await one.del("guest");
      await returnSpare(one.pool, { warn: () => {} }, { keep: 1 });
      // A minute goes by: all that tells the time is in this file.
      const state = readBlocks(file);
      const earlier = (at: number) => at === 0 ? 0 : at - 60_000;
      const freed = Object.fromEntries(Object.entries(state.freed).map(([ip, at]) => [ip, earlier(at)]));
      writeBlocks(file, { ...state, freed, failed: earlier(state.failed) });
    }
    assertEquals([[...store.records], one.blocks()], [records, blocks]);
    store.interfere = () => {};
    await confirmBlocks(one.pool, { warn: (note) => void one.warnings.push(note) });
    assertEquals([[...store.records], one.blocks(), one.warnings], [records, blocks, []]);
  });
});

Deno.test("another block size and an overlapping pool are refused", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/24", 28)], async (node) => {
    await node("a").add("c1");
    const size = await assertRejects(() => node("b", { sets: [set("10.42.0.0/24", 27)] }).add("c1"), CniError);
    assertEquals(size.msg, 'pool "pods": "blockSize" is 27 here, and the pool has blocks of /28');
    const other = await assertRejects(
      () => node("b", { name: "more", sets: [set("10.42.0.0/16")] }).add("c1"),
      CniError,
    );
    assertEquals(other.msg, 'pool "more" overlaps with pool "pods": 10.42.0.0/16');
  });
});

Deno.test("an unreadable record's block belongs to nobody that could give it out", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/30", 32)], async (node) => {
    // The only address beside the gateway.
    store.records.set("pods/10.42.0.2-32", { value: "by hand", revision: 2 });
    const error = await assertRejects(() => node("a").add("c1"), CniError);
    assertEquals(error.code, 100);
  });
});

Deno.test("of two families with one full, nothing is taken", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("fd42::/64"), set("10.42.0.0/30", 32)], async (node) => {
    const one = node("a");
    await one.add("c1");
    await assertRejects(() => one.add("c2"), CniError);
    assertEquals(
      [...Deno.readDirSync(one.pool.folder)].map(({ name }) => name).filter((name) => /[.:]/.test(name)).length,
      2,
    );
  });
});

Deno.test("an address that was asked for comes out of its block, or the error names who has it", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/24", 28)], async (node) => {
    const [one, two] = [node("a"), node("b")];
    assertEquals(await one.add("c1", "10.42.0.77"), "10.42.0.77");
    const taken = await assertRejects(() => one.add("c2", "10.42.0.77"), CniError);
    assertEquals(taken.details, "it is held by container c1 on this node");
    const foreign = await assertRejects(() => two.add("c3", "10.42.0.70"), CniError);
    assertEquals(foreign.details, "its block is held by node a");
  });
});

Deno.test("a damaged blocks' file gives out nothing", async () => {
  const store = new FakeStore();
  await withNodes(store, [set("10.42.0.0/24", 28)], async (node) => {
    const one = node("a");
    await one.add("c1");
    Deno.writeTextFileSync(blocksFile(one.pool), "{");
    const error = await assertRejects(() => one.add("c2"), CniError);
    assertEquals(error.code, 5);
    writeBlocks(blocksFile(one.pool), { blocks: [], revision: "0", bootId: "", freed: {}, failed: 0 });
    // Found again by its record.
    await one.add("c3");
    assertEquals(blockRecords(store).length, 1);
  });
});
