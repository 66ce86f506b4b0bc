/** Node objects of the Kubernetes API: listed and watched, never written. */
import { NoAnswer } from "./curl.ts";
import type { KubernetesApi } from "./kubernetes_api.ts";
import { jsonObject, StoreError } from "./store.ts";

/** A Node object, as far as it is used. */
export interface NodeObject {
  readonly metadata: {
    readonly name: string;
    readonly resourceVersion?: string;
    readonly annotations?: Readonly<Record<string, string>>;
  };
  readonly spec?: { readonly podCIDR?: string; readonly podCIDRs?: readonly string[] };
  readonly status?: { readonly addresses?: readonly { readonly type: string; readonly address: string }[] };
}

/** A Node that came, changed, or went (`gone`). */
export interface NodeEvent {
  readonly node: NodeObject;
  readonly gone: boolean;
  readonly revision: string;
}

const PATH = "/api/v1/nodes";

/** All Node objects of a cluster. */
export class NodeObjects {
  constructor(readonly api: KubernetesApi) {}

  /** All of them; with `most`, no more than so many. Throws {@linkcode StoreError}. */
  async list(most?: number): Promise<{ nodes: readonly NodeObject[]; revision: string }> {
    const path = most === undefined ? PATH : `${PATH}?limit=${most}`;
    const { status, body } = await this.api.ask({ method: "GET", path }).catch((error) => {
      throw error instanceof NoAnswer ? new StoreError("unreachable", `Kubernetes API ${error.message}`) : error;
    });
    const { items, metadata, message = `HTTP status ${status}` } = (jsonObject(body) ?? {}) as {
      items?: readonly NodeObject[];
      metadata?: { resourceVersion?: string };
      message?: string;
    };
    if (status !== 200 || !Array.isArray(items)) {
      throw new StoreError(status >= 500 ? "unreachable" : "refused", `${this.api.name}: ${message}`);
    }
    return { nodes: items, revision: metadata?.resourceVersion ?? "0" };
  }

  /** Hears of every change until `signal` aborts. Throws {@linkcode Compacted} when the API forgot that revision. */
  async watch(
    since: string,
    { event, signal }: { readonly event: (event: NodeEvent) => void; readonly signal: AbortSignal },
  ): Promise<void> {
    const path = `${PATH}?watch=1&allowWatchBookmarks=true&resourceVersion=${encodeURIComponent(since)}`;
    await this.api.watch({
      path,
      since,
      signal,
      event: (type, object) => {
        const node = object as unknown as NodeObject;
        const revision = node.metadata?.resourceVersion;
        if (revision !== undefined) event({ node, gone: type === "DELETED", revision });
      },
    });
  }
}
