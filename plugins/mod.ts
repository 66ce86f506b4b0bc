/**
 * Every plugin of this binary by its CNI type. A call loads the file of its own plugin and no other, so the bundle is
 * split at these imports.
 */
import type { Plugin } from "../lib/cni/plugin.ts";

const plugins: Readonly<Record<string, () => Promise<{ plugin: Plugin }>>> = {
  bandwidth: () => import("./bandwidth/mod.ts"),
  bridge: () => import("./bridge/mod.ts"),
  chain: () => import("./chain.ts"),
  cluster: () => import("./cluster/mod.ts"),
  dhcp: () => import("./dhcp/mod.ts"),
  dummy: () => import("./dummy.ts"),
  firewall: () => import("./firewall/mod.ts"),
  flannel: () => import("./flannel/mod.ts"),
  "host-device": () => import("./host-device/mod.ts"),
  "host-local": () => import("./host-local.ts"),
  ipvlan: () => import("./ipvlan.ts"),
  loopback: () => import("./loopback.ts"),
  macvlan: () => import("./macvlan.ts"),
  portmap: () => import("./portmap/mod.ts"),
  ptp: () => import("./ptp/mod.ts"),
  sbr: () => import("./sbr/mod.ts"),
  static: () => import("./static.ts"),
  tap: () => import("./tap.ts"),
  tuning: () => import("./tuning/mod.ts"),
  vlan: () => import("./vlan.ts"),
  vrf: () => import("./vrf/mod.ts"),
};

/** Types of all plugins, in the order in which people are shown them. */
export const pluginNames: readonly string[] = Object.keys(plugins);

/** Loads a plugin; undefined when there is none of that name. */
export function loadPlugin(name: string): Promise<Plugin> | undefined {
  if (!Object.hasOwn(plugins, name)) return undefined;
  return plugins[name]?.().then((module) => module.plugin);
}
