/**
 * VLANs of a port, and the gateway of a VLAN. Loaded when called: networks without VLANs do not read this file.
 */
import { internal } from "../../lib/cni/error.ts";
import type { ContainerCall } from "../../lib/cni/plugin.ts";
import type { Interface, Result } from "../../lib/cni/types.ts";
import { type Link, linkUp } from "../../lib/kernel/ip.ts";
import { apply, type Step, step, StepError } from "../../lib/kernel/plan.ts";
import { linkNow } from "../../lib/link/container_link.ts";
import { hostEndNames } from "../../lib/link/host_end.ts";
import type { Config } from "./conf.ts";
import { gatewayAddresses } from "./connect.ts";

/** With a VLAN the gateway's addresses are on a link of their own, `BRIDGE.VLAN`. */
export async function gatewayOfVlan(
  call: ContainerCall,
  conf: Config,
  bridge: Link,
  result: Result,
): Promise<Interface> {
  const vlans = { vlan: conf.vlan, trunk: [], preserveDefault: conf.preserveDefaultVlan };
  const peers = hostEndNames({ network: `${bridge.ifname}.${conf.vlan}`, containerId: "gateway", ifName: "vlan" });
  const link = await vlanGateway(call, bridge, { vlans, peers });
  const { giveAddresses } = await import("./shape.ts");
  const mac = await giveAddresses(call, link, {
    addresses: gatewayAddresses(result.ips ?? []),
    forceAddress: conf.forceAddress,
    front: "failed to set vlan interface for bridge with addr",
  });
  return { name: link.ifname, mac: mac ?? "" };
}

/** A VLAN configuration of a port. */
interface PortVlans {
  /** Access or native VLAN; 0: none. */
  readonly vlan: number;
  /** Tagged VLANs, ascending, without duplicates. */
  readonly trunk: readonly number[];
  readonly preserveDefault: boolean;
}

/** Sets a port's VLANs: asks for what it has now, then changes in one batch. */
export async function setPortVlans(
  call: ContainerCall,
  port: string,
  { vlan, trunk, preserveDefault }: PortVlans,
): Promise<void> {
  if (vlan === 0 && trunk.length === 0) return;
  const lines: Step[] = [];
  if (!preserveDefault) {
    for (const vid of await vlansOf(call, port)) {
      lines.push(
        step("host", "bridge", `vlan del dev ${port} vid ${vid} master`, {
          failing: `failed to remove default vlan on interface "${port}"`,
          why: "the port's implicit VLAN",
        }),
      );
    }
  }
  const failing = `failed to setup vlan tag on interface "${port}"`;
  if (vlan !== 0) {
    lines.push(
      step("host", "bridge", `vlan add dev ${port} vid ${vlan} pvid untagged master`, {
        failing,
        why: "the container's VLAN",
      }),
    );
  }
  // Adding the native VLAN once more, tagged, would remove its untagged and PVID flags.
  for (const vid of trunk.filter((vid) => vid !== vlan)) {
    lines.push(step("host", "bridge", `vlan add dev ${port} vid ${vid} master`, { failing, why: "trunk" }));
  }
  if (vlan === 0) {
    lines.push(step("host", "bridge", `vlan add dev ${port} vid 1 pvid untagged master`, {
      failing: `failed to setup default native vlan tag on interface "${port}"`,
      why: "untagged frames of a trunk port",
    }));
  }
  await apply([lines], call);
}

async function vlansOf(call: ContainerCall, port: string): Promise<number[]> {
  const { code: status, stdout } = await call.host({ argv: ["bridge", "-j", "vlan", "show", "dev", port] });
  if (status !== 0) return [1];
  const [entry] = JSON.parse(stdout || "[]") as { vlans?: { vlan: number; vlanEnd?: number }[] }[];
  return (entry?.vlans ?? []).flatMap(({ vlan, vlanEnd = vlan }) =>
    Array.from({ length: vlanEnd - vlan + 1 }, (_, i) => vlan + i)
  );
}

/**
 * The gateway's own link for a VLAN, `BRIDGE.VLAN`: one end of a veth pair whose other end is a port in that VLAN.
 * Shared by the VLAN's containers and never removed. Returns the link as it is now. `peers`: names for the other end,
 * of which the first is taken that no other link has.
 */
async function vlanGateway(
  call: ContainerCall,
  bridge: Link,
  { vlans, peers }: { vlans: PortVlans; peers: readonly string[] },
): Promise<Link> {
  const name = `${bridge.ifname}.${vlans.vlan}`;
  const front = `failed to create vlan interface: faild to create vlan gateway "${name}"`;
  if (name.length > 15) {
    throw internal(
      `${front}: failed to make veth pair: numerical result out of range`,
      `"${name}" is longer than 15 characters: choose a shorter "bridge"`,
    );
  }
  let link = await linkNow(call, "host", name);
  for (const peer of peers) {
    if (link) return link;
    await makeVlanGateway(call, { name, peer, bridge, vlans, front });
    link = await linkNow(call, "host", name);
  }
  if (link) return link;
  throw internal(
    `failed to create vlan interface: failed to find interface "${name}": Link not found`,
    `links called ${peers.join(", ")} are in the way`,
  );
}

/** Makes nothing when there is a link of one of the two names already. */
async function makeVlanGateway(
  call: ContainerCall,
  { name, peer, bridge, vlans, front }: {
    name: string;
    peer: string;
    bridge: Link;
    vlans: PortVlans;
    front: string;
  },
): Promise<void> {
  try {
    await apply([[
      step("host", "ip", `link add name ${name} mtu ${bridge.mtu} type veth peer name ${peer} mtu ${bridge.mtu}`, {
        failing: `${front}: failed to make veth pair`,
        why: `gateway of VLAN ${vlans.vlan}`,
      }),
      step("host", "ip", `link set dev ${peer} master ${bridge.ifname} up`, {
        failing: `failed to create vlan interface: failed to up "${peer}"`,
      }),
      step("host", "ip", linkUp(name), { failing: `failed to create vlan interface: failed to up "${name}"` }),
    ]], call);
    await setPortVlans(call, peer, { ...vlans, trunk: [] });
  } catch (error) {
    if (!(error instanceof StepError) || !/File exists/.test(error.output.stderr)) throw error;
  }
}
