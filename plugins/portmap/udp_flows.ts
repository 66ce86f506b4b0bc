/**
 * UDP clients that keep sending from one port keep their tracked connection, and with it the way that it once took:
 * past a new mapping, or to a container that is gone. Those flows are deleted, and no others.
 */
import { deleteUdpFlows, type FlowFilter, udpFlows } from "../../lib/kernel/conntrack.ts";
import { CommandError, missingTool, type Run, toolPath } from "../../lib/kernel/run.ts";
import { type Family, formatAddress, type Prefix } from "../../lib/net/cidr.ts";
import {
  appliesTo,
  destinationOf,
  type HostPorts,
  type PortMapping,
  protocolName,
} from "../../lib/rules/host_ports_iptables.ts";

/** Where commands run, and who is told what did not work: no call fails for a flow. */
interface Caller {
  readonly host: Run;
  warn(note: string): void;
}

function udpMappings({ mappings }: HostPorts, family: Family): PortMapping[] {
  return mappings.filter((mapping) => protocolName(mapping.protocol) === "udp" && appliesTo(mapping, family));
}

/** Processes at a time: every port that has flows takes one. */
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
 * After ADD: flows to a published port that were first sent to an address of this host. A query to another host's port
 * of the same number, passing by, is left alone.
 */
export async function flushForAdd(call: Caller, ports: HostPorts, target: Prefix): Promise<void> {
  const { family } = target.address;
  const mappings = udpMappings(ports, family);
  if (mappings.length === 0) return;
  const doing = `failed to delete stale UDP conntrack entries for ${formatAddress(target.address)}`;
  const [first, ...more] = mappings.map((mapping) => ({ port: mapping.hostPort, destination: destinationOf(mapping) }));
  await telling(call, doing, async () => {
    if (first && more.length === 0 && first.destination !== "") return await deleteUdpFlows(call.host, family, first);
    // One listing, however many ports: a range is published as many mappings.
    const flows = await udpFlows(call.host, family, first && more.length === 0 ? { port: first.port } : {});
    const places = new Set(mappings.map((mapping) => placeOf(mapping.hostPort, destinationOf(mapping))));
    const found = flows.filter(({ port, destination }) =>
      places.has(placeOf(port, "")) || places.has(placeOf(port, destination))
    );
    if (found.length === 0) return;
    const local = await ownAddresses(call.host, family);
    const going = found.filter(({ port, destination }) =>
      local.has(destination) || places.has(placeOf(port, destination))
    ).map(({ port, destination }): FlowFilter => ({ port, destination }));
    await deleteEach(call, family, going);
  });
}

const placeOf = (port: number, destination: string) => `${port} ${destination}`;

async function deleteEach(call: Caller, family: Family, filters: readonly FlowFilter[]): Promise<void> {
  const different = new Map(filters.map((filter) => [JSON.stringify(filter), filter]));
  await forEach([...different.values()], (filter) => deleteUdpFlows(call.host, family, filter));
}

/** On DEL: flows that a published port had led to one of the container's addresses. */
export async function flushForDel(
  call: Caller,
  ports: HostPorts,
  options: { readonly family: Family; readonly addresses: readonly string[] },
): Promise<void> {
  const { family, addresses } = options;
  const published = new Set(udpMappings(ports, family).map(({ hostPort }) => hostPort));
  const [port] = published;
  const [replySource] = addresses;
  if (port === undefined || replySource === undefined) return;
  await telling(call, `failed to delete stale UDP conntrack entries for ${addresses.join(", ")}`, async () => {
    const isOne = addresses.length === 1;
    if (isOne && published.size === 1) return await deleteUdpFlows(call.host, family, { port, replySource });
    const flows = await udpFlows(call.host, family, isOne ? { replySource } : {});
    const going = flows.filter((flow) => published.has(flow.port) && addresses.includes(flow.replySource))
      .map((flow): FlowFilter => ({ port: flow.port, replySource: flow.replySource }));
    await deleteEach(call, family, going);
  });
}

async function ownAddresses(host: Run, family: Family): Promise<ReadonlySet<string>> {
  const { stdout } = await host({ argv: ["ip", "-j", family === 4 ? "-4" : "-6", "addr", "show"] });
  const links = JSON.parse(stdout || "[]") as { addr_info?: { local?: string }[] }[];
  return new Set(links.flatMap((link) => link.addr_info ?? []).flatMap(({ local }) => local ?? []));
}
