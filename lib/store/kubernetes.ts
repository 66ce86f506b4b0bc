/**
 * The Kubernetes API as a store: every record is a Lease of `coordination.k8s.io/v1` in one namespace, so no type of
 * our own has to be installed. The key and the value are annotations, what lists are made by are labels.
 *
 * @module
 */
import type { Run } from "../kernel/run.ts";
import { sha512 } from "../net/sha512.ts";
import { NoAnswer } from "./curl.ts";
import type { Access } from "./kubeconfig.ts";
import { type Asked, KubernetesApi } from "./kubernetes_api.ts";
import {
  afterRemoval,
  afterWrite,
  readAnswer,
  type Store,
  StoreError,
  type StoreOptions,
  type StoreRecord,
} from "./store.ts";

/** Which cluster and namespace, and who holds what this process makes. */
export interface KubernetesConf {
  readonly access: Access;
  /** Namespace of the Lease objects. */
  readonly namespace: string;
  /** Name of this node: `holderIdentity`, and the owner whose deletion removes the objects. */
  readonly node: string;
}

/** A Lease, as far as it is used. */
interface Lease {
  readonly metadata: {
    readonly name: string;
    readonly uid?: string;
    readonly resourceVersion: string;
    readonly labels?: Readonly<Record<string, string>>;
    readonly annotations?: Readonly<Record<string, string>>;
    readonly ownerReferences?: readonly unknown[];
  };
}

const KEY = "cnibox.dev/key";
const VALUE = "cnibox.dev/record";
const POOL = "cnibox.dev/pool";
const MANAGED = "app.kubernetes.io/managed-by";

/** Lease objects as a store. */
export class KubernetesStore implements Store {
  readonly name: string;
  readonly #api: KubernetesApi;
  readonly #leases: string;
  #owner: object | undefined;

  constructor(run: Run, readonly conf: KubernetesConf, options: StoreOptions) {
    this.#api = new KubernetesApi(run, conf.access, options);
    this.name = this.#api.name;
    this.#leases = `/apis/coordination.k8s.io/v1/namespaces/${encodeURIComponent(conf.namespace)}/leases`;
  }

  async list(prefix: string): Promise<{ records: StoreRecord[]; revision: string }> {
    const path = `${this.#leases}?labelSelector=${encodeURIComponent(selector(prefix))}`;
    const { status, answer } = await this.#ask({ method: "GET", path });
    this.#check(status, answer);
    const { items = [], metadata } = answer as { metadata?: { resourceVersion?: string }; items?: readonly Lease[] };
    const records = items.map(record).filter(({ key }) => key.startsWith(prefix));
    return { records, revision: metadata?.resourceVersion ?? "0" };
  }

  async createIfAbsent(key: string, value: string): Promise<StoreRecord | undefined> {
    const body = await this.#object(key, value);
    return await this.#write(key, value, { method: "POST", path: this.#leases, body });
  }

  async replaceIfRevision(key: string, value: string, revision: string): Promise<StoreRecord | undefined> {
    // A Lease is made by PUT where there is none, whatever its resourceVersion says. Only a uid refuses that.
    const { uid, resourceVersion } = (await this.#get(key))?.metadata ?? {};
    if (uid === undefined || resourceVersion !== revision) return undefined;
    const body = await this.#object(key, value, { uid, resourceVersion });
    return await this.#write(key, value, { method: "PUT", path: this.#path(key), body });
  }

  async removeIfRevision(key: string, revision: string): Promise<boolean> {
    const body = { apiVersion: "v1", kind: "DeleteOptions", preconditions: { resourceVersion: revision } };
    try {
      const { status, answer } = await this.#ask({ method: "DELETE", path: this.#path(key), body });
      if (status === 404 || status === 409) return false;
      this.#check(status, answer);
      return true;
    } catch (error) {
      return await afterRemoval(error, revision, () => this.#read(key));
    }
  }

  async watch(prefix: string, since: string, { event, signal }: Parameters<Store["watch"]>[2]): Promise<void> {
    const query = `watch=1&resourceVersion=${since}&labelSelector=${encodeURIComponent(selector(prefix))}`;
    await this.#api.watch({
      path: `${this.#leases}?${query}`,
      since,
      signal,
      event: (type, object) => {
        if (object["metadata"] === undefined) return;
        const { key, value, revision } = record(object as unknown as Lease);
        if (key.startsWith(prefix)) event({ key, value: type === "DELETED" ? undefined : value, revision });
      },
    });
  }

