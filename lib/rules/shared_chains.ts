/** Turns for making the chains of iptables that all containers share. */
import { lockWithin } from "../kernel/flock.ts";
import { SCRATCH } from "../kernel/run.ts";
import { settledTable } from "./backend.ts";

/** Longest wait for another call that makes what all containers share, in milliseconds. */
const SHARED_MS = 10_000;

/**
 * {@linkcode settledTable} by one call of this host at a time, as far as that can be had: for making chains that all
 * containers share, and what leads to them. On nf_tables iptables-restore takes a chain that another process has made
 * since it looked for its own (`-N` does not fail), and adds the jumps to it once more.
 */
export const settledInTurn: typeof settledTable = async (...call) => {
  let folder: Deno.FsFile | undefined;
  try {
    // Any folder of ours does, and this one is there once a tool has been run.
    folder = Deno.openSync(SCRATCH);
  } catch {
    // Not root, or nothing was run: then without.
  }
  const locked = folder !== undefined && await lockWithin(folder, SHARED_MS);
  try {
    return await settledTable(...call);
  } finally {
    if (locked) folder?.close();
  }
};
