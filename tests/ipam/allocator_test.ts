import { assert, assertEquals, assertMatch, assertRejects, assertStringIncludes } from "@std/assert";
import { CniError } from "../../lib/cni/error.ts";
import type { Perform } from "../../lib/kernel/plan.ts";
import type { Output, Run } from "../../lib/kernel/run.ts";
import { netnsAnswers } from "../fakes/netns_answers.ts";
import { begin, held, release, releaseOnly } from "../../lib/ipam/allocator.ts";
import { collect, leases, usage } from "../../lib/ipam/lease_upkeep.ts";
import { type RangeConf, rangeSets } from "../../lib/ipam/range.ts";
import { formatAddress, parseAddress } from "../../lib/net/cidr.ts";
import { exists, type Folder, holdLock, inFolder } from "./support.ts";

const CTR = { containerId: "ctr1", ifName: "eth0" };
const LONG_AGO = new Date("2001-02-03T04:05:06Z");

function sets(...confs: (RangeConf | RangeConf[])[]) {
  const all = confs.map((conf) => Array.isArray(conf) ? conf : [conf]);
  return rangeSets(all, { version: "1.0.0", atLeast030: true, warn: () => {} });
}

const SMALL = sets({ subnet: "10.0.0.0/29" });
const DUAL = sets({ subnet: "10.0.0.0/29" }, { subnet: "fd00::/126" });

const allocate = async (...args: Parameters<typeof begin>) => await (await begin(...args)).commit();

/** Takes addresses for a container named after its number, and returns them. */
async function take(
  { path, options }: Folder,
  id: string,
  wanted: { sets?: ReturnType<typeof sets>; requested?: string[]; ifName?: string; host?: Run } = {},
): Promise<string[]> {
  const { requested = [], ifName = "eth0", ...others } = wanted;
  const { sets = SMALL, ...host } = others;
  const addresses = requested.map((text) => parseAddress(text)!);
  const taken = await allocate(path, { containerId: id, ifName }, {
    ...options,
    ...host,
    wanted: () => ({ sets, requested: addresses }),
  });
  return taken.map(({ address }) => formatAddress(address));
}

async function refusal(work: Promise<unknown>): Promise<CniError> {
  return await assertRejects(() => work, CniError);
}

/** A host with one namespace, which answers so. */
function hostAnswering(answer: Partial<Output>): Run {
  const said = (output: Partial<Output>): Output => ({ code: 0, signal: null, stdout: "", stderr: "", ...output });
  return netnsAnswers((command) => {
    if (command.startsWith("lsns ")) return said({ stdout: "4026531840 1\n" });
    if (command.startsWith("findmnt ")) return said({ code: 1 });
    throw new Error(`unexpected: ${command}`);
  }, (path) => {
    assertEquals(path, "/proc/1/ns/net");
    return said(answer);
  });
}

/** A host on which these addresses are in use. */
function hostWith(...addresses: string[]): Run {
  const addr_info = addresses.map((local) => ({ local }));
  return hostAnswering({ stdout: JSON.stringify([{ ifname: "eth0", addr_info }]) });
}

Deno.test("allocate writes the reference's files, to the byte", () =>
  inFolder(async (folder) => {
    assertEquals(await take(folder, "ctr1", { sets: DUAL }), ["10.0.0.2", "fd00::2"]);
    assertEquals(folder.names(), ["10.0.0.2", "fd00::2", "last_reserved_ip.0", "last_reserved_ip.1", "lock"]);
    assertEquals(folder.read("10.0.0.2"), "ctr1\r\neth0");
    assertEquals(folder.read("fd00::2"), "ctr1\r\neth0");
    assertEquals(folder.read("last_reserved_ip.0"), "10.0.0.2");
    assertEquals(folder.read("last_reserved_ip.1"), "fd00::2");
    assertEquals(folder.read("lock"), "");
    const modes = folder.names().map((name) => Deno.lstatSync(`${folder.path}/${name}`).mode! & 0o777 & ~Deno.umask());
    assertEquals(modes, [0o600, 0o600, 0o600, 0o600, 0o750 & ~Deno.umask()]);
    for (const name of ["10.0.0.2", "fd00::2"]) assertEquals(Deno.lstatSync(`${folder.path}/${name}`).nlink, 1, name);
    assertEquals(Deno.lstatSync(folder.path).mode! & 0o777, 0o755 & ~Deno.umask());
    assertEquals(folder.warnings, []);
  }));

/** The early result of `begin`, with the files that were there then, and what `commit` answers. */
async function beginAndCommit(
  folder: Folder,
  id: string,
  { wanted = SMALL, requested = [], meddle = () => {} }: {
    wanted?: ReturnType<typeof sets>;
    requested?: string[];
    meddle?: () => void;
  } = {},
): Promise<{ early: string[] | undefined; there: string[]; answer: string[] | CniError }> {
  const taking = await begin(folder.path, { containerId: id, ifName: "eth0" }, {
    wanted: () => ({ sets: wanted, requested: requested.map((text) => parseAddress(text)!) }),
    ...folder.options,
    host: hostWith(),
  });
  const early = taking.candidates?.map(({ address }) => formatAddress(address));
  const there = folder.names().filter((name) => parseAddress(name));
  meddle();
  const answer = await taking.commit()
    .then((taken) => taken.map(({ address }) => formatAddress(address)), (error: CniError) => error);
  return { early, there, answer };
}

