/** ADD of an IPAM plugin that keeps leases as files, in the two steps of the protocol's plugins. */
import type { ContainerCall, Lease } from "../cni/plugin.ts";
import type { IPConfig, Result } from "../cni/types.ts";
import { formatAddress } from "../net/cidr.ts";
import type { Candidate } from "./range.ts";
import type { Taking } from "./store.ts";

/** Addresses as a result has them. */
function ipsOf(taken: readonly Candidate[]): IPConfig[] {
  return taken.map(({ address, range }) => ({
    address: `${formatAddress(address)}/${range.subnet.length}`,
    gateway: formatAddress(range.gateway),
  }));
}

/** The steps, with `release` for what was taken when the call fails later. `more`: what the result has besides. */
export function leaseOf(
  call: ContainerCall,
  taking: Taking,
  { more, release }: { more: Pick<Result, "routes" | "dns">; release: (ips: string[]) => Promise<unknown> },
): Lease {
  let taken: readonly Candidate[] | undefined;
  call.undo(() => taken ? release(taken.map(({ address }) => formatAddress(address))) : taking.abandon());
  return {
    ips: taking.candidates && ipsOf(taking.candidates),
    commit: async () => ({ ips: ipsOf(taken = await taking.commit()), ...more }),
  };
}
