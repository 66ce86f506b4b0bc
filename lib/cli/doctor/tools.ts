/** `doctor` on tools: are the programs there that plugins in use start, and which versions are they? */
import { lookup } from "../../cni/decode.ts";
import { type Run, toolPath } from "../../kernel/run.ts";
import { findings, type Line, type Node, output, typesInUse } from "./finding.ts";

const PACKAGES: Readonly<Record<string, string>> = {
  ip: "iproute2",
  tc: "iproute2",
  bridge: "iproute2",
  nsenter: "util-linux",
  iptables: "iptables",
  nft: "nftables",
  conntrack: "conntrack",
};

export async function tools({ host, lists, runtime }: Node): Promise<Line[]> {
  const { ok, warning, failure } = findings("tools");
  const needed = new Set(["ip", "nsenter"]);
  for (const type of typesInUse(lists)) {
    // What runs in /bin/sh is always there.
    for (const tool of (await runtime.registry(type))?.needs ?? []) if (tool !== "sh") needed.add(tool);
  }
  const lines: Line[] = [];
  const versions: string[] = [];
  for (const tool of needed) {
    const path = toolPath(tool);
    if (path === "") {
      lines.push(failure(`${tool} is missing`, {
        breaks: `exec: "${tool}": executable file not found in $PATH`,
        fix: `install the package ${PACKAGES[tool] ?? tool}`,
      }));
      continue;
    }
    versions.push(await versionOf(host, tool));
  }
  if (versions.length > 0) lines.push(ok(versions.join(", ")));
  const ip = toolPath("ip") === "" ? "" : await output(host, ["ip", "-V"]);
  if (ip !== "" && !/iproute2/.test(ip)) {
    lines.push(failure("ip is not that of iproute2 (BusyBox?)", {
      breaks: "it knows neither -json nor -batch",
      fix: "install the package iproute2",
    }));
  }
  const firewalls = ["iptables-restore", "nft"].filter((tool) => toolPath(tool) !== "");
  const needsRules = lists.some(({ plugins }) =>
    plugins.some(({ type, config }) => ["portmap", "firewall"].includes(type) || lookup(config, "ipMasq") === true)
  );
  if (firewalls.length === 0) {
    lines.push((needsRules ? failure : warning)("neither iptables nor nft is there", {
      breaks: "masquerading, published ports, the firewall plugin",
      fix: "install the package nftables or iptables",
    }));
  } else {
    const told = await Promise.all(firewalls.map((tool) => versionOf(host, tool.replace("-restore", ""))));
    lines.push(ok(`rules are set with ${told.join(" or ")}`));
  }
  const publishes = lists.some(({ plugins }) => plugins.some(({ type }) => type === "portmap"));
  if (publishes && toolPath("conntrack") === "") {
    lines.push(warning("conntrack is missing", {
      breaks: "UDP flows to a published port keep going to the container before",
      fix: "install the package conntrack",
    }));
  }
  return lines;
}

async function versionOf(host: Run, tool: string): Promise<string> {
  // It has no version of its own, and takes what it is given for a namespace.
  if (tool === "nsenter") return tool;
  const text = await output(host, [tool, tool === "ip" || tool === "tc" || tool === "bridge" ? "-V" : "--version"]);
  return `${tool} ${/\d+\.\d+(\.\d+)*/.exec(text)?.[0] ?? "(of an unknown version)"}`;
}