Deno.test("what will be taken is known before a lease is written", () =>
  inFolder(async (folder) => {
    const one = await beginAndCommit(folder, "a");
    assertEquals(one, { early: ["10.0.0.2"], there: [], answer: ["10.0.0.2"] });
    const next = await beginAndCommit(folder, "b", { wanted: DUAL });
    assertEquals(next.early, ["10.0.0.3", "fd00::2"]);
    assertEquals(next.there, ["10.0.0.2"]);
    assertEquals(next.answer, next.early);
    const asked = await beginAndCommit(folder, "c", { requested: ["10.0.0.6"] });
    assertEquals([asked.early, asked.answer], [["10.0.0.6"], ["10.0.0.6"]]);
  }));

Deno.test("there is no early result where nothing can be given", () =>
  inFolder(async (folder) => {
    await take(folder, "a");
    for (
      const [id, requested] of [
        ["b", ["10.0.0.2"]],
        ["b", ["10.0.0.1"]],
        ["b", ["10.0.0.3", "192.0.2.1"]],
      ] as const
    ) {
      const { early, answer } = await beginAndCommit(folder, id, { requested: [...requested] });
      assertEquals(early, undefined, `${requested}`);
      assert(answer instanceof CniError, `${requested}`);
    }
    for (const id of ["b", "c", "d", "e"]) await take(folder, id);
    const full = await beginAndCommit(folder, "f");
    assertEquals(full.early, undefined);
    assert(full.answer instanceof CniError);
  }));

Deno.test("an early result may still be refused: to who has an address already", () =>
  inFolder(async (folder) => {
    await take(folder, "a");
    const { early, answer } = await beginAndCommit(folder, "a");
    assertEquals(early, ["10.0.0.3"]);
    assertStringIncludes(answer instanceof CniError ? answer.msg : "", "duplicate allocation");
    assertEquals(folder.names().filter((name) => parseAddress(name)), ["10.0.0.2"]);
  }));

Deno.test("what somebody takes without the lock, after the early result, is not given out", () =>
  inFolder(async (folder) => {
    const { early, answer } = await beginAndCommit(folder, "a", {
      meddle: () => folder.write("10.0.0.2", "x\r\neth0"),
    });
    assertEquals([early, answer], [["10.0.0.2"], ["10.0.0.3"]]);
    assertEquals(folder.read("10.0.0.2"), "x\r\neth0");
  }));

Deno.test("a taking that is abandoned takes nothing, and releases the lock", () =>
  inFolder(async (folder) => {
    const wanted = () => ({ sets: SMALL, requested: [] });
    const taking = await begin(folder.path, CTR, { wanted, ...folder.options, host: hostWith() });
    taking.abandon();
    taking.abandon();
    assertEquals(folder.names().filter((name) => parseAddress(name)), []);
    assertEquals(await take(folder, "a"), ["10.0.0.2"]);
  }));

Deno.test("allocate names IPv6 files as RFC 5952 says", () =>
  inFolder(async (folder) => {
    const six = sets({ subnet: "2001:DB8:0:0:1:0:0:0/112" });
    assertEquals(await take(folder, "ctr1", { sets: six, requested: ["2001:0db8::1:0:0:00ff"] }), [
      "2001:db8::1:0:0:ff",
    ]);
    assert(folder.names().includes("2001:db8::1:0:0:ff"));
  }));

Deno.test("allocate goes round, and takes a released address last", () =>
  inFolder(async (folder) => {
    assertEquals(await take(folder, "a"), ["10.0.0.2"]);
    assertEquals(await take(folder, "b"), ["10.0.0.3"]);
    await release(folder.path, { containerId: "a", ifName: "eth0" }, folder.options);
    for (const [id, ip] of [["c", "4"], ["d", "5"], ["e", "6"], ["f", "2"]] as const) {
      assertEquals(await take(folder, id), [`10.0.0.${ip}`]);
    }
    const error = await refusal(take(folder, "g"));
    assertEquals(
      error.msg,
      "failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1-10.0.0.6",
    );
    assertStringIncludes(error.details, "5 of 5 addresses are taken");
    assertEquals(error.code, 999);
    // All but its own address taken: that one is found at the end of the round.
    await release(folder.path, { containerId: "f", ifName: "eth0" }, folder.options);
    assertEquals(folder.read("last_reserved_ip.0"), "10.0.0.2");
    assertEquals(await take(folder, "h"), ["10.0.0.2"]);
  }));

