/** `cnibox doctor`: what usually goes wrong on a node, each line ok, warning or failure, with the mend. Only looks, unless told to mend. */
import { lookUp } from "../cni/delegate.ts";
import type { NetworkList } from "../cni/conflist.ts";
import { loadAll } from "../cni/conflist.ts";
import { isObject, lookup } from "../cni/decode.ts";
import { toCniError } from "../cni/error.ts";
import { probeVersions, type Runtime } from "../cni/chain.ts";
import { unseenText } from "../kernel/all_netns.ts";
import { foreground } from "../kernel/foreground.ts";
import { readKernelFile } from "../kernel/proc.ts";
import { readRegularText } from "../kernel/regular_file.ts";
import { readSysctl } from "../kernel/sysctl.ts";
import { type Run, systemRun, toolPath } from "../kernel/run.ts";
import {
  familyBits,
  formatPrefix,
  networkPrefix,
  parseAddress,
  parsePrefix,
  prefixContains,
  prefixesOverlap,
} from "../net/cidr.ts";
import type { CommandCall } from "./command.ts";
import { otherNodes } from "./doctor_nodes.ts";
import { gather, GONE, judge, type Pool, pools, useOf } from "./leases.ts";
import { watchedRuntime } from "./runtime.ts";
import { attachmentsOf, type Folders, foldersOf } from "./setup.ts";
import { real } from "./show.ts";
import { type NetworkView, type Survey, survey } from "./survey.ts";
import { complain, jsonText, oneLine, painter, say } from "./terminal.ts";
import { examine } from "./validate.ts";

/** `ok`, a warning (some things will not work, or soon not), or a failure (containers cannot be attached or reached). */
export type Grade = "ok" | "warning" | "failure";

/** One thing that was looked at. */
export interface Line {
  readonly area: string;
  readonly grade: Grade;
  readonly text: string;
  /** What breaks. */
  readonly breaks?: string;
  /** What to do, as a command where there is one. */
  readonly mend?: string;
  /** Command that mends it without harm, for `--fix`. */
  readonly fix?: readonly string[];
}

/** Exit statuses of `doctor`. */
const RESULT = { healthy: 0, warnings: 1, failures: 2 } as const;

/** What every check may look at. */
interface Patient {
  readonly folders: Folders;
  readonly host: Run;
  readonly runtime: Runtime;
  readonly names: readonly string[];
  readonly lists: readonly NetworkList[];
  readonly seen: Survey;
  readonly root: boolean;
}

type Check = (patient: Patient) => Line[] | Promise<Line[]>;

/** All checks in the order in which people read them. */
const CHECKS: readonly Check[] = [
  configuration,
  plugins,
  tools,
  kernelFeatures,
  forwarding,
  bridgeFilter,
  firewallBackends,
  forwardPolicy,
  localhost,
  managers,
  mtu,
  addresses,
  attachments,
  bridges,
  daemons,
  otherNodes,
  disk,
  labels,
];

/** `cnibox doctor` */
export async function doctor(call: CommandCall): Promise<number> {
  const lines = await diagnosis(call);
  if (call.is("json")) say(jsonText(lines));
  else say(textOf(lines));
  if (call.is("fix")) await mend(lines);
  if (lines.some(({ grade }) => grade === "failure")) return RESULT.failures;
  return lines.some(({ grade }) => grade === "warning") ? RESULT.warnings : RESULT.healthy;
}

async function diagnosis(call: CommandCall): Promise<Line[]> {
  const folders = foldersOf(call);
  const { runtime, close } = watchedRuntime(call, folders);
  try {
    const { lists } = loadAll(folders.conf);
    const patient: Patient = {
      folders,
      host: systemRun(),
      runtime,
      names: call.invocation.names,
      lists,
      seen: await survey(folders, { partial: true }),
      root: Deno.uid() === 0,
    };
    const found = await Promise.all(CHECKS.map(async (check) => {
      try {
        return await check(patient);
      } catch (error) {
        return [{
          area: check.name,
          grade: "warning" as const,
          text: `could not be looked at: ${toCniError(error).message}`,
        }];
      }
    }));
    const lines = found.flat();
    if (!patient.root) {
      lines.push({
        area: "doctor",
        grade: "warning",
        text: "not run as root: rules, namespaces and leases could not be looked at",
        mend: "sudo cnibox doctor",
      });
    }
    return lines;
  } finally {
    close();
  }
}

