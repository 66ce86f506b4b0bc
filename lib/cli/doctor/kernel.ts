/** `doctor` on the kernel: can it make the kinds of links that networks use? */
import { says } from "../../kernel/run.ts";
import { findings, type Line, type Node, typesInUse } from "./finding.ts";

/** Kinds of links by the plugins that make them, and the kernel's option for them. */
const KINDS: Readonly<Record<string, readonly [kind: string, option: string]>> = {
  bridge: ["bridge", "CONFIG_BRIDGE"],
  ptp: ["veth", "CONFIG_VETH"],
  macvlan: ["macvlan", "CONFIG_MACVLAN"],
  ipvlan: ["ipvlan", "CONFIG_IPVLAN"],
  vlan: ["vlan", "CONFIG_VLAN_8021Q"],
  dummy: ["dummy", "CONFIG_DUMMY"],
  vrf: ["vrf", "CONFIG_NET_VRF"],
  bandwidth: ["ifb", "CONFIG_IFB"],
};

/** Tries link types out in namespaces that nobody sees. */
export async function kernelFeatures({ host, lists, root }: Node): Promise<Line[]> {
  const { ok, failure } = findings("kernel");
  if (!root) return [];
  const kinds = new Map<string, string>();
  for (const type of typesInUse(lists)) {
    const [kind, option] = KINDS[type] ?? [];
    if (kind && option) kinds.set(kind, option);
    if (type === "bridge") kinds.set("veth", "CONFIG_VETH");
  }
  const tried = await Promise.all([...kinds].map(async ([kind, option]): Promise<Line | string> => {
    const words: Readonly<Record<string, string[]>> = {
      veth: ["type", "veth", "peer", "name", "cnibox1"],
      vrf: ["type", "vrf", "table", "10"],
      macvlan: ["link", "lo", "type", "macvlan"],
      ipvlan: ["link", "lo", "type", "ipvlan"],
      vlan: ["link", "lo", "type", "vlan", "id", "5"],
    };
    const argv = ["unshare", "--net", "ip", "link", "add", "name", "cnibox0", ...words[kind] ?? ["type", kind]];
    // `link` comes before the name.
    const output = await host({ argv });
    const unknown = says(output, "kindUnknown");
    if (output.code === 0 || !unknown) return kind;
    return failure(`the kernel has no ${kind} links`, {
      breaks: "operation not supported",
      fix: `modprobe ${kind === "vlan" ? "8021q" : kind}, or a kernel with ${option}`,
    });
  }));
  const good = tried.filter((one) => typeof one === "string");
  const lines = tried.filter((one) => typeof one !== "string");
  return good.length > 0 ? [ok(`links of kind ${good.join(", ")}`), ...lines] : lines;
}
