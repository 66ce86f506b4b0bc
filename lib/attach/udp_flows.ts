/**
 * UDP clients that keep sending from one port keep their tracked connection, and with it the way that it once took: past a
 * new mapping, or to a container that is gone. Those flows are deleted, and no others.
 */
import { deleteUdpFlows, udpFlows } from "../kernel/conntrack.ts";
import { CommandError, missingTool, type Run, toolPath } from "../kernel/run.ts";
import { type Family, formatAddress, type Prefix } from "../net/cidr.ts";
import { appliesTo, destinationOf, type HostPorts, type PortMapping, protocolName } from "./host_ports.ts";

/** Where commands run, and who is told what did not work: no call fails for a flow. */
interface Caller {
  readonly host: Run;
  warn(note: string): void;
}

function udpMappings({ mappings }: HostPorts, family: Family): PortMapping[] {
  return mappings.filter((mapping) => protocolName(mapping.protocol) === "udp" && appliesTo(mapping, family));
}

/** Processes at a time: a range of ports is published as many mappings. */
const AT_ONCE = 4;

async function forEach<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  const queue = [...items];
  await Promise.all(Array.from({ length: AT_ONCE }, async () => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await work(item);
  }));
}

async function telling(call: Caller, doing: string, work: () => Promise<void>): Promise<void> {
  if (toolPath("conntrack") === "") {
    call.warn(
      `${doing}: ${missingTool("conntrack")}: UDP clients that are under way may go on reaching the old place; ` +
        "install conntrack (conntrack-tools)",
    );
    return;
  }
  try {
    await work();
  } catch (error) {
    if (!(error instanceof CommandError)) throw error;
    call.warn(`${doing}: ${error.message}`);
  }
}

/**
 * After ADD: flows to a published port that were first sent to an address of this host. A query to another host's port of
 * the same number, passing by, is left alone.
 */
export async function flushForAdd(call: Caller, ports: HostPorts, target: Prefix): Promise<void> {
  const { family } = target.address;
  const mappings = udpMappings(ports, family);
  if (mappings.length === 0) return;
  const doing = `failed to delete stale UDP conntrack entries for ${formatAddress(target.address)}`;
  await telling(call, doing, async () => {
    let own: Promise<ReadonlySet<string>> | undefined;
    await forEach(mappings, async (mapping) => {
      const port = mapping.hostPort;
      const to = destinationOf(mapping);
      if (to !== "") return await deleteUdpFlows(call.host, family, { port, destination: to });
      const flows = await udpFlows(call.host, family, port);
      if (flows.length === 0) return;
      own ??= ownAddresses(call.host, family);
      const local = await own;
      for (const destination of new Set(flows.map((flow) => flow.destination))) {
        if (local.has(destination)) await deleteUdpFlows(call.host, family, { port, destination });
      }
    });
  });
}

/** On DEL: flows that a published port had led to one of the container's addresses. */
export async function flushForDel(
  call: Caller,
  ports: HostPorts,
  options: { readonly family: Family; readonly addresses: readonly string[] },
): Promise<void> {
  const { family, addresses } = options;
  const wanted = udpMappings(ports, family).flatMap(({ hostPort }) =>
    addresses.map((replySource) => ({ port: hostPort, replySource }))
  );
  if (wanted.length === 0) return;
  await telling(call, `failed to delete stale UDP conntrack entries for ${addresses.join(", ")}`, async () => {
    await forEach(wanted, (filter) => deleteUdpFlows(call.host, family, filter));
  });
}

async function ownAddresses(host: Run, family: Family): Promise<ReadonlySet<string>> {
  const { stdout } = await host({ argv: ["ip", "-j", family === 4 ? "-4" : "-6", "addr", "show"] });
  const links = JSON.parse(stdout || "[]") as { addr_info?: { local?: string }[] }[];
  return new Set(links.flatMap((link) => link.addr_info ?? []).flatMap(({ local }) => local ?? []));
}