const counted = (number: number, word: string) => `${number} ${word}${number === 1 ? "" : "s"}`;
const ok = (area: string, text: string): Line => ({ area, grade: "ok", text });

async function configuration({ folders, runtime, names }: Patient): Promise<Line[]> {
  const area = "configuration";
  if (!exists(folders.conf)) {
    return [{
      area,
      grade: "failure",
      text: `there is no folder ${folders.conf}`,
      breaks: 'runtimes say "cni config uninitialized" or "no network config found"',
      mend: "write a network there: cnibox schema conflist, docs/examples",
    }];
  }
  const { findings, picked, files } = await examine([folders.conf], { runtime, folders, names });
  const lines: Line[] = [];
  for (const { file, network, usable } of picked) {
    if (file === "") {
      lines.push({
        area,
        grade: "failure",
        text: `no network in ${folders.conf}`,
        breaks: 'runtimes say "cni config uninitialized"',
        mend: `put a .conflist into ${folders.conf}`,
      });
    } else if (usable) lines.push(ok(area, `runtimes take ${file}, network "${network}"`));
    else {
      lines.push({
        area,
        grade: "failure",
        text: `runtimes take ${file} first, and fail with it`,
        breaks: "no container gets a network",
        mend: `cnibox validate ${file}`,
      });
    }
  }
  const count = (severity: string) =>
    findings.filter((one) => one.severity === severity && one.rule !== "not-installed").length;
  const [errors, warnings] = [count("error"), count("warning")];
  if (errors + warnings === 0 && files.length > 0) {
    lines.push(ok(area, `${files.length === 1 ? "the file is" : `all ${files.length} files are`} sound`));
  }
  if (errors + warnings > 0) {
    lines.push({
      area,
      grade: errors > 0 ? "failure" : "warning",
      text: `${counted(errors, "error")} and ${counted(warnings, "warning")} in ${folders.conf}`,
      mend: "cnibox validate",
    });
  }
  return lines;
}

/** Types that the node's networks use, IPAM plugins too; runtimes bring loopback along. */
function typesInUse(lists: readonly NetworkList[]): string[] {
  const types = new Set<string>(["loopback"]);
  for (const { plugins } of lists) {
    for (const { type, config } of plugins) {
      types.add(type);
      const ipam = lookup(config, "ipam");
      const own = isObject(ipam) ? lookup(ipam, "type") : undefined;
      if (typeof own === "string" && own !== "") types.add(own);
    }
  }
  return [...types];
}

async function plugins({ folders, runtime, lists }: Patient): Promise<Line[]> {
  const area = "plugins";
  const where = folders.path.join(":");
  const lines: Line[] = [];
  const own: string[] = [];
  for (const type of typesInUse(lists)) {
    let found: ReturnType<typeof lookUp>;
    try {
      found = lookUp(type, folders.path);
    } catch {
      const builtIn = await runtime.registry(type);
      lines.push({
        area,
        grade: "failure",
        text: `there is no plugin "${type}" in ${where}`,
        breaks: `runtimes say failed to find plugin "${type}" in path [${folders.path.join(" ")}]`,
        mend: builtIn ? "cnibox install" : `install ${type}`,
      });
      continue;
    }
    const { file, ours } = found;
    if (ours) {
      own.push(type);
      continue;
    }
    try {
      const versions = await probeVersions(type, { ...runtime, builtin: false, limitMs: runtime.limitMs ?? 5_000 });
      lines.push(ok(area, `${file} is another program, and speaks ${versions[0]} to ${versions.at(-1)}`));
    } catch (error) {
      lines.push({
        area,
        grade: "failure",
        text: `${file} does not work: ${toCniError(error).msg}`,
        breaks: "every network that uses it",
        mend: executable(file) ? `CNI_COMMAND=VERSION ${file} shows more` : `chmod 755 ${file}`,
      });
    }
  }
  if (own.length > 0) lines.unshift(ok(area, `${own.join(", ")}: this cnibox, in ${where}`));
  const dangling = folders.path.flatMap(danglingIn);
  if (dangling.length > 0) {
    lines.push({
      area,
      grade: "warning",
      text: `symlinks that lead nowhere: ${dangling.join(", ")}`,
      mend: "cnibox install, or remove them",
    });
  }
  return lines;
}

