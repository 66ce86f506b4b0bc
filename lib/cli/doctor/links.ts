/** `doctor` on links of the host: programs that manage interfaces, MTUs, bridges and overlapping subnets. */
import { exists, readRegularText } from "../../kernel/regular_file.ts";
import { defaultLinks } from "../../kernel/default_links.ts";
import {
  familyBits,
  formatPrefix,
  networkPrefix,
  parsePrefix,
  prefixContains,
  prefixesOverlap,
} from "../../net/cidr.ts";
import { entriesOf } from "../setup.ts";
import type { NetworkView, Survey } from "../survey.ts";
import { findings, type Line, type Node } from "./finding.ts";

/** Programs that take interfaces for theirs. */
export function managers({ folders }: Node): Line[] {
  const { ok, warning } = findings("managers");
  if (!exists("/run/NetworkManager", { links: true })) return [];
  const texts = ["etc", "usr/lib"].flatMap((folder) => textsIn(`${folders.root}/${folder}/NetworkManager/conf.d`));
  if (texts.some((text) => /unmanaged-devices/.test(text) && /veth|cni/.test(text))) {
    return [ok("NetworkManager leaves container interfaces alone")];
  }
  return [warning("NetworkManager runs, and nothing tells it to leave veth links and bridges alone", {
    breaks: "it may remove their addresses or start DHCP on them",
    fix: "in /etc/NetworkManager/conf.d/cni.conf: [keyfile] unmanaged-devices=interface-name:veth*;interface-name:cni*",
  })];
}

function textsIn(folder: string): string[] {
  try {
    return entriesOf(folder).filter(({ isFile }) => isFile).map(({ name }) => readRegularText(`${folder}/${name}`));
  } catch {
    return [];
  }
}

export async function mtu({ host, seen }: Node): Promise<Line[]> {
  const { ok, warning } = findings("MTU");
  const [dev] = await defaultLinks(host, 4).catch(() => []);
  const uplink = seen.links.find(({ ifname }) => ifname === dev);
  if (!uplink) return [];
  const larger = seen.views.filter(({ inside }) => inside && inside.mtu > uplink.mtu);
  const bridges = seen.links.filter(({ ifname, mtu }) =>
    mtu > uplink.mtu && seen.networks.some(({ bridge }) => bridge === ifname)
  );
  if (larger.length + bridges.length === 0) {
    return [ok(`${uplink.ifname} has ${uplink.mtu}, and nothing behind it more`)];
  }
  const names = [
    ...bridges.map(({ ifname, mtu }) => `${ifname} ${mtu}`),
    ...larger.slice(0, 3).map(({ containerId, inside }) => `${containerId} ${inside?.mtu}`),
  ];
  return [warning(`the way out (${uplink.ifname}) takes ${uplink.mtu}, but ${names.join(", ")}`, {
    breaks: "large packets vanish where ICMP is filtered: connections stall after the first bytes",
    fix: `"mtu": ${uplink.mtu} in the network`,
  })];
}

/** Ports that the kernel gives a bridge at most. */
const MAX_PORTS = 1023;

const { warning, failure } = findings("bridges");

export function bridges({ seen }: Node): Line[] {
  const lines: Line[] = [];
  for (const network of seen.networks) {
    const { bridge, name } = network;
    lines.push(...clashing(network, seen));
    const link = seen.links.find(({ ifname }) => ifname === bridge);
    if (!link) continue;
    if (link.linkinfo?.info_kind !== "bridge") {
      lines.push(failure(`network ${name}: ${bridge} is not a bridge but ${link.linkinfo?.info_kind ?? "a device"}`, {
        breaks: `"${bridge}" already exists but is not a bridge`,
        fix: 'give the network another "bridge"',
      }));
      continue;
    }
    const ports = seen.links.filter(({ master }) => master === bridge).length;
    if (ports * 10 >= MAX_PORTS * 9) {
      const text = `bridge ${bridge} has ${ports} ports, the kernel's limit is ${MAX_PORTS}`;
      const fix = "spread containers over more networks";
      lines.push((ports >= MAX_PORTS ? failure : warning)(text, { breaks: "exchange full", fix }));
    }
  }
  return lines;
}

/** Interfaces of the host that lead to addresses of a network which is routed here. */
function clashing({ name, bridge, list, sets }: NetworkView, { links }: Survey): Line[] {
  // macvlan and its like share the subnet of the link that they are on.
  if (!list?.plugins.some(({ type }) => type === "bridge" || type === "ptp")) return [];
  // `cni0.100` is the gateway of a VLAN on `cni0`.
  const others = links.filter(({ ifname }) =>
    ifname !== "lo" && ifname !== bridge && (bridge === "" || !ifname.startsWith(`${bridge}.`))
  );
  const clashes = sets.flat().flatMap(({ subnet }) =>
    others.flatMap(({ ifname, addr_info = [] }) =>
      addr_info.flatMap(({ local, prefixlen }) => {
        const prefix = parsePrefix(`${local}/${prefixlen}`);
        // A single address, such as that of a routed pair's end, leads nowhere else.
        if (!prefix || prefixlen === familyBits(prefix.address.family) || !prefixesOverlap(prefix, subnet)) return [];
        return [{ ifname, subnet, prefix }];
      })
    )
  );
  return clashes.map(({ ifname, subnet, prefix }): Line => {
    const wider = prefix.length < subnet.length && !prefixContains(subnet, prefix.address);
    const text = `network ${name}: ${formatPrefix(subnet)} overlaps ${
      formatPrefix(networkPrefix(prefix))
    } of ${ifname}`;
    return (wider ? warning : failure)(text, {
      breaks: wider
        ? `machines of ${formatPrefix(subnet)} behind ${ifname} cannot be reached`
        : "packets to the containers leave by the wrong interface",
      fix: "another subnet for the network",
    });
  });
}
