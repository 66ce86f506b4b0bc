/**
 * What `cnibox doctor` says of other nodes: does the agent run, is the way to each of them there, and does it carry
 * what pods send?
 */
import { type Run, toolPath } from "../../kernel/run.ts";
import { isLocked } from "../../kernel/lock_file.ts";
import { PLACES, type Status } from "../../node/state.ts";
import { agentStatus } from "../peers.ts";
import { findings, type Line, ofKind } from "./finding.ts";

const { ok, warning, failure } = findings("nodes");
/** Bytes of the IP and ICMP headers of an echo request. */
const HEADERS = { 4: 28, 6: 48 } as const;
/** How many nodes are probed at once. */
const AT_ONCE = 16;

/** A way to another node, as the agent's status has it: `10.5.2.0/24 via 10.99.0.2 dev eth0`. */
interface Way {
  readonly node: string;
  readonly gateway: string;
}

/** A way, and which packets its other end answers: as large ones as pods may send, only small ones, none. */
interface Tried extends Way {
  readonly carries: "all" | "small" | "none";
}

/** Nothing where no agent has run since the node started. */
export async function otherNodes({ host }: { readonly host: Run }): Promise<Line[]> {
  const now = agentStatus();
  if (now === undefined) return [];
  const lines: Line[] = [];
  if (!await isLocked(PLACES.lock)) {
    lines.push(failure(`cnibox node does not run; it last looked at ${now.reconciled}`, {
      breaks: "ways to other nodes that are lost are not restored, and new nodes are not reached",
      fix: "systemctl enable --now cnibox-node.service",
    }));
  }
  if (now.store.state === "away") {
    const { name, since, error = "no reason known" } = now.store;
    lines.push(warning(`${name} has not answered since ${since}: ${error}`, {
      breaks: "new nodes are not reached until it does; everything else stays as it is",
    }));
  }
  return [...lines, ...ofAgent(now), ...await probed(host, now)];
}

/** What the agent says is wrong with this node, and with the others. */
function ofAgent({ problems }: Pick<Status, "problems">): Line[] {
  const [own, others] = [problems.filter(({ node }) => node === ""), problems.filter(({ node }) => node !== "")];
  return [
    ...own.map(({ text }) => failure(text, { breaks: "this node is not part of the network" })),
    ...ofKind(
      warning(`${others.length} problems with other nodes`, {
        breaks: "pods here and pods of such a node do not reach each other",
      }),
      others.map(({ node, text }) => ({ text: `${node}: ${text}` })),
    ),
  ];
}

async function probed(host: Run, { nodes, mtu }: Status): Promise<Line[]> {
  if (toolPath("ping") === "") {
    return [warning("ways to other nodes were not tried: no ping here")];
  }
  const ways: Way[] = nodes.flatMap(({ node, ways }) =>
    ways.flatMap((way) => {
      const gateway = / via (\S+) /.exec(way)?.[1];
      return gateway === undefined ? [] : [{ node, gateway }];
    })
  );
  const tried: Tried[] = [];
  for (let at = 0; at < ways.length; at += AT_ONCE) {
    const some = ways.slice(at, at + AT_ONCE);
    tried.push(...await Promise.all(some.map(async (way) => ({ ...way, carries: await carried(host, way, mtu) }))));
  }
  if (ways.length === 0 || tried.some(({ carries }) => carries !== "all")) return ofWays(tried, mtu);
  return [ok(`${ways.length} ways to ${nodes.length} other nodes carry ${mtu} bytes`)];
}

async function carried(host: Run, { gateway }: Way, mtu: number): Promise<Tried["carries"]> {
  const echo = async (bytes: number) =>
    (await host({ argv: ["ping", "-c", "1", "-W", "2", "-M", "do", "-s", `${bytes}`, gateway], question: true }))
      .code === 0;
  if (await echo(mtu - HEADERS[gateway.includes(":") ? 6 : 4])) return "all";
  return await echo(8) ? "small" : "none";
}

function ofWays(tried: readonly Tried[], mtu: number): Line[] {
  const narrow = tried.filter(({ carries }) => carries === "small");
  const silent = tried.filter(({ carries }) => carries === "none");
  return [
    ...ofKind(
      warning(`${narrow.length} ways to other nodes do not carry packets of ${mtu} bytes`, {
        breaks: "connections to pods there stall after the first bytes",
      }),
      narrow.map(({ node, gateway }) => ({
        text: `${node}: ${gateway} answers, but not to packets of ${mtu} bytes`,
        fix: 'a smaller "mtu" in /etc/cnibox/node.json, or a larger one between the nodes',
      })),
    ),
    ...ofKind(
      warning(`${silent.length} ways to other nodes do not answer`, {
        breaks: "pods there are not reached, unless only ICMP is filtered",
      }),
      silent.map(({ node, gateway }) => ({
        text: `${node}: ${gateway} does not answer`,
        fix: "cnibox node --explain; is the node up, and its cnibox node? vxlan needs its UDP port open between nodes",
      })),
    ),
  ];
}
