/** What a test needs of the machine, and what this one has. */
import { referenceDir } from "./bin.ts";
import { FRESH_ROOT } from "./node.ts";
import { inVm } from "./vm.ts";

/**
 * "root"; "reference" (the reference plugins, 1.9 or newer); "tool:NAME" (an executable on PATH); "cgroups" (a cgroup
 * can be made, as container runtimes do); else a kernel feature:
 * a link type (bridge veth vlan dummy ipvlan vrf macvlan macvtap vxlan ifb tun), "vlan_filtering", "nf_tables" (nft
 * with NAT), "nf_tables_bridge" (nft in the bridge family), "iptables", "ip6tables" (with NAT), "iptables_legacy" (the
 * older variant, with its own tables), "tbf", "ingress", "ipset", "overlay".
 */
export type Need = "root" | "reference" | "cgroups" | KernelFeature | `tool:${string}`;

export const kernelFeatures = [
  ...["bridge", "veth", "vlan", "dummy", "ipvlan", "vrf", "macvlan", "macvtap", "vxlan", "ifb", "tun"] as const,
  ...["vlan_filtering", "nf_tables", "nf_tables_bridge", "iptables", "ip6tables", "iptables_legacy"] as const,
  ...["tbf", "ingress", "ipset"] as const,
] as const;

export type KernelFeature = typeof kernelFeatures[number];

const root = Deno.uid() === 0;

/** Version of the reference that tests compare with: older ones behave differently. */
const REFERENCE = { major: 1, minor: 9 };

let lackOfReference: string | undefined;

function referenceLack(): string {
  return lackOfReference ??= lackOf(referenceDir());
}

/**
 * Why the reference plugins of a folder cannot be compared with, in words; "" when they can. Debian's say no version of
 * their own.
 */
export function lackOf(folder: string | undefined): string {
  if (folder === undefined) return "no reference plugins: run tests/support/reference.sh";
  const [, major, minor] = /\/(\d+)\.(\d+)[^/]*$/.exec(folder) ?? [];
  const isOld = major !== undefined &&
    (Number(major) < REFERENCE.major || (Number(major) === REFERENCE.major && Number(minor) < REFERENCE.minor));
  const { stderr } = new Deno.Command(`${folder}/bridge`, { stdin: "null", stdout: "null" }).outputSync();
  // A folder that somebody named says no version; 1.1.0 of the protocol came shortly before.
  const protocols = new TextDecoder().decode(stderr);
  if (!isOld && /\b1\.1\.0\b/.test(protocols)) return "";
  const version = major === undefined ? "before 1.6" : `${major}.${minor}`;
  return `the reference plugins in ${folder} are ${version}: needs ${REFERENCE.major}.${REFERENCE.minor}`;
}

/** Which of the needs this machine does not meet, each in words. */
export function unmet(needs: readonly Need[]): string[] {
  const missing: string[] = [];
  for (const need of new Set<Need>(["root", ...needs])) {
    if (need === "root") {
      if (!root) missing.push("needs root");
    } else if (!root) {
      continue; // nothing else can be found out
    } else if (need === "reference") {
      const lack = referenceLack();
      if (lack !== "") missing.push(lack);
    } else if (need === "cgroups") {
      if (!canMakeCgroup()) missing.push("no cgroup can be made below /sys/fs/cgroup");
    } else if (need.startsWith("tool:")) {
      if (!hasTool(need.slice(5))) missing.push(`no ${need.slice(5)}: run tests/support/packages.sh`);
    } else if (!features().has(need as KernelFeature)) {
      missing.push(`this kernel has no ${need}${inVm ? "" : " (test:vm has)"}`);
    }
  }
  return missing;
}

function isKernelFeature(need: string): need is KernelFeature {
  return (kernelFeatures as readonly string[]).includes(need);
}

