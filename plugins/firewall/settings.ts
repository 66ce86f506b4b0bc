/** What a configuration of firewall says, checked, and what it takes from the result before. */
import { decode, type Fields, text } from "../../lib/cni/decode.ts";
import { badConfig } from "../../lib/cni/error.ts";
import type { Call, ContainerCall } from "../../lib/cni/plugin.ts";
import { prevResult } from "../../lib/cni/prev_result.ts";
import type { Result } from "../../lib/cni/types.ts";
import { type Address, formatAddress, parsePrefix } from "../../lib/net/cidr.ts";
import { isAnyName } from "../../lib/net/link_name.ts";
import type { Backend } from "../../lib/rules/backend.ts";
import type { Forwarding, IngressPolicy } from "../../lib/rules/forwarding_iptables.ts";

/** The configuration's keys. */
export const keys = {
  backend: text("", "iptables, firewalld or nftables; without it firewalld if it runs, else iptables, else nftables", {
    oneOf: ["iptables", "firewalld", "nftables"],
  }),
  iptablesAdminChainName: text("", "chain for the administrator's own rules, which come first; CNI-ADMIN if empty"),
  firewalldZone: text("", "zone of firewalld that the addresses are put into; trusted if empty"),
  ingressPolicy: text(
    "",
    "open, same-bridge (other restricted bridges do not get in) or isolated (neighbours neither)",
    {
      oneOf: ["open", "same-bridge", "isolated"],
    },
  ),
};

/** A configuration, checked. */
export interface Config {
  /** As configured; undefined for the automatic choice. */
  readonly backend: Backend | "firewalld" | undefined;
  readonly admin: string;
  readonly zone: string;
  readonly policy: IngressPolicy;
}

/** The settings of a DEL or GC, which go on with what makes sense. */
export function settingsOf(call: Call, conf: Fields<typeof keys>): Config {
  const { backend } = conf;
  const known = backend === "iptables" || backend === "firewalld" || backend === "nftables";
  if (!known && backend !== "") {
    call.warn(`unknown backend "${backend}": chosen as without one; it is iptables, firewalld or nftables`);
  }
  const policy = conf.ingressPolicy || "open";
  return {
    backend: known ? backend : undefined,
    admin: conf.iptablesAdminChainName || "CNI-ADMIN",
    zone: conf.firewalldZone || "trusted",
    policy: policy === "same-bridge" || policy === "isolated" ? policy : "open",
  };
}

/** Configuration and the result before, checked; ADD and CHECK need both. */
export function parse(call: ContainerCall): { config: Config; previous: Result; forwarding: Forwarding } {
  const conf = decode(keys, call.config, "failed to load netconf");
  const previous = prevResult(call);
  if (!previous) {
    throw badConfig(
      "missing prevResult from earlier plugin",
      "firewall needs the result of the plugin before it in the list",
    );
  }
  const config = checkedSettings(call, conf);
  const addresses = addressesOf(previous);
  const bridge = config.policy === "open" || addresses.length === 0 ? "" : bridgeOf(previous, config.policy);
  return { config, previous, forwarding: { admin: config.admin, addresses, policy: config.policy, bridge } };
}

/** The settings, or the error for what is wrong with them. */
export function checkedSettings(call: Call, conf: Fields<typeof keys>): Config {
  if (!["", "open", "same-bridge", "isolated"].includes(conf.ingressPolicy)) {
    throw badConfig(
      `unknown ingress policy: "${conf.ingressPolicy}"`,
      '"ingressPolicy" is open, same-bridge or isolated',
    );
  }
  const config = settingsOf(call, conf);
  if (!/^[A-Za-z_][\w.:+-]{0,27}$/.test(config.admin)) {
    throw badConfig(
      `failed to check iptables chain existence: chain name "${config.admin}" too long or not a name`,
      '"iptablesAdminChainName" has up to 28 letters, digits, "-" and "_"',
    );
  }
  return config;
}

/** Every address of the result, whatever it is on; the same one once. */
export function addressesOf({ ips = [] }: Result): Address[] {
  const found = new Map<string, Address>();
  for (const { address } of ips) {
    const prefix = parsePrefix(address);
    if (prefix) found.set(formatAddress(prefix.address), prefix.address);
  }
  return [...found.values()];
}

function bridgeOf({ interfaces = [] }: Result, policy: string): string {
  const [first] = interfaces;
  if (!first) {
    throw badConfig(
      `interface needs to be set for ingress policy "${policy}", make sure to chain "firewall" plugin with "bridge"`,
      "the first interface of prevResult has to be the bridge",
    );
  }
  if (first.name === "") {
    throw badConfig("got empty bridge name", "the first interface of prevResult has to be the bridge");
  }
  if (!isAnyName(first.name)) {
    throw badConfig(`prevResult: "${first.name}" cannot be the name of a bridge`);
  }
  return first.name;
}
