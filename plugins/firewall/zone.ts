/**
 * firewalld's zones: it lets through what comes from the sources of one, so the container's addresses become such
 * sources.
 */
import { internal } from "../../lib/cni/error.ts";
import type { Call, ContainerCall } from "../../lib/cni/plugin.ts";
import { busAbsence, busAddress, FirewalldError, isTrue, zoneSource } from "../../lib/kernel/firewalld.ts";
import { type Step, step } from "../../lib/kernel/plan.ts";
import { type Address, familyBits, formatAddress } from "../../lib/net/cidr.ts";

const sourceOf = (address: Address) => `${formatAddress(address)}/${familyBits(address.family)}`;

/** Puts an address into a zone; that it is there already is success. */
export function sourceStep(call: ContainerCall, zone: string, address: Address): Step {
  const source = sourceOf(address);
  const job = async () => {
    try {
      await zoneSource(call.host, busAddress(call.env), { method: "addSource", zone, source });
      call.undo(() => zoneSource(call.host, busAddress(call.env), { method: "removeSource", zone, source }));
    } catch (error) {
      if (!(error instanceof FirewalldError)) throw error;
      if (error.message.includes("ZONE_ALREADY_SET")) return;
      const absence = busAbsence(busAddress(call.env));
      throw internal(
        absence ?? `failed to add the address ${source} to ${zone} zone: ${error.message}`,
        `firewall-cmd --zone=${zone} --add-source=${source} has to work; is firewalld running?`,
      );
    }
  };
  return step("host", "command", `firewall-cmd --zone=${zone} --add-source=${source}`, {
    why: "firewalld lets through what this zone lets through",
    job,
  });
}

/** Jobs that remove addresses from a zone. A source may be unknown, and firewalld away. */
export function sourceRemovals(call: Call, zone: string, addresses: readonly Address[]): (() => Promise<unknown>)[] {
  const bus = busAddress(call.env);
  if (addresses.length === 0 || busAbsence(bus) !== undefined) return [];
  return addresses.map((address) => () =>
    zoneSource(call.host, bus, { method: "removeSource", zone, source: sourceOf(address) }).catch(() => {})
  );
}

/** Throws when an address is not in its zone. */
export async function checkSource(call: Call, zone: string, address: Address): Promise<void> {
  const source = sourceOf(address);
  const failure = (details: string) => internal(`failed to find the address ${source} in ${zone} zone`, details);
  let answer: string;
  try {
    answer = await zoneSource(call.host, busAddress(call.env), { method: "querySource", zone, source });
  } catch (error) {
    throw failure((error as Error).message);
  }
  if (!isTrue(answer)) throw failure("firewalld has forgotten it, for example by a reload; ADD puts it in again");
}
