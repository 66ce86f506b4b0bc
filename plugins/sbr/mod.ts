/**
 * sbr: source based routing. What is sent from an address of the interface looks in that address's own routing table,
 * so answers leave by the interface that the question came in on. https://www.cni.dev/plugins/current/meta/sbr/
 *
 * Differs from the reference: only routes of the address's own family are copied, none is lost on the way, and tables
 * in use are never shared; ADD may be repeated and is taken back when it fails; CHECK looks; DEL needs neither
 * namespace nor interface, leaves other rules alone and empties its tables. `gateways` and `addSourceHints` are newer
 * than its release.
 */
import { statusTools } from "../../lib/link/needs.ts";
import { lockNetns } from "../../lib/link/netns_lock.ts";
import { isFor, isMovable, leadsFrom, type Source, sourcesOf, type TabledSource, withTables } from "./source_routes.ts";
import { decode, decodeLeniently, flag, list, maybeInteger, text } from "../../lib/cni/decode.ts";
import { goQuote, internal } from "../../lib/cni/error.ts";
import { openNetns } from "../../lib/cni/netns.ts";
import { type Call, type ContainerCall, type NetworkCall, nothing, type Plugin } from "../../lib/cni/plugin.ts";
import { prevResult, prevResultLeniently } from "../../lib/cni/prev_result.ts";
import { type Result, since } from "../../lib/cni/types.ts";
import { runLines } from "../../lib/kernel/batch.ts";
import { addrShow, isNamed } from "../../lib/kernel/ip.ts";
import { apply, because, type Step, step, type StepOptions } from "../../lib/kernel/plan.ts";
import {
  gatewaysOf,
  type KernelRoute,
  type KernelRule,
  leadsBy,
  routeWords,
  type Routing,
  routingNow,
  SCOPE_LINK,
  TABLE,
  tableOf,
} from "../../lib/kernel/routing.ts";
import {
  type Address,
  type Family,
  formatAddress,
  formatPrefix,
  networkPrefix,
  parseAddress,
} from "../../lib/net/cidr.ts";

const keys = {
  table: maybeInteger("only add rules, to this table that somebody else fills", { min: 1, max: 2 ** 32 - 1 }),
  gateways: list(text("", "an address"), "gateways instead of those in prevResult: at most one of each family"),
  addSourceHints: flag(false, "leave the way to the own subnet in the main table, with the right source address"),
};

export const plugin: Plugin = {
  name: "sbr",
  kind: "meta",
  about: "source based routing: answers leave by the interface they are asked on",
  versions: since("0.1.0"),
  needs: ["ip", "nsenter"],
  keys,
  parse: settings,
  add,
  del,
  check,
  gc: nothing,
  status,
};

async function add(call: ContainerCall): Promise<Result> {
  const conf = settings(call);
  const previous = prevResult(call, "failed to parse network configuration");
  if (!previous) {
    throw internal("This plugin must be called as chained plugin", "sbr comes after a main plugin in a list");
  }
  if (!previous.ips?.length) {
    throw internal(`No IP addresses supplied on interface: ${call.ifName}`, "prevResult has no ips");
  }
  openNetns(call);
  const sources = sourcesOf(call, previous);
  if (sources.length === 0) {
    call.warn(`no address of prevResult is on ${call.ifName}: nothing is changed`);
    return previous;
  }
  const lock = await lockNetns(call);
  call.undo(() => lock.close());
  const now = await routingNow(call.pod, [addrShow(call.ifName)]);
  if (conf.table === undefined) await move(call, sources, { now, ...conf });
  else {
    const tabled = sources.map((source) => ({ ...source, table: conf.table ?? 0 }));
    await apply([ruleSteps(tabled, now, "failed to add rule")], call);
  }
  lock.close();
  return previous;
}

