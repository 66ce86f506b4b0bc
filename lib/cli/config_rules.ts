/** What plugins need beyond their tables of keys: values that must fit together, and what cannot be meant. */
import { isObject } from "../cni/decode.ts";
import { CniError } from "../cni/error.ts";
import { checkConf } from "../ipam/cluster_conf.ts";
import { rangeSets } from "../ipam/range.ts";
import { isAnyName, isLinkName } from "../net/link_name.ts";
import { canBeInRule } from "../rules/forwarding_iptables.ts";
import { parseMac } from "../net/mac.ts";
import { formatPrefix, networkPrefix, parseAddress, parsePrefix, type Prefix, prefixContains } from "../net/cidr.ts";
import { Section, shown } from "./config_source.ts";
import { type Node, valueOf } from "./jsonc.ts";
import { configuredSets, rangeConf } from "./leases.ts";

/** A member of a list, and the list around it. */
export interface MemberView {
  readonly member: Section;
  readonly type: string;
  /** Place in the list, from 0. */
  readonly index: number;
  /** Types of all members, in order. */
  readonly types: readonly string[];
  readonly members: readonly Section[];
  /** Version of the list. */
  readonly version: string;
  /** Capabilities that the member declares. */
  readonly capabilities: readonly string[];
  /** Subnets that addresses are given out of, for the comparison with other networks. */
  readonly subnets: { readonly prefix: Prefix; readonly place: Node }[];
}

/** Plugins that only change what another one made. */
export const NEEDS_OTHERS = ["bandwidth", "firewall", "portmap", "sbr", "tuning", "vrf"];

/** Capabilities that members of a chain declare and the chain does not: a runtime hands them to nobody. */
export function unreachable(
  chain: Section,
): { readonly type: string; readonly capability: string; readonly at: Node }[] {
  const granted = chain.section("capabilities");
  return chain.items("plugins").flatMap((item) => {
    const member = new Section(chain.source, item);
    return (member.section("capabilities")?.properties ?? [])
      .filter(({ key, value }) => value.value === true && granted?.exactly(key)?.value.value !== true)
      .map(({ key, value }) => ({ type: member.text("type") ?? "", capability: key, at: value }));
  });
}

type Rule = (view: MemberView) => void;

/** Rules by plugin type. */
export const RULES: Readonly<Record<string, Rule>> = {
  bridge,
  ptp: (view) => needsIpam(view),
  vlan: (view) => {
    needs(view, "master", "vlanId");
    anyName(view, "master");
  },
  macvlan: (view) => {
    linkMac(view);
    anyName(view, "master");
  },
  ipvlan: (view) => anyName(view, "master"),
  tap: (view) => {
    linkMac(view);
    anyName(view, "bridge");
  },
  vrf: (view) => {
    needs(view, "vrfname");
    const name = view.member.text("vrfname");
    if (name) linkName(view.member, "vrfname", name);
  },
  firewall,
  "host-device": hostDevice,
  portmap,
  bandwidth,
  tuning,
  chain,
};

/** Rules of IPAM plugins: they see the member with the `ipam` section. */
export const IPAM_RULES: Readonly<Record<string, (view: MemberView, ipam: Section) => void>> = {
  "host-local": hostLocal,
  cluster: clusterPool,
  static: staticAddresses,
};

/** What a chain itself has to be; its members are looked at as those of a list. */
function chain({ member, capabilities }: MemberView): void {
  const { source } = member;
  const members = member.items("plugins");
  if (members.length === 0 && (member.get("plugins") === undefined || member.property("plugins")?.value.items)) {
    source.error("plugins", member.at("plugins"), "no plugins in this chain", 'add "plugins": [{"type": "…"}]');
  }
  for (const { type, capability, at } of unreachable(member)) {
    source.error(
      "capability",
      at,
      `${type} never gets "${capability}": the chain around it does not declare it`,
      `add "${capability}": true to the "capabilities" of the chain`,
    );
  }
  const declared = members.map((item) => new Section(source, item).section("capabilities"));
  for (const name of capabilities) {
    if (declared.some((one) => one?.get(name) === true)) continue;
    const place = member.section("capabilities")?.at(name);
    source.warn("capability", place, `no plugin of this chain declares the capability "${name}"`);
  }
}

