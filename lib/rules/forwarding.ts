/** Forwarding allowed for a container's addresses, and its bridge kept apart, in both backends. */
import type { Attachment } from "../net/name.ts";
import type { Address, Family } from "../net/cidr.ts";
import { TableError } from "../kernel/iptables.ts";
import type { Host, Subject } from "./backend.ts";
import {
  acceptsAll,
  addForwarding,
  type Forwarding,
  forwardText,
  missingForwarding,
  type Parts,
  removeForwarding,
  takeBackForwarding,
} from "./forwarding_iptables.ts";
import {
  addNftForwarding,
  missingNftForwarding,
  moveToIptables,
  nftAcceptsAll,
  nftForwardText,
  removeNftForwarding,
} from "./forwarding_nft.ts";

/** What is wanted for an attachment. */
export interface Forwarded extends Forwarding, Parts {
  readonly owner: Attachment;
}

/** What lets addresses through, without anything about a bridge. */
export function acceptance(owner: Attachment, addresses: readonly Address[], admin: string): Forwarded {
  return { owner, admin, addresses, policy: "open", bridge: "", accept: true };
}

const ofFamily = (addresses: readonly Address[], family: Family) => addresses.filter((one) => one.family === family);

export const forwarding: Subject<Forwarded> = {
  why: "the host's packet filter lets the container's traffic through",
  split: (want) =>
    ([4, 6] as const).map((family) => ({ ...want, family, addresses: ofFamily(want.addresses, family) }))
      .filter(({ addresses }) => addresses.length > 0),
  iptables: {
    text: (part) => forwardText(part, part),
    add: async (call, part) => {
      const made = await onReadable(call, part, () => addForwarding(call, part, part));
      // Rules that were there before stay: they may be those of an earlier ADD.
      return () => takeBackForwarding(call, made, part.family);
    },
    // With firewalld only bridges are ours, whose rules other containers share.
    remove: async (call, { accept, addresses, family }) => accept && await removeForwarding(call, addresses, family),
    missing: (call, part) => missingForwarding(call, part, part),
    owned: ({ tables }, { addresses, family }) => acceptsAll(tables[family].get("filter"), addresses),
    failing: (refusal, { family }) =>
      refusal === "missing" ? `could not initialize iptables protocol ${family === 4 ? 0 : 1}` : "",
  },
  nftables: {
    text: (want) => nftForwardText(want, want.owner, want),
    add: async (call, want) => {
      await addNftForwarding(call, want, want);
      return undefined;
    },
    remove: async (call, { accept, owner, admin }) => accept && await removeNftForwarding(call, owner, admin),
    missing: (call, want) => missingNftForwarding(call, want, want),
    owned: ({ nft }, { addresses }) => nftAcceptsAll(nft, addresses),
  },
};

/**
 * Does work on a table of iptables; what hides it from iptables is moved out of it first, where an earlier build has
 * put it there.
 */
export async function onReadable<T>(
  call: Host,
  { family, admin }: { readonly family: Family; readonly admin: string },
  work: () => Promise<T>,
): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof TableError) || error.refusal !== "unreadable") throw error;
    if (!(await moveToIptables(call, family, admin))) throw error;
    return await work();
  }
}