Deno.test("allocate starts behind the cursor, if there is one that says something", () =>
  inFolder(async (folder) => {
    const table: [string | undefined, string][] = [
      ["10.0.0.3", "10.0.0.4"],
      ["10.0.0.6", "10.0.0.2"],
      ["10.0.0.1", "10.0.0.2"],
      ["10.0.0.7", "10.0.0.2"],
      ["10.9.9.9", "10.0.0.2"],
      ["fd00::3", "10.0.0.2"],
      ["10.0.0.3\n", "10.0.0.2"],
      ["garbage", "10.0.0.2"],
      ["", "10.0.0.2"],
      ["::ffff:10.0.0.3", "10.0.0.4"],
      ["10.0.0.3-and-much-more-than-an-address", "10.0.0.2"],
    ];
    for (const [cursor, ip] of table) {
      folder.write("last_reserved_ip.0", cursor!);
      assertEquals(await take(folder, "ctr1"), [ip], cursor);
      assertEquals(folder.read("last_reserved_ip.0"), ip);
      await release(folder.path, CTR, folder.options);
    }
    assertEquals(folder.warnings, []);
  }));

Deno.test("allocate does without a cursor that is no file, and tells", () =>
  inFolder(async (folder) => {
    folder.write("x", "");
    for (const make of [Deno.mkdirSync, (path: string) => Deno.symlinkSync(`${folder.path}/x`, path)]) {
      make(`${folder.path}/last_reserved_ip.0`);
      assertEquals(await take(folder, "ctr1"), ["10.0.0.2"]);
      assertEquals(folder.warnings.length, 2);
      assertStringIncludes(folder.warnings[0]!, "Error retrieving last reserved ip");
      folder.warnings.length = 0;
      Deno.removeSync(`${folder.path}/last_reserved_ip.0`);
      await release(folder.path, CTR, folder.options);
    }
    assertEquals(folder.read("x"), "");
  }));

Deno.test("allocate hops to the next range of a set", () =>
  inFolder(async (folder) => {
    const two = sets([{ subnet: "10.0.0.0/30" }, { subnet: "10.0.1.0/29" }]);
    assertEquals(await take(folder, "a", { sets: two }), ["10.0.0.2"]);
    assertEquals(await take(folder, "b", { sets: two }), ["10.0.1.2"]);
    for (const id of ["c", "d", "e", "f"]) await take(folder, id, { sets: two });
    const { msg } = await refusal(take(folder, "g", { sets: two }));
    assertStringIncludes(msg, "in range set: 10.0.0.1-10.0.0.2,10.0.1.1-10.0.1.6");
  }));

Deno.test("a repeated ADD fails, in the reference's words", () =>
  inFolder(async (folder) => {
    await take(folder, "ctr1");
    const error = await refusal(take(folder, "ctr1", { host: hostWith("10.0.0.2") }));
    const words = "10.0.0.2 has been allocated to ctr1, duplicate allocation is not allowed";
    assertEquals(error.msg, `failed to allocate for range 0: ${words}`);
    assertStringIncludes(error.details, "held by container ctr1, interface eth0 since 20");
    assertStringIncludes(error.details, "in use in /proc/1/ns/net");
    assertStringIncludes(error.details, "cnibox ipam repair");
    const other = await refusal(take(folder, "ctr1", { host: hostWith("10.0.0.3") }));
    assertStringIncludes(other.details, "in no network namespace of this host");
    // What cannot be found out is left out.
    assertEquals((await refusal(take(folder, "ctr1"))).msg, error.msg);
    assertEquals(await take(folder, "ctr1", { ifName: "eth1" }), ["10.0.0.3"]);
    assertEquals(folder.names(), ["10.0.0.2", "10.0.0.3", "last_reserved_ip.0", "lock"]);
  }));

Deno.test("an old lease of the container counts for every interface", () =>
  inFolder(async (folder) => {
    for (const text of ["ctr1", "ctr1\n", " ctr1 \r\n"]) {
      folder.write("10.0.0.5", text);
      const { msg } = await refusal(take(folder, "ctr1", { ifName: "net7" }));
      assertStringIncludes(msg, "10.0.0.5 has been allocated to ctr1");
    }
    // An address of another set is no obstacle.
    assertEquals(await take(folder, "ctr1", { sets: sets({ subnet: "10.7.0.0/24" }) }), ["10.7.0.2"]);
  }));

Deno.test("a lease with a bare line feed is nobody's", () =>
  inFolder(async (folder) => {
    folder.write("10.0.0.2", "ctr1\neth0");
    assertEquals(await take(folder, "ctr1"), ["10.0.0.3"]);
    assertEquals(await release(folder.path, CTR, folder.options), ["10.0.0.3"]);
    assert(folder.names().includes("10.0.0.2"));
  }));

