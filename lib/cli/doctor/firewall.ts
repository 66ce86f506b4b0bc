/** `doctor` on the firewall: kinds of iptables, firewalld, and policies that drop forwarded packets. */
import type { NetworkList } from "../../cni/conflist.ts";
import { iptablesTool, ruleTarget, ruleWords } from "../../kernel/iptables.ts";
import { toolPath } from "../../kernel/run.ts";
import { counted } from "../terminal.ts";
import { findings, type Line, type Node, output } from "./finding.ts";

const { ok, warning, failure } = findings("firewall");

export async function firewallBackends({ host, lists, seen, root }: Node): Promise<Line[]> {
  const lines: Line[] = [];
  if (!root) return lines;
  const variant = toolPath("iptables") === ""
    ? ""
    : /\((legacy|nf_tables)\)/.exec(await output(host, ["iptables", "--version"]))?.[1] ?? "legacy";
  const counts = await Promise.all((["legacy", "nft"] as const).map(async (kind) => {
    const tool = `iptables-${kind}-save`;
    if (toolPath(tool) === "") return 0;
    const text = await host({ argv: [tool] }).then(({ code, stdout }) => code === 0 ? stdout : "").catch(() => "");
    return text.split("\n").filter((line) => line.startsWith("-A")).length;
  }));
  const [legacy = 0, nft = 0] = counts;
  if (legacy > 0 && variant === "nf_tables" && nft === 0) {
    const text = `${counted(legacy, "rule")} of the legacy kind ${legacy === 1 ? "is" : "are"} there beside it`;
    lines.push(warning(`iptables is the nf_tables kind, and ${text}`, {
      breaks: "iptables does not show them, and they are applied all the same",
      fix: "iptables-legacy-save shows them; iptables-legacy -F and -X, with -t for every table, removes them",
    }));
  } else if (legacy > 0 && nft > 0) {
    lines.push(warning(`rules of both kinds of iptables: ${legacy} legacy, ${nft} nf_tables`, {
      breaks: "both are applied, and neither tool shows the other's: traffic is dropped for no visible reason",
      fix: `update-alternatives --config iptables on every program's side, then flush the other with iptables-${
        variant === "legacy" ? "nft" : "legacy"
      } -F`,
    }));
  } else if (variant !== "") lines.push(ok(`iptables is the ${variant} kind, and all rules are of it`));
  if (seen.rules.nft.chains.some(({ table }) => table === "firewalld")) {
    if (lists.every(hasFirewall)) lines.push(ok("firewalld runs"));
    else {
      lines.push(warning("firewalld runs", {
        breaks:
          "it rejects what containers send beyond the host, unless their addresses are in a trusted zone, and a reload removes published ports of iptables",
        fix: 'add {"type": "firewall"} to the networks; systemctl enable cnibox-restore.service',
      }));
    }
  }
  return lines;
}

const hasFirewall = ({ plugins }: NetworkList) => plugins.some(({ type }) => type === "firewall");

export function forwardPolicy({ seen, lists, root }: Node): Line[] {
  if (!root || lists.length === 0) return [];
  const lines: Line[] = [];
  const open = lists.filter((list) =>
    !hasFirewall(list) && list.plugins.some(({ type }) => type === "bridge" || type === "ptp")
  );
  const { tables, nft } = seen.rules;
  for (const family of [4, 6] as const) {
    const tool = iptablesTool(family);
    const filter = tables[family].get("filter");
    if (filter?.policies?.get("FORWARD") !== "DROP") continue;
    const docker = [...filter.chains.keys()].some((name) => name.startsWith("DOCKER"));
    const bridges = open.map(({ name }) => seen.networks.find((one) => one.name === name)?.bridge ?? "").filter((
      name,
    ) => name !== "");
    const rules = ["FORWARD", "DOCKER-USER"].flatMap((chain) => filter.chains.get(chain) ?? []);
    const allowed = bridges.every((name) =>
      rules.some(({ text }) => {
        const words = ruleWords(text);
        return ruleTarget(text) === "ACCEPT" && ["-i", "-o"].some((word) => words[words.indexOf(word) + 1] === name);
      })
    );
    if (open.length === 0 || (bridges.length > 0 && allowed)) continue;
    const text = `${tool} drops forwarded packets (FORWARD policy DROP${docker ? ", set by Docker" : ""})`;
    lines.push((family === 4 ? failure : warning)(text, {
      breaks: `containers of ${open.map(({ name }) => name).join(", ")} reach nothing beyond their bridge`,
      fix: `add {"type": "firewall"} to the network, or ${tool} -I ${
        docker ? "DOCKER-USER" : "FORWARD"
      } -i BRIDGE -j ACCEPT, and with -o`,
    }));
  }
  const dropping = nft.chains.filter(({ hook, policy }) => hook === "forward" && policy === "drop")
    .map(({ family, table }) => `${family} ${table}`)
    .filter((name) => !["ip filter", "ip6 filter"].includes(name));
  if (dropping.length > 0 && open.length > 0) {
    lines.push(warning(`nftables drops forwarded packets in ${dropping.join(", ")}`, {
      breaks: `containers of ${open.map(({ name }) => name).join(", ")} may reach nothing beyond their bridge`,
      fix: "accept what comes from and goes to the bridges there",
    }));
  }
  return lines.length > 0 ? lines : [ok("forwarded packets are not dropped by a policy")];
}
