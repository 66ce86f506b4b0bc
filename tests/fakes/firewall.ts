/**
 * A packet filter that executes transactions of iptables-restore and nft, and dumps what it holds: for tests of rules
 * without a kernel. The tables of iptables are those that `explain` tries changes on. nft is no more than the words
 * that rules here use.
 */
import type { Command, Output, Run } from "../../lib/kernel/run.ts";
import { VirtualTables } from "../../lib/kernel/virtual_tables.ts";

const EMPTY = "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n" +
  "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n" +
  "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";

/** How the fake may differ from one where everything works. */
export interface FirewallOptions {
  /** Tools that do not work with this kernel. */
  readonly broken?: readonly ("iptables" | "nft")[];
  /** Called before a transaction is executed: another process gets in between. */
  before?(firewall: FakeFirewall, text: string): Promise<void> | void;
}

/** A host with nothing but its packet filter. */
export interface FakeFirewall {
  readonly host: Run;
  /** Every command, as one line. */
  readonly commands: string[];
  /** Executes a transaction of another process. */
  put(tool: "iptables" | "ip6tables" | "nft", text: string): Promise<void>;
  /** What iptables, ip6tables and nft hold, without what is always there. */
  dump(): Promise<string>;
}

const answer = (more: Partial<Output> = {}): Output => ({ code: 0, signal: null, stdout: "", stderr: "", ...more });

export function fakeFirewall({ broken = [], before }: FirewallOptions = {}): FakeFirewall {
  const tables = new VirtualTables(({ argv }) =>
    Promise.resolve(argv[0]?.endsWith("-save") ? answer({ stdout: EMPTY }) : answer({ code: 1 }))
  );
  let nft = new Nft();
  const commands: string[] = [];
  const loaded = async (tool: string) => void await tables.restore({ argv: [`${tool}-restore`], input: [] });

  const execute = async (command: Command): Promise<Output> => {
    const [tool = "", ...args] = command.argv;
    const text = (command.input ?? []).join("");
    if (tool === "nft") {
      if (broken.includes("nft")) {
        return answer({ code: 1, stderr: "Error: Could not process rule: Operation not supported\n" });
      }
      if (args[0] === "--version") return answer({ stdout: "nftables v1.0.6 (Lester Gooch #5)\n" });
      if (args[0] === "-j") return nft.listed(args.slice(2));
      const draft = nft.copy();
      try {
        const stdout = draft.execute(text);
        if (!args.includes("--check")) nft = draft;
        return answer({ stdout });
      } catch (error) {
        return answer({ code: 1, stderr: `/dev/stdin:1:1-9: Error: ${(error as Error).message}\n` });
      }
    }
    if (broken.includes("iptables")) {
      // As the older variant says it where its module is not there: restore says less.
      const words = tool.endsWith("-restore") ? "unable to initialize table 'nat'" : "Cannot initialize: iptables who?";
      return answer({ code: 3, stderr: `${tool} v1.8.9 (legacy): ${words}\n` });
    }
    const name = tool.replace(/-(save|restore)$/, "");
    await loaded(name);
    if (tool.endsWith("-save")) return tables.saved(command) ?? answer();
    if (tool.endsWith("-restore")) {
      const verdict = await tables.restore(command);
      return verdict.done ? answer() : verdict.answer;
    }
    const at = args.indexOf("-C");
    if (at < 0) return tables.listed({ argv: command.argv }) ?? answer({ code: 1 });
    const line = `*${args[args.indexOf("-t") + 1]}\n-C ${args.slice(at + 1).join(" ")}\nCOMMIT\n`;
    return (await tables.restore({ argv: [`${name}-restore`], input: [line] })).done ? answer() : answer({ code: 1 });
  };

  const firewall: FakeFirewall = {
    commands,
    host: async (command) => {
      commands.push(command.argv.join(" "));
      if (before && command.input !== undefined) await before(firewall, command.input.join(""));
      return await execute(command);
    },
    put: async (tool, text) => {
      const argv = tool === "nft" ? ["nft", "-f", "-"] : [`${tool}-restore`, "--noflush"];
      const { code, stderr } = await execute({ argv, input: [text] });
      if (code !== 0) throw new Error(stderr);
    },
    dump: async () => {
      const parts: string[] = [];
      for (const tool of ["iptables", "ip6tables"]) {
        await loaded(tool);
        const saved = tables.saved({ argv: [`${tool}-save`] })?.stdout ?? "";
        const own = saved.split("\n").filter((line) => /^:\S+ - |^-A /.test(line));
        if (own.length > 0) parts.push(`${tool}\n${own.join("\n")}\n`);
      }
      return parts.join("") + nft.text();
    },
  };
  return firewall;
}