Deno.test("requested addresses are taken, one per set", () =>
  inFolder(async (folder) => {
    assertEquals(await take(folder, "a", { sets: DUAL, requested: ["fd00::3", "10.0.0.5"] }), ["10.0.0.5", "fd00::3"]);
    assertEquals(folder.read("last_reserved_ip.0"), "10.0.0.5");
    assertEquals(await take(folder, "b", { sets: DUAL }), ["10.0.0.6", "fd00::2"]);
    // Another one of the same container: requests do not ask what it has.
    assertEquals(await take(folder, "a", { requested: ["10.0.0.4"] }), ["10.0.0.4"]);
    assertEquals((await release(folder.path, { containerId: "a", ifName: "eth0" }, folder.options)).sort(), [
      "10.0.0.4",
      "10.0.0.5",
      "fd00::3",
    ]);
  }));

Deno.test("requested addresses that cannot be had are refused in the reference's words", () =>
  inFolder(async (folder) => {
    await take(folder, "a", { requested: ["10.0.0.5"] });
    const table: [string, string[], string][] = [
      ["b", ["10.0.0.5"], "requested IP address 10.0.0.5 is not available in range set 10.0.0.1-10.0.0.6"],
      ["a", ["10.0.0.5"], "requested IP address 10.0.0.5 is not available in range set 10.0.0.1-10.0.0.6"],
      ["b", ["10.0.0.1"], "requested ip 10.0.0.1 is subnet's gateway"],
    ];
    for (const [id, requested, msg] of table) {
      assertEquals((await refusal(take(folder, id, { requested }))).msg, `failed to allocate for range 0: ${msg}`);
    }
    assertStringIncludes(
      (await refusal(take(folder, "b", { requested: ["10.0.0.5"] }))).details,
      "held by container a, interface eth0",
    );
    const left: [string[], string][] = [
      [["10.0.9.1"], "10.0.9.1"],
      [["10.0.0.0"], "10.0.0.0"],
      [["10.0.0.7"], "10.0.0.7"],
      [["10.0.0.2", "10.0.0.3"], "10.0.0.3"],
      [["10.0.9.1", "10.0.9.2"], "10.0.9.1 10.0.9.2"],
      [["fd00::2"], "fd00::2"],
    ];
    for (const [requested, ips] of left) {
      const { msg } = await refusal(take(folder, "b", { requested }));
      assertEquals(msg, `failed to allocate all requested IPs: ${ips}`);
      assertEquals(await held(folder.path, { containerId: "b", ifName: "eth0" }, folder.options), []);
    }
    assertEquals(folder.names(), ["10.0.0.5", "last_reserved_ip.0", "lock"]);
  }));

Deno.test("network and broadcast address are taken when the range names them", () =>
  inFolder(async (folder) => {
    const all = sets({ subnet: "10.0.0.0/30", rangeStart: "10.0.0.0", rangeEnd: "10.0.0.3" });
    assertEquals(await take(folder, "a", { sets: all, requested: ["10.0.0.3"] }), ["10.0.0.3"]);
    assertEquals(await take(folder, "b", { sets: all }), ["10.0.0.0"]);
    assertEquals(await take(folder, "c", { sets: all }), ["10.0.0.2"]);
  }));

Deno.test("both families or none", () =>
  inFolder(async (folder) => {
    await take(folder, "a", { sets: DUAL });
    await take(folder, "b", { sets: DUAL });
    const { msg } = await refusal(take(folder, "c", { sets: DUAL }));
    assertEquals(msg, "failed to allocate for range 1: no IP addresses available in range set: fd00::1-fd00::3");
    assertEquals(folder.names().filter((name) => /^[0-9]/.test(name)), ["10.0.0.2", "10.0.0.3"]);
    // As in the reference, the round robin has moved.
    assertEquals(folder.read("last_reserved_ip.0"), "10.0.0.4");
  }));

Deno.test("a failed ADD takes back what it took, and nothing else of the same container", () =>
  inFolder(async (folder) => {
    await take(folder, "ctr1", { requested: ["10.0.0.6"] });
    folder.write("fd00::2", "x\r\neth0");
    await refusal(take(folder, "ctr1", { sets: DUAL, requested: ["10.0.0.3", "fd00::2"] }));
    assertEquals(await held(folder.path, CTR, folder.options), ["10.0.0.6"]);
  }));

Deno.test("release finds old leases only when there are no new ones", () =>
  inFolder(async (folder) => {
    folder.write("10.0.0.2", "ctr1\r\neth0");
    folder.write("10.0.0.3", "ctr1");
    folder.write("10.0.0.4", "ctr1\r\neth1");
    folder.write("10.0.0.5", "ctr10");
    assertEquals(await release(folder.path, CTR, folder.options), ["10.0.0.2"]);
    assertEquals(await release(folder.path, CTR, folder.options), ["10.0.0.3"]);
    assertEquals(await release(folder.path, CTR, folder.options), []);
    assertEquals(folder.names(), ["10.0.0.4", "10.0.0.5", "lock"]);
  }));