function needs({ member, type }: MemberView, ...keys: readonly string[]): void {
  for (const key of keys) {
    if (member.get(key) === undefined || member.get(key) === "") {
      member.source.error("missing-key", member.node, `${type} needs "${key}"`);
    }
  }
}

function needsIpam({ member, type }: MemberView): void {
  if (member.section("ipam")?.text("type")) return;
  const hint = '"ipam": {"type": "host-local", …}';
  member.source.error("missing-key", member.at("ipam"), `${type} needs "ipam" with a "type"`, hint);
}

function bridge({ member, types, members }: MemberView): void {
  const { source } = member;
  const name = member.text("bridge");
  if (name !== undefined) linkName(member, "bridge", name);
  const is = (key: string) => member.get(key) === true;
  if (is("hairpinMode") && is("promiscMode")) conflict(member, "promiscMode", ["hairpinMode", "promiscMode"]);
  const ipam = member.section("ipam")?.text("type") ?? "";
  if (is("disableContainerInterface") && ipam !== "") {
    const text = '"disableContainerInterface" leaves no link for the addresses of "ipam"';
    source.error("conflict", member.at("disableContainerInterface"), text);
  }
  for (const key of ["isGateway", "isDefaultGateway", "ipMasq"]) {
    if (is(key) && ipam === "") source.warn("no-effect", member.at(key), `"${key}" has no effect without "ipam"`);
  }
  member.items("vlanTrunk").forEach((node, index) => trunk(member, node, index));
  if (members.length > 1 && types.includes("portmap") && !is("hairpinMode")) {
    source.warn(
      "hairpin",
      member.at("hairpinMode"),
      'containers will not reach their own published ports: portmap follows, and "hairpinMode" is off',
      'add "hairpinMode": true',
    );
  }
}

function trunk(member: Section, node: Node, index: number): void {
  const value = valueOf(node);
  if (!isObject(value)) return;
  const { minID, maxID, id } = value;
  const path = `vlanTrunk.${index}`;
  if ((minID === undefined) !== (maxID === undefined)) {
    member.source.error("value", node, `"${path}": "minID" and "maxID" go together`);
  } else if (typeof minID === "number" && typeof maxID === "number" && minID > maxID) {
    member.source.error("value", node, `"${path}": minID ${minID} is greater than maxID ${maxID}`);
  } else if (minID === undefined && id === undefined) {
    member.source.warn("no-effect", node, `"${path}" names no VLAN`, 'write "id", or "minID" and "maxID"');
  }
}

function linkName(member: Section, key: string, name: string): void {
  const length = new TextEncoder().encode(name).length;
  if (name === "") member.wrong("link-name", key, `"${key}" is empty`);
  else if (length > 15) {
    const text = `"${key}" is "${name}": ${length} characters, an interface name has 15 at most`;
    member.wrong("link-name", key, text, `shorten it: "${name.slice(0, 15)}"`);
  } else if (!isLinkName(name)) notAName(member, key, name);
}

function notAName(member: Section, key: string, name: string): void {
  member.wrong("link-name", key, `"${key}" is ${shown(name)}, which no interface may be called`);
}

/** The name of a link that is there already; an alternative one will do. */
function anyName({ member }: MemberView, key: string): void {
  const name = member.text(key);
  if (name && !isAnyName(name)) notAName(member, key, name);
}

