/**
 * Every plugin of this binary by its CNI type. A call loads the file of its own plugin and no other, so the bundle is
 * split at these imports.
 */
import type { Plugin } from "../lib/cni/plugin.ts";

const plugins: Readonly<Record<string, () => Promise<{ plugin: Plugin }>>> = {
  bandwidth: () => import("./bandwidth.ts"),
  bridge: () => import("./bridge.ts"),
  cluster: () => import("./cluster/mod.ts"),
  dhcp: () => import("./dhcp.ts"),
  dummy: () => import("./dummy.ts"),
  firewall: () => import("./firewall.ts"),
  flannel: () => import("./flannel.ts"),
  "host-device": () => import("./host-device.ts"),
  "host-local": () => import("./host-local.ts"),
  ipvlan: () => import("./ipvlan.ts"),
  loopback: () => import("./loopback.ts"),
  macvlan: () => import("./macvlan.ts"),
  portmap: () => import("./portmap.ts"),
  ptp: () => import("./ptp.ts"),
  sbr: () => import("./sbr.ts"),
  static: () => import("./static.ts"),
  tap: () => import("./tap.ts"),
  tuning: () => import("./tuning.ts"),
  vlan: () => import("./vlan.ts"),
  vrf: () => import("./vrf.ts"),
};

/** Types of all plugins, in the order in which people are shown them. */
export const pluginNames: readonly string[] = Object.keys(plugins);

/** Loads a plugin; undefined when there is none of that name. */
export function loadPlugin(name: string): Promise<Plugin> | undefined {
  if (!Object.hasOwn(plugins, name)) return undefined;
  return plugins[name]?.().then((module) => module.plugin);
}
