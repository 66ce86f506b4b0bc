/** Published ports of a container, in both backends. What rules cannot do by themselves is portmap's own affair. */
import type { Family, Prefix } from "../net/cidr.ts";
import type { Owner } from "../net/name.ts";
import { type Subject, together } from "./backend.ts";
import {
  addHostPorts,
  additionText,
  type HostPorts,
  leadsTo,
  missingHostPort,
  removeHostPorts,
} from "./host_ports_iptables.ts";
import {
  addNftHostPorts,
  hostPortTable,
  missingNftPort,
  nftAdditionText,
  removeNftHostPorts,
} from "./host_ports_nft.ts";

/** What a container publishes, and where. */
export interface Published {
  readonly ports: HostPorts;
  /** At most one address of each family; none when they are unknown: then either family may have rules. */
  readonly targets: readonly Prefix[];
}

/** Ports of a container of which nothing but its owner is known. */
export function unknownPorts(owner: Owner): HostPorts {
  const conditions = { 4: [], 6: [] };
  return { owner, mappings: [], snat: true, masqAll: false, markBit: 13, externalMarkChain: undefined, conditions };
}

/** Families that may have rules. */
export function familiesOf({ targets }: Published): readonly Family[] {
  return targets.length === 0 ? [4, 6] : targets.map(({ address }) => address.family);
}

export const hostPorts: Subject<Published> = {
  why: "packets to the published ports go to the container",
  split: ({ ports, targets }) =>
    familiesOf({ ports, targets }).map((family) => ({
      ports,
      family,
      targets: targets.filter(({ address }) => address.family === family),
    })),
  iptables: {
    text: ({ ports, targets }) => targets.map((target) => additionText(ports, target)).join(""),
    add: async (call, { ports, targets }) => {
      await together(targets.map((target) => () => addHostPorts(call, ports, target)));
      return undefined;
    },
    remove: async (call, { ports, family }, { likely }) =>
      (await removeHostPorts(call, ports, { family, likely })).found,
    missing: async (call, { ports, targets }) => {
      const found = await Promise.all(targets.map((target) => missingHostPort(call, ports, target)));
      return found.find((one) => one !== undefined);
    },
    owned: ({ tables }, { ports, family }) => leadsTo(tables[family].get("nat"), ports.owner),
    failing: (refusal) => refusal === "missing" ? "failed to open iptables" : "unable to setup DNAT",
  },
  nftables: {
    text: ({ ports, targets }) => targets.map((target) => nftAdditionText(ports, target)).join(""),
    add: async (call, { ports, targets }) => {
      await together(targets.map((target) => () => addNftHostPorts(call, ports, target)));
      return undefined;
    },
    remove: async (call, published) => {
      const { ports: { owner }, targets } = published;
      const ends = await Promise.all(
        familiesOf(published).map((family) => removeNftHostPorts(call, owner.containerId, { family, targets })),
      );
      return ends.every(({ found }) => found);
    },
    missing: async (call, { ports, targets }) => {
      const found = await Promise.all(targets.map((target) => missingNftPort(call, ports, target)));
      return found.find((one) => one !== undefined);
    },
    owned: ({ nft }, { ports: { owner } }) =>
      nft.rules.some(({ family, table, comment }) =>
        comment === owner.containerId && [4, 6].some((one) => hostPortTable(one as Family) === `${family} ${table}`)
      ),
    failing: () => "unable to set up nftables rules for port mappings",
  },
};