Deno.test("release looks at files that are named by an address, and at no others", () =>
  inFolder(async (folder) => {
    const mine = "10.0.0.254";
    const others = ["last_reserved_ip.0", "lock", "notes", "FD00::2", "010.0.0.3", "10.0.0.3.bak"];
    for (const name of others) folder.write(name, mine);
    Deno.mkdirSync(`${folder.path}/10.0.0.9`);
    Deno.mkdirSync(`${folder.path}/below`);
    Deno.writeTextFileSync(`${folder.path}/below/10.0.0.8`, mine);
    Deno.symlinkSync(`${folder.path}/notes`, `${folder.path}/10.0.0.7`);
    folder.write("10.0.0.6", mine);
    assertEquals(await release(folder.path, { containerId: mine, ifName: "eth0" }, folder.options), ["10.0.0.6"]);
    assertEquals(folder.names(), ["10.0.0.7", "10.0.0.9", ...others, "below"].sort());
    assertEquals([...Deno.readDirSync(`${folder.path}/below`)].length, 1);
  }));

Deno.test("nothing is waited for that stands in an address's place", () =>
  inFolder(async (folder) => {
    folder.write("x", "");
    await new Deno.Command("mkfifo", { args: [`${folder.path}/10.0.0.2`, `${folder.path}/10.0.0.3`] }).output();
    Deno.mkdirSync(`${folder.path}/10.0.0.4`);
    Deno.symlinkSync("/dev/zero", `${folder.path}/10.0.0.5`);
    assertEquals(await take(folder, "a"), ["10.0.0.6"]);
    const full = await refusal(take(folder, "b"));
    assertStringIncludes(full.details, "5 of 5 addresses are taken");
    const { details } = await refusal(take(folder, "b", { requested: ["10.0.0.2"] }));
    assertEquals(details, `${folder.path}/10.0.0.2 is in the way`);
    assertEquals((await leases(folder.path, folder.options)).map(({ ip }) => ip), ["10.0.0.6"]);
  }));

Deno.test("DEL and CHECK of a network without a folder make none", () =>
  inFolder(async (folder) => {
    assertEquals(await release(folder.path, CTR, folder.options), []);
    assertEquals(await held(folder.path, CTR, folder.options), []);
    assertEquals(await leases(folder.path, folder.options), []);
    assertEquals(await collect(folder.path, [], folder.options), []);
    assertEquals(await usage(folder.path, SMALL, folder.options), []);
    assertEquals(exists(folder.path), false);
    assertEquals(exists(folder.options.indexFolder), false);
  }));

Deno.test("what a killed call left is in nobody's way", () =>
  inFolder(async (folder) => {
    // Killed after its link: the draft is another name of the lease, and must not be written to.
    await take(folder, "a");
    Deno.linkSync(`${folder.path}/10.0.0.2`, `${folder.path}/.cnibox-lease`);
    assertEquals(await take(folder, "b"), ["10.0.0.3"]);
    assertEquals(folder.read("10.0.0.2"), "a\r\neth0");
    // Killed while it wrote.
    folder.write(".cnibox-lease", "ct");
    assertEquals(await take(folder, "c"), ["10.0.0.4"]);
    assertEquals(folder.names(), ["10.0.0.2", "10.0.0.3", "10.0.0.4", "last_reserved_ip.0", "lock"]);
    // A link in its place is not followed.
    Deno.symlinkSync(`${folder.path}/10.0.0.2`, `${folder.path}/.cnibox-lease`);
    assertEquals(await take(folder, "d"), ["10.0.0.5"]);
    assertEquals(folder.read("10.0.0.2"), "a\r\neth0");
  }));

Deno.test("an empty lease is free when it is asked for, or when nothing else is", () =>
  inFolder(async (folder) => {
    for (const [n, text] of ["", "\n", "\0\0\0\0", " \r\n"].entries()) folder.write(`10.0.0.${n + 2}`, text);
    assertEquals(await take(folder, "a", { requested: ["10.0.0.3"] }), ["10.0.0.3"]);
    assertEquals(folder.read("10.0.0.3"), "a\r\neth0");
    assertEquals(await take(folder, "b"), ["10.0.0.6"]);
    assertEquals(folder.warnings, []);
    assertEquals(await take(folder, "c"), ["10.0.0.2"]);
    assertEquals(folder.warnings.map((note) => note.split(":")[0]), ["10.0.0.2", "10.0.0.4", "10.0.0.5"]);
    assertEquals(folder.names(), ["10.0.0.2", "10.0.0.3", "10.0.0.6", "last_reserved_ip.0", "lock"]);
  }));

/** Fills the range with leases of container `dead-N` that were written long ago. */
function fillLongAgo(folder: Folder): void {
  for (const n of [2, 3, 4, 5, 6]) {
    folder.write(`10.0.0.${n}`, `dead-${n}\r\neth0`);
    Deno.utimeSync(`${folder.path}/10.0.0.${n}`, LONG_AGO, LONG_AGO);
  }
}

