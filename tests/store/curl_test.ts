/** What curl says, and what is made of it: whether a write may have been done decides what happens next. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import type { Command, Output } from "../../lib/kernel/run.ts";
import { EtcdStore } from "../../lib/store/etcd.ts";
import { KubernetesStore } from "../../lib/store/kubernetes.ts";
import { type Store, StoreError } from "../../lib/store/store.ts";

const TOKEN = "a-token-that-nobody-sees";
const deadline = () => Date.now() + 60_000;

/** One end of curl: what it prints, its exit status, what it says. */
interface Said {
  readonly stdout?: string;
  readonly code?: number;
  readonly stderr?: string;
}

/** Runs that answer with these, one after the other, and what was asked. */
function curls(...answers: Said[]): { run: (command: Command) => Promise<Output>; asked: string[] } {
  const asked: string[] = [];
  return {
    asked,
    run: ({ argv, input = [] }) => {
      assertEquals(argv, ["curl", "-q", "-K", "-"]);
      asked.push(/^url = "[a-z]+:\/\/[^/]+([^"]*)"$/m.exec(input.join(""))?.[1] ?? "");
      const { stdout = "", code = 0, stderr = "" } = answers.shift() ?? {};
      return Promise.resolve({ code, signal: null, stdout, stderr });
    },
  };
}

const body = (value: unknown, status = 200): Said => ({ stdout: `${JSON.stringify(value)}\n${status} 120` });
const UNSENT = { stdout: "\n000 0", code: 7, stderr: "curl: (7) Failed to connect to 10.0.0.1 port 2379: refused" };
const LOST = { stdout: "\n000 120", code: 52, stderr: "curl: (52) Empty reply from server" };

const etcd = (run: (command: Command) => Promise<Output>, endpoints = ["https://10.0.0.1:2379"]) =>
  new EtcdStore(run, { endpoints, prefix: "/p" }, { deadline });

function kubernetes(run: (command: Command) => Promise<Output>): Store {
  const endpoint = { url: "https://10.0.0.1:6443" };
  const access = { endpoint, token: () => TOKEN, namespace: undefined, close: () => {} };
  return new KubernetesStore(run, { access, namespace: "kube-system", node: "node1" }, { deadline });
}

async function failing(work: () => Promise<unknown>): Promise<StoreError> {
  const error = await assertRejects(work, StoreError);
  assert(!error.message.includes(TOKEN), error.message);
  return error;
}

/** What went wrong, as curl 7.88 and OpenSSL 3 say it, and what that is. */
const failures: readonly (readonly [said: Said, failure: StoreError["failure"]])[] = [
  [UNSENT, "unreachable"],
  [{ stdout: "\n000 0", code: 6, stderr: "curl: (6) Could not resolve host: etcd" }, "unreachable"],
  [{ stdout: "\n000 0", code: 28, stderr: "curl: (28) Connection timeout after 3001 ms" }, "unreachable"],
  // Its own options: nothing is printed.
  [{ code: 2, stderr: "curl: option --foo: is unknown" }, "unreachable"],
  [
    { stdout: "\n000 0", code: 60, stderr: "curl: (60) SSL certificate problem: unable to get local issuer" },
    "refused",
  ],
  [{ stdout: "\n000 0", code: 58, stderr: "curl: (58) could not load PEM client certificate" }, "refused"],
  [{ stdout: "\n000 0", code: 77, stderr: "curl: (77) error setting certificate file: /etc/ca.pem" }, "refused"],
  // TLS 1.3: the request is out before the server says so.
  [{
    stdout: "\n000 120",
    code: 56,
    stderr: "curl: (56) OpenSSL SSL_read: error:0A00045C:SSL routines::tlsv13 alert certificate required, errno 0",
  }, "refused"],
  [{
    stdout: "\n000 0",
    code: 35,
    stderr: "curl: (35) error:0A000412:SSL routines::sslv3 alert bad certificate",
  }, "refused"],
  [LOST, "unknown"],
  [{ stdout: "\n000 120", code: 28, stderr: "curl: (28) Operation timed out" }, "unknown"],
  // Killed, or worse: what it did, nobody knows.
  [{ code: 137 }, "unknown"],
  [{ stdout: "garbage" }, "unknown"],
  // It did its work, and then failed.
  [{ stdout: '{"succeeded": true}\n200 120', code: 1, stderr: "something went wrong" }, "unknown"],
];

for (const [said, failure] of failures) {
  Deno.test(`curl that ends with ${said.code ?? 0}, ${said.stderr ?? said.stdout ?? "nothing"}: ${failure}`, async () => {
    assertEquals((await failing(() => etcd(curls(said).run).list("pods/"))).failure, failure);
    assertEquals((await failing(() => kubernetes(curls(said).run).list("pods/"))).failure, failure);
  });
}

Deno.test("a write whose answer was lost is read back, on both stores", async () => {
  const key = btoa("/p/pods/10.0.0.0-28");
  const mine = { kvs: [{ key, value: btoa("mine"), mod_revision: "7" }] };
  const one = curls(LOST, body(mine));
  assertEquals((await etcd(one.run).createIfAbsent("pods/10.0.0.0-28", "mine"))?.revision, "7");
  assertEquals(one.asked, ["/v3/kv/txn", "/v3/kv/range"]);
  const theirs = { kvs: [{ key, value: btoa("theirs"), mod_revision: "7" }] };
  assertEquals(await etcd(curls(LOST, body(theirs)).run).createIfAbsent("pods/10.0.0.0-28", "mine"), undefined);
  // Not there yet: it may still come.
  const error = await failing(() => etcd(curls(LOST, body({})).run).createIfAbsent("pods/10.0.0.0-28", "mine"));
  assertEquals(error.failure, "unknown");

  const node = { metadata: { name: "node1", uid: "u1", resourceVersion: "1" } };
  const annotations = { "cnibox.dev/key": "pods/10.0.0.0-28", "cnibox.dev/record": "mine" };
  const lease = { metadata: { name: "x", resourceVersion: "9", annotations } };
  const two = curls(body(node), LOST, body(lease));
  assertEquals((await kubernetes(two.run).createIfAbsent("pods/10.0.0.0-28", "mine"))?.revision, "9");
  assertEquals(two.asked.length, 3);
});

