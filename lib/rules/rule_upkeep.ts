/**
 * What CHECK, GC, STATUS and the operator's commands ask of rules. ADD and DEL do not read this file: it is loaded when
 * called.
 */
import { CniError, code } from "../cni/error.ts";
import { iptablesUsable } from "../kernel/iptables.ts";
import { nftUsable } from "../kernel/nft.ts";
import type { Family } from "../net/cidr.ts";
import { type Backend, type Backends, byNft, type Host, type Listing, type Subject, together } from "./backend.ts";
import { ruleError } from "./rule_error.ts";

/**
 * Throws what is missing of the rules. Those of any of the backends will do, family by family, whichever implementation
 * made them.
 */
export async function checkRules<Want>(
  call: Host,
  { split, iptables, nftables }: Subject<Want>,
  want: Want,
  backends: Backends,
): Promise<void> {
  const inIptables = async (some: Want) => {
    const found = await Promise.all(split(some).map((part) => iptables.missing(call, part)));
    return found.find((one) => one !== undefined);
  };
  const parts: readonly Want[] = backends[0] === "iptables" ? split(want) : [want];
  await together(parts.map((part) => async () => {
    let failure: unknown;
    for (const backend of backends) {
      try {
        const missing = backend === "iptables" ? await inIptables(part) : await nftables.missing(call, part);
        if (missing === undefined) return;
        failure ??= missing;
      } catch (error) {
        failure ??= error;
      }
    }
    throw ruleError(failure);
  }));
}

/** Does either backend hold rules of this, in every family? */
export function isOwned<Want>({ split, iptables, nftables }: Subject<Want>, listing: Listing, want: Want): boolean {
  return split(want).every((part) => iptables.owned(listing, part)) || nftables.owned(listing, want);
}

/** Jobs that remove stale rules from all tools, for {@linkcode all}. */
export function collectionJobs(
  call: Host,
  { iptables, nftables }: {
    readonly iptables: (family: Family) => Promise<unknown>;
    readonly nftables: () => Promise<unknown>;
  },
): (() => Promise<unknown>)[] {
  const jobs = [() => iptables(4), () => iptables(6), () => byNft(call, nftables)];
  return jobs.map((job) => () =>
    job().catch((error) => {
      throw ruleError(error);
    })
  );
}

/** Throws code 50 when the next ADD could not set its rules. `what` needs them, as in "published ports need it". */
export async function statusOfRules({ host }: Host, configured: Backend | undefined, what: string): Promise<void> {
  const usable = await Promise.all([
    configured !== "nftables" && iptablesUsable(host),
    configured !== "iptables" && nftUsable(host),
  ]);
  if (usable.some(Boolean)) return;
  throw new CniError(
    code.notAvailable,
    configured === undefined ? "neither iptables nor nftables is usable" : `${configured} is not usable`,
    `${what}: install the package and make sure that this kernel has its modules`,
  );
}
