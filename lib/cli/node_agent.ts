/** `cnibox node`: this node's subnet, and the ways to those of all others */
import { machine, openEtcd } from "../ipam/cluster_conf.ts";
import { isLocked } from "../kernel/lock_file.ts";
import { blockOfCommand } from "../kernel/shell.ts";
import { removeFile } from "../kernel/state_file.ts";
import { readable, systemRun } from "../kernel/run.ts";
import { Agent, type World } from "../node/agent.ts";
import { CONF_FILE, type NodeConf, parseNodeConf } from "../node/conf.ts";
import { parseNetworkConf } from "../node/records.ts";
import { batchCommand, type Repair } from "../node/reconcile.ts";
import { serve } from "../node/serve.ts";
import { EtcdSource, kubernetesSource, type Source } from "../node/source.ts";
import { PLACES, type Status } from "../node/state.ts";
import { REQUEST_LIMIT_MS } from "../store/store.ts";
import { CliError, type CommandCall, status, usageError } from "./command.ts";
import { agentStatus } from "./peers.ts";
import { needRoot, onlyOne, readText } from "./setup.ts";
import { ageOf, columns, complain, jsonText, painter, say, table, terminalWidth } from "./terminal.ts";

/** `cnibox node` */
export async function node(call: CommandCall): Promise<number> {
  needRoot(call, "it sets routes and makes links");
  const modes = ["once", "withdraw", "explain"].filter((name) => call.is(name));
  if (modes.length > 1) throw usageError(`--${modes.join(" and --")} exclude each other`);
  const file = call.value("conf") ?? CONF_FILE;
  const conf = parseNodeConf(readText(file), file);
  const { source, close } = await sourceOf(conf);
  const world: World = {
    run: readable(systemRun()),
    source,
    conf,
    places: PLACES,
    machineId: machine().machineId,
    say: (text) => complain(`cnibox node: ${text}\n`),
    takeOver: call.is("take-over"),
  };
  try {
    if (call.is("explain")) return await explain(new Agent(world), call.is("json"));
    // Exactly one per node; one that is just being restarted has time to end. What it remembered is read then.
    using _lock = await onlyOne("node", "cnibox node");
    const agent = new Agent(world);
    if (call.is("withdraw")) return await withdraw(agent, call.is("json"));
    if (call.is("once")) return await once(agent, call.is("json"));
    await serve(agent, untilEnded());
    return status.done;
  } finally {
    close();
  }
}

async function sourceOf(conf: NodeConf): Promise<{ source: Source; close: () => void }> {
  const deadline = () => Date.now() + REQUEST_LIMIT_MS;
  const run = systemRun();
  const { etcd, kubernetes } = conf.store ?? {};
  if (etcd) return { source: new EtcdSource(openEtcd(run, etcd, { deadline, path: "store.etcd" })), close: () => {} };
  // Loaded when used: etcd needs no YAML.
  const { openNodes } = await import("../store/open_kubernetes.ts");
  const { nodes, close } = openNodes(run, kubernetes?.kubeconfig, deadline);
  return { source: kubernetesSource(nodes, parseNetworkConf(JSON.stringify(conf.network), '"network"')), close };
}

/** Aborts when this process is asked to end. */
function untilEnded(): AbortSignal {
  const controller = new AbortController();
  for (const name of ["SIGTERM", "SIGINT"] as const) Deno.addSignalListener(name, () => controller.abort());
  return controller.signal;
}

async function asked(agent: Agent): Promise<void> {
  try {
    agent.listed(await agent.world.source.list());
  } catch (error) {
    agent.away(error);
  }
}

async function once(agent: Agent, json: boolean): Promise<number> {
  await asked(agent);
  const now = await agent.reconcile();
  const { ready, store } = now;
  if (json) say(jsonText(now));
  return ready ? status.done : store.state === "away" ? status.tryAgain : status.failed;
}

async function explain(agent: Agent, json: boolean): Promise<number> {
  await asked(agent);
  const plan = await agent.plan();
  say(json ? jsonText({ version: 1, ...plan }) : explained(plan));
  return status.done;
}

/** A repair as shell. */
export function explained({ batches, problems }: Repair): string {
  const lines = batches.flatMap((batch) => {
    // One that fails stops no other.
    const { lines } = blockOfCommand({ ...batchCommand(batch), argv: [batch.tool, "-batch", "-"] });
    return lines.map((line, at) => {
      const node = batch.lines[at]?.node;
      return node ? `${line}  # ${node.replaceAll(/\s+/g, " ")}` : line;
    });
  });
  const notes = problems.map(({ node, text }) =>
    `# ${node === "" ? "" : `node ${node}: `}${text}`.replaceAll("\n", " ")
  );
  if (lines.length + notes.length === 0) return "# nothing is to be done\n";
  return [...notes, ...lines].map((line) => `${line}\n`).join("");
}

async function withdraw(agent: Agent, json: boolean): Promise<number> {
  const problems = await agent.withdraw();
  // Still locked: whoever waits for it sees that it is gone.
  removeFile(PLACES.lock);
  if (json) say(jsonText({ version: 1, problems }));
  for (const { text } of problems) complain(`cnibox node: ${text}\n`);
  if (problems.length === 0 && !json) say("this node is out of the network\n");
  return problems.length === 0 ? status.done : status.failed;
}

/** `cnibox node status` */
export async function nodeStatus(call: CommandCall): Promise<number> {
  needRoot(call, "what the agent says of itself is for root alone");
  const now = agentStatus();
  if (now === undefined) {
    throw new CliError("cnibox node has not run on this node since it started", status.unknown, [
      `it writes ${PLACES.status} when it has looked at the network once`,
    ]);
  }
  const isRunning = await isLocked(PLACES.lock);
  if (call.is("json")) say(jsonText({ ...now, running: isRunning }));
  else say(shown(now, isRunning));
  return now.ready && isRunning ? status.done : status.failed;
}

function shown(now: Status, isRunning: boolean): string {
  const paint = painter();
  const { store, nodes, problems } = now;
  const state = !isRunning ? "not running; everything is as it was left" : now.ready ? "ready" : "not ready";
  const front = columns([
    ["node", `${paint("bold", now.node)} ${now.publicIPs.join(", ")}`],
    [
      "state",
      `${paint(now.ready && isRunning ? "green" : "red", state)}, looked ${ageOf(new Date(now.reconciled))} ago`,
    ],
    ["store", `${store.name}: ${store.state} since ${store.since}${store.error ? `: ${store.error}` : ""}`],
    ["network", `${now.networks.join(", ")}, ${now.backend || "no backend"}, MTU ${now.mtu}`],
    ["subnet", now.subnets.join(", ") || "none"],
  ]);
  const others = table(
    ["NODE", "ADDRESS", "SUBNET", "WAY"],
    nodes.map((one) => [
      one.node,
      one.publicIPs.join(", "),
      one.subnets.join(", "),
      (one.ways.map((way) => way.replace(/^\S+ /, "")).join(", ") || "none") +
      (one.unconfirmed ? " (unconfirmed)" : ""),
    ]),
    { width: terminalWidth() },
  );
  const notes = problems.map(({ node, text }) => `${paint("red", node === "" ? "this node" : node)}: ${text}\n`).join(
    "",
  );
  return [front, nodes.length > 0 ? others : "", notes].filter((part) => part !== "").join("\n");
}
