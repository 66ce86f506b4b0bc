/**
 * What CI runs in the virtual machine: tests of what few kernels have. A test takes ten to twenty seconds of a processor there,
 * so vlan, ipvlan and vrf are left to files that are named and to `--all`, the long form, with every plugin.
 */
import { join } from "@std/path";
import { type KernelFeature, type Need } from "../e2e/support/needs.ts";

/** Kernel features whose tests run: machines that build and test have often been without them. */
const rare: readonly KernelFeature[] = ["dummy", "vlan_filtering"];

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

/** Two of the eight ways to share an attachment with the reference; `--all` runs all of them. */
const interop = /: (cnibox|ref) adds, (cnibox|ref) checks, (cnibox|ref) deletes$/;
const shared = /: (cnibox adds, ref checks, ref deletes|ref adds, cnibox checks, cnibox deletes)$/;

/** Other tests, by their file. */
const chosen: Record<string, RegExp[]> = {};

/** Whether a test belongs to the set. */
export function inCiSet(name: string, needs: readonly Need[]): boolean {
  const isRare = needs.some((need) => (rare as readonly Need[]).includes(need));
  return isRare && !common.test(name) && (!interop.test(name) || shared.test(name)) ||
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
