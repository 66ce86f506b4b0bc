/**
 * What CI runs in the virtual machine. A test takes ten to sixty seconds of a processor there, so of each plugin that
 * asks something of the kernel there are its traffic with ADD, CHECK and DEL, its GC, and a way to share an attachment
 * with the reference; of what few kernels have, two such ways, and all tests of VLAN filtering. `--all`, the long form,
 * runs all tests of all plugins.
 */
import { join } from "@std/path";
import type { KernelFeature, Need } from "../e2e/support/needs.ts";

/** A kernel feature all of whose tests run. */
const rare: KernelFeature = "vlan_filtering";

/** Of the eight ways to share an attachment with the reference: two of what few kernels have, one of all else. */
const interop = /: (cnibox|ref) adds, (cnibox|ref) checks, (cnibox|ref) deletes$/;
const shared = /: cnibox adds, ref checks, ref deletes$/;
const taken = /^(bridge in a VLAN|dummy|ipvlan|vlan|vrf)\b.*: ref adds, cnibox checks, cnibox deletes$/;

/** Other tests, by their file. */
const chosen: Record<string, RegExp[]> = {
  "bandwidth_test.ts": [
    /^bandwidth carries full packets/,
    /^bandwidth GC removes devices/,
    /^bandwidth: /,
  ],
  "bridge_test.ts": [
    /^a container behind the bridge reaches the outside masqueraded/,
    /^GC removes veths, rules and addresses/,
    /^bridge \+ host-local, nftables: /,
    /^bridge attaches by a name that a link of the host has/,
  ],
  "chain_plugin_test.ts": [
    /^chain publishes ports that are reached from outside/,
    /^a folded list and the reference's plugins: ref adds, /,
  ],
  "dhcp_test.ts": [/^dhcp under bridge: traffic/, /^dhcp: cnibox's plugin with ref's daemon/, /^dhcp GC releases/],
  "dummy_test.ts": [/^dummy gives addresses/, /^dummy forwards STATUS and GC/, /^dummy, both families/],
  "firewall_test.ts": [
    /^firewall nftables: the container's traffic passes/,
    /^firewall DEL finds the addresses without a result, and GC/,
    /^firewall: (cnibox|ref) adds/,
  ],
  "flannel_test.ts": [/^flannel attaches with both families/, /^flannel with the reference's/, /^flannel GC collects/],
  "host_device_test.ts": [
    /^host-device moves a device in, with its traffic/,
    /^host-device DEL finds a device that the container renamed/,
    /^host-device forwards STATUS and GC/,
    /^host-device: (cnibox|ref) adds/,
  ],
  "host_local_test.ts": [/^host-local GC and STATUS/, /^host-local, both families/],
  "ipvlan_test.ts": [/^ipvlan in mode l(2|3s):/, /^ipvlan forwards STATUS and GC/, /^ipvlan, both families/],
  "loopback_test.ts": [/^loopback changes nothing but the container's lo/, /^loopback: /],
  "macvlan_test.ts": [/^macvlan in mode "bridge"/, /^macvlan forwards STATUS and GC/, /^macvlan, both families/],
  "portmap_test.ts": [
    /^portmap nftables: a published port answers from everywhere/,
    /^portmap nftables: GC removes/,
    /^portmap (iptables|nftables): (cnibox|ref) adds/,
  ],
  "ptp_test.ts": [/^ptp containers reach each other and the outside/, /^ptp STATUS asks .* GC/, /^ptp, both families/],
  "sbr_test.ts": [/^sbr sends answers back/, /^sbr CHECK notices what is gone/, /^sbr: /],
  "static_test.ts": [/^static of cnibox serves the bridge of ref/, /^static of ref serves the bridge of cnibox/],
  "tap_test.ts": [/^tap carries frames/, /^tap forwards STATUS and GC/, /^tap, both families/],
  "tuning_test.ts": [/^tuning sets everything inside/, /^tuning GC puts back/, /^tuning: /],
  "vlan_test.ts": [/^vlan frames carry their tag/, /^vlan forwards STATUS and GC/, /^vlan, both families/],
  "vrf_test.ts": [/^vrf keeps the routes of two interfaces apart/, /^vrf: /],
};

/** Whether a test belongs to the set. */
export function inCiSet(name: string, needs: readonly Need[]): boolean {
  if (interop.test(name) && !shared.test(name) && !taken.test(name)) return false;
  // A minute and a half there, for what explain's other test of a VLAN shows as well.
  if (/^explain, copied into a shell/.test(name)) return false;
  return needs.includes(rare) || Object.values(chosen).flat().some((pattern) => pattern.test(name));
}

/** The files that hold tests of the set, from the project's folder `root`. */
export function ciFiles(root: string): string[] {
  const folder = "tests/e2e";
  const names = [...Deno.readDirSync(join(root, folder))].map(({ name }) => name).filter((name) =>
    name.endsWith("_test.ts")
  );
  return names.sort().filter((name) =>
    name in chosen || Deno.readTextFileSync(join(root, folder, name)).includes(`"${rare}"`)
  ).map((name) => `${folder}/${name}`);
}

/** Patterns that none of the tests that passed matches. */
export function ciMissing(passed: Set<string>): RegExp[] {
  return Object.values(chosen).flat().filter((pattern) => ![...passed].some((name) => pattern.test(name)));
}