function danglingIn(folder: string): string[] {
  try {
    return [...Deno.readDirSync(folder)].filter(({ isSymlink }) => isSymlink).map(({ name }) => `${folder}/${name}`)
      .filter((path) => !exists(path));
  } catch {
    return [];
  }
}

function executable(file: string): boolean {
  try {
    return ((Deno.statSync(file).mode ?? 0) & 0o111) !== 0;
  } catch {
    return false;
  }
}

function exists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch {
    return false;
  }
}

const PACKAGES: Readonly<Record<string, string>> = {
  ip: "iproute2",
  tc: "iproute2",
  bridge: "iproute2",
  nsenter: "util-linux",
  iptables: "iptables",
  nft: "nftables",
  conntrack: "conntrack",
};

async function tools({ host, lists, runtime }: Patient): Promise<Line[]> {
  const area = "tools";
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
      lines.push({
        area,
        grade: "failure",
        text: `${tool} is missing`,
        breaks: `exec: "${tool}": executable file not found in $PATH`,
        mend: `install the package ${PACKAGES[tool] ?? tool}`,
      });
      continue;
    }
    versions.push(await versionOf(host, tool));
  }
  if (versions.length > 0) lines.push(ok(area, versions.join(", ")));
  const ip = toolPath("ip") === "" ? "" : await output(host, ["ip", "-V"]);
  if (ip !== "" && !/iproute2/.test(ip)) {
    lines.push({
      area,
      grade: "failure",
      text: "ip is not that of iproute2 (BusyBox?)",
      breaks: "it knows neither -json nor -batch",
      mend: "install the package iproute2",
    });
  }
  const firewalls = ["iptables-restore", "nft"].filter((tool) => toolPath(tool) !== "");
  const needsRules = lists.some(({ plugins }) =>
    plugins.some(({ type, config }) => ["portmap", "firewall"].includes(type) || lookup(config, "ipMasq") === true)
  );
  if (firewalls.length === 0) {
    lines.push({
      area,
      grade: needsRules ? "failure" : "warning",
      text: "neither iptables nor nft is there",
      breaks: "masquerading, published ports, the firewall plugin",
      mend: "install the package nftables or iptables",
    });
  } else {
    const told = await Promise.all(firewalls.map((tool) => versionOf(host, tool.replace("-restore", ""))));
    lines.push(ok(area, `rules are set with ${told.join(" or ")}`));
  }
  const publishes = lists.some(({ plugins }) => plugins.some(({ type }) => type === "portmap"));
  if (publishes && toolPath("conntrack") === "") {
    lines.push({
      area,
      grade: "warning",
      text: "conntrack is missing",
      breaks: "UDP flows to a published port keep going to the container before",
      mend: "install the package conntrack",
    });
  }
  return lines;
}

async function versionOf(host: Run, tool: string): Promise<string> {
  // It has no version of its own, and takes what it is given for a namespace.
  if (tool === "nsenter") return tool;
  const text = await output(host, [tool, tool === "ip" || tool === "tc" || tool === "bridge" ? "-V" : "--version"]);
  return `${tool} ${/\d+\.\d+(\.\d+)*/.exec(text)?.[0] ?? "(of an unknown version)"}`;
}

/** What a command says on either stream; "" when it cannot be run. */
async function output(host: Run, argv: readonly string[]): Promise<string> {
  try {
    const { stdout, stderr } = await host({ argv, limitMs: 5_000 });
    return `${stdout}${stderr}`;
  } catch {
    return "";
  }
}

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
async function kernelFeatures({ host, lists, root }: Patient): Promise<Line[]> {
  const area = "kernel";
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
    const { code, stderr } = await host({ argv });
    const unknown = /not supported|Unknown device type|RTNETLINK answers: No such device/.test(stderr);
    if (code === 0 || !unknown) return kind;
    return {
      area,
      grade: "failure",
      text: `the kernel has no ${kind} links`,
      breaks: "operation not supported",
      mend: `modprobe ${kind === "vlan" ? "8021q" : kind}, or a kernel with ${option}`,
    };
  }));
  const good = tried.filter((one) => typeof one === "string");
  const lines = tried.filter((one) => typeof one !== "string");
  return good.length > 0 ? [ok(area, `links of kind ${good.join(", ")}`), ...lines] : lines;
}

