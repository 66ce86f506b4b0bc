/** What an ADD of host-local would take: for `cnibox explain`. */
import { CniError, code } from "../cni/error.ts";
import { formatAddress } from "../net/cidr.ts";
import { inTurn, takeRequest, type Wanted } from "./allocator.ts";
import { type Candidate, describe, rangeOf } from "./range.ts";
import { Store, type StoreOptions } from "./store.ts";

/**
 * The addresses that `begin` of the allocator would choose now. Changes nothing and takes no lock: another may be
 * quicker.
 */
export function preview(folder: string, wanted: Wanted & Omit<StoreOptions, "create">): Candidate[] {
  const { names, cursors } = glance(folder, wanted);
  const had = wanted.memory?.had() ?? [];
  const left = [...wanted.requested];
  return wanted.sets.map((set, index) => {
    const request = takeRequest(set, left);
    if (request) return { address: request, range: rangeOf(set, request)! };
    for (const candidate of inTurn(set, cursors[index], had)) {
      if (!names.has(formatAddress(candidate.address))) return candidate;
    }
    const during = `failed to allocate for range ${index}`;
    throw new CniError(code.internal, `${during}: no IP addresses available in range set: ${describe(set)}`);
  });
}

function glance(folder: string, wanted: Wanted & Omit<StoreOptions, "create">) {
  try {
    Deno.statSync(folder);
  } catch {
    // No folder yet: all is free.
    return { names: new Set<string>(), cursors: [] };
  }
  const store = new Store(folder, wanted);
  return { names: store.names(), cursors: wanted.sets.map((_, index) => store.cursor(index)) };
}
