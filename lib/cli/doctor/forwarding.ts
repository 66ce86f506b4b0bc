/** `doctor` on forwarding: sysctls that decide whether containers reach others. */
import { lookup } from "../../cni/decode.ts";
import { readSysctl } from "../../kernel/sysctl.ts";
import type { Survey } from "../survey.ts";
import { counted } from "../terminal.ts";
import { findings, type Line, type Node } from "./finding.ts";

export function forwarding({ lists, seen }: Node): Line[] {
  const { ok, warning, failure } = findings("forwarding");
  const routed = lists.filter(({ plugins }) =>
    plugins.some(({ type, config }) =>
      type === "ptp" || lookup(config, "isGateway") === true || lookup(config, "isDefaultGateway") === true ||
      lookup(config, "ipMasq") === true
    )
  );
  const attached = seen.views.filter(({ network, state }) =>
    state === "alive" && routed.some(({ name }) => name === network)
  );
  const lines: Line[] = [];
  const ask = (key: string, text: string, six: boolean) => {
    const value = readSysctl(key);
    if (value === undefined) return;
    if (value === "1") lines.push(ok(`${text} is on`));
    else if (attached.some(({ addresses }) => addresses.some((address) => address.includes(":") === six))) {
      const those = `${counted(attached.length, "container")} ${attached.length === 1 ? "is" : "are"}`;
      lines.push(failure(`${text} is off, and ${those} attached`, {
        breaks: "containers reach nothing beyond this host; somebody switched it off after they were attached",
        fix: `sysctl -w ${key.replaceAll("/", ".")}=1, and keep it in /etc/sysctl.d`,
        run: ["sysctl", "-qw", `${key.replaceAll("/", ".")}=1`],
      }));
    } else if (routed.length > 0 && !six) lines.push(ok(`${text} is off; the first container switches it on`));
  };
  ask("net/ipv4/ip_forward", "forwarding of IPv4", false);
  ask("net/ipv6/conf/all/forwarding", "forwarding of IPv6", true);
  const strict = ["all", ...seen.networks.map(({ bridge }) => bridge).filter((name) => name !== "")]
    .filter((name) => readSysctl(`net/ipv4/conf/${name}/rp_filter`) === "1");
  const several = new Set(seen.views.map(({ netns }) => netns)).size < seen.views.length;
  if (strict.length > 0 && several) {
    lines.push(warning(`rp_filter is strict on ${strict.join(", ")}`, {
      breaks: "answers of containers with several interfaces are dropped when they come by another than they went",
      fix: "sysctl -w net.ipv4.conf.all.rp_filter=2, or add the plugin sbr",
    }));
  } else if (strict.length > 0) lines.push(ok("rp_filter is strict, which fits containers with one interface"));
  else lines.push(ok("rp_filter lets answers through"));
  if (readSysctl("net/ipv6/conf/all/disable_ipv6") === "1" && lists.some(({ name }) => sixOf(seen, name))) {
    lines.push(failure("IPv6 is switched off on this host, and a network has IPv6 addresses", {
      breaks: "could not add IP address: permission denied",
      fix: "sysctl -w net.ipv6.conf.all.disable_ipv6=0, or remove the IPv6 range",
    }));
  }
  return lines;
}

function sixOf({ networks }: Survey, name: string): boolean {
  return networks.some((one) => one.name === name && one.sets.some(([first]) => first.start.family === 6));
}

export function bridgeFilter({ lists }: Node): Line[] {
  const { ok, warning } = findings("br_netfilter");
  if (!lists.some(({ plugins }) => plugins.some(({ type }) => type === "bridge"))) return [];
  const values = ["iptables", "ip6tables"].map((tool) => readSysctl(`net/bridge/bridge-nf-call-${tool}`));
  if (values.every((value) => value === undefined)) {
    return [
      ok(
        "not loaded: frames between containers of one bridge pass no rules (Kubernetes services want it: modprobe br_netfilter)",
      ),
    ];
  }
  if (values.some((value) => value === "0")) {
    return [warning("loaded, but bridge-nf-call-iptables is off", {
      breaks: "a container cannot reach itself or a neighbour through a service or a published port",
      fix: "sysctl -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1",
      run: ["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1", "net.bridge.bridge-nf-call-ip6tables=1"],
    })];
  }
  return [ok("loaded, and frames between containers of one bridge pass the rules")];
}