function forwarding({ lists, seen }: Patient): Line[] {
  const area = "forwarding";
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
    if (value === "1") lines.push(ok(area, `${text} is on`));
    else if (attached.some(({ addresses }) => addresses.some((address) => address.includes(":") === six))) {
      lines.push({
        area,
        grade: "failure",
        text: `${text} is off, and ${counted(attached.length, "container")} ${
          attached.length === 1 ? "is" : "are"
        } attached`,
        breaks: "containers reach nothing beyond this host; somebody switched it off after they were attached",
        mend: `sysctl -w ${key.replaceAll("/", ".")}=1, and keep it in /etc/sysctl.d`,
        fix: ["sysctl", "-qw", `${key.replaceAll("/", ".")}=1`],
      });
    } else if (routed.length > 0 && !six) lines.push(ok(area, `${text} is off; the first container switches it on`));
  };
  ask("net/ipv4/ip_forward", "forwarding of IPv4", false);
  ask("net/ipv6/conf/all/forwarding", "forwarding of IPv6", true);
  const strict = ["all", ...seen.networks.map(({ bridge }) => bridge).filter((name) => name !== "")]
    .filter((name) => readSysctl(`net/ipv4/conf/${name}/rp_filter`) === "1");
  const several = new Set(seen.views.map(({ netns }) => netns)).size < seen.views.length;
  if (strict.length > 0 && several) {
    lines.push({
      area,
      grade: "warning",
      text: `rp_filter is strict on ${strict.join(", ")}`,
      breaks: "answers of containers with several interfaces are dropped when they come by another than they went",
      mend: "sysctl -w net.ipv4.conf.all.rp_filter=2, or add the plugin sbr",
    });
  } else {lines.push(ok(
      area,
      strict.length > 0
        ? "rp_filter is strict, which fits containers with one interface"
        : "rp_filter lets answers through",
    ));}
  if (readSysctl("net/ipv6/conf/all/disable_ipv6") === "1" && lists.some(({ name }) => sixOf(seen, name))) {
    lines.push({
      area,
      grade: "failure",
      text: "IPv6 is switched off on this host, and a network has IPv6 addresses",
      breaks: "could not add IP address: permission denied",
      mend: "sysctl -w net.ipv6.conf.all.disable_ipv6=0, or remove the IPv6 range",
    });
  }
  return lines;
}

function sixOf({ networks }: Survey, name: string): boolean {
  return networks.some((one) => one.name === name && one.sets.some(([first]) => first.start.family === 6));
}

function bridgeFilter({ lists }: Patient): Line[] {
  const area = "br_netfilter";
  if (!lists.some(({ plugins }) => plugins.some(({ type }) => type === "bridge"))) return [];
  const values = ["iptables", "ip6tables"].map((tool) => readSysctl(`net/bridge/bridge-nf-call-${tool}`));
  if (values.every((value) => value === undefined)) {
    return [
      ok(
        area,
        "not loaded: frames between containers of one bridge pass no rules (Kubernetes services want it: modprobe br_netfilter)",
      ),
    ];
  }
  if (values.some((value) => value === "0")) {
    return [{
      area,
      grade: "warning",
      text: "loaded, but bridge-nf-call-iptables is off",
      breaks: "a container cannot reach itself or a neighbour through a service or a published port",
      mend: "sysctl -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1",
      fix: ["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1", "net.bridge.bridge-nf-call-ip6tables=1"],
    }];
  }
  return [ok(area, "loaded, and frames between containers of one bridge pass the rules")];
}

