/**
 * 127.0.0.1 of this host as a way to published ports: `route_localnet` switched on for the link that leads to a
 * container, and off again when nobody needs it any more.
 */
import { internal, toCniError } from "../../lib/cni/error.ts";
import { attachmentsOf } from "../../lib/cni/types.ts";
import type { Call, ContainerCall, NetworkCall } from "../../lib/cni/plugin.ts";
import type { Link } from "../../lib/kernel/ip.ts";
import { savedTable } from "../../lib/kernel/iptables.ts";
import { nftUsable } from "../../lib/kernel/nft.ts";
import { exists } from "../../lib/kernel/regular_file.ts";
import { dnatTarget } from "../../lib/rules/host_ports_iptables.ts";
import { nftPorts } from "../../lib/rules/host_ports_nft.ts";
import {
  forgetLeft,
  isLocalnetOn,
  isNoted,
  leaveInvalid,
  leaveLink,
  type LocalnetBackend,
  makeNote,
  notedFor,
  notePath,
  ownerText,
  settingOf,
  switchBack,
  switchLocalnetOn,
} from "./localnet.ts";

/**
 * Lets this host's 127.0.0.1 out through the link that leads to the container. Returns the link when it is the
 * container's own, of which nothing is noted.
 */
export async function letLocalhostOut(call: ContainerCall, dev: string): Promise<string | undefined> {
  try {
    const on = isLocalnetOn(dev);
    // It was on before any of ours came: it stays so.
    if (on && !isNoted(dev)) return undefined;
    const noted = on || !(await isVeth(call, dev));
    if (noted) note(call, dev);
    // The last of the others may just have gone.
    if (!isLocalnetOn(dev)) {
      const effect = { setting: `${settingOf(dev)}=1`, why: "127.0.0.1 of this host reaches the port" };
      call.perform(effect, () => switchLocalnetOn(dev));
    }
    return noted ? undefined : dev;
  } catch (error) {
    throw internal(
      `unable to enable route_localnet: ${toCniError(error).msg}`,
      `net.ipv4.conf.${dev}.route_localnet; "snat": false does without`,
    );
  }
}

/** Notes that the container needs the setting, which was off without such notes. */
function note(call: ContainerCall, dev: string): void {
  const why = "the setting is switched off again when the last such note goes";
  call.perform({ file: notePath(call, dev), text: "", why }, () => makeNote(call, dev));
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

/** The host's end of a container's own pair goes with the container, and its settings with it. */
async function isVeth(call: Call, dev: string): Promise<boolean> {
  if (exists(`/sys/class/net/${dev}/bridge`)) return false;
  const { code, stdout } = await call.host({ argv: ["ip", "-j", "-d", "link", "show", "dev", dev] });
  if (code !== 0) return false;
  return (JSON.parse(stdout) as Link[])[0]?.linkinfo?.info_kind === "veth";
}

/** Will the setting of a link go with this container, as far as notes tell? */
export function isLastBehindLink(call: ContainerCall): boolean {
  return notedFor(call).some(({ alone }) => alone);
}

/**
 * The container needs the setting no more, and its rules are gone. `others`: whether rules of other containers are
 * left, if that is known; those of the reference's containers have no notes.
 */
export async function withdrawLocalhost(
  call: ContainerCall,
  backend: LocalnetBackend,
  others?: boolean,
): Promise<void> {
  const needed = async (dev: string) => others !== false && await isPublishedThrough(call, dev, backend);
  for (const { dev, alone } of notedFor(call)) {
    if (call.perform(undefined, () => leaveLink(call, dev)) ?? alone) {
      // The note stays, so that GC switches it off one day.
      if (await needed(dev)) continue;
      const effect = { setting: `${settingOf(dev)}=0`, why: "no port is published through it any more" };
      call.perform(effect, () => switchBack(dev));
    }
    const effect = { file: notePath(call, dev), why: "the container does not need the setting any more" };
    call.perform(effect, () => forgetLeft(dev, call));
  }
}

/** The same for all containers of the network that are not valid, and for what a killed DEL has left. */
export async function collectLocalhost(call: NetworkCall, backends: readonly LocalnetBackend[]): Promise<void> {
  const valid = attachmentsOf(call.network, call.valid ?? []);
  const owners = new Set(valid.map(ownerText));
  const ids = new Set(valid.map(({ containerId }) => containerId));
  for (const dev of leaveInvalid(call.network, (owner, id) => owners.has(owner) || ids.has(id))) {
    const needed = await Promise.all(backends.map((backend) => isPublishedThrough(call, dev, backend)));
    if (needed.includes(true)) continue;
    switchBack(dev);
    forgetLeft(dev);
  }
}

async function isPublishedThrough(call: Call, dev: string, backend: LocalnetBackend): Promise<boolean> {
  try {
    return await publishedThrough(call, dev, backend);
  } catch (error) {
    // An nft that does not work here has published nothing.
    if (backend === "nftables" && !(await nftUsable(call.host))) return false;
    throw error;
  }
}
