/** What users of CNI plugins suffer from, played to the reference and to cnibox on a fresh node each. */
import { assertEquals } from "@std/assert";
import {
  type By,
  type Json,
  type Need,
  type Node,
  nodeTest,
  type PluginCall,
  type PluginOutput,
  runPlugin,
  testNode,
  unmet,
} from "../e2e/support/mod.ts";

/** A fresh node and who acts on it. */
export interface Stage {
  node: Node;
  by: By;
}

/**
 * A test of one pain. The scene is played by the reference, where there is one, and what was seen is printed, whatever
 * it is: a later release may have fixed it. Then it is played by cnibox, and what was seen has to be as promised.
 * @param promise what has to be seen, or a function that throws when it is not so
 */
export function painTest<Seen>(
  name: string,
  needs: Need[],
  scene: (stage: Stage) => Promise<Seen>,
  promise: Seen | ((seen: Seen) => void),
): void {
  nodeTest(name, { needs }, async ({ node }) => {
    const reference = unmet(["reference"]).length === 0 ? byReference(scene) : Promise.resolve("not here");
    const ours = scene({ node, by: "cnibox" });
    // Both end before either is judged: no node is left to a test that has failed.
    const [theirs, outcome] = await Promise.allSettled([reference, ours]);
    print(`${name}\n  reference: ${words(theirs)}\n  cnibox:    ${words(outcome)}\n`);
    if (outcome.status === "rejected") throw outcome.reason;
    if (typeof promise === "function") (promise as (seen: Seen) => void)(outcome.value);
    else assertEquals(outcome.value, promise);
  });
}

async function byReference<Seen>(scene: (stage: Stage) => Promise<Seen>): Promise<Seen> {
  await using node = await testNode();
  return await scene({ node, by: "ref" });
}

function words(outcome: PromiseSettledResult<unknown>): string {
  const text = outcome.status === "fulfilled" ? JSON.stringify(outcome.value) : String(outcome.reason);
  return text.length > 600 ? `${text.slice(0, 600)}…` : text;
}

function print(text: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(text));
}

/** One call, by whoever's turn it is. */
export function play({ node, by }: Stage, request: PluginCall): Promise<PluginOutput> {
  return runPlugin(node, { ...request, by });
}

/** What a failed call said; "done" when it succeeded, "nothing" when it failed without a word. */
export function said(output: PluginOutput): string {
  if (output.code === 0) return "done";
  return typeof output.json?.msg === "string" ? output.json.msg : "nothing";
}

/** A bridge network with masquerading and host-local addresses. */
export function bridgeNet(more: Json = {}): Json {
  return {
    cniVersion: "1.1.0",
    name: "net1",
    type: "bridge",
    bridge: "br1",
    isDefaultGateway: true,
    ipMasq: true,
    ipam: { type: "host-local", ranges: [[{ subnet: "10.22.0.0/24" }]] },
    ...more,
  };
}

/** Addresses that are taken in a network of host-local. */
export async function leases(node: Node, network = "net1"): Promise<string[]> {
  return (await node.list(`/var/lib/cni/networks/${network}`)).filter((name) => /^[0-9a-f]+[.:]/.test(name));
}

/** Lines of both families' rules that hold the text. */
export async function rulesWith(node: Node, text: string): Promise<number> {
  const saved = await node.sh("iptables-save; ip6tables-save");
  return saved.split("\n").filter((line) => line.includes(text)).length;
}