Deno.test("a full range releases what is provably dead, and tells", () =>
  inFolder(async (folder) => {
    fillLongAgo(folder);
    // Written since this boot; in use; known to a runtime, on another network, with dashes all over.
    folder.write("10.0.0.2", "alive\r\neth0");
    const host = hostWith("10.0.0.3", "127.0.0.1");
    const [results] = folder.options.resultsFolders;
    Deno.mkdirSync(results!, { recursive: true });
    Deno.writeTextFileSync(`${results}/other-net-dead-4-net-1`, "{}");
    assertEquals(await take(folder, "new", { host }), ["10.0.0.5"]);
    assertEquals(folder.names(), ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "last_reserved_ip.0", "lock"]);
    assertEquals(folder.read("10.0.0.5"), "new\r\neth0");
    assertEquals(folder.warnings.map((note) => note.slice(0, 58)), [
      "10.0.0.5: reclaimed from container dead-5, interface eth0,",
      "10.0.0.6: reclaimed from container dead-6, interface eth0,",
    ]);
  }));

Deno.test("nothing is taken back while an address is free", () =>
  inFolder(async (folder) => {
    fillLongAgo(folder);
    Deno.removeSync(`${folder.path}/10.0.0.6`);
    assertEquals(await take(folder, "new"), ["10.0.0.6"]);
    assertEquals(folder.names().length, 7);
    assertEquals(folder.warnings, []);
  }));

Deno.test("nothing is taken back when it cannot be proved, and the error counts the suspects", () =>
  inFolder(async (folder) => {
    fillLongAgo(folder);
    const blind = await refusal(take(folder, "new"));
    assertStringIncludes(blind.details, "5 of 5 addresses are taken, 5 may be left over from before this boot");
    assertStringIncludes(
      blind.details,
      "cannot be proved: the namespaces of processes could not be looked at: no child",
    );
    const inUse = hostWith("10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6");
    const { details } = await refusal(take(folder, "new", { host: inUse }));
    assertStringIncludes(details, "5 may be left over from before this boot, but their addresses are in use");
    assertEquals(folder.names().length, 6);
    assertEquals(folder.warnings, []);
  }));

Deno.test("a namespace that cannot be asked proves nothing", () =>
  inFolder(async (folder) => {
    fillLongAgo(folder);
    const host = hostAnswering({ code: 1, stderr: "nsenter: cannot open: Permission denied" });
    const { details } = await refusal(take(folder, "new", { host }));
    assertMatch(details, /cannot be proved: \/proc\/\d+\/ns\/net could not be looked at: .*Permission denied/);
    assertEquals(folder.names().length, 6);
  }));

Deno.test("collect keeps the valid, and what is no lease", () =>
  inFolder(async (folder) => {
    folder.write("10.0.0.2", "a\r\neth0");
    folder.write("10.0.0.3", "a\r\neth1");
    folder.write("10.0.0.4", "b");
    folder.write("10.0.0.5", "c");
    folder.write("10.0.0.6", "");
    folder.write("notes", "a\r\neth1");
    folder.write("last_reserved_ip.0", "10.0.0.6");
    const valid = [{ containerID: "a", ifname: "eth0" }, { containerID: "b", ifname: "eth9" }];
    assertEquals((await collect(folder.path, valid, folder.options)).map(({ ip }) => ip), [
      "10.0.0.3",
      "10.0.0.5",
      "10.0.0.6",
    ]);
    assertEquals(folder.names(), ["10.0.0.2", "10.0.0.4", "last_reserved_ip.0", "lock", "notes"]);
    assertEquals((await collect(folder.path, [], folder.options)).length, 2);
    assertEquals(folder.names(), ["last_reserved_ip.0", "lock", "notes"]);
  }));

Deno.test("leases tells who has what since when, in the order of addresses", () =>
  inFolder(async (folder) => {
    folder.write("10.0.0.10", "a\r\neth0");
    folder.write("10.0.0.9", "b\n");
    folder.write("fd00::2", "");
    Deno.utimeSync(`${folder.path}/10.0.0.9`, LONG_AGO, LONG_AGO);
    const all = await leases(folder.path, folder.options);
    assertEquals(all.map(({ ip, containerId, ifName }) => [ip, containerId, ifName]), [
      ["10.0.0.9", "b", undefined],
      ["10.0.0.10", "a", "eth0"],
      ["fd00::2", "", undefined],
    ]);
    assertEquals(all[0]!.written, LONG_AGO);
  }));

Deno.test("releaseOnly leaves the container's other addresses alone, and those of others", () =>
  inFolder(async (folder) => {
    for (const ip of ["10.0.0.2", "10.0.0.3"]) folder.write(ip, "ctr1\r\neth0");
    folder.write("10.0.0.4", "x\r\neth0");
    await releaseOnly(folder.path, CTR, { ...folder.options, ips: ["10.0.0.3", "10.0.0.4", "10.0.0.5"] });
    assertEquals(folder.names(), ["10.0.0.2", "10.0.0.4", "lock"]);
  }));