/** A rule that keeps a bridge apart has to name it. */
function firewall({ member, index, members }: MemberView): void {
  const policy = member.text("ingressPolicy") ?? "";
  const first = members[0];
  const bridge = first?.text("type") === "bridge" ? first.text("bridge") ?? "" : "";
  if (index === 0 || !["same-bridge", "isolated"].includes(policy) || bridge === "") return;
  const tool = member.text("backend") === "nftables" ? "nftables" : "iptables";
  if (canBeInRule(bridge, tool)) return;
  member.wrong(
    "link-name",
    "ingressPolicy",
    `"ingressPolicy": no rule of ${tool} can be about a bridge called ${shown(bridge)}`,
    'choose another name in "bridge"',
  );
}

function linkMac({ member }: Pick<MemberView, "member">): void {
  const mac = member.text("mac");
  if (mac && parseMac(mac) === undefined) {
    member.wrong("value", "mac", `"mac" is "${mac}", which is not a valid hardware address`);
  }
}

function hostDevice(view: MemberView): void {
  const { member, capabilities } = view;
  anyName(view, "device");
  const ways = ["device", "hwaddr", "kernelpath", "pciBusID"].filter((key) => member.text(key));
  if (ways.length === 0 && !capabilities.includes("deviceID")) {
    member.source.error(
      "missing-key",
      member.node,
      'host-device needs one of "device", "hwaddr", "kernelpath", "pciBusID"',
    );
  }
}

function conflict(member: Section, at: string, [one, other]: readonly [string, string]): void {
  member.source.error("conflict", member.at(at), `"${one}" and "${other}" exclude each other`, "remove one of them");
}

function portmap({ member }: MemberView): void {
  const chain = member.text("externalSetMarkChain");
  if (chain !== undefined && member.get("markMasqBit") !== undefined) {
    conflict(member, "externalSetMarkChain", ["externalSetMarkChain", "markMasqBit"]);
  }
  if (chain === "KUBE-MARK-MASQ") {
    member.doubtful(
      "mark-chain",
      "externalSetMarkChain",
      '"externalSetMarkChain" is "KUBE-MARK-MASQ": newer kube-proxy no longer makes that chain',
      "remove the key: portmap then marks packets itself",
    );
  }
}

/** Bursts longer than this let a rate through that is hardly meant, in seconds. */
const LONG_BURST_S = 10;

function bandwidth({ member, capabilities }: MemberView): void {
  const { source } = member;
  let any = false;
  for (const way of ["ingress", "egress"]) {
    const [rate, burst] = [member.get(`${way}Rate`), member.get(`${way}Burst`)];
    if (rate !== undefined && rate !== 0) any = true;
    if (typeof rate !== "number" && typeof burst !== "number") continue;
    if (!rate || !burst) {
      const [there, missing] = rate ? ["Rate", "Burst"] : ["Burst", "Rate"];
      const text = `"${way}${missing}" is missing: rate and burst go together`;
      source.error("missing-key", member.at(`${way}${there}`), text);
    } else if (typeof rate === "number" && typeof burst === "number" && burst / rate > LONG_BURST_S) {
      member.doubtful(
        "long-burst",
        `${way}Burst`,
        `"${way}Burst" is ${burst}: ${Math.round(burst / rate)} seconds pass before "${way}Rate" limits anything`,
        "both are in bits: some tenths of a second of the rate are usual",
      );
    }
  }
  if (!any && !capabilities.includes("bandwidth")) {
    const hint = 'write rates, or "capabilities": {"bandwidth": true}';
    source.warn("no-effect", member.node, "this bandwidth limits nothing", hint);
  }
}

function tuning({ member }: MemberView): void {
  linkMac({ member });
  const { source } = member;
  const sysctl = member.section("sysctl");
  for (const property of sysctl?.properties ?? []) {
    const { key } = property;
    if (/(^|\/|\.)\.\.(\/|$)/.test(key) || key === "") {
      source.error("sysctl", property, `"${key}" is not a setting`);
    } else if (!/^net[./]/.test(key)) {
      const text = `"${key}" is not a setting of a network namespace`;
      source.error("sysctl", property, text, 'such settings begin with "net."');
    }
  }
}