interface Chain {
  readonly base: string;
  readonly rules: { readonly handle: number; readonly text: string }[];
}

interface Table {
  readonly chains: Map<string, Chain>;
  readonly sets: Map<string, Map<string, string>>;
}

const MISSING = "No such file or directory";

/** Tables of nft by `FAMILY NAME`. */
class Nft {
  private tables = new Map<string, Table>();
  private handle = 1;

  copy(): Nft {
    const copy = new Nft();
    copy.tables = structuredClone(this.tables);
    copy.handle = this.handle;
    return copy;
  }

  /** Executes all lines; throws at the first that does not work. Returns what was to be listed. */
  execute(script: string): string {
    return script.split("\n").filter((line) => line !== "").map((line) => this.line(line)).join("");
  }

  private line(line: string): string {
    const [, verb = "", what = "", place = "", rest = ""] =
      /^(\w+) (table|chain|rule|set|element) (\w+ \S+) ?(.*)$/.exec(line) ?? [];
    if (what === "table" && verb === "add") {
      if (!this.tables.has(place)) this.tables.set(place, { chains: new Map(), sets: new Map() });
      return "";
    }
    const table = this.tables.get(place);
    if (!table) throw new Error(MISSING);
    const [, name = "", text = ""] = /^(\S+) ?(.*)$/.exec(rest) ?? [];
    if (what === "set") this.set(table, verb, name);
    else if (what === "element") this.element(table, verb, { name, text });
    else if (what === "chain") return this.chain(table, verb, { place, name, text });
    else this.rule(table, verb, { name, text });
    return "";
  }

  private set({ sets }: Table, verb: string, name: string): void {
    if (verb === "add" && !sets.has(name)) sets.set(name, new Map());
    if (verb === "delete" && !sets.delete(name)) throw new Error(MISSING);
  }

  private element({ sets }: Table, verb: string, { name, text }: { name: string; text: string }): void {
    const [, value = "", comment = ""] = /^\{ (.*?)(?: comment "(.*)")? \}$/.exec(text) ?? [];
    const set = sets.get(name);
    if (!set || (verb === "delete" && !set.delete(value))) throw new Error(MISSING);
    if (verb === "add" && !set.has(value)) set.set(value, comment);
  }

  private chain(
    { chains }: Table,
    verb: string,
    { place, name, text }: { place: string; name: string; text: string },
  ): string {
    const chain = chains.get(name);
    if (verb === "create" && chain) throw new Error("Could not process rule: File exists");
    if (verb === "add" || verb === "create") {
      if (!chain) chains.set(name, { base: /type .*?;/.exec(text)?.[0] ?? "", rules: [] });
      return "";
    }
    if (!chain) throw new Error(MISSING);
    if (verb === "flush") chain.rules.length = 0;
    if (verb === "delete") {
      const isUsed = [...chains.values()].flatMap(({ rules }) => rules).some(({ text }) => targetOf(text) === name);
      if (chain.rules.length > 0 || isUsed) throw new Error("Could not process rule: Device or resource busy");
      chains.delete(name);
    }
    return verb === "list" ? `table ${place} {\n${chainText(name, chain)}}\n` : "";
  }

  private rule({ chains }: Table, verb: string, { name, text }: { name: string; text: string }): void {
    const rules = chains.get(name)?.rules;
    const target = targetOf(text);
    if (!rules || (target !== undefined && !chains.has(target))) throw new Error(MISSING);
    if (verb !== "delete") {
      rules.splice(verb === "insert" ? 0 : rules.length, 0, { handle: this.handle++, text });
      return;
    }
    const at = rules.findIndex(({ handle }) => text === `handle ${handle}`);
    if (at < 0) throw new Error(MISSING);
    rules.splice(at, 1);
  }

  /** `nft -j list …` */
  listed([what = "", family = "", name = "", part = ""]: readonly string[]): Output {
    const isAll = what === "ruleset" || what === "chains";
    const chosen = [...this.tables].filter(([place]) => isAll || place === `${family} ${name}`);
    const nftables = chosen.flatMap(([place, { chains, sets }]) => [
      ...[...chains].filter(([chain]) => what !== "set" && (what !== "chain" || chain === part)).flatMap(
        ([chain, one]) => chainJson(place, chain, one).slice(0, what === "chains" ? 1 : undefined),
      ),
      ...[...sets].filter(([set]) => what === "ruleset" || what === "table" || (what === "set" && set === part)).map(
        ([set, elements]) => setJson(place, set, elements),
      ),
    ]);
    if (!isAll && (chosen.length === 0 || (part !== "" && nftables.length === 0))) {
      return answer({ code: 1, stderr: `Error: ${MISSING}\n` });
    }
    return answer({ stdout: JSON.stringify({ nftables: [{ metainfo: {} }, ...nftables] }) });
  }

