/**
 * portmap: publishes ports of the container on this host. https://www.cni.dev/plugins/current/meta/portmap/
 *
 * Differs from the reference: one transaction per family instead of a process per rule, and a failed ADD leaves
 * nothing; a port that another living container has is an error; a container cannot reach what listens on the host's
 * 127.0.0.1; UDP flows are forgotten on DEL too, and only those of the port on this host; DEL needs no more than
 * network and container; CHECK looks at shared rules too; GC and STATUS do their work.
 */
import { decode, decodeLeniently } from "../../lib/cni/decode.ts";
import { all, badConfig, internal } from "../../lib/cni/error.ts";
import type { ContainerCall, NetworkCall, Plugin } from "../../lib/cni/plugin.ts";
import { prevResultLeniently } from "../../lib/cni/prev_result.ts";
import { type Result, since } from "../../lib/cni/types.ts";
import { apply, step } from "../../lib/kernel/plan.ts";
import { namesOf } from "../../lib/kernel/regular_file.ts";
import { toolPath } from "../../lib/kernel/run.ts";
import { formatAddress, type Prefix } from "../../lib/net/cidr.ts";
import { type Backend, bothBackends, removeRules, together } from "../../lib/rules/backend.ts";
import { hostPorts } from "../../lib/rules/host_ports.ts";
import { collectHostPorts, usesLocalhost } from "../../lib/rules/host_ports_iptables.ts";
import { nftPorts, removeNftHostPorts } from "../../lib/rules/host_ports_nft.ts";
import { isLiving } from "./conflict.ts";
import { collectLocalhost } from "./localhost_access.ts";
import { isGuarded, isLocalnetOn } from "./localnet.ts";
import { deviceOf, publish, withdrawing } from "./publication.ts";
import {
  backendsOf,
  containerAddresses,
  givenMappings,
  hostPortsOf,
  keys,
  parse,
  parsePrefixed,
  validMappings,
} from "./settings.ts";

export const plugin: Plugin = {
  name: "portmap",
  kind: "meta",
  about: "publishes ports of the container on this host",
  versions: since("0.1.0"),
  needs: ["ip"],
  keys,
  parse: parsePrefixed,
  add,
  del,
  check,
  gc,
  status,
};

const upkeep = () => import("../../lib/rules/rule_upkeep.ts");

async function add(call: ContainerCall): Promise<Result> {
  const { conf, previous, ports, backends, checkFor } = parsePrefixed(call);
  if (!previous) {
    throw badConfig("must be called as chained plugin", "portmap needs the result of the plugin before it in the list");
  }
  if (ports.mappings.length === 0) return previous;
  const targets = containerAddresses(previous, call.ifName);
  const { portConflict } = conf;
  if (targets.length > 0) await publish(call, { ports, targets, backends, portConflict, checkFor });
  return previous;
}

async function del(call: ContainerCall): Promise<void> {
  const conf = decodeLeniently(keys, call.config, call.warn);
  const given = givenMappings(call);
  // The runtime says that nothing is published. When it says nothing, something may have been.
  if (given?.length === 0) return;
  const ports = hostPortsOf(call, conf, validMappings(conf));
  const previous = prevResultLeniently(call);
  const targets = previous ? containerAddresses(previous, call.ifName) : [];
  const backends = bothBackends(conf.backend);
  await removeRules(call, withdrawing(call), { ports, targets }, { backends, doing: "could not teardown dnat" });
}

async function check(call: ContainerCall): Promise<void> {
  const { previous, ports, backends } = parse(call);
  if (!previous) throw badConfig("Required prevResult missing", "CHECK needs the result of ADD");
  if (ports.mappings.length === 0) return;
  const targets = containerAddresses(previous, call.ifName);
  const { checkRules } = await upkeep();
  if (targets.length > 0) await checkRules(call, hostPorts, { ports, targets }, backends);
  const four = targets.find((target) => target.address.family === 4);
  if (four && usesLocalhost(ports)) await checkLocalhost(call, four);
}

async function checkLocalhost(call: ContainerCall, target: Prefix): Promise<void> {
  const [routes] = await apply(
    [[step("host", "ip", `route get ${formatAddress(target.address)}`, { read: true })]],
    call,
  )
    .catch(() => [[]]);
  const dev = deviceOf(routes);
  if (dev === undefined || dev === "lo" || isLocalnetOn(dev)) return;
  // Where the kernel could not have the guard, ADD has left the setting off, and has said so.
  if (!(await isGuarded(call.host))) return;
  throw internal(
    `route_localnet of ${dev} is off: 127.0.0.1 of this host does not reach the published ports`,
    `sysctl -w net.ipv4.conf.${dev.replaceAll(".", "/")}.route_localnet=1`,
  );
}

async function gc(call: NetworkCall): Promise<void> {
  const { network, valid } = call;
  if (valid === undefined) return;
  const ids = new Set(valid.map((one) => one.containerID));
  const { collectionJobs } = await upkeep();
  const collections = collectionJobs(call, {
    iptables: (family) => collectHostPorts(call, family, (one) => one.network === network && !ids.has(one.containerId)),
    nftables: () => collectNft(call, ids),
  });
  await all(collections, [
    async () => {
      try {
        await collectLocalhost(call, toolPath("nft") === "" ? ["iptables"] : ["iptables", "nftables"]);
      } catch (error) {
        throw (await import("../../lib/rules/rule_error.ts")).ruleError(error);
      }
    },
  ]);
}

/**
 * Rules in nftables do not say which network they are of. What goes is a container that is not valid here, that no
 * runtime on this host remembers for any network, and that does not answer.
 */
async function collectNft(call: NetworkCall, valid: ReadonlySet<string>): Promise<void> {
  // Names of the results that runtimes keep by the CNI library: `NETWORK-CONTAINER-INTERFACE`.
  const remembered = namesOf("/var/lib/cni/results");
  // Side by side: one that does not answer is waited for, in each family.
  await together(([4, 6] as const).map((family) => async () => {
    const suspects = new Map(
      (await nftPorts(call, family)).filter(({ comment }) =>
        comment !== "" && !valid.has(comment) && !remembered.some((name) => name.includes(comment))
      )
        .map((rule) => [rule.comment, rule]),
    );
    await together([...suspects.values()].map((rule) => async () => {
      const other = { ...rule, containerId: rule.comment, network: undefined };
      if (await isLiving(call, other, family)) return;
      await removeNftHostPorts(call, rule.comment, { family });
    }));
  }));
}

async function status(call: NetworkCall): Promise<void> {
  const conf = decode(keys, call.config, "failed to parse network configuration");
  backendsOf(conf);
  const { statusOfRules } = await upkeep();
  await statusOfRules(call, conf.backend as Backend | undefined, "published ports need it");
}
