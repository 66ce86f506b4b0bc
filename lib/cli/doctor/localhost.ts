/** `doctor` on localhost: does 127.0.0.1 of this host reach published ports, and nothing else? */
import { isObject, lookup } from "../../cni/decode.ts";
import { ruleTarget, ruleWords } from "../../kernel/iptables.ts";
import { readSysctl } from "../../kernel/sysctl.ts";
import type { Rules } from "../survey.ts";
import { findings, type Line, type Node } from "./finding.ts";

/** `route_localnet`: what lets 127.0.0.1 of this host reach published ports, and what it opens without a guard. */
export function localhost({ seen, root }: Node): Line[] {
  const { ok, warning, failure } = findings("localhost");
  if (!root) return [];
  const isOn = (name: string) => readSysctl(`net/ipv4/conf/${name}/route_localnet`) === "1";
  const on = ["all", ...seen.links.map(({ ifname }) => ifname).filter((name) => name !== "lo")].filter(isOn);
  const guarded = isGuarded(seen.rules);
  if (on.length > 0 && !guarded) {
    return [failure(`route_localnet is on for ${on.join(", ")}, and no rule guards 127.0.0.0/8`, {
      breaks: "containers reach what listens on 127.0.0.1 of this host alone",
      fix: seen.views.some(({ ports }) => ports.length > 0)
        ? "cnibox restore --all"
        : `sysctl -w ${on.map((name) => `net.ipv4.conf.${name.replaceAll(".", "/")}.route_localnet=0`).join(" ")}`,
    })];
  }
  const published = seen.views.filter(({ network, state, ports, addresses }) => {
    const portmap = seen.networks.find(({ name }) => name === network)?.list?.plugins.find(({ type }) =>
      type === "portmap"
    );
    return state === "alive" && portmap !== undefined && lookup(portmap.config, "snat") !== false &&
      addresses.some((address) => !address.includes(":")) && ports.some(isForLocalhost);
  });
  if (published.length === 0) return [];
  const ways = new Set(published.map(({ bridge, outside }) => bridge || (outside?.ifname ?? "")));
  const off = [...ways].filter((name) => readSysctl(`net/ipv4/conf/${name}/route_localnet`) === "0" && !isOn("all"));
  if (off.length > 0 && guarded) {
    return [warning(`route_localnet is off for ${off.join(", ")}`, {
      breaks: "127.0.0.1 of this host does not reach published ports; its other addresses do",
      fix: `sysctl -w ${off.map((name) => `net.ipv4.conf.${name.replaceAll(".", "/")}.route_localnet=1`).join(" ")}`,
    })];
  }
  return [
    ok(
      on.length > 0
        ? "127.0.0.1 of this host reaches published ports and nobody else's; [::1] does not: the kernel has no route_localnet for IPv6"
        : "127.0.0.1 of this host does not reach published ports: the kernel could not have the guard; its other addresses do",
    ),
  ];
}

/** Does any rule of either backend drop what is sent to 127.0.0.0/8? */
function isGuarded({ tables, nft }: Rules): boolean {
  const inIptables = [...tables[4].values()].flatMap(({ chains }) => [...chains.values()].flat()).some(({ text }) =>
    ruleTarget(text) === "DROP" && ruleWords(text).includes("127.0.0.0/8")
  );
  return inIptables || nft.rules.some(({ expr }) => {
    const text = JSON.stringify(expr);
    return text.includes('"127.0.0.0"') && text.includes('"drop"');
  });
}

/** Does a mapping take what is sent to 127.0.0.1? */
function isForLocalhost(mapping: unknown): boolean {
  const hostIP = isObject(mapping) ? lookup(mapping, "hostIP") : undefined;
  return typeof hostIP !== "string" || ["", "0.0.0.0"].includes(hostIP) || hostIP.startsWith("127.");
}
