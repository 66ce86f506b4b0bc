/** Connections that the kernel tracks: finding and deleting those of one UDP port, by the `conntrack` tool. */
import type { Family } from "../net/cidr.ts";
import { CommandError, failureText, type Output, type Run, says } from "./run.ts";

/** A tracked UDP flow, as far as it matters here. */
export interface Flow {
  /** Where the first packet was sent to. */
  readonly destination: string;
  readonly port: number;
  /** Who answers it: after DNAT the container. */
  readonly replySource: string;
}

const familyName = (family: Family) => family === 4 ? "ipv4" : "ipv6";

/** Which flows are meant: all conditions have to hold. */
export interface FlowFilter {
  readonly port?: number;
  readonly destination?: string;
  readonly replySource?: string;
}

/** The UDP flows that are meant, by one process. Throws {@linkcode CommandError} when the tool is missing or fails. */
export async function udpFlows(run: Run, family: Family, filter: FlowFilter): Promise<Flow[]> {
  return parseFlows((await flowsCommand(run, "-L", { family, filter })).stdout);
}

/** Reads `conntrack -L`: `udp 17 28 src=… dst=… sport=… dport=… [UNREPLIED] src=… dst=… sport=… dport=… …`. */
export function parseFlows(text: string): Flow[] {
  return text.split("\n").flatMap((line) => {
    const words = [...line.matchAll(/\b(src|dst|dport)=(\S+)/g)];
    const [, to, port, from] = words;
    if (to?.[1] !== "dst" || port?.[1] !== "dport" || from?.[1] !== "src") return [];
    return [{ destination: to[2] ?? "", port: Number(port[2]), replySource: from[2] ?? "" }];
  });
}

/** Deletes UDP flows; none being there is success. */
export async function deleteUdpFlows(run: Run, family: Family, filter: FlowFilter): Promise<void> {
  await flowsCommand(run, "-D", { family, filter });
}

async function flowsCommand(
  run: Run,
  command: "-L" | "-D",
  { family, filter }: { readonly family: Family; readonly filter: FlowFilter },
): Promise<Output> {
  const argv = ["conntrack", command, "-f", familyName(family), "-p", "udp"];
  if (filter.port !== undefined) argv.push("--orig-port-dst", `${filter.port}`);
  if (filter.destination !== undefined) argv.push("--orig-dst", filter.destination);
  if (filter.replySource !== undefined) argv.push("--reply-src", filter.replySource);
  const output = await run({ argv });
  // Nothing found is exit status 0 in some versions and 1 in others.
  if (output.code === 0 || says(output, "noFlows")) return output;
  throw new CommandError({ argv }, output, failureText(output));
}
