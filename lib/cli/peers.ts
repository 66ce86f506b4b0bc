/**
 * Other nodes of the network and the ways to them, as `cnibox node` last saw them; for the commands that show this
 * node.
 */
import { readFileIfThere } from "../kernel/state_file.ts";
import { PLACES, type Status } from "../node/state.ts";

/**
 * What the agent says of itself; undefined where none has run since the node started, or where a user may not read it.
 */
export function agentStatus(): Status | undefined {
  try {
    const text = readFileIfThere(PLACES.status);
    return text === undefined ? undefined : JSON.parse(text);
  } catch (error) {
    // A user other than root need not know.
    if (error instanceof Deno.errors.PermissionDenied) return undefined;
    throw error;
  }
}

/** One node, for people: its name, its subnets, and the ways to those that have one. */
export interface PeerView {
  readonly node: string;
  readonly subnets: readonly string[];
  readonly publicIPs: readonly string[];
  /** `via 10.99.0.2 dev eth0`, each once: both families often have one. */
  readonly ways: readonly string[];
  /** Devices that these lead through. */
  readonly devices: readonly string[];
}

/** The other nodes, by name. */
export function peersOf(status: Status | undefined): PeerView[] {
  return (status?.nodes ?? []).map(({ node, subnets, publicIPs, ways }) => ({
    node,
    subnets,
    publicIPs,
    ways: [...new Set(ways.map((way) => way.slice(way.indexOf(" ") + 1)))],
    devices: [...new Set(ways.flatMap((way) => / dev (\S+)/.exec(way)?.[1] ?? []))],
  })).sort((a, b) => a.node < b.node ? -1 : 1);
}