Deno.test("explained, allocating and releasing tell what they would do, and touch nothing", () =>
  inFolder(async (folder) => {
    const told: string[] = [];
    const perform: Perform = (effect) => {
      if (effect && "file" in effect) told.push(effect.file.slice(folder.path.length + 1));
      return undefined;
    };
    const options = { ...folder.options, perform };
    const show = (requested: string[] = []) => take({ ...folder, options }, "ctr1", { sets: DUAL, requested });
    assertEquals(await release(folder.path, CTR, options), []);
    assertEquals(await show(), ["10.0.0.2", "fd00::2"]);
    assertEquals(told.splice(0), ["10.0.0.2", "last_reserved_ip.0", "fd00::2", "last_reserved_ip.1"]);
    assertEquals(exists(folder.path), false);
    await take(folder, "a", { sets: DUAL });
    const before = folder.names();
    assertEquals(await show(["fd00::3"]), ["10.0.0.3", "fd00::3"]);
    assertEquals(await show(), ["10.0.0.3", "fd00::3"]);
    await assertRejects(() => show(["fd00::2"]), CniError, "requested IP address fd00::2 is not available");
    told.length = 0;
    assertEquals(await release(folder.path, { containerId: "a", ifName: "eth0" }, options), ["10.0.0.2", "fd00::2"]);
    assertEquals(told, ["10.0.0.2", "fd00::2"]);
    assertEquals(folder.names(), before);
  }));

Deno.test("usage tells which sets are full", () =>
  inFolder(async (folder) => {
    await take(folder, "a", { sets: DUAL });
    assertEquals(await usage(folder.path, DUAL, folder.options), []);
    await take(folder, "b", { sets: DUAL });
    const notes = await usage(folder.path, DUAL, folder.options);
    assertEquals(notes, ["no IP addresses available in range set: fd00::1-fd00::3: all 2 are taken"]);
  }));

Deno.test("a nearly full range is no loop", () =>
  inFolder(async (folder) => {
    const wide = sets({ subnet: "10.0.0.0/22" });
    for (let n = 2; n < 1020; n++) folder.write(`10.0.${n >> 8}.${n & 255}`, `x${n}\r\neth0`);
    folder.write("last_reserved_ip.0", "10.0.0.9");
    assertEquals(await take(folder, "a", { sets: wide }), ["10.0.3.252"]);
    const six = sets({ subnet: "fd00::/64" });
    folder.write("last_reserved_ip.0", "fd00::ffff:ffff:ffff:fffe");
    assertEquals(await take(folder, "b", { sets: six }), ["fd00::ffff:ffff:ffff:ffff"]);
    assertEquals(await take(folder, "c", { sets: six }), ["fd00::2"]);
  }));

Deno.test("whatever another program does in between, the answers are right", () =>
  inFolder(async (folder) => {
    // Each step is one that the reference could take, right before ours.
    await take(folder, "a");
    folder.write("10.0.0.3", "b\r\neth0");
    assertEquals(await release(folder.path, { containerId: "b", ifName: "eth0" }, folder.options), ["10.0.0.3"]);
    folder.write("10.0.0.3", "c\r\neth0");
    assertStringIncludes((await refusal(take(folder, "c"))).msg, "10.0.0.3 has been allocated to c");
    assertEquals(await take(folder, "d"), ["10.0.0.4"]);
    Deno.removeSync(`${folder.path}/10.0.0.4`);
    assertEquals(await held(folder.path, { containerId: "d", ifName: "eth0" }, folder.options), []);
    assertEquals(await take(folder, "d"), ["10.0.0.5"]);
    // Written into, which the folder does not show: what the index names is read before it is believed.
    folder.write("10.0.0.5", "e\r\neth0");
    assertEquals(await release(folder.path, { containerId: "d", ifName: "eth0" }, folder.options), []);
    assertEquals(await held(folder.path, { containerId: "e", ifName: "eth0" }, folder.options), ["10.0.0.5"]);
    Deno.removeSync(folder.path, { recursive: true });
    assertEquals(await take(folder, "a"), ["10.0.0.2"]);
  }));

