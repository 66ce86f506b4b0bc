/**
 * etcd 3.4 and later through its JSON gateway (`/v3/…`): keys and values in base64, 64-bit numbers as strings, members
 * that are zero or empty left out.
 *
 * @module
 */
import { decodeBase64, encodeBase64 } from "@std/encoding/base64";
import type { Run } from "../kernel/run.ts";
import { type Endpoint, follow, NoAnswer, request } from "./curl.ts";
import {
  afterRemoval,
  afterWrite,
  Compacted,
  jsonObject,
  readAnswer,
  type Store,
  StoreError,
  type StoreFailure,
  type StoreOptions,
  type StoreRecord,
  timeLeft,
} from "./store.ts";

/** Where etcd is. Files are read when they are used. */
export interface EtcdConf {
  /** `http://`, `https://` or `unix:///` of each member. */
  readonly endpoints: readonly string[];
  readonly caFile?: string | undefined;
  readonly certFile?: string | undefined;
  readonly keyFile?: string | undefined;
  readonly user?: string | undefined;
  readonly passwordFile?: string | undefined;
  /** What all keys begin with, without a slash at the end. */
  readonly prefix: string;
}

/** An answer of the gateway, as far as it is used. */
interface Answer {
  readonly header?: { readonly revision?: string };
  readonly kvs?: readonly KeyValue[];
  readonly succeeded?: boolean;
  readonly token?: string;
  readonly error?: string;
  readonly message?: string;
  readonly code?: number;
}

interface KeyValue {
  readonly key: string;
  readonly value?: string;
  readonly mod_revision?: string;
}

/** An etcd as a store. */
export class EtcdStore implements Store {
  readonly name: string;
  /** Sent with every request once a password was accepted. */
  #token: string | undefined;

  constructor(readonly run: Run, readonly conf: EtcdConf, readonly options: StoreOptions) {
    this.name = `etcd ${conf.endpoints.join(", ")}`;
  }

