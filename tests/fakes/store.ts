/** A cluster's store in memory, which can fail and be raced at any call. */
import {
  Compacted,
  type Listing,
  type Store,
  StoreError,
  type StoreEvent,
  type StoreRecord,
} from "../../lib/store/store.ts";

/**
 * Called before each request; may change the store, or throw. `after`: the work is done, and the answer is about to be
 * given.
 */
export type Interference = (call: { verb: string; key: string; after: boolean }) => void | Promise<void>;

interface Change {
  readonly key: string;
  readonly value: string | undefined;
  readonly revision: number;
}

/** Records, and the requests that were made. */
export class FakeStore implements Store {
  readonly name = "fake store";
  readonly calls: string[] = [];
  readonly records = new Map<string, { value: string; revision: number }>();
  revision = 1;
  interfere: Interference = () => {};
  /** All changes, the first one first. */
  readonly log: Change[] = [];
  readonly listeners = new Set<(change: Change) => void>();
  forgotten = 0;

  /** Another view of the same records: what another node has. */
  view(interfere: Interference = () => {}): FakeStore {
    const other = new FakeStore();
    Object.assign(other, { records: this.records, log: this.log, listeners: this.listeners, interfere });
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
      this.#tell({ key, value: undefined, revision: this.revision });
      return this.records.delete(key);
    });
  }

  /**
   * Hears of what this view and others write, as long as `cut` is not called. Revisions before `forgotten` are
   * compacted.
   */
  watch(prefix: string, since: string, { event, signal }: Parameters<Store["watch"]>[2]): Promise<void> {
    this.calls.push(`watch ${prefix} ${since}`);
    if (Number(since) < this.forgotten) return Promise.reject(new Compacted(`revision ${since} is forgotten`));
    for (const one of this.log) if (one.revision > Number(since) && one.key.startsWith(prefix)) event(told(one));
    return new Promise((resolve, reject) => {
      const listener = (one: Change) => {
        if (one.key.startsWith(prefix)) event(told(one));
      };
      this.listeners.add(listener);
      const end = (error?: Error) => {
        this.listeners.delete(listener);
        if (error) reject(error);
        else resolve();
      };
      signal.addEventListener("abort", () => end(), { once: true });
      this.#cuts.push(() => end(new StoreError("unreachable", "the fake store ended the watch")));
    });
  }

  /** Ends all watches of this view. */
  cut(): void {
    for (const end of this.#cuts.splice(0)) end();
  }

  readonly #cuts: (() => void)[] = [];

  #is(key: string, revision: string): boolean {
    return `${this.records.get(key)?.revision}` === revision;
  }

  #put(key: string, value: string): StoreRecord {
    const one = { value, revision: ++this.revision };
    this.records.set(key, one);
    this.#tell({ key, ...one });
    return shown(key, one);
  }

  #tell(change: Change): void {
    this.log.push(change);
    for (const listener of this.listeners) listener(change);
  }

  async #do<T>(verb: string, key: string, work: () => T): Promise<T> {
    this.calls.push(`${verb} ${key}`);
    await this.interfere({ verb, key, after: false });
    const answer = work();
    await this.interfere({ verb, key, after: true });
    return answer;
  }
}

function told({ key, value, revision }: Change): StoreEvent {
  return { key, value, revision: `${revision}` };
}

function shown(key: string, { value, revision }: { value: string; revision: number }): StoreRecord {
  return { key, value, revision: `${revision}` };
}
