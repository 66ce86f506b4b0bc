/** Whose an address is by the files of host-local, read without its lock: for callers that only compare. */
import { readRegularText } from "../kernel/regular_file.ts";

/** Where host-local keeps who has which address, unless a configuration says otherwise. */
const LEASES = "/var/lib/cni/networks";

/**
 * Has host-local given an address of this network to another container? A lease in that one's name is proof; none at
 * all is not: other IPAM plugins keep theirs elsewhere, and `network` may be unknown.
 */
export function heldByAnother(
  address: string,
  { network, containerId }: { readonly network: string | undefined; readonly containerId: string },
): boolean {
  if (network === undefined) return false;
  try {
    const holder = readRegularText(`${LEASES}/${network}/${address}`).trim().split(/[\r\n]/)[0]?.trim();
    return !!holder && holder !== containerId;
  } catch {
    return false;
  }
}