Deno.test("a write whose answer was lost stays unknown where it cannot be read back, on both stores", async () => {
  const key = "pods/10.0.0.0-28";
  const timedOut = body({ error: "context canceled" }, 408);
  for (const first of [LOST, timedOut, body({ error: "etcdserver: request timed out" }, 503)]) {
    for (const second of [UNSENT, LOST, body({ error: "no leader" }, 503)]) {
      const made = await failing(() => etcd(curls(first, second).run).createIfAbsent(key, "mine"));
      const removed = await failing(() => etcd(curls(first, second).run).removeIfRevision(key, "7"));
      assertEquals([made.failure, removed.failure], ["unknown", "unknown"]);
    }
  }
  // No time is left to ask.
  let left = 60_000;
  const late = new EtcdStore(
    () => {
      left = 0;
      return Promise.resolve({ code: 28, signal: null, stdout: "\n000 120", stderr: "curl: (28) Operation timed out" });
    },
    { endpoints: ["https://10.0.0.1:2379"], prefix: "/p" },
    { deadline: () => Date.now() + left },
  );
  assertEquals((await failing(() => late.createIfAbsent(key, "mine"))).failure, "unknown");

  const node = { metadata: { name: "node1", uid: "u1", resourceVersion: "1" } };
  const made = await failing(() => kubernetes(curls(body(node), LOST, UNSENT).run).createIfAbsent(key, "mine"));
  assertEquals(made.failure, "unknown");
});

Deno.test("the next member is asked when one cannot be reached, and not when nobody knows what it did", async () => {
  const endpoints = ["https://10.0.0.1:2379", "https://10.0.0.2:2379"];
  const one = curls(UNSENT, body({ header: { revision: "5" } }));
  assertEquals((await etcd(one.run, endpoints).list("pods/")).revision, "5");
  const two = curls(LOST, body({ header: { revision: "5" } }));
  assertEquals((await failing(() => etcd(two.run, endpoints).list("pods/"))).failure, "unknown");
  assertEquals(two.asked.length, 1);
  // One member is down, the other's certificate is not accepted: waiting changes nothing.
  const distrusted = { stdout: "\n000 0", code: 60, stderr: "curl: (60) SSL certificate problem" };
  for (const order of [[UNSENT, distrusted], [distrusted, UNSENT]]) {
    assertEquals((await failing(() => etcd(curls(...order).run, endpoints).list("pods/"))).failure, "refused");
  }
});

Deno.test("a server that closes the connection before the request is out is asked for the reason with TLS 1.2", async () => {
  const closed = { stdout: "\n000 0", code: 55, stderr: "curl: (55) getpeername() failed with errno 107" };
  const alert = {
    stdout: "\n000 0",
    code: 35,
    stderr: "curl: (35) error:0A000412:SSL routines::sslv3 alert bad certificate",
  };
  const one = await failing(() => etcd(curls(closed, alert).run).list("pods/"));
  assertEquals([one.failure, /alert bad certificate$/.test(one.message)], ["refused", true]);
  // It was something else, or the server is too new for that.
  const two = await failing(() => etcd(curls(closed, UNSENT).run).list("pods/"));
  assertEquals([two.failure, /getpeername/.test(two.message)], ["unreachable", true]);
  const three = curls(closed, body({ header: { revision: "5" } }));
  assertEquals((await etcd(three.run).list("pods/")).revision, "5");
  const four = await failing(() => etcd(curls(closed, LOST, body({})).run).createIfAbsent("pods/10.0.0.0-28", "mine"));
  assertEquals(four.failure, "unknown");
});

Deno.test("an expired token of a Kubernetes API is told from missing rights", async () => {
  const unauthorized = {
    kind: "Status",
    status: "Failure",
    message: "Unauthorized",
    reason: "Unauthorized",
    code: 401,
  };
  const expired = await failing(() => kubernetes(curls(body(unauthorized, 401)).run).list("pods/"));
  assertEquals([expired.failure, expired.message], [
    "refused",
    "Kubernetes API https://10.0.0.1:6443: Unauthorized: the token or certificate has expired, or is not of this cluster",
  ]);
  const forbidden = {
    kind: "Status",
    status: "Failure",
    message: 'leases is forbidden: User "x" cannot list',
    code: 403,
  };
  const barred = await failing(() => kubernetes(curls(body(forbidden, 403)).run).list("pods/"));
  assertEquals([barred.failure, barred.message], [
    "refused",
    'Kubernetes API https://10.0.0.1:6443: leases is forbidden: User "x" cannot list',
  ]);
});

Deno.test("blocks after the first cost a request each, and the Node is asked for once in a call", async () => {
  const node = { metadata: { name: "node1", uid: "u1", resourceVersion: "1" } };
  const lease = (number: number) => body({ metadata: { name: "x", resourceVersion: `${number}` } }, 201);
  const { run, asked } = curls(body(node), lease(2), lease(3));
  const store = kubernetes(run);
  await store.createIfAbsent("pods/10.0.0.0-28", "a");
  await store.createIfAbsent("pods/10.0.0.16-28", "b");
  const leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
  assertEquals(asked, ["/api/v1/nodes/node1", leases, leases]);
});
