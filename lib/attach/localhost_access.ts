/**
 * 127.0.0.1 of this host as a way to published ports: `route_localnet` switched on for the link that leads to a container,
 * and off again when nobody needs it any more.
 */
import { CniError, code } from "../cni/error.ts";
import type { Call, ContainerCall } from "../cni/plugin.ts";
import type { Link } from "../kernel/ip.ts";
import { savedTable, TableError } from "../kernel/iptables.ts";
import { nftUsable } from "../kernel/nft.ts";
import { step } from "../kernel/plan.ts";
import { writeSysctl } from "../kernel/sysctl.ts";
import { dnatTarget } from "./host_ports.ts";
import { nftPorts } from "./host_ports_nft.ts";
import { isNoted, type LocalnetBackend, makeNote, notePath, resetLocalnet, switchLocalnetOn } from "./localnet.ts";
import { listEntries } from "./port_conflict.ts";

/** Lets this host's 127.0.0.1 out through the link that leads to the container. */
export async function letLocalhostOut(call: ContainerCall, dev: string, backend: LocalnetBackend): Promise<void> {
  try {
    if (!(await isVeth(call, dev))) note(call, dev, backend);
    switchLocalnetOn(dev, writerOf(call));
  } catch (error) {
    throw new CniError(
      code.internal,
      `unable to enable route_localnet: ${(error as Error).message}`,
      `net.ipv4.conf.${dev}.route_localnet; "snat": false does without`,
    );
  }
}

/** Notes that the setting was off; without it the port works too. */
function note(call: ContainerCall, dev: string, backend: LocalnetBackend): void {
  const path = notePath(dev, backend);
  if (call.explain) {
    return call.explain.file(path, "", "the setting is switched off again with the last published port");
  }
  try {
    makeNote(path);
  } catch (error) {
    call.warn(
      `route_localnet of ${dev} will stay on, since it cannot be noted that it was off: ${(error as Error).message}`,
    );
  }
}

/** Does a published port lead to a container behind this link? */
export async function publishedThrough(call: Call, dev: string, backend: LocalnetBackend): Promise<boolean> {
  const addresses = backend === "nftables"
    ? (await nftPorts(call, 4)).map(({ address }) => address)
    : [...(await savedTable(call.host, 4, "nat"))?.chains.values() ?? []].flat().flatMap(({ text }) =>
      dnatTarget(text)?.address ?? []
    );
  const input = [...new Set(addresses)].map((address) => `route get ${address}\n`);
  if (input.length === 0) return false;
  const { stdout } = await call.host({ argv: ["ip", "-j", "-force", "-batch", "-"], input });
  return stdout.includes(`"dev":${JSON.stringify(dev)}`);
}

/** Writes a setting, or says that it would be written. */
function writerOf({ explain }: Call): typeof writeSysctl {
  if (!explain) return writeSysctl;
  return (key, value) => {
    const why = value === "1"
      ? "127.0.0.1 of this host reaches the port"
      : "no port of this host is published any more";
    explain.plan([[step("host", "sysctl", `${key}=${value}`, { why })]]);
  };
}

/** The host's end of a container's own pair goes with the container, and its settings with it. */
async function isVeth(call: Call, dev: string): Promise<boolean> {
  const { code, stdout } = await call.host({ argv: ["ip", "-j", "-d", "link", "show", "dev", dev] });
  if (code !== 0) return false;
  return (JSON.parse(stdout) as Link[])[0]?.linkinfo?.info_kind === "veth";
}

/** Switches route_localnet back where this plugin switched it on, when no container has a port of this host any more. */
export async function resetWhenUnused(call: Call, backend: LocalnetBackend): Promise<void> {
  const anyLeft = backend === "iptables"
    ? async () => (await listEntries(call, 4)).length > 0
    : async () => (await nftPorts(call, 4)).length > 0;
  try {
    const { explain } = call;
    const remove = (path: string) => {
      explain?.file(path, undefined, "no port of this host is published any more");
      return true;
    };
    if (!isNoted(backend) || await anyLeft()) return;
    await resetLocalnet(backend, anyLeft, { write: writerOf(call), ...(explain && { remove }) });
  } catch (error) {
    // A backend that does not work here has switched nothing on.
    if (error instanceof TableError && (error.refusal === "missing" || error.refusal === "unusable")) return;
    if (backend === "nftables" && !(await nftUsable(call.host))) return;
    throw error;
  }
}
