/**
 * A store for a whole cluster behind five verbs: etcd, or Lease objects of the Kubernetes API. Every record is one key
 * with a text and a revision; all writes are conditional, so whoever was quicker wins and the other one hears of it.
 *
 * @module
 */
import { isObject } from "../cni/decode.ts";
import type { JsonObject } from "../cni/types.ts";

/** One record. */
export interface StoreRecord {
  /** Relative to the store's prefix: `POOL/BLOCK`. */
  readonly key: string;
  readonly value: string;
  /** Changes with every write of this record; opaque, but for comparing two of one store as numbers. */
  readonly revision: string;
}

/** All records below a prefix at one instant. */
export interface Listing {
  readonly records: readonly StoreRecord[];
  /** The whole store's revision then: one that is smaller than before means that a backup was restored. */
  readonly revision: string;
}

/** A record that came, changed (`value` present) or went. */
export interface StoreEvent {
  readonly key: string;
  readonly value: string | undefined;
  readonly revision: string;
}

/** What can be done with a store. All reads are linearizable. */
export interface Store {
  /** For messages: what kind of store, and where. Holds no credentials. */
  readonly name: string;
  /** Every record whose key begins with `prefix`. */
  list(prefix: string): Promise<Listing>;
  /** Makes a record; undefined when there is one already. */
  createIfAbsent(key: string, value: string): Promise<StoreRecord | undefined>;
  /** Replaces a record; undefined when it has another revision by now, or is gone. */
  replaceIfRevision(key: string, value: string, revision: string): Promise<StoreRecord | undefined>;
  /** Removes a record; false when it has another revision by now, or is gone. */
  removeIfRevision(key: string, revision: string): Promise<boolean>;
  /**
   * Hears of every change after a revision until `signal` aborts. Throws {@linkcode Compacted} when the store forgot
   * that revision.
   */
  watch(prefix: string, since: string, options: WatchOptions): Promise<void>;
}

export interface WatchOptions {
  readonly event: (event: StoreEvent) => void;
  readonly signal: AbortSignal;
}

/** Why a store did not do what it was asked. */
export type StoreFailure =
  /** Nobody answered; nothing was written. */
  | "unreachable"
  /** A write was sent, and nobody can say whether it was done, or will be. */
  | "unknown"
  /** The store answered that it will not: credentials, rights, its own state. */
  | "refused";

/** A store that did not do what it was asked; the message names the endpoint and the reason, never a credential. */
export class StoreError extends Error {
  override readonly name = "StoreError";
  constructor(readonly failure: StoreFailure, message: string) {
    super(message);
  }
}

/** The store no longer knows what happened since a revision: list, then watch from there. */
export class Compacted extends Error {
  override readonly name = "Compacted";
}

/** What every backend needs of its caller. */
export interface StoreOptions {
  /** Instant, as `Date.now()` tells it, at which the caller gives up. */
  readonly deadline: () => number;
}

/** Longest time for one request, in milliseconds: etcd itself answers after 7 s that it has no quorum. */
export const REQUEST_LIMIT_MS = 8_000;

/**
 * What became of a write whose outcome is unknown: only the key itself can tell. Where it cannot be read, or there is
 * no time left to read it, the outcome stays unknown: `error` is thrown, as it is when it was another failure.
 */
async function readAfter<T>(error: unknown, read: () => Promise<T>): Promise<T> {
  if (!(error instanceof StoreError) || error.failure !== "unknown") throw error;
  return await read().catch(() => {
    throw error;
  });
}

/** What {@linkcode Store.removeIfRevision} gives after a request that failed. */
export async function afterRemoval(error: unknown, revision: string, read: Read): Promise<boolean> {
  const now = await readAfter(error, read);
  if (now?.revision === revision) throw error;
  return now === undefined;
}

/** What the writing verbs give after a request that failed. */
export async function afterWrite(error: unknown, value: string, read: Read): Promise<StoreRecord | undefined> {
  const now = await readAfter(error, read);
  if (now === undefined) throw error;
  return now.value === value ? now : undefined;
}

/** Reads the record that the request was about. */
type Read = () => Promise<StoreRecord | undefined>;

/** The JSON object that a text is; undefined when it is none. */
export function jsonObject(text: string): JsonObject | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/** Revisions are decimal numbers in both stores, and grow; one that is not a number says nothing. */
export function revisionNumber(revision: string): bigint {
  return /^\d+$/.test(revision) ? BigInt(revision) : 0n;
}

/** A text that says something; undefined for anything else. */
export function word(value: unknown): string | undefined {
  return typeof value === "string" && value !== "" ? value : undefined;
}

/** A server's answer. Plain text, as of a proxy's error page, is kept as its message; `empty` stands for none. */
export function readAnswer(body: string, empty: string): JsonObject {
  return jsonObject(body) ?? { message: body.trim().split("\n")[0]?.slice(0, 200) || empty };
}

/** Time for the next request; throws when there is none left. */
export function timeLeft({ deadline }: StoreOptions, name: string): number {
  const left = Math.min(REQUEST_LIMIT_MS, deadline() - Date.now());
  if (left < 100) throw new StoreError("unreachable", `${name} did not answer in time`);
  return left;
}