/** Removes the rules of the interface's addresses, then what was in tables that only these rules led to. */
async function del(call: ContainerCall): Promise<void> {
  if (!call.podAlive) return;
  const { table } = decodeLeniently({ table: keys.table }, call.config, call.warn);
  const known = sourcesOf(call, prevResultLeniently(call) ?? {}).map(({ prefix }) => formatAddress(prefix.address));
  const lock = await lockNetns(call);
  try {
    const now = await routingNow(call.pod, [addrShow(call.ifName)]);
    // By a name like if7 iproute2 shows another link when there is none of this name.
    const own = now.links.filter((link) => isNamed(link, call.ifName));
    const addresses = new Set([...known, ...own.flatMap((link) => link.addr_info ?? []).map((one) => one.local)]);
    const isOwn = (rule: KernelRule) => [...addresses].some((address) => leadsFrom(rule, address, table));
    const rules = now.rules.filter(isOwn);
    const others = new Set(now.rules.filter((rule) => !isOwn(rule)).map(tableOf));
    const emptied = new Set(rules.map(tableOf).filter((one) => table === undefined && !others.has(one)));
    const steps = [
      ...rules.map((rule) =>
        ipStep(rule.family, `rule del pref ${rule.priority} from ${rule.src} lookup ${rule.table}`)
      ),
      ...now.routes.filter((route) => emptied.has(tableOf(route)) && leadsBy(route, call.ifName))
        .map((route) => ipStep(route.family, `route del ${routeWords(route, tableOf(route))}`)),
    ];
    const stderr = await force(
      because(call, "rules of the interface's addresses, and the tables that only these led to"),
      steps,
    );
    const left = stderr === "" ? [] : (await routingNow(call.pod)).rules.filter(isOwn);
    if (left.length > 0) throw internal(`Failed to delete rule ${ruleText(left[0])}`, stderr);
  } finally {
    lock.close();
  }
}

async function check(call: ContainerCall): Promise<void> {
  const { table, gateways } = settings(call);
  const previous = prevResult(call, "failed to parse network configuration");
  openNetns(call);
  const { rules, routes } = await routingNow(call.pod);
  for (const { prefix, gateway } of sourcesOf(call, previous ?? {})) {
    const { family } = prefix.address;
    const address = formatAddress(prefix.address);
    const rule = rules.find((one) => leadsFrom(one, address, table));
    if (!rule) {
      const to = table === undefined ? "a table of its own" : `table ${table}`;
      throw internal(`no rule leads from ${address} to ${to}`, `ip rule show in ${call.netns}`);
    }
    if (table !== undefined || !(gateways.get(family) ?? gateway)) continue;
    const found = routes.some((one) =>
      one.family === family && one.dst === "default" && tableOf(one) === tableOf(rule)
    );
    if (found) continue;
    throw internal(
      `table ${rule.table} of ${address} has no default route`,
      `ip route show table ${rule.table} in ${call.netns}`,
    );
  }
}

// deno-lint-ignore require-await -- what it throws has to be a rejection
async function status(call: NetworkCall): Promise<void> {
  settings(call);
  statusTools(plugin.needs);
}

function settings(call: Call) {
  const { table, ...conf } = decode(keys, call.config, "failed to parse network configuration");
  if (table !== undefined && (table < 1 || table > 2 ** 32 - 1)) {
    throw internal(`table ${table} is not a routing table`, 'set "table" to 1 up to 4294967295, or leave it');
  }
  return {
    table,
    hints: conf.addSourceHints,
    gateways: table === undefined ? staticGateways(conf.gateways) : new Map(),
  };
}

/** The configured gateways by family. */
function staticGateways(given: readonly string[] = []): Map<Family, Address> {
  const found = new Map<Family, Address>();
  const refuse = (msg: string) => internal(msg, '"gateways" holds at most one IPv4 and one IPv6 address');
  if (given.length > 2) throw refuse("gateways list cannot contain more than 2 entries (one IPv4, one IPv6)");
  for (const item of given) {
    const address = parseAddress(item);
    if (!address) throw refuse(`invalid static gateway IP address: ${item}`);
    const other = found.get(address.family);
    if (other) {
      const both = `${formatAddress(other)} and ${formatAddress(address)}`;
      throw refuse(`gateways list contains multiple IPv${address.family} addresses: ${both}`);
    }
    found.set(address.family, address);
  }
  return found;
}

