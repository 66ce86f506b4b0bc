/** GC and STATUS of the plugins that give a container a link. No ADD or DEL reads this. */
import { decode, decodeLeniently, type Fields, type Keys } from "../cni/decode.ts";
import { all, CniError, code, internal } from "../cni/error.ts";
import type { Call, NetworkCall } from "../cni/plugin.ts";
import { attachmentsOf, type ValidAttachment } from "../cni/types.ts";
import type { Link } from "../kernel/ip.ts";
import { must, says } from "../kernel/run.ts";
import { hostEndNames, isAliasOf, isUnnamed, portAlias } from "./host_end.ts";
import { ipamType, ipamTypeLeniently } from "./ipam.ts";
import { ipamOf, type LinkPlugin, NEEDS } from "./link_plugin.ts";
import { statusTools } from "./needs.ts";

/** Removes what belongs to no valid attachment: links and rules first, then the addresses. */
export async function gcOf<K extends Keys>(call: NetworkCall, own: LinkPlugin<K>): Promise<void> {
  const conf = decodeLeniently(own.keys, call.config, call.warn);
  const { valid } = call;
  const [first = [], ...rest] = valid ? own.collect?.(call, valid, conf) ?? [] : [];
  const veths = valid && own.pairs ? [() => collectVeths(call, call.network, valid)] : [];
  await all([...veths, ...first], ...rest, [() => collectAddresses(call, ipamTypeLeniently(ipamOf(conf)))]);
}

/** Throws when the next ADD could not work. */
export async function statusOf<K extends Keys>(call: NetworkCall, own: LinkPlugin<K>): Promise<void> {
  const conf: Fields<K> = decode(own.keys, call.config, "failed to load netconf");
  statusTools([...NEEDS, ...own.tools?.(conf) ?? []]);
  await own.status?.(call, conf);
  const type = ipamType(ipamOf(conf));
  if (type !== "" || own.ipamRequired) await call.delegate(type, "STATUS");
}

/** GC of the IPAM plugin; one that does not know the command has nothing to say. */
async function collectAddresses(call: NetworkCall, type: string): Promise<void> {
  if (type === "") return;
  try {
    await call.delegate(type, "GC");
  } catch (error) {
    const unknown: readonly number[] = [code.environment, code.incompatibleVersion];
    if (!(error instanceof CniError) || !unknown.includes(error.code)) throw error;
    call.warn(`${type} collects nothing: ${error.msg}`);
  }
}

/**
 * Deletes host veths of this network that belong to no valid attachment: by their alias, or where an ADD was killed
 * before it set one, by their MAC. Other links without an alias are not ours to judge.
 */
export async function collectVeths(call: Call, network: string, valid: readonly ValidAttachment[]): Promise<void> {
  const shown = await must(call.host, { argv: ["ip", "-j", "-d", "link", "show", "type", "veth"] });
  const owners = attachmentsOf(network, valid);
  const aliases = new Set(owners.map(portAlias));
  const names = new Set(owners.flatMap(hostEndNames));
  const links = JSON.parse(shown || "[]") as Partial<Link>[];
  const stale = links.filter((link) =>
    link.ifalias
      ? isAliasOf(link.ifalias, network) && !aliases.has(link.ifalias)
      : isUnnamed(link, network) && !names.has(link.ifname ?? "")
  );
  for (const { ifname } of stale) {
    const output = await call.host({ argv: ["ip", "link", "del", "dev", ifname ?? ""] });
    if (output.code !== 0 && !says(output, "noDevice")) {
      throw internal(`failed to delete "${ifname}": ${output.stderr.trim()}`);
    }
  }
}