  /** Makes or replaces a record. */
  async #write(key: string, value: string, asked: Asked): Promise<StoreRecord | undefined> {
    try {
      const { status, answer } = await this.#ask(asked);
      if (status === 409) return undefined;
      this.#check(status, answer);
      return record(answer as Lease);
    } catch (error) {
      return await afterWrite(error, value, () => this.#read(key));
    }
  }

  async #get(key: string): Promise<Lease | undefined> {
    const { status, answer } = await this.#ask({ method: "GET", path: this.#path(key) });
    if (status === 404) return undefined;
    this.#check(status, answer);
    return answer as Lease;
  }

  async #read(key: string): Promise<StoreRecord | undefined> {
    const lease = await this.#get(key);
    return lease && record(lease);
  }

  #check(status: number, answer: unknown): void {
    if (status >= 200 && status < 300) return;
    const { message = `HTTP status ${status}` } = answer as { message?: string };
    // The server says "Unauthorized", and no more, to a token that has expired.
    const why = status === 401 ? ": the token or certificate has expired, or is not of this cluster" : "";
    throw new StoreError(status >= 500 ? "unknown" : "refused", `${this.name}: ${message}${why}`);
  }

  async #ask(asked: Asked): Promise<{ status: number; answer: unknown }> {
    try {
      const { status, body } = await this.#api.ask(asked);
      const answer = readAnswer(body, `HTTP status ${status}`);
      if (status >= 500) this.#check(status, answer);
      return { status, answer };
    } catch (error) {
      if (!(error instanceof NoAnswer)) throw error;
      const failure = { unsent: "unreachable", sent: "unknown", distrusted: "refused" } as const;
      throw new StoreError(failure[error.outcome], `Kubernetes API ${error.message}`);
    }
  }

  async #object(
    key: string,
    value: string,
    condition: { uid?: string; resourceVersion?: string } = {},
  ): Promise<object> {
    const { namespace, node } = this.conf;
    this.#owner ??= await this.#nodeReference();
    return {
      apiVersion: "coordination.k8s.io/v1",
      kind: "Lease",
      metadata: {
        name: leaseName(key),
        namespace,
        ...condition,
        labels: { [MANAGED]: "cnibox", [POOL]: label(poolOf(key)) },
        annotations: { [KEY]: key, [VALUE]: value },
        ...("uid" in this.#owner && { ownerReferences: [this.#owner] }),
      },
      spec: { holderIdentity: node },
    };
  }

  /**
   * With the node goes what it owned. `{}` where the cluster has no such node: then `cnibox cluster forget` frees its
   * records.
   */
  async #nodeReference(): Promise<object> {
    const { node } = this.conf;
    const { status, answer } = await this.#ask({ method: "GET", path: `/api/v1/nodes/${encodeURIComponent(node)}` });
    if (status === 404) return {};
    this.#check(status, answer);
    const { uid } = (answer as Lease).metadata;
    return { apiVersion: "v1", kind: "Node", name: node, uid };
  }

  #path(key: string): string {
    return `${this.#leases}/${leaseName(key)}`;
  }
}

function record({ metadata }: Lease): StoreRecord {
  const { annotations = {}, resourceVersion } = metadata;
  // A record whose annotations were removed by hand still stands for its name.
  return { key: annotations[KEY] ?? metadata.name, value: annotations[VALUE] ?? "", revision: resourceVersion };
}

function poolOf(key: string): string {
  return key.split("/")[0] ?? "";
}

function selector(prefix: string): string {
  const ours = `${MANAGED}=cnibox`;
  return prefix.includes("/") ? `${ours},${POOL}=${label(poolOf(prefix))}` : ours;
}

/**
 * A label's value: at most 63 characters, letters and digits at both ends; what does not fit is told apart by a hash.
 */
function label(text: string): string {
  if (/^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$/.test(text)) return text;
  return `${text.replace(/[^A-Za-z0-9]+/g, "-").replace(/^-/, "").slice(0, 40)}.${sha512(text).slice(0, 16)}`;
}

/** An object's name: lower case letters, digits, `-` and `.`; what does not fit is told apart by a hash. */
export function leaseName(key: string): string {
  const plain = `cnibox.${key.replaceAll("/", ".").replaceAll(":", "-")}`;
  const isName = /^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$/.test(plain);
  // With a dot in the pool or a colon in the block two keys could have one name.
  const isPlain = isName && plain.length <= 200 && /^[a-z0-9-]+\/[0-9.-]+$/.test(key);
  if (isPlain) return plain;
  const clean = plain.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 150);
  return `${clean}.${sha512(key).slice(0, 16)}`;
}
