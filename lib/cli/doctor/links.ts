/** `doctor` on links of the host: programs that manage interfaces, MTUs, bridges and overlapping subnets. */
import { exists, readRegularText } from "../../kernel/regular_file.ts";
import {
  familyBits,
  formatPrefix,
  networkPrefix,
  parsePrefix,
  prefixContains,
  prefixesOverlap,
} from "../../net/cidr.ts";
import type { NetworkView, Survey } from "../survey.ts";
import { type Line, type Node, ok } from "./finding.ts";

/** Programs that take interfaces for theirs. */
export function managers({ folders }: Node): Line[] {
  const area = "managers";
  const lines: Line[] = [];
  if (exists("/run/NetworkManager", { links: true })) {
    const told = configTexts([
      `${folders.root}/etc/NetworkManager/conf.d`,
      `${folders.root}/usr/lib/NetworkManager/conf.d`,
    ])
      .some((text) => /unmanaged-devices/.test(text) && /veth|cni/.test(text));
    if (told) lines.push(ok(area, "NetworkManager leaves container interfaces alone"));
    else {
      lines.push({
        area,
        grade: "warning",
        text: "NetworkManager runs, and nothing tells it to leave veth links and bridges alone",
        breaks: "it may remove their addresses or start DHCP on them",
        fix:
          "in /etc/NetworkManager/conf.d/cni.conf: [keyfile] unmanaged-devices=interface-name:veth*;interface-name:cni*",
      });
    }
  }
  return lines;
}

function configTexts(folders: readonly string[]): string[] {
  return folders.flatMap((folder) => {
    try {
      return [...Deno.readDirSync(folder)].filter(({ isFile }) => isFile).map(({ name }) =>
        readRegularText(`${folder}/${name}`)
      );
    } catch {
      return [];
    }
  });
}

export async function mtu({ host, seen }: Node): Promise<Line[]> {
  const area = "MTU";
  const { code, stdout } = await host({ argv: ["ip", "-j", "route", "show", "default"] });
  const dev = code === 0 ? (JSON.parse(stdout || "[]") as { dev?: string }[])[0]?.dev : undefined;
  const uplink = seen.links.find(({ ifname }) => ifname === dev);
  if (!uplink) return [];
  const larger = seen.views.filter(({ inside }) => inside && inside.mtu > uplink.mtu);
  const bridges = seen.links.filter(({ ifname, mtu }) =>
    mtu > uplink.mtu && seen.networks.some(({ bridge }) => bridge === ifname)
  );
  if (larger.length + bridges.length === 0) {
    return [ok(area, `${uplink.ifname} has ${uplink.mtu}, and nothing behind it more`)];
  }
  const names = [
    ...bridges.map(({ ifname, mtu }) => `${ifname} ${mtu}`),
    ...larger.slice(0, 3).map(({ containerId, inside }) => `${containerId} ${inside?.mtu}`),
  ];
  return [{
    area,
    grade: "warning",
    text: `the way out (${uplink.ifname}) takes ${uplink.mtu}, but ${names.join(", ")}`,
    breaks: "large packets vanish where ICMP is filtered: connections stall after the first bytes",
    fix: `"mtu": ${uplink.mtu} in the network`,
  }];
}

/** Ports that the kernel gives a bridge at most. */
const MAX_PORTS = 1023;

export function bridges({ seen }: Node): Line[] {
  const area = "bridges";
  const lines: Line[] = [];
  for (const network of seen.networks) {
    const { bridge, name } = network;
    lines.push(...clashing(network, seen));
    const link = seen.links.find(({ ifname }) => ifname === bridge);
    if (!link) continue;
    if (link.linkinfo?.info_kind !== "bridge") {
      lines.push({
        area,
        grade: "failure",
        text: `network ${name}: ${bridge} is not a bridge but ${link.linkinfo?.info_kind ?? "a device"}`,
        breaks: `"${bridge}" already exists but is not a bridge`,
        fix: 'give the network another "bridge"',
      });
      continue;
    }
    const ports = seen.links.filter(({ master }) => master === bridge).length;
    if (ports * 10 >= MAX_PORTS * 9) {
      lines.push({
        area,
        grade: ports >= MAX_PORTS ? "failure" : "warning",
        text: `bridge ${bridge} has ${ports} ports, the kernel's limit is ${MAX_PORTS}`,
        breaks: "exchange full",
        fix: "spread containers over more networks",
      });
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
    return {
      area: "bridges",
      grade: wider ? "warning" : "failure",
      text: `network ${name}: ${formatPrefix(subnet)} overlaps ${formatPrefix(networkPrefix(prefix))} of ${ifname}`,
      breaks: wider
        ? `machines of ${formatPrefix(subnet)} behind ${ifname} cannot be reached`
        : "packets to the containers leave by the wrong interface",
      fix: "another subnet for the network",
    };
  });
}
