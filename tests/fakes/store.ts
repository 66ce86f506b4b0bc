/** A cluster's store in memory, which can fail and be raced at any call. */
import { type Listing, type Store, StoreError, type StoreRecord } from "../../lib/store/store.ts";

/** Called before each request; may change the store, or throw. `after`: the work is done, and the answer is about to be given. */
export type Interference = (call: { verb: string; key: string; after: boolean }) => void | Promise<void>;

/** Records, and the requests that were made. */
export class FakeStore implements Store {
  readonly name = "fake store";
  readonly calls: string[] = [];
  readonly records = new Map<string, { value: string; revision: number }>();
  revision = 1;
  interfere: Interference = () => {};

  /** Another view of the same records: what another node has. */
  view(interfere: Interference = () => {}): FakeStore {
    const other = new FakeStore();
    Object.assign(other, { records: this.records, interfere });
    Object.defineProperty(other, "revision", { get: () => this.revision, set: (value) => this.revision = value });
    return other;
  }

  async list(prefix: string): Promise<Listing> {
    return await this.#do("list", prefix, () => ({
      records: [...this.records].filter(([key]) => key.startsWith(prefix)).map(([key, one]) => shown(key, one)),
      revision: `${this.revision}`,
    }));
  }

  async createIfAbsent(key: string, value: string): Promise<StoreRecord | undefined> {
    return await this.#do("create", key, () => this.records.has(key) ? undefined : this.#put(key, value));
  }

  async replaceIfRevision(key: string, value: string, revision: string): Promise<StoreRecord | undefined> {
    return await this.#do("replace", key, () => this.#is(key, revision) ? this.#put(key, value) : undefined);
  }

  async removeIfRevision(key: string, revision: string): Promise<boolean> {
    return await this.#do("remove", key, () => {
      if (!this.#is(key, revision)) return false;
      this.revision++;
      return this.records.delete(key);
    });
  }

  watch(): Promise<void> {
    return Promise.reject(new StoreError("refused", "the fake store is not watched"));
  }

  #is(key: string, revision: string): boolean {
    return `${this.records.get(key)?.revision}` === revision;
  }

  #put(key: string, value: string): StoreRecord {
    const one = { value, revision: ++this.revision };
    this.records.set(key, one);
    return shown(key, one);
  }

  async #do<T>(verb: string, key: string, work: () => T): Promise<T> {
    this.calls.push(`${verb} ${key}`);
    await this.interfere({ verb, key, after: false });
    const answer = work();
    await this.interfere({ verb, key, after: true });
    return answer;
  }
}

function shown(key: string, { value, revision }: { value: string; revision: number }): StoreRecord {
  return { key, value, revision: `${revision}` };
}
