/**
 * Masquerading of one attachment (`ipMasq` of bridge and ptp). Names, comments and rules are the reference's, so that
 * either implementation deletes what the other made.
 */
import { badConfig } from "../cni/error.ts";
import type { Call } from "../cni/plugin.ts";
import type { ValidAttachment } from "../cni/types.ts";
import type { Step } from "../kernel/plan.ts";
import { formatPrefix, hostPrefix, parseAddress, parsePrefix, type Prefix } from "../net/cidr.ts";
import type { Attachment } from "../net/name.ts";
import {
  type Backend,
  bothBackends,
  chosenBackends,
  type Host,
  type Remover,
  removeRules,
  ruleSteps,
  type Subject,
} from "./backend.ts";
import { masqueradeIptables } from "./masquerade_iptables.ts";
import { masqueradeNft, type Masquerading } from "./masquerade_nft.ts";

const upkeep = () => import("./rule_upkeep.ts");

/** Masquerading in both backends. */
export const masquerading: Subject<Masquerading> = {
  why: "packets that leave the container's subnet carry the host's address",
  split: ({ owner, prefixes }) => {
    // Without addresses either family may have rules.
    const families = prefixes.length === 0 ? [4, 6] as const : new Set(prefixes.map(({ address }) => address.family));
    return [...families].map((family) => ({
      owner,
      family,
      prefixes: prefixes.filter(({ address }) => address.family === family),
    }));
  },
  iptables: masqueradeIptables,
  nftables: masqueradeNft,
};

/** Which tool sets the rules. `default`: iptables, and nftables where iptables does not work but nft does. */
export type MasqueradeBackend = Backend | "default";

/** Checks `ipMasqBackend`; undefined is the default. Any other word, also "", is an error in the reference's words. */
export function masqueradeBackend(configured: string | undefined): MasqueradeBackend {
  if (configured === undefined) return "default";
  if (configured === "iptables" || configured === "nftables") return configured;
  throw badConfig(
    `unknown ipmasq backend "${configured}"`,
    '"ipMasqBackend" is "iptables" or "nftables"; without it the one that works here is taken',
  );
}

const configuredOf = (backend: MasqueradeBackend) => backend === "default" ? undefined : backend;

/** `ips` in CIDR form or plain, by family, equal ones once; what is not a valid address is left out. */
function wanted(owner: Attachment, ips: readonly string[]): Masquerading {
  const found = new Map<string, Prefix>();
  for (const ip of ips) {
    const single = parseAddress(ip);
    const prefix = single ? hostPrefix(single) : parsePrefix(ip);
    if (prefix) found.set(formatPrefix(prefix), prefix);
  }
  const byFamily = Map.groupBy(found.values(), ({ address }) => address.family);
  return { owner, prefixes: [...byFamily.values()].flat() };
}

/** Steps that masquerade what the attachment's addresses (`ips`, in CIDR form) send beyond their own subnets. */
export function masqueradePlan(owner: Attachment, ips: readonly string[], backend: MasqueradeBackend): Step[] {
  const want = wanted(owner, ips);
  return want.prefixes.length === 0 ? [] : ruleSteps(masquerading, want, chosenBackends(configuredOf(backend)));
}

/**
 * Removes the attachment's rules, whichever backend set them, whoever's they were. With `addresses` (CIDR or plain),
 * from the link or `prevResult`, one transaction does it, beside the deletion of the link; without them, or when
 * something else is found than expected, all jumps to the container's chain are looked for. `configured` is
 * `ipMasqBackend`.
 */
export async function removeMasquerade(
  call: Remover,
  owner: Attachment,
  addresses: readonly string[],
  configured?: string,
): Promise<void> {
  await removeRules(call, masquerading, wanted(owner, addresses), { backends: bothBackends(configured) });
}

/**
 * Throws what of the attachment's masquerading is missing; rules of either backend and either implementation will do.
 */
export async function checkMasquerade(
  call: Host,
  owner: Attachment,
  ips: readonly string[],
  configured?: string,
): Promise<void> {
  const want = wanted(owner, ips);
  if (want.prefixes.length === 0) return;
  const { checkRules } = await upkeep();
  await checkRules(call, masquerading, want, bothBackends(configured));
}

/** Removes the rules of this network's attachments that are not among the valid ones. */
export async function gcMasquerade(call: Call, valid: readonly ValidAttachment[]): Promise<void> {
  const { collectMasquerade } = await import("./masquerade_gc.ts");
  await collectMasquerade(call, valid);
}

/** Throws code 50 when the next ADD with `ipMasq` could not set its rules. */
export async function statusMasquerade(call: Call, configured?: string): Promise<void> {
  const { statusOfRules } = await upkeep();
  await statusOfRules(call, configuredOf(masqueradeBackend(configured)), "ipMasq needs it");
}
