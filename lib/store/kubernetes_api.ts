/** What all requests to the API server of a Kubernetes cluster have in common. */
import { isObject } from "../cni/decode.ts";
import type { JsonObject } from "../cni/types.ts";
import type { Run } from "../kernel/run.ts";
import { follow, type HttpRequest, type HttpResponse, request } from "./curl.ts";
import type { Access } from "./kubeconfig.ts";
import { Compacted, jsonObject, StoreError, type StoreOptions, timeLeft } from "./store.ts";

/** One request: `body` is sent as JSON. */
export interface Asked extends Pick<HttpRequest, "method" | "path"> {
  readonly body?: object;
}

/** Changes of objects after a revision. */
export interface WatchRequest {
  /** Path and query. */
  readonly path: string;
  readonly since: string;
  readonly event: (type: string, object: JsonObject) => void;
  readonly signal: AbortSignal;
}

/** An API server with the credentials for it. */
export class KubernetesApi {
  /** For messages. */
  readonly name: string;

  constructor(readonly run: Run, readonly access: Access, readonly options: StoreOptions) {
    this.name = `Kubernetes API ${access.endpoint.url}`;
  }

  /**
   * Sends one request and returns the answer, whatever its status.
   *
   * @throws {NoAnswer} when there is none
   */
  async ask({ method, path, body }: Asked): Promise<HttpResponse> {
    const { run, access: { endpoint }, options, name } = this;
    const limitMs = timeLeft(options, name);
    const headers = this.#headers(body);
    return await request(run, endpoint, {
      method,
      path,
      headers,
      limitMs,
      ...(body && { body: JSON.stringify(body) }),
    });
  }

  /** Hears of every change until `signal` aborts. Throws {@linkcode Compacted} when the API forgot that revision. */
  async watch({ path, since, event, signal }: WatchRequest): Promise<void> {
    const { name, access: { endpoint } } = this;
    let failure: Error | undefined;
    const end = await follow(endpoint, { method: "GET", path, headers: this.#headers() }, signal, (line) => {
      const { type, object } = jsonObject(line) ?? {};
      if (!isObject(object)) return;
      if (type === "ERROR" || object["kind"] === "Status") {
        failure = object["code"] === 410
          ? new Compacted(`${name} forgot revision ${since}`)
          : new StoreError("refused", `${name}: ${object["message"]}`);
      } else if (type !== "BOOKMARK") event(String(type), object);
    });
    if (signal.aborted) return;
    throw failure ?? new StoreError("unreachable", `${name} ended the watch: ${end}`);
  }

  #headers(body?: object): string[] {
    const token = this.access.token();
    return [
      "Accept: application/json",
      ...(body ? ["Content-Type: application/json"] : []),
      ...(token === undefined ? [] : [`Authorization: Bearer ${token}`]),
    ];
  }
}
