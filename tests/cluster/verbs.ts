/**
 * The five verbs of lib/store on a real Kubernetes API: create, conflict, replace, list, remove, watch. A program of
 * its own, since it runs where the server can be reached: `verbs.ts KUBECONFIG NODE`. Ends with 1 and the reason when a
 * promise does not hold.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { systemRun } from "../../lib/kernel/run.ts";
import { openKubernetes } from "../../lib/store/open_kubernetes.ts";
import { Compacted, type StoreEvent } from "../../lib/store/store.ts";

const [kubeconfig = "", node = ""] = Deno.args;
const limit = Date.now() + 60_000;
const { store: open, close } = openKubernetes(systemRun(), { kubeconfig, node }, () => limit);
const store = open();

// Keys that are names as they are, and some that are not: capitals, dots, colons.
const KEYS = ["pods/10.42.0.16-28", "pods/fd42::1:0-112", "Pods.Too/10.42.0.16-28"];
const since = (await store.list("pods/")).revision;
for (const key of KEYS) {
  const made = await store.createIfAbsent(key, `first ${key}`);
  assertEquals([made?.key, made?.value], [key, `first ${key}`]);
  assertEquals(await store.createIfAbsent(key, "second"), undefined, `${key} was made twice`);
}
const { records, revision } = await store.list("pods/");
assertEquals(records.map(({ key }) => key).sort(), KEYS.slice(0, 2));
assert(BigInt(revision) > BigInt(since), `${revision} after ${since}`);
assertEquals((await store.list("Pods.Too/")).records.map(({ value }) => value), [`first ${KEYS[2]}`]);
assertEquals((await store.list("pod/")).records, []);

const [key = ""] = KEYS;
const first = records.find((one) => one.key === key)!;
const second = await store.replaceIfRevision(key, "second", first.revision);
assert(second && second.revision !== first.revision);
assertEquals(await store.replaceIfRevision(key, "third", first.revision), undefined, "replaced at an old revision");
assertEquals(await store.replaceIfRevision("pods/10.42.9.0-28", "x", first.revision), undefined, "replaced nothing");
assertEquals(await store.removeIfRevision(key, first.revision), false, "removed at an old revision");
assertEquals((await store.list("pods/")).records.find((one) => one.key === key)?.value, "second");

// Watched from before all that, and while it goes on.
const events: StoreEvent[] = [];
const stop = new AbortController();
const timer = setTimeout(() => stop.abort(), 30_000);
const watching = store.watch("pods/", since, {
  signal: stop.signal,
  event: (one) => {
    events.push(one);
    if (events.filter(({ value }) => value === undefined).length === 2) stop.abort();
  },
});
for (const one of (await store.list("pods/")).records) {
  assertEquals(await store.removeIfRevision(one.key, one.revision), true);
  assertEquals(await store.removeIfRevision(one.key, one.revision), false, "removed twice");
}
await watching;
clearTimeout(timer);
const told = (wanted: string) => events.filter((one) => one.key === wanted).map(({ value }) => value);
assertEquals(told(KEYS[0]!), [`first ${KEYS[0]}`, "second", undefined]);
assertEquals(told(KEYS[1]!), [`first ${KEYS[1]}`, undefined]);
for (const one of (await store.list("Pods.Too/")).records) await store.removeIfRevision(one.key, one.revision);

// Two at once: one of them has it.
const race = await Promise.all(["a", "b", "c", "d"].map((value) => store.createIfAbsent(key, value)));
assertEquals(race.filter((one) => one !== undefined).length, 1);
const [won] = (await store.list("pods/")).records;
assertEquals(won?.value, race.find((one) => one !== undefined)?.value);
await store.removeIfRevision(key, won!.revision);

// A server answers 410 for what it has compacted; one that keeps all answers with events.
const old = new AbortController();
const timeout = setTimeout(() => old.abort(), 2_000);
await store.watch("pods/", "1", { signal: old.signal, event: () => {} }).catch((error) => {
  assert(error instanceof Compacted, `${error}`);
});
clearTimeout(timeout);

const late = openKubernetes(systemRun(), { kubeconfig, node }, () => Date.now() - 1);
const error = await assertRejects(() => late.store().list("pods/"));
assert(!`${error}`.includes("token-of"), `${error}`);
late.close();
close();
