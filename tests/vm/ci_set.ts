/**
 * What CI runs in the virtual machine: tests of what few kernels have. A test takes ten to twenty seconds of a
 * processor there, so of each link plugin there are ADD, CHECK, DEL and GC, its traffic, and two ways to share an
 * attachment with the reference. All else of these plugins is the code of macvlan and tap, which runs on the machine's
 * own kernel. `--all`, the long form, runs every test of every plugin.
 */
import { join } from "@std/path";
import type { KernelFeature, Need } from "../e2e/support/needs.ts";

/** A kernel feature all of whose tests run. */
const rare: KernelFeature = "vlan_filtering";

/** Two of the eight ways to share an attachment with the reference. */
const interop = /: (cnibox|ref) adds, (cnibox|ref) checks, (cnibox|ref) deletes$/;
const shared = /: (cnibox adds, ref checks, ref deletes|ref adds, cnibox checks, cnibox deletes)$/;

/** Other tests, by their file; of ways to share an attachment, two run. */
const chosen: Record<string, RegExp[]> = {
  "dummy_test.ts": [/^dummy gives addresses/, /^dummy forwards STATUS and GC/, /^dummy, both families/],
  "host_device_test.ts": [/^host-device DEL finds a device that the container renamed/],
  "ipvlan_test.ts": [/^ipvlan in mode l(2|3s):/, /^ipvlan forwards STATUS and GC/, /^ipvlan, both families/],
  "vlan_test.ts": [/^vlan frames carry their tag/, /^vlan forwards STATUS and GC/, /^vlan, both families/],
  "vrf_test.ts": [/^vrf keeps the routes of two interfaces apart/, /^vrf: /],
};

/** Whether a test belongs to the set. */
export function inCiSet(name: string, needs: readonly Need[]): boolean {
  if (interop.test(name) && !shared.test(name)) return false;
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