  text(): string {
    return [...this.tables].map(([place, { chains, sets }]) =>
      `table ${place} {\n` +
      [...sets].map(([name, elements]) => `\tset ${name} {${[...elements.keys()].map((one) => ` ${one}`).join()} }\n`)
        .join("") +
      [...chains].map(([name, chain]) => chainText(name, chain)).join("") + "}\n"
    ).join("");
  }
}

const targetOf = (text: string) => /\b(?:jump|goto) (\S+)/.exec(text)?.[1];

function chainText(name: string, { base, rules }: Chain): string {
  const lines = [...(base === "" ? [] : [base]), ...rules.map(({ text }) => text)];
  return `\tchain ${name} {\n${lines.map((line) => `\t\t${line}\n`).join("")}\t}\n`;
}

function chainJson(place: string, name: string, { base, rules }: Chain): Record<string, unknown>[] {
  const [family, table] = place.split(" ");
  const [, type, hook, prio] = /type (\w+) hook (\w+) priority (-?\d+)/.exec(base) ?? [];
  const about = type === undefined ? {} : { type, hook, prio: Number(prio), policy: "accept" };
  return [
    { chain: { family, table, name, ...about } },
    ...rules.map(({ handle, text }) => {
      const comment = / ?comment "(.*)"$/.exec(text);
      const expr = expressions(comment ? text.slice(0, comment.index) : text);
      return { rule: { family, table, chain: name, handle, ...(comment && { comment: comment[1] }), expr } };
    }),
  ];
}

function setJson(place: string, name: string, elements: ReadonlyMap<string, string>): Record<string, unknown> {
  const [family, table] = place.split(" ");
  const elem = [...elements].map(([text, comment]) => {
    const parts = text.split(" . ").map((one) => one.replaceAll('"', ""));
    const val = parts.length === 1 ? parts[0] : { concat: parts };
    return comment === "" ? val : { elem: { val, comment } };
  });
  return { set: { family, table, name, elem } };
}

/** A rule's text as the expressions of nft's JSON, as far as rules here use them. */
function expressions(text: string): unknown[] {
  const found: unknown[] = [];
  let rest = text;
  const take = (pattern: RegExp, make: (parts: readonly string[]) => unknown) => {
    const parts = pattern.exec(rest);
    if (!parts) return false;
    found.push(make(parts.slice(1)));
    rest = rest.slice(parts[0].length).trimStart();
    return true;
  };
  const right = (word = "") => {
    const [addr = "", len] = word.split("/");
    if (len !== undefined) return { prefix: { addr, len: Number(len) } };
    return /^\d+$/.test(word) ? Number(word) : word.replaceAll('"', "");
  };
  const match = (left: unknown, op: string | undefined, word: string | undefined) => ({
    match: { op: op ? "!=" : "==", left, right: right(word) },
  });
  while (rest !== "") {
    const isKnown =
      take(/^(ip6?|tcp|udp|sctp|dccp|ether) (saddr|daddr|dport) (!= )?(\S+)/, ([protocol, field, op, word]) =>
        match({ payload: { protocol, field } }, op, word)) ||
      take(/^dnat to \[?([\da-f.:]+?)\]?:(\d+)(?= |$)/, ([addr, port]) => ({ dnat: { addr, port: Number(port) } })) ||
      take(/^(jump|goto) (\S+)/, ([verb = "", target]) => ({ [verb]: { target } })) ||
      take(/^(masquerade|accept|drop|return)/, ([verdict = ""]) => ({ [verdict]: null })) ||
      take(/^iifname \. oifname (@\S+)/, ([set]) =>
        match({ concat: ["iifname", "oifname"] }, undefined, set)) ||
      take(/^(iifname|oifname) (!= )?(\S+)/, ([key, op, word]) =>
        match({ meta: { key } }, op, word)) ||
      take(/^(?:fib daddr type|ct state|ct status) (\S+)/, ([word]) => match({ fib: {} }, undefined, word));
    if (!isKnown) throw new Error(`the fake does not know ${JSON.stringify(rest)}`);
  }
  return found;
}