function hostLocal(view: MemberView, ipam: Section): void {
  const { member: { source }, version, capabilities } = view;
  const sets = ipam.property("ranges")?.value;
  const legacy = ["subnet", "rangeStart", "rangeEnd", "gateway"].filter((key) => ipam.get(key) !== undefined);
  const nodes = (sets?.items ?? []).map(({ items = [] }) => items);
  if (ipam.get("subnet") !== undefined) nodes.unshift([ipam.node]);
  else if (legacy.length > 0) {
    const hint = sets && 'it belongs into an element of "ranges"';
    const text = `"${legacy[0]}" has no effect without "subnet" beside it`;
    source.warn("no-effect", ipam.at(legacy[0] ?? ""), text, hint);
  }
  if (sets?.items?.some(({ kind }) => kind === "object")) {
    source.forget(sets);
    const text = '"ipam.ranges" is a list of objects: it is a list of lists';
    return source.error("value", sets, text, '"ranges": [[{"subnet": "…"}]]');
  }
  if (nodes.length === 0 && !capabilities.includes("ipRanges")) {
    source.error("missing-key", ipam.node, 'host-local needs "ranges"', '"ranges": [[{"subnet": "10.1.0.0/16"}]]');
    return;
  }
  nodes.forEach((set, index) => {
    if (set.length === 0) {
      source.error("value", sets, `"ipam.ranges.${index}" is empty`, "a set holds at least one range");
    }
    for (const node of set) range(new Section(source, node));
  });
  if (source.findings.some(({ severity }) => severity === "error")) return;
  try {
    // What a runtime adds is not known here.
    if (nodes.length > 0) configuredSets(ipam.value, version || "0.1.0");
  } catch (error) {
    if (!(error instanceof CniError)) throw error;
    source.error("range", sets ?? ipam.node, error.msg, error.details);
  }
  noteSubnets(view, nodes.flat());
  const folder = ipam.text("dataDir");
  if (folder && !folder.startsWith("/")) {
    const text = `"dataDir" is "${folder}": relative to wherever the runtime was started`;
    ipam.doubtful("relative-path", "dataDir", text, "write an absolute path");
  }
}

/** Keeps the subnets of ranges for the comparison with other networks. */
function noteSubnets({ member: { source }, subnets }: MemberView, ranges: readonly Node[]): void {
  for (const node of ranges) {
    const subnet = new Section(source, node).property("subnet")?.value;
    const prefix = typeof subnet?.value === "string" ? parsePrefix(subnet.value) : undefined;
    if (subnet && prefix) subnets.push({ prefix, place: subnet });
  }
}

/** Whatever the plugin refuses without asking anybody, in its own words, where the key is that it names. */
function clusterPool(view: MemberView, ipam: Section): void {
  const { member, version } = view;
  const { source } = member;
  if (source.findings.some(({ severity }) => severity === "error")) return;
  try {
    const config = valueOf(member.node) as Record<string, unknown>;
    checkConf({ config, version: version || "0.1.0", network: "network", warn: () => {} });
  } catch (error) {
    if (!(error instanceof CniError)) throw error;
    const [first, ...below] = /"ipam\.([\w.]+)"/.exec(error.msg)?.[1]?.split(".") ?? [];
    let [section, key]: [Section, string | undefined] = [ipam, first];
    for (const next of below) {
      const inner: Section | undefined = key === undefined ? undefined : section.section(key);
      if (inner === undefined) break;
      [section, key] = [inner, next];
    }
    const isMissing = key !== undefined && section.get(key) === undefined;
    const place = key === undefined ? ipam.valueAt("ranges") : section.valueAt(key);
    source.error(isMissing ? "missing-key" : "range", place, error.msg, error.details);
    return;
  }
  // Networks of one pool have the same addresses on purpose: only others' are compared.
  if (ipam.get("pool") !== undefined || ipam.get("network_name") !== undefined) return;
  noteSubnets(view, ipam.items("ranges").flatMap(({ items = [] }) => items));
}

