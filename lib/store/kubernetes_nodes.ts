/** Node objects of the Kubernetes API: listed and watched, never written. */
import { streamLines } from "../kernel/lines.ts";
import type { Run } from "../kernel/run.ts";
import { curlConfig, NoAnswer, request } from "./curl.ts";
import type { Access } from "./kubeconfig.ts";
import { Compacted, StoreError, type StoreOptions, timeLeft } from "./store.ts";

/** A Node object, unread. */
export type NodeObject = Readonly<Record<string, unknown>> & {
  readonly metadata: { readonly name: string; readonly resourceVersion?: string };
};

/** A Node that came, changed, or went (`gone`). */
export interface NodeEvent {
  readonly node: NodeObject;
  readonly gone: boolean;
  readonly revision: string;
}

const PATH = "/api/v1/nodes";

/** All Node objects of a cluster. */
export class NodeObjects {
  readonly name: string;

  constructor(readonly run: Run, readonly access: Access, readonly options: StoreOptions) {
    this.name = `Kubernetes API ${access.endpoint.url}`;
  }

  /** All of them; with `most`, no more than so many. Throws {@linkcode StoreError}. */
  async list(most?: number): Promise<{ nodes: readonly NodeObject[]; revision: string }> {
    const path = most === undefined ? PATH : `${PATH}?limit=${most}`;
    let answer: { status: number; body: string };
    try {
      const limitMs = timeLeft(this.options, this.name);
      answer = await request(this.run, this.access.endpoint, {
        method: "GET",
        path,
        headers: this.#headers(),
        limitMs,
      });
    } catch (error) {
      if (!(error instanceof NoAnswer)) throw error;
      throw new StoreError("unreachable", `Kubernetes API ${error.message}`);
    }
    const list = read(answer.body) as {
      items?: readonly NodeObject[];
      metadata?: { resourceVersion?: string };
      message?: string;
    };
    if (answer.status !== 200 || !Array.isArray(list.items)) {
      const why = list.message ?? `HTTP status ${answer.status}`;
      throw new StoreError(answer.status >= 500 ? "unreachable" : "refused", `${this.name}: ${why}`);
    }
    return { nodes: list.items, revision: list.metadata?.resourceVersion ?? "0" };
  }

  /** Hears of every change until `signal` aborts. Throws {@linkcode Compacted} when the API forgot that revision. */
  async watch(
    since: string,
    { event, signal }: { readonly event: (event: NodeEvent) => void; readonly signal: AbortSignal },
  ): Promise<void> {
    const config = curlConfig(this.access.endpoint, {
      method: "GET",
      path: `${PATH}?watch=1&allowWatchBookmarks=true&resourceVersion=${encodeURIComponent(since)}`,
      headers: this.#headers(),
      limitMs: 24 * 3600_000,
    });
    let failure: Error | undefined;
    const end = await streamLines({ argv: ["curl", "-q", "-N", "-K", "-"], input: [config], signal }, (line) => {
      const { type, object } = read(line) as {
        type?: string;
        object?: NodeObject & { code?: number; message?: string };
      };
      if (object === undefined) return;
      if (type === "ERROR" || object["kind"] === "Status") {
        failure = object.code === 410
          ? new Compacted(`${this.name} forgot revision ${since}`)
          : new StoreError("refused", `${this.name}: ${object.message}`);
        return;
      }
      const revision = object.metadata?.resourceVersion;
      if (revision === undefined || type === "BOOKMARK") return;
      event({ node: object, gone: type === "DELETED", revision });
    });
    if (signal.aborted) return;
    throw failure ?? new StoreError("unreachable", `${this.name} ended the watch: ${end}`);
  }

  #headers(): string[] {
    const token = this.access.token();
    return ["Accept: application/json", ...(token === undefined ? [] : [`Authorization: Bearer ${token}`])];
  }
}

function read(text: string): Record<string, unknown> {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && value !== null ? value : {};
  } catch {
    return {};
  }
}
