/** Node objects over real HTTP by curl: an API server of the test's own, on the loopback. */
import { assert, assertEquals } from "@std/assert";
import { Agent } from "../../lib/node/agent.ts";
import { parseNodeConf } from "../../lib/node/conf.ts";
import { derivedMac, parseNetworkConf } from "../../lib/node/records.ts";
import { serve } from "../../lib/node/serve.ts";
import { kubernetesSource } from "../../lib/node/source.ts";
import { readMemory } from "../../lib/node/state.ts";
import { systemRun } from "../../lib/kernel/run.ts";
import { KubernetesApi } from "../../lib/store/kubernetes_api.ts";
import { NodeObjects } from "../../lib/store/kubernetes_nodes.ts";
import { RoutingKernel } from "../fakes/routing_kernel.ts";

const NETWORK = { Network: "10.42.0.0/16", Backend: { Type: "vxlan" } };

interface NodeObject {
  readonly metadata: { name: string; resourceVersion: string };
  readonly [key: string]: unknown;
}

/** The part of the API that is asked: nodes, listed and watched, with a token. */
class Api implements AsyncDisposable {
  readonly nodes = new Map<string, NodeObject>();
  readonly asked: string[] = [];
  revision = 10;
  /** Watches from before here are told that it is gone. */
  forgotten = 0;
  readonly #watchers = new Set<ReadableStreamDefaultController<Uint8Array>>();
  readonly #server = Deno.serve(
    { port: 0, hostname: "127.0.0.1", onListen: () => {} },
    (request) => this.#answer(request),
  );
  readonly url = `http://127.0.0.1:${(this.#server.addr as Deno.NetAddr).port}`;

  put(number: number, more: { cidr?: string } = {}): void {
    const name = `n${number}`;
    const node: NodeObject = {
      kind: "Node",
      metadata: { name, resourceVersion: `${++this.revision}` },
      spec: { podCIDRs: [more.cidr ?? `10.42.${number}.0/24`] },
      status: { addresses: [{ type: "InternalIP", address: `10.99.0.${number}` }] },
    };
    this.#tell({ type: this.nodes.has(name) ? "MODIFIED" : "ADDED", object: node });
    this.nodes.set(name, node);
  }

  remove(number: number): void {
    const node = this.nodes.get(`n${number}`)!;
    this.nodes.delete(`n${number}`);
    this.#tell({
      type: "DELETED",
      object: { ...node, metadata: { ...node.metadata, resourceVersion: `${++this.revision}` } },
    });
  }

  /** Ends all watches, as a server does now and then. */
  cut(): void {
    for (const one of this.#watchers) one.close();
    this.#watchers.clear();
  }

  /** All events, for watches that start from an earlier revision. */
  readonly #log: { revision: number; bytes: Uint8Array }[] = [];

  #tell(event: object): void {
    const bytes = new TextEncoder().encode(`${JSON.stringify(event)}\n`);
    this.#log.push({ revision: this.revision, bytes });
    for (const one of this.#watchers) one.enqueue(bytes);
  }

  #answer(request: Request): Response {
    const { pathname, searchParams } = new URL(request.url);
    this.asked.push(`${request.method} ${pathname}${searchParams.has("watch") ? " watch" : ""}`);
    if (request.headers.get("authorization") !== "Bearer secret") {
      return Response.json({ kind: "Status", message: "Unauthorized", code: 401 }, { status: 401 });
    }
    if (!searchParams.has("watch")) {
      return Response.json({ items: [...this.nodes.values()], metadata: { resourceVersion: `${this.revision}` } });
    }
    const since = Number(searchParams.get("resourceVersion"));
    if (since < this.forgotten) {
      return new Response(
        `${JSON.stringify({ type: "ERROR", object: { kind: "Status", code: 410, message: "too old" } })}\n`,
      );
    }
    let own: ReadableStreamDefaultController<Uint8Array>;
    return new Response(
      new ReadableStream({
        start: (controller) => {
          this.#watchers.add(own = controller);
          for (const { revision, bytes } of this.#log) if (revision > since) controller.enqueue(bytes);
        },
        cancel: () => void this.#watchers.delete(own),
      }),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
    await this.#server.shutdown();
  }
}

async function until(what: string, holds: () => boolean): Promise<void> {
  for (let tries = 0; !holds(); tries++) {
    if (tries > 6000) throw new Error(`not so in the end: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

Deno.test("node follows the Node objects of a cluster, and writes nothing to its API", async () => {
  await using api = new Api();
  const folder = Deno.makeTempDirSync();
  const kernel = new RoutingKernel();
  kernel.link("eth0", ["10.99.0.1/24"]);
  const access = { endpoint: { url: api.url }, token: () => "secret", namespace: undefined, close: () => {} };
  const nodes = new NodeObjects(new KubernetesApi(systemRun(), access, { deadline: () => Date.now() + 8000 }));
  const text = JSON.stringify({
    node: "n1",
    store: { kubernetes: {} },
    network: NETWORK,
    ipMasq: false,
    subnetFile: `${folder}/subnet.env`,
  });
  const said: string[] = [];
  const agent = new Agent({
    run: kernel.run,
    source: kubernetesSource(nodes, parseNetworkConf(JSON.stringify(NETWORK), "test")),
    conf: parseNodeConf(text, "node.json"),
    places: { memory: `${folder}/memory`, status: `${folder}/status`, lock: `${folder}/lock` },
    machineId: "m",
    say: (one) => said.push(one),
    takeOver: false,
  });
  const end = new AbortController();
  api.put(2);
  const work = serve(agent, end.signal, { roundMs: 60_000, settleMs: 1, relistMs: 60_000, retryMs: [1, 20] });
  const routes = () => kernel.routes.map(({ dst, dev }) => `${dst} ${dev}`).sort();
  try {
    await until("it says that it is not there", () => said.some((one) => one.includes('has no node "n1"')));
    api.put(1);
    await until("a route", () => routes().length === 1);
    assertEquals(routes(), ["10.42.2.0/24 flannel.1"]);
    assertEquals(kernel.fdb.map(({ mac, dst }) => [mac, dst]), [[derivedMac("n2", 4, 1), "10.99.0.2"]]);
    await until("the subnet file", () => readable(`${folder}/subnet.env`).includes("FLANNEL_SUBNET=10.42.1.1/24"));
    api.put(3);
    await until("a second one", () => routes().length === 2);
    // Heartbeats, which change the object and not what is read of it: no round.
    const lines = kernel.lines.length;
    api.put(3);
    api.cut();
    await until("the next watch", () => api.asked.filter((one) => one.endsWith("watch")).length === 2);
    api.remove(3);
    await until("the removal", () => routes().length === 1);
    assertEquals(kernel.lines.slice(lines).filter((line) => line.includes(" add ") || line.includes("replace")), []);
    api.forgotten = api.revision + 100;
    api.cut();
    await until("a watch that is told 410", () => api.asked.filter((one) => one.endsWith("watch")).length > 3);
    api.forgotten = 0;
    api.put(4);
    await until("a list that has what was missed", () => routes().length === 2);
    assert(api.asked.every((one) => one.startsWith("GET /api/v1/nodes")), api.asked.join());
    assertEquals(readMemory(`${folder}/memory`).records.size, 3);
  } finally {
    end.abort();
    await work;
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("node that the API refuses names the API and its reason", async () => {
  await using api = new Api();
  const access = { endpoint: { url: api.url }, token: () => "wrong", namespace: undefined, close: () => {} };
  const nodes = new NodeObjects(new KubernetesApi(systemRun(), access, { deadline: () => Date.now() + 8000 }));
  const message = await nodes.list().then(() => "", ({ message }) => message);
  assertEquals(message, `Kubernetes API ${api.url}: Unauthorized`);
});

function readable(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return "";
  }
}
