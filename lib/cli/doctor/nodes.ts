/**
 * What `cnibox doctor` says of other nodes: does the agent run, is the way to each of them there, and does it carry
 * what pods send?
 */
import { type Run, toolPath } from "../../kernel/run.ts";
import { isHeld } from "../../node/lock.ts";
import { PLACES, type Status } from "../../node/state.ts";
import { agentStatus } from "../peers.ts";
import type { Line } from "./finding.ts";

const AREA = "nodes";
/** Bytes of the IP and ICMP headers of an echo request. */
const HEADERS = { 4: 28, 6: 48 } as const;
/** How many nodes are probed at once. */
const AT_ONCE = 16;

/** A way to another node, as the agent's status has it: `10.5.2.0/24 via 10.99.0.2 dev eth0`. */
interface Way {
  readonly node: string;
  readonly gateway: string;
}

/** Nothing where no agent has run since the node started. */
export async function otherNodes({ host }: { readonly host: Run }): Promise<Line[]> {
  const now = agentStatus();
  if (now === undefined) return [];
  const lines: Line[] = [];
  if (!await isHeld(PLACES.lock)) {
    lines.push({
      area: AREA,
      grade: "failure",
      text: `cnibox node does not run; it last looked at ${now.reconciled}`,
      breaks: "ways to other nodes that are lost are not restored, and new nodes are not reached",
      fix: "systemctl enable --now cnibox-node.service",
    });
  }
  if (now.store.state === "away") {
    lines.push({
      area: AREA,
      grade: "warning",
      text: `${now.store.name} has not answered since ${now.store.since}: ${now.store.error ?? "no reason known"}`,
      breaks: "new nodes are not reached until it does; everything else stays as it is",
    });
  }
  for (const { node, text } of now.problems) {
    lines.push({
      area: AREA,
      grade: node === "" ? "failure" : "warning",
      text: node === "" ? text : `${node}: ${text}`,
      breaks: node === ""
        ? "this node is not part of the network"
        : `pods here and pods of ${node} do not reach each other`,
    });
  }
  return [...lines, ...await probed(host, now)];
}

async function probed(host: Run, { nodes, mtu }: Status): Promise<Line[]> {
  if (toolPath("ping") === "") {
    return [{ area: AREA, grade: "warning", text: "ways to other nodes were not tried: no ping here" }];
  }
  const ways: Way[] = nodes.flatMap(({ node, ways }) =>
    ways.flatMap((way) => {
      const gateway = / via (\S+) /.exec(way)?.[1];
      return gateway === undefined ? [] : [{ node, gateway }];
    })
  );
  const lines: Line[] = [];
  for (let at = 0; at < ways.length; at += AT_ONCE) {
    const found = await Promise.all(ways.slice(at, at + AT_ONCE).map((way) => trouble(host, way, mtu)));
    lines.push(...found.filter((one) => one !== undefined));
  }
  if (lines.length > 0 || ways.length === 0) return lines;
  return [{ area: AREA, grade: "ok", text: `${ways.length} ways to ${nodes.length} other nodes carry ${mtu} bytes` }];
}

/** What the other end of the way answers: to as large a packet as pods may send, else to a small one. */
async function trouble(host: Run, { node, gateway }: Way, mtu: number): Promise<Line | undefined> {
  const echo = async (bytes: number) =>
    (await host({ argv: ["ping", "-c", "1", "-W", "2", "-M", "do", "-s", `${bytes}`, gateway], question: true }))
      .code === 0;
  if (await echo(mtu - HEADERS[gateway.includes(":") ? 6 : 4])) return undefined;
  if (await echo(8)) {
    return {
      area: AREA,
      grade: "warning",
      text: `${node}: ${gateway} answers, but not to packets of ${mtu} bytes`,
      breaks: "connections to its pods stall after the first bytes",
      fix: 'a smaller "mtu" in /etc/cnibox/node.json, or a larger one between the nodes',
    };
  }
  return {
    area: AREA,
    grade: "warning",
    text: `${node}: ${gateway} does not answer`,
    breaks: "its pods are not reached, unless only ICMP is filtered",
    fix: `cnibox node --explain; is ${node} up, and its cnibox node? vxlan needs its UDP port open between nodes`,
  };
}