  async list(prefix: string): Promise<{ records: StoreRecord[]; revision: string }> {
    const answer = await this.#ask("/v3/kv/range", this.#range(prefix));
    return { records: (answer.kvs ?? []).map((one) => this.#record(one)), revision: answer.header?.revision ?? "0" };
  }

  async createIfAbsent(key: string, value: string): Promise<StoreRecord | undefined> {
    return await this.#write(key, value, { target: "CREATE", create_revision: "0" });
  }

  async replaceIfRevision(key: string, value: string, revision: string): Promise<StoreRecord | undefined> {
    return await this.#write(key, value, { target: "MOD", mod_revision: revision });
  }

  async removeIfRevision(key: string, revision: string): Promise<boolean> {
    const name = this.#key(key);
    const body = {
      compare: [{ key: name, target: "MOD", mod_revision: revision }],
      success: [{ request_delete_range: { key: name } }],
    };
    try {
      return (await this.#ask("/v3/kv/txn", body)).succeeded === true;
    } catch (error) {
      return await afterRemoval(error, revision, () => this.#read(key));
    }
  }

  async watch(prefix: string, since: string, { event, signal }: Parameters<Store["watch"]>[2]): Promise<void> {
    await this.#logIn();
    const { key, range_end } = this.#range(prefix);
    const start = { create_request: { key, range_end, start_revision: String(BigInt(since) + 1n) } };
    let failure: Error | undefined;
    const asked = { method: "POST", path: "/v3/watch", headers: this.#headers(), body: JSON.stringify(start) } as const;
    for (const url of this.conf.endpoints) {
      let answered = false;
      const end = await follow({ ...this.conf, url }, asked, signal, (line) => {
        const { result, error } = (jsonObject(line) ?? {}) as { result?: WatchResult; error?: { message?: string } };
        if (error) failure = new StoreError("refused", `etcd ${url}: ${error.message}`);
        if (result?.compact_revision) failure = new Compacted(`etcd ${url} forgot revision ${since}`);
        if (!result) return;
        answered = true;
        for (const { type, kv } of result.events ?? []) {
          const { key, value, revision } = this.#record(kv);
          event({ key, value: type === "DELETE" ? undefined : value, revision });
        }
      });
      if (signal.aborted) return;
      if (failure) throw failure;
      if (answered) throw new StoreError("unreachable", `etcd ${url} ended the watch: ${end}`);
    }
    throw new StoreError("unreachable", `${this.name} cannot be watched`);
  }

  async #write(key: string, value: string, condition: object): Promise<StoreRecord | undefined> {
    const name = this.#key(key);
    const body = {
      compare: [{ key: name, ...condition }],
      success: [{ request_put: { key: name, value: base64(value) } }],
    };
    try {
      const { succeeded, header } = await this.#ask("/v3/kv/txn", body);
      return succeeded === true ? { key, value, revision: header?.revision ?? "0" } : undefined;
    } catch (error) {
      return await afterWrite(error, value, () => this.#read(key));
    }
  }

  async #read(key: string): Promise<StoreRecord | undefined> {
    const { kvs } = await this.#ask("/v3/kv/range", { key: this.#key(key) });
    return kvs?.[0] && this.#record(kvs[0]);
  }

  /**
   * Asks one member after the other until one has got the question. A failed answer throws, with the outcome of a write
   * unknown.
   */
  async #ask(path: string, body: object, again = true): Promise<Answer> {
    await this.#logIn();
    const { status, answer, url } = await this.#post(path, body);
    if (status === 200) return answer;
    const reason = answer.message ?? answer.error ?? `HTTP status ${status}`;
    // A token lives for some minutes; log in again, once.
    if (status === 401 && this.#token !== undefined && again) {
      this.#token = undefined;
      return await this.#ask(path, body, false);
    }
    // 408 and 499: the gateway's words for a question that was given up.
    const lost = status >= 500 || status === 408 || status === 499;
    throw new StoreError(lost ? "unknown" : "refused", `etcd ${url}: ${status === 404 ? noGateway(path) : reason}`);
  }

  async #post(path: string, body: object): Promise<{ status: number; answer: Answer; url: string }> {
    const reasons: string[] = [];
    let failure: StoreFailure = "unreachable";
    for (const url of this.conf.endpoints) {
      const endpoint: Endpoint = { ...this.conf, url };
      try {
        const { status, body: text } = await request(this.run, endpoint, {
          method: "POST",
          path,
          headers: this.#headers(),
          body: JSON.stringify(body),
          limitMs: timeLeft(this.options, this.name),
        });
        return { status, answer: readAnswer(text, "an empty answer"), url };
      } catch (error) {
        if (!(error instanceof NoAnswer)) throw error;
        if (error.outcome === "sent") throw new StoreError("unknown", `etcd ${error.message}`);
        if (error.outcome === "distrusted") failure = "refused";
        reasons.push(error.message);
      }
    }
    throw new StoreError(failure, `etcd ${reasons.join("; ") || "has no endpoints"}`);
  }

  #headers(): string[] {
    return ["Content-Type: application/json", ...(this.#token === undefined ? [] : [`Authorization: ${this.#token}`])];
  }

  async #logIn(): Promise<void> {
    const { user, passwordFile } = this.conf;
    if (user === undefined || this.#token !== undefined) return;
    const password = passwordFile === undefined ? "" : Deno.readTextFileSync(passwordFile).replace(/\r?\n$/, "");
    const { status, answer, url } = await this.#post("/v3/auth/authenticate", { name: user, password });
    if (status !== 200 || answer.token === undefined) {
      const reason = answer.message ?? answer.error ?? `HTTP status ${status}`;
      throw new StoreError("refused", `etcd ${url}: user "${user}": ${reason}`);
    }
    this.#token = answer.token;
  }

  #key(key: string): string {
    return base64(`${this.conf.prefix}/${key}`);
  }

  /** Everything that begins with a prefix: up to the same bytes with the last one higher by one. */
  #range(prefix: string): { key: string; range_end: string } {
    const bytes = new TextEncoder().encode(`${this.conf.prefix}/${prefix}`);
    const end = bytes.slice();
    end[end.length - 1]!++;
    return { key: encodeBase64(bytes), range_end: encodeBase64(end) };
  }

  #record({ key, value = "", mod_revision = "0" }: KeyValue): StoreRecord {
    return { key: text(key).slice(this.conf.prefix.length + 1), value: text(value), revision: mod_revision };
  }
}

interface WatchResult {
  readonly compact_revision?: string;
  readonly events?: readonly { readonly type?: string; readonly kv: KeyValue }[];
}

const noGateway = (path: string) => `no ${path}: etcd 3.4 or later with --enable-grpc-gateway is needed`;

const base64 = (value: string) => encodeBase64(new TextEncoder().encode(value));
const text = (value: string) => new TextDecoder().decode(decodeBase64(value));