/** Version 2, or the pids controller of version 1. */
function canMakeCgroup(): boolean {
  const root = "/sys/fs/cgroup";
  const parent = hasFile(`${root}/cgroup.procs`) ? root : `${root}/pids`;
  if (!hasFile(`${parent}/cgroup.procs`)) return false;
  const folder = `${parent}/cnibox-e2e-probe-${Deno.pid}`;
  try {
    Deno.mkdirSync(folder);
    Deno.removeSync(folder);
    return true;
  } catch {
    return false;
  }
}

function hasFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

const tools = new Map<string, boolean>();

/** Whether an executable is on PATH or in one of the system's folders. */
export function hasTool(name: string): boolean {
  const known = tools.get(name);
  if (known !== undefined) return known;
  const folders = new Set([...(Deno.env.get("PATH") ?? "").split(":"), "/usr/sbin", "/usr/bin", "/sbin", "/bin"]);
  const found = [...folders].some((folder) => hasFile(`${FRESH_ROOT ?? ""}${folder}/${name}`));
  tools.set(name, found);
  return found;
}

// Tries everything in a namespace of its own; what stays is what the kernel has. Each line may fail.
const probe = `
ip -force -batch - >/dev/null 2>&1 <<'END'
link add veth type veth peer name vethp
link add bridge type bridge
link add vlanfilt type bridge vlan_filtering 1
link add dummy type dummy
link add vlan link veth type vlan id 7
link add ipvlan link veth type ipvlan
link add name vrf type vrf table 99
link add macvlan link vethp type macvlan
link add macvtap link vethp type macvtap
link add vxlan type vxlan id 7 dstport 4789
link add ifb type ifb
tuntap add dev tun mode tap
END
ip -o link show | sed -n 's/^[0-9]*: \\([a-z]*\\)[@:].*/\\1/p' | grep -v -e '^lo$' -e '^vlanfilt$'
[ "$(cat /sys/class/net/vlanfilt/bridge/vlan_filtering 2>/dev/null)" != 1 ] || echo vlan_filtering
try() { name=$1; shift; ! "$@" >/dev/null 2>&1 || echo "$name"; }
try nf_tables nft 'table inet x { chain y { type nat hook postrouting priority 100; oifname "z" masquerade; }; }'
try nf_tables_bridge nft 'table bridge x { chain y { type filter hook prerouting priority -300; ether saddr 02:00:00:00:00:01 drop; }; }'
try iptables iptables -w -t nat -A POSTROUTING -m comment --comment x -j MASQUERADE
try ip6tables ip6tables -w -t nat -A POSTROUTING -m comment --comment x -j MASQUERADE
try iptables_legacy iptables-legacy -w -t nat -A POSTROUTING -m comment --comment x -j MASQUERADE
try tbf tc qdisc add dev veth root tbf rate 1mbit burst 10kb latency 25ms
try ingress tc qdisc add dev veth ingress
try ipset ipset create x hash:ip
`;

let known: Set<KernelFeature> | undefined;

/** The kernel features of this machine, found by trying them in a throw-away namespace, once per run. */
export function features(): Set<KernelFeature> {
  if (known) return known;
  const kept = Deno.env.get("CNIBOX_E2E_FEATURES");
  const text = kept ?? tryAll();
  Deno.env.set("CNIBOX_E2E_FEATURES", text);
  return known = new Set(text.split(",").filter(isKernelFeature));
}

function tryAll(): string {
  // In the VM every file is a process of its own, and trying takes seconds there.
  const kept = "/run/cnibox-features";
  if (inVm) {
    try {
      return Deno.readTextFileSync(kept);
    } catch { /* the first file's process tries */ }
  }
  const script = `mount -t sysfs sysfs /sys\n${probe}`;
  const { stdout } = new Deno.Command("unshare", {
    args: ["--net", "--mount", "--propagation", "private", "--", "sh", "-c", script],
    stderr: "null",
  }).outputSync();
  const text = new TextDecoder().decode(stdout).trim().split("\n").join(",");
  if (inVm) Deno.writeTextFileSync(kept, text);
  return text;
}