async function firewallBackends({ host, lists, seen, root }: Patient): Promise<Line[]> {
  const area = "firewall";
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
    lines.push({
      area,
      grade: "warning",
      text: `iptables is the nf_tables kind, and ${counted(legacy, "rule")} of the legacy kind ${
        legacy === 1 ? "is" : "are"
      } there beside it`,
      breaks: "iptables does not show them, and they are applied all the same",
      mend: "iptables-legacy-save shows them; iptables-legacy -F and -X, with -t for every table, removes them",
    });
  } else if (legacy > 0 && nft > 0) {
    lines.push({
      area,
      grade: "warning",
      text: `rules of both kinds of iptables: ${legacy} legacy, ${nft} nf_tables`,
      breaks: "both are applied, and neither tool shows the other's: traffic is dropped for no visible reason",
      mend: `update-alternatives --config iptables on every program's side, then flush the other with iptables-${
        variant === "legacy" ? "nft" : "legacy"
      } -F`,
    });
  } else if (variant !== "") lines.push(ok(area, `iptables is the ${variant} kind, and all rules are of it`));
  if (seen.rules.nft.includes("table inet firewalld")) {
    const told = lists.every(hasFirewall);
    lines.push({
      area,
      grade: told ? "ok" : "warning",
      text: "firewalld runs",
      ...(!told && {
        breaks:
          "it rejects what containers send beyond the host, unless their addresses are in a trusted zone, and a reload removes published ports of iptables",
        mend: 'add {"type": "firewall"} to the networks; systemctl enable cnibox-restore.service',
      }),
    });
  }
  return lines;
}

const hasFirewall = ({ plugins }: NetworkList) => plugins.some(({ type }) => type === "firewall");

function forwardPolicy({ seen, lists, root }: Patient): Line[] {
  const area = "firewall";
  if (!root || lists.length === 0) return [];
  const lines: Line[] = [];
  const open = lists.filter((list) =>
    !hasFirewall(list) && list.plugins.some(({ type }) => type === "bridge" || type === "ptp")
  );
  for (const [text, tool] of [[seen.rules.ipv4, "iptables"], [seen.rules.ipv6, "ip6tables"]] as const) {
    const filter = text.slice(text.indexOf("*filter"));
    const policy = text.includes("*filter") ? /^:FORWARD (\w+)/m.exec(filter)?.[1] : undefined;
    if (policy !== "DROP") continue;
    const docker = filter.includes(":DOCKER");
    const bridges = open.map(({ name }) => seen.networks.find((one) => one.name === name)?.bridge ?? "").filter((
      name,
    ) => name !== "");
    const allowed = bridges.every((name) =>
      new RegExp(`^-A (FORWARD|DOCKER-USER) .*-[io] ${name} .*-j ACCEPT`, "m").test(filter)
    );
    if (open.length === 0 || (bridges.length > 0 && allowed)) continue;
    lines.push({
      area,
      grade: tool === "iptables" ? "failure" : "warning",
      text: `${tool} drops forwarded packets (FORWARD policy DROP${docker ? ", set by Docker" : ""})`,
      breaks: `containers of ${open.map(({ name }) => name).join(", ")} reach nothing beyond their bridge`,
      mend: `add {"type": "firewall"} to the network, or ${tool} -I ${
        docker ? "DOCKER-USER" : "FORWARD"
      } -i BRIDGE -j ACCEPT, and with -o`,
    });
  }
  const dropping = [...seen.rules.nft.matchAll(/table (\S+ \S+) \{(?:(?!\n\}).)*?hook forward[^;]*;\s*policy drop/gs)]
    .map(([, name = ""]) => name)
    .filter((name) => !/^(ip|ip6) filter$/.test(name));
  if (dropping.length > 0 && open.length > 0) {
    lines.push({
      area,
      grade: "warning",
      text: `nftables drops forwarded packets in ${dropping.join(", ")}`,
      breaks: `containers of ${open.map(({ name }) => name).join(", ")} may reach nothing beyond their bridge`,
      mend: "accept what comes from and goes to the bridges there",
    });
  }
  return lines.length > 0 ? lines : [ok(area, "forwarded packets are not dropped by a policy")];
}