/** Moves the interface's routes from the main table into those of the addresses. */
async function move(
  call: ContainerCall,
  sources: readonly Source[],
  { now, gateways, hints }: { now: Routing; gateways: Map<Family, Address>; hints: boolean },
): Promise<void> {
  const { ifName } = call;
  const link = now.links.find((one) => one.ifname === ifName);
  if (!link) {
    throw internal(`Cannot find network interface ${ifName}: Link not found`, `looked in ${call.netns}`);
  }
  if (!link.flags.includes("UP")) call.warn(`${ifName} is down: the kernel has taken its routes from the main table`);
  // What needs no gateway comes first, so that gateways can be reached, and goes last.
  const routes = now.routes.filter((route) => tableOf(route) === TABLE.main && isMovable(route, ifName))
    .sort((a, b) => gatewaysOf(a).length - gatewaysOf(b).length);
  const prefixes = sources.map(({ prefix }) => prefix);
  const copied = new Set<KernelRoute>();
  const steps: Step[] = [];
  const tables = withTables(sources, now);
  const present = new Set(now.routes.map((route) => routeWords(route, tableOf(route))));
  for (const { prefix, gateway, table } of tables) {
    const { family } = prefix.address;
    const via = gateways.get(family) ?? gateway;
    for (const route of routes) {
      if (route.family !== family || !isFor(prefix, route, prefixes)) continue;
      copied.add(route);
      if (gateways.has(family) && route.dst === "default") continue;
      const words = routeWords(route, table, { src: formatAddress(prefix.address) });
      if (present.has(words)) continue;
      // Not replace, which would take an equal destination's other way out.
      const undo = ipStep(family, `route del ${words}`);
      steps.push(
        ipStep(family, `route append ${words}`, {
          failing: "Failed to readd route",
          why: "what the address may use",
          undo,
        }),
      );
    }
    const isThere = now.routes.some((one) =>
      tableOf(one) === table && one.family === family && one.dst === "default" && one.dev === ifName &&
      via !== undefined && one.gateway === formatAddress(via)
    );
    if (via && !isThere) {
      const words = `${family === 4 ? "0.0.0.0/0" : "::/0"} via ${formatAddress(via)} dev ${ifName} table ${table}`;
      steps.push(ipStep(family, `route replace ${words}`, {
        failing: `Failed to add default route to ${formatAddress(via)}`,
        why: "its own way out",
        undo: ipStep(family, `route del ${words}`),
      }));
    }
  }
  steps.push(...ruleSteps(tables, now, "Failed to add rule"));
  const subnets = sources.map(({ prefix }) => formatPrefix(networkPrefix(prefix)));
  // With hints, ways over the link alone stay, but for those that a hint stands in for.
  const stays = (route: KernelRoute) => hints && Number(route.scope) === SCOPE_LINK && !subnets.includes(route.dst);
  const deleted = routes.filter((route) => copied.has(route) && !stays(route)).reverse();
  const removals = deleted.map((route) => {
    const words = routeWords(route, TABLE.main);
    const undo = ipStep(route.family, `route append ${words}`);
    return ipStep(route.family, `route del ${words}`, { failing: "Failed to delete route", why: "it has moved", undo });
  });
  if (!hints) return void await apply([[...steps, ...removals]], call);
  await apply([steps], call);
  const ways = sources.flatMap(({ prefix: { address } }, index) => {
    const hint = { family: address.family, dst: subnets[index] ?? "", dev: ifName, prefsrc: formatAddress(address) };
    if (now.routes.some((one) => one.protocol === "3" && tableOf(one) === TABLE.main && sameWay(one, hint))) return [];
    const words = `${hint.dst} dev ${ifName} scope link src ${hint.prefsrc} table ${TABLE.main}`;
    return [ipStep(address.family, `route append ${words}`, { why: "hint for the source" })];
  });
  const stderr = await force(because(call, "the main table keeps the direct way to the subnet"), [
    ...ways,
    ...removals,
  ]);
  if (stderr !== "") call.warn(`the main table is not as wanted: ${stderr}`);
}

/** The same way to the same destination from the same source? */
function sameWay(a: KernelRoute, b: KernelRoute): boolean {
  return a.family === b.family && a.dst === b.dst && a.dev === b.dev && a.prefsrc === b.prefsrc;
}

/** A rule for each address that has none yet; the kernel puts each in front of all others. */
function ruleSteps(sources: readonly TabledSource[], { rules }: Routing, failing: string): Step[] {
  return sources.flatMap(({ prefix: { address }, table }) => {
    const words = `from ${formatAddress(address)} lookup ${table}`;
    if (rules.some((rule) => leadsFrom(rule, formatAddress(address), table))) return [];
    return [
      ipStep(address.family, `rule add ${words}`, {
        failing,
        why: "what is sent from it",
        undo: ipStep(address.family, `rule del ${words}`),
      }),
    ];
  });
}

function ruleText(rule: KernelRule | undefined): string {
  return goQuote(`from ${rule?.src} lookup ${rule?.table}`);
}

/** A step of one family: IPv6 rules are taken by `ip -6` alone, and the families go side by side. */
function ipStep(family: Family, text: string, options?: StepOptions): Step {
  return step("pod", family === 4 ? "ip" : "ip6", text, options);
}

/** Does every step, also when others fail; returns what the tools complained about. */
async function force(call: ContainerCall, steps: readonly Step[]): Promise<string> {
  const outputs = await Promise.all((["ip", "ip6"] as const).map((tool) => {
    const lines = steps.filter((one) => one.tool === tool).map(({ text }) => text);
    return lines.length > 0
      ? runLines(call.pod, ["ip", ...(tool === "ip6" ? ["-6"] : []), "-force"], lines)
      : undefined;
  }));
  return outputs.map((output) => output && output.code !== 0 ? output.stderr.trim() : "").filter(Boolean).join("\n");
}
