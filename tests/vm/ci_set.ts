/**
 * What CI runs in the virtual machine: the tests of what few kernels have, and of everything else one test for each promise
 * that depends on the kernel: ADD, CHECK, DEL and GC, traffic, and sharing an attachment with the reference. A test takes ten
 * to twenty seconds of a processor there, so each has to be worth it; `--all` is the long form.
 */
import { join } from "@std/path";
import { type KernelFeature, type Need } from "../e2e/support/needs.ts";

/** Kernel features whose tests run: machines that build and test have often been without them. */
const rare: readonly KernelFeature[] = ["vlan", "dummy", "ipvlan", "vrf", "vlan_filtering"];

/** Of those, what is the code of all link plugins, and runs for macvlan and tap on the machine's own kernel. */
const common = new RegExp(
  `^(vlan|ipvlan|dummy) (${
    [
      "DEL leaves a link of another kind alone",
      'DEL of an interface "if2"',
      "touches no link of the host's own namespace",
      "takes a namespace by any path",
      "adds, checks and deletes in every version",
      "turns IPv6 on",
      "starts few processes",
    ].join("|")
  })`,
);

/** Both ways to share an attachment with the reference, of the eight that run on the machine's own kernel. */
const shared = ": (cnibox adds, ref checks, ref deletes|ref adds, cnibox checks, cnibox deletes)$";
const interop = (name: string) => new RegExp(`^${name}${shared}`);

/** The other tests, by their file. */
const chosen: Record<string, RegExp[]> = {
  "bandwidth_test.ts": [interop("bandwidth"), /^bandwidth carries full packets/, /^bandwidth GC removes/],
  "bridge_test.ts": [
    interop("bridge \\+ host-local, dual stack"),
    interop("bridge \\+ host-local, nftables"),
    /^a container behind the bridge reaches the outside masqueraded/,
    /^GC removes veths, rules and addresses/,
    /^macspoofchk lets the container's own MAC through/,
  ],
  "chain_test.ts": [/^six plugins in a list: ref adds, cnibox checks, cnibox deletes/],
  "dhcp_test.ts": [
    /^dhcp leases, renews when the server says, and gives back/,
    /^dhcp GC releases what is not valid/,
    /^dhcp: ref's plugin with cnibox's daemon/,
    /^dhcp: cnibox's plugin with ref's daemon/,
  ],
  "firewall_test.ts": [
    interop("firewall"),
    /^firewall (iptables|nftables): the container's traffic passes/,
    /^firewall nftables: rules, owners of addresses, GC/,
  ],
  "firewall_tools_test.ts": [/^with (iptables-legacy|nft alone) /, /^without any firewall tool /],
  "flannel_test.ts": [
    /^flannel attaches with both families/,
    /^flannel with the reference's plugins as delegates/,
    /^flannel GC collects/,
  ],
  "host_device_test.ts": [
    interop("host-device"),
    /^host-device moves a device in, with its traffic/,
    /^host-device forwards STATUS and GC/,
  ],
  "host_local_test.ts": [interop("host-local, both families"), /^host-local GC and STATUS/],
  "loopback_test.ts": [interop("loopback"), /^loopback changes nothing but the container's lo/],
  "macvlan_test.ts": [
    interop("macvlan, both families"),
    /^macvlan in mode "bridge" lets/,
    /^macvlan forwards STATUS and GC/,
  ],
  "portmap_test.ts": [
    interop("portmap (iptables|nftables)"),
    /^portmap (iptables|nftables): a published port answers from everywhere/,
    /^portmap nftables: GC removes/,
  ],
  "ptp_test.ts": [
    interop("ptp, both families, masqueraded"),
    /^ptp containers reach each other and the outside/,
    /^ptp STATUS asks the IPAM plugin, GC removes/,
  ],
  "sbr_test.ts": [interop("sbr"), /^sbr sends answers back by the interface/],
  "static_test.ts": [/^static of (cnibox|ref) serves the bridge of (cnibox|ref)/],
  "tap_test.ts": [
    interop("tap, both families"),
    /^tap carries frames to and from a program/,
    /^tap forwards STATUS and GC/,
  ],
  "tuning_test.ts": [
    interop("tuning"),
    /^tuning sets everything inside, touches nothing outside/,
    /^tuning GC removes backups/,
  ],
};

/** Whether a test belongs to the set. */
export function inCiSet(name: string, needs: readonly Need[]): boolean {
  return needs.some((need) => (rare as readonly Need[]).includes(need)) && !common.test(name) ||
    Object.values(chosen).flat().some((pattern) => pattern.test(name));
}

/** The files that hold tests of the set, from the project's folder `root`. */
export function ciFiles(root: string): string[] {
  const folder = "tests/e2e";
  const names = [...Deno.readDirSync(join(root, folder))].map(({ name }) => name).filter((name) =>
    name.endsWith("_test.ts")
  );
  return names.sort().filter((name) => {
    if (name in chosen) return true;
    const text = Deno.readTextFileSync(join(root, folder, name));
    return rare.some((feature) => text.includes(`"${feature}"`));
  }).map((name) => `${folder}/${name}`);
}

/** Patterns that none of the tests that passed matches. */
export function ciMissing(passed: Set<string>): RegExp[] {
  return Object.values(chosen).flat().filter((pattern) => ![...passed].some((name) => pattern.test(name)));
}