/** `route_localnet`: what lets 127.0.0.1 of this host reach published ports, and what it opens without a guard. */
function localhost({ seen, root }: Patient): Line[] {
  const area = "localhost";
  if (!root) return [];
  const isOn = (name: string) => readSysctl(`net/ipv4/conf/${name}/route_localnet`) === "1";
  const on = ["all", ...seen.links.map(({ ifname }) => ifname).filter((name) => name !== "lo")].filter(isOn);
  const guarded = /127\.0\.0\.0\/8.* (-j DROP|drop)( |$)/m.test(`${seen.rules.ipv4}\n${seen.rules.nft}`);
  if (on.length > 0 && !guarded) {
    return [{
      area,
      grade: "failure",
      text: `route_localnet is on for ${on.join(", ")}, and no rule guards 127.0.0.0/8`,
      breaks: "containers reach what listens on 127.0.0.1 of this host alone",
      mend: seen.views.some(({ ports }) => ports.length > 0)
        ? "cnibox restore --all"
        : `sysctl -w ${on.map((name) => `net.ipv4.conf.${name.replaceAll(".", "/")}.route_localnet=0`).join(" ")}`,
    }];
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
    return [{
      area,
      grade: "warning",
      text: `route_localnet is off for ${off.join(", ")}`,
      breaks: "127.0.0.1 of this host does not reach published ports; its other addresses do",
      mend: `sysctl -w ${off.map((name) => `net.ipv4.conf.${name.replaceAll(".", "/")}.route_localnet=1`).join(" ")}`,
    }];
  }
  return [
    ok(
      area,
      on.length > 0
        ? "127.0.0.1 of this host reaches published ports and nobody else's; [::1] does not: the kernel has no route_localnet for IPv6"
        : "127.0.0.1 of this host does not reach published ports: the kernel could not have the guard; its other addresses do",
    ),
  ];
}

/** Does a mapping take what is sent to 127.0.0.1? */
function isForLocalhost(mapping: unknown): boolean {
  const hostIP = isObject(mapping) ? lookup(mapping, "hostIP") : undefined;
  return typeof hostIP !== "string" || ["", "0.0.0.0"].includes(hostIP) || hostIP.startsWith("127.");
}

/** Programs that take interfaces for theirs. */
function managers({ folders }: Patient): Line[] {
  const area = "managers";
  const lines: Line[] = [];
  if (exists("/run/NetworkManager")) {
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
        breaks: "it may take their addresses away or start DHCP on them",
        mend:
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

async function mtu({ host, seen }: Patient): Promise<Line[]> {
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
    mend: `"mtu": ${uplink.mtu} in the network`,
  }];
}

/** Blocks of a cluster's pool that another node has by now: the store was restored from a backup, or somebody forgot this node. */
function lostBlocks({ network, leases, share }: Pool): Line[] {
  return (share?.lost ?? []).map(({ block, holder }) => {
    const isIn = (ip: string) => {
      const address = parseAddress(ip);
      return address !== undefined && prefixContains(block, address);
    };
    const used = leases.map(({ ip }) => ip).filter(isIn);
    return {
      area: "addresses",
      grade: "warning",
      text: `network ${network}: block ${formatPrefix(block)} belongs to ${holder ?? "another node"} now`,
      breaks: used.length === 0 ? "" : `${used.join(", ")} may be given to others as well`,
      mend: "cnibox cluster check says whose it is; add the containers that have such an address again",
    };
  });
}