Deno.test("the index stays right through any mixture of calls, ours and others'", () =>
  inFolder(async (folder) => {
    const wide = sets({ subnet: "10.0.0.0/24" });
    const model = new Map<string, string>();
    let seed = 42;
    const random = (n: number) => (seed = seed * 1103515245 + 12345 & 0x7fff_ffff) % n;
    for (let step = 0; step < 600; step++) {
      const id = `c${random(60)}`, holder = { containerId: id, ifName: "eth0" };
      const own = model.get(id);
      switch (random(4)) {
        case 0:
          if (own !== undefined) await refusal(take(folder, id, { sets: wide }));
          else model.set(id, (await take(folder, id, { sets: wide }))[0]!);
          break;
        case 1:
          assertEquals(await release(folder.path, holder, folder.options), own === undefined ? [] : [own]);
          model.delete(id);
          break;
        case 2:
          assertEquals(await held(folder.path, holder, folder.options), own === undefined ? [] : [own]);
          break;
        default:
          // Another program takes and releases.
          if (random(3) > 0) break;
          if (own !== undefined) {
            Deno.removeSync(`${folder.path}/${own}`);
            model.delete(id);
          } else {
            const ip = `10.0.0.${2 + random(250)}`;
            if (![...model.values()].includes(ip)) {
              folder.write(ip, `${id}\r\neth0`);
              model.set(id, ip);
            }
          }
      }
    }
    const files = folder.names().filter((name) => name.startsWith("10."));
    assertEquals(files.sort(), [...model.values()].sort());
  }));

Deno.test("the index is gone with the last lease, and nothing needs it", () =>
  inFolder(async (folder) => {
    await take(folder, "a");
    const index = () => [...Deno.readDirSync(folder.options.indexFolder)].map(({ name }) => name);
    assertEquals(index().length, 1);
    for (const harm of ["", "garbage"]) {
      Deno.writeTextFileSync(`${folder.options.indexFolder}/${index()[0]}`, harm);
      assertEquals(await held(folder.path, { containerId: "a", ifName: "eth0" }, folder.options), ["10.0.0.2"]);
    }
    await release(folder.path, { containerId: "a", ifName: "eth0" }, folder.options);
    assertEquals(index(), []);
    // Where none can be kept, all is found by reading.
    const without = { ...folder, options: { ...folder.options, indexFolder: `${folder.path}/lock` } };
    assertEquals(await take(without, "b"), ["10.0.0.3"]);
    assertEquals(await held(folder.path, { containerId: "b", ifName: "eth0" }, without.options), ["10.0.0.3"]);
    assertEquals(folder.names(), ["10.0.0.3", "last_reserved_ip.0", "lock"]);
  }));

Deno.test("an unreadable lease is skipped", { ignore: Deno.uid() === 0 }, () =>
  inFolder(async (folder) => {
    folder.write("10.0.0.2", "ctr1\r\neth0");
    Deno.chmodSync(`${folder.path}/10.0.0.2`, 0);
    assertEquals(await release(folder.path, CTR, folder.options), []);
    assertEquals(await take(folder, "ctr1"), ["10.0.0.3"]);
  }));

Deno.test("50 at once get 50 addresses, and release them", () =>
  inFolder(async (folder) => {
    const wide = sets({ subnet: "10.0.0.0/24" });
    const ids = Array.from({ length: 50 }, (_, i) => `c${i}`);
    const all = (await Promise.all(ids.map((id) => take(folder, id, { sets: wide })))).flat();
    assertEquals(new Set(all).size, 50);
    const back = await Promise.all(
      ids.map((id) => release(folder.path, { containerId: id, ifName: "eth0" }, folder.options)),
    );
    assertEquals(back.flat().sort(), all.sort());
    assertEquals(folder.names(), ["last_reserved_ip.0", "lock"]);
  }));

Deno.test("a lock that another holds ends in code 11, and nothing is taken", () =>
  inFolder(async (folder) => {
    await take(folder, "a");
    const before = folder.names();
    {
      await using _holder = await holdLock(`${folder.path}/lock`);
      const options = { ...folder.options, limitMs: 30 };
      const error = await refusal(take({ ...folder, options }, "b"));
      assertEquals(error.code, 11);
      assertStringIncludes(error.msg, `${folder.path}/lock`);
      assertEquals((await refusal(release(folder.path, CTR, options))).code, 11);
    }
    assertEquals(folder.names(), before);
    assertEquals(await take(folder, "b"), ["10.0.0.3"]);
  }));

Deno.test("a folder that cannot be is named", () =>
  inFolder(async (folder) => {
    const base = folder.path.replace(/\/networks\/net1$/, "");
    Deno.mkdirSync(base, { recursive: true });
    Deno.writeTextFileSync(`${base}/networks`, "a file");
    const error = await refusal(take(folder, "a"));
    assertEquals(error.code, 5);
    assertStringIncludes(error.msg, folder.path);
    assertStringIncludes(error.details, "a part of this path is a file");
  }));

Deno.test("a folder behind a link, or with a slash at its end, is the same folder", () =>
  inFolder(async (folder) => {
    await take(folder, "a");
    const link = `${folder.path}-link`;
    Deno.symlinkSync(folder.path, link);
    assertEquals(await held(link, { containerId: "a", ifName: "eth0" }, folder.options), ["10.0.0.2"]);
    assertEquals(await take({ ...folder, path: link }, "b"), ["10.0.0.3"]);
    assertEquals(await held(folder.path, { containerId: "b", ifName: "eth0" }, folder.options), ["10.0.0.3"]);
    assertEquals([...Deno.readDirSync(folder.options.indexFolder)].length, 1);
  }));