/** One range: each mistake at the key that makes it. */
function range(section: Section): void {
  const conf = rangeConf(section.value);
  if (conf.subnet === undefined) {
    if (!section.get("subnet")) section.source.error("missing-key", section.at("subnet"), 'a range needs "subnet"');
    return;
  }
  const subnet = parsePrefix(conf.subnet);
  if (!subnet) {
    const plain = parseAddress(conf.subnet);
    const length = plain?.family === 6 ? 64 : 24;
    const hint = plain && `add the prefix length: "${conf.subnet}/${length}"`;
    section.wrong("subnet", "subnet", `"subnet" is "${conf.subnet}", which is not a valid subnet`, hint);
    return;
  }
  const network = networkPrefix(subnet);
  if (formatPrefix(network) !== formatPrefix(subnet)) {
    const hint = `the subnet itself is "${formatPrefix(network)}"`;
    section.wrong("subnet", "subnet", `"subnet" is "${conf.subnet}", an address in a subnet`, hint);
    return;
  }
  let sound = true;
  for (const key of ["rangeStart", "rangeEnd", "gateway"] as const) {
    const text = conf[key];
    if (text === undefined) continue;
    const address = parseAddress(text);
    const says = (message: string, hint?: string) => {
      sound = false;
      if (key === "gateway" && address) section.doubtful("range", key, message, hint);
      else section.wrong("range", key, message, hint);
    };
    if (!address) {
      const hint = text.includes("/") ? "without a prefix length" : undefined;
      says(`"${key}" is "${text}", which is not a valid address`, hint);
    } else if (address.family !== subnet.address.family) {
      sound = false;
      section.wrong("range", key, `"${key}" ${text} is not of the family of "subnet" ${conf.subnet}`);
    } else if (!prefixContains(subnet, address)) says(`"${key}" ${text} is outside of "subnet" ${conf.subnet}`);
  }
  if (!sound) return;
  const [start, end] = [parseAddress(conf.rangeStart ?? ""), parseAddress(conf.rangeEnd ?? "")];
  if (start && end && start.value > end.value) {
    const text = `"rangeStart" ${conf.rangeStart} comes after "rangeEnd" ${conf.rangeEnd}`;
    section.wrong("range", "rangeStart", text, "exchange them");
    return;
  }
  try {
    rangeSets([[conf]], { version: "1.0.0", atLeast030: true, warn: () => {} });
  } catch (error) {
    if (!(error instanceof CniError)) throw error;
    section.wrong("range", "subnet", error.msg.replace(/^invalid range set 0: /, ""), error.details);
  }
}

function staticAddresses({ member: { source }, capabilities, subnets }: MemberView, ipam: Section): void {
  const items = ipam.items("addresses");
  if (items.length === 0 && !capabilities.includes("ips")) {
    const hint = 'write "addresses", or "capabilities": {"ips": true}';
    source.warn("no-effect", ipam.node, "static has no addresses to give", hint);
  }
  const seen = new Set<string>();
  for (const node of items) {
    if (node.kind !== "object") continue;
    const section = new Section(source, node);
    const text = section.text("address") ?? "";
    const prefix = parsePrefix(text);
    if (!prefix) {
      const hint = parseAddress(text) &&
        `add the prefix length of its subnet: "${text}/${text.includes(":") ? 64 : 24}"`;
      section.wrong(
        "address",
        "address",
        `"address" is "${text}", which is not a valid address with a prefix length`,
        hint,
      );
      continue;
    }
    if (seen.has(text)) section.doubtful("address", "address", `${text} is there twice`);
    seen.add(text);
    subnets.push({ prefix: networkPrefix(prefix), place: section.property("address")?.value ?? node });
    const gateway = parseAddress(section.text("gateway") ?? "");
    if (gateway && !prefixContains(networkPrefix(prefix), gateway)) {
      section.doubtful(
        "address",
        "gateway",
        `"gateway" ${section.text("gateway")} is outside of the subnet of ${text}`,
      );
    }
  }
}