async function addresses({ folders, host, root }: Patient): Promise<Line[]> {
  const area = "addresses";
  if (!root) return [];
  const all = await pools(folders);
  const lines: Line[] = [];
  for (const pool of all) {
    for (const { range, taken, total, blocks } of useOf(pool)) {
      // A node takes a further block when its own are full.
      if (blocks !== undefined) continue;
      const full = BigInt(taken) >= total;
      if (!full && BigInt(taken) * 10n < total * 9n) continue;
      lines.push({
        area,
        grade: full ? "failure" : "warning",
        text: `network ${pool.network}: ${taken} of ${total} addresses of ${range} are taken`,
        breaks: full ? "no IP addresses available in range set" : "soon no container can be attached",
        mend: "cnibox ipam check finds those that nobody uses; else a larger subnet",
      });
    }
  }
  lines.push(...all.flatMap(lostBlocks));
  const evidence = await gather(attachmentsOf(folders), host);
  const { judged, unrecorded, duplicates } = judge(all, evidence);
  for (const one of evidence.unseen) {
    lines.push({
      area,
      grade: "warning",
      text: unseenText([one]),
      breaks: "whose address is not found elsewhere counts as alive, so less is released than could be",
    });
  }
  const owner = (id: string, ifName: string | undefined) => `${id || "nobody"}${ifName ? ` (${ifName})` : ""}`;
  for (const { pool, lease, state, evidence } of judged) {
    if (state === "alive" || state === "in use, unknown" || state === "not examined") continue;
    lines.push({
      area,
      grade: "warning",
      text: `${lease.ip} of ${owner(lease.containerId, lease.ifName)} on ${pool.network}: ${evidence}`,
      breaks: state === "idle" ? "the container has no network" : "the address is lost to others",
      mend: state === "idle"
        ? `cnibox del ${pool.network} --id ${lease.containerId}, then add it again`
        : state === "unknown"
        ? `cnibox ipam free ${lease.ip}`
        : `cnibox ipam repair ${pool.network}`,
      ...(GONE.includes(state) && { fix: ["cnibox", "ipam", "repair", pool.network] }),
    });
  }
  for (const { pool, ip, attachment } of unrecorded) {
    lines.push({
      area,
      grade: "failure",
      text: `${ip} is used by ${
        owner(attachment.containerId, attachment.ifName)
      } on ${pool.network}, and no file says so`,
      breaks: "it can be given to a second container",
      mend: `cnibox ipam repair ${pool.network}`,
      fix: ["cnibox", "ipam", "repair", pool.network],
    });
  }
  for (const list of duplicates) {
    lines.push({
      area,
      grade: "failure",
      text: `${list[0]?.ip} is held by ${
        list.map(({ containerId, pool }) => `${containerId} on ${pool.network}`).join(" and ")
      }`,
      breaks: "both answer to it",
      mend: "delete and add one of them again",
    });
  }
  if (lines.length === 0 && all.length > 0) {
    lines.push(
      ok(
        area,
        `${judged.length} ${judged.length === 1 ? "address" : "addresses"} taken, every one with a living owner`,
      ),
    );
  }
  return lines;
}

/** Attachments whose parts do not fit together; addresses have their own lines. */
function attachments({ seen, root }: Patient): Line[] {
  const area = "attachments";
  const lines: Line[] = [];
  for (const { network, containerId, ifName, problems } of seen.views) {
    for (const { code, text, mend } of real(problems)) {
      if (["lease-missing", "no-container", "address-shared"].includes(code)) continue;
      const rules = ["port-rules-missing", "masquerade-missing", "firewall-missing"].includes(code);
      lines.push({
        area,
        grade: code === "netns-gone" ? "warning" : "failure",
        text: `${containerId} (${ifName}) on ${network}: ${text}`,
        breaks: code === "netns-gone"
          ? "what is left of it takes up room"
          : rules
          ? "its traffic"
          : "the container has no network",
        mend,
        ...(rules && { fix: ["cnibox", "restore", "--id", containerId] }),
      });
    }
  }
  for (const { name, text, mend } of seen.orphans) {
    lines.push({ area, grade: "warning", text: `${name}: ${text}`, breaks: "it is in the way of others", mend });
  }
  const count = seen.views.filter(({ cached }) => cached).length;
  if (lines.length === 0 && root && count > 0) {
    lines.push(ok(area, `${count} ${count === 1 ? "attachment" : "attachments"}, each whole`));
  }
  return lines;
}

/** Ports that the kernel gives a bridge at most. */
const MAX_PORTS = 1023;

function bridges({ seen }: Patient): Line[] {
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
        text: `network ${name}: ${bridge} is no bridge but ${link.linkinfo?.info_kind ?? "a device"}`,
        breaks: `"${bridge}" already exists but is not a bridge`,
        mend: 'give the network another "bridge"',
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
        mend: "spread containers over more networks",
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
      mend: "another subnet for the network",
    };
  });
}

function daemons({ lists }: Patient): Line[] {
  const area = "dhcp";
  const uses = lists.filter(({ plugins }) =>
    plugins.some(({ config }) => {
      const ipam = lookup(config, "ipam");
      return isObject(ipam) && lookup(ipam, "type") === "dhcp";
    })
  );
  if (uses.length === 0) return [];
  if (exists("/run/cni/dhcp.sock")) return [ok(area, "the daemon's socket is there")];
  return [{
    area,
    grade: "failure",
    text: `network ${
      uses.map(({ name }) => name).join(", ")
    } needs the DHCP daemon, and /run/cni/dhcp.sock is not there`,
    breaks: "error dialing DHCP daemon: dial unix /run/cni/dhcp.sock: connect: no such file or directory",
    mend: "systemctl enable --now cni-dhcp.socket, or /opt/cni/bin/dhcp daemon",
  }];
}

