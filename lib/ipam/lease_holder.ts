/** Whose an address is by the files of host-local, read without its lock: for callers that only compare. */
import { readRegularText } from "../kernel/regular_file.ts";

/** Where host-local keeps who has which address, unless a configuration says otherwise. */
const LEASES = "/var/lib/cni/networks";

/** The container that host-local has given an address of this network to; undefined when it is free, or not its own. */
export function leaseHolder(network: string, address: string): string | undefined {
  try {
    const text = readRegularText(`${LEASES}/${network}/${address}`);
    return text.trim().split(/[\r\n]/)[0]?.trim() || undefined;
  } catch {
    return undefined;
  }
}
