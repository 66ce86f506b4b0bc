/**
 * The loops around an agent: the source is followed, the kernel is listened to, and nothing is believed for longer than
 * a minute.
 */
import { streamLines } from "../kernel/lines.ts";
import { Compacted, revisionNumber } from "../store/store.ts";
import type { Agent } from "./agent.ts";

/** What waits, in milliseconds; tests make it shorter. */
export interface Pace {
  /** Longest time between two rounds. */
  readonly roundMs: number;
  /** How long events are collected before a round. */
  readonly settleMs: number;
  /** How long a watch is trusted before everything is listed again: a connection can die without a word. */
  readonly relistMs: number;
  /** First and longest pause before the source is asked again. */
  readonly retryMs: readonly [first: number, longest: number];
}

export const PACE: Pace = { roundMs: 60_000, settleMs: 50, relistMs: 600_000, retryMs: [500, 20_000] };

/** Something has happened: wakes who waits, or who waits next. */
class Bell {
  #rung = false;
  #wake: (() => void) | undefined;

  ring(): void {
    this.#rung = true;
    this.#wake?.();
  }

  /** Resolves when it rang since the last time, after so many milliseconds, or when `signal` aborts. */
  async wait(ms: number, signal: AbortSignal): Promise<void> {
    if (!this.#rung && !signal.aborted) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, ms);
        const wake = () => {
          clearTimeout(timer);
          resolve();
        };
        this.#wake = wake;
        signal.addEventListener("abort", wake, { once: true });
      });
      this.#wake = undefined;
    }
    this.#rung = false;
  }
}

/** Pauses for so many milliseconds, or until `signal` aborts. */
async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await new Bell().wait(ms, signal);
}

/** Works until `signal` aborts. What is in the kernel then stays there. */
export async function serve(agent: Agent, signal: AbortSignal, pace: Pace = PACE): Promise<void> {
  const bell = new Bell();
  const loops = [followSource(agent, { bell, signal, pace }), followKernel(agent, { bell, signal, pace })];
  // The source has answered by then, or it does not.
  await bell.wait(pace.roundMs, signal);
  while (!signal.aborted) {
    try {
      await agent.reconcile();
    } catch (error) {
      agent.world.say((error as Error).message);
    }
    await bell.wait(pace.roundMs, signal);
    if (!signal.aborted) await pause(pace.settleMs, signal);
  }
  await Promise.all(loops);
}

interface Loop {
  readonly bell: Bell;
  readonly signal: AbortSignal;
  readonly pace: Pace;
}

/**
 * Lists, then watches from there; goes on from the last revision when the watch ends, and lists again when that is
 * forgotten.
 */
async function followSource(agent: Agent, loop: Loop): Promise<void> {
  const { bell, signal, pace: { retryMs: [first, longest] } } = loop;
  const { source } = agent.world;
  let wait = first;
  let since: string | undefined;
  while (!signal.aborted) {
    try {
      // A store that was restored from a backup knows nothing of the revision.
      if (since !== undefined && revisionNumber(await source.probe()) < revisionNumber(since)) since = undefined;
      if (since === undefined) agent.listed(await source.list());
      agent.connected();
      bell.ring();
      wait = first;
    } catch (error) {
      if (signal.aborted) return;
      agent.away(error);
      bell.ring();
      await pause(wait * (0.5 + Math.random() / 2), signal);
      wait = Math.min(longest, wait * 2);
      continue;
    }
    const started = Date.now();
    since = await watchOnce(agent, loop) ? agent.revision : undefined;
    if (Date.now() - started < first) await pause(first, signal);
  }
}

/**
 * Watches from the agent's revision. Returns whether the next watch may go on from there; else everything has to be
 * listed.
 */
async function watchOnce(agent: Agent, { bell, signal, pace }: Loop): Promise<boolean> {
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(), pace.relistMs * (0.8 + Math.random() * 0.4));
  try {
    await agent.world.source.watch(agent.revision, {
      event: (event) => {
        if (agent.heard(event)) bell.ring();
      },
      signal: AbortSignal.any([signal, limit.signal]),
    });
    return false;
  } catch (error) {
    return !(error instanceof Compacted);
  } finally {
    clearTimeout(timer);
  }
}

/** Listens to the kernel; after a pause once more when `ip monitor` ends. Rounds come every minute all the same. */
async function followKernel(agent: Agent, { bell, signal, pace }: Loop): Promise<void> {
  while (!signal.aborted) {
    try {
      const argv = ["ip", "-N", "-o", "monitor", "link", "address", "route", "neigh"];
      await streamLines({ argv, signal }, (line) => {
        if (agent.concerns(line)) bell.ring();
      });
    } catch (error) {
      agent.world.say((error as Error).message);
    }
    await pause(pace.retryMs[1], signal);
    // What happened meanwhile was not heard of.
    bell.ring();
  }
}