async function disk({ folders, host, root }: Patient): Promise<Line[]> {
  const area = "disk";
  const lines: Line[] = [];
  for (const wanted of [folders.data, folders.cache]) {
    const path = nearestExisting(wanted);
    const [space, inodes] = await Promise.all([usedPercent(host, path, "-Pk"), usedPercent(host, path, "-Pi")]);
    const worst = Math.max(space, inodes);
    if (worst >= 95) {
      lines.push({
        area,
        grade: worst >= 99 ? "failure" : "warning",
        text: `${path} is ${worst} % full${inodes >= space ? " (inodes)" : ""}`,
        breaks: "leases and results cannot be written: ADD fails",
        mend: `make room below ${path}`,
      });
    }
    if (root && (await host({ argv: ["test", "-w", path] })).code !== 0) {
      lines.push({
        area,
        grade: "failure",
        text: `${path} cannot be written (read-only?)`,
        breaks: "ADD fails",
        mend: `mount -o remount,rw the file system of ${path}`,
      });
    }
  }
  return lines.length > 0 ? lines : [ok(area, `${folders.data} and ${folders.cache} can be written, with room left`)];
}

function nearestExisting(path: string): string {
  let at = path;
  while (at !== "/" && at !== "" && !exists(at)) at = at.slice(0, at.lastIndexOf("/")) || "/";
  return at || "/";
}

async function usedPercent(host: Run, path: string, option: string): Promise<number> {
  const { stdout } = await host({ argv: ["df", option, "--", path] });
  return Number(/(\d+)%/.exec(stdout.split("\n")[1] ?? "")?.[1] ?? 0);
}

/** SELinux: a plugin without the right label may not be started by confined runtimes. */
async function labels({ folders, host }: Patient): Promise<Line[]> {
  const area = "SELinux";
  let enforcing = "";
  try {
    enforcing = readKernelFile("/sys/fs/selinux/enforce").trim();
  } catch {
    return [];
  }
  const file = folders.path.map((folder) => `${folder}/cnibox`).find(exists);
  if (!file) return [];
  const label = (await output(host, ["stat", "-c", "%C", "--", file])).trim();
  if (/bin_t|container_runtime_exec_t/.test(label) || enforcing !== "1") {
    return [ok(area, `${file} is ${label || "without a label"}`)];
  }
  return [{
    area,
    grade: "warning",
    text: `${file} is ${label}`,
    breaks: "confined runtimes may not start it",
    mend: `restorecon -v ${file}`,
  }];
}

function textOf(lines: readonly Line[]): string {
  const paint = painter();
  const marks: Readonly<Record<Grade, string>> = {
    ok: paint("green", "ok     "),
    warning: paint("yellow", "warning"),
    failure: paint("red", "failure"),
  };
  const width = Math.max(...lines.map(({ area }) => area.length));
  const out = lines.map(({ area, grade, text, breaks, mend }) => {
    const indent = `\n        ${" ".repeat(width + 2)}`;
    return `${marks[grade]} ${area.padEnd(width)}  ${oneLine(text)}${
      breaks ? `${indent}${paint("dim", `breaks: ${oneLine(breaks)}`)}` : ""
    }${mend ? `${indent}mend: ${oneLine(mend)}` : ""}`;
  });
  const count = (grade: Grade) => lines.filter((one) => one.grade === grade).length;
  const total = (grade: Grade) => counted(count(grade), grade);
  return `${out.join("\n")}\n\n${total("failure")}, ${total("warning")}, ${count("ok")} ok\n`;
}

/** Carries out what mends without harm, each command shown before it is run. */
async function mend(lines: readonly Line[]): Promise<void> {
  const done = new Set<string>();
  for (const { fix } of lines) {
    if (!fix || done.has(fix.join(" "))) continue;
    done.add(fix.join(" "));
    complain(`+ ${fix.join(" ")}\n`);
    const own = fix[0] === "cnibox" ? [Deno.execPath(), ...fix.slice(1)] : fix;
    const code = await foreground(own);
    if (code !== 0) complain(`  exit status ${code}\n`);
  }
  if (done.size === 0) complain("nothing that can be mended without asking\n");
}
